"""Decisions, durations and moments in the words that people use."""

import pytest

from exporter.model.retries import Reason, Verb
from exporter.model import words


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 seconds"), (1, "1 second"), (90, "90 seconds"), (120, "2 minutes"), (7300, "2 hours"), (200_000, "2 days")],
)
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert words.span(seconds) == said


def test_no_decision_is_shown_as_a_code() -> None:
    for verb in Verb:
        for reason in Reason:
            facts = {
                "decision": verb.value,
                "reason": reason.value,
                "detail": "",
                "next_at": None,
                "awaits_approval": False,
                "mode": "enforce",
            }
            said = words.decision(facts, 0.0)
            if (verb.value, reason.value) in words._PLAIN:
                assert ": " + reason.value not in said
                assert words.label(f"{verb}: {reason}") in (said, said.replace("would be retried now", ""))


def test_moments_to_come_are_times_of_the_day() -> None:
    now = 1_800_000_000.0  # 08:00
    assert words.at(now + 60, now) == "08:01:00"
    assert words.at(now + 3600, now) == "09:00"
    assert words.at(now + 86400, now) == "08:00 on 16 January"
    cooling = {
        "decision": "wait",
        "reason": "gate",
        "detail": "its group cools off: retrying failed once",
        "next_at": now + 3600,
        "awaits_approval": False,
        "mode": "enforce",
    }
    assert words.decision(cooling, now) == "its group cools off, until 09:00"
