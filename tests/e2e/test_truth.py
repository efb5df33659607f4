"""The main promise: what is exposed equals what happened, whatever the platforms and the network do meanwhile."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.deployment import Deployment, deployment

PLATFORMS = ["make", "qlik", "etlworks", "cognaize", "n8n"]
#: Limits of the platforms are not what these tests are about.
ROOMY: Mapping[str, Mapping[str, Any]] = {"make": {"api_limit": 100_000, "enforce_limit": False}}


async def assert_true(made: Deployment, *sources: str) -> None:
    """Counts, dead letters and histograms agree with the simulators."""
    await made.settle()
    for source in sources or made.fleet.simulators:
        assert await made.counted(source) == made.truth(source), source
        timed = await made.samples("automation_run_duration_seconds_count")
        assert sum(v for k, v in timed.items() if k[0] == source) <= sum(made.truth(source).values())


@pytest.mark.parametrize("platform", PLATFORMS)
async def test_an_hour_of_polling_counts_every_run_exactly_once(platform: str, tmp_path: Path) -> None:
    async with deployment(tmp_path, platforms=[platform], options=ROOMY) as made:
        await made.sweep()
        await made.live(3600, step=15)
        await assert_true(made)
        assert sum(made.truth(platform).values()) > 20


@pytest.mark.parametrize("platform", PLATFORMS)
async def test_webhooks_lost_doubled_and_shuffled_with_polls_between_give_the_polled_truth(
    platform: str, tmp_path: Path
) -> None:
    disturbed = {"webhook_lost": 0.3, "webhook_duplicated": 0.2, "webhook_shuffled": 1.0}
    workflows = 12 if platform == "n8n" else 4  # where only failures are sent, some have to be
    async with deployment(tmp_path, platforms=[platform], options=ROOMY, faults=disturbed, workflows=workflows) as made:
        await made.sweep()
        for _ in range(60):
            await made.clock.advance(15)
            await made.deliver()
            if made.clock.now() % 2:
                await made.sweep()
            await made.clock.advance(15)
            await made.sweep()
            await made.deliver()
        await made.deliver()
        await assert_true(made)
        seen = await made.samples("automation_exporter_runs_observed_total")
        assert seen[platform, "webhook"] > 0
        assert seen[platform, "poll"] > 0


@pytest.mark.parametrize("platform", PLATFORMS)
async def test_a_platform_in_trouble_costs_time_but_never_a_wrong_number(platform: str, tmp_path: Path) -> None:
    trouble = {
        "rate_limited": 0.02,
        "rate_limited_text": 0.02,
        "unavailable": 0.03,
        "server_error_html": 0.02,
        "ok_html": 0.02,
        "truncated": 0.02,
        "shifting_pages": 0.2,
        "duplicates": 0.1,
    }
    async with deployment(tmp_path, platforms=[platform], options=ROOMY, faults=trouble) as made:
        await made.sweep()
        await made.live(1800, step=15)
        for name in trouble:
            setattr(made.fleet.simulators[platform].faults, name, 0.0)
        await made.clock.advance(2000)
        for poller in made.service.pollers.values():
            for _ in range(3):
                await made.sweep(*poller.source.streams)
        if platform in (
            "etlworks",
            "cognaize",
        ):  # they show the latest state only: what a pause hides is lost to polling
            counted, truth = await made.counted(platform), made.truth(platform)
            assert all(counted[key] <= truth[key] for key in counted)
        else:
            await assert_true(made)
        errors = await made.samples("automation_exporter_sweep_errors_total")
        assert sum(errors.values()) > 0


async def test_restarts_in_the_middle_of_sweeps_change_no_count(tmp_path: Path) -> None:
    async with deployment(tmp_path, options=ROOMY, workflows=3) as made:
        await made.sweep()
        for number in range(24):
            await made.clock.advance(15)
            await made.deliver()
            pollers = list(made.service.pollers.values())
            cut = pollers[number % len(pollers)]
            for stream in cut.source.platform.streams:
                source = cut.source
                pages = source.client.sweep(stream.name, source.known, source.api.platform_now())
                async for page in pages:  # the first page is stored, the rest of the sweep never happens
                    await cut._ingest(page, made.clock.now(), stream.name)
                    break
                await pages.aclose()  # type: ignore[attr-defined]
            await made.restart()
            await made.sweep()
        await assert_true(made)


async def test_after_a_downtime_what_was_missed_is_counted_once(tmp_path: Path) -> None:
    async with deployment(tmp_path, platforms=["make", "qlik", "cognaize", "n8n"], options=ROOMY) as made:
        await made.sweep()
        await made.live(300, step=15)
        await made.stop()
        await made.clock.advance(6 * 3600)
        await made.start()
        await assert_true(made, "make", "qlik", "n8n")
        # A process restarted in place shows only how its last attempt went.
        runs = made.fleet.simulators["cognaize"].truth().runs
        last = {run.run_id: run for run in sorted(runs, key=lambda run: run.ended_at)}
        counted, truth = await made.counted("cognaize"), made.truth("cognaize")
        assert all(counted[key] <= truth[key] for key in counted)
        since = made.service.world.sources["cognaize"].first_sweep_at or 0.0
        assert sum(counted.values()) >= sum(run.ended_at >= since for run in last.values())
        late = await made.samples("automation_exporter_reconciled_total")
        assert all(late[source, "late"] > 0 for source in made.fleet.simulators)


async def test_a_first_start_is_a_baseline_and_a_backfill_reaches_back(tmp_path: Path) -> None:
    async with deployment(tmp_path, options=ROOMY) as made:
        await made.sweep()
        for source in made.fleet.simulators:
            assert sum((await made.counted(source)).values()) == 0
        last = await made.samples("automation_workflow_last_run_timestamp_seconds")
        assert {key[0] for key in last} == set(made.fleet.simulators)


async def test_backfill_counts_the_runs_before_the_first_sweep(tmp_path: Path) -> None:
    async with deployment(tmp_path, platforms=["make", "qlik", "cognaize"], options=ROOMY) as made:
        await made.stop()
        for source, section in made.config.sources.items():
            changed = section.model_copy(update={"backfill": 3600.0})
            made.config.sources[source] = changed
        began = made.clock.now()
        await made.start()
        await made.settle()
        for source, simulator in made.fleet.simulators.items():
            first = made.service.world.sources[source].first_sweep_at or 0.0
            assert await made.counted(source) == simulator.truth().counts(since=first - 3600.0, until=began), source
            seen = await made.samples("automation_exporter_runs_observed_total")
            assert seen[source, "backfill"] > 0


@pytest.mark.parametrize("platform", PLATFORMS)
async def test_open_dead_letters_are_those_the_platform_has(platform: str, tmp_path: Path) -> None:
    async with deployment(tmp_path, platforms=[platform], options=ROOMY) as made:
        await made.sweep()
        await made.live(1800, step=15)
        await made.settle()
        known = made.service.world.sources[platform].dead_letters
        held = {d.dead_letter_id for d in made.fleet.simulators[platform].truth().dead_letters if d.resolved_at is None}
        if made.service.sources[platform].platform.superseded_by_success:
            assert known.keys() <= held
        else:
            first = made.service.world.sources[platform].first_sweep_at or 0.0
            recent = {
                d.dead_letter_id
                for d in made.fleet.simulators[platform].truth().dead_letters
                if d.resolved_at is None and d.opened_at >= first
            }
            assert recent <= known.keys() <= held
        shown = await made.samples("automation_dead_letters")
        assert sum(v for k, v in shown.items() if k[0] == platform) == len(known)
