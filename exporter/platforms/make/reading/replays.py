"""Runs that can only be replayed, as dead letters: which failed runs become one, and how one is known to be closed.

Where a source says ``replay: on``, a failed run becomes a dead letter if its row says that it can be replayed and it
was not stored as an incomplete execution: else one failure would be two. That it was not stored is known where the
scenario's blueprint says that it stores nothing (``dlq``) and was not edited since the run began. Elsewhere the
scenario's list of incomplete executions is read once the run should show there, resolved ones too, and none of those
stored since it began is of this run. What Make would have retried by itself may have come and gone meanwhile; there no
dead letter is opened. Should an incomplete execution of the same run turn up all the same, it counts, and the other is
superseded.

The rows of the log tell the rest: what repeats a run names it. So a sweep of runs brings the dead letters along.

Two cursors of the stream ``runs`` are stored with the page that tells of them. ``unstored`` holds the failed runs of
which nobody knows yet whether they were stored: scenario, start, end, when it was noted, the cause if it is known, and
whether it is certain that it can be replayed: where a row of the feed does not say so, the run's own row does.
``repeats`` holds what repeats what: run -> the run it repeats, and whether it succeeded.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec.structs import replace

from exporter.model import FAILED, SUCCEEDED, DeadLetter, Error, Observation, ResolvedBy, Result, Run, State
from exporter.platform import BAD_ITEM, BadItem, Fault, Known, Page
from exporter.platforms.make.config import MakeConfig
from exporter.platforms.make.mapping import as_object, milliseconds, replays
from exporter.platforms.make.mapping import dead_letters as letters
from exporter.platforms.make.mapping.dead_letters import SKEW_SECONDS
from exporter.platforms.make.mapping.replays import Repeatable
from exporter.platforms.make.mapping.workflows import Scenario
from exporter.platforms.make.reading.calls import Losses, get, pages
from exporter.platforms.make.reading.scenarios import Blueprints
from exporter.wire.api import Api
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind

UNSTORED, REPEATS = "unstored", "repeats"
UNSTORED_MAX, REPEATS_MAX = 1000, 2000
#: Runs asked about in one sweep; their scenarios share the calls, one for each edit.
SETTLED_PER_SWEEP_MAX = 100
#: An incomplete execution may show in its list this many seconds after its run ended.
SHOWN_SECONDS = 120.0
#: After so many seconds without an answer a run is taken for stored: better no dead letter than two.
PATIENCE_SECONDS = 3600.0
ITEMS_PER_PAGE, ITEM_PAGES_MAX = 50, 40
#: Runs kept in memory as done with, because rows are met again within the overlap of sweeps.
DONE_MAX = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listed:
    """A scenario as the stream workflows last listed it."""

    at: float
    edited: str | None


class Replays:
    """What one source remembers between sweeps; only to save calls."""

    def __init__(self, config: MakeConfig, api: Api, blueprints: Blueprints) -> None:
        self.on = config.replay
        self.api = api
        self.blueprints = blueprints
        self.listed: dict[str, _Listed] = {}
        self._stored: dict[str, None] = {}
        self.run_of: dict[str, str | None] = {}  # incomplete execution -> its run, as far as it was asked
        self._done: dict[str, None] = {}

    def note_listing(self, found: Mapping[str, Scenario]) -> None:
        """Note how scenarios are listed now."""
        self.listed = {key: _Listed(at=item.workflow.at, edited=item.edited) for key, item in found.items()}

    def stored(self, item_id: str, run_id: str | None) -> None:
        """Note of which run an incomplete execution is."""
        self.run_of[item_id] = run_id
        while len(self.run_of) > DONE_MAX:
            del self.run_of[next(iter(self.run_of))]
        if run_id is not None:
            _note(self._stored, run_id)

    def is_stored(self, run_id: str) -> bool:
        return run_id in self._stored

    def done(self, run_id: str) -> None:
        _note(self._done, run_id)

    def is_done(self, run_id: str) -> bool:
        return run_id in self._done


def _note(kept: dict[str, None], run_id: str) -> None:
    kept[run_id] = None
    while len(kept) > DONE_MAX:
        del kept[next(iter(kept))]


class Replayed:
    """What one sweep of runs learns of replays."""

    def __init__(self, replays_: Replays, known: Known, *, counted_from: float, now: float) -> None:
        self._replays = replays_
        self._known = known
        self._counted_from = counted_from
        self._now = now
        self._said: dict[str, Repeatable] = {}
        self._unstored: dict[str, list[Any]] = dict(known.cursor("runs", UNSTORED) or {})
        self._repeats: dict[str, list[Any]] = dict(known.cursor("runs", REPEATS) or {})
        self._changed = set[str]()

    def see(self, rows: Sequence[object]) -> None:
        """Note what rows say of their runs, before these are told."""
        for row in rows:
            if (said := replays.repeatable(row)) is not None:
                self._said[said[0]] = said[1]

    def with_letters(self, page: Page) -> Page:
        """The page with what its runs mean for dead letters: as one, so that none is told without the other."""
        found = list[Observation]()
        runs = [item for item in page.observations if isinstance(item, Run) and item.state is State.FINISHED]
        for run in sorted(runs, key=lambda run: (run.started_at or 0.0, run.id)):
            said = self._said.get(run.id)
            if said is None:
                continue
            if said.repeats is not None:
                found += self._repeated(run, said, said.repeats)
            elif said.replayable is not False:
                self._note(run, sure=said.replayable is True)
        cursors = self._cursors()
        if not found and not cursors:
            return page
        items = page.items or len(page.observations)
        observations = [*page.observations, *found]
        return Page(observations=observations, cursors={**page.cursors, **cursors}, faults=page.faults, items=items)

    # What rows say

    def _note(self, run: Run, *, sure: bool) -> None:
        """Note a failed run that can be replayed, or may be (not ``sure``), to find out whether it was stored."""
        known = run.id in self._unstored or run.id in self._known.dead_letters or self._replays.is_done(run.id)
        counts = run.finished_at is not None and run.finished_at >= self._counted_from
        if not self._replays.on or known or not counts or run.result not in FAILED or self._is_done(run.id):
            return
        if len(self._unstored) < UNSTORED_MAX:
            cause = None if run.error is None else msgspec.to_builtins(run.error)
            self._unstored[run.id] = [run.workflow_id, run.started_at, run.finished_at, self._now, cause, sure]
            self._changed.add(UNSTORED)

    def _repeated(self, run: Run, said: Repeatable, repeats: str) -> list[Observation]:
        """What a repetition says of the dead letter of its family."""
        entry, before = [repeats, run.result in SUCCEEDED], self._repeats.get(run.id)
        if entry != before:
            self._repeats[run.id] = entry
            while len(self._repeats) > REPEATS_MAX:
                del self._repeats[next(iter(self._repeats))]
            self._changed.add(REPEATS)
        family = self._family(run.id)
        opened = [letter for letter in self._open() if letter.id in family]
        if run.result in SUCCEEDED:
            for run_id in family & self._unstored.keys():
                self._drop(run_id)
            at = run.finished_at or self._now
            return [letters.resolve(letter, at=at, by=ResolvedBy.MANUAL) for letter in opened]
        if not opened and not family & self._unstored.keys() and before is None and said.replayable:
            self._note(run, sure=True)
        failed = sum(1 for run_id in family if run_id in self._repeats and not self._repeats[run_id][1])
        tried = [letter for letter in opened if letter.id != run.id and letter.tries < failed]
        return [replace(letter, tries=failed) for letter in tried]

    def _open(self) -> list[DeadLetter]:
        return [letter for letter in self._known.dead_letters.values() if letter.reruns]

    def _family(self, run_id: str) -> set[str]:
        """The runs about the same work, as far as rows told."""
        repeats = {key: entry[0] for key, entry in self._repeats.items()}
        first = replays.first_of(run_id, repeats)
        return {first, run_id} | {key for key in repeats if replays.first_of(key, repeats) == first}

    def _is_done(self, run_id: str) -> bool:
        """Whether a repetition did the work."""
        family = self._family(run_id) if self._repeats else ()
        return any(entry[1] for key in family if (entry := self._repeats.get(key)) is not None)

    # Whether it was stored

    async def ask(
        self, cause: Callable[[Run], Awaitable[Error | None]], unexplained: Callable[[str], bool]
    ) -> AsyncIterator[Page]:
        """Find out which of the noted runs were not stored: a page for each dead letter that opens.

        ``cause`` asks why a run failed; ``unexplained`` says of which the sweeps are still asking.
        """
        losses = Losses()
        for run_id in list(self._unstored)[:SETTLED_PER_SWEEP_MAX]:
            workflow_id, started_at, ended_at, noted_at, told, sure = self._unstored[run_id]
            run = Run(workflow_id=workflow_id, id=run_id, started_at=started_at, ended_at=ended_at)
            error = None if told is None else msgspec.convert(told, Error)
            found, faults = list[Observation](), list[Fault]()
            try:
                if not sure:
                    found += await self._find_out(run)
                    if run_id not in self._unstored:
                        yield Page(observations=found, cursors=self._cursors())
                        continue
                stored = None if unexplained(run_id) else await self._is_stored(run, error)
                if stored is False:
                    error = error or await cause(run) or Error()
                    found.append(replays.dead_letter(run, error))
                losses.passed()
            except BadItem:
                stored = None
            except ApiError as failure:
                stored = True if failure.kind is ErrorKind.NOT_FOUND else None  # the scenario is gone
                if stored is None:
                    faults.append(losses.fault(failure, workflow_id, of_item=True))
            if stored is None and self._now - noted_at >= PATIENCE_SECONDS:
                stored, detail = True, f"whether run {run_id} was stored is unknown; it becomes no dead letter"
                faults.append(Fault(kind=BAD_ITEM, detail=detail, workflow_id=workflow_id, of_item=True))
            if stored is not None:
                self._drop(run_id)
            else:
                self._put_back(run_id)
            if found or faults or self._changed:
                yield Page(observations=found, cursors=self._cursors(), faults=faults)

    async def _find_out(self, run: Run) -> list[Observation]:
        """Read a failed run's own row where the feed does not say whether it can be replayed. Drops it if it cannot."""
        ids = {"id": run.workflow_id, "executionId": run.id}
        answer = await get(self._replays.api, "/scenarios/{id}/logs/{executionId}", lane=Lane.SWEEPS, ids=ids)
        body = as_object(answer.data, "the answer")
        found = replays.repeatable(body.get("scenarioLog", body.get("scenarioLogs")))
        said = Repeatable(replayable=None, repeats=None) if found is None else found[1]
        entry = self._unstored[run.id]
        if said.repeats is None and said.replayable:
            entry[5] = True
            self._changed.add(UNSTORED)
            return []
        self._unstored.pop(run.id)
        self._changed.add(UNSTORED)
        told = list[Observation]()
        if said.repeats is not None:
            told = self._repeated(replace(run, state=State.FINISHED, result=Result.FAILURE), said, said.repeats)
        if run.id not in self._unstored:
            self._replays.done(run.id)
        return told

    async def _is_stored(self, run: Run, error: Error | None) -> bool | None:
        """Whether a failed run was stored as an incomplete execution; None while nobody can tell."""
        known = (letter.run_id for letter in self._known.dead_letters.values() if not letter.reruns)
        if self._replays.is_stored(run.id) or run.id in known:
            return True
        listed = self._replays.listed.get(run.workflow_id)
        began, ended = run.started_at, run.ended_at or 0.0
        if listed is None or listed.at < (ended if began is None else began):
            return None
        blueprint = await self._replays.blueprints.read(run.workflow_id, listed.edited, lane=Lane.SWEEPS)
        edited = milliseconds(listed.edited)
        as_it_was = began is not None and edited is not None and edited <= round(began * 1000)
        if as_it_was and blueprint.stores is False:
            return False
        if error is not None and error.type in replays.RETRIED_BY_MAKE:
            return True
        return await self._is_listed(run) if self._now >= ended + SHOWN_SECONDS else None

    async def _is_listed(self, run: Run) -> bool | None:
        """Whether one of the scenario's incomplete executions is of this run; None if that cannot be told."""
        api, began, complete = self._replays.api, (run.started_at or 0.0) - SKEW_SECONDS, False
        query = [("scenarioId", run.workflow_id)]
        async for page in pages(
            api, "/dlqs", "dlqs", lane=Lane.SWEEPS, limit=ITEMS_PER_PAGE, pages_max=ITEM_PAGES_MAX, query=query
        ):
            complete = not page.full
            for row in page.rows:
                item = letters.listed(row, workflow_id=run.workflow_id, at=page.at, known=None).letter
                if item.opened_at >= began and await self._run_of(item.id) in (run.id, None):
                    return True if self._replays.is_stored(run.id) else None
        return False if complete else None

    async def _run_of(self, item_id: str) -> str | None:
        """The run that an incomplete execution is of; None where it does not say, or is gone meanwhile."""
        if self._replays.run_of.get(item_id) is None:
            try:
                answer = await get(self._replays.api, "/dlqs/{id}", lane=Lane.SWEEPS, ids={"id": item_id})
            except ApiError as error:
                if error.kind is not ErrorKind.NOT_FOUND:
                    raise
                return None
            self._replays.stored(item_id, letters.detail(answer.data).run_id)
        return self._replays.run_of[item_id]

    # What is stored with pages

    def _drop(self, run_id: str) -> None:
        if self._unstored.pop(run_id, None) is not None:
            self._changed.add(UNSTORED)
            self._replays.done(run_id)

    def _put_back(self, run_id: str) -> None:
        """Behind the others."""
        self._unstored[run_id] = self._unstored.pop(run_id)

    def _cursors(self) -> dict[str, Any]:
        changed, self._changed = self._changed, set()
        held = {UNSTORED: self._unstored, REPEATS: self._repeats}
        return {key: dict(held[key]) or None for key in changed}
