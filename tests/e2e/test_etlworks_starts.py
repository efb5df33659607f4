"""Whatever Etlworks answers to a start: no dead letter is started more often than its policy allows.

Every flow of one account gets an answer of its own to each start that works, and each start fails. What the platform
really started is what its simulator counts.
"""

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from exporter.model import ErrorClass
from tests.e2e.deployment import Deployment, deployment

RETRIES = 2
POLICY: dict[str, Any] = {
    "name": "all",
    "match": {"error.class": [error_class.value for error_class in ErrorClass]},
    "action": "retry",
    "retry": {"retries": RETRIES, "backoff": {"first": "1s", "factor": 1, "jitter": 0.0}, "give_up_after": "30d"},
    "verify": {"deadline": "1h"},
    "gate": {"ramp": [1000], "cool": {"first": "1s", "factor": 1, "cap": "1s"}},
}
MISSING = object()
STATUSES: list[Any] = [0, 1, 2, 3, 4, 5, 17, "started", "RUNNING", "3", "", None, 1.5, MISSING]
AUDIT_IDS = ["new", "text", "none", "missing", "same", "below", "zero", "words"]
NAMING = frozenset({"new", "text"})  # the execution that was started
SHAPES = list(product(range(len(STATUSES)), AUDIT_IDS))


def bent(answer: dict[str, object], *, status: Any, audit: str, mark: int) -> dict[str, object]:
    """The answer to a start that worked, with another status, and naming its execution in another way or not at all."""
    audit_ids: dict[str, object] = {
        "new": answer["auditId"], "text": str(answer["auditId"]), "none": None, "same": mark, "below": mark - 1,
        "zero": 0, "words": "eighty thousand",
    }  # fmt: skip
    made = {**answer, "status": status, "auditId": audit_ids.get(audit)}
    for name, missing in (("status", status is MISSING), ("auditId", audit == "missing")):
        if missing:
            del made[name]
    return made


class Bending:
    """Which answer each flow gives."""

    def __init__(self) -> None:
        self.shapes: dict[int, tuple[int, str]] = {}
        self.marks: dict[int, int] = {}

    def __call__(self, answer: dict[str, object]) -> object:
        flow = answer["flowId"]
        assert isinstance(flow, int)
        status, audit = self.shapes[flow]
        made = bent(answer, status=STATUSES[status], audit=audit, mark=self.marks[flow])
        self.marks[flow] = int(str(answer["auditId"]))
        return made


async def failing(made: Deployment, bending: Bending, shapes: list[tuple[int, str]]) -> dict[str, tuple[int, str]]:
    """A flow for each shape of an answer, whose last run has failed."""
    sim: Any = made.fleet.simulators["etlworks"]
    flows = {sim.add_workflow(errors=["network"]): shape for shape in shapes}
    await made.sweep()
    await made.live(60, step=30, deliver=True)
    now = made.clock.now()
    for flow, shape in flows.items():
        run = sim.add_run(flow, started_at=now + 1, ended_at=now + 5, result="failure", error="network")
        bending.shapes[int(flow)], bending.marks[int(flow)] = shape, int(run)
    return flows


def starts(made: Deployment, flow: str) -> int:
    sim: Any = made.fleet.simulators["etlworks"]
    demanded: int = sim.world.workflows[int(flow)].demanded
    return demanded


def account(bending: Bending) -> dict[str, Any]:
    return {"etlworks": {"start_answer": bending, "retry_success": 0.0}}


def changes() -> dict[str, Any]:
    pace = {"rate": "600/1m", "burst": 100, "in_flight": 100}
    return {"retries": {"mode": "enforce", "sources": {"etlworks": {"pace": pace}}, "policies": [POLICY]}}


@pytest.mark.parametrize(
    "audits", [["new"], ["text", "none"], ["missing", "same", "below", "zero", "words"]], ids=lambda audits: audits[0]
)
async def test_no_answer_makes_it_start_a_flow_more_often_than_allowed(tmp_path: Path, audits: list[str]) -> None:
    bending = Bending()
    async with deployment(
        tmp_path, platforms=["etlworks"], workflows=0, options=account(bending), changes=changes()
    ) as made:
        some = len(STATUSES) if len(audits) < 3 else 7  # what names nothing is told by the plain statuses
        flows = await failing(made, bending, [shape for shape in SHAPES if shape[1] in audits and shape[0] < some])
        await made.live(8 * 60, step=30, deliver=True, retry=True)
        await made.restart()
        await made.live(6 * 60, step=60, deliver=True, retry=True)
        started = {(repr(STATUSES[shape[0]]), shape[1]): starts(made, flow) for flow, shape in flows.items()}
        assert max(started.values()) <= RETRIES, started
        assert min(started.values()) >= 1, started
        # What names the execution it started leaves no doubt, and every try is made.
        assert {starts(made, flow) for flow, shape in flows.items() if shape[1] in NAMING} <= {RETRIES}
