"""What went wrong in a run, from the words of its ``error`` list. Pure.

Qlik documents that a failed run has a list of errors and nothing about their shape (Automations API reference, run
object, 'error'). What is read is the first text of the first error that has one, under the names errors usually have.
Its class comes from an HTTP status in it, as automations word the answers of the services they call ("resulted in a
`429 Too Many Requests` response"), or else from words; what neither tells stays unknown.

| in the text | class |
| --- | --- |
| 401; unauthorized, invalid or expired token | auth |
| 403; forbidden, permission, access denied | permission |
| 402; quota, plan or run limit exceeded | quota |
| 404, 410; not found, does not exist | not_found |
| 408, 504; timed out, cURL error 28 | timeout |
| 409, 412, 423; conflict, locked, already exists | conflict |
| 429; rate limit, too many requests | throttled |
| other 4xx; invalid, required, unprocessable | validation |
| 5xx; bad gateway, service unavailable | platform |
| cURL errors of connecting and sending, DNS, refused or reset connections, TLS | network |
| memory exhausted, maximum run time, killed | killed |

A run whose status is "exceeded limit" is of the class quota, whatever its text says.
"""

import re
from collections.abc import Mapping
from typing import Any

from exporter.model import Error, ErrorClass
from exporter.model.redact import redact
from exporter.platform import errors

#: No more of a text is looked at for its class.
TEXT_CHARS_MAX = 8192
ERRORS_MAX = 20
_TEXTS = ("message", "title", "detail", "description", "error")
_TYPES = ("type", "code", "name")

_STATUS = re.compile(
    r"""(?: resulted\ in\ an?\ `? | \bHTTP(?:/\d(?:\.\d)?)?[ -] | \bHTTP\ (?:error|status)(?:\ code)?:?[ ]
          | \bstatus(?:\ ?code)?(?:\ is|\ of)?["']?\s?[:=]?\s?["']? | \b(?:returned|responded\ with)\ (?:an?\ )?`? )
        ([45]\d\d)\b
      | `([45]\d\d)\ [A-Z]""",
    re.I | re.X,
)
#: The first that matches holds: what stops every retry before what a retry may cure.
_WORDS = [
    (
        ErrorClass.KILLED,
        r"memory size of \d+ bytes exhausted|out of memory|memory limit"
        r"|maximum (?:execution|run) ?time|\b(?:was|been) (?:killed|aborted)",
    ),
    (ErrorClass.QUOTA, r"quota|(?:run|plan|usage|capacity|monthly|daily) limit|limit of your (?:plan|subscription)"),
    (ErrorClass.THROTTLED, r"rate.?limit|too many requests|throttl"),
    (ErrorClass.TIMEOUT, r"curl error 28\b|timed[ -]?out|time-?out|deadline exceeded|ETIMEDOUT"),
    (
        ErrorClass.NETWORK,
        r"curl error (?:5|6|7|16|18|35|51|52|53|54|55|56|58|59|60|77|80|81|82|83|90|91|92)\b"
        r"|could ?n[o']t (?:resolve|connect)|could not (?:resolve|connect)|failed to connect|name or service not known"
        r"|connection (?:was )?(?:refused|reset|closed|aborted)|network is unreachable|no route to host"
        r"|ECONN(?:REFUSED|RESET|ABORTED)|ENOTFOUND|EAI_AGAIN|EPIPE|ssl|tls handshake|certificate",
    ),
    (
        ErrorClass.AUTH,
        r"unauthori[sz]ed|unauthenticated|authentication|invalid_grant|invalid_client"
        r"|(?:invalid|expired|revoked) (?:access |refresh |api )?(?:token|key|credentials?)"
        r"|(?:token|key|credentials?) (?:is|are|has|have|was)(?: been)? (?:invalid|expired|revoked|not valid)",
    ),
    (ErrorClass.PERMISSION, r"forbidden|permission|access (?:is |was )?denied|not (?:allowed|authorized|permitted)"),
    (ErrorClass.CONFLICT, r"conflict|already exists|already (?:running|in use)|is locked|duplicate (?:key|entry)"),
    (ErrorClass.NOT_FOUND, r"not found|does(?: not|n't) exist|no such|could not be found"),
    (
        ErrorClass.PLATFORM,
        r"bad gateway|service (?:is )?(?:temporarily )?unavailable|internal server error|gateway|maintenance",
    ),
    (
        ErrorClass.VALIDATION,
        r"unprocessable|bad request|validation|invalid|(?:is|are) (?:required|missing|malformed)|must (?:be|not)"
        r"|missing (?:required|field|parameter|argument|input)|(?:parse|syntax|type) error|cannot parse",
    ),
]
_TABLE = errors.words(_WORDS)


def classify(kind: str | None, message: str | None) -> ErrorClass:
    """The class of an error from its own name and its text, either of which may be missing."""
    text = " ".join(part for part in (kind, message) if part)[:TEXT_CHARS_MAX]
    told = errors.by_written_status(text, _STATUS)
    return told if told is not ErrorClass.UNKNOWN else errors.by_words(text, _TABLE)


def read_error(value: object) -> Error | None:
    """What a run's ``error`` field tells: a list of objects, one object or a text. None if nothing there has words."""
    for item in (value if isinstance(value, list) else [value])[:ERRORS_MAX]:
        kind, message = _name(item), _words(item)
        if message is not None:
            return Error(
                error_class=classify(kind, message),
                type=None if kind is None else redact(kind, limit=100),
                message=redact(message),
            )
    return None


def _words(item: object) -> str | None:
    if isinstance(item, str):
        return item if item.strip() else None
    if not isinstance(item, Mapping):
        return None
    texts = (item.get(name) for name in _TEXTS)
    return next((text for text in texts if isinstance(text, str) and text.strip()), None)


def _name(item: object) -> str | None:
    if not isinstance(item, Mapping):
        return None
    return next((name for key in _TYPES if (name := _named(item.get(key))) is not None), None)


def _named(value: Any) -> str | None:
    """A short name; a number can only be a status."""
    if isinstance(value, int) and not isinstance(value, bool) and 400 <= value <= 599:
        return f"HTTP-{value}"
    return value if isinstance(value, str) and 0 < len(value.strip()) <= 100 else None
