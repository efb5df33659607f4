"""The words of the product as values: what is claimed about runs, dead letters and workflows, and what a claim changed.

An observation has the shape of the thing it is about: a claim about a run is a ``Run`` whose unknown fields are
``None``, and the run itself is the join of such claims (``exporter.model.fold``). So polling, webhooks and the ledger
all speak of one type.

Times are seconds since the epoch in UTC, on the platform's own clock. Pure. Nothing here knows a platform.
Values are immutable Structs: one webhook makes a dozen of them, and a frozen dataclass takes eight times as long to
make. A changed copy comes from ``msgspec.structs.replace``.
"""

from enum import IntFlag, StrEnum

from msgspec import Struct


class State(StrEnum):
    """How far an attempt has come. Attempts only move forward: pending, running, finished."""

    PENDING = "pending"
    RUNNING = "running"
    FINISHED = "finished"


class Result(StrEnum):
    """How a finished attempt ended."""

    SUCCESS = "success"
    WARNING = "warning"
    FAILURE = "failure"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    QUOTA = "quota"
    UNKNOWN = "unknown"


#: Results that mean the work was not done: they make dead letters, error counts and streaks of failures.
FAILED = frozenset({Result.FAILURE, Result.TIMEOUT, Result.QUOTA})
#: Results that end a streak of failures.
SUCCEEDED = frozenset({Result.SUCCESS, Result.WARNING})


class ErrorClass(StrEnum):
    """What kind of error stopped a run or made a dead letter: what a policy may match."""

    NETWORK = "network"
    TIMEOUT = "timeout"
    THROTTLED = "throttled"
    PLATFORM = "platform"
    CONFLICT = "conflict"
    NOT_FOUND = "not_found"
    VALIDATION = "validation"
    AUTH = "auth"
    PERMISSION = "permission"
    QUOTA = "quota"
    KILLED = "killed"
    UNKNOWN = "unknown"


class Blocked(StrEnum):
    """Why an enabled workflow will not run."""

    INVALID = "invalid"
    PAUSED = "paused"
    QUOTA = "quota"
    DEAD_LETTERS = "dead_letters"
    UNAVAILABLE = "unavailable"


class ResolvedBy(StrEnum):
    """Who or what closed a dead letter."""

    RETRY = "retry"
    PLATFORM = "platform"
    MANUAL = "manual"
    SUPERSEDED = "superseded"
    EXPIRED = "expired"
    UNKNOWN = "unknown"  # it is no longer there, and nothing says why


#: The trigger of a run that somebody starts while building the workflow: a trial, no production. The mapping of each
#: platform says which runs are such.
TEST = "test"


class Via(StrEnum):
    """How a claim reached us."""

    POLL = "poll"
    WEBHOOK = "webhook"
    BACKFILL = "backfill"


class Heard(IntFlag):
    """Which ways a run has been heard of so far."""

    NOTHING = 0
    POLL = 1
    WEBHOOK = 2


class Error(Struct, frozen=True, kw_only=True, gc=False, array_like=True):
    """Why something failed. ``message`` is redacted and capped before it gets here; payload data never does."""

    error_class: ErrorClass = ErrorClass.UNKNOWN
    type: str | None = None  # the platform's own name of the error, e.g. "ConnectionError"
    message: str | None = None
    step_type: str | None = None  # the kind of step that failed
    status: int | None = None  # the HTTP status, 400 to 599, that a call was answered with, where the platform says so


class Step(Struct, frozen=True, kw_only=True, gc=False, array_like=True):
    """A part of a run. A step that is restarted in place keeps its id; the latest start and the latest end hold."""

    id: str
    type: str
    started_at: float | None = None
    ended_at: float | None = None
    result: Result | None = None  # of the latest end
    seconds: float | None = None  # what the platform says it took, where it does not say when


class Run(Struct, frozen=True, kw_only=True, gc=False, array_like=True):
    """One execution of a workflow, or one claim about it.

    ``attempt`` is the platform's ordinal of the run, 1 upwards. Where a platform restarts a run in place and counts
    nothing, it is the platform's own update time in whole milliseconds instead (see ``is_version``): later states are
    later attempts.
    """

    workflow_id: str
    id: str
    attempt: int = 1
    # of the attempt
    state: State = State.PENDING
    result: Result | None = None
    started_at: float | None = None
    ended_at: float | None = None
    error: Error | None = None  # None: not known yet; a failure whose cause will never be known says ErrorClass.UNKNOWN
    operations: float | None = None  # as the platform bills them
    bytes_in: float | None = None
    bytes_out: float | None = None
    # of the run, whatever the attempt
    queued_at: float | None = None
    trigger: str | None = None  # schedule, webhook, manual, api, retry, ``TEST``, …
    parent_id: str | None = None  # the run this one descends from
    steps: tuple[Step, ...] | None = None  # ordered by id; None: not known, or not yet
    previous: tuple[int, float] | None = None  # attempt and end of the newest ended attempt below this one
    #: Where the platform sends a trace of the run itself: its id and that of its span, in hex, with a hyphen between;
    #: "" where only that it does is known.
    trace: str | None = None

    @property
    def is_test(self) -> bool:
        """Whether it is no production: it opens and closes no dead letter, and counts only where that is asked for."""
        return self.trigger == TEST

    @property
    def finished_at(self) -> float | None:
        """When the attempt ended; a platform that gives no end is believed on its start."""
        for moment in (self.ended_at, self.started_at, self.queued_at):
            if moment is not None:
                return moment
        return None

    @property
    def attempt_started_at(self) -> float | None:
        """When this attempt began; None if nobody saw it: after a restart in place the run's own start says nothing."""
        if self.previous is None or (self.started_at is not None and self.started_at >= self.previous[1]):
            return self.started_at
        started = [s.started_at for s in self.steps or () if s.started_at is not None]
        begun = [moment for moment in started if moment >= self.previous[1]]
        return min(begun, default=None)

    @property
    def duration(self) -> float | None:
        """Seconds the attempt took, never negative, None while either end is unknown."""
        start = self.attempt_started_at
        return None if start is None or self.ended_at is None else max(0.0, self.ended_at - start)

    @property
    def queue_duration(self) -> float | None:
        """Seconds between being queued and the first start, None unless the platform gives both."""
        if self.queued_at is None or self.started_at is None or self.previous is not None:
            return None
        return max(0.0, self.started_at - self.queued_at)


