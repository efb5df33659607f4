"""What a schedule's text says, which flows are due, and what a reading of a flow comes to."""

from dataclasses import replace
from typing import Any

import pytest

from exporter.model import Error, Result, Run, State, Workflow
from exporter.platforms.etlworks.mapping import Execution
from exporter.platforms.etlworks.planning import is_due
from exporter.platforms.etlworks.reading import (
    LOST_SECONDS,
    FlowReading,
    FlowState,
    Stop,
)
from exporter.platforms.etlworks.schedule import (
    Schedule,
    Timing,
    from_cursor,
    next_run_at,
    parse_timing,
    to_cursor,
)

NOW = 1_700_000_100.0  # a multiple of 300
HOUR, DAY = 3600.0, 86_400.0


# --- Schedules ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30 2/5 * * * ?", Timing(period=300, offset=150, exact=True, place=150)),
        ("0 0,15,30,45 * * * ?", Timing(period=900, offset=0, exact=True, place=0)),
        ("*/20 * * * * ?", Timing(period=20, offset=0, exact=True, place=0)),
        ("* * * * * ?", Timing(period=1, offset=0, exact=True, place=0)),
        ("*/5 * * * *", Timing(period=300, offset=0, exact=True, place=0)),
        ("0 */5 8-17 ? * MON-FRI", Timing(period=300, offset=0, place=0)),
        ("0 3/10 * * * ?", Timing(period=600, exact=True, place=180)),  # zones are multiples of 15 minutes away
        ("0 0/7 * * * ?", Timing(period=60, offset=0, place=0)),  # unevenly over the hour
        ("0 30 * * * ?", Timing(period=HOUR, exact=True, place=0)),
        ("0 0 1,13 * * ?", Timing(period=12 * HOUR, exact=True, place=0)),
        ("0 0 2 * * ? *", Timing(period=DAY, exact=True, place=0)),
        ("0 0 2 ? * MON-FRI", Timing(period=DAY, place=0)),
        ("0 0 2 L * ?", Timing(period=DAY, place=0)),
        ("every 30 seconds", Timing(period=30)),
        ("Every 5 minutes", Timing(period=300)),
        ("2 h", Timing(period=2 * HOUR)),
        ("1 day", Timing(period=DAY)),
    ],
)
def test_the_text_of_a_schedule_tells_its_timing(text: str, expected: Timing) -> None:
    assert parse_timing(text) == expected


@pytest.mark.parametrize(
    "text",
    [None, 5, "", "300", "every 0 seconds", "hourly", "0 0/0 * * * ?", "0 61 * * * ?", "0 5-2 * * * ?", "a b c d e f",
     "0 0 24 * * ?", "* * * *", "0 0 2 * * ? * *", "every 5 fortnights", "0 " * 200],
)  # fmt: skip
def test_a_text_that_is_not_understood_tells_nothing(text: Any) -> None:
    assert parse_timing(text) is None


def a_schedule(text: str, **fields: Any) -> Schedule:
    timing = parse_timing(text)
    assert timing is not None
    return Schedule(
        id="7", period=timing.period, offset=timing.offset, exact=timing.exact, place=timing.place, **fields
    )


def test_the_next_start_is_the_nearest_of_those_that_are_certain() -> None:
    five, fifteen = a_schedule("0 0/5 * * * ?"), a_schedule("0 1/15 * * * ?")
    assert next_run_at([five], NOW) == NOW + 300
    assert next_run_at([five], NOW + 1) == NOW + 300
    assert next_run_at([five, fifteen], NOW + 1) == NOW + 60
    assert next_run_at([five, fifteen], NOW + 60) == NOW + 300
    assert next_run_at([five, a_schedule("0 0 2 * * ?")], NOW) is None
    assert next_run_at([five, a_schedule("0 0 2 * * ?", enabled=False)], NOW) == NOW + 300
    assert next_run_at([a_schedule("0 */5 8-17 * * ?")], NOW) is None
    assert next_run_at([], NOW) is None


def test_schedules_survive_their_cursor_and_other_versions_of_it_are_forgotten() -> None:
    schedules = (a_schedule("0 0/5 * * * ?", retries=2, delay=60.0), Schedule(id="8", enabled=False))
    stored = to_cursor(schedules)
    assert from_cursor(stored) == schedules
    assert from_cursor([{**stored[0], "colour": "red"}]) == schedules[:1]
    assert from_cursor([{"enabled": True}]) is None
    assert from_cursor({"a": 1}) is None
    assert from_cursor([5]) is None
    assert from_cursor(None) is None


# --- Which flows are due --------------------------------------------------------------------------------------------

FIVE = a_schedule("0 0/5 * * * ?")
DAILY = a_schedule("0 0 2 * * ?")


def state(**fields: Any) -> FlowState:
    return FlowState(**{"read": NOW - 10, "tried": NOW - 10, "run": "5", **fields})


