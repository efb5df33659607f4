"""Webhooks of a Cognaize source: the documented event, for the platform sends none of its own. Pure."""

from msgspec.structs import replace

from exporter.model import Run
from exporter.platform import RunKey, WebhookEvents, WebhookRequest
from exporter.platform.events import receive_documented


def receive(request: WebhookRequest) -> WebhookEvents:
    """Read documented events.

    Their sender numbers attempts or does not; only the platform's update time tells them apart. So each run they name
    is also read.
    """
    events = receive_documented(request)
    named = [RunKey(run_id=o.id, workflow_id=o.workflow_id) for o in events.observations if isinstance(o, Run)]
    wake = tuple(dict.fromkeys([*named, *events.wake]))
    return replace(events, wake=wake)
