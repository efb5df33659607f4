"""Runs by the feed across scenarios, and where it gives way to the logs."""

import pytest

from exporter.platforms.make.reading import feed
from exporter.wire.errors import ApiError, ErrorKind
from tests.platforms.make.source import FEED, HOUR, LOG, MINUTE, source


async def test_more_runs_than_pages_of_the_feed_are_told_by_the_next_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "PAGES_PER_SWEEP_MAX", 2)
    async with source(feed=True) as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        for second in range(1000):
            made.add_run(workflow, ended=10 + second // 7)  # seven ends in the same millisecond
        await made.clock.advance(HOUR)
        kinds = [[fault.kind for fault in await made.sweep("runs")] for _ in range(4)]
        assert kinds[0] == ["truncated"]
        assert kinds[-1] == []
        assert made.known.counts() == {(workflow, "success"): 1000}


@pytest.mark.parametrize("order", ["end", "start", "newest"])
@pytest.mark.parametrize("ends", [False, True], ids=["dated-by-start", "dated-by-end"])
async def test_whatever_the_order_and_the_dates_of_the_feed_every_run_is_told_with_its_times(
    order: str, ends: bool
) -> None:
    """Long runs beside short ones: by their starts, they stand long before what ended with them."""
    async with source(feed=True, feed_order=order, feed_ends=ends, detail_delay=0.0) as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        for second in range(600):
            took = 900.0 if second % 50 == 0 else 5.0
            made.add_run(workflow, ended=10 + second, took=took, result="failure" if second % 97 == 0 else "success")
        assert [fault.kind for fault in await made.rounds(4, every=400.0)] == []
        assert made.known.counts() == made.true_counts()
        told = {i: (e.run.started_at, e.run.ended_at) for i, e in made.known.runs.items()}
        assert told == {r.run_id: (r.started_at, r.ended_at) for r in made.sim.truth().runs}
        made.asked()
        await made.rounds(1)
        assert made.asked()[FEED] == 1


async def test_a_zone_whose_path_takes_the_feeds_name_for_a_number_has_none() -> None:
    async with source(feed=False, feed_refusal=400) as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        made.add_run(workflow, ended=1)
        assert await made.rounds(2) == []
        assert made.known.counts() == {(workflow, "success"): 1}


async def test_a_run_that_shows_in_the_feed_some_time_after_its_end_is_found() -> None:
    async with source(feed=True) as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        await made.rounds(3)
        late = made.add_run(workflow, ended=-feed.SETTLED_SECONDS + 70)  # nobody could see it at the last sweep
        await made.rounds(1)
        assert late in made.known.runs


async def test_a_feed_that_fails_for_a_moment_is_waited_for() -> None:
    async with source(workflows=5, feed=True) as made:
        await made.sweep()
        await made.rounds(2)
        await made.clock.advance(MINUTE)
        made.sim.fail_next("unavailable", "unavailable", "unavailable")
        with pytest.raises(ApiError) as failed:
            await made.sweep("runs")
        assert failed.value.kind is ErrorKind.UNAVAILABLE
        made.asked()
        assert await made.sweep("runs") == []
        assert made.asked()[LOG] == 0
        assert made.known.counts() == made.true_counts()


async def test_a_feed_that_refuses_is_tried_again_after_an_hour_and_counts_stay_exact_both_ways() -> None:
    async with source(workflows=10, feed=False, detail_delay=0.0) as made:
        await made.sweep()
        await made.rounds(10)
        assert made.asked()[FEED] == 1
        made.set_option("feed", True)
        await made.rounds(60)
        assert 1 <= made.asked()[FEED] <= 15
        made.set_option("feed", False)
        await made.rounds(10)
        asked = made.asked()
        assert asked[FEED] == 1
        assert asked[LOG] > 10
        assert made.known.counts() == made.true_counts()
        assert made.known.errors() == made.true_errors()


async def test_where_one_way_of_reading_takes_over_it_goes_on_where_the_other_stopped() -> None:
    async with source(feed=False) as made:
        workflow = made.sim.add_workflow(instant=True)
        await made.sweep()
        for second in range(10, 8 * 3600, 10):
            made.add_run(workflow, ended=second)
        await made.rounds(16, every=HOUR / 4)
        made.set_option("feed", True)
        made.asked()
        await made.rounds(1, every=HOUR + MINUTE)
        assert made.asked()[FEED] <= 2 + 2 * 360 // 200
        await made.rounds(8, every=HOUR / 4)
        made.set_option("feed", False)
        made.asked()
        await made.rounds(1)
        assert made.asked()[LOG] <= 4
        assert made.known.counts() == made.true_counts()


async def test_a_refused_token_is_no_refusal_of_the_feed() -> None:
    async with source(workflows=3, feed=True) as made:
        await made.sweep()
        made.set_option("token", "another")
        with pytest.raises(ApiError) as failed:
            await made.rounds(1)
        assert failed.value.kind is ErrorKind.AUTH
        with pytest.raises(ApiError) as failed:
            await made.sweep("runs")
        assert failed.value.kind is ErrorKind.AUTH
        made.set_option("token", "demo-token")
        made.asked()
        await made.sweep("runs")
        assert made.asked()[FEED] == 1


async def test_the_feeds_runs_of_scenarios_left_out_are_left_out_even_before_their_names_were_read() -> None:
    async with source(feed=True, config={"exclude": ["Test *"]}) as made:
        kept, left_out = made.sim.add_workflow(name="Orders"), made.sim.add_workflow(name="Test orders")
        await made.sweep()
        made.restart()
        for workflow in (kept, left_out):
            made.add_run(workflow, ended=10)
        await made.clock.advance(MINUTE)
        await made.sweep("runs")
        assert made.known.counts() == {(kept, "success"): 1}
        assert set(made.known.entries) == {kept}
        assert made.asked()["GET /scenarios/{id}"] == 1
