"""``automation-exporter rules``."""

import argparse
from collections.abc import Callable
from typing import Any

from exporter.alerting import rules as generating
from exporter.config.outline import outline


def rules(options: argparse.Namespace) -> int:
    slo = outline(options.config).objectives()
    print(_FORMATS[options.format](generating.recording_rules(slo) + generating.alert_rules(slo)), end="")
    return 0


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
