"""The simulated Make keeps its promises: a world fixed by its seed, Make's documented API, its faults, its webhooks."""

from collections.abc import Callable
from typing import Any

import orjson
import pytest

from exporter.clock import ManualClock
from exporter.simulator.core import Faults, Truth
from exporter.simulator.make import MakeSimulator
from tests.simulator.make_client import T0, Json, epoch, executions, ms, serving

# The world


def test_the_same_seed_gives_the_same_world_in_one_step_or_in_many() -> None:
    def world(seed: int, steps: int) -> tuple[Truth, list[Any]]:
        sim = MakeSimulator(clock=ManualClock(T0), seed=seed, workflows=12)
        for step in range(1, steps + 1):
            sim.advance(T0 + 20_000 * step / steps)
        return sim.truth(), sim.take_deliveries()

    assert world(7, 1) == world(7, 333)
    assert world(7, 1) != world(8, 1)


async def test_reading_the_api_changes_nothing_in_the_world() -> None:
    undisturbed = MakeSimulator(clock=ManualClock(T0), workflows=6)
    async with serving(workflows=6, faults=Faults(missing_fields=0.3, duplicates=0.3)) as api:
        for _ in range(20):
            await api.clock.advance(500)
            for scenario in (await api.get("/scenarios", organizationId="9"))["scenarios"]:
                await api.get(f"/scenarios/{scenario['id']}/logs")
                await api.get("/dlqs", scenarioId=str(scenario["id"]))
        undisturbed.advance(api.clock.now())
        assert api.sim.truth() == undisturbed.truth()
        assert api.sim.truth().dead_letters  # the comparison covered retries too


def test_the_world_has_a_past_that_has_ended_and_announces_none_of_it() -> None:
    sim = MakeSimulator(clock=ManualClock(T0), workflows=6)
    ends = [run.ended_at for run in sim.truth().runs]
    assert min(ends) < T0 - 6000
    assert max(ends) <= T0
    assert sim.take_deliveries() == []


async def test_the_logs_tell_exactly_what_happened() -> None:
    async with serving(workflows=4, inline_errors=1.0) as api:
        shown = {}
        for scenario in (await api.get("/scenarios", organizationId="9"))["scenarios"]:
            page = await api.get(f"/scenarios/{scenario['id']}/logs", {"pg[limit]": "5000"})
            for row in executions(page["scenarioLogs"]):
                result = {1: "success", 2: "warning", 3: "failure"}[row["status"]]
                start = ms(epoch(row["timestamp"]))
                assert row["imtId"] == f"{start}_{row['id']}"
                assert ("error" in row) == (result == "failure") == ("parent" not in row)
                end = ms(epoch(row["endedAt"]))
                assert row["duration"] == 0 or 2 <= end - start - row["duration"] <= 4
                shown[row["id"]] = (str(scenario["id"]), result, start, end)
        truth = {r.run_id: (r.workflow_id, r.result, ms(r.started_at), ms(r.ended_at)) for r in api.sim.truth().runs}
        assert shown == truth
        assert len(truth) > 100


# Access and the limit


@pytest.mark.parametrize("authorization", [None, "Token wrong", "demo-token", "Basic demo-token"])
async def test_without_the_right_token_every_answer_is_401_in_makes_envelope(authorization: str | None) -> None:
    async with serving() as api:
        api.authorization = authorization
        answer = await api.call("GET", "/scenarios", organizationId="9")
        assert answer.status == 401
        assert answer.json.keys() == {"detail", "message", "code"}
        assert (await api.call("GET", "/ping")).text == "pong"


async def test_a_token_without_the_scope_is_refused_with_403_and_tells_its_scopes() -> None:
    async with serving(scopes=("scenarios:read",)) as api:
        workflow = api.sim.add_workflow()
        answer = await api.call("GET", "/dlqs", scenarioId=workflow)
        assert (answer.status, answer.json["code"]) == (403, "SC403")
        authorization = (await api.get("/users/me/current-authorization"))["authorization"]
        assert authorization == {"authUsed": "token", "scope": ["scenarios:read"]}


