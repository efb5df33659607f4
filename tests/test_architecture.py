"""The arrows between the modules, read from the source with `ast`; nothing is imported.

Pure modules stay pure, platforms know neither each other nor the store and are named nowhere else, nothing imports
`exporter.app`, SQL lives in `exporter/store/` and the clock is read in `exporter/clock.py`. Each rule is a function
from one module to the lines that break it; it is applied to every module there is, and shown to catch what it forbids
and to let pass what it does not.
"""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLATFORMS_FOLDER = ROOT / "exporter" / "platforms"
# The four there must be, and whichever folder comes next.
PLATFORMS = sorted({"make", "qlik", "etlworks", "cognaize"} | {p.parent.name for p in PLATFORMS_FOLDER.glob("*/*.py")})

PURE = [
    "exporter/alerting/*.py",
    "exporter/model.py",
    "exporter/fold.py",
    "exporter/platforms/*/mapping.py",
    "exporter/retries/policy.py",
    "exporter/polling/planner.py",
    "exporter/traces/spans.py",
    "exporter/webhooks/payloads.py",
    "exporter/webhooks/schemes.py",
    "exporter/webhooks/cloudevents.py",
]
IMPURE_IMPORTS = ["aiohttp", "asyncio", "os", "pathlib", "random", "socket", "sqlite3", "threading", "time"]
IMPURE_IMPORTS += ["exporter.clock"]
CLOCK_READINGS = {
    *(f"time.{name}{suffix}" for name in ("time", "monotonic", "perf_counter") for suffix in ("", "_ns")),
    *(f"datetime.datetime.{name}" for name in ("now", "utcnow", "today")),
    "datetime.date.today",
}
SQL = re.compile(r"\b(SELECT|INSERT INTO|UPDATE|DELETE FROM|CREATE TABLE)\b")
# A platform's name as the name of something else: of a webhook scheme that any source may use.
NAMESAKES = {
    ("exporter/webhooks/config.py", "qlik"),
    ("exporter/webhooks/schemes.py", "qlik"),
    ("exporter/webhooks/schemes.py", "Qlik-Signature"),
}


@dataclass(frozen=True, slots=True)
class Module:
    path: str
    """From the project's root: exporter/webhooks/schemes.py"""
    source: str

    def parse(self) -> ast.Module:
        return ast.parse(self.source, self.path)


Rule = Callable[[Module], list[str]]


# Reading a module.


def imports(module: Module) -> Iterator[tuple[int, str]]:
    """Every module, or name in a module, imported: `from . import fold` in exporter/app.py is exporter.fold."""
    package = module.path.split("/")[:-1]
    for node in ast.walk(module.parse()):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base += node.module.split(".") if node.module else []
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)


def is_within(imported: str, name: str) -> bool:
    return imported == name or imported.startswith(name + ".")


def literals(module: Module) -> Iterator[tuple[int, str]]:
    """Every string, and every piece of an f-string, except docstrings."""
    tree = module.parse()
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def clock_readings(module: Module) -> Iterator[tuple[int, str]]:
    """Every mention, called or handed on, of a function that reads the clock, whatever it was imported as."""
    tree = module.parse()
    origin: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            origin |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            first, *rest = ast.unparse(node).split(".")
            name = ".".join([origin.get(first, first), *rest])
            if name in CLOCK_READINGS:
                yield node.lineno, name


# The rules.


def impurities(module: Module) -> list[str]:
    if not any(fnmatch(module.path, pattern) for pattern in PURE):
        return []
    opened = [
        (node.lineno, "open()")
        for node in ast.walk(module.parse())
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open"
    ]
    impure = [
        (line, f"import of {name}") for line, name in imports(module) if any(is_within(name, i) for i in IMPURE_IMPORTS)
    ]
    return report(module, [*impure, *clock_readings(module), *opened])


def platform_knows_too_much(module: Module) -> list[str]:
    """What a platform's folder imports of another platform, or of the store."""
    own = platform_of(module)
    if own is None:
        return []
    foreign = ["exporter.store", *(f"exporter.platforms.{name}" for name in PLATFORMS if name != own)]
    return report(module, [(line, name) for line, name in imports(module) if any(is_within(name, f) for f in foreign)])


def platform_named_elsewhere(module: Module) -> list[str]:
    """A platform's module imported, or its name in a string, outside its own folder, the table and the simulators."""
    if module.path == "exporter/platforms/__init__.py" or module.path.startswith("exporter/simulator/"):
        return []
    others = [name for name in PLATFORMS if name != platform_of(module)]
    places = [f"exporter.{folder}.{name}" for folder in ("platforms", "simulator") for name in others]
    imported = [(line, name) for line, name in imports(module) if any(is_within(name, p) for p in places)]
    written = [
        (line, repr(text))
        for line, text in literals(module)
        if (module.path, text) not in NAMESAKES and any(names(text, platform) for platform in others)
    ]
    return report(module, imported + written)


