"""JSON of platforms and senders, decoded in one place. Pure.

It is as strict as the parser, but for what would let one text hide everything beside it. A text that was cut in the
middle of a character is such: half an emoji, written as an escape (``\\ud83d`` alone, as JavaScript's JSON.stringify
does) or as bytes that are no UTF-8. What cannot be a character becomes U+FFFD; the rest is read as it stands. A byte
order mark is skipped, and UTF-16 and UTF-32 are recognised by it, or by their zeros, whatever the headers say.

Decided so: other bytes than UTF-8 (Latin-1) become U+FFFD too, since guessing would be wrong silently; ``NaN`` and
``Infinity`` are refused; of a key that stands twice the last holds; whole numbers beyond 64 bits become floats; nesting
beyond the parser's limit (1,024) is refused.
"""

import json
import re
from typing import Any

import orjson

#: Stands for what could not be read. An id that has it names nothing: two ids may have become the same.
DAMAGED = "\ufffd"
_BOM = b"\xef\xbb\xbf"
#: An escape that stands for half a pair (the second alternative), unless its other half follows (the first). The
#: backslashes before it come in twos: they stand for themselves.
_HALVES = re.compile(
    rb"(?<!\\)((?:\\\\)*+)(?:(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)
#: The same as bytes, as some write it (CESU-8): two halves that are a character, or one alone.
_RAW_HALVES = re.compile(rb"(\xed[\xa0-\xaf][\x80-\xbf]\xed[\xb0-\xbf][\x80-\xbf])|\xed[\xa0-\xbf][\x80-\xbf]")


class Undecodable(ValueError):
    """Not JSON. The text is the parser's own, with the place: one line that quotes nothing of what was read."""


def decode(raw: bytes) -> Any:
    """The value that ``raw`` stands for; every text in it can be encoded again. Raises ``Undecodable``."""
    try:
        return orjson.loads(raw.removeprefix(_BOM))
    except orjson.JSONDecodeError:
        pass
    repaired = _HALVES.sub(_whole, _as_utf8(raw))
    try:
        return orjson.loads(repaired)
    except orjson.JSONDecodeError as error:
        problem = str(error)
    raise Undecodable(problem)  # outside: what was caught holds the document


def _as_utf8(raw: bytes) -> bytes:
    encoding = json.detect_encoding(raw)
    if not encoding.startswith("utf-8"):
        return raw.decode(encoding, "replace").encode("utf-8", "replace")
    raw = _RAW_HALVES.sub(_joined, raw.removeprefix(_BOM))
    return raw.decode("utf-8", "replace").encode()


def _whole(found: re.Match[bytes]) -> bytes:
    return found[0] if found[2] else found[1] + rb"\ufffd"


def _joined(found: re.Match[bytes]) -> bytes:
    if not found[1]:
        return "\ufffd".encode()
    return found[1].decode("utf-8", "surrogatepass").encode("utf-16", "surrogatepass").decode("utf-16").encode()
