"""What holds for every test: Hypothesis without deadlines, and `real` marks that skip where a component is missing."""

import pytest
from hypothesis import settings

from tests.servers import missing_component

# A shared machine stalls now and then; a slow example is no wrong example.
settings.register_profile("default", deadline=None)
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update", action="store_true", help="write golden files anew instead of comparing with them")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("real"):
        reason = missing_component(*mark.args)
        if reason is not None:
            pytest.skip(reason)
