"""Through the log of one scenario, page by page, from a time on or from its newest run."""

from collections.abc import AsyncIterator
from typing import Any

from exporter.model import times
from exporter.platforms.make.mapping.runs import stamp
from exporter.platforms.make.reading.calls import Query, Rows, bad_payload, rows
from exporter.wire.api import Api
from exporter.wire.budget import Lane

ENDPOINT = "/scenarios/{id}/logs"
ROWS_PER_PAGE = 100
PAGES_PER_SCENARIO_MAX = 50
#: A run is in the log this long after its end at the latest (seconds).
SETTLED_SECONDS = 120.0


async def newest(api: Api, workflow_id: str) -> Rows:
    """The newest runs, if the platform obeys. Raises ``ApiError``."""
    return await _rows(api, workflow_id, [("pg[sortDir]", "desc")])


async def walk(api: Api, workflow_id: str, *, start: float, settled: float) -> AsyncIterator[tuple[Rows, int | None]]:
    """Pages by start, oldest first, each with the time to go on from, None after the last.

    What began before ``settled`` matters only if it took long; that is asked for where a page could not hold all.
    A platform that answers newest first all the same is read from there backwards.
    """
    at, long_until, settled_ms = round(start * 1000), None, round(settled * 1000)
    before = list[Any]()
    for _ in range(PAGES_PER_SCENARIO_MAX):
        query: list[tuple[str, str | int]] = [("from", at), ("pg[sortDir]", "asc")]
        if long_until is not None:
            query += [("to", long_until), ("durationFrom", round(SETTLED_SECONDS * 1000))]
        page = await _rows(api, workflow_id, query)
        _check_progress(page, before)
        before = page.rows
        if page.full and _falls(page):
            async for older in _backwards(api, workflow_id, page, start=start, whole=long_until is None):
                yield older
            return
        if not page.full:
            if long_until is None:
                yield page, None
                return
            at, long_until = long_until, None
        else:
            last = _last(page)
            at = max(last, at + 1)
            if long_until is None and at < settled_ms:
                long_until = settled_ms
        yield page, at


async def _backwards(
    api: Api, workflow_id: str, page: Rows, *, start: float, whole: bool
) -> AsyncIterator[tuple[Rows, int | None]]:
    """Pages newest first, from ``page``, or from the newest if that does not hold it (not ``whole``).

    Until the last all has to be read again from ``start``.
    """
    at = round(start * 1000)
    until = min(stamps_of(page)) if whole else None
    if whole:
        yield page, at
    for _ in range(PAGES_PER_SCENARIO_MAX):
        query: list[tuple[str, str | int]] = [("from", at), ("pg[sortDir]", "asc")]
        older = await _rows(api, workflow_id, [*query, *([] if until is None else [("to", until)])])
        if not older.full:
            yield older, None
            return
        _check_progress(older, page.rows)
        page, oldest = older, min(stamps_of(older))
        until = oldest if until is None or oldest < until else until - 1
        yield older, at


async def _rows(api: Api, workflow_id: str, query: Query) -> Rows:
    ids = {"id": workflow_id}
    lane, limit = Lane.SWEEPS, ROWS_PER_PAGE
    return await rows(api, ENDPOINT, "scenarioLogs", lane=lane, limit=limit, query=query, ids=ids)


def stamps_of(page: Rows) -> list[int]:
    latest = times.latest(page.at) * 1000  # one that cannot be must not hide those after it
    return [at for row in page.rows if (at := stamp(row)) is not None and at <= latest]


def _falls(page: Rows) -> bool:
    """Whether a page is newest first. Raises ``ApiError`` where no row has a time."""
    stamps = stamps_of(page)
    if not stamps:
        raise bad_payload(ENDPOINT, "no row of the log has a time")
    return stamps[0] > stamps[-1]


def rises(page: Rows) -> bool:
    stamps = stamps_of(page)
    return bool(stamps) and stamps[0] < stamps[-1]


def _check_progress(page: Rows, before: list[Any]) -> None:
    """Raise ``ApiError`` where a page that may have more after it is the one before."""
    if page.full and page.rows == before:
        raise bad_payload(ENDPOINT, "the same page again: the time to read from is not obeyed")


def _last(page: Rows) -> int:
    """The time the next page begins with."""
    return max(stamps_of(page))
