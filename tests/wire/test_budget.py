"""The budget keeps its promise whatever is demanded of it, lets the right calls go first, and forgets nobody."""

import asyncio
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.clock import ManualClock
from exporter.wire.budget import Budget, Lane

HOUR = 3600.0


class Callers:
    """Calls that wait for the budget, and when each of them passed."""

    def __init__(self, budget: Budget, clock: ManualClock) -> None:
        self.budget, self.clock = budget, clock
        self.passed: list[tuple[float, str]] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def call(self, name: str = "", *, lane: Lane = Lane.SWEEPS) -> asyncio.Task[None]:
        task = self.start(name, lane=lane)
        await self.clock.advance(0)  # it begins to wait before time moves on
        return task

    def start(self, name: str = "", *, lane: Lane = Lane.SWEEPS) -> asyncio.Task[None]:
        async def one() -> None:
            await self.budget.take(lane)
            self.passed.append((self.clock.now(), name))

        self.tasks.append(asyncio.create_task(one()))
        return self.tasks[-1]

    @property
    def names(self) -> list[str]:
        return [name for _, name in self.passed]

    @property
    def times(self) -> list[float]:
        return [at for at, _ in self.passed]

    async def leave(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def make_budget(
    clock: ManualClock,
    *,
    share: float = 0.5,
    default: float = 60.0,
    fixed: float | None = None,
    on_wait: Callable[[str, float], None] = lambda cause, seconds: None,
) -> Budget:
    return Budget(clock, share=share, default_per_minute=default, fixed_per_minute=fixed, on_wait=on_wait)


async def spend(budget: Budget) -> int:
    """Take what can be had at once."""
    count = 0
    while budget.remaining >= 1:
        await budget.take(Lane.SWEEPS)
        count += 1
    return count


# --- The rate -----------------------------------------------------------------------------------------------------


async def test_the_rate_is_the_share_of_the_limit_and_of_its_default_until_it_is_known() -> None:
    budget = make_budget(ManualClock(), share=0.5, default=60)
    assert (budget.limit, budget.rate) == (None, 30)
    budget.learn_limit(1000)
    assert (budget.limit, budget.rate) == (1000, 500)


async def test_a_fixed_rate_replaces_the_share_but_never_exceeds_the_limit() -> None:
    budget = make_budget(ManualClock(), share=0.1, fixed=100)
    assert budget.rate == 100
    budget.learn_limit(240)
    assert budget.rate == 100
    budget.learn_limit(60)
    assert budget.rate == 60


async def test_a_fresh_start_may_spend_little_at_once() -> None:
    for default, burst in ((10_000.0, 10), (60.0, 5), (1.0, 1)):
        assert await spend(make_budget(ManualClock(), default=default)) == burst


async def test_an_idle_minute_saves_one_minutes_share_and_no_more() -> None:
    clock = ManualClock()
    budget = make_budget(clock, default=60)
    await clock.advance(HOUR)
    assert budget.remaining == 30
    assert await spend(budget) == 30
    await clock.advance(30)  # half a minute's share has come in, but the minute already holds a whole one
    assert budget.remaining == 0
    await clock.advance(30)
    assert budget.remaining == 30


async def test_a_steady_demand_gets_the_whole_share() -> None:
    clock = ManualClock()
    callers = Callers(make_budget(clock, default=60), clock)
    for _ in range(400):
        await callers.call()
    await clock.advance(600)
    assert 295 <= len(callers.passed) <= 305
    await callers.leave()


async def test_a_rate_below_one_a_minute_still_lets_calls_through() -> None:
    clock = ManualClock()
    callers = Callers(make_budget(clock, share=0.5, default=0.5), clock)
    for _ in range(3):
        await callers.call()
    await clock.advance(HOUR)
    assert [later - earlier for earlier, later in pairwise(callers.times)] == pytest.approx([240, 240])


async def test_a_limit_of_nothing_is_asked_about_every_ten_minutes() -> None:
    clock = ManualClock()
    budget = make_budget(clock)
    budget.learn_limit(0)
    callers = Callers(budget, clock)
    for _ in range(10):
        await callers.call()
    await clock.advance(HOUR)
    assert budget.limit == 0
    assert 6 <= len(callers.passed) <= 7
    await callers.leave()


async def test_a_higher_limit_helps_those_who_already_wait() -> None:
    clock = ManualClock()
    budget = make_budget(clock, default=0.2)
    callers = Callers(budget, clock)
    for _ in range(2):
        await callers.call()
    await clock.advance(1)
    assert len(callers.passed) == 1
    budget.learn_limit(1200)
    await clock.advance(1)
    assert len(callers.passed) == 2


# --- The order ----------------------------------------------------------------------------------------------------


async def test_lower_lanes_go_first_and_within_a_lane_who_came_first() -> None:
    clock = ManualClock()
    budget = make_budget(clock, default=120)
    await spend(budget)
    callers = Callers(budget, clock)
    for name, lane in (
        ("sweep 1", Lane.SWEEPS),
        ("running 1", Lane.RUNNING),
        ("sweep 2", Lane.SWEEPS),
        ("dead letter 1", Lane.DEAD_LETTERS),
        ("running 2", Lane.RUNNING),
        ("retry 1", Lane.RETRIES),
    ):
        await callers.call(name, lane=lane)
    await clock.advance(1)
    await callers.call("retry 2", lane=Lane.RETRIES)
    await clock.advance(30)
    assert callers.names == [
        *("retry 1", "retry 2", "dead letter 1", "running 1", "running 2", "sweep 1", "sweep 2"),
    ]
    assert len(set(callers.times)) == 7


async def test_nobody_overtakes_those_who_wait_in_the_same_lane() -> None:
    clock = ManualClock()
    budget = make_budget(clock, default=60)
    await spend(budget)
    callers = Callers(budget, clock)

    async def arrive_when_the_next_call_falls_due() -> None:
        await clock.sleep(2)
        callers.start("second")

    latecomer = asyncio.create_task(arrive_when_the_next_call_falls_due())
    await callers.call("first")
    await clock.advance(10)
    assert callers.names == ["first", "second"]
    await latecomer


async def test_calls_that_come_after_a_queue_was_empty_are_served_as_well() -> None:
    clock = ManualClock()
    budget = make_budget(clock, default=60)
    callers = Callers(budget, clock)
    for name in ("first", "second"):
        await spend(budget)
        await callers.call(name)
        await clock.advance(10)
    assert callers.names == ["first", "second"]


# --- Leaving ------------------------------------------------------------------------------------------------------


async def test_a_call_cancelled_while_it_waits_costs_nobody_anything() -> None:
    clock = ManualClock()
    budget = make_budget(clock, default=2)  # one a minute
    callers = Callers(budget, clock)
    start = clock.now()
    await callers.call("first")
    gone = await callers.call("gone")
    await callers.call("second")
    await clock.advance(30)
    gone.cancel()
    await clock.advance(300)
    assert callers.names == ["first", "second"]
    assert callers.times == pytest.approx([start, start + 60], abs=0.01)


class HookedClock(ManualClock):
    """Does something in the moment a sleeper wakes up, before the sleeper itself goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.on_wake: Callable[[], object] = lambda: None

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds)
        self.on_wake()


@pytest.mark.parametrize("already_has_its_turn", [False, True])
async def test_a_call_cancelled_in_the_moment_of_its_turn_costs_nobody_anything(already_has_its_turn: bool) -> None:
    clock = HookedClock()
    budget = make_budget(clock, default=2)
    callers = Callers(budget, clock)
    start = clock.now()
    await callers.call("first")
    gone = await callers.call("gone")
    await callers.call("second")
    loop = asyncio.get_running_loop()
    clock.on_wake = (lambda: loop.call_soon(gone.cancel)) if already_has_its_turn else gone.cancel
    await clock.advance(300)
    assert gone.cancelled()
    assert callers.names == ["first", "second"]
    assert callers.times == pytest.approx([start, start + 60], abs=0.01)


async def test_nothing_runs_when_nobody_waits() -> None:
    clock = ManualClock()
    budget = make_budget(clock, default=2)
    callers = Callers(budget, clock)
    await spend(budget)
    before = asyncio.all_tasks()
    waiting = await callers.call()
    await clock.advance(1)
    assert len(asyncio.all_tasks() - before) == 2  # the call and the pump
    waiting.cancel()
    await clock.advance(0)
    assert asyncio.all_tasks() == before


# --- After a 429 --------------------------------------------------------------------------------------------------


async def test_nobody_passes_before_a_pause_is_over() -> None:
    clock = ManualClock()
    budget = make_budget(clock, default=1000)
    start = clock.now()
    budget.pause(20, "retry_after")
    assert budget.remaining == 0
    callers = Callers(budget, clock)
    await callers.call("retry", lane=Lane.RETRIES)
    await callers.call("sweep")
    await clock.advance(10)
    budget.pause(5, "retry_after")  # a shorter one changes nothing
    await clock.advance(9.9)
    assert callers.names == []
    await clock.advance(0.1)
    assert callers.names == ["retry"]
    await clock.advance(1)
    assert callers.names == ["retry", "sweep"]
    assert callers.times[0] == pytest.approx(start + 20)


async def test_a_pause_begun_while_calls_wait_holds_them_too() -> None:
    clock = ManualClock()
    budget = make_budget(clock, default=60)
    await spend(budget)
    callers = Callers(budget, clock)
    await callers.call()
    await clock.advance(1)
    budget.pause(60, "retry_after")
    await clock.advance(59.9)
    assert callers.passed == []
    await clock.advance(0.1)
    assert len(callers.passed) == 1


async def test_a_pause_halves_the_rate_which_recovers_within_ten_minutes() -> None:
    clock = ManualClock()
    budget = make_budget(clock, default=200)
    budget.pause(60, "retry_after")
    assert budget.rate == 50
    await clock.advance(60)
    assert budget.rate == 50
    await clock.advance(300)
    assert budget.rate == pytest.approx(75)
    await clock.advance(300)
    assert budget.rate == 100


async def test_calls_refused_together_halve_the_rate_once_and_later_ones_again_down_to_a_sixteenth() -> None:
    clock = ManualClock()
    budget = make_budget(clock, default=200)
    for _ in range(4):
        budget.pause(10, "retry_after")
    assert budget.rate == 50
    for _ in range(10):
        await clock.advance(10)
        budget.pause(10, "retry_after")
    assert budget.rate == 100 / 16


# --- What is told -------------------------------------------------------------------------------------------------


async def test_waiting_is_told_with_its_cause_and_not_waiting_is_not() -> None:
    clock = ManualClock()
    told: list[tuple[str, float]] = []
    budget = make_budget(clock, default=2, on_wait=lambda cause, seconds: told.append((cause, seconds)))
    callers = Callers(budget, clock)
    await callers.call()
    await clock.advance(1)
    assert told == []
    await callers.call()
    await clock.advance(9)
    budget.pause(70, "retry_after")
    await clock.advance(HOUR)
    assert [cause for cause, _ in told] == ["retry_after", "budget"]
    assert [seconds for _, seconds in told] == pytest.approx([70, 9])


async def test_all_pauses_a_call_waited_through_are_told_as_such() -> None:
    clock = ManualClock()
    told: list[tuple[str, float]] = []
    budget = make_budget(clock, default=2, on_wait=lambda cause, seconds: told.append((cause, seconds)))
    callers = Callers(budget, clock)
    await callers.call()
    budget.pause(10, "retry_after")
    await callers.call()
    await clock.advance(30)
    budget.pause(20, "retry_after")
    await clock.advance(30)  # the minute of the first call is over
    assert [cause for cause, _ in told] == ["retry_after", "budget"]
    assert [seconds for _, seconds in told] == pytest.approx([10 + 20, 20 + 10])


async def test_a_clock_set_back_stops_nobody() -> None:
    clock = ManualClock()
    budget = make_budget(clock, default=120)
    await clock.advance(HOUR)
    await spend(budget)
    await clock.advance(-HOUR)
    callers = Callers(budget, clock)
    await callers.call()
    await clock.advance(61)
    assert len(callers.passed) == 1
    assert budget.remaining >= 58


# --- The law ------------------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.tuples(st.sampled_from(Lane), st.integers(1, 30))),
        st.tuples(st.just("wait"), st.floats(0, 200)),
        st.tuples(st.just("pause"), st.floats(0, 90)),
        st.tuples(st.just("limit"), st.floats(1, 300)),
        st.tuples(st.just("cancel"), st.integers(0, 200)),
    ),
    max_size=15,
)


@settings(max_examples=100)
@given(share=st.floats(0.05, 1.0), default=st.floats(1, 300), fixed=st.none() | st.floats(1, 300), steps=STEPS)
def test_no_rolling_minute_ever_holds_more_than_the_share(
    share: float, default: float, fixed: float | None, steps: list[tuple[str, object]]
) -> None:
    asyncio.run(check_history(share, default, fixed, steps))


async def check_history(share: float, default: float, fixed: float | None, steps: list[tuple[str, object]]) -> None:
    clock = ManualClock()
    budget = make_budget(clock, share=share, default=default, fixed=fixed)
    callers = Callers(budget, clock)
    allowed = {0: allowance(share, default, fixed)}  # by the number of calls that had passed when it began to hold
    pauses: list[tuple[float, float]] = []
    for step, value in steps:
        match step, value:
            case "call", (Lane() as lane, int(count)):
                for _ in range(count):
                    callers.start(lane=lane)
            case "wait", float(seconds):
                await clock.advance(seconds)
            case "pause", float(seconds):
                budget.pause(seconds, "retry_after")
                pauses.append((clock.now(), clock.now() + seconds))
            case "limit", float(limit):
                budget.learn_limit(limit)
                allowed[len(callers.passed)] = allowance(share, limit, min(fixed, limit) if fixed is not None else None)
            case "cancel", int(index) if callers.tasks:
                callers.tasks[index % len(callers.tasks)].cancel()
        await clock.advance(0)
    await clock.advance(14 * 24 * HOUR)
    assert all(task.done() for task in callers.tasks), "somebody was forgotten"
    for index, at in enumerate(callers.times):
        allowed_then = allowed[max(begin for begin in allowed if begin <= index)]
        assert sum(at - earlier < 60 for earlier in callers.times[: index + 1]) <= allowed_then
        assert not any(begin < at < end for begin, end in pauses)


def allowance(share: float, limit: float, fixed: float | None) -> int:
    return max(1, int((fixed if fixed is not None else limit * share) + 1e-9))
