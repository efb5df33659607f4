"""A ledger is copied between databases of both kinds, whole, and never into one that is in use for something else."""

import asyncio
import contextlib
import sqlite3
import tracemalloc
from pathlib import Path

import pytest

from exporter import cli
from exporter.store.copying import TABLES, Digest, digest
from exporter.store.ledger import Ledger, open_engine
from exporter.store.schema import MIGRATIONS
from tests.postgres import Postgres, look
from tests.servers import real
from tests.store.test_databases import VERSIONS, unpacked

pytestmark = real("postgres")


async def ledger_of(url: str) -> Digest:
    engine = await open_engine(url)
    try:
        return await engine.run(digest())
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
    everything = await ledger_of(old)
    assert await asyncio.to_thread(copy, old, to) == 0
    assert await ledger_of(to) == everything
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
        "AND table_name NOT IN ('schema_version', 'probe', 'journal', 'replicas', 'leases')",
    )
    assert set(columns) == {(table, column) for table, names in TABLES.items() for column in str(names).split(", ")}
    assert look(to, "SELECT max(version) FROM schema_version") == [(str(len(MIGRATIONS)),)]


async def test_what_cannot_be_read_to_the_end_is_not_copied_at_all(
    old: str, server: Postgres, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last table but one is damaged: by then thousands of rows are on their way."""
    await (await open_engine(old)).close()
    file, to = Path(old.removeprefix("sqlite:///")), server.make()
    with contextlib.closing(sqlite3.connect(file)) as database:
        [(page,)] = database.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'operation_items'")
        [(size,)] = database.execute("PRAGMA page_size")
    with file.open("r+b") as opened:
        opened.seek((page - 1) * size)
        opened.write(b"\xff" * size)
    assert await asyncio.to_thread(copy, old, to) == 1
    assert "damaged" in capsys.readouterr().err
    assert (await ledger_of(to)).rows == dict.fromkeys(TABLES, 0)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """15,000 runs of half a kilobyte, and as many traces."""
    file = tmp_path_factory.mktemp("large") / "large.db"
    asyncio.run(_made(f"sqlite:///{file}"))
    with contextlib.closing(sqlite3.connect(file)) as database:
        numbers = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 15000)"
        values = "'s', 'r' || i, 'w', 'finished', 'success', i, i, 1, hex(randomblob(250))"
        database.execute(f"{numbers} INSERT INTO runs SELECT {values} FROM n")
        database.execute(f"{numbers} INSERT INTO traces SELECT 's', 'r' || i, 1, i, 1, hex(randomblob(250)) FROM n")
        database.commit()
    return f"sqlite:///{file}"


async def _made(url: str) -> None:
    await (await open_engine(url)).close()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_large_one_takes_little_memory(kind: str, large: str, tmp_path: Path, server: Postgres) -> None:
    to = f"sqlite:///{tmp_path}/to.db" if kind == "sqlite" else server.make()
    tracemalloc.start()
    try:
        assert copy(large, to) == 0
        assert copy(large, to) == 0  # to find that it is there already takes no more
        peak = tracemalloc.get_traced_memory()[1]
        assert peak < 12_000_000
    finally:
        tracemalloc.stop()
    assert look(to, "SELECT count(*) FROM runs") == look(to, "SELECT count(*) FROM traces") == [("15000",)]
