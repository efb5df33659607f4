"""Asking for an execution: by the current path, or by the one of older installations where that is all there is.

What an installation without the current path answers looks like a flow that never ran: 404. So as long as nothing was
answered by it, a few of those that were not found are asked for by the older path as well; the first that is answered
settles it.
"""

from collections.abc import Mapping

from exporter.log import get_logger
from exporter.wire.api import Answer, Api
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind

log = get_logger(__name__)

EXECUTION = "/rest/v1/executions/{flow_id}"
OLDER = "/plugins/dashboard/rest/v1/flows/{flow_id}"
#: Flows asked for by the older path in one sweep.
TRIES_PER_SWEEP_MAX = 3


class Executions:
    """The status call of one source."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._path = EXECUTION
        self._settled = False
        self._tries = TRIES_PER_SWEEP_MAX

    def begin(self) -> None:
        """Another sweep, or another look at a dead letter."""
        self._tries = TRIES_PER_SWEEP_MAX

    async def get(self, flow_id: str, *, lane: Lane, params: Mapping[str, str] | None = None) -> Answer:
        """The newest execution of a flow, or the one that ``params`` name. Raises ``ApiError``."""
        ids, params = {"flow_id": flow_id}, params or {}
        try:
            answer = await self._api.get(self._path, lane=lane, ids=ids, params=params)
        except ApiError as error:
            if error.kind is not ErrorKind.NOT_FOUND or self._settled or not self._tries:
                raise
            self._tries -= 1
            try:
                answer = await self._api.get(OLDER, lane=lane, ids=ids, params=params)
            except ApiError as older:
                if older.kind is ErrorKind.RATE_LIMITED:
                    raise
                raise error from None
            self._path = OLDER
            log.info("executions are read by the older path: this installation does not know the current one")
        self._settled = True
        return answer
