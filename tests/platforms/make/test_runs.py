"""Runs of a simulated organization, read by the feed and by logs, compared with what really happened."""

from collections import Counter

import pytest

from exporter.http import ApiError, ErrorKind
from exporter.model import Result, Run, RunFinished, State, Via
from exporter.platform import Page, RunKey
from exporter.platforms.make import causes, feed, logs
from tests.platforms.make.source import T0, Source, source

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
LOG, FEED, CAUSE = "GET /scenarios/{id}/logs", "GET /scenarios/logs", "GET /scenarios/{id}/executions/{executionId}"
BY_FEED_AND_BY_LOGS = pytest.mark.parametrize("by_feed", [True, False], ids=["feed", "logs"])
FAULTS = {
    "rate_limited": 0.02,
    "rate_limited_text": 0.01,
    "unavailable": 0.05,
    "server_error_html": 0.02,
    "ok_html": 0.02,
    "truncated": 0.02,
    "shifting_pages": 0.3,
    "duplicates": 0.1,
    "missing_fields": 0.1,
    "null_numbers": 0.1,
}


# Counting


@BY_FEED_AND_BY_LOGS
async def test_after_many_sweeps_every_run_and_every_cause_is_counted_once(by_feed: bool) -> None:
    async with source(workflows=25, feed=by_feed, detail_delay=0.0) as made:
        assert await made.sweep() == []
        assert await made.rounds(40) == []
        assert made.known.counts() == made.true_counts()
        assert made.known.errors() == made.true_errors()
        assert len(made.true_failures()) > 5
        assert made.known.corrections() == []


@BY_FEED_AND_BY_LOGS
async def test_a_restart_and_a_downtime_of_hours_lose_and_repeat_nothing(by_feed: bool) -> None:
    async with source(workflows=25, feed=by_feed, detail_delay=0.0) as made:
        await made.sweep()
        await made.rounds(3)
        made.restart()
        await made.rounds(3)
        await made.clock.advance(4 * HOUR)
        made.restart()
        await made.rounds(3)
        assert made.known.counts() == made.true_counts()
        assert made.known.errors() == made.true_errors()


@BY_FEED_AND_BY_LOGS
async def test_with_everything_going_wrong_now_and_then_the_counts_come_out_right(by_feed: bool) -> None:
    async with source(workflows=25, feed=by_feed, detail_delay=0.0) as made:
        await made.sweep()
        for fault, probability in FAULTS.items():
            setattr(made.sim.faults, fault, probability)
        failed = 0
        for number in range(25):
            await made.clock.advance(MINUTE)
            for stream in ("workflows", "runs"):
                try:
                    failed += len(await made.sweep(stream))
                except ApiError:
                    failed += 1
            if number == 12:
                made.restart()
        for fault in FAULTS:
            setattr(made.sim.faults, fault, 0.0)
        assert await made.rounds(5) == []
        assert failed
        assert made.known.counts() == made.true_counts()
        assert sum(made.known.errors().values()) == len(made.true_failures())


@BY_FEED_AND_BY_LOGS
async def test_runs_from_before_the_first_sweep_are_known_but_do_not_count(by_feed: bool) -> None:
    async with source(feed=by_feed, inline_errors=0.0) as made:
        workflow = made.sim.add_workflow()
        runs = [made.add_run(workflow, ended=-DAY), made.add_run(workflow, ended=-30, result="failure")]
        await made.sweep()
        assert made.asked()[CAUSE] == 0
        assert made.known.counts() == Counter()
        assert made.known.errors() == Counter()
        assert set(made.known.runs) == set(runs)
        ends = dict(made.known.entries[workflow].last_ended)
        assert ends == {Result.SUCCESS: T0 - DAY, Result.FAILURE: T0 - 30}


@BY_FEED_AND_BY_LOGS
async def test_a_backfill_counts_what_ended_within_it(by_feed: bool) -> None:
    async with source(workflows=10, feed=by_feed, detail_delay=0.0, config={"backfill": "1h"}) as made:
        await made.sweep()
        await made.rounds(2)
        since = made.first_sweep_at - HOUR
        assert made.known.counts() == made.true_counts(since=since)
        assert sum(made.known.counts().values()) > 1.5 * sum(made.true_counts().values())


