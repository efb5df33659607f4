"""Runs in the editor are no production: through polls and webhooks, a restart and the retry engine, over real HTTP."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.deployment import Deployment, deployment
from tests.e2e.test_retries import retrying

OPTIONS = {"qlik": {"edited": 0}}


def try_out(made: Deployment, workflow: str, context: str, result: str, **more: Any) -> str:
    """Somebody tries the automation, from a second from now on for ten."""
    at = made.clock.now()
    qlik: Any = made.fleet.simulators["qlik"]
    added: str = qlik.add_run(
        workflow, started_at=at + 1, ended_at=at + 11, result=result, error="platform", context=context, **more
    )
    return added


def count_tests(made: Deployment) -> None:
    section = made.config.sources["qlik"].model_copy(update={"test_runs": "count"})
    made.config = made.config.model_copy(update={"sources": {"qlik": section}})


async def shown(made: Deployment) -> dict[str, Any]:
    """Everything that could tell of a run."""
    names = (
        "automation_runs_total", "automation_runs_active", "automation_run_errors_total",
        "automation_run_duration_seconds_count", "automation_workflow_last_run_timestamp_seconds",
        "automation_workflow_consecutive_failures", "automation_dead_letters_opened_total",
        "automation_dead_letters_open", "automation_retries_total", "automation_exporter_runs_observed_total",
    )  # fmt: skip
    return {name: await made.samples(name) for name in names}


@pytest.mark.parametrize("told_by", ["polls", "webhooks"])
async def test_ignored_they_change_nothing_that_is_shown_or_done(tmp_path: Path, told_by: str) -> None:
    async with deployment(
        tmp_path, platforms=["qlik"], workflows=0, options=OPTIONS, changes=retrying(match={})
    ) as made:
        qlik: Any = made.fleet.simulators["qlik"]
        workflow = qlik.add_workflow(name="Invoices")
        await made.sweep()
        qlik.add_run(workflow, started_at=made.clock.now() + 1, ended_at=made.clock.now() + 5, result="success")
        await made.live(30, step=15, deliver=True)
        before = await shown(made)
        assert sum(before["automation_runs_total"].values()) == 1
        for context in ("editor", "test_run", "lookup", "detail"):
            for result in ("failure", "success", "quota"):
                try_out(made, workflow, context, result)
                await made.clock.advance(5)
                await made.sweep()  # while it is under way
                assert (await shown(made))["automation_runs_active"] == before["automation_runs_active"]
                await made.clock.advance(10)
                if told_by == "webhooks":
                    assert await made.deliver() > 0
                await made.sweep()
        await made.live(300, step=60, retry=True)
        assert await shown(made) == before
        assert qlik.retry_calls == {}


async def test_counted_they_are_in_the_totals_and_still_no_work_for_anybody(tmp_path: Path) -> None:
    async with deployment(
        tmp_path, platforms=["qlik"], workflows=0, options=OPTIONS, changes=retrying(match={})
    ) as made:
        qlik: Any = made.fleet.simulators["qlik"]
        workflow = qlik.add_workflow(name="Invoices")
        await made.stop()
        count_tests(made)
        await made.start()
        await made.sweep()
        for result in ("failure", "success", "failure"):
            try_out(made, workflow, "editor", result)
            await made.live(60, step=15, deliver=True, retry=True)
        now = await shown(made)
        runs = {key[2]: value for key, value in now["automation_runs_total"].items() if value}
        assert runs == {"failure": 2, "success": 1}
        assert {key[2]: v for key, v in now["automation_run_errors_total"].items() if v} == {"platform": 2}
        assert sum(now["automation_dead_letters_opened_total"].values()) == 0
        assert sum(now["automation_workflow_consecutive_failures"].values()) == 0
        assert qlik.retry_calls == {}


async def test_what_was_asked_for_and_answered_stays_out_of_the_database_and_of_what_is_shown(tmp_path: Path) -> None:
    async with deployment(tmp_path, platforms=["qlik"], workflows=0, options=OPTIONS) as made:
        qlik: Any = made.fleet.simulators["qlik"]
        workflow = qlik.add_workflow(name="Invoices")
        await made.sweep()
        for error in ("auth", "permission", "conflict", "platform", "validation", "throttled", "timeout", "not_found"):
            at = made.clock.now()
            qlik.add_run(workflow, started_at=at + 1, ended_at=at + 2, result="failure", error=error)
            await made.live(30, step=15, deliver=True)
        classes = {key[2] for key, value in (await made.samples("automation_run_errors_total")).items() if value}
        assert len(classes) == 8, "each by the status it was answered with"
        told = "".join(
            [await made.scrape(path) for path in ("/metrics", "/", "/api/v1/status", "/api/v1/dead-letters")]
        )
        await made.stop()
        database = "\n".join(sqlite3.connect(tmp_path / "e2e.db").iterdump())
        assert "Error calling endpoint" in database
        for private in ("acme.example", "/v1/customers", "Jane Roe", "customer-", "k-4711", "execution-token"):
            assert private not in told, private
            assert private not in database, private
        await made.start()
