"""Storms: an outage or bad letters, hundreds of dead letters, two days in a minute. Ours beside what people do without.

A ``Storm`` says what the world is like. What becomes of the n-th try of a letter depends on the seed, the letter, n and
the hour alone: every way of retrying meets the same luck. ``by_cron`` and ``by_backoff`` are what a script does.
``by_engine`` is the real retrier on a real ledger in virtual time, against a platform that accepts every call.
"""

import asyncio
import heapq
import random
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from math import ceil, inf
from pathlib import Path
from typing import Literal

from exporter.clock import ManualClock
from exporter.model import (
    DeadLetter,
    Error,
    ErrorClass,
    Listing,
    Observation,
    ResolvedBy,
    Result,
    Run,
    State,
    Via,
    Workflow,
)
from exporter.model.ledger import Batch, Committed, FoldRules
from exporter.model.matchers import Matcher, read
from exporter.model.operations import OperationAction
from exporter.model.policy import Backoff, Policy, Rules, SourceRules
from exporter.model.policy import Storm as StormGuard
from exporter.model.retries import Action, Mode, Reason, Traits, Verb
from exporter.platform.retrying import Accepted, Effort, Look, Retrying, Standing, Target
from exporter.platforms import PLATFORMS
from exporter.retries.book import RetryBook
from exporter.retries.control import Control
from exporter.retries.deciding import Decider
from exporter.retries.operations import Operations, Selection
from exporter.retries.retrier import Retrier
from exporter.store.ledger import Ledger, open_engine
from exporter.view.known import World
from tests.sources import connected

SOURCE = "make-eu"
HOUR = 3600.0
START = 1_800_000_000.0
#: The engine sees so many seconds of plain work before the storm, and the storm for so long.
BEFORE, LASTS = HOUR, 48 * HOUR
WORKFLOWS = 5
#: Seconds between two runs of a workflow by its own schedule, and how long one takes.
RUN_EVERY, RUN_SECONDS = 180.0, 20.0
#: A retry ends so many seconds after its call: at least, at most.
VERDICT = (150.0, 450.0)
#: Seconds between two sweeps of the engine's source.
SWEEP = 60.0
#: Where the ledgers are: how fast a disk is, is not what is asked here.
MEMORY = Path("/dev/shm")
#: A turn comes at least so many seconds after the last, and at most: the service takes one every 5.
TURN = (10.0, 60.0)


# The world


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """One run that ended as a dead letter."""

    id: str
    workflow_id: str
    opened_at: float
    message: str
    poison: bool = False  # no retry will ever save it


@dataclass(frozen=True, slots=True, kw_only=True)
class Storm:
    """What happens from ``START`` on."""

    name: str
    title: str
    letters: int
    errors: Literal["one", "each workflow's", "each its own"] = "each workflow's"  # what they have in common
    outage: float = 0.0  # seconds in which everything fails, from the start
    over: float = HOUR  # seconds in which the letters come
    success: float = 1.0  # probability that a try of a good letter succeeds, while there is no outage
    poison: float = 0.0  # part of the letters that is
    seed: int = 1

    def sized(self, part: float) -> "Storm":
        """The same with fewer letters."""
        return replace(self, letters=max(10, round(self.letters * part)))

    def lost(self) -> list[Lost]:
        rng, found = random.Random(f"{self.name}:{self.seed}"), list[Lost]()
        for number in range(self.letters):
            workflow = 0 if self.errors == "one" else number % WORKFLOWS
            opened_at = START + rng.random() * self.over
            message = "connect ETIMEDOUT" if self.errors != "each its own" else f"cannot post {_word(number)}"
            poison = rng.random() < self.poison
            found.append(
                Lost(id=f"d{number}", workflow_id=f"w{workflow}", opened_at=opened_at, message=message, poison=poison)
            )
        return sorted(found, key=lambda one: one.opened_at)

    def is_out(self, at: float) -> bool:
        return START <= at < START + self.outage

    def succeeds(self, lost: Lost, number: int, at: float) -> bool:
        """Whether the ``number``-th try, begun then, works out."""
        lucky = random.Random(f"{self.name}:{self.seed}:{lost.id}:{number}").random() < self.success
        return lucky and not lost.poison and not self.is_out(at)

    def verdict(self, lost: Lost, number: int) -> float:
        """Seconds until that try ends."""
        return random.Random(f"{self.seed}:{lost.id}:{number}:verdict").uniform(*VERDICT)


