"""What makes a dashboard feel at home in a Grafana: the rules of the linter for dashboards of mixins, and then some."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.generator.__main__ import files
from exporter.alerting.recording import LEDGER, replicas
from tests.alerts.test_rules import known_metrics, selectors
from tests.dashboards.reading import FILES, FOLDER, Shown, board, filled, panels, shown

#: Metrics that a scrape brings by itself, or that the libraries for Python bring.
BROUGHT = {"up", "process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"}
KNOWN = known_metrics()
KNOWN |= {f"{name}_{part}": labels for name, labels in KNOWN.items() for part in ("bucket", "sum", "count")}
#: What the recording rules make of counters of the ledger, which has no replica, and what Prometheus says of alerts.
RECORDED = {replicas(metric): set(metric.labels) for metric in LEDGER}
ALERTS = {"ALERTS", "ALERTS_FOR_STATE"}
#: Windows that are as long as the time asked about. All others follow the resolution of the graph.
FIXED_WINDOWS = {"1d", "$__range"}

each_board = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
each_query = pytest.mark.parametrize("query", [query for file in FILES for query in shown(file)], ids=str)


def test_the_files_are_what_the_generator_makes() -> None:
    made = files()
    assert sorted(made) == sorted([*FILES, FOLDER / ".lint"])
    for file, text in made.items():
        assert file.read_text() == text, f"{file.name} is not what the generator makes: make dashboards"


@each_board
def test_grafana_knows_every_field(file: Path) -> None:
    """Reading drops what the schema does not know: writing again must give the same."""
    written = board(file)
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(board(file))))
    for each in (written, again):
        each.pop("id", None)
    assert again == written


@each_board
def test_a_dashboard_can_be_imported_anywhere_and_found_again(file: Path) -> None:
    dashboard = board(file)
    assert dashboard["uid"] == file.stem
    assert len(dashboard["uid"]) <= 40
    assert dashboard["id"] is None
    assert dashboard["editable"] is False
    assert dashboard["title"].startswith("Automation / ")
    assert dashboard["description"].endswith(".")
    assert dashboard["tags"] == ["automation-exporter"]
    assert dashboard["refresh"] == "1m"
    others = {f"/d/{other.stem}" for other in FILES if other != file}
    assert {link["url"] for link in dashboard["links"]} == others
    assert all(link["includeVars"] and link["keepTime"] for link in dashboard["links"])


@each_board
def test_variables_choose_the_data_source_the_exporter_and_its_sources(file: Path) -> None:
    variables = {variable["name"]: variable for variable in board(file)["templating"]["list"]}
    assert [*variables][:4] == ["datasource", "job", "instance", "source"]
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    assert variables["datasource"]["label"] == "Data source"
    for name, variable in variables.items():
        if name != "datasource":
            assert variable["refresh"] == 2, f"{name} must be read again when the time range changes"
            assert variable["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert variable["label"]


@each_board
def test_panels_say_what_they_show(file: Path) -> None:
    titles = [panel["title"] for panel in panels(board(file))]
    assert len(titles) == len(set(titles))
    for panel in panels(board(file)):
        assert panel["title"], panel
        assert panel["description"].endswith("."), panel["title"]
        assert len(re.findall(r"[.:](?= |$)", panel["description"])) > 1, f"{panel['title']}: and what to do?"
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        for place in (panel, *panel["targets"]):
            assert place["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        for target in panel["targets"]:
            assert target["instant"] if panel["type"] != "timeseries" else target["range"], panel["title"]
            assert target["legendFormat"], panel["title"]


@each_board
def test_panels_lie_side_by_side_within_the_grid(file: Path) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in board(file)["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"], (x, y)


@each_query
def test_a_query_parses_and_reads_what_there_is_of_whom_was_chosen(query: Shown) -> None:
    for selector in selectors(filled(query.expr, job="J", instance="I", source="S", workflow_id="W")):
        matchers = {matcher.name: matcher.value for matcher in selector.matchers.matchers}
        name = str(selector.name)
        assert matchers.pop("job") == "J", name
        assert matchers.pop("instance", None) == (None if name in RECORDED.keys() | ALERTS else "I"), name
        if name in BROUGHT:
            continue
        if name in ALERTS:  # those about the exporter itself have no source
            assert matchers["source"] == "S|"
            continue
        labels = RECORDED.get(name) or KNOWN[name]
        assert matchers.keys() <= labels | {"__name__"}, name
        if "source" in labels:
            assert matchers["source"] == "S", f"{name} is not narrowed to the sources chosen"
        if query.board == "Workflow" and "workflow_id" in labels:
            assert matchers["workflow_id"] == "W", f"{name} is not narrowed to the workflow"


@each_query
def test_windows_follow_the_resolution(query: Shown) -> None:
    for function, window in re.findall(r"(\w+)\([^()]+\[([^]]+)\]", query.expr):
        assert (
            window == "$__rate_interval"
            or (window in FIXED_WINDOWS and not query.graph)
            or function == "last_over_time"
        )


def test_no_panel_needs_to_know_a_platform() -> None:
    for file in FILES:
        assert not re.search(
            r"(?i)\b(make|qlik|etlworks|cognaize|n8n)\b", json.dumps(board(file)).replace("make them", "")
        )


@each_board
def test_rows_about_workflows_lead_to_theirs(file: Path) -> None:
    for panel in panels(board(file)):
        if "A row leads to its workflow." in panel["description"]:
            [link] = panel["fieldConfig"]["defaults"]["links"]
            assert link["url"].startswith("/d/automation-workflow?")
            shown_columns = panel["transformations"][-1]["options"]["includeByName"]
            used = set(re.findall(r"__data\.fields\.(\w+)", link["url"]))
            assert used == {"source", "workflow"} <= shown_columns.keys()


def test_the_examples_of_provisioning_name_what_there_is() -> None:
    providers, sources = (
        yaml.safe_load((FOLDER / "provisioning" / name).read_text()) for name in ("dashboards.yaml", "datasources.yaml")
    )
    assert providers["apiVersion"] == sources["apiVersion"] == 1
    [provider] = providers["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"] == "/etc/grafana/dashboards/automation-exporter"
    prometheus, traces = sources["datasources"]
    [destination] = prometheus["jsonData"]["exemplarTraceIdDestinations"]
    assert destination == {"name": "trace_id", "datasourceUid": traces["uid"]}


def test_the_page_lists_every_dashboard_and_its_commands_put_them_where_the_provider_looks(tmp_path: Path) -> None:
    page = (FOLDER.parent / "docs" / "dashboards.md").read_text()
    assert set(re.findall(r"\.\./dashboards/([\w-]+\.json)\)", page)) == {file.name for file in FILES}
    [commands] = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    etc = tmp_path / "etc" / "grafana"
    (etc / "provisioning" / "dashboards").mkdir(parents=True)
    subprocess.run(
        ["sh", "-e"], input=commands.replace("/etc/grafana", str(etc)), text=True, cwd=FOLDER.parent, check=True
    )
    copied = {path.name for path in (etc / "dashboards" / "automation-exporter").iterdir()}
    assert copied == {file.name for file in FILES}
    assert (etc / "provisioning" / "dashboards" / "automation-exporter.yaml").is_file()
