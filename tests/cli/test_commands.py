"""The commands as a user runs them: real processes, real signals.

Where a command is run again and again, its process is forked off one that has the imports done (`forked_command`).
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import aiohttp
import pytest
import yaml

from exporter import cli
from tests.servers import PATIENCE_SECONDS, eventually, forked

COMMAND = [sys.executable, "-m", "exporter"]


class Process:
    """A running command, and what it has printed."""

    def __init__(self, process: "asyncio.subprocess.Process | Forked", output: Path) -> None:
        self.process, self._output = process, output

    @property
    def output(self) -> str:
        return self._output.read_text()

    async def found(self, pattern: str) -> str:
        """Wait for a line that matches; returns its first group."""

        async def look() -> str | None:
            if self.process.returncode is not None:
                raise AssertionError(f"ended with {self.process.returncode}:\n{self.output}")
            match = re.search(pattern, self.output)
            return match and match.group(1)

        found = await eventually(look)
        assert found is not None
        return found

    async def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), PATIENCE_SECONDS)


@asynccontextmanager
async def command(folder: Path, *arguments: str, **environment: str) -> AsyncIterator[Process]:
    """Run a command in the background; it is gone in the end."""
    output = folder / f"output-{len(list(folder.iterdir()))}.txt"
    with output.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            *arguments,
            stdout=sink,
            stderr=sink,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.getcwd(), **environment},
        )
    try:
        yield Process(process, output)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


class Forked:
    """A forked process, as asyncio shows one."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    async def wait(self) -> int:
        await asyncio.to_thread(self._process.join)
        assert self._process.exitcode is not None
        return self._process.exitcode


@asynccontextmanager
async def forked_command(folder: Path, *arguments: str) -> AsyncIterator[Process]:
    """The same as `command`, for a hundredth of the CPU."""
    output = folder / f"output-{len(list(folder.iterdir()))}.txt"
    output.touch()
    with forked(main_of, output, arguments) as process:
        yield Process(Forked(process), output)


def main_of(output: Path, arguments: tuple[str, ...]) -> None:
    """What the interpreter does for `python -m exporter`."""
    with output.open("wb") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
    sys.exit(cli.main(list(arguments)))


