"""Cognaize, the workflow engine of its platform: processes that work through documents, step by step."""

from exporter.model import ErrorClass, ResolvedBy, Result
from exporter.platform import Platform, Stream, StreamName
from exporter.platforms.cognaize.auth import make_auth
from exporter.platforms.cognaize.client import CognaizeClient
from exporter.platforms.cognaize.config import CognaizeConfig
from exporter.platforms.cognaize.mapping import error_detail
from exporter.platforms.cognaize.retrying import RETRYING
from exporter.platforms.cognaize.webhooks import receive
from exporter.wire.budget import Lane

PLATFORM = Platform(
    name="cognaize",
    title="Cognaize",
    config=CognaizeConfig,
    streams=(
        Stream(name=StreamName.WORKFLOWS, lane=Lane.SWEEPS, opening=True),
        Stream(name=StreamName.RUNS, lane=Lane.SWEEPS),
    ),
    connect=CognaizeClient,
    auth=make_auth,
    error_detail=error_detail,
    requests_per_minute=120.0,  # no limit is documented; this is a guess at what nobody would mind
    results=(Result.SUCCESS, Result.FAILURE, Result.UNKNOWN),
    error_classes=tuple(ErrorClass),
    error_classes_read=(ErrorClass.UNKNOWN,),  # the API tells no cause, but events may tell any
    resolved_by=(ResolvedBy.RETRY, ResolvedBy.MANUAL, ResolvedBy.EXPIRED),
    measures=frozenset({"steps"}),
    receive=receive,
    retrying=RETRYING,
)
