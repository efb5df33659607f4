"""The modules of runs as steps: whose are asked for, at what price, and what happens where a zone does not tell."""

from collections import Counter

import pytest

from exporter.model import Result, Run, RunFinished, State, StepFinished, Via
from exporter.platform import Page
from exporter.platforms.make import PLATFORM
from exporter.platforms.make.reading import details
from exporter.platforms.make.reading.details import TRIES_MAX
from tests.platforms.make.source import BY_FEED_AND_BY_LOGS, DAY, EVENTS, LOG, Source, source

TYPES = ("google-sheets:watchRows", "http:MakeRequest", "json:ParseJSON", "google-sheets:addRow")


def steps_of(made: Source, run_id: str) -> list[tuple[str, Result | None]] | None:
    found = made.known.runs[run_id].run.steps
    return None if found is None else [(step.type, step.result) for step in found]


# Whose


@BY_FEED_AND_BY_LOGS
@pytest.mark.parametrize(
    ("wanted", "asked"), [("off", ()), ("problems", ("warning", "failure")), ("all", ("success", "warning", "failure"))]
)
async def test_the_steps_of_the_wanted_runs_are_asked_for_once_each(
    by_feed: bool, wanted: str, asked: tuple[str, ...]
) -> None:
    async with source(feed=by_feed, detail_delay=0.0, config={"steps": wanted}) as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        runs = {
            r: made.add_run(workflow, ended=10 + n, result=r) for n, r in enumerate(("success", "warning", "failure"))
        }
        assert await made.rounds(4, every=20) == []
        assert made.asked()[EVENTS] == len(asked)
        assert {result for result, run_id in runs.items() if steps_of(made, run_id) is not None} == set(asked)
        assert made.known.cursor("runs", details.STEPS) is None
        later = PLATFORM.steps_later(made.config)
        assert {str(result) for result in later} & {"success", "warning", "failure"} == set(asked)


async def test_steps_are_the_modules_up_to_the_one_that_failed() -> None:
    async with source(detail_delay=0.0, config={"steps": "all"}) as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        good = made.add_run(workflow, ended=20, took=8)
        bad = made.add_run(workflow, ended=30, took=8, result="failure")
        await made.rounds(1)
        assert steps_of(made, good) == [(kind, Result.SUCCESS) for kind in TYPES]
        assert steps_of(made, bad) == [(TYPES[0], Result.SUCCESS), (TYPES[1], Result.FAILURE)]
        run = made.known.runs[bad].run
        assert [(s.started_at, s.ended_at) for s in run.steps or ()] == [
            (run.started_at, run.ended_at and run.ended_at - 4),
            (run.ended_at and run.ended_at - 4, run.ended_at),
        ]


async def test_steps_are_told_after_the_run_so_nothing_waits_for_them() -> None:
    async with source(detail_delay=0.0) as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        made.add_run(workflow, ended=20, result="failure")
        await made.rounds(1)
        kinds = [type(change) for change in made.known.changes]
        assert kinds.index(RunFinished) < kinds.index(StepFinished)
        assert made.known.steps() == {(workflow, TYPES[0], "success"): 1, (workflow, TYPES[1], "failure"): 1}


async def test_runs_that_do_not_count_have_no_steps_asked_for() -> None:
    async with source(detail_delay=0.0) as made:
        workflow = made.sim.add_workflow()
        run_id = made.add_run(workflow, ended=-100, result="failure")
        await made.sweep()
        assert run_id in made.known.runs
        assert made.asked()[EVENTS] == 0


