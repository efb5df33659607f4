"""Trying a Make source before it runs: the token, its rights, the limit, what there is to watch."""

from collections.abc import AsyncIterator, Iterator, Mapping
from urllib.parse import urlsplit

from exporter.platform import BadItem, Watches, selected
from exporter.platforms.make.config import MakeConfig
from exporter.platforms.make.mapping import workflows
from exporter.platforms.make.mapping.workflows import Scenario
from exporter.platforms.make.reading.calls import get
from exporter.platforms.make.reading.scenarios import all_scenarios, find_organization
from exporter.platforms.make.repairing import REPAIRING
from exporter.wire.api import Api
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind

LANE = Lane.SWEEPS
#: What a token needs, and what is missing without.
RIGHTS = {
    "scenarios:read": "nothing of this source will be seen",
    "dlqs:read": "dead letters of this source will not be seen",
    "organizations:read": "the limit of requests and the usage will not be known",
    "hooks:read": "queues of webhooks will not be seen",
}
#: What only retrying needs, and that is optional.
RETRY_RIGHT = "dlqs:write"
#: The same of runs that can only be replayed.
REPLAY_RIGHT = "scenarios:run"


async def check(config: MakeConfig, api: Api) -> AsyncIterator[str | Watches]:
    """One line for each thing tried. Raises ``ApiError`` if the token is refused."""
    rights = await _rights(api)
    yield "ok: credential accepted"
    needed = RIGHTS if config.organization_id is not None else {**RIGHTS, "teams:read": RIGHTS["organizations:read"]}
    missing = set[str]() if rights is None else needed.keys() - rights
    for right in sorted(missing):
        yield f"problem: right {right} is missing; {needed[right]}"
    yield _retries(rights)
    if config.replay:
        yield _replays(rights)
    if not missing & {"organizations:read", "teams:read"}:
        async for line in _organization(config, api):
            yield line
    for granted in _grants(config, rights):
        yield granted
    if "scenarios:read" in missing:
        return
    try:
        found = await _watched(config, api)
    except (ApiError, BadItem) as error:
        yield f"problem: {error}"
        return
    yield f"workflows: {len(found)}"
    if not found:
        yield "problem: no scenario is watched; see organization_id, team_ids, include and exclude"
    elif rights is None:
        async for line in _tried(api, found[0]):
            yield line
    try:
        await get(api, "/scenarios/logs", lane=LANE, query=[("pg[limit]", 1)])
        yield "ok: runs are read from the feed across scenarios"
    except ApiError:
        yield "ok: no feed across scenarios here; the logs of scenarios that ran are read one by one"


async def _rights(api: Api) -> set[str] | None:
    """The scopes of the token, None where the platform does not say."""
    try:
        answer = await get(api, "/users/me/current-authorization", lane=LANE)
    except ApiError as error:
        if error.kind is not ErrorKind.NOT_FOUND:
            raise
        await get(api, "/users/me", lane=LANE)
        return None
    body = answer.data.get("authorization") if isinstance(answer.data, Mapping) else None
    scope = body.get("scope") if isinstance(body, Mapping) else None
    return {right for right in scope if isinstance(right, str)} if isinstance(scope, list) else None


def _retries(rights: set[str] | None) -> str:
    """Whether the token may retry dead letters, which nobody tries out."""
    if rights is None:
        return f"note: the rights of the token are not told; retrying dead letters needs {RETRY_RIGHT}"
    if RETRY_RIGHT not in rights:
        return f"note: right {RETRY_RIGHT} is missing; dead letters of this source cannot be retried"
    return "ok: dead letters may be retried"


def _replays(rights: set[str] | None) -> str:
    """Whether the token may replay runs, which nobody tries out either."""
    if rights is None:
        return f"note: replay is on; that needs {REPLAY_RIGHT}, and the rights of the token are not told"
    if REPLAY_RIGHT not in rights:
        return f"note: right {REPLAY_RIGHT} is missing; replay is on, and no run of this source can be replayed"
    return "ok: runs may be replayed"


async def _organization(config: MakeConfig, api: Api) -> AsyncIterator[str | Watches]:
    """Its limit, and what of it is watched: an organization is one of its zone."""
    try:
        organization_id = await find_organization(config, api)
        answer = await get(api, "/organizations/{id}", lane=LANE, ids={"id": organization_id})
        limit = workflows.organization(answer.data, at=answer.at).requests_per_minute
    except (ApiError, BadItem) as error:
        yield f"problem: {error}; the limit of requests and the usage will not be known"
        return
    zone = answer.data["organization"].get("zone") or urlsplit(config.url).hostname
    whole = (str(zone), f"organization {organization_id}")
    for team_id in config.team_ids:
        yield Watches(place=(*whole, f"team {team_id}"))
    if not config.team_ids:
        yield Watches(place=whole)
    if limit is None:
        yield "ok: the organization does not say its limit of requests"
    elif limit < 1:
        yield "problem: the organization's license allows no requests to the API"
    else:
        yield f"ok: limit {limit:g} requests a minute"


async def _watched(config: MakeConfig, api: Api) -> list[Scenario]:
    found = dict[str, Scenario]()
    async for page in all_scenarios(api, config, lane=LANE):
        items = [workflows.scenario(row, at=page.at, teams={}) for row in page.rows]
        found |= {i.workflow.id: i for i in items if selected(config, i.workflow.id, i.workflow.name)}
    return list(found.values())


async def _tried(api: Api, scenario: Scenario) -> AsyncIterator[str]:
    """Where the rights are not told, calls that need them."""
    calls: list[tuple[str, str, tuple[str, str]]] = [("/dlqs", "dlqs:read", ("scenarioId", scenario.workflow.id))]
    if scenario.team_id is not None:
        calls.append(("/hooks", "hooks:read", ("teamId", scenario.team_id)))
    for endpoint, right, query in calls:
        try:
            await get(api, endpoint, lane=LANE, query=[query, ("pg[limit]", 1)])
        except ApiError as error:
            yield f"problem: {error}; {RIGHTS[right]}"


def _grants(config: MakeConfig, rights: set[str] | None) -> Iterator[str]:
    """Whether the token may do the repairs that are granted, which nobody tries out."""
    if rights is None:
        yield from REPAIRING.untold(config.grant)
        return
    for offer in REPAIRING.offers:
        if offer.action not in config.grant:
            continue
        if offer.needs not in rights:
            yield f"problem: right {offer.needs} is missing; {offer.action} is granted and cannot be done"
        else:
            yield f"ok: {offer.action} may be done ({offer.needs})"
