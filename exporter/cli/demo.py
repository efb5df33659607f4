"""The demo, and the simulators alone."""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import fields
from pathlib import Path

import yaml

from exporter import app, log, reloading
from exporter.cli import UsageError
from exporter.cli.service import until_stopped
from exporter.cli.story import Scene, tell
from exporter.clock import SystemClock
from exporter.config import ConfigError, validate
from exporter.simulator import SIMULATORS
from exporter.simulator.companions import companions
from exporter.simulator.core import Faults
from exporter.simulator.fleet import DEMO_RETRIES, Fleet, demo_sections
from exporter.simulator.incident import Incident
from exporter.simulator.make import MakeSimulator
from exporter.web.doors import AddressError, no_address

#: Workflows of each platform in the demo: enough for something to happen all the time.
DEMO_WORKFLOWS = 8
#: To sign in on the demo's status page.
DEMO_TOKEN = "demo"  # noqa: S105
#: Debian's packages of what may run beside the demo.
PACKAGES = {"prometheus": "prometheus", "alertmanager": "prometheus-alertmanager"}


def demo(options: argparse.Namespace) -> int:
    _check_ports(options.port, 1)
    with tempfile.TemporaryDirectory(prefix="automation-exporter-demo-") as folder:
        return until_stopped(lambda stop, reload: _demonstrate(options, Path(folder), stop, reload))


async def _demonstrate(options: argparse.Namespace, folder: Path, stop: asyncio.Event, reload: asyncio.Event) -> None:
    log.configure("warning", "logfmt", sys.stderr)
    clock = SystemClock()
    well = {name: {"troubles": 0.0} for name in SIMULATORS}
    async with Fleet.open(clock=clock, seed=options.seed, workflows=DEMO_WORKFLOWS, options=well) as fleet:
        incident = Incident(next(one for one in fleet.simulators.values() if isinstance(one, MakeSimulator)), clock)
        sections = demo_sections(
            fleet,
            listen=f"127.0.0.1:{options.port}",
            database=folder / "demo.db",
            changes={"retries": DEMO_RETRIES},
        )
        sections["server"]["admin_token"] = DEMO_TOKEN
        sections["log"] = {"level": "warning"}  # the story is told instead
        config, file = validate(sections), folder / "config.yaml"
        file.write_text(yaml.safe_dump(sections, sort_keys=False))

        async def accompany(running: app.Service) -> None:
            base = f"http://127.0.0.1:{running.port}"
            async with AsyncExitStack() as stack:
                urls: dict[str, str] = {}
                if options.with_prometheus:
                    urls = await stack.enter_async_context(companions(folder, f"127.0.0.1:{running.port}"))
                for line in _opening(fleet, base, file, urls if options.with_prometheus else None):
                    print(line, flush=True)
                began = clock.now()

                def say(text: str) -> None:
                    passed = clock.now() - began
                    print(f"{passed // 60:02.0f}:{passed % 60:02.0f}  {text}", flush=True)

                scene = Scene(
                    running=running,
                    incident=incident,
                    clock=clock,
                    stop=stop,
                    say=say,
                    command=f"{_command()} {{}} --config {file}",
                )
                await tell(scene)
                await stop.wait()

        def announce(running: app.Service) -> None:
            tasks.create_task(accompany(running))
            tasks.create_task(fleet.deliver(f"http://127.0.0.1:{running.port}/webhooks", stop))

        async with asyncio.TaskGroup() as tasks:
            try:
                await reloading.run(config, stop=stop, reload=reload, load=lambda: config, on_running=announce)
            except AddressError as exc:
                raise UsageError(no_address("--port", str(options.port), exc.cause)) from None


def _command() -> str:
    """How this program is started from here."""
    return sys.argv[0] if Path(sys.argv[0]).name == "automation-exporter" else f"{sys.executable} -m exporter"


def _opening(fleet: Fleet, base: str, file: Path, beside: Mapping[str, str] | None) -> Iterator[str]:
    """Where to look. ``beside``: what runs beside it; None if nobody asked for that."""
    yield "\nFive simulated platforms and the exporter, on this machine alone. Stop it with Ctrl-C.\n"
    yield f"status page   {base}/   (begin here; to act on it, sign in with the token: {DEMO_TOKEN})"
    yield f"metrics       {base}/metrics"
    for name, package in PACKAGES.items():
        if beside is not None:
            yield f"{name:<13} {beside.get(name, f'not installed: apt-get install {package}')}"
    yield f"config        {file}   (for commands, while the demo runs)"
    for platform, url in fleet.urls.items():
        yield f"simulator     {url}   ({platform}; what really happened: {url}/_sim/truth)"
    yield ""


def simulate(options: argparse.Namespace) -> int:
    faults = _faults(options.fault)
    for name in options.platform or ():
        if name not in SIMULATORS:
            raise UsageError(f"--platform {name}: unknown; one of {', '.join(sorted(SIMULATORS))}")
    platforms = list(dict.fromkeys(options.platform or SIMULATORS))
    _check_ports(options.port, len(platforms))
    log.configure("info", "logfmt", sys.stderr)

    async def serve(stop: asyncio.Event, reload: asyncio.Event) -> None:
        fleet = Fleet.open(
            clock=SystemClock(),
            seed=options.seed,
            platforms=platforms,
            workflows=options.workflows,
            faults=faults,
            port=options.port,
        )
        async with AsyncExitStack() as stack:
            try:
                opened = await stack.enter_async_context(fleet)
            except OSError as exc:
                raise UsageError(no_address(f"--port {options.port}", exc.filename, exc)) from None
            for platform, url in opened.urls.items():
                print(f"{platform}: {url}  (truth at {url}/_sim/truth)", flush=True)
            if options.webhooks:
                await opened.deliver(f"{options.webhooks.rstrip('/')}/webhooks", stop)
            await stop.wait()

    return until_stopped(serve)


def _check_ports(first: int, count: int) -> None:
    """Whether there are so many ports from ``first`` on; 0 stands for any free ones. Raises ``UsageError``."""
    if not 0 <= first <= 65536 - count:
        raise UsageError(f"--port {first}: must be 0 to {65536 - count}; 0: any that is free")


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
