"""What the Qlik simulator makes of a request: who asks, whether they may, how often, and what a listing is asked for.

Tokens are API keys, which act as their user, or access tokens of a trusted machine client (``POST /oauth/token``),
which expire. Rights follow the reference of each operation: listing runs takes less than reading, retrying or stopping
one, so a tenant admin sees failed runs of others and still gets 403 when retrying them; only the scope
admin.automations reaches everything. Limits are per user and tier over a rolling five minutes; a refused call costs
nothing.

Filters are SCIM expressions. Only ``eq`` (all fields), ``ge`` and ``le`` (times and dates) and ``and`` are proven by
documents and examples; anything else is refused with 400, so that a client tested here stays on firm ground. Cursors
are opaque and point behind an item, not at a position: runs that start between two pages neither repeat nor hide
others, unless the fault "shifting_pages" says so.
"""

import math
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, TypeVar

import orjson
from aiohttp import web

from exporter.simulator.qlik.world import Workflow

WINDOW_SECONDS = 300.0
USER_SCOPES = frozenset({"automations", "automations.private", "automations.shared"})
CLIENT_SCOPES = frozenset({"admin.automations", "admin.automation-runs"})
RUN_LIST_SCOPES = frozenset({"admin.automation-runs", "automation-runs.private", "automation-runs.shared"})

Value = str | float | bool | None
Key = tuple[bool, str | float, str]  # has a value; the value; the id, so that no two are equal
T = TypeVar("T")

TERM = re.compile(r'\s*(?P<field>\w+)\s+(?P<op>\w+)\s+(?P<value>"(?:[^"\\]|\\.)*"|true|false)\s*')


class Refused(Exception):
    """The platform answers with this status and text instead."""

    def __init__(self, status: int, text: str, *, retry_after: int | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.retry_after = retry_after


def allow(allowed: bool) -> None:
    if not allowed:
        raise Refused(403, "the user lacks the role or scope for this")


async def json_of(request: web.Request) -> object:
    if request.content_type != "application/json":
        raise Refused(400, "the body must be JSON")
    try:
        body: object = orjson.loads(await request.read())
    except orjson.JSONDecodeError:
        raise Refused(400, "the body is not JSON") from None
    return body


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who holds a token. ``admin``: has the role TenantAdmin."""

    user_id: str
    admin: bool
    scopes: frozenset[str] = USER_SCOPES
    spaces: frozenset[str] = frozenset()  # shared spaces this user is editor or operator of

    def sees(self, workflow: Workflow) -> bool:
        return workflow.owner_id == self.user_id or workflow.space_id in self.spaces

    def lists_runs(self, workflow: Workflow) -> bool:
        return self.admin or workflow.owner_id == self.user_id or bool(self.scopes & RUN_LIST_SCOPES)

    def operates(self, workflow: Workflow) -> bool:
        if "admin.automations" in self.scopes:
            return True
        if workflow.space_id:
            return workflow.space_id in self.spaces and "automations.shared" in self.scopes
        return workflow.owner_id == self.user_id and "automations.private" in self.scopes


class Access:
    """The tokens in circulation and what each user has used of the limits."""

    def __init__(
        self, *, client_id: str, client_secret: str, token_seconds: float, per_minute: Mapping[str, int]
    ) -> None:
        """``per_minute``: tier -> requests, enforced as five times that in five minutes."""
        self.token_seconds = token_seconds
        self._client_id = client_id
        self._client_secret = client_secret
        self._per_minute = per_minute
        self._keys: dict[str, Caller] = {}
        self._issued: dict[str, tuple[Caller, float]] = {}  # access token -> its holder, when it expires
        self._issued_count = 0
        self._used: dict[tuple[str, str], deque[float]] = {}

    def add_key(self, token: str, caller: Caller) -> None:
        self._keys[token] = caller

    def issue(self, body: object, now: float) -> dict[str, object]:
        """An access token for client credentials. The scope user_default, or none, means all the client may have."""
        if not isinstance(body, dict):
            raise Refused(400, "the body must be a JSON object")
        if body.get("grant_type") != "client_credentials":
            raise Refused(400, "grant_type is not supported")
        if (body.get("client_id"), body.get("client_secret")) != (self._client_id, self._client_secret):
            raise Refused(401, "client_id or client_secret is wrong")
        asked = set(str(body.get("scope") or "user_default").split())
        scopes = (
            CLIENT_SCOPES
            if "user_default" in asked
            else frozenset(asked & (CLIENT_SCOPES | USER_SCOPES | RUN_LIST_SCOPES))
        )
        self._issued = {token: held for token, held in self._issued.items() if held[1] > now}
        self._issued_count += 1
        token = f"access-{self._issued_count}"
        caller = Caller(user_id=f"client-{self._client_id}", admin=True, scopes=scopes)
        self._issued[token] = (caller, now + self.token_seconds)
        return {"access_token": token, "token_type": "bearer", "expires_in": int(self.token_seconds)}

    def revoke(self) -> None:
        """Every access token stops working before its time."""
        self._issued.clear()

    def caller(self, headers: Mapping[str, str], now: float) -> Caller:
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            if token in self._keys:
                return self._keys[token]
            held = self._issued.get(token)
            if held is not None and now < held[1]:
                return held[0]
        raise Refused(401, "the access token is missing, wrong or expired")

    def spend(self, caller: Caller, tier: str, now: float) -> None:
        """Count one request, or refuse it until enough of the last five minutes has passed."""
        used = self._used.setdefault((caller.user_id, tier), deque())
        while used and used[0] <= now - WINDOW_SECONDS:
            used.popleft()
        if len(used) >= self._per_minute[tier] * WINDOW_SECONDS / 60:
            wait = max(1, math.ceil(used[0] + WINDOW_SECONDS - now))
            raise Refused(429, f"You need to wait {wait} seconds until limit is lifted.", retry_after=wait)
        used.append(now)


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One comparison of a filter. Times are seconds since the epoch."""

    field: str
    op: str  # eq, ge, le
    value: str | float | bool

    def holds(self, actual: Value) -> bool:
        if self.op == "eq":
            return actual == self.value
        if not isinstance(actual, (int, float)) or not isinstance(self.value, (int, float)):
            return False
        return actual >= self.value if self.op == "ge" else actual <= self.value


def parse_filter(text: str, *, fields: Sequence[str], time_fields: Sequence[str] = ()) -> list[Term]:
    terms: list[Term] = []
    rest = text
    while rest.strip():
        match = TERM.match(rest)
        if match is None or match["field"] not in (*fields, *time_fields):
            raise Refused(400, f"filter is not supported: {text}")
        timed = match["field"] in time_fields
        if match["op"] not in (("eq", "ge", "le") if timed else ("eq",)):
            raise Refused(400, f"operator {match['op']} is not supported on {match['field']}")
        try:
            value = orjson.loads(match["value"])
        except orjson.JSONDecodeError:
            raise Refused(400, f"filter is not supported: {text}") from None
        terms.append(Term(field=match["field"], op=match["op"], value=parse_time(value) if timed else value))
        rest = rest[match.end() :]
        if rest:
            word, _, rest = rest.partition(" ")
            if word != "and" or not rest.strip():
                raise Refused(400, f"filter is not supported: {text}")
    return terms


def parse_time(text: object) -> float:
    """RFC 3339, or a date alone for its first moment."""
    try:
        parsed = datetime.fromisoformat(str(text))
    except ValueError:
        raise Refused(400, f"not a time: {text}") from None
    return (parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)).timestamp()


