"""A finished attempt of a run as the spans of one trace. Pure.

The root span is the attempt; its children are the steps whose start and end are known and the time it waited in a
queue; steps without any times are named in an attribute; links lead to the attempt before it and to the run it descends
from. Every id is a hash of the run's key: whoever maps the same attempt again, after a crash or on another machine,
gets the same trace.

Names follow OpenTelemetry's semantic conventions for CI/CD where they fit; what has no convention is named
``automation.*``. They are written out here: the Python package's constants of them may still move.
"""

import hashlib
from typing import Any

from msgspec.structs import replace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from exporter import __version__
from exporter.model import FAILED, Result, Run, Step, Workflow, is_version
from exporter.model.fold import SAME_END
from exporter.model.redact import redact
from exporter.model.retries import Outcome, Retry

#: Runs of one retry that its trace links to.
LINKS_MAX = 10
#: Steps of one attempt that become spans or events; failed ones first, the rest is only counted.
STEPS_PER_TRACE_MAX = 200
NAME_CHARS_MAX = 200
TEXT_CHARS_MAX = 1000
MESSAGE_CHARS_MAX = 300

#: What OTLP can hold, in seconds: unsigned nanoseconds, kept where signed readers do not overflow.
_TIME_MAX = 9_000_000_000.0
_SCOPE = InstrumentationScope("automation-exporter", __version__)
#: Our results in the words of ``cicd.pipeline.result``. Unknown has none; a warning says so in our own attribute.
_RESULTS = {
    Result.SUCCESS: "success",
    Result.WARNING: "success",
    Result.FAILURE: "failure",
    Result.CANCELLED: "cancellation",
    Result.TIMEOUT: "timeout",
    Result.QUOTA: "error",
}

_Attributes = dict[str, str | int | float | tuple[str, ...] | tuple[float, ...]]


def trace_ids(platform: str, source: str, run_id: str, attempt: int) -> tuple[int, int]:
    """The trace id and the root span id of an attempt: the first 16 and the next 8 bytes of a SHA-256.

    Hashed is the UTF-8 text of ``automation-exporter/run/1``, platform, source, run id and attempt, joined by U+001F;
    inside the parts a backslash is doubled and U+001F becomes ``\\x1f``. So that others can compute it: attempt 1 of
    ``run-1`` of the source ``docs`` on the platform ``example`` is trace ``0356b2cc4f596a08800be59f80ad3095``, root
    span ``493d22e951d9d887``.
    """
    digest = _digest("run", platform, source, run_id, str(attempt))
    return int.from_bytes(digest[:16], "big") or 1, int.from_bytes(digest[16:24], "big") or 1


def step_span_id(trace_id: int, step_id: str) -> int:
    """The span id of a step: the first 8 bytes of a SHA-256 over its trace's id (hex) and its own."""
    return _child_id("step", trace_id, step_id)


def _child_id(kind: str, trace_id: int, name: str) -> int:
    return int.from_bytes(_digest(kind, f"{trace_id:032x}", name)[:8], "big") or 1


def _digest(kind: str, *parts: str) -> bytes:
    escaped = (part.replace("\\", "\\\\").replace("\x1f", "\\x1f") for part in parts)
    text = "\x1f".join((f"automation-exporter/{kind}/1", *escaped))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def keep(run: Run, dead_letter: bool, trace_id: int, share: float) -> bool:
    """Whether an attempt is traced when only a share of them is to be: what went wrong, even a little, always is.

    A plain success is kept by the low half of its trace id, so every repeat decides alike, and so does an OpenTelemetry
    sampler of the same ratio further down.
    """
    if run.result is not Result.SUCCESS or dead_letter:
        return True
    return trace_id & 0xFFFF_FFFF_FFFF_FFFF < share * 2**64


