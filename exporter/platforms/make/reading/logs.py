"""Runs by the logs of scenarios, where there is no feed: which of them to read, and how far back.

A call for each scenario would soon use up the limit, so a scenario's log is read when something says that it ran:

- its totals in GET /scenarios/consumptions (one call for all) differ from when its log was last read. After the monthly
  reset they fall: that is a difference too, and so is a reset that left the same numbers;
- it was switched on or off, became invalid, or its next run was set to another time, as the workflows stream last read
  it. So runs that use no operations are found, such as those that fail before their first module;
- it has an open run;
- nothing of this, but its turn has come: a few scenarios a sweep, those not read for longest.

A next run at another time is no reason where the run that was planned before has been read: that is why. Nor is it
urgent: a run that used anything shows in the totals. Where there are more to read than calls (``turns``), they wait
for the next sweep, which goes by new totals. At a first start no log has been read: what runs from then on shows as
with all others, and those that do not run are strangers, met one by one to learn when they last ran.

A run shows in the log when it ends, at the place of its start. So a log is read from well before what was read last:
as long as a run may take. Of what is met again, only what ended a short while ago is told again. A scenario that runs
so often that this alone fills pages is asked in two steps: for long runs that began earlier, then for all later ones.

The cursor of a scenario holds: ``used`` and ``reset``, the totals and the time of the reset they are counted from;
``seen``, how the scenario stood; ``since``, every run that ended up to then has been read; ``started``, when the newest
of them began; ``misses``, how often these had changed and no run showed; ``met``, if its log was never read; and while
a long reading is under way ``from``, where to go on, and ``began``. ``logs`` holds ``until``: then every scenario that
had anything to tell had been read. ``notices`` holds what timelines say that stops their scenarios, for the stream
workflows.
"""

import random
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from exporter.model import Blocked, Observation, Run, State
from exporter.platform import BadItem, Fault, Known, Page
from exporter.platforms.make.config import MakeConfig
from exporter.platforms.make.mapping import workflows
from exporter.platforms.make.mapping.runs import run as read_run
from exporter.platforms.make.mapping.workflows import Notice, Used, notice
from exporter.platforms.make.reading import feed, turns
from exporter.platforms.make.reading.calls import Losses, Rows, rows
from exporter.platforms.make.reading.details import Details
from exporter.platforms.make.reading.marks import Mark, Totals, is_explained, ran, standing
from exporter.platforms.make.reading.scenarios import Watch
from exporter.platforms.make.reading.turns import Turns
from exporter.platforms.make.reading.walk import (
    ENDPOINT,
    PAGES_PER_SCENARIO_MAX,
    SETTLED_SECONDS,
    newest,
    rises,
    stamps_of,
    walk,
)
from exporter.wire.api import Api
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind

CURSOR, NOTICES = "logs", "notices"
NOTICES_MAX = 1000
#: How long a run may take, where the license does not say (seconds).
RUN_SECONDS_DEFAULT = 2700.0
RUN_SECONDS_MARGIN = 60.0
#: A scenario that was not there at the last complete sweep has its runs read from so many seconds before that sweep.
NEWCOMER_SECONDS = 3600.0
#: Where something changed and no run showed, or one without its end, the log is read again so often: it may show later.
#: Or there was no run: retries of dead letters use operations, too.
MISSES_MAX = 2
#: An open run whose end nobody saw within so many seconds no longer has its log read.
OPEN_RUN_SECONDS_MAX = 86_400.0
#: Where all there is to say that a scenario ran is a next run at another time, it waits so many seconds longer.
WEAK_SECONDS = 60.0
#: Scenarios that may have run are said to be left behind when they have waited for so many seconds.
LATE_SECONDS = 300.0
#: Scenarios read in turn: at least so many a sweep, and one of so many.
TURNS_MIN = 2
TURN_SHARE = 500
INTRODUCED_SHARE = 100


