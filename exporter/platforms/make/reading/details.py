"""What the rows of runs do not say and one call each would: why a run failed, and which steps it had.

Both are asked in the same way. The runs about which something is missing are noted in a cursor of the stream ``runs``,
stored with the page that tells of them, so neither a restart nor an outage forgets a question; every sweep asks for
what is noted; what leads nowhere is given up after a while.

Causes, where neither the log nor the feed says it. An execution may be unknown to its own detail call for some seconds
after its end (official clients try for five), so a failed run is stored at once without a cause. When asking leads
nowhere, the cause is unknown for good, so that the failure is counted under that class.

Steps, in zones that tell: a call for each run, made only from calls nobody else needs.
GET /scenarios/{id}/logs/{executionId}/p?include=blueprint,events is, like the feed, an endpoint outside the public
documents. Which runs it is asked about, the config says: none, those that did not simply succeed, or all. A trace waits
for that a while (``steps_later``), so nothing waits for long: what is not to be had is told as no steps. A zone without
it answers 404, and so does one that has it, about a run it does not know yet. So a few runs in a row decide, unless it
was ever heard to answer. Refused, it is left alone for a day. That costs the source nothing: steps are an extra, and
what is missing of them is no fault of a sweep.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from exporter.model import FAILED, Error, Result, Run, State, Step
from exporter.platform import BadItem, Fault, Known, Page
from exporter.platforms.make.config import MakeConfig
from exporter.platforms.make.mapping import steps
from exporter.platforms.make.mapping.runs import cause
from exporter.platforms.make.reading.calls import Losses, bad_payload, get
from exporter.platforms.make.reading.replays import Replayed, Replays
from exporter.wire.api import Api
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind

#: Asked so often, over at least so many seconds, an answer is given up.
TRIES_MAX = 3
PATIENCE_SECONDS = 60.0

# Causes
CAUSES = "causes"
CAUSE_ENDPOINT = "/scenarios/{id}/executions/{executionId}"
CAUSES_PER_SWEEP_MAX = 50
#: Beyond it the causes of further failures stay unknown.
CAUSES_NOTED_MAX = 1000
#: Causes kept in memory, because rows are met again within the overlap of sweeps.
CAUSES_KEPT_MAX = 5000

# Steps
STEPS = "steps"
STEPS_ENDPOINT = "/scenarios/{id}/logs/{executionId}/p"
INCLUDE = "blueprint,events"
STEPS_PER_SWEEP_MAX = 50
#: Beyond it further runs have no steps.
STEPS_NOTED_MAX = 500
#: A run whose steps could not be asked for within so many seconds has none: its trace has left.
WAITING_SECONDS_MAX = 300.0
#: So much of a minute's calls is left to others.
SPARED_SHARE = 0.25
STEPS_REFUSED_SECONDS = 86_400.0
#: What a zone without it answers, but for the 404 that may be about the run.
REFUSALS = frozenset({400, 401, 403, 405, 410, 422, 501})
#: Failures that may be about one run, or about the endpoint itself; others are about the platform.
_ABOUT_THE_RUN = frozenset({ErrorKind.NOT_FOUND, ErrorKind.BAD_PAYLOAD, ErrorKind.AUTH, ErrorKind.REQUEST})
#: Runs kept in memory as done with, because rows are met again within the overlap of sweeps.
STEPS_DONE_MAX = 10_000


class Noted:
    """The runs noted under one key: id -> scenario, result, start, end, when it was noted, tries. One sweep's copy."""

    def __init__(self, key: str, cursor: Mapping[str, Any] | None, *, runs_max: int) -> None:
        self._key = key
        self._entries = {run_id: list(entry) for run_id, entry in (cursor or {}).items()}
        self._runs_max = runs_max
        self._changed = False

    @property
    def ids(self) -> list[str]:
        return list(self._entries)

    @property
    def untried(self) -> int:
        return sum(1 for entry in self._entries.values() if entry[5] == 0)

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._entries

    def cursor(self) -> dict[str, Any]:
        """To be stored with every page whose runs were added or dropped; nothing if nothing changed meanwhile."""
        changed, self._changed = self._changed, False
        return {self._key: {run_id: list(entry) for run_id, entry in self._entries.items()} or None} if changed else {}

    def add(self, run: Run, now: float) -> bool:
        """Note a run; False if there are too many."""
        if len(self._entries) >= self._runs_max:
            return False
        self._entries[run.id] = [run.workflow_id, run.result, run.started_at, run.ended_at, now, 0]
        self._changed = True
        return True

    def run(self, run_id: str) -> Run:
        """The run as it was noted."""
        workflow_id, result, started_at, ended_at, _, _ = self._entries[run_id]
        return Run(
            workflow_id=workflow_id,
            id=run_id,
            state=State.FINISHED,
            result=Result(result),
            started_at=started_at,
            ended_at=ended_at,
        )

    def age(self, run_id: str, now: float) -> float:
        """Seconds since it was noted."""
        noted_at: float = self._entries[run_id][4]
        return now - noted_at

    def missed(self, run_id: str, now: float) -> bool:
        """Count a try that led nowhere; True when it was the last."""
        entry = self._entries.pop(run_id)
        entry[5] += 1
        self._entries[run_id] = entry  # behind the others
        self._changed = True
        return entry[5] >= TRIES_MAX and self.age(run_id, now) >= PATIENCE_SECONDS

    def drop(self, run_id: str) -> None:
        self._changed |= self._entries.pop(run_id, None) is not None


