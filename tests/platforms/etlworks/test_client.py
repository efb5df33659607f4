"""The Etlworks client against the simulated account: what it counts is what really happened, at few requests."""

from collections import Counter
from typing import Any, Literal

import pytest

from exporter.model import Result, State
from exporter.platform import RunKey
from exporter.platforms.etlworks import client, planning
from exporter.simulator.core import Faults
from exporter.simulator.etlworks import WebhookMode
from exporter.wire.errors import ApiError, ErrorKind
from tests.platforms.etlworks.account import NOW, Account, account, letter_ids


def busy_flows(made: Account) -> None:
    """Flows of several rhythms that fail, are repeated, are stopped; none starts twice between two sweeps."""
    sim = made.sim
    sim.add_workflow(every=300, failing=0.4, errors=["auth", "network"], typical=30)
    sim.add_workflow(every=300, failing=0.5, retries=1, retry_minutes=1, typical=20)
    sim.add_workflow(every=600, failing=0.6, retries=2, retry_minutes=2, errors=["validation"], typical=15)
    sim.add_workflow(every=900, streaming=True, typical=100)
    sim.add_workflow(every=420, failing=0.2, typical=150)  # an interval as text, not a cron line
    sim.add_workflow(every=120, typical=5)


# --- What is counted is what happened -------------------------------------------------------------------------------


@pytest.mark.parametrize("restarts", [False, True])
async def test_hours_of_sweeps_count_every_run_once_and_open_every_dead_letter(restarts: bool) -> None:
    async with account(cancel_seconds=200) as made:
        busy_flows(made)
        assert await made.live(6 * 60, restarts=restarts) == []
        counted, truth = made.run_counts()
        assert counted == truth
        assert {result for _, result in truth} == {"success", "warning", "failure", "cancelled"}
        since = made.known.first_sweep_at or 0.0
        errors = [r for r in made.sim.truth().runs if r.ended_at >= since and r.result == "failure"]
        assert made.known.errors() == Counter((r.workflow_id, r.error_class) for r in errors)
        assert sorted(made.known.opened_dead_letters()) == letter_ids(made.true_letters())
        assert made.known.open_dead_letters() == made.sim.truth().open_dead_letters()
        assert len(made.true_letters()) > 20
        assert made.known.corrections() == []


async def test_a_wire_in_trouble_costs_time_but_never_a_wrong_number() -> None:
    trouble = Faults(
        rate_limited=0.03,
        rate_limited_text=0.02,
        unavailable=0.05,
        server_error_html=0.03,
        ok_html=0.05,
        truncated=0.05,
        missing_fields=0.3,
        null_numbers=0.1,
        duplicates=0.2,
    )
    async with account(cancel_seconds=900, faults=trouble) as made:
        for _ in range(4):
            made.sim.add_workflow(every=600, failing=0.3, typical=60)
        faults = await made.live(300)
        for name in ("rate_limited", "rate_limited_text", "unavailable", "server_error_html", "ok_html", "truncated"):
            setattr(trouble, name, 0.0)
        await made.live(3)
        counted, truth = made.run_counts()
        assert counted == truth
        assert sum(truth.values()) > 100
        assert {fault.kind for fault in faults} >= {"bad_payload"}


async def test_a_status_nobody_knows_is_counted_as_unknown_and_never_twice() -> None:
    async with account(faults=Faults(unknown_status=0.4), cancel_seconds=900) as made:
        made.sim.add_workflow(every=300, failing=0.3, typical=60)
        await made.live(200)
        made.sim.faults.unknown_status = 0.0
        await made.live(3)
        counted, truth = made.run_counts()
        assert sum(counted.values()) == sum(truth.values())
        assert counted["1001", "unknown"] > 5


