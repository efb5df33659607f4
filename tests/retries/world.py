"""A platform in a nutshell, whose every whim a test decides, and the engine against it, to be killed anywhere.

The platform delivers a retry at once, late or never, loses answers, retries by itself, lets people meddle. The engine
is the real one on a real database; ``Crash`` ends it at any of the points where it waits for something.
"""

import asyncio
import sqlite3
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from msgspec import structs

from exporter.clock import ManualClock
from exporter.model import DeadLetter, Listing, Observation, ResolvedBy, Result, Via, Workflow
from exporter.model.ledger import Batch, Committed, Folded, FoldRules
from exporter.model.operations import OperationAction
from exporter.model.policy import Rules
from exporter.model.retries import Retry, Traits
from exporter.platform.retrying import Accepted, Effort, Look, Retrying, Standing, Target
from exporter.platforms import PLATFORMS
from exporter.retries.book import RetryBook
from exporter.retries.control import Control
from exporter.retries.operations import Operations, Selection
from exporter.retries.retrier import Retrier, TurnReport
from exporter.store.ledger import Ledger, open_engine
from exporter.store.script import Script
from exporter.view.known import World
from exporter.wire.errors import ApiError, ErrorKind
from tests.retries.made import ERROR, NOW
from tests.sources import connected

SOURCE = "s"
T = TypeVar("T")

#: What a call meets.
Fate = Literal[
    "ok", "late", "lost", "cut after", "cut before", "cut, late", "503 after", "refused", "unnamed",
    "done, refused", "late, refused",
]  # fmt: skip
#: How long a late effect takes (seconds): less than the horizon, as the horizon demands.
LATE = 600.0
RUN_SECONDS = 20.0


class Crash(BaseException):
    """The process is gone."""


