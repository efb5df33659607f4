"""One process at a time on a database, by whatever name it goes, and files that are nobody else's business."""

import asyncio
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from exporter.config import parse
from exporter.store.ledger import open_engine
from exporter.store.place import Place
from exporter.store.script import Script, StoreError
from exporter.web import local

OPEN = "import asyncio, sys; from exporter.store.ledger import open_engine\n"
OPEN += "async def main(): await open_engine(sys.argv[1], to_read=sys.argv[2:] == ['to_read'])\n"
OPEN += "from exporter.store.script import StoreError\n"
OPEN += "try: asyncio.run(main())\nexcept StoreError as exc: print(exc); sys.exit(1)"


async def opened_elsewhere(url: str, *how: str, cwd: Path | None = None) -> tuple[int, str]:
    """Open the database in another process: its exit code and what it said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", OPEN, url, *how, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, said.decode()


@pytest.fixture
async def file(tmp_path: Path) -> AsyncIterator[Path]:
    """A database in use by this process."""
    folder = tmp_path / "data"
    folder.mkdir()
    engine = await open_engine(f"sqlite:///{folder}/t.db")
    yield folder / "t.db"
    await engine.close()


@contextmanager
def as_it_is(file: Path) -> Iterator[tuple[str, Path | None]]:
    yield f"sqlite:///{file}", None


@contextmanager
def symlink(file: Path) -> Iterator[tuple[str, Path | None]]:
    link = file.parent.parent / "link.db"
    link.symlink_to(file)
    yield f"sqlite:///{link}", None


@contextmanager
def symlinked_folder(file: Path) -> Iterator[tuple[str, Path | None]]:
    link = file.parent.parent / "folder"
    link.symlink_to(file.parent)
    yield f"sqlite:///{link}/t.db", None


@contextmanager
def hard_link(file: Path) -> Iterator[tuple[str, Path | None]]:
    link = file.parent / "hard.db"
    link.hardlink_to(file)
    yield f"sqlite:///{link}", None


@contextmanager
def bind_mount(file: Path) -> Iterator[tuple[str, Path | None]]:
    other = file.parent.parent / "other"
    other.mkdir()
    (other / "t.db").touch()
    if subprocess.run(["mount", "--bind", file, other / "t.db"], capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting is not permitted here")
    try:
        yield f"sqlite:///{other}/t.db", None
    finally:
        subprocess.run(["umount", "-l", other / "t.db"], check=True)


@contextmanager
def relative(file: Path) -> Iterator[tuple[str, Path | None]]:
    yield "sqlite:///../data/t.db", file.parent


@contextmanager
def lock_file_removed(file: Path) -> Iterator[tuple[str, Path | None]]:
    Path(f"{file}.lock").unlink()
    yield f"sqlite:///{file}", None


@contextmanager
def moved_away(file: Path) -> Iterator[tuple[str, Path | None]]:
    file.rename(file.with_name("away.db"))
    yield f"sqlite:///{file}", None
    file.with_name("away.db").rename(file)


Way = Callable[[Path], AbstractContextManager[tuple[str, Path | None]]]
WAYS: list[Way] = [as_it_is, symlink, symlinked_folder, hard_link, bind_mount, relative, lock_file_removed, moved_away]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has locks that belong to a descriptor")
@pytest.mark.parametrize("way", WAYS)
async def test_a_second_process_is_refused_whatever_name_the_database_goes_by(file: Path, way: Way) -> None:
    with way(file) as (url, cwd):
        code, said = await opened_elsewhere(url, cwd=cwd)
    assert (code, len(said.splitlines())) == (1, 1)
    assert said.startswith("another process is using the database")
    assert "stop it, or give this one another store.url" in said


@pytest.mark.parametrize("way", [way for way in WAYS if way is not relative])
async def test_a_second_one_in_the_same_process_is_refused_and_costs_the_first_no_lock(file: Path, way: Way) -> None:
    """The kernel forgets all of SQLite's locks once the process closes any descriptor of the file."""
    with way(file) as (url, _):
        with pytest.raises(StoreError, match="another process is using the database"):
            await open_engine(url)
        if way is not moved_away:
            with sqlite_locks(file) as held:
                assert held, "SQLite's own shared lock"


@contextmanager
def sqlite_locks(file: Path) -> Iterator[list[str]]:
    inode = str(file.stat().st_ino)
    yield [line for line in Path("/proc/locks").read_text().splitlines() if "POSIX" in line and f":{inode} " in line]


async def test_whoever_only_reads_is_let_in_beside_it(file: Path) -> None:
    assert await opened_elsewhere(f"sqlite:///{file}", "to_read") == (0, "")


