"""Recorded shapes of Cognaize's answers become exactly these observations, awkward ones included."""

import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from exporter.model import DeadLetter, Error, ErrorClass, ResolvedBy, Result, Run, State, Step
from exporter.model.joins import join_run
from exporter.platform import BadItem
from exporter.platform.errors import plain
from exporter.platform.retrying import Effort, Standing
from exporter.platforms.cognaize import mapping

PAYLOADS = Path(__file__).parent / "payloads"
CREATED = 1_768_456_680.0
UPDATED = 1_768_456_770.123
ATTEMPT = 1_768_456_770_123
RUN = Run(workflow_id="wf-1", id="p-1", attempt=ATTEMPT, started_at=CREATED)
SUCCESS = replace(RUN, state=State.FINISHED, result=Result.SUCCESS, ended_at=UPDATED)
FAILURE = replace(RUN, state=State.FINISHED, result=Result.FAILURE, ended_at=UPDATED, error=Error(step_type="MODEL"))
LETTER = DeadLetter(
    id=f"p-1.s-2.{ATTEMPT}",
    workflow_id="wf-1",
    run_id="p-1",
    attempt=ATTEMPT,
    opened_at=UPDATED,
    error=Error(step_type="MODEL"),
)
LAST_COMPLETED = Step(id="s-3", type="DISTRIBUTION", ended_at=UPDATED, result=Result.SUCCESS)
SECOND_FAILED = Step(id="s-2", type="MODEL", ended_at=UPDATED, result=Result.FAILURE)
FIRST_COMPLETED = Step(id="s-1", type="GATEKEEPER", ended_at=UPDATED, result=Result.SUCCESS)
SECOND_STARTED = Step(id="s-2", type="MODEL", started_at=UPDATED)


def payload(name: str) -> Any:
    return orjson.loads((PAYLOADS / f"{name}.json").read_bytes())


def process(name: str) -> Any:
    return mapping.unwrap(payload(name))


@pytest.mark.parametrize(
    ("name", "run", "dead_letters"),
    [
        ("completed", replace(SUCCESS, steps=(LAST_COMPLETED,)), ()),
        ("failed", replace(FAILURE, steps=(SECOND_FAILED,)), (LETTER,)),
        ("running", replace(RUN, state=State.RUNNING, steps=(FIRST_COMPLETED, SECOND_STARTED)), ()),
        (
            "just_started",
            replace(
                RUN,
                attempt=1_768_456_680_000,
                state=State.RUNNING,
                steps=(Step(id="s-1", type="GATEKEEPER", started_at=CREATED),),
            ),
            (),
        ),
        ("pending", replace(RUN, attempt=1_768_456_680_000, state=State.PENDING), ()),
        ("between_steps", replace(RUN, state=State.RUNNING), ()),
        ("unknown_status", replace(RUN, state=State.RUNNING), ()),
        ("failed_with_unknown_status", FAILURE, (LETTER,)),
        ("without_start", replace(SUCCESS, started_at=None, steps=(LAST_COMPLETED,)), ()),
        ("null_numbers", replace(FAILURE, steps=(SECOND_FAILED,)), (LETTER,)),
        ("without_delegate", replace(FAILURE, error=Error()), (replace(LETTER, error=Error()),)),
        ("without_step_ids", FAILURE, ()),
        (
            "whole_number_ids",
            replace(FAILURE, id="17", workflow_id="4", steps=(SECOND_FAILED,)),
            (replace(LETTER, id=f"17.s-2.{ATTEMPT}", run_id="17", workflow_id="4"),),
        ),
    ],
)
def test_a_process_becomes_exactly_this_run(name: str, run: Run, dead_letters: tuple[DeadLetter, ...]) -> None:
    assert mapping.read(process(name)) == mapping.Reading(run=run, dead_letters=dead_letters)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("without_end", "updatedTimestamp"),
        ("time_as_number", "updatedTimestamp"),
        ("without_steps", "steps"),
        ("empty_steps", "steps"),
        ("null_step", "steps"),
        ("without_workflow", "workflowId"),
    ],
)
def test_a_process_that_names_no_attempt_or_state_costs_only_itself_and_says_why(name: str, problem: str) -> None:
    with pytest.raises(BadItem, match=problem):
        mapping.read(process(name))


@pytest.mark.parametrize("junk", [None, [], "p-1", 5, {}, {"id": None, "workflowId": "wf-1"}, {"id": "", "steps": 1}])
def test_anything_that_is_no_process_is_a_bad_item_and_no_crash(junk: Any) -> None:
    with pytest.raises(BadItem):
        mapping.read(junk)
    assert mapping.identity(junk) is None


