"""A copy of a SQLite database, whole, beside the service that goes on writing to it.

The snapshot of one reader is copied, page by page, by SQLite itself. Who reads refuses nobody; only the database's log
cannot begin anew meanwhile. The copy is made under another name in its folder and appears under its own when it is
complete, checked and on the disk: whatever is there under that name is a backup. A backup that was killed leaves its
half behind, which the next one into that folder removes; one that is under way is known by its lock.
"""

import fcntl
import os
import sqlite3
import tempfile
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from exporter.store.script import StoreError
from exporter.store.sqlite import explained

__all__ = ["Backup", "backup"]

#: What the name of a copy ends with until it is complete.
PART = ".automation-exporter-part"
#: Pages copied at a time (4 KiB each): Ctrl-C is heeded in between.
PAGES_PER_STEP = 4096
#: Milliseconds to wait for who has locked the database.
WAIT_MS = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """What was written."""

    path: Path
    bytes: int
    workflows: int
    runs: int
    dead_letters: int  # open ones


def backup(source: Path, target: Path) -> Backup:
    """Copy the database at ``source`` to ``target``, which is made, for its owner only. Raises ``StoreError``."""
    if not source.is_file():
        raise StoreError(f"there is no database {source}: nothing to back up")
    if os.path.lexists(target):
        raise _taken(target)
    try:
        _remove_halves(target.parent)
        handle, part = _begun(target)
    except OSError as exc:
        raise StoreError(f"cannot write {target}: {exc.strerror}: {target.parent}") from None
    try:
        with closing(_to_read(source)) as reader, closing(sqlite3.connect(part, isolation_level=None)) as writer:
            _copy(reader, writer)
            written = _checked(writer, source, target)
        _put(part, target)
    except sqlite3.Error as exc:
        raise StoreError(f"cannot back up {source} to {target}: {explained(exc)}") from None
    except OSError as exc:
        raise StoreError(f"cannot write {target}: {exc.strerror}") from None
    finally:
        for left in (part, Path(f"{part}-journal")):
            left.unlink(missing_ok=True)
        os.close(handle)
    return written


def _begun(target: Path) -> tuple[int, Path]:
    """A file for the copy, for its owner only, and locked for as long as it is open."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=PART, dir=target.parent)
        with suppress(OSError):  # some file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, Path(name)
        os.close(handle)  # somebody took it for one that was left, before it was locked


def _remove_halves(folder: Path) -> None:
    """What backups left that were killed. A file that is locked is still written; what is not ours to remove stays."""
    for half in folder.glob(f".*{PART}"):
        with suppress(OSError), half.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            half.unlink()


def _to_read(source: Path) -> sqlite3.Connection:
    reader = sqlite3.connect(f"file:{quote(str(source))}?mode=ro", uri=True, isolation_level=None)
    reader.execute(f"PRAGMA busy_timeout={WAIT_MS}")
    return reader


def _copy(reader: sqlite3.Connection, writer: sqlite3.Connection) -> None:
    # The copy is put on the disk as a whole, in the end.
    writer.execute("PRAGMA journal_mode=OFF")
    writer.execute("PRAGMA synchronous=OFF")
    # With the snapshot held, what the service writes meanwhile does not make the copy begin again, and again.
    reader.execute("BEGIN")
    reader.execute("SELECT 1 FROM sqlite_schema").fetchall()
    reader.backup(writer, pages=PAGES_PER_STEP, sleep=0)
    reader.execute("ROLLBACK")
    # One file, without a log beside it; the service switches to one again.
    writer.execute("PRAGMA journal_mode=DELETE")


def _checked(writer: sqlite3.Connection, source: Path, target: Path) -> Backup:
    """What the copy holds, once it is known to be whole. Raises ``StoreError``."""
    found = writer.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise StoreError(f"the database {source} is damaged, no backup was written: {' '.join(found.split())}")

    def count(what: str) -> int:
        number: int = writer.execute(f"SELECT count(*) FROM {what}").fetchone()[0]
        return number

    try:
        workflows, runs = count("workflows"), count("runs")
        dead_letters = count("dead_letters WHERE resolved_at IS NULL")
    except sqlite3.OperationalError:
        raise StoreError(f"{source} is no database of automation-exporter: no backup was written") from None
    size = writer.execute("PRAGMA page_count").fetchone()[0] * writer.execute("PRAGMA page_size").fetchone()[0]
    return Backup(path=target, bytes=size, workflows=workflows, runs=runs, dead_letters=dead_letters)


def _put(part: Path, target: Path) -> None:
    """Give a complete copy its name, unless somebody took that meanwhile."""
    _sync(part, os.O_RDWR)
    try:
        os.link(part, target)
    except FileExistsError:
        raise _taken(target) from None
    except OSError:  # a file system without hard links
        if os.path.lexists(target):
            raise _taken(target) from None
        part.rename(target)
    with suppress(OSError):  # some file systems do not sync folders
        _sync(target.parent, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _taken(target: Path) -> StoreError:
    if target.is_dir():
        return StoreError(f"{target} is a folder: name the file to write in it")
    return StoreError(f"{target} is there already and is left as it is: name another file")
