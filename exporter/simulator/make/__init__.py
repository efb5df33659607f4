"""A stand-in for Make: an organization whose scenarios run, fail, store dead letters and are retried, over its own API.

The nouns and options of that world are in ``model``, its laws in ``world``, the JSON shapes in ``rows``,
access and paging in ``gate``, the routes in ``api``. Here is what ties them together: a generated workload,
the webhooks users build (Make itself announces nothing), and what tests place by hand.

The truth holds the executions of scenarios, each as attempt 1: on Make every run has an id of its own. Attempts to
resolve a dead letter are no runs of the scenario and are not among its logs. They show in the dead letter's own logs
and, once one succeeds, in its ``resolved_at``.
"""

import math
from collections import Counter, deque
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import orjson
from aiohttp import web

from exporter.clock import Clock
from exporter.simulator.core import Delivery, Engine, Faults, TrueDeadLetter, Truth
from exporter.simulator.make.api import OUTCOMES, MakeApi
from exporter.simulator.make.edits import freeze
from exporter.simulator.make.gate import Gate, Refused, error_body
from exporter.simulator.make.model import (
    DAY,
    ERRORS,
    DeadLetter,
    Execution,
    MakeError,
    MakeOptions,
    Module,
    Outcome,
    Resolve,
    Scenario,
)
from exporter.simulator.make.rows import hook_id, iso
from exporter.simulator.make.world import MakeWorld
from exporter.simulator.repairs import RepairPlan, RepairPlans
from exporter.simulator.retries import RetryPlan, planned

FIRST_ID = 5001
#: More retries than anybody makes.
PLANNED_WELL = 10_000
DELIVERIES_KEPT_MAX = 100_000
STATUSES = {"success": 1, "warning": 2, "failure": 3}
SUBJECTS = ("Order", "Invoice", "Customer", "Shipment", "Lead", "Ticket", "Payment", "Stock")
DEEDS = ("sync", "import", "export", "notification", "enrichment", "backup", "report", "clean-up")
APPS = (
    ("http", "MakeRequest"),
    ("json", "ParseJSON"),
    ("google-sheets", "addRow"),
    ("slack", "CreateMessage"),
    ("mysql", "insert"),
)
PROFILES = (  # probability of an error and of a warning, and the errors
    (0.005, 0.0, ("ConnectionError",)),
    (0.01, 0.01, ("RateLimitError", "ModuleTimeoutError")),
    (0.03, 0.05, ("ConnectionError", "ModuleTimeoutError", "DataError")),
    (0.02, 0.0, ("DataError", "BundleValidationError", "RuntimeError")),
    (0.04, 0.01, ("ConnectionError", "ConnectionError", "DuplicateDataError", "InvalidAccessTokenError")),
)


