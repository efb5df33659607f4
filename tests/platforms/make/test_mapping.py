"""What Make's payloads mean here: each recorded shape, and the awkward ones by name."""

from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from exporter.model import Blocked, Error, ErrorClass, Queue, Result, Run, State, Unit, Usage, Workflow
from exporter.platform import BadItem, MalformedEvent, RunKey, StreamName, WebhookEvents, WebhookRequest
from exporter.platforms.make import PLATFORM
from exporter.platforms.make.config import MakeConfig
from exporter.platforms.make.mapping import runs, workflows
from exporter.platforms.make.mapping.errors import NAMES, classify
from exporter.platforms.make.reading.calls import error_detail
from exporter.simulator.make.model import ERRORS

PAYLOADS = Path(__file__).parent / "payloads"
AT = 1_772_439_999.5
RUN = "3a1f0b9c8d7e4f6a9b8c7d6e5f4a3b2c"


def at(clock: str) -> float:
    return datetime.fromisoformat(f"2026-03-02T{clock}Z").timestamp()


STARTED, ENDED = at("08:15:30.120"), at("08:16:10.331")
SUCCESS = Run(
    workflow_id="5012",
    id=RUN,
    state=State.FINISHED,
    result=Result.SUCCESS,
    started_at=STARTED,
    ended_at=ENDED,
    operations=3.0,
    bytes_in=1204.0,
    trigger="webhook",
)
FAILURE = replace(SUCCESS, result=Result.FAILURE)


def load(name: str) -> Any:
    return orjson.loads((PAYLOADS / f"{name}.json").read_bytes())


# Runs


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("success", SUCCESS),
        (
            "warning",
            replace(
                SUCCESS,
                result=Result.WARNING,
                error=Error(
                    error_class=ErrorClass.VALIDATION,
                    type="DataError",
                    message="Missing value of required parameter 'email'.",
                    step_type="CreateContact",
                ),
            ),
        ),
        ("failure", FAILURE),
        (
            "failure_with_error",
            replace(
                FAILURE,
                error=Error(
                    error_class=ErrorClass.AUTH,
                    type="InvalidAccessTokenError",
                    message="[401] refused for [email]: Authorization: [redacted]",
                    step_type="http:MakeRequest",
                    status=401,
                ),
            ),
        ),
        (
            "error_of_another_shape",
            replace(
                FAILURE, error=Error(error_class=ErrorClass.NETWORK, message="connect ECONNREFUSED 203.0.113.7:443")
            ),
        ),
        ("error_without_words", FAILURE),
        ("success_with_error", SUCCESS),
        ("without_end", replace(SUCCESS, ended_at=None)),
        ("unknown_status", replace(SUCCESS, result=Result.UNKNOWN)),
        ("status_null", replace(SUCCESS, result=Result.UNKNOWN)),
        ("unknown_status_without_end", replace(SUCCESS, state=State.RUNNING, result=None, ended_at=None)),
        ("status_as_text", FAILURE),
        ("duration_as_text", SUCCESS),
        (
            "pending",
            replace(SUCCESS, state=State.RUNNING, result=None, ended_at=None, operations=None, bytes_in=None),
        ),
        ("ended_at", SUCCESS),
        ("timestamp_is_end", SUCCESS),
        ("without_event_type", replace(SUCCESS, trigger=None)),
        ("dashed_id", SUCCESS),
        ("time_only_in_imt_id", SUCCESS),
        ("null_numbers", replace(SUCCESS, operations=None, bytes_in=None)),
        ("negative_numbers", replace(SUCCESS, operations=None, bytes_in=None, ended_at=None)),
        ("manual", replace(SUCCESS, trigger="manual")),
        ("scheduled", replace(SUCCESS, trigger="schedule")),
    ],
)
def test_a_log_row_says_what_it_says(name: str, expected: Run) -> None:
    assert runs.run(load(name), workflow_id="5012") == expected


LIVE_STARTED = datetime.fromisoformat("2026-10-26T07:33:20.312Z").timestamp()
LIVE_ENDED = datetime.fromisoformat("2026-10-26T07:34:44.524Z").timestamp()


