"""The documented event: what each form of it claims, and what of it is refused."""

import base64
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.model import Error, ErrorClass, Result, Run, State
from exporter.platform import MalformedEvent, RunKey, WebhookEvents, WebhookRequest
from exporter.platform.events import FUTURE_MAX, receive_generic

NOW = 1_772_440_000.0  # 2026-03-02T08:26:40Z
ENDED = 1_772_439_370.0  # 2026-03-02T08:16:10Z
JSON = {"content-type": "application/json"}


def classify(kind: str | None, message: str | None) -> ErrorClass:
    return ErrorClass.NETWORK if kind == "ConnectionError" else ErrorClass.UNKNOWN


def receive(payload: object, headers: dict[str, str] | None = None) -> WebhookEvents:
    body = payload if isinstance(payload, bytes) else orjson.dumps(payload)
    request = WebhookRequest(
        method="POST", headers=headers or JSON, query={}, body=body, received_at=NOW, base_url="https://x.example"
    )
    return receive_generic(request, classify=classify)


def event(**more: object) -> dict[str, object]:
    told: dict[str, object] = {
        "event": "run.finished",
        "workflow_id": "5012",
        "run_id": "3a1f",
        "attempt": 2,
        "result": "success",
        "started_at": "2026-03-02T08:15:30Z",
        "ended_at": "2026-03-02T08:16:10Z",
        "occurred_at": "2026-03-02T08:16:11Z",
    }
    return {key: value for key, value in (told | more).items() if value is not ...}


def run_of(events: WebhookEvents) -> Run:
    (run,) = events.observations
    assert isinstance(run, Run)
    return run


FINISHED = Run(
    workflow_id="5012",
    id="3a1f",
    attempt=2,
    state=State.FINISHED,
    result=Result.SUCCESS,
    started_at=ENDED - 40,
    ended_at=ENDED,
)


# What is claimed


def test_a_finished_run_is_claimed_with_everything_the_event_says() -> None:
    events = receive(event())
    assert run_of(events) == FINISHED
    assert (events.wake, events.wake_streams, events.unknown_types) == ([], [], [])
    assert events.occurred_at == ENDED + 1


def test_a_started_run_is_running_since_its_start_or_else_since_the_event() -> None:
    started = receive(event(event="run.started", result=..., ended_at=...))
    assert (run_of(started).state, run_of(started).started_at) == (State.RUNNING, ENDED - 40)
    assert run_of(receive(event(event="run.started", started_at=..., ended_at=...))).started_at == ENDED + 1


def test_an_end_that_is_not_given_is_the_moment_of_the_event_or_else_of_its_arrival() -> None:
    assert run_of(receive(event(ended_at=...))).ended_at == ENDED + 1
    bare = receive(event(ended_at=..., occurred_at=..., started_at=..., attempt=...))
    assert (run_of(bare).ended_at, run_of(bare).started_at, run_of(bare).attempt) == (NOW, None, 1)
    assert bare.occurred_at is None


@pytest.mark.parametrize(
    ("word", "result"),
    [
        ("success", Result.SUCCESS),
        ("Succeeded", Result.SUCCESS),
        ("FAILED", Result.FAILURE),
        ("warning", Result.WARNING),
        ("canceled", Result.CANCELLED),
        ("timeout", Result.TIMEOUT),
        ("quota", Result.QUOTA),
        ("exploded", Result.UNKNOWN),
    ],
)
def test_results_are_read_in_the_words_senders_use(word: str, result: Result) -> None:
    assert run_of(receive(event(result=word))).result is result


def test_a_failure_without_its_cause_is_claimed_and_names_the_run_to_complete() -> None:
    events = receive(event(result="failure"))
    assert run_of(events).result is Result.FAILURE
    assert events.wake == [RunKey(run_id="3a1f", workflow_id="5012")]
    assert receive(event(result="failure", error={"type": "ConnectionError"})).wake == []


def test_an_end_without_a_result_claims_nothing_and_names_the_run_to_complete() -> None:
    events = receive(event(result=...))
    assert (events.observations, events.wake) == ([], [RunKey(run_id="3a1f", workflow_id="5012")])


def test_an_error_is_classified_and_its_texts_are_redacted() -> None:
    told = {"type": "ConnectionError", "message": "POST https://a.example/?key=s3cret failed", "stack": ["at x"]}
    expected = "POST https://a.example/?[redacted] failed"
    error = Error(error_class=ErrorClass.NETWORK, type="ConnectionError", message=expected)
    assert run_of(receive(event(result="failure", error=told))).error == error
    assert run_of(receive(event(result="warning", error=told))).error == error
    assert run_of(receive(event(result="success", error=told))).error is None