def _word(number: int) -> str:
    """A word of its own for every number: fingerprints see no digits."""
    digits = "klmnpqrstv"
    return "".join(digits[int(digit)] for digit in f"{number:04}")


STORMS = (
    Storm(name="S1", title="outage of 6 h, 5 groups", letters=1000, outage=6 * HOUR, over=6 * HOUR),
    Storm(name="S2", title="poison, 1 group", letters=1000, errors="one", poison=1.0),
    Storm(name="S3", title="60 % succeed", letters=300, success=0.6),
    Storm(name="S4", title="97 % succeed", letters=300, success=0.97),
    Storm(name="S5", title="30 % poison among them", letters=300, poison=0.3),
    Storm(name="S6", title="outage of 24 h, each its own group", letters=1000, errors="each its own", outage=24 * HOUR),
    Storm(name="S7", title="poison, each its own group", letters=1000, errors="each its own", poison=1.0),
)


@dataclass(slots=True, kw_only=True)
class Told:
    """What became of a storm."""

    storm: Storm
    calls: int = 0
    wasted: int = 0  # calls whose work failed
    recoverable: int = 0
    recovered: int = 0
    last_at: float | None = None  # when the last was recovered
    exhausted: int = 0  # at the end, for whatever reason that no time heals
    cpu_seconds: float = 0.0
    turns: int = 0
    waits: Counter[str] = field(default_factory=Counter)  # at the end, why each open letter is not retried

    def called(self, *, well: bool, ends_at: float) -> None:
        self.calls += 1
        if well:
            self.recovered += 1
            self.last_at = max(self.last_at or 0.0, ends_at)
        else:
            self.wasted += 1

    @property
    def last_hours(self) -> float | None:
        """Hours from the end of the outage, or from the start where there is none, to the last recovery."""
        return None if self.last_at is None else (self.last_at - START - self.storm.outage) / HOUR

    def __str__(self) -> str:
        last = "" if self.last_hours is None else f", last after {self.last_hours:.1f} h"
        return f"{self.calls} calls, {self.wasted} wasted, {self.recovered} of {self.recoverable} recovered{last}"


def _nothing_yet(storm: Storm, lost: Sequence[Lost]) -> Told:
    return Told(storm=storm, recoverable=sum(not one.poison for one in lost))


# What people do without us


def by_cron(storm: Storm, *, every: float = 600.0, tries: int = 5) -> Told:
    """A job that retries whatever is dead, every ten minutes, five times at most."""
    lost = storm.lost()
    told = _nothing_yet(storm, lost)
    for one in lost:
        at = START + ceil((one.opened_at - START) / every) * every
        for number in range(1, tries + 1):
            well = storm.succeeds(one, number, at)
            told.called(well=well, ends_at=at + storm.verdict(one, number))
            if well:
                break
            at += every
        else:
            told.exhausted += 1
    return told


def by_backoff(storm: Storm, *, tries: int = 3) -> Told:
    """Every letter by itself: three times, each later than the one before; no pace, no look at the neighbours."""
    lost, backoff = storm.lost(), Backoff()
    told = _nothing_yet(storm, lost)
    for one in lost:
        at = one.opened_at
        for number in range(1, tries + 1):
            at += backoff.delay(one.id, number)
            well, ends_at = storm.succeeds(one, number, at), at + storm.verdict(one, number)
            told.called(well=well, ends_at=ends_at)
            if well:
                break
            at = ends_at
        else:
            told.exhausted += 1
    return told


# Ours


@dataclass(slots=True, kw_only=True)
class Execution:
    id: str
    began_at: float
    ended_at: float
    result: Result


@dataclass(slots=True, kw_only=True)
class Held:
    """One dead letter that the platform holds."""

    lost: Lost
    id: str
    opened_at: float
    executions: list[Execution] = field(default_factory=list)

    def letter(self, now: float) -> DeadLetter:
        resolved = [e.ended_at for e in self.executions if e.result is Result.SUCCESS and e.ended_at <= now]
        return DeadLetter(
            id=self.id,
            workflow_id=self.lost.workflow_id,
            run_id=f"run-{self.id}",
            opened_at=self.opened_at,
            error=Error(error_class=ErrorClass.NETWORK, type="ConnectionError", message=self.lost.message),
            resolved_at=min(resolved, default=None),
            resolved_by=ResolvedBy.MANUAL if resolved else None,
        )


