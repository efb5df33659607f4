"""Which flows one sweep reads, and in which order. Pure.

The platform tells of one execution at a time: the newest of a flow, or the one that is named. So a flow is read when it
may have something new: a run of it is open, a schedule of it was due, the scheduler owes a repetition, a stopped run is
still going down. What the budget leaves after these goes to the others, all of it:

1. flows never read, those first whose schedule may have started them last: nothing is known of them;
2. flows that run without a schedule but at even distances, when the next run is expected, for three quarters at most;
3. the rest in turns, those not read for longest first. A flow that runs unannounced much more often than the average
   has its turn sooner, one that hardly ever does later, twice as late at most. Where all are alike this is round robin.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from exporter.platforms.etlworks.reading import STARTS_KEPT, FlowState
from exporter.platforms.etlworks.schedule import Schedule, since_possible_start

#: Flows read in a sweep though nothing says they have run, when those due take the whole budget.
IDLE_FLOWS_PER_SWEEP_MIN = 5
#: The budget of so many seconds at most is spent in one sweep, so that a long interval does not make a long sweep.
BUDGET_SECONDS_MAX = 120.0
#: A start that was due and not seen is looked for again for this long (seconds), and for two sweeps.
LATE_SECONDS = 120.0
#: A start this much (seconds) before its moment still is that start: those before it may have waited in a queue.
EARLY_SECONDS = 60.0
#: So many unannounced starts at even distances are a cadence, which is believed until so many in a row were not seen.
CADENCE_STARTS_MIN, CADENCE_MISSED_MAX = 3, 3
#: How uneven a cadence may be: seconds, or a part of its period if that is more.
CADENCE_SLACK_SECONDS, CADENCE_SLACK = 10.0, 0.02
#: The part of what is left that cadences may take.
EXPECTED_SHARE = 0.75
#: How much more (or less) often than the average a flow must run to have its turn sooner (or later): chance alone makes
#: flows that are alike look different.
UNLIKE = 4.0
#: Starts that each flow is taken to have had besides those seen, so that a few do not weigh much.
PRIOR_STARTS = 2.0
WEIGHT_MIN, WEIGHT_MAX = 0.5, 4.0
#: How long (seconds) a flow is watched before that is said of it.
WATCHED_SECONDS_MIN = 7_200.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """A flow that might be read."""

    id: str
    state: FlowState
    schedules: Sequence[Schedule] = ()
    open: bool = False  # a run of it has not ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The flows to read, in this order: those due, then others as far as the budget reaches."""

    due: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    unread: int = 0  # flows that have never been read and are not among these


def room(rate: float, *, every: float) -> int:
    """Requests one sweep may spend, at ``rate`` a minute; ``every`` is how many seconds sweeps are apart."""
    return int(rate * min(every, BUDGET_SECONDS_MAX) / 60.0)


def plan(flows: Iterable[Flow], *, read_at: float | None, now: float, every: float, room: int) -> Plan:
    """What to read now, with about ``room`` requests. Schedules were read at ``read_at``."""
    due: list[Flow] = []
    unknown: list[Flow] = []
    rest: list[Flow] = []
    for flow in flows:
        if flow.open or is_due(flow.state, flow.schedules, read_at=read_at, now=now, every=every):
            due.append(flow)
        else:
            (rest if flow.state.tried else unknown).append(flow)
    due.sort(key=lambda flow: (flow.state.tried, flow.id))
    unknown.sort(key=lambda flow: (since_possible_start(flow.schedules, now), flow.id))
    left = max(IDLE_FLOWS_PER_SWEEP_MIN, room - len(due))
    first = unknown[:left]
    left -= len(first)
    soon = [flow for flow in rest if is_expected(flow.state, now=now, every=every)] if left else []
    soon.sort(key=lambda flow: (flow.state.tried, flow.id))
    soon = soon[: math.ceil(EXPECTED_SHARE * left)]
    taken = {flow.id for flow in soon}
    turns = _in_turns([flow for flow in rest if flow.id not in taken], now)[: left - len(soon)]
    return Plan(
        due=tuple(flow.id for flow in due),
        idle=tuple(flow.id for flow in (*first, *soon, *turns)),
        unread=len(unknown) - len(first),
    )


