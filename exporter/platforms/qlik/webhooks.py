"""Qlik's webhooks. Pure: the event of a run that ended, in each envelope Qlik sends (CloudEvents 1.0, the older 0.1, or
both in one).

An event carries the run without its errors, so a failed run is named for the poller to complete; so is one that a
person started, since events have one word for that, and only the run read alone tells whether it was a test. Other
events are reported as unknown and otherwise ignored: what Qlik calls them is not documented, and polling tells what
they would.
"""

from exporter.model import FAILED, Observation, Run, State
from exporter.model.redact import redact
from exporter.platform import BadItem, MalformedEvent, RunKey, WebhookEvents, WebhookRequest, cloudevents
from exporter.platforms.qlik import mapping

RUN_ENDED = "com.qlik.v1.automation.run.ended"


def receive(request: WebhookRequest) -> WebhookEvents:
    """Read the events of one request. Raises ``MalformedEvent``."""
    try:
        events = cloudevents.parse(request.headers, request.body)
    except cloudevents.Malformed as problem:
        raise MalformedEvent(str(problem)) from None
    observations: list[Observation] = []
    wake: list[RunKey] = []
    unknown: list[str] = []
    moments: list[float] = []
    for event in events:
        if event.type != RUN_ENDED:
            unknown.append(redact(event.type, limit=100))
            continue
        workflow_id = _workflow_id(event)
        try:
            told = mapping.claims(event.data, workflow_id=workflow_id, latest=request.latest)
        except BadItem:
            raise MalformedEvent("a run event does not carry a run with an id and times that can be") from None
        run = told[0]
        observations += () if _may_be_a_test(run) else told
        moment = event.time if event.time is not None else run.finished_at
        if moment is not None and moment > request.latest:
            raise MalformedEvent("the time of a run event is in the future")
        if moment is not None:
            moments.append(moment)
        if _may_be_a_test(run) or _says_too_little(run):
            wake.append(RunKey(run_id=run.id, workflow_id=workflow_id))
    return WebhookEvents(
        observations=observations, wake=wake, unknown_types=unknown, occurred_at=max(moments, default=None)
    )


def _workflow_id(event: cloudevents.CloudEvent) -> str:
    automation = event.data.get("automation") if isinstance(event.data, dict) else None
    inside = automation.get("id") if isinstance(automation, dict) else None
    found = event.extensions.get("toplevelresourceid") or inside
    if not isinstance(found, str) or not 0 < len(found) <= mapping.ID_CHARS_MAX:
        raise MalformedEvent("a run event does not name its automation")
    return found


def _may_be_a_test(run: Run) -> bool:
    return run.trigger == "manual"


def _says_too_little(run: Run) -> bool:
    over = run.state is State.FINISHED and run.ended_at is not None
    return not over or (run.result in FAILED and run.error is None)