def is_version(attempt: int) -> bool:
    """Whether an attempt is an update time in milliseconds (a platform that restarts runs in place), not an ordinal."""
    return attempt >= 1_000_000_000


class DeadLetter(Struct, frozen=True, kw_only=True, gc=False, array_like=True):
    """Work a platform gave up on and a retry could still save, or one claim about it.

    Open until resolved, never again.
    """

    id: str
    workflow_id: str
    run_id: str | None = None
    attempt: int = 1  # of the run that failed
    opened_at: float
    error: Error | None = None  # None: not known yet
    resolved_at: float | None = None
    resolved_by: ResolvedBy | None = None
    tries: int = 0  # retries the platform reports, its own and others'
    native_retry: tuple[float, bool] | None = None  # (when said, whether the platform will retry it itself)
    reruns: bool = False  # a retry of it begins anew, at the trigger, with the workflow of today

    @property
    def is_open(self) -> bool:
        return self.resolved_at is None


class Workflow(Struct, frozen=True, kw_only=True, gc=False, array_like=True):
    """What the customer defined, as read at the moment ``at``; the newest reading holds as a whole."""

    id: str
    at: float
    name: str | None = None
    workspace: str | None = None
    trigger: str | None = None
    enabled: bool | None = None
    blocked: Blocked | None = None
    next_run_at: float | None = None
    ordered: bool = False  # the platform runs nothing new while a dead letter is open
    uncounted: tuple[Result, ...] = ()  # the platform keeps nothing of runs that end so: nobody can count them
    workspace_id: str | None = None  # where the addresses of its pages need it


class Listing(Struct, frozen=True, kw_only=True, gc=False):
    """A complete listing of a source's workflows: what is not in it was not there at that moment."""

    at: float
    workflow_ids: frozenset[str]


class Queue(Struct, frozen=True, kw_only=True, gc=False):
    """Items waiting in front of a workflow."""

    workflow_id: str
    at: float
    items: float
    limit: float | None = None


class Unit(StrEnum):
    """What usage is counted in, as metrics end in it."""

    OPERATIONS = "operations"
    CREDITS = "credits"
    RUNS = "runs"
    BYTES = "bytes"
    SECONDS = "seconds"


class Usage(Struct, frozen=True, kw_only=True, gc=False):
    """What a source has used of what it may use: of ``kind``, which has no two units."""

    kind: str
    unit: Unit
    at: float
    used: float | None = None
    limit: float | None = None


#: One claim about one thing at one moment.
Observation = Run | DeadLetter | Workflow | Listing | Queue | Usage


class RunFinished(Struct, frozen=True, kw_only=True, gc=False):
    """An attempt was counted: it ended, after the baseline, and had not been counted before."""

    run: Run
    result: Result
    via: Via
    delay: float  # seconds from the end on the platform to now


class RunTimed(Struct, frozen=True, kw_only=True, gc=False):
    """The duration of a counted attempt became known."""

    run: Run
    result: Result
    seconds: float


class RunQueued(Struct, frozen=True, kw_only=True, gc=False):
    """The time a counted run had waited became known."""

    run: Run
    seconds: float


class RunFailed(Struct, frozen=True, kw_only=True, gc=False):
    """The cause of a counted failure became known."""

    run: Run
    error: Error


class RunUsed(Struct, frozen=True, kw_only=True, gc=False):
    """A counted attempt was seen to have used this much more than known before."""

    run: Run
    operations: float = 0.0
    bytes_in: float = 0.0
    bytes_out: float = 0.0


class StepFinished(Struct, frozen=True, kw_only=True, gc=False):
    """A step of a run ended, after the baseline."""

    run: Run
    step: Step


class RunCorrected(Struct, frozen=True, kw_only=True, gc=False):
    """A counted attempt turned out to have ended otherwise.

    Counters do not go back; this says how often they would have.
    """

    run: Run
    counted_as: Result


class DeadLetterOpened(Struct, frozen=True, kw_only=True, gc=False):
    """A dead letter was counted as opened: after the baseline, once its error class is known or it is resolved."""

    dead_letter: DeadLetter
    error_class: ErrorClass


class DeadLetterResolved(Struct, frozen=True, kw_only=True, gc=False):
    """An open dead letter was closed."""

    dead_letter: DeadLetter
    by: ResolvedBy


#: What folding an observation altered.
Change = (
    RunFinished
    | RunTimed
    | RunQueued
    | RunFailed
    | RunUsed
    | StepFinished
    | RunCorrected
    | DeadLetterOpened
    | DeadLetterResolved
)