class StormPlatform:
    """Accepts every call, and is the adapter: what a retry does depends on its ``traits``."""

    def __init__(self, storm: Storm, clock: ManualClock, traits: Traits) -> None:
        self.clock, self.storm, self.traits = clock, storm, traits
        self.letters: dict[str, Held] = {}
        self.left = 0  # dead letters that are open, or are still to come
        self._news: list[tuple[float, str]] = []  # when a sweep has something to say of a dead letter
        self._tries: Counter[str] = Counter()
        self._swept_at = clock.now()
        lost = storm.lost()
        self.told = _nothing_yet(storm, lost)
        for one in lost:
            self._hold(Held(lost=one, id=one.id, opened_at=one.opened_at))

    # The adapter

    async def look(self, target: Target) -> Look:
        await asyncio.sleep(0)
        now, held = self.clock.now(), self.letters[target.letter.id]
        letter = held.letter(now)
        running = any(execution.ended_at > now for execution in held.executions)
        standing = Standing.BUSY if running else Standing.DEAD if letter.is_open else Standing.RESOLVED
        since = len(held.executions) if target.mark is None else int(target.mark)
        return Look(
            at=now,
            standing=standing,
            mark=len(held.executions),
            efforts=[self._effort(execution, now) for execution in held.executions[since:]],
            observations=[letter],
        )

    def _effort(self, execution: Execution, now: float) -> Effort:
        return Effort(
            id=execution.id,
            began_at=execution.began_at,
            ended_at=execution.ended_at if execution.ended_at <= now else None,
            result=execution.result if execution.ended_at <= now else None,
            ours=True,
            run_id=None if self.traits.effect == "resume" else f"run-{execution.id}",
        )

    async def send(self, letters: Sequence[DeadLetter], *, send_by: float) -> Accepted:
        await asyncio.sleep(0)
        now, handles = self.clock.now(), dict[str, str | None]()
        assert now <= send_by
        for letter in letters:
            held = self.letters[letter.id]
            assert not any(e.ended_at > now or e.result is Result.SUCCESS for e in held.executions), letter.id
            lost = held.lost
            self._tries[lost.id] += 1
            number = self._tries[lost.id]
            well, ended_at = self.storm.succeeds(lost, number, now), now + self.storm.verdict(lost, number)
            self.told.called(well=well, ends_at=ended_at)
            result = Result.SUCCESS if well else Result.FAILURE
            execution = Execution(id=f"{lost.id}.{number}", began_at=now, ended_at=ended_at, result=result)
            held.executions.append(execution)
            if well:
                heapq.heappush(self._news, (ended_at, held.id))
            elif self.traits.effect != "resume":  # it is a run of its own, and a dead letter when it ends
                self.left -= 1
                self._hold(Held(lost=lost, id=execution.id, opened_at=ended_at))
            handles[letter.id] = f"run-{execution.id}" if self.traits.handle == "returned" else None
        return Accepted(handles=handles)

    def _hold(self, held: Held) -> None:
        self.letters[held.id] = held
        self.left += 1
        heapq.heappush(self._news, (held.opened_at, held.id))

    # What a sweep says: nothing twice

    def sweep(self) -> list[Observation]:
        now = self.clock.now()
        found: list[Observation] = [*self._runs(self._swept_at, now)]
        self._swept_at = now
        while self._news and self._news[0][0] <= now:
            letter = self.letters[heapq.heappop(self._news)[1]].letter(now)
            self.left -= not letter.is_open
            found.append(letter)
        return found

    def workflows(self) -> list[Observation]:
        now, names = self.clock.now(), [f"w{number}" for number in range(WORKFLOWS)]
        found: list[Observation] = [Workflow(id=name, at=now, name=f"Flow {name}", enabled=True) for name in names]
        return [*found, Listing(at=now, workflow_ids=frozenset(names))]

    def _runs(self, since: float, until: float) -> Iterator[Run]:
        """The runs by schedule that ended meanwhile."""
        for number in range(WORKFLOWS):
            first = START + RUN_EVERY * number / WORKFLOWS
            for k in range(ceil((since - first) / RUN_EVERY), ceil((until - first) / RUN_EVERY)):
                ended_at = first + k * RUN_EVERY
                out = self.storm.is_out(ended_at)
                yield Run(
                    workflow_id=f"w{number}",
                    id=f"w{number}.{k}",
                    state=State.FINISHED,
                    result=Result.FAILURE if out else Result.SUCCESS,
                    started_at=ended_at - RUN_SECONDS,
                    ended_at=ended_at,
                    trigger="schedule",
                    error=Error(error_class=ErrorClass.NETWORK, type="ConnectionError") if out else None,
                )


