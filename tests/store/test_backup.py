"""Backups of a database in use: whole, its owner's alone, never over something else; and what a restored one counts."""

import asyncio
import contextlib
import fcntl
import gzip
import os
import re
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from exporter import cli
from exporter.store.backup import PART
from tests.cli.test_commands import Process, command, config, get, run, simulated
from tests.cli.test_store import Sender, stored
from tests.servers import eventually
from tests.store.test_trouble import fill, small_disk

DATABASES = Path(__file__).parent / "databases"
MAKE = {"platform": "make", "organization_id": 9}


def backed_up(database: Path, to: Path) -> int:
    return cli.main(["store", "backup", "--store", f"sqlite:///{database}", str(to)])


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """One of ours, of the oldest release there is one of: backups are made before upgrades."""
    file = tmp_path / "x.db"
    file.write_bytes(gzip.decompress(sorted(DATABASES.glob("*.db.gz"))[0].read_bytes()))
    return file


def rows(file: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [line for line in connection.iterdump() if "journal" not in line]


def test_a_backup_is_one_whole_file_for_its_owner_only(
    tmp_path: Path, database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    before = os.umask(0)
    try:
        assert backed_up(database, folder / "y.db") == 0
    finally:
        os.umask(before)
    assert [path.name for path in folder.iterdir()] == ["y.db"]
    assert (folder / "y.db").stat().st_mode & 0o777 == 0o600
    assert rows(folder / "y.db") == rows(database)
    said = capsys.readouterr().out
    assert re.fullmatch(rf"{folder}/y\.db: [\d.]+ MB, whole: \d+ workflows?, \d+ runs?, \d+ open dead letters?\n", said)


@pytest.fixture(params=["file", "folder", "link to nowhere"])
def taken(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "taken"
    match request.param:
        case "file":
            path.write_text("precious")
        case "folder":
            path.mkdir()
        case _:
            path.symlink_to(tmp_path / "nowhere")
    return path


def test_nothing_that_is_there_is_written_over(
    tmp_path: Path, database: Path, taken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    assert backed_up(database, taken) == 1
    assert re.fullmatch(rf"automation-exporter: {taken} is (there already|a folder).*\n", capsys.readouterr().err)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert not taken.is_file() or taken.read_text() == "precious"


def damage(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(4096 + 8)
        opened.write(b"\xff" * 4000)


def not_ours(file: Path) -> None:
    file.unlink()
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE somebody (s)")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (Path.unlink, "there is no database .*x.db: nothing to back up"),
        (damage, "the database .*damaged"),
        (not_ours, ".*x.db is no database of automation-exporter: no backup was written"),
        (lambda file: file.write_text("no database at all" * 1000), "cannot back up .*file is not a database"),
    ],
    ids=["none", "damaged", "not ours", "no database"],
)
def test_what_cannot_be_backed_up_is_one_line_and_leaves_nothing(
    tmp_path: Path, database: Path, spoil: Callable[[Path], object], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    spoil(database)
    assert backed_up(database, folder / "y.db") == 1
    assert re.fullmatch(rf"automation-exporter: .*{says}.*\n", capsys.readouterr().err)
    assert list(folder.iterdir()) == []


def test_a_folder_that_is_not_there_is_named(
    tmp_path: Path, database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert backed_up(database, tmp_path / "nowhere" / "y.db") == 1
    assert re.fullmatch(r"automation-exporter: cannot write .*/nowhere/y.db: No such .*\n", capsys.readouterr().err)


def test_a_full_disk_leaves_no_half_a_backup(
    tmp_path: Path, database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "small", size="1m") as disk:
        ballast = fill(disk)
        assert backed_up(database, disk / "y.db") == 1
        assert re.fullmatch(r"automation-exporter: cannot .*(full|No space).*\n", capsys.readouterr().err)
        assert list(disk.iterdir()) == [ballast]


async def test_what_a_killed_backup_left_is_removed_by_the_next_and_another_one_under_way_is_not(
    tmp_path: Path, database: Path
) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE ballast AS SELECT randomblob(60000000)")
        connection.commit()
    async with command(tmp_path, "store", "backup", "--store", f"sqlite:///{database}", str(folder / "x.db")) as killed:

        async def begun() -> list[Path]:
            assert killed.process.returncode is None, "it was done too soon"
            return list(folder.iterdir())

        await eventually(begun, every=0)
        await killed.stop(signal.SIGKILL)
    [half] = folder.iterdir()
    busy = folder / f".other.db.12345678{PART}"
    with busy.open("w") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        code, said = await run(tmp_path, "store", "backup", "--store", f"sqlite:///{database}", str(folder / "y.db"))
    assert code == 0, said
    assert said.count("\n") == 1
    assert not half.exists()
    assert sorted(folder.iterdir()) == [busy, folder / "y.db"]


def counters(text: str) -> Iterator[str]:
    """What a restart must not change: the totals of workflows."""
    return (line for line in text.splitlines() if re.match(r"automation_(?!exporter)\w+_total\{", line))


@contextlib.asynccontextmanager
async def sending(sender: Sender) -> AsyncIterator[None]:
    async def send() -> None:
        while True:
            assert await sender.send() == 202

    task = asyncio.create_task(send())
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_backups_of_a_service_at_work_and_a_restored_one_goes_on(tmp_path: Path) -> None:
    async def metrics(service: Process) -> str:
        port = await service.found(r"msg=running .*port=(\d+)")
        return (await get(f"http://127.0.0.1:{port}/metrics"))[1]

    database, kept = tmp_path / "x.db", tmp_path / "kept.db"
    async with simulated(tmp_path, "make") as url:
        path = config(tmp_path, url, **MAKE)
        async with command(tmp_path, "run", "--config", str(path)) as service:
            sender = Sender(await service.found(r"msg=running .*port=(\d+)"))
            assert await eventually(sender.is_up)
            async with sending(sender):
                for number in range(3):
                    acknowledged, to = set(sender.taken), tmp_path / f"backup{number}.db"
                    code, said = await run(tmp_path, "store", "backup", "--config", str(path), str(to))
                    assert code == 0, said
                    assert rows(to)
                    assert acknowledged <= stored(to)
            assert len(sender.taken) > 10
    # The simulator is gone: from here on nothing but webhooks changes the totals, and none comes.
    async with command(tmp_path, "run", "--config", str(path)) as service:
        total = sorted(counters(await metrics(service)))
        assert total
        assert (await run(tmp_path, "store", "backup", "--config", str(path), str(kept)))[0] == 0
        later = Sender(await service.found(r"msg=running .*port=(\d+)"))
        later.sent = 10_000
        assert [await later.send() for _ in range(3)] == [202] * 3  # it goes on
        assert sorted(counters(await metrics(service))) != total
        service.process.send_signal(signal.SIGKILL)
        await service.process.wait()
    for part in ("", "-wal", "-shm"):
        Path(f"{database}{part}").rename(tmp_path / f"old{part}")
    kept.rename(database)
    async with command(tmp_path, "run", "--config", str(path)) as service:
        assert sorted(counters(await metrics(service))) == total
        assert await service.stop() == 0
    async with simulated(tmp_path, "make") as url:
        async with command(tmp_path, "run", "--config", str(config(tmp_path, url, **MAKE))) as service:
            again = Sender(await service.found(r"msg=running .*port=(\d+)"))
            again.sent = 20_000
            assert await eventually(again.is_up)
            assert await again.send() == 202
            assert await service.stop() == 0
    assert again.taken <= stored(database)
