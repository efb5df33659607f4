"""What the client makes of a whole instance: every run counted once, whatever the rhythm, faults and restarts."""

from collections import Counter

import pytest
from aiohttp import web

from exporter.model import ResolvedBy, Result, State
from exporter.platform import RunKey
from exporter.simulator.core import Faults, Handler
from exporter.simulator.n8n.api import Version
from exporter.simulator.n8n.model import Instance
from exporter.wire.api import BODY_BYTES_MAX
from exporter.wire.errors import ApiError, ErrorKind
from tests.platforms.n8n.instance import LIST, ONE, START, Source, counting, instance

MINUTE, HOUR = 60.0, 3600.0
UNSAVED: dict[str, object] = {"saveDataSuccessExecution": "none"}


def assert_all_counted(made: Source) -> None:
    """Everything that ended since the baseline was counted, as what it was, once."""
    assert made.known.counts() == made.really()
    assert made.known.corrections() == []


def assert_letters(made: Source) -> None:
    """One open dead letter for each piece of work that failed since the baseline and was not done since."""
    open_ = {d.dead_letter_id for d in made.simulator.truth().dead_letters if d.resolved_at is None}
    recent = {
        d.dead_letter_id
        for d in made.simulator.truth().dead_letters
        if d.resolved_at is None and d.opened_at >= made.baseline
    }
    assert recent <= set(made.known.dead_letters) <= open_


# Counting


@pytest.mark.parametrize(("seed", "gap"), [(1, 60.0), (2, 60.0), (3, 20 * MINUTE), (4, 17.0)])
async def test_every_run_is_counted_once_whatever_the_rhythm_of_sweeps(seed: int, gap: float) -> None:
    async with instance(seed=seed, workflows=8) as made:
        await made.sweep()
        for _ in range(int(min(4 * HOUR, 40 * gap) / gap)):
            await made.pass_time(gap)
            await made.sweep()
        for _ in range(6):
            await made.sweep()
        assert sum(made.really().values()) > 10
        assert_all_counted(made)
        assert_letters(made)
        assert not [fault for fault in made.new_faults() if fault.kind != "truncated"]


async def test_with_events_of_the_error_workflow_the_same_and_each_cause_once() -> None:
    async with instance(seed=5, workflows=10) as made:
        await made.sweep()
        for _ in range(60):
            await made.pass_time(MINUTE)
            await made.complete(await made.deliver())
            await made.sweep()
        for _ in range(6):
            await made.sweep()
        assert_all_counted(made)
        assert_letters(made)
        real = Counter(
            (r.workflow_id, r.error_class)
            for r in made.simulator.truth().runs
            if r.error_class is not None and r.ended_at >= made.baseline
        )
        told = Counter({key: n for key, n in made.known.errors().items() if key in real or key[1] != "timeout"})
        assert sum(real.values()) > 3
        assert told == real


@pytest.mark.parametrize("seed", [1, 2])
async def test_in_trouble_time_is_lost_and_no_count(seed: int) -> None:
    trouble = Faults(
        rate_limited=0.05, unavailable=0.05, server_error_html=0.05, truncated=0.05, duplicates=0.1, shifting_pages=0.1
    )
    async with instance(seed=seed, workflows=8, faults=trouble) as made:
        for _ in range(30):
            await made.pass_time(MINUTE)
            for stream in ("workflows", "runs"):
                try:
                    await made.sweep(stream)
                except ApiError:
                    continue
        for name in ("rate_limited", "unavailable", "server_error_html", "truncated"):
            setattr(made.simulator.faults, name, 0.0)
        for _ in range(10):
            await made.pass_time(MINUTE)
            await made.sweep()
        now = made.clock.now()
        assert made.known.counts() == made.simulator.truth().counts(since=made.baseline, until=now)


async def test_an_hour_costs_two_calls_a_minute_and_what_fails() -> None:
    async with instance(workflows=0) as made:
        one = made.simulator.add_workflow()
        await made.sweep()
        with counting(made) as spent:
            for minute in range(60):
                at = made.clock.now()
                made.simulator.add_run(one, started_at=at + 1, ended_at=at + 10 + minute % 7)
                await made.pass_time(MINUTE)
                await made.sweep("runs")
        assert spent[LIST] <= 60 * 2 + 12 + 2
        assert spent[ONE] <= 2
        assert_all_counted(made)


