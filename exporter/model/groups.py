"""Open dead letters by what they have in common: the unit in which people see them, and every command takes them. Pure.

A group is what shares source, workflow, error class and error fingerprint. Its id is a short hash, the same for as long
as these are.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import median

from exporter.model import DeadLetter, Error
from exporter.model.decision import Ladder
from exporter.model.retries import Decision, Outcome, Retry
from exporter.model.subject import Subject, error_fingerprint
from exporter.model.words import in_short, span

#: Seconds within which newly opened dead letters make the trend.
TREND_SECONDS = 3600.0
ID_CHARS = 10


def group_id(source: str, letter: DeadLetter) -> str:
    """The id of the group a dead letter is in."""
    error = letter.error
    return _group_id(source, letter.workflow_id, error, error_fingerprint(letter))


@lru_cache(maxsize=20_000)
def _group_id(source: str, workflow_id: str, error: Error | None, fingerprint: str) -> str:
    error_class = "" if error is None else error.error_class.value
    parts = "\0".join((source, workflow_id, error_class, fingerprint))
    return hashlib.sha256(parts.encode()).hexdigest()[:ID_CHARS]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """What became of earlier retries of one error: whether retrying it pays."""

    tries: int
    successes: int
    seconds: float | None  # the median from call to success

    def words(self) -> str:
        if not self.tries:
            return "not retried yet"
        after = "" if self.seconds is None else f", after a median of {span(self.seconds)}"
        return f"retries of this error succeed {self.successes} of {self.tries} times{after}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Open dead letters that share source, workflow, error class and fingerprint. Times are the platform's."""

    id: str
    source: str
    workflow_id: str
    workflow: str | None
    error_class: str | None
    error: str  # what it says, readable
    letters: Sequence[str]  # ids, oldest first
    oldest_at: float
    newest_at: float
    opened_lately: int  # within ``TREND_SECONDS``
    decision: Decision  # of most of them
    gate: str  # what shares a gate with most of them, under that policy
    decisions: dict[str, int]  # how many are decided how: "wait: gate"
    said: dict[str, int]  # of how many what: "waits for approval"
    awaits_approval: int
    last_outcome: str | None  # of the last retry that ended
    experience: Experience


def rank(group: Group) -> tuple[int, str, str, str]:
    """The largest first."""
    return -len(group.letters), group.source, group.workflow_id, group.id


def experiences(history: Iterable[Retry]) -> dict[tuple[str, str, str], Experience]:
    """What became of retries, by source, workflow and fingerprint."""
    ended: dict[tuple[str, str, str], list[Retry]] = {}
    for retry in history:
        if not retry.shadow and retry.outcome in (Outcome.SUCCEEDED, Outcome.FAILED):
            ended.setdefault((retry.source, retry.workflow_id, retry.fingerprint), []).append(retry)
    return {key: experience(retries) for key, retries in ended.items()}


def experience(retries: Sequence[Retry]) -> Experience:
    """What became of these, that succeeded or failed."""
    good = [retry for retry in retries if retry.outcome is Outcome.SUCCEEDED and not retry.recurred]
    took = [r.closed_at - r.sent_at for r in good if r.closed_at is not None and r.sent_at is not None]
    return Experience(tries=len(retries), successes=len(good), seconds=median(took) if took else None)


def experience_of(known: Mapping[tuple[str, str, str], Experience], source: str, letter: DeadLetter) -> Experience:
    """What is known of retrying the error of a dead letter."""
    return known.get((source, letter.workflow_id, error_fingerprint(letter)), _NONE)


_NONE = Experience(tries=0, successes=0, seconds=None)


def group_of(
    identity: str,
    members: Sequence[tuple[Subject, Ladder]],
    known: Mapping[tuple[str, str, str], Experience],
    now: float,
) -> Group:
    """The group of this id, of all its open dead letters; ``now`` is ours."""
    ordered = sorted(members, key=_age)
    subject = ordered[0][0]
    letter, workflow = subject.letter, subject.workflow
    told = [(ladder.told, ladder.group) for _, ladder in ordered]
    labels = Counter(_label(decision) for decision, _ in told)
    said = Counter(in_short(decision) for decision, _ in told)
    most = said.most_common(1)[0][0]
    usual, gate = next(one for one in told if in_short(one[0]) == most)
    ends = [r for s, _ in ordered for r in s.history if r.outcome is not None and not r.shadow]
    last = max(ends, key=lambda retry: retry.closed_at or 0.0, default=None)
    newest = ordered[-1][0].letter.opened_at
    return Group(
        id=identity,
        source=subject.source,
        workflow_id=letter.workflow_id,
        workflow=None if workflow is None else workflow.name,
        error_class=None if letter.error is None else letter.error.error_class.value,
        error=readable(letter.error),
        letters=[one.letter.id for one, _ in ordered],
        oldest_at=letter.opened_at,
        newest_at=newest,
        opened_lately=sum(1 for one, _ in ordered if one.letter.opened_at > now - TREND_SECONDS),
        decision=usual,
        gate=gate,
        decisions=dict(labels.most_common()),
        said=dict(said.most_common()),
        awaits_approval=sum(1 for _, ladder in ordered if ladder.decision.awaits_approval),
        last_outcome=None if last is None or last.outcome is None else last.outcome.value,
        experience=experience_of(known, subject.source, letter),
    )


def _age(one: tuple[Subject, Ladder]) -> tuple[float, str]:
    return one[0].letter.opened_at, one[0].letter.id


def _label(decision: Decision) -> str:
    return decision.verb.value + ": " + decision.reason.value


def readable(error: Error | None) -> str:
    """What an error says, as a person reads it: its message, else its type, else its class."""
    if error is None:
        return "its error is not known yet"
    said = error.message or error.type or error.error_class.value
    return said if len(said) <= _READABLE_CHARS else said[: _READABLE_CHARS - 1] + "…"


_READABLE_CHARS = 160
