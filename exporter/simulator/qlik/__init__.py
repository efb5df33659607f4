"""A stand-in for Qlik Automate: a tenant whose automations run as the clock moves, behind Qlik's own API.

This is what the demo, ``automation-exporter simulate`` and the tests hold. ``world`` says what happens,
``api`` answers requests, ``requests`` judges them, ``wire`` says how things look, ``webhooks`` what
is sent. A retry makes a new run, whose id the answer does not tell, as on the platform.
"""

from collections import Counter
from collections.abc import Sequence
from http import HTTPStatus

import orjson
from aiohttp import web

from exporter.clock import Clock
from exporter.simulator.core import Delivery, Engine, Faults, Truth
from exporter.simulator.qlik.api import Api
from exporter.simulator.qlik.failures import ERROR_CLASSES
from exporter.simulator.qlik.requests import Access, Caller, Refused
from exporter.simulator.qlik.webhooks import Webhooks
from exporter.simulator.qlik.wire import Json
from exporter.simulator.qlik.world import STATUS, Workflow, World
from exporter.simulator.repairs import RepairPlan, RepairPlans
from exporter.simulator.retries import RetryPlan, planned

OWNER = "usr-demo"


class QlikSimulator:
    """One tenant. ``token`` is an API key of the tenant admin who owns everything that is not given another owner."""

    name = "qlik"

    def __init__(
        self,
        *,
        clock: Clock,
        seed: int = 1,
        workflows: int = 6,
        faults: Faults | None = None,
        token: str = "demo-token",
        client_id: str = "demo-client",
        client_secret: str = "demo-secret",
        token_seconds: float = 21600.0,
        tier1_per_minute: int = 1000,
        tier2_per_minute: int = 100,
        max_concurrent_runs: int = 10,
        envelope: str = "cloudevents",
        secret: str | None = None,
        webhook_failures_max: int = 10,
        null_links: bool = True,
        history_seconds: float = 7200.0,
        runs_max: int = 2000,
        edited: float = 0.03,
        troubles: float = 1.0,
    ) -> None:
        """``envelope``: cloudevents, hybrid or legacy. ``null_links`` False: the last page has no ``next`` at all.

        ``runs_max``: finished runs kept per automation. ``edited``: the share of starts beside which somebody tries the
        automation in the editor, as part of no truth. ``troubles``: factor on how often generated runs go wrong, 0:
        never. ``webhook_failures_max``: so many in a row disable the webhook.
        """
        self._engine = Engine(
            name=self.name,
            clock=clock,
            seed=seed,
            faults=faults or Faults(),
            advance=self.advance,
            error_body=self._error_body,
        )
        self.requests: Counter[str] = self._engine.requests
        self.world = World(
            now=clock.now(),
            workflows=workflows,
            history_seconds=history_seconds,
            runs_max=runs_max,
            max_concurrent_runs=max_concurrent_runs,
            edited=edited,
            troubles=troubles,
            owner_id=OWNER,
            stream=self._engine.stream,
        )
        self._access = Access(
            client_id=client_id,
            client_secret=client_secret,
            token_seconds=token_seconds,
            per_minute={"tier 1": tier1_per_minute, "tier 2": tier2_per_minute, "audits": 1000},
        )
        self._webhooks = Webhooks(
            envelope=envelope, secret=secret, failures_max=webhook_failures_max, owner_id=OWNER, now=clock.now()
        )
        self._null_links = null_links
        self._repairs = RepairPlans(Refused)
        self.add_api_key(token, user_id=OWNER, admin=True)

    @property
    def faults(self) -> Faults:
        return self._engine.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._engine.faults = faults

    # The world, for the demo and for tests

    def advance(self, now: float) -> None:
        self.world.advance(now)

    def truth(self) -> Truth:
        return self.world.truth()

    def take_deliveries(self) -> list[Delivery]:
        """The webhooks of runs that ended since the last call, each signed if there is a secret."""
        runs = list(self.world.unsent)
        self.world.unsent.clear()
        return self._engine.disturb(self._webhooks.deliveries(runs, self.world.now))

    def delivered(self, delivery: Delivery, status: int) -> None:
        """Tell the platform how a delivery was answered (0: not at all); see ``Webhooks.delivered``."""
        self._webhooks.delivered(delivery, status, self.world.now)

    def fail_next(self, *kinds: str) -> None:
        self._engine.fail_next(*kinds)

    def plan_retries(self, *plans: str | RetryPlan) -> None:
        """What becomes of the coming retry calls that are accepted, in order, instead of what chance says.

        A bare result stands for a call that simply works out so.
        """
        found = [planned(plan) for plan in plans]
        for plan in found:
            if plan.outcome is not None:
                _check_result(plan.outcome)
        self.world.planned_retries.extend(found)

    def plan_repairs(self, *plans: RepairPlan) -> None:
        """What becomes of the coming calls that stop a run, in order."""
        self._repairs.add(*plans)

    @property
    def retry_calls(self) -> Counter[str]:
        """How many retry calls arrived for each dead letter, refused ones included."""
        return self.world.retry_calls

    @property
    def retry_executions(self) -> Counter[str]:
        """How many runs such calls led to, by the dead letter they were for."""
        return self.world.retry_executions

    def add_api_key(self, token: str, *, user_id: str, admin: bool = False, spaces: Sequence[str] = ()) -> None:
        self._access.add_key(token, Caller(user_id=user_id, admin=admin, spaces=frozenset(spaces)))

    def revoke_tokens(self) -> None:
        """Every access token issued so far answers 401 from now on; API keys stay."""
        self._access.revoke()

    def add_workflow(
        self,
        workflow_id: str | None = None,
        name: str | None = None,
        *,
        owner_id: str = OWNER,
        space_id: str = "",
        run_mode: str = "manual",
        max_concurrent_runs: int = 10,
        typical_seconds: float = 10.0,
    ) -> str:
        """An automation nothing starts by itself. ``space_id`` empty: private. ``typical_seconds``: of its retries."""
        added = workflow_id if workflow_id is not None else f"automation-{len(self.world.names) + 1}"
        self.world.add_workflow(
            Workflow(
                id=added,
                name=added if name is None else name,
                owner_id=owner_id,
                space_id=space_id,
                run_mode=run_mode,
                max_concurrent_runs=max_concurrent_runs,
                typical_seconds=typical_seconds,
                created_at=self.world.now,
                updated_at=self.world.now,
            )
        )
        return added

    def add_run(
        self,
        workflow_id: str,
        *,
        started_at: float,
        ended_at: float | None,
        result: str = "success",
        run_id: str | None = None,
        error: str | None = None,
        error_class: str | None = None,
        context: str | None = None,
    ) -> str:
        """A run with exactly these times, never queued. ``error``: an error class, or a message of its own.

        ``context`` is the platform's word for who started it; a test run is no part of the truth. A run that is over by
        the world's time is history and sends no webhook.
        """
        _check_result(result)
        if error in ERROR_CLASSES:
            error, error_class = None, error
        run = self.world.add_run(
            self.world.workflows[workflow_id],
            run_id,
            started_at=started_at,
            ended_at=ended_at,
            result=result,
            error=error,
            error_class=error_class,
            context=context,
        )
        return run.id

    def rename_workflow(self, workflow_id: str, name: str) -> None:
        self.world.rename(self.world.workflows[workflow_id], name)

    def set_enabled(self, workflow_id: str, enabled: bool) -> None:
        self.world.set_enabled(self.world.workflows[workflow_id], enabled)

    def delete_workflow(self, workflow_id: str) -> None:
        self.world.delete(self.world.workflows[workflow_id])

    def app(self) -> web.Application:
        return Api(
            engine=self._engine,
            world=self.world,
            access=self._access,
            webhooks=self._webhooks,
            null_links=self._null_links,
            repairs=self._repairs,
        ).app()

    def _error_body(self, status: int, text: str) -> tuple[bytes, str]:
        title = "API rate limit reached." if status == 429 else HTTPStatus(status).phrase
        body: Json = {"errors": [{"code": f"HTTP-{status}", "title": title, "detail": text}]}
        if status != 429:
            body["traceId"] = f"{sum(self.requests.values()):032x}"
        return orjson.dumps(body), "application/json"


def _check_result(result: str) -> None:
    if result not in STATUS:
        raise ValueError(f"a run on this platform ends as one of {', '.join(STATUS)}, not {result}")
