"""The poller against a scripted client: what is stored, what is said, what waits for what."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from exporter.clock import ManualClock
from exporter.model import Result, Run, State, Workflow
from exporter.model.ledger import Committed, FoldRules
from exporter.platform import Fault, Known, Page, Platform, RunKey, Stream, StreamName
from exporter.platform.section import SourceConfig
from exporter.polling.poller import COMPLETE_TRIES_MAX, WOKEN_GAP, Poller
from exporter.store.ledger import Ledger, open_engine
from exporter.view.known import World
from exporter.view.own import OwnMetrics
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind
from tests.sources import connected

STREAMS = (
    Stream(name=StreamName.WORKFLOWS, lane=Lane.SWEEPS, opening=True),
    Stream(name=StreamName.RUNS, lane=Lane.RUNNING),
    Stream(name=StreamName.QUOTA, lane=Lane.SWEEPS, every=10.0),
)


class ScriptedClient:
    """Answers each sweep with the next script given for its stream: pages, or an error raised after them."""

    def __init__(self) -> None:
        self.scripts: dict[str, list[list[Page | Exception]]] = {}
        self.swept: list[str] = []
        self.completed: list[list[RunKey]] = []

    async def sweep(self, stream: str, known: Known, now: float) -> AsyncIterator[Page]:
        self.swept.append(stream)
        for step in self._next(stream):
            if isinstance(step, Exception):
                raise step
            yield step

    async def complete(self, keys: Sequence[RunKey], known: Known, now: float) -> AsyncIterator[Page]:
        self.completed.append(list(keys))
        for step in self._next("complete"):
            if isinstance(step, Exception):
                raise step
            yield step

    async def check(self) -> AsyncIterator[str]:
        yield "ok"

    def _next(self, stream: str) -> list[Page | Exception]:
        scripts = self.scripts.get(stream, [])
        return scripts.pop(0) if scripts else []


class Wire:
    """The part of an Api the poller itself uses."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.offset = 1000.0  # its clock runs ahead of ours

    def platform_now(self) -> float:
        return self.clock.now() + self.offset

    def clock_offset(self) -> None:
        """Nobody asks for it here."""


class Setup:
    def __init__(
        self,
        ledger: Ledger,
        world: World,
        poller: Poller,
        client: ScriptedClient,
        clock: ManualClock,
        own: OwnMetrics,
    ) -> None:
        self.ledger, self.world, self.poller, self.client, self.clock = ledger, world, poller, client, clock
        self.source, self.own = poller.source, own
        self.ups: list[bool] = []

    def value(self, name: str, **labels: str) -> float | None:
        named = {"platform": "stand-in", "source": "s", **labels}
        value: float | None = self.own.registry.get_sample_value("automation_exporter_" + name, named)
        return value


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    clock, client = ManualClock(), ScriptedClient()
    world = World(["s"])
    ledger = Ledger(await open_engine(f"sqlite:///{tmp_path}/t.db"), {"s": FoldRules()})

    def follow(committed: Committed) -> None:
        world.apply(committed)

    ledger.on_commit = follow
    platform = Platform(
        name="stand-in",
        title="Stand-in",
        config=SourceConfig,
        streams=STREAMS,
        connect=lambda config, api: client,
        auth=lambda config: None,
        error_detail=lambda body: None,
        requests_per_minute=60,
        results=(),
        error_classes=(),
        resolved_by=(),
    )
    wire: Any = Wire(clock)
    own = OwnMetrics()
    source = connected("s", platform, world.sources["s"], clock, api=wire, client=client, own=own)
    poller = Poller(source, ledger, clock, jitter=lambda: 0.5)
    made = Setup(ledger, world, poller, client, clock, own)
    poller._on_up = made.ups.append
    yield made
    await ledger.close()


