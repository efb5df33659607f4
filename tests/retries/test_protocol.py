"""What becomes of a retry: every answer to the call, every thing a look may show, and the two surprising mistakes."""

from dataclasses import replace
from typing import Any

import pytest

from exporter.model import Result
from exporter.model.retries import Answer, Outcome, Retry, RetryState, Traits
from exporter.platform.retrying import MEANINGS, Accepted, Effort, Look, Meaning, Standing, meaning
from exporter.retries import protocol
from exporter.retries.protocol import HORIZON
from exporter.wire.errors import ApiError, ErrorKind
from tests.retries.made import NOW, TRAITS, retry, sent

ACCEPTED = sent(state=RetryState.ACCEPTED, look_at=NOW + 30)
DOUBT = sent(state=RetryState.IN_DOUBT, doubt_at=NOW + 10)
HELD = sent(state=RetryState.HELD)
SAID = protocol.released(DOUBT, sent=False, who="ann", now=NOW + 20)
INFERRED = replace(TRAITS, handle="inferred")
PROVABLE = replace(TRAITS, absence=600.0)


def error(status: int | None = None, *, detail: str = "no", sent: bool = True, **more: Any) -> ApiError:
    return ApiError(ErrorKind.UNAVAILABLE, endpoint="POST /retry", detail=detail, status=status, sent=sent, **more)


MEANT = {
    400: Answer.REJECTED, 401: Answer.DENIED, 403: Answer.REJECTED, 404: Answer.REJECTED, 405: Answer.REJECTED,
    409: Answer.BUSY, 412: Answer.BUSY, 422: Answer.REJECTED, 423: Answer.BUSY, 429: Answer.BUSY,
}  # fmt: skip


@pytest.mark.parametrize("status", [None, *range(200, 600)])
def test_what_every_status_means_and_costs(status: int | None) -> None:
    answer = meaning(error(status))
    assert answer is MEANT.get(status or 0, Answer.IN_DOUBT)
    after = protocol.refused(sent(), error(status), answer, now=NOW + 2)
    if answer is Answer.IN_DOUBT:
        assert (after.outcome, after.state, after.counts) == (None, RetryState.IN_DOUBT, True)
    else:
        assert (after.outcome, after.closed_at) == (Outcome.REJECTED, NOW + 2)
        assert after.counts is (answer is Answer.REJECTED)


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (error(503), Answer.IN_DOUBT),
        (error(503, retry_after=30.0), Answer.BUSY),
        (error(500, retry_after=30.0), Answer.IN_DOUBT),
        (error(403, detail="Insufficient scope: dlqs:write"), Answer.DENIED),
        (error(403, detail="Your License does not allow for it"), Answer.DENIED),
        (error(403, detail="You may not retry this run"), Answer.REJECTED),
    ],
)
def test_what_an_answer_says_besides_its_status(said: ApiError, answer: Answer) -> None:
    assert meaning(said) is answer


def test_a_platform_has_its_own_words_first() -> None:
    own = (Meaning(409, Answer.REJECTED, words=("already healed",)), *MEANINGS)
    assert meaning(error(409, detail="Already healed"), own) is Answer.REJECTED
    assert meaning(error(409, detail="queued"), own) is Answer.BUSY


def test_a_call_in_doubt_may_still_be_written() -> None:
    after = protocol.refused(sent(), error(None), Answer.IN_DOUBT, now=NOW + 2)
    assert after.doubt_at == after.send_by  # it may still be written until then


def test_what_never_left_was_not_sent() -> None:
    after = protocol.refused(sent(), error(sent=False), Answer.IN_DOUBT, now=NOW + 2)
    assert after.outcome is Outcome.NOT_SENT
    assert not after.counts


def test_an_answer_is_no_success() -> None:
    after = protocol.answered(sent(), Accepted(handles={"d1": "4711"}), now=NOW + 2)
    assert (after.state, after.outcome, after.handle) == (RetryState.ACCEPTED, None, "4711")
    unnamed = protocol.answered(sent(), Accepted(handles={"d2": None}), now=NOW + 2)
    assert unnamed.state is RetryState.IN_DOUBT


@pytest.mark.parametrize("state", [RetryState.INTENT, RetryState.SENT])
def test_after_a_crash_intents_and_sends_are_in_doubt(state: RetryState) -> None:
    after = protocol.resumed(retry(state=state), now=NOW + 500)
    assert (after.state, after.doubt_at) == (RetryState.IN_DOUBT, NOW + 500)
    assert protocol.resumed(retry(state=state), now=NOW + 1).doubt_at == NOW + 10


@pytest.mark.parametrize("state", [RetryState.ACCEPTED, RetryState.VERIFYING, RetryState.IN_DOUBT, RetryState.HELD])
def test_after_a_crash_the_rest_goes_on(state: RetryState) -> None:
    assert protocol.resumed(sent(state=state), now=NOW + 500) == sent(state=state)