@pytest.mark.parametrize("error", [None, "text", {}, {"type": None, "message": 5}, []])
def test_an_error_that_says_nothing_is_not_known(error: object) -> None:
    assert run_of(receive(event(result="failure", error=error))).error is None


def test_an_opened_dead_letter_wakes_the_stream_that_reads_them() -> None:
    events = receive([{"event": "dead_letter.opened", "workflow_id": "5012"}, event()])
    assert events.wake_streams == ["dead_letters"]
    assert run_of(events) == FINISHED


def test_unknown_fields_are_ignored_and_unknown_types_are_told_redacted() -> None:
    assert run_of(receive(event(colour="blue", nested={"a": [1]}))) == FINISHED
    events = receive([{"event": "run.exploded"}, {"event": "mail of jane@corp.example"}])
    assert (events.observations, events.unknown_types) == ([], ["run.exploded", "mail of [email]"])


def test_ids_may_be_whole_numbers() -> None:
    run = run_of(receive(event(workflow_id=5012, run_id=18_446_744_073_709_551_615)))
    assert (run.workflow_id, run.id) == ("5012", "18446744073709551615")


def test_the_platform_spells_the_run_id() -> None:
    request = WebhookRequest(
        method="POST", headers=JSON, query={}, body=orjson.dumps(event()), received_at=NOW, base_url=""
    )
    events = receive_generic(request, classify=classify, run_id=lambda text: f"run-{text}")
    assert run_of(events).id == "run-3a1f"


# Times


@pytest.mark.parametrize(
    "told",
    [
        "2026-03-02T08:16:10Z",
        "2026-03-02T08:16:10.000Z",
        "2026-03-02t08:16:10.000000000z",
        "2026-03-02T09:46:10+01:30",
        "2026-03-02 08:16:10+00:00",
        ENDED,
        int(ENDED),
        int(ENDED * 1000),
    ],
)
def test_times_are_rfc_3339_or_seconds_or_milliseconds(told: object) -> None:
    assert run_of(receive(event(ended_at=told))).ended_at == ENDED


def test_a_leap_second_is_a_time() -> None:
    assert run_of(receive(event(started_at="2016-12-31T23:59:60Z"))).started_at == 1_483_228_800.0


@pytest.mark.parametrize(
    "told",
    [
        "",
        "yesterday",
        "2026-03-02",
        "2026-03-02T08:16:10",
        "2026-02-30T08:16:10Z",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
        True,
        -5,
        0,
        1e300,
        [],
        {},
    ],
)
@pytest.mark.parametrize("key", ["started_at", "ended_at", "occurred_at"])
def test_what_is_no_time_is_refused_by_its_name(key: str, told: object) -> None:
    with pytest.raises(MalformedEvent, match=f'"{key}"'):
        receive(event(**{key: told}))


def test_a_time_ahead_of_our_clock_is_taken_up_to_a_day() -> None:
    """Clocks differ, and time zones are got wrong; years ahead would hide every later end of the workflow."""
    assert run_of(receive(event(ended_at=NOW + FUTURE_MAX))).ended_at == NOW + FUTURE_MAX
    with pytest.raises(MalformedEvent, match='"ended_at" is in the future'):
        receive(event(ended_at=NOW + FUTURE_MAX + 1))


# Envelopes


def test_cloudevents_carry_the_event_as_data_and_their_time_stands_in() -> None:
    data = event(event=..., occurred_at=..., ended_at=...)
    wrapped = {"specversion": "1.0", "id": "1", "source": "/x", "type": "run.finished", "data": data}
    wrapped["time"] = "2026-03-02T08:16:10Z"
    structured = {"content-type": "application/cloudevents+json"}
    for headers in (JSON, structured):
        events = receive(wrapped, headers)
        assert (run_of(events), events.occurred_at) == (FINISHED, ENDED)
    batch = receive([wrapped, wrapped | {"type": "other"}], {"content-type": "application/cloudevents-batch+json"})
    assert (run_of(batch), batch.unknown_types) == (FINISHED, ["other"])
    binary = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/x", "ce-type": "run.finished", **JSON}
    assert run_of(receive(data, binary | {"ce-time": "2026-03-02T08:16:10Z"})) == FINISHED