async def test_a_long_run_beside_many_short_ones_is_followed_and_does_not_hold_up_the_floor() -> None:
    async with instance(workflows=0) as made:
        one = made.simulator.add_workflow()
        await made.sweep()
        long = made.simulator.add_run(one, started_at=made.clock.now(), ended_at=made.clock.now() + 2 * HOUR)
        with counting(made) as spent:
            for _ in range(119):
                at = made.clock.now()
                for second in range(5):
                    made.simulator.add_run(one, started_at=at + second, ended_at=at + second + 0.5)
                await made.pass_time(MINUTE)
                await made.sweep("runs")
                assert long in made.known.open_runs
            await made.pass_time(2 * MINUTE)
            await made.sweep("runs")
        assert made.known.runs[long].run.result is Result.SUCCESS
        assert spent[LIST] <= 120 * 2 + 26
        assert spent[ONE] <= 6
        assert_all_counted(made)


async def test_one_that_waits_is_not_over_and_ends_under_its_number() -> None:
    async with instance(workflows=0) as made:
        waits = made.simulator.add_workflow(pause_seconds=300.0, typical_seconds=2.0)
        await made.sweep()
        run_id = made.simulator.add_run(waits, started_at=START + 1, ended_at=START + 10)
        row = made.simulator.world.rows[int(run_id)]
        made.simulator.world._later(round((START + 3) * 1000), row, made.simulator.world._put_away)
        row.plan = type(row.plan)(works=2000, pause=300_000, rest=1000)
        await made.pass_time(30)
        await made.sweep()
        assert row.status == "waiting"
        assert made.known.open_runs[run_id].state is State.RUNNING
        for _ in range(4):
            await made.pass_time(MINUTE)
            await made.sweep()
            assert run_id in made.known.open_runs
        await made.pass_time(2 * MINUTE)
        await made.sweep()
        assert_all_counted(made)
        assert made.known.counts() == {(waits, "success"): 1}


async def test_time_in_the_queue_is_known_of_those_that_were_seen_in_it() -> None:
    async with instance(workflows=0, instance=Instance(concurrency=1)) as made:
        one = made.simulator.add_workflow()
        await made.sweep()
        ids = [made.simulator.add_run(one, started_at=START + 1, ended_at=START + 91) for _ in range(3)]
        await made.pass_time(10)
        await made.sweep()
        assert made.known.open_runs[ids[1]].state is State.PENDING
        for _ in range(6):
            await made.pass_time(MINUTE)
            await made.sweep()
        waited = [made.known.runs[run_id].run.queue_duration for run_id in ids]
        assert waited[1] == pytest.approx(90, abs=1)
        assert waited[2] == pytest.approx(180, abs=1)
        assert_all_counted(made)


async def test_what_was_running_when_the_process_was_killed_is_counted_as_killed_once_though_it_is_told_late() -> None:
    async with instance(workflows=0) as made:
        one = made.simulator.add_workflow()
        await made.sweep()
        seen = made.simulator.add_run(one, started_at=START + 1, ended_at=None)
        await made.pass_time(30)
        await made.sweep()
        unseen = made.simulator.add_run(one, started_at=START + 31, ended_at=None)
        await made.pass_time(5)
        made.simulator.kill()
        with pytest.raises(ApiError):
            await made.sweep("runs")
        made.simulator.restart()
        await made.pass_time(60)
        for _ in range(3):
            await made.sweep()
            await made.pass_time(MINUTE)
        assert {key: made.known.runs[key].run.result for key in (seen, unseen)} == {
            seen: Result.FAILURE,
            unseen: Result.FAILURE,
        }
        assert made.known.errors() == {(one, "killed"): 2}
        assert set(made.known.dead_letters) == {seen, unseen}
        assert_all_counted(made)


