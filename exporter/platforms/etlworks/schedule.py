"""What the text of a schedule says about when its flow starts, and how often it is repeated after a failure. Pure.

A schedule is a cron line (Quartz with seconds, or five fields) or an interval as text. The platform publishes neither
the grammar of the text nor the time zone it is read in. So of a cron line only what holds everywhere is used: starts
are a multiple of ``period`` apart, the greatest step that fits the line. Their place on the clock, ``offset``, is
known where no time zone moves it: offsets of zones are multiples of 15 minutes. Elsewhere the last start that was seen
anchors the series.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

DAY = 86_400.0
#: Every time zone is a multiple of this (seconds) away from UTC.
ZONE_STEP = 900
#: No such text is longer.
TEXT_CHARS_MAX = 200

_INTERVAL = re.compile(r"(?:every\s+)?(\d{1,9})\s*(second|sec|s|minute|min|m|hour|h|day|d)s?", re.I)
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY}


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """When a schedule may start its flow: ``offset + k * period``, in seconds since the epoch."""

    period: float
    offset: float | None = None  # None: depends on the time zone, or on when the schedule was switched on
    exact: bool = False  # the flow starts at every such moment, not only at some
    place: float | None = None  # of every start modulo ``grid(period)``, which no time zone moves; None: not known


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """One schedule of a flow, as far as it matters for reading it."""

    id: str
    enabled: bool = True
    retries: int = 0  # how often the scheduler repeats a failed run by itself
    delay: float = 0.0  # seconds before each repetition
    period: float | None = None  # as in Timing; None: the text says nothing that is certain
    offset: float | None = None
    exact: bool = False
    place: float | None = None


def grid(period: float) -> float:
    """The longest part of a period that stays where it is in every time zone."""
    return float(math.gcd(ZONE_STEP, int(period))) if period == int(period) else period


def since_possible_start(schedules: Sequence[Schedule], now: float) -> float:
    """Seconds since the last moment at which one of these may have started its flow; infinite if none says when."""
    return min(
        (
            (now - one.place) % grid(one.period)
            for one in schedules
            if one.enabled and one.period is not None and one.place is not None
        ),
        default=math.inf,
    )


def to_cursor(schedules: Sequence[Schedule]) -> list[dict[str, Any]]:
    return [asdict(schedule) for schedule in schedules]


def from_cursor(value: Any) -> tuple[Schedule, ...] | None:
    """The schedules a cursor remembers; None if it remembers none, or in a form of another version."""
    if not isinstance(value, list):
        return None
    known = {field.name for field in fields(Schedule)}
    try:
        return tuple(Schedule(**{k: v for k, v in item.items() if k in known}) for item in value)
    except (AttributeError, TypeError):
        return None


def parse_timing(text: object) -> Timing | None:
    """The timing a schedule's text stands for, None where it is not clear."""
    if not isinstance(text, str) or len(text) > TEXT_CHARS_MAX:
        return None
    if match := _INTERVAL.fullmatch(text.strip()):
        period = int(match[1]) * _UNITS[match[2][0].lower()]
        return Timing(period=period) if period > 0 else None
    parts = text.split()
    if len(parts) == 5:
        parts = ["0", *parts]
    if len(parts) not in (6, 7):
        return None
    seconds, minutes, hours = _field(parts[0], 60), _field(parts[1], 60), _field(parts[2], 24)
    if not (seconds and minutes and hours):
        return None
    if len(seconds) > 1:
        period = _step(seconds, 60)
    elif len(minutes) > 1:
        period = 60 * _step(minutes, 60)
    else:
        period = 3600 * _step(hours, 24)
    first = float(min(seconds) + 60 * min(minutes))
    every_day = all(part in ("*", "?") for part in parts[3:])
    return Timing(
        period=float(period),
        offset=None if ZONE_STEP % period else first % period,
        exact=every_day and len(seconds) * len(minutes) * len(hours) * period == DAY,
        place=first % grid(period),
    )


def _field(text: str, size: int) -> list[int]:
    """The values a field of a cron line stands for; none if it is not understood."""
    values: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(?:[*?]|(\d{1,2})(?:-(\d{1,2}))?)(?:/(\d{1,2}))?", part)
        if match is None:
            return []
        low, high, step = match[1], match[2], match[3]
        first = int(low or 0)
        last = int(high) if high else first if low and not step else size - 1
        if not first <= last < size or (step is not None and int(step) == 0):
            return []
        values.update(range(first, last + 1, int(step or 1)))
    return sorted(values)


def _step(values: Sequence[int], size: int) -> int:
    """The greatest step that leads from each value to the next, around the clock."""
    return math.gcd(size, *(value - values[0] for value in values))


def next_run_at(schedules: Sequence[Schedule], now: float) -> float | None:
    """When the flow starts next, if that is certain of every schedule that is switched on."""
    moments = []
    for schedule in schedules:
        if not schedule.enabled:
            continue
        if schedule.period is None or schedule.offset is None or not schedule.exact:
            return None
        turns = math.floor((now - schedule.offset) / schedule.period) + 1
        moments.append(schedule.offset + turns * schedule.period)
    return min(moments, default=None)
