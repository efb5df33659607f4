"""Retrying Etlworks' dead letters: the flow is run again.

That is a fresh run, without the parameters the failed one may have had, for nobody tells those. The answer names it
(``auditId``), so its effect is known for certain, unless the answer is lost. Started through the API, a flow runs once
at a time: while it runs the platform refuses a second start, with an answer that is no HTTP error, and that may name
the execution in progress. So an answer is believed on the audit id alone, and only on one above all that were there
before.

Sources: Etlworks Integrator documentation, "Run Flow by ID" (``status`` 0 started, 1 running, 3 not executed), "Get
flow status API", "Schedules API" (native repetitions), "Stop flow" (a stopped run is not finally what it is called
first).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from exporter.model import DeadLetter, Observation, Result
from exporter.model.retries import Traits
from exporter.platform import BadItem
from exporter.platform.retrying import Accepted, Effort, Look, Retrying, Standing, Target
from exporter.platforms.etlworks import mapping
from exporter.platforms.etlworks.config import EtlworksConfig
from exporter.platforms.etlworks.executions import EXECUTION, Executions
from exporter.platforms.etlworks.listing import FLOW, SCHEDULES, listing_parts, not_there
from exporter.platforms.etlworks.mapping import Execution
from exporter.platforms.etlworks.schedule import Schedule
from exporter.wire.api import Api
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind

LANE = Lane.RETRIES
RUN = "/rest/v1/flows/{flow_id}/run"

TRAITS = Traits(
    effect="fresh",
    handle="returned",
    absence=None,  # nothing says how late a start may show
    serial=True,
    bulk_max=1,
)


class EtlworksRetries:
    """One source's way to retry."""

    def __init__(self, config: EtlworksConfig, api: Api) -> None:
        self._api = api
        self._executions = Executions(api)
        self._greatest: dict[str, int] = {}  # of each flow that was looked at, the greatest audit id seen

    async def look(self, target: Target) -> Look:
        """Read the newest execution of the flow, and the one our call named."""
        letter = target.letter
        self._executions.begin()
        newest = await self._newest(letter.workflow_id)
        at = self._api.platform_now()
        if newest is None:
            standing = Standing.GONE if await self._is_gone(letter.workflow_id) else Standing.DEAD
            return Look(at=at, standing=standing, mark=0)
        found = [newest]
        if target.handle is not None and target.handle != newest.run.id:
            named = await self._execution(letter.workflow_id, target.handle)
            found = [newest] if named is None else [named, newest]
        efforts = [] if target.mark is None else mapping.efforts(found, int(target.mark), handle=target.handle, at=at)
        return Look(
            at=at,
            standing=mapping.standing(newest, letter, at=at),
            native=target.sent_at is None and await self._repeats(newest, letter),
            refusal=mapping.refusal(newest, letter),
            mark=newest.number,
            efforts=efforts,
            observations=_told(found, efforts),
        )

    async def send(self, letters: Sequence[DeadLetter], *, send_by: float) -> Accepted:
        """Run the flow. An answer that names nothing new is in doubt, unless it says that nothing was executed."""
        [letter] = letters
        audit_id = await self.start(letter, {}, send_by=send_by)
        return Accepted(handles={} if audit_id is None else {letter.id: audit_id})

    async def start(self, letter: DeadLetter, parameters: Mapping[str, str], *, send_by: float) -> str | None:
        """Run the flow with these parameters: the execution that the answer names, if it is a new one."""
        mark = max(self._greatest.get(letter.workflow_id, 0), int(mapping.identity(letter.run_id) or 0))
        answer = await self._api.post(
            RUN, lane=LANE, json=dict(parameters), ids={"flow_id": letter.workflow_id}, send_by=send_by
        )
        audit_id, refused = mapping.started(answer.data, mark=mark)
        if refused:
            detail = "the flow was not executed: it is running already"
            raise ApiError(ErrorKind.CONFLICT, endpoint=f"POST {RUN}", detail=detail, status=409)
        return audit_id

    async def _newest(self, flow_id: str) -> Execution | None:
        try:
            answer = await self._executions.get(flow_id, lane=LANE)
        except ApiError as error:
            if not not_there(error):
                raise
            return None
        return self._mapped(answer.data, flow_id)

    async def _execution(self, flow_id: str, audit_id: str) -> Execution | None:
        try:
            answer = await self._executions.get(flow_id, lane=LANE, params={"auditId": audit_id})
        except ApiError as error:
            if not not_there(error):
                raise
            return None
        found = self._mapped(answer.data, flow_id)
        return found if found.run.id == audit_id else None

    def _mapped(self, record: Any, flow_id: str) -> Execution:
        try:
            found = mapping.execution(record, flow_id=flow_id, latest=self._api.latest())
        except BadItem as bad:
            raise ApiError(ErrorKind.BAD_PAYLOAD, endpoint=f"GET {EXECUTION}", detail=str(bad), status=200) from None
        self._greatest[flow_id] = max(self._greatest.get(flow_id, 0), found.number)
        return found

    async def _is_gone(self, flow_id: str) -> bool:
        try:
            await self._api.get(FLOW, lane=LANE, ids={"flow_id": flow_id})
        except ApiError as error:
            if not not_there(error):
                raise
            return True
        return False

    async def _repeats(self, newest: Execution, letter: DeadLetter) -> bool:
        """Whether the scheduler will start the flow again: a dead letter opens when it will not, but a later run of it
        may have failed since.
        """
        if not newest.scheduled or newest.run.id == letter.run_id or newest.run.result is None:
            return False
        schedules: list[Schedule] = []
        async for part in listing_parts(self._api, SCHEDULES):
            for record in part.items:
                try:
                    flow_id, schedule = mapping.schedule(record)
                except BadItem:
                    continue
                if flow_id == letter.workflow_id:
                    schedules.append(schedule)
        repeats = mapping.repeats_itself(newest, schedules, read_at=self._api.platform_now())
        return newest.run.result is Result.FAILURE and repeats is not False


def _told(found: Sequence[Execution], efforts: Sequence[Effort]) -> list[Observation]:
    """The executions that were read, and the dead letters those are that nobody repeats. What was called canceled is
    left to the sweeps, which remember it.
    """
    ended = {effort.run_id for effort in efforts if effort.result is not None}
    observations: list[Observation] = []
    for item in found:
        if item.canceled:
            continue
        observations.append(item.run)
        letter = None if item.scheduled or item.run.id not in ended else mapping.dead_letter(item)
        if letter is not None:
            observations.append(letter)
    return observations


RETRYING = Retrying(traits=TRAITS, connect=EtlworksRetries)
