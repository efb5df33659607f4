"""What the tests of traces share."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from exporter.model import Result
from exporter.model.ledger import FoldRules
from exporter.store.ledger import Ledger, open_engine
from tests.otlp import otlp_receiver
from tests.traces.world import LOADED, World


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variables of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    rules = {name: FoldRules(traced=True) for name in ("docs", "gone")}
    rules["later"] = FoldRules(traced=True, steps_later=frozenset({Result.WARNING, Result.FAILURE}))
    ledger = Ledger(await open_engine(f"sqlite:///{tmp_path}/ledger.db"), rules)
    await ledger.ingest(LOADED)
    async with otlp_receiver() as receiver:
        world = World(ledger, receiver)
        yield world
        for exporter in world.made:
            await exporter.close()
    await ledger.close()
