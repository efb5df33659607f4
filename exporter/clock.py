"""The one place that reads the clock.

Everything else takes ``now`` (seconds since the epoch, UTC, as a float) as an argument, or holds a ``Clock``. Tests
drive a ``ManualClock``: time moves only when they say so, and nobody sleeps.

The wall clock may be wrong, and be set right while we run: what must not follow that is measured with ``steady``.
"""

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Clock(Protocol):
    """Wall time in seconds since the epoch, and a way to wait for it to pass."""

    def now(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's own time."""

    def now(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))

    def steady(self) -> float:
        return time.clock_gettime(_STEADY)


class SharedClock:
    """A clock by which several processes go: our own, set right by the one they share."""

    def __init__(self, clock: Clock, *, follows: bool = True) -> None:
        """One that does not follow is right already."""
        self._clock = clock
        self._follows = follows
        self.ahead = 0.0  # seconds our own is ahead of the shared one

    def now(self) -> float:
        return self._clock.now() - self.ahead

    async def sleep(self, seconds: float) -> None:
        await self._clock.sleep(seconds)

    def steady(self) -> float:
        return steady(self._clock)

    def agree(self, shared: float) -> None:
        """Go by what the shared clock shows now. Less than a second may be the way the answer took."""
        step = self.now() - shared
        if self._follows and abs(step) >= SHARED_STEP_MIN:
            self.ahead += step


async def until_due(due: asyncio.Event, clock: Clock, seconds: float) -> None:
    """Wait for the event or for the time to pass, whichever is first; the event is not set afterwards."""
    await first(due.wait(), clock.sleep(seconds))
    due.clear()


async def first(*awaited: Coroutine[Any, Any, object]) -> None:
    """Wait until one of them is done; the others are cancelled."""
    waiting = [asyncio.ensure_future(one) for one in awaited]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


#: Seconds by which the shared clock must differ before ours is set by it.
SHARED_STEP_MIN = 1.0
#: Goes on while the machine sleeps, where there is such a clock.
_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def steady(clock: Clock) -> float:
    """Seconds that only pass, whoever sets the wall clock; of a clock that knows no such thing, its own time."""
    of_its_own: Callable[[], float] = getattr(clock, "steady", clock.now)
    return of_its_own()


class ManualClock:
    """Time that does not pass until ``advance`` is called.

    Sleepers wake in the order of their deadlines; between two of them the loop runs until it is idle enough to have
    reacted, so a loop that sleeps 60 s takes its turns one by one even if a test advances an hour at once.
    """

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._now = start
        self._ahead = 0.0  # how far somebody has set it
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self._now + self._ahead

    def steady(self) -> float:
        return self._now

    def set_ahead(self, seconds: float) -> None:
        """Have it show so much more than the time that has passed, or less: nobody wakes up for that."""
        self._ahead = seconds

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), future))
        await future

    async def advance(self, seconds: float) -> None:
        """Move time forward, waking every sleeper that falls due on the way."""
        target = self._now + seconds
        while self._sleepers and self._sleepers[0][0] <= target:
            deadline, _, future = heapq.heappop(self._sleepers)
            self._now = max(self._now, deadline)
            if not future.done():
                future.set_result(None)
                for _ in range(10):
                    await asyncio.sleep(0)
        self._now = target
        for _ in range(10):
            await asyncio.sleep(0)


@contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Seconds since entering, for measuring our own work."""
    began = time.perf_counter()
    yield lambda: time.perf_counter() - began
