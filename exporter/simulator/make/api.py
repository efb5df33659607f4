"""The routes of the Make simulator, under ``/api/v2`` as the Make API documentation describes them.

Everything a read-only observer needs, and the calls that retry or delete dead letters and switch scenarios on and off.
"""

import re
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields
from functools import partial

from aiohttp import web

from exporter.simulator.core import Faults, Truth, json_response
from exporter.simulator.make import rows as rows
from exporter.simulator.make.edits import BUSY, Edits
from exporter.simulator.make.gate import Gate, Refused, json_object, moment, number, required
from exporter.simulator.make.model import (
    DAY,
    FEED_LIMIT_MAX,
    HISTORY_DAYS,
    DeadLetter,
    Execution,
    MakeOptions,
    Outcome,
    Resolve,
    Scenario,
)
from exporter.simulator.make.rows import Row, ms
from exporter.simulator.make.world import MakeWorld
from exporter.simulator.repairs import RepairPlans, fate
from exporter.simulator.retries import RetryPlan, cut

RowHandler = Callable[[web.Request], Awaitable[Row | web.Response]]
INVALID = "Validation failed for 1 parameter(s)."
OUTCOMES: tuple[Outcome, ...] = ("success", "failure", "other_module")


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeApi:
    gate: Gate
    world: MakeWorld
    options: MakeOptions
    teams: dict[int, str]
    truth: Callable[[], Truth]
    retry_calls: Counter[str]  # dead letter, or execution to be replayed -> calls that named it
    plans: deque[RetryPlan]  # of the coming retry calls
    repairs: RepairPlans

    def app(self) -> web.Application:
        app = self.gate.application()
        for method, path, scope, handler in self._routes():
            app.router.add_route(method, f"/api/v2{path}", self.gate.guarded(scope, handler))
        app.router.add_get("/api/v2/ping", self._ping)
        app.router.add_get("/_sim/truth", self._show_truth)
        app.router.add_post("/_sim/faults", self._set_faults)
        return app

    def _routes(self) -> list[tuple[str, str, str | None, RowHandler]]:
        scenario, execution = r"/scenarios/{id:\d+}", r"/scenarios/{id:\d+}/logs/{executionId}"
        edits = Edits(self.gate, self.world, self._scenario, self._item, self._scenario_row, self.repairs)
        start = self.repairs.around(partial(self._switch, active=True))
        return [
            ("GET", "/organizations", "organizations:read", self._organizations),
            ("GET", r"/organizations/{id:\d+}", "organizations:read", self._organization),
            ("GET", r"/organizations/{id:\d+}/usage", "organizations:read", self._organization_usage),
            ("GET", "/teams", "teams:read", self._teams),
            ("GET", r"/teams/{id:\d+}", "teams:read", self._team),
            ("GET", "/users/me", None, self._user),
            ("GET", "/users/me/current-authorization", None, self._authorization),
            ("GET", "/scenarios", "scenarios:read", self._scenarios),
            ("GET", "/scenarios/consumptions", "scenarios:read", self._consumptions),
            ("GET", "/scenarios/logs", "scenarios:read", self._feed),
            ("GET", scenario, "scenarios:read", self._scenario_one),
            ("GET", f"{scenario}/logs", "scenarios:read", self._logs),
            ("GET", execution, "scenarios:read", self._log),
            ("GET", f"{execution}/p", "scenarios:read", self._process),
            ("GET", f"{scenario}/executions/{{executionId}}", "scenarios:read", self._execution_detail),
            ("GET", f"{scenario}/blueprint", "scenarios:read", self._blueprint),
            ("GET", f"{scenario}/usage", "scenarios:read", self._usage),
            ("POST", f"{scenario}/replay", "scenarios:run", self._replay),
            ("POST", f"{scenario}/start", "scenarios:write", start),
            ("POST", f"{scenario}/stop", "scenarios:write", partial(self._switch, active=False)),
            ("GET", "/hooks", "hooks:read", self._hooks),
            ("GET", r"/hooks/{id:\d+}/incomings/stats", "hooks:read", self._hook_stats),
            ("GET", "/dlqs", "dlqs:read", self._dead_letters),
            ("DELETE", "/dlqs", "dlqs:write", self.repairs.around(self._delete)),
            ("POST", "/dlqs/retry", "dlqs:write", self._retry_many),
            ("GET", "/dlqs/{id}", "dlqs:read", self._dead_letter_detail),
            ("GET", "/dlqs/{id}/bundle", "dlqs:read", self._bundle),
            ("GET", "/dlqs/{id}/blueprint", "dlqs:read", self._dead_letter_blueprint),
            ("GET", "/dlqs/{id}/logs", "dlqs:read", self._dead_letter_logs),
            ("GET", "/dlqs/{id}/logs/{executionId}", "dlqs:read", self._dead_letter_log),
            ("POST", "/dlqs/{id}/retry", "dlqs:write", self._retry),
            *edits.routes(),
        ]

    # Organization, teams, user

    async def _ping(self, request: web.Request) -> web.StreamResponse:
        return self.gate.over_limit() or web.Response(text="pong")

    def _organization_row(self) -> Row:
        world = self.world
        scenarios = list(world.scenarios.values())
        return rows.organization(scenarios, world.now, self.options, paused=world.paused, teams=self.teams)

    async def _organizations(self, request: web.Request) -> Row:
        return self.gate.listing(request, "organizations", [self._organization_row()], limit=10_000, sort="name")

    async def _organization(self, request: web.Request) -> Row:
        self._own_organization(request.match_info["id"])
        return {"organization": self.gate.one(request, self._organization_row())}

    async def _organization_usage(self, request: web.Request) -> Row:
        self._own_organization(request.match_info["id"])
        return {"data": self.gate.shown(request, rows.usage_days(self.world.scenarios.values(), self.world.now))}

    def _team_rows(self) -> list[Row]:
        organization_id = self.options.organization_id
        return [{"id": i, "name": name, "organizationId": organization_id} for i, name in self.teams.items()]

    async def _team(self, request: web.Request) -> Row:
        for team in self._team_rows():
            if str(team["id"]) == request.match_info["id"]:
                return {"team": self.gate.one(request, team)}
        raise Refused(403, "Access denied.")

    async def _teams(self, request: web.Request) -> Row:
        self._own_organization(required(request, "organizationId"))
        teams = self._team_rows()
        return self.gate.listing(request, "teams", teams, limit=10_000, sort="name")

    async def _user(self, request: web.Request) -> Row:
        return {"authUser": {**rows.USER, **rows.USER_SETTINGS}}

    async def _authorization(self, request: web.Request) -> Row:
        return {"authorization": {"authUsed": "token", "scope": list(self.options.scopes)}}

    def _own_organization(self, text: str) -> None:
        if text != str(self.options.organization_id):
            raise Refused(403, "Access denied.")

    # Scenarios

    def _of_request(self, request: web.Request) -> list[Scenario]:
        """The scenarios of the team or the organization that the query names: exactly one of the two."""
        team, organization = request.query.get("teamId"), request.query.get("organizationId")
        if team is not None and organization is not None:
            raise Refused(400, "teamId and organizationId cannot be used together")
        if organization is not None:
            self._own_organization(organization)
            return list(self.world.scenarios.values())
        if team is None:
            raise Refused(400, "Missing required parameter teamId or organizationId")
        return self._of_team(team)

    def _of_team(self, team: str) -> list[Scenario]:
        if team not in map(str, self.teams):
            raise Refused(403, "Access denied.")
        return [s for s in self.world.scenarios.values() if str(s.team_id) == team]

    def _scenario(self, text: str) -> Scenario:
        scenario = self.world.scenarios.get(int(text)) if text.isdecimal() else None
        if scenario is None:
            raise Refused(404, f"Scenario with id '{text}' not found.")
        return scenario

    def _scenario_row(self, scenario: Scenario) -> Row:
        count = scenario.open_items
        if self.options.dlq_count_lag > 0:
            then = self.world.now - self.options.dlq_count_lag
            items = scenario.dead_letters
            count = sum(d.created_at <= then and (d.resolved_at is None or d.resolved_at > then) for d in items)
        return rows.scenario_row(scenario, self.world.now, paused=self.world.paused, dlq_count=count)

    async def _scenarios(self, request: web.Request) -> Row:
        found = self._of_request(request)
        active = request.query.get("isActive", request.query.get("islinked"))
        if active is not None:
            found = [s for s in found if s.active == (active == "true")]
        ids = {v for k, v in request.query.items() if k.startswith("id[")}
        if ids:
            found = [s for s in found if s.key in ids]
        downwards = request.query.get("pg[sortDir]") == "desc"
        if request.query.get("pg[sortBy]") == "name":
            found.sort(key=lambda s: s.name, reverse=downwards)
        elif request.query.get("pg[sortBy]") == "id":
            found.sort(key=lambda s: s.id, reverse=downwards)
        page, pg = self.gate.page(request, found, limit=500, sort="proprietal", order="desc")
        shown = self.gate.shown(request, (self._scenario_row(s) for s in page))
        return {"scenarios": shown, "pg": pg | {"returnTotalCount": False}}

    async def _scenario_one(self, request: web.Request) -> Row:
        return {"scenario": self.gate.one(request, self._scenario_row(self._scenario(request.match_info["id"])))}

    async def _consumptions(self, request: web.Request) -> Row:
        now = self.world.now
        shown = self.gate.shown(request, (rows.consumption(s, now) for s in self._of_request(request)))
        return {"scenarioConsumptions": shown, "lastReset": rows.iso(rows.last_reset(now))}

    async def _usage(self, request: web.Request) -> Row:
        scenario = self._scenario(request.match_info["id"])
        return {"data": self.gate.shown(request, rows.usage_days([scenario], self.world.now))}

    async def _blueprint(self, request: web.Request) -> Row:
        return rows.scenario_blueprint(self._scenario(request.match_info["id"]))

    async def _switch(self, request: web.Request, *, active: bool) -> Row:
        scenario = self._scenario(request.match_info["id"])
        if fate(request) == "lost":
            return {"scenario": {"id": scenario.id, "isActive": active, "islinked": active}}
        self.world.set_active(scenario, active, self.world.now, author="API")
        return {"scenario": {"id": scenario.id, "isActive": scenario.active, "islinked": scenario.active}}

    # Executions

    def _imt(self, e: Execution) -> str:
        return rows.imt_id(e, e.started_at, short=self.options.short_imt_ids)

    def _listed(self, e: Execution) -> bool:
        return e.ended(self.world.now) or (self.options.pending_rows and e.started_at <= self.world.now)

    def _log_row(self, e: Execution) -> Row:
        return rows.execution_row(e, self.world.now, imt=self._imt(e), options=self.options)

    def _history(self, request: web.Request, scenario: Scenario) -> dict[str, Callable[[], Row]]:
        """Sort key -> row, for all that the filters let through: executions and, without a status, timeline events."""
        now = self.world.now
        first = max(number(request, "from", 0), ms(now - HISTORY_DAYS * DAY))
        last = min(number(request, "to", ms(now)), ms(now))
        status = number(request, "status", -1)
        shortest = number(request, "durationFrom", 0)
        found: dict[str, Callable[[], Row]] = {}
        skipped = bisect_left(scenario.executions, first / 1000 - 1.0, key=lambda e: e.started_at)
        for e in scenario.executions[skipped:]:
            wanted = status in (-1, e.status if e.ended(now) else 0) and rows.took(e, now) >= shortest
            if wanted and self._listed(e) and first <= ms(e.started_at) <= last:
                found[self._imt(e)] = partial(self._log_row, e)
        for event in scenario.timeline if status == -1 and not shortest else []:
            if first <= ms(event.at) <= last:
                found[f"{ms(event.at)}_{event.id}"] = partial(rows.timeline_row, event)
        return found

    async def _logs(self, request: web.Request) -> Row:
        found = self._history(request, self._scenario(request.match_info["id"]))
        downwards = request.query.get("pg[sortDir]", "desc") != "asc"
        keys = sorted(found, reverse=downwards)
        if "pg[offset]" in request.query:
            page, pg = self.gate.page(request, keys, limit=50, sort="imtId", order="desc")
        else:
            limit, last = self.gate.limit(request, 50), request.query.get("pg[last]")
            limit = min(limit, self.options.rows_max)
            if last is not None:
                keys = [key for key in keys if (key < last if downwards else key > last)]
            page = keys[:limit]
            pg = {"sortBy": "imtId", "sortDir": "desc" if downwards else "asc", "limit": limit}
            pg |= {"last": page[-1] if page else last, "showLast": False}
        return {"scenarioLogs": self.gate.shown(request, (found[key]() for key in page)), "pg": pg}

    async def _log(self, request: web.Request) -> Row:
        execution = self._execution(request)
        if not self._listed(execution):
            raise Refused(404, "Log not found.")
        row = self.gate.one(request, self._log_row(execution))
        row.pop("authorName", None)
        return {"scenarioLog": {"@kindId": 1, "@scenarioId": execution.scenario.id, **row}}

    def _execution(self, request: web.Request) -> Execution:
        """The execution of the path, if it has begun and is not forgotten. Nothing else has such an id."""
        if re.fullmatch(r"[0-9a-f]{32}", request.match_info["executionId"]) is None:
            raise Refused(400, INVALID, "Value doesn't match pattern in parameter 'executionId'.")
        scenario, now = self._scenario(request.match_info["id"]), self.world.now
        e = self.world.executions.get(request.match_info["executionId"])
        if e is None or e.scenario is not scenario or not now - HISTORY_DAYS * DAY <= e.started_at <= now:
            raise Refused(404, "Execution not found.")
        return e

    def _detailed(self, request: web.Request) -> Execution:
        """The same, if its details are known: for a while after its end they are not."""
        e, now = self._execution(request), self.world.now
        if e.ended_at is not None and e.ended_at <= now < e.ended_at + self.options.detail_delay:
            raise Refused(404, "Execution not found.")
        return e

    async def _execution_detail(self, request: web.Request) -> Row:
        return self.gate.one(request, rows.execution_detail(self._detailed(request), self.world.now))

    async def _feed(self, request: web.Request) -> Row:
        if not self.options.feed:
            invalid = self.options.feed_refusal == 400
            words = (INVALID, "Value doesn't match type in parameter 'scenarioId'.") if invalid else ("Not found.",)
            raise Refused(self.options.feed_refusal, *words)
        finished = self.world.finished
        since, until = moment(request, "since", 0), moment(request, "until", ms(self.world.now))
        limit = min(self.gate.limit(request, 50), FEED_LIMIT_MAX, self.options.rows_max)
        first = bisect_right(finished, since, key=lambda e: ms(e.ended_at or 0.0))
        end = bisect_right(finished, until, key=lambda e: ms(e.ended_at or 0.0))
        found = finished[first:end] if self.options.feed_order != "end" else finished[first : min(end, first + limit)]
        if self.options.feed_order == "newest":
            found.reverse()
        elif self.options.feed_order == "start":
            found.sort(key=lambda e: e.started_at)
        now, options = self.world.now, self.options
        page = (rows.feed_row(e, now, imt=self._imt(e), options=options) for e in found[:limit])
        return {"scenarioLogs": self.gate.shown(request, page), "pg": {"limit": limit}}

    async def _process(self, request: web.Request) -> Row:
        if self.options.module_events != 200:
            raise Refused(self.options.module_events, "Not found.")
        include = set(request.query.get("include", "").split(","))
        return self.gate.one(request, rows.process(self._detailed(request), self.world.now, include))

    async def _replay(self, request: web.Request) -> web.Response:
        """Run the scenario as it is now with what triggered an earlier run. Only the first id is used."""
        scenario = self._scenario(request.match_info["id"])
        ids = (await json_object(request)).get("executionIds")
        if not isinstance(ids, list) or not ids:
            raise Refused(400, INVALID, "Missing value of required parameter 'executionIds'.")
        self.retry_calls[str(ids[0])] += 1
        original = self.world.executions.get(str(ids[0]))
        if original is None or original.scenario is not scenario or not original.ended(self.world.now):
            raise Refused(404, "Execution not found.")
        if not rows.is_replayable(original, self.options):
            raise Refused(404, "The execution cannot be replayed.")
        if not scenario.active:
            raise Refused(422, "Scenario is not activated")
        plan = self.plans.popleft() if self.plans else RetryPlan()
        status = {"success": 1, "failure": 3}.get(plan.outcome or "")
        if plan.fate != "lost":
            self.world.retry_executions[original.id] += plan.fate != "beaten"

            def start(now: float) -> None:
                self.world.replay(original, now, outcome=status)

            self.world.at(self.world.now + self.options.retry_delay + plan.delay, start)
        if plan.fate == "error":
            return self.gate.engine.error(500, "Internal error.")
        if plan.fate == "cut":
            return cut(request)
        return web.Response(status=404 if plan.fate == "beaten" else 202)

    # Hooks

    async def _hooks(self, request: web.Request) -> Row:
        hooks = [rows.hook_row(s) for s in self._of_team(required(request, "teamId")) if s.instant]
        return self.gate.listing(request, "hooks", hooks, limit=10_000, sort="name")

    async def _hook_stats(self, request: web.Request) -> Row:
        for s in self.world.scenarios.values():
            if str(rows.hook_id(s)) == request.match_info["id"]:
                return {"incomingStat": {"queue": s.queue, "limit": s.queue_limit, "enabled": True}}
        raise Refused(404, "Hook not found.")

    # Dead letters

    def _known(self, item: DeadLetter) -> bool:
        """Whether the platform still knows the item: closed ones are forgotten after a while."""
        if item.scenario.deleted or item.state == "expired":
            return False
        return item.resolved_at is None or self.world.now - item.resolved_at < self.options.kept_for

    def _item(self, request: web.Request) -> DeadLetter:
        item = self.world.dead_letters.get(request.match_info["id"])
        if item is None or not self._known(item):
            raise Refused(404, "Incomplete execution not found.")
        return item

    async def _dead_letters(self, request: web.Request) -> Row:
        scenario = self._scenario(required(request, "scenarioId"))
        hidden = ("deleted",) if self.options.resolved_listed else ("deleted", "resolved")
        listed = [d for d in scenario.dead_letters if d.state not in hidden and self._known(d)]
        return self.gate.listing(request, "dlqs", [rows.dead_letter_row(d) for d in listed], limit=50)

    async def _dead_letter_detail(self, request: web.Request) -> Row:
        item = self._item(request)
        team = self.teams[item.scenario.team_id]
        row = rows.dead_letter_detail(item, team, dashed_ids=self.options.dashed_ids)
        return {"dlq": self.gate.one(request, row)}

    async def _bundle(self, request: web.Request) -> Row:
        return rows.dead_letter_bundle(self._item(request))

    async def _dead_letter_blueprint(self, request: web.Request) -> Row:
        return rows.dead_letter_blueprint(self._item(request))

    def _tries(self, item: DeadLetter) -> list[tuple[Row, float]]:
        """The attempts to resolve it, the newest first, and when each began."""
        running = item.trying if self.options.pending_rows else None
        return [
            (rows.resolve_row(r, self.options.organization_id, running=r is running), r.started_at)
            for r in (*([] if running is None else [running]), *reversed(item.logs))
        ]

    async def _dead_letter_logs(self, request: web.Request) -> Row:
        first, last = number(request, "from", 0), number(request, "to", ms(self.world.now))
        status = number(request, "status", -1)
        tries = self._tries(self._item(request))
        logs = [row for row, at in tries if first <= ms(at) <= last and status in (-1, row["status"])]
        return self.gate.listing(request, "dlqLogs", logs, limit=50, sort="imtId", order="desc")

    async def _dead_letter_log(self, request: web.Request) -> Row:
        for row, _ in self._tries(self._item(request)):
            if row["id"] == request.match_info["executionId"]:
                return {"dlqLog": self.gate.one(request, row)}
        raise Refused(404, "Log not found.")

    def _accept(self, request: web.Request, items: list[DeadLetter]) -> tuple[list[DeadLetter], web.Response | None]:
        """Put what of these is stored in the queue, as planned: what was taken, and the answer where it is spoiled."""
        stored = [item for item in items if item.state == "stored"]
        plan = self.plans.popleft() if stored and self.plans else RetryPlan()
        kept = [item for item in stored if not self.gate.engine.strikes(self.options.retries_lost)]
        outcome = next((known for known in OUTCOMES if known == plan.outcome), None)
        beaten = plan.fate == "beaten"
        retries = [Resolve(item, "manual", by_api=not beaten, outcome=outcome) for item in kept]
        if plan.fate != "lost":
            self.world.queue_retries(retries, self.world.now, delay=self.options.retry_delay + plan.delay)
        if plan.fate == "error":
            return stored, self.gate.engine.error(500, "Internal error.")
        return [] if beaten else stored, cut(request) if plan.fate == "cut" else None

    async def _retry(self, request: web.Request) -> Row | web.Response:
        self.retry_calls[request.match_info["id"]] += 1
        item = self._item(request)
        taken, spoiled = self._accept(request, [item])
        if spoiled is not None:
            return spoiled
        if not taken and self.options.retry_refused != 200:
            raise Refused(self.options.retry_refused, BUSY)
        return {"dlq": item.id}

    async def _chosen(self, request: web.Request) -> tuple[list[DeadLetter], bool]:
        """The items a bulk call means, and whether it meant all."""
        scenario = self._scenario(required(request, "scenarioId"))
        body = await json_object(request)
        ids, everything, spared = body.get("ids"), body.get("all") is True, body.get("exceptIds", [])
        if (ids is None) != everything or not isinstance(spared, list):
            raise Refused(400, "Either ids or all has to be given.")
        present = {d.id: d for d in scenario.dead_letters if self._known(d)}
        if ids is None:
            return [d for d in present.values() if d.resolved_at is None and d.id not in spared], True
        if not isinstance(ids, list) or not all(isinstance(i, str) and i in present for i in ids):
            raise Refused(400, "All incomplete executions have to belong to the scenario.")
        return [present[i] for i in dict.fromkeys(ids)], False

    async def _retry_many(self, request: web.Request) -> Row | web.Response:
        items, _ = await self._chosen(request)
        self.retry_calls.update(item.id for item in items)
        taken, spoiled = self._accept(request, items)
        return spoiled or {"dlqs": [item.id for item in taken]}

    async def _delete(self, request: web.Request) -> Row:
        items, everything = await self._chosen(request)
        if everything and request.query.get("confirmed") != "true":
            raise Refused(406, "Confirmation required. Use the parameter confirmed=true.")
        busy = [item for item in items if item.state == "running"]
        spared = {"some": items[1:], "lost": items}.get(fate(request), [])
        for item in items:
            if item.resolved_at is None and item not in busy and item not in spared:
                self.world.close(item, self.world.now, "deleted")
        answer: Row = {"dlqs": [item.id for item in items]}  # those in process too, as in the documented example
        if busy:
            text = "Some of the executions could not be deleted because they are being processed right now."
            answer["error"] = {"name": "APIError", "message": text, "stack": "APIError"}
        return answer

    # The simulator's own

    async def _show_truth(self, request: web.Request) -> web.Response:
        return json_response(self.truth())

    async def _set_faults(self, request: web.Request) -> web.Response:
        wanted = await json_object(request)
        known = {f.name for f in fields(Faults)}
        for name, value in wanted.items():
            fits = (isinstance(value, int | float) and not isinstance(value, bool)) or (
                value is None and name == "retry_after"
            )
            if name not in known or not fits:
                raise Refused(400, f"no such fault, or not a number: {name}")
        for name, value in wanted.items():
            setattr(self.gate.engine.faults, name, value)
        return json_response(self.gate.engine.faults)
