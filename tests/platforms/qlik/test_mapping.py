"""What Qlik's payloads mean here: each recorded shape, and the awkward ones by name."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from exporter.model import Blocked, DeadLetter, Error, ErrorClass, Result, Run, State, Step, Unit, Usage, Workflow
from exporter.platform import BadItem, MalformedEvent, RunKey, WebhookEvents, WebhookRequest
from exporter.platforms.qlik import PLATFORM, mapping
from exporter.platforms.qlik.errors import classify, read_error

PAYLOADS = Path(__file__).parent / "payloads"
AUTOMATION = "0b6f4a10-4947-41ec-a1d2-9559fa35801d"
RUN = "5f1c52a0-9b0b-41ec-b199-8323e1031c3e"


def at(clock: str) -> float:
    return datetime.fromisoformat(f"2026-01-15T{clock}").replace(tzinfo=UTC).timestamp()


QUEUED, STARTED, ENDED = at("06:00:00"), at("06:00:02"), at("06:00:44.500")
FINISHED = Run(
    workflow_id=AUTOMATION,
    id=RUN,
    state=State.FINISHED,
    result=Result.SUCCESS,
    queued_at=QUEUED,
    started_at=STARTED,
    ended_at=ENDED,
    trigger="api",
)
FAILED = replace(FINISHED, result=Result.FAILURE)
BLOCKS = (Step(id="endpointBlock:c-1:e-1", type="endpointBlock"), Step(id="snippetBlock:s-1", type="snippetBlock"))


def load(name: str) -> Any:
    return orjson.loads((PAYLOADS / f"{name}.json").read_bytes())


def run_of(name: str) -> Run:
    return mapping.claims(load(name), workflow_id=AUTOMATION)[0]


def letter_of(name: str) -> DeadLetter | None:
    told = mapping.claims(load(name), workflow_id=AUTOMATION)
    return told[1] if len(told) == 2 else None


# Runs


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("finished", FINISHED),
        ("duration_as_text", replace(FINISHED, ended_at=STARTED + 9001)),
        ("without_end", replace(FINISHED, ended_at=None)),
        ("unknown_status", replace(FINISHED, result=Result.UNKNOWN)),
        ("unknown_status_without_end", replace(FINISHED, state=State.RUNNING, result=None, ended_at=None)),
        ("must_stop", replace(FINISHED, state=State.RUNNING, result=None, ended_at=None)),
        ("must_stop_that_stopped", replace(FINISHED, result=Result.CANCELLED)),
        ("queued", replace(FINISHED, state=State.PENDING, result=None, started_at=None, ended_at=None)),
        ("scheduled_ahead", FINISHED),
        ("stopped_in_queue", replace(FINISHED, result=Result.CANCELLED, started_at=None)),
        ("null_numbers", replace(FINISHED, steps=(Step(id="snippetBlock", type="snippetBlock"),))),
        (
            "detail",
            replace(FINISHED, result=Result.WARNING, trigger="webhook", bytes_in=2000.0, bytes_out=120.0, steps=BLOCKS),
        ),
        ("only_id_and_status", Run(workflow_id=AUTOMATION, id=RUN, state=State.RUNNING)),
        ("failed_without_words", FAILED),
        ("exceeded_limit", replace(FINISHED, result=Result.QUOTA, error=Error(error_class=ErrorClass.QUOTA))),
    ],
)
def test_a_run_says_what_its_payload_says(name: str, expected: Run) -> None:
    assert run_of(name) == expected


@pytest.mark.parametrize(("status", "meaning"), mapping.STATUSES.items())
def test_every_documented_status_has_its_state_and_result(status: str, meaning: tuple[State, Result | None]) -> None:
    spelt = [status, status.upper(), status.replace(" ", "_")]
    open_run = {**load("finished"), "stopTime": None}
    runs = [mapping.claims({**open_run, "status": word}, workflow_id=AUTOMATION)[0] for word in spelt]
    assert [(run.state, run.result) for run in runs] == [meaning] * 3


def test_an_open_run_has_no_end_even_if_the_payload_gives_one() -> None:
    payload = {**load("finished"), "status": "running"}
    assert mapping.claims(payload, workflow_id=AUTOMATION)[0].ended_at is None


@pytest.mark.parametrize("duration", [None, True, -5, "soon", "nan", [], {}])
def test_a_duration_that_is_no_number_makes_no_end(duration: object) -> None:
    payload = {**load("without_end"), "duration": duration}
    assert mapping.claims(payload, workflow_id=AUTOMATION)[0].ended_at is None


@pytest.mark.parametrize("item", [None, [], "text", load("without_id"), {"id": ""}, {"id": 7}, {"id": "x" * 201}])
def test_a_run_without_a_usable_id_is_a_bad_item_that_names_its_automation(item: object) -> None:
    with pytest.raises(BadItem, match=AUTOMATION):
        mapping.claims(item, workflow_id=AUTOMATION)


def test_a_run_with_nonsense_in_every_field_is_still_a_run() -> None:
    payload = {name: {"deep": [1]} for name in load("finished")} | {"id": RUN, "metrics": [], "network": 4}
    assert mapping.claims(payload, workflow_id=AUTOMATION)[0] == Run(
        workflow_id=AUTOMATION, id=RUN, state=State.RUNNING
    )


# Blocks


def blocks_of(*blocks: object) -> list[str]:
    payload = {**load("detail"), "metrics": {"blocks": list(blocks)}}
    return [step.id for step in mapping.claims(payload, workflow_id=AUTOMATION)[0].steps or ()]


def test_blocks_are_steps_without_times_whatever_their_order_and_number() -> None:
    first, second = load("detail")["metrics"]["blocks"]
    assert blocks_of(first, second) == blocks_of(second, first, second) == [step.id for step in BLOCKS]
    assert run_of("finished").steps is None, "a list does not tell"
    assert blocks_of() == []


def test_blocks_of_one_kind_took_as_long_as_all_of_them_and_what_one_does_not_tell_nobody_knows() -> None:
    def seconds_of(*durations: object) -> list[float | None]:
        blocks = [{"type": "endpointBlock", "endpointId": "e", "duration": duration} for duration in durations]
        run = mapping.claims({**load("detail"), "metrics": {"blocks": blocks}}, workflow_id=AUTOMATION)[0]
        return [step.seconds for step in run.steps or ()]

    assert seconds_of(260) == [0.26]
    assert seconds_of(250, 500, 0) == [0.75]
    assert seconds_of(250, None) == [None]
    assert seconds_of("soon") == seconds_of(True) == seconds_of(-4) == [None]


def test_blocks_of_unknown_kinds_and_ids_that_are_none_say_nothing_that_somebody_wrote() -> None:
    odd = {"type": "Invoice 4711", "blockName": "Mail to Jane", "params": {"to": "jane@example.test"}}
    assert blocks_of(odd, {"type": "baseBlock", "snippetId": "Jane Roe"}, {"type": ["x"]}, None, "text", {}) == [
        "baseBlock",
        "block",
    ]


def test_of_very_many_blocks_some_are_kept() -> None:
    many = [{"type": "snippetBlock", "snippetId": f"s-{number:03}"} for number in range(500)]
    kept = blocks_of(*many)
    assert kept == blocks_of(*reversed(many)) == [f"snippetBlock:s-{number:03}" for number in range(mapping.BLOCKS_MAX)]


# Failures


def test_a_failed_run_is_a_dead_letter_under_its_own_id_with_its_error() -> None:
    error = Error(
        error_class=ErrorClass.THROTTLED,
        message="List Orders: `GET [url]` resulted in a `429 Too Many Requests` response",
        status=429,
    )
    assert run_of("failed") == replace(FAILED, error=error)
    assert letter_of("failed") == DeadLetter(id=RUN, workflow_id=AUTOMATION, run_id=RUN, opened_at=ENDED, error=error)


def test_a_run_that_exceeded_a_limit_is_a_dead_letter_of_class_quota() -> None:
    letter = letter_of("exceeded_limit")
    assert letter is not None
    assert letter.error == Error(error_class=ErrorClass.QUOTA)


@pytest.mark.parametrize("name", ["failed_test_run", "failed_in_the_editor"])
def test_a_failed_test_run_is_a_test_and_no_dead_letter(name: str) -> None:
    assert (run_of(name).result, run_of(name).is_test) == (Result.FAILURE, True)
    assert letter_of(name) is None


@pytest.mark.parametrize("context", ["editor", "Editor", "detail", "lookup", "test_run"])
@pytest.mark.parametrize("status", ["failed", "exceeded limit", "finished", "running", "queued"])
def test_whoever_builds_an_automation_makes_tests_of_it(context: str, status: str) -> None:
    payload = {**load("failed"), "context": context, "status": status}
    told = mapping.claims(payload, workflow_id=AUTOMATION)
    assert (len(told), told[0].is_test) == (1, True)


@pytest.mark.parametrize("mark", ["testRun", "isTestRun"])
def test_what_is_marked_as_a_test_is_one_whatever_the_context(mark: str) -> None:
    payload = {**load("failed"), "testRun": False, "isTestRun": False, mark: True}
    assert [claim.id for claim in mapping.claims(payload, workflow_id=AUTOMATION)] == [RUN]
    del payload["context"]
    assert mapping.claims(payload, workflow_id=AUTOMATION)[0].is_test


@pytest.mark.parametrize("context", ["api", "api_sync", "api_async", "webhook", "brand_new", None, 7])
def test_other_contexts_are_production(context: object) -> None:
    told = mapping.claims({**load("failed"), "context": context}, workflow_id=AUTOMATION)
    assert (len(told), told[0].is_test) == (2, False)


def test_a_recorded_automation_that_failed_in_the_editor() -> None:
    item = load("automation_recorded")
    assert mapping.workflow(item, at=1.0) == Workflow(
        id="11111111-0000-4000-8000-000000000001",
        at=1.0,
        name="Ticket sync",
        workspace="65bb00000000000000000001",
        trigger="manual",
        enabled=True,
    )
    last = mapping.last_run(item)
    run = mapping.claims(last, workflow_id=AUTOMATION)[0]
    assert (run.result, run.trigger, run.duration) == (Result.FAILURE, "test", 600.0)
    assert run.ended_at == datetime(2026, 10, 20, 9, 1, 6, tzinfo=UTC).timestamp(), "not when it was updated"
    assert run.error == Error(
        error_class=ErrorClass.AUTH,
        type="401 Unauthorized",
        message='Error calling endpoint "Acme CRM - Create Ticket": Invalid token',
        step_type="Acme CRM",
        status=401,
    )
    assert run.steps == (
        Step(id="baseBlock:CallURLBlock", type="CallURLBlock", seconds=0.54),
        Step(id="endpointBlock:c-1:e-1", type="endpointBlock", seconds=0.26),
    )
    moved = {**item, "updatedAt": "2026-10-21T00:00:00.000000Z"}
    moved["lastRun"] = {**moved["lastRun"], "updatedAt": "2026-10-21T00:00:00.000000Z"}
    assert mapping.signature(moved) == mapping.signature(item), "no sign of anything new"
    assert mapping.claims(moved["lastRun"], workflow_id=AUTOMATION) == (run,)
    assert "customer" not in repr(run)


def test_a_recorded_run_that_lacked_its_inputs_is_not_worth_a_retry() -> None:
    letter = letter_of("failed_without_inputs")
    assert letter is not None
    assert letter.error == Error(error_class=ErrorClass.VALIDATION, message="The required inputs were not received.")


def test_a_run_that_ends_in_the_second_it_starts_took_no_time() -> None:
    payload = {**load("finished"), "stopTime": load("finished")["startTime"], "duration": 0}
    assert mapping.claims(payload, workflow_id=AUTOMATION)[0].duration == 0.0


@pytest.mark.parametrize("name", ["finished", "unknown_status", "must_stop_that_stopped", "queued", "detail"])
def test_a_run_that_did_not_fail_is_no_dead_letter_and_has_no_error(name: str) -> None:
    assert letter_of(name) is None
    assert run_of(name).error is None


def test_a_failure_without_words_leaves_its_cause_open() -> None:
    letter = letter_of("failed_without_words")
    assert letter is not None
    assert letter.error is None
    explained = mapping.with_error(
        mapping.claims(load("failed_without_words"), workflow_id=AUTOMATION), Error(type="Late")
    )
    assert [claim.error for claim in explained] == [Error(type="Late")] * 2


def test_an_older_error_that_is_one_object_is_read_too() -> None:
    assert run_of("failed_as_object").error == Error(
        error_class=ErrorClass.NETWORK, type="E_CONN", message="Connection refused"
    )


def test_secrets_and_addresses_in_an_error_do_not_get_through() -> None:
    error = run_of("failed_with_secrets").error
    assert error is not None
    assert error.message is not None
    assert error.message.startswith("login of [email] failed")
    assert "eyJ" not in error.message


def test_titles_owners_tokens_and_the_workspace_never_enter_an_observation() -> None:
    item = load("automation")
    told = repr(mapping.workflow(item, at=1.0)) + repr(mapping.claims(item["lastRun"], workflow_id=AUTOMATION))
    for private in ("Jane", "jane", "usrA", "aZXu", "hunter2", "4711"):
        assert private not in told


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("HTTP-404", "Not Found", ErrorClass.NOT_FOUND),
        (None, "cURL error 6: Could not resolve host: api.shop.example", ErrorClass.NETWORK),
        (None, "cURL error 56: Recv failure: Connection reset by peer", ErrorClass.NETWORK),
        (None, "Request failed with status code 503", ErrorClass.PLATFORM),
        (None, "Request failed with status code 500: {}", ErrorClass.PLATFORM),
        (None, "Server returned 504", ErrorClass.TIMEOUT),
        (None, '{"status": 409, "title": "exists"}', ErrorClass.CONFLICT),
        (None, "resulted in a `400 Bad Request` response", ErrorClass.VALIDATION),
        (None, "API rate limit reached.", ErrorClass.THROTTLED),
        (None, "Maximum execution time of 3600 seconds exceeded", ErrorClass.KILLED),
        (None, "The access token has expired: invalid_grant", ErrorClass.AUTH),
        (None, "You are not allowed to perform this action", ErrorClass.PERMISSION),
        (None, "Field 'amount' is required", ErrorClass.VALIDATION),
        (None, "Order 404 could not be shipped in 429 days", ErrorClass.UNKNOWN),
        (None, "Nope", ErrorClass.UNKNOWN),
        (None, "", ErrorClass.UNKNOWN),
        (None, None, ErrorClass.UNKNOWN),
    ],
)
def test_an_error_text_has_a_class(kind: str | None, text: str | None, expected: ErrorClass) -> None:
    assert classify(kind, text) is expected


@pytest.mark.parametrize("value", [None, [], [{}], [None], {}, "", " ", 7, [{"message": None}], [{"code": 500}]])
def test_an_error_without_words_is_no_error(value: object) -> None:
    assert read_error(value) is None


def test_the_first_error_that_has_words_is_the_error() -> None:
    value = [{}, {"message": "", "detail": "Disk full", "code": 507, "block": "Upload"}, {"message": "later"}]
    assert read_error(value) == Error(error_class=ErrorClass.QUOTA, type="HTTP-507", message="Disk full", status=507)


def test_a_huge_error_text_is_cut() -> None:
    error = read_error([{"message": "x y " * 1_000_000}])
    assert error is not None
    assert error.message is not None
    assert len(error.message) <= 300


# Automations


def test_an_automation_is_a_workflow() -> None:
    assert mapping.workflow(load("automation"), at=12.5) == Workflow(
        id=AUTOMATION,
        at=12.5,
        name="Nightly export",
        workspace="5f0f78b239ff4f0001234567",
        trigger="schedule",
        enabled=True,
    )


def test_states_and_run_modes_of_automations() -> None:
    never_run = mapping.workflow(load("automation_never_run"), at=1.0)
    assert (never_run.enabled, never_run.blocked, never_run.trigger, never_run.workspace) == (False, None, "api", None)
    unavailable = mapping.workflow(load("automation_unavailable"), at=1.0)
    assert (unavailable.enabled, unavailable.blocked, unavailable.trigger) == (True, Blocked.UNAVAILABLE, "webhook")
    odd = mapping.workflow(load("automation_of_unknown_words"), at=1.0)
    assert (odd.enabled, odd.blocked, odd.trigger, odd.name) == (None, None, None, None)


def test_an_automation_without_an_id_is_a_bad_item() -> None:
    with pytest.raises(BadItem):
        mapping.workflow({**load("automation"), "id": None}, at=1.0)


def test_the_signature_changes_when_something_happens_to_the_last_run_and_only_then() -> None:
    item = load("automation")
    assert mapping.signature(item) == [RUN, State.FINISHED, ENDED]
    assert mapping.signature({**item, "name": "Other", "updatedAt": None, "duration": None}) == mapping.signature(item)
    running = {**item["lastRun"], "status": "running", "stopTime": None}
    assert mapping.signature({**item, "lastRun": running}) == [RUN, State.RUNNING, ENDED]
    assert mapping.signature({**item, "lastRunAt": "2026-01-15T07:00:00.000000Z"}) == [
        RUN,
        State.FINISHED,
        at("07:00:00"),
    ]
    assert mapping.signature(load("automation_never_run")) == [None, None, None]
    assert mapping.signature({**item, "lastRun": None}) == [None, None, ENDED]


# Usage


def test_usage_is_summed_over_the_days() -> None:
    assert mapping.usage(load("usage")["data"], name="bandwidthIn", at=3.0) == Usage(
        kind="bandwidth_in", unit=Unit.BYTES, at=3.0, used=310180000.0
    )


def test_usage_of_a_month_without_days_is_zero() -> None:
    assert mapping.usage([], name="runs", at=3.0) == Usage(kind="runs", unit=Unit.RUNS, at=3.0, used=0.0)


def test_a_sum_with_a_missing_number_is_no_sum() -> None:
    with pytest.raises(BadItem, match="runs"):
        mapping.usage(load("usage_null_number")["data"], name="runs", at=3.0)


def test_settings_are_a_limit() -> None:
    assert mapping.settings(load("settings"), at=3.0) == Usage(
        kind="concurrent_runs_per_automation", unit=Unit.RUNS, at=3.0, limit=10.0
    )
    nothings: list[object] = [None, [], {}, {"maxConcurrentRunsPerAutomation": None}]
    for nothing in nothings:
        with pytest.raises(BadItem):
            mapping.settings(nothing, at=3.0)


def test_usage_counts_from_the_first_day_of_the_month() -> None:
    assert mapping.month_start(at("06:00:00")) == "2026-01-01"


# Error bodies


def test_an_error_body_is_worded_by_its_title_and_detail() -> None:
    assert PLATFORM.error_detail(load("error_404")) == "Not Found: no such automation"
    odds: list[object] = [None, [], {}, {"errors": []}, {"errors": [None]}, {"errors": [{"title": 4}]}]
    for odd in odds:
        assert PLATFORM.error_detail(odd) is None


# Webhooks


def receive(name: str | bytes, **headers: str) -> WebhookEvents:
    body = name if isinstance(name, bytes) else orjson.dumps(load(name))
    return PLATFORM.receive(
        WebhookRequest(
            method="POST",
            headers={"content-type": "application/json", **headers},
            query={},
            body=body,
            received_at=ENDED + 2,
            base_url="https://tenant.example",
        )
    )


@pytest.mark.parametrize("envelope", ["cloudevents", "legacy", "hybrid"])
def test_every_envelope_of_a_failed_run_claims_it_and_asks_for_its_cause(envelope: str) -> None:
    events = receive(f"event_{envelope}")
    run = replace(FAILED, bytes_in=2000.0, bytes_out=120.0, steps=BLOCKS)
    assert list(events.observations) == [
        run,
        DeadLetter(id=RUN, workflow_id=AUTOMATION, run_id=RUN, opened_at=ENDED),
    ]
    assert list(events.wake) == [RunKey(run_id=RUN, workflow_id=AUTOMATION)]
    assert events.occurred_at == pytest.approx(at("06:00:45.120"))
    assert not events.unknown_types


def test_an_event_of_a_success_says_everything() -> None:
    events = receive("event_of_success")
    assert [claim.result for claim in events.observations if isinstance(claim, Run)] == [Result.SUCCESS]
    assert not events.wake


def test_an_event_of_a_run_in_the_editor_tells_of_a_test() -> None:
    event = load("event_cloudevents")
    for context, marked in (("editor", False), ("test_run", True), ("api", True)):
        event["data"] |= {"context": context, "testRun": marked}
        assert [getattr(o, "is_test", None) for o in receive(orjson.dumps(event)).observations] == [True]


def test_an_event_of_a_run_that_a_person_started_tells_nothing_but_where_to_look() -> None:
    event = load("event_of_success")
    event["data"]["context"] = "interactive"
    events = receive(orjson.dumps(event))
    assert (list(events.observations), list(events.wake)) == ([], [RunKey(run_id=RUN, workflow_id=AUTOMATION)])


def test_an_event_without_an_end_asks_for_the_run() -> None:
    assert receive("event_without_end").wake == [RunKey(run_id=RUN, workflow_id=AUTOMATION)]


def test_an_event_of_another_type_is_named_and_ignored() -> None:
    events = receive("event_of_other_type")
    assert list(events.unknown_types) == ["com.qlik.v1.automation.updated"]
    assert not events.observations
    assert not events.wake


def test_a_batch_is_read_event_by_event() -> None:
    body = orjson.dumps([load("event_of_success"), load("event_of_other_type")])
    events = receive(body, **{"content-type": "application/cloudevents-batch+json"})
    assert len(events.observations) == 1
    assert len(events.unknown_types) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{}",
        b'{"event": "run.finished"}',
        orjson.dumps(load("event_without_run_id")),
        orjson.dumps(load("event_without_automation")),
        orjson.dumps({**load("event_of_success"), "data": None}),
    ],
)
def test_what_cannot_be_read_is_malformed_and_not_quoted(body: bytes) -> None:
    with pytest.raises(MalformedEvent) as problem:
        receive(body)
    assert RUN not in str(problem.value)
    assert "\n" not in str(problem.value)


def test_the_automation_may_be_named_inside_the_data() -> None:
    event = load("event_of_success")
    del event["toplevelresourceid"]
    claim = receive(orjson.dumps(event)).observations[0]
    assert isinstance(claim, Run)
    assert claim.workflow_id == AUTOMATION
