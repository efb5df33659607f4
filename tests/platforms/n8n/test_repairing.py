"""Stopping an execution on n8n: plan, call and proof, against the simulator, over real HTTP."""

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from exporter.model import Result, Run
from exporter.model.repairs import Proof, RepairAction
from exporter.platform.repairing import Case, Effect, Repairs
from exporter.platforms.n8n import PLATFORM
from exporter.wire.errors import ApiError, ErrorKind
from tests.platforms.n8n.instance import START, Source, counting, instance

HOUR = 3600.0
STOP = "POST /api/v1/executions/{id}/stop"


@pytest.fixture
async def made() -> AsyncIterator[Source]:
    async with instance(workflows=0) as made:
        made.reconfigure(grant=["stop"])
        yield made


def repairs(made: Source) -> Repairs:
    assert PLATFORM.repairing is not None
    return PLATFORM.repairing.connect(made.config, made.api)


def hanging(made: Source, *, mode: str | None = None) -> Case:
    """An execution that has been running for three hours."""
    workflow = made.simulator.add_workflow()
    run_id = made.simulator.add_run(workflow, started_at=START - 3 * HOUR, ended_at=None, mode=mode)
    return Case(action=RepairAction.STOP, workflow_id=workflow, id=run_id)


async def planned(made: Source, case: Case) -> Case:
    plan = await repairs(made).plan(case)
    assert plan.refusal is None, plan
    return replace(case, mark=plan.mark)


async def failed(made: Source, case: Case, *, send_by: float = 10.0) -> ApiError:
    with pytest.raises(ApiError) as error:
        await repairs(made).repair([case], send_by=made.clock.now() + send_by)
    return error.value


async def effect(made: Source, case: Case) -> Effect:
    return await repairs(made).verify(replace(case, sent_at=made.api.platform_now()))


async def test_an_execution_that_hangs_is_stopped(made: Source) -> None:
    case = await planned(made, hanging(made))
    assert "under way since 180 min" in (await repairs(made).plan(case)).does
    assert (await effect(made, case)).proof is Proof.NOT_DONE
    with counting(made) as spent:
        answered = await repairs(made).repair([case], send_by=made.clock.now() + 10)
    assert (dict(answered.handles), spent[STOP]) == ({case.id: None}, 1)
    after = await effect(made, case)
    assert (after.proof, after.evidence) == (Proof.DONE, "n8n says that it is canceled")
    [run] = after.observations
    assert isinstance(run, Run)
    assert run.result is Result.CANCELLED


async def test_without_the_grant_no_request_is_made(made: Source) -> None:
    made.reconfigure()
    case = hanging(made)
    with counting(made) as spent:
        plan = await repairs(made).plan(case)
        error = await failed(made, replace(case, mark={}))
    assert "add stop to grant" in str(plan.refusal)
    assert (error.sent, spent) == (False, Counter())


@pytest.mark.parametrize("result", ["success", "failure"])
async def test_an_execution_that_ended_by_itself_is_not_stopped(made: Source, result: str) -> None:
    workflow = made.simulator.add_workflow()
    run_id = made.simulator.add_run(workflow, started_at=START - 60, ended_at=START + 60, result=result)
    case = await planned(made, Case(action=RepairAction.STOP, workflow_id=workflow, id=run_id))
    await made.pass_time(120)
    assert (await repairs(made).plan(case)).refusal == f"the execution has ended as {result}"
    with counting(made) as spent:
        error = await failed(made, case)
    assert (error.kind, error.sent, spent[STOP]) == (ErrorKind.CONFLICT, False, 0)
    assert (await effect(made, case)).evidence == f"it has ended by itself, as {result}"


async def test_what_somebody_tries_out_is_left_alone(made: Source) -> None:
    assert (await repairs(made).plan(hanging(made, mode="manual"))).refusal is not None


async def test_what_is_no_more_is_neither_planned_nor_proven(made: Source) -> None:
    case = replace(hanging(made), id="4711")
    assert (await repairs(made).plan(case)).refusal == "the execution is gone"
    assert (await effect(made, case)).proof is Proof.UNKNOWN


async def test_nothing_is_sent_after_its_time(made: Source) -> None:
    case = await planned(made, hanging(made))
    with counting(made) as spent:
        error = await failed(made, case, send_by=-1.0)
    assert (error.sent, spent[STOP]) == (False, 0)
