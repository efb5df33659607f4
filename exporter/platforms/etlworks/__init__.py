"""Etlworks Integrator: flows, their executions and schedules, and the webhook ``Flow.Executed``."""

from exporter.model import ErrorClass, ResolvedBy, Result
from exporter.platform import Platform, Stream, StreamName
from exporter.platforms.etlworks.auth import make_auth
from exporter.platforms.etlworks.client import EtlworksClient
from exporter.platforms.etlworks.config import EtlworksConfig
from exporter.platforms.etlworks.mapping import error_detail
from exporter.platforms.etlworks.repairing import REPAIRING
from exporter.platforms.etlworks.retrying import RETRYING
from exporter.platforms.etlworks.webhooks import receive
from exporter.wire.budget import Lane

#: No limit is documented; this is a courtesy.
REQUESTS_PER_MINUTE = 120.0


PLATFORM = Platform(
    name="etlworks",
    title="Etlworks",
    config=EtlworksConfig,
    streams=(
        # Flows come with their definitions: a heavy listing.
        Stream(name=StreamName.WORKFLOWS, lane=Lane.SWEEPS, every=10.0, opening=True),
        Stream(name=StreamName.RUNS, lane=Lane.SWEEPS),
    ),
    connect=EtlworksClient,
    auth=make_auth,
    error_detail=error_detail,
    requests_per_minute=REQUESTS_PER_MINUTE,
    results=(Result.SUCCESS, Result.WARNING, Result.FAILURE, Result.CANCELLED, Result.UNKNOWN),
    error_classes=tuple(ErrorClass),
    resolved_by=(ResolvedBy.RETRY, ResolvedBy.MANUAL, ResolvedBy.SUPERSEDED, ResolvedBy.EXPIRED),
    superseded_by_success=True,
    receive=receive,
    retrying=RETRYING,
    repairing=REPAIRING,
)
