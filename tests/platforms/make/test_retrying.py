"""Retrying Make's dead letters: what a look says before and after a call, against the simulator, over real HTTP."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from exporter.model import DeadLetter, ErrorClass, ResolvedBy, Result
from exporter.platform.retrying import Accepted, Look, Standing, Target
from exporter.platforms.make import PLATFORM
from exporter.platforms.make.retrying import TRAITS, MakeRetries
from exporter.simulator.make.model import Outcome
from exporter.simulator.retries import RetryPlan
from exporter.wire.errors import ApiError, ErrorKind
from tests.platforms.make.source import HOUR, Source, source

SINGLE, BULK = "POST /dlqs/{id}/retry", "POST /dlqs/retry"
LOOKS = {"GET /dlqs/{id}": 1, "GET /dlqs/{id}/logs": 1}


@dataclass(kw_only=True)
class Retries:
    """A source with one scenario, its adapter, and a dead letter as the ledger knows it."""

    made: Source
    adapter: MakeRetries
    workflow_id: str

    async def dead_letter(self, **how: Any) -> DeadLetter:
        """A dead letter that the sweeps have found."""
        letter_id = self.made.sim.add_dead_letter(self.workflow_id, **how)
        await self.made.sweep()
        return self.made.known.dead_letters[letter_id]

    async def later(self, seconds: float = 30.0) -> None:
        await self.made.clock.advance(seconds)

    async def send(self, letter: DeadLetter) -> Target:
        """Look, send, and what is to be watched; a lost answer leaves no handle."""
        before = await self.adapter.look(Target(letter=letter))
        assert (before.standing, before.efforts, before.refusal) == (Standing.DEAD, (), None)
        sent_at, handle = self.made.api.platform_now(), None
        try:
            accepted = await self.adapter.send([letter], send_by=self.made.clock.now() + 10)
            handle = accepted.handles[letter.id]
        except ApiError as error:
            if not error.sent:
                raise
        return Target(letter=letter, mark=before.mark, sent_at=sent_at, handle=handle)

    def evidence(self, letter: DeadLetter) -> tuple[int, int]:
        """Retry calls that arrived, and executions they led to."""
        self.made.sim.advance(self.made.clock.now())
        return self.made.sim.retry_calls[letter.id], self.made.sim.retry_executions[letter.id]


@asynccontextmanager
async def retries(*, settings: dict[str, Any] | None = None, **options: Any) -> AsyncIterator[Retries]:
    async with source(**options) as made:
        workflow_id = made.sim.add_workflow(**(settings or {}))
        await made.clock.advance(HOUR)
        await made.sweep()
        yield Retries(made=made, adapter=MakeRetries(made.config, made.api), workflow_id=workflow_id)


def said(look: Look) -> tuple[Standing, list[tuple[Result | None, bool | None]]]:
    return look.standing, [(effort.result, effort.ours) for effort in look.efforts]


def observed(look: Look) -> DeadLetter:
    [letter] = look.observations
    assert isinstance(letter, DeadLetter)
    return letter


def test_the_declaration_promises_no_more_than_is_documented() -> None:
    assert PLATFORM.retrying is not None
    assert (TRAITS.absence, TRAITS.bulk_max) == (None, 25)


# Before a call


async def test_a_dead_letter_is_ready_after_four_requests() -> None:
    async with retries() as it:
        letter = await it.dead_letter()
        it.made.asked()
        look = await it.adapter.look(Target(letter=letter))
        assert it.made.asked() == Counter({**LOOKS, "GET /scenarios/{id}": 1})
        assert said(look) == (Standing.DEAD, [])
        assert (look.native, look.refusal, observed(look)) == (False, None, letter)


async def test_the_platform_s_own_retries_are_told_while_they_are_to_come() -> None:
    async with retries() as it:
        letter = await it.dead_letter(native=True, outcomes=("failure",))
        assert (await it.adapter.look(Target(letter=letter))).native
        await it.later(9 * HOUR)
        look = await it.adapter.look(Target(letter=letter))
        assert (said(look), look.native, observed(look).tries) == ((Standing.DEAD, []), False, 8)


async def test_a_cause_nobody_knows_yet_is_read_as_the_sweep_reads_it() -> None:
    async with retries() as it:
        letter = await it.dead_letter(error="ModuleTimeoutError")
        bare = DeadLetter(id=letter.id, workflow_id=letter.workflow_id, opened_at=letter.opened_at)
        assert letter.error is not None
        assert letter.error.error_class is ErrorClass.TIMEOUT
        assert letter.error.step_type is not None
        assert observed(await it.adapter.look(Target(letter=bare))) == letter


async def test_a_scenario_edited_after_the_failure_must_not_be_resumed() -> None:
    async with retries() as it:
        letter = await it.dead_letter()
        await it.later(5)
        it.made.sim.edit_workflow(it.workflow_id)
        look = await it.adapter.look(Target(letter=letter))
        assert look.standing is Standing.DEAD
        assert look.refusal == "the scenario was edited after the failure; a retry would run the old blueprint"
        await it.later(5)
        assert (await it.adapter.look(Target(letter=await it.dead_letter()))).refusal is None


async def test_a_scenario_somebody_switched_off_is_left_alone_one_that_make_switched_off_is_not() -> None:
    async with retries(settings={"instant": True}) as it:
        letter = await it.dead_letter()
        scenario = it.made.sim.world.scenarios[int(it.workflow_id)]
        it.made.sim.world.set_active(scenario, False, it.made.clock.now(), author=None, reason="An error")
        assert (await it.adapter.look(Target(letter=letter))).refusal is None
        it.made.sim.set_enabled(it.workflow_id, True)
        it.made.sim.set_enabled(it.workflow_id, False)
        assert (await it.adapter.look(Target(letter=letter))).refusal == "the scenario was switched off by somebody"
        it.made.sim.set_enabled(it.workflow_id, True)
        it.made.sim.set_paused(True)
        assert "paused" in str((await it.adapter.look(Target(letter=letter))).refusal)


@pytest.mark.parametrize("vanished", [False, True], ids=["deleted", "forgotten"])
async def test_a_dead_letter_that_is_gone_is_closed_as_the_sweep_would(vanished: bool) -> None:
    async with retries() as it:
        letter = await it.dead_letter()
        it.made.sim.delete_dead_letter(letter.id)
        if vanished:
            await it.later(25 * HOUR)
        look = await it.adapter.look(Target(letter=letter))
        by = ResolvedBy.UNKNOWN if vanished else ResolvedBy.MANUAL
        assert (look.standing, observed(look).resolved_by) == (Standing.GONE, by)
        await it.made.sweep("dead_letters")
        swept = it.made.known.letters[letter.id].dead_letter
        assert (swept.resolved_by, swept.resolved_at) == (by, observed(look).resolved_at)


@pytest.mark.parametrize("kind", ["person", "make"])
async def test_one_resolved_by_others_is_closed_exactly_as_the_sweep_would(kind: str) -> None:
    async with retries() as it:
        letter = await it.dead_letter()
        (it.made.sim.retry_by_person if kind == "person" else it.made.sim.retry_natively)(letter.id)
        await it.later()
        look = await it.adapter.look(Target(letter=letter))
        await it.made.sweep("dead_letters")
        assert look.standing is Standing.RESOLVED
        assert observed(look) == it.made.known.letters[letter.id].dead_letter
        assert observed(look).resolved_by is (ResolvedBy.MANUAL if kind == "person" else ResolvedBy.PLATFORM)
        assert it.evidence(letter) == (0, 0)


async def test_an_answer_about_another_dead_letter_is_not_believed() -> None:
    async with retries() as it:
        letter = await it.dead_letter()
        it.made.sim.fail_next("ok_html")
        with pytest.raises(ApiError) as failed:
            await it.adapter.look(Target(letter=letter))
        assert failed.value.kind is ErrorKind.BAD_PAYLOAD


# A call and what becomes of it


async def test_an_accepted_retry_succeeds_once_its_row_shows() -> None:
    async with retries() as it:
        letter = await it.dead_letter()
        it.made.sim.plan_retries("success")
        target = await it.send(letter)
        assert target.handle == letter.id
        assert said(await it.adapter.look(target)) == (Standing.DEAD, [])  # queued: the API does not tell
        await it.later()
        it.made.asked()
        look = await it.adapter.look(target)
        assert it.made.asked() == Counter(LOOKS)
        assert said(look) == (Standing.RESOLVED, [(Result.SUCCESS, True)])
        [effort] = look.efforts
        assert effort.began_at is not None
        assert effort.ended_at is not None
        assert target.sent_at is not None
        assert target.sent_at < effort.began_at < effort.ended_at == observed(look).resolved_at
        assert it.evidence(letter) == (1, 1)


async def test_a_retry_that_shows_while_it_runs_is_busy_for_everybody() -> None:
    async with retries(pending_rows=True, settings={"duration": 600.0}) as it:
        letter = await it.dead_letter()
        it.made.sim.plan_retries("success")
        target = await it.send(letter)
        await it.later(10)
        assert said(await it.adapter.look(target)) == (Standing.BUSY, [(None, True)])
        assert said(await it.adapter.look(Target(letter=letter))) == (Standing.BUSY, [])
        await it.later(900)
        assert said(await it.adapter.look(target)) == (Standing.RESOLVED, [(Result.SUCCESS, True)])


async def test_a_retry_that_fails_again_leaves_it_dead() -> None:
    async with retries() as it:
        letter = await it.dead_letter()
        it.made.sim.plan_retries("failure")
        target = await it.send(letter)
        await it.later()
        look = await it.adapter.look(target)
        assert said(look) == (Standing.DEAD, [(Result.FAILURE, True)])
        assert observed(look).is_open
        assert observed(look).tries == 1


async def test_one_that_breaks_at_a_later_module_leads_to_the_dead_letter_it_leaves_behind() -> None:
    async with retries() as it:
        letter = await it.dead_letter()
        it.made.sim.plan_retries("other_module")
        target = await it.send(letter)
        await it.later()
        look = await it.adapter.look(target)
        assert said(look) == (Standing.RESOLVED, [(Result.FAILURE, True)])
        await it.later(300)  # one closed and one opened: the number of the scenario's dead letters tells nothing
        await it.made.sweep("dead_letters")
        [left] = it.made.known.dead_letters.values()
        assert left.id != letter.id
        assert left.run_id == look.efforts[0].run_id


async def test_several_go_in_one_call_by_their_ids_only_and_each_has_its_own_effect() -> None:
    async with retries() as it:
        letters = [await it.dead_letter() for _ in range(3)]
        spared = await it.dead_letter()
        looks = [await it.adapter.look(Target(letter=letter)) for letter in letters]
        it.made.asked()
        sent_at = it.made.api.platform_now()
        accepted = await it.adapter.send(letters, send_by=it.made.clock.now() + 10)
        assert it.made.asked() == Counter({BULK: 1})
        assert accepted == Accepted(handles={letter.id: letter.id for letter in letters})
        await it.later(120)
        for letter, look in zip(letters, looks, strict=True):
            after = await it.adapter.look(Target(letter=letter, mark=look.mark, sent_at=sent_at, handle=letter.id))
            assert [effort.ours for effort in after.efforts] == [True]
            assert it.evidence(letter) == (1, 1)
        assert it.evidence(spared) == (0, 0)


async def test_what_a_bulk_answer_does_not_name_is_not_accepted() -> None:
    async with retries() as it:
        first, second = await it.dead_letter(), await it.dead_letter()
        it.made.sim.retry_by_person(second.id)
        accepted = await it.adapter.send([first, second], send_by=it.made.clock.now() + 10)
        assert accepted == Accepted(handles={first.id: first.id})


@pytest.mark.parametrize("fate", ["cut", "error"])
@pytest.mark.parametrize("outcome", ["success", "failure"])
async def test_a_call_whose_answer_is_lost_happened_once_and_is_found_by_its_effect(
    fate: Any, outcome: Outcome
) -> None:
    async with retries() as it:
        letter = await it.dead_letter()
        it.made.sim.plan_retries(RetryPlan(fate=fate, outcome=outcome))
        target = await it.send(letter)
        assert target.handle is None
        await it.later()
        look = await it.adapter.look(target)
        assert [(effort.result, effort.ours) for effort in look.efforts] == [(Result(outcome), True)]
        assert it.evidence(letter) == (1, 1)


async def test_an_accepted_retry_that_never_runs_shows_nothing_however_long_one_waits() -> None:
    async with retries() as it:
        letter = await it.dead_letter()
        it.made.sim.plan_retries(RetryPlan(fate="lost"))
        target = await it.send(letter)
        await it.later(20 * HOUR)
        assert said(await it.adapter.look(target)) == (Standing.DEAD, [])
        assert it.evidence(letter) == (1, 0)


async def test_a_late_effect_shows_late_and_is_still_ours() -> None:
    async with retries() as it:
        letter = await it.dead_letter()
        it.made.sim.plan_retries(RetryPlan(fate="cut", outcome="success", delay=2 * HOUR))
        target = await it.send(letter)
        await it.later(HOUR)
        assert said(await it.adapter.look(target)) == (Standing.DEAD, [])
        await it.later(HOUR + 60)
        assert said(await it.adapter.look(target)) == (Standing.RESOLVED, [(Result.SUCCESS, True)])


@pytest.mark.parametrize(("status", "kind"), [(400, ErrorKind.REQUEST), (404, ErrorKind.NOT_FOUND)])
async def test_a_refusal_is_an_error_that_is_definite(status: int, kind: ErrorKind) -> None:
    async with retries(retry_refused=status) as it:
        letter = await it.dead_letter()
        it.made.sim.retry_by_person(letter.id)
        with pytest.raises(ApiError) as refused:
            await it.adapter.send([letter], send_by=it.made.clock.now() + 10)
        assert (refused.value.kind, refused.value.status) == (kind, status)
        assert it.evidence(letter) == (1, 0)


async def test_a_call_is_made_once_whatever_comes_of_it_and_never_after_its_time() -> None:
    async with retries() as it:
        letter = await it.dead_letter()
        it.made.asked()
        for fault in ("unavailable", "server_error_html", "rate_limited", "truncated"):
            it.made.sim.fail_next(fault)
            with pytest.raises(ApiError) as failed:
                await it.adapter.send([letter], send_by=it.made.clock.now() + 10)
            assert failed.value.sent
            assert it.made.asked() == Counter({SINGLE: 1})
        with pytest.raises(ApiError) as late:
            await it.adapter.send([letter], send_by=it.made.clock.now() - 1)
        assert not late.value.sent
        assert it.made.asked() == Counter()


async def test_a_token_without_the_right_is_refused() -> None:
    async with retries(scopes=("scenarios:read", "dlqs:read", "organizations:read", "hooks:read")) as it:
        letter = await it.dead_letter()
        with pytest.raises(ApiError) as refused:
            await it.adapter.send([letter], send_by=it.made.clock.now() + 10)
        assert refused.value.kind is ErrorKind.AUTH


# Whose effect it is


async def test_make_s_own_retry_meanwhile_is_certainly_not_ours() -> None:
    async with retries() as it:
        letter = await it.dead_letter()
        it.made.sim.plan_retries(RetryPlan(fate="lost"))
        target = await it.send(letter)
        it.made.sim.retry_natively(letter.id)
        await it.later()
        assert said(await it.adapter.look(target)) == (Standing.RESOLVED, [(Result.SUCCESS, False)])
        assert it.evidence(letter) == (1, 0)


async def test_a_person_s_retry_beside_ours_makes_both_unclear() -> None:
    async with retries() as it:
        letter = await it.dead_letter()
        it.made.sim.plan_retries("failure")
        target = await it.send(letter)
        await it.later()
        it.made.sim.retry_by_person(letter.id)
        await it.later()
        look = await it.adapter.look(target)
        assert said(look) == (Standing.RESOLVED, [(Result.FAILURE, None), (Result.SUCCESS, None)])


async def test_a_person_s_retry_a_moment_before_ours_which_is_refused() -> None:
    async with retries() as it:
        letter = await it.dead_letter()
        it.made.sim.plan_retries(RetryPlan(fate="beaten", outcome="success"))
        with pytest.raises(ApiError) as refused:
            await it.adapter.send([letter], send_by=it.made.clock.now() + 10)
        assert refused.value.status == 400
        assert it.evidence(letter) == (1, 0)


@pytest.mark.parametrize(("author", "ours"), [(7, None), (1, True), (None, True)], ids=["another", "self", "nobody"])
async def test_an_attempt_by_another_author_is_nobody_s_to_claim(author: int | None, ours: bool | None) -> None:
    async with retries() as it:
        letter = await it.dead_letter()
        it.made.sim.plan_retries(RetryPlan(fate="lost"))
        target = await it.send(letter)
        it.made.sim.retry_by_person(letter.id, author_id=author)
        await it.later()
        it.made.asked()
        assert said(await it.adapter.look(target)) == (Standing.RESOLVED, [(Result.SUCCESS, ours)])
        await it.adapter.look(target)
        assert it.made.asked()["GET /users/me"] == (0 if author is None else 1)


async def test_an_attempt_that_began_well_before_the_call_is_not_ours() -> None:
    async with retries(settings={"duration": 600.0}) as it:
        letter = await it.dead_letter()
        before = await it.adapter.look(Target(letter=letter))
        it.made.sim.retry_by_person(letter.id)
        await it.later()
        sent_at = it.made.api.platform_now()
        await it.later(900)
        look = await it.adapter.look(Target(letter=letter, mark=before.mark, sent_at=sent_at))
        assert said(look) == (Standing.RESOLVED, [(Result.SUCCESS, False)])
