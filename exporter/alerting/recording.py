"""Recorded series: how many runs end and how many of them fail, and the ratios that burn rates compare; and what is
usual for each workflow: how often it runs, and how long it is between two runs. Pure.

Of rates there are two series per workflow at most, and only while it runs at all: what is 0 is not recorded. Everything
longer than five minutes is summed up from these, so a week of thousands of workflows is never read again. The sums
weigh by events, and an event is in five overlapping rates, so that none is lost between two of them.
"""

from dataclasses import dataclass

from exporter.alerting.promql import WORKFLOW, quoted, select
from exporter.config.objectives import SloConfig
from exporter.model import FAILED, SUCCEEDED, Result, catalogue
from exporter.model.catalogue import Metric

#: Counters of the ledger of which somebody takes increase() or rate(). They never restart, and under replicas they go
#: on, where they were, on another ``instance``.
LEDGER = (
    catalogue.RUNS,
    catalogue.RUN_ERRORS,
    catalogue.RUN_OPERATIONS,
    catalogue.RUN_TRANSFER,
    catalogue.STEPS,
    catalogue.DEAD_LETTERS_OPENED,
    catalogue.DEAD_LETTERS_RESOLVED,
    catalogue.RETRY_DECISIONS,
    catalogue.RETRY_ESCALATIONS,
    catalogue.RETRIES,
    catalogue.RETRIES_SHADOW,
    catalogue.RUNS_OBSERVED,
    catalogue.RECONCILED,
)
#: How often the recorded series are evaluated, in seconds: what a sum over them counts in.
INTERVAL = 60
#: A ratio above this is "all of it", whatever the burn rate asks for: loose objectives would never alert otherwise.
RATIO_MAX = 0.99
DAY = 86400.0