@pytest.mark.parametrize("feed", [False, True], ids=["log", "feed"])
def test_a_recorded_row_is_dated_by_its_start_and_says_its_end(feed: bool) -> None:
    """As live: the duration is 2 milliseconds short of the time between start and end."""
    row = load("live_success")
    found = runs.feed_run(row) if feed else runs.run(row, workflow_id="5012")
    assert found is not None
    assert (found.started_at, found.ended_at, found.result) == (LIVE_STARTED, LIVE_ENDED, Result.SUCCESS)
    assert found.parent_id is None
    without = {key: value for key, value in row.items() if key != "endedAt"}
    found = runs.feed_run(without) if feed else runs.run(without, workflow_id="5012")
    assert found is not None
    assert (found.started_at, found.ended_at) == (LIVE_STARTED, round(LIVE_STARTED + 84.21, 3))


def test_a_recorded_failure_carries_its_cause_and_is_no_data_error_to_be_mistaken_for_one() -> None:
    found = runs.run(load("live_failure"), workflow_id="5012")
    assert found is not None
    assert found.error == Error(
        error_class=ErrorClass.NOT_FOUND,
        type="DataError",
        message="Error: 404 Not Found",
        step_type="acme-shop:WatchOrders",
        status=404,
    )


def test_a_row_of_another_scenario_is_a_bad_item() -> None:
    with pytest.raises(BadItem, match="another scenario"):
        runs.run(load("live_success"), workflow_id="5013")


CALLED, REPLAYED = "9b8c7d6e5f4a3b2c1d0e9f8a7b6c5d4e", "0a1b2c3d4e5f60718293a4b5c6d7e8f9"


@pytest.mark.parametrize(
    ("changed", "parent_id", "trigger"),
    [
        ({"parent": {"id": 5011, "executionId": CALLED}}, CALLED, "schedule"),
        ({"replayOfExecutionId": REPLAYED}, REPLAYED, "retry"),
        ({"parent": {"id": 5011, "executionId": CALLED}, "replayOfExecutionId": REPLAYED}, REPLAYED, "retry"),
        ({"parent": None}, None, "schedule"),
        ({"parent": {"executionId": 5}}, None, "schedule"),
        ({"replayOfExecutionId": "4f1e2d3c4b5a69788796a5b4c3d2e1f0"}, None, "retry"),
    ],
)
def test_what_called_a_run_and_what_it_replays_are_its_parents(
    changed: dict[str, Any], parent_id: str | None, trigger: str
) -> None:
    found = runs.run(load("live_success") | changed, workflow_id="5012")
    assert found is not None
    assert (found.parent_id, found.trigger) == (parent_id, trigger)


def test_a_warning_after_a_failed_run_is_no_run_and_stops_nothing() -> None:
    assert runs.run(load("live_warning"), workflow_id="5012") is None
    assert workflows.notice(load("live_warning")) is None


WARNED = datetime.fromisoformat("2026-10-26T05:03:20.517Z").timestamp()


@pytest.mark.parametrize(
    ("changed", "enabled", "blocked"),
    [
        ({"detail": {"reason": "[429] Too many", "delay": 20}}, True, Blocked.PAUSED),
        ({"detail": {"reason": "[429] Too many", "delay": "20"}}, True, Blocked.PAUSED),
        ({"detail": {"delay": 0}}, True, None),
        ({"detail": {"delay": 1}}, True, None),  # over by now
        ({"type": "stop"}, False, Blocked.INVALID),
        ({"type": "deactivate"}, False, Blocked.INVALID),
        ({"type": "stop", "detail": {"reason": "The operations limit is exceeded."}}, False, Blocked.QUOTA),
        ({"type": "stop"}, True, None),  # it was switched on again
        ({"type": "stop", "authorId": 11, "authorName": "-"}, False, None),
        ({"type": "stop", "detail": {"author": {"name": "-"}}}, False, None),
        ({"type": "start", "authorId": 11}, True, None),
        ({"type": "modify"}, True, None),
    ],
)
def test_the_timeline_says_what_stops_a_scenario(
    changed: dict[str, Any], enabled: bool, blocked: Blocked | None
) -> None:
    said = workflows.notice(load("live_warning") | changed)
    workflow = Workflow(id="5012", at=WARNED + 600.0, enabled=enabled)
    assert workflows.with_notice(workflow, said).blocked is blocked
    paid = replace(workflow, blocked=Blocked.DEAD_LETTERS)
    assert workflows.with_notice(paid, said) == paid


