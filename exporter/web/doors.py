"""The addresses the service listens on, and the connections made there. They outlive a reload.

A door is bound once and stays open while what stands behind it is exchanged: no connection is refused or cut, and a
request that arrives in between waits for the new service. Those who are inside when the old one leaves have a moment
to be answered. Nobody is waited for longer than that, whatever they send or do not read.

Whoever connects has proved nothing yet, so connections are bounded, in all and of each peer. One too many costs the
peer that has most of them its longest idle one.
"""

import asyncio
import errno
import logging
import resource
import socket
from typing import Any, cast

from aiohttp import ClientConnectionResetError, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import StreamReader

from exporter.web.certificate import Certificate
from exporter.wire.peers import peer_of

#: The head of a request has this long (seconds) to arrive, on a new connection or after its first byte.
HEAD_SECONDS_MAX = 15.0
#: A connection without a request is closed after this long (seconds).
IDLE_SECONDS_MAX = 75.0
#: A connection whose other end reads nothing of what is written to it is cut after this long (seconds).
WRITE_SECONDS_MAX = 15.0
#: What is left of a refused request is read and thrown away for this long (seconds), so that the refusal arrives.
LINGER_SECONDS_MAX = 2.0
#: Requests that are being handled when the service leaves have this long (seconds) to be answered.
DRAIN_SECONDS_MAX = 2.0
#: A TLS handshake, and its goodbye, have this long (seconds).
HANDSHAKE_SECONDS_MAX, GOODBYE_SECONDS_MAX = 10.0, 2.0
#: Connections of one door, as far as the system lets us open so many files; one peer has at most half of them.
CONNECTIONS_MAX = 1000
FILES_WANTED = 4 * CONNECTIONS_MAX
BACKLOG = 1024
#: Senders that come while the service is stopping are asked to come back after this many seconds.
RETRY_AFTER = 5


class AddressError(OSError):
    """An address cannot be listened on: one line that names the key of the config. ``cause`` is the system's error."""

    def __init__(self, key: str, address: str, cause: OSError) -> None:
        super().__init__(no_address(key, address, cause))
        self.cause = cause


class Doors:
    """The doors of one process."""

    def __init__(self) -> None:
        self._doors: dict[str, _Door] = {}
        self._connections_max = _connections_max()

    async def open(
        self,
        address: str,
        app: web.Application,
        certificate: Certificate | None = None,
        *,
        key: str = "server.listen",
    ) -> int:
        """Let people in to ``app`` at HOST:PORT; returns the port (for port 0). Raises ``AddressError``, naming the
        ``key`` of the config.
        """
        name = address
        while name in self._doors and self._doors[name].is_open:  # port 0, twice: two doors
            name += "'"
        if name not in self._doors:
            try:
                sockets = await self._bind(address)
            except OSError as exc:
                raise AddressError(key, address, exc) from None
            self._doors[name] = _Door(sockets, self._connections_max)
        door = self._doors[name]
        await door.open(app, certificate)
        return door.port

    async def leave(self) -> None:
        """What stands behind the doors goes. Who is inside has a moment; who comes now waits for the next ``open``."""
        await asyncio.gather(*(door.leave() for door in self._doors.values()))

    def settle(self) -> None:
        """Close the doors that nothing stands behind any more: their addresses are no longer in the config."""
        for key, door in list(self._doors.items()):
            if not door.is_open:
                door.close()
                del self._doors[key]

    def shut(self) -> None:
        """Nobody comes in any more: the process is stopping."""
        for door in self._doors.values():
            door.shut()

    async def close(self) -> None:
        self.shut()
        await self.leave()
        self.settle()
        await asyncio.sleep(0)  # for what was cut to notice

    async def _bind(self, address: str) -> list[socket.socket]:
        try:
            return await _bind(address)
        except OSError as exc:
            port = int(address.rpartition(":")[2])
            ours = [key for key, door in self._doors.items() if not door.is_open and door.port == port]
            if exc.errno != errno.EADDRINUSE or not ours:
                raise
            for key in ours:  # another address of a port that we hold ourselves, as 0.0.0.0 after 127.0.0.1
                self._doors.pop(key).close()
            return await _bind(address)


