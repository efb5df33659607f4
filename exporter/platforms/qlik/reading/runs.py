"""Reading runs: of which automations, how far back, and which of them alone.

Qlik lists runs by automation only. The sweep of workflows leaves behind what each automation's last run looked like
(its *signature*); an automation is read again when that differs from what was seen when it was last read, or while one
of its other runs is known to be open. Its cursor is ``{"seen": signature, "since": seconds}``: every run that started
before ``since`` has been read. Runs are listed by start, the latest first, back to an overlap before ``since``, or to
the start of the oldest open run; the first time, back to what may still have been running when the source was first
swept. Where a sweep's pages run out in the middle, the cursor also keeps ``resume``, the link to go on with, and
``until``, the ``since`` there will be once that is done.

A list normally says why a run failed. Where it does not, the run is read alone, and where that cannot be had (it takes
more rights than listing), its cause is unknown for good.
"""

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from exporter.model import FAILED, DeadLetter, Error, Run, State
from exporter.platform import BadItem, Fault, Known, Page, RunKey, selected
from exporter.platforms.qlik import mapping
from exporter.platforms.qlik.calls import Calls, ListPage, is_final, stops_sweep
from exporter.platforms.qlik.config import QlikConfig
from exporter.platforms.qlik.mapping import Claims, Signature
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind

DETAILS_PER_SWEEP_MAX = 500
COMPLETIONS_MAX = 500
#: Every reading goes back this far (seconds) before the last one.
OVERLAP_SECONDS = 300.0
#: Qlik ends a run after four hours, and gives up on a queued one after fourteen days.
RUN_SECONDS_MAX = 4 * 3600.0
QUEUE_SECONDS_MAX = 14 * 86400.0
#: For so long after its end a failed run is asked for its cause while the platform is in trouble.
CAUSE_SECONDS_MAX = 3600.0
#: After so many automations in a row that could not be read, it is the platform that is in trouble.
FAILURES_IN_A_ROW_MAX = 5
ERRORS_KEPT_MAX = 10_000

Cursor = dict[str, Any]


@dataclass(slots=True, kw_only=True)
class _Sweep:
    """What one sweep knows, and what it may still spend."""

    known: Known
    now: float
    baseline: float  # runs that ended before it do not count
    listed: Mapping[str, Signature]
    cursors: Mapping[str, Cursor]
    letters: Mapping[str, DeadLetter]
    pages: int
    details: int
    open_runs: dict[str, list[Run]] = field(default_factory=dict)  # by automation

    def others(self, workflow_id: str) -> list[Run]:
        """Open runs the listing of automations says nothing about."""
        last = (self.listed.get(workflow_id) or [None])[0]
        return [run for run in self.open_runs.get(workflow_id, ()) if run.id != last]

    def since(self, workflow_id: str) -> float:
        """Runs that started before this have been read, or were over before anything counts."""
        cursor = self.cursors.get(workflow_id)
        return self.baseline - RUN_SECONDS_MAX if cursor is None else min(float(cursor["since"]), self.now)


