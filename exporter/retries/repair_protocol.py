"""What becomes of a repair, step by step. Pure: what happened goes in, the repair as it is now comes out.

    waiting ──▶ sent ──▶ verifying ──▶ done, failed, unknown, refused (the platform said no)
       │ ▲        └──▶ refused (its plan no longer holds), or waiting again (no byte left)
       │ └──────────── refused together with others: once more, alone
       └──▶ refused, void, cancelled

No answer proves anything, a good one as little as none: the platform is read until it shows the effect. "Not done"
means "not so far" until the horizon. What was sent is not sent again by itself; but for one case: where the platform
refuses a call as a whole because of one it names, and is then seen to have done nothing, the others are named one by
one.
"""

from dataclasses import replace

from exporter.model.repairs import Proof, Repair, RepairOutcome, RepairState
from exporter.model.retries import Answer
from exporter.platform.repairing import Answered, Effect
from exporter.platform.retrying import meaning
from exporter.wire.errors import ApiError, ErrorKind

#: A call may be written until so many seconds after its claim.
SEND_WITHIN = 10.0
#: An effect may show up to so many seconds after the call.
HORIZON = 900.0
#: A run that a repair made, or a platform that cannot be read, is waited for so long (seconds) after the call.
DEADLINE = 86400.0
#: Seconds between two looks: at first, at most.
LOOK_FIRST, LOOK_MOST = 10.0, 300.0
#: What could not be planned, or did not leave, waits so long (seconds).
LATER = 60.0
#: A repair that has not been sent after so long (seconds) is void.
WAITS_MOST = 86400.0
#: Times that lie this much (seconds) ahead were set while our clock was ahead.
SKEW = 5.0
#: Refusals of a call that may be meant for one of several.
_OF_ONE = frozenset({400, 404})


def is_due(repair: Repair, *, now: float) -> bool:
    """Whether it is its turn. A time further ahead than any is set was set by a wrong clock."""
    if repair.state is RepairState.WAITING and now < repair.starts_at:
        return False
    return not now < repair.look_at <= now + LOOK_MOST


def postponed(repair: Repair, *, now: float, detail: str) -> Repair:
    """It waits, and why."""
    return replace(repair, look_at=now + LATER, detail=detail)


def sending(repair: Repair, *, now: float, theirs: float) -> Repair:
    """The call is about to be made; ``theirs`` is now on the platform's clock."""
    return replace(
        repair,
        state=RepairState.SENT,
        sent_at=now,
        sent_at_theirs=theirs,
        send_by=now + SEND_WITHIN,
        handle=None,
        refusal="",
        shared=False,
        detail="the call is being made",
    )


def doubted(repair: Repair, *, now: float, detail: str) -> Repair:
    """The call came to an end: what it did, reading the platform tells."""
    return replace(repair, state=RepairState.VERIFYING, look_at=now, detail=detail)


def resumed(repair: Repair, *, now: float) -> Repair:
    """After a crash or a stop: it may have been sent, for no write and its mark are one act."""
    if repair.state is RepairState.SENT:
        return doubted(repair, now=now, detail="the exporter stopped in the middle of the call")
    return repair


def answered(repair: Repair, answer: Answered, *, now: float) -> Repair:
    """The platform took the call. That proves nothing of any of those it was about."""
    named = repair.subject_id in answer.handles
    detail = "the platform took the call" if named else "the platform took the call without naming this one"
    if answer.said is not None:
        detail += f", and said: {answer.said}"
    return replace(doubted(repair, now=now, detail=detail), handle=answer.handles.get(repair.subject_id))


def failed(repair: Repair, error: ApiError, *, others: bool, now: float) -> Repair:
    """The call failed; ``others``: it named more than this one."""
    if not error.sent:
        if error.kind is ErrorKind.CONFLICT:  # the plan that was approved no longer holds
            unsent = replace(repair, sent_at=None, sent_at_theirs=None)
            return closed(unsent, RepairOutcome.REFUSED, now=now, detail=error.detail)
        waiting = replace(repair, state=RepairState.WAITING, sent_at=None, sent_at_theirs=None)
        return postponed(waiting, now=now, detail=f"it was not sent: {error}")
    after = doubted(repair, now=now, detail=str(error))
    if meaning(error) is Answer.IN_DOUBT:
        return after
    return replace(after, refusal=str(error), shared=others and error.status in _OF_ONE)


