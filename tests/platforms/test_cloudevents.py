"""CloudEvents in every envelope they come in, and what is done with everything that is none."""

import base64
import json
import traceback
from datetime import datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from exporter.platform.cloudevents import (
    ATTRIBUTE_CHARS_MAX,
    ID_CHARS_MAX,
    CloudEvent,
    Malformed,
    is_cloudevent,
    parse,
    parse_time,
)

PLAIN = {"content-type": "application/json"}
STRUCTURED = {"content-type": "application/cloudevents+json; charset=utf-8"}
BATCH = {"content-type": "application/cloudevents-batch+json"}
BINARY = {
    "content-type": "application/json",
    "ce-specversion": "1.0",
    "ce-id": "evt-42",
    "ce-source": "com.qlik/automations",
    "ce-type": "com.qlik.v1.automation.run.ended",
    "ce-time": "2026-01-15T06:00:45.120Z",
    "ce-toplevelresourceid": "AID",
    "ce-tenantid": "tnt-demo",
}
EVENT: dict[str, Any] = {
    "id": "evt-42",
    "time": "2026-01-15T06:00:45.120Z",
    "type": "com.qlik.v1.automation.run.ended",
    "source": "com.qlik/automations",
    "specversion": "1.0.2",
    "datacontenttype": "application/json",
    "tenantid": "tnt-demo",
    "ownerid": "usrA",
    "userid": "usrA",
    "spaceid": "",
    "toplevelresourceid": "AID",
    "data": {"id": "5f1c", "status": "failed"},
}
LEGACY: dict[str, Any] = {
    "cloudEventsVersion": "0.1",
    "eventId": "evt-42",
    "eventTime": "2026-01-15T06:00:45.120Z",
    "eventType": "com.qlik.v1.automation.run.ended",
    "eventTypeVersion": "1.0.0",
    "contentType": "application/json",
    "source": "com.qlik/automations",
    "extensions": {
        "tenantId": "tnt-demo",
        "userId": "usrA",
        "ownerId": "usrA",
        "spaceId": "",
        "topLevelResourceId": "AID",
    },
    "data": {"id": "5f1c", "status": "failed"},
}
MINIMAL = {"specversion": "1.0", "id": "1", "source": "s", "type": "t"}

EXPECTED = CloudEvent(
    id="evt-42",
    source="com.qlik/automations",
    type="com.qlik.v1.automation.run.ended",
    time=1768456845.12,
    subject=None,
    data={"id": "5f1c", "status": "failed"},
    extensions={
        "tenantid": "tnt-demo",
        "ownerid": "usrA",
        "userid": "usrA",
        "spaceid": "",
        "toplevelresourceid": "AID",
    },
)


def body(value: object) -> bytes:
    return json.dumps(value).encode()


def parsed(headers: dict[str, str], value: object) -> CloudEvent:
    (event,) = parse(headers, body(value))
    return event


# The three envelopes of one event


@pytest.mark.parametrize("envelope", [EVENT, LEGACY, LEGACY | EVENT], ids=["new", "legacy", "hybrid"])
@pytest.mark.parametrize("headers", [PLAIN, STRUCTURED, {}], ids=["plain", "structured", "untyped"])
def test_new_legacy_and_hybrid_envelopes_become_the_same_event(
    headers: dict[str, str], envelope: dict[str, Any]
) -> None:
    assert parsed(headers, envelope) == EXPECTED


def test_the_new_attributes_of_a_hybrid_win_over_the_old() -> None:
    old = LEGACY | {"eventId": "old", "eventTime": "2020-01-01T00:00:00Z", "eventType": "old", "tenantId": "camel"}
    old["extensions"] = dict.fromkeys(LEGACY["extensions"], "old")
    assert parsed(PLAIN, old | EVENT) == EXPECTED
    assert parsed(PLAIN, EVENT | old) == EXPECTED