@pytest.mark.parametrize("junk", [None, 5, [], {}, "STARTED ", True])
def test_a_status_of_any_type_leaves_the_process_running(junk: Any) -> None:
    item = process("running")
    item["steps"][1]["processStepStatus"] = junk
    assert mapping.read(item).run == replace(RUN, state=State.RUNNING)


def test_nine_digits_name_the_attempt_in_whole_milliseconds_never_rounded_up() -> None:
    run = mapping.read(process("nine_digits")).run
    assert run.attempt == ATTEMPT
    assert (run.ended_at, run.started_at) == pytest.approx((UPDATED + 0.000999, CREATED + 0.00025), abs=1e-6)
    assert all(mapping.attempt_of(n / 1000) == n for n in range(ATTEMPT, ATTEMPT + 2000))


def test_an_unreadable_process_is_open_and_never_stands_against_what_is_known() -> None:
    run = mapping.unread(process("without_end"))
    assert run == Run(workflow_id="wf-1", id="p-1", attempt=1, state=State.RUNNING, started_at=CREATED)
    finished = mapping.read(process("completed")).run
    assert join_run(finished, run) == join_run(run, finished) == finished


def test_nothing_of_the_payload_data_reaches_an_observation() -> None:
    for path in PAYLOADS.glob("*.json"):
        try:
            reading = mapping.read(orjson.loads(path.read_bytes()).get("data"))
        except BadItem:
            continue
        assert "jane" not in repr(reading), path


# Steps. A transition tells two steps' times, unless the later one was restarted.


def test_a_first_step_that_started_after_the_creation_started_at_the_update() -> None:
    item = process("just_started")
    item["updatedTimestamp"] = "2026-01-15T05:59:30.123Z"
    assert mapping.read(item).run.steps == (Step(id="s-1", type="GATEKEEPER", started_at=UPDATED),)


def test_a_restarted_step_says_nothing_about_the_step_before_it() -> None:
    letter = replace(LETTER, id="p-1.s-2.1768456700000", opened_at=CREATED + 20)
    assert mapping.read(process("running"), dead_letters=[letter]).run.steps == (SECOND_STARTED,)


def test_a_dead_letter_of_another_step_does_not_make_this_one_restarted() -> None:
    letter = replace(LETTER, id="p-1.s-20.1768456700000")
    assert mapping.read(process("running"), dead_letters=[letter]).run.steps == (FIRST_COMPLETED, SECOND_STARTED)


def test_a_step_known_to_have_failed_is_still_restarted_when_it_is_read_again() -> None:
    before = replace(RUN, steps=(replace(SECOND_STARTED, ended_at=CREATED + 20, result=Result.FAILURE),))
    assert mapping.read(process("running"), before=before).run.steps == (SECOND_STARTED,)


def test_a_step_known_to_be_completed_keeps_its_end_after_a_restart_nobody_saw() -> None:
    first = replace(FIRST_COMPLETED, ended_at=CREATED + 10)
    before = replace(RUN, attempt=ATTEMPT - 80_000, state=State.RUNNING, steps=(first,))
    after = join_run(before, mapping.read(process("running"), before=before).run)
    assert after.steps == (first, SECOND_STARTED)


def test_readings_of_one_process_join_to_the_durations_of_its_steps() -> None:
    run: Run | None = None
    for name, at in (("just_started", "05:58:00"), ("running", "05:58:20"), ("failed", "05:59:00")):
        item = process(name)
        item["updatedTimestamp"] = f"2026-01-15T{at}.000Z"
        claim = mapping.read(item, before=run).run
        run = claim if run is None else join_run(run, claim)
    assert run is not None
    assert run.steps == (
        Step(id="s-1", type="GATEKEEPER", started_at=CREATED, ended_at=CREATED + 20, result=Result.SUCCESS),
        Step(id="s-2", type="MODEL", started_at=CREATED + 20, ended_at=CREATED + 60, result=Result.FAILURE),
    )


# What the platform no longer has.


def test_a_run_the_platform_lost_is_finished_and_nobody_knows_how_or_when() -> None:
    lost = mapping.gone(replace(RUN, state=State.RUNNING))
    assert (lost.state, lost.result, lost.ended_at, lost.duration) == (State.FINISHED, Result.UNKNOWN, None, None)
    letter = mapping.expired(LETTER, at=UPDATED + 5)
    assert (letter.resolved_at, letter.resolved_by) == (UPDATED + 5, ResolvedBy.EXPIRED)


