"""What a finished attempt looks like as a trace: ids, names, attributes, times, links, and which attempts are kept."""

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from exporter.model import Error, ErrorClass, Result, Run, State, Step, Workflow
from exporter.model.fold import SAME_END
from exporter.model.joins import join_run
from exporter.traces.spans import MESSAGE_CHARS_MAX, STEPS_PER_TRACE_MAX, keep, spans_of, step_span_id, trace_ids

T = 1_768_456_800.0
NS = 1_768_456_800_000_000_000
S = 1_000_000_000
FIRST, SECOND, THIRD = 1_768_456_805_000, 1_768_456_900_000, 1_768_457_000_000  # attempts named by their time
RESOURCE = Resource({"service.name": "docs", "automation.platform": "example"})
INVOICES = Workflow(id="wf-1", at=T, name="Invoices", workspace="finance")

RUN = Run(
    workflow_id="wf-1",
    id="run-1",
    state=State.FINISHED,
    result=Result.SUCCESS,
    started_at=T,
    ended_at=T + 5,
)


def spans(run: Run, **other: Any) -> list[ReadableSpan]:
    known: dict[str, Any] = {"workflow": None, "url": None, "dead_letter_id": None} | other
    return spans_of(run, platform="example", source="docs", resource=RESOURCE, **known)


def root(run: Run, **other: Any) -> ReadableSpan:
    return spans(run, **other)[0]


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def children(run: Run) -> list[tuple[str, int, int]]:
    """Name, start and end of each child, in nanoseconds since T."""
    return [(s.name, (s.start_time or 0) - NS, (s.end_time or 0) - NS) for s in spans(run)[1:]]


def linked(run: Run) -> list[tuple[str, tuple[int, int]]]:
    return [
        (str(dict(link.attributes or {})["automation.link"]), (link.context.trace_id, link.context.span_id))
        for link in root(run).links
    ]


# Ids


def test_the_documented_ids_are_those_of_a_plain_sha256() -> None:
    digest = hashlib.sha256(b"automation-exporter/run/1\x1fexample\x1fdocs\x1frun-1\x1f1").hexdigest()
    assert digest.startswith("0356b2cc4f596a08800be59f80ad3095493d22e951d9d887")
    assert trace_ids("example", "docs", "run-1", 1) == (0x0356B2CC4F596A08800BE59F80AD3095, 0x493D22E951D9D887)
    documented = " ".join((trace_ids.__doc__ or "").split())
    assert "trace ``0356b2cc4f596a08800be59f80ad3095``, root span ``493d22e951d9d887``" in documented


def test_the_separator_and_its_escape_are_escaped_inside_the_parts() -> None:
    digest = hashlib.sha256(b"automation-exporter/run/1\x1fexample\x1fa\\\\b\x1fc\\x1fd\x1f1").digest()
    assert trace_ids("example", "a\\b", "c\x1fd", 1)[0] == int.from_bytes(digest[:16], "big")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("p", "s", "1", 23), ("p", "s", "12", 3)),
        (("p", "s1", "2", 1), ("p", "s", "12", 1)),
        (("p", "s\x1fa", "b", 1), ("p", "s", "a\x1fb", 1)),
        (("p", "s\\", "\x1fb", 1), ("p", "s\\\x1f", "b", 1)),
        (("p", "s", "\\x1f", 1), ("p", "s", "\x1f", 1)),
        (("p", "s", "run-1", 1), ("p", "s", "run-1", 2)),
        (("p", "s", "run-1", 1), ("q", "s", "run-1", 1)),
    ],
)
def test_different_keys_have_different_ids(one: tuple[str, str, str, int], other: tuple[str, str, str, int]) -> None:
    assert trace_ids(*one)[0] != trace_ids(*other)[0]
    assert trace_ids(*one)[1] != trace_ids(*other)[1]


PARTS = st.text(alphabet=st.sampled_from("a1\\x\x1f\ud800"), max_size=4)


