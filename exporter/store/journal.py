"""What one process commits, told to the others that share the database: so each remembers the ledger as it is.

Each transaction that alters what somebody remembers adds one row here, within itself, that says so. And each begins by
reading the rows that others added since: so whoever commits has heard everything that came before, and memory follows
the commits of all processes in their order.

Rows are numbered within the lock of the source they are about ("" for transactions that have the database alone; the
first of those that share a commit). Of one source, and of "", each process has therefore seen all up to a number; what
is committed about others meanwhile may come in any order.

**Fencing.** What the holder of a source writes, and it alone, is written under the epoch of its lease: in another
epoch it is refused.
"""

from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Generic, TypeVar

import msgspec

from exporter.model import Queue, RunFinished, Usage, Via
from exporter.model.ledger import Batch, Committed, Folded
from exporter.model.operations import OperationState
from exporter.store.script import Script, StoreError

T = TypeVar("T")

#: What connections of this program are called in the database: those that write, and those that hold no lock.
APPLICATION, READER = "automation-exporter", "automation-exporter-reader"
#: On which others listen for news.
CHANNEL = "automation_exporter"
#: Rows are kept so long (seconds). Who has not read for half as long begins anew.
KEPT_SECONDS = 300.0
#: What had the database alone is about no source.
ALONE = ""

TABLES = (
    """CREATE TABLE IF NOT EXISTS journal (
        seq BIGSERIAL PRIMARY KEY,
        source TEXT NOT NULL,
        at DOUBLE PRECISION NOT NULL DEFAULT extract(epoch FROM clock_timestamp()),
        data BYTEA NOT NULL
    )""",
    "CREATE INDEX IF NOT EXISTS journal_by_source ON journal (source, seq)",
    """CREATE TABLE IF NOT EXISTS replicas (
        id TEXT NOT NULL PRIMARY KEY,
        name TEXT NOT NULL,
        until DOUBLE PRECISION NOT NULL,
        data BYTEA NOT NULL
    )""",
    """CREATE TABLE IF NOT EXISTS leases (
        source TEXT NOT NULL PRIMARY KEY,
        holder TEXT NOT NULL,
        epoch BIGINT NOT NULL
    )""",
)

_fences: ContextVar[Mapping[str, int]] = ContextVar("_fences")


class LeaseLost(StoreError):
    """Another replica holds the source by now: what this one was about to write is its affair."""


@contextmanager
def under(source: str, epoch: int) -> Generator[None]:
    """Whatever is written within, or by tasks begun within, is written under this lease."""
    token = _fences.set({source: epoch})
    try:
        yield
    finally:
        _fences.reset(token)


def fences() -> Mapping[str, int]:
    """The leases (source, epoch) under which the running task writes; none where anybody may write it."""
    return _fences.get({})


