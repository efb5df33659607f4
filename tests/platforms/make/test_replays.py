"""Failed runs that were not stored and can be replayed: which become dead letters, and what closes them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from exporter.model import ErrorClass, ResolvedBy
from exporter.platform.retrying import Standing, Target
from exporter.platforms.make.reading import replays as reading
from exporter.platforms.make.retrying import MakeRetries
from exporter.simulator.make.rows import is_replayable
from tests.platforms.make.source import BY_FEED_AND_BY_LOGS, DAY, HOUR, Source, source


@asynccontextmanager
async def replaying(*, replay: bool = True, store: bool = False, **options: Any) -> AsyncIterator[tuple[Source, str]]:
    """A source and a scenario of it, which by default stores nothing."""
    async with source(config={"replay": replay}, **options) as made:
        workflow_id = made.sim.add_workflow(store=store, errors=("DataError",), max_errors=100)
        await made.clock.advance(HOUR)
        await made.sweep()
        yield made, workflow_id


def closed_by(made: Source, letter_id: str) -> ResolvedBy | None:
    return made.known.letters[letter_id].dead_letter.resolved_by


@BY_FEED_AND_BY_LOGS
async def test_a_failed_run_that_can_be_replayed_is_a_dead_letter_where_nothing_is_stored(by_feed: bool) -> None:
    async with replaying(feed=by_feed) as (made, workflow_id):
        run_id = made.add_run(workflow_id, result="failure", error="DataError", ended=30)
        await made.rounds(3)
        [letter] = made.known.dead_letters.values()
        assert (letter.id, letter.run_id, letter.workflow_id, letter.reruns) == (run_id, run_id, workflow_id, True)
        assert letter.error is not None
        assert letter.error.error_class is ErrorClass.VALIDATION
        assert letter.opened_at == made.known.runs[run_id].run.ended_at
        await made.rounds(30)
        made.restart()
        await made.rounds(3)
        assert made.known.opened_dead_letters() == [run_id], "once, however often its row is met"


async def test_it_is_off_by_default_and_a_failure_of_the_trigger_or_a_success_is_none() -> None:
    async with replaying(replay=False) as (made, workflow_id):
        made.add_run(workflow_id, result="failure", ended=30)
        await made.rounds(3)
        assert not made.known.letters
    async with replaying() as (made, workflow_id):
        made.add_run(workflow_id, result="failure", trigger=True, ended=30)
        made.add_run(workflow_id, result="success", ended=31)
        made.add_run(workflow_id, result="warning", ended=32)
        await made.rounds(3)
        assert not made.known.letters


async def test_what_failed_before_the_first_sweep_is_none() -> None:
    async with source(config={"replay": True}) as made:
        workflow_id = made.sim.add_workflow(store=False, errors=("DataError",), max_errors=100)
        await made.clock.advance(HOUR)
        made.add_run(workflow_id, result="failure", ended=-300)
        await made.sweep()
        await made.rounds(5)
        assert not made.known.letters


async def test_the_cause_is_known_when_it_opens_also_where_the_row_does_not_say() -> None:
    async with replaying(inline_errors=0.0) as (made, workflow_id):
        made.add_run(workflow_id, result="failure", error="ModuleTimeoutError", ended=59)
        await made.rounds(5)
        [letter] = made.known.dead_letters.values()
        assert letter.error is not None
        assert letter.error.error_class is ErrorClass.TIMEOUT


# Stored, or not


@pytest.mark.parametrize("error", ["DataError", "ConnectionError"])
@pytest.mark.parametrize("resolved", [False, True])
async def test_one_failure_is_one_dead_letter_where_it_was_stored(error: str, resolved: bool) -> None:
    async with replaying(store=True) as (made, workflow_id):
        run_id = made.add_run(workflow_id, result="failure", error=error, dead_letter=True, ended=30)
        await made.clock.advance(40)
        [item] = [letter.dead_letter_id for letter in made.sim.truth().dead_letters]
        if resolved:
            made.sim.retry_by_person(item)
        await made.rounds(65)
        assert run_id not in made.known.letters
        assert set(made.known.letters) <= {item}, "one that was retried at once may never have been seen"


async def test_a_scenario_that_stores_and_did_not_store_this_is_known_by_its_list() -> None:
    async with replaying(store=True) as (made, workflow_id):
        other = made.sim.add_dead_letter(workflow_id, error="DataError")
        await made.rounds(2)
        run_id = made.add_run(workflow_id, result="failure", error="DataError", ended=30)
        await made.rounds(12)
        assert set(made.known.dead_letters) == {other, run_id}
        made.sim.delete_dead_letter(other)
        await made.rounds(12)
        assert set(made.known.dead_letters) == {run_id}


async def test_what_make_would_have_retried_by_itself_is_left_to_it_where_it_is_stored() -> None:
    async with replaying(store=True) as (made, workflow_id):
        made.add_run(workflow_id, result="failure", error="ConnectionError", ended=30)
        await made.rounds(65)
        assert not made.known.letters, "it may have come and gone between two readings of the list"


async def test_what_was_edited_since_is_not_judged_by_what_it_is_today() -> None:
    async with replaying(store=True) as (made, workflow_id):
        run_id = made.add_run(workflow_id, result="failure", error="DataError", dead_letter=True, ended=30)
        await made.clock.advance(31)
        made.sim.world.scenarios[int(workflow_id)].store = False
        made.sim.edit_workflow(workflow_id)
        await made.rounds(12)
        [letter] = made.known.letters.values()
        assert (letter.dead_letter.run_id, letter.dead_letter.reruns) == (run_id, False)


async def test_an_incomplete_execution_that_turns_up_late_takes_its_place() -> None:
    async with replaying() as (made, workflow_id):
        run_id = made.add_run(workflow_id, result="failure", error="DataError", ended=30)
        await made.rounds(3)
        assert set(made.known.dead_letters) == {run_id}
        item = made.sim.add_dead_letter(workflow_id, run_id=run_id, error="DataError")
        await made.rounds(3)
        assert set(made.known.dead_letters) == {item}
        assert closed_by(made, run_id) is ResolvedBy.SUPERSEDED


async def test_where_nobody_can_tell_there_is_none_and_that_is_said() -> None:
    async with replaying() as (made, workflow_id):
        run_id = made.add_run(workflow_id, result="failure", error="DataError", ended=30)
        made.restart()
        faults = []
        for _ in range(int(reading.PATIENCE_SECONDS // 300) + 2):
            await made.clock.advance(300)
            faults += await made.sweep("runs", "dead_letters")  # the listing of scenarios fails all the time
        assert not made.known.letters
        assert [fault.detail for fault in faults] == [
            f"whether run {run_id} was stored is unknown; it becomes no dead letter"
        ]


# What closes it


@BY_FEED_AND_BY_LOGS
async def test_a_replay_that_works_closes_it_and_one_that_fails_is_the_same_work(by_feed: bool) -> None:
    async with replaying(feed=by_feed) as (made, workflow_id):
        run_id = made.add_run(workflow_id, result="failure", error="DataError", ended=30)
        await made.rounds(3)
        again = made.sim.replay_by_person(run_id, outcome="failure")
        await made.rounds(3)
        [letter] = made.known.dead_letters.values()
        assert (letter.id, letter.tries) == (run_id, 1)
        made.sim.replay_by_person(again, outcome="failure")  # people replay what they see: the latest
        await made.rounds(3)
        [letter] = made.known.dead_letters.values()
        assert (letter.id, letter.tries) == (run_id, 2)
        made.restart()
        made.sim.replay_by_person(again, outcome="success")
        await made.rounds(3)
        assert closed_by(made, run_id) is ResolvedBy.MANUAL
        await made.rounds(50)
        assert made.known.opened_dead_letters() == [run_id]


async def test_a_feed_that_says_less_is_helped_by_the_run_s_own_row() -> None:
    async with replaying(feed_brief=True) as (made, workflow_id):
        made.add_run(workflow_id, result="failure", error="DataError", trigger=True, ended=29)
        run_id = made.add_run(workflow_id, result="failure", error="DataError", ended=30)
        await made.rounds(5)
        assert set(made.known.dead_letters) == {run_id}
        made.sim.replay_by_person(run_id, outcome="failure")
        await made.rounds(1)
        made.asked()
        await made.rounds(4)
        [letter] = made.known.dead_letters.values()
        assert (letter.id, letter.tries) == (run_id, 1)
        assert made.asked()["GET /scenarios/{id}/logs/{executionId}"] <= 1, "each is asked about once"


async def test_rows_in_whatever_order_say_the_same() -> None:
    """A replay that worked may be read before, with or after the failure it repairs."""
    async with replaying(feed_order="newest") as (made, workflow_id):
        run_id = made.add_run(workflow_id, result="failure", error="DataError", ended=5)
        await made.clock.advance(6)
        made.sim.replay_by_person(run_id, outcome="failure")
        made.sim.replay_by_person(run_id, outcome="success")
        await made.clock.advance(HOUR / 2)
        await made.rounds(5)
        assert not made.known.dead_letters


async def test_a_failed_replay_of_what_is_no_dead_letter_is_one_itself() -> None:
    async with replaying() as (made, workflow_id):
        run_id = made.add_run(workflow_id, result="success", ended=5)
        await made.rounds(3)
        again = made.sim.replay_by_person(run_id, outcome="failure")
        await made.rounds(3)
        execution = made.sim.world.executions[again]
        assert is_replayable(execution, made.sim.options)
        assert set(made.known.dead_letters) == {again}
        assert closed_by(made, again) is None
        made.sim.replay_by_person(run_id)
        await made.rounds(3)
        assert not made.known.dead_letters, "the same work was done, whichever run of it was replayed"


async def test_lists_of_incomplete_executions_do_not_close_it_and_its_age_does() -> None:
    async with replaying() as (made, workflow_id):
        run_id = made.add_run(workflow_id, result="failure", error="DataError", ended=30)
        await made.rounds(3)
        item = made.sim.add_dead_letter(workflow_id, error="DataError")
        await made.rounds(20)
        made.sim.delete_dead_letter(item)
        await made.rounds(20)
        assert set(made.known.dead_letters) == {run_id}
        await made.rounds(29, every=DAY)
        assert set(made.known.dead_letters) == {run_id}
        await made.rounds(2, every=DAY)
        assert closed_by(made, run_id) is ResolvedBy.EXPIRED


async def test_the_log_of_a_scenario_that_is_gone_is_gone_too() -> None:
    async with replaying() as (made, workflow_id):
        run_id = made.add_run(workflow_id, result="failure", error="DataError", ended=30)
        await made.rounds(3)
        made.sim.delete_workflow(workflow_id)
        await made.rounds(3)
        assert closed_by(made, run_id) is ResolvedBy.UNKNOWN


async def test_switched_off_again_it_opens_none_and_still_closes_what_is_open() -> None:
    async with replaying() as (made, workflow_id):
        run_id = made.add_run(workflow_id, result="failure", error="DataError", ended=30)
        await made.rounds(3)
        made.restart(replay=False)
        made.add_run(workflow_id, result="failure", error="DataError", ended=30)
        await made.rounds(3)
        assert set(made.known.dead_letters) == {run_id}
        look = await MakeRetries(made.config, made.api).look(Target(letter=made.known.dead_letters[run_id]))
        assert (look.standing, look.refusal) == (Standing.DEAD, "replay is off for this source")
        made.sim.replay_by_person(run_id)
        await made.rounds(3)
        assert closed_by(made, run_id) is ResolvedBy.MANUAL
