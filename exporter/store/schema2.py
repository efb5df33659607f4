"""From the rows of schema version 2 to those of version 3: the same values, each entry as one array. Pure.

Version 2 stored of an entry only what had no column of its own, and its arrays could not grow. Written in plain lists,
not in today's classes: what those will look like must not alter what an old row means.
"""

from collections.abc import Callable
from typing import Any

import orjson

from exporter.store.script import Row, Script, values

#: Rows read and rewritten at a time.
ROWS_MAX = 500
#: Where in a stored dead letter it says that a retry of it begins anew; rows of older releases end before it.
RERUNS_AT = 10


def rewrite() -> Script[None]:
    """Rewrite every stored entry."""
    runs = "source, run_id, workflow_id, state, result, finished_at, counted_at, heard, data"
    letters = "source, dead_letter_id, workflow_id, run_id, opened_at, resolved_at, data"
    yield from _rewrite("runs", runs, "source, run_id", _run)
    yield from _rewrite("dead_letters", letters, "source, dead_letter_id", _dead_letter)
    yield from _rewrite("workflows", "source, workflow_id, gone_at, data", "source, workflow_id", _workflow)
    yield from _rewrite("traces", "source, run_id, attempt, data", "source, run_id, attempt", _trace)


def tell_reruns() -> Script[None]:
    """Give dead letters that a retry would begin anew a column that says so: in JSON, each database looks its own way.

    Of those that are open; what is resolved is never asked.
    """
    yield "ALTER TABLE dead_letters ADD COLUMN reruns INTEGER NOT NULL DEFAULT 0", ()
    rows = yield "SELECT source, dead_letter_id, data FROM dead_letters WHERE resolved_at IS NULL", ()
    for source, letter_id, data in rows:
        letter = orjson.loads(data)[0]
        if len(letter) > RERUNS_AT and letter[RERUNS_AT]:
            yield "UPDATE dead_letters SET reruns = 1 WHERE source = $1 AND dead_letter_id = $2", (source, letter_id)


def _rewrite(table: str, columns: str, key: str, convert: Callable[[Row], str]) -> Script[None]:
    width = key.count(",") + 1
    last: Row = ("", "", 0)[:width]
    own = " AND ".join(f"{column} = ${number}" for number, column in enumerate(key.split(", "), start=1))
    while True:
        rows = yield (
            f"SELECT {columns} FROM {table} WHERE ({key}) > {values(1, width)} ORDER BY {key} LIMIT {ROWS_MAX}",
            last,
        )
        for row in rows:
            yield f"UPDATE {table} SET data = ${width + 1} WHERE {own}", (*row[:width], convert(row))
        if len(rows) < ROWS_MAX:
            return
        last = rows[-1][:width]


def _run(row: Row) -> str:
    _, run_id, workflow_id, state, result, _, counted_at, heard, data = row
    attempt, (started_at, ended_at), error, used, queued_at, trigger, parent_id, steps, previous, counted, marks = (
        orjson.loads(data)
    )
    run = [
        workflow_id, run_id, attempt, state, result, started_at, ended_at, error, *used, queued_at, trigger, parent_id,
        steps, previous,
    ]  # fmt: skip
    return _text([run, heard, *counted, counted_at, *marks])


def _dead_letter(row: Row) -> str:
    _, letter_id, workflow_id, run_id, opened_at, resolved_at, data = row
    attempt, error, resolved_by, tries, native_retry, open_counted = orjson.loads(data)
    letter = [
        letter_id, workflow_id, run_id, attempt, opened_at, error, resolved_at, resolved_by, tries, native_retry,
    ]  # fmt: skip
    return _text([letter, open_counted])


def _workflow(row: Row) -> str:
    _, workflow_id, gone_at, data = row
    reading, found_at, last_ended, failures, missed, folded = orjson.loads(data)
    return _text([[workflow_id, *reading], found_at, last_ended, failures, *missed, gone_at, folded])


def _trace(row: Row) -> str:
    *_, attempt, data = row
    return str(data) if attempt == 0 else _run(tuple(orjson.loads(data)))  # attempt 0 is a retry, stored by name


def _text(value: Any) -> str:
    return orjson.dumps(value).decode()
