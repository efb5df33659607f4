"""Reading one Qlik tenant: which calls, in which order.

The listing of automations is the cheap question: a page for 200 automations tells their names and states and embeds
each one's last run. It is asked in every sweep of ``workflows``, and what has changed in it is remembered there as
cursors, one for each automation; the sweep of ``runs`` starts from those and asks for nothing else (see ``runs``).
"""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace

from msgspec import structs

from exporter.model import Listing, Observation
from exporter.platform import BadItem, Fault, Known, Page, RunKey, selected
from exporter.platforms.qlik import mapping
from exporter.platforms.qlik.calls import PAGES_PER_SWEEP_MAX, Calls, ListPage
from exporter.platforms.qlik.check import Check
from exporter.platforms.qlik.config import QlikConfig
from exporter.platforms.qlik.mapping import Signature
from exporter.platforms.qlik.reading.runs import DETAILS_PER_SWEEP_MAX, RunReader
from exporter.platforms.qlik.reading.schedules import Schedules
from exporter.wire.api import Api
from exporter.wire.errors import ApiError

#: The sweep of runs lists automations itself if that was not done for so many poll intervals, and so many seconds.
LISTING_INTERVALS_MAX = 2.0
LISTING_SECONDS_MIN = 30.0


class QlikClient:
    """One tenant's connection (``exporter.platform.Client``)."""

    def __init__(
        self,
        config: QlikConfig,
        api: Api,
        *,
        pages_max: int = PAGES_PER_SWEEP_MAX,
        details_max: int = DETAILS_PER_SWEEP_MAX,
    ) -> None:
        self._config = config
        self._calls = Calls(config, api)
        self._schedules = Schedules(config, self._calls)
        self._runs = RunReader(config, self._calls, pages_max=pages_max, details_max=details_max)

    def sweep(self, stream: str, known: Known, now: float) -> AsyncIterator[Page]:
        """Read ``workflows``, ``runs`` or ``quota`` once."""
        match stream:
            case "workflows":
                return self._sweep_workflows(known, now)
            case "runs":
                return self._sweep_runs(known, now)
            case "quota":
                return self._sweep_quota(known, now)
        raise ValueError(f"no such stream: {stream}")

    def complete(self, keys: Sequence[RunKey], known: Known, now: float) -> AsyncIterator[Page]:
        """Read exactly these runs."""
        return self._runs.complete(keys, known)

    # Automations and their runs

    async def _sweep_workflows(self, known: Known, now: float) -> AsyncGenerator[Page, None]:
        """List the automations, then look at some of their schedules, which the next listing shows. Cursors: the
        signature of each, and under "" when the listing began.
        """
        before = dict(known.cursors("workflows"))
        listed: set[str] = set()
        began: float | None = None
        usable = True
        async with aclosing(self._calls.automations()) as pages:
            async for page in pages:
                began = page.at if began is None else began
                told, signatures = self._map(page, before)
                listed |= signatures.keys()
                usable = usable and not told.faults
                changed = {key: value for key, value in signatures.items() if value != before.get(key)}
                yield replace(told, cursors=changed)
        if began is None or not usable:  # an automation that could not be read would look as if it were gone
            yield Page(cursors={"": began})
            return
        gone = [key for key in before if key and key not in listed]
        listing = Listing(at=began, workflow_ids=frozenset(listed))
        yield Page(observations=[listing], cursors={**dict.fromkeys(gone), "": began})
        await self._schedules.read(known.workflows, now)

    async def _sweep_runs(self, known: Known, now: float) -> AsyncGenerator[Page, None]:
        """Read the runs of the automations that have changed, as the last sweep of workflows told, or else as a listing
        of its own does: while that sweep fails, this one must not pretend to be complete.
        """
        signatures = dict(known.cursors("workflows"))
        listed_at = signatures.pop("", None)
        recently = max(LISTING_SECONDS_MIN, LISTING_INTERVALS_MAX * self._config.poll.interval)
        if listed_at is None or now - listed_at > recently:
            before, signatures = signatures, {}
            async with aclosing(self._calls.automations()) as pages:
                async for page in pages:
                    told, found = self._map(page, before)
                    signatures |= found
                    yield told
        async with aclosing(self._runs.sweep(known, now, signatures)) as sweep:
            async for reading in sweep:
                yield reading

    def _map(self, page: ListPage, before: Mapping[str, Signature]) -> tuple[Page, dict[str, Signature]]:
        """What a page of the listing tells, the last runs only where they have changed, and the signatures of all."""
        observations: list[Observation] = []
        faults: list[Fault] = []
        signatures: dict[str, Signature] = {}
        for item in page.items:
            try:
                workflow = mapping.workflow(item, at=page.at)
            except BadItem as bad:
                faults.append(Fault(kind="bad_item", detail=str(bad)))
                continue
            if not selected(self._config, workflow.id, workflow.name):
                continue
            observations.append(structs.replace(workflow, next_run_at=self._schedules.next_run_at(workflow)))
            signatures[workflow.id] = mapping.signature(item)
            last_run = mapping.last_run(item)
            if last_run is None or signatures[workflow.id] == before.get(workflow.id):
                continue
            try:
                observations += mapping.claims(last_run, workflow_id=workflow.id, latest=self._calls.latest())
            except BadItem as bad:
                faults.append(Fault(kind="bad_item", detail=str(bad), workflow_id=workflow.id))
        return Page(observations=observations, faults=faults, items=len(page.items)), signatures

    # What the tenant has used

    async def _sweep_quota(self, known: Known, now: float) -> AsyncIterator[Page]:
        """Read what was used this month. It is for admins only; that it is refused is said once."""
        was_refused = known.cursor("quota") is not None
        since = mapping.month_start(now)
        try:
            yield await self._limits()
            for name in mapping.USAGE_KINDS:
                yield await self._used(name, since)
        except ApiError as error:
            if error.status != 403:
                raise
            if not was_refused:
                yield Page(faults=[Fault(kind=error.kind, detail=str(error))], cursors={"": "refused"})
            return
        if was_refused:
            yield Page(cursors={"": None})

    async def _limits(self) -> Page:
        answer = await self._calls.settings()
        try:
            return Page(observations=[mapping.settings(answer.data, at=answer.at)])
        except BadItem as bad:
            return _bad_item(bad)

    async def _used(self, name: str, since: str) -> Page:
        items: list[object] = []
        at = 0.0
        async with aclosing(self._calls.usage(name, since=since)) as pages:
            async for page in pages:
                items += page.items
                at = page.at
        try:
            return Page(observations=[mapping.usage(items, name=name, at=at)])
        except BadItem as bad:
            return _bad_item(bad)

    def check(self) -> AsyncIterator[str]:
        """Try the credential and each right."""
        return Check(self._config, self._calls).lines()


def _bad_item(bad: BadItem) -> Page:
    return Page(faults=[Fault(kind="bad_item", detail=str(bad))])