def spans_of(
    run: Run,
    *,
    platform: str,
    source: str,
    workflow: Workflow | None,
    url: str | None,
    dead_letter_id: str | None,
    made_by: Retry | None = None,
    resource: Resource,
) -> list[ReadableSpan]:
    """The spans of a finished attempt, the root first; none if nobody knows when it was.

    An unknown start is the start of the first step, or else the end. No span ends before it starts, and no step leaves
    the bounds of its run.
    """
    run = replace(run, previous=_attempt_before(run))
    finished_at = run.finished_at
    if finished_at is None:
        return []
    steps, dropped = _steps(run)
    starts = [step.started_at for step in steps if step.started_at is not None]
    started_at = min(starts, default=finished_at) if run.attempt_started_at is None else run.attempt_started_at
    bounds = (min(_ns(started_at), _ns(finished_at)), _ns(finished_at))

    context = _context(*trace_ids(platform, source, run.id, run.attempt))
    attributes = _root_attributes(run, platform=platform, source=source, workflow=workflow)
    _add(attributes, "cicd.pipeline.run.url.full", url)
    _add(attributes, "automation.dead_letter.id", dead_letter_id)
    if made_by is not None:
        attributes |= {"automation.retry.policy": made_by.policy, "automation.retry.ordinal": made_by.ordinal}
    if dropped:
        attributes["automation.steps.dropped"] = dropped
    untimed = [s for s in run.steps or () if s.started_at is None and s.ended_at is None][:STEPS_PER_TRACE_MAX]
    if untimed:
        attributes["automation.steps.untimed"] = tuple(_text(step.id) for step in untimed)
        seconds = [step.seconds for step in untimed if step.seconds is not None]
        if len(seconds) == len(untimed):
            attributes["automation.steps.untimed_seconds"] = tuple(seconds)
    children = [_step_span(step, context, bounds, resource) for step in steps if step.started_at is not None]
    events = [_step_event(step, bounds) for step in steps if step.started_at is None]
    if run.queue_duration:
        children.insert(0, _queue_span(run, context, resource))
    root = ReadableSpan(
        f"RUN {_text(_name(run, workflow), NAME_CHARS_MAX)}",
        context,
        resource=resource,
        attributes=attributes,
        events=events,
        links=_links(run, platform, source) + _retry_links(made_by, platform, source),
        kind=SpanKind.SERVER,
        status=_status(run),
        start_time=bounds[0],
        end_time=bounds[1],
        instrumentation_scope=_SCOPE,
    )
    return [root, *children]


def retry_ids(platform: str, source: str, retry_id: str) -> tuple[int, int]:
    """The trace id and the root span id of a retry, made like those of a run."""
    digest = _digest("retry", platform, source, retry_id)
    return int.from_bytes(digest[:16], "big") or 1, int.from_bytes(digest[16:24], "big") or 1


def spans_of_retry(
    retry: Retry, *, platform: str, source: str, workflow: Workflow | None, resource: Resource
) -> list[ReadableSpan]:
    """The spans of a closed retry, the root first: the call, and the time until the verdict was known.

    The run that failed and those the retry made are links away: they are traces of their own, and may be days apart.
    """
    closed_at = retry.claimed_at if retry.closed_at is None else retry.closed_at
    context = _context(*retry_ids(platform, source, retry.id))
    attributes: _Attributes = {
        "automation.platform": platform,
        "automation.source": source,
        "automation.workflow.id": _text(retry.workflow_id),
        "automation.dead_letter.id": _text(retry.dead_letter_id),
        "automation.retry.id": retry.id,
        "automation.retry.policy": retry.policy,
        "automation.retry.ordinal": retry.ordinal,
        "automation.retry.outcome": "" if retry.outcome is None else retry.outcome.value,
        "automation.retry.detail": _text(redact(retry.detail, limit=MESSAGE_CHARS_MAX)),
        "automation.error.class": retry.error_class,
    }
    _add(attributes, "automation.retry.approved_by", retry.approved_by)
    links = (
        [] if retry.run_id is None else [_link("failed_run", trace_ids(platform, source, retry.run_id, retry.attempt))]
    )
    links += [_link("retried_run", trace_ids(platform, source, run_id, 1)) for run_id in retry.new_runs[:LINKS_MAX]]
    failed = retry.outcome in (Outcome.FAILED, Outcome.REJECTED, Outcome.EXPIRED)
    status = Status(StatusCode.ERROR if failed else StatusCode.UNSET)
    name = retry.workflow_id if workflow is None or not workflow.name else workflow.name

    def span(name: str, start: float, end: float, **more: Any) -> ReadableSpan:
        return ReadableSpan(
            name,
            resource=resource,
            start_time=_ns(start),
            end_time=max(_ns(start), _ns(end)),
            instrumentation_scope=_SCOPE,
            **more,
        )

    def child(kind: str, start: float, end: float) -> ReadableSpan:
        own = _context(context.trace_id, _child_id(kind, context.trace_id, ""))
        return span(kind, start, end, context=own, parent=context, kind=SpanKind.CLIENT)

    root = span(
        f"RETRY {_text(name, NAME_CHARS_MAX)}",
        retry.claimed_at,
        closed_at,
        context=context,
        attributes=attributes,
        links=links,
        status=status,
    )
    spans = [root]
    if retry.sent_at is not None:
        answered_at = retry.sent_at if retry.answered_at is None else retry.answered_at
        spans += [child("call", retry.sent_at, answered_at), child("verdict", answered_at, closed_at)]
    return spans


