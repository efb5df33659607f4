"""The engine against a platform in a nutshell, started and stopped for a test."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from exporter.model.policy import Rules
from exporter.model.retries import Traits
from tests.postgres import Postgres
from tests.retries.made import EACH
from tests.retries.world import Engine
from tests.servers import real


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=[real("postgres"), pytest.mark.slow])])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database. Each of these tests makes thousands of transactions: on PostgreSQL it is slow."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/t.db"
    server: Postgres = request.getfixturevalue("server")
    return server.make()


EngineOf = Callable[..., Awaitable[Engine]]


@pytest.fixture
async def engine_of(tmp_path: Path) -> AsyncIterator[EngineOf]:
    """By its rules (and traits): on a database of its own, with the platform swept once."""
    made: list[Engine] = []

    async def engine_of(rules: Rules, traits: Traits = EACH) -> Engine:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        engine = Engine(folder, rules, traits)
        made.append(engine)
        await engine.start()
        await engine.sweep()
        return engine

    yield engine_of
    for engine in made:
        await engine.stop()
