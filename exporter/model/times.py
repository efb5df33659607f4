"""Which times can be believed. Pure.

A platform's times are claims: a clock that is wrong, a column that was never filled, a year typed with a digit too
many. The latest end of a workflow holds, so one date years ahead would hide every end after it. What lies further ahead
of the platform's own clock than a day, or before there were such platforms, is no time but a fault of its item.
"""

from exporter.model import DeadLetter, Run, State

#: A time may be this much (seconds) ahead of the platform's clock.
FUTURE_SECONDS_MAX = 86_400.0
#: 2000-01-01: none of the platforms was there before. Zero, in whatever unit, is a column that was never filled.
MOMENT_MIN = 946_684_800.0
#: 2100-01-01: while the platform's clock is not known yet, what lies beyond is no time all the same.
MOMENT_MAX = 4_102_444_800.0


def latest(now: float | None) -> float:
    """The latest time to be believed while the platform's clock shows ``now``; None: it is not known yet."""
    return MOMENT_MAX if now is None else min(MOMENT_MAX, now + FUTURE_SECONDS_MAX)


def is_plausible(moment: float, latest: float) -> bool:
    """Whether a time can be one. Not a number is none."""
    return MOMENT_MIN <= moment <= latest


def implausible(claim: Run | DeadLetter, latest: float) -> str | None:
    """What of a claim has a time that cannot be, in words; None if all of it can be."""
    if isinstance(claim, DeadLetter):
        given = [("opening", claim.opened_at), ("resolution", claim.resolved_at)]
    else:
        given = [("start", claim.started_at), ("end", claim.ended_at)]
        if claim.state is not State.PENDING:  # one that waits may be planned for next month
            given.append(("queueing", claim.queued_at))
        for step in claim.steps or ():
            given += [("step's start", step.started_at), ("step's end", step.ended_at)]
    return next((what for what, at in given if at is not None and not is_plausible(at, latest)), None)
