"""The Qlik simulator keeps to Qlik's documents, moves only with the clock, and damages only what it shows."""

import hashlib
import hmac
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any

import orjson
import pytest
from aiohttp.test_utils import TestClient, TestServer

from exporter.clock import ManualClock
from exporter.simulator.core import Faults
from exporter.simulator.qlik import QlikSimulator

START = 1_700_000_000.0
API = "/api/workflows/automations"
KEY = {"Authorization": "Bearer demo-token"}
RETRY = f"POST {API}/{{id}}/runs/{{runId}}/actions/retry"


class World:
    """One simulator behind a real server, with its clock."""

    def __init__(self, clock: ManualClock, simulator: QlikSimulator, client: TestClient[Any, Any]) -> None:
        self.clock = clock
        self.simulator = simulator
        self.client = client

    async def get(self, path: str, *, status: int = 200, token: str | None = "demo-token", **query: Any) -> Any:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        params = {name: str(value) for name, value in query.items()}
        async with self.client.get(path, headers=headers, params=params) as response:
            assert response.status == status, await response.text()
            return await response.json()

    async def post(self, path: str, body: object = None, *, status: int, token: str = "demo-token") -> Any:
        headers = {"Authorization": f"Bearer {token}"}
        async with self.client.post(path, headers=headers, json=body) as response:
            assert response.status == status, await response.text()
            return await response.json() if status != 204 else await response.read()

    async def pages(self, path: str, **query: Any) -> list[list[Any]]:
        """Every page of a listing, following the links as they come."""
        page = await self.get(path, **query)
        pages = [page["data"]]
        while (href := page["links"].get("next", {}).get("href")) is not None:
            async with self.client.session.get(href, headers=KEY) as response:
                assert response.status == 200
                page = await response.json()
            pages.append(page["data"])
            assert len(pages) < 100
        return pages

    async def runs(self, workflow_id: str, **query: Any) -> list[Any]:
        return list((await self.get(f"{API}/{workflow_id}/runs", limit=200, **query))["data"])

    async def advance(self, seconds: float) -> None:
        await self.clock.advance(seconds)
        self.simulator.advance(self.clock.now())


@asynccontextmanager
async def serve(**options: Any) -> AsyncIterator[World]:
    clock = ManualClock(START)
    simulator = QlikSimulator(clock=clock, **{"workflows": 0, **options})
    async with TestClient(TestServer(simulator.app())) as client:
        yield World(clock, simulator, client)


def failed_run(world: World, workflow_id: str, error: str = "network") -> str:
    return world.simulator.add_run(
        workflow_id, started_at=START - 60, ended_at=START - 50, result="failure", error=error
    )


# The world


def test_step_size_does_not_change_the_world() -> None:
    one, many = (QlikSimulator(clock=ManualClock(START), workflows=20) for _ in range(2))
    one.advance(START + 7200)
    for step in range(1, 721):
        many.advance(START + step * 10)
    assert one.truth() == many.truth()
    assert [d.body for d in one.take_deliveries()] == [d.body for d in many.take_deliveries()]
    assert len(one.truth().runs) > 500


async def test_requests_do_not_change_the_world_even_when_they_fail() -> None:
    faults = Faults(unavailable=0.2, missing_fields=0.5, duplicates=0.5, unknown_status=0.5, null_numbers=0.5)
    async with serve(workflows=5, faults=faults) as asked:
        for _ in range(20):
            await asked.advance(60)
            for path in (API, "/api/v1/audits"):
                async with asked.client.get(path, headers=KEY) as response:
                    assert response.status in (200, 503)
        left_alone = QlikSimulator(clock=ManualClock(START), workflows=5)
        left_alone.advance(START + 1200)
        assert asked.simulator.truth() == left_alone.truth()


def test_another_seed_is_another_world() -> None:
    one, other = (QlikSimulator(clock=ManualClock(START), seed=seed) for seed in (1, 2))
    assert one.truth() != other.truth()


def test_a_new_world_has_two_hours_of_history_and_no_webhooks_about_it() -> None:
    simulator = QlikSimulator(clock=ManualClock(START), workflows=30, edited=0)
    runs = simulator.truth().runs
    assert runs[0].ended_at < START - 6000
    assert runs[-1].ended_at <= START
    assert {run.result for run in runs} >= {"success", "failure", "warning"}
    assert simulator.take_deliveries() == []
    simulator.advance(START + 600)
    ended = [run for run in simulator.truth().runs if run.ended_at > START]
    told = [orjson.loads(d.body)["data"] for d in simulator.take_deliveries()]
    assert [data["stopTime"] for data in told] == sorted(data["stopTime"] for data in told)
    assert sorted(data["id"] for data in told) == sorted(run.run_id for run in ended)
    assert simulator.take_deliveries() == []


