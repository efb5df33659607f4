"""The simulated Etlworks behaves as the documents say, and its truth is what was made to happen."""

import base64
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from exporter.clock import ManualClock
from exporter.simulator.core import Delivery, Faults, Truth
from exporter.simulator.etlworks import EtlworksSimulator, WebhookMode

NOW = 1_700_000_000.0
Client = TestClient[web.Request, web.Application]
ITEM_FAULTS = ("shifting_pages", "missing_fields", "duplicates", "null_numbers", "unknown_status")


@asynccontextmanager
async def served(sim: EtlworksSimulator, token: str | None = "demo-token") -> AsyncIterator[Client]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with TestClient(TestServer(sim.app()), headers=headers) as client:
        yield client


async def get(client: Client, path: str, *, status: int = 200, token: str | None = None) -> Any:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with client.get(path, headers=headers) as response:
        assert response.status == status, await response.text()
        return await response.json()


async def post(client: Client, path: str, body: object = None, *, status: int = 200, token: str | None = None) -> Any:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with client.post(path, json=body, headers=headers) as response:
        assert response.status == status, await response.text()
        return await response.json()


def empty(**options: Any) -> tuple[ManualClock, EtlworksSimulator]:
    clock = ManualClock(NOW)
    return clock, EtlworksSimulator(clock=clock, workflows=0, **options)


def comparable(truth: Truth) -> tuple[object, object]:
    return truth.runs, truth.dead_letters


# --- The world ------------------------------------------------------------------------------------------------------


async def test_the_world_is_the_same_in_one_step_or_many_and_with_or_without_requests() -> None:
    worlds = []
    for steps, asks in ((1, False), (1000, False), (40, True)):
        clock = ManualClock(NOW)
        sim = EtlworksSimulator(clock=clock, seed=7, workflows=8)
        async with served(sim) as client:
            for _ in range(steps):
                await clock.advance(7_200 / steps)
                sim.advance(clock.now())
                if asks:
                    await get(client, "/rest/v1/flows")
                    await get(client, "/rest/v1/executions/1001")
        worlds.append((comparable(sim.truth()), sim.take_deliveries()))
    assert worlds[0] == worlds[1] == worlds[2]
    assert len(worlds[0][0][0]) > 100  # type: ignore[arg-type]


def test_another_seed_is_another_world() -> None:
    first, second = (EtlworksSimulator(clock=ManualClock(NOW), seed=seed).truth() for seed in (1, 2))
    assert comparable(first) != comparable(second)


def test_the_world_begins_with_two_hours_of_history_that_nobody_is_told_of() -> None:
    sim = EtlworksSimulator(clock=ManualClock(NOW), workflows=20)
    ends = [run.ended_at for run in sim.truth().runs]
    assert min(ends) < NOW - 6_600
    assert max(ends) <= NOW
    assert sim.take_deliveries() == []
    assert set(Counter(run.result for run in sim.truth().runs)) == {"success", "warning", "failure", "cancelled"}


async def test_starts_on_demand_leave_the_generated_runs_as_they_are() -> None:
    worlds = []
    for starts in (0, 5):
        clock = ManualClock(NOW)
        sim = EtlworksSimulator(clock=clock, workflows=4)
        async with served(sim) as client:
            for _ in range(starts):
                await post(client, "/rest/v1/flows/1002/run?parallel=true", {})
                await clock.advance(60)
        await clock.advance(NOW + 3_600 - clock.now())
        worlds.append([(r.workflow_id, r.result, r.started_at, r.ended_at) for r in sim.truth().runs])
    quiet, asked = worlds
    assert len(asked) == len(quiet) + 5
    assert Counter(asked) >= Counter(quiet)


async def test_kept_history_is_bounded_but_the_truth_keeps_everything() -> None:
    _, sim = empty()
    workflow_id = sim.add_workflow()
    ids = [sim.add_run(workflow_id, started_at=NOW - 5_000 + i, ended_at=NOW - 5_000 + i) for i in range(2_999)]
    sim.truth()
    ids += [sim.add_run(workflow_id, started_at=NOW - 1_000 + i, ended_at=NOW - 999.5 + i) for i in range(3)]
    async with served(sim) as client:
        await get(client, f"/rest/v1/executions/{workflow_id}?auditId={ids[0]}", status=500)
        await get(client, f"/rest/v1/executions/{workflow_id}?auditId={ids[2]}")
    assert len(sim.truth().runs) == 3_002


