"""Policies over recorded dead letters: what they would have done, when, and what became of it."""

from typing import Any

import pytest

from exporter.model import ResolvedBy
from exporter.model.backtest import account, live, worth
from exporter.model.matchers import Matcher, read
from exporter.model.policy import Rules
from exporter.model.retries import Action, Mode, Outcome, RetryState, Verb
from exporter.model.windows import parse_window
from tests.retries.made import DAY, HOUR, NOW, letter, policy, retry, rules, subject

OPENED = NOW - DAY
SHADOW: dict[str, Any] = {"mode": Mode.SHADOW}


def opened(**changes: Any) -> Any:
    return subject(letter=letter(opened_at=OPENED, **changes))


@pytest.mark.parametrize(
    ("made", "until", "first_after", "calls"),
    [
        # 15 min, then 45 min, then 2 h 15: three retries and no more
        (rules(**SHADOW), NOW, 900.0, 3),
        (rules(**SHADOW), OPENED + 4000, 900.0, 2),
        (rules(**SHADOW), OPENED + 899, None, 0),
        (rules(policy({"age": {"gte": "6h"}}), **SHADOW), NOW, 6 * HOUR, 3),
        (rules(policy({"age": {"gt": "6h"}}), **SHADOW), NOW, 6 * HOUR + 0.001, 3),
        (rules(policy({"age": {"lt": "30m"}}), **SHADOW), NOW, 900.0, 1),
        (rules(policy(matcher=Matcher(none=(read({"age": {"lt": "2h"}}, ""),))), **SHADOW), NOW, 2 * HOUR, 3),
        (rules(policy({"error.class": "auth"}), **SHADOW), NOW, None, 0),
        (rules(policy(mode=Mode.OFF), **SHADOW), NOW, None, 0),
        (rules(policy(approve="each"), **SHADOW), NOW, 900.0, 3),
        (rules(policy(give_up_after=2 * HOUR), **SHADOW), NOW, 900.0, 2),
        (rules(policy({"retries": 0}, retries=5), **SHADOW), NOW, 900.0, 1),
    ],
)
def test_a_dead_letter_is_lived_through_again(made: Rules, until: float, first_after: float | None, calls: int) -> None:
    lived = live(opened(resolved_at=until, resolved_by=ResolvedBy.MANUAL), made, until=until)
    assert (lived.first_at, lived.calls) == (None if first_after is None else OPENED + first_after, calls)


def test_hours_are_waited_for() -> None:
    window = parse_window("UTC", ["03:00-04:00"], [])
    lived = live(opened(), rules(policy(window=window), **SHADOW), until=NOW)
    assert lived.first_at is not None
    assert lived.first_at % DAY == 3 * HOUR


def test_time_outside_the_hours_does_not_age() -> None:
    window = parse_window("UTC", ["03:00-04:00"], [])
    short = policy(window=window, give_up_after=2 * HOUR)
    lived = live(opened(), rules(short, **SHADOW), until=NOW)
    assert (lived.first_at is not None, lived.calls) == (True, 2)


def test_who_owned_what_and_what_became_of_it() -> None:
    def one(id: str, **changes: Any) -> Any:
        return subject(letter=letter(id=id, opened_at=OPENED, **changes), root=id)

    made = rules(
        policy({"error.class": "network", "workflow.id": "w1"}, name="net"),
        policy({"workflow.id": "w2"}, name="ask", action=Action.ESCALATE),
    )
    ours = retry(id="t", dead_letter_id="a", outcome=Outcome.SUCCEEDED, state=RetryState.VERIFYING, policy="old")
    theirs = retry(id="u", dead_letter_id="f", outcome=Outcome.SUCCEEDED, approved_by="ann")
    subjects = [
        one("a", resolved_at=NOW, resolved_by=ResolvedBy.RETRY),
        one("b", resolved_at=OPENED + HOUR, resolved_by=ResolvedBy.MANUAL),
        one("c", resolved_at=OPENED + 60, resolved_by=ResolvedBy.PLATFORM),  # before a retry was due
        one("d"),
        one("e", workflow_id="w2"),
        one("f", resolved_at=NOW, resolved_by=ResolvedBy.RETRY),
        one("g", workflow_id="w3"),
    ]
    net, ask, none = account(subjects, made, [ours, theirs], now=NOW)
    assert (net.owned, net.retried, net.calls, net.in_time) == (5, 4, 3 + 1 + 3 + 3, 1)
    assert net.ends == {"retry, policy old": 1, "retry, approved by ann": 1, "manual": 1, "open": 1}
    assert (ask.owned, ask.retried, ask.in_time) == (1, 0, 0)
    assert (none.policy, none.owned) == ("", 1)


def test_what_retries_of_an_error_are_worth() -> None:
    def done(id: str, outcome: Outcome, after: float = 0.0, **changes: Any) -> Any:
        return retry(
            id=id, dead_letter_id=id, outcome=outcome, failed_at=NOW, sent_at=NOW + 9e5, sent_at_theirs=NOW + after,
            error_class="network", fingerprint="f1", **changes,
        )  # fmt: skip

    made = [
        done("a", Outcome.SUCCEEDED, 100),
        done("b", Outcome.SUCCEEDED, 300),
        done("c", Outcome.SUCCEEDED, 900),
        done("d", Outcome.SUCCEEDED, 5, recurred=True),
        done("e", Outcome.FAILED),
        done("f", Outcome.EXPIRED),
        *(done(o.value, o) for o in (Outcome.REJECTED, Outcome.SUPERSEDED, Outcome.NOT_SENT)),
        done("g", Outcome.SUCCEEDED, shadow=True),
        retry(id="h", outcome=Outcome.FAILED, error_class="auth", fingerprint="f2"),
        retry(id="i", error_class="auth", fingerprint="f2"),  # open
    ]
    network, auth = worth(made, {("make-eu", "a"): "connect ETIMEDOUT", ("make-eu", "f"): None})
    assert (network.retries, network.succeeded, network.recurred, network.seconds) == (6, 3, 1, 300)
    assert network.message == "connect ETIMEDOUT"
    assert (auth.error_class, auth.retries, auth.succeeded, auth.seconds, auth.message) == ("auth", 1, 0, None, None)


def test_a_walk_ends_whatever_the_ages() -> None:
    many = [policy({"age": {"gte": f"{n}m", "lt": f"{n + 1}m"}}, name=str(n), action=Action.HOLD) for n in range(99)]
    lived = live(opened(), rules(*many, **SHADOW), until=NOW)
    assert (lived.calls, lived.last) == (0, Verb.HOLD)