@pytest.mark.parametrize(
    ("why", "due", "known", "schedules", "now"),
    [
        ("never tried", False, FlowState(), [], NOW),
        ("never tried, may have just started", True, FlowState(), [FIVE], NOW),
        ("never tried, may have started long ago", False, FlowState(), [DAILY], NOW + 300),
        ("no schedule", False, state(), [], NOW + 9_000),
        ("start in the future", False, state(began={"7": NOW - 300}), [FIVE], NOW - 1),
        ("start since the last reading", True, state(), [FIVE], NOW),
        ("start seen", False, state(read=NOW + 1, began={"7": NOW + 0.5}), [FIVE], NOW + 61),
        ("start read and not seen", True, state(read=NOW + 1, began={"7": NOW - 300}), [FIVE], NOW + 61),
        ("start given up", False, state(read=NOW + 61, began={"7": NOW - 300}), [FIVE], NOW + 121),
        ("switched off", False, state(), [Schedule(id="7", enabled=False, period=300.0, offset=0.0)], NOW),
        ("text not understood", False, state(), [Schedule(id="7")], NOW + 9_000),
        ("as often as sweeps", True, state(read=NOW, began={"7": NOW}), [a_schedule("every 90 seconds")], NOW),
        ("no anchor yet", False, state(), [DAILY], NOW + DAY),
        ("anchored, too early", False, state(began={"7": NOW - 10}), [DAILY], NOW + DAY - 11),
        ("anchored, due", True, state(began={"7": NOW - 10}), [DAILY], NOW + DAY - 9),
        ("repetition to come", False, state(again=NOW + 300), [], NOW + 299),
        ("repetition due", True, state(again=NOW + 300), [], NOW + 300),
        ("repetition not seen", True, state(again=NOW - 30), [], NOW),
        ("repetition given up", False, state(again=NOW - 200), [], NOW),
        ("going down", True, state(cancelled={"5": Stop(NOW + 1, None)}), [], NOW),
        ("down", False, state(cancelled={"5": Stop(NOW, None)}), [], NOW),
        ("undecided, schedules older", False, state(undecided=True), [], NOW),
        ("undecided, schedules newer", True, state(undecided=True, read=NOW - 200), [], NOW),
    ],
)
def test_a_flow_is_due_when_it_may_have_something_new(
    why: str, due: bool, known: FlowState, schedules: list[Schedule], now: float
) -> None:
    assert is_due(known, schedules, read_at=NOW - 100, now=now, every=60.0) is due, why


# --- One reading ----------------------------------------------------------------------------------------------------


def execution(run_id: int, status: str = "success", *, tries: int = 0, parent: int | None = None) -> Execution:
    results = {"success": Result.SUCCESS, "error": Result.FAILURE, "canceled": Result.CANCELLED, "running": None}
    result = results[status]
    run = Run(
        workflow_id="1",
        id=str(run_id),
        state=State.RUNNING if result is None else State.FINISHED,
        result=result,
        started_at=NOW - 20,
        ended_at=None if result is None else NOW - 5,
        error=Error() if result is Result.FAILURE else None,
        parent_id=None if parent is None else str(parent),
    )
    return Execution(run=run, scheduled=True, schedule_id="7", tries=tries, canceled=status == "canceled")


def reading(known: FlowState, *schedules: Schedule, open_runs: tuple[Run, ...] = (), now: float = NOW) -> FlowReading:
    return FlowReading(state=known, open_runs=open_runs, schedules=schedules, schedules_read_at=NOW - 100, now=now)


def kinds(made: FlowReading) -> list[str]:
    return [type(item).__name__ for item in made.observations]


def test_a_failure_the_scheduler_repeats_is_expected_again_and_no_dead_letter() -> None:
    made = reading(state(), Schedule(id="7", retries=1, delay=60.0))
    made.take_newest(execution(6, "error"))
    assert kinds(made) == ["Run"]
    assert made.cursor()["again"] == NOW - 5 + 60
    last = reading(FlowState.from_cursor(made.cursor()), Schedule(id="7", retries=1, delay=60.0))
    last.take_newest(execution(7, "error", tries=1, parent=6))
    assert kinds(last) == ["Run", "DeadLetter"]
    assert "again" not in last.cursor()


def test_a_failure_of_a_schedule_that_is_not_listed_yet_waits_for_the_next_listing() -> None:
    made = reading(state())
    made.take_newest(execution(6, "error"))
    assert kinds(made) == ["Run"]
    assert made.cursor()["undecided"] is True


