"""A platform in a nutshell, whose every whim a test decides, and the engine against it, to be killed anywhere.

The platform delivers a retry at once, late or never, loses answers, retries by itself, lets people meddle. The engine
is the real one on a real database; ``Crash`` ends it at any of the points where it waits for something.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from msgspec import structs
from prometheus_client.parser import text_string_to_metric_families

from exporter.clock import ManualClock
from exporter.model import DeadLetter, Error, Listing, Observation, ResolvedBy, Result, Via, Workflow
from exporter.model.ledger import Batch, Committed, Folded, FoldRules
from exporter.model.operations import OperationAction
from exporter.model.policy import Rules
from exporter.model.retries import Decision, Retry, Traits
from exporter.platform.retrying import Accepted, Effort, Look, Retrying, Standing, Target
from exporter.platforms import PLATFORMS
from exporter.retries.book import RetryBook
from exporter.retries.control import Control
from exporter.retries.operations import Operations, Selection
from exporter.retries.protocol import HORIZON, LOOK_FIRST, LOOK_MOST, SEND_WITHIN
from exporter.retries.retrier import Retrier, TurnReport
from exporter.store.ledger import Ledger, open_engine
from exporter.store.script import Script
from exporter.view.known import World
from exporter.view.projection import Projection
from exporter.wire.errors import ApiError, ErrorKind, kind_of
from tests.postgres import look
from tests.retries.made import ERROR, NOW
from tests.sources import connected

SOURCE = "s"
T = TypeVar("T")

#: What a call meets.
Fate = Literal[
    "ok", "late", "lost", "cut after", "cut before", "cut, late", "503 after", "refused", "unnamed",
    "done, refused", "late, refused",
    # Nothing ran, and the answer says so:
    "429", "429 in 300", "409", "412", "423", "503 in 300",  # busy
    "401", "revoked",  # denied; from "revoked" on every call and look is, until ``revoked`` is taken back
    "400", "404", "404 gone", "422", "403",  # rejected; at "404 gone" it was deleted a moment ago
    # Nothing ran, and nobody can know:
    "408", "500", "502", "424", "302", "html",
]  # fmt: skip
BUSY: tuple[Fate, ...] = ("429", "429 in 300", "409", "412", "423", "503 in 300")
REJECTED: tuple[Fate, ...] = ("400", "404", "422")  # a 403 is more: a quarantine
DOUBTFUL: tuple[Fate, ...] = ("cut before", "408", "500", "502", "424", "302", "html")
#: How long a late effect takes (seconds): less than the horizon, as the horizon demands.
LATE = 600.0
RUN_SECONDS = 20.0
#: The longest (seconds) that anything is set back once the platform is well: a source, a workflow, one letter.
SETBACK_MAX = 900.0


def answer(fate: str, endpoint: str = "POST /retry") -> ApiError | None:
    """The error by which a platform says it, as it leaves the wire; None for what is no such answer."""
    if fate == "cut before":
        return ApiError(ErrorKind.UNAVAILABLE, endpoint=endpoint, detail="connection lost")
    if fate == "html":
        return ApiError(ErrorKind.BAD_PAYLOAD, endpoint=endpoint, detail="not JSON: <!doctype html>", status=200)
    code, _, after = {"revoked": "401", "404 gone": "404"}.get(fate, fate).partition(" in ")
    if not code.isdigit():
        return None
    status, wait = int(code), float(after) if after else None
    kind = ErrorKind.UNAVAILABLE if status == 302 else kind_of(status)
    return ApiError(kind, endpoint=endpoint, detail="no", status=status, retry_after=wait)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """From ``since`` to ``until`` the platform is unwell in this way."""

    since: float
    until: float
    calls: Fate | None = None  # what every call meets
    looks: Fate | Exception | None = None  # what every look meets; an exception is raised as it is
    runs: bool = False  # whatever runs fails

    def holds(self, now: float) -> bool:
        return self.since <= now < self.until


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
    error: Error = ERROR
    bare: Error | None = None  # what sweeps say of the error, where a look says more
    native: bool = False
    refusal: str | None = None  # why it must not be retried as it is
    asks: str | None = None
    said: tuple[float, bool] | None = None  # about its own retries, when that last changed
    resolved_at: float | None = None
    gone: bool = False
    executions: list[Execution] = field(default_factory=list)


class FakePlatform:
    """The platform and its adapter."""

    def __init__(self, clock: ManualClock, trip: Tripwire, traits: Traits, url: str) -> None:
        self.clock = clock
        self.trip = trip
        self.traits = traits
        self.items: dict[str, Item] = {}
        self.fates: list[Fate] = []  # of the coming calls; then all go well
        self.fates_of: dict[str, list[Fate]] = {}  # by root: of the coming calls for it, before all others
        self.results: list[Result] = []  # of the coming executions
        self.well = Result.FAILURE  # how all later ones end
        self.outages: list[Outage] = []
        self.revoked = False  # the credential
        self.odd: dict[str, Exception] = {}  # what a look at this dead letter raises
        self.looks: list[tuple[float, str]] = []  # when, at which item, those that failed included
        self.met: list[tuple[float, str, Fate]] = []  # when, which item, what the call met
        self.calls: list[tuple[float, str, str]] = []  # when, which item, which retry of the ledger
        self.due: list[tuple[float, str, str]] = []  # deliveries to come: when, of which item, by which retry
        self.problems: list[str] = []
        self.answers: asyncio.Event | None = None  # if there is one, looks wait for it
        self.asked = asyncio.Event()  # set while a look does
        self._url = url
        self._numbers = 0

    def add(
        self,
        workflow_id: str = "w1",
        *,
        native: bool = False,
        root: str | None = None,
        error: Error = ERROR,
        age: float = 0.0,
    ) -> Item:
        self._numbers += 1
        name = f"d{self._numbers}"
        opened_at = self.clock.now() - age
        made = Item(
            id=name, workflow_id=workflow_id, opened_at=opened_at, root=root or name, native=native, error=error
        )
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
        result = self.results.pop(0) if self.results else self.well
        if any(outage.runs and outage.holds(now) for outage in self.outages):
            result = Result.FAILURE
        self._numbers += 1
        execution = Execution(
            id=f"e{self._numbers:04}", began_at=now, ended_at=now + RUN_SECONDS, result=result, by=by, retry=retry
        )
        item.executions.append(execution)
        if result is Result.SUCCESS:
            item.resolved_at = execution.ended_at
        elif self.traits.effect != "resume" and by == "us":  # the retry is a run of its own, and a dead letter then
            made = self.add(item.workflow_id, root=item.root, error=item.error)
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
        self.looks.append((now, target.letter.id))
        self._may_look(target.letter.id)
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
            refusal=item.refusal,
            asks=item.asks,
            mark=[execution.id for execution in item.executions],
            efforts=efforts,
            observations=[self.observation(item)],
        )

    def _may_look(self, name: str) -> None:
        """Raise what a look at this item meets now, if anything."""
        now = self.clock.now()
        met: list[Fate | Exception | None] = ["401" if self.revoked else None, self.odd.get(name)]
        met += [outage.looks for outage in self.outages if outage.holds(now)]
        for one in met:
            problem = answer(one, "GET /dead-letter") if isinstance(one, str) else one
            if problem is not None:
                raise problem

    def _fate(self, letter: DeadLetter) -> Fate:
        """What the call for this one meets now."""
        own = self.fates_of.get(self.items[letter.id].root)
        fate: Fate = own.pop(0) if own else self.fates.pop(0) if self.fates else "ok"
        for outage in self.outages:
            if outage.calls is not None and outage.holds(self.clock.now()):
                fate = outage.calls
        self.revoked = self.revoked or fate == "revoked"
        return "401" if self.revoked else fate

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
        met = [self._fate(letter) for letter in letters]
        said = next((fate for fate in met if answer(fate) is not None and fate != "cut before"), None)
        self.met += [(self.clock.now(), one.id, said or fate) for one, fate in zip(letters, met, strict=True)]
        problem = None if said is None else answer(said)
        if problem is not None:  # of the call as a whole: nothing ran
            for letter in letters:
                self._called(letter)
                self.items[letter.id].gone = said == "404 gone"
            raise problem
        for letter, fate in zip(letters, met, strict=True):
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
        rows = look(
            self._url,
            f"SELECT id FROM retries WHERE dead_letter_id = '{letter.id}' AND outcome IS NULL AND state = 'sent' "
            "AND shadow = 0",
        )
        if len(rows) != 1:
            self.problems.append(f"{letter.id} was called with {len(rows)} durable intents")
        if item.native or item.gone or item.resolved_at is not None:
            self.problems.append(f"{letter.id} was called though native={item.native} resolved={item.resolved_at}")
        retry = str(rows[0][0]) if rows else "none"
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
            error=item.error,
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
            if item.bare is not None:
                seen = structs.replace(seen, error=item.bare)
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

    def __init__(self, folder: Path, rules: Rules, traits: Traits, url: str | None = None) -> None:
        self.clock = ManualClock(NOW)
        self.trip = Tripwire()
        self.url = url or f"sqlite:///{folder}/retries.db"
        self.platform = FakePlatform(self.clock, self.trip, traits, self.url)
        self.rules = rules
        self.turns: list[TurnReport] = []
        self._declared = replace(
            PLATFORMS["make"], retrying=Retrying(traits=traits, connect=lambda config, api: self.platform)
        )
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        engine = await open_engine(self.url)
        self.ledger = TrippedLedger(engine, {SOURCE: FoldRules(holds_dead_letters=True)})
        self.ledger.trip = Tripwire()
        self._stack.push_async_callback(self.ledger.close)
        self.world = World([SOURCE])
        loaded = await self.ledger.load()
        self.world.load(loaded)
        self.projection = Projection({SOURCE: self._declared}, series_max=10_000)
        self.projection.load(self.world, loaded.tallies)

        def follow(committed: Committed) -> None:
            touched = self.world.apply(committed)
            self.book.apply(committed)
            self.projection.follow(committed, touched, self.world)

        source = connected(SOURCE, self._declared, self.world.sources[SOURCE], self.clock, adapter=self.platform)
        self.book = RetryBook(self.ledger, {SOURCE: source}, self.rules, projection=self.projection)
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

    async def rest(self) -> None:
        """Take turns at this very moment until one asks the platform nothing more: what is decided is of what is so."""
        for _ in range(30):
            before = len(self.platform.looks), len(self.platform.met)
            await self.turn()
            if before == (len(self.platform.looks), len(self.platform.met)):
                return

    async def until(self, what: Callable[[], bool], *, within: float, step: float = 30.0) -> float:
        """Live until it is so; returns how long (seconds) that took. Fails, with what is decided, if it is not."""
        since = self.clock.now()
        while not what():
            if self.clock.now() - since >= within:
                decided = [
                    f"{name} of {self.platform.items[name].workflow_id}: {d.verb}/{d.reason} {d.detail}"
                    for (_, name), d in self.book.decisions.items()
                    if name in self.platform.items
                ]
                raise AssertionError(f"not so after {within:.0f} s; decided is:\n" + "\n".join(decided))
            await self.live(step, step=step)
        return self.clock.now() - since

    def shown(self) -> dict[str, tuple[Any, ...]]:
        """What people are shown of each letter, as `policies explain` has it."""
        return {f.subject.letter.id: _answer(f.ladder.decision) for f in self.control.everything(SOURCE)}

    def decided(self) -> dict[str, tuple[Any, ...]]:
        """What the retrier decided of each."""
        return {letter_id: _answer(decision) for (_, letter_id), decision in self.book.decisions.items()}

    def recovered(self) -> set[str]:
        """The roots that are well again on the platform."""
        items, now = self.platform.items.values(), self.clock.now()
        return {item.root for item in items if item.resolved_at is not None and item.resolved_at <= now}

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

    def metric(self, name: str) -> dict[tuple[str, ...], float]:
        """What a scrape shows under a name, by the values of its labels but platform and source; {} if it is absent."""
        text = b"".join(self.projection.registry.render(openmetrics=False)).decode()
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return {
            tuple(value for key, value in sample.labels.items() if key not in ("platform", "source")): sample.value
            for sample in samples
            if sample.name == name
        }

    def retries(self) -> list[Retry]:
        return sorted(self.book.everything(), key=lambda retry: (retry.claimed_at, retry.ordinal))


def _answer(decision: Decision) -> tuple[Any, ...]:
    at = None if decision.next_at is None else round(decision.next_at)
    return decision.verb, decision.reason, decision.policy, decision.awaits_approval, at


def bound(rules: Rules, letters: int) -> dict[str, float]:
    """The longest (seconds) that each cause may delay so many letters once the platform is well; X is their sum.

    Letters that are retried one after the other wait for each other's verdicts: that is in ``verdicts``.
    """
    policies = [policy for policy in rules.policies if policy.action == "retry"]
    pace = rules.source(SOURCE).pace
    steps = max(len(policy.gate.ramp) for policy in policies) + letters
    return {
        "backoff": max(min(p.backoff.cap, p.backoff.first * p.backoff.factor**p.retries) for p in policies),
        "cooling": max(policy.gate.cool.cap for policy in policies),
        "verdicts": steps * (RUN_SECONDS + LOOK_FIRST + 30.0),
        "doubt": SEND_WITHIN + HORIZON + LOOK_MOST,
        "deadline": max(policy.deadline for policy in policies) + LOOK_MOST,
        "set-back": SETBACK_MAX,
        "preflight": SETBACK_MAX,
        "pace, halved": 2 * letters / pace.rate,
        "turns": 10 * 60.0,
    }
