"""The HTTP side: which path answers what, and who may ask. A scrape reads memory only."""

import asyncio
import logging
import ssl
from base64 import b64decode
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, cast

import orjson
from aiohttp import ClientConnectionResetError, web
from aiohttp.http_exceptions import HttpProcessingError

from exporter import __version__, status
from exporter.clock import Clock, stopwatch
from exporter.config import Config
from exporter.log import get_logger
from exporter.metrics.http import respond, wants_openmetrics
from exporter.metrics.own import EOF, OwnMetrics
from exporter.metrics.projection import Projection
from exporter.polling.poller import Poller
from exporter.web.control import ControlRoutes
from exporter.web.forms import Forms, html
from exporter.web.page import Visitor, page
from exporter.webhooks.receiver import Receiver
from exporter.world import World

log = get_logger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: The head of a request has this long (seconds) to arrive, on a new connection or after its first byte.
HEAD_SECONDS_MAX = 15.0
#: A connection without a request is closed after this long (seconds).
IDLE_SECONDS_MAX = 75.0
#: Paths that answer without a password: probes carry none, and webhooks have their own.
_OPEN = ("/-/healthy", "/-/ready", "/webhooks/")


class Site:
    """Everything the service answers, over what it knows. It holds no state of its own."""

    def __init__(
        self,
        *,
        config: Config,
        clock: Clock,
        world: World,
        projection: Projection,
        own: OwnMetrics,
        pollers: Mapping[str, Poller],
        receivers: Mapping[str, Receiver],
        control: ControlRoutes,
        links: status.Links,
        store_error: Callable[[], Awaitable[str | None]],
        reload: Callable[[], Awaitable[str | None]],
    ) -> None:
        """``reload`` returns None, or why the config was not taken."""
        self._config = config
        self._clock = clock
        self._world = world
        self._projection = projection
        self._own = own
        self._pollers = pollers
        self._receivers = receivers
        self._control = control
        self._links = links
        token = config.server.admin_token
        self._forms = (
            None
            if token is None
            else Forms(control.control, token.get_secret_value(), clock, secure=config.server.tls is not None)
        )
        self._store_error = store_error
        self._reload = reload

    def application(self, *, webhooks: bool = True) -> web.Application:
        """The main listener: everything, webhooks included unless they have an address of their own."""
        app = web.Application(middlewares=[self._guard], client_max_size=self._config.limits.body_bytes_max)
        app.router.add_get("/", self._page)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/-/healthy", self._healthy)
        app.router.add_get("/-/ready", self._ready)
        app.router.add_get("/api/v1/status", self._status)
        app.router.add_get("/api/v1/dead-letters", self._dead_letters)
        app.router.add_get("/api/v1/retries", self._retries)
        self._control.add_to(app.router)
        if self._forms is not None:
            self._forms.add_to(app.router)
        if self._config.server.reload:
            app.router.add_post("/-/reload", self._reload_config)
        if webhooks:
            app.router.add_route("*", "/webhooks/{source}", self._webhook)
        return app

    def webhook_application(self) -> web.Application:
        """The separate listener for senders: webhooks and nothing else."""
        app = web.Application(middlewares=[self._guard], client_max_size=self._config.limits.body_bytes_max)
        app.router.add_route("*", "/webhooks/{source}", self._webhook)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        auth = self._config.server.basic_auth
        is_open = request.path.startswith(_OPEN) or self._control.may_control(request)
        if auth is not None and not is_open and not await _knows(request, auth.users):
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="automation-exporter"'})
        try:
            return await handler(request)
        except web.HTTPException:
            raise
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as exc:
            log.error("request failed", method=request.method, path=request.path, error=exc)
            return _json({"error": "internal error"}, status=500)

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        openmetrics = wants_openmetrics(request)
        with stopwatch() as elapsed:
            response = await respond(request, self._exposition(openmetrics), openmetrics=openmetrics)
        self._own.render_duration.labels("openmetrics" if openmetrics else "text").observe(elapsed())
        return response

    def _exposition(self, openmetrics: bool) -> Iterator[bytes]:
        self._own.series.set(self._projection.registry.series())
        yield from self._projection.registry.render(openmetrics=openmetrics)
        yield self._own.render(openmetrics=openmetrics)
        if openmetrics:
            yield EOF

    async def _healthy(self, request: web.Request) -> web.Response:
        return web.Response(text="healthy\n")

    async def _ready(self, request: web.Request) -> web.Response:
        reasons = status.not_ready(self._pollers, now=self._clock.now(), store_error=await self._store_error())
        if not reasons:
            return _json({"ready": True, "reasons": []})
        listed = [{"source": reason.source, "detail": reason.detail} for reason in reasons]
        return _json({"ready": False, "reasons": listed}, status=503)

    async def _status(self, request: web.Request) -> web.Response:
        return _json(status.status(self._world, self._pollers, now=self._clock.now(), version=__version__))

    async def _dead_letters(self, request: web.Request) -> web.Response:
        found = status.dead_letters(self._world, self._control.book, now=self._clock.now(), links=self._links)
        return _json(found)

    async def _retries(self, request: web.Request) -> web.Response:
        return _json(status.retries(self._world, self._control.book, now=self._clock.now()))

    async def _page(self, request: web.Request) -> web.Response:
        now, book = self._clock.now(), self._control.book
        facts = status.status(self._world, self._pollers, now=now, version=__version__)
        letters = status.dead_letters(self._world, book, now=now, links=self._links)
        trouble = status.in_trouble(self._world, self._links, now=now)
        visitor = Visitor() if self._forms is None else self._forms.visitor(request)
        return html(page(facts, trouble, letters, status.retries(self._world, book, now=now), visitor))

    async def _webhook(self, request: web.Request) -> web.Response:
        receiver = self._receivers.get(request.match_info["source"])
        if receiver is None:
            return _json({"error": "no such source, or it takes no webhooks"}, status=404)
        if request.method not in ("POST", "GET", "OPTIONS"):
            return _json({"error": "use POST"}, status=405)
        return await receiver.receive(request)

    async def _reload_config(self, request: web.Request) -> web.Response:
        problem = await self._reload()
        return _json({"reloaded": True}) if problem is None else _json({"error": problem}, status=400)


