"""Databases that earlier releases wrote still open, with the same totals.

``databases/schema-N.db.gz`` was written by the last release with schema version N, run against the simulators of all
platforms for forty minutes with retries and traces on; ``schema-N.json.gz`` is what that release read in it. Each new
schema version adds a pair and keeps the older ones.
"""

import gzip
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest

from exporter.model import Blocked, DeadLetter, Error, ErrorClass, Heard, Result, Run, State, Workflow
from exporter.model.fold import DeadLetterEntry, RunEntry, WorkflowEntry
from exporter.store import codec, retries
from exporter.store.ledger import open_engine
from tests.e2e.deployment import deployment

DATABASES = Path(__file__).parent / "databases"
VERSIONS = sorted(int(path.name.split("-")[1].split(".")[0]) for path in DATABASES.glob("schema-*.db.gz"))


def unpacked(version: int, to: Path) -> Path:
    to.write_bytes(gzip.decompress((DATABASES / f"schema-{version}.db.gz").read_bytes()))
    return to


def as_read_then(version: int) -> dict[str, Any]:
    read: dict[str, Any] = orjson.loads(gzip.decompress((DATABASES / f"schema-{version}.json.gz").read_bytes()))
    return read


def has(value: Any, expected: Any) -> bool:
    """Whether a value of today has everything a value of then had."""
    if isinstance(expected, dict) and not isinstance(value, dict):
        return all(has(getattr(value, field), wanted) for field, wanted in expected.items())
    if isinstance(expected, list):
        return len(value) == len(expected) and all(map(has, value, expected))
    return bool(value == expected)


@pytest.mark.parametrize("version", VERSIONS)
async def test_an_older_database_opens_and_says_the_same(version: int, tmp_path: Path) -> None:
    path = unpacked(version, tmp_path / "old.db")
    await (await open_engine(f"sqlite:///{path}")).close()
    then = as_read_then(version)
    with sqlite3.connect(path) as database:
        rows = database.execute("SELECT metric, source, workflow_id, labels, part, value FROM tallies")
        assert sorted(map(list, rows)) == then["tallies"]
        for table, read in (
            ("runs", codec.run_entry),
            ("dead_letters", codec.dead_letter_entry),
            ("workflows", codec.workflow_entry),
        ):
            names = {"runs": codec.RUN_COLUMNS, "dead_letters": codec.DEAD_LETTER_COLUMNS}
            columns = names.get(table, codec.WORKFLOW_COLUMNS)
            order = ", ".join(columns.split(", ")[:2])
            entries = [read(row) for row in database.execute(f"SELECT {columns} FROM {table} ORDER BY {order}")]
            assert len(entries) == len(then[table]) > 0
            for (source, entry), (then_source, expected) in zip(entries, then[table], strict=True):
                assert source == then_source
                assert has(entry, expected), (entry, expected)
        for table, decoded in (("retries", retries.retry_of), ("overrides", retries.override_of)):
            said = [decoded(data) for (data,) in database.execute(f"SELECT data FROM {table} ORDER BY id")]
            assert has(said, then[table])
        traced = list(database.execute("SELECT source, run_id, attempt, data FROM traces"))
        assert sorted([list(row[:3]) for row in traced]) == then["traces"]
        for _, run_id, attempt, data in traced:
            run = codec.traced_run(data).run if attempt else None
            assert run is None or (run.id, run.attempt) == (run_id, attempt)


async def test_dead_letters_whose_retry_begins_anew_are_told_apart(tmp_path: Path) -> None:
    path = unpacked(6, tmp_path / "old.db")
    await (await open_engine(f"sqlite:///{path}")).close()
    with sqlite3.connect(path) as database:
        told = database.execute("SELECT dead_letter_id FROM dead_letters WHERE reruns = 1 ORDER BY 1").fetchall()
    then = [entry["dead_letter"] for _, entry in as_read_then(6)["dead_letters"]]
    anew = sorted(letter["id"] for letter in then if letter["reruns"] and letter["resolved_at"] is None)
    assert [identity for (identity,) in told] == anew != []


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_service_goes_on_with_an_older_database(version: int, tmp_path: Path) -> None:
    unpacked(version, tmp_path / "e2e.db")
    counted = {
        (source, workflow, orjson.loads(labels)[0]): value
        for metric, source, workflow, labels, part, value in as_read_then(version)["tallies"]
        if metric == "automation_runs_total"
    }
    async with deployment(tmp_path, workflows=0) as made:
        shown = await made.samples("automation_runs_total")
    assert {key: value for key, value in shown.items() if value} == counted


ERROR = Error(error_class=ErrorClass.NETWORK, message="reset")
ENTRIES = (
    RunEntry(
        run=Run(workflow_id="w", id="r", state=State.FINISHED, result=Result.FAILURE, ended_at=9.0, error=ERROR),
        heard=Heard.POLL | Heard.WEBHOOK,
        counted_attempt=1,
    ),
    DeadLetterEntry(dead_letter=DeadLetter(id="d", workflow_id="w", opened_at=9.0, error=ERROR), open_counted=True),
    WorkflowEntry(workflow=Workflow(id="w", at=9.0, blocked=Blocked.QUOTA), found_at=1.0, failures=3),
)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: type(entry).__name__)
def test_rows_of_a_release_that_knew_fewer_fields_or_more_read_as_well(
    entry: RunEntry | DeadLetterEntry | WorkflowEntry,
) -> None:
    decode = msgspec.json.Decoder(type(entry)).decode
    value, *rest = orjson.loads(msgspec.json.encode(entry))
    assert decode(orjson.dumps([[*value, "new"], *rest, "new", {"newer": 1}])) == entry
    first = entry.__struct_fields__[0]
    shorter = decode(orjson.dumps([value, *rest[:1]]))  # what was added since takes its default
    assert getattr(shorter, first) == getattr(entry, first)
