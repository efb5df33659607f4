"""PostgreSQL in trouble: killed, restarted, with answers that are lost. A real one each time."""

import asyncio
import re
from collections.abc import Callable, Iterator

import pytest

from exporter.model.ledger import FoldRules
from exporter.store.ledger import Ledger, open_engine
from exporter.store.postgres import PostgresEngine
from exporter.store.script import Script, StoreError, StoreUnavailable
from tests.postgres import Postgres, look, postgres
from tests.servers import eventually, free_port, real

pytestmark = real("postgres")
RULES = {"s": FoldRules()}


@pytest.fixture
def own() -> Iterator[Postgres]:
    """One that a test may kill."""
    with postgres() as running:
        yield running


def put(name: str) -> Script[None]:
    yield "INSERT INTO sources (source, first_sweep_at) VALUES ($1, 1)", (name,)


def names() -> Script[list[str]]:
    rows = yield "SELECT source FROM sources ORDER BY source", ()
    return [name for (name,) in rows]


async def test_killed_it_is_in_trouble_and_back_again_it_works_by_itself(own: Postgres) -> None:
    url = own.make()
    ledger = Ledger(await open_engine(url), RULES)
    await ledger.transact("put", put("a"))
    own.kill()

    async def refused() -> bool:
        try:
            await ledger.transact("names", names())
        except StoreUnavailable:
            return True
        return False

    await eventually(refused)
    assert ledger.is_down
    with pytest.raises(StoreUnavailable):  # at once, without asking
        await ledger.transact("put", put("b"))
    own.start()

    async def works() -> bool:
        try:
            await ledger.probe()
        except StoreError:
            return False
        return True

    await eventually(works)
    assert await ledger.transact("names", names()) == ["a"]
    await ledger.close()


async def test_the_end_of_a_commit_whose_answer_was_lost_is_asked_for(server: Postgres) -> None:
    """The proxy takes the COMMIT to the server and cuts the line before the answer comes."""
    url = server.make()
    lost = asyncio.Event()

    async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", server.port)
        cut = False

        async def to_server() -> None:
            nonlocal cut
            while data := await reader.read(65536):
                if b"COMMIT\0" in data and armed.is_set():
                    armed.clear()
                    cut = True
                back.write(data)
                await back.drain()
            back.close()

        async def to_client() -> None:
            while data := await there.read(65536):
                if cut:
                    lost.set()
                    break
                writer.write(data)
                await writer.drain()
            writer.close()
            back.close()

        await asyncio.gather(to_server(), to_client(), return_exceptions=True)

    armed = asyncio.Event()
    proxy = await asyncio.start_server(between, "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    engine = await PostgresEngine.open(url.replace(f":{server.port}/", f":{port}/"))
    armed.set()
    await engine.run(put("a"))  # returns as if nothing had been
    assert lost.is_set()
    assert look(url, "SELECT source FROM sources") == [("a",)]
    with pytest.raises(StoreUnavailable):  # until a probe says that all is well
        await engine.run(put("b"))
    await engine.probe()
    await engine.run(put("b"))
    assert await engine.run(names()) == ["a", "b"]
    await engine.close()
    proxy.close()


async def test_two_processes_count_each_run_once(server: Postgres) -> None:
    """What one reads stays so until it has written, in whatever order their statements come."""
    url = server.make()
    engines = [await PostgresEngine.open(url) for _ in range(2)]
    await engines[0].run(put("s"), sources=["s"])

    def add() -> Script[None]:
        rows = yield "SELECT first_sweep_at FROM sources WHERE source = 's'", ()
        yield "UPDATE sources SET first_sweep_at = $1 WHERE source = 's'", (rows[0][0] + 1,)

    await asyncio.gather(*(engine.run(add(), sources=["s"]) for engine in engines for _ in range(50)))
    await asyncio.gather(*(engine.run(add()) for engine in engines for _ in range(10)))
    assert look(url, "SELECT first_sweep_at FROM sources") == [("121",)]
    for engine in engines:
        await engine.close()


async def test_other_sources_are_not_waited_for(server: Postgres) -> None:
    url = server.make()
    first, second = [await PostgresEngine.open(url) for _ in range(2)]

    def slow() -> Script[None]:
        yield "SELECT pg_sleep(3)", ()

    waiting = asyncio.create_task(first.run(slow(), sources=["a"]))
    await asyncio.sleep(0.2)
    await second.run(put("b"), sources=["b"])
    assert not waiting.done()
    await waiting
    for engine in (first, second):
        await engine.close()


@pytest.mark.parametrize("name", ["", "\0", "\1", "\1\2", "a\0b\1\1c", "Übung 漢字"])
async def test_any_text_comes_back_as_it_was(server: Postgres, name: str) -> None:
    engine = await PostgresEngine.open(server.make())
    await engine.run(put(name))
    assert await engine.run(names()) == [name]
    await engine.close()


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda url: url + "_not_there", "there is no such database"),
        (lambda url: re.sub(r":\d+/", f":{free_port()}/", url), "cannot be reached"),
        (lambda url: re.sub(r":\d+/", ":99999/", url), "store.url"),
        (lambda url: url + "?sslmode=never", "store.url"),
    ],
)
async def test_what_keeps_it_from_opening_is_said_in_one_line(
    server: Postgres, broken: Callable[[str], str], said: str
) -> None:
    url = broken(server.make())
    with pytest.raises(StoreError, match=said) as caught:
        await open_engine(url)
    assert "\n" not in str(caught.value)


async def test_who_only_reads_changes_nothing_and_says_that_it_is_empty(server: Postgres) -> None:
    url = server.make()
    with pytest.raises(StoreError, match="run the service once"):
        await open_engine(url, to_read=True)
    await (await open_engine(url)).close()
    engine = await open_engine(url, to_read=True)
    with pytest.raises(StoreError):
        await engine.run(put("a"))
    assert await engine.run(names()) == []
    await engine.close()
