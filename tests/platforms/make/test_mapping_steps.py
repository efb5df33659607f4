"""What the events of an execution's modules mean here: each shape, and the awkward ones by name."""

from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from exporter.model import Result, Run, State, Step
from exporter.platform import BadItem
from exporter.platforms.make.mapping import steps

PAYLOADS = Path(__file__).parent / "payloads"
MINUTE = datetime.fromisoformat("2026-03-02T08:15:00+00:00").timestamp()
FAILED = Run(
    workflow_id="5012",
    id="3a1f0b9c8d7e4f6a9b8c7d6e5f4a3b2c",
    state=State.FINISHED,
    result=Result.FAILURE,
    started_at=MINUTE + 30.12,
    ended_at=MINUTE + 70.331,
)
HOOK = Step(
    id="1",
    type="gateway:CustomWebHook",
    started_at=MINUTE + 30.12,
    ended_at=MINUTE + 30.5,
    result=Result.SUCCESS,
)
ROUTER = Step(
    id="2", type="builtin:BasicRouter", started_at=MINUTE + 30.5, ended_at=MINUTE + 30.6, result=Result.SUCCESS
)
HTTP = Step(id="3", type="http:MakeRequest", started_at=MINUTE + 30.6, ended_at=MINUTE + 59.331, result=Result.FAILURE)
DEAL = Step(id="4", type="app#my-crm-a1b2:createDeal")


def load(name: str) -> Any:
    return orjson.loads((PAYLOADS / f"{name}.json").read_bytes())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("events", (HOOK, ROUTER, HTTP)),
        (
            "events_of_loops",
            (replace(DEAL, started_at=MINUTE + 31, ended_at=MINUTE + 36, result=Result.WARNING),),
        ),
        ("events_without_last_end", (HOOK, ROUTER, replace(HTTP, ended_at=FAILED.ended_at))),
        ("events_without_blueprint", tuple(replace(step, type="module") for step in (HOOK, ROUTER, HTTP))),
        ("events_of_unknown_kinds", ()),
        (
            "events_in_other_words",
            (
                replace(HTTP, started_at=MINUTE + 31, ended_at=MINUTE + 32.5),
                replace(DEAL, ended_at=MINUTE + 33, result=Result.UNKNOWN),
            ),
        ),
        (
            "events_with_nonsense",
            (
                Step(id="3", type="module", ended_at=MINUTE + 31, result=Result.UNKNOWN),
                Step(id="4", type="module", ended_at=MINUTE + 31.5, result=Result.FAILURE),
            ),
        ),
        ("events_none", ()),
    ],
)
def test_steps_say_what_the_events_say(name: str, expected: tuple[Step, ...]) -> None:
    assert steps.steps(load(name), FAILED) == expected


def test_a_run_that_is_still_under_way_there_has_no_steps_yet() -> None:
    assert steps.steps(load("events_of_a_run_under_way"), FAILED) is None
    assert steps.steps({**load("events"), "status": "RUNNING"}, FAILED) is None


@pytest.mark.parametrize("answer", [None, [], "text", {}, load("events_missing"), {"events": {"1": []}}])
def test_an_answer_without_a_list_of_events_is_a_bad_item(answer: object) -> None:
    with pytest.raises(BadItem, match="events of an execution"):
        steps.steps(answer, FAILED)


def test_the_order_of_events_and_their_repetition_do_not_matter() -> None:
    for name in ("events", "events_of_loops", "events_without_last_end"):
        payload = load(name)
        turned = {**payload, "events": list(reversed(payload["events"])) * 2}
        assert steps.steps(turned, FAILED) == steps.steps(payload, FAILED)


def test_of_a_run_that_did_not_fail_nothing_is_said_to_have_stopped_with_it() -> None:
    told = steps.steps(load("events_without_last_end"), replace(FAILED, result=Result.WARNING))
    assert told == (HOOK, ROUTER, replace(HTTP, ended_at=None, result=None))


def test_where_a_module_is_known_to_have_failed_others_that_never_ended_are_not_blamed() -> None:
    payload = load("events")
    late = {"kind": "MODULE_START", "moduleId": 4, "at": "2026-03-02T08:15:40Z"}
    told = steps.steps({**payload, "events": [*payload["events"], late]}, FAILED)
    assert told is not None
    assert told[3] == replace(DEAL, started_at=MINUTE + 40, ended_at=FAILED.ended_at, result=None)


def test_of_very_many_modules_those_that_did_not_succeed_are_kept_first() -> None:
    def end(module_id: int, status: int) -> dict[str, object]:
        at = f"2026-03-02T08:{module_id % 3600 // 60:02}:{module_id % 60:02}Z"
        return {"kind": "MODULE_END", "moduleId": module_id, "at": at, "status": status}

    told = steps.steps({"events": [end(n, 1) for n in range(1, 1000)] + [end(1000, 3)]}, FAILED)
    assert told is not None
    assert len(told) == steps.STEPS_MAX
    assert [step.id for step in told if step.result is Result.FAILURE] == ["1000"]
    assert [step.id for step in told] == sorted(step.id for step in told)


def test_a_blueprint_that_nests_without_end_is_read_for_a_while() -> None:
    flow: list[Any] = []
    for number in range(3 * steps.MODULES_MAX):
        flow = [{"id": number, "module": "http:Get", "routes": [{"flow": flow}]}]
    assert steps.steps({"events": [], "blueprint": {"modules": flow}}, FAILED) == ()


def test_nothing_people_wrote_becomes_the_type_of_a_step() -> None:
    told = steps.steps(load("events"), FAILED)
    assert "Customer" not in repr(told)
    assert "jane" not in repr(told)