@pytest.mark.parametrize("mode", ["entity", "bare", "get"])
async def test_with_webhooks_even_runs_between_two_sweeps_are_counted(mode: WebhookMode) -> None:
    """Generated flows start up to twice a minute, some by messages; sweeps come every five minutes."""
    async with account(workflows=20, webhook_mode=mode, cancel_seconds=100, history=0) as made:
        await made.sweep("workflows")
        await made.sweep()
        for number in range(120):
            await made.clock.advance(20)
            await made.deliver()
            if number % 15 == 0:
                await made.sweep()
        await made.deliver()
        await made.sweep()
        counted, truth = made.run_counts()
        assert counted == truth
        assert sum(truth.values()) > 150
        assert {result for _, result in truth} == {"success", "warning", "failure", "cancelled"}
        assert sorted(made.known.opened_dead_letters()) == letter_ids(made.true_letters())


async def test_webhooks_lost_doubled_and_shuffled_change_no_count() -> None:
    disturbed = Faults(webhook_lost=0.3, webhook_duplicated=0.5, webhook_shuffled=0.5)
    async with account(faults=disturbed, cancel_seconds=200) as made:
        busy_flows(made)
        for _ in range(30):
            await made.live(5)
            await made.deliver()
        counted, truth = made.run_counts()
        assert counted == truth
        assert sorted(made.known.opened_dead_letters()) == letter_ids(made.true_letters())


# --- Runs -----------------------------------------------------------------------------------------------------------


async def test_the_first_sweep_is_a_baseline_that_still_knows_when_each_flow_last_ran() -> None:
    async with account(workflows=5) as made:
        await made.sweep("workflows")
        assert await made.sweep() == []
        assert made.known.counts() == Counter()
        newest = {entry.run.workflow_id for entry in made.known.runs.values()}
        assert newest == set(made.known.workflows)
        assert made.known.opened_dead_letters() == []


async def test_a_run_is_followed_while_newer_ones_begin() -> None:
    async with account() as made:
        flow = made.sim.add_workflow(every=None)
        await made.sweep("workflows")
        long = made.sim.add_run(flow, started_at=NOW + 10, ended_at=NOW + 400, result="failure", error="killed")
        made.sim.add_run(flow, started_at=NOW + 100, ended_at=NOW + 110)
        made.sim.add_run(flow, started_at=NOW + 200, ended_at=NOW + 210, result="warning")
        await made.live(8)
        assert made.known.counts() == made.run_counts()[1] == {
            (flow, "success"): 1, (flow, "warning"): 1, (flow, "failure"): 1,
        }  # fmt: skip
        assert made.known.runs[long].run.ended_at == NOW + 400
        assert made.known.open_runs == {}


async def test_a_flow_with_an_open_run_is_read_in_every_sweep_and_idle_ones_are_not() -> None:
    async with account() as made:
        flows = [made.sim.add_workflow(every=None, scheduled=False) for _ in range(30)]
        for flow in flows:
            made.sim.add_run(flow, started_at=NOW - 9, ended_at=NOW + (400 if flow == flows[7] else -5))
        await made.live(6)
        assert set(made.known.open_runs) == {"80008"}
        await made.live(1)
        assert made.known.counts() == {(flows[7], "success"): 1}


async def test_a_queued_run_is_pending_then_running_then_finished() -> None:
    async with account() as made:
        flow = made.sim.add_workflow(every=None)
        made.sim.add_run(flow, queued_at=NOW + 50, started_at=NOW + 70, ended_at=NOW + 130, run_id=5)
        await made.sweep("workflows")
        states = []
        for _ in range(3):
            await made.live(1)
            states.append(made.known.runs["5"].run.state)
        assert states == [State.PENDING, State.RUNNING, State.FINISHED]
        assert made.known.runs["5"].run.duration == 60


async def test_a_stopped_run_counts_once_as_cancelled_and_is_never_a_dead_letter() -> None:
    async with account(cancel_seconds=90) as made:
        flow, streaming = made.sim.add_workflow(every=None), made.sim.add_workflow(every=None, streaming=True)
        await made.sweep("workflows")
        for workflow_id in (flow, streaming):
            made.sim.add_run(workflow_id, started_at=NOW + 10, ended_at=NOW + 115, result="cancelled")
        await made.live(60)
        await made.live(50, every=7_200)  # long after, the newest run of each flow is read again and again
        assert made.known.counts() == {(flow, "cancelled"): 1, (streaming, "cancelled"): 1}
        assert made.known.dead_letters == {}
        assert made.known.corrections() == []
        assert {entry.run.ended_at for entry in made.known.runs.values()} == {NOW + 115}


