"""The documented event, for platforms without a push of their own: what anybody can send with one HTTP call. Pure.

One JSON object, a list of them, or CloudEvents whose data is one::

    {"event": "run.finished", "workflow_id": "5012", "run_id": "3a1f…", "attempt": 1, "result": "failure",
     "started_at": "2026-03-02T08:15:30Z", "ended_at": "2026-03-02T08:16:10Z",
     "error": {"type": "ConnectionError", "message": "…"}, "occurred_at": "2026-03-02T08:16:10Z"}

Unknown fields are ignored, unknown event types are reported and otherwise ignored. An event that says too little to
count a run names it, so that the poller can complete it.
"""

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from exporter.model import FAILED, Error, ErrorClass, Observation, Result, Run, State, times
from exporter.model.redact import redact
from exporter.platform import cloudevents, errors
from exporter.platform.streams import StreamName
from exporter.platform.webhooks import MalformedEvent, RunKey, WebhookEvents, WebhookRequest
from exporter.wire.decode import DAMAGED, Undecodable, decode

#: Words senders use for results, besides ours.
_RESULTS = {
    "succeeded": Result.SUCCESS,
    "completed": Result.SUCCESS,
    "ok": Result.SUCCESS,
    "failed": Result.FAILURE,
    "error": Result.FAILURE,
    "canceled": Result.CANCELLED,
    "stopped": Result.CANCELLED,
    **{r.value: r for r in Result},
}
_EVENTS_MAX = 1000
_ID_CHARS_MAX = 200
#: Nothing has them in its id: some databases refuse them, or they stand for what could not be read.
_CONTROL = re.compile(rf"[\x00-\x1f\x7f{DAMAGED}]")
#: A time may be this much (seconds) ahead of the platform's clock.
FUTURE_MAX = times.FUTURE_SECONDS_MAX

#: Error type and message to error class.
Classify = Callable[[str | None, str | None], ErrorClass]


def receive_documented(request: WebhookRequest) -> WebhookEvents:
    """Read documented events of a platform that has no words and no spelling of ids of its own."""
    return receive_generic(request)


def receive_generic(
    request: WebhookRequest, *, classify: Classify = errors.plain, run_id: Callable[[str], str] = lambda text: text
) -> WebhookEvents:
    """Read documented events from a request.

    ``run_id`` brings the sender's spelling of an id into the platform's own.
    """
    observations: list[Observation] = []
    wake: list[RunKey] = []
    streams: set[StreamName] = set()
    unknown: list[str] = []
    moments: list[float] = []
    for event in _events(request):
        kind = event.get("event")
        if not isinstance(kind, str):
            raise MalformedEvent('an event needs "event", such as "run.finished"')
        if kind == "dead_letter.opened":
            streams.add(StreamName.DEAD_LETTERS)
        elif kind in ("run.started", "run.finished"):
            run_key, run, happened_at = _claim(event, kind, request, classify, run_id)
            if run is not None:
                observations.append(run)
            if run is None or (run.result in FAILED and run.error is None):
                wake.append(run_key)
            if happened_at is not None:
                moments.append(happened_at)
        else:
            unknown.append(redact(kind, limit=60))
    return WebhookEvents(
        observations=observations,
        wake=wake,
        wake_streams=sorted(streams),
        unknown_types=unknown,
        occurred_at=max(moments, default=None),
    )


def _events(request: WebhookRequest) -> list[dict[str, Any]]:
    try:
        body: Any = decode(request.body)
    except Undecodable:
        body = None  # the data of a binary CloudEvent may be anything
    if not _is_bare(body) and cloudevents.is_cloudevent(request.headers, body):
        try:
            wrapped = cloudevents.parse(request.headers, request.body)
        except cloudevents.Malformed as exc:
            raise MalformedEvent(str(exc)) from None
        items: list[Any] = [
            {"event": e.type, "occurred_at": e.time, **(e.data if isinstance(e.data, dict) else {})} for e in wrapped
        ]
    else:
        items = body if isinstance(body, list) else [body]
    if len(items) > _EVENTS_MAX:
        raise MalformedEvent(f"more than {_EVENTS_MAX} events in one request")
    if not all(isinstance(item, dict) for item in items):
        raise MalformedEvent("the body is not a JSON object, or a list of them")
    return items