@pytest.mark.parametrize(("result", "expected"), [("timeout", Result.TIMEOUT), ("cancelled", Result.CANCELLED)])
@pytest.mark.parametrize("event_first", [True, False])
async def test_a_timeout_is_told_from_a_cancellation_also_where_the_error_workflow_reports_first(
    result: str, expected: Result, event_first: bool
) -> None:
    async with instance(workflows=0) as made:
        allowed = 3 if expected is Result.TIMEOUT else 60
        one = made.simulator.add_workflow(settings={"executionTimeout": allowed})
        await made.sweep()
        made.simulator.add_run(one, started_at=START + 1, ended_at=START + 4, result=result)
        await made.pass_time(30)
        if event_first:
            body = (
                b'{"event": "run.finished", "workflow_id": "%s", "run_id": "1", "result": "cancelled"}' % one.encode()
            )
            await made.complete(made.receive(body))
        await made.sweep()
        await made.sweep()
        assert made.known.counts() == {(one, str(expected)): 1}
        assert made.known.corrections() == []
        assert not made.known.dead_letters


async def test_error_workflows_are_no_runs_and_tries_in_the_editor_no_production() -> None:
    async with instance(workflows=0) as made:
        one = made.simulator.add_workflow()
        await made.sweep()
        made.simulator.add_run(one, started_at=START + 1, ended_at=START + 2, mode="manual")
        made.simulator.add_run(one, started_at=START + 3, ended_at=START + 4, mode="manual", result="failure")
        made.simulator.add_run(one, started_at=START + 5, ended_at=START + 6, mode="error")
        await made.pass_time(30)
        await made.sweep()
        await made.sweep()
        assert made.known.counts() == {}
        assert not made.known.dead_letters
        made.reconfigure(test_runs="count", backfill="1h")
        await made.sweep()
        await made.sweep()
        assert made.known.counts() == {(one, "success"): 1, (one, "failure"): 1}
        assert not made.known.dead_letters


async def test_sub_workflows_are_runs_of_their_own_that_name_their_parent() -> None:
    async with instance(workflows=0) as made:
        child = made.simulator.add_workflow(mode="integrated", name="child")
        parent = made.simulator.add_workflow(child=child, name="parent")
        made.reconfigure(details="all")
        await made.sweep()
        run_id = made.simulator.add_run(parent, started_at=START + 1, ended_at=START + 10)
        await made.pass_time(MINUTE)
        for _ in range(3):
            await made.sweep()
        [sub] = [entry.run for entry in made.known.runs.values() if entry.run.workflow_id == child]
        assert (sub.parent_id, sub.trigger) == (run_id, "sub")
        assert_all_counted(made)


async def test_large_data_are_not_asked_for() -> None:
    async with instance(workflows=0) as made:
        one = made.simulator.add_workflow()
        await made.sweep()
        made.simulator.add_run(
            one, started_at=START + 1, ended_at=START + 2, result="failure", error="network", payload=3_000_000
        )
        await made.pass_time(MINUTE)
        with counting(made) as spent:
            await made.sweep("runs")
        assert spent[ONE] <= 2  # the row, and what says whether n8n sends traces
        assert made.known.errors() == {(one, "unknown"): 1}
        [letter] = made.known.dead_letters.values()
        assert letter.error is not None


@pytest.mark.parametrize(("bytes_more", "expected"), [(0, "network"), (BODY_BYTES_MAX, "unknown")])
async def test_an_older_version_that_does_not_tell_how_large_data_are_is_asked_for_them_once(
    bytes_more: int, expected: str
) -> None:
    @web.middleware
    async def padded(request: web.Request, handler: Handler) -> web.StreamResponse:
        answer = await handler(request)
        if "includeData" in request.query and isinstance(answer, web.Response) and isinstance(answer.body, bytes):
            answer.body += b" " * bytes_more
        return answer

    async with instance(workflows=0, version=Version(sizes=False), middlewares=[padded]) as made:
        one = made.simulator.add_workflow()
        await made.sweep()
        made.simulator.add_run(one, started_at=START + 1, ended_at=START + 2, result="failure", error="network")
        await made.pass_time(MINUTE)
        with counting(made) as spent:
            await made.sweep("runs")
            await made.sweep("runs")
        assert spent[ONE] <= 3
        assert made.known.errors() == {(one, expected): 1}
        assert not made.new_faults()


