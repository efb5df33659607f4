"""Repairs other than a retry over real HTTP: a person asks over the API, a simulated platform does it, or hides that it
did not.

The simulators count what really happened.
"""

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from exporter import app
from exporter.clock import SystemClock
from exporter.model.operations import OperationAction
from exporter.platforms.etlworks.config import Parameter
from exporter.retries.operations import Selection
from exporter.simulator.fleet import Fleet, demo_config
from exporter.simulator.repairs import RepairPlan
from exporter.simulator.retries import RetryPlan
from tests.e2e.deployment import Deployment, deployment
from tests.e2e.test_retries import retrying
from tests.servers import eventually

TOKEN = "letmein-please"
HOUR = 3600.0


@asynccontextmanager
async def service(folder: Path, platform: str, *grant: str, **section: Any) -> AsyncIterator[Deployment]:
    changes: dict[str, Any] = {**retrying("approve"), "server": {"listen": "127.0.0.1:0", "admin_token": TOKEN}}
    options = {platform: {"api_limit": 60_000}} if platform == "make" else {}
    async with deployment(folder, platforms=[platform], workflows=0, options=options, changes=changes) as made:
        granting = made.config.sources[platform].model_copy(update={"grant": list(grant), **section})
        made.config = made.config.model_copy(update={"sources": {platform: granting}})
        await made.restart()
        yield made


async def ask(made: Deployment, action: str, *ids: str, **more: Any) -> tuple[int, Mapping[str, Any]]:
    body = {"action": action, "ids": [f"{next(iter(made.service.sources))}/{one}" for one in ids], "now": True} | more

    async def post() -> tuple[int, Mapping[str, Any]]:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with made.session.post(made.url + "/api/v1/operations", json=body, headers=headers) as response:
            return response.status, await response.json()

    return await made.drive(post())


async def items(made: Deployment, operation: str) -> dict[str, tuple[str, str]]:
    async with made.session.get(made.url + f"/api/v1/operations/{operation}") as response:
        found = await response.json()
    return {item["dead_letter"].partition("/")[2]: (item["state"], item["detail"]) for item in found["items"]}


def changing(made: Deployment) -> Counter[str]:
    """Requests of all simulators that change something, by endpoint."""
    found: Counter[str] = Counter()
    for simulator in made.fleet.simulators.values():
        found.update({str(key): n for key, n in simulator.requests.items() if not str(key).startswith("GET")})
    return found


async def test_a_discard_whose_answer_hides_what_it_left_says_so(tmp_path: Path) -> None:
    async with service(tmp_path, "make", "discard") as made:
        make: Any = made.fleet.simulators["make"]
        workflow = make.add_workflow(name="Order sync")
        await made.sweep()
        letters = [make.add_dead_letter(workflow) for _ in range(3)]
        await made.live(60, step=15, retry=True)
        status, tried = await ask(made, "discard", *letters, dry_run=True)
        assert (status, tried["count"]) == (200, 3)
        assert tried["plans"][0]["does"].startswith("delete it on Make: what it stored is lost")
        make.plan_repairs(RepairPlan(fate="some"))
        status, begun = await ask(made, "discard", *letters, why="duplicates")
        assert status == 200
        await made.repair()
        await made.repair(20 * 60, step=60)
        stood = await items(made, begun["operation"])
        gone = [name for name in letters if make.world.dead_letters[name].state == "deleted"]
        assert len(gone) == 1
        assert {name for name, (state, _) in stood.items() if state == "done"} == set(gone)
        left = {detail for state, detail in stood.values() if state == "failed"}
        assert left == {"it is still there"}
        assert sum(n for key, n in changing(made).items() if key.startswith("DELETE")) == 1
        status, again = await ask(made, "discard", *(name for name in letters if name not in gone))
        await made.repair()
        assert {state for state, _ in (await items(made, again["operation"])).values()} == {"done"}
        samples = await made.samples("automation_repairs_total")
        assert samples["make", "discard", "done"] == 3
        assert samples["make", "discard", "failed"] == 2
        resolved = await made.samples("automation_dead_letters_resolved_total")
        assert resolved["make", workflow, "manual"] == 3