class Causes:
    """What is known of causes, for one source."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._found: dict[str, Error] = {}

    def note(self, run: Run, noted: Noted, now: float) -> Run:
        """The run, with its cause if that is known by now; otherwise noted, if it needs one."""
        if run.result not in FAILED:
            return run
        if run.error is not None:
            noted.drop(run.id)
            return run
        if run.id in self._found:
            return replace(run, error=self._found[run.id])
        if run.id in noted or noted.add(run, now):
            return run
        return replace(run, error=Error())

    async def ask(self, noted: Noted, now: float) -> AsyncIterator[Page]:
        """Ask for what is noted, one page for each cause found."""
        losses = Losses()
        for run_id in noted.ids[:CAUSES_PER_SWEEP_MAX]:
            run, faults = noted.run(run_id), list[Fault]()
            try:
                error = await self.of(run)
                losses.passed()
            except ApiError as failure:
                error = None
                fault = losses.fault(failure, run.workflow_id, of_item=True)
                if failure.kind is not ErrorKind.NOT_FOUND:
                    faults.append(fault)
            if error is None and noted.missed(run_id, now):
                error = Error()
            if error is not None:
                self._remember(run_id, error)
                noted.drop(run_id)
                yield Page(observations=[replace(run, error=error)], cursors=noted.cursor(), faults=faults)
            elif faults:
                yield Page(faults=faults)
        left = f"the causes of {noted.untried} failed runs are left for the next sweep"
        yield Page(cursors=noted.cursor(), faults=[Fault(kind="truncated", detail=left)] if noted.untried else [])

    async def known(self, run: Run) -> Error | None:
        """The cause of one run that sweeps no longer ask about; None if it is not to be had. Raises ``ApiError``."""
        if run.id in self._found:
            return self._found[run.id]
        try:
            return await self.of(run)
        except ApiError as error:
            if error.kind in (ErrorKind.NOT_FOUND, ErrorKind.BAD_PAYLOAD, ErrorKind.REQUEST):
                return None
            raise

    async def of(self, run: Run) -> Error | None:
        """Ask for the cause of one run; None if the platform does not say, or not yet. Raises ``ApiError``."""
        answer = await get(
            self._api, CAUSE_ENDPOINT, lane=Lane.SWEEPS, ids={"id": run.workflow_id, "executionId": run.id}
        )
        try:
            return cause(answer.data)
        except BadItem as bad:
            raise bad_payload(CAUSE_ENDPOINT, str(bad), answer.status) from None

    def _remember(self, run_id: str, error: Error) -> None:
        self._found[run_id] = error
        while len(self._found) > CAUSES_KEPT_MAX:
            del self._found[next(iter(self._found))]


class Steps:
    """The steps of one source's runs."""

    def __init__(self, config: MakeConfig, api: Api) -> None:
        self._results = steps_later(config)
        self._api = api
        self._done: dict[str, None] = {}
        self._answered = False  # the zone has it
        self._misses, self._missing_since = 0, 0.0  # 404s in a row while that is not known
        self._refused_until = 0.0

    def note(self, run: Run, noted: Noted, now: float) -> Run:
        """The run, noted if its steps are wanted; if they are and cannot be had, without any."""
        if run.result not in self._results or run.id in self._done or run.id in noted:
            return run
        if now >= self._refused_until and noted.add(run, now):
            return run
        return replace(run, steps=())

    async def ask(self, noted: Noted, now: float) -> AsyncIterator[Page]:
        """Ask for what is noted, one page for each run whose steps are known, or known not to be had."""
        for run_id in noted.ids[:STEPS_PER_SWEEP_MAX]:
            run, found = noted.run(run_id), None
            if run.result not in self._results or now < self._refused_until or not self._spare_calls():
                break
            try:
                found, trouble = await self._of(run), None
            except ApiError as error:
                trouble = error
            if trouble is not None:
                self._doubt(trouble, now)
            if found is None and noted.missed(run_id, now):
                found = ()
                self._answered = self._answered and trouble is None
            if found is not None:
                yield self._told(noted, [replace(run, steps=found)])
            if trouble is not None and not (self._answered and trouble.kind in _ABOUT_THE_RUN):
                break
        hopeless = [
            replace(noted.run(run_id), steps=()) for run_id in noted.ids if self._is_hopeless(noted, run_id, now)
        ]
        yield self._told(noted, hopeless)

    async def _of(self, run: Run) -> tuple[Step, ...] | None:
        ids = {"id": run.workflow_id, "executionId": run.id}
        answer = await get(self._api, STEPS_ENDPOINT, lane=Lane.SWEEPS, query=[("include", INCLUDE)], ids=ids)
        try:
            found = steps.steps(answer.data, run, latest=self._api.latest())
        except BadItem as bad:
            raise bad_payload(STEPS_ENDPOINT, str(bad), answer.status) from None
        self._answered, self._misses = True, 0
        return found

    def _is_hopeless(self, noted: Noted, run_id: str, now: float) -> bool:
        unwanted = noted.run(run_id).result not in self._results
        return unwanted or now < self._refused_until or noted.age(run_id, now) >= WAITING_SECONDS_MAX

    def _spare_calls(self) -> bool:
        return self._api.budget.remaining >= 1.0 + SPARED_SHARE * self._api.budget.rate

    def _doubt(self, error: ApiError, now: float) -> None:
        """Whether this says that the zone does not have it. One that was heard to answer has."""
        if self._answered:
            return
        refused = error.status in REFUSALS
        if error.kind in _ABOUT_THE_RUN and not refused:
            self._missing_since = self._missing_since if self._misses else now
            self._misses += 1
            refused = self._misses >= TRIES_MAX and now - self._missing_since >= PATIENCE_SECONDS
        if refused:
            self._refused_until, self._misses = now + STEPS_REFUSED_SECONDS, 0

    def _told(self, noted: Noted, runs: list[Run]) -> Page:
        for run in runs:
            noted.drop(run.id)
            self._done[run.id] = None
        while len(self._done) > STEPS_DONE_MAX:
            del self._done[next(iter(self._done))]
        return Page(observations=runs, cursors=noted.cursor())


