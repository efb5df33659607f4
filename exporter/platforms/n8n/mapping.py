"""n8n's words and ours. Pure.

| n8n | ours |
| --- | --- |
| workflow; `active`; `shared[].projectId`; `nodes[].type` of triggers | workflow; enabled; workspace; trigger |
| execution; its id | run; its id, attempt 1. A retry is another run, whose parent is the one it retries (`retryOf`) |
| `new` | pending |
| `running`, `waiting` | running: one that waits has a `stoppedAt` all the same, which is no end |
| `success` | finished, success |
| `error`, `crashed` | finished, failure; crashed ones of class `killed` |
| `canceled` | finished, cancelled; or timeout, if the error says so or the run took as long as its workflow may |
| `unknown`, or whatever else once it has a `stoppedAt` | finished, unknown |
| `mode` `trigger` `webhook` `retry` `integrated` `manual` | trigger `schedule` `webhook` `retry` `sub` `test` |
| `mode` `error` | no run of ours: the error workflow at work, which would count each failure twice |
| `createdAt`, `startedAt`, `stoppedAt` of an ended one | queued, started, ended |
| `data.parentExecution` | parent of a sub-workflow's run |
| `data.resultData.error` | the cause (see ``errors``) |
| `data.resultData.runData` | steps: those that began with the run, since a retry copies those before it |
| `tracingContext.traceparent` | the trace that n8n sends itself |

``finished`` is not read: a retry of a canceled run ends with `finished: true, status: "error"`.

Ids of runs are numbers of one sequence, written as text. Where the database was replaced, numbers come back: a run
whose number was there before is called ``17~1`` (see ``Numbering``).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from datetime import datetime
from typing import Any

from msgspec.structs import replace

from exporter.model import TEST, DeadLetter, Error, ErrorClass, Result, Run, State, Workflow, times
from exporter.platform import BadItem
from exporter.platforms.n8n import errors
from exporter.platforms.n8n.steps import quantity, read_steps
from exporter.wire.decode import DAMAGED

ID_CHARS_MAX = 200
NAME_CHARS_MAX = 200
STATES: dict[str, tuple[State, Result | None]] = {
    "new": (State.PENDING, None),
    "running": (State.RUNNING, None),
    "waiting": (State.RUNNING, None),
    "success": (State.FINISHED, Result.SUCCESS),
    "error": (State.FINISHED, Result.FAILURE),
    "crashed": (State.FINISHED, Result.FAILURE),
    "canceled": (State.FINISHED, Result.CANCELLED),
}
TRIGGERS = {
    "trigger": "schedule",
    "webhook": "webhook",
    "manual": TEST,
    "retry": "retry",
    "integrated": "sub",
    "chat": "chat",
    "evaluation": "evaluation",
    "cli": "cli",
    "internal": "internal",
    "agent": "agent",
}
#: The mode of the error workflow's own executions.
ERROR_MODE = "error"
#: Whose failures are no dead letters of their own: a person sees it, the parent's is the one, it is no run.
_NO_LETTER = frozenset({"manual", "integrated", ERROR_MODE})
#: Trigger nodes by the end of their type, and what starts the workflow then.
_TRIGGER_NODES = {
    "scheduleTrigger": "schedule",
    "cron": "schedule",
    "interval": "schedule",
    "webhook": "webhook",
    "formTrigger": "form",
    "chatTrigger": "chat",
    "executeWorkflowTrigger": "sub",
    "errorTrigger": "error",
    "manualTrigger": "manual",
    "start": "manual",
}
#: A canceled run that took this close (seconds) to what its workflow may was ended by that.
TIMEOUT_SECONDS = 2.0
_NUMBER = re.compile(r"[0-9]{1,18}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
#: What of a run's results is lost where failed executions are not saved.
OF_ERRORS = (Result.FAILURE, Result.CANCELLED, Result.TIMEOUT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbering:
    """How numbers become ids of ours.

    Each reset is (highest number before it, when the old database was last seen): what started later under a number
    that was there before is another run.
    """

    resets: tuple[tuple[int, float], ...] = ()

    def name(self, number: int, started_at: float | None) -> str:
        """The id of a run. One that has not started was made by the present database."""
        again = sum(1 for mark, at in self.resets if number <= mark and (started_at is None or started_at > at))
        return f"{number}~{again}" if again else str(number)


def number_of(run_id: str) -> int | None:
    """The number of a run of ours; None for what is none."""
    return int(run_id.partition("~")[0]) if _NUMBER.fullmatch(run_id.partition("~")[0]) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An execution as listed."""

    number: int
    workflow_id: str
    status: str
    mode: str
    retry_of: int | None
    success: int | None  # `retrySuccessId`: the last retry of it that ended well
    run: Run

    @property
    def is_open(self) -> bool:
        return self.run.state is not State.FINISHED

    @property
    def failed(self) -> bool:
        """Whether it ended in a way that a retry could make good."""
        return self.status in ("error", "crashed")

    @property
    def counts(self) -> bool:
        """Whether it is a run of ours at all."""
        return self.mode != ERROR_MODE

    @property
    def may_be_letter(self) -> bool:
        """Whether its failure is one of a piece of work of its own, as long as it is no retry of another."""
        return self.failed and self.mode not in _NO_LETTER


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """What of a workflow's definition decides how its executions are read."""

    name: str | None = None
    saves_successes: bool | None = None  # None: as the instance does
    saves_errors: bool | None = None
    timeout: float | None = None  # seconds a run may take
    handles_errors: bool = False  # it is nothing but an error workflow

    def dump(self) -> list[Any]:
        return [self.name, self.saves_successes, self.saves_errors, self.timeout, self.handles_errors]

    @classmethod
    def load(cls, cursor: Any) -> "Habits":
        name, successes, failures, timeout, handles = cursor
        return cls(name=name, saves_successes=successes, saves_errors=failures, timeout=timeout, handles_errors=handles)