async def test_a_failed_attempt_is_repeated_by_the_scheduler_under_a_new_id_that_names_the_first() -> None:
    clock, sim = empty()
    sim.add_workflow(5, every=600, retries=2, retry_minutes=2, failing=1.0, errors=["auth"], typical=10)
    await clock.advance(6 * 3_600)
    chains = 0
    async with served(sim) as client:
        runs = {run.run_id: run for run in sim.truth().runs}
        for run in runs.values():
            shown = await get(client, f"/rest/v1/executions/5?auditId={run.run_id}")
            assert shown["retries"] == (run.attempt - 1 or None)
            assert (shown["parentAuditId"] is None) == (run.attempt == 1)
            if run.attempt == 2:
                first = runs[str(shown["parentAuditId"])]
                assert 120 <= run.started_at - first.ended_at < 129
            if run.attempt == 3:
                chains += runs[str(shown["parentAuditId"])].attempt == 1
    assert chains > 10
    assert max(run.attempt for run in runs.values()) == 3
    gave_up = {run.run_id for run in runs.values() if run.attempt == 3 and run.result == "failure"}
    assert {d.dead_letter_id for d in sim.truth().dead_letters} == gave_up


def test_a_dead_letter_opens_only_when_the_scheduler_will_not_repeat_the_run() -> None:
    _, sim = empty()
    workflow_id = sim.add_workflow(retries=1)
    sim.add_run(workflow_id, run_id=1, started_at=NOW - 90, ended_at=NOW - 80, result="failure", error="timeout")
    assert sim.truth().dead_letters == []
    second: dict[str, Any] = {"run_id": 2, "parent_id": 1, "retries": 1, "result": "failure", "error": "timeout"}
    sim.add_run(workflow_id, started_at=NOW - 70, ended_at=NOW - 60, **second)
    (dead_letter,) = sim.truth().dead_letters
    assert (dead_letter.dead_letter_id, dead_letter.opened_at, dead_letter.error_class) == ("2", NOW - 60, "timeout")


def test_a_dead_letter_is_resolved_by_a_run_that_started_after_it_and_ended_well() -> None:
    _, sim = empty()
    workflow_id = sim.add_workflow()
    sim.add_run(workflow_id, started_at=NOW - 100, ended_at=NOW - 70)  # in parallel: does not redo the failed work
    sim.add_run(workflow_id, started_at=NOW - 90, ended_at=NOW - 80, result="failure")
    assert sim.truth().open_dead_letters() == {workflow_id: 1}
    sim.add_run(workflow_id, started_at=NOW - 60, ended_at=NOW - 50, result="warning")
    assert [d.resolved_at for d in sim.truth().dead_letters] == [NOW - 50]


async def test_a_stopped_run_is_canceled_then_error_and_counts_once_as_cancelled() -> None:
    clock, sim = empty(cancel_seconds=90)
    normal, streaming = sim.add_workflow(), sim.add_workflow(streaming=True)
    sim.add_run(normal, started_at=NOW - 10, ended_at=NOW + 20, result="cancelled")
    endless = sim.add_run(streaming, started_at=NOW - 10, ended_at=None)
    planned = sim.add_run(
        sim.add_workflow(7), started_at=NOW - 10, ended_at=NOW + 60
    )  # what was planned does not happen
    async with served(sim) as client:
        statuses = []
        for seconds in (20, 89, 1):
            await clock.advance(seconds)
            if seconds == 20:
                sim.stop_run(endless)
                sim.stop_run(planned)
            statuses.append([(await get(client, f"/rest/v1/executions/{w}"))["status"] for w in (normal, streaming)])
            assert sim.truth().counts() == {(w, "cancelled"): 1 for w in (normal, streaming, "7")}
        assert statuses == [["canceled", "canceled"], ["canceled", "canceled"], ["error", "success"]]
    assert [run.ended_at for run in sim.truth().runs] == [NOW + 20] * 3
    assert sim.truth().dead_letters == []
    with pytest.raises(ValueError, match="not active"):
        sim.stop_run(endless)


async def test_a_disabled_schedule_starts_nothing_and_an_enabled_one_keeps_its_cron_line() -> None:
    clock, sim = empty()
    workflow_id = sim.add_workflow(every=300)
    await clock.advance(3_600)
    sim.set_enabled(workflow_id, False)
    async with served(sim) as client:
        (schedule,) = await get(client, "/rest/v1/schedules")
    await clock.advance(3_600)
    runs = sim.truth().runs
    assert 11 <= len(runs) <= 13
    assert schedule["enabled"] is False
    second, minutes = schedule["schedule"].split()[:2]
    due = {datetime.fromtimestamp(run.started_at - wait, UTC).strftime("%M:%S") for run in runs for wait in range(9)}
    first = int(minutes.split("/")[0])
    assert all(f"{minute:02}:{int(second):02}" in due for minute in range(first, 60, 5))


