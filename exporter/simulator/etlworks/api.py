"""The HTTP side of the simulated Etlworks: tokens, the endpoints an observer reads, the starts, and damage to what is
shown.

Errors have the Spring form of the developer pages. Listings are bare arrays; with paging they stay arrays, cut by
``limit`` and ``offset``, with the total in ``X-Total-Count``.
"""

import base64
import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from http import HTTPStatus

import orjson
from aiohttp import web

from exporter.simulator.core import Engine, Faults, Handler, Truth, json_response
from exporter.simulator.etlworks import records as records
from exporter.simulator.etlworks.world import Workflow, World
from exporter.simulator.retries import RetryPlan, cut

OPEN_PATHS = ("/health", "/rest/v1/token-auth", "/rest/v1/token-auth/issue")
PAGE_DEFAULT, PAGE_MAX = 50, 200
STATUS_RUNNING, STATUS_NOT_EXECUTED = 1, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How this Etlworks behaves where installations or documents differ; see ``EtlworksSimulator``."""

    api_key: str
    login: str
    password: str
    token_seconds: int
    token_secret: bytes
    tenants: frozenset[int]
    paging: bool
    unknown_flow: int
    started: int
    refusal: int
    start_answer: Callable[[dict[str, object]], object]
    parallel_parameter: str
    trace_bytes: int
    definition: str
    execution_paths: tuple[str, ...]
    metrics: object


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who a token speaks for."""

    login: str
    tenant_id: int | None = None  # None: a super-admin, who sees every tenant


#: By which a status is asked for, in newer versions and in older ones.
EXECUTION_PATHS = {"current": "/rest/v1/executions/{flowId}", "legacy": "/plugins/dashboard/rest/v1/flows/{flowId}"}

CALLER = web.RequestKey("caller", Caller)
ITEM_FAULT = web.RequestKey("item_fault", str)


class Refused(Exception):
    """An answer in the platform's error form."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def error_body(status: int, message: str, path: str = "/rest/v1") -> tuple[bytes, str]:
    """The body and content type of an error; the engine's own faults do not know the path."""
    body = {"status": status, "error": HTTPStatus(status).phrase, "message": message, "path": path}
    return orjson.dumps(body), "application/json"


class Tokens:
    """Signed tokens that carry who asked and until when they hold. Nothing is stored."""

    def __init__(self, *, secret: bytes, seconds: int) -> None:
        self._secret, self._seconds = secret, seconds
        self._issued = 0

    def issue(self, caller: Caller, now: float) -> str:
        self._issued += 1
        claims = {
            "sub": caller.login,
            "tenant": caller.tenant_id,
            "jti": self._issued,
            "iat": int(now),
            "exp": int(now) + self._seconds,
        }
        signed = _b64({"alg": "HS256", "typ": "JWT"}) + "." + _b64(claims)
        return f"{signed}.{self._signature(signed)}"

    def read(self, token: str, now: float) -> Caller | None:
        """Who the token speaks for, or None if it is forged, expired or no token at all."""
        signed, _, signature = token.rpartition(".")
        if not hmac.compare_digest(signature, self._signature(signed)):
            return None
        payload = signed.split(".")[1]
        claims = orjson.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return Caller(login=claims["sub"], tenant_id=claims["tenant"]) if now < claims["exp"] else None

    def _signature(self, signed: str) -> str:
        digest = hmac.new(self._secret, signed.encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def _b64(value: object) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(value)).decode().rstrip("=")


