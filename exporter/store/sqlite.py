"""SQLite: one file, one read-write connection, one thread that owns it.

SQLite releases up to 3.51.2 can corrupt a WAL when two connections write and checkpoint at once; so there is exactly
one, and a lock keeps a second process out (``place``). Every commit is on disk (``synchronous=FULL``) before ``run``
returns, in the file that the configuration names. Who only reads, as some commands do, neither writes nor checkpoints,
and needs no lock.
"""

import asyncio
import re
import sqlite3
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from exporter.log import get_logger
from exporter.signals import keep_out
from exporter.store.place import LOG_BYTES_MAX, Place
from exporter.store.schema import check_version, migrate
from exporter.store.script import Script, StoreError, StoreUnavailable

T = TypeVar("T")
log = get_logger(__name__)

_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
    "PRAGMA cache_size=-65536",
)
#: Milliseconds to wait for a lock that another process holds: at the start, and while senders wait for an answer.
OPENING_WAIT_MS, WAIT_MS = 5000, 1000
#: Bytes that a probing write stores while all is well, and those that must find room before trouble is over: a disk
#: that is full but for some kilobytes would be in trouble again with the next batch.
PROBE_BYTES, RECOVERY_BYTES = 64 * 1024, 256 * 1024
#: Results of SQLite that no statement is the cause of, with what a person should know of them.
_TROUBLE = {
    "SQLITE_BUSY": "another process has locked the database: end it (an open sqlite3, a backup)",
    "SQLITE_LOCKED": "another process has locked the database: end it (an open sqlite3, a backup)",
    "SQLITE_PROTOCOL": "another process has locked the database: end it (an open sqlite3, a backup)",
    "SQLITE_FULL": "the disk of the database is full: make room on it",
    "SQLITE_IOERR": "the disk of the database fails: look at the system's log",
    "SQLITE_READONLY": "the database may only be read: look at its permissions and at how its disk is mounted",
    "SQLITE_PERM": "the database may not be used: look at its permissions",
    "SQLITE_CANTOPEN": "the files of the database cannot be opened: look at its folder",
    "SQLITE_NOMEM": "there is no memory left",
}
_DAMAGE = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
_DAMAGED = "the database is damaged: restore a backup and restart the service"
_LOG_CUT = "the database's -wal file was cut short while in use: restore a backup and restart the service"
_TROUBLE |= dict.fromkeys(_DAMAGE, _DAMAGED)


@lru_cache(maxsize=4096)
def _numbered(sql: str) -> str:
    return re.sub(r"\$(\d+)", r"?\1", sql)