async def test_making_and_listing_automations_costs_each_of_them_the_same() -> None:
    """The work is counted in lines of the simulator's code that run: seconds would depend on the machine."""
    lines = Counter[int]()

    def line(frame: FrameType, event: str, _: Any) -> Any:
        lines[automations] += event == "line"
        return line

    def call(frame: FrameType, event: str, _: Any) -> Any:
        return line if "/exporter/simulator/" in frame.f_code.co_filename else None

    before = sys.gettrace()
    for automations in (50, 100):
        sys.settrace(call)
        try:
            async with serve(workflows=automations) as world:
                pages = await world.pages(API, limit=50)
        finally:
            sys.settrace(before)
        assert [len(page) for page in pages] == [50] * (automations // 50)
    assert lines[50] > 50
    assert lines[100] < 2.5 * lines[50]


async def test_an_added_run_is_seen_from_its_start_and_finished_from_its_end() -> None:
    async with serve() as world:
        workflow = world.simulator.add_workflow("wf", "Invoices")
        world.simulator.add_run(
            workflow, started_at=START + 10, ended_at=START + 40.5, result="failure", run_id="r1", error="validation"
        )
        assert await world.runs(workflow) == []
        await world.advance(10)
        [run] = await world.runs(workflow)
        assert (run["status"], run["stopTime"], run["duration"], run["error"]) == ("running", None, None, None)
        assert world.simulator.truth().runs == []
        await world.advance(30.5)
        [run] = await world.runs(workflow)
        assert (run["status"], run["stopTime"]) == ("failed", "2023-11-14T22:14:00.000000Z"), "in whole seconds"
        assert run["error"][0]["response"]["status"] == 422
        [true_run] = world.simulator.truth().runs
        assert (true_run.started_at, true_run.ended_at, true_run.error_class) == (
            START + 10,
            START + 40,
            "validation",
        )
        assert len(world.simulator.take_deliveries()) == 1


@pytest.mark.parametrize(
    ("result", "status"),
    [
        ("success", "finished"),
        ("warning", "finished with warnings"),
        ("failure", "failed"),
        ("cancelled", "stopped"),
        ("quota", "exceeded limit"),
    ],
)
async def test_each_result_shows_as_its_own_status(result: str, status: str) -> None:
    async with serve() as world:
        workflow = world.simulator.add_workflow()
        world.simulator.add_run(workflow, started_at=START - 9, ended_at=START - 4, result=result)
        [run] = await world.runs(workflow)
        assert run["status"] == status
        assert (run["error"] is None) == (result not in ("failure", "quota"))
        assert world.simulator.truth().counts() == {(workflow, result): 1}
        assert world.simulator.truth().open_dead_letters()[workflow] == (result in ("failure", "quota"))


async def test_a_run_added_after_its_end_is_history_without_a_webhook() -> None:
    async with serve() as world:
        workflow = world.simulator.add_workflow()
        await world.advance(100)
        world.simulator.add_run(workflow, started_at=START + 10, ended_at=START + 20, result="success")
        assert world.simulator.truth().counts() == {(workflow, "success"): 1}
        assert world.simulator.take_deliveries() == []


def test_a_result_the_platform_does_not_know_is_refused() -> None:
    simulator = QlikSimulator(clock=ManualClock(START), workflows=0)
    workflow = simulator.add_workflow()
    with pytest.raises(ValueError, match="not timeout"):
        simulator.add_run(workflow, started_at=START, ended_at=START + 1, result="timeout")


async def test_renaming_disabling_and_deleting_show() -> None:
    async with serve(workflows=1) as world:
        [automation] = (await world.get(API))["data"]
        world.simulator.rename_workflow(automation["id"], "Renamed")
        world.simulator.set_enabled(automation["id"], False)
        shown = await world.get(f"{API}/{automation['id']}")
        assert (shown["name"], shown["state"]) == ("Renamed", "disabled")
        await world.advance(3600)
        count = len(world.simulator.truth().runs)
        await world.advance(3600)
        assert len(world.simulator.truth().runs) == count  # what ran or waited has ended, nothing new began
        world.simulator.set_enabled(automation["id"], True)
        await world.advance(3600)
        assert len(world.simulator.truth().runs) > count
        world.simulator.delete_workflow(automation["id"])
        assert (await world.get(API))["data"] == []
        await world.get(f"{API}/{automation['id']}/runs", status=404)
        assert world.simulator.truth().open_dead_letters() == {}


async def test_finished_runs_are_forgotten_beyond_the_limit_but_stay_true() -> None:
    async with serve(runs_max=3) as world:
        workflow = world.simulator.add_workflow()
        for index in range(5):
            at = START - 100 + index
            world.simulator.add_run(workflow, started_at=at, ended_at=at + 0.5, result="failure", run_id=f"r{index}")
        assert [run["id"] for run in await world.runs(workflow)] == ["r2", "r3", "r4"]
        truth = world.simulator.truth()
        assert (len(truth.runs), truth.open_dead_letters()[workflow]) == (5, 3)


# Who may ask, and how often


@pytest.mark.parametrize("token", [None, "wrong"])
async def test_a_missing_or_wrong_token_is_unauthorized_in_the_platforms_form(token: str | None) -> None:
    async with serve() as world:
        for path in (API, f"{API}/x/runs", "/api/v1/audits", "/api/v1/webhooks"):
            body = await world.get(path, status=401, token=token)
            assert (body["errors"][0]["code"], body["errors"][0]["title"]) == ("HTTP-401", "Unauthorized")
            assert body["traceId"]


async def test_an_access_token_works_until_it_expires_or_is_revoked() -> None:
    credentials = {"client_id": "demo-client", "client_secret": "demo-secret", "grant_type": "client_credentials"}
    async with serve(token_seconds=60) as world:
        answer = await world.post("/oauth/token", credentials, status=200)
        assert (answer["token_type"], answer["expires_in"]) == ("bearer", 60)
        await world.get(API, token=answer["access_token"])
        await world.advance(60)
        await world.get(API, status=401, token=answer["access_token"])
        renewed = await world.post("/oauth/token", credentials, status=200)
        await world.get(API, token=renewed["access_token"])
        world.simulator.revoke_tokens()
        await world.get(API, status=401, token=renewed["access_token"])
        await world.get(API)


async def test_wrong_client_credentials_grants_and_forms_are_refused() -> None:
    credentials = {"client_id": "demo-client", "client_secret": "demo-secret", "grant_type": "client_credentials"}
    async with serve() as world:
        wrong = await world.post("/oauth/token", {**credentials, "client_secret": "guess"}, status=401)
        assert wrong["errors"][0]["code"] == "HTTP-401"
        await world.post("/oauth/token", {**credentials, "grant_type": "password"}, status=400)
        async with world.client.post("/oauth/token", data=credentials) as response:
            assert response.status == 400


async def test_an_admin_lists_runs_of_others_but_may_not_read_retry_or_stop_them() -> None:
    async with serve() as world:
        simulator = world.simulator
        private = simulator.add_workflow("private", owner_id="someone")
        shared = simulator.add_workflow("shared", owner_id="someone", space_id="space-1")
        run_id = failed_run(world, private)
        shared_run_id = failed_run(world, shared)
        simulator.add_api_key("operator", user_id="usr-op", spaces=["space-1"])
        assert len((await world.get(API))["data"]) == 2
        assert len(await world.runs(private)) == 1
        await world.get(f"{API}/{private}/runs/{run_id}", status=403)
        await world.post(f"{API}/{private}/runs/{run_id}/actions/retry", status=403)
        await world.post(f"{API}/{private}/runs/{run_id}/actions/stop", status=403)
        assert [a["id"] for a in (await world.get(API, token="operator"))["data"]] == [shared]
        await world.post(f"{API}/{shared}/runs/{shared_run_id}/actions/retry", status=204, token="operator")
        await world.get(f"{API}/{private}/runs", status=403, token="operator")
        await world.get(f"{API}/usage", status=403, token="operator", filter='name eq "runs"')
        await world.get("/api/v1/audits", status=403, token="operator")


async def test_a_client_with_the_admin_scope_may_retry_whoever_owns_the_automation() -> None:
    credentials = {"client_id": "demo-client", "client_secret": "demo-secret", "grant_type": "client_credentials"}
    async with serve() as world:
        workflow = world.simulator.add_workflow(owner_id="someone")
        path = f"{API}/{workflow}/runs/{failed_run(world, workflow)}/actions/retry"
        narrow = await world.post("/oauth/token", {**credentials, "scope": "admin.automation-runs"}, status=200)
        await world.post(path, status=403, token=narrow["access_token"])
        wide = await world.post("/oauth/token", {**credentials, "scope": "admin.automations"}, status=200)
        await world.post(path, status=204, token=wide["access_token"])


async def test_a_used_up_tier_answers_429_until_the_window_has_rolled_and_spares_the_others() -> None:
    async with serve(tier1_per_minute=1, tier2_per_minute=1) as world:
        workflow = world.simulator.add_workflow()
        run_id = failed_run(world, workflow)
        world.simulator.add_api_key("other", user_id="usr-other", admin=True)
        for _ in range(5):
            await world.get(API)
            await world.advance(10)
        async with world.client.get(API, headers=KEY) as response:
            assert (response.status, response.headers["Retry-After"]) == (429, "250")
            assert await response.json() == {
                "errors": [
                    {
                        "code": "HTTP-429",
                        "title": "API rate limit reached.",
                        "detail": "You need to wait 250 seconds until limit is lifted.",
                    }
                ]
            }
        await world.get(API, token="other")
        await world.post(f"{API}/{workflow}/runs/{run_id}/actions/retry", status=204)
        await world.advance(249)
        await world.get(API, status=429)
        await world.advance(1)
        await world.get(API)
        await world.get(API, status=429)


# Listings


async def test_both_prefixes_serve_the_same_and_unknown_things_are_not_found() -> None:
    async with serve(workflows=2) as world:
        old = await world.get("/api/v1/automations")
        assert old["data"] == (await world.get(API))["data"]
        workflow = old["data"][0]["id"]
        for path in (f"{API}/nope", f"{API}/nope/runs", f"{API}/{workflow}/runs/nope", "/api/v1/nowhere"):
            body = await world.get(path, status=404)
            assert body["errors"][0]["code"] == "HTTP-404"


async def test_an_automation_carries_its_newest_run_with_metrics_and_error() -> None:
    async with serve() as world:
        workflow = world.simulator.add_workflow(name="Invoices")
        assert (await world.get(API))["data"][0]["lastRun"] is None
        world.simulator.add_run(workflow, started_at=START - 30, ended_at=START - 20, result="success")
        world.simulator.add_run(
            workflow, started_at=START - 15, ended_at=START - 5, result="failure", run_id="new", error="It broke"
        )
        [automation] = (await world.get(API))["data"]
        assert (automation["lastRunStatus"], automation["lastRunAt"]) == ("failed", "2023-11-14T22:13:15.000000Z")
        assert automation["duration"] == 10
        assert (automation["lastRun"]["id"], automation["lastRun"]["error"]) == ("new", [{"error": "It broke"}])
        assert automation["lastRun"]["metrics"]["totalApiCalls"] >= 1
        assert automation["executionToken"]


async def test_a_listed_run_has_a_duration_and_a_run_read_alone_has_metrics() -> None:
    async with serve() as world:
        workflow = world.simulator.add_workflow()
        for index in range(2):
            at = START - 100 + index
            world.simulator.add_run(workflow, started_at=at, ended_at=at + 42.5, result="success")
        listed = await world.runs(workflow, sort="startTime")
        assert [run["duration"] for run in listed] == [42, 42]
        assert "metrics" not in listed[0]
        alone = await world.get(f"{API}/{workflow}/runs/{listed[0]['id']}")
        assert "duration" not in alone
        assert alone["metrics"]["network"]["rxBytes"] == sum(b["rxBytes"] for b in alone["metrics"]["blocks"])


AUTOMATION_FIELDS = (
    "id ownerId name spaceId state duration description snippetIds endpointIds connectorIds workspace lastRunStatus "
    "runMode createdAt updatedAt lastRunAt containsBillable maxConcurrentRuns timeout lastRun"
)
RUN_FIELDS = (
    "id spaceId ownerId executedById context status title testRun isTestRun archived isArchived error startTime "
    "stopTime scheduledStartTime createdAt updatedAt expectedInputs inputs billable metrics"
)


async def test_an_automation_that_failed_in_the_editor_looks_as_recorded() -> None:
    async with serve() as world:
        workflow = world.simulator.add_workflow(owner_id="someone")
        world.simulator.add_run(
            workflow, started_at=START - 600, ended_at=START - 0.5, result="failure", error="auth", context="editor"
        )
        [automation] = (await world.get(API))["data"]
        assert " ".join(automation) == AUTOMATION_FIELDS, "no executionToken: it is another's"
        assert (automation["workspace"], automation["description"], automation["timeout"]) == (None, None, None)
        assert automation["lastRunAt"] == automation["lastRun"]["stopTime"] == "2023-11-14T22:13:19.000000Z"
        run = automation["lastRun"]
        assert " ".join(run) == RUN_FIELDS
        assert (run["context"], run["testRun"], run["isTestRun"], run["archived"]) == ("editor", False, False, True)
        [error] = run["error"]
        assert list(error) == ["error", "endpoint", "request", "response", "external error"]
        assert error["error"] == 'Error calling endpoint "{datasource} - {name}"'.format(**error["endpoint"])
        assert (error["response"]["status"], list(error["request"])) == (401, ["url", "method"])
        blocks = run["metrics"]["blocks"]
        assert {block["type"] for block in blocks} == {"baseBlock", "endpointBlock", "snippetBlock"}
        assert sum(block["duration"] for block in blocks) < 5000, "milliseconds, far from the whole"
        assert run["metrics"]["totalApiCalls"] == sum(block.get("apiCalls", 0) for block in blocks)
        assert world.simulator.truth().runs == []
        assert world.simulator.truth().dead_letters == []


async def test_somebody_is_at_work_in_a_world_left_to_itself() -> None:
    async with serve(workflows=5, edited=0.2) as world:
        seen = [run for a in (await world.get(API))["data"] for run in await world.runs(a["id"])]
        tests = [run for run in seen if run["context"] in ("editor", "test_run")]
        assert {(run["context"], run["testRun"]) for run in tests} == {("editor", False), ("test_run", True)}
        assert {run.run_id for run in world.simulator.truth().runs}.isdisjoint(run["id"] for run in tests)
        assert all(run["createdAt"].endswith(".000000Z") for run in seen)


async def test_the_update_time_of_some_runs_moves_long_after_their_end() -> None:
    async with serve() as world:
        workflow = world.simulator.add_workflow()
        for index in range(7):
            world.simulator.add_run(
                workflow, started_at=START - 9, ended_at=START, result="success", run_id=f"r{index}"
            )
        assert {run["updatedAt"] for run in await world.runs(workflow)} == {"2023-11-14T22:13:20.000000Z"}
        await world.advance(900)
        moved = [run for run in await world.runs(workflow) if run["updatedAt"] != run["stopTime"]]
        assert [(run["id"], run["updatedAt"]) for run in moved] == [("r6", "2023-11-14T22:26:44.000000Z")]


async def test_runs_of_one_second_are_listed_by_when_they_were_made_then_by_id() -> None:
    async with serve() as world:
        workflow = world.simulator.add_workflow()
        for run_id in ("b", "a", "c"):
            world.simulator.add_run(workflow, started_at=START, ended_at=START, result="success", run_id=run_id)
        assert [run["id"] for run in await world.runs(workflow, sort="-startTime")] == ["c", "b", "a"]
        assert {run["duration"] for run in await world.runs(workflow)} == {0}


async def test_a_scheduled_automation_read_alone_says_when_it_runs_next() -> None:
    async with serve(workflows=20) as world:
        listed = [a for a in (await world.get(API))["data"] if a["runMode"] == "scheduled"]
        assert "schedules" not in listed[0]
        [schedule] = (await world.get(f"{API}/{listed[0]['id']}"))["schedules"]
        assert schedule["nextRunAt"] > "2023-11-14T22:13:20.000000Z"


async def test_pages_follow_opaque_cursors_to_a_null_link_and_back() -> None:
    async with serve() as world:
        workflow = world.simulator.add_workflow()
        for index in range(25):
            at = START - 100 + index
            world.simulator.add_run(workflow, started_at=at, ended_at=at + 1, result="success", run_id=f"r{index:02}")
        path = f"{API}/{workflow}/runs"
        pages = await world.pages(path)
        assert [len(page) for page in pages] == [10, 10, 5]  # ten by default, sorted by id
        assert [run["id"] for page in pages for run in page] == [f"r{index:02}" for index in range(25)]
        newest = await world.pages(path, sort="-startTime", limit=7, filter='status eq "finished"')
        assert [run["id"] for page in newest for run in page] == [f"r{index:02}" for index in reversed(range(25))]
        first = await world.get(path)
        assert first["links"]["prev"] == {"href": None}
        async with world.client.session.get(first["links"]["next"]["href"], headers=KEY) as response:
            second = await response.json()
        async with world.client.session.get(second["links"]["prev"]["href"], headers=KEY) as response:
            assert (await response.json())["data"] == first["data"]


async def test_a_run_that_starts_between_two_pages_disturbs_nothing() -> None:
    async with serve() as world:
        workflow = world.simulator.add_workflow()
        for index in range(4):
            world.simulator.add_run(
                workflow, started_at=START - index, ended_at=None, result="success", run_id=f"r{index}"
            )
        page = await world.get(f"{API}/{workflow}/runs", sort="-startTime", limit=2)
        world.simulator.add_run(workflow, started_at=START, ended_at=None, result="success", run_id="z")
        async with world.client.session.get(page["links"]["next"]["href"], headers=KEY) as response:
            rest = await response.json()
        assert [run["id"] for run in page["data"] + rest["data"]] == ["r0", "r1", "r2", "r3"]


async def test_the_last_page_may_lack_its_next_link() -> None:
    async with serve(null_links=False) as world:
        assert (await world.get(API))["links"] == {"prev": {"href": None}}


async def test_runs_are_filtered_by_status_and_times() -> None:
    async with serve() as world:
        workflow = world.simulator.add_workflow()
        for index, result in enumerate(("failure", "success", "failure")):
            at = START - 300 + 60 * index
            world.simulator.add_run(workflow, started_at=at, ended_at=at + 1, result=result, run_id=f"r{index}")

        async def found(text: str) -> list[str]:
            return [run["id"] for run in await world.runs(workflow, filter=text)]

        assert await found('status eq "failed"') == ["r0", "r2"]
        assert await found('startTime ge "2023-11-14T22:09:20.000000Z"') == ["r1", "r2"]
        assert await found('createdAt ge "2023-11-14T22:08:21Z" and status eq "failed"') == ["r2"]
        assert await found('startTime ge "2023-11-14T22:08:20Z" and startTime le "2023-11-14T22:09:20Z"') == [
            "r0",
            "r1",
        ]


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "0"},
        {"limit": "201"},
        {"limit": "many"},
        {"sort": "duration"},
        {"sort": " startTime"},  # what "+startTime" becomes when the plus sign is not encoded
        {"filter": 'status ne "failed"'},
        {"filter": 'status eq "failed" or status eq "stopped"'},
        {"filter": "status eq failed"},
        {"filter": 'status eq "failed" and'},
        {"filter": 'colour eq "red"'},
        {"filter": 'startTime ge "yesterday"'},
        {"cursor": "made-up"},
    ],
)
async def test_bad_queries_are_refused(query: dict[str, str]) -> None:
    async with serve() as world:
        workflow = world.simulator.add_workflow()
        body = await world.get(f"{API}/{workflow}/runs", status=400, **query)
        assert body["errors"][0]["code"] == "HTTP-400"


