"""What the Make and Cognaize simulators do with planned retries, and what they count as evidence, over real HTTP."""

from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer

from exporter.clock import ManualClock
from exporter.simulator.cognaize import CognaizeSimulator
from exporter.simulator.retries import RetryPlan
from tests.simulator.make_client import serving

START = 1_768_456_800.0
FATES = ("done", "lost", "cut", "error", "beaten")


@pytest.mark.parametrize("fate", FATES)
async def test_make_answers_and_executes_as_planned(fate: Any) -> None:
    async with serving() as api:
        letter_id = api.sim.add_dead_letter(api.sim.add_workflow())
        api.sim.plan_retries(RetryPlan(fate=fate, outcome="failure", delay=100.0))
        if fate == "cut":
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await api.call("POST", f"/dlqs/{letter_id}/retry")
        else:
            answer = await api.call("POST", f"/dlqs/{letter_id}/retry")
            assert answer.status == {"error": 500, "beaten": 400}.get(fate, 200)
        await api.clock.advance(100)
        assert (await api.dead_letter(letter_id))["attempts"] == 0
        await api.clock.advance(30)
        assert (await api.dead_letter(letter_id))["attempts"] == (0 if fate == "lost" else 1)
        assert api.sim.retry_calls == {letter_id: 1}
        assert api.sim.retry_executions[letter_id] == (0 if fate in ("lost", "beaten") else 1)


async def test_make_counts_every_call_that_names_a_dead_letter_and_only_executions_by_api() -> None:
    async with serving() as api:
        workflow_id = api.sim.add_workflow()
        first, second, third = (api.sim.add_dead_letter(workflow_id, outcomes=("failure",)) for _ in range(3))
        api.sim.retry_by_person(third)
        api.sim.plan_retries("failure")  # one plan for all that one call names
        answer = await api.call("POST", "/dlqs/retry", {"ids": [first, second, third]}, scenarioId=workflow_id)
        assert answer.json == {"dlqs": [first, second]}
        await api.call("POST", f"/dlqs/{first}/retry")
        await api.clock.advance(60)
        api.sim.retry_natively(second)
        await api.clock.advance(60)
        assert (await api.dead_letter(second))["resolved"]
        assert api.sim.retry_calls == {first: 2, second: 1, third: 1}
        assert +api.sim.retry_executions == {first: 1, second: 1}


async def test_an_edit_shows_and_nobody_retries_what_is_not_stored() -> None:
    async with serving() as api:
        workflow_id = api.sim.add_workflow()
        before = (await api.scenario(workflow_id))["lastEdit"]
        await api.clock.advance(60)
        letter_id = api.sim.add_dead_letter(workflow_id)
        assert (await api.scenario(workflow_id))["lastEdit"] == before
        api.sim.edit_workflow(workflow_id)
        assert (await api.scenario(workflow_id))["lastEdit"] > before
        api.sim.delete_dead_letter(letter_id)
        assert (await api.dead_letter(letter_id))["deleted"]
        with pytest.raises(ValueError, match="is deleted: nobody can retry it"):
            api.sim.retry_by_person(letter_id)


@pytest.mark.parametrize("fate", FATES)
async def test_cognaize_answers_and_restarts_as_planned(fate: Any) -> None:
    clock = ManualClock(START)
    sim = CognaizeSimulator(clock=clock, workflows=0)
    sim.add_workflow("wf-1")
    run_id = sim.add_run("wf-1", started_at=START, ended_at=START + 10, result="failure")
    await clock.advance(20)
    async with TestClient(TestServer(sim.app()), headers={"Authorization": "Bearer demo-token"}) as client:
        await client.get(f"/api/v1/processes/{run_id}")
        [letter] = sim.truth().dead_letters
        sim.plan_retries(RetryPlan(fate=fate, outcome="failure"))
        body = {"processStepId": f"{run_id}-s2", "params": {}}
        if fate == "cut":
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await client.post("/api/v1/processes/restart-failed-step", json=body)
        else:
            async with client.post("/api/v1/processes/restart-failed-step", json=body) as answer:
                assert answer.status == {"error": 500, "beaten": 412}.get(fate, 200)
        await clock.advance(60)
        await client.get(f"/api/v1/processes/{run_id}")
    assert len(sim.truth().runs) == (1 if fate == "lost" else 2)
    assert sim.retry_calls == {letter.dead_letter_id: 1}
    assert sim.retry_executions[letter.dead_letter_id] == (0 if fate in ("lost", "beaten") else 1)


def test_a_plan_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="success, failure, not other_module"):
        CognaizeSimulator(clock=ManualClock(START), workflows=0).plan_retries(RetryPlan(outcome="other_module"))
