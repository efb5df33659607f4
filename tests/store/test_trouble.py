"""What happens when the store fails: by real faults, seen by whoever sends webhooks, asks for readiness or scrapes."""

import asyncio
import logging
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import aiohttp
import pytest
from msgspec.structs import replace

from exporter.clock import ManualClock
from exporter.model import Result, Run, State, Via
from exporter.model.ledger import Batch
from exporter.store import ledger as door
from exporter.store.ledger import Ledger, open_engine
from exporter.store.script import Engine, Script, StoreError, StoreUnavailable, T
from tests.e2e.deployment import Deployment, deployment
from tests.store.test_ledger import RULES
from tests.webhooks.service import Fronted, receiving
from tests.webhooks.test_receiver import event, post

NOW = 1_772_440_000.0


def batch(run_id: str = "r", size: int = 1) -> Batch:
    run = Run(workflow_id="w", id=run_id, state=State.FINISHED, result=Result.FAILURE, started_at=NOW, ended_at=NOW)
    runs = [replace(run, id=f"{run_id}{number}") for number in range(size)]
    return Batch(source="make", observations=runs, via=Via.WEBHOOK, now=NOW, started_at=NOW - 60, stream="webhook")


def database(made: Deployment) -> Path:
    return Path(made.config.store.url.removeprefix("sqlite:///"))


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Deployment]:
    folder = tmp_path / "data"
    folder.mkdir()
    async with deployment(folder, platforms=["make"]) as made:
        await made.service.ledger.ingest(batch("before"))
        yield made


async def ready(made: Deployment) -> list[str]:
    """What the service says is wrong with its store: nothing, or one line."""
    async with made.session.get(f"{made.url}/-/ready") as response:
        answer = await response.json()
        reasons = [reason["detail"] for reason in answer["reasons"] if reason["source"] == ""]
        assert not reasons or response.status == 503
        return reasons


async def up(made: Deployment) -> float:
    return (await made.samples("automation_exporter_store_up"))[("",)]


async def stored(made: Deployment, run_id: str) -> bool:
    """Whether an event is taken; it must not take long to hear that it is not."""
    began = time.monotonic()
    try:
        await made.service.ledger.ingest(batch(run_id))
    except StoreError:
        assert time.monotonic() - began < 5.0
        return False
    return True


def lines(caplog: pytest.LogCaptureFixture, level: int = logging.ERROR) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


async def down(made: Deployment, caplog: pytest.LogCaptureFixture, *, why: str) -> None:
    """Nothing is acknowledged, everybody is told, and the log has one line however much is refused."""
    assert [await stored(made, f"refused{number}") for number in range(5)] == [False] * 5
    assert await up(made) == 0.0
    [reason] = await ready(made)
    assert why in reason
    with pytest.raises(StoreError):
        await made.service.ledger.probe()
    with suppress(StoreError):
        await made.service.ledger.maintain(now=NOW, retention=1e9)
    assert lines(caplog) == ["nothing can be stored, webhooks get 503"]
    refused = await made.samples("automation_exporter_store_errors_total")
    assert refused["", "ingest"] >= 5.0


