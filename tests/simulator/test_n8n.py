"""What a test can ask of the simulated n8n beyond the story that tests/n8n holds against a real one."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp.test_utils import TestClient, TestServer

from exporter.clock import ManualClock
from exporter.simulator.core import Faults, Truth
from exporter.simulator.n8n import N8nSimulator
from exporter.simulator.n8n.api import Version
from exporter.simulator.n8n.model import SECOND, Instance
from exporter.simulator.retries import RetryPlan

START = 1_768_456_800.0
KEY = {"X-N8N-API-KEY": "demo-token"}

Client = TestClient[Any, Any]
Serve = Callable[[N8nSimulator], Awaitable[Client]]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    async with AsyncExitStack() as stack:

        async def start(simulator: N8nSimulator) -> Client:
            return await stack.enter_async_context(TestClient(TestServer(simulator.app())))

        yield start


async def ask(client: Client, path: str, *, status: int = 200, method: str = "GET", headers: Any = KEY) -> Any:
    body: Any = {} if method == "POST" else None
    async with client.request(method, f"/api/v1/{path}", json=body, headers=headers) as answer:
        body = await answer.json()
        assert answer.status == status, body
        return body


async def list_all(client: Client, *, limit: int = 250, **filters: str) -> list[Any]:
    rows: list[Any] = []
    query = "".join(f"&{name}={value}" for name, value in filters.items())
    cursor = ""
    while True:
        page = await ask(client, f"executions?limit={limit}{query}{cursor}")
        rows += page["data"]
        if page["nextCursor"] is None:
            return rows
        cursor = f"&cursor={page['nextCursor']}"


async def retry(clock: ManualClock, client: Client, execution_id: str) -> Any:
    """The answer comes when the new execution has ended, so that time must pass."""
    call = asyncio.create_task(ask(client, f"executions/{execution_id}/retry", method="POST"))
    while not call.done():
        await asyncio.wait({call}, timeout=0.005)
        await clock.advance(0.5)
    return call.result()


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


# The world.


async def test_the_same_seed_gives_the_same_world_however_it_is_advanced_and_whoever_asks(serve: Serve) -> None:
    async def live(steps: int, *, curious: bool) -> tuple[Truth, list[Any], list[bytes]]:
        clock = ManualClock(START)
        simulator = N8nSimulator(clock=clock, seed=7)
        client = await serve(simulator)
        for _ in range(steps):
            await clock.advance(14_400 / steps)
            if curious:
                await ask(client, "executions?limit=5&includeData=true")
                await ask(client, "workflows")
        simulator.advance(clock.now())
        return simulator.truth(), await list_all(client), [d.body for d in simulator.take_deliveries()]

    at_once = await live(1, curious=False)
    assert at_once == await live(64, curious=True)
    assert len(at_once[0].runs) > 300


def test_another_seed_gives_another_world() -> None:
    worlds = [N8nSimulator(clock=ManualClock(START), seed=seed).truth() for seed in (1, 2)]
    assert worlds[0] != worlds[1]


async def test_what_is_listed_is_what_happened_and_every_failure_is_reported(clock: ManualClock, serve: Serve) -> None:
    simulator = N8nSimulator(clock=clock, workflows=12)
    client = await serve(simulator)
    before = len(simulator.truth().runs)
    await clock.advance(7200)
    rows = {row["id"]: row for row in await list_all(client, limit=100)}
    called = {row["id"] for row in rows.values() if row["mode"] == "integrated"}  # reports nothing, its caller does
    truth = simulator.truth()
    words = {"success": "success", "failure": "error", "timeout": "canceled", "cancelled": "canceled"}
    for run in truth.runs:
        row = rows.pop(run.run_id)
        assert (row["status"], row["workflowId"]) == (words[run.result], run.workflow_id)
        assert (seconds(row["startedAt"]), seconds(row["stoppedAt"])) == (run.started_at, run.ended_at)
        assert row["mode"] not in ("manual", "error")
    left = Counter((row["mode"], row["status"]) for row in rows.values())
    assert {mode for mode, status in left if status != "waiting"} == {"manual", "error"}
    reported = {orjson.loads(d.body)["run_id"] for d in simulator.take_deliveries()}
    new = {run.run_id for run in truth.runs[before:] if run.result != "success"} - called
    assert len(new) > 10
    assert len(new - reported) <= 1, "the last one may not be reported yet"
    assert {"success", "failure", "timeout"} <= {run.result for run in truth.runs}


async def test_a_dead_letter_is_open_while_no_try_of_its_chain_has_succeeded(clock: ManualClock, serve: Serve) -> None:
    simulator = N8nSimulator(clock=clock, workflows=12)
    client = await serve(simulator)
    await clock.advance(6 * 3600)
    rows = {row["id"]: row for row in await list_all(client)}
    chains: dict[str, list[Any]] = {}
    for row in rows.values():
        root = row
        while root["retryOf"] is not None:
            root = rows[root["retryOf"]]
        chains.setdefault(root["id"], []).append(row)
    letters = {d.dead_letter_id: d for d in simulator.truth().dead_letters}
    for root_id, chain in chains.items():
        root = rows[root_id]
        if root["status"] == "error" and root["mode"] not in ("manual", "error", "integrated"):
            healed = any(row["status"] == "success" for row in chain)
            assert (letters.pop(root_id).resolved_at is not None) == healed
    assert letters == {}


async def test_what_is_not_saved_leaves_a_gap_and_is_true_all_the_same(clock: ManualClock, serve: Serve) -> None:
    simulator = N8nSimulator(clock=clock, workflows=0)
    workflow = simulator.add_workflow("w", settings={"saveDataSuccessExecution": "none"})
    client = await serve(simulator)
    simulator.skip_ids(40)
    gone = simulator.add_run(workflow, started_at=START, ended_at=START + 5)
    kept = simulator.add_run(workflow, started_at=START + 1, ended_at=START + 6, result="failure", error="network")
    assert (gone, kept) == ("41", "42")
    await clock.advance(10)
    assert [row["id"] for row in await list_all(client)] == [kept]
    await ask(client, f"executions/{gone}", status=404)
    assert [run.result for run in simulator.truth().runs] == ["success", "failure"]


async def test_old_and_surplus_rows_are_pruned_but_never_what_is_open(clock: ManualClock, serve: Serve) -> None:
    instance = Instance(prune_max_count=3, prune_max_age=3600 * SECOND, prune_every=60 * SECOND)
    simulator = N8nSimulator(clock=clock, workflows=0, instance=instance)
    workflow = simulator.add_workflow("w")
    client = await serve(simulator)
    runs = [simulator.add_run(workflow, started_at=START, ended_at=None)]
    runs += [simulator.add_run(workflow, started_at=START, ended_at=START + 1, result="failure") for _ in range(5)]
    await clock.advance(61)
    assert [row["id"] for row in await list_all(client)] == runs[:-4:-1]
    assert [row["id"] for row in await list_all(client, status="running")] == runs[:1]
    assert simulator.truth().open_dead_letters() == {workflow: 3}
    await clock.advance(3600)
    assert await list_all(client) == []
    assert simulator.truth().open_dead_letters() == {}


async def test_a_crash_is_told_after_the_restart_as_of_before_it(clock: ManualClock, serve: Serve) -> None:
    simulator = N8nSimulator(clock=clock, workflows=0)
    workflow = simulator.add_workflow("w")
    client = await serve(simulator)
    run = simulator.add_run(workflow, started_at=START, ended_at=START + 100)
    await clock.advance(90)
    simulator.kill()
    with pytest.raises(aiohttp.ClientError):
        await ask(client, "executions")
    await clock.advance(60)
    simulator.restart()
    await clock.advance(20)
    [row] = await list_all(client)
    assert (row["id"], row["status"]) == (run, "crashed")
    assert START <= seconds(row["stoppedAt"]) <= START + 90
    [true] = simulator.truth().runs
    assert (true.result, true.error_class) == ("failure", "killed")
    whole = await ask(client, f"executions/{run}?includeData=true")
    times = [node[0]["startTime"] for node in whole["data"]["resultData"]["runData"].values()]
    assert all(START - 1 <= moment <= START + 90 for moment in times), "whole seconds"


# Versions, keys, faults.


async def test_older_versions_know_less(clock: ManualClock, serve: Serve) -> None:
    old = Version(ignores_unknown=False, started_after=False, retry=False, stop=False, new_statuses=False)
    client = await serve(N8nSimulator(clock=clock, workflows=1, version=old))
    await ask(client, "executions?startedAfter=2026-01-01T00:00:00Z", status=400)
    await ask(client, "executions?status=running", status=400)
    await ask(client, "executions/1/retry", method="POST", status=404)
    client = await serve(N8nSimulator(clock=clock, workflows=1, version=Version(started_after=False)))
    everything = await list_all(client)
    assert await list_all(client, startedAfter="2999-01-01T00:00:00Z") == everything, "silently"


async def test_a_key_may_do_what_its_scopes_say(clock: ManualClock, serve: Serve) -> None:
    simulator = N8nSimulator(clock=clock, workflows=1)
    simulator.add_key("reader", "execution:list")
    client = await serve(simulator)
    reader = {"X-N8N-API-KEY": "reader"}
    assert (await ask(client, "discover", headers=reader))["data"]["scopes"] == ["execution:list"]
    await ask(client, "executions", headers=reader)
    assert await ask(client, "workflows", headers=reader, status=403) == {"message": "Forbidden"}
    assert await ask(client, "workflows", headers={}, status=401) == {"message": "Unauthorized"}
    await ask(client, "workflows", headers={"Authorization": "Bearer demo-token"}, status=401)


async def test_a_report_that_gets_lost_is_a_failure_of_the_error_workflow(clock: ManualClock, serve: Serve) -> None:
    simulator = N8nSimulator(clock=clock, faults=Faults(webhook_lost=1.0), workflows=6)
    client = await serve(simulator)
    await clock.advance(7200)
    simulator.advance(clock.now())
    assert simulator.take_deliveries() == []
    failed = [row for row in await list_all(client, status="error") if row["mode"] == "error"]
    assert failed


# Retries.


async def test_a_retry_answers_when_it_has_ended_with_whatever_came_of_it(clock: ManualClock, serve: Serve) -> None:
    simulator = N8nSimulator(clock=clock, workflows=0)
    workflow = simulator.add_workflow("w", typical_seconds=20)
    client = await serve(simulator)
    run = simulator.add_run(workflow, started_at=START, ended_at=START + 1, result="failure", error="network")
    await clock.advance(5)
    simulator.plan_retries("failure", "success")
    first = await retry(clock, client, run)
    assert (first["status"], first["retryOf"], clock.now() >= START + 25) == ("error", run, True)
    second = await retry(clock, client, first["id"])
    assert (second["status"], second["retryOf"]) == ("success", first["id"])
    assert simulator.retry_calls == simulator.retry_executions == {run: 2}
    assert (await ask(client, f"executions/{run}"))["retrySuccessId"] is None
    assert simulator.truth().open_dead_letters() == {}


@pytest.mark.parametrize(("fate", "executions"), [("cut", 1), ("error", 1), ("lost", 0), ("beaten", 1)])
async def test_what_may_become_of_a_call(clock: ManualClock, serve: Serve, fate: Any, executions: int) -> None:
    simulator = N8nSimulator(clock=clock, workflows=0)
    workflow = simulator.add_workflow("w")
    client = await serve(simulator)
    run = simulator.add_run(workflow, started_at=START, ended_at=START + 1, result="failure", error="network")
    await clock.advance(5)
    simulator.plan_retries(RetryPlan(outcome="success", fate=fate))
    if fate in ("cut", "lost"):
        with pytest.raises(aiohttp.ClientError):
            await ask(client, f"executions/{run}/retry", method="POST")
    elif fate == "error":
        await ask(client, f"executions/{run}/retry", method="POST", status=500)
    else:
        await retry(clock, client, run)
    await clock.advance(60)
    rows = await list_all(client)
    assert simulator.retry_calls == {run: 1}
    assert simulator.retry_executions.get(run, 0) == executions
    assert len(rows) == 1 + executions + (fate == "beaten"), "nothing guards a second one"