def test_the_old_attributes_of_a_hybrid_fill_in_for_null() -> None:
    assert parsed(PLAIN, LEGACY | EVENT | {"id": None, "time": None, "type": None}) == EXPECTED


def test_a_binary_event_takes_its_attributes_from_headers_and_its_data_from_the_body() -> None:
    (event,) = parse(BINARY, body(EVENT["data"]))
    assert event == CloudEvent(
        id="evt-42",
        source="com.qlik/automations",
        type="com.qlik.v1.automation.run.ended",
        time=1768456845.12,
        subject=None,
        data={"id": "5f1c", "status": "failed"},
        extensions={"toplevelresourceid": "AID", "tenantid": "tnt-demo"},
    )


def test_a_binary_event_of_the_old_version_is_read_too() -> None:
    headers = {"ce-cloudeventsversion": "0.1", "ce-eventid": "1", "ce-eventtype": "t", "ce-source": "s"}
    (event,) = parse(headers, b"")
    assert (event.id, event.type, event.source, event.data, event.extensions) == ("1", "t", "s", None, {})


@pytest.mark.parametrize("sent", ["M%C3%BCller%20%26", "Müller &"])
def test_binary_attributes_are_percent_decoded(sent: str) -> None:
    (event,) = parse(BINARY | {"ce-subject": sent}, b"{}")
    assert event.subject == "Müller &"


@pytest.mark.parametrize(
    ("media", "sent", "data"),
    [
        ("application/json", b"[1]", [1]),
        ("Application/Vnd.Run+JSON; charset=utf-8", b"[1]", [1]),
        ("text/plain", b"[1]", b"[1]"),
        ("application/octet-stream", b"\xff", b"\xff"),
        ("application/json", b"", None),
    ],
)
def test_binary_data_is_decoded_if_it_says_it_is_json(media: str, sent: bytes, data: object) -> None:
    (event,) = parse(BINARY | {"content-type": media}, sent)
    assert event.data == data


def test_a_batch_keeps_its_order_and_may_be_empty() -> None:
    assert parse(BATCH, b"[]") == []
    events = parse(BATCH, body([MINIMAL | {"id": "b"}, LEGACY, MINIMAL | {"id": "a"}]))
    assert [event.id for event in events] == ["b", "evt-42", "a"]


def test_a_batch_is_bounded() -> None:
    assert len(parse(BATCH, body([MINIMAL] * 1000))) == 1000
    with pytest.raises(Malformed, match=r"^more than 1000 events in a batch$"):
        parse(BATCH, body([MINIMAL] * 1001))
    with pytest.raises(Malformed, match=r"^more than 2 events"):
        parse(BATCH, body([MINIMAL] * 3), events_max=2)


def test_one_bad_event_refuses_the_batch_and_is_named() -> None:
    with pytest.raises(Malformed, match=r"^event 2 of the batch: id is missing$"):
        parse(BATCH, body([MINIMAL, {"type": "t"}, MINIMAL]))


# Attributes


def test_only_id_and_type_are_needed() -> None:
    event = parsed(STRUCTURED, {"id": "1", "type": "t"})
    assert event == CloudEvent(id="1", source="", type="t", time=None, subject=None, data=None, extensions={})


def test_extensions_are_lower_case_text_and_nothing_nested() -> None:
    extra = {"flag": True, "off": False, "count": 7, "nothing": None, "ratio": 1.5, "list": [1], "spaceId": "sp"}
    event = parsed(PLAIN, MINIMAL | extra | {"dataschema": "http://s", "subject": "sub", "_links": "x", "": "x"})
    assert event.extensions == {"flag": "true", "off": "false", "count": "7", "spaceid": "sp"}
    assert event.subject == "sub"


def test_a_header_without_a_usable_name_is_no_extension() -> None:
    (event,) = parse({"ce-id": "1", "ce-type": "t", "ce-": "x", "ce-\ud800": "x", "ce-a-b": "x", "ce-ok1": "x"}, b"")
    assert event.extensions == {"ok1": "x"}


