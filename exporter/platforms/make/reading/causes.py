"""Why runs failed, where neither the log nor the feed says it: asked for run by run.

An execution may be unknown to its own detail call for some seconds after its end (official clients try for five), so a
failed run is stored at once without a cause, and noted with the same page. Every sweep asks for what is noted. When
asking leads nowhere, the cause is unknown for good, so that the failure is counted under that class.
"""

from collections.abc import AsyncIterator

from msgspec.structs import replace

from exporter.model import FAILED, Error, Run
from exporter.platform import Fault, Page
from exporter.platforms.make.mapping import BadItem, runs
from exporter.platforms.make.reading.calls import Losses, bad_payload, get
from exporter.platforms.make.reading.noted import Noted
from exporter.wire.api import Api, ApiError, ErrorKind
from exporter.wire.budget import Lane

CURSOR = "causes"
ENDPOINT = "/scenarios/{id}/executions/{executionId}"
DETAILS_PER_SWEEP_MAX = 50
#: Beyond it the causes of further failures stay unknown.
NOTED_MAX = 1000
#: Causes kept in memory, because rows are met again within the overlap of sweeps.
FOUND_MAX = 5000


class Causes:
    """What is known of causes, for one source."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._found: dict[str, Error] = {}

    def note(self, run: Run, noted: Noted, now: float) -> Run:
        """The run, with its cause if that is known by now; otherwise noted, if it needs one."""
        if run.result not in FAILED:
            return run
        if run.error is not None:
            noted.drop(run.id)
            return run
        if run.id in self._found:
            return replace(run, error=self._found[run.id])
        if run.id in noted or noted.add(run, now):
            return run
        return replace(run, error=Error())

    async def ask(self, noted: Noted, now: float) -> AsyncIterator[Page]:
        """Ask for what is noted, one page for each cause found."""
        losses = Losses()
        for run_id in noted.ids[:DETAILS_PER_SWEEP_MAX]:
            run, faults = noted.run(run_id), list[Fault]()
            try:
                error = await self.of(run)
                losses.passed()
            except ApiError as failure:
                error = None
                fault = losses.fault(failure, run.workflow_id, of_item=True)
                if failure.kind is not ErrorKind.NOT_FOUND:
                    faults.append(fault)
            if error is None and noted.missed(run_id, now):
                error = Error()
            if error is not None:
                self._remember(run_id, error)
                noted.drop(run_id)
                yield Page(observations=[replace(run, error=error)], cursors=noted.cursor(), faults=faults)
            elif faults:
                yield Page(faults=faults)
        left = f"the causes of {noted.untried} failed runs are left for the next sweep"
        yield Page(cursors=noted.cursor(), faults=[Fault(kind="truncated", detail=left)] if noted.untried else [])

    async def of(self, run: Run) -> Error | None:
        """Ask for the cause of one run; None if the platform does not say, or not yet. Raises ``ApiError``."""
        answer = await get(self._api, ENDPOINT, lane=Lane.SWEEPS, ids={"id": run.workflow_id, "executionId": run.id})
        try:
            return runs.cause(answer.data)
        except BadItem as bad:
            raise bad_payload(ENDPOINT, str(bad), answer.status) from None

    def _remember(self, run_id: str, error: Error) -> None:
        self._found[run_id] = error
        while len(self._found) > FOUND_MAX:
            del self._found[next(iter(self._found))]
