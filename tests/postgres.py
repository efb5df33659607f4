"""A real PostgreSQL for tests: Debian's, on loopback, in a folder of its own, as a user without rights."""

import os
import pwd
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from tests.servers import PATIENCE_SECONDS, free_port

#: Who may enter: members of the role ``secured`` with their password, of ``encrypted`` with TLS, of ``certified`` with
#: a certificate as well, everybody else without.
_HBA = """
host all +secured all scram-sha-256
hostnossl all +encrypted all reject
hostssl all +certified all cert
host all all all trust
"""
#: Attempts to start it.
_STARTS_MAX = 60
#: Where Debian puts the programs of its versions, the newest first.
_PLACES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


def program(name: str) -> str | None:
    """The path of one of its programs, None where it is not installed."""
    return shutil.which(name) or next((str(p / name) for p in _PLACES if (p / name).exists()), None)


@dataclass(slots=True)
class Postgres:
    """A running server. Everybody on this machine may enter, but for those who are ``secured``."""

    port: int
    home: Path
    _numbers: Iterator[int]

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def make(self) -> str:
        """The URL of a new, empty database."""
        name = f"t{next(self._numbers)}"
        _run("psql", "-q", "-d", self.url(), "-c", f"CREATE DATABASE {name}")
        return self.url(name)

    def secured(self, password: str, role: str = "secured") -> str:
        """The URL of a new, empty database, and its owner, whom the server lets in with a password only."""
        url, owner = self.make(), f"owner{next(self._numbers)}"
        self.sql(self.url(), f"CREATE ROLE {owner} LOGIN IN ROLE {role} PASSWORD '{password}'")
        self.sql(self.url(), f"ALTER DATABASE {url.rpartition('/')[2]} OWNER TO {owner}")
        return url.replace("postgres@", f"{owner}@")

    def speak_tls(self, certificate: Path, key: Path, clients: Path) -> None:
        """From now on, with this certificate, and trusting those of clients."""
        for name, file in (("ssl_cert_file", certificate), ("ssl_key_file", key), ("ssl_ca_file", clients)):
            copy = self.home / "data" / f"{name}.pem"
            copy.write_bytes(file.read_bytes())
            copy.chmod(0o600)
            if (user := _user()) is not None:
                os.chown(copy, user, -1)
            self.sql(self.url(), f"ALTER SYSTEM SET {name} = '{copy}'")
        self.sql(self.url(), "ALTER SYSTEM SET ssl = on")
        self.stop()
        self.start()

    def sql(self, url: str, statement: str) -> str:
        """What a statement answers, as text."""
        return _run("psql", "-q", "-At", "-d", url, "-c", statement).strip()

    def kill(self) -> None:
        """End it as a power cut would."""
        os.kill(int((self.home / "data" / "postmaster.pid").read_text().splitlines()[0]), signal.SIGKILL)

    def start(self) -> None:
        options = (
            f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c max_connections=50 "
            "-c shared_buffers=32MB -c logging_collector=off"
        )
        for attempt in range(_STARTS_MAX):
            try:
                return _pg_ctl(self.home, "-w", "-o", options, "-l", str(self.home / "log"), "start")
            except RuntimeError:  # what a killed one leaves behind ends when it finds out that it is alone
                if attempt == _STARTS_MAX - 1:
                    raise
                time.sleep(0.5)

    def stop(self, mode: str = "fast") -> None:
        _pg_ctl(self.home, "-m", mode, "stop")


#: A proxy that gives each transaction another connection of two.
_POOLER = """
[databases]
* = host=127.0.0.1 port={server}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {home}/users
pool_mode = transaction
default_pool_size = 2
server_round_robin = 1
"""


@contextmanager
def pooler(server: Postgres) -> Iterator[Callable[[str], str]]:
    """A pgbouncer in transaction mode before it: what the URL of a database on the server becomes through it."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="automation-exporter-pgbouncer-") as folder:
        home = Path(folder)
        (home / "users").write_text('"postgres" ""')
        (home / "pgbouncer.ini").write_text(_POOLER.format(server=server.port, port=port, home=home))
        if (user := _user()) is not None:
            for path in (home, *home.iterdir()):
                os.chown(path, user, -1)
        with (home / "log").open("wb") as log:
            command = [shutil.which("pgbouncer") or "pgbouncer", str(home / "pgbouncer.ini")]
            running = subprocess.Popen(command, user=user, cwd="/", stdout=log, stderr=log)
        try:
            for attempt in range(_STARTS_MAX):
                try:
                    _run("psql", "-q", "-d", f"postgresql://postgres@127.0.0.1:{port}/postgres", "-c", "SELECT 1")
                    break
                except RuntimeError as exc:
                    if attempt == _STARTS_MAX - 1 or running.poll() is not None:
                        raise RuntimeError((home / "log").read_text()) from exc
                    time.sleep(0.2)
            yield lambda url: url.replace(f":{server.port}/", f":{port}/")
        finally:
            running.kill()
            running.wait()


def look(url: str, query: str) -> list[tuple[str | None, ...]]:
    """The rows of a query on a database of either kind, as text or None, read from outside the program."""
    if url.startswith("sqlite:///"):
        with sqlite3.connect(f"file:{url.removeprefix('sqlite:///')}?mode=ro", uri=True) as connection:
            return [tuple(None if value is None else str(value) for value in row) for row in connection.execute(query)]
    found = _run("psql", "-q", "-At", "-F", "\x1f", "-P", "null=\x1e", "-d", url, "-c", query)
    return [tuple(None if v == "\x1e" else v for v in line.split("\x1f")) for line in found.splitlines()]


@contextmanager
def postgres() -> Iterator[Postgres]:
    home = Path(tempfile.mkdtemp(prefix="automation-exporter-postgres-"))
    if (user := _user()) is not None:
        os.chown(home, user, -1)
    server = Postgres(port=free_port(), home=home, _numbers=count(1))
    try:
        _run("initdb", "-D", str(home / "data"), "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", user=user)
        (home / "data" / "pg_hba.conf").write_text(_HBA)
        server.start()
        for role in ("secured", "encrypted", "certified"):
            server.sql(server.url(), f"CREATE ROLE {role}")
        try:
            yield server
        finally:
            subprocess.run(  # it may have been killed
                [program("pg_ctl") or "pg_ctl", "-D", str(home / "data"), "-m", "immediate", "stop"],
                user=user,
                cwd=home,
                capture_output=True,
                check=False,
                timeout=PATIENCE_SECONDS,
            )
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _user() -> int | None:
    """Root may not run it: then nobody does."""
    return pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None


def _pg_ctl(home: Path, *arguments: str) -> None:
    _run("pg_ctl", "-D", str(home / "data"), *arguments, user=_user(), cwd=home)


def _run(name: str, *arguments: str, user: int | None = None, cwd: Path | None = None) -> str:
    command = [program(name) or name, *arguments]
    # The server that pg_ctl starts keeps what it is given as output: a pipe would never end.
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(
            command, user=user, cwd=cwd or "/", stdout=output, stderr=output, check=False, timeout=PATIENCE_SECONDS
        )
        output.seek(0)
        text = output.read().decode(errors="replace")
    if done.returncode != 0:
        raise RuntimeError(f"{name} failed: {text}")
    return text
