"""Etlworks' own webhooks: five headers always, and a body unless the method is GET. Pure.

``Flow.Executed`` carries the execution where the webhook includes its entity; without it only the ids are known, and
the poller reads the rest. A failure and a cancellation are read as well: whether the scheduler repeats the failed run,
and that a cancelled run will soon be called something else, is for the client to say and to remember. Of the entity's
URL only the numbers are used, never its host. The signature of these webhooks is not published; the source's scheme
(basic, or a header) has verified the sender.

Source: Etlworks Integrator documentation, "Webhooks".
"""

import re
from collections.abc import Mapping
from typing import Any

from exporter.model import SUCCEEDED, State
from exporter.model.redact import redact
from exporter.platform import BadItem, MalformedEvent, RunKey, WebhookEvents, WebhookRequest
from exporter.platform.events import receive_generic
from exporter.platforms.etlworks import mapping
from exporter.platforms.etlworks.errors import classify
from exporter.wire.decode import Undecodable, decode

EXECUTED = "Flow.Executed"

_FLOW_ID = re.compile(r"/(?:flows|executions)/(\d{1,19})(?![^/?#])")
_AUDIT_ID = re.compile(r"[?&]auditId=(\d{1,19})(?![^&#])", re.I)


def receive(request: WebhookRequest) -> WebhookEvents:
    """Read one webhook: the platform's own, or else the documented event anybody may send."""
    headers = request.headers
    body = _body(request)
    kind = headers.get("x-etl-webhook-event") or body.get("eventType")
    if not isinstance(kind, str):
        return receive_generic(request, classify=classify)
    occurred_at = mapping.moment(body.get("timestamp"))
    if occurred_at is not None and occurred_at > request.latest:
        raise MalformedEvent('"timestamp" is in the future')
    if kind != EXECUTED:
        return WebhookEvents(unknown_types=[redact(kind, limit=60)], occurred_at=occurred_at)
    key = _key(headers, body)
    entity = body.get("entity")
    if not isinstance(entity, dict) or not entity:
        return WebhookEvents(wake=[key], occurred_at=occurred_at)
    try:
        item = mapping.execution(entity, flow_id=key.workflow_id or "", latest=request.latest)
    except BadItem:
        return WebhookEvents(wake=[key], occurred_at=occurred_at)
    run = item.run
    if run.id != key.run_id:
        raise MalformedEvent("the entity is another execution than the event names")
    if run.state is State.FINISHED:
        whole = run.result in SUCCEEDED and run.ended_at is not None
    else:
        whole = not item.canceled
    return WebhookEvents(observations=[run], wake=() if whole else [key], occurred_at=occurred_at)


def _body(request: WebhookRequest) -> Mapping[str, Any]:
    """The body as an object; empty where there is none, or where it is no object and the headers have to do."""
    try:
        value = decode(request.body) if request.body else {}
    except Undecodable:
        return {}
    return value if isinstance(value, dict) else {}


def _key(headers: Mapping[str, str], body: Mapping[str, Any]) -> RunKey:
    """Which run the event is about: the numbers in the entity's URL, or the ids beside it."""
    url = headers.get("x-etl-webhook-entity-url") or body.get("entityUrl")
    url = url if isinstance(url, str) else ""
    entity = body.get("entity")
    entity = entity if isinstance(entity, dict) else {}
    flow, audit = _FLOW_ID.search(url), _AUDIT_ID.search(url)
    flow_id = mapping.identity(flow[1] if flow else entity.get("flowId"))
    named = headers.get("x-etl-webhook-entity-id") or body.get("entityId") or entity.get("auditId")
    run_id = mapping.identity(audit[1] if audit else named)
    if flow_id is None or run_id is None:
        raise MalformedEvent(f"{EXECUTED} without the ids of its flow and its execution")
    return RunKey(run_id=run_id, workflow_id=flow_id)