# The listing and the envelope.


def test_a_page_is_read_with_its_place_and_the_creation_times_it_tells() -> None:
    rows = mapping.rows(payload("page"), number=2, size=100)
    assert (rows.number, rows.size, rows.total, rows.pages, len(rows.items)) == (2, 100, 250, 3, 3)
    assert rows.moments == (CREATED,)


def test_ranks_count_from_the_oldest_process_whichever_way_the_listing_is_sorted() -> None:
    rows = mapping.Rows(number=0, size=100, total=250, items=(), moments=())
    assert (rows.ranks("oldest_first"), rows.ranks("newest_first")) == ((0, 100), (150, 250))
    last = dataclasses.replace(rows, number=2)
    assert (last.ranks("oldest_first"), last.ranks("newest_first")) == ((200, 250), (0, 50))
    beyond = dataclasses.replace(rows, number=3)
    assert [low >= high for low, high in (beyond.ranks("oldest_first"), beyond.ranks("newest_first"))] == [True, True]


@pytest.mark.parametrize("name", ["page_without_total", "page_without_content", "completed", "error_401"])
def test_an_answer_that_is_no_page_is_refused(name: str) -> None:
    with pytest.raises(BadItem):
        mapping.rows(payload(name), number=0, size=100)


@pytest.mark.parametrize("junk", [None, [], "text", {"content": []}])
def test_an_answer_without_the_envelope_is_refused(junk: Any) -> None:
    with pytest.raises(BadItem):
        mapping.unwrap(junk)


@pytest.mark.parametrize(
    ("moments", "order"),
    [
        ([], None),
        ([1.0], None),
        ([1.0, 4.0, 2.0], None),
        ([1.0, 100.0, 200.0], "oldest_first"),
        ([1.0, 100.0, 97.0, 200.0], "oldest_first"),
        ([200.0, 100.0, 1.0], "newest_first"),
        ([1.0, 200.0, 100.0], "unordered"),
        ([100.0, 97.0, 94.0, 91.0, 300.0], "unordered"),
    ],
)
def test_the_order_is_learned_from_creation_times(moments: list[float], order: str | None) -> None:
    assert mapping.order_of(moments) == order


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("error_401", "Unauthorized request: Full authentication is required"),
        ("error_412", "Precondition failed: processStepStatus"),
    ],
)
def test_errors_are_told_in_the_platforms_words_without_values(name: str, words: str) -> None:
    assert mapping.error_detail(payload(name)) == words


@pytest.mark.parametrize("junk", [None, [], "text", {}, {"message": 5}])
def test_an_error_body_of_another_shape_has_no_words(junk: Any) -> None:
    assert mapping.error_detail(junk) is None


def test_a_token_is_found_in_the_envelope_and_bare() -> None:
    assert mapping.access_token(payload("login"))[0] == "eyJhbGciOiJSUzI1NiJ9.e30.c2ln"
    assert mapping.access_token(payload("login_of_identity_provider"))[0] == "bare"
    for answer in (payload("login_without_token"), payload("error_401"), None, {"access_token": "two\r\nlines"}):
        with pytest.raises(BadItem):
            mapping.access_token(answer)


# Error classes, for events.


@pytest.mark.parametrize(
    ("kind", "message", "error_class"),
    [
        *((c.value, None, c) for c in ErrorClass),
        ("ModelError", "connect ECONNREFUSED 10.0.0.1:443", ErrorClass.NETWORK),
        ("ModelError", "the model timed out", ErrorClass.TIMEOUT),
        ("HTTP 429", "Too Many Requests", ErrorClass.THROTTLED),
        (None, "502 Bad Gateway", ErrorClass.PLATFORM),
        (None, "document is malformed", ErrorClass.VALIDATION),
        (None, "the container was OOMKilled", ErrorClass.KILLED),
        ("Forbidden", None, ErrorClass.PERMISSION),
        ("StepFailed", "no luck", ErrorClass.UNKNOWN),
        (None, None, ErrorClass.UNKNOWN),
    ],
)
def test_types_and_messages_of_events_fall_into_classes(
    kind: str | None, message: str | None, error_class: ErrorClass
) -> None:
    assert plain(kind, message) is error_class


# Restarts


