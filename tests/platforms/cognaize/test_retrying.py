"""Restarting Cognaize's failed steps: what a look says before and after a call, against the simulator, over HTTP."""

import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from exporter.model import DeadLetter, ResolvedBy, Result, Run, State
from exporter.platform.retrying import Accepted, Look, Standing, Target
from exporter.platforms.cognaize import PLATFORM
from exporter.platforms.cognaize.retrying import TRAITS, CognaizeRetries
from exporter.simulator.cognaize.process import Step
from exporter.simulator.cognaize.world import Outcome, text_param
from exporter.simulator.retries import RetryPlan
from exporter.wire.errors import ApiError, ErrorKind
from tests.platforms.cognaize.test_client import GET, Source, source

RESTART = "POST /api/v1/processes/restart-failed-step"
STEPS = (
    Step(delegate="GATEKEEPER", seconds=10.0),
    Step(delegate="MODEL", seconds=10.0, params={"modelUrl": text_param("https://models.example/secret")}),
    Step(delegate="DISTRIBUTION", seconds=20.0),
)


@dataclass(kw_only=True)
class Retries:
    """A source with one workflow, its adapter, and the dead letter of its one process as the ledger knows it."""

    made: Source
    adapter: CognaizeRetries
    letter: DeadLetter

    async def later(self, seconds: float) -> None:
        await self.made.clock.advance(seconds)

    async def look(self) -> Look:
        return await self.adapter.look(Target(letter=self.letter))

    async def send(self) -> Target:
        """Look, send, and what is to be watched; a lost answer leaves no handle."""
        before = await self.look()
        assert (before.standing, before.efforts) == (Standing.DEAD, ())
        sent_at, handle = self.made.api.platform_now(), None
        try:
            accepted = await self.adapter.send([self.letter], send_by=self.made.clock.now() + 10)
            handle = accepted.handles[self.letter.id]
        except ApiError as error:
            if not error.sent:
                raise
        return Target(letter=self.letter, mark=before.mark, sent_at=sent_at, handle=handle)

    @property
    def evidence(self) -> tuple[int, int]:
        """Restart calls that arrived, and restarts they led to."""
        self.made.simulator.advance(self.made.clock.now())
        return self.made.simulator.retry_calls[self.letter.id], self.made.simulator.retry_executions[self.letter.id]


@asynccontextmanager
async def retries(**options: Any) -> AsyncIterator[Retries]:
    async with source(**options) as made:
        made.simulator.add_workflow("wf-1", steps=STEPS)
        await made.sweep()
        begun = made.clock.now()
        run_id = made.simulator.add_run("wf-1", started_at=begun, ended_at=begun + 20, result="failure")
        await made.clock.advance(60)
        await made.sweep()
        [letter] = made.known.dead_letters.values()
        assert letter.run_id == run_id
        yield Retries(made=made, adapter=CognaizeRetries(made.config, made.api), letter=letter)


def said(look: Look) -> tuple[Standing, list[tuple[Result | None, bool | None]]]:
    return look.standing, [(effort.result, effort.ours) for effort in look.efforts]


async def test_the_declaration_counts_retries_by_step_and_promises_no_absence() -> None:
    async with retries() as it:
        assert PLATFORM.retrying is not None
        assert PLATFORM.retrying.root(it.letter) == f"{it.letter.run_id}.{it.letter.run_id}-s2"
        assert (TRAITS.absence, TRAITS.bulk_max) == (None, 1)


# Before a call


async def test_a_dead_step_is_ready_after_one_request() -> None:
    async with retries() as it:
        it.made.asked()
        look = await it.look()
        assert it.made.asked() == Counter({GET: 1})
        assert (said(look), look.refusal, look.native) == ((Standing.DEAD, []), None, False)
        [run, letter] = look.observations
        assert letter == it.letter
        assert isinstance(run, Run)
        assert run.result is Result.FAILURE


