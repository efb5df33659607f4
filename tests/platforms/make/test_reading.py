"""The client of a Make source: limit and usage, scenarios and queues, refusals, and trying a config."""

from collections import Counter
from typing import Any

import pytest

from exporter.model import Blocked, Queue
from exporter.platforms.make.reading import calls, scenarios
from exporter.simulator.make.model import MakeOptions
from exporter.wire.errors import ApiError, ErrorKind
from tests.platforms.make.source import DAY, HOUR, STREAMS, T0, Source, source

ALL_RIGHTS = MakeOptions().scopes


def rights_without(*rights: str) -> tuple[str, ...]:
    return tuple(right for right in ALL_RIGHTS if right not in rights)


async def checked(made: Source) -> list[str]:
    return [str(line) async for line in made.client.check()]


# Limit and usage


async def test_the_organization_tells_the_limit_and_the_usage() -> None:
    async with source(workflows=6, api_limit=240) as made:
        assert await made.sweep("quota") == []
        assert made.api.budget.limit == 240
        used = sum(scenario.usage[int(T0 // 86_400)][0] for scenario in made.sim.world.scenarios.values())
        usage = made.known.usage
        assert (usage["operations"].used, usage["operations"].limit) == (used, 800_000)
        assert (usage["credits"].used, usage["credits"].limit) == (used, None)
        assert usage["transfer"].used


async def test_an_organization_that_cannot_be_read_is_a_fault_and_one_that_may_not_be_fails_the_sweep() -> None:
    async with source() as made:
        made.sim.fail_next("ok_html")
        (fault,) = await made.sweep("quota")
        assert fault.kind == "bad_payload"
        assert made.known.usage["credits"].used == 0
        made.set_option("scopes", rights_without("organizations:read"))
        with pytest.raises(ApiError) as refused:
            await made.sweep("quota")
        assert refused.value.kind is ErrorKind.AUTH
        await made.sweep("workflows", "runs", "dead_letters")


async def test_what_an_answer_leaves_out_does_not_unsay_what_was_known() -> None:
    async with source() as made:
        await made.sweep("quota")
        before = made.known.cursor("quota", "organization")
        assert before == {"id": "9", "run_seconds": 2400.0, "kept_seconds": 30 * DAY, "teams": {"77": "Operations"}}
        made.sim.teams.clear()
        await made.sweep("quota")
        assert made.known.cursor("quota", "organization") == before


# Scenarios


async def test_scenarios_carry_what_they_are_and_the_name_of_their_team() -> None:
    async with source() as made:
        timed = made.sim.add_workflow(name="Timed", interval=600.0)
        instant = made.sim.add_workflow(name="Instant", instant=True, team_id=78)
        await made.sweep()
        workflow = made.known.workflows[timed]
        assert (workflow.name, workflow.workspace, workflow.trigger) == ("Timed", "Operations", "schedule")
        assert (workflow.enabled, workflow.blocked, workflow.next_run_at) == (True, None, T0 + 600)
        assert (made.known.workflows[instant].workspace, made.known.workflows[instant].trigger) == (
            "Team 78",
            "webhook",
        )
        made.sim.rename_workflow(timed, "Renamed")
        made.sim.set_enabled(timed, False)
        made.sim.set_paused(True)
        await made.rounds(1)
        workflow = made.known.workflows[timed]
        assert (workflow.name, workflow.enabled, workflow.blocked) == ("Renamed", False, Blocked.PAUSED)


async def test_a_scenario_that_waits_after_an_error_is_paused_until_it_runs_again() -> None:
    async with source(feed=True) as made:
        workflow = made.sim.add_workflow(interval=60.0)
        made.sim.pause_workflow(workflow, 20, "[429] Too Many Requests")
        await made.sweep()
        assert made.known.workflows[workflow].blocked is Blocked.PAUSED
        await made.rounds(1, every=21 * 60.0)
        assert made.known.workflows[workflow].blocked is None


async def test_the_timeline_says_why_make_switched_a_scenario_off_and_nothing_of_what_a_person_did() -> None:
    async with source(feed=False) as made:
        spent, broken, off = (made.sim.add_workflow(interval=60.0) for _ in range(3))
        await made.sweep()
        made.sim.stop_workflow(spent, "The operations limit of the organization is exceeded.")
        made.sim.stop_workflow(broken, "Error: 404 Not Found")
        made.sim.set_enabled(off, False)
        await made.rounds(3)
        blocked = [made.known.workflows[workflow].blocked for workflow in (spent, broken, off)]
        assert blocked == [Blocked.QUOTA, Blocked.INVALID, None]
        made.restart()
        await made.rounds(1)
        assert made.known.workflows[spent].blocked is Blocked.QUOTA
        made.sim.set_enabled(spent, True)
        await made.rounds(3)
        assert made.known.workflows[spent].blocked is None


async def test_pages_of_scenarios_are_read_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenarios, "SCENARIOS_PER_PAGE", 10)
    async with source(workflows=25) as made:
        made.sim.faults.shifting_pages = 1.0
        await made.sweep("workflows")
        assert len(made.known.workflows) == 25
        assert made.asked()["GET /scenarios"] == 3


async def test_pages_may_be_shorter_than_asked_for() -> None:
    async with source(workflows=25, rows_max=7) as made:
        await made.sweep()
        assert len(made.known.workflows) == 25
        await made.rounds(5)
        assert made.known.counts() == made.true_counts()
        assert made.known.open_dead_letters() == made.sim.truth().open_dead_letters()


async def test_a_deleted_scenario_is_gone_after_a_while_and_not_when_a_listing_broke_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scenarios, "SCENARIOS_PER_PAGE", 3)
    async with source(workflows=7) as made:
        await made.sweep()
        for _ in range(4):
            await made.clock.advance(600)
            made.sim.fail_next("duplicates", "truncated")
            with pytest.raises(ApiError):
                await made.sweep("workflows")
        assert len(made.known.workflows) == 7
        made.sim.delete_workflow("5003")
        await made.rounds(3, every=600)
        assert sorted(made.known.workflows) == ["5001", "5002", "5004", "5005", "5006", "5007"]


async def test_a_listing_with_a_row_nobody_can_use_leaves_nothing_out() -> None:
    async with source(workflows=4) as made:
        await made.sweep()
        made.sim.world.scenarios[5003].id = -1
        for _ in range(3):
            await made.clock.advance(600)
            assert [fault.kind for fault in await made.sweep("workflows")] == ["bad_item"]
        assert sorted(made.known.workflows) == ["5001", "5002", "5003", "5004"]


async def test_only_scenarios_included_and_not_excluded_are_watched() -> None:
    names = ("Orders", "Orders test", "Invoices", "Else")
    async with source(config={"include": ["Orders*", "5003"], "exclude": ["*test"]}) as made:
        for name in names:
            made.sim.add_workflow(name=name)
        await made.sweep()
        assert sorted(made.known.workflows) == ["5001", "5003"]


async def test_teams_are_watched_instead_of_the_whole_organization() -> None:
    async with source(config={"team_ids": [77, 78]}) as made:
        workflows = [made.sim.add_workflow(team_id=team) for team in (77, 78, 79)]
        await made.sweep()
        for workflow in workflows:
            made.add_run(workflow, ended=20)
        assert await made.rounds(1) == []
        assert sorted(made.known.workflows) == workflows[:2]
        assert made.known.counts() == Counter({(workflows[0], "success"): 1, (workflows[1], "success"): 1})
        assert made.api.budget.limit == 1_000_000
        assert made.asked()["GET /teams/{id}"] == 1


# Queues


async def test_webhooks_are_queues_of_their_scenarios() -> None:
    async with source() as made:
        here, there = made.sim.add_workflow(instant=True), made.sim.add_workflow(instant=True, team_id=78)
        made.sim.add_workflow(team_id=79)
        made.sim.world.scenarios[int(there)].queue = 12
        await made.sweep()
        assert made.known.queues[here] == Queue(workflow_id=here, at=made.known.queues[here].at, items=0.0, limit=667.0)
        assert made.known.queues[there].items == 12.0
        assert made.asked()["GET /hooks"] == 2


async def test_webhooks_that_may_not_be_read_are_a_fault_now_and_tried_again_after_an_hour() -> None:
    async with source(scopes=rights_without("hooks:read")) as made:
        made.sim.add_workflow(instant=True)
        (fault,) = await made.sweep()
        assert fault.kind == "auth"
        assert await made.rounds(3) == []
        assert made.asked()["GET /hooks"] == 1
        await made.clock.advance(HOUR)
        assert len(await made.sweep()) == 1


# Refusals


@pytest.mark.parametrize("stream", STREAMS)
async def test_a_refused_token_fails_every_stream_and_is_not_shown(stream: str) -> None:
    async with source(workflows=3, config={"token": "wrong-token-value"}) as made:
        with pytest.raises(ApiError) as refused:
            await made.sweep(stream)
        assert refused.value.kind is ErrorKind.AUTH
        assert "wrong-token-value" not in str(refused.value)


async def test_a_missing_right_to_dead_letters_fails_their_stream_where_it_is_plain_and_no_other() -> None:
    async with source(scopes=rights_without("dlqs:read")) as made:
        for _ in range(calls.LOSSES_IN_A_ROW_MAX + 1):
            made.sim.add_dead_letter(made.sim.add_workflow())
        assert await made.sweep("quota", "workflows", "runs") == []
        with pytest.raises(ApiError) as refused:
            await made.sweep("dead_letters")
        assert refused.value.kind is ErrorKind.AUTH
        assert made.asked()["GET /dlqs"] == calls.LOSSES_IN_A_ROW_MAX


@pytest.mark.parametrize("stream", ["workflows", "runs", "dead_letters"])
async def test_a_limit_that_stays_used_up_fails_the_sweep(stream: str) -> None:
    async with source(workflows=3, feed=False) as made:
        await made.sweep()
        made.sim.faults.rate_limited_text = 1.0
        with pytest.raises(ApiError) as refused:
            await made.sweep(stream)
        assert refused.value.kind is ErrorKind.RATE_LIMITED


async def test_a_platform_that_is_down_is_not_asked_about_every_scenario() -> None:
    async with source(feed=False) as made:
        workflows = [made.sim.add_workflow() for _ in range(30)]
        await made.sweep()
        for workflow in workflows:
            made.add_run(workflow, ended=20)
        await made.clock.advance(60)
        made.asked()
        made.sim.fail_next("duplicates", *["unavailable"] * 1000)
        with pytest.raises(ApiError) as failed:
            await made.sweep("runs")
        assert failed.value.kind is ErrorKind.UNAVAILABLE
        assert made.asked()["GET /scenarios/{id}/logs"] == 3 * calls.LOSSES_IN_A_ROW_MAX


async def test_there_are_no_other_streams() -> None:
    async with source() as made:
        with pytest.raises(ValueError, match="no stream steps"):
            made.client.sweep("steps", made.known, T0)


# Trying a config


async def test_a_check_tells_what_works() -> None:
    async with source(workflows=6, api_limit=60) as made:
        assert await checked(made) == [
            "ok: credential accepted",
            "ok: dead letters may be retried",
            "eu1.make.com/organization 9",
            "ok: limit 60 requests a minute",
            "workflows: 6",
            "ok: runs are read from the feed across scenarios",
        ]


async def test_a_check_names_each_missing_right_and_what_will_be_missing() -> None:
    async with source(workflows=1, scopes=rights_without("dlqs:read", "hooks:read"), feed=False) as made:
        assert await checked(made) == [
            "ok: credential accepted",
            "problem: right dlqs:read is missing; dead letters of this source will not be seen",
            "problem: right hooks:read is missing; queues of webhooks will not be seen",
            "ok: dead letters may be retried",
            "eu1.make.com/organization 9",
            "ok: limit 1e+06 requests a minute",
            "workflows: 1",
            "ok: no feed across scenarios here; the logs of scenarios that ran are read one by one",
        ]


async def test_a_right_that_only_retries_need_is_no_problem_and_nobody_tries_it_out() -> None:
    async with source(workflows=1, scopes=rights_without("dlqs:write")) as made:
        lines = await checked(made)
        assert "note: right dlqs:write is missing; dead letters of this source cannot be retried" in lines
        assert not [line for line in lines if line.startswith("problem:")]
        assert not [endpoint for endpoint in made.asked() if endpoint.startswith("POST")]


async def test_the_right_to_replay_is_named_where_replay_is_on() -> None:
    async with source(workflows=1, config={"replay": True}, scopes=rights_without("scenarios:run")) as made:
        lines = await checked(made)
        assert "note: right scenarios:run is missing; replay is on, and no run of this source can be replayed" in lines
        assert not [endpoint for endpoint in made.asked() if endpoint.startswith("POST")]
    async with source(workflows=1, config={"replay": True}) as made:
        assert "ok: runs may be replayed" in await checked(made)
    async with source(workflows=1, scopes=rights_without("scenarios:run")) as made:
        assert not [line for line in await checked(made) if "replay" in line]


@pytest.mark.parametrize(
    ("options", "config", "problem"),
    [
        ({"api_limit": 0}, {}, "problem: the organization's license allows no requests to the API"),
        ({}, {"include": ["Nothing*"]}, "problem: no scenario is watched; see organization_id, team_ids, include and"),
        ({}, {"organization_id": 8}, "problem: GET /api/v2/organizations/{id}: 403 auth: Access denied.; the limit of"),
        ({}, {"team_ids": [5]}, "problem: GET /api/v2/teams/{id}: 403 auth: Access denied.; the limit of requests"),
    ],
)
async def test_a_check_finds_what_cannot_work(options: dict[str, Any], config: dict[str, Any], problem: str) -> None:
    async with source(workflows=2, config=config, **options) as made:
        assert any(line.startswith(problem) for line in await checked(made))


async def test_a_check_with_a_refused_token_fails() -> None:
    async with source(config={"token": "wrong"}) as made:
        with pytest.raises(ApiError) as refused:
            await checked(made)
        assert refused.value.kind is ErrorKind.AUTH


async def test_where_calls_are_dear_one_listing_serves_both_streams_that_need_it() -> None:
    listing = "GET /scenarios"
    async with source(config={"poll": {"budget_share": 1.0, "requests_per_minute": 30}}, api_limit=30) as made:
        workflow = made.sim.add_workflow()
        await made.sweep("workflows", "dead_letters")
        assert made.asked()[listing] == 1
        made.sim.add_dead_letter(workflow)
        await made.clock.advance(20)
        await made.sweep("dead_letters")  # the listing was used up
        assert made.known.open_dead_letters() == {workflow: 1}
        made.sim.rename_workflow(workflow, "renamed")
        await made.sweep("dead_letters", "workflows")  # never one's own, and the other's only while it is new
        assert made.asked()[listing] == 2
        await made.clock.advance(31)
        await made.sweep("workflows", "workflows")
        assert made.asked()[listing] == 2
        assert made.known.workflows[workflow].name == "renamed"


async def test_where_calls_are_cheap_each_stream_lists_for_itself() -> None:
    async with source(config={"poll": {"budget_share": 1.0, "requests_per_minute": 60}}, api_limit=60) as made:
        made.sim.add_workflow()
        await made.sweep("workflows", "dead_letters")
        assert made.asked()["GET /scenarios"] == 2
