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


def _run_url(config: MakeConfig, run: Run, workflow: Workflow | None) -> str | None:
    """The page of an execution."""
    return _page(config, run.workflow_id, workflow, f"logs/{quote(run.id, safe='')}")


def _workflow_url(config: MakeConfig, workflow: Workflow) -> str | None:
    """The editor of a scenario."""
    return _page(config, workflow.id, workflow, "edit")


def _page(config: MakeConfig, scenario_id: str, workflow: Workflow | None, page: str) -> str | None:
    """A page of a scenario. Its address has the team in it, which is known once the scenario was listed."""
    team_id = None if workflow is None else workflow.workspace_id
    if team_id is None and len(config.team_ids) == 1:
        team_id = str(config.team_ids[0])
    return None if team_id is None else f"{config.url}/{team_id}/scenarios/{quote(scenario_id, safe='')}/{page}"


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
