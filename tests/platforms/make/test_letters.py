"""What Make's incomplete executions mean here: each recorded shape, and the awkward ones by name."""

from dataclasses import replace
from typing import Any

import orjson
import pytest

from exporter.model import DeadLetter, Error, ErrorClass, ResolvedBy
from exporter.platforms.make import letters
from exporter.platforms.make.letters import Detail
from exporter.platforms.make.mapping import BadItem
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
        error_class=ErrorClass.NOT_FOUND, type="DataError", message="[404] There is no such order."
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
    found = letters.blueprint(load("blueprint"))
    assert found.ordered
    assert found.modules == {
        "1": "gateway:CustomWebHook",
        "2": "builtin:BasicRouter",
        "3": "json:ParseJSON",
        "4": "http:MakeRequest",
        "5": "builtin:Break",
    }
    bare = letters.blueprint(load("blueprint_bare"))
    assert not bare.ordered
    assert bare.modules == found.modules


@pytest.mark.parametrize(
    "data", [None, [], {}, {"response": {"blueprint": {"flow": [None, {"id": "x", "routes": 3}]}}}]
)
def test_a_blueprint_of_another_shape_says_nothing(data: Any) -> None:
    found = letters.blueprint(data)
    assert (found.ordered, found.modules) == (False, {})