@given(PARTS, PARTS, PARTS, PARTS, PARTS, PARTS)
def test_ids_are_equal_only_for_equal_keys_and_never_zero(a: str, b: str, c: str, d: str, e: str, f: str) -> None:
    ids = trace_ids(a, b, c, 1), trace_ids(d, e, f, 1)
    assert (ids[0] == ids[1]) == ((a, b, c) == (d, e, f))
    assert all(0 < trace_id < 2**128 and 0 < span_id < 2**64 for trace_id, span_id in ids)


def test_an_all_zero_hash_does_not_make_an_invalid_id(monkeypatch: pytest.MonkeyPatch) -> None:
    class Zero:
        def digest(self) -> bytes:
            return bytes(32)

    monkeypatch.setattr(hashlib, "sha256", lambda data: Zero())
    assert trace_ids("p", "s", "r", 1) == (1, 1)
    assert step_span_id(1, "a") == 1


def test_step_ids_depend_on_the_trace_and_the_step() -> None:
    ids = {step_span_id(trace, step) for trace in (1, 2, 0x12) for step in ("a", "b", "2a")}
    assert len(ids) == 9


def test_mapping_an_attempt_again_gives_the_same_bytes() -> None:
    run = replace(RUN, steps=(Step(id="1", type="parse", started_at=T, ended_at=T + 1, result=Result.SUCCESS),))
    assert encode_spans(spans(run)) == encode_spans(spans(run))


# The root span


def test_a_run_with_everything_known_says_it_all() -> None:
    run = replace(
        RUN,
        attempt=3,
        result=Result.TIMEOUT,
        error=Error(error_class=ErrorClass.TIMEOUT, type="RunTimeout", message="too slow", step_type="http"),
        queued_at=T - 2,
        trigger="webhook",
        parent_id="run-0",
        operations=12.0,
        bytes_in=10.0,
        bytes_out=20.0,
        previous=(2, T - 60),
    )
    span = root(run, workflow=INVOICES, url="https://docs.example/runs/run-1", dead_letter_id="dl-7")
    assert span.name == "RUN Invoices"
    assert span.kind is SpanKind.SERVER
    assert span.parent is None
    assert (span.start_time, span.end_time) == (NS, NS + 5 * S)
    assert (span.context.trace_id, span.context.span_id) == trace_ids("example", "docs", "run-1", 3)
    assert span.resource == RESOURCE
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "too slow")
    assert attributes(span) == {
        "cicd.pipeline.name": "Invoices",
        "cicd.pipeline.run.id": "run-1",
        "cicd.pipeline.run.url.full": "https://docs.example/runs/run-1",
        "cicd.pipeline.result": "timeout",
        "error.type": "RunTimeout",
        "automation.error.class": "timeout",
        "automation.error.step_type": "http",
        "automation.platform": "example",
        "automation.source": "docs",
        "automation.workflow.id": "wf-1",
        "automation.workspace": "finance",
        "automation.run.attempt": 3,
        "automation.run.result": "timeout",
        "automation.run.trigger": "webhook",
        "automation.run.parent_id": "run-0",
        "automation.run.operations": 12.0,
        "automation.run.bytes_in": 10.0,
        "automation.run.bytes_out": 20.0,
        "automation.dead_letter.id": "dl-7",
    }


def test_how_long_steps_without_times_took_is_told_where_it_is_known_of_all() -> None:
    steps = (Step(id="a", type="a", seconds=0.25), Step(id="b", type="b", seconds=0.0))
    (span,) = spans(replace(RUN, steps=steps))
    assert attributes(span)["automation.steps.untimed_seconds"] == (0.25, 0.0)
    (span,) = spans(replace(RUN, steps=(steps[0], Step(id="b", type="b"))))
    assert attributes(span)["automation.steps.untimed"] == ("a", "b")
    assert "automation.steps.untimed_seconds" not in attributes(span)


