"""Trying a tenant out: its credential, and each right that reading takes."""

from collections.abc import AsyncIterator
from contextlib import aclosing

from exporter.platform import BadItem, selected
from exporter.platforms.qlik import mapping
from exporter.platforms.qlik.calls import REQUESTS_PER_MINUTE, Calls, stops_sweep
from exporter.platforms.qlik.config import QlikConfig
from exporter.platforms.qlik.repairing import REPAIRING
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError


class Check:
    """One check of a tenant."""

    def __init__(self, config: QlikConfig, calls: Calls) -> None:
        self._config = config
        self._calls = calls

    async def lines(self) -> AsyncIterator[str]:
        """One for each thing tried; what does not work begins with "problem: "."""
        seen = watched = 0
        sample: tuple[str, str] | None = None
        async with aclosing(self._calls.automations()) as pages:
            async for page in pages:
                for item in page.items:
                    try:
                        workflow, last_run = mapping.workflow(item, at=page.at), mapping.last_run(item)
                    except BadItem as bad:
                        yield f"problem: {bad}"
                        continue
                    seen += 1
                    if not selected(self._config, workflow.id, workflow.name):
                        continue
                    watched += 1
                    if last_run is not None and isinstance(last_run["id"], str):
                        sample = sample or (workflow.id, last_run["id"])
        yield "ok: credential accepted"
        yield f"ok: limit {REQUESTS_PER_MINUTE:g} requests a minute (Qlik's tier 1)"
        yield f"workflows: {watched}"
        if not seen:
            yield "problem: the credential sees no automations; it takes their owner, an admin or admin.automations"
        elif not watched:
            yield f"problem: include and exclude leave none of {seen} automations"
        if sample is not None:
            yield await self._try_list(sample[0])
            yield await self._try_run(*sample)
        yield await self._try_usage()
        for line in REPAIRING.untold(self._config.grant):
            yield line

    async def _try_list(self, workflow_id: str) -> str:
        try:
            async with aclosing(self._calls.runs(workflow_id, lane=Lane.SWEEPS, limit=1)) as pages:
                await anext(pages)
        except ApiError as error:
            if stops_sweep(error):
                raise
            if error.status == 403:
                return (
                    "problem: the role TenantAdmin or AnalyticsAdmin, or the scope admin.automation-runs, is missing; "
                    "runs of other owners will not be seen"
                )
            return f"problem: runs cannot be listed ({error})"
        return "ok: runs can be listed"

    async def _try_run(self, workflow_id: str, run_id: str) -> str:
        try:
            await self._calls.run(workflow_id, run_id, lane=Lane.SWEEPS)
        except ApiError as error:
            if stops_sweep(error):
                raise
            if error.status == 403:
                # Qlik lets admins list everybody's runs, but not read each; the lists mostly tell enough.
                return "note: some runs cannot be read one by one; where a list says no cause, it stays unknown"
            return f"problem: a run cannot be read ({error})"
        return "ok: runs can be read one by one"

    async def _try_usage(self) -> str:
        try:
            answer = await self._calls.settings()
            async with aclosing(self._calls.usage("runs", since=mapping.month_start(answer.at))) as pages:
                await anext(pages)
        except ApiError as error:
            if stops_sweep(error):
                raise
            if error.status == 403:
                return "note: the role TenantAdmin or AnalyticsAdmin is missing; usage will not be seen"
            return f"problem: usage cannot be read ({error})"
        return "ok: usage can be read"