class _Door:
    """One address. ``is_open`` while an application stands behind it."""

    def __init__(self, sockets: list[socket.socket], connections_max: int) -> None:
        self._sockets = sockets
        self.port = int(sockets[0].getsockname()[1])
        self._manager = web.Server(self._handle, request_factory=self._request)
        self._servers: list[asyncio.Server] = []
        self._certificate: Certificate | None = None
        self._runner: web.AppRunner | None = None
        self._behind = self._manager  # what hands requests to the application; the last one, while there is none
        self._opened = asyncio.Event()
        self._is_shut = False
        self._inside: set[_Connection] = set()  # with a request that is being handled
        self._drained: asyncio.Event | None = None
        self._connections_max = connections_max
        self._connections = 0
        self._peers: dict[str, dict[_Connection, None]] = {}  # in the order in which they came

    @property
    def is_open(self) -> bool:
        return self._opened.is_set()

    async def open(self, app: web.Application, certificate: Certificate | None) -> None:
        runner = web.AppRunner(app, handler_cancellation=False)
        await runner.setup()
        self._runner, self._behind = runner, cast(web.Server, runner.server)
        if not self._servers or certificate is not self._certificate:
            if (certificate is None) != (self._certificate is None):
                self._cut()  # these speak the wrong language from now on
            await self._listen(certificate)
        self._opened.set()

    async def _listen(self, certificate: Certificate | None) -> None:
        """Accept connections. The sockets of our own stay open, so that a change of servers refuses nobody."""
        for server in self._servers:
            server.close()
        loop, is_tls = asyncio.get_running_loop(), certificate is not None
        self._certificate = certificate
        context = None if certificate is None else certificate.context
        self._servers = [
            await loop.create_server(
                self._connection,
                sock=sock.dup(),
                ssl=context,
                backlog=BACKLOG,
                ssl_handshake_timeout=HANDSHAKE_SECONDS_MAX if is_tls else None,
                ssl_shutdown_timeout=GOODBYE_SECONDS_MAX if is_tls else None,
            )
            for sock in self._sockets
        ]

    async def leave(self) -> None:
        """Wait for who is inside, a moment; the application is closed when this returns."""
        self._opened.clear()
        if not await self._empty(DRAIN_SECONDS_MAX):
            for connection in list(self._inside):
                connection.abort()
            await self._empty(1.0)
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    async def _empty(self, seconds: float) -> bool:
        if self._inside:
            self._drained = asyncio.Event()
            try:
                async with asyncio.timeout(seconds):
                    await self._drained.wait()
            except TimeoutError:
                return False
            finally:
                self._drained = None
        return True

    def shut(self) -> None:
        self._is_shut = True
        for server in self._servers:
            server.close()
        for sock in self._sockets:
            sock.close()
        for connection in [one for of_peer in self._peers.values() for one in of_peer if one.is_idle]:
            connection.close()
        if not self.is_open:
            self._opened.set()  # for those who wait for what will not come
            self._opened.clear()

    def close(self) -> None:
        self.shut()
        self._cut()

    def _cut(self) -> None:
        for connection in [one for of_peer in self._peers.values() for one in of_peer]:
            connection.abort()

    # Requests

    def _request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: web.RequestHandler,
        writer: AbstractStreamWriter,
        task: "asyncio.Task[None]",
    ) -> web.BaseRequest:
        return self._behind.request_factory(message, payload, protocol, writer, task)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        while not self.is_open:
            if self._is_shut:
                return _come_back()
            await self._opened.wait()
        connection = cast(_Connection, request.protocol)
        self._inside.add(connection)
        try:
            return await self._behind.request_handler(request)
        finally:
            self._inside.discard(connection)
            if self._drained is not None and not self._inside:
                self._drained.set()

    # Connections

    def _connection(self) -> "_Connection":
        return _Connection(
            self._manager,
            self,
            loop=asyncio.get_running_loop(),
            access_log=cast(Any, None),
            keepalive_timeout=IDLE_SECONDS_MAX,
            lingering_time=LINGER_SECONDS_MAX,
            auto_decompress=False,  # whatever arrives would be decompressed, before anybody asked who sent it
        )

    def came(self, connection: "_Connection", peer: str) -> None:
        self._peers.setdefault(peer, {})[connection] = None
        self._connections += 1
        if len(self._peers[peer]) > self._connections_max // 2:
            self._make_room(peer)
        elif self._connections > self._connections_max:
            self._make_room(max(self._peers, key=lambda one: len(self._peers[one])))

    def went(self, connection: "_Connection", peer: str) -> None:
        of_peer = self._peers.get(peer, {})
        if connection in of_peer:
            del of_peer[connection]
            self._connections -= 1
            if not of_peer:
                del self._peers[peer]

    def _make_room(self, peer: str) -> None:
        of_peer = self._peers[peer]
        victim = next((one for one in of_peer if one.is_idle), None) or next(iter(of_peer))
        self.went(victim, peer)
        victim.abort()