def page(*ids: str, cursors: dict[str, Any] | None = None, faults: tuple[Fault, ...] = ()) -> Page:
    runs = [Run(workflow_id="w", id=i, state=State.RUNNING, started_at=1.0) for i in ids]
    return Page(observations=runs, cursors=cursors or {}, faults=faults)


def refused(kind: ErrorKind) -> ApiError:
    return ApiError(kind, endpoint="GET /things", detail="no", status=None)


async def test_the_first_sweep_sets_the_baseline_on_the_platforms_clock_even_if_there_is_nothing(setup: Setup) -> None:
    report = await setup.poller.sweep_once("workflows")
    assert (report.error, report.observations) == (None, 0)
    assert (await setup.ledger.load()).first_sweeps == {"s": setup.clock.now() + 1000.0}
    assert setup.world.sources["s"].first_sweep_at == setup.clock.now() + 1000.0


async def test_the_baseline_knows_the_platforms_clock_from_the_first_answer_of_the_first_sweep(setup: Setup) -> None:
    wire: Any = setup.source.api
    wire.offset = 0.0  # nothing has been answered yet

    async def sweep(stream: str, known: Known, now: float) -> AsyncIterator[Page]:
        wire.offset = -300.0
        await setup.clock.advance(7.0)
        yield page("a")

    setup.client.sweep = sweep  # type: ignore[method-assign]
    began = setup.clock.now()
    await setup.poller.sweep_once("workflows")
    assert setup.world.sources["s"].first_sweep_at == began - 300.0


async def test_a_sweep_that_fails_in_the_middle_keeps_its_pages_and_the_cursors_they_carried(setup: Setup) -> None:
    setup.client.scripts["runs"] = [[page("a", cursors={"w1": 5}), page("b"), refused(ErrorKind.UNAVAILABLE)]]
    report = await setup.poller.sweep_once("runs")
    assert report.error is not None
    loaded = await setup.ledger.load()
    assert {run_id for _, run_id in loaded.open_runs} == {"a", "b"}
    assert loaded.cursors[("s", "runs")] == {"w1": 5}
    status = setup.source.streams["runs"]
    assert (status.failures, status.kind, status.success_at) == (1, ErrorKind.UNAVAILABLE, None)
    assert setup.value("sweep_errors_total", stream="runs", kind="unavailable") == 1.0
    assert setup.value("data_complete", stream="runs") == 0.0


async def test_an_unusable_item_is_counted_and_costs_completeness_but_not_the_sweep(setup: Setup) -> None:
    setup.client.scripts["runs"] = [[page("a", faults=(Fault(kind="bad_item", detail="no id"),))], [page("b")]]
    report = await setup.poller.sweep_once("runs")
    assert (report.error, len(report.faults), report.news) == (None, 1, 1)
    assert setup.value("sweep_errors_total", stream="runs", kind="bad_item") == 1.0
    assert setup.value("data_complete", stream="runs") == 0.0
    assert setup.source.streams["runs"].success_at == setup.clock.now()
    await setup.poller.sweep_once("runs")
    assert setup.value("data_complete", stream="runs") == 1.0


async def test_a_bug_in_a_client_costs_its_sweep_and_nothing_else(setup: Setup) -> None:
    setup.client.scripts["runs"] = [[page("a"), KeyError("oops")]]
    report = await setup.poller.sweep_once("runs")
    assert report.error is not None
    assert report.error.kind is ErrorKind.BAD_PAYLOAD
    assert len((await setup.ledger.load()).open_runs) == 1


async def test_a_source_is_up_when_its_workflows_could_be_listed(setup: Setup) -> None:
    setup.client.scripts["workflows"] = [[refused(ErrorKind.AUTH)], [Page(observations=[Workflow(id="w", at=1.0)])]]
    await setup.poller.sweep_once("workflows")
    await setup.poller.sweep_once("runs")
    await setup.poller.sweep_once("workflows")
    assert setup.ups == [False, True]


