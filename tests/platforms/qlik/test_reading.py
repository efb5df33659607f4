"""What the client makes of a whole tenant: every run counted once, whatever the rhythm, the faults and the restarts."""

from collections import Counter
from collections.abc import Awaitable, Callable

import orjson
import pytest
from aiohttp import web

from exporter.model import ResolvedBy, Result, Run, RunTimed, State, Workflow
from exporter.simulator.core import Faults
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind
from tests.platforms.known import MemoryKnown
from tests.platforms.qlik.tenant import LIST, RUN, RUNS, START, Tenant, counting, tenant

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
MINUTE, HOUR = 60.0, 3600.0


async def assert_all_counted(made: Tenant) -> None:
    """Everything that ended since the baseline was counted, as what it was, once."""
    assert made.known.counts() == made.really()
    assert made.known.errors() == made.real_causes()
    assert made.known.open_dead_letters() == made.simulator.truth().open_dead_letters()


# Counting


@pytest.mark.parametrize(("seed", "gap"), [(1, 60.0), (2, 60.0), (3, 20 * MINUTE), (4, 7.0)])
async def test_every_run_is_counted_once_whatever_the_rhythm_of_sweeps(seed: int, gap: float) -> None:
    async with tenant(seed=seed, workflows=8) as made:
        await made.sweep()
        for _ in range(int(min(3 * HOUR, 100 * gap) / gap)):
            await made.pass_time(gap)
            await made.sweep()
        assert sum(made.really().values()) > 10
        await assert_all_counted(made)
        assert not made.new_faults()


async def test_times_and_durations_are_the_real_ones() -> None:
    async with tenant(workflows=8) as made:
        await made.sweep()
        for _ in range(60):
            await made.pass_time(60)
            await made.sweep()
        truth = {r.run_id: r for r in made.simulator.truth().runs if r.ended_at >= made.baseline}
        counted = {run_id: made.known.runs[run_id].run for run_id in truth}
        for run_id, real in truth.items():
            assert counted[run_id].ended_at == pytest.approx(real.ended_at, abs=1e-5)
        started = [r for r in truth.values() if counted[r.run_id].started_at is not None]
        durations = sorted(change.seconds for change in made.known.changes if isinstance(change, RunTimed))
        assert durations == pytest.approx(sorted(r.ended_at - r.started_at for r in started), abs=1e-4)


async def test_runs_that_wait_in_the_queue_behind_others_are_all_counted() -> None:
    async with tenant(workflows=0) as made:
        busy = made.simulator.add_workflow(max_concurrent_runs=1, typical_seconds=90.0)
        failed = made.simulator.add_run(
            busy, started_at=START - 20, ended_at=START - 10, result="failure", error="network"
        )
        await made.sweep()
        for _ in range(5):
            await made.api.post(  # five retries at once: one runs, four wait
                "/api/workflows/automations/{id}/runs/{runId}/actions/retry",
                lane=Lane.RETRIES,
                ids={"id": busy, "runId": failed},
            )
        await made.sweep()
        states = Counter(run.state for run in made.known.open_runs.values())
        assert states[State.PENDING] >= 1
        for _ in range(12):
            await made.pass_time(60)
            await made.sweep()
        assert sum(made.really().values()) == 5
        assert made.known.counts() == made.really()
        assert not made.known.open_runs


async def test_a_long_run_beside_many_short_ones_is_followed_to_its_end() -> None:
    async with tenant(workflows=0) as made:
        both = made.simulator.add_workflow()
        long = made.simulator.add_run(both, started_at=START - 60, ended_at=START + 2 * HOUR, result="warning")
        for minute in range(150):
            at = START + minute * MINUTE
            made.simulator.add_run(both, started_at=at + 1, ended_at=at + 10)
        await made.sweep()
        with counting(made) as spent:
            for _ in range(125):
                await made.pass_time(MINUTE)
                await made.sweep()
                if made.clock.now() < START + 2 * HOUR:
                    assert long in made.known.open_runs
        assert RUN not in spent  # lists tell it all, and take fewer rights
        assert made.known.runs[long].run.result is Result.WARNING
        assert made.known.runs[long].run.ended_at == START + 2 * HOUR
        await assert_all_counted(made)


