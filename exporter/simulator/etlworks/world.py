"""What happens in the simulated Etlworks: flows start by schedule or by messages, end, are repeated by the scheduler,
are stopped.

A heap of moments moves this world; each workflow draws from its own random sequence, so the world is the same whatever
it is asked and in whatever steps time moves. A run's whole fate is drawn when it begins; what may be seen of it at a
moment is a comparison of times (``Run.status``).

Etlworks keeps no dead letters. In the truth one opens when a run fails and the scheduler will not repeat it by itself,
under the id of that run; it is resolved by the first later start of the same workflow that ends well, because a new
start does the work the failed one left undone.

A cancelled run counts once, at the moment of the stop. The platform goes on to call it ``error`` (``success`` if the
flow streams) once it is really down.
"""

import heapq
import itertools
import random
from bisect import insort
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from exporter.simulator.core import TrueDeadLetter, TrueRun, Truth
from exporter.simulator.retries import RetryPlan

Trigger = Literal["schedule", "demand", "listener"]
RESULTS = ("success", "warning", "failure", "cancelled")
TRANSIENT = ("network", "timeout", "throttled", "platform")
ERRORS = (*TRANSIENT, "conflict", "not_found", "validation", "auth", "permission", "quota", "killed", "unknown")
RUNS_KEPT_PER_WORKFLOW_MAX = 3_000
RUNS_KEPT_SECONDS_MAX = 30 * 86_400.0
EXECUTED_MAX = 100_000  # announcements waiting for somebody to take them

_SOURCES = ("orders", "invoices", "customers", "stock", "prices", "tickets", "payments", "shipments", "returns")
_TARGETS = ("dwh", "crm", "lake", "billing", "archive", "portal")
_INTERVALS = (30, 60, 120, 120, 120, 300, 300, 300, 300, 300, 600, 600, 600, 600, 600)


@dataclass(slots=True, kw_only=True, eq=False)
class Workflow:
    """One flow, its schedule if it has one, and how its generated runs behave."""

    id: int
    name: str
    rng: random.Random
    tags: tuple[str, ...] = ()
    tenant_id: int | None = None
    streaming: bool = False
    event_id: int | None = None  # of its schedule; None: started by a listener or on demand only
    every: int | None = None  # seconds between generated starts; None: nothing is generated
    phase: int = 0  # seconds after a multiple of ``every``
    retries: int = 0  # of the schedule
    retry_minutes: int = 1
    expected_minutes: int = 0
    enabled: bool = True
    typical: float = 20.0  # seconds a generated run takes
    failing: float = 0.1  # share of generated runs that fail
    errors: tuple[str, ...] = ("network",)
    demanded: int = 0  # starts on demand so far
    runs: list["Run"] = field(default_factory=list)  # by the moment they were queued


@dataclass(slots=True, kw_only=True, eq=False)
class Run:
    """One execution. Times are seconds since the epoch, whole milliseconds where generated."""

    workflow: Workflow
    id: int
    queued_at: float
    started_at: float
    ended_at: float | None  # when it first gets a final status; None: it runs until it is stopped
    result: str
    error_class: str | None = None
    exception: str | None = None  # exact text; None: one is made up
    trigger: Trigger
    started_by: str
    parent_id: int | None = None
    retries: int | None = None
    message_id: str | None = None
    down_at: float | None = None  # of a cancelled run: when its thread has really ended
    generated: bool = False  # the scheduler repeats it by itself

    def status(self, at: float) -> str:
        """The platform's word for how far the run has come."""
        if at < self.started_at:
            return "queued"
        if self.ended_at is None or at < self.ended_at:
            return "running"
        if self.result == "cancelled":
            if self.down_at is not None and at < self.down_at:
                return "canceled"
            return "success" if self.workflow.streaming else "error"
        return "error" if self.result == "failure" else self.result

    @property
    def repeats(self) -> bool:
        """Whether the scheduler owes this run another attempt, should it fail."""
        return self.trigger == "schedule" and (self.retries or 0) < self.workflow.retries


