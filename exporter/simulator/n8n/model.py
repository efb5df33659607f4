"""What the simulated n8n instance is made of: workflows of nodes, executions, and the errors that nodes end with.

Times are whole milliseconds since the epoch, as the API shows them, so that the truth and the API agree to the digit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

Json = dict[str, Any]

SECOND = 1000  # in milliseconds
#: A Wait node shorter than this keeps its execution in memory, running; a longer one puts it away, waiting.
WAIT_MIN = 65 * SECOND
OVER = frozenset({"success", "error", "canceled", "crashed"})
#: Modes whose executions wait for a free place where the instance limits how many run at once.
QUEUED = frozenset({"webhook", "trigger"})
#: Modes that are no runs of ours: tries of a person in the editor, and error workflows at work.
NO_RUNS = frozenset({"manual", "error"})
TRIGGERS = {
    "n8n-nodes-base.webhook": "webhook",
    "n8n-nodes-base.scheduleTrigger": "trigger",
    "n8n-nodes-base.executeWorkflowTrigger": "integrated",
    "n8n-nodes-base.errorTrigger": "error",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node of a workflow. The first is the trigger; each leads to the next."""

    name: str
    type: str
    version: float = 1
    parameters: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)  # further fields, as they were given


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The error of a node, as n8n tells it, and the class a reader should make of it."""

    error_class: str | None  # None: n8n cancelled it
    name: str | None  # None: of a caller whose sub-workflow failed
    message: str
    http_code: str | None = None
    description: str | None = None
    node_type: str | None = "n8n-nodes-base.httpRequest"  # None: it is of no node
    made_of: "Failure | None" = None  # of a caller: that of a node of the sub-workflow, which it is told as well

    @property
    def names_node(self) -> bool:
        return self.name in ("NodeApiError", "NodeOperationError")


def _call(error_class: str, http_code: str, message: str) -> tuple[str, Failure]:
    """The error of an HTTP node; ``http_code`` is also where n8n puts what broke a connection."""
    text = f'{http_code} - "{{\\"ok\\":false}}"' if http_code.isdecimal() else None
    text = BATCHING if http_code == "429" else text
    return http_code, Failure(
        error_class=error_class, name="NodeApiError", message=message, http_code=http_code, description=text
    )


INVALID = "Your request is invalid or could not be processed by the service"
UNAVAILABLE = (
    "Service unavailable - try again later or consider setting this node to retry automatically (in the node settings)"
)
SLOW = "The connection timed out, consider setting the 'Retry on Fail' option in the node settings"
BATCHING = "Try spacing your requests out using the batching settings under 'Options'"
#: What a node makes of the answer it gets, or of none.
CALLS: dict[str, Failure] = dict(
    (
        _call("network", "ECONNREFUSED", "The service refused the connection - perhaps it is offline"),
        _call("timeout", "ETIMEDOUT", SLOW),
        _call("validation", "400", "Bad request - please check your parameters"),
        _call("auth", "401", "Authorization failed - please check your credentials"),
        _call("permission", "403", "Forbidden - perhaps check your credentials?"),
        _call("not_found", "404", "The resource you are requesting could not be found"),
        _call("timeout", "408", INVALID),
        _call("conflict", "409", INVALID),
        _call("validation", "422", INVALID),
        _call("throttled", "429", "The service is receiving too many requests from you"),
        _call("platform", "500", "The service was not able to process your request"),
        _call("platform", "502", "Bad gateway - the service failed to handle your request"),
        _call("platform", "503", UNAVAILABLE),
        _call("platform", "504", "Gateway timed out - perhaps try again later?"),
    )
)
#: Error class -> an error that n8n shows for it.
ERRORS: dict[str, Failure] = {
    "network": CALLS["ECONNREFUSED"],
    "timeout": CALLS["ETIMEDOUT"],
    "throttled": CALLS["429"],
    "platform": CALLS["500"],
    "conflict": CALLS["409"],
    "not_found": CALLS["404"],
    "validation": CALLS["400"],
    "auth": CALLS["401"],
    "permission": CALLS["403"],
    "unknown": Failure(
        error_class="unknown",
        name="WrappedExecutionError",
        message="Cannot read properties of undefined (reading 'id') [line 3]",
        description="TypeError",
        node_type="n8n-nodes-base.code",
    ),
    "killed": Failure(
        error_class="killed",
        name="WorkflowCrashedError",
        message="Workflow did not finish, possible out-of-memory issue",
        node_type=None,
    ),
}
CANCELLED = Failure(
    error_class=None,
    name="ManualExecutionCancelledError",
    message="The execution was cancelled manually",
    node_type=None,
)
TIMED_OUT = Failure(
    error_class=None,
    name="TimeoutExecutionCancelledError",
    message="The execution was cancelled because it timed out",
    node_type=None,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an execution is going to do if nobody interferes: it works, pauses in a Wait node if it has one, works on.

    ``fails_at`` is the index of the node that ends it, for a failure; None: the last one. ``works`` None: until told.
    """

    works: int | None  # milliseconds
    pause: int = 0
    rest: int = 0  # after the pause, or after the sub-workflow
    failure: Failure | None = None
    fails_at: int | None = None
    payload: int = 0  # bytes of stored data beyond the usual


