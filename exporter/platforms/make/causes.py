"""Why runs failed, where neither the log nor the feed says it: asked for run by run, and asked again until it is known.

An execution may be unknown to its own detail call for some seconds after its end (official clients try for five), so a
failed run is stored at once without a cause, and noted in a cursor of the stream (``causes``) with the same page. Every
sweep asks for what is noted there. When asking leads nowhere, the cause is unknown for good, so that the failure is
counted under that class.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

from exporter.http import Api, ApiError, ErrorKind
from exporter.model import FAILED, Error, Run, State
from exporter.platform import Fault, Known, Page
from exporter.platforms.make import mapping
from exporter.platforms.make.calls import Losses, get
from exporter.platforms.make.mapping import BadItem
from exporter.polling.budget import Lane

CURSOR = "causes"
DETAILS_PER_SWEEP_MAX = 50
#: Beyond it the causes of further failures stay unknown.
NOTED_MAX = 1000
#: Asked so often, over at least so many seconds, a cause is given up.
TRIES_MAX = 3
PATIENCE_SECONDS = 60.0
#: Causes kept in memory, because rows are met again within the overlap of sweeps.
FOUND_MAX = 5000


class Causes:
    """What is known of causes, for one source."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._found: dict[str, Error] = {}

    def noted(self, known: Known, *, counted_from: float) -> "Noted":
        """What earlier sweeps left to be asked."""
        return Noted(known.cursor("runs", CURSOR), self._found, counted_from)

    async def ask(self, noted: "Noted", now: float) -> AsyncIterator[Page]:
        """Ask for what is noted, one page for each cause found."""
        losses = Losses()
        for run_id in noted.ids[:DETAILS_PER_SWEEP_MAX]:
            run, faults = noted.run(run_id), list[Fault]()
            try:
                error = await self.of(run)
                losses.passed()
            except ApiError as failure:
                error = None
                fault = losses.fault(failure, run.workflow_id)
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
        yield Page(cursors=noted.cursor(), faults=noted.left_over())

    async def of(self, run: Run) -> Error | None:
        """Ask for the cause of one run; None if the platform does not say, or not yet. Raises ``ApiError``."""
        endpoint = "/scenarios/{id}/executions/{executionId}"
        answer = await get(self._api, endpoint, lane=Lane.SWEEPS, ids={"id": run.workflow_id, "executionId": run.id})
        try:
            return mapping.cause(answer.data)
        except BadItem as bad:
            raise ApiError(
                ErrorKind.BAD_PAYLOAD, endpoint=f"GET {endpoint}", detail=str(bad), status=answer.status
            ) from None

    def _remember(self, run_id: str, error: Error) -> None:
        self._found[run_id] = error
        while len(self._found) > FOUND_MAX:
            del self._found[next(iter(self._found))]


class Noted:
    """The failed runs whose cause is to be asked: id -> scenario, start, end, first asked, tries. One sweep's copy."""

    def __init__(self, cursor: Any, found: Mapping[str, Error], counted_from: float) -> None:
        self._entries = {run_id: list(entry) for run_id, entry in (cursor or {}).items()}
        self._found = found
        self._counted_from = counted_from
        self._changed = False

    @property
    def ids(self) -> list[str]:
        return list(self._entries)

    def cursor(self) -> dict[str, Any]:
        """To be stored with every page whose runs were passed to ``note``; nothing if nothing changed meanwhile."""
        changed, self._changed = self._changed, False
        return {CURSOR: {run_id: list(entry) for run_id, entry in self._entries.items()} or None} if changed else {}

    def note(self, run: Run) -> Run:
        """The run, with its cause if that is known by now; otherwise noted, if it needs one."""
        if run.result not in FAILED:
            return run
        if run.error is not None:
            self._changed |= self._entries.pop(run.id, None) is not None
            return run
        if run.id in self._found:
            return replace(run, error=self._found[run.id])
        if run.finished_at is not None and run.finished_at < self._counted_from:
            return run  # it is not counted, and nor is its cause
        if run.id not in self._entries:
            if len(self._entries) >= NOTED_MAX:
                return replace(run, error=Error())
            self._entries[run.id] = [run.workflow_id, run.started_at, run.ended_at, None, 0]
            self._changed = True
        return run

    def run(self, run_id: str) -> Run:
        """The failed run as it was noted."""
        workflow_id, started_at, ended_at, _, _ = self._entries[run_id]
        return Run(
            workflow_id=workflow_id,
            id=run_id,
            state=State.FINISHED,
            result=mapping.RESULTS[3],
            started_at=started_at,
            ended_at=ended_at,
        )

    def missed(self, run_id: str, now: float) -> bool:
        """Count a try that led nowhere; True when it was the last."""
        entry = self._entries.pop(run_id)
        entry[3], entry[4] = entry[3] or now, entry[4] + 1
        self._entries[run_id] = entry  # behind the others
        self._changed = True
        given_up: bool = entry[4] >= TRIES_MAX and now - entry[3] >= PATIENCE_SECONDS
        return given_up

    def drop(self, run_id: str) -> None:
        del self._entries[run_id]
        self._changed = True

    def left_over(self) -> list[Fault]:
        fresh = sum(1 for entry in self._entries.values() if entry[4] == 0)
        detail = f"the causes of {fresh} failed runs are left for the next sweep"
        return [Fault(kind="truncated", detail=detail)] if fresh else []
