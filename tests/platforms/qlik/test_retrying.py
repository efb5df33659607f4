"""Retrying Qlik's dead letters: what a look says before and after a call, against the simulator, over real HTTP."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from exporter.model import DeadLetter, Result, Run
from exporter.platform.retrying import Look, Standing, Target
from exporter.platforms.qlik.retrying import QlikRetries
from exporter.simulator.retries import RetryPlan
from exporter.wire.errors import ApiError, ErrorKind
from tests.platforms.qlik.tenant import START, Tenant, tenant


@pytest.fixture
async def made() -> AsyncIterator[Tenant]:
    async with tenant(workflows=0) as made:
        yield made


async def failed(made: Tenant, **settings: Any) -> tuple[str, DeadLetter, QlikRetries]:
    """An automation with one failed run that the sweeps have found, and the adapter."""
    workflow = made.simulator.add_workflow(name="Invoices", **settings)
    await made.sweep()
    made.simulator.add_run(
        workflow,
        started_at=made.clock.now() + 1,
        ended_at=made.clock.now() + 10,
        result="failure",
        error_class="network",
    )
    await made.pass_time(60)
    await made.sweep()
    [letter] = made.known.dead_letters.values()
    return workflow, letter, QlikRetries(made.config, made.api)


async def sent(made: Tenant, adapter: QlikRetries, letter: DeadLetter) -> Target:
    before = await adapter.look(Target(letter=letter))
    assert (before.standing, before.refusal, list(before.efforts)) == (Standing.DEAD, None, [])
    sent_at = made.api.platform_now()
    try:
        accepted = await adapter.send([letter], send_by=made.clock.now() + 10)
        assert accepted.handles == {letter.id: None}
    except ApiError as error:
        if not error.sent:
            raise
    return Target(letter=letter, mark=before.mark, sent_at=sent_at)


async def test_what_somebody_tries_in_the_editor_is_nobodys_retry(made: Tenant) -> None:
    workflow, letter, adapter = await failed(made)
    made.simulator.plan_retries("failure")
    target = await sent(made, adapter, letter)
    at = made.clock.now()
    for context in ("editor", "test_run", "lookup"):
        made.simulator.add_run(workflow, started_at=at + 1, ended_at=at + 2, context=context)
    look = await settled(made, adapter, target)
    assert [(effort.ours, effort.result) for effort in look.efforts] == [(True, Result.FAILURE)]
    assert look.standing is Standing.DEAD, "a success in the editor has done nothing of the work"


async def test_a_dead_letter_of_a_test_that_was_opened_long_ago_is_never_retried(made: Tenant) -> None:
    workflow = made.simulator.add_workflow()
    run_id = made.simulator.add_run(
        workflow, started_at=START - 9, ended_at=START - 5, result="failure", error="platform", context="editor"
    )
    letter = DeadLetter(id=run_id, workflow_id=workflow, run_id=run_id, opened_at=START - 5)
    look = await QlikRetries(made.config, made.api).look(Target(letter=letter))
    assert look.refusal is not None


async def settled(made: Tenant, adapter: QlikRetries, target: Target, seconds: float = 3600) -> Look:
    await made.pass_time(seconds)
    return await adapter.look(target)


@pytest.mark.parametrize(("outcome", "result"), [("success", Result.SUCCESS), ("failure", Result.FAILURE)])
async def test_the_one_new_run_is_ours(made: Tenant, outcome: str, result: Result) -> None:
    _, letter, adapter = await failed(made)
    made.simulator.plan_retries(outcome)
    target = await sent(made, adapter, letter)
    look = await settled(made, adapter, target)
    [effort] = look.efforts
    assert (effort.ours, effort.result, effort.run_id == effort.id) == (True, result, True)
    assert look.standing is (Standing.RESOLVED if outcome == "success" else Standing.DEAD)
    told = [claim for claim in look.observations if isinstance(claim, Run)]
    assert effort.run_id in {run.id for run in told}
    letters = {claim.id for claim in look.observations if isinstance(claim, DeadLetter)}
    assert (effort.run_id in letters) == (outcome == "failure")
    assert (made.simulator.retry_calls[letter.id], made.simulator.retry_executions[letter.id]) == (1, 1)


@pytest.mark.parametrize("fate", ["cut", "error"])
async def test_an_effect_whose_answer_was_lost_is_found(made: Tenant, fate: Any) -> None:
    _, letter, adapter = await failed(made)
    made.simulator.plan_retries(RetryPlan(outcome="success", fate=fate))
    target = await sent(made, adapter, letter)
    [effort] = (await settled(made, adapter, target)).efforts
    assert (effort.ours, effort.result) == (True, Result.SUCCESS)


async def test_a_call_that_came_to_nothing_shows_nothing(made: Tenant) -> None:
    _, letter, adapter = await failed(made)
    made.simulator.plan_retries(RetryPlan(fate="lost"))
    target = await sent(made, adapter, letter)
    look = await settled(made, adapter, target)
    assert (look.standing, list(look.efforts)) == (Standing.DEAD, [])


async def test_of_two_new_runs_nobody_can_tell(made: Tenant) -> None:
    _, letter, adapter = await failed(made)
    made.simulator.plan_retries(RetryPlan(outcome="failure", fate="beaten"))
    target = await sent(made, adapter, letter)
    look = await settled(made, adapter, target)
    assert [effort.ours for effort in look.efforts] == [None, None]


async def test_a_run_that_comes_long_after_the_call_may_be_anybodys(made: Tenant) -> None:
    _, letter, adapter = await failed(made)
    made.simulator.plan_retries(RetryPlan(outcome="success", delay=600.0))
    target = await sent(made, adapter, letter)
    [effort] = (await settled(made, adapter, target)).efforts
    assert effort.ours is None


async def test_a_running_automation_is_busy_and_a_disabled_one_refuses(made: Tenant) -> None:
    workflow, letter, adapter = await failed(made)
    made.simulator.add_run(workflow, started_at=made.clock.now(), ended_at=None, result="success")
    await made.pass_time(30)
    assert (await adapter.look(Target(letter=letter))).standing is Standing.BUSY
    made.simulator.set_enabled(workflow, False)
    assert (await adapter.look(Target(letter=letter))).refusal == "the automation is disabled"


async def test_what_is_gone_is_gone(made: Tenant) -> None:
    workflow, letter, adapter = await failed(made)
    assert (await adapter.look(Target(letter=letter))).standing is Standing.DEAD
    made.simulator.delete_workflow(workflow)
    assert (await adapter.look(Target(letter=letter))).standing is Standing.GONE


async def test_what_our_call_made_is_seen_when_the_failed_run_is_gone_meanwhile() -> None:
    async with tenant(workflows=0, runs_max=1) as made:
        _, letter, adapter = await failed(made)
        made.simulator.plan_retries("failure")
        target = await sent(made, adapter, letter)
        look = await settled(made, adapter, target)
        [effort] = look.efforts
        assert (look.standing, effort.ours, effort.result) == (Standing.GONE, True, Result.FAILURE)


async def test_a_missing_right_and_a_late_call_are_told_apart(made: Tenant) -> None:
    workflow, letter, adapter = await failed(made)
    made.simulator.set_enabled(workflow, False)
    with pytest.raises(ApiError) as refused:
        await adapter.send([letter], send_by=made.clock.now() + 10)
    assert (refused.value.status, refused.value.sent) == (403, True)
    with pytest.raises(ApiError) as late:
        await adapter.send([letter], send_by=START - 1)
    assert (late.value.kind, late.value.sent) == (ErrorKind.TIMEOUT, False)
    assert made.simulator.retry_executions[letter.id] == 0
