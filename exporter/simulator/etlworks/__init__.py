"""A stand-in for Etlworks Integrator: its tokens, flows, executions, schedules, health, starts and webhooks over a
simulated world.

The paths, parameters and fields follow the Etlworks API documentation ("Get flow status API") and support articles.
Where those contradict each other or are silent there is an option, or the choice is named here:

- A flow that never ran, like an unknown audit id, is answered as an unknown flow is (``unknown_flow``: 500, or 404).
- A start that worked answers the int status 0 or 1 (``started``), both with the ``auditId`` of the new execution.
- A start that is refused because the flow already runs answers the int status 3 without an ``auditId``, or 1 with that
  of the execution in progress, or an error (``refusal``). The name of the query parameter that allows a parallel start
  is not published (``parallel_parameter``).
- A stopped execution is announced twice by webhook: when it becomes ``canceled``, and when it is really down.
- Waiting for the end of a start (synchronous mode) is left out: simulated time does not pass during a request.
"""

import base64
import hashlib
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import orjson
from aiohttp import web

from exporter.clock import Clock
from exporter.simulator.core import Delivery, Engine, Faults, Truth
from exporter.simulator.etlworks import records as records
from exporter.simulator.etlworks.api import Api, Damage, Options, error_body
from exporter.simulator.etlworks.world import ERRORS, RESULTS, Run, Trigger, Workflow, World
from exporter.simulator.retries import RetryPlan, planned

WebhookMode = Literal["entity", "bare", "get"]
WEBHOOK_ID = 1


