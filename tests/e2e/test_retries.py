"""The closed loop over real HTTP: policies decide, a simulated platform retries, its own state gives the verdict.

The simulators count what really happened to each dead letter.
"""

import contextlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from exporter.model import ErrorClass
from exporter.model.retries import Outcome, RetryState
from exporter.simulator.retries import RetryPlan
from tests.e2e.deployment import Deployment, deployment
from tests.e2e.test_truth import ROOMY
from tests.otlp import otlp_receiver

POLICY: Mapping[str, Any] = {
    "name": "transient",
    "match": {"error.class": ["network", "timeout", "unknown"]},
    "action": "retry",
    "retry": {"retries": 2, "backoff": {"first": "1m", "factor": 2, "jitter": 0.0}},
    "verify": {"deadline": "1h"},
}


def retrying(mode: str = "enforce", **changes: Any) -> dict[str, Any]:
    return {"retries": {"mode": mode, "policies": [{**POLICY, **changes}]}}


async def test_a_dead_letter_of_make_is_mended_and_the_numbers_say_by_whom(tmp_path: Path) -> None:
    async with deployment(tmp_path, platforms=["make"], workflows=0, options={"make": {"api_limit": 60_000}},
        changes=retrying()) as made:  # fmt: skip
        make: Any = made.fleet.simulators["make"]
        workflow = make.add_workflow(name="Order sync")
        await made.sweep()
        make.plan_retries("success", "failure")
        mended, broken = make.add_dead_letter(workflow), make.add_dead_letter(make.add_workflow(name="Invoices"))
        await made.live(600, step=15, retry=True)
        assert dict(make.retry_calls)[mended] == dict(make.retry_executions)[mended] == 1
        resolved = await made.samples("automation_dead_letters_resolved_total")
        assert resolved["make", workflow, "retry"] == 1
        retries = await made.samples("automation_retries_total")
        assert retries["make", "transient", "succeeded"] >= 1
        assert retries["make", "transient", "failed"] >= 1
        mttr = await made.samples("automation_dead_letter_resolution_seconds_count")
        assert mttr["make", "retry"] >= 1
        assert make.retry_calls[broken] <= 2


@pytest.mark.parametrize("fate", ["cut", "error"])
async def test_an_effect_whose_answer_was_lost_is_found_and_not_repeated(tmp_path: Path, fate: Any) -> None:
    async with deployment(tmp_path, platforms=["make"], workflows=0, options={"make": {"api_limit": 60_000}},
        changes=retrying()) as made:  # fmt: skip
        make: Any = made.fleet.simulators["make"]
        workflow = make.add_workflow(name="Order sync")
        await made.sweep()
        make.plan_retries(RetryPlan(outcome="success", fate=fate, delay=120.0))
        letter = make.add_dead_letter(workflow)
        await made.live(90, step=15, retry=True)
        [retry] = made.service.book.everything()
        assert retry.state is RetryState.IN_DOUBT
        await made.restart()
        await made.live(900, step=30, retry=True)
        [retry] = made.service.book.everything()
        assert retry.outcome is Outcome.SUCCEEDED, retry.detail
        assert (make.retry_calls[letter], make.retry_executions[letter]) == (1, 1)


async def test_a_call_that_waited_too_long_is_never_made(tmp_path: Path) -> None:
    """A process that is late must not send when the reconciliation may already have given up on it."""
    async with deployment(tmp_path, platforms=["make"], workflows=0, options={"make": {"api_limit": 60_000}},
        changes=retrying()) as made:  # fmt: skip
        make: Any = made.fleet.simulators["make"]
        workflow = make.add_workflow(name="Order sync")
        await made.sweep()
        letter = make.add_dead_letter(workflow)
        await made.live(60, step=15)
        await made.clock.advance(60)
        retrier: Any = made.service.retriers["make"]
        send, api = retrier._adapter.send, made.service.sources["make"].api

        async def late(letters: Any, *, send_by: float) -> Any:
            api.budget.pause(60.0)  # others were refused meanwhile: the call waits with them
            return await send(letters, send_by=send_by)

        retrier._adapter.send = late
        await made.retry()
        [retry] = made.service.book.everything()
        assert retry.outcome is Outcome.NOT_SENT, retry.detail
        assert make.retry_calls[letter] == 0
        retrier._adapter.send = send
        make.plan_retries("success")
        await made.live(300, step=15, retry=True)
        assert make.retry_calls[letter] == 1


