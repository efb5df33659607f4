"""Runs of a simulated organization, read by the feed and by logs: what is counted is what happened, at a fair price."""

from collections import Counter

from exporter.model import Result, State
from exporter.wire.errors import ApiError
from tests.platforms.make.source import BY_FEED_AND_BY_LOGS, CAUSE, DAY, HOUR, LOG, MINUTE, T0, source

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
