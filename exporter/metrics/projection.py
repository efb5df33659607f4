"""The metrics as a projection of the ledger: a pure consequence of tallies and world, kept up to date as commits come
in.

A scrape only reads what stands here. A workflow's series live as long as the workflow: born at 0 when it is found,
removed together when it is gone. Beyond ``series_max`` lines, workflows newly found are shown together as
``__other__``, result kept.
"""

from collections import Counter as Count
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, cast

from exporter.fold import WorkflowEntry
from exporter.metrics import catalogue
from exporter.metrics.exposition import Counter, Exemplar, Gauge, Histogram, Metric, Registry
from exporter.model import ErrorClass, Result, State
from exporter.platform import Platform
from exporter.retries.model import Mode, Outcome, Retry
from exporter.store.ingest import Key
from exporter.tallies import SUM, Tallies, TallyKey
from exporter.world import SourceWorld, World

OTHER = "__other__"

#: Gauges that still mean something summed over the workflows shown as ``__other__``.
_SUMMED = frozenset({catalogue.RUNS_ACTIVE.name, catalogue.DEAD_LETTERS.name, catalogue.QUEUE_ITEMS.name})

Labels = tuple[str, ...]
Reading = tuple[Metric, Labels, float]  # labels after platform, source, workflow_id


def _family(metric: Metric) -> Gauge | Counter | Histogram:
    match metric.type:
        case "gauge":
            return Gauge(metric)
        case "counter":
            return Counter(metric)
        case "histogram":
            return Histogram(metric)