async def test_a_poller_that_sees_only_what_follows_a_stop_sees_an_error() -> None:
    async with account(cancel_seconds=20) as made:
        flow = made.sim.add_workflow(every=None)
        await made.sweep("workflows")
        made.sim.add_run(flow, started_at=NOW + 10, ended_at=NOW + 20, result="cancelled")
        await made.live(2)
        assert made.known.counts() == {(flow, "failure"): 1}


@pytest.mark.parametrize("mode", ["entity", "bare"])
async def test_a_stop_told_by_webhook_only_is_remembered_by_the_sweeps(mode: WebhookMode) -> None:
    async with account(cancel_seconds=20, webhook_mode=mode) as made:
        flow = made.sim.add_workflow(every=None)
        await made.sweep("workflows")
        made.sim.add_run(flow, started_at=NOW + 10, ended_at=NOW + 20, result="cancelled")
        await made.clock.advance(25)
        await made.deliver()
        await made.live(60, restarts=True)
        await made.deliver()
        await made.live(60)
        assert made.known.counts() == {(flow, "cancelled"): 1}
        assert made.known.dead_letters == {}
        assert made.known.corrections() == []


async def test_runs_that_could_not_be_completed_are_asked_for_again() -> None:
    async with account() as made:
        flow = made.sim.add_workflow(every=None)
        runs = [made.sim.add_run(flow, started_at=NOW - 9, ended_at=NOW + n) for n in (1, 2, 3)]
        await made.sweep("workflows")
        await made.clock.advance(10)
        keys = [RunKey(run_id=run, workflow_id=flow) for run in runs]
        made.sim.fail_next("slow", "unavailable", "unavailable", "unavailable")
        with pytest.raises(ApiError) as caught:
            await made.known.complete(made.client, keys, made.clock.now())
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        assert set(made.known.runs) == {runs[0], runs[2]}
        unknown = [RunKey(run_id="77", workflow_id=flow), RunKey(run_id=runs[1])]
        (fault,) = await made.known.complete(made.client, [*unknown, *keys], made.clock.now())
        assert fault.workflow_id == flow
        assert made.known.counts() == {(flow, "success"): 3}


async def test_marks_of_cancelled_runs_are_forgotten_in_the_end() -> None:
    async with account(cancel_seconds=20) as made:
        flow = made.sim.add_workflow(every=None)
        await made.sweep("workflows")
        run = made.sim.add_run(flow, started_at=NOW + 10, ended_at=NOW + 20, result="cancelled")
        await made.clock.advance(25)
        await made.deliver()
        assert set(made.known.cursors("complete")) == {flow}
        await made.clock.advance(client.MARK_SECONDS + 700)
        await made.known.complete(made.client, [RunKey(run_id=run, workflow_id=flow)], made.clock.now())
        assert made.known.cursors("complete") == {}


async def test_a_failure_hidden_behind_a_later_success_is_found() -> None:
    async with account() as made:
        flow = made.sim.add_workflow(every=None, scheduled=False)
        made.sim.add_run(flow, started_at=NOW - 90, ended_at=NOW - 80)
        await made.sweep("workflows")
        await made.sweep()
        failed = made.sim.add_run(flow, started_at=NOW + 5, ended_at=NOW + 9, result="failure", error="timeout")
        made.sim.add_run(flow, started_at=NOW + 30, ended_at=NOW + 40)
        await made.live(1)
        assert made.known.counts() == {(flow, "success"): 1, (flow, "failure"): 1}
        assert made.known.errors() == {(flow, "timeout"): 1}
        assert made.known.opened_dead_letters() == [failed]
        assert made.known.dead_letters == {}  # the success that hid it has superseded it