async def test_automations_are_filtered_and_sorted() -> None:
    async with serve() as world:
        for name, mode in (("b", "scheduled"), ("a", "webhook"), ("c", "scheduled")):
            world.simulator.add_workflow(name=name, run_mode=mode)
        listed = await world.get(API, filter='runMode eq "scheduled"', sort="-name")
        assert [automation["name"] for automation in listed["data"]] == ["c", "b"]


# Retry and stop


async def test_a_retry_answers_nothing_and_makes_a_new_run_that_listing_shows() -> None:
    async with serve() as world:
        workflow = world.simulator.add_workflow(typical_seconds=10)
        run_id = failed_run(world, workflow)
        world.simulator.plan_retries("success")
        body = await world.post(f"{API}/{workflow}/runs/{run_id}/actions/retry", status=204)
        assert body == b""
        assert world.simulator.requests[RETRY] == 1
        statuses = []
        for _ in range(150):
            [new] = [run for run in await world.runs(workflow) if run["id"] != run_id]
            if new["status"] not in statuses:
                statuses.append(new["status"])
                assert (new["startTime"] is None) == (new["status"] in ("not started", "starting"))
            await world.advance(0.25)
        assert statuses[-3:] == ["starting", "running", "finished"]
        assert set(statuses[:-3]) <= {"not started"}
        assert world.simulator.truth().open_dead_letters() == {}
        assert world.simulator.truth().counts(since=START) == {(workflow, "success"): 1}


