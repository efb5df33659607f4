"""The commands. Each is a few lines around what does the work; every problem is one clear line and exit code 1."""

import argparse
import asyncio
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson

from exporter import __version__, app, commands, log
from exporter.alerting import rules
from exporter.check import check
from exporter.clock import SystemClock
from exporter.config import ConfigError, load, masked, schema
from exporter.fields import parse_duration
from exporter.retries.control import Control, ControlError
from exporter.retries.model import Outcome
from exporter.simulator import SIMULATORS
from exporter.simulator.companions import companions
from exporter.simulator.core import Faults
from exporter.simulator.fleet import DEMO_RETRIES, Fleet, demo_config
from exporter.store.script import StoreError
from exporter.traces.otlp import ExporterUnavailable

#: Workflows of each platform in the demo: enough for something to happen all the time.
DEMO_WORKFLOWS = 15
#: The demo prints one line about what it sees this often (seconds).
DEMO_REPORT_INTERVAL = 5.0
#: In the demo somebody approves this many retries at most, this often (seconds).
DEMO_APPROVED_AT_ONCE, DEMO_APPROVAL_INTERVAL = 6, 10.0
#: Debian's packages of what may run beside the demo.
PACKAGES = {"prometheus": "prometheus", "alertmanager": "prometheus-alertmanager"}
#: What says by itself what is wrong.
_PROBLEMS = (StoreError, OSError, ExporterUnavailable)