@BY_FEED_AND_BY_LOGS
async def test_a_scenario_made_after_the_last_listing_has_all_its_runs_counted(by_feed: bool) -> None:
    async with source(workflows=3, feed=by_feed) as made:
        await made.sweep()
        await made.rounds(2)
        await made.clock.advance(MINUTE)
        workflow = made.sim.add_workflow()
        made.add_run(workflow, ended=-10)
        await made.sweep("runs")
        await made.rounds(1)
        assert made.known.counts()[workflow, "success"] == 1


@BY_FEED_AND_BY_LOGS
async def test_a_scenario_watched_from_now_on_does_not_have_its_past_counted(by_feed: bool) -> None:
    async with source(feed=by_feed, config={"exclude": ["Later"]}) as made:
        workflow = made.sim.add_workflow(name="Later")
        made.sim.add_workflow()
        await made.sweep()
        for hour in range(1, 10):
            made.add_run(workflow, ended=hour * HOUR)
        await made.rounds(48, every=HOUR / 4)
        made.restart(exclude=[])
        made.add_run(workflow, ended=30)
        await made.rounds(2)
        assert made.known.counts() == {(workflow, "success"): 1}


@BY_FEED_AND_BY_LOGS
async def test_operations_transfer_duration_and_trigger_are_told(by_feed: bool) -> None:
    async with source(feed=by_feed) as made:
        workflow = made.sim.add_workflow(instant=True)
        await made.sweep()
        run_id = made.add_run(workflow, ended=20, took=12.5)
        await made.rounds(1)
        run = made.known.runs[run_id].run
        assert (run.operations, run.bytes_in, run.duration, run.trigger) == (1.0, 200.0, 12.5, "webhook")


# What it costs


@BY_FEED_AND_BY_LOGS
async def test_a_poll_of_a_thousand_scenarios_costs_what_ran_and_a_little(by_feed: bool) -> None:
    async with source(feed=by_feed) as made:
        workflows = [made.sim.add_workflow() for _ in range(1000)]
        await made.sweep()
        for batch in range(2):
            made.asked()
            for workflow in workflows[20 * batch : 20 * batch + 20]:
                made.add_run(workflow, ended=30)
            assert await made.rounds(1) == []
            assert made.asked().total() <= 20 + 10
        assert made.known.counts() == made.true_counts()
        assert sum(made.known.counts().values()) == 40


async def test_with_the_feed_no_logs_are_read_once_every_scenario_was_met() -> None:
    async with source(workflows=4, feed=True) as made:
        await made.sweep()
        await made.rounds(1)
        assert made.asked()[LOG] == 4
        await made.rounds(5)
        assert made.asked()[LOG] == 0


async def test_a_busy_scenario_is_not_read_through_for_the_sake_of_a_long_run() -> None:
    async with source(feed=False) as made:
        workflow = made.sim.add_workflow(instant=True)
        await made.sweep()
        long_run = made.add_run(workflow, ended=39 * MINUTE, took=38.5 * MINUTE)
        for second in range(2, 2400, 2):
            made.add_run(workflow, ended=second, took=1.0)
        await made.clock.advance(38 * MINUTE)
        await made.sweep()
        made.asked()
        assert await made.rounds(2) == []
        assert made.asked()[LOG] <= 2 * 6
        assert made.known.runs[long_run].run.state is State.FINISHED
        assert made.known.counts() == made.true_counts()


async def test_scenarios_that_never_ran_are_not_read_for_being_new() -> None:
    async with source(feed=False) as made:
        for _ in range(50):
            made.sim.add_workflow()
        await made.sweep()
        assert made.asked()[LOG] == 0


# By logs: what is found, and how


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
    async with source(feed=False) as made:
        workflow = made.sim.add_workflow()
        made.add_run(workflow, ended=-10)
        for _ in range(40):
            made.sim.add_workflow()
        await made.sweep()
        run_id = made.add_run(workflow, ended=10, took=60)
        await made.clock.advance(MINUTE)
        made.sim.fail_next("duplicates", "null_numbers")  # the consumptions as they are, then the log
        await made.sweep("runs")
        assert made.known.runs[run_id].run.ended_at is None
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
    monkeypatch.setattr(logs, "PAGES_PER_SCENARIO_MAX", 3)
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


async def test_scenarios_too_many_for_one_sweep_are_read_by_the_next_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "SCENARIOS_PER_SWEEP_MAX", 4)
    async with source(feed=False) as made:
        workflows = [made.sim.add_workflow() for _ in range(10)]
        await made.sweep()
        for workflow in workflows:
            made.add_run(workflow, ended=10)
        faults = await made.rounds(1)
        assert [(f.kind, f.detail) for f in faults] == [
            ("truncated", "6 scenarios that may have run are left for the next sweep")
        ]
        await made.rounds(2)
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


