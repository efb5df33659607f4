"""The files of a SQLite database: made for their owner only, locked, and watched while they are in use.

**One process at a time.** What is locked is the database file itself, so a second name for it (a symlink, a hard link,
a bind mount, another way to write the path) or a lock file that somebody removed makes no difference. SQLite has POSIX
locks of its own on the first gigabyte of that file, and the kernel drops all POSIX locks of a process as soon as it
closes *any* descriptor of the file. Hence:

- the lock is an OFD lock ("open file description", Linux), which belongs to one descriptor and not to the process. It
  is on one byte far beyond those SQLite uses, so the two never meet. ``flock`` would do as well on a local disk, but
  NFS turns it into a POSIX lock on the whole file, which would keep out SQLite itself;
- the descriptor stays open for as long as the database is, and a database that this process has open already is
  refused before its file is opened a second time.

The lock file beside the database is kept: it keeps out earlier versions, and a second service while the database is
moved away, and it is all there is where the system has no OFD locks. Who only reads takes no lock.

**Still there?** A file that was deleted, moved or replaced while it is open takes every write without an error, and
nobody will ever read it. So the file at the configured path is compared with the one that was opened, and so are the
log (``-wal``) and its index (``-shm``), without which the database is not whole.
"""

import errno
import fcntl
import os
import struct
from contextlib import suppress
from pathlib import Path

from exporter.log import get_logger
from exporter.store.script import StoreError, StoreInUse

log = get_logger(__name__)

#: The byte of the database file that is locked; SQLite uses 510 bytes from 2**30 on.
LOCKED_BYTE = 2**62
#: A log beyond this size (bytes) is worth a warning: SQLite starts it anew at 4 MB unless somebody keeps reading.
LOG_BYTES_MAX = 64 * 1024 * 1024

#: Device and inode of the databases this process has open.
_open_here: set[tuple[int, int]] = set()


class Place:
    """Where the database is configured to be, and the file that was opened there. Make one with ``take``."""

    def __init__(self, path: Path, real: Path, database: int, lock: int) -> None:
        self.path = path  # as configured, but absolute: a symlink in it may be pointed elsewhere
        self.real = real  # where SQLite keeps the log
        self._database = database
        self._lock = lock
        self._identity = _identity(str(path))
        self._parts: dict[str, tuple[int, int] | None] = {}
        self._size = 0  # SQLite shrinks the file for VACUUM only, which is not used here
        self.is_cut = False
        self._log_size = 0

    @classmethod
    def take(cls, path: Path) -> "Place":
        """Create what is missing, for the owner only, and lock it. Raises ``StoreError``."""
        path, real = Path(os.path.abspath(path)), Path(os.path.realpath(path))
        lock = _open(f"{real}.lock", path)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _seen(str(real)) in _open_here:
                raise BlockingIOError
            _set_aside(real)
            database = _open(str(real), path)
        except BlockingIOError:
            os.close(lock)
            raise _in_use(path) from None
        except BaseException:
            os.close(lock)
            raise
        try:
            _lock_byte(database)
            place = cls(path, real, database, lock)
        except BaseException as exc:
            os.close(database)
            os.close(lock)
            if isinstance(exc, BlockingIOError | PermissionError):
                raise _in_use(path) from None
            if isinstance(exc, OSError):
                raise StoreError(f"cannot lock the database {path}: {exc.strerror}; use a local disk") from None
            raise
        _open_here.add(place._identity or (0, 0))
        _warn_of_readers(real)
        return place

    def release(self) -> None:
        """Let go of it, once SQLite has closed it."""
        _open_here.discard(self._identity or (0, 0))
        os.close(self._database)
        os.close(self._lock)

    def know_log(self) -> None:
        """Remember the log and its index, which SQLite has made by now and keeps until it closes the database."""
        self._parts = {part: _seen(f"{self.real}{part}") for part in ("-wal", "-shm")}

    def problem(self) -> str | None:
        """Why what is written now might be lost, and the way out; None while everything is in its place.

        It takes some microseconds, and may be asked from any thread.
        """
        try:
            here = _identity(str(self.path))
            if here != self._identity:
                return self._lost(here)
            size = os.fstat(self._database).st_size
            self.is_cut = self.is_cut or size < self._size
            if self.is_cut:
                return "the database file was cut short while in use: restore a backup and restart the service"
            self._size = size
            for part, known in self._parts.items():
                if known is not None and _identity(f"{self.real}{part}") != known:
                    return (
                        f"the database's {part} file was deleted, moved or replaced while in use: "
                        "put it back, or restart the service"
                    )
        except OSError as exc:
            return f"the database file cannot be looked at: {exc.strerror}"
        return None

    def _lost(self, here: tuple[int, int] | None) -> str:
        if here is not None:
            return (
                "another file is in the place of the database: put the old one back, or restart the service to use "
                "this one"
            )
        if os.fstat(self._database).st_nlink == 0:
            return "the database was deleted while in use: put a backup in its place and restart the service"
        return "the database was moved, or a folder above it: put it back, and the service goes on by itself"

    def log_was_cut(self) -> bool:
        """Whether somebody else made the log shorter. For the thread that writes: it says when it emptied the log."""
        size = self.log_bytes()
        was_cut, self._log_size = size < self._log_size, size
        return was_cut

    def log_emptied(self) -> None:
        self._log_size = self.log_bytes()

    def room(self) -> float:
        """Bytes that are left on the disk, as far as it says so."""
        with suppress(OSError):
            disk = os.statvfs(self.real)
            if disk.f_blocks:
                return disk.f_frsize * (disk.f_bavail if os.geteuid() else disk.f_bfree)
        return float("inf")

    def log_bytes(self) -> int:
        """How large the log is."""
        with suppress(OSError):
            return os.stat(f"{self.real}-wal").st_size
        return 0