async def test_a_deleted_workflow_is_gone_with_its_runs_and_needs_no_retry() -> None:
    clock, sim = empty()
    workflow_id = sim.add_workflow(every=60)
    sim.add_run(workflow_id, started_at=NOW - 60, ended_at=NOW - 50, result="failure")
    sim.add_run(workflow_id, started_at=NOW - 10, ended_at=NOW + 50)
    assert sim.truth().open_dead_letters() == {workflow_id: 1}
    sim.delete_workflow(workflow_id)
    await clock.advance(3_600)
    assert sim.truth().counts() == {(workflow_id, "failure"): 1}
    assert sim.truth().open_dead_letters() == {}
    async with served(sim) as client:
        assert await get(client, "/rest/v1/flows") == []
        assert await get(client, "/rest/v1/schedules") == []
        await get(client, f"/rest/v1/executions/{workflow_id}", status=500)


@pytest.mark.parametrize(
    "run",
    [
        {"result": "quota"},
        {"error": "network"},
        {"result": "failure", "error": "weather"},
        {"ended_at": NOW - 1},
        {"run_id": 1},
    ],
)
def test_a_run_the_platform_could_not_have_is_refused(run: dict[str, Any]) -> None:
    _, sim = empty()
    workflow_id = sim.add_workflow()
    sim.add_run(workflow_id, run_id=1, started_at=NOW, ended_at=None)
    with pytest.raises(ValueError):
        sim.add_run(workflow_id, **{"started_at": NOW, "ended_at": NOW, **run})


# --- Tokens ---------------------------------------------------------------------------------------------------------


def claims(token: str) -> Any:
    payload = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))


@pytest.mark.parametrize("path", ["/rest/v1/token-auth/issue", "/rest/v1/token-auth"])
async def test_a_password_buys_a_token_that_holds_for_ten_minutes(path: str) -> None:
    clock, sim = empty()
    async with served(sim, token=None) as client:
        token = (await post(client, path, {"login": "demo", "password": "demo-password"}))["token"]
        assert claims(token)["exp"] == NOW + 600
        await clock.advance(599)
        await get(client, "/rest/v1/flows", token=token)
        await clock.advance(1)
        refused = await get(client, "/rest/v1/flows", token=token, status=401)
    assert refused == {
        "status": 401,
        "error": "Unauthorized",
        "message": "Full authentication is required to access this resource",
        "path": "/rest/v1/flows",
    }


async def test_a_valid_token_is_refreshed_and_an_expired_one_is_not() -> None:
    clock, sim = empty(token_seconds=60)
    async with served(sim, token=None) as client:
        old = (await post(client, "/rest/v1/token-auth", {"login": "demo", "password": "demo-password"}))["token"]
        await clock.advance(59)
        new = (await post(client, "/rest/v1/token-auth/refresh", token=old))["token"]
        await clock.advance(59)
        await post(client, "/rest/v1/token-auth/refresh", token=old, status=401)
        await get(client, "/rest/v1/flows", token=new)


async def test_wrong_credentials_are_refused() -> None:
    _, sim = empty(token="key-1")
    async with served(sim, token=None) as client:
        await post(client, "/rest/v1/token-auth/issue", {"login": "demo", "password": "guess"}, status=401)
        await post(client, "/rest/v1/token-auth/issue", {"login": "demo"}, status=400)
        token = (await post(client, "/rest/v1/token-auth", {"login": "demo", "password": "demo-password"}))["token"]
        for wrong in (None, "demo-token", "a.b.c", token[:-3] + "abc"):
            for path in ("/rest/v1/flows", "/rest/v1/schedules", "/rest/v1/executions/1", "/no/such/path"):
                await get(client, path, token=wrong, status=401)
            await post(client, "/rest/v1/flows/1/run", {}, token=wrong, status=401)
        await get(client, "/rest/v1/flows", token="key-1")


async def test_a_token_bound_to_a_tenant_sees_that_tenant_only() -> None:
    _, sim = empty()
    ids = [sim.add_workflow(tenant_id=tenant_id) for tenant_id in (3, 4)]
    for workflow_id in ids:
        sim.add_run(workflow_id, started_at=NOW - 9, ended_at=NOW - 5)
    async with served(sim) as client:
        first = (await post(client, "/rest/v1/token-auth/tenants/3"))["token"]
        second = (await post(client, "/rest/v1/token-auth/tenants/4", token=first))["token"]
        await post(client, "/rest/v1/token-auth/tenants/5", status=403)
        assert [f["id"] for f in await get(client, "/rest/v1/flows", token=second)] == [int(ids[1])]
        await get(client, f"/rest/v1/executions/{ids[0]}", token=second, status=500)
        assert (await get(client, f"/rest/v1/executions/{ids[1]}", token=second))["tenantId"] is None
        assert (await get(client, f"/rest/v1/executions/{ids[1]}"))["tenantId"] == 4
        assert len(await get(client, "/rest/v1/flows")) == 2