class RunReader:
    """Reads the runs of one tenant: at most so many pages, and so many runs one by one, in a sweep."""

    def __init__(self, config: QlikConfig, calls: Calls, *, pages_max: int, details_max: int) -> None:
        self._config = config
        self._calls = calls
        self._pages_max = pages_max
        self._details_max = details_max
        self._errors: dict[str, Error] = {}  # causes read alone, so that overlapping lists need not ask again

    # The sweep

    async def sweep(self, known: Known, now: float, listed: Mapping[str, Signature]) -> AsyncGenerator[Page, None]:
        """Read the runs of every automation to which something has happened. ``listed``: their signatures now."""
        sweep = self._prepared(known, now, listed)
        failures = 0
        for workflow_id in self._due(sweep):
            if sweep.pages <= 0:
                yield Page(faults=[_truncated(workflow_id)])
                return
            try:
                async with aclosing(self._read(workflow_id, sweep)) as pages:
                    async for page in pages:
                        yield page
                failures = 0
            except ApiError as error:
                failures += error.status not in (403, 404)
                if stops_sweep(error) or failures >= FAILURES_IN_A_ROW_MAX:
                    raise
                yield _refused(workflow_id, error, sweep)
        yield Page(faults=_still_refused(sweep))
        gone = [key for key in sweep.cursors if key not in sweep.listed and key not in known.workflows]
        if gone:
            yield Page(cursors=dict.fromkeys(gone))

    def _prepared(self, known: Known, now: float, listed: Mapping[str, Signature]) -> _Sweep:
        first = now if known.first_sweep_at is None else known.first_sweep_at
        sweep = _Sweep(
            known=known,
            now=now,
            baseline=first - self._config.backfill_seconds,
            listed=listed,
            cursors=dict(known.cursors("runs")),
            letters=known.dead_letters,
            pages=self._pages_max,
            details=self._details_max,
        )
        for run in known.open_runs.values():
            sweep.open_runs.setdefault(run.workflow_id, []).append(run)
        return sweep

    def _due(self, sweep: _Sweep) -> list[str]:
        """The automations to read, those left behind longest first."""
        due = [key for key in sweep.listed if sweep.others(key) or _has_changed(key, sweep)]
        due += [key for key in sweep.open_runs if key not in sweep.listed and self._selected(key, sweep.known)]
        return sorted(due, key=sweep.since)

    def _selected(self, workflow_id: str, known: Known) -> bool:
        workflow = known.workflows.get(workflow_id)
        return selected(self._config, workflow_id, None if workflow is None else workflow.name)

    # One automation

    async def _read(self, workflow_id: str, sweep: _Sweep) -> AsyncGenerator[Page, None]:
        """List the runs of one automation back to where it was left, then see to what the list did not tell."""
        cursor, since = sweep.cursors.get(workflow_id) or {}, sweep.since(workflow_id)
        link: str | None = cursor.get("resume")
        until: float | None = cursor.get("until")
        others = [] if link else sweep.others(workflow_id)
        floor = min([since - OVERLAP_SECONDS, *_starts(others, sweep.now)])
        lane = Lane.RUNNING if others else Lane.SWEEPS
        met: set[str] = set()
        whole, ordered, newest = True, True, float("inf")
        async with aclosing(self._calls.runs(workflow_id, lane=lane, link=link)) as pages:
            async for page in pages:
                sweep.pages -= 1
                until = page.at if until is None else until
                told, faults, unexplained = self._map(page, workflow_id, sweep)
                met.update(observation.id for observation in told)
                yield Page(observations=told, faults=faults, items=len(page.items))
                if unexplained:
                    explained = await self._explain(unexplained, sweep)
                    whole = whole and not explained.faults
                    yield explained
                starts = [at for at in map(mapping.started_at, page.items) if at is not None]
                ordered = ordered and all(a >= b for a, b in pairwise([newest, *starts]))
                newest = starts[-1] if starts else newest
                if ordered and starts and starts[-1] < floor:
                    break  # where the order is another than asked for, every page has to be read
                if page.next is not None and sweep.pages <= 0:
                    left = {"seen": None, "since": since, "resume": page.next, "until": until}
                    yield Page(cursors={workflow_id: left} if whole else {}, faults=[_truncated(workflow_id)])
                    return
        missing = [run for run in others if run.id not in met]
        if missing:
            yield await self._refresh(missing, sweep)
        if whole:
            seen = None if link else sweep.listed.get(workflow_id)  # after a rest, the latest is still to be read
            yield Page(cursors={workflow_id: {"seen": seen, "since": until}})

    def _map(
        self, page: ListPage, workflow_id: str, sweep: _Sweep
    ) -> tuple[list[Run | DeadLetter], list[Fault], list[Claims]]:
        """What a page tells, what of it cannot be used, and the failures in it that nobody has explained yet."""
        told: list[Run | DeadLetter] = []
        faults: list[Fault] = []
        unexplained: list[Claims] = []
        for item in page.items:
            try:
                claims = mapping.claims(item, workflow_id=workflow_id, latest=self._calls.latest())
            except BadItem as bad:
                faults.append(Fault(kind="bad_item", detail=str(bad), workflow_id=workflow_id))
                continue
            if _is_unexplained(claims) and claims[0].is_test:
                claims = mapping.with_error(claims, Error())  # whoever tried it has seen why
            elif _is_unexplained(claims):
                letter = sweep.letters.get(claims[0].id)
                cause = None if letter is None else letter.error
                cause = cause or self._errors.get(claims[0].id)
                if cause is None:
                    unexplained.append(claims)
                else:
                    claims = mapping.with_error(claims, cause)
            told += claims
        return told, faults, unexplained

    # Runs read alone

    async def _explain(self, unexplained: Iterable[Claims], sweep: _Sweep) -> Page:
        """Ask for the causes of failures that the list did not tell."""
        told: list[Run | DeadLetter] = []
        faults: list[Fault] = []
        for claims in unexplained:
            run_id, workflow_id = claims[0].id, claims[0].workflow_id
            if sweep.details <= 0:
                faults.append(_truncated(workflow_id))
                break
            sweep.details -= 1
            try:
                item = await self._calls.run(workflow_id, run_id, lane=Lane.DEAD_LETTERS)
                alone: Claims | None = mapping.claims(item, workflow_id=workflow_id, latest=self._calls.latest())
            except BadItem:
                alone = None
            except ApiError as error:
                if stops_sweep(error):
                    raise
                if not is_final(error) and _ended_after(claims, sweep.now - CAUSE_SECONDS_MAX):
                    detail = str(error)
                    faults.append(Fault(kind=error.kind, detail=detail, workflow_id=workflow_id, of_item=True))
                    continue
                alone = None
            told += self._explained(claims, alone)
        return Page(observations=told, faults=faults)

    def _explained(self, claims: Claims, alone: Claims | None) -> list[Run | DeadLetter]:
        """A failed run with its cause, unknown for good if the run read alone did not tell it."""
        run = None if alone is None or alone[0].id != claims[0].id else alone[0]
        cause = Error() if run is None or run.error is None else run.error
        while len(self._errors) >= ERRORS_KEPT_MAX:
            del self._errors[next(iter(self._errors))]
        self._errors[claims[0].id] = cause
        return [*([] if run is None else [run]), *mapping.with_error(claims, cause)]

    async def _refresh(self, runs: Iterable[Run], sweep: _Sweep) -> Page:
        """Read open runs that the list did not have."""
        told: list[Run | DeadLetter] = []
        faults: list[Fault] = []
        for run in runs:
            if sweep.details <= 0:
                faults.append(_truncated(run.workflow_id))
                break
            sweep.details -= 1
            try:
                item = await self._calls.run(run.workflow_id, run.id, lane=Lane.RUNNING)
                told += _final(mapping.claims(item, workflow_id=run.workflow_id, latest=self._calls.latest()))
            except BadItem as bad:
                faults.append(Fault(kind="bad_item", detail=str(bad), workflow_id=run.workflow_id))
            except ApiError as error:
                if stops_sweep(error):
                    raise
                refused = error.status == 403
                if error.kind is ErrorKind.NOT_FOUND or (refused and _must_be_over(run, sweep.now)):
                    told.append(mapping.vanished(run))
                elif not (refused and run.started_at is None):  # once it starts, the list will have it
                    detail = str(error)
                    faults.append(Fault(kind=error.kind, detail=detail, workflow_id=run.workflow_id, of_item=True))
        return Page(observations=told, faults=faults)

    async def complete(self, keys: Sequence[RunKey], known: Known) -> AsyncGenerator[Page, None]:
        """Read the runs that events named. What cannot be read now, the sweeps find."""
        for key in keys[:COMPLETIONS_MAX]:
            run = known.open_runs.get(key.run_id)
            workflow_id = key.workflow_id or (None if run is None else run.workflow_id)
            if workflow_id is None or not self._selected(workflow_id, known):
                continue
            try:
                item = await self._find(workflow_id, key.run_id)
                yield Page(
                    observations=_final(mapping.claims(item, workflow_id=workflow_id, latest=self._calls.latest()))
                )
            except BadItem as bad:
                yield _fault("bad_item", str(bad), workflow_id)
            except ApiError as error:
                if stops_sweep(error):
                    raise
                yield _fault(error.kind, str(error), workflow_id)

    async def _find(self, workflow_id: str, run_id: str) -> object:
        """A run read alone, or from the list of the latest where only that is allowed."""
        try:
            return await self._calls.run(workflow_id, run_id, lane=Lane.RUNNING)
        except ApiError as refusal:
            if refusal.status != 403:
                raise
            async with aclosing(self._calls.runs(workflow_id, lane=Lane.RUNNING)) as pages:
                page = await anext(pages)
            found = (item for item in page.items if isinstance(item, Mapping) and item.get("id") == run_id)
            item = next(found, None)
            if item is None:
                raise
            return item


