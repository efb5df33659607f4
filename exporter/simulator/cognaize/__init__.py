"""A stand-in for one Cognaize installation, for the demo and the tests.

The world (what happens) and the API (what is shown of it) have files of their own; this one joins them, and lets a test
write an exact world by hand. The platform sends no webhooks: deliveries are the generic event of this project's
documents, as a customer's own step would send it when a process has finished.
"""

from collections import Counter, deque
from dataclasses import asdict, fields
from typing import Literal

import orjson
from aiohttp import web

from exporter.clock import Clock
from exporter.simulator.cognaize.api import OUTCOMES, Access, Api, Delegates, Digits, stamp
from exporter.simulator.cognaize.process import SECOND, Plan, Step, Workflow
from exporter.simulator.cognaize.world import ERRORS, Order, Outcome, World
from exporter.simulator.core import Delivery, Engine, Faults, TrueRun, Truth, json_response
from exporter.simulator.retries import RetryPlan, planned

STEPS = (Step(delegate="GATEKEEPER"), Step(delegate="MODEL"), Step(delegate="DISTRIBUTION"))
ERROR_CLASSES = {*ERRORS, "conflict", "auth", "permission", "quota", "killed", "unknown"}


class CognaizeSimulator:
    """One installation: workflows that process documents, and people who restart some of what fails."""

    name = "cognaize"

    def __init__(
        self,
        *,
        clock: Clock,
        seed: int = 1,
        workflows: int = 6,
        faults: Faults | None = None,
        token: str | None = "demo-token",
        login: str = "demo",
        password: str = "demo-password",
        token_path: str = "/auth/token",
        token_seconds: int = 36_000,
        login_form: bool = False,
        login_fields: tuple[str, str] = ("login", "password"),
        login_extra: tuple[tuple[str, str], ...] = (),
        header: str = "Authorization",
        word: str = "Bearer",
        unknown_process: Literal[404, 412] = 404,
        order: Order = "oldest_first",
        page_size_max: int = 500,
        timestamps: Digits = "ms",
        slow_delegates: float = 0.0,
        slow_delegate_seconds: float = 0.5,
        delegate_errors: float = 0.0,
        webhook_token: str | None = "demo-hook",
        history_seconds: float = 7200.0,
        kept_seconds: float = 30 * 86_400.0,
        kept_max: int = 3000,
        troubles: float = 1.0,
    ) -> None:
        """``token`` is accepted as it is and for ever; None: only tokens issued at ``token_path`` are.

        ``slow_delegates`` and ``delegate_errors`` are probabilities per call that makes the platform call a delegate
        (start, complete, restart): the state changes at once; then the answer takes ``slow_delegate_seconds`` of real
        time, or is 500. Both may be changed later through ``delegates``. ``kept_seconds`` and ``kept_max`` (a workflow)
        bound what the API still shows of finished processes. ``troubles``: factor on how often generated ones fail.
        """
        now = clock.now()
        self._digits: Digits = timestamps
        self._webhook_token = webhook_token
        self._deliveries: deque[Delivery] = deque(maxlen=10_000)
        self._engine = Engine(
            name=self.name,
            clock=clock,
            seed=seed,
            faults=faults if faults is not None else Faults(),
            advance=self.advance,
            error_body=lambda status, text: (self._api.envelope(status, text), "application/json"),
        )
        self.faults: Faults = self._engine.faults
        self.requests: Counter[str] = self._engine.requests
        self.delegates = Delegates(slow=slow_delegates, slow_seconds=slow_delegate_seconds, errors=delegate_errors)
        self._world = World(
            stream=self._engine.stream,
            begins_at=now - history_seconds,
            born_at=now,
            workflows=workflows,
            resolution=1000 if timestamps == "ms" else 1,
            order=order,
            kept_seconds=kept_seconds,
            kept_max=kept_max,
            troubles=troubles,
            finished=self._deliver,
        )
        #: Dead letter -> restart calls that named its step, refused ones too.
        self.retry_calls: Counter[str] = Counter()
        #: Dead letter -> restarts that these calls led to; those of other people do not count.
        self.retry_executions = self._world.retry_executions
        self._plans: deque[RetryPlan] = deque()
        self._api = Api(
            engine=self._engine,
            world=self._world,
            access=Access(
                token=token,
                login=login,
                password=password,
                path=token_path,
                seconds=token_seconds,
                form=login_form,
                fields=login_fields,
                extra=login_extra,
                header=header,
                word=word,
            ),
            unknown_process=unknown_process,
            delegates=self.delegates,
            page_size_max=page_size_max,
            digits=timestamps,
            retry_calls=self.retry_calls,
            plans=self._plans,
        )

    # What every simulator can do.

    def app(self) -> web.Application:
        app = self._api.app()
        app.router.add_get("/_sim/truth", self._show_truth)
        app.router.add_post("/_sim/faults", self._set_faults)
        return app

    def advance(self, now: float) -> None:
        self._world.advance_to(round(now * SECOND))

    def truth(self) -> Truth:
        return self._world.truth()

    def take_deliveries(self) -> list[Delivery]:
        deliveries = list(self._deliveries)
        self._deliveries.clear()
        return self._engine.disturb(deliveries)

    def fail_next(self, *kinds: str) -> None:
        self._engine.fail_next(*kinds)

    # An exact world, for tests.

    def add_workflow(
        self,
        workflow_id: str | None = None,
        name: str | None = None,
        *,
        steps: tuple[Step, ...] = STEPS,
        failure_rate: float = 0.0,
    ) -> str:
        """A workflow that starts nothing by itself.

        What is started or restarted through the API takes ``Step.seconds`` a step, to the millisecond, and fails with
        ``failure_rate``. A step with ``seconds=None`` waits for complete-step, and fails when its timeout is over.
        """
        if not steps:
            raise ValueError("a workflow needs a step")
        workflow_id = workflow_id or self._world.new_id("wf")
        self._world.add_workflow(
            workflow_id=workflow_id, name=name or workflow_id, steps=steps, failure_rate=failure_rate
        )
        return workflow_id

    def add_run(
        self,
        workflow_id: str,
        *,
        started_at: float,
        ended_at: float | None,
        result: str,
        run_id: str | None = None,
        error: str | None = None,
        failed_step: int | None = None,
    ) -> str:
        """A process with exactly these times; its steps share them evenly. ``result`` is success or failure.

        ``error`` is the error class of a failure, ``failed_step`` (from 0) the step that fails, by default the second.
        Without ``ended_at`` the first step stays STARTED until complete-step or its timeout.
        """
        workflow = self._workflow(workflow_id)
        began = self._world.tick(started_at)
        failing = min(1, len(workflow.steps) - 1) if failed_step is None else failed_step
        plan = self._exact_plan(workflow, 0, failing, began, ended_at, result, error)
        return self._world.add_process(workflow, run_id or self._world.new_id("p"), began, plan).id

    def add_restart(
        self, run_id: str, *, started_at: float, ended_at: float | None, result: str, error: str | None = None
    ) -> None:
        """Somebody restarts the failed step of this process at exactly this time, with exactly this outcome.

        Restarts are added in the order of their times; if one fails again, it is the same step that does.
        """
        process = self._world.processes[run_id]
        began = self._world.tick(started_at)
        step = process.last
        plan = self._exact_plan(process.workflow, step, step, began, ended_at, result, error)
        self._world.add_restart(process, began, plan)

    def plan_retries(self, *plans: Outcome | RetryPlan) -> None:
        """What becomes of the coming restart calls that are accepted, in order, instead of what chance says.

        A bare outcome stands for a call that simply works out so, each step taking as long as it typically does.
        """
        found = [planned(plan) for plan in plans]
        for plan in found:
            if plan.outcome is not None and plan.outcome not in OUTCOMES:
                raise ValueError(f"a restart ends as one of {', '.join(OUTCOMES)}, not {plan.outcome}")
        self._plans.extend(found)

    def retry_by_person(self, dead_letter_id: str, *, outcome: Outcome = "success") -> None:
        """Somebody else restarts the step of an open dead letter now."""
        self.advance(self._engine.clock.now())
        found = self._world.step(dead_letter_id.rpartition(".")[0].rpartition(".")[2])
        if found is None or found[0].dead_letter != dead_letter_id:
            raise ValueError(f"no such open dead letter: {dead_letter_id}")
        self._world.restart_now(*found, outcome=outcome, by_api=False)

    def delete_run(self, run_id: str) -> None:
        """The platform lets go of a process."""
        self._world.delete_process(self._world.processes[run_id])

    def rename_workflow(self, workflow_id: str, name: str) -> None:
        """No documented read endpoint shows the name: nobody can see this."""
        self._workflow(workflow_id).name = name

    def delete_workflow(self, workflow_id: str) -> None:
        """Its processes go with it, also the running ones; what has finished stays in the truth."""
        self._world.delete_workflow(self._workflow(workflow_id))

    def set_enabled(self, workflow_id: str, enabled: bool) -> None:
        """A disabled workflow starts no processes by itself. The API has no word for it."""
        self._workflow(workflow_id).enabled = enabled

    def _workflow(self, workflow_id: str) -> Workflow:
        workflow = self._world.workflows.get(workflow_id)
        if workflow is None:
            raise ValueError(f"no such workflow: {workflow_id}")
        return workflow

    def _exact_plan(
        self,
        workflow: Workflow,
        first: int,
        failing: int,
        began: int,
        ended_at: float | None,
        result: str,
        error: str | None,
    ) -> Plan:
        if ended_at is None:
            timeout = workflow.steps[first].timeout_seconds * SECOND
            return Plan(ends=[began + timeout], error="timeout") if timeout else Plan(ends=[])
        if result not in ("success", "failure"):
            raise ValueError(f"a process succeeds or fails, it knows no {result}")
        if error is not None and (result == "success" or error not in ERROR_CLASSES):
            raise ValueError(f"no error of a {result}: {error}")
        end = self._world.tick(ended_at)
        if end < began:
            raise ValueError("a process cannot end before it starts")
        last = failing if result == "failure" else len(workflow.steps) - 1
        if not first <= last < len(workflow.steps):
            raise ValueError(f"no such step: {last}")
        parts = last - first + 1
        ends = [self._world.cut(began + (end - began) * part // parts) for part in range(1, parts + 1)]
        return Plan(ends=ends, error=(error or "unknown") if result == "failure" else None)

    # Webhooks, and what people who run the simulator ask for.

    def _deliver(self, run: TrueRun, message: str | None) -> None:
        ended = stamp(round(run.ended_at * SECOND), self._digits)
        event = {
            "event": "run.finished",
            "workflow_id": run.workflow_id,
            "run_id": run.run_id,
            "attempt": run.attempt,
            "result": run.result,
            "started_at": stamp(round(run.started_at * SECOND), self._digits),
            "ended_at": ended,
            "error": None if run.error_class is None else {"type": run.error_class, "message": message},
            "occurred_at": ended,
        }
        headers = {"Content-Type": "application/json"}
        if self._webhook_token is not None:
            headers["Authorization"] = f"Bearer {self._webhook_token}"
        self._deliveries.append(Delivery(headers=headers, body=orjson.dumps(event)))

    async def _show_truth(self, _request: web.Request) -> web.Response:
        return json_response(self.truth())

    async def _set_faults(self, request: web.Request) -> web.Response:
        try:
            wanted = orjson.loads(await request.read())
        except orjson.JSONDecodeError:
            wanted = None
        if not isinstance(wanted, dict):
            return json_response({"error": "expected a JSON object"}, status=400)
        known = {field.name for field in fields(Faults)}
        for key, value in wanted.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if key not in known or not (number or (key == "retry_after" and value is None)):
                return json_response({"error": f"no such fault, or no number: {key}"}, status=400)
        for key, value in wanted.items():
            setattr(self.faults, key, value)
        return json_response(asdict(self.faults))