async def test_a_failed_retry_leaves_one_open_dead_letter_under_the_new_run() -> None:
    async with serve() as world:
        workflow = world.simulator.add_workflow()
        run_id = failed_run(world, workflow)
        world.simulator.plan_retries("failure", "success")
        await world.post(f"{API}/{workflow}/runs/{run_id}/actions/retry", status=204)
        await world.advance(60)
        old, new = world.simulator.truth().dead_letters
        assert (old.dead_letter_id, old.resolved_at, old.error_class) == (run_id, new.opened_at, "network")
        assert (new.resolved_at, new.error_class) == (None, "network")
        await world.post(f"{API}/{workflow}/runs/{new.dead_letter_id}/actions/retry", status=204)
        await world.advance(60)
        assert world.simulator.truth().open_dead_letters() == {}


async def test_two_retries_are_two_runs_and_wait_in_the_queue_when_slots_are_taken() -> None:
    async with serve() as world:
        workflow = world.simulator.add_workflow(max_concurrent_runs=1)
        run_id = failed_run(world, workflow)
        world.simulator.add_run(workflow, started_at=START - 5, ended_at=START + 20, result="success", run_id="busy")
        for _ in range(2):
            await world.post(f"{API}/{workflow}/runs/{run_id}/actions/retry", status=204)
        new = [run for run in await world.runs(workflow) if run["id"] not in (run_id, "busy")]
        assert [(run["status"], run["startTime"]) for run in new] == [("queued", None)] * 2
        assert (await world.get(API))["data"][0]["lastRunStatus"] == "not started"  # this field knows no "queued"
        await world.advance(24)
        waiting = [run for run in await world.runs(workflow) if run["status"] == "queued"]
        assert len(waiting) == 1
        await world.advance(120)
        assert len(world.simulator.truth().runs) == 4