RUNS = "automation_runs:rate5m"
FAILURES = "automation_run_failures:rate5m"
RATIO = "source:automation_run_failures_per_run:ratio_rate"
#: All finished runs so far, of a workflow. The counter, as the exporter keeps it: a restart does not set it back.
TOTAL = "workflow:automation_runs:total"
#: Runs an hour, over as long as is known, a week at most.
PER_HOUR = "workflow:automation_runs:per_hour"
#: When a run last ended, the time since the one before while that has just changed, and what these times are like.
LAST = "workflow:automation_run_last:timestamp"
GAP = "workflow:automation_run_gap:newest"
LONGEST = "workflow:automation_run_gap:longest"
SHORTEST = "workflow:automation_run_gap:shortest"
LEARNED = "workflow:automation_run_gap:sum"
#: The longest time between two runs, of those only that run regularly, as far as that is known.
USUAL = "workflow:automation_run_gap:usual"
#: Seconds between two runs, below which nobody looks whether they are regular.
GAP_MIN = 3600
#: How far the longest and the shortest time between two runs may be apart where they are regular.
GAP_SPREAD = 1.3
#: How long a workflow must be known before its gaps count as usual: a week end is within, wherever it begins.
KNOWN_FOR = "180h"
#: Gaps that must have been seen before.
GAPS_MIN = 3
#: How often what is usual is looked at, in seconds.
HABITS_INTERVAL = 900
#: How far back the last value of a habit is looked for: for so long Prometheus may be down and not forget it.
REMEMBERED = "2d"
#: Hours over which runs are counted, the longest first, and how much earlier it may begin, for a gap in scraping.
_COUNTED = ((168, "6h"), (24, "6h"), (6, "1h"), (1, "15m"))
#: By how much an extreme gap of the past moves to each new one that is less so.
_FORGETTING = 0.25
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
_HOURS = {"1h": 1.0, "6h": 6.0, "1d": 24.0, "3d": 72.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Burn:
    """Two windows that must both burn: the long one for significance, the short one so that the alert ends soon."""

    long: str
    short: str
    spent: float
    """The share of the whole budget that is gone when the long window has burnt like this throughout."""

    @property
    def half(self) -> str:
        """Half of the long window, before which it is not judged: there was nothing to compare with."""
        return f"{_HOURS[self.long] * 30:g}m"

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


def replicas(metric: Metric) -> str:
    """The name of a counter of the ledger, whichever replica shows it: of this one increase() is exact."""
    return f"replicas:{metric.name}:max"


def total(metric: Metric, slo: SloConfig, *matchers: str) -> str:
    """A counter of the ledger as one series that goes on when its source moves to another replica."""
    return select(replicas(metric), slo, *matchers)


def recordings(slo: SloConfig) -> list[Recording]:
    """Every recorded series, in the order they build on each other."""
    return [
        *(
            Recording(name=replicas(metric), expr=f"max without (instance, pod) ({select(metric.name, slo)})")
            for metric in LEDGER
        ),
        Recording(name=TOTAL, expr=_total(slo)),
        Recording(name=f"workflow:{RUNS}", expr=_rate(slo, *SUCCEEDED, *FAILED)),
        Recording(name=f"workflow:{FAILURES}", expr=_rate(slo, *FAILED)),
        *(
            Recording(name=f"source:{name}", expr=f"sum without (workflow_id) ({select(f'workflow:{name}', slo)})")
            for name in (RUNS, FAILURES)
        ),
        *(Recording(name=f"{RATIO}{window}", expr=_ratio(slo, window)) for window in WINDOWS),
    ]


def habits(slo: SloConfig) -> list[Recording]:
    """What is usual for each workflow, in the order these build on each other and on what they said the time before."""
    gap, longest, shortest, learned = (select(name, slo) for name in (GAP, LONGEST, SHORTEST, LEARNED))
    before = {series: f"last_over_time({series}[{REMEMBERED}])" for series in (longest, shortest, learned)}

    def extreme(series: str, sign: str) -> str:
        """The most extreme gap so far, which is forgotten step by step, with each gap that is less so."""
        old = before[series]
        return f"{gap} {sign} {old}\nor {old} + {_FORGETTING:g} * ({gap} - {old})\nor {old}\nor {gap}"

    return [
        Recording(name=PER_HOUR, expr=_per_hour(slo)),
        Recording(name=GAP, expr=f"{ended(slo)}\n- last_over_time({select(LAST, slo)}[{REMEMBERED}]) > 0"),
        Recording(name=LONGEST, expr=extreme(longest, ">=")),
        Recording(name=SHORTEST, expr=extreme(shortest, "<=")),
        Recording(name=LEARNED, expr=f"{before[learned]} + {gap}\nor {before[learned]}\nor {gap}"),
        Recording(name=LAST, expr=ended(slo)),
        Recording(
            name=USUAL,
            expr=(
                f"{longest} >= {GAP_MIN}\nand {longest} <= {GAP_SPREAD:g} * {shortest}\n"
                f"and {learned} >= {GAPS_MIN} * {longest}\n"
                f"and last_over_time({select(LAST, slo)}[{REMEMBERED}] offset {KNOWN_FOR})"
            ),
        ),
    ]


def ended(slo: SloConfig) -> str:
    """When a run of a workflow last ended, however it did."""
    return f"max without (instance, pod, result) ({select(catalogue.WORKFLOW_LAST_RUN.name, slo)})"


def _per_hour(slo: SloConfig) -> str:
    """The difference of two totals: exact, and two looks whatever the time between. Unknown within the first hour.

    The longest time counts of which both ends are known and within which the total never fell: then the database is
    another, and what was before is not known.
    """
    runs = select(TOTAL, slo)
    counts = [f"{runs} - last_over_time({runs}[{slack}] offset {hours}h)" for hours, slack in _COUNTED]
    parts = []
    for at, (hours, _) in enumerate(_COUNTED):
        fell = "".join(f"\n  unless {count} < 0" for count in counts[at + 1 :])
        parts.append(f"(\n  ({counts[at]} >= 0){fell}\n) / {hours}")
    return "\nor\n".join(parts)


def _total(slo: SloConfig) -> str:
    return f"sum without (result) ({total(catalogue.RUNS, slo)})"


def _rate(slo: SloConfig, *results: Result) -> str:
    """Ends of runs per second. Who cancelled a run decided so, and an unknown end says nothing: neither is counted."""
    these = f"result=~{quoted('|'.join(r for r in Result if r in results))}"
    rate = f"sum without (result) (\n  rate({total(catalogue.RUNS, slo, these)}[5m])\n) > 0"
    return f"{rate}\nunless on ({WORKFLOW}) {half_counted(slo)}"


def half_counted(slo: SloConfig) -> str:
    """Workflows whose platform keeps nothing of their successes: of their failures no share can be said, and that they
    did not run nobody knows.
    """
    success = f"result={quoted(Result.SUCCESS)}"
    runs, successes = (select(catalogue.RUNS.name, slo, *more) for more in ((), (success,)))
    return f"(\n  {runs}\n  unless on ({WORKFLOW}) {successes}\n)"


def _ratio(slo: SloConfig, window: str) -> str:
    failures, runs = (over(f"source:{name}", slo, window) for name in (FAILURES, RUNS))
    return f"({failures} or 0 * {runs})\n/ {runs}"


def over(name: str, slo: SloConfig, window: str) -> str:
    """A recorded rate summed up over a window."""
    return select(name, slo) if window == "5m" else f"sum_over_time({select(name, slo)}[{window}])"


def enough(level: str, slo: SloConfig, window: str, events: float) -> str:
    """Those with at least so many runs in the window."""
    return f"{INTERVAL} * {over(f'{level}:{RUNS}', slo, window)} >= {events:g}"
