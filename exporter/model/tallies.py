"""From changes to tallies: durable totals that only rise. Pure.

A tally is named by metric, source, workflow ("" where the metric has none), the metric's further label values and a
part: ``SUM`` for a counter's total or a histogram's sum, else the index of a histogram's bucket.
"""

from bisect import bisect_left
from collections.abc import Iterable

from exporter.model import (
    Change,
    DeadLetterOpened,
    DeadLetterResolved,
    RunCorrected,
    RunFailed,
    RunFinished,
    RunQueued,
    RunTimed,
    RunUsed,
    StepFinished,
    catalogue,
)
from exporter.model.catalogue import Metric

#: metric, source, workflow_id, further label values, part
TallyKey = tuple[str, str, str, tuple[str, ...], int]
Tallies = dict[TallyKey, float]

SUM = -1
#: A finish counted this many seconds after it happened is late.
LATE_AFTER = 600.0


def tally(changes: Iterable[Change], *, source: str, into: Tallies) -> None:
    """Add what these changes of one source are worth."""

    def count(metric: Metric, workflow_id: str, *labels: str, by: float = 1.0) -> None:
        key = (metric.name, source, workflow_id, labels, SUM)
        into[key] = into.get(key, 0.0) + by

    def observe(metric: Metric, workflow_id: str, *labels: str, value: float) -> None:
        count(metric, workflow_id, *labels, by=value)
        key = (metric.name, source, workflow_id, labels, bisect_left(metric.buckets, value))
        into[key] = into.get(key, 0.0) + 1.0

    for change in changes:
        match change:
            case RunFinished(run=run, result=result, via=via, delay=delay):
                count(catalogue.RUNS, run.workflow_id, result)
                count(catalogue.RUNS_OBSERVED, "", via)
                observe(catalogue.DETECTION_DELAY, "", via, value=delay)
                if delay > LATE_AFTER:
                    count(catalogue.RECONCILED, "", "late")
            case RunTimed(run=run, result=result, seconds=seconds):
                observe(catalogue.RUN_DURATION, run.workflow_id, result, value=seconds)
            case RunQueued(run=run, seconds=seconds):
                observe(catalogue.RUN_QUEUE_DURATION, run.workflow_id, value=seconds)
            case RunFailed(run=run, error=error):
                count(catalogue.RUN_ERRORS, run.workflow_id, error.error_class)
            case RunUsed(run=run):
                if change.operations:
                    count(catalogue.RUN_OPERATIONS, run.workflow_id, by=change.operations)
                if change.bytes_in:
                    count(catalogue.RUN_TRANSFER, run.workflow_id, "in", by=change.bytes_in)
                if change.bytes_out:
                    count(catalogue.RUN_TRANSFER, run.workflow_id, "out", by=change.bytes_out)
            case StepFinished(run=run, step=step):
                count(catalogue.STEPS, run.workflow_id, step.type, step.result or "unknown")
                if step.started_at is not None and step.ended_at is not None and step.ended_at >= step.started_at:
                    observe(catalogue.STEP_DURATION, "", step.type, value=step.ended_at - step.started_at)
            case RunCorrected():
                count(catalogue.RECONCILED, "", "corrected")
            case DeadLetterOpened(dead_letter=letter, error_class=error_class):
                count(catalogue.DEAD_LETTERS_OPENED, letter.workflow_id, error_class)
            case DeadLetterResolved(dead_letter=letter, by=by):
                count(catalogue.DEAD_LETTERS_RESOLVED, letter.workflow_id, by)
                if letter.resolved_at is not None:
                    age = max(0.0, letter.resolved_at - letter.opened_at)
                    observe(catalogue.DEAD_LETTER_RESOLUTION, "", by, value=age)
