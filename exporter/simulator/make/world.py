"""The laws of the Make simulator's world: what runs when, what an error leads to, how dead letters are retried.

Nothing here knows HTTP. The laws follow the Make help centre and API documentation. Incomplete executions are stored
only where the scenario says so; rate-limit, connection and time-out errors are then retried by Make itself, others wait
for somebody. Without storing, the whole scenario is postponed and run again. A sequential scenario stands still while
it has an unresolved item; an instant scenario is switched off by its first unhandled error, others after ``max_errors``
in a row. Retries run in batches of three and never beside the scenario itself.

Everything happens in events, taken from one heap in time order. A scenario draws from a random sequence of its own, a
retry from one fixed by its dead letter and ordinal; so neither reading the API nor the size of steps alters the world.
"""

import heapq
import itertools
import random
from bisect import insort
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from exporter.simulator.core import TrueRun
from exporter.simulator.make.model import (
    AUTO_RETRY_DELAYS,
    DAY,
    ERRORS,
    EXECUTIONS_KEPT_MAX,
    FATAL,
    FINISHED_KEPT_MAX,
    HOUR,
    MINUTE,
    PARALLEL_RUNS_MAX,
    RATE_LIMIT_PAUSE,
    RERUN_DELAYS,
    RETRY_BATCH,
    TIMELINE_KEPT_MAX,
    TRANSIENT,
    USAGE_DAYS_MAX,
    DeadLetter,
    Event,
    Execution,
    MakeError,
    MakeOptions,
    Outcome,
    Resolve,
    Scenario,
    TimelineEvent,
)


