"""What is open, what is being done about it and why, and what came of it."""

from dashboards.generator.panels import WORKFLOW_COLUMNS, Board, Column, graph, rows, stat
from dashboards.generator.queries import (
    DAY,
    DAY_SECONDS,
    KEY,
    by_workflow,
    counted,
    increase,
    mean,
    named,
    of_workflow,
    per_hour,
    quantile,
    read,
    select,
    share,
    worst,
)
from exporter.model import catalogue as c

#: Resolved without a person's doing: by a retry of ours, by the platform, or by a later success.
UNAIDED = 'by=~"retry|platform|superseded"'
BY_RETRY = 'by="retry"'
OLDEST = f"max(time() - {select(c.DEAD_LETTER_OLDEST)})"
#: Retries whose effect somebody has to find out.
UNSURE = 'state=~"held|in_doubt"'

BOARD = Board(
    uid="automation-dead-letters",
    title="Dead letters and retries",
    description="What is open, what is being done about it and why, and what came of it.",
    rows=(
        (
            "How much is open, and is it dealt with?",
            (
                stat(
                    "Open dead letters",
                    "Work that a platform gave up on and that a retry could still save.",
                    counted(f"sum({select(c.DEAD_LETTERS)})"),
                    do="The table below says in which workflows; the status page says what waits for a person.",
                    limits=(1, 100),
                    width=3,
                ),
                stat(
                    "Groups",
                    "Groups of open dead letters: what shares workflow, error class and error text is mostly one"
                    " trouble.",
                    f"sum({select(c.DEAD_LETTER_GROUPS)})",
                    do="Deal with groups, not with letters: `automation-exporter retries groups`.",
                    width=3,
                ),
                stat(
                    "Oldest",
                    "How long the oldest dead letter has been open.",
                    f"{OLDEST} > {DAY_SECONDS} or {read(OLDEST)}",
                    do="Some platforms delete what is too old. Decide on it before they do.",
                    unit="s",
                    limits=(DAY_SECONDS, 7 * DAY_SECONDS),
                    width=3,
                ),
                stat(
                    "Held or in doubt",
                    "Retries with an unknown outcome (the call may or may not have worked), or that wait for a person.",
                    counted(f"sum({select(c.RETRIES_OPEN, UNSURE)})"),
                    do="Look on the platform what they did; `automation-exporter retries list` names them.",
                    limits=(1, 5),
                    width=3,
                ),
                stat(
                    "Opened, 24 h",
                    "Dead letters opened in the last day.",
                    f"round(sum({increase(c.DEAD_LETTERS_OPENED, DAY)}))",
                    do="If more are opened than resolved, something new is broken.",
                    width=3,
                ),
                stat(
                    "Resolved, 24 h",
                    "Dead letters resolved in the last day, whatever resolved them.",
                    f"round(sum({increase(c.DEAD_LETTERS_RESOLVED, DAY)}))",
                    do="Compare with those opened.",
                    width=3,
                ),
                stat(
                    "Without a person, 24 h",
                    "Share of those resolved in the last day that a retry, the platform or a later success resolved.",
                    read(share(c.DEAD_LETTERS_RESOLVED, DAY, UNAIDED)),
                    do="If it is low, look at Decisions and reasons for what keeps retries from being sent.",
                    unit="percentunit",
                    decimals=0,
                    width=3,
                ),
                stat(
                    "Time to recover, 24 h",
                    "Mean time from the opening of a dead letter to its resolution, of those resolved in the last day.",
                    mean(c.DEAD_LETTER_RESOLUTION, DAY),
                    do="If it is long, approve what waits, or shorten the first backoff of the policy.",
                    unit="s",
                    width=3,
                ),
                rows(
                    "Dead letters, by workflow and error class",
                    "Open dead letters, the most numerous first. A row leads to its workflow.",
                    worst(named(f"sum by ({KEY}, error_class) ({select(c.DEAD_LETTERS)}) > 0", "error_class")),
                    do="A row is mostly one trouble. `automation-exporter retries groups` lists the same with what the"
                    " error says and what you can do.",
                    labels=(*WORKFLOW_COLUMNS, ("error_class", "Error class")),
                    width=12,
                ),
                rows(
                    "Oldest open",
                    "Age of the oldest dead letter of each workflow. A row leads to its workflow.",
                    worst(named(of_workflow(f"time() - {select(c.DEAD_LETTER_OLDEST)}"))),
                    do="What is this old is not retried by itself any more, or not yet: see the decision on the status"
                    " page.",
                    unit="s",
                    width=6,
                ),
                rows(
                    "Groups, by source",
                    "How many different troubles each source has.",
                    Column(title="Groups", expr=f"max by (source) ({select(c.DEAD_LETTER_GROUPS)})", decimals=0),
                    Column(title="Dead letters", expr=f"sum by (source) ({select(c.DEAD_LETTERS)})", decimals=0),
                    do="Many letters in few groups: one repair saves many.",
                    labels=(("source", "Source"),),
                    width=6,
                ),
            ),
        ),
        (
            "What came, and what was recovered?",
            (
                graph(
                    "Open, by error class",
                    "Of what they failed.",
                    (f"sum by (error_class) ({select(c.DEAD_LETTERS)})", "{{error_class}}"),
                    do="auth, permission and validation need a person; the others may pass by themselves.",
                    stacked=True,
                ),
                graph(
                    "Opened and resolved an hour",
                    "What came, and what went and through whom.",
                    (per_hour(c.DEAD_LETTERS_OPENED, "job"), "opened"),
                    (per_hour(c.DEAD_LETTERS_RESOLVED, "by"), "resolved: {{by}}"),
                    do="expired means lost: find out why they were not retried or repaired in time.",
                ),
                graph(
                    "Time to recovery",
                    "Nine of ten dead letters were resolved within this time, by what resolved them.",
                    (quantile(0.9, c.DEAD_LETTER_RESOLUTION, "by"), "{{by}}"),
                    do="If that of retry rises, gates and budgets hold retries back: see below.",
                    unit="s",
                ),
                rows(
                    "Recovered, 24 h",
                    "What resolved the dead letters of the last day: retry, platform and superseded without a person.",
                    f"round(sum by (source, by) ({increase(c.DEAD_LETTERS_RESOLVED, DAY)})) > 0",
                    do="Where manual leads, a policy could take work off people.",
                    labels=(("source", "Source"), ("by", "By")),
                    decimals=0,
                ),
                rows(
                    "Recovered by retries, 24 h",
                    "Workflows whose dead letters a retry resolved in the last day. A row leads to its workflow.",
                    worst(named(f"round({by_workflow(increase(c.DEAD_LETTERS_RESOLVED, DAY, BY_RETRY))}) > 0")),
                    do="A workflow that is here every day has a trouble that retries only hide: repair it.",
                    decimals=0,
                ),
                rows(
                    "Given to a person, 24 h",
                    "Dead letters that came to need a person in the last day, once for each reason.",
                    f"round(sum by (source, policy, reason) ({increase(c.RETRY_ESCALATIONS, DAY)})) > 0",
                    do="Open the status page: What waits for a person.",
                    labels=(("reason", "Reason"), ("source", "Source"), ("policy", "Policy")),
                    decimals=0,
                ),
            ),
        ),
        (
            "What holds retries back?",
            (
                rows(
                    "Retries now, by source",
                    "off sends nothing, shadow shows what it would do, approve waits for a person, enforce acts.",
                    f"max by (source, mode) ({select(c.RETRY_MODE)}) > 0",
                    do="If nothing is retried and the mode is not enforce, this is why: change retries.mode.",
                    labels=(("source", "Source"), ("mode", "Mode")),
                ),
                rows(
                    "Gates now",
                    "Groups with something to retry. open lets all through; ramping lets through more with each"
                    " success, probing one at a time, cooling none.",
                    f"sum by (state, source, policy) ({select(c.RETRY_GATES)}) > 0",
                    do="Where they cool off or are probed, retrying has not helped: repair the cause.",
                    labels=(("state", "State"), ("source", "Source"), ("policy", "Policy")),
                    decimals=0,
                ),
                graph(
                    "Gates, by state",
                    "The same over time.",
                    (f"sum by (state) ({select(c.RETRY_GATES)})", "{{state}}"),
                    do="After a repair, cooling should turn to ramping and then to open.",
                    stacked=True,
                ),
                graph(
                    "Storm",
                    "1 while so many runs of a source fail that nothing is retried; where a storm guard is configured.",
                    (f"max by (source) ({select(c.RETRY_STORM)})", "{{source}}"),
                    do="The source itself is broken: retries go on when its runs succeed again.",
                ),
                graph(
                    "Budget",
                    "Failed retries each source can afford now; where a budget is configured.",
                    (f"max by (source) ({select(c.RETRY_BUDGET)})", "{{source}}"),
                    do="At 0 nothing is retried: most retries fail. Repair the cause, the budget fills by itself.",
                ),
                graph(
                    "Paused, or lowered by the exporter",
                    "1 while retries of a source are paused by a person, or wait for approval because the platform"
                    " refused them.",
                    (f"max by (source) ({select(c.RETRY_PAUSED)})", "{{source}} paused"),
                    (f"max by (source) ({select(c.RETRY_LOWERED)})", "{{source}} lowered"),
                    do="Paused: `automation-exporter retries resume`. Lowered: give the credential the right to retry.",
                ),
            ),
        ),
        (
            "What is decided, and why?",
            (
                graph(
                    "Decisions an hour",
                    "Counted when a dead letter's decision changes.",
                    (per_hour(c.RETRY_DECISIONS, "decision"), "{{decision}}"),
                    do="If hold leads, see the reasons beside it.",
                ),
                rows(
                    "Decisions and reasons, 24 h",
                    "What was decided in the last day, under which policy and why.",
                    f"round(sum by (policy, decision, reason) ({increase(c.RETRY_DECISIONS, DAY)})) > 0",
                    do="`automation-exporter policies explain SOURCE/ID` shows the whole way to one of them.",
                    labels=(("decision", "Decision"), ("reason", "Reason"), ("policy", "Policy")),
                    decimals=0,
                    width=16,
                ),
            ),
        ),
        (
            "What came of retries?",
            (
                graph(
                    "Without an outcome so far",
                    "Retries by state. Held ones wait for a person.",
                    (f"sum by (state) ({select(c.RETRIES_OPEN)})", "{{state}}"),
                    do="If in_doubt stays, look on the platform what the retry did.",
                    stacked=True,
                ),
                graph(
                    "Outcomes an hour",
                    "What became of retries, by what the platform later said. A dot leads to the trace.",
                    (per_hour(c.RETRIES, "outcome"), "{{outcome}}"),
                    do="If most fail, the policy retries what retrying does not help: narrow its match.",
                    exemplars=True,
                    stacked=True,
                ),
                graph(
                    "Would have been sent, an hour",
                    "Retries that the mode kept from being sent, by policy.",
                    (per_hour(c.RETRIES_SHADOW, "policy"), "{{policy}}"),
                    do="If these are what you would have retried by hand, raise the mode.",
                ),
                rows(
                    "Outcomes, 24 h",
                    "What became of the retries of each policy in the last day.",
                    f"round(sum by (policy, outcome) ({increase(c.RETRIES, DAY)})) > 0",
                    do="A policy whose retries mostly fail costs runs and saves nothing: change it.",
                    labels=(("policy", "Policy"), ("outcome", "Outcome")),
                    decimals=0,
                    width=24,
                ),
            ),
        ),
    ),
)
