"""How Make's API is asked, how its listings are paged, and when the failures of single scenarios are no longer theirs.

Base path and paging: Make API documentation, 'Make API structure' and 'Pagination, sorting and filtering'. There is no
total count: a page that is not full is the last. How many rows a page may have differs by endpoint and is told in the
answer, since the platform may allow fewer than were asked for.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exporter.http import Answer, Api, ApiError, ErrorKind, Ids
from exporter.platform import Fault
from exporter.platforms.make.config import MakeConfig
from exporter.platforms.make.mapping import BadItem, as_object, plain_id, whole
from exporter.polling.budget import Lane

ROOT = "/api/v2"
SCENARIOS_PER_PAGE = 1000
SCENARIO_PAGES_MAX = 100
#: After so many calls in a row that failed for no reason of one scenario's own, a sweep gives up.
LOSSES_IN_A_ROW_MAX = 5

Query = Sequence[tuple[str, str | int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """One page of a listing, when it was read (platform's clock), and whether there may be more."""

    rows: Sequence[Any]
    at: float
    limit: int | None  # None: the listing has one page
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
    paged = [] if limit is None else [("pg[limit]", limit)]
    answer = await get(api, endpoint, lane=lane, query=[*query, *paged], ids=ids)
    body = answer.data if isinstance(answer.data, Mapping) else {}
    found = body.get(key)
    if not isinstance(found, list):
        raise bad_payload(endpoint, f"not a listing: there is no {key}", answer.status)
    paging = body.get("pg")
    told = whole(paging.get("limit")) if isinstance(paging, Mapping) else None
    if limit is not None and told:
        limit = min(limit, told)
    full = limit is not None and len(found) >= limit
    return Rows(rows=found, at=answer.at, limit=limit, full=full, body=body)


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
    """Read a listing by offset. It was read to its end if the last page is not full."""
    offset = 0
    for _ in range(pages_max):
        page = await rows(api, endpoint, key, lane=lane, limit=limit, query=[*query, ("pg[offset]", offset)], ids=ids)
        yield page
        if not page.full:
            return
        offset += page.limit or 0


async def scenarios(api: Api, config: MakeConfig, *, lane: Lane, columns: Sequence[str] = ()) -> AsyncIterator[Rows]:
    """All scenarios of the configured organization or teams, watched or not. Raises ``ApiError`` if it cannot end."""
    order = [("pg[sortBy]", "id"), ("pg[sortDir]", "asc")]
    for scope in config.scopes:
        query: list[tuple[str, str | int]] = [scope, *(("cols[]", column) for column in columns), *order]
        full = False
        async for page in pages(
            api,
            "/scenarios",
            "scenarios",
            lane=lane,
            limit=SCENARIOS_PER_PAGE,
            pages_max=SCENARIO_PAGES_MAX,
            query=query,
        ):
            yield page
            full = page.full
        if full:
            raise bad_payload("/scenarios", f"more than {SCENARIO_PAGES_MAX} pages")


async def find_organization(config: MakeConfig, api: Api, remembered: str | None = None) -> str:
    """The configured organization, or the one the configured teams belong to. Raises ``BadItem``, ``ApiError``."""
    if config.organization_id is not None:
        return str(config.organization_id)
    if remembered is not None:
        return remembered
    answer = await get(api, "/teams/{id}", lane=Lane.DEAD_LETTERS, ids={"id": config.team_ids[0]})
    team = as_object(as_object(answer.data, "the answer").get("team"), "the team")
    found = plain_id(team.get("organizationId"))
    if found is None:
        raise BadItem("the team does not say its organization")
    return found


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

    def fault(self, error: ApiError, workflow_id: str | None) -> Fault:
        """The fault to report; raises ``error`` where it is the whole source's."""
        if error.kind is ErrorKind.RATE_LIMITED:
            raise error
        self.count += 1
        if error.kind not in (ErrorKind.NOT_FOUND, ErrorKind.BAD_PAYLOAD, ErrorKind.REQUEST):
            self._in_a_row += 1
        if self._in_a_row >= LOSSES_IN_A_ROW_MAX:
            raise error
        return Fault(kind=error.kind, detail=str(error), workflow_id=workflow_id)