async def test_beyond_the_limit_the_answer_is_429_in_plain_text_until_the_minute_is_over() -> None:
    async with serving(enforce_limit=True, api_limit=3) as api:
        await api.clock.advance(60 - api.clock.now() % 60)  # a minute begins
        organization = (await api.get("/organizations/9"))["organization"]
        assert organization["license"]["apiLimit"] == 3
        statuses = [(await api.call("GET", "/users/me")).status for _ in range(3)]
        assert statuses == [200, 200, 429]
        await api.clock.advance(59)
        refused = await api.call("GET", "/users/me")
        assert (refused.status, refused.kind) == (429, "text/plain")
        assert refused.text == "Requests limit for organization exceeded, please try again later."
        await api.clock.advance(1)
        assert (await api.call("GET", "/users/me")).status == 200


async def test_answers_carry_the_worlds_time_and_are_counted_by_template() -> None:
    async with serving() as api:
        workflow = api.sim.add_workflow()
        answer = await api.call("GET", f"/scenarios/{workflow}/logs")
        assert answer.date == "Tue, 14 Nov 2023 22:13:20 GMT"
        assert api.sim.requests == {"GET /api/v2/scenarios/{id}/logs": 1}
        missing = await api.call("GET", "/scenarios/1/logs")
        assert (missing.status, missing.json["code"]) == (404, "SC404")
        assert (await api.call("GET", "/nothing/here")).status == 404


# Faults


@pytest.mark.parametrize(
    ("fault", "status", "kind"),
    [
        ("rate_limited", 429, "application/json"),
        ("rate_limited_text", 429, "text/plain"),
        ("unavailable", 503, "application/json"),
        ("server_error_html", 502, "text/html"),
        ("ok_html", 200, "text/html"),
        ("truncated", 200, "application/json"),
    ],
)
async def test_a_queued_fault_hits_exactly_the_next_request(fault: str, status: int, kind: str) -> None:
    async with serving(workflows=1) as api:
        api.sim.fail_next(fault)
        broken = await api.call("GET", "/scenarios", organizationId="9")
        assert (broken.status, broken.kind) == (status, kind)
        if status == 200:
            with pytest.raises(orjson.JSONDecodeError):
                _ = broken.json
        assert len((await api.get("/scenarios", organizationId="9"))["scenarios"]) == 1


Damage = Callable[[list[Json]], bool]


@pytest.mark.parametrize(
    ("fault", "damaged"),
    [
        ("missing_fields", lambda rows: all("eventType" not in row and "centicredits" not in row for row in rows)),
        ("null_numbers", lambda rows: all(row["duration"] is None and row["id"] for row in rows)),
        ("unknown_status", lambda rows: all(row["status"] == 7 for row in rows)),
        ("duplicates", lambda rows: [row["id"] for row in rows[::2]] == [row["id"] for row in rows[1::2]]),
    ],
)
async def test_faulty_items_damage_what_is_shown_and_not_what_happened(fault: str, damaged: Damage) -> None:
    async with serving() as api:
        workflow = api.sim.add_workflow()
        for n in range(3):
            api.sim.add_run(workflow, started_at=T0 - 60 * n - 9, ended_at=T0 - 60 * n, result="success")
        path = f"/scenarios/{workflow}/logs"
        truth, exact = api.sim.truth(), (await api.get(path))["scenarioLogs"]
        assert len(exact) == 3
        assert not damaged(exact)
        api.sim.fail_next(fault)
        assert damaged((await api.get(path))["scenarioLogs"])
        setattr(api.sim.faults, fault, 1.0)
        assert damaged((await api.get(path))["scenarioLogs"])
        setattr(api.sim.faults, fault, 0.0)
        assert (await api.get(path))["scenarioLogs"] == exact
        assert api.sim.truth() == truth


async def test_a_shifted_page_repeats_the_last_item_of_the_page_before() -> None:
    async with serving(workflows=5) as api:
        query = {"organizationId": "9", "pg[sortBy]": "id", "pg[limit]": "2", "pg[offset]": "2"}
        straight = [s["id"] for s in (await api.get("/scenarios", query))["scenarios"]]
        api.sim.fail_next("shifting_pages")
        shifted = [s["id"] for s in (await api.get("/scenarios", query))["scenarios"]]
        assert (straight, shifted) == ([5003, 5004], [5002, 5003])


async def test_faults_and_truth_are_open_to_whoever_runs_the_simulator() -> None:
    async with serving(workflows=2) as api:
        api.authorization = None
        set_ = await api.call("POST", "/faults", {"unavailable": 1, "retry_after": None}, prefix="/_sim")
        assert set_.status == 200
        assert (await api.call("GET", "/users/me")).status == 503
        assert (await api.call("POST", "/faults", {"no_such": 1}, prefix="/_sim")).status == 400
        assert (await api.call("POST", "/faults", {"slow": "x"}, prefix="/_sim")).status == 400
        truth = (await api.call("GET", "/truth", prefix="/_sim")).json
        assert len(truth["runs"]) == len(api.sim.truth().runs)
        assert api.sim.requests == {"GET /api/v2/users/me": 1}


