"""What Make's incomplete executions mean here: each recorded shape, and the awkward ones by name."""

from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from exporter.model import DeadLetter, Error, ErrorClass, ResolvedBy, Result
from exporter.platform import BadItem
from exporter.platform.retrying import Effort, Standing
from exporter.platforms.make.mapping import dead_letters as letters
from exporter.platforms.make.mapping import workflows
from exporter.platforms.make.mapping.dead_letters import Detail
from exporter.platforms.make.mapping.workflows import Scenario
from tests.platforms.make.test_mapping import AT, PAYLOADS, RUN, at

LETTER = DeadLetter(
    id="0f3c9a1be27d4e5f8a6b7c8d9e0f1a2b",
    workflow_id="5012",
    opened_at=at("08:15:30.120"),
    tries=2,
    native_retry=(AT, True),
)


def load(name: str) -> Any:
    return orjson.loads((PAYLOADS / f"{name}.json").read_bytes())


def listed(name: str, known: DeadLetter | None = None) -> letters.Listed:
    return letters.listed(load(name), workflow_id="5012", at=AT, known=known)


@pytest.mark.parametrize(
    ("name", "letter", "resolved"),
    [
        ("dlq", LETTER, False),
        ("dlq_not_retried", replace(LETTER, tries=0, native_retry=(AT, False)), False),
        ("dlq_resolved", replace(LETTER, tries=3, native_retry=(AT, False)), True),
        ("dlq_with_nulls", replace(LETTER, tries=0, native_retry=None), False),
    ],
)
def test_a_listed_item_says_what_it_says(name: str, letter: DeadLetter, resolved: bool) -> None:
    item = listed(name)
    assert (item.letter, item.resolved) == (letter, resolved)


def test_what_the_platform_says_of_its_own_retries_keeps_the_moment_it_was_first_said() -> None:
    known = replace(LETTER, native_retry=(AT - 500, True))
    assert listed("dlq", known).letter.native_retry == (AT - 500, True)
    assert listed("dlq_not_retried", known).letter.native_retry == (AT, False)


def test_an_item_without_a_date_is_believed_only_if_it_is_known() -> None:
    assert listed("dlq_without_created", LETTER).letter.opened_at == LETTER.opened_at
    with pytest.raises(BadItem, match=r"^an incomplete execution of scenario 5012 has no date$"):
        listed("dlq_without_created")
    with pytest.raises(BadItem, match="no usable id"):
        listed("dlq_without_id")


def test_a_detail_names_the_run_that_failed_without_dashes() -> None:
    assert letters.detail(load("dlq_detail")) == Detail(run_id=RUN, resolved=False, deleted=False)
    assert letters.detail(load("dlq_detail_deleted")) == Detail(run_id=None, resolved=False, deleted=True)
    with pytest.raises(BadItem):
        letters.detail({"dlqs": []})


def test_a_bundle_tells_the_error_and_nothing_else_of_what_it_holds() -> None:
    error = letters.error(load("bundle"), reason="other words", modules={"4": "http:MakeRequest"})
    assert error == Error(
        error_class=ErrorClass.NETWORK,
        type="ConnectionError",
        message="getaddrinfo ENOTFOUND api.example.test",
        step_type="http:MakeRequest",
    )
    assert letters.error(load("bundle_bare"), reason=None, modules={}) == Error(
        error_class=ErrorClass.NOT_FOUND, type="DataError", message="[404] There is no such order.", status=404
    )


@pytest.mark.parametrize("data", [load("bundle_without_error"), None, {"code": "OK", "response": None}, []])
def test_where_the_bundle_does_not_tell_the_reason_has_to_do(data: Any) -> None:
    error = letters.error(data, reason="The operation timed out.", modules={})
    assert error == Error(error_class=ErrorClass.TIMEOUT, message="The operation timed out.")
    assert letters.error(data, reason=None, modules={}) == Error()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("attempts_manual_last", (at("09:00:01.410"), ResolvedBy.MANUAL)),
        ("attempts_auto_last", (at("08:26:00.900"), ResolvedBy.PLATFORM)),
        ("attempts_none_succeeded", (at("08:26:00.500"), ResolvedBy.PLATFORM)),
        ("attempts_without_time", None),
    ],
)
def test_the_attempts_tell_when_and_by_whom_an_item_was_resolved(
    name: str, expected: tuple[float, ResolvedBy] | None
) -> None:
    assert letters.resolution(load(name)["dlqLogs"]) == expected


