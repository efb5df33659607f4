"""How many calls a credential may make, and who goes first.

Platforms limit requests per minute and per credential, and other programs of the customer live from the same limit.
So each credential has one budget: a token bucket that keeps to a share of the limit, and lanes, so that a retry never
waits behind a sweep. The bucket alone would let more than a minute's share through in an unlucky minute (what it had
saved and what it is given); the calls of the last minute are therefore remembered too, and no rolling minute holds
more than the share. After a 429 nobody passes before the platform's time is up, the rate is halved, and it comes back
within ten minutes.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from math import floor

from exporter.clock import Clock

WINDOW_SECONDS = 60.0
#: What a fresh start may spend at once, so that a process restarting in a loop stays within the limit.
START_BURST_MAX = 10.0
#: Where the limit is 0, somebody still has to find out now and then what that means and when it ends.
RATE_PER_MINUTE_MIN = 0.1
SLOWDOWN_FACTOR = 0.5
SLOWDOWN_FACTOR_MIN = 1 / 16
RECOVERY_SECONDS = 600.0
#: The shortest sleep: what rounding leaves over is not worth waking up for, and must not wake up for ever.
SLEEP_SECONDS_MIN = 0.001


class Lane(IntEnum):
    """Who goes first when there is not enough for all: the lower number."""

    RETRIES = 0
    DEAD_LETTERS = 1
    RUNNING = 2
    SWEEPS = 3


def _unheard(cause: str, seconds: float) -> None:
    """Where nobody counts the waiting."""


class Budget:
    """The calls one credential may make. All rates and limits are calls per minute.

    ``default_per_minute`` stands for the limit until the platform tells its own. ``fixed_per_minute``, where a user has
    set it, replaces the share of the limit but never exceeds the limit. ``on_wait`` is given why a call has waited
    (``budget``, or the cause that was given to ``pause``) and for how many seconds.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        share: float,
        default_per_minute: float,
        fixed_per_minute: float | None = None,
        on_wait: Callable[[str, float], None] = _unheard,
    ) -> None:
        self._clock = clock
        self._share = share
        self._default = default_per_minute
        self._fixed = fixed_per_minute
        self._on_wait = on_wait
        self._limit: float | None = None
        now = clock.now()
        self._seen_at = now
        self._passes: deque[float] = deque()  # of the last minute
        self._paused_from = self._paused_until = now
        self._paused_before = 0.0  # seconds of all earlier pauses
        self._pause_cause = "retry_after"
        self._slowed_to = 1.0
        self._slowed_at = now
        self._filled_at = now
        self._tokens = max(1.0, min(START_BURST_MAX, self._rate(now) / 6))
        self._queues: dict[Lane, deque[asyncio.Future[float]]] = {lane: deque() for lane in Lane}
        self._pump: asyncio.Task[None] | None = None  # lives only while somebody waits

    @property
    def limit(self) -> float | None:
        """What the platform says, None until it does."""
        return self._limit

    @property
    def rate(self) -> float:
        """What may be spent now: the share, or less for a while after a 429."""
        return self._rate(self._now())

    @property
    def remaining(self) -> float:
        """Calls that could be made at once."""
        now = self._now()
        if now < self._paused_until:
            return 0.0
        self._fill(now)
        return max(0.0, min(self._tokens, self._calls_per_window(now) - len(self._passes)))

    def learn_limit(self, per_minute: float) -> None:
        """The platform said its limit."""
        self._fill(self._now())
        self._limit = max(0.0, per_minute)
        self._restart_pump()  # whoever waits may have less to wait for

    async def take(self, lane: Lane) -> None:
        """Wait for this call's turn: lower lanes first, in order of arrival within a lane."""
        arrived = self._now()
        if self._first_queue() is None and self._delay(arrived) == 0:
            self._pass(arrived)
            return
        paused = self._paused_seconds(arrived)
        turn: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._queues[lane].append(turn)
        if self._pump is None or self._pump.done():
            self._restart_pump()
        try:
            await turn
        except asyncio.CancelledError:
            self._give_back(lane, turn)
            raise
        finally:
            now = self._now()
            paused = self._paused_seconds(now) - paused
            self._report(self._pause_cause, paused)
            self._report("budget", now - arrived - paused)

    def pause(self, seconds: float, cause: str = "retry_after") -> None:
        """Let nobody pass for so long, and go slower afterwards."""
        now = self._now()
        if now >= self._paused_until:
            # Calls in flight are refused together: they are one incident and halve the rate once.
            self._slowed_to = max(SLOWDOWN_FACTOR_MIN, self._factor(now) * SLOWDOWN_FACTOR)
            self._paused_before += self._paused_until - self._paused_from
            self._paused_from = now
        self._paused_until = max(self._paused_until, now + seconds)
        self._pause_cause = cause
        self._slowed_at = self._filled_at = self._paused_until
        # Whoever was refused may ask again as soon as the time is up; the others follow at the new pace.
        self._tokens = 1.0

    # The arithmetic. Everything below that takes ``now`` expects what ``_now`` returned.

    def _now(self) -> float:
        """The clock. If somebody set it back, what is remembered moves along: nobody waits for old times to return."""
        now = self._clock.now()
        if now < self._seen_at:
            back = self._seen_at - now
            self._passes = deque(at - back for at in self._passes)
            self._paused_from -= back
            self._paused_until -= back
            self._slowed_at -= back
            self._filled_at -= back
        self._seen_at = now
        return now

    def _factor(self, now: float) -> float:
        recovered = max(0.0, now - self._slowed_at) / RECOVERY_SECONDS
        return min(1.0, self._slowed_to + (1.0 - self._slowed_to) * recovered)

    def _rate(self, now: float) -> float:
        if self._fixed is not None:
            full = self._fixed if self._limit is None else min(self._fixed, self._limit)
        else:
            full = (self._default if self._limit is None else self._limit) * self._share
        return max(RATE_PER_MINUTE_MIN, full * self._factor(now))

    def _calls_per_window(self, now: float) -> int:
        return max(1, floor(self._rate(now) + 1e-9))

    def _fill(self, now: float) -> None:
        while self._passes and self._passes[0] <= now - WINDOW_SECONDS:
            self._passes.popleft()
        if now > self._filled_at:
            # The rate rises in a straight line while it recovers, so the mean of both ends is what it was.
            mean = (self._rate(self._filled_at) + self._rate(now)) / 2
            self._tokens += (now - self._filled_at) * mean / WINDOW_SECONDS
            self._filled_at = now
        self._tokens = min(self._tokens, max(1.0, self._rate(now)))

    def _delay(self, now: float) -> float:
        """Seconds until the next call may pass, 0 if it may now."""
        if now < self._paused_until:
            return max(SLEEP_SECONDS_MIN, self._paused_until - now)
        self._fill(now)
        delay = 0.0
        if self._tokens < 1.0 - 1e-6:
            delay = (1.0 - self._tokens) * WINDOW_SECONDS / self._rate(now)
        too_many = len(self._passes) - self._calls_per_window(now)
        if too_many >= 0:
            delay = max(delay, self._passes[too_many] + WINDOW_SECONDS - now)
        return max(SLEEP_SECONDS_MIN, delay) if delay > 0 else 0.0

    def _pass(self, now: float) -> None:
        self._tokens -= 1.0
        self._passes.append(now)

    def _paused_seconds(self, now: float) -> float:
        """All seconds of all pauses so far."""
        return self._paused_before + max(0.0, min(now, self._paused_until) - self._paused_from)

    def _report(self, cause: str, seconds: float) -> None:
        if seconds > 0:
            self._on_wait(cause, seconds)

    # The queue.

    def _first_queue(self) -> deque[asyncio.Future[float]] | None:
        return next((queue for lane in Lane if (queue := self._queues[lane])), None)

    def _give_back(self, lane: Lane, turn: asyncio.Future[float]) -> None:
        """A cancelled call leaves the queue, or returns the token it was just given."""
        if turn.cancelled():
            with suppress(ValueError):  # the pump may have met it first
                self._queues[lane].remove(turn)
        else:
            self._tokens += 1.0
            with suppress(ValueError):  # the clock may have been set back since
                self._passes.remove(turn.result())
        self._restart_pump()

    def _restart_pump(self) -> None:
        """Look again whose turn it is. The pump can be stopped anywhere: it holds nothing while it sleeps."""
        if self._pump is not None:
            self._pump.cancel()
            self._pump = None
        if self._first_queue() is not None:
            self._pump = asyncio.get_running_loop().create_task(self._let_pass())

    async def _let_pass(self) -> None:
        while (queue := self._first_queue()) is not None:
            now = self._now()
            if delay := self._delay(now):
                await self._clock.sleep(delay)
                continue
            turn = queue.popleft()
            if not turn.done():
                self._pass(now)
                turn.set_result(now)
