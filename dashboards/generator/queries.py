"""Pieces of the dashboards' PromQL. Every selector says whose exporter; most say which sources."""

from exporter.alerting.promql import own
from exporter.model import FAILED, catalogue
from exporter.model.catalogue import Metric

#: Whose exporter, and which of its replicas.
EXPORTER = 'job=~"$job", instance=~"$instance"'
#: And of which sources.
SOURCE = f'{EXPORTER}, source=~"$source"'
#: And of one workflow, named by the variable of the name.
WORKFLOW = f'{SOURCE}, workflow_id=~"$workflow_id"'

RATE = "$__rate_interval"
RANGE = "$__range"
DAY = "1d"
PER_HOUR = 3600

#: When a stream was last read completely: how old everything else may be.
SWEPT = own(lambda metrics: metrics.sweep_success)
FAILURES = f'result=~"{"|".join(sorted(FAILED))}"'
SUCCESSES = 'result="success"'
_KEY = "job, instance, source, workflow_id"


def select(metric: Metric | str, *matchers: str, of: str = SOURCE) -> str:
    name = metric if isinstance(metric, str) else metric.name
    return f"{name}{{{', '.join([of, *matchers])}}}"


def per_second(metric: Metric | str, *matchers: str, of: str = SOURCE) -> str:
    return f"rate({select(metric, *matchers, of=of)}[{RATE}])"


def per_hour(metric: Metric | str, by: str, *matchers: str, of: str = SOURCE) -> str:
    """How many an hour: a workflow that runs four times an hour reads as 4, not as 0.0011 a second."""
    return f"{PER_HOUR} * sum by ({by}) ({per_second(metric, *matchers, of=of)})"


def increase(metric: Metric | str, window: str, *matchers: str, of: str = SOURCE) -> str:
    return f"increase({select(metric, *matchers, of=of)}[{window}])"


def quantile(q: float, metric: Metric | str, by: str = "", *matchers: str, of: str = SOURCE) -> str:
    name = metric if isinstance(metric, str) else metric.name
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q:g}, sum by ({labels}) ({per_second(f'{name}_bucket', *matchers, of=of)}))"


def mean(metric: Metric, window: str, *matchers: str, of: str = SOURCE) -> str:
    total, count = (f"sum({increase(f'{metric.name}_{part}', window, *matchers, of=of)})" for part in ("sum", "count"))
    return f"{total} / ({count} > 0)"


def share(metric: Metric, window: str, *matchers: str, of: str = SOURCE) -> str:
    """How many of all are those of the matchers; nothing where there was none at all."""
    those = f"sum({increase(metric, window, *matchers, of=of)})"
    return f"({those} or vector(0)) / (sum({increase(metric, window, of=of)}) > 0)"


def named(expr: str) -> str:
    """A vector by workflow with the label ``workflow``; without it where nobody told the name, but never dropped."""
    names = select(catalogue.WORKFLOW_INFO)
    return f"({expr}) * on ({_KEY}) group_left (workflow) {names} or on ({_KEY}) ({expr})"


def worst(expr: str) -> str:
    """The twenty highest."""
    return f"topk(20, {expr})"


def by_workflow(expr: str) -> str:
    """Summed up to one value a workflow."""
    return f"sum by ({_KEY}) ({expr})"


def and_failing(expr: str) -> str:
    """Only those workflows whose last run failed."""
    return f"{expr} and on ({_KEY}) {select(catalogue.WORKFLOW_FAILURES)} > 0"