# --- Reading --------------------------------------------------------------------------------------------------------


async def test_flows_are_a_bare_array_with_their_definitions() -> None:
    sim = EtlworksSimulator(clock=ManualClock(NOW), workflows=120, definition_bytes=4_000)
    async with served(sim) as client:
        async with client.get("/rest/v1/flows?limit=5") as response:
            flows = await response.json()
            assert "X-Total-Count" not in response.headers
            assert parsedate_to_datetime(response.headers["Date"]).timestamp() == NOW
        assert len(flows) == 120
        assert len(flows[0]["properties"]["definition"]) == 4_000
        assert await get(client, "/rest/v1/flows/1001") == flows[0]
    assert sim.requests == {"GET /rest/v1/flows": 1, "GET /rest/v1/flows/{flowId}": 1}


async def test_with_paging_the_pages_make_the_whole_and_the_header_tells_the_total() -> None:
    sim = EtlworksSimulator(clock=ManualClock(NOW), workflows=230, paging=True, history=0)
    async with served(sim) as client:
        sizes = {}
        for query in ("", "?limit=10", "?limit=500", "?offset=200", "?limit=30&offset=210", "?offset=900"):
            async with client.get(f"/rest/v1/flows{query}") as response:
                assert response.headers["X-Total-Count"] == "230"
                sizes[query] = len(await response.json())
        assert list(sizes.values()) == [50, 10, 200, 30, 20, 0]
        pages = [await get(client, f"/rest/v1/flows?limit=100&offset={offset}") for offset in (0, 100, 200)]
        assert [flow["id"] for page in pages for flow in page] == list(range(1001, 1231))
        assert len(await get(client, "/rest/v1/schedules?limit=200")) == 184
        await get(client, "/rest/v1/flows?limit=many", status=400)


async def test_a_shifting_page_repeats_an_item_and_loses_none() -> None:
    faults = Faults(shifting_pages=1)
    sim = EtlworksSimulator(clock=ManualClock(NOW), workflows=30, paging=True, history=0, faults=faults)
    async with served(sim) as client:
        ids, offset, total = [], 0, 1
        while offset < total:
            async with client.get(f"/rest/v1/flows?limit=10&offset={offset}") as response:
                total = int(response.headers["X-Total-Count"])
                ids += [flow["id"] for flow in await response.json()]
                offset += 10
    assert ids != sorted(set(ids))
    assert set(ids) == set(range(1001, 1031))


async def test_an_execution_is_queued_then_running_then_finished_and_invisible_before() -> None:
    clock, sim = empty()
    workflow_id = sim.add_workflow(1234, "orders to dwh", retries=1)
    run_id = sim.add_run(
        workflow_id, queued_at=NOW + 10, started_at=NOW + 20, ended_at=NOW + 83.25, result="failure", error="validation"
    )
    shown = {}
    async with served(sim) as client:
        await get(client, "/rest/v1/executions/1234", status=500)
        await get(client, f"/rest/v1/executions/1234?auditId={run_id}", status=500)
        for at in (10, 20, 83, 83.25):
            await clock.advance(NOW + at - clock.now())
            shown[at] = await get(client, "/rest/v1/executions/1234")
            assert bool(sim.truth().runs) == (at == 83.25)
    assert [s["status"] for s in shown.values()] == ["queued", "running", "running", "error"]
    assert shown[10]["started"] is None
    assert "ended" not in shown[83]
    finished = shown[83.25]
    assert finished.pop("exception").startswith("java.sql.SQLIntegrityConstraintViolationException: Column")
    assert finished == {
        "auditId": int(run_id),
        "parentAuditId": None,
        "retries": None,
        "flowId": 1234,
        "flowName": "orders to dwh",
        "eventId": 7234,
        "eventName": "orders to dwh schedule",
        "messageId": None,
        "tenantId": None,
        "status": "error",
        "triggerType": "flow.execution.scheduler",
        "startedBy": "scheduler",
        "started": 1_700_000_020_000,
        "ended": 1_700_000_083_250,
        "duration": "1 minute 3 seconds",
        "code": "insert into orders (id, customer_id)\nvalues (?, ?)",
        "warnings": None,
        "metrics": None,
        "fileMetrics": None,
        "errorLocationInSql": 2,
        "fileName": None,
        "records": 1,
    }