@BY_FEED_AND_BY_LOGS
async def test_with_restarts_and_faults_every_step_is_counted_once(by_feed: bool) -> None:
    async with source(workflows=20, feed=by_feed, config={"steps": "all"}) as made:
        await made.sweep()
        await made.rounds(5)
        made.sim.faults.duplicates = 0.2
        await made.rounds(5)
        made.restart()
        made.sim.faults.duplicates = 0.0
        await made.rounds(15)
        counted = [change.run for change in made.known.changes if isinstance(change, RunFinished)]
        ended = [(c.run.id, c.step.id) for c in made.known.changes if isinstance(c, StepFinished)]
        assert len(ended) == len(set(ended))
        # Of runs under way at the baseline only some steps count, and what has just ended is still to be asked.
        whole = {r.id for r in counted if (r.started_at or 0.0) >= made.first_sweep_at}
        asked = {run_id for run_id in whole if made.known.runs[run_id].run.steps is not None}
        assert len(asked) > 100
        assert len(whole - asked) <= 5
        true = set[tuple[str, str]]()
        for run_id in asked:
            execution = made.sim.world.executions[run_id]
            last = len(execution.scenario.modules) if execution.error is None else execution.error.module.id
            true |= {(run_id, str(n + 1)) for n in range(last)}
        assert {key for key in ended if key[0] in asked} == true


# At what price


@BY_FEED_AND_BY_LOGS
@pytest.mark.parametrize(("wanted", "share"), [("problems", 1.0), ("all", 0.1)])
async def test_on_a_small_plan_problems_have_their_steps_and_the_budget_is_kept(
    by_feed: bool, wanted: str, share: float
) -> None:
    poll = {"budget_share": 0.5, "requests_per_minute": None}
    async with source(
        workflows=40, feed=by_feed, api_limit=60, enforce_limit=True, config={"steps": wanted, "poll": poll}
    ) as made:
        await made.sweep()
        made.asked()
        began = made.clock.now()
        await made.rounds(12)
        assert made.asked().total() <= 30 * (made.clock.now() - began) / 60
        results = {str(result) for result in details.steps_later(made.config)}
        over = [e.run for e in made.known.runs.values() if e.counted_attempt and e.run.result in results]
        settled = [run for run in over if made.clock.now() - (run.ended_at or 0.0) > 120]
        assert len(settled) > 10
        assert sum(bool(run.steps) for run in settled) >= share * len(settled)


async def test_steps_are_left_when_the_budget_has_none_to_spare_and_none_at_all_after_a_while() -> None:
    async with source(detail_delay=0.0, config={"poll": {"budget_share": 1.0, "requests_per_minute": 8}}) as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        run_id = made.add_run(workflow, ended=10, result="failure")
        await made.rounds(4, every=20)
        assert steps_of(made, run_id) is None, "lanes of others need all there is"
        assert made.asked()[EVENTS] == 0
        await made.clock.advance(details.WAITING_SECONDS_MAX)
        await made.sweep("runs")
        asked = made.asked()
        assert (asked[EVENTS], steps_of(made, run_id) is not None) == (1, True)


async def test_steps_that_waited_too_long_are_none() -> None:
    async with source(detail_delay=0.0, config={"poll": {"budget_share": 1.0, "requests_per_minute": 1}}) as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        run_id = made.add_run(workflow, ended=10, result="failure")
        await made.rounds(1)
        assert steps_of(made, run_id) is None
        await made.clock.advance(details.WAITING_SECONDS_MAX)
        await made.sweep("runs")
        assert steps_of(made, run_id) == []
        assert made.asked()[EVENTS] == 0


async def test_one_sweep_asks_for_so_many_and_the_next_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(details, "STEPS_PER_SWEEP_MAX", 4)
    monkeypatch.setattr(details, "STEPS_NOTED_MAX", 6)
    async with source(detail_delay=0.0) as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        runs = [made.add_run(workflow, ended=10 + n, result="failure") for n in range(8)]
        assert await made.rounds(1) == [], "steps are an extra, what is left of them is no fault"
        assert made.asked()[EVENTS] == 4
        assert [steps_of(made, run_id) for run_id in runs[6:]] == [[], []], "more than may wait"
        made.restart()
        await made.rounds(1)
        assert made.asked()[EVENTS] >= 2
        assert all(steps_of(made, run_id) for run_id in runs[:6])


# Where they are not to be had


async def test_steps_of_a_run_its_zone_does_not_know_yet_are_asked_for_again() -> None:
    async with source(detail_delay=50.0) as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        run_id = made.add_run(workflow, ended=15, result="failure")
        await made.rounds(5, every=20)
        assert steps_of(made, run_id)
        assert made.asked()[EVENTS] == 4


