"""PostgreSQL: one connection a process, each script in one transaction that is durable when ``run`` returns.

**Two processes may write.** What one transaction reads must stay so until it has written, so each takes a lock first,
which the database gives back at its end: on the sources it is about, or, where it does not say, on all of them. The
locks are advisory ones of transactions, and nothing else is kept of a connection between two of them, so a pooling
proxy in transaction mode does as well. Within the lock each statement sees what others committed before it.

**A commit whose answer is lost** may have come true. Its transaction has a number, and the database says what became
of it: ``run`` does not return before that is known, and nothing else is run meanwhile.

PostgreSQL has no character NUL in a text, and keys of ours and names of strangers have: it is written as two others.
"""

import asyncio
import getpass
import hashlib
import os
import ssl
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import asyncpg

from exporter.log import get_logger
from exporter.store import journal
from exporter.store.address import FILES, SYSTEM, mistake, options, place
from exporter.store.schema import check_version, migrate
from exporter.store.script import Password, Script, StoreError, StoreUnavailable

T = TypeVar("T")
log = get_logger(__name__)

#: Seconds until a connection is there, and between two attempts to learn what became of a commit.
CONNECT_SECONDS_MAX, ASK_INTERVAL = 10.0, 1.0
#: Seconds that one statement may take, and that others may keep its lock; beyond that the database ends it. Nobody who
#: was stopped in the middle of a transaction keeps others waiting longer than ``IDLE_SECONDS_MAX``.
STATEMENT_SECONDS_MAX, LOCK_SECONDS_MAX, IDLE_SECONDS_MAX = 60, 20, 6
#: What a statement may take of who listens: it waits for nobody.
LISTENER_SECONDS_MAX = 4
#: What a migration may take: it rewrites every row.
MIGRATION_SECONDS_MAX = 3600
#: The lock that a transaction shares which says what it is about, and that others have alone.
EVERYTHING = 0x6175746F6D617465
_BYTES = 8192  # that a probing write stores
_READS = "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
_WRITES = "BEGIN TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE; SET LOCAL synchronous_commit = on"
#: What a driver raises whose server fails it, or goes away in the middle of anything.
_BROKEN = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)
_TLS = "look at sslmode and sslrootcert of store.url"
#: Errors that no statement is the cause of, by what their code (SQLSTATE) begins with.
_TROUBLE = {
    "08": "the connection to the database was lost",
    "25006": "the database may only be read: it is a standby, or its disk is full",
    "25P": "the database ended the transaction: it took too long",
    "28000": "the database does not let us in: look at the user and sslmode of store.url, and at its pg_hba.conf",
    "28": "the database does not let us in: look at the user of store.url and at store.password",
    "3D000": "there is no such database: create it",
    "42501": "the user of store.url lacks rights in the database: it must own its schema",
    "53100": "the disk of the database is full: make room on it",
    "53300": "the database has no connection left: raise max_connections, or end what holds them",
    "53": "the database lacks memory or other means",
    "55P03": "others keep their lock on the database: look at pg_stat_activity",
    "57014": "the database took too long: look at pg_stat_activity",
    "57": "the database is shutting down or starting",
    "58": "the disk of the database fails: look at the system's log",
    "XX": "the database is damaged: restore a backup",
}


