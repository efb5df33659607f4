"""What holds for every test: Hypothesis without a clock, `real` marks that skip where a component is missing, and
databases of both kinds.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.n8n import testbed
from tests.postgres import Postgres, pooler, postgres
from tests.servers import PATIENCE_SECONDS, missing_component, real

# A shared machine stalls now and then; a slow example is no wrong example, and slowly made examples are no bad ones.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")
# Nor is a collector on a slow machine a collector that does not answer (the SDK's own default: 10 s).
os.environ["OTEL_EXPORTER_OTLP_TIMEOUT"] = str(PATIENCE_SECONDS)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update", action="store_true", help="write golden files anew instead of comparing with them")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("real"):
        reason = missing_component(*mark.args)
        if reason is not None:
            pytest.skip(reason)
    if item.get_closest_marker("n8n") is not None:
        reason = testbed.missing()
        if reason is not None:
            pytest.skip(reason)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A command that a test runs within its own process sets how loud the log is: not for the next test."""
    loggers = [logging.getLogger(), logging.getLogger("exporter")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    """A PostgreSQL for all tests of a process; each makes databases of its own on it."""
    with postgres() as running:
        yield running


@pytest.fixture(scope="session")
def pooled(server: Postgres) -> Iterator[Callable[[str], str]]:
    """What the URL of a database of the server becomes through a proxy in transaction mode."""
    with pooler(server) as through:
        yield through


#: The kinds of databases there are.
KINDS = (
    "sqlite",
    pytest.param("postgresql", marks=real("postgres")),
    pytest.param("pgbouncer", marks=[real("postgres"), real("pgbouncer"), pytest.mark.slow]),
)


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database: what the ledger does it does on each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/t.db"
    server: Postgres = request.getfixturevalue("server")
    if request.param == "postgresql":
        return server.make()
    through: Callable[[str], str] = request.getfixturevalue("pooled")
    return through(server.make())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests have measured: rows that they recorded, as ``record_property("a heading", {column: value})``."""
    tables: dict[str, list[Mapping[str, object]]] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for heading, row in report.user_properties:
                if isinstance(row, Mapping):
                    tables.setdefault(heading, []).append(row)
    for heading, rows in tables.items():
        terminalreporter.section(heading)
        columns = list(dict.fromkeys(column for row in rows for column in row))
        lines = [columns, *([str(row.get(column, "")) for column in columns] for row in rows)]
        widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
        for line in lines:
            terminalreporter.line(
                "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            )
