"""When to sweep next. Pure: what happened goes in, seconds come out."""

from exporter.wire.errors import ErrorKind

#: A credential that is refused is tried again ever more rarely, up to this many seconds apart.
AUTH_DELAY_MAX = 1800.0
#: The first refusal may be a hiccup of the platform: it is asked again so soon (seconds).
AUTH_DELAY_FIRST = 20.0
#: Other failures are tried again up to this many seconds apart.
FAILURE_DELAY_MAX = 600.0
#: More doublings than these reach no longer delay, and in the end no float holds them.
DOUBLINGS_MAX = 30
#: Spread of intervals, so that sources do not march in step.
JITTER = 0.1


def next_delay(
    *, interval: float, failures: int, kind: ErrorKind | None = None, slowdown: float = 1.0, jitter: float = 0.5
) -> float:
    """Seconds from the end of one sweep to the start of the next.

    ``failures`` counts failed sweeps in a row and ``kind`` is the last one's; ``slowdown`` is the factor reliable
    webhooks allow; ``jitter`` is a number from 0 to 1, 0.5 meaning none.
    """
    doublings = min(failures, DOUBLINGS_MAX)
    if failures == 0:
        delay = interval * max(slowdown, 1.0)
    elif kind is ErrorKind.AUTH and failures == 1:
        delay = min(interval, AUTH_DELAY_FIRST)
    elif kind is ErrorKind.AUTH:
        delay = max(interval, min(interval * 2.0 ** (doublings - 1), AUTH_DELAY_MAX))
    else:
        delay = max(interval, min(interval * 2.0 ** (doublings - 1), FAILURE_DELAY_MAX))
    return delay * (1.0 + JITTER * (2.0 * jitter - 1.0))
