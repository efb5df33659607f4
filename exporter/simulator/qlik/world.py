"""The world behind the Qlik simulator: automations, their runs, and what becomes of them.

Time moves only in ``advance``, through one heap of coming moments, so that the step size never matters. Every
automation draws from a random sequence of its own and every retry from one named after what it retries: no request
changes anything it did not ask for.

Qlik has no dead letters of its own. Here a run that ended as "failed" or "exceeded limit" is one, under its run id.
It closes when a run of the same root (retries descend from it) ends: for good if that went well, superseded by the
new failed run if not. It also closes when the platform forgets the run, since nothing is left to retry.
"""

import heapq
import math
import random
from bisect import insort
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from exporter.simulator.core import TrueDeadLetter, TrueRun, Truth
from exporter.simulator.qlik.failures import ERROR_CLASSES, RETRY_HELPS
from exporter.simulator.qlik.schedule import Schedule
from exporter.simulator.retries import RetryPlan

DAY = 86400
KEPT_SECONDS = 30 * DAY  # the platform's own run list goes back 30 days
ENDED_MAX = 50_000  # finished runs the audit listing reaches back to
UNSENT_MAX = 50_000  # finished runs waiting for a webhook nobody collects
STOP_SECONDS = 2.0  # from "must stop" to "stopped"
STARTING_SECONDS = 1.0  # how long a run shows as "starting" before it runs

STATUS = {
    "success": "finished",
    "warning": "finished with warnings",
    "failure": "failed",
    "cancelled": "stopped",
    "quota": "exceeded limit",
}

#: Contexts of runs that somebody starts while building. The platform marks no other than the first as a test.
TEST_CONTEXTS = ("test_run", "editor", "detail", "lookup")
NAMES = ("Nightly export", "Sync orders", "Reload app", "Send report", "Import files")
CONTEXTS = {"scheduled": "api_async", "triggered": "api_sync", "webhook": "webhook", "manual": "api"}


@dataclass(slots=True, kw_only=True, eq=False)
class Workflow:
    """One automation. Without a schedule nothing starts it but retries and what a test adds."""

    id: str
    name: str
    owner_id: str
    created_at: float
    updated_at: float
    space_id: str = ""  # a shared space; empty: private
    run_mode: str = "manual"
    description: str | None = None
    max_concurrent_runs: int = 10
    typical_seconds: float = 10.0  # of a run nobody gave an end
    schedule: Schedule | None = None
    next_start_at: float | None = None  # what a schedule plans
    enabled: bool = True
    deleted: bool = False
    runs: dict[str, "Run"] = field(default_factory=dict)
    finished: deque[str] = field(default_factory=deque)  # run ids, oldest end first: what pruning takes from
    queue: deque["Run"] = field(default_factory=deque)
    active: int = 0  # runs that hold one of the concurrent slots
    made: int = 0
    newest: "Run | None" = None
    last_ended_at: float | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Run:
    """One run. ``result`` is what it will end as; nobody sees it before ``ended_at`` is set."""

    id: str
    workflow: Workflow
    ordinal: int
    root: str
    context: str
    executed_by: str
    created_at: float
    delay: float  # from getting a slot to the start
    seconds: float  # from the start to the end
    result: str
    error_class: str | None
    error: str | None  # words of a test's own
    rx_bytes: int
    tx_bytes: int
    api_calls: int
    started_at: float | None = None  # set with the slot, so it may lie ahead
    ends_at: float | None = None
    ended_at: float | None = None
    listed: bool = False
    stopping: bool = False

    @property
    def tests(self) -> bool:
        """Whether somebody tries out what they build: no part of the truth about production."""
        return self.context in TEST_CONTEXTS

    def status(self, now: float) -> str:
        if self.ended_at is not None:
            return STATUS[self.result]
        if self.stopping:
            return "must stop"
        if self.started_at is None:
            return "queued"
        if now >= self.started_at:
            return "running"
        return "starting" if now >= self.started_at - STARTING_SECONDS else "not started"

    def start_time(self, now: float) -> float | None:
        return self.started_at if self.started_at is not None and self.started_at <= now else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Late:
    """A retry the platform was asked for and has not got round to."""

    run: "Run"
    executed_by: str
    plan: RetryPlan


