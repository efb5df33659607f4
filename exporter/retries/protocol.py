"""What becomes of a retry, step by step. Pure: what happened goes in, the retry as it is now comes out.

    intent ──▶ sent ──▶ accepted ──▶ verifying ──▶ succeeded, failed, superseded, expired
                 │ └──▶ rejected (the platform said no), not_sent (no byte left)
                 └────▶ in_doubt ──▶ accepted (its effect was seen), superseded, not_sent (proven), held (a person)

A timeout is no failure and a 2xx no success: only what the platform later says about the dead letter is. What is in
doubt is never sent again by itself. The horizon after which an absent effect may prove anything is counted from the
moment of doubt, not from the intent: a call can leave as late as its ``send_by``. A person's word about a doubt waits
for the horizon and for one more look: an effect that shows by then counts for more, and a run that it made is known to
descend from the root.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from exporter.model import SUCCEEDED, DeadLetter, Result
from exporter.model.retries import Answer, Outcome, Retry, RetryState, Traits
from exporter.platform.retrying import Accepted, Effort, Look, Standing
from exporter.wire.errors import ApiError

#: A call may be written until so many seconds after its claim.
SEND_WITHIN = 10.0
#: An effect may show up to so many seconds after the doubt began: more than any request takes and a queue delays.
HORIZON = 900.0
#: Seconds between two looks at an open retry: at first, at most, and while a person has to decide.
LOOK_FIRST, LOOK_MOST, LOOK_HELD = 30.0, 300.0, 1800.0
#: The run that a call makes may seem to begin so much (seconds) before it: times are rounded, and clocks differ.
SKEW = 5.0


def sending(retry: Retry, *, now: float, theirs: float) -> Retry:
    """The call is about to be made; ``theirs`` is now on the platform's clock."""
    return replace(retry, state=RetryState.SENT, sent_at=now, sent_at_theirs=theirs, detail="the call is being made")


def answered(retry: Retry, accepted: Accepted, *, now: float) -> Retry:
    """The platform took the call. That it did says nothing about success."""
    retry = replace(retry, answered_at=now)
    if retry.dead_letter_id not in accepted.handles:
        return doubted(retry, now=now, detail="the platform took the call without naming this dead letter")
    handle = accepted.handles[retry.dead_letter_id]
    look_at = now + LOOK_FIRST
    return replace(
        retry, state=RetryState.ACCEPTED, handle=handle, look_at=look_at, detail="the platform took the call"
    )


def refused(retry: Retry, error: ApiError, answer: Answer, *, now: float) -> Retry:
    """The call failed in a way that tells what it did: nothing; or in one that does not.

    That a platform was busy, or did not accept our credential, says nothing of the dead letter and costs it nothing.
    """
    retry = replace(retry, answered_at=now)
    if not error.sent:
        return closed(retry, Outcome.NOT_SENT, now=now, detail=str(error))
    if answer is Answer.IN_DOUBT:
        return doubted(retry, now=now, detail=str(error))
    spared = "" if answer is Answer.REJECTED else answer.value
    return replace(closed(retry, Outcome.REJECTED, now=now, detail=str(error)), answer=answer, spared=spared)


def doubted(retry: Retry, *, now: float, detail: str) -> Retry:
    """Nobody knows whether the call had an effect. It may still be written until its ``send_by``."""
    since = max(now, retry.send_by)
    return replace(retry, state=RetryState.IN_DOUBT, doubt_at=since, look_at=now + LOOK_FIRST, detail=detail)


def resumed(retry: Retry, *, now: float) -> Retry:
    """After a crash or a stop: an intent may have been sent, for no write and its mark are one act."""
    if retry.state in (RetryState.INTENT, RetryState.SENT):
        return doubted(retry, now=now, detail="the exporter stopped in the middle of the call")
    return retry


def redated(retry: Retry, *, now: float) -> Retry:
    """An open retry whose times lie ahead was claimed while our clock was ahead: they move along with it."""
    moments = (retry.claimed_at, retry.sent_at, retry.answered_at, retry.send_by - SEND_WITHIN)
    doubted_at = 0.0 if retry.doubt_at is None else retry.doubt_at - SEND_WITHIN
    back = max(doubted_at, *(moment for moment in moments if moment is not None)) - now
    if not retry.is_open or back <= SKEW:
        return retry
    return replace(
        retry,
        claimed_at=retry.claimed_at - back,
        send_by=retry.send_by - back,
        sent_at=None if retry.sent_at is None else retry.sent_at - back,
        answered_at=None if retry.answered_at is None else retry.answered_at - back,
        doubt_at=None if retry.doubt_at is None else retry.doubt_at - back,
        look_at=None if retry.look_at is None else retry.look_at - back,
    )


def is_due(retry: Retry, *, now: float) -> bool:
    """Whether it is time to look at an open retry. A time further ahead than any is set was set by a wrong clock."""
    look_at = retry.look_at or 0.0
    return not now < look_at <= now + LOOK_HELD


def closed(retry: Retry, outcome: Outcome, *, now: float, detail: str) -> Retry:
    return replace(retry, outcome=outcome, closed_at=now, look_at=None, detail=detail)