@pytest.mark.parametrize("extensions", [None, [], 1, {"a": {"b": 1}, "c": [1]}])
def test_odd_legacy_extensions_are_left_out(extensions: object) -> None:
    assert parsed(PLAIN, LEGACY | {"extensions": extensions}).extensions == {}


def test_a_time_that_is_no_time_is_unknown() -> None:
    assert parsed(PLAIN, EVENT | {"time": "yesterday"}).time is None


@pytest.mark.parametrize(
    ("media", "data"),
    [({}, {"a": 1}), ({"datacontenttype": "text/plain"}, b'{"a": 1}'), ({"contentType": "x/y+json"}, {"a": 1})],
)
def test_base64_data_is_decoded(media: dict[str, str], data: object) -> None:
    sent = {"data_base64": base64.b64encode(b'{"a": 1}').decode()}
    assert parsed(PLAIN, MINIMAL | media | sent).data == data


@pytest.mark.parametrize("data", [0, False, "", [], {}, "text", 1.5])
def test_data_may_be_any_json(data: object) -> None:
    assert parsed(PLAIN, MINIMAL | {"data": data}).data == data


# What is refused


@pytest.mark.parametrize(
    ("headers", "sent", "message"),
    [
        (PLAIN, b"", "not JSON"),
        (PLAIN, b"{hunter2", "not JSON"),
        (PLAIN, b'{"specversion": "hunter2\xff"', "not JSON"),
        (PLAIN, b'{"specversion": "1.0", "id": 1e999}', "not JSON"),
        (PLAIN, b'{"specversion": ' + b"9" * 400 + b"}", "not JSON"),
        (PLAIN, b'{"specversion": NaN}', "not JSON"),
        (PLAIN, b'{"specversion": "1.0", "id": "\\ud800", "type": "t"}', "id has characters that cannot be read"),
        (STRUCTURED, b"[" * 100_000, "nested too deeply"),
        (STRUCTURED, b'{"a":' * 5_000 + b"1" + b"}" * 5_000, "nested too deeply"),
        (PLAIN, b'{"id": "hunter2", "type": "t"}', "no specversion"),
        (PLAIN, b'["hunter2"]', "no specversion"),
        (STRUCTURED, b'["hunter2"]', "not an object"),
        (STRUCTURED, b"null", "not an object"),
        (BATCH, b'{"id": "hunter2"}', "not a list"),
        (BATCH, b'["hunter2"]', "event 1 of the batch: an event is not an object"),
        ({"content-type": "application/cloudevents+avro"}, b"hunter2", "other than JSON"),
        ({"content-type": "application/cloudevents"}, b"{}", "other than JSON"),
        ({"ce-id": "1", "ce-source": "hunter2"}, b"{}", "type is missing"),
        ({"ce-specversion": "1.0", "ce-type": "hunter2"}, b"{}", "id is missing"),
        (BINARY, b"{hunter2", "not JSON"),
        (BINARY | {"ce-subject": "hunter2%FF"}, b"{}", "not UTF-8"),
        (BINARY | {"ce-subject": "hunter2\udce9"}, b"{}", "not UTF-8"),
        (BINARY | {"ce-subject": "hunter2%0A"}, b"{}", "subject has control characters"),
    ],
)
def test_what_is_no_cloudevent_is_malformed(headers: dict[str, str], sent: bytes, message: str) -> None:
    assert_malformed(headers, sent, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, "id is missing"),
        ({"id": ""}, "id is missing"),
        ({"id": 42}, "id is not text"),
        ({"id": None, "eventId": ["hunter2"]}, "eventid is not text"),
        ({"id": "x" * (ID_CHARS_MAX + 1)}, "id is too long"),
        ({"id": "hunter2\u0000"}, "id has control characters"),
        ({"type": None}, "type is missing"),
        ({"type": {"hunter2": 1}}, "type is not text"),
        ({"source": ["hunter2"]}, "source is not text"),
        ({"source": "x" * (ATTRIBUTE_CHARS_MAX + 1)}, "source is too long"),
        ({"subject": 1}, "subject is not text"),
        ({"time": 1768456845}, "time is not text"),
        ({"specversion": 1.0}, "specversion is not text"),
        ({"cloudEventsVersion": True}, "cloudeventsversion is not text"),
        ({"tenantid": "hunter2\n"}, "an extension has control characters"),
        ({"extensions": {"tenantId": "x" * (ATTRIBUTE_CHARS_MAX + 1)}}, "an extension is too long"),
        ({"data": None, "data_base64": "hunter2!"}, "data_base64 is not base64"),
        ({"data": None, "data_base64": "e3!0="}, "data_base64 is not base64"),
        ({"data": None, "data_base64": "hünter2"}, "data_base64 is not base64"),
        ({"data": None, "data_base64": 7}, "data_base64 is not base64"),
        ({"data": None, "data_base64": "aHVudGVyMg=="}, "not JSON"),
        ({"data": None, "data_base64": "e30=", "datacontenttype": 1}, "datacontenttype is not text"),
    ],
)
def test_a_wrong_attribute_is_named_and_not_quoted(change: dict[str, object], message: str) -> None:
    assert_malformed(PLAIN, body(EVENT | change), message)


