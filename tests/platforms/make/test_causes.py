"""Why runs failed, and runs that a webhook named: what is asked about single runs."""

from collections import Counter

import pytest

from exporter.model import RunFinished
from exporter.platform import RunKey
from exporter.platforms.make.reading import details
from tests.platforms.make.source import BY_FEED_AND_BY_LOGS, CAUSE, DAY, source

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
        assert made.known.cursor("runs", details.CAUSES) is None


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
        await made.rounds(details.TRIES_MAX - 1)
        assert made.known.errors() == Counter()
        await made.rounds(1)
        assert made.known.errors() == {(workflow, "unknown"): 1}
        made.asked()
        await made.rounds(2)
        assert made.asked()[CAUSE] == 0


async def test_more_causes_than_one_sweep_may_ask_for_are_asked_for_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(details, "CAUSES_PER_SWEEP_MAX", 4)
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
