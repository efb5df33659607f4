"""From an error's text to one of the twelve error classes: by the HTTP status in it, or else by its words. Pure.

What a status means is the same everywhere; how a platform writes one, and which words it uses, is its own table. Of
words the first row that fits decides, so a table puts what is said more precisely first.
"""

import re
from collections.abc import Iterable

from exporter.model import ErrorClass

STATUSES = {
    401: ErrorClass.AUTH,
    402: ErrorClass.QUOTA,
    403: ErrorClass.PERMISSION,
    404: ErrorClass.NOT_FOUND,
    408: ErrorClass.TIMEOUT,
    409: ErrorClass.CONFLICT,
    410: ErrorClass.NOT_FOUND,
    412: ErrorClass.CONFLICT,
    423: ErrorClass.CONFLICT,
    429: ErrorClass.THROTTLED,
    504: ErrorClass.TIMEOUT,
    507: ErrorClass.QUOTA,
}

#: Rows of (class, words), the words compiled.
Words = tuple[tuple[ErrorClass, re.Pattern[str]], ...]


def words(rows: Iterable[tuple[ErrorClass, str]]) -> Words:
    """A platform's table of words, as regular expressions; case does not matter."""
    return tuple((error_class, re.compile(pattern, re.I)) for error_class, pattern in rows)


def by_status(status: int) -> ErrorClass:
    """What the status of a refused or failed call means; below 400 and from 600 on it is none."""
    if not 400 <= status < 600:
        return ErrorClass.UNKNOWN
    return STATUSES.get(status, ErrorClass.VALIDATION if status < 500 else ErrorClass.PLATFORM)


def written_status(text: str, statuses: re.Pattern[str]) -> int | None:
    """The first status in the text that says something went wrong, written as ``statuses`` says: one of its groups is
    the number.
    """
    found = statuses.search(text)
    number = None if found is None else next((int(group) for group in found.groups() if group), None)
    return number if number is not None and 400 <= number < 600 else None


def by_written_status(text: str, statuses: re.Pattern[str]) -> ErrorClass:
    """The class by the first status in the text."""
    status = written_status(text, statuses)
    return ErrorClass.UNKNOWN if status is None else by_status(status)


def by_words(text: str, table: Words) -> ErrorClass:
    """The class of the first row whose words the text holds."""
    return next((error_class for error_class, pattern in table if pattern.search(text)), ErrorClass.UNKNOWN)


#: Words that anybody may use who reports an error: for the documented event, and for platforms that name no cause.
PLAIN_WORDS = words(
    (
        (ErrorClass.THROTTLED, r"throttl|too many requests|rate.?limit|\b429\b"),
        (ErrorClass.QUOTA, r"quota|insufficient (?:credits|funds)|\b402\b"),
        (ErrorClass.TIMEOUT, r"timed?[ -]?out|deadline exceeded|\b(?:408|504)\b"),
        (ErrorClass.KILLED, r"killed|out of memory|oom|sigterm|sigkill|evicted"),
        (ErrorClass.AUTH, r"unauthori[sz]ed|authentication|token (?:has )?expired|invalid token|\b401\b|^auth$"),
        (ErrorClass.PERMISSION, r"forbidden|permission|access denied|\b403\b"),
        (ErrorClass.NOT_FOUND, r"not.?found|no such|\b(?:404|410)\b"),
        (ErrorClass.CONFLICT, r"conflict|already exists|optimistic lock|\b409\b"),
        (
            ErrorClass.NETWORK,
            r"network|connection|econn\w+|enotfound|unreachable|unknown ?host|\b(?:dns|ssl|tls)\b|socket|broken pipe",
        ),
        (ErrorClass.VALIDATION, r"validation|invalid|malformed|precondition|required|\b(?:400|412|415|422)\b"),
        (ErrorClass.PLATFORM, r"platform|internal.?server.?error|bad gateway|service unavailable|\b50[0-3]\b"),
    )
)


def plain(kind: str | None, message: str | None) -> ErrorClass:
    """The class of an error by plain words: those of its type if they say anything, else those of its message."""
    told = by_words(kind, PLAIN_WORDS) if kind else ErrorClass.UNKNOWN
    return told if told is not ErrorClass.UNKNOWN or not message else by_words(message, PLAIN_WORDS)
