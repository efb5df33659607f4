"""Two hours in which everything fails, and what becomes of the dead letters: on every platform, over real HTTP."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from exporter.simulator.retries import RetryPlan
from tests.e2e.deployment import Deployment, deployment
from tests.e2e.test_truth import ROOMY

pytestmark = pytest.mark.slow

MINUTE, HOUR = 60.0, 3600.0
LETTERS = 200
BEFORE, OUTAGE, WITHIN = 10 * MINUTE, 2 * HOUR, HOUR
TURN, SWEEP = 20.0, 60.0
#: Workflows that run all the time, and how often (seconds).
BUSY, RUN_EVERY = 10, 5 * MINUTE
#: Where a workflow can have many dead letters it is these that have them; elsewhere, where the next good run settles
#: all there are, every dead letter is of a workflow of its own that runs rarely.
OF_THE_BUSY = ("make", "cognaize")
POLICY: Mapping[str, Any] = {
    "name": "transient",
    "match": {"error.class": ["network", "unknown"]},
    "action": "retry",
}
STORM: Mapping[str, Any] = {"failing": 0.4, "of": 10, "within": "10m"}
PACE: Mapping[str, Any] = {"rate": "10/1m", "burst": 3, "in_flight": 25}


class Outage:
    """What happens on one platform: runs and dead letters minute by minute, and how retries of them end."""

    def __init__(self, made: Deployment, platform: str) -> None:
        self.made, self.platform = made, platform
        simulator: Any = made.fleet.simulators[platform]
        self.simulator, add = simulator, simulator.add_workflow
        self.busy: list[str] = [add(name=f"Busy {number}") for number in range(BUSY)]
        self.losing = self.busy
        if platform not in OF_THE_BUSY:
            self.losing = [add(name=f"Rare {number}") for number in range(LETTERS)]
        self.begins = made.clock.now() + BEFORE
        self.ends = self.begins + OUTAGE
        self._lost = 0

    @property
    def is_on(self) -> bool:
        return self.begins <= self.made.clock.now() < self.ends

    def step(self) -> None:
        """Have happen what does until the next turn."""
        now, out = self.made.clock.now(), self.is_on
        plans = self.simulator._plans if hasattr(self.simulator, "_plans") else self.simulator.world.planned_retries
        plans.clear()
        self.simulator.plan_retries(*[RetryPlan(outcome="failure" if out else "success")] * 100)
        for number, workflow in enumerate(self.busy):
            if (now + number * TURN) % RUN_EVERY < TURN:
                self._run(workflow, "failure" if out else "success")
        while out and self._lost < min(LETTERS, LETTERS * (now - self.begins) / (OUTAGE - MINUTE)):
            self._lose(self.losing[self._lost % len(self.losing)])
            self._lost += 1

    def _run(self, workflow: str, result: str) -> None:
        now, error = self.made.clock.now(), {}
        if result == "failure":
            error = {"error": "ConnectionError" if self.platform == "make" else "network"}
        self.simulator.add_run(workflow, started_at=now + 1, ended_at=now + 11, result=result, **error)

    def _lose(self, workflow: str) -> None:
        if self.platform == "make":
            self.simulator.add_dead_letter(workflow)
        elif self.platform != "cognaize":  # there every run that fails is one
            self._run(workflow, "failure")

    def lost(self) -> int:
        """How many dead letters there were."""
        return sum(letter.workflow_id in self.losing for letter in self.simulator.truth().dead_letters)

    def left(self) -> int:
        """How much of what was lost nothing has saved; of one workflow once, where one good run saves all of it."""
        found = self.simulator.truth().open_dead_letters()
        mine = [number for workflow, number in found.items() if workflow in self.losing]
        return sum(mine) if self.platform in OF_THE_BUSY else len(mine)


@pytest.mark.parametrize("platform", ["make", "qlik", "etlworks", "cognaize"])
async def test_an_hour_after_an_outage_everything_is_saved(tmp_path: Path, platform: str) -> None:
    retries = {"mode": "enforce", "policies": [POLICY], "sources": {platform: {"storm": STORM, "pace": PACE}}}
    changes = {"retries": retries}
    options = {**ROOMY, "qlik": {"history_seconds": 0.0}}
    async with deployment(tmp_path, platforms=[platform], workflows=0, options=options, changes=changes) as made:
        outage = Outage(made, platform)
        await made.sweep()
        swept_at, saved_at = made.clock.now(), None
        while made.clock.now() < outage.ends + WITHIN:
            outage.step()
            await made.clock.advance(TURN)
            if made.clock.now() >= swept_at + SWEEP:
                swept_at = made.clock.now()
                await made.sweep()
            await made.retry()
            if made.clock.now() > outage.ends and not outage.left():
                saved_at = saved_at or made.clock.now()
                break
        outcomes = Counter(str(retry.outcome or retry.state) for retry in made.service.book.everything())
        calls = sum(outage.simulator.retry_calls.values())
        waits = Counter(f"{d.verb}: {d.reason}: {d.detail}" for d in made.service.book.decisions.values())
        took = "" if saved_at is None else f" within {(saved_at - outage.ends) / MINUTE:.0f} min of its end"
        left, lost = outage.left(), outage.lost()
        wasted = calls - outcomes["succeeded"]
        print(f"\n{platform}: {calls} calls, {wasted} wasted, {left} of {lost} left{took}; {dict(outcomes)}")
        assert lost >= LETTERS
        assert left == 0, dict(waits)