def test_the_data_of_a_cloudevent_may_be_encoded_or_nothing() -> None:
    wrapped: dict[str, Any] = {"specversion": "1.0", "id": "1", "source": "/x", "type": "run.finished"}
    encoded = base64.b64encode(orjson.dumps(event())).decode()
    assert run_of(receive(wrapped | {"data_base64": encoded, "datacontenttype": "application/json"})) == FINISHED
    with pytest.raises(MalformedEvent, match='"workflow_id"'):
        receive(wrapped | {"data": "text"})
    assert receive(wrapped | {"type": "other"}).unknown_types == ["other"]


def test_the_event_itself_is_read_as_it_is_whatever_the_headers_say() -> None:
    """Gateways add headers of their own."""
    assert run_of(receive(event(), {"ce-id": "1", "content-type": "text/plain"})) == FINISHED


# What is refused


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        (b"", "not a JSON object"),
        (b"{", "not a JSON object"),
        (b"\xff", "not a JSON object"),
        (b'{"event": "run.finished", "workflow_id": "\\ud800", "run_id": "r"}', '"workflow_id"'),
        (b"[" * 10_000, "not a JSON object"),
        (b"null", "not a JSON object"),
        ("text", "not a JSON object"),
        ([event(), 5], "not a JSON object"),
        ([{"event": "x"}] * 1001, "more than 1000 events"),
        ({}, 'needs "event"'),
        ({"event": None}, 'needs "event"'),
        (event(workflow_id=...), '"workflow_id"'),
        (event(run_id=""), '"run_id"'),
        (event(run_id="x" * 201), '"run_id"'),
        (event(run_id="a\0b"), '"run_id"'),
        (event(run_id=1.5), '"run_id"'),
        (event(run_id=True), '"run_id"'),
        (event(attempt=0), '"attempt"'),
        (event(attempt=1_000_000), '"attempt"'),
        (event(attempt="1"), '"attempt"'),
        (event(attempt=True), '"attempt"'),
        (event(result=5), '"result"'),
        ({"specversion": "1.0"}, "id is missing"),
    ],
)
def test_what_is_no_event_is_refused_and_the_problem_named(payload: object, problem: str) -> None:
    with pytest.raises(MalformedEvent, match=problem):
        receive(payload)


def test_a_refusal_never_quotes_what_was_sent() -> None:
    for payload in (event(run_id="s3cret\n"), event(ended_at="s3cret"), b'{"event": s3cret', event(attempt="s3cret")):
        with pytest.raises(MalformedEvent) as refusal:
            receive(payload)
        assert "s3cret" not in str(refusal.value)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
told = event(error={"type": "t"}, id="1", type="run.finished", time="2026-03-02T08:16:10Z", data=event())
events_of_any_kind = st.fixed_dictionaries(
    {"event": st.sampled_from(["run.finished", "run.started", "dead_letter.opened"]) | values},
    optional={key: st.just(value) | values for key, value in told.items() if key != "event"} | {"specversion": values},
)


@given(payload=events_of_any_kind | st.lists(events_of_any_kind, max_size=3) | values)
def test_any_json_is_events_or_a_refusal(payload: object) -> None:
    try:
        events = receive(orjson.dumps(payload, option=orjson.OPT_NON_STR_KEYS))
    except MalformedEvent:
        return
    for run in events.observations:
        assert isinstance(run, Run)
        assert 0 < (run.finished_at or NOW) <= NOW + FUTURE_MAX
        assert "\0" not in run.id


@given(body=st.binary(max_size=200))
def test_any_bytes_are_events_or_a_refusal(body: bytes) -> None:
    try:
        receive(body)
    except MalformedEvent:
        return


@pytest.mark.parametrize("days", [60, -60])
@pytest.mark.parametrize("key", ["started_at", "ended_at", "occurred_at"])
def test_before_the_platforms_clock_is_known_no_time_is_too_new(key: str, days: float) -> None:
    def told(moment: float) -> WebhookEvents:
        request = WebhookRequest(
            method="POST", headers=JSON, query={}, body=orjson.dumps(event(**{key: moment})),
            received_at=NOW + days * 86_400, clock_known=False, base_url="",
        )  # fmt: skip
        return receive_generic(request, classify=classify)

    assert run_of(told(NOW)).id == "3a1f"
    with pytest.raises(MalformedEvent, match="in the future"):
        told(4_200_000_000.0)


def test_a_clock_cannot_be_behind_what_a_poll_has_read() -> None:
    body = orjson.dumps(event(ended_at=NOW))
    request = WebhookRequest(
        method="POST", headers=JSON, query={}, body=body, received_at=NOW - 60 * 86_400, read_until=NOW - 9, base_url=""
    )
    assert run_of(receive_generic(request, classify=classify)).ended_at == NOW
