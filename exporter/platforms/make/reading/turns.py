"""Whose log is read next, where each costs a call and there are more to read than calls. Pure.

First come, first served: those whose runs have waited longest. Nothing else was found to keep the 95th percentile as
low: weights by how much a scenario runs let the many that run rarely wait for long, while whoever runs often gathers
several runs for one call by waiting. Scenarios that are only to be met, to learn when they last ran, take what is left
over; but always a few.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

#: However little is left, a sweep reads as many logs as this share of what an interval gives: others had the rest.
ROOM_SHARE = 0.8
#: Beyond so many logs in one sweep the totals it goes by are old (where an interval gives more calls: beyond these).
LOGS_PER_SWEEP_MAX = 200
#: Where both wait, one of so many calls is for a scenario that is only to be met: it has not run since it was found.
MEETING_SHARE = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """Whose log is read now, and whose is left for the next sweep."""

    now: Sequence[str]
    left: Sequence[str]


def room_for(*, per_minute: float, interval: float, remaining: float) -> int:
    """How many logs a sweep may read, with so many calls a minute, so many seconds between sweeps, so many calls now.

    What is spent between two sweeps is saved in the budget: so none is lost, and the next sweep decides by new totals.
    """
    steady = ceil(per_minute * interval / 60.0)
    return max(1, min(max(LOGS_PER_SWEEP_MAX, steady), max(ceil(ROOM_SHARE * steady), int(remaining))))


def choose(due: Mapping[str, float], strangers: Sequence[str], *, room: int) -> Turns:
    """``due``: since when each waits; ties stay in their order. ``strangers`` are only to be met."""
    urgent = sorted(due, key=due.__getitem__)
    first = urgent[: room - min(len(strangers), room // MEETING_SHARE)]
    met = strangers[: room - len(first)]
    return Turns(now=[*first, *met], left=[*urgent[len(first) :], *strangers[len(met) :]])
