"""A whole ledger, from one database to another of either kind: everything, in one transaction on each side.

The two transactions run at the same time, each in an event loop of its own, and rows pass from one to the other a page
at a time: however large the ledger is, a few pages of it are in memory.
"""

import asyncio
import hashlib
import queue
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import NamedTuple, TypeVar

import orjson

from exporter.store.script import Engine, Row, Script, StoreError, insert, values

T = TypeVar("T")
#: Rows read at a time, and how many times as many may wait to be written.
ROWS_MAX, PAGES_MAX = 500, 4
#: Seconds between two looks whether the other side has given up.
LOOK_INTERVAL = 0.2


class Columns(NamedTuple):
    """The columns of a table: what a row is found by, and the others."""

    key: str
    others: str

    def __str__(self) -> str:
        return f"{self.key}, {self.others}"


#: Every table of the ledger. What is kept of the schema, of probing and of replicas is each database's own affair.
TABLES = {
    "sources": Columns("source", "first_sweep_at, pruned_until, read_until"),
    "workflows": Columns("source, workflow_id", "gone_at, data"),
    "runs": Columns("source, run_id", "workflow_id, state, result, finished_at, counted_at, heard, data"),
    "dead_letters": Columns("source, dead_letter_id", "workflow_id, run_id, opened_at, resolved_at, reruns, data"),
    "traces": Columns("source, run_id, attempt", "counted_at, settled, data"),
    "tallies": Columns("metric, source, workflow_id, labels, part", "value"),
    "cursors": Columns("source, stream, key", "value"),
    "retries": Columns("id", "source, root, dead_letter_id, shadow, state, outcome, claimed_at, data"),
    "lineage": Columns("source, run_id", "root, retry_id"),
    "paces": Columns("source", "full_at"),
    "overrides": Columns("id", "until, ended_at, data"),
    "decisions": Columns("source, dead_letter_id", "policy, decision, reason, waited, waits_since"),
    "audit": Columns("seq", "at, data, hash"),
    "retry_state": Columns("source, kind, key", "data"),
    "operations": Columns("id", "created_at, ended_at, data"),
    "operation_items": Columns("operation_id, source, dead_letter_id", "state, detail"),
    "repairs": Columns(
        "id", "source, subject, subject_id, action, root, operation_id, state, outcome, closed_at, data"
    ),
}
Open = Callable[[], Awaitable[Engine]]
#: A table and some of its rows.
Page = tuple[str, list[Row]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """How many rows of each table the ledger has, and whether it was there already, every row of it."""

    rows: dict[str, int]
    was_there: bool


@dataclass(slots=True)
class Digest:
    """The same for the same rows, in whatever order a database gives them."""

    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TABLES, 0))
    sums: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TABLES, 0))

    def add(self, page: Page) -> None:
        table, rows = page
        self.rows[table] += len(rows)
        for row in rows:
            self.sums[table] += int.from_bytes(hashlib.sha256(orjson.dumps(row)).digest())


def copy(source: Open, target: Open) -> Copied:
    """Fill an empty ledger with every row of another, as they were at one moment: all of it or nothing.

    A ledger that is the same already stays as it is; in another nothing is touched: ``StoreError``. What is copied to
    is opened once the first rows are there.
    """
    pipe = _Pipe()

    def read() -> None:
        try:
            _in_loop(source, lambda: _every_page(pipe.put))
            pipe.put(None)
        except BaseException as exc:
            pipe.put(exc)

    with ThreadPoolExecutor(1) as thread:
        thread.submit(read)
        try:
            pages = pipe.pages()
            first = list(islice(pages, 1))
            return _in_loop(target, lambda: _write(chain(first, pages)))
        finally:
            pipe.closed.set()


def _in_loop(opening: Open, script: Callable[[], Script[T]]) -> T:
    async def run() -> T:
        engine = await opening()
        try:
            return await engine.run(script())
        finally:
            await engine.close()

    return asyncio.run(run())


class _Pipe:
    """What was read and is not written yet, a few pages: each side waits for the other."""

    def __init__(self) -> None:
        self._queue = queue.Queue[Page | BaseException | None](PAGES_MAX)
        self.closed = threading.Event()  # nobody takes anything any more

    def put(self, item: Page | BaseException | None) -> None:
        while not self.closed.is_set():
            with suppress(queue.Full):
                return self._queue.put(item, timeout=LOOK_INTERVAL)
        raise StoreError("what was read is not wanted any more")

    def pages(self) -> Iterator[Page]:
        """Each as it comes. What the other side raised is raised here."""
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item


def _every_page(take: Callable[[Page], None]) -> Script[None]:
    """Every row of the ledger, table by table in the order of their keys, a page at a time."""
    for table, columns in TABLES.items():
        width = columns.key.count(",") + 1
        where, last = "", Row()
        while rows := (yield f"SELECT {columns} FROM {table} {where} ORDER BY {columns.key} LIMIT {ROWS_MAX}", last):
            take((table, rows))
            where, last = f"WHERE ({columns.key}) > {values(1, width)}", rows[-1][:width]


def digest() -> Script[Digest]:
    """What tells the ledger from another one."""
    found = Digest()
    yield from _every_page(found.add)
    return found


def _write(pages: Iterable[Page]) -> Script[Copied]:
    there, wanted = (yield from digest()), Digest()
    is_empty = not any(there.rows.values())
    for table, rows in pages:
        wanted.add((table, rows))
        if is_empty:
            yield from insert(table, str(TABLES[table]), rows, conflict="DO NOTHING")
    if is_empty or there == wanted:
        return Copied(rows=wanted.rows, was_there=not is_empty)
    raise StoreError("the ledger to copy to is not empty, and is another one: name an empty database")
