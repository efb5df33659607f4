"""The wheel and the source distribution, built for real: what is in them, and what they can do by themselves.

The wheel is installed into a fresh virtual environment whose libraries are those the wheel asks for, linked from the
environment of the tests, and none besides: what it needs and does not declare is not there.
"""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from exporter.shipped import shipped

ROOT = Path(__file__).parent.parent


def build(project: Path, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", *arguments], cwd=project, check=True, capture_output=True
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of both archives."""
    folder = tmp_path_factory.mktemp("dist")
    build(ROOT, "-d", str(folder))
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    [file] = built.glob("*.whl")
    return file


def below(folder: Path, *patterns: str) -> set[str]:
    return {path.relative_to(folder).as_posix() for pattern in patterns for path in folder.glob(pattern)}


def test_the_wheel_brings_dashboards_alerts_and_runbooks_and_nothing_of_the_workshop(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    brought = {name.removeprefix("exporter/_shipped/") for name in names if name.startswith("exporter/_shipped/")}
    assert brought == (
        {f"dashboards/{name}" for name in below(ROOT / "dashboards", "*.json", "provisioning/*.yaml")}
        | {f"alerts/{name}" for name in below(ROOT / "alerts", "*.yaml")}
        | {f"runbooks/{name}" for name in below(ROOT / "docs/runbooks", "*.md")}
    )
    assert len(brought) > 40
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"exporter"}
    assert not [name for name in names if name.endswith((".pyc", ".db")) or "__pycache__" in name]


def test_the_source_distribution_builds_the_same_wheel(built: Path, wheel: Path, tmp_path: Path) -> None:
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    [unpacked] = tmp_path.iterdir()
    build(unpacked, "-t", "wheel", "-d", str(tmp_path))
    assert zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist() == zipfile.ZipFile(wheel).namelist()


def test_a_checkout_has_them_where_people_look_for_them() -> None:
    assert (shipped("runbooks") / "AutomationStoreDown.md").read_text().startswith("# AutomationStoreDown\n")
    assert (shipped("dashboards") / "automation-overview.json").is_file()
    assert (shipped("alerts") / "alert-rules.yaml").is_file()
