"""A ledger in memory for the tests of clients: every page is folded as the store folds it, and every change is kept.

It offers a client what ``exporter.platform.Known`` promises, and a test what was counted. ``copy`` stands for a
restart: the same memory for another client.
"""

import copy
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import orjson

from exporter.model import (
    SUCCEEDED,
    Change,
    DeadLetter,
    DeadLetterOpened,
    Listing,
    Observation,
    Queue,
    ResolvedBy,
    Result,
    Run,
    RunCorrected,
    RunFailed,
    RunFinished,
    State,
    StepFinished,
    Usage,
    Via,
    Workflow,
    fold,
)
from exporter.model.fold import Baseline, DeadLetterEntry, RunEntry, WorkflowEntry
from exporter.platform import Client, Fault, Page, RunKey, StreamName


class MemoryKnown:
    """What is known of one source. ``superseded_by_success`` is what the platform declares."""

    def __init__(
        self, *, superseded_by_success: bool = False, backfill: float = 0.0, counts_tests: bool = False
    ) -> None:
        self.first_sweep_at: float | None = None
        self.runs: dict[str, RunEntry] = {}
        self.letters: dict[str, DeadLetterEntry] = {}
        self.entries: dict[str, WorkflowEntry] = {}
        self.queues: dict[str, Queue] = {}
        self.usage: dict[str, Usage] = {}
        self.changes: list[Change] = []
        self.pages = 0
        self._cursors: dict[str, dict[str, Any]] = {}
        self._superseded_by_success = superseded_by_success
        self._backfill = backfill
        self._counts_tests = counts_tests

    # What a client sees (exporter.platform.Known).

    @property
    def workflows(self) -> Mapping[str, Workflow]:
        return {key: entry.workflow for key, entry in self.entries.items() if entry.gone_at is None}

    @property
    def open_runs(self) -> Mapping[str, Run]:
        return {key: entry.run for key, entry in self.runs.items() if entry.run.state is not State.FINISHED}

    @property
    def dead_letters(self) -> Mapping[str, DeadLetter]:
        return {key: entry.dead_letter for key, entry in self.letters.items() if entry.dead_letter.is_open}

    def cursor(self, stream: str, key: str = "") -> Any:
        return self._cursors.get(stream, {}).get(key)

    def cursors(self, stream: str) -> Mapping[str, Any]:
        return self._cursors.get(stream, {})

    # What a test does with it.

    async def sweep(self, client: Client, stream: str, now: float) -> list[Fault]:
        """Read one stream once and store every page; returns the faults."""
        return await self._store(client.sweep(StreamName(stream), self, now), stream, now, Via.POLL)

    async def complete(self, client: Client, keys: Sequence[RunKey], now: float) -> list[Fault]:
        return await self._store(client.complete(keys, self, now), "complete", now, Via.POLL)

    def apply(self, page: Page, *, stream: str, now: float, via: Via = Via.POLL) -> list[Change]:
        """Fold one page; what it changed is returned, and added to ``changes``."""
        if self.first_sweep_at is None:
            self.first_sweep_at = now
        baseline = Baseline(first_sweep_at=self.first_sweep_at, backfill=self._backfill)
        seen = len(self.changes)
        self.pages += 1
        for item in page.observations:
            self._fold(item, via, now, baseline)
        for key, value in page.cursors.items():
            if value is None:
                self._cursors.setdefault(stream, {}).pop(key, None)
            else:  # through JSON, as the store keeps it
                self._cursors.setdefault(stream, {})[key] = orjson.loads(orjson.dumps(value))
        self._settle(baseline)
        return self.changes[seen:]

    def copy(self) -> "MemoryKnown":
        return copy.deepcopy(self)

    # What was counted.

    def counts(self) -> Counter[tuple[str, str]]:
        """(workflow id, result) -> finished attempts counted, as ``Truth.counts`` has them."""
        return Counter((c.run.workflow_id, str(c.result)) for c in self.changes if isinstance(c, RunFinished))

    def errors(self) -> Counter[tuple[str, str]]:
        """(workflow id, error class) -> causes of failure counted."""
        return Counter((c.run.workflow_id, str(c.error.error_class)) for c in self.changes if isinstance(c, RunFailed))

    def steps(self) -> Counter[tuple[str, str, str]]:
        """(workflow id, step type, result) -> ended steps counted."""
        ended = (c for c in self.changes if isinstance(c, StepFinished))
        return Counter((c.run.workflow_id, c.step.type, str(c.step.result)) for c in ended)

    def corrections(self) -> list[RunCorrected]:
        return [c for c in self.changes if isinstance(c, RunCorrected)]

    def open_dead_letters(self) -> Counter[str]:
        """Workflow id -> dead letters open, as ``Truth.open_dead_letters`` has them."""
        return Counter(letter.workflow_id for letter in self.dead_letters.values())

    def opened_dead_letters(self) -> list[str]:
        """The ids of all dead letters counted as opened."""
        return [c.dead_letter.id for c in self.changes if isinstance(c, DeadLetterOpened)]

    # Folding.

    async def _store(self, pages: AsyncIterator[Page], stream: str, now: float, via: Via) -> list[Fault]:
        faults: list[Fault] = []
        async for page in pages:
            faults += page.faults
            self.apply(page, stream=stream, now=now, via=via)
        if self.first_sweep_at is None:
            self.first_sweep_at = now
        return faults

    def _fold(self, item: Observation, via: Via, now: float, baseline: Baseline) -> None:
        match item:
            case Run():
                self._fold_run(item, via, now, baseline)
            case DeadLetter():
                entry, changes = fold.fold_dead_letter(self.letters.get(item.id), item, baseline=baseline)
                self.letters[item.id] = entry
                self.changes += changes
            case Workflow():
                self.entries[item.id] = fold.fold_workflow(self.entries.get(item.id), item, now=now)
            case Listing():
                for key, known in self.entries.items():
                    if known.workflow.at > 0:
                        self.entries[key] = fold.fold_listing(known, item)
            case Queue():
                self.queues[item.workflow_id] = item
            case Usage():
                self.usage[item.kind] = item

    def _fold_run(self, claim: Run, via: Via, now: float, baseline: Baseline) -> None:
        if claim.is_test and claim.id not in self.runs and not self._counts_tests:
            return
        entry, changes = fold.fold_run(self.runs.get(claim.id), claim, via=via, now=now, baseline=baseline)
        self.runs[claim.id] = entry
        self.changes += changes
        run = entry.run
        unread = WorkflowEntry(workflow=Workflow(id=run.workflow_id, at=0.0), found_at=now)
        known = self.entries.setdefault(run.workflow_id, unread)
        if run.state is State.FINISHED and run.finished_at is not None and not run.is_test:
            self.entries[run.workflow_id], _ = fold.fold_end(known, run.result or Result.UNKNOWN, run.finished_at)

    def _settle(self, baseline: Baseline) -> None:
        """Close the dead letters that a restart or, where the platform declares it, a later success has settled."""
        for key, entry in self.letters.items():
            letter = entry.dead_letter
            if not letter.is_open:
                continue
            run = None if letter.run_id is None else self.runs.get(letter.run_id)
            by = None if run is None else fold.settled_by_run(letter, run.run)
            known = self.entries.get(letter.workflow_id)
            success = None if known is None else known.last(SUCCEEDED)
            if run is not None and by is not None:
                claim = fold.resolve(letter, by=by, at=run.run.attempt / 1000.0)
            elif self._superseded_by_success and success is not None and success > letter.opened_at:
                claim = fold.resolve(letter, by=ResolvedBy.SUPERSEDED, at=success)
            else:
                continue
            self.letters[key], changes = fold.fold_dead_letter(entry, claim, baseline=baseline)
            self.changes += changes
