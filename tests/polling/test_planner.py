"""When to sweep next, as a table."""

import pytest

from exporter.polling.planner import AUTH_DELAY_FIRST, AUTH_DELAY_MAX, FAILURE_DELAY_MAX, next_delay
from exporter.webhooks.reliability import slowdown
from exporter.wire.errors import ErrorKind


@pytest.mark.parametrize(
    ("failures", "kind", "factor", "seconds"),
    [
        (0, None, 1.0, 60.0),
        (0, None, 3.0, 180.0),
        (0, None, 0.1, 60.0),
        (1, ErrorKind.UNAVAILABLE, 4.0, 60.0),
        (2, ErrorKind.UNAVAILABLE, 1.0, 120.0),
        (9, ErrorKind.TIMEOUT, 1.0, FAILURE_DELAY_MAX),
        (1, ErrorKind.AUTH, 4.0, AUTH_DELAY_FIRST),  # a hiccup, perhaps: somebody is woken up unless it is
        (2, ErrorKind.AUTH, 1.0, 120.0),
        (4, ErrorKind.AUTH, 1.0, 480.0),
        (9, ErrorKind.AUTH, 1.0, AUTH_DELAY_MAX),
        (5000, ErrorKind.UNAVAILABLE, 1.0, FAILURE_DELAY_MAX),  # weeks of it
        (5000, ErrorKind.AUTH, 1.0, AUTH_DELAY_MAX),
    ],
)
def test_a_failing_source_is_asked_ever_more_rarely_and_a_refused_credential_most(
    failures: int, kind: ErrorKind | None, factor: float, seconds: float
) -> None:
    assert next_delay(interval=60.0, failures=failures, kind=kind, slowdown=factor) == seconds


def test_a_long_interval_is_never_shortened_by_failing() -> None:
    assert next_delay(interval=3600.0, failures=5, kind=ErrorKind.UNAVAILABLE) == 3600.0


def test_jitter_spreads_intervals_by_a_tenth() -> None:
    assert next_delay(interval=100.0, failures=0, jitter=0.0) == pytest.approx(90.0)
    assert next_delay(interval=100.0, failures=0, jitter=1.0) == pytest.approx(110.0)


@pytest.mark.parametrize(("told", "missed", "factor"), [(0, 0, 1), (49, 0, 1), (50, 0, 2), (500, 0, 4), (500, 1, 1)])
def test_only_webhooks_that_miss_nothing_slow_the_poller_down(told: int, missed: int, factor: float) -> None:
    assert slowdown(reported=told, missed=missed) == factor