async def test_it_can_be_used_again_once_it_was_let_go_of(tmp_path: Path) -> None:
    for _ in range(2):
        engine = await open_engine(f"sqlite:///{tmp_path}/t.db")
        await engine.close()
    assert await opened_elsewhere(f"sqlite:///{tmp_path}/t.db") == (0, "")


async def test_a_database_that_could_not_be_opened_is_let_go_of(tmp_path: Path) -> None:
    (tmp_path / "t.db").write_bytes(b"not a database" * 100)
    for _ in range(2):
        with pytest.raises(StoreError, match="cannot open the database"):
            await open_engine(f"sqlite:///{tmp_path}/t.db")
    (tmp_path / "t.db").unlink()
    await (await open_engine(f"sqlite:///{tmp_path}/t.db")).close()


def write() -> Script[None]:
    yield "INSERT INTO sources (source, first_sweep_at) VALUES ('a', 1.0)", ()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o177])
async def test_new_files_are_for_their_owner_only_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        engine = await open_engine(f"sqlite:///{tmp_path}/t.db")
        await engine.run(write())
        config = parse(
            f"store: {{url: 'sqlite:///{tmp_path}/t.db'}}\n"
            "sources: {m: {platform: cognaize, url: 'http://localhost', token: abcd}}\n",
            {},
        )
        local.announce(config, port=1, token="t")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("t.db", "t.db-wal", "t.db-shm", "t.db.lock", "t.db.control"), 0o600)
    await engine.close()


async def test_files_there_are_keep_their_mode_and_one_that_all_can_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await (await open_engine(f"sqlite:///{tmp_path}/t.db")).close()
    assert "can read the database" not in caplog.text
    for mode, warned in ((0o640, False), (0o644, True)):
        (tmp_path / "t.db").chmod(mode)
        engine = await open_engine(f"sqlite:///{tmp_path}/t.db")
        assert stat.S_IMODE((tmp_path / "t.db").stat().st_mode) == mode
        assert ("every user of this machine can read the database" in caplog.text) is warned
        await engine.close()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: shutil.rmtree(folder), "No such file or directory"),
        (lambda folder: (folder / "t.db").mkdir(), "Is a directory"),
    ],
)
async def test_a_database_that_cannot_be_made_is_one_clear_line(
    tmp_path: Path, spoil: Callable[[Path], None], says: str
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    spoil(folder)
    with pytest.raises(StoreError, match=f"cannot open or create .*t.db: {says}"):
        await open_engine(f"sqlite:///{folder}/t.db")


def said_as(user: int, path: Path) -> str:
    """What whoever has this user id is told, who wants to use the database at ``path``."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            Place.take(path)
        except StoreError as exc:
            os.write(writing, str(exc).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as said:
        text = said.read()
    os.waitpid(child, 0)
    return text


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's volume takes root to try")
@pytest.mark.parametrize("what", ["the folder", "the database", "the lock"])
def test_a_volume_of_another_user_is_one_line_with_the_way_out(what: str, tmp_path: Path) -> None:
    """As a fresh volume, one that a service of root has used, and one that a backup was put into as root."""
    with TemporaryDirectory() as outside:  # of pytest, whose folders are closed to others
        folder = Path(outside)
        folder.chmod(0o755 if what == "the folder" else 0o777)
        theirs = {"the folder": folder, "the database": folder / "x.db", "the lock": folder / "x.db.lock"}[what]
        if theirs != folder:
            theirs.touch(0o644)
        mode = "755" if what == "the folder" else "644"
        said = said_as(65532, folder / "x.db")
        assert said.startswith("cannot open or create ")
        assert said.endswith(
            f": {theirs} belongs to uid 0, gid 0 (mode {mode}) and cannot be written to by this process, uid 65532, "
            "gid 65532: `chown -R 65532:65532` it (Kubernetes: fsGroup: 65532), or run as its owner"
        )


async def test_a_folder_that_may_not_be_written_is_one_clear_line(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "none", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a read-only disk takes root and the right to mount")
    try:
        with pytest.raises(StoreError, match="Read-only file system"):
            await open_engine(f"sqlite:///{tmp_path}/t.db")
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


async def test_a_database_locked_at_the_start_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporter.store.sqlite.OPENING_WAIT_MS", 50)
    await (await open_engine(f"sqlite:///{tmp_path}/t.db")).close()
    other = sqlite3.connect(tmp_path / "t.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match=r"cannot open the database .*another process has locked the database"):
        await open_engine(f"sqlite:///{tmp_path}/t.db")
    other.close()
