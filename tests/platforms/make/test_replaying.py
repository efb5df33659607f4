"""Replaying: what a look says of a run that was not stored, before and after a call, over real HTTP."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from msgspec import structs

from exporter.model import DeadLetter, ResolvedBy, Result
from exporter.platform.retrying import Look, Standing, Target
from exporter.platforms.make.mapping import replays
from exporter.platforms.make.retrying import MakeRetries
from exporter.simulator.retries import RetryPlan
from exporter.wire.errors import ApiError
from tests.platforms.make.source import DAY, HOUR, Source, source

CALL = "POST /scenarios/{id}/replay"


@dataclass(kw_only=True)
class Replays:
    made: Source
    adapter: MakeRetries
    letter: DeadLetter

    async def look(self, target: Target | None = None) -> Look:
        return await self.adapter.look(target or Target(letter=self.letter))

    async def send(self) -> Target:
        """Look, send, and what is to be watched; a lost answer leaves no handle."""
        before = await self.look()
        assert (before.standing, before.efforts, before.refusal) == (Standing.DEAD, (), None)
        sent_at, handle = self.made.api.platform_now(), None
        try:
            accepted = await self.adapter.send([self.letter], send_by=self.made.clock.now() + 10)
            handle = accepted.handles[self.letter.id]
        except ApiError as error:
            if not error.sent:
                raise
        return Target(letter=self.letter, mark=before.mark, sent_at=sent_at, handle=handle)

    async def later(self, seconds: float = 60.0) -> None:
        await self.made.clock.advance(seconds)


@asynccontextmanager
async def replaying(**options: Any) -> AsyncIterator[Replays]:
    async with source(config={"replay": True}, **options) as made:
        workflow_id = made.sim.add_workflow(store=False, errors=("DataError",), max_errors=100)
        await made.clock.advance(HOUR)
        await made.sweep()
        made.add_run(workflow_id, result="failure", error="DataError", ended=30)
        await made.rounds(2)
        [letter] = made.known.dead_letters.values()
        yield Replays(made=made, adapter=MakeRetries(made.config, made.api), letter=letter)


def said(look: Look) -> tuple[Standing, list[tuple[Result | None, bool | None]]]:
    return look.standing, [(effort.result, effort.ours) for effort in look.efforts]


def observed(look: Look) -> DeadLetter:
    [letter] = look.observations
    assert isinstance(letter, DeadLetter)
    return letter


async def test_it_is_ready_after_three_requests_and_called_by_one_id() -> None:
    async with replaying() as it:
        it.made.asked()
        look = await it.look()
        assert it.made.asked() == {
            "GET /scenarios/{id}/logs/{executionId}": 1,
            "GET /scenarios/{id}/logs": 1,
            "GET /scenarios/{id}": 1,
        }
        assert (said(look), look.refusal, observed(look)) == ((Standing.DEAD, []), None, it.letter)
        await it.adapter.send([it.letter], send_by=it.made.clock.now() + 10)
        assert it.made.asked() == {CALL: 1}
        assert dict(it.made.sim.retry_calls) == {it.letter.id: 1}


@pytest.mark.parametrize("fate", ["accepted", "cut", "error"])
@pytest.mark.parametrize("result", ["success", "failure"])
async def test_its_effect_is_certain_also_where_the_answer_was_lost(fate: str, result: Any) -> None:
    async with replaying() as it:
        plan = RetryPlan(outcome=result) if fate == "accepted" else RetryPlan(outcome=result, fate=fate)  # type: ignore[arg-type]
        it.made.sim.plan_retries(plan)
        target = await it.send()
        assert said(await it.look(target)) == (Standing.DEAD, []), "it has not begun"
        await it.later()
        look = await it.look(target)
        assert [(effort.result, effort.ours) for effort in look.efforts] == [(Result(result), True)]
        assert look.standing is (Standing.RESOLVED if result == "success" else Standing.DEAD)
        assert look.efforts[0].run_id in it.made.sim.world.executions
        assert observed(look).is_open is (result == "failure")


async def test_while_it_runs_it_is_busy_where_that_shows() -> None:
    async with replaying(pending_rows=True) as it:
        it.made.sim.plan_retries("success")
        target = await it.send()
        await it.later(3)
        look = await it.look(target)
        assert said(look) == (Standing.BUSY, [(None, True)])


async def test_a_person_s_replay_is_not_taken_for_ours() -> None:
    async with replaying() as it:
        it.made.sim.plan_retries("failure")
        target = await it.send()
        it.made.sim.replay_by_person(it.letter.id, author_id=12)  # another user
        await it.later()
        look = await it.look(target)
        assert look.standing is Standing.RESOLVED
        assert sorted((str(e.result), e.ours) for e in look.efforts) == [("failure", True), ("success", False)]


async def test_two_that_may_be_ours_are_nobody_s() -> None:
    async with replaying() as it:
        it.made.sim.plan_retries("failure")
        target = await it.send()
        it.made.sim.replay_by_person(it.letter.id, outcome="failure")  # with our own credential
        await it.later()
        assert [effort.ours for effort in (await it.look(target)).efforts] == [None, None]


async def test_a_replay_of_a_replay_is_about_the_same_work_and_never_ours() -> None:
    async with replaying() as it:
        again = it.made.sim.replay_by_person(it.letter.id, outcome="failure")
        await it.later()
        target = await it.send()
        await it.later()
        it.made.sim.replay_by_person(again)
        await it.later()
        look = await it.look(target)
        assert look.standing is Standing.RESOLVED
        assert (look.efforts[-1].result, look.efforts[-1].ours) == (Result.SUCCESS, False)
        assert observed(look).resolved_by is ResolvedBy.MANUAL


async def test_what_was_replayed_already_is_not_replayed_again() -> None:
    async with replaying() as it:
        it.made.sim.replay_by_person(it.letter.id)
        await it.later()
        look = await it.look()
        assert look.standing is Standing.RESOLVED
        assert not observed(look).is_open


async def test_a_busy_scenario_does_not_hide_a_replay_behind_pages_of_runs() -> None:
    async with replaying() as it:
        it.made.sim.replay_by_person(it.letter.id)
        for number in range(230):
            it.made.add_run(it.letter.workflow_id, ended=60 + number * 10)
        await it.later(HOUR)
        assert (await it.look()).standing is Standing.RESOLVED


async def test_the_effect_of_a_call_is_found_however_many_runs_came_after_it() -> None:
    async with replaying() as it:
        it.made.sim.plan_retries("failure")
        target = await it.send()
        for number in range(900):
            it.made.add_run(it.letter.workflow_id, ended=60 + number)
        await it.later(HOUR)
        assert [(e.result, e.ours) for e in (await it.look(target)).efforts] == [(Result.FAILURE, True)]


async def test_it_needs_the_scenario_switched_on_and_the_run_replayable() -> None:
    async with replaying() as it:
        it.made.sim.edit_workflow(it.letter.workflow_id)
        assert (await it.look()).refusal is None, "it is today's scenario that runs, whatever was edited"
        it.made.sim.set_enabled(it.letter.workflow_id, False)
        assert "switched off" in str((await it.look()).refusal)
        with pytest.raises(ApiError) as refused:
            await it.adapter.send([it.letter], send_by=it.made.clock.now() + 10)
        assert refused.value.status == 422
        it.made.sim.set_enabled(it.letter.workflow_id, True)
        it.made.sim.set_paused(True)
        assert "paused" in str((await it.look()).refusal)
        it.made.sim.set_paused(False)
        it.made.set_option("replayable", False)
        assert "no longer says" in str((await it.look()).refusal)


async def test_a_run_that_left_its_log_is_lost() -> None:
    async with replaying() as it:
        await it.later(31 * DAY)
        look = await it.look()
        assert (look.standing, observed(look).resolved_by) == (Standing.GONE, ResolvedBy.EXPIRED)
    async with replaying() as it:
        it.made.sim.delete_workflow(it.letter.workflow_id)
        look = await it.look()
        assert (look.standing, observed(look).resolved_by) == (Standing.GONE, ResolvedBy.UNKNOWN)


async def test_it_is_known_for_what_it_is_also_by_its_ids_alone() -> None:
    """An open retry of a dead letter that is closed is looked at by what the retry says of it."""
    async with replaying() as it:
        bare = structs.replace(it.letter, error=None, reruns=False)
        assert replays.is_replay(bare)
        assert observed(await it.look(Target(letter=bare))) == it.letter


async def test_a_cause_nobody_knows_is_read() -> None:
    async with replaying(inline_errors=0.0) as it:
        await it.later()
        unexplained = structs.replace(it.letter, error=None)
        found = observed(await it.look(Target(letter=unexplained))).error
        assert found is not None
        assert it.letter.error == found