@dataclass(slots=True, kw_only=True)
class _Sweep:
    """What one sweep goes by."""

    known: Known
    now: float
    details: Details
    totals: Totals
    overlap: float
    counted_from: float  # runs that ended before it do not count
    base: float  # from where on scenarios without a cursor are read
    feed_until: float | None
    open_since: dict[str, float] = field(default_factory=dict)  # scenario -> start of its oldest open run
    notices: dict[str, list[Any]] = field(default_factory=dict)  # scenario -> what its timeline says stops it
    seen: dict[str, list[Any]] = field(default_factory=dict)  # scenario -> how it stood when the sweep began


def notice_of(known: Known, workflow_id: str) -> Notice | None:
    """What the timeline of a scenario last said that stops it."""
    kept = (known.cursor("runs", NOTICES) or {}).get(workflow_id)
    return None if kept is None else Notice(at=kept[0], blocked=Blocked(kept[1]), until=kept[2])


class Logs:
    """The logs of one source's scenarios."""

    def __init__(self, config: MakeConfig, api: Api, watch: Watch) -> None:
        self._config = config
        self._api = api
        self._watch = watch
        self._waiting: dict[str, float] = {}  # scenario -> since when there is something to read of it
        self._totals_at: float | None = None

    async def read(self, known: Known, now: float, details: Details) -> AsyncIterator[Page]:
        """The runs of all scenarios that ran since they were last read. Raises ``ApiError``."""
        sweep = self._begin(known, now, details, await self._totals())
        due, strangers, idle, resting = self._sort(sweep)
        yield Page(cursors=idle | self._forgotten(known))
        turn = self._choose(sweep, due, strangers)
        spare = len(sweep.seen) // TURN_SHARE
        spare = max(TURNS_MIN, spare) if not turn.left else 0 if strangers else 1
        losses, faults = Losses(), 0
        for workflow_id in [*turn.now, *resting[:spare]]:
            self._waiting.pop(workflow_id, None)
            try:
                async for page in self._scenario(sweep, workflow_id):
                    faults += len(page.faults)
                    yield page
                losses.passed()
            except ApiError as error:
                yield Page(faults=[losses.fault(error, workflow_id)])
        late = sum(now - self._waiting.get(i, now) >= LATE_SECONDS for i in turn.left)
        if late:
            detail = f"{late} scenarios that may have run are left for the next sweep"
            yield Page(faults=[Fault(kind="truncated", detail=detail)])
        if turn.left:
            yield Page(more=True)
        elif not losses.count and not faults:
            yield Page(cursors={CURSOR: {"until": sweep.totals.at}})

    def _choose(self, sweep: _Sweep, due: dict[str, float], strangers: list[str]) -> Turns:
        """Whose turn it is in this sweep, as far as the budget reaches."""
        rng, ids = random.Random(sweep.now), list(due)
        rng.shuffle(ids)  # so that none is always behind those that fail or take long
        rng.shuffle(strangers)
        budget, interval = self._api.budget, self._config.poll.interval
        room = turns.room_for(per_minute=budget.rate, interval=interval, remaining=budget.remaining)
        return turns.choose({i: due[i] for i in ids}, strangers, room=room)

    async def introduce(self, known: Known, now: float, details: Details) -> AsyncIterator[Page]:
        """Beside the feed: learn of a few scenarios a sweep when they last ran, once each."""
        sweep = self._begin(known, now, details, Totals(at=now, reset=None, used={}))
        cursors, losses = known.cursors("runs"), Losses()
        strange = sorted(workflow_id for workflow_id in sweep.seen if workflow_id not in cursors)
        for workflow_id in strange[: max(TURNS_MIN, len(sweep.seen) // INTRODUCED_SHARE)]:
            try:
                _, page = await self._introduce(sweep, workflow_id, sweep.base)
                done = self._mark(sweep, workflow_id, sweep.base)
                yield replace(page, cursors={**page.cursors, workflow_id: done.dump()})
                losses.passed()
            except ApiError as error:
                yield Page(faults=[losses.fault(error, workflow_id)])

    # What to read

    async def _totals(self) -> Totals:
        at, reset, used = None, None, dict[str, Used]()
        for scope in self._config.scopes:
            page = await rows(
                self._api,
                "/scenarios/consumptions",
                "scenarioConsumptions",
                lane=Lane.SWEEPS,
                query=[scope],
            )
            at = page.at if at is None else min(at, page.at)
            told = page.body.get("lastReset")
            reset = told if isinstance(told, str) else reset
            for row in page.rows:
                try:
                    workflow_id, amounts = workflows.consumption(row)
                except BadItem:  # what it has used is not known
                    continue
                used[workflow_id] = amounts
        return Totals(at=at or 0.0, reset=reset, used=used)

    def _begin(self, known: Known, now: float, details: Details, totals: Totals) -> _Sweep:
        counted_from = self._watch.counted_from(known, now)
        feed_until, complete = feed.covered_until(known, now), known.cursor("runs", CURSOR)
        told = [counted_from]
        if feed_until is not None:
            told.append(feed_until)
        if complete is not None:
            told.append(min(complete["until"], now) - NEWCOMER_SECONDS)
        organization = known.cursor("quota", "organization") or {}
        sweep = _Sweep(
            known=known,
            now=now,
            details=details,
            totals=totals,
            overlap=(organization.get("run_seconds") or RUN_SECONDS_DEFAULT) + RUN_SECONDS_MARGIN,
            counted_from=counted_from,
            base=max(told),
            feed_until=feed_until,
            notices=dict(known.cursor("runs", NOTICES) or {}),
        )
        for workflow_id, workflow in known.workflows.items():
            if workflow.at > 0 and self._watch.watches(
                workflow_id, known
            ):  # one only a webhook has named may not exist
                sweep.seen[workflow_id] = standing(workflow)
        for run in known.open_runs.values():
            began = now if run.started_at is None else run.started_at
            if now - began <= OPEN_RUN_SECONDS_MAX:
                sweep.open_since[run.workflow_id] = min(began, sweep.open_since.get(run.workflow_id, began))
        return sweep

    def _sort(self, sweep: _Sweep) -> tuple[dict[str, float], list[str], dict[str, Any], list[str]]:
        """Scenarios to read, and since when each waits; strangers; cursors of those that need no reading now; the
        others, the longest unread first.
        """
        due, strangers, idle, resting = dict[str, float](), list[str](), dict[str, Any](), list[tuple[float, str]]()
        cursors, waiting = sweep.known.cursors("runs"), dict[str, float]()
        is_start = sweep.feed_until is None and not self._config.backfill_seconds and not any(map(str.isdigit, cursors))
        for workflow_id, seen in sweep.seen.items():
            mark, used = Mark.load(cursors.get(workflow_id), sweep.now), sweep.totals.of(workflow_id)
            if mark is None and used == (0.0, 0.0, 0.0) and not self._config.backfill_seconds:
                idle[workflow_id] = self._mark(sweep, workflow_id, sweep.base).dump()
                continue
            if mark is None and is_start:
                mark = replace(self._mark(sweep, workflow_id, sweep.base), used=used, met=False)
                idle[workflow_id] = mark.dump()
            if mark is not None and is_explained(mark, seen):
                mark = replace(mark, seen=seen)
                idle[workflow_id] = mark.dump()
            urgent = (
                mark is None
                or mark.resume is not None
                or workflow_id in sweep.open_since
                or mark.seen[:2] != seen[:2]
                or ran(mark, sweep.totals, workflow_id)
            )
            if urgent or mark is None or mark.seen != seen:
                waiting[workflow_id] = self._waiting.get(workflow_id) or self._since(mark, sweep.now)
                due[workflow_id] = waiting[workflow_id] + (0.0 if urgent else WEAK_SECONDS)
            elif not mark.met:
                strangers.append(workflow_id)
            elif workflow_id not in idle:
                resting.append((mark.since, workflow_id))
        self._waiting, self._totals_at = waiting, sweep.now
        return due, strangers, idle, [workflow_id for _, workflow_id in sorted(resting)]

    def _since(self, mark: Mark | None, now: float) -> float:
        """When a scenario ran that had not when the totals were last read: as planned, or somewhere in between."""
        before = now if self._totals_at is None else min(self._totals_at, now)
        planned = None if mark is None else mark.seen[2]
        return planned if planned is not None and before <= planned <= now else (before + now) / 2

    def _forgotten(self, known: Known) -> dict[str, None]:
        """Cursors of scenarios that are gone."""
        return {key: None for key in known.cursors("runs") if key.isdigit() and key not in known.workflows}

    def _mark(self, sweep: _Sweep, workflow_id: str, since: float) -> Mark:
        used = sweep.totals.used.get(workflow_id)
        return Mark(used=used, reset=sweep.totals.reset, seen=sweep.seen[workflow_id], since=since)

    # Reading

    async def _scenario(self, sweep: _Sweep, workflow_id: str) -> AsyncIterator[Page]:
        mark = Mark.load(sweep.known.cursor("runs", workflow_id), sweep.now)
        if mark is None or not mark.met:
            base = sweep.base if mark is None else mark.since
            if sweep.feed_until is None:
                covered, page = await self._introduce(sweep, workflow_id, base)
                if covered:
                    started = _newest_start(page.observations)
                    done = replace(self._mark(sweep, workflow_id, sweep.totals.at), started=started)
                    yield replace(page, cursors={**page.cursors, workflow_id: done.dump()})
                    return
                yield page
            mark = replace(self._mark(sweep, workflow_id, base), used=None)
        if sweep.feed_until is not None:
            mark = replace(mark, since=max(mark.since, sweep.feed_until))
        async for page in self._follow(sweep, workflow_id, mark):
            yield page

    async def _introduce(self, sweep: _Sweep, workflow_id: str, base: float) -> tuple[bool, Page]:
        """The newest runs of a scenario met for the first time, and whether they are all since ``base``."""
        page = await newest(self._api, workflow_id)
        runs, faults = _runs(page.rows, workflow_id, self._api.latest())
        # Runs from before it was watched would be counted as if they were new.
        kept = [r for r in runs if _end(r) is None or not sweep.counted_from <= (_end(r) or 0.0) < base]
        oldest = min(stamps_of(page), default=0)
        newest_first = not rises(page)  # the oldest first, in spite of what was asked, says nothing of the newest
        covered = not page.full or (newest_first and oldest < (base - sweep.overlap) * 1000)
        sweep.details.see(page.rows)
        observations = [sweep.details.note(run) for run in kept]
        cursors = sweep.details.cursor() | self._notices(sweep, workflow_id, page)
        return covered, Page(observations=observations, cursors=cursors, faults=faults, items=len(page.rows))

    async def _follow(self, sweep: _Sweep, workflow_id: str, mark: Mark) -> AsyncIterator[Page]:
        """What ended after ``mark.since``, oldest start first; the cursor with the last page."""
        earliest = min(mark.since - sweep.overlap, sweep.open_since.get(workflow_id, mark.since) - 1.0)
        start = max(earliest, mark.resume or 0.0)
        told, vague, on, bad, seen = False, False, None, 0, 0
        async for page, on in walk(self._api, workflow_id, start=start, settled=mark.since - 2 * SETTLED_SECONDS):
            runs, faults = _runs(page.rows, workflow_id, self._api.latest())
            bad, seen = bad + len(faults), seen + len(page.rows)
            mark = replace(mark, started=_newest_start(runs, mark.started))
            fresh = [run for run in runs if (_end(run) or sweep.now) > mark.since - SETTLED_SECONDS]
            over = [run for run in fresh if run.state is State.FINISHED]
            told = told or any((run.finished_at or 0.0) > mark.since for run in over)
            vague = vague or any(run.ended_at is None for run in over)
            cursors = dict[str, Any]()
            if on is None and bad >= 2 and 2 * bad > seen:
                detail = f"GET {ENDPOINT}: {bad} of {seen} rows cannot be used"
                faults.append(Fault(kind=ErrorKind.BAD_PAYLOAD, detail=detail, workflow_id=workflow_id))
            elif on is None:
                done = self._read_to_the_end(sweep, workflow_id, mark, clear=told and not vague)
                cursors[workflow_id] = done.dump()
            sweep.details.see(page.rows)
            observations = [sweep.details.note(run) for run in fresh]
            cursors |= sweep.details.cursor() | self._notices(sweep, workflow_id, page)
            yield Page(observations=observations, cursors=cursors, faults=faults, items=len(page.rows))
        if on is not None:
            began = sweep.totals.at if mark.began is None else mark.began
            detail = f"more than {PAGES_PER_SCENARIO_MAX} pages of runs; the rest is left for the next sweep"
            yield Page(
                cursors={workflow_id: replace(mark, resume=on / 1000, began=began).dump()},
                faults=[Fault(kind="truncated", detail=detail, workflow_id=workflow_id)],
            )

    def _notices(self, sweep: _Sweep, workflow_id: str, page: Rows) -> dict[str, Any]:
        """The cursor of what timelines say, where this page says something new."""
        latest, before = self._api.latest(), sweep.notices.get(workflow_id)
        found = [said for row in page.rows if (said := notice(row, latest=latest)) is not None]
        last = max(found, key=lambda said: said.at, default=None)
        if last is None or (before is not None and last.at <= before[0]):
            return {}
        if last.blocked is None and before is None:
            return {}
        sweep.notices.pop(workflow_id, None)
        if last.blocked is not None:
            sweep.notices[workflow_id] = [last.at, last.blocked, last.until]
        while len(sweep.notices) > NOTICES_MAX:
            del sweep.notices[next(iter(sweep.notices))]
        return {NOTICES: dict(sweep.notices)}

    def _read_to_the_end(self, sweep: _Sweep, workflow_id: str, mark: Mark, *, clear: bool) -> Mark:
        """The cursor after all pages. Where something had changed and what ran is not clear yet, it stays as it was."""
        totals = sweep.totals
        done = self._mark(sweep, workflow_id, totals.at if mark.began is None else mark.began)
        done = replace(done, started=mark.started)
        if mark.used is None:
            return done
        changed = done.seen != mark.seen or ran(mark, totals, workflow_id)
        if changed and not clear and mark.misses < MISSES_MAX:
            return replace(mark, resume=None, began=None, misses=mark.misses + 1)
        operations, transfer, credits = (
            old if new is None else new for old, new in zip(mark.used, totals.of(workflow_id), strict=True)
        )
        return replace(done, used=(operations, transfer, credits))


def _runs(found: Any, workflow_id: str, latest: float) -> tuple[list[Run], list[Fault]]:
    runs, faults = list[Run](), list[Fault]()
    for row in found:
        try:
            run = read_run(row, workflow_id=workflow_id, latest=latest)
        except BadItem as bad:
            faults.append(Fault(kind="bad_item", detail=str(bad), workflow_id=workflow_id))
        else:
            runs += [] if run is None else [run]
    return runs, faults


def _newest_start(found: Iterable[Observation], before: float | None = None) -> float | None:
    starts = [run.started_at for run in found if isinstance(run, Run) and run.started_at is not None]
    return max(starts if before is None else [before, *starts], default=None)


def _end(run: Run) -> float | None:
    """When a run ended; None while it runs, and where nobody can say."""
    return run.ended_at if run.state is State.FINISHED else None
