"""Policies over what was recorded: what they would have retried, and what became of it; whether retries pay. Pure.

A dead letter is lived through again from its opening to its end, with the decision the engine would have made, in
shadow: back-off, hours and ages count. What depends on other dead letters or on people (pace, gates, budgets, storms,
holds) does not, and every retry is taken to have failed, because nobody knows what it would have done. So the calls
counted are the most there could have been.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from msgspec import structs

from exporter.model import DeadLetter
from exporter.model.decision import climb
from exporter.model.policy import Policy, Rules
from exporter.model.retries import Mode, Outcome, Retry, RetryState, Verb
from exporter.model.subject import Subject

#: Decisions made of one dead letter at most.
STEPS_MAX = 500
#: What is no longer waiting for anything: how retries end that were really tried.
_TRIED = (Outcome.SUCCEEDED, Outcome.FAILED, Outcome.EXPIRED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lived:
    """What policies would have done about one dead letter."""

    policy: str  # the first that would have retried it, or else its last owner; "" for none
    first_at: float | None  # when the first retry was due
    calls: int
    last: Verb


@dataclass(slots=True, kw_only=True)
class Account:
    """What one policy would have done, over all of its dead letters."""

    policy: str
    action: str
    owned: int = 0
    retried: int = 0
    calls: int = 0
    in_time: int = 0  # resolved before the first retry was due
    ends: dict[str, int] = field(default_factory=dict)  # of those retried: what really became of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """Retries of one kind of error: how often they worked, and how long after the failure those were sent."""

    source: str
    error_class: str
    fingerprint: str
    message: str | None  # of one of them, redacted
    retries: int
    succeeded: int
    recurred: int  # of these: failed again soon, so they count as no success
    seconds: float | None  # median, from the failure to the call that worked


def live(subject: Subject, rules: Rules, *, until: float) -> Lived:
    """One dead letter from its opening to ``until``, when it was resolved or when history ends."""
    letter = structs.replace(subject.letter, resolved_at=None, resolved_by=None)
    edges = sorted(letter.opened_at + age for age in _ages(rules.policies))
    now, first_at, owner, last = letter.opened_at, None, "", Verb.HOLD
    history: list[Retry] = []
    waited = 0.0
    for _ in range(STEPS_MAX):
        ladder = climb(replace(subject, letter=letter, history=tuple(history), waited=waited), rules, now)
        decision, last = ladder.decision, ladder.decision.verb
        if decision.verb is Verb.RETRY:
            first_at = now if first_at is None else first_at
            history.append(_failed(subject, decision.policy, len(history) + 1, now))
        if first_at is None or not owner:
            owner = decision.policy
        later = [edge for edge in edges if edge > now]
        if decision.next_at is not None and decision.next_at > now:
            later.append(decision.next_at)
        if decision.verb is Verb.RETRY:
            continue
        if not later or min(later) >= until:
            break
        waited += 0.0 if decision.ages else min(later) - now
        now = min(later)
    return Lived(policy=owner, first_at=first_at, calls=len(history), last=last)


def _ages(policies: Iterable[Policy]) -> set[float]:
    """Ages at which a dead letter may come to another policy."""
    return {
        condition.values[0] + beyond
        for policy in policies
        for way in (policy.matcher.match, *policy.matcher.any, *policy.matcher.none)
        for condition in way
        if condition.field == "age"
        for beyond in (0.0, 0.001)
    }


def _failed(subject: Subject, policy: str, ordinal: int, now: float) -> Retry:
    letter = subject.letter
    return Retry(
        id=f"backtest-{ordinal}",
        source=subject.source,
        workflow_id=letter.workflow_id,
        dead_letter_id=letter.id,
        run_id=letter.run_id,
        attempt=letter.attempt,
        opened_at=letter.opened_at,
        root=subject.root,
        ordinal=ordinal,
        policy=policy,
        policy_hash="",
        group="",
        state=RetryState.VERIFYING,
        outcome=Outcome.FAILED,
        failed_at=letter.opened_at,
        claimed_at=now,
        send_by=now,
        deadline=0.0,
        closed_at=now,
    )


def account(subjects: Iterable[Subject], rules: Rules, retries: Sequence[Retry], *, now: float) -> list[Account]:
    """Every policy in order, and last what none owns; ``retries`` are the real ones, which say who fixed what."""
    rules = replace(rules, mode=Mode.SHADOW)  # whoever is off stays off
    fixed = {(one.source, one.dead_letter_id): one for one in retries if one.outcome is Outcome.SUCCEEDED}
    accounts = {policy.name: Account(policy=policy.name, action=policy.action.value) for policy in rules.policies}
    accounts[""] = Account(policy="", action="hold")
    for subject in subjects:
        letter = subject.letter
        until = now if letter.resolved_at is None else letter.resolved_at
        lived = live(subject, rules, until=until)
        one = accounts[lived.policy]
        one.owned += 1
        one.calls += lived.calls
        if lived.first_at is not None:
            one.retried += 1
            end = _end(letter, fixed.get((subject.source, letter.id)))
            one.ends[end] = one.ends.get(end, 0) + 1
        elif letter.resolved_at is not None and one.action == "retry":
            one.in_time += 1
    return list(accounts.values())


def _end(letter: DeadLetter, retry: Retry | None) -> str:
    """What really became of a dead letter, and by whom."""
    if letter.resolved_by is None:
        return "open"
    if retry is None or letter.resolved_by != "retry":
        return letter.resolved_by.value
    return f"retry, approved by {retry.approved_by}" if retry.approved_by else f"retry, policy {retry.policy}"


def worth(retries: Iterable[Retry], messages: Mapping[tuple[str, str], str | None]) -> list[Worth]:
    """What retries were good for, by kind of error, the most frequent first.

    ``messages`` has the text of the error of dead letters, by source and id.
    """
    kinds: dict[tuple[str, str, str], list[Retry]] = {}
    for retry in retries:
        if retry.outcome in _TRIED and not retry.shadow:
            kinds.setdefault((retry.source, retry.error_class, retry.fingerprint), []).append(retry)
    found = [_worth(*kind, members, messages) for kind, members in kinds.items()]
    return sorted(found, key=lambda one: (-one.retries, one.source, one.error_class, one.fingerprint))


def _worth(
    source: str,
    error_class: str,
    fingerprint: str,
    members: Sequence[Retry],
    messages: Mapping[tuple[str, str], str | None],
) -> Worth:
    worked = [one for one in members if one.outcome is Outcome.SUCCEEDED and not one.recurred]
    # both on the platform's clock, where that is known
    after = [max(0.0, (one.sent_at_theirs or one.sent_at or one.claimed_at) - one.failed_at) for one in worked]
    texts = (messages.get((source, one.dead_letter_id)) for one in reversed(members))
    return Worth(
        source=source,
        error_class=error_class,
        fingerprint=fingerprint,
        message=next((text for text in texts if text), None),
        retries=len(members),
        succeeded=len(worked),
        recurred=sum(one.recurred for one in members if one.outcome is Outcome.SUCCEEDED),
        seconds=median(after) if after else None,
    )
