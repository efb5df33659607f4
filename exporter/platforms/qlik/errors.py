"""What went wrong in a run, from its ``error`` list. Pure.

Qlik documents that a failed run has a list of errors and nothing about their shape (Automations API reference, run
object, 'error'). Two shapes have been recorded: a call that was answered, and words alone::

    {"error": "Error calling endpoint \"Acme CRM - Create Ticket\"",
     "endpoint": {"name": "Create Ticket", "datasource": "Acme CRM"}, "request": {"url": …, "method": "POST"},
     "response": {"status": 401, "body": {"detail": "Invalid token", …}}, "external error": true}
    {"error": "The required inputs were not received."}

The status of the answer decides the class. Where there is none, the words do, but never a name that somebody gave a
connector, a block or an endpoint: those are taken out first. Where other shapes come, the first text counts, under the
names errors usually have, and an HTTP status in it as automations word the answers of the services they call ("resulted
in a `429 Too Many Requests` response"). What nothing tells stays unknown.

| status; words | class |
| --- | --- |
| 401; unauthorized, invalid or expired token | auth, of the connector: our own credential is another |
| 403; forbidden, permission, access denied | permission |
| 402; quota, plan or run limit exceeded | quota |
| 404, 410; not found, does not exist | not_found |
| 408; timed out, cURL error 28 | timeout |
| 409, 412, 423; conflict, locked, already exists | conflict |
| 429; rate limit, too many requests | throttled |
| other 4xx; required inputs, invalid, required, unprocessable | validation |
| 5xx; bad gateway, service unavailable | platform |
| cURL errors of connecting and sending, DNS, refused or reset connections, TLS | network |
| memory exhausted, maximum run time, killed | killed |

A run whose status is "exceeded limit" is of the class quota, whatever its text says.

What was asked for and what was answered is a customer's data: of the answer one sentence is kept, and neither a URL nor
anything that stood in the request.
"""

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from exporter.model import Error, ErrorClass
from exporter.model.redact import HIDDEN, redact
from exporter.platform import errors

#: No more of a text is looked at for its class.
TEXT_CHARS_MAX = 8192
ERRORS_MAX = 20
_TEXTS = ("error", "message", "title", "detail", "description")
_SENTENCES = ("detail", "message", "title")
_TYPES = ("type", "code")
#: Texts of a request that are looked for in what is said of it; shorter ones are words of every sentence.
SENT_MAX, SENT_CHARS_MIN = 500, 6

#: A name in quotes; one that has quotes inside, or no end, takes all that follows with it.
_NAMED = re.compile(
    r"""\b(?:endpoint|block|connector|snippet|data\ ?source|automation|step)s?\b[^\w"'“”‘’]{0,5}
        (?: "(?:.*"|.*) | “(?:.*”|.*) | '(?:.*'|.*) | ‘(?:.*’|.*) )""",
    re.I | re.X | re.S,
)
_URL = re.compile(r"""\b[a-z][a-z0-9+.-]{1,20}:(?:\\?/){2}[^\s"'<>`]*""", re.I)
#: The body of an answer at the end of a text.
_ANSWER = re.compile(r"(resulted in an?\s`?\d{3}[^`:]{0,60}`? response):.*", re.I | re.S)

