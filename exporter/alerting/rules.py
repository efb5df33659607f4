"""The rule files: recordings and alerts as YAML that Prometheus reads. Pure."""

from collections.abc import Mapping
from typing import Any

import yaml

from exporter.alerting import links
from exporter.alerting.alert import Alert
from exporter.alerting.alerts import ALERTS
from exporter.alerting.promql import of_source, otherwise
from exporter.alerting.recording import HABITS_INTERVAL, INTERVAL, Recording, habits, recordings
from exporter.config.objectives import SloConfig

HEADER = """\
# Made by `automation-exporter rules` from the objectives in `slo:`. Change those and make it anew, rather than edit it.
"""
#: Groups that are evaluated more often than the others (seconds): few series, and somebody is to get up for them soon.
INTERVALS = {"automation-exporter-sources": 30, "automation-exporter-exporter": 30}


class _Expression(str):
    """PromQL: written line by line as it is, so that it can be read and copied."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(
    _Expression, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|")
)


def recording_rules(slo: SloConfig) -> list[dict[str, Any]]:
    return [
        _recorded("automation-exporter-runs", INTERVAL, recordings(slo)),
        _recorded("automation-exporter-usual", HABITS_INTERVAL, habits(slo)),
    ]


def _recorded(name: str, interval: int, recorded: list[Recording]) -> dict[str, Any]:
    rules = [{"record": recording.name, "expr": _Expression(recording.expr)} for recording in recorded]
    return {"name": name, "interval": f"{interval}s", "rules": rules}


def alert_rules(slo: SloConfig) -> list[dict[str, Any]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for alert in ALERTS:
        if alert.objective is None or slo.expects(alert.objective):
            groups.setdefault(f"automation-exporter-{alert.group}", []).append(_alert(alert, slo))
    return [
        {"name": name, "interval": f"{INTERVALS.get(name, INTERVAL)}s", "rules": rules}
        for name, rules in groups.items()
    ]


def _alert(alert: Alert, slo: SloConfig) -> dict[str, Any]:
    expr = alert.expr(slo)
    expr = otherwise(of_source(expr, slo) if alert.about == "source" else expr, slo)
    return {
        "alert": alert.name,
        "expr": _Expression(expr),
        "for": alert.wait,
        "keep_firing_for": alert.keep,
        "labels": {"severity": alert.severity},
        "annotations": annotations(alert, slo),
    }


def annotations(alert: Alert, slo: SloConfig) -> dict[str, str]:
    out = {
        "summary": alert.summary,
        "description": alert.description,
        "runbook_url": links.runbook(alert, slo),
    }
    dashboard = links.dashboard(alert, slo)
    if dashboard is not None:
        out["dashboard_url"] = dashboard
    if slo.status_url is not None and alert.group in ("dead-letters", "retries"):
        out["groups_url"] = f"{slo.status_url}/#groups"
    return out


def as_yaml(groups: list[dict[str, Any]]) -> str:
    return HEADER + dumped({"groups": groups})


def dumped(data: Mapping[str, Any]) -> str:
    """YAML as the checked-in files have it."""
    return str(yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))