class PostgresEngine:
    """Runs scripts one after the other. Make one with ``open``."""

    def __init__(
        self, url: str, password: Password | None, *, to_read: bool, on_news: Callable[[str], object] | None = None
    ) -> None:
        """Raises ``StoreError`` if the URL is none."""
        if (wrong := mistake(url)) is not None:
            raise StoreError(f"store.url: {wrong}")
        self._url = url
        self._password = password
        self._to_read = to_read
        self._on_news = on_news
        # Who listens has to know soon that nobody is there.
        self._seconds, self._patience = STATEMENT_SECONDS_MAX, LOCK_SECONDS_MAX
        if on_news is not None:
            self._seconds, self._patience = LISTENER_SECONDS_MAX, 0
        self._turn = asyncio.Lock()
        self._connection: asyncpg.Connection[Any] | None = None
        self._trouble: str | None = None

    @property
    def where(self) -> str:
        return place(self._url)

    @property
    def is_shared(self) -> bool:
        return not self._to_read

    @property
    def trouble(self) -> str | None:
        return self._trouble

    @classmethod
    async def open(cls, url: str, *, password: Password | None = None) -> "PostgresEngine":
        """Connect, and bring the database to the newest schema, one process at a time. Raises ``StoreError``."""
        engine = cls(url, password, to_read=False)
        try:
            await engine._transact(_prepare(), None, seconds=MIGRATION_SECONDS_MAX)
        except StoreUnavailable as exc:
            await engine.close()
            raise StoreError(f"cannot open the database {engine.where}: {exc}") from None
        except BaseException:
            await engine.close()
            raise
        return engine

    @classmethod
    async def open_to_read(cls, url: str, *, password: Password | None = None) -> "PostgresEngine":
        """Connect to read, beside those who write. Raises ``StoreError``."""
        engine = cls(url, password, to_read=True)
        try:
            await engine.run(check_version())
        except StoreUnavailable as exc:
            await engine.close()
            raise StoreError(f"cannot open the database {engine.where}: {exc}") from None
        except StoreError as exc:
            await engine.close()
            if "schema_version" in str(exc):
                raise StoreError(f"the database {engine.where} is empty: run the service once") from None
            raise
        except BaseException:
            await engine.close()
            raise
        return engine

    @classmethod
    def open_to_listen(
        cls, url: str, on_news: Callable[[str], object], *, password: Password | None = None
    ) -> "PostgresEngine":
        """Connect beside another engine of this process: scripts take no locks and wait for none of those.

        ``on_news`` is called with what anybody says on the channel of the journal, while the connection can hear it: a
        proxy may keep that from us. It connects with the first script.
        """
        return cls(url, password, to_read=False, on_news=on_news)

    async def run(self, script: Script[T], *, sources: Collection[str] | None = None) -> T:
        """Run one script in one transaction; it is durable when this returns. See ``Engine``."""
        if self._trouble is not None and self._on_news is None:
            raise StoreUnavailable(self._trouble)
        running = asyncio.ensure_future(self._transact(script, sources, seconds=self._seconds))
        running.add_done_callback(_noticed)
        return await asyncio.shield(running)

    async def check(self) -> None:
        """See ``Engine``."""
        if self._trouble is None and self._connection is not None and self._connection.is_closed():
            self._trouble = _TROUBLE["08"]
        if self._trouble is not None:
            raise StoreUnavailable(self._trouble)

    async def probe(self) -> None:
        """See ``Engine``."""
        await self._transact(_probe(), ())
        self._trouble = None

    async def close(self) -> None:
        """Let the transaction under way end, and let go of the connection."""
        async with self._turn:
            await self._disconnect()

    async def _transact(
        self, script: Script[T], sources: Collection[str] | None, *, seconds: int = STATEMENT_SECONDS_MAX
    ) -> T:
        async with self._turn:
            try:
                connection = await self._connected()
                return await self._in_transaction(connection, script, sources, seconds)
            except _BROKEN as exc:
                raise self._refused(exc) from exc
            except BaseException:
                if self._connection is not None and self._connection.is_in_transaction():
                    await self._disconnect()
                raise

    async def _in_transaction(
        self, connection: "asyncpg.Connection[Any]", script: Script[T], sources: Collection[str] | None, seconds: int
    ) -> T:
        number: str | None = None
        async with asyncio.timeout(None if self._to_read else seconds + self._patience):
            await connection.execute(self._begin(sources, seconds))
        try:
            sql, values = next(script)
            while True:
                rows = await connection.fetch(sql, *map(_sent, values), timeout=seconds + self._patience)
                sql, values = script.send([tuple(map(_read, row)) for row in rows])
        except StopIteration as stop:
            if not self._to_read:
                number = await connection.fetchval("SELECT pg_current_xact_id_if_assigned()::text")
            await self._commit(connection, number)
            result: T = stop.value
            return result
        except BaseException:
            with suppress(*_BROKEN):
                await connection.execute("ROLLBACK", timeout=CONNECT_SECONDS_MAX)
            raise

    def _begin(self, sources: Collection[str] | None, seconds: int) -> str:
        limits = f"SET LOCAL statement_timeout = '{seconds}s'; SET LOCAL lock_timeout = '{LOCK_SECONDS_MAX}s'"
        if self._to_read:  # nobody waits for who reads: it may take its time between two statements
            return f"{_READS}; {limits}; SET LOCAL idle_in_transaction_session_timeout = 0"
        limits += f"; SET LOCAL idle_in_transaction_session_timeout = '{IDLE_SECONDS_MAX}s'"
        if self._on_news is not None:
            return f"{_WRITES}; {limits}"
        if sources is None:
            return f"{_WRITES}; {limits}; SELECT pg_advisory_xact_lock({EVERYTHING})"
        locks = [f"SELECT pg_advisory_xact_lock_shared({EVERYTHING})"]
        locks += [f"SELECT pg_advisory_xact_lock({key})" for key in sorted(map(lock_of, sources))]
        return f"{_WRITES}; {limits}; {'; '.join(locks)}"

    async def _commit(self, connection: "asyncpg.Connection[Any]", number: str | None) -> None:
        try:
            await connection.execute("COMMIT", timeout=CONNECT_SECONDS_MAX)
        except _BROKEN as exc:
            if number is None:  # nothing was written
                raise
            self._trouble = _explained(exc)
            log.warning("the answer to a commit was lost", database=self.where, reason=self._trouble)
            if not await self._came_true(number):
                raise

    async def _came_true(self, number: str) -> bool:
        """Whether a transaction was committed, asked until the database answers."""
        while True:
            await self._disconnect()
            with suppress(*_BROKEN):
                connection = await self._connected()
                fate = await connection.fetchval("SELECT pg_xact_status($1::text::xid8)", number)
                if fate != "in progress":  # that ends by itself, once the database knows that its client is gone
                    return bool(fate == "committed")
            await asyncio.sleep(ASK_INTERVAL)

    async def _connected(self) -> "asyncpg.Connection[Any]":
        if self._connection is None or self._connection.is_closed():
            _find_user(self._url)
            _find_files(self._url)
            try:
                self._connection = await asyncpg.connect(
                    self._url,
                    password=None if self._password is None else await asyncio.to_thread(self._password),
                    ssl=True if options(self._url).get("sslrootcert") == SYSTEM else None,
                    timeout=CONNECT_SECONDS_MAX,
                    statement_cache_size=0,  # a proxy gives each transaction another connection
                    server_settings={"application_name": journal.READER if self._to_read else journal.APPLICATION},
                )
                if self._on_news is not None:
                    on_news = self._on_news
                    await self._connection.add_listener(journal.CHANNEL, lambda *heard: _hear(on_news, heard[-1]))
            except ssl.SSLError:  # some are a ValueError as well
                raise
            except (ValueError, OverflowError) as exc:
                raise StoreError(f"store.url does not say where a PostgreSQL is: {_line(exc)}") from None
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and not connection.is_closed():
            try:
                await connection.close(timeout=1.0)
            except _BROKEN:
                connection.terminate()

    def _refused(self, exc: Exception) -> StoreError:
        """What an error means for whoever asked, and for those who will."""
        text = _explained(exc)
        connection = self._connection
        if connection is not None and (text is not None or connection.is_closed()):  # it may be in any state
            connection.terminate()
            self._connection = None
        if text is None:
            return StoreError(f"the database refused: {_line(exc)}")
        if not self._to_read:
            self._trouble = text
        return StoreUnavailable(text)


