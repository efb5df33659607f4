"""The rules are what the table says, and Prometheus lets them fire when they should and only then."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from exporter import cli
from exporter.alerting import rules
from exporter.alerting.alerts import ALERTS
from exporter.alerting.recording import LEDGER, replicas
from exporter.config import ConfigError, parse
from exporter.config.objectives import RUNBOOK_URL, SloConfig
from exporter.model import catalogue
from exporter.view.own import OwnMetrics
from tests.alerts.cases import CASES, unit_tests
from tests.servers import PATIENCE_SECONDS, real

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "alerts"
NAMES = [alert.name for alert in ALERTS]
#: Those that the defaults have; the others are in tests/alerts/test_silence.py.
SHIPPED = [alert.name for alert in ALERTS if alert.objective is None]
#: Computed at each scrape: in no table.
SCRAPED = {
    "automation_exporter_api_quota_remaining": {"platform", "source"},
    "automation_exporter_clock_offset_seconds": {"platform", "source"},
    "automation_exporter_cursor_lag_seconds": {"platform", "source", "stream"},
}
OVERRIDES = """
slo:
  job: robots
  success_within: 8d
  window: 28d
  runbook_url: https://wiki.example/runbooks/
  dashboard_url: https://grafana.example/d/automation
  status_url: https://automation.example/base/
  workflows:
    m/5004: {consecutive_failures: 1, success_ratio: 0.9, stuck_after: 8h, runs_within: 1h, success_within: 26h}
    "m/Nightly *": {overdue_after: 1h, events_min: 50, queue_share: 0.5, dead_letter_age: 3d, dead_letter_growth: 50}
    m/*: {consecutive_failures: 5, success_ratio: 0.999}
"""
SOURCE = "sources: {m: {platform: cognaize, url: 'http://localhost', token: abcd}}\n"


def objectives(text: str) -> SloConfig:
    return parse(SOURCE + text, {}).slo


def written() -> dict[str, str]:
    """Every generated file, by its path below alerts/."""
    slo = SloConfig()
    files = {
        "recording-rules.yaml": rules.as_yaml(rules.recording_rules(slo)),
        "alert-rules.yaml": rules.as_yaml(rules.alert_rules(slo)),
    }
    for name in CASES:
        files[f"tests/{name}.yaml"] = "# Made of tests/alerts/cases.py.\n" + rules.dumped(unit_tests(name))
    return files


def test_the_files_are_what_the_table_says(request: pytest.FixtureRequest) -> None:
    files = written()
    if request.config.getoption("--update"):
        for path, text in files.items():
            (FOLDER / path).write_text(text)
    there = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.yaml")}
    assert there == {*files, "alertmanager.example.yaml"}
    for path, text in files.items():
        assert (FOLDER / path).read_text() == text, f"{path}: pytest {Path(__file__).name} --update"


# What holds for every rule


def every_rule(slo: SloConfig) -> list[dict[str, Any]]:
    return [rule for group in rules.recording_rules(slo) + rules.alert_rules(slo) for rule in group["rules"]]


def rule_id(rule: dict[str, Any]) -> str:
    return str(rule.get("alert") or rule["record"])


def selectors(expr: str) -> list[promql_parser.VectorSelector]:
    """Every selector of an expression, as a current grammar reads it."""
    found: list[promql_parser.VectorSelector] = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(promql_parser.parse(expr), visit)
    return found


def known_metrics() -> dict[str, set[str]]:
    """Labels of every metric a rule may read, by name."""
    known = {metric.name: set(metric.labels) for metric in catalogue.CATALOGUE}
    for collector in set(OwnMetrics().registry._collector_to_names):
        for family in getattr(collector, "describe", lambda: ())():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            known[name] = set(getattr(collector, "_labelnames", ()))
    known |= SCRAPED | {"up": set(), "process_start_time_seconds": set()}
    detection = catalogue.DETECTION_DELAY
    known[f"{detection.name}_bucket"] = {*detection.labels, "le"}
    known["automation_exporter_sweep_duration_seconds_count"] = {"platform", "source", "stream"}
    recorded = [rule["record"] for rule in every_rule(SloConfig()) if "record" in rule]
    ledger = {replicas(metric): set(metric.labels) for metric in LEDGER}
    return known | {name: {"platform", "source", "workflow_id"} for name in recorded} | ledger


@pytest.fixture(params=["", OVERRIDES], ids=["defaults", "overrides"])
def slo(request: pytest.FixtureRequest) -> SloConfig:
    return objectives(request.param)


def test_every_selector_has_the_job_and_reads_metrics_and_labels_there_are(slo: SloConfig) -> None:
    known = known_metrics()
    for rule in every_rule(slo):
        found = selectors(rule["expr"])
        assert found, rule_id(rule)
        for selector in found:
            matchers = {matcher.name: matcher.value for matcher in selector.matchers.matchers}
            assert matchers.pop("job", None) == slo.job, rule_id(rule)
            assert selector.name in known, rule_id(rule)
            assert matchers.keys() <= known[selector.name], rule_id(rule)


def test_nothing_is_aggregated_away_that_tells_exporters_apart(slo: SloConfig) -> None:
    for rule in every_rule(slo):
        for kept in re.findall(r"\b(?:by|on) \(([^)]*)\)", rule["expr"]):
            assert kept.split(", ")[0] == "job", rule_id(rule)


def test_alerts_say_what_a_person_needs(slo: SloConfig) -> None:
    for rule in every_rule(slo):
        if "alert" not in rule:
            assert re.fullmatch(r"(replicas|workflow|source):\w+:\w+", rule["record"])
            continue
        annotations = rule["annotations"]
        assert rule["alert"].startswith("Automation")
        assert rule["labels"].keys() == {"severity"}
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["for"]
        assert rule["keep_firing_for"]
        assert re.fullmatch(r"[A-Z][^{}]*[a-z]\.", annotations["summary"]), "one sentence, the same for all of a group"
        assert "{{ $labels." in annotations["description"] or "$value" in annotations["description"]
        assert annotations["runbook_url"] == f"{slo.runbook_url or RUNBOOK_URL}/{rule['alert']}.md"
        assert ("dashboard_url" in annotations) == (slo.dashboard_url is not None)
        about_letters = rule["alert"].startswith(("AutomationDeadLetters", "AutomationRetr"))
        leads = slo.status_url is not None and about_letters
        assert annotations.get("groups_url") == ("https://automation.example/base/#groups" if leads else None)


def test_recorded_series_stay_few() -> None:
    """Of runs three for each workflow, two of them only while it runs; the windows are per source; six of habits."""
    names = [rule["record"] for rule in every_rule(SloConfig()) if "record" in rule]
    assert [name for name in names if name.startswith("workflow:")] == [
        "workflow:automation_runs:total",
        "workflow:automation_runs:rate5m",
        "workflow:automation_run_failures:rate5m",
        "workflow:automation_runs:per_hour",
        "workflow:automation_run_gap:newest",
        "workflow:automation_run_gap:longest",
        "workflow:automation_run_gap:shortest",
        "workflow:automation_run_gap:sum",
        "workflow:automation_run_last:timestamp",
        "workflow:automation_run_gap:usual",
    ]
    assert [name for name in names if name.startswith("replicas:")] == [replicas(metric) for metric in LEDGER]
    assert len(names) == 19 + len(LEDGER)


def test_of_every_ledger_counter_that_is_counted_over_time_it_is_the_recorded_one(slo: SloConfig) -> None:
    counters = {metric.name for metric in catalogue.CATALOGUE if metric.type == "counter"}
    for rule in every_rule(slo):
        counted = set(re.findall(r"\b(?:increase|rate)\(\s*(\w+)\b", rule["expr"]))
        assert not counters & counted, rule_id(rule)


def test_only_what_is_said_of_one_process_names_it(slo: SloConfig) -> None:
    """A rule whose result had an instance would end and begin anew with every deploy."""
    whole = [rule for rule in every_rule(slo) if "alert" in rule]
    named = {rule["alert"] for rule in whole if "$labels.instance" in rule["annotations"]["description"]}
    assert named == {alert.name for alert in ALERTS if alert.about == "process"}


def test_burn_rates_are_those_of_the_workbook() -> None:
    alerts = {rule_id(rule): rule["expr"] for rule in every_rule(SloConfig())}
    for name, limits in {"Fast": ["0.144", "0.06"], "Slow": ["0.03", "0.01"]}.items():
        found = re.findall(r"ratio_rate\w+\{[^}]*\} > ([\d.]+)", alerts[f"AutomationErrorBudgetBurn{name}"])
        assert found == [limit for limit in limits for _ in "ls"]
    loose = {rule_id(rule): rule["expr"] for rule in every_rule(SloConfig(success_ratio=0.5))}
    assert "> 0.99\n" in loose["AutomationErrorBudgetBurnFast"], "a burn rate above everything would never alert"


# What Prometheus makes of them


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *arguments], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )


@real("promtool")
def test_prometheus_takes_the_rules(slo: SloConfig, tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(rules.as_yaml(rules.recording_rules(slo) + rules.alert_rules(slo)))
    done = promtool("check", "rules", "--lint-fatal", file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SUCCESS: {len(every_rule(slo))} rules found" in done.stdout


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    assert sorted(CASES) == sorted(SHIPPED)
    for name, cases in CASES.items():
        assert any(case.told for case in cases.fires), name
        assert all(case.told for case in cases.fires), name
        assert any(case.told is None for case in cases.silent), name
        assert all(case.told is None for case in cases.silent), name


def read_by(alert: str, slo: SloConfig | None = None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The groups of recording rules an alert's rules build on, and those of its alerts, without any other rule."""

    def only(groups: list[dict[str, Any]], wanted: set[str]) -> list[dict[str, Any]]:
        kept = [group | {"rules": [r for r in group["rules"] if rule_id(r) in wanted]} for group in groups]
        return [group for group in kept if group["rules"]]

    slo = slo or SloConfig()
    every = every_rule(slo)
    recorded = {rule["record"] for rule in every if "record" in rule}
    wanted, todo = set[str](), {alert}
    while todo:
        wanted |= todo
        exprs = [rule["expr"] for rule in every if rule_id(rule) in todo]
        todo = {s.name for expr in exprs for s in selectors(expr) if s.name and s.name in recorded} - wanted
    return only(rules.recording_rules(slo), wanted), only(rules.alert_rules(slo), wanted)


@real("promtool")
@pytest.mark.parametrize("name", SHIPPED)
def test_alerts_fire_when_they_should_and_only_then(name: str, tmp_path: Path) -> None:
    """The file of the repository, beside rules of which only those are there that this alert depends on: promtool would
    evaluate all of them for every minute of every case, whichever alert it is asked about.
    """
    recording, alerts = read_by(name)
    for file, groups in (("recording-rules.yaml", recording), ("alert-rules.yaml", alerts)):
        (tmp_path / file).write_text(rules.as_yaml(groups))
    (tmp_path / "tests").mkdir()
    shutil.copy(FOLDER / "tests" / f"{name}.yaml", tmp_path / "tests")
    done = promtool("test", "rules", tmp_path / "tests" / f"{name}.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@real("promtool")
def test_a_workflow_is_judged_by_the_first_objective_that_fits(tmp_path: Path) -> None:
    """One failure is enough for 5004, five are needed elsewhere in its source, three in any other."""
    slo = objectives(OVERRIDES)
    (tmp_path / "rules.yaml").write_text(rules.as_yaml(rules.alert_rules(slo)))

    def world() -> Iterator[dict[str, str]]:
        yield {"series": 'automation_source_up{job="robots", instance="i", source="m"}', "values": "1x20"}
        for source, workflow_id, failures in (
            ("m", "5004", 1), ("m", "5005", 4), ("m", "5006", 5), ("n", "5004", 2), ("n", "5007", 3)
        ):  # fmt: skip
            labels = f'job="robots", instance="i", source="{source}", workflow_id="{workflow_id}"'
            yield {"series": f'automation_workflow_info{{{labels}, workflow="W{workflow_id}"}}', "values": "1x20"}
            yield {"series": f"automation_workflow_consecutive_failures{{{labels}}}", "values": f"{failures}x20"}

    fires = {("m", "5004"): 1, ("m", "5006"): 5, ("n", "5007"): 3}
    shows = [
        {
            "labels": f'ALERTS{{alertname="AutomationWorkflowFailing", alertstate="firing", job="robots",'
            f' severity="warning", source="{source}", workflow_id="{workflow_id}", workflow="W{workflow_id}"}}',
            "value": 1,
        }
        for source, workflow_id in fires
    ]
    test = {
        "interval": "1m",
        "input_series": list(world()),
        "promql_expr_test": [
            {
                "expr": 'ALERTS{alertname="AutomationWorkflowFailing"}',
                "eval_time": "10m",
                "exp_samples": shows,
            }
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": [test]}))
    done = promtool("test", "rules", tmp_path / "test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@real("promtool")
def test_a_source_with_an_objective_of_its_own_burns_by_that(tmp_path: Path) -> None:
    """Two in a hundred fail everywhere: too much for m, which wants 99.9 %, and for no workflow of another source."""
    slo = objectives(OVERRIDES)
    (tmp_path / "rules.yaml").write_text(rules.as_yaml(rules.recording_rules(slo) + rules.alert_rules(slo)))
    input_series = []
    for source, workflow_id in (("m", "1"), ("m", "5004"), ("mm", "1")):
        labels = f'job="robots", instance="i", source="{source}"'
        input_series.append({"series": f"automation_source_up{{{labels}}}", "values": "1x100"})
        for result, each in (("success", 0.98), ("failure", 0.02)):
            runs = f'automation_runs_total{{{labels}, workflow_id="{workflow_id}", result="{result}"}}'
            input_series.append({"series": runs, "values": f"0+{each}x100"})
        info = f'automation_workflow_info{{{labels}, workflow_id="{workflow_id}", workflow="W"}}'
        input_series += [{"series": info, "values": "1x100"}] if workflow_id == "5004" else []
    fires = {
        "AutomationErrorBudgetBurnFast": 'severity="critical"',
        "AutomationWorkflowFailingOften": 'severity="warning", workflow_id="1"',
    }
    expected = [
        {
            "expr": f'ALERTS{{alertname="{name}"}}',
            "eval_time": "90m",
            "exp_samples": [
                {
                    "labels": f'ALERTS{{alertname="{name}", alertstate="firing", job="robots", source="m", {labels}}}',
                    "value": 1,
                }
            ],
        }
        for name, labels in fires.items()
    ]
    test = {"interval": "1m", "input_series": input_series, "promql_expr_test": expected}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": [test]}))
    done = promtool("test", "rules", tmp_path / "test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


# What users write


def test_the_command_prints_the_rules_for_the_objectives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(SOURCE + OVERRIDES)
    assert cli.main(["rules", "--config", str(config)]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    alerts = {rule_id(rule): rule for group in printed["groups"] for rule in group["rules"]}
    assert set(NAMES) <= alerts.keys()
    failing = alerts["AutomationWorkflowFailing"]
    assert failing["annotations"]["runbook_url"] == "https://wiki.example/runbooks/AutomationWorkflowFailing.md"
    assert 'source="m", workflow_id="5004"' in failing["expr"]
    assert r'workflow=~"Nightly\\ .*"' in alerts["AutomationWorkflowOverdue"]["expr"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("slo: {succes_ratio: 0.9}", "slo.succes_ratio: unknown key; did you mean success_ratio?"),
        ("slo: {success_ratio: 99}", "slo.success_ratio: must be below 1: a share, for example 0.99 for 99 %"),
        (
            "slo: {window: 1h}",
            "slo.window: an objective is meant over 7d to 90d; burn rates say nothing for other windows",
        ),
        ("slo: {stuck_after: 5}", "slo.stuck_after: write a duration with its unit, for example 30s, 5m, 2h or 14d"),
        ("slo: {overdue_after: 10s}", "slo.overdue_after: the shortest is 1m: rules are evaluated once a minute"),
        ("slo: {workflows: {m/1: {stuck: 1h}}}", "slo.workflows.m/1.stuck: unknown key"),
        (
            "slo: {workflows: {'5004': {stuck_after: 1h}}}",
            "slo.workflows: '5004': write source/workflow id, source/pattern or source/* for a whole source",
        ),
        (
            "slo: {workflows: {make-uk/1: {stuck_after: 1h}}}",
            "slo.workflows.make-uk/1: there is no such source; one of m",
        ),
    ],
)
def test_mistakes_are_one_clear_line(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        objectives(text)
    assert caught.value.problems == [problem]