async def test_opening_streams_are_swept_first_then_each_in_its_own_rhythm(setup: Setup) -> None:
    task = asyncio.create_task(setup.poller.run())
    await settle(setup)
    assert setup.client.swept[0] == "workflows"
    assert sorted(setup.client.swept) == ["quota", "runs", "workflows"]
    for _ in range(61):
        await setup.clock.advance(10.0)
        await settle(setup)
    swept = setup.client.swept
    assert (swept.count("workflows"), swept.count("runs"), swept.count("quota")) == (11, 11, 2)
    await stop(task)


async def test_a_refused_credential_is_not_hammered(setup: Setup) -> None:
    setup.client.scripts["runs"] = [[refused(ErrorKind.AUTH)] for _ in range(99)]
    task = asyncio.create_task(setup.poller.run())
    for _ in range(360):
        await setup.clock.advance(10.0)
        await settle(setup)
    assert 4 <= setup.client.swept.count("runs") <= 6
    await stop(task)


async def test_a_woken_stream_is_swept_soon_but_not_more_often_than_its_gap(setup: Setup) -> None:
    task = asyncio.create_task(setup.poller.run())
    await settle(setup)
    before = setup.client.swept.count("runs")
    for _ in range(100):
        setup.source.wake([], [StreamName.RUNS])
        await setup.clock.advance(WOKEN_GAP / 10)
        await settle(setup)
    assert 8 <= setup.client.swept.count("runs") - before <= 10
    await stop(task)


async def test_a_stream_with_more_to_read_than_its_budget_gave_is_swept_soon_again_unless_it_failed(
    setup: Setup,
) -> None:
    more = Page(more=True)
    setup.client.scripts["runs"] = [[more], [page("r1"), more], [more, refused(ErrorKind.UNAVAILABLE)]]
    task = asyncio.create_task(setup.poller.run())
    await settle(setup)
    for expected in (2, 3, 3, 3, 3):
        await setup.clock.advance(WOKEN_GAP)
        await settle(setup)
        assert setup.client.swept.count("runs") == expected
    await stop(task)


async def test_a_dead_letter_that_a_webhook_reports_wakes_the_stream_that_brings_them_here(setup: Setup) -> None:
    task = asyncio.create_task(setup.poller.run())
    await settle(setup)
    before = setup.client.swept.count("runs")
    setup.source.wake([], [StreamName.DEAD_LETTERS])  # no stream of this platform: a failed run is one
    await setup.clock.advance(WOKEN_GAP)
    await settle(setup)
    assert setup.client.swept.count("runs") == before + 1
    await stop(task)


async def test_runs_named_by_webhooks_are_completed_and_asked_for_again_a_few_times_if_that_fails(setup: Setup) -> None:
    done = Run(workflow_id="w", id="r", state=State.FINISHED, result=Result.SUCCESS, ended_at=setup.clock.now() + 2000)
    setup.client.scripts["complete"] = [[refused(ErrorKind.UNAVAILABLE)], [Page(observations=[done])]]
    setup.source.wake([RunKey(run_id="r", workflow_id="w"), RunKey(run_id="r", workflow_id="w")], [])
    assert (await setup.poller.complete_once()).error is not None
    assert (await setup.poller.complete_once()).news == 1
    await setup.poller.complete_once()
    key = RunKey(run_id="r", workflow_id="w")
    assert setup.client.completed == [[key], [key], []]
    setup.client.scripts["complete"] = [[refused(ErrorKind.UNAVAILABLE)] for _ in range(9)]
    setup.source.wake([replace(key, run_id="never")], [])
    for _ in range(COMPLETE_TRIES_MAX + 2):
        await setup.poller.complete_once()
    asked = [keys for keys in setup.client.completed if keys and keys[0].run_id == "never"]
    assert len(asked) == COMPLETE_TRIES_MAX


async def settle(setup: Setup) -> None:
    """Let the loops react to what has happened, the store's thread included."""
    for _ in range(3):
        await setup.ledger.ping()
        for _ in range(10):
            await asyncio.sleep(0)


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
