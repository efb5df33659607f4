"""What a transaction is, without an engine: a generator that yields statements and is sent their rows.

So the SQL and the logic between two statements are written once, and an engine decides how to run them: SQLite on its
writer thread, PostgreSQL on a connection. Placeholders are ``$1``, ``$2``, …: SQLite takes them rewritten to ``?1``.
"""

from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from functools import lru_cache
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

Row = tuple[Any, ...]
#: One statement and its values.
Statement = tuple[str, Sequence[Any]]
#: Yields statements, is sent their rows, returns a T. Runs inside one transaction.
Script = Generator[Statement, list[Row], T]

#: Tells the password of a database, as it is by now; None where the URL or the environment has it.
Password = Callable[[], str | None]

#: Rows in one multi-row statement. Engines keep statements prepared, and each number of rows is one of its own: few
#: and short ones, because a thousand of up to a thousand rows would take hundreds of megabytes.
ROWS_PER_STATEMENT_MAX = 100


class StoreError(Exception):
    """The store cannot do what was asked; one line that says why and what to do."""


class StoreInUse(StoreError):
    """Another process of ours has the database open to write."""


class StoreUnavailable(StoreError):
    """The store itself is in trouble: whatever is asked of it would fail, so come back later."""


class Engine(Protocol):
    """Runs scripts, each in a transaction of its own that is durable when ``run`` returns.

    Trouble is what no script is the cause of: the disk is full, the database is locked, not reachable, damaged, or no
    longer the one that the configuration names. From the first sign of it on, ``run`` raises ``StoreUnavailable`` at
    once, without trying, until a ``probe`` succeeds.
    """

    @property
    def where(self) -> str:
        """How a person finds the database; no secret."""

    @property
    def trouble(self) -> str | None:
        """Why nothing can be stored now, in one line with the way out; None while it works.

        Set as well when a commit succeeded, but in a place that is no longer the configured one.
        """

    @property
    def is_shared(self) -> bool:
        """Whether other processes may write to the database as well."""

    async def run(self, script: Script[T], *, sources: Collection[str] | None = None) -> T:
        """Run one script. Where it says which ``sources`` it is about, it may overlap with what other processes do to
        other sources; without, it has the database alone.
        """

    async def check(self) -> None:
        """Raise ``StoreUnavailable`` if the database is not the configured one any more. Writes nothing, waits for
        nobody.
        """

    async def probe(self) -> None:
        """Store something that needs new room, and forget it again: ends the trouble, or raises ``StoreUnavailable``.

        That old room can be written again says nothing: a full disk allows it.
        """

    async def close(self) -> None: ...


def values(rows: int, columns: int, *, start: int = 1) -> str:
    """``($1, $2), ($3, $4)``: placeholders for a multi-row statement."""
    numbers = iter(range(start, start + rows * columns))
    return ", ".join("(" + ", ".join(f"${next(numbers)}" for _ in range(columns)) + ")" for _ in range(rows))


def chunks(items: Iterable[Row], size: int = ROWS_PER_STATEMENT_MAX) -> list[list[Row]]:
    """The items in lists of at most ``size``."""
    rows = list(items)
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def flat(rows: Iterable[Row]) -> list[Any]:
    """The values of all rows, one after the other."""
    return [value for row in rows for value in row]


def select_in(columns: str, table: str, key: str, keys: Iterable[Row]) -> Script[list[Row]]:
    """Rows of a table whose key (``"source, run_id"``) is among the given ones."""
    found: list[Row] = []
    for part in chunks(keys):
        width = key.count(",") + 1
        where = f"({key}) IN (VALUES {values(len(part), width)})"
        found += yield f"SELECT {columns} FROM {table} WHERE {where}", flat(part)
    return found


def insert(table: str, columns: str, rows: Iterable[Row], *, conflict: str) -> Script[None]:
    """Multi-row insert with an ``ON CONFLICT`` clause."""
    for part in chunks(rows):
        width = columns.count(",") + 1
        yield _insert_sql(table, columns, len(part), width, conflict), flat(part)


@lru_cache(maxsize=4096)
def _insert_sql(table: str, columns: str, rows: int, width: int, conflict: str) -> str:
    return f"INSERT INTO {table} ({columns}) VALUES {values(rows, width)} ON CONFLICT {conflict}"
