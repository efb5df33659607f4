"""Words a user gives to workflows, such as ``team: finance``: for retry policies, metrics and alerts. Pure.

They are written for a whole source, or for what matches an id or a pattern of names. For each label the first entry
that matches decides, and the source's own value is the last. In metrics and alerts a label is called as
kube-state-metrics would call it: ``label_`` and its name, with ``_`` for whatever Prometheus does not take.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase


def exposed(name: str) -> str:
    """What a label is called in metrics and alerts: ``cost-center`` is ``label_cost_center``."""
    return "label_" + re.sub(r"[^a-zA-Z0-9_]", "_", name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Labels of the workflows whose id or name ``match`` is about."""

    match: str
    labels: Mapping[str, str]

    def fits(self, workflow_id: str, name: str | None) -> bool | None:
        """None: that depends on the name, which is not known."""
        if self.match in (workflow_id, "*"):
            return True
        return None if name is None else fnmatchcase(name, self.match)


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """All labels written for one source."""

    source: Mapping[str, str] = field(default_factory=dict)
    workflows: tuple[Labelled, ...] = ()

    def of(self, workflow_id: str, name: str | None) -> dict[str, str | None]:
        """The labels of one workflow. None: it depends on the workflow's name, which is not known."""
        found: dict[str, str | None] = {}
        for entry in self.workflows:
            fits = entry.fits(workflow_id, name)
            if fits is not False:
                for label, value in entry.labels.items():
                    found.setdefault(label, value if fits else None)
        return {**self.source, **found}

    def names(self) -> set[str]:
        """Every label that some workflow may have."""
        return {name for labels in (self.source, *(entry.labels for entry in self.workflows)) for name in labels}

    @property
    def whole(self) -> dict[str, str]:
        """What is said of the source as a whole: its own labels, else those that all its workflows are given."""
        found: dict[str, str] = {}
        for entry in self.workflows:
            if entry.match == "*":
                found = {**entry.labels, **found}
        return {**found, **self.source}


NO_LABELS = Labels()


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertLabels:
    """What alerts are given for routing: the labels of all sources, as they are exposed."""

    names: tuple[str, ...] = ()
    sources: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    """The sources that have a label with a value, for what is about a whole source"""
    common: Mapping[str, str] = field(default_factory=dict)
    """What all sources have alike, for what is about none of them"""


def alert_labels(sources: Mapping[str, Labels]) -> AlertLabels:
    by_value: dict[tuple[str, str], list[str]] = {}
    for source, labels in sources.items():
        for name, value in labels.whole.items():
            if not value:  # to Prometheus, the same as none
                continue
            by_value.setdefault((exposed(name), value), []).append(source)
    return AlertLabels(
        names=exposed_names(sources.values()),
        sources={k: tuple(v) for k, v in by_value.items()},
        common={name: value for (name, value), those in by_value.items() if len(those) == len(sources)},
    )


def exposed_names(sources: Iterable[Labels]) -> tuple[str, ...]:
    """What the labels of these sources are called, in order."""
    return tuple(sorted({exposed(name) for labels in sources for name in labels.names()}))