def test_the_first_of_a_chain_that_was_missed_is_read_and_one_that_was_seen_is_not() -> None:
    made = reading(state(run="5"))
    made.take_newest(execution(9, tries=2, parent=6))
    assert made.to_follow() == ["6"]
    seen = reading(state(run="6"))
    seen.take_newest(execution(9, tries=2, parent=6))
    assert seen.to_follow() == []
    first = reading(FlowState())
    first.take_newest(execution(9, tries=2, parent=6))
    assert first.to_follow() == []


def test_open_runs_are_followed_by_their_id_unless_the_newest_is_the_open_one() -> None:
    made = reading(state(), open_runs=(execution(5, "running").run, execution(6, "running").run))
    made.take_newest(execution(6, "running"))
    assert made.to_follow() == ["5"]


def test_a_canceled_run_is_followed_until_it_is_down_and_then_remembered_while_it_is_the_newest() -> None:
    made = reading(state())
    made.take_newest(execution(6, "canceled"))
    later = reading(FlowState.from_cursor(made.cursor()), now=NOW + 60)
    assert later.to_follow() == ["6"]
    later.take_newest(execution(6, "error"))
    (run,) = later.observations
    assert isinstance(run, Run)
    assert (run.result, run.error) == (Result.CANCELLED, None)
    much_later = reading(FlowState.from_cursor(later.cursor()), now=NOW + DAY)
    assert much_later.to_follow() == []
    much_later.take_newest(execution(6, "error"))
    assert kinds(much_later) == ["Run"]
    replaced = reading(FlowState.from_cursor(much_later.cursor()), now=NOW + 2 * DAY)
    replaced.take_newest(execution(7))
    assert "cancelled" not in replaced.cursor()


def test_an_open_run_that_cannot_be_found_ends_with_an_unknown_result_only_after_a_while() -> None:
    run = execution(5, "running").run
    made = reading(state(), open_runs=(run,))
    made.take_lost("5")
    assert made.observations == []
    again = reading(FlowState.from_cursor(made.cursor()), open_runs=(run,), now=NOW + LOST_SECONDS)
    again.take_lost("5")
    (gone,) = again.observations
    assert isinstance(gone, Run)
    assert (gone.state, gone.result, gone.ended_at) == (State.FINISHED, Result.UNKNOWN, None)
    assert "lost" not in again.cursor()
    found = reading(FlowState.from_cursor(made.cursor()), open_runs=(run,), now=NOW + LOST_SECONDS)
    found.take(execution(5, "running"))
    assert "lost" not in found.cursor()


@pytest.mark.parametrize(
    ("why", "hidden", "known", "newest", "schedules"),
    [
        ("nothing new", False, state(), execution(5), ()),
        ("first reading", False, FlowState(), execution(6), ()),
        ("newest failed itself", False, state(), execution(6, "error"), ()),
        ("nobody knows how often it starts", True, state(), execution(6), ()),
        ("started by hand", True, state(read=NOW - 310), replace(execution(6), scheduled=False), (FIVE,)),
        ("one start at most since", False, state(read=NOW - 310), execution(6), (FIVE,)),
        ("several starts since", True, state(read=NOW - 900), execution(6), (FIVE,)),
        ("a repetition before this one", True, state(), execution(9, tries=2, parent=6), (FIVE,)),
    ],
)
def test_whether_a_failure_may_have_been_missed(
    why: str, hidden: bool, known: FlowState, newest: Execution, schedules: tuple[Schedule, ...]
) -> None:
    made = reading(known, *schedules)
    made.take_newest(newest)
    assert made.may_hide_failure() is hidden, why


def test_an_old_failure_is_no_news() -> None:
    made = reading(state(run="5"))
    made.take_newest(execution(9))
    made.take_failure(execution(4, "error"))
    assert kinds(made) == ["Run"]
    made.take_failure(execution(7, "error", tries=1))
    assert [item.id for item in made.observations if isinstance(item, Run)] == ["9", "7"]


def test_the_next_start_is_told_anew_once_the_known_one_has_passed() -> None:
    known = Workflow(id="1", at=NOW - 500, name="a", enabled=True, next_run_at=NOW)
    made = reading(state(), FIVE)
    made.take_newest(execution(6))
    told = made.rescheduled(known, NOW + 2)
    assert told == Workflow(id="1", at=NOW + 2, name="a", enabled=True, next_run_at=NOW + 300)
    assert made.rescheduled(told, NOW + 3) is None
    assert made.rescheduled(None, NOW) is None


def test_a_state_survives_its_cursor_and_a_quiet_one_is_small() -> None:
    full = state(again=NOW, undecided=True, began={"7": NOW}, cancelled={"5": Stop(NOW, NOW - 1)}, lost={"4": NOW})
    assert FlowState.from_cursor(full.to_cursor()) == full
    assert FlowState().to_cursor() == {}
    assert FlowState.from_cursor({"read": 5.0, "began": None, "colour": "red"}) == FlowState(read=5.0)
    assert FlowState.from_cursor("?") == FlowState()
