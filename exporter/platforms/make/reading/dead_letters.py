"""Dead letters: which scenarios to ask, what to ask of a new one, and how one is known to be closed.

There is no list across scenarios, but GET /scenarios tells how many each has. A scenario's list is read when that
number has changed since it was last read, when something was left to be asked then, and in turn after some minutes,
because one that closes and one that opens leave the number as it is. A long list is read less often: in an outage it
grows with every sweep. A list tells neither the error's type nor the execution; these take two calls for each new item,
once.

Runs that can only be replayed are no incomplete executions and in no list: the sweeps of runs open and close them
(``replays``). Here they expire, with the log that holds them.

Missing from a list is not closed: what is missing is read directly. What is listed as resolved and was never known open
is told if it opened after the list was last read.

The cursor of a scenario holds ``read``, when its list was last read; ``count``, the number then, or null if something
was left to be asked; ``told``, when everything on it had been told.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from exporter.model import DeadLetter, ResolvedBy
from exporter.platform import BadItem, Fault, Known, Page, selected
from exporter.platforms.make.config import MakeConfig
from exporter.platforms.make.mapping import dead_letters as letters
from exporter.platforms.make.mapping.dead_letters import Listed
from exporter.platforms.make.mapping.workflows import Scenario, scenario
from exporter.platforms.make.reading.calls import Losses, Rows, get, pages
from exporter.platforms.make.reading.replays import Replays
from exporter.platforms.make.reading.scenarios import (
    Blueprints,
    Watch,
    all_scenarios,
    learn_retention,
    outlived,
    vanished,
)
from exporter.wire.api import Api
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind

LANE = Lane.DEAD_LETTERS
STREAM = "dead_letters"
COLUMNS = ("id", "name", "dlqCount", "allDlqCount", "lastEdit")
ITEMS_PER_PAGE = 50
ITEM_PAGES_PER_SCENARIO_MAX = 40
SCENARIOS_PER_SWEEP_MAX = 200
#: New items asked about, and closed ones confirmed, in one sweep: at most so many, and at most a quarter of the calls
#: of a minute, two for each, so that they do not hold up everything else. But some, however small the limit.
DETAILS_PER_SWEEP_MAX = 100
DETAILS_PER_SWEEP_MIN = 10
#: A list whose number has not changed is read again after so many seconds, …
REFRESH_SECONDS = 300.0
REFRESH_SECONDS_PER_PAGE = 60.0
#: One whose number has changed, so many seconds after the last time for each page beyond the first.
SECONDS_PER_PAGE = 6.0
#: … at least so many a sweep, and one of so many scenarios.
TURNS_MIN = 2
TURN_SHARE = 200
#: An item may show in its list this many seconds after it was stored.
OVERLAP_SECONDS = 120.0
#: A detail that fails for no reason of its own is asked for so often.
TRIES_MAX = 3
TRIED_MAX = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mark:
    """A scenario's cursor."""

    read: float
    count: int | None
    told: float
    expired: int | None = None

    @classmethod
    def load(cls, cursor: Any) -> "_Mark | None":
        if not cursor:
            return None
        return cls(read=cursor["read"], count=cursor["count"], told=cursor["told"], expired=cursor.get("expired"))

    def dump(self) -> dict[str, Any]:
        told = {"read": self.read, "count": self.count, "told": self.told}
        return told if self.expired is None else told | {"expired": self.expired}


@dataclass(slots=True, kw_only=True)
class _Sweep:
    known: Known
    now: float
    details_left: int
    losses: Losses = field(default_factory=Losses)
    left_over: bool = False

    def may_ask(self) -> bool:
        """Whether one more item may be asked about in this sweep."""
        self.details_left -= 1
        self.left_over = self.left_over or self.details_left < 0
        return self.details_left >= 0


@dataclass(slots=True, kw_only=True)
class _Task:
    """One scenario's list, as it is worked through."""

    workflow_id: str
    edited: str | None
    count: int
    opened: dict[str, DeadLetter]  # known to be open, by id
    told_since: float  # resolved items stored before were told of earlier, or never counted
    expired: int | None = None  # how many were lost so far, as the scenario says
    newly_expired: int = 0  # of these, since its list was last read
    seen: set[str] = field(default_factory=set)
    unclear: list[Listed] = field(default_factory=list)  # cause not known
    closed: list[Listed] = field(default_factory=list)
    complete: bool = True  # everything that had to be asked was


