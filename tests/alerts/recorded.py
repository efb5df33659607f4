"""What a real exporter said, as series for promtool: the rules are asked about a world that nobody wrote by hand.

A scrape is held for as long as a test says. Moments are moved so that promtool's clock, which begins at 0, fits them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

JOB = 'job="automation-exporter", instance="host:10870"'


@dataclass(slots=True, kw_only=True)
class Recorded:
    """Scrapes and how many minutes each is held."""

    began: float
    """The moment (seconds) that is promtool's 0"""
    keep: Callable[[dict[str, str]], bool] = lambda labels: True
    minutes: int = 0
    _rows: dict[str, list[str]] = field(default_factory=dict)

    def hold(self, text: str, minutes: int) -> None:
        """This is what is scraped in each of the next minutes."""
        now: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if self.keep(sample.labels):
                    moment = re.search("timestamp_seconds$|start_time_seconds$", sample.name)
                    labels = "".join(f', {name}="{_escaped(value)}"' for name, value in sample.labels.items())
                    now[f"{sample.name}{{{JOB}{labels}}}"] = sample.value - (self.began if moment else 0.0)
        now[f"up{{{JOB}}}"] = 1.0
        for name in now.keys() | self._rows.keys():
            row = self._rows.setdefault(name, [f"_x{self.minutes}"] if self.minutes else [])
            row.append(f"{now[name]:.10g}x{minutes - 1}" if name in now else f"_x{minutes}")
        self.minutes += minutes

    def series(self) -> list[dict[str, str]]:
        return [{"series": name, "values": " ".join(row)} for name, row in sorted(self._rows.items())]


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
