"""How many requests a sweep costs: printed, and held to the promise that it depends on what changed, not on what
exists.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.deployment import Deployment, deployment

pytestmark = pytest.mark.bench

WORKFLOWS, CHANGED = 1000, 20
ROOMY: dict[str, Any] = {"api_limit": 100_000, "enforce_limit": False}
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "make, a zone with the feed of all runs": ("make", ROOMY),
    "make, a zone without it": ("make", {**ROOMY, "feed": False}),
    "qlik": ("qlik", {}),
}


def requests(made: Deployment, platform: str) -> int:
    return sum(made.fleet.simulators[platform].requests.values())


@pytest.mark.parametrize("way", WAYS)
async def test_a_cycle_costs_what_changed(way: str, tmp_path: Path) -> None:
    platform, options = WAYS[way]
    async with deployment(tmp_path, platforms=[platform], workflows=0, options={platform: options}) as made:
        simulator: Any = made.fleet.simulators[platform]
        ids = [simulator.add_workflow(name=f"workflow {n}") for n in range(WORKFLOWS)]
        now = made.clock.now()
        for number, workflow in enumerate(ids):
            simulator.add_run(workflow, started_at=now - 4000 - number, ended_at=now - 3990 - number, result="success")
        for _ in range(10):  # a first start reads each workflow once, a part of them with every sweep
            await made.clock.advance(60)
            await made.sweep()
        print(f"\n{way}: {WORKFLOWS} workflows, {CHANGED} of which ran since the last cycle")
        for cycle in range(3):
            now = made.clock.now()
            for workflow in ids[cycle * CHANGED : (cycle + 1) * CHANGED]:
                simulator.add_run(workflow, started_at=now + 5, ended_at=now + 15, result="success")
            await made.clock.advance(60)
            before = requests(made, platform)
            await made.sweep()
            cost = requests(made, platform) - before
            print(f"  cycle {cycle + 1}: {cost} requests, all streams together")
            assert cost <= 0.02 * WORKFLOWS + 10
        await made.settle()
        assert sum((await made.counted(platform)).values()) == 3 * CHANGED