@pytest.mark.parametrize("name", ["timeline_event", "timeline_event_by_author"])
def test_timeline_events_are_no_runs(name: str) -> None:
    assert runs.run(load(name), workflow_id="5012") is None
    assert runs.feed_run(load(name)) is None


@pytest.mark.parametrize("name", ["without_id", "without_time"])
def test_an_execution_without_id_or_time_is_a_bad_item_that_names_its_place_only(name: str) -> None:
    with pytest.raises(BadItem, match=r"^an execution of scenario 5012 has no (usable id|time)$"):
        runs.run(load(name), workflow_id="5012")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("feed_row", SUCCESS), ("feed_row_without_duration", replace(SUCCESS, started_at=None))],
)
def test_the_feed_dates_runs_by_their_end(name: str, expected: Run) -> None:
    assert runs.feed_run(load(name)) == expected


def test_the_feed_has_no_use_for_what_has_not_ended() -> None:
    assert runs.feed_run(load("pending") | {"scenarioId": 5012}) is None


def test_a_feed_row_that_names_no_scenario_is_a_bad_item() -> None:
    with pytest.raises(BadItem, match="no usable scenario id"):
        runs.feed_run(load("feed_row_without_scenario"))


def test_a_feed_row_is_in_scope_by_its_organization_or_by_its_team() -> None:
    mine, other = load("feed_row"), load("feed_row_of_another_organization")
    assert runs.in_scope(mine, organization_id=9, team_ids=[])
    assert not runs.in_scope(other, organization_id=9, team_ids=[])
    assert runs.in_scope(mine, organization_id=None, team_ids=[76, 77])
    assert not runs.in_scope(other, organization_id=None, team_ids=[76, 77])
    assert runs.in_scope(load("null_numbers"), organization_id=9, team_ids=[])


def test_an_execution_tells_its_cause_once_it_is_over() -> None:
    assert runs.cause(load("execution_failed")) == Error(
        error_class=ErrorClass.THROTTLED,
        type="RateLimitError",
        message="[429] Too many requests",
        step_type="http:ActionSendData",
        status=429,
    )
    assert runs.cause(load("execution_running")) is None
    assert runs.cause(load("execution_failed_without_error")) is None


@given(
    st.dictionaries(
        st.sampled_from(
            ["id", "scenarioId", "status", "eventType", "timestamp", "duration", "endedAt", "imtId", "error"]
        )
        | st.sampled_from(["operations", "transfer", "type", "instant", "organizationId", "teamId"]),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=8)
        | st.sampled_from([RUN, "2026-03-02T08:15:30.120Z", "EXECUTION_END", {}, [], {"name": 1, "causeModule": []}]),
    )
)
def test_no_row_is_more_than_a_bad_item(row: dict[str, Any]) -> None:
    for feed in (False, True):
        try:
            run = runs.feed_run(row) if feed else runs.run(row, workflow_id="5012")
        except BadItem:
            continue
        assert run is None or (run.state is State.FINISHED) == (run.result is not None)


# Scenarios and what is around them

ORDER_SYNC = Workflow(
    id="5012", at=AT, name="Order sync", workspace="Operations", workspace_id="77", trigger="webhook", enabled=True
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("scenario_instant", ORDER_SYNC),
        (
            "scenario_scheduled",
            replace(ORDER_SYNC, id="5013", name="Nightly report", trigger="schedule", next_run_at=at("08:30:00.000")),
        ),
        ("scenario_on_demand", replace(ORDER_SYNC, id="5014", name=None, trigger="manual", enabled=False)),
        ("scenario_invalid", replace(ORDER_SYNC, enabled=False, blocked=Blocked.INVALID)),
        ("scenario_paused", replace(ORDER_SYNC, blocked=Blocked.PAUSED)),
        ("scenario_of_required_fields", Workflow(id="5012", at=AT, name="Order sync")),
        ("scenario_with_nulls", Workflow(id="5012", at=AT)),
    ],
)
def test_a_scenario_says_what_it_says(name: str, expected: Workflow) -> None:
    assert workflows.scenario(load(name), at=AT, teams={"77": "Operations"}).workflow == expected


