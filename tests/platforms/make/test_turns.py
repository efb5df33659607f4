"""Which logs are read where there are more than calls, and how soon runs show then."""

from collections.abc import Sequence
from typing import Any

from exporter.model import RunFinished
from exporter.platforms.make.reading.marks import Mark, is_explained
from exporter.platforms.make.reading.turns import choose, room_for
from tests.platforms.make.source import DAY, LOG, MINUTE, Source, source

PER_MINUTE = 12
#: How many scenarios run every so many minutes.
KINDS = {1: 2, 5: 8, 15: 20, 60: 40, 1440: 50}


def test_those_that_have_waited_longest_are_read_first() -> None:
    turns = choose({"a": 30.0, "b": 10.0, "c": 20.0, "d": 40.0}, [], room=3)
    assert (turns.now, turns.left) == (["b", "c", "a"], ["d"])


def test_strangers_take_what_is_left_over_and_always_a_few() -> None:
    due, strangers = {str(n): float(n) for n in range(30)}, ["x", "y", "z"]
    turns = choose(due, strangers, room=24)
    assert (turns.now[-2:], len(turns.now), turns.left[-2:]) == (["22", "x"], 24, ["y", "z"])
    assert choose({"1": 1.0}, strangers, room=3).now == ["1", "x", "y"]


def test_a_sweep_reads_what_was_saved_and_most_of_what_an_interval_gives() -> None:
    assert room_for(per_minute=30.0, interval=60.0, remaining=28.5) == 28
    assert room_for(per_minute=30.0, interval=60.0, remaining=0.0) == 24
    assert room_for(per_minute=0.1, interval=60.0, remaining=0.0) == 1
    assert room_for(per_minute=120.0, interval=300.0, remaining=120.0) == 480
    assert room_for(per_minute=60_000.0, interval=1.0, remaining=60_000.0) == 1000


def test_a_later_next_run_is_explained_by_the_run_that_was_planned_before() -> None:
    mark = Mark(used=(1.0, 1.0, 1.0), reset=None, seen=[True, None, 100.0], since=0.0, started=100.2)
    assert is_explained(mark, [True, None, 160.0])
    assert is_explained(mark, [True, None, None])
    assert not is_explained(mark, [False, None, 160.0])
    assert not is_explained(mark, [True, "invalid", 160.0])
    assert not is_explained(Mark(used=None, reset=None, seen=[True, None, 100.0], since=0.0), [True, None, 160.0])
    earlier = Mark(used=None, reset=None, seen=[True, None, 100.0], since=0.0, started=40.2)
    assert not is_explained(earlier, [True, None, 160.0])


async def test_a_run_that_was_read_costs_no_second_call_when_the_next_one_is_planned() -> None:
    async with source(feed=False) as made:
        workflow = made.sim.add_workflow(interval=300.0, first_in=70.0, duration=1.0)
        await made.sweep()
        for _ in range(40):
            made.sim.add_workflow()
        await made.sweep()
        await made.clock.advance(2 * MINUTE)
        await made.sweep("runs")  # the listing is older: it still has the run before
        assert made.known.counts() == {(workflow, "success"): 1}
        made.asked()
        await made.sweep("workflows", "runs")
        assert made.asked()[LOG] == 2  # in turn
        await made.rounds(4)
        assert made.known.counts() == {(workflow, "success"): 1}
        await made.rounds(3)
        assert made.known.counts() == {(workflow, "success"): 2}


async def _live(made: Source, minutes: float) -> list[tuple[float, float]]:
    """Poll as the service does, one stream after the other; when each run ended, and how much later it counted."""
    delays, due = list[tuple[float, float]](), {"workflows": 0.0, "dead_letters": 20.0, "runs": 0.0}
    start = made.clock.now()
    while (now := made.clock.now()) < start + minutes * MINUTE:
        stream = min(due, key=due.__getitem__)
        await made.clock.advance(max(0.0, start + due[stream] - now))
        more = False
        async for page in made.client.sweep(stream, made.known, made.api.platform_now()):
            more |= getattr(page, "more", False)
            for change in made.known.apply(page, stream=stream, now=made.clock.now()):
                if isinstance(change, RunFinished):
                    delays.append((change.run.finished_at or 0.0, change.delay))
        due[stream] = made.clock.now() - start + (10.0 if more else MINUTE)
    return delays


def _p95(delays: Sequence[float]) -> float:
    return sorted(delays)[int(0.95 * len(delays))]


async def test_runs_show_within_three_minutes_where_round_robin_takes_ten() -> None:
    config: dict[str, Any] = {"poll": {"budget_share": 1.0, "requests_per_minute": PER_MINUTE}}
    async with source(feed=False, config=config, enforce_limit=True, api_limit=PER_MINUTE, detail_delay=0.0) as made:
        for minutes, count in KINDS.items():
            for number in range(count):
                spread = minutes * MINUTE * number / count
                made.sim.add_workflow(interval=minutes * MINUTE, first_in=10 + spread, duration=8.0, store=False)
        await made.clock.advance(1440 * MINUTE)  # they have all run
        await made.sweep("quota", "workflows")
        began = made.clock.now()
        delays = await _live(made, 24)
        until = began + 20 * MINUTE
        ended = [run for run in made.sim.truth().runs if began <= run.ended_at < until]
        found = [delay for ended_at, delay in delays if began <= ended_at < until]
        assert len(found) == len(ended)
        assert sum(made.asked().values()) <= 25 * PER_MINUTE
        assert _p95(found) < 3 * MINUTE
        assert 0.95 * sum(KINDS.values()) / PER_MINUTE > 9.0  # round robin


async def test_what_ran_after_a_first_start_is_read_first_and_a_restart_in_between_forgets_none_of_it() -> None:
    config: dict[str, Any] = {"poll": {"budget_share": 1.0, "requests_per_minute": 10}}
    async with source(feed=False, config=config, api_limit=10) as made:
        workflows = [made.sim.add_workflow() for _ in range(60)]
        for workflow in workflows:
            made.add_run(workflow, ended=-DAY)
        await made.sweep()
        assert made.asked()[LOG] <= 10
        ran = workflows[-5:]
        for workflow in ran:
            made.add_run(workflow, ended=20)
        await made.clock.advance(MINUTE)
        made.restart()
        await made.sweep("runs")
        assert {workflow for workflow, _ in made.known.counts()} == set(ran)
        for _ in range(8):
            await made.sweep("runs")
        assert made.known.counts() == made.true_counts()
        assert all(made.known.entries[workflow].last_ended for workflow in workflows)


async def test_a_run_that_used_nothing_is_found_by_its_next_start_after_one_that_explained_the_last() -> None:
    async with source(feed=False) as made:
        workflow = made.sim.add_workflow(interval=300.0, first_in=70.0, duration=1.0)
        await made.sweep()
        await made.clock.advance(2 * MINUTE)
        await made.sweep("runs", "workflows", "runs")
        made.sim.world.scenarios[int(workflow)].modules = ()  # whatever runs now uses nothing
        made.sim.world._spend = lambda *_: None  # type: ignore[method-assign]
        await made.rounds(5)
        await made.rounds(1)
        assert made.known.counts() == {(workflow, "success"): 2}
