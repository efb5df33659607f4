"""Where an alert leads: its runbook, and the dashboard of what it is about. Pure text, as Prometheus fills it in."""

from urllib.parse import quote, urlencode

from exporter.alerting.alert import Alert
from exporter.config.objectives import RUNBOOK_URL, SloConfig

#: What a dashboard is told of an alert, by whose labels it carries.
_SOURCE = "&var-source={{ $labels.source | urlquery }}"
_WORKFLOW = (
    f"{_SOURCE}{{{{ with $labels.workflow }}}}&var-workflow={{{{ . | urlquery }}}}{{{{ end }}}}"
    "&var-workflow_id={{ $labels.workflow_id | urlquery }}"
)
_TOLD = {
    "workflow": _WORKFLOW,
    "source": _SOURCE,
    "process": "&var-instance={{ $labels.instance | urlquery }}",
    "exporter": "",
}


def runbook(alert: Alert, slo: SloConfig) -> str:
    """The page of the alert: where the user put the pages, else at the service itself, else at the project's place.

    A service that is gone shows none.
    """
    if slo.runbook_url is not None:
        return f"{slo.runbook_url}/{alert.name}.md"
    if slo.status_url is not None and alert.serves:
        return f"{slo.status_url}/runbooks/{alert.name}"
    return f"{RUNBOOK_URL}/{alert.name}.md"


def dashboard(alert: Alert, slo: SloConfig) -> str | None:
    """The dashboard that shows what the alert is about, or the one that the user named; its variables set to that."""
    board = _board(slo, uid(alert))
    return None if board is None else board + _TOLD[alert.about]


def workflow_dashboard(slo: SloConfig, source: str, workflow: str | None, workflow_id: str) -> str | None:
    """The dashboard of one workflow, which has its identifier for a name where it has none; as alerts lead there."""
    board = _board(slo, "automation-workflow")
    told = {"var-source": source, "var-workflow": workflow or workflow_id, "var-workflow_id": workflow_id}
    return None if board is None else f"{board}&{urlencode(told)}"


def _board(slo: SloConfig, uid: str) -> str | None:
    """One of the shipped dashboards in the user's Grafana, or the one that the user named; None without either."""
    if slo.dashboard_url is None:
        return None
    board = slo.dashboard_url if "/d/" in slo.dashboard_url else f"{slo.dashboard_url}/d/{uid}"
    return f"{board}?var-job={quote(slo.job, safe='')}"


def uid(alert: Alert) -> str:
    """Which of the shipped dashboards."""
    if alert.about == "workflow":
        return "automation-workflow"
    if alert.group in ("dead-letters", "retries"):
        return "automation-dead-letters"
    return "automation-overview" if alert.group == "workflows" else "automation-exporter"
