"""The official clients, one node process for each platform and test process, or the reason why there is none."""

from collections.abc import Iterator

import pytest

from tests.clients.official import Official, missing, official


def started(script: str) -> Iterator[Official]:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with official(script) as client:
        yield client


@pytest.fixture(scope="module")
def make_client() -> Iterator[Official]:
    yield from started("make.mjs")


@pytest.fixture(scope="module")
def qlik_client() -> Iterator[Official]:
    yield from started("qlik.mjs")
