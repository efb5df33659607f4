"""Which error stopped a flow: from the platform's text to one of the twelve error classes. Pure.

The field ``exception`` holds "exception stack-trace and/or messages logged by the user" (Get flow status API). So the
heads of stack traces are looked for (the exception itself and its causes), and only where there is none, the line that
looks most like an error. The first head that a rule knows decides.
"""

import re
from collections.abc import Iterator

from exporter.model import Error, ErrorClass
from exporter.model.redact import redact
from exporter.platform import errors

#: No more of a text is looked at; stack traces of 100 kB are common.
TEXT_CHARS_MAX = 200_000
LINE_CHARS_MAX = 2_000
HEADS_MAX = 20

_HEAD = re.compile(
    r"""[\W]{0,8}(?:(?:caused\ by|error|fatal|severe|exception\ in\ thread\ "[^"]{0,100}")[\W]{1,4})?
        (?P<type>(?-i:[A-Za-z_][\w$.]{0,200}(?:Exception|Error|Throwable)))
        (?![\w$]|\.\w)(?P<rest>.*)""",
    re.I | re.X,
)
_TYPE = re.compile(r"(?<![\w$.])[a-z][\w$.]{2,200}\.[A-Z][\w$]{0,100}(?:Exception|Error)\b")
_LOGGED_ERROR = re.compile(r"\W{0,8}(?:error|fatal|severe)\b", re.I)
_LOGGED = re.compile(r"\W{0,8}(?:trace|debug|info|notice|warn|warning)\b", re.I)
#: Says only that something else went wrong.
_WRAPPERS = frozenset(
    {
        "java.lang.Exception",
        "java.lang.RuntimeException",
        "java.lang.reflect.InvocationTargetException",
        "java.util.concurrent.ExecutionException",
        "java.util.concurrent.CompletionException",
    }
)

_STATUS = re.compile(
    r"(?:http(?:/\d(?:\.\d)?)?\s?(?:response|error|status)?\s?(?:code|status)?|status\s?code)\W{1,3}(\d{3})\b", re.I
)

#: In this order: what is said more precisely comes first ("access denied for user" before "access denied").
_WORDS = errors.words(
    (
        (ErrorClass.THROTTLED, r"too many requests|rate.?limit|throttl|slow ?down|requestlimitexceeded"),
        (ErrorClass.QUOTA, r"quota|storage limit|no space left|disk (?:is )?full|insufficient (?:storage|credits?)"),
        (ErrorClass.KILLED, r"outofmemoryerror|heap space|gc overhead|threaddeath|\binterruptedexception|byinterrupt"),
        (
            ErrorClass.AUTH,
            r"invalidauthorization|access denied for user|authentication|login failed|logon denied|auth fail"
            r"|bad credentials|(?:invalid|incorrect|expired) (?:user ?name|password|credentials?|token|api key)"
            r"|invalid username/password|unauthori[sz]ed|not logged in|token (?:is |has )?expired",
        ),
        (
            ErrorClass.PERMISSION,
            r"accessdenied|access (?:is )?denied|permission denied|forbidden|not authori[sz]ed|insufficient privilege",
        ),
        (
            ErrorClass.CONFLICT,
            r"deadlock|transactionrollback|serialization failure|lock wait|could not obtain lock|optimisticlock"
            r"|concurrentmodification|already running|being used by another process|\bconflict",
        ),
        (ErrorClass.TIMEOUT, r"timeout|timed? out|deadline exceeded"),
        (
            ErrorClass.NETWORK,
            r"connectexception|unknownhost|noroutetohost|socketexception|ssl(?:handshake)?exception|sslpeer"
            r"|communicationsexception|connectionclosed|nohttpresponse|broken pipe|network is unreachable"
            r"|connection (?:was |is |has been )?(?:refused|reset|closed|lost|aborted)|connection attempt failed",
        ),
        (
            ErrorClass.NOT_FOUND,
            r"filenotfound|nosuchfile|nosuchkey|nosuchbucket|no such file|not found|does(?: not|n't) exist"
            r"|unknown (?:database|table)",
        ),
        (
            ErrorClass.VALIDATION,
            r"integrityconstraint|constraint viol|violates \S{1,40} constraint|cannot be null|syntaxerror|syntax error"
            r"|dataexception|datatruncation|data truncat|numberformat|parseexception|jsonparse|saxparse|malformed"
            r"|illegalargument|duplicate (?:entry|key)|invalid (?:value|format|input|date|number|json|xml|column)"
            r"|unknown column|conversion failed|unexpected (?:character|token|end)",
        ),
        (ErrorClass.PLATFORM, r"service unavailable|bad gateway|internal (?:server )?error|server is down"),
    )
)


def classify(error_type: str | None, message: str | None) -> ErrorClass:
    """The class of an error by its name and its message; ``unknown`` where no rule fits."""
    text = f"{error_type or ''}: {message or ''}"[:LINE_CHARS_MAX]
    told = errors.by_written_status(text, _STATUS)
    return told if told is not ErrorClass.UNKNOWN else errors.by_words(text, _WORDS)


def error_of(exception: object) -> Error:
    """Why a run failed, from its field ``exception``: class, name of the exception, its line redacted and capped.

    ``Error()`` where the text says nothing.
    """
    if not isinstance(exception, str) or not exception.strip():
        return Error()
    first: Error | None = None
    for error_type, line in _heads(exception):
        error = _error(line, redact(error_type, limit=100))
        if error.error_class is not ErrorClass.UNKNOWN:
            return error
        first = first or error
    if first is not None:
        return first
    return _error(_plain_line(exception), None)


def _error(line: str, error_type: str | None) -> Error:
    return Error(
        error_class=classify(None, line),
        type=error_type,
        message=redact(line) or None,
        status=errors.written_status(line[:LINE_CHARS_MAX], _STATUS),
    )


def has_error(exception: object) -> bool:
    """Whether the text holds an exception at all, and not only what a flow logged."""
    return isinstance(exception, str) and next(_heads(exception), None) is not None


def _lines(text: str) -> Iterator[str]:
    for line in text[:TEXT_CHARS_MAX].splitlines():
        line = line[:LINE_CHARS_MAX]
        if line.strip() and not line.startswith(("\tat ", "    at ", "\t...")):
            yield line


def _heads(text: str) -> Iterator[tuple[str, str]]:
    """The lines that name an exception: (name, line from the name on)."""
    found = 0
    for line in _lines(text):
        match = _HEAD.match(line)
        if match is None or found == HEADS_MAX:
            continue
        found += 1
        head = line[match.start("type") :].strip()
        named = match["type"]
        if named in _WRAPPERS and (inner := _TYPE.search(match["rest"])):
            named = inner[0]
        yield named, head


def _plain_line(text: str) -> str:
    """The line most likely to say what went wrong: one logged as an error, or else the first that is no log line."""
    lines = list(_lines(text))
    for wanted in (lambda line: _LOGGED_ERROR.match(line), lambda line: not _LOGGED.match(line)):
        for line in lines:
            if wanted(line):
                return line.strip()
    return lines[0].strip() if lines else ""
