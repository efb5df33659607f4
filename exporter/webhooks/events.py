"""The documented event, for platforms without a push of their own: what anybody can send with one HTTP call. Pure.

One JSON object, a list of them, or CloudEvents whose data is one::

    {"event": "run.finished", "workflow_id": "5012", "run_id": "3a1f…", "attempt": 1, "result": "failure",
     "started_at": "2026-03-02T08:15:30Z", "ended_at": "2026-03-02T08:16:10Z",
     "error": {"type": "ConnectionError", "message": "…"}, "occurred_at": "2026-03-02T08:16:10Z"}

Unknown fields are ignored, unknown event types are reported and otherwise ignored. An event that says too little to
count a run names it, so that the poller can complete it.
"""

from collections.abc import Callable
from typing import Any

import orjson

from exporter.model import FAILED, Error, ErrorClass, Observation, Result, Run, State
from exporter.platform import MalformedEvent, RunKey, WebhookEvents, WebhookRequest
from exporter.redact import redact
from exporter.webhooks import cloudevents

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

#: Error type and message to error class.
Classify = Callable[[str | None, str | None], ErrorClass]


def receive_generic(
    request: WebhookRequest, *, classify: Classify, run_id: Callable[[str], str] = lambda text: text
) -> WebhookEvents:
    """Read documented events from a request.

    ``run_id`` brings the sender's spelling of an id into the platform's own.
    """
    observations: list[Observation] = []
    wake: list[RunKey] = []
    streams: set[str] = set()
    unknown: list[str] = []
    moments: list[float] = []
    for event in _events(request):
        kind = event.get("event")
        if not isinstance(kind, str):
            raise MalformedEvent('an event needs "event", such as "run.finished"')
        if kind == "dead_letter.opened":
            streams.add("dead_letters")
            continue
        if kind not in ("run.started", "run.finished"):
            unknown.append(redact(kind, limit=60))
            continue
        workflow_id, identity = _text(event, "workflow_id"), run_id(_text(event, "run_id"))
        occurred_at = _moment(event, "occurred_at") or _moment(event, "ended_at")
        if occurred_at is not None:
            moments.append(occurred_at)
        run = _run(event, kind, workflow_id, identity, occurred_at or request.received_at, classify)
        wake_for = run is None or (run.result in FAILED and run.error is None)
        if run is not None:
            observations.append(run)
        if wake_for:
            wake.append(RunKey(run_id=identity, workflow_id=workflow_id))
    return WebhookEvents(
        observations=observations,
        wake=wake,
        wake_streams=sorted(streams),
        unknown_types=unknown,
        occurred_at=max(moments, default=None),
    )


def _events(request: WebhookRequest) -> list[dict[str, Any]]:
    try:
        body = None if cloudevents.is_cloudevent(request.headers, None) else orjson.loads(request.body)
    except (orjson.JSONDecodeError, RecursionError):
        raise MalformedEvent("the body is not JSON") from None
    if body is None or cloudevents.is_cloudevent(request.headers, body):
        try:
            wrapped = cloudevents.parse(request.headers, request.body)
        except cloudevents.Malformed as exc:
            raise MalformedEvent(str(exc)) from None
        items: list[Any] = [
            {"event": e.type, **e.data} if isinstance(e.data, dict) else {"event": e.type} for e in wrapped
        ]
    else:
        items = body if isinstance(body, list) else [body]
    if len(items) > _EVENTS_MAX:
        raise MalformedEvent(f"more than {_EVENTS_MAX} events in one request")
    if not all(isinstance(item, dict) for item in items):
        raise MalformedEvent("an event must be a JSON object")
    return items


def _run(event: dict[str, Any], kind: str, workflow_id: str, run_id: str, at: float, classify: Classify) -> Run | None:
    attempt = event.get("attempt", 1)
    if not isinstance(attempt, int) or isinstance(attempt, bool) or not 1 <= attempt < 1_000_000:
        raise MalformedEvent('"attempt" must be a whole number from 1')
    started_at = _moment(event, "started_at")
    if kind == "run.started":
        return Run(
            workflow_id=workflow_id, id=run_id, attempt=attempt, state=State.RUNNING, started_at=started_at or at
        )
    word = event.get("result")
    if word is None:
        return None
    if not isinstance(word, str):
        raise MalformedEvent('"result" must be text')
    result = _RESULTS.get(word.lower(), Result.UNKNOWN)
    return Run(
        workflow_id=workflow_id,
        id=run_id,
        attempt=attempt,
        state=State.FINISHED,
        result=result,
        started_at=started_at,
        ended_at=_moment(event, "ended_at") or at,
        error=_error(event.get("error"), classify) if result in FAILED or result is Result.WARNING else None,
    )


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
    if not isinstance(value, str) or not value or len(value) > 200:
        raise MalformedEvent(f'a run event needs "{key}" as text of at most 200 characters')
    return value


def _moment(event: dict[str, Any], key: str) -> float | None:
    """RFC 3339 text, or a number of seconds or milliseconds since the epoch."""
    value = event.get(key)
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = value / 1000 if value > 1e11 else float(value)
        moment = seconds if 0 < seconds < 1e11 else None
    else:
        moment = cloudevents.parse_time(value)
    if moment is None:
        raise MalformedEvent(f'"{key}" must be an RFC 3339 time')
    return moment
