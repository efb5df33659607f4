"""How a command finds whoever has the database: a service, one that is just starting, another command, or nobody."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from exporter.cli import ledger as commands
from exporter.config.outline import without_config
from exporter.memory import Memory
from exporter.store.script import StoreError, StoreInUse
from exporter.store.sqlite import SqliteEngine
from exporter.web import local

PATH = "/api/v1/retries/pause"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def answering(handler: Handler) -> AsyncIterator[str]:
    """Something that looks like a service."""
    app = web.Application()
    app.router.add_post(PATH, handler)
    runner = web.AppRunner(app, shutdown_timeout=0.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def announced(database: Path, url: str, token: str = "t") -> None:
    Path(f"{database}.control").write_text(json.dumps({"url": url, "token": token}))


async def told(database: Path) -> list[str]:
    said = list[str]()

    async def here(memory: Memory, who: str) -> dict[str, Any]:
        return {"said": "to the ledger"}

    assert await commands.tell(without_config(f"sqlite:///{database}"), PATH, {}, here, say=said.append) == 0
    return said


@pytest.fixture
async def held(tmp_path: Path) -> AsyncIterator[tuple[Path, SqliteEngine]]:
    """A database that somebody has open."""
    path = tmp_path / "held.db"
    engine = await SqliteEngine.open(path)
    yield path, engine
    with suppress(RuntimeError):  # a test let go of it
        await engine.close()


async def test_a_database_in_use_is_known_by_its_kind(held: tuple[Path, SqliteEngine]) -> None:
    with pytest.raises(StoreInUse):
        await SqliteEngine.open(held[0])


async def test_nobody_else_has_it(tmp_path: Path) -> None:
    path = tmp_path / "free.db"
    await (await SqliteEngine.open(path)).close()
    assert await told(path) == ["said: to the ledger"]


async def test_another_command_is_waited_for(held: tuple[Path, SqliteEngine]) -> None:
    path, engine = held
    waiting = asyncio.create_task(told(path))
    await asyncio.sleep(0)
    await engine.close()
    assert await waiting == ["said: to the ledger"]


async def test_a_service_that_is_starting_is_waited_for(held: tuple[Path, SqliteEngine]) -> None:
    """It has the database before it says where it answers; the file may still be that of the one before."""
    path, asked = held[0], asyncio.Event()

    async def of_another(request: web.Request) -> web.Response:
        asked.set()
        return web.json_response({"error": "who are you?"}, status=401)

    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"said": request.headers["Authorization"]})

    async with answering(of_another) as before, answering(answer) as now:
        waiting = asyncio.create_task(told(path))
        await asyncio.sleep(0)
        announced(path, before)
        await asked.wait()
        announced(path, now, "new")
        assert await waiting == ["said: Bearer new"]


async def test_a_file_that_a_killed_service_left_behind_is_not_believed(held: tuple[Path, SqliteEngine]) -> None:
    path, engine = held

    async def answer(request: web.Request) -> web.Response:
        return web.Response()

    async with answering(answer) as gone:
        pass
    announced(path, gone)
    with pytest.raises(local.NotThere, match=f"the running service does not answer at {gone}"):
        await local.ask(f"sqlite:///{path}", PATH, {})
    await engine.close()
    assert await told(path) == ["said: to the ledger"]


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "1", "null", '{"url": "http://127.0.0.1:9"}'])
async def test_a_file_that_does_not_say_where_is_no_service(held: tuple[Path, SqliteEngine], text: str) -> None:
    Path(f"{held[0]}.control").write_text(text)
    with pytest.raises(local.NotThere, match=r"held\.db\.control beside it does not say where it answers"):
        await local.ask(f"sqlite:///{held[0]}", PATH, {})


async def test_an_answer_that_takes_too_long_may_still_come_true(held: tuple[Path, SqliteEngine]) -> None:
    leave = asyncio.Event()

    async def think(request: web.Request) -> web.Response:
        await leave.wait()
        return web.Response()

    async with answering(think) as url:
        announced(held[0], url)
        with pytest.raises(StoreError, match=r"has not answered for 0\.1 s: what was asked for may still be done"):
            await local.ask(f"sqlite:///{held[0]}", PATH, {}, seconds_max=0.1)
        leave.set()


async def test_an_answer_that_breaks_off_may_have_come_true(held: tuple[Path, SqliteEngine]) -> None:
    async def hang_up(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with answering(hang_up) as url:
        announced(held[0], url)
        with pytest.raises(StoreError, match="broke off before it answered: what was asked for may be done"):
            await local.ask(f"sqlite:///{held[0]}", PATH, {})


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (409, b'{"error": "nothing holds it"}', "nothing holds it"),
        (503, b"[]", "the running service answered 503"),
        (200, b"no JSON", "the running service answered 200"),
        (500, b'{"error": null}', "the running service answered 500"),
    ],
)
async def test_what_is_refused_is_said(held: tuple[Path, SqliteEngine], status: int, body: bytes, said: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status, body=body)

    async with answering(answer) as url:
        announced(held[0], url)
        with pytest.raises(StoreError, match=said) as refused:
            await told(held[0])
        assert not isinstance(refused.value, local.NotThere)
