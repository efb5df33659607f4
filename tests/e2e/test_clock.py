"""Our clock is wrong by months, and set right again: nothing is lost, counted twice, refused, or shown as fresh."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from exporter import app
from exporter.clock import ManualClock
from tests.e2e.deployment import Deployment, deployment
from tests.e2e.test_truth import PLATFORMS, ROOMY, assert_true

DAY = 86_400.0


class Ours:
    """The service's clock: time passes as everywhere, but somebody sets it."""

    def __init__(self, true: ManualClock) -> None:
        self.true = true
        self.ahead = 0.0

    def now(self) -> float:
        return self.true.now() + self.ahead

    async def sleep(self, seconds: float) -> None:
        await self.true.sleep(seconds)


class Steady(Ours):
    """One that knows how much time has passed, as a machine's does."""

    def steady(self) -> float:
        return self.true.now()


async def housekeeping(made: Deployment) -> None:
    await app.housekeeping_once(made.service, made.config, made.ours.now(), [])


async def wrong_for_a_minute(made: Deployment, ours: Ours, ahead: float) -> None:
    ours.ahead = ahead
    await housekeeping(made)
    await made.live(60, step=15, deliver=True)
    await housekeeping(made)
    ours.ahead = 0.0
    await made.live(60, step=15, deliver=True)
    await housekeeping(made)


async def letters(made: Deployment, source: str) -> set[str]:
    known = set(made.service.world.sources[source].dead_letters)
    simulator = made.fleet.simulators[source]
    simulator.advance(made.clock.now())
    held = {letter.dead_letter_id for letter in simulator.truth().dead_letters if letter.resolved_at is None}
    assert known <= held
    return known


async def assert_nothing_refused(made: Deployment, source: str) -> None:
    told = await made.samples("automation_exporter_webhook_events_total")
    rare = source == "n8n"  # which sends nothing but failures
    assert rare or sum(value for key, value in told.items() if key[0] == source) > 0
    assert not {key: value for key, value in told.items() if value and key[1] not in ("accepted", "duplicate")}


async def assert_ready(made: Deployment) -> None:
    async with made.session.get(f"{made.url}/-/ready") as response:
        assert response.status == 200, await response.text()


@pytest.mark.parametrize("days", [60, -60])
@pytest.mark.parametrize("clock", [Ours, Steady])
@pytest.mark.parametrize("platform", PLATFORMS)
async def test_a_clock_that_is_wrong_for_a_minute_costs_nothing(
    platform: str, clock: Callable[[ManualClock], Ours], days: float, tmp_path: Path
) -> None:
    async with deployment(tmp_path, platforms=[platform], options=ROOMY, workflows=3) as made:
        made.ours = ours = clock(made.clock)
        await made.restart()
        await made.sweep()
        await made.live(900, step=15, deliver=True)
        await housekeeping(made)
        before = await letters(made, platform)
        await wrong_for_a_minute(made, ours, days * DAY)
        await assert_ready(made)
        still_held = {
            d.dead_letter_id for d in made.fleet.simulators[platform].truth().dead_letters if d.resolved_at is None
        }
        assert before & still_held <= await letters(made, platform)
        await made.live(300, step=15, deliver=True)
        await assert_true(made)
        await assert_nothing_refused(made, platform)


@pytest.mark.parametrize("days", [60, -60])
@pytest.mark.parametrize("platform", PLATFORMS)
async def test_a_service_that_starts_with_a_wrong_clock_counts_what_happens(
    platform: str, days: float, tmp_path: Path
) -> None:
    async with deployment(tmp_path, platforms=[platform], options=ROOMY, workflows=3) as made:
        made.ours = ours = Steady(made.clock)
        ours.ahead = days * DAY
        await made.restart()
        await housekeeping(made)
        await made.sweep()
        assert abs((made.service.world.sources[platform].first_sweep_at or 0.0) - made.clock.now()) < 60
        await made.live(300, step=15, deliver=True)
        await housekeeping(made)
        await assert_ready(made)
        await made.restart()  # webhooks arrive before the platform has answered
        await made.clock.advance(60)
        await made.deliver()
        await housekeeping(made)
        await made.live(120, step=15, deliver=True)
        ours.ahead = 0.0
        await housekeeping(made)
        await made.restart()
        await made.live(300, step=15, deliver=True)
        await assert_true(made)
        await assert_nothing_refused(made, platform)