class World:
    """All workflows and runs, moved by ``advance``."""

    def __init__(
        self,
        *,
        stream: Callable[..., random.Random],
        born_at: float,
        history: float,
        retry_success: float,
        cancel_seconds: float,
        troubles: float = 1.0,
    ) -> None:
        self.workflows: dict[int, Workflow] = {}
        self.runs: dict[int, Run] = {}
        self.unfinished: dict[int, Run] = {}  # not yet really down, the future ones included
        self.executed: deque[tuple[float, Run]] = deque(maxlen=EXECUTED_MAX)  # what a webhook would tell, in order
        self.born_at = born_at
        self._begins_at = born_at - history
        self._stream = stream
        self._retry_success = retry_success
        self._cancel_seconds = cancel_seconds
        self._troubles = troubles
        self._finished: list[TrueRun] = []
        self._dead_letters: dict[int, TrueDeadLetter] = {}
        self.planned_retries: deque[RetryPlan] = deque()
        self.retry_calls: Counter[str] = Counter()  # by dead letter
        self.retry_executions: Counter[str] = Counter()
        self.parameters: deque[dict[str, object]] = deque(maxlen=EXECUTED_MAX)  # of the starts by id that arrived
        self._open: dict[int, list[int]] = {}  # workflow -> its open dead letters
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()
        self._run_ids = itertools.count(80_001)

    def advance(self, now: float) -> None:
        """Let everything happen that is due, in the order of time."""
        events = self._events
        while events and events[0][0] <= now:
            at, _, happen = heapq.heappop(events)
            happen(at)

    def truth(self) -> Truth:
        return Truth(runs=list(self._finished), dead_letters=list(self._dead_letters.values()))

    # What somebody does to the world.

    def generate(self, count: int, *, tenants: tuple[int, ...]) -> None:
        """Add workflows with schedules, durations and failure profiles of their own; each fifth is started by messages
        instead.
        """
        for i in range(count):
            workflow_id = 1001 + i
            rng = self._stream("workflow", workflow_id)
            every = rng.choice(_INTERVALS)
            listener = i % 5 == 4
            self.add_workflow(
                Workflow(
                    id=workflow_id,
                    name=f"{rng.choice(_SOURCES)} to {rng.choice(_TARGETS)} {workflow_id}",
                    rng=rng,
                    tags=(rng.choice(("sales", "finance", "logistics")),),
                    tenant_id=tenants[i % len(tenants)] if tenants else None,
                    streaming=i % 8 == 7,
                    event_id=None if listener else 6000 + workflow_id,
                    every=every,
                    phase=rng.randrange(every),
                    retries=0 if listener else rng.choice((0, 0, 0, 1, 2, 3)),
                    retry_minutes=rng.choice((1, 1, 2)),
                    expected_minutes=rng.choice((0, 0, 1, 5)),
                    typical=every * rng.uniform(0.03, 0.4),
                    failing=self._troubles * rng.choice((0.01, 0.02, 0.05, 0.1, 0.3)),
                    errors=(rng.choice(TRANSIENT), rng.choice(ERRORS)),
                ),
                since=self._begins_at,
            )

    def add_workflow(self, workflow: Workflow, *, since: float) -> None:
        self.workflows[workflow.id] = workflow
        if workflow.every is not None:
            turns = -((workflow.phase - since) // workflow.every)
            self._at(workflow.phase + turns * workflow.every, partial(self._due, workflow))

    def delete_workflow(self, workflow: Workflow, at: float) -> None:
        """It is gone with its runs: what was still running never ends, and its dead letters need no retry any more."""
        del self.workflows[workflow.id]
        for run in workflow.runs:
            self.runs.pop(run.id, None)
            self.unfinished.pop(run.id, None)
        self._resolve(workflow, at, started_at=at)

    def add_run(self, run: Run) -> None:
        """A run with exactly these times. The scheduler repeats it only if it was generated."""
        workflow = run.workflow
        if workflow.runs and run.queued_at < workflow.runs[-1].queued_at:
            insort(workflow.runs, run, key=lambda r: r.queued_at)
        else:
            workflow.runs.append(run)
        self.runs[run.id] = self.unfinished[run.id] = run
        if run.ended_at is not None:
            self._at(run.ended_at, partial(self._end, run))
        self._forget_old(workflow, run.queued_at)

    def start_on_demand(self, workflow: Workflow, at: float, *, started_by: str, plan: RetryPlan | None = None) -> Run:
        """A fresh run of the workflow. Its fate comes from a sequence of its own, so the generated runs stay as they
        are.
        """
        rng = self._stream("demand", workflow.id, workflow.demanded)
        workflow.demanded += 1
        failed = rng.random() >= self._retry_success
        if plan is not None and plan.outcome is not None:
            failed = plan.outcome == "failure"
        started_at = _whole(at + rng.uniform(0.0, 3.0))
        run = Run(
            workflow=workflow,
            id=self.new_run_id(),
            queued_at=at,
            started_at=started_at,
            ended_at=_whole(started_at + workflow.typical * rng.uniform(0.6, 1.6)),
            result="failure" if failed else "success",
            error_class=workflow.errors[0] if failed else None,
            trigger="demand",
            started_by=started_by,
        )
        self.add_run(run)
        return run

    def retried(self, workflow: Workflow) -> str | None:
        """The dead letter that a start of a flow is a retry of: its newest open one."""
        opened = self._open.get(workflow.id, [])
        return str(opened[-1]) if opened else None

    def start_later(self, workflow: Workflow, at: float, *, started_by: str, plan: RetryPlan) -> None:
        """The platform gets round to it at that time."""
        letter = self.retried(workflow)

        def start(now: float) -> None:
            self.retry_executions[letter or ""] += 1
            self.start_on_demand(workflow, now, started_by=started_by, plan=plan)

        self._at(at, start)

    def stop(self, run: Run, at: float) -> None:
        """Stop a run that has not ended: ``canceled`` from now on, and really down only after a while."""
        run.started_at = min(run.started_at, at)
        run.ended_at, run.result, run.error_class = at, "cancelled", None
        run.down_at = at + self._cancel_seconds
        self._at(at, partial(self._end, run))

    def new_run_id(self) -> int:
        """The next audit id that is still free."""
        run_id = next(self._run_ids)
        while run_id in self.runs:
            run_id = next(self._run_ids)
        return run_id

    # What may be seen of it.

    def find_run(
        self, workflow: Workflow, now: float, *, run_id: int | None, message_id: str | None, status: str | None
    ) -> Run | None:
        """The run with this id or message, or else the newest one, if it was queued by now."""
        if run_id is not None:
            run = self.runs.get(run_id)
            return run if run is not None and run.workflow is workflow and run.queued_at <= now else None
        for run in reversed(workflow.runs):
            if run.queued_at > now or (message_id is not None and run.message_id != message_id):
                continue
            if status is None or run.status(now) == status:
                return run
        return None

    def active_run(self, workflow: Workflow, now: float) -> Run | None:
        """A run of the workflow that is queued, running, or stopped but not yet down."""
        return next((r for r in self.unfinished.values() if r.workflow is workflow and r.queued_at <= now), None)

    def running_count(self, now: float) -> int:
        return sum(run.started_at <= now for run in self.unfinished.values())

    # What happens by itself.

    def _at(self, moment: float, happen: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (moment, next(self._order), happen))

    def _due(self, workflow: Workflow, at: float) -> None:
        if self.workflows.get(workflow.id) is not workflow or workflow.every is None:
            return
        wait = float(workflow.every)
        if workflow.event_id is None:
            wait = 0.1 + workflow.rng.expovariate(1 / wait)  # messages come when they come
        self._at(_whole(at + wait), partial(self._due, workflow))
        if workflow.enabled:
            self._begin(workflow, at)

    def _begin(self, workflow: Workflow, at: float, *, failed: Run | None = None) -> None:
        rng = workflow.rng
        failing = workflow.failing
        if failed is not None:
            failing = 0.4 if failed.error_class in TRANSIENT else 0.9
        draw = rng.random()
        seconds = workflow.typical * rng.lognormvariate(0.0, 0.35)
        result, error_class, down_at = "success", None, None
        if draw < failing:
            result = "failure"
            error_class = rng.choice(workflow.errors) if failed is None else failed.error_class
            seconds *= rng.uniform(0.1, 1.0)
        elif draw > 1.0 - self._troubles * (0.1 if workflow.streaming else 0.01):
            result = "cancelled"
        elif draw > 1.0 - self._troubles * 0.05:
            result = "warning"
        started_at = _whole(at + (rng.uniform(1.0, 8.0) if rng.random() < 0.15 else 0.0))
        ended_at = _whole(started_at + max(0.2, seconds))
        if result == "cancelled":
            down_at = _whole(ended_at + self._cancel_seconds * rng.uniform(0.5, 1.5))
        by_message = workflow.event_id is None
        self.add_run(
            Run(
                workflow=workflow,
                id=self.new_run_id(),
                queued_at=at,
                started_at=started_at,
                ended_at=ended_at,
                result=result,
                error_class=error_class,
                trigger="listener" if by_message else "schedule",
                started_by="listener" if by_message else "scheduler",
                parent_id=None if failed is None else failed.parent_id or failed.id,
                retries=None if failed is None else (failed.retries or 0) + 1,
                message_id=_uuid(rng) if by_message else None,
                down_at=down_at,
                generated=True,
            )
        )

    def _repeat(self, failed: Run, at: float) -> None:
        if self.workflows.get(failed.workflow.id) is failed.workflow:
            self._begin(failed.workflow, at, failed=failed)

    def _end(self, run: Run, at: float) -> None:
        if run.ended_at != at or run.id not in self.unfinished:  # stopped before, or deleted with its workflow
            return
        self._finished.append(
            TrueRun(
                workflow_id=str(run.workflow.id),
                run_id=str(run.id),
                attempt=1 + (run.retries or 0),
                result=run.result,
                started_at=run.started_at,
                ended_at=at,
                error_class=run.error_class,
            )
        )
        self._announce(run, at)
        if run.result == "cancelled":
            self._at(at if run.down_at is None else run.down_at, partial(self._down, run))
            return
        del self.unfinished[run.id]
        if run.result != "failure":
            self._resolve(run.workflow, at, started_at=run.started_at)
        elif not run.repeats:
            self._give_up(run, at)
        elif run.generated:
            self._at(at + 60.0 * run.workflow.retry_minutes, partial(self._repeat, run))

    def _down(self, run: Run, at: float) -> None:
        if self.unfinished.pop(run.id, None) is not None:
            self._announce(run, at)

    def _announce(self, run: Run, at: float) -> None:
        if at >= self.born_at:
            self.executed.append((at, run))

    def _give_up(self, run: Run, at: float) -> None:
        self._open.setdefault(run.workflow.id, []).append(run.id)
        self._dead_letters[run.id] = TrueDeadLetter(
            workflow_id=str(run.workflow.id), dead_letter_id=str(run.id), opened_at=at, error_class=run.error_class
        )

    def _resolve(self, workflow: Workflow, at: float, *, started_at: float) -> None:
        """Close the dead letters that were open when a run started that has now ended well."""
        still_open = []
        for dead_letter_id in self._open.pop(workflow.id, ()):
            dead_letter = self._dead_letters[dead_letter_id]
            if dead_letter.opened_at <= started_at:
                self._dead_letters[dead_letter_id] = replace(dead_letter, resolved_at=at)
            else:
                still_open.append(dead_letter_id)
        if still_open:
            self._open[workflow.id] = still_open

    def _forget_old(self, workflow: Workflow, now: float) -> None:
        """Drop the oldest runs beyond what is kept; the truth keeps them."""
        runs = workflow.runs
        while len(runs) > RUNS_KEPT_PER_WORKFLOW_MAX or runs[0].queued_at < now - RUNS_KEPT_SECONDS_MAX:
            if runs[0].id in self.unfinished:
                return
            self.runs.pop(runs.pop(0).id, None)


def _whole(moment: float) -> float:
    """Whole milliseconds, because that is all the platform can say."""
    return round(moment, 3)


def _uuid(rng: random.Random) -> str:
    text = f"{rng.getrandbits(128):032x}"
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-{text[20:]}"
