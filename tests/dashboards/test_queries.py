"""Every query of every dashboard, on a real Prometheus: of a deployment that has lived, that died, that is new."""

import json
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest

from dashboards.generator.queries import RANGE, increase
from exporter.alerting.recording import replicas
from exporter.model import catalogue
from tests.dashboards.history import STEP, History, history, scraped_anew
from tests.dashboards.reading import FILES, Shown, board, filled, panels, shown
from tests.e2e.deployment import deployment
from tests.servers import PrometheusServer, eventually, prometheus, real

EVERYTHING = [query for file in FILES for query in shown(file)]
LABEL_VALUES = re.compile(r"label_values\((?P<selector>.+), (?P<label>\w+)\)")
#: A rule as ours are, but without a wait.
RULES = {
    "groups": [
        {
            "name": "test",
            "rules": [
                {
                    "alert": "AutomationWorkflowFailing",
                    "expr": 'max by (job, source, workflow_id) (automation_runs_total{result="failure"}) > 0',
                    "labels": {"severity": "warning"},
                }
            ],
        }
    ]
}
HEALTHY = {"green"}
#: What the exporter knows of itself, whatever a platform does; and how old what it knows of a platform is.
ITSELF = {"Exporter works", "Scraped", "Config loaded", "Database takes writes", "Room for series", "Traces to come"}
HOW_OLD = {"Age of the data", "Clocks differ", "Sources"}


