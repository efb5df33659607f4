"""Retrying Etlworks' dead letters: what a look says before and after a start, against the simulator, over real HTTP."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from exporter.model import DeadLetter, Result
from exporter.platform.retrying import Look, Standing, Target
from exporter.platforms.etlworks.retrying import EtlworksRetries
from exporter.simulator.retries import RetryPlan
from exporter.wire.errors import ApiError
from tests.platforms.etlworks.account import Account, account


@pytest.fixture(params=[0, 1])
async def made(request: pytest.FixtureRequest) -> AsyncIterator[Account]:
    """Of a start that worked the platform says that it was started, or that it is running."""
    async with account(started=request.param) as made:
        yield made


async def failed(made: Account) -> tuple[str, DeadLetter, EtlworksRetries]:
    """A flow whose last run failed, as the sweeps have found it, and the adapter."""
    flow = made.sim.add_workflow(name="orders to dwh")
    for stream in ("workflows", "runs"):
        await made.sweep(stream)
    now = made.clock.now()
    made.sim.add_run(flow, started_at=now + 1, ended_at=now + 10, result="failure", error="network")
    await made.live(3)
    [letter] = made.known.dead_letters.values()
    return flow, letter, EtlworksRetries(made.config, made.api)


async def sent(made: Account, adapter: EtlworksRetries, letter: DeadLetter) -> Target:
    before = await adapter.look(Target(letter=letter))
    assert (before.standing, before.refusal, before.native) == (Standing.DEAD, None, False)
    sent_at, handle = made.api.platform_now(), None
    try:
        handle = (await adapter.send([letter], send_by=made.clock.now() + 10)).handles.get(letter.id)
    except ApiError as error:
        if not error.sent:
            raise
    return Target(letter=letter, mark=before.mark, sent_at=sent_at, handle=handle)


async def settled(made: Account, adapter: EtlworksRetries, target: Target) -> Look:
    await made.clock.advance(7200)
    return await adapter.look(target)


@pytest.mark.parametrize(("outcome", "result"), [("success", Result.SUCCESS), ("failure", Result.FAILURE)])
async def test_the_execution_the_answer_named_is_ours(made: Account, outcome: str, result: Result) -> None:
    _, letter, adapter = await failed(made)
    made.sim.plan_retries(outcome)
    target = await sent(made, adapter, letter)
    assert target.handle is not None
    look = await settled(made, adapter, target)
    [effort] = look.efforts
    assert (effort.id, effort.ours, effort.result) == (target.handle, True, result)
    assert look.standing is (Standing.RESOLVED if outcome == "success" else Standing.DEAD)
    opened = {claim.id for claim in look.observations if isinstance(claim, DeadLetter)}
    assert opened == ({target.handle} if outcome == "failure" else set())
    assert (made.sim.retry_calls[letter.id], made.sim.retry_executions[letter.id]) == (1, 1)


@pytest.mark.parametrize("fate", ["cut", "error"])
async def test_without_its_answer_nobody_can_tell_whose_a_new_execution_is(made: Account, fate: Any) -> None:
    _, letter, adapter = await failed(made)
    made.sim.plan_retries(RetryPlan(outcome="success", fate=fate))
    target = await sent(made, adapter, letter)
    [effort] = (await settled(made, adapter, target)).efforts
    assert effort.ours is None


async def test_a_start_that_came_to_nothing_shows_nothing(made: Account) -> None:
    _, letter, adapter = await failed(made)
    made.sim.plan_retries(RetryPlan(fate="lost"))
    target = await sent(made, adapter, letter)
    look = await settled(made, adapter, target)
    assert (target.handle, look.standing, list(look.efforts)) == (None, Standing.DEAD, [])


async def test_a_flow_that_runs_is_busy_and_refuses_a_second_start() -> None:
    async with account(refusal=3) as made:
        flow, letter, adapter = await failed(made)
        made.sim.add_run(flow, started_at=made.clock.now(), ended_at=None, result="success")
        assert (await adapter.look(Target(letter=letter))).standing is Standing.BUSY
        with pytest.raises(ApiError) as refused:
            await adapter.send([letter], send_by=made.clock.now() + 10)
        assert (refused.value.status, refused.value.sent) == (409, True)
        assert made.sim.retry_executions[letter.id] == 0


async def test_the_execution_in_progress_is_not_taken_for_ours() -> None:
    async with account(refusal=1) as made:
        flow, letter, adapter = await failed(made)
        made.sim.add_run(flow, started_at=made.clock.now(), ended_at=None, result="success")
        assert (await adapter.look(Target(letter=letter))).standing is Standing.BUSY
        answer = await adapter.send([letter], send_by=made.clock.now() + 10)
        assert answer.handles == {}  # in doubt
        assert made.sim.retry_executions[letter.id] == 0


async def test_what_the_scheduler_started_is_not_ours_though_our_call_named_it() -> None:
    async with account(refusal=1) as made:
        flow, letter, adapter = await failed(made)
        before = await adapter.look(Target(letter=letter))
        sent_at = made.api.platform_now()
        slipped_in = made.sim.add_run(
            flow, started_at=made.clock.now(), ended_at=made.clock.now() + 60, result="failure", error="network"
        )
        answer = await adapter.send([letter], send_by=made.clock.now() + 10)
        assert answer.handles == {letter.id: slipped_in}
        target = Target(letter=letter, mark=before.mark, sent_at=sent_at, handle=slipped_in)
        [effort] = (await settled(made, adapter, target)).efforts
        assert (effort.id, effort.ours) == (slipped_in, False)


async def test_a_stopped_run_is_not_over_at_once_and_then_refuses(made: Account) -> None:
    flow, letter, adapter = await failed(made)
    now = made.clock.now()
    stopped = made.sim.add_run(flow, started_at=now, ended_at=None, result="success")
    made.sim.stop_run(stopped)
    await made.clock.advance(5)
    assert (await adapter.look(Target(letter=letter))).standing is Standing.BUSY


async def test_a_flow_that_is_gone_is_gone(made: Account) -> None:
    flow, letter, adapter = await failed(made)
    made.sim.delete_workflow(flow)
    assert (await adapter.look(Target(letter=letter))).standing is Standing.GONE
