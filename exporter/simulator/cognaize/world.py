"""The world behind the Cognaize simulator: what starts, finishes, fails and is restarted, and when.

Starts, finishes and restarts are events in one queue. Each workflow draws from a random sequence of its own; whatever
interferes (a step completed or restarted through the API) draws from a further one, so that a request changes nothing
but the process it names.

A restarted process keeps its id; each of its finishes is one attempt in the truth. A step that nobody completed in time
fails like any other: its result is ``failure`` and only the error class says ``timeout``, because the platform shows no
difference. Each failure opens a dead letter, which the restart of that step resolves.
"""

import heapq
import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from random import Random
from typing import Literal

from exporter.simulator.cognaize.process import SECOND, Params, Plan, Process, Shelf, Step, Workflow
from exporter.simulator.core import TrueDeadLetter, TrueRun, Truth

Order = Literal["oldest_first", "newest_first", "unordered"]
Outcome = Literal["success", "failure"]  # of a restart

ATTEMPTS_MAX = 6  # people lose patience
ERRORS = {"network": 4, "timeout": 3, "platform": 2, "throttled": 1, "validation": 2, "not_found": 1}  # class: weight
LASTING = {"validation", "not_found"}  # a restart seldom helps
NAMES = ("Invoices", "Loan agreements", "Bank statements", "Tax forms", "Annual reports", "Rent rolls")


def text_param(value: str) -> Params:
    return {"strValue": value, "longValue": None, "doubleValue": None, "type": "STRING"}