@real("promtool")
@real("prometheus")
async def test_every_query_returns_data_and_none_looks_healthy_once_the_exporter_is_dead(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text(json.dumps(RULES))
    async with history(tmp_path, rules=[rules]) as lived:

        async def scraped() -> bool:
            return bool(await lived.server.query("up == 1 and on () ALERTS"))

        await eventually(scraped)
        assert [str(query) for query in EVERYTHING if not await returns_data(lived, query)] == []
        with_exemplars = [query for query in EVERYTHING if query.exemplars]
        assert with_exemplars
        for query in with_exemplars:
            found = await lived.server.query_exemplars(filled(query.expr), lived.start, lived.end)
            assert all(len(exemplar.labels["trace_id"]) == 32 for exemplar in found), str(query)
            assert found, str(query)
        await every_variable_has_choices(lived)
        for simulator in lived.made.fleet.simulators.values():
            simulator.faults.unavailable = 1.0
        await lived.made.live(2 * STEP, step=STEP)
        await scraped_anew(lived.server)
        assert await coloured(lived.server, HEALTHY) <= ITSELF | HOW_OLD, "what cannot be read looks healthy"
        await lived.made.stop()

        async def unreached() -> bool:
            return bool(await lived.server.query("up == 0"))

        await eventually(unreached)
        for later in (0.0, 3600.0):  # when even `up` is no longer there
            at = lived.end + later
            assert await coloured(lived.server, HEALTHY, at=at) == set(), f"{later:g} s later"
        broke = await lived.server.query(filled(expr_of("Overview", "Broken workflows")))
        assert all(labels["workflow"] == labels["workflow_id"] for labels, _ in broke)
        assert broke, "what broke in the time shown is known all the same"


@real("prometheus")
async def test_a_new_install_says_nothing_before_it_knows_and_no_zero_while_a_source_is_down(tmp_path: Path) -> None:
    async with deployment(tmp_path, platforms=["etlworks"], workflows=2, start=time.time()) as made:
        async with prometheus(tmp_path, [made.url.removeprefix("http://")]) as server:
            await scraped_anew(server)
            for query in EVERYTHING:  # none is refused, whatever is there
                await server.query(filled(query.expr))
            assert await coloured(server, HEALTHY) <= ITSELF
            await made.sweep()
            await scraped_anew(server)
            zeros = {"Sources down", "Workflows failing", "Stuck", "Blocked", "Open dead letters"}
            assert zeros | ITSELF - {"Config loaded", "Traces to come"} <= await coloured(server, HEALTHY)
            simulator: Any = made.fleet.simulators["etlworks"]
            simulator.faults.unavailable = 1.0
            await made.live(300.0, step=60.0)
            await scraped_anew(server)
            assert await coloured(server, HEALTHY) <= ITSELF | HOW_OLD
            assert "Sources down" in await coloured(server, {"orange", "red"})


@real("promtool")
@real("prometheus")
@pytest.mark.parametrize("recording", [True, False], ids=["recorded", "as scraped"])
async def test_counters_go_on_across_replicas(tmp_path: Path, recording: bool) -> None:
    """A source goes from one replica to another and back; another exporter, of which nothing is recorded, is alone."""
    now = 1_700_000_000
    at = range(now - 6600, now + 1, 60)
    lines = []
    for moment in at:
        passed = (moment - at[0]) // 600  # a failure every ten minutes
        holder = "b" if 4 <= passed < 8 else "a"
        of = 'job="pair",source="s",workflow_id="w",result="failure"'
        lines.append(f'automation_runs_total{{instance="{holder}",{of}}} {100 + passed} {moment}')
        if recording:
            lines.append(f"{replicas(catalogue.RUNS)}{{{of}}} {100 + passed} {moment}")
        alone = of.replace("pair", "single")
        lines.append(f'automation_runs_total{{instance="c",{alone}}} {500 + passed} {moment}')
    file = tmp_path / "history.openmetrics"
    file.write_text("\n".join([*sorted(lines), "# EOF", ""]))
    expr = filled(f"sum by (job) ({increase(catalogue.RUNS, RANGE)})")
    async with prometheus(tmp_path, [], history=file) as server:
        found = {labels["job"]: value for labels, value in await server.query(expr, time=float(now))}
        assert round(found["single"]) == 10
        if recording:
            assert round(found["pair"]) == 10
        else:
            assert found["pair"] > 10, "without the rules a source that comes back is counted twice: docs/dashboards.md"


def expr_of(board_title: str, panel: str) -> str:
    return next(query.expr for query in EVERYTHING if (query.board, query.panel) == (board_title, panel))


async def coloured(server: PrometheusServer, colours: set[str], at: float | None = None) -> set[str]:
    """Titles of the panels of which something shows in one of these colours: a number, a bar, a cell or nothing."""
    found = set()
    for file in FILES:
        for panel in panels(board(file)):
            for target, steps, mappings in painted(panel):
                values: list[float | None] = [v for _, v in await server.query(filled(target["expr"]), time=at)]
                for value in values or [None]:
                    if colour(value, steps, mappings, whole=panel["type"] != "table") in colours:
                        found.add(panel["title"])
    return found


def painted(panel: Any) -> list[tuple[Any, Any, Any]]:
    """Each query whose value is coloured, with its limits and the texts for single values."""
    defaults = panel["fieldConfig"]["defaults"]
    if panel["type"] in ("stat", "bargauge"):
        if panel["options"].get("colorMode") == "none":
            return []
        return [(panel["targets"][0], defaults["thresholds"]["steps"], defaults.get("mappings", []))]
    if panel["type"] != "table":
        return []
    renamed = panel["transformations"][-1]["options"]["renameByName"]
    titles = [title for field, title in renamed.items() if field.startswith("Value")]
    made = []
    for override in panel["fieldConfig"]["overrides"]:
        said = {each["id"]: each["value"] for each in override["properties"]}
        if "custom.cellOptions" in said:
            target = panel["targets"][titles.index(override["matcher"]["options"])]
            made.append((target, said["thresholds"]["steps"], said.get("mappings", [])))
    return made


def colour(value: float | None, steps: Any, mappings: Any, *, whole: bool) -> str | None:
    """As Grafana paints it: of nothing a cell is empty, a whole panel takes the lowest limit's colour."""
    if value is None or math.isnan(value):
        if not whole:
            return None
        special = [each["options"]["result"]["color"] for each in mappings if each["type"] == "special"]
        return str(special[0] if special else steps[0]["color"])
    for each in mappings:
        if each["type"] == "value" and f"{value:g}" in each["options"]:
            return str(each["options"][f"{value:g}"]["color"])
    return str([step["color"] for step in steps if step["value"] is None or value >= step["value"]][-1])


async def returns_data(lived: History, query: Shown) -> bool:
    if not query.graph:
        return any(not math.isnan(value) for _, value in await lived.server.query(filled(query.expr)))
    series = await lived.server.query_range(filled(query.expr), lived.start, lived.end, STEP)
    return any(not math.isnan(value) for _, points in series for _, value in points)


async def every_variable_has_choices(lived: History) -> None:
    """Those of a dashboard in their order, each with what the ones before it chose."""
    for file in FILES:
        chosen: dict[str, str] = {}
        for variable in board(file)["templating"]["list"]:
            if variable["type"] == "datasource":
                continue
            match = LABEL_VALUES.fullmatch(variable["query"]["query"])
            assert match, variable
            selector = filled(match["selector"], **chosen)
            values = await lived.server.label_values(match["label"], selector, lived.start, lived.end)
            assert values, (file.name, variable["name"], selector)
            chosen[variable["name"]] = "|".join(values) if variable.get("multi") else values[0]