async def run(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run a command to its end; returns its exit code and everything it printed."""
    async with command(folder, *arguments) as started:
        code = await asyncio.wait_for(started.process.wait(), PATIENCE_SECONDS)
        return code, started.output


async def get(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text()


async def test_the_demo_shows_activity_within_seconds_and_stops_cleanly(tmp_path: Path) -> None:
    async with command(tmp_path, "demo", "--port", "0") as demo:
        url = await demo.found(r"status page +(http://127\.0\.0\.1:\d+)/")
        await demo.found(r"(\d\d) workflows, \d+ active runs")
        assert "automation_runs_total{" in (await get(f"{url}/metrics"))[1]
        assert "Sources" in (await get(f"{url}/"))[1]
        simulator = await demo.found(r"simulator +(http://127\.0\.0\.1:\d+) ")
        assert "runs" in json.loads((await get(f"{simulator}/_sim/truth"))[1])
        assert await demo.stop(signal.SIGINT) == 0
        assert "Traceback" not in demo.output
        assert "level=error" not in demo.output


@asynccontextmanager
async def simulated(folder: Path, platform: str, workflows: int = 5) -> AsyncIterator[str]:
    options = ["--platform", platform, "--port", "0", "--workflows", str(workflows)]
    async with forked_command(folder, "simulate", *options) as simulator:
        yield await simulator.found(rf"{platform}: (http://127\.0\.0\.1:\d+)")
        assert await simulator.stop() == 0


def config(folder: Path, url: str, **changes: object) -> Path:
    source = {
        "platform": "qlik",
        "url": url,
        "token": "demo-token",
        "poll": {"interval": "1s", "budget_share": 1.0},
        "webhook": {"scheme": "bearer", "token": "hook-token"},
        **changes,
    }
    written = folder / "config.yaml"
    data = {"server": {"listen": "127.0.0.1:0"}, "sources": {"q": source}, "store": {"url": f"sqlite:///{folder}/x.db"}}
    written.write_text(yaml.safe_dump(data))
    return written


async def test_run_serves_reloads_on_sighup_and_stops_on_sigterm(tmp_path: Path) -> None:
    async with simulated(tmp_path, "qlik") as url:
        path = config(tmp_path, url)
        async with command(tmp_path, "run", "--config", str(path)) as service:
            port = await service.found(r"msg=running .*port=(\d+)")

            async def ready() -> bool:
                return (await get(f"http://127.0.0.1:{port}/-/ready"))[0] == 200

            assert await eventually(ready)
            path.write_text(path.read_text().replace("demo-token", "${UNSET_VARIABLE}"))
            service.process.send_signal(signal.SIGHUP)
            await service.found(r"(config not taken).*sources\.q\.token: the environment variable UNSET_VARIABLE")
            assert (await get(f"http://127.0.0.1:{port}/-/healthy"))[0] == 200
            config(tmp_path, url, timeout="7s")
            service.process.send_signal(signal.SIGHUP)
            await service.found(r"msg=running (.|\n)*msg=(running) ")
            assert await service.stop() == 0
            assert "Traceback" not in service.output
            assert "demo-token" not in service.output


async def test_kill_9_at_any_moment_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Killed ten times while it polls; then every finished run of the platform is counted once."""
    async with simulated(tmp_path, "qlik", workflows=60) as url:
        path = config(tmp_path, url)
        for number in range(10):
            async with forked_command(tmp_path, "run", "--config", str(path)) as service:
                await service.found(r"msg=running .*port=(\d+)")
                await asyncio.sleep(0.05 * number)
                assert await service.stop(signal.SIGKILL) != 0
        async with forked_command(tmp_path, "run", "--config", str(path)) as service:
            port = await service.found(r"msg=running .*port=(\d+)")

            async def agreed() -> bool:
                truth = json.loads((await get(f"{url}/_sim/truth"))[1])["runs"]
                text = (await get(f"http://127.0.0.1:{port}/metrics"))[1]
                baseline = float(
                    re.findall(r'"first_sweep_at":([0-9.]+)', (await get(f"http://127.0.0.1:{port}/api/v1/status"))[1])[
                        0
                    ]
                )
                counted = sum(float(v) for v in re.findall(r"^automation_runs_total\{.*\} (\S+)$", text, re.M))
                return bool(counted == sum(run["ended_at"] >= baseline for run in truth) > 0)

            assert await eventually(agreed, every=0.5)


async def test_check_says_its_verdict_first_and_tries_the_source(tmp_path: Path) -> None:
    async with simulated(tmp_path, "qlik") as url:
        code, said = await run(tmp_path, "check", "--config", str(config(tmp_path, url)), "--online")
        assert code == 0, said
        assert said.startswith(f"{tmp_path}/config.yaml: fine; everything works\n")
        assert "demo-token" not in said
        assert "q: ok: credential accepted" in said
        assert "series for each workflow" in said
        code, said = await run(
            tmp_path, "check", "--config", str(config(tmp_path, url, token="wrong-token")), "--online"
        )
        assert code == 1
        assert said.startswith(
            f"{tmp_path}/config.yaml: 1 problem\nq: problem: sources.q.token is not accepted by 127.0.0.1"
        )
        assert re.search(r"401 auth: .*tenant", said)
        assert "wrong-token" not in said


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run", "--config", "absent.yaml"], "absent.yaml: No such file or directory"),
        (
            ["config", "show", "--config", "/dev/null"],
            "/dev/null: the config must be a mapping with at least the key sources",
        ),
        (["simulate", "--fault", "gremlins=1"], "config: --fault gremlins=1: unknown fault; one of "),
        (["simulate", "--fault", "slow=often"], "config: --fault slow=often: write NAME=VALUE with a number"),
        (
            ["simulate", "--port", "70000"],
            "automation-exporter: --port 70000: must be 0 to 65531; 0: any that is free",
        ),
        (["demo", "--port", "-1"], "automation-exporter: --port -1: must be 0 to 65535; 0: any that is free"),
        (
            ["simulate", "--platform", "qlick"],
            "automation-exporter: --platform qlick: unknown; one of cognaize, etlworks, make, n8n, qlik",
        ),
    ],
)
async def test_a_mistake_is_one_line_and_exit_code_1(tmp_path: Path, arguments: list[str], line: str) -> None:
    code, said = await run(tmp_path, *arguments)
    assert code == 1
    assert said.startswith(line)
    assert len(said.strip().splitlines()) == 1


