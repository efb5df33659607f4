"""A whole ledger, from one database to another of either kind: everything, in one transaction on each side."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from exporter.store.script import Row, Script, StoreError, insert

#: Every table of the ledger with its columns, the key first. What is kept of the schema and of probing is each
#: database's own affair.
TABLES = {
    "sources": "source, first_sweep_at, pruned_until, read_until",
    "workflows": "source, workflow_id, gone_at, data",
    "runs": "source, run_id, workflow_id, state, result, finished_at, counted_at, heard, data",
    "dead_letters": "source, dead_letter_id, workflow_id, run_id, opened_at, resolved_at, reruns, data",
    "traces": "source, run_id, attempt, counted_at, settled, data",
    "tallies": "metric, source, workflow_id, labels, part, value",
    "cursors": "source, stream, key, value",
    "retries": "id, source, root, dead_letter_id, shadow, state, outcome, claimed_at, data",
    "lineage": "source, run_id, root, retry_id",
    "paces": "source, full_at",
    "overrides": "id, until, ended_at, data",
    "decisions": "source, dead_letter_id, policy, decision, reason, waited, waits_since",
    "audit": "seq, at, data, hash",
    "retry_state": "source, kind, key, data",
    "operations": "id, created_at, ended_at, data",
    "operation_items": "operation_id, source, dead_letter_id, state, detail",
    "repairs": ("id, source, subject, subject_id, action, root, operation_id, state, outcome, closed_at, data"),
}
Everything = Mapping[str, list[Row]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """How many rows of each table the ledger has, and whether it was there already, every row of it."""

    rows: dict[str, int]
    was_there: bool


def read() -> Script[Everything]:
    """Every row of the ledger, all as they were at one moment."""
    everything: dict[str, list[Row]] = {}
    for table, columns in TABLES.items():
        everything[table] = list((yield f"SELECT {columns} FROM {table}", ()))
    return everything


def write(everything: Everything) -> Script[Copied]:
    """Fill an empty ledger. One that is the same already stays as it is; in another nothing is touched: ``StoreError``.

    All of it or nothing.
    """
    there = yield from read()
    rows = {table: len(found) for table, found in everything.items()}
    if any(there.values()):
        if digest(there) == digest(everything):
            return Copied(rows=rows, was_there=True)
        raise StoreError("the ledger to copy to is not empty, and is another one: name an empty database")
    for table, columns in TABLES.items():
        yield from insert(table, columns, everything[table], conflict="DO NOTHING")
    return Copied(rows=rows, was_there=False)


def digest(everything: Everything) -> str:
    """The same for the same rows, in whatever order a database gives them."""
    whole = hashlib.sha256()
    for table, found in everything.items():
        lines = sorted(orjson.dumps(row) for row in found)
        whole.update(b"\n".join([table.encode(), *lines]))
    return whole.hexdigest()
