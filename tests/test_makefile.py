"""The README's two commands, by the real make, with a Python that only says what it is asked to do."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
#: Stands in for python3, for the .venv's python and for automation-exporter.
STAND_IN = """#!/bin/sh
case "$*" in
*"-m venv"*)
    mkdir -p .venv/bin
    for name in python automation-exporter; do cp "$0" ".venv/bin/$name"; done
    touch .venv/pyvenv.cfg ;;
*"-m pip"*) echo "PIP $*" >&2
    echo "  Installing build dependencies: started"
    echo "  Installing build dependencies: finished with status 'done'"
    echo "Collecting aiohttp>=3.9 (from automation-exporter==0)"
    echo "  Downloading aiohttp-3.9.whl (1.2 MB)"
    echo "Installing collected packages: aiohttp, automation-exporter"
    exit "${PIP_CODE:-0}" ;;
*-c*) exit 0 ;;
*) echo "RAN $(basename "$0") $*" ;;
esac
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "python-stand-in"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    return tmp_path


def make(folder: Path, *words: str, **variables: str) -> tuple[int, list[str]]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(
        ["make", "--no-print-directory", f"PYTHON={folder}/python-stand-in", *words],
        cwd=folder,
        env={**environment, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout.splitlines()


def test_make_demo_says_what_it_is_doing_before_it_does_it(clone: Path) -> None:
    code, said = make(clone, "demo", "ARGS=--port 0")
    assert (code, len(said)) == (0, 8), said
    assert said[0].startswith("making .venv with ")
    assert said[1] == "installing automation-exporter and its libraries into .venv: once, about a minute"
    assert [line for line in said if line.startswith("PIP -m pip install ")]
    assert said.index("  what builds it") < said.index("  aiohttp>=3.9") < said.index("  installing them"), (
        "a line a package: it is seen to go on"
    )
    assert said[6:] == ["starting the simulators and the exporter", "RAN automation-exporter demo --port 0"]
    # The second time there is nothing to install, and nothing said of it.
    assert make(clone, "demo")[1] == ["starting the simulators and the exporter", "RAN automation-exporter demo"]


def test_make_demo_starts_nothing_that_could_not_be_installed(clone: Path) -> None:
    for _ in range(2):  # the second time it is tried again
        code, said = make(clone, "demo", PIP_CODE="1")
        assert code != 0
        assert [line for line in said if line.startswith("installing ")]
        assert not [line for line in said if line.startswith(("starting ", "RAN "))]
    assert make(clone, "demo")[0] == 0


def test_make_help_lists_what_there_is(clone: Path) -> None:
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.M)
    code, said = make(clone, "help")
    assert (code, [line.split()[1] for line in said]) == (0, targets)


def test_the_readme_names_the_packages_that_make_test_installs_and_how_to_do_without() -> None:
    script = (ROOT / "tests/setup-real-components").read_text()
    [components] = re.findall(r'^components="([^"]*)"', script, re.M)
    packages = {component.partition(":")[2] for component in components.split()}
    assert len(packages) > 2
    readme = (ROOT / "README.md").read_text()
    [paragraph] = [part for part in readme.split("\n\n") if "`make test` also" in part]
    assert {package for package in packages if f"`{package}`" not in paragraph} == set()
    assert "REAL=no" in paragraph
    assert re.search(r"^REAL \?= install$", (ROOT / "Makefile").read_text(), re.M)