class UsageError(Exception):
    """The command was not given what it needs: one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except ConfigError as exc:
        for problem in exc.problems:
            print(f"config: {problem}", file=sys.stderr)
    except (ControlError, UsageError) as exc:
        print(f"automation-exporter: {exc}", file=sys.stderr)
    except (*_PROBLEMS, OverflowError) as exc:  # a port beyond 65535 overflows
        print(f"automation-exporter: {exc}", file=sys.stderr)
    except KeyboardInterrupt:
        return 0
    except BaseExceptionGroup as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        broke = "" if isinstance(first, _PROBLEMS) else f"a loop broke: {type(first).__name__}: "
        print(f"automation-exporter: {broke}{first}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="automation-exporter", description="Metrics, traces and safe retries for automation platforms."
    )
    parser.add_argument("--version", action="version", version=f"automation-exporter {__version__}")
    subcommands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = subcommands.add_parser("run", help="the service")
    run.add_argument("--config", type=Path, required=True, metavar="FILE")
    run.set_defaults(command=_run)

    demo = subcommands.add_parser("demo", help="simulators of all platforms plus the service against them, on loopback")
    demo.add_argument("--port", type=int, default=10870, help="of the service; 0: any free one (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=1, help="another seed, another world (default: %(default)s)")
    demo.add_argument(
        "--with-prometheus", action="store_true", help="also a local Prometheus and Alertmanager, where installed"
    )
    demo.set_defaults(command=_demo)

    checking = subcommands.add_parser("check", help="validate a config and print it with its secrets masked")
    checking.add_argument("--config", type=Path, required=True, metavar="FILE")
    checking.add_argument(
        "--online", action="store_true", help="also try credentials, rights and limits of each source"
    )
    checking.set_defaults(command=_check)

    generating = subcommands.add_parser("rules", help="alert and recording rules for the objectives in slo")
    generating.add_argument("--config", type=Path, required=True, metavar="FILE")
    generating.set_defaults(command=_rules)

    simulate = subcommands.add_parser("simulate", help="the simulators alone")
    simulate.add_argument("--platform", choices=sorted(SIMULATORS), action="append", help="default: all")
    simulate.add_argument("--port", type=int, default=10880, help="of the first simulator (default: %(default)s)")
    simulate.add_argument("--seed", type=int, default=1)
    simulate.add_argument("--workflows", type=int, default=6, help="generated per platform (default: %(default)s)")
    simulate.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="what goes wrong how often, for example rate_limited=0.05; " + ", ".join(f.name for f in fields(Faults)),
    )
    simulate.add_argument("--webhooks", metavar="URL", help="send webhooks to URL/webhooks/{platform}")
    simulate.set_defaults(command=_simulate)

    policies = subcommands.add_parser("policies", help="about retry policies").add_subparsers(
        required=True, metavar="COMMAND"
    )
    explaining = policies.add_parser("explain", help="every open dead letter with the decision about it, and why")
    _takes_config(explaining)
    explaining.add_argument("--brief", action="store_true", help="only the decision and its reason")
    explaining.set_defaults(command=_explain)
    for later in ("bound", "backtest"):
        policies.add_parser(later, help="comes with a later version").set_defaults(command=_later)

    retries = subcommands.add_parser("retries", help="the ledger of retries, and control over them")
    _add_retries(retries.add_subparsers(required=True, metavar="COMMAND"))

    config = subcommands.add_parser("config", help="about the config").add_subparsers(required=True, metavar="COMMAND")
    config.add_parser("schema", help="JSON Schema of the config, for editors").set_defaults(command=_schema)
    return parser


def _takes_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, metavar="FILE")


def _add_retries(retries: Any) -> None:
    """``retries list | show | pause | resume | approve | hold | release | quarantine``."""

    def add(name: str, help: str, command: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = retries.add_parser(name, help=help)
        _takes_config(parser)
        parser.set_defaults(command=command)
        return parser

    add("list", "the newest retries", _list).add_argument("--limit", type=int, default=50)
    add("show", "one retry, or those of one dead letter, with the audit", _show).add_argument("id", metavar="ID")
    pause = add("pause", "send nothing: the kill switch", _pause)
    pause.add_argument("--source", help="default: all")
    pause.add_argument("--for", dest="seconds", type=_duration, metavar="DURATION", help="default: 24h")
    pause.add_argument("--why", default="")
    add("resume", "end pauses", _resume).add_argument("--source", help="default: all")
    approve = add("approve", "let dead letters that wait for it be retried once", _approve)
    approve.add_argument("ids", nargs="*", metavar="SOURCE/ID")
    approve.add_argument("--policy", help="whatever waits for approval under this policy now")
    hold = add("hold", "keep a dead letter from being retried", _hold)
    hold.add_argument("id", metavar="SOURCE/ID")
    hold.add_argument("--for", dest="seconds", type=_duration, metavar="DURATION", help="default: for good")
    quarantine = add("quarantine", "never retry a dead letter by itself, until it is released", _quarantine)
    quarantine.add_argument("id", metavar="SOURCE/ID")
    release = add("release", "take back what holds a dead letter; settle a retry nobody knows the fate of", _release)
    release.add_argument("id", metavar="SOURCE/ID", help="of the dead letter, or of the retry")
    release.add_argument("--not-sent", action="store_true", help="that retry had no effect: it does not count")


def _duration(text: str) -> float:
    try:
        return float(str(parse_duration(text)))
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def _explain(options: argparse.Namespace) -> int:
    return asyncio.run(commands.explain(load(options.config), say=print, brief=options.brief))


def _later(options: argparse.Namespace) -> int:
    print("automation-exporter: this comes with a later version", file=sys.stderr)
    return 1


def _list(options: argparse.Namespace) -> int:
    return asyncio.run(commands.list_retries(load(options.config), say=print, limit=options.limit))


def _show(options: argparse.Namespace) -> int:
    return asyncio.run(commands.show(load(options.config), options.id, say=print))


def _pause(options: argparse.Namespace) -> int:
    source, seconds, why = options.source, options.seconds, options.why
    body = {"source": source, "for": None if seconds is None else f"{seconds}s", "why": why or None}
    return _tell(
        options, "/api/v1/retries/pause", body, lambda c, who: c.pause(source, seconds=seconds, who=who, why=why)
    )


def _resume(options: argparse.Namespace) -> int:
    source = options.source
    return _tell(options, "/api/v1/retries/resume", {"source": source}, lambda c, who: c.resume(source, who=who))


def _approve(options: argparse.Namespace) -> int:
    if bool(options.ids) == bool(options.policy):
        raise UsageError("name what to approve: SOURCE/ID …, or --policy NAME")
    body = {"policy": options.policy} if options.policy else {"ids": options.ids}

    async def here(control: Control, who: str) -> dict[str, Any]:
        keys = [_key(text) for text in options.ids] or control.awaiting(options.policy)
        return await control.approve(keys, who=who)

    return _tell(options, "/api/v1/retries/approve", body, here)


def _hold(options: argparse.Namespace) -> int:
    key, seconds = _key(options.id), options.seconds
    body = {"for": None if seconds is None else f"{seconds}s"}
    return _tell(options, _path(key, "hold"), body, lambda c, who: c.hold(key, seconds=seconds, who=who))


def _quarantine(options: argparse.Namespace) -> int:
    key = _key(options.id)
    return _tell(options, _path(key, "quarantine"), {}, lambda c, who: c.quarantine(key, who=who))


def _release(options: argparse.Namespace) -> int:
    key, sent = _key(options.id), not options.not_sent
    return _tell(options, _path(key, "release"), {"sent": sent}, lambda c, who: c.release(key, sent=sent, who=who))


def _tell(
    options: argparse.Namespace,
    path: str,
    body: dict[str, Any],
    here: Callable[[Control, str], Coroutine[Any, Any, dict[str, Any]]],
) -> int:
    return asyncio.run(commands.tell(load(options.config), path, body, here, say=print))


def _key(text: str) -> tuple[str, str]:
    source, slash, letter_id = text.partition("/")
    if not slash or not source or not letter_id:
        raise UsageError(f"{text}: write SOURCE/ID, as `policies explain` prints it")
    return source, letter_id


def _path(key: tuple[str, str], action: str) -> str:
    return f"/api/v1/dead-letters/{quote(key[0], safe='')}/{quote(key[1], safe='')}/{action}"


def _run(options: argparse.Namespace) -> int:
    config = load(options.config)
    return _until_stopped(
        lambda stop, reload: app.run(config, stop=stop, reload=reload, load=lambda: load(options.config))
    )


def _until_stopped(serve: Callable[[asyncio.Event, asyncio.Event], Coroutine[Any, Any, None]]) -> int:
    """Run until SIGTERM or SIGINT; SIGHUP asks for a reload."""

    async def main() -> None:
        stop, reload = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, reload.set)
        await serve(stop, reload)

    asyncio.run(main())
    return 0


def _demo(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="automation-exporter-demo-") as folder:
        return _until_stopped(lambda stop, reload: _demonstrate(options, Path(folder), stop, reload))


async def _demonstrate(options: argparse.Namespace, folder: Path, stop: asyncio.Event, reload: asyncio.Event) -> None:
    log.configure("info", "logfmt", sys.stderr)
    async with Fleet.open(clock=SystemClock(), seed=options.seed, workflows=DEMO_WORKFLOWS) as fleet:
        config = demo_config(
            fleet,
            listen=f"127.0.0.1:{options.port}",
            database=folder / "demo.db",
            changes={"retries": DEMO_RETRIES},
        )

        def announce(running: app.Service) -> None:
            base = f"http://127.0.0.1:{running.port}"
            print(f"\nstatus page   {base}/\nmetrics       {base}/metrics", flush=True)
            for platform, url in fleet.urls.items():
                print(f"simulator     {url}  ({platform}; truth at {url}/_sim/truth)", flush=True)
            tasks.create_task(_accompany(options, folder, running.port, stop))
            tasks.create_task(fleet.deliver(f"{base}/webhooks", stop))
            tasks.create_task(_report(running, stop))
            tasks.create_task(_approve_now_and_then(running, stop))

        async with asyncio.TaskGroup() as tasks:
            await app.run(config, stop=stop, reload=reload, load=lambda: config, on_running=announce)


async def _accompany(options: argparse.Namespace, folder: Path, port: int, stop: asyncio.Event) -> None:
    """Keep a Prometheus and an Alertmanager running beside the demo, if that is asked for."""
    if not options.with_prometheus:
        print("stop with Ctrl-C\n", flush=True)
        return
    async with companions(folder, f"127.0.0.1:{port}") as urls:
        for name in ("prometheus", "alertmanager"):
            found = urls.get(name, f"not installed: apt-get install {PACKAGES[name]}")
            print(f"{name:<13} {found}", flush=True)
        print("stop with Ctrl-C\n", flush=True)
        await stop.wait()


async def _approve_now_and_then(running: app.Service, stop: asyncio.Event) -> None:
    """In the demo somebody looks now and then and approves what waits for it."""
    while not await _stopped(stop, DEMO_APPROVAL_INTERVAL):
        waiting = [f for f in running.control.everything() if f.ladder.decision.awaits_approval]
        keys = [(f.subject.source, f.subject.letter.id) for f in waiting[:DEMO_APPROVED_AT_ONCE]]
        if keys:
            await running.control.approve(keys, who="demo")
            print(f"somebody approves {len(keys)} of {len(waiting)} retries that wait for it", flush=True)


async def _stopped(stop: asyncio.Event, seconds: float) -> bool:
    """Whether it was stopped within this time."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
    return stop.is_set()