def restart(
    name: str = "failed", *, later: int = 0, status: Any = "FAILED", sent_after: float | None = None, **more: Any
) -> mapping.Restart:
    """What is read when the second step has this status, so many milliseconds after it failed."""
    item = process(name)
    item["steps"][1]["processStepStatus"] = status
    moment = datetime.fromtimestamp((ATTEMPT + later) / 1000, UTC)
    item["updatedTimestamp"] = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    sent_at = None if sent_after is None else UPDATED + sent_after
    return mapping.restart(item, LETTER, sent_at=sent_at, **{"accepted": False, **more})


def test_a_dead_letter_names_its_step_and_its_root() -> None:
    assert (mapping.step_id(LETTER), mapping.root(LETTER)) == ("s-2", "p-1.s-2")
    dotted = replace(LETTER, id=f"p.1.s.2.{ATTEMPT}", run_id="p.1")
    assert (mapping.step_id(dotted), mapping.root(dotted)) == ("s.2", "p.1.s.2")


def test_a_step_that_is_failed_since_the_same_moment_is_dead_and_nothing_has_happened() -> None:
    found = restart(sent_after=60.0)
    assert (found.standing, found.effort) == (Standing.DEAD, None)
    assert found.reading == mapping.Reading(run=FAILURE, dead_letters=(LETTER,))


@pytest.mark.parametrize(
    ("status", "later", "accepted", "standing", "result", "ours"),
    [
        ("STARTED", 100_000, False, Standing.BUSY, None, True),
        ("STARTED", 95_000, False, Standing.BUSY, None, True),  # within the skew of clocks
        ("STARTED", 94_999, True, Standing.BUSY, None, False),
        ("STARTED", 160_001, True, Standing.BUSY, None, None),  # perhaps the second restart since
        ("COMPLETED", 110_000, False, Standing.RESOLVED, Result.SUCCESS, True),
        ("COMPLETED", 160_001, False, Standing.RESOLVED, Result.SUCCESS, None),
        ("COMPLETED", 160_001, True, Standing.RESOLVED, Result.SUCCESS, True),
        ("COMPLETED", 90_000, True, Standing.RESOLVED, Result.SUCCESS, False),
        ("FAILED", 160_001, False, Standing.RESOLVED, Result.FAILURE, None),
        ("FAILED", 160_001, True, Standing.RESOLVED, Result.FAILURE, True),
        ("SUSPENDED", 160_001, True, Standing.BUSY, None, None),
        (None, 160_001, True, Standing.BUSY, None, None),
    ],
)
def test_a_later_update_tells_of_a_restart(
    status: Any, later: int, accepted: bool, standing: Standing, result: Result | None, ours: bool | None
) -> None:
    found = restart(status=status, later=later, sent_after=100.0, accepted=accepted)
    at = (ATTEMPT + later) / 1000
    assert found.standing is standing
    assert found.effort == Effort(
        id=f"p-1.s-2.{ATTEMPT + later}",
        began_at=at if status == "STARTED" else None,
        ended_at=None if result is None else at,
        result=result,
        ours=ours,
    )


def test_a_restart_by_nobody_knows_whom_says_nothing_of_when_steps_ended() -> None:
    found = restart(status="STARTED", later=5000)
    assert found.reading.run.steps is None
    assert found.effort is not None
    assert found.effort.ours is None


def test_params_are_at_hand_and_never_shown() -> None:
    item = process("failed")
    item["steps"][1]["params"] = item["steps"][0]["params"]
    found = mapping.restart(item, LETTER, sent_at=None, accepted=False)
    assert found.params == item["steps"][0]["params"]
    assert "jane" not in repr(found)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"steps": [{"id": "s-1", "processStepStatus": "FAILED"}]}, "lacks the step"),
        ({"id": "p-2"}, "another one"),
        ({"updatedTimestamp": "2026-01-15T05:59:30.122Z"}, "older than its failure"),
        ({"updatedTimestamp": None}, "updatedTimestamp"),
    ],
)
def test_a_process_that_does_not_fit_its_dead_letter_is_not_believed(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadItem, match=problem):
        mapping.restart(process("failed") | change, LETTER, sent_at=None, accepted=False)


def test_an_answer_to_a_restart_names_the_step() -> None:
    assert mapping.restarted({"message": "Success", "data": {"processId": "p-1", "processStepId": "s-2"}}) == "s-2"
    assert mapping.restarted({"message": "Success", "data": "ok"}) is None
    with pytest.raises(BadItem):
        mapping.restarted(None)
