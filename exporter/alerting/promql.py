"""Pieces of PromQL the rules are made of. Pure text; every selector has the job, every metric is one there is.

Names of metrics are read from where the metrics are made, so that renaming one breaks the build, not somebody's night.
"""

import re
from collections.abc import Callable
from functools import cache

from prometheus_client.metrics import MetricWrapperBase

from exporter.config.objectives import Override, SloConfig, Those
from exporter.model import catalogue
from exporter.view.own import OwnMetrics

#: Labels that name a workflow, for matching with ``and``, ``or`` and ``unless``.
WORKFLOW = "job, source, workflow_id"
#: The first labels of an alert that is about a whole source.
SOURCE = "job, source"
#: One process.
REPLICA = "job, instance"

#: Computed at each scrape by the app.
API_QUOTA_REMAINING = "automation_exporter_api_quota_remaining"
CURSOR_LAG = "automation_exporter_cursor_lag_seconds"
CLOCK_OFFSET = "automation_exporter_clock_offset_seconds"


@cache
def _own() -> OwnMetrics:
    return OwnMetrics()


def own(pick: Callable[[OwnMetrics], MetricWrapperBase]) -> str:
    """The name of a metric of the exporter itself, as it is scraped."""
    [family] = pick(_own()).describe()
    return f"{family.name}_total" if family.type == "counter" else str(family.name)


def quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def select(name: str, slo: SloConfig, *matchers: str) -> str:
    """``name{job="…", …}``."""
    return f"{name}{{{', '.join([f'job={quoted(slo.job)}', *matchers])}}}"


def shown(name: str, slo: SloConfig, *matchers: str) -> str:
    """A gauge whichever replica shows it: an alert that named the replica would end and begin at each deploy."""
    return f"max without (instance, pod) ({select(name, slo, *matchers)})"


def seconds(duration: float) -> str:
    return f"{duration:.10g}"


def info(slo: SloConfig, *matchers: str) -> str:
    return select(catalogue.WORKFLOW_INFO.name, slo, *matchers)


def named(expr: str, slo: SloConfig, *, of: str) -> str:
    """``expr`` with the workflow's name and labels; without them where nobody said any, but never dropped.

    Workflows without labels of their own, such as those that are shown together, have those of their source. ``of``:
    series that are there whenever ``expr`` is. Neither says which replica it is from.
    """
    added = ["workflow", *slo.carried.names]
    known = f"{shown(catalogue.WORKFLOW_INFO.name, slo)}\nor on ({WORKFLOW})\ngroup by ({WORKFLOW}) ({of})"
    if slo.carried.names:
        tagged = shown(catalogue.WORKFLOW_LABELS.name, slo)
        joined = f"* on ({WORKFLOW}) group_left ({', '.join(slo.carried.names)})"
        known = f"(\n{indented(known)}\n)\n{joined} {tagged}\nor on ({WORKFLOW})\n{of_source(known, slo)}"
    return f"(\n{indented(expr)}\n)\n* on ({WORKFLOW}) group_left ({', '.join(added)}) (\n{indented(known)}\n)"


def of_source(expr: str, slo: SloConfig) -> str:
    """``expr``, which is about whole sources, with the labels of the source."""
    for (name, value), sources in slo.carried.sources.items():
        among = "|".join(re.escape(source) for source in sources)
        expr = _labelled(expr, name, value, "source", among)
    return expr


def otherwise(expr: str, slo: SloConfig) -> str:
    """``expr`` with the labels of what has none of these names."""
    for name, value in slo.otherwise.items():
        expr = _labelled(expr, name, value, name, "")
    return expr


def _labelled(expr: str, name: str, value: str, where: str, matches: str) -> str:
    text = quoted(value.replace("$", "$$"))
    return f'label_replace(\n{indented(expr)},\n  "{name}", {text}, "{where}", {quoted(matches)}\n)'


def indented(text: str) -> str:
    return "\n".join("  " + line for line in text.splitlines())


def by_objective(slo: SloConfig, key: str, compare: Callable[[float], str]) -> str:
    """``compare`` with the objective ``key`` of every workflow: the first override that fits, else the common one."""
    own_limits = [(those, limit) for those, o in slo.exceptions() if (limit := _limit(o, key)) is not None]
    expected = _limit(slo, key)
    common = None if expected is None else compare(expected)
    if not own_limits:
        return common or compare(0.0)
    parts, earlier = [], list[str]()
    for those, limit in own_limits:
        matched = workflows(slo, those)
        parts.append(f"{grouped(compare(limit))}\nand {matched}{_except(earlier)}")
        earlier.append(matched)
    rest = [] if common is None else [f"{grouped(common)}{_except(earlier)}"]
    return "\nor\n".join(f"(\n{indented(part)}\n)" for part in (*rest, *parts))


def _except(those: list[str]) -> str:
    return "".join(f"\nunless {one}" for one in those)


def grouped(expr: str) -> str:
    """In parentheses where it has parts."""
    return f"(\n{indented(expr)}\n)" if "\n" in expr else expr


def _limit(objectives: SloConfig | Override, key: str) -> float | None:
    value = getattr(objectives, key)
    if value is None and key == "rare_failures":  # who says how many failures are too many means it, rare or not
        value = objectives.consecutive_failures
    return None if value is None else float(value)


def workflows(slo: SloConfig, those: Those) -> str:
    """The workflows an override is about, as a set to match with.

    A whole source is matched by itself, so that workflows whose name nobody told are among them.
    """
    of_source = () if those.source is None else (f"source={quoted(those.source)}",)
    if those.whole_source is not None:
        return f"on ({SOURCE}) {select(catalogue.SOURCE_UP.name, slo, *of_source)}"
    tagged = [f"{name}={quoted(value)}" for name, value in those.labels.items()]
    labelled = select(catalogue.WORKFLOW_LABELS.name, slo, *of_source, *tagged) if tagged else None
    if those.pattern in (None, "*"):
        return f"on ({WORKFLOW}) {labelled or info(slo, *of_source)}"
    named = _named_so(slo, those.pattern, of_source)
    return f"on ({WORKFLOW}) {named if labelled is None else f'({named} and on ({WORKFLOW}) {labelled})'}"


def _named_so(slo: SloConfig, pattern: str, of_source: tuple[str, ...]) -> str:
    if set("*?") & set(pattern):
        expression = "".join({"*": ".*", "?": "."}.get(letter) or re.escape(letter) for letter in pattern)
        return info(slo, *of_source, f"workflow=~{quoted(expression)}")
    by_id, by_name = (info(slo, *of_source, f"{label}={quoted(pattern)}") for label in ("workflow_id", "workflow"))
    return f"({by_id} or {by_name})"


def store_is_down(slo: SloConfig) -> str:
    return f"{select(own(lambda o: o.store_up), slo)} == 0"


def stored(slo: SloConfig) -> str:
    """Only while every store works. Where nobody tells, it is taken to."""
    return f"unless on (job) {store_is_down(slo)}"


def read(slo: SloConfig) -> str:
    """Only while the source can be read, and that be stored: what is old grows older by itself."""
    return f"and on ({SOURCE}) {select(catalogue.SOURCE_UP.name, slo)} == 1\n{stored(slo)}"


def braced(expr: str) -> str:
    return f"(\n{indented(expr)}\n)" if "\n" in expr else f"({expr})"