@dataclass(slots=True, kw_only=True, eq=False)
class Workflow:
    """A workflow, and the habits of what runs it. One without an ``interval`` starts nothing by itself."""

    id: str
    name: str
    nodes: tuple[Node, ...]
    settings: Json
    created: int
    updated: int
    rng: Random
    project_id: str
    version_id: str
    tags: tuple[str, ...] = ()
    active: bool = True
    archived: bool = False
    deleted: bool = False
    interpreted: bool = False  # its nodes say what happens, not the dice
    interval: float | None = None  # seconds between two starts
    seconds: float = 5.0  # how long it typically works
    failure_rate: float = 0.0
    stubborn: float = 0.0  # how often a lasting error comes back when retried
    retry_rate: float = 0.0  # the share of failures that a person retries
    cancel_rate: float = 0.0  # the share of executions that a person stops
    spread: float = 0.0  # of durations around the typical one, as a share of it
    pause: float = 0.0  # seconds in its Wait node
    child: str | None = None  # the sub-workflow it calls

    @property
    def trigger(self) -> Node:
        return self.nodes[0]

    @property
    def mode(self) -> str:
        return TRIGGERS.get(self.trigger.type, "trigger")

    def find(self, node_type: str) -> int | None:
        """The index of the first node of this type."""
        return next((i for i, node in enumerate(self.nodes) if node.type == f"n8n-nodes-base.{node_type}"), None)


@dataclass(slots=True, kw_only=True, eq=False)
class Execution:
    """One execution. Retries are executions of their own; one that waits and goes on keeps its id."""

    id: int
    workflow: Workflow
    mode: str
    plan: Plan
    created: int
    status: str = "new"
    started: int | None = None
    stopped: int | None = None  # also set while waiting
    wait_till: int | None = None
    finished: bool = False
    retry_of: int | None = None
    retry_success: int | None = None
    parent: "Execution | None" = None
    child: "Execution | None" = None
    failure: Failure | None = None
    timed_out: bool = False
    forgotten: bool = False  # its data says nothing of its nodes
    version: int = 0  # of what is scheduled; an event of an older one is void
    due: int | None = None  # when its next event is; None: nobody knows
    resumed: int | None = None  # when its last leg began, after a pause
    planned_for: int | None = None  # the moment a schedule meant
    body: Any = None  # what its webhook was called with
    resumes_at: int = 0  # a retry: the index of the node it begins with
    reconstructed: bool = False  # its data was put together after a crash
    letter: int | None = None  # of a retry: the root of its chain
    by_api: bool = False
    gone: bool = False  # its row
    traced: bool = False  # n8n sends a trace of it

    @property
    def over(self) -> bool:
        return self.status in OVER

    @property
    def last(self) -> int:
        """The index of the node it ended with, or ends with if nobody interferes."""
        if self.plan.failure is not None and self.plan.fails_at is not None:
            return self.plan.fails_at
        return len(self.workflow.nodes) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """How the instance is set up. Nothing of this is visible through its API."""

    concurrency: int | None = None  # executions of webhooks and triggers at once
    save_success: bool = True
    save_error: bool = True
    prune_max_count: int = 10_000  # of the whole instance; 0: no limit
    prune_max_age: int = 336 * 3600 * SECOND
    prune_every: int = 3600 * SECOND
    traces: bool = False  # it sends them itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One node's part of an execution."""

    index: int
    began: int
    ended: int


def visits(execution: Execution, until: int) -> list[Visit]:
    """Which nodes it ran by a moment, one after the other; the last one may still be at it.

    The trigger takes no time, a Wait node or a sub-workflow its own, and the others share what remains.
    """
    if execution.started is None:
        return []
    plan, began = execution.plan, execution.started
    workflow, last = execution.workflow, execution.last
    first = max(execution.resumes_at, 0)
    middle = workflow.find("wait") if plan.pause else workflow.find("executeWorkflow")
    if middle is None or not first <= middle <= last:
        middle = None
    found: list[Visit] = []
    at = began
    works = plan.works if plan.works is not None else max(0, until - began)
    before = [i for i in range(first, last + 1) if middle is None or i < middle]
    after = [i for i in range(first, last + 1) if middle is not None and i > middle]

    def share(indices: list[int], amount: int) -> None:
        nonlocal at
        working = [i for i in indices if i > 0] or indices
        for i in indices:
            lasts = amount // len(working) if i in working else 0
            found.append(Visit(index=i, began=at, ended=at + lasts))
            at += lasts

    share(before, works)
    if middle is not None:
        rest = plan.rest
        end = until
        if execution.resumed is not None:
            end = execution.resumed
        elif not plan.pause and execution.over and execution.stopped is not None:
            end = execution.stopped - rest
        elif plan.pause:
            end = at + plan.pause
        found.append(Visit(index=middle, began=at, ended=max(at, end)))
        at = max(at, end)
        share(after, rest)
    return [visit for visit in found if visit.began <= until]
