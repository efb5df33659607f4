"""Is something broken, where, and since when."""

from dashboards.generator.panels import Board, bars, graph, rows, stat
from dashboards.generator.queries import (
    DAY,
    FAILURES,
    SUCCESSES,
    SWEPT,
    and_failing,
    by_workflow,
    increase,
    named,
    per_hour,
    select,
    share,
    worst,
)
from exporter.model import catalogue as c

BOARD = Board(
    uid="automation-overview",
    title="Overview",
    description="Is something broken, where, and since when.",
    rows=(
        (
            "Now",
            (
                stat(
                    "Sources down",
                    "Sources whose main listing could not be read in the last sweep.",
                    f"sum(1 - {select(c.SOURCE_UP)})",
                    limits=(1, 2),
                ),
                stat(
                    "Workflows failing",
                    "Workflows whose last run failed.",
                    f"count({select(c.WORKFLOW_FAILURES)} > 0) or vector(0)",
                    limits=(1, 5),
                ),
                stat(
                    "Workflows blocked",
                    "Workflows that the platform keeps from running.",
                    f"count({by_workflow(select(c.WORKFLOW_BLOCKED))} > 0) or vector(0)",
                    limits=(1, 3),
                ),
                stat(
                    "Open dead letters",
                    "Work that a platform gave up on and that a retry could still save.",
                    f"sum({select(c.DEAD_LETTERS)}) or vector(0)",
                    limits=(1, 100),
                ),
                stat(
                    "Failed, 24 h",
                    "Share of the runs finished in the last day that failed.",
                    share(c.RUNS, DAY, FAILURES),
                    unit="percentunit",
                    decimals=1,
                    limits=(0.01, 0.05),
                ),
                stat(
                    "Age of the data",
                    "How long ago the stream that is most behind was last read completely.",
                    f"max(time() - {select(SWEPT)})",
                    unit="s",
                    limits=(900, 3600),
                ),
            ),
        ),
        (
            "Where",
            (
                rows(
                    "Failures in a row",
                    "Failed runs since the last success, the worst first. A row leads to its workflow.",
                    worst(named(f"{select(c.WORKFLOW_FAILURES)} > 0")),
                ),
                rows(
                    "Failed runs, 24 h",
                    "Failed runs of the last day. A row leads to its workflow.",
                    worst(named(f"round({by_workflow(increase(c.RUNS, DAY, FAILURES))}) > 0")),
                    decimals=0,
                ),
                rows(
                    "Since the last success",
                    "How long ago a run of each failing workflow last went well. Those that never did are not here.",
                    worst(named(and_failing(f"time() - {by_workflow(select(c.WORKFLOW_LAST_RUN, SUCCESSES))}"))),
                    unit="s",
                ),
            ),
        ),
        (
            "Runs",
            (
                graph(
                    "Finished runs an hour, by result",
                    "Each attempt of a run counts once.",
                    (per_hour(c.RUNS, "result"), "{{result}}"),
                    stacked=True,
                ),
                graph(
                    "Failed runs an hour, by error class",
                    "What they failed of, as far as their platform tells.",
                    (per_hour(c.RUN_ERRORS, "error_class"), "{{error_class}}"),
                    stacked=True,
                ),
                graph(
                    "Unfinished runs",
                    "Runs that wait or are under way.",
                    (f"sum by (source, state) ({select(c.RUNS_ACTIVE)})", "{{source}} {{state}}"),
                ),
            ),
        ),
        (
            "Sources",
            (
                graph(
                    "Age of the data, by source",
                    "How long ago the stream that is most behind was last read completely.",
                    (f"max by (source) (time() - {select(SWEPT)})", "{{source}}"),
                    unit="s",
                ),
                graph(
                    "Open dead letters, by source",
                    "Work that a platform gave up on and that a retry could still save.",
                    (f"sum by (source) ({select(c.DEAD_LETTERS)})", "{{source}}"),
                ),
                bars(
                    "Used of the plan",
                    "Where the platform tells how much the plan allows.",
                    f"{select(c.USAGE)} / ({select(c.USAGE_LIMIT)} > 0)",
                    "{{source}} {{kind}}",
                    unit="percentunit",
                    limits=(0.8, 0.95),
                ),
            ),
        ),
    ),
)
