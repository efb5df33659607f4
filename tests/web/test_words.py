"""Decisions, durations and moments in the words that people use: of commands, JSON and pages alike."""

from itertools import product

import pytest

from exporter.model import words
from exporter.model.retries import Decision, Mode, Outcome, Reason, RetryState, Verb
from exporter.retries.control import decision_facts


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-5, "0 seconds"),
        (0, "0 seconds"),
        (1, "1 second"),
        (59.7, "1 minute"),
        (60, "1 minute"),
        (90, "90 seconds"),
        (120, "2 minutes"),
        (3590, "1 hour"),
        (3600, "1 hour"),
        (5400, "90 minutes"),
        (7199, "2 hours"),
        (7300, "2 hours"),
        (86_400, "1 day"),
        (100_000, "28 hours"),
        (172_799, "2 days"),
        (200_000, "2 days"),
        (1.7e9, "19,676 days"),
    ],
)
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert words.span(seconds) == said


def test_a_moment_to_come_is_not_said_to_be_just_now() -> None:
    assert words.ago(1000.0, 1000.5) == "just now"
    assert words.ago(1030.0, 1000.0) == "just now"  # no two clocks agree
    assert words.ago(1000.0, 1600.0) == "10 minutes ago"
    assert words.ago(8200.0, 1000.0) == "2 hours ahead of our clock"


def test_a_moment_that_no_calendar_holds_is_said_all_the_same() -> None:
    assert words.moment(1_700_000_000.0) == "2023-11-14 22:13:20 UTC"
    assert words.moment(1.7e12) == "1700000000000 seconds after 1970"
    assert words.moment(-1e18) == "-1000000000000000000 seconds after 1970"


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (("wait", "backoff", "before retry 2"), "waits for its next retry (before retry 2)"),
        (("wait", "held", "its retry 0a is accepted"), "waits for its retry to end"),
        (("retry", "due", "nothing refuses"), "is retried next"),
        (("hold", "held", "hold by ann"), "held by ann"),
        (("wait", "mode", "waits for approval"), "waits for approval"),
        (("hold", "no_policy", ""), "not retried: no policy covers it"),
        (("quarantine", "exhausted", "3 of 3 retries are used"), "given up: 3 of 3 retries are used"),
        (("dance", "held", ""), ""),
    ],
)
def test_what_was_decided_is_said_in_the_same_words(record: tuple[str, str, str], said: str) -> None:
    decision, reason, detail = record
    known = {"decision": decision, "reason": reason, "mode": "enforce", "detail": detail}
    assert words.was_decided(known) == said
    assert words.was_decided({}) == ""


def test_no_decision_is_shown_as_a_code() -> None:
    for (verb, reason), mode, detail in product(words._DECIDED, Mode, ("", "because of something")):
        decision = Decision(verb=verb, reason=reason, mode=mode, detail=detail)
        for said in (words.in_words(decision), words.in_short(decision), words.until(decision_facts(decision), 0.0)):
            assert "_" not in said
            assert f"{verb}: {reason}" not in said


def test_what_can_be_decided_has_words() -> None:
    """Every reason; that each verb it comes with is known, the tests of the ladder see."""
    assert {reason for _, reason in words._DECIDED} == set(Reason)
    assert {verb for verb, _ in words._DECIDED} == set(Verb)


def test_what_became_of_something_and_modes_have_words() -> None:
    for state in (*Outcome, *RetryState):
        assert state in words._BECAME
    assert {words.mode(mode) for mode in Mode} == set(words._MODES.values())
    assert words.became("not_heard_of") == "not heard of"


def test_moments_to_come_are_times_of_the_day() -> None:
    now = 1_800_000_000.0  # 08:00
    assert words.at(now + 60, now) == "08:01:00"
    assert words.at(now + 3600, now) == "09:00"
    assert words.at(now + 86400, now) == "08:00 on 16 January"
    cooling = Decision(
        verb=Verb.WAIT, reason=Reason.GATE, detail="its group cools off: retrying failed once", next_at=now + 3600
    )
    assert words.until(decision_facts(cooling), now) == "its group cools off, until 09:00 UTC"
    assert words.until(None, now) == "not decided yet"


@pytest.mark.parametrize(
    ("detail", "verb", "said"),
    [
        ("hold by ann: ask first", Verb.HOLD, "held by ann: ask first"),
        ("quarantine by engine", Verb.QUARANTINE, "in quarantine by engine"),
        ("its retry 0a is accepted", Verb.WAIT, "waits for its retry to end"),
        ("its retry 0a is held", Verb.HOLD, "waits: nobody knows yet what its retry did"),
        (
            "another dead letter's retry 0a is sent",
            Verb.WAIT,
            "waits for a retry of another dead letter of its workflow to end",
        ),
    ],
)
def test_what_holds_a_dead_letter_is_named(detail: str, verb: Verb, said: str) -> None:
    assert words.in_words(Decision(verb=verb, reason=Reason.HELD, mode=Mode.ENFORCE, detail=detail)) == said
