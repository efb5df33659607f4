"""For every alert what makes it fire, and what looks alike and must not. The files in alerts/tests/ are made of these.

A case is a small world: series as promtool reads them (one value a minute), when to look, and who is told what. Text
is stated here in full, because the text is what somebody reads at night.
"""

from dataclasses import dataclass
from typing import Any

from exporter.alerting.alerts import ALERTS
from exporter.alerting.objectives import SloConfig
from exporter.alerting.rules import annotations

JOB = 'job="automation-exporter", instance="host:10870"'
SOURCE = f'{JOB}, platform="make", source="make-eu"'
WORKFLOW = f'{SOURCE}, workflow_id="5004"'
INFO = f'automation_workflow_info{{{WORKFLOW}, workflow="Invoices", workspace="Finance", trigger="schedule"}}'
UP = f"automation_source_up{{{SOURCE}}}"
NAMED = {"platform": "make", "source": "make-eu", "workflow_id": "5004", "workflow": "Invoices"}
AT = {"job": "automation-exporter", "instance": "host:10870"}
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
NEXT = metric("automation_workflow_next_run_timestamp_seconds")
ENABLED = metric("automation_workflow_enabled")
OPENED = metric("automation_dead_letters_opened_total", error_class="network")
RESOLVED = metric("automation_dead_letters_resolved_total", by="retry")
OLDEST = metric("automation_dead_letter_oldest_timestamp_seconds")
OLDEST_RUN = metric("automation_run_oldest_active_timestamp_seconds", state="running")
RETRIES = f'{SOURCE}, policy="transient"'
STREAM = f'{SOURCE}, stream="runs"'
COMPLETE = metric("automation_exporter_data_complete", STREAM)
SUCCESS = metric("automation_exporter_sweep_last_success_timestamp_seconds", STREAM)
REFUSED = metric("automation_exporter_sweep_errors_total", STREAM, kind="auth")
FREE = metric("automation_exporter_api_quota_remaining", SOURCE)
USED = metric("automation_usage", SOURCE, kind="operations")
ALLOWED = metric("automation_usage_limit", SOURCE, kind="operations")
BURNT = {"job": "automation-exporter", "platform": "make", "source": "make-eu"}
OFTEN = {"job": "automation-exporter", **NAMED}
POLICY = {**HERE, "policy": "transient"}
READING = {**HERE, "stream": "runs"}

