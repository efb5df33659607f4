"""Labels on alerts: whoever owns a workflow gets its messages. And objectives by label, id and pattern."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from exporter import cli
from exporter.alerting import rules
from exporter.config import ConfigError, parse
from exporter.config.objectives import SloConfig
from tests.alerts.cases import CASES, unit_tests
from tests.alerts.test_alertmanager import amtool
from tests.alerts.test_rules import every_rule, promtool, read_by, rule_id
from tests.servers import PATIENCE_SECONDS, real
from tests.test_docs import DOCS, fences

SOURCES = """
sources:
  m:
    platform: cognaize
    url: http://localhost
    token: abcd
    labels: {team: "fi$1nance"}
    workflow_labels: [{match: "*payment*", labels: {team: payments, cost-center: "7"}}]
  n: {platform: cognaize, url: "http://elsewhere", token: abcd}
"""
OVERRIDES = """
slo:
  overrides:
    - {match: "5004", source: m, consecutive_failures: 1}
    - {match: "Nightly *", consecutive_failures: 2}
    - {labels: {team: payments}, consecutive_failures: 4}
    - {labels: {cost-center: "7"}, match: "* big *", consecutive_failures: 9}
  workflows:
    m/*: {consecutive_failures: 5, success_ratio: 0.999}
"""
UNLABELLED = "sources: {m: {platform: cognaize, url: 'http://localhost', token: abcd}}\n"


def objectives(text: str) -> SloConfig:
    return parse(text, {}).slo


def test_without_labels_the_rules_are_as_before() -> None:
    assert every_rule(objectives(UNLABELLED)) == every_rule(SloConfig())


def world(slo: SloConfig) -> list[dict[str, str]]:
    """Workflows by source, id, name, failures in a row, and labels."""
    found = []
    for source, workflow_id, name, failures, labels in (
        ("m", "5004", "Orders", 1, 'label_team="fi$1nance"'),
        ("m", "5005", "Nightly orders", 2, 'label_team="fi$1nance"'),
        ("m", "5006", "A payment", 4, 'label_cost_center="7", label_team="payments"'),
        ("m", "5007", "Other", 4, 'label_team="fi$1nance"'),
        ("m", "5008", "Other", 5, 'label_team="fi$1nance"'),
        ("m", "5009", None, 5, None),
        ("n", "5004", "Orders", 2, None),
        ("n", "5010", "Nightly orders", 2, None),
    ):
        of = f'job="{slo.job}", instance="i", source="{source}", workflow_id="{workflow_id}"'
        if name is not None:
            found.append({"series": f'automation_workflow_info{{{of}, workflow="{name}"}}', "values": "1x20"})
        if labels is not None:
            found.append({"series": f"automation_workflow_labels{{{of}, {labels}}}", "values": "1x20"})
        found.append({"series": f"automation_workflow_consecutive_failures{{{of}}}", "values": f"{failures}x20"})
    for source in ("m", "n"):
        of = f'job="{slo.job}", instance="i", source="{source}"'
        found.append({"series": f"automation_source_up{{{of}}}", "values": "1x20"})
        found.append({"series": f'automation_exporter_data_complete{{{of}, stream="runs"}}', "values": "0x20"})
    return found


def firing(name: str, slo: SloConfig, labels: list[str]) -> dict[str, object]:
    common = f'alertname="{name}", alertstate="firing", job="{slo.job}", severity="warning"'
    shows = [{"labels": f"ALERTS{{{common}, {one}}}", "value": 1} for one in labels]
    return {"expr": f'ALERTS{{alertname="{name}"}}', "eval_time": "10m", "exp_samples": shows}


@real("promtool")
def test_alerts_carry_the_labels_and_the_first_objective_that_fits_decides(tmp_path: Path) -> None:
    slo = objectives(SOURCES + OVERRIDES)
    made = rules.recording_rules(slo) + rules.alert_rules(slo)
    (tmp_path / "rules.yaml").write_text(rules.as_yaml(made))
    checked = promtool("check", "rules", "--lint-fatal", tmp_path / "rules.yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    workflows = [
        'source="m", workflow_id="5004", workflow="Orders", label_team="fi$1nance"',
        'source="m", workflow_id="5005", workflow="Nightly orders", label_team="fi$1nance"',
        'source="m", workflow_id="5006", workflow="A payment", label_team="payments", label_cost_center="7"',
        'source="m", workflow_id="5008", workflow="Other", label_team="fi$1nance"',
        'source="m", workflow_id="5009", label_team="fi$1nance"',  # those of its source: it has none of its own
        'source="n", workflow_id="5010", workflow="Nightly orders"',
    ]
    sources = ['source="m", stream="runs", label_team="fi$1nance"', 'source="n", stream="runs"']
    test = {
        "interval": "1m",
        "input_series": world(slo),
        "promql_expr_test": [
            firing("AutomationWorkflowFailing", slo, workflows),
            firing("AutomationDataIncomplete", slo, sources),
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": [test]}))
    done = promtool("test", "rules", tmp_path / "test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_command_knows_the_labels_without_a_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text((SOURCES + OVERRIDES).replace("abcd", '"${UNSET_HERE}"'))
    assert cli.main(["rules", "--config", str(config)]) == 0
    slo = objectives(SOURCES + OVERRIDES)
    assert capsys.readouterr().out == rules.as_yaml(rules.recording_rules(slo) + rules.alert_rules(slo))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "slo: {overrides: [{consecutive_failures: 1}]}",
            "slo.overrides[0]: say which workflows: match (an id or a pattern of names), source or labels",
        ),
        ("slo: {overrides: [{source: x}]}", "slo.overrides[0].source: there is no such source; one of m, n"),
        (
            "slo: {overrides: [{labels: {tea: x}}]}",
            "slo.overrides[0].labels.tea: no source or workflow has this label; give it in labels or workflow_labels",
        ),
        ("slo: {overrides: [{match: x, rare: 1}]}", "slo.overrides[0].rare: unknown key"),
        ("slo: {silent_factor: 0.5}", "slo.silent_factor: must be at least 1"),
    ],
)
def test_mistakes_are_one_clear_line(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        objectives(SOURCES + text)
    [line] = caught.value.problems
    assert line.startswith(problem)


def test_who_says_how_many_failures_are_too_many_means_it_rare_or_not() -> None:
    [found] = [
        rule["expr"]
        for rule in every_rule(objectives(UNLABELLED + "slo: {overrides: [{match: '1', consecutive_failures: 7}]}"))
        if rule_id(rule) == "AutomationWorkflowFailing"
    ]
    limits = re.findall(r"consecutive_failures\{[^}]*\}\) >= (\d)", found)
    assert sorted(limits) == ["1", "3", "7", "7"]


# The recipe in the docs


@real("amtool")
@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        ({"label_team": "finance", "severity": "warning"}, "finance"),
        ({"label_team": "finance", "severity": "critical"}, "finance-pager"),
        ({"label_team": "payments", "severity": "critical"}, "payments"),
        ({"severity": "warning"}, "tickets"),
    ],
)
def test_the_recipe_routes_by_team(labels: dict[str, str], receiver: str, tmp_path: Path) -> None:
    [recipe] = [code for code in fences(DOCS / "alerts.md", "yaml") if "label_team" in code and "routes" in code]
    file = tmp_path / "alertmanager.yaml"
    file.write_text(recipe)
    assert "SUCCESS" in amtool("check-config", str(file))
    given = [f"{name}={value}" for name, value in labels.items()]
    told = amtool("config", "routes", "test", f"--config.file={file}", "alertname=AutomationWorkflowFailing", *given)
    assert told.split() == [receiver]


@real("promtool")
def test_the_recipe_s_config_makes_rules_with_the_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [config] = [code for code in fences(DOCS / "alerts.md", "yaml") if "workflow_labels" in code]
    (tmp_path / "config.yaml").write_text(config)
    assert cli.main(["rules", "--config", str(tmp_path / "config.yaml")]) == 0
    (tmp_path / "rules.yaml").write_text(capsys.readouterr().out)
    checked = ["promtool", "check", "rules", "--lint-fatal", str(tmp_path / "rules.yaml")]
    done = subprocess.run(checked, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "group_left (workflow, label_team)" in (tmp_path / "rules.yaml").read_text()


# Every alert has a team


TEAMS = """
sources:
  make-eu:
    platform: cognaize
    url: http://localhost
    token: abcd
    workflow_labels: [{match: "*", labels: {team: finance}}]
  other: {platform: cognaize, url: http://elsewhere, token: abcd, labels: {team: sales}}
slo: {labels: {team: operations}}
"""


@real("promtool")
@pytest.mark.parametrize("name", sorted(CASES))
def test_every_alert_has_a_team(name: str, tmp_path: Path) -> None:
    """That of the workflow or of the source it is about; else the one that looks after the exporter."""
    recording, alerts = read_by(name, objectives(TEAMS))
    (tmp_path / "rules.yaml").write_text(rules.as_yaml([*recording, *alerts]))
    given = unit_tests(name) | {"rule_files": ["rules.yaml"]}
    given["tests"] = given["tests"][:1]
    [alert] = given["tests"][0]["alert_rule_test"][0]["exp_alerts"]
    alert["exp_labels"]["label_team"] = "finance" if "source" in alert["exp_labels"] else "operations"
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(given))
    done = promtool("test", "rules", tmp_path / "test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_team_that_all_sources_have_is_that_of_the_exporter(tmp_path: Path) -> None:
    one = "sources: {m: {platform: cognaize, url: 'http://localhost', token: abcd, labels: {team: finance}}}\n"
    assert objectives(one).otherwise == {"label_team": "finance"}
    assert objectives(one + "slo: {labels: {team: operations}}").otherwise == {"label_team": "operations"}
    assert objectives(SOURCES).otherwise == {}
