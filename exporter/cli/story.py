"""What the demo tells while it runs: all is well, something breaks, what is done about it, all is well again.

It tells what the service knows, not what was planned: the same facts are on the status page and in the metrics.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from exporter import app
from exporter.clock import Clock
from exporter.model import words
from exporter.model.groups import Group
from exporter.model.operations import OperationAction
from exporter.model.retries import Outcome, Retry
from exporter.retries.control import ControlError
from exporter.retries.facts import operation_facts
from exporter.retries.operations import Operations, Selection
from exporter.simulator.incident import Incident
from exporter.web import status

#: A line about everything this often (seconds), and a look at what is new.
REPORT_EVERY, LOOK_EVERY = 15.0, 1.0
#: All is well for so long, then it is down for so long (seconds), with a run of each of its workflows so often. Long
#: enough for an alert.
WELL_SECONDS, DOWN_SECONDS, RUN_EVERY = 20.0, 240.0, 10.0
#: So long after it works again (seconds) the demo approves what nobody has approved.
APPROVED_AFTER = 30.0
#: Gates are told of for groups of at least this many dead letters.
GATES_FROM = 3

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What the story is told of."""

    running: app.Service
    incident: Incident
    clock: Clock
    stop: asyncio.Event
    say: Say
    command: str
    """How a command is started, with ``{}`` in its place"""


async def tell(scene: Scene) -> None:
    """The whole story, once; then a line about everything now and then."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_runs(scene))
        tasks.create_task(_watch(scene))
        tasks.create_task(_report(scene))
        await _act(scene)


async def _act(scene: Scene) -> None:
    """What happens in the world, and what somebody does about it."""
    scene.say(f"All is well. In {WELL_SECONDS:.0f} seconds a payment service will be down for four minutes.")
    if await stopped(scene, WELL_SECONDS):
        return
    scene.incident.down = True
    scene.say(
        "The payment service is down: each run of Payment import and Invoice export (make) fails now, and leaves a"
        " dead letter."
    )
    scene.say("  Look: the status page names them; its metrics are automation_workflow_consecutive_failures > 0.")
    if await stopped(scene, DOWN_SECONDS):
        return
    scene.incident.repair()
    scene.say("The payment service works again.")
    approved_at = scene.clock.now() + APPROVED_AFTER
    while not well_again(scene):
        if await stopped(scene, LOOK_EVERY):
            return
        if scene.clock.now() >= approved_at:
            approved_at += APPROVED_AFTER
            for line in await approve(scene.running.operations):
                scene.say(line)
    for line in ending(scene):
        scene.say(line)


async def _runs(scene: Scene) -> None:
    while not await stopped(scene, RUN_EVERY):
        scene.incident.run()


async def _watch(scene: Scene) -> None:
    """Say what is new of gates and of what waits for a person; each once."""
    said: set[str] = set()
    while not await stopped(scene, LOOK_EVERY):
        groups, now = scene.running.operations.groups(), scene.clock.now()
        for line in (*waiting(groups, scene.command), *gates(scene.running, groups, now)):
            if line not in said:
                said.add(line)
                scene.say(line)


async def _report(scene: Scene) -> None:
    said: set[str] = set()
    while not await stopped(scene, REPORT_EVERY):
        scene.say(everything(scene.running))
        for line in progress(scene.running.operations):
            if line not in said:
                said.add(line)
                scene.say(line)


def everything(running: app.Service) -> str:
    """All of it in one line."""
    sources = running.world.sources.values()
    workflows, active = sum(len(s.workflows) for s in sources), sum(len(s.open_runs) for s in sources)
    failing = sum(1 for s in sources for entry in s.entries.values() if entry.failures and entry.gone_at is None)
    letters, retries = sum(len(s.dead_letters) for s in sources), running.book.everything()
    return (
        f"{workflows} workflows, {active} active runs, {running.projection.runs_counted():.0f} finished runs counted;"
        f" {failing} failing, {words.count(letters, 'open dead letter')},"
        f" {words.count(len(retries), 'retry', 'retries')}, {_worked(retries)} of them succeeded"
    )


def waiting(groups: Sequence[Group], command: str) -> Iterator[str]:
    """What only a person can let go on, and how."""
    for group in groups:
        if group.awaits_approval:
            yield (
                f"{named(group)}: its retries wait for your approval. On the status page, or in another terminal:\n"
                f"         {command.format(f'retries approve --group {group.id}')}\n"
                f"       If you do not, the demo does, {APPROVED_AFTER:.0f} seconds after the service works again."
            )


async def approve(operations: Operations) -> list[str]:
    """Approve every group that still waits for it; says of which."""
    said = []
    for group in operations.groups():
        if group.awaits_approval:
            with suppress(ControlError):  # it was dealt with a moment ago
                chosen = Selection(group=group.id)
                begun = await operations.begin(OperationAction.APPROVE, chosen, who="demo", why="it works again")
                number = words.count(begun["count"], "dead letter")
                said.append(f"The demo approves {number} of {named(group)}: operation {begun['operation']}")
    return said


def gates(running: app.Service, groups: Sequence[Group], now: float) -> Iterator[str]:
    """How the gates of large groups stand."""
    large = [group for group in groups if len(group.letters) >= GATES_FROM]
    found = status.groups(running.sources, running.operations, running.book, large, now=now)
    for group, facts in zip(large, found, strict=True):
        if facts["gate"] is not None:
            stands = words.gate({**facts["gate"], "under_way": 0}, now)
            yield f"  {named(group)}: {stands}"


def progress(operations: Operations) -> Iterator[str]:
    """How far operations are that are under way or have just ended."""
    for state in operations.newest(3):
        facts = operation_facts(state, items=False)
        split = ", ".join(f"{number} {words.became(name)}" for name, number in facts["outcomes"].items())
        yield f"  operation {facts['id']}: {facts['done']} of {facts['total']} ({split})"


def well_again(scene: Scene) -> bool:
    """Whether nothing is left of the incident, and no retry is under way."""
    if any(retry.outcome is None for retry in scene.running.book.everything()):
        return False
    world = scene.running.world.sources[scene.incident.source]
    return not any(
        world.dead_letters_of(workflow) or world.entries[workflow].failures for workflow in scene.incident.workflows
    )


def ending(scene: Scene) -> Iterator[str]:
    """What it came to, and what to look at next."""
    retries = scene.running.book.everything()
    yield (
        f"All is well again. {words.count(scene.incident.failed, 'run')} failed, nothing is lost:"
        f" {words.count(_worked(retries), 'retry', 'retries')} succeeded, {len(retries) - _worked(retries)} before came"
        " too early."
    )
    yield "  What to look at next, in another terminal:"
    for what, command in (
        ("every retry, and what became of it", "retries list"),
        ("who decided what, and why", "retries audit"),
        ("what is decided about each open dead letter", "policies explain --all"),
        ("what a config and its credentials are good for", "check --online"),
    ):
        yield f"    {what}:\n           {scene.command.format(command)}"
    yield f"  Your own platforms: {DOCS}/docs/deploy.md. It goes on, and all stays well, until Ctrl-C."


DOCS = "https://github.com/automation-exporter/automation-exporter/blob/main"


def named(group: Group) -> str:
    return f"{group.workflow or group.workflow_id} ({group.source})"


def _worked(retries: Sequence[Retry]) -> int:
    return sum(1 for retry in retries if retry.outcome is Outcome.SUCCEEDED)


async def stopped(scene: Scene, seconds: float) -> bool:
    """Whether it was stopped within this time."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await scene.stop.wait()
    return scene.stop.is_set()