class World:
    """Everything the platform knows, as of ``now``."""

    def __init__(
        self,
        *,
        now: float,
        workflows: int,
        history_seconds: float,
        runs_max: int,
        max_concurrent_runs: int,
        edited: float,
        troubles: float,
        owner_id: str,
        stream: Callable[..., random.Random],
    ) -> None:
        self.now = now - history_seconds
        self.born = now
        self.workflows: dict[str, Workflow] = {}
        self.max_concurrent_runs = max_concurrent_runs
        self.planned_retries: deque[RetryPlan] = deque()
        self.retry_calls: Counter[str] = Counter()  # by the run that failed, whose dead letter has the same id
        self.retry_executions: Counter[str] = Counter()
        self.ended: list[Run] = []  # by end, for the audit listing
        self.usage: dict[tuple[int, str], Counter[str]] = {}  # (day since 1970, workflow id) -> metric -> amount
        self.unsent: deque[Run] = deque(maxlen=UNSENT_MAX)
        self.names: dict[str, tuple[str, str]] = {}  # workflow id -> name, owner: usage outlives the automation
        self._stream = stream
        self._runs_max = runs_max
        self._troubles = troubles
        self._edited = edited  # the share of starts beside which somebody tries the automation
        self._editing: dict[str, random.Random] = {}
        self._coming: list[tuple[float, int, Workflow | Run | Late]] = []
        self._order = 0
        self._true_runs: list[TrueRun] = []
        self._letters: dict[str, TrueDeadLetter] = {}
        self._open_by_root: dict[str, str] = {}  # root -> the run whose dead letter stands for it
        self._retries: Counter[str] = Counter()
        for index in range(workflows):
            self._generate_workflow(index, owner_id)
        self.advance(now)

    def truth(self) -> Truth:
        runs = sorted(self._true_runs, key=lambda r: (r.ended_at, r.run_id))
        letters = sorted(self._letters.values(), key=lambda d: (d.opened_at, d.dead_letter_id))
        return Truth(runs=runs, dead_letters=letters)

    def advance(self, now: float) -> None:
        """Let everything happen that is due by ``now``, in its order."""
        while self._coming and self._coming[0][0] <= now:
            at, _, subject = heapq.heappop(self._coming)
            self.now = max(self.now, at)
            if isinstance(subject, Workflow):
                self._tick(subject, at)
            elif isinstance(subject, Late):
                self.retry(subject.run, executed_by=subject.executed_by, plan=subject.plan)
            elif subject.workflow.deleted or subject.ended_at is not None:
                continue
            elif not subject.listed:
                self._begin_added(subject, announce=True)
            elif subject.ends_at == at:  # otherwise a stop has moved the end
                self._end(subject, at)
        self.now = max(self.now, now)

    # What tests and requests do to it

    def add_workflow(self, workflow: Workflow) -> None:
        if workflow.id in self.names:
            raise ValueError(f"there is or was a workflow {workflow.id} already")
        self.workflows[workflow.id] = workflow
        self.names[workflow.id] = (workflow.name, workflow.owner_id)

    def add_run(
        self,
        workflow: Workflow,
        run_id: str | None,
        *,
        started_at: float,
        ended_at: float | None,
        result: str,
        error: str | None,
        error_class: str | None,
        context: str | None = None,
    ) -> Run:
        """A run with these times, in whole seconds. One that is over already is history: no webhook tells of it."""
        started_at, ended_at = math.floor(started_at), None if ended_at is None else math.floor(ended_at)
        rng = self._stream("added", workflow.id, workflow.made)
        run = self._make(workflow, at=started_at, rng=rng, result=result, error_class=error_class, error=error)
        if run_id is not None:
            if run_id in workflow.runs:
                raise ValueError(f"there is a run {run_id} already")
            run.id = run.root = run_id
        run.started_at, run.ends_at = started_at, ended_at
        run.context = context or run.context
        if started_at > self.now:
            self._push(started_at, run)
        else:
            self._begin_added(run, announce=False)
        return run

    def retry(self, run: Run, *, executed_by: str, plan: RetryPlan) -> Run:
        """A new run with the same inputs. How it goes depends on what went wrong, unless a test has planned it."""
        self._retries[run.root] += 1
        self.retry_executions[run.id] += 1
        rng = self._stream("retry", run.root, self._retries[run.root])
        chance = 1.0 if run.error_class is None else RETRY_HELPS.get(run.error_class, 0.05)
        result = plan.outcome or ("success" if rng.random() < chance else run.result)
        new = self._make(
            run.workflow, at=self.now, rng=rng, result=result, error_class=run.error_class, error=run.error
        )
        new.root, new.context, new.executed_by = run.root, run.context, executed_by
        new.delay = rng.randint(1, 3)
        self._arrive(new)
        return new

    def retry_later(self, run: Run, at: float, *, executed_by: str, plan: RetryPlan) -> None:
        """The platform gets round to it at that time."""
        self._push(at, Late(run=run, executed_by=executed_by, plan=plan))

    def stop(self, run: Run) -> None:
        run.stopping, run.result, run.error_class, run.error = True, "cancelled", None, None
        run.ends_at = math.floor(self.now) + STOP_SECONDS
        self._push(run.ends_at, run)

    def rename(self, workflow: Workflow, name: str) -> None:
        workflow.name, workflow.updated_at = name, self.now
        self.names[workflow.id] = (name, workflow.owner_id)

    def set_enabled(self, workflow: Workflow, enabled: bool) -> None:
        workflow.enabled, workflow.updated_at = enabled, self.now

    def change_owner(self, workflow: Workflow, user_id: str) -> None:
        """Another user's from now on, without the history: what still runs is all that is left of it."""
        workflow.owner_id, workflow.updated_at = user_id, self.now
        self.names[workflow.id] = (workflow.name, user_id)
        for run_id in workflow.finished:
            self._close(run_id, self.now)
            del workflow.runs[run_id]
        workflow.finished.clear()
        workflow.newest = max(workflow.runs.values(), key=lambda run: run.created_at, default=None)
        workflow.last_ended_at = None

    def reschedule(self, workflow: Workflow, seconds: float | None) -> None:
        """Start it so often from now on, or never by itself."""
        workflow.run_mode = "manual" if seconds is None else "scheduled"
        rng = self._stream("schedule", workflow.id)
        workflow.schedule = None
        if seconds is not None:
            workflow.schedule = Schedule(
                rng=rng, seconds=seconds, regular=True, failure=0.05, warning=0.05, error_classes=("platform",)
            )
            self._plan(workflow, math.floor(self.now) + seconds)

    def new_id(self) -> str:
        return uuid_of(self._stream("made", len(self.names)))

    def start(self, workflow: Workflow, *, executed_by: str) -> Run:
        """A run that somebody asked for through the API."""
        rng = self._stream("asked for", workflow.id, workflow.made)
        run = self._make(workflow, at=self.now, rng=rng, result="success", error_class=None)
        run.context, run.executed_by = "api", executed_by
        self._arrive(run)
        return run

    def delete(self, workflow: Workflow) -> None:
        workflow.deleted = True
        del self.workflows[workflow.id]
        for run in workflow.runs.values():
            self._close(run.id, self.now)

    # How it moves

    def _generate_workflow(self, index: int, owner_id: str) -> None:
        rng = self._stream("workflow", index)
        seconds = float(rng.randint(30, 600))
        run_mode = rng.choice(("scheduled", "scheduled", "scheduled", "triggered", "webhook"))
        workflow = Workflow(
            id=uuid_of(rng),
            name=f"{rng.choice(NAMES)} {index + 1}",
            owner_id=owner_id,
            run_mode=run_mode,
            max_concurrent_runs=rng.choice((1, 1, 2, 5)),
            typical_seconds=seconds * rng.uniform(0.03, 0.5),
            created_at=self.now - DAY,
            updated_at=self.now - DAY,
        )
        self.add_workflow(workflow)
        workflow.schedule = Schedule(
            rng=rng,
            seconds=seconds,
            regular=run_mode == "scheduled",
            failure=self._troubles * (rng.uniform(0.25, 0.5) if rng.random() < 0.1 else rng.uniform(0.01, 0.12)),
            warning=self._troubles * rng.uniform(0, 0.08),
            cancelled=self._troubles * 0.005,
            quota=self._troubles * 0.005,
            error_classes=tuple(rng.sample([name for name in ERROR_CLASSES if name != "quota"], 3)),
        )
        self._plan(workflow, round(self.now + rng.uniform(0, seconds)))

    def _plan(self, workflow: Workflow, at: float) -> None:
        workflow.next_start_at = at
        self._push(at, workflow)

    def _tick(self, workflow: Workflow, at: float) -> None:
        """A start of a generated automation falls due; the next one is planned, whether or not this one may run."""
        schedule = workflow.schedule
        if workflow.deleted or schedule is None or at != workflow.next_start_at:  # the last: of an older one
            return
        self._plan(workflow, round(at + schedule.gap()))
        if workflow.enabled:
            result, error_class = schedule.draw()
            self._arrive(self._make(workflow, at=at, rng=schedule.rng, result=result, error_class=error_class))
            self._edit(workflow, at)

    def _edit(self, workflow: Workflow, at: float) -> None:
        """Now and then somebody is at work on the automation, and tries it."""
        if workflow.id not in self._editing:
            self._editing[workflow.id] = self._stream("editing", workflow.id)
        rng = self._editing[workflow.id]
        if rng.random() < self._edited:
            run = self._make(
                workflow, at=at, rng=rng, result=rng.choice(("failure", "success")), error_class="validation"
            )
            run.context, run.executed_by = rng.choice(("editor", "editor", "test_run")), f"builder-{workflow.id[:4]}"
            self._arrive(run)

    def _make(
        self,
        workflow: Workflow,
        *,
        at: float,
        rng: random.Random,
        result: str,
        error_class: str | None,
        error: str | None = None,
    ) -> Run:
        workflow.made += 1
        run_id = uuid_of(rng)
        failed = result in ("failure", "quota")
        error_class = "quota" if result == "quota" else error_class or "unknown"
        return Run(
            id=run_id,
            workflow=workflow,
            ordinal=workflow.made,
            root=run_id,
            context=CONTEXTS[workflow.run_mode],
            executed_by=workflow.owner_id,
            created_at=math.floor(at),
            delay=int(2 * rng.random()),
            seconds=round(workflow.typical_seconds * rng.triangular(0.5, 2.5, 0.9)),
            result=result,
            error_class=error_class if failed else None,
            error=error if failed else None,
            rx_bytes=int(rng.random() * 200_000),
            tx_bytes=int(rng.random() * 50_000),
            api_calls=1 + int(rng.random() * 40),
        )

    def _push(self, at: float, subject: Workflow | Run | Late) -> None:
        self._order += 1
        heapq.heappush(self._coming, (at, self._order, subject))

    def _list(self, run: Run) -> None:
        workflow = run.workflow
        run.listed = True
        workflow.runs[run.id] = run
        if workflow.newest is None or run.created_at >= workflow.newest.created_at:
            workflow.newest = run

    def _arrive(self, run: Run) -> None:
        """A run is created: it takes a slot, or waits in the queue for one."""
        self._list(run)
        run.workflow.queue.append(run)
        self._fill_slots(run.workflow, run.created_at)

    def _fill_slots(self, workflow: Workflow, at: float) -> None:
        while workflow.queue and workflow.active < min(workflow.max_concurrent_runs, self.max_concurrent_runs):
            run = workflow.queue.popleft()
            workflow.active += 1
            run.started_at = math.floor(at) + run.delay
            if not run.stopping:
                run.ends_at = run.started_at + run.seconds
                self._push(run.ends_at, run)

    def _begin_added(self, run: Run, *, announce: bool) -> None:
        """A run with given times begins. It holds a slot while it runs, but never waits for one."""
        self._list(run)
        run.workflow.active += 1
        if run.ends_at is not None and run.ends_at <= self.now:
            self._end(run, run.ends_at, announce=announce)
        elif run.ends_at is not None:
            self._push(run.ends_at, run)

    def _end(self, run: Run, at: float, *, announce: bool = True) -> None:
        workflow = run.workflow
        run.ended_at = at
        if run.started_at is None:
            workflow.queue.remove(run)
        else:
            workflow.active -= 1
            if run.started_at > at:  # stopped before it had begun
                run.started_at = None
        workflow.last_ended_at = max(at, workflow.last_ended_at or at)
        started_at = run.created_at if run.started_at is None else run.started_at
        if not run.tests:
            self._true_runs.append(
                TrueRun(
                    workflow_id=workflow.id,
                    run_id=run.id,
                    attempt=1,
                    result=run.result,
                    started_at=started_at,
                    ended_at=at,
                    error_class=run.error_class,
                )
            )
            self._settle_letters(run, at)
        self._count_usage(run, at - started_at, at)
        if self.ended and at < (self.ended[-1].ended_at or 0.0):  # a test added a run of the past
            insort(self.ended, run, key=lambda r: r.ended_at or 0.0)
        else:
            self.ended.append(run)
        if len(self.ended) > ENDED_MAX:
            del self.ended[: ENDED_MAX // 10]
        if announce and at > self.born:
            self.unsent.append(run)
        workflow.finished.append(run.id)
        self._prune(workflow, at)
        self._fill_slots(workflow, at)

    def _settle_letters(self, run: Run, at: float) -> None:
        if run.result != "cancelled":  # a stop is a person's wish: it neither saves nor loses the work
            self._close(self._open_by_root.pop(run.root, None), at)
        if run.error_class is not None:
            self._letters[run.id] = TrueDeadLetter(
                workflow_id=run.workflow.id, dead_letter_id=run.id, opened_at=at, error_class=run.error_class
            )
            self._open_by_root[run.root] = run.id

    def _close(self, run_id: str | None, at: float) -> None:
        letter = self._letters.get(run_id) if run_id is not None else None
        if letter is not None and letter.resolved_at is None:
            self._letters[letter.dead_letter_id] = replace(letter, resolved_at=at)

    def _count_usage(self, run: Run, seconds: float, at: float) -> None:
        usage = self.usage.setdefault((int(at // DAY), run.workflow.id), Counter())
        usage["runs"] += 1
        usage["duration"] += int(seconds)
        usage["bandwidthIn"] += run.rx_bytes
        usage["bandwidthOut"] += run.tx_bytes
        if run.workflow.run_mode != "manual":
            usage[f"{run.workflow.run_mode}Runs"] += 1

    def _prune(self, workflow: Workflow, now: float) -> None:
        while workflow.finished:
            oldest = workflow.runs[workflow.finished[0]]
            if len(workflow.finished) <= self._runs_max and (oldest.ended_at or now) >= now - KEPT_SECONDS:
                return
            del workflow.runs[workflow.finished.popleft()]
            self._close(oldest.id, now)


def uuid_of(rng: random.Random) -> str:
    digits = f"{rng.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"
