"""Trying an instance out: the key, its scopes, what this version can do, and what it saves."""

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime

from exporter.model.repairs import RepairAction
from exporter.platform import BadItem, selected
from exporter.platform.credentials import expiry
from exporter.platforms.n8n import mapping
from exporter.platforms.n8n.calls import Calls, stops_sweep
from exporter.platforms.n8n.config import N8nConfig
from exporter.platforms.n8n.mapping import Habits, Numbering, Saving
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind

NEEDED = ("workflow:list", "workflow:read", "execution:list", "execution:read")
FOR_RETRIES = "execution:retry"
FOR_STOPS = "execution:stop"
#: A key that ends within so many seconds is worth a word.
EXPIRY_SECONDS = 14 * 86_400.0
#: No execution started after it: whoever answers some did not look at the filter.
FAR_AHEAD = "2999-01-01T00:00:00Z"
STATUSES = ("running", "waiting", "new", "crashed")


class Check:
    """One check of an instance."""

    def __init__(self, config: N8nConfig, calls: Calls) -> None:
        self._config = config
        self._calls = calls

    async def lines(self) -> AsyncGenerator[str, None]:
        """One for each thing tried; what does not work begins with "problem: "."""
        yield await self._try_readiness()
        scopes = await self._scopes()
        yield "ok: key accepted"
        for line in self._about_key(scopes):
            yield line
        async with aclosing(self._try_workflows()) as lines:
            async for line in lines:
                yield line
        async with aclosing(self._try_executions()) as lines:
            async for line in lines:
                yield line

    async def _try_readiness(self) -> str:
        try:
            return "ok: ready" if await self._calls.ready() else "problem: n8n says it is not ready"
        except ApiError as error:
            if error.kind is ErrorKind.NOT_FOUND or error.kind is ErrorKind.BAD_PAYLOAD:
                return "note: no /healthz/readiness: a proxy may hide it"
            if stops_sweep(error):
                return "note: /healthz/readiness is refused: a proxy may guard it"
            return f"problem: n8n is not ready ({error})"

    async def _scopes(self) -> frozenset[str] | None:
        """What the key may do; None where the version does not say. Raises ``ApiError`` if it is refused."""
        try:
            data = await self._calls.discover()
        except ApiError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
            await self._calls.executions(lane=Lane.SWEEPS, limit=1)
            return None
        found = data.get("scopes")
        return frozenset(scope for scope in found if isinstance(scope, str)) if isinstance(found, list) else None

    def _about_key(self, scopes: frozenset[str] | None) -> Iterator[str]:
        if scopes is None:
            yield "note: this version does not say which scopes a key has"
        else:
            missing = [scope for scope in NEEDED if scope not in scopes]
            yield (
                f"problem: the key has no {', '.join(missing)}: create one that has"
                if missing
                else "ok: the key has every scope that reading takes"
            )
            if FOR_RETRIES not in scopes:
                yield f"note: the key has no {FOR_RETRIES}: dead letters cannot be retried"
            if RepairAction.STOP in self._config.grant and FOR_STOPS not in scopes:
                yield f"problem: the key has no {FOR_STOPS}, which `grant: [stop]` takes: create one that has"
        ends_at = expiry(self._config.token.get_secret_value())
        if ends_at is not None and ends_at < self._calls.now() + EXPIRY_SECONDS:
            when = datetime.fromtimestamp(ends_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
            yield f"note: the key ends at {when}"

    async def _try_workflows(self) -> AsyncGenerator[str, None]:
        seen = 0
        watched: dict[str, Habits] = {}
        try:
            async with aclosing(self._calls.workflows(lane=Lane.SWEEPS)) as pages:
                async for page in pages:
                    for item in page.items:
                        try:
                            workflow, habits = mapping.workflow(item, at=page.at, saving=Saving(successes=None))
                        except BadItem as bad:
                            yield f"problem: {bad}"
                            continue
                        seen += 1
                        if selected(self._config, workflow.id, workflow.name):
                            watched[workflow.id] = habits
        except ApiError as error:
            if error.status != 403:
                raise
            yield "problem: workflows cannot be listed: the scope workflow:list is missing"
            return
        yield f"workflows: {len(watched)}"
        if not seen:
            yield "problem: the key sees no workflow; it sees what its user sees"
        elif not watched:
            yield f"problem: include and exclude leave none of {seen} workflows"
        async for line in self._about_saving(watched):
            yield line

    async def _about_saving(self, watched: Mapping[str, Habits]) -> AsyncGenerator[str, None]:
        unsaved = [habits.name or key for key, habits in watched.items() if habits.saves_successes is False]
        if unsaved:
            yield f"note: {_some(unsaved)}: successes are not saved, so they are not counted, and failures not retried"
        failing = [habits.name or key for key, habits in watched.items() if habits.saves_errors is False]
        if failing:
            yield f"note: {_some(failing)}: failures are not saved, so only the error workflow can report them"
        open_ = {key for key, habits in watched.items() if habits.saves_successes is None}
        if not open_ or self._config.save_successes != "auto":
            return
        page = await self._calls.executions(lane=Lane.SWEEPS, status="success")
        for item in page.items:
            try:
                row = mapping.row(item, numbering=Numbering())
            except BadItem:
                continue
            if row.workflow_id in open_ and row.status == "success" and row.mode != "manual":
                yield "ok: successes are saved where a workflow does not say otherwise"
                return
        yield (
            "note: no success of a workflow that leaves it to the instance was found: whether it saves them is not "
            "known, and until one shows they are not counted; save_successes can say it"
        )

    async def _try_executions(self) -> AsyncGenerator[str, None]:
        listed = await self._filtered(limit=1)
        yield "ok: executions can be listed" if isinstance(listed, list) else f"problem: no executions ({listed})"
        for status in STATUSES:
            found = await self._filtered(status=status)
            if not isinstance(found, list):
                yield f"problem: this version cannot list executions that are {status}: {found}"
            elif any(word != status for word in found):
                yield f"problem: this version ignores the filter for executions that are {status}"
        found = await self._filtered(startedAfter=FAR_AHEAD, limit=1)
        if found != []:
            yield "note: this version has no startedAfter: a backfill reads the list page by page, as it does anyway"

    async def _filtered(self, *, status: str | None = None, limit: int = 10, **filters: str) -> Sequence[object] | str:
        """The statuses of the executions that a filter lets through, or why it does not work."""
        try:
            page = await self._calls.executions(lane=Lane.SWEEPS, status=status, limit=limit, **filters)
        except ApiError as error:
            if stops_sweep(error) and error.status != 403:
                raise
            return str(error)
        return [item.get("status") if isinstance(item, dict) else None for item in page.items]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
