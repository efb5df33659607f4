"""The commands. Each is a few lines around what does the work; every problem is one clear line and exit code 1."""

import argparse
import asyncio
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import orjson

from exporter import __version__, app, log
from exporter.check import check
from exporter.clock import SystemClock
from exporter.config import ConfigError, load, masked, schema
from exporter.simulator import SIMULATORS
from exporter.simulator.core import Faults
from exporter.simulator.fleet import Fleet, demo_config
from exporter.store.script import StoreError
from exporter.traces.export import ExporterUnavailable

#: Workflows of each platform in the demo: enough for something to happen all the time.
DEMO_WORKFLOWS = 15
#: The demo prints one line about what it sees this often (seconds).
DEMO_REPORT_INTERVAL = 5.0
#: What says by itself what is wrong.
_PROBLEMS = (StoreError, OSError, ExporterUnavailable)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except ConfigError as exc:
        for problem in exc.problems:
            print(f"config: {problem}", file=sys.stderr)
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
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="the service")
    run.add_argument("--config", type=Path, required=True, metavar="FILE")
    run.set_defaults(command=_run)

    demo = commands.add_parser("demo", help="simulators of all platforms plus the service against them, on loopback")
    demo.add_argument("--port", type=int, default=10870, help="of the service; 0: any free one (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=1, help="another seed, another world (default: %(default)s)")
    demo.set_defaults(command=_demo)

    checking = commands.add_parser("check", help="validate a config and print it with its secrets masked")
    checking.add_argument("--config", type=Path, required=True, metavar="FILE")
    checking.add_argument(
        "--online", action="store_true", help="also try credentials, rights and limits of each source"
    )
    checking.set_defaults(command=_check)

    simulate = commands.add_parser("simulate", help="the simulators alone")
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

    config = commands.add_parser("config", help="about the config").add_subparsers(required=True, metavar="COMMAND")
    config.add_parser("schema", help="JSON Schema of the config, for editors").set_defaults(command=_schema)
    return parser


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
        config = demo_config(fleet, listen=f"127.0.0.1:{options.port}", database=folder / "demo.db")

        def announce(running: app.Service) -> None:
            base = f"http://127.0.0.1:{running.port}"
            print(f"\nstatus page   {base}/\nmetrics       {base}/metrics", flush=True)
            for platform, url in fleet.urls.items():
                print(f"simulator     {url}  ({platform}; truth at {url}/_sim/truth)", flush=True)
            print("stop with Ctrl-C\n", flush=True)
            tasks.create_task(fleet.deliver(f"{base}/webhooks", stop))
            tasks.create_task(_report(running, stop))

        async with asyncio.TaskGroup() as tasks:
            await app.run(config, stop=stop, reload=reload, load=lambda: config, on_running=announce)


async def _report(running: app.Service, stop: asyncio.Event) -> None:
    """Say now and then what the demo sees."""
    while not stop.is_set():
        try:
            async with asyncio.timeout(DEMO_REPORT_INTERVAL):
                await stop.wait()
        except TimeoutError:
            sources = running.world.sources.values()
            workflows, active = sum(len(s.workflows) for s in sources), sum(len(s.open_runs) for s in sources)
            letters = sum(len(s.dead_letters) for s in sources)
            counted = running.projection.runs_counted()
            print(
                f"{workflows} workflows, {active} active runs, {counted:.0f} finished runs counted, "
                f"{letters} open dead letters",
                flush=True,
            )


def _check(options: argparse.Namespace) -> int:
    config = load(options.config)
    log.configure("error", config.log.format, sys.stderr)
    log.register_secrets(config.secrets())
    print(masked(config), end="")
    return asyncio.run(check(config, online=options.online, say=print))


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
