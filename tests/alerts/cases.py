"""For every alert what makes it fire, and what looks alike and must not. The files in alerts/tests/ are made of these.

A case is a small world: series as promtool reads them (one value a minute), when to look, and who is told what. Text
is stated here in full, because the text is what somebody reads at night.
"""

from typing import Any

from exporter.alerting.alerts import ALERTS
from exporter.alerting.rules import annotations
from exporter.config.objectives import SloConfig
from tests.alerts.cases_sources import SOURCES
from tests.alerts.cases_workflows import WORKFLOWS

CASES = WORKFLOWS | SOURCES


def unit_tests(name: str) -> dict[str, Any]:
    """The cases of an alert as promtool reads them."""
    [alert] = [alert for alert in ALERTS if alert.name == name]
    tests = []
    for case in (*CASES[name].fires, *CASES[name].silent):
        expected = []
        if case.told is not None:
            labels, description = case.told
            expected = [
                {
                    "exp_labels": {"severity": alert.severity, **labels},
                    "exp_annotations": annotations(alert, SloConfig()) | {"description": description},
                }
            ]
        tests.append(
            {
                "name": f"{'fires' if case.told else 'silent'}: {case.why}",
                "interval": "1m",
                "input_series": [{"series": series, "values": values} for series, values in case.series.items()],
                "alert_rule_test": [{"eval_time": case.at, "alertname": name, "exp_alerts": expected}],
            }
        )
    return {
        "rule_files": ["../recording-rules.yaml", "../alert-rules.yaml"],
        "evaluation_interval": CASES[name].every,
        "tests": tests,
    }