async def test_many_failures_at_once_are_counted_at_once_and_explained_bit_by_bit_also_over_a_restart() -> None:
    async with instance(workflows=0) as made:
        one = made.simulator.add_workflow()
        await made.sweep()
        for number in range(60):
            made.simulator.add_run(
                one, started_at=START + 1 + number / 10, ended_at=START + 20, result="failure", error="throttled"
            )
        await made.pass_time(MINUTE)
        await made.sweep("runs")
        assert made.known.counts() == {(one, "failure"): 60}
        assert len(made.known.dead_letters) == 60
        for _ in range(6):
            made.restart()
            await made.pass_time(MINUTE)
            await made.sweep("runs")
        assert made.known.errors() == {(one, "throttled"): 60}


async def test_after_a_downtime_a_few_pages_a_sweep_catch_up() -> None:
    async with instance(workflows=0) as made:
        one = made.simulator.add_workflow()
        await made.sweep()
        for number in range(2100):
            at = START + number * 3
            made.simulator.add_run(one, started_at=at, ended_at=at + 1)
        await made.pass_time(7000)
        made.restart(pages_max=2)
        await made.sweep("runs")
        assert {fault.kind for fault in made.new_faults()} == {"truncated"}
        for _ in range(12):
            made.restart(pages_max=2)
            at = made.clock.now()
            made.simulator.add_run(one, started_at=at, ended_at=at + 1)
            await made.pass_time(MINUTE)
            await made.sweep("runs")
        assert_all_counted(made)
        assert made.new_faults()[-1:] == [] or made.known.cursor("runs")["gap"] is None


async def test_a_backfill_reaches_back_over_pages() -> None:
    async with instance(workflows=0) as made:
        one = made.simulator.add_workflow()
        for number in range(700):
            at = START - 7000 + number * 10
            made.simulator.add_run(one, started_at=at, ended_at=at + 1)
        made.reconfigure(backfill="1h")
        await made.sweep()
        assert_all_counted(made)
        assert sum(made.known.counts().values()) == pytest.approx(360, abs=2)


# What is not saved


async def test_of_a_workflow_that_does_not_save_successes_none_is_counted_and_the_instance_tells_nothing() -> None:
    async with instance(workflows=0) as made:
        unsaved = made.simulator.add_workflow(settings=UNSAVED)
        saved = made.simulator.add_workflow()
        made.simulator.add_run(saved, started_at=START - 20, ended_at=START - 10)
        await made.sweep()
        workflows = made.known.workflows
        assert workflows[unsaved].uncounted == (Result.SUCCESS,)
        assert workflows[saved].uncounted == ()
        made.simulator.add_run(unsaved, started_at=START + 1, ended_at=START + 100)
        await made.pass_time(MINUTE)
        await made.sweep()
        assert len(made.known.open_runs) == 1
        await made.pass_time(MINUTE)
        await made.sweep()
        assert made.known.counts() == {(unsaved, "unknown"): 1}, "it ended, and how nobody can say"


async def test_an_instance_that_does_not_save_successes_is_found_out() -> None:
    async with instance(workflows=0, instance=Instance(save_success=False)) as made:
        one = made.simulator.add_workflow()
        await made.sweep()
        assert made.known.workflows[one].uncounted == (Result.SUCCESS,), "nobody knows yet"
        made.simulator.add_run(one, started_at=START + 1, ended_at=START + 70)
        await made.pass_time(MINUTE)
        await made.sweep()
        await made.pass_time(MINUTE)
        await made.sweep("runs")
        made.restart()
        await made.sweep()
        assert made.known.workflows[one].uncounted == (Result.SUCCESS,)
        assert made.client._customs.saving.successes is False
        made.simulator.world.instance = Instance(save_success=True)
        at = made.clock.now()
        made.simulator.add_run(one, started_at=at + 1, ended_at=at + 2)
        await made.pass_time(MINUTE)
        await made.sweep("runs", "workflows")
        assert made.known.workflows[one].uncounted == ()


async def test_what_the_config_says_of_the_instance_holds() -> None:
    async with instance(workflows=0) as made:
        one = made.simulator.add_workflow()
        made.reconfigure(save_successes="all")
        await made.sweep()
        assert made.known.workflows[one].uncounted == ()
        made.reconfigure(save_successes="none", save_errors="none")
        await made.sweep()
        assert Result.SUCCESS in made.known.workflows[one].uncounted
        assert Result.FAILURE in made.known.workflows[one].uncounted


