"""The Etlworks client and a whole account: which flows it lists, how few requests it makes, how it logs in."""

from typing import Any, Literal

import pytest
from pydantic import ValidationError

from exporter.model import DeadLetterResolved, ResolvedBy
from exporter.platform import RunKey
from exporter.platforms.etlworks import PLATFORM
from exporter.platforms.etlworks.config import EtlworksConfig
from exporter.simulator.core import Faults
from exporter.wire.errors import ApiError, ErrorKind
from tests.platforms.etlworks.account import ISSUE, NOW, account, as_request

LOGIN = {"token": None, "login": "demo", "password": "demo-password"}


# --- Flows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paging", [False, True])
async def test_flows_are_listed_whole_and_a_deleted_one_is_gone_after_two_listings(paging: bool) -> None:
    async with account(workflows=450, paging=paging, history=0) as made:
        assert await made.sweep("workflows") == []
        assert made.asked() == (3 + 2 if paging else 2)
        assert len(made.known.workflows) == 450
        listener, scheduled = made.known.workflows["1005"], made.known.workflows["1001"]
        assert (listener.trigger, listener.enabled) == (None, None)
        assert (scheduled.trigger, scheduled.enabled) == ("schedule", True)
        made.sim.delete_workflow("1007")
        made.sim.rename_workflow("1001", "other name")
        made.sim.set_enabled("1002", False)
        for _ in range(2):
            await made.clock.advance(1_000)
            assert await made.sweep("workflows") == []
        assert set(made.known.workflows) == {str(n) for n in range(1001, 1451)} - {"1007"}
        assert made.known.workflows["1001"].name == "other name"
        assert made.known.workflows["1002"].enabled is False
        assert made.known.cursor("workflows", "1007") is None


async def test_pages_that_shift_or_repeat_hide_no_flow_and_make_none_gone() -> None:
    faults = Faults(shifting_pages=1.0, duplicates=0.3)
    async with account(workflows=450, paging=True, history=0, faults=faults) as made:
        for _ in range(5):
            await made.sweep("workflows")
            await made.clock.advance(1_000)
        assert len(made.known.workflows) == 450


async def test_a_flow_that_cannot_be_read_in_a_listing_costs_itself_only() -> None:
    async with account(workflows=3) as made:
        made.sim.fail_next("slow", "missing_fields")
        assert await made.sweep("workflows") == []
        assert len(made.known.workflows) == 3


async def test_without_the_schedules_what_was_known_of_them_goes_on_to_hold() -> None:
    async with account(workflows=3) as made:
        await made.sweep("workflows")
        before = {key: (w.enabled, w.trigger) for key, w in made.known.workflows.items()}
        await made.clock.advance(600)
        made.sim.fail_next("ok_html")
        (fault,) = await made.sweep("workflows")
        assert (fault.kind, fault.workflow_id) == ("bad_payload", None)
        assert {key: (w.enabled, w.trigger) for key, w in made.known.workflows.items()} == before


async def test_the_next_start_is_kept_current_by_the_sweeps_of_the_runs() -> None:
    async with account() as made:
        flow = made.sim.add_workflow(every=300, typical=5)
        await made.sweep("workflows")
        told = set()
        for _ in range(20):
            await made.clock.advance(60)
            await made.sweep()
            next_run_at = made.known.workflows[flow].next_run_at
            assert next_run_at is not None
            assert 0 < next_run_at - made.clock.now() <= 300
            told.add(next_run_at)
        starts = {run.queued_at for run in made.sim.world.runs.values()}
        assert starts - told <= {min(starts)}


