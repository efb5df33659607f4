"""The modules of a run as its steps, in zones that tell: a call for each run, made only from calls nobody else needs.

GET /scenarios/{id}/logs/{executionId}/p?include=blueprint,events is, like the feed, an endpoint outside the public
documents. Which runs it is asked about, the config says: none, those that did not simply succeed, or all. They are
told first and noted; once they are over, the sweep asks, and leaves a part of the budget to others. A trace waits for
that a while (``steps_later``), so nothing waits for long: what is not to be had is told as no steps.

A zone without it answers 404, and so does one that has it, about a run it does not know yet. So a few runs in a row
decide, unless it was ever heard to answer. Refused, it is left alone for a day. That costs the source nothing: steps
are an extra, and what is missing of them is no fault of a sweep.
"""

from collections.abc import AsyncIterator

from msgspec.structs import replace

from exporter.model import Result, Run, Step
from exporter.platform import Page
from exporter.platforms.make.config import MakeConfig
from exporter.platforms.make.mapping import BadItem, steps
from exporter.platforms.make.reading.calls import bad_payload, get
from exporter.platforms.make.reading.noted import PATIENCE_SECONDS, TRIES_MAX, Noted
from exporter.wire.api import Api, ApiError, ErrorKind
from exporter.wire.budget import Lane

CURSOR = "steps"
ENDPOINT = "/scenarios/{id}/logs/{executionId}/p"
INCLUDE = "blueprint,events"
RUNS_PER_SWEEP_MAX = 50
#: Beyond it further runs have no steps.
NOTED_MAX = 500
#: A run whose steps could not be asked for within so many seconds has none: its trace has left.
WAITING_SECONDS_MAX = 300.0
#: So much of a minute's calls is left to others.
SPARED_SHARE = 0.25
REFUSED_SECONDS = 86_400.0
#: What a zone without it answers, but for the 404 that may be about the run.
REFUSALS = frozenset({400, 401, 403, 405, 410, 422, 501})
#: Failures that may be about one run, or about the endpoint itself; others are about the platform.
_ABOUT_THE_RUN = frozenset({ErrorKind.NOT_FOUND, ErrorKind.BAD_PAYLOAD, ErrorKind.AUTH, ErrorKind.REQUEST})
#: Runs kept in memory as done with, because rows are met again within the overlap of sweeps.
DONE_MAX = 10_000


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
        for run_id in noted.ids[:RUNS_PER_SWEEP_MAX]:
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
        answer = await get(self._api, ENDPOINT, lane=Lane.SWEEPS, query=[("include", INCLUDE)], ids=ids)
        try:
            found = steps.steps(answer.data, run, latest=self._api.latest())
        except BadItem as bad:
            raise bad_payload(ENDPOINT, str(bad), answer.status) from None
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
            self._refused_until, self._misses = now + REFUSED_SECONDS, 0

    def _told(self, noted: Noted, runs: list[Run]) -> Page:
        for run in runs:
            noted.drop(run.id)
            self._done[run.id] = None
        while len(self._done) > DONE_MAX:
            del self._done[next(iter(self._done))]
        return Page(observations=runs, cursors=noted.cursor())


def steps_later(config: MakeConfig) -> frozenset[Result]:
    """The results of runs whose steps are asked for."""
    wanted = {"off": (), "problems": (Result.WARNING, Result.FAILURE), "all": tuple(Result)}
    return frozenset(wanted[config.steps])