def test_steps_without_any_times_are_named_by_the_root_and_make_no_spans() -> None:
    steps = (Step(id="endpointBlock:c-1", type="endpointBlock"), Step(id="half \ud83d", type="snippetBlock"))
    (span,) = spans(replace(RUN, steps=steps))
    assert attributes(span)["automation.steps.untimed"] == ("endpointBlock:c-1", "half ?")
    assert "automation.steps.untimed_seconds" not in attributes(span)
    assert span.events == ()
    assert encode_spans([span]).ByteSize() > 0
    many = tuple(Step(id=f"{n:03}", type="a") for n in range(STEPS_PER_TRACE_MAX + 1))
    assert len(attributes(root(replace(RUN, steps=many)))["automation.steps.untimed"]) == STEPS_PER_TRACE_MAX


def test_a_run_of_which_little_is_known_claims_nothing_more() -> None:
    span = root(RUN)
    assert span.name == "RUN wf-1"
    assert span.status.status_code is StatusCode.UNSET
    assert attributes(span) == {
        "cicd.pipeline.name": "wf-1",
        "cicd.pipeline.run.id": "run-1",
        "cicd.pipeline.result": "success",
        "automation.platform": "example",
        "automation.source": "docs",
        "automation.workflow.id": "wf-1",
        "automation.run.attempt": 1,
        "automation.run.result": "success",
    }


@pytest.mark.parametrize(
    ("result", "convention", "ours", "status"),
    [
        (Result.SUCCESS, "success", "success", StatusCode.UNSET),
        (Result.WARNING, "success", "warning", StatusCode.UNSET),
        (Result.FAILURE, "failure", "failure", StatusCode.ERROR),
        (Result.CANCELLED, "cancellation", "cancelled", StatusCode.UNSET),
        (Result.TIMEOUT, "timeout", "timeout", StatusCode.ERROR),
        (Result.QUOTA, "error", "quota", StatusCode.ERROR),
        (Result.UNKNOWN, None, "unknown", StatusCode.UNSET),
        (None, None, "unknown", StatusCode.UNSET),
    ],
)
def test_results_are_told_in_both_vocabularies(
    result: Result | None, convention: str | None, ours: str, status: StatusCode
) -> None:
    span = root(replace(RUN, result=result))
    assert attributes(span).get("cicd.pipeline.result") == convention
    assert attributes(span)["automation.run.result"] == ours
    assert span.status.status_code is status


@pytest.mark.parametrize(
    ("error", "error_type"),
    [
        (Error(error_class=ErrorClass.NETWORK, type="ConnectionError"), "ConnectionError"),
        (Error(error_class=ErrorClass.NETWORK), "network"),
        (Error(), "unknown"),
        (None, "unknown"),
    ],
)
def test_a_failure_always_has_an_error_type(error: Error | None, error_type: str) -> None:
    told = attributes(root(replace(RUN, result=Result.FAILURE, error=error)))
    assert told["error.type"] == error_type
    assert told.get("automation.error.class") == (None if error is None else error.error_class.value)


def test_a_warning_tells_its_error_without_claiming_to_have_failed() -> None:
    error = Error(error_class=ErrorClass.VALIDATION, type="DataError", message="2 rows skipped")
    span = root(replace(RUN, result=Result.WARNING, error=error))
    told = attributes(span)
    assert "error.type" not in told
    assert (told["automation.error.class"], told["automation.error.message"]) == ("validation", "2 rows skipped")
    assert span.status.description is None


def test_messages_are_redacted_and_capped() -> None:
    message = "login failed for jane@example.com with password=hunter2secret " + "x " * 500
    failed = root(replace(RUN, result=Result.FAILURE, error=Error(message=message)))
    warned = root(replace(RUN, result=Result.WARNING, error=Error(message=message)))
    for text in (failed.status.description or "", attributes(warned)["automation.error.message"]):
        assert "jane@" not in text
        assert "hunter2" not in text
        assert text.startswith("login failed for")
        assert len(text) <= MESSAGE_CHARS_MAX


