"""Installations that know only one of the two paths of executions, and what an execution says of its rows."""

from typing import Any, Literal

import pytest

from exporter.platform.retrying import Standing, Target
from exporter.platforms.etlworks import mapping
from exporter.platforms.etlworks.executions import TRIES_PER_SWEEP_MAX
from exporter.platforms.etlworks.retrying import EtlworksRetries
from tests.platforms.etlworks.account import account

CURRENT, OLDER = "GET /rest/v1/executions/{flowId}", "GET /plugins/dashboard/rest/v1/flows/{flowId}"


@pytest.mark.parametrize("flows", [1, 8])
async def test_an_older_installation_is_read_by_the_older_path(flows: int) -> None:
    async with account(execution_paths=("legacy",)) as made:
        for _ in range(flows):
            made.sim.add_workflow(every=300, failing=0.2, typical=20)
        await made.live(40)
        counted, truth = made.run_counts()
        assert counted == truth
        assert sum(truth.values()) >= 5 * flows
        lines = [line async for line in made.client.check()]
        assert "ok: executions can be read" in lines


async def test_dead_letters_of_an_older_installation_can_be_looked_at() -> None:
    async with account(execution_paths=("legacy",)) as made:
        made.sim.add_workflow(every=300, failing=1.0, typical=20, retries=0)
        await made.live(20)
        letter = next(iter(made.known.dead_letters.values()))
        look = await EtlworksRetries(made.config, made.api).look(Target(letter=letter))
        assert look.standing in (Standing.DEAD, Standing.BUSY)
        assert look.mark >= int(letter.run_id or 0)


@pytest.mark.parametrize("unknown_flow", [404, 500])
async def test_where_no_flow_ever_ran_the_older_path_costs_a_few_requests_and_the_current_one_stays(
    unknown_flow: Literal[404, 500],
) -> None:
    async with account(unknown_flow=unknown_flow, history=0) as made:
        flow = made.sim.add_workflow(every=None, scheduled=False)
        for _ in range(9):
            made.sim.add_workflow(every=None, scheduled=False)
        assert await made.live(2) == []
        assert made.asked() <= 2 * (10 + TRIES_PER_SWEEP_MAX) + 4
        made.sim.add_run(flow, started_at=made.clock.now() + 1, ended_at=made.clock.now() + 2)
        await made.live(2)
        assert made.known.counts() == {(flow, "success"): 1}
        made.asked()
        await made.live(1)
        assert made.asked() <= 10 + 4


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        (120, 120.0),
        (0, 0.0),
        (12.5, 12.5),
        ("1200", 1200.0),
        (None, None),
        (True, None),
        (-3, None),
        (float("nan"), None),
        (float("inf"), None),
        (1e300, None),
        ("12 rows", None),
        ([120], None),
        ({"rows": 120}, None),
    ],
)
def test_metrics_are_the_operations_of_a_run_where_they_are_a_number(metrics: Any, expected: float | None) -> None:
    record = {"auditId": 7, "status": "success", "started": 1.7e12, "ended": 1.7e12 + 9000, "metrics": metrics}
    assert mapping.execution(record, flow_id="1").run.operations == expected
    assert mapping.execution({**record, "status": "running"}, flow_id="1").run.operations is None


async def test_rows_processed_are_counted() -> None:
    async with account(metrics=40) as made:
        made.sim.add_workflow(every=300, failing=0.0, typical=20)
        await made.live(30)
        finished = [entry.run for entry in made.known.runs.values() if entry.run.ended_at is not None]
        assert len(finished) > 3
        assert {run.operations for run in finished} == {40.0}