# Organization, scenarios, usage


async def test_the_organization_shows_counters_as_text_and_its_teams() -> None:
    async with serving(workflows=3) as api:
        api.sim.add_workflow(team_id=78)
        organization = (await api.get("/organizations/9"))["organization"]
        used = (await api.get("/scenarios/consumptions", organizationId="9"))["scenarioConsumptions"]
        assert organization["operations"] == str(sum(c["operations"] for c in used))
        assert int(organization["operations"]) > 0
        teams = (await api.get("/teams", organizationId="9"))["teams"]
        assert [t["id"] for t in teams] == [77, 78] == [t["id"] for t in organization["teams"]]
        assert (await api.get("/teams/78"))["team"] == teams[1]
        assert (await api.call("GET", "/teams/79")).status == 403
        assert (await api.call("GET", "/organizations/10")).status == 403
        daily = (await api.get("/organizations/9/usage"))["data"]
        assert sum(day["operations"] for day in daily) == int(organization["operations"])


async def test_scenarios_are_listed_for_exactly_one_of_team_and_organization() -> None:
    async with serving(workflows=2) as api:
        api.sim.add_workflow("6000", team_id=78)
        both = await api.call("GET", "/scenarios", organizationId="9", teamId="77")
        assert (both.status, both.json["detail"]) == (400, "teamId and organizationId cannot be used together")
        assert (await api.call("GET", "/scenarios")).status == 400
        assert (await api.call("GET", "/scenarios", teamId="5")).status == 403
        assert [s["id"] for s in (await api.get("/scenarios", teamId="78"))["scenarios"]] == [6000]
        assert len((await api.get("/scenarios", organizationId="9"))["scenarios"]) == 3


async def test_a_listing_of_scenarios_is_paged_filtered_and_cut_to_columns() -> None:
    async with serving(workflows=1000, history=60.0) as api:
        query = {"organizationId": "9", "pg[limit]": "400", "pg[offset]": "800", "cols[]": "id"}
        page = await api.get("/scenarios", query)
        assert page["scenarios"] == [{"id": i} for i in range(5801, 6001)]
        assert (page["pg"]["limit"], page["pg"]["offset"]) == (400, 800)
        assert len((await api.get("/scenarios", organizationId="9"))["scenarios"]) == 500
        api.sim.set_enabled("5007", False)
        off = (await api.get("/scenarios", organizationId="9", isActive="false"))["scenarios"]
        assert 5007 in [s["id"] for s in off]
        assert (await api.call("GET", "/scenarios", organizationId="9", **{"pg[limit]": "many"})).status == 400


async def test_renamed_deleted_and_paused_scenarios_look_like_it() -> None:
    async with serving() as api:
        workflow = api.sim.add_workflow(name="Before", interval=600.0)
        row = await api.scenario(workflow)
        assert (row["name"], row["isActive"], row["scheduling"]["interval"]) == ("Before", True, 600)
        assert epoch(row["nextExec"]) == T0 + 600
        api.sim.rename_workflow(workflow, "After")
        api.sim.set_paused(True)
        row = await api.scenario(workflow)
        assert (row["name"], row["isPaused"], row["nextExec"]) == ("After", True, None)
        await api.clock.advance(1200)
        assert api.sim.truth().runs == []
        api.sim.set_paused(False)
        dead_letter = api.sim.add_dead_letter(workflow)
        api.sim.delete_workflow(workflow)
        await api.clock.advance(1200)
        assert (await api.call("GET", f"/scenarios/{workflow}")).status == 404
        assert (await api.call("GET", f"/dlqs/{dead_letter}")).status == 404
        assert (await api.call("GET", "/dlqs", scenarioId=workflow)).status == 404
        assert api.sim.truth().open_dead_letters() == {}


# Executions