def _json(data: object, *, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(data), content_type="application/json")


async def _knows(request: web.Request, users: Mapping[str, str]) -> bool:
    """Whether the request carries the password of one of the users. bcrypt is slow on purpose: off the loop."""
    import bcrypt  # of the extra "auth"; its presence is checked when the config is taken

    kind, _, encoded = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() != "basic":
        return False
    try:
        name, colon, password = b64decode(encoded, validate=True).partition(b":")
        digest = users.get(name.decode())
    except (ValueError, UnicodeDecodeError):
        return False
    if not colon or digest is None:
        return False
    return await asyncio.to_thread(bcrypt.checkpw, password[:72], digest.encode())


class _Connection(web.RequestHandler):
    """A connection that is closed when the head of a request it began, or of its first one, does not arrive in time.

    aiohttp bounds only how long a connection may be idle, which has to be longer than the same in a proxy before us.
    """

    __slots__ = ("_head_timer",)
    _head_timer: asyncio.TimerHandle | None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._expect_head()
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        heads = self._request_count
        super().data_received(data)
        if self._request_count > heads:
            self._stop_expecting()
        elif self._head_timer is None and self._waiter is not None:  # no request is being handled: one has begun
            self._expect_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_expecting()
        super().connection_lost(exc)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """aiohttp would quote the line it cannot read, which may well be the one with the secret, and fails where it
        quotes an ``Expect`` that is not UTF-8.
        """
        if _is_theirs(exc) or (isinstance(exc, UnicodeError) and "Expect" in request.headers):
            status, exc, message = 400, HttpProcessingError(), "this is not HTTP"
        return super().handle_error(request, status, exc, message)

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        """What is not HTTP, or not the body it says it is, is no error of ours, and anybody can send a lot of it.

        Nor is it one if somebody hangs up before the answer is written.
        """
        level = logging.DEBUG if _is_theirs(kwargs.get("exc_info")) else logging.ERROR
        self.logger.log(level, *args, **kwargs)

    def _expect_head(self) -> None:
        self._head_timer = asyncio.get_running_loop().call_later(HEAD_SECONDS_MAX, self.force_close)

    def _stop_expecting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _is_theirs(exc: BaseException | None) -> bool:
    return isinstance(exc, HttpProcessingError | web.RequestPayloadError | ClientConnectionResetError)


class _Site(web.TCPSite):
    """An address whose connections are ``_Connection``s."""

    async def start(self) -> None:
        await web.BaseSite.start(self)
        self._server = await asyncio.get_running_loop().create_server(
            self._connect, self._host, self._port, ssl=self._ssl_context, backlog=self._backlog
        )

    def _connect(self) -> _Connection:
        options: dict[str, Any] = {"access_log": None, "keepalive_timeout": IDLE_SECONDS_MAX}
        return _Connection(cast(web.Server, self._runner.server), loop=asyncio.get_running_loop(), **options)


async def listen(app: web.Application, address: str, tls: ssl.SSLContext | None) -> tuple[web.AppRunner, int]:
    """Serve ``app`` at HOST:PORT; returns the runner to clean up and the port taken (for port 0)."""
    host, _, port = address.rpartition(":")
    runner = web.AppRunner(app, handler_cancellation=False)
    await runner.setup()
    try:
        await _Site(runner, host.strip("[]"), int(port), ssl_context=tls, backlog=1024).start()
    except BaseException:
        await runner.cleanup()
        raise
    return runner, int(runner.addresses[0][1])
