"""What the gauges of a workflow say, from what is known of it. Pure."""

from collections.abc import Collection, Iterator

from exporter.model import SUCCEEDED, ErrorClass, Result, State, catalogue
from exporter.model.catalogue import Metric
from exporter.model.fold import WorkflowEntry
from exporter.view.known import SourceWorld

LabelValues = tuple[str, ...]
Reading = tuple[Metric, LabelValues, float]  # labels after platform, source, workflow_id


def readings(
    entry: WorkflowEntry, world: SourceWorld, *, listed: Collection[State], labels: LabelValues = ()
) -> Iterator[Reading]:
    """What the gauges of a workflow say now; what is unknown is not there.

    ``listed`` are the states of unfinished runs that the platform can list, ``labels`` the values of those configured.
    """
    w = entry.workflow
    if w.at > 0:
        yield catalogue.WORKFLOW_INFO, (w.name or w.id, w.workspace or "", w.trigger or ""), 1.0
    if any(labels):
        yield catalogue.WORKFLOW_LABELS, labels, 1.0
    if w.enabled is not None:
        yield catalogue.WORKFLOW_ENABLED, (), float(w.enabled)
    if w.blocked is not None:
        yield catalogue.WORKFLOW_BLOCKED, (w.blocked,), 1.0
    if w.next_run_at is not None:
        yield catalogue.WORKFLOW_NEXT_RUN, (), w.next_run_at
    for result, ended_at in entry.last_ended:
        yield catalogue.WORKFLOW_LAST_RUN, (result,), ended_at
    if Result.SUCCESS not in w.uncounted or entry.last(SUCCEEDED) is not None:  # else nothing could end a streak
        yield catalogue.WORKFLOW_FAILURES, (), float(entry.failures)
    yield from _open_runs(world, w.id, listed)
    yield from _open_dead_letters(world, w.id)
    queue = world.queues.get(w.id)
    if queue is not None:
        yield catalogue.QUEUE_ITEMS, (), queue.items
        if queue.limit is not None:
            yield catalogue.QUEUE_LIMIT, (), queue.limit


def _open_runs(world: SourceWorld, workflow_id: str, listed: Collection[State]) -> Iterator[Reading]:
    runs = world.runs_of(workflow_id)
    for state in (State.PENDING, State.RUNNING):
        of_state = [run for run in runs if run.state is state]
        if of_state or state in listed:
            yield catalogue.RUNS_ACTIVE, (state,), float(len(of_state))
        since = [
            moment
            for run in of_state
            if (moment := run.attempt_started_at if state is State.RUNNING else run.queued_at) is not None
        ]
        if since:
            yield catalogue.RUN_OLDEST_ACTIVE, (state,), min(since)


def _open_dead_letters(world: SourceWorld, workflow_id: str) -> Iterator[Reading]:
    letters = world.dead_letters_of(workflow_id)
    counts: dict[ErrorClass, int] = {ErrorClass.UNKNOWN: 0}
    for letter in letters:
        error_class = letter.error.error_class if letter.error else ErrorClass.UNKNOWN
        counts[error_class] = counts.get(error_class, 0) + 1
    for error_class, count in counts.items():
        yield catalogue.DEAD_LETTERS, (error_class,), float(count)
    if letters:
        yield catalogue.DEAD_LETTER_OLDEST, (), min(letter.opened_at for letter in letters)
