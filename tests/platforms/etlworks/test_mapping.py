"""Recorded payloads of Etlworks become the expected words of the model, and awkward ones cost only themselves."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from exporter.model import DeadLetter, Error, ErrorClass, Result, Run, State, Workflow
from exporter.model.redact import redact
from exporter.platform import BadItem
from exporter.platforms.etlworks import errors, mapping
from exporter.platforms.etlworks.mapping import Execution, Flow
from exporter.platforms.etlworks.schedule import Schedule
from exporter.simulator.etlworks.records import EXCEPTIONS, trace

STARTED, ENDED = 1_768_456_800.0, 1_768_456_842.25


def payload(name: str) -> Any:
    return orjson.loads((Path(__file__).parent / "payloads" / f"{name}.json").read_bytes())


def execution(name: str) -> Execution:
    return mapping.execution(payload(name), flow_id="1234")


def a_run(**fields: Any) -> Run:
    whole: dict[str, Any] = {
        "workflow_id": "1234",
        "id": "80611",
        "state": State.FINISHED,
        "result": Result.SUCCESS,
        "started_at": STARTED,
        "ended_at": ENDED,
        "trigger": "schedule",
    }
    return Run(**{**whole, **fields})


# --- Executions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("success", a_run()),
        ("running", a_run(state=State.RUNNING, result=None, ended_at=None)),
        ("queued", a_run(state=State.PENDING, result=None, started_at=None, ended_at=None)),
        ("canceled", a_run(result=Result.CANCELLED)),
        ("canceled_without_end", a_run(state=State.RUNNING, result=None, ended_at=None)),
        ("without_end", a_run(ended_at=None)),
        ("without_start", a_run(started_at=None)),
        ("unknown_status", a_run(result=Result.UNKNOWN)),
        ("unknown_status_without_end", a_run(state=State.RUNNING, result=None, ended_at=None)),
        ("status_is_null", a_run(result=Result.UNKNOWN)),
        ("duration_as_text", a_run(ended_at=STARTED + 3_903)),
        ("numbers_as_text", a_run(started_at=None, ended_at=None, parent_id="80610")),
        ("log_in_exception", a_run()),
        ("on_demand", a_run(trigger="manual")),
        ("listener", a_run(trigger="webhook")),
        ("only_the_needed", a_run(trigger=None)),
        (
            "error",
            a_run(
                result=Result.FAILURE,
                error=Error(
                    error_class=ErrorClass.VALIDATION,
                    type="java.sql.SQLIntegrityConstraintViolationException",
                    message="java.sql.SQLIntegrityConstraintViolationException: Column 'customer_id' cannot be null",
                ),
            ),
        ),
        (
            "error_with_log_only",
            a_run(
                result=Result.FAILURE,
                error=Error(
                    error_class=ErrorClass.NETWORK,
                    message="ERROR: destination is not reachable: Connection reset",
                ),
            ),
        ),
        ("error_without_text", a_run(result=Result.FAILURE, trigger="manual", error=Error())),
        (
            "warning",
            a_run(
                result=Result.WARNING,
                error=Error(message="2 rows were rejected by the destination, mail [email]"),
            ),
        ),
        (
            "warning_with_exception",
            a_run(
                result=Result.WARNING,
                error=Error(
                    error_class=ErrorClass.NOT_FOUND,
                    type="java.io.FileNotFoundException",
                    message="java.io.FileNotFoundException: /inbound/orders.csv (No such file or directory)",
                ),
            ),
        ),
    ],
)
def test_an_execution_becomes_a_run(name: str, expected: Run) -> None:
    assert execution(name).run == expected


def test_a_repetition_by_the_scheduler_is_a_run_of_its_own_that_names_the_first() -> None:
    item = execution("retried_error")
    assert (item.run.id, item.run.parent_id, item.run.attempt) == ("80640", "80611", 1)
    assert (item.scheduled, item.schedule_id, item.tries) == (True, "77", 2)


@pytest.mark.parametrize("name", ["canceled", "canceled_without_end"])
def test_canceled_is_not_the_last_word(name: str) -> None:
    assert execution(name).canceled
    assert not execution("error").canceled


def test_what_a_canceled_run_is_called_later_is_still_a_cancellation() -> None:
    for name in ("error", "success"):
        told = mapping.as_cancelled(execution(name), stopped_at=ENDED - 7).run
        assert told == a_run(result=Result.CANCELLED, ended_at=ENDED - 7)
        assert mapping.as_cancelled(execution(name), stopped_at=None).run == a_run(result=Result.CANCELLED)
    running = execution("running")
    assert mapping.as_cancelled(running, stopped_at=None) is running


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (payload("without_audit_id"), "without auditId"),
        (payload("of_another_flow"), "another flow"),
        ({**payload("success"), "auditId": True}, "without auditId"),
        ({**payload("success"), "auditId": -1}, "without auditId"),
        ([], "JSON object"),
        (None, "JSON object"),
    ],
)
def test_an_execution_that_cannot_be_told_apart_is_a_bad_item(record: Any, reason: str) -> None:
    with pytest.raises(BadItem, match=reason):
        mapping.execution(record, flow_id="1234")


@pytest.mark.parametrize("value", [None, True, 0, -5, "1768456800000", [], {}, 1e18, float("nan"), float("inf")])
def test_a_time_that_is_none_is_unknown(value: Any) -> None:
    run = mapping.execution({**payload("success"), "started": value}, flow_id="1234").run
    assert run == a_run(started_at=None)


def test_sql_logins_mail_addresses_and_definitions_never_enter_an_observation() -> None:
    told = repr([execution(name) for name in ("error", "on_demand", "warning")])
    told += repr([mapping.flow(record) for record in payload("flows")[:3]])
    told += repr([mapping.schedule(record) for record in payload("schedules")[:4]])
    for secret in ("insert into", "jane", "@example", "hunter2"):
        assert secret not in told


# --- Errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error_class", list(ErrorClass))
def test_each_error_class_is_recognised_in_a_stack_trace(error_class: ErrorClass) -> None:
    head = EXCEPTIONS[error_class][0]
    error = errors.error_of(trace(head, size=100_000))
    assert error.error_class is error_class
    assert error.type == head.split(":")[0]
    assert error.message == redact(head)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("java.io.IOException: Server returned HTTP response code: 503 for URL: https://x", ErrorClass.PLATFORM),
        ("org.apache.http.client.HttpResponseException: status code: 422", ErrorClass.VALIDATION),
        ("HTTP/1.1 429 Slow", ErrorClass.THROTTLED),
        ("java.io.IOException: HTTP 504 Gateway Time-out", ErrorClass.TIMEOUT),
        ("java.io.FileNotFoundException: /etc/x (Permission denied)", ErrorClass.PERMISSION),
        ("java.net.ConnectException: Connection timed out", ErrorClass.TIMEOUT),
        ("java.sql.SQLException: Lock wait timeout exceeded; try restarting transaction", ErrorClass.CONFLICT),
        ("java.net.UnknownHostException: db.internal", ErrorClass.NETWORK),
        ("javax.net.ssl.SSLHandshakeException: PKIX path building failed", ErrorClass.NETWORK),
        ("com.jcraft.jsch.JSchException: Auth fail", ErrorClass.AUTH),
        ("java.sql.SQLSyntaxErrorException: Unknown column 'a'", ErrorClass.VALIDATION),
        ("java.lang.NumberFormatException: For input string", ErrorClass.VALIDATION),
        ("java.io.IOException: No space left on device", ErrorClass.QUOTA),
        ("java.lang.InterruptedException", ErrorClass.KILLED),
        ("TypeError: x is not a function", ErrorClass.UNKNOWN),
        ("", ErrorClass.UNKNOWN),
    ],
)
def test_a_line_tells_its_error_class(line: str, expected: ErrorClass) -> None:
    assert errors.error_of(line).error_class is expected


def test_the_cause_decides_where_the_exception_itself_says_nothing() -> None:
    text = (
        "com.toolsverse.etl.EtlException: step 3 failed\n\tat com.toolsverse.X.run(X.java:1)\n"
        "Caused by: java.lang.RuntimeException: wrapped\n\tat a.b.C.d(C.java:2)\n"
        "Caused by: java.net.SocketException: Connection reset\n\t... 9 more"
    )
    assert errors.error_of(text) == Error(
        error_class=ErrorClass.NETWORK,
        type="java.net.SocketException",
        message="java.net.SocketException: Connection reset",
    )
    assert errors.error_of(text.split("\nCaused")[0]).type == "com.toolsverse.etl.EtlException"


def test_a_wrapper_is_named_after_what_it_wraps() -> None:
    error = errors.error_of("java.lang.RuntimeException: java.net.ConnectException: Connection refused")
    assert (error.error_class, error.type) == (ErrorClass.NETWORK, "java.net.ConnectException")


def test_log_lines_before_the_exception_do_not_decide() -> None:
    text = "INFO: token expired, renewed\nWARN: retrying after java.net.SocketTimeoutException\njava.lang.Error: odd"
    assert errors.error_of(text) == Error(type="java.lang.Error", message="java.lang.Error: odd")


def test_a_message_is_redacted_one_line_and_capped() -> None:
    error = errors.error_of("java.io.IOException: GET https://u:pw@x.io/a?token=abc failed, mail a@b.io " + "x" * 5_000)
    assert error.message is not None
    assert len(error.message) <= 300
    for secret in ("pw@", "abc", "a@b.io"):
        assert secret not in error.message


@pytest.mark.parametrize("text", ["ErrorError" * 100_000, "a." * 500_000, "\n" * 1_000_000, "java." + "x" * 1_000_000])
def test_a_huge_text_takes_no_longer_than_a_long_one(text: str) -> None:
    assert errors.error_of(text).error_class is ErrorClass.UNKNOWN


@pytest.mark.parametrize("value", [None, "", "  \n ", 5, ["java.lang.Error"], {}])
def test_no_text_is_an_unknown_error(value: Any) -> None:
    assert errors.error_of(value) == Error()


# --- Flows and schedules --------------------------------------------------------------------------------------------


def test_flows_are_read_without_what_they_are_made_of() -> None:
    flows, bad = [], 0
    for record in payload("flows"):
        try:
            flows.append(mapping.flow(record))
        except BadItem:
            bad += 1
    assert flows == [
        Flow(id="1234", name="orders to dwh"),
        Flow(id="1235", name="stock to crm"),
        Flow(id="1236", name=None),
    ]
    assert bad == 2


def test_schedules_tell_their_timing_and_their_native_retries() -> None:
    schedules, bad = [], 0
    for record in payload("schedules"):
        try:
            schedules.append(mapping.schedule(record))
        except BadItem:
            bad += 1
    assert schedules == [
        ("1234", Schedule(id="77", retries=2, delay=300.0, period=300.0, offset=150.0, exact=True, place=150.0)),
        ("1234", Schedule(id="78", enabled=False, period=1800.0)),
        ("1235", Schedule(id="79", period=86_400.0, place=0.0)),
        ("1235", Schedule(id="80")),
    ]
    assert bad == 3


@pytest.mark.parametrize(
    ("schedules", "expected"),
    [
        (None, {"trigger": None, "enabled": None, "next_run_at": None}),
        ([], {"trigger": None, "enabled": None, "next_run_at": None}),
        ([Schedule(id="1", enabled=False)], {"trigger": "schedule", "enabled": False, "next_run_at": None}),
        (
            [Schedule(id="1", enabled=False), Schedule(id="2", period=300.0, offset=150.0, exact=True)],
            {"trigger": "schedule", "enabled": True, "next_run_at": 1_200_150.0},
        ),
        (
            [Schedule(id="1", period=86_400.0), Schedule(id="2", period=300.0, offset=150.0, exact=True)],
            {"trigger": "schedule", "enabled": True, "next_run_at": None},
        ),
    ],
)
def test_a_flow_is_enabled_and_next_run_as_its_schedules_say(
    schedules: list[Schedule] | None, expected: dict[str, Any]
) -> None:
    at = 1_200_000.0
    told = mapping.workflow(Flow(id="1", name="a"), schedules=schedules, at=at)
    assert told == Workflow(id="1", at=at, name="a", **expected)


# --- Dead letters ---------------------------------------------------------------------------------------------------

TWICE = Schedule(id="77", retries=2, delay=300.0)


@pytest.mark.parametrize(
    ("name", "schedules", "read_at", "expected"),
    [
        ("error", [TWICE], None, True),  # two repetitions are left
        ("retried_error", [TWICE], None, False),  # that was the last
        ("error", [Schedule(id="77")], None, False),  # none configured
        ("error_without_text", [TWICE], None, False),  # not started by the scheduler
        ("error", None, None, None),  # schedules never read
        ("error", [Schedule(id="5")], ENDED - 1, None),  # its schedule is younger than the listing
        ("error", [Schedule(id="5")], ENDED + 1, False),  # its schedule is gone
    ],
)
def test_whether_the_scheduler_repeats_a_failed_run(
    name: str, schedules: list[Schedule] | None, read_at: float | None, expected: bool | None
) -> None:
    assert mapping.repeats_itself(execution(name), schedules, read_at=read_at) is expected


def test_a_scheduled_run_of_an_unnamed_schedule_waits_for_the_most_repetitions() -> None:
    item = mapping.execution({**payload("error"), "eventId": None}, flow_id="1234")
    assert mapping.repeats_itself(item, [Schedule(id="5"), TWICE], read_at=None) is True


def test_a_failed_run_is_a_dead_letter_under_its_own_id() -> None:
    item = execution("retried_error")
    assert mapping.dead_letter(item) == DeadLetter(
        id="80640",
        workflow_id="1234",
        run_id="80640",
        opened_at=ENDED,
        error=item.run.error,
        tries=2,
        native_retry=(ENDED, False),
    )


@pytest.mark.parametrize("name", ["success", "warning", "canceled", "running", "unknown_status"])
def test_only_a_failed_run_is_a_dead_letter(name: str) -> None:
    assert mapping.dead_letter(execution(name)) is None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (payload("error_body"), "Field 'name' is required"),
        ({"error": "Bad Request"}, "Bad Request"),
        ({"message": None, "error": 5}, None),
        ([], None),
    ],
)
def test_an_error_body_is_told_in_its_own_words(body: Any, expected: str | None) -> None:
    assert mapping.error_detail(body) == expected
