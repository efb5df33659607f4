"""What n8n calls errors, and which of the twelve classes each is. Pure.

``httpCode`` of a node's error is the status of the answer that a node got, as text, or the code of the network error
that came instead of one (``"500"``, ``"ECONNREFUSED"``). Otherwise the name of the error tells, or the code in its
message. What somebody wrote into a Stop And Error or a Code node is anybody's text and says nothing about the class.
The caller of a sub-workflow fails by a NodeOperationError of its own, with that of the called one inside.

Names of nodes, ``error.context`` and ``node.parameters`` can hold addresses and keys: nothing of them is read but the
node's type. ``error.stack`` names folders of the server.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from exporter.model import Error, ErrorClass
from exporter.model.redact import redact
from exporter.platform import errors

#: Codes of network errors, as node.js has them.
CODES = {
    **dict.fromkeys(
        (
            "ECONNREFUSED",
            "ECONNRESET",
            "ENOTFOUND",
            "EAI_AGAIN",
            "EHOSTUNREACH",
            "ENETUNREACH",
            "EPIPE",
            "ECONNCLOSED",
            "EPROTO",
            "CERT_HAS_EXPIRED",
            "DEPTH_ZERO_SELF_SIGNED_CERT",
            "SELF_SIGNED_CERT_IN_CHAIN",
            "UNABLE_TO_VERIFY_LEAF_SIGNATURE",
            "ERR_TLS_CERT_ALTNAME_INVALID",
        ),
        ErrorClass.NETWORK,
    ),
    **dict.fromkeys(("ETIMEDOUT", "ESOCKETTIMEDOUT", "ECONNABORTED", "ETIME"), ErrorClass.TIMEOUT),
}
#: Names of errors that say what happened, whatever their text.
NAMES = {
    "WorkflowCrashedError": ErrorClass.KILLED,
    "NodeCrashedError": ErrorClass.KILLED,
    "TimeoutExecutionCancelledError": ErrorClass.TIMEOUT,
}
#: Errors whose text is n8n's own, or of a node that called something: its words may be believed.
_OF_CALLS = frozenset({"NodeApiError", "NodeSslError", "AxiosError"})
#: Where an error keeps the one that it was made of, and how many of them are followed.
_INNER = ("errorResponse", "cause")
_INNER_MAX = 5
#: n8n's own words for the answers and codes above. A caller of a sub-workflow that failed has its message and no more.
PHRASES = {
    "The service refused the connection": ErrorClass.NETWORK,
    "The connection to the server was closed unexpectedly": ErrorClass.NETWORK,
    "The connection cannot be established": ErrorClass.NETWORK,
    "The connection was aborted": ErrorClass.TIMEOUT,
    "The connection timed out": ErrorClass.TIMEOUT,
    "Bad request - please check your parameters": ErrorClass.VALIDATION,
    "Authorization failed - please check your credentials": ErrorClass.AUTH,
    "Payment required": ErrorClass.QUOTA,
    "Forbidden - perhaps check your credentials": ErrorClass.PERMISSION,
    "The resource you are requesting could not be found": ErrorClass.NOT_FOUND,
    "The service is receiving too many requests from you": ErrorClass.THROTTLED,
    "The service was not able to process your request": ErrorClass.PLATFORM,
    "Bad gateway - the service failed to handle your request": ErrorClass.PLATFORM,
    "Service unavailable": ErrorClass.PLATFORM,
    "Gateway timed out": ErrorClass.TIMEOUT,
    "Workflow did not finish, possible out-of-memory issue": ErrorClass.KILLED,
}
_CODE = re.compile(r"\b(" + "|".join(CODES) + r")\b")
_STATUS = re.compile(r"^([1-5]\d\d)\b|\bstatus(?: code)?:? ?([45]\d\d)\b", re.I)
_NAME = re.compile(r"[A-Za-z][\w.-]{0,99}")
_STEP_TYPE = re.compile(r"[@\w./-]{1,120}")


def read(error: object) -> Error | None:
    """The cause of a failed run: ``data.resultData.error``, or the same in an event; None if there is none."""
    if not isinstance(error, Mapping):
        return None
    name, message = _word(error.get("name"), _NAME), _text(error.get("message"))
    told = (_class_of(each) for each in _layers(error))
    found = next((known for known in told if known is not ErrorClass.UNKNOWN), ErrorClass.UNKNOWN)
    node = error.get("node")
    step_type = _word(node.get("type"), _STEP_TYPE) if isinstance(node, Mapping) else None
    return Error(
        error_class=found,
        type=name,
        message=None if message is None else redact(message),
        step_type=step_type,
    )


def _layers(error: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The error, the one that it was made of, and so on."""
    layer: object = error
    for _ in range(1 + _INNER_MAX):
        if not isinstance(layer, Mapping):
            return
        yield layer
        layer = next((layer[key] for key in _INNER if isinstance(layer.get(key), Mapping)), None)


def _class_of(error: Mapping[str, Any]) -> ErrorClass:
    name, message = _word(error.get("name"), _NAME), _text(error.get("message"))
    further = _further(error, _text(error.get("description")))
    return classify(name, message, code=error.get("httpCode"), further=further)


def classify(name: str | None, message: str | None, *, code: object = None, further: str = "") -> ErrorClass:
    """The class of an error by its code, its name, or the words of one that came from a call."""
    told = _by_code(code)
    if told is not ErrorClass.UNKNOWN:
        return told
    if name in NAMES:
        return NAMES[name]
    found = _CODE.search(f"{message or ''} {further}")
    if found:
        return CODES[found[1]]
    if name is None:  # of a sub-workflow
        return next((known for words, known in PHRASES.items() if (message or "").startswith(words)), told)
    if name in _OF_CALLS:
        told = errors.by_written_status(further, _STATUS)
        return told if told is not ErrorClass.UNKNOWN else errors.plain(None, message)
    return ErrorClass.UNKNOWN


def of_event(kind: str | None, message: str | None) -> ErrorClass:
    """The class of an error that the error workflow reported: by its name, and its message with the code before it."""
    code, _, rest = (message or "").partition(" ")
    told = _by_code(code.strip("[]"))
    return told if told is not ErrorClass.UNKNOWN else classify(kind, rest if told else message)


def _by_code(code: object) -> ErrorClass:
    if isinstance(code, int) and not isinstance(code, bool):
        return errors.by_status(code)
    if not isinstance(code, str):
        return ErrorClass.UNKNOWN
    return errors.by_status(int(code)) if re.fullmatch(r"\d{3}", code) else CODES.get(code, ErrorClass.UNKNOWN)


def _further(error: Mapping[str, Any], described: str | None) -> str:
    """What else is said: the texts that n8n put together from the answer. Read for a code or a status, never shown."""
    messages = error.get("messages")
    texts = [text[:200] for text in messages[:3] if isinstance(text, str)] if isinstance(messages, list) else []
    return " ".join([*texts, (described or "")[:200]])


def _word(value: object, pattern: re.Pattern[str]) -> str | None:
    return value if isinstance(value, str) and pattern.fullmatch(value) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value.strip() else None
