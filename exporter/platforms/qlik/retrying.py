"""Retrying Qlik's dead letters: a failed run is started again with the inputs it had.

The call makes a new run and answers 204 without naming it, and no field of the new run names the old one. So its effect
is told by elimination: one retry of an automation at a time, and the one run that is new after it, that nothing else
explains, is ours. Where two runs are new, nobody can tell.

Source: Automations API reference, 'Retries a run' (tier 2, 204), 'List runs'.
"""

from collections.abc import Sequence
from contextlib import aclosing

from exporter.model import DeadLetter, Observation
from exporter.model.retries import Traits
from exporter.platform import BadItem
from exporter.platform.retrying import Accepted, Look, Retrying, Standing, Target
from exporter.platforms.qlik import mapping
from exporter.platforms.qlik.calls import RUNS_PER_PAGE, Calls
from exporter.platforms.qlik.config import QlikConfig
from exporter.wire.api import Api
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind

LANE = Lane.RETRIES

TRAITS = Traits(
    effect="rerun",
    handle="inferred",
    absence=None,  # a queued run may take days to start, and nothing says how late a call may take effect
    serial=True,
    bulk_max=1,
)


class QlikRetries:
    """One source's way to retry."""

    def __init__(self, config: QlikConfig, api: Api) -> None:
        self._api = api
        self._calls = Calls(config, api)
        self._retry = f"{config.api_prefix}/{{id}}/runs/{{runId}}/actions/retry"

    async def look(self, target: Target) -> Look:
        """List the automation's newest runs, and those that wait; before a call also read the automation."""
        letter = target.letter
        try:
            rows, at = await self._newest(letter.workflow_id)
            refusal = None if target.sent_at is not None else await self._refusal(letter)
        except ApiError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
            return Look(at=self._api.platform_now(), standing=Standing.GONE)
        listed = any(row.id == letter.run_id for row in rows)
        if any(row.id == letter.run_id and row.run.is_test for row in rows):
            refusal = "somebody was trying the automation out, and sees the failure"
        gone = not listed and await self._is_gone(letter)
        efforts = [] if target.mark is None else mapping.efforts(rows, target.mark, sent_at=target.sent_at)
        known = {effort.run_id for effort in efforts} | {letter.run_id}
        observations: list[Observation] = [claim for row in rows if row.id in known for claim in row.claims]
        return Look(
            at=at,
            standing=Standing.GONE if gone else mapping.standing(rows, letter),
            refusal=refusal,
            mark=mapping.mark(rows),
            efforts=efforts,
            observations=observations,
        )

    async def send(self, letters: Sequence[DeadLetter], *, send_by: float) -> Accepted:
        """Have the run started again. The answer says no more than that it will be."""
        [letter] = letters
        ids = {"id": letter.workflow_id, "runId": letter.run_id or letter.id}
        await self._api.post(self._retry, lane=LANE, ids=ids, send_by=send_by)
        return Accepted(handles={letter.id: None})

    async def _newest(self, workflow_id: str) -> tuple[list[mapping.Row], float]:
        """The newest runs by start, and those that have none yet: where these are sorted, nobody documents."""
        found: dict[str, mapping.Row] = {}
        more = False
        async with aclosing(self._calls.runs(workflow_id, lane=LANE, limit=RUNS_PER_PAGE)) as pages:
            page = await anext(pages)
            at, more, items = page.at, page.next is not None, list(page.items)
        if more:
            async with aclosing(self._calls.queued_runs(workflow_id, lane=LANE)) as pages:
                items += (await anext(pages)).items
        for item in items:
            try:
                row = mapping.row(item, workflow_id=workflow_id, latest=self._calls.latest())
            except BadItem:
                continue
            found[row.id] = row
        return list(found.values()), at

    async def _refusal(self, letter: DeadLetter) -> str | None:
        """Why the automation, or what ended the run, forbids it."""
        item = await self._calls.automation(letter.workflow_id, lane=LANE)
        return mapping.refusal(item, letter)

    async def _is_gone(self, letter: DeadLetter) -> bool:
        """Whether a run that is not among the newest is no more. Reading one takes more rights than listing."""
        try:
            await self._calls.run(letter.workflow_id, letter.run_id or letter.id, lane=LANE)
        except ApiError as error:
            if error.kind is ErrorKind.NOT_FOUND:
                return True
            if error.status != 403:
                raise
        return False


RETRYING = Retrying(traits=TRAITS, connect=QlikRetries)