async def test_a_retry_of_what_still_runs_or_is_disabled_is_refused() -> None:
    async with serve() as world:
        workflow = world.simulator.add_workflow()
        run_id = failed_run(world, workflow)
        world.simulator.add_run(workflow, started_at=START - 5, ended_at=None, result="success", run_id="busy")
        await world.post(f"{API}/{workflow}/runs/busy/actions/retry", status=400)
        world.simulator.set_enabled(workflow, False)
        await world.post(f"{API}/{workflow}/runs/{run_id}/actions/retry", status=403)
        assert len(await world.runs(workflow)) == 2


async def test_a_stop_passes_through_must_stop_to_stopped() -> None:
    async with serve() as world:
        workflow = world.simulator.add_workflow()
        world.simulator.add_run(workflow, started_at=START - 5, ended_at=START + 600, result="success", run_id="r")
        await world.post(f"{API}/{workflow}/runs/r/actions/stop", status=204)
        assert [run["status"] for run in await world.runs(workflow)] == ["must stop"]
        await world.advance(2)
        assert [run["status"] for run in await world.runs(workflow)] == ["stopped"]
        await world.advance(600)
        assert world.simulator.truth().counts() == {(workflow, "cancelled"): 1}
        await world.post(f"{API}/{workflow}/runs/r/actions/stop", status=400)