class World:
    """All workflows and processes. Methods that take seconds say so; all other times are microseconds."""

    def __init__(
        self,
        *,
        stream: Callable[..., Random],
        begins_at: float,
        born_at: float,
        workflows: int,
        resolution: int,
        order: Order,
        kept_seconds: float,
        kept_max: int,
        finished: Callable[[TrueRun, str | None], None],
        troubles: float,
    ) -> None:
        """Generate the world from ``begins_at`` to ``born_at`` (both seconds).

        ``resolution`` is the finest step of its timestamps in microseconds; ``finished(run, message)`` is called for
        each attempt that finishes after ``born_at``.
        """
        self._stream = stream
        self._ids = stream("ids")
        self._resolution = resolution
        self._order = order
        self._kept_for = round(kept_seconds * SECOND)
        self._kept_max = kept_max
        self._on_finished = finished
        self._troubles = troubles
        self._queue: list[tuple[int, int, Callable[..., None], tuple[object, ...]]] = []
        self._sequence = itertools.count()
        self._runs: list[TrueRun] = []
        self._dead_letters: dict[str, TrueDeadLetter] = {}
        self._newest: dict[str, str] = {}  # step -> its newest dead letter, open or not
        self.retry_executions: Counter[str] = Counter()  # dead letter -> restarts by API that really happened
        self.workflows: dict[str, Workflow] = {}
        self.processes: dict[str, Process] = {}  # also those that are yet to come
        self.shelf = self._new_shelf()
        self.now = self.tick(begins_at)
        self._born = self.tick(born_at)
        for number in range(workflows):
            self._generate_workflow(number)
        self.advance_to(round(born_at * SECOND))

    def tick(self, when: float) -> int:
        """Seconds -> microseconds, cut to what the API can show."""
        return self.cut(round(when * SECOND))

    def cut(self, when: int) -> int:
        return when - when % self._resolution

    def new_id(self, prefix: str) -> str:
        """For what is made by hand or through the API; generated processes draw theirs from their workflow."""
        return f"{prefix}-{self._ids.getrandbits(64):016x}"

    def truth(self) -> Truth:
        return Truth(
            runs=sorted(self._runs, key=lambda run: (run.ended_at, run.run_id, run.attempt)),
            dead_letters=sorted(self._dead_letters.values(), key=lambda held: (held.opened_at, held.dead_letter_id)),
        )

    def process(self, process_id: str) -> Process | None:
        process = self.processes.get(process_id)
        return process if process is not None and process.created <= self.now else None

    def step(self, step_id: str) -> tuple[Process, int] | None:
        process_id, _, number = step_id.rpartition("-s")
        process = self.process(process_id)
        if process is not None:
            for index in range(len(process.workflow.steps)):
                if number == str(index + 1):
                    return process, index
        return None

    # What people and the API do.

    def add_workflow(
        self, *, workflow_id: str, name: str, steps: tuple[Step, ...], failure_rate: float = 0.0
    ) -> Workflow:
        if workflow_id in self.workflows:
            raise ValueError(f"workflow {workflow_id} exists")
        rng = self._stream("workflow", workflow_id)
        workflow = Workflow(
            id=workflow_id, name=name, steps=steps, shelf=self._new_shelf(), rng=rng, failure_rate=failure_rate
        )
        self.workflows[workflow_id] = workflow
        return workflow

    def delete_process(self, process: Process) -> None:
        self._drop([process])

    def delete_workflow(self, workflow: Workflow) -> None:
        workflow.deleted = True
        del self.workflows[workflow.id]
        self._drop([process for process in self.processes.values() if process.workflow is workflow])

    def add_process(self, workflow: Workflow, process_id: str, began: int, plan: Plan | None = None) -> Process:
        """A process with a given plan, or a drawn one. It appears when its time has come, be that past or future."""
        if process_id in self.processes:
            raise ValueError(f"process {process_id} exists")
        if plan is None:
            plan = self._draw(workflow, 0, began, self._stream("attempt", process_id, 1))
        process = self._new_process(workflow, process_id, began, plan)
        self._schedule(began, self._begin, process)
        self.advance_to(self.now)
        return process

    def add_restart(self, process: Process, began: int, plan: Plan) -> None:
        """Somebody restarts the process at this moment, past or future. It must have failed by then."""
        self._schedule(began, self._restart_as_told, process, plan)
        self.advance_to(self.now)

    def newest_dead_letter(self, process: Process, index: int) -> str | None:
        return self._newest.get(process.step_id(index))

    def restart_now(
        self, process: Process, index: int, *, outcome: Outcome | None = None, by_api: bool = True, delay: float = 0.0
    ) -> bool:
        """False, and no change, if the step has not failed. With a delay (seconds), it is asked again when it is over.

        ``outcome`` None: as the dice have it.
        """
        if delay > 0:
            self._schedule(self.now + round(delay * SECOND), self._restart_late, process, index, outcome, by_api)
            return process.status(index, self.now) == "FAILED"
        at = self._moment_for(process)
        if process.status(index, at) != "FAILED":
            return False
        if by_api and process.dead_letter is not None:
            self.retry_executions[process.dead_letter] += 1
        self._restart(at, process, None if outcome is None else self._planned(process, index, at, outcome))
        return True

    def complete_now(self, process: Process, index: int) -> bool:
        """A third party says that a started step is done; what follows is drawn anew. False if it has not started."""
        at = self._moment_for(process)
        if process.status(index, at) != "STARTED":
            return False
        rng = self._stream("completed", process.id, process.attempt, index)
        rest = self._draw(process.workflow, index + 1, at, rng)
        before = process.plan.ends[: index - process.first]
        self._replan(process, Plan(ends=[*before, at, *rest.ends], error=rest.error, restart_after=rest.restart_after))
        self.advance_to(at)
        return True

    # What happens by itself.

    def advance_to(self, now: int) -> None:
        """Let everything happen that is due, in the order of its time. Time never goes back."""
        while self._queue and self._queue[0][0] <= now:
            when, _, event, arguments = heapq.heappop(self._queue)
            self.now = max(self.now, when)
            event(when, *arguments)
        self.now = max(self.now, now)

    def _schedule(self, when: int, event: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(self._queue, (when, next(self._sequence), event, arguments))

    def _moment_for(self, process: Process) -> int:
        """Now, but never the moment of the last transition: each one changes the update timestamp."""
        at = max(self.cut(self.now), process.updated(self.now) + self._resolution)
        self.advance_to(at)
        return at

    def _start_by_schedule(self, when: int, workflow: Workflow) -> None:
        if workflow.deleted or workflow.interval is None:
            return
        rng = workflow.rng
        pause = self._duration(workflow.interval * (0.7 + 0.6 * rng.random()))
        self._schedule(when + pause, self._start_by_schedule, workflow)
        if workflow.enabled:
            process_id = f"p-{rng.getrandbits(64):016x}"
            self._begin(when, self._new_process(workflow, process_id, when, self._draw(workflow, 0, when, rng)))

    def _begin(self, _when: int, process: Process) -> None:
        if process.gone:
            return
        workflow = process.workflow
        workflow.history.append(process)
        workflow.shelf.add(process)
        self.shelf.add(process)
        self._await_finish(process)
        self._forget_old(workflow)

    def _await_finish(self, process: Process) -> None:
        if process.ends():
            self._schedule(process.plan.ends[-1], self._finish, process, process.version)

    def _finish(self, when: int, process: Process, version: int) -> None:
        if process.gone or process.version != version:
            return
        workflow, plan = process.workflow, process.plan
        run = TrueRun(
            workflow_id=workflow.id,
            run_id=process.id,
            attempt=process.attempt,
            result="success" if plan.error is None else "failure",
            started_at=process.began / SECOND,
            ended_at=when / SECOND,
            error_class=plan.error,
        )
        self._runs.append(run)
        if plan.error is not None:
            process.dead_letter = letter_id = f"{process.id}.{process.step_id(process.last)}.{when // 1000}"
            self._newest[process.step_id(process.last)] = letter_id
            self._dead_letters[letter_id] = TrueDeadLetter(
                workflow_id=workflow.id, dead_letter_id=letter_id, opened_at=run.ended_at, error_class=plan.error
            )
            if plan.restart_after is not None and process.attempt < ATTEMPTS_MAX:
                self._schedule(when + plan.restart_after, self._restart_by_person, process, version)
        if when > self._born:
            step = f"step {process.last + 1} ({workflow.steps[process.last].delegate})"
            self._on_finished(run, None if plan.error is None else f"{step} failed: {plan.error}")

    def _restart_by_person(self, when: int, process: Process, version: int) -> None:
        if not process.gone and process.version == version:
            self._restart(when, process)

    def _restart_as_told(self, when: int, process: Process, plan: Plan) -> None:
        if process.gone:
            return
        if process.plan.error is None or not process.finished(when):
            raise ValueError(f"process {process.id} has not failed: nobody can restart it")
        self._restart(when, process, plan)

    def _restart_late(self, _when: int, process: Process, index: int, outcome: Outcome | None, by_api: bool) -> None:
        if not process.gone:
            self.restart_now(process, index, outcome=outcome, by_api=by_api)

    def _planned(self, process: Process, index: int, at: int, outcome: Outcome) -> Plan:
        """Every step takes as long as it typically does; a failure is that of the restarted step."""
        steps = process.workflow.steps[index : index + 1 if outcome == "failure" else None]
        ends = list(itertools.accumulate((self._duration(s.seconds or 1.0) for s in steps), initial=at))[1:]
        return Plan(ends=ends, error=process.plan.error if outcome == "failure" else None)

    def _restart(self, when: int, process: Process, plan: Plan | None = None) -> None:
        self._resolve(process, when)
        after = process.plan.error
        process.first, process.began = process.last, when
        process.attempt += 1
        if plan is None:
            rng = self._stream("attempt", process.id, process.attempt)
            plan = self._draw(process.workflow, process.first, when, rng, after=after)
        self._replan(process, plan)

    def _replan(self, process: Process, plan: Plan) -> None:
        process.plan = plan
        process.version += 1
        self._await_finish(process)

    def _resolve(self, process: Process, when: int) -> None:
        if process.dead_letter is not None:
            held = self._dead_letters[process.dead_letter]
            self._dead_letters[process.dead_letter] = replace(held, resolved_at=when / SECOND)
            process.dead_letter = None

    # Forgetting: the platform lets go of a process, and of its dead letter with it. The truth keeps all.

    def _forget_old(self, workflow: Workflow) -> None:
        """Some at a time: a tenth more than wanted may stay."""
        history = workflow.history
        many, long = self._kept_max + self._kept_max // 10, self._kept_for + self._kept_for // 10
        if len(history) <= many and history[0].created >= self.now - long:
            return
        excess, horizon = len(history) - self._kept_max, self.now - self._kept_for
        old = [process for at, process in enumerate(history) if at < excess or process.created < horizon]
        self._drop([process for process in old if process.finished(self.now)])

    def _drop(self, processes: Iterable[Process]) -> None:
        shelves: dict[int, Workflow] = {}
        for process in processes:
            process.gone = True
            shelves[id(process.workflow)] = process.workflow
            del self.processes[process.id]
            self._resolve(process, self.now)
        for workflow in shelves.values():
            workflow.shelf.drop_gone()
            workflow.history = deque(process for process in workflow.history if not process.gone)
        if shelves:
            self.shelf.drop_gone()

    # Drawing from the dice.

    def _generate_workflow(self, number: int) -> None:
        workflow_id = f"wf-{number + 1}"
        rng = self._stream("workflow", workflow_id)
        gatekeeper = Step(
            delegate="GATEKEEPER",
            timeout_seconds=60,
            seconds=rng.uniform(1, 5),
            params={"gatekeeperUrl": text_param("https://gatekeeper.example/check")},
        )
        models = tuple(
            Step(
                delegate="MODEL",
                timeout_seconds=600,
                seconds=rng.uniform(5, 90),
                params={"modelUrl": text_param(f"https://models.example/{number + 1}/{place + 1}")},
            )
            for place in range(rng.choice((1, 1, 1, 2)))
        )
        distribution = Step(
            delegate="DISTRIBUTION",
            seconds=rng.uniform(2, 60),
            params={"taskDefinitionId": text_param(f"task-{number + 1}")},
        )
        workflow = Workflow(
            id=workflow_id,
            name=f"{NAMES[number % len(NAMES)]} {number + 1}",
            steps=(gatekeeper, *models, distribution),
            shelf=self._new_shelf(),
            rng=rng,
            interval=rng.uniform(30, 600),
            failure_rate=self._troubles * rng.choice((0.01, 0.03, 0.08, 0.2)),
            stubborn=0.9,
            restart_rate=0.5,
            spread=0.5,
        )
        self.workflows[workflow_id] = workflow
        self._schedule(self.now + self._duration(rng.uniform(0, 600)), self._start_by_schedule, workflow)

    def _draw(self, workflow: Workflow, first: int, at: int, rng: Random, *, after: str | None = None) -> Plan:
        """What happens from step ``first`` on, which starts at ``at``; ``after``: the error it is restarted for."""
        steps = workflow.steps
        failing, error = -1, "unknown"
        again = after in LASTING and rng.random() < workflow.stubborn
        if first < len(steps) and (again or rng.random() < workflow.failure_rate):
            failing = first if after else rng.randrange(first, len(steps))
            error = after or rng.choices(tuple(ERRORS), tuple(ERRORS.values()))[0]
            if error == "timeout" and not steps[failing].timeout_seconds:
                error = "network"
        restart_after = None
        if failing >= 0 and rng.random() < workflow.restart_rate:
            restart_after = self._duration(rng.uniform(60, 1200))
        ends: list[int] = []
        for index in range(first, len(steps)):
            step = steps[index]
            lasts = None
            if step.seconds is not None and not (index == failing and error == "timeout"):
                lasts = self._duration(step.seconds * (1 + workflow.spread * (2 * rng.random() - 1)))
            timeout = step.timeout_seconds * SECOND
            if timeout and (lasts is None or lasts > timeout):
                return Plan(ends=[*ends, at + timeout], error="timeout", restart_after=restart_after)
            if lasts is None:
                break
            at += lasts
            ends.append(at)
            if index == failing:
                return Plan(ends=ends, error=error, restart_after=restart_after)
        return Plan(ends=ends)

    def _duration(self, seconds: float) -> int:
        """A duration in microseconds, as fine as the API shows it and never nothing."""
        return max(self._resolution, self.tick(seconds))

    def _new_shelf(self) -> Shelf:
        return Shelf(newest_first=self._order == "newest_first")

    def _new_process(self, workflow: Workflow, process_id: str, began: int, plan: Plan) -> Process:
        rank = (0 if self._order == "unordered" else began, process_id)
        process = Process(workflow=workflow, id=process_id, created=began, began=began, plan=plan, rank=rank)
        self.processes[process_id] = process
        return process
