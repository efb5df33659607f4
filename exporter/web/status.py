"""What the service says about itself: readiness with its reasons, and the status as plain values."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from exporter.alerting.links import workflow_dashboard
from exporter.config.objectives import SloConfig
from exporter.model import SUCCEEDED, DeadLetter, ErrorClass, Run, words
from exporter.model.fold import WorkflowEntry
from exporter.model.groups import Group
from exporter.model.rails import Rails
from exporter.model.redact import redact
from exporter.model.retries import OverrideAction, Scope
from exporter.retries.book import RetryBook
from exporter.retries.control import Found, decision_facts, letter_facts, retry_facts
from exporter.retries.facts import group_facts
from exporter.retries.operations import Operations
from exporter.source import Source, StreamStatus
from exporter.view.known import SourceWorld

#: A stream is fresh while its last complete sweep is at most this many of its intervals old …
FRESH_INTERVALS = 5.0
#: … but never judged stale before this many seconds.
FRESH_SECONDS_MIN = 120.0
#: Dead letters listed on one answer.
DEAD_LETTERS_MAX = 500
#: Retries listed on one answer.
RETRIES_MAX = 500
#: Workflows listed of one stream as unread.
WORKFLOWS_MAX = 50
_BLOCKED = {
    "invalid": "too many errors",
    "paused": "paused",
    "quota": "the plan is used up",
    "dead_letters": "its dead letters have to be dealt with first",
    "unavailable": "not available",
}

#: The page of a dead letter's trace, if traces have pages.
TraceUrl = Callable[[Source, DeadLetter], str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class NotReady:
    """Why the service is not ready: one line about one source, or about the store (source "")."""

    source: str
    detail: str


def not_ready(sources: Mapping[str, Source], *, now: float, store_error: str | None) -> list[NotReady]:
    """Every reason why the numbers should not be trusted yet; empty when ready."""
    reasons = [] if store_error is None else [NotReady(source="", detail=store_error)]
    for name, source in sources.items():
        for status in source.streams.values():
            problem = _staleness(status, now) or _unread(source, status)
            if problem is not None:
                reasons.append(NotReady(source=name, detail=f"{status.stream.name}: {problem}"))
    return reasons


def _staleness(status: StreamStatus, now: float) -> str | None:
    problem = status.error or status.refusal
    if status.success_at is None:
        return f"never swept: {problem}" if problem else "not swept yet"
    age, bound = now - status.success_at, _bound(status)
    if age <= bound:
        return None
    cause = f": {problem}" if problem else ""
    return f"last swept {age:.0f} s ago, more than the bound of {bound:.0f} s{cause}"


def _unread(source: Source, status: StreamStatus) -> str | None:
    """Which workflows have not been read for longer than the bound, though the stream was swept."""
    now, bound = source.api.platform_now(), _bound(status)
    unread = source.unread(status.stream.name)
    late = [(key, one) for key, one in unread.items() if now - one.since > bound]
    if not late:
        return None
    key, worst = late[0]
    others = f" and {len(late) - 1} more" if len(late) > 1 else ""
    age = f"not read for {now - worst.since:.0f} s, more than the bound of {bound:.0f} s"
    return f"workflow {key}{others} {age}: {worst.detail}"


def _bound(status: StreamStatus) -> float:
    return max(FRESH_SECONDS_MIN, FRESH_INTERVALS * status.interval)


def status(sources: Mapping[str, Source], *, now: float, version: str) -> dict[str, Any]:
    """The state of every source, as ``GET /api/v1/status`` answers it."""
    return {
        "version": version,
        "now": now,
        "sources": [_source(source, now) for source in sources.values()],
    }


def _source(source: Source, now: float) -> dict[str, Any]:
    known, budget = source.known, source.api.budget
    return {
        "source": source.name,
        "platform": source.platform.name,
        "title": source.platform.title,
        "holder": source.holder,
        "workflows": len(known.workflows),
        "active_runs": len(known.open_runs),
        "dead_letters": len(known.dead_letters),
        "failing_workflows": sum(1 for e in known.entries.values() if e.failures and e.gone_at is None),
        "budget": {"requests_per_minute": budget.rate, "limit": budget.limit, "remaining": budget.remaining},
        "first_sweep_at": known.first_sweep_at,
        "streams": streams(source, now) if source.told is None else source.told,
    }


def streams(source: Source, now: float) -> list[dict[str, Any]]:
    """How each stream of a source is read here."""
    known = source.known
    return [
        {
            "stream": s.stream.name,
            "interval": s.interval,
            "swept_at": s.swept_at,
            "success_at": s.success_at,
            "failures": s.failures,
            "error": s.error or s.refusal,
            "error_kind": None if s.error is None or s.kind is None else s.kind.value,
            "faults": s.faults,
            "last_fault": _fault(s, known),
            "unread": _unread_facts(source, s),
            "fresh": _staleness(s, now) is None and _unread(source, s) is None,
        }
        for s in source.streams.values()
    ]


def _fault(status: StreamStatus, known: SourceWorld) -> dict[str, Any] | None:
    """The last thing that could not be read, which may be long ago: ``at``."""
    fault = status.last_fault
    if fault is None:
        return None
    return {
        "at": status.fault_at,
        "kind": fault.kind,
        "workflow_id": fault.workflow_id,
        "workflow": _name(known, fault.workflow_id),
        "detail": redact(fault.detail),
    }


def _unread_facts(source: Source, status: StreamStatus) -> dict[str, Any]:
    """The workflows that cannot be read, the longest unread first."""
    now, unread = source.api.platform_now(), source.unread(status.stream.name)
    shown = [
        {
            "workflow_id": key,
            "workflow": _name(source.known, key),
            "age_seconds": max(0.0, now - one.since),
            "kind": one.kind,
            "detail": one.detail,
        }
        for key, one in islice(unread.items(), WORKFLOWS_MAX)
    ]
    return {"total": len(unread), "workflows": shown}


def _name(known: SourceWorld, workflow_id: str | None) -> str | None:
    workflow = known.workflows.get(workflow_id) if workflow_id is not None else None
    return None if workflow is None else workflow.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is the matter with a workflow, in words, and the alert whose runbook says what to do."""

    alert: str
    kind: str  # in one word, or few: "3 workflows overdue"
    said: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """A workflow that somebody should look at. Times are the platform's."""

    source: str
    title: str  # of the platform
    workflow_id: str
    workflow: str | None
    problems: Sequence[Problem]  # the worst first
    failing: bool
    failures: int  # in a row
    last_success_at: float | None
    active_run_id: str | None  # the oldest
    url: str | None
    run_url: str | None  # of the oldest active run
    dashboard: str | None


