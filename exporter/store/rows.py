"""Rows by their keys, totals and cursors: statements that more than one transaction needs."""

from collections.abc import Iterable, Sequence
from functools import lru_cache

import orjson

from exporter.model.ledger import Batch, Key
from exporter.model.tallies import Tallies
from exporter.store import codec
from exporter.store.script import Row, Script, chunks, flat, insert


def find(columns: str, table: str, id_column: str, keys: Iterable[Key], *, more: str = "") -> Script[list[Row]]:
    """Rows by source and another column.

    Source by source, because an index answers that. Asked for several pairs at once, ``(source, id) IN (VALUES …)``,
    SQLite reads the whole table.
    """
    wanted: dict[str, list[Row]] = {}
    for source, identity in keys:
        wanted.setdefault(source, []).append((identity,))
    found: list[Row] = []
    for source, ids in wanted.items():
        for part in chunks(ids):
            found += yield _find_sql(columns, table, id_column, len(part), more), (source, *flat(part))
    return found


@lru_cache(maxsize=1024)
def _find_sql(columns: str, table: str, id_column: str, ids: int, more: str) -> str:
    numbers = ", ".join(f"${number}" for number in range(2, ids + 2))
    return f"SELECT {columns} FROM {table} WHERE source = $1 AND {id_column} IN ({numbers}) {more}"


def add_tallies(tallies: Tallies) -> Script[None]:
    """Add to the durable totals."""
    rows = [
        (metric, source, workflow_id, codec.to_json(labels), part, value)
        for (metric, source, workflow_id, labels, part), value in sorted(tallies.items())
    ]
    yield from insert(
        "tallies",
        "metric, source, workflow_id, labels, part, value",
        rows,
        conflict="(metric, source, workflow_id, labels, part) DO UPDATE SET value = tallies.value + excluded.value",
    )


def put_cursors(batches: Sequence[Batch]) -> Script[None]:
    cursors = {(b.source, b.stream, key): value for b in batches for key, value in b.cursors.items()}
    kept = [(*key, orjson.dumps(value).decode()) for key, value in cursors.items() if value is not None]
    yield from insert(
        "cursors",
        "source, stream, key, value",
        kept,
        conflict="(source, stream, key) DO UPDATE SET value = excluded.value",
    )
    for key, value in cursors.items():
        if value is None:
            yield "DELETE FROM cursors WHERE source = $1 AND stream = $2 AND key = $3", key
