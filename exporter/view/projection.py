"""The metrics as a projection of the ledger: a pure consequence of tallies and world, kept up to date as commits come
in.

A scrape only reads what stands here. A workflow's series live as long as the workflow: born at 0 when it is found,
removed together when it is gone. There are never more than ``series_max`` lines (``metrics.room``): workflows for which
there is no room are shown together as ``__other__``, result kept, the types of their steps not. A series for which
there is none later on is absent; its total stays in the ledger, and is shown whole once there is room.
"""

from collections import Counter as Count
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from exporter.model import ErrorClass, Result, Unit, Workflow, catalogue
from exporter.model.catalogue import Metric
from exporter.model.fold import WorkflowEntry
from exporter.model.groups import group_id
from exporter.model.labels import NO_LABELS, Labels, exposed, exposed_names
from exporter.model.ledger import Committed, Key
from exporter.model.policy import Policy
from exporter.model.rails import GateState
from exporter.model.repairs import RepairAction, RepairOutcome
from exporter.model.retries import Action, Mode, Retry
from exporter.model.tallies import SUM, Tallies, TallyKey
from exporter.platform import Platform
from exporter.view.costs import births, lines_set_aside, retry_births
from exporter.view.exposition import Counter, Exemplar, Gauge, Histogram, Registry
from exporter.view.known import SourceWorld, World
from exporter.view.readings import LabelValues, readings
from exporter.view.room import Room

OTHER = "__other__"

#: Gauges that still mean something summed over the workflows shown as ``__other__``.
_SUMMED = frozenset({catalogue.RUNS_ACTIVE.name, catalogue.DEAD_LETTERS.name, catalogue.QUEUE_ITEMS.name})

