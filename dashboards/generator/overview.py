"""Is anything broken, was it repaired, is the plan enough, and what costs most: in ten seconds."""

from collections.abc import Mapping

from dashboards.generator.panels import WORKFLOW_COLUMNS, Board, Column, bars, graph, rows, stat
from dashboards.generator.queries import (
    DAY,
    DAY_SECONDS,
    EXPORTER,
    FAILURES,
    KEY,
    RANGE,
    RANGE_SECONDS,
    STORE_UP,
    SUCCESSES,
    SWEPT,
    UP,
    by_workflow,
    counted,
    increase,
    named,
    of_read,
    of_workflow,
    per_hour,
    quantile,
    read,
    select,
    share,
    told,
    told_each,
    worst,
)
from exporter.config.objectives import SloConfig
from exporter.model import Unit
from exporter.model import catalogue as c
from exporter.model.catalogue import Metric

_SLO = SloConfig()
LAST_FAILURE = of_workflow(select(c.WORKFLOW_LAST_RUN, FAILURES))
#: Workflows a run of which failed within the time shown, as a set to match with.
BROKE = f"and on ({KEY}) {LAST_FAILURE} >= time() - {RANGE_SECONDS}"
#: Whether each workflow was failing, every five minutes of the time shown.
_WAS_FAILING = f"({of_workflow(select(c.WORKFLOW_FAILURES))} > bool 0)[{RANGE}:5m]"
FAILING_SECONDS = f"300 * sum by (source) (sum_over_time({_WAS_FAILING}))"
#: It began or ended; one that has not ended counts as well.
INCIDENTS = f"sum by (source) (ceil(changes({_WAS_FAILING}) / 2))"
OVERDUE = (
    f"sum((time() - {of_workflow(select(c.WORKFLOW_NEXT_RUN))} > bool {_SLO.overdue_after:g})"
    f" and on ({KEY}) {of_workflow(select(c.WORKFLOW_ENABLED))} == 1)"
)
STUCK = f"sum((time() - min by ({KEY}) ({select(c.RUN_OLDEST_ACTIVE)})) > bool {_SLO.stuck_after:g})"

_PLAN = "job, source, kind"


def _of_plan(families: Mapping[Unit, Metric], *, offset: str = "") -> str:
    """Used or allowed, whatever it is counted in."""
    before = f" offset {offset}" if offset else ""
    each = " or ".join(f"{select(metric)}{before}" for metric in families.values())
    return f"max by ({_PLAN}) ({each})"


USED, LIMIT = _of_plan(c.USED), _of_plan(c.ALLOWED)
#: In the time shown, where its beginning is known and the plan has not begun anew since.
_USED_SINCE = f"({USED} - {_of_plan(c.USED, offset=RANGE)} >= 0)"
A_DAY = f"({_USED_SINCE} / {RANGE_SECONDS} * {DAY_SECONDS})"
_TO_MONTHS_END = "(days_in_month() - day_of_month() + 1 - hour() / 24)"
_MONTHS_END = f"({USED} + {A_DAY} * on () group_left () {_TO_MONTHS_END}) / ({LIMIT} > 0)"
_USED_UP = f"({LIMIT} - {USED}) / ({A_DAY} > 0) * {DAY_SECONDS} >= 0 <= {366 * DAY_SECONDS}"

#: Alerts carry no replica, and those about the exporter no source.
_FIRING = 'job=~"$job", source=~"$source|", alertname=~"Automation.+"'
FIRING = (
    f"time() - max by (severity, alertname, source, workflow)"
    f' (ALERTS_FOR_STATE{{{_FIRING}}} and ignoring (alertstate) ALERTS{{{_FIRING}, alertstate="firing"}})'
)