async def test_only_the_flows_that_are_wanted_are_read() -> None:
    for config, expected in (
        ({"include": ["a*", "3"]}, {"1", "3"}),
        ({"exclude": ["a*"]}, {"2", "3"}),
        ({"flows": [1, "2"]}, {"1", "2"}),
        ({"flows": [1, 2], "exclude": ["2"]}, {"1"}),
    ):
        async with account(config=config) as made:
            for number, name in ((1, "a one"), (2, "b two"), (3, "b three")):
                made.sim.add_workflow(number, name, every=None)
                made.sim.add_run(number, started_at=NOW - 9, ended_at=NOW - 5)
            assert await made.live(2) == []
            assert set(made.known.workflows) == expected
            assert {entry.run.workflow_id for entry in made.known.runs.values()} == expected
            keys = [RunKey(run_id="80001", workflow_id="1"), RunKey(run_id="80003", workflow_id="3")]
            await made.known.complete(made.client, keys, made.clock.now())
            assert {entry.run.workflow_id for entry in made.known.runs.values()} == expected


async def test_a_flow_that_was_named_and_does_not_exist_is_a_fault() -> None:
    async with account(config={"flows": [1, 77]}, unknown_flow=404) as made:
        made.sim.add_workflow(1, every=None)
        (fault,) = await made.sweep("workflows")
        assert (fault.kind, fault.workflow_id) == ("not_found", "77")
        assert set(made.known.workflows) == {"1"}


@pytest.mark.parametrize(("status", "left"), [(404, {"1"}), (500, {"1", "2"})])
async def test_a_named_flow_is_gone_when_it_is_not_found_and_not_when_it_may_be_an_error(
    status: Literal[500, 404], left: set[str]
) -> None:
    async with account(config={"flows": [1, 2]}, unknown_flow=status) as made:
        for number in (1, 2):
            made.sim.add_workflow(number, every=None)
        await made.sweep("workflows")
        made.sim.delete_workflow(2)
        for _ in range(3):
            await made.clock.advance(1_000)
            (fault,) = await made.sweep("workflows")
            assert fault.workflow_id == "2"
        assert set(made.known.workflows) == left


async def test_dead_letters_of_a_flow_that_is_gone_are_closed_after_a_look() -> None:
    async with account() as made:
        flow, other = made.sim.add_workflow(every=None), made.sim.add_workflow(every=None)
        await made.sweep("workflows")
        for workflow_id in (flow, other):
            made.sim.add_run(workflow_id, started_at=NOW + 5, ended_at=NOW + 9, result="failure")
        await made.live(2)
        made.sim.delete_workflow(flow)
        await made.live(1)
        assert made.known.open_dead_letters() == {flow: 1, other: 1}
        assert made.sim.requests["GET /rest/v1/flows/{flowId}"] == 0  # missing once is not gone
        await made.live(35)
        assert set(made.known.cursors("runs")) == {other}
        assert made.known.open_dead_letters() == {other: 1} == made.sim.truth().open_dead_letters()
        (resolved,) = [c for c in made.known.changes if isinstance(c, DeadLetterResolved)]
        assert resolved.by is ResolvedBy.MANUAL


# --- Few requests ---------------------------------------------------------------------------------------------------


async def test_of_a_thousand_flows_those_that_ran_are_read_at_once_and_the_rest_as_far_as_a_sweep_reaches() -> None:
    async with account(paging=True, cancel_seconds=200) as made:
        for _ in range(1_000):
            made.sim.add_workflow(every=3_000, typical=20, failing=0.1)
        await made.clock.advance(3_100)
        await made.sweep("workflows")
        assert made.asked() <= 30
        while any(fault.kind == "truncated" for fault in await made.sweep()):
            pass
        await made.live(2)
        active_in_all = 0
        for _ in range(20):
            since = made.clock.now()
            await made.clock.advance(60)
            made.asked()
            assert await made.sweep() == []
            now = made.clock.now()
            active = {
                r.workflow.id
                for r in made.sim.world.runs.values()
                if r.queued_at <= now and (r.ended_at or now) > since
            }
            assert made.asked() <= 300 + 10
            active_in_all += len(active)
        assert 15 <= active_in_all / 20 <= 40
        counted, truth = made.run_counts()
        assert counted == truth
        assert sum(truth.values()) > 400