async def test_the_offset_is_shown_and_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if "clock" in record.getMessage()]

    async with deployment(tmp_path, platforms=["qlik"], options=ROOMY) as made:
        made.ours = ours = Steady(made.clock)
        await made.restart()
        assert await made.samples("automation_exporter_clock_offset_seconds") == {}
        await made.sweep()
        assert await made.samples("automation_exporter_clock_offset_seconds") == {("qlik",): 0.0}
        for ahead in (90.0, -3600.0):
            ours.ahead = ahead
            shown = await made.samples("automation_exporter_clock_offset_seconds")
            assert shown["qlik",] == pytest.approx(ahead, abs=1.0)
            await made.sweep()
            await made.sweep()
        assert len(told()) == 1
        assert told()[0] == "our clock and the platform's differ: set the wrong one right"
        ours.ahead = 45.0  # not yet right
        await made.sweep()
        assert len(told()) == 1
        ours.ahead = 0.0
        await made.sweep()
        await made.sweep()
        assert told()[1:] == ["our clock agrees with the platform's again"]


@pytest.mark.parametrize("platform", PLATFORMS)
async def test_a_platform_without_a_date_is_read_and_forgets_nothing_by_our_clock(
    platform: str, tmp_path: Path
) -> None:
    async with deployment(tmp_path, platforms=[platform], options=ROOMY, workflows=3, faults={"no_date": 1.0}) as made:
        made.ours = ours = Steady(made.clock)
        await made.restart()
        await made.sweep()
        await made.live(600, step=15)
        await made.settle()
        before, known = await made.counted(platform), await letters(made, platform)
        assert before == made.truth(platform)
        ours.ahead = 60 * DAY
        await housekeeping(made)
        ours.ahead = 0.0
        await housekeeping(made)
        assert await made.samples("automation_exporter_clock_offset_seconds") == {}
        assert known <= set(made.service.world.sources[platform].dead_letters)
        await made.live(600, step=15)
        await assert_true(made)


async def test_a_step_makes_nothing_look_old_or_young(tmp_path: Path) -> None:
    async with deployment(tmp_path, platforms=["make"], options=ROOMY) as made:
        made.ours = ours = Steady(made.clock)
        await made.restart()
        await made.sweep()
        for ours.ahead in (60 * DAY, -60 * DAY):
            await assert_ready(made)
            lag = await made.samples("automation_exporter_cursor_lag_seconds")
            assert all(age < 60 for age in lag.values())
        await made.clock.advance(3600)  # and what is old does look it
        async with made.session.get(f"{made.url}/-/ready") as response:
            assert response.status == 503


@pytest.mark.parametrize("platform", PLATFORMS)
async def test_a_database_that_an_older_version_left_with_a_future_mark_counts_at_once(
    platform: str, tmp_path: Path
) -> None:
    async with deployment(tmp_path, platforms=[platform], options=ROOMY, workflows=3) as made:
        await made.sweep()
        await made.live(600, step=15)
        await made.settle()
        counted = made.truth(platform)
        await made.stop()
        with sqlite3.connect(tmp_path / "e2e.db") as database:
            mark = made.clock.now() + 30 * DAY
            database.execute("UPDATE sources SET pruned_until = ?, read_until = 0", (mark,))
            database.execute("DELETE FROM runs WHERE state = 'finished'")
        database.close()
        await made.clock.advance(10)
        await made.start()
        await made.live(600, step=15)
        await made.settle()
        found, truth = await made.counted(platform), made.truth(platform)
        assert all(found[key] <= truth[key] for key in found)  # nothing twice
        assert sum(found.values()) > sum(counted.values())
        assert sum(truth.values()) - sum(found.values()) <= 3  # read late, after one that ended later