@pytest.mark.parametrize("fate", ["done", "cut"])
async def test_what_was_edited_since_is_fixed_and_retried(tmp_path: Path, fate: Any) -> None:
    async with service(tmp_path, "make", "fix-and-retry") as made:
        make: Any = made.fleet.simulators["make"]
        workflow = make.add_workflow(name="Order sync")
        await made.sweep()
        letter = make.add_dead_letter(workflow)
        await made.clock.advance(30)
        make.edit_workflow(workflow)
        await made.live(60, step=15, retry=True)
        make.plan_repairs(RepairPlan(fate=fate))
        make.plan_retries("success")
        status, begun = await ask(made, "fix-and-retry", letter)
        assert (status, begun.get("error")) == (200, None)
        assert begun["plans"][0]["does"].startswith("replace its frozen blueprint")
        await made.repair(60)
        await made.restart()
        await made.live(300, step=15, retry=True)
        await made.repair()
        assert (make.retry_calls[letter], make.retry_executions[letter]) == (1, 1)
        assert (await items(made, begun["operation"]))[letter][0] == "succeeded"
        resolved = await made.samples("automation_dead_letters_resolved_total")
        assert resolved["make", workflow, "retry"] == 1
        assert sum(n for key, n in changing(made).items() if key.startswith("PATCH")) == 1


async def test_a_scenario_that_make_switched_off_is_switched_on(tmp_path: Path) -> None:
    async with service(tmp_path, "make", "reactivate") as made:
        make: Any = made.fleet.simulators["make"]
        workflow = make.add_workflow(name="Order sync")
        make.stop_workflow(workflow, "Too many consecutive errors")
        await made.sweep()
        status, begun = await ask(made, "reactivate", workflow)
        assert status == 200
        assert "Make switched it off at" in begun["plans"][0]["does"]
        await made.repair()
        assert (await items(made, begun["operation"]))[workflow] == ("done", "it is switched on")
        assert made.service.sources["make"].stream_due["workflows"].is_set()
        status, again = await ask(made, "reactivate", workflow)
        assert (status, again["error"]) == (409, f"make/{workflow}: it is switched on")


async def test_a_run_that_hangs_is_stopped(tmp_path: Path) -> None:
    async with service(tmp_path, "qlik", "stop") as made:
        qlik: Any = made.fleet.simulators["qlik"]
        workflow = qlik.add_workflow(name="Invoices")
        await made.sweep()
        run = qlik.add_run(workflow, started_at=made.clock.now() - 3 * HOUR, ended_at=None)
        await made.live(60, step=15)
        assert run in made.service.sources["qlik"].known.open_runs
        status, begun = await ask(made, "stop", run)
        assert status == 200, begun
        assert begun["plans"][0]["does"].startswith("stop the run, which has been running for 3 h")
        await made.repair()
        assert (await items(made, begun["operation"]))[run][0] == "open"
        await made.repair(120)
        assert (await items(made, begun["operation"]))[run] == ("done", "Qlik says that it is stopped")
        assert run not in made.service.sources["qlik"].known.open_runs
        assert sum(n for key, n in changing(made).items() if key.endswith("actions/stop")) == 1


@pytest.mark.parametrize(("platform", "action"), [("make", "discard"), ("make", "reactivate"), ("qlik", "stop")])
async def test_without_the_grant_no_request_is_made(tmp_path: Path, platform: str, action: str) -> None:
    async with service(tmp_path, platform) as made:
        simulator: Any = made.fleet.simulators[platform]
        workflow = simulator.add_workflow(name="Order sync")
        await made.sweep()
        if platform == "make":
            name = simulator.add_dead_letter(workflow)
        else:
            name = simulator.add_run(workflow, started_at=made.clock.now() - 3 * HOUR, ended_at=None)
        await made.live(60, step=15)
        before = sum(simulator.requests.values())
        status, answer = await ask(made, action, workflow if action == "reactivate" else name)
        assert (status, answer["error"]) == (
            403,
            f"{action} is not granted: add it to sources.{platform}.grant in the config",
        )
        await made.repair()
        assert sum(simulator.requests.values()) == before


