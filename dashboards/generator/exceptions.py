"""Where the dashboards do not do as Grafana's dashboard-linter wants, and why: ``.lint``, which that linter reads."""

import re
from collections.abc import Iterable

import yaml

from dashboards.generator.panels import Board

#: What a query reads that has no label instance, and why that is so.
_WITHOUT_INSTANCE = (
    (
        re.compile(r"\breplicas:"),
        "The recorded series of a counter of the ledger is one for all replicas: it has no instance. Where nothing is"
        " recorded, the same query reads the counter as scraped, with its instance.",
    ),
    (re.compile(r"\bALERTS\b"), "Alerts name no instance: a failover must not end one and begin another."),
)


def lint(boards: Iterable[Board]) -> str:
    """The file's text: every panel and query by itself, so that a new one is an error until it is looked at."""
    entries = []
    for board in boards:
        for _, panels in board.rows:
            for panel in panels:
                for at, (expr, _) in enumerate(panel.queries):
                    reasons = [reason for pattern, reason in _WITHOUT_INSTANCE if pattern.search(expr)]
                    if reasons:
                        place = {"dashboard": f"Automation / {board.title}", "panel": panel.title, "targetIdx": str(at)}
                        entries.append({**place, "reason": " ".join(reasons)})
    rules = {"target-instance-rule": {"entries": entries}}
    text: str = yaml.safe_dump({"exclusions": rules}, sort_keys=False, width=120)
    return "# Made by `make dashboards`.\n" + text
