"""The laws of the simulated Make: dead letters and their retries, blocking, postponing, switching off."""

import pytest

from tests.simulator.make_client import MINUTE, T0, Api, Json, epoch, executions, serving

NATIVE_DELAYS = [m * MINUTE for m in (1, 10, 10, 30, 30, 30, 180, 180)]


async def attempts(api: Api, dead_letter_id: str) -> list[Json]:
    """Its attempts to resolve, oldest first."""
    return list(reversed((await api.get(f"/dlqs/{dead_letter_id}/logs"))["dlqLogs"]))


async def listed(api: Api, workflow_id: str) -> list[Json]:
    return list((await api.get("/dlqs", scenarioId=workflow_id))["dlqs"])


# Dead letters


async def test_the_list_has_the_reason_the_detail_the_run_and_only_the_bundle_the_type() -> None:
    async with serving() as api:
        workflow = api.sim.add_workflow(name="Orders")
        run = api.sim.add_run(
            workflow, started_at=T0 - 9, ended_at=T0 - 1, result="failure", error="DataError", dead_letter=True
        )
        (item,) = await listed(api, workflow)
        assert item.keys() == {"id", "reason", "created", "size", "resolved", "retry", "attempts"}
        assert (item["reason"], item["attempts"]) == ("Missing value of required parameter 'email'.", 0)
        assert (item["resolved"], item["retry"]) == (False, False)
        detail = await api.dead_letter(item["id"])
        assert "reason" not in detail
        assert detail["executionId"].replace("-", "") == run
        assert (detail["scenarioName"], detail["companyId"], detail["deleted"]) == ("Orders", 77, False)
        bundle = (await api.get(f"/dlqs/{item['id']}/bundle"))["response"]
        assert bundle["2"] == {"error": {"type": "DataError", "message": item["reason"]}}
        assert (await api.get(f"/dlqs/{item['id']}/blueprint"))["response"]["reason"] == item["reason"]
        assert (await api.scenario(workflow))["dlqCount"] == 1
        (true_item,) = api.sim.truth().dead_letters
        assert (true_item.dead_letter_id, true_item.error_class) == (item["id"], "validation")


async def test_execution_ids_are_dashed_in_some_details() -> None:
    async with serving() as api:
        workflow = api.sim.add_workflow()
        items = [api.sim.add_dead_letter(workflow) for _ in range(20)]
        ids = [(await api.dead_letter(item))["executionId"] for item in items]
        assert {len(i) for i in ids} == {32, 36}


async def test_more_than_fifty_items_come_in_pages_of_fifty() -> None:
    async with serving() as api:
        workflow = api.sim.add_workflow()
        items = [api.sim.add_dead_letter(workflow) for _ in range(60)]
        first = await api.get("/dlqs", scenarioId=workflow)
        assert first["pg"] == {"sortBy": "", "limit": 50, "sortDir": "asc", "offset": 0}
        second = await api.get("/dlqs", {"scenarioId": workflow, "pg[offset]": "50"})
        assert [d["id"] for d in first["dlqs"] + second["dlqs"]] == items
        assert (await api.call("GET", "/dlqs")).status == 400


async def test_transient_errors_are_retried_by_make_eight_times_at_its_own_pace() -> None:
    async with serving() as api:
        workflow = api.sim.add_workflow()
        item = api.sim.add_dead_letter(workflow, error="ConnectionError", native=True, outcomes=("failure",))
        assert (await api.dead_letter(item))["retry"] is True
        await api.clock.advance(480 * MINUTE)
        rows = await attempts(api, item)
        starts = [epoch(row["timestamp"]) for row in rows]
        ends = [T0] + [epoch(row["timestamp"]) + row["duration"] / 1000 for row in rows]
        assert [b - a for a, b in zip(ends, starts, strict=False)] == pytest.approx(NATIVE_DELAYS, abs=0.01)
        assert {(row["type"], row["status"]) for row in rows} == {("auto", 3)}
        detail = await api.dead_letter(item)
        assert (detail["retry"], detail["attempts"], detail["resolved"]) == (False, 8, False)
        await api.clock.advance(2000 * MINUTE)
        assert len(await attempts(api, item)) == 8


async def test_permanent_errors_wait_and_a_break_handler_retries_whatever_it_caught() -> None:
    async with serving() as api:
        plain = api.sim.add_workflow(interval=3600.0, failing=1.0, errors=("DataError",), max_errors=99)
        handled = api.sim.add_workflow(interval=3600.0, failing=1.0, errors=("DataError",), break_plan=(3, 15))
        await api.clock.advance(2 * 3600 + 60)
        assert {d["retry"] for d in await listed(api, plain)} == {False}
        first = (await listed(api, handled))[0]
        starts = [epoch(row["timestamp"]) for row in await attempts(api, first["id"])]
        assert starts[0] - epoch(first["created"]) == pytest.approx(15 * MINUTE, abs=MINUTE)
        results = api.sim.truth().counts()
        assert (results[plain, "failure"], results[handled, "warning"]) == (2, 2)