async def test_log_rows_are_of_two_kinds_and_only_executions_have_a_status() -> None:
    async with serving() as api:
        workflow = api.sim.add_workflow()
        run = api.sim.add_run(workflow, started_at=T0 - 50, ended_at=T0 - 10, result="failure", error="DataError")
        api.sim.set_enabled(workflow, False)
        event, twin, row = (await api.get(f"/scenarios/{workflow}/logs"))["scenarioLogs"]
        assert (event["type"], event["authorName"]) == ("stop", "Operator")
        assert twin["imtId"].endswith("_undefined")
        assert (twin["detail"]["reason"], "id" in twin) == (row["error"]["message"], False)
        for told in (event, twin):
            assert told.keys().isdisjoint({"status", "eventType", "duration"})
        assert (row["id"], row["eventType"], row["type"]) == (run, "EXECUTION_END", "auto")
        assert 39_996 <= row["duration"] <= 39_998
        assert (row["status"], row["isReplayable"]) == (3, True)
        single = (await api.get(f"/scenarios/{workflow}/logs/{run}"))["scenarioLog"]
        assert {**single, "authorName": None} == {"@kindId": 1, "@scenarioId": int(workflow), **row}
        assert "authorName" not in single
        refused = await api.call("GET", f"/scenarios/{workflow}/logs/{event['id']}")
        assert (refused.status, refused.json["detail"]) == (400, "Validation failed for 1 parameter(s).")
        assert "executionId" in refused.json["suberrors"][0]["message"]
        assert (await api.get(f"/scenarios/{workflow}/logs", status="3"))["scenarioLogs"] == [row]
        assert (await api.get(f"/scenarios/{workflow}/logs", status="1"))["scenarioLogs"] == []


async def test_logs_are_filtered_by_the_milliseconds_of_their_start() -> None:
    async with serving() as api:
        workflow = api.sim.add_workflow()
        runs = [
            api.sim.add_run(workflow, started_at=T0 - 100 * n, ended_at=T0 - 100 * n + 5, result="success")
            for n in (3, 2, 1)
        ]
        path = f"/scenarios/{workflow}/logs"
        window = {"from": str(ms(T0 - 200)), "to": str(ms(T0 - 100) - 1)}
        assert [row["id"] for row in (await api.get(path, window))["scenarioLogs"]] == [runs[1]]
        since = await api.get(path, {"from": str(ms(T0 - 200))})
        assert [row["id"] for row in since["scenarioLogs"]] == [runs[2], runs[1]]


async def test_logs_are_filtered_by_how_long_a_run_took() -> None:
    async with serving() as api:
        workflow = api.sim.add_workflow()
        api.sim.rename_workflow(workflow, "with a timeline event")
        for seconds in (5, 60, 61):
            api.sim.add_run(workflow, started_at=T0 - 100, ended_at=T0 - 100 + seconds, result="success")
        api.sim.add_run(workflow, started_at=T0 - 100, ended_at=None, result="success")
        rows = (await api.get(f"/scenarios/{workflow}/logs", durationFrom="60000"))["scenarioLogs"]
        assert [round(row["duration"] / 1000) for row in rows] == [61]  # that of 60 s took some milliseconds less


async def test_pages_by_pg_last_lose_and_repeat_nothing_while_new_runs_come_in() -> None:
    async with serving(workflows=1) as api:
        path = "/scenarios/5001/logs"
        expected = [row["id"] for row in (await api.get(path, {"pg[limit]": "5000"}))["scenarioLogs"]]
        assert len(expected) > 20
        seen: list[str] = []
        query = {"pg[limit]": "7"}
        while True:
            page = await api.get(path, query)
            seen += [row["id"] for row in page["scenarioLogs"]]
            assert "offset" not in page["pg"]
            assert len(seen) <= len(expected)
            if len(page["scenarioLogs"]) < 7:
                break
            query["pg[last]"] = page["pg"]["last"]
            await api.clock.advance(300)
        assert seen == expected


async def test_a_run_is_listed_when_it_ends_under_its_old_start_and_its_detail_follows_after_a_moment() -> None:
    async with serving(detail_delay=3.0) as api:
        workflow = api.sim.add_workflow()
        run = api.sim.add_run(workflow, started_at=T0 + 10, ended_at=T0 + 500, result="failure", error="RateLimitError")
        logs, detail = f"/scenarios/{workflow}/logs", f"/scenarios/{workflow}/executions/{run}"
        assert (await api.call("GET", detail)).status == 404
        await api.clock.advance(300)
        assert await api.get(detail) == {"status": "RUNNING"}
        assert (await api.get(logs))["scenarioLogs"] == []
        assert (await api.call("GET", f"{logs}/{run}")).status == 404
        assert api.sim.truth().runs == []
        await api.clock.advance(200)
        (row,) = (await api.get(logs))["scenarioLogs"]
        assert epoch(row["timestamp"]) == T0 + 10
        assert (await api.call("GET", detail)).status == 404
        await api.clock.advance(3)
        answer = await api.get(detail)
        assert (answer["status"], answer["error"]["name"]) == ("ERROR", "RateLimitError")
        (true_run,) = api.sim.truth().runs
        assert (true_run.started_at, true_run.ended_at) == (T0 + 10, T0 + 500)
        assert (true_run.result, true_run.error_class) == ("failure", "throttled")


