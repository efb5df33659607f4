"""One open dead letter and all that deciding about it depends on. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from exporter.model import DeadLetter, Error, Workflow
from exporter.model.matchers import Facts
from exporter.model.rails import FREE, Rails
from exporter.model.redact import fingerprint
from exporter.model.retries import Mode, Outcome, Override, OverrideAction, Retry, Scope, Traits

#: Of a message no more than this takes part in a match.
MESSAGE_CHARS_MAX = 4096
#: The longest (seconds) that a look which refused holds.
REFUSED_MOST = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The last look before a call said no: until when (our clock) that holds, why, and how often in a row."""

    until: float
    why: str
    streak: int = 1

    def holds(self, now: float) -> bool:
        """What lies further ahead than any refusal was noted by a clock that was ahead."""
        return now < self.until <= now + REFUSED_MOST


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One open dead letter and all that deciding about it depends on."""

    source: str
    platform: str
    letter: DeadLetter
    root: str
    traits: Traits | None  # None: the platform knows no retry
    workflow: Workflow | None = None
    labels: Mapping[str, str | None] = field(default_factory=dict)  # None: its name would tell, and is not known
    history: Sequence[Retry] = ()  # of the root, in order
    overrides: Sequence[Override] = ()  # that hold now and reach it
    ahead: str | None = None  # an older dead letter of its ordered workflow
    neighbour: Retry | None = None  # an open retry that its workflow has to wait for
    refused: Refused | None = None
    waited: float = 0.0  # seconds in which it could not have been tried, up to its last decision
    waits_since: float | None = None  # since when it cannot be tried, if it cannot
    rails: Rails = FREE

    @property
    def released_at(self) -> float:
        """What was before counts no longer: a person said so."""
        return max((o.created_at for o in self.overrides if o.action is OverrideAction.RELEASE), default=0.0)

    def spent(self, mode: Mode) -> list[Retry]:
        """The retries that count: real ones, or in shadow those that would have been."""
        released_at, shadow = self.released_at, mode is Mode.SHADOW
        return [r for r in self.history if r.counts and (shadow or not r.shadow) and r.claimed_at >= released_at]

    def idle(self, now: float) -> float:
        """Seconds of its root's age in which it could not have been tried."""
        waits = 0.0 if self.waits_since is None else max(0.0, now - self.waits_since)
        return max((r.idle for r in self.history), default=0.0) + self.waited + waits

    def failed_at(self) -> float:
        """Since when its root has failed: the age that gives up counts from there, or from a person's release."""
        first = min([self.letter.opened_at, *(retry.failed_at for retry in self.history)])
        return max(first, self.released_at)


def neighbours(open_retries: Iterable[Retry], *, serial: bool, ordered: Iterable[str] = ()) -> dict[str, Retry]:
    """The open retry that each workflow has to wait for: where effects are told per workflow, or it runs in order.

    ``open_retries`` come oldest first. What is open of a dead letter otherwise concerns nothing but its own root.
    """
    in_order, found = frozenset(ordered), dict[str, Retry]()
    for retry in open_retries:
        if serial or retry.workflow_id in in_order:
            found.setdefault(retry.workflow_id, retry)
    return found


def reaches(override: Override, *, source: str, workflow: str, root: str) -> bool:
    """Whether an override speaks of a dead letter, as far as that is known before its policy is."""
    if override.source not in ("", source):
        return False
    match override.scope:
        case Scope.WORKFLOW:
            return override.key == workflow
        case Scope.ROOT:
            return override.key == root
        case Scope.ENGINE | Scope.SOURCE | Scope.POLICY:
            return True


def facts_of(subject: Subject, now: float) -> Facts:
    """What policies may ask about a dead letter; None where it is not known."""
    letter, workflow = subject.letter, subject.workflow
    error = letter.error
    message = None if error is None or error.message is None else error.message[:MESSAGE_CHARS_MAX]
    known: dict[str, str | float | None] = {
        "platform": subject.platform,
        "source": subject.source,
        "workflow.id": letter.workflow_id,
        "workflow.name": None if workflow is None else workflow.name,
        "workspace": None if workflow is None else workflow.workspace,
        "trigger": None if workflow is None else workflow.trigger,
        "error.class": None if error is None else error.error_class.value,
        "error.type": None if error is None else error.type,
        "error.status": None if error is None or error.status is None else float(error.status),
        "error.message": message,
        "error.fingerprint": None if error is None else error_fingerprint(letter),
        "step.type": None if error is None else error.step_type,
        "opened_at": letter.opened_at,
        "age": max(0.0, now - letter.opened_at),
        "retries": float(len(subject.spent(Mode.ENFORCE))),
    }
    return known | {f"labels.{name}": value for name, value in subject.labels.items()}


def error_fingerprint(letter: DeadLetter) -> str:
    """The same for two errors of one kind: class, type, step and the message without its numbers, ids, hosts, dates."""
    return "" if letter.error is None else _fingerprint(letter.error)


@lru_cache(maxsize=20_000)
def _fingerprint(error: Error) -> str:
    return fingerprint(
        " ".join((error.error_class.value, error.type or "", error.step_type or "", error.message or ""))
    )


def ran(retry: Retry) -> bool:
    """Whether a closed call of ours did something, or may have: the time since its end is what a backoff counts."""
    return retry.counts or (retry.outcome is Outcome.FAILED and not retry.shadow)
