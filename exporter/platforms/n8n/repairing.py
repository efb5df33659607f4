"""Stopping an execution of n8n that hangs.

Running, waiting and queued executions can be stopped; what has ended is answered 409. A row that says `running` and
whose process is gone is canceled as well, which the row read afterwards tells. Older versions do not offer it (404).

Source: the public API of n8n 2.41.1, `POST /executions/{id}/stop`, seen on a running server.
"""

from collections.abc import Sequence

from msgspec.structs import replace

from exporter.model import Result, Run, State
from exporter.model.repairs import Proof, RepairAction
from exporter.platform import BadItem
from exporter.platform.repairing import Answered, Case, Effect, Offer, Plan, Repairing, not_sent
from exporter.platforms.n8n import mapping
from exporter.platforms.n8n.calls import EXECUTION, STOP, Calls
from exporter.platforms.n8n.config import N8nConfig
from exporter.platforms.n8n.mapping import Numbering
from exporter.wire.api import Api
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind

LANE = Lane.RETRIES
NEEDS = "the scope execution:stop"


class N8nRepairs:
    """One source's way to repair."""

    def __init__(self, config: N8nConfig, api: Api) -> None:
        self._api = api
        self._calls = Calls(api)

    async def plan(self, case: Case) -> Plan:
        run, manual = await self._run(case)
        at = self._api.platform_now()
        if run is None:
            return Plan(at=at, refusal="the execution is gone")
        if run.state is State.FINISHED:
            return Plan(at=at, refusal=f"the execution has ended as {run.result}", observations=[run])
        if manual:
            return Plan(at=at, refusal="somebody is trying the workflow out")
        since = run.started_at
        doing = "waiting to start" if since is None else f"under way since {(at - since) / 60:.0f} min"
        does = f"stop the execution, which is {doing}; its work stays as far as it is, and nothing undoes it"
        return Plan(at=at, does=does, mark={"state": run.state}, observations=[run])

    async def repair(self, cases: Sequence[Case], *, send_by: float) -> Answered:
        [case] = cases
        try:
            run, _ = await self._run(case)
        except ApiError as error:
            raise error.unsent() from None
        if run is None or run.state is State.FINISHED:
            raise not_sent(RepairAction.STOP, "the execution has ended meanwhile", kind=ErrorKind.CONFLICT)
        number = mapping.number_of(case.id)
        await self._api.post(STOP, lane=LANE, ids={"id": number or 0}, json={}, send_by=send_by)
        return Answered(handles={case.id: None})

    async def verify(self, case: Case) -> Effect:
        run, _ = await self._run(case)
        at = self._api.platform_now()
        if run is None:
            return Effect(at=at, proof=Proof.UNKNOWN, evidence="the execution is gone")
        if run.state is not State.FINISHED:
            return Effect(at=at, proof=Proof.NOT_DONE, evidence="it has not ended", observations=[run])
        stopped = run.result in (Result.CANCELLED, Result.TIMEOUT)
        evidence = "n8n says that it is canceled" if stopped else f"it has ended by itself, as {run.result}"
        return Effect(at=at, proof=Proof.DONE, evidence=evidence, observations=[run])

    async def _run(self, case: Case) -> tuple[Run | None, bool]:
        """The execution as it says itself, None where it is no more; and whether somebody started it by hand."""
        number = mapping.number_of(case.id)
        if number is None:
            return None, False
        try:
            answer = await self._calls.execution(number, lane=LANE)
            found = mapping.row(answer.data, numbering=Numbering(), latest=self._calls.latest())
        except ApiError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
            return None, False
        except BadItem as bad:
            raise ApiError(ErrorKind.BAD_PAYLOAD, endpoint=f"GET {EXECUTION}", detail=str(bad), status=200) from None
        if found.number != number or found.workflow_id != case.workflow_id:
            detail = "the answer is about another execution"
            raise ApiError(ErrorKind.BAD_PAYLOAD, endpoint=f"GET {EXECUTION}", detail=detail, status=200)
        return replace(found.run, id=case.id), found.mode == "manual"


REPAIRING = Repairing(offers=(Offer(action=RepairAction.STOP, needs=NEEDS),), adapter=N8nRepairs)