def _identity(path: str) -> tuple[int, int] | None:
    """Device and inode of what is at a path, None if nothing is."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def _seen(path: str) -> tuple[int, int] | None:
    with suppress(OSError):
        return _identity(path)
    return None


def _open(file: str, path: Path) -> int:
    """Open to read and write. What is not there is made, for its owner only whatever the umask says."""
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        try:
            handle = os.open(file, flags | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return os.open(file, flags)
        os.fchmod(handle, 0o600)
        return handle
    except OSError as exc:
        raise StoreError(f"cannot open or create {file} of the database {path}: {_way_out(exc, file)}") from None


def _way_out(exc: OSError, file: str) -> str:
    folder = os.path.dirname(file)
    if exc.errno == errno.EROFS:
        return f"Read-only file system: mount a volume at {folder}, or give store.url another folder"
    if exc.errno in (errno.EACCES, errno.EPERM):
        with suppress(OSError):
            return not_ours(file if os.path.exists(file) else folder)
    return exc.strerror or str(exc)


def not_ours(path: str) -> str:
    """Why this process may not write to a file or folder, and what to do; often it is a volume made by another user."""
    found, uid, gid = os.stat(path), os.geteuid(), os.getegid()
    mode = f"{found.st_mode & 0o7777:o}"
    if found.st_uid == uid:
        return f"{path} (mode {mode}) cannot be written to, though it is this user's: look at its mode and its mount"
    return (
        f"{path} belongs to uid {found.st_uid}, gid {found.st_gid} (mode {mode}) and cannot be written to by this "
        f"process, uid {uid}, gid {gid}: `chown -R {uid}:{gid}` it (Kubernetes: fsGroup: {gid}), or run as its owner"
    )


def _lock_byte(database: int) -> None:
    command = getattr(fcntl, "F_OFD_SETLK", None)
    if command is not None:
        # struct flock: type, whence, start, length, pid
        fcntl.fcntl(database, command, struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, LOCKED_BYTE, 1, 0))


def _in_use(path: Path) -> StoreInUse:
    return StoreInUse(f"another process is using the database {path}: stop it, or give this one another store.url")


def _set_aside(real: Path) -> None:
    """Keep the log of a database that is not there: SQLite would delete it, and the database may yet be found."""
    left = f"{real}-wal"
    with suppress(FileNotFoundError):
        if not real.exists() and os.stat(left).st_size:
            os.replace(left, f"{left}.left")
            log.warning(
                "the database is gone and its log is not: a new one is begun",
                database=str(real),
                kept=f"{left}.left",
            )


def _warn_of_readers(real: Path) -> None:
    """One line if others than the owner and the group can read or change what is there already."""
    open_to_all = []
    for part in ("", "-wal", "-shm"):
        with suppress(OSError):
            if os.stat(f"{real}{part}").st_mode & 0o006:
                open_to_all.append(f"{real}{part}")
    if open_to_all:
        files = " ".join(open_to_all)
        log.warning("every user of this machine can read the database", files=files, remedy=f"chmod o-rwx {files}")
