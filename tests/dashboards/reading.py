"""What a dashboard's JSON says, read as plain values."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "dashboards"
FILES = sorted(FOLDER.glob("*.json"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One query of one panel."""

    board: str
    panel: str
    expr: str
    graph: bool
    exemplars: bool

    def __str__(self) -> str:
        return f"{self.board}: {self.panel}"


def board(file: Path) -> Any:
    return json.loads(file.read_text())


def panels(dashboard: Any) -> list[Any]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def shown(file: Path) -> Iterator[Shown]:
    dashboard = board(file)
    for panel in panels(dashboard):
        for target in panel["targets"]:
            yield Shown(
                board=dashboard["title"].removeprefix("Automation / "),
                panel=panel["title"],
                expr=target["expr"],
                graph=panel["type"] == "timeseries",
                exemplars=target.get("exemplar", False),
            )


def filled(expr: str, **variables: str) -> str:
    """A query as Grafana sends it, with everything chosen that is not in ``variables``."""
    chosen = {"job": "test", "instance": ".*", "source": ".*", "workflow_id": ".*", "__rate_interval": "5m"}
    for name, value in {**chosen, "__range": "2h", **variables}.items():
        expr = expr.replace(f"${name}", value)
    assert "$" not in expr, expr
    return expr
