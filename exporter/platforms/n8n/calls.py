"""The calls n8n is read with, and how its listings are paged.

A listing is ``{"data": [...], "nextCursor": "..." | null}``; with a cursor the query's limit is ignored, and filters
have to be repeated. A version that does not know a filter may answer everything: whoever asks looks at what came.

Not every 404 says that something is not there. For some seconds of each start n8n has no routes yet and answers any
call with a page that says so, as a proxy may at any time: only what n8n words itself counts.
"""

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from exporter.platform import in_turns
from exporter.wire.api import Answer, Api
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind

ROOT = "/api/v1"
EXECUTIONS = f"{ROOT}/executions"
EXECUTION = f"{ROOT}/executions/{{id}}"
RETRY = f"{ROOT}/executions/{{id}}/retry"
STOP = f"{ROOT}/executions/{{id}}/stop"
WORKFLOWS = f"{ROOT}/workflows"
WORKFLOW = f"{ROOT}/workflows/{{id}}"
DISCOVER = f"{ROOT}/discover"
READINESS = "/healthz/readiness"
#: n8n's own words for what is not there, and ours; another version may lack a call.
NONE_SUCH, NO_CALL = "there is none, or the key may not see it", "this version has no such call"
_WORDS = {"Not Found": NONE_SUCH, "not found": NO_CALL}
#: The most there is; more is cut to it silently, and 0 means no limit at all.
PER_PAGE = 250
#: 50,000 workflows.
WORKFLOW_PAGES_MAX = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ListPage:
    """One page of a listing, when it was read (platform's clock), and the cursor of the next one."""

    items: Sequence[object]
    at: float
    next: str | None


class Calls:
    """One instance's API."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def latest(self) -> float:
        """The latest time to be believed of what the instance tells."""
        return self._api.latest()

    def now(self) -> float:
        return self._api.platform_now()

    async def executions(
        self,
        *,
        lane: Lane,
        status: str | None = None,
        workflow_id: str | None = None,
        cursor: str | None = None,
        limit: int = PER_PAGE,
        **filters: str,
    ) -> ListPage:
        """One page of executions, the highest number first. Without a status it leaves out what is running."""
        params: dict[str, str | int] = {"limit": limit, **filters}
        if status is not None:
            params["status"] = status
        if workflow_id:  # an empty one means all
            params["workflowId"] = workflow_id
        if cursor is not None:
            params["cursor"] = cursor
        with _own_words():
            return _page(await self._api.get(EXECUTIONS, lane=lane, params=params), EXECUTIONS)

    async def execution(self, number: int, *, lane: Lane, data: bool = False) -> Answer:
        """One execution; with its data it may be large."""
        params = {"includeData": "true"} if data else {}
        with _own_words():
            return await self._api.get(EXECUTION, lane=lane, ids={"id": number}, params=params)

    async def retry(self, number: int, *, send_by: float, timeout: float) -> Answer:
        """Run an execution again, with the workflow as it was. The answer comes when that has ended."""
        return await self._api.post(
            RETRY, lane=Lane.RETRIES, ids={"id": number}, json={"loadWorkflow": False}, send_by=send_by, timeout=timeout
        )

    async def workflow(self, workflow_id: str, *, lane: Lane) -> Answer:
        params = {"excludePinnedData": "true"}
        with _own_words():
            return await self._api.get(WORKFLOW, lane=lane, ids={"id": workflow_id}, params=params)

    async def workflows(self, *, lane: Lane) -> AsyncGenerator[ListPage, None]:
        """Every workflow the key may see."""
        cursor: str | None = None
        followed = set[str]()
        for _ in range(WORKFLOW_PAGES_MAX):
            params: dict[str, str | int] = {"limit": PER_PAGE, "excludePinnedData": "true"}
            if cursor is not None:
                params["cursor"] = cursor
            with _own_words():
                page = _page(await self._api.get(WORKFLOWS, lane=lane, params=params), WORKFLOWS)
            given = 0
            async for part in in_turns(page.items):
                given += len(part)
                yield replace(page, items=part, next=page.next if given == len(page.items) else None)
            cursor = page.next
            if cursor is None:
                return
            if cursor in followed:
                raise _unusable(WORKFLOWS, "pages that lead back to one")
            followed.add(cursor)
        raise _unusable(WORKFLOWS, f"more than {WORKFLOW_PAGES_MAX} pages")

    async def discover(self) -> Mapping[str, Any]:
        """What the key may do: ``scopes``, and operations by resource."""
        answer = await self._api.get(DISCOVER, lane=Lane.SWEEPS)
        data = answer.data.get("data") if isinstance(answer.data, Mapping) else None
        return data if isinstance(data, Mapping) else {}

    async def ready(self) -> bool:
        answer = await self._api.get(READINESS, lane=Lane.SWEEPS)
        return isinstance(answer.data, Mapping) and answer.data.get("status") == "ok"


def stops_sweep(error: ApiError) -> bool:
    """Whether a failure is about the key or the limit, rather than about one execution or workflow."""
    return error.kind in (ErrorKind.RATE_LIMITED, ErrorKind.AUTH)


def error_detail(body: object) -> str | None:
    """How n8n words an error: ``{"message": "..."}``."""
    message = body.get("message") if isinstance(body, Mapping) else None
    return _WORDS.get(message, message) if isinstance(message, str) and message else None


@contextmanager
def _own_words() -> Iterator[None]:
    """Of an answer that is not n8n's own, nothing follows but that n8n is not to be reached."""
    try:
        yield
    except ApiError as error:
        if error.kind is not ErrorKind.NOT_FOUND or error.detail == NONE_SUCH:
            raise
        detail = (
            f"{error.detail}: not in the words of n8n's API: it is starting, its API is switched off, or something "
            "else answers under this address"
        )
        raise ApiError(ErrorKind.UNAVAILABLE, endpoint=error.endpoint, detail=detail, status=error.status) from None


def _page(answer: Answer, endpoint: str) -> ListPage:
    items = answer.data.get("data") if isinstance(answer.data, Mapping) else None
    if not isinstance(items, list):
        raise _unusable(endpoint, "not a listing: there is no data")
    cursor = answer.data.get("nextCursor")
    return ListPage(items=items, at=answer.at, next=cursor if isinstance(cursor, str) and cursor else None)


def _unusable(endpoint: str, detail: str) -> ApiError:
    return ApiError(ErrorKind.BAD_PAYLOAD, endpoint=f"GET {endpoint}", detail=detail, status=200)
