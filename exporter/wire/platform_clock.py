"""The time on a platform's clock, as its answers give it: what is forgotten, counted and believed goes by that."""

import re
from collections import deque
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

from exporter.clock import Clock, steady
from exporter.model import times

#: Date headers have whole seconds and answers take time: less than this is no difference between two clocks.
CLOCK_OFFSET_SECONDS_MIN = 2.0
#: The platform's clock is what most of so many answers say: one may come from a cache, or from another machine …
CLOCK_ANSWERS = 5
#: … unless the newest differs by more than this: then somebody has set a clock, and old answers say nothing any more.
CLOCK_JUMP_SECONDS = 3600.0
#: A cache says how old its answer is; what is older than a day no cache would give out.
AGE_SECONDS_MAX = 86_400.0


class PlatformClock:
    """Learns from each answer how far the platform's clock is ahead of our steady one.

    So setting our wall clock changes nothing of it.
    """

    def __init__(self, clock: Clock) -> None:
        self.answered = False  # whether the platform has: before that, nobody can say how right our clock is
        self._clock = clock
        self._shifts: deque[float] = deque(maxlen=CLOCK_ANSWERS)  # what theirs shows less what our steady one does

    def now(self) -> float:
        """The time there, by the last answers; ours while none has given it."""
        if not self._shifts:
            return self._clock.now()
        newest, usual = self._shifts[-1], self._usual_shift()
        return self._theirs(newest if abs(newest - usual) > CLOCK_JUMP_SECONDS else usual)

    def offset(self) -> float | None:
        """Seconds our clock is ahead; None while no answer had the time."""
        return self._clock.now() - self._theirs(self._usual_shift()) if self._shifts else None

    def latest(self) -> float:
        """The latest time to be believed of the platform's items."""
        if not self._shifts:
            return times.latest(None)
        return times.latest(max(self.now(), self._theirs(self._shifts[-1])))

    def learn(self, headers: Mapping[str, str]) -> None:
        """From an answer of the platform itself: an error may be a gateway's, and the time on its clock."""
        self.answered = True
        date = http_date(headers.get("Date", ""))
        if date is not None:
            age = headers.get("Age", "").strip()
            if re.fullmatch(r"\d{1,9}", age):
                date += min(float(age), AGE_SECONDS_MAX)
            self._shifts.append(date - steady(self._clock))

    def hear(self, theirs: float) -> None:
        """What another replica, which asks the platform, says its time is now."""
        self.answered = True
        self._shifts.append(theirs - steady(self._clock))

    def _theirs(self, shift: float) -> float:
        ours, theirs = self._clock.now(), steady(self._clock) + shift
        return theirs if abs(theirs - ours) > CLOCK_OFFSET_SECONDS_MIN else ours

    def _usual_shift(self) -> float:
        """The middle one; of two in the middle, the one that was learned later."""
        by_size = sorted(range(len(self._shifts)), key=lambda at: self._shifts[at])
        half = len(by_size) // 2
        return self._shifts[by_size[half] if len(by_size) % 2 else max(by_size[half - 1 : half + 1])]


def http_date(text: str) -> float | None:
    """A ``Date`` header in seconds since the epoch; None if it is none."""
    try:
        moment = parsedate_to_datetime(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
