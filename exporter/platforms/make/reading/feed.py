"""Runs by the feed across scenarios: one call instead of one per scenario that ran, in zones that have it.

GET /scenarios/logs?since=&until= is an integration endpoint outside the public documents: rows of all scenarios that
ended after ``since`` and not after ``until``, at most 200 a page. In which order is not documented. So a page that is
full is gone on from only where its rows rise by their ends, or fall; where they do neither, or rise by their starts as
well and that leads nowhere, half of the time is asked for. Whether a zone has it and a token may read it shows when it
is asked; where it refuses, the logs of scenarios are read instead (``logs``), and it is tried again after an hour.

The cursor ``feed`` holds ``until``: every run that ended up to then has been read. It stays some time behind, since a
run may show late; so each sweep reads the newest part again.
"""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from exporter.model import Run, times
from exporter.platform import BadItem, Fault, Known, Page
from exporter.platforms.make.config import MakeConfig
from exporter.platforms.make.mapping.runs import feed_run, feed_span, in_scope
from exporter.platforms.make.reading.calls import Rows, bad_payload, rows
from exporter.platforms.make.reading.details import Details
from exporter.platforms.make.reading.scenarios import Watch
from exporter.wire.api import Api
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind

CURSOR = "feed"
ENDPOINT = "/scenarios/logs"
ROWS_PER_PAGE = 200  # the most there is
PAGES_PER_SWEEP_MAX = 100
#: A run is in the feed this many seconds after its end at the latest.
SETTLED_SECONDS = 120.0
#: The first sweep looks this far behind the baseline (seconds), to learn when scenarios last ran.
BASELINE_REACH_SECONDS = 600.0
#: Where logs were read instead, what they covered is read again from so many seconds before.
LOGS_REACH_SECONDS = 3600.0
#: A feed that refused, or failed so often in a row, is left alone for an hour.
REFUSED_SECONDS = 3600.0
FAILURES_MAX = 3
#: What a zone without the feed answers: there is no such path, or ``logs`` is no scenario's number.
REFUSALS = frozenset({400, 401, 403, 404, 405, 410, 422, 501})


_TRUNCATED = Page(
    faults=[
        Fault(
            kind="truncated",
            detail=f"more than {PAGES_PER_SWEEP_MAX} pages of runs; the rest is left for the next sweep",
        )
    ]
)


class NoFeed(Exception):
    """There is no feed to read, for now."""


