"""Reading the listing of processes without reading all of it.

processes/find cannot filter by time or state and promises no order, so the order is learned from creation times: newest
first, oldest first, or none. With an order, a sweep reads the page of the newest processes, and as many more as it
takes to come back to what earlier sweeps have read; after a downtime it begins there and works towards the newest, so
that where it stops, the next sweep goes on. Without an order all pages are read whenever their number of rows has
changed, and now and then.

The cursor: ``order``; ``size`` of a page; ``since``: every process created up to then has been read; ``total``: rows
there were when that was so. Of a scan without an order: ``page``, where to go on, ``began_total``, rows when it began,
``scanned_at``, when the last one ended.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from exporter.platforms.cognaize.mapping import Order, Rows, order_of

#: Rows asked for at once: the documents' own example; more may be refused.
PAGE_ROWS = 100
PAGES_PER_SWEEP_MAX = 50
#: A process may become visible this many seconds after it says it was created.
OVERLAP_SECONDS = 60.0
#: What a first sweep reads back: what was created lately may still run or be restarted …
BASELINE_SECONDS = 86_400.0
#: … but no more than this, unless a backfill was asked for.
BASELINE_ROWS_MAX = 500
#: Without an order, everything is read this often even if the number of rows stays the same.
FULL_SCAN_SECONDS = 600.0

Step = tuple[Rows, dict[str, Any] | None]


class Walk:
    """One sweep's way through the listing. ``find`` reads a page by its number."""

    def __init__(
        self, *, find: Callable[[int], Awaitable[Rows]], cursor: Any, now: float, backfill_seconds: float
    ) -> None:
        cursor = cursor if isinstance(cursor, Mapping) else {}
        self._find_page = find
        self._now = now
        self._order: Order | None = cursor.get("order")
        self._size: int = cursor.get("size") or PAGE_ROWS
        self._since: float | None = cursor.get("since")
        self._total: int | None = cursor.get("total")
        self._resume: int | None = cursor.get("page")
        self._began_total: int | None = cursor.get("began_total")
        self._scanned_at: float | None = cursor.get("scanned_at")
        first = self._since is None
        self._floor = now - BASELINE_SECONDS - backfill_seconds if first else (self._since or 0.0) - OVERLAP_SECONDS
        self._rows_max = BASELINE_ROWS_MAX if first and not backfill_seconds else None
        self._left = PAGES_PER_SWEEP_MAX
        self._seen_total: int | None = None  # rows, as the last answer said
        self._shrunk = False  # rows went away while we read: ranks are not what they were
        self._bottom: int | None = None  # the lowest rank read
        self.truncated = False

    async def pages(self) -> AsyncIterator[Step]:
        """The pages worth reading, each with the cursor it completes, if any."""
        top: Rows | None = None
        if self._order is None:
            top = await self._find(0)
            if top.pages > 1:
                last = await self._find(top.pages - 1)
                self._order = order_of([*top.moments, *last.moments])
                top = last if self._order == "oldest_first" else top
            else:
                yield top, self._mark(total=top.total, rows=top)
                return
        steps = self._scan() if self.scanning else self._follow(top)
        async for step in steps:
            yield step

    @property
    def scanning(self) -> bool:
        """Whether pages come in no order, and thus hold any age."""
        return self._order not in ("oldest_first", "newest_first")

    async def newest(self) -> AsyncIterator[Rows]:
        """The page of the newest processes, if the order is known; ``older`` goes on from there."""
        if not self.scanning:
            _, top = await self._ends(None)
            self._bottom = self._low(top)
            yield top

    async def older(self) -> AsyncIterator[Rows]:
        """After ``pages``: the pages below what was read, from newer to older, if there is such a thing."""
        while self._bottom and self._left > 0:
            rows = await self._covering(self._bottom - 1)
            low = rows.ranks(self._known_order)[0]
            if low >= self._bottom:
                return
            self._bottom = low
            yield rows

    # With an order.

    async def _follow(self, top: Rows | None) -> AsyncIterator[Step]:
        """From what is known to the newest: ``near`` is where the unknown begins, ``top`` the page of the newest."""
        near, top = await self._ends(top)
        if any(order_of(rows.moments) not in (None, self._order) for rows in (near, top)):
            self._order = "unordered"
            async for step in self._scan():
                yield step
            return
        lowest = 0 if self._rows_max is None else max(0, top.total - self._rows_max)
        if near is top and self._settles(top, lowest):
            self._bottom = self._low(top)
            yield top, self._mark(total=top.total, rows=top)
            return
        yield top, None
        leap = 1
        while not self._settles(near, lowest) and self._left > 0:
            if near is not top:
                yield near, None
            near, leap = await self._covering(max(lowest, self._low(near) - leap * near.size)), leap * 2
        self._bottom = self._low(near)
        if not self._settles(near, lowest):
            self.truncated = True
            yield near, None
            return
        edge = near.ranks(self._known_order)[1]
        while edge < self._low(top):
            yield near, self._mark(total=edge, rows=near)
            if self._left <= 0:
                self.truncated = True
                return
            near = await self._covering(edge)
            low, high = near.ranks(self._known_order)
            if not low <= edge < high:
                self._shrunk = True  # the next sweep finds its place again
                edge = self._low(top)
            else:
                edge = high
        yield near, self._mark(total=top.total, rows=top)

    async def _ends(self, top: Rows | None) -> tuple[Rows, Rows]:
        """The page where the unknown begins, as far as the number of rows tells, and the page of the newest."""
        if top is not None:
            return top, top
        rank = max(0, (self._total or 0) - 1)
        if self._order == "newest_first":
            top = await self._find(0)
            return (await self._covering(rank) if rank < self._low(top) else top), top
        near = await self._find(rank // self._size)
        top = near if near.number == near.pages - 1 else await self._find(near.pages - 1)
        return (near if near.number < top.number else top), top

    def _settles(self, rows: Rows, lowest: int) -> bool:
        """Whether a sweep need not look below this page: what is there is known, or too old to be asked for."""
        return self._low(rows) <= lowest or (bool(rows.moments) and min(rows.moments) <= self._floor)

    @property
    def _known_order(self) -> Order:
        return self._order or "unordered"

    def _low(self, rows: Rows) -> int:
        return rows.ranks(self._known_order)[0]

    async def _covering(self, rank: int) -> Rows:
        """The page with this rank on it. New rows may push it to the next page while we ask."""
        for _ in range(3):
            total = self._seen_total or 0
            number = rank // self._size if self._order == "oldest_first" else max(0, total - 1 - rank) // self._size
            rows = await self._find(number)
            low, high = rows.ranks(self._known_order)
            if low <= rank < high or self._left <= 0:
                break
        return rows

    # Without one.

    async def _scan(self) -> AsyncIterator[Step]:
        """All pages, from the first or from where the last sweep stopped."""
        rows = await self._find(0)
        total, resumed = rows.total, self._resume is not None
        fresh = self._scanned_at is not None and self._now - self._scanned_at < FULL_SCAN_SECONDS
        if not resumed and fresh and self._total == total:
            yield rows, None
            return
        began_total = self._began_total if resumed else total
        number = max(1, self._resume or 1)
        moments = list(rows.moments)
        while number < rows.pages:
            yield rows, self._mark(total=None, rows=rows, page=number, began_total=began_total)
            if self._left <= 0:
                self.truncated = True
                return
            rows = await self._find(number)
            moments += rows.moments
            number += 1
        # Rows that came or went while we read may have moved others past us.
        total_after = rows.total if rows.total == began_total and not self._shrunk else None
        if not resumed:
            self._order = order_of(moments)
        if not self.scanning and (total_after is None or not moments):
            self._order = "unordered"  # not while it moves
        self._since = max(moments, default=self._since)
        yield rows, self._mark(total=total_after, rows=rows, scanned_at=self._now)

    # Both.

    async def _find(self, number: int) -> Rows:
        rows = await self._find_page(number)
        self._left -= 1
        self._shrunk = self._shrunk or (self._seen_total is not None and rows.total < self._seen_total)
        self._seen_total, self._size = rows.total, rows.size
        return rows

    def _mark(
        self,
        *,
        total: int | None,
        rows: Rows,
        page: int | None = None,
        began_total: int | None = None,
        scanned_at: float | None = None,
    ) -> dict[str, Any] | None:
        """The cursor that says: everything created up to the newest of ``rows`` has been read."""
        if self._shrunk and not self.scanning:
            return None
        if page is None:
            newest = max(rows.moments, default=None)
            self._since = max(
                self._since or 0.0, self._now if newest is None and self._since is None else newest or 0.0
            )
        return {
            "order": self._order,
            "size": self._size,
            "since": self._since,
            "total": total,
            "page": page,
            "began_total": began_total,
            "scanned_at": scanned_at if scanned_at is not None else self._scanned_at,
        }
