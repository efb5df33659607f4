"""The door to the store: everything the rest of the program asks of it, in its own words.

Batches that arrive while a transaction is under way share the next one, so a burst costs few commits and no batch waits
longer than two. ``ingest`` returns once its batch is durable and the in-memory picture (``world``) has it.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import orjson

from exporter.fold import DeadLetterEntry, RunEntry, WorkflowEntry
from exporter.log import get_logger
from exporter.store import codec, maintenance
from exporter.store.ingest import Batch, Committed, Key, Outcome, SourceRules, ingest
from exporter.store.script import Engine, Script, StoreError
from exporter.store.sqlite import SqliteEngine
from exporter.tallies import Tallies

T = TypeVar("T")
log = get_logger(__name__)

#: Batches that may wait for a commit; beyond that senders are asked to come back.
PENDING_BATCHES_MAX = 2000


@dataclass(slots=True, kw_only=True)
class Loaded:
    """What the ledger remembers, as read at the start."""

    first_sweeps: dict[str, float] = field(default_factory=dict)
    read_until: dict[str, float] = field(default_factory=dict)
    open_runs: dict[Key, RunEntry] = field(default_factory=dict)
    open_dead_letters: dict[Key, DeadLetterEntry] = field(default_factory=dict)
    workflows: dict[Key, WorkflowEntry] = field(default_factory=dict)
    tallies: Tallies = field(default_factory=dict)
    cursors: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)


class Ledger:
    """The durable record of what was observed and counted."""

    def __init__(
        self,
        engine: Engine,
        rules: Mapping[str, SourceRules],
        *,
        on_commit: Callable[[Committed], None] = lambda committed: None,
        on_error: Callable[[str], None] = lambda operation: None,
        timer: Callable[[str], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """``on_commit`` is called in order of the commits, before those who wait are told."""
        self._engine = engine
        self.rules = rules
        self.on_commit = on_commit
        self.ahead: Callable[[], Mapping[str, float]] = dict  # by source: seconds its platform's clock is ahead of ours
        self._on_error = on_error
        self._timer = timer
        self._pending: list[tuple[Batch, asyncio.Future[Outcome]]] = []
        self._writer: asyncio.Task[None] | None = None
        self._closed = False
        self.error: str | None = None  # why the last operation failed, None once one succeeds again

    @property
    def is_full(self) -> bool:
        return len(self._pending) >= PENDING_BATCHES_MAX

    async def ingest(self, batch: Batch) -> Outcome:
        """Fold one batch in.

        Durable when it returns; raises ``StoreError`` when it could not be stored (nothing of it was).
        """
        if self.is_full:
            raise StoreError("too many batches are waiting for the store")
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._pending.append((batch, future))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_pending(), name="ledger-writer")
        return await future

    async def _write_pending(self) -> None:
        while self._pending:
            waiting, self._pending = self._pending, []
            try:
                await self._write(waiting)
            except Exception as exc:
                if len(waiting) == 1:
                    self._fail(waiting, exc)
                    continue
                for one in waiting:  # one of them may be the cause: each on its own
                    try:
                        await self._write([one])
                    except Exception as alone:
                        self._fail([one], alone)

    async def _write(self, waiting: list[tuple[Batch, asyncio.Future[Outcome]]]) -> None:
        committed = await self._run("ingest", ingest([batch for batch, _ in waiting], self.rules))
        self.on_commit(committed)
        for (_, future), outcome in zip(waiting, committed.outcomes, strict=True):
            if not future.done():
                future.set_result(outcome)

    def _fail(self, waiting: list[tuple[Batch, asyncio.Future[Outcome]]], exc: Exception) -> None:
        error = exc if isinstance(exc, StoreError) else StoreError(f"could not store: {type(exc).__name__}")
        error.__cause__ = None if exc is error else exc
        log.error("batch not stored", source=waiting[0][0].source, error=exc)
        for _, future in waiting:
            if not future.done():
                future.set_exception(error)

    async def _run(self, operation: str, script: Script[Any]) -> Any:
        try:
            with self._timer(operation):
                result = await self._engine.run(script)
        except Exception as exc:
            self.error = str(exc) if isinstance(exc, StoreError) else f"the store failed: {type(exc).__name__}"
            self._on_error(operation)
            raise
        self.error = None
        return result

    async def transact(self, operation: str, script: Script[T]) -> T:
        """Run one script in a transaction of its own, durable when this returns. Raises ``StoreError``."""
        result: T = await self._run(operation, script)
        return result

    async def load(self) -> Loaded:
        """Everything the in-memory picture starts from."""
        loaded: Loaded = await self._run("load", _load())
        return loaded

    async def ping(self) -> None:
        """Raise ``StoreError`` unless the store answers."""
        await self._run("ping", maintenance.ping())

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
            self.on_commit(Committed(dead_letters=step.expired, tallies=step.tallies))
            done.pruned_runs += step.runs
            done.pruned_dead_letters += step.dead_letters
            done.expired += len(step.expired)
            is_full = step.is_full
        done.rows = await self._run("count_rows", maintenance.count_rows())
        return done

    async def judge_webhooks(self, source: str, *, until: float) -> tuple[int, int]:
        """Judge which runs counted up to ``until`` a webhook told of: (told of, missed). Each run is judged once."""
        judged: tuple[int, int, Tallies] = await self._run(
            "judge_webhooks", maintenance.judge_webhooks(source, until=until)
        )
        told, missed, tallies = judged
        self.on_commit(Committed(tallies=tallies))
        return told, missed

    async def pending_traces(self, *, limit: int, settled_before: float) -> list[maintenance.PendingTrace]:
        """Counted runs whose trace is still to be exported, oldest first; see ``maintenance.pending_traces``."""
        script = maintenance.pending_traces(limit=limit, settled_before=settled_before, ahead=self.ahead())
        pending: list[maintenance.PendingTrace] = await self._run("pending_traces", script)
        return pending

    async def mark_traced(self, keys: list[tuple[str, str, int]]) -> None:
        """Remember that the traces of these attempts (source, run id, attempt) were exported."""
        await self._run("mark_traced", maintenance.mark_traced(keys))

    async def count_pending_traces(self) -> int:
        count: int = await self._run("count_pending_traces", maintenance.count_pending_traces())
        return count

    async def mark_folded(self, keys: list[Key]) -> None:
        """Remember which workflows are shown as ``__other__``, so that a restart shows them the same way."""
        await self._run("mark_folded", maintenance.mark_folded(keys))

    async def close(self) -> None:
        """Finish what is being written and let go of the store; once more does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._writer is not None:
            with suppress(asyncio.CancelledError):
                await self._writer
        await self._engine.close()


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


async def open_engine(url: str, *, to_read: bool = False) -> Engine:
    """The engine a store URL names. Raises ``StoreError``."""
    path = database(url)
    return await (SqliteEngine.open_to_read(path) if to_read else SqliteEngine.open(path))
