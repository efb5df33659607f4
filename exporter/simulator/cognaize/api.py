"""What the simulated Cognaize installation answers: its envelope, its Spring pages, its refusals.

The documents are thin, so what they leave open is either an option (order of listings, digits of timestamps) or the
most cautious guess: a wrong state or a missing field answers 412, as the restart page says of "a precondition"; a
process that is not there answers 404, or 412 by an option.
Every answer, errors included, wears the platform's envelope; only a gateway in front of it speaks HTML.
"""

import asyncio
import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Literal

import orjson
from aiohttp import web

from exporter.simulator.cognaize.process import SECOND, Params, Process, Step
from exporter.simulator.cognaize.world import Outcome, World, text_param
from exporter.simulator.core import Engine, Handler
from exporter.simulator.retries import RetryPlan, cut

Digits = Literal["ms", "ns"]
Json = dict[str, object]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MESSAGES = {200: "Success", 401: "Unauthorized request", 412: "Precondition failed", 500: "Internal Server Error"}
FIRST_PARAMS = {"GATEKEEPER": "documentId"}  # what a process must be started with, by the delegate of its first step
DELEGATE_FAILED = "I/O error while calling the delegate"
OUTCOMES: tuple[Outcome, ...] = ("success", "failure")
OPTIONAL = ("creationTimestamp", "updatedTimestamp", "params", "timeOutInSeconds", "delegate")


@dataclass(slots=True, kw_only=True)
class Access:
    """Who may come in. ``token`` is accepted as it is and for ever; None: only issued ones are."""

    token: str | None
    login: str
    password: str
    path: str  # of the token endpoint
    seconds: int  # that an issued token lives
    form: bool = False  # the login is a form, as an identity provider wants it, and its answer wears no envelope
    fields: tuple[str, str] = ("login", "password")
    extra: tuple[tuple[str, str], ...] = ()  # fields that must be there besides
    header: str = "Authorization"
    word: str = "Bearer"  # before the token; none if empty


@dataclass(slots=True, kw_only=True)
class Delegates:
    """How calls to delegates go wrong: probabilities per start, complete or restart. By then the state has changed."""

    slow: float
    slow_seconds: float  # of real time
    errors: float


class Refusal(Exception):
    """A precondition is not met; ``details`` says which, by field."""

    def __init__(self, details: Json) -> None:
        super().__init__(", ".join(details))
        self.details = details


def stamp(when: int, digits: Digits) -> str:
    """Microseconds -> RFC 3339 with three or nine digits."""
    text = (EPOCH + timedelta(microseconds=when)).isoformat(
        timespec="milliseconds" if digits == "ms" else "microseconds"
    )
    return f"{text[:-6]}Z" if digits == "ms" else f"{text[:-6]}000Z"


