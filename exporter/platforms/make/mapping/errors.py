"""What stopped a scenario: from Make's names of errors to the twelve error classes. Pure.

The names are those of the Make API documentation (custom app error types) and help centre ("Types of errors"). The name
decides, with two exceptions: names that say only that something failed leave it to the message, and the status that a
service answered with goes before a name that says no more than that data was wrong. It stands in the message in several
forms: ``[429] …``, ``Error: 404 Not Found``, ``Status Code Error: 401``. A number elsewhere in a text is no status:
what is wrong with data must not look like a service that is down.

| Make | class |
| --- | --- |
| ConnectionError | network |
| ModuleTimeoutError | timeout |
| RateLimitError | throttled |
| DataError, BundleValidationError, IncompleteDataError | validation; with a status: as it says, so |
| InvalidConfigurationError, MaxFileSizeExceededError | 404 is not_found, 429 throttled, 5xx platform, … |
| DuplicateDataError, InconsistencyError | conflict |
| InvalidAccessTokenError, AccountValidationError | auth |
| OperationsLimitExceededError, DataSizeLimitExceededError, OutOfSpaceError | quota |
| RuntimeError, Error, any other name, none | by status and words of the message, else unknown |
"""

import re
from collections.abc import Mapping

from exporter.model import Error, ErrorClass
from exporter.model.redact import redact
from exporter.platform import errors

#: No more of a text is looked at for its class.
TEXT_CHARS_MAX = 4096
NAME_CHARS_MAX = 100

NAMES = {
    "ConnectionError": ErrorClass.NETWORK,
    "ModuleTimeoutError": ErrorClass.TIMEOUT,
    "RateLimitError": ErrorClass.THROTTLED,
    "DataError": ErrorClass.VALIDATION,
    "BundleValidationError": ErrorClass.VALIDATION,
    "InvalidConfigurationError": ErrorClass.VALIDATION,
    "IncompleteDataError": ErrorClass.VALIDATION,
    "MaxFileSizeExceededError": ErrorClass.VALIDATION,
    "DuplicateDataError": ErrorClass.CONFLICT,
    "InconsistencyError": ErrorClass.CONFLICT,
    "InvalidAccessTokenError": ErrorClass.AUTH,
    "AccountValidationError": ErrorClass.AUTH,
    "OperationsLimitExceededError": ErrorClass.QUOTA,
    "DataSizeLimitExceededError": ErrorClass.QUOTA,
    "OutOfSpaceError": ErrorClass.QUOTA,
}
#: Classes of names before which the status of a service goes.
_VAGUE = frozenset({ErrorClass.VALIDATION, ErrorClass.UNKNOWN})

_STATUS = re.compile(
    r"(?:\A|[:.)]\s)\s{0,3}\[([45]\d\d)(?: [^\]\[]{1,60})?\]"  # [429] …, [404 Not Found], at the start of a sentence
    r"|\b(?i:HTTP(?:/\d(?:\.\d)?)?|status(?:[ _-]?code)?(?: error)?|error code)[\"']?\s?[:=]?\s?([45]\d\d)\b"
    r"|(?:\A|\b[A-Za-z]{0,40}Error:?\s)\s{0,3}([45]\d\d)(?=\s*\Z|\s*[-:,.;]\s|\s[A-Z])"  # Error: 404 Not Found
    r"|:\s([45]\d\d)\s(?:Bad|Unauth|Forbid|Not (?:Found|Acc)|Method|Request|Conflict|Gone|Too Many|Unpr|Internal|Serv)"
)
#: The first that matches holds.
_WORDS = errors.words(
    (
        (ErrorClass.THROTTLED, r"too many requests|rate.?limit|throttl"),
        (
            ErrorClass.NETWORK,
            r"E(?:CONN(?:RESET|REFUSED|ABORTED)|NOTFOUND|AI_AGAIN|PIPE|TIMEDOUT|HOSTUNREACH|NETUNREACH|PROTO)\b"
            r"|socket hang up|socket disconnected|\bDNS\b|certificate"
            r"|connection (?:was )?(?:reset|refused|closed|lost)",
        ),
        (ErrorClass.TIMEOUT, r"timed?[ -]?out|ESOCKETTIMEDOUT|deadline exceeded"),
        (ErrorClass.QUOTA, r"quota|(?:operations|credits?|transfer|storage|size) limit|not enough (?:space|credits)"),
        (
            ErrorClass.AUTH,
            r"unauthori[sz]ed|unauthenticated|authentication|invalid_grant"
            r"|(?:invalid|expired|revoked) (?:access )?(?:token|credential)"
            r"|token (?:is |was |has )?(?:been )?(?:invalid|expired|revoked)",
        ),
        (ErrorClass.PERMISSION, r"forbidden|permission|access denied|not allowed"),
        (ErrorClass.NOT_FOUND, r"not found|does(?: not|n't) exist|no such"),
        (ErrorClass.CONFLICT, r"conflict|already exists|duplicate|is locked"),
        (
            ErrorClass.KILLED,
            r"out of memory|(?:execution|scenario|run) (?:was |has been )?(?:interrupted|stopped|aborted)",
        ),
        (ErrorClass.PLATFORM, r"bad gateway|service unavailable|internal server error"),
        (
            ErrorClass.VALIDATION,
            r"validation failed|missing value|required parameter|bad request|invalid (?:value|json)",
        ),
    )
)


def classify(name: str | None, message: str | None) -> ErrorClass:
    """The class of an error by Make's name of it and its message, either of which may be missing."""
    named = NAMES.get(name or "", ErrorClass.UNKNOWN)
    text = (message or "")[:TEXT_CHARS_MAX]
    status = errors.by_written_status(text, _STATUS)
    if named in _VAGUE and status is not ErrorClass.UNKNOWN:
        return status
    return named if named is not ErrorClass.UNKNOWN else errors.by_words(text, _WORDS)


def make_error(name: object, message: object, *, step_type: str | None = None) -> Error:
    """An error from its raw parts, redacted and capped. What is not text is not known."""
    name = name.strip() if isinstance(name, str) else ""
    message = message.strip() if isinstance(message, str) else ""
    return Error(
        error_class=classify(name, message),
        type=redact(name, limit=NAME_CHARS_MAX) or None,
        message=redact(message) or None,
        step_type=step_type,
        status=errors.written_status(message[:TEXT_CHARS_MAX], _STATUS),
    )


def read_error(value: object) -> Error | None:
    """The error of a log row or an execution: ``{"name", "message", "causeModule": {"name", "appName"}}``, or a text.

    None if nothing there says anything (Make API documentation, 'Get execution').
    """
    if isinstance(value, str):
        return make_error(None, value) if value.strip() else None
    if not isinstance(value, Mapping):
        return None
    name = value.get("name") or value.get("type")
    error = make_error(name, value.get("message"), step_type=_step_type(value.get("causeModule")))
    return None if error == Error() else error


def _step_type(module: object) -> str | None:
    """``http:MakeRequest``, as blueprints write it; without the app where only the module is named."""
    if not isinstance(module, Mapping):
        return None
    parts = [part for key in ("appName", "name") if isinstance(part := module.get(key), str) and part]
    return redact(":".join(parts), limit=NAME_CHARS_MAX) or None
