"""What a dashboard's JSON says, read as plain values."""

import json
import re
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
    kind: str
    """Of the panel, in Grafana's words"""
    exemplars: bool

    @property
    def graph(self) -> bool:
        return self.kind == "timeseries"

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
                kind=panel["type"],
                exemplars=target.get("exemplar", False),
            )


def filled(expr: str, **variables: str) -> str:
    """A query as Grafana sends it, with everything chosen that is not in ``variables``."""
    chosen = {"job": ".+", "instance": ".+", "source": ".+", "workflow_id": ".+", "__rate_interval": "5m"}
    # the longest name first: $__range is the beginning of $__range_s
    for name, value in sorted({**chosen, "__range": "100m", "__range_s": "6000", **variables}.items(), reverse=True):
        expr = expr.replace(f"${name}", value)
    assert not re.search(r"\$(?!job|instance)[a-z_{]", expr), expr
    return expr
