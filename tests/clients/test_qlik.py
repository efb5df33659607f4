"""Qlik's official client and our stand-in for Qlik Automate understand each other.

Each call is made by the client; its status and its body are compared with the documents, with what the client
declares, and with what has become of the simulated world.
"""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp.test_utils import TestServer

from exporter.clock import ManualClock
from exporter.model import Result, Run
from exporter.platforms.qlik import mapping
from exporter.simulator.qlik import OWNER, QlikSimulator
from tests.clients.declared import Declarations
from tests.clients.official import Official, folder

START = 1_700_000_000.0
ADMIN, SOMEBODY = "demo-token", "somebodys-token"
NOBODY = "00000000-0000-4000-8000-000000000000"

#: Where recorded answers say otherwise than the client's types, which were generated from the documents.
TYPES_ARE_WRONG = {
    ".title: None is no string",  # of a run whose author gave it none
    ".description: None is no string",
    ".type: 'baseBlock' is none of the choices",
    ".nextRunAt: None is no string",
    ".lastRun: None is no object",  # never ran
    ".lastRunAt: None is no string",
    ".lastRunStatus: None is none of the choices",
    ".duration: None is no number",
    ".startTime: None is no string",  # of a listed run that has not begun, and so on
    ".stopTime: None is no string",
    ".context: 'api' is none of the choices",
    ".stopAt: None is no string",
    ".lastStartedAt: None is no string",
}


class World:
    def __init__(self, client: Official, clock: ManualClock, simulator: QlikSimulator, url: str) -> None:
        self.client = client
        self.clock = clock
        self.simulator = simulator
        self.url = url
        self.declared = Declarations.read(folder() / "node_modules/@qlik/api/workflows/automations.d.ts")

    async def ask(
        self, call: str, *args: Any, status: int = 200, declared: str | None = None, token: str = ADMIN
    ) -> Any:
        """What a call that has to work gives, which is of the declared type."""
        answer = await self.client.call(self.url, token, call, *args)
        assert (answer.refused, answer.status) == (None, status), f"{call}: {answer.value}"
        if declared is not None:
            found = self.declared.differences(answer.value, declared)
            assert not {line for line in found if not line.endswith(tuple(TYPES_ARE_WRONG))}
        return answer.value

    async def refused(self, call: str, *args: Any, token: str = ADMIN) -> int:
        """The status of a refusal, whose body is what the documents say of all of them."""
        answer = await self.client.call(self.url, token, call, *args)
        assert answer.refused is not None, f"{call} was not refused: {answer.value}"
        assert not self.declared.differences(answer.value, "ErrorResponse")
        assert [error["code"] for error in answer.value["errors"]] == [f"HTTP-{answer.refused}"]
        return answer.refused

    async def runs(self, automation: str) -> list[Any]:
        listed = await self.ask(
            "getAutomationRuns", automation, {"sort": "-startTime", "limit": 200}, declared="RunList"
        )
        return list(listed["data"])

    async def later(self, seconds: float) -> None:
        await self.clock.advance(seconds)


@pytest.fixture
async def qlik(qlik_client: Official) -> AsyncIterator[World]:
    clock = ManualClock(START)
    simulator = QlikSimulator(clock=clock, workflows=0, history_seconds=0.0, token=ADMIN)
    simulator.add_api_key(SOMEBODY, user_id="somebody")
    async with TestServer(simulator.app()) as server:
        yield World(qlik_client, clock, simulator, str(server.make_url("/")).rstrip("/"))


