"""Who is at the other end of a connection, and what a peer that has proved nothing may cost.

All bounds are per peer, so that one stranger is in nobody's way but its own. A peer is an IPv4 address, or the /64 in
which an IPv6 address lies: whoever has one of these has all of it.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv6Address

#: Peers whose wrong guesses are remembered; beyond that the one that guessed longest ago is forgotten.
PEERS_MAX = 1000


def peer_of(transport: asyncio.BaseTransport | None) -> str:
    """The peer at the other end; an empty text where there is none (any more)."""
    address = None if transport is None else transport.get_extra_info("peername")
    return peer(str(address[0])) if isinstance(address, tuple) and address else ""


def peer(host: str) -> str:
    """The peer that has this IP address."""
    if ":" not in host:
        return host
    if "." in host:  # ::ffff:192.0.2.1, as a socket for both families has it
        return host.rpartition(":")[2]
    return str(IPv6Address(int(IPv6Address(host.partition("%")[0])) >> 64 << 64))


class Waiting:
    """Bounds how many may wait at once. One too many ends the wait of the one that waits longest, of the peer with
    most of them: whoever is honest is done in a moment, whoever is not would stay for ever.
    """

    def __init__(self, *, per_peer_max: int, total_max: int) -> None:
        self._per_peer_max = per_peer_max
        self._total_max = total_max
        self._total = 0
        self._peers: dict[str, dict[asyncio.Timeout, None]] = {}

    @asynccontextmanager
    async def wait(self, peer: str, *, seconds: float) -> AsyncIterator[None]:
        """Wait in the block for at most this long, or until others need the place. Raises ``TimeoutError``."""
        async with asyncio.timeout(seconds) as timeout:
            self._peers.setdefault(peer, {})[timeout] = None
            self._total += 1
            self._make_room(peer)
            try:
                yield
            finally:
                self._remove(peer, timeout)

    def _make_room(self, peer: str) -> None:
        if len(self._peers[peer]) <= self._per_peer_max:
            if self._total <= self._total_max:
                return
            peer = max(self._peers, key=lambda one: len(self._peers[one]))
        longest = next(iter(self._peers[peer]))
        self._remove(peer, longest)
        longest.reschedule(asyncio.get_running_loop().time())

    def _remove(self, peer: str, timeout: asyncio.Timeout) -> None:
        of_peer = self._peers.get(peer, {})
        if timeout in of_peer:
            del of_peer[timeout]
            self._total -= 1
            if not of_peer:
                del self._peers[peer]


class Guesses:
    """Wrong guesses of each peer: after some in a row it has to wait, and nobody else has."""

    def __init__(self, *, wrong_max: int, wait_seconds: float) -> None:
        self._wrong_max = wrong_max
        self._wait_seconds = wait_seconds
        self._peers: OrderedDict[str, tuple[int, float]] = OrderedDict()  # wrong in a row, and when it may guess again

    def must_wait(self, peer: str, now: float) -> bool:
        until = self._peers.get(peer, (0, 0.0))[1]
        return now < until <= now + self._wait_seconds  # beyond that, our own clock was set back

    def wrong(self, peer: str, now: float) -> None:
        count = self._peers.pop(peer, (0, 0.0))[0] + 1
        is_last = count >= self._wrong_max
        self._peers[peer] = (0, now + self._wait_seconds) if is_last else (count, 0.0)
        if len(self._peers) > PEERS_MAX:
            self._peers.popitem(last=False)

    def right(self, peer: str) -> None:
        self._peers.pop(peer, None)