async def test_zones_differ_in_what_log_rows_show() -> None:
    async with serving(pending_rows=True, short_imt_ids=False, text_counters=True) as api:
        workflow = api.sim.add_workflow()
        done = api.sim.add_run(workflow, started_at=T0 - 9, ended_at=T0 - 1, result="warning")
        running = api.sim.add_run(workflow, started_at=T0 - 5, ended_at=T0 + 60, result="success")
        rows = {row["id"]: row for row in (await api.get(f"/scenarios/{workflow}/logs"))["scenarioLogs"]}
        assert (rows[running]["status"], "duration" in rows[running]) == (0, False)
        assert rows[done]["imtId"] == f"{ms(T0 - 9)}_scenario.{workflow}.auto.{done}"
        assert rows[done]["centicredits"] == "100"


async def test_only_a_share_of_failed_rows_carries_its_error() -> None:
    async with serving(inline_errors=0.5) as api:
        workflow = api.sim.add_workflow()
        for n in range(40):
            api.sim.add_run(workflow, started_at=T0 - n - 1, ended_at=T0 - n, result="failure")
        rows = executions((await api.get(f"/scenarios/{workflow}/logs", {"pg[limit]": "500"}))["scenarioLogs"])
        assert len(rows) == 40
        assert 8 < sum("error" in row for row in rows) < 32


async def test_the_feed_tells_all_executions_by_their_end_after_since() -> None:
    async with serving(workflows=5) as api:
        feed: list[Json] = []
        since = "2000-01-01T00:00:00.000Z"
        while page := (await api.get("/scenarios/logs", {"since": since, "pg[limit]": "1000"}))["scenarioLogs"]:
            assert len(page) <= 200
            feed += page
            assert len(feed) < 5000  # the cursor moves
            since = page[-1]["endedAt"]
        told = [(str(row["scenarioId"]), row["id"], epoch(row["endedAt"])) for row in feed]
        assert told == [(r.workflow_id, r.run_id, r.ended_at) for r in api.sim.truth().runs]
        steps = (await api.get(f"/scenarios/{told[0][0]}/logs/{told[0][1]}/p", include="events"))["events"]
        assert epoch(steps[-1]["at"]) == pytest.approx(told[0][2], abs=0.002)
    async with serving(workflows=1, feed=False) as api:
        assert (await api.call("GET", "/scenarios/logs")).status == 404


@pytest.mark.parametrize("status", [404, 403])
async def test_a_zone_may_have_no_module_events(status: int) -> None:
    async with serving(workflows=1, module_events=status) as api:
        run = api.sim.truth().runs[0].run_id
        assert (await api.call("GET", f"/scenarios/5001/logs/{run}/p")).status == status


async def test_module_events_tell_each_module_of_a_run_in_order_and_what_became_of_it() -> None:
    async with serving(workflows=12) as api:
        again, endless = 0, 0
        for run in api.sim.truth().runs:
            path = f"/scenarios/{run.workflow_id}/logs/{run.run_id}/p"
            answer = await api.get(path, include="blueprint,events")
            assert all(":" in module["module"] for module in answer["blueprint"]["modules"])
            events = answer["events"][1:]
            starts = [e["moduleId"] for e in events if e["kind"] == "MODULE_START"]
            ends = [e["status"] for e in events if e["kind"] == "MODULE_END"]
            assert starts == sorted(starts)
            assert [e["at"] for e in events] == sorted(e["at"] for e in events)
            assert set(ends[:-1]) <= {1}
            again += len(starts) > len(set(starts))
            endless += len(ends) < len(starts)
            assert (run.result == "success") == (len(ends) == len(starts) and set(ends) == {1})
        assert again
        assert endless