class _Connection(web.RequestHandler):
    """A connection that is closed when the head of a request it began, or of its first one, does not arrive in time,
    and when the other end stops reading.

    aiohttp bounds only how long a connection may be idle, which has to be longer than the same in a proxy before us.
    """

    __slots__ = ("_door", "_head_timer", "_peer", "_raw", "_write_timer")

    def __init__(self, manager: web.Server, door: _Door, **options: Any) -> None:
        super().__init__(manager, **options)
        self._door = door
        self._peer = ""
        self._raw: asyncio.Transport | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no request is being handled; part of the next one may have arrived."""
        return self._waiter is not None

    def abort(self) -> None:
        """Cut it, whatever is still to be written."""
        if self._raw is not None:
            self._raw.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = cast(asyncio.Transport, transport)
        self._expect_head()
        super().connection_made(transport)
        self._peer = peer_of(transport)
        self._door.came(self, self._peer)

    def data_received(self, data: bytes) -> None:
        heads = self._request_count
        super().data_received(data)
        if self._request_count > heads:
            self._stop_expecting()
        elif self._head_timer is None and self._waiter is not None:  # no request is being handled: one has begun
            self._expect_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_expecting()
        self._stop_waiting()
        self._door.went(self, self._peer)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop_waiting()
        self._write_timer = asyncio.get_running_loop().call_later(WRITE_SECONDS_MAX, self.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_waiting()

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

    def _stop_waiting(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


def _is_theirs(exc: BaseException | None) -> bool:
    return isinstance(exc, HttpProcessingError | web.RequestPayloadError | ClientConnectionResetError)


def _come_back() -> web.Response:
    response = web.Response(status=503, text="stopping\n", headers={"Retry-After": str(RETRY_AFTER)})
    response.force_close()
    return response


def _connections_max() -> int:
    """What a door may have, so that both together leave half of the files we may open to everything else."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < FILES_WANTED:
        soft = FILES_WANTED if hard == resource.RLIM_INFINITY else min(FILES_WANTED, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return CONNECTIONS_MAX if soft == resource.RLIM_INFINITY else min(CONNECTIONS_MAX, soft // 4)


def no_address(key: str, address: str, error: OSError) -> str:
    """Why an address cannot be listened on."""
    way_out = {
        errno.EADDRINUSE: "address already in use: stop what listens there, or choose another port",
        errno.EACCES: "not permitted: ports below 1024 are kept for root, choose another",
        errno.EADDRNOTAVAIL: "this machine has no such address: write one of its own, or 0.0.0.0 for all",
    }
    unknown = "the host name is not known" if isinstance(error, socket.gaierror) else error.strerror or str(error)
    return f"{key}: {address}: {way_out.get(error.errno or 0, unknown)}"


async def _bind(address: str) -> list[socket.socket]:
    """Listening sockets for HOST:PORT. Without a host, or for ``[::]``, both families where there are two."""
    host, _, number = address.rpartition(":")
    host, port = host.strip("[]"), int(number)
    if host in ("", "::"):
        return [_bind_to_all(port)]
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    for family, _, _, _, place in dict.fromkeys(found):
        if port == 0 and sockets:  # the same one for all of them
            place = (place[0], sockets[0].getsockname()[1], *place[2:])
        try:
            sockets.append(_listening(family, place))
        except OSError as exc:
            if exc.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):  # a family this machine is without
                for sock in sockets:
                    sock.close()
                raise
            missing = exc
    if missing is not None and not sockets:
        raise missing
    return sockets


def _bind_to_all(port: int) -> socket.socket:
    try:
        return _listening(socket.AF_INET6, ("::", port))
    except OSError as exc:
        if exc.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            raise
        return _listening(socket.AF_INET, ("0.0.0.0", port))  # noqa: S104 (asked for)


def _listening(family: int, place: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            both = place[0] == "::"
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if both else 1)
        sock.bind(place)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
