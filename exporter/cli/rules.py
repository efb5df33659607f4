"""``automation-exporter rules``."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from exporter.alerting import rules as generating
from exporter.cli.parser import CONFIG_FILE
from exporter.config.objectives import SloConfig
from exporter.config.outline import outline


def rules(options: argparse.Namespace) -> int:
    slo = _objectives(options.config)
    print(_FORMATS[options.format](generating.recording_rules(slo) + generating.alert_rules(slo)), end="")
    return 0


def _objectives(config: Path) -> SloConfig:
    """Those of the config; where nobody named one and none is at its usual place, the defaults."""
    if config == Path(CONFIG_FILE) and not config.exists():
        return SloConfig()
    return outline(config, store=False).objectives()


def _as_prometheus_rule(groups: list[dict[str, Any]]) -> str:
    """A resource that the Prometheus Operator makes rule files of. Its namespace is that of whoever applies it."""
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "automation-exporter", "labels": {"app.kubernetes.io/name": "automation-exporter"}},
        "spec": {"groups": groups},
    }
    return generating.HEADER + generating.dumped(resource)


#: By the names of ``--format``.
_FORMATS: dict[str, Callable[[list[dict[str, Any]]], str]] = {
    "prometheus": generating.as_yaml,
    "prometheusrule": _as_prometheus_rule,
}
