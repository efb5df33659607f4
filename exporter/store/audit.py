"""The audit of retries: only ever added to, each row carrying the hash of the one before it."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from exporter.model.retries import (
    Override,
    Retry,
)
from exporter.store import codec
from exporter.store.script import Row, Script, insert

#: Rows of the audit that are read at once.
AUDIT_ROWS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditCheck:
    """What became of checking the audit's chain. Its rows have the numbers ``first`` to ``last``; 0: there are none."""

    rows: int
    first: int
    last: int
    broken: int | None = None  # the first row that does not follow from the one before it


def is_known(source: str, identity: str) -> Script[bool]:
    """Whether there is a dead letter of this source, or a retry, of this name: unlike what is said of it soon read."""
    if "\0" in identity:  # no database holds that, and not each of them takes the question
        return False
    for sql, values in (
        ("SELECT 1 FROM dead_letters WHERE source = $1 AND dead_letter_id = $2", (source, identity)),
        ("SELECT 1 FROM retries WHERE source = $1 AND dead_letter_id = $2 LIMIT 1", (source, identity)),
        ("SELECT 1 FROM retries WHERE id = $1", (identity,)),
    ):
        if (yield sql, values):
            return True
    return False


def history(retry_id: str) -> Script[list[dict[str, Any]]]:
    """The audit of one retry, or of one dead letter, oldest first."""
    rows = yield "SELECT at, data FROM audit WHERE data LIKE $1 ORDER BY seq", (f"%{orjson.dumps(retry_id).decode()}%",)
    return [{"at": at, **orjson.loads(data)} for at, data in rows]


def records(*, since: float = float("-inf"), after: int = 0, limit: int = AUDIT_ROWS) -> Script[list[dict[str, Any]]]:
    """What the audit says from a moment on, of rows after a number: at most ``limit`` of them, oldest first.

    A row that somebody broke is given as it is, as ``unreadable``.
    """
    sql = "SELECT seq, at, data, hash FROM audit WHERE seq > $1 AND at >= $2 ORDER BY seq LIMIT $3"
    return [_record(row) for row in (yield sql, (after, since, limit))]


def _record(row: Row) -> dict[str, Any]:
    seq, at, data, digest = row
    try:
        said = orjson.loads(data)
    except (orjson.JSONDecodeError, TypeError):
        said = None
    if not isinstance(said, dict):
        said = {"unreadable": str(data)}
    return {"seq": seq, "at": at, **said, "hash": digest}


def check(*, since: float = float("-inf")) -> Script[AuditCheck]:
    """Whether each row written since a moment follows from the one before it; stops at the first that does not.

    The very first row follows from nothing. Where older ones were pruned, the oldest is what others are held against.
    """
    begin = (yield "SELECT min(seq) FROM audit WHERE at >= $1", (since,))[0][0]
    if begin is None:
        return AuditCheck(rows=0, first=0, last=0)
    first, last, rows, previous = 0, begin - 2, 0, ""
    sql = "SELECT seq, at, data, hash FROM audit WHERE seq > $1 ORDER BY seq LIMIT $2"
    while found := (yield sql, (last, AUDIT_ROWS)):
        for seq, at, data, digest in found:
            first, rows = first or seq, rows + 1
            if (rows > 1 or seq == 1) and _link(previous, seq, at, data) != digest:
                return AuditCheck(rows=rows, first=first, last=seq, broken=seq)
            last, previous = seq, digest
    return AuditCheck(rows=rows, first=first, last=last)


def add_records(now: float, entries: Iterable[Mapping[str, Any]]) -> Script[None]:
    rows: list[Row] = []
    for entry in entries:
        if not rows:
            last = yield "SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1", ()
            seq, digest = last[0] if last else (0, "")
        seq, data = seq + 1, codec.to_json(entry)
        digest = _link(digest, seq, now, data)
        rows.append((seq, now, data, digest))
    yield from insert("audit", "seq, at, data, hash", rows, conflict="(seq) DO NOTHING")


def _link(previous: str, seq: int, at: float, data: str) -> str:
    return hashlib.sha256(f"{previous}\n{seq}\n{at!r}\n{data}".encode()).hexdigest()


def about_retry(kind: str, retry: Retry, *, who: str) -> dict[str, Any]:
    return {
        "kind": kind,
        "who": who,
        "source": retry.source,
        "retry": retry.id,
        "dead_letter": retry.dead_letter_id,
        "root": retry.root,
        "ordinal": retry.ordinal,
        "policy": retry.policy,
        "policy_hash": retry.policy_hash,
        "state": retry.state,
        "outcome": retry.outcome,
        "detail": retry.detail,
    }


def about_override(kind: str, override: Override, who: str) -> dict[str, Any]:
    return {
        "kind": kind,
        "who": who,
        "override": override.id,
        "action": override.action,
        "scope": override.scope,
        "source": override.source,
        "key": override.key,
        "until": override.until,
        "why": override.why,
        "snapshot": override.snapshot,
    }
