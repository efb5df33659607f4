"""How Make's API is asked, how its listings are paged, and when the failures of single scenarios are no longer theirs.

Base path and paging: Make API documentation, 'Make API structure' and 'Pagination, sorting and filtering'. There is no
total count: a page that is not full is the last. How many rows a page may have differs by endpoint and is told in the
answer, since the platform may allow fewer than were asked for. Where it is not told, a page of a round number of rows
may have been cut. A platform that refuses the number asked for (400) is asked for fewer, from then on.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

from exporter.platform import Fault
from exporter.platforms.make.mapping import whole
from exporter.wire.api import Answer, Api, Ids
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind

ROOT = "/api/v2"
#: What every listing takes, where more is refused. No maximum is documented.
ROWS_PER_PAGE_SAFE = 50
#: Pages are cut at such numbers.
CUTS = frozenset({10, 20, 25, 30, 40, 50, 100, 150, 200, 250, 300, 500, 1000})
#: However few rows a platform gives at once, a listing is read in at most so many times the pages it should have.
SMALL_PAGES_FACTOR = ROWS_PER_PAGE_SAFE
#: After so many calls in a row that failed for no reason of one scenario's own, a sweep gives up.
LOSSES_IN_A_ROW_MAX = 5

Query = Sequence[tuple[str, str | int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """One page of a listing, when it was read (platform's clock), and whether there may be more."""

    rows: list[Any]
    at: float
    full: bool
    body: Mapping[str, Any]


async def get(api: Api, endpoint: str, *, lane: Lane, query: Query = (), ids: Ids | None = None) -> Answer:
    """Read one endpoint; ``endpoint`` is below ``ROOT``."""
    return await api.get(ROOT + endpoint, lane=lane, params=list(query), ids=ids)


async def rows(
    api: Api,
    endpoint: str,
    key: str,
    *,
    lane: Lane,
    limit: int | None = None,
    query: Query = (),
    ids: Ids | None = None,
) -> Rows:
    """Read one page of the listing ``{key: […], "pg": {…}}``; without a ``limit``, a listing that has no pages."""
    limit = limit if limit is None else min(limit, _learned(api).get(endpoint, limit))
    answer = await _limited(api, endpoint, lane=lane, limit=limit, query=query, ids=ids)
    limit = limit if limit is None else min(limit, _learned(api).get(endpoint, limit))
    body = answer.data if isinstance(answer.data, Mapping) else {}
    found = body.get(key)
    if not isinstance(found, list):
        raise bad_payload(endpoint, f"not a listing: there is no {key}", answer.status)
    paging = body.get("pg")
    told = whole(paging.get("limit")) if isinstance(paging, Mapping) else None
    if limit is None:
        full = False
    elif told:
        full = len(found) >= min(limit, told)
    else:
        full = len(found) >= limit or len(found) in CUTS
    return Rows(rows=found, at=answer.at, full=full, body=body)


async def _limited(api: Api, endpoint: str, *, lane: Lane, limit: int | None, query: Query, ids: Ids | None) -> Answer:
    """Ask for ``limit`` rows, or for as many as the platform takes: what it refuses once is not asked for again."""
    paged = [] if limit is None else [("pg[limit]", limit)]
    try:
        return await get(api, endpoint, lane=lane, query=[*query, *paged], ids=ids)
    except ApiError as error:
        if error.status != 400 or limit is None or limit <= ROWS_PER_PAGE_SAFE:
            raise
    answer = await get(api, endpoint, lane=lane, query=[*query, ("pg[limit]", ROWS_PER_PAGE_SAFE)], ids=ids)
    _learned(api)[endpoint] = ROWS_PER_PAGE_SAFE
    return answer


#: Of each connection, by endpoint: how many rows it takes to be asked for. Ends with the connection.
_LIMITS: WeakKeyDictionary[Api, dict[str, int]] = WeakKeyDictionary()


def _learned(api: Api) -> dict[str, int]:
    return _LIMITS.setdefault(api, {})


async def pages(
    api: Api,
    endpoint: str,
    key: str,
    *,
    lane: Lane,
    limit: int,
    pages_max: int,
    query: Query = (),
    ids: Ids | None = None,
) -> AsyncIterator[Rows]:
    """Read a listing by offset. It was read to its end if the last page is not full.

    ``pages_max`` is of pages of ``limit`` rows. Raises ``ApiError`` where the platform gives the same page again.
    """
    offset, before = 0, list[Any]()
    for _ in range(pages_max * SMALL_PAGES_FACTOR):
        page = await rows(api, endpoint, key, lane=lane, limit=limit, query=[*query, ("pg[offset]", offset)], ids=ids)
        if before and page.rows == before:
            if len(before) > limit:  # all of them, whatever was asked for
                yield replace(page, rows=[], full=False)
                return
            raise bad_payload(endpoint, "the same page again: pg[offset] is not obeyed")
        yield page
        offset, before = offset + len(page.rows), page.rows
        if not page.full or (offset >= pages_max * limit and len(before) <= limit):
            return


def bad_payload(endpoint: str, detail: str, status: int = 200) -> ApiError:
    return ApiError(ErrorKind.BAD_PAYLOAD, endpoint=f"GET {ROOT}{endpoint}", detail=detail, status=status)


def error_detail(body: object) -> str | None:
    """How Make words an error: ``{"detail", "message", "code", "suberrors": [{"message"}]?}``.

    The detail is more precise than the message (Make API documentation, 'Troubleshooting and error handling').
    """
    if not isinstance(body, Mapping):
        return None
    words = [body.get("detail") if isinstance(body.get("detail"), str) else body.get("message")]
    suberrors = body.get("suberrors")
    if isinstance(suberrors, list):
        words += [s.get("message") for s in suberrors[:5] if isinstance(s, Mapping)]
    return "; ".join(word for word in words if isinstance(word, str) and word) or None


class Losses:
    """The calls about single scenarios that failed in one sweep. Each costs its scenario only, until they are many."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self.count = 0

    def passed(self) -> None:
        self._in_a_row = 0

    def fault(self, error: ApiError, workflow_id: str | None, *, of_item: bool = False) -> Fault:
        """The fault to report; raises ``error`` where it is the whole source's. ``of_item``: of one run only."""
        if error.kind is ErrorKind.RATE_LIMITED:
            raise error
        self.count += 1
        if error.kind not in (ErrorKind.NOT_FOUND, ErrorKind.BAD_PAYLOAD, ErrorKind.REQUEST):
            self._in_a_row += 1
        if self._in_a_row >= LOSSES_IN_A_ROW_MAX:
            raise error
        return Fault(kind=error.kind, detail=str(error), workflow_id=workflow_id, of_item=of_item)
