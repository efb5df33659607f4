"""Acting on the status page: signing in with the admin token, and the forms behind its buttons.

A session is a random cookie that no script and no other site can read or send; each form carries a secret of the
session, and what another site sends is refused by where it comes from. Nothing here exists without an admin token.
"""

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs

from aiohttp import web

from exporter.clock import Clock
from exporter.model.operations import OperationAction
from exporter.retries.control import Control, ControlError
from exporter.retries.operations import Operations, Selection
from exporter.store.script import StoreError
from exporter.web.page import Visitor, confirm_page, sign_in_page
from exporter.web.proof import same
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
WHO = "status page"
Form = Mapping[str, Sequence[str]]
_CONTENT = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; frame-ancestors 'none'; "
    "base-uri 'none'"
)


@dataclass(slots=True, kw_only=True)
class _Session:
    csrf: str
    until: float
    notice: str | None = None


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
        router.add_get("/approve", self._confirm)
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
        return html(sign_in_page(csrf=self._csrf))

    async def _sign_in(self, request: web.Request) -> web.Response:
        try:
            form = await self._read(request, limit=SIGN_IN_BYTES_MAX)
        except BodyError as exc:
            problem = f"{str(exc).capitalize()}: try again."
            return html(sign_in_page(csrf=self._csrf, problem=problem), status=exc.status)
        now, peer = self._clock.now(), peer_of(request.transport)
        if not _same_site(request) or not same(_field(form, "csrf"), self._csrf):
            return html(sign_in_page(csrf=self._csrf, problem="This form has expired: try again."), status=403)
        if self._guesses.must_wait(peer, now):
            return html(sign_in_page(csrf=self._csrf, problem="Too many wrong tokens: wait a minute."), status=429)
        if not same(_field(form, "token"), self._token):
            self._guesses.wrong(peer, now)
            return html(sign_in_page(csrf=self._csrf, problem="That is not the admin token."), status=401)
        self._guesses.right(peer)
        self._sessions = {key: one for key, one in self._sessions.items() if now < one.until}
        if len(self._sessions) >= SESSIONS_MAX:
            del self._sessions[min(self._sessions, key=lambda key: self._sessions[key].until)]
        key = secrets.token_urlsafe(32)
        self._sessions[key] = _Session(csrf=secrets.token_urlsafe(16), until=now + SESSION_SECONDS)
        response = _back("./")
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
        """List what would be approved; nothing is approved by looking."""
        session = self._session(request)
        if session is None:
            return _back("./sign-in")
        policy = request.query.get("policy", "")
        try:
            keys = [f"{source}/{letter}" for source, letter in self._control.awaiting(policy)]
        except ControlError as exc:
            session.notice = str(exc)
            return _back("./")
        return html(confirm_page(keys, csrf=session.csrf, policy=policy))

    async def _act(self, request: web.Request, session: _Session, form: Form) -> web.Response:
        ids = [value for value in form.get("id", []) if "/" in value]
        keys = [(source, letter) for source, _, letter in (value.partition("/") for value in ids)]
        try:
            session.notice = await self._do(request.match_info["action"], keys)
        except (ControlError, StoreError) as exc:
            session.notice = str(exc)
        return _back("../")

    async def _do(self, action: str, keys: list[tuple[str, str]]) -> str:
        if action == "pause":
            await self._control.pause(None, seconds=None, who=WHO)
            return "Retries are paused for 24 hours."
        if action == "resume":
            await self._control.resume(None, who=WHO)
            return "Retries go on."
        if not keys:
            raise ControlError("nothing was chosen", status=400)
        key, chosen = keys[0], Selection(ids=keys)
        match action:
            case "approve" | "approve-all":
                await self._operations.begin(OperationAction.APPROVE, chosen, who=WHO, at_once=len(keys) == 1)
                return f"Approved: {len(keys)}."
            case "retry":
                await self._operations.begin(OperationAction.RETRY, chosen, who=WHO)
                return f"{key[1]} will be retried now."
            case "hold":
                await self._operations.begin(OperationAction.HOLD, chosen, who=WHO)
                return f"{key[1]} is held."
            case "release":
                await self._operations.begin(OperationAction.RELEASE, chosen, who=WHO)
                return f"{key[1]} is released."
            case "release-not-sent":
                await self._operations.begin(OperationAction.RELEASE, chosen, who=WHO, sent=False)
                return f"{key[1]} is released; unless the platform shows otherwise, its retry does not count."
        raise ControlError(f"there is no action {action}", status=404)


def html(text: str, *, status: int = 200) -> web.Response:
    """A page that may hold nothing but itself, and stand in no other's frame."""
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; frame-ancestors 'none'; "
    )
    headers = {
        "Content-Security-Policy": policy + "base-uri 'none'",
        "Referrer-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }
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
