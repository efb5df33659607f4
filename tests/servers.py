"""Real servers and tools for tests: started on loopback, waited for, stopped by their own process id.

What a Prometheus makes of our exposition, only a Prometheus can say. Each server here is an async context manager
that lives in the test's own directory. Tests that need one carry the mark `real("prometheus")` and are skipped, with
the reason, on machines that lack it. This is the one place that says how long tests wait on the real clock.
"""

import asyncio
import contextlib
import fcntl
import json
import multiprocessing
import os
import random
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import pytest

T = TypeVar("T")

#: How long anything real is waited for: a process, its answer, its end. A bound so that nothing hangs for ever, and no
#: measure of speed: on a machine with a load of 20, what takes a second takes a minute.
PATIENCE_SECONDS = 600.0
#: A time-out that a test lets run out, because what it stops is what the test is about. What happens before, such as
#: connecting and sending, fits in on a busy machine too.
HANG_SECONDS = 1.0
LOG_TAIL_LINES = 20

# Component -> the Debian package that brings the command of that name.
COMPONENTS = {
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "amtool": "prometheus-alertmanager",
    "chromium": "chromium",
    "postgres": "postgresql",
    "kubectl": "kubernetes-client",
    "systemd-analyze": "systemd",
    "nginx": "nginx-light",
    "pgbouncer": "pgbouncer",
}


