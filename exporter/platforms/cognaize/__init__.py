"""Cognaize, the workflow engine of its platform: processes that work through documents, step by step."""

from msgspec.structs import replace

from exporter.model import ErrorClass, ResolvedBy, Result, Run
from exporter.platform import Platform, RunKey, Stream, WebhookEvents, WebhookRequest
from exporter.platform.events import receive_generic
from exporter.platforms.cognaize.auth import make_auth
from exporter.platforms.cognaize.client import RUNS, WORKFLOWS, CognaizeClient
from exporter.platforms.cognaize.config import CognaizeConfig
from exporter.platforms.cognaize.errors import classify
from exporter.platforms.cognaize.mapping import error_detail
from exporter.platforms.cognaize.retrying import RETRYING
from exporter.wire.budget import Lane


def receive(request: WebhookRequest) -> WebhookEvents:
    """The documented event: the platform sends none of its own.

    Its sender numbers attempts or does not; only the platform's update time tells them apart. So each run it names is
    also read.
    """
    events = receive_generic(request, classify=classify)
    named = [RunKey(run_id=o.id, workflow_id=o.workflow_id) for o in events.observations if isinstance(o, Run)]
    wake = tuple(dict.fromkeys([*named, *events.wake]))
    return replace(events, wake=wake, wake_streams=(RUNS,) if events.wake_streams else ())


def _no_page(config: CognaizeConfig, run: Run) -> None:
    """Nobody documents the address of a process."""


PLATFORM = Platform(
    name="cognaize",
    title="Cognaize",
    config=CognaizeConfig,
    streams=(
        Stream(name=WORKFLOWS, lane=Lane.SWEEPS, opening=True),
        Stream(name=RUNS, lane=Lane.SWEEPS),
    ),
    connect=CognaizeClient,
    auth=make_auth,
    error_detail=error_detail,
    requests_per_minute=120.0,  # no limit is documented; this is a guess at what nobody would mind
    results=(Result.SUCCESS, Result.FAILURE, Result.UNKNOWN),
    error_classes=tuple(ErrorClass),  # the API tells no cause, but events may tell any
    resolved_by=(ResolvedBy.RETRY, ResolvedBy.MANUAL, ResolvedBy.EXPIRED),
    measures=frozenset({"steps"}),
    receive=receive,
    run_url=_no_page,
    retrying=RETRYING,
)
