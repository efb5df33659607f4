"""Whether somebody knows a secret of ours: a token, compared, or a password, hashed.

bcrypt is slow on purpose, so it is for few. A password that was right once is known again without it. Of the others
one is hashed at a time, off the loop, a few may wait, and whoever is beyond that is asked to come back. A name that
does not exist takes as long as one that does.
"""

import asyncio
import hmac
import secrets
from base64 import b64decode
from collections import Counter
from collections.abc import Mapping
from enum import Enum

from exporter.clock import Clock
from exporter.wire.peers import Guesses

#: Passwords that may wait to be hashed: of one peer, and of all.
WAITING_PER_PEER_MAX, WAITING_MAX = 2, 16
#: Wrong passwords in a row, each another one, after which a peer has to wait, and how long (seconds).
WRONG_MAX, WRONG_WAIT = 20, 10.0
#: Headers that are remembered, of either kind.
REMEMBERED_MAX = 1000
#: What bcrypt looks at; more than that it refuses.
PASSWORD_BYTES_MAX = 72


class Verdict(Enum):
    KNOWN = "known"
    UNKNOWN = "unknown"
    BUSY = "busy"  # not looked at: too many others are, or this peer guesses


def same(given: object, wanted: str) -> bool:
    """Whether this is the secret; in constant time, and whatever bytes a header held."""
    if not isinstance(given, str):
        return False
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), wanted.encode("utf-8", "surrogatepass"))


class Passwords:
    """The users of basic authentication."""

    def __init__(self, users: Mapping[str, str], clock: Clock) -> None:
        self._users = dict(users)
        self._digests = list(users.values())
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._right: dict[bytes, None] = {}
        self._wrong: dict[bytes, None] = {}
        self._guesses = Guesses(wrong_max=WRONG_MAX, wait_seconds=WRONG_WAIT)
        self._hashing = asyncio.Lock()
        self._waiting: Counter[str] = Counter()

    async def check(self, authorization: str, peer: str) -> Verdict:
        """Judge an ``Authorization`` header, whatever is in it."""
        kind, _, encoded = authorization.partition(" ")
        if kind.lower() != "basic":
            return Verdict.UNKNOWN
        mark = self._digest(encoded.encode("utf-8", "surrogatepass"))
        if mark in self._right:
            return Verdict.KNOWN
        if mark in self._wrong:
            return Verdict.UNKNOWN
        try:
            name, colon, password = b64decode(encoded, validate=True).partition(b":")
        except ValueError:
            return Verdict.UNKNOWN
        if not colon:
            return Verdict.UNKNOWN
        is_full = self._waiting[peer] >= WAITING_PER_PEER_MAX or self._waiting.total() >= WAITING_MAX
        if is_full or self._guesses.must_wait(peer, self._clock.now()):
            return Verdict.BUSY
        self._waiting[peer] += 1
        try:
            async with self._hashing:
                is_right = await asyncio.to_thread(self._is_password, name, password)
        finally:
            self._waiting -= Counter({peer: 1})
        _remember(self._right if is_right else self._wrong, mark)
        if not is_right:
            self._guesses.wrong(peer, self._clock.now())
            return Verdict.UNKNOWN
        self._guesses.right(peer)
        return Verdict.KNOWN

    def _is_password(self, name: bytes, password: bytes) -> bool:
        import bcrypt  # of the extra "auth"; its presence is checked when the config is taken

        digest = self._users.get(name.decode("utf-8", "replace"))
        # Some user's digest, always the same one for a name, so that it costs what somebody's would.
        wanted = digest or self._digests[self._digest(name)[0] % len(self._digests)]
        try:
            return bcrypt.checkpw(password[:PASSWORD_BYTES_MAX], wanted.encode()) and digest is not None
        except ValueError:  # a NUL, or a digest that is none
            return False

    def _digest(self, data: bytes) -> bytes:
        """With a key of our own, so that how long a comparison takes says nothing."""
        return hmac.digest(self._key, data, "sha256")


def _remember(marks: dict[bytes, None], mark: bytes) -> None:
    marks[mark] = None
    if len(marks) > REMEMBERED_MAX:
        del marks[next(iter(marks))]