async def test_the_first_of_a_chain_that_ended_between_two_sweeps_is_read() -> None:
    async with account() as made:
        flow = made.sim.add_workflow(every=None, retries=2)
        made.sim.add_run(flow, started_at=NOW - 90, ended_at=NOW - 80)
        await made.sweep("workflows")
        await made.sweep()
        chain: dict[str, Any] = {"result": "failure", "error": "network"}
        first = made.sim.add_run(flow, started_at=NOW + 5, ended_at=NOW + 9, **chain)
        made.sim.add_run(flow, started_at=NOW + 15, ended_at=NOW + 19, parent_id=first, retries=1, **chain)
        last = made.sim.add_run(flow, started_at=NOW + 25, ended_at=NOW + 29, parent_id=first, retries=2)
        await made.live(1)
        assert made.known.counts() == made.run_counts()[1] == {(flow, "success"): 1, (flow, "failure"): 2}
        assert made.known.runs[last].run.parent_id == first
        assert made.known.opened_dead_letters() == []


async def test_the_last_repetition_that_fails_is_the_dead_letter_of_its_chain() -> None:
    async with account() as made:
        flow = made.sim.add_workflow(every=3_600, retries=1, retry_minutes=3, failing=1.0, errors=["quota"])
        await made.live(150)
        counted, truth = made.run_counts()
        assert counted == truth
        assert truth[flow, "failure"] >= 4
        letters = made.known.dead_letters
        assert sorted(letters) == letter_ids(made.true_letters())
        assert all(letter.tries == 1 for letter in letters.values())


async def test_a_failure_of_a_schedule_made_since_the_last_listing_is_decided_after_the_next() -> None:
    async with account() as made:
        flow = made.sim.add_workflow(every=None, scheduled=False)
        await made.sweep("workflows")
        made.sim.world.workflows[int(flow)].event_id = 99
        failed = made.sim.add_run(flow, started_at=NOW + 5, ended_at=NOW + 9, result="failure", error="auth")
        await made.clock.advance(60)
        await made.sweep()
        assert made.known.counts() == {(flow, "failure"): 1}
        assert made.known.dead_letters == {}
        await made.clock.advance(60)
        await made.sweep("workflows")
        await made.sweep()
        assert set(made.known.dead_letters) == {failed}


async def test_an_open_run_whose_flow_is_deleted_ends_as_unknown_after_a_while() -> None:
    async with account() as made:
        flow = made.sim.add_workflow(every=None)
        made.sim.add_run(flow, started_at=NOW - 10, ended_at=None, run_id=5)
        await made.sweep("workflows")
        await made.sweep()
        assert set(made.known.open_runs) == {"5"}
        made.sim.delete_workflow(flow)
        faults = await made.live(10)
        assert {fault.workflow_id for fault in faults} == {flow}
        assert set(made.known.open_runs) == {"5"}
        await made.live(2)
        assert made.known.open_runs == {}
        assert made.known.runs["5"].run.result is Result.UNKNOWN


@pytest.mark.parametrize("status", [500, 404])
async def test_a_flow_that_never_ran_is_no_fault(status: Literal[500, 404]) -> None:
    async with account(unknown_flow=status) as made:
        made.sim.add_workflow(every=None)
        assert await made.live(3) == []
        assert made.known.runs == {}


async def test_a_flow_that_ran_before_and_is_not_found_is_a_fault() -> None:
    async with account() as made:
        flow = made.sim.add_workflow(every=300, typical=5)
        await made.live(6)
        assert made.known.counts() != {}
        made.sim.delete_workflow(flow)
        faults = []
        for _ in range(6):
            await made.clock.advance(60)
            faults += await made.sweep()
        assert {(fault.kind, fault.workflow_id) for fault in faults} == {("unavailable", flow)}
        assert made.known.open_runs == {}


