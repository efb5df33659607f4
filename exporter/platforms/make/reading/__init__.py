"""Reading one Make source: which calls, for which stream.

| Stream | Calls |
| --- | --- |
| quota | the organization, for its limit of requests, its usage and its teams' names; consumptions, for credits |
| workflows | all scenarios; the webhooks of some teams, for their queues; blueprints where there are dead letters |
| runs | the feed across scenarios, else consumptions and the logs of what ran; then, one call each, why failed runs |
| | failed, and the modules of those whose steps are wanted; blueprints of what failed and can be replayed |
| dead_letters | numbers of dead letters of all scenarios, lists where they changed, two calls for each new one |

All that has to outlive the process is in the ledger; what is kept here only saves calls.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from exporter.model import FAILED, Listing, Observation, Workflow
from exporter.platform import BadItem, Fault, Known, Page, RunKey, Watches
from exporter.platforms.make.check import check
from exporter.platforms.make.config import MakeConfig
from exporter.platforms.make.mapping import is_execution_id, plain_id, runs, workflows
from exporter.platforms.make.mapping.workflows import Scenario
from exporter.platforms.make.reading.calls import Losses, get, pages, rows
from exporter.platforms.make.reading.dead_letters import DeadLetters
from exporter.platforms.make.reading.details import Causes, Details, Steps
from exporter.platforms.make.reading.feed import Feed, NoFeed
from exporter.platforms.make.reading.logs import Logs, notice_of
from exporter.platforms.make.reading.replays import Replays
from exporter.platforms.make.reading.scenarios import (
    Blueprints,
    Watch,
    all_scenarios,
    find_organization,
    learn_retention,
)
from exporter.wire.api import Api
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind

BLUEPRINTS_PER_SWEEP_MAX = 10
#: Teams whose webhooks are read in one sweep; with more of them they take turns.
HOOK_TEAMS_PER_SWEEP_MAX = 10
HOOKS_PER_PAGE = 1000
HOOK_PAGES_MAX = 10
#: What may be read only with a right that a token lacks is tried again after so many seconds.
REFUSED_SECONDS = 3600.0
COMPLETED_MAX = 200


class MakeClient:
    """The connection of one source."""

    def __init__(self, config: MakeConfig, api: Api) -> None:
        self._config = config
        self._api = api
        self._watch = Watch(config, api)
        self._blueprints = Blueprints(api)
        self._causes = Causes(api)
        self._steps = Steps(config, api)
        self._feed = Feed(config, api, self._watch)
        self._logs = Logs(config, api, self._watch)
        self._replays = Replays(config, api, self._blueprints)
        self._dead_letters = DeadLetters(config, api, self._watch, self._blueprints, self._replays)
        self._hooks_refused_until = 0.0

    def sweep(self, stream: str, known: Known, now: float) -> AsyncIterator[Page]:
        """Read one stream once."""
        match stream:
            case "quota":
                return self._quota(known)
            case "workflows":
                return self._workflows(known, now)
            case "runs":
                return self._runs(known, now)
            case "dead_letters":
                return self._dead_letters.sweep(known, now)
        raise ValueError(f"there is no stream {stream}")

    # Quota

    async def _quota(self, known: Known) -> AsyncIterator[Page]:
        for read in (self._organization, self._credits):
            try:
                yield await read(known)
            except BadItem as bad:
                yield Page(faults=[Fault(kind="bad_item", detail=str(bad))])
            except ApiError as error:
                if error.kind in (ErrorKind.AUTH, ErrorKind.RATE_LIMITED):
                    raise
                yield Page(faults=[Fault(kind=error.kind, detail=str(error))])

    async def _organization(self, known: Known) -> Page:
        """The limit of requests and the usage; the cursor keeps what other streams need of the rest."""
        before = known.cursor("quota", "organization") or {}
        organization_id = await find_organization(self._config, self._api, before.get("id"))
        answer = await get(self._api, "/organizations/{id}", lane=Lane.DEAD_LETTERS, ids={"id": organization_id})
        found = workflows.organization(answer.data, at=answer.at)
        learn_retention(self._api, found.kept_seconds)
        if found.requests_per_minute is not None:
            self._api.budget.learn_limit(found.requests_per_minute)
        remembered = {
            "id": organization_id,
            "run_seconds": found.run_seconds or before.get("run_seconds"),
            "kept_seconds": found.kept_seconds or before.get("kept_seconds"),
            "teams": found.teams or before.get("teams", {}),
        }
        return Page(observations=found.usage, cursors={"organization": remembered})

    async def _credits(self, known: Known) -> Page:
        """What all scenarios have used since the last reset."""
        used, at = dict[str, workflows.Used](), 0.0
        for scope in self._config.scopes:
            page = await rows(
                self._api, "/scenarios/consumptions", "scenarioConsumptions", lane=Lane.SWEEPS, query=[scope]
            )
            used.update(workflows.consumption(row) for row in page.rows)
            at = page.at
        total = workflows.credits(used.values(), at=at)
        return Page(observations=[] if total is None else [total])

    # Workflows

    async def _workflows(self, known: Known, now: float) -> AsyncIterator[Page]:
        teams = (known.cursor("quota", "organization") or {}).get("teams", {})
        found, complete, at = dict[str, Scenario](), True, now
        async for page in all_scenarios(self._api, self._config, lane=Lane.SWEEPS):
            watched, faults, at = list[Observation](), list[Fault](), page.at
            for row in page.rows:
                try:
                    item = workflows.scenario(row, at=page.at, teams=teams)
                except BadItem as bad:
                    faults.append(Fault(kind="bad_item", detail=str(bad)))
                    complete = False
                    continue
                found[item.workflow.id] = item
                self._watch.names[item.workflow.id] = item.workflow.name
                if self._watch.watches(item.workflow.id, known):
                    watched.append(self._ordered(item, known))
            yield Page(observations=watched, faults=faults, items=len(page.rows))
        mine = {key: item for key, item in found.items() if self._watch.watches(key, known)}
        if complete:
            self._replays.note_listing(found)
            self._watch.names = {key: item.workflow.name for key, item in found.items()}
            yield Page(observations=[Listing(at=at, workflow_ids=frozenset(mine))])
        losses = Losses()
        async for reading in self._orders(mine, known, losses):
            yield reading
        if now >= self._hooks_refused_until:
            async for reading in self._queues(mine, now, losses):
                yield reading

    def _ordered(self, item: Scenario, known: Known) -> Workflow:
        """The scenario with what its blueprint says, or said when it was last read."""
        blueprint, before = self._blueprints.kept(item.workflow.id, item.edited), known.workflows.get(item.workflow.id)
        ordered = blueprint.ordered if blueprint is not None else before is not None and before.ordered
        noticed = workflows.with_notice(item.workflow, notice_of(known, item.workflow.id))
        return workflows.with_order(noticed, ordered=ordered, dead_letters=item.dead_letters)

    async def _orders(self, found: Mapping[str, Scenario], known: Known, losses: Losses) -> AsyncIterator[Page]:
        """Read blueprints of scenarios with dead letters: whether these stop them."""
        wanted = [
            i for i in found.values() if i.dead_letters and self._blueprints.kept(i.workflow.id, i.edited) is None
        ]
        for item in wanted[:BLUEPRINTS_PER_SWEEP_MAX]:
            try:
                blueprint = await self._blueprints.read(item.workflow.id, item.edited, lane=Lane.SWEEPS)
                losses.passed()
            except ApiError as error:
                yield Page(faults=[losses.fault(error, item.workflow.id, of_item=True)])
                continue
            later = replace(item.workflow, at=max(self._api.platform_now(), item.workflow.at + 0.001))
            later = workflows.with_notice(later, notice_of(known, item.workflow.id))
            workflow = workflows.with_order(later, ordered=blueprint.ordered, dead_letters=item.dead_letters)
            yield Page(observations=[workflow])

    async def _queues(self, found: Mapping[str, Scenario], now: float, losses: Losses) -> AsyncIterator[Page]:
        """Read the webhooks of the teams whose scenarios have any."""
        by_hook = {item.hook_id: key for key, item in found.items() if item.hook_id is not None}
        teams = sorted({i.team_id for i in found.values() if i.hook_id is not None and i.team_id is not None})
        for team_id in _turn(teams, HOOK_TEAMS_PER_SWEEP_MAX, now):
            try:
                async for page in pages(
                    self._api,
                    "/hooks",
                    "hooks",
                    lane=Lane.SWEEPS,
                    limit=HOOKS_PER_PAGE,
                    pages_max=HOOK_PAGES_MAX,
                    query=[("teamId", team_id)],
                ):
                    yield Page(observations=_queues_of(page.rows, page.at, by_hook, found))
                losses.passed()
            except ApiError as error:
                yield Page(faults=[losses.fault(error, None)])
                if error.kind is ErrorKind.AUTH:
                    self._hooks_refused_until = now + REFUSED_SECONDS
                    return

    # Runs

    async def _runs(self, known: Known, now: float) -> AsyncIterator[Page]:
        counted_from = self._watch.counted_from(known, now)
        details = Details(self._causes, self._steps, self._replays, known, counted_from=counted_from, now=now)
        try:
            async for page in self._feed.read(known, now, details):
                yield details.with_letters(page)
            others = self._logs.introduce(known, now, details)
        except NoFeed:
            others = self._logs.read(known, now, details)
        try:
            async for page in others:
                yield details.with_letters(page)
        except ApiError as error:
            if error.kind is ErrorKind.AUTH:
                self._feed.try_again()
            raise
        async for page in details.ask():
            yield page

    async def complete(self, keys: Sequence[RunKey], known: Known, now: float) -> AsyncIterator[Page]:
        """Read these runs. One that cannot be found yet is left to the sweeps, which find it once it shows."""
        losses = Losses()
        for key in keys[:COMPLETED_MAX]:
            opened = known.open_runs.get(key.run_id)
            workflow_id = key.workflow_id or (None if opened is None else opened.workflow_id)
            if workflow_id is None:
                continue
            try:
                page = await self._completed(workflow_id, key.run_id)
                losses.passed()
            except ApiError as error:
                fault = losses.fault(error, workflow_id, of_item=True)
                page = Page(faults=[] if error.kind is ErrorKind.NOT_FOUND else [fault])
            yield page

    async def _completed(self, workflow_id: str, run_id: str) -> Page:
        endpoint = "/scenarios/{id}/logs/{executionId}"
        ids = {"id": workflow_id, "executionId": run_id}
        if not is_execution_id(run_id):
            return Page()  # the platform would refuse to look for it
        answer = await get(self._api, endpoint, lane=Lane.RUNNING, ids=ids)
        body: Mapping[str, Any] = answer.data if isinstance(answer.data, Mapping) else {}
        try:
            row = body.get("scenarioLog", body.get("scenarioLogs"))
            run = runs.run(row, workflow_id=workflow_id, latest=self._api.latest())
        except BadItem as bad:
            return Page(faults=[Fault(kind="bad_item", detail=str(bad), workflow_id=workflow_id)])
        if run is None:
            return Page()
        if run.result in FAILED and run.error is None:
            try:
                run = replace(run, error=await self._causes.of(run))
            except ApiError as error:
                if error.kind is ErrorKind.RATE_LIMITED:
                    raise
        return Page(observations=[run])

    def check(self) -> AsyncIterator[str | Watches]:
        """Try the token, its rights and what they give."""
        return check(self._config, self._api)


def _queues_of(
    found: Sequence[object], at: float, by_hook: Mapping[str, str], watched: Mapping[str, Scenario]
) -> list[Observation]:
    queues = list[Observation]()
    for row in found:
        fields = row if isinstance(row, Mapping) else {}
        scenario_id = plain_id(fields.get("scenarioId"))
        workflow_id = scenario_id if scenario_id in watched else by_hook.get(plain_id(fields.get("id")) or "")
        if workflow_id is not None:
            queue = workflows.queue(fields, at=at, workflow_id=workflow_id)
            queues += [] if queue is None else [queue]
    return queues


def _turn(items: Sequence[str], count: int, now: float) -> list[str]:
    """So many of the items, others every minute."""
    if len(items) <= count:
        return list(items)
    start = int(now // 60) * count % len(items)
    return [items[(start + i) % len(items)] for i in range(count)]