async def test_a_failure_that_is_not_saved_counts_when_the_error_workflow_reports_it_and_is_no_dead_letter() -> None:
    async with instance(workflows=0) as made:
        handler = made.simulator.add_workflow()
        one = made.simulator.add_workflow(settings={"saveDataErrorExecution": "none", "errorWorkflow": handler})
        await made.sweep()
        made.simulator.add_run(one, started_at=START + 1, ended_at=START + 2, result="failure", error="network")
        await made.pass_time(MINUTE)
        keys = await made.deliver()
        assert keys
        await made.complete(keys)
        await made.sweep()
        assert made.known.counts() == {(one, "failure"): 1}
        assert made.known.errors() == {(one, "network"): 1}
        assert not made.known.dead_letters


# Dead letters


async def failed(made: Source, **more: str) -> tuple[str, str]:
    """A workflow and the id of its failed execution, which has been seen."""
    one = made.simulator.add_workflow()
    await made.sweep()
    at = made.clock.now()
    root = made.simulator.add_run(
        one, started_at=at + 1, ended_at=at + 2, result="failure", error=more.get("error", "network")
    )
    await made.pass_time(MINUTE)
    await made.sweep()
    assert set(made.known.dead_letters) == {root}
    return one, root


async def test_a_chain_of_retries_is_one_dead_letter_until_one_of_them_succeeds() -> None:
    async with instance(workflows=0) as made:
        one, root = await failed(made)
        last = root
        for _ in range(3):
            last = made.simulator.retry_by_person(last, outcome="failure")
            await made.pass_time(MINUTE)
            made.restart()
            await made.sweep()
            assert set(made.known.dead_letters) == {root}
        assert made.known.runs[last].run.parent_id is not None
        made.simulator.retry_by_person(last, outcome="success")
        await made.pass_time(MINUTE)
        made.restart()
        await made.sweep()
        assert not made.known.dead_letters
        assert made.known.letters[root].dead_letter.resolved_by is ResolvedBy.MANUAL
        assert made.known.opened_dead_letters() == [root]
        assert made.known.counts() == {(one, "failure"): 4, (one, "success"): 1}
        assert_letters(made)


async def test_a_later_success_of_the_workflow_says_nothing_about_a_dead_letter() -> None:
    async with instance(workflows=0) as made:
        one, root = await failed(made)
        at = made.clock.now()
        made.simulator.add_run(one, started_at=at + 1, ended_at=at + 2)
        await made.pass_time(MINUTE)
        await made.sweep()
        assert set(made.known.dead_letters) == {root}


async def test_a_dead_letter_whose_execution_is_gone_has_expired_or_lives_on_in_a_failed_retry() -> None:
    async with instance(workflows=0) as made:
        _, first = await failed(made)
        _, second = await failed_beside(made)
        heir = made.simulator.retry_by_person(second, outcome="failure")
        await made.pass_time(MINUTE)
        await made.sweep()
        made.simulator.delete_run(first)
        made.simulator.delete_run(second)
        for _ in range(2):
            await made.pass_time(15 * MINUTE)
            await made.sweep()
        assert set(made.known.dead_letters) == {heir}
        assert made.known.letters[first].dead_letter.resolved_by is ResolvedBy.EXPIRED
        assert_letters(made)


async def failed_beside(made: Source) -> tuple[str, str]:
    one = made.simulator.add_workflow()
    at = made.clock.now()
    root = made.simulator.add_run(one, started_at=at + 1, ended_at=at + 2, result="failure", error="network")
    await made.pass_time(MINUTE)
    await made.sweep()
    assert root in made.known.dead_letters
    return one, root


async def test_the_failure_of_a_sub_workflow_is_its_parents_dead_letter() -> None:
    async with instance(workflows=0) as made:
        child = made.simulator.add_workflow(mode="integrated")
        one = made.simulator.add_workflow()
        await made.sweep()
        made.simulator.add_run(
            child, started_at=START + 1, ended_at=START + 2, result="failure", error="network", mode="integrated"
        )
        parent = made.simulator.add_run(
            one, started_at=START + 1, ended_at=START + 3, result="failure", error="network"
        )
        await made.pass_time(MINUTE)
        await made.sweep()
        assert set(made.known.dead_letters) == {parent}
        assert made.known.counts() == {(child, "failure"): 1, (one, "failure"): 1}