def _noticed(transaction: "asyncio.Future[Any]") -> None:
    """Whoever waited for it may have gone: then nobody else takes note of how it failed."""
    if not transaction.cancelled():
        transaction.exception()


def _hear(on_news: Callable[[str], object], said: object) -> None:
    on_news(str(said))


def _find_user(url: str) -> None:
    """Raises ``StoreError`` if nothing names one: then it is this process's own, which in a container has no name."""
    if urlsplit(url).username is None and "user" not in options(url) and not os.environ.get("PGUSER"):
        try:
            getpass.getuser()
        except (KeyError, OSError):
            raise StoreError(
                "store.url names no user, and this process runs as one without a name: "
                "write postgresql://USER@HOST/DATABASE"
            ) from None


def _find_files(url: str) -> None:
    """Raises ``StoreError`` if a file that the URL names cannot be read: OpenSSL would not say which."""
    for name, file in options(url).items():
        if name in FILES and file != SYSTEM:
            try:
                Path(file).read_bytes()
            except OSError as exc:
                raise StoreError(f"store.url: cannot read its {name}, {file}: {exc.strerror}") from None


def lock_of(source: str) -> int:
    """The number of the lock of a source: a signed one of 64 bits."""
    return int.from_bytes(hashlib.sha256(f"source\0{source}".encode()).digest()[:8], signed=True)


def _explained(exc: Exception) -> str | None:
    """The error in a person's words with the database's behind; None where the statement is the cause of it."""
    if not isinstance(exc, asyncpg.PostgresError):
        if isinstance(exc, TimeoutError):
            return "the database does not answer"
        if isinstance(exc, asyncpg.InternalClientError):
            return _TROUBLE["08"]
        if isinstance(exc, ssl.SSLCertVerificationError):
            return f"the certificate of the database is refused: {exc.verify_message.rstrip('.')}; {_TLS}"
        if isinstance(exc, ssl.SSLError):
            return f"no TLS with the database: {_line(exc)}; {_TLS}"
        if "rejected SSL upgrade" in str(exc):
            return f"the database has no TLS; {_TLS}"
        return f"the database cannot be reached: {_line(exc)}"
    code = exc.sqlstate or ""
    found = [text for kind, text in _TROUBLE.items() if code.startswith(kind)]
    return f"{found[0]} ({_line(exc)})" if found else None


def _line(exc: Exception) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0]


def _sent(value: Any) -> Any:
    if isinstance(value, str) and ("\0" in value or "\1" in value):
        return value.replace("\1", "\1\1").replace("\0", "\1\2")
    return value


def _read(value: Any) -> Any:
    if isinstance(value, str) and "\1" in value:
        return "\1".join(part.replace("\1\2", "\0") for part in value.split("\1\1"))
    return value


def _prepare() -> Script[None]:
    """Bring the schema up to date, with what several processes need to agree."""
    yield from migrate()
    for statement in journal.TABLES:
        yield statement, ()


def _probe() -> Script[None]:
    yield "CREATE TABLE IF NOT EXISTS probe (data TEXT NOT NULL)", ()
    yield "DELETE FROM probe", ()
    yield f"INSERT INTO probe (data) SELECT string_agg(md5(n::text), '') FROM generate_series(1, {_BYTES // 32}) n", ()