async def works(made: Deployment, caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    await made.service.ledger.probe()
    assert await stored(made, "after")
    assert await up(made) == 1.0
    assert await ready(made) == []
    assert lines(caplog) == []


# The database is not where it was


def unlink(file: Path) -> None:
    file.unlink()


def move(file: Path) -> None:
    file.rename(file.with_name("moved.db"))


def move_folder(file: Path) -> None:
    file.parent.rename(file.parent.with_name("moved"))


def remove_folder(file: Path) -> None:
    shutil.rmtree(file.parent)


def replace_it(file: Path) -> None:
    shutil.copy(file, file.with_name("copy.db"))
    file.with_name("copy.db").replace(file)


def replace_folder(file: Path) -> None:
    shutil.copytree(file.parent, file.parent.with_name("copied"))
    move_folder(file)
    file.parent.with_name("copied").rename(file.parent)


def truncate(file: Path) -> None:
    os.truncate(file, 4096)


def truncate_log(file: Path) -> None:
    os.truncate(file.with_name(file.name + "-wal"), 0)


def copy_over(file: Path) -> None:
    file.write_bytes(b"")


def lose(part: str) -> Callable[[Path], None]:
    def without(file: Path) -> None:
        file.with_name(file.name + part).unlink()

    return without


def swap(part: str) -> Callable[[Path], None]:
    def swapped(file: Path) -> None:
        one = file.with_name(file.name + part)
        shutil.copy(one, f"{one}.new")
        Path(f"{one}.new").replace(one)

    return swapped


LOST: dict[str, tuple[Callable[[Path], None], str]] = {
    "deleted": (unlink, "the database was deleted"),
    "moved": (move, "the database was moved"),
    "folder moved": (move_folder, "the database was moved"),
    "folder removed": (remove_folder, "the database was deleted"),
    "replaced": (replace_it, "another file is in the place of the database"),
    "folder replaced": (replace_folder, "another file is in the place of the database"),
    "cut short": (truncate, "cut short"),
    "copied over": (copy_over, "cut short"),
    "log deleted": (lose("-wal"), "-wal file was deleted"),
    "log replaced": (swap("-wal"), "-wal file was deleted, moved or replaced"),
    "index deleted": (lose("-shm"), "-shm file was deleted"),
    "index replaced": (swap("-shm"), "-shm file was deleted, moved or replaced"),
}


async def test_a_log_that_is_cut_short_is_a_damaged_database(
    made: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    truncate_log(database(made))
    await down(made, caplog, why="-wal file was cut short while in use: restore a backup")


@pytest.mark.parametrize("kind", LOST)
async def test_nothing_is_acknowledged_once_the_database_is_gone(
    made: Deployment, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    do, why = LOST[kind]
    await made.service.ledger.probe()  # with everything in the database file
    do(database(made))
    await down(made, caplog, why=why)


@pytest.mark.parametrize("kind", LOST)
async def test_readiness_finds_out_by_itself_that_the_database_is_gone(made: Deployment, kind: str) -> None:
    do, why = LOST[kind]
    await made.service.ledger.probe()
    assert await ready(made) == []
    do(database(made))
    [reason] = await ready(made)
    assert why in reason
    assert await up(made) == 0.0


async def test_a_symlink_that_is_pointed_elsewhere_is_another_database(tmp_path: Path) -> None:
    one, other, link = tmp_path / "one.db", tmp_path / "other.db", tmp_path / "link.db"
    for path in (one, other):
        await (await open_engine(f"sqlite:///{path}")).close()
    link.symlink_to(one)
    ledger = Ledger(await open_engine(f"sqlite:///{link}"), RULES)
    assert await ledger.check() is None
    link.unlink()
    link.symlink_to(other)
    assert "another file is in the place" in (await ledger.check() or "")
    link.unlink()
    with pytest.raises(StoreUnavailable, match="moved"):
        await ledger.probe()
    link.symlink_to(one)
    await ledger.probe()
    assert await ledger.check() is None
    await ledger.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
@pytest.mark.parametrize("what", ["file", "folder"])
async def test_something_mounted_over_the_database_hides_it(
    made: Deployment, tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = database(made)
    other = tmp_path / "other.db"
    shutil.copy(file, other)
    target = file if what == "file" else file.parent
    mount = ["mount", "--bind", str(other), str(file)] if what == "file" else ["mount", "-t", "tmpfs", "x", str(target)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting is not permitted here")
    try:
        await down(made, caplog, why="another file" if what == "file" else "moved")
    finally:
        subprocess.run(["umount", "-l", str(target)], check=True)
    await works(made, caplog)


async def test_a_database_that_is_put_back_is_used_again_with_all_that_was_acknowledged(
    made: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    file = database(made)
    move_folder(file)
    await down(made, caplog, why="put it back, and the service goes on by itself")
    file.parent.with_name("moved").rename(file.parent)
    await works(made, caplog)
    await made.restart()
    loaded = await made.service.ledger.transact("count", run_ids())
    assert loaded == {"before0", "after0"}


def run_ids() -> Script[set[str]]:
    rows = yield "SELECT run_id FROM runs WHERE source = $1", ("make",)
    return {row[0] for row in rows}


async def test_a_database_that_was_moved_alone_is_whole_and_what_replaced_it_is_not_mixed_with_its_log(
    made: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    """Its log stayed behind: a database put in its place would be given what is in that."""
    file = database(made)
    assert await stored(made, "more")
    file.rename(file.with_name("moved.db"))
    with sqlite3.connect(file) as other:
        other.execute("PRAGMA user_version = 7")
    other.close()
    await down(made, caplog, why="restart the service to use this one")
    await made.restart()
    assert await made.service.ledger.transact("count", run_ids()) == set()
    moved = sqlite3.connect(file.with_name("moved.db"))
    assert {row[0] for row in moved.execute("SELECT run_id FROM runs")} == {"before0", "more0"}
    moved.close()


@pytest.mark.parametrize("asked", [True, False], ids=["asked", "written to"])
async def test_what_was_only_in_a_log_that_was_deleted_is_in_the_database_at_once(
    made: Deployment, tmp_path: Path, asked: bool
) -> None:
    """So that even a kill right after loses nothing."""
    lose("-wal")(database(made))
    if asked:
        assert await ready(made)
    assert not await stored(made, "r")
    engine = made.service.ledger._engine
    await engine._call(lambda: None)  # type: ignore[attr-defined]  # the thread is done with it
    shutil.copy(database(made), tmp_path / "copy.db")
    copy = sqlite3.connect(tmp_path / "copy.db")
    assert [row[0] for row in copy.execute("SELECT run_id FROM runs")] == ["before0"]
    copy.close()


async def test_what_was_only_in_a_log_that_was_deleted_is_there_after_the_restart(
    made: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    lose("-wal")(database(made))
    await down(made, caplog, why="restart the service")
    await made.restart()
    assert await made.service.ledger.transact("count", run_ids()) == {"before0"}
    assert await stored(made, "after")


async def test_a_log_without_its_database_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The service was killed, and only the database was moved: SQLite would delete what the log holds."""
    left = tmp_path / "t.db-wal"
    left.write_bytes(b"acknowledged")
    engine = await open_engine(f"sqlite:///{tmp_path}/t.db")
    await engine.close()
    assert (tmp_path / "t.db-wal.left").read_bytes() == b"acknowledged"
    assert "the database is gone and its log is not" in caplog.text


class Held(Fronted):
    """An engine whose next commit takes until it is let go; what happens meanwhile is done by the test."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.committed, self.go = asyncio.Event(), asyncio.Event()
        self.go.set()

    async def run(self, script: Script[T], *, sources: Collection[str] | None = None) -> T:
        result = await self.engine.run(script, sources=sources)
        self.committed.set()
        await self.go.wait()
        return result


async def test_an_event_whose_commit_ends_after_the_database_is_gone_is_not_acknowledged(tmp_path: Path) -> None:
    held = Held(await open_engine(f"sqlite:///{tmp_path}/t.db"))
    ledger = Ledger(held, RULES)
    held.committed.clear()
    held.go.clear()
    waiting = asyncio.create_task(ledger.ingest(replace_source(batch())))
    await held.committed.wait()
    (tmp_path / "t.db").rename(tmp_path / "moved.db")
    with pytest.raises(StoreUnavailable):
        await held.check()
    held.go.set()
    with pytest.raises(StoreUnavailable, match="moved"):
        await waiting
    (tmp_path / "moved.db").rename(tmp_path / "t.db")
    await ledger.probe()
    assert (await ledger.ingest(replace_source(batch()))).news == 0, "what comes again counts once"
    await ledger.close()


def replace_source(one: Batch) -> Batch:
    return replace(one, source="held")


# The disk is full, locked, failing


@contextmanager
def small_disk(at: Path, *, size: str = "3m") -> Iterator[Path]:
    at.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(at)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small disk takes root and the right to mount")
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


def fill(folder: Path) -> Path:
    """Take all the room there is."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"x" * 4096):
            pass
    return ballast


async def test_a_full_disk_is_noticed_without_a_single_event_and_recovers_by_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path / "small") as folder:
        async with deployment(folder, platforms=["make"]) as made:
            await made.service.ledger.ingest(batch("before"))
            ballast = fill(folder)
            assert "full" in (await ready(made))[0]
            await down(made, caplog, why="the disk of the database is full")
            ballast.unlink()
            recovering = asyncio.create_task(made.service.ledger.recover(made.clock.sleep))
            await made.drive(until(lambda: made.service.ledger.error is None))
            recovering.cancel()
            await works(made, caplog)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # the probing write is on a thread
        await asyncio.sleep(0.01)


async def test_some_kilobytes_of_room_do_not_end_the_trouble(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", size="4m") as folder:
        async with deployment(folder, platforms=["make"]) as made:
            ballast = fill(folder)
            assert not await stored(made, "big") or not await stored_many(made)
            os.truncate(ballast, ballast.stat().st_size - 200 * 1024)
            with pytest.raises(StoreUnavailable, match="full"):
                await made.service.ledger.probe()
            os.truncate(ballast, 0)
            await made.service.ledger.probe()
            assert await stored(made, "after")


async def stored_many(made: Deployment) -> bool:
    with suppress(StoreError):
        await made.service.ledger.ingest(batch("many", 3000))
        return True
    return False


async def test_a_database_locked_by_another_process_is_refused_at_once(
    made: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    code = "import sqlite3,sys; c=sqlite3.connect(sys.argv[1],isolation_level=None); c.execute('BEGIN EXCLUSIVE')\n"
    code += "print('locked',flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(database(made))], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        began = time.monotonic()
        answers = await asyncio.gather(
            *(made.service.ledger.ingest(batch(f"r{n}")) for n in range(20)),
            *(made.service.ledger.transact("other", run_ids()) for _ in range(20)),
            return_exceptions=True,
        )
        assert {type(answer) for answer in answers} == {StoreUnavailable}
        assert time.monotonic() - began < 8.0, "one wait of a second for all of them, not one for each"
        await down(made, caplog, why="another process has locked the database")
        other.stdin and other.stdin.close()
        other.wait(30)
    await works(made, caplog)


async def test_senders_of_webhooks_get_503_with_a_time_to_come_back_while_the_database_is_locked(
    tmp_path: Path,
) -> None:
    async with receiving(tmp_path / "t.db", clock=ManualClock(NOW)) as service:
        other = sqlite3.connect(tmp_path / "t.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        answers = await asyncio.gather(*(post(service, event(f"r{number}")) for number in range(30)))
        assert {answer.status for answer in answers} == {503}
        assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers)
        wake = {"event": "run.started", "workflow_id": "5012", "run_id": "x", "started_at": NOW}
        assert (await post(service, wake)).status == 503
        other.execute("ROLLBACK")
        other.close()
        await service.ledger.probe()
        assert (await post(service, event())).status == 202


@contextmanager
def file_size_max(size: int) -> Iterator[None]:
    """What is written beyond this many bytes fails, as on a disk that does: EFBIG is an I/O error to SQLite."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_disk_that_fails_is_noticed_and_recovers(made: Deployment, caplog: pytest.LogCaptureFixture) -> None:
    with file_size_max(4096):
        with pytest.raises(StoreError):
            await made.service.ledger.probe()
        await down(made, caplog, why="the disk of the database fails")
    await works(made, caplog)


async def test_a_damaged_database_is_one_clear_line(made: Deployment, caplog: pytest.LogCaptureFixture) -> None:
    await made.service.ledger.probe()
    engine = made.service.ledger._engine
    with database(made).open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        file.write(os.urandom(size))
    connection: sqlite3.Connection = engine._connection  # type: ignore[attr-defined]
    connection.execute("PRAGMA shrink_memory")  # as if it were larger than the memory for it
    await down(made, caplog, why="the database is damaged")
    with pytest.raises(StoreUnavailable):
        await made.service.ledger.probe()


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"SQLite format 3\0" + b"\xff" * 8000])
async def test_a_file_that_is_no_database_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.db").write_bytes(content)
    with pytest.raises(StoreError, match=r"cannot open the database .*restore a backup") as caught:
        await open_engine(f"sqlite:///{tmp_path}/t.db")
    assert len(str(caught.value).splitlines()) == 1


async def test_rows_that_cannot_be_read_are_one_clear_line(made: Deployment) -> None:
    def spoil() -> Script[None]:
        yield "INSERT INTO workflows (source, workflow_id, data) VALUES ('make', 'w9', '{')", ()

    await made.service.ledger.transact("spoil", spoil())
    with pytest.raises(StoreError, match="restore a backup"):
        await made.service.ledger.load()


class Hanging(Fronted):
    hangs = asyncio.Event()

    async def run(self, script: Script[T], *, sources: Collection[str] | None = None) -> T:
        await self.hangs.wait()
        return await self.engine.run(script, sources=sources)


async def test_a_disk_that_hangs_lets_nobody_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "COMMIT_SECONDS_MAX", 0.1)
    engine = Hanging(await open_engine(f"sqlite:///{tmp_path}/t.db"))
    engine.hangs = asyncio.Event()
    ledger = Ledger(engine, RULES)
    first = asyncio.create_task(ledger.ingest(replace_source(batch())))
    await asyncio.sleep(0)
    with pytest.raises(StoreUnavailable, match="hangs"):
        await ledger.ingest(replace_source(batch("other")))
    with pytest.raises(StoreUnavailable, match="hangs"):
        await first
    assert await ledger.check() is not None
    engine.hangs.set()
    await ledger.probe()
    assert (await ledger.ingest(replace_source(batch()))).news == 0, "it was stored after all"
    await ledger.close()


async def test_a_reader_that_never_ends_stops_nothing_and_is_named_before_the_disk_is_full(
    made: Deployment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("exporter.store.sqlite.LOG_BYTES_MAX", 200_000)
    reader = sqlite3.connect(f"file:{database(made)}?mode=ro", uri=True, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM runs").fetchall()
    for number in range(3):
        assert await stored(made, f"r{number}")
        await made.service.ledger.probe()
    assert await up(made) == 1.0
    assert lines(caplog, logging.WARNING) == ["the database's log grows: a program reads it and does not end"]
    reader.close()
    await made.service.ledger.probe()
    assert Path(f"{database(made)}-wal").stat().st_size < 200_000


# Nobody else is blamed


async def test_a_sweep_that_cannot_be_stored_blames_the_store_and_asks_the_platform_for_nothing(
    made: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    await made.sweep()
    file = database(made)
    move(file)
    assert not await stored(made, "r")
    caplog.clear()
    before = await made.samples("automation_exporter_api_requests_total")
    await made.sweep()
    assert await made.samples("automation_exporter_api_requests_total") == before
    assert (await made.samples("automation_source_up"))[("make",)] == 1.0
    errors = await made.samples("automation_exporter_sweep_errors_total")
    assert errors
    assert all("store" in key for key, value in errors.items() if value)
    assert lines(caplog, logging.WARNING) == []
    file.with_name("moved.db").rename(file)
    await made.service.ledger.probe()
    await made.sweep()
    assert await ready(made) == []


async def test_a_service_recovers_within_seconds_with_its_own_loops(tmp_path: Path) -> None:
    from exporter import app  # the whole of it, with its loops and the real clock
    from exporter.clock import SystemClock
    from exporter.simulator.fleet import Fleet, demo_config

    clock = SystemClock()
    async with Fleet.open(clock=clock, platforms=["make"]) as fleet:
        config = demo_config(fleet, listen="127.0.0.1:0", database=tmp_path / "t.db")
        async with app.service(config, clock=clock) as running, aiohttp.ClientSession():
            (tmp_path / "t.db").rename(tmp_path / "moved.db")
            assert await running.ledger.check() is not None
            (tmp_path / "moved.db").rename(tmp_path / "t.db")
            async with asyncio.timeout(30):
                await until(lambda: running.ledger.error is None)
