"""The body of a request, as it was sent, and what it holds: both within bounds.

The server hands bodies over as they arrive. Unpacking them costs a thousand times what sending them does, so that is
for who asks for it, which is after the proof, and goes in steps between which others have their turn.
"""

import asyncio
import zlib

from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import HttpProcessingError

#: What ``unpack`` takes, as ``Accept-Encoding`` says it.
ENCODINGS = "gzip, deflate"
STEP_BYTES = 65_536
#: A gzip file may consist of several; each costs something even if it is empty.
MEMBERS_MAX = 16
_BROKEN = (web.RequestPayloadError, ClientPayloadError, HttpProcessingError, ConnectionError)


class BodyError(Exception):
    """The body is of no use."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def too_large() -> BodyError:
    return BodyError(413, "the body is too large")


def broken() -> BodyError:
    return BodyError(400, "the body cannot be read")


def late() -> BodyError:
    return BodyError(408, "the body did not arrive in time")


async def read(request: web.Request, *, limit: int) -> bytes:
    """The body as it was sent. Raises ``BodyError``; how long it may take is the caller's affair."""
    if (request.content_length or 0) > limit:
        raise too_large()
    try:
        body = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise too_large() from None
    except _BROKEN:
        raise broken() from None
    if len(body) > limit:
        raise too_large()
    return body


def coding(content_encoding: str) -> str | None:
    """``gzip``, ``deflate`` or an empty text, of a ``Content-Encoding``; None for any other, and for two at once."""
    names = [name.strip().lower() for name in content_encoding.split(",")]
    names = [name.removeprefix("x-") if name == "x-gzip" else name for name in names if name not in ("", "identity")]
    if not names:
        return ""
    return names[0] if len(names) == 1 and names[0] in ("gzip", "deflate") else None


async def unpack(body: bytes, coding: str, *, limit: int) -> bytes:
    """What is packed in ``body``, of at most ``limit`` bytes. Raises ``BodyError``."""
    if not coding or not body:
        return body
    pieces: list[bytes] = []
    size, rest = 0, body
    try:
        for _ in range(MEMBERS_MAX):
            unpacker = _unpacker(rest, coding)
            while True:
                piece = unpacker.decompress(rest, STEP_BYTES)
                rest = unpacker.unconsumed_tail
                size += len(piece)
                if size > limit:
                    raise too_large()
                pieces.append(piece)
                if unpacker.eof or (not piece and not rest):
                    break
                await asyncio.sleep(0)
            rest = unpacker.unused_data
            if not unpacker.eof or (rest and coding != "gzip"):
                break
            if not rest:
                return b"".join(pieces)
    except zlib.error:
        pass
    raise broken()


def _unpacker(data: bytes, coding: str) -> "zlib._Decompress":
    if coding == "gzip":
        return zlib.decompressobj(31)
    # Some senders leave out the zlib header that "deflate" means; its first byte tells.
    return zlib.decompressobj(zlib.MAX_WBITS if data[0] & 0xF == 8 else -zlib.MAX_WBITS)