_STATUS = re.compile(
    r"""(?: resulted\ in\ an?\ `? | \bHTTP(?:/\d(?:\.\d)?)?[ -] | \bHTTP\ (?:error|status)(?:\ code)?:?[ ]
          | \bstatus(?:\ ?code)?(?:\ is|\ of)?["']?\s?[:=]?\s?["']? | \b(?:returned|responded\ with)\ (?:an?\ )?`? )
        ([45]\d\d)\b
      | `([45]\d\d)\ [A-Z]""",
    re.I | re.X,
)
#: The first that matches holds: what stops every retry before what a retry may cure.
_WORDS = [
    (ErrorClass.VALIDATION, r"required inputs?\b"),
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
    text = _told(kind, message)
    told = errors.by_written_status(text, _STATUS)
    return told if told is not ErrorClass.UNKNOWN else errors.by_words(text, _TABLE)


def _told(kind: str | None, message: str | None) -> str:
    return " ".join(part for part in (kind, message) if part)[:TEXT_CHARS_MAX]


def read_error(value: object) -> Error | None:
    """What a run's ``error`` field tells: a list of objects, one object or a text. None if nothing there has words."""
    for item in (value if isinstance(value, list) else [value])[:ERRORS_MAX]:
        error = _read(item if isinstance(item, Mapping) else {"error": item})
        if error is not None:
            return error
    return None


def _read(item: Mapping[str, Any]) -> Error | None:
    words = next((text for name in _TEXTS if (text := _text(item.get(name))) is not None), None)
    response, endpoint = item.get("response"), item.get("endpoint")
    status = _status(response.get("status")) if isinstance(response, Mapping) else None
    if words is None and status is None:
        return None
    source, block = (
        (_text(endpoint.get("datasource")), _text(endpoint.get("name")))
        if isinstance(endpoint, Mapping)
        else (None, None)
    )
    kind = next((name for key in _TYPES if (name := _named(item.get(key))) is not None), None)
    if status is not None:
        error_class, kind = errors.by_status(status), _phrase(status)
    else:
        nameless = None if words is None else _nameless(words, source, block)
        error_class, status = classify(kind, nameless), errors.written_status(_told(kind, nameless), _STATUS)
    said = [text for text in (words, _sentence(response)) if text is not None]
    message = _without(": ".join(said), _sent(item.get("request")))
    return Error(
        error_class=error_class,
        type=None if kind is None else redact(_URL.sub("[url]", kind), limit=100),
        message=redact(message) or None,
        step_type=None if source is None else redact(_URL.sub("[url]", source), limit=100),
        status=status,
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _status(value: object) -> int | None:
    """A status that says that something went wrong."""
    if isinstance(value, str) and re.fullmatch(r"[45]\d\d", value, re.A):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 400 <= value <= 599 else None


def _phrase(status: int) -> str:
    """A status with its words: fingerprints leave out numbers, and two failures of one endpoint are two kinds."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _sentence(response: object) -> str | None:
    """The one sentence of an answer that says what was wrong."""
    body = response.get("body") if isinstance(response, Mapping) else None
    if not isinstance(body, Mapping):
        return None
    return next((text for name in _SENTENCES if (text := _text(body.get(name))) is not None), None)


def _nameless(words: str, source: str | None, block: str | None) -> str:
    """The words without what somebody called a connector or a block."""
    return _NAMED.sub(" ", words.replace(f"{source or ''} - {block or ''}", ""))


def _sent(request: object) -> Sequence[str]:
    """What stood in a request, longest first: its address, with and without the host, and every text in it."""
    found, left = (
        set[str](),
        [value for key, value in request.items() if key != "method"] if isinstance(request, Mapping) else [],
    )
    while left and len(found) < SENT_MAX:
        value = left.pop()
        if isinstance(value, Mapping):
            left += value.values()
        elif isinstance(value, list):
            left += value
        elif isinstance(value, str):
            found |= {value.strip()[:TEXT_CHARS_MAX], _path(value)}
    return sorted((text for text in found if len(text) >= SENT_CHARS_MIN), key=lambda text: (-len(text), text))


def _path(url: str) -> str:
    try:
        return urlsplit(url).path
    except ValueError:
        return ""


def _without(text: str, sent: Sequence[str]) -> str:
    """A text without addresses, without the body of an answer, and without what was sent."""
    text = _ANSWER.sub(r"\1", text[:TEXT_CHARS_MAX])
    for part in sent:
        text = text.replace(part, "[url]" if "/" in part else HIDDEN)
    return _URL.sub("[url]", text)


def _named(value: Any) -> str | None:
    """A short name; a number can only be a status."""
    if isinstance(value, int) and not isinstance(value, bool) and 400 <= value <= 599:
        return f"HTTP-{value}"
    return value if isinstance(value, str) and 0 < len(value.strip()) <= 100 else None