@BY_FEED_AND_BY_LOGS
@pytest.mark.parametrize(("status", "calls"), [(403, 1), (404, TRIES_MAX)])
async def test_a_zone_without_module_events_is_asked_a_few_times_and_then_not_for_a_day(
    by_feed: bool, status: int, calls: int
) -> None:
    async with source(feed=by_feed, module_events=status, detail_delay=0.0) as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        runs = []
        for _ in range(10):
            runs += [made.add_run(workflow, ended=10 + n, result="failure") for n in range(5)]
            assert await made.rounds(1, every=30) == []
        assert made.asked()[EVENTS] == calls
        assert [steps_of(made, run_id) for run_id in runs] == [[]] * 50
        assert made.known.errors() == {(workflow, "unknown"): 50}
        made.set_option("module_events", 200)
        await made.clock.advance(DAY)
        run_id = made.add_run(workflow, ended=10, result="failure")
        await made.rounds(2)
        assert steps_of(made, run_id)


@pytest.mark.parametrize(("option", "value", "usual"), [("detail_delay", DAY, 0.0), ("module_events", 403, 200)])
async def test_a_zone_that_once_told_is_not_given_up_for_one_run_it_does_not_know_or_show(
    option: str, value: float, usual: float
) -> None:
    async with source(detail_delay=0.0) as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        made.add_run(workflow, ended=10, result="failure")
        await made.rounds(1)
        made.set_option(option, value)
        lost = made.add_run(workflow, ended=10, result="failure")
        await made.rounds(5, every=30)
        assert steps_of(made, lost) == []
        made.set_option(option, usual)
        found = made.add_run(workflow, ended=10, result="failure")
        await made.rounds(2)
        assert steps_of(made, found)


@pytest.mark.parametrize("fault", ["unavailable", "rate_limited", "ok_html", "truncated", "server_error_html"])
async def test_trouble_with_steps_costs_a_try_and_no_sweep(fault: str) -> None:
    async with source(feed=False, detail_delay=0.0, inline_errors=1.0) as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        runs = [made.add_run(workflow, ended=20 + n, result="failure") for n in range(3)]
        await made.clock.advance(60)
        made.sim.fail_next("duplicates", "duplicates", *[fault] * 3)  # after the consumptions and the log
        made.asked()
        assert await made.sweep("runs") == []
        assert [steps_of(made, run_id) for run_id in runs] == [None] * 3
        assert made.asked()[EVENTS] <= 3, "the next run would fare no better"
        await made.rounds(2)
        assert all(steps_of(made, run_id) for run_id in runs)


async def test_a_source_that_wants_no_steps_any_more_lets_go_of_what_was_noted() -> None:
    async with source(detail_delay=DAY) as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        run_id = made.add_run(workflow, ended=10, result="failure")
        await made.rounds(1)
        assert made.known.cursor("runs", details.STEPS)
        made.restart(steps="off")
        made.asked()
        await made.rounds(1)
        assert made.asked()[EVENTS] == 0
        assert steps_of(made, run_id) == []
        assert made.known.cursor("runs", details.STEPS) is None


async def test_a_run_that_a_webhook_told_of_gets_its_steps_from_the_next_sweep() -> None:
    async with source(detail_delay=0.0) as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        run_id = made.add_run(workflow, ended=10, result="failure")
        told = Run(
            workflow_id=workflow,
            id=run_id,
            state=State.FINISHED,
            result=Result.FAILURE,
            ended_at=made.clock.now() + 10,
        )
        await made.clock.advance(20)
        made.known.apply(Page(observations=[told]), stream="webhook", now=made.clock.now(), via=Via.WEBHOOK)
        assert made.known.counts() == Counter({(workflow, "failure"): 1})
        await made.sweep("runs")
        assert steps_of(made, run_id)
        assert made.known.counts() == Counter({(workflow, "failure"): 1})
        assert made.asked()[LOG] <= 1
