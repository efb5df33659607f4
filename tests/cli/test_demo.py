"""What the demo has to show within minutes: all is well, one incident, what is done about it, all is well again."""

import asyncio
import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from exporter.cli import story
from exporter.cli.story import Scene
from exporter.clock import ManualClock, SystemClock
from exporter.simulator import SIMULATORS
from exporter.simulator.companions import alertmanager_config
from exporter.simulator.core import Faults
from exporter.simulator.fleet import DEMO_RETRIES, Fleet
from exporter.simulator.incident import Incident
from exporter.simulator.make import MakeSimulator
from tests.e2e.deployment import deployment

WELL: dict[str, dict[str, Any]] = {name: {"troubles": 0.0} for name in SIMULATORS}
TOLD = "automation-exporter {} --config demo.yaml"


@pytest.mark.parametrize("seed", [1, 2])
async def test_two_workflows_fail_and_recover_one_by_itself_and_one_after_an_approval(
    tmp_path: Path, seed: int
) -> None:
    options = {**WELL, "make": {**WELL["make"], "api_limit": 60_000}}
    changes = {"retries": DEMO_RETRIES}
    async with deployment(tmp_path, workflows=1, seed=seed, options=options, changes=changes) as made:
        make = made.fleet.simulators["make"]
        assert isinstance(make, MakeSimulator)
        incident = Incident(make, made.clock)
        said: list[str] = []
        scene = Scene(
            running=made.service,
            incident=incident,
            clock=made.clock,
            stop=asyncio.Event(),
            say=said.append,
            command=TOLD,
        )
        await made.sweep()
        began = made.clock.now()

        async def live(seconds: float) -> None:
            for _ in range(round(seconds / story.RUN_EVERY)):
                incident.run()
                await made.live(story.RUN_EVERY, step=story.RUN_EVERY, retry=True)
                await made.service.operations.settle_once()
                groups = made.service.operations.groups()
                lines = (
                    *story.waiting(groups, TOLD),
                    *story.gates(made.service, groups, made.clock.now()),
                    *story.progress(made.service.operations),
                )
                said.extend(line for line in lines if line not in said)

        await live(story.WELL_SECONDS)
        assert story.everything(made.service).endswith("0 failing, 0 open dead letters, 0 retries, 0 of them succeeded")
        assert said == []
        incident.down = True
        await live(story.DOWN_SECONDS)
        assert "; 2 failing, " in story.everything(made.service)
        asked = [line for line in said if "wait for your approval" in line]
        assert len(asked) == 1
        assert asked[0].startswith("Invoice export (make): ")
        assert re.search(r"automation-exporter retries approve --group [0-9a-f]+ --config demo\.yaml\n", asked[0])
        assert not story.well_again(scene)
        incident.repair()
        await live(story.APPROVED_AFTER)
        approved = await story.approve(made.service.operations)
        assert len(approved) == 1
        assert approved[0].startswith(f"The demo approves {incident.failed // 2} dead letters of Invoice export (make)")
        while not story.well_again(scene):
            assert made.clock.now() - began < 600, "within ten minutes: " + "\n".join(said)
            await live(story.RUN_EVERY)
        told = "\n".join(said)
        assert "  Payment import (make): retrying it failed; it cools off until" in told
        assert "Payment import (make): one retry at a time, to see whether it works again" in told
        assert re.search("Payment import .* up to [25] at once", told)
        steps = [int(done) for done in re.findall(r"operation \w+: (\d+) of \d+ ", told)]
        assert len(steps) >= 4, told
        assert steps == sorted(steps)
        ending = "\n".join(story.ending(scene))
        assert ending.startswith(f"All is well again. {incident.failed} runs failed, nothing is lost: ")
        assert "automation-exporter retries list --config demo.yaml" in ending
        for source in SIMULATORS:
            failed = {workflow for workflow, result in await made.counted(source) if result != "success"}
            assert failed == (incident.workflows if source == "make" else set())


@pytest.mark.parametrize("platform", list(SIMULATORS))
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_world_without_troubles_has_none(platform: str, seed: int) -> None:
    clock = ManualClock(1_700_000_000.0)
    stand = SIMULATORS[platform]
    options = {**stand.options, **WELL[platform]}
    simulator = stand.make(clock=clock, seed=seed, workflows=8, faults=Faults(), **options)
    simulator.advance(clock.now() + 6 * 3600)
    truth = simulator.truth()
    assert len(truth.runs) > 100
    assert {run.result for run in truth.runs} == {"success"}
    assert truth.dead_letters == []


async def test_a_link_to_a_simulated_platform_leads_somewhere() -> None:
    html = {"Accept": "text/html,application/xhtml+xml"}
    async with Fleet.open(clock=SystemClock(), workflows=1) as fleet, aiohttp.ClientSession() as session:
        for url in fleet.urls.values():
            for path in ("/", "/9/scenarios/5001", "/workflow/x/executions/1"):
                async with session.get(url + path, headers=html) as page:
                    assert (page.status, page.content_type) == (200, "text/html")
                    assert "A simulated platform" in await page.text()
            async with session.get(url + "/_sim/truth", headers=html) as truth:
                assert truth.content_type == "application/json"
            async with session.get(url + "/no/such/page") as api:
                assert api.status >= 400, "a program is answered as the platform does"


def test_the_demo_s_alertmanager_groups_and_inhibits_as_the_one_that_is_shipped() -> None:
    shipped = yaml.safe_load((Path(__file__).parents[2] / "alerts" / "alertmanager.example.yaml").read_text())
    ours = yaml.safe_load(alertmanager_config())
    assert ours["inhibit_rules"] == shipped["inhibit_rules"]
    assert len(ours["inhibit_rules"]) > 5
    assert ours["route"]["group_by"] == shipped["route"]["group_by"]
    assert ours["receivers"] == [{"name": receiver["name"]} for receiver in shipped["receivers"]], "nobody is sent to"