async def test_an_execution_is_found_by_audit_id_message_id_status_or_as_the_newest() -> None:
    _, sim = empty()
    workflow_id, other = sim.add_workflow(), sim.add_workflow()
    message = "15a20488-0224-4ae1-a52c-9ee65a69f2c5"
    failed = sim.add_run(workflow_id, started_at=NOW - 90, ended_at=NOW - 80, result="failure")
    listened = sim.add_run(
        workflow_id, started_at=NOW - 70, ended_at=NOW - 60, trigger="listener", message_id=message, result="warning"
    )
    running = sim.add_run(workflow_id, started_at=NOW - 20, ended_at=NOW + 60)
    late = sim.add_run(workflow_id, started_at=NOW - 40, ended_at=NOW - 30)  # added last, but not the newest
    wanted = {
        "": running,
        f"?auditId={failed}": failed,
        f"?auditId={late}": late,
        f"?messageId={message}": listened,
        "?status=error": failed,
        "?status=success": late,
    }
    async with served(sim) as client:
        for path in ("/rest/v1/executions", "/plugins/dashboard/rest/v1/flows"):
            for query, run_id in wanted.items():
                assert (await get(client, f"{path}/{workflow_id}{query}"))["auditId"] == int(run_id)
        shown = await get(client, f"/rest/v1/executions/{workflow_id}?messageId={message}")
        assert (shown["triggerType"], shown["messageId"], shown["eventId"]) == (None, message, None)
        assert shown["warnings"]
        for query in (f"{other}?auditId={failed}", f"{workflow_id}?messageId=other", f"{workflow_id}?status=canceled"):
            await get(client, f"/rest/v1/executions/{query}", status=500)


@pytest.mark.parametrize("status", [500, 404])
async def test_an_unknown_flow_is_an_internal_error_or_not_found(status: Literal[500, 404]) -> None:
    _, sim = empty(unknown_flow=status)
    phrase = {500: "Internal Server Error", 404: "Not Found"}[status]
    async with served(sim) as client:
        for path in ("/rest/v1/flows/77", "/rest/v1/executions/77", "/plugins/dashboard/rest/v1/flows/77"):
            answer = await get(client, path, status=status)
            assert answer == {"status": status, "error": phrase, "message": "Flow 77 not found", "path": path}
        await post(client, "/rest/v1/flows/77/run", {}, status=status)
        await post(client, "/rest/v1/flows/flow-name/none/run", status=status)


async def test_other_mistakes_have_the_same_error_form() -> None:
    _, sim = empty()
    workflow_id = sim.add_workflow()
    async with served(sim) as client:
        assert (await get(client, "/rest/v1/executions/abc", status=400))["error"] == "Bad Request"
        assert (await get(client, "/rest/v1/nowhere", status=404))["path"] == "/rest/v1/nowhere"
        assert (await get(client, f"/rest/v1/flows/{workflow_id}/run", status=405))["error"] == "Method Not Allowed"
        await post(client, f"/rest/v1/flows/{workflow_id}/run", {"n": 1}, status=400)
        await post(client, f"/rest/v1/flows/{workflow_id}/run", ["n"], status=400)
    assert sim.truth().runs == []


async def test_a_text_in_exception_may_be_a_log_and_some_stack_traces_are_large() -> None:
    _, sim = empty(trace_bytes=1_000)
    workflow_id = sim.add_workflow()
    sim.add_run(workflow_id, run_id=140, started_at=NOW - 9, ended_at=NOW - 8, result="failure", error="killed")
    sim.add_run(workflow_id, run_id=141, started_at=NOW - 7, ended_at=NOW - 6, result="failure", error="network")
    sim.add_run(workflow_id, run_id=147, started_at=NOW - 5, ended_at=NOW - 4)
    sim.add_run(workflow_id, run_id=148, started_at=NOW - 3, ended_at=NOW - 2, result="failure", exception="exactly")
    async with served(sim) as client:
        path = f"/rest/v1/executions/{workflow_id}?auditId="
        large, small, log, exact = [(await get(client, f"{path}{n}"))["exception"] for n in (140, 141, 147, 148)]
    assert 100_000 <= len(large) < 101_000
    assert 1_000 <= len(small) < 1_200
    assert log.startswith("INFO")
    assert exact == "exactly"


async def test_schedules_tell_the_native_retries_and_the_expected_time() -> None:
    _, sim = empty()
    workflow_id = sim.add_workflow(every=30, retries=3, retry_minutes=5, expected_minutes=10)
    sim.add_workflow(scheduled=False)
    async with served(sim) as client:
        (schedule,) = await get(client, "/rest/v1/schedules")
    assert (schedule["flowId"], schedule["schedule"]) == (int(workflow_id), "every 30 seconds")
    assert (schedule["retries"], schedule["delayBetweenRetries"], schedule["expectedTime"]) == (3, 5, 10)


async def test_health_asks_for_no_token_and_counts_the_running_flows() -> None:
    _, sim = empty()
    workflow_id = sim.add_workflow()
    sim.add_run(workflow_id, started_at=NOW - 9, ended_at=NOW + 9)
    sim.add_run(workflow_id, started_at=NOW - 9, ended_at=NOW - 1)
    sim.add_run(workflow_id, started_at=NOW + 1, ended_at=NOW + 9)
    async with served(sim, token=None) as client:
        health = await get(client, "/health?allNodes=true")
    assert health["status"] == "UP"
    assert (health["db"]["running.flows"], health["db"]["schema.version"]) == (1, 84)
    assert health["ram"]["heap.used"] == 3 * 2**30