def in_trouble(sources: Mapping[str, Source], slo: SloConfig, *, now: float) -> list[Trouble]:
    """Workflows that somebody should look at, the worst first."""
    found = [
        _trouble(source, entry, problems, slo)
        for source in sources.values()
        for entry in source.known.entries.values()
        if entry.gone_at is None and (problems := _problems(entry, source.known, slo, now - source.ahead))
    ]
    return sorted(found, key=lambda one: (-one.failures, -len(one.problems), one.source, one.workflow_id))


def _trouble(source: Source, entry: WorkflowEntry, problems: Sequence[Problem], slo: SloConfig) -> Trouble:
    identity = entry.workflow.id
    run = _oldest_active(source.known, identity)
    return Trouble(
        source=source.name,
        title=source.platform.title,
        workflow_id=identity,
        workflow=entry.workflow.name,
        problems=problems,
        failing=entry.failures > 0,
        failures=entry.failures,
        last_success_at=entry.last(SUCCEEDED),
        active_run_id=None if run is None else run.id,
        url=source.workflow_url(identity),
        run_url=None if run is None else source.run_url(run),
        dashboard=workflow_dashboard(slo, source.name, entry.workflow.name, identity),
    )


def _oldest_active(known: SourceWorld, workflow_id: str) -> Run | None:
    return min(known.runs_of(workflow_id), key=lambda run: run.started_at or float("inf"), default=None)


