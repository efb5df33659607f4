"""Webhooks of an n8n source: the documented event, which a workflow of the user's posts. Pure.

n8n sends nothing by itself. An error workflow (Error Trigger, then HTTP Request) reports failures, and a last node may
report successes; both are ready to import in docs/n8n. The error workflow cannot tell a run that took too long from one
that a person canceled, and what was counted stays so: of a canceled run the event says only that it is to be read.
Failed ones are read as well, for their cause and their dead letter.
"""

import re

from msgspec.structs import replace

from exporter.model import FAILED, ErrorClass, Result, Run
from exporter.platform import MalformedEvent, RunKey, WebhookEvents, WebhookRequest
from exporter.platform.events import receive_generic
from exporter.platforms.n8n.errors import of_event

_NUMBER = re.compile(r"0*([0-9]{1,18})")


def receive(request: WebhookRequest) -> WebhookEvents:
    """Read documented events, with the words that n8n has for errors."""
    events = receive_generic(request, classify=of_event, run_id=_run_id)
    runs = [observation for observation in events.observations if isinstance(observation, Run)]
    told = [_without_riddle(run) for run in runs if run.result is not Result.CANCELLED]
    ended_badly = [run for run in runs if run.result is Result.CANCELLED or run.result in FAILED]
    named = [RunKey(run_id=run.id, workflow_id=run.workflow_id) for run in ended_badly]
    return replace(events, observations=told, wake=tuple(dict.fromkeys([*named, *events.wake])))


def _without_riddle(run: Run) -> Run:
    """A cause of which nothing is known would be counted as such before the run is read."""
    riddle = run.error is not None and run.error.error_class is ErrorClass.UNKNOWN
    return replace(run, error=None) if riddle else run


def _run_id(text: str) -> str:
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise MalformedEvent('"run_id" must be the number of an execution, as {{ $execution.id }} has it')
    return match[1]
