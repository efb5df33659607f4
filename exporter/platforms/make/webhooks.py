"""What arrives at a Make source's webhook address. Pure.

Make announces nothing by itself. A run started through its API may call back when it ends, and says no more than which
one (Make API documentation, 'Run a scenario', ``callbackUrl``)::

    {"executionId": "3a1f…", "statusUrl": "https://eu1.make.com/api/v2/scenarios/5012/executions/3a1f…"}

Everything else is what people build with an HTTP module at the end of a scenario or of its error route: the documented
event (``exporter.platform.events``).
"""

import re
from urllib.parse import urlsplit

from exporter.platform import MalformedEvent, RunKey, StreamName, WebhookEvents, WebhookRequest
from exporter.platform.events import receive_generic
from exporter.platforms.make.mapping import execution_id, is_execution_id
from exporter.platforms.make.mapping.errors import classify
from exporter.wire.decode import Undecodable, decode

_STATUS_PATH = re.compile(r"/api/v2/scenarios/(\d{1,20})/executions/([^/]{1,64})/?")


def receive(request: WebhookRequest) -> WebhookEvents:
    """Read a verified webhook. Raises ``MalformedEvent``."""
    try:
        body = decode(request.body)
    except Undecodable:
        body = None
    if isinstance(body, dict) and "executionId" in body and "event" not in body:
        return _callback(body, request.base_url)
    return receive_generic(request, classify=classify, run_id=lambda text: execution_id(text) or text)


def _callback(body: dict[str, object], base_url: str) -> WebhookEvents:
    run_id = execution_id(body["executionId"])
    if run_id is None or not is_execution_id(run_id):
        raise MalformedEvent('"executionId" must have 32 hex digits')
    workflow_id = _scenario_of(body.get("statusUrl"), run_id, base_url)
    if workflow_id is None:
        # Only a sweep can find the scenario: the run has just ended, so it is among what the next one reads.
        return WebhookEvents(wake=[RunKey(run_id=run_id)], wake_streams=[StreamName.RUNS])
    return WebhookEvents(wake=[RunKey(run_id=run_id, workflow_id=workflow_id)])


def _scenario_of(url: object, run_id: str, base_url: str) -> str | None:
    """The scenario in a status URL of the source's own zone. Anybody could write any other."""
    if not isinstance(url, str):
        return None
    try:
        there, here = urlsplit(url), urlsplit(base_url)
        if (there.scheme, there.hostname, there.port) != (here.scheme, here.hostname, here.port):
            return None
    except ValueError:
        return None
    found = _STATUS_PATH.fullmatch(there.path)
    return found[1] if found is not None and execution_id(found[2]) == run_id else None