async def test_what_was_edited_or_is_retried_by_make_itself_is_left_alone(tmp_path: Path) -> None:
    async with deployment(tmp_path, platforms=["make"], workflows=0, options={"make": {"api_limit": 60_000}},
        changes=retrying()) as made:  # fmt: skip
        make: Any = made.fleet.simulators["make"]
        edited, native = make.add_workflow(name="Edited"), make.add_workflow(name="Native")
        await made.sweep()
        old = make.add_dead_letter(edited)
        by_make = make.add_dead_letter(native, native=True)
        await made.clock.advance(30)
        make.edit_workflow(edited)
        await made.live(300, step=15, retry=True)
        reasons = {key[1]: d.reason for key, d in made.service.book.decisions.items()}
        assert make.retry_calls[old] == make.retry_calls[by_make] == 0
        assert reasons[old] == "preflight"


async def test_a_person_approves_over_http_and_by_command(tmp_path: Path) -> None:
    changes = {**retrying("approve"), "server": {"listen": "127.0.0.1:0", "admin_token": "letmein-please"}}
    async with deployment(tmp_path, platforms=["make"], workflows=0, options={"make": {"api_limit": 60_000}},
        changes=changes) as made:  # fmt: skip
        make: Any = made.fleet.simulators["make"]
        workflow = make.add_workflow(name="Order sync")
        await made.sweep()
        letter = make.add_dead_letter(workflow)
        await made.live(120, step=15, retry=True)
        assert make.retry_calls[letter] == 0
        listed = await (await made.session.get(made.url + "/api/v1/dead-letters")).json()
        assert listed["dead_letters"][0]["decision"]["awaits_approval"] is True
        answer = await _post(made, f"/api/v1/dead-letters/make/{letter}/approve", "wrong")
        assert answer[0] == 401
        answer = await _post(made, f"/api/v1/dead-letters/make/{letter}/approve", "letmein-please")
        assert answer[0] == 200
        make.plan_retries("success")
        await made.live(120, step=15, retry=True)
        assert make.retry_calls[letter] == 1
        [retry] = (await (await made.session.get(made.url + "/api/v1/retries")).json())["retries"]
        assert (retry["approved_by"], retry["outcome"]) == ("admin", "succeeded")
        shown = await (await made.session.get(made.url + f"/api/v1/retries/{retry['id']}")).json()
        assert [record["kind"] for record in shown["audit"]][:2] == ["intent", "sent"]
        for form in (f"make/{letter}", f"make%2F{letter}"):  # as lists and the commands name it
            of_letter = await (await made.session.get(made.url + f"/api/v1/retries/{form}")).json()
            assert [one["id"] for one in of_letter["retries"]] == [retry["id"]]
            assert {"decision", "intent", "succeeded"} <= {record["kind"] for record in of_letter["audit"]}
        async with made.session.get(made.url + f"/api/v1/retries/qlik/{letter}") as missing:
            assert missing.status == 404


async def test_without_a_token_nobody_from_outside_says_anything(tmp_path: Path) -> None:
    async with deployment(tmp_path, platforms=["make"], workflows=0, changes=retrying("approve")) as made:
        for path in ("/api/v1/retries/pause", "/api/v1/retries/resume", "/api/v1/dead-letters/make/x/retry"):
            status, body = await _post(made, path, "anything")
            assert status == 404
            assert "server.admin_token" in body["error"]


async def _post(made: Deployment, path: str, token: str) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {token}"}
    async with made.session.post(made.url + path, headers=headers) as response:
        return response.status, await response.json()


