"""The door to the store: everything the rest of the program asks of it, in its own words.

Batches that arrive while a transaction is under way share the next one, so a burst costs few commits and no batch waits
longer than two. ``ingest`` returns once its batch is durable and the in-memory picture (``world``) has it.

Where other processes write to the same database, what they commit is published here as well, in the order in which it
was committed (``journal``).

While the store is in trouble everything is refused at once, with one line in the log when that begins and one when it
ends. It ends when a probing write succeeds (``recover``).
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import orjson

from exporter.log import get_logger
from exporter.model.ledger import Batch, Committed, Folded, FoldRules, Key, Loaded
from exporter.store import address, codec, journal, maintenance
from exporter.store.ingest import ingest
from exporter.store.journal import Journal, LeaseLost
from exporter.store.script import Engine, Password, Script, StoreError, StoreUnavailable
from exporter.store.sqlite import SqliteEngine

T = TypeVar("T")
log = get_logger(__name__)

#: Batches that may wait for a commit; beyond that senders are asked to come back.
PENDING_BATCHES_MAX = 2000
#: Seconds between two probing writes while the store is in trouble.
PROBE_INTERVAL = 3.0
#: A batch that is not stored after so many seconds is refused, and comes again: a disk that hangs says nothing.
COMMIT_SECONDS_MAX = 10.0


class Ledger:
    """The durable record of what was observed and counted."""

    def __init__(
        self,
        engine: Engine,
        rules: Mapping[str, FoldRules],
        *,
        on_commit: Callable[[Committed], None] = lambda committed: None,
        on_error: Callable[[str], None] = lambda operation: None,
        on_up: Callable[[bool], None] = lambda up: None,
        timer: Callable[[str], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """``on_commit`` is called in order of the commits, before those who wait go on; ``on_error`` for each
        operation that failed or was refused, ``on_up`` when the store begins to work or ceases to.
        """
        self._engine = engine
        self._journal = Journal(rules) if engine.is_shared else None
        self.rules = rules
        self.on_commit = on_commit
        self.ahead: Callable[[], Mapping[str, float]] = dict  # by source: seconds its platform's clock is ahead of ours
        self.exports: Callable[[], Collection[str] | None] = lambda: None  # whose traces are ours to export; None: all
        self._on_error = on_error
        self._on_up = on_up
        self._timer = timer
        self._pending: list[_Pending] = []
        self._writer: asyncio.Task[None] | None = None
        self._closed = False
        self._down = asyncio.Event()
        self._refused = 0  # operations, since the store ceased to work
        self.error: str | None = None  # why the store does not work, or why its last operation failed
        on_up(True)

    @property
    def is_full(self) -> bool:
        return len(self._pending) >= PENDING_BATCHES_MAX

    @property
    def is_down(self) -> bool:
        """Whether the store is in trouble, and everything asked of it is refused."""
        return self._down.is_set()

    async def ingest(self, batch: Batch) -> Folded:
        """Fold one batch in.

        Durable when it returns; raises ``StoreError`` when it could not be stored (nothing of it was).
        """
        if self.is_full:
            raise StoreError("too many batches are waiting for the store")
        self._refuse("ingest")
        future: asyncio.Future[Folded] = asyncio.get_running_loop().create_future()
        self._pending.append(_Pending(batch, future, journal.fences()))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_pending(), name="ledger-writer")
        return await future

    async def _write_pending(self) -> None:
        while self._pending:
            waiting, self._pending = self._pending, []
            try:
                await self._write(waiting)
            except Exception as exc:
                if len(waiting) == 1 or isinstance(exc, StoreUnavailable):
                    self._fail(waiting, exc)
                    continue
                for one in waiting:  # one of them may be the cause: each on its own
                    try:
                        await self._write([one])
                    except Exception as alone:
                        self._fail([one], alone)

    async def _write(self, waiting: "list[_Pending]") -> None:
        stalled = asyncio.get_running_loop().call_later(COMMIT_SECONDS_MAX, self._stall, waiting)
        try:
            committed = await self._run(
                "ingest",
                ingest([one.batch for one in waiting], self.rules),
                sources={one.batch.source for one in waiting},
                fences=_together(waiting),
            )
        finally:
            stalled.cancel()
        if self._engine.trouble is not None:  # committed where a restart would not find it
            raise StoreUnavailable(self._engine.trouble)
        for one, outcome in zip(waiting, committed.outcomes, strict=True):
            if not one.future.done():
                one.future.set_result(outcome)

    def _stall(self, writing: "list[_Pending]") -> None:
        """Let nobody wait for a disk that hangs. What is stored in the end after all comes again and counts once."""
        waiting, self._pending = [*writing, *self._pending], []
        error = _hangs()
        self._broke("ingest", error)
        self._fail(waiting, error)

    def _fail(self, waiting: "list[_Pending]", exc: Exception) -> None:
        error = exc if isinstance(exc, StoreError) else StoreError(f"could not store: {type(exc).__name__}")
        if exc is not error:
            log.error("batch not stored", source=waiting[0].batch.source, error=exc)
            error.__cause__ = exc
        for one in waiting:
            if not one.future.done():
                one.future.set_exception(error)

    def _refuse(self, operation: str) -> None:
        """Raise ``StoreUnavailable`` while the store is in trouble, without asking it."""
        if self.is_down:
            self._refused += 1
            self._on_error(operation)
            raise StoreUnavailable(self.error)

    async def _run(
        self,
        operation: str,
        script: Script[Any],
        *,
        sources: Collection[str] | None = None,
        fences: Mapping[str, int] | None = None,
    ) -> Any:
        self._refuse(operation)
        if self._journal is not None:
            fences = journal.fences() if fences is None else fences
            script = self._journal.within(script, sources=sources, fences=fences)
        try:
            with self._timer(operation):
                result = await self._engine.run(script, sources=sources)
        except LeaseLost:
            raise
        except Exception as exc:
            self._broke(operation, exc)
            raise
        if self._engine.trouble is not None:
            self._broke(operation, StoreUnavailable(self._engine.trouble))
        elif not self.is_down:
            self._works()
        if self._journal is not None:
            for committed in self._journal.take(result):
                self.on_commit(committed)
            return result.result
        if isinstance(result, Committed):
            self.on_commit(result)
        return result

    def _broke(self, operation: str, exc: Exception) -> None:
        """Count what failed, and say so if it is the first: what follows only counts."""
        self._on_error(operation)
        self._refused += 1
        is_down = isinstance(exc, StoreUnavailable)
        reason = str(exc) if isinstance(exc, StoreError) else f"the store failed: {type(exc).__name__}"
        if is_down and not self.is_down:
            log.error(
                "nothing can be stored, webhooks get 503",
                operation=operation,
                database=self._engine.where,
                reason=reason,
            )
        elif isinstance(exc, StoreError) and self.error is None:
            log.error("not stored", operation=operation, reason=reason)
        self.error = reason
        self._on_up(False)
        if is_down:
            self._down.set()

    def _works(self) -> None:
        if self.error is not None:
            log.info("the store works again", refused=self._refused)
        self.error, self._refused = None, 0
        self._down.clear()
        self._on_up(True)

    async def check(self) -> str | None:
        """Why the store does not work, None while it does: asks where the database is, but does not write."""
        if not self.is_down:
            try:
                async with asyncio.timeout(COMMIT_SECONDS_MAX):
                    await self._engine.check()
            except TimeoutError:
                self._broke("check", _hangs())
            except StoreError as exc:
                self._broke("check", exc)
        return self.error

    async def probe(self) -> None:
        """Store something that needs room, whatever was before; the end of all trouble. Raises ``StoreError``."""
        try:
            with self._timer("probe"):
                await self._engine.probe()
        except Exception as exc:
            self._broke("probe", exc)
            raise
        self._works()

    async def recover(self, sleep: Callable[[float], Awaitable[None]]) -> None:
        """Probe again and again while the store is in trouble, until cancelled."""
        while True:
            await self._down.wait()
            await sleep(PROBE_INTERVAL)
            with suppress(StoreError):
                await self.probe()

    async def transact(self, operation: str, script: Script[T]) -> T:
        """Run one script in a transaction of its own, durable when this returns; a ``Committed`` is published.

        Raises ``StoreError``.
        """
        result: T = await self._run(operation, script)
        return result

    async def transact_about(self, source: str, operation: str, script: Script[T]) -> T:
        """The same, of a script that is about one source and may overlap with what others do to others."""
        result: T = await self._run(operation, script, sources=[source])
        return result

    async def follow(self) -> None:
        """Hear what other processes have committed. Raises ``StoreError``."""
        if self._journal is not None:
            await self._run("follow", journal.nothing(), sources=())

    async def load(self) -> Loaded:
        """Everything the in-memory picture starts from. Raises ``StoreError``."""
        try:
            loading = _load() if self._journal is None else self._journal.from_here(_load())
            loaded: Loaded = await self._run("load", loading)
        except StoreError:
            raise
        except Exception as exc:
            raise StoreError(
                f"the database holds what this program cannot read ({type(exc).__name__}): it is damaged, or was "
                "written by another version; restore a backup"
            ) from exc
        return loaded

    async def ping(self) -> None:
        """Raise ``StoreError`` unless the store answers."""
        await self._run("ping", maintenance.ping(), sources=())

    async def maintain(
        self, *, now: float, retention: float, clocks: Mapping[str, float | None] | None = None
    ) -> maintenance.Maintained:
        """Expire and prune what is past retention, in bounded steps; count the rows.

        ``clocks`` are the platforms', by source: see ``maintenance.reach``.
        """
        expiring = {source for source, rule in self.rules.items() if not rule.holds_dead_letters}
        reach = maintenance.reach(now=now, retention=retention, clocks=clocks or {})
        horizons: dict[str, float] = await self._run("prune", reach)
        done, is_full = maintenance.Maintained(forgotten_until=max(horizons.values(), default=None)), True
        while is_full:
            script = maintenance.prune(horizons, retention=retention, expiring=expiring)
            step: maintenance.Pruned = await self._run("prune", script)
            done.pruned_runs += step.pruned_runs
            done.pruned_dead_letters += step.pruned_dead_letters
            done.expired += len(step.dead_letters)
            is_full = step.is_full
        if self._journal is not None:
            await self._run("prune", journal.prune(), sources=())
        done.rows = await self._run("count_rows", maintenance.count_rows(), sources=())
        return done

    async def judge_webhooks(self, source: str, *, until: float) -> tuple[int, int, int]:
        """Judge which runs counted up to ``until`` a webhook reported: how many, how many none did, and of how many of
        these one was to be expected. Each run is judged once.
        """
        script = maintenance.judge_webhooks(source, until=until)
        judged: maintenance.Judged = await self._run("judge_webhooks", script, sources=[source])
        return judged.reported, judged.missed, judged.lost

    async def pending_traces(self, *, limit: int, settled_before: float) -> list[maintenance.PendingTrace]:
        """Counted runs whose trace is still to be exported, oldest first; see ``maintenance.pending_traces``."""
        script = maintenance.pending_traces(
            limit=limit, settled_before=settled_before, ahead=self.ahead(), sources=self.exports()
        )
        pending: list[maintenance.PendingTrace] = await self._run("pending_traces", script, sources=())
        return pending

    async def mark_traced(self, keys: list[tuple[str, str, int]]) -> None:
        """Remember that the traces of these attempts (source, run id, attempt) were exported."""
        await self._run("mark_traced", maintenance.mark_traced(keys), sources={source for source, _, _ in keys})

    async def count_pending_traces(self) -> int:
        counting = maintenance.count_pending_traces(self.exports())
        count: int = await self._run("count_pending_traces", counting, sources=())
        return count

    async def mark_folded(self, keys: list[Key]) -> None:
        """Remember which workflows are shown as ``__other__``, so that a restart shows them the same way."""
        await self._run("mark_folded", maintenance.mark_folded(keys), sources={source for source, _ in keys})

    async def close(self) -> None:
        """Finish what is being written and let go of the store; once more does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._writer is not None:
            with suppress(asyncio.CancelledError):
                await self._writer
        await self._engine.close()