async def test_another_run_than_the_one_asked_for_is_not_taken_for_it() -> None:
    async with account() as made:
        flow = made.sim.add_workflow(every=None)
        wanted, other = (made.sim.add_run(flow, started_at=NOW - 9 + n, ended_at=NOW - 5 + n) for n in range(2))
        await made.sweep("workflows")
        find, world = made.sim.world.find_run, made.sim.world
        newest = find(world.workflows[int(flow)], NOW, run_id=None, message_id=None, status=None)
        world.find_run = lambda *args, **kwargs: newest  # type: ignore[method-assign]
        (fault,) = await made.known.complete(made.client, [RunKey(run_id=wanted, workflow_id=flow)], NOW)
        assert (fault.kind, fault.workflow_id) == ("bad_item", flow)
        assert made.known.runs == {}
        await made.known.complete(made.client, [RunKey(run_id=other, workflow_id=flow)], NOW)
        assert set(made.known.runs) == {other}


async def test_a_flow_left_out_by_its_name_is_not_asked_for_because_a_webhook_told_of_it() -> None:
    async with account(config={"exclude": ["secret*"]}) as made:
        flow = made.sim.add_workflow(name="secret one", every=None)
        await made.sweep("workflows")
        made.sim.add_run(flow, started_at=NOW + 5, ended_at=NOW + 9)
        await made.clock.advance(20)
        await made.deliver()
        assert set(made.known.workflows) == {flow}
        made.asked()
        await made.clock.advance(60)
        await made.sweep()
        assert made.sim.requests["GET /rest/v1/executions/{flowId}"] == 0


async def test_a_flow_that_cannot_be_read_costs_only_itself() -> None:
    async with account() as made:
        flows = [made.sim.add_workflow(every=None) for _ in range(3)]
        await made.sweep("workflows")
        for flow in flows:
            made.sim.add_run(flow, started_at=NOW + 5, ended_at=NOW + 9)
        await made.clock.advance(60)
        made.sim.fail_next("ok_html")
        (fault,) = await made.sweep()
        assert (fault.kind, fault.workflow_id) == ("bad_payload", flows[0])
        assert sum(made.known.counts().values()) == 2
        assert await made.live(1) == []
        assert sum(made.known.counts().values()) == 3


async def test_a_platform_that_is_down_is_not_asked_for_every_flow() -> None:
    async with account(workflows=40) as made:
        await made.sweep("workflows")
        made.sim.faults.unavailable = 1.0
        made.asked()
        with pytest.raises(ApiError) as caught:
            await made.sweep()
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        assert made.asked() == 3 * client.BROKEN_FLOWS_MAX
        made.sim.faults.unavailable = 0.0
        assert await made.sweep() == []
        assert {entry.run.workflow_id for entry in made.known.runs.values()} == set(made.known.workflows)


async def test_a_rate_limit_ends_the_sweep_and_keeps_what_was_read() -> None:
    async with account() as made:
        flows = [made.sim.add_workflow(every=None) for _ in range(3)]
        await made.sweep("workflows")
        for flow in flows:
            made.sim.add_run(flow, started_at=NOW + 5, ended_at=NOW + 9)
        await made.clock.advance(60)
        made.sim.faults.retry_after = 1
        made.sim.fail_next("slow", "rate_limited", "rate_limited", "rate_limited")
        with pytest.raises(ApiError) as caught:
            await made.sweep()
        assert caught.value.kind is ErrorKind.RATE_LIMITED
        assert made.known.counts() == {(flows[0], "success"): 1}
        assert await made.sweep() == []
        assert made.known.counts() == {(flow, "success"): 1 for flow in flows}


async def test_more_due_flows_than_fit_a_sweep_are_said_and_read_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FLOWS_PER_SWEEP_MAX", 5)
    monkeypatch.setattr(planning, "IDLE_FLOWS_PER_SWEEP_MIN", 2)
    async with account(workflows=12, history=7_200) as made:
        await made.sweep("workflows")
        kinds = [[fault.kind for fault in await made.sweep()] for _ in range(6)]
        assert kinds[:2] == [["truncated"], ["truncated"]]
        assert len({entry.run.workflow_id for entry in made.known.runs.values()}) == 12