# Retries through the API


async def test_an_accepted_retry_is_settled_later_and_only_the_platform_tells_how() -> None:
    async with serving(retry_delay=2.0) as api:
        workflow = api.sim.add_workflow()
        item = api.sim.add_dead_letter(workflow, outcomes=("failure", "success"))
        for attempt, resolved in ((1, False), (2, True)):
            assert (await api.call("POST", f"/dlqs/{item}/retry")).json == {"dlq": item}
            assert len(await attempts(api, item)) == attempt - 1
            await api.clock.advance(30)
            detail = await api.dead_letter(item)
            assert (detail["attempts"], detail["resolved"]) == (attempt, resolved)
        assert [(row["type"], row["status"]) for row in await attempts(api, item)] == [("manual", 3), ("manual", 1)]
        assert api.sim.requests["POST /api/v2/dlqs/{id}/retry"] == 2
        (true_item,) = api.sim.truth().dead_letters
        assert true_item.resolved_at is not None
        assert T0 + 30 < true_item.resolved_at < T0 + 60
        assert (await api.scenario(workflow))["dlqCount"] == 0
        assert (await api.get(f"/scenarios/{workflow}/usage"))["data"][0]["operations"] > 0  # retries cost operations


@pytest.mark.parametrize("refusal", [400, 404, 200])
async def test_a_retry_of_a_busy_or_resolved_item_is_answered_as_configured_and_has_no_effect(refusal: int) -> None:
    async with serving(retry_refused=refusal) as api:
        item = api.sim.add_dead_letter(api.sim.add_workflow(duration=60.0), outcomes=("success",))
        statuses = [(await api.call("POST", f"/dlqs/{item}/retry")).status for _ in range(2)]
        await api.clock.advance(5)
        statuses.append((await api.call("POST", f"/dlqs/{item}/retry")).status)  # running
        await api.clock.advance(120)
        assert (await api.dead_letter(item))["resolved"]
        statuses.append((await api.call("POST", f"/dlqs/{item}/retry")).status)
        await api.clock.advance(120)
        assert statuses == [200, refusal, refusal, refusal]
        assert len(await attempts(api, item)) == 1
        assert (await api.call("POST", f"/dlqs/{'0' * 32}/retry")).status == 404


async def test_a_lost_retry_is_accepted_and_never_happens() -> None:
    async with serving(retries_lost=1.0) as api:
        item = api.sim.add_dead_letter(api.sim.add_workflow(), outcomes=("success",))
        assert (await api.call("POST", f"/dlqs/{item}/retry")).status == 200
        await api.clock.advance(3600)
        assert (await api.dead_letter(item))["attempts"] == 0
        assert await attempts(api, item) == []


async def test_manual_attempts_count_only_where_the_zone_counts_them() -> None:
    async with serving(manual_attempts_count=False) as api:
        item = api.sim.add_dead_letter(api.sim.add_workflow(), outcomes=("failure",))
        await api.call("POST", f"/dlqs/{item}/retry")
        await api.clock.advance(60)
        assert len(await attempts(api, item)) == 1
        assert (await api.dead_letter(item))["attempts"] == 0


async def test_a_bulk_retry_runs_in_batches_of_three_and_says_what_it_means() -> None:
    async with serving() as api:
        workflow, other = api.sim.add_workflow(), api.sim.add_workflow()
        items = [api.sim.add_dead_letter(workflow, outcomes=("success",)) for _ in range(8)]
        foreign = api.sim.add_dead_letter(other)
        refused: list[Json] = [{}, {"ids": [foreign]}, {"ids": items, "all": True}, {"ids": "x"}, []]
        for body in refused:
            assert (await api.call("POST", "/dlqs/retry", body, scenarioId=workflow)).status == 400
        answer = await api.call("POST", "/dlqs/retry", {"all": True, "exceptIds": items[:1]}, scenarioId=workflow)
        assert answer.json == {"dlqs": items[1:]}
        await api.clock.advance(120)
        spans: list[tuple[float, float]] = []
        for item in items[1:]:
            (row,) = await attempts(api, item)
            spans.append((epoch(row["timestamp"]), epoch(row["timestamp"]) + row["duration"] / 1000))
        starts = sorted({start for start, _ in spans})
        assert [sum(start == s for start, _ in spans) for s in starts] == [3, 3, 1]
        assert starts[1] == pytest.approx(max(end for start, end in spans if start == starts[0]))
        assert not (await api.dead_letter(items[0]))["resolved"]


