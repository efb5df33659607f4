"""Retry control over HTTP: with the ``admin_token``, or for the commands of the user the service runs as.

``POST /api/v1/operations``, ``/api/v1/operations/{id}/cancel``, ``/api/v1/retries/pause | resume | approve`` and
``/api/v1/dead-letters/{source}/{id}/ACTION``, where ``try`` only looks. A body is JSON or missing; ``for`` in it is a
duration. Without an ``admin_token`` nobody from outside can say anything here. ``GET /api/v1/groups`` and
``/api/v1/operations`` only read.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from aiohttp import web
from pydantic import SecretStr

from exporter.model.durations import parse_duration
from exporter.model.operations import OperationAction
from exporter.retries.book import RetryBook
from exporter.retries.control import Control, ControlError, retry_facts
from exporter.retries.facts import group_facts, operation_facts
from exporter.retries.operations import Operations, Selection
from exporter.retries.trying import try_once
from exporter.store.script import StoreError
from exporter.web.proof import same
from exporter.wire import body as bodies
from exporter.wire.body import BodyError

#: A body has this long (seconds) to arrive.
READ_SECONDS_MAX = 15.0
WORDS_CHARS_MAX = 200


class ControlRoutes:
    """The routes, and who may use them."""

    def __init__(
        self,
        control: Control,
        operations: Operations,
        book: RetryBook,
        admin_token: SecretStr | None,
        local_token: str,
    ) -> None:
        self.control = control
        self.operations = operations
        self.book = book
        self._admin_token = None if admin_token is None else admin_token.get_secret_value()
        self._local_token = local_token

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_post("/api/v1/retries/pause", self._guarded(self._pause))
        router.add_post("/api/v1/retries/resume", self._guarded(self._resume))
        router.add_post("/api/v1/retries/approve", self._guarded(self._approve))
        router.add_get("/api/v1/groups", self._groups)
        router.add_get("/api/v1/operations", self._list)
        router.add_post("/api/v1/operations", self._guarded(self._begin))
        router.add_get("/api/v1/operations/{id}", self._one)
        router.add_post("/api/v1/operations/{id}/cancel", self._guarded(self._cancel))
        router.add_get("/api/v1/retries/{id:[^/]+}", self._show)
        router.add_get("/api/v1/retries/{source}/{id:[^/]+}", self._show)
        one = "/api/v1/dead-letters/{source}/{id:[^/]+}/{action:retry|approve|hold|release|quarantine}"
        router.add_post(one, self._guarded(self._act))
        router.add_post("/api/v1/dead-letters/{source}/{id:[^/]+}/try", self._guarded(self._try))

    def is_local(self, request: web.Request) -> bool:
        """Whether a command of this very service asks."""
        return self._is(request, self._local_token)

    def may_control(self, request: web.Request) -> bool:
        return self.is_local(request) or (self._admin_token is not None and self._is(request, self._admin_token))

    @property
    def is_on(self) -> bool:
        """Whether anybody from outside may say anything."""
        return self._admin_token is not None

    def _is(self, request: web.Request, token: str) -> bool:
        kind, _, given = request.headers.get("Authorization", "").partition(" ")
        return kind.lower() == "bearer" and same(given.strip(), token)

    def _guarded(
        self, handler: Callable[[web.Request, Mapping[str, Any], str], Awaitable[Mapping[str, Any]]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def guarded(request: web.Request) -> web.Response:
            if not self.may_control(request):
                if not self.is_on:
                    return _json({"error": "retry control is off: set server.admin_token to turn it on"}, status=404)
                return _json({"error": "send the admin_token: Authorization: Bearer …"}, status=401)
            try:
                body = _body(await _read(request))
                who = _word(body, "who") or ("admin" if not self.is_local(request) else "command")
                return _json(await handler(request, body, who))
            except (ControlError, BodyError) as exc:
                return _json({"error": str(exc)}, status=exc.status)
            except StoreError as exc:
                return _json({"error": str(exc)}, status=503)

        return guarded

    async def _pause(self, request: web.Request, body: Mapping[str, Any], who: str) -> Mapping[str, Any]:
        source, seconds = _word(body, "source"), _seconds(body)
        return await self.control.pause(source, seconds=seconds, who=who, why=_word(body, "why") or "")

    async def _resume(self, request: web.Request, body: Mapping[str, Any], who: str) -> Mapping[str, Any]:
        return await self.control.resume(_word(body, "source"), who=who)

    async def _approve(self, request: web.Request, body: Mapping[str, Any], who: str) -> Mapping[str, Any]:
        """``ids``: a list of SOURCE/ID; or ``policy``: whatever waits for approval under it now."""
        selection = selected(body)
        if not selection.ids and selection.policy is None:
            raise ControlError('name what to approve: {"ids": ["SOURCE/ID"]} or {"policy": "NAME"}', status=400)
        return await self._begun(OperationAction.APPROVE, selection, body, who, at_once=True)

    async def _act(self, request: web.Request, body: Mapping[str, Any], who: str) -> Mapping[str, Any]:
        selection = Selection(ids=[(request.match_info["source"], request.match_info["id"])])
        action = OperationAction(request.match_info["action"])
        return await self._begun(action, selection, body, who, at_once=True)

    async def _try(self, request: web.Request, body: Mapping[str, Any], who: str) -> Mapping[str, Any]:
        """What is decided of one, and what the platform says of it now. No call is made."""
        return await try_once(self.control, self.book, (request.match_info["source"], request.match_info["id"]))

    async def _begin(self, request: web.Request, body: Mapping[str, Any], who: str) -> Mapping[str, Any]:
        """``action`` and what is meant by it: ``ids``, ``group``, ``policy``, ``workflow`` or ``between``."""
        try:
            action = OperationAction(_word(body, "action") or "")
        except ValueError:
            known = ", ".join(OperationAction)
            raise ControlError(f"name an action: one of {known}", status=400) from None
        return await self._begun(action, selected(body), body, who, at_once=body.get("now") is True)

    async def _begun(
        self, action: OperationAction, selection: Selection, body: Mapping[str, Any], who: str, *, at_once: bool
    ) -> Mapping[str, Any]:
        stop_after = body.get("stop_after")
        if stop_after is not None and (not isinstance(stop_after, int) or stop_after < 1):
            raise ControlError("stop_after must be a number of failures", status=400)
        return await self.operations.begin(
            action,
            selection,
            who=who,
            why=_word(body, "why") or "",
            at_once=at_once,
            seconds=_seconds(body),
            sent=body.get("sent") is not False,
            stop_after=stop_after,
            dry_run=body.get("dry_run") is True,
        )

    async def _cancel(self, request: web.Request, body: Mapping[str, Any], who: str) -> Mapping[str, Any]:
        return await self.operations.cancel(request.match_info["id"], who=who)

    async def _groups(self, request: web.Request) -> web.Response:
        """Open dead letters by what they have in common, the largest group first."""
        said = self.operations
        return _json({"groups": [group_facts(group, said.can(group)) for group in said.groups()]})

    async def _list(self, request: web.Request) -> web.Response:
        """The newest operations, without their lists."""
        newest = self.operations.newest()
        return _json({"operations": [operation_facts(state, items=False) for state in newest]})

    async def _one(self, request: web.Request) -> web.Response:
        """One operation: how far each of its dead letters has come, and how many failed since that fit it."""
        try:
            state = await self.operations.one(request.match_info["id"])
        except ControlError as exc:
            return _json({"error": str(exc)}, status=exc.status)
        return _json(operation_facts(state, new_since=self.operations.new_since(state)))

    async def _show(self, request: web.Request) -> web.Response:
        """One retry by its id; or all of one dead letter, written SOURCE/ID."""
        identity = "/".join(request.match_info[key] for key in ("source", "id") if key in request.match_info)
        retries = self.book.named(identity)
        if not retries:
            return _json({"error": f"there is no retry or dead letter {identity} with retries"}, status=404)
        audit = await self.book.audit_of(identity)
        if retries[0].id == identity:
            return _json({**retry_facts(retries[0]), "audit": audit})
        return _json({"retries": [retry_facts(retry) for retry in retries], "audit": audit})


def selected(body: Mapping[str, Any]) -> Selection:
    """Which dead letters a body means. Raises ``ControlError``."""
    ids, between = body.get("ids"), body.get("between")
    if ids is not None and not (isinstance(ids, list) and all(isinstance(i, str) and "/" in i for i in ids)):
        raise ControlError('ids must be a list: ["SOURCE/ID", …]', status=400)
    workflow = _word(body, "workflow")
    if workflow is not None and "/" not in workflow:
        raise ControlError("workflow: write SOURCE/ID", status=400)
    span: tuple[float, float] | None = None
    if between is not None:
        if not isinstance(between, list) or len(between) != 2:
            raise ControlError("between: write two moments, [FROM, TO]", status=400)
        try:
            span = (moment(between[0]), moment(between[1]))
        except ValueError as exc:
            raise ControlError(f"between: {exc}", status=400) from None
    return Selection(
        ids=[_key(i) for i in ids or ()],
        group=_word(body, "group"),
        policy=_word(body, "policy"),
        workflow=None if workflow is None else _key(workflow),
        between=span,
    )


def moment(value: Any) -> float:
    """A moment from a number of seconds or an ISO date. Raises ``ValueError``."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    try:
        found = datetime.fromisoformat(str(value).replace("Z", "+00:00"))
    except ValueError:
        raise ValueError(f"{value!r} is no moment; write 2026-11-28T21:00:00Z") from None
    return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()


