"""What requests say, and refusing what cannot be done, in n8n's words."""

import base64
import binascii

import orjson
from aiohttp import web

from exporter.simulator.n8n.model import Json

LIMIT, LIMIT_MAX = 100, 250


class Refusal(Exception):
    """An answer that is no success: a status, and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def limit_of(query: Json) -> int:
    text = query.get("limit", str(LIMIT))
    if not text.isdecimal():
        what = "a non-negative" if text.removeprefix("-").isdecimal() else "a valid"
        raise Refusal(400, f"request/query/limit Param `limit` must be {what} integer")
    return min(int(text), LIMIT_MAX) or LIMIT_MAX


def flag(query: Json, name: str) -> bool:
    value = query.get(name)
    if value not in (None, "true", "false"):
        raise Refusal(400, f"request/query/{name} Invalid enum value. Expected 'true' | 'false', received '{value}'")
    return bool(value == "true")


def encode(cursor: Json) -> str:
    return base64.b64encode(orjson.dumps(cursor)).decode()


def cursor_of(query: Json) -> Json | None:
    """What a cursor says; it is neither signed nor bound to the filters, and its limit counts."""
    text = query.get("cursor")
    if not text:
        return None
    try:
        cursor = orjson.loads(base64.b64decode(text, validate=False))
    except (binascii.Error, ValueError):
        cursor = None
    if not isinstance(cursor, dict) or not isinstance(cursor.get("limit"), int):
        raise Refusal(400, "An invalid cursor was provided")
    return cursor


async def body_of(request: web.Request) -> Json:
    """Empty where there is none; malformed JSON is a page of HTML."""
    raw = await request.read()
    if request.headers.get("Content-Type") is not None and request.content_type != "application/json":
        raise Refusal(415, f"unsupported media type {request.content_type}")
    try:
        body = orjson.loads(raw) if raw else {}
    except orjson.JSONDecodeError:
        raise Refusal(500, "") from None
    return body if isinstance(body, dict) else {}
