"""SIGTERM, SIGINT and SIGHUP from the first line of Python on, to real processes: as any process and as process 1.

Each process is held at one point of its start by a file that blocks whoever opens it (a FIFO), or by a lock. So what
is tested does not depend on how fast the machine is.
"""

import asyncio
import contextlib
import fcntl
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest
from aiohttp import ClientError, ClientSession

from tests.servers import PATIENCE_SECONDS, eventually, free_port

ROOT = Path(__file__).parents[2]
CONFIG = """
server: {{listen: 127.0.0.1:{port}}}
store: {{url: sqlite:///{folder}/exporter.db}}
sources: {{mine: {{platform: n8n, url: {url}, token: none, timeout: 1s}}}}
"""
PID_ONE = ["unshare", "--pid", "--fork", "--kill-child"]
STOPPING = [signal.SIGTERM, signal.SIGINT]


@lru_cache
def no_namespace() -> str | None:
    """Why nothing can be started as process 1 here."""
    try:
        done = subprocess.run([*PID_ONE, "true"], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    except FileNotFoundError:
        return "there is no unshare here"
    return f"no PID namespace here: {done.stderr.strip()}" if done.returncode else None


@dataclass(frozen=True, slots=True)
class Started:
    """A process, and the one that is signalled where that is another: its child, process 1 of a namespace."""

    process: asyncio.subprocess.Process
    pid: int

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    async def ended(self) -> tuple[int, str]:
        """Exit code and what was said, both streams."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_SECONDS):
            said = await self.process.stdout.read()
            return await self.process.wait(), said.decode()


@contextlib.asynccontextmanager
async def started(
    *words: str, as_first: bool = False, before: Sequence[str] = (), path: Path | None = None, **variables: str
) -> AsyncIterator[Started]:
    """``automation-exporter WORDS`` as it is installed: by its console script."""
    if as_first and (reason := no_namespace()) is not None:
        pytest.skip(reason)
    script = [*before, str(Path(sys.executable).with_name("automation-exporter")), *words]
    process = await asyncio.create_subprocess_exec(
        *(PID_ONE if as_first else []),
        *script,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": f"{path or ROOT}{os.pathsep}{ROOT}", **variables},
    )
    try:
        pid = process.pid
        if as_first:

            async def child() -> int:
                found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                return int(found[0]) if found else 0

            pid = await eventually(child, every=0.01)
        yield Started(process, pid)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@contextlib.contextmanager
def fifo(at: Path) -> Iterator[Path]:
    """What blocks whoever opens it."""
    os.mkfifo(at)
    yield at
    with contextlib.suppress(OSError):  # lets go whoever might still wait
        os.close(os.open(at, os.O_WRONLY | os.O_NONBLOCK))


async def opened(at: Path, by: Started) -> int:
    """Wait until a process opens the FIFO to read; returns the other end."""

    async def there() -> int:
        assert by.process.returncode is None, await by.ended()
        with contextlib.suppress(OSError):
            return os.open(at, os.O_WRONLY | os.O_NONBLOCK)
        return 0

    return await eventually(there, every=0.01)


def stalled_import(folder: Path, module: str) -> Path:
    """A folder whose ``module`` is not imported before somebody writes into its FIFO."""
    gate = folder / "gate"
    package = folder / "stalled"
    package.mkdir()
    (package / f"{module}.py").write_text(f"open({str(gate)!r}).read()\nraise SystemExit('was not stopped')\n")
    return package


def config(folder: Path, *, url: str = "http://127.0.0.1:9", port: int = 0) -> Path:
    file = folder / "config.yaml"
    file.write_text(CONFIG.format(port=port, folder=folder, url=url))
    return file


@pytest.mark.parametrize("module", ["argparse", "pydantic", "aiohttp", "orjson", "msgspec"])
@pytest.mark.parametrize("number", STOPPING, ids=lambda number: number.name)
async def test_a_service_that_is_being_imported_stops_with_0(
    number: signal.Signals, module: str, tmp_path: Path
) -> None:
    stalled = stalled_import(tmp_path, module)
    with fifo(tmp_path / "gate") as gate:
        async with started("run", "--config", str(config(tmp_path)), path=stalled) as one:
            held = await opened(gate, one)
            one.send(number)
            assert await one.ended() == (0, "")
            os.close(held)


@pytest.mark.parametrize("command", ["run", "demo", "simulate"])
@pytest.mark.parametrize("number", STOPPING, ids=lambda number: number.name)
async def test_so_it_does_as_process_1(number: signal.Signals, command: str, tmp_path: Path) -> None:
    stalled = stalled_import(tmp_path, "aiohttp")
    with fifo(tmp_path / "gate") as gate:
        async with started(command, as_first=True, path=stalled) as one:
            held = await opened(gate, one)
            one.send(number)
            assert await one.ended() == (0, "")
            os.close(held)


async def test_what_comes_before_the_first_line_of_python_is_kept_by_env(tmp_path: Path) -> None:
    """The interpreter itself takes a moment to start. Whoever becomes the exporter here has sent itself the signal."""
    blocked = ["env", *(f"--block-signal={name}" for name in ("TERM", "INT", "HUP"))]
    shell = ["sh", "-c", 'kill -TERM $$; exec "$@"', "sh"]
    async with started("run", "--config", str(config(tmp_path)), as_first=True, before=[*blocked, *shell]) as one:
        assert await one.ended() == (0, "")


async def test_hangup_during_the_imports_ends_nothing(tmp_path: Path) -> None:
    stalled = stalled_import(tmp_path, "aiohttp")
    for as_first in (False, True):
        gate = tmp_path / "gate"
        gate.unlink(missing_ok=True)
        with fifo(gate):
            async with started("run", as_first=as_first, path=stalled) as one:
                held = await opened(gate, one)
                one.send(signal.SIGHUP)
                os.write(held, b"\n")
                os.close(held)
                assert await one.ended() == (1, "was not stopped\n")


@pytest.mark.parametrize("number", STOPPING, ids=lambda number: number.name)
async def test_a_service_that_waits_for_its_config_stops_with_0(number: signal.Signals, tmp_path: Path) -> None:
    with fifo(tmp_path / "config.yaml") as file:
        async with started("run", "--config", str(file)) as one:
            held = await opened(file, one)
            one.send(number)
            assert await one.ended() == (0, "")
            os.close(held)


async def test_a_service_that_waits_for_a_secret_s_file_stops_with_0(tmp_path: Path) -> None:
    file = config(tmp_path)
    file.write_text(file.read_text().replace("token: none", f"token_file: {tmp_path}/token"))
    with fifo(tmp_path / "token") as token:
        async with started("run", "--config", str(file), as_first=no_namespace() is None) as one:
            held = await opened(token, one)
            one.send(signal.SIGTERM)
            assert await one.ended() == (0, "")
            os.close(held)


async def test_hangup_while_the_config_is_read_means_to_read_it_again(tmp_path: Path) -> None:
    port = free_port()
    text = CONFIG.format(port=port, folder=tmp_path, url="http://127.0.0.1:9").encode()
    with fifo(tmp_path / "config.yaml") as file, fifo(tmp_path / "again") as again:
        async with started("run", "--config", str(file)) as one:
            held = await opened(file, one)
            one.send(signal.SIGHUP)
            again.rename(file)
            os.write(held, text)
            os.close(held)
            held = await opened(file, one)
            os.write(held, text)
            os.close(held)
            await answers(port, one)
            one.send(signal.SIGTERM)
            code, said = await one.ended()
    assert (code, said.count("msg=running")) == (0, 2), said


async def answers(port: int, by: Started) -> None:
    async with ClientSession() as session:

        async def healthy() -> bool:
            assert by.process.returncode is None, await by.ended()
            with contextlib.suppress(ClientError):
                async with session.get(f"http://127.0.0.1:{port}/-/healthy") as response:
                    return response.status == 200
            return False

        await eventually(healthy)


@contextlib.contextmanager
def database_locked(folder: Path) -> Iterator[Path]:
    """A database that somebody else writes to, and does not end."""
    file = folder / "exporter.db"
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("PRAGMA journal_mode=WAL")
    other.execute("BEGIN EXCLUSIVE")
    try:
        yield file
    finally:
        other.close()


async def database_taken(file: Path, by: Started) -> None:
    """Wait until a service has its hand on the database."""

    async def taken() -> bool:
        assert by.process.returncode is None, await by.ended()
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(f"{file}.lock", os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            finally:
                os.close(lock)
        return False

    await eventually(taken, every=0.02)


@pytest.mark.parametrize("number", STOPPING, ids=lambda number: number.name)
@pytest.mark.parametrize("as_first", [False, True], ids=["a process", "process 1"])
async def test_a_service_whose_database_is_locked_stops_with_0(
    number: signal.Signals, as_first: bool, tmp_path: Path
) -> None:
    with database_locked(tmp_path) as file:
        async with started("run", "--config", str(config(tmp_path)), as_first=as_first) as one:
            await database_taken(file, one)
            one.send(number)
            code, said = await one.ended()
    assert (code, "locked" in said) == (0, False), said


async def test_hangup_while_the_database_is_locked_ends_nothing(tmp_path: Path) -> None:
    port = free_port()
    with database_locked(tmp_path) as file:
        async with started("run", "--config", str(config(tmp_path, port=port))) as one:
            await database_taken(file, one)
            one.send(signal.SIGHUP)
            one.send(signal.SIGTERM)
            code, said = await one.ended()
    assert code == 0, said


async def test_signals_that_come_again_and_again_change_nothing(tmp_path: Path) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # a platform that never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        async with started("run", "--config", str(config(tmp_path, url=url, port=port))) as one:
            await answers(port, one)
            ended = asyncio.create_task(one.ended())
            while not ended.done():
                with contextlib.suppress(ProcessLookupError):
                    for number in (*STOPPING, signal.SIGHUP):
                        one.send(number)
                await asyncio.sleep(0.001)
            code, said = await ended
    assert (code, "Traceback" in said) == (0, False), said


async def test_only_the_main_thread_takes_signals(tmp_path: Path) -> None:
    """Another may outlive the handlers by a moment, and a signal that comes then would kill."""
    port = free_port()
    async with started("run", "--config", str(config(tmp_path, port=port))) as one:
        await answers(port, one)
        stopping = sum(1 << (number - 1) for number in (*STOPPING, signal.SIGHUP))
        takes = []
        for thread in Path(f"/proc/{one.pid}/task").iterdir():
            [mask] = re.findall(r"^SigBlk:\s*(\w+)", (thread / "status").read_text(), re.M)
            if int(mask, 16) & stopping != stopping:
                takes.append(int(thread.name))
        assert len(list(Path(f"/proc/{one.pid}/task").iterdir())) > 1
        assert takes == [one.pid]
        one.send(signal.SIGTERM)
        assert (await one.ended())[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
async def test_what_is_no_service_does_not_claim_to_have_done_its_work(number: signal.Signals, tmp_path: Path) -> None:
    for as_first, expected in ((False, -number), (True, 128 + number)):
        gate = tmp_path / "config.yaml"
        gate.unlink(missing_ok=True)
        with fifo(gate) as file:
            async with started("check", "--config", str(file), as_first=as_first) as one:
                held = await opened(file, one)
                one.send(number)
                assert await one.ended() == (expected, "")
                os.close(held)