def _key(text: str) -> tuple[str, str]:
    source, _, identity = text.partition("/")
    return source, identity


async def _read(request: web.Request) -> bytes:
    """The body, unpacked. Only for who has proved who they are."""
    limit, coding = request.client_max_size, bodies.coding(request.headers.get("Content-Encoding", ""))
    if coding is None:
        raise BodyError(415, f"send the body as it is, or one Content-Encoding of: {bodies.ENCODINGS}")
    try:
        async with asyncio.timeout(READ_SECONDS_MAX):
            return await bodies.unpack(await bodies.read(request, limit=limit), coding, limit=limit)
    except TimeoutError:
        raise bodies.late() from None


def _body(data: bytes) -> Mapping[str, Any]:
    if not data.strip():
        return {}
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise ControlError("the body is not JSON", status=400) from None
    if not isinstance(body, dict):
        raise ControlError("the body must be a JSON object", status=400)
    return body


def _word(body: Mapping[str, Any], key: str) -> str | None:
    value = body.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip() or len(value) > WORDS_CHARS_MAX or not value.isprintable():
        raise ControlError(f"{key} must be a short text", status=400)
    return value.strip()


def _seconds(body: Mapping[str, Any]) -> float | None:
    if body.get("for") is None:
        return None
    try:
        seconds = parse_duration(body["for"])
    except ValueError as exc:
        raise ControlError(f"for: {exc}", status=400) from None
    if seconds <= 0:
        raise ControlError("for: has to be longer than nothing", status=400)
    return seconds


def _json(data: object, *, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(data), content_type="application/json")