class Projection:
    """Series of the ledger. All methods are called on the event loop, in the order of the commits."""

    def __init__(
        self,
        platforms: Mapping[str, Platform],
        *,
        series_max: int,
        on_folded: Callable[[Key], None] = lambda key: None,
    ) -> None:
        """``platforms`` by source.

        ``on_folded`` is told of a workflow that will be shown as ``__other__`` from now on.
        """
        self._platforms = platforms
        self._series_max = series_max
        self._on_folded = on_folded
        self._families = {metric.name: _family(metric) for metric in catalogue.CATALOGUE}
        self.registry = Registry(list(self._families.values()))
        self._totals: Tallies = {}
        self._shown: dict[Key, str] = {}  # workflow -> its id, or OTHER
        self._gauges: dict[Key, dict[tuple[str, Labels], float]] = {}  # what each workflow's gauges say now
        self._retries: dict[str, set[Labels]] = {}  # policies and states each source has shown open retries in

    # What is shown

    def load(self, world: World, tallies: Tallies) -> None:
        """Start from the ledger. Workflows in the order they were found, so that the same ones are folded as before."""
        for source in world.sources:
            if source in self._platforms:
                self._open_source(source)
        self._totals = {tally: value for tally, value in tallies.items() if tally[1] in self._platforms}
        found = [((w.source, e.workflow.id), e) for w in world.sources.values() for e in w.entries.values()]
        for key, entry in sorted(found, key=lambda item: (item[1].found_at, item[0])):
            if entry.folded:
                self._shown[key] = OTHER
            if entry.folded or entry.gone_at is None:
                self._show(key)
        by_workflow: dict[Key, list[TallyKey]] = {}
        for tally in self._totals:
            by_workflow.setdefault((tally[1], tally[2]), []).append(tally)
        for key, keys in by_workflow.items():
            if key in self._shown or not key[1]:
                self._add({k: self._totals[k] for k in keys})
        for key, entry in found:
            if entry.gone_at is None:
                self._refresh(key, world.sources[key[0]])

    def apply(self, touched: Iterable[Key], tallies: Tallies, world: World) -> None:
        """Follow one commit: ``touched`` workflows are read again, ``tallies`` are added."""
        for tally, delta in tallies.items():
            self._totals[tally] = self._totals.get(tally, 0.0) + delta
        ordered, fresh = sorted(touched), set[Key]()
        for key in ordered:
            entry = world.sources[key[0]].entries.get(key[1])
            if entry is not None and entry.gone_at is None and key not in self._shown:
                self._show(key)
                fresh.add(key)
        if fresh:
            self._add({k: v for k, v in self._totals.items() if (k[1], k[2]) in fresh})
            tallies = {k: v for k, v in tallies.items() if (k[1], k[2]) not in fresh}
        self._add(tallies)
        for key in ordered:
            self._refresh(key, world.sources[key[0]])

    def set_up(self, source: str, up: bool) -> None:
        self._gauge(catalogue.SOURCE_UP).set((self._platforms[source].name, source), float(up))

    def refresh_usage(self, world: SourceWorld) -> None:
        """Show a source's usage as last read."""
        for kind, usage in world.usage.items():
            labels = (self._platforms[world.source].name, world.source, kind)
            for metric, value in ((catalogue.USAGE, usage.used), (catalogue.USAGE_LIMIT, usage.limit)):
                if value is None:
                    self._gauge(metric).remove(labels)
                else:
                    self._gauge(metric).set(labels, value)

    def open_retries(self, source: str, policies: Iterable[str]) -> None:
        """Give the retries of these policies their counters at 0."""
        labels = (self._platforms[source].name, source)
        for policy in policies:
            self._counter(catalogue.RETRIES_SHADOW).touch((*labels, policy))
            for outcome in Outcome:
                self._counter(catalogue.RETRIES).touch((*labels, policy, outcome))

    def show_retries(self, source: str, *, mode: Mode, paused: bool, retries: Iterable[Retry]) -> None:
        """Show the mode of a source and its open ``retries`` as they are now."""
        for each in Mode:
            if each is mode:
                self._gauge(catalogue.RETRY_MODE).set((source, each), 1.0)
            else:
                self._gauge(catalogue.RETRY_MODE).remove((source, each))
        self._gauge(catalogue.RETRY_PAUSED).set((source,), float(paused))
        now = Count[Labels]((retry.policy, retry.state) for retry in retries)
        shown = self._retries.setdefault(source, set())
        prefix = (self._platforms[source].name, source)
        for labels in shown | now.keys():  # once shown, a state without retries is 0
            self._gauge(catalogue.RETRIES_OPEN).set((*prefix, *labels), float(now[labels]))
        shown.update(now)

    def exemplar(
        self, metric: Metric, key: Key, labels: Labels, exemplar: Exemplar, *, bucket: int | None = None
    ) -> None:
        """Attach a trace to a series of a workflow, if it is shown."""
        shown = self._shown.get(key)
        if shown is None:
            return
        family, full = self._families[metric.name], (self._platforms[key[0]].name, key[0], shown, *labels)
        if full not in family:
            return
        if isinstance(family, Histogram) and bucket is not None:
            family.exemplar(full, bucket, exemplar)
        elif isinstance(family, Counter):
            family.exemplar(full, exemplar)

    def retry_exemplar(self, source: str, labels: Labels, exemplar: Exemplar) -> None:
        """Attach a trace to the series that counted a retry."""
        full = (self._platforms[source].name, source, *labels)
        if full in self._counter(catalogue.RETRIES):
            self._counter(catalogue.RETRIES).exemplar(full, exemplar)

    def runs_counted(self) -> float:
        """Finished runs counted so far, over all sources."""
        return sum(value for key, value in self._totals.items() if key[0] == catalogue.RUNS.name)

    # How it is kept

    def _open_source(self, source: str) -> None:
        labels = (self._platforms[source].name, source)
        for via in ("poll", "webhook", "backfill"):
            self._counter(catalogue.RUNS_OBSERVED).touch((*labels, via))
        for kind in ("missed_webhook", "corrected", "late"):
            self._counter(catalogue.RECONCILED).touch((*labels, kind))

    def _show(self, key: Key) -> None:
        """Decide under which id a workflow is shown, and give it its counters at 0."""
        platform = self._platforms[key[0]]
        births: list[tuple[Metric, Labels]] = [
            *((catalogue.RUNS, (result,)) for result in platform.results),
            *((catalogue.RUN_ERRORS, (error_class,)) for error_class in platform.error_classes),
            *((catalogue.DEAD_LETTERS_OPENED, (error_class,)) for error_class in platform.error_classes),
            *((catalogue.DEAD_LETTERS_RESOLVED, (by,)) for by in platform.resolved_by),
        ]
        if "operations" in platform.measures:
            births.append((catalogue.RUN_OPERATIONS, ()))
        if "transfer" in platform.measures:
            births += [(catalogue.RUN_TRANSFER, ("in",)), (catalogue.RUN_TRANSFER, ("out",))]
        if key not in self._shown:
            if self.registry.series() + len(births) > self._series_max:
                self._shown[key] = OTHER
                self._on_folded(key)
            else:
                self._shown[key] = key[1]
        for metric, labels in births:
            self._counter(metric).touch((platform.name, key[0], self._shown[key], *labels))

    def _add(self, tallies: Tallies) -> None:
        """Add tallies of shown workflows, and of sources, to their series."""
        for (name, source, workflow_id, labels, part), value in tallies.items():
            metric_labels = self._labels(source, workflow_id, labels)
            if metric_labels is None:
                continue
            family = self._families[name]
            if isinstance(family, Counter):
                family.add(metric_labels, value)
            elif isinstance(family, Histogram):
                if part == SUM:
                    family.add(metric_labels, 0, 0.0, sum=value)
                else:
                    family.add(metric_labels, part, value, sum=0.0)

    def _labels(self, source: str, workflow_id: str, labels: Labels) -> Labels | None:
        platform = self._platforms[source].name
        if not workflow_id:
            return (platform, source, *labels)
        shown = self._shown.get((source, workflow_id))
        return None if shown is None else (platform, source, shown, *labels)

    def _refresh(self, key: Key, world: SourceWorld) -> None:
        """Bring the gauges of one workflow to what the world says, removing what is not so any more."""
        entry = world.entries.get(key[1])
        if entry is None or key not in self._shown:
            return
        if entry.gone_at is not None and self._shown[key] != OTHER:
            self.registry.remove_matching(source=key[0], workflow_id=key[1])
            self._shown.pop(key, None)
            self._gauges.pop(key, None)
            return
        listed = self._platforms[key[0]].lists_active
        told = () if entry.gone_at is not None else readings(entry, world, listed=listed)
        now = {(metric.name, labels): value for metric, labels, value in told}
        before = self._gauges.get(key, {})
        if self._shown[key] == OTHER:
            now = {k: v for k, v in now.items() if k[0] in _SUMMED}
            self._refresh_other(key, before, now)
        else:
            prefix = (self._platforms[key[0]].name, key[0], key[1])
            for reading, value in now.items():
                if before.get(reading) != value:
                    self._named_gauge(reading[0]).set((*prefix, *reading[1]), value)
            for name, labels in before.keys() - now.keys():
                self._named_gauge(name).remove((*prefix, *labels))
        self._gauges[key] = now

    def _refresh_other(self, key: Key, before: Mapping[Any, float], now: Mapping[Any, float]) -> None:
        prefix = (self._platforms[key[0]].name, key[0], OTHER)
        for name, labels in before.keys() | now.keys():
            family, full = self._named_gauge(name), (*prefix, *labels)
            change = now.get((name, labels), 0.0) - before.get((name, labels), 0.0)
            family.set(full, (family.get(full) or 0.0) + change)

    def _gauge(self, metric: Metric) -> Gauge:
        return self._named_gauge(metric.name)

    def _named_gauge(self, name: str) -> Gauge:
        return cast(Gauge, self._families[name])

    def _counter(self, metric: Metric) -> Counter:
        return cast(Counter, self._families[metric.name])


def readings(entry: WorkflowEntry, world: SourceWorld, *, listed: Collection[State]) -> Iterator[Reading]:
    """What the gauges of a workflow say now; what is unknown is not there.

    ``listed`` are the states of unfinished runs that the platform can list.
    """
    w = entry.workflow
    if w.at > 0:
        yield catalogue.WORKFLOW_INFO, (w.name or w.id, w.workspace or "", w.trigger or ""), 1.0
    if w.enabled is not None:
        yield catalogue.WORKFLOW_ENABLED, (), float(w.enabled)
    if w.blocked is not None:
        yield catalogue.WORKFLOW_BLOCKED, (w.blocked,), 1.0
    if w.next_run_at is not None:
        yield catalogue.WORKFLOW_NEXT_RUN, (), w.next_run_at
    for result, ended_at in entry.last_ended:
        yield catalogue.WORKFLOW_LAST_RUN, (result,), ended_at
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


__all__ = ["OTHER", "Projection", "Result", "readings"]
