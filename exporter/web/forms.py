"""Acting on the status page: signing in with the admin token, and the forms behind its buttons.

A session is a random cookie that no script and no other site can read or send; each form carries a secret of the
session, and what another site sends is refused by where it comes from. Nothing here exists without an admin token.
"""

import functools
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from aiohttp import web

from exporter.clock import Clock
from exporter.model import words
from exporter.model.operations import OperationAction
from exporter.retries.control import Control, ControlError, workflow_name
from exporter.retries.operations import Operations, Selection
from exporter.store.script import StoreError
from exporter.web.markup import Visitor, place
from exporter.web.page import sign_in_page
from exporter.web.proof import same
from exporter.web.questions import ACTIONS, NAMED_BEFORE, confirm_page, named_letter, named_plan, resume_page
from exporter.wire import body as bodies
from exporter.wire.body import BodyError
from exporter.wire.peers import Guesses, Waiting, peer_of

COOKIE = "automation_exporter_session"
SESSION_SECONDS = 43200.0
SESSIONS_MAX = 100
#: Wrong tokens in a row after which a peer has to wait before it signs in, and how long (seconds).
WRONG_MAX, WRONG_WAIT = 5, 60.0
#: A form to sign in with has at most this many bytes; any form has this long (seconds) to arrive, and some fields.
SIGN_IN_BYTES_MAX, FORM_SECONDS_MAX, FIELDS_MAX = 16_384, 15.0, 5_000
#: Forms to sign in with that may be on their way: of one peer, and of all.
WAITING_PER_PEER_MAX, WAITING_MAX = 8, 64
#: What a session was asked and has not confirmed is kept, up to so many.
ASKED_MAX = 20
WHY_CHARS_MAX = 200
WHO = "status page"
_DONE = {
    OperationAction.APPROVE: "Approved",
    OperationAction.RETRY: "To be retried now",
    OperationAction.HOLD: "Held",
    OperationAction.RELEASE: "Released",
    OperationAction.DISCARD: "To be discarded",
    OperationAction.FIX_AND_RETRY: "To be fixed and retried",
    OperationAction.RERUN: "To be run again",
    OperationAction.REACTIVATE: "To be switched on",
    OperationAction.STOP: "To be stopped",
}
Form = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What a person was asked to confirm: to be done to these and no others."""

    action: OperationAction
    selection: Selection
    keys: Sequence[tuple[str, str]]
    sent: bool | None = None  # of retries whose outcome nobody knows: whether they had an effect


@dataclass(slots=True, kw_only=True)
class _Session:
    csrf: str
    until: float
    notice: str | None = None
    asked: dict[str, _Asked] = field(default_factory=dict)  # what was asked and not confirmed yet, the oldest first


class Forms:
    """The sessions and the pages that act. Made only where there is an admin token."""

    def __init__(self, control: Control, operations: Operations, token: str, clock: Clock, *, secure: bool) -> None:
        self._control = control
        self._operations = operations
        self._token = token
        self._clock = clock
        self._secure = secure
        self._sessions: dict[str, _Session] = {}
        self._csrf = secrets.token_urlsafe(16)  # of the sign-in form, before there is a session
        self._guesses = Guesses(wrong_max=WRONG_MAX, wait_seconds=WRONG_WAIT)
        self._waiting = Waiting(per_peer_max=WAITING_PER_PEER_MAX, total_max=WAITING_MAX)

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_get("/sign-in", self._sign_in_form)
        router.add_post("/sign-in", self._sign_in)
        router.add_post("/sign-out", self._acting(self._sign_out, home="./"))
        router.add_get("/confirm", self._confirm)
        router.add_post("/act/{action}", self._acting(self._act, home="../"))

    def visitor(self, request: web.Request) -> Visitor:
        """Who looks at the page; a notice is shown once."""
        session = self._session(request)
        if session is None:
            return Visitor(control=True)
        notice, session.notice = session.notice, None
        return Visitor(control=True, csrf=session.csrf, notice=notice)

    def _session(self, request: web.Request) -> _Session | None:
        session = self._sessions.get(request.cookies.get(COOKIE, ""))
        return session if session is not None and self._clock.now() < session.until else None

    # Signing in

    async def _sign_in_form(self, request: web.Request) -> web.Response:
        return html(sign_in_page(csrf=self._csrf, at=place(request.query.get("at", ""))))

    async def _sign_in(self, request: web.Request) -> web.Response:
        try:
            form = await self._read(request, limit=SIGN_IN_BYTES_MAX)
        except BodyError as exc:
            problem = f"{str(exc).capitalize()}: try again."
            return html(sign_in_page(csrf=self._csrf, problem=problem), status=exc.status)
        now, peer, at = self._clock.now(), peer_of(request.transport), _place(form)
        again = functools.partial(sign_in_page, csrf=self._csrf, at=at)
        if not _same_site(request) or not same(_field(form, "csrf"), self._csrf):
            return html(again(problem="This form has expired: try again."), status=403)
        if self._guesses.must_wait(peer, now):
            return html(again(problem="Too many wrong tokens: wait a minute."), status=429)
        if not same(_field(form, "token"), self._token):
            self._guesses.wrong(peer, now)
            return html(again(problem="That is not the admin token."), status=401)
        self._guesses.right(peer)
        self._sessions = {key: one for key, one in self._sessions.items() if now < one.until}
        if len(self._sessions) >= SESSIONS_MAX:
            del self._sessions[min(self._sessions, key=lambda key: self._sessions[key].until)]
        key = secrets.token_urlsafe(32)
        self._sessions[key] = _Session(csrf=secrets.token_urlsafe(16), until=now + SESSION_SECONDS)
        response = _back("./" + at)
        # Without a path of our own the browser takes the folder of this page, which may lie under a prefix that only
        # the proxy in front knows.
        response.set_cookie(
            COOKIE, key, max_age=int(SESSION_SECONDS), httponly=True, samesite="Strict", secure=self._secure, path=""
        )
        return response

    async def _sign_out(self, request: web.Request, session: _Session, form: Form) -> web.Response:
        self._sessions.pop(request.cookies.get(COOKIE, ""), None)
        response = _back("./")
        response.del_cookie(COOKIE, path="")
        return response

    async def _read(self, request: web.Request, *, limit: int) -> Form:
        """The fields of a form, whatever was sent in its place. Raises ``BodyError``."""
        if request.content_type != "application/x-www-form-urlencoded":
            raise BodyError(415, "this is not the form of this page")
        if bodies.coding(request.headers.get("Content-Encoding", "")) != "":
            raise BodyError(415, "a form must not be compressed")
        try:
            async with self._waiting.wait(peer_of(request.transport), seconds=FORM_SECONDS_MAX):
                sent = await bodies.read(request, limit=limit)
        except TimeoutError:
            raise bodies.late() from None
        try:
            return parse_qs(sent.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=FIELDS_MAX)
        except ValueError:
            raise BodyError(400, "the form has too many fields") from None

    # Acting

    def _acting(
        self, handler: Callable[[web.Request, _Session, Form], Awaitable[web.Response]], *, home: str
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        """Only for who has signed in, and from a form of ours. ``home`` is the way from there to the page."""

        async def acting(request: web.Request) -> web.Response:
            session = self._session(request)
            if session is None:
                return _back(f"{home}sign-in")
            try:
                form = await self._read(request, limit=request.client_max_size)
            except BodyError as exc:
                return web.Response(status=exc.status, text=f"{exc}\n")
            if not _same_site(request) or not same(_field(form, "csrf"), session.csrf):
                return web.Response(status=403, text="This form does not come from this page, or has expired.\n")
            return await handler(request, session, form)

        return acting

    async def _confirm(self, request: web.Request) -> web.Response:
        """Show what would be done, and to which; nothing is done by looking."""
        session, at = self._session(request), place(request.query.get("at", ""))
        if session is None:
            return _back("./sign-in")
        try:
            if request.query.get("action") == "resume":
                return html(self._asked_to_resume(session, at))
            return html(await self._asked(request.query, session, at))
        except (ControlError, StoreError) as exc:
            session.notice = str(exc)
            return _back("./" + at)

    async def _asked(self, query: Mapping[str, str], session: _Session, at: str) -> str:
        """The page that asks, with a frozen list of what it is about. Raises ``ControlError``."""
        asked, what, selection = query.get("action", ""), "", Selection()
        if asked not in ACTIONS:
            raise ControlError(f"there is no action {asked}", status=404)
        if "id" in query:
            what, selection = query["id"], Selection(ids=[_key(query["id"])])
        elif "group" in query:
            group = self._operations.group(query["group"])
            name = group.workflow or group.workflow_id
            what, selection = f"{name} ({group.source}): {group.error}", Selection(group=group.id)
        elif "policy" in query:
            what, selection = f"Under the policy {query['policy']}", Selection(policy=query["policy"])
        action, sent = OperationAction(asked), None
        if action is OperationAction.RELEASE and selection.ids:
            sent = {"yes": True, "no": False}.get(query.get("sent", ""))
        answer = await self._looked(action, selection, settles=sent is not None)
        keys = [_key(listed) for listed in answer["dead_letters"]]
        while len(session.asked) >= ASKED_MAX:
            del session.asked[next(iter(session.asked))]
        token = secrets.token_urlsafe(8)
        session.asked[token] = _Asked(action=action, selection=selection, keys=keys, sent=sent)
        named = [named_plan(plan) for plan in answer.get("plans", ())] or self._named(keys[:NAMED_BEFORE])
        return confirm_page(
            action,
            named[:NAMED_BEFORE],
            len(keys),
            answer["refused"],
            what=what,
            asked=token,
            csrf=session.csrf,
            sent=sent,
            at=at,
        )

    async def _looked(self, action: OperationAction, selection: Selection, *, settles: bool) -> Mapping[str, Any]:
        """What an operation would be about; of a repair, what its platform says of it. Raises ``ControlError``."""
        options: dict[str, Any] = {"who": WHO, "dry_run": True}
        if action.is_repair or settles:
            return await self._operations.begin(action, selection, **options)
        found = {(one.subject.source, one.subject.letter.id): one for one in self._operations.selected(selection)}
        if action is OperationAction.RELEASE and not selection.ids:
            found = {key: one for key, one in found.items() if self._operations.objection(action, key, one) is None}
            if not found:
                raise ControlError("nothing holds any of them")
        return await self._operations.begin(action, selection, only=found.keys(), **options)

    def _named(self, keys: Sequence[tuple[str, str]]) -> list[str]:
        made, now = list[str](), self._clock.now()
        for key in keys:
            try:
                found = self._control.one(*key)
            except ControlError:  # of a retry that is to be settled the dead letter may be gone
                made.append("/".join(key))
                continue
            letter = {"key": found.key, "workflow": workflow_name(found.subject)}
            made.append(named_letter(letter | {"opened_at": found.subject.letter.opened_at}, now))
        return made

    def _asked_to_resume(self, session: _Session, at: str) -> str:
        paused = [name for name in self._control.sources if self._control.is_paused(name)]
        lowered = [name for name in self._control.sources if self._control.is_lowered(name)]
        if not paused and not lowered:
            raise ControlError("no retries are paused")
        return resume_page(paused, lowered, csrf=session.csrf, at=at)

    async def _act(self, request: web.Request, session: _Session, form: Form) -> web.Response:
        try:
            session.notice = await self._do(request.match_info["action"], session, form)
        except (ControlError, StoreError) as exc:
            session.notice = str(exc)
        came_from = _place(form)
        return _back("../" + (came_from if came_from.startswith("?") else ""))  # where its progress is to be seen

    async def _do(self, action: str, session: _Session, form: Form) -> str:
        match action:
            case "pause":
                await self._control.pause(None, seconds=None, who=WHO)
                return "Retries are paused for 24 hours."
            case "resume":
                await self._control.resume(None, who=WHO)
                return "Retries go on."
            case "begin":
                asked = session.asked.pop(_field(form, "asked") or "", None)
                if asked is None:
                    raise ControlError("That was confirmed already, or too long ago: nothing was done now.")
                return await self._begin(asked, why=_why(form))
            case "cancel":
                answer = await self._operations.cancel(_field(form, "operation") or "", who=WHO)
                return f"Cancelled: {answer['cancelled']}."
        raise ControlError(f"there is no action {action}", status=404)

    async def _begin(self, asked: _Asked, *, why: str) -> str:
        options: dict[str, Any] = {"who": WHO, "why": why}
        if asked.sent is not None:
            await self._operations.begin(asked.action, asked.selection, sent=asked.sent, **options)
            unless = "" if asked.sent else "; unless the platform shows otherwise, its retry does not count"
            return f"{asked.keys[0][1]} is released{unless}."
        if asked.action.is_repair:
            keys = [key for key in asked.keys if self._operations.repair_objection(asked.action, *key) is None]
            if not keys:
                raise ControlError("None of them is there any longer as it was: nothing was done.")
            answer = await self._operations.begin(asked.action, Selection(ids=keys), **options)
        else:
            answer = await self._operations.begin(
                asked.action, asked.selection, at_once=len(asked.keys) == 1, only=asked.keys, **options
            )
        said = f"{_DONE[asked.action]}: {answer['count']}."
        starts_at, now = answer.get("starts_at"), self._clock.now()
        if starts_at is not None and starts_at > now:
            said += f" This begins at {words.at(starts_at, now)} UTC; until then you can cancel it."
        left = len(asked.keys) - answer["count"]
        return said + (f" {left} of them changed meanwhile and were left out." if left > 0 else "")


def _key(text: str) -> tuple[str, str]:
    source, _, identity = text.partition("/")
    return source, identity


def _place(form: Form) -> str:
    return place(_field(form, "at") or "")


def _why(form: Form) -> str:
    given = (_field(form, "why") or "").strip()
    if len(given) > WHY_CHARS_MAX or not given.isprintable():
        raise ControlError(f"the reason must be a text of at most {WHY_CHARS_MAX} characters", status=400)
    return given


def html(text: str, *, status: int = 200, refresh: str | None = None) -> web.Response:
    """A page that may hold nothing but itself, and stand in no other's frame.

    ``refresh``: after how many seconds the browser loads it again, and where.
    """
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; frame-ancestors 'none'; "
    )
    headers = {
        "Content-Security-Policy": policy + "base-uri 'none'",
        "Referrer-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }
    if refresh is not None:
        headers["Refresh"] = refresh
    return web.Response(text=text, status=status, content_type="text/html", headers=headers)


def _back(to: str) -> web.Response:
    """Redirect to an address relative to this one: the page may live under a prefix that only a proxy knows."""
    return web.Response(status=303, headers={"Location": to, "Cache-Control": "no-store"})


def _same_site(request: web.Request) -> bool:
    """Whether a form was sent from a page of ours, as far as the browser says so.

    A proxy may rewrite ``Host``; what it puts down beside it no form of another site can.
    """
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is not None or origin is None:
        return site in (None, "same-origin")
    hosts = {request.headers.get("Host", ""), *request.headers.get("X-Forwarded-Host", "").split(",")}
    return origin.partition("://")[2] in {host.strip() for host in hosts if host.strip()}


def _field(form: Form, name: str) -> str | None:
    return next(iter(form.get(name, ())), None)