def _retry_links(made_by: Retry | None, platform: str, source: str) -> list[Link]:
    """From a run that a retry made to the retry, and to the run that had failed."""
    if made_by is None:
        return []
    links = [_link("retry", retry_ids(platform, source, made_by.id))]
    return links if made_by.run_id is None else [*links, _failed_run(made_by, platform, source)]


def _failed_run(retry: Retry, platform: str, source: str) -> Link:
    return _link("failed_run", trace_ids(platform, source, retry.run_id or "", retry.attempt))


def _attempt_before(run: Run) -> tuple[int, float] | None:
    """The newest attempt that ended before this one, unless it is this one: the finish a webhook announced under a
    number and a poll then found under its time (see ``exporter.model.fold``).
    """
    if run.previous is None or run.finished_at is None:
        return run.previous
    attempt, ended_at = run.previous
    renamed = is_version(run.attempt) and not is_version(attempt)
    return None if renamed and run.finished_at <= ended_at + SAME_END else run.previous


def _name(run: Run, workflow: Workflow | None) -> str:
    return workflow.name if workflow is not None and workflow.name else run.workflow_id


def _root_attributes(run: Run, *, platform: str, source: str, workflow: Workflow | None) -> _Attributes:
    result, error = run.result or Result.UNKNOWN, run.error
    attributes: _Attributes = {
        "cicd.pipeline.name": _text(_name(run, workflow)),
        "cicd.pipeline.run.id": _text(run.id),
        "automation.platform": platform,
        "automation.source": source,
        "automation.workflow.id": _text(run.workflow_id),
        "automation.run.attempt": run.attempt,
        "automation.run.result": result.value,
    }
    _add(attributes, "cicd.pipeline.result", _RESULTS.get(result))
    _add(attributes, "automation.workspace", None if workflow is None else workflow.workspace)
    _add(attributes, "automation.run.trigger", run.trigger)
    _add(attributes, "automation.run.parent_id", run.parent_id)
    _add(attributes, "automation.run.operations", run.operations)
    _add(attributes, "automation.run.bytes_in", run.bytes_in)
    _add(attributes, "automation.run.bytes_out", run.bytes_out)
    if result in FAILED:
        attributes["error.type"] = "unknown" if error is None else _text(error.type or error.error_class.value)
    if error is not None:
        attributes["automation.error.class"] = error.error_class.value
        _add(attributes, "automation.error.step_type", error.step_type)
        if result not in FAILED:  # of a failure it is the description of the status
            _add(attributes, "automation.error.message", _message(error.message))
    return attributes


def _status(run: Run) -> Status:
    if run.result not in FAILED:
        return Status(StatusCode.UNSET)
    return Status(StatusCode.ERROR, None if run.error is None else _message(run.error.message))


