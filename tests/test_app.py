"""The service as a whole: its loops, its housekeeping, and what a reload leaves of the config before it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from aiohttp import ClientSession

from exporter import app
from exporter.config import Config
from exporter.model.catalogue import CATALOGUE
from exporter.model.ledger import Key
from exporter.simulator.fleet import demo_config
from exporter.store.ledger import Ledger
from exporter.store.script import StoreError
from exporter.view.own import OwnMetrics
from tests.e2e.deployment import Deployment, deployment


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployment(tmp_path, platforms=["make", "qlik"]) as made:
        yield made


class Marking(Ledger):
    """A ledger that is told of another folded workflow while it writes, and may fail."""

    folded: list[Key]
    marked: list[Key]
    fails = False

    async def mark_folded(self, keys: Sequence[Key]) -> None:
        if self.fails:
            raise StoreError("the disk is full")
        self.marked += keys
        self.folded.append(("make", "later"))


async def test_workflows_folded_while_others_are_written_down_are_written_next_time(made: Deployment) -> None:
    service, now = made.service, made.clock.now()
    marking = Marking(service.ledger._engine, service.ledger.rules)
    marking.folded, marking.marked = [("make", "first")], []
    service.memory.ledger = marking
    marking.fails = True
    with pytest.raises(StoreError):
        await app.housekeeping_once(service, made.config, now, marking.folded)
    marking.fails = False
    await app.housekeeping_once(service, made.config, now, marking.folded)
    assert marking.folded == [("make", "later")]
    await app.housekeeping_once(service, made.config, now, marking.folded)
    assert marking.marked == [("make", "first"), ("make", "later")]
    assert service.own.registry.get_sample_value("automation_exporter_series_folded_total") == 2.0


async def test_a_source_that_a_reload_removes_takes_its_gauges_along(made: Deployment) -> None:
    await made.stop()
    own = OwnMetrics()

    def told(config: Config) -> set[str]:
        complete = next(f for f in own.registry.collect() if f.name == "automation_exporter_data_complete")
        return {s.labels["source"] for s in complete.samples}

    for names in (["make", "qlik"], ["qlik"]):
        sources = {name: made.config.sources[name] for name in names}
        config = made.config.model_copy(update={"sources": sources})
        async with app.service(config, clock=made.clock, own=own, loops=False):
            assert told(config) == set(names)
    await made.start()


async def test_a_source_that_a_reload_removes_leaves_no_line_in_a_scrape(made: Deployment) -> None:
    async def scraped(url: str) -> list[str]:
        async with ClientSession() as session, session.get(f"{url}/metrics") as response:
            return (await response.text()).splitlines()

    def of(source: str, lines: list[str]) -> list[str]:
        return [line for line in lines if f'source="{source}"' in line]

    await made.sweep()
    before = await scraped(made.url)
    own = made.service.own
    await made.stop()
    sources = {"qlik": made.config.sources["qlik"], "renamed": made.config.sources["make"]}
    config = made.config.model_copy(update={"sources": sources})
    async with app.service(config, clock=made.clock, own=own, loops=False) as running:
        after = await scraped(f"http://127.0.0.1:{running.port}")
    await made.start()
    assert len(of("make", before)) > 100
    assert of("make", after) == []
    assert of("renamed", after)
    requests = [line for line in of("qlik", before) if line.startswith("automation_exporter_api_requests_total")]
    assert requests
    assert set(requests) <= set(after), "what stays goes on"
    series = next(float(line.split()[1]) for line in after if line.startswith("automation_exporter_series "))
    names = tuple(metric.family for metric in CATALOGUE)
    assert series == sum(line.startswith(names) and not line.startswith("#") for line in after)


async def test_an_address_that_is_taken_is_told_as_it_is_though_loops_are_running(made: Deployment) -> None:
    taken = made.url.removeprefix("http://")
    config = demo_config(made.fleet, listen=taken, database=Path(made.config.store.url[10:] + ".other"))
    async with AsyncExitStack() as stack:
        with pytest.raises(OSError, match="address already in use"):
            await stack.enter_async_context(app.service(config))


async def test_a_loop_that_breaks_ends_the_service() -> None:
    async def breaks() -> None:
        raise ValueError("a bug")

    with pytest.raises(ExceptionGroup) as caught:
        async with app._background() as start:
            start(breaks())
            await asyncio.Event().wait()
    assert caught.group_contains(ValueError, match="a bug")