def test_nothing_is_resolved_before_it_opened() -> None:
    closed = letters.resolve(LETTER, at=LETTER.opened_at - 5, by=ResolvedBy.MANUAL)
    assert (closed.resolved_at, closed.resolved_by) == (LETTER.opened_at, ResolvedBy.MANUAL)


def test_a_blueprint_tells_the_order_and_the_names_of_modules_in_routes_and_handlers() -> None:
    found = workflows.blueprint(load("blueprint"))
    assert (found.ordered, found.stores) == (True, True)
    assert found.modules == {
        "1": "gateway:CustomWebHook",
        "2": "builtin:BasicRouter",
        "3": "json:ParseJSON",
        "4": "http:MakeRequest",
        "5": "builtin:Break",
    }
    bare = workflows.blueprint(load("blueprint_bare"))
    assert (bare.ordered, bare.stores) == (False, None)
    assert bare.modules == found.modules


@pytest.mark.parametrize(
    "data", [None, [], {}, {"response": {"blueprint": {"flow": [None, {"id": "x", "routes": 3}]}}}]
)
def test_a_blueprint_of_another_shape_says_nothing(data: Any) -> None:
    found = workflows.blueprint(data)
    assert (found.ordered, found.stores, found.modules) == (False, None, {})


@pytest.mark.parametrize(
    ("written", "stores"), [(True, True), (False, False), (None, None), ("false", None), (0, None)]
)
def test_whether_a_scenario_stores_what_fails_is_known_only_where_it_is_said(written: Any, stores: bool | None) -> None:
    data = {"blueprint": {"flow": [], "metadata": {"scenario": {"dlq": written}}}}
    assert workflows.blueprint(data).stores is stores


# Before and after a retry of ours


def attempts(name: str) -> list[Any]:
    found: list[Any] = load(name)["dlqLogs"]
    return found


def test_a_dead_letter_asked_by_its_id_says_all_but_its_cause() -> None:
    known = replace(LETTER, error=Error(type="ConnectionError"), native_retry=None)
    found = letters.looked(load("dlq_detail"), known=known, at=AT)
    assert found.letter == replace(LETTER, run_id=RUN, error=Error(type="ConnectionError"))
    assert (found.resolved, found.deleted, found.native) == (False, False, True)
    with pytest.raises(BadItem, match="another incomplete execution"):
        letters.looked(load("dlq_detail"), known=replace(LETTER, id="5" * 32), at=AT)


def test_attempts_known_before_are_no_efforts_and_new_ones_are_oldest_first() -> None:
    rows = attempts("attempts_manual_last")
    assert [e.id[-2:] for e in letters.efforts(rows)] == ["41", "42", "43"]
    before = letters.mark(rows[1:], tries=2)
    [effort] = letters.efforts(rows, before=before, sent_at=at("09:00:00.000"))
    assert effort == Effort(
        id="9b8c7d6e5f4a3b2c1d0e9f8a7b6c5d43",
        began_at=at("09:00:00.500"),
        ended_at=at("09:00:01.410"),
        result=Result.SUCCESS,
        ours=True,
        run_id="9b8c7d6e5f4a3b2c1d0e9f8a7b6c5d43",
    )
    assert orjson.loads(orjson.dumps(before)) == before
    assert letters.efforts(rows, before=letters.mark(rows, tries=3)) == ()


def test_an_attempt_that_ended_between_two_readings_does_not_count_as_a_new_one() -> None:
    rows = attempts("attempts_manual_last")
    found = letters.looked({"dlq": load("dlq_detail")["dlq"] | {"attempts": 3}}, known=LETTER, at=AT)
    assert letters.standing(found, (), letters.mark(rows, tries=2)) is Standing.DEAD


@pytest.mark.parametrize(
    ("changed", "sent", "user", "ours"),
    [
        ({}, "09:00:00.000", None, True),
        ({}, "09:00:05.500", None, True),  # within the skew of clocks
        ({}, "09:00:05.501", None, False),
        ({"type": "auto"}, "09:00:00.000", None, False),
        ({"type": "other"}, "09:00:00.000", None, None),
        ({"type": None}, "09:00:00.000", None, None),
        ({"authorId": 7}, "09:00:00.000", None, None),
        ({"authorId": 7}, "09:00:00.000", "8", None),
        ({"authorId": 7}, "09:00:00.000", "7", True),
        ({"authorId": None}, "09:00:00.000", "7", True),
        ({"authorId": "seven"}, "09:00:00.000", None, None),
        ({"timestamp": None, "imtId": None}, "09:00:00.000", None, None),
    ],
)
def test_an_attempt_is_ours_only_if_it_can_be_nobody_else_s(
    changed: dict[str, Any], sent: str, user: str | None, ours: bool | None
) -> None:
    newest, *older = attempts("attempts_manual_last")
    before = letters.mark(older, tries=2)
    [effort] = letters.efforts([newest | changed, *older], before=before, sent_at=at(sent), user=user)
    assert effort.ours is ours


