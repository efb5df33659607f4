"""The simulated Cognaize installation keeps the promises of its documents, and its truth agrees with what it shows."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import datetime
from email.utils import parsedate_to_datetime
from itertools import pairwise
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp.test_utils import TestClient, TestServer

from exporter.clock import ManualClock
from exporter.simulator.cognaize import CognaizeSimulator
from exporter.simulator.cognaize.process import Step
from exporter.simulator.core import Faults, Truth
from tests.servers import HANG_SECONDS

START = 1_768_456_800.0
AUTH = {"Authorization": "Bearer demo-token"}
FIND, RESTART = "/api/v1/processes/find", "/api/v1/processes/restart-failed-step"

Client = TestClient[Any, Any]
Serve = Callable[[CognaizeSimulator], Awaitable[Client]]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    async with AsyncExitStack() as stack:

        async def start(simulator: CognaizeSimulator) -> Client:
            return await stack.enter_async_context(TestClient(TestServer(simulator.app())))

        yield start


async def ask(client: Client, path: str, body: Any = None, *, status: int = 200, headers: Any = AUTH) -> Any:
    """``data`` of the answer, which must wear the envelope; a GET if there is no body."""
    method = "GET" if body is None else "POST"
    async with client.request(method, path, json=body, headers=headers) as answer:
        envelope = await answer.json()
        assert answer.status == status, envelope
        assert set(envelope) == {"message", "timestamp", "data", "version"}
        return envelope["data"]


async def find_all(client: Client, *, size: int = 100, workflow_id: str | None = None) -> list[Any]:
    rows: list[Any] = []
    number, last = 0, False
    while not last:
        page = await ask(client, FIND, {"pageNumber": number, "pageSize": size, "workflowId": workflow_id})
        rows, number, last = rows + page["content"], number + 1, page["last"]
    return rows


def statuses(process: Any) -> list[str]:
    return [step["processStepStatus"] for step in process["steps"]]


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


async def one_failed(clock: ManualClock, serve: Serve, **options: Any) -> tuple[CognaizeSimulator, Client]:
    """A world whose only process p-1 failed in its second step 50 s ago."""
    simulator = CognaizeSimulator(clock=clock, workflows=0, **options)
    simulator.add_workflow("wf-1")
    simulator.add_run(
        "wf-1", run_id="p-1", started_at=START - 100, ended_at=START - 50, result="failure", error="network"
    )
    return simulator, await serve(simulator)


# The world.


async def test_the_same_seed_gives_the_same_world_however_it_is_advanced_and_whoever_asks(serve: Serve) -> None:
    async def live(steps: int, *, curious: bool) -> tuple[Truth, list[Any], list[bytes]]:
        clock = ManualClock(START)
        simulator = CognaizeSimulator(clock=clock, seed=7)
        client = await serve(simulator)
        for _ in range(steps):
            await clock.advance(14_400 / steps)
            if curious:
                await ask(client, "/auth/token", {"login": "demo", "password": "demo-password"}, headers={})
                await ask(client, FIND, {"pageNumber": 1, "pageSize": 10})
        simulator.advance(clock.now())
        return simulator.truth(), await find_all(client), [d.body for d in simulator.take_deliveries()]

    at_once = await live(1, curious=False)
    assert at_once == await live(64, curious=True)
    assert len(at_once[0].runs) > 100


def test_another_seed_gives_another_world() -> None:
    worlds = [CognaizeSimulator(clock=ManualClock(START), seed=seed).truth() for seed in (1, 2)]
    assert worlds[0] != worlds[1]


async def test_a_plausible_past_exists_but_only_what_finishes_later_is_delivered(clock: ManualClock) -> None:
    simulator = CognaizeSimulator(clock=clock)
    past = simulator.truth()
    assert past.runs[0].ended_at < START - 5400
    assert {run.result for run in past.runs} == {"success", "failure"}
    assert simulator.take_deliveries() == []
    simulator.advance(START + 3600)
    assert len(simulator.take_deliveries()) == len(simulator.truth().runs) - len(past.runs) > 0


async def test_what_the_api_shows_of_every_process_is_its_last_true_attempt(clock: ManualClock, serve: Serve) -> None:
    simulator = CognaizeSimulator(clock=clock, workflows=12)
    client = await serve(simulator)
    await clock.advance(7200)
    rows = {row["id"]: row for row in await find_all(client)}
    truth = simulator.truth()
    last = {run.run_id: run for run in truth.runs}  # in the order of their ends
    running = 0
    for process_id, row in rows.items():
        state = "".join(status[0] for status in statuses(row))
        assert re.fullmatch("C*[SF]P*|C+", state), "one step after the other"
        if "S" in state:
            running += 1
            assert clock.now() - seconds(row["updatedTimestamp"]) <= 600, "nothing is stuck beyond the longest timeout"
            continue
        run = last.pop(process_id)
        assert seconds(row["updatedTimestamp"]) == run.ended_at
        assert run.result == ("failure" if "F" in state else "success")
        if run.attempt == 1:
            assert seconds(row["creationTimestamp"]) == run.started_at
    assert running > 0
    assert all("STARTED" in statuses(rows[process_id]) for process_id in last), "only restarted ones are left"


def test_people_restart_some_failures_in_place_and_the_truth_counts_each_finish(clock: ManualClock) -> None:
    simulator = CognaizeSimulator(clock=clock, workflows=12)
    simulator.advance(START + 6 * 3600)
    truth = simulator.truth()
    attempts: dict[str, list[Any]] = {}
    for run in truth.runs:
        attempts.setdefault(run.run_id, []).append(run)
    restarted = [runs for runs in attempts.values() if len(runs) > 1]
    assert restarted
    assert any(runs[-1].result == "success" for runs in restarted)
    letters = {letter.dead_letter_id: letter for letter in truth.dead_letters}
    for runs in attempts.values():
        assert [run.attempt for run in runs] == list(range(1, len(runs) + 1))
        for before, after in pairwise(runs):
            assert before.result == "failure"
            assert before.ended_at < after.started_at < after.ended_at
            (letter,) = (held for held in letters.values() if is_of(held.dead_letter_id, before))
            assert (letter.opened_at, letter.resolved_at) == (before.ended_at, after.started_at)
    assert len(letters) == sum(run.result == "failure" for run in truth.runs)


def test_a_restart_seldom_helps_against_an_error_in_the_data(clock: ManualClock) -> None:
    simulator = CognaizeSimulator(clock=clock, workflows=12)
    simulator.advance(START + 2 * 86_400)
    outcomes: dict[str, list[str]] = {"validation": [], "network": []}
    failed: dict[str, str | None] = {}
    for run in simulator.truth().runs:
        if run.attempt > 1:
            outcomes.get(failed[run.run_id] or "", []).append(run.result)
        failed[run.run_id] = run.error_class
    assert outcomes["validation"].count("failure") > outcomes["validation"].count("success")
    assert outcomes["network"].count("failure") < outcomes["network"].count("success")


def is_of(letter_id: str, run: Any) -> bool:
    process_id, step_id, millis = letter_id.split(".")
    return process_id == run.run_id and step_id.startswith(process_id) and millis == str(round(run.ended_at * 1000))


async def test_old_processes_are_forgotten_by_the_api_and_kept_by_the_truth(clock: ManualClock, serve: Serve) -> None:
    simulator = CognaizeSimulator(clock=clock, workflows=2, kept_max=50)
    client = await serve(simulator)
    await clock.advance(3 * 86_400)
    for workflow_id in ("wf-1", "wf-2"):
        assert 50 <= len(await find_all(client, workflow_id=workflow_id)) <= 55
    runs = simulator.truth().runs
    assert len(runs) > 200
    await ask(client, f"/api/v1/processes/{runs[0].run_id}", status=404)


async def test_the_api_forgets_by_age_but_never_what_still_runs(clock: ManualClock, serve: Serve) -> None:
    simulator = CognaizeSimulator(clock=clock, workflows=0, kept_seconds=1000)
    simulator.add_workflow("wf-1")
    simulator.add_run("wf-1", run_id="p-open", started_at=START - 90, ended_at=None, result="success")
    simulator.add_run("wf-1", run_id="p-old", started_at=START - 80, ended_at=START - 10, result="success")
    simulator.add_run("wf-1", run_id="p-new", started_at=START + 2000, ended_at=START + 2001, result="success")
    client = await serve(simulator)
    await clock.advance(2500)
    assert [row["id"] for row in await find_all(client)] == ["p-open", "p-new"]


# Exact worlds.


async def test_steps_follow_each_other_and_each_transition_changes_the_update_timestamp(
    clock: ManualClock, serve: Serve
) -> None:
    simulator = CognaizeSimulator(clock=clock, workflows=0)
    simulator.add_workflow("wf-1")
    simulator.add_run("wf-1", run_id="p-1", started_at=START + 10, ended_at=START + 40, result="success")
    client = await serve(simulator)
    await ask(client, "/api/v1/processes/p-1", status=404)
    seen = []
    for _ in range(6):
        await clock.advance(10)
        process = await ask(client, "/api/v1/processes/p-1")
        seen.append(("".join(s[0] for s in statuses(process)), seconds(process["updatedTimestamp"]) - START))
    assert seen == [("SPP", 10), ("CSP", 20), ("CCS", 30), ("CCC", 40), ("CCC", 40), ("CCC", 40)]


async def test_a_run_counts_in_the_truth_only_once_the_clock_has_reached_its_end(clock: ManualClock) -> None:
    simulator = CognaizeSimulator(clock=clock, workflows=0)
    simulator.add_workflow("wf-1")
    simulator.add_run("wf-1", run_id="p-1", started_at=START - 5, ended_at=START + 0.125, result="failure")
    simulator.advance(START + 0.124)
    assert simulator.truth() == Truth()
    simulator.advance(START + 0.125)
    (run,) = simulator.truth().runs
    assert (run.result, run.error_class, run.started_at, run.ended_at) == (
        "failure",
        "unknown",
        START - 5,
        START + 0.125,
    )
    assert [d.dead_letter_id for d in simulator.truth().dead_letters] == [f"p-1.p-1-s2.{int(START * 1000) + 125}"]


async def test_restarts_of_exact_times_make_attempts_and_resolve_dead_letters(clock: ManualClock, serve: Serve) -> None:
    simulator, client = await one_failed(clock, serve)
    simulator.add_restart("p-1", started_at=START - 20, ended_at=START - 15, result="failure", error="platform")
    simulator.add_restart("p-1", started_at=START + 5, ended_at=START + 25, result="success")
    assert statuses(await ask(client, "/api/v1/processes/p-1")) == ["COMPLETED", "FAILED", "PENDING"]
    await clock.advance(5)
    process = await ask(client, "/api/v1/processes/p-1")
    assert (statuses(process), seconds(process["updatedTimestamp"])) == (["COMPLETED", "STARTED", "PENDING"], START + 5)
    await clock.advance(20)
    assert set(statuses(await ask(client, "/api/v1/processes/p-1"))) == {"COMPLETED"}
    truth = simulator.truth()
    assert [(r.attempt, r.result, r.started_at - START, r.ended_at - START) for r in truth.runs] == [
        (1, "failure", -100, -50),
        (2, "failure", -20, -15),
        (3, "success", 5, 25),
    ]
    assert [(d.error_class, d.resolved_at) for d in truth.dead_letters] == [
        ("network", START - 20),
        ("platform", START + 5),
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"result": "warning"},
        {"result": "success", "error": "network"},
        {"result": "failure", "error": "bad luck"},
        {"result": "failure", "failed_step": 3},
        {"result": "success", "ended_at": START - 1},
    ],
)
def test_a_run_the_platform_could_not_have_is_refused(clock: ManualClock, wrong: dict[str, Any]) -> None:
    simulator = CognaizeSimulator(clock=clock, workflows=0)
    simulator.add_workflow("wf-1")
    with pytest.raises(ValueError, match=r".+"):
        simulator.add_run("wf-1", **{"started_at": START, "ended_at": START + 1, **wrong})


async def test_workflows_can_be_disabled_and_deleted(clock: ManualClock, serve: Serve) -> None:
    simulator = CognaizeSimulator(clock=clock, workflows=2)
    client = await serve(simulator)
    simulator.set_enabled("wf-1", False)
    simulator.rename_workflow("wf-2", "Letters")
    await clock.advance(3600)
    late = {row["workflowId"] for row in await find_all(client) if seconds(row["creationTimestamp"]) > START}
    assert late == {"wf-2"}
    simulator.add_run("wf-2", started_at=START, ended_at=START + 1, result="failure")
    assert simulator.truth().open_dead_letters()["wf-2"] > 0
    simulator.delete_workflow("wf-2")
    before = len(simulator.truth().runs)
    await clock.advance(3600)
    assert {row["workflowId"] for row in await find_all(client)} == {"wf-1"}
    assert len(simulator.truth().runs) == before > 0
    assert simulator.truth().open_dead_letters()["wf-2"] == 0
    with pytest.raises(ValueError, match="wf-2"):
        simulator.rename_workflow("wf-2", "Gone")


# Credentials and the envelope.


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic demo-token"}])
async def test_without_a_good_token_the_answer_is_401_with_a_text_in_the_envelope(
    clock: ManualClock, serve: Serve, headers: dict[str, str]
) -> None:
    client = await serve(CognaizeSimulator(clock=clock))
    data = await ask(client, FIND, {"pageNumber": 0, "pageSize": 1}, status=401, headers=headers)
    assert isinstance(data, str)


async def test_an_issued_token_lives_ten_hours_and_its_answer_has_nine_digits(clock: ManualClock, serve: Serve) -> None:
    client = await serve(CognaizeSimulator(clock=clock, workflows=1, token=None, token_path="/login"))
    async with client.post("/login", json={"login": "demo", "password": "demo-password"}) as answer:
        envelope = await answer.json()
    assert (envelope["data"]["expires_in"], envelope["data"]["refresh_expires_in"]) == (36_000, 1800)
    assert envelope["timestamp"] == "2026-01-15T06:00:00.000000000Z"
    headers = {"Authorization": f"Bearer {envelope['data']['access_token']}"}
    body = {"pageNumber": 0, "pageSize": 1}
    await clock.advance(35_999)
    await ask(client, FIND, body, headers=headers)
    await clock.advance(1)
    await ask(client, FIND, body, headers=headers, status=401)
    await ask(client, FIND, body, status=401)  # the static token is switched off


async def test_a_wrong_password_is_401_and_a_malformed_login_412(clock: ManualClock, serve: Serve) -> None:
    client = await serve(CognaizeSimulator(clock=clock, workflows=0))
    assert isinstance(await ask(client, "/auth/token", {"login": "demo", "password": "x"}, status=401), str)
    assert isinstance(await ask(client, "/auth/token", ["demo"], status=412), dict)


async def test_unknown_paths_and_methods_wear_the_envelope_and_the_simulated_date(
    clock: ManualClock, serve: Serve
) -> None:
    client = await serve(CognaizeSimulator(clock=clock, workflows=0))
    await ask(client, "/api/v1/workflow-list", status=404)
    await ask(client, "/api/v1/workflows", status=405)
    async with client.get("/api/v1/nothing", headers=AUTH) as answer:
        assert parsedate_to_datetime(answer.headers["Date"]).timestamp() == START


# Listings.


async def test_pages_are_spring_pages_counted_from_zero(clock: ManualClock, serve: Serve) -> None:
    simulator = CognaizeSimulator(clock=clock, workflows=0)
    for workflow_id, count in (("wf-1", 5), ("wf-2", 2)):
        simulator.add_workflow(workflow_id)
        for number in range(count):
            began = START - 100 + number
            simulator.add_run(workflow_id, started_at=began, ended_at=began + 9, result="success")
    client = await serve(simulator)
    page = await ask(client, FIND, {"pageNumber": 1, "pageSize": 2, "workflowId": "wf-1"})
    assert len(page.pop("content")) == 2
    sort = {"empty": True, "unsorted": True, "sorted": False}
    assert page == {
        "totalPages": 3,
        "totalElements": 5,
        "first": False,
        "last": False,
        "size": 2,
        "number": 1,
        "numberOfElements": 2,
        "empty": False,
        "sort": sort,
        "pageable": {"offset": 2, "pageSize": 2, "pageNumber": 1, "paged": True, "unpaged": False, "sort": sort},
    }
    beyond = await ask(client, FIND, {"pageNumber": 9, "pageSize": 2})
    assert (beyond["empty"], beyond["content"], beyond["totalElements"], beyond["last"]) == (True, [], 7, True)
    nothing = await ask(client, FIND, {"pageNumber": 0, "pageSize": 2, "workflowId": "wf-3"})
    assert (nothing["totalElements"], nothing["totalPages"], nothing["last"]) == (0, 0, True)
    assert len({row["id"] for row in await find_all(client, size=2)}) == 7


@pytest.mark.parametrize(
    "body", [{}, {"pageNumber": 0}, {"pageNumber": -1, "pageSize": 5}, {"pageNumber": 0, "pageSize": "5"}, []]
)
async def test_a_page_that_is_not_well_asked_for_is_412_with_a_map(clock: ManualClock, serve: Serve, body: Any) -> None:
    client = await serve(CognaizeSimulator(clock=clock, workflows=0))
    data = await ask(client, FIND, body, status=412)
    assert data
    assert all(isinstance(detail, dict) for detail in data.values())


async def test_pages_are_never_larger_than_the_platform_allows(clock: ManualClock, serve: Serve) -> None:
    client = await serve(CognaizeSimulator(clock=clock, page_size_max=20))
    page = await ask(client, FIND, {"pageNumber": 0, "pageSize": 1000})
    assert (page["size"], page["numberOfElements"], page["pageable"]["pageSize"]) == (20, 20, 20)


async def test_the_order_of_listings_is_an_option(clock: ManualClock, serve: Serve) -> None:
    created: dict[str, list[str]] = {}
    for order in ("oldest_first", "newest_first", "unordered"):
        simulator = CognaizeSimulator(clock=ManualClock(START), order=order)
        rows = await find_all(await serve(simulator), size=7)
        assert len({row["id"] for row in rows}) == len(rows) > 50
        created[order] = [row["creationTimestamp"] for row in rows]
    assert created["oldest_first"] == sorted(created["oldest_first"])
    assert created["newest_first"] == created["oldest_first"][::-1]
    assert sorted(created["unordered"]) == created["oldest_first"] != created["unordered"]
    assert created["unordered"] != created["newest_first"]


async def test_timestamps_have_three_digits_or_nine(clock: ManualClock, serve: Serve) -> None:
    short = await find_all(await serve(CognaizeSimulator(clock=clock)))
    assert {len(row["updatedTimestamp"]) for row in short} == {len("2026-01-15T06:00:00.000Z")}
    simulator = CognaizeSimulator(clock=clock, timestamps="ns")
    long = await find_all(await serve(simulator))
    assert {len(row["updatedTimestamp"]) for row in long} == {len("2026-01-15T06:00:00.000000000Z")}
    shown = {seconds(row["updatedTimestamp"]) for row in long if "STARTED" not in statuses(row)}
    assert shown <= {run.ended_at for run in simulator.truth().runs}
    assert any(round(when * 1e6) % 1000 for when in shown), "finer than milliseconds"


# Starting, completing, timing out.


async def test_a_workflow_made_through_the_api_moves_only_when_third_parties_complete_its_steps(
    clock: ManualClock, serve: Serve
) -> None:
    simulator = CognaizeSimulator(clock=clock, workflows=0)
    client = await serve(simulator)
    steps = [
        {"delegate": "GATEKEEPER", "timeOutInSeconds": 60, "params": {}},
        {"delegate": "MODEL", "timeOutInSeconds": 0},
    ]
    workflow = await ask(client, "/api/v1/workflows", {"name": "Invoices", "steps": steps})
    assert (workflow["name"], [step["delegate"] for step in workflow["steps"]]) == ("Invoices", ["GATEKEEPER", "MODEL"])
    start = "/api/v1/processes/start"
    refused = await ask(client, start, {"workflowId": workflow["id"], "params": {}}, status=412)
    assert set(refused) == {"documentId"}
    params = {"documentId": {"strValue": "d-1"}}
    begun = await ask(client, start, {"workflowId": workflow["id"], "params": params})
    assert begun["params"] == params
    path = f"/api/v1/processes/{begun['processId']}"
    process = await ask(client, path)
    assert (statuses(process), process["steps"][0]["params"]) == (["STARTED", "PENDING"], params)
    first, second = (step["id"] for step in process["steps"])
    assert begun["processStepId"] == first

    complete = "/api/v1/processes/complete-step"
    refused = await ask(client, complete, {"processStepId": second}, status=412)
    assert refused["processStepStatus"]["actual"] == "PENDING"
    await clock.advance(59)
    await ask(client, complete, {"processStepId": first, "params": {}})
    await ask(client, complete, {"processStepId": first}, status=412)
    await clock.advance(86_400)  # the second step has no timeout
    assert statuses(await ask(client, path)) == ["COMPLETED", "STARTED"]
    await ask(client, complete, {"processStepId": second})
    process = await ask(client, path)
    assert statuses(process) == ["COMPLETED", "COMPLETED"]
    (run,) = simulator.truth().runs
    assert (run.result, run.started_at, run.ended_at) == ("success", START, START + 59 + 86_400)
    assert seconds(process["updatedTimestamp"]) == run.ended_at


async def test_a_step_nobody_completes_fails_when_its_timeout_is_over(clock: ManualClock, serve: Serve) -> None:
    simulator = CognaizeSimulator(clock=clock, workflows=0)
    simulator.add_workflow("wf-1", steps=(Step(delegate="MODEL", timeout_seconds=30, seconds=None),))
    client = await serve(simulator)
    begun = await ask(client, "/api/v1/processes/start", {"workflowId": "wf-1", "params": {}})
    path = f"/api/v1/processes/{begun['processId']}"
    await clock.advance(29.999)
    assert statuses(await ask(client, path)) == ["STARTED"]
    await clock.advance(0.001)
    process = await ask(client, path)
    assert (statuses(process), seconds(process["updatedTimestamp"])) == (["FAILED"], START + 30)
    (run,) = simulator.truth().runs
    assert (run.result, run.error_class) == ("failure", "timeout")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/v1/workflows", {"steps": [{"delegate": "MODEL"}]}),
        ("/api/v1/workflows", {"name": "x", "steps": []}),
        ("/api/v1/workflows", {"name": "x", "steps": [{"delegate": "MODEL", "timeOutInSeconds": "1"}]}),
        ("/api/v1/processes/start", {"workflowId": "wf-9", "params": {}}),
        ("/api/v1/processes/start", {"params": {}}),
        ("/api/v1/processes/complete-step", {"processStepId": "p-1-s9"}),
        (RESTART, {"params": {}}),
        (RESTART, {"processStepId": "p-1-s2", "params": "none"}),
        (RESTART, {"processStepId": "p-1-s1", "params": {}}),
        (RESTART, {"processStepId": "p-2-s1", "params": {}}),
    ],
)
async def test_a_wrong_id_state_or_field_is_412_and_changes_nothing(
    clock: ManualClock, serve: Serve, path: str, body: Any
) -> None:
    _, client = await one_failed(clock, serve)
    before = await ask(client, "/api/v1/processes/p-1")
    assert isinstance(await ask(client, path, body, status=412), dict)
    assert await ask(client, "/api/v1/processes/p-1") == before


# Restarting.


async def test_a_restart_starts_the_same_step_again_and_a_second_one_is_refused(
    clock: ManualClock, serve: Serve
) -> None:
    simulator, client = await one_failed(clock, serve)
    params = {"modelUrl": {"strValue": "https://models.example/2"}}
    body = {"processStepId": "p-1-s2", "params": params}
    assert await ask(client, RESTART, body) == {"processId": "p-1", "processStepId": "p-1-s2", "params": params}
    process = await ask(client, "/api/v1/processes/p-1")
    assert (statuses(process), seconds(process["updatedTimestamp"])) == (["COMPLETED", "STARTED", "PENDING"], START)
    assert seconds(process["creationTimestamp"]) == START - 100
    assert process["steps"][1]["params"] == params
    assert await ask(client, RESTART, body, status=412) == {
        "processStepStatus": {"expected": "FAILED", "actual": "STARTED"}
    }
    assert simulator.truth().open_dead_letters() == {}
    await clock.advance(20)  # two steps of ten seconds
    assert set(statuses(await ask(client, "/api/v1/processes/p-1"))) == {"COMPLETED"}
    runs = simulator.truth().runs
    assert [(r.attempt, r.result, r.started_at, r.ended_at) for r in runs[1:]] == [(2, "success", START, START + 20)]
    assert simulator.requests[f"POST {RESTART}"] == 2


async def test_a_failed_restart_opens_a_dead_letter_of_its_own(clock: ManualClock, serve: Serve) -> None:
    simulator = CognaizeSimulator(clock=clock, workflows=0)
    simulator.add_workflow("wf-1", failure_rate=1.0)
    simulator.add_run("wf-1", run_id="p-1", started_at=START - 9, ended_at=START, result="failure", error="validation")
    client = await serve(simulator)
    await ask(client, RESTART, {"processStepId": "p-1-s2", "params": {}})
    process = await ask(client, "/api/v1/processes/p-1")
    assert seconds(process["updatedTimestamp"]) > START, "the timestamp changes even within one moment of the clock"
    simulator.advance(START + 11)
    first, second = simulator.truth().dead_letters
    assert first.resolved_at == seconds(process["updatedTimestamp"])
    assert (second.error_class, second.resolved_at) == ("validation", None)
    assert second.dead_letter_id == f"p-1.p-1-s2.{round(second.opened_at * 1000)}" != first.dead_letter_id


async def test_a_restart_through_the_api_changes_only_its_own_process(serve: Serve) -> None:
    worlds = []
    for meddle in (False, True):
        clock = ManualClock(START)
        simulator = CognaizeSimulator(clock=clock, workflows=12)
        client = await serve(simulator)
        letter = next(held for held in simulator.truth().dead_letters if held.resolved_at is None)
        process_id, step_id, _ = letter.dead_letter_id.split(".")
        if meddle:
            await ask(client, RESTART, {"processStepId": step_id, "params": {}})
        await clock.advance(7200)
        simulator.advance(clock.now())
        runs = simulator.truth().runs
        worlds.append(([r for r in runs if r.run_id != process_id], [r for r in runs if r.run_id == process_id]))
    assert worlds[0][0] == worlds[1][0]
    assert worlds[0][1] != worlds[1][1]


async def test_a_restart_may_answer_500_although_the_step_has_started(clock: ManualClock, serve: Serve) -> None:
    simulator, client = await one_failed(clock, serve, delegate_errors=1.0)
    data = await ask(client, RESTART, {"processStepId": "p-1-s2", "params": {}}, status=500)
    assert isinstance(data, str)
    assert statuses(await ask(client, "/api/v1/processes/p-1"))[1] == "STARTED"
    assert simulator.truth().open_dead_letters() == {}


async def test_a_client_that_gives_up_on_a_slow_delegate_has_restarted_the_step_all_the_same(
    clock: ManualClock, serve: Serve
) -> None:
    _, client = await one_failed(clock, serve, slow_delegates=1.0, slow_delegate_seconds=1.5 * HANG_SECONDS)
    impatient = aiohttp.ClientTimeout(total=HANG_SECONDS)
    with pytest.raises(asyncio.TimeoutError):
        await client.post(RESTART, json={"processStepId": "p-1-s2", "params": {}}, headers=AUTH, timeout=impatient)
    assert statuses(await ask(client, "/api/v1/processes/p-1"))[1] == "STARTED"


# Faults.


@pytest.mark.parametrize(
    ("fault", "status", "enveloped"),
    [
        ("rate_limited", 429, True),
        ("rate_limited_text", 429, False),
        ("unavailable", 503, True),
        ("server_error_html", 502, False),
        ("ok_html", 200, False),
        ("truncated", 200, False),
        ("slow", 200, True),
    ],
)
async def test_each_general_fault_strikes_one_request_and_then_all_is_well(
    clock: ManualClock, serve: Serve, fault: str, status: int, enveloped: bool
) -> None:
    simulator = CognaizeSimulator(clock=clock, workflows=1, faults=Faults(slow_seconds=0.01))
    client = await serve(simulator)
    simulator.fail_next(fault)
    body = {"pageNumber": 0, "pageSize": 5}
    async with client.post(FIND, json=body, headers=AUTH) as answer:
        text = await answer.text()
    assert answer.status == status
    try:
        answered = orjson.loads(text)
    except orjson.JSONDecodeError:
        answered = {}
    assert ("data" in answered) is enveloped
    assert answer.headers.get("Retry-After") == ("2" if status == 429 else None)
    assert (await ask(client, FIND, body))["numberOfElements"] == 5
    assert simulator.requests == {f"POST {FIND}": 2}


async def test_damaged_items_show_each_fault_and_leave_the_truth_alone(clock: ManualClock, serve: Serve) -> None:
    simulator = CognaizeSimulator(clock=clock)
    client = await serve(simulator)
    whole, before = await find_all(client), simulator.truth()
    faults = simulator.faults
    step_fields = set(whole[0]["steps"][0])

    faults.duplicates = 1.0
    assert await find_all(client) == [row for row in whole for _ in range(2)]
    faults.duplicates, faults.null_numbers = 0.0, 1.0
    rows = await find_all(client)
    assert {step["timeOutInSeconds"] for row in rows for step in row["steps"]} == {None}
    faults.null_numbers, faults.unknown_status = 0.0, 1.0
    rows = await find_all(client)
    assert {statuses(row).count("SUSPENDED") for row in rows} == {1}
    faults.unknown_status, faults.missing_fields = 0.0, 1.0
    rows = await find_all(client)
    lost = {(set(whole[0]) - set(row) | step_fields - set(row["steps"][0])).pop() for row in rows}
    assert lost == {"creationTimestamp", "updatedTimestamp", "delegate", "timeOutInSeconds", "params"}
    faults.missing_fields = 0.0

    assert await find_all(client) == whole
    assert simulator.truth() == before


async def test_rows_shift_between_pages_so_that_some_are_read_twice_and_none_is_lost(
    clock: ManualClock, serve: Serve
) -> None:
    simulator = CognaizeSimulator(clock=clock)
    client = await serve(simulator)
    ids = [row["id"] for row in await find_all(client)]
    simulator.faults.shifting_pages = 1.0
    shifted = [row["id"] for row in await find_all(client, size=10)]
    assert len(shifted) > len(ids)
    assert list(dict.fromkeys(shifted)) == ids
    assert shifted[9] == shifted[10]
    simulator.faults.shifting_pages = 0.0
    assert [row["id"] for row in await find_all(client, size=10)] == ids


# Webhooks, and the doors for people.


async def test_deliveries_carry_the_documented_event_and_the_bearer_token(clock: ManualClock) -> None:
    simulator = CognaizeSimulator(clock=clock, workflows=0, webhook_token="hook")
    simulator.add_workflow("wf-1")
    simulator.add_run(
        "wf-1", run_id="p-1", started_at=START, ended_at=START + 7.25, result="failure", error="throttled"
    )
    simulator.add_restart("p-1", started_at=START + 10, ended_at=START + 20, result="success")
    assert simulator.take_deliveries() == []
    simulator.advance(START + 60)
    failed, restarted = simulator.take_deliveries()
    assert failed.headers == {"Content-Type": "application/json", "Authorization": "Bearer hook"}
    assert orjson.loads(failed.body) == {
        "event": "run.finished",
        "workflow_id": "wf-1",
        "run_id": "p-1",
        "attempt": 1,
        "result": "failure",
        "started_at": "2026-01-15T06:00:00.000Z",
        "ended_at": "2026-01-15T06:00:07.250Z",
        "error": {"type": "throttled", "message": "step 2 (MODEL) failed: throttled"},
        "occurred_at": "2026-01-15T06:00:07.250Z",
    }
    event = orjson.loads(restarted.body)
    assert (event["attempt"], event["result"], event["error"]) == (2, "success", None)
    assert event["started_at"] == "2026-01-15T06:00:10.000Z"
    assert simulator.take_deliveries() == []


async def test_webhooks_may_be_lost_or_doubled(clock: ManualClock) -> None:
    simulator = CognaizeSimulator(clock=clock, webhook_token=None, faults=Faults(webhook_duplicated=1.0))
    past = len(simulator.truth().runs)
    simulator.advance(START + 1800)
    finished = len(simulator.truth().runs) - past
    deliveries = simulator.take_deliveries()
    assert len(deliveries) == 2 * finished > 0
    assert deliveries[0] == deliveries[1]
    assert "Authorization" not in deliveries[0].headers
    simulator.faults.webhook_lost = 1.0
    simulator.advance(START + 3600)
    assert simulator.take_deliveries() == []


async def test_truth_and_faults_are_open_to_people_and_no_part_of_the_requests(
    clock: ManualClock, serve: Serve
) -> None:
    simulator = CognaizeSimulator(clock=clock)
    client = await serve(simulator)
    async with client.get("/_sim/truth") as answer:
        truth = await answer.json()
    assert len(truth["runs"]) == len(simulator.truth().runs)
    assert set(truth["dead_letters"][0]) >= {"workflow_id", "dead_letter_id", "opened_at", "resolved_at"}
    async with client.post("/_sim/faults", json={"unavailable": 1.0, "retry_after": None}) as answer:
        assert answer.status == 200
    assert simulator.faults == Faults(unavailable=1.0, retry_after=None)
    wrongs: list[Any] = [{"gravity": 1}, {"slow": "yes"}, {"slow": True}, []]
    for wrong in wrongs:
        async with client.post("/_sim/faults", json=wrong) as answer:
            assert answer.status == 400
    assert simulator.faults == Faults(unavailable=1.0, retry_after=None)
    assert not simulator.requests
    await ask(client, "/api/v1/processes/p-1", status=503)