async def test_an_item_that_nobody_treats_is_lost_and_only_the_number_of_all_remembers_it() -> None:
    async with serving(dead_letters_kept=1000.0) as api:
        workflow = api.sim.add_workflow()
        item = api.sim.add_dead_letter(workflow)
        row = await api.scenario(workflow)
        assert (row["dlqCount"], row["allDlqCount"]) == (1, 1)
        await api.clock.advance(1001)
        row = await api.scenario(workflow)
        assert (row["dlqCount"], row["allDlqCount"]) == (0, 1)
        assert (await api.call("GET", f"/dlqs/{item}")).status == 404
        assert (await api.get("/dlqs", scenarioId=workflow))["dlqs"] == []


async def test_a_replay_runs_the_scenario_again_and_names_the_run_it_replays() -> None:
    async with serving() as api:
        workflow = api.sim.add_workflow(duration=5.0)
        failed = api.sim.add_run(workflow, started_at=T0 - 50, ended_at=T0 - 10, result="failure")
        trigger = api.sim.add_run(workflow, started_at=T0 - 40, ended_at=T0 - 9, result="failure", trigger=True)
        path = f"/scenarios/{workflow}/replay"
        answer = await api.call("POST", path, {"executionIds": [failed]})
        assert (answer.status, answer.text) == (202, "")
        for refused in (trigger, "0" * 32):
            assert (await api.call("POST", path, {"executionIds": [refused]})).status == 404
        await api.clock.advance(120)
        rows = executions((await api.get(f"/scenarios/{workflow}/logs"))["scenarioLogs"])
        assert [row["replayOfExecutionId"] for row in rows] == [failed, None, None]
        assert [row["isReplayable"] for row in rows] == [True, False, True]
        api.sim.set_enabled(workflow, False)
        assert (await api.call("POST", path, {"executionIds": [failed]})).status == 422


async def test_a_zone_may_refuse_pages_of_more_than_so_many_rows() -> None:
    async with serving(limit_refused=50) as api:
        workflow = api.sim.add_workflow()
        assert (await api.call("GET", f"/scenarios/{workflow}/logs", **{"pg[limit]": "51"})).status == 400
        assert (await api.call("GET", f"/scenarios/{workflow}/logs", **{"pg[limit]": "50"})).status == 200


# Webhooks


async def test_an_http_module_reports_runs_with_its_secret_header() -> None:
    async with serving(webhook_header="X-Key", webhook_secret="s3cret") as api:
        loud, picky = api.sim.add_workflow(reports="all"), api.sim.add_workflow(reports="failures")
        silent = api.sim.add_workflow()
        for workflow in (loud, picky, silent):
            api.sim.add_run(workflow, started_at=T0 + 1, ended_at=T0 + 5, result="success")
            api.sim.add_run(workflow, started_at=T0 + 2, ended_at=T0 + 9, result="failure", error="DataError")
        assert api.sim.take_deliveries() == []
        await api.clock.advance(10)
        deliveries = api.sim.take_deliveries()
        assert all(d.headers["X-Key"] == "s3cret" and d.method == "POST" for d in deliveries)
        events = [orjson.loads(d.body) for d in deliveries]
        told = [(e["workflow_id"], e["result"]) for e in events]
        assert told == [(loud, "success"), (loud, "failure"), (picky, "failure")]
        assert events[-1]["event"] == "run.finished"
        assert epoch(events[-1]["ended_at"]) == T0 + 9
        assert events[-1]["error"] == {"type": "DataError", "message": "Missing value of required parameter 'email'."}
        assert api.sim.take_deliveries() == []


async def test_a_run_started_with_a_callback_url_calls_back_with_nothing_but_its_status_url() -> None:
    async with serving() as api:
        workflow = api.sim.add_workflow()
        run = api.sim.add_run(workflow, started_at=T0 + 1, ended_at=T0 + 5, result="success", callback=True)
        await api.clock.advance(10)
        (delivery,) = api.sim.take_deliveries()
        url = f"https://eu1.make.com/api/v2/scenarios/{workflow}/executions/{run}"
        assert orjson.loads(delivery.body) == {"executionId": run, "statusUrl": url}
        assert list(delivery.headers) == ["Content-Type"]


async def test_webhooks_get_lost_and_doubled_when_told_to() -> None:
    async with serving() as api:
        workflow = api.sim.add_workflow(reports="all")
        for fault, count in (("webhook_duplicated", 2), ("webhook_lost", 0)):
            now = api.clock.now()
            api.sim.add_run(workflow, started_at=now + 1, ended_at=now + 2, result="success")
            await api.clock.advance(3)
            setattr(api.sim.faults, fault, 1.0)
            assert len(api.sim.take_deliveries()) == count
