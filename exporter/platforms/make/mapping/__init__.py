"""From Make's words to ours. Pure: decoded JSON in, observations out.

Sources: Make API documentation ('Scenarios', 'Logs', 'Consumptions', 'Hooks', 'Organizations', 'Pagination, sorting and
filtering'), and live answers where they differ. Times are ISO 8601 in UTC with milliseconds, durations milliseconds,
transfer bytes. What stopped a run is in ``errors``, dead letters and modules have tables of their own.
Here is how single fields are read.

| Make | here |
| --- | --- |
| scenario | workflow; its team: workspace |
| scheduling: immediately; on-demand; any other type | trigger webhook; manual; schedule |
| isActive | enabled |
| isinvalid; isPaused or iswaiting; sequential and dlqCount > 0 | blocked: invalid; paused; dead letters |
| timeline: warning with a delay; stop without an author, by its reason | blocked: paused, so long; quota or invalid |
| nextExec | next run |
| execution (a log row with a status or an EXECUTION_END) | run, always attempt 1: a rerun has an id of its own |
| log row without either: a timeline event | no run; what of it stops the scenario is above |
| status 1, 2, 3 | finished: success, warning, failure |
| status 0 | running |
| any other status | finished with result unknown if it has ended, else running |
| timestamp; endedAt, without it timestamp + duration | started; ended |
| timestamp of a feed row without endedAt, other than its imtId says; minus duration | ended; started |
| replayOfExecutionId; type manual; instant; type auto and not instant | trigger retry; manual; webhook; schedule |
| replayOfExecutionId, or parent.executionId | parent run |
| transfer | bytes in: Make does not tell directions apart |
| webhook of a scenario: queueCount, queueLimit | queue |
| organization: operations, transfer (as text), the license's | usage and limit of operations, transfer_bytes |
| consumptions: centicredits of all scenarios | usage of credits |

Never read: authors, descriptions, addresses and ids of webhooks, outputs and bundles.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from exporter.platform import BadItem
from exporter.platform.cloudevents import parse_time

ID_CHARS_MAX = 64
NAME_CHARS_MAX = 200


def as_object(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BadItem(f"{what} is not an object")
    return value


def plain_id(value: object) -> str | None:
    """A numeric id, as text."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    digits = str(value)
    return digits if digits.isascii() and digits.isdigit() and len(digits) <= ID_CHARS_MAX else None


def scenario_id(value: object, what: str) -> str:
    found = plain_id(value)
    if found is None:
        raise BadItem(f"{what} has no usable scenario id")
    return found


def execution_id(value: object) -> str | None:
    """An id of an execution or a dead letter: 32 hex digits, at places written as a UUID."""
    if not isinstance(value, str):
        return None
    found = value.replace("-", "").lower()
    return found if found.isascii() and found.isalnum() and len(found) <= ID_CHARS_MAX else None


def is_execution_id(text: str) -> bool:
    """Whether the platform would look for an execution of this id, and not call it invalid."""
    return re.fullmatch("[0-9a-f]{32}", text) is not None


def number(value: object) -> float | None:
    """A number, or one written as text; never negative, never a truth value."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        return None
    return float(value)


def whole(value: object) -> int | None:
    found = number(value)
    return None if found is None else round(found)


def milliseconds(value: object) -> int | None:
    """Milliseconds since the epoch of an ISO 8601 text. In whole numbers, so that sums and differences are exact."""
    at = parse_time(value)
    return None if at is None else round(at * 1000)


def seconds(at: int | None) -> float | None:
    return None if at is None else at / 1000


def text(value: object) -> str | None:
    return (value.strip()[:NAME_CHARS_MAX] or None) if isinstance(value, str) else None


def unwrapped(data: object) -> Mapping[str, Any]:
    """What an answer holds, bare or wrapped in ``{"code", "response"}``."""
    if not isinstance(data, Mapping):
        return {}
    inner = data.get("response")
    return inner if isinstance(inner, Mapping) else data