def _problems(entry: WorkflowEntry, known: SourceWorld, slo: SloConfig, now: float) -> list[Problem]:
    """``now`` is the platform's."""
    workflow, problems = entry.workflow, list[Problem]()
    if entry.failures:
        said = "its last run failed" if entry.failures == 1 else f"{entry.failures:,} failures in a row"
        problems.append(Problem(alert="AutomationWorkflowFailing", kind="failing", said=said))
    if workflow.blocked is not None:
        said = f"stopped by its platform: {_BLOCKED.get(workflow.blocked.value, workflow.blocked.value)}"
        problems.append(Problem(alert="AutomationWorkflowBlocked", kind="stopped", said=said))
    if workflow.enabled and workflow.next_run_at is not None and now - workflow.next_run_at > slo.overdue_after:
        said = f"overdue for {words.span(now - workflow.next_run_at)}"
        problems.append(Problem(alert="AutomationWorkflowOverdue", kind="overdue", said=said))
    run = _oldest_active(known, workflow.id)
    if run is not None and run.started_at is not None and now - run.started_at > slo.stuck_after:
        said = f"a run has not ended for {words.span(now - run.started_at)}"
        problems.append(Problem(alert="AutomationWorkflowStuck", kind="stuck", said=said))
    queue = known.queues.get(workflow.id)
    if queue is not None and queue.limit and queue.items >= slo.queue_share * queue.limit:
        said = f"its queue is nearly full: {queue.items:,.0f} of {queue.limit:,.0f}"
        problems.append(Problem(alert="AutomationQueueNearLimit", kind="with a nearly full queue", said=said))
    return problems


def dead_letters(
    sources: Mapping[str, Source], book: RetryBook, *, now: float, trace_url: TraceUrl = lambda source, letter: None
) -> dict[str, Any]:
    """Open dead letters, oldest first, with what is decided of them, as ``GET /api/v1/dead-letters`` answers them."""
    found = [
        {
            "source": source.name,
            "id": letter.id,
            "workflow_id": letter.workflow_id,
            "workflow": _name(source.known, letter.workflow_id),
            "run_id": letter.run_id,
            "opened_at": letter.opened_at,
            "age_seconds": max(0.0, now - letter.opened_at),
            "error_class": (letter.error.error_class if letter.error else ErrorClass.UNKNOWN).value,
            "error_type": letter.error.type if letter.error else None,
            "error_message": letter.error.message if letter.error else None,
            "url": _failed_run_url(source, letter),
            "trace_url": trace_url(source, letter),
            "decision": decision_facts(book.decisions.get((source.name, letter.id))),
        }
        for source in sources.values()
        for letter in source.known.dead_letters.values()
    ]
    found.sort(key=lambda item: (item["opened_at"], item["id"]))
    return {"total": len(found), "dead_letters": found[:DEAD_LETTERS_MAX]}


def letter(source: Source, operations: Operations, found: Found, *, trace_url: TraceUrl) -> dict[str, Any]:
    """One open dead letter, with what a person can do to it."""
    one = found.subject.letter
    return {
        **letter_facts(one),
        "source": source.name,
        "group": found.group,
        "url": _failed_run_url(source, one),
        "trace_url": trace_url(source, one),
        "decision": decision_facts(found.ladder.told),
        "can": operations.can_to([found]),
    }


def _failed_run_url(source: Source, letter: DeadLetter) -> str | None:
    if letter.run_id is None:
        return None
    return source.run_url(Run(workflow_id=letter.workflow_id, id=letter.run_id, attempt=letter.attempt))