def missing_component(name: str) -> str | None:
    """Why a test marked for this component cannot run here, or None if it can."""
    package = COMPONENTS[name]
    found = shutil.which(name) or any(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return None if found else f"real component missing: {name} (apt-get install {package})"


def real(component: str) -> pytest.MarkDecorator:
    """The mark of a test that needs a real component; conftest.py skips it where `missing_component` says so."""
    if component not in COMPONENTS:
        raise ValueError(f"unknown component {component!r}, known: {', '.join(COMPONENTS)}")
    return pytest.mark.real(component)


async def eventually(probe: Callable[[], Awaitable[T]], *, seconds: float = PATIENCE_SECONDS, every: float = 0.1) -> T:
    """Call `probe` until it answers something true, and return that; TimeoutError says what it last answered."""
    answer: T | None = None
    try:
        async with asyncio.timeout(seconds):
            while not (answer := await probe()):  # noqa: ASYNC110  # another process sets no Event
                await asyncio.sleep(every)
    except TimeoutError:
        raise TimeoutError(f"still {answer!r} after {seconds:g} s") from None
    return answer


@dataclass(frozen=True, slots=True)
class Exemplar:
    series: dict[str, str]
    labels: dict[str, str]
    value: float
    timestamp: float


@dataclass(frozen=True, slots=True)
class Target:
    url: str
    health: str
    """up, down or unknown (not scraped yet)"""
    error: str


@dataclass(frozen=True, slots=True)
class PrometheusServer:
    """A running Prometheus and its query API."""

    url: str
    session: aiohttp.ClientSession

    async def query(self, expr: str, time: float | None = None) -> list[tuple[dict[str, str], float]]:
        """The instant vector (or scalar) that `expr` is at `time`, by default now."""
        params = {"query": expr} | ({} if time is None else {"time": str(time)})
        data = await self._get("/api/v1/query", params)
        if data["resultType"] == "scalar":
            return [({}, float(data["result"][1]))]
        if data["resultType"] != "vector":
            raise ValueError(f"{expr} is a {data['resultType']}, not an instant vector")
        return [(sample["metric"], float(sample["value"][1])) for sample in data["result"]]

    async def query_range(
        self, expr: str, start: float, end: float, step: float
    ) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        """Labels of each series, and its times and values."""
        params = {"query": expr, "start": str(start), "end": str(end), "step": str(step)}
        found = (await self._get("/api/v1/query_range", params))["result"]
        return [(series["metric"], [(float(at), float(v)) for at, v in series["values"]]) for series in found]

    async def label_values(self, label: str, selector: str, start: float, end: float) -> list[str]:
        params = {"match[]": selector, "start": str(start), "end": str(end)}
        values: list[str] = await self._get(f"/api/v1/label/{label}/values", params)
        return values

    async def query_exemplars(self, expr: str, start: float, end: float) -> list[Exemplar]:
        data = await self._get("/api/v1/query_exemplars", {"query": expr, "start": str(start), "end": str(end)})
        return [
            Exemplar(
                series=series["seriesLabels"],
                labels=exemplar["labels"],
                value=float(exemplar["value"]),
                timestamp=float(exemplar["timestamp"]),
            )
            for series in data
            for exemplar in series["exemplars"]
        ]

    async def units(self) -> dict[str, str]:
        """What each family is counted in, as its targets said; empty where none did."""
        data = await self._get("/api/v1/metadata", {})
        return {name: said[0]["unit"] for name, said in data.items()}

    async def targets(self) -> list[Target]:
        data = await self._get("/api/v1/targets", {"state": "active"})
        return [Target(url=t["scrapeUrl"], health=t["health"], error=t["lastError"]) for t in data["activeTargets"]]

    async def _get(self, path: str, params: dict[str, str]) -> Any:
        async with self.session.get(self.url + path, params=params) as response:
            answer = await response.json()
        if answer["status"] != "success":
            raise ValueError(f"{path} {params}: {answer['errorType']}: {answer['error']}")
        return answer["data"]


@contextlib.asynccontextmanager
async def prometheus(
    tmp_path: Path,
    scrape_targets: list[str],
    *,
    rules: Sequence[Path] = (),
    scrape_interval: str = "1s",
    exemplars: bool = True,
    alertmanager: str | None = None,
    history: Path | None = None,
) -> AsyncIterator[PrometheusServer]:
    """A Prometheus that scrapes `/metrics` of each `host:port`, evaluates `rules` and alerts `alertmanager` (a URL).

    ``history``: a file of OpenMetrics with timestamps, of what it is to have scraped before.
    """
    home = tmp_path / "prometheus"
    home.mkdir()
    config: dict[str, object] = {
        "global": {
            "scrape_interval": scrape_interval,
            "scrape_timeout": scrape_interval,
            "evaluation_interval": scrape_interval,
        },
        "rule_files": [str(path.resolve()) for path in rules],
        "scrape_configs": [{"job_name": "test", "static_configs": [{"targets": scrape_targets}]}],
    }
    if alertmanager is not None:
        config["alerting"] = {
            "alertmanagers": [
                {
                    "scheme": urlsplit(alertmanager).scheme,
                    "static_configs": [{"targets": [urlsplit(alertmanager).netloc]}],
                }
            ]
        }
    # JSON is YAML; Prometheus reads it as such.
    (home / "prometheus.yml").write_text(json.dumps(config))
    if history is not None:
        load = ["promtool", "tsdb", "create-blocks-from", "openmetrics", str(history), str(home / "data")]
        subprocess.run(load, check=True, capture_output=True, timeout=PATIENCE_SECONDS)
    port = free_port()
    command = [
        "prometheus",
        f"--config.file={home / 'prometheus.yml'}",
        f"--storage.tsdb.path={home / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    if exemplars:
        command.append("--enable-feature=exemplar-storage")
    url = f"http://127.0.0.1:{port}"
    async with aiohttp.ClientSession() as session, running(command, log=home / "log", ready_url=f"{url}/-/ready"):
        yield PrometheusServer(url=url, session=session)


@contextlib.asynccontextmanager
async def alertmanager(tmp_path: Path, config: Path) -> AsyncIterator[str]:
    """An Alertmanager with this config, alone and on loopback; yields its URL.

    Whom it tells is the config's affair: a receiver with `webhook_configs` and the URL of a server of the test's own.
    """
    home = tmp_path / "alertmanager"
    home.mkdir()
    url = f"http://127.0.0.1:{free_port()}"
    command = [
        "prometheus-alertmanager",
        f"--config.file={config.resolve()}",
        f"--storage.path={home / 'data'}",
        f"--web.listen-address={url.removeprefix('http://')}",
        "--cluster.listen-address=",
        "--log.level=warn",
    ]
    async with running(command, log=home / "log", ready_url=f"{url}/-/ready"):
        yield url


@contextlib.asynccontextmanager
async def running(command: list[str], *, log: Path, ready_url: str) -> AsyncIterator[None]:
    """Run a server until the block ends; whatever goes wrong meanwhile carries the tail of the server's log."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(*command, stdout=output, stderr=output)
    try:
        await _wait_until_ready(process, command[0], ready_url)
        yield
    except BaseException as error:
        lines = log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        error.add_note("\n".join([f"{command[0]} logged last:", *lines]))
        raise
    finally:
        await _stop(process)


async def _wait_until_ready(process: asyncio.subprocess.Process, name: str, ready_url: str) -> None:
    async with aiohttp.ClientSession() as session:

        async def ready() -> bool:
            if process.returncode is not None:
                raise RuntimeError(f"{name} ended with {process.returncode} before it was ready")
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(ready_url) as response:
                    return response.status == 200
            return False

        await eventually(ready, every=0.05)


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def free_port() -> int:
    """A port that is free now and that nobody else is given before the server that gets it has started.

    It is below the range the kernel hands out by itself, and locked for as long as this process lives: tests in other
    processes, whichever checkout they belong to, draw another one.
    """
    folder = Path(tempfile.gettempdir()) / f"automation-exporter-tests-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    for port in random.sample(range(20_000, 32_000), k=100):
        lock = os.open(folder / str(port), os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            os.close(lock)
            continue
        return port
    raise RuntimeError("no free port among 100 tried")


@contextlib.contextmanager
def forked(target: Callable[..., object], *arguments: object) -> Iterator[BaseProcess]:
    """A function in a process of its own, which is gone in the end.

    The fork server has the imports done: a process starts in milliseconds, where an interpreter takes a second of CPU.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["exporter.cli", "tests.webhooks.service", "tests.retries.test_crash"])
    process = context.Process(target=target, args=arguments)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def promtool_check_metrics(text: bytes) -> list[str]:
    """What `promtool check metrics` finds wrong with an exposition in Prometheus' text format, one problem a line."""
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, timeout=PATIENCE_SECONDS
    )
    lines = (checked.stdout + checked.stderr).decode().splitlines()
    if checked.returncode != 0 and not lines:
        return [f"promtool ended with {checked.returncode}"]
    return lines