async def test_a_retry_is_a_new_run_and_a_success_supersedes_the_dead_letter() -> None:
    async with tenant(workflows=0) as made:
        made.known = MemoryKnown(superseded_by_success=True)
        one = made.simulator.add_workflow()
        failed = made.simulator.add_run(
            one, started_at=START + 1, ended_at=START + 5, result="failure", error="timeout"
        )
        made.simulator.add_run(one, started_at=START + 100, ended_at=START + 110)
        await made.sweep()
        await made.pass_time(60)
        await made.sweep()
        assert set(made.known.dead_letters) == {failed}
        await made.pass_time(60)
        await made.sweep()
        assert not made.known.dead_letters
        assert made.known.letters[failed].dead_letter.resolved_by is ResolvedBy.SUPERSEDED
        assert made.known.counts() == {(one, "failure"): 1, (one, "success"): 1}


@web.middleware
async def silent_about_ends(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A platform that does not say when an automation's last run ended."""
    response = await handler(request)
    if isinstance(response, web.Response) and request.path.endswith("/automations"):
        assert isinstance(response.body, bytes)
        body = orjson.loads(response.body)
        response.body = orjson.dumps({**body, "data": [{**item, "lastRunAt": None} for item in body["data"]]})
    return response


async def test_an_older_run_beside_the_last_one_is_asked_for_until_it_ends() -> None:
    async with tenant(workflows=0, middlewares=[silent_about_ends]) as made:
        both = made.simulator.add_workflow()
        older = made.simulator.add_run(both, started_at=START - 60, ended_at=START + 150)
        made.simulator.add_run(both, started_at=START - 30, ended_at=START - 20)
        await made.sweep()
        spent_each = []
        for _ in range(4):
            await made.pass_time(MINUTE)
            with counting(made) as spent:
                await made.sweep()
            spent_each.append(spent[RUNS])
        assert spent_each == [1, 1, 1, 0]
        assert made.known.runs[older].run.ended_at == START + 150
        await assert_all_counted(made)


# The beginning


async def test_a_first_sweep_counts_nothing_and_knows_what_runs_and_what_ran() -> None:
    async with tenant(workflows=20) as made:
        with counting(made) as spent:
            await made.sweep()
        assert not made.known.counts()
        assert sum(spent.values()) <= 1 + 20 * 4  # a page of 100 runs at a time, back four hours
        world = made.simulator.world
        really_open = {run.id for w in world.workflows.values() for run in w.runs.values() if run.ended_at is None}
        started = {id_ for w in world.workflows.values() for id_, r in w.runs.items() if r.start_time(world.now)}
        assert {*made.known.open_runs} >= really_open & started
        last = {w.id: w.last_ended_at for w in world.workflows.values()}
        seen = {id_: max(at for _, at in e.last_ended) for id_, e in made.known.entries.items()}
        assert seen == pytest.approx(last, abs=1e-5)


async def test_a_backfill_counts_back_to_its_horizon_and_no_further() -> None:
    async with tenant(workflows=8) as made:
        made.reconfigure(backfill="1h")
        await made.sweep()
        assert made.baseline == START - HOUR
        assert sum(made.really().values()) > 50
        assert made.known.counts() == made.really()
        assert made.known.errors() == made.real_causes()


async def test_an_automation_that_was_idle_at_the_first_sweep_is_not_read_until_it_runs() -> None:
    async with tenant(workflows=0) as made:
        idle, never = made.simulator.add_workflow("idle"), made.simulator.add_workflow("never")
        made.simulator.add_run(idle, started_at=START - 6 * HOUR, ended_at=START - 5 * HOUR)
        with counting(made) as spent:
            await made.sweep()
        assert spent == {LIST: 1}
        assert made.known.entries[idle].last(frozenset(Result)) == START - 5 * HOUR
        made.simulator.add_run(idle, started_at=START + 1, ended_at=START + 9)
        made.simulator.add_run(never, started_at=START + 1, ended_at=START + 9)
        await made.pass_time(60)
        with counting(made) as spent:
            await made.sweep()
        assert spent == {LIST: 1, RUNS: 2}
        await assert_all_counted(made)


async def test_runs_of_an_automation_found_later_count_since_the_first_sweep() -> None:
    async with tenant(workflows=0) as made:
        made.simulator.add_workflow()
        await made.sweep()
        await made.pass_time(HOUR)
        late = made.simulator.add_workflow("late")
        for minute in range(-5, 250):
            at = START + minute * 10
            made.simulator.add_run(late, started_at=at, ended_at=at + 5)
        await made.sweep()
        await assert_all_counted(made)
        assert made.known.counts()[late, "success"] == 250


# Restarts, downtimes, bounds


async def test_a_client_that_is_new_in_every_sweep_counts_the_same() -> None:
    async with tenant(workflows=6) as made:
        for _ in range(60):
            await made.sweep("workflows")
            made.restart()
            await made.sweep("runs")
            made.restart()
            await made.pass_time(60)
        await made.sweep()
        await assert_all_counted(made)


async def test_after_a_downtime_everything_since_is_read_page_by_page() -> None:
    async with tenant(workflows=4, seed=5) as made:
        await made.sweep()
        await made.pass_time(10 * HOUR)
        made.restart()
        with counting(made) as spent:
            await made.sweep()
        assert spent[RUNS] > 5  # a page has 100 runs
        assert sum(made.really().values()) > 300
        await assert_all_counted(made)


async def test_a_sweep_that_may_not_read_everything_says_so_and_the_next_ones_go_on() -> None:
    async with tenant(workflows=3, seed=5) as made:
        await made.sweep()
        await made.pass_time(10 * HOUR)
        made.restart(pages_max=2)
        await made.sweep()
        assert {fault.kind for fault in made.new_faults()} == {"truncated"}
        assert made.known.counts() != made.really()
        for _ in range(20):
            made.restart(pages_max=2)
            await made.pass_time(60)
            with counting(made) as spent:
                await made.sweep()
            assert spent[RUNS] <= 2
        await made.pass_time(1)
        made.restart()
        await made.sweep()
        made.new_faults()
        await assert_all_counted(made)


async def test_one_automation_with_more_runs_than_a_sweep_may_read_is_read_over_several() -> None:
    async with tenant(workflows=0) as made:
        one = made.simulator.add_workflow()
        await made.sweep()
        for number in range(950):
            at = START + number * 60
            made.simulator.add_run(one, started_at=at + 1, ended_at=at + 30)
        await made.pass_time(940 * 60)
        made.restart(pages_max=2)
        seen = []
        for _ in range(7):
            await made.sweep()
            seen.append(sum(made.known.counts().values()))
            await made.pass_time(60)
        assert 200 <= seen[0] < seen[1] < seen[2] < seen[3] < seen[4] == 944
        await made.sweep()
        assert made.known.counts() == made.really()


async def test_runs_that_start_while_older_ones_are_caught_up_with_are_read_afterwards() -> None:
    async with tenant(workflows=0) as made:
        one = made.simulator.add_workflow()
        await made.sweep()
        for number in range(150):
            made.simulator.add_run(one, started_at=START + number + 1, ended_at=START + number + 1.5)
        made.simulator.add_run(one, started_at=START + 210, ended_at=START + 211)
        made.simulator.add_run(one, started_at=START + 220, ended_at=START + 221)
        await made.pass_time(200)
        made.restart(pages_max=1)
        await made.sweep()
        await made.pass_time(60)
        await made.sweep()  # the rest
        assert sum(made.known.counts().values()) == 151
        made.restart()
        await made.sweep()
        await assert_all_counted(made)


async def test_a_list_is_read_back_to_where_it_was_left_even_if_a_page_ends_before() -> None:
    async with tenant(workflows=0) as made:
        one = made.simulator.add_workflow()
        made.simulator.add_run(one, started_at=START - 9, ended_at=START - 8)
        await made.sweep()
        made.simulator.add_run(one, started_at=START + 1, ended_at=START + 2)
        for number in range(100):  # a page
            made.simulator.add_run(one, started_at=START + 50 + number, ended_at=START + 50.5 + number)
        await made.pass_time(200)
        await made.sweep()
        await assert_all_counted(made)


async def test_where_not_all_automations_can_be_read_in_a_sweep_each_has_its_turn() -> None:
    async with tenant(workflows=0) as made:
        workflows = [made.simulator.add_workflow() for _ in range(4)]
        await made.sweep()
        made.restart(pages_max=1)
        for _ in range(4):
            begin = made.clock.now()
            for workflow in workflows:
                made.simulator.add_run(workflow, started_at=begin + 1, ended_at=begin + 5)
            await made.pass_time(60)
            await made.sweep()
        assert set(made.known.cursors("runs")) == set(workflows)


async def test_a_link_to_go_on_with_that_no_longer_works_costs_a_new_start_and_no_run() -> None:
    async with tenant(workflows=0) as made:
        one = made.simulator.add_workflow()
        await made.sweep()
        for number in range(250):
            made.simulator.add_run(one, started_at=START + number + 1, ended_at=START + number + 1.5)
        await made.pass_time(300)
        made.restart(pages_max=1)
        await made.sweep()
        cursor = made.known.cursors("runs")[one]
        cursor["resume"] = cursor["resume"].replace("cursor=", "cursor=nonsense")
        made.new_faults()
        made.restart()
        await made.sweep()
        assert [fault.kind for fault in made.new_faults()] == [ErrorKind.REQUEST]
        await made.sweep()
        assert not made.new_faults()
        await assert_all_counted(made)


# Faults


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_platform_in_trouble_costs_time_and_no_run(seed: int) -> None:
    async with tenant(seed=seed, workflows=6) as made:
        await made.sweep()
        made.simulator.faults = Faults(
            rate_limited=0.03,
            rate_limited_text=0.02,
            unavailable=0.08,
            server_error_html=0.05,
            ok_html=0.05,
            truncated=0.05,
            shifting_pages=0.2,
            duplicates=0.1,
            null_numbers=0.2,
        )
        failed = 0
        for _ in range(60):
            await made.pass_time(60)
            failed += not await made.try_sweep()
        assert failed + len(made.new_faults()) > 3
        made.simulator.faults = Faults()
        await made.sweep()
        await assert_all_counted(made)


async def test_missing_fields_and_unknown_words_cost_details_and_no_run() -> None:
    async with tenant(workflows=6) as made:
        await made.sweep()
        made.simulator.faults = Faults(missing_fields=0.3, unknown_status=0.1, null_numbers=0.2)
        for _ in range(60):
            await made.pass_time(60)
            await made.sweep()
        made.simulator.faults = Faults()
        await made.sweep()
        really, counted = made.really(), made.known.counts()
        by_workflow = Counter(workflow_id for workflow_id, _ in counted.elements())
        assert by_workflow == Counter(workflow_id for workflow_id, _ in really.elements())
        assert {result for _, result in counted} - {result for _, result in really} == {"unknown"}
        assert counted.total() - (counted & really).total() < 0.3 * counted.total()


async def test_a_limit_that_stays_ends_the_sweep() -> None:
    async with tenant(workflows=2) as made:
        made.simulator.faults = Faults(rate_limited=1.0)
        with pytest.raises(ApiError) as problem:
            await made.sweep("workflows")
        assert problem.value.kind is ErrorKind.RATE_LIMITED
        made.simulator.faults = Faults()
        await made.sweep("workflows")
        made.simulator.faults = Faults(rate_limited=1.0)
        with pytest.raises(ApiError):
            await made.sweep("runs")


async def test_a_platform_that_is_down_is_not_asked_for_every_automation() -> None:
    async with tenant(workflows=30) as made:
        await made.sweep("workflows")
        made.simulator.faults = Faults(unavailable=1.0)
        with counting(made) as spent, pytest.raises(ApiError) as problem:
            await made.sweep("runs")
        assert problem.value.kind is ErrorKind.UNAVAILABLE
        assert spent[RUNS] == 15  # five automations, three attempts each


async def test_one_automation_that_cannot_be_read_costs_that_automation_only() -> None:
    async with tenant(workflows=5) as made:
        await made.sweep("workflows")
        made.simulator.fail_next("truncated")
        await made.sweep("runs")
        (fault,) = made.new_faults()
        assert fault.kind == ErrorKind.BAD_PAYLOAD
        assert fault.workflow_id in made.known.workflows
        assert set(made.known.cursors("runs")) == set(made.known.workflows) - {fault.workflow_id}
        await made.sweep("runs")
        assert not made.new_faults()
        assert set(made.known.cursors("runs")) == set(made.known.workflows)


async def test_runs_are_not_called_complete_while_automations_cannot_be_listed() -> None:
    async with tenant(workflows=3) as made:
        made.simulator.faults = Faults(unavailable=1.0)
        for stream in ("workflows", "runs"):
            with pytest.raises(ApiError):
                await made.sweep(stream)
        made.simulator.faults = Faults()
        await made.sweep()
        await made.pass_time(2 * MINUTE)
        made.simulator.faults = Faults(unavailable=1.0)
        await made.sweep("runs")  # listed two intervals ago: nothing to ask
        await made.pass_time(MINUTE)
        with pytest.raises(ApiError):
            await made.sweep("runs")


async def test_the_sweep_of_runs_lists_automations_itself_if_nobody_else_does() -> None:
    async with tenant(workflows=6) as made:
        await made.sweep("workflows")
        for _ in range(30):
            await made.pass_time(3 * MINUTE)
            with counting(made) as spent:
                await made.sweep("runs")
            assert spent[LIST] == 1
        await assert_all_counted(made)


# Requests


async def test_a_thousand_automations_of_which_a_fiftieth_ran_cost_a_fiftieth_and_ten() -> None:
    async with tenant(workflows=0) as made:
        workflows = [made.simulator.add_workflow(f"automation-{number:04}") for number in range(1000)]
        await made.sweep()
        for cycle in range(3):
            begin = made.clock.now()
            for workflow in workflows[cycle * 20 : cycle * 20 + 20]:
                result = "failure" if workflow.endswith("7") else "success"
                made.simulator.add_run(workflow, started_at=begin + 5, ended_at=begin + 25, result=result)
            await made.pass_time(60)
            with counting(made) as spent:
                await made.sweep()
            assert spent == {LIST: 5, RUNS: 20}
        with counting(made) as spent:
            await made.sweep()
        assert spent == {LIST: 5}
        assert made.known.counts().total() == 60
        await assert_all_counted(made)


async def test_last_runs_are_told_of_only_when_they_have_changed() -> None:
    async with tenant(workflows=0) as made:
        one, two = made.simulator.add_workflow(), made.simulator.add_workflow()
        for workflow in (one, two):
            made.simulator.add_run(workflow, started_at=START - 9, ended_at=START - 1)
        await made.sweep()
        new = made.simulator.add_run(two, started_at=START + 1, ended_at=START + 9)
        await made.pass_time(60)
        pages = [page async for page in made.client.sweep("workflows", made.known, made.clock.now())]
        told = [item for page in pages for item in page.observations]
        assert [item.id for item in told if isinstance(item, Run)] == [new]
        assert {item.id for item in told if isinstance(item, Workflow)} == {one, two}


async def test_a_run_seen_running_and_then_over_costs_a_request_each_time_and_none_between() -> None:
    async with tenant(workflows=0) as made:
        one = made.simulator.add_workflow()
        made.simulator.add_run(one, started_at=START + 10, ended_at=START + 400)
        await made.sweep()
        costs = []
        for _ in range(8):
            await made.pass_time(60)
            with counting(made) as spent:
                await made.sweep()
            costs.append((spent[RUNS], spent[RUN]))
        assert costs == [(1, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (1, 0), (0, 0)]