class _Heard(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What followers need of a batch."""

    source: str
    stream: str
    cursors: dict[str, Any] = msgspec.field(default_factory=dict)
    queues: list[Queue] = msgspec.field(default_factory=list)
    usage: list[Usage] = msgspec.field(default_factory=list)
    finished: list[RunFinished] = msgspec.field(default_factory=list)


_FIELDS = [one for one in msgspec.structs.fields(Committed) if one.name != "outcomes"]
#: All of ``Committed`` but the batches as they came.
_Told = msgspec.defstruct(
    "_Told",
    [
        ("heard", list[_Heard], msgspec.field(default_factory=list)),
        *((one.name, one.type, msgspec.field(default_factory=one.default_factory)) for one in _FIELDS),
    ],
    kw_only=True,
    omit_defaults=True,
)
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Told).decode


def written(committed: Committed) -> bytes | None:
    """A commit as its row has it; None where it alters nothing that anybody remembers."""
    heard = [one for one in map(_heard, committed.outcomes) if one is not None]
    fields: dict[str, Any] = {one.name: getattr(committed, one.name) for one in _FIELDS}
    data: bytes = _encode(_Told(heard=heard, **fields))
    return None if data == _NOTHING else data


_NOTHING = _encode(_Told())


def read(data: bytes, sources: Collection[str]) -> Committed:
    """A commit from its row, as far as it is about these sources. What is not known to this version is left out.

    Raises ``msgspec.DecodeError``.
    """
    told: Any = _decode(data)
    outcomes = [
        Folded(
            batch=Batch(
                source=one.source,
                observations=[*one.queues, *one.usage],
                via=Via.POLL,
                now=0.0,
                started_at=None,
                stream=one.stream,
                cursors=one.cursors,
            ),
            changes=list(one.finished),
        )
        for one in told.heard
        if one.source in sources
    ]
    return Committed(outcomes=outcomes, **{one.name: _of(sources, getattr(told, one.name)) for one in _FIELDS})


def _of(sources: Collection[str], told: Any) -> Any:
    """What a field says of these sources, and of none in particular."""
    if isinstance(told, list):
        return [one for one in told if getattr(one, "source", "") in sources or not getattr(one, "source", "")]
    return {key: value for key, value in told.items() if _source(key, value) in sources}


def _source(key: Any, value: Any) -> str:
    match key:
        case (_, str(source), _, _, _):  # a tally
            return source
        case (str(source), *_):
            return source
    return ALONE if isinstance(value, OperationState) else str(key)


def _heard(outcome: Folded) -> _Heard | None:
    batch = outcome.batch
    queues = [item for item in batch.observations if isinstance(item, Queue)]
    usage = [item for item in batch.observations if isinstance(item, Usage)]
    finished = [change for change in outcome.changes if isinstance(change, RunFinished)]
    if not (batch.cursors or queues or usage or finished):
        return None
    return _Heard(
        source=batch.source,
        stream=batch.stream,
        cursors=dict(batch.cursors),
        queues=queues,
        usage=usage,
        finished=finished,
    )


class Within(Generic[T]):
    """What a script returned, and the rows of the journal that it read and added."""

    __slots__ = ("others", "own", "result")

    def __init__(self, others: list[tuple[int, str, Committed]], own: tuple[int, str] | None, result: T) -> None:
        self.others, self.own, self.result = others, own, result


class Journal:
    """How far this process has read the journal. Make it follow with what ``Ledger`` runs."""

    def __init__(self, sources: Iterable[str]) -> None:
        self._known = [ALONE, *sources]
        self._seen: dict[str, int] | None = None  # by source; None before the ledger was loaded

    def from_here(self, script: Script[T]) -> Script[T]:
        """Run the script that loads everything: what anybody adds from then on is news."""
        last: int = (yield "SELECT coalesce(max(seq), 0) FROM journal", ())[0][0]
        self._seen = dict.fromkeys(self._known, last)
        return (yield from script)

    def within(
        self, script: Script[T], *, sources: Collection[str] | None, fences: Mapping[str, int]
    ) -> Script[Within[T]]:
        """Run a script as part of the journal. Raises ``LeaseLost``."""
        others = yield from self._news()
        for source, epoch in fences.items():
            rows = yield "SELECT epoch FROM leases WHERE source = $1", (source,)
            if [row[0] for row in rows] != [epoch]:
                raise LeaseLost(f"another replica holds {source or 'the upkeep'} by now")
        result = yield from script
        own: tuple[int, str] | None = None
        data = written(result) if isinstance(result, Committed) else None
        if data is not None:
            about = ALONE if sources is None else min(sources, default=ALONE)
            adding = "INSERT INTO journal (source, data) VALUES ($1, $2) RETURNING seq"
            row: tuple[str, bytes] = (about, data)
            if not fences or not fences.keys() >= set(sources or ()):  # whoever holds it wants to know at once
                adding = f"WITH added AS ({adding}) SELECT seq, pg_notify('{CHANNEL}', '') FROM added"
            own = (yield adding, row)[0][0], about
        return Within(others, own, result)

    def _news(self) -> Script[list[tuple[int, str, Committed]]]:
        if self._seen is None:
            return []
        rows = yield (
            """SELECT seq, source, data FROM unnest($1::text[], $2::bigint[]) AS seen (of, up_to), LATERAL
                (SELECT seq, source, data FROM journal WHERE source = of AND seq > up_to) AS news ORDER BY seq""",
            (list(self._seen), list(self._seen.values())),
        )
        try:
            return [(seq, about, read(data, self._known)) for seq, about, data in rows]
        except msgspec.DecodeError as exc:
            raise StoreError(
                "a replica of another version writes what this one cannot read: stop all replicas and start one version"
            ) from exc

    def take(self, within: Within[Any]) -> list[Committed]:
        """What is to be published of it, in order; nothing twice."""
        found = [committed for seq, about, committed in within.others if self._is_new(seq, about)]
        result, own = within.result, within.own
        if isinstance(result, Committed) and (own is None or self._is_new(*own)):
            found.append(result)
        return found

    def _is_new(self, seq: int, about: str) -> bool:
        if self._seen is None:  # nothing is remembered that could be old
            return True
        if seq <= self._seen[about]:
            return False
        self._seen[about] = seq
        return True


def nothing() -> Script[None]:
    """To be run within the journal: only what others added is read."""
    yield from ()


def prune() -> Script[None]:
    """Forget what everybody has read."""
    yield f"DELETE FROM journal WHERE at < extract(epoch FROM clock_timestamp()) - {KEPT_SECONDS}", ()
