"""When retries may start: spans, dates, midnights, and the nights in which clocks change."""

import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.model.windows import BadWindow, parse_window


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


WORK = parse_window("Europe/Berlin", ["mon-fri 07:00-19:00"], ["2026-12-24..2026-12-27", "wed 12:00-13:00"])


@pytest.mark.parametrize(
    ("moment", "is_open"),
    [
        ("2026-11-27T05:59:59", False),  # Friday, 06:59:59 in Berlin
        ("2026-11-27T06:00:00", True),
        ("2026-11-27T17:59:59", True),
        ("2026-11-27T18:00:00", False),  # half open
        ("2026-11-28T10:00:00", False),  # Saturday
        ("2026-11-25T11:30:00", False),  # Wednesday, at noon
        ("2026-12-23T22:59:00", False),
        ("2026-12-24T09:00:00", False),
        ("2026-12-27T09:00:00", False),
        ("2026-12-28T09:00:00", True),
        ("2026-07-01T05:00:00", True),  # 07:00 in summer
    ],
)
def test_hours_and_dates_in_a_zone(moment: str, is_open: bool) -> None:
    assert WORK.is_open(at(moment)) is is_open


def test_a_span_over_midnight_belongs_to_the_day_it_begins_on() -> None:
    night = parse_window("UTC", ["fri 22:00-06:00"], [])
    assert [night.is_open(at(f"2026-11-{d}T{t}")) for d, t in (("27", "21:59"), ("27", "22:00"), ("28", "05:59"))] == [
        False, True, True,
    ]  # fmt: skip
    assert not night.is_open(at("2026-11-28T06:00:00"))
    assert not night.is_open(at("2026-11-27T05:00:00"))  # Thursday's night is not asked for


def test_a_doubled_hour_is_denied_and_a_skipped_one_never_comes() -> None:
    small_hours = parse_window("Europe/Berlin", ["02:00-03:00"], [])
    autumn = [small_hours.is_open(at("2026-10-25T00:00:00") + 60 * minute) for minute in range(180)]
    assert not any(autumn)
    spring = [small_hours.is_open(at("2026-03-29T00:00:00") + 60 * minute) for minute in range(180)]
    assert not any(spring)
    assert small_hours.is_open(at("2026-03-30T00:30:00"))


def test_the_next_opening_is_told() -> None:
    assert WORK.next_open(at("2026-11-27T06:30:00")) == at("2026-11-27T06:30:00")
    assert WORK.next_open(at("2026-12-23T18:30:00")) == at("2026-12-28T06:00:00")
    assert parse_window("UTC", ["mon 00:00-00:07"], []).next_open(at("2026-11-27T10:00:30")) == at(
        "2026-11-30T00:00:00"
    )
    assert parse_window("UTC", [], ["mon-sun"]).next_open(at("2026-11-27T10:00:00")) is None
    after_the_doubled_hour = parse_window("Europe/Berlin", ["sun 02:30-04:00"], [])
    assert after_the_doubled_hour.next_open(at("2026-10-25T00:00:00")) == at("2026-10-25T02:00:00")


@given(
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"]),
    st.lists(st.sampled_from(["mon-fri 07:00-19:00", "sat,sun", "22:13-01:47", "tue 03:03-03:05"]), max_size=2),
    st.lists(st.sampled_from(["2026-11-28", "12:00-12:01", "mon 00:00-23:59"]), max_size=2),
    st.integers(min_value=int(at("2026-01-01T00:00:00")), max_value=int(at("2027-01-01T00:00:00"))),
)
def test_it_is_open_at_the_next_opening_and_at_no_minute_before(
    tz: str, allow: list[str], deny: list[str], now: int
) -> None:
    window = parse_window(tz, allow, deny)
    found = window.next_open(now)
    if found is None:
        return
    assert window.is_open(found)
    assert not any(window.is_open(moment) for moment in range(now, int(found), 60))


@pytest.mark.parametrize(
    ("tz", "allow", "deny", "problem"),
    [
        ("Mars/Olympus", [], [], "unknown time zone 'Mars/Olympus'"),
        ("../etc/passwd", [], [], "unknown time zone"),
        ("UTC", ["noon"], [], "no such day in 'noon'"),
        ("UTC", ["mon-foo 07:00-19:00"], [], "no such day"),
        ("UTC", ["07:00-25:00"], [], "no such time"),
        ("UTC", ["07:00-07:00"], [], "'07:00-07:00' is empty"),
        ("UTC", ["7-19"], [], "cannot read '7-19'"),
        ("UTC", [""], [], "cannot read ''"),
        ("UTC", ["2026-12-24"], [], "cannot read"),
        ("UTC", [], ["2026-02-30"], "no such date"),
        ("UTC", [], ["2026-12-27..2026-12-24"], "ends before it begins"),
    ],
)
def test_a_mistake_is_one_line(tz: str, allow: list[str], deny: list[str], problem: str) -> None:
    with pytest.raises(BadWindow, match=re.escape(problem)):
        parse_window(tz, allow, deny)
