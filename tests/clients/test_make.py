"""Make's official client and our stand-in for Make understand each other.

Each call is made by the client; what it says of the answer is compared with the documents, with what the client
declares, and with what has become of the simulated world.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
import pytest
from aiohttp.test_utils import TestServer

from exporter.clock import ManualClock
from exporter.simulator.make import MakeSimulator
from tests.clients.declared import Declarations
from tests.clients.official import Answer, Official, folder

START = 1_700_000_000.0
TOKEN = "01234567-89ab-4cde-8f01-23456789abcd"  # the client takes what looks like this for an API key
UNKNOWN = "0" * 32
Ask = Callable[..., Awaitable[Answer]]

#: Where recorded answers, or the API's own documents, say otherwise than the client's types.
TYPES_ARE_WRONG = {
    "Scenario.folderId: None is no number",  # a scenario in no folder
    "Scenario.createdByUser.name: 'Operator' is no number",
    "Scenario.createdByUser.email: 'operator@example.test' is no number",
    "Scenario.updatedByUser.name: 'Operator' is no number",
    "Scenario.updatedByUser.email: 'operator@example.test' is no number",
}


class World:
    def __init__(self, client: Official, clock: ManualClock, simulator: MakeSimulator, url: str) -> None:
        self.client = client
        self.clock = clock
        self.simulator = simulator
        self.url = url
        self.declared = Declarations.read(folder() / "node_modules/@makehq/sdk/dist/index.d.ts")

    async def ask(self, call: str, *args: Any, token: str = TOKEN) -> Any:
        """The value of a call that has to work."""
        answer = await self.client.call(self.url, token, call, *args)
        assert answer.refused is None, f"{call} was refused: {answer.refused} {answer.text}"
        return answer.value

    async def refused(self, call: str, *args: Any, token: str = TOKEN) -> tuple[int, str]:
        answer = await self.client.call(self.url, token, call, *args)
        assert answer.refused is not None, f"{call} was not refused: {answer.value}"
        return answer.refused, answer.text

    def declared_as(self, value: Any, name: str) -> None:
        assert self.declared.differences(value, name) <= TYPES_ARE_WRONG

    async def later(self, seconds: float) -> None:
        await self.clock.advance(seconds)


@pytest.fixture
async def make(make_client: Official) -> AsyncIterator[World]:
    clock = ManualClock(START)
    simulator = MakeSimulator(clock=clock, workflows=0, history=0.0, token=TOKEN, enforce_limit=False, dashed_ids=False)
    async with TestServer(simulator.app()) as server:
        yield World(make_client, clock, simulator, str(server.make_url("/")))


async def test_organization_teams_hooks_and_user_are_read(make: World) -> None:
    make.simulator.add_workflow("5012", "Order sync", instant=True, interval=60.0)

    organizations = await make.ask("organizations.list")
    assert [o["id"] for o in organizations] == [9]
    assert (await make.ask("organizations.get", 9))["license"]["apiLimit"] == 60
    teams = await make.ask("teams.list", 9)
    make.declared_as(teams[0], "Team")
    make.declared_as(await make.ask("teams.get", 77), "Team")
    hooks = await make.ask("hooks.list", 77)
    assert [h["scenarioId"] for h in hooks] == [5012]
    make.declared_as(hooks[0], "Hook")
    make.declared_as(await make.ask("users.me"), "User")
    assert "dlqs:write" in (await make.ask("users.currentAuthorization"))["scope"]


async def test_scenarios_are_listed_read_renamed_and_deleted(make: World) -> None:
    make.simulator.add_workflow("5012", "Order sync", interval=600.0)
    make.simulator.add_workflow("5013", "Other")
    make.simulator.add_run("5013", started_at=START - 9, ended_at=START - 5, result="success")

    listed = await make.ask("scenarios.list", 77, {"pg": {"limit": 1, "offset": 1}})
    assert [s["id"] for s in listed] == [5013]
    everything = await make.ask("scenarios.listInOrganization", 9, {"cols": ["id", "name"]})
    assert everything == [{"id": 5012, "name": "Order sync"}, {"id": 5013, "name": "Other"}]
    scenario = await make.ask("scenarios.get", 5012)
    make.declared_as(scenario, "Scenario")

    await make.later(60)
    renamed = await make.ask(
        "scenarios.update", 5012, {"name": "Orders", "scheduling": {"type": "indefinitely", "interval": 60}}
    )
    make.declared_as(renamed, "Scenario")
    assert (renamed["name"], renamed["scheduling"]) == ("Orders", {"type": "indefinitely", "interval": 60})
    assert renamed["lastEdit"] > scenario["lastEdit"]
    assert (await make.ask("blueprints.versions", 5012))[0] == {
        "version": 2, "created": renamed["lastEdit"], "scenarioId": 5012, "draft": False
    }  # fmt: skip

    assert await make.ask("scenarios.deactivate", 5012) is True
    await make.later(3600)
    assert await make.ask("executions.list", 5012, {"pg": {"limit": 5}}) is not None
    assert not [r for r in make.simulator.truth().runs if r.workflow_id == "5012"], "it was switched off"
    assert await make.ask("scenarios.activate", 5012) is True
    await make.later(3600)
    assert len([r for r in make.simulator.truth().runs if r.workflow_id == "5012"]) > 50, "every minute, as told"

    await make.ask("scenarios.delete", 5012)
    assert (await make.refused("scenarios.get", 5012))[0] == 404
    ran = len(make.simulator.truth().runs)
    await make.later(3600)
    assert len(make.simulator.truth().runs) - ran <= 1, "only what was running when it was deleted"
    assert (await make.refused("scenarios.delete", 5012))[0] == 404


async def test_a_schedule_can_be_taken_away_and_given_back(make: World) -> None:
    make.simulator.add_workflow("5012", interval=600.0)

    on_demand = await make.ask("scenarios.update", 5012, {"scheduling": {"type": "on-demand"}})
    assert (on_demand["scheduling"], on_demand["nextExec"]) == ({"type": "on-demand"}, None)
    await make.later(1800)
    assert not make.simulator.truth().runs
    await make.ask("scenarios.update", 5012, {"scheduling": {"type": "indefinitely", "interval": 300}})
    await make.ask("scenarios.update", 5012, {"scheduling": {"type": "on-demand"}})
    await make.ask("scenarios.update", 5012, {"scheduling": {"type": "indefinitely", "interval": 300}})
    await make.later(3030)
    assert len(make.simulator.truth().runs) == 10, "one schedule, however often it was given"


async def test_a_blueprint_can_be_changed_and_says_from_then_on_what_runs(make: World) -> None:
    make.simulator.add_workflow("5012", "Order sync", store=False)
    blueprint = await make.ask("blueprints.get", 5012)
    make.declared_as(blueprint, "Blueprint")

    blueprint["metadata"]["scenario"] |= {"dlq": True, "sequential": True}
    blueprint["flow"] = [*blueprint["flow"][:2], {"id": 3, "module": "acme-shop:WatchOrders", "version": 1}]
    await make.ask("scenarios.update", 5012, {"blueprint": blueprint})
    again = await make.ask("blueprints.get", 5012)
    assert again["flow"][2]["module"] == "acme-shop:WatchOrders"
    assert again["metadata"]["scenario"]["dlq"] is True
    one = {"id": 1, "module": "http:MakeRequest"}
    for nonsense in (
        {"flow": "none"},
        {"flow": [one, one]},
        {"flow": [one | {"onerror": [{"module": "builtin:Break", "mapper": {"retry": True, "count": "often"}}]}]},
        {"flow": [one], "metadata": {"scenario": []}},
    ):
        status, text = await make.refused("scenarios.update", 5012, {"blueprint": nonsense})
        assert (status, "blueprint" in text) == (400, True), nonsense
    assert await make.ask("blueprints.get", 5012) == again, "what was refused changed nothing"


async def test_executions_are_listed_and_read(make: World) -> None:
    make.simulator.add_workflow("5012")
    make.simulator.add_run("5012", started_at=START - 20, ended_at=START - 15, result="success")
    failed = make.simulator.add_run(
        "5012", started_at=START - 9, ended_at=START - 5, result="failure", error="ConnectionError"
    )
    await make.later(60)

    listed = await make.ask("executions.list", 5012, {"pg": {"limit": 10}})
    rows = [row for row in listed if "status" in row]  # rows of the timeline stand between them, which no type declares
    assert [row["status"] for row in rows] == [3, 1]
    for row in rows:
        make.declared_as(row, "Execution")
    make.declared_as(await make.ask("executions.get", 5012, failed), "Execution")
    detail = await make.ask("executions.getDetail", 5012, failed)
    make.declared_as(detail, "ExecutionDetail")
    assert (detail["status"], detail["error"]["name"]) == ("ERROR", "ConnectionError")
    assert (await make.refused("executions.get", 5012, UNKNOWN))[0] == 404


async def test_a_scenario_is_run_and_calls_back(make: World) -> None:
    make.simulator.add_workflow("5012")

    started = await make.ask("scenarios.run", 5012, {"order": 1}, {"callbackUrl": "https://callback.example.test/"})
    make.declared_as(started, "RunScenarioResponse")
    quiet = await make.ask("scenarios.run", 5012, {}, {"responsive": False})
    assert (await make.ask("executions.getDetail", 5012, started["executionId"]))["status"] == "RUNNING"
    await make.later(300)
    detail = await make.ask("executions.getDetail", 5012, started["executionId"])
    assert (detail["status"], (await make.ask("executions.get", 5012, quiet["executionId"]))["type"]) == (
        "SUCCESS",
        "manual",
    )
    delivered = [orjson.loads(delivery.body) for delivery in make.simulator.take_deliveries()]
    assert [body["executionId"] for body in delivered] == [started["executionId"]], "one asked for it"
    await make.ask("scenarios.deactivate", 5012)
    assert await make.refused("scenarios.run", 5012) == (422, "Scenario is not activated")
    assert (await make.refused("scenarios.run", 9999))[0] == 404


async def test_an_incomplete_execution_is_read_retried_and_its_attempts_are_listed(make: World) -> None:
    make.simulator.add_workflow("5012")
    letter = make.simulator.add_dead_letter("5012", error="DataError", outcomes=("failure", "success"))

    listed = await make.ask("incompleteExecutions.list", 5012)
    assert [item["id"] for item in listed] == [letter]
    detail = await make.ask("incompleteExecutions.get", letter)
    make.declared_as(listed[0], "IncompleteExecution")
    make.declared_as(detail, "IncompleteExecution")
    bundle = await make.ask("incompleteExecutions.bundle", letter)
    assert [entry["error"]["type"] for entry in bundle.values() if "error" in entry] == ["DataError"]
    assert await make.ask("executions.listForIncompleteExecution", letter) == []

    await make.ask("incompleteExecutions.retry", letter)
    assert await make.refused("incompleteExecutions.retry", letter) == (
        400, "The incomplete execution is resolved or being processed."
    )  # fmt: skip
    await make.later(60)
    attempts = await make.ask("executions.listForIncompleteExecution", letter, {"pg": {"limit": 5}})
    assert [row["status"] for row in attempts] == [3]
    make.declared_as(attempts[0], "Execution")
    attempt = attempts[0]["id"]
    assert await make.ask("executions.getForIncompleteExecution", letter, attempt) == attempts[0]
    assert (await make.refused("executions.getForIncompleteExecution", letter, UNKNOWN))[0] == 404
    await make.ask("incompleteExecutions.retry", letter)
    await make.later(60)
    assert (await make.ask("incompleteExecutions.get", letter))["resolved"] is True


async def test_a_patch_changes_the_frozen_blueprint_and_what_a_retry_runs(make: World) -> None:
    make.simulator.add_workflow("5012", "Order sync")
    letter = make.simulator.add_dead_letter("5012", outcomes=("success",))

    async def frozen() -> Any:
        return (await make.ask("fetch", f"/dlqs/{letter}/blueprint"))["response"]["blueprint"]

    before = await frozen()
    await make.ask(
        "scenarios.update", 5012, {"name": "Renamed since", "blueprint": before | {"flow": before["flow"][:1]}}
    )
    make.simulator.rename_workflow("5012", "Renamed again")
    assert await frozen() == before, "frozen: what is edited later is no part of it"

    flow = [
        *before["flow"],
        {"id": len(before["flow"]) + 1, "module": "acme-shop:AddOrder", "version": 1, "metadata": {}},
    ]
    changed = before | {"flow": flow}
    patched = await make.ask("incompleteExecutions.update", letter, {"blueprint": changed, "failer": len(flow)})
    assert patched == {"failer": len(flow), "blueprint": changed}
    assert await frozen() == changed
    bundle = await make.ask("incompleteExecutions.bundle", letter)
    assert "error" in bundle[str(len(flow))], "the failer is another module"
    assert (await make.ask("incompleteExecutions.update", letter, {"failer": 2}))["failer"] == 2

    assert make.simulator.retry_executions[letter] == 0, "a patch retries nothing"
    await make.ask("incompleteExecutions.retry", letter)
    await make.later(60)
    attempt = (await make.ask("executions.listForIncompleteExecution", letter))[0]
    assert attempt["operations"] == len(flow) - 1, "from the failer to the end of the patched blueprint"
    assert (await make.refused("incompleteExecutions.update", letter, {"failer": 1}))[0] == 400, "it is resolved"


@pytest.mark.parametrize(
    "body",
    [
        {"blueprint": "no JSON"},
        {"blueprint": '{"flow": []}'},
        {"blueprint": '["flow"]'},
        {"failer": 99},
        {"failer": "2"},
    ],
)
async def test_a_patch_that_makes_no_sense_is_refused_and_changes_nothing(make: World, body: Any) -> None:
    make.simulator.add_workflow("5012")
    letter = make.simulator.add_dead_letter("5012")
    before = await make.ask("fetch", f"/dlqs/{letter}/blueprint")

    assert (await make.refused("incompleteExecutions.update", letter, body))[0] == 400
    assert await make.ask("fetch", f"/dlqs/{letter}/blueprint") == before


async def test_many_are_retried_at_once(make: World) -> None:
    make.simulator.add_workflow("5012")
    make.simulator.add_workflow("5013")
    letters = [make.simulator.add_dead_letter("5012", outcomes=("success",)) for _ in range(4)]
    stranger = make.simulator.add_dead_letter("5013")

    await make.ask("incompleteExecutions.retryMultiple", 5012, {"ids": letters[:1]})
    await make.ask("incompleteExecutions.retryMultiple", 5012, {"all": True, "exceptIds": letters[3:]})
    await make.later(300)
    rows = {item["id"]: item["resolved"] for item in await make.ask("incompleteExecutions.list", 5012)}
    assert rows == dict(zip(letters, [True, True, True, False], strict=True))
    assert (await make.refused("incompleteExecutions.retryMultiple", 5012, {"ids": [stranger]}))[0] == 400
    assert (await make.refused("incompleteExecutions.retryMultiple", 5012, {}))[0] == 400


async def test_deleting_needs_a_confirmation_for_all_and_really_deletes(make: World) -> None:
    make.simulator.add_workflow("5012")
    letters = [make.simulator.add_dead_letter("5012") for _ in range(4)]

    async def left() -> list[str]:
        return [item["id"] for item in await make.ask("incompleteExecutions.list", 5012)]

    def delete(body: Any, **query: Any) -> tuple[str, dict[str, Any]]:
        return "/dlqs", {"method": "DELETE", "query": {"scenarioId": 5012} | query, "body": body}

    assert await make.ask("fetch", *delete({"ids": letters[:1]})) == {"dlqs": letters[:1]}
    assert await left() == letters[1:]
    assert (await make.refused("fetch", *delete({"all": True})))[0] == 406
    assert await left() == letters[1:]
    await make.ask("fetch", *delete({"all": True, "exceptIds": letters[3:]}, confirmed=True))
    assert await left() == letters[3:]
    assert await make.ask("fetch", f"/dlqs/{letters[3]}", {"method": "DELETE"}) == {"dlq": letters[3]}
    assert await left() == []
    assert not make.simulator.truth().open_dead_letters()
    assert (await make.refused("fetch", f"/dlqs/{UNKNOWN}", {"method": "DELETE"}))[0] == 404


async def test_what_is_refused_reaches_the_client_as_a_status_and_a_sentence(make: World) -> None:
    make.simulator.add_workflow("5012")
    assert await make.refused("scenarios.list", 77, token="no-such-token") == (401, "Access denied.")
    assert (await make.refused("organizations.get", 8))[0] == 403
    assert await make.refused("scenarios.get", 9999) == (404, "Scenario with id '9999' not found.")
    assert (await make.refused("incompleteExecutions.get", UNKNOWN))[0] == 404
    assert (await make.refused("incompleteExecutions.retry", UNKNOWN))[0] == 404
    assert (await make.refused("fetch", "/dlqs"))[0] == 400, "scenarioId is required"
    make.simulator.fail_next("unavailable", "rate_limited", "rate_limited_text")
    assert (await make.refused("scenarios.get", 5012))[0] == 503
    assert (await make.refused("scenarios.get", 5012))[0] == 429
    assert await make.refused("scenarios.get", 5012) == (429, "Too Many Requests")
