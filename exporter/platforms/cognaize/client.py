"""Reading one Cognaize installation: the newest part of its listing, then whatever is still open.

A sweep of runs reads the pages of the listing that may hold something new (``listing``); open processes and failed
ones that were not among them are then read one by one, for a restart shows nowhere else. Workflows have no endpoint:
they are known from their processes and from the config, which only names some of them, so none is ever reported as
gone. Their sweep asks for one row, to tell whether the platform lets us in.
"""

from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from itertools import islice
from typing import Any

from exporter.model import DeadLetter, Observation, Workflow
from exporter.platform import BadItem, Fault, Known, Page, RunKey, StreamName, selected
from exporter.platforms.cognaize import mapping
from exporter.platforms.cognaize.config import CognaizeConfig
from exporter.platforms.cognaize.listing import BASELINE_ROWS_MAX, BASELINE_SECONDS, PAGE_ROWS, Walk
from exporter.wire.api import Api, ApiError, ErrorKind
from exporter.wire.budget import Lane

FIND, PROCESS = "/api/v1/processes/find", "/api/v1/processes/{id}"

#: Requests a sweep may spend on processes that are open but not among the newest; the rest takes turns.
READS_PER_SWEEP_MAX = 20
#: How many of these may be whole pages.
BULK_PAGES_PER_SWEEP_MAX = 10
#: Processes read one by one for webhooks at one time.
READS_PER_COMPLETION_MAX = 200
#: Processes read one by one between two commits.
READS_PER_PAGE = 10
#: From so many open processes on, a page that holds two of them is cheaper than reading them one by one.
BULK_FROM = 6
#: After so many failures in a row the rest is not tried: the platform is down.
FAILURES_IN_A_ROW_MAX = 3
#: No such process, in the words of a gateway or, presumably, of the platform ("a precondition is not met").
GONE_STATUSES = frozenset({404, 410, 412})
#: A process is believed to be gone once it has been missing for so long (seconds).
GONE_AFTER_SECONDS = 600.0


