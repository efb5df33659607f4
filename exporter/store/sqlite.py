"""SQLite: one file, one read-write connection, one thread that owns it.

SQLite releases up to 3.51.2 can corrupt a WAL when two connections write and checkpoint at once; so there is exactly
one, and a lock on a file beside the database keeps a second process out. Every commit is on disk (``synchronous=FULL``)
before ``run`` returns. Who only reads, as some commands do, neither writes nor checkpoints, and needs no lock.
"""

import asyncio
import fcntl
import re
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import IO, TypeVar
from urllib.parse import quote

from exporter.log import get_logger
from exporter.store.schema import check_version, migrate
from exporter.store.script import Script, StoreError

T = TypeVar("T")
log = get_logger(__name__)

_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA busy_timeout=5000",
    "PRAGMA foreign_keys=ON",
    "PRAGMA cache_size=-65536",
)


@lru_cache(maxsize=4096)
def _numbered(sql: str) -> str:
    return re.sub(r"\$(\d+)", r"?\1", sql)


class SqliteEngine:
    """Runs scripts one after the other on its thread. Make one with ``open``."""

    def __init__(self, connection: sqlite3.Connection, lock: IO[str] | None, thread: ThreadPoolExecutor) -> None:
        """Without a ``lock`` it only reads."""
        self._connection = connection
        self._lock = lock
        self._thread = thread

    @classmethod
    async def open(cls, path: Path) -> "SqliteEngine":
        """Open or create the database at ``path`` and bring it to the newest schema. Raises ``StoreError``."""
        lock = _lock(path)
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        try:
            connection = await asyncio.get_running_loop().run_in_executor(thread, _connect, path)
            engine = cls(connection, lock, thread)
            await engine.run(migrate())
        except BaseException as exc:
            thread.shutdown(wait=True)
            lock.close()
            if isinstance(exc, sqlite3.Error):
                raise StoreError(f"cannot open the database {path}: {exc}") from None
            raise
        log.debug("store open", path=str(path), sqlite=sqlite3.sqlite_version)
        return engine

    @classmethod
    async def open_to_read(cls, path: Path) -> "SqliteEngine":
        """Open an existing database beside the process that uses it, or while none does. Raises ``StoreError``."""
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        engine = None
        try:
            connection = await asyncio.get_running_loop().run_in_executor(thread, _connect_to_read, path)
            engine = cls(connection, None, thread)
            await engine.run(check_version())
        except BaseException as exc:
            if engine is not None:
                await engine.close()
            thread.shutdown(wait=True)
            if isinstance(exc, sqlite3.Error):
                raise StoreError(f"cannot open the database {path}: {exc}") from None
            raise
        return engine

    async def run(self, script: Script[T]) -> T:
        """Run one script in one transaction; it is on disk when this returns."""
        return await self._call(lambda: self._transact(script))

    async def close(self) -> None:
        """Check the log into the database file and let go of it."""
        await self._call(self._connection.close)
        self._thread.shutdown(wait=True)
        if self._lock is not None:
            self._lock.close()

    async def _call(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _transact(self, script: Script[T]) -> T:
        connection = self._connection
        try:
            connection.execute("BEGIN" if self._lock is None else "BEGIN IMMEDIATE")
            try:
                sql, values = next(script)
                while True:
                    rows = connection.execute(_numbered(sql), values).fetchall()
                    sql, values = script.send(rows)
            except StopIteration as stop:
                connection.execute("COMMIT")
                result: T = stop.value
                return result
        except BaseException as exc:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if isinstance(exc, sqlite3.Error):
                raise StoreError(f"the database refused: {exc}") from exc
            raise


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    for pragma in _PRAGMAS:
        connection.execute(pragma)
    return connection


def _connect_to_read(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise StoreError(f"there is no database {path} yet: run the service once")
    uri = f"file:{quote(str(path))}?mode=ro"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA busy_timeout=5000")
    connection.execute("PRAGMA query_only=ON")
    return connection


def _lock(path: Path) -> IO[str]:
    try:
        handle = open(f"{path}.lock", "w")  # noqa: SIM115 (held until close)
    except OSError as exc:
        raise StoreError(f"cannot create the database {path}: {exc.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise StoreError(f"another process is using the database {path}") from None
    return handle
