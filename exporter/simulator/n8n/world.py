"""What happens on the simulated n8n instance: one sequence of execution ids, everything as an event in its time.

``advance`` lets what is due happen in order. A row is gone from the API when it was not saved, was pruned or deleted;
the truth keeps what happened.
"""

import heapq
import itertools
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from exporter.simulator.core import Truth
from exporter.simulator.n8n.book import Book
from exporter.simulator.n8n.habits import Generator, draw
from exporter.simulator.n8n.model import (
    CANCELLED,
    ERRORS,
    QUEUED,
    SECOND,
    TIMED_OUT,
    WAIT_MIN,
    Execution,
    Failure,
    Instance,
    Plan,
    Workflow,
    visits,
)
from exporter.simulator.n8n.nodes import Reach, interpret
from exporter.simulator.n8n.people import People

#: n8n waits before it starts again after a crash, so that a loop of crashes is no storm.
RESTART_SECONDS = 18.0
#: So long before, it listens already, and says of everything that it is not there.
LISTENS_SECONDS = 2.0


class World:
    """The instance: workflows, executions, and what people do with them."""

    def __init__(
        self,
        *,
        stream: Callable[..., Random],
        begins_at: int,
        born_at: int,
        workflows: int,
        unsaved: int,
        tried: float,
        troubles: float,
        instance: Instance,
        reach: Reach,
        report: Callable[[Execution, int], bool],
    ) -> None:
        """``unsaved`` of the workflows do not save their successes. ``tried``: the share of starts beside which
        somebody tries the workflow in the editor, as part of no truth. ``report`` is told of each failure whose error
        workflow runs, and says whether its message gets through.
        """
        self.now = begins_at
        self.born = born_at
        self.instance = instance
        self.workflows: dict[str, Workflow] = {}
        self.rows: dict[int, Execution] = {}  # in the order of their ids; what the API can show
        self.open: dict[int, Execution] = {}  # of these, what is new, running or waiting
        self.retry_calls: Counter[int] = Counter()  # root -> retry calls, refused ones too
        self.retry_executions: Counter[int] = Counter()  # root -> executions these led to
        self.down = False
        self.starting = False
        self._stream = stream
        self._ids = stream("ids")
        self._reach = reach
        self._next_id = 1
        self._queue: list[tuple[int, int, Callable[..., None], tuple[object, ...]]] = []
        self._order = itertools.count()
        self._line: deque[Execution] = deque()  # waits for a free place
        self._busy = 0  # places taken
        self._book = Book()
        self._killed = begins_at
        self._crashed: list[Execution] = []  # as told by the last start
        self.people = People(self, tried=tried, told=report)
        self.project_id = self.new_id()
        for workflow in Generator(
            stream=stream, now=begins_at, project_id=self.project_id, troubles=troubles
        ).workflows(workflows, unsaved):
            self.workflows[workflow.id] = workflow
            self.people.schedule_starts(workflow)
        self._pruning = 0
        self.set_up(instance)
        self.advance(born_at)

    def new_id(self) -> str:
        """As n8n makes them: 16 letters and digits."""
        return "".join(self._ids.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", k=16))

    def truth(self) -> Truth:
        return self._book.truth()

    # What people, callers and the API do.

    def start(
        self,
        workflow: Workflow,
        mode: str,
        *,
        at: int | None = None,
        plan: Plan | None = None,
        body: Any = None,
        planned_for: int | None = None,
        parent: Execution | None = None,
    ) -> Execution:
        """A new execution, which may have to wait for its turn. Without a plan, nodes or dice say what it does."""
        at = self.now if at is None else at
        if plan is None:
            plan = self._plan(workflow, body, at)
        return self._enter(
            Execution(
                id=self._take_id(),
                workflow=workflow,
                mode=mode,
                plan=plan,
                created=at,
                body=body,
                planned_for=planned_for,
                parent=parent,
            ),
            at,
        )

    def retry(self, origin: Execution, *, at: int | None = None, plan: Plan | None = None, by_api: bool) -> Execution:
        """Run it once more from where it ended, whatever it is doing now: nothing guards this."""
        at = self.now if at is None else at
        root = self.root(origin)
        first = origin.last
        if origin.status == "waiting" or (origin.status == "canceled" and not origin.forgotten):
            first = visits(origin, origin.stopped or at)[-1].index
        elif origin.status in ("running", "crashed", "canceled"):
            first = 0
        if plan is None:
            plan = self._plan(origin.workflow, root.body, at, first=first, after=origin)
        if origin.status == "waiting":
            plan = replace(plan, pause=0)
        if by_api:
            self.retry_executions[root.id] += 1
        retry = Execution(
            id=self._take_id(),
            workflow=origin.workflow,
            mode="retry",
            plan=plan,
            created=at,
            retry_of=origin.id,
            resumes_at=first,
            letter=root.id,
            by_api=by_api,
            body=root.body,
        )
        return self._enter(retry, at)

    def stop(self, execution: Execution) -> None:
        """What is queued has no error then; what ran tells nothing of its nodes; of what waits, nothing is reported."""
        was = execution.status
        execution.forgotten = was != "waiting"
        failure = None if was == "new" else CANCELLED
        self._end(self.now, execution, "canceled", failure, reported=was == "running")

    def end_now(self, execution: Execution, *, failure: Failure | None = None) -> None:
        """For tests: an execution that was to go on until told ends at this moment."""
        self._end(self.now, execution, "success" if failure is None else "error", failure)

    def healed(self, execution: Execution) -> bool:
        """Whether there is nothing of its chain to retry, or no more."""
        return self._book.healed(self.root(execution))

    def root(self, execution: Execution) -> Execution:
        """What the chain of retries began with, as far as its rows are there."""
        while execution.retry_of is not None and execution.retry_of in self.rows:
            execution = self.rows[execution.retry_of]
        return execution

    def crash(self, when: int, execution: Execution) -> None:
        """What a restart makes of an execution that ran when the process died: it ended with its last node's start."""
        known = visits(execution, when)
        execution.reconstructed = True
        self._end(known[-1].began if known else when, execution, "crashed", ERRORS["killed"], at=self.now)

    def delete(self, execution: Execution) -> None:
        self._drop(execution, self.now)

    def delete_workflow(self, workflow: Workflow) -> None:
        """Its executions go with it."""
        workflow.deleted = True
        del self.workflows[workflow.id]
        for execution in [row for row in self.rows.values() if row.workflow is workflow]:
            if not execution.over:
                self._void(execution)
            self._drop(execution, self.now)

    def set_up(self, instance: Instance) -> None:
        """Start again with other settings, when nothing runs."""
        self.instance = instance
        self._tell_again()
        self._pruning += 1
        self._schedule(self.now + instance.prune_every, self._prune, self._pruning)

    def _tell_again(self) -> None:
        """What the last start told as crashed, this one tells once more: its journal has not forgotten it yet."""
        for execution in self._crashed:
            if not execution.gone and execution.stopped is not None:
                execution.stopped += 1
                self.people.report(execution, self.now)
        self._crashed = []

    def kill(self) -> None:
        """The process dies. What was running stays as it is until the next start."""
        self.down, self.starting = True, False
        for execution in self.open.values():
            if execution.status == "running":
                execution.version += 1
        self._line.clear()
        self._busy = 0
        self._killed = self.now

    def listen(self) -> None:
        """It is starting: it answers, but has no routes yet."""
        self.starting = self.down

    def restart(self) -> None:
        """It starts again, and tells what it finds running as crashed, since the last node that had begun."""
        self.down = self.starting = False
        self._tell_again()
        for execution in list(self.open.values()):
            if execution.status == "running":
                self.crash(self._killed, execution)
                self._crashed.append(execution)
            elif execution.status == "waiting" and execution.stopped is not None and execution.wait_till is not None:
                execution.stopped += 3
                if execution.wait_till < self.now:
                    self._later(self.now + SECOND, execution, self._resume)
            elif execution.status == "new":
                execution.version += 1
                self._begin(self.now, execution)

    # What happens by itself.

    def advance(self, now: int) -> None:
        """Let everything happen that is due. Time never goes back."""
        while self._queue and self._queue[0][0] <= now:
            when, _, event, arguments = heapq.heappop(self._queue)
            self.now = max(self.now, when)
            event(when, *arguments)
        self.now = max(self.now, now)

    def _schedule(self, when: int, event: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(self._queue, (when, next(self._order), event, arguments))

    def schedule(self, when: int, event: Callable[..., None], *arguments: object) -> None:
        """Have something happen at a moment, past or future; it is called with that moment."""
        self._schedule(when, event, *arguments)

    def _later(self, when: int, execution: Execution, event: Callable[[int, Execution], None]) -> None:
        """The next thing that happens to an execution, unless something else does before."""
        execution.version += 1
        execution.due = when
        self._schedule(when, self._due, execution, execution.version, event)

    def _due(self, when: int, execution: Execution, version: int, event: Callable[[int, Execution], None]) -> None:
        if execution.version == version and not execution.over and not (self.down and execution.status == "waiting"):
            event(when, execution)

    def _take_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    def skip_ids(self, number: int) -> None:
        """A gap in the sequence, as executions leave it that nobody saves."""
        self._next_id += number

    def _plan(self, workflow: Workflow, body: Any, at: int, *, first: int = 0, after: Execution | None = None) -> Plan:
        if workflow.interpreted:
            return interpret(workflow, body, reach=self._reach, first=first)
        rng = workflow.rng if after is None else self._stream("retry", after.id)
        return draw(workflow, rng, after=None if after is None else after.failure)

    def _enter(self, execution: Execution, at: int) -> Execution:
        self.rows[execution.id] = self.open[execution.id] = execution
        limit = self.instance.concurrency
        if limit is not None and execution.mode in QUEUED and self._busy >= limit:
            self._line.append(execution)
        else:
            self._begin(at, execution)
        return execution

    def _begin(self, when: int, execution: Execution) -> None:
        if execution.mode in QUEUED:
            self._busy += 1
        execution.status, execution.started, execution.traced = "running", when, self.instance.traces
        plan, timeout = execution.plan, self._timeout(execution)
        if plan.works is None:
            if timeout is not None:
                self._later(when + timeout, execution, self._time_out)
            return
        works_until = when + plan.works
        in_memory = works_until + plan.pause + plan.rest if plan.pause < WAIT_MIN else works_until
        if timeout is not None and in_memory > when + timeout:
            self._later(when + timeout, execution, self._time_out)
        elif plan.pause >= WAIT_MIN:
            self._later(works_until, execution, self._put_away)
        elif self._calls(execution):
            self._later(works_until, execution, self._call)
        else:
            self._later(in_memory, execution, self._finish)

    def _timeout(self, execution: Execution) -> int | None:
        seconds = execution.workflow.settings.get("executionTimeout", -1)
        return round(seconds * SECOND) if seconds > 0 else None

    def _calls(self, execution: Execution) -> bool:
        index = execution.workflow.find("executeWorkflow")
        return index is not None and execution.resumes_at <= index <= execution.last

    def _time_out(self, when: int, execution: Execution) -> None:
        execution.timed_out = True
        # Servers were seen to tell it as what it is, and, of a Wait node, as if a person had stopped it.
        plain = execution.workflow.interpreted or execution.id % 2 == 0
        self._end(when, execution, "canceled", TIMED_OUT if plain else CANCELLED)

    def _put_away(self, when: int, execution: Execution) -> None:
        execution.status, execution.stopped = "waiting", when
        execution.wait_till = when + execution.plan.pause
        self._free_place(when, execution)
        self._later(execution.wait_till, execution, self._resume)

    def _resume(self, when: int, execution: Execution) -> None:
        """Under the same id; its first start stays."""
        if execution.mode in QUEUED:
            self._busy += 1
        execution.status, execution.wait_till, execution.resumed = "running", None, when
        self._later(when + execution.plan.rest, execution, self._finish)

    def _call(self, when: int, execution: Execution) -> None:
        callee = self.workflows.get(execution.workflow.child or "")
        execution.version += 1
        execution.due = None
        if callee is None:
            return self._finish(when, execution)
        execution.child = self.start(callee, "integrated", at=when, parent=execution, body=execution.body)

    def _called(self, when: int, execution: Execution, failure: Failure | None) -> None:
        """The sub-workflow has ended, and takes its caller along if it failed."""
        if execution.over:
            return
        if failure is not None:
            index = execution.workflow.find("executeWorkflow")
            if failure.names_node:
                told = replace(failure, name="NodeOperationError", http_code=None, made_of=failure)
            else:  # then the caller's own error has neither a name nor a node
                told = replace(failure, name=None, description=None, http_code=None, node_type=None)
            execution.plan = replace(execution.plan, failure=told, fails_at=index)
            self._later(when, execution, self._finish)
        else:
            self._later(when + execution.plan.rest, execution, self._finish)

    def _finish(self, when: int, execution: Execution) -> None:
        failure = execution.plan.failure
        self._end(when, execution, "success" if failure is None else "error", failure)

    def _end(
        self,
        when: int,
        execution: Execution,
        status: str,
        failure: Failure | None,
        *,
        at: int | None = None,
        reported: bool = True,
    ) -> None:
        """``when``: what its row will say; ``at``: when that happens, if it is told later."""
        at = when if at is None else at
        self._void(execution)
        origin = self.rows.get(execution.retry_of) if execution.retry_of is not None else None
        execution.finished = status == "success"
        if origin is not None and origin.status == "canceled" and status == "success" and origin.failure is not None:
            status, failure = "error", origin.failure  # n8n takes the old error along
        execution.status, execution.stopped, execution.failure = status, when, failure
        execution.wait_till = None
        if execution.child is not None and not execution.child.over:
            self._end(when, execution.child, status, failure, at=at)
        saved = self._saves(execution)
        if execution.finished and saved and origin is not None:
            origin.retry_success = execution.id
        self._book.ended(execution, self.root(execution), at, saved=saved)
        if not saved:
            self._drop(execution, at)
        if failure is not None and reported:
            self.people.report(execution, at)
        if execution.parent is not None:
            self._called(at, execution.parent, failure)
        self.people.saw_end_of(execution, at)

    def _void(self, execution: Execution) -> None:
        """Nothing that was going to happen to it does."""
        if execution.status == "running":
            self._free_place(self.now, execution)
        elif execution.status == "new" and execution in self._line:
            self._line.remove(execution)
        execution.version += 1
        execution.due = None
        self.open.pop(execution.id, None)

    def _free_place(self, when: int, execution: Execution) -> None:
        if execution.mode not in QUEUED or self.down:
            return
        self._busy = max(0, self._busy - 1)
        limit = self.instance.concurrency
        if self._line and (limit is None or self._busy < limit):
            self._begin(max(when, self.now), self._line.popleft())

    def _saves(self, execution: Execution) -> bool:
        if execution.mode == "manual":
            return True
        settings, instance = execution.workflow.settings, self.instance
        if execution.status == "success":
            return bool(settings.get("saveDataSuccessExecution", "all" if instance.save_success else "none") == "all")
        return bool(settings.get("saveDataErrorExecution", "all" if instance.save_error else "none") == "all")

    # Pruning.

    def _prune(self, when: int, pruning: int) -> None:
        if pruning != self._pruning:
            return
        instance = self.instance
        self._schedule(when + instance.prune_every, self._prune, pruning)
        if self.down:
            return
        ids = list(self.rows)
        edge = ids[-instance.prune_max_count - 1] if 0 < instance.prune_max_count < len(ids) else 0
        horizon = when - instance.prune_max_age
        for execution in list(self.rows.values()):
            old = execution.stopped is not None and execution.stopped <= horizon
            if execution.over and (old or execution.id <= edge):
                self._drop(execution, when)

    def _drop(self, execution: Execution, at: int) -> None:
        """The row is gone."""
        self.rows.pop(execution.id, None)
        self.open.pop(execution.id, None)
        execution.gone = True
        self._book.lost(execution, self.rows.values(), at)
