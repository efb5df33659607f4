"""Reading runs: the list from the top, what runs now beside it, and one by one what neither shows any more.

Numbers are given when an execution is created, not when it ends, and the list without a filter leaves out what is
running. So a sweep asks first for what is running, then reads the list from the top. Whatever existed when it began,
and had not ended, is in one of the two: so the next sweep need not go deeper than the highest number that was known
then (``Position.floor``), less an overlap. Open runs that neither list shows are looked for among those that wait or
are queued, and what is left of them is read alone: it has ended, or it is not there any more, since n8n deletes what it
does not save. How such a run ended nobody can say.

Where a sweep may not read all of it, the rest is remembered as a gap and read in the next ones. Rows say no causes:
those of failed runs are read alone (see ``details``).
"""

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from msgspec.structs import replace

from exporter.log import get_logger
from exporter.model import Error, Observation, Result, Run, State
from exporter.platform import BadItem, Fault, Known, Page, RunKey, in_turns, selected
from exporter.platforms.n8n import mapping
from exporter.platforms.n8n.calls import Calls, stops_sweep
from exporter.platforms.n8n.config import N8nConfig
from exporter.platforms.n8n.mapping import Row
from exporter.platforms.n8n.reading.details import Details
from exporter.platforms.n8n.reading.habits import Customs
from exporter.platforms.n8n.reading.letters import LOOK_SECONDS, Letters
from exporter.platforms.n8n.reading.position import Gap, Position
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind

log = get_logger(__name__)

#: Pages of the list read in one sweep; of what is running, waiting or queued.
PAGES_MAX = 40
OPEN_PAGES_MAX = 8
#: Every sweep goes back by so many numbers: several processes may write out of order.
OVERLAP = 50
#: Open runs read alone in one sweep, and workflows that are met before they were listed.
FOLLOWED_MAX = 40
INTRODUCED_MAX = 20
COMPLETIONS_MAX = 200
#: With a backfill, the list is read down to what started so long (seconds) before.
LONG_RUN_SECONDS = 3600.0
#: A run that started so much (seconds) after a number was seen has a higher one, or the database is another.
ANOTHER_SECONDS = 60.0
#: How often (seconds) crashed executions are listed: they are written late, and with an end that lies back.
CRASHES_SECONDS = 300.0


@dataclass(slots=True, kw_only=True)
class _Sweep:
    """What one sweep knows, and what it may still spend."""

    known: Known
    now: float
    baseline: float  # runs that ended before it do not count
    position: Position
    since: float | None = None  # the list is read down to what started before this, whatever the numbers
    lowest: int = 0  # the lowest number on the first page of the list
    met: set[str] = field(default_factory=set)  # ids of runs that a list has shown
    introduced: int = 0
    probed: bool = False  # whether n8n traces its runs was asked, or need not be