async def test_what_a_platform_cannot_do_is_said(tmp_path: Path) -> None:
    async with service(tmp_path, "qlik", "stop") as made:
        qlik: Any = made.fleet.simulators["qlik"]
        workflow = qlik.add_workflow(name="Invoices")
        await made.sweep()
        now = made.clock.now()
        qlik.add_run(workflow, started_at=now - 60, ended_at=now + 1, result="failure")
        await made.live(60, step=15)
        letters = list(made.service.sources["qlik"].known.dead_letters)
        assert letters
        status, answer = await ask(made, "discard", *letters)
        assert (status, answer["error"]) == (409, "Qlik Automate cannot discard")


@pytest.mark.parametrize("fate", ["done", "cut"])
async def test_a_flow_runs_again_with_the_parameters_of_the_config_and_its_failure_is_the_same_letter(
    tmp_path: Path, fate: Any
) -> None:
    parameters = {"1001": [Parameter(name="day", value="yesterday")]}
    async with service(tmp_path, "etlworks", "rerun", rerun_parameters=parameters) as made:
        etlworks: Any = made.fleet.simulators["etlworks"]
        etlworks.add_workflow("1001")
        await made.sweep()
        now = made.clock.now()
        etlworks.add_run("1001", started_at=now + 1, ended_at=now + 10, result="failure", error="network")
        await made.live(120, step=15)
        known = made.service.sources["etlworks"].known
        [letter] = known.dead_letters
        etlworks.plan_retries(RetryPlan(outcome="failure", fate=fate))
        status, begun = await ask(made, "rerun", letter)
        assert (status, begun.get("error")) == (200, None)
        assert begun["plans"][0]["changes"] == ["parameter day"]
        await made.repair()
        for _ in range(20):
            await made.live(60, step=15, retry=True)
            await made.repair()
        [(state, detail)] = (await items(made, begun["operation"])).values()
        assert (state, "ended as failure" in detail) == ("failed", True) if fate == "done" else ("unknown", False)
        after = [one for one in known.dead_letters.values() if one.id != letter]
        assert [made.service.book.root_of("etlworks", one) for one in after] == [letter]
        assert (letter in known.dead_letters) is (fate == "cut")  # else the work lives on in the other
        status, answer = await ask(made, "rerun", letter)
        assert status == 404 if fate == "done" else "it was run again already" in answer["error"]
        assert sum(etlworks.retry_calls.values()) == 1


async def test_a_running_service_does_it_by_itself(tmp_path: Path) -> None:
    options = {"make": {"api_limit": 60_000}}
    async with Fleet.open(clock=SystemClock(), platforms=["make"], workflows=0, options=options) as fleet:
        make: Any = fleet.simulators["make"]
        workflow = make.add_workflow(name="Order sync")
        config = demo_config(fleet, listen="127.0.0.1:0", database=tmp_path / "e2e.db", interval="1s")
        section = config.sources["make"].model_copy(update={"grant": ["discard"]})
        config = config.model_copy(update={"sources": {"make": section}})
        async with app.service(config) as running:
            await eventually(lambda: swept(running))
            letter = make.add_dead_letter(workflow)
            await eventually(lambda: is_known(running, letter))
            chosen = Selection(ids=[("make", letter)])
            begun = await running.operations.begin(OperationAction.DISCARD, chosen, who="ann", at_once=True)
            await eventually(lambda: is_done(running, begun["operation"]))
            assert make.world.dead_letters[letter].state == "deleted"


async def swept(running: app.Service) -> bool:
    return running.sources["make"].known.first_sweep_at is not None


async def is_known(running: app.Service, name: str) -> bool:
    return name in running.sources["make"].known.dead_letters


async def is_done(running: app.Service, operation: str) -> bool:
    return (await running.operations.one(operation)).counts == {"done": 1}