async def test_a_retry_waits_until_the_scenario_itself_has_ended() -> None:
    async with serving() as api:
        workflow = api.sim.add_workflow()
        item = api.sim.add_dead_letter(workflow, outcomes=("success",))
        api.sim.add_run(workflow, started_at=T0, ended_at=T0 + 300, result="success")
        await api.call("POST", f"/dlqs/{item}/retry")
        await api.clock.advance(299)
        assert await attempts(api, item) == []
        await api.clock.advance(60)
        (row,) = await attempts(api, item)
        assert epoch(row["timestamp"]) == T0 + 300


async def test_a_retry_that_breaks_at_a_later_module_leaves_a_new_dead_letter() -> None:
    async with serving() as api:
        workflow = api.sim.add_workflow()
        item = api.sim.add_dead_letter(workflow, error="DataError", outcomes=("other_module",))
        await api.call("POST", f"/dlqs/{item}/retry")
        await api.clock.advance(60)
        old, new = await listed(api, workflow)
        assert (old["id"], old["resolved"], new["resolved"]) == (item, True, False)
        (row,) = await attempts(api, item)
        assert (await api.dead_letter(new["id"]))["executionId"].replace("-", "") == row["id"]
        assert (await api.scenario(workflow))["dlqCount"] == 1


async def test_deleting_needs_confirmation_and_spares_what_is_in_process() -> None:
    async with serving(kept_for=600.0) as api:
        workflow = api.sim.add_workflow(duration=120.0)
        busy, idle = api.sim.add_dead_letter(workflow, outcomes=("failure",)), api.sim.add_dead_letter(workflow)
        await api.call("POST", f"/dlqs/{busy}/retry")
        await api.clock.advance(5)
        refused = await api.call("DELETE", "/dlqs", {"all": True}, scenarioId=workflow)
        assert (refused.status, refused.json["code"]) == (406, "IM004")
        deleted = await api.call("DELETE", "/dlqs", {"all": True}, scenarioId=workflow, confirmed="true")
        assert (deleted.status, deleted.json["error"]["name"]) == (200, "APIError")
        assert [d["id"] for d in await listed(api, workflow)] == [busy]
        assert (await api.dead_letter(idle))["deleted"] is True
        await api.clock.advance(600)
        assert (await api.call("GET", f"/dlqs/{idle}")).status == 404
        assert [d["id"] for d in await listed(api, workflow)] == [busy]
        assert api.sim.truth().open_dead_letters() == {workflow: 1}


@pytest.mark.parametrize("stays", [True, False])
async def test_resolved_items_stay_listed_or_vanish_at_once_as_configured(stays: bool) -> None:
    async with serving(resolved_listed=stays, kept_for=600.0, dlq_count_lag=100.0) as api:
        workflow = api.sim.add_workflow()
        await api.clock.advance(200)
        item = api.sim.add_dead_letter(workflow, outcomes=("success",))
        assert (await api.scenario(workflow))["dlqCount"] == 0  # behind by 100 s
        await api.clock.advance(100)
        assert (await api.scenario(workflow))["dlqCount"] == 1
        await api.call("POST", f"/dlqs/{item}/retry")
        await api.clock.advance(30)
        assert (await api.scenario(workflow))["dlqCount"] == 1
        assert [d["resolved"] for d in await listed(api, workflow)] == ([True] if stays else [])
        assert (await api.dead_letter(item))["resolved"] is True
        await api.clock.advance(600)
        assert await listed(api, workflow) == []
        assert (await api.call("GET", f"/dlqs/{item}")).status == 404


# What errors do to scenarios


async def test_a_sequential_scenario_stands_still_until_its_dead_letter_is_gone() -> None:
    async with serving() as api:
        workflow = api.sim.add_workflow(interval=60.0, sequential=True)
        await api.clock.advance(150)
        item = api.sim.add_dead_letter(workflow, error="DataError", outcomes=("success",))
        await api.clock.advance(30)
        ran = len(api.sim.truth().runs)
        assert ran == 2
        await api.clock.advance(3600)
        assert len(api.sim.truth().runs) == ran
        assert (await api.scenario(workflow))["isActive"] is True
        blueprint = (await api.get(f"/scenarios/{workflow}/blueprint"))["response"]["blueprint"]
        assert blueprint["metadata"]["scenario"]["sequential"] is True
        await api.call("POST", f"/dlqs/{item}/retry")
        await api.clock.advance(150)
        assert len(api.sim.truth().runs) > ran


