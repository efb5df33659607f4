"""Make (make.com, formerly Integromat): scenarios, their executions and their incomplete executions."""

from urllib.parse import quote

from exporter.model import ErrorClass, ResolvedBy, Result, Run, Workflow
from exporter.platform import Platform, Stream, StreamName
from exporter.platform.credentials import Token
from exporter.platforms.make.config import MakeConfig, token_header
from exporter.platforms.make.reading import MakeClient
from exporter.platforms.make.reading.calls import error_detail
from exporter.platforms.make.reading.details import steps_later
from exporter.platforms.make.repairing import REPAIRING
from exporter.platforms.make.retrying import RETRYING
from exporter.platforms.make.webhooks import receive
from exporter.wire.budget import Lane


def _auth(config: MakeConfig) -> Token:
    return Token(config.token, header=token_header)


def _run_url(config: MakeConfig, run: Run) -> str | None:
    """The page of an execution. Its address has the team in it, which is known only where one team is watched."""
    if len(config.team_ids) != 1:
        return None
    return f"{config.url}/{config.team_ids[0]}/scenarios/{run.workflow_id}/logs/{run.id}"


def _workflow_url(config: MakeConfig, workflow: Workflow) -> str | None:
    """The editor of a scenario: with the team in its address, as that of an execution."""
    if len(config.team_ids) != 1:
        return None
    return f"{config.url}/{config.team_ids[0]}/scenarios/{quote(workflow.id, safe='')}/edit"


PLATFORM = Platform(
    name="make",
    title="Make",
    config=MakeConfig,
    streams=(
        Stream(name=StreamName.QUOTA, lane=Lane.DEAD_LETTERS, every=10.0, opening=True),
        Stream(name=StreamName.WORKFLOWS, lane=Lane.SWEEPS, opening=True),
        Stream(name=StreamName.RUNS, lane=Lane.SWEEPS),
        Stream(name=StreamName.DEAD_LETTERS, lane=Lane.DEAD_LETTERS),
    ),
    connect=MakeClient,
    auth=_auth,
    error_detail=error_detail,
    requests_per_minute=60.0,
    results=(Result.SUCCESS, Result.WARNING, Result.FAILURE),
    error_classes=tuple(ErrorClass),
    resolved_by=tuple(ResolvedBy),
    holds_dead_letters=True,
    measures=frozenset({"operations", "transfer", "queue"}),
    lists_active=frozenset(),  # a run shows in the log when it ends
    receive=receive,
    run_url=_run_url,
    workflow_url=_workflow_url,
    steps_later=steps_later,
    retrying=RETRYING,
    repairing=REPAIRING,
)
