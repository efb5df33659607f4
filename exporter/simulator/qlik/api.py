"""The Qlik simulator's HTTP side: automations and runs under both path prefixes, tokens, usage, audits and webhooks.

What an observer reads is here, and the two calls that change something it may want changed: retry and stop. The calls
of people who build automations are in ``edits``.
``/_sim/truth`` and ``/_sim/faults`` are for people who run the simulator by hand, and ask for no token.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import TypeVar

import orjson
from aiohttp import web

from exporter.simulator.core import Engine, Faults, Handler, json_response
from exporter.simulator.qlik.edits import Edits
from exporter.simulator.qlik.requests import (
    Access,
    Caller,
    Key,
    Page,
    Refused,
    Sort,
    Term,
    Value,
    allow,
    json_of,
    page,
    parse_filter,
    parse_limit,
    parse_sort,
    parse_time,
)
from exporter.simulator.qlik.webhooks import EVENT_TYPES, Webhooks
from exporter.simulator.qlik.wire import (
    AUTOMATION_VALUES,
    RUN_ENDED,
    RUN_VALUES,
    Damage,
    Json,
    audit_json,
    automation_json,
    run_json,
    stamp_date,
)
from exporter.simulator.qlik.world import DAY, Run, Workflow, World
from exporter.simulator.repairs import RepairPlans, fate
from exporter.simulator.retries import RetryPlan, cut

T = TypeVar("T")
Answer = Callable[[web.Request, Caller], Awaitable[web.StreamResponse]]

PREFIXES = ("/api/workflows/automations", "/api/v1/automations")
AUTOMATION_SORTS = (
    "id",
    "name",
    "runMode",
    "state",
    "createdAt",
    "updatedAt",
    "lastRunAt",
    "lastRunStatus",
    "maxConcurrentRuns",
)
AUTOMATION_FILTERS = ("name", "runMode", "lastRunStatus", "ownerId", "spaceId")
RUN_FILTERS = ("status", "context", "title", "spaceId", "ownerId", "executedById", "billable")
USAGE_NAMES = {  # as asked for -> as answered: the reference differs from itself
    "runs": "runs",
    "scheduledRuns": "scheduledRun",
    "triggeredRuns": "triggeredRun",
    "webhookRuns": "webhookRuns",
    "duration": "duration",
    "bandwidthIn": "bandwidthIn",
    "bandwidthOut": "bandwidthOut",
}


class Api:
    """The routes and their answers. Everything it knows it asks the world for."""

    def __init__(
        self,
        *,
        engine: Engine,
        world: World,
        access: Access,
        webhooks: Webhooks,
        null_links: bool,
        repairs: RepairPlans,
    ) -> None:
        self._engine = engine
        self._world = world
        self._access = access
        self._webhooks = webhooks
        self._repairs = repairs
        self._null_links = null_links
        self._damage = Damage(engine)

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._engine.middleware])
        one, two = self._guard("tier 1"), self._guard("tier 2")
        edits = Edits(self._world, self._find, self._find_run).routes()
        for prefix in PREFIXES:
            app.router.add_get(prefix, one(self._list_automations))
            app.router.add_get(f"{prefix}/settings", one(self._settings))
            app.router.add_get(f"{prefix}/usage", one(self._usage))
            app.router.add_get(f"{prefix}/{{id}}", one(self._automation))
            app.router.add_get(f"{prefix}/{{id}}/runs", one(self._list_runs))
            app.router.add_get(f"{prefix}/{{id}}/runs/{{runId}}", one(self._run))
            app.router.add_post(f"{prefix}/{{id}}/runs/{{runId}}/actions/retry", two(self._retry))
            app.router.add_post(f"{prefix}/{{id}}/runs/{{runId}}/actions/stop", two(self._repairs.around(self._stop)))
            for method, path, tier, answer in edits:
                app.router.add_route(method, f"{prefix}{path}", self._guard(tier)(answer))
        hooks = "/api/v1/webhooks"
        app.router.add_get(hooks, one(self._list_webhooks))
        app.router.add_post(hooks, two(self._create_webhook))
        app.router.add_get(f"{hooks}/event-types", one(self._event_types))
        app.router.add_get(f"{hooks}/{{id}}", one(self._webhook))
        app.router.add_patch(f"{hooks}/{{id}}", two(self._patch_webhook))
        app.router.add_get(f"{hooks}/{{id}}/deliveries", one(self._list_deliveries))
        app.router.add_get("/api/v1/audits", self._guard("audits")(self._list_audits))
        app.router.add_post("/oauth/token", self._token)
        app.router.add_get("/_sim/truth", self._sim_truth)
        app.router.add_post("/_sim/faults", self._sim_faults)
        app.router.add_route("*", "/{tail:.*}", self._nowhere)
        return app

    def _refusal(self, refused: Refused) -> web.Response:
        headers = None if refused.retry_after is None else {"Retry-After": str(refused.retry_after)}
        return self._engine.error(refused.status, refused.text, headers=headers)

    def _guard(self, tier: str) -> Callable[[Answer], Handler]:
        """Check token and limit before an answer, and turn refusals into the platform's errors."""

        def guarded(answer: Answer) -> Handler:
            async def handle(request: web.Request) -> web.StreamResponse:
                try:
                    now = self._engine.clock.now()
                    caller = self._access.caller(request.headers, now)
                    self._access.spend(caller, tier, now)
                    return await answer(request, caller)
                except Refused as refused:
                    return self._refusal(refused)

            return handle

        return guarded

    async def _token(self, request: web.Request) -> web.StreamResponse:
        try:
            return json_response(self._access.issue(await json_of(request), self._engine.clock.now()))
        except Refused as refused:
            return self._refusal(refused)

    async def _nowhere(self, request: web.Request) -> web.StreamResponse:
        return self._engine.error(404, f"no such resource: {request.method} {request.path}")

    # Automations and runs

    async def _list_automations(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        terms = parse_filter(request.query.get("filter", ""), fields=AUTOMATION_FILTERS)
        sort = parse_sort(request.query, fields=AUTOMATION_SORTS, default="id")
        every = caller.admin and request.query.get("listAll", "true") == "true"
        now = self._world.now
        seen = [workflow for workflow in self._world.workflows.values() if every or caller.sees(workflow)]
        rows = _matching(seen, terms, AUTOMATION_VALUES, now)
        value = AUTOMATION_VALUES[sort.field]
        found = self._page(request, rows, sort, lambda w: (value(w, now), w.id), default=100)
        items = [
            self._damage.automation(automation_json(workflow, now, listed=True, caller_id=caller.user_id))
            for workflow in found.items
        ]
        return json_response({"data": self._damage.listing(items), "links": self._links(request, found)})

    async def _automation(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        workflow = self._find(request)
        allow(caller.operates(workflow))
        return json_response(
            self._damage.automation(automation_json(workflow, self._world.now, listed=False, caller_id=caller.user_id))
        )

    async def _list_runs(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        workflow = self._find(request)
        allow(caller.lists_runs(workflow))
        now = self._world.now
        terms = parse_filter(
            request.query.get("filter", ""), fields=RUN_FILTERS, time_fields=("startTime", "createdAt")
        )
        rows = _matching(workflow.runs.values(), terms, RUN_VALUES, now)
        sort = parse_sort(request.query, fields=("id", "status", "startTime"), default="id")
        value = RUN_VALUES[sort.field]
        found = self._page(request, rows, sort, lambda r: (value(r, now), _place(r, sort)), default=10)
        items = [self._damage.run(run_json(run, now, listed=True)) for run in found.items]
        return json_response({"data": self._damage.listing(items), "links": self._links(request, found)})

    async def _run(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        run = self._find_run(request, caller)
        return json_response(self._damage.run(run_json(run, self._world.now, listed=False)))

    async def _retry(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        run = self._find_run(request, caller)
        self._world.retry_calls[run.id] += 1
        if run.ended_at is None:
            raise Refused(400, "the run has not ended")
        if not run.workflow.enabled:
            raise Refused(403, "the automation is disabled")
        planned = self._world.planned_retries
        plan = planned.popleft() if planned else RetryPlan()
        if plan.fate == "beaten":
            self._world.retry(run, executed_by="another", plan=plan)
        if plan.delay:
            self._world.retry_later(run, self._world.now + plan.delay, executed_by=caller.user_id, plan=plan)
        elif plan.fate != "lost":
            self._world.retry(run, executed_by=caller.user_id, plan=plan)
        if plan.fate == "cut":
            return cut(request)
        if plan.fate == "error":
            raise Refused(500, "internal server error")
        return web.Response(status=204)

    async def _stop(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        run = self._find_run(request, caller)
        if run.ended_at is not None:
            raise Refused(400, "the run has ended")
        if not run.stopping and fate(request) != "lost":
            self._world.stop(run)
        return web.Response(status=204)

    async def _settings(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        return json_response({"maxConcurrentRunsPerAutomation": self._world.max_concurrent_runs})

    async def _usage(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        allow(caller.admin)
        breakdown = request.query.get("breakdownBy")
        if not request.query.get("filter") or breakdown not in (None, "automation"):
            raise Refused(400, "filter is required; breakdownBy can only be automation")
        terms = parse_filter(request.query["filter"], fields=("name",), time_fields=("date",))
        names = sorted({str(term.value) for term in terms if term.field == "name"} or USAGE_NAMES)
        if not USAGE_NAMES.keys() >= set(names):
            raise Refused(400, f"name must be one of {', '.join(USAGE_NAMES)}")
        totals: Counter[tuple[str, str, str]] = Counter()  # date, automation or "" for all, name as asked for
        for (day, workflow_id), amounts in self._world.usage.items():
            if all(term.holds(float(day * DAY)) for term in terms if term.field == "date"):
                for name in names:
                    totals[stamp_date(day * DAY), workflow_id if breakdown else "", name] += amounts[name]
        data: list[Json] = []
        for (date, workflow_id, name), total in sorted(totals.items()):
            item: Json = {"date": date, "name": USAGE_NAMES[name], "value": self._damage.number(total)}
            if workflow_id:
                workflow_name, owner_id = self._world.names[workflow_id]
                item["automation"] = {"guid": workflow_id, "name": workflow_name, "ownerId": owner_id}
            data.append(item)
        return json_response({"data": data})

    def _find(self, request: web.Request) -> Workflow:
        workflow = self._world.workflows.get(request.match_info["id"])
        if workflow is None:
            raise Refused(404, "no such automation")
        return workflow

    def _find_run(self, request: web.Request, caller: Caller) -> Run:
        workflow = self._find(request)
        allow(caller.operates(workflow))
        run = workflow.runs.get(request.match_info["runId"])
        if run is None:
            raise Refused(404, "no such run")
        return run

    # Audits and webhooks

    async def _list_audits(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        allow(caller.admin)
        runs = self._world.ended if request.query.get("eventType", RUN_ENDED) == RUN_ENDED else []
        since, _, until = request.query.get("eventTime", "").partition("/")
        if since:
            runs = runs[bisect_left(runs, parse_time(since), key=_ended_at) :]
        if until:
            last = parse_time(until)
            runs = [run for run in runs if _ended_at(run) <= last]
        sort = parse_sort(request.query, fields=("source", "eventType", "eventTime"), default="-eventTime")
        found = self._page(
            request,
            runs,
            sort,
            lambda r: (_ended_at(r) if sort.field == "eventTime" else "", r.id),
            default=10,
            most=100,
            cursor="next",
        )
        now = self._world.now
        return json_response(
            {"data": [audit_json(run, now) for run in found.items], "links": self._links(request, found, cursor="next")}
        )

    async def _list_webhooks(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        sort = parse_sort(request.query, fields=("createdAt", "name"), default="-createdAt")
        hooks = list(self._webhooks.hooks.values())
        found = self._page(
            request, hooks, sort, lambda h: (str(h[sort.field]), str(h["id"])), default=20, most=100, cursor="next"
        )
        return json_response({"data": found.items, "links": self._links(request, found, cursor="next")})

    async def _create_webhook(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        allow(caller.admin)
        body = await json_of(request)
        hook = self._webhooks.create(body, owner_id=caller.user_id, now=self._world.now)
        return json_response(hook, status=201)

    async def _event_types(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        return json_response({"data": EVENT_TYPES})

    async def _webhook(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        return json_response(self._find_webhook(request))

    async def _patch_webhook(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        allow(caller.admin)
        self._webhooks.patch(self._find_webhook(request), await json_of(request), self._world.now)
        return web.Response(status=204)

    async def _list_deliveries(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        wanted = {name: request.query[name] for name in ("eventType", "status") if name in request.query}
        sort = parse_sort(request.query, fields=("status", "triggeredAt"), default="-triggeredAt")
        entries = [
            entry
            for entry in self._webhooks.log(self._find_webhook(request), self._world.now)
            if all(entry[name] == value for name, value in wanted.items())
        ]
        found = self._page(
            request, entries, sort, lambda e: (str(e[sort.field]), str(e["id"])), default=20, most=100, cursor="next"
        )
        return json_response({"data": found.items, "links": self._links(request, found, cursor="next")})

    def _find_webhook(self, request: web.Request) -> Json:
        hook = self._webhooks.hooks.get(request.match_info["id"])
        if hook is None:
            raise Refused(404, "no such webhook")
        return hook

    # Listings

    def _page(
        self,
        request: web.Request,
        rows: Sequence[T],
        sort: Sort,
        value_and_id: Callable[[T], tuple[Value, str]],
        *,
        default: int,
        most: int = 200,
        cursor: str = "cursor",
    ) -> Page[T]:
        def key(row: T) -> Key:
            value, row_id = value_and_id(row)
            return value is not None, "" if value is None else value, row_id

        return page(
            rows,
            key=key,
            sort=sort,
            limit=parse_limit(request.query, default=default, most=most),
            cursor=request.query.get(cursor),
            shifted=lambda: self._engine.strikes(self._engine.faults.shifting_pages),
        )

    def _links(self, request: web.Request, found: Page[T], *, cursor: str = "cursor") -> Json:
        first = request.url.without_query_params(cursor)

        def link(value: str | None) -> Json:
            return {"href": None if value is None else str(first.update_query({cursor: value}) if value else first)}

        links: Json = {"prev": link(found.prev)}
        if found.next is not None or self._null_links:
            links["next"] = link(found.next)
        return links

    # For whoever runs the simulator

    async def _sim_truth(self, request: web.Request) -> web.StreamResponse:
        return json_response(self._world.truth())

    async def _sim_faults(self, request: web.Request) -> web.StreamResponse:
        known = {f.name for f in fields(Faults)}
        try:
            changes = orjson.loads(await request.read())
            for name, value in changes.items():
                usable = type(value) in (int, float) or (value is None and name == "retry_after")
                if name not in known or not usable:
                    raise ValueError(f"{name} cannot be {value}")
        except (ValueError, AttributeError) as problem:
            return self._engine.error(400, str(problem))
        for name, value in changes.items():
            setattr(self._engine.faults, name, value)
        return json_response(asdict(self._engine.faults))


def _matching(
    rows: Iterable[T], terms: Sequence[Term], values: Mapping[str, Callable[[T, float], Value]], now: float
) -> list[T]:
    return [row for row in rows if all(term.holds(values[term.field](row, now)) for term in terms)]


def _place(run: Run, sort: Sort) -> str:
    """What decides between runs that started in one second: when they were made, then their ids."""
    return run.id if sort.field == "id" else f"{run.created_at:015.0f} {run.id}"


def _ended_at(run: Run) -> float:
    return run.ended_at or 0.0
