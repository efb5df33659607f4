"""The nouns and numbers of the Make simulator: scenarios, executions, dead letters, error types, and its options.

Numbers that Make documents are constants here; what the documents leave open is an option whose default is the reading
that asks most of a client. Make's incomplete execution is called a dead letter, as everywhere in this project.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
AUTO_RETRY_DELAYS = tuple(m * MINUTE for m in (1, 10, 10, 30, 30, 30, 180, 180))  # of stored items
RERUN_DELAYS = tuple(m * MINUTE for m in (1, 2, 5, 10, 60, 180, 720, 1440))  # of a scenario that does not store
RATE_LIMIT_PAUSE = 20 * MINUTE
RETRY_BATCH = 3
PARALLEL_RUNS_MAX = 10
EXECUTIONS_KEPT_MAX = 5000  # per scenario
FINISHED_KEPT_MAX = 200_000  # in the feed across scenarios
USAGE_DAYS_MAX = 62
HISTORY_DAYS = 30
TIMELINE_KEPT_MAX = 2000  # per scenario
FEED_LIMIT_MAX = 200

# Errors that Make retries itself, and errors that switch scheduling off at once.
TRANSIENT = frozenset({"RateLimitError", "ConnectionError", "ModuleTimeoutError"})
FATAL = frozenset({"AccountValidationError", "OperationsLimitExceededError", "DataSizeLimitExceededError"})

# Make's error type -> our error class, and the message shown. One message carries a secret, as live ones can.
ERRORS: dict[str, tuple[str, str]] = {
    "RateLimitError": ("throttled", "[429] Too many requests, try again later."),
    "ConnectionError": ("network", "connect ETIMEDOUT 203.0.113.7:443"),
    "ModuleTimeoutError": ("timeout", "The operation timed out."),
    "DataError": ("validation", "Missing value of required parameter 'email'."),
    "BundleValidationError": ("validation", "Validation failed for 1 parameter(s)."),
    "InvalidConfigurationError": ("validation", "The module is not configured."),
    "IncompleteDataError": ("validation", "The record is not complete yet."),
    "MaxFileSizeExceededError": ("validation", "The file exceeds the maximum size of 100 MB."),
    "DuplicateDataError": ("conflict", "A record with this key already exists."),
    "InconsistencyError": ("conflict", "The transaction could not be completed."),
    "InvalidAccessTokenError": ("auth", "[401] refused: Authorization: Bearer sk-demo-0123456789abcdef"),
    "AccountValidationError": ("auth", "Account validation failed: [403] access was revoked."),
    "OperationsLimitExceededError": ("quota", "The operations limit of the organization is exceeded."),
    "DataSizeLimitExceededError": ("quota", "The data transfer limit of the organization is exceeded."),
    "OutOfSpaceError": ("quota", "There is not enough space in the data store."),
    "RuntimeError": ("unknown", "The module failed: unexpected end of input."),
}

# How a retry ends. "other_module": it passes the failed module and breaks at the next, which makes a new dead letter.
Outcome = Literal["success", "failure", "other_module"]
Event = Callable[[float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeOptions:
    """How this zone of Make behaves, where zones, plans and documents differ. Times are seconds."""

    organization_id: int = 9
    team_id: int = 77
    token: str = "demo-token"
    scopes: tuple[str, ...] = (
        *("organizations:read", "teams:read", "user:read", "scenarios:read", "scenarios:write", "scenarios:run"),
        *("hooks:read", "dlqs:read", "dlqs:write"),
    )
    zone: str = "https://eu1.make.com"  # for statusUrl in run callbacks
    api_limit: int = 60  # requests per minute and organization
    enforce_limit: bool = True
    rows_max: int = 10_000  # on one page, however many are asked for
    limit_refused: int | None = None  # a pg[limit] above this is 400
    feed: bool = True  # /scenarios/logs exists in this zone
    feed_refusal: int = 404  # what a zone without it answers: 404, or 400, having taken "logs" for a scenario's number
    feed_order: Literal["end", "start", "newest"] = "end"  # of its rows; no document says
    feed_brief: bool = False  # its rows do not say what is replayable, what they replay and why they failed
    feed_ends: bool = False  # its rows are dated by the end and carry no endedAt
    module_events: int = 200  # the answer of /logs/{executionId}/p, or how a zone without it refuses: 404, 403
    detail_delay: float = 3.0  # after its end the details of an execution are 404 for so long
    inline_errors: float = 0.75  # share of failed log rows that carry their error
    pending_rows: bool = False  # running executions, and running retries, are listed with status 0
    short_imt_ids: bool = True  # as live; the documents name scenario and type in between
    replayable: bool = (
        True  # runs that failed after their trigger say isReplayable; as successes do, and triggers never
    )
    dashed_ids: bool = True  # the detail of some dead letters shows a dashed execution id
    text_counters: bool = False  # centicredits as text
    dlq_count_lag: float = 0.0  # how far dlqCount is behind
    resolved_listed: bool = True  # resolved items stay in GET /dlqs until they are forgotten
    dead_letters_kept: float | None = None  # an item not treated for so long is lost: 404, and no longer in dlqCount
    kept_for: float = DAY  # after this a resolved or deleted item is forgotten: 404
    retry_delay: float = 2.0  # from the accepted retry to the queue
    retry_refused: int = 400  # to a retry of a resolved or busy item: 400, 404, or 200 without effect
    retries_lost: float = 0.0  # probability that an accepted retry never happens
    manual_attempts_count: bool = True  # manual retries raise ``attempts``
    other_module: float = 0.05  # probability that a retry breaks at a later module
    storage_bytes: int = 500_000_000  # for dead letters, in the organization
    operations_limit: int = 800_000
    webhook_header: str = "X-Webhook-Token"
    webhook_secret: str = "demo-secret"
    history: float = 2 * HOUR  # of past before the clock's time
    troubles: float = 1.0  # factor on how often generated runs go wrong; 0: never


@dataclass(frozen=True, slots=True)
class Module:
    id: int
    app: str
    name: str


@dataclass(frozen=True, slots=True)
class MakeError:
    name: str
    message: str
    module: Module

    @property
    def error_class(self) -> str:
        return ERRORS[self.name][0] if self.name in ERRORS else "unknown"


@dataclass(slots=True, kw_only=True)
class Scenario:
    """One scenario: what its owner set, and where it stands."""

    id: int
    name: str
    team_id: int
    created_at: float
    edited_at: float | None = None  # None: as created
    modules: tuple[Module, ...]
    rng: random.Random
    interval: float | None = None  # seconds between runs, or between webhooks on average; None: on demand
    instant: bool = False  # started by a webhook
    store: bool = True  # "dlq" in the blueprint: store incomplete executions
    sequential: bool = False
    break_plan: tuple[int, int] | None = None  # a Break handler: attempts, minutes between them
    dataloss: bool = False
    confidential: bool = False
    max_errors: int = 3
    duration: float = 5.0  # seconds, typically
    failing: float = 0.0  # probability of an error, per run
    warning: float = 0.0
    errors: tuple[str, ...] = ("ConnectionError",)
    reports: Literal["none", "failures", "all"] = "none"  # which runs its HTTP module announces
    operated: bool = False  # its services have incidents, and somebody switches it on again and clears its dead letters
    queue_limit: int = 667

    active: bool = True
    invalid: bool = False
    deleted: bool = False
    next_at: float | None = None
    waiting_until: float = 0.0
    incident_until: float = 0.0
    errors_in_row: int = 0
    reruns: int = 0
    running: int = 0
    resolving: int = 0
    queue: int = 0
    open_items: int = 0
    items: int = 0  # ever stored
    expired_items: int = 0
    executions: "list[Execution]" = field(default_factory=list)  # by start
    timeline: "list[TimelineEvent]" = field(default_factory=list)
    dead_letters: "list[DeadLetter]" = field(default_factory=list)  # open, or closed not long ago
    retries: "deque[Resolve]" = field(default_factory=deque)  # waiting for their batch
    usage: dict[int, list[int]] = field(default_factory=dict)  # day -> operations, transfer, centicredits

    @property
    def key(self) -> str:
        return str(self.id)

    @property
    def blocked(self) -> bool:
        return self.sequential and self.open_items > 0


@dataclass(slots=True)
class Execution:
    scenario: Scenario
    id: str
    started_at: float
    ended_at: float | None  # known to the world in advance; None: it hangs
    status: int  # once ended: 1 success, 2 warning, 3 error
    error: MakeError | None
    operations: int = 1
    transfer: int = 0
    kind: str = "auto"
    scripted: bool = False  # placed by hand: has no consequences but those asked for
    dead_letter: bool = False  # of a scripted one: it stores a dead letter
    callback: bool = False  # started through the API with a callbackUrl
    parent: "tuple[int, str] | None" = None  # the scenario and the execution that called it
    replay_of: "Execution | None" = None
    author_id: int | None = None  # who started it by hand; None: whose token it is

    def ended(self, now: float) -> bool:
        return self.ended_at is not None and self.ended_at <= now


@dataclass(frozen=True, slots=True)
class TimelineEvent:
    id: str
    at: float
    type: str
    detail: dict[str, object]
    author: str | None  # None: the platform itself; such a row has no id


@dataclass(slots=True, kw_only=True)
class DeadLetter:
    """One incomplete execution: stored, queued, running, and in the end resolved or deleted."""

    id: str
    scenario: Scenario
    index: int
    created_at: float
    execution_id: str
    error: MakeError
    size: int
    delays: tuple[float, ...] = ()  # before Make's own retries
    outcomes: tuple[Outcome, ...] = ()  # of the coming retries, the last one for ever; empty: drawn
    state: Literal["stored", "queued", "running", "resolved", "deleted", "expired"] = "stored"
    retry: bool = False
    attempts: int = 0
    native_tries: int = 0
    resolved_at: float | None = None
    logs: "list[Resolve]" = field(default_factory=list)
    trying: "Resolve | None" = None  # the one that runs
    frozen: dict[str, Any] | None = None  # its own blueprint, once the scenario's or this one is edited


@dataclass(slots=True)
class Resolve:
    """One attempt to resolve a dead letter."""

    dead_letter: DeadLetter
    kind: str  # auto or manual
    by_api: bool = False
    author_id: int | None = None
    outcome: Outcome | None = None  # None: as the dead letter has it, or drawn
    id: str = ""
    started_at: float = 0.0
    ended_at: float = 0.0
    status: int = 0
    operations: int = 1