@pytest.mark.parametrize(
    ("changed", "result", "finished"),
    [
        ({"status": 2}, Result.WARNING, True),
        ({"status": 3}, Result.FAILURE, True),
        ({"status": 0}, None, False),
        ({"status": None, "duration": None}, None, False),
        ({"status": 9}, Result.UNKNOWN, True),
        ({"status": "1"}, Result.SUCCESS, True),
    ],
)
def test_an_attempt_ends_as_its_status_says(changed: dict[str, Any], result: Result | None, finished: bool) -> None:
    newest = attempts("attempts_manual_last")[0]
    [effort] = letters.efforts([newest | changed], sent_at=at("09:00:00.000"))
    assert effort.result is result
    assert (effort.ended_at is not None) is finished


def test_two_attempts_that_can_be_ours_and_rows_that_say_nothing_are_nobody_s() -> None:
    newest, auto, manual = attempts("attempts_manual_last")
    second = manual | {"type": "manual"}
    found = letters.efforts([newest, auto, second], before=letters.mark([], tries=0), sent_at=at("08:00:00.000"))
    assert [effort.ours for effort in found] == [None, False, None]
    assert [e.ours for e in letters.efforts([None, newest], sent_at=at("08:00:00.000"))] == [None, None]
    assert [e.ours for e in letters.efforts([newest, newest], sent_at=at("08:00:00.000"))] == [True]
    assert [e.ours for e in letters.efforts([newest])] == [None]


@pytest.mark.parametrize(
    ("changed", "results", "tries_before", "expected"),
    [
        ({}, [], 2, Standing.DEAD),
        ({}, [Result.FAILURE], 1, Standing.DEAD),
        ({}, [], 1, Standing.BUSY),  # counted, not listed yet
        ({}, [None], 2, Standing.BUSY),
        ({}, [Result.SUCCESS], 1, Standing.BUSY),  # the dead letter does not know it yet
        ({}, [Result.FAILURE, None], 2, Standing.BUSY),
        ({}, [None], None, Standing.BUSY),
        ({}, [Result.SUCCESS], None, Standing.DEAD),
        ({"resolved": True}, [None], 2, Standing.RESOLVED),
        ({"resolved": True, "deleted": True}, [], 2, Standing.GONE),
    ],
)
def test_a_dead_letter_is_dead_only_if_nothing_is_under_way(
    changed: dict[str, Any], results: list[Result | None], tries_before: int | None, expected: Standing
) -> None:
    data = {"dlq": load("dlq_detail")["dlq"] | changed}
    found = letters.looked(data, known=LETTER, at=AT)
    before = None if tries_before is None else letters.mark([], tries=tries_before)
    assert letters.standing(found, [Effort(id="x", result=r) for r in results], before) is expected


def scenario(**changed: Any) -> Scenario:
    return workflows.scenario(load("scenario_scheduled") | changed, at=AT, teams={})


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({}, None),
        ({"lastEdit": "2026-03-02T08:15:30.120Z"}, None),
        ({"lastEdit": "2026-03-02T08:15:30.121Z"}, "edited after the failure"),
        ({"lastEdit": None}, "does not say when"),
        ({"isPaused": True}, "paused"),
        ({"isActive": False}, "switched off by somebody"),
        ({"isActive": False, "isinvalid": True}, None),
        ({"isActive": None}, None),
    ],
)
def test_a_scenario_may_forbid_a_retry(changed: dict[str, Any], why: str | None) -> None:
    said = letters.refusal(scenario(**changed), LETTER)
    assert (said is None) if why is None else (said is not None and why in said)


@pytest.mark.parametrize(
    ("answer", "ids"),
    [
        ({"dlq": LETTER.id}, {LETTER.id}),
        ({"dlqs": [LETTER.id, "5" * 32, None, 7]}, {LETTER.id, "5" * 32}),
        ({"dlq": "0f3c9a1b-e27d-4e5f-8a6b-7c8d9e0f1a2b"}, {LETTER.id}),
        ({"dlqs": None}, set()),
        ([], set()),
        (None, set()),
    ],
)
def test_an_answer_names_what_was_put_in_the_queue(answer: Any, ids: set[str]) -> None:
    assert letters.named(answer) == ids
