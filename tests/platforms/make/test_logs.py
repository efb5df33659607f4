"""Runs by the logs of scenarios: which are read, how far back, and what is found that hardly shows."""

from collections import Counter

import orjson
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler

from exporter.model import Result, Run, State, Via
from exporter.platform import Page
from exporter.platforms.make.reading import walk
from tests.platforms.make.source import DAY, HOUR, LOG, MINUTE, T0, Source, source


async def test_a_run_that_began_long_ago_is_found_when_it_ends() -> None:
    async with source(feed=False) as made:
        workflow = made.sim.add_workflow()
        made.add_run(workflow, ended=0.5)
        await made.sweep()
        long_run = made.add_run(workflow, ended=38 * MINUTE, took=39 * MINUTE)
        for minute in range(1, 38, 5):
            made.add_run(workflow, ended=minute * MINUTE)
        await made.rounds(40)
        assert long_run in made.known.runs
        assert made.known.counts() == made.true_counts()


async def test_a_failure_that_used_no_operations_is_found_by_what_it_did_to_the_scenario() -> None:
    async with source(feed=False) as made:
        workflow = made.sim.add_workflow(instant=True)
        made.add_run(workflow, ended=-100)
        for _ in range(40):
            made.sim.add_workflow()
        await made.sweep()
        _unbilled(made, made.add_run(workflow, ended=20, result="failure", error="AccountValidationError"))
        await made.clock.advance(30)
        made.sim.set_enabled(workflow, False)
        await made.rounds(1)
        assert made.known.counts() == {(workflow, "failure"): 1}


async def test_a_failure_that_shows_later_than_what_it_did_to_the_scenario_is_found() -> None:
    async with source(feed=False) as made:
        workflow = made.sim.add_workflow(instant=True)
        for _ in range(40):
            made.sim.add_workflow()
        await made.sweep()
        made.sim.set_enabled(workflow, False)
        await made.rounds(1)
        _unbilled(made, made.add_run(workflow, ended=-2, result="failure"))
        await made.rounds(1)
        assert made.known.counts() == {(workflow, "failure"): 1}


async def test_a_run_that_left_no_trace_at_all_is_found_in_turn() -> None:
    async with source(feed=False) as made:
        workflows = [made.sim.add_workflow() for _ in range(9)]
        await made.sweep()
        _unbilled(made, made.add_run(workflows[4], ended=20))
        await made.rounds(6)
        assert made.known.counts() == {(workflows[4], "success"): 1}


def _unbilled(made: Source, run_id: str) -> None:
    execution = made.sim.world.executions[run_id]
    execution.operations = execution.transfer = 0


async def test_runs_around_the_monthly_reset_are_found_even_if_the_numbers_are_the_same_again() -> None:
    december = 1_701_388_800.0
    async with source(feed=False, start=december - 90) as made:
        workflows = [made.sim.add_workflow() for _ in range(30)]
        for workflow in workflows:
            made.add_run(workflow, ended=-10)
        await made.sweep()
        await made.rounds(1)  # 30 seconds to go
        for workflow in workflows[:15]:
            made.add_run(workflow, ended=20)
        for workflow in workflows[10:20]:
            made.add_run(workflow, ended=40)
        await made.rounds(1)
        assert made.known.counts() == made.true_counts()
        assert sum(made.known.counts().values()) == 25


async def test_a_log_that_shows_a_run_later_than_the_totals_is_read_again() -> None:
    async with source(feed=False) as made:
        workflow = made.sim.add_workflow()
        made.add_run(workflow, ended=-10)
        for _ in range(40):
            made.sim.add_workflow()
        await made.sweep()
        made.sim.world._spend(made.sim.world.scenarios[int(workflow)], made.clock.now(), 1, 200)
        await made.rounds(1)
        assert made.known.counts() == Counter()
        made.add_run(workflow, ended=-2)
        await made.sweep("runs")
        assert made.known.counts() == {(workflow, "success"): 1}


async def test_a_run_that_shows_without_its_end_is_read_again() -> None:
    without_its_end = False

    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        found = await handler(request)
        if not without_its_end or not request.path.endswith("/logs"):
            return found
        assert isinstance(found, web.Response)
        body = orjson.loads(str(found.text))
        for row in body["scenarioLogs"]:
            row |= {"endedAt": None, "duration": None}
        return web.json_response(body)

    async with source(feed=False, before=web.middleware(answer)) as made:
        workflow = made.sim.add_workflow()
        made.add_run(workflow, ended=-10)
        for _ in range(40):
            made.sim.add_workflow()
        await made.sweep()
        run_id = made.add_run(workflow, ended=10, took=60)
        await made.clock.advance(MINUTE)
        without_its_end = True
        await made.sweep("runs")
        assert made.known.runs[run_id].run.ended_at is None
        without_its_end = False
        await made.rounds(1)
        assert made.known.runs[run_id].run.duration == 60.0
        assert made.known.counts() == {(workflow, "success"): 1}


async def test_totals_that_rise_for_other_reasons_are_taken_as_they_are_after_a_while() -> None:
    async with source(feed=False) as made:
        workflow = made.sim.add_workflow()
        made.add_run(workflow, ended=-10)
        for _ in range(40):
            made.sim.add_workflow()
        await made.sweep()
        made.sim.world._spend(made.sim.world.scenarios[int(workflow)], made.clock.now(), 1, 200)
        made.asked()
        for expected in (3, 3, 3, 2, 2):  # two in turn, whatever happens
            await made.rounds(1)
            assert made.asked()[LOG] == expected