async def test_a_renamed_flow_has_its_new_name_everywhere() -> None:
    _, sim = empty()
    workflow_id = sim.add_workflow(name="old")
    sim.add_run(workflow_id, started_at=NOW - 9, ended_at=NOW - 1)
    sim.rename_workflow(workflow_id, "new")
    async with served(sim) as client:
        assert (await get(client, f"/rest/v1/flows/{workflow_id}"))["name"] == "new"
        assert (await get(client, f"/rest/v1/executions/{workflow_id}"))["flowName"] == "new"


# --- Starting -------------------------------------------------------------------------------------------------------


async def test_a_start_makes_a_fresh_run_on_demand_that_resolves_the_dead_letter_when_it_succeeds() -> None:
    clock, sim = empty(retry_success=1.0)
    workflow_id = sim.add_workflow(typical=30)
    failed = sim.add_run(workflow_id, started_at=NOW - 90, ended_at=NOW - 80, result="failure")
    async with served(sim) as client:
        started = await post(client, f"/rest/v1/flows/{workflow_id}/run", {"day": "2026-01-15"})
        assert started["auditId"] > int(failed)
        assert {**started, "auditId": 0} == {
            "flowId": int(workflow_id), "messageUuid": None, "auditId": 0, "status": 0, "exception": None,
        }  # fmt: skip
        assert sim.truth().open_dead_letters() == {workflow_id: 1}
        await clock.advance(120)
        shown = await get(client, f"/rest/v1/executions/{workflow_id}?auditId={started['auditId']}")
    assert (shown["status"], shown["startedBy"]) == ("success", "demo")
    assert shown["triggerType"] == "flow.execution.on.demand"
    assert sim.truth().counts() == {(workflow_id, "failure"): 1, (workflow_id, "success"): 1}
    assert sim.truth().open_dead_letters() == {}
    assert sim.requests["POST /rest/v1/flows/{flowId}/run"] == 1


async def test_a_start_that_fails_is_a_dead_letter_of_its_own_and_never_repeated_natively() -> None:
    clock, sim = empty(retry_success=0.0)
    workflow_id = sim.add_workflow(retries=3, errors=["platform"])
    async with served(sim) as client:
        started = await post(client, f"/rest/v1/flows/{workflow_id}/run")
    await clock.advance(3_600)
    assert sim.truth().counts() == {(workflow_id, "failure"): 1}
    assert [d.dead_letter_id for d in sim.truth().dead_letters] == [str(started["auditId"])]


@pytest.mark.parametrize("prefix", ["/rest/v1", "/plugins/flows/rest/v1"])
async def test_a_flow_is_started_by_its_encoded_name(prefix: str) -> None:
    _, sim = empty()
    workflow_id = sim.add_workflow(name="orders/returns to Köln 100%")
    async with served(sim) as client:
        name = "orders%2Freturns%20to%20K%C3%B6ln%20100%25"
        started = await post(client, f"{prefix}/flows/flow-name/{name}/run")
    assert (started["flowId"], started["status"]) == (int(workflow_id), 0)


@pytest.mark.parametrize("refusal", [3, 1, 500])
async def test_a_flow_that_runs_is_not_started_twice_unless_parallel_is_asked_for(refusal: Literal[3, 1, 500]) -> None:
    clock, sim = empty(refusal=refusal, parallel_parameter="allowParallel", cancel_seconds=60)
    workflow_id = sim.add_workflow(name="x")
    active = sim.add_run(workflow_id, started_at=NOW - 5, ended_at=NOW + 5, result="cancelled")
    async with served(sim) as client:
        for _ in ("running", "canceled but not yet down"):
            for path in (f"{workflow_id}/run", "flow-name/x/run"):
                answer = await post(client, f"/rest/v1/flows/{path}", status=500 if refusal == 500 else 200)
                assert answer["status"] == refusal
                assert answer.get("auditId") == (int(active) if refusal == 1 else None)
            await clock.advance(20)
        parallel = await post(client, f"/rest/v1/flows/{workflow_id}/run?allowParallel=true")
        assert parallel["status"] == 0
        await clock.advance(60)
        assert (await post(client, f"/rest/v1/flows/{workflow_id}/run"))["status"] == 0


# --- Webhooks -------------------------------------------------------------------------------------------------------