class RunReader:
    """Reads the runs of one instance."""

    def __init__(self, config: N8nConfig, calls: Calls, customs: Customs, *, pages_max: int = PAGES_MAX) -> None:
        self._config = config
        self._calls = calls
        self._customs = customs
        self._letters = Letters(calls)
        self._details = Details(config, calls, customs, self._letters)
        self._pages_max = pages_max
        self._innocent: int | None = None  # a low number that was found to be of this database
        self._unknown: set[str] = set()  # workflows that cannot be read

    # The sweep

    async def sweep(self, known: Known, now: float) -> AsyncGenerator[Page, None]:
        """Read everything that is new, and follow what is open."""
        self._customs.recall(known)
        position = Position.load(known.cursor("runs"))
        sweep = _Sweep(known=known, now=now, baseline=self._baseline(known, now), position=position)
        if position.floor < 0 and self._config.backfill_seconds:
            sweep.since = sweep.baseline - LONG_RUN_SECONDS
        floor = -1
        for status in ("running",) if position.floor >= 0 else ("running", "waiting", "new"):
            async with aclosing(self._of_status(status, sweep)) as pages:
                async for page in pages:
                    yield page
            floor = max(floor, position.top if status == "running" else -1)
        async with aclosing(self._list(sweep)) as pages:
            async for page in pages:
                yield page
        position.floor = floor if floor >= 0 else sweep.lowest
        async with aclosing(self._follow(sweep)) as pages:
            async for page in pages:
                yield page
        async with aclosing(self._details.ask(known, position, now=now, since=sweep.baseline)) as pages:
            async for page in pages:
                yield page
        yield await self._rare(sweep)
        yield Page(cursors={"": {**position.dump(), "evidence": self._customs.evidence}})

    def _baseline(self, known: Known, now: float) -> float:
        first = now if known.first_sweep_at is None else known.first_sweep_at
        return first - self._config.backfill_seconds

    async def _of_status(
        self, status: str, sweep: _Sweep, *, pages_max: int = OPEN_PAGES_MAX
    ) -> AsyncGenerator[Page, None]:
        """List the executions of one status. A version that does not know the filter shows others, or refuses."""
        cursor: str | None = None
        for _ in range(pages_max):
            try:
                page = await self._calls.executions(lane=Lane.RUNNING, status=status, cursor=cursor)
            except ApiError as error:
                if error.status != 400:
                    raise
                detail = f"this version of n8n cannot list what is {status}: {error}"
                yield Page(faults=[Fault(kind=error.kind, detail=detail)])
                return
            if cursor is None and await self._is_another(page.items, sweep):
                yield self._start_over(sweep)
            async with aclosing(self._told(page.items, sweep)) as told:
                async for one in told:
                    yield one
            cursor = page.next
            if cursor is None or not _are(page.items, status):
                return
        yield Page(faults=[Fault(kind="truncated", detail=f"more executions are {status} than a sweep may list")])

    async def _list(self, sweep: _Sweep) -> AsyncGenerator[Page, None]:
        """Read the list from the top down to the floor, then go on in the gap that an earlier sweep has left."""
        position = sweep.position
        only_one = position.floor < 0 and sweep.since is None  # the first time: what counts is yet to come
        cursor: str | None = None
        for number in range(self._pages_max):
            page = await self._calls.executions(lane=Lane.SWEEPS, cursor=cursor)
            if number == 0:
                sweep.lowest = min((row.number for row in _rows(page.items, position)), default=0)
                if await self._is_another(page.items, sweep):
                    yield self._start_over(sweep)
            async with aclosing(self._told(page.items, sweep)) as told:
                async for one in told:
                    yield one
            cursor, floor = page.next, position.floor - OVERLAP
            if cursor is None or only_one or _reaches(page.items, floor, sweep.since):
                break
        else:
            if cursor is not None:
                low = floor if position.gap is None else min(floor, position.gap.floor)
                position.gap = Gap(cursor=cursor, floor=low, since=sweep.since)
        for _ in range(self._pages_max - number - 1):
            if position.gap is None:
                return
            gap = position.gap
            page = await self._calls.executions(lane=Lane.SWEEPS, cursor=gap.cursor)
            async with aclosing(self._told(page.items, sweep)) as told:
                async for one in told:
                    yield one
            ended = page.next is None or _reaches(page.items, gap.floor, gap.since)
            position.gap = (
                None if ended or page.next is None else Gap(cursor=page.next, floor=gap.floor, since=gap.since)
            )
        if position.gap is not None:
            yield Page(faults=[_truncated()])

    async def _follow(self, sweep: _Sweep) -> AsyncGenerator[Page, None]:
        """See to the open runs that no list has shown so far."""
        if missing := self._missing(sweep):
            for status, state in (("waiting", State.RUNNING), ("new", State.PENDING)):
                if any(run.state is state for run in missing):
                    async with aclosing(self._of_status(status, sweep)) as pages:
                        async for page in pages:
                            yield page
        missing = self._missing(sweep)
        for run in missing[:FOLLOWED_MAX]:
            try:
                yield await self._alone(run, sweep)
            except ApiError as error:
                if stops_sweep(error):
                    raise
                fault = Fault(kind=error.kind, detail=str(error), workflow_id=run.workflow_id, of_item=True)
                yield Page(faults=[fault])
        if len(missing) > FOLLOWED_MAX:
            yield Page(faults=[_truncated()])

    def _missing(self, sweep: _Sweep) -> list[Run]:
        """The oldest first: whoever is left out comes before the others next time."""
        open_runs = [run for key, run in sweep.known.open_runs.items() if key not in sweep.met]
        return sorted(open_runs, key=lambda run: (mapping.number_of(run.id) or 0, run.id))

    async def _alone(self, run: Run, sweep: _Sweep) -> Page:
        """Read an open run; one that is not there any more is over."""
        number = mapping.number_of(run.id)
        row = None if number is None else await self._read(number, sweep.position)
        if row is None or row.run.id != run.id or row.workflow_id != run.workflow_id:
            if number is not None and row is None and number <= sweep.position.top:
                self._customs.missed(run.workflow_id, number)
            return Page(observations=[mapping.vanished(run)])
        return Page(observations=await self._claims(row, sweep))

    async def _read(self, number: int, position: Position) -> Row | None:
        """One execution; None if there is none of this number."""
        try:
            answer = await self._calls.execution(number, lane=Lane.RUNNING)
            row = mapping.row(answer.data, numbering=position.numbering, latest=self._calls.latest())
            self._details.heard(row, answer.data)
            return row
        except BadItem as bad:
            endpoint = "GET /api/v1/executions/{id}"
            raise ApiError(ErrorKind.BAD_PAYLOAD, endpoint=endpoint, detail=str(bad), status=200) from None
        except ApiError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
            return None

    # What rows say

    async def _told(self, items: Sequence[object], sweep: _Sweep) -> AsyncGenerator[Page, None]:
        """What the rows of a page say."""
        async for part in in_turns(items):
            told: list[Observation] = []
            faults: list[Fault] = []
            for item in part:
                try:
                    row = mapping.row(item, numbering=sweep.position.numbering, latest=self._calls.latest())
                except BadItem as bad:
                    faults.append(Fault(kind="bad_item", detail=str(bad)))
                    continue
                if row.number > sweep.position.top:
                    sweep.position.top, sweep.position.top_at = row.number, self._calls.now()
                sweep.met.add(row.run.id)
                told += await self._claims(row, sweep)
            yield Page(observations=told, faults=faults, items=len(part))

    async def _claims(self, row: Row, sweep: _Sweep) -> list[Observation]:
        """What one row says; what else is to be asked about it is noted."""
        if not row.counts:
            self._note_lost(row, sweep.position)
            return []
        introduction = await self._introduce(row.workflow_id, sweep)
        self._customs.met(row)
        if not selected(self._config, row.workflow_id, self._name(row.workflow_id, sweep.known)):
            return []
        self._letters.keep(row)
        if row.is_open:
            if row.status == "new" and sweep.known.open_runs.get(row.run.id, row.run).queued_at is None:
                sweep.position.want(row, sweep.now)
            return [*introduction, row.run]
        if not sweep.probed:  # before the first is told of, which would be traced once more
            sweep.probed = True
            await self._details.probe(row, sweep.position, now=sweep.now)
        run = self._details.run(row, sweep.position)
        ended_at = run.finished_at
        if run.result is Result.CANCELLED or row.failed or self._config.details == "all":
            is_new = ended_at is None or ended_at >= sweep.baseline
            if is_new and not self._details.knows(row, sweep.known) and sweep.position.want(row, sweep.now):
                if run.result is Result.CANCELLED:
                    return introduction  # it may turn out to have taken too long, and what was counted stays so
        letters = await self._letters.of(
            row, sweep.known, sweep.position.numbering, since=sweep.baseline, error=run.error
        )
        return [*introduction, run, *letters]

    def _note_lost(self, row: Row, position: Position) -> None:
        """An error workflow that fails does not report what it was started for."""
        if row.failed and row.number > position.lost:
            log.warning(
                "an error workflow failed: what it should have reported is found by polling only",
                workflow_id=row.workflow_id,
                execution=row.number,
            )
            position.lost = row.number

    async def _introduce(self, workflow_id: str, sweep: _Sweep) -> list[Observation]:
        """Read a workflow that runs before it was listed."""
        new = not self._customs.knows(workflow_id) and workflow_id not in self._unknown
        if not new or sweep.introduced >= INTRODUCED_MAX:
            return []
        sweep.introduced += 1
        try:
            answer = await self._calls.workflow(workflow_id, lane=Lane.SWEEPS)
            workflow, habits = mapping.workflow(answer.data, at=answer.at, saving=self._customs.saving)
        except (BadItem, ApiError) as error:
            if isinstance(error, ApiError) and stops_sweep(error) and error.status != 403:
                raise
            self._unknown.add(workflow_id)
            return []
        if workflow.id != workflow_id:
            return []
        self._customs.learn(workflow_id, habits)
        return [workflow] if selected(self._config, workflow_id, workflow.name) else []

    def _name(self, workflow_id: str, known: Known) -> str | None:
        name = self._customs.of(workflow_id).name
        workflow = known.workflows.get(workflow_id)
        return name if name is not None or workflow is None else workflow.name

    # What is done now and then

    async def _rare(self, sweep: _Sweep) -> Page:
        """What need not be asked in every sweep."""
        position, now = sweep.position, sweep.now
        told: list[Observation] = []
        faults: list[Fault] = []
        if now - position.crashes_at >= CRASHES_SECONDS or now < position.crashes_at:
            position.crashes_at = now
            async with aclosing(self._of_status("crashed", sweep, pages_max=1)) as pages:
                async for one in pages:
                    told += one.observations
        if now - position.letters_at >= LOOK_SECONDS or now < position.letters_at:
            position.letters_at = now
            page_, position.letters_after = await self._letters.look(
                sweep.known, position.numbering, after=position.letters_after
            )
            told += page_.observations
            faults += page_.faults
        return Page(observations=told, faults=faults)

    async def _is_another(self, items: Sequence[object], sweep: _Sweep) -> bool:
        """Whether the list is of another database: it has a low number that was given lately."""
        position = sweep.position
        for row in _rows(items, position):
            started = row.run.started_at
            if row.number > position.top or started is None or started <= position.top_at + ANOTHER_SECONDS:
                continue
            if row.number == self._innocent or row.run.id in sweep.known.open_runs:
                continue
            try:
                answer = await self._calls.execution(row.number, lane=Lane.SWEEPS)
            except ApiError as error:
                if error.kind is not ErrorKind.NOT_FOUND:
                    raise
                return False
            data = answer.data if isinstance(answer.data, dict) else {}
            created = mapping.moment(data.get("createdAt"))
            if created is not None and created > position.top_at + ANOTHER_SECONDS:
                return True
            self._innocent = row.number  # it had been waiting in a queue
            return False
        return False

    def _start_over(self, sweep: _Sweep) -> Page:
        """Numbers are given anew: what was known of them is about others."""
        position = sweep.position
        log.warning(
            "the instance has another database: numbers of executions start anew (restored, or new?)",
            highest_before=position.top,
        )
        position.resets.append((position.top, position.top_at))
        sweep.since = position.top_at
        position.top, position.floor, position.gap, position.wanted = -1, 0, None, {}
        self._letters.restarted()
        self._details.restarted()
        self._customs.restarted()
        detail = "another database: an execution was given a number that was there before; dead letters of old are gone"
        return Page(faults=[Fault(kind=ErrorKind.CONFLICT, detail=detail)])

    def _unsaved(self, run_id: str, workflow_id: str) -> Run:
        """What is left to say of a run that an event named and that is not there: why it failed nobody will know."""
        gone = Run(workflow_id=workflow_id, id=run_id, state=State.FINISHED, result=Result.UNKNOWN)
        return replace(gone, ended_at=self._calls.now(), error=Error(), steps=())

    async def complete(self, keys: Sequence[RunKey], known: Known, now: float) -> AsyncGenerator[Page, None]:
        """Read the runs that events named. One that is not there was not saved: what the event said is all there is."""
        self._customs.recall(known)
        position = Position.load(known.cursor("runs"))
        position.wanted = {}  # those of the sweeps are theirs
        sweep = _Sweep(known=known, now=now, baseline=self._baseline(known, now), position=position, probed=True)
        for key in keys[:COMPLETIONS_MAX]:
            number = mapping.number_of(key.run_id)
            if number is None:
                continue
            try:
                row = await self._read(number, position)
                if row is not None:
                    told = await self._claims(row, sweep)
                    yield Page(observations=told)
                elif key.workflow_id is not None and key.run_id == str(number):
                    yield Page(observations=[self._unsaved(key.run_id, key.workflow_id)])
            except ApiError as error:
                if stops_sweep(error):
                    raise
                yield Page(faults=[Fault(kind=error.kind, detail=str(error), workflow_id=key.workflow_id)])
        async with aclosing(self._details.ask(known, position, now=now, since=sweep.baseline)) as pages:
            async for page in pages:
                yield page


def _rows(items: Sequence[object], position: Position) -> Iterable[Row]:
    for item in items:
        try:
            yield mapping.row(item, numbering=position.numbering)
        except BadItem:
            continue


def _are(items: Sequence[object], status: str) -> bool:
    """Whether a filter did what it should."""
    return all(isinstance(item, dict) and item.get("status") == status for item in items)


def _reaches(items: Sequence[object], floor: int, since: float | None) -> bool:
    """Whether a page goes down to the floor, or to what started before ``since``."""
    rows = list(_rows(items, Position()))
    if not rows:
        return True
    if since is not None:
        starts = [row.run.started_at for row in rows if row.run.started_at is not None]
        return bool(starts) and max(starts) < since
    return min(row.number for row in rows) <= floor


def _truncated() -> Fault:
    return Fault(kind="truncated", detail="there is more to read than one sweep may; the next one goes on from here")