def names(text: str, platform: str) -> bool:
    # "make" is also a verb: only the word alone is the platform.
    return text.lower() == platform if platform == "make" else platform in text.lower()


def platform_of(module: Module) -> str | None:
    return next((name for name in PLATFORMS if module.path.startswith(f"exporter/platforms/{name}/")), None)


def imports_app(module: Module) -> list[str]:
    if module.path.startswith("exporter/cli/") or module.path == "exporter/__main__.py":
        return []
    return report(module, [(line, name) for line, name in imports(module) if is_within(name, "exporter.app")])


def sql_outside_store(module: Module) -> list[str]:
    if module.path.startswith("exporter/store/"):
        return []
    return report(module, [(line, repr(text)) for line, text in literals(module) if SQL.search(text)])


def reads_clock(module: Module) -> list[str]:
    if module.path == "exporter/clock.py":
        return []
    return report(module, list(clock_readings(module)))


def report(module: Module, found: list[tuple[int, str]]) -> list[str]:
    return [f"{module.path}:{line}: {what}" for line, what in sorted(found)]


# The rules applied to what there is.


def broken(rule: Rule) -> list[str]:
    paths = sorted((ROOT / "exporter").rglob("*.py"))
    assert paths, "no module found: the test looks in the wrong place"
    modules = [Module(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in paths]
    return [line for module in modules for line in rule(module)]


@pytest.mark.parametrize("path", ["exporter/model.py", "exporter/fold.py"])
def test_the_model_and_the_fold_exist(path: str) -> None:
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_platform_has_a_mapping(platform: str) -> None:
    assert (PLATFORMS_FOLDER / platform / "mapping.py").is_file()


def test_pure_modules_do_no_io_and_read_no_clock() -> None:
    assert broken(impurities) == []


def test_platforms_know_neither_each_other_nor_the_store() -> None:
    assert broken(platform_knows_too_much) == []


def test_platforms_are_named_in_their_folder_and_in_the_table_only() -> None:
    assert broken(platform_named_elsewhere) == []


def test_nothing_but_the_command_line_imports_the_app() -> None:
    assert broken(imports_app) == []


def test_sql_is_written_in_the_store_only() -> None:
    assert broken(sql_outside_store) == []


def test_the_clock_is_read_in_one_module_only() -> None:
    assert broken(reads_clock) == []


# The rules applied to what they are made for.


def check(rule: Rule, path: str, source: str, lines: list[int]) -> None:
    found = rule(Module(path, source))
    assert [int(line.split(":")[1]) for line in found] == lines, found
    assert all(line.startswith(f"{path}:") for line in found)


@pytest.mark.parametrize(
    ("path", "source", "lines"),
    [
        ("exporter/model.py", "import asyncio", [1]),
        ("exporter/fold.py", "import math\nimport os.path", [2]),
        ("exporter/fold.py", "def f():\n    from time import strftime", [2]),
        ("exporter/retries/policy.py", "from random import random", [1]),
        ("exporter/polling/planner.py", "from exporter.clock import Clock", [1]),
        ("exporter/polling/planner.py", "from ..clock import Clock", [1]),
        ("exporter/fold.py", "from . import clock", [1]),
        ("exporter/traces/spans.py", "from datetime import UTC, datetime\nx = datetime.now(UTC)", [2]),
        ("exporter/webhooks/schemes.py", "import datetime as dt\nx = dt.datetime.utcnow()", [2]),
        ("exporter/platforms/make/mapping.py", "x = 1\nwith open('f') as f: pass", [2]),
        ("exporter/platforms/fifth/mapping.py", "import socket", [1]),
        ("exporter/webhooks/receiver.py", "import asyncio, time\nopen('f')", []),
        ("exporter/model.py", "import timeit, ossaudiodev\nfrom exporter import clockwork\ndoor.open()", []),
        ("exporter/fold.py", "from datetime import datetime\nx = datetime.fromtimestamp(now)\ny = clock.now()", []),
    ],
)
def test_impurity_is_caught_in_pure_modules_only(path: str, source: str, lines: list[int]) -> None:
    check(impurities, path, source, lines)


@pytest.mark.parametrize(
    ("path", "source", "lines"),
    [
        ("exporter/platforms/qlik/client.py", "import exporter.platforms.make.client", [1]),
        ("exporter/platforms/qlik/client.py", "from exporter.platforms import cognaize", [1]),
        ("exporter/platforms/qlik/client.py", "from ..etlworks.mapping import run", [1]),
        ("exporter/platforms/qlik/client.py", "from exporter.store import ingest", [1]),
        ("exporter/platforms/qlik/client.py", "from exporter import model, store", [1]),
        ("exporter/platforms/qlik/client.py", "from . import mapping\nfrom exporter.http import Http", []),
        ("exporter/polling/poller.py", "from exporter.store import ingest", []),
    ],
)
def test_a_platform_that_knows_another_or_the_store_is_caught(path: str, source: str, lines: list[int]) -> None:
    check(platform_knows_too_much, path, source, lines)


@pytest.mark.parametrize(
    ("path", "source", "lines"),
    [
        ("exporter/app.py", "from exporter.platforms.qlik import client", [1]),
        ("exporter/app.py", "from exporter.platforms import make", [1]),
        ("exporter/cli/service.py", "from exporter.simulator.make import MakeSimulator", [1]),
        ("exporter/app.py", "if p == 'make': pass\nif p == 'Make': pass", [1, 2]),
        ("exporter/app.py", "x = f'{a} of Qlik'", [1]),
        ("exporter/platforms/make/client.py", "'''Unlike Qlik.'''\nname = 'make'\nother = 'cognaize'", [3]),
        ("exporter/webhooks/receiver.py", "header = 'Qlik-Signature'", [1]),
        ("exporter/webhooks/schemes.py", "header = 'Qlik-Signature'\nother = 'Etlworks'", [2]),
        ("exporter/app.py", "'''Make and Qlik.'''\nx = 'make a request'\nmake = qlik", []),
        ("exporter/platforms/__init__.py", "from exporter.platforms import make, qlik\nx = 'etlworks'", []),
        ("exporter/simulator/core.py", "x = 'etlworks'", []),
    ],
)
def test_a_platform_named_elsewhere_is_caught(path: str, source: str, lines: list[int]) -> None:
    check(platform_named_elsewhere, path, source, lines)


@pytest.mark.parametrize(
    ("path", "source", "lines"),
    [
        ("exporter/web/status.py", "import exporter.app", [1]),
        ("exporter/web/status.py", "from exporter.app import run", [1]),
        ("exporter/web/status.py", "from exporter import app", [1]),
        ("exporter/web/status.py", "from .. import app", [1]),
        ("exporter/web/status.py", "from aiohttp.web import Application as app\nimport exporter.apparatus", []),
        ("exporter/cli/service.py", "from exporter.app import run", []),
        ("exporter/__main__.py", "from exporter import app", []),
    ],
)
def test_an_import_of_the_app_is_caught(path: str, source: str, lines: list[int]) -> None:
    check(imports_app, path, source, lines)


@pytest.mark.parametrize(
    ("path", "source", "lines"),
    [
        ("exporter/retries/ledger.py", "q = 'SELECT 1'", [1]),
        ("exporter/retries/ledger.py", "q = f'INSERT INTO {table} VALUES (?)'", [1]),
        ("exporter/retries/ledger.py", "q = '''\nDELETE FROM a'''", [1]),
        ("exporter/retries/ledger.py", "q = ('a', 'UPDATE a SET b = 1')\nr = 'CREATE TABLE a (b)'", [1, 2]),
        ("exporter/retries/ledger.py", "'''UPDATE it.'''\nq = 'select one'\nr = 'UPDATED'", []),
        ("exporter/store/ingest.py", "q = 'SELECT 1'", []),
    ],
)
def test_sql_outside_the_store_is_caught(path: str, source: str, lines: list[int]) -> None:
    check(sql_outside_store, path, source, lines)


@pytest.mark.parametrize(
    ("path", "source", "lines"),
    [
        ("exporter/http.py", "import time\nx = time.time()\ny = time.monotonic()", [2, 3]),
        ("exporter/http.py", "import time as t\nx = t.perf_counter_ns()", [2]),
        ("exporter/http.py", "from time import monotonic as tick\nx = tick()", [2]),
        ("exporter/http.py", "import time\nx = field(default_factory=time.time)", [2]),
        ("exporter/http.py", "from datetime import datetime, date\nx = datetime.now()\ny = date.today()", [2, 3]),
        ("exporter/http.py", "import datetime\nx = datetime.datetime.now(tz=datetime.UTC)", [2]),
        ("exporter/http.py", "import time\nx = time.gmtime(now)\ny = clock.now()\nz = run.time", []),
        ("exporter/clock.py", "import time\nx = time.time()", []),
    ],
)
def test_a_second_reader_of_the_clock_is_caught(path: str, source: str, lines: list[int]) -> None:
    check(reads_clock, path, source, lines)
