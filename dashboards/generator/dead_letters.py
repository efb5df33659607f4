"""What rots, what is being done about it and why, and what came of it."""

from dashboards.generator.panels import Board, graph, rows, stat
from dashboards.generator.queries import (
    DAY,
    by_workflow,
    increase,
    mean,
    named,
    per_hour,
    quantile,
    select,
    share,
    worst,
)
from exporter.model import catalogue as c

#: Resolved without a person's doing: by a retry of ours, by the platform, or by a later success.
UNAIDED = 'by=~"retry|platform|superseded"'

BOARD = Board(
    uid="automation-dead-letters",
    title="Dead letters and retries",
    description="What rots, what is being done about it and why, and what came of it.",
    rows=(
        (
            "Now",
            (
                stat(
                    "Open dead letters",
                    "Work that a platform gave up on and that a retry could still save.",
                    f"sum({select(c.DEAD_LETTERS)}) or vector(0)",
                    limits=(1, 100),
                ),
                stat(
                    "Groups",
                    "Groups of open dead letters: what shares workflow, error class and error fingerprint is mostly one"
                    " trouble.",
                    f"sum({select(c.DEAD_LETTER_GROUPS)})",
                ),
                stat(
                    "Oldest",
                    "How long the oldest dead letter has been open.",
                    f"max(time() - {select(c.DEAD_LETTER_OLDEST)})",
                    unit="s",
                    limits=(86400, 604800),
                ),
                stat(
                    "Opened, 24 h",
                    "Dead letters opened in the last day.",
                    f"round(sum({increase(c.DEAD_LETTERS_OPENED, DAY)}))",
                ),
                stat(
                    "Resolved, 24 h",
                    "Dead letters resolved in the last day, whatever resolved them.",
                    f"round(sum({increase(c.DEAD_LETTERS_RESOLVED, DAY)}))",
                ),
                stat(
                    "Mean time to resolution, 24 h",
                    "From the opening of a dead letter to its resolution, of those resolved in the last day.",
                    mean(c.DEAD_LETTER_RESOLUTION, DAY),
                    unit="s",
                ),
                stat(
                    "Without a person, 24 h",
                    "Share of those resolved in the last day that a retry, the platform or a later success resolved.",
                    share(c.DEAD_LETTERS_RESOLVED, DAY, UNAIDED),
                    unit="percentunit",
                    decimals=0,
                ),
            ),
        ),
        (
            "Dead letters",
            (
                graph(
                    "Open, by error class",
                    "What they failed of.",
                    (f"sum by (error_class) ({select(c.DEAD_LETTERS)})", "{{error_class}}"),
                    stacked=True,
                ),
                graph(
                    "Opened and resolved an hour",
                    "What came, and what went by whose doing.",
                    (per_hour(c.DEAD_LETTERS_OPENED, "job"), "opened"),
                    (per_hour(c.DEAD_LETTERS_RESOLVED, "by"), "resolved: {{by}}"),
                ),
                graph(
                    "Time to resolution",
                    "Nine of ten dead letters were resolved within this time, by what resolved them.",
                    (quantile(0.9, c.DEAD_LETTER_RESOLUTION, "by"), "{{by}}"),
                    unit="s",
                ),
                rows(
                    "Most open",
                    "Open dead letters of each workflow. A row leads to its workflow.",
                    worst(named(f"{by_workflow(select(c.DEAD_LETTERS))} > 0")),
                ),
                rows(
                    "Oldest open",
                    "Age of the oldest dead letter of each workflow. A row leads to its workflow.",
                    worst(named(f"time() - {by_workflow(select(c.DEAD_LETTER_OLDEST))}")),
                    unit="s",
                ),
                rows(
                    "Resolved, 24 h, by",
                    "What resolved the dead letters of the last day.",
                    f"round(sum by (source, by) ({increase(c.DEAD_LETTERS_RESOLVED, DAY)})) > 0",
                    columns=(("source", "Source"), ("by", "By")),
                    decimals=0,
                ),
            ),
        ),
        (
            "Decisions",
            (
                graph(
                    "Decisions an hour",
                    "Counted when a dead letter's decision changes.",
                    (per_hour(c.RETRY_DECISIONS, "decision"), "{{decision}}"),
                ),
                rows(
                    "Decisions and reasons, 24 h",
                    "What was decided in the last day, under which policy and why.",
                    f"round(sum by (policy, decision, reason) ({increase(c.RETRY_DECISIONS, DAY)})) > 0",
                    columns=(("decision", "Decision"), ("reason", "Reason"), ("policy", "Policy")),
                    decimals=0,
                ),
                rows(
                    "Given to a person, 24 h",
                    "Dead letters that came to need a person in the last day, once for each reason.",
                    f"round(sum by (source, policy, reason) ({increase(c.RETRY_ESCALATIONS, DAY)})) > 0",
                    columns=(("reason", "Reason"), ("source", "Source"), ("policy", "Policy")),
                    decimals=0,
                ),
                rows(
                    "Mode",
                    "off sends nothing, shadow shows what it would do, approve waits for a person, enforce acts.",
                    f"max by (source, mode) ({select(c.RETRY_MODE)}) > 0",
                    columns=(("source", "Source"), ("mode", "Mode")),
                ),
            ),
        ),
        (
            "What holds retries back",
            (
                graph(
                    "Gates, by state",
                    "Groups with something to retry. ramping lets through more with each success, probing one at a"
                    " time, cooling none.",
                    (f"sum by (state) ({select(c.RETRY_GATES)})", "{{state}}"),
                    stacked=True,
                ),
                graph(
                    "Budget",
                    "Failed retries each source can afford now; where a budget is configured.",
                    (f"max by (source) ({select(c.RETRY_BUDGET)})", "{{source}}"),
                ),
                graph(
                    "Storm",
                    "1 while so many runs of a source fail that nothing is retried; where a storm guard is configured.",
                    (f"max by (source) ({select(c.RETRY_STORM)})", "{{source}}"),
                ),
                rows(
                    "Gates now",
                    "Groups with something to retry. Where they cool off or are probed, retrying has not helped yet.",
                    f"sum by (state, source, policy) ({select(c.RETRY_GATES)}) > 0",
                    columns=(("state", "State"), ("source", "Source"), ("policy", "Policy")),
                    decimals=0,
                ),
                graph(
                    "Lowered by the exporter",
                    "1 while retries of a source wait for approval because the platform refused them.",
                    (f"max by (source) ({select(c.RETRY_LOWERED)})", "{{source}}"),
                ),
            ),
        ),
        (
            "Retries",
            (
                graph(
                    "Without an outcome so far",
                    "Retries by state. Held ones wait for a person.",
                    (f"sum by (state) ({select(c.RETRIES_OPEN)})", "{{state}}"),
                    stacked=True,
                ),
                graph(
                    "Outcomes an hour",
                    "What became of retries, by what the platform later said. A dot leads to the trace.",
                    (per_hour(c.RETRIES, "outcome"), "{{outcome}}"),
                    exemplars=True,
                    stacked=True,
                ),
                graph(
                    "Would have been sent, an hour",
                    "Retries that the mode kept from being sent, by policy.",
                    (per_hour(c.RETRIES_SHADOW, "policy"), "{{policy}}"),
                ),
                rows(
                    "Outcomes, 24 h",
                    "What became of the retries of each policy in the last day.",
                    f"round(sum by (policy, outcome) ({increase(c.RETRIES, DAY)})) > 0",
                    columns=(("policy", "Policy"), ("outcome", "Outcome")),
                    decimals=0,
                ),
                graph(
                    "Paused",
                    "1 while retries of a source are paused.",
                    (f"max by (source) ({select(c.RETRY_PAUSED)})", "{{source}}"),
                    width=16,
                ),
            ),
        ),
    ),
)