def retries(sources: Mapping[str, Source], book: RetryBook, *, now: float) -> dict[str, Any]:
    """Open and recent retries, newest first, and how far retrying may go, as ``GET /api/v1/retries`` answers them."""
    found = [retry_facts(retry) for retry in book.everything()[:RETRIES_MAX]]
    return {
        "mode": book.rules.mode.value,
        "paused": {source: book.overrides.is_paused(source, now) for source in sources},
        "retries": found,
    }


def groups(
    sources: Mapping[str, Source],
    operations: Operations,
    book: RetryBook,
    shown: Sequence[Group],
    *,
    now: float,
    slo: SloConfig | None = None,
    opened: Collection[str] = (),
) -> list[dict[str, Any]]:
    """These groups of open dead letters, each with how its gate stands, and where it is to be seen.

    Of those that are ``opened`` also what a person can do, which costs a look at each dead letter.
    """
    rails = {name: book.rails(name, now) for name in {group.source for group in shown}}
    made = []
    for group in shown:
        source, can = sources[group.source], operations.can(group) if group.id in opened else []
        made.append(
            {
                **group_facts(group, can),
                "acts": [action.value for action in can],
                "title": source.platform.title,
                "gate": _gate(book, group, rails[group.source], now),
                "url": _newest_url(source, group),
                "workflow_url": source.workflow_url(group.workflow_id),
                "dashboard": (
                    None if slo is None else workflow_dashboard(slo, group.source, group.workflow, group.workflow_id)
                ),
            }
        )
    return made


def _gate(book: RetryBook, group: Group, rails: Rails, now: float) -> dict[str, Any] | None:
    """How the gate stands that most of a group share; None until something has passed it."""
    policy = next((policy for policy in book.rules.policies if policy.name == group.decision.policy), None)
    if policy is None or (policy.name, group.gate) not in rails.gates:
        return None
    key, well_at = (policy.name, group.gate), rails.well.get(group.workflow_id)
    gate, steps = rails.gates[key], len(policy.gate.ramp)
    return {
        "state": gate.state(policy.gate, now, well_at=well_at).value,
        "width": gate.width(policy.gate, now, well_at=well_at),
        "until": gate.opens_at(policy.gate, now, well_at=well_at),
        "under_way": rails.unverified.get(key, 0),
        "step": min(gate.level, steps - 1) + 1,
        "steps": steps,
    }


def _newest_url(source: Source, group: Group) -> str | None:
    letter = source.known.dead_letters.get(group.letters[-1])
    return None if letter is None else _failed_run_url(source, letter)


def paused(sources: Iterable[str], book: RetryBook, *, now: float) -> dict[str, str]:
    """The sources whose retries are paused, with by whom, why and until when."""
    found, pauses = dict[str, str](), [o for o in book.overrides.holding(now) if o.action is OverrideAction.PAUSE]
    for name in sources:
        if book.overrides.is_paused(name, now):
            of_it = [o for o in pauses if o.source in ("", name) and o.scope in (Scope.ENGINE, Scope.SOURCE)]
            last = max(of_it, key=lambda o: float("inf") if o.until is None else o.until)
            until = "until somebody resumes it" if last.until is None else f"until {words.at(last.until, now)} UTC"
            found[name] = f"by {last.who} {until}{': ' if last.why else ''}{last.why}"
    return found


def rails(sources: Mapping[str, Source], book: RetryBook, *, now: float) -> list[dict[str, Any]]:
    """What holds back the retries of each source as a whole."""
    found, holding = [], book.overrides.holding(now)
    for name in sources:
        stands, cap = book.rails(name, now), book.rules.source(name).budget
        lowering = [o for o in holding if o.source in ("", name) and o.action is OverrideAction.LOWER]
        setback = stands.setbacks.get("")
        found.append(
            {
                "source": name,
                "storm": stands.storm,
                "set_back_until": None if setback is None else setback.holds_until(now),
                "mode": book.rules.mode_of(name, lowering).value,
                "lowered": next((f"{one.who}: {one.why}".removesuffix(": ") for one in lowering), ""),
                "budget": stands.tokens,
                "budget_max": None if cap is None else cap.cap,
            }
        )
    return found
