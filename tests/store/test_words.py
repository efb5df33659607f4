"""Two processes change one retry at the same time, each as it remembers it: neither takes back what the other said."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from exporter.cli.ledger import offline
from exporter.config.outline import outline
from exporter.memory import Memory
from exporter.model.retries import Outcome, Retry, RetryState
from exporter.retries.protocol import released
from exporter.store import retries as script
from exporter.store.ledger import open_engine
from exporter.store.script import insert
from tests.postgres import Postgres, look
from tests.retries.made import NOW, sent
from tests.servers import real

pytestmark = real("postgres")
CONFIG = """
store: {{url: "{url}"}}
sources: {{make-eu: {{platform: make, url: "https://eu1.make.com", token: t, organization_id: 9}}}}
"""
Change = Callable[[Retry], Retry]


def by_a_person(retry: Retry) -> Retry:
    return released(retry, sent=True, who="anna", now=NOW + 60.0)


def by_the_retrier(retry: Retry) -> Retry:
    return replace(retry, state=RetryState.VERIFYING, new_runs=("r2",), look_at=NOW + 300.0, detail="r2 is running")


def closed(retry: Retry) -> Retry:
    return replace(retry, outcome=Outcome.SUCCEEDED, closed_at=NOW + 90.0, new_runs=("r2",))


@pytest.fixture
async def two(server: Postgres, tmp_path: Path) -> AsyncIterator[tuple[Memory, Memory, str]]:
    """Two memories of a ledger with one retry in doubt."""
    url, config = server.make(), tmp_path / "config.yaml"
    config.write_text(CONFIG.format(url=url))
    engine = await open_engine(url)
    row = script.row_of(sent(state=RetryState.IN_DOUBT))
    await engine.run(insert("retries", script.COLUMNS, [row], conflict="DO NOTHING"))
    await engine.close()
    async with AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(offline(outline(config), to_read=False)) for _ in range(2)]
        yield first, second, url


@pytest.mark.parametrize("order", [(by_a_person, by_the_retrier), (by_the_retrier, by_a_person)])
async def test_what_two_say_of_one_retry_comes_together(
    two: tuple[Memory, Memory, str], order: tuple[Change, Change]
) -> None:
    first, second, url = two
    [known] = first.book.everything()
    for memory, change in zip((first, second), order, strict=True):
        after = await memory.book.change(known, change, now=NOW + 60.0)
    assert (after.state, after.new_runs) == (RetryState.VERIFYING, ("r2",))
    assert (after.word, after.word_by) == (Outcome.SUPERSEDED, "anna")
    [(data,)] = look(url, "SELECT data FROM retries")
    assert script.retry_of(str(data)) == after
    assert second.book.everything() == [after]


async def test_what_the_other_closed_stays_closed(two: tuple[Memory, Memory, str]) -> None:
    first, second, url = two
    [known] = first.book.everything()
    ended = await first.book.change(known, closed, now=NOW + 90.0)
    assert await second.book.change(known, by_a_person, now=NOW + 95.0) == ended
    assert second.book.everything() == [ended]
    assert look(url, "SELECT count(*) FROM audit") == [("1",)]  # nothing is told that did not come true
