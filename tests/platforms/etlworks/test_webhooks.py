"""Webhooks of Etlworks, with and without a body, with and without the execution, and what is made of them."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from exporter.model import Result, Run, State
from exporter.platform import MalformedEvent, RunKey, WebhookEvents, WebhookRequest
from exporter.platforms.etlworks import PLATFORM

HEADERS = {
    "x-etl-webhook-event-id": "7c1e6a51-3bb0-4a9c-8f42-0d7c6c0f0a11",
    "x-etl-webhook-event": "Flow.Executed",
    "x-etl-webhook-id": "1",
    "x-etl-webhook-entity-id": "80611",
    "x-etl-webhook-entity-url": "https://evil.example/rest/v1/flows/1234?auditId=80611",
}
KEY = RunKey(run_id="80611", workflow_id="1234")
OCCURRED = 1_768_456_842.207


def payload(name: str) -> Any:
    return orjson.loads((Path(__file__).parent / "payloads" / f"{name}.json").read_bytes())


def receive(body: object = None, *, headers: dict[str, str] | None = None, method: str = "POST") -> WebhookEvents:
    content = body if isinstance(body, bytes) else b"" if body is None else orjson.dumps(body)
    request = WebhookRequest(
        method=method,
        headers=HEADERS if headers is None else headers,
        query={},
        body=content,
        received_at=1_768_456_843.0,
        base_url="https://app.etlworks.com",
    )
    return PLATFORM.receive(request)


def event(**entity: Any) -> dict[str, Any]:
    whole: dict[str, Any] = payload("webhook_entity")
    return {**whole, "entity": {**whole["entity"], **entity}}


def test_an_entity_is_the_run_itself() -> None:
    told = receive(payload("webhook_entity"))
    (run,) = told.observations
    assert isinstance(run, Run)
    assert (run.workflow_id, run.id, run.result) == ("1234", "80611", Result.SUCCESS)
    assert (told.wake, told.occurred_at) == ((), OCCURRED)


@pytest.mark.parametrize("status", ["error", "canceled", "suspended"])
def test_an_end_that_needs_a_second_look_is_told_and_read_as_well(status: str) -> None:
    told = receive(event(status=status))
    assert len(told.observations) == 1
    assert told.wake == [KEY]


def test_an_end_without_its_time_is_read_as_well() -> None:
    assert receive(event(ended=None)).wake == [KEY]


def test_a_stop_without_its_time_is_read_as_well() -> None:
    assert receive(event(status="canceled", ended=None)).wake == [KEY]


def test_a_run_under_way_is_left_to_the_sweeps() -> None:
    told = receive(event(status="running", ended=None))
    (run,) = told.observations
    assert isinstance(run, Run)
    assert run.state is State.RUNNING
    assert told.wake == ()


@pytest.mark.parametrize(
    "body",
    [payload("webhook_without_entity"), None, b"eventType=Flow.Executed", {**payload("webhook_entity"), "entity": {}}],
)
def test_without_the_entity_the_run_is_read(body: object) -> None:
    told = receive(body)
    assert (told.observations, told.wake) == ((), [KEY])


def test_a_get_has_headers_only() -> None:
    assert receive(method="GET") == WebhookEvents(wake=[KEY])


def test_a_body_without_the_headers_does_as_well() -> None:
    assert receive(payload("webhook_without_entity"), headers={}).wake == [KEY]
    assert len(receive(payload("webhook_entity"), headers={}).observations) == 1


def test_an_entity_that_cannot_be_read_is_read_from_the_platform() -> None:
    assert receive({**payload("webhook_entity"), "entity": {"status": "success"}}).wake == [KEY]
    assert receive(event(flowId=99)).wake == [KEY]


def test_only_the_numbers_of_the_entitys_url_are_used() -> None:
    for url in ("/rest/v1/flows/1234?auditId=80611", "//x/plugins/executions/1234?a=b&auditId=80611#top"):
        assert receive(headers={**HEADERS, "x-etl-webhook-entity-url": url}).wake == [KEY]
    ids = {key: value for key, value in HEADERS.items() if key != "x-etl-webhook-entity-url"}
    assert receive(event(status="error"), headers=ids).wake == [KEY]


@pytest.mark.parametrize("url", ["", "https://app.etlworks.com/", "/rest/v1/flows/12x4?auditId=80611", "/flows/0"])
def test_an_event_that_names_no_flow_is_malformed(url: str) -> None:
    with pytest.raises(MalformedEvent, match="without the ids"):
        receive(headers={**HEADERS, "x-etl-webhook-entity-url": url})


def test_an_entity_of_another_run_is_malformed() -> None:
    with pytest.raises(MalformedEvent, match="another execution"):
        receive(event(auditId=5))


def test_other_events_are_unknown_types() -> None:
    headers = {**HEADERS, "x-etl-webhook-event": "Flow.Created"}
    told = receive(payload("webhook_flow_created"), headers=headers)
    assert (told.unknown_types, told.observations, told.wake) == (["Flow.Created"], (), ())


def test_the_documented_event_is_understood_too() -> None:
    told = receive(
        {"event": "run.finished", "workflow_id": 1234, "run_id": "80611", "result": "success", "ended_at": 1768456842},
        headers={"content-type": "application/json"},
    )
    (run,) = told.observations
    assert isinstance(run, Run)
    assert (run.workflow_id, run.id, run.result) == ("1234", "80611", Result.SUCCESS)


@pytest.mark.parametrize("body", [b"", b"not json", b"[1]", b"{}"])
def test_a_request_that_is_no_event_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedEvent):
        receive(body, headers={})