CASES: dict[str, Cases] = {
    "AutomationErrorBudgetBurnFast": Cases(
        fires=[
            Case(
                why="one run in five fails, 60 runs an hour",
                series=series((runs("success"), "0+0.8x120"), (runs("failure"), "0+0.2x120")),
                at="90m",
                told=(BURNT, "20% of the runs of make-eu fail, far more than the objective allows."),
            ),
            Case(
                why="one in ten for half a day is too slow for the first pair of windows and enough for the second",
                series=series((runs("success"), "0+0.9x720"), (runs("timeout"), "0+0.1x720")),
                at="10h",
                told=(BURNT, "10% of the runs of make-eu fail, far more than the objective allows."),
            ),
        ],
        silent=[
            Case(
                why="ten runs an hour are too few to speak of a ratio",
                series=series((runs("success"), "0+0.03x120"), (runs("failure"), "0+0.03x120")),
                at="90m",
            ),
            Case(
                why="who cancels a run has decided so",
                series=series((runs("success"), "0+1x120"), (runs("cancelled"), "0+1x120")),
                at="90m",
            ),
            Case(
                why="it has stopped: the short window is clean, whatever the long one remembers",
                series=series((runs("success"), "0+1x120"), (runs("failure"), "0+1x60 60x60")),
                at="110m",
            ),
            Case(
                why="a restart of the exporter with its totals kept is no event",
                series=series((runs("success"), "0+1x120"), (runs("failure"), "900x50 _x4 900x66")),
                at="90m",
            ),
        ],
    ),
    "AutomationErrorBudgetBurnSlow": Cases(
        fires=[
            Case(
                why="four in a hundred for hours",
                series=series((runs("success"), "0+0.96x200"), (runs("failure"), "0+0.04x200")),
                at="3h",
                told=(BURNT, "For hours, 4% of the runs of make-eu have failed."),
            )
        ],
        silent=[
            Case(
                why="half a percent is what the objective allows",
                series=series((runs("success"), "0+0.995x200"), (runs("failure"), "0+0.005x200")),
                at="3h",
            )
        ],
    ),
    "AutomationWorkflowFailing": Cases(
        fires=[
            Case(
                why="three in a row, once a night is enough",
                series=series((FAILURES, "2x10 3x20")),
                at="15m",
                told=({**AT, **NAMED}, "The last 3 runs of Invoices (5004) of make-eu failed."),
            ),
            Case(
                why="nobody has told the workflow's name yet",
                series={FAILURES: "3x20"},
                at="15m",
                told=({**HERE, "workflow_id": "5004"}, "The last 3 runs of 5004 of make-eu failed."),
            ),
        ],
        silent=[Case(why="two in a row", series=series((FAILURES, "2x30")), at="30m")],
    ),
    "AutomationWorkflowFailingOften": Cases(
        fires=[
            Case(
                why="every other of 60 runs an hour, never three in a row",
                series=series((runs("success"), "0+0.5x120"), (runs("failure"), "0+0.5x120")),
                at="90m",
                told=(OFTEN, "50% of the runs of Invoices (5004) of make-eu fail."),
            ),
            Case(
                why="folded workflows have no name and fail all the same",
                series={
                    runs(result, f'{SOURCE}, workflow_id="__other__"'): "0+0.5x120" for result in ("success", "quota")
                },
                at="90m",
                told=({**BURNT, "workflow_id": "__other__"}, "50% of the runs of __other__ of make-eu fail."),
            ),
        ],
        silent=[
            Case(
                why="every other of six runs an hour",
                series=series((runs("success"), "0+0.05x120"), (runs("failure"), "0+0.05x120")),
                at="90m",
            ),
            Case(
                why="all runs succeed",
                series=series((runs("success"), "0+1x120"), (runs("failure"), "0x120")),
                at="90m",
            ),
        ],
    ),
    "AutomationWorkflowOverdue": Cases(
        fires=[
            Case(
                why="planned for minute 10, not started by minute 40",
                series=series((NEXT, "600x60"), (ENABLED, ALWAYS)),
                at="40m",
                told=(
                    {**AT, **NAMED},
                    "Invoices (5004) of make-eu was to start 30m 0s ago and has not.",
                ),
            ),
            Case(
                why="the platform does not say whether it is on",
                series=series((NEXT, "600x60")),
                at="40m",
                told=({**AT, **NAMED}, "Invoices (5004) of make-eu was to start 30m 0s ago and has not."),
            ),
        ],
        silent=[
            Case(why="the plan moves on", series=series((NEXT, "600+60x60"), (ENABLED, ALWAYS)), at="40m"),
            Case(why="it is off", series=series((NEXT, "600x60"), (ENABLED, "0x60")), at="40m"),
            Case(
                why="it is blocked, which is another alert",
                series=series((NEXT, "600x60"), (metric("automation_workflow_blocked", reason="paused"), ALWAYS)),
                at="40m",
            ),
            Case(
                why="its last run is not done yet",
                series=series((NEXT, "600x60"), (metric("automation_runs_active", state="running"), ALWAYS)),
                at="40m",
            ),
            Case(why="the source is down, the plan is old", series={**series((NEXT, "600x60")), UP: "0x60"}, at="40m"),
        ],
    ),
    "AutomationWorkflowStuck": Cases(
        fires=[
            Case(
                why="running for three hours",
                series=series((OLDEST_RUN, "0x200")),
                at="3h",
                told=(
                    {**AT, **NAMED, "state": "running"},
                    "A run of Invoices (5004) of make-eu has been running for 3h 0m 0s.",
                ),
            )
        ],
        silent=[
            Case(why="for one hour", series=series((OLDEST_RUN, "0x200")), at="1h"),
            Case(why="the source is down", series={**series((OLDEST_RUN, "0x200")), UP: "0x200"}, at="3h"),
        ],
    ),
    "AutomationWorkflowDisabled": Cases(
        fires=[
            Case(
                why="it was on an hour ago",
                series=series((ENABLED, "1x60 0x100")),
                at="2h",
                told=(
                    {**AT, **NAMED},
                    "Invoices (5004) of make-eu was switched off within the last day, by a person or by the platform.",
                ),
            )
        ],
        silent=[
            Case(why="it has always been off", series=series((ENABLED, "0x200")), at="2h"),
            Case(why="it was switched off more than a day ago", series=series((ENABLED, "1x10 0x1600")), at="25h"),
        ],
        every="5m",
    ),
    "AutomationWorkflowBlocked": Cases(
        fires=[
            Case(
                why="the platform calls it invalid",
                series=series((metric("automation_workflow_blocked", reason="invalid"), ALWAYS)),
                at="15m",
                told=({**AT, **NAMED, "reason": "invalid"}, "Invoices (5004) of make-eu cannot run: invalid."),
            )
        ],
        silent=[
            Case(
                why="for five minutes only",
                series=series((metric("automation_workflow_blocked", reason="paused"), "1x5 stale")),
                at="15m",
            )
        ],
    ),
    "AutomationQueueNearLimit": Cases(
        fires=[
            Case(
                why="90 of 100",
                series=series(
                    (metric("automation_input_queue_items"), "90x30"),
                    (metric("automation_input_queue_limit_items"), "100x30"),
                ),
                at="15m",
                told=(
                    {**AT, **NAMED},
                    "The queue of Invoices (5004) of make-eu is 90% full. When it is full, what comes is refused.",
                ),
            )
        ],
        silent=[
            Case(
                why="half full",
                series=series(
                    (metric("automation_input_queue_items"), "50x30"),
                    (metric("automation_input_queue_limit_items"), "100x30"),
                ),
                at="15m",
            ),
            Case(
                why="nobody knows the limit",
                series=series((metric("automation_input_queue_items"), "90x30")),
                at="15m",
            ),
        ],
    ),
    "AutomationDeadLettersGrowing": Cases(
        fires=[
            Case(
                why="twelve opened, two resolved",
                series=series((OPENED, "0x60 12x400"), (RESOLVED, "0x100 2x400")),
                at="3h",
                told=(
                    {**AT, **NAMED},
                    "10 more dead letters of Invoices (5004) of make-eu were opened than resolved within six hours.",
                ),
            )
        ],
        silent=[
            Case(
                why="all are resolved",
                series=series((OPENED, "0x60 12x400"), (RESOLVED, "0x62 12x400")),
                at="3h",
            ),
            Case(why="two", series=series((OPENED, "0x60 2x400"), (RESOLVED, "0x400")), at="3h"),
        ],
    ),
    "AutomationDeadLettersOld": Cases(
        fires=[
            Case(
                why="open for more than a day",
                series=series((OLDEST, "0x1700")),
                at="25h",
                told=(
                    {**AT, **NAMED},
                    "The oldest dead letter of Invoices (5004) of make-eu has been open for 1d 1h 0m 0s.",
                ),
            )
        ],
        silent=[
            Case(why="open for twenty hours", series=series((OLDEST, "0x3000")), at="20h"),
            Case(why="it is resolved", series=series((OLDEST, "0x1450 stale")), at="25h"),
        ],
        every="5m",
    ),
    "AutomationDeadLettersNearCapacity": Cases(
        fires=[
            Case(
                why="900 of the 1000 there is room for, in two workflows",
                series=series(
                    (metric("automation_dead_letters", error_class="network"), "600x30"),
                    (metric("automation_dead_letters", f'{SOURCE}, workflow_id="7"', error_class="auth"), "300x30"),
                ),
                at="15m",
                told=(
                    HERE,
                    "make-eu holds 900 open dead letters. When there is no room left, what fails is lost, or stops its"
                    " workflow.",
                ),
            )
        ],
        silent=[
            Case(
                why="600",
                series=series((metric("automation_dead_letters", error_class="network"), "600x30")),
                at="15m",
            )
        ],
    ),
    "AutomationRetryHeld": Cases(
        fires=[
            Case(
                why="held for more than an hour",
                series={metric("automation_retries_open", RETRIES, state="held"): "2x100"},
                at="70m",
                told=({**POLICY, "state": "held"}, "2 retries of make-eu under the policy transient are held."),
            )
        ],
        silent=[
            Case(
                why="held for half an hour, then approved",
                series={metric("automation_retries_open", RETRIES, state="held"): "2x30 0x70"},
                at="70m",
            )
        ],
    ),
    "AutomationRetryInDoubt": Cases(
        fires=[
            Case(
                why="in doubt for more than half an hour",
                series={metric("automation_retries_open", RETRIES, state="in_doubt"): "1x100"},
                at="40m",
                told=({**POLICY, "state": "in_doubt"}, "1 retries of make-eu under the policy transient are in doubt."),
            )
        ],
        silent=[
            Case(
                why="settled by reading the platform",
                series={metric("automation_retries_open", RETRIES, state="in_doubt"): "1x20 0x70"},
                at="40m",
            )
        ],
    ),
    "AutomationRetriesIneffective": Cases(
        fires=[
            Case(
                why="nine of twelve failed or were refused",
                series={
                    metric("automation_retries_total", RETRIES, outcome="succeeded"): "0x60 3x400",
                    metric("automation_retries_total", RETRIES, outcome="failed"): "0x60 6x400",
                    metric("automation_retries_total", RETRIES, outcome="rejected"): "0x60 3x400",
                },
                at="3h",
                told=(
                    POLICY,
                    "75% of the retries of make-eu under the policy transient failed or were refused within six hours.",
                ),
            )
        ],
        silent=[
            Case(
                why="three of four, which is too few to judge",
                series={
                    metric("automation_retries_total", RETRIES, outcome="succeeded"): "0x60 1x400",
                    metric("automation_retries_total", RETRIES, outcome="failed"): "0x60 3x400",
                },
                at="3h",
            ),
            Case(
                why="most succeed",
                series={
                    metric("automation_retries_total", RETRIES, outcome="succeeded"): "0x60 9x400",
                    metric("automation_retries_total", RETRIES, outcome="failed"): "0x60 3x400",
                },
                at="3h",
            ),
        ],
    ),
    "AutomationDataIncomplete": Cases(
        fires=[
            Case(
                why="not read since minute 10",
                series={COMPLETE: "1x10 0x60", SUCCESS: "0+60x10 600x60"},
                at="40m",
                told=(READING, "runs of make-eu cannot be read."),
            ),
            Case(
                why="never read since the exporter was started",
                series={COMPLETE: "0x60"},
                at="10m",
                told=(READING, "runs of make-eu cannot be read."),
            ),
        ],
        silent=[
            Case(
                why="one item cannot be used, everything else is read",
                series={COMPLETE: "0x60", SUCCESS: "0+60x60"},
                at="40m",
            ),
            Case(
                why="one sweep failed",
                series={COMPLETE: "1x10 0x3 1x60", SUCCESS: "0+60x10 600x3 780+60x60"},
                at="40m",
            ),
            Case(why="a stream that is read rarely", series={COMPLETE: "1x60", SUCCESS: "0x60"}, at="40m"),
        ],
    ),
    "AutomationDataFaulty": Cases(
        fires=[
            Case(
                why="one item cannot be used, for more than an hour",
                series={COMPLETE: "0x90", SUCCESS: "0+60x90"},
                at="80m",
                told=(READING, "runs of make-eu has not been read without a fault for an hour."),
            )
        ],
        silent=[
            Case(why="for half an hour", series={COMPLETE: "0x30 1x60", SUCCESS: "0+60x90"}, at="80m"),
            Case(
                why="nothing can be read, which is another alert", series={COMPLETE: "0x90", SUCCESS: "0x90"}, at="85m"
            ),
        ],
    ),
    "AutomationCredentialFailing": Cases(
        fires=[
            Case(
                why="refused since minute 10, ever more rarely tried",
                series={COMPLETE: "1x10 0x60", REFUSED: "_x10 1x2 2x4 3x8 4x60"},
                at="40m",
                told=({**READING, "kind": "auth"}, "The credential of make-eu is refused when runs is read."),
            ),
            Case(
                why="refused for the first time: a counter that is born with it",
                series={COMPLETE: "1x10 0x60", REFUSED: "_x10 1x10"},
                at="15m",
                told=({**READING, "kind": "auth"}, "The credential of make-eu is refused when runs is read."),
            ),
        ],
        silent=[
            Case(
                why="it works again",
                series={COMPLETE: "1x10 0x10 1x60", REFUSED: "_x10 1x2 2x4 3x60"},
                at="40m",
            ),
            Case(
                why="the platform is down, the credential was refused two hours ago",
                series={COMPLETE: "0x200", REFUSED: "1x200"},
                at="130m",
            ),
        ],
    ),
    "AutomationWebhookLoss": Cases(
        fires=[
            Case(
                why="a third of the runs came without",
                series={metric("automation_exporter_webhook_reliability_ratio", SOURCE): "0.67x60"},
                at="30m",
                told=(HERE, "Webhooks of make-eu told of 67% of the runs of the last hour only."),
            )
        ],
        silent=[
            Case(
                why="one in fifty",
                series={metric("automation_exporter_webhook_reliability_ratio", SOURCE): "0.98x60"},
                at="30m",
            )
        ],
    ),
    "AutomationQuotaLow": Cases(
        fires=[
            Case(
                why="9500 of 10000 are used",
                series={USED: "9500x60", ALLOWED: "10000x60"},
                at="30m",
                told=({**HERE, "kind": "operations"}, "5% of the operations of make-eu are left."),
            )
        ],
        silent=[
            Case(why="half of it", series={USED: "5000x60", ALLOWED: "10000x60"}, at="30m"),
            Case(why="there is no limit", series={USED: "5000x60"}, at="30m"),
        ],
    ),
    "AutomationApiQuotaLow": Cases(
        fires=[
            Case(
                why="300 requests a minute were free in the morning, now 12 on average",
                series={FREE: "300x60 12x60"},
                at="110m",
                told=(
                    HERE,
                    "Of the requests make-eu may send, 4% were free on average of 15 minutes.",
                ),
            )
        ],
        silent=[
            Case(why="a burst is what the budget is for", series={FREE: "300x60 0x5 300x60"}, at="70m"),
            Case(why="a small budget, unused", series={FREE: "6x120"}, at="110m"),
        ],
    ),
    "AutomationSeriesFolded": Cases(
        fires=[
            Case(
                why="three new workflows, and no room",
                series={metric("automation_exporter_series_folded_total", JOB): "0x60 3x200"},
                at="2h",
                told=(AT, "3 workflows were folded into __other__ within a day: limits.series_max is reached."),
            )
        ],
        silent=[
            Case(
                why="none",
                series={metric("automation_exporter_series_folded_total", JOB): "0x200"},
                at="2h",
            )
        ],
    ),
    "AutomationExporterDown": Cases(
        fires=[
            Case(
                why="it does not answer",
                series={f"up{{{JOB}}}": "1x10 0x30"},
                at="20m",
                told=(AT, "host:10870 is down or gone: nothing is known of any workflow."),
            ),
            Case(
                why="nobody scrapes it any more",
                series={f"up{{{JOB}}}": "1x10 _x30"},
                at="30m",
                told=(
                    {"job": "automation-exporter"},
                    "Every instance of automation-exporter is down or gone: nothing is known of any workflow.",
                ),
            ),
        ],
        silent=[
            Case(why="it answers", series={f"up{{{JOB}}}": "1x40"}, at="30m"),
            Case(why="a restart", series={f"up{{{JOB}}}": "1x10 0x2 1x40"}, at="20m"),
        ],
    ),
}


def unit_tests(name: str) -> dict[str, Any]:
    """The cases of an alert as promtool reads them."""
    [alert] = [alert for alert in ALERTS if alert.name == name]
    tests = []
    for case in (*CASES[name].fires, *CASES[name].silent):
        expected = []
        if case.told is not None:
            labels, description = case.told
            expected = [
                {
                    "exp_labels": {"severity": alert.severity, **labels},
                    "exp_annotations": annotations(alert, SloConfig()) | {"description": description},
                }
            ]
        tests.append(
            {
                "name": f"{'fires' if case.told else 'silent'}: {case.why}",
                "interval": "1m",
                "input_series": [{"series": series, "values": values} for series, values in case.series.items()],
                "alert_rule_test": [{"eval_time": case.at, "alertname": name, "exp_alerts": expected}],
            }
        )
    return {
        "rule_files": ["../recording-rules.yaml", "../alert-rules.yaml"],
        "evaluation_interval": CASES[name].every,
        "tests": tests,
    }
