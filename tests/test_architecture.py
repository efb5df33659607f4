"""What import-linter (see pyproject.toml) cannot say of the modules, read from the source with `ast`, not imported.

Modules that call themselves pure are, platforms are named nowhere but in their folder and the table, SQL lives in
`exporter/store/` and the clock is read in `exporter/clock.py`. Each rule is a function from one module to the lines
that break it; it is applied to every module there is, and shown to catch what it forbids and to let pass what it does
not.
"""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLATFORMS_FOLDER = ROOT / "exporter" / "platforms"
# The four there must be, and whichever folder comes next.
PLATFORMS = sorted(
    {"make", "qlik", "etlworks", "cognaize", "n8n"} | {p.parent.name for p in PLATFORMS_FOLDER.glob("*/*.py")}
)

#: A module is pure if a sentence of its docstring begins with this word. The model and its laws have to.
PURE = re.compile(r"(?:\A|[.!?]\s+)Pure\b")
PURE_FOR_SURE = [
    "exporter/alerting/rules.py",
    "exporter/model/fold.py",
    "exporter/model/__init__.py",
    *(
        str(path.relative_to(ROOT))
        for name in PLATFORMS
        for path in (PLATFORMS_FOLDER / name).rglob("*.py")
        if path.stem == "mapping" or path.parent.stem == "mapping"
    ),
    "exporter/polling/planner.py",
    "exporter/model/policy.py",
    "exporter/retries/protocol.py",
    "exporter/model/tallies.py",
    "exporter/traces/spans.py",
    "exporter/platform/cloudevents.py",
    "exporter/wire/schemes.py",
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
    ("exporter/platform/webhook_section.py", "qlik"),
    ("exporter/wire/schemes.py", "qlik"),
    ("exporter/wire/schemes.py", "Qlik-Signature"),
}


@dataclass(frozen=True, slots=True)
class Module:
    path: str
    """From the project's root: exporter/wire/schemes.py"""
    source: str

    def parse(self) -> ast.Module:
        return ast.parse(self.source, self.path)


Rule = Callable[[Module], list[str]]


# Reading a module.


def imports(module: Module) -> Iterator[tuple[int, str]]:
    """Every module, or name in a module, imported: `from . import fold` in exporter/app.py is exporter.model.fold."""
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


def is_pure(module: Module) -> bool:
    """Whether the module says so."""
    return bool(PURE.search(ast.get_docstring(module.parse()) or ""))


def impurities(module: Module) -> list[str]:
    if not is_pure(module):
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


def platform_named_elsewhere(module: Module) -> list[str]:
    """A platform's name in a string outside its own folder, the table and the simulators."""
    if module.path == "exporter/platforms/__init__.py" or module.path.startswith("exporter/simulator/"):
        return []
    others = [name for name in PLATFORMS if name != platform_of(module)]
    written = [
        (line, repr(text))
        for line, text in literals(module)
        if (module.path, text) not in NAMESAKES and any(names(text, platform) for platform in others)
    ]
    return report(module, written)


def names(text: str, platform: str) -> bool:
    # "make" is also a verb: only the word alone is the platform.
    return text.lower() == platform if platform == "make" else platform in text.lower()


def platform_of(module: Module) -> str | None:
    return next((name for name in PLATFORMS if module.path.startswith(f"exporter/platforms/{name}/")), None)


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


def every_module() -> list[Module]:
    paths = sorted((ROOT / "exporter").rglob("*.py"))
    assert paths, "no module found: the test looks in the wrong place"
    return [Module(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in paths]


def broken(rule: Rule) -> list[str]:
    return [line for module in every_module() for line in rule(module)]


def test_the_model_its_laws_and_every_mapping_call_themselves_pure() -> None:
    assert set(PURE_FOR_SURE) <= {module.path for module in every_module() if is_pure(module)}


def test_pure_modules_do_no_io_and_read_no_clock() -> None:
    assert broken(impurities) == []


def test_platforms_are_named_in_their_folder_and_in_the_table_only() -> None:
    assert broken(platform_named_elsewhere) == []


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
    ("source", "lines"),
    [
        ("import asyncio", [2]),
        ("import math\nimport os.path", [3]),
        ("def f():\n    from time import strftime", [3]),
        ("from random import random", [2]),
        ("from exporter.clock import Clock", [2]),
        ("from ..clock import Clock", [2]),
        ("from .. import clock", [2]),
        ("from datetime import UTC, datetime\nx = datetime.now(UTC)", [3]),
        ("import datetime as dt\nx = dt.datetime.utcnow()", [3]),
        ("x = 1\nwith open('f') as f: pass", [3]),
        ("import socket", [2]),
        ("import timeit, ossaudiodev\nfrom exporter import clockwork\ndoor.open()", []),
        ("from datetime import datetime\nx = datetime.fromtimestamp(now)\ny = clock.now()", []),
    ],
)
def test_impurity_is_caught_in_pure_modules_only(source: str, lines: list[int]) -> None:
    check(impurities, "exporter/retries/some.py", f"'Words. Pure.'\n{source}", lines)
    check(impurities, "exporter/retries/some.py", f"'Words.'\n{source}", [])


@pytest.mark.parametrize(
    ("docstring", "pure"),
    [
        ("Pure.", True),
        ("Pure: what happened goes in.", True),
        ("Words. Pure.", True),
        ("Words. Pure; the rest is said elsewhere.", True),
        ("Words, and more of them.\nPure.", True),
        ("Words.", False),
        ("", False),
        ("A pure consequence of tallies.", False),
        ("One pure function. Purely.", False),
    ],
)
def test_a_module_is_pure_if_a_sentence_of_its_docstring_begins_so(docstring: str, pure: bool) -> None:
    assert is_pure(Module("exporter/some.py", f"{docstring!r}\nx = 'Words. Pure.'")) is pure


@pytest.mark.parametrize(
    ("path", "source", "lines"),
    [
        ("exporter/app.py", "if p == 'make': pass\nif p == 'Make': pass", [1, 2]),
        ("exporter/app.py", "x = f'{a} of Qlik'", [1]),
        ("exporter/platforms/make/reading/__init__.py", "'''Unlike Qlik.'''\nname = 'make'\nother = 'cognaize'", [3]),
        ("exporter/webhooks/receiver.py", "header = 'Qlik-Signature'", [1]),
        ("exporter/wire/schemes.py", "header = 'Qlik-Signature'\nother = 'Etlworks'", [2]),
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
        ("exporter/wire/api.py", "import time\nx = time.time()\ny = time.monotonic()", [2, 3]),
        ("exporter/wire/api.py", "import time as t\nx = t.perf_counter_ns()", [2]),
        ("exporter/wire/api.py", "from time import monotonic as tick\nx = tick()", [2]),
        ("exporter/wire/api.py", "import time\nx = field(default_factory=time.time)", [2]),
        ("exporter/wire/api.py", "from datetime import datetime, date\nx = datetime.now()\ny = date.today()", [2, 3]),
        ("exporter/wire/api.py", "import datetime\nx = datetime.datetime.now(tz=datetime.UTC)", [2]),
        ("exporter/wire/api.py", "import time\nx = time.gmtime(now)\ny = clock.now()\nz = run.time", []),
        ("exporter/clock.py", "import time\nx = time.time()", []),
    ],
)
def test_a_second_reader_of_the_clock_is_caught(path: str, source: str, lines: list[int]) -> None:
    check(reads_clock, path, source, lines)
