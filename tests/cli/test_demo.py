"""What the demo has to show within minutes: groups, a gate that shuts and ramps, an operation with its progress."""

import re
from pathlib import Path

import pytest

from exporter.cli.demo import approve_once, break_first, break_more, gates, progress
from exporter.simulator.fleet import DEMO_RETRIES
from exporter.simulator.make import MakeSimulator
from tests.e2e.deployment import deployment


@pytest.mark.parametrize("seed", [1, 2])
async def test_the_demo_shows_a_gate_ramping_and_an_operation_with_progress(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"make": {"api_limit": 60_000}}
    changes = {"retries": DEMO_RETRIES}
    async with deployment(tmp_path, workflows=1, seed=seed, options=options, changes=changes) as made:
        make = made.fleet.simulators["make"]
        assert isinstance(make, MakeSimulator)
        await made.sweep()
        workflow = break_first(make)
        await made.clock.advance(1.0)
        break_more(make, workflow)
        said: list[str] = []
        for turn in range(28):  # seven minutes
            await made.live(15, step=15, retry=True)
            await made.service.operations.settle_once()
            if turn % 4 == 3:
                await approve_once(made.service.operations)
            now, groups = made.clock.now(), made.service.operations.groups()
            for line in (*gates(made.service, groups, now), *progress(made.service.operations)):
                if line not in said:
                    said.append(line)
    told = "\n".join(said)
    stands = [line for line in said if line.startswith("Payment import (make): ")]
    assert "cools off until" in stands[1]
    assert [line for line in stands if "up to 2 at once" in line or "up to 5 at once" in line], told
    found = re.search(
        r"somebody approves 12 dead letters of Invoice export \(make\): operation (\w+)", capsys.readouterr().out
    )
    assert found is not None
    steps = [int(done) for done in re.findall(rf"operation {found[1]}: (\d+) of 12", told)]
    assert len(steps) >= 4, told
    assert steps == sorted(steps)
    assert steps[-1] == 12
