"""The words of retrying as values: modes, decisions and their reasons, one retry and its states. Pure.

Times are seconds since the epoch on our own clock, unless a name says otherwise: a retry is ours, so its ledger is on
our clock. What platforms say stays on theirs.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal


class Mode(StrEnum):
    """How far retrying may go, from the lowest to the highest. The lowest word of all who have a say holds."""

    OFF = "off"
    SHADOW = "shadow"  # everything but the call
    APPROVE = "approve"  # a person says which
    ENFORCE = "enforce"

    @property
    def rank(self) -> int:
        return _MODES.index(self)


_MODES = tuple(Mode)


def lowest(*modes: Mode) -> Mode:
    return min(modes, key=lambda mode: mode.rank)


class Action(StrEnum):
    """What a policy wants of the dead letters it owns."""

    RETRY = "retry"
    HOLD = "hold"
    IGNORE = "ignore"
    QUARANTINE = "quarantine"
    ESCALATE = "escalate"


class Verb(StrEnum):
    """What is decided of a dead letter now."""

    RETRY = "retry"
    WAIT = "wait"  # not now; it will be looked at again by itself
    HOLD = "hold"  # not until something changes: a person, a policy, what is known
    IGNORE = "ignore"
    QUARANTINE = "quarantine"  # never again until a person releases it
    ESCALATE = "escalate"  # a person has to see to it


class Reason(StrEnum):
    """Why. From ``MODE`` to ``PREFLIGHT`` the rungs of the ladder, in the order in which they may refuse."""

    MODE = "mode"  # switched off, or it waits for a person's approval
    PAUSED = "paused"
    WINDOW = "window"
    HELD = "held"  # a person, an open question or a quarantine keeps it
    UNDETERMINED = "undetermined"  # whether a policy matches depends on what nobody knows
    NOT_ELIGIBLE = "not_eligible"
    EXHAUSTED = "exhausted"
    BACKOFF = "backoff"
    NATIVE_RETRY = "native_retry"  # the platform is going to retry it itself
    STORM = "storm"  # the source as a whole is unwell
    GATE = "gate"  # its group, or its policy, has to show first that retrying helps
    BUDGET = "budget"  # no more failures can be afforded now
    PACE = "pace"
    PREFLIGHT = "preflight"
    # What is no refusal.
    POLICY = "policy"  # the policy's action says so
    NO_POLICY = "no_policy"  # none matches
    DUE = "due"  # nothing refuses


#: While these refuse, or nothing does, a dead letter ages; otherwise it could not have been tried.
AGEING = frozenset({Reason.EXHAUSTED, Reason.BACKOFF, Reason.DUE})


class Answer(StrEnum):
    """What an answer to our call that is no acceptance means, and so what it costs."""

    BUSY = "busy"  # not now: nothing ran, and the source or the workflow waits
    DENIED = "denied"  # not you: nothing ran, and a person has to see to the source
    REJECTED = "rejected"  # not this one: uses up one of its retries
    IN_DOUBT = "in_doubt"  # nobody knows whether anything ran


class RetryState(StrEnum):
    """How far an open retry has come."""

    INTENT = "intent"  # durable, the call not made yet
    SENT = "sent"  # the call is being made
    ACCEPTED = "accepted"  # the platform took it
    VERIFYING = "verifying"  # its effect was seen, its end not yet
    IN_DOUBT = "in_doubt"  # nobody knows whether it had an effect
    HELD = "held"  # and nothing will tell: a person decides


class Outcome(StrEnum):
    """What became of a retry. Final."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REJECTED = "rejected"  # the platform refused the call
    SUPERSEDED = "superseded"  # somebody else, or the platform, dealt with the dead letter meanwhile
    EXPIRED = "expired"  # no verdict by the deadline
    NOT_SENT = "not_sent"  # never left, or is known to have had no effect; does not count


