"""Which flows a sweep reads: everything the budget leaves is used, and never worse than in turns."""

import pytest

from exporter.platforms.etlworks.planning import (
    IDLE_FLOWS_PER_SWEEP_MIN,
    Flow,
    cadence,
    is_expected,
    plan,
    room,
)
from exporter.platforms.etlworks.reading import FlowState
from exporter.platforms.etlworks.schedule import Schedule
from tests.platforms.etlworks.world import EVERY, HOUR, START, lives, read

NOW = 1_700_000_100.0  # a multiple of 900


def flow(flow_id: str, *, tried: float = NOW - 600, starts: tuple[float, ...] = (), open: bool = False) -> Flow:
    state = FlowState(read=tried, tried=tried, run="5", since=NOW - 86_400, starts=list(starts))
    return Flow(id=flow_id, state=state, open=open)


def new(flow_id: str, *schedules: Schedule) -> Flow:
    return Flow(id=flow_id, state=FlowState(), schedules=schedules)


@pytest.mark.parametrize(
    ("rate", "every", "expected"),
    [(120.0, 60.0, 120), (60.0, 30.0, 30), (120.0, 300.0, 240), (1.0, 1.0, 0), (120.0, 86_400.0, 240)],
)
def test_a_sweep_may_spend_what_the_budget_fills_up_until_the_next(rate: float, every: float, expected: int) -> None:
    assert room(rate, every=every) == expected


def test_what_the_budget_leaves_is_used_and_a_few_are_read_even_if_it_leaves_nothing() -> None:
    idle = [flow(str(n), tried=NOW - 600 - n) for n in range(50)]
    busy = [flow(f"open {n}", open=True) for n in range(30)]
    chosen = plan([*idle, *busy], read_at=NOW, now=NOW, every=60.0, room=40)
    assert (len(chosen.due), chosen.idle) == (30, tuple(str(n) for n in range(49, 39, -1)))
    chosen = plan([*idle, *busy], read_at=NOW, now=NOW, every=60.0, room=20)
    assert (len(chosen.due), len(chosen.idle)) == (30, IDLE_FLOWS_PER_SWEEP_MIN)
    assert len(plan(idle, read_at=NOW, now=NOW, every=60.0, room=1_000).idle) == 50


def test_a_flow_never_read_comes_first_and_that_whose_schedule_may_have_started_it_last_before_the_others() -> None:
    hourly = [Schedule(id="7", period=HOUR, place=place) for place in (200.0, 800.0, 500.0)]
    flows = [flow("old", tried=1.0), new("none"), *(new(f"{one.place:.0f}", one) for one in hourly)]
    chosen = plan(flows, read_at=NOW, now=NOW + 870, every=30.0, room=4)
    assert (chosen.due, chosen.idle, chosen.unread) == (("800",), ("500", "200", "none", "old"), 0)
    chosen = plan([new(str(n)) for n in range(9)], read_at=NOW, now=NOW, every=60.0, room=7)
    assert (len(chosen.idle), chosen.unread) == (7, 2)


@pytest.mark.parametrize(
    ("starts", "expected"),
    [
        ((), None),
        ((0.0, 3600.0), None),
        ((0.0, 3600.0, 7200.0), 3600.0),
        ((0.0, 3610.0, 7195.0, 10_800.0), 3600.0),
        ((0.0, 3600.0, 10_800.0, 14_400.0), 3600.0),  # one went unseen
        ((0.0, 3600.0, 9000.0), None),
        ((0.0, 90.0, 180.0), None),  # more often than sweeps can tell
    ],
)
def test_starts_at_even_distances_are_a_cadence(starts: tuple[float, ...], expected: float | None) -> None:
    assert cadence(starts, every=60.0) == expected


def test_a_cadence_is_expected_until_it_was_seen_and_no_longer_believed_after_a_few_that_were_not() -> None:
    starts = [NOW - 7200, NOW - 3600, NOW]

    def expected(at: float, read_at: float) -> bool:
        return is_expected(FlowState(read=read_at, starts=starts), now=NOW + at, every=60.0)

    assert not expected(3599, NOW + 60)
    assert expected(3600, NOW + 3599)
    assert expected(3650, NOW + 3601)  # it may be late
    assert not expected(3800, NOW + 3601)
    assert expected(3 * 3600 + 1, NOW + 3 * 3600 - 1)
    assert not expected(4 * 3600 + 1, NOW + 3 * 3600)


def test_a_flow_that_runs_much_more_often_than_others_has_its_turn_sooner_and_chance_alone_changes_nothing() -> None:
    often = tuple(NOW - 2400 + n * 400 + n * 37 % 90 for n in range(6))
    flows = [flow(f"{n:02}", tried=NOW - 600) for n in range(20)] + [flow("busy", tried=NOW - 200, starts=often)]
    assert plan(flows, read_at=NOW, now=NOW, every=60.0, room=5).idle[0] == "busy"
    twice = (NOW - 40_000.0, NOW - 9_000.0)
    flows = [flow(f"{n:02}", tried=NOW - 600) for n in range(20)] + [flow("twice", tried=NOW - 599, starts=twice)]
    assert plan(flows, read_at=NOW, now=NOW, every=60.0, room=21).idle[-1] == "twice"


@pytest.mark.parametrize("kind", ["scheduled", "even", "chance", "few"])
def test_runs_show_never_later_than_in_turns_and_much_sooner_where_schedules_or_cadence_help(kind: str) -> None:
    world = lives(kind, flows=40, seed=3, hours=14)
    ours, turns = (read(world, hours=14, per_minute=10, turns=turns) for turns in (False, True))
    assert ours.requests <= turns.requests * 1.02
    for since, until in ((START, START + HOUR / 2), (START + 10 * HOUR, START + 14 * HOUR)):
        mine, theirs = (seen.percentile(0.95, since=since, until=until) for seen in (ours, turns))
        assert mine <= theirs + EVERY / 2
        if kind == "scheduled" or (kind == "even" and since > START):
            assert mine * 3 <= theirs
