"""Failed runs of Make that nothing stored, from the failure to its repair: the whole service against the simulator."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from exporter.model.retries import Outcome, RetryState
from exporter.simulator.retries import RetryPlan
from tests.e2e.deployment import Deployment, deployment

RETRIES = 2


@asynccontextmanager
async def replaying(
    folder: Path, *, rerun: str = "allow", mode: str = "enforce", **options: Any
) -> AsyncIterator[tuple[Deployment, Any, str]]:
    """A deployment that replays what one scenario of it loses."""
    policy = {
        "name": "anew",
        "action": "retry",
        "match": {"error.class": ["validation", "unknown"]},
        "retry": {
            "retries": RETRIES,
            "backoff": {"first": "1m", "factor": 1, "jitter": 0.0},
            "give_up_after": "30d",
            "rerun": rerun,
        },
        "verify": {"deadline": "1h"},
    }
    async with deployment(
        folder,
        platforms=["make"],
        workflows=0,
        options={"make": {"api_limit": 60_000, **options}},
        changes={"retries": {"mode": mode, "policies": [policy]}},
    ) as made:
        await made.stop()
        made.config.sources["make"] = made.config.sources["make"].model_copy(update={"replay": True})
        await made.start()
        make: Any = made.fleet.simulators["make"]
        workflow = make.add_workflow(name="Order sync", store=False, errors=("DataError",), max_errors=100)
        await made.sweep()
        yield made, make, workflow


def fails(made: Deployment, make: Any, workflow: str) -> str:
    """A run that fails within seconds."""
    now = made.clock.now()
    run_id: str = make.add_run(workflow, started_at=now + 1, ended_at=now + 5, result="failure", error="DataError")
    return run_id


async def resolved(made: Deployment) -> dict[str, float]:
    found = await made.samples("automation_dead_letters_resolved_total")
    return {key[-1]: value for key, value in found.items() if value}


async def test_what_nothing_stored_is_replayed_and_resolved_by_retry(tmp_path: Path) -> None:
    async with replaying(tmp_path) as (made, make, workflow):
        make.plan_retries("success")
        run_id = fails(made, make, workflow)
        await made.live(400, step=20, retry=True)
        [retry] = made.service.book.everything()
        assert (retry.outcome, retry.root) == (Outcome.SUCCEEDED, run_id), retry.detail
        assert (make.retry_calls[run_id], make.retry_executions[run_id]) == (1, 1)
        assert await resolved(made) == {"retry": 1}
        opened = await made.samples("automation_dead_letters_opened_total")
        assert {key[-1]: value for key, value in opened.items() if value} == {"validation": 1}
        assert retry.new_runs, "the run that it made is known as its own"


@pytest.mark.parametrize("fate", ["cut", "error"])
async def test_a_lost_answer_is_settled_by_the_run_that_names_what_it_repeats(tmp_path: Path, fate: Any) -> None:
    async with replaying(tmp_path) as (made, make, workflow):
        make.plan_retries(RetryPlan(outcome="success", fate=fate, delay=180.0))
        run_id = fails(made, make, workflow)
        await made.live(150, step=15, retry=True)
        [retry] = made.service.book.everything()
        assert retry.state is RetryState.IN_DOUBT
        await made.restart()
        await made.live(900, step=30, retry=True)
        [retry] = made.service.book.everything()
        assert retry.outcome is Outcome.SUCCEEDED, retry.detail
        assert (make.retry_calls[run_id], make.retry_executions[run_id]) == (1, 1)
        assert await resolved(made) == {"retry": 1}


async def test_a_call_that_was_taken_and_led_to_nothing_is_waited_for_and_counts(tmp_path: Path) -> None:
    async with replaying(tmp_path) as (made, make, workflow):
        make.plan_retries(RetryPlan(fate="lost"), RetryPlan(fate="lost"))
        run_id = fails(made, make, workflow)
        await made.live(3000, step=100, retry=True)
        assert make.retry_calls[run_id] == 1, "before the deadline"
        await made.live(9000, step=300, retry=True)
        assert (make.retry_calls[run_id], make.retry_executions[run_id]) == (RETRIES, 0)
        assert {retry.outcome for retry in made.service.book.everything()} == {Outcome.EXPIRED}


async def test_replays_that_fail_are_no_new_work_and_no_more_than_the_policy_allows(tmp_path: Path) -> None:
    async with replaying(tmp_path) as (made, make, workflow):
        make.plan_retries(*["failure"] * 20)
        run_id = fails(made, make, workflow)
        await made.live(1800, step=30, retry=True)
        await made.restart()
        await made.live(1800, step=30, retry=True)
        assert make.retry_executions == {run_id: RETRIES}
        assert {retry.root for retry in made.service.book.everything()} == {run_id}
        assert set(made.service.world.sources["make"].dead_letters) == {run_id}
        assert made.service.book.decisions["make", run_id].reason == "exhausted"
        assert len([run for run in make.truth().runs if run.result == "failure"]) == 1 + RETRIES


async def test_a_person_s_replay_in_between_is_theirs_and_ends_it(tmp_path: Path) -> None:
    async with replaying(tmp_path) as (made, make, workflow):
        make.plan_retries("failure")
        run_id = fails(made, make, workflow)
        while not made.service.book.everything():
            await made.live(15, step=15, retry=True)
        await made.live(30, step=15)  # its failure is read by the sweeps first
        make.replay_by_person(run_id, author_id=12)
        await made.live(900, step=30, retry=True)
        [retry] = made.service.book.everything()
        assert retry.outcome in (Outcome.FAILED, Outcome.SUPERSEDED), retry.detail
        assert make.retry_executions == {run_id: 1}
        assert not made.service.world.sources["make"].dead_letters


async def test_it_is_not_eligible_where_no_policy_allows_a_rerun(tmp_path: Path) -> None:
    async with replaying(tmp_path, rerun="refuse") as (made, make, workflow):
        run_id = fails(made, make, workflow)
        await made.live(600, step=30, retry=True)
        decision = made.service.book.decisions["make", run_id]
        assert (decision.verb, decision.reason) == ("hold", "not_eligible")
        assert "rerun: allow" in decision.detail
        assert not make.retry_calls


async def test_a_refused_replay_counts_and_says_why(tmp_path: Path) -> None:
    async with replaying(tmp_path) as (made, make, workflow):
        make.plan_retries(*[RetryPlan(fate="beaten", outcome="failure")] * 5)
        run_id = fails(made, make, workflow)
        await made.live(600, step=30, retry=True)
        assert [retry.outcome for retry in made.service.book.everything()] == [Outcome.REJECTED] * RETRIES
        assert make.retry_calls[run_id] == RETRIES
        assert "404" in made.service.book.everything()[0].detail


async def test_what_may_not_run_again_keeps_nothing_waiting_in_a_scenario_that_runs_in_order(tmp_path: Path) -> None:
    async with replaying(tmp_path, rerun="refuse") as (made, make, workflow):
        scenario = make.world.scenarios[int(workflow)]
        scenario.sequential = True
        lost = fails(made, make, workflow)
        await made.live(120, step=30, retry=True)
        scenario.store = True
        make.edit_workflow(workflow)
        await made.live(30, step=30)
        make.plan_retries("success")
        stored = make.add_dead_letter(workflow, error="DataError")
        await made.live(300, step=30, retry=True)
        assert made.service.world.sources["make"].workflows[workflow].ordered
        assert dict(make.retry_executions) == {stored: 1}
        assert set(made.service.world.sources["make"].dead_letters) == {lost}


async def test_several_of_one_scenario_are_called_one_by_one(tmp_path: Path) -> None:
    async with replaying(tmp_path) as (made, make, workflow):
        make.plan_retries("success", "success", "success")
        runs = [fails(made, make, workflow)]
        for _ in range(2):
            await made.clock.advance(1)
            runs.append(fails(made, make, workflow))
        await made.live(900, step=15, retry=True)
        assert dict(make.retry_executions) == dict.fromkeys(runs, 1)
        assert await resolved(made) == {"retry": 3}
