"""What takes part beside n8n: the exporter as a process of its own, and the partner whom workflows call."""

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import aiohttp
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from tests.n8n.scenario import Json
from tests.servers import LOG_TAIL_LINES, eventually, free_port

#: What a partner may do instead of answering with a status: never answer, or cut the connection.
HOLD, CUT = 0, -1


class Partner:
    """What workflows call: each piece of work has a plan, one answer for each time it is done."""

    def __init__(self) -> None:
        self.plans: dict[str, Sequence[int]] = {}
        self.calls = Counter[str]()
        self.held: dict[str, asyncio.Event] = {}  # pieces of work that wait for their answer
        self.url = ""

    def plan(self, *answers: int) -> str:
        """A new piece of work: statuses, ``CUT`` or ``HOLD``."""
        key = f"work-{len(self.plans)}"
        self.plans[key] = answers
        return key

    def release(self) -> None:
        """Let go of all that is held: it is done."""
        for event in self.held.values():
            event.set()
        self.held.clear()

    async def holding(self, key: str) -> None:
        """Wait until a piece of work is under way."""

        async def is_held() -> bool:
            return key in self.held

        await eventually(is_held, every=0.02)

    async def answer(self, request: web.Request) -> web.Response:
        key = request.match_info["key"]
        plan, done = self.plans[key], self.calls[key]
        self.calls[key] += 1
        planned = plan[done] if done < len(plan) else 200  # what is done too often shows in the count
        if planned == CUT and request.transport is not None:
            request.transport.abort()
        if planned == HOLD:
            await self.held.setdefault(key, asyncio.Event()).wait()
        return web.json_response({}, status=planned if planned > 0 else 200)


@dataclass(slots=True, kw_only=True)
class Exporter:
    """`automation-exporter run`, which can be killed and started again on what it had stored."""

    folder: Path
    port: int
    session: aiohttp.ClientSession
    process: asyncio.subprocess.Process | None = None
    kills: int = 0

    async def start(self) -> None:
        """Start it; ready when it has swept."""
        script = Path(sys.executable).with_name("automation-exporter")
        with (self.folder / "exporter.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                str(script), "run", "--config", str(self.folder / "config.yaml"), stdout=log, stderr=log
            )
        await eventually(self._ready)

    async def kill(self) -> None:
        """SIGKILL, which leaves nothing time to be written."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
            await self.process.wait()
            self.kills += 1

    async def samples(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """The samples of a metric, by these labels; those of 0 are left out."""
        async with self.session.get(f"http://127.0.0.1:{self.port}/metrics") as answer:
            text = await answer.text()
        found = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and sample.value:
                    found[tuple(sample.labels[label] for label in labels)] = sample.value
        return found

    async def command(self, *words: str) -> None:
        """A command beside it that ends well."""
        script = Path(sys.executable).with_name("automation-exporter")
        process = await asyncio.create_subprocess_exec(
            str(script), *words, "--config", str(self.folder / "config.yaml"),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        out, _ = await process.communicate()
        assert process.returncode == 0, out.decode()

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Of its store."""
        return query(self.folder / "exporter.db", sql)

    def retries(self) -> list[Json]:
        """Its retries, oldest first."""
        rows = self.query("SELECT data FROM retries WHERE shadow = 0 ORDER BY claimed_at")
        return [json.loads(data) for (data,) in rows]

    async def _ready(self) -> bool:
        assert self.process is not None
        if self.process.returncode is not None:
            raise RuntimeError(f"the exporter ended with {self.process.returncode}")
        with contextlib.suppress(aiohttp.ClientError):
            async with self.session.get(f"http://127.0.0.1:{self.port}/-/ready") as answer:
                return answer.status == 200
        return False


def query(path: Path, sql: str) -> list[tuple[Any, ...]]:
    """Rows of a database that somebody else writes."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=60.0)) as connection:
        return connection.execute(sql).fetchall()


@contextlib.asynccontextmanager
async def partner() -> AsyncIterator[Partner]:
    """A partner who answers ``url/KEY``."""
    made = Partner()
    app = web.Application()
    app.router.add_get("/{key}", made.answer)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield made
    finally:
        made.release()
        await runner.cleanup()


@contextlib.asynccontextmanager
async def exporting(folder: Path, config: str, *, port: int | None = None) -> AsyncIterator[Exporter]:
    """An exporter that has swept, with its store in ``folder``; it ends with the block.

    In ``config``, ``$port`` and ``$folder`` stand for its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port() if port is None else port
    with open(os.open(folder / "config.yaml", os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
        file.write(Template(config).substitute(port=port, folder=folder))
    async with aiohttp.ClientSession() as session:
        made = Exporter(folder=folder, port=port, session=session)
        try:
            await made.start()
            yield made
        except BaseException as error:
            lines = (folder / "exporter.log").read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
            error.add_note("\n".join(["the exporter logged last:", *lines]))
            raise
        finally:
            if made.process is not None and made.process.returncode is None:
                made.process.kill()
                await made.process.wait()
