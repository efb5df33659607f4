"""What retrying costs while thousands of dead letters are open: seconds for people, work for tests to compare."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from exporter.model.matchers import Matcher, read
from exporter.model.policy import Rules
from exporter.model.retries import Mode
from tests.retries.storms import POLICY, RULES, START, Service, Storm, service

#: Of a policy that owns nothing here, what it asks for.
ASKED: tuple[dict[str, Any], ...] = (
    {"error.class": ["validation", "auth", "permission", "quota"]},
    {"workflow.name": {"glob": "*payment*"}, "error.class": "network"},
    {"error.message": {"contains": ["ECONNRESET", "EPIPE"]}, "age": {"gte": "15m"}},
    {"error.type": {"prefix": "Bundle"}, "retries": {"lt": 2}},
)
OWNER = replace(POLICY, name="owner", mode=Mode.APPROVE)
FIVE: Rules = replace(
    RULES,
    policies=(
        *(
            replace(POLICY, name=f"other-{number}", matcher=Matcher(match=read(asked, "match")))
            for number, asked in enumerate(ASKED)
        ),
        OWNER,
    ),
)


@asynccontextmanager
async def many(letters: int, rules: Rules = FIVE) -> AsyncIterator[Service]:
    """So many open dead letters under five policies, of which the last owns all and waits for a person."""
    storm = Storm(name="cost", title="", letters=letters, over=60.0)
    async with service(storm, rules=rules, start=START + 120.0) as made:
        await made.observe(made.platform.sweep())
        yield made


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Seconds of processor time: of all, and of the longest that the event loop kept others waiting."""

    cpu: float
    stall: float

    def __str__(self) -> str:
        return f"{self.cpu * 1e3:8.1f} ms CPU, longest stall {self.stall * 1e3:7.1f} ms"


async def measured(work: Awaitable[object]) -> Cost:
    """What some work costs. Time that other processes take counts for nothing."""
    longest = 0.0

    async def heartbeat() -> None:
        nonlocal longest
        last = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            longest, last = max(longest, now - last), now

    task = asyncio.create_task(heartbeat())
    await asyncio.sleep(0)
    began = time.process_time()
    try:
        await work
    finally:
        spent = time.process_time() - began
        task.cancel()
    return Cost(cpu=spent, stall=longest)


async def calls(work: Awaitable[object]) -> int:
    """How many calls of functions some work takes in this thread: the same on a busy machine."""
    count = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        await work
    finally:
        sys.setprofile(None)
    return count


async def explained(made: Service, letter_id: str) -> object:
    return made.control.one("make-eu", letter_id)


async def idle(made: Service, turns: int) -> None:
    """Turns in which nothing happened since the last."""
    for _ in range(turns):
        await made.clock.advance(5.0)
        await made.retrier.turn_once()