#: Of the sources themselves, and few: room is set aside for them.
_OF_SOURCES = (
    catalogue.SOURCE_UP,
    catalogue.RUNS_OBSERVED,
    catalogue.RECONCILED,
    catalogue.DETECTION_DELAY,
    catalogue.DEAD_LETTER_RESOLUTION,
    catalogue.RETRY_MODE,
    catalogue.RETRY_PAUSED,
    catalogue.RETRY_LOWERED,
    catalogue.RETRY_STORM,
    catalogue.RETRY_BUDGET,
    catalogue.RETRY_GATES,
    catalogue.RETRY_ESCALATIONS,
    catalogue.DEAD_LETTER_GROUPS,
    catalogue.RETRIES,
    catalogue.RETRIES_SHADOW,
    catalogue.RETRIES_OPEN,
    catalogue.REPAIRS,
)
_SET_ASIDE = frozenset(metric.name for metric in _OF_SOURCES)


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
        selects: Callable[[str, Workflow], bool] = lambda source, workflow: True,
        labels: Mapping[str, Labels] | None = None,
    ) -> None:
        """``platforms`` and ``labels`` by source.

        ``on_folded`` is given a workflow that will be shown as ``__other__`` from now on. ``selects`` says whether a
        source still watches a workflow: one that the config excludes is not shown, even though the ledger knows it.
        """
        self._platforms = platforms
        self._selects = selects
        self._room = Room(series_max, aside=sum(map(lines_set_aside, platforms.values())))
        self._on_folded = on_folded
        self._labels_of = labels or {}
        self._label_names = exposed_names(self._labels_of.values())
        self._families = {metric.name: _family(metric) for metric in catalogue.CATALOGUE}
        given = catalogue.WORKFLOW_LABELS
        given = replace(given, labels=(*given.labels, *self._label_names))
        self._families[given.name] = _family(given)
        self.registry = Registry(list(self._families.values()))
        self.hidden: set[str] = set()  # sources that another replica exposes
        self._totals: Tallies = {}
        self._shown: dict[Key, str] = {}  # workflow -> its id, or OTHER
        self._uncounted: dict[Key, tuple[Result, ...]] = {}  # of each shown workflow, as its counters show it
        self._gauges: dict[Key, dict[tuple[str, LabelValues], float]] = {}  # what each workflow's gauges say now
        self._retrying: set[str] = set()  # policies that retry
        self._groups: dict[str, dict[str, str]] = {}  # by source: the group of each open dead letter
        self._grouped: dict[str, Count[str]] = {}  # and how many each has
        self._retries: dict[str, set[LabelValues]] = {}  # policies and states each source has shown open retries in

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
                self._show(key, world.sources[key[0]])
            elif entry.gone_at is None and self._selects(key[0], entry.workflow):
                self._show(key, world.sources[key[0]])
        by_workflow: dict[Key, list[TallyKey]] = {}
        for tally in self._totals:
            by_workflow.setdefault((tally[1], tally[2]), []).append(tally)
        for key, keys in by_workflow.items():
            if key in self._shown or not key[1]:
                self._add({k: self._totals[k] for k in keys})
        for key, entry in found:
            if entry.gone_at is None:
                self._refresh(key, world.sources[key[0]])
        for known in world.sources.values():
            if known.source in self._platforms:
                for letter in known.dead_letters.values():
                    self._group(known.source, letter.id, group_id(known.source, letter))
                self._show_groups(known)

    def follow(self, committed: Committed, touched: Iterable[Key], world: World) -> None:
        """Follow one commit that the world knows of already: ``touched`` are its workflows."""
        self.apply(touched, committed.tallies, world)
        for source in {outcome.batch.source for outcome in committed.outcomes}:
            self.refresh_usage(world.sources[source])
        for (source, letter_id), entry in committed.dead_letters.items():
            letter = entry.dead_letter
            self._group(source, letter_id, group_id(source, letter) if letter.is_open else None)
        for source in {source for source, _ in committed.dead_letters} | committed.first_sweeps.keys():
            self._show_groups(world.sources[source])

    def apply(self, touched: Iterable[Key], tallies: Tallies, world: World) -> None:
        """Follow one commit: ``touched`` workflows are read again, ``tallies`` are added."""
        for tally, delta in tallies.items():
            self._totals[tally] = self._totals.get(tally, 0.0) + delta
        ordered, fresh = sorted(touched), set[Key]()
        for key in ordered:
            entry = world.sources[key[0]].entries.get(key[1])
            if entry is None or entry.gone_at is not None or key in self._shown:
                continue
            if self._selects(key[0], entry.workflow):
                self._show(key, world.sources[key[0]])
                fresh.add(key)
        if fresh:
            self._add({k: v for k, v in self._totals.items() if (k[1], k[2]) in fresh})
            tallies = {k: v for k, v in tallies.items() if (k[1], k[2]) not in fresh}
        self._add(tallies)
        for key in ordered:
            self._refresh(key, world.sources[key[0]])

    def set_up(self, source: str, up: bool) -> None:
        self._set(catalogue.SOURCE_UP.name, (self._platforms[source].name, source), float(up))

    def refresh_usage(self, world: SourceWorld) -> None:
        """Show a source's usage as last read."""
        of = (self._platforms[world.source].name, world.source)
        for kind, usage in world.usage.items():
            unit = usage.unit
            before = f"{kind}_{unit}" if unit in (Unit.BYTES, Unit.SECONDS) else kind  # as the mixed families name it
            for metric, labels, value in (
                (catalogue.USED[unit], (*of, kind), usage.used),
                (catalogue.ALLOWED[unit], (*of, kind), usage.limit),
                (catalogue.USAGE, (*of, before), usage.used),
                (catalogue.USAGE_LIMIT, (*of, before), usage.limit),
            ):
                if value is None:
                    self._unset(metric.name, labels)
                else:
                    self._set(metric.name, labels, value)

    def open_retries(self, source: str, policies: Sequence[Policy]) -> None:
        """Give the retries and escalations of these policies their counters at 0."""
        self._retrying = {policy.name for policy in policies if policy.action is Action.RETRY}
        for metric, labels in retry_births(policies):
            self._touch(metric, (self._platforms[source].name, source, *labels))

    def open_repairs(self, source: str, actions: Iterable[RepairAction]) -> None:
        """Give the repairs that a source grants their counters at 0."""
        for action in actions:
            for outcome in RepairOutcome:
                self._touch(catalogue.REPAIRS, (self._platforms[source].name, source, action, outcome))

    def show_retry_mode(self, source: str, *, mode: Mode, paused: bool, lowered: bool) -> None:
        """Show how far retrying may go for a source now."""
        of = (self._platforms[source].name, source)
        for each in Mode:
            if each is not mode:
                self._unset(catalogue.RETRY_MODE.name, (*of, each))
        self._set(catalogue.RETRY_MODE.name, (*of, mode), 1.0)
        self._set(catalogue.RETRY_PAUSED.name, of, float(paused))
        self._set(catalogue.RETRY_LOWERED.name, of, float(lowered))

    def show_rails(
        self,
        source: str,
        *,
        storm: bool | None,
        tokens: float | None,
        gates: Mapping[tuple[str, GateState], int] | None,
    ) -> None:
        """Show what holds retries of a source back now; what is None is not configured, or not known yet."""
        of = (self._platforms[source].name, source)
        if storm is not None:
            self._set(catalogue.RETRY_STORM.name, of, float(storm))
        if tokens is not None:
            self._set(catalogue.RETRY_BUDGET.name, of, tokens)
        if gates is not None:
            for policy in self._retrying:
                for state in GateState:
                    count = gates.get((policy, state), 0)
                    self._set(catalogue.RETRY_GATES.name, (*of, policy, state), float(count))

    def show_open_retries(self, source: str, retries: Iterable[Retry]) -> None:
        """Show the open ``retries`` of a source as they are now."""
        now = Count[LabelValues]((retry.policy, retry.state) for retry in retries)
        shown = self._retries.setdefault(source, set())
        prefix = (self._platforms[source].name, source)
        for labels in shown | now.keys():  # once shown, a state without retries is 0
            self._set(catalogue.RETRIES_OPEN.name, (*prefix, *labels), float(now[labels]))
        shown.update(now)

    def exemplar(
        self, metric: Metric, key: Key, labels: LabelValues, exemplar: Exemplar, *, bucket: int | None = None
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

    def retry_exemplar(self, source: str, labels: LabelValues, exemplar: Exemplar) -> None:
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
            self._touch(catalogue.RUNS_OBSERVED, (*labels, via))
        for kind in ("missed_webhook", "corrected", "late"):
            self._touch(catalogue.RECONCILED, (*labels, kind))

    def _group(self, source: str, letter_id: str, group: str | None) -> None:
        """Keep count of the groups of a source; None: the dead letter is in none any more."""
        of, members = self._groups.setdefault(source, {}), self._grouped.setdefault(source, Count())
        before = of.pop(letter_id, None)
        if before is not None:
            members[before] -= 1
            if not members[before]:
                del members[before]
        if group is not None:
            of[letter_id] = group
            members[group] += 1

    def _show_groups(self, world: SourceWorld) -> None:
        if world.first_sweep_at is not None:
            labels = (self._platforms[world.source].name, world.source)
            self._set(catalogue.DEAD_LETTER_GROUPS.name, labels, float(len(self._grouped.get(world.source, ()))))

    def _show(self, key: Key, world: SourceWorld) -> None:
        """Decide under which id a workflow is shown, and give it its counters at 0."""
        platform, entry = self._platforms[key[0]], world.entries[key[1]]
        born = births(platform, entry.workflow)
        if key not in self._shown:
            # Whoever is called so by the platform is among the others from the beginning.
            gauges = sum(
                1 for _ in readings(entry, world, listed=platform.lists_active, labels=self._given(entry, key[0]))
            )
            if key[1] != OTHER and self._room.promise(key, len(born) + gauges):
                self._shown[key] = key[1]
            else:
                self._shown[key] = OTHER
                self._on_folded(key)
        for metric, labels in born:
            self._touch(metric, (platform.name, key[0], self._shown[key], *labels))
        self._uncounted[key] = entry.workflow.uncounted

    def _follow_uncounted(self, key: Key, workflow: Workflow) -> None:
        """Bring a workflow's counters to what can be counted now: of what cannot there is none, unless it counted."""
        if workflow.uncounted == self._uncounted.get(key, ()):
            return
        self._uncounted[key] = workflow.uncounted
        platform = self._platforms[key[0]]
        born = set(births(platform, workflow))
        for metric, labels in births(platform):
            full, family = (platform.name, *key, *labels), self._counter(metric)
            if (metric, labels) in born:
                self._touch(metric, full)
            elif not family.get(full) and family.remove(full):
                self._room.give_back(1, aside=False)

    def _add(self, tallies: Tallies) -> None:
        """Add tallies of shown workflows, and of sources, to their series.

        A series that is created here begins with its whole total, whatever there was no room for before.
        """
        born: set[tuple[str, LabelValues]] = set()
        for tally, value in tallies.items():
            name, source, workflow_id, labels, part = tally
            metric_labels = self._labels(name, source, workflow_id, labels)
            if metric_labels is None or (name, metric_labels) in born:
                continue
            family = self._families[name]
            if metric_labels not in family:
                if not self._admits(family, metric_labels):
                    continue
                if self._shown.get((source, workflow_id)) != OTHER:
                    born.add((name, metric_labels))
                    self._add_whole(family, metric_labels, tally)
                    continue
            self._add_part(family, metric_labels, part, value)

    def _add_whole(self, family: Gauge | Counter | Histogram, metric_labels: LabelValues, tally: TallyKey) -> None:
        name, source, workflow_id, labels, part = tally
        parts = (*range(len(family.metric.buckets) + 1), SUM) if isinstance(family, Histogram) else (part,)
        for each in parts:
            value = self._totals.get((name, source, workflow_id, labels, each))
            if value is not None:
                self._add_part(family, metric_labels, each, value)

    def _add_part(self, family: Gauge | Counter | Histogram, labels: LabelValues, part: int, value: float) -> None:
        if isinstance(family, Counter):
            family.add(labels, value)
        elif isinstance(family, Histogram):
            if part == SUM:
                family.add(labels, 0, 0.0, sum=value)
            else:
                family.add(labels, part, value, sum=0.0)

    def _labels(self, name: str, source: str, workflow_id: str, labels: LabelValues) -> LabelValues | None:
        platform = self._platforms[source].name
        if not workflow_id:
            return (platform, source, *labels)
        shown = self._shown.get((source, workflow_id))
        if shown == OTHER and name == catalogue.STEPS.name:
            labels = (OTHER, *labels[1:])  # nobody knows how many types there are
        return None if shown is None else (platform, source, shown, *labels)

    # Every series is created here

    def _admits(self, family: Gauge | Counter | Histogram, labels: LabelValues) -> bool:
        """Whether a series exists, or may come into being: the one place that decides it."""
        if labels in family:
            return True
        aside, workflow = _place(family.metric, labels)
        return self._room.take(family.lines_per_series, workflow=workflow, aside=aside)

    def _touch(self, metric: Metric, labels: LabelValues) -> None:
        family = self._counter(metric)
        if self._admits(family, labels):
            family.touch(labels)

    def _set(self, name: str, labels: LabelValues, value: float) -> bool:
        """False if there is no room for it."""
        family = self._named_gauge(name)
        if not self._admits(family, labels):
            return False
        family.set(labels, value)
        return True

    def _unset(self, name: str, labels: LabelValues) -> None:
        family = self._named_gauge(name)
        if family.remove(labels):
            self._room.give_back(1, aside=_place(family.metric, labels)[0])

    def _refresh(self, key: Key, world: SourceWorld) -> None:
        """Bring the gauges of one workflow to what the world says, removing what is not so any more."""
        entry = world.entries.get(key[1])
        if entry is None or key not in self._shown:
            return
        if entry.gone_at is not None and self._shown[key] != OTHER:
            before_it = self.registry.series()
            self.registry.remove_matching(source=key[0], workflow_id=key[1])
            self._room.give_back(before_it - self.registry.series())
            self._room.forget(key)
            for kept in (self._shown, self._gauges, self._uncounted):
                kept.pop(key, None)
            return
        listed = self._platforms[key[0]].lists_active
        given = self._given(entry, key[0])
        found = () if entry.gone_at is not None else readings(entry, world, listed=listed, labels=given)
        now = {(metric.name, labels): value for metric, labels, value in found}
        before = self._gauges.get(key, {})
        if self._shown[key] == OTHER:
            now = {k: v for k, v in now.items() if k[0] in _SUMMED}
            self._refresh_other(key, before, now)
            self._gauges[key] = now
            return
        self._follow_uncounted(key, entry.workflow)
        prefix = (self._platforms[key[0]].name, key[0], key[1])
        for name, labels in before.keys() - now.keys():
            self._unset(name, (*prefix, *labels))
        refused = [
            reading
            for reading, value in now.items()
            if before.get(reading) != value and not self._set(reading[0], (*prefix, *reading[1]), value)
        ]
        shown = {reading: value for reading, value in now.items() if reading not in refused}
        hidden = sum(now[reading] for reading in refused if reading[0] == catalogue.DEAD_LETTERS.name)
        if hidden:  # an open dead letter is shown in any case, if need be without its class
            unknown = catalogue.DEAD_LETTERS.name, (str(ErrorClass.UNKNOWN),)
            shown[unknown] = now[unknown] + hidden
            self._set(unknown[0], (*prefix, *unknown[1]), shown[unknown])
        self._gauges[key] = shown

    def _refresh_other(self, key: Key, before: Mapping[Any, float], now: Mapping[Any, float]) -> None:
        prefix = (self._platforms[key[0]].name, key[0], OTHER)
        for name, labels in before.keys() | now.keys():
            family, full = self._named_gauge(name), (*prefix, *labels)
            change = now.get((name, labels), 0.0) - before.get((name, labels), 0.0)
            self._set(name, full, (family.get(full) or 0.0) + change)

    def _given(self, entry: WorkflowEntry, source: str) -> LabelValues:
        """The values of a workflow's labels, in the order of their names; empty where it has none."""
        found = self._labels_of.get(source, NO_LABELS).of(entry.workflow.id, entry.workflow.name)
        by_name = {exposed(name): value for name, value in found.items() if value is not None}
        return tuple(by_name.get(name, "") for name in self._label_names)

    def _named_gauge(self, name: str) -> Gauge:
        return cast(Gauge, self._families[name])

    def _counter(self, metric: Metric) -> Counter:
        return cast(Counter, self._families[metric.name])


def _place(metric: Metric, labels: LabelValues) -> tuple[bool, Key | None]:
    """Whether room is set aside for a series, and the workflow it is of."""
    if metric.name in _SET_ASIDE:
        return True, None
    if "workflow_id" not in metric.labels:
        return False, None
    _, source, workflow_id = labels[:3]
    return workflow_id == OTHER, (source, workflow_id)


__all__ = ["OTHER", "Projection", "Result", "readings"]