async def test_a_stop_ends_the_run_when_it_says_whatever_was_to_come() -> None:
    async with serve() as world:
        workflow = world.simulator.add_workflow()
        world.simulator.add_run(workflow, started_at=START - 5, ended_at=START + 1, result="failure", run_id="r")
        await world.post(f"{API}/{workflow}/runs/r/actions/stop", status=204)
        await world.advance(1)
        assert [run["status"] for run in await world.runs(workflow)] == ["must stop"]
        await world.post(f"{API}/{workflow}/runs/r/actions/stop", status=204)
        await world.advance(60)
        assert [(run.result, run.ended_at) for run in world.simulator.truth().runs] == [("cancelled", START + 2)]


async def test_a_stopped_run_frees_its_place_in_the_queue() -> None:
    async with serve() as world:
        workflow = world.simulator.add_workflow(max_concurrent_runs=1)
        run_id = failed_run(world, workflow)
        retry = f"{API}/{workflow}/runs/{run_id}/actions/retry"
        world.simulator.add_run(workflow, started_at=START - 5, ended_at=START + 10, result="success", run_id="busy")
        await world.post(retry, status=204)
        [queued] = await world.runs(workflow, filter='status eq "queued"')
        await world.post(f"{API}/{workflow}/runs/{queued['id']}/actions/stop", status=204)
        await world.advance(20)
        [stopped] = await world.runs(workflow, filter='status eq "stopped"')
        assert (stopped["id"], stopped["startTime"]) == (queued["id"], None)
        await world.post(retry, status=204)
        assert await world.runs(workflow, filter='status eq "queued"') == []


async def test_a_run_stopped_before_it_began_has_no_start() -> None:
    async with serve() as world:
        workflow = world.simulator.add_workflow()
        run_id = failed_run(world, workflow)
        for _ in range(10):
            await world.post(f"{API}/{workflow}/runs/{run_id}/actions/retry", status=204)
        for run in await world.runs(workflow, filter='createdAt ge "2023-11-14T22:13:20Z"'):
            await world.post(f"{API}/{workflow}/runs/{run['id']}/actions/stop", status=204)
        await world.advance(60)
        starts = [run["startTime"] for run in await world.runs(workflow, filter='status eq "stopped"')]
        assert len(starts) == 10
        assert 0 < starts.count(None) < 10
        assert all(start is None or start <= "2023-11-14T22:13:22.000000Z" for start in starts)


# Settings, usage, audits