async def test_automations_are_listed_and_read(qlik: World) -> None:
    ids = [qlik.simulator.add_workflow(name=f"Sync {n}") for n in range(5)]
    qlik.simulator.add_run(ids[0], started_at=START - 20, ended_at=START - 15, result="failure", error="platform")

    everything = await qlik.client.call(qlik.url, ADMIN, "getAutomations", {"limit": 2, "sort": "id"})
    assert [[row["id"] for row in page["data"]] for page in everything.pages] == [ids[:2], ids[2:4], ids[4:]]
    listed = await qlik.ask("getAutomations", {"filter": 'name eq "Sync 3"'}, declared="AutomationList")
    assert [row["id"] for row in listed["data"]] == [ids[3]]
    await qlik.ask("getAutomations", {"sort": "+lastRunAt"}, declared="AutomationList")
    one = await qlik.ask("getAutomation", ids[0], declared="AutomationDetailResponseObject")
    assert (one["lastRunStatus"], one["lastRun"]["status"]) == ("failed", "failed")
    assert await qlik.refused("getAutomations", {"limit": 201}) == 400
    assert await qlik.refused("getAutomations", {"sort": "duration"}) == 400
    assert await qlik.refused("getAutomation", NOBODY) == 404
    assert await qlik.refused("getAutomation", ids[0], token="no-such-token") == 401
    assert await qlik.refused("getAutomation", ids[0], token=SOMEBODY) == 403


async def test_runs_are_listed_read_and_paged(qlik: World) -> None:
    automation = qlik.simulator.add_workflow()
    made = [
        qlik.simulator.add_run(automation, started_at=START - 100 + n, ended_at=START - 60 + 7 * n, result=result)
        for n, result in enumerate(("success", "failure", "warning", "cancelled", "quota"))
    ]
    queued = qlik.simulator.add_run(automation, started_at=START - 1, ended_at=None)

    pages = await qlik.client.call(qlik.url, ADMIN, "getAutomationRuns", automation, {"sort": "startTime", "limit": 4})
    assert [row["id"] for page in pages.pages for row in page["data"]] == [*made, queued]
    assert len(await qlik.runs(automation)) == 6
    for run in made:
        await qlik.ask("getAutomationRun", automation, run, declared="RunDetailResponseObject")
    assert await qlik.refused("getAutomationRuns", NOBODY, {}) == 404
    assert await qlik.refused("getAutomationRun", automation, NOBODY) == 404


async def test_a_run_is_retried_and_stopped(qlik: World) -> None:
    automation = qlik.simulator.add_workflow()
    failed = qlik.simulator.add_run(automation, started_at=START - 9, ended_at=START - 5, result="failure")
    endless = qlik.simulator.add_run(automation, started_at=START - 9, ended_at=None)
    qlik.simulator.plan_retries("success")

    assert not await qlik.ask("retryAutomationRun", automation, failed, status=204)
    await qlik.ask("stopAutomationRun", automation, endless, status=204)
    await qlik.later(300)
    assert sorted(run["status"] for run in await qlik.runs(automation)) == ["failed", "finished", "stopped"]
    assert not qlik.simulator.truth().open_dead_letters()
    assert await qlik.refused("stopAutomationRun", automation, failed) == 400
    assert await qlik.refused("retryAutomationRun", automation, NOBODY) == 404
    assert await qlik.refused("retryAutomationRun", automation, failed, token=SOMEBODY) == 403


async def test_a_run_is_created_and_its_log_exported(qlik: World) -> None:
    automation = qlik.simulator.add_workflow(max_concurrent_runs=1)

    first = await qlik.ask(
        "createAutomationRun", automation, {"context": "api"}, status=201, declared="RunDetailResponseObject"
    )
    second = await qlik.ask("createAutomationRun", automation, {"context": "api"}, status=201)
    assert (first["context"], first["executedById"], first["stopTime"]) == ("api", OWNER, None)
    assert second["status"] == "queued", "one at a time"
    await qlik.later(300)
    runs = await qlik.runs(automation)
    assert {run["id"] for run in runs} == {first["id"], second["id"]}
    assert all(run["status"] != "queued" and run["stopTime"] for run in runs)

    exported = await qlik.ask("exportAutomationRun", automation, first["id"])
    assert exported == {"url": f"{qlik.url}/api/workflows/automations/{automation}/runs/{first['id']}/debug"}
    log = await qlik.ask("getAutomationRunDebug", automation, first["id"])
    assert isinstance(log, str)
    assert first["id"] in log

    for body in ({}, {"context": "webhook"}, {"context": "test_run"}):
        assert await qlik.refused("createAutomationRun", automation, body) == 400
    assert await qlik.refused("createAutomationRun", NOBODY, {"context": "api"}) == 404
    assert await qlik.refused("createAutomationRun", automation, {"context": "api"}, token=SOMEBODY) == 403
    assert await qlik.refused("exportAutomationRun", automation, NOBODY) == 404
    assert await qlik.refused("getAutomationRunDebug", automation, first["id"], token=SOMEBODY) == 403
    assert len(await qlik.runs(automation)) == 2, "what was refused made none"


