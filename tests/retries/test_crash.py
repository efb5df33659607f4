"""A real process killed with SIGKILL at random moments around its retries: nothing is called twice for one decision,
and nothing is lost. The simulator, which lives on, counts what really arrived.
"""

import asyncio
import contextlib
import multiprocessing
import random
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import orjson
import pytest

from exporter import app
from exporter.clock import SystemClock
from exporter.config import Config
from exporter.retries import protocol, retrier
from exporter.simulator.fleet import Fleet, demo_config
from exporter.simulator.retries import RetryPlan

RETRIES = {
    "mode": "enforce",
    "sources": {"make": {"pace": {"rate": "1000/1s", "burst": 100, "in_flight": 1000}}},
    "policies": [
        {
            "name": "all",
            "action": "retry",
            "match": {"error.class": ["network", "timeout"]},
            "retry": {"retries": 3, "backoff": {"first": "10ms", "cap": "50ms"}, "give_up_after": "30d"},
        }
    ],
}


def serve(config: Config) -> None:
    """The service in a process of its own, in a hurry: turns and looks come as fast as they can."""
    retrier.INTERVAL, protocol.LOOK_FIRST = 0.02, 0.1

    async def main() -> None:
        await app.run(config, stop=asyncio.Event(), reload=asyncio.Event(), load=lambda: config)

    asyncio.run(main())


def start(config: Config) -> BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.retries.test_crash"])
    process = context.Process(target=serve, args=(config,), daemon=True)
    process.start()
    return process


@contextlib.asynccontextmanager
async def world(folder: Path) -> AsyncIterator[tuple[Any, Config]]:
    options = {"make": {"api_limit": 1_000_000, "retry_delay": 0.02, "other_module": 0.0}}
    async with Fleet.open(clock=SystemClock(), platforms=["make"], workflows=0, options=options) as fleet:
        config = demo_config(
            fleet, listen="127.0.0.1:0", database=folder / "killed.db", interval="1s", changes={"retries": RETRIES}
        )
        yield fleet.simulators["make"], config


def ledger(folder: Path) -> list[dict[str, Any]]:
    with sqlite3.connect(f"file:{folder / 'killed.db'}?mode=ro", uri=True) as connection:
        return [orjson.loads(data) for (data,) in connection.execute("SELECT data FROM retries WHERE shadow = 0")]


@pytest.mark.parametrize("kills", [12, pytest.param(200, marks=pytest.mark.slow)])
async def test_a_process_killed_at_any_moment_neither_repeats_nor_loses_a_retry(tmp_path: Path, kills: int) -> None:
    source = random.Random(kills)
    async with world(tmp_path) as (make, config):
        workflows = [make.add_workflow(name=f"w{number}") for number in range(4)]
        process = start(config)
        await asyncio.sleep(2.5)  # the first sweep is the baseline
        letters: list[str] = []
        for _ in range(kills):
            for _ in range(2):
                fate: Any = source.choice(["done", "done", "cut", "error", "lost"])
                outcome = source.choice(["success", "success", "failure"])
                make.plan_retries(RetryPlan(outcome=outcome, fate=fate))
                letters.append(make.add_dead_letter(source.choice(workflows)))
            await asyncio.sleep(source.uniform(0.3, 1.6))
            process.kill()
            process.join()
            process = start(config)
        await asyncio.sleep(8)
        process.kill()
        process.join()
        rows = ledger(tmp_path)

        # No retry of the ledger was called twice: there are as many calls as retries that may have called, at the most.
        by_letter = Counter(row["dead_letter_id"] for row in rows)
        assert sum(make.retry_calls.values()) > kills / 2
        for letter in letters:
            assert make.retry_calls[letter] <= by_letter[letter], letter
        certain = Counter(row["dead_letter_id"] for row in rows if row["outcome"] == "not_sent")
        for letter, unsent in certain.items():
            assert make.retry_calls[letter] <= by_letter[letter] - unsent
        # Each number of a root was used once, and never more than the policy allows.
        numbers = Counter((row["root"], row["ordinal"]) for row in rows if row["outcome"] != "not_sent")
        assert max(numbers.values()) == 1
        assert max(row["ordinal"] for row in rows) <= 3
        # Nothing is lost: what the platform still holds is still open here, and known to be retried or waiting.
        with sqlite3.connect(f"file:{tmp_path / 'killed.db'}?mode=ro", uri=True) as connection:
            opened = {
                i for (i,) in connection.execute("SELECT dead_letter_id FROM dead_letters WHERE resolved_at IS NULL")
            }
        still = {item.id for item in make.world.dead_letters.values() if item.resolved_at is None}
        assert still <= opened
