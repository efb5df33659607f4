"""Qlik Automate: automations of a Qlik Cloud tenant, read through the Automations API."""

from urllib.parse import quote

from exporter.model import ErrorClass, ResolvedBy, Result, Run, Workflow
from exporter.platform import Platform, Stream, StreamName
from exporter.platforms.qlik.auth import auth
from exporter.platforms.qlik.calls import REQUESTS_PER_MINUTE, error_detail
from exporter.platforms.qlik.config import QlikConfig
from exporter.platforms.qlik.reading import QlikClient
from exporter.platforms.qlik.repairing import REPAIRING
from exporter.platforms.qlik.retrying import RETRYING
from exporter.platforms.qlik.webhooks import receive
from exporter.wire.budget import Lane


def run_url(config: QlikConfig, run: Run, workflow: Workflow | None) -> str:
    """The history of the run's automation, in the tenant's own pages."""
    return _history(config, run.workflow_id)


def _history(config: QlikConfig, automation_id: str) -> str:
    return f"{config.url}/automations/{quote(automation_id, safe='')}/history"


PLATFORM = Platform(
    name="qlik",
    title="Qlik Automate",
    config=QlikConfig,
    streams=(
        Stream(name=StreamName.WORKFLOWS, lane=Lane.SWEEPS, opening=True),
        Stream(name=StreamName.RUNS, lane=Lane.RUNNING),
        Stream(name=StreamName.QUOTA, lane=Lane.SWEEPS, every=15.0),
    ),
    connect=QlikClient,
    auth=auth,
    error_detail=error_detail,
    requests_per_minute=REQUESTS_PER_MINUTE,
    results=(Result.SUCCESS, Result.WARNING, Result.FAILURE, Result.CANCELLED, Result.QUOTA, Result.UNKNOWN),
    error_classes=tuple(ErrorClass),
    resolved_by=(ResolvedBy.RETRY, ResolvedBy.SUPERSEDED, ResolvedBy.EXPIRED),
    superseded_by_success=True,
    measures=frozenset({"transfer", "queue"}),
    receive=receive,
    run_url=run_url,
    workflow_url=lambda config, workflow: _history(config, workflow.id),
    retrying=RETRYING,
    repairing=REPAIRING,
)
