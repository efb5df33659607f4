"""What stands between a request and the Make simulator's handlers: credentials, the limit, paging and faulty items.

Faulty items are damaged on their way out, in the copy that is shown; the world never knows.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

import orjson
from aiohttp import web

from exporter.simulator.core import Engine, Handler, json_response
from exporter.simulator.make.model import MakeOptions
from exporter.simulator.make.rows import Row, ms

T = TypeVar("T")

ITEM_FAULT = web.RequestKey("item_fault", str)  # the queued fault of items that this request shows

LIMIT_TEXT = "Requests limit for organization exceeded, please try again later."
ITEM_FAULTS = frozenset({"shifting_pages", "missing_fields", "duplicates", "null_numbers", "unknown_status"})
ERROR_CODES = {
    400: ("SC400", "Bad Request"),
    401: ("SC401", "Not authorized"),
    403: ("SC403", "Permission denied"),
    404: ("SC404", "Not Found"),
    406: ("IM004", "Confirmation required"),
    429: ("SC429", "Too Many Requests"),
    503: ("SC503", "Service Unavailable"),
}
OPTIONAL = frozenset(  # what an item can lose
    {
        *("eventType", "error", "endedAt", "imtId", "instant", "authorId", "authorName", "operations", "transfer"),
        *("parent", "scenarioName", "isReplayable", "replayOfExecutionId", "allDlqCount"),
        *("centicredits", "organizationId", "usedPackages", "createdByUser", "updatedByUser", "nextExec", "scheduling"),
        *("islinked", "isPaused", "iswaiting", "hookId", "created", "size", "attempts"),
    }
)
NUMBERS = frozenset(  # where an item can show null
    {
        *("duration", "operations", "transfer", "centicredits", "organizationId"),
        *("dlqCount", "size", "attempts", "queueCount", "queueLimit"),
    }
)


class Refused(Exception):
    """A request the platform refuses, with its status and its words."""

    def __init__(self, status: int, text: str, reason: str | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason  # what of the request is wrong


def error_body(status: int, text: str, reason: str | None = None) -> tuple[bytes, str]:
    code, message = ERROR_CODES.get(status, (f"SC{status}", "Error"))
    body: Row = {"detail": text, "message": message, "code": code}
    if reason is not None:
        body["suberrors"] = [{"message": reason, "name": "Error"}]
    return orjson.dumps(body), "application/json"


@dataclass(slots=True, kw_only=True)
class Gate:
    engine: Engine
    options: MakeOptions
    _minute: int = field(init=False, default=-1)
    _requests_this_minute: int = field(init=False, default=0)

    def application(self) -> web.Application:
        return web.Application(middlewares=[self._keep_item_fault, self.engine.middleware, self._refusals])

    def guarded(self, scope: str | None, handler: Callable[[web.Request], Awaitable[Row | web.Response]]) -> Handler:
        """The handler behind authentication and the limit; ``scope`` is what the token must carry."""

        async def checked(request: web.Request) -> web.StreamResponse:
            self._authenticate(request, scope)
            limited = self.over_limit()
            if limited is not None:
                return limited
            answer = await handler(request)
            return answer if isinstance(answer, web.Response) else json_response(answer)

        return checked

    def _authenticate(self, request: web.Request, scope: str | None) -> None:
        # "Token" goes with API tokens, "Bearer" with OAuth. Clients tell the two apart by the token's form, free here.
        given = request.headers.get("Authorization", "")
        if given not in (f"Token {self.options.token}", f"Bearer {self.options.token}"):
            raise Refused(401, "Access denied.")
        if scope is not None and scope not in self.options.scopes:
            raise Refused(403, "Access denied.")

    def over_limit(self) -> web.Response | None:
        """Count a request; the refusal, in plain text as live, once the minute's requests are used up."""
        if not self.options.enforce_limit:
            return None
        minute = int(self.engine.clock.now() // 60)
        if minute != self._minute:
            self._minute, self._requests_this_minute = minute, 0
        if self._requests_this_minute >= self.options.api_limit:
            return web.Response(status=429, text=LIMIT_TEXT)
        self._requests_this_minute += 1
        return None

    @web.middleware
    async def _keep_item_fault(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        # The engine takes a queued fault of items off its list but cannot act on it: remember it for this request.
        queued = self.engine.queued_faults
        if queued and queued[0] in ITEM_FAULTS and not request.path.startswith("/_sim"):
            request[ITEM_FAULT] = queued[0]
        return await handler(request)

    @web.middleware
    async def _refusals(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except Refused as refused:
            body, kind = error_body(refused.status, str(refused), refused.reason)
            return web.Response(status=refused.status, body=body, content_type=kind)
        except web.HTTPException as error:
            return self.engine.error(error.status, error.reason)

    def _strikes(self, request: web.Request, fault: str) -> bool:
        probability: float = getattr(self.engine.faults, fault)
        return request.get(ITEM_FAULT) == fault or self.engine.strikes(probability)

    def shown(self, request: web.Request, items: Iterable[Row]) -> list[Row]:
        """The items as this answer shows them: the columns asked for, exact, or damaged as the faults say."""
        columns = [v for k, v in request.query.items() if k.startswith("cols[")]
        shown: list[Row] = []
        for item in items:
            if "centicredits" in item and self.options.text_counters:
                item["centicredits"] = str(item["centicredits"])
            if self._strikes(request, "missing_fields"):
                item = {k: v for k, v in item.items() if k not in OPTIONAL}
            if self._strikes(request, "null_numbers"):
                item = {k: None if k in NUMBERS else v for k, v in item.items()}
            if "status" in item and self._strikes(request, "unknown_status"):
                item["status"] = 7 if isinstance(item["status"], int) else "SUSPENDED"
            if columns and "*" not in columns:
                item = {c: item[c] for c in columns if c in item}
            shown.append(item)
            if self._strikes(request, "duplicates"):
                shown.append(item)
        return shown

    def one(self, request: web.Request, item: Row) -> Row:
        return self.shown(request, [item])[0]

    def limit(self, request: web.Request, default: int) -> int:
        """How many rows a page may have; more than the platform allows are refused where it is so set."""
        asked = number(request, "pg[limit]", default)
        if self.options.limit_refused is not None and asked > self.options.limit_refused:
            raise Refused(400, "Validation failed for 1 parameter(s).", "Value is too big in parameter 'pg[limit]'.")
        return asked

    def page(
        self, request: web.Request, items: Sequence[T], *, limit: int, sort: str = "", order: str = "asc"
    ) -> tuple[Sequence[T], Row]:
        """The asked page of a listing, and its ``pg`` block. Meanwhile something may have come in before the first."""
        offset = number(request, "pg[offset]", 0)
        limit = min(self.limit(request, limit), self.options.rows_max)
        pg: Row = {
            "sortBy": request.query.get("pg[sortBy]", sort),
            "limit": limit,
            "sortDir": request.query.get("pg[sortDir]", order),
            "offset": offset,
        }
        if offset > 0 and self._strikes(request, "shifting_pages"):
            offset -= 1
        return items[offset : offset + limit], pg

    def listing(
        self, request: web.Request, name: str, items: Sequence[Row], *, limit: int, sort: str = "", order: str = "asc"
    ) -> Row:
        page, pg = self.page(request, items, limit=limit, sort=sort, order=order)
        return {name: self.shown(request, page), "pg": pg}


def required(request: web.Request, name: str) -> str:
    if name not in request.query:
        raise Refused(400, f"Missing value of required parameter '{name}'.")
    return request.query[name]


def number(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name)
    if text is None:
        return default
    if not text.isdecimal():
        raise Refused(400, f"Invalid key, not parsable to integer: '{name}'.")
    return int(text)


def moment(request: web.Request, name: str, default: int) -> int:
    """Milliseconds since the epoch of an ISO 8601 parameter."""
    text = request.query.get(name)
    if text is None:
        return default
    try:
        return ms(datetime.fromisoformat(text).timestamp())
    except ValueError:
        raise Refused(400, f"Validation failed for '{name}'.") from None


async def json_object(request: web.Request) -> dict[str, Any]:
    try:
        body = orjson.loads(await request.read() or b"{}")
    except orjson.JSONDecodeError:
        raise Refused(400, "The request body is not valid JSON.") from None
    if not isinstance(body, dict):
        raise Refused(400, "The request body has to be an object.")
    return body