#: Who spoke, where nobody but the engine did.
ENGINE = "engine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What a retry does on a platform. What a platform does not say takes the most cautious value."""

    effect: Literal["resume", "rerun", "fresh"]  # goes on where it failed; same inputs anew; a new run of the workflow
    handle: Literal["same_id", "returned", "inferred"] = "inferred"  # how the effect is recognised
    #: Seconds after which no effect proves that there will be none; None: never.
    absence: float | None = None
    serial: bool = True  # one open retry of a workflow at a time
    bulk_max: int = 1  # dead letters of one workflow in one call, by explicit ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is decided of one dead letter now, and why."""

    verb: Verb
    reason: Reason
    policy: str = ""  # the owner, "" if none
    mode: Mode = Mode.OFF  # the effective one
    detail: str = ""
    next_at: float | None = None  # when it would next be allowed, as far as that is known
    awaits_approval: bool = False  # it is a person's approval that is missing, and else at most time
    ages: bool = False  # it could be tried, or is being tried: this time counts
    escalates: Reason | None = None  # why a person has to see to it, as far as nobody has yet

    @property
    def label(self) -> tuple[str, str, str]:
        """What the metric counts by: policy, decision, reason."""
        return self.policy, self.verb, self.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """One call of ours that resubmits one dead letter: intent, call, verdict. A row of the ledger."""

    id: str
    source: str
    workflow_id: str
    dead_letter_id: str
    run_id: str | None  # of the run that failed
    attempt: int  # of that run
    opened_at: float  # of the dead letter, on the platform's clock
    root: str
    ordinal: int  # of this root, 1 upwards
    policy: str
    policy_hash: str
    group: str
    shadow: bool = False  # everything was done but the call
    approved_by: str | None = None
    manual: bool = False  # a person asked for this very retry
    error_class: str = ""
    fingerprint: str = ""
    state: RetryState = RetryState.INTENT
    outcome: Outcome | None = None
    failed_at: float  # when the root first failed, on the platform's clock
    claimed_at: float
    send_by: float
    deadline: float  # seconds after the call within which a verdict must come
    settle: float = 0.0  # seconds after a success within which the same failure counts as recurred
    warnings_fail: bool = True
    sent_at: float | None = None
    sent_at_theirs: float | None = None  # the same on the platform's clock
    answered_at: float | None = None  # when the call came to an end, whatever it said
    doubt_at: float | None = None  # since when nobody knows; the horizon of reconciliation starts here
    word: Outcome | None = None  # a person's, of a call in doubt: holds if the platform shows nothing to the contrary
    word_by: str = ""
    look_at: float | None = None  # when the platform is next asked
    closed_at: float | None = None
    mark: Any = None  # taken right before the call, see exporter.platform.retrying
    handle: str | None = None
    new_runs: tuple[str, ...] = ()  # runs that its effect created
    detail: str = ""  # the evidence for its present state, one redacted line
    recurred: bool = False
    answer: Answer | None = None  # of a call that was refused
    spared: str = ""  # why it uses up none of its root's retries: "busy", "denied", "cooling", "storm"
    excused: bool = False  # it passed a gate that was shut while its workflow's own runs were failing
    idle: float = 0.0  # seconds of the root's age in which it could not have been tried, when this was claimed
    budgeted: bool = False  # it took a token of the budget
    operation: str = ""  # the operation by which a person let it pass

    @property
    def is_open(self) -> bool:
        return self.outcome is None and not self.shadow

    def is_named(self, identity: str) -> bool:
        """Whether somebody means it who writes its id, or its dead letter's or root's, as ID or SOURCE/ID."""
        letters = (self.dead_letter_id, self.root)
        return identity in (self.id, *letters, *(f"{self.source}/{letter}" for letter in letters))

    @property
    def counts(self) -> bool:
        """Whether it uses up one of its root's retries."""
        return self.outcome is not Outcome.NOT_SENT and not self.spared

    @property
    def in_flight(self) -> bool:
        """Whether its verdict is on its way. What is in doubt waits for nobody knows what, and takes nobody's place."""
        return self.is_open and self.state not in (RetryState.IN_DOUBT, RetryState.HELD)


class Scope(StrEnum):
    """How far an override reaches."""

    ENGINE = "engine"
    SOURCE = "source"
    POLICY = "policy"
    WORKFLOW = "workflow"
    ROOT = "root"


class OverrideAction(StrEnum):
    PAUSE = "pause"  # nothing is sent
    LOWER = "lower"  # the mode is at most `approve`
    HOLD = "hold"
    QUARANTINE = "quarantine"
    APPROVE = "approve"  # one retry of this root, by the policy as it was
    RETRY_NOW = "retry_now"  # the same, and at once: past backoff and window
    RELEASE = "release"  # what it used up and how long it has failed no longer counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """A person's word, or the engine's own, that holds until it ends. A row of the ledger."""

    id: str
    scope: Scope
    source: str = ""  # "" for the engine and for a policy everywhere
    key: str = ""  # the policy, the workflow or the root
    action: OverrideAction
    until: float | None  # None: until somebody ends it
    who: str
    why: str = ""
    created_at: float
    ended_at: float | None = None
    snapshot: dict[str, Any] = field(default_factory=dict)  # of an approval: what was approved
    starts_at: float = 0.0  # until then it can be taken back as if it had never been said
    operation: str = ""  # the operation it is part of

    def holds(self, now: float) -> bool:
        """Whether it has neither ended nor been taken back. It may start later."""
        return self.ended_at is None and (self.until is None or now < self.until)

    def redated(self, now: float) -> "Override":
        """The same, said now: for as long as it was meant to hold."""
        until = None if self.until is None else now + self.until - self.created_at
        starts_at = now + max(0.0, self.starts_at - self.created_at)
        return replace(self, created_at=now, until=until, starts_at=starts_at)