# By the feed


async def test_more_runs_than_pages_of_the_feed_are_told_by_the_next_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "PAGES_PER_SWEEP_MAX", 2)
    async with source(feed=True) as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        for second in range(1000):
            made.add_run(workflow, ended=10 + second // 7)  # seven ends in the same millisecond
        await made.clock.advance(HOUR)
        kinds = [[fault.kind for fault in await made.sweep("runs")] for _ in range(4)]
        assert kinds[0] == ["truncated"]
        assert kinds[-1] == []
        assert made.known.counts() == {(workflow, "success"): 1000}


async def test_a_run_that_shows_in_the_feed_some_time_after_its_end_is_found() -> None:
    async with source(feed=True) as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        await made.rounds(3)
        late = made.add_run(workflow, ended=-feed.SETTLED_SECONDS + 70)  # nobody could see it at the last sweep
        await made.rounds(1)
        assert late in made.known.runs


async def test_a_feed_that_fails_for_a_moment_is_waited_for() -> None:
    async with source(workflows=5, feed=True) as made:
        await made.sweep()
        await made.rounds(2)
        await made.clock.advance(MINUTE)
        made.sim.fail_next("unavailable", "unavailable", "unavailable")
        with pytest.raises(ApiError) as failed:
            await made.sweep("runs")
        assert failed.value.kind is ErrorKind.UNAVAILABLE
        made.asked()
        assert await made.sweep("runs") == []
        assert made.asked()[LOG] == 0
        assert made.known.counts() == made.true_counts()


async def test_a_feed_that_refuses_is_tried_again_after_an_hour_and_counts_stay_exact_both_ways() -> None:
    async with source(workflows=10, feed=False, detail_delay=0.0) as made:
        await made.sweep()
        await made.rounds(10)
        assert made.asked()[FEED] == 1
        made.set_option("feed", True)
        await made.rounds(60)
        assert 1 <= made.asked()[FEED] <= 15
        made.set_option("feed", False)
        await made.rounds(10)
        asked = made.asked()
        assert asked[FEED] == 1
        assert asked[LOG] > 10
        assert made.known.counts() == made.true_counts()
        assert made.known.errors() == made.true_errors()


async def test_where_one_way_of_reading_takes_over_it_goes_on_where_the_other_stopped() -> None:
    async with source(feed=False) as made:
        workflow = made.sim.add_workflow(instant=True)
        await made.sweep()
        for second in range(10, 8 * 3600, 10):
            made.add_run(workflow, ended=second)
        await made.rounds(16, every=HOUR / 4)
        made.set_option("feed", True)
        made.asked()
        await made.rounds(1, every=HOUR + MINUTE)
        assert made.asked()[FEED] <= 2 + 2 * 360 // 200
        await made.rounds(8, every=HOUR / 4)
        made.set_option("feed", False)
        made.asked()
        await made.rounds(1)
        assert made.asked()[LOG] <= 4
        assert made.known.counts() == made.true_counts()


async def test_a_refused_token_is_no_refusal_of_the_feed() -> None:
    async with source(workflows=3, feed=True) as made:
        await made.sweep()
        made.set_option("token", "another")
        with pytest.raises(ApiError) as failed:
            await made.rounds(1)
        assert failed.value.kind is ErrorKind.AUTH
        with pytest.raises(ApiError) as failed:
            await made.sweep("runs")
        assert failed.value.kind is ErrorKind.AUTH
        made.set_option("token", "demo-token")
        made.asked()
        await made.sweep("runs")
        assert made.asked()[FEED] == 1


async def test_the_feeds_runs_of_scenarios_left_out_are_left_out_even_before_their_names_were_read() -> None:
    async with source(feed=True, config={"exclude": ["Test *"]}) as made:
        kept, left_out = made.sim.add_workflow(name="Orders"), made.sim.add_workflow(name="Test orders")
        await made.sweep()
        made.restart()
        for workflow in (kept, left_out):
            made.add_run(workflow, ended=10)
        await made.clock.advance(MINUTE)
        await made.sweep("runs")
        assert made.known.counts() == {(kept, "success"): 1}
        assert set(made.known.entries) == {kept}
        assert made.asked()["GET /scenarios/{id}"] == 1


# Causes


@BY_FEED_AND_BY_LOGS
async def test_only_failed_runs_without_a_cause_are_asked_about_and_each_once(by_feed: bool) -> None:
    async with source(feed=by_feed, inline_errors=0.0, detail_delay=0.0) as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        for number, result in enumerate(("success", "warning", "failure", "failure")):
            made.add_run(workflow, ended=10 + number, result=result, error="RateLimitError")
        await made.rounds(4, every=20)
        assert made.asked()[CAUSE] == 2
        assert made.known.errors() == {(workflow, "throttled"): 2}
        assert made.known.cursor("runs", causes.CURSOR) is None


@BY_FEED_AND_BY_LOGS
async def test_a_failed_run_is_counted_at_once_and_its_cause_when_it_can_be_had(by_feed: bool) -> None:
    async with source(feed=by_feed, inline_errors=0.0, detail_delay=80.0) as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        made.add_run(workflow, ended=50, result="failure", error="ConnectionError")
        assert await made.rounds(1) == []
        assert made.known.counts() == {(workflow, "failure"): 1}
        assert made.known.errors() == Counter()
        made.restart()
        await made.rounds(2)
        assert made.known.errors() == {(workflow, "network"): 1}


async def test_a_cause_is_not_given_up_for_being_asked_too_soon() -> None:
    async with source(feed=True, inline_errors=0.0, detail_delay=25.0) as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        made.add_run(workflow, ended=4, result="failure", error="ConnectionError")
        await made.rounds(7, every=5)
        assert made.known.errors() == {(workflow, "network"): 1}


async def test_a_cause_that_cannot_be_had_is_unknown_in_the_end() -> None:
    async with source(feed=False, inline_errors=0.0, detail_delay=DAY) as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        made.add_run(workflow, ended=10, result="failure", error="ConnectionError")
        await made.rounds(causes.TRIES_MAX - 1)
        assert made.known.errors() == Counter()
        await made.rounds(1)
        assert made.known.errors() == {(workflow, "unknown"): 1}
        made.asked()
        await made.rounds(2)
        assert made.asked()[CAUSE] == 0


async def test_more_causes_than_one_sweep_may_ask_for_are_asked_for_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(causes, "DETAILS_PER_SWEEP_MAX", 4)
    async with source(feed=True, inline_errors=0.0, detail_delay=0.0) as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        for number in range(10):
            made.add_run(workflow, ended=10 + number, result="failure", error="DataError")
        faults = await made.rounds(1)
        assert [fault.detail for fault in faults] == ["the causes of 6 failed runs are left for the next sweep"]
        assert await made.rounds(2) != []
        assert await made.rounds(1) == []
        assert made.known.errors() == {(workflow, "validation"): 10}


# Completing what a webhook named


async def test_a_run_that_a_callback_named_is_read_with_its_cause() -> None:
    async with source(inline_errors=0.0, detail_delay=0.0) as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        run_id = made.add_run(workflow, ended=10, result="failure", error="DataError")
        await made.clock.advance(20)
        made.asked()
        assert await made.complete(RunKey(run_id=run_id, workflow_id=workflow)) == []
        assert made.asked() == {"GET /scenarios/{id}/logs/{executionId}": 1, CAUSE: 1}
        assert made.known.errors() == {(workflow, "validation"): 1}
        (finished,) = [change for change in made.known.changes if isinstance(change, RunFinished)]
        assert finished.run.duration == 5.0


async def test_a_run_that_cannot_be_read_yet_or_whose_scenario_nobody_knows_is_left_to_the_sweeps() -> None:
    async with source() as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        run_id = made.add_run(workflow, ended=10)
        assert await made.complete(RunKey(run_id=run_id, workflow_id=workflow), RunKey(run_id=run_id)) == []
        assert made.known.counts() == Counter()
        await made.rounds(1)
        assert made.known.counts() == {(workflow, "success"): 1}


async def test_a_run_known_to_be_open_is_completed_by_its_id_alone() -> None:
    async with source(feed=False, pending_rows=True) as made:
        workflow = made.sim.add_workflow()
        run_id = made.add_run(workflow, ended=10, took=20)
        made.add_run(workflow, ended=-100)
        await made.sweep()
        assert run_id in made.known.open_runs
        await made.clock.advance(20)
        await made.complete(RunKey(run_id=run_id))
        assert made.known.counts() == {(workflow, "success"): 1}