async def _report(running: app.Service, stop: asyncio.Event) -> None:
    """Say now and then what the demo sees."""
    while not await _stopped(stop, DEMO_REPORT_INTERVAL):
        sources = running.world.sources.values()
        workflows, active = sum(len(s.workflows) for s in sources), sum(len(s.open_runs) for s in sources)
        letters, retries = sum(len(s.dead_letters) for s in sources), running.book.everything()
        counted = running.projection.runs_counted()
        mended = sum(1 for retry in retries if retry.outcome is Outcome.SUCCEEDED)
        print(
            f"{workflows} workflows, {active} active runs, {counted:.0f} finished runs counted, "
            f"{letters} open dead letters, {len(retries)} retries, {mended} of them succeeded",
            flush=True,
        )


def _check(options: argparse.Namespace) -> int:
    config = load(options.config)
    log.configure("error", config.log.format, sys.stderr)
    log.register_secrets(config.secrets())
    print(masked(config), end="")
    return asyncio.run(check(config, online=options.online, say=print))


def _rules(options: argparse.Namespace) -> int:
    slo = load(options.config).slo
    print(rules.as_yaml(rules.recording_rules(slo) + rules.alert_rules(slo)), end="")
    return 0


def _simulate(options: argparse.Namespace) -> int:
    faults = _faults(options.fault)
    log.configure("info", "logfmt", sys.stderr)

    async def serve(stop: asyncio.Event, reload: asyncio.Event) -> None:
        async with Fleet.open(
            clock=SystemClock(),
            seed=options.seed,
            platforms=options.platform,
            workflows=options.workflows,
            faults=faults,
            port=options.port,
        ) as fleet:
            for platform, url in fleet.urls.items():
                print(f"{platform}: {url}  (truth at {url}/_sim/truth)", flush=True)
            if options.webhooks:
                await fleet.deliver(f"{options.webhooks.rstrip('/')}/webhooks", stop)
            await stop.wait()

    return _until_stopped(serve)


def _faults(given: Sequence[str]) -> dict[str, float]:
    known, faults = {f.name for f in fields(Faults)}, dict[str, float]()
    for item in given:
        name, _, value = item.partition("=")
        try:
            faults[name] = float(value)
        except ValueError:
            raise ConfigError([f"--fault {item}: write NAME=VALUE with a number"]) from None
        if name not in known:
            raise ConfigError([f"--fault {item}: unknown fault; one of {', '.join(sorted(known))}"])
    return faults


def _schema(options: argparse.Namespace) -> int:
    sys.stdout.write(orjson.dumps(schema(), option=orjson.OPT_INDENT_2).decode() + "\n")
    return 0
