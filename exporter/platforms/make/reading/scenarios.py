"""Scenarios as listed, which of them a source watches, and their blueprints, read once for each edit."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

from exporter.model import DeadLetter, ResolvedBy
from exporter.platform import BadItem, Known, in_turns, selected
from exporter.platforms.make.config import MakeConfig
from exporter.platforms.make.mapping import as_object, milliseconds, plain_id, workflows
from exporter.platforms.make.mapping.workflows import Blueprint, scenario
from exporter.platforms.make.reading.calls import Rows, bad_payload, get, pages
from exporter.wire.api import Api
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind

SCENARIOS_PER_PAGE = 1000
SCENARIO_PAGES_MAX = 100
BLUEPRINTS_KEPT_MAX = 2000
#: A listing that takes so much of what an interval gives is read once for all that need it.
DEAR_SHARE = 1 / 40
#: A dead letter that vanishes so many seconds before the account's retention ends, or a tenth of it, has expired.
EXPIRY_MARGIN_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listing:
    """All scenarios as one stream has listed them, for the other."""

    at: float
    lane: Lane
    pages: Sequence[Rows]


#: Of each connection: the listing that one stream has read and the other has not taken.
_LISTINGS: WeakKeyDictionary[Api, _Listing] = WeakKeyDictionary()


async def all_scenarios(
    api: Api, config: MakeConfig, *, lane: Lane, columns: Sequence[str] = ()
) -> AsyncIterator[Rows]:
    """All scenarios of the configured organization or teams, watched or not. Raises ``ApiError`` if it cannot end.

    Two streams need them, each in its own lane. Where listing them takes much of the budget, whoever comes within half
    an interval after the other takes what that one has read.
    """
    interval, now = config.poll.interval, api.platform_now()
    listing = _LISTINGS.pop(api, None)
    if listing is not None and listing.lane != lane and 0.0 <= now - listing.at <= interval / 2:
        for page in listing.pages:
            yield page
        return
    is_dear = len(config.scopes) >= DEAR_SHARE * api.budget.rate * interval / 60.0
    kept = list[Rows]()
    async for page in _listed(api, config, lane=lane, columns=() if is_dear else columns):
        kept += [page] if is_dear else []
        yield page
    if kept:
        _LISTINGS[api] = _Listing(at=now, lane=lane, pages=kept)


async def _listed(api: Api, config: MakeConfig, *, lane: Lane, columns: Sequence[str]) -> AsyncIterator[Rows]:
    order = [("pg[sortBy]", "id"), ("pg[sortDir]", "asc")]
    for scope in config.scopes:
        query: list[tuple[str, str | int]] = [scope, *(("cols[]", column) for column in columns), *order]
        full = False
        async for page in pages(
            api,
            "/scenarios",
            "scenarios",
            lane=lane,
            limit=SCENARIOS_PER_PAGE,
            pages_max=SCENARIO_PAGES_MAX,
            query=query,
        ):
            async for part in in_turns(page.rows):
                yield replace(page, rows=list(part))
            full = page.full
        if full:
            raise bad_payload("/scenarios", f"more than {SCENARIO_PAGES_MAX} pages")


async def find_organization(config: MakeConfig, api: Api, remembered: str | None = None) -> str:
    """The configured organization, or the one the configured teams belong to. Raises ``BadItem``, ``ApiError``."""
    if config.organization_id is not None:
        return str(config.organization_id)
    if remembered is not None:
        return remembered
    answer = await get(api, "/teams/{id}", lane=Lane.DEAD_LETTERS, ids={"id": config.team_ids[0]})
    team = as_object(as_object(answer.data, "the answer").get("team"), "the team")
    found = plain_id(team.get("organizationId"))
    if found is None:
        raise BadItem("the team does not say its organization")
    return found


class Watch:
    """The scenarios of one source that its config includes and does not exclude, when all that is at hand is an id.

    Names decide too, so they are remembered.
    """

    def __init__(self, config: MakeConfig, api: Api) -> None:
        self._config = config
        self._api = api
        #: Of everything listed last, watched or not.
        self.names: dict[str, str | None] = {}

    def counted_from(self, known: Known, now: float) -> float:
        """Runs that ended before it do not count: the first sweep ever, or earlier where a backfill is configured."""
        first = now if known.first_sweep_at is None else known.first_sweep_at
        return first - self._config.backfill_seconds

    def watches(self, workflow_id: str, known: Known) -> bool | None:
        """Whether it is watched; None if that depends on a name nobody has read yet."""
        if not self._config.include and not self._config.exclude:
            return True
        workflow = known.workflows.get(workflow_id)
        if workflow_id in self.names:
            name = self.names[workflow_id]
        elif workflow is not None and workflow.at > 0:
            name = workflow.name
        else:
            return None
        return selected(self._config, workflow_id, name)

    async def find_out(self, workflow_id: str, known: Known) -> bool:
        """The same, reading the name where nobody has. A scenario that is gone has none. Raises ``ApiError``."""
        watched = self.watches(workflow_id, known)
        if watched is not None:
            return watched
        name = None
        try:
            answer = await get(self._api, "/scenarios/{id}", lane=Lane.SWEEPS, ids={"id": workflow_id})
            row = answer.data.get("scenario") if isinstance(answer.data, dict) else None
            name = scenario(row, at=answer.at, teams={}).workflow.name
        except BadItem:
            pass
        except ApiError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
        self.names[workflow_id] = name
        return selected(self._config, workflow_id, name)


#: Of each connection: how long untreated dead letters are kept (seconds), where the license says so.
_KEPT: WeakKeyDictionary[Api, float] = WeakKeyDictionary()


def learn_retention(api: Api, seconds: float | None) -> None:
    """What the license of the organization says of how long things are kept; None where it does not."""
    if seconds is not None:
        _KEPT[api] = seconds


def outlived(api: Api, letter: DeadLetter, at: float) -> bool:
    """Whether a dead letter is older than anything the account keeps."""
    kept = _KEPT.get(api)
    return kept is not None and at - letter.opened_at >= kept


def vanished(api: Api, letter: DeadLetter, at: float) -> ResolvedBy:
    """What became of a dead letter that is no longer there at ``at``: lost with its age, or nobody can tell.

    One that somebody resolved says so itself, or did when it was last read.
    """
    kept = _KEPT.get(api)
    if kept is not None and at - letter.opened_at >= kept - min(EXPIRY_MARGIN_SECONDS, kept / 10):
        return ResolvedBy.EXPIRED
    return ResolvedBy.UNKNOWN


class Blueprints:
    """The blueprints of one source that were read lately."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._kept: dict[str, tuple[str | None, Blueprint]] = {}

    def kept(self, workflow_id: str, edited: str | None) -> Blueprint | None:
        """The blueprint of this edit, if it has been read."""
        of_edit, blueprint = self._kept.get(workflow_id, (None, None))
        return blueprint if of_edit == edited else None

    async def read(self, workflow_id: str, edited: str | None, *, lane: Lane) -> Blueprint:
        """The blueprint of this edit, read if need be. Raises ``ApiError``."""
        found = self.kept(workflow_id, edited)
        if found is None:
            answer = await get(self._api, "/scenarios/{id}/blueprint", lane=lane, ids={"id": workflow_id})
            found = workflows.blueprint(answer.data)
            self._kept[workflow_id] = (edited, found)
            while len(self._kept) > BLUEPRINTS_KEPT_MAX:
                del self._kept[next(iter(self._kept))]
        return found

    async def modules_of(self, letter: DeadLetter, edited: str | None, *, lane: Lane) -> Mapping[str, str]:
        """The names of the modules that a dead letter ran with: of the blueprint frozen in it. Raises ``ApiError``.

        As long as the scenario was not edited since, that is its own, which costs no call for each dead letter.
        """
        at = milliseconds(edited)
        if at is not None and at <= round(letter.opened_at * 1000):
            return (await self.read(letter.workflow_id, edited, lane=lane)).modules
        answer = await get(self._api, "/dlqs/{id}/blueprint", lane=lane, ids={"id": letter.id})
        return workflows.blueprint(answer.data).modules
