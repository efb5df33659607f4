"""A ledger is copied between databases of both kinds, whole, and never into one that is in use for something else."""

import asyncio
from pathlib import Path

import pytest

from exporter import cli
from exporter.store.copying import TABLES, digest, read
from exporter.store.ledger import Ledger, open_engine
from exporter.store.schema import MIGRATIONS
from tests.postgres import Postgres, look
from tests.servers import real
from tests.store.test_databases import VERSIONS, unpacked

pytestmark = real("postgres")


async def ledger_of(url: str) -> str:
    engine = await open_engine(url)
    try:
        return digest(await engine.run(read()))
    finally:
        await engine.close()


@pytest.fixture
def old(tmp_path: Path) -> str:
    """What a release wrote in forty minutes against the simulators: retries, traces, words of people and all."""
    return f"sqlite:///{unpacked(VERSIONS[-1], tmp_path / 'old.db')}"


def copy(source: str, to: str) -> int:
    return cli.main(["store", "copy", "--from", source, "--to", to])


def test_there_and_back_nothing_is_lost(
    old: str, tmp_path: Path, server: Postgres, capsys: pytest.CaptureFixture[str]
) -> None:
    there, back = server.make(), f"sqlite:///{tmp_path}/back.db"
    assert copy(old, there) == 0
    assert capsys.readouterr().out.startswith("copied, rows: sources ")
    assert copy(there, back) == 0
    for table, columns in TABLES.items():
        rows = [sorted(look(url, f"SELECT count(*) FROM {table}")) for url in (old, there, back)]
        assert rows[0] == rows[1] == rows[2], (table, columns)
    total = "SELECT CAST(sum(value) AS INTEGER) FROM tallies WHERE metric = 'automation_runs_total'"
    assert look(old, total) == look(there, total) == look(back, total) != [("0",)]
    assert look(old, "SELECT count(*) FROM audit") != [("0",)]


async def test_every_row_is_the_same(old: str, server: Postgres) -> None:
    to = server.make()
    engine = await open_engine(old)
    everything = await engine.run(read())
    await engine.close()
    assert await asyncio.to_thread(copy, old, to) == 0
    assert await ledger_of(to) == digest(everything)
    # and it is the ledger that a service would load
    loaded = []
    for url in (old, to):
        ledger = Ledger(await open_engine(url), {})
        loaded.append(await ledger.load())
        await ledger.close()
    assert loaded[0] == loaded[1]


def test_a_second_copy_harms_nothing(old: str, server: Postgres, capsys: pytest.CaptureFixture[str]) -> None:
    to = server.make()
    assert copy(old, to) == 0
    before = look(to, "SELECT * FROM tallies ORDER BY 1, 2, 3, 4, 5")
    assert copy(old, to) == 0
    assert "was there already" in capsys.readouterr().out
    assert look(to, "SELECT * FROM tallies ORDER BY 1, 2, 3, 4, 5") == before


def test_a_ledger_that_went_on_is_not_touched(old: str, server: Postgres, capsys: pytest.CaptureFixture[str]) -> None:
    to = server.make()
    assert copy(old, to) == 0
    server.sql(to, "UPDATE tallies SET value = value + 1")
    before = look(to, "SELECT * FROM tallies ORDER BY 1, 2, 3, 4, 5")
    assert copy(old, to) == 1
    assert "not empty" in capsys.readouterr().err
    assert look(to, "SELECT * FROM tallies ORDER BY 1, 2, 3, 4, 5") == before


def test_nothing_is_made_of_a_database_that_is_not_there(
    tmp_path: Path, server: Postgres, capsys: pytest.CaptureFixture[str]
) -> None:
    assert copy(f"sqlite:///{tmp_path}/none.db", server.make()) == 1
    assert "there is no database" in capsys.readouterr().err
    assert not (tmp_path / "none.db").exists()


def test_every_table_and_column_is_known(server: Postgres, old: str) -> None:
    to = server.make()
    assert copy(old, to) == 0
    columns = look(
        to,
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public' "
        "AND table_name NOT IN ('schema_version', 'probe')",
    )
    assert set(columns) == {(table, column) for table, names in TABLES.items() for column in names.split(", ")}
    assert look(to, "SELECT max(version) FROM schema_version") == [(str(len(MIGRATIONS)),)]