BOARD = Board(
    uid="automation-overview",
    title="Overview",
    description="Is anything broken, was it repaired, is the plan enough, and what costs most.",
    rows=(
        (
            "Is anything broken now?",
            (
                stat(
                    "Exporter works",
                    "Whether Prometheus reaches every replica of the exporter, and each can store what it reads.",
                    f"min({UP}) * min({select(STORE_UP, of=EXPORTER)}) or min({UP})",
                    do="If not, nothing else on this page is known: start the exporter, or see on the dashboard"
                    " Exporter whether it is scraped and its database takes writes.",
                    unit="bool_yes_no",
                    limits=(1, 0.5),
                    unknown=("No scrape", "red"),
                    width=3,
                ),
                stat(
                    "Sources down",
                    "Sources whose platform did not answer, or refused the credential, in the last poll cycle.",
                    f"sum(1 - {select(c.SOURCE_UP)})",
                    do="What is shown of them is old. The table Sources names them; the status page says why.",
                    limits=(1, 2),
                    width=3,
                ),
                stat(
                    "Workflows failing",
                    "Workflows whose last run failed. Unknown while a source cannot be read and none is known to fail.",
                    told(f"sum({select(c.WORKFLOW_FAILURES)} > bool 0)"),
                    do="The table below names them.",
                    limits=(1, 5),
                    width=3,
                ),
                stat(
                    "Overdue",
                    f"Workflows that are on and did not start within {_SLO.overdue_after / 60:g} minutes of their plan,"
                    " where the platform reports the plan.",
                    told(OVERDUE),
                    do="Look on the platform whether its scheduler is late or the workflow was changed.",
                    limits=(1, 3),
                    width=3,
                ),
                stat(
                    "Stuck",
                    f"Workflows with a run that has waited, or has been running, for more than"
                    f" {_SLO.stuck_after / 3600:g} hours.",
                    counted(STUCK),
                    do="Open the workflow on its platform: the run may have to be stopped.",
                    limits=(1, 3),
                    width=3,
                ),
                stat(
                    "Blocked",
                    "Workflows that the platform keeps from running: invalid, paused, out of quota.",
                    counted(f"sum({of_workflow(select(c.WORKFLOW_BLOCKED))})"),
                    do="Repair or reactivate them on the platform; the label reason of automation_workflow_blocked says"
                    " what is wrong.",
                    limits=(1, 3),
                    width=3,
                ),
                stat(
                    "Open dead letters",
                    "Work that a platform gave up on and that a retry could still save.",
                    counted(f"sum({select(c.DEAD_LETTERS)})"),
                    do="What they are made of is below; what waits for a person is on the status page.",
                    limits=(1, 100),
                    width=3,
                ),
                stat(
                    "Age of the data",
                    "How long ago the stream that is most behind was last read completely.",
                    f"max(time() - {select(SWEPT)})",
                    do="Old data look healthy. The dashboard Exporter shows which stream it is.",
                    unit="s",
                    limits=(900, 3600),
                    width=3,
                ),
                rows(
                    "Firing alerts",
                    "Alerts of the exporter's rules that fire now, and for how long they have been true.",
                    Column(title="True for", expr=FIRING, unit="s"),
                    do="Begin with the critical ones: each alert links to its runbook.",
                    labels=(
                        ("severity", "Severity"),
                        ("alertname", "Alert"),
                        ("source", "Source"),
                        ("workflow", "Workflow"),
                    ),
                    empty="No alert fires, or no alert rules are loaded.",
                    width=12,
                ),
                rows(
                    "Failing now",
                    "Failed runs since the last success, the worst first. A row leads to its workflow.",
                    worst(named(f"{of_workflow(select(c.WORKFLOW_FAILURES))} > 0")),
                    do="Two or more of one source at once are mostly one cause: look at the source first.",
                    width=6,
                ),
                rows(
                    "Sources",
                    "Whether each source is read, and how old what is shown of it is.",
                    Column(
                        title="Age",
                        expr=f"max by (source) (time() - {select(SWEPT)})",
                        unit="s",
                        limits=(900, 3600),
                    ),
                    Column(
                        title="Read",
                        expr=f"min by (source) ({select(c.SOURCE_UP)})",
                        limits=(1, 0.5),
                        texts=(("0", "no", "red"), ("1", "yes", "green")),
                    ),
                    do="For one that is not read, the status page says why: a credential, a limit, or the platform.",
                    labels=(("source", "Source"),),
                    width=6,
                ),
            ),
        ),
        (
            "What broke in the time shown, and was it repaired?",
            (
                rows(
                    "Broken workflows",
                    "Every workflow of which a run failed in the time shown. A row leads to its workflow.",
                    Column(
                        title="Failed runs",
                        expr=worst(named(f"round({by_workflow(increase(c.RUNS, RANGE, FAILURES))}) > 0"), number=50),
                        decimals=0,
                    ),
                    Column(
                        title="Last failure",
                        expr=named(f"1000 * ({LAST_FAILURE} {BROKE})"),
                        unit="dateTimeFromNow",
                    ),
                    Column(
                        title="Last success",
                        expr=named(f"1000 * ({of_workflow(select(c.WORKFLOW_LAST_RUN, SUCCESSES))} {BROKE})"),
                        unit="dateTimeFromNow",
                    ),
                    Column(
                        title="Failures in a row now",
                        expr=named(f"({told_each(of_workflow(select(c.WORKFLOW_FAILURES)))}) {BROKE}"),
                        limits=(1, 3),
                        texts=(("0", "0: runs again", "green"),),
                    ),
                    Column(
                        title="Open dead letters",
                        expr=named(f"({told_each(by_workflow(select(c.DEAD_LETTERS)))}) {BROKE}"),
                        limits=(1, 10),
                    ),
                    do="It runs again where no failure is left in a row; its data are whole where no dead letter is"
                    " open. An empty cell is not known.",
                    width=24,
                ),
                stat(
                    "Failed, 24 h",
                    "Share of the runs finished in the last day that failed; unknown while a source cannot be read.",
                    read(share(c.RUNS, DAY, FAILURES)),
                    do="Compare with your objective; the graphs beside it show when it began and of what they failed.",
                    unit="percentunit",
                    decimals=1,
                    limits=(0.01, 0.05),
                    width=3,
                    height=8,
                ),
                graph(
                    "Finished runs an hour, by result",
                    "Each attempt of a run counts once.",
                    (per_hour(c.RUNS, "result"), "{{result}}"),
                    do="A fall to nothing is as bad as red: something no longer starts.",
                    stacked=True,
                    width=6,
                ),
                graph(
                    "Failed runs an hour, by error class",
                    "Why they failed, as far as their platform reports it.",
                    (per_hour(c.RUN_ERRORS, "error_class"), "{{error_class}}"),
                    do="network, timeout and throttled mostly pass by themselves; auth, permission and validation need"
                    " a person.",
                    stacked=True,
                    width=5,
                ),
                graph(
                    "Unfinished runs",
                    "Runs that wait or are under way.",
                    (f"sum by (source, state) ({select(c.RUNS_ACTIVE)})", "{{source}} {{state}}"),
                    do="If what waits only grows, the platform does not keep up or has stopped.",
                    width=5,
                ),
                bars(
                    "Until it works again",
                    "Mean time to repair: how long workflows were failing in the time shown, divided by how often that"
                    " began. Looked at every five minutes: what is shorter may be missed.",
                    of_read(f"{FAILING_SECONDS} / ({INCIDENTS} > 0)"),
                    "{{source}}",
                    do="If it grows, repairs take longer, or nobody hears of the failure: see Until a failure is"
                    " noticed.",
                    unit="s",
                    limits=(3600, 14400),
                    width=5,
                ),
            ),
        ),
        (
            "What are the open dead letters made of?",
            (
                rows(
                    "Dead letters, by workflow and error class",
                    "Open dead letters, the most numerous first. A row leads to its workflow.",
                    worst(named(f"sum by ({KEY}, error_class) ({select(c.DEAD_LETTERS)}) > 0", "error_class")),
                    do="A row is mostly one trouble. `automation-exporter retries groups` lists the same with what the"
                    " error says and what you can do.",
                    labels=(*WORKFLOW_COLUMNS, ("error_class", "Error class")),
                    width=12,
                ),
                graph(
                    "Open dead letters, by source",
                    "Work that a platform gave up on and that a retry could still save.",
                    (f"sum by (source) ({select(c.DEAD_LETTERS)})", "{{source}}"),
                    do="If they only grow, nothing resolves them: look at Dead letters and retries.",
                    width=6,
                ),
                bars(
                    "Until a failure is noticed",
                    "95 of 100 runs of the time shown were counted within this time after they ended.",
                    of_read(quantile(0.95, c.DETECTION_DELAY, "source", window=RANGE)),
                    "{{source}}",
                    do="If it is more than you can wait, set up webhooks or shorten the poll interval of the source.",
                    unit="s",
                    limits=(300, 900),
                    width=6,
                ),
            ),
        ),
        (
            "Is the plan enough, and what costs most?",
            (
                bars(
                    "Used of the plan",
                    "Where the platform reports how much the plan allows.",
                    of_read(f"max by (source, kind) ({USED} / ({LIMIT} > 0))"),
                    "{{source}} {{kind}}",
                    do="When it is used up, the platform stops or bills more: see beside it when that will be.",
                    unit="percentunit",
                    limits=(0.8, 0.95),
                    width=12,
                ),
                rows(
                    "How long the plan lasts",
                    "If use continues as in the time shown. Unknown where that was not read from its beginning, or the"
                    " plan has begun anew since. The month is the calendar's, in UTC. More than a year is not written.",
                    Column(
                        title="At the month's end",
                        expr=of_read(_MONTHS_END),
                        unit="percentunit",
                        decimals=0,
                        limits=(0.9, 1),
                    ),
                    Column(
                        title="Used up in", expr=of_read(_USED_UP), unit="s", limits=(7 * DAY_SECONDS, 3 * DAY_SECONDS)
                    ),
                    do="Above 100 %, or used up before your plan begins anew: find the workflow that costs most, or"
                    " book more.",
                    labels=(("source", "Source"), ("kind", "Kind")),
                    width=12,
                ),
                rows(
                    "What costs most",
                    "Runs that ended in the time shown, where the platform reports it. A row leads to its workflow.",
                    Column(
                        title="Operations",
                        expr=worst(named(f"{by_workflow(increase(c.RUN_OPERATIONS, RANGE))} > 0"), number=100),
                        decimals=0,
                    ),
                    Column(
                        title="Bytes moved",
                        expr=worst(named(f"{by_workflow(increase(c.RUN_TRANSFER, RANGE))} > 0"), number=100),
                        unit="bytes",
                    ),
                    Column(
                        title="Time run",
                        expr=worst(
                            named(f"{by_workflow(increase(c.RUN_DURATION, RANGE, part='_sum'))} > 0"), number=100
                        ),
                        unit="s",
                    ),
                    do="A few workflows are mostly the whole bill: run them less often, or let them do less.",
                    width=24,
                ),
            ),
        ),
    ),
)