def test_a_scenario_tells_what_else_to_ask_for() -> None:
    item = workflows.scenario(load("scenario_instant"), at=AT, teams={})
    assert (item.team_id, item.hook_id, item.dead_letters) == ("77", "301", 2)
    assert item.workflow.workspace == "77"
    nothing = workflows.scenario(load("scenario_with_nulls"), at=AT, teams={})
    assert (nothing.team_id, nothing.hook_id, nothing.dead_letters, nothing.edited) == (None, None, None, None)


def test_a_scenario_without_an_id_is_a_bad_item() -> None:
    with pytest.raises(BadItem, match="no usable scenario id"):
        workflows.scenario(load("scenario_without_id"), at=AT, teams={})


@pytest.mark.parametrize(
    ("ordered", "dead_letters", "blocked", "expected"),
    [
        (True, 2, None, Blocked.DEAD_LETTERS),
        (True, 0, None, None),
        (True, None, None, None),
        (False, 2, None, None),
        (True, 2, Blocked.INVALID, Blocked.INVALID),
    ],
)
def test_a_sequential_scenario_is_blocked_by_its_dead_letters(
    ordered: bool, dead_letters: int | None, blocked: Blocked | None, expected: Blocked | None
) -> None:
    workflow = workflows.with_order(replace(ORDER_SYNC, blocked=blocked), ordered=ordered, dead_letters=dead_letters)
    assert (workflow.ordered, workflow.blocked) == (ordered, expected)


def test_a_webhook_is_a_queue_without_its_address() -> None:
    assert workflows.queue(load("hook"), at=AT, workflow_id="5012") == Queue(
        workflow_id="5012", at=AT, items=3.0, limit=667.0
    )
    assert workflows.queue(load("hook_with_nulls"), at=AT, workflow_id="5012") is None


def test_consumptions_add_up_to_credits() -> None:
    found = dict(workflows.consumption(row) for row in load("consumptions")["scenarioConsumptions"])
    assert found == {"5012": (5100.0, 900123.0, 510000.0), "5013": (0.0, 0.0, 0.0), "5014": (12.0, 4096.0, 1250.0)}
    assert workflows.credits(found.values(), at=AT) == Usage(kind="credits", unit=Unit.CREDITS, at=AT, used=5112.5)


def test_credits_are_unknown_where_one_scenario_has_no_number() -> None:
    found = dict(workflows.consumption(row) for row in load("consumptions_with_nulls")["scenarioConsumptions"])
    assert found == {"5012": (None, 900123.0, None), "5013": (None, None, None)}
    assert workflows.credits(found.values(), at=AT) is None


def test_an_organization_tells_limit_usage_and_the_names_of_teams() -> None:
    found = workflows.organization(load("organization"), at=AT)
    assert found == workflows.Organization(
        requests_per_minute=60.0,
        run_seconds=2400.0,
        kept_seconds=30 * 86_400.0,
        teams={"77": "Operations", "78": "Finance"},
        usage=(
            Usage(kind="operations", unit=Unit.OPERATIONS, at=AT, used=5112.0, limit=20000.0),
            Usage(kind="transfer", unit=Unit.BYTES, at=AT, used=904219.0, limit=5368709120.0),
        ),
    )
    assert workflows.organization(load("organization_with_run_time_in_seconds"), at=AT).run_seconds == 2400.0


def test_an_organization_without_a_license_says_nothing_wrong() -> None:
    assert workflows.organization(load("organization_without_license"), at=AT) == workflows.Organization(
        requests_per_minute=None,
        run_seconds=None,
        kept_seconds=None,
        teams={},
        usage=(Usage(kind="operations", unit=Unit.OPERATIONS, at=AT), Usage(kind="transfer", unit=Unit.BYTES, at=AT)),
    )
    with pytest.raises(BadItem):
        workflows.organization({"organizations": []}, at=AT)


