"""Recorded series: how many runs end and how many of them fail, and the ratios that burn rates compare. Pure.

Two series per workflow at most, and only while it runs at all: what is 0 is not recorded. Everything longer than five
minutes is summed up from these, so a week of thousands of workflows is never read again. The sums weigh by events, and
an event is in five overlapping rates, so that none is lost between two of them.
"""

from dataclasses import dataclass

from exporter.alerting.promql import quoted, select
from exporter.config.objectives import SloConfig
from exporter.model import FAILED, SUCCEEDED, Result, catalogue

#: How often the recorded series are evaluated, in seconds: what a sum over them counts in.
INTERVAL = 60
#: A ratio above this is "all of it", whatever the burn rate asks for: loose objectives would never alert otherwise.
RATIO_MAX = 0.99
DAY = 86400.0

RUNS = "automation_runs:rate5m"
FAILURES = "automation_run_failures:rate5m"
RATIO = "source:automation_run_failures_per_run:ratio_rate"
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
_HOURS = {"1h": 1.0, "6h": 6.0, "1d": 24.0, "3d": 72.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Burn:
    """Two windows that must both burn: the long one for significance, the short one so that the alert ends soon."""

    long: str
    short: str
    spent: float
    """The share of the whole budget that is gone when the long window has burnt like this throughout."""

    def ratio(self, slo: SloConfig, success_ratio: float) -> float:
        """The share of failed runs above which it burns. 30 days: 14.4, 6, 3 and 1 times the allowed share."""
        factor = self.spent * slo.window / (_HOURS[self.long] * 3600)
        return min(factor * (1 - success_ratio), RATIO_MAX)


PAGE = (Burn(long="1h", short="5m", spent=0.02), Burn(long="6h", short="30m", spent=0.05))
TICKET = (Burn(long="1d", short="2h", spent=0.1), Burn(long="3d", short="6h", spent=0.1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    name: str
    expr: str


def recordings(slo: SloConfig) -> list[Recording]:
    """Every recorded series, in the order they build on each other."""
    return [
        Recording(name=f"workflow:{RUNS}", expr=_rate(slo, *SUCCEEDED, *FAILED)),
        Recording(name=f"workflow:{FAILURES}", expr=_rate(slo, *FAILED)),
        *(
            Recording(name=f"source:{name}", expr=f"sum without (workflow_id) ({select(f'workflow:{name}', slo)})")
            for name in (RUNS, FAILURES)
        ),
        *(Recording(name=f"{RATIO}{window}", expr=_ratio(slo, window)) for window in WINDOWS),
    ]


def _rate(slo: SloConfig, *results: Result) -> str:
    """Ends of runs per second. Who cancelled a run decided so, and an unknown end says nothing: neither is counted."""
    these = f"result=~{quoted('|'.join(r for r in Result if r in results))}"
    return f"sum without (instance, pod, result) (\n  rate({select(catalogue.RUNS.name, slo, these)}[5m])\n) > 0"


def _ratio(slo: SloConfig, window: str) -> str:
    failures, runs = (over(f"source:{name}", slo, window) for name in (FAILURES, RUNS))
    return f"({failures} or 0 * {runs})\n/ {runs}"


def over(name: str, slo: SloConfig, window: str) -> str:
    """A recorded rate summed up over a window."""
    return select(name, slo) if window == "5m" else f"sum_over_time({select(name, slo)}[{window}])"


def enough(level: str, slo: SloConfig, window: str, events: float) -> str:
    """Those with at least so many runs in the window."""
    return f"{INTERVAL} * {over(f'{level}:{RUNS}', slo, window)} >= {events:g}"
