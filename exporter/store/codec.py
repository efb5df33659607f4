"""Ledger entries to rows and back. What is looked up by has a column; ``data`` holds the whole entry. Pure.

An entry is stored as a JSON array of its fields in the order in which its class lists them. So a row written before a
field was added reads with that field's default, and a row written by a newer release reads without what is not known
here. That holds as long as fields are only ever added at the end, with a default: a field that is moved, removed or
given another meaning needs a migration (``exporter.store.schema``).
"""

from typing import Any

import msgspec
import orjson

from exporter.model import State
from exporter.model.fold import DeadLetterEntry, RunEntry, WorkflowEntry
from exporter.store.script import Row

RUN_COLUMNS = "source, run_id, workflow_id, state, result, finished_at, counted_at, heard, data"
DEAD_LETTER_COLUMNS = "source, dead_letter_id, workflow_id, run_id, opened_at, resolved_at, reruns, data"
TRACE_COLUMNS = "source, run_id, attempt, counted_at, settled, data"
WORKFLOW_COLUMNS = "source, workflow_id, gone_at, data"

_encode = msgspec.json.Encoder().encode
_run = msgspec.json.Decoder(RunEntry).decode
_dead_letter = msgspec.json.Decoder(DeadLetterEntry).decode
_workflow = msgspec.json.Decoder(WorkflowEntry).decode


def to_json(value: object) -> str:
    return orjson.dumps(value).decode()


def run_row(source: str, entry: RunEntry) -> Row:
    run = entry.run
    # by which the failures of a workflow are counted anew: a test is none of them
    state, result = run.state.value, None if run.result is None or run.is_test else run.result.value
    finished_at = run.finished_at if run.state is State.FINISHED else None
    return (
        source, run.id, run.workflow_id, state, result, finished_at, entry.counted_at, int(entry.heard), _data(entry),
    )  # fmt: skip


def run_entry(row: Row) -> tuple[str, RunEntry]:
    """Source and entry of a row with ``RUN_COLUMNS``."""
    return row[0], _run(row[-1])


def trace_row(source: str, entry: RunEntry, *, settled: bool) -> Row:
    """The row of a trace still to be exported: the run as it is now, settled once nothing more is expected of it."""
    run = entry.run
    return (source, run.id, run.attempt, entry.counted_at, int(settled), _data(entry))


def traced_run(data: str) -> RunEntry:
    """The run of a row with ``TRACE_COLUMNS``, from its ``data``."""
    return _run(data)


def dead_letter_row(source: str, entry: DeadLetterEntry) -> Row:
    letter = entry.dead_letter
    return (
        source, letter.id, letter.workflow_id, letter.run_id, letter.opened_at, letter.resolved_at, int(letter.reruns),
        _data(entry),
    )  # fmt: skip


def dead_letter_entry(row: Row) -> tuple[str, DeadLetterEntry]:
    """Source and entry of a row with ``DEAD_LETTER_COLUMNS``."""
    return row[0], _dead_letter(row[-1])


def workflow_row(source: str, entry: WorkflowEntry) -> Row:
    return (source, entry.workflow.id, entry.gone_at, _data(entry))


def workflow_entry(row: Row) -> tuple[str, WorkflowEntry]:
    """Source and entry of a row with ``WORKFLOW_COLUMNS``."""
    return row[0], _workflow(row[-1])


def _data(entry: Any) -> str:
    return _encode(entry).decode()