# Errors


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_every_error_the_documents_name_has_its_class(name: str) -> None:
    error_class, message = ERRORS[name]
    assert classify(name, message) == error_class


@pytest.mark.parametrize(
    ("name", "message", "expected"),
    [
        ("DataError", "[404] The record was not found.", ErrorClass.NOT_FOUND),
        ("DataError", "[403] Forbidden", ErrorClass.PERMISSION),
        ("BundleValidationError", "[400] Validation failed", ErrorClass.VALIDATION),
        ("DataError", "[500] oops", ErrorClass.PLATFORM),
        ("DataError", "Error: 404 Not Found", ErrorClass.NOT_FOUND),
        ("DataError", "Error: 429", ErrorClass.THROTTLED),
        ("DataError", "[429] Too Many Requests", ErrorClass.THROTTLED),
        ("DataError", "[503 Service Unavailable] try later", ErrorClass.PLATFORM),
        ("DataError", "[408] Request Timeout", ErrorClass.TIMEOUT),
        ("DataError", "Status Code Error: 401", ErrorClass.AUTH),
        ("DataError", "StatusCodeError: 502 - {}", ErrorClass.PLATFORM),
        ("DataError", "Request failed with status code 504", ErrorClass.TIMEOUT),
        ("DataError", "The service answered: 503 Service Unavailable", ErrorClass.PLATFORM),
        ("IncompleteDataError", "HTTP/1.1 404 Not Found", ErrorClass.NOT_FOUND),
        # numbers that are no status: a wrong datum is not retried for looking like an outage
        ("DataError", "Row [503] is wrong", ErrorClass.VALIDATION),
        ("DataError", "Error: 500 items are too many", ErrorClass.VALIDATION),
        ("DataError", "Wrong amount: 500 Euro", ErrorClass.VALIDATION),
        ("DataError", "Error: 5031", ErrorClass.VALIDATION),
        # a name that says more than the status
        ("RateLimitError", "[403] Rate limit exceeded", ErrorClass.THROTTLED),
        ("DuplicateDataError", "[400] Bad Request", ErrorClass.CONFLICT),
        ("OperationsLimitExceededError", "[429] Too Many Requests", ErrorClass.QUOTA),
        ("ConnectionError", "[503] Service Unavailable", ErrorClass.NETWORK),
        ("RuntimeError", "[503] Service Unavailable", ErrorClass.PLATFORM),
        ("RuntimeError", "[504] Gateway Time-out", ErrorClass.TIMEOUT),
        ("RuntimeError", "[422] Unprocessable", ErrorClass.VALIDATION),
        ("RuntimeError", "status code: 429", ErrorClass.THROTTLED),
        ("Error", "getaddrinfo EAI_AGAIN api.example.test", ErrorClass.NETWORK),
        ("Error", "connect ETIMEDOUT 203.0.113.7:443", ErrorClass.NETWORK),
        ("Error", "The operation timed out.", ErrorClass.TIMEOUT),
        ("Error", "Monthly quota exceeded", ErrorClass.QUOTA),
        ("Error", "The access token has expired: token is invalid", ErrorClass.AUTH),
        ("Error", "The scenario was interrupted", ErrorClass.KILLED),
        (None, "The record already exists", ErrorClass.CONFLICT),
        ("SomeNewError", "order 404 is odd", ErrorClass.UNKNOWN),
        (None, None, ErrorClass.UNKNOWN),
    ],
)
def test_what_a_name_does_not_tell_the_message_does(
    name: str | None, message: str | None, expected: ErrorClass
) -> None:
    assert classify(name, message) is expected


def test_only_classes_that_are_declared_can_come_out() -> None:
    assert set(NAMES.values()) <= set(PLATFORM.error_classes)


def test_error_bodies_are_worded_by_their_detail_and_suberrors() -> None:
    assert error_detail(load("error_body")) == "Access denied."
    wanted = "Bad Request; Missing value of required parameter 'scenarioId'."
    assert error_detail(load("error_body_with_suberrors")) == wanted
    assert error_detail(["no such shape"]) is None


# Webhooks