async def test_disabling_stops_the_schedule_and_enabling_resumes_it(qlik: World) -> None:
    schedule = {"startAt": "2023-11-14 00:00:00", "interval": 600, "timezone": "UTC"}
    made = await qlik.ask(
        "createAutomation",
        {"name": "Ticket sync", "schedules": [schedule], "maxConcurrentRuns": 2},
        status=201,
        declared="AutomationDetailResponseObject",
    )
    automation = made["id"]
    assert (made["runMode"], made["maxConcurrentRuns"], made["state"]) == ("scheduled", 2, "available")
    assert [(s["interval"], s["nextRunAt"]) for s in made["schedules"]] == [(600, "2023-11-14T22:23:20.000000Z")]
    await qlik.later(3600)
    ran = len(await qlik.runs(automation))
    assert ran == 6

    await qlik.ask("disableAutomation", automation, status=204)
    disabled = await qlik.ask("getAutomation", automation, declared="AutomationDetailResponseObject")
    assert (disabled["state"], [s["nextRunAt"] for s in disabled["schedules"]]) == ("disabled", [None])
    await qlik.later(3600)
    assert len(await qlik.runs(automation)) == ran
    assert await qlik.refused("createAutomationRun", automation, {"context": "api"}) == 403
    await qlik.ask("enableAutomation", automation, status=204)
    await qlik.later(3600)
    assert len(await qlik.runs(automation)) > ran
    for call in ("disableAutomation", "enableAutomation"):
        assert await qlik.refused(call, NOBODY) == 404
        assert await qlik.refused(call, automation, token=SOMEBODY) == 403


async def test_an_automation_is_changed_copied_and_deleted(qlik: World) -> None:
    automation = qlik.simulator.add_workflow(name="Ticket sync")
    qlik.simulator.add_run(automation, started_at=START - 9, ended_at=START - 5, result="failure")

    changed = await qlik.ask(
        "updateAutomation",
        automation,
        {"name": "Tickets", "description": "All of them", "schedules": [{"interval": 300}]},
        declared="AutomationDetailResponseObject",
    )
    assert (changed["name"], changed["description"], changed["runMode"]) == ("Tickets", "All of them", "scheduled")
    copy = await qlik.ask("copyAutomation", automation, {"name": "A copy"}, status=201)
    assert set(copy) == {"id"}
    copied = await qlik.ask("getAutomation", copy["id"])
    assert (copied["name"], copied["description"], copied["lastRun"]) == ("A copy", "All of them", None)
    await qlik.ask("updateAutomation", automation, {"name": "Tickets", "schedules": []})
    await qlik.ask("updateAutomation", automation, {"name": "Tickets", "schedules": [{"interval": 300}]})
    await qlik.later(3000)
    assert len(await qlik.runs(automation)) == 11, "one schedule, however often it was given"

    assert not await qlik.ask("deleteAutomation", automation, status=204)
    assert await qlik.refused("getAutomation", automation) == 404
    assert await qlik.refused("deleteAutomation", automation) == 404
    assert not qlik.simulator.truth().open_dead_letters()
    assert [row["id"] for row in (await qlik.ask("getAutomations", {}))["data"]] == [copy["id"]]

    for body in (
        {},
        {"name": ""},
        {"name": 7},
        {"name": "x", "maxConcurrentRuns": 0},
        {"name": "x", "schedules": [{"interval": -5}]},
    ):
        assert await qlik.refused("updateAutomation", copy["id"], body) == 400, body
        assert await qlik.refused("createAutomation", body) == 400, body
    assert await qlik.refused("copyAutomation", copy["id"], {}) == 400
    for call in ("updateAutomation", "copyAutomation"):
        assert await qlik.refused(call, NOBODY, {"name": "x"}) == 404
        assert await qlik.refused(call, copy["id"], {"name": "x"}, token=SOMEBODY) == 403
    assert await qlik.refused("deleteAutomation", copy["id"], token=SOMEBODY) == 403