class _Pending(NamedTuple):
    """A batch that waits for a commit."""

    batch: Batch
    future: asyncio.Future[Folded]
    fences: Mapping[str, int]


def _together(waiting: "list[_Pending]") -> dict[str, int]:
    """The leases under which batches that share a transaction are written; of two of a source, the older."""
    found: dict[str, int] = {}
    for one in waiting:
        for source, epoch in one.fences.items():
            found[source] = min(epoch, found.get(source, epoch))
    return found


def _hangs() -> StoreUnavailable:
    return StoreUnavailable(f"the database, or its disk, hangs: it has not answered for {COMMIT_SECONDS_MAX:.0f} s")


def _load() -> Script[Loaded]:
    loaded = Loaded()
    for source, first, read in (yield "SELECT source, first_sweep_at, read_until FROM sources", ()):
        loaded.first_sweeps[source], loaded.read_until[source] = first, read
    for row in (yield f"SELECT {codec.RUN_COLUMNS} FROM runs WHERE state <> 'finished'", ()):
        source, run = codec.run_entry(row)
        loaded.open_runs[source, run.run.id] = run
    for row in (yield f"SELECT {codec.DEAD_LETTER_COLUMNS} FROM dead_letters WHERE resolved_at IS NULL", ()):
        source, letter = codec.dead_letter_entry(row)
        loaded.open_dead_letters[source, letter.dead_letter.id] = letter
    for row in (yield f"SELECT {codec.WORKFLOW_COLUMNS} FROM workflows ORDER BY source, workflow_id", ()):
        source, workflow = codec.workflow_entry(row)
        loaded.workflows[source, workflow.workflow.id] = workflow
    rows = yield "SELECT metric, source, workflow_id, labels, part, value FROM tallies", ()
    for metric, source, workflow_id, labels, part, value in rows:
        loaded.tallies[metric, source, workflow_id, tuple(orjson.loads(labels)), part] = value
    for source, stream, key, value in (yield "SELECT source, stream, key, value FROM cursors", ()):
        loaded.cursors.setdefault((source, stream), {})[key] = orjson.loads(value)
    return loaded