def receive(body: bytes, *, base_url: str = "https://eu1.make.com") -> WebhookEvents:
    return PLATFORM.receive(
        WebhookRequest(method="POST", headers={}, query={}, body=body, received_at=AT, base_url=base_url)
    )


def received(name: str, **more: str) -> WebhookEvents:
    return receive((PAYLOADS / f"{name}.json").read_bytes(), **more)


def test_a_callback_names_the_run_and_through_its_url_the_scenario() -> None:
    assert received("callback") == WebhookEvents(wake=[RunKey(run_id=RUN, workflow_id="5012")])


@pytest.mark.parametrize("name", ["callback_of_another_host", "callback_of_another_run", "callback_without_url"])
def test_a_callback_whose_url_is_not_to_be_trusted_names_the_run_only(name: str) -> None:
    assert received(name) == WebhookEvents(wake=[RunKey(run_id=RUN)], wake_streams=[StreamName.RUNS])


def test_a_callback_from_another_zone_names_the_run_only() -> None:
    events = received("callback", base_url="https://eu2.make.com")
    assert events == WebhookEvents(wake=[RunKey(run_id=RUN)], wake_streams=[StreamName.RUNS])


@pytest.mark.parametrize("body", [b"", b"nonsense", b"[1]", b"{}", b'{"executionId": 5}'])
def test_what_is_no_event_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedEvent):
        receive(body)


def test_a_callback_with_an_impossible_id_is_malformed() -> None:
    with pytest.raises(MalformedEvent, match="32 hex digits"):
        received("callback_with_bad_id")


def test_the_documented_event_uses_makes_errors_and_ids() -> None:
    event = {
        "event": "run.finished",
        "workflow_id": 5012,
        "run_id": "3a1f0b9c-8d7e-4f6a-9b8c-7d6e5f4a3b2c",
        "result": "failure",
        "started_at": "2026-03-02T08:15:30.120Z",
        "ended_at": "2026-03-02T08:16:10.331Z",
        "error": {"type": "ModuleTimeoutError", "message": "The operation timed out."},
    }
    (run,) = receive(orjson.dumps(event)).observations
    error = Error(error_class=ErrorClass.TIMEOUT, type="ModuleTimeoutError", message="The operation timed out.")
    assert run == replace(FAILURE, operations=None, bytes_in=None, trigger=None, error=error)


# The declaration


def config(**more: Any) -> MakeConfig:
    section = {"platform": "make", "url": "https://eu1.make.com/", "token": "93dc8837-2911-4711-a766-59c1167a974d"}
    return MakeConfig.model_validate(section | more)


async def test_api_tokens_and_oauth_tokens_go_with_different_schemes() -> None:
    api: Any = None
    token = PLATFORM.auth(config(organization_id=9))
    assert await token.headers(api) == {"Authorization": "Token 93dc8837-2911-4711-a766-59c1167a974d"}
    assert not await token.renew(api)
    oauth = PLATFORM.auth(config(organization_id=9, token="abc.def"))
    assert await oauth.headers(api) == {"Authorization": "Bearer abc.def"}


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"organization_id": 9, "team_ids": [77]},
        {"organization_id": 0},
        {"team_ids": [77, 77]},
        {"organization_id": 9, "token": "two words"},
        {"organization_id": 9, "teams": [77]},
    ],
)
def test_a_config_that_cannot_work_is_refused_without_showing_the_token(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as refused:
        config(**wrong)
    assert "93dc8837" not in str(refused.value)
    assert "two words" not in str(refused.value)


def test_a_run_has_an_address_where_its_team_is_known() -> None:
    url = f"https://eu1.make.com/77/scenarios/5012/logs/{RUN}"
    assert PLATFORM.run_url(config(team_ids=[77]), SUCCESS, None) == url
    for several in (config(team_ids=[77, 78]), config(organization_id=9)):
        assert PLATFORM.run_url(several, SUCCESS, None) is None
        assert PLATFORM.run_url(several, SUCCESS, replace(ORDER_SYNC, workspace_id=None)) is None
        assert PLATFORM.run_url(several, SUCCESS, ORDER_SYNC) == url
        assert PLATFORM.workflow_url(several, ORDER_SYNC) == "https://eu1.make.com/77/scenarios/5012/edit"