def _risen(before: int | None, now: int | None) -> int:
    return 0 if before is None or now is None else max(0, now - before)


class DeadLetters:
    """The dead letters of one source."""

    def __init__(self, config: MakeConfig, api: Api, watch: Watch, blueprints: Blueprints, replays_: Replays) -> None:
        self._config = config
        self._api = api
        self._watch = watch
        self._blueprints = blueprints
        self._replays = replays_
        self._tried: dict[str, int] = {}

    async def sweep(self, known: Known, now: float) -> AsyncIterator[Page]:
        """All dead letters that opened or changed. Raises ``ApiError``."""
        learn_retention(self._api, (known.cursor("quota", "organization") or {}).get("kept_seconds"))
        sweep = _Sweep(known=known, now=now, details_left=self._details_max())
        listed, complete = await self._listed()
        due, resting, forgotten = self._sort(sweep, listed, complete=complete)
        if forgotten:
            yield Page(cursors=dict.fromkeys(forgotten))
        for task in due[:SCENARIOS_PER_SWEEP_MAX] + resting[: max(TURNS_MIN, len(listed) // TURN_SHARE)]:
            try:
                async for page in self._scenario(sweep, task):
                    yield page
                sweep.losses.passed()
            except ApiError as error:
                yield Page(faults=[sweep.losses.fault(error, task.workflow_id)])
        async for page in self._replayable(sweep, listed if complete else None):
            yield page
        if sweep.left_over or len(due) > SCENARIOS_PER_SWEEP_MAX:
            detail = "not all dead letters could be asked about; the rest is left for the next sweep"
            yield Page(faults=[Fault(kind="truncated", detail=detail)])

    # Which scenarios

    async def _listed(self) -> tuple[dict[str, Scenario], bool]:
        """All scenarios with the numbers of their dead letters, and whether every row could be used."""
        found, complete = dict[str, Scenario](), True
        async for page in all_scenarios(self._api, self._config, lane=LANE, columns=COLUMNS):
            for row in page.rows:
                try:
                    item = scenario(row, at=page.at, teams={})
                except BadItem:  # the workflows stream says so
                    complete = False
                else:
                    found[item.workflow.id] = item
        return found, complete

    def _sort(
        self, sweep: _Sweep, listed: Mapping[str, Scenario], *, complete: bool
    ) -> tuple[list[_Task], list[_Task], list[str]]:
        """Lists to be read now; those whose turn has come, the longest unread first; cursors no longer needed."""
        known, opened = sweep.known, dict[str, dict[str, DeadLetter]]()
        for letter in known.dead_letters.values():
            if letter.reruns:
                continue
            opened.setdefault(letter.workflow_id, {})[letter.id] = letter
        due, resting, forgotten = list[_Task](), list[tuple[float, _Task]](), list[str]()
        for workflow_id in [*listed, *(i for i in opened if complete and i not in listed)]:
            item, mark = listed.get(workflow_id), _Mark.load(known.cursor(STREAM, workflow_id))
            if item is not None and not selected(self._config, workflow_id, item.workflow.name):
                continue
            count, of_scenario = 0 if item is None else item.dead_letters, opened.get(workflow_id, {})
            if count is None:  # not told this time
                continue
            if not count and not of_scenario and (mark is None or mark.count == 0):
                continue
            task = _Task(
                workflow_id=workflow_id,
                edited=None if item is None else item.edited,
                count=count,
                opened=of_scenario,
                expired=None if item is None else item.expired,
                newly_expired=_risen(None if mark is None else mark.expired, None if item is None else item.expired),
                told_since=mark.told if mark else self._watch.counted_from(known, sweep.now) + OVERLAP_SECONDS,
            )
            pages_before = (max(count, len(of_scenario)) - 1) // ITEMS_PER_PAGE
            waited = 0.0 if mark is None else sweep.now - mark.read
            if mark is None or (mark.count != count and waited >= SECONDS_PER_PAGE * pages_before):
                due.append(task)
            elif waited >= max(REFRESH_SECONDS, REFRESH_SECONDS_PER_PAGE * pages_before):
                resting.append((mark.read, task))
        resting.sort(key=lambda turn: turn[0])
        forgotten += [i for i in known.cursors(STREAM) if complete and i not in listed and i not in opened]
        return due, [task for _, task in resting], forgotten

    # One scenario

    async def _scenario(self, sweep: _Sweep, task: _Task) -> AsyncIterator[Page]:
        read_to_the_end = False
        try:
            async for items in pages(
                self._api,
                "/dlqs",
                "dlqs",
                lane=LANE,
                limit=ITEMS_PER_PAGE,
                pages_max=ITEM_PAGES_PER_SCENARIO_MAX,
                query=[("scenarioId", task.workflow_id)],
            ):
                yield self._sorted(task, items)
                read_to_the_end = not items.full
        except ApiError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
            read_to_the_end = True  # the scenario is gone, and its dead letters are looked for one by one
        async for page in self._details(sweep, task):
            yield page
        if read_to_the_end:
            missing = [letter for letter_id, letter in task.opened.items() if letter_id not in task.seen]
            for letter in sorted(missing, key=lambda letter: letter.opened_at):
                async for page in self._missing(sweep, task, letter):
                    yield page
        else:
            detail = f"more than {ITEM_PAGES_PER_SCENARIO_MAX} pages of dead letters"
            yield Page(faults=[Fault(kind="truncated", detail=detail, workflow_id=task.workflow_id)])
        done = _Mark(
            read=sweep.now,
            count=task.count if task.complete else None,
            told=sweep.now if task.complete else task.told_since,
            expired=task.expired if task.complete or task.expired is None else task.expired - task.newly_expired,
        )
        yield Page(cursors={task.workflow_id: done.dump()})

    def _sorted(self, task: _Task, items: Rows) -> Page:
        """Tell the open ones of a page at once, and note what has to be asked about the others."""
        open_now, faults = list[DeadLetter](), list[Fault]()
        for row in items.rows:
            known = task.opened.get(letters.letter_id(row) or "")
            try:
                item = letters.listed(
                    row, workflow_id=task.workflow_id, at=items.at, known=known, latest=self._api.latest()
                )
            except BadItem as bad:
                faults.append(Fault(kind="bad_item", detail=str(bad), workflow_id=task.workflow_id))
                if known is not None:
                    task.seen.add(known.id)
                continue
            again, letter = item.letter.id in task.seen, item.letter
            task.seen.add(letter.id)
            if not item.resolved:
                open_now.append(letter)
                if not again and (known is None or known.error is None):
                    task.unclear.append(item)
            elif not again and (known is not None or letter.opened_at >= task.told_since - OVERLAP_SECONDS):
                task.closed.append(item)
        return Page(observations=open_now, faults=faults, items=len(items.rows))

    async def _details(self, sweep: _Sweep, task: _Task) -> AsyncIterator[Page]:
        """Causes of the new ones, and how those listed as resolved were."""
        for item in [*task.unclear, *task.closed]:
            if not sweep.may_ask():
                task.complete = False
                return
            letter, known = item.letter, task.opened.get(item.letter.id)
            try:
                if known is None or known.error is None:
                    letter, trouble = await self._described(item, task.edited)
                    if trouble is not None:
                        yield self._lost(sweep, task, trouble, complete=True)
                if item.resolved:
                    letter = await self._closed(letter)
                sweep.losses.passed()
            except ApiError as error:
                yield self._lost(sweep, task, error, complete=False)
                continue
            yield Page(observations=[letter, *self._twins(sweep, letter)])

    def _twins(self, sweep: _Sweep, letter: DeadLetter) -> list[DeadLetter]:
        """The same failure, taken for one that was not stored: closed, so that it is one."""
        self._replays.stored(letter.id, letter.run_id)
        twin = sweep.known.dead_letters.get(letter.run_id or "")
        if twin is None or not twin.reruns:
            return []
        return [letters.resolve(twin, at=letter.opened_at, by=ResolvedBy.SUPERSEDED)]

    # Runs that can only be replayed

    async def _replayable(self, sweep: _Sweep, listed: Mapping[str, Scenario] | None) -> AsyncIterator[Page]:
        """Close those that are too old to be in their log, or have gone with it. ``listed``: None if not complete."""
        at = self._api.platform_now()
        for letter in [letter for letter in sweep.known.dead_letters.values() if letter.reruns]:
            gone = outlived(self._api, letter, at)
            if not gone and listed is not None and letter.workflow_id not in listed and sweep.may_ask():
                ids = {"id": letter.workflow_id, "executionId": letter.id}
                try:
                    await get(self._api, "/scenarios/{id}/logs/{executionId}", lane=LANE, ids=ids)
                except ApiError as error:
                    gone = error.kind is ErrorKind.NOT_FOUND
                    if not gone:
                        yield Page(faults=[sweep.losses.fault(error, letter.workflow_id, of_item=True)])
            if gone:
                yield Page(observations=[letters.resolve(letter, at=at, by=vanished(self._api, letter, at))])

    async def _described(self, item: Listed, edited: str | None) -> tuple[DeadLetter, ApiError | None]:
        """The letter with its run and its cause, and why its module has no name. Raises ``ApiError`` if it is worth
        trying again.
        """
        letter = item.letter
        ids = {"id": letter.id}
        try:
            run_id = letters.detail((await get(self._api, "/dlqs/{id}", lane=LANE, ids=ids)).data).run_id
        except BadItem:
            run_id = None
        try:
            bundle = (await get(self._api, "/dlqs/{id}/bundle", lane=LANE, ids=ids)).data
        except ApiError as error:
            if error.kind is ErrorKind.RATE_LIMITED or (self._is_passing(error) and self._try_again(letter.id)):
                raise
            bundle = None
        self._tried.pop(letter.id, None)
        modules, trouble = dict[str, str](), None
        try:
            if bundle is not None:
                modules |= await self._blueprints.modules_of(letter, edited, lane=LANE)
        except ApiError as error:
            if error.kind is ErrorKind.RATE_LIMITED:
                raise
            trouble = error
        found = letters.error(bundle, reason=item.reason, modules=modules)
        return replace(letter, run_id=run_id, error=found), trouble

    async def _missing(self, sweep: _Sweep, task: _Task, letter: DeadLetter) -> AsyncIterator[Page]:
        """A known dead letter that its list lacks: closed only if it says so itself, or is gone."""
        if not sweep.may_ask():
            task.complete = False
            return
        try:
            answer = await get(self._api, "/dlqs/{id}", lane=LANE, ids={"id": letter.id})
            detail = letters.detail(answer.data)
            if detail.deleted:
                yield Page(observations=[letters.resolve(letter, at=answer.at, by=ResolvedBy.MANUAL)])
            elif detail.resolved:
                yield Page(observations=[await self._closed(letter)])
            sweep.losses.passed()
        except BadItem as bad:
            task.complete = False
            yield Page(faults=[Fault(kind="bad_item", detail=str(bad), workflow_id=task.workflow_id)])
        except ApiError as error:
            if error.kind is ErrorKind.NOT_FOUND:
                at = self._api.platform_now()
                by = vanished(self._api, letter, at)
                if by is not ResolvedBy.EXPIRED and task.newly_expired > 0:
                    by = ResolvedBy.EXPIRED
                task.newly_expired -= by is ResolvedBy.EXPIRED and task.newly_expired > 0
                yield Page(observations=[letters.resolve(letter, at=at, by=by)])
            else:
                yield self._lost(sweep, task, error, complete=False)

    async def _closed(self, letter: DeadLetter) -> DeadLetter:
        """The letter as resolved: when, and by whom, as the attempts at it tell."""
        at, by = self._api.platform_now(), ResolvedBy.MANUAL
        try:
            answer = await get(self._api, "/dlqs/{id}/logs", lane=LANE, ids={"id": letter.id})
            attempts = answer.data.get("dlqLogs") if isinstance(answer.data, Mapping) else None
            told = attempts if isinstance(attempts, list) else []
            at, by = letters.resolution(told, latest=self._api.latest()) or (answer.at, by)
        except ApiError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
        return letters.resolve(letter, at=at, by=by)

    def _details_max(self) -> int:
        affordable = max(DETAILS_PER_SWEEP_MIN, int(self._api.budget.rate / 8))
        return min(DETAILS_PER_SWEEP_MAX, affordable)

    # What fails

    def _lost(self, sweep: _Sweep, task: _Task, error: ApiError, *, complete: bool) -> Page:
        task.complete = task.complete and complete
        return Page(faults=[sweep.losses.fault(error, task.workflow_id, of_item=True)])

    def _is_passing(self, error: ApiError) -> bool:
        return error.kind in (ErrorKind.UNAVAILABLE, ErrorKind.TIMEOUT, ErrorKind.BAD_PAYLOAD)

    def _try_again(self, letter_id: str) -> bool:
        """Count a failed try; False when it was the last."""
        self._tried[letter_id] = self._tried.get(letter_id, 0) + 1
        while len(self._tried) > TRIED_MAX:
            del self._tried[next(iter(self._tried))]
        return self._tried.get(letter_id, 0) < TRIES_MAX