def _is_bare(body: object) -> bool:
    """Whether this is the documented event without an envelope, whatever the headers say."""
    return isinstance(body, dict) and "event" in body and "specversion" not in body and "cloudEventsVersion" not in body


def _claim(
    event: dict[str, Any], kind: str, request: WebhookRequest, classify: Classify, run_id: Callable[[str], str]
) -> tuple[RunKey, Run | None, float | None]:
    """The run an event names, what it claims of it (nothing if it says no result), and when it happened."""
    workflow_id, identity, attempt = _text(event, "workflow_id"), run_id(_text(event, "run_id")), _attempt(event)
    latest = request.latest
    started_at, ended_at = _moment(event, "started_at", latest), _moment(event, "ended_at", latest)
    happened_at = _moment(event, "occurred_at", latest) or ended_at
    at = happened_at or request.received_at
    key = RunKey(run_id=identity, workflow_id=workflow_id)
    if kind == "run.started":
        started_at = started_at or at
        run = Run(workflow_id=workflow_id, id=identity, attempt=attempt, state=State.RUNNING, started_at=started_at)
        return key, run, happened_at
    result = _result(event)
    if result is None:
        return key, None, happened_at
    run = Run(
        workflow_id=workflow_id,
        id=identity,
        attempt=attempt,
        state=State.FINISHED,
        result=result,
        started_at=started_at,
        ended_at=ended_at or at,
        error=_error(event.get("error"), classify) if result in FAILED or result is Result.WARNING else None,
    )
    return key, run, happened_at


def _attempt(event: dict[str, Any]) -> int:
    attempt = event.get("attempt", 1)
    if not isinstance(attempt, int) or isinstance(attempt, bool) or not 1 <= attempt < 1_000_000:
        raise MalformedEvent('"attempt" must be a whole number from 1')
    return attempt


def _result(event: dict[str, Any]) -> Result | None:
    word = event.get("result")
    if word is None:
        return None
    if not isinstance(word, str):
        raise MalformedEvent('"result" must be text')
    return _RESULTS.get(word.lower(), Result.UNKNOWN)


def _error(value: object, classify: Classify) -> Error | None:
    if not isinstance(value, dict):
        return None
    kind, message = value.get("type"), value.get("message")
    kind = redact(kind, limit=100) if isinstance(kind, str) and kind else None
    message = redact(message) if isinstance(message, str) and message else None
    if kind is None and message is None:
        return None
    return Error(error_class=classify(kind, message), type=kind, message=message)


def _text(event: dict[str, Any], key: str) -> str:
    value = event.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value or len(value) > _ID_CHARS_MAX or _CONTROL.search(value):
        raise MalformedEvent(f'a run event needs "{key}" as text of at most {_ID_CHARS_MAX} characters')
    return value


def _moment(event: dict[str, Any], key: str, latest: float) -> float | None:
    """RFC 3339 text, or a number of seconds or milliseconds since the epoch."""
    value = event.get(key)
    if value is None:
        return None
    moment: float | None
    if isinstance(value, str):
        moment = _parse_time(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        moment = value / 1000 if value > 1e11 else float(value)
    else:
        moment = None
    if moment is None or moment < times.MOMENT_MIN:
        raise MalformedEvent(f'"{key}" must be an RFC 3339 time')
    if moment > latest:
        raise MalformedEvent(f'"{key}" is in the future')
    return moment


def _parse_time(text: str) -> float | None:
    """As ``cloudevents.parse_time``, which alone knows leap seconds, but at a fraction of its cost for other times."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return cloudevents.parse_time(text)
    return None if moment.tzinfo is None else moment.timestamp()