async def test_a_step_that_somebody_restarted_is_busy_then_resolved_and_the_fold_agrees() -> None:
    async with retries() as it:
        it.made.simulator.retry_by_person(it.letter.id)
        assert said(await it.look()) == (Standing.BUSY, [])
        await it.later(15)
        look = await it.look()
        assert said(look) == (Standing.RESOLVED, [])
        [run] = look.observations
        assert isinstance(run, Run)
        assert run.state is State.RUNNING
        assert it.evidence == (0, 0)
        await it.made.sweep()
        assert it.made.known.letters[it.letter.id].dead_letter.resolved_by is ResolvedBy.MANUAL


async def test_a_step_that_failed_again_is_another_dead_letter_of_the_same_root() -> None:
    async with retries() as it:
        it.made.simulator.retry_by_person(it.letter.id, outcome="failure")
        await it.later(60)
        look = await it.look()
        assert said(look) == (Standing.RESOLVED, [])
        [_, again] = look.observations
        assert isinstance(again, DeadLetter)
        assert again.id != it.letter.id
        assert PLATFORM.retrying is not None
        assert PLATFORM.retrying.root(again) == PLATFORM.retrying.root(it.letter)


async def test_a_process_that_is_gone_is_told_and_left_to_the_sweeps_to_close() -> None:
    async with retries() as it:
        assert it.letter.run_id is not None
        it.made.simulator.delete_run(it.letter.run_id)
        look = await it.look()
        assert (look.standing, look.observations) == (Standing.GONE, ())


# A call and what becomes of it


async def test_a_restart_is_seen_running_then_done_and_is_ours() -> None:
    async with retries() as it:
        it.made.simulator.plan_retries("success")
        it.made.asked()
        target = await it.send()
        assert it.made.asked() == Counter({GET: 2, RESTART: 1})
        look = await it.adapter.look(target)
        assert said(look) == (Standing.BUSY, [(None, True)])
        assert look.efforts[0].began_at == pytest.approx(target.sent_at, abs=1.0)
        await it.later(12)
        assert said(await it.adapter.look(target)) == (Standing.RESOLVED, [(Result.SUCCESS, True)])
        await it.later(600)
        assert said(await it.adapter.look(target)) == (Standing.RESOLVED, [(Result.SUCCESS, True)])
        assert it.evidence == (1, 1)


async def test_a_restart_that_fails_again_is_ours_to_answer_for() -> None:
    async with retries() as it:
        it.made.simulator.plan_retries("failure")
        target = await it.send()
        await it.later(3600)
        look = await it.adapter.look(target)
        assert said(look) == (Standing.RESOLVED, [(Result.FAILURE, True)])
        assert look.efforts[0].id == look.observations[1].id  # type: ignore[union-attr]
        assert it.evidence == (1, 1)


@pytest.mark.parametrize("fate", ["cut", "error"])
@pytest.mark.parametrize("outcome", ["success", "failure"])
async def test_a_call_whose_answer_is_lost_happened_once_and_is_found_at_once(fate: Any, outcome: Outcome) -> None:
    async with retries() as it:
        it.made.simulator.plan_retries(RetryPlan(fate=fate, outcome=outcome))
        target = await it.send()
        assert target.handle is None
        assert said(await it.adapter.look(target)) == (Standing.BUSY, [(None, True)])
        await it.later(15)
        assert said(await it.adapter.look(target)) == (Standing.RESOLVED, [(Result(outcome), True)])
        await it.later(3600)  # by now somebody else might have restarted it, too
        after = await it.adapter.look(target)
        assert after.standing is Standing.RESOLVED
        assert after.efforts[0].result is Result(outcome)
        assert it.evidence == (1, 1)


async def test_in_doubt_a_later_effect_is_nobody_s_to_claim() -> None:
    async with retries() as it:
        it.made.simulator.plan_retries(RetryPlan(fate="lost"))
        target = await it.send()
        unsure = Target(letter=target.letter, mark=target.mark, sent_at=target.sent_at)
        await it.later(600)
        assert said(await it.adapter.look(unsure)) == (Standing.DEAD, [])
        it.made.simulator.retry_by_person(it.letter.id)
        assert said(await it.adapter.look(unsure)) == (Standing.BUSY, [(None, None)])
        await it.later(600)
        assert said(await it.adapter.look(unsure)) == (Standing.RESOLVED, [(Result.SUCCESS, None)])
        assert it.evidence == (1, 0)