def assert_malformed(headers: dict[str, str], sent: bytes, message: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse(headers, sent)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    error: BaseException | None = caught.value
    while error is not None:  # nothing that was received travels along, for a log to unroll
        assert isinstance(error, Malformed)
        assert "hunter" not in "".join(traceback.format_exception_only(error)) + repr(vars(error))
        error = error.__context__


# Choosing


@pytest.mark.parametrize(
    ("headers", "value", "answer"),
    [
        (STRUCTURED, None, True),
        (BATCH, [], True),
        (BINARY, None, True),
        ({"ce-eventtype": "t"}, {}, True),
        (PLAIN, EVENT, True),
        (PLAIN, LEGACY, True),
        ({}, {"specversion": 1}, True),
        (PLAIN, {"event": "run.finished"}, False),
        (PLAIN, {"eventId": "1", "eventType": "Flow.Executed"}, False),
        (PLAIN, [EVENT], False),
        (PLAIN, None, False),
        ({"ce-other": "1"}, {}, False),
    ],
)
def test_a_receiver_can_tell_cloudevents_from_the_rest(headers: dict[str, str], value: object, answer: bool) -> None:
    assert is_cloudevent(headers, value) is answer


# Times


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:00Z", 0.0),
        ("2026-01-15T06:00:45Z", 1768456845.0),
        ("2026-01-15T06:00:45.120Z", 1768456845.12),
        ("2026-01-15T06:00:45.5Z", 1768456845.5),
        ("2021-12-23T12:28:21.000001Z", 1640262501.000001),
        ("2026-01-15T06:00:45.123456789012345678901234567890Z", 1768456845.123456789),
        ("2026-01-15t06:00:45z", 1768456845.0),
        ("2026-01-15 06:00:45Z", 1768456845.0),
        ("2026-01-15T07:00:45+01:00", 1768456845.0),
        ("2026-01-15T00:30:45-05:30", 1768456845.0),
        ("2026-01-15T06:00:45-00:00", 1768456845.0),
        ("2016-12-31T23:59:60Z", 1483228800.0),
        ("1969-12-31T23:59:59.5Z", -0.5),
        ("0001-01-01T00:00:00+23:59", -62135683140.0),
        ("9999-12-31T23:59:59Z", 253402300799.0),
        ("2024-02-29T00:00:00Z", 1709164800.0),
    ],
)
def test_rfc3339_times_become_epoch_seconds(text: str, seconds: float) -> None:
    assert parse_time(text) == pytest.approx(seconds, rel=0, abs=1e-6)