@pytest.mark.parametrize("call", ["moveAutomation", "changeOwnerAutomation"])
async def test_moving_to_another_owner_removes_the_history(qlik: World, call: str) -> None:
    automation = qlik.simulator.add_workflow()
    qlik.simulator.add_run(automation, started_at=START - 9, ended_at=START - 5, result="failure")
    endless = qlik.simulator.add_run(automation, started_at=START - 9, ended_at=None)

    assert await qlik.refused(call, automation, {"userId": "somebody"}, token=SOMEBODY) == 403
    assert await qlik.refused(call, automation, {}) == 400
    assert await qlik.refused(call, NOBODY, {"userId": "somebody"}) == 404
    assert len(await qlik.runs(automation)) == 2
    await qlik.ask(call, automation, {"userId": "somebody"}, status=204)
    assert [run["id"] for run in await qlik.runs(automation)] == [endless], "only what still runs"
    assert not qlik.simulator.truth().open_dead_letters()
    moved = await qlik.ask("getAutomation", automation, token=SOMEBODY)
    assert (moved["ownerId"], moved["lastRun"]["id"]) == ("somebody", endless)
    assert await qlik.refused("getAutomation", automation) == 403, "it is somebody else's now"


async def test_an_automation_changes_its_space(qlik: World) -> None:
    automation = qlik.simulator.add_workflow()
    qlik.simulator.add_api_key("editors-token", user_id=OWNER, admin=True, spaces=("space-1",))

    assert await qlik.refused("changeSpaceAutomation", automation, {"spaceId": "space-1"}) == 403
    await qlik.ask("changeSpaceAutomation", automation, {"spaceId": "space-1"}, status=204, token="editors-token")
    assert (await qlik.ask("getAutomation", automation, token="editors-token"))["spaceId"] == "space-1"
    assert await qlik.refused("changeSpaceAutomation", automation, {"spaceId": 5}, token="editors-token") == 400
    assert await qlik.refused("changeSpaceAutomation", NOBODY, {"spaceId": ""}) == 404


async def test_settings_are_read_and_obeyed(qlik: World) -> None:
    automation = qlik.simulator.add_workflow()
    assert await qlik.ask("getAutomationsSettings", declared="SettingsObject") == {"maxConcurrentRunsPerAutomation": 10}

    assert await qlik.refused("updateAutomationsSettings", {"maxConcurrentRunsPerAutomation": 1}, token=SOMEBODY) == 403
    for nonsense in ({"maxConcurrentRunsPerAutomation": 0}, {"maxConcurrentRunsPerAutomation": "2"}, {}):
        assert await qlik.refused("updateAutomationsSettings", nonsense) == 400
    lowered = {"maxConcurrentRunsPerAutomation": 1}
    assert await qlik.ask("updateAutomationsSettings", lowered, declared="SettingsObject") == lowered
    made = [await qlik.ask("createAutomationRun", automation, {"context": "api"}, status=201) for _ in range(2)]
    assert [run["status"] == "queued" for run in made] == [False, True]
    assert await qlik.refused("createAutomation", {"name": "x", "maxConcurrentRuns": 2}) == 400