def test_texts_no_encoder_takes_are_made_harmless() -> None:
    run = replace(RUN, id="half \ud83d", workflow_id="w" * 5000, steps=(Step(id="\udc00", type="\ud800", ended_at=T),))
    sent = encode_spans(spans(run)).resource_spans[0].scope_spans[0].spans[0]
    assert {a.key: a.value.string_value for a in sent.attributes}["cicd.pipeline.run.id"] == "half ?"
    assert len(sent.name) < 300


# Times


@pytest.mark.parametrize(
    ("started_at", "ended_at", "queued_at", "start", "end"),
    [
        (T, T + 5, None, 0, 5 * S),
        (None, T + 5, None, 5 * S, 5 * S),  # unknown start
        (T, None, None, 0, 0),  # unknown end: the platform is believed on its start
        (None, None, T, 0, 0),
        (T + 9, T + 5, None, 5 * S, 5 * S),  # two clocks
        (T + 0.25, T + 0.5000001, None, S // 4, S // 2),  # to the microsecond
    ],
)
def test_a_span_never_ends_before_it_starts(
    started_at: float | None, ended_at: float | None, queued_at: float | None, start: int, end: int
) -> None:
    span = root(replace(RUN, started_at=started_at, ended_at=ended_at, queued_at=queued_at))
    assert (span.start_time, span.end_time) == (NS + start, NS + end)


def test_a_run_nobody_knows_the_time_of_has_no_trace() -> None:
    assert spans(replace(RUN, started_at=None, ended_at=None)) == []


@pytest.mark.parametrize("moment", [float("nan"), float("inf"), -float("inf"), -5.0, 1e300])
def test_impossible_times_still_make_a_span_that_can_be_sent(moment: float) -> None:
    for run in (replace(RUN, ended_at=moment), replace(RUN, started_at=moment)):
        for span in spans(replace(run, steps=(Step(id="1", type="a", started_at=moment, ended_at=moment),))):
            assert 0 <= (span.start_time or 0) <= (span.end_time or 0) < 2**63


TIMES = st.none() | st.floats(min_value=T - 100, max_value=T + 100)
STEPS = st.builds(Step, id=st.text(max_size=3), type=st.just("t"), started_at=TIMES, ended_at=TIMES)


@given(TIMES, TIMES, st.lists(STEPS, max_size=5, unique_by=lambda s: s.id), st.none() | st.tuples(st.just(0), TIMES))
def test_no_step_leaves_the_bounds_of_its_run(
    started_at: float | None, ended_at: float | None, steps: list[Step], previous: tuple[int, float | None] | None
) -> None:
    before = None if previous is None or previous[1] is None else (0, previous[1])
    run = replace(RUN, started_at=started_at, ended_at=ended_at, steps=tuple(steps), previous=before)
    for number, span in enumerate(made := spans(run)):
        low, high = made[0].start_time or 0, made[0].end_time or 0
        assert low <= (span.start_time or 0) <= (span.end_time or 0) <= high
        assert number == 0 or span.parent == made[0].context
        assert all(low <= event.timestamp <= high for event in span.events)


# Steps


def test_steps_with_both_times_are_children_in_the_order_of_their_start() -> None:
    parse = Step(id="2", type="parse", started_at=T, ended_at=T + 1, result=Result.SUCCESS)
    write = Step(id="1", type="write", started_at=T + 1, ended_at=T + 4, result=Result.FAILURE)
    made = spans(replace(RUN, steps=(write, parse)))
    assert [span.name for span in made] == ["RUN wf-1", "parse", "write"]
    assert [(span.start_time, span.end_time) for span in made[1:]] == [(NS, NS + S), (NS + S, NS + 4 * S)]
    assert {span.kind for span in made[1:]} == {SpanKind.INTERNAL}
    assert [span.status.status_code for span in made[1:]] == [StatusCode.UNSET, StatusCode.ERROR]
    assert made[2].parent == made[0].context
    assert made[2].resource == RESOURCE
    assert (made[2].context.trace_id, made[2].context.span_id) == (
        made[0].context.trace_id,
        step_span_id(made[0].context.trace_id, "1"),
    )
    assert attributes(made[2]) == {
        "cicd.pipeline.task.name": "write",
        "cicd.pipeline.task.run.id": "1",
        "cicd.pipeline.task.run.result": "failure",
        "automation.step.result": "failure",
    }


def test_a_step_outside_its_run_is_moved_to_its_bounds() -> None:
    steps = (
        Step(id="1", type="early", started_at=T - 10, ended_at=T - 5),
        Step(id="2", type="late", started_at=T + 4, ended_at=T + 50),
        Step(id="3", type="turned", started_at=T + 3, ended_at=T + 2),
    )
    assert children(replace(RUN, steps=steps)) == [
        ("early", 0, 0),
        ("turned", 3 * S, 3 * S),
        ("late", 4 * S, 5 * S),
    ]


def test_a_step_whose_start_nobody_saw_is_an_event_and_an_unfinished_one_is_nothing() -> None:
    steps = (
        Step(id="1", type="parse", ended_at=T + 2, result=Result.UNKNOWN),
        Step(id="2", type="write", started_at=T + 3),
        Step(id="3", type="mail"),
    )
    made = spans(replace(RUN, steps=steps))
    assert len(made) == 1
    assert [(e.name, e.timestamp, dict(e.attributes or {})) for e in made[0].events] == [
        (
            "parse",
            NS + 2 * S,
            {
                "cicd.pipeline.task.name": "parse",
                "cicd.pipeline.task.run.id": "1",
                "automation.step.result": "unknown",
            },
        )
    ]


def test_an_unknown_start_is_the_start_of_the_first_step() -> None:
    steps = (Step(id="1", type="a", started_at=T + 2, ended_at=T + 3), Step(id="2", type="b", ended_at=T + 1))
    span = root(replace(RUN, started_at=None, steps=steps))
    assert (span.start_time, span.end_time) == (NS + 2 * S, NS + 5 * S)


def test_steps_of_an_earlier_attempt_belong_to_its_own_trace() -> None:
    steps = (
        Step(id="1", type="parse", started_at=T, ended_at=T + 1, result=Result.SUCCESS),
        Step(id="2", type="write", started_at=T + 1, ended_at=T + 5, result=Result.FAILURE),
        Step(id="3", type="mail", started_at=T + 96, ended_at=T + 100, result=Result.SUCCESS),
    )
    run = replace(RUN, attempt=SECOND, ended_at=T + 100, steps=steps, previous=(FIRST, T + 5))
    assert children(run) == [("mail", 96 * S, 100 * S)]
    assert root(run).start_time == NS + 96 * S


def test_beyond_the_limit_failed_steps_stay_and_the_rest_is_counted() -> None:
    many = [
        Step(id=f"{n:04}", type="ok", started_at=T, ended_at=T + n / 1000, result=Result.SUCCESS) for n in range(300)
    ]
    many[299] = replace(many[299], type="bad", result=Result.FAILURE)
    made = spans(replace(RUN, steps=tuple(many)))
    assert len(made) == 1 + STEPS_PER_TRACE_MAX
    assert [span.name for span in made].count("bad") == 1
    assert attributes(made[0])["automation.steps.dropped"] == 300 - STEPS_PER_TRACE_MAX
    assert "automation.steps.dropped" not in attributes(root(replace(RUN, steps=tuple(many[:STEPS_PER_TRACE_MAX]))))


def test_the_time_in_a_queue_is_a_child_that_ends_where_the_run_starts() -> None:
    run = replace(RUN, queued_at=T - 3)
    assert children(run) == [("queue", -3 * S, 0)]
    queue = spans(run)[1]
    assert queue.kind is SpanKind.INTERNAL
    assert queue.parent == spans(run)[0].context
    assert attributes(queue) == {"cicd.pipeline.run.state": "pending"}
    assert queue.context.span_id not in (step_span_id(queue.context.trace_id, "queue"), root(run).context.span_id)


@pytest.mark.parametrize(
    "run",
    [replace(RUN, queued_at=T), replace(RUN, queued_at=T + 1), replace(RUN, queued_at=T - 3, started_at=None), RUN],
)
def test_no_wait_no_queue_span(run: Run) -> None:
    assert children(run) == []


# Links


@pytest.mark.parametrize(
    ("run", "links"),
    [
        (RUN, []),
        (replace(RUN, attempt=2), [("previous_attempt", ("run-1", 1))]),
        (replace(RUN, attempt=5, previous=(3, T - 9)), [("previous_attempt", ("run-1", 3))]),
        (replace(RUN, attempt=SECOND), []),  # an update time says nothing about the one before
        (
            replace(RUN, attempt=SECOND, ended_at=T + 100, previous=(FIRST, T + 5)),
            [("previous_attempt", ("run-1", FIRST))],
        ),
        (  # restarted in place, and soon over again
            replace(RUN, attempt=SECOND, ended_at=T + 6, previous=(FIRST, T + 5)),
            [("previous_attempt", ("run-1", FIRST))],
        ),
        (replace(RUN, parent_id="run-0"), [("parent_run", ("run-0", 1))]),
        (replace(RUN, parent_id="run-1"), []),
        (
            replace(RUN, attempt=2, parent_id="run-0"),
            [("previous_attempt", ("run-1", 1)), ("parent_run", ("run-0", 1))],
        ),
    ],
)
def test_links_lead_to_the_attempt_before_and_to_the_parent(run: Run, links: list[tuple[str, tuple[str, int]]]) -> None:
    assert linked(run) == [(kind, trace_ids("example", "docs", *key)) for kind, key in links]
    assert all(link.context.is_remote for link in root(run).links)
    assert root(run).context.trace_id not in [link.context.trace_id for link in root(run).links]


def test_a_finish_told_twice_under_two_names_is_one_attempt_with_its_start_and_steps() -> None:
    """A webhook numbers it 1, the poll names it by its update time: nothing came before it."""
    told = replace(RUN, attempt=1, result=Result.FAILURE)
    steps = (Step(id="1", type="parse", started_at=T, ended_at=T + 4, result=Result.FAILURE),)
    polled = replace(RUN, attempt=FIRST, result=Result.FAILURE, ended_at=T + 5 + SAME_END, steps=steps)
    run = join_run(told, polled)
    assert run.previous == (1, T + 5)
    assert linked(run) == []
    assert root(run).start_time == NS
    assert children(run) == [("parse", 0, 4 * S)]


def test_a_later_finish_after_one_that_was_numbered_is_a_new_attempt() -> None:
    told = replace(RUN, attempt=1, result=Result.FAILURE)
    run = join_run(told, replace(RUN, attempt=SECOND, ended_at=T + 6 + SAME_END))
    assert linked(run) == [("previous_attempt", trace_ids("example", "docs", "run-1", 1))]


# Sampling


@pytest.mark.parametrize("result", [*(result for result in Result if result is not Result.SUCCESS), None])
def test_whatever_is_no_plain_success_is_always_kept(result: Result | None) -> None:
    assert keep(replace(RUN, result=result), False, 2**128 - 1, 0.0)


def test_a_success_with_a_dead_letter_is_always_kept() -> None:
    assert keep(RUN, True, 2**128 - 1, 0.0)
    assert not keep(RUN, False, 2**128 - 1, 0.0)


@pytest.mark.parametrize("trace_id", [1, 2**64 - 1, 2**128 - 1])
def test_all_are_kept_or_none(trace_id: int) -> None:
    assert keep(RUN, False, trace_id, 1.0)
    assert not keep(RUN, False, trace_id, 0.0)


def test_about_the_share_is_kept_and_a_larger_share_keeps_the_same_and_more() -> None:
    ids = [trace_ids("example", "docs", f"run-{number}", 1)[0] for number in range(2000)]
    few = {trace_id for trace_id in ids if keep(RUN, False, trace_id, 0.1)}
    more = {trace_id for trace_id in ids if keep(RUN, False, trace_id, 0.5)}
    assert few < more
    assert 140 < len(few) < 260
    assert 900 < len(more) < 1100
