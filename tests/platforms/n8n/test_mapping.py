"""Recorded answers of a real server (2.41.1), and what becomes of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from exporter.model import Blocked, ErrorClass, Result, Run, State
from exporter.platform import BadItem, MalformedEvent, WebhookRequest
from exporter.platforms.n8n import PLATFORM, errors, mapping
from exporter.platforms.n8n.mapping import Habits, Numbering, Saving

PAYLOADS = Path(__file__).parent / "payloads"
NOW = Numbering()


def recorded(name: str) -> Any:
    return json.loads((PAYLOADS / f"{name}.json").read_text())["body"]


def test_a_page_with_all_kinds_of_rows() -> None:
    rows = {
        row.number: row for row in (mapping.row(i, numbering=NOW) for i in recorded("executions-list-mixed")["data"])
    }
    assert {n: (row.run.state, row.run.result) for n, row in rows.items()} == {
        9: (State.PENDING, None),
        8: (State.PENDING, None),
        7: (State.PENDING, None),
        4: (State.FINISHED, Result.FAILURE),
        3: (State.FINISHED, Result.CANCELLED),
        2: (State.RUNNING, None),
        1: (State.FINISHED, Result.SUCCESS),
    }
    assert rows[2].run.ended_at is None, "one that waits has a stoppedAt, which is no end"
    assert [row.number for row in rows.values() if not row.counts] == [4], "the error workflow at work is no run"
    assert (rows[1].run.trigger, rows[2].run.trigger) == ("schedule", "webhook")


def test_a_failed_retry_with_its_data() -> None:
    found = mapping.detail(recorded("execution-error-with-data"), numbering=NOW)
    run = found.run
    assert (run.id, run.parent_id, run.trigger, run.result) == ("106", "103", "retry", Result.FAILURE)
    assert run.error is not None
    assert (run.error.error_class, run.error.type) == (ErrorClass.PLATFORM, "NodeApiError")
    assert run.error.step_type == "n8n-nodes-base.httpRequest"
    assert run.error.message == "The service was not able to process your request"
    assert run.queue_duration == pytest.approx(0.009, abs=1e-6)
    assert run.steps is not None
    assert [(step.id, step.type, step.result) for step in run.steps] == [
        ("Call", "n8n-nodes-base.httpRequest", Result.FAILURE)
    ], "Hook was copied from the run that is retried"
    assert run.trace == "a5d4cd95d3fcc1b5d6272b403fbb1674-c3b4f6ecacb9449e"
    assert "127.0.0.1" not in repr(run), "no address of what was called"


def test_steps_of_a_crashed_run_are_in_seconds() -> None:
    run = mapping.detail(recorded("execution-crashed-with-data"), numbering=NOW).run
    assert run.error is not None
    assert run.error.error_class is ErrorClass.KILLED
    assert run.steps is not None
    assert {step.id: (step.started_at, step.result) for step in run.steps} == {
        "Hook": (1795895385.0, Result.SUCCESS),
        "Wait": (1795895385.0, Result.FAILURE),
    } or run.steps == (), "before the run began by less than a second, or at its start"


def test_a_timeout_is_told_from_a_cancellation_by_how_long_it_took() -> None:
    found = mapping.detail(recorded("execution-canceled-by-timeout"), numbering=NOW)
    assert found.run.result is Result.CANCELLED
    assert mapping.decided(found.run, Habits(timeout=3.0)).result is Result.TIMEOUT
    assert mapping.decided(found.run, Habits(timeout=30.0)).result is Result.CANCELLED
    assert mapping.decided(found.run, Habits()).result is Result.CANCELLED
    assert mapping.decided(found.run, Habits(), timed_out=True).result is Result.TIMEOUT


def test_stopped_while_queued() -> None:
    run = mapping.detail(recorded("execution-canceled-in-queue"), numbering=NOW).run
    assert (run.started_at, run.duration, run.result) == (None, None, Result.CANCELLED)
    assert run.finished_at is not None


def test_finished_is_not_success() -> None:
    item = recorded("execution-finished-but-error")
    assert item["finished"] is True
    assert mapping.row(item, numbering=NOW).run.result is Result.FAILURE


def test_the_chain_of_a_healed_execution() -> None:
    rows = [mapping.row(item, numbering=NOW) for item in recorded("executions-of-healed")["data"]]
    assert [row.number for row in mapping.chain(rows, 114)] == [114, 116, 118, 119]
    assert [row.number for row in mapping.chain(rows, 103)] == [103, 106]


def test_workflows_and_what_they_save() -> None:
    items = recorded("workflows-list")["data"]
    told = [mapping.workflow(item, at=1.0, saving=Saving(successes=True)) for item in items]
    assert [(w.name, w.enabled, w.trigger, w.uncounted) for w, _ in told] == [
        ("Hook success not saved", True, "webhook", (Result.SUCCESS,)),
        ("Hook waits", True, "webhook", ()),
    ]
    assert all(w.workspace == "KtKGPfSaEAbkZkxh" for w, _ in told)
    unknown = [mapping.workflow(item, at=1.0, saving=Saving(successes=None))[0].uncounted for item in items]
    assert unknown == [(Result.SUCCESS,), (Result.SUCCESS,)], "what nobody knows is not 0"
    assert Blocked.PAUSED not in {w.blocked for w, _ in told}


@pytest.mark.parametrize(
    ("settings", "nodes", "uncounted"),
    [
        ({}, ["webhook"], ()),
        ({"saveDataSuccessExecution": "all"}, ["webhook"], ()),
        ({"saveDataSuccessExecution": "none"}, ["webhook"], (Result.SUCCESS,)),
        ({"saveDataErrorExecution": "none"}, ["scheduleTrigger"], (Result.FAILURE, Result.CANCELLED, Result.TIMEOUT)),
        ({}, ["errorTrigger"], (Result.SUCCESS, Result.FAILURE, Result.CANCELLED, Result.TIMEOUT, Result.UNKNOWN)),
        ({}, ["errorTrigger", "webhook"], ()),
    ],
)
def test_what_is_not_saved_is_not_countable(
    settings: dict[str, str], nodes: list[str], uncounted: tuple[Result, ...]
) -> None:
    item = {"id": "w", "settings": settings, "nodes": [{"type": f"n8n-nodes-base.{kind}"} for kind in nodes]}
    assert mapping.workflow(item, at=1.0, saving=Saving(successes=True))[0].uncounted == uncounted


def wrapped(error: object, key: str = "errorResponse") -> dict[str, Any]:
    """How the caller of a sub-workflow fails: by an error of its own, around that of the called one."""
    return {"name": "NodeOperationError", "message": "The service was not able to process your request", key: error}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"name": "NodeApiError", "httpCode": "401"}, "auth"),
        ({"name": "NodeApiError", "httpCode": "403"}, "permission"),
        ({"name": "NodeApiError", "httpCode": "404"}, "not_found"),
        ({"name": "NodeApiError", "httpCode": "408"}, "timeout"),
        ({"name": "NodeApiError", "httpCode": "409"}, "conflict"),
        ({"name": "NodeApiError", "httpCode": "422"}, "validation"),
        ({"name": "NodeApiError", "httpCode": "429"}, "throttled"),
        ({"name": "NodeApiError", "httpCode": "502"}, "platform"),
        ({"name": "NodeApiError", "httpCode": 503}, "platform"),
        ({"name": "NodeApiError", "httpCode": "ECONNREFUSED"}, "network"),
        ({"name": "NodeApiError", "httpCode": "EAI_AGAIN"}, "network"),
        ({"name": "NodeApiError", "httpCode": "ETIMEDOUT"}, "timeout"),
        ({"name": "NodeApiError", "httpCode": "ECONNABORTED"}, "timeout"),
        ({"name": "NodeApiError", "description": '500 - "x"'}, "platform"),
        ({"name": "Error", "message": "connect ECONNRESET 10.0.0.1:443"}, "network"),
        ({"name": "WorkflowCrashedError", "message": "possible out-of-memory issue"}, "killed"),
        ({"name": "NodeOperationError", "message": "quota of the 404 customers not found"}, "unknown"),
        ({"name": "WrappedExecutionError", "message": "timeout is not a function [line 1]"}, "unknown"),
        ({"name": "ExpressionError", "message": "access denied"}, "unknown"),
        ({"message": "no name at all"}, "unknown"),
        ({"message": "The service refused the connection - perhaps it is offline"}, "network"),
        ({"message": "The service is receiving too many requests from you"}, "throttled"),
        ({"message": "Gateway timed out - perhaps try again later?"}, "timeout"),
        ({"message": "order refused: timeout"}, "unknown"),
        ({"name": "x" * 500, "httpCode": True}, "unknown"),
        (wrapped({"name": "NodeApiError", "httpCode": "500"}), "platform"),
        (wrapped(wrapped({"name": "NodeApiError", "httpCode": "ECONNRESET"})), "network"),
        (wrapped({"name": "WorkflowCrashedError"}, key="cause"), "killed"),
        (wrapped({"name": "NodeOperationError", "message": "connection timed out"}), "unknown"),
        ({**wrapped({"name": "NodeApiError", "httpCode": "500"}), "httpCode": "404"}, "not_found"),
        (wrapped("500"), "unknown"),
    ],
)
def test_error_classes(error: dict[str, Any], expected: str) -> None:
    found = errors.read(error)
    assert found is not None
    assert found.error_class == expected


def test_events_of_the_error_workflow_say_what_the_error_was() -> None:
    classes = [str(errors.of_event(*told)) for told in (
        ("NodeApiError", "[ECONNREFUSED] The service refused the connection - perhaps it is offline"),
        ("NodeApiError", "[429] Too many"),
        ("NodeApiError", "The service refused the connection - perhaps it is offline"),
        ("NodeOperationError", "stopped on purpose"),
        ("WorkflowCrashedError", "Workflow did not finish, possible out-of-memory issue"),
        (None, None),
    )]  # fmt: skip
    assert classes == ["network", "throttled", "network", "unknown", "killed", "unknown"]


@pytest.mark.parametrize(
    "item",
    [
        None,
        [],
        {},
        {"id": "abc", "workflowId": "w"},
        {"id": "1"},
        {"id": "1", "workflowId": 5},
        {"id": True, "workflowId": "w"},
        {"id": "1", "workflowId": "w", "startedAt": "1970-01-01T00:00:00.000Z"},
        {"id": "1", "workflowId": "w", "status": "success", "stoppedAt": "2999-01-01T00:00:00.000Z"},
    ],
)
def test_a_bad_item_is_one_line(item: object) -> None:
    with pytest.raises(BadItem) as problem:
        mapping.row(item, numbering=NOW)
    assert "\n" not in str(problem.value)


def test_an_unlisted_status_is_over_when_it_has_an_end() -> None:
    item = {"id": 7, "workflowId": "w", "status": "paused", "startedAt": "2026-11-28T19:43:49.634Z"}
    assert mapping.row(item, numbering=NOW).run.state is State.RUNNING
    ended = mapping.row({**item, "stoppedAt": "2026-11-28T19:43:51.202Z"}, numbering=NOW).run
    assert (ended.state, ended.result) == (State.FINISHED, Result.UNKNOWN)


def test_numbers_of_another_database_are_other_runs() -> None:
    again = Numbering(resets=((100, 50.0),))
    assert [again.name(7, 10.0), again.name(7, 60.0), again.name(7, None), again.name(101, 60.0)] == [
        "7", "7~1", "7~1", "101",
    ]  # fmt: skip
    assert [mapping.number_of(text) for text in ("7", "7~1", "x", "")] == [7, 7, None, None]


def test_runs_have_a_page_in_the_editor() -> None:
    config = PLATFORM.config.model_validate({"platform": "n8n", "url": "https://n8n.example/x", "token": "abcd"})
    run = Run(workflow_id="abc", id="17~1")
    assert PLATFORM.run_url(config, run, None) == "https://n8n.example/x/workflow/abc/executions/17"


def received(body: dict[str, Any]) -> Any:
    request = WebhookRequest(
        method="POST", headers={}, query={}, body=json.dumps(body).encode(), received_at=1.8e9, base_url=""
    )
    return PLATFORM.receive(request)


def test_what_the_error_workflow_says_of_a_canceled_run_is_to_be_read() -> None:
    event = {"event": "run.finished", "workflow_id": "w", "run_id": "17", "result": "cancelled"}
    events = received(event)
    assert not events.observations
    assert [key.run_id for key in events.wake] == ["17"]
    events = received({**event, "result": "success"})
    assert [run.result for run in events.observations] == [Result.SUCCESS]
    assert not events.wake
    events = received({**event, "result": "failure", "run_id": 18, "error": {"type": "NodeApiError"}})
    assert [run.id for run in events.observations] == ["18"]
    assert [key.run_id for key in events.wake] == ["18"]


def test_a_run_id_is_a_number() -> None:
    with pytest.raises(MalformedEvent, match="number"):
        received({"event": "run.finished", "workflow_id": "w", "run_id": "17~1", "result": "success"})
