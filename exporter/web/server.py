"""The HTTP side: which path answers what, and who may ask. A scrape reads memory only."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping

import orjson
from aiohttp import web

from exporter import __version__
from exporter.clock import Clock, stopwatch
from exporter.config import Config
from exporter.log import get_logger
from exporter.source import Source
from exporter.view.own import EOF, OwnMetrics
from exporter.view.projection import Projection
from exporter.web import status
from exporter.web.formats import respond, wants_openmetrics
from exporter.web.forms import Forms
from exporter.web.pages import Pages
from exporter.web.proof import Passwords, Verdict
from exporter.web.retry_routes import ControlRoutes
from exporter.web.runbooks import Runbooks
from exporter.webhooks.receiver import Receiver
from exporter.wire.peers import peer_of

log = get_logger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: Whoever comes with too many passwords is asked to come back after this many seconds.
RETRY_AFTER = 5
#: Paths that answer without a password: probes carry none, and webhooks have their own.
_OPEN = ("/-/healthy", "/-/ready", "/webhooks/")


class Site:
    """Everything the service answers, over what it knows. It holds no state of its own."""

    def __init__(
        self,
        *,
        config: Config,
        clock: Clock,
        sources: Mapping[str, Source],
        held: Mapping[str, Source],
        projection: Projection,
        own: OwnMetrics,
        receivers: Mapping[str, Receiver],
        control: ControlRoutes,
        trace_url: status.TraceUrl,
        store_error: Callable[[], Awaitable[str | None]],
        reload: Callable[[], Awaitable[str | None]],
    ) -> None:
        """``held``: the sources that this replica polls; ``reload`` returns None, or why the config was not taken."""
        self._config = config
        self._clock = clock
        self._sources = sources
        self._held = held
        self._projection = projection
        self._own = own
        self._receivers = receivers
        self._control = control
        self._trace_url = trace_url
        token = config.server.admin_token
        self._forms = (
            None
            if token is None
            else Forms(
                control.control,
                control.operations,
                token.get_secret_value(),
                clock,
                secure=config.server.tls is not None,
            )
        )
        self._pages = Pages(sources, control, self._forms, clock, trace_url, slo=config.slo, store_error=store_error)
        auth = config.server.basic_auth
        self._passwords = None if auth is None else Passwords(auth.users, clock)
        self._store_error = store_error
        self._reload = reload

    def application(self, *, webhooks: bool = True) -> web.Application:
        """The main listener: everything, webhooks included unless they have an address of their own."""
        app = web.Application(middlewares=[self._guard], client_max_size=self._config.limits.body_bytes_max)
        app.router.add_get("/", self._pages.first)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/-/healthy", self._healthy)
        app.router.add_get("/-/ready", self._ready)
        app.router.add_get("/api/v1/status", self._status)
        app.router.add_get("/api/v1/dead-letters", self._dead_letters)
        app.router.add_get("/api/v1/retries", self._retries)
        self._control.add_to(app.router)
        self._pages.add_to(app.router)
        Runbooks().add_to(app.router)
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
        try:
            refusal = await self._refusal(request)
            return await handler(request) if refusal is None else refusal
        except web.HTTPException:
            raise
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as exc:
            log.error("request failed", method=request.method, path=request.path, error=exc)
            return _json({"error": "internal error"}, status=500)

    async def _refusal(self, request: web.Request) -> web.Response | None:
        """None for who may come in."""
        if self._passwords is None or request.path.startswith(_OPEN) or self._control.may_control(request):
            return None
        header = request.headers.get("Authorization", "")
        match await self._passwords.check(header, peer_of(request.transport)):
            case Verdict.KNOWN:
                return None
            case Verdict.BUSY:
                return web.Response(status=429, headers={"Retry-After": str(RETRY_AFTER)})
        return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="automation-exporter"'})

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        openmetrics = wants_openmetrics(request)
        with stopwatch() as elapsed:
            response = await respond(request, self._exposition(openmetrics), openmetrics=openmetrics)
        self._own.render_duration.labels("openmetrics" if openmetrics else "text").observe(elapsed())
        return response

    def _exposition(self, openmetrics: bool) -> Iterator[bytes]:
        self._own.series.set(self._projection.registry.series())
        yield from self._projection.registry.render(openmetrics=openmetrics, hidden=self._projection.hidden)
        yield self._own.render(openmetrics=openmetrics)
        if openmetrics:
            yield EOF

    async def _healthy(self, request: web.Request) -> web.Response:
        return web.Response(text="healthy\n")

    async def _ready(self, request: web.Request) -> web.Response:
        reasons = status.not_ready(self._held, now=self._clock.now(), store_error=await self._store_error())
        if not reasons:
            return _json({"ready": True, "reasons": []})
        listed = [{"source": reason.source, "detail": reason.detail} for reason in reasons]
        return _json({"ready": False, "reasons": listed}, status=503)

    async def _status(self, request: web.Request) -> web.Response:
        return _json(status.status(self._sources, now=self._clock.now(), version=__version__))

    async def _dead_letters(self, request: web.Request) -> web.Response:
        found = status.dead_letters(self._sources, self._control.book, now=self._clock.now(), trace_url=self._trace_url)
        return _json(found)

    async def _retries(self, request: web.Request) -> web.Response:
        return _json(status.retries(self._sources, self._control.book, now=self._clock.now()))

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