NO_HABITS = Habits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """What an instance saves where a workflow does not say; None: nobody knows."""

    successes: bool | None
    errors: bool | None = True

    def of(self, habits: Habits) -> tuple[bool | None, bool | None]:
        """Whether a workflow's successes and failures are saved."""
        successes = self.successes if habits.saves_successes is None else habits.saves_successes
        return successes, self.errors if habits.saves_errors is None else habits.saves_errors

    def uncounted(self, habits: Habits) -> tuple[Result, ...]:
        """Results that cannot be counted, because nothing is left of runs that end so."""
        if habits.handles_errors:
            return (Result.SUCCESS, *OF_ERRORS, Result.UNKNOWN)
        successes, failures = self.of(habits)
        return (*(() if successes else (Result.SUCCESS,)), *(() if failures else OF_ERRORS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """An execution read alone."""

    row: Row
    bytes: float | None  # of its data; 0 and None: not known
    traced: bool | None  # whether n8n sends a trace of it; None: the version does not say
    timed_out: bool = False

    @property
    def run(self) -> Run:
        return self.row.run


def row(item: object, *, numbering: Numbering, latest: float = times.MOMENT_MAX) -> Row:
    """A listed execution. Raises ``BadItem``, also where a time is later than ``latest``."""
    fields = _object(item, "an execution")
    number = _number_text(fields.get("id"))
    if number is None:
        raise BadItem("an execution has no number")
    what = f"execution {number}"
    workflow_id = identity(fields.get("workflowId"), f"the workflow of {what}")
    status, mode = _word(fields.get("status")), _word(fields.get("mode"))
    started, stopped = moment(fields.get("startedAt")), moment(fields.get("stoppedAt"))
    unlisted = (State.RUNNING, None) if stopped is None else (State.FINISHED, Result.UNKNOWN)
    state, result = STATES.get(status, unlisted)
    retry_of = _number_text(fields.get("retryOf"))
    run = Run(
        workflow_id=workflow_id,
        id=numbering.name(number, started),
        state=state,
        result=result,
        started_at=started,
        ended_at=stopped if state is State.FINISHED else None,
        queued_at=moment(fields.get("createdAt")),
        trigger=TRIGGERS.get(mode),
        parent_id=None if retry_of is None else numbering.name(retry_of, started),
    )
    if (wrong := times.implausible(run, latest)) is not None:
        raise BadItem(f"{what}: its {wrong} is at no time that can be")
    return Row(
        number=number,
        workflow_id=workflow_id,
        status=status,
        mode=mode,
        retry_of=retry_of,
        success=_number_text(fields.get("retrySuccessId")),
        run=run,
    )


def detail(item: object, *, numbering: Numbering, latest: float = times.MOMENT_MAX) -> Detail:
    """An execution read alone, with its data or without. Raises ``BadItem``."""
    fields = _object(item, "an execution")
    found = row(fields, numbering=numbering, latest=latest)
    context = fields.get("tracingContext")
    parent = context.get("traceparent") if isinstance(context, Mapping) else None
    match = _TRACEPARENT.fullmatch(parent) if isinstance(parent, str) else None
    run = replace(found.run, trace=f"{match[1]}-{match[2]}" if match else None)
    data = fields.get("data")
    error, steps, timed_out = None, None, False
    if isinstance(data, Mapping):
        results = data.get("resultData")
        results = results if isinstance(results, Mapping) else {}
        error = errors.read(results.get("error"))
        steps = read_steps(results.get("runData"), fields.get("workflowData"), found.run)
        timed_out = _says_timeout(results.get("error"))
        run = replace(run, parent_id=run.parent_id or _parent(data, numbering, found.run.started_at))
    if found.failed:
        if error is None and found.status == "crashed":
            error = Error(error_class=ErrorClass.KILLED)
        run = replace(run, error=error)
    plausible = steps is None or times.implausible(replace(run, steps=steps), latest) is None
    return Detail(
        row=changed(found, run=replace(run, steps=steps if plausible else ())),
        bytes=quantity(fields.get("jsonSizeBytes")),
        traced=(match is not None) if "tracingContext" in fields else None,
        timed_out=timed_out,
    )


def decided(run: Run, habits: Habits, *, timed_out: bool = False) -> Run:
    """A canceled run told from one that took too long: by its error, or by how long it took."""
    if run.result is not Result.CANCELLED:
        return run
    seconds = None if run.started_at is None or run.ended_at is None else run.ended_at - run.started_at
    ended_by_itself = (
        habits.timeout is not None and seconds is not None and abs(seconds - habits.timeout) <= TIMEOUT_SECONDS
    )
    if not (timed_out or ended_by_itself):
        return run
    error = Error(error_class=ErrorClass.TIMEOUT, type="TimeoutExecutionCancelledError" if timed_out else None)
    return replace(run, result=Result.TIMEOUT, error=error, steps=run.steps or ())


def letter(root: Run, *, error: Error | None = None) -> DeadLetter:
    """The dead letter of a failed piece of work, named after the run that failed first."""
    opened_at = root.finished_at
    assert opened_at is not None  # noqa: S101 (a failed run has an end, or at least a start)
    return DeadLetter(id=root.id, workflow_id=root.workflow_id, run_id=root.id, opened_at=opened_at, error=error)


def vanished(run: Run) -> Run:
    """The claim that an open run is over and nothing was kept of it; how it ended, and when, nobody can say."""
    return Run(workflow_id=run.workflow_id, id=run.id, state=State.FINISHED, result=Result.UNKNOWN)


def workflow(item: object, *, at: float, saving: Saving) -> tuple[Workflow, Habits]:
    """A workflow as listed at ``at``. Raises ``BadItem`` if it has no id."""
    fields = _object(item, "a workflow")
    workflow_id = identity(fields.get("id"), "a workflow")
    found = habits(fields)
    active, archived = fields.get("active"), fields.get("isArchived") is True
    shared = fields.get("shared")
    shares = [each for each in shared if isinstance(each, Mapping)] if isinstance(shared, list) else []
    kinds = _trigger_kinds(fields.get("nodes"))
    told = Workflow(
        id=workflow_id,
        at=at,
        name=found.name,
        workspace=next((name for each in shares if (name := _text(each.get("projectId")))), None),
        trigger=",".join(kinds) or None,
        enabled=(active and not archived) if isinstance(active, bool) else None,
        uncounted=saving.uncounted(found),
    )
    return told, found


def habits(fields: Mapping[str, Any]) -> Habits:
    """What of a workflow's definition decides how its executions are read."""
    settings = fields.get("settings")
    settings = settings if isinstance(settings, Mapping) else {}
    timeout = quantity(settings.get("executionTimeout"))
    kinds = _trigger_kinds(fields.get("nodes"))
    return Habits(
        name=_text(fields.get("name")),
        saves_successes=_saves(settings.get("saveDataSuccessExecution")),
        saves_errors=_saves(settings.get("saveDataErrorExecution")),
        timeout=timeout or None,
        handles_errors=bool(kinds) and set(kinds) <= {"error", "manual"} and "error" in kinds,
    )


def identity(value: object, what: str) -> str:
    """An id as text. Raises ``BadItem`` if it is none."""
    usable = isinstance(value, str) and value.strip() and len(value) <= ID_CHARS_MAX and value.isprintable()
    if not isinstance(value, str) or not usable or DAMAGED in value:
        raise BadItem(f"{what} has no usable id")
    return value


def moment(value: object) -> float | None:
    """An ISO 8601 time with its zone; None where there is none."""
    if not isinstance(value, str):
        return None
    try:
        parsed = datetime.fromisoformat(value)
    except ValueError:
        return None
    return None if parsed.tzinfo is None else parsed.timestamp()


def _says_timeout(error: object) -> bool:
    return isinstance(error, Mapping) and (
        error.get("name") == "TimeoutExecutionCancelledError" or error.get("reason") == "timeout"
    )


def _parent(data: Mapping[str, Any], numbering: Numbering, started_at: float | None) -> str | None:
    parent = data.get("parentExecution")
    number = _number_text(parent.get("executionId")) if isinstance(parent, Mapping) else None
    return None if number is None else numbering.name(number, started_at)


def _trigger_kinds(nodes: object) -> list[str]:
    """What starts a workflow, each kind once. A trigger of another kind (of a mail box, a queue) is an ``event``."""
    kinds = set[str]()
    for node in nodes if isinstance(nodes, list) else ():
        kind = node.get("type") if isinstance(node, Mapping) else None
        if not isinstance(kind, str) or node.get("disabled") is True:
            continue
        last = kind.rpartition(".")[2]
        if last in _TRIGGER_NODES:
            kinds.add(_TRIGGER_NODES[last])
        elif last.endswith("Trigger"):
            kinds.add("event")
    return sorted(kinds)


def _saves(value: object) -> bool | None:
    return {"all": True, "none": False}.get(value) if isinstance(value, str) else None


def _object(item: object, what: str) -> Mapping[str, Any]:
    if not isinstance(item, Mapping):
        raise BadItem(f"{what} is not an object")
    return item


def _word(value: object) -> str:
    return value.strip().lower() if isinstance(value, str) else ""


def _text(value: object) -> str | None:
    text = value.strip()[:NAME_CHARS_MAX] if isinstance(value, str) else ""
    return text or None


def _number_text(value: object) -> int | None:
    """A number of the sequence, written as text, or as a number by one of the answers."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**18:
        return value
    return int(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else None


def chain(rows: Sequence[Row], root: int, *, members: Iterable[int] = ()) -> list[Row]:
    """The root and everything that retries it, directly or not, among these rows; by number.

    ``members``: what is known to be of it, and may be missing among the rows.
    """
    by_number = {each.number: each for each in rows}
    members = {root, *members}
    found = [by_number[number] for number in sorted(members & by_number.keys())]
    for number in sorted(by_number):  # a retry is made after what it retries
        each = by_number[number]
        if each.retry_of in members and number not in members:
            members.add(number)
            found.append(each)
    return sorted(found, key=lambda each: each.number)