def look(standing: Standing = Standing.DEAD, *efforts: Effort) -> Look:
    return Look(at=NOW, standing=standing, efforts=efforts)


def effort(ours: bool | None = True, result: Result | None = None, **more: Any) -> Effort:
    return Effort(id="e1", began_at=NOW + 3, ours=ours, result=result, **more)


LATE, DEADLINE = NOW + 10 + HORIZON, NOW + 1 + 7200
SEEN: list[tuple[str, Retry, Look, Traits, float, RetryState | Outcome]] = [
    ("running", ACCEPTED, look(Standing.BUSY, effort()), TRAITS, NOW + 60, RetryState.VERIFYING),
    ("ended well", ACCEPTED, look(Standing.RESOLVED, effort(result=Result.SUCCESS)), TRAITS, NOW + 60,
        Outcome.SUCCEEDED),
    ("warnings fail", ACCEPTED, look(Standing.DEAD, effort(result=Result.WARNING)), TRAITS, NOW + 60, Outcome.FAILED),
    ("warnings may do", replace(ACCEPTED, warnings_fail=False), look(Standing.DEAD, effort(result=Result.WARNING)),
        TRAITS, NOW + 60, Outcome.SUCCEEDED),
    ("failed", ACCEPTED, look(Standing.DEAD, effort(result=Result.FAILURE)), TRAITS, NOW + 60, Outcome.FAILED),
    ("cancelled", ACCEPTED, look(Standing.DEAD, effort(result=Result.CANCELLED)), TRAITS, NOW + 60, Outcome.FAILED),
    ("ended, nobody knows how", ACCEPTED, look(Standing.DEAD, effort(result=Result.UNKNOWN)), TRAITS, NOW + 60,
        Outcome.EXPIRED),
    ("nobody can tell whose", ACCEPTED, look(Standing.DEAD, effort(None)), TRAITS, NOW + 60, Outcome.SUPERSEDED),
    ("another's", ACCEPTED, look(Standing.BUSY, effort(False)), TRAITS, NOW + 60, RetryState.ACCEPTED),
    ("another resolved it", ACCEPTED, look(Standing.RESOLVED, effort(False, Result.SUCCESS)), TRAITS, NOW + 60,
        Outcome.SUPERSEDED),
    ("resolved without an effect of ours", ACCEPTED, look(Standing.RESOLVED), TRAITS, NOW + 60, Outcome.SUPERSEDED),
    ("gone", ACCEPTED, look(Standing.GONE), TRAITS, NOW + 60, Outcome.SUPERSEDED),
    ("nothing yet", ACCEPTED, look(), TRAITS, NOW + 60, RetryState.ACCEPTED),
    ("nothing by the deadline", ACCEPTED, look(), TRAITS, DEADLINE, Outcome.EXPIRED),
    ("nothing to recognise by the deadline", ACCEPTED, look(), INFERRED, DEADLINE, RetryState.HELD),
    ("running at the deadline", ACCEPTED, look(Standing.BUSY, effort()), TRAITS, DEADLINE, Outcome.EXPIRED),
    ("doubt: its effect", DOUBT, look(Standing.BUSY, effort()), TRAITS, NOW + 60, RetryState.VERIFYING),
    ("doubt: its effect ended", DOUBT, look(Standing.DEAD, effort(result=Result.FAILURE)), TRAITS, NOW + 60,
        Outcome.FAILED),
    ("doubt: nobody can tell whose", DOUBT, look(Standing.DEAD, effort(None)), TRAITS, NOW + 60, Outcome.SUPERSEDED),
    ("doubt: gone", DOUBT, look(Standing.GONE), TRAITS, NOW + 60, Outcome.SUPERSEDED),
    ("doubt: too early to tell", DOUBT, look(), PROVABLE, LATE - 1, RetryState.IN_DOUBT),
    ("doubt: absence proves", DOUBT, look(), PROVABLE, LATE, Outcome.NOT_SENT),
    ("doubt: absence proves later", DOUBT, look(), replace(TRAITS, absence=7200.0), LATE, RetryState.IN_DOUBT),
    ("doubt: absence proves nothing", DOUBT, look(), TRAITS, LATE, RetryState.HELD),
    ("doubt: busy tells nothing", DOUBT, look(Standing.BUSY), PROVABLE, LATE + 9999, RetryState.IN_DOUBT),
    ("held: waits for a person", HELD, look(), TRAITS, DEADLINE + 1, RetryState.HELD),
    ("held: its effect after all", HELD, look(Standing.DEAD, effort(result=Result.SUCCESS)), TRAITS, NOW + 9999,
        Outcome.SUCCEEDED),
    ("held: resolved", HELD, look(Standing.RESOLVED), TRAITS, NOW + 9999, Outcome.SUPERSEDED),
    ("released: too early", SAID, look(), TRAITS, LATE - 1, RetryState.IN_DOUBT),
    ("released: a word is heeded", SAID, look(), TRAITS, LATE, Outcome.NOT_SENT),
    ("released: as the word is", protocol.released(HELD, sent=True, who="ann", now=NOW + 9999), look(), TRAITS,
        NOW + 9999, Outcome.SUPERSEDED),
    ("released: its effect after all", SAID, look(Standing.BUSY, effort()), TRAITS, NOW + 60, RetryState.VERIFYING),
    ("released: nobody can tell whose", SAID, look(Standing.DEAD, effort(None)), TRAITS, LATE, Outcome.SUPERSEDED),
    ("released: busy tells nothing", SAID, look(Standing.BUSY), TRAITS, LATE + 9999, RetryState.IN_DOUBT),
]  # fmt: skip


