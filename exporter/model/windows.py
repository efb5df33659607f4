"""When retries may start: weekly hours and dates, in a zone of the tz database. Pure.

``allow`` is a list of spans such as ``mon-fri 07:00-19:00``; without one all times are allowed. ``deny`` takes the
same and dates: ``2026-12-24`` or ``2026-12-24..2026-12-27``, the last day included. Spans are half open; one that ends
before it begins runs over midnight and belongs to the day it begins on. A local hour that a change of the clocks
doubles is denied: nobody can say which of the two was meant. One that it skips never comes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY = 24 * 60
#: How far ahead an opening is looked for (days), and how finely (minutes).
LOOK_AHEAD_DAYS = 60
_QUARTER = 15  # minutes: changes of the clocks happen at multiples of it

_SPAN = re.compile(r"(?:(?P<days>[a-z,\-]+)\s*)?(?:(?P<from>\d\d:\d\d)-(?P<to>\d\d:\d\d))?", re.I)
_DATES = re.compile(r"(\d{4}-\d\d-\d\d)(?:\.\.(\d{4}-\d\d-\d\d))?")


class BadWindow(Exception):
    """A window that cannot be read: one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Some days of the week, from a minute of the day to another; ``end`` beyond a day is past midnight."""

    days: frozenset[int]
    start: int
    end: int

    def holds(self, local: datetime) -> bool:
        minute = local.hour * 60 + local.minute
        if local.weekday() in self.days and self.start <= minute < self.end:
            return True
        return (local.weekday() - 1) % 7 in self.days and minute + _DAY < self.end


@dataclass(frozen=True, slots=True, kw_only=True)
class Dates:
    """Whole local days, both included."""

    first: date
    last: date

    def holds(self, local: datetime) -> bool:
        return self.first <= local.date() <= self.last

    def is_past(self, now: float, zone: ZoneInfo) -> bool:
        return self.last < datetime.fromtimestamp(now, UTC).astimezone(zone).date()


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """When a policy may start retries."""

    zone: ZoneInfo
    allow: tuple[Span, ...] = ()
    deny: tuple[Span | Dates, ...] = ()

    def is_open(self, now: float) -> bool:
        local = datetime.fromtimestamp(now, UTC).astimezone(self.zone)
        if _ambiguous(local):
            return False
        if any(span.holds(local) for span in self.deny):
            return False
        return not self.allow or any(span.holds(local) for span in self.allow)

    def opens_in_a_week(self) -> bool:
        """Whether any hours are left in a week without denied dates."""
        denied = [span for span in self.deny if isinstance(span, Span)]
        monday = datetime(2024, 1, 1, tzinfo=UTC)
        minutes = [monday + timedelta(minutes=minute) for minute in range(7 * _DAY)]
        return any(
            (not self.allow or any(span.holds(local) for span in self.allow))
            and not any(span.holds(local) for span in denied)
            for local in minutes
        )

    def next_open(self, now: float) -> float | None:
        """The first moment from ``now`` on at which it is open; None if there is none within ``LOOK_AHEAD_DAYS``."""
        return now if self.is_open(now) else _opening(self, now - now % 60 + 60)

    def next_edge(self, now: float) -> float:
        """The first moment after now at which that may change; at most a day ahead."""
        return _edge(self, now - now % 60 + 60, self.is_open(now))


@lru_cache(maxsize=256)
def _opening(window: Window, minute: float) -> float | None:
    """The first minute at which a window opens: at the edge of a span, or where the clocks change."""
    for day in range(LOOK_AHEAD_DAYS):
        start = minute + day * 86400
        for edge in _edges(window, start):
            if window.is_open(start + edge * 60):
                return start + edge * 60
    return None


@lru_cache(maxsize=256)
def _edge(window: Window, minute: float, is_open: bool) -> float:
    """The first minute at which a window is not as it was."""
    found = (minute + edge * 60 for edge in _edges(window, minute))
    return next((edge for edge in found if window.is_open(edge) is not is_open), minute + 86400.0)


def _edges(window: Window, start: float) -> list[int]:
    """Minutes of the day after ``start`` at which it may begin to be open."""
    local = datetime.fromtimestamp(start, UTC).astimezone(window.zone)
    first = local.hour * 60 + local.minute
    spans = [span for span in (*window.allow, *window.deny) if isinstance(span, Span)]
    marks = {*range(0, _DAY, _QUARTER), *(mark % _DAY for span in spans for mark in (span.start, span.end))}
    return sorted({0, *((mark - first) % _DAY for mark in marks)})


def _ambiguous(local: datetime) -> bool:
    """Whether this local time comes twice."""
    return local.replace(fold=0).utcoffset() != local.replace(fold=1).utcoffset()


def parse_window(tz: str, allow: Sequence[str], deny: Sequence[str]) -> Window:
    """Raises ``BadWindow``."""
    try:
        zone = ZoneInfo(tz)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise BadWindow(f"unknown time zone {tz!r}; write for example Europe/Berlin or UTC") from None
    return Window(zone=zone, allow=tuple(_span(text) for text in allow), deny=tuple(_denied(text) for text in deny))


def _denied(text: str) -> Span | Dates:
    found = _DATES.fullmatch(text.strip())
    if found is None:
        return _span(text)
    try:
        first = date.fromisoformat(found[1])
        last = date.fromisoformat(found[2] or found[1])
    except ValueError:
        raise BadWindow(f"no such date: {text!r}") from None
    if last < first:
        raise BadWindow(f"{text!r} ends before it begins")
    return Dates(first=first, last=last)


def _span(text: str) -> Span:
    found = _SPAN.fullmatch(text.strip())
    if found is None or not text.strip():
        raise BadWindow(f"cannot read {text!r}; write for example 'mon-fri 07:00-19:00', 'sat,sun' or '22:00-06:00'")
    start, end = 0, _DAY
    if found["from"]:
        start, end = _minute(found["from"], text), _minute(found["to"], text)
    if start == end:
        raise BadWindow(f"{text!r} is empty")
    return Span(days=_days(found["days"], text), start=start, end=end if end > start else end + _DAY)


def _minute(text: str, whole: str) -> int:
    hours, minutes = int(text[:2]), int(text[3:])
    if minutes > 59 or hours > 24 or (hours == 24 and minutes):
        raise BadWindow(f"no such time in {whole!r}")
    return hours * 60 + minutes


def _days(text: str | None, whole: str) -> frozenset[int]:
    if text is None:
        return frozenset(range(7))
    days: set[int] = set()
    for part in text.lower().split(","):
        first, dash, last = part.partition("-")
        try:
            begin, end = DAYS.index(first), DAYS.index(last if dash else first)
        except ValueError:
            raise BadWindow(f"no such day in {whole!r}; one of {', '.join(DAYS)}") from None
        days |= {(begin + step) % 7 for step in range((end - begin) % 7 + 1)}
    return frozenset(days)
