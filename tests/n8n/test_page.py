"""What docs/n8n.md says to write and to type is written and typed: against the simulator always, and a real n8n."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer

from exporter.clock import SystemClock
from exporter.simulator.n8n import N8nSimulator
from tests.n8n.scenario import chain, hook, node
from tests.n8n.testbed import n8n
from tests.servers import eventually, free_port

PAGE = Path(__file__).parents[2] / "docs" / "n8n.md"


def fences(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(), re.M | re.S)


@contextlib.asynccontextmanager
async def typed(command: str, folder: Path, **variables: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A command as it is typed into a shell, which ends with the block if it has not by itself."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = await asyncio.create_subprocess_shell(
        command, cwd=folder, env={**os.environ, "PATH": path, **variables}, start_new_session=True,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def said(command: str, folder: Path, **variables: str) -> str:
    """What a command prints that ends well."""
    async with typed(command, folder, **variables) as process:
        out, _ = await process.communicate()
        assert process.returncode == 0, out.decode()
        return out.decode()


@contextlib.asynccontextmanager
async def simulated(_folder: Path) -> AsyncIterator[tuple[str, str]]:
    """The address of an instance with some workflows, and a key."""
    async with TestServer(N8nSimulator(clock=SystemClock(), workflows=3).app()) as server:
        yield str(server.make_url("")).rstrip("/"), "demo-token"


@contextlib.asynccontextmanager
async def real(folder: Path) -> AsyncIterator[tuple[str, str]]:
    async with n8n(folder) as server:
        workflow = chain("ok", hook("ok"), node("Nothing", "noOp", 1))
        status, made = await server.call("POST", "/api/v1/workflows", workflow)
        assert status == 200, made
        status, made = await server.call("POST", f"/api/v1/workflows/{made['id']}/activate", {})
        assert status == 200, made
        yield server.url, server.key


@pytest.mark.parametrize("instance", [simulated, pytest.param(real, marks=pytest.mark.n8n)], ids=["simulated", "real"])
async def test_the_page_leads_to_numbers(
    instance: Callable[[Path], AbstractAsyncContextManager[tuple[str, str]]], tmp_path: Path
) -> None:
    [config] = fences("yaml")
    [check], [run, scrape] = (code.splitlines() for code in fences("sh"))
    port = free_port()
    async with instance(tmp_path / "n8n") as (url, key):
        told = {"N8N_API_KEY": key, "N8N_HOOK": "0123456789abcdef0123456789abcdef"}
        config = config.replace("https://n8n.example", url).replace("interval: 30s", "interval: 1s")
        (tmp_path / "config.yaml").write_text(f"server: {{listen: '127.0.0.1:{port}'}}\n{config}")
        lines = (await said(check, tmp_path, **told)).splitlines()
        assert [line for line in lines if "problem" in line] == []
        assert any("successes" in line for line in lines), "whether they are saved is said"

        async def scraped() -> str:
            async with typed(scrape.replace("10870", str(port)), tmp_path) as process:
                out, _ = await process.communicate()
                return out.decode()

        async with typed(run, tmp_path, **told):
            text = await eventually(scraped)
        assert re.search(r'^automation_runs_total\{.*source="n8n".*\} \d', text, re.M)
