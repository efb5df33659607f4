"""Where an alert leads: its runbook and the dashboard of what it is about, as Prometheus fills them in."""

import json
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
import yaml
from aiohttp import ClientSession

from exporter.alerting import links, rules
from exporter.alerting.alert import Alert
from exporter.alerting.alerts import ALERTS
from exporter.config.objectives import RUNBOOK_URL, SloConfig
from tests.alerts.test_rules import ROOT, promtool, read_by
from tests.e2e.deployment import deployment
from tests.e2e.test_truth import ROOMY
from tests.servers import real

STATUS, GRAFANA = "https://automation.example/base", "https://grafana.example"
BOARDS = {
    board["uid"]: board for path in (ROOT / "dashboards").glob("*.json") for board in [json.loads(path.read_text())]
}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_a_runbook_is_where_the_user_said_else_at_the_service_else_where_the_project_is(alert: Alert) -> None:
    public = f"{RUNBOOK_URL}/{alert.name}.md"
    assert links.runbook(alert, SloConfig()) == public
    wiki = SloConfig(runbook_url="https://wiki.example/", status_url=STATUS)
    assert links.runbook(alert, wiki) == f"https://wiki.example/{alert.name}.md"
    gone = alert.name == "AutomationExporterDown"
    assert links.runbook(alert, SloConfig(status_url=STATUS)) == (
        public if gone else f"{STATUS}/runbooks/{alert.name}"
    ), "a service that is gone shows no page"


async def test_the_service_answers_where_its_alerts_lead(tmp_path: Path) -> None:
    async with deployment(tmp_path, platforms=["make"], options=ROOMY) as made, ClientSession() as session:
        for given in (SloConfig(status_url=made.url), SloConfig(runbook_url=f"{made.url}/runbooks")):
            for alert in ALERTS:
                async with session.get(links.runbook(alert, given)) if alert.serves else session.get(made.url) as got:
                    assert got.status == 200


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_a_dashboard_is_one_there_is_and_knows_what_it_is_told(alert: Alert) -> None:
    assert links.dashboard(alert, SloConfig()) is None
    url = links.dashboard(alert, SloConfig(dashboard_url=GRAFANA))
    assert url is not None
    board = BOARDS[urlsplit(url).path.removeprefix("/d/")]
    told = {name for name, _ in parse_qsl(urlsplit(url).query.replace("{{ end }}", ""))}
    assert told <= {f"var-{variable['name']}" for variable in board["templating"]["list"]}
    assert links.dashboard(alert, SloConfig(dashboard_url=f"{GRAFANA}/d/mine")) == url.replace(
        f"/d/{board['uid']}?", "/d/mine?"
    )


OF = 'job="our robots", instance="a:1"'
MAKE = f'{OF}, platform="make", source="make-eu"'
WORLDS = {
    "AutomationWorkflowFailing": (
        [
            (f'automation_workflow_consecutive_failures{{{MAKE}, workflow_id="5 4"}}', "3x20"),
            (f'automation_workflow_info{{{MAKE}, workflow_id="5 4", workflow="Pay & go=1"}}', "1x20"),
        ],
        "automation-workflow?var-job=our%20robots&var-source=make-eu&var-workflow=Pay+%26+go%3D1&var-workflow_id=5+4",
    ),
    "AutomationWorkflowBlocked": (
        [(f'automation_workflow_blocked{{{MAKE}, workflow_id="7", reason="paused"}}', "1x20")],
        "automation-workflow?var-job=our%20robots&var-source=make-eu&var-workflow_id=7",
    ),
    "AutomationRetryStorm": (
        [(f'automation_retry_storm{{{OF}, source="make-eu"}}', "1x90")],
        "automation-dead-letters?var-job=our%20robots&var-source=make-eu",
    ),
    "AutomationStoreDown": (
        [(f"automation_exporter_store_up{{{OF}}}", "0x20")],
        "automation-exporter?var-job=our%20robots&var-instance=a%3A1",
    ),
}


@pytest.mark.parametrize(
    ("configured", "leads"),
    [
        (None, None),
        (GRAFANA, f"{GRAFANA}/d/automation-workflow"),
        (f"{GRAFANA}/grafana/", f"{GRAFANA}/grafana/d/automation-workflow"),
        (f"{GRAFANA}/d/mine", f"{GRAFANA}/d/mine"),
    ],
)
@pytest.mark.parametrize(("name", "told"), [("Pay & go", "Pay & go"), (None, "w 1&"), ("", "w 1&")])
def test_what_a_page_shows_of_a_workflow_leads_where_its_alerts_lead(
    configured: str | None, leads: str | None, name: str | None, told: str
) -> None:
    given = {} if configured is None else {"dashboard_url": configured}
    url = links.workflow_dashboard(SloConfig.model_validate(given | {"job": "our robots"}), "s", name, "w 1&")
    if leads is None or url is None:
        assert (leads, url) == (None, None)
        return
    assert url.partition("?")[0] == leads
    asked = dict(parse_qsl(urlsplit(url).query))
    assert asked == {"var-job": "our robots", "var-source": "s", "var-workflow": told, "var-workflow_id": "w 1&"}
    variables = BOARDS["automation-workflow"]["templating"]["list"]
    assert asked.keys() <= {f"var-{one['name']}" for one in variables}


def test_a_page_and_an_alert_lead_to_the_same_place() -> None:
    slo = SloConfig(job="our robots", dashboard_url=GRAFANA)
    _, leads = WORLDS["AutomationWorkflowFailing"]
    assert links.workflow_dashboard(slo, "make-eu", "Pay & go=1", "5 4") == f"{GRAFANA}/d/{leads}"


@real("promtool")
@pytest.mark.parametrize("name", WORLDS)
def test_prometheus_fills_in_what_the_alert_is_about(name: str, tmp_path: Path) -> None:
    series, leads = WORLDS[name]
    slo = SloConfig(job="our robots", dashboard_url=GRAFANA, status_url=STATUS)
    recording, alerts = read_by(name, slo)
    [rule] = [rule for group in alerts for rule in group["rules"]]
    # What a template has become shows in the labels as well, which promtool compares.
    rule["labels"] = {"leads": rule["annotations"]["dashboard_url"], "runbook": rule["annotations"]["runbook_url"]}
    (tmp_path / "rules.yaml").write_text(rules.as_yaml([*recording, *alerts]))
    expected = [{"labels": f'{{leads="{GRAFANA}/d/{leads}", runbook="{STATUS}/runbooks/{name}"}}', "value": 1}]
    expr = f'count by (leads, runbook) (ALERTS{{alertname="{name}", alertstate="firing"}})'
    test = {
        "interval": "1m",
        "input_series": [{"series": one, "values": values} for one, values in series],
        "promql_expr_test": [
            {"expr": expr, "eval_time": "60m" if "90" in series[0][1] else "15m", "exp_samples": expected}
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": [test]}))
    done = promtool("test", "rules", tmp_path / "test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
