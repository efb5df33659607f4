"""The worlds alerts are tried in: series as promtool reads them, one value a minute."""

from dataclasses import dataclass

JOB = 'job="automation-exporter", instance="host:10870"'
SOURCE = f'{JOB}, platform="make", source="make-eu"'
WORKFLOW = f'{SOURCE}, workflow_id="5004"'
INFO = f'automation_workflow_info{{{WORKFLOW}, workflow="Invoices", workspace="Finance", trigger="schedule"}}'
UP = f"automation_source_up{{{SOURCE}}}"
NAMED = {"platform": "make", "source": "make-eu", "workflow_id": "5004", "workflow": "Invoices"}
AT = {"job": "automation-exporter"}
#: Alerts on one process name it.
ONE = {**AT, "instance": "host:10870"}
HERE = {**AT, "platform": "make", "source": "make-eu"}
ALWAYS = "1x1900"


def metric(name: str, labels: str = WORKFLOW, **more: str) -> str:
    extra = [f'{key}="{value}"' for key, value in more.items()]
    return f"{name}{{{', '.join([labels, *extra])}}}"


def runs(result: str, labels: str = WORKFLOW) -> str:
    return metric("automation_runs_total", labels, result=result)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What the world is like, and what is told of it: labels beside severity, and the description. None: nothing."""

    why: str
    series: dict[str, str]
    at: str
    told: tuple[dict[str, str], str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cases:
    fires: list[Case]
    silent: list[Case]
    every: str = "1m"
    """How often promtool evaluates: longer where a case takes a day."""


def series(*pairs: tuple[str, str]) -> dict[str, str]:
    return {INFO: ALWAYS, UP: ALWAYS, **dict(pairs)}


FAILURES = metric("automation_workflow_consecutive_failures")
LAST_RUN = metric("automation_workflow_last_run_timestamp_seconds", result="success")
NEXT = metric("automation_workflow_next_run_timestamp_seconds")
ENABLED = metric("automation_workflow_enabled")
LETTERS = metric("automation_dead_letters", error_class="network")
OLDEST = metric("automation_dead_letter_oldest_timestamp_seconds")
OLDEST_RUN = metric("automation_run_oldest_active_timestamp_seconds", state="running")
RETRIES = f'{SOURCE}, policy="transient"'
GATES = f'{SOURCE}, policy="transient"'
RAILS = SOURCE
STREAM = f'{SOURCE}, stream="runs"'
COMPLETE = metric("automation_exporter_data_complete", STREAM)
SWEEPS = metric("automation_exporter_sweep_duration_seconds_count", STREAM)
SUCCESS = metric("automation_exporter_sweep_last_success_timestamp_seconds", STREAM)
LAG = metric("automation_exporter_cursor_lag_seconds", STREAM)
LETTERS_READ = metric("automation_exporter_sweep_last_success_timestamp_seconds", SOURCE, stream="dead_letters")
REFUSED = metric("automation_exporter_sweep_errors_total", STREAM, kind="auth")
STORE_UP = metric("automation_exporter_store_up", JOB)
REFUSED_BY_STORE = metric("automation_exporter_store_errors_total", JOB, operation="ingest")
RELIABILITY = metric("automation_exporter_webhook_reliability_ratio", SOURCE)
ENDED = metric("automation_exporter_runs_observed_total", SOURCE, via="poll")
OFFSET = metric("automation_exporter_clock_offset_seconds", SOURCE)
FREE = metric("automation_exporter_api_quota_remaining", SOURCE)
USED = metric("automation_usage_operations", SOURCE, kind="operations")
ALLOWED = metric("automation_usage_limit_operations", SOURCE, kind="operations")
USED_BYTES = metric("automation_usage_bytes", SOURCE, kind="transfer")
ALLOWED_BYTES = metric("automation_usage_limit_bytes", SOURCE, kind="transfer")
BURNT = {"job": "automation-exporter", "platform": "make", "source": "make-eu"}
OFTEN = {"job": "automation-exporter", **NAMED}
POLICY = {**HERE, "policy": "transient"}
READING = {**HERE, "stream": "runs"}