async def test_settings_and_usage_tell_the_tenants_limits_and_amounts() -> None:
    async with serve() as world:
        ids = [world.simulator.add_workflow(run_mode="scheduled") for _ in range(2)]
        for workflow in ids:
            world.simulator.add_run(workflow, started_at=START - 60, ended_at=START - 30, result="success")
        assert await world.get(f"{API}/settings") == {"maxConcurrentRunsPerAutomation": 10}
        today = 'date ge "2023-11-14" and date le "2023-11-14"'
        usage = await world.get(f"{API}/usage", filter=f'name eq "duration" and {today}')
        assert usage["data"] == [{"date": "2023-11-14", "name": "duration", "value": 60}]
        usage = await world.get(f"{API}/usage", filter=f'name eq "scheduledRuns" and {today}', breakdownBy="automation")
        assert [(i["name"], i["value"], i["automation"]["guid"]) for i in usage["data"]] == [
            ("scheduledRun", 1, workflow) for workflow in sorted(ids)
        ]
        assert (await world.get(f"{API}/usage", filter='name eq "runs" and date le "2023-11-13"'))["data"] == []
        await world.get(f"{API}/usage", status=400)
        await world.get(f"{API}/usage", status=400, filter='name eq "cost"')


async def test_audits_tell_every_end_in_a_window_of_time() -> None:
    async with serve(workflows=3, edited=0) as world:
        await world.advance(600)
        query = {
            "eventType": "com.qlik.v1.automation.run.ended",
            "eventTime": "2023-11-14T22:13:20.001Z/2023-11-14T22:20:00Z",
            "sort": "+eventTime",
            "limit": 5,
        }
        ends = [run for run in world.simulator.truth().runs if START < run.ended_at <= START + 400]
        assert ends[-1] != world.simulator.truth().runs[-1]
        found = [event for page in await world.pages("/api/v1/audits", **query) for event in page]
        assert [event["data"]["id"] for event in found] == [run.run_id for run in ends]
        assert found[0]["extensions"]["topLevelResourceId"] == ends[0].workflow_id
        assert (await world.get("/api/v1/audits", eventType="com.qlik.v1.app.created"))["data"] == []


# Webhooks


@pytest.mark.parametrize("envelope", ["cloudevents", "hybrid", "legacy"])
async def test_each_envelope_carries_the_run_and_is_signed_over_its_exact_bytes(envelope: str) -> None:
    async with serve(envelope=envelope, secret="0123456789abcdef0123456789abcdef") as world:
        workflow = world.simulator.add_workflow("wf")
        world.simulator.add_run(workflow, started_at=START, ended_at=START + 5.25, result="failure", run_id="r")
        await world.advance(10)
        [delivery] = world.simulator.take_deliveries()
        signature = hmac.new(b"0123456789abcdef0123456789abcdef", delivery.body, hashlib.sha256).hexdigest()
        assert delivery.headers["Qlik-Signature"] == signature
        assert delivery.headers["Content-Type"] == "application/json"
        event = orjson.loads(delivery.body)
        assert (event["data"]["id"], event["data"]["status"], "error" in event["data"]) == ("r", "failed", False)
        assert event["data"]["stopTime"] == "2023-11-14T22:13:25.000000Z"
        if envelope != "legacy":
            assert (event["specversion"], event["toplevelresourceid"]) == ("1.0.2", "wf")
            assert (event["type"], event["time"]) == ("com.qlik.v1.automation.run.ended", "2023-11-14T22:13:25.000Z")
        if envelope != "cloudevents":
            assert (event["cloudEventsVersion"], event["extensions"]["topLevelResourceId"]) == ("0.1", "wf")
        assert ("specversion" in event, "cloudEventsVersion" in event) == (
            envelope != "legacy",
            envelope != "cloudevents",
        )


async def test_without_a_secret_there_is_no_signature() -> None:
    async with serve(workflows=3) as world:
        await world.advance(600)
        deliveries = world.simulator.take_deliveries()
        assert deliveries
        assert all("Qlik-Signature" not in delivery.headers for delivery in deliveries)


async def test_webhooks_are_lost_and_doubled_as_the_faults_say() -> None:
    async with serve(workflows=5, faults=Faults(webhook_duplicated=1.0)) as world:
        await world.advance(600)
        bodies = [delivery.body for delivery in world.simulator.take_deliveries()]
        assert len(bodies) == 2 * len(set(bodies)) > 0
        world.simulator.faults.webhook_lost = 1.0
        await world.advance(600)
        assert world.simulator.take_deliveries() == []


async def test_a_webhook_whose_receiver_keeps_failing_is_disabled_and_can_be_enabled_again() -> None:
    async with serve(webhook_failures_max=2) as world:
        workflow = world.simulator.add_workflow()

        async def delivery_answered(status: int) -> int:
            started_at = world.clock.now()
            world.simulator.add_run(workflow, started_at=started_at, ended_at=started_at + 1, result="success")
            await world.advance(2)
            deliveries = world.simulator.take_deliveries()
            for delivery in deliveries:
                world.simulator.delivered(delivery, status)
            return len(deliveries)

        [hook] = (await world.get("/api/v1/webhooks"))["data"]
        path = f"/api/v1/webhooks/{hook['id']}"
        assert [await delivery_answered(status) for status in (500, 202, 308, 500)] == [1, 1, 1, 1]
        hook = await world.get(path)
        assert (hook["enabled"], bool(hook["disabledReason"])) == (False, True)
        assert await delivery_answered(202) == 0
        log = (await world.get(f"{path}/deliveries", sort="triggeredAt"))["data"]
        assert [entry["status"] for entry in log] == ["fail", "success", "fail", "fail"]
        assert "redirects are forbidden 308" in log[2]["statusMessage"]
        async with world.client.patch(
            path, headers=KEY, json=[{"op": "replace", "path": "/enabled", "value": True}]
        ) as response:
            assert response.status == 204
        assert [await delivery_answered(status) for status in (500, 202)] == [1, 1]
        assert (await world.get(path))["enabled"]


