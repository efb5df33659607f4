"""The pages that people look at: the status page, its groups, one group. What they show is in memory."""

from collections import Counter
from collections.abc import Mapping, Sequence

from aiohttp import web

from exporter import __version__
from exporter.clock import Clock
from exporter.model.groups import Group
from exporter.retries.control import ControlError
from exporter.retries.facts import operation_facts
from exporter.source import Source
from exporter.web import status
from exporter.web.forms import Forms, html
from exporter.web.group_pages import GROUPS_PER_PAGE, LETTERS_PER_PAGE, group_page, groups_page, no_group_page
from exporter.web.markup import Visitor
from exporter.web.page import GROUPS_SHOWN_MAX, OPERATIONS_SHOWN_MAX, Seen, page
from exporter.web.retry_routes import ControlRoutes

#: An operation that has ended is shown for so long (seconds).
ENDED_SECONDS = 3600.0
#: Groups that may be unfolded at once.
OPENED_MAX = 10


class Pages:
    """Makes them."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        control: ControlRoutes,
        forms: Forms | None,
        clock: Clock,
        trace_url: status.TraceUrl,
    ) -> None:
        self._sources = sources
        self._control = control.control
        self._operations = control.operations
        self._book = control.book
        self._forms = forms
        self._clock = clock
        self._trace_url = trace_url

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_get("/groups", self._groups)
        router.add_get("/groups/{id}", self._group)

    async def first(self, request: web.Request) -> web.Response:
        """The status page."""
        now, groups = self._clock.now(), self._operations.groups()
        approvals = Counter(
            one.ladder.decision.policy for one in self._control.everything() if one.ladder.decision.awaits_approval
        )
        opened = _opened(request)
        seen = Seen(
            status=status.status(self._sources, now=now, version=__version__),
            trouble=status.in_trouble(self._sources, now=now),
            groups=status.groups(self._sources, self._book, _shown(groups, opened), now=now),
            groups_of=Counter(group.source for group in groups),
            approvals=dict(approvals.most_common()),
            needy=_needy(groups),
            operations=self._newest(now),
            retries=status.retries(self._sources, self._book, now=now),
            rails=status.rails(self._sources, self._book, now=now),
        )
        return html(page(seen, self._visitor(request), opened))

    def _newest(self, now: float) -> list[dict[str, object]]:
        """The operations under way, then those that ended lately."""
        found = [state for state in self._operations.newest() if _is_recent(state.operation.ended_at, now)]
        found.sort(key=lambda state: state.operation.ended_at is not None)
        return [
            operation_facts(state, new_since=self._operations.new_since(state), items=False)
            for state in found[:OPERATIONS_SHOWN_MAX]
        ]

    async def _groups(self, request: web.Request) -> web.Response:
        now, groups, first = self._clock.now(), self._operations.groups(), _from(request)
        shown = groups[first : first + GROUPS_PER_PAGE]
        facts = status.groups(self._sources, self._book, shown, now=now)
        return html(groups_page(facts, len(groups), first, now, self._visitor(request), _opened(request)))

    async def _group(self, request: web.Request) -> web.Response:
        now, first = self._clock.now(), _from(request)
        try:
            group = self._operations.group(request.match_info["id"])
        except ControlError as exc:
            return html(no_group_page(), status=exc.status)
        [facts] = status.groups(self._sources, self._book, [group], now=now)
        wanted = frozenset(group.letters[first : first + LETTERS_PER_PAGE])
        letters = [
            status.letter(self._sources[group.source], one, trace_url=self._trace_url)
            for one in self._control.everything()
            if one.subject.letter.id in wanted and one.subject.source == group.source
        ]
        return html(group_page(facts, letters, first, now, self._visitor(request)))

    def _visitor(self, request: web.Request) -> Visitor:
        return Visitor() if self._forms is None else self._forms.visitor(request)


def _shown(groups: Sequence[Group], opened: frozenset[str]) -> list[Group]:
    """The largest groups, and those that are unfolded."""
    return [group for number, group in enumerate(groups) if number < GROUPS_SHOWN_MAX or group.id in opened]


def _needy(groups: Sequence[Group]) -> dict[str, list[tuple[str, str, int]]]:
    """Groups with dead letters that need a person, by why: group, workflow, how many."""
    found: dict[str, list[tuple[str, str, int]]] = {}
    for verb in ("escalate", "quarantine"):
        for group in groups:
            number = sum(n for label, n in group.decisions.items() if label.startswith(f"{verb}:"))
            if number:
                found.setdefault(verb, []).append((group.id, group.workflow or group.workflow_id, number))
    return found


def _is_recent(ended_at: float | None, now: float) -> bool:
    return ended_at is None or now - ended_at < ENDED_SECONDS


def _opened(request: web.Request) -> frozenset[str]:
    """The groups that are to be unfolded."""
    given = request.query.get("open", "").split(",")[:OPENED_MAX]
    return frozenset(one for one in given if one.isascii() and one.isalnum())


def _from(request: web.Request) -> int:
    given = request.query.get("from", "0")
    return int(given) if given.isascii() and given.isdigit() and len(given) < 9 else 0