RESUMES = Traits(effect="resume", handle="same_id", serial=False)
POLICY = Policy(
    name="transient", hash="h", matcher=Matcher(match=read({"error.class": "network"}, "match")), action=Action.RETRY
)
#: The defaults of a policy and of the pace, with a storm guard at its defaults; without a budget, as out of the box.
RULES = Rules(
    mode=Mode.ENFORCE,
    sources={SOURCE: SourceRules(storm=StormGuard())},
    policies=(POLICY,),
    hash="file",
)


class Service:
    """The parts of the real service that retry, on a ledger of their own. Make one with ``service``."""

    def __init__(self, platform: StormPlatform, ledger: Ledger, rules: Rules) -> None:
        self.platform, self.ledger, self.clock = platform, ledger, platform.clock
        declared = replace(
            PLATFORMS["make"], retrying=Retrying(traits=platform.traits, connect=lambda config, api: platform)
        )
        self.world = World([SOURCE])
        source = connected(SOURCE, declared, self.world.sources[SOURCE], self.clock, adapter=platform)
        self.book = RetryBook(ledger, {SOURCE: source}, rules)
        ledger.on_commit = self._follow
        decider = Decider(self.book, source)
        self.retrier = Retrier(source, ledger, self.clock, book=self.book, decider=decider)
        self.control = Control(self.book, {SOURCE: source}, self.clock, deciders={SOURCE: decider})
        self.operations = Operations(self.book, self.control, ledger, self.clock)

    def _follow(self, committed: Committed) -> None:
        self.world.apply(committed)
        self.book.apply(committed)

    async def observe(self, observations: Sequence[Observation], stream: str = "runs") -> None:
        now = self.clock.now()
        await self.ledger.ingest(
            Batch(
                source=SOURCE, observations=observations, via=Via.POLL, now=now, started_at=now - SWEEP, stream=stream
            )
        )

    async def approve(self, keys: Sequence[tuple[str, str]]) -> None:
        await self.operations.begin(OperationAction.APPROVE, Selection(ids=keys), who="ann", at_once=True)

    async def live(self, seconds: float) -> None:
        """Let so much time pass, or as much as it takes until nothing is left to do."""
        until = self.clock.now() + seconds
        swept_at = -inf
        while self.clock.now() < until and self.platform.left:
            if self.clock.now() >= swept_at + SWEEP:
                swept_at = self.clock.now()
                if found := self.platform.sweep():
                    await self.observe(found)
            await self.retrier.turn_once()
            self.platform.told.turns += 1
            await self.clock.advance(min(self._until_turn(), swept_at + SWEEP - self.clock.now()))

    def _until_turn(self) -> float:
        """Seconds until something is due, as the decisions and the open retries say."""
        now, (least, most) = self.clock.now(), TURN
        decisions = self.book.decisions.values()
        if any(decision.verb is Verb.RETRY or decision.reason is Reason.PACE for decision in decisions):
            return least
        moments = [decision.next_at for decision in decisions]
        moments += [retry.look_at for retry in self.book.open_of(SOURCE)]
        coming = min((moment for moment in moments if moment is not None and moment > now), default=inf)
        return min(most, max(least, coming - now))


@asynccontextmanager
async def service(
    storm: Storm, *, rules: Rules = RULES, traits: Traits = RESUMES, start: float = START - BEFORE
) -> AsyncIterator[Service]:
    """What retries, an hour before the storm."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        engine = await open_engine(f"sqlite:///{Path(folder) / 'storm.db'}")
        ledger = Ledger(engine, {SOURCE: FoldRules(holds_dead_letters=True)})
        try:
            made = Service(StormPlatform(storm, ManualClock(start), traits), ledger, rules)
            made.world.load(await ledger.load())
            await made.book.load(made.clock.now())
            await made.observe(made.platform.workflows(), "workflows")
            yield made
        finally:
            await ledger.close()


async def by_engine(storm: Storm, *, rules: Rules = RULES, traits: Traits = RESUMES, lasts: float = LASTS) -> Told:
    """The real retrier, for two days of virtual time, or as long as the storm ``lasts`` (seconds)."""
    began = time.process_time()
    async with service(storm, rules=rules, traits=traits) as made:
        await made.live(BEFORE + lasts)
        told = made.platform.told
        decisions = [found.ladder.decision for found in made.control.everything()]
    told.exhausted = sum(d.verb is Verb.QUARANTINE or d.reason is Reason.EXHAUSTED for d in decisions)
    told.waits = Counter(f"{d.verb}: {d.reason}" for d in decisions)
    told.cpu_seconds = time.process_time() - began
    return told
