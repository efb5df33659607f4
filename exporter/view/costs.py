"""Which series are there from the beginning, and what they cost: lines of a scrape, to be known before they are shown.

Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from msgspec import structs

from exporter.model import FAILED, ErrorClass, Result, Workflow, catalogue
from exporter.model.catalogue import Metric
from exporter.model.fold import WorkflowEntry
from exporter.model.labels import NO_LABELS, Labels
from exporter.model.policy import Policy, SourceRules
from exporter.model.rails import GateState
from exporter.model.retries import Action, Outcome, Reason
from exporter.platform import Platform
from exporter.view.known import SourceWorld
from exporter.view.readings import LabelValues, readings


def counted(platform: Platform, *, events: bool, error_classes: Literal["all", "seen"]) -> Platform:
    """The platform as the counters of one source show it: with the error classes that exist from the beginning.

    ``events``: webhooks reach the source. A class that is not among them has a counter from its first error on.
    """
    if error_classes == "seen":
        return replace(platform, error_classes=())
    if events or platform.error_classes_read is None:
        return platform
    return replace(platform, error_classes=platform.error_classes_read)


def births(platform: Platform, workflow: Workflow | None = None) -> list[tuple[Metric, LabelValues]]:
    """The counters a workflow has from the beginning: whatever can happen to it on this platform, and be counted."""
    results = [result for result in platform.results if workflow is None or result not in workflow.uncounted]
    error_classes = platform.error_classes if FAILED.intersection(results) else ()
    born: list[tuple[Metric, LabelValues]] = [
        *((catalogue.RUNS, (result,)) for result in results),
        *((catalogue.RUN_ERRORS, (error_class,)) for error_class in error_classes),
        *((catalogue.DEAD_LETTERS_OPENED, (error_class,)) for error_class in error_classes),
        *((catalogue.DEAD_LETTERS_RESOLVED, (by,)) for by in platform.resolved_by),
    ]
    if "operations" in platform.measures:
        born.append((catalogue.RUN_OPERATIONS, ()))
    if "transfer" in platform.measures:
        born += [(catalogue.RUN_TRANSFER, ("in",)), (catalogue.RUN_TRANSFER, ("out",))]
    return born


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesOf:
    """Lines of a scrape that a platform's workflows cost."""

    workflow: int  # one of them, from its discovery
    result: int  # more for each result that a run of it ended with

    def with_results(self, results: int) -> int:
        """One workflow whose runs ended with so many results."""
        return self.workflow + results * self.result


def series_of(platform: Platform, labels: Labels = NO_LABELS) -> SeriesOf:
    """What workflows cost from their discovery, none of them blocked and nothing open, and with each result.

    ``labels`` of their source: where there are any, each has one more series.
    """
    found = WorkflowEntry(workflow=Workflow(id="w", at=1.0, enabled=True), found_at=1.0)
    ended = structs.replace(found, last_ended=((Result.SUCCESS, 1.0),))
    world = SourceWorld("")
    names = tuple(labels.names())
    gauges, more = (
        sum(1 for _ in readings(each, world, listed=platform.lists_active, labels=names)) for each in (found, ended)
    )
    duration = len(catalogue.RUN_DURATION.buckets) + 3
    return SeriesOf(workflow=len(births(platform)) + gauges, result=more - gauges + duration)


def retry_births(policies: Sequence[Policy]) -> list[tuple[Metric, LabelValues]]:
    """The counters of retrying a source has from the beginning, with their labels after platform and source."""
    born: list[tuple[Metric, LabelValues]] = []
    for policy in policies:
        match policy.action:
            case Action.RETRY:
                born.append((catalogue.RETRIES_SHADOW, (policy.name,)))
                born += [(catalogue.RETRIES, (policy.name, outcome)) for outcome in Outcome]
                reasons = [Reason.EXHAUSTED, Reason.HELD]
            case Action.ESCALATE | Action.QUARANTINE:
                reasons = [Reason.POLICY]
            case _:
                reasons = []
        born += [(catalogue.RETRY_ESCALATIONS, (policy.name, reason)) for reason in reasons]
    return born


def series_of_retries(policies: Sequence[Policy], rules: SourceRules) -> int:
    """What retrying costs a source, while none is open and nothing has been decided."""
    gates = len(GateState) * sum(1 for policy in policies if policy.action is Action.RETRY)
    configured = [one for one in (rules.budget, rules.storm) if one is not None]
    return len(retry_births(policies)) + gates + len(configured) + _OF_EVERY_SOURCE


#: Mode, paused, lowered, groups of dead letters.
_OF_EVERY_SOURCE = 4


def lines_set_aside(platform: Platform) -> int:
    """What a source and its ``__other__`` need, a policy or two included."""
    duration, delay = len(catalogue.RUN_DURATION.buckets) + 3, len(catalogue.DETECTION_DELAY.buckets) + 3
    age = len(catalogue.DEAD_LETTER_RESOLUTION.buckets) + 3
    others = len(births(platform)) + (len(Result) + 1) * (duration + 1) + len(ErrorClass) + 4
    return others + 9 + 3 * delay + len(platform.resolved_by) * age + 48