async def test_a_reading_too_long_for_one_sweep_says_so_and_goes_on_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(walk, "PAGES_PER_SCENARIO_MAX", 3)
    async with source(feed=False) as made:
        workflow = made.sim.add_workflow(instant=True)
        made.add_run(workflow, ended=-10)
        await made.sweep()
        for second in range(10, 7200, 10):
            made.add_run(workflow, ended=second)
        await made.clock.advance(2 * HOUR)
        kinds = [[fault.kind for fault in await made.sweep("runs")] for _ in range(6)]
        made.restart()
        assert kinds[0] == ["truncated"]
        assert kinds[-1] == []
        assert made.known.counts() == {(workflow, "success"): 719}


async def test_scenarios_too_many_for_one_sweep_are_read_by_the_next_ones_and_said_to_be_late_where_they_are() -> None:
    poll = {"budget_share": 1.0, "requests_per_minute": 4}
    async with source(feed=False, config={"poll": poll}, api_limit=4) as made:
        workflows = [made.sim.add_workflow() for _ in range(40)]
        await made.sweep()
        for workflow in workflows:
            made.add_run(workflow, ended=10)
        await made.clock.advance(MINUTE)
        assert await made.sweep("runs") == []
        assert len(made.known.counts()) == 4
        faults = [fault for _ in range(10) for fault in await made.sweep("runs")]
        assert {f.kind for f in faults} == {"truncated"}
        assert all("scenarios that may have run are left for the next sweep" in f.detail for f in faults)
        assert await made.sweep("runs") == []
        assert made.known.counts() == made.true_counts()


async def test_one_scenario_that_cannot_be_read_costs_itself_until_it_can() -> None:
    async with source(feed=False) as made:
        workflows = [made.sim.add_workflow() for _ in range(3)]
        await made.sweep()
        for workflow in workflows:
            made.add_run(workflow, ended=10)
        await made.clock.advance(MINUTE)
        made.sim.fail_next("duplicates", "truncated")  # the consumptions as they are, then the first log
        (fault,) = await made.sweep("runs")
        assert (fault.kind, fault.workflow_id in workflows) == ("bad_payload", True)
        assert len(made.known.counts()) == 2
        assert await made.sweep("runs") == []
        assert made.known.counts() == made.true_counts()


async def test_running_executions_are_shown_while_the_log_shows_them() -> None:
    async with source(feed=False, pending_rows=True) as made:
        workflow = made.sim.add_workflow(interval=HOUR)
        await made.sweep()
        run_id = made.add_run(workflow, ended=3.5 * MINUTE, took=3 * MINUTE)
        made.sim.set_enabled(workflow, False)  # which is why the log is read at all
        await made.rounds(1)
        assert made.known.open_runs[run_id].started_at == T0 + 30
        assert made.known.counts() == Counter()
        await made.rounds(3)
        assert not made.known.open_runs
        assert made.known.counts() == {(workflow, "success"): 1}


async def test_an_open_run_is_followed_however_long_it_takes() -> None:
    async with source(feed=False, pending_rows=True) as made:
        workflow = made.sim.add_workflow()
        made.add_run(workflow, ended=-20)
        run_id = made.add_run(workflow, ended=3 * HOUR, took=3 * HOUR + 10)
        await made.sweep()
        assert run_id in made.known.open_runs
        await made.rounds(20, every=10 * MINUTE)
        assert made.known.counts() == {(workflow, "success"): 1}


async def test_an_execution_that_hangs_for_ever_is_not_asked_about_for_ever() -> None:
    async with source(feed=False, pending_rows=True) as made:
        workflow = made.sim.add_workflow()
        for _ in range(30):
            made.sim.add_workflow()
        made.sim.add_run(workflow, started_at=T0 - 10, ended_at=None, result="success")
        made.add_run(workflow, ended=-20)
        await made.sweep()
        assert len(made.known.open_runs) == 1
        made.asked()
        await made.rounds(1)
        assert made.asked()[LOG] == 3
        await made.rounds(1, every=DAY)
        made.asked()
        await made.rounds(1)
        assert made.asked()[LOG] == 2


async def test_a_scenario_that_is_gone_is_forgotten() -> None:
    async with source(feed=False) as made:
        workflow = made.sim.add_workflow()
        made.sim.add_workflow()
        await made.sweep()
        assert made.known.cursor("runs", workflow) is not None
        made.sim.delete_workflow(workflow)
        await made.rounds(4, every=10 * MINUTE)
        assert made.known.cursor("runs", workflow) is None


async def test_a_scenario_may_go_while_its_log_is_read() -> None:
    async with source(feed=False) as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        run_id = made.add_run(workflow, ended=10)
        await made.clock.advance(MINUTE)
        async for page in made.client.sweep("runs", made.known, made.clock.now()):
            made.known.entries.pop(workflow, None)
            made.known.apply(page, stream="runs", now=made.clock.now())
        assert run_id in made.known.runs


async def test_a_scenario_that_only_a_webhook_has_named_is_not_asked_for() -> None:
    async with source(feed=False) as made:
        made.sim.add_workflow()
        await made.sweep()
        stray = Run(workflow_id="4711", id="f" * 32, state=State.FINISHED, result=Result.SUCCESS, ended_at=T0)
        made.known.apply(Page(observations=[stray]), stream="webhook", now=T0, via=Via.WEBHOOK)
        assert await made.rounds(3) == []
