"""One workflow: does it run, how long does it take, what does it leave behind."""

from dashboards.generator.panels import WORKFLOW_UID, Board, graph, query_variable, rows, stat
from dashboards.generator.queries import (
    FAILURES,
    RANGE,
    SOURCE,
    SUCCESSES,
    WORKFLOW,
    increase,
    per_hour,
    quantile,
    rate,
    read,
    select,
    share,
    told,
)
from exporter.model import catalogue as c

BOARD = Board(
    uid=WORKFLOW_UID,
    title="Workflow",
    description="One workflow: does it run, how long does it take, what does it leave behind. Workflows of one name "
    "are shown together.",
    variables=(
        query_variable("workflow", "Workflow", f"label_values({c.WORKFLOW_INFO.name}{{{SOURCE}}}, workflow)"),
        query_variable(
            "workflow_id",
            "Its identifiers",
            f'label_values({c.WORKFLOW_INFO.name}{{{SOURCE}, workflow="$workflow"}}, workflow_id)',
            hidden=True,
        ),
    ),
    rows=(
        (
            "Now",
            (
                stat(
                    "Switched on",
                    "Whether the workflow is switched on.",
                    f"min({select(c.WORKFLOW_ENABLED, of=WORKFLOW)})",
                    unit="bool_yes_no",
                    do="If nobody switched it off on purpose, the platform did: look there for the reason.",
                ),
                stat(
                    "Failures in a row",
                    "Failed runs since the last successful one.",
                    told(f"max({select(c.WORKFLOW_FAILURES, of=WORKFLOW)})"),
                    limits=(1, 3),
                    do="Look at the error classes below, and at the newest run on the platform.",
                ),
                stat(
                    "Finished runs",
                    "In the time shown, each attempt once.",
                    f"round(sum({increase(c.RUNS, RANGE, of=WORKFLOW)}))",
                    do="If it is far from usual, look at its schedule or at what starts it.",
                ),
                stat(
                    "Failed",
                    "Share of the runs finished in the time shown that failed.",
                    read(share(c.RUNS, RANGE, FAILURES, of=WORKFLOW)),
                    unit="percentunit",
                    decimals=1,
                    limits=(0.01, 0.05),
                    do="Compare with the objective; the graphs below show when it began.",
                ),
                stat(
                    "Open dead letters",
                    "Work that the platform gave up on and that a retry could still save.",
                    told(f"sum({select(c.DEAD_LETTERS, of=WORKFLOW)})"),
                    limits=(1, 10),
                    do="See on the status page what is decided about them.",
                ),
                stat(
                    "Next run",
                    "When the platform plans the next run. Empty where it does not report it, or plans none.",
                    f"1000 * min({select(c.WORKFLOW_NEXT_RUN, of=WORKFLOW)})",
                    unit="dateTimeFromNow",
                    do="If it is in the past, the platform is late: look at its scheduler.",
                ),
            ),
        ),
        (
            "Runs",
            (
                graph(
                    "Finished runs an hour, by result",
                    "Each attempt of a run counts once.",
                    (per_hour(c.RUNS, "result", of=WORKFLOW), "{{result}}"),
                    stacked=True,
                    do="A gap where there were runs before: something no longer starts it.",
                ),
                graph(
                    "Duration of successful runs",
                    "From start to end. A dot leads to the trace of that run, where Prometheus keeps exemplars.",
                    (quantile(0.5, c.RUN_DURATION, "", SUCCESSES, of=WORKFLOW), "half of them"),
                    (quantile(0.95, c.RUN_DURATION, "", SUCCESSES, of=WORKFLOW), "95 %"),
                    unit="s",
                    exemplars=True,
                    do="If it grows, look at a trace for the step that takes longer.",
                ),
                rows(
                    "Last ended",
                    "How long ago a run last ended with each result.",
                    f"time() - max by (source, result) ({select(c.WORKFLOW_LAST_RUN, of=WORKFLOW)})",
                    labels=(("source", "Source"), ("result", "Result")),
                    unit="s",
                    do="Compare success with failure: the shorter time is how it is now.",
                ),
                graph(
                    "Failed runs an hour, by error class",
                    "Why they failed, as far as the platform reports it.",
                    (per_hour(c.RUN_ERRORS, "error_class", of=WORKFLOW), "{{error_class}}"),
                    stacked=True,
                    do="network, timeout and throttled mostly pass by themselves; the others need a person.",
                ),
                graph(
                    "Unfinished runs",
                    "Runs that wait or are under way.",
                    (f"sum by (state) ({select(c.RUNS_ACTIVE, of=WORKFLOW)})", "{{state}}"),
                    do="If what waits only grows, runs come faster than they end.",
                ),
                graph(
                    "Age of the oldest unfinished run",
                    "How long it has waited, or been under way.",
                    (f"time() - min by (state) ({select(c.RUN_OLDEST_ACTIVE, of=WORKFLOW)})", "{{state}}"),
                    unit="s",
                    do="If it is far longer than a run usually takes, look whether that run hangs, and stop it.",
                ),
            ),
        ),
        (
            "What it leaves behind",
            (
                graph(
                    "Open dead letters, by error class",
                    "Work that the platform gave up on and that a retry could still save.",
                    (f"sum by (error_class) ({select(c.DEAD_LETTERS, of=WORKFLOW)})", "{{error_class}}"),
                    stacked=True,
                    do="One class is mostly one trouble: repair it, then retry the group.",
                ),
                graph(
                    "Dead letters opened and resolved an hour",
                    "What came, and what went by whose doing.",
                    (per_hour(c.DEAD_LETTERS_OPENED, "job", of=WORKFLOW), "opened"),
                    (per_hour(c.DEAD_LETTERS_RESOLVED, "by", of=WORKFLOW), "resolved: {{by}}"),
                    do="expired means lost: deal with them earlier.",
                ),
                graph(
                    "Age of the oldest dead letter",
                    "How long it has been open.",
                    (f"time() - min({select(c.DEAD_LETTER_OLDEST, of=WORKFLOW)})", "oldest"),
                    unit="s",
                    do="Some platforms delete what is too old. Decide on it before they do.",
                ),
            ),
        ),
        (
            "What it costs",
            (
                graph(
                    "Operations an hour",
                    "As the platform bills them, where it reports them.",
                    (per_hour(c.RUN_OPERATIONS, "source", of=WORKFLOW), "{{source}}"),
                    do="If it rises and the runs do not, a run does more than before.",
                ),
                graph(
                    "Bytes moved a second",
                    "Where the platform reports it.",
                    (f"sum by (direction) ({rate(c.RUN_TRANSFER, of=WORKFLOW)})", "{{direction}}"),
                    unit="Bps",
                    do="If it rises and the runs do not, the data grew.",
                ),
                graph(
                    "Input queue",
                    "Items that wait in front of the workflow, and how many may.",
                    (f"sum({select(c.QUEUE_ITEMS, of=WORKFLOW)})", "waiting"),
                    (f"sum({select(c.QUEUE_LIMIT, of=WORKFLOW)})", "limit"),
                    do="When it is full the platform refuses what comes: let it run more often.",
                ),
                graph(
                    "Wait before the start",
                    "From being queued to the start, where the platform gives both.",
                    (quantile(0.95, c.RUN_QUEUE_DURATION, of=WORKFLOW), "95 %"),
                    unit="s",
                    do="If it grows, the platform or its workers are short of room.",
                ),
                graph(
                    "Finished steps an hour",
                    "By kind and result, where steps are known.",
                    (per_hour(c.STEPS, "step_type, result", of=WORKFLOW), "{{step_type}} {{result}}"),
                    width=16,
                    do="See which step fails; its name is on the platform.",
                ),
            ),
        ),
    ),
)