# Another database, workflows, checks


async def test_another_database_is_noticed_said_and_counted() -> None:
    async with instance(workflows=0) as made:
        one, root = await failed(made)
        made.simulator.skip_ids(500)
        at = made.clock.now()
        made.simulator.add_run(one, started_at=at + 1, ended_at=at + 2)
        await made.pass_time(MINUTE)
        await made.sweep()
        assert not made.new_faults()
        made.simulator.world.rows.clear()
        made.simulator.world._next_id = 1
        await made.pass_time(10 * MINUTE)
        at = made.clock.now()
        for second in range(3):
            made.simulator.add_run(one, started_at=at + second, ended_at=at + second + 1)
        await made.pass_time(MINUTE)
        await made.sweep()
        assert [fault.kind for fault in made.new_faults()] == ["conflict"]
        for _ in range(12):
            await made.pass_time(MINUTE)
            await made.sweep()
        assert not made.new_faults()
        assert made.known.counts() == {(one, "failure"): 1, (one, "success"): 4}
        assert "1~1" in made.known.runs
        assert not made.known.dead_letters, "the execution of that number is another"
        assert made.known.letters[root].dead_letter.resolved_by is ResolvedBy.EXPIRED


async def test_a_gap_below_the_top_is_no_other_database() -> None:
    async with instance(workflows=0) as made:
        one = made.simulator.add_workflow(settings=UNSAVED)
        two = made.simulator.add_workflow()
        await made.sweep()
        made.simulator.add_run(two, started_at=START + 1, ended_at=START + 200)
        made.simulator.add_run(one, started_at=START + 2, ended_at=START + 70)
        await made.pass_time(MINUTE)
        await made.sweep()
        for _ in range(4):
            await made.pass_time(MINUTE)
            await made.sweep()
        assert not made.new_faults()
        assert made.known.counts() == {(one, "unknown"): 1, (two, "success"): 1}


async def test_a_workflow_that_runs_before_it_is_listed_is_known_by_name() -> None:
    async with instance(workflows=0) as made:
        made.reconfigure(include=["Invoices*"])
        await made.sweep()
        wanted = made.simulator.add_workflow(name="Invoices daily", settings=UNSAVED)
        other = made.simulator.add_workflow(name="Other")
        for each in (wanted, other):
            made.simulator.add_run(each, started_at=START + 1, ended_at=START + 2, result="failure", error="auth")
        await made.pass_time(MINUTE)
        await made.sweep("runs")
        assert made.known.counts() == {(wanted, "failure"): 1}
        assert made.known.workflows[wanted].uncounted == (Result.SUCCESS,)


async def test_workflows_come_and_go() -> None:
    async with instance(workflows=0) as made:
        ids = [made.simulator.add_workflow(name=f"W{number}") for number in range(3)]
        await made.sweep("workflows")
        assert set(made.known.workflows) == set(ids)
        made.simulator.set_enabled(ids[0], False)
        made.simulator.delete_workflow(ids[1])
        for _ in range(3):
            await made.pass_time(10 * MINUTE)
            await made.sweep("workflows")
        assert set(made.known.workflows) == {ids[0], ids[2]}
        assert made.known.workflows[ids[0]].enabled is False
        assert set(made.known.cursors("workflows")) == {"", ids[0], ids[2]}


async def test_completing_an_unknown_or_odd_run_is_no_error() -> None:
    async with instance(workflows=0) as made:
        await made.sweep()
        await made.complete([RunKey(run_id="999"), RunKey(run_id="x"), RunKey(run_id="998", workflow_id="w")])
        assert made.known.counts() == {("w", "unknown"): 1}
        assert not made.new_faults()


async def test_check_says_what_works() -> None:
    async with instance(workflows=3, unsaved=1) as made:
        lines = await made.check()
        assert not [line for line in lines if line.startswith("problem")]
        assert "ok: ready" in lines
        assert "ok: the key has every scope that reading takes" in lines
        assert any("successes are not saved, so they are not counted" in line for line in lines)