async def test_an_instant_scenario_is_off_after_its_first_unhandled_error_and_its_webhooks_pile_up() -> None:
    async with serving() as api:
        workflow = api.sim.add_workflow(
            interval=30.0, instant=True, failing=1.0, errors=("DataError",), store=False, duration=0.1
        )
        await api.clock.advance(600)
        row = await api.scenario(workflow)
        assert (row["isActive"], row["islinked"], row["isinvalid"]) == (False, False, True)
        assert len(api.sim.truth().runs) == 1
        rows = (await api.get(f"/scenarios/{workflow}/logs"))["scenarioLogs"]
        stop = next(row for row in rows if row["type"] == "stop")
        assert (stop["authorName"], "id" in stop) == (None, False)
        (hook,) = (await api.get("/hooks", teamId="77"))["hooks"]
        assert (hook["scenarioId"], hook["id"]) == (int(workflow), row["hookId"])
        stats = (await api.get(f"/hooks/{hook['id']}/incomings/stats"))["incomingStat"]
        assert stats == {"queue": hook["queueCount"], "limit": 667, "enabled": True}
        assert hook["queueCount"] > 5
        started = await api.call("POST", f"/scenarios/{workflow}/start")
        assert started.json == {"scenario": {"id": int(workflow), "isActive": True, "islinked": True}}
        await api.clock.advance(5)
        assert (await api.get("/hooks", teamId="77"))["hooks"][0]["queueCount"] < hook["queueCount"]


async def test_an_instant_scenario_that_stores_its_failures_goes_on() -> None:
    async with serving() as api:
        workflow = api.sim.add_workflow(
            interval=30.0, instant=True, failing=0.3, errors=("ConnectionError",), store=True, duration=0.1
        )
        await api.clock.advance(900)
        counts = api.sim.truth().counts()
        assert counts[workflow, "failure"] > 1
        assert len(api.sim.truth().dead_letters) == counts[workflow, "failure"]
        assert (await api.scenario(workflow))["isActive"] is True


async def test_without_storing_a_transient_error_postpones_the_scenario_more_and_more_until_it_is_off() -> None:
    async with serving() as api:
        workflow = api.sim.add_workflow(interval=60.0, store=False, failing=1.0, duration=0.1)
        await api.clock.advance(90)
        assert (await api.scenario(workflow))["iswaiting"] is True
        await api.clock.advance(45 * 3600)
        rows = (await api.get(f"/scenarios/{workflow}/logs"))["scenarioLogs"]
        delays = [row["detail"]["delay"] for row in reversed(rows) if "delay" in row.get("detail", {})]
        assert delays == [1, 2, 5, 10, 60, 180, 720, 1440]
        assert len(executions(rows)) == 9
        assert (await api.scenario(workflow))["isinvalid"] is True
        assert api.sim.truth().dead_letters == []


async def test_a_rate_limit_pauses_a_scenario_that_does_not_store_for_twenty_minutes() -> None:
    async with serving() as api:
        workflow = api.sim.add_workflow(interval=60.0, store=False, failing=1.0, errors=("RateLimitError",))
        await api.clock.advance(10 * MINUTE)
        rows = (await api.get(f"/scenarios/{workflow}/logs"))["scenarioLogs"]
        (event,) = [r for r in rows if "delay" in r.get("detail", {})]
        assert event["detail"] == {"reason": "[429] Too many requests, try again later.", "delay": 20}
        assert len(api.sim.truth().runs) == 1


@pytest.mark.parametrize(("error", "runs"), [("DataError", 3), ("AccountValidationError", 1)])
async def test_other_errors_switch_a_scheduled_scenario_off_after_three_in_a_row_or_at_once(
    error: str, runs: int
) -> None:
    async with serving() as api:
        workflow = api.sim.add_workflow(interval=60.0, failing=1.0, errors=(error,))
        await api.clock.advance(3600)
        assert api.sim.truth().counts() == {(workflow, "failure"): runs}
        row = await api.scenario(workflow)
        assert (row["isActive"], row["isinvalid"], row["nextExec"]) == (False, True, None)


async def test_starting_a_scheduled_scenario_runs_it_and_stopping_ends_its_schedule() -> None:
    async with serving() as api:
        workflow = api.sim.add_workflow(interval=600.0, duration=1.0)
        await api.call("POST", f"/scenarios/{workflow}/stop")
        await api.clock.advance(1500)
        row = await api.scenario(workflow)
        assert (row["isActive"], row["isinvalid"], api.sim.truth().runs) == (False, False, [])
        await api.call("POST", f"/scenarios/{workflow}/start")
        await api.clock.advance(30)
        (run,) = api.sim.truth().runs
        assert run.started_at == T0 + 1500


async def test_a_full_storage_switches_the_scenario_off_or_drops_the_data() -> None:
    async with serving(storage_bytes=100) as api:
        careful = api.sim.add_workflow(interval=60.0, failing=1.0)
        careless = api.sim.add_workflow(interval=60.0, failing=1.0, dataloss=True)
        await api.clock.advance(600)
        assert api.sim.truth().dead_letters == []
        assert (await api.scenario(careful))["isActive"] is False
        assert (await api.scenario(careless))["isActive"] is True