async def test_a_second_service_on_the_same_database_is_refused_in_one_line(tmp_path: Path) -> None:
    async with simulated(tmp_path, "qlik") as url:
        path = config(tmp_path, url)
        async with command(tmp_path, "run", "--config", str(path)) as service:
            await service.found(r"msg=(running)")
            code, said = await run(tmp_path, "run", "--config", str(path))
            assert code == 1
            assert "another process is using the database" in said
            assert "Traceback" not in said


async def test_a_demo_on_a_port_that_is_taken_says_so_in_one_line(tmp_path: Path) -> None:
    async with simulated(tmp_path, "qlik") as url:
        code, said = await run(tmp_path, "demo", "--port", url.rsplit(":", 1)[1])
    assert code == 1
    last = said.strip().splitlines()[-1]
    way_out = "address already in use: stop what listens there, or choose another port"
    assert re.fullmatch(rf"automation-exporter: --port: \d+: {way_out}", last), last
    assert "Traceback" not in said


@pytest.mark.parametrize("second", [False, True], ids=["first", "second"])
async def test_simulators_on_a_port_that_is_taken_say_so_in_one_line(tmp_path: Path, second: bool) -> None:
    with socket.socket() as free, socket.socket() as taken:
        for port in range(20_000 + os.getpid() % 5000, 32_000):  # below those the system gives away
            with contextlib.suppress(OSError):
                free.bind(("127.0.0.1", port - 1))
                taken.bind(("127.0.0.1", port))
                break
        free.close()
        taken.listen()
        code, said = await run(tmp_path, "simulate", "--port", str(port - second))
    assert code == 1
    [line] = said.strip().splitlines()
    assert line == (
        f"automation-exporter: --port {port - second}: 127.0.0.1:{port}: address already in use: stop what listens "
        "there, or choose another port"
    )


async def test_traces_that_would_go_nowhere_are_one_line_at_the_start_and_at_a_reload(tmp_path: Path) -> None:
    async with simulated(tmp_path, "qlik") as url:
        path = config(tmp_path, url)
        good = path.read_text()
        bad = good + "traces: {enabled: true}\n"
        path.write_text(bad)
        code, said = await run(tmp_path, "run", "--config", str(path))
        problem = "traces.endpoint: missing; name the collector, for example http://127.0.0.1:4318"
        assert (code, said) == (1, f"{path}: {problem}, or set OTEL_EXPORTER_OTLP_ENDPOINT\n")
        path.write_text(good)
        async with command(tmp_path, "run", "--config", str(path)) as service:
            port = await service.found(r"msg=running .*port=(\d+)")
            path.write_text(bad)
            service.process.send_signal(signal.SIGHUP)
            await service.found(r"(config not taken).*traces\.endpoint: missing; ")
            assert (await get(f"http://127.0.0.1:{port}/-/healthy"))[0] == 200
            assert "stopping" not in service.output  # nothing was stopped to find out
            assert await service.stop() == 0


@pytest.mark.parametrize("words", [["config", "schema"], ["config", "show"], ["rules"], ["check"]])
async def test_a_reader_that_goes_away_is_no_error(tmp_path: Path, words: list[str]) -> None:
    path = config(tmp_path, "http://127.0.0.1:9")
    reading, writing = os.pipe()
    os.close(reading)
    try:
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            *words,
            stdout=writing,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "AUTOMATION_EXPORTER_CONFIG": str(path)},
        )
    finally:
        os.close(writing)
    _, said = await asyncio.wait_for(process.communicate(), 60)
    assert (said, process.returncode) == (b"", 141)


async def test_the_config_is_found_where_the_variable_says(tmp_path: Path) -> None:
    path = config(tmp_path, "http://127.0.0.1:9")
    async with command(tmp_path, "config", "show", AUTOMATION_EXPORTER_CONFIG=str(path)) as shown:
        assert await asyncio.wait_for(shown.process.wait(), 60) == 0
        again = tmp_path / "again.yaml"
        again.write_text(shown.output)
    assert "demo-token" not in again.read_text()
    code, said = await run(tmp_path, "check", "--config", str(again))
    assert code == 0
    assert said.startswith(f"{again}: fine, 2 warnings\n{again}: warning: sources.q.")


async def test_the_schema_is_json(tmp_path: Path) -> None:
    code, said = await run(tmp_path, "config", "schema")
    assert code == 0
    assert json.loads(said)["properties"]["sources"]