async def one_delivery(mode: WebhookMode, **options: Any) -> tuple[Delivery, Any]:
    """The webhook of one run that ended, and the execution as polled."""
    clock, sim = empty(webhook_mode=mode, **options)
    workflow_id = sim.add_workflow(1234)
    sim.add_run(workflow_id, run_id=80611, started_at=NOW, ended_at=NOW + 42.5, result="failure", error="network")
    assert sim.take_deliveries() == []
    await clock.advance(60)
    (delivery,) = sim.take_deliveries()
    assert sim.take_deliveries() == []
    async with served(sim) as client:
        return delivery, await get(client, "/rest/v1/executions/1234")


async def test_a_webhook_has_five_headers_and_the_execution_as_its_entity() -> None:
    delivery, polled = await one_delivery("entity")
    body = json.loads(delivery.body)
    url = "https://app.etlworks.com/rest/v1/flows/1234?auditId=80611"
    assert delivery.method == "POST"
    assert delivery.headers == {
        "Content-Type": "application/json",
        "X-Etl-Webhook-Event-Id": body["eventId"],
        "X-Etl-Webhook-Event": "Flow.Executed",
        "X-Etl-Webhook-Id": "1",
        "X-Etl-Webhook-Entity-Id": "80611",
        "X-Etl-Webhook-Entity-URL": url,
    }
    assert body.pop("entity") == polled
    assert len(body.pop("eventId")) == 36
    assert body.pop("entityUrl") == url
    assert body == {"eventType": "Flow.Executed", "webhookId": 1, "entityId": 80611, "timestamp": 1_700_000_042_500}


async def test_a_webhook_without_entity_or_without_body_still_names_the_execution() -> None:
    bare, _ = await one_delivery("bare")
    assert json.loads(bare.body)["entity"] is None
    assert json.loads(bare.body)["entityId"] == 80611
    get_only, _ = await one_delivery("get")
    assert (get_only.method, get_only.body) == ("GET", b"")
    assert {k: v for k, v in bare.headers.items() if k != "Content-Type"} == get_only.headers
    assert len(get_only.headers) == 5


async def test_a_webhook_carries_basic_auth_and_custom_headers_if_configured() -> None:
    delivery, _ = await one_delivery(
        "entity", webhook_user="hook", webhook_password="s3cret", webhook_headers={"X-Webhook-Token": "abc"}
    )
    assert delivery.headers["Authorization"] == "Basic " + base64.b64encode(b"hook:s3cret").decode()
    assert delivery.headers["X-Webhook-Token"] == "abc"


async def test_a_cancelled_run_is_announced_as_canceled_and_again_when_it_is_down() -> None:
    clock, sim = empty(cancel_seconds=30)
    workflow_id = sim.add_workflow()
    run_id = sim.add_run(workflow_id, started_at=NOW, ended_at=NOW + 5, result="cancelled")
    await clock.advance(60)
    bodies = [json.loads(delivery.body) for delivery in sim.take_deliveries()]
    assert [b["entityId"] for b in bodies] == [int(run_id)] * 2
    assert [b["entity"]["status"] for b in bodies] == ["canceled", "error"]
    assert [b["entity"]["ended"] / 1000 for b in bodies] == [NOW + 5, NOW + 35]
    assert bodies[0]["eventId"] != bodies[1]["eventId"]


async def test_a_created_flow_is_announced_in_its_turn_if_the_webhook_listens_to_that() -> None:
    clock, sim = empty(webhook_events=["Flow.Executed", "Flow.Created"])
    first = sim.add_workflow()
    run_id = sim.add_run(first, started_at=NOW, ended_at=NOW + 5)
    await clock.advance(10)
    second = sim.add_workflow()
    deliveries = sim.take_deliveries()
    assert [(d.headers["X-Etl-Webhook-Event"], d.headers["X-Etl-Webhook-Entity-Id"]) for d in deliveries] == [
        ("Flow.Created", first),
        ("Flow.Executed", run_id),
        ("Flow.Created", second),
    ]
    assert json.loads(deliveries[2].body)["entity"]["name"] == f"flow {second}"


async def test_webhooks_are_lost_doubled_and_shuffled_as_the_faults_say() -> None:
    clock, sim = empty()
    workflow_id = sim.add_workflow()

    async def entity_ids(**faults: float) -> list[int]:
        for name in ("webhook_lost", "webhook_duplicated", "webhook_shuffled"):
            setattr(sim.faults, name, faults.get(name, 0.0))
        now = clock.now()
        for i in range(3):
            sim.add_run(workflow_id, run_id=f"{now - NOW:.0f}{i}", started_at=now, ended_at=now + i + 1)
        await clock.advance(10)
        return [json.loads(delivery.body)["entityId"] % 10 for delivery in sim.take_deliveries()]

    assert await entity_ids() == [0, 1, 2]
    assert await entity_ids(webhook_lost=1) == []
    assert await entity_ids(webhook_duplicated=1) == [0, 0, 1, 1, 2, 2]
    assert await entity_ids(webhook_shuffled=1) == [1, 2, 0]


