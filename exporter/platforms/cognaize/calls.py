"""The two calls that read Cognaize: a page of the listing of processes, and one process."""

from typing import Any

from exporter.platform import BadItem
from exporter.platforms.cognaize import mapping
from exporter.platforms.cognaize.listing import PAGE_ROWS
from exporter.wire.api import Api
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind

FIND, PROCESS = "/api/v1/processes/find", "/api/v1/processes/{id}"
#: No such process. Not 412: that "a precondition is not met" may be said of a process that is there as well.
GONE_STATUSES = frozenset({404, 410})


async def find(api: Api, number: int, lane: Lane, *, size: int = PAGE_ROWS) -> mapping.Rows:
    """A page of the listing. Raises ``ApiError``."""
    answer = await api.post(FIND, lane=lane, json={"pageNumber": number, "pageSize": size}, idempotent=True)
    try:
        return mapping.rows(answer.data, number=number, size=size, latest=api.latest())
    except BadItem as bad:
        raise _bad_payload(f"POST {FIND}", bad, answer.status) from None


async def process(api: Api, process_id: str, lane: Lane) -> Any:
    """One process, out of its envelope. Raises ``ApiError``."""
    answer = await api.get(PROCESS, lane=lane, ids={"id": process_id})
    try:
        return mapping.unwrap(answer.data)
    except BadItem as bad:
        raise _bad_payload(f"GET {PROCESS}", bad, answer.status) from None


def _bad_payload(endpoint: str, bad: BadItem, status: int) -> ApiError:
    return ApiError(ErrorKind.BAD_PAYLOAD, endpoint=endpoint, detail=str(bad), status=status)
