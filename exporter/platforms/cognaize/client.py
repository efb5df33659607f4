"""Reading one Cognaize installation: the newest part of its listing, then whatever is still open.

A sweep of runs reads the pages of the listing that may hold something new (``listing``); open processes and failed
ones that were not among them are then read one by one, for a restart shows nowhere else. Workflows have no endpoint:
they are known from their processes and from the config, which only names some of them, so none is ever reported as
gone. Their sweep asks for one row, to tell whether the platform lets us in.
"""

from collections.abc import AsyncIterator, Sequence
from itertools import islice
from typing import Any

from exporter.platform import Fault, Known, Page, RunKey, StreamName
from exporter.platforms.cognaize import calls
from exporter.platforms.cognaize.calls import FIND, GONE_STATUSES, PROCESS
from exporter.platforms.cognaize.check import check
from exporter.platforms.cognaize.config import CognaizeConfig
from exporter.platforms.cognaize.listing import BASELINE_ROWS_MAX, Walk
from exporter.platforms.cognaize.reading import Sweep
from exporter.wire.api import Api
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind

#: Requests a sweep may spend on processes that are open but not among the newest; the rest takes turns.
READS_PER_SWEEP_MAX = 20
#: How many of these may be whole pages.
BULK_PAGES_PER_SWEEP_MAX = 10
#: Processes read one by one for webhooks at one time.
READS_PER_COMPLETION_MAX = 200
#: Processes read one by one between two commits.
READS_PER_PAGE = 10
#: From so many open processes on, a page that holds two of them is cheaper than reading them one by one.
BULK_FROM = 6
#: After so many failures in a row the rest is not tried: the platform is down.
FAILURES_IN_A_ROW_MAX = 3


class CognaizeClient:
    """One source's connection (``exporter.platform.Client``)."""

    def __init__(self, config: CognaizeConfig, api: Api) -> None:
        self._config = config
        self._api = api

    async def sweep(self, stream: StreamName, known: Known, now: float) -> AsyncIterator[Page]:
        sweep = Sweep(self._config, known, now, self._api.latest)
        if stream == StreamName.WORKFLOWS:
            rows = await calls.find(self._api, 0, Lane.SWEEPS, size=1)
            yield sweep.workflows(rows)
            return
        walk = self._walk(known, now, Lane.SWEEPS)
        async for rows, cursor in walk.pages():
            deep = walk.scanning and rows.total > BASELINE_ROWS_MAX
            yield sweep.page(rows.items, cursor=cursor, deep=deep)
        if walk.truncated:
            detail = f"POST {FIND}: more pages than one sweep may read; the next one goes on there"
            yield Page(faults=[Fault(kind="truncated", detail=detail)])
        async for page in self._in_bulk(walk, sweep):
            yield page
        ids, turn = sweep.turn(READS_PER_SWEEP_MAX - sweep.bulk_pages)
        async for page in self._one_by_one(ids, sweep):
            yield page
        yield sweep.rest(turn)

    async def complete(self, keys: Sequence[RunKey], known: Known, now: float) -> AsyncIterator[Page]:
        sweep = Sweep(self._config, known, now, self._api.latest)
        sweep.wanted = {key.run_id: key.workflow_id for key in keys}
        if len(sweep.wanted) >= BULK_FROM:
            walk = self._walk(known, now, Lane.RUNNING)
            async for rows in walk.newest():
                yield sweep.page(rows.items)
            async for page in self._in_bulk(walk, sweep):
                yield page
        ids = list(sweep.missing())
        async for page in self._one_by_one(ids[:READS_PER_COMPLETION_MAX], sweep):
            yield page
        if len(ids) > READS_PER_COMPLETION_MAX:
            detail = f"GET {PROCESS}: {len(ids) - READS_PER_COMPLETION_MAX} processes left to the next sweep"
            yield Page(faults=[Fault(kind="truncated", detail=detail)])
        yield Page(faults=sweep.problems())

    def check(self) -> AsyncIterator[str]:
        return check(self._api, self._config)

    # Parts of a sweep.

    def _walk(self, known: Known, now: float, lane: Lane) -> Walk:
        return Walk(
            find=lambda number: calls.find(self._api, number, lane),
            cursor=known.cursor(StreamName.RUNS),
            now=now,
            backfill_seconds=self._config.backfill_seconds,
        )

    async def _in_bulk(self, walk: Walk, sweep: Sweep) -> AsyncIterator[Page]:
        """Read on towards older pages while each of them holds at least two of those wanted."""
        if len(sweep.missing()) < BULK_FROM:
            return
        async for rows in walk.older():
            sweep.bulk_pages += 1
            before = len(sweep.missing())
            yield sweep.page(rows.items)
            left = len(sweep.missing())
            if before - left < 2 or left < BULK_FROM or sweep.bulk_pages == BULK_PAGES_PER_SWEEP_MAX:
                return

    async def _one_by_one(self, ids: Sequence[str], sweep: Sweep) -> AsyncIterator[Page]:
        """Read these processes. A failure costs one process; a refusal, or the third failure in a row, ends it."""
        waiting, failures, fatal = iter(ids), 0, None
        while fatal is None and (batch := list(islice(waiting, READS_PER_PAGE))):
            items: list[Any] = []
            faults: list[Fault] = []
            for process_id in batch:
                try:
                    items.append(await calls.process(self._api, process_id, Lane.RUNNING))
                    failures = 0
                except ApiError as error:
                    gone = error.status in GONE_STATUSES
                    down = error.kind in (ErrorKind.UNAVAILABLE, ErrorKind.TIMEOUT)
                    failures = failures + 1 if down else 0
                    refused = error.kind in (ErrorKind.AUTH, ErrorKind.RATE_LIMITED)
                    if refused or failures == FAILURES_IN_A_ROW_MAX:
                        fatal = error
                        break
                    workflow_id = sweep.wanted.get(process_id)
                    faults.append(Fault(kind=error.kind, detail=str(error), workflow_id=workflow_id, of_item=True))
                    if gone:
                        sweep.gone.add(process_id)
            yield sweep.page(items, faults=faults)
        if fatal is not None:
            raise fatal