def _has_changed(workflow_id: str, sweep: _Sweep) -> bool:
    """Whether anything has happened to an automation since it was read, or ever if it never was."""
    signature, cursor = sweep.listed[workflow_id], sweep.cursors.get(workflow_id)
    if cursor is not None:
        return bool(cursor["seen"] != signature)
    run_id, state, ended_at = signature
    if run_id is None and ended_at is None:
        return False  # it has never run
    # If its last run had long been over at the baseline, nothing of it can have been running then.
    was_idle = state not in (State.PENDING, State.RUNNING) and ended_at is not None
    return not (was_idle and ended_at < sweep.baseline - RUN_SECONDS_MAX)


def _still_refused(sweep: _Sweep) -> list[Fault]:
    """What nobody asked for again, since nothing has happened to it: it is unread all the same."""
    faults = list[Fault]()
    for workflow_id in sweep.listed:
        refused = (sweep.cursors.get(workflow_id) or {}).get("refused")
        if refused and not _has_changed(workflow_id, sweep) and not sweep.others(workflow_id):
            faults.append(Fault(kind=refused[0], detail=refused[1], workflow_id=workflow_id))
    return faults


def _refused(workflow_id: str, error: ApiError, sweep: _Sweep) -> Page:
    """What is left of an automation whose runs could not be listed."""
    if error.kind is ErrorKind.NOT_FOUND and workflow_id not in sweep.listed:
        runs = sweep.open_runs.get(workflow_id, ())
        return Page(observations=[mapping.vanished(run) for run in runs], cursors={workflow_id: None})
    cursors: dict[str, Cursor] = {}
    since = sweep.since(workflow_id)
    if "resume" in (sweep.cursors.get(workflow_id) or {}) and is_final(error):
        cursors = {workflow_id: {"seen": None, "since": since}}  # the link no longer works: again from the top
    elif error.status in (403, 404) and workflow_id in sweep.listed:
        # To be asked again when something happens to it, not in every sweep.
        refused = [error.kind, str(error)]
        cursors = {workflow_id: {"seen": sweep.listed[workflow_id], "since": since, "refused": refused}}
    return Page(faults=[Fault(kind=error.kind, detail=str(error), workflow_id=workflow_id)], cursors=cursors)