class Damage:
    """The faults of single items. They change what is shown, never what happened."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._rng = engine.stream("damage")

    def strikes(self, kind: str, forced: str | None) -> bool:
        return kind == forced or self._engine.strikes(getattr(self._engine.faults, kind))

    def item(
        self,
        record: dict[str, object],
        *,
        optional: Sequence[str],
        numbers: Sequence[str] = (),
        forced: str | None = None,
    ) -> dict[str, object]:
        """The record as shown: perhaps without some optional fields, with a null for a number or a status nobody has
        heard of.
        """
        if self.strikes("missing_fields", forced):
            for key in self._rng.sample(optional, k=self._rng.randint(1, len(optional))):
                record.pop(key, None)
        if self.strikes("null_numbers", forced):
            present = [key for key in numbers if record.get(key) is not None]
            if present:
                record[self._rng.choice(present)] = None
        if "status" in record and self.strikes("unknown_status", forced):
            record["status"] = "suspended"
        return record

    def doubled(self, items: list[dict[str, object]], forced: str | None) -> list[dict[str, object]]:
        out: list[dict[str, object]] = []
        for item in items:
            out += [item, item] if self.strikes("duplicates", forced) else [item]
        return out


class Api:
    """The application, over a world that the engine's middleware moves to now before each request."""

    def __init__(
        self, *, engine: Engine, world: World, damage: Damage, options: Options, truth: Callable[[], Truth]
    ) -> None:
        self._engine, self._world, self._damage, self._options, self._truth = engine, world, damage, options, truth
        self._tokens = Tokens(secret=options.token_secret, seconds=options.token_seconds)

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._note_item_fault, self._engine.middleware, self._answer])
        by_name = "flows/flow-name/{flowName}/run"
        app.router.add_routes(
            [
                web.post("/rest/v1/token-auth", self._issue),
                web.post("/rest/v1/token-auth/issue", self._issue),
                web.post("/rest/v1/token-auth/refresh", self._refresh),
                web.post("/rest/v1/token-auth/tenants/{tenantId}", self._switch_tenant),
                web.get("/rest/v1/flows", self._flows),
                web.get("/rest/v1/flows/{flowId}", self._flow),
                web.post("/rest/v1/flows/{flowId}/run", self._run_by_id),
                web.post(f"/rest/v1/{by_name}", self._run_by_name),
                web.post(f"/plugins/flows/rest/v1/{by_name}", self._run_by_name),
                *(web.get(EXECUTION_PATHS[name], self._execution) for name in self._options.execution_paths),
                web.get("/rest/v1/schedules", self._schedules),
                web.get("/health", self._health),
                web.get("/_sim/truth", self._sim_truth),
                web.post("/_sim/faults", self._sim_faults),
            ]
        )
        return app

    # Around every request.

    @web.middleware
    async def _note_item_fault(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Remember a queued fault that concerns items: the engine takes it from the queue, but has nothing to do for
        it.
        """
        queued = self._engine.queued_faults
        if queued and not request.path.startswith("/_sim"):
            request[ITEM_FAULT] = queued[0]
        return await handler(request)

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Check who asks, and turn refusals into the platform's errors."""
        try:
            if request.path not in OPEN_PATHS and not request.path.startswith("/_sim"):
                request[CALLER] = self._authenticated(request)
            return await handler(request)
        except Refused as e:
            status, message = e.status, str(e)
        except web.HTTPException as e:
            status, message = e.status, e.reason
        body, content_type = error_body(status, message, request.path)
        return web.Response(status=status, body=body, content_type=content_type)

    def _authenticated(self, request: web.Request) -> Caller:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        caller = None
        if scheme.lower() == "bearer" and token.isascii():
            if hmac.compare_digest(token, self._options.api_key):
                caller = Caller(login=self._options.login)
            else:
                caller = self._tokens.read(token, self._engine.clock.now())
        if caller is None:
            raise Refused(401, "Full authentication is required to access this resource")
        return caller

    # Tokens.

    async def _issue(self, request: web.Request) -> web.Response:
        given = await _json_object(request)
        if not all(isinstance(given.get(key), str) for key in ("login", "password")):
            raise Refused(400, "Fields 'login' and 'password' are required")
        if (given["login"], given["password"]) != (self._options.login, self._options.password):
            raise Refused(401, "Bad credentials")
        return self._token(Caller(login=self._options.login))

    async def _refresh(self, request: web.Request) -> web.Response:
        return self._token(request[CALLER])

    async def _switch_tenant(self, request: web.Request) -> web.Response:
        tenant_id = _number(request.match_info["tenantId"])
        if tenant_id not in self._options.tenants | {w.tenant_id for w in self._world.workflows.values()}:
            raise Refused(403, "No such tenant, or no access to it")
        return self._token(Caller(login=request[CALLER].login, tenant_id=tenant_id))

    def _token(self, caller: Caller) -> web.Response:
        return json_response({"token": self._tokens.issue(caller, self._engine.clock.now())})

    # What an observer reads.

    async def _flows(self, request: web.Request) -> web.Response:
        definition = self._options.definition
        items = [records.flow(w, definition=definition) for w in self._visible(request)]
        return self._listing(request, items, optional=records.FLOW_OPTIONAL)

    async def _flow(self, request: web.Request) -> web.Response:
        record = records.flow(self._found(request), definition=self._options.definition)
        return json_response(self._damage.item(record, optional=records.FLOW_OPTIONAL, forced=request.get(ITEM_FAULT)))

    async def _schedules(self, request: web.Request) -> web.Response:
        items = [records.schedule(w) for w in self._visible(request) if w.event_id is not None]
        return self._listing(request, items, optional=records.SCHEDULE_OPTIONAL, numbers=records.SCHEDULE_NUMBERS)

    async def _execution(self, request: web.Request) -> web.Response:
        """By audit id, by message id, the newest with a status, or simply the newest."""
        now = self._engine.clock.now()
        workflow, query = self._found(request), request.query
        run = self._world.find_run(
            workflow,
            now,
            run_id=_number(query["auditId"]) if query.get("auditId") else None,
            message_id=query.get("messageId") or None,
            status=query.get("status") or None,
        )
        if run is None:
            raise Refused(self._options.unknown_flow, f"No execution of flow {workflow.id} found")
        record = records.execution(
            run, now, trace_bytes=self._options.trace_bytes, with_tenant=request[CALLER].tenant_id is None
        )
        if "metrics" in record:
            record["metrics"] = self._options.metrics
        return json_response(
            self._damage.item(
                record,
                optional=records.EXECUTION_OPTIONAL,
                numbers=records.EXECUTION_NUMBERS,
                forced=request.get(ITEM_FAULT),
            )
        )

    async def _health(self, request: web.Request) -> web.Response:
        return json_response(records.health(running=self._world.running_count(self._engine.clock.now())))

    def _visible(self, request: web.Request) -> list[Workflow]:
        tenant_id = request[CALLER].tenant_id
        workflows = self._world.workflows
        return [w for _, w in sorted(workflows.items()) if tenant_id is None or w.tenant_id == tenant_id]

    def _found(self, request: web.Request) -> Workflow:
        flow_id, tenant_id = _number(request.match_info["flowId"]), request[CALLER].tenant_id
        workflow = self._world.workflows.get(flow_id)
        if workflow is None or (tenant_id is not None and workflow.tenant_id != tenant_id):
            raise Refused(self._options.unknown_flow, f"Flow {flow_id} not found")
        return workflow

    def _listing(
        self,
        request: web.Request,
        items: list[dict[str, object]],
        *,
        optional: Sequence[str],
        numbers: Sequence[str] = (),
    ) -> web.Response:
        forced, headers = request.get(ITEM_FAULT), {}
        if self._options.paging:
            limit = min(PAGE_MAX, max(1, _number(request.query.get("limit", str(PAGE_DEFAULT)))))
            offset = max(0, _number(request.query.get("offset", "0")))
            total = len(items)
            if offset > 0 and self._damage.strikes("shifting_pages", forced):
                offset, total = offset - 1, total + 1  # something new before this page pushed everything one place down
            headers["X-Total-Count"] = str(total)
            items = items[offset : offset + limit]
        shown = [self._damage.item(item, optional=optional, numbers=numbers, forced=forced) for item in items]
        return json_response(self._damage.doubled(shown, forced), headers=headers)

    # Starts.

    async def _run_by_id(self, request: web.Request) -> web.Response:
        parameters = await _json_object(request)
        if not all(isinstance(value, str) for value in parameters.values()):
            raise Refused(400, "Parameters must be a flat map of strings")
        self._world.parameters.append(parameters)
        return self._start(request, self._found(request))

    async def _run_by_name(self, request: web.Request) -> web.Response:
        name = request.match_info["flowName"]
        for workflow in self._visible(request):
            if workflow.name == name:
                return self._start(request, workflow)
        raise Refused(self._options.unknown_flow, f"Flow {name} not found")

    def _start(self, request: web.Request, workflow: Workflow) -> web.Response:
        """Start one instance, unless one is active and none in parallel was asked for."""
        now, world = self._engine.clock.now(), self._world
        letter, planned = world.retried(workflow) or "", world.planned_retries
        world.retry_calls[letter] += 1
        parallel = request.query.get(self._options.parallel_parameter, "").lower() == "true"
        if planned and planned[0].fate == "beaten":
            planned.popleft()
            world.start_on_demand(workflow, now, started_by="another")
        active = None if parallel else world.active_run(workflow, now)
        if active is None:
            plan, login = planned.popleft() if planned else RetryPlan(), request[CALLER].login
            if plan.fate == "lost" or plan.delay:
                if plan.fate != "lost":
                    world.start_later(workflow, now + plan.delay, started_by=login, plan=plan)
                run_id: int | None = None
            else:
                world.retry_executions[letter] += 1
                run_id = world.start_on_demand(workflow, now, started_by=login, plan=plan).id
            if plan.fate == "cut":
                return cut(request)
            if plan.fate == "error":
                raise Refused(500, "Internal error")
            return json_response(self._options.start_answer(_started(workflow, run_id, self._options.started)))
        if self._options.refusal == STATUS_NOT_EXECUTED:
            return json_response(_started(workflow, None, STATUS_NOT_EXECUTED))
        if self._options.refusal == STATUS_RUNNING:
            return json_response(_started(workflow, active.id, STATUS_RUNNING))
        raise Refused(500, f"Flow {workflow.id} is already running")

    # For people who run the simulator by hand.

    async def _sim_truth(self, request: web.Request) -> web.Response:
        return json_response(asdict(self._truth()))

    async def _sim_faults(self, request: web.Request) -> web.Response:
        given = await _json_object(request)
        known = {f.name for f in fields(Faults)}
        for name, value in given.items():
            nullable = name == "retry_after" and value is None
            number = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
            if name not in known or not (nullable or number):
                raise Refused(400, f"No such fault, or no such value: {name}")
        for name, value in given.items():
            setattr(self._engine.faults, name, value)
        return json_response(asdict(self._engine.faults))


def _started(workflow: Workflow, run_id: int | None, status: int) -> dict[str, object]:
    return {"flowId": workflow.id, "messageUuid": None, "auditId": run_id, "status": status, "exception": None}


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise Refused(400, f"Not a number: {text}") from None


async def _json_object(request: web.Request) -> dict[str, object]:
    """The body as a JSON object; no body is an empty one."""
    try:
        value = orjson.loads(await request.read() or b"{}")
    except orjson.JSONDecodeError:
        raise Refused(400, "The body is no JSON") from None
    if not isinstance(value, dict):
        raise Refused(400, "The body is no JSON object")
    return value