class CognaizeClient:
    """One source's connection (``exporter.platform.Client``)."""

    def __init__(self, config: CognaizeConfig, api: Api) -> None:
        self._config = config
        self._api = api

    async def sweep(self, stream: StreamName, known: Known, now: float) -> AsyncIterator[Page]:
        sweep = _Sweep(self._config, known, now, self._api.latest)
        if stream == StreamName.WORKFLOWS:
            rows = await self._find(0, Lane.SWEEPS, size=1)
            yield sweep.workflows(rows)
            return
        walk = self._walk(known, now, Lane.SWEEPS)
        async for rows, cursor in walk.pages():
            deep = walk.scanning and rows.total > BASELINE_ROWS_MAX
            yield sweep.page(rows.items, cursor=cursor, deep=deep)
        if walk.truncated:
            detail = f"POST {FIND}: more pages than one sweep may read; the next one goes on there"
            yield Page(faults=[Fault(kind="truncated", detail=detail)])
        async for page in self._in_bulk(walk, sweep):
            yield page
        ids, turn = sweep.turn(READS_PER_SWEEP_MAX - sweep.bulk_pages)
        async for page in self._one_by_one(ids, sweep):
            yield page
        yield sweep.rest(turn)

    async def complete(self, keys: Sequence[RunKey], known: Known, now: float) -> AsyncIterator[Page]:
        sweep = _Sweep(self._config, known, now, self._api.latest)
        sweep.wanted = {key.run_id: key.workflow_id for key in keys}
        if len(sweep.wanted) >= BULK_FROM:
            walk = self._walk(known, now, Lane.RUNNING)
            async for rows in walk.newest():
                yield sweep.page(rows.items)
            async for page in self._in_bulk(walk, sweep):
                yield page
        ids = list(sweep.missing())
        async for page in self._one_by_one(ids[:READS_PER_COMPLETION_MAX], sweep):
            yield page
        if len(ids) > READS_PER_COMPLETION_MAX:
            detail = f"GET {PROCESS}: {len(ids) - READS_PER_COMPLETION_MAX} processes left to the next sweep"
            yield Page(faults=[Fault(kind="truncated", detail=detail)])
        yield Page(faults=sweep.problems())

    async def check(self) -> AsyncIterator[str]:
        rows = await self._find(0, Lane.SWEEPS)
        yield "ok: credential accepted"
        yield f"ok: {rows.total} processes can be listed"
        names = [names for item in rows.items if (names := mapping.identity(item)) is not None]
        workflow_ids = {workflow_id for _, workflow_id in names} | set(self._config.workflows)
        watched = [id_ for id_ in workflow_ids if selected(self._config, id_, self._config.workflows.get(id_))]
        yield f"workflows: {len(watched)}"
        if names:
            try:
                await self._process(names[0][0], Lane.SWEEPS)
                yield "ok: a single process can be read"
            except ApiError as error:
                yield f"problem: a single process cannot be read; restarts will not be seen: {error}"
        yield "note: whether the credential may restart steps is not told; it shows when one is restarted"

    # Calls.

    def _walk(self, known: Known, now: float, lane: Lane) -> Walk:
        return Walk(
            find=lambda number: self._find(number, lane),
            cursor=known.cursor(StreamName.RUNS),
            now=now,
            backfill_seconds=self._config.backfill_seconds,
        )

    async def _find(self, number: int, lane: Lane, *, size: int = PAGE_ROWS) -> mapping.Rows:
        body = {"pageNumber": number, "pageSize": size}
        answer = await self._api.post(FIND, lane=lane, json=body, idempotent=True)
        try:
            return mapping.rows(answer.data, number=number, size=size, latest=self._api.latest())
        except BadItem as bad:
            raise _bad_payload(f"POST {FIND}", bad, answer.status) from None

    async def _process(self, process_id: str, lane: Lane) -> Any:
        answer = await self._api.get(PROCESS, lane=lane, ids={"id": process_id})
        try:
            return mapping.unwrap(answer.data)
        except BadItem as bad:
            raise _bad_payload(f"GET {PROCESS}", bad, answer.status) from None

    async def _in_bulk(self, walk: Walk, sweep: "_Sweep") -> AsyncIterator[Page]:
        """Read on towards older pages while each of them holds at least two of those wanted."""
        if len(sweep.missing()) < BULK_FROM:
            return
        async for rows in walk.older():
            sweep.bulk_pages += 1
            before = len(sweep.missing())
            yield sweep.page(rows.items)
            left = len(sweep.missing())
            if before - left < 2 or left < BULK_FROM or sweep.bulk_pages == BULK_PAGES_PER_SWEEP_MAX:
                return

    async def _one_by_one(self, ids: Sequence[str], sweep: "_Sweep") -> AsyncIterator[Page]:
        """Read these processes. A failure costs one process; a refusal, or the third failure in a row, ends it."""
        waiting, failures, fatal = iter(ids), 0, None
        while fatal is None and (batch := list(islice(waiting, READS_PER_PAGE))):
            items: list[Any] = []
            faults: list[Fault] = []
            for process_id in batch:
                try:
                    items.append(await self._process(process_id, Lane.RUNNING))
                    failures = 0
                except ApiError as error:
                    gone = error.status in GONE_STATUSES
                    down = error.kind in (ErrorKind.UNAVAILABLE, ErrorKind.TIMEOUT)
                    failures = failures + 1 if down else 0
                    refused = error.kind in (ErrorKind.AUTH, ErrorKind.RATE_LIMITED)
                    if refused or failures == FAILURES_IN_A_ROW_MAX:
                        fatal = error
                        break
                    workflow_id = sweep.wanted.get(process_id)
                    faults.append(Fault(kind=error.kind, detail=str(error), workflow_id=workflow_id, of_item=True))
                    if gone:
                        sweep.gone.add(process_id)
            yield sweep.page(items, faults=faults)
        if fatal is not None:
            raise fatal


def _bad_payload(endpoint: str, bad: BadItem, status: int) -> ApiError:
    return ApiError(ErrorKind.BAD_PAYLOAD, endpoint=endpoint, detail=str(bad), status=status)


