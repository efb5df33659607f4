"""What is expected to succeed or to run within a time, and does not: told within that time and a quarter of an hour."""

from pathlib import Path

import pytest
import yaml

from exporter import cli
from exporter.alerting import rules
from tests.alerts.test_rare import History as Runs
from tests.alerts.test_rare import every, nights
from tests.alerts.test_rules import objectives, promtool
from tests.servers import real

HOUR, DAY = 60, 1440
NO_SUCCESS, NO_RUN = "AutomationWorkflowNoSuccess", "AutomationWorkflowNoRun"
OBJECTIVES = """
slo:
  overrides:
    - {match: Invoices, source: m, success_within: 26h, runs_within: 1h}
"""
LAST = 9 * DAY + 2 * HOUR  # the last of ten nights
FAILED = [*nights(10), *nights(2, result="failure", first=10)]
OFF = "automation_workflow_enabled"

CASES = [
    ("a nightly run does not come", NO_SUCCESS, Runs(ended=nights(10), until=12 * DAY), LAST + 26 * HOUR, 15),
    ("it comes, and fails", NO_SUCCESS, Runs(ended=FAILED, until=12 * DAY), LAST + 26 * HOUR, 15),
    ("never since it was found", NO_SUCCESS, Runs(ended=[], found=HOUR, until=2 * DAY), 27 * HOUR, 15),
    ("200 an hour fall to none", NO_RUN, Runs(ended=every(1, until=10 * HOUR), until=DAY), 11 * HOUR, 15),
    ("a webhook never came", NO_RUN, Runs(ended=[], found=HOUR, until=DAY), 2 * HOUR, 15),
    ("it runs each night", NO_SUCCESS, Runs(ended=nights(12), until=12 * DAY), None, 0),
    ("it is off", NO_SUCCESS, Runs(ended=nights(10), until=12 * DAY, enabled=lambda at: at < 9 * DAY), None, 0),
    ("it was found today", NO_SUCCESS, Runs(ended=[], found=HOUR, until=20 * HOUR), None, 0),
]


def asked(alert: str, at: int, *, on: bool) -> dict[str, object]:
    samples = [{"labels": "{}", "value": 1}] if on else []
    return {
        "expr": f'count(ALERTS{{alertname="{alert}", alertstate="firing"}})',
        "eval_time": f"{at}m",
        "exp_samples": samples,
    }


@real("promtool")
@pytest.mark.parametrize(("why", "alert", "history", "due", "late"), CASES, ids=[case[0] for case in CASES])
def test_silence_is_told_in_time(
    why: str, alert: str, history: Runs, due: int | None, late: int, tmp_path: Path
) -> None:
    slo = objectives(OBJECTIVES).model_copy(update={"job": "automation-exporter"})
    groups = rules.recording_rules(slo) + rules.alert_rules(slo)
    kept = [
        group
        | {
            "rules": [
                r
                for r in group["rules"]
                if r.get("alert") == alert or r.get("record", "").startswith("replicas:automation_runs")
            ]
        }
        for group in groups
    ]
    (tmp_path / "rules.yaml").write_text(rules.as_yaml([group for group in kept if group["rules"]]))
    series = [{"series": n.replace("make-eu", "m"), "values": v} for n, v in history.series().items()]
    moments = [asked(alert, history.until, on=False)]
    if due is not None:
        moments = [asked(alert, due - 5, on=False), asked(alert, due + late, on=True)]
    test = {"interval": "1m", "input_series": series, "promql_expr_test": moments}
    (tmp_path / "test.yaml").write_text(
        yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "5m", "tests": [test]})
    )
    done = promtool("test", "rules", tmp_path / "test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@real("promtool")
def test_who_saves_no_successes_is_not_judged(tmp_path: Path) -> None:
    slo = objectives("slo: {success_within: 1h}")
    (tmp_path / "rules.yaml").write_text(rules.as_yaml(rules.recording_rules(slo) + rules.alert_rules(slo)))
    of = f'job="{slo.job}", instance="i", source="m", workflow_id="1"'
    series = [
        {"series": f'automation_source_up{{job="{slo.job}", instance="i", source="m"}}', "values": "1x300"},
        {"series": f'automation_workflow_info{{{of}, workflow="W"}}', "values": "1x300"},
        {"series": f'automation_runs_total{{{of}, result="failure"}}', "values": "1x300"},
    ]
    test = {"interval": "1m", "input_series": series, "promql_expr_test": [asked(NO_SUCCESS, 240, on=False)]}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": [test]}))
    done = promtool("test", "rules", tmp_path / "test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_a_config_the_rules_are_those_of_the_defaults(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AUTOMATION_EXPORTER_CONFIG", raising=False)
    assert cli.main(["rules"]) == 0
    there = Path(__file__).parent.parent.parent / "alerts"
    names = [group["name"] for group in yaml.safe_load(capsys.readouterr().out)["groups"]]
    files = [yaml.safe_load((there / f"{kind}-rules.yaml").read_text()) for kind in ("recording", "alert")]
    assert names == [group["name"] for file in files for group in file["groups"]]