async def test_check_names_missing_scopes() -> None:
    async with instance(workflows=1) as made:
        made.simulator.add_key("small-key", "workflow:list", "execution:list")
        made.reconfigure(token="small-key")
        lines = await made.check()
        assert any(line.startswith("problem: the key has no workflow:read, execution:read") for line in lines)
        assert any("execution:retry" in line and line.startswith("note") for line in lines)
        assert not any("execution:stop" in line for line in lines), "nobody has asked for it"
        made.reconfigure(token="small-key", grant=["stop"])
        assert any("execution:stop" in line and line.startswith("problem") for line in await made.check())


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (Version(started_after=False), "note: this version has no startedAfter"),
        (Version(started_after=False, ignores_unknown=False), "note: this version has no startedAfter"),
        (Version(new_statuses=False), "problem: this version cannot list executions that are running"),
        (Version(discover=False), "note: this version does not say which scopes a key has"),
    ],
)
async def test_check_finds_out_what_an_older_version_cannot_do(version: Version, expected: str) -> None:
    async with instance(workflows=2, version=version) as made:
        lines = await made.check()
        assert [line for line in lines if line.startswith(expected)], lines


async def test_a_version_that_cannot_list_what_runs_says_so_and_counts_what_ends() -> None:
    async with instance(workflows=0, version=Version(new_statuses=False)) as made:
        one = made.simulator.add_workflow()
        await made.sweep()
        made.new_faults()
        made.simulator.add_run(one, started_at=START + 1, ended_at=START + 2)
        await made.pass_time(MINUTE)
        await made.sweep("runs")
        assert {fault.kind for fault in made.new_faults()} == {"request"}
        assert made.known.counts() == {(one, "success"): 1}


async def test_nothing_has_vanished_or_expired_while_a_server_starts() -> None:
    """It has no routes yet: what it says is not there may be."""
    async with instance(workflows=0) as made:
        one = made.simulator.add_workflow()
        await made.sweep()
        at = made.clock.now()
        letter = made.simulator.add_run(one, started_at=at + 1, ended_at=at + 2, result="failure")
        waiting = made.simulator.add_run(one, started_at=at + 3, ended_at=None)
        await made.pass_time(30)
        await made.sweep()
        made.simulator.kill()
        made.simulator.restart(after=1000)
        await made.pass_time(999)
        with pytest.raises(ApiError):
            await made.sweep("runs")
        await made.complete([RunKey(run_id=waiting, workflow_id=one), RunKey(run_id=letter, workflow_id=one)])
        assert {fault.kind for fault in made.new_faults()} == {ErrorKind.UNAVAILABLE}
        assert set(made.known.open_runs) == {waiting}
        assert set(made.known.dead_letters) == {letter}
        await made.pass_time(1)
        await made.sweep()
        assert_all_counted(made)


@pytest.mark.parametrize(("backfill", "results"), [("off", ["failure"]), ("1d", ["success", "failure", "success"])])
async def test_no_run_that_n8n_traces_itself_is_traced_twice_not_even_the_first(
    backfill: str, results: list[str]
) -> None:
    async with instance(workflows=0, instance=Instance(traces=True)) as made:
        made.reconfigure(backfill=backfill)
        one = made.simulator.add_workflow()
        if backfill == "off":
            await made.sweep()  # there has been no run yet
        for result in results:
            at = made.clock.now()
            made.simulator.add_run(one, started_at=at + 1, ended_at=at + 2, result=result)
            await made.pass_time(MINUTE)
        await made.sweep()
        failed = [key for key, entry in made.known.runs.items() if entry.run.result is Result.FAILURE]
        theirs = {key: f"{int(key):032x}-{int(key):016x}" if key in failed else "" for key in made.known.runs}
        assert {key: entry.run.trace for key, entry in made.known.runs.items()} == theirs
        assert len(theirs) == len(results)


async def test_a_failure_that_a_webhook_reported_costs_two_calls() -> None:
    async with instance(workflows=0) as made:
        one = made.simulator.add_workflow()
        await made.sweep()
        run_id = made.simulator.add_run(
            one, started_at=START + 1, ended_at=START + 2, result="failure", error="network"
        )
        await made.pass_time(5)
        with counting(made) as spent:
            await made.complete([RunKey(run_id=run_id, workflow_id=one)])
        assert set(made.known.dead_letters) == {run_id}
        assert spent == {ONE: 2}
