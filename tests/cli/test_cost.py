"""What a command costs before it does anything: the modules it imports, which do not depend on how busy a machine is.

A bare interpreter is the measure: ``--version`` took 3.4 times its CPU when the bound was written, for 52 modules
more than that.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from pathlib import Path

import pytest

from exporter.cli.parser import parser
from tests.servers import PATIENCE_SECONDS

#: More than a bare interpreter imports: argparse and what it needs, pathlib, three of ours.
MODULES_MAX = 60
HEAVY = {
    *("aiohttp", "asyncio", "msgspec", "opentelemetry", "orjson", "prometheus_client", "pydantic", "sqlite3", "yaml"),
    *("dataclasses", "email", "importlib.metadata", "inspect", "logging", "multiprocessing", "shtab", "ssl"),
}


def imported(*words: str, folder: Path) -> tuple[int, set[str], str]:
    """Run a command: its exit code, what it imported, and what it said besides."""
    process = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "exporter", *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "AUTOMATION_EXPORTER_CONFIG": str(folder / "config.yaml")},
        check=False,
    )
    lines = re.findall(r"^import time: +\d+ \| +\d+ \| +(\S+)$", process.stderr, re.M)
    rest = "\n".join(line for line in process.stderr.splitlines() if not line.startswith("import time:"))
    return process.returncode, set(lines), process.stdout + rest


@lru_cache
def bare() -> frozenset[str]:
    code = "import sys; print(*sys.modules)"
    return frozenset(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split())


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--version"], 0),
        (["--help"], 0),
        (["retries", "--help"], 0),
        (["retries", "audit", "--help"], 0),
        ([], 2),
        (["nonsense"], 2),
        (["retries", "list", "--limit", "many"], 2),
        (["run", "--nonsense"], 2),
        (["completion", "bash"], 0),
        (["completion", "tcsh"], 2),
    ],
    ids=str,
)
def test_nothing_is_imported_to_say_what_there_is(words: list[str], code: int, tmp_path: Path) -> None:
    found, modules, said = imported(*words, folder=tmp_path)
    assert (found, "exporter" in said) == (code, True)
    modules -= bare()
    assert not HEAVY & modules
    assert {"argparse", "exporter.cli.parser"} <= modules
    assert len(modules) <= MODULES_MAX


@pytest.mark.parametrize(
    ("words", "whole"),
    [
        (["config", "schema"], False),
        (["config", "show"], False),
        (["rules"], False),
        (["retries", "list"], True),  # the first half of the service reads what there is
        (["policies", "explain"], True),
    ],
    ids=str,
)
def test_a_command_imports_what_it_needs(words: list[str], whole: bool, tmp_path: Path) -> None:
    written(tmp_path)
    _, modules, _ = imported(*words, folder=tmp_path)
    assert "exporter.config" in modules
    assert ("exporter.memory" in modules) is whole
    assert not [name for name in modules if name.startswith("exporter.simulator")]


def test_the_service_never_imports_the_simulators(tmp_path: Path) -> None:
    """As it runs: up to where its address cannot be had, and beyond that nothing is imported but by what it does."""
    written(tmp_path, listen="192.0.2.1:80")
    code, modules, said = imported("run", folder=tmp_path)
    assert (code, "server.listen: 192.0.2.1:80: this machine has no such address" in said) == (1, True), said
    assert {"exporter.app", "exporter.polling.poller", "exporter.web.server"} <= modules
    assert not [name for name in modules if name.startswith("exporter.simulator")]


def written(folder: Path, listen: str = "127.0.0.1:0") -> None:
    (folder / "config.yaml").write_text(
        f"""
        server: {{listen: "{listen}"}}
        store: {{url: "sqlite:///{folder}/x.db"}}
        sources: {{q: {{platform: qlik, url: "http://127.0.0.1:9", token: t}}}}
        """
    )


def commands(parser: argparse.ArgumentParser, *words: str) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Every command with its parser."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in below:
        for word, sub in action.choices.items():
            yield from commands(sub, *words, word)
    if not below:
        yield words, parser


ALL = [pytest.param(words, one, id=" ".join(words)) for words, one in commands(parser())]


@pytest.mark.parametrize(("words", "one"), ALL)
def test_every_command_can_be_imported(words: tuple[str, ...], one: argparse.ArgumentParser) -> None:
    module, _, function = one.get_default("command").partition(":")
    assert callable(getattr(import_module(f"exporter.cli.{module}"), function))


@pytest.mark.parametrize(("words", "one"), [*ALL, pytest.param((), parser(), id="all")])
def test_every_help_has_examples_that_can_be_typed(words: tuple[str, ...], one: argparse.ArgumentParser) -> None:
    examples = re.findall(r"^  automation-exporter (.+)$", one.format_help(), re.M)
    assert examples
    for example in examples:
        assert example.startswith(" ".join(words))
        typed = example.split(" > ")[0].split()
        if "COMMAND" not in typed:
            assert parser().parse_args(typed).command == (
                one.get_default("command") or parser().parse_args(typed).command
            )


@pytest.mark.parametrize(("words", "one"), ALL)
def test_every_argument_says_what_it_is_for(words: tuple[str, ...], one: argparse.ArgumentParser) -> None:
    assert [action.dest for action in one._actions if not action.help] == []


@pytest.mark.parametrize("words", ["retries list", "retries show", "retries audit", "policies explain"])
def test_what_lists_takes_json(words: str) -> None:
    [one] = [found for names, found in commands(parser()) if " ".join(names) == words]
    assert "--json" in one.format_help()