class MakeSimulator:
    """The simulated Make. ``options`` are the fields of ``MakeOptions``, by name."""

    name = "make"

    def __init__(
        self, *, clock: Clock, seed: int = 1, workflows: int = 6, faults: Faults | None = None, **options: Any
    ) -> None:
        self.options = MakeOptions(**options)
        self.clock = clock
        self.faults = faults if faults is not None else Faults()
        self.engine = Engine(
            name=self.name, clock=clock, seed=seed, faults=self.faults, advance=self.advance, error_body=error_body
        )
        self.requests: Counter[str] = self.engine.requests
        self.teams = {self.options.team_id: "Operations"}
        self._deliveries: deque[Delivery] = deque(maxlen=DELIVERIES_KEPT_MAX)
        self._live_from = round(clock.now(), 3)
        start = round(self._live_from - self.options.history, 3)
        self.world = MakeWorld(stream=self.engine.stream, start=start, finished=self._announce, options=self.options)
        gate = Gate(engine=self.engine, options=self.options)
        #: Dead letter -> calls for a retry that named it and got past the credential and the limit, refused ones too.
        self.retry_calls: Counter[str] = Counter()
        #: Dead letter -> executions that these calls led to; those of other people and of Make itself do not count.
        self.retry_executions = self.world.retry_executions
        self._plans: deque[RetryPlan] = deque()
        self._repairs = RepairPlans(Refused)
        self._api = MakeApi(
            gate=gate,
            world=self.world,
            options=self.options,
            teams=self.teams,
            truth=self.truth,
            retry_calls=self.retry_calls,
            plans=self._plans,
            repairs=self._repairs,
        )
        for number in range(workflows):
            self._generate(FIRST_ID + number, number, start)
        self.advance(self._live_from)

    def app(self) -> web.Application:
        return self._api.app()

    def advance(self, now: float) -> None:
        self.world.advance(now)

    def fail_next(self, *kinds: str) -> None:
        self.engine.fail_next(*kinds)

    def truth(self) -> Truth:
        self.advance(self.clock.now())
        items = [
            TrueDeadLetter(
                workflow_id=d.scenario.key,
                dead_letter_id=d.id,
                opened_at=d.created_at,
                resolved_at=d.resolved_at,
                error_class=d.error.error_class,
            )
            for d in self.world.dead_letters.values()
        ]
        return Truth(runs=list(self.world.runs), dead_letters=items)

    def take_deliveries(self) -> list[Delivery]:
        self.advance(self.clock.now())
        queued = list(self._deliveries)
        self._deliveries.clear()
        return self.engine.disturb(queued)

    # What tests place by hand

    def add_workflow(
        self,
        workflow_id: str | None = None,
        name: str | None = None,
        *,
        team_id: int | None = None,
        first_in: float | None = None,
        **settings: Any,
    ) -> str:
        """Add a scenario. ``settings`` are fields of ``Scenario``: interval, instant, store, sequential, failing, ...

        Without an ``interval`` it runs on demand: only what ``add_run`` places happens. ``first_in``: seconds to its
        first run; otherwise it comes after one interval.
        """
        free = max(self.world.scenarios, default=FIRST_ID - 1) + 1
        scenario_id = int(workflow_id) if workflow_id is not None else free
        if scenario_id in self.world.scenarios:
            raise ValueError(f"there is a scenario {scenario_id} already")
        team = team_id if team_id is not None else self.options.team_id
        self.teams.setdefault(team, f"Team {team}")
        now = self.clock.now()
        scenario = Scenario(
            id=scenario_id,
            name=name if name is not None else f"Scenario {scenario_id}",
            team_id=team,
            created_at=now,
            modules=modules_of(settings.get("instant", False), 4),
            rng=self.engine.stream("workflow", scenario_id),
        )
        scenario = replace(scenario, **settings)
        first_at = None
        if scenario.interval is not None:
            first_at = round(now + (scenario.interval if first_in is None else first_in), 3)
        self.world.add(scenario, first_at=first_at)
        return scenario.key

    def add_run(
        self,
        workflow_id: str,
        *,
        started_at: float,
        ended_at: float | None,
        result: str,
        run_id: str | None = None,
        error: str = "RuntimeError",
        message: str | None = None,
        manual: bool = False,
        dead_letter: bool = False,
        callback: bool = False,
        trigger: bool = False,
        parent: tuple[str, str] | None = None,
        replay_of: str | None = None,
    ) -> str:
        """Place a run with exactly these times; ``ended_at=None`` hangs for ever.

        It has no consequences (reruns, deactivation) but those asked for: with ``dead_letter`` it stores one when it
        ends, which Make then treats as any other; with ``callback`` its end calls back as if started through the API.
        ``trigger``: it failed in its first module. ``parent`` is the scenario and the run that called it, ``replay_of``
        the run that it replays.
        """
        scenario = self._scenario(workflow_id)
        if result not in STATUSES:
            raise ValueError(f"Make shows success, warning and failure, not {result}")
        if ended_at is not None and ended_at < started_at:
            raise ValueError("a run cannot end before it starts")
        if run_id is None:
            rng = self.engine.stream("run", scenario.id, len(scenario.executions), started_at)
            run_id = f"{rng.getrandbits(128):032x}"
        if run_id in self.world.executions:
            raise ValueError(f"there is a run {run_id} already")
        status = STATUSES[result]
        cause = self._error(scenario, error, message) if status == 3 or dead_letter else None
        execution = Execution(scenario, run_id, started_at, ended_at, status, cause, transfer=200)
        execution.kind = "manual" if manual else "auto"
        execution.scripted, execution.dead_letter, execution.callback = True, dead_letter, callback
        execution.parent = None if parent is None else (int(parent[0]), parent[1])
        execution.replay_of = None if replay_of is None else self.world.executions[replay_of]
        if trigger and cause is not None:
            execution.error = replace(cause, module=scenario.modules[0])
        self.world.place(execution)
        self.advance(self.clock.now())
        return run_id

    def add_dead_letter(
        self,
        workflow_id: str,
        *,
        run_id: str | None = None,
        error: str = "ConnectionError",
        message: str | None = None,
        native: bool = False,
        outcomes: tuple[Outcome, ...] = (),
    ) -> str:
        """Store a dead letter now. ``native``: Make retries it itself, if it would; ``outcomes``: of the coming retries
        in order, the last one for ever."""
        self.advance(self.clock.now())
        scenario = self._scenario(workflow_id)
        execution_id = run_id or f"{self.engine.stream('lost run', scenario.id, scenario.items).getrandbits(128):032x}"
        cause = self._error(scenario, error, message)
        now = self.clock.now()
        item = self.world.open(scenario, now, execution_id=execution_id, error=cause, outcomes=outcomes, native=native)
        if item is None:
            raise ValueError("the storage of incomplete executions is full")
        return item.id

    def plan_retries(self, *plans: Outcome | RetryPlan) -> None:
        """What becomes of the coming retry calls that are accepted, in order, instead of what chance says.

        A bare outcome stands for a call that simply works out so. One plan is for one call, however many it names.
        """
        found = [planned(plan) for plan in plans]
        for plan in found:
            if plan.outcome is not None and plan.outcome not in OUTCOMES:
                raise ValueError(f"a retry ends as one of {', '.join(OUTCOMES)}, not {plan.outcome}")
        self._plans.extend(found)

    def forget_plans(self) -> None:
        """From now on every accepted retry call succeeds."""
        self._plans.clear()
        self._plans.extend(RetryPlan(outcome="success") for _ in range(PLANNED_WELL))

    def plan_repairs(self, *plans: RepairPlan) -> None:
        """What becomes of the coming calls that discard or fix dead letters or switch a scenario on, in order."""
        self._repairs.add(*plans)

    def retry_by_person(
        self, dead_letter_id: str, *, outcome: Outcome = "success", author_id: int | None = None
    ) -> None:
        """Somebody retries a stored dead letter on the platform's own pages. Their row names ``author_id``, if any."""
        self.advance(self.clock.now())
        item = self._item(dead_letter_id)
        retry = Resolve(item, "manual", author_id=author_id, outcome=outcome)
        self.world.queue_retries([retry], self.clock.now(), delay=self.options.retry_delay)

    def replay_by_person(
        self, run_id: str, *, outcome: Literal["success", "failure"] = "success", author_id: int | None = None
    ) -> str:
        """Somebody replays a run on the platform's own pages, now; the new run, which names ``author_id``, if any."""
        self.advance(self.clock.now())
        original = self.world.executions[run_id]
        status = STATUSES[outcome]
        return self.world.replay(original, self.clock.now(), outcome=status, author_id=author_id).id

    def retry_natively(self, dead_letter_id: str, *, outcome: Outcome = "success") -> None:
        """Make's own retry of a stored dead letter is due now."""
        self.advance(self.clock.now())
        item = self._item(dead_letter_id)
        item.state = "queued"
        item.scenario.retries.append(Resolve(item, "auto", outcome=outcome))
        self.world.at(self.clock.now(), partial(self.world.pump, item.scenario))

    def delete_dead_letter(self, dead_letter_id: str) -> None:
        """Somebody deletes a dead letter."""
        self.advance(self.clock.now())
        self.world.close(self.world.dead_letters[dead_letter_id], self.clock.now(), "deleted")

    def edit_workflow(
        self, workflow_id: str, *, modules: tuple[Module, ...] | None = None, schedule: bool = False
    ) -> None:
        """Somebody saves the scenario: its blueprint is another one from now on, or its schedule too."""
        self.advance(self.clock.now())
        scenario = self._scenario(workflow_id)
        freeze(scenario)
        scenario.edited_at = self.clock.now()
        scenario.modules = modules or scenario.modules
        self.world.note(scenario, self.clock.now(), "modify", {}, "Operator")
        if schedule:
            self.world.note(scenario, self.clock.now(), "schedule", {}, "Operator")

    def pause_workflow(self, workflow_id: str, minutes: int, reason: str) -> None:
        """Make itself waits with the next run after an error."""
        self.advance(self.clock.now())
        scenario, now = self._scenario(workflow_id), self.clock.now()
        scenario.waiting_until = now + 60.0 * minutes
        self.world.note(scenario, now, "warning", {"reason": reason, "delay": minutes}, None)

    def stop_workflow(self, workflow_id: str, reason: str) -> None:
        """Make itself switches a scenario off after an error."""
        self.advance(self.clock.now())
        self.world.set_active(self._scenario(workflow_id), False, self.clock.now(), author=None, reason=reason)

    def rename_workflow(self, workflow_id: str, name: str) -> None:
        freeze(self._scenario(workflow_id))
        self._scenario(workflow_id).name = name
        self.edit_workflow(workflow_id)

    def delete_workflow(self, workflow_id: str) -> None:
        self.advance(self.clock.now())
        self.world.remove(self._scenario(workflow_id))

    def set_enabled(self, workflow_id: str, enabled: bool) -> None:
        self.advance(self.clock.now())
        self.world.set_active(self._scenario(workflow_id), enabled, self.clock.now(), author="Operator")

    def set_paused(self, paused: bool) -> None:
        """Pause the whole organization, as a subscription problem does."""
        self.advance(self.clock.now())
        self.world.paused = paused

    def hook_id(self, workflow_id: str) -> int | None:
        return hook_id(self._scenario(workflow_id))

    def _scenario(self, workflow_id: str) -> Scenario:
        return self.world.scenarios[int(workflow_id)]

    def _item(self, dead_letter_id: str) -> DeadLetter:
        item = self.world.dead_letters[dead_letter_id]
        if item.state != "stored":
            raise ValueError(f"dead letter {dead_letter_id} is {item.state}: nobody can retry it")
        return item

    def _error(self, scenario: Scenario, name: str, message: str | None) -> MakeError:
        module = scenario.modules[min(1, len(scenario.modules) - 1)]
        return MakeError(name, message if message is not None else ERRORS.get(name, ("", "Failed."))[1], module)

    # The workload

    def _generate(self, scenario_id: int, number: int, start: float) -> None:
        rng = self.engine.stream("workflow", scenario_id)
        instant = rng.random() < 0.35
        interval = float(rng.choice((30, 120, 300, 600) if instant else (60, 120, 300, 600, 600, 600)))
        failing, warning, errors = PROFILES[(number + rng.randrange(2)) % len(PROFILES)]
        store = rng.random() < (0.9 if instant else 0.7)
        reports: tuple[Literal["all", "failures", "none"], ...] = ("all", "all", "failures", "none")
        deed = DEEDS[(number // len(SUBJECTS)) % len(DEEDS)]
        again = number // (len(SUBJECTS) * len(DEEDS))
        scenario = Scenario(
            id=scenario_id,
            name=f"{SUBJECTS[number % len(SUBJECTS)]} {deed}" + (f" {again + 1}" if again else ""),
            team_id=self.options.team_id,
            created_at=start - DAY * rng.randrange(1, 400),
            modules=modules_of(instant, rng.randrange(3, 6)),
            rng=rng,
            interval=interval,
            instant=instant,
            store=store,
            sequential=store and rng.random() < 0.25,
            break_plan=(3, 15) if store and rng.random() < 0.2 else None,
            dataloss=rng.random() < 0.2,
            confidential=rng.random() < 0.1,
            duration=min(math.exp(rng.uniform(math.log(0.8), math.log(40.0))), interval * 0.4),
            failing=failing * self.options.troubles,
            warning=warning * self.options.troubles,
            errors=errors,
            reports=rng.choice(reports),
            operated=True,
        )
        self.world.add(scenario, first_at=round(start + rng.random() * interval, 3))

    # Webhooks: an HTTP module at the end of a scenario or of its error route, and callbacks of runs started by API

    def _announce(self, execution: Execution) -> None:
        ended_at = execution.ended_at
        if ended_at is None or ended_at <= self._live_from:
            return
        scenario = execution.scenario
        if scenario.reports == "all" or (scenario.reports == "failures" and execution.status == 3):
            headers = {"Content-Type": "application/json", self.options.webhook_header: self.options.webhook_secret}
            self._deliveries.append(Delivery(headers=headers, body=orjson.dumps(run_finished(execution, ended_at))))
        if execution.callback:
            url = f"{self.options.zone}/api/v2/scenarios/{scenario.id}/executions/{execution.id}"
            body = orjson.dumps({"executionId": execution.id, "statusUrl": url})
            self._deliveries.append(Delivery(headers={"Content-Type": "application/json"}, body=body))


def modules_of(instant: bool, count: int) -> tuple[Module, ...]:
    """A trigger and some modules; ids run from 1."""
    first = ("gateway", "CustomWebHook") if instant else ("google-sheets", "watchRows")
    return tuple(Module(i, app, name) for i, (app, name) in enumerate((first, *APPS[: max(1, count) - 1]), start=1))


def run_finished(execution: Execution, ended_at: float) -> dict[str, object]:
    """The documented event, as an HTTP module would map it."""
    failed = execution.status == 3
    event: dict[str, object] = {
        "event": "run.finished",
        "workflow_id": execution.scenario.key,
        "run_id": execution.id,
        "attempt": 1,
        "result": next(result for result, status in STATUSES.items() if status == execution.status),
        "started_at": iso(execution.started_at),
        "ended_at": iso(ended_at),
        "occurred_at": iso(ended_at),
    }
    if failed and execution.error is not None:
        event["error"] = {"type": execution.error.name, "message": execution.error.message}
    return event
