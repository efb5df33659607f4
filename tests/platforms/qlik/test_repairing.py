"""Stopping a run on Qlik: plan, call and proof, against the simulator, over real HTTP."""

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from exporter.model import Result, Run
from exporter.model.repairs import Proof, RepairAction
from exporter.platform.repairing import Case, Effect, Repairs
from exporter.platforms.qlik import PLATFORM
from exporter.simulator.qlik import OWNER
from exporter.simulator.repairs import RepairPlan
from exporter.wire.errors import ApiError, ErrorKind
from tests.platforms.qlik.tenant import API, START, Tenant, counting, tenant

HOUR = 3600.0
STOP = f"POST {API}/{{id}}/runs/{{runId}}/actions/stop"


@pytest.fixture
async def made() -> AsyncIterator[Tenant]:
    async with tenant(workflows=0) as made:
        made.reconfigure(grant=["stop"])
        yield made


def repairs(made: Tenant) -> Repairs:
    assert PLATFORM.repairing is not None
    return PLATFORM.repairing.connect(made.config, made.api)


def hanging(made: Tenant, *, owner_id: str = OWNER, **how: Any) -> Case:
    """A run that has been running for three hours."""
    workflow = made.simulator.add_workflow(name="Invoices", owner_id=owner_id)
    run_id = made.simulator.add_run(workflow, started_at=START - 3 * HOUR, ended_at=None, **how)
    return Case(action=RepairAction.STOP, workflow_id=workflow, id=run_id)


async def planned(made: Tenant, case: Case) -> Case:
    plan = await repairs(made).plan(case)
    assert plan.refusal is None, plan
    return replace(case, mark=plan.mark)


async def failed(made: Tenant, case: Case, *, send_by: float = 10.0) -> ApiError:
    with pytest.raises(ApiError) as error:
        await repairs(made).repair([case], send_by=made.clock.now() + send_by)
    return error.value


async def effect(made: Tenant, case: Case) -> Effect:
    return await repairs(made).verify(replace(case, sent_at=made.api.platform_now()))


async def test_a_run_that_hangs_is_stopped_and_says_so_after_a_while(made: Tenant) -> None:
    plan = await repairs(made).plan(hanging(made))
    assert plan.does.startswith("stop the run, which has been running for 3 h 0 min; ")
    case = await planned(made, hanging(made))
    with counting(made) as spent:
        answered = await repairs(made).repair([case], send_by=made.clock.now() + 10)
    assert (dict(answered.handles), spent[STOP]) == ({case.id: None}, 1)
    assert (await effect(made, case)).proof is Proof.NOT_DONE
    await made.pass_time(30)
    after = await effect(made, case)
    assert (after.proof, after.evidence) == (Proof.DONE, "Qlik says that it is stopped")
    [run] = after.observations
    assert isinstance(run, Run)
    assert run.result is Result.CANCELLED


async def test_without_the_grant_no_request_is_made(made: Tenant) -> None:
    made.reconfigure()
    case = hanging(made)
    with counting(made) as spent:
        plan = await repairs(made).plan(case)
        error = await failed(made, replace(case, mark={}))
    assert plan.refusal is not None
    assert "add stop to grant" in plan.refusal
    assert (error.sent, spent) == (False, Counter())


@pytest.mark.parametrize("result", ["success", "failure"])
async def test_a_run_that_ended_by_itself_is_not_stopped(made: Tenant, result: str) -> None:
    workflow = made.simulator.add_workflow()
    run_id = made.simulator.add_run(workflow, started_at=START - 60, ended_at=START + 60, result=result)
    case = await planned(made, Case(action=RepairAction.STOP, workflow_id=workflow, id=run_id))
    await made.pass_time(120)
    assert (await repairs(made).plan(case)).refusal == f"the run has ended as {result}"
    with counting(made) as spent:
        error = await failed(made, case)
    assert (error.kind, error.sent, spent[STOP]) == (ErrorKind.CONFLICT, False, 0)
    after = await effect(made, case)
    assert (after.proof, after.evidence) == (Proof.DONE, f"it has ended by itself, as {result}")


async def test_what_somebody_tries_out_is_left_alone(made: Tenant) -> None:
    assert (await repairs(made).plan(hanging(made, context="editor"))).refusal is not None


async def test_a_run_of_another_owner_is_not_ours_to_stop(made: Tenant) -> None:
    case = hanging(made, owner_id="somebody-else")
    assert "takes its owner's key" in str((await repairs(made).plan(case)).refusal)
    error = await failed(made, replace(case, mark={}))
    assert (error.status, error.sent) == (403, False)


async def test_a_run_that_is_no_more_is_neither_planned_nor_proven(made: Tenant) -> None:
    case = hanging(made)
    made.simulator.delete_workflow(case.workflow_id)
    assert (await repairs(made).plan(case)).refusal == "the run is gone"
    assert (await effect(made, case)).proof is Proof.UNKNOWN


@pytest.mark.parametrize(("status", "kind"), [(403, ErrorKind.AUTH), (400, ErrorKind.REQUEST)])
async def test_a_refusal_is_told_and_the_run_goes_on(made: Tenant, status: int, kind: ErrorKind) -> None:
    case = await planned(made, hanging(made))
    made.simulator.plan_repairs(RepairPlan(fate="refused", status=status))
    error = await failed(made, case)
    assert (error.kind, error.status, error.sent) == (kind, status, True)
    await made.pass_time(30)
    assert (await effect(made, case)).proof is Proof.NOT_DONE


@pytest.mark.parametrize(("fate", "happened"), [("unheard", False), ("cut", True), ("error", True)])
async def test_a_call_without_an_answer_is_made_once_and_reading_shows_its_effect(
    made: Tenant, fate: Any, happened: bool
) -> None:
    case = await planned(made, hanging(made))
    made.simulator.plan_repairs(RepairPlan(fate=fate))
    with counting(made) as spent:
        error = await failed(made, case)
    assert (error.sent, spent[STOP]) == (True, 1)
    await made.pass_time(30)
    assert (await effect(made, case)).proof is (Proof.DONE if happened else Proof.NOT_DONE)


async def test_a_good_answer_that_came_to_nothing_shows(made: Tenant) -> None:
    case = await planned(made, hanging(made))
    made.simulator.plan_repairs(RepairPlan(fate="lost"))
    await repairs(made).repair([case], send_by=made.clock.now() + 10)
    await made.pass_time(30)
    assert (await effect(made, case)).proof is Proof.NOT_DONE


async def test_the_check_says_what_nobody_tells(made: Tenant) -> None:
    lines = [str(line) async for line in made.client.check()]
    assert lines[-1].startswith("note: stop is granted and takes its owner's key, or the scope admin.automations; ")


async def test_nothing_is_sent_after_its_time_or_after_a_read_that_failed(made: Tenant) -> None:
    case = await planned(made, hanging(made))
    with counting(made) as spent:
        late = await failed(made, case, send_by=-1.0)
        made.simulator.fail_next("ok_html")
        unread = await failed(made, case)
    assert (late.sent, unread.sent, unread.kind, spent[STOP]) == (False, False, ErrorKind.BAD_PAYLOAD, 0)