def _links(run: Run, platform: str, source: str) -> list[Link]:
    links = []
    before = run.previous[0] if run.previous is not None else run.attempt - 1
    if run.previous is not None or (run.attempt > 1 and not is_version(run.attempt)):
        links.append(_link("previous_attempt", trace_ids(platform, source, run.id, before)))
    if run.parent_id is not None and run.parent_id != run.id:
        links.append(_link("parent_run", trace_ids(platform, source, run.parent_id, 1)))
    return links


def _link(kind: str, ids: tuple[int, int]) -> Link:
    return Link(_context(*ids, is_remote=True), {"automation.link": kind})


def _steps(run: Run) -> tuple[list[Step], int]:
    """The steps that ended in this attempt, in the order of their times, and how many more there were."""
    since = None if run.previous is None else run.previous[1]
    known = [(s.ended_at, s) for s in run.steps or () if s.ended_at is not None]
    ended = [(at, step) for at, step in known if since is None or at > since]
    ended.sort(key=lambda one: (one[1].result not in FAILED, one[0]))
    steps = [step for _, step in ended[:STEPS_PER_TRACE_MAX]]
    steps.sort(key=lambda s: (s.ended_at if s.started_at is None else s.started_at, s.id))
    return steps, len(ended) - len(steps)


def _step_span(step: Step, root: SpanContext, bounds: tuple[int, int], resource: Resource) -> ReadableSpan:
    start = _within(step.started_at, bounds)
    return ReadableSpan(
        _text(step.type, NAME_CHARS_MAX),
        _context(root.trace_id, step_span_id(root.trace_id, step.id)),
        parent=root,
        resource=resource,
        attributes=_step_attributes(step),
        status=Status(StatusCode.ERROR if step.result in FAILED else StatusCode.UNSET),
        start_time=start,
        end_time=max(start, _within(step.ended_at, bounds)),
        instrumentation_scope=_SCOPE,
    )


def _step_event(step: Step, bounds: tuple[int, int]) -> Event:
    """A step whose start nobody saw: an event of the root, at its end."""
    return Event(_text(step.type, NAME_CHARS_MAX), _step_attributes(step), _within(step.ended_at, bounds))


def _step_attributes(step: Step) -> _Attributes:
    attributes: _Attributes = {
        "cicd.pipeline.task.name": _text(step.type),
        "cicd.pipeline.task.run.id": _text(step.id),
    }
    if step.result is not None:
        _add(attributes, "cicd.pipeline.task.run.result", _RESULTS.get(step.result))
        attributes["automation.step.result"] = step.result.value
    return attributes


def _queue_span(run: Run, root: SpanContext, resource: Resource) -> ReadableSpan:
    """The wait before the start. It ends where the root begins: the root's duration is the run's own."""
    return ReadableSpan(
        "queue",
        _context(root.trace_id, _child_id("queue", root.trace_id, "")),
        parent=root,
        resource=resource,
        attributes={"cicd.pipeline.run.state": "pending"},
        start_time=_ns(run.queued_at or 0.0),
        end_time=_ns(run.started_at or 0.0),
        instrumentation_scope=_SCOPE,
    )


def _context(trace_id: int, span_id: int, *, is_remote: bool = False) -> SpanContext:
    return SpanContext(trace_id, span_id, is_remote=is_remote, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def _within(moment: float | None, bounds: tuple[int, int]) -> int:
    return min(max(bounds[0], _ns(moment or 0.0)), bounds[1])


def _ns(moment: float) -> int:
    """Nanoseconds since the epoch, to the microsecond: a float of today knows no more."""
    return round(min(max(0.0, moment), _TIME_MAX) * 1_000_000) * 1000


def _add(attributes: _Attributes, name: str, value: str | float | None) -> None:
    if value is not None:
        attributes[name] = _text(value) if isinstance(value, str) else value


def _message(text: str | None) -> str | None:
    return None if text is None else _text(redact(text, limit=MESSAGE_CHARS_MAX))


def _text(text: str, limit: int = TEXT_CHARS_MAX) -> str:
    """No longer than the limit, and nothing OTLP cannot encode: half a surrogate pair would cost the whole batch."""
    return text[:limit].encode("utf-8", "replace").decode()
