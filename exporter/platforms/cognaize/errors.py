"""What kind of error a text speaks of. Pure.

The platform's own API tells no cause of a failed step: what polling finds is ``unknown``. Only the documented events a
customer sends carry a type and a message, in the customer's words; the first row that fits decides.
"""

import re

from exporter.model import ErrorClass

_WORDS = (
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
        r"network|connection|econn\w+|enotfound|unreachable|unknown ?host|\bdns\b|socket|broken pipe|\bssl\b|\btls\b",
    ),
    (ErrorClass.VALIDATION, r"validation|invalid|malformed|precondition|required|\b(?:400|412|415|422)\b"),
    (ErrorClass.PLATFORM, r"platform|internal.?server.?error|bad gateway|service unavailable|\b50[0-3]\b"),
)
_TABLE = tuple((error_class, re.compile(words, re.I)) for error_class, words in _WORDS)


def classify(kind: str | None, message: str | None) -> ErrorClass:
    """The class of an error, by its type if that says anything, else by its message."""
    for text in (kind, message):
        for error_class, pattern in _TABLE:
            if text and pattern.search(text):
                return error_class
    return ErrorClass.UNKNOWN