def parse_limit(query: Mapping[str, str], *, default: int, most: int) -> int:
    text = query.get("limit", str(default))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= most:
        raise Refused(400, f"limit must be between 1 and {most}")
    return int(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sort:
    field: str
    descending: bool


def parse_sort(query: Mapping[str, str], *, fields: Sequence[str], default: str) -> Sort:
    """``name``, ``+name`` or ``-name``. A plus sign that was not sent as %2B arrives as a space and is refused."""
    text = query.get("sort", default)
    name = text[1:] if text[:1] in ("+", "-") else text
    if name not in fields:
        raise Refused(400, f"sort must be one of {', '.join(fields)}")
    return Sort(field=name, descending=text.startswith("-"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T]):
    """A part of a listing. Cursors are None where there is nothing; "" leads to the first page."""

    items: list[T]
    next: str | None
    prev: str | None


def page(
    rows: Sequence[T],
    *,
    key: Callable[[T], Key],
    sort: Sort,
    limit: int,
    cursor: str | None,
    shifted: Callable[[], bool],
) -> Page[T]:
    """The page behind ``cursor``. ``shifted``: something has come in before it, so it repeats an item."""
    ordered = sorted(rows, key=key, reverse=sort.descending)
    start = 0
    if cursor:
        after = _decode(cursor, sort)
        start = sum(1 for row in ordered if (key(row) >= after if sort.descending else key(row) <= after))
        if start and limit > 1 and shifted():
            start -= 1
    items = ordered[start : start + limit]
    before = start - limit
    return Page(
        items=items,
        next=_encode(key(items[-1]), sort) if start + limit < len(ordered) else None,
        prev=None if start == 0 else "" if before <= 0 else _encode(key(ordered[before - 1]), sort),
    )


def _encode(key: Key, sort: Sort) -> str:
    return urlsafe_b64encode(orjson.dumps({"sort": sort, "after": key})).decode()


def _decode(cursor: str, sort: Sort) -> Key:
    try:
        data = orjson.loads(urlsafe_b64decode(cursor))
        present, value, row_id = data["after"]
        if data["sort"] != {"field": sort.field, "descending": sort.descending}:
            raise ValueError
    except (ValueError, TypeError, KeyError):
        raise Refused(400, "cursor is not valid") from None
    if not isinstance(present, bool) or not isinstance(value, (str, int, float)) or not isinstance(row_id, str):
        raise Refused(400, "cursor is not valid")
    return present, value, row_id