class SqliteEngine:
    """Runs scripts one after the other on its thread. Make one with ``open``."""

    def __init__(self, connection: sqlite3.Connection, place: Place | None, thread: ThreadPoolExecutor) -> None:
        """Without a ``place`` it only reads."""
        self._connection = connection
        self._place = place
        self._thread = thread
        self._is_damaged = False
        self._log_is_large = False
        self._trouble: str | None = None

    @property
    def where(self) -> str:
        return "" if self._place is None else str(self._place.path)

    @property
    def is_shared(self) -> bool:
        return False

    @property
    def trouble(self) -> str | None:
        return self._trouble

    @classmethod
    async def open(cls, path: Path) -> "SqliteEngine":
        """Open or create the database at ``path`` and bring it to the newest schema. Raises ``StoreError``."""
        place = Place.take(path)
        thread = ThreadPoolExecutor(1, thread_name_prefix="store", initializer=keep_out)
        engine = None
        try:
            connection = await asyncio.get_running_loop().run_in_executor(thread, _connect, place.real)
            engine = cls(connection, place, thread)
            await engine.run(migrate())
            await engine._call(engine._opened)
        except BaseException as exc:
            if engine is None:
                thread.shutdown(wait=True)
                place.release()
            else:
                await engine.close()
            if isinstance(exc, StoreUnavailable | sqlite3.Error):
                raise StoreError(f"cannot open the database {path}: {explained(exc)}") from None
            raise
        log.debug("store open", path=str(path), sqlite=sqlite3.sqlite_version)
        return engine

    @classmethod
    async def open_to_read(cls, path: Path) -> "SqliteEngine":
        """Open an existing database beside the process that uses it, or while none does. Raises ``StoreError``."""
        thread = ThreadPoolExecutor(1, thread_name_prefix="store", initializer=keep_out)
        engine = None
        try:
            connection = await asyncio.get_running_loop().run_in_executor(thread, _connect_to_read, path)
            engine = cls(connection, None, thread)
            await engine.run(check_version())
        except BaseException as exc:
            if engine is not None:
                await engine.close()
            thread.shutdown(wait=True)
            if isinstance(exc, StoreUnavailable | sqlite3.Error):
                raise StoreError(f"cannot open the database {path}: {explained(exc)}") from None
            raise
        return engine

    async def run(self, script: Script[T], *, sources: Collection[str] | None = None) -> T:
        """Run one script in one transaction; it is on disk when this returns. Each has the database alone."""
        return await self._call(lambda: self._transact(script))

    async def check(self) -> None:
        """See ``Engine``. Not on the store's thread, which may be at work or hang."""
        problem = None if self._place is None else await asyncio.to_thread(self._place.problem)
        if problem is not None:
            self._trouble = problem
            self._thread.submit(self._save)
            raise StoreUnavailable(problem)
        if self._place is not None and self._trouble is None and self._place.room() < PROBE_BYTES:
            await self.probe()  # a full disk, unless the log has room that can be used again

    async def probe(self) -> None:
        """See ``Engine``."""
        await self._call(self._probe)

    async def close(self) -> None:
        """Check the log into the database file and let go of it."""
        await self._call(self._disconnect)
        self._thread.shutdown(wait=True)
        if self._place is not None:
            self._place.release()

    async def _call(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _opened(self) -> None:
        self._connection.execute(f"PRAGMA busy_timeout={WAIT_MS}")
        if self._place is not None:
            self._place.know_log()

    def _transact(self, script: Script[T]) -> T:
        if self._trouble is not None:
            raise StoreUnavailable(self._trouble)
        connection = self._connection
        try:
            connection.execute("BEGIN" if self._place is None else "BEGIN IMMEDIATE")
            try:
                sql, values = next(script)
                while True:
                    rows = connection.execute(_numbered(sql), values).fetchall()
                    sql, values = script.send(rows)
            except StopIteration as stop:
                self._must_be_there()
                connection.execute("COMMIT")
                with suppress(StoreUnavailable):  # it is committed; who waits reads ``trouble``
                    self._must_be_there()
                result: T = stop.value
                return result
        except BaseException as exc:
            with suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            if isinstance(exc, sqlite3.Error):
                raise self._refused(exc) from exc
            if isinstance(exc, StoreUnavailable):
                self._save()
            raise

    def _must_be_there(self) -> None:
        problem = None if self._place is None else self._place.problem()
        if self._place is not None and problem is None and self._place.log_was_cut():
            self._is_damaged, problem = True, _LOG_CUT
        if problem is not None:
            self._trouble = problem
            raise StoreUnavailable(problem)

    def _refused(self, exc: sqlite3.Error) -> StoreError:
        """What an error of SQLite means for whoever asked, and for those who will."""
        name, text = _result(exc), explained(exc)
        self._is_damaged = self._is_damaged or name.startswith(_DAMAGE)
        if text == str(exc):
            return StoreError(f"the database refused: {exc}")
        self._trouble = text
        return StoreUnavailable(text)

    def _probe(self) -> None:
        if self._place is None:
            return
        if self._is_damaged or self._place.is_cut:
            raise StoreUnavailable(self._trouble or _DAMAGED)
        connection, size = self._connection, PROBE_BYTES if self._trouble is None else RECOVERY_BYTES
        try:
            if self._place.log_was_cut():
                self._is_damaged, self._trouble = True, _LOG_CUT
                raise StoreUnavailable(_LOG_CUT)
            # With the log emptied, what is written next needs new room. If the database is not in its place, this
            # leaves the file that was moved complete, and nothing beside the file that took its place.
            self._empty_log()
            self._must_be_there()
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("CREATE TABLE IF NOT EXISTS probe (data BLOB NOT NULL)")
            connection.execute("INSERT INTO probe (data) VALUES (randomblob(?1))", (size,))
            connection.execute("DELETE FROM probe WHERE rowid < last_insert_rowid()")
            connection.execute("COMMIT")
            if self._trouble is not None:  # there must be room for it in the database file, too
                self._empty_log()
        except sqlite3.Error as exc:
            with suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            raise self._refused(exc) from exc
        self._trouble = None

    def _empty_log(self) -> None:
        """Bring the log into the database file, and the log to no length. Somebody who reads can keep both back."""
        self._connection.execute("PRAGMA busy_timeout=0")
        try:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.OperationalError as exc:
            if not _result(exc).startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
                raise
        finally:
            self._connection.execute(f"PRAGMA busy_timeout={WAIT_MS}")
            if self._place is not None:
                self._place.log_emptied()
        is_large = self._place is not None and self._place.log_bytes() > LOG_BYTES_MAX
        if is_large and not self._log_is_large:
            log.warning(
                "the database's log grows: a program reads it and does not end",
                remedy="end it before the disk is full: an open sqlite3, a backup that hangs",
                bytes=0 if self._place is None else self._place.log_bytes(),
            )
        self._log_is_large = is_large

    def _save(self) -> None:
        """Bring what only the log holds into the database file, wherever both are now."""
        if self._place is not None and not self._is_damaged and not self._place.is_cut:
            with suppress(sqlite3.Error):
                self._empty_log()

    def _disconnect(self) -> None:
        if self._place is not None and self._place.problem() is not None:
            self._save()  # SQLite itself leaves the log as it is if the database was moved
        self._connection.close()


def _result(exc: Exception) -> str:
    return getattr(exc, "sqlite_errorname", None) or ""


def explained(exc: Exception) -> str:
    """The error in a person's words with SQLite's behind, or SQLite's alone."""
    found = [text for kind, text in _TROUBLE.items() if _result(exc).startswith(kind)]
    return f"{found[0]} ({exc})" if found else str(exc)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=OPENING_WAIT_MS / 1000)
    try:
        for pragma in _PRAGMAS:
            connection.execute(pragma)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect_to_read(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise StoreError(f"there is no database {path} yet: run the service once")
    uri = f"file:{quote(str(path))}?mode=ro"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA busy_timeout=5000")
    connection.execute("PRAGMA query_only=ON")
    return connection
