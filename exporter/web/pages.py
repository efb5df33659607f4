"""The pages that people look at: the status page, its groups, one group. What they show is in memory."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from aiohttp import web

from exporter import __version__
from exporter.alerting.links import workflow_dashboard
from exporter.clock import Clock
from exporter.config.objectives import SloConfig
from exporter.model.groups import Group
from exporter.model.operations import OperationAction
from exporter.model.retries import RetryState
from exporter.retries.control import ControlError, retry_facts, workflow_name
from exporter.retries.facts import operation_facts
from exporter.source import Source
from exporter.store.script import StoreError
from exporter.web import status
from exporter.web.audit_pages import not_there_page, operation_page, retry_page, unread_page
from exporter.web.forms import Forms, html
from exporter.web.group_pages import (
    GROUPS_PER_PAGE,
    LETTERS_PER_PAGE,
    alert_of,
    group_page,
    groups_page,
    no_group_page,
)
from exporter.web.markup import Visitor, place
from exporter.web.page import (
    GROUPS_SHOWN_MAX,
    OPERATIONS_SHOWN_MAX,
    REFRESH_SECONDS,
    RETRIES_SHOWN_MAX,
    STILL,
    TROUBLE_SHOWN_MAX,
    page,
    unfolding,
)
from exporter.web.retry_routes import ControlRoutes
from exporter.web.verdict import Seen

#: An operation that has ended is shown for so long (seconds).
ENDED_SECONDS = 3600.0
#: Groups that may be unfolded at once, beside what has the page stand still.
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
        *,
        slo: SloConfig,
        store_error: Callable[[], Awaitable[str | None]],
    ) -> None:
        self._sources = sources
        self._control = control.control
        self._operations = control.operations
        self._book = control.book
        self._forms = forms
        self._clock = clock
        self._trace_url = trace_url
        self._slo = slo
        self._store_error = store_error
        self._reading = asyncio.Lock()  # the audit is read from its first row to its last: by one at a time

    def add_to(self, router: web.UrlDispatcher) -> None:
        # An id may hold whatever its platform likes: braces too, which a plain {id} does not take.
        router.add_get("/groups", self._groups)
        router.add_get("/groups/{id}", self._group)
        router.add_get("/retries/{id:[^/]+}", self._retry)
        router.add_get("/retries/{source}/{id:[^/]+}", self._retry)
        router.add_get("/operations/{id}", self._operation)

    async def first(self, request: web.Request) -> web.Response:
        """The status page."""
        now, groups = self._clock.now(), self._operations.groups()
        approvals = Counter(
            one.ladder.decision.policy for one in self._control.everything() if one.ladder.decision.awaits_approval
        )
        opened, trouble = _opened(request), status.in_trouble(self._sources, self._slo, now=now)
        retries = sorted(self._book.everything(), key=lambda retry: not retry.is_open)  # the newest of each
        seen = Seen(
            status=status.status(self._sources, now=now, version=__version__),
            store_error=await self._store_error(),
            trouble=trouble,
            can_repair={(one.source, one.workflow_id): self._repairs(one) for one in trouble[:TROUBLE_SHOWN_MAX]},
            groups=self._facts(_shown(groups, opened), now, opened),
            groups_of=Counter(group.source for group in groups),
            approvals=dict(approvals.most_common()),
            needy=_needy(groups),
            unsettled=[retry_facts(retry) for retry in retries if retry.state is RetryState.HELD and retry.is_open],
            operations=self._newest(now),
            mode=self._book.rules.mode.value,
            policies=len(self._book.rules.policies),
            paused=status.paused(self._sources, self._book, now=now),
            retries=[retry_facts(retry) for retry in retries[:RETRIES_SHOWN_MAX]],
            rails=status.rails(self._sources, self._book, now=now),
        )
        # By its address: to one that has a fragment the browser would only scroll.
        again = f"{REFRESH_SECONDS}; url={unfolding(opened)}"
        return html(page(seen, self._visitor(request), opened), refresh=None if STILL in opened else again)

    def _facts(self, groups: Sequence[Group], now: float, opened: Collection[str]) -> list[dict[str, Any]]:
        known = self._sources, self._operations, self._book
        return status.groups(*known, groups, now=now, slo=self._slo, opened=opened)

    def _repairs(self, one: status.Trouble) -> list[str]:
        """What the platform can be asked for to end the trouble of a workflow."""
        alerts = {problem.alert for problem in one.problems}
        asked = {
            OperationAction.REACTIVATE: one.workflow_id if "AutomationWorkflowBlocked" in alerts else None,
            OperationAction.STOP: one.active_run_id if "AutomationWorkflowStuck" in alerts else None,
        }
        objection = self._operations.repair_objection
        return [
            action.value
            for action, identity in asked.items()
            if identity is not None and objection(action, one.source, identity) is None
        ]

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
        facts = self._facts(shown, now, _opened(request))
        return html(groups_page(facts, len(groups), first, now, self._visitor(request), _opened(request)))

    async def _group(self, request: web.Request) -> web.Response:
        now, first = self._clock.now(), _from(request)
        try:
            group = self._operations.group(request.match_info["id"])
        except ControlError as exc:
            return html(no_group_page(), status=exc.status)
        [facts] = self._facts([group], now, [group.id])
        wanted = frozenset(group.letters[first : first + LETTERS_PER_PAGE])
        letters = [
            status.letter(self._sources[group.source], self._operations, one, trace_url=self._trace_url)
            for one in self._control.everything()
            if one.subject.letter.id in wanted and one.subject.source == group.source
        ]
        return html(group_page(facts, letters, first, now, self._visitor(request)))

    async def _retry(self, request: web.Request) -> web.Response:
        """One retry by its id; or all of one dead letter, SOURCE/ID."""
        parts = [request.match_info[key] for key in ("source", "id") if key in request.match_info]
        identity, base = "/".join(parts), "../" * len(parts)
        retries = [retry_facts(retry) for retry in self._book.named(identity)]
        letter = self._letter(*parts) if len(parts) > 1 else None
        audit, unread = list[dict[str, Any]](), None
        try:
            if retries or letter is not None or await self._book.is_known(identity):
                async with self._reading:
                    audit = await self._book.audit_of(identity)
        except StoreError as exc:
            unread = str(exc)
        if not retries and not audit and letter is None:
            if unread is not None:
                return html(unread_page(unread, base=base), status=503)
            return html(not_there_page(identity, base=base), status=404)
        known = identity, letter, retries, audit, self._clock.now(), self._visitor(request)
        return html(retry_page(*known, base=base, unread=unread))

    def _letter(self, name: str, identity: str) -> dict[str, Any] | None:
        """A dead letter that is open."""
        try:
            found = self._control.one(name, identity)
        except ControlError:
            return None
        source, workflow_id = self._sources[name], found.subject.letter.workflow_id
        workflow = workflow_name(found.subject)
        facts = status.letter(source, self._operations, found, trace_url=self._trace_url)
        return {
            **facts,
            "title": source.platform.title,
            "workflow": workflow,
            "workflow_url": source.workflow_url(workflow_id),
            "dashboard": workflow_dashboard(self._slo, name, workflow, workflow_id),
            "alert": alert_of(facts["decision"]),
        }

    async def _operation(self, request: web.Request) -> web.Response:
        identity = request.match_info["id"]
        try:
            state = await self._operations.one(identity)
        except ControlError as exc:
            return html(not_there_page(identity, base="../"), status=exc.status)
        except StoreError as exc:
            return html(unread_page(str(exc), base="../"), status=503)
        return html(operation_page(operation_facts(state), self._clock.now(), base="../"))

    def _visitor(self, request: web.Request) -> Visitor:
        visitor = Visitor() if self._forms is None else self._forms.visitor(request)
        return replace(visitor, at=place(request.rel_url.raw_path_qs.removeprefix("/")))


def _shown(groups: Sequence[Group], opened: frozenset[str]) -> list[Group]:
    """The largest groups, and those that are unfolded."""
    return [group for number, group in enumerate(groups) if number < GROUPS_SHOWN_MAX or group.id in opened]


def _needy(groups: Sequence[Group]) -> dict[str, list[tuple[str, str, int]]]:
    """Groups with dead letters that need a person, by why: group, workflow, how many.

    What a person or a policy has put aside is where somebody wanted it to be.
    """
    found: dict[str, list[tuple[str, str, int]]] = {}
    for verb, label in (("escalate", "escalate: "), ("quarantine", "quarantine: exhausted")):
        for group in groups:
            number = sum(n for known, n in group.decisions.items() if known.startswith(label))
            if number:
                found.setdefault(verb, []).append((group.id, group.workflow or group.workflow_id, number))
    return found


def _is_recent(ended_at: float | None, now: float) -> bool:
    return ended_at is None or now - ended_at < ENDED_SECONDS


def _opened(request: web.Request) -> frozenset[str]:
    """The groups that are to be unfolded."""
    given = request.query.get("open", "").split(",")[: OPENED_MAX + 1]
    return frozenset(one for one in given if one.isascii() and one.isalnum())


def _from(request: web.Request) -> int:
    given = request.query.get("from", "0")
    return int(given) if given.isascii() and given.isdigit() and len(given) < 9 else 0
