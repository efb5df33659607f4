"""A source moves to another replica: its counters stand on another instance then, and nothing is counted twice or lost.

What is recorded as ``replicas:…:max`` is one series throughout, so that increase() and rate() stay what they are.
"""

from pathlib import Path

import pytest
import yaml

from exporter.alerting import rules
from exporter.alerting.recording import LEDGER, replicas
from exporter.config.objectives import SloConfig
from exporter.model.catalogue import Metric
from tests.alerts.test_rules import promtool
from tests.servers import real

#: What the two replicas say in each minute: a run a minute, from 1,000 on, and the source moves at minute 30.
MOVES = {
    "one stops, the other begins": ("1000+1x29 stale", "_x30 1030+1x30"),
    "both are scraped for three minutes": ("1000+1x29 1030x2 stale", "_x30 1030+1x30"),
    "nobody has it for two minutes": ("1000+1x29 stale", "_x32 1032+1x28"),
    "it comes back": ("1000+1x29 stale _x9 1040+1x20", "_x30 1030+1x9 stale"),
}


def increases(metric: Metric, tmp_path: Path, name: str, old: str, new: str) -> str:
    """What promtool says of an increase that is not the truth; empty if it is."""
    labels = ", ".join(f'{label}="x"' for label in metric.labels)
    series = [
        {
            "series": f'{metric.name}{{job="automation-exporter", instance="{at}", pod="{at}", {labels}}}',
            "values": values,
        }
        for at, values in (("a", old), ("b", new))
    ]
    (tmp_path / "rules.yaml").write_text(rules.as_yaml(rules.recording_rules(SloConfig())))
    test = {
        "name": name,
        "interval": "1m",
        "input_series": series,
        "promql_expr_test": [
            {
                "expr": f"round(sum(increase({series}[50m])))",
                "eval_time": "55m",
                "exp_samples": [{"labels": "{}", "value": 50}],
            }
            for series in (replicas(metric),)
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": [test]}))
    done = promtool("test", "rules", tmp_path / "test.yaml")
    return "" if done.returncode == 0 else done.stdout + done.stderr


@real("promtool")
@pytest.mark.parametrize("name", MOVES)
def test_increase_is_the_truth_wherever_a_source_moves(name: str, tmp_path: Path) -> None:
    for metric in LEDGER:
        assert not increases(metric, tmp_path, name, *MOVES[name])


WORKFLOW = 'job="automation-exporter", platform="make", source="make-eu", workflow_id="5004"'


def moving(name: str, old: str, new: str, labels: str = "") -> list[dict[str, str]]:
    return [
        {"series": f'{name}{{{WORKFLOW}, instance="{at}", pod="exporter-{at}"{labels}}}', "values": values}
        for at, values in (("a", old), ("b", new))
    ]


@real("promtool")
def test_a_deploy_neither_ends_an_alert_nor_makes_a_rule_forget(tmp_path: Path) -> None:
    """It failed before on a, and goes on to on b; it was on while a showed it, and b shows it to be off."""
    (tmp_path / "rules.yaml").write_text(rules.as_yaml(rules.alert_rules(SloConfig())))
    info = ', workflow="Invoices"'
    firing = 'alertstate="firing", job="automation-exporter", platform="make", severity="warning", source="make-eu"'
    fires = f'{{alertname="%s", {firing}, workflow="Invoices", workflow_id="5004"}}'
    since = "time() - ALERTS_FOR_STATE{alertname='AutomationWorkflowFailing'}"
    labels = fires.replace('alertstate="firing", ', "") % "AutomationWorkflowFailing"

    def test(name: str, series: list[dict[str, str]], *asked: tuple[str, str, str, float]) -> dict[str, object]:
        names = moving("automation_workflow_info", "1x29 stale", "_x30 1x100", info)
        tests = [
            {"expr": expr, "eval_time": at, "exp_samples": [{"labels": shows, "value": value}]}
            for expr, at, shows, value in asked
        ]
        return {"name": name, "interval": "1m", "input_series": [*names, *series], "promql_expr_test": tests}

    failing, disabled = (f"ALERTS{fires % f'AutomationWorkflow{word}'}" for word in ("Failing", "Disabled"))
    failures = moving("automation_workflow_consecutive_failures", "3x29 stale", "_x30 3x100")
    enabled = moving("automation_workflow_enabled", "1x29 stale", "_x30 0x100")
    tests = [
        test(
            "failing",
            failures,
            ('ALERTS{alertname="AutomationWorkflowFailing"}', "31m", failing, 1),
            (since, "60m", labels, 3600),
        ),
        test("disabled", enabled, ('ALERTS{alertname="AutomationWorkflowDisabled"}', "40m", disabled, 1)),
    ]
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": tests}))
    done = promtool("test", "rules", tmp_path / "test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
