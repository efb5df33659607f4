"""The Cognaize client against the simulated installation: what it counts is what really happened, at few requests."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp.test_utils import TestServer
from pydantic import ValidationError

from exporter.clock import ManualClock
from exporter.model import ErrorClass, Result, Run, RunTimed, State, StepFinished, Via
from exporter.model.fold import RunEntry
from exporter.platform import Fault, MalformedEvent, Page, RunKey, StreamName, WebhookRequest
from exporter.platforms.cognaize import PLATFORM, client, listing
from exporter.platforms.cognaize.client import CognaizeClient
from exporter.platforms.cognaize.config import CognaizeConfig
from exporter.simulator.cognaize import CognaizeSimulator
from exporter.simulator.cognaize.world import Order
from exporter.simulator.core import Faults
from exporter.wire.api import Api
from exporter.wire.budget import Budget
from exporter.wire.errors import ApiError, ErrorKind
from tests.platforms.known import MemoryKnown

START = 1_768_456_800.0
FIND, GET, LOGIN = "POST /api/v1/processes/find", "GET /api/v1/processes/{id}", "POST /auth/token"
ORDERS: tuple[Order, ...] = ("oldest_first", "newest_first", "unordered")


class HastyClock(ManualClock):
    """Whoever sleeps moves the time on: pauses and backoffs take no real time."""

    async def sleep(self, seconds: float) -> None:
        await self.advance(seconds)


class Source:
    """A simulated installation on a real server, a client with its wire, and what is known."""

    def __init__(self, simulator: CognaizeSimulator, clock: HastyClock, config: CognaizeConfig) -> None:
        self.simulator, self.clock, self.config = simulator, clock, config
        self.known = MemoryKnown(backfill=config.backfill_seconds)
        self.api = Api(
            base_url=config.url,
            clock=clock,
            budget=Budget(clock, share=1.0, default_per_minute=1e6),
            auth=PLATFORM.auth(config),
            user_agent="test",
            error_detail=PLATFORM.error_detail,
            jitter=lambda: 0.5,
        )
        self.client = CognaizeClient(config, self.api)

    async def sweep(self, stream: str = "runs") -> list[Fault]:
        return await self.known.sweep(self.client, stream, self.api.platform_now())

    async def live(self, sweeps: int, *, every: float = 30.0) -> list[Fault]:
        """Let time pass and sweep, so often; a sweep that fails is left to the next one."""
        faults: list[Fault] = []
        for _ in range(sweeps):
            await self.clock.advance(every)
            try:
                faults += await self.sweep()
            except ApiError as error:
                faults.append(Fault(kind=error.kind, detail=str(error)))
        return faults

    def asked(self) -> Counter[str]:
        """Requests since the last call."""
        requests = self.simulator.requests.copy()
        self.simulator.requests.clear()
        return requests

    def assert_true(self) -> None:
        """What was counted since the baseline is what happened, and the same dead letters are open."""
        since = self.known.first_sweep_at
        assert since is not None
        truth = self.simulator.truth()
        assert self.known.counts() == truth.counts(since=since)
        opened = {letter.dead_letter_id for letter in truth.dead_letters if letter.opened_at >= since}
        still = {letter.dead_letter_id for letter in truth.dead_letters if letter.resolved_at is None}
        assert set(self.known.opened_dead_letters()) == opened
        assert set(self.known.dead_letters) & opened == still & opened


@asynccontextmanager
async def source(*, config: dict[str, Any] | None = None, **options: Any) -> AsyncIterator[Source]:
    clock = HastyClock(START)
    simulator = CognaizeSimulator(clock=clock, **{"workflows": 0, **options})
    async with TestServer(simulator.app()) as server:
        section = {
            "platform": "cognaize",
            "url": str(server.make_url("")),
            **({"token": "demo-token"} | (config or {})),
        }
        made = Source(simulator, clock, CognaizeConfig.model_validate(section))
        try:
            yield made
        finally:
            await made.api.close()


def add_runs(
    made: Source,
    count: int,
    *,
    begin: float,
    gap: float,
    workflow_id: str = "wf-1",
    lasts: float = 5.0,
    failing: int | None = 10,
) -> None:
    """So many finished processes, one after the other; every ``failing``-th has failed, beginning with the first."""
    for number in range(count):
        at = begin + number * gap
        result = "success" if failing is None or number % failing else "failure"
        made.simulator.add_run(workflow_id, started_at=at, ended_at=at + lasts, result=result)


# What is counted.


@pytest.mark.parametrize(("order", "timestamps"), [("oldest_first", "ms"), ("newest_first", "ns"), ("unordered", "ms")])
async def test_counts_are_the_truth_whatever_the_order_of_the_listing(order: Order, timestamps: str) -> None:
    async with source(workflows=8, order=order, timestamps=timestamps, seed=3) as made:
        await made.sweep()
        assert await made.live(60) == []
        made.assert_true()
        assert sum(made.known.counts().values()) > 80
        assert sum(r.attempt > 1 and r.ended_at > START for r in made.simulator.truth().runs) > 2
        assert {error_class for _, error_class in made.known.errors()} == {"unknown"}


@pytest.mark.parametrize("order", ORDERS)
async def test_counts_are_the_truth_when_much_goes_wrong(order: Order) -> None:
    faults = Faults(
        rate_limited=0.01,
        rate_limited_text=0.01,
        unavailable=0.03,
        server_error_html=0.02,
        ok_html=0.01,
        truncated=0.01,
        shifting_pages=0.2,
        missing_fields=0.05,
        duplicates=0.1,
        null_numbers=0.1,
        unknown_status=0.05,
    )
    async with source(workflows=8, order=order, seed=3, faults=faults) as made:
        met = await made.live(80, every=20)
        for name in ("ok_html", "truncated", "missing_fields", "unknown_status", "unavailable", "server_error_html"):
            setattr(made.simulator.faults, name, 0.0)
        await made.live(4, every=15)
        assert len(met) > 5, "the faults were felt"
        made.assert_true()


async def test_a_restart_between_two_sweeps_counts_nothing_twice_and_loses_nothing() -> None:
    async with source(workflows=8, seed=5) as made:
        await made.sweep()
        for _ in range(6):
            await made.live(10)
            made.known = made.known.copy()
            made.client = CognaizeClient(made.config, made.api)
        made.assert_true()


@pytest.mark.parametrize("order", ORDERS)
async def test_after_a_downtime_everything_since_is_read(order: Order) -> None:
    async with source(order=order) as made:
        made.simulator.add_workflow("wf-1")
        add_runs(made, 250, begin=START - 5000, gap=10, failing=None)
        await made.sweep()
        add_runs(made, 640, begin=START + 60, gap=10, failing=None)
        await made.clock.advance(7200)
        assert await made.sweep() == []
        made.assert_true()
        assert made.known.counts() == {("wf-1", "success"): 640}
        made.asked()
        await made.sweep()
        assert made.asked()[FIND] <= 2, "what was read once is not read again"


@pytest.mark.parametrize("order", ORDERS)
async def test_where_a_sweep_reaches_its_bound_it_says_so_and_the_next_one_goes_on(
    order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with source(order=order) as made:
        made.simulator.add_workflow("wf-1")
        add_runs(made, 250, begin=START - 5000, gap=10)
        await made.sweep()
        await made.sweep()
        add_runs(made, 1000, begin=START + 60, gap=5)
        await made.clock.advance(7200)
        monkeypatch.setattr(listing, "PAGES_PER_SWEEP_MAX", 4)
        kinds, counted = [], [0]
        while sum(made.known.counts().values()) < 1000:
            kinds.append([fault.kind for fault in await made.sweep()])
            counted.append(sum(made.known.counts().values()))
            assert counted[-1] > counted[-2], "each sweep comes further"
        assert kinds[0] == ["truncated"]
        assert len(kinds) > 2
        made.assert_true()


@pytest.mark.parametrize("order", ["oldest_first", "newest_first"])
@pytest.mark.parametrize("good", [0, 1, 2, 3])
async def test_a_failure_in_the_middle_claims_no_more_than_was_read(order: Order, good: int) -> None:
    async with source(order=order) as made:
        made.simulator.add_workflow("wf-1")
        add_runs(made, 150, begin=START - 3000, gap=10, failing=None)
        await made.sweep()
        add_runs(made, 400, begin=START + 60, gap=5, failing=None)
        await made.clock.advance(7200)
        made.simulator.faults.slow_seconds = 0.0
        made.simulator.fail_next(*["slow"] * good, "ok_html")
        with pytest.raises(ApiError) as raised:
            await made.sweep()
        assert raised.value.kind is ErrorKind.BAD_PAYLOAD
        await made.sweep()
        made.assert_true()


async def test_restarts_in_place_are_attempts_with_their_own_durations() -> None:
    async with source() as made:
        made.simulator.add_workflow("wf-1")
        run = made.simulator.add_run(
            "wf-1", started_at=START + 5, ended_at=START + 25, result="failure", error="network"
        )
        made.simulator.add_restart(run, started_at=START + 100, ended_at=START + 130, result="failure")
        made.simulator.add_restart(run, started_at=START + 205, ended_at=START + 325, result="success")
        await made.sweep()
        await made.live(40, every=10)
        made.assert_true()
        timed = [c.seconds for c in made.known.changes if isinstance(c, RunTimed)]
        assert timed == pytest.approx([20, 30, 120])
        assert made.known.dead_letters == {}
        resolved = [e.dead_letter.resolved_at for e in made.known.letters.values()]
        assert resolved == pytest.approx([START + 100, START + 205])


async def test_each_step_is_counted_once_an_attempt_with_its_true_duration() -> None:
    async with source() as made:
        made.simulator.add_workflow("wf-1")
        run = made.simulator.add_run("wf-1", started_at=START + 5, ended_at=START + 45, result="failure", failed_step=1)
        made.simulator.add_restart(run, started_at=START + 100, ended_at=START + 160, result="success")
        await made.sweep()
        await made.live(20, every=10)
        ended = [c.step for c in made.known.changes if isinstance(c, StepFinished)]
        assert [(s.type, s.result, round((s.ended_at or 0) - (s.started_at or 0), 3)) for s in ended] == [
            ("GATEKEEPER", Result.SUCCESS, 20),
            ("MODEL", Result.FAILURE, 20),
            ("MODEL", Result.SUCCESS, 30),
            ("DISTRIBUTION", Result.SUCCESS, 30),
        ]


# A first sweep.


async def test_a_first_sweep_reads_what_is_new_and_counts_nothing_of_it() -> None:
    async with source() as made:
        made.simulator.add_workflow("wf-1")
        add_runs(made, 3000, begin=START - 31_000, gap=10)
        made.simulator.add_run("wf-1", run_id="p-open", started_at=START - 50, ended_at=None, result="success")
        await made.sweep()
        assert made.asked().total() <= 12
        assert made.known.counts() == {}
        assert list(made.known.open_runs) == ["p-open"]
        assert 400 <= len(made.known.runs) <= 700


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("count", "kept"), [(90, True), (1200, False)])
async def test_what_ended_long_ago_is_kept_only_where_the_listing_is_short(
    order: Order, count: int, kept: bool
) -> None:
    async with source(order=order) as made:
        made.simulator.add_workflow("wf-1")
        add_runs(made, count, begin=START - 10 * 86_400, gap=1)
        await made.sweep()
        assert made.known.counts() == {}
        assert len(made.known.runs) == count if kept else len(made.known.runs) <= 600


@pytest.mark.parametrize("order", ORDERS)
async def test_a_backfill_reads_and_counts_what_ended_within_it(order: Order) -> None:
    async with source(config={"backfill": "3d"}, order=order) as made:
        made.simulator.add_workflow("wf-1")
        add_runs(made, 1500, begin=START - 450_000, gap=300)
        await made.sweep()
        assert made.known.counts() == made.simulator.truth().counts(since=START - 3 * 86_400)
        assert made.known.counts().total() == 864


async def test_an_empty_installation_is_swept_without_a_fault_and_its_first_process_is_counted() -> None:
    async with source() as made:
        made.simulator.add_workflow("wf-1")
        assert await made.sweep() == []
        add_runs(made, 1, begin=START + 10, gap=1)
        await made.live(2)
        assert made.known.counts() == {("wf-1", "failure"): 1}


# What it costs.


@pytest.mark.parametrize("order", ["oldest_first", "newest_first"])
async def test_with_a_thousand_workflows_a_sweep_costs_a_request_for_each_that_ran_and_ten(order: Order) -> None:
    async with source(order=order) as made:
        for number in range(1000):
            made.simulator.add_workflow(f"wf-{number}")
            failing = 1 if number % 100 < 30 else None
            begin = START - 20_000 + number * 20
            add_runs(made, 1, begin=begin, gap=1, workflow_id=f"wf-{number}", failing=failing)
        for number in range(5):
            at = START - 9000 - number * 1500
            made.simulator.add_run(f"wf-{number}", started_at=at, ended_at=None, result="success")
        await made.sweep("workflows")
        await made.sweep()
        made.asked()
        for turn in range(20):
            for number in range(20):
                at = START + turn * 60 + number
                made.simulator.add_run(f"wf-{turn * 20 + number}", started_at=at, ended_at=at + 90, result="success")
            await made.clock.advance(60)
            await made.sweep("workflows")
            await made.sweep()
            assert made.asked().total() <= 30
        made.assert_true()
        assert made.known.counts().total() > 350


async def test_a_quiet_sweep_is_one_request() -> None:
    async with source(order="newest_first") as made:
        made.simulator.add_workflow("wf-1")
        add_runs(made, 300, begin=START - 9000, gap=10)
        for run in list(made.simulator.truth().runs):
            if run.result == "failure":
                made.simulator.add_restart(run.run_id, started_at=START - 20, ended_at=START - 10, result="success")
        await made.sweep()
        made.asked()
        await made.sweep()
        assert made.asked() == {FIND: 1}


async def test_old_open_processes_are_read_by_their_id() -> None:
    async with source() as made:
        made.simulator.add_workflow("wf-1")
        old = made.simulator.add_run("wf-1", started_at=START - 9000, ended_at=START + 100, result="success")
        failed = made.simulator.add_run("wf-1", started_at=START - 8990, ended_at=START - 8000, result="failure")
        made.simulator.add_restart(failed, started_at=START + 90, ended_at=START + 110, result="success")
        add_runs(made, 300, begin=START - 7000, gap=10, failing=None)
        await made.sweep()
        await made.clock.advance(200)
        made.asked()
        await made.sweep()
        assert made.asked()[GET] >= 2
        assert {made.known.runs[r].counted_as for r in (old, failed)} == {Result.SUCCESS}


async def test_many_open_processes_are_read_by_the_page() -> None:
    async with source() as made:
        made.simulator.add_workflow("wf-1")
        for number in range(300):
            at = START - 9000 + number * 10
            made.simulator.add_run("wf-1", started_at=at, ended_at=START + 30, result="success")
        await made.sweep()
        made.asked()
        await made.clock.advance(60)
        await made.sweep()
        assert made.asked().total() <= 10
        assert made.known.counts() == {("wf-1", "success"): 300}


@pytest.mark.parametrize("kind", ["open", "failed"])
async def test_more_open_processes_than_a_sweep_may_read_take_turns(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "READS_PER_SWEEP_MAX", 10)
    monkeypatch.setattr(client, "BULK_FROM", 1000)
    async with source() as made:
        made.simulator.add_workflow("wf-1")
        for number in range(25):  # those that change come last in the order of their ids
            run_id, at = f"p-{number:02}", START - 9000 + number
            if kind == "open":
                ended_at = START + 30 if number > 19 else None
                made.simulator.add_run("wf-1", run_id=run_id, started_at=at, ended_at=ended_at, result="success")
            else:
                made.simulator.add_run("wf-1", run_id=run_id, started_at=at, ended_at=at + 9, result="failure")
                if number > 19:
                    made.simulator.add_restart(run_id, started_at=START + 20, ended_at=START + 30, result="success")
        add_runs(made, 300, begin=START - 6000, gap=10, lasts=1, failing=None)
        await made.sweep()
        await made.clock.advance(60)
        for _ in range(3):
            made.asked()
            await made.sweep()
            assert made.asked()[GET] == 10
        assert made.known.counts() == {("wf-1", "success"): 5}


# What goes wrong.


async def test_a_row_that_cannot_be_read_is_read_by_its_id_and_is_no_fault() -> None:
    async with source() as made:
        made.simulator.add_workflow("wf-1")
        add_runs(made, 20, begin=START + 10, gap=1)
        await made.sweep()
        await made.clock.advance(60)
        made.simulator.faults.missing_fields = 0.4
        assert [fault for fault in await made.live(12) if fault.kind != "bad_item"] == []
        made.simulator.faults.missing_fields = 0.0
        assert await made.sweep() == []
        made.assert_true()


async def test_a_process_that_stays_unreadable_is_a_fault_and_is_asked_for_until_it_can_be_read() -> None:
    async with source() as made:
        made.simulator.add_workflow("wf-1")
        await made.sweep()
        add_runs(made, 1, begin=START + 10, gap=1)
        await made.clock.advance(60)
        show = made.simulator._api._show

        def damaged(process: Any) -> Any:
            return {key: value for key, value in show(process).items() if key != "updatedTimestamp"}

        made.simulator._api._show = damaged  # type: ignore[method-assign]
        faults = await made.sweep()
        assert [(fault.kind, fault.workflow_id) for fault in faults] == [("bad_item", "wf-1")]
        assert [run.state for run in made.known.open_runs.values()] == [State.RUNNING]
        made.simulator._api._show = show  # type: ignore[method-assign]
        await made.sweep()
        made.assert_true()
        assert made.known.counts() == {("wf-1", "failure"): 1}


async def test_one_process_that_cannot_be_fetched_costs_only_itself() -> None:
    async with source() as made:
        made.simulator.add_workflow("wf-1")
        for number in range(3):
            made.simulator.add_run("wf-1", started_at=START - 9000 + number, ended_at=START + 5, result="success")
        add_runs(made, 300, begin=START - 7000, gap=10, lasts=1, failing=None)
        await made.sweep()
        await made.clock.advance(60)
        made.simulator.faults.slow_seconds = 0.0
        made.simulator.fail_next(*["slow"] * 2, "ok_html")
        faults = await made.sweep()
        assert [fault.kind for fault in faults] == ["bad_payload"]
        await made.sweep()
        assert made.known.counts()["wf-1", "success"] == 3


async def test_a_platform_that_is_down_for_single_processes_fails_the_sweep_after_three() -> None:
    async with source() as made:
        made.simulator.add_workflow("wf-1")
        for number in range(5):
            made.simulator.add_run("wf-1", started_at=START - 9000 + number, ended_at=None, result="success")
        add_runs(made, 300, begin=START - 7000, gap=10, lasts=1, failing=None)
        await made.sweep()
        made.asked()
        made.simulator.faults.slow_seconds = 0.0
        made.simulator.fail_next("slow", "slow", *["unavailable"] * 30)
        with pytest.raises(ApiError) as raised:
            await made.sweep()
        assert (raised.value.kind, raised.value.status) == (ErrorKind.UNAVAILABLE, 503)
        assert made.asked()[GET] == 9, "three processes, three times each"


async def test_what_the_platform_lost_is_believed_to_be_gone_only_after_a_while() -> None:
    async with source() as made:
        made.simulator.add_workflow("wf-1")
        made.simulator.add_workflow("wf-2")
        made.simulator.add_run("wf-1", run_id="p-open", started_at=START + 1, ended_at=None, result="success")
        made.simulator.add_run("wf-1", run_id="p-failed", started_at=START + 2, ended_at=START + 9, result="failure")
        await made.sweep()
        await made.live(1)
        made.simulator.delete_workflow("wf-1")
        faults = await made.live(1)
        assert [fault.kind for fault in faults] == ["not_found", "not_found"]
        assert list(made.known.open_runs) == ["p-open"]
        assert len(made.known.dead_letters) == 1
        await made.live(21)
        assert made.known.open_runs == {}
        assert made.known.dead_letters == {}
        assert made.known.runs["p-open"].counted_as is Result.UNKNOWN
        assert [e.dead_letter.resolved_by for e in made.known.letters.values()] == ["expired"]
        assert made.known.cursor("runs", "missing") is None
        made.asked()
        await made.sweep()
        assert made.asked()[GET] == 0


async def test_a_process_that_comes_back_is_not_gone() -> None:
    async with source() as made:
        made.simulator.add_workflow("wf-1")
        made.simulator.add_run("wf-1", run_id="p-open", started_at=START - 9000, ended_at=START + 900, result="success")
        add_runs(made, 300, begin=START - 7000, gap=10, lasts=1, failing=None)
        await made.sweep()
        world = made.simulator._world
        hidden = world.processes.pop("p-open")
        await made.live(2)
        assert made.known.cursor("runs", "missing") is not None
        world.processes["p-open"] = hidden
        await made.live(1)
        assert made.known.cursor("runs", "missing") is None
        await made.live(30)
        assert made.known.counts() == {("wf-1", "success"): 1}


# Which workflows.


async def test_only_selected_workflows_are_seen() -> None:
    config = {
        "workflows": {"wf-1": "Invoices", "wf-2": "Invoices old"},
        "include": ["Inv*", "wf-4"],
        "exclude": ["*old"],
    }
    async with source(config=config) as made:
        for number in range(1, 5):
            made.simulator.add_workflow(f"wf-{number}")
            add_runs(made, 1, begin=START + 1, gap=1, workflow_id=f"wf-{number}")
            at = START - 50
            made.simulator.add_run(f"wf-{number}", started_at=at, ended_at=None, result="success")
        await made.sweep("workflows")
        await made.sweep()
        await made.live(2)
        assert set(made.known.workflows) == {"wf-1", "wf-4"}
        assert {run.workflow_id for run in made.known.open_runs.values()} == {"wf-1", "wf-4"}
        assert made.known.counts() == {("wf-1", "failure"): 1, ("wf-4", "failure"): 1}


async def test_names_come_from_the_config_and_a_workflow_is_never_gone() -> None:
    async with source(config={"workflows": {"wf-1": "Invoices", "wf-9": "Yet to come"}}) as made:
        made.simulator.add_workflow("wf-1")
        made.simulator.add_workflow("wf-2")
        made.simulator.add_run("wf-2", started_at=START - 9, ended_at=START - 5, result="success")
        await made.sweep("workflows")
        assert made.asked() == {FIND: 1}
        await made.sweep()
        names = {workflow.id: workflow.name for workflow in made.known.workflows.values()}
        assert names == {"wf-1": "Invoices", "wf-2": None, "wf-9": "Yet to come"}
        made.simulator.delete_workflow("wf-2")
        for _ in range(5):
            await made.clock.advance(3600)
            await made.sweep("workflows")
        assert set(made.known.workflows) == {"wf-1", "wf-2", "wf-9"}


# Webhooks.


def webhook(body: bytes) -> WebhookRequest:
    return WebhookRequest(
        method="POST", headers={}, query={}, body=body, received_at=START, base_url="https://cognaize.example"
    )


def test_an_event_is_a_claim_and_the_run_it_names_is_also_read() -> None:
    events = PLATFORM.receive(
        webhook(b'{"event": "run.finished", "workflow_id": "wf-1", "run_id": "p-1", "result": "failure",'
                b' "ended_at": "2026-01-15T06:00:00Z", "error": {"type": "network", "message": "no route"}}')
    )  # fmt: skip
    (run,) = events.observations
    assert isinstance(run, Run)
    assert run.error is not None
    assert (run.result, run.error.error_class) == (Result.FAILURE, ErrorClass.NETWORK)
    assert tuple(events.wake) == (RunKey(run_id="p-1", workflow_id="wf-1"),)


def test_a_dead_letter_event_wakes_the_sweep_of_runs_and_garbage_is_malformed() -> None:
    assert PLATFORM.receive(webhook(b'{"event": "dead_letter.opened", "run_id": "p-1"}')).wake_streams == [
        StreamName.DEAD_LETTERS
    ]
    assert PLATFORM.reads(StreamName.DEAD_LETTERS) is StreamName.RUNS
    with pytest.raises(MalformedEvent):
        PLATFORM.receive(webhook(b"{"))


async def test_webhooks_and_polls_together_count_each_finish_once() -> None:
    async with source(workflows=8, seed=4) as made:
        await made.sweep()
        for turn in range(60):
            await made.clock.advance(30)
            made.simulator.advance(made.clock.now())
            woken: list[RunKey] = []
            for delivery in made.simulator.take_deliveries():
                events = PLATFORM.receive(webhook(delivery.body))
                for run in events.observations:
                    assert isinstance(run, Run)
                    fold_claim(made, run)
                woken += events.wake
            if turn % 3:
                assert await made.known.complete(made.client, woken, made.clock.now()) == []
            else:
                await made.sweep()
        await made.live(1)
        assert made.known.counts() == made.simulator.truth().counts(since=START)


def fold_claim(made: Source, run: Run) -> None:
    made.known.apply(Page(observations=[run]), stream="webhook", now=made.clock.now(), via=Via.WEBHOOK)


@pytest.mark.parametrize("order", ORDERS)
async def test_few_woken_runs_are_read_by_id_and_many_by_the_page(order: Order) -> None:
    async with source(order=order) as made:
        made.simulator.add_workflow("wf-1")
        add_runs(made, 500, begin=START - 8000, gap=10)
        await made.sweep()
        add_runs(made, 60, begin=START + 1, gap=0.5, lasts=1)
        await made.clock.advance(60)
        made.simulator.advance(made.clock.now())
        keys = [RunKey(run_id=run.run_id) for run in made.simulator.truth().runs if run.ended_at > START]
        made.asked()
        assert await made.known.complete(made.client, keys[:3], made.clock.now()) == []
        assert made.asked() == {GET: 3}
        assert await made.known.complete(made.client, keys, made.clock.now()) == []
        assert made.asked().total() <= (60 if order == "unordered" else 5)
        made.assert_true()


async def test_a_woken_run_nobody_knows_is_a_fault() -> None:
    async with source() as made:
        faults = await made.known.complete(made.client, [RunKey(run_id="p-0"), RunKey(run_id="..")], made.clock.now())
        assert [fault.kind for fault in faults] == ["not_found", "bad_payload"]
        assert made.known.runs == dict[str, RunEntry]()


# Credentials.


async def test_a_wrong_token_is_an_auth_failure_of_both_streams() -> None:
    async with source(config={"token": "wrong-token"}) as made:
        for stream in ("workflows", "runs"):
            with pytest.raises(ApiError) as raised:
                await made.sweep(stream)
            assert raised.value.kind is ErrorKind.AUTH
            assert "wrong-token" not in str(raised.value)
        with pytest.raises(ApiError):
            _ = [line async for line in made.client.check()]


async def test_a_login_fetches_a_token_and_fetches_another_when_it_has_expired() -> None:
    async with login_source() as made:
        await made.sweep()
        await made.sweep()
        assert made.asked()[LOGIN] == 1
        await made.clock.advance(36_001)
        assert await made.sweep() == []
        assert made.asked()[LOGIN] == 1


@asynccontextmanager
async def login_source(*, password: str = "demo-password", elsewhere: bool = False) -> AsyncIterator[Source]:
    """A source that logs in, at the platform itself or at another host."""
    clock = HastyClock(START)
    simulator = CognaizeSimulator(clock=clock, workflows=1, token=None)
    async with TestServer(simulator.app()) as server, TestServer(simulator.app()) as other:
        section = {
            "platform": "cognaize",
            "url": str(server.make_url("")),
            "token_url": str((other if elsewhere else server).make_url("/auth/token")),
            "login": "demo",
            "password": password,
        }
        made = Source(simulator, clock, CognaizeConfig.model_validate(section))
        try:
            yield made
        finally:
            await made.api.close()


async def test_tokens_may_come_from_another_host() -> None:
    async with login_source(elsewhere=True) as made:
        assert await made.sweep() == []
        assert made.asked()[LOGIN] == 1


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_refused_login_is_an_auth_failure_that_names_no_secret(elsewhere: bool) -> None:
    async with login_source(password="wrong-password", elsewhere=elsewhere) as made:
        with pytest.raises(ApiError) as raised:
            await made.sweep()
        assert raised.value.kind is ErrorKind.AUTH
        assert str(raised.value) == f"{LOGIN}: 401 auth: Unauthorized request: Invalid login or password"


async def test_a_login_page_instead_of_a_token_is_a_bad_payload() -> None:
    async with login_source() as made:
        made.simulator.fail_next("ok_html")
        with pytest.raises(ApiError) as raised:
            await made.sweep()
        assert raised.value.kind is ErrorKind.BAD_PAYLOAD


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({}, "a credential is missing"),
        ({"token_url": "https://a.example/t", "login": "me"}, "a credential is missing"),
        ({"token": "t", "password": "p"}, "not token and password"),
    ],
)
def test_a_config_has_exactly_one_complete_credential(keys: dict[str, str], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        CognaizeConfig.model_validate({"platform": "cognaize", "url": "https://a.example", **keys})


def test_workflow_ids_that_yaml_made_numbers_are_text() -> None:
    section = {"platform": "cognaize", "url": "https://a.example", "token": "t", "workflows": {7: "Seven"}}
    assert CognaizeConfig.model_validate(section).workflows == {"7": "Seven"}


# Check.


async def test_check_says_what_works_and_how_many_workflows_it_saw() -> None:
    async with source(workflows=6) as made:
        lines = [line async for line in made.client.check()]
        total = len(made.simulator._world.shelf)
        assert lines == [
            "ok: credential accepted",
            f"ok: {total} processes can be listed",
            "workflows: 6",
            "ok: a single process can be read",
            "note: whether the credential may restart steps is not told; it shows when one is restarted",
        ]


async def test_check_names_the_right_that_is_missing() -> None:
    async with source(workflows=1) as made:
        made.simulator.faults.slow_seconds = 0.0
        made.simulator.fail_next("slow", "ok_html")
        lines = [line async for line in made.client.check()]
        (problem,) = [line for line in lines if line.startswith("problem:")]
        assert problem.startswith(f"problem: a single process cannot be read; restarts will not be seen: {GET}: 200")
