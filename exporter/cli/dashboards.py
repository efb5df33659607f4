"""``automation-exporter dashboards``: what is shipped for Grafana, for whoever has no checkout."""

import argparse
from importlib.resources.abc import Traversable
from pathlib import Path

from exporter.cli import UsageError
from exporter.shipped import shipped


def export(options: argparse.Namespace) -> int:
    folder: Path = options.folder
    try:
        for path in _copy(shipped("dashboards"), folder):
            print(path)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"{folder}: is no folder") from None
    except OSError as exc:
        raise UsageError(f"{exc.filename or folder}: cannot be written: {exc.strerror}") from None
    return 0


def _copy(source: Traversable, target: Path, ending: str = ".json") -> list[Path]:
    """What Grafana reads of a folder, to another that may be there already. Returns what was written."""
    target.mkdir(parents=True, exist_ok=True)
    written = list[Path]()
    for item in sorted(source.iterdir(), key=lambda item: item.name):
        if item.name == "provisioning":
            written += _copy(item, target / item.name, ".yaml")
        elif item.name.endswith(ending):
            (target / item.name).write_bytes(item.read_bytes())
            written.append(target / item.name)
    return written
