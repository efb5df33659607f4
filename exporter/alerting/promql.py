"""Pieces of PromQL the rules are made of. Pure text; every selector has the job, every metric is one there is.

Names of metrics are read from where the metrics are made, so that renaming one breaks the build, not somebody's night.
"""

import re
from collections.abc import Callable
from functools import cache

from prometheus_client.metrics import MetricWrapperBase

from exporter.config.objectives import Override, SloConfig
from exporter.model import catalogue
from exporter.view.own import OwnMetrics

#: Labels that name a workflow, for matching with ``and``, ``or`` and ``unless``.
WORKFLOW = "job, source, workflow_id"
#: The same with the replica that says so: what ``*`` joins must not meet two of.
WORKFLOW_AT = "job, instance, source, workflow_id"
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


def seconds(duration: float) -> str:
    return f"{duration:.10g}"


def info(slo: SloConfig, *matchers: str) -> str:
    return select(catalogue.WORKFLOW_INFO.name, slo, *matchers)


def named(expr: str, slo: SloConfig, *, of: str, replica: bool = True) -> str:
    """``expr`` with the workflow's name as a label; without it where nobody told the name, but never dropped.

    ``of``: series that are there whenever ``expr`` is. ``replica``: whether they still have the label instance.
    """
    names, labels = info(slo), WORKFLOW_AT
    if not replica:
        names, labels = f"max without (instance, pod) ({names})", WORKFLOW
    return (
        f"(\n{indented(expr)}\n)\n* on ({labels}) group_left (workflow) (\n"
        f"  {names}\n  or on ({labels})\n  group by ({labels}) ({of})\n)"
    )


def indented(text: str) -> str:
    return "\n".join("  " + line for line in text.splitlines())


def by_objective(slo: SloConfig, key: str, compare: Callable[[float], str]) -> str:
    """``compare`` with the objective ``key`` of every workflow: the first override that fits, else the common one."""
    own_limits = [(place, limit) for place, o in slo.workflows.items() if (limit := _limit(o, key)) is not None]
    common = compare(_limit(slo, key) or 0.0)
    if not own_limits:
        return common
    parts, earlier = [], list[str]()
    for place, limit in own_limits:
        those = workflows(slo, place)
        parts.append(f"{compare(limit)}\nand {those}{_except(earlier)}")
        earlier.append(those)
    return "\nor\n".join(f"(\n{indented(part)}\n)" for part in (f"{common}{_except(earlier)}", *parts))


def _except(those: list[str]) -> str:
    return "".join(f"\nunless {one}" for one in those)


def _limit(objectives: SloConfig | Override, key: str) -> float | None:
    value = getattr(objectives, key)
    return None if value is None else float(value)


def workflows(slo: SloConfig, place: str) -> str:
    """The workflows that ``source/id``, ``source/pattern`` or ``source/*`` is about, as a set to match with.

    A whole source is matched by itself, so that workflows whose name nobody told are among them.
    """
    source, _, pattern = place.partition("/")
    of_source = f"source={quoted(source)}"
    if pattern == "*":
        return f"on ({SOURCE}) {select(catalogue.SOURCE_UP.name, slo, of_source)}"
    if set("*?") & set(pattern):
        expression = "".join({"*": ".*", "?": "."}.get(letter) or re.escape(letter) for letter in pattern)
        return f"on ({WORKFLOW}) {info(slo, of_source, f'workflow=~{quoted(expression)}')}"
    by_id, by_name = (info(slo, of_source, f"{label}={quoted(pattern)}") for label in ("workflow_id", "workflow"))
    return f"on ({WORKFLOW}) ({by_id} or {by_name})"