class Api:
    """The endpoints, over a world."""

    def __init__(
        self,
        *,
        engine: Engine,
        world: World,
        access: Access,
        delegates: Delegates,
        page_size_max: int,
        unknown_process: int,
        digits: Digits,
        retry_calls: Counter[str],
        plans: deque[RetryPlan],
    ) -> None:
        """``retry_calls`` counts restart calls by dead letter, ``plans`` are those of the coming ones."""
        self._retry_calls = retry_calls
        self._plans = plans
        self._engine = engine
        self._world = world
        self._access = access
        self._delegates = delegates
        self._page_size_max = page_size_max
        self._unknown_process = unknown_process
        self._digits: Digits = digits
        self._damage = engine.stream("damage")
        self._issues = engine.stream("tokens")
        self._tokens: dict[str, float] = {}  # issued token -> when it expires
        self._inserted: Counter[str] = Counter()  # listing -> rows inserted since its first page was read

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._engine.middleware, self._guard])
        app.router.add_post(self._access.path, self._issue_token)
        app.router.add_post("/api/v1/workflows", self._create_workflow)
        app.router.add_post("/api/v1/processes/find", self._find)
        app.router.add_post("/api/v1/processes/start", self._start)
        app.router.add_post("/api/v1/processes/complete-step", self._complete_step)
        app.router.add_post("/api/v1/processes/restart-failed-step", self._restart_failed_step)
        app.router.add_get("/api/v1/processes/{id}", self._get_process)
        return app

    def envelope(self, status: int, data: object, *, digits: Digits | None = None) -> bytes:
        message = MESSAGES.get(status) or HTTPStatus(status).phrase
        timestamp = stamp(round(self._engine.clock.now() * SECOND), digits or self._digits)
        return orjson.dumps({"message": message, "timestamp": timestamp, "data": data, "version": "1.0"})

    def _answer(self, data: object, *, status: int = 200, digits: Digits | None = None) -> web.Response:
        body = self.envelope(status, data, digits=digits)
        return web.Response(body=body, status=status, content_type="application/json")

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Credentials first; then whatever goes wrong wears the envelope."""
        if request.path.startswith("/_sim/"):
            return await handler(request)
        if request.path != self._access.path and not self._admits(request):
            return self._answer("Full authentication is required to access this resource", status=401)
        try:
            return await handler(request)
        except Refusal as refusal:
            return self._answer(refusal.details, status=412)
        except web.HTTPException as error:
            return self._answer(error.reason, status=error.status)

    # Credentials.

    def _admits(self, request: web.Request) -> bool:
        told = request.headers.get(self._access.header, "")
        scheme, _, token = told.partition(" ") if self._access.word else ("", "", told)
        if scheme.lower() != self._access.word.lower() or not token:
            return False
        return token == self._access.token or self._tokens.get(token, -math.inf) > self._engine.clock.now()

    def _new_token(self) -> str:
        return f"{self._issues.getrandbits(128):032x}"

    async def _issue_token(self, request: web.Request) -> web.Response:
        access = self._access
        body: Json = dict(await request.post()) if access.form else await _body(request)
        login, password = access.fields
        if (body.get(login), body.get(password)) != (access.login, access.password) or not all(
            body.get(key) == value for key, value in access.extra
        ):
            return self._answer("Invalid login or password", status=401)
        now = self._engine.clock.now()
        self._tokens = {token: expires for token, expires in self._tokens.items() if expires > now}
        token = self._new_token()
        self._tokens[token] = now + self._access.seconds
        data = {
            "access_token": token,
            "expires_in": self._access.seconds,
            "refresh_expires_in": 1800,
            "refresh_token": self._new_token(),
            "token_type": "Bearer",
            "not-before-policy": 0,
            "session_state": self._new_token(),
            "scope": "profile email",
        }
        if access.form:
            return web.json_response(data)
        return self._answer(data, digits="ns")  # as in the documents' sample

    # Reading.

    async def _get_process(self, request: web.Request) -> web.Response:
        process = self._world.process(request.match_info["id"])
        if process is None:
            if self._unknown_process == 404:
                raise web.HTTPNotFound
            raise Refusal({"id": {"reason": "no such process"}})
        return self._answer(self._damaged(self._show(process)))

    async def _find(self, request: web.Request) -> web.Response:
        body = await _body(request)
        number, asked = _whole(body, "pageNumber", at_least=0), _whole(body, "pageSize", at_least=1)
        only = "" if body.get("workflowId") is None else _text(body, "workflowId")
        workflow = self._world.workflows.get(only)
        size = min(asked, self._page_size_max)
        shelf = workflow.shelf if workflow is not None else self._world.shelf
        count = 0 if only and workflow is None else len(shelf)
        # A row that comes in at the front while somebody reads moves all others on: the reader meets one of them twice.
        if number == 0:
            self._inserted.pop(only, None)
        elif count and self._engine.strikes(self._engine.faults.shifting_pages):
            self._inserted[only] += 1
        moved = self._inserted[only]
        rows = shelf.page(max(0, number * size - moved), size) if count else []
        content: list[Json] = []
        for process in rows:
            row = self._damaged(self._show(process))
            content.extend([row, row] if self._engine.strikes(self._engine.faults.duplicates) else [row])
        return self._answer(_spring_page(content, number=number, size=size, total=count + moved))

    def _show(self, process: Process) -> Json:
        now, given = self._world.now, process.given or {}
        document = {"documentId": text_param(f"doc-{process.id}")}
        return {
            "creationTimestamp": stamp(process.created, self._digits),
            "updatedTimestamp": stamp(process.updated(now), self._digits),
            "id": process.id,
            "workflowId": process.workflow.id,
            "steps": [
                {
                    "id": process.step_id(index),
                    "delegate": step.delegate,
                    "timeOutInSeconds": step.timeout_seconds,
                    "processStepStatus": process.status(index, now),
                    "params": {**step.params, **given.get(index, document if index == 0 else {})},
                }
                for index, step in enumerate(process.workflow.steps)
            ],
        }

    def _damaged(self, item: Json) -> Json:
        """The same process, shown worse than it is."""
        faults, strikes = self._engine.faults, self._engine.strikes
        steps = item["steps"]
        assert isinstance(steps, list)  # noqa: S101 - _show made it
        if strikes(faults.missing_fields):
            lost = self._damage.choice(OPTIONAL)
            item.pop(lost, None)
            for step in steps:
                step.pop(lost, None)
        if strikes(faults.null_numbers):
            for step in steps:
                step["timeOutInSeconds"] = None
        if strikes(faults.unknown_status):
            self._damage.choice(steps)["processStepStatus"] = "SUSPENDED"
        return item

    # Changing.

    async def _create_workflow(self, request: web.Request) -> web.Response:
        """Its steps wait for complete-step: nobody else is there to complete them."""
        body = await _body(request)
        name, rows = _text(body, "name"), body.get("steps")
        if not isinstance(rows, list) or not rows:
            raise Refusal({"steps": {"reason": "must not be empty"}})
        steps = []
        for row in rows:
            if not isinstance(row, dict):
                raise Refusal({"steps": {"reason": "each must be an object"}})
            timeout = _whole({"timeOutInSeconds": 0, **row}, "timeOutInSeconds", at_least=0)
            steps.append(
                Step(delegate=_text(row, "delegate"), timeout_seconds=timeout, seconds=None, params=_params(row))
            )
        workflow = self._world.add_workflow(workflow_id=self._world.new_id("wf"), name=name, steps=tuple(steps))
        shown = [
            {"delegate": step.delegate, "timeOutInSeconds": step.timeout_seconds, "params": step.params}
            for step in workflow.steps
        ]
        return self._answer({"id": workflow.id, "name": workflow.name, "steps": shown})

    async def _start(self, request: web.Request) -> web.Response:
        body = await _body(request)
        params, world = _params(body), self._world
        workflow = world.workflows.get(_text(body, "workflowId"))
        if workflow is None:
            raise Refusal({"workflowId": {"reason": "no such workflow"}})
        needed = FIRST_PARAMS.get(workflow.steps[0].delegate)
        if needed is not None and needed not in params:
            raise Refusal({needed: {"reason": f"{workflow.steps[0].delegate} needs it"}})
        process = world.add_process(workflow, world.new_id("p"), world.cut(world.now))
        process.given = {0: params}
        return await self._call_delegate(process, 0, params)

    async def _complete_step(self, request: web.Request) -> web.Response:
        process, index, params = await self._change_step(request, "STARTED", self._world.complete_now)
        return await self._call_delegate(process, index, params)

    async def _restart_failed_step(self, request: web.Request) -> web.Response:
        plan = RetryPlan()

        def restart(process: Process, index: int) -> bool:
            nonlocal plan
            letter_id = self._world.newest_dead_letter(process, index)
            if letter_id is not None:
                self._retry_calls[letter_id] += 1
            if process.status(index, self._world.now) != "FAILED":
                return False
            plan = self._plans.popleft() if self._plans else plan
            outcome = next((known for known in OUTCOMES if known == plan.outcome), None)
            if plan.fate == "lost":
                return True
            if plan.fate == "beaten":
                return not self._world.restart_now(process, index, outcome=outcome, by_api=False)
            return self._world.restart_now(process, index, outcome=outcome, delay=plan.delay)

        process, index, params = await self._change_step(request, "FAILED", restart)
        if params:
            process.given = {**(process.given or {}), index: params}
        if plan.fate == "cut":
            return cut(request)
        if plan.fate == "error":
            return self._answer(DELEGATE_FAILED, status=500)
        return await self._call_delegate(process, index, params)

    async def _change_step(
        self, request: web.Request, expected: str, change: Callable[[Process, int], bool]
    ) -> tuple[Process, int, Params]:
        body = await _body(request)
        params = _params(body)
        found = self._world.step(_text(body, "processStepId"))
        if found is None:
            raise Refusal({"processStepId": {"reason": "no such step"}})
        process, index = found
        if not change(process, index):
            actual = process.status(index, self._world.now)
            raise Refusal({"processStepStatus": {"expected": expected, "actual": actual}})
        return process, index, params

    async def _call_delegate(self, process: Process, index: int, params: Params) -> web.Response:
        """The state has changed already: the platform now waits for the delegate, and says whether that went well."""
        if self._engine.strikes(self._delegates.slow):
            await asyncio.sleep(self._delegates.slow_seconds)
        if self._engine.strikes(self._delegates.errors):
            return self._answer(DELEGATE_FAILED, status=500)
        return self._answer({"processId": process.id, "processStepId": process.step_id(index), "params": params})


async def _body(request: web.Request) -> Json:
    try:
        body = orjson.loads(await request.read())
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict):
        raise Refusal({"body": {"reason": "must be a JSON object"}})
    return body


def _text(body: Json, key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str) or not value:
        raise Refusal({key: {"reason": "must not be blank"}})
    return value


def _whole(body: Json, key: str, *, at_least: int) -> int:
    value = body.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise Refusal({key: {"reason": f"must be a number, {at_least} or more"}})
    return value


def _params(body: Json) -> Params:
    value = body.get("params")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Refusal({"params": {"reason": "must be a map"}})
    return value


def _spring_page(content: list[Json], *, number: int, size: int, total: int) -> Json:
    sort = {"empty": True, "unsorted": True, "sorted": False}
    pages = math.ceil(total / size)
    return {
        "totalPages": pages,
        "totalElements": total,
        "first": number == 0,
        "last": number + 1 >= pages,
        "size": size,
        "number": number,
        "numberOfElements": len(content),
        "empty": not content,
        "sort": sort,
        "pageable": {
            "offset": number * size,
            "pageSize": size,
            "pageNumber": number,
            "paged": True,
            "unpaged": False,
            "sort": sort,
        },
        "content": content,
    }
