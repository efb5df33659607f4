"""The demo, and the simulators alone."""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import fields
from pathlib import Path

from exporter import app, log, reloading
from exporter.cli import UsageError
from exporter.cli.service import until_stopped
from exporter.clock import SystemClock
from exporter.config import ConfigError
from exporter.model import words
from exporter.model.groups import Group
from exporter.model.operations import OperationAction
from exporter.model.retries import Outcome
from exporter.retries.control import ControlError
from exporter.retries.facts import operation_facts
from exporter.retries.operations import Operations, Selection
from exporter.simulator import SIMULATORS
from exporter.simulator.companions import companions
from exporter.simulator.core import Faults
from exporter.simulator.fleet import DEMO_RETRIES, Fleet, demo_config
from exporter.simulator.make import MakeSimulator
from exporter.web import status
from exporter.web.doors import AddressError, no_address

#: Workflows of each platform in the demo: enough for something to happen all the time.
DEMO_WORKFLOWS = 15
#: The demo prints one line about what it sees this often (seconds).
DEMO_REPORT_INTERVAL = 5.0
#: In the demo somebody approves what waits in the largest group, this often (seconds).
DEMO_APPROVAL_INTERVAL = 20.0
#: After so many seconds something is down in the demo: so many dead letters of one workflow, half of them of another.
DEMO_INCIDENT_AFTER, DEMO_INCIDENT_LETTERS = 15.0, 24
#: Gates are told of for groups of at least this many dead letters.
DEMO_GATES_FROM = 5
#: Debian's packages of what may run beside the demo.
PACKAGES = {"prometheus": "prometheus", "alertmanager": "prometheus-alertmanager"}


def demo(options: argparse.Namespace) -> int:
    _check_ports(options.port, 1)
    with tempfile.TemporaryDirectory(prefix="automation-exporter-demo-") as folder:
        return until_stopped(lambda stop, reload: _demonstrate(options, Path(folder), stop, reload))


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
            tasks.create_task(_incident(fleet, stop))

        async with asyncio.TaskGroup() as tasks:
            try:
                await reloading.run(config, stop=stop, reload=reload, load=lambda: config, on_running=announce)
            except AddressError as exc:
                raise UsageError(no_address("--port", str(options.port), exc.cause)) from None


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
    """In the demo somebody looks now and then."""
    while not await _stopped(stop, DEMO_APPROVAL_INTERVAL):
        await approve_once(running.operations)


async def approve_once(operations: Operations) -> None:
    """Approve the largest group that waits for it."""
    group = next((group for group in operations.groups() if group.awaits_approval), None)
    if group is None:
        return
    with suppress(ControlError):  # it was dealt with a moment ago
        chosen = Selection(group=group.id)
        begun = await operations.begin(OperationAction.APPROVE, chosen, who="demo", why="it works again")
        number = words.count(begun["count"], "dead letter")
        print(f"somebody approves {number} of {_named(group)}: operation {begun['operation']}", flush=True)


async def _incident(fleet: Fleet, stop: asyncio.Event) -> None:
    """A while later something behind two workflows of Make is down for a moment."""
    make = next((one for one in fleet.simulators.values() if isinstance(one, MakeSimulator)), None)
    if make is None or await _stopped(stop, DEMO_INCIDENT_AFTER):
        return
    print("something behind Payment import and Invoice export (make) is down for a moment", flush=True)
    workflow = break_first(make)
    if not await _stopped(stop, 1.0):
        break_more(make, workflow)


def break_first(make: MakeSimulator) -> str:
    """The first dead letter of a workflow, whose first retry fails as well: what follows waits for its gate."""
    workflow = make.add_workflow(name="Payment import")
    make.add_dead_letter(workflow, error="ConnectionError", outcomes=("failure", "success"))
    return workflow


def break_more(make: MakeSimulator, workflow: str) -> None:
    """What fails after it, there and in a workflow whose retries somebody has to approve."""
    asks = make.add_workflow(name="Invoice export")
    for number in range(DEMO_INCIDENT_LETTERS):
        make.add_dead_letter(workflow, error="ConnectionError", outcomes=("success",))
        if number % 2:
            make.add_dead_letter(asks, error="ModuleTimeoutError", outcomes=("success",))


def _named(group: Group) -> str:
    return f"{group.workflow or group.workflow_id} ({group.source})"


async def _stopped(stop: asyncio.Event, seconds: float) -> bool:
    """Whether it was stopped within this time."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
    return stop.is_set()


async def _report(running: app.Service, stop: asyncio.Event) -> None:
    """Say now and then what the demo sees."""
    said: set[str] = set()
    while not await _stopped(stop, DEMO_REPORT_INTERVAL):
        sources = running.world.sources.values()
        workflows, active = sum(len(s.workflows) for s in sources), sum(len(s.open_runs) for s in sources)
        letters, retries = sum(len(s.dead_letters) for s in sources), running.book.everything()
        counted, groups = running.projection.runs_counted(), running.operations.groups()
        mended = sum(1 for retry in retries if retry.outcome is Outcome.SUCCEEDED)
        print(
            f"{workflows} workflows, {active} active runs, {counted:.0f} finished runs counted, "
            f"{letters} open dead letters in {words.count(len(groups), 'group')}, {len(retries)} retries, "
            f"{mended} of them succeeded",
            flush=True,
        )
        for line in (*gates(running, groups, SystemClock().now()), *progress(running.operations)):
            if line not in said:
                said.add(line)
                print(f"    {line}", flush=True)


def gates(running: app.Service, groups: Sequence[Group], now: float) -> Iterator[str]:
    """How the gates of large groups stand."""
    large = [group for group in groups if len(group.letters) >= DEMO_GATES_FROM]
    found = status.groups(running.sources, running.operations, running.book, large, now=now)
    for group, facts in zip(large, found, strict=True):
        if facts["gate"] is not None:
            stands = words.gate({**facts["gate"], "under_way": 0}, now)
            yield f"{_named(group)}: {stands}"


def progress(operations: Operations) -> Iterator[str]:
    """How far operations are that are under way or have just ended."""
    for state in operations.newest(3):
        facts = operation_facts(state, items=False)
        split = ", ".join(f"{number} {words.became(name)}" for name, number in facts["outcomes"].items())
        yield f"operation {facts['id']}: {facts['done']} of {facts['total']} ({split})"


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