async def test_flows_without_a_schedule_take_turns_and_each_gets_its_own() -> None:
    async with account(per_minute=12) as made:
        flows = {made.sim.add_workflow(every=None, scheduled=False) for _ in range(23)}
        await made.live(4)
        for flow in flows:
            made.sim.add_run(flow, started_at=made.clock.now() + 1, ended_at=made.clock.now() + 2)
        made.asked()
        await made.live(3)
        assert 23 <= made.asked() <= 3 * 12 + 2
        assert made.known.counts() == {(flow, "success"): 1 for flow in flows}


# --- Credentials ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("credential", [{"token": "wrong"}, {**LOGIN, "password": "wrong"}])
async def test_a_refused_credential_fails_every_sweep(credential: dict[str, Any]) -> None:
    async with account(workflows=3, config=credential) as made:
        for stream in ("workflows", "runs"):
            with pytest.raises(ApiError) as caught:
                await made.sweep(stream)
            assert caught.value.kind is ErrorKind.AUTH
            assert "wrong" not in str(caught.value)
        with pytest.raises(ApiError, match="auth"):
            [line async for line in made.client.check()]
    async with account(workflows=3) as made:
        await made.sweep("workflows")
        made.config = made.config.model_copy(update={"token": EtlworksConfig.model_validate(
            {"platform": "etlworks", "url": "http://a", "token": "wrong"}).token})  # fmt: skip
        await made.restart()
        with pytest.raises(ApiError) as caught:
            await made.sweep()
        assert (caught.value.kind, made.codes["401"]) == (ErrorKind.AUTH, 1)


async def test_a_login_buys_a_token_anew_before_it_expires() -> None:
    async with account(workflows=3, config=LOGIN, token_seconds=300) as made:
        assert await made.live(60) == []
        assert made.codes["401"] == 0
        assert 14 <= made.sim.requests[ISSUE] <= 16


async def test_a_token_that_is_refused_early_is_replaced_once() -> None:
    async with account(workflows=3, config=LOGIN) as made:
        await made.sweep("workflows")
        made.sim._api._tokens._secret = b"another secret"  # every token issued so far is worthless now
        assert await made.sweep() == []
        assert (made.codes["401"], made.sim.requests[ISSUE]) == (1, 2)


async def test_check_tells_what_works() -> None:
    async with account(workflows=3, config=LOGIN) as made:
        lines = [line async for line in made.client.check()]
    assert lines == [
        "ok: credential accepted",
        "workflows: 3",
        "ok: schedules can be read (3)",
        "ok: executions can be read",
        "ok: the node is UP",
    ]


async def test_check_names_what_does_not_work() -> None:
    async with account(workflows=3) as made:
        made.sim.fail_next("slow", "ok_html", "ok_html")
        lines = [str(line) async for line in made.client.check()]
    problems = [line for line in lines if line.startswith("problem:")]
    assert [problem.split(";")[1].strip() for problem in problems] == [
        "dead letters of scheduled flows will not be seen",
        "runs of this source will not be seen",
    ]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, "give token, or login and password"),
        ({"login": "a"}, "give token, or login and password"),
        ({"token": "t", "login": "a", "password": "p"}, "not both"),
        ({"token": "t", "flows": ["12x"]}, "flows"),
        ({"token": "t", "colour": "red"}, "colour"),
    ],
)
def test_a_section_needs_exactly_one_credential_and_ids_of_flows(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        EtlworksConfig.model_validate({"platform": "etlworks", "url": "https://app.etlworks.com", **fields})


def test_ids_of_flows_may_be_written_as_numbers() -> None:
    section = {"platform": "etlworks", "url": "https://app.etlworks.com", "token": "t", "flows": [1234, "1235"]}
    assert EtlworksConfig.model_validate(section).flows == ["1234", "1235"]


async def test_every_webhook_the_simulator_sends_is_understood() -> None:
    async with account(workflows=6, webhook_events=("Flow.Executed", "Flow.Created")) as made:
        made.sim.add_workflow()
        await made.clock.advance(1_800)
        told = [PLATFORM.receive(as_request(d, made.clock.now())) for d in made.sim.take_deliveries()]
    assert sum(len(events.observations) for events in told) > 20
    assert [name for events in told for name in events.unknown_types] == ["Flow.Created"]