@pytest.mark.parametrize(("_", "before", "looked", "traits", "now", "wanted"), SEEN, ids=[row[0] for row in SEEN])
def test_what_a_look_says(
    _: str, before: Retry, looked: Look, traits: Traits, now: float, wanted: RetryState | Outcome
) -> None:
    after = protocol.seen(before, looked, traits, asked_at=now, now=now)
    assert (after.outcome or after.state) == wanted, after.detail
    assert (after.closed_at is None) == (after.outcome is None)
    if after.is_open:
        assert after.look_at is not None
        assert after.look_at > now


def test_what_was_asked_before_the_horizon_proves_nothing_after_it() -> None:
    after = protocol.seen(DOUBT, look(), PROVABLE, asked_at=LATE - 1, now=LATE + 30)
    assert after.state is RetryState.IN_DOUBT
    assert after.outcome is None


def test_runs_that_an_effect_made_are_remembered_whosever_they_are() -> None:
    efforts = (effort(None, run_id="r2"), Effort(id="e2", ours=None, run_id="r3"), effort(False, run_id="r4"))
    after = protocol.seen(DOUBT, look(Standing.DEAD, *efforts), TRAITS, asked_at=NOW, now=NOW + 60)
    assert after.new_runs == ("r2", "r3")
    same = protocol.seen(ACCEPTED, look(Standing.BUSY, effort(run_id="r1")), TRAITS, asked_at=NOW, now=NOW + 60)
    assert same.new_runs == ()  # resumed in place


def test_what_is_closed_stays_as_it_is() -> None:
    done = protocol.closed(ACCEPTED, Outcome.FAILED, now=NOW, detail="failed")
    assert protocol.seen(done, look(Standing.GONE), TRAITS, asked_at=NOW, now=NOW + 9) == done


def test_a_persons_word_has_the_platform_read_at_once() -> None:
    said = protocol.released(HELD, sent=True, who="ann", now=NOW + 60)
    assert (said.state, said.outcome, said.look_at) == (RetryState.HELD, None, NOW + 60)
    changed = protocol.released(said, sent=False, who="bob", now=NOW + 90)
    after = protocol.seen(changed, look(), TRAITS, asked_at=LATE, now=LATE)
    assert (after.outcome, after.detail) == (Outcome.NOT_SENT, "released by bob")


# Two mistakes that look right. Each test plays the history that shows it, with the protocol as it is and with the
# mistake put back: it fails with the mistake, so it would fail here.


def executions(*, doubt_from_intent: bool) -> int:
    """A process stalls before it writes, and the platform delivers late, but in time. Nothing is seen meanwhile.

    The doubt begins when the connection breaks, after the write. The effect comes ``absence`` seconds after it: as late
    as the platform may. Absence read before that must not lead to another call.
    """
    claimed = sent()
    broken_at = NOW + 9.0
    doubted = protocol.refused(claimed, error(None), Answer.IN_DOUBT, now=broken_at)
    if doubt_from_intent:
        doubted = replace(doubted, doubt_at=claimed.claimed_at, send_by=claimed.claimed_at)
    effect_at = broken_at + HORIZON - 0.5
    calls = 1
    for asked_at in (NOW + HORIZON, NOW + HORIZON + 5):  # the first looks that could find nothing
        if asked_at < effect_at and doubted.is_open:
            doubted = protocol.seen(doubted, look(), replace(TRAITS, absence=HORIZON), asked_at=asked_at, now=asked_at)
    if not doubted.is_open and not doubted.counts:
        calls += 1  # the number is free again
    return calls


def test_the_horizon_is_counted_from_the_doubt() -> None:
    assert executions(doubt_from_intent=False) == 1
    assert executions(doubt_from_intent=True) == 2