class Feed:
    """The feed of one source."""

    def __init__(self, config: MakeConfig, api: Api, watch: Watch) -> None:
        self._config = config
        self._api = api
        self._watch = watch
        self._refused_until = 0.0
        self._failures = 0

    async def read(self, known: Known, now: float, details: Details) -> AsyncIterator[Page]:
        """All runs that ended since the last sweep, oldest first. Raises ``NoFeed``, or ``ApiError``."""
        if now < self._refused_until:
            raise NoFeed
        try:
            async for page in self._read(known, _since(known, self._watch.counted_from(known, now), now), details):
                yield page
        except ApiError as error:
            if error.kind is ErrorKind.RATE_LIMITED:
                raise
            self._failures += 1
            if error.status not in REFUSALS and self._failures < FAILURES_MAX:
                raise
            self._refused_until, self._failures = now + REFUSED_SECONDS, 0
            raise NoFeed from None
        self._failures = 0

    def try_again(self) -> None:
        """The refusal was not the feed's."""
        self._refused_until = 0.0

    async def _read(self, known: Known, since: int, details: Details) -> AsyncIterator[Page]:
        until, before = covered_until(known, self._api.platform_now()), list[Any]()
        windows = list[int]()  # up to when to ask, the next one last; without any, up to now
        for _ in range(PAGES_PER_SWEEP_MAX):
            page = await self._page(since, windows[-1] if windows else None)
            if page.full and page.rows == before:
                raise bad_payload(ENDPOINT, "the same page again: since is not obeyed")
            before = page.rows
            if page.full and not windows and _falls(page):
                async for older in self._backwards(known, since, page, details):
                    yield older
                return
            runs, faults = await self._runs(page.rows, known)
            details.see(page.rows)
            observations = [details.note(run) for run in runs]
            on = _next(page, since) if page.full else windows[-1] if windows else None
            if page.full and on is None:
                middle = (since + min(windows[-1] if windows else _ms(page.at), _ms(page.at))) // 2
                if middle > since:
                    windows.append(middle)
                    yield Page(observations=observations, cursors=details.cursor(), faults=faults, items=len(page.rows))
                    before = []
                    continue
                on = since + 1  # more runs than a page holds ended within this millisecond
            if windows and on is not None and on >= windows[-1]:
                on = windows.pop()
            settled = page.at - SETTLED_SECONDS
            if on is not None:
                settled = min(settled, on / 1000)
            until = settled if until is None else max(until, settled)
            cursors = {CURSOR: {"until": until}} | details.cursor()
            yield Page(observations=observations, cursors=cursors, faults=faults, items=len(page.rows))
            if on is None:
                return
            since = on
        yield _TRUNCATED

    async def _page(self, since: int, until: int | None = None) -> Rows:
        query = [("since", _iso(since)), *([] if until is None else [("until", _iso(until))])]
        return await rows(self._api, ENDPOINT, "scenarioLogs", lane=Lane.SWEEPS, limit=ROWS_PER_PAGE, query=query)

    async def _backwards(self, known: Known, since: int, page: Rows, details: Details) -> AsyncIterator[Page]:
        """A feed that goes from the newest to the oldest, from its first page on. The cursor moves with the last."""
        settled, until = page.at - SETTLED_SECONDS, covered_until(known, self._api.platform_now())
        for _ in range(PAGES_PER_SWEEP_MAX):
            runs, faults = await self._runs(page.rows, known)
            details.see(page.rows)
            done = {} if page.full else {CURSOR: {"until": settled if until is None else max(until, settled)}}
            observations = [details.note(run) for run in runs]
            cursors = done | details.cursor()
            yield Page(observations=observations, cursors=cursors, faults=faults, items=len(page.rows))
            if not page.full:
                return
            older = await self._page(since, _oldest(page))
            if older.full and older.rows == page.rows:
                raise bad_payload(ENDPOINT, "the same page again: until is not obeyed")
            page = older
        yield _TRUNCATED

    async def _runs(self, found: Sequence[object], known: Known) -> tuple[list[Run], list[Fault]]:
        runs, faults = list[Run](), list[Fault]()
        for row in found:
            try:
                run = feed_run(row, latest=self._api.latest())
                mine = in_scope(row, organization_id=self._config.organization_id, team_ids=self._config.team_ids)
            except BadItem as bad:
                faults.append(Fault(kind="bad_item", detail=str(bad)))
                continue
            if run is not None and mine and await self._watch.find_out(run.workflow_id, known):
                runs.append(run)
        return runs, faults


def covered_until(known: Known, now: float) -> float | None:
    """Up to when the feed has been read: not further than now, whatever a clock that was wrong has written."""
    cursor = known.cursor("runs", CURSOR)
    return min(cursor["until"], now) if cursor else None


def _since(known: Known, counted_from: float, now: float) -> int:
    """From when on to read, in milliseconds."""
    feed, logs = covered_until(known, now), known.cursor("runs", "logs")
    covered = [counted_from - BASELINE_REACH_SECONDS]
    if feed is not None:
        covered.append(feed)
    if logs is not None:
        covered.append(min(logs["until"], now) - LOGS_REACH_SECONDS)
    return round(max(covered) * 1000)


def _spans(page: Rows) -> list[tuple[int, int]]:
    latest = _ms(times.latest(page.at))  # one that cannot be must not hide those after it
    return [span for row in page.rows if (span := feed_span(row)) is not None and span[1] <= latest]


def _falls(page: Rows) -> bool:
    """Whether a page goes from the newest end to the oldest. Raises ``ApiError`` where no row has a time."""
    ends = [end for _, end in _spans(page)]
    if not ends:
        raise bad_payload(ENDPOINT, "no row of the feed has a time")
    return ends[0] > ends[-1] and all(a >= b for a, b in pairwise(ends))


def _next(page: Rows, since: int) -> int | None:
    """Since when to ask after a full page; None where that cannot be said: its order is not that of the ends."""
    spans = _spans(page)
    starts, ends = [start for start, _ in spans], [end for _, end in spans]
    if any(a > b for a, b in pairwise(ends)):
        return None
    on = ends[-1] - 1 if ends[-1] - 1 > since else ends[-1]  # its millisecond may have more
    if all(a <= b for a, b in pairwise(starts)) and starts[0] != starts[-1]:
        on = min(on, starts[-1] - 1)  # the order may be that of the starts: what began later ended later, too
    return on if on > since else None


def _oldest(page: Rows) -> int:
    """Up to when to ask for the page before this one."""
    ends = [end for _, end in _spans(page)]
    return min(ends) + 1 if len(set(ends)) > 1 else min(ends) - 1


def _ms(at: float) -> int:
    return round(at * 1000)


def _iso(at: int) -> str:
    return datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