@pytest.mark.parametrize(
    "value",
    [
        None,
        1768456845,
        1768456845120.0,
        b"2026-01-15T06:00:45Z",
        "",
        "1768456845",
        "2026-01-15",
        "2026-01-15T06:00:45",
        "2026-01-15T06:00Z",
        "2026-01-15T06:00:45.Z",
        "2026-01-15T06:00:45Z\n",
        " 2026-01-15T06:00:45Z",
        "2026-13-15T06:00:45Z",
        "2026-02-29T06:00:45Z",
        "2026-01-15T24:00:00Z",
        "2026-01-15T06:00:61Z",
        "2026-01-15T06:00:45+24:00",
        "2026-01-15T06:00:45+01:60",
        "2026-01-15T06:00:45+1:00",
        "0000-01-01T00:00:00Z",
        "٢٠٢٦-01-15T06:00:45Z",
        ["2026-01-15T06:00:45Z"],
    ],
)
def test_anything_else_is_no_time(value: object) -> None:
    assert parse_time(value) is None


@given(moment=st.datetimes(timezones=st.timezones()))
def test_every_moment_reads_as_python_itself_reads_it(moment: datetime) -> None:
    text = moment.isoformat()
    offset = moment.utcoffset()
    if offset is not None and offset.total_seconds() % 60 == 0:  # RFC 3339 knows no seconds in an offset
        assert parse_time(text) == pytest.approx(datetime.fromisoformat(text).timestamp(), rel=0, abs=2e-5)


# Fuzz: whatever arrives, only Malformed may escape

ATOMS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("2026-01-15T06:00:45Z")
JSON = st.recursive(
    ATOMS,
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(list(EVENT)), inner),
    max_leaves=8,
)
KEYS = st.sampled_from([*EVENT, *LEGACY, "subject", "data_base64", "ID"]) | st.text()
ENVELOPES = st.dictionaries(KEYS, JSON) | st.dictionaries(KEYS, st.text()).map(lambda some: EVENT | some)
BODIES = st.one_of(
    st.binary(),
    ENVELOPES.map(body),
    st.lists(ENVELOPES | JSON).map(body),
    st.binary().map(body(EVENT)[:-1].__add__),
)
VALUES = st.text(st.characters(categories=None)) | st.sampled_from(
    [media for headers in (PLAIN, STRUCTURED, BATCH) for media in headers.values()]
)
HEADERS = st.dictionaries(
    st.sampled_from(["content-type", *BINARY, "ce-subject", "ce-x", "ce-"]) | st.text(st.characters(categories=None)),
    VALUES,
) | st.sampled_from([PLAIN, STRUCTURED, BATCH, BINARY])


@given(headers=HEADERS, sent=BODIES)
@example(headers=PLAIN, sent=b'{"specversion":"1.0","id":"1","type":"t","data":' + b"[" * 900 + b"]" * 900 + b"}")
def test_whatever_arrives_is_read_or_malformed(headers: dict[str, str], sent: bytes) -> None:
    try:
        events = parse(headers, sent)
    except Malformed:
        return
    for event in events:
        texts = [event.id, event.source, event.type, *event.extensions, *event.extensions.values()]
        assert all(isinstance(text, str) for text in texts)
        assert event.id
        assert event.type
        "".join(texts).encode()  # storable: no lone surrogates
        assert event.time is None or isinstance(event.time, float)


@given(value=JSON, headers=HEADERS)
def test_choosing_never_raises(value: object, headers: dict[str, str]) -> None:
    assert is_cloudevent(headers, value) in (True, False)


@given(value=st.text() | st.from_regex(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)"))
def test_a_time_never_raises(value: str) -> None:
    assert parse_time(value) is None or isinstance(parse_time(value), float)
