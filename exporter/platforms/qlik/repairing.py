"""Stopping a run of Qlik Automate that hangs.

The call ends the run at once wherever it is, which may leave its work half done; Qlik then says "must stop" for a
while, and at last "stopped". It takes the rights of its owner: an admin who sees a run of others is answered 403.

Source: Automations API reference, 'Stops a run' (tier 2, 204).
"""

from collections.abc import Sequence

from exporter.model import Result, Run, State
from exporter.model.repairs import Proof, RepairAction
from exporter.platform import BadItem
from exporter.platform.repairing import Answered, Case, Effect, Offer, Plan, Repairing, not_sent
from exporter.platforms.qlik import mapping
from exporter.platforms.qlik.calls import Calls
from exporter.platforms.qlik.config import QlikConfig
from exporter.wire.api import Api
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind

LANE = Lane.RETRIES
NEEDS = "its owner's key, or the scope admin.automations"


class QlikRepairs:
    """One source's way to repair."""

    def __init__(self, config: QlikConfig, api: Api) -> None:
        self._api = api
        self._calls = Calls(config, api)
        self._stop = f"{config.api_prefix}/{{id}}/runs/{{runId}}/actions/stop"

    async def plan(self, case: Case) -> Plan:
        try:
            run = await self._run(case)
        except ApiError as error:
            if error.status != 403:
                raise
            return Plan(at=self._api.platform_now(), refusal=f"the credential may not: stopping a run takes {NEEDS}")
        at = self._api.platform_now()
        if run is None:
            return Plan(at=at, refusal="the run is gone")
        if run.state is State.FINISHED:
            return Plan(at=at, refusal=f"the run has ended as {run.result}", observations=[run])
        if run.is_test:
            return Plan(at=at, refusal="somebody is trying the automation out", observations=[run])
        since, doing = (run.queued_at, "waiting") if run.started_at is None else (run.started_at, "running")
        how_far = f"is {doing}" if since is None else f"has been {doing} for {_lasting(at, since)}"
        does = f"stop the run, which {how_far}; its work stays as far as it is, and nothing undoes it"
        return Plan(at=at, does=does, mark={"state": run.state}, observations=[run])

    async def repair(self, cases: Sequence[Case], *, send_by: float) -> Answered:
        [case] = cases
        try:
            run = await self._run(case)
        except ApiError as error:
            raise error.unsent() from None
        if run is None or run.state is State.FINISHED:
            raise not_sent(RepairAction.STOP, "the run has ended meanwhile", kind=ErrorKind.CONFLICT)
        ids = {"id": case.workflow_id, "runId": case.id}
        await self._api.post(self._stop, lane=LANE, ids=ids, send_by=send_by)
        return Answered(handles={case.id: None})

    async def verify(self, case: Case) -> Effect:
        run = await self._run(case)
        at = self._api.platform_now()
        if run is None:
            return Effect(at=at, proof=Proof.UNKNOWN, evidence="the run is gone")
        if run.state is not State.FINISHED:
            # Until it has stopped: how long it may say so, or may take to hear of the call, nobody documents.
            return Effect(at=at, proof=Proof.NOT_DONE, evidence="it has not ended", observations=[run])
        stopped = run.result is Result.CANCELLED
        evidence = "Qlik says that it is stopped" if stopped else f"it has ended by itself, as {run.result}"
        return Effect(at=at, proof=Proof.DONE, evidence=evidence, observations=[run])

    async def _run(self, case: Case) -> Run | None:
        """The run as it says itself; None where it is no more. Raises ``ApiError``."""
        try:
            item = await self._calls.run(case.workflow_id, case.id, lane=LANE)
        except ApiError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
            return None
        try:
            found = mapping.row(item, workflow_id=case.workflow_id, latest=self._calls.latest()).run
        except BadItem as bad:
            raise ApiError(ErrorKind.BAD_PAYLOAD, endpoint=self._stop, detail=str(bad), status=200) from None
        if found.id != case.id:
            detail = "the answer is about another run"
            raise ApiError(ErrorKind.BAD_PAYLOAD, endpoint=self._stop, detail=detail, status=200)
        return found


def _lasting(now: float, since: float) -> str:
    """A duration as people say it, in its greatest unit but one."""
    minutes = max(0, round((now - since) / 60))
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 48 * 60 else f"{minutes // 1440} days"


REPAIRING = Repairing(offers=(Offer(action=RepairAction.STOP, needs=NEEDS),), adapter=QlikRepairs)