class EtlworksSimulator:
    """One Etlworks account: 1,000 workflows are no burden. See the module for what is assumed."""

    name = "etlworks"

    def __init__(
        self,
        *,
        clock: Clock,
        seed: int = 1,
        workflows: int = 6,
        faults: Faults | None = None,
        token: str = "demo-token",
        login: str = "demo",
        password: str = "demo-password",
        token_seconds: int = 600,
        tenants: Sequence[int] = (),
        paging: bool = False,
        unknown_flow: Literal[500, 404] = 500,
        started: Literal[0, 1] = 0,
        refusal: Literal[3, 1, 500] = 3,
        start_answer: Callable[[dict[str, object]], object] = lambda answer: answer,
        parallel_parameter: str = "parallel",
        retry_success: float = 0.8,
        cancel_seconds: float = 90.0,
        trace_bytes: int = 2_000,
        definition_bytes: int = 300,
        history: float = 7_200.0,
        troubles: float = 1.0,
        execution_paths: Sequence[Literal["current", "legacy"]] = ("current", "legacy"),
        metrics: object = None,
        webhook_mode: WebhookMode = "entity",
        webhook_events: Sequence[str] = ("Flow.Executed",),
        webhook_user: str | None = None,
        webhook_password: str = "",
        webhook_headers: Mapping[str, str] | None = None,
        base_url: str = "https://app.etlworks.com",
    ) -> None:
        """``token`` is a valid API key; ``tenants`` are the ids the generated workflows are spread over; ``started``
        is the status a start is answered with, ``refusal`` the one where the flow runs already (3 names no execution, 1
        the one that runs), and ``start_answer`` what is made of the answer to a start that worked;
        ``execution_paths`` are those this version knows, and ``metrics`` what an ended execution says there;
        ``retry_success`` is the share of starts on demand that end well; ``cancel_seconds`` is how long a stopped run
        takes to be down; ``history`` is in seconds before the clock's time, and ``troubles`` a factor on how often
        generated runs go wrong, 0: never.
        """
        self.faults = faults or Faults()
        self._clock, self._seed, self._login = clock, seed, login
        self._cancel_seconds, self._trace_bytes = cancel_seconds, trace_bytes
        self._webhook_mode, self._webhook_events, self._base_url = webhook_mode, frozenset(webhook_events), base_url
        self._webhook_headers = dict(webhook_headers or {})
        if webhook_user is not None:
            pair = base64.b64encode(f"{webhook_user}:{webhook_password}".encode()).decode()
            self._webhook_headers["Authorization"] = f"Basic {pair}"
        self._created: list[tuple[float, Workflow]] = []  # flows not yet announced
        self.engine = Engine(
            name=self.name, clock=clock, seed=seed, faults=self.faults, advance=self.advance, error_body=error_body
        )
        self.requests: Counter[str] = self.engine.requests
        self.world = World(
            stream=self.engine.stream,
            born_at=clock.now(),
            history=history,
            retry_success=retry_success,
            cancel_seconds=cancel_seconds,
            troubles=troubles,
        )
        self._damage = Damage(self.engine)
        self._api = Api(
            engine=self.engine,
            world=self.world,
            damage=self._damage,
            options=Options(
                api_key=token,
                login=login,
                password=password,
                token_seconds=token_seconds,
                token_secret=hashlib.sha256(f"etlworks tokens {seed}".encode()).digest(),
                tenants=frozenset(tenants),
                paging=paging,
                unknown_flow=unknown_flow,
                started=started,
                refusal=refusal,
                start_answer=start_answer,
                parallel_parameter=parallel_parameter,
                trace_bytes=trace_bytes,
                execution_paths=tuple(execution_paths),
                metrics=metrics,
                definition="-- step\n" * (definition_bytes // 8),
            ),
            truth=self.truth,
        )
        self.world.generate(workflows, tenants=tuple(tenants))
        self.advance(clock.now())

    def plan_retries(self, *plans: str | RetryPlan) -> None:
        """What becomes of the coming starts of flows that are accepted, in order, instead of what chance says.

        A bare result (success, failure) stands for a start that simply works out so.
        """
        for plan in map(planned, plans):
            if plan.outcome not in (None, "success", "failure"):
                raise ValueError(f"a start ends as success or failure here, not {plan.outcome}")
            self.world.planned_retries.append(plan)

    @property
    def retry_calls(self) -> Counter[str]:
        """How many starts arrived, refused ones included, by the newest open dead letter of the flow ("": none)."""
        return self.world.retry_calls

    @property
    def retry_executions(self) -> Counter[str]:
        """How many executions such calls led to, likewise."""
        return self.world.retry_executions

    # The contract of a simulator.

    def advance(self, now: float) -> None:
        self.world.advance(now)

    def truth(self) -> Truth:
        self.advance(self._clock.now())
        return self.world.truth()

    def fail_next(self, *kinds: str) -> None:
        self.engine.fail_next(*kinds)

    def app(self) -> web.Application:
        return self._api.app()

    def take_deliveries(self) -> list[Delivery]:
        """The webhooks sent since the last call, in the order of their events, disturbed as the faults say."""
        self.advance(self._clock.now())
        sent = [(at, self._webhook("Flow.Created", at, workflow)) for at, workflow in self._created]
        if "Flow.Executed" in self._webhook_events:
            sent += [(at, self._webhook("Flow.Executed", at, run.workflow, run)) for at, run in self.world.executed]
        self._created.clear()
        self.world.executed.clear()
        sent.sort(key=lambda at_delivery: at_delivery[0])
        return self.engine.disturb([delivery for _, delivery in sent])

    def _webhook(self, event: str, at: float, workflow: Workflow, run: Run | None = None) -> Delivery:
        """A request as the platform makes it: five headers always, a body unless the method is GET."""
        entity_id = workflow.id if run is None else run.id
        digest = hashlib.sha256(f"{self._seed}:{event}:{entity_id}:{at}".encode()).digest()
        event_id = str(uuid.UUID(bytes=digest[:16], version=4))
        url = f"{self._base_url}/rest/v1/flows/{workflow.id}" + ("" if run is None else f"?auditId={run.id}")
        headers = {
            "X-Etl-Webhook-Event-Id": event_id,
            "X-Etl-Webhook-Event": event,
            "X-Etl-Webhook-Id": str(WEBHOOK_ID),
            "X-Etl-Webhook-Entity-Id": str(entity_id),
            "X-Etl-Webhook-Entity-URL": url,
            **self._webhook_headers,
        }
        if self._webhook_mode == "get":
            return Delivery(method="GET", headers=headers)
        body = {
            "eventId": event_id,
            "eventType": event,
            "webhookId": WEBHOOK_ID,
            "entityId": entity_id,
            "entity": self._entity(at, workflow, run) if self._webhook_mode == "entity" else None,
            "entityUrl": url,
            "timestamp": records.millis(at),
        }
        return Delivery(headers={"Content-Type": "application/json", **headers}, body=orjson.dumps(body))

    def _entity(self, at: float, workflow: Workflow, run: Run | None) -> dict[str, object]:
        """What the event is about, as it read at the moment of the event."""
        if run is None:
            return records.flow(workflow, definition="")
        record = records.execution(run, at, trace_bytes=self._trace_bytes, with_tenant=False)
        return self._damage.item(record, optional=records.EXECUTION_OPTIONAL, numbers=records.EXECUTION_NUMBERS)

    # What a test does to the world.

    def add_workflow(
        self,
        workflow_id: str | int | None = None,
        name: str | None = None,
        *,
        tags: Sequence[str] = (),
        tenant_id: int | None = None,
        streaming: bool = False,
        scheduled: bool = True,
        every: int | None = None,
        retries: int = 0,
        retry_minutes: int = 1,
        expected_minutes: int = 0,
        typical: float = 20.0,
        failing: float = 0.0,
        errors: Sequence[str] = ("network",),
    ) -> str:
        """A flow, with a schedule unless told otherwise. Only ``every`` (seconds) makes it start by itself,
        ``failing`` of the time.
        """
        now = self._now()
        known = self.world.workflows
        new_id = max(known, default=1000) + 1 if workflow_id is None else int(workflow_id)
        if new_id in known:
            raise ValueError(f"workflow {new_id} exists")
        rng = self.engine.stream("workflow", new_id)
        workflow = Workflow(
            id=new_id,
            name=name or f"flow {new_id}",
            rng=rng,
            tags=tuple(tags),
            tenant_id=tenant_id,
            streaming=streaming,
            event_id=6000 + new_id if scheduled else None,
            every=every,
            phase=rng.randrange(every) if every else 0,
            retries=retries if scheduled else 0,
            retry_minutes=retry_minutes,
            expected_minutes=expected_minutes,
            typical=typical,
            failing=failing,
            errors=tuple(errors),
        )
        self.world.add_workflow(workflow, since=now)
        if "Flow.Created" in self._webhook_events:
            self._created.append((now, workflow))
        return str(new_id)

    def add_run(
        self,
        workflow_id: str | int,
        *,
        started_at: float,
        ended_at: float | None,
        result: str = "success",
        run_id: str | int | None = None,
        error: str | None = None,
        exception: str | None = None,
        queued_at: float | None = None,
        down_at: float | None = None,
        trigger: Trigger | None = None,
        parent_id: str | int | None = None,
        retries: int | None = None,
        message_id: str | None = None,
    ) -> str:
        """A run with exactly these times. A cancelled one was stopped at ``ended_at`` and is really down at
        ``down_at``.

        A failed attempt of a schedule with retries left is not repeated by itself: add the next attempt with
        ``parent_id`` (the first attempt) and ``retries``. ``error`` is an error class; ``exception`` is an exact text
        instead of one made for it.
        """
        workflow = self._workflow(workflow_id)
        if result not in RESULTS:
            raise ValueError(f"Etlworks cannot say {result}: only {', '.join(RESULTS)}")
        if error is not None and (error not in ERRORS or result != "failure"):
            raise ValueError(f"no failure with such an error class: {result}, {error}")
        times = [t for t in (queued_at, started_at, ended_at, down_at) if t is not None]
        if times != sorted(times):
            raise ValueError(f"the times of a run must not go back: {times}")
        new_id = self.world.new_run_id() if run_id is None else int(run_id)
        if new_id in self.world.runs:
            raise ValueError(f"run {new_id} exists")
        if result == "cancelled" and down_at is None and ended_at is not None:
            down_at = ended_at + self._cancel_seconds
        trigger = trigger or ("demand" if workflow.event_id is None else "schedule")
        self.world.add_run(
            Run(
                workflow=workflow,
                id=new_id,
                queued_at=started_at if queued_at is None else queued_at,
                started_at=started_at,
                ended_at=ended_at,
                result=result,
                error_class=(error or "unknown") if result == "failure" else None,
                exception=exception,
                trigger=trigger,
                started_by={"schedule": "scheduler", "listener": "listener"}.get(trigger, self._login),
                parent_id=None if parent_id is None else int(parent_id),
                retries=retries,
                message_id=message_id,
                down_at=down_at,
            )
        )
        return str(new_id)

    def stop_run(self, run_id: str | int) -> None:
        """What the stop button does to a run that has not ended: best effort."""
        now = self._now()
        run = self.world.runs[int(run_id)]
        if run.queued_at > now or run.status(now) not in ("queued", "running"):
            raise ValueError(f"run {run_id} is not active")
        self.world.stop(run, now)

    def rename_workflow(self, workflow_id: str | int, name: str) -> None:
        self._workflow(workflow_id).name = name

    def delete_workflow(self, workflow_id: str | int) -> None:
        now = self._now()
        self.world.delete_workflow(self._workflow(workflow_id), now)

    def set_enabled(self, workflow_id: str | int, enabled: bool) -> None:
        """Switch the schedule on or off: a disabled one starts nothing new, native retries of what failed before still
        come.
        """
        self._now()
        self._workflow(workflow_id).enabled = enabled

    def _workflow(self, workflow_id: str | int) -> Workflow:
        return self.world.workflows[int(workflow_id)]

    def _now(self) -> float:
        now = self._clock.now()
        self.advance(now)
        return now
