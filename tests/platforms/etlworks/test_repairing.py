"""Running an Etlworks flow again with the parameters of the config: plan, call and proof, over real HTTP."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from exporter.model import DeadLetter
from exporter.model.repairs import Proof, RepairAction
from exporter.platform.repairing import Case, Effect, Repairs, case_of
from exporter.platforms.etlworks import PLATFORM
from exporter.simulator.retries import RetryPlan
from exporter.wire.errors import ApiError, ErrorKind
from tests.platforms.etlworks.account import Account, account

FLOW = "1001"
PARAMETERS = [{"name": "day", "value": "yesterday"}, {"name": "key", "secret": "a-secret-of-the-flow"}]
CONFIG = {"grant": ["rerun"], "rerun_parameters": {FLOW: PARAMETERS}}


@pytest.fixture(params=[0, 1])
async def made(request: pytest.FixtureRequest) -> AsyncIterator[Account]:
    """Of a start that worked the platform says that it was started, or that it is running."""
    async with account(started=request.param, config=CONFIG) as made:
        yield made


def repairs(made: Account) -> Repairs:
    assert PLATFORM.repairing is not None
    return PLATFORM.repairing.connect(made.config, made.api)


async def failed_run(made: Account, flow: str = FLOW) -> DeadLetter:
    """A flow whose last run failed, as the sweeps have found it."""
    made.sim.add_workflow(flow)
    for stream in ("workflows", "runs"):
        await made.sweep(stream)
    now = made.clock.now()
    made.sim.add_run(flow, started_at=now + 1, ended_at=now + 10, result="failure", error="network")
    await made.live(3)
    [letter] = made.known.dead_letters.values()
    return letter


async def planned(made: Account, it: Repairs, **how: Any) -> Case:
    case = case_of(RepairAction.RERUN, await failed_run(made, **how))
    plan = await it.plan(case)
    assert plan.refusal is None, plan
    assert list(plan.changes) == ["parameter day", "parameter key"]
    assert "a-secret" not in str(plan)
    return replace(case, mark=plan.mark)


async def sent(made: Account, it: Repairs, case: Case) -> Case:
    sent_at, handle = made.api.platform_now(), None
    try:
        handle = (await it.repair([case], send_by=made.clock.now() + 10)).handles.get(case.id)
    except ApiError as error:
        if not error.sent:
            raise
    return replace(case, sent_at=sent_at, handle=handle)


async def effect(made: Account, it: Repairs, case: Case, seconds: float = 7200) -> Effect:
    await made.clock.advance(seconds)
    return await it.verify(case)


@pytest.mark.parametrize(("outcome", "proof"), [("success", Proof.DONE), ("failure", Proof.NOT_DONE)])
async def test_the_flow_is_run_with_its_parameters_and_the_run_proves_it(
    made: Account, outcome: str, proof: Proof
) -> None:
    it = repairs(made)
    case = await planned(made, it)
    made.sim.plan_retries(outcome)
    case = await sent(made, it, case)
    assert case.handle is not None
    assert list(made.sim.world.parameters) == [{"day": "yesterday", "key": "a-secret-of-the-flow"}]
    assert (await effect(made, it, case, 0)).proof is Proof.UNKNOWN
    after = await effect(made, it, case)
    assert (after.proof, after.evidence, after.run_id) == (proof, f"run {case.handle} ended as {outcome}", case.handle)


async def test_a_second_run_meanwhile_is_not_taken_for_ours(made: Account) -> None:
    it = repairs(made)
    case = await planned(made, it)
    await made.clock.advance(3600)
    now = made.clock.now()
    made.sim.add_run(FLOW, started_at=now - 60, ended_at=now - 30, result="failure", error="network")
    made.sim.plan_retries("success")
    case = await sent(made, it, case)
    after = await effect(made, it, case)
    assert (after.proof, after.run_id) == (Proof.DONE, case.handle)


@pytest.mark.parametrize("fate", ["cut", "error"])
async def test_without_its_answer_nobody_can_tell_whose_a_run_is(made: Account, fate: Any) -> None:
    it = repairs(made)
    case = await planned(made, it)
    made.sim.plan_retries(RetryPlan(outcome="success", fate=fate))
    after = await effect(made, it, await sent(made, it, case))
    assert (after.proof, after.evidence) == (Proof.UNKNOWN, "it was run since, and nothing says by whom")
    assert sum(made.sim.retry_calls.values()) == 1


async def test_a_start_that_came_to_nothing_shows_nothing(made: Account) -> None:
    it = repairs(made)
    case = await planned(made, it)
    made.sim.plan_retries(RetryPlan(fate="lost"))
    after = await effect(made, it, await sent(made, it, case))
    assert (after.proof, after.evidence) == (Proof.NOT_DONE, "the flow was not run since")


async def test_a_flow_that_runs_meanwhile_is_not_started(made: Account) -> None:
    it = repairs(made)
    case = await planned(made, it)
    made.sim.add_run(FLOW, started_at=made.clock.now(), ended_at=None, result="success")
    assert (await it.plan(case)).refusal == "the flow is running"
    with pytest.raises(ApiError) as error:
        await it.repair([case], send_by=made.clock.now() + 10)
    assert (error.value.kind, error.value.sent) == (ErrorKind.CONFLICT, False)
    assert not made.sim.world.parameters


async def test_one_that_succeeded_since_is_not_run_again(made: Account) -> None:
    it = repairs(made)
    case = await planned(made, it)
    made.sim.add_run(FLOW, started_at=made.clock.now(), ended_at=made.clock.now() + 5)
    await made.clock.advance(60)
    assert (await it.plan(case)).refusal == "a later run of the flow succeeded"


async def test_a_flow_without_parameters_of_its_own_is_not_rerun(made: Account) -> None:
    case = case_of(RepairAction.RERUN, await failed_run(made, flow="1002"))
    plan = await repairs(made).plan(case)
    assert plan.refusal == "rerun_parameters of this source names no parameters for flow 1002"


async def test_a_plan_does_not_outlive_the_parameters_it_named(made: Account) -> None:
    case = await planned(made, repairs(made))
    made.config = made.config.model_copy(update={"rerun_parameters": {FLOW: made.config.rerun_parameters[FLOW][:1]}})
    with pytest.raises(ApiError) as error:
        await repairs(made).repair([case], send_by=made.clock.now() + 10)
    assert (error.value.kind, error.value.sent) == (ErrorKind.CONFLICT, False)


async def test_without_the_grant_no_request_is_made() -> None:
    async with account(config={"rerun_parameters": {FLOW: PARAMETERS}}) as made:
        letter = await failed_run(made)
        made.asked()
        it, case = repairs(made), replace(case_of(RepairAction.RERUN, letter), mark={})
        assert "add rerun to grant" in str((await it.plan(case)).refusal)
        with pytest.raises(ApiError) as error:
            await it.repair([case], send_by=made.clock.now() + 10)
        assert (error.value.sent, made.asked()) == (False, 0)


async def test_the_check_says_what_nobody_tells(made: Account) -> None:
    lines = [str(line) async for line in made.client.check()]
    assert lines[-1].startswith("note: rerun is granted and takes a role that may run flows; ")


async def test_nothing_is_sent_after_its_time_or_after_a_read_that_failed(made: Account) -> None:
    it = repairs(made)
    case = await planned(made, it)
    for send_by, fault in ((-1.0, ()), (10.0, ("ok_html",))):
        made.sim.fail_next(*fault)
        with pytest.raises(ApiError) as error:
            await it.repair([case], send_by=made.clock.now() + send_by)
        assert not error.value.sent
    assert not made.sim.world.parameters
