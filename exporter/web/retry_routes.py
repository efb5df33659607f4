"""Retry control over HTTP: with the ``admin_token``, or for the commands of the user the service runs as.

``POST /api/v1/retries/pause | resume | approve`` and ``POST /api/v1/dead-letters/{source}/{id}/ACTION``. A body is JSON
or missing; ``for`` in it is a duration. Without an ``admin_token`` nobody from outside can say anything here.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from aiohttp import web
from pydantic import SecretStr

from exporter.model.durations import parse_duration
from exporter.retries.book import RetryBook
from exporter.retries.control import Control, ControlError, retry_facts
from exporter.store.script import StoreError
from exporter.web.proof import same
from exporter.wire import body as bodies
from exporter.wire.body import BodyError

#: A body has this long (seconds) to arrive.
READ_SECONDS_MAX = 15.0
WORDS_CHARS_MAX = 200


class ControlRoutes:
    """The routes, and who may use them."""

    def __init__(self, control: Control, book: RetryBook, admin_token: SecretStr | None, local_token: str) -> None:
        self.control = control
        self.book = book
        self._admin_token = None if admin_token is None else admin_token.get_secret_value()
        self._local_token = local_token

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_post("/api/v1/retries/pause", self._guarded(self._pause))
        router.add_post("/api/v1/retries/resume", self._guarded(self._resume))
        router.add_post("/api/v1/retries/approve", self._guarded(self._approve))
        router.add_get("/api/v1/retries/{id}", self._show)
        router.add_get("/api/v1/retries/{source}/{id}", self._show)
        one = "/api/v1/dead-letters/{source}/{id}/{action:retry|approve|hold|release|quarantine}"
        router.add_post(one, self._guarded(self._act))

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
        ids, policy = body.get("ids"), _word(body, "policy")
        if policy is not None:
            keys = self.control.awaiting(policy)
        elif isinstance(ids, list) and ids and all(isinstance(i, str) and "/" in i for i in ids):
            keys = [(source, letter_id) for source, _, letter_id in (i.partition("/") for i in ids)]
        else:
            raise ControlError('name what to approve: {"ids": ["SOURCE/ID"]} or {"policy": "NAME"}', status=400)
        return await self.control.approve(keys, who=who, why=_word(body, "why") or "")

    async def _act(self, request: web.Request, body: Mapping[str, Any], who: str) -> Mapping[str, Any]:
        key = (request.match_info["source"], request.match_info["id"])
        why = _word(body, "why") or ""
        match request.match_info["action"]:
            case "retry":
                return await self.control.retry_now(key, who=who, why=why)
            case "approve":
                return await self.control.approve([key], who=who, why=why)
            case "hold":
                return await self.control.hold(key, seconds=_seconds(body), who=who, why=why)
            case "quarantine":
                return await self.control.quarantine(key, who=who, why=why)
            case _:
                return await self.control.release(key, sent=body.get("sent") is not False, who=who, why=why)

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
        return parse_duration(body["for"])
    except ValueError as exc:
        raise ControlError(f"for: {exc}", status=400) from None


def _json(data: object, *, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(data), content_type="application/json")