def database(url: str) -> Path:
    """The file that a store URL names: ``sqlite:///file.db`` (relative) or ``sqlite:////abs/file.db``."""
    if url.startswith("sqlite:///"):
        return Path(url.removeprefix("sqlite:///"))
    raise StoreError(f"unknown kind of store: {url.split(':', 1)[0]!r}; use sqlite:///FILE")


def open_beats(url: str, on_news: Callable[[str], object], *, password: Password | None = None) -> Engine:
    """An engine beside the one of a ledger that is shared, which waits for no lock; see ``PostgresEngine``."""
    from exporter.store.postgres import PostgresEngine

    return PostgresEngine.open_to_listen(url, on_news, password=password)


async def open_engine(url: str, *, password: Password | None = None, to_read: bool = False) -> Engine:
    """The engine a store URL names; PostgreSQL asks for the ``password`` at each connection. Raises ``StoreError``."""
    if address.is_postgres(url):
        try:
            from exporter.store.postgres import PostgresEngine
        except ImportError:
            raise StoreError(
                "store.url: PostgreSQL needs the extra postgres: pip install 'automation-exporter[postgres]'"
            ) from None
        opening = PostgresEngine.open_to_read if to_read else PostgresEngine.open
        return await opening(url, password=password)
    path = database(url)
    return await (SqliteEngine.open_to_read(path) if to_read else SqliteEngine.open(path))