async def test_a_created_webhook_is_listed_disabled_and_hides_its_secret() -> None:
    async with serve() as world:
        wanted = {"name": "mine", "url": "https://me.example/hook", "secret": "s" * 32, "eventTypes": ["x"]}
        created = await world.post("/api/v1/webhooks", wanted, status=201)
        assert (created["enabled"], created["secretKeyAdded"], "secret" in created) == (False, True, False)
        assert created in (await world.get("/api/v1/webhooks"))["data"]
        assert (await world.get(f"/api/v1/webhooks/{created['id']}/deliveries"))["data"] == []
        types = [entry["name"] for entry in (await world.get("/api/v1/webhooks/event-types"))["data"]]
        assert types == ["com.qlik.v1.automation.run.ended"]
        for url in ("http://me.example/hook", "https://10.0.0.1/hook", ""):
            await world.post("/api/v1/webhooks", {**wanted, "url": url}, status=400)


# Faults


@pytest.mark.parametrize(
    ("kind", "status", "content_type"),
    [
        ("rate_limited", 429, "application/json"),
        ("rate_limited_text", 429, "text/plain"),
        ("unavailable", 503, "application/json"),
        ("server_error_html", 502, "text/html"),
        ("ok_html", 200, "text/html"),
        ("truncated", 200, "application/json"),
    ],
)
async def test_a_queued_fault_strikes_the_next_request_only(kind: str, status: int, content_type: str) -> None:
    async with serve(workflows=1) as world:
        world.simulator.fail_next(kind)
        async with world.client.get(API, headers=KEY) as response:
            assert (response.status, response.content_type) == (status, content_type)
            body = await response.read()
        if kind in ("rate_limited", "unavailable"):
            assert orjson.loads(body)["errors"][0]["code"] == f"HTTP-{status}"
        if kind == "truncated":
            with pytest.raises(orjson.JSONDecodeError):
                orjson.loads(body)
        await world.get(API)


Check = Callable[[World, str], Awaitable[None]]


async def _fields_are_missing(world: World, workflow: str) -> None:
    [shown] = await world.runs(workflow)
    world.simulator.faults = Faults()
    assert shown.keys() < (await world.runs(workflow))[0].keys()


async def _items_are_doubled(world: World, workflow: str) -> None:
    assert [run["id"] for run in await world.runs(workflow)] == ["r", "r"]
    assert len((await world.get(API))["data"]) == 2


async def _numbers_are_null(world: World, workflow: str) -> None:
    assert (await world.runs(workflow))[0]["duration"] is None
    [automation] = (await world.get(API))["data"]
    assert (automation["maxConcurrentRuns"], automation["lastRun"]["metrics"]["totalApiCalls"]) == (None, None)
    assert (await world.get(f"{API}/usage", filter='name eq "runs"'))["data"][0]["value"] is None


async def _status_is_unknown(world: World, workflow: str) -> None:
    assert (await world.runs(workflow))[0]["status"] == "hibernating"
    [automation] = (await world.get(API))["data"]
    assert (automation["lastRunStatus"], automation["lastRun"]["status"]) == ("hibernating", "hibernating")


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("missing_fields", _fields_are_missing),
        ("duplicates", _items_are_doubled),
        ("null_numbers", _numbers_are_null),
        ("unknown_status", _status_is_unknown),
    ],
)
async def test_a_damaged_item_shows_and_leaves_the_truth_alone(fault: str, check: Check) -> None:
    async with serve() as world:
        setattr(world.simulator.faults, fault, 1.0)
        workflow = world.simulator.add_workflow()
        world.simulator.add_run(workflow, started_at=START - 9, ended_at=START - 4, result="success", run_id="r")
        before = world.simulator.truth()
        await check(world, workflow)
        assert world.simulator.truth() == before


async def test_shifting_pages_repeat_an_item_of_the_page_before() -> None:
    async with serve(faults=Faults(shifting_pages=1.0)) as world:
        workflow = world.simulator.add_workflow()
        for index in range(4):
            at = START - 100 + index
            world.simulator.add_run(workflow, started_at=at, ended_at=at + 1, result="success", run_id=f"r{index}")
        pages = await world.pages(f"{API}/{workflow}/runs", limit=2)
        assert [[run["id"] for run in page] for page in pages] == [["r0", "r1"], ["r1", "r2"], ["r2", "r3"]]


async def test_truth_and_faults_are_open_to_whoever_runs_the_simulator() -> None:
    async with serve(workflows=2) as world:
        truth = await world.get("/_sim/truth", token=None)
        assert len(truth["runs"]) == len(world.simulator.truth().runs)
        faults = await world.post("/_sim/faults", {"unavailable": 1.0, "retry_after": None}, status=200)
        assert (faults["unavailable"], faults["retry_after"]) == (1.0, None)
        await world.get(API, status=503)
        for wrong in ({"gremlins": 1}, {"unavailable": "often"}, {"unavailable": None}, [1]):
            await world.post("/_sim/faults", wrong, status=400)
        assert world.simulator.faults.unavailable == 1.0


async def test_answers_carry_the_time_of_the_world() -> None:
    async with serve() as world, world.client.get(API, headers=KEY) as response:
        assert response.headers["Date"] == "Tue, 14 Nov 2023 22:13:20 GMT"