async def test_a_late_effect_shows_late() -> None:
    async with retries() as it:
        it.made.simulator.plan_retries(RetryPlan(fate="cut", outcome="success", delay=900))
        target = await it.send()
        await it.later(890)
        assert said(await it.adapter.look(target)) == (Standing.DEAD, [])
        await it.later(15)
        assert (await it.adapter.look(target)).standing is Standing.BUSY
        assert it.evidence == (1, 1)


async def test_what_began_well_before_the_call_is_not_ours() -> None:
    async with retries() as it:
        before = await it.look()
        it.made.simulator.retry_by_person(it.letter.id)
        later = it.made.api.platform_now() + 30
        look = await it.adapter.look(Target(letter=it.letter, mark=before.mark, sent_at=later))
        assert said(look) == (Standing.BUSY, [(None, False)])


async def test_a_step_that_is_not_dead_any_more_is_never_sent() -> None:
    async with retries() as it:
        it.made.simulator.retry_by_person(it.letter.id)
        it.made.asked()
        with pytest.raises(ApiError) as refused:
            await it.adapter.send([it.letter], send_by=it.made.clock.now() + 10)
        assert (refused.value.kind, refused.value.sent) == (ErrorKind.CONFLICT, False)
        assert it.made.asked() == Counter({GET: 1})


async def test_the_platform_s_own_guard_is_a_definite_refusal() -> None:
    async with retries() as it:
        it.made.simulator.plan_retries(RetryPlan(fate="beaten"))  # between our reading and our call
        with pytest.raises(ApiError) as refused:
            await it.adapter.send([it.letter], send_by=it.made.clock.now() + 10)
        assert (refused.value.status, refused.value.kind) == (412, ErrorKind.CONFLICT)
        assert it.evidence == (1, 0)


async def test_a_call_is_made_once_and_what_fails_before_it_was_never_sent() -> None:
    async with retries() as it:
        it.made.asked()
        it.made.simulator.fail_next("slow", "unavailable")  # the reading is fine, the call is not
        with pytest.raises(ApiError) as failed:
            await it.adapter.send([it.letter], send_by=it.made.clock.now() + 10)
        assert failed.value.sent
        assert it.made.asked() == Counter({GET: 1, RESTART: 1})
        it.made.simulator.fail_next("ok_html")
        with pytest.raises(ApiError) as unread:
            await it.adapter.send([it.letter], send_by=it.made.clock.now() + 10)
        assert (unread.value.kind, unread.value.sent) == (ErrorKind.BAD_PAYLOAD, False)
        with pytest.raises(ApiError) as late:
            await it.adapter.send([it.letter], send_by=it.made.clock.now() - 1)
        assert not late.value.sent
        assert it.made.asked()[RESTART] == 0
        assert it.evidence == (0, 0)


async def test_params_go_back_exactly_as_they_came_and_nowhere_else(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with retries() as it:
        assert it.letter.run_id is not None
        look = await it.look()
        accepted = await it.adapter.send([it.letter], send_by=it.made.clock.now() + 10)
        assert accepted == Accepted(handles={it.letter.id: f"{it.letter.run_id}-s2"})
        given = it.made.simulator._world.processes[it.letter.run_id].given
        assert given == {1: {"modelUrl": text_param("https://models.example/secret")}}
        assert "models.example" not in repr((look, accepted, vars(it.adapter))) + caplog.text


async def test_check_says_what_cannot_be_known_without_a_restart() -> None:
    async with retries() as it:
        it.made.asked()
        lines = [line async for line in it.made.client.check()]
        assert lines[-1].startswith("note: whether the credential may restart steps")
        assert RESTART not in it.made.asked()
