"""``retries audit``: what it prints, and that its chain notices whatever is done to a row afterwards."""

import asyncio
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from exporter.cli import UsageError, main
from exporter.cli.audit import since
from exporter.model.retries import Override, OverrideAction, Scope
from exporter.store import audit
from exporter.store import retries as script
from exporter.store.sqlite import SqliteEngine

#: 2026-11-28 00:00:00 UTC
MIDNIGHT = 1_795_824_000.0
Say = Callable[..., tuple[int, list[str]]]


async def written(path: Path, *rows: int) -> None:
    """So many rows at a time, a minute apart."""
    engine, number = await SqliteEngine.open(path), 0
    for minute, count in enumerate(rows):
        overrides = [
            Override(
                id=f"o{number + each}", scope=Scope.ENGINE, source="", key="", action=OverrideAction.PAUSE, until=None,
                who="me", why=f"reason {number + each}", created_at=MIDNIGHT,
            )
            for each in range(count)
        ]  # fmt: skip
        number += count
        await engine.run(script.put_overrides(overrides, now=MIDNIGHT + 60.0 * minute))
    await engine.close()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "audit.db"
    asyncio.run(written(path, 1, 1, 1, 1, 1))
    return path


@pytest.fixture
def say(database: Path, capsys: pytest.CaptureFixture[str]) -> Say:
    def said(*words: str) -> tuple[int, list[str]]:
        code = main(["retries", "audit", "--store", f"sqlite:///{database}", *words])
        captured = capsys.readouterr()
        return code, (captured.out + captured.err).splitlines()

    return said


def change(database: Path, sql: str) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute(sql)
    connection.close()


def test_the_audit_is_json_lines(say: Say) -> None:
    code, lines = say()
    rows = [json.loads(line) for line in lines]
    assert (code, [row["why"] for row in rows]) == (0, [f"reason {number}" for number in range(5)])
    assert [row["seq"] for row in rows] == [1, 2, 3, 4, 5]
    assert {row["kind"] for row in rows} == {"override"}
    code, lines = say("--json")
    assert (code, json.loads("\n".join(lines))) == (0, rows)
    code, lines = say("--since", "2026-11-28 00:03:00 UTC")
    assert (code, [json.loads(line)["seq"] for line in lines]) == (0, [4, 5])


def test_a_long_audit_is_read_in_parts(say: Say, database: Path) -> None:
    database.unlink()
    asyncio.run(written(database, 2 * audit.AUDIT_ROWS + 100))
    code, lines = say()
    assert (code, [json.loads(line)["seq"] for line in lines]) == (0, list(range(1, 2 * audit.AUDIT_ROWS + 101)))
    assert say("--verify")[1] == ["audit: fine: 2100 rows, 1 to 2100, each follows from the one before it"]
    change(database, "UPDATE audit SET data = data || ' ' WHERE seq = 2050")
    assert "audit: row 2050 " in say("--verify")[1][0]


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("14d", MIDNIGHT - 13 * 86400.0),
        ("2026-11-28", MIDNIGHT),
        ("2026-11-28T00:00", MIDNIGHT),
        ("2026-11-28T01:00+01:00", MIDNIGHT),
        ("2026-11-28T00:00:00Z", MIDNIGHT),
        ("2026-11-28 00:00:00 UTC", MIDNIGHT),
    ],
)
def test_since_is_a_time_or_how_long_ago(text: str, moment: float) -> None:
    assert since(text, MIDNIGHT + 86400.0) == moment


@pytest.mark.parametrize("text", ["", "yesterday", "14", "2026-13-01", "28.11.2026"])
def test_what_is_no_time_is_one_line(text: str, say: Say) -> None:
    with pytest.raises(UsageError):
        since(text, MIDNIGHT)
    code, [line] = say("--since", text)
    assert code == 1
    assert line.startswith(f"automation-exporter: --since {text}: write a time such as ")


def test_an_audit_nobody_touched_is_fine(say: Say, database: Path) -> None:
    fine = "audit: fine: 5 rows, 1 to 5, each follows from the one before it"
    assert say("--verify") == (0, [fine])
    change(database, "DELETE FROM audit WHERE seq <= 2")  # as pruning does
    assert say("--verify") == (0, ["audit: fine: 3 rows, 3 to 5, each follows from the one before it"])
    code, lines = say("--verify", "--json")
    assert (code, json.loads("\n".join(lines))) == (0, {"rows": 3, "first": 3, "last": 5, "broken": None})
    change(database, "DELETE FROM audit")
    assert say("--verify") == (0, ["audit: no rows"])
    assert say() == (0, [])


@pytest.mark.parametrize(
    ("sql", "row"),
    [
        ("UPDATE audit SET data = replace(data, 'me', 'you') WHERE seq = 3", 3),
        ("UPDATE audit SET data = replace(data, 'me', 'you') WHERE seq = 1", 1),  # the very first
        ("UPDATE audit SET data = replace(data, 'me', 'you') WHERE seq = 5", 5),  # the last
        ("UPDATE audit SET at = at + 1 WHERE seq = 2", 2),
        ("UPDATE audit SET hash = replace(hash, substr(hash, 1, 4), '0000') WHERE seq = 4", 4),
        ("UPDATE audit SET data = 'no JSON' WHERE seq = 2", 2),
        ("UPDATE audit SET at = 'noon' WHERE seq = 2", 2),
        ("DELETE FROM audit WHERE seq = 3", 4),
        ("DELETE FROM audit WHERE seq BETWEEN 2 AND 4", 5),
        ("UPDATE audit SET seq = 9 WHERE seq = 5", 9),
        ("INSERT INTO audit SELECT 6, at, data, hash FROM audit WHERE seq = 5", 6),
    ],
)
def test_whatever_is_done_to_a_row_is_noticed(say: Say, database: Path, sql: str, row: int) -> None:
    change(database, sql)
    code, lines = say("--verify")
    assert (code, len(lines)) == (1, 1), lines
    assert lines[0].startswith(f"automation-exporter: audit: row {row} "), lines
    code, lines = say("--verify", "--json")
    assert (code, json.loads("\n".join(lines))["broken"]) == (1, row)
    code, lines = say()  # what is left can be read all the same
    assert code == 0
    assert all(json.loads(line)["hash"] for line in lines)


def test_rows_since_a_moment_are_held_against_the_one_before_them(say: Say, database: Path) -> None:
    change(database, "UPDATE audit SET data = replace(data, 'me', 'you') WHERE seq = 2")
    assert say("--verify", "--since", "2026-11-28T00:03") == (
        0,
        ["audit: fine: 3 rows, 3 to 5, each follows from the one before it"],
    )
    change(database, "UPDATE audit SET data = replace(data, 'me', 'you') WHERE seq = 4")
    code, [line] = say("--verify", "--since", "2026-11-28T00:03")
    assert (code, "row 4 (of 2026-11-28 00:03:00 UTC)" in line) == (1, True), line