async def test_a_retry_is_a_trace_linked_to_the_run_that_failed_and_the_counter_points_to_it(tmp_path: Path) -> None:
    async with otlp_receiver() as receiver:
        changes = {**retrying(), "traces": {"enabled": True, "endpoint": receiver.url}}
        async with deployment(
            tmp_path, platforms=["make"], workflows=0, options={"make": {"api_limit": 60_000}}, changes=changes
        ) as made:
            make: Any = made.fleet.simulators["make"]
            workflow = make.add_workflow(name="Order sync")
            await made.sweep()
            run = make.add_run(
                workflow,
                started_at=made.clock.now() + 1,
                ended_at=made.clock.now() + 5,
                result="failure",
                error="ConnectionError",
            )
            make.add_dead_letter(workflow, run_id=run)
            make.plan_retries("success")
            await made.live(400, step=15, retry=True)
            assert made.service.traces is not None
            for _ in range(3):
                await made.service.traces.export_once(made.clock.now())
            [retry] = made.service.book.everything()
            [root] = [span for span in receiver.spans if span.name == "RETRY Order sync"]
            assert (root.attributes["automation.retry.outcome"], root.attributes["automation.retry.policy"]) == (
                "succeeded",
                "transient",
            )
            below = {span.name for span in receiver.spans if span.parent_id == root.span_id}
            assert below == {"call", "verdict"}
            [failed] = [
                s for s in receiver.spans if s.attributes.get("cicd.pipeline.run.id") == run and not s.parent_id
            ]
            links = {link[2]["automation.link"]: link[0] for link in root.links}
            assert links["failed_run"] == failed.trace_id
            text = await made.scrape(Accept="application/openmetrics-text;version=1.0.0")
            [line] = [x for x in text.splitlines() if x.startswith("automation_retries_total") and "succeeded" in x]
            assert root.trace_id in line
            assert len([span for span in receiver.spans if span.name.startswith("RETRY")]) == 1
            assert retry.closed_at is not None


@pytest.mark.parametrize("platform", ["make", "qlik", "etlworks", "cognaize", "n8n"])
async def test_on_every_platform_the_ledger_says_what_the_simulator_knows(tmp_path: Path, platform: str) -> None:
    """A living world, in which calls are lost, cut and answered with errors: every call is in the ledger once, no
    success is claimed that did not happen, and what was cut is not repeated."""
    changes = retrying(match={}, retry={"retries": 3, "backoff": {"first": "30s", "factor": 2}, "give_up_after": "30d"})
    changes["retries"]["sources"] = {platform: {"pace": {"rate": "60/1m", "burst": 20}}}
    named = {"error.class": [error_class.value for error_class in ErrorClass]}
    wide = {"ramp": [25], "cool": {"first": "1m", "factor": 1, "cap": "1m"}}  # many calls, whatever comes of them
    changes["retries"]["policies"][0] |= {"match": named, "gate": wide}
    async with deployment(tmp_path, platforms=[platform], options=ROOMY, workflows=4, changes=changes) as made:
        simulator: Any = made.fleet.simulators[platform]
        await made.sweep()
        good = "completed" if platform == "cognaize" else "success"
        # After a call that Make lost, a person's retry that names nobody is taken for ours: the API tells no better.
        fates: list[Any] = ["done", "cut", "error", "done" if platform == "make" else "lost"]
        for index in range(40):
            with contextlib.suppress(ValueError):
                simulator.plan_retries(RetryPlan(outcome=good if index % 2 else None, fate=fates[index % 4]))
        await made.live(2 * 3600, step=60, deliver=True, retry=True)
        retries = [retry for retry in made.service.book.everything() if not retry.shadow]
        by_letter = Counter(retry.dead_letter_id for retry in retries)
        assert retries, made.service.book.decisions
        assert sum(simulator.retry_calls.values()) <= len(retries)
        for letter, calls in simulator.retry_calls.items():
            # A start of an Etlworks flow names no dead letter: the simulator takes it for the newest.
            assert calls <= by_letter[letter] or platform == "etlworks", letter
        for retry in retries:
            if retry.outcome is Outcome.SUCCEEDED and platform in ("make", "cognaize", "n8n"):
                assert simulator.retry_executions[retry.dead_letter_id] >= 1
            if retry.outcome is Outcome.NOT_SENT and platform != "etlworks":
                assert simulator.retry_calls[retry.dead_letter_id] < by_letter[retry.dead_letter_id]
        succeeded = sum(retry.outcome is Outcome.SUCCEEDED for retry in retries)
        assert 0 < succeeded <= sum(simulator.retry_executions.values())
        per_root = Counter(retry.root for retry in retries if retry.counts)
        assert max(per_root.values()) <= 3
        counted = await made.samples("automation_retries_total")
        assert sum(counted.values()) == sum(1 for retry in retries if retry.outcome is not None)
