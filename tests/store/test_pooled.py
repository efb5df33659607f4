"""A proxy in transaction mode between: each transaction has another connection, and nothing is kept of one.

The contract of the ledger passes through it as well (``url`` of kind pgbouncer, slow).
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exporter.simulator.retries import RetryPlan
from exporter.store.ledger import open_engine
from exporter.store.script import Script
from tests.e2e.deployment import deployment
from tests.e2e.test_retries import retrying
from tests.e2e.test_truth import ROOMY, assert_true
from tests.postgres import Postgres, look
from tests.servers import real

pytestmark = [real("postgres"), real("pgbouncer")]
Through = Callable[[str], str]


async def test_two_processes_count_each_run_once(server: Postgres, pooled: Through) -> None:
    url = server.make()
    engines = [await open_engine(pooled(url)) for _ in range(2)]

    def put() -> Script[None]:
        yield "INSERT INTO sources (source, first_sweep_at) VALUES ('s', 1)", ()

    def add() -> Script[int]:
        rows = yield "SELECT first_sweep_at FROM sources WHERE source = 's'", ()
        yield "UPDATE sources SET first_sweep_at = $1 WHERE source = 's'", (rows[0][0] + 1,)
        return int((yield "SELECT pg_backend_pid()", ())[0][0])

    await engines[0].run(put(), sources=["s"])
    backends = await asyncio.gather(*(engine.run(add(), sources=["s"]) for engine in engines for _ in range(50)))
    backends += await asyncio.gather(*(engine.run(add()) for engine in engines for _ in range(10)))
    assert look(url, "SELECT first_sweep_at FROM sources") == [("121",)]
    assert len(set(backends)) == 2
    for engine in engines:
        await engine.close()


async def test_who_only_reads_leaves_nothing_to_the_next_transaction(server: Postgres, pooled: Through) -> None:
    """Read-only, with time limits: each of the two connections has been so by then."""
    url = pooled(server.make())
    writer = await open_engine(url)
    reader = await open_engine(url, to_read=True)

    def settings() -> Script[tuple[str, ...]]:
        names = ("transaction_read_only", "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
        yield "COMMIT", ()
        rows = yield f"SELECT {', '.join(f'current_setting({name!r})' for name in names)}", ()
        return rows[0]

    for _ in range(3):
        await reader.run(settings())
        assert await writer.run(settings()) == ("off", "0", "0", "0")
    for engine in (writer, reader):
        await engine.close()


@pytest.mark.parametrize("platform", ["make"])
async def test_the_service_runs_through_it(platform: str, tmp_path: Path, server: Postgres, pooled: Through) -> None:
    changes = {**retrying(), "store": {"url": pooled(server.make())}}
    disturbed = {"webhook_lost": 0.3, "webhook_duplicated": 0.2, "webhook_shuffled": 1.0}
    async with deployment(
        tmp_path, platforms=[platform], options=ROOMY, faults=disturbed, workflows=2, changes=changes
    ) as made:
        simulator: Any = made.fleet.simulators[platform]
        workflow = simulator.add_workflow(name="Order sync")
        await made.sweep()
        simulator.plan_retries(RetryPlan(outcome="success", fate="cut", delay=60.0))
        letter = simulator.add_dead_letter(workflow)
        await made.live(90, step=15, deliver=True, retry=True)
        await made.restart()
        await made.live(600, step=30, deliver=True, retry=True)
        assert (simulator.retry_calls[letter], simulator.retry_executions[letter]) == (1, 1)
        await assert_true(made)