def is_due(state: FlowState, schedules: Sequence[Schedule], *, read_at: float | None, now: float, every: float) -> bool:
    """Whether a flow without open runs may have something new.

    ``schedules`` were read at ``read_at``; ``every`` is how many seconds sweeps are apart. One that was never read is
    due only if a schedule may have started it just now.
    """
    late = max(LATE_SECONDS, 2 * every)
    if any(stop.until > now for stop in state.cancelled.values()):
        return True
    if not state.tried:
        return since_possible_start(schedules, now) <= late
    if state.undecided and read_at is not None and read_at > state.read:
        return True
    if state.again is not None and state.again <= now and (state.again > state.read or now - state.again <= late):
        return True
    for schedule in schedules:
        if not schedule.enabled or schedule.period is None:
            continue
        if schedule.period < 2 * every:
            return True
        began = state.began.get(schedule.id)
        anchor = schedule.offset if schedule.offset is not None else began
        if anchor is None:
            continue
        moment = anchor + math.floor((now - anchor) / schedule.period) * schedule.period
        unseen = (began or 0.0) < moment - min(EARLY_SECONDS, schedule.period / 2)
        if moment > state.read or (unseen and now - moment <= late):
            return True
    return False


def cadence(starts: Sequence[float], *, every: float) -> float | None:
    """The distance between unannounced starts, if it is even; some of them may have gone unseen."""
    if len(starts) < CADENCE_STARTS_MIN:
        return None
    gaps = [after - before for before, after in pairwise(starts)]
    shortest = min(gaps)
    if shortest < 2 * every:
        return None  # it is read as often as that in its turn, or never
    slack = max(CADENCE_SLACK_SECONDS, CADENCE_SLACK * shortest)
    even = all(abs(gap - round(gap / shortest) * shortest) <= slack for gap in gaps)
    return sum(gaps) / sum(round(gap / shortest) for gap in gaps) if even else None


def is_expected(state: FlowState, *, now: float, every: float) -> bool:
    """Whether a flow that runs at even distances should have started again, or just now."""
    period = cadence(state.starts, every=every)
    if period is None:
        return False
    last = state.starts[-1]
    turns = math.floor((now - last) / period)
    moment = last + turns * period
    late = max(LATE_SECONDS, 2 * every)
    return 1 <= turns <= CADENCE_MISSED_MAX and (moment > state.read or now - moment <= late)


def _in_turns(flows: Sequence[Flow], now: float) -> list[Flow]:
    """Those that have waited for longest first, by how often each runs unannounced."""
    often = {flow.id: starts for flow in flows if (starts := _starts(flow.state, now)) is not None}
    usual = PRIOR_STARTS + sum(often.values()) / max(1, len(often))

    def waited(flow: Flow) -> float:
        ratio = (PRIOR_STARTS + often[flow.id]) / usual if flow.id in often else 1.0
        weight = 1.0
        if ratio >= UNLIKE:
            weight = min(math.sqrt(ratio), WEIGHT_MAX)
        elif ratio <= 1 / UNLIKE:
            weight = WEIGHT_MIN
        return weight * (now - flow.state.tried)

    return sorted(flows, key=lambda flow: (-waited(flow), flow.id))


def _starts(state: FlowState, now: float) -> float | None:
    """Unannounced starts a day: as many as are remembered, over the time in which they were. None while a flow has been
    watched too shortly to say.
    """
    watched = now - state.since if state.since else 0.0
    if watched < WATCHED_SECONDS_MIN:
        return None
    first = state.starts[0] if state.starts else now
    since = first if len(state.starts) == STARTS_KEPT else min(state.since, first)
    return len(state.starts) * 86_400.0 / max(WATCHED_SECONDS_MIN / 2, now - since)