class _Sweep:
    """What one sweep wants to know, and what it has read so far."""

    def __init__(self, config: CognaizeConfig, known: Known, now: float, latest: Callable[[], float]) -> None:
        self.now = now
        self._latest = latest  # the latest time to be believed, as far as answers have told by then
        self._config = config
        self._known = known
        self._letters: dict[str, list[DeadLetter]] = {}
        for letter in known.dead_letters.values():
            self._letters.setdefault(letter.run_id or "", []).append(letter)
        self._seen: set[str] = set()
        self._unreadable: dict[str, str] = {}  # id to what is wrong
        self._named: set[str] = set()
        self.gone: set[str] = set()
        self.bulk_pages = 0
        self.wanted: dict[str, str | None] = {run_id: run.workflow_id for run_id, run in known.open_runs.items()}
        for run_id, letters in self._letters.items():
            if run_id:
                self.wanted.setdefault(run_id, letters[0].workflow_id)
        self._horizon = (known.first_sweep_at or now) - config.backfill_seconds - BASELINE_SECONDS

    def page(
        self, items: Iterable[Any], *, cursor: Any = None, faults: Iterable[Fault] = (), deep: bool = False
    ) -> Page:
        """Observations of these processes. One that cannot be read is asked for by its id before it is a fault.

        Of a ``deep`` page, what ended too long ago to be counted is left out.
        """
        observations: list[Observation] = []
        all_faults, open_runs, count = list(faults), self._known.open_runs, 0
        found: set[str] = set()
        for count, item in enumerate(items, start=1):  # noqa: B007 (it is how many there were)
            names = mapping.identity(item)
            if names is None:
                all_faults.append(Fault(kind="bad_item", detail="a process without id or workflowId"))
                continue
            process_id, workflow_id = names
            if not self._selected(workflow_id):
                self._seen.add(process_id)
                continue
            found.add(workflow_id)
            letters = self._letters.get(process_id, ())
            try:
                before = open_runs.get(process_id)
                reading = mapping.read(item, before=before, dead_letters=letters, latest=self._latest())
            except BadItem as bad:
                self._unreadable[process_id] = str(bad)
                self.wanted.setdefault(process_id, workflow_id)
                observations.append(mapping.unread(item, latest=self._latest()))
                continue
            if reading.doubt is not None:
                all_faults.append(Fault(kind="bad_item", detail=reading.doubt, workflow_id=workflow_id))
            self._seen.add(process_id)
            ended_at = reading.run.ended_at
            if deep and ended_at is not None and ended_at < self._horizon and process_id not in self.wanted:
                continue
            observations += [reading.run, *reading.dead_letters]
        cursors = {} if cursor is None else {"": cursor}
        told = [*self._workflows(found), *observations]
        return Page(observations=told, cursors=cursors, faults=all_faults, items=count)

    def workflows(self, rows: mapping.Rows) -> Page:
        """Workflows by the names the config has for them now; ``rows`` may hold one more."""
        found = {names[1] for item in rows.items if (names := mapping.identity(item)) is not None}
        return Page(observations=self._workflows(found | set(self._known.workflows)))

    def _selected(self, workflow_id: str) -> bool:
        return selected(self._config, workflow_id, self._config.workflows.get(workflow_id))

    def _workflows(self, found: set[str]) -> list[Workflow]:
        """Workflows that are new, or that the config names otherwise by now."""
        out = []
        for workflow_id in sorted((found | set(self._config.workflows)) - self._named):
            self._named.add(workflow_id)
            name, known = self._config.workflows.get(workflow_id), self._known.workflows.get(workflow_id)
            if self._selected(workflow_id) and (known is None or known.at == 0 or known.name != name):
                out.append(Workflow(id=workflow_id, at=self.now, name=name))
        return out

    def missing(self) -> dict[str, str | None]:
        """What is wanted and was not read yet: id to workflow id."""
        return {
            run_id: workflow_id
            for run_id, workflow_id in self.wanted.items()
            if run_id not in self._seen and (workflow_id is None or self._selected(workflow_id))
        }

    def turn(self, room: int) -> tuple[list[str], dict[str, str] | None]:
        """Whose turn it is to be read, ``room`` at most, and the cursor that says where the next sweep goes on.

        First what could not be read, then what is open, then what has failed, for which half of the room is kept.
        """
        missing = set(self.missing())
        damaged = sorted(missing & set(self._unreadable))[:room]
        missing -= set(damaged)
        runs = missing & set(self._known.open_runs)
        failed = missing - runs
        last = self._known.cursor(StreamName.RUNS, "turn") or {}
        room -= len(damaged)
        first = _after(runs, last.get("open", ""), room - min(len(failed), room // 2))
        second = _after(failed, last.get("failed", ""), room - len(first))
        turn = {"open": first[-1] if first else "", "failed": second[-1] if second else ""}
        return [*damaged, *first, *second], turn if len(missing) > room else None

    def problems(self) -> list[Fault]:
        """Processes that stayed unreadable."""
        return [
            Fault(kind="bad_item", detail=problem, workflow_id=self.wanted.get(process_id))
            for process_id, problem in self._unreadable.items()
            if process_id not in self._seen | self.gone
        ]

    def rest(self, turn: dict[str, str] | None) -> Page:
        """What a sweep says at its end: what stayed unreadable, what is gone, and where to go on."""
        observations: list[Observation] = []
        since: dict[str, float] = self._known.cursor(StreamName.RUNS, "missing") or {}
        missing, open_runs = self.missing(), self._known.open_runs
        still = {key: at for key, at in since.items() if key in missing}
        for process_id in self.gone:
            if self.now - still.setdefault(process_id, self.now) >= GONE_AFTER_SECONDS:
                del still[process_id]
                if process_id in open_runs:
                    observations.append(mapping.gone(open_runs[process_id]))
                observations += [mapping.expired(d, at=self.now) for d in self._letters.get(process_id, ())]
        cursors = {"turn": turn, "missing": still or None}
        return Page(observations=observations, cursors=cursors, faults=self.problems())


def _after(ids: Iterable[str], last: str, limit: int) -> list[str]:
    """At most ``limit`` of these in their order, beginning after ``last`` and going round."""
    ordered = sorted(ids)
    start = bisect_right(ordered, last)
    return (ordered[start:] + ordered[:start])[:limit]
