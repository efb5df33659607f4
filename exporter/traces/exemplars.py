"""Linking metrics to traces: once a run's trace is with the collector, the series that counted it may point to it."""

from bisect import bisect_left
from collections.abc import Iterable

from exporter.model import FAILED, Result, Run, catalogue
from exporter.model.retries import Retry
from exporter.traces.export import Exported
from exporter.view.exposition import Exemplar
from exporter.view.projection import Projection


def attach(projection: Projection, exported: Iterable[Exported]) -> None:
    """Attach the traces of these runs and retries to the series that counted them."""
    for item in exported:
        if isinstance(item.of, Retry):
            _attach_retry(projection, item, item.of)
        elif item.of.finished_at is not None:
            _attach_run(projection, item, item.of, item.of.finished_at)


def _attach_retry(projection: Projection, item: Exported, retry: Retry) -> None:
    if retry.outcome is not None:
        ids = {"trace_id": item.trace_id, "span_id": item.span_id}
        once = Exemplar(labels=ids, value=1.0, timestamp=retry.closed_at or retry.claimed_at)
        projection.retry_exemplar(item.source, (retry.policy, retry.outcome), once)


def _attach_run(projection: Projection, item: Exported, run: Run, finished_at: float) -> None:
    key = (item.source, run.workflow_id)
    result, seconds = run.result or Result.UNKNOWN, run.duration
    ids = {"trace_id": item.trace_id, "span_id": item.span_id}
    once = Exemplar(labels=ids, value=1.0, timestamp=finished_at)
    projection.exemplar(catalogue.RUNS, key, (result,), once)
    if run.error is not None and result in FAILED:
        projection.exemplar(catalogue.RUN_ERRORS, key, (run.error.error_class,), once)
    if item.dead_letter and run.error is not None:
        projection.exemplar(catalogue.DEAD_LETTERS_OPENED, key, (run.error.error_class,), once)
    if seconds is not None:
        bucket = bisect_left(catalogue.RUN_DURATION.buckets, seconds)
        timed = Exemplar(labels=ids, value=seconds, timestamp=finished_at)
        projection.exemplar(catalogue.RUN_DURATION, key, (result,), timed, bucket=bucket)
