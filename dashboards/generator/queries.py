"""Pieces of the dashboards' PromQL. Every selector says whose exporter; most say which sources.

Nothing becomes 0 for want of data: where nobody says a number, there is none.
"""

from exporter.alerting.promql import own
from exporter.alerting.recording import LEDGER, replicas
from exporter.model import FAILED, catalogue
from exporter.model.catalogue import Metric

#: Which of the replicas.
INSTANCE = 'instance=~"$instance"'
#: Whose exporter, and which of its replicas.
EXPORTER = f'job=~"$job", {INSTANCE}'
#: And of which sources.
SOURCE = f'{EXPORTER}, source=~"$source"'
#: And of one workflow, named by the variable of the name.
WORKFLOW = f'{SOURCE}, workflow_id=~"$workflow_id"'

RATE = "$__rate_interval"
RANGE = "$__range"
RANGE_SECONDS = "$__range_s"
DAY = "1d"
DAY_SECONDS = 86400
PER_HOUR = 3600

#: When a stream was last read completely: how old everything else may be.
SWEPT = own(lambda metrics: metrics.sweep_success)
BUILD = own(lambda metrics: metrics.build_info)
STORE_UP = own(lambda metrics: metrics.store_up)
FAILURES = f'result=~"{"|".join(sorted(FAILED))}"'
SUCCESSES = 'result="success"'
#: A workflow, whichever replica speaks of it.
KEY = "job, source, workflow_id"


def select(metric: Metric | str, *matchers: str, of: str = SOURCE) -> str:
    name = metric if isinstance(metric, str) else metric.name
    return f"{name}{{{', '.join([of, *matchers])}}}"


def rate(metric: Metric | str, *matchers: str, of: str = SOURCE, part: str = "") -> str:
    """How many a second. ``part``: of a histogram, ``_bucket``, ``_sum`` or ``_count``."""
    return _rise("rate", metric, RATE, matchers, of=of, part=part)


def increase(metric: Metric | str, window: str, *matchers: str, of: str = SOURCE, part: str = "") -> str:
    return _rise("increase", metric, window, matchers, of=of, part=part)


def _rise(function: str, metric: Metric | str, window: str, matchers: tuple[str, ...], *, of: str, part: str) -> str:
    """By how much a counter rose.

    A counter of the ledger moves from replica to replica with its source and goes on where it was. The recorded series
    is exact then; the counter as scraped is exact while one replica holds the source, and is read where nothing is
    recorded: no rules, or not yet for as long as the window. Never both of one exporter.
    """
    name = (metric if isinstance(metric, str) else metric.name) + part
    scraped = f"{function}({select(name, *matchers, of=of)}[{window}])"
    if isinstance(metric, str) or metric not in LEDGER:
        return scraped  # of histograms nothing is recorded: a share of them is the same, seen twice or once
    series = select(replicas(metric), *matchers, of=of.replace(f", {INSTANCE}", ""))
    if window == RATE:
        return f"({function}({series}[{window}]) or ({scraped} unless on (job) {series}))"
    there = f"{series} offset {window}"
    return f"(({function}({series}[{window}]) and on (job) {there}) or ({scraped} unless on (job) {there}))"


def per_hour(metric: Metric | str, by: str, *matchers: str, of: str = SOURCE) -> str:
    """How many an hour: a workflow that runs four times an hour reads as 4, not as 0.0011 a second."""
    return f"{PER_HOUR} * sum by ({by}) ({rate(metric, *matchers, of=of)})"


def quantile(q: float, metric: Metric | str, by: str = "", *matchers: str, of: str = SOURCE, window: str = RATE) -> str:
    labels = f"le, {by}" if by else "le"
    if window == RATE:
        buckets = rate(metric, *matchers, of=of, part="_bucket")
    else:
        buckets = increase(metric, window, *matchers, of=of, part="_bucket")
    return f"histogram_quantile({q:g}, sum by ({labels}) ({buckets}))"


def mean(metric: Metric, window: str, *matchers: str, of: str = SOURCE) -> str:
    total, count = (f"sum({increase(metric, window, *matchers, of=of, part=part)})" for part in ("_sum", "_count"))
    return f"{total} / ({count} > 0)"


def share(metric: Metric, window: str, *matchers: str, of: str = SOURCE) -> str:
    """How many of all are those of the matchers; nothing where there was none at all."""
    those, whole = (f"sum({increase(metric, window, *more, of=of)})" for more in (matchers, ()))
    return f"({those} or 0 * {whole}) / ({whole} > 0)"


def read(expr: str) -> str:
    """Only while every source chosen can be read and what is read can be stored."""
    return f"({expr}) and on () {_READ}"


def told(expr: str) -> str:
    """A number of troubles. That it is 0 is said only while every source chosen is read: unknown is not 0."""
    return f"({expr}) > 0 or {read(expr)}"


def counted(expr: str) -> str:
    """The same of what has no series where there is none."""
    return f"({expr}) > 0 or 0 * {_READ}"


def of_read(expr: str) -> str:
    """What is known of the sources that can be read now, each by itself."""
    return f"({expr}) and on (source) max by (source) ({select(catalogue.SOURCE_UP)}) == 1"


def told_each(expr: str) -> str:
    """Numbers of troubles by source, of which 0 is said only while that source is read."""
    return f"({expr}) > 0 or {of_read(expr)}"


_READ = f"(min({select(catalogue.SOURCE_UP)}) * min({select(STORE_UP, of=EXPORTER)}) > 0)"
#: Whether the exporter is scraped: of all that ``up`` knows, only what was an exporter within the last day.
UP = f"up{{{EXPORTER}}} and on (job, instance) last_over_time({select(BUILD, of=EXPORTER)}[1d])"


def of_exporter(metric: str) -> str:
    """A metric that other programs have too."""
    return f"{metric} and on (job, instance) {select(BUILD, of=EXPORTER)}"


def named(expr: str, *more: str) -> str:
    """A vector by workflow with the label ``workflow``: its identifier where nobody says the name, so none is dropped.

    ``more``: labels by which there are several values a workflow.
    """
    names = f"max by ({KEY}, workflow) ({select(catalogue.WORKFLOW_INFO)})"
    whole = ", ".join([KEY, *more])
    unnamed = f'label_replace({expr}, "workflow", "$1", "workflow_id", "(.+)")'
    return f"({expr}) * on ({KEY}) group_left (workflow) {names} or on ({whole}) {unnamed}"


def worst(expr: str, *, number: int = 20) -> str:
    """The highest."""
    return f"topk({number}, {expr})"


def by_workflow(expr: str) -> str:
    """Summed up to one value a workflow."""
    return f"sum by ({KEY}) ({expr})"


def of_workflow(expr: str) -> str:
    """The highest value of each workflow."""
    return f"max by ({KEY}) ({expr})"
