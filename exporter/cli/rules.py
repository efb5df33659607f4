"""``automation-exporter rules``."""

import argparse

from exporter.alerting import rules as generating
from exporter.config.outline import outline


def rules(options: argparse.Namespace) -> int:
    slo = outline(options.config).objectives()
    print(generating.as_yaml(generating.recording_rules(slo) + generating.alert_rules(slo)), end="")
    return 0
