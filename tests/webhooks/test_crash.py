"""A receiver killed again and again, between a commit and its answers or at any other moment: whatever a sender was
told is stored is there, and once everything was delivered every tally is what it would be without a crash.
"""

import asyncio
import hmac
import json
import random
from collections import Counter
from pathlib import Path

import aiohttp

from exporter.model import catalogue
from exporter.model.ledger import FoldRules
from exporter.model.tallies import SUM, Tallies
from exporter.store.ledger import Ledger, open_engine
from exporter.store.script import Script
from tests.servers import eventually, forked, free_port
from tests.webhooks.service import SECRET, SOURCE, serve

KILLS = 10
RUNS = 400
SENDERS = 8
NOW = 1_772_440_000.0

Event = dict[str, object]


def history(seed: int) -> list[Event]:
    """Starts and ends of runs in no order, some of them told more than once."""
    source = random.Random(seed)
    events: list[Event] = []
    for number in range(RUNS):
        ended = NOW + number
        run: Event = {"workflow_id": f"w{number % 7}", "run_id": f"r{number}", "started_at": ended - number % 50}
        events.append(run | {"event": "run.started", "occurred_at": ended - number % 50})
        result = source.choice(("success", "success", "failure"))
        error = {"type": source.choice(("ConnectionError", "RuntimeError"))}
        events.append(run | {"event": "run.finished", "result": result, "error": error, "ended_at": ended})
    events += source.sample(events, k=RUNS // 10)
    source.shuffle(events)
    return events


def truth(events: list[Event]) -> tuple[Counter[tuple[str, str]], Counter[tuple[str, str]]]:
    """Finished runs by workflow and result, seconds they took by the same."""
    runs, seconds = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for event in {event["run_id"]: event for event in events if event["event"] == "run.finished"}.values():
        key = (str(event["workflow_id"]), str(event["result"]))
        runs[key] += 1
        seconds[key] += int(event["ended_at"] - event["started_at"])  # type: ignore[operator]
    return runs, seconds


async def deliver(port: int, events: list[Event]) -> list[Event]:
    """Send all of them, a few at a time, until the receiver is gone; returns those that were acknowledged."""
    waiting, acknowledged = events[::-1], list[Event]()
    url = f"http://127.0.0.1:{port}/webhooks/{SOURCE}"

    async def send(session: aiohttp.ClientSession) -> None:
        while waiting:
            event = waiting.pop()
            body = json.dumps(event).encode()
            digest = hmac.digest(SECRET.encode(), body, "sha256").hex()
            headers = {"X-Signature": digest, "Content-Type": "application/json"}
            try:
                async with session.post(url, data=body, headers=headers) as got:
                    assert got.status == 202
            except aiohttp.ClientConnectionError:
                return
            acknowledged.append(event)

    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as senders:
        for _ in range(SENDERS):
            senders.create_task(send(session))
    return acknowledged


async def answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return False
    writer.close()
    return True


async def stored(database: Path) -> tuple[set[tuple[str, str]], Tallies]:
    """Id and state of every run in the ledger, and the tallies."""

    def read() -> Script[set[tuple[str, str]]]:
        rows = yield "SELECT run_id, state FROM runs", ()
        return {(run_id, state) for run_id, state in rows}

    engine = await open_engine(f"sqlite:///{database}")
    ledger = Ledger(engine, {SOURCE: FoldRules()})
    try:
        return await engine.run(read()), (await ledger.load()).tallies
    finally:
        await ledger.close()


async def test_a_receiver_killed_between_commit_and_answer_or_anywhere_counts_everything_once(tmp_path: Path) -> None:
    database, port, chance = tmp_path / "t.db", free_port(), random.Random(11)
    events = history(11)
    acknowledged: list[Event] = []
    for kill in range(KILLS):
        commits = chance.randrange(3, 40) if kill % 2 else 0
        with forked(serve, database, port, commits) as process:
            await eventually(lambda: answers(port), every=0.01)
            if not commits:
                asyncio.get_running_loop().call_later(chance.uniform(0.02, 0.3), process.kill)
            chance.shuffle(events)
            acknowledged += await deliver(port, events)
        runs, _ = await stored(database)
        told = {event["run_id"] for event in acknowledged}
        ended = {event["run_id"] for event in acknowledged if event["event"] == "run.finished"}
        assert told <= {run_id for run_id, _ in runs}
        assert ended <= {run_id for run_id, state in runs if state == "finished"}
    with forked(serve, database, port, 0):
        await eventually(lambda: answers(port), every=0.01)
        assert len(await deliver(port, events)) == len(events)
    _, tallies = await stored(database)
    runs_counted, seconds = truth(events)
    assert total(tallies, catalogue.RUNS.name) == runs_counted
    assert total(tallies, catalogue.RUN_DURATION.name) == seconds
    errors = total(tallies, catalogue.RUN_ERRORS.name)
    assert sum(errors.values()) == sum(count for (_, result), count in runs_counted.items() if result == "failure")


def total(tallies: Tallies, metric: str) -> Counter[tuple[str, str]]:
    return Counter({(k[2], k[3][0]): int(v) for k, v in tallies.items() if k[0] == metric and k[4] == SUM})
