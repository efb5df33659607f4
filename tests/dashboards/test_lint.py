"""The rules of Grafana's dashboard-linter hold; what breaks one is in ``dashboards/.lint``, with its reason.

The linter itself is a program in Go that is not among the tests' components: its rules are these few.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from tests.alerts.test_rules import selectors
from tests.dashboards.reading import FILES, FOLDER, board, filled, panels

#: Of those it knows, the units used here.
UNITS = {"none", "short", "percentunit", "bytes", "Bps", "dateTimeFromNow", "s", "ops", "reqps", "bool_yes_no"}
TEMPLATED = "${datasource}"
LABEL_VALUES = re.compile(r"label_values\((?P<selector>.+), (?P<label>\w+)\)")
Breach = tuple[str, str, str, str]
"""Rule, dashboard, panel, which of its queries"""


def breaches(dashboard: Any) -> Iterator[Breach]:
    title = dashboard["title"]
    for rule in of_dashboard(dashboard):
        yield rule, title, "", ""
    for panel in panels(dashboard):
        for rule in of_panel(panel):
            yield rule, title, panel["title"], ""
        for at, target in enumerate(panel["targets"]):
            for rule in of_target(target["expr"]):
                yield rule, title, panel["title"], str(at)


def of_dashboard(dashboard: Any) -> Iterator[str]:
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    chosen = variables.pop("datasource", None)
    if chosen is None or (chosen["type"], chosen["label"]) != ("datasource", "Data source"):
        yield "template-datasource-rule"
    for name in ("job", "instance"):
        variable = variables.get(name, {})
        if (
            variable.get("datasource", {}).get("uid") != TEMPLATED
            or variable.get("type") != "query"
            or variable.get("label") != name.title()
            or not variable.get("multi")
            or variable.get("allValue") != ".+"
        ):
            yield f"template-{name}-rule"
    for variable in variables.values():
        found = LABEL_VALUES.fullmatch(variable["query"]["query"])
        if found is None or not parses(filled(found["selector"], workflow="x")):
            yield "template-label-promql-rule"
        if variable["refresh"] != 2:
            yield "template-on-time-change-reload-rule"
    if dashboard["editable"] is not False:
        yield "uneditable-dashboard"


def of_panel(panel: Any) -> Iterator[str]:
    if panel["datasource"]["uid"] != TEMPLATED:
        yield "panel-datasource-rule"
    if not panel.get("title") or not panel.get("description"):
        yield "panel-title-description-rule"
    defaults = panel["fieldConfig"]["defaults"]
    units = {p["value"] for o in panel["fieldConfig"]["overrides"] for p in o["properties"] if p["id"] == "unit"} or {
        defaults.get("unit")
    }
    if not units <= UNITS:
        yield "panel-units-rule"
    if not panel.get("targets"):
        yield "panel-no-targets-rule"


def of_target(expr: str) -> Iterator[str]:
    if not parses(filled(expr)):
        yield "target-promql-rule"
        return
    if any(window != "$__rate_interval" for window in re.findall(r"\bi?rate\([^()]+\[([^]]+)\]", expr)):
        yield "target-rate-interval-rule"
    marked = filled(expr, job="$job", instance="$instance")
    for name in ("job", "instance"):
        if not all(
            any(m.name == name and m.op == promql_parser.MatchOp.Re and m.value == f"${name}" for m in matchers(one))
            for one in selectors(marked)
        ):
            yield f"target-{name}-rule"
    for found in re.finditer(r"(\w+\()?\b(\w+_total)\{[^}]*\}(\[)?", expr):
        function, _, window = found.groups()
        if function not in ("rate(", "irate(", "increase(") or window is None:
            yield "target-counter-agg-rule"


def matchers(selector: promql_parser.VectorSelector) -> list[promql_parser.Matcher]:
    return list(selector.matchers.matchers)


def parses(expr: str) -> bool:
    try:
        promql_parser.parse(expr)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_rule_holds_but_where_a_reason_is_given(file: Path) -> None:
    dashboard = board(file)
    excepted = {
        (rule, entry["dashboard"], entry["panel"], entry["targetIdx"])
        for rule, excluded in yaml.safe_load((FOLDER / ".lint").read_text())["exclusions"].items()
        for entry in excluded["entries"]
        if entry["dashboard"] == dashboard["title"] and len(entry["reason"]) > 20
    }
    assert set(breaches(dashboard)) == excepted


def test_each_rule_can_be_broken() -> None:
    broken = board(FILES[0])
    variables = {variable["name"]: variable for variable in broken["templating"]["list"]}
    variables["datasource"]["label"] = "Prometheus"
    variables["job"]["multi"] = False
    variables["instance"]["allValue"] = ".*"
    variables["source"]["refresh"] = 1
    variables["source"]["query"]["query"] = "label_values(up{, source)"
    broken["editable"] = True
    panel = panels(broken)[0]
    panel |= {"description": "", "datasource": {"uid": "mine"}, "targets": []}
    panel["fieldConfig"]["defaults"]["unit"] = "sweeps"
    exprs = ("sum(", "rate(x{}[5m])", "x_total{}", "increase(x_total{}[1d])")
    found = {rule for rule, *_ in breaches(broken)} | {rule for expr in exprs for rule in of_target(expr)}
    assert found == {
        *(f"template-{of}-rule" for of in ("datasource", "job", "instance", "label-promql", "on-time-change-reload")),
        *(f"panel-{of}-rule" for of in ("datasource", "title-description", "units", "no-targets")),
        *(f"target-{of}-rule" for of in ("promql", "rate-interval", "job", "instance", "counter-agg")),
        "uneditable-dashboard",
    }