def steps_later(config: MakeConfig) -> frozenset[Result]:
    """The results of runs whose steps are asked for."""
    wanted = {"off": (), "problems": (Result.WARNING, Result.FAILURE), "all": tuple(Result)}
    return frozenset(wanted[config.steps])


class Details:
    """What earlier sweeps left to be asked, and what this one adds."""

    def __init__(
        self, causes_: Causes, steps_: Steps, replays_: Replays, known: Known, *, counted_from: float, now: float
    ) -> None:
        self._causes = causes_
        self._steps = steps_
        self._replayed = Replayed(replays_, known, counted_from=counted_from, now=now)
        self._unexplained = Noted(CAUSES, known.cursor("runs", CAUSES), runs_max=CAUSES_NOTED_MAX)
        self._stepless = Noted(STEPS, known.cursor("runs", STEPS), runs_max=STEPS_NOTED_MAX)
        self._counted_from = counted_from
        self._now = now

    def see(self, rows: Sequence[object]) -> None:
        """What rows say besides, before their runs are passed to ``note``."""
        self._replayed.see(rows)

    def with_letters(self, page: Page) -> Page:
        """A page of runs with the dead letters that these open or close."""
        return self._replayed.with_letters(page)

    def note(self, run: Run) -> Run:
        """The run as far as it is known by now; what is missing is noted, if the run counts."""
        if run.finished_at is not None and run.finished_at < self._counted_from:
            return run
        run = self._causes.note(run, self._unexplained, self._now)
        return self._steps.note(run, self._stepless, self._now)

    def cursor(self) -> dict[str, Any]:
        """To be stored with every page whose runs were passed to ``note``."""
        return self._unexplained.cursor() | self._stepless.cursor()

    async def ask(self) -> AsyncIterator[Page]:
        """Ask for what is noted: causes first."""
        async for page in self._causes.ask(self._unexplained, self._now):
            yield page
        async for page in self._replayed.ask(self._causes.known, self._unexplained.__contains__):
            yield page
        async for page in self._steps.ask(self._stepless, self._now):
            yield page
