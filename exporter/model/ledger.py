"""What goes into the ledger and what comes out of it, as values. Pure.

Times are the platform's, unless a name says otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from msgspec import Struct, field

from exporter.model import FAILED, Change, Observation, Result, Run, Via
from exporter.model.fold import DeadLetterEntry, RunEntry, WorkflowEntry
from exporter.model.operations import OperationState
from exporter.model.rails import Gate, Purse, Setback
from exporter.model.repairs import Repair
from exporter.model.retries import Override, Retry
from exporter.model.subject import Refused
from exporter.model.tallies import Tallies

Key = tuple[str, str]  # source, id


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldRules:
    """What folding needs to know about a source."""

    backfill: float = 0.0  # seconds before the first sweep that count as well
    superseded_by_success: bool = False
    counts_tests: bool = False  # whether runs that somebody starts while building a workflow count
    traced: bool = False  # whether its counted runs go to the outbox of traces
    retention: float = inf  # seconds the ledger remembers finished runs and resolved dead letters
    holds_dead_letters: bool = True  # the platform keeps them itself; if not, they expire with the retention
    steps_later: frozenset[Result] = frozenset()  # runs that ended so are reported first, and their steps after that

    def horizon(self, forgotten: "Forgotten", now: float) -> float:
        """What ended before it may have been counted and forgotten; ``now`` is the platform's clock."""
        return max(forgotten.horizon(self.retention, now), forgotten.pruned_until)

    def settled(self, run: Run) -> bool:
        """Whether nothing more is expected of a finished run: its trace need not wait."""
        explained = run.error is not None or run.result not in FAILED
        return explained and (run.steps is not None or run.result not in self.steps_later)


class Forgotten(Struct, frozen=True, kw_only=True, gc=False):
    """How far a source has been read, and forgotten. Times of the platform; 0: not at all."""

    pruned_until: float = 0.0
    read_until: float = 0.0  # the newest end read by a poll

    def horizon(self, retention: float, now: float) -> float:
        """What is past retention: by the platform's clock, and never by more than was read of it."""
        return min(now, self.read_until) - retention


class Batch(Struct, frozen=True, kw_only=True, gc=False):
    """Observations of one source to be stored together."""

    source: str
    observations: Sequence[Observation] = ()
    via: Via = Via.POLL
    now: float  # the platform's clock, as far as it is known
    started_at: float | None  # when the sweep began, on that clock: the baseline, if it is the first; None: never that
    clock_known: bool = False  # whether the platform has given its time, so that what lies far beyond cannot be
    stream: str = ""
    cursors: Mapping[str, Any] = field(default_factory=dict)


class Folded(Struct, kw_only=True):
    """What became of one batch."""

    batch: Batch
    changes: list[Change] = field(default_factory=list)
    news: int = 0  # observations that taught anything
    found: list[str] = field(default_factory=list)  # workflows not known before


class Committed(Struct, kw_only=True):
    """What one transaction altered: the state after it, for whoever remembers the ledger in memory.

    A transaction that alters anything somebody remembers returns one, and the ledger publishes it.
    """

    outcomes: list[Folded] = field(default_factory=list)
    first_sweeps: dict[str, float] = field(default_factory=dict)
    read_until: dict[str, float] = field(default_factory=dict)
    runs: dict[Key, RunEntry] = field(default_factory=dict)
    dead_letters: dict[Key, DeadLetterEntry] = field(default_factory=dict)
    workflows: dict[Key, WorkflowEntry] = field(default_factory=dict)
    tallies: Tallies = field(default_factory=dict)
    retries: list[Retry] = field(default_factory=list)
    lineage: dict[Key, str] = field(default_factory=dict)  # runs that retries made, and the roots they descend from
    overrides: list[Override] = field(default_factory=list)
    ended_overrides: list[str] = field(default_factory=list)  # ids
    full_at: dict[str, float] = field(default_factory=dict)  # pace of each source
    gates: dict[tuple[str, str, str], Gate] = field(default_factory=dict)  # by source, policy and group
    setbacks: dict[Key, Setback] = field(default_factory=dict)  # by source and workflow; "" is the source's own
    purses: dict[str, Purse] = field(default_factory=dict)  # by source
    refused: dict[Key, Refused | None] = field(default_factory=dict)  # dead letters whose last look refused, or no more
    operations: dict[str, OperationState] = field(default_factory=dict)
    escalated: dict[Key, bool] = field(default_factory=dict)  # by source, and root and reason; False: no longer
    repairs: list[Repair] = field(default_factory=list)


class Loaded(Struct, kw_only=True):
    """What the ledger remembers, as read at the start."""

    first_sweeps: dict[str, float] = field(default_factory=dict)
    read_until: dict[str, float] = field(default_factory=dict)
    open_runs: dict[Key, RunEntry] = field(default_factory=dict)
    open_dead_letters: dict[Key, DeadLetterEntry] = field(default_factory=dict)
    workflows: dict[Key, WorkflowEntry] = field(default_factory=dict)
    tallies: Tallies = field(default_factory=dict)
    cursors: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