@dataclass(slots=True)
class Tripwire:
    """Kills the process at its n-th chance."""

    left: int | None = None

    def step(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.left = None
                raise Crash


@dataclass(slots=True, kw_only=True)
class Execution:
    id: str
    began_at: float
    ended_at: float
    result: Result
    by: Literal["us", "native", "person"]
    retry: str | None = None  # the retry of ours whose call did this


@dataclass(slots=True, kw_only=True)
class Item:
    """One dead letter on the platform, or the run it became."""

    id: str
    workflow_id: str
    opened_at: float
    root: str
    native: bool = False
    said: tuple[float, bool] | None = None  # about its own retries, when that last changed
    resolved_at: float | None = None
    gone: bool = False
    executions: list[Execution] = field(default_factory=list)


class FakePlatform:
    """The platform and its adapter."""

    def __init__(self, clock: ManualClock, trip: Tripwire, traits: Traits, database: Path) -> None:
        self.clock = clock
        self.trip = trip
        self.traits = traits
        self.items: dict[str, Item] = {}
        self.fates: list[Fate] = []  # of the coming calls; then all go well
        self.results: list[Result] = []  # of the coming executions; then all fail
        self.calls: list[tuple[float, str, str]] = []  # when, which item, which retry of the ledger
        self.due: list[tuple[float, str, str]] = []  # deliveries to come: when, of which item, by which retry
        self.problems: list[str] = []
        self.answers: asyncio.Event | None = None  # if there is one, looks wait for it
        self.asked = asyncio.Event()  # set while a look does
        self._database = database
        self._numbers = 0

    def add(self, workflow_id: str = "w1", *, native: bool = False, root: str | None = None) -> Item:
        self._numbers += 1
        name = f"d{self._numbers}"
        made = Item(id=name, workflow_id=workflow_id, opened_at=self.clock.now(), root=root or name, native=native)
        self.items[name] = made
        return made

    def advance(self) -> None:
        """Let what is due happen."""
        now = self.clock.now()
        arrived, self.due = [d for d in self.due if d[0] <= now], [d for d in self.due if d[0] > now]
        for at, name, retry in arrived:
            self.execute(name, "us", at=at, retry=retry)

    def execute(
        self,
        name: str,
        by: Literal["us", "native", "person"],
        *,
        at: float | None = None,
        retry: str | None = None,
    ) -> None:
        item, now = self.items[name], self.clock.now() if at is None else at
        if item.gone or item.resolved_at is not None:
            return
        result = self.results.pop(0) if self.results else Result.FAILURE
        self._numbers += 1
        execution = Execution(
            id=f"e{self._numbers:04}", began_at=now, ended_at=now + RUN_SECONDS, result=result, by=by, retry=retry
        )
        item.executions.append(execution)
        if result is Result.SUCCESS:
            item.resolved_at = execution.ended_at
        elif self.traits.effect != "resume" and by == "us":  # the retry is a run of its own, and a dead letter then
            made = self.add(item.workflow_id, root=item.root)
            made.id, made.opened_at = f"r{execution.id}", execution.ended_at
            self.items[made.id] = self.items.pop(f"d{self._numbers}")

    # The adapter

    async def look(self, target: Target) -> Look:
        self.trip.step()
        await asyncio.sleep(0)
        if self.answers is not None:
            self.asked.set()
            await self.answers.wait()
        self.trip.step()
        self.advance()
        now, item = self.clock.now(), self.items.get(target.letter.id)
        if item is None:
            return Look(at=now, standing=Standing.GONE, observations=self._gone(target))
        known = set(target.mark or ())
        efforts = (
            [self._effort(e, now) for e in item.executions if e.id not in known] if target.mark is not None else []
        )
        if item.gone:  # what came of a call shows all the same
            return Look(at=now, standing=Standing.GONE, efforts=efforts, observations=self._gone(target))
        running = any(execution.ended_at > now for execution in item.executions)
        standing = Standing.DEAD
        if running:
            standing = Standing.BUSY
        elif item.resolved_at is not None:
            standing = Standing.RESOLVED
        return Look(
            at=now,
            standing=standing,
            native=item.native,
            mark=[execution.id for execution in item.executions],
            efforts=efforts,
            observations=[self.observation(item)],
        )

    def _effort(self, execution: Execution, now: float) -> Effort:
        return Effort(
            id=execution.id,
            began_at=execution.began_at,
            ended_at=execution.ended_at,
            result=execution.result if execution.ended_at <= now else None,
            ours=execution.by == "us",
            run_id=None if self.traits.effect == "resume" else f"run-r{execution.id}",
        )

    async def send(self, letters: Sequence[DeadLetter], *, send_by: float) -> Accepted:
        self.trip.step()
        await asyncio.sleep(0)
        if self.clock.now() > send_by:
            raise ApiError(ErrorKind.TIMEOUT, endpoint="POST /retry", detail="too late", sent=False)
        handles: dict[str, str | None] = {}
        for letter in letters:
            fate: Fate = self.fates.pop(0) if self.fates else "ok"
            if fate == "cut before":
                raise ApiError(ErrorKind.UNAVAILABLE, endpoint="POST /retry", detail="connection lost")
            retry = self._called(letter)
            if fate == "refused":
                raise ApiError(ErrorKind.CONFLICT, endpoint="POST /retry", detail="busy", status=409)
            if fate in ("late", "cut, late", "late, refused"):
                self.due.append((self.clock.now() + LATE, letter.id, retry))
            elif fate != "lost":
                self.execute(letter.id, "us", retry=retry)
            self.trip.step()
            if fate in ("cut after", "cut, late"):
                raise ApiError(ErrorKind.UNAVAILABLE, endpoint="POST /retry", detail="connection lost")
            if fate in ("done, refused", "late, refused"):
                raise ApiError(ErrorKind.CONFLICT, endpoint="POST /retry", detail="busy", status=409)
            if fate == "503 after":
                raise ApiError(ErrorKind.UNAVAILABLE, endpoint="POST /retry", detail="unavailable", status=503)
            if fate != "unnamed":
                handles[letter.id] = None
        self.trip.step()
        return Accepted(handles=handles)

    def _called(self, letter: DeadLetter) -> str:
        """Every call must have a durable intent of its own, and come at a moment that allows it."""
        item = self.items[letter.id]
        with sqlite3.connect(f"file:{self._database}?mode=ro", uri=True) as connection:
            rows = connection.execute(
                "SELECT id FROM retries WHERE dead_letter_id = ? AND outcome IS NULL AND state = 'sent' AND shadow = 0",
                (letter.id,),
            ).fetchall()
        if len(rows) != 1:
            self.problems.append(f"{letter.id} was called with {len(rows)} durable intents")
        if item.native or item.gone or item.resolved_at is not None:
            self.problems.append(f"{letter.id} was called though native={item.native} resolved={item.resolved_at}")
        retry: str = rows[0][0] if rows else "none"
        self.calls.append((self.clock.now(), letter.id, retry))
        return retry

    # What a sweep says

    def observation(self, item: Item) -> DeadLetter:
        if item.native != (item.said is not None and item.said[1]):
            item.said = (self.clock.now(), item.native)
        resolved = item.resolved_at if item.resolved_at is not None and item.resolved_at <= self.clock.now() else None
        return DeadLetter(
            id=item.id,
            workflow_id=item.workflow_id,
            run_id=f"run-{item.id}",
            opened_at=item.opened_at,
            error=ERROR,
            native_retry=item.said,
            resolved_at=resolved,
            resolved_by=None if resolved is None else ResolvedBy.MANUAL,
        )

    def _gone(self, target: Target) -> list[Observation]:
        closed = structs.replace(target.letter, resolved_at=self.clock.now(), resolved_by=ResolvedBy.MANUAL)
        return [closed]

    def sweep(self) -> list[Observation]:
        self.advance()
        workflows = sorted({item.workflow_id for item in self.items.values()})
        now = self.clock.now()
        found: list[Observation] = [
            Workflow(id=name, at=now, name=name, ordered=name.startswith("ordered")) for name in workflows
        ]
        found.append(Listing(at=now, workflow_ids=frozenset(workflows)))
        for item in self.items.values():
            seen = self.observation(item)
            if item.gone:
                seen = structs.replace(seen, resolved_at=now, resolved_by=ResolvedBy.MANUAL)
            if seen.opened_at <= now:
                found.append(seen)
        return found


class TrippedLedger(Ledger):
    """The ledger of a process that may die before and after each commit."""

    trip: Tripwire

    async def transact(self, operation: str, script: Script[T]) -> T:
        self.trip.step()
        result = await super().transact(operation, script)
        self.trip.step()
        return result

    async def ingest(self, batch: Batch) -> Folded:
        self.trip.step()
        return await super().ingest(batch)


class Engine:
    """One process after the other on the same database."""

    def __init__(self, folder: Path, rules: Rules, traits: Traits) -> None:
        self.clock = ManualClock(NOW)
        self.trip = Tripwire()
        self.database = folder / "retries.db"
        self.platform = FakePlatform(self.clock, self.trip, traits, self.database)
        self.rules = rules
        self.turns: list[TurnReport] = []
        self._declared = replace(
            PLATFORMS["make"], retrying=Retrying(traits=traits, connect=lambda config, api: self.platform)
        )
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        engine = await open_engine(f"sqlite:///{self.database}")
        self.ledger = TrippedLedger(engine, {SOURCE: FoldRules(holds_dead_letters=True)})
        self.ledger.trip = Tripwire()
        self._stack.push_async_callback(self.ledger.close)
        self.world = World([SOURCE])
        self.world.load(await self.ledger.load())

        def follow(committed: Committed) -> None:
            self.world.apply(committed)
            self.book.apply(committed)

        source = connected(SOURCE, self._declared, self.world.sources[SOURCE], self.clock, adapter=self.platform)
        self.book = RetryBook(self.ledger, {SOURCE: source}, self.rules)
        self.ledger.on_commit = follow
        await self.book.load(self.clock.now())
        self.retrier = Retrier(source, self.ledger, self.clock, book=self.book)
        self.control = Control(self.book, {SOURCE: source}, self.clock)
        self.operations = Operations(self.book, self.control, self.ledger, self.clock)
        self.ledger.trip = self.trip

    async def stop(self) -> None:
        self.trip.left = None
        await self._stack.aclose()
        self._stack = AsyncExitStack()

    async def restart(self, rules: Rules | None = None) -> None:
        self.rules = rules or self.rules
        await self.stop()
        await self.start()

    async def survive(self, work: Awaitable[Any]) -> bool:
        """Do something that may end in a crash; then a new process is there. Whether it came to its end."""
        try:
            await work
        except Crash:
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await self.restart()
            return False
        return True

    async def sweep(self) -> None:
        batch = Batch(
            source=SOURCE,
            observations=self.platform.sweep(),
            via=Via.POLL,
            now=self.clock.now(),
            started_at=self.clock.now() if self.world.sources[SOURCE].first_sweep_at is not None else NOW - 1,
            stream="dead_letters",
        )
        await self.ledger.ingest(batch)

    async def turn(self) -> None:
        self.turns.append(await self.retrier.turn_once())

    async def live(self, seconds: float, *, step: float = 30.0) -> None:
        """Let time pass, with a sweep and a turn at every step."""
        for _ in range(max(1, round(seconds / step))):
            await self.clock.advance(step)
            self.platform.advance()
            await self.sweep()
            await self.turn()

    async def approve(self, keys: Sequence[tuple[str, str]]) -> dict[str, Any]:
        return await self._say(OperationAction.APPROVE, keys)

    async def hold(self, *keys: tuple[str, str], seconds: float | None = None) -> dict[str, Any]:
        return await self._say(OperationAction.HOLD, keys, seconds=seconds)

    async def release(self, *keys: tuple[str, str], sent: bool = True) -> dict[str, Any]:
        return await self._say(OperationAction.RELEASE, keys, sent=sent)

    async def retry_now(self, *keys: tuple[str, str]) -> dict[str, Any]:
        return await self._say(OperationAction.RETRY, keys)

    async def _say(self, action: OperationAction, keys: Sequence[tuple[str, str]], **more: Any) -> dict[str, Any]:
        return await self.operations.begin(action, Selection(ids=keys), who="ann", at_once=True, **more)

    def retries(self) -> list[Retry]:
        return sorted(self.book.everything(), key=lambda retry: (retry.claimed_at, retry.ordinal))