def seen(retry: Retry, look: Look, traits: Traits, *, asked_at: float, now: float) -> Retry:
    """What a look at the platform, begun at ``asked_at``, says about an open retry."""
    if not retry.is_open or retry.state in (RetryState.INTENT, RetryState.SENT):
        return retry
    efforts = [effort for effort in look.efforts if effort.ours is not False]
    runs = {effort.run_id for effort in efforts if effort.run_id is not None and effort.run_id != retry.run_id}
    retry = replace(retry, new_runs=tuple(sorted(runs | set(retry.new_runs))), look_at=_next_look(retry, now))
    ours = [effort for effort in efforts if effort.ours]
    if ours:
        return _verified(retry, ours, now=now)
    if efforts:
        return closed(retry, Outcome.SUPERSEDED, now=now, detail="it was run again, and and by whom is unknown")
    if look.standing is Standing.GONE:
        return closed(retry, Outcome.SUPERSEDED, now=now, detail="the dead letter is gone")
    if look.standing is Standing.RESOLVED:
        return closed(retry, Outcome.SUPERSEDED, now=now, detail="somebody else resolved it")
    if retry.word is not None:
        return _heeded(retry, retry.word, look, asked_at=asked_at, now=now)
    if retry.state is RetryState.IN_DOUBT:
        return _unseen(retry, look, traits, asked_at=asked_at, now=now)
    if retry.state is RetryState.HELD or now < _deadline(retry):
        return retry
    if traits.handle == "inferred":  # a run that nobody could attribute may still come
        return _held(retry, now=now, detail="the platform took the call, and no effect of it was ever found")
    return closed(retry, Outcome.EXPIRED, now=now, detail="no verdict by the deadline")


def _verified(retry: Retry, ours: Sequence[Effort], *, now: float) -> Retry:
    """Its effect was seen."""
    last = max(ours, key=lambda effort: (effort.began_at or 0.0, effort.id))
    if last.result is None:
        if now >= _deadline(retry):
            return closed(retry, Outcome.EXPIRED, now=now, detail=f"{last.id} did not end by the deadline")
        return replace(retry, state=RetryState.VERIFYING, detail=f"{last.id} is running")
    evidence = f"{last.id} ended with {last.result}"
    if last.result is Result.UNKNOWN:
        return closed(retry, Outcome.EXPIRED, now=now, detail=evidence)
    good = last.result in SUCCEEDED and not (last.result is Result.WARNING and retry.warnings_fail)
    return closed(retry, Outcome.SUCCEEDED if good else Outcome.FAILED, now=now, detail=evidence)


def _unseen(retry: Retry, look: Look, traits: Traits, *, asked_at: float, now: float) -> Retry:
    """In doubt, and nothing happened to the dead letter, so far."""
    late = max(0.0, (traits.absence or 0.0) - HORIZON)
    if look.standing is not Standing.DEAD or asked_at < horizon(retry) + late:
        return retry
    if traits.absence is not None:
        return closed(retry, Outcome.NOT_SENT, now=now, detail="nothing came of the call, and it would have by now")
    return _held(retry, now=now, detail="whether the call had an effect is unknown; a person has to look")


def _heeded(retry: Retry, word: Outcome, look: Look, *, asked_at: float, now: float) -> Retry:
    """A person has settled it, and nothing happened to the dead letter, so far."""
    if look.standing is not Standing.DEAD or asked_at < horizon(retry):
        return retry
    return closed(retry, word, now=now, detail=f"released by {retry.word_by}")


def horizon(retry: Retry) -> float:
    """Until when an effect of its call may still show."""
    return max(retry.send_by, retry.doubt_at or 0.0) + HORIZON


def maker(letter: DeadLetter, began_at: float | None, calls: Iterable[Retry]) -> Retry | None:
    """The call of ours whose work the failed run of a dead letter may be, by the times alone; the last, of several.

    For platforms on which a retry is another run. What was answered does not count: a refusal may have been misread, a
    person wrong. So a run of the workflow that begins while an effect may show is never one without a past.
    ``began_at`` is when the run began, on the platform's clock.
    """
    found = [
        call for call in calls if call.workflow_id == letter.workflow_id and _may_have_made(call, letter, began_at)
    ]
    return max(found, key=lambda call: (call.sent_at_theirs or 0.0, call.id), default=None)


def _may_have_made(call: Retry, letter: DeadLetter, began_at: float | None) -> bool:
    never_left = call.outcome is Outcome.NOT_SENT and call.doubt_at is None and call.word is None
    if call.shadow or never_left or call.sent_at_theirs is None:
        return False
    if call.handle is not None and call.handle == letter.run_id:
        return True
    first = call.sent_at_theirs - SKEW
    last = call.sent_at_theirs + horizon(call) - (call.claimed_at if call.sent_at is None else call.sent_at)
    if began_at is None:  # it cannot have begun after it failed
        return first <= letter.opened_at <= last + call.deadline
    return first <= began_at <= last


def _held(retry: Retry, *, now: float, detail: str) -> Retry:
    return replace(retry, state=RetryState.HELD, look_at=now + LOOK_HELD, detail=detail)


def _deadline(retry: Retry) -> float:
    return (retry.claimed_at if retry.sent_at is None else retry.sent_at) + retry.deadline


def _next_look(retry: Retry, now: float) -> float:
    if retry.state is RetryState.HELD and retry.word is None:
        return now + LOOK_HELD
    since = retry.claimed_at if retry.sent_at is None else retry.sent_at
    return now + min(LOOK_MOST, max(LOOK_FIRST, (now - since) / 4))


def released(retry: Retry, *, sent: bool, who: str, now: float) -> Retry:
    """A person settles an open question: ``sent`` is whether the call had an effect, or may have had.

    It closes with the first look after the horizon: now, if that has passed.
    """
    word = Outcome.SUPERSEDED if sent else Outcome.NOT_SENT
    detail = f"released by {who}; it closes once the platform was read again"
    return replace(retry, word=word, word_by=who, look_at=now, detail=detail)
