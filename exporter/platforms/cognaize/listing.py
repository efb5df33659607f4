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

from exporter.model import times
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
#: Pages in a row that bring nothing before a sweep leaves the rest to the next one: the listing moves too much.
STUCK_MAX = 3

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
        since = cursor.get("since")  # from the future: written by a clock, or of a process, that was wrong
        self._since: float | None = None if since is not None and since > times.latest(now) else since
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
        self._taken: list[tuple[int, int, float | None]] = []  # ranks handed out: from, to, the newest creation time
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
                yield top, self._mark(total=top.total, newest=max(top.moments, default=None))
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
            rows = await self._find(self._number_of(self._bottom - 1))
            self._bottom = min(self._bottom, self._low(rows))
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
        if near is not top:
            yield self._took(top), None
        leap = 1
        while not self._settles(near, lowest) and self._left > 0:
            yield self._took(near), None
            rank = max(lowest, self._low(near) - leap * near.size)
            near, leap = await self._find(self._number_of(rank)), leap * 2
        self._bottom = self._low(near)
        if not self._settles(near, lowest):
            self.truncated = True
            yield near, None
            return
        goal = top.ranks(self._known_order)[1]
        edge = self._through(self._low(self._took(near)))
        yield near, self._mark_up_to(edge)
        stuck = 0
        while edge < goal:
            if self._left <= 0 or stuck == STUCK_MAX:
                self.truncated = True
                return
            rows = self._took(await self._find(self._number_of(edge)))
            before, edge = edge, self._through(edge)
            stuck = stuck + 1 if edge == before else 0
            yield rows, None if stuck else self._mark_up_to(edge)

    async def _ends(self, top: Rows | None) -> tuple[Rows, Rows]:
        """The page where the unknown begins, as far as the number of rows tells, and the page of the newest."""
        if top is not None:
            return top, top
        rank = max(0, (self._total or 0) - 1)
        if self._order == "newest_first":
            top = await self._find(0)
            return (await self._find(self._number_of(rank)) if rank < self._low(top) else top), top
        near = await self._find(rank // self._size)
        top = near if near.number == near.pages - 1 else await self._find(near.pages - 1)
        return (near if near.number < top.number else top), top

    def _settles(self, rows: Rows, lowest: int) -> bool:
        """Whether a sweep need not look below this page: what is there is known, or too old to be asked for."""
        return self._low(rows) <= lowest or (bool(rows.moments) and min(rows.moments) <= self._floor)

    def _took(self, rows: Rows) -> Rows:
        """Remember which ranks are on a page that is handed out."""
        low, high = rows.ranks(self._known_order)
        self._taken.append((low, high, max(rows.moments, default=None)))
        return rows

    def _through(self, rank: int) -> int:
        """The first rank from this one on that is on no page handed out.

        A new row pushes others on to the next page of a listing that is sorted newest first. So between two pages read
        one after the other some are missing, and found when the page below is read again.
        """
        while (beyond := max((high for low, high, _ in self._taken if low <= rank), default=rank)) > rank:
            rank = beyond
        return rank

    def _mark_up_to(self, edge: int) -> dict[str, Any] | None:
        """The cursor that says: everything below this rank has been read."""
        moments = [newest for _, high, newest in self._taken if high <= edge and newest is not None]
        return None if self._shrunk else self._mark(total=edge, newest=max(moments, default=None))

    @property
    def _known_order(self) -> Order:
        return self._order or "unordered"

    def _low(self, rows: Rows) -> int:
        return rows.ranks(self._known_order)[0]

    def _number_of(self, rank: int) -> int:
        """The page with this rank on it, by the number of rows the last answer told."""
        newer = max(0, (self._seen_total or 0) - 1 - rank)
        return (newer if self._order == "newest_first" else rank) // self._size

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
            yield rows, self._mark(total=None, page=number, began_total=began_total)
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
        yield rows, self._mark(total=total_after, newest=max(moments, default=None), scanned_at=self._now)

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
        newest: float | None = None,
        page: int | None = None,
        began_total: int | None = None,
        scanned_at: float | None = None,
    ) -> dict[str, Any]:
        """The cursor that says: everything created up to ``newest`` has been read, or all pages before ``page``."""
        if page is None:
            nothing = self._now if self._since is None else self._since
            self._since = max(self._since or 0.0, nothing if newest is None else newest)
        return {
            "order": self._order,
            "size": self._size,
            "since": self._since,
            "total": total,
            "page": page,
            "began_total": began_total,
            "scanned_at": scanned_at if scanned_at is not None else self._scanned_at,
        }