class MakeWorld:
    """All scenarios of one organization, moved by ``advance``."""

    def __init__(
        self,
        *,
        stream: Callable[..., random.Random],
        start: float,
        finished: Callable[[Execution], None],
        options: MakeOptions,
    ) -> None:
        self.now = start
        self.paused = False  # the subscription, and with it every scenario
        self.scenarios: dict[int, Scenario] = {}
        self.executions: dict[str, Execution] = {}
        self.finished: list[Execution] = []  # by end
        self.dead_letters: dict[str, DeadLetter] = {}
        self.retry_executions: Counter[str] = Counter()  # dead letter -> executions that retries by API led to
        self.runs: list[TrueRun] = []
        self._stream = stream
        self._announce = finished
        self._options = options
        self._stored_bytes = 0
        self._due: list[tuple[float, int, Event]] = []
        self._order = itertools.count()

    def advance(self, now: float) -> None:
        due = self._due
        while due and due[0][0] <= now:
            at, _, event = heapq.heappop(due)
            event(at)
        self.now = max(self.now, now)

    def at(self, when: float, event: Event) -> None:
        heapq.heappush(self._due, (when, next(self._order), event))

    # Scenarios

    def add(self, scenario: Scenario, *, first_at: float | None = None) -> None:
        """Put a scenario into the world; ``first_at`` is its first slot, or its first webhook."""
        self.scenarios[scenario.id] = scenario
        if scenario.interval is not None and first_at is not None:
            scenario.next_at = first_at
            self.at(first_at, partial(self._arrive if scenario.instant else self._slot, scenario))

    def reschedule(self, scenario: Scenario, interval: float | None) -> None:
        """Run every ``interval`` seconds from now on, or only on demand. A webhook's own pace is not ours to set."""
        if scenario.instant or interval == scenario.interval:
            return
        scenario.interval = interval
        if interval is not None:
            scenario.next_at = self.now + interval
            self.at(scenario.next_at, partial(self._slot, scenario))

    def remove(self, scenario: Scenario) -> None:
        for item in scenario.dead_letters:
            if item.resolved_at is None:
                self.close(item, self.now, "deleted")
        scenario.deleted = True
        scenario.active = False
        del self.scenarios[scenario.id]

    def set_active(
        self, scenario: Scenario, active: bool, now: float, *, author: str | None, reason: str | None = None
    ) -> None:
        """Switch scheduling on or off; ``author`` is None when the platform does it, because of an error."""
        if scenario.active == active or scenario.deleted:
            return
        scenario.active = active
        scenario.invalid = author is None and not active
        scenario.errors_in_row = scenario.reruns = 0
        scenario.waiting_until = 0.0
        detail: dict[str, object] = {"reason": reason} if reason else {}
        self.note(scenario, now, "start" if active else "stop", detail, author)
        if not active:
            if author is None and scenario.operated:
                pause = scenario.rng.uniform(10 * MINUTE, 40 * MINUTE)
                self.at(now + pause, lambda t: self.set_active(scenario, True, t, author="Operator"))
        elif scenario.instant:
            self._drain(scenario, now)
        elif scenario.interval is not None and self._ready(scenario, now):
            self._start(scenario, now)

    def note(self, scenario: Scenario, now: float, kind: str, detail: dict[str, object], author: str | None) -> None:
        """Add a row to the timeline; without an ``author`` it is the platform that says so."""
        if author is not None:
            detail = {**detail, "author": {"name": author, "staff": False}}
        event_id = str(70_000_000 + next(self._order))
        insort(scenario.timeline, TimelineEvent(event_id, now, kind, detail, author), key=lambda e: e.at)
        del scenario.timeline[:-TIMELINE_KEPT_MAX]

    def _ready(self, scenario: Scenario, now: float) -> bool:
        if not scenario.active or self.paused or scenario.blocked or now < scenario.waiting_until:
            return False
        return scenario.running < (PARALLEL_RUNS_MAX if scenario.instant and not scenario.sequential else 1)

    def _slot(self, scenario: Scenario, now: float) -> None:
        if scenario.deleted or scenario.interval is None or now != scenario.next_at:  # else: of an older schedule
            return
        scenario.next_at = now + scenario.interval
        self.at(scenario.next_at, partial(self._slot, scenario))
        if self._ready(scenario, now):
            self._start(scenario, now)

    def _arrive(self, scenario: Scenario, now: float) -> None:
        """A webhook comes in. It is queued whether or not anybody takes it out."""
        if scenario.deleted or scenario.interval is None:
            return
        self.at(round(now + scenario.rng.expovariate(1.0 / scenario.interval), 3), partial(self._arrive, scenario))
        scenario.queue = min(scenario.queue + 1, scenario.queue_limit)
        self._drain(scenario, now)

    def _drain(self, scenario: Scenario, now: float) -> None:
        while scenario.queue and self._ready(scenario, now):
            scenario.queue -= 1
            self._start(scenario, now)

    def replay(
        self, original: Execution, now: float, *, outcome: int | None = None, author_id: int | None = None
    ) -> Execution:
        """Run a scenario as it is now with what triggered an earlier execution of it; ``outcome`` is its status."""
        execution = self._start(original.scenario, now, replay_of=original, outcome=outcome)
        execution.author_id = author_id
        return execution

    def _rerun(self, scenario: Scenario, now: float) -> None:
        if scenario.waiting_until == now and self._ready(scenario, now):
            self._start(scenario, now)

    # Executions

    def _start(
        self, scenario: Scenario, now: float, *, replay_of: Execution | None = None, outcome: int | None = None
    ) -> Execution:
        rng = scenario.rng
        ended_at = round(now + scenario.duration * rng.lognormvariate(0.0, 0.5) + 0.05, 3)
        failing = scenario.failing if now >= scenario.incident_until else max(scenario.failing, 0.85)
        luck = rng.random()
        if outcome is not None:
            luck = 2.0 if outcome == 1 else -1.0
        status, error = 1, None
        if luck < failing:
            error = self._draw_error(scenario, rng, now)
            caught = scenario.break_plan is not None and error.name not in FATAL
            status = 2 if caught else 3
        elif luck < failing + scenario.warning:
            status = 2
        steps = len(scenario.modules) if error is None else error.module.id
        transfer = 200 * steps + rng.getrandbits(10)
        execution_id = f"{rng.getrandbits(128):032x}"
        execution = Execution(scenario, execution_id, now, ended_at, status, error, steps, transfer)
        execution.replay_of = replay_of
        if replay_of is not None:
            execution.kind = "manual"
        if scenario.executions and scenario.executions[-1].started_at > now:  # one placed in the future
            insort(scenario.executions, execution, key=lambda e: e.started_at)
        else:
            scenario.executions.append(execution)
        self.executions[execution.id] = execution
        scenario.running += 1
        self.at(ended_at, partial(self._finish, execution))
        return execution

    def _draw_error(self, scenario: Scenario, rng: random.Random, now: float) -> MakeError:
        name = scenario.errors[int(rng.random() * len(scenario.errors))]
        first = rng.random() < 0.04 or name == "AccountValidationError"
        module = scenario.modules[0] if first or len(scenario.modules) == 1 else rng.choice(scenario.modules[1:])
        if name in TRANSIENT and scenario.operated and now >= scenario.incident_until and rng.random() < 0.15:
            scenario.incident_until = now + rng.uniform(5 * MINUTE, 25 * MINUTE)  # the service behind it is down
        return MakeError(name, ERRORS[name][1] if name in ERRORS else "Failed.", module)

    def place(self, execution: Execution) -> None:
        """Add an execution with exactly these times, which may lie in the past or in the future."""
        scenario = execution.scenario
        insort(scenario.executions, execution, key=lambda e: e.started_at)
        self.executions[execution.id] = execution

        def begin(_: float) -> None:
            scenario.running += 1

        self.at(execution.started_at, begin)
        if execution.ended_at is not None:
            self.at(execution.ended_at, partial(self._finish, execution))

    def _finish(self, execution: Execution, now: float) -> None:
        scenario = execution.scenario
        scenario.running -= 1
        self._spend(scenario, now, execution.operations, execution.transfer)
        self._record(execution, now)
        self._announce(execution)
        if scenario.deleted:
            return
        if execution.scripted:
            if execution.dead_letter and execution.error is not None:
                self.open(scenario, now, execution_id=execution.id, error=execution.error)
        elif execution.status == 2 and execution.error is not None:
            self.open(scenario, now, execution_id=execution.id, error=execution.error)
        elif execution.status == 3 and execution.error is not None:
            self._failed(scenario, execution.id, execution.error, now)
        else:
            scenario.errors_in_row = scenario.reruns = 0
        self.pump(scenario, now)
        if scenario.instant:
            self._drain(scenario, now)

    def _record(self, execution: Execution, now: float) -> None:
        failed = execution.status == 3
        if failed and execution.error is not None:
            twin = now + 0.027 + int(execution.id[:2], 16) % 10 / 1000
            self.note(execution.scenario, twin, "warning", {"reason": execution.error.message}, None)
        run = TrueRun(
            workflow_id=execution.scenario.key,
            run_id=execution.id,
            attempt=1,
            result=("success", "warning", "failure")[execution.status - 1],
            started_at=execution.started_at,
            ended_at=now,
            error_class=execution.error.error_class if failed and execution.error is not None else None,
        )
        self.runs.append(run)
        if self.finished and now < (self.finished[-1].ended_at or 0.0):
            insort(self.finished, execution, key=lambda e: e.ended_at or 0.0)
        else:
            self.finished.append(execution)
        if len(self.finished) > FINISHED_KEPT_MAX:
            del self.finished[: FINISHED_KEPT_MAX // 10]
        kept = execution.scenario.executions
        if len(kept) > EXECUTIONS_KEPT_MAX:
            for old in kept[: EXECUTIONS_KEPT_MAX // 10]:
                self.executions.pop(old.id, None)
            del kept[: EXECUTIONS_KEPT_MAX // 10]

    def _failed(self, scenario: Scenario, execution_id: str, error: MakeError, now: float) -> None:
        """What an error does that no handler caught."""
        stored = scenario.store and error.module != scenario.modules[0]  # what the first module loses is not stored
        if stored:
            self.open(scenario, now, execution_id=execution_id, error=error)
        if error.name in FATAL:
            self.set_active(scenario, False, now, author=None, reason=error.message)
        elif scenario.instant:
            if not stored:
                self.set_active(scenario, False, now, author=None, reason="An error occurred in an instant scenario")
        elif error.name in TRANSIENT:
            if not stored:
                self._postpone(scenario, error, now)
        else:
            scenario.errors_in_row += 1
            if scenario.errors_in_row >= scenario.max_errors:
                self.set_active(scenario, False, now, author=None, reason="Too many consecutive errors")

    def _postpone(self, scenario: Scenario, error: MakeError, now: float) -> None:
        if scenario.reruns == len(RERUN_DELAYS):
            self.set_active(scenario, False, now, author=None, reason="All reruns failed")
            return
        delay = RATE_LIMIT_PAUSE if error.name == "RateLimitError" else RERUN_DELAYS[scenario.reruns]
        scenario.reruns += 1
        scenario.waiting_until = now + delay
        self.note(scenario, now + 0.04, "warning", {"reason": error.message, "delay": int(delay // 60)}, None)
        self.at(scenario.waiting_until, partial(self._rerun, scenario))

    def _spend(self, scenario: Scenario, now: float, operations: int, transfer: int) -> None:
        day = scenario.usage.get(int(now // DAY))
        if day is None:
            day = scenario.usage[int(now // DAY)] = [0, 0, 0]
            while len(scenario.usage) > USAGE_DAYS_MAX:
                del scenario.usage[min(scenario.usage)]
        day[0] += operations
        day[1] += transfer
        day[2] += 100 * operations

    # Incomplete executions

    def open(
        self,
        scenario: Scenario,
        now: float,
        *,
        execution_id: str,
        error: MakeError,
        outcomes: tuple[Outcome, ...] = (),
        native: bool = True,
    ) -> DeadLetter | None:
        """Store an incomplete execution, unless the storage is full: then the data or the schedule is given up."""
        rng = self._stream("dead letter", scenario.id, execution_id, scenario.items)
        size = rng.randrange(300, 60_000)
        if self._stored_bytes + size > self._options.storage_bytes:
            if not scenario.dataloss:
                self.set_active(scenario, False, now, author=None, reason="The storage of items is full")
            return None
        delays: tuple[float, ...] = ()
        if native and scenario.break_plan is not None:
            delays = (scenario.break_plan[1] * MINUTE,) * scenario.break_plan[0]
        elif native and error.name in TRANSIENT:
            delays = AUTO_RETRY_DELAYS
        scenario.items += 1
        item = DeadLetter(
            id=f"{rng.getrandbits(128):032x}",
            scenario=scenario,
            index=scenario.items,
            created_at=now,
            execution_id=execution_id,
            error=error,
            size=size,
            delays=delays,
            outcomes=outcomes,
            retry=bool(delays),
        )
        self.dead_letters[item.id] = item
        scenario.dead_letters.append(item)
        scenario.open_items += 1
        self._stored_bytes += size
        if self._options.dead_letters_kept is not None:
            self.at(now + self._options.dead_letters_kept, partial(self._expire, item))
        if delays:
            self.at(now + delays[0], partial(self._native, item))
        else:
            self._await_operator(item, now)
        return item

    def _expire(self, item: DeadLetter, now: float) -> None:
        """Nobody treated an item for as long as the plan keeps it: it is lost."""
        if item.state == "stored" and not item.scenario.deleted:
            item.scenario.expired_items += 1
            self.close(item, now, "expired")

    def close(self, item: DeadLetter, now: float, state: Literal["resolved", "deleted", "expired"]) -> None:
        scenario = item.scenario
        item.state, item.resolved_at, item.retry = state, now, False
        scenario.open_items -= 1
        self._stored_bytes -= item.size
        oldest = now - max(self._options.kept_for, self._options.dlq_count_lag)
        kept = [d for d in scenario.dead_letters if d.resolved_at is None or d.resolved_at >= oldest or d is item]
        scenario.dead_letters = kept
        if scenario.instant and not scenario.deleted:
            self._drain(scenario, now)

    def queue_retries(self, retries: Sequence[Resolve], now: float, *, delay: float) -> None:
        """Accept manual retries of stored items of one scenario. They join its queue together after ``delay``."""
        for retry in retries:
            retry.dead_letter.state = "queued"

        def join(at: float) -> None:
            scenario = retries[0].dead_letter.scenario
            scenario.retries.extend(retries)
            self.pump(scenario, at)

        if retries:
            self.at(now + delay, join)

    def _native(self, item: DeadLetter, now: float) -> None:
        if item.state == "stored":
            item.state = "queued"
            item.scenario.retries.append(Resolve(item, "auto"))
            self.pump(item.scenario, now)
        elif item.resolved_at is None:  # somebody else is retrying it
            self.at(now + MINUTE, partial(self._native, item))

    def _await_operator(self, item: DeadLetter, now: float) -> None:
        if item.scenario.operated:
            rng = self._stream("operator", item.id, len(item.logs))
            self.at(now + rng.uniform(0.5 * HOUR, 4 * HOUR), partial(self._operate, item, rng))

    def _operate(self, item: DeadLetter, rng: random.Random, now: float) -> None:
        """Somebody looks at an item at last: deletes it, or mends the cause and retries."""
        if item.state != "stored" or item.retry:
            return
        if rng.random() < 0.3:
            self.close(item, now, "deleted")
        else:
            item.outcomes = ("success",) if rng.random() < 0.9 else ("failure",)
            self.queue_retries([Resolve(item, "manual")], now, delay=1.0)

    def pump(self, scenario: Scenario, now: float) -> None:
        """Start the next batch of retries, unless the scenario or the batch before is still running."""
        if scenario.running or scenario.resolving:
            return
        while scenario.retries and scenario.resolving < RETRY_BATCH:
            resolve = scenario.retries.popleft()
            if resolve.dead_letter.state == "queued":
                self._resolve(resolve, now)

    def _resolve(self, resolve: Resolve, now: float) -> None:
        item = resolve.dead_letter
        scenario = item.scenario
        rng = self._stream("retry", item.id, len(item.logs))
        item.state, item.trying = "running", resolve
        self.retry_executions[item.id] += resolve.by_api
        scenario.resolving += 1
        resolve.id = f"{rng.getrandbits(128):032x}"
        resolve.started_at = now
        resolve.ended_at = round(now + scenario.duration * rng.uniform(0.2, 0.8) + 0.05, 3)
        modules = len(scenario.modules if item.frozen is None else item.frozen["flow"])
        resolve.operations = max(1, modules - item.error.module.id + 1)
        if resolve.outcome is not None:
            outcome = resolve.outcome
        elif item.outcomes:
            outcome, rest = item.outcomes[0], item.outcomes[1:]
            item.outcomes = rest or item.outcomes
        else:
            down = now < scenario.incident_until
            chance = 0.1 if down else 0.75 if item.error.name in TRANSIENT else 0.05
            luck = rng.random()
            outcome = (
                "success" if luck < chance else "other_module" if luck > 1.0 - self._options.other_module else "failure"
            )
        if outcome == "other_module" and item.error.module.id >= len(scenario.modules):
            outcome = "failure"  # there is no later module
        resolve.status = 1 if outcome == "success" else 3
        self.at(resolve.ended_at, partial(self._resolved, resolve, outcome))

    def _resolved(self, resolve: Resolve, outcome: Outcome, now: float) -> None:
        item = resolve.dead_letter
        scenario = item.scenario
        scenario.resolving -= 1
        item.trying = None
        if scenario.deleted:
            return
        item.logs.append(resolve)
        self._spend(scenario, now, resolve.operations, 100 * resolve.operations)
        if resolve.kind == "auto" or self._options.manual_attempts_count:
            item.attempts += 1
        if outcome == "failure":
            self._retry_failed(item, resolve, now)
        else:
            if (
                outcome == "other_module"
            ):  # stored before the old item goes, so that a sequential scenario stays blocked
                error = MakeError(item.error.name, item.error.message, scenario.modules[item.error.module.id])
                self.open(scenario, now, execution_id=resolve.id, error=error)
            self.close(item, now, "resolved")
        self.pump(scenario, now)

    def _retry_failed(self, item: DeadLetter, resolve: Resolve, now: float) -> None:
        item.state = "stored"
        if resolve.kind == "auto":
            item.native_tries += 1
            if item.native_tries < len(item.delays):
                self.at(now + item.delays[item.native_tries], partial(self._native, item))
                return
            item.retry = False
        if not item.retry:
            self._await_operator(item, now)
