"""A stand-in for one self-hosted n8n instance, for the demo and the tests.

``world`` says what happens, ``api`` answers requests, ``wire`` says how things look, ``habits`` makes a world that
lives by itself, ``nodes`` runs workflows that were built through the API. All of it follows a server of version 2.41.1,
which `tests/n8n` holds it against. n8n sends no webhooks by itself: deliveries are what the error workflow of this
project's documents posts.
"""

from collections import Counter, deque
from dataclasses import asdict, fields, replace

import orjson
from aiohttp import web

from exporter.clock import Clock
from exporter.simulator.core import Delivery, Engine, Faults, Truth, json_response
from exporter.simulator.n8n import wire
from exporter.simulator.n8n.api import SCOPES, Api, Version
from exporter.simulator.n8n.habits import CALL, CALLED, CODE, call_workflow, draw, every, hook, wait
from exporter.simulator.n8n.model import CANCELLED, ERRORS, SECOND, Execution, Failure, Instance, Node, Plan, Workflow
from exporter.simulator.n8n.world import LISTENS_SECONDS, RESTART_SECONDS, World
from exporter.simulator.retries import RetryPlan, planned

RESULTS = ("success", "failure", "cancelled", "timeout", "killed")


class N8nSimulator:
    """One instance: workflows that somebody built, their executions, and people who retry some of what fails."""

    name = "n8n"

    def __init__(
        self,
        *,
        clock: Clock,
        seed: int = 1,
        workflows: int = 6,
        faults: Faults | None = None,
        key: str = "demo-token",
        scopes: tuple[str, ...] = SCOPES,
        version: Version | None = None,
        instance: Instance | None = None,
        webhook_secret: str | None = None,
        webhook_header: str = "X-Webhook-Token",
        unsaved: int = 0,
        tried: float = 0.03,
        history_seconds: float = 7200.0,
        troubles: float = 1.0,
    ) -> None:
        """``unsaved`` of the workflows do not save their successes. ``tried``: the share of starts beside which
        somebody tries the workflow in the editor, as part of no truth. ``troubles``: factor on how often generated
        executions go wrong, 0: never.

        A retry answers when the new execution has ended, in time of the clock.
        """
        self._clock = clock
        self._secret, self._header = webhook_secret, webhook_header
        self._engine = Engine(
            name=self.name,
            clock=clock,
            seed=seed,
            faults=faults if faults is not None else Faults(),
            advance=self.advance,
            error_body=lambda _status, text: (orjson.dumps({"message": text}), "application/json"),
        )
        self.faults: Faults = self._engine.faults
        self.requests: Counter[str] = self._engine.requests
        #: URL -> what nodes that call it get, a key of ``CALLS``; what is not here works.
        self.unreachable: dict[str, str] = {}
        self._deliveries: deque[Delivery] = deque(maxlen=10_000)
        self._plans: deque[RetryPlan] = deque()
        now = round(clock.now() * SECOND)
        self.world = World(
            stream=self._engine.stream,
            begins_at=now - round(history_seconds * SECOND),
            born_at=now,
            workflows=workflows,
            unsaved=unsaved,
            tried=tried,
            troubles=troubles,
            instance=instance if instance is not None else Instance(),
            reach=lambda url: self.unreachable.get(url),
            report=self._report,
        )
        self._keys: dict[str, frozenset[str]] = {key: frozenset(scopes)}
        self._api = Api(
            engine=self._engine,
            world=self.world,
            keys=self._keys,
            version=version if version is not None else Version(),
            plans=self._plans,
            planned=self._planned_retry,
        )

    # What every simulator can do.

    def app(self) -> web.Application:
        app = self._api.app()
        app.router.add_get("/_sim/truth", self._show_truth)
        app.router.add_post("/_sim/faults", self._set_faults)
        return app

    def advance(self, now: float) -> None:
        self.world.advance(round(now * SECOND))

    def truth(self) -> Truth:
        """All that ran, whether it was saved or not; tries in the editor and error workflows are no runs."""
        return self.world.truth()

    def take_deliveries(self) -> list[Delivery]:
        deliveries = list(self._deliveries)
        self._deliveries.clear()
        return self._engine.disturb(deliveries, lose=False)

    def fail_next(self, *kinds: str) -> None:
        self._engine.fail_next(*kinds)

    def plan_retries(self, *plans: str | RetryPlan) -> None:
        """What becomes of the coming retry calls that are accepted, in order, instead of what chance says.

        A bare result stands for a call that simply works out so. ``lost`` is a connection that breaks before anything
        happened: n8n has no answer for a call that it did not carry out. Nothing guards a call that was ``beaten``: it
        runs as well.
        """
        found = [planned(plan) for plan in plans]
        for plan in found:
            if plan.outcome not in (None, "success", "failure"):
                raise ValueError(f"a retry ends as success or failure, not {plan.outcome}")
        self._plans.extend(found)

    @property
    def retry_calls(self) -> Counter[str]:
        """Dead letter (the first execution of its chain) -> retry calls for any of the chain, refused ones too."""
        return Counter({str(root): calls for root, calls in self.world.retry_calls.items()})

    @property
    def retry_executions(self) -> Counter[str]:
        """Dead letter -> executions that these calls led to; those of other people do not count."""
        return Counter({str(root): number for root, number in self.world.retry_executions.items()})

    def add_key(self, key: str, *scopes: str) -> None:
        """Another API key, which may do no more than this."""
        self._keys[key] = frozenset(scopes)

    # An exact world, for tests.

    def add_workflow(
        self,
        workflow_id: str | None = None,
        name: str | None = None,
        *,
        mode: str = "webhook",
        steps: tuple[Node, ...] | None = None,
        settings: dict[str, object] | None = None,
        typical_seconds: float = 5.0,
        pause_seconds: float = 0.0,
        child: str | None = None,
        tags: tuple[str, ...] = (),
    ) -> str:
        """A workflow that starts nothing by itself. ``mode`` is that of its trigger: webhook, trigger or integrated.

        ``settings`` are n8n's own. With a pause it has a Wait node, with a ``child`` it calls that workflow.
        """
        added = workflow_id or self.world.new_id()
        if added in self.world.workflows:
            raise ValueError(f"workflow {added} exists")
        trigger = {"webhook": hook(added), "trigger": every(60), "integrated": CALLED}[mode]
        if steps is None:
            steps = (CODE, *((wait(pause_seconds),) if pause_seconds else ()), CALL)
            steps = (*steps, call_workflow(child)) if child is not None else steps
        self.world.workflows[added] = Workflow(
            id=added,
            name=name or added,
            nodes=(trigger, *steps),
            settings={"executionOrder": "v1", **(settings or {})},
            created=self.world.now,
            updated=self.world.now,
            rng=self._engine.stream("workflow", added),
            project_id=self.world.project_id,
            version_id="57516020-52c2-4202-b8bc-4f1416fbe8b9",
            tags=tags,
            seconds=typical_seconds,
            pause=pause_seconds,
            child=child,
        )
        return added

    def add_run(
        self,
        workflow_id: str,
        *,
        started_at: float,
        ended_at: float | None,
        result: str = "success",
        error: str | None = None,
        mode: str | None = None,
        payload: int = 0,
        retry_of: str | None = None,
    ) -> str:
        """An execution with these times, past or future, and the id that is next when it starts, which is returned.

        Executions in the past are added in the order of their starts. ``error`` is the error class of a failure, or a
        message of its own. Without ``ended_at`` it runs until it is told. ``payload``: bytes of its data.
        """
        if result not in RESULTS:
            raise ValueError(f"an execution ends as one of {', '.join(RESULTS)}, not {result}")
        workflow, began = self._workflow(workflow_id), round(started_at * SECOND)
        failure = self._failure(error) if result == "failure" else None
        works = None if ended_at is None else round(ended_at * SECOND) - began
        by_itself = result in ("success", "failure")
        plan = Plan(works=works if by_itself else None, failure=failure, payload=payload)
        self.advance(min(started_at, self._clock.now()))
        origin = None if retry_of is None else self.world.rows[int(retry_of)]
        if origin is None:
            execution = self.world.start(workflow, mode or workflow.mode, at=began, plan=plan)
        else:
            execution = self.world.retry(origin, at=began, plan=plan, by_api=False)
        if not by_itself and works is not None:
            self.world.schedule(began + works, self._end_as_told, execution, result)
        self.world.advance(self.world.now)
        return str(execution.id)

    def end_run(self, run_id: str, result: str = "success", *, error: str | None = None) -> None:
        """An execution that runs until it is told ends now."""
        self.advance(self._clock.now())
        failure = self._failure(error) if result == "failure" else None
        if result in ("success", "failure"):
            self.world.end_now(self.world.rows[int(run_id)], failure=failure)
        else:
            self._end_as_told(self.world.now, self.world.rows[int(run_id)], result)

    def retry_by_person(self, run_id: str, *, outcome: str = "success") -> str:
        """Somebody else retries this execution now; the id of the retry."""
        self.advance(self._clock.now())
        origin = self.world.rows[int(run_id)]
        plan = self._planned_retry(RetryPlan(outcome=outcome), origin)
        return str(self.world.retry(origin, plan=plan, by_api=False).id)

    def delete_run(self, run_id: str) -> None:
        self.world.delete(self.world.rows[int(run_id)])

    def skip_ids(self, number: int) -> None:
        """A gap in the sequence of ids."""
        self.world.skip_ids(number)

    def rename_workflow(self, workflow_id: str, name: str) -> None:
        workflow = self._workflow(workflow_id)
        workflow.name, workflow.updated = name, self.world.now

    def delete_workflow(self, workflow_id: str) -> None:
        """Its executions go with it, also the running ones; what has finished stays in the truth."""
        self.world.delete_workflow(self._workflow(workflow_id))

    def set_enabled(self, workflow_id: str, enabled: bool) -> None:
        workflow = self._workflow(workflow_id)
        workflow.active, workflow.updated = enabled, self.world.now

    def set_up(self, instance: Instance) -> None:
        """Stop it, and start it with other settings; nothing must be running."""
        self.advance(self._clock.now())
        self.world.set_up(instance)

    def kill(self) -> None:
        """kill -9: nobody answers, and what was running stays so until ``restart`` tells of it."""
        self.advance(self._clock.now())
        self.world.kill()

    def restart(self, *, after: float = RESTART_SECONDS) -> None:
        """The next start has found the database again after so many seconds."""
        now = self._clock.now()
        listens = now + max(0.0, after - LISTENS_SECONDS)
        self.world.schedule(round(listens * SECOND), lambda _when: self.world.listen())
        self.world.schedule(round((now + after) * SECOND), lambda _when: self.world.restart())

    def _workflow(self, workflow_id: str) -> Workflow:
        workflow = self.world.workflows.get(workflow_id)
        if workflow is None:
            raise ValueError(f"no such workflow: {workflow_id}")
        return workflow

    def _failure(self, error: str | None) -> Failure:
        if error is None or error in ERRORS:
            return ERRORS[error or "unknown"]
        return replace(ERRORS["unknown"], message=error, description=None)

    def _end_as_told(self, when: int, execution: Execution, result: str) -> None:
        if execution.over:
            return
        execution.timed_out = result == "timeout"
        if result == "killed":
            self.world.crash(when, execution)
        else:
            self.world.stop(execution)

    def _planned_retry(self, plan: RetryPlan, origin: Execution) -> Plan | None:
        """None: as the nodes or the dice have it."""
        if plan.outcome is None:
            return None
        usual = draw(origin.workflow, self._engine.stream("planned", origin.id))
        works = usual.works if usual.works is not None else SECOND
        failed = plan.outcome == "failure"
        failure = origin.failure if failed and origin.failure not in (None, CANCELLED) else self._failure(None)
        return Plan(works=works, failure=failure if failed else None)

    # The error workflow, and what people who run the simulator ask for.

    def _report(self, execution: Execution, when: int) -> bool:
        """Queue what the error workflow posts; False if it gets lost, which makes that execution a failure itself."""
        if self._engine.strikes(self.faults.webhook_lost):
            return False
        headers = {"Content-Type": "application/json", "User-Agent": "n8n"}
        if self._secret is not None:
            headers[self._header] = self._secret
        self._deliveries.append(Delivery(headers=headers, body=orjson.dumps(wire.report(execution, when))))
        return True

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
