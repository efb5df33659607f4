"""A real process killed with SIGKILL at random moments around its retries: nothing is called twice for one decision,
and nothing is lost. The simulator, which lives on, counts what really arrived.
"""

import asyncio
import contextlib
import random
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from exporter import app, reloading
from exporter.clock import SystemClock
from exporter.config import Config
from exporter.model.operations import OperationAction
from exporter.model.retries import Reason
from exporter.retries import protocol, retrier
from exporter.retries.control import ControlError
from exporter.retries.operations import Selection
from exporter.simulator.fleet import Fleet, demo_config
from exporter.simulator.retries import RetryPlan
from tests.servers import eventually, forked

RETRIES = {
    "mode": "enforce",
    "sources": {"make": {"pace": {"rate": "1000/1s", "burst": 100, "in_flight": 1000}}},
    "policies": [
        {
            "name": "all",
            "action": "retry",
            "match": {"error.class": ["network", "timeout"]},
            "retry": {"retries": 3, "backoff": {"first": "10ms", "cap": "50ms"}, "give_up_after": "30d"},
            "verify": {"deadline": "20s"},
            "gate": {"ramp": [1000], "cool": {"first": "10ms", "factor": 1, "cap": "20ms"}},
        }
    ],
}


def serve(config: Config) -> None:
    """The service in a process of its own, in a hurry: turns and looks come as fast as they can."""
    retrier.INTERVAL, protocol.LOOK_FIRST = 0.02, 0.1

    async def main() -> None:
        await reloading.run(config, stop=asyncio.Event(), reload=asyncio.Event(), load=lambda: config)

    asyncio.run(main())


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


async def has_swept(folder: Path) -> bool:
    try:
        with sqlite3.connect(f"file:{folder / 'killed.db'}?mode=ro", uri=True) as connection:
            return bool(connection.execute("SELECT 1 FROM sources").fetchone())
    except sqlite3.OperationalError:  # not made yet
        return False


async def asked_for(make: Any, requests: int) -> None:
    """Wait until the platform was asked so often."""

    async def reached() -> bool:
        return bool(make.requests.total() >= requests)

    await eventually(reached, every=0.005)


async def all_read(make: Any, folder: Path, calls: float) -> bool:
    """Whether every dead letter of the platform is known, and more than so many retries were called."""
    with sqlite3.connect(f"file:{folder / 'killed.db'}?mode=ro", uri=True) as connection:
        known = {i for (i,) in connection.execute("SELECT dead_letter_id FROM dead_letters")}
    return set(make.world.dead_letters) <= known and sum(make.retry_calls.values()) > calls


@pytest.mark.parametrize("kills", [12, pytest.param(200, marks=pytest.mark.slow)])
async def test_a_process_killed_at_any_moment_neither_repeats_nor_loses_a_retry(
    tmp_path: Path, kills: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = random.Random(kills)
    async with world(tmp_path) as (make, config):
        workflows = [make.add_workflow(name=f"w{number}") for number in range(4)]
        with forked(serve, config):
            await eventually(lambda: has_swept(tmp_path))  # the baseline
        letters: list[str] = []
        for _ in range(kills):
            for _ in range(2):
                fate: Any = source.choice(["done", "done", "cut", "error", "lost"])
                outcome = source.choice(["success", "success", "failure"])
                make.plan_retries(RetryPlan(outcome=outcome, fate=fate))
                letters.append(make.add_dead_letter(source.choice(workflows)))
            asked = make.requests.total()
            with forked(serve, config):
                await asked_for(make, asked + source.randint(1, 40))
                await asyncio.sleep(source.uniform(0.0, 0.2))
        with forked(serve, config):
            await eventually(lambda: all_read(make, tmp_path, kills / 2))
            await asked_for(make, make.requests.total() + 40)
        rows = ledger(tmp_path)

        # No retry of the ledger was called twice: there are as many calls as retries that may have called, at the most.
        by_letter = Counter(row["dead_letter_id"] for row in rows)
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
        await all_recovered(make, config, monkeypatch)


async def all_recovered(make: Any, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the platform well, and a person who settles what nobody can know, every letter is recovered in the end."""
    for module, name, seconds in (
        (retrier, "INTERVAL", 0.05),
        (protocol, "LOOK_FIRST", 0.1),
        (protocol, "LOOK_MOST", 0.5),
        (protocol, "LOOK_HELD", 0.5),
        (protocol, "HORIZON", 1.0),
    ):
        monkeypatch.setattr(module, name, seconds)
    make.forget_plans()

    async def settled() -> bool:
        stuck = [
            (one.subject.source, one.subject.letter.id)
            for one in running.control.everything()
            if one.ladder.decision.reason in (Reason.HELD, Reason.EXHAUSTED)
        ]
        for key in stuck:
            with contextlib.suppress(ControlError):
                await running.operations.begin(OperationAction.RELEASE, Selection(ids=[key]), who="ann")
        return all(item.resolved_at is not None for item in make.world.dead_letters.values())

    async with app.service(config) as running:
        await eventually(settled, every=0.5)
        assert running.control.everything() == [] or await eventually(lambda: nothing_open(running), every=0.1)


async def nothing_open(running: app.Service) -> bool:
    return not running.control.everything()