def test_every_status_and_context_that_the_client_declares_is_read_by_our_mapping(qlik_client: Official) -> None:
    declared = Declarations.read(folder() / "node_modules/@qlik/api/workflows/automations.d.ts")

    def read(**fields: Any) -> Run:
        times = {"startTime": "2026-10-20T08:51:06.000000Z", "stopTime": "2026-10-20T09:01:06.000000Z"}
        return mapping.claims({"id": "1", "createdAt": times["startTime"]} | times | fields, workflow_id="a")[0]

    statuses = declared.literals("RunDetailResponseObject", "status")
    assert {"failed", "finished", "exceeded limit"} <= statuses == declared.literals("RunListObject", "status")
    assert {s for s in statuses if read(status=s).result is Result.UNKNOWN} == set()
    contexts = declared.literals("RunDetailResponseObject", "context")
    assert {read(status="finished", context=c).result for c in contexts} == {Result.SUCCESS}


async def test_the_client_of_the_older_api_is_understood_as_well(qlik: World) -> None:
    automation = qlik.simulator.add_workflow(name="Ticket sync")
    failed = qlik.simulator.add_run(automation, started_at=START - 9, ended_at=START - 5, result="failure")
    endless = qlik.simulator.add_run(automation, started_at=START - 9, ended_at=None)
    qlik.simulator.plan_retries("success")

    assert [row["id"] for row in (await qlik.ask("legacy.getAutomations", {"limit": 5}))["data"]] == [automation]
    await qlik.ask("legacy.retryAutomationRun", automation, failed, status=204)
    await qlik.ask("legacy.stopAutomationRun", automation, endless, status=204)
    started = await qlik.ask("legacy.queueAutomationRun", automation, {"context": "api"}, status=201)
    await qlik.later(300)
    runs = (await qlik.ask("legacy.getAutomationRuns", automation, {"limit": 50}))["data"]
    assert sorted(run["status"] for run in runs) == ["failed", "finished", "finished", "stopped"]
    assert (await qlik.ask("legacy.getAutomationRun", automation, started["id"]))["context"] == "api"
    exported = await qlik.ask("legacy.getAutomationRunDetails", automation, failed)
    assert exported["url"].endswith(f"/api/v1/automations/{automation}/runs/{failed}/debug")
    await qlik.ask("legacy.disableAutomation", automation, status=204)
    assert (await qlik.ask("legacy.getAutomation", automation))["state"] == "disabled"
    await qlik.ask("legacy.enableAutomation", automation, status=204)
    copied = (await qlik.ask("legacy.copyAutomation", automation, {"name": "A copy"}, status=201))["id"]
    await qlik.ask("legacy.updateAutomation", copied, {"name": "Another"})
    await qlik.ask("legacy.deleteAutomation", copied, status=204)
    await qlik.ask("legacy.moveAutomation", automation, {"userId": "somebody"}, status=204)
    usage = await qlik.ask("legacy.getAutomationsUsageMetrics", {"filter": 'name eq "runs"'})
    assert [row["name"] for row in usage["data"]] == ["runs"]
    assert await qlik.refused("legacy.getAutomation", NOBODY) == 404


async def test_usage_is_told_by_day_and_by_automation(qlik: World) -> None:
    automation = qlik.simulator.add_workflow(name="Ticket sync")
    qlik.simulator.add_run(automation, started_at=START - 20, ended_at=START - 15)

    day = 'date eq "2023-11-14"'
    total = await qlik.ask("getAutomationsUsageMetrics", {"filter": f'name eq "runs" and {day}'}, declared="UsageList")
    assert total == {"data": [{"date": "2023-11-14", "name": "runs", "value": 1}]}
    query = {"filter": day, "breakdownBy": "automation"}
    each = (await qlik.ask("getAutomationsUsageMetrics", query, declared="UsageList"))["data"]
    assert {row["automation"]["name"] for row in each} == {"Ticket sync"}
    assert {row["name"] for row in each} >= {"runs", "scheduledRun", "triggeredRun", "webhookRuns", "bandwidthIn"}
    assert await qlik.refused("getAutomationsUsageMetrics", {}) == 400
    assert await qlik.refused("getAutomationsUsageMetrics", {"filter": day}, token=SOMEBODY) == 403