def seen(repair: Repair, effect: Effect, *, repeatable: bool, asked_at: float, now: float) -> Repair:
    """What a look at the platform, begun at ``asked_at``, says about a repair that was sent."""
    if not repair.is_open or repair.state is not RepairState.VERIFYING:
        return repair
    runs = {*repair.new_runs, *(() if effect.run_id is None else (effect.run_id,))}
    repair = replace(repair, new_runs=tuple(sorted(runs)))
    if effect.proof is Proof.DONE:
        return closed(repair, RepairOutcome.DONE, now=now, detail=effect.evidence)
    if effect.proof is Proof.NOT_DONE and effect.run_id is not None:  # its own run, which has ended
        return closed(repair, RepairOutcome.FAILED, now=now, detail=effect.evidence)
    if effect.proof is Proof.NOT_DONE and repair.refusal and repeatable:
        if repair.shared:
            again = replace(repair, state=RepairState.WAITING, alone=True, refusal="", sent_at=None, look_at=now)
            return replace(again, detail="refused together with others; it is asked for alone")
        return closed(repair, RepairOutcome.REFUSED, now=now, detail=f"the platform refused: {repair.refusal}")
    if asked_at < _last(repair, effect):
        return later(repair, now=now, detail=effect.evidence)
    if effect.proof is Proof.UNKNOWN:
        return closed(repair, RepairOutcome.UNKNOWN, now=now, detail=effect.evidence)
    if repair.refusal:
        return closed(repair, RepairOutcome.REFUSED, now=now, detail=f"the platform refused: {repair.refusal}")
    if repeatable:
        return closed(repair, RepairOutcome.FAILED, now=now, detail=effect.evidence)
    return closed(repair, RepairOutcome.UNKNOWN, now=now, detail=f"{effect.evidence}; it may have had an effect")


def unseen(repair: Repair, *, now: float, detail: str) -> Repair:
    """A look at the platform failed."""
    if now >= (repair.sent_at or now) + DEADLINE:
        return closed(repair, RepairOutcome.UNKNOWN, now=now, detail=detail)
    return later(repair, now=now, detail=detail)


def later(repair: Repair, *, now: float, detail: str) -> Repair:
    """It is read again, the later the longer it takes."""
    since = repair.asked_at if repair.sent_at is None else repair.sent_at
    return replace(repair, look_at=now + min(LOOK_MOST, max(LOOK_FIRST, (now - since) / 4)), detail=detail)


def closed(repair: Repair, outcome: RepairOutcome, *, now: float, detail: str) -> Repair:
    return replace(repair, outcome=outcome, closed_at=now, look_at=0.0, detail=detail)


def redated(repair: Repair, *, now: float) -> Repair:
    """One whose times lie ahead was asked for, or sent, while our clock was ahead: they move along with it."""
    back = max(repair.asked_at, repair.sent_at or 0.0, repair.send_by - SEND_WITHIN) - now
    if not repair.is_open or back <= SKEW:
        return repair
    return replace(
        repair,
        asked_at=repair.asked_at - back,
        starts_at=repair.starts_at - back,
        until=repair.until - back,
        send_by=repair.send_by - back if repair.send_by else 0.0,
        sent_at=None if repair.sent_at is None else repair.sent_at - back,
        look_at=0.0,
    )


def _last(repair: Repair, effect: Effect) -> float:
    """From when on what a look says is the last word."""
    sent_at = repair.asked_at if repair.sent_at is None else repair.sent_at
    under_way = effect.proof is Proof.UNKNOWN and effect.run_id is not None
    return sent_at + DEADLINE if under_way else max(sent_at, repair.send_by) + HORIZON