def _fault(kind: str, detail: str, workflow_id: str | None = None) -> Page:
    return Page(faults=[Fault(kind=kind, detail=detail, workflow_id=workflow_id)])


def _truncated(workflow_id: str) -> Fault:
    detail = "there is more to read than one sweep may; the next one goes on from here"
    return Fault(kind="truncated", detail=detail, workflow_id=workflow_id)


def _is_unexplained(claims: Claims) -> bool:
    return claims[0].result in FAILED and claims[0].error is None


def _final(claims: Claims) -> Claims:
    """What a run read alone tells; if not even that tells why it failed, nothing will."""
    return mapping.with_error(claims, Error()) if _is_unexplained(claims) else claims


def _ended_after(claims: Claims, moment: float) -> bool:
    ended_at = claims[0].finished_at
    return ended_at is not None and ended_at >= moment


def _starts(runs: Iterable[Run], now: float) -> list[float]:
    """When these runs started, but for those that are open too long to look for in a list."""
    starts = [run.started_at for run in runs if run.started_at is not None]
    return [at for at in starts if at >= now - 2 * RUN_SECONDS_MAX]


def _must_be_over(run: Run, now: float) -> bool:
    if run.started_at is not None:
        return now - run.started_at > 2 * RUN_SECONDS_MAX
    return run.queued_at is not None and now - run.queued_at > QUEUE_SECONDS_MAX + RUN_SECONDS_MAX
