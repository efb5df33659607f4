"""How a batch of traces gets to a collector that may be down, small, throttling, or unable to stomach one of them.

A request that is refused for its size or for what is in it is divided at once, until the traces to blame are alone and
all others have arrived, in the same round. A trace that is refused alone is a *suspect*. It is given up only when it is
refused again after the collector took something else in between: a collector that refuses everything is wrong by
itself, and costs no trace. After an answer that has nothing to do with the traces nothing more is tried.

The size that went through is remembered. It grows again up to the last size that was refused, and that mark rises
slowly, so that a collector that takes more one day is noticed.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from exporter.traces.answers import Answer, Verdict
from exporter.traces.otlp import Sender

Key = tuple[str, str, int]

#: Requests in one round, and how many in a row may fail before the round is over, by what the last answer blames.
REQUESTS_PER_ROUND_MAX = 256
MISSES_MAX = {Verdict.REFUSED: 64, Verdict.TOO_LARGE: 64, Verdict.BROKEN: 16, Verdict.DOWN: 16}
#: So many in a row may fail until the search goes deep instead of wide.
WIDE_SEARCH = 8
#: Suspects looked at in one round, the longest waiting first, and how many there may be.
SUSPECTS_PER_ROUND_MAX = 64
SUSPECTS_MAX = 2048
#: Refusals of a trace alone, each after the collector took another one, until it is given up. Once, if it is refused
#: for what it holds. More often if the collector failed, which may have had another cause. Never, if it was down.
STRIKES = {Verdict.REFUSED: 1, Verdict.TOO_LARGE: 1, Verdict.BROKEN: 8}
#: From this many failed rounds in a row on, a single trace is tried even though the collector seems to be down.
FAILED_ROUNDS_BEFORE_PROBE = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """One trace, ready to be sent: encoded requests are joined by putting their bytes one after the other."""

    key: Key
    body: bytes
    spans: int


Taken = Callable[[list[Parcel], Answer], Awaitable[None]]


@dataclass(slots=True, kw_only=True)
class Round:
    """What became of one batch."""

    requests: int = 0
    failed_in_a_row: int = 0
    tried: set[Key] = field(default_factory=set)
    settled: set[Key] = field(default_factory=set)  # taken, or given up
    given_up: list[tuple[Key, Answer]] = field(default_factory=list)
    answer: Answer | None = None  # the last one that was no success
    witness: Parcel | None = None  # something the collector took in this round
    stopped: bool = False  # by an answer after which nothing more is to be tried
    spent: bool = False  # as many requests as one round may take
    probing: bool = False  # the collector seems to be down and takes some traces all the same

    @property
    def over(self) -> bool:
        return self.stopped or self.spent

    @property
    def failed(self) -> bool:
        """Whether the collector, rather than single traces, was the trouble."""
        return self.answer is not None and (self.stopped or self.witness is None)


@dataclass(slots=True, kw_only=True)
class _Suspect:
    strikes: int
    takes: int  # how much the collector had taken when it was last refused


@dataclass(slots=True, kw_only=True)
class _Size:
    """How many bytes a request may have."""

    limit: float = float("inf")
    refused: float = float("inf")  # the last size that was too large

    def taken(self, size: int) -> None:
        if 2 * size > self.limit:
            self.limit = max(self.limit, min(1.5 * self.limit, 0.9 * self.refused))

    def too_large(self, size: int) -> None:
        self.refused = size
        self.limit = max(size // 2, self.limit / 1.5 if self.limit < size else 0)

    def next_round(self) -> None:
        self.refused *= 1.01


class Delivery:
    """Sends batches to one collector, and remembers what it learned of it."""

    def __init__(self, sender: Sender, on_taken: Taken) -> None:
        """``on_taken`` is called for each request the collector took, before the next one is sent."""
        self._sender = sender
        self._on_taken = on_taken
        self._size = _Size()
        self._suspects: dict[Key, _Suspect] = {}
        self._takes = 0  # requests of which something was taken, ever
        self.failed_rounds = 0  # in a row

    @property
    def suspects(self) -> list[Key]:
        """Traces that were refused alone, the longest waiting first; they keep no others waiting."""
        return list(self._suspects)

    def keep_suspects(self, keys: set[Key]) -> None:
        """Forget all suspects but these: the others are not pending any more."""
        self._suspects = {key: suspect for key, suspect in self._suspects.items() if key in keys}

    async def deliver(self, parcels: list[Parcel], now: float) -> Round:
        """Send these, suspects last."""
        done = Round()
        self._size.next_round()
        fresh = [parcel for parcel in parcels if parcel.key not in self._suspects]
        doubtful = {parcel.key: parcel for parcel in parcels if parcel.key in self._suspects}
        await self._send_all(fresh, done, now)
        await self._send_all([doubtful[key] for key in self._suspects if key in doubtful], done, now)
        await self._second_chance(parcels, done, now)
        self.failed_rounds = self.failed_rounds + 1 if done.failed else 0
        return done

    async def _send_all(self, parcels: list[Parcel], done: Round, now: float) -> None:
        queue = deque([parcels] if parcels else [])
        size = replace(self._size)
        while queue and not done.over:
            group, rest = self._fitting(queue.popleft())
            if rest:
                queue.appendleft(rest)
            answer = await self._send(group, done, now)
            if answer.verdict is Verdict.TAKEN:
                continue
            if answer.verdict is Verdict.DOWN and not done.probing:
                group = await self._probe(group, done, now)
            if answer.verdict is Verdict.LATER or (answer.verdict is Verdict.DOWN and not done.probing):
                done.stopped = True
            elif len(group) > 1:
                if answer.verdict is Verdict.TOO_LARGE:
                    self._size.too_large(sum(len(parcel.body) for parcel in group))
                halves = group[: len(group) // 2], group[len(group) // 2 :]
                if done.failed_in_a_row < WIDE_SEARCH:
                    queue.extend(halves)  # first whichever large parts are good
                else:
                    queue.extendleft(reversed(halves))  # most are not: rather some of them for certain
            elif group:
                if answer.verdict is Verdict.TOO_LARGE:
                    self._size = replace(size)  # this one alone was the cause
                self._suspect(group[0], answer, done)

    def _fitting(self, parcels: list[Parcel]) -> tuple[list[Parcel], list[Parcel]]:
        """As many as one request may hold, at least one, and the rest."""
        size = 0
        for at, parcel in enumerate(parcels):
            size += len(parcel.body)
            if at and size > self._size.limit:
                return parcels[:at], parcels[at:]
        return parcels, []

    async def _send(self, group: list[Parcel], done: Round, now: float) -> Answer:
        answer = await self._ask(group, done, now)
        done.tried |= {parcel.key for parcel in group}
        if answer.verdict is Verdict.TAKEN:
            done.settled |= {parcel.key for parcel in group}
            done.witness = group[0]
            for parcel in group:
                self._suspects.pop(parcel.key, None)
            await self._on_taken(group, answer)
        return answer

    async def _ask(self, group: list[Parcel], done: Round, now: float) -> Answer:
        body = b"".join(parcel.body for parcel in group)
        answer = await self._sender.send(body, now=now)
        done.requests += 1
        if answer.verdict is Verdict.TAKEN:
            self._size.taken(len(body))
            done.failed_in_a_row = 0
            if answer.rejected < sum(parcel.spans for parcel in group):
                self._takes += 1
        else:
            done.failed_in_a_row += 1
            done.answer = answer
        misses_max = MISSES_MAX.get(answer.verdict, REQUESTS_PER_ROUND_MAX)
        done.spent = done.requests >= REQUESTS_PER_ROUND_MAX or done.failed_in_a_row > misses_max
        return answer

    async def _probe(self, group: list[Parcel], done: Round, now: float) -> list[Parcel]:
        """After a long outage: is it one of these traces that brings the collector down?

        Another one is tried each time, because this one may be the cause. If it is taken, the rest is worth dividing.
        """
        if len(group) < 2 or self.failed_rounds + 1 < FAILED_ROUNDS_BEFORE_PROBE:
            return group
        at = self.failed_rounds % len(group)
        answer = await self._send([group[at]], done, now)
        done.probing = answer.verdict is Verdict.TAKEN
        return group[:at] + group[at + 1 :] if done.probing else group

    def _suspect(self, parcel: Parcel, answer: Answer, done: Round) -> None:
        """A trace was refused alone."""
        before = self._suspects.pop(parcel.key, None)
        strikes = 0
        if before is not None:
            strikes = before.strikes + (self._takes > before.takes and answer.verdict in STRIKES)
        if strikes >= STRIKES.get(answer.verdict, REQUESTS_PER_ROUND_MAX):
            done.settled.add(parcel.key)
            done.given_up.append((parcel.key, answer))
        elif len(self._suspects) < SUSPECTS_MAX:
            self._suspects[parcel.key] = _Suspect(strikes=strikes, takes=self._takes)

    async def _second_chance(self, parcels: list[Parcel], done: Round, now: float) -> None:
        """Whatever was refused for what it holds in this round is tried once more, if the collector still lives."""
        if done.over or done.witness is None:
            return
        for parcel in parcels:
            suspect = self._suspects.get(parcel.key)
            if suspect is None or parcel.key not in done.tried or suspect.strikes:
                continue
            if suspect.takes == self._takes:
                before = self._takes
                await self._ask([done.witness], done, now)  # it has it already: the same ids again harm nothing
                if before == self._takes or done.spent:
                    return
            answer = await self._send([parcel], done, now)
            if answer.verdict in (Verdict.LATER, Verdict.DOWN):
                done.stopped = True
                return
            if answer.verdict is not Verdict.TAKEN:
                self._suspect(parcel, answer, done)
