"""The calls this platform is read with, and how its listings are paged.

A listing is ``{"data": [...], "links": {"next": {"href": ...}}}``; the link is followed as it is, and it ends where the
link is missing, null or empty (Qlik's guide to paging). All calls are reads of tier 1.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace

from exporter.platform import in_turns
from exporter.platforms.qlik.config import QlikConfig
from exporter.wire.api import Answer, Api, Ids, Params
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind

AUTOMATIONS_PER_PAGE = 200  # the most there is
RUNS_PER_PAGE = 100
#: A tenant has at most 10,000 automations, which are 50 pages; runs of a long downtime may be more.
PAGES_PER_SWEEP_MAX = 1000
#: A filter may leave some pages empty; a listing that goes on so has no end.
EMPTY_PAGES_MAX = 10
REQUESTS_PER_MINUTE = 1000.0  # of tier 1, for each user; Qlik does not say so in its answers


@dataclass(frozen=True, slots=True, kw_only=True)
class ListPage:
    """One page of a listing, when it was read (platform's clock), and the link to the next one."""

    items: Sequence[object]
    at: float
    next: str | None


class Calls:
    """One tenant's API."""

    def __init__(self, config: QlikConfig, api: Api) -> None:
        self._api = api
        self._automations = config.api_prefix
        self._runs = f"{config.api_prefix}/{{id}}/runs"
        self._run = f"{config.api_prefix}/{{id}}/runs/{{runId}}"
        self._settings = f"{config.api_prefix}/settings"
        self._usage = f"{config.api_prefix}/usage"

    def latest(self) -> float:
        """The latest time to be believed of what the tenant tells."""
        return self._api.latest()

    def automations(self) -> AsyncGenerator[ListPage, None]:
        """Every automation the credential may see. Admins see all: it is the default, and said here all the same."""
        params: Params = {"limit": AUTOMATIONS_PER_PAGE, "sort": "id", "listAll": "true"}
        return self._pages(self._automations, lane=Lane.SWEEPS, params=params)

    def runs(
        self, workflow_id: str, *, lane: Lane, link: str | None = None, limit: int = RUNS_PER_PAGE
    ) -> AsyncGenerator[ListPage, None]:
        """The runs of an automation, the latest start first, or from where an earlier listing was left at ``link``.

        Runs that have not started come first or last, depending on how the platform sorts nothing.
        """
        params: Params = {"limit": limit, "sort": "-startTime"}
        return self._pages(self._runs, lane=lane, params=params, ids={"id": workflow_id}, link=link)

    def queued_runs(self, workflow_id: str, *, lane: Lane) -> AsyncGenerator[ListPage, None]:
        """The runs of an automation that wait to be started."""
        params: Params = {"limit": RUNS_PER_PAGE, "filter": 'status eq "queued"', "sort": "id"}
        return self._pages(self._runs, lane=lane, params=params, ids={"id": workflow_id})

    async def automation(self, workflow_id: str, *, lane: Lane) -> object:
        """One automation. Takes more rights than listing them does."""
        answer = await self._api.get(f"{self._automations}/{{id}}", lane=lane, ids={"id": workflow_id})
        data: object = answer.data
        return data

    async def run(self, workflow_id: str, run_id: str, *, lane: Lane) -> object:
        """One run with its metrics. Takes more rights than listing runs does."""
        answer = await self._api.get(self._run, lane=lane, ids={"id": workflow_id, "runId": run_id})
        data: object = answer.data
        return data

    async def settings(self) -> Answer:
        return await self._api.get(self._settings, lane=Lane.SWEEPS)

    def usage(self, name: str, *, since: str) -> AsyncGenerator[ListPage, None]:
        """The values of one metric by day, from the day ``since`` on. For admins."""
        params: Params = {"filter": f'name eq "{name}" and date ge "{since}"'}
        return self._pages(self._usage, lane=Lane.SWEEPS, params=params)

    async def _pages(
        self, endpoint: str, *, lane: Lane, params: Params, ids: Ids | None = None, link: str | None = None
    ) -> AsyncGenerator[ListPage, None]:
        followed, empty = set[str](), 0
        for _ in range(PAGES_PER_SWEEP_MAX):
            if link is None:
                answer = await self._api.get(endpoint, lane=lane, params=params, ids=ids)
            else:
                answer = await self._api.get_url(link, endpoint=endpoint, lane=lane)
            page = _page(answer, endpoint)
            followed |= {link} if link else set()
            if page.next in followed:
                raise ApiError(ErrorKind.BAD_PAYLOAD, endpoint=f"GET {endpoint}", detail="pages that lead back to one")
            empty = 0 if page.items else empty + 1
            if page.next is not None and empty > EMPTY_PAGES_MAX:
                detail = f"{empty} empty pages in a row, and a link to the next"
                raise ApiError(ErrorKind.BAD_PAYLOAD, endpoint=f"GET {endpoint}", detail=detail)
            given = 0
            async for part in in_turns(page.items):
                given += len(part)
                yield replace(page, items=part, next=page.next if given == len(page.items) else None)
            if page.next is None:
                return
            link = page.next
        raise ApiError(
            ErrorKind.BAD_PAYLOAD, endpoint=f"GET {endpoint}", detail=f"more than {PAGES_PER_SWEEP_MAX} pages"
        )


def stops_sweep(error: ApiError) -> bool:
    """Whether a failure is about the credential or the limit, rather than about one automation or run."""
    return error.kind is ErrorKind.RATE_LIMITED or (error.kind is ErrorKind.AUTH and error.status != 403)


def is_final(error: ApiError) -> bool:
    """Whether asking the same again is no use: there is no such thing, or no right to it, or no sense in the answer."""
    return error.kind not in (ErrorKind.UNAVAILABLE, ErrorKind.TIMEOUT, ErrorKind.CONFLICT)


def error_detail(body: object) -> str | None:
    """How Qlik words an error: ``{"errors": [{"code", "title", "detail"?}], "traceId"?}``."""
    errors = body.get("errors") if isinstance(body, Mapping) else None
    first = errors[0] if isinstance(errors, list) and errors else None
    if not isinstance(first, Mapping):
        return None
    words = [word for name in ("title", "detail") if isinstance(word := first.get(name), str) and word]
    return ": ".join(words) or None


def _page(answer: Answer, endpoint: str) -> ListPage:
    items = answer.data.get("data") if isinstance(answer.data, Mapping) else None
    if not isinstance(items, list):
        raise ApiError(
            ErrorKind.BAD_PAYLOAD, endpoint=f"GET {endpoint}", detail="not a listing: there is no data", status=200
        )
    links = answer.data.get("links")
    following = links.get("next") if isinstance(links, Mapping) else None
    href = following.get("href") if isinstance(following, Mapping) else None
    return ListPage(items=items, at=answer.at, next=href if isinstance(href, str) and href else None)