# --- Faults ---------------------------------------------------------------------------------------------------------


async def item_answers(client: Client) -> list[Any]:
    paths = ("/rest/v1/flows?offset=1", "/rest/v1/schedules?offset=1", "/rest/v1/executions/1001")
    return [await get(client, path) for path in paths]


@pytest.mark.parametrize("kind", ITEM_FAULTS)
async def test_a_faulty_item_is_shown_wrong_and_the_truth_stays_right(kind: str) -> None:
    sim = EtlworksSimulator(clock=ManualClock(NOW), workflows=6, paging=True)
    before = comparable(sim.truth())
    async with served(sim) as client:
        honest = await item_answers(client)
        assert await item_answers(client) == honest
        setattr(sim.faults, kind, 1.0)
        flows, schedules, execution = await item_answers(client)
        setattr(sim.faults, kind, 0.0)
        assert await item_answers(client) == honest
    honest_flows, honest_schedules, honest_execution = honest
    if kind == "shifting_pages":
        assert [f["id"] for f in flows] == list(range(1001, 1007))
    elif kind == "missing_fields":
        assert all(len(f) < len(h) and f["id"] == h["id"] for f, h in zip(flows, honest_flows, strict=True))
        assert len(execution) < len(honest_execution)
        assert {"auditId", "flowId", "status", "started"} <= set(execution)
    elif kind == "duplicates":
        assert [f["id"] for f in flows] == [h["id"] for h in honest_flows for _ in range(2)]
        assert len(schedules) == 2 * len(honest_schedules)
    elif kind == "null_numbers":
        assert None in [execution[key] for key in ("started", "ended", "records") if key in execution]
        assert all(None in (s["retries"], s["delayBetweenRetries"], s["expectedTime"]) for s in schedules)
    else:
        assert execution == {**honest_execution, "status": "suspended"}
    assert comparable(sim.truth()) == before


async def test_a_queued_item_fault_damages_exactly_one_answer() -> None:
    _, sim = empty()
    workflow_id = sim.add_workflow()
    sim.add_run(workflow_id, started_at=NOW - 9, ended_at=NOW - 1)
    sim.fail_next("unknown_status")
    async with served(sim) as client:
        statuses = [(await get(client, f"/rest/v1/executions/{workflow_id}"))["status"] for _ in range(2)]
    assert statuses == ["suspended", "success"]


async def test_the_general_faults_have_the_platforms_error_form_where_it_has_one() -> None:
    _, sim = empty(faults=Faults(slow_seconds=0.01))
    sim.add_workflow()
    sim.fail_next("rate_limited", "rate_limited_text", "unavailable", "server_error_html", "ok_html", "truncated")
    sim.fail_next("slow")
    answers = []
    async with served(sim) as client:
        for _ in range(8):
            async with client.get("/rest/v1/flows") as response:
                answers.append((response.status, response.content_type, await response.text()))
                if response.status == 429:
                    assert response.headers["Retry-After"] == "2"
    assert [status for status, _, _ in answers] == [429, 429, 503, 502, 200, 200, 200, 200]
    assert json.loads(answers[0][2])["error"] == "Too Many Requests"
    assert answers[1][1] == "text/plain"
    assert json.loads(answers[2][2])["status"] == 503
    assert answers[4][1] == "text/html"
    with pytest.raises(json.JSONDecodeError):
        json.loads(answers[5][2])
    assert answers[6] == answers[7]


async def test_truth_and_faults_are_open_to_people_who_run_the_simulator() -> None:
    _, sim = empty()
    workflow_id = sim.add_workflow()
    run_id = sim.add_run(workflow_id, started_at=NOW - 9, ended_at=NOW - 1, result="failure", error="quota")
    async with served(sim, token=None) as client:
        truth = await get(client, "/_sim/truth")
        assert (await post(client, "/_sim/faults", {"unavailable": 1, "retry_after": None}))["unavailable"] == 1
        for wrong in ({"weather": 1}, {"unavailable": "often"}, {"unavailable": None}, {"truncated": 1, "slow": -1}):
            await post(client, "/_sim/faults", wrong, status=400)
        await get(client, "/health", status=503)
    assert (sim.faults.unavailable, sim.faults.retry_after, sim.faults.truncated) == (1, None, 0)
    assert truth["runs"] == [
        {
            "workflow_id": workflow_id, "run_id": run_id, "attempt": 1, "result": "failure",
            "started_at": NOW - 9, "ended_at": NOW - 1, "error_class": "quota",
        }
    ]  # fmt: skip
    assert truth["dead_letters"][0]["dead_letter_id"] == run_id
    assert sim.requests == {"GET /health": 1}
