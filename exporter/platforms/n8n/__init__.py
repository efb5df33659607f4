"""n8n, self-hosted or in its cloud: workflows and their executions, read through the public API."""

from urllib.parse import quote

from exporter.model import FAILED, ErrorClass, ResolvedBy, Result, Run, Workflow
from exporter.platform import Platform, Stream, StreamName
from exporter.platform.credentials import Token
from exporter.platforms.n8n import mapping
from exporter.platforms.n8n.calls import error_detail
from exporter.platforms.n8n.config import N8nConfig, key_header
from exporter.platforms.n8n.reading import N8nClient
from exporter.platforms.n8n.repairing import REPAIRING
from exporter.platforms.n8n.retrying import RETRYING
from exporter.platforms.n8n.webhooks import receive
from exporter.wire.budget import Lane


def _auth(config: N8nConfig) -> Token:
    return Token(config.token, header=key_header)


def _run_url(config: N8nConfig, run: Run, workflow: Workflow | None) -> str | None:
    """The page of an execution in the editor, which has the API's address."""
    number = mapping.number_of(run.id)
    return None if number is None else f"{config.url}/workflow/{quote(run.workflow_id, safe='')}/executions/{number}"


def _steps_later(config: N8nConfig) -> frozenset[Result]:
    return frozenset(Result) if config.details == "all" else FAILED


PLATFORM = Platform(
    name="n8n",
    title="n8n",
    config=N8nConfig,
    streams=(
        Stream(name=StreamName.WORKFLOWS, lane=Lane.SWEEPS, every=10.0, opening=True),
        Stream(name=StreamName.RUNS, lane=Lane.SWEEPS),
    ),
    connect=N8nClient,
    auth=_auth,
    error_detail=error_detail,
    requests_per_minute=60.0,  # there is no limit; the server runs the workflows as well
    results=(Result.SUCCESS, Result.FAILURE, Result.CANCELLED, Result.TIMEOUT, Result.UNKNOWN),
    error_classes=tuple(ErrorClass),
    resolved_by=(ResolvedBy.RETRY, ResolvedBy.MANUAL, ResolvedBy.EXPIRED),
    measures=frozenset({"queue", "steps"}),
    receive=receive,
    run_url=_run_url,
    workflow_url=lambda config, workflow: f"{config.url}/workflow/{quote(workflow.id, safe='')}",
    steps_later=_steps_later,
    retrying=RETRYING,
    repairing=REPAIRING,
)
