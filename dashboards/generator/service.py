"""The exporter itself: does it read everything, at what cost, and how late does it see things."""

from dashboards.generator.panels import Board, graph, rows, stat
from dashboards.generator.queries import EXPORTER, SWEPT, per_hour, per_second, quantile, select
from exporter.alerting.promql import API_QUOTA_REMAINING, own
from exporter.model import catalogue as c

SWEEP_DURATION = own(lambda metrics: metrics.sweep_duration)
SWEEP_ERRORS = own(lambda metrics: metrics.sweep_errors)
COMPLETE = own(lambda metrics: metrics.data_complete)
REQUESTS = own(lambda metrics: metrics.api_requests)
THROTTLED = own(lambda metrics: metrics.api_throttled)
EVENTS = own(lambda metrics: metrics.webhook_events)
EVENT_DELAY = own(lambda metrics: metrics.webhook_delay)
RELIABILITY = own(lambda metrics: metrics.webhook_reliability)
SLOWDOWN = own(lambda metrics: metrics.poll_slowdown)
ROWS = own(lambda metrics: metrics.ledger_rows)
COMMIT = own(lambda metrics: metrics.commit_duration)
STORE_ERRORS = own(lambda metrics: metrics.store_errors)
SERIES = own(lambda metrics: metrics.series)
SERIES_LIMIT = own(lambda metrics: metrics.series_limit)
RENDER = own(lambda metrics: metrics.render_duration)
SPANS = own(lambda metrics: metrics.spans)
PENDING = own(lambda metrics: metrics.traces_pending)
BUILD = own(lambda metrics: metrics.build_info)
RELOADED = own(lambda metrics: metrics.reload_successful)


def _sum(by: str, expr: str) -> str:
    return f"sum by ({by}) ({expr})"


BOARD = Board(
    uid="automation-exporter",
    title="Exporter",
    description="The exporter itself: does it read everything, at what cost, and how late does it see things.",
    rows=(
        (
            "Now",
            (
                stat(
                    "Scraped",
                    "Whether Prometheus reaches the exporter.",
                    f"min(up{{{EXPORTER}}})",
                    unit="bool_yes_no",
                    limits=(1, 0.5),
                ),
                stat("Version", "Which version runs.", select(BUILD, of=EXPORTER), legend="{{version}}"),
                stat(
                    "Config loaded",
                    "Whether the last load of the config worked. If not, the one before is in force.",
                    f"min({select(RELOADED, of=EXPORTER)})",
                    unit="bool_yes_no",
                    limits=(1, 0.5),
                ),
                stat(
                    "Incomplete streams",
                    "Streams whose last sweep did not read everything.",
                    f"sum(1 - {select(COMPLETE)})",
                    limits=(1, 3),
                ),
                stat(
                    "Room for series",
                    "Share of the lines allowed that are used. Beyond it, new workflows are shown as one.",
                    f"max({select(SERIES, of=EXPORTER)} / {select(SERIES_LIMIT, of=EXPORTER)})",
                    unit="percentunit",
                    decimals=1,
                    limits=(0.8, 1),
                ),
                stat(
                    "Traces to come",
                    "Finished runs whose trace is still to be exported.",
                    f"sum({select(PENDING, of=EXPORTER)})",
                    limits=(1000, 10000),
                ),
            ),
        ),
        (
            "How late it sees things",
            (
                graph(
                    "From the end of a run to its being counted",
                    "Half of the runs were counted within this time, by who saw the end first.",
                    (quantile(0.5, c.DETECTION_DELAY, "via"), "{{via}}"),
                    unit="s",
                ),
                graph(
                    "Who saw the end first",
                    "Finished runs a second.",
                    (_sum("via", per_second(c.RUNS_OBSERVED)), "{{via}}"),
                    unit="ops",
                    stacked=True,
                ),
                graph(
                    "Corrected afterwards",
                    "Finished runs a second that one way of looking had missed, misjudged or seen late.",
                    (_sum("source, kind", per_second(c.RECONCILED)), "{{source}} {{kind}}"),
                    unit="ops",
                ),
            ),
        ),
        (
            "Sweeps",
            (
                graph(
                    "Age of the data",
                    "How long ago each stream was last read completely.",
                    (f"time() - max by (source, stream) ({select(SWEPT)})", "{{source}} {{stream}}"),
                    unit="s",
                ),
                graph(
                    "Time a sweep takes",
                    "Nine of ten sweeps took no longer.",
                    (quantile(0.9, SWEEP_DURATION, "source, stream"), "{{source}} {{stream}}"),
                    unit="s",
                ),
                graph(
                    "Faults of sweeps",
                    "Failed sweeps and unusable parts of sweeps, a second.",
                    (_sum("source, stream, kind", per_second(SWEEP_ERRORS)), "{{source}} {{stream}} {{kind}}"),
                    unit="ops",
                ),
            ),
        ),
        (
            "API calls",
            (
                graph(
                    "Requests, by answer",
                    "Requests a second to each platform.",
                    (_sum("source, code", per_second(REQUESTS)), "{{source}} {{code}}"),
                    unit="reqps",
                ),
                graph(
                    "Left of the quota",
                    "Requests that could be sent at once now.",
                    (f"min by (source) ({select(API_QUOTA_REMAINING)})", "{{source}}"),
                ),
                graph(
                    "Waiting for a turn",
                    "Seconds that requests waited, a second, by what made them wait.",
                    (_sum("source, cause", per_second(THROTTLED)), "{{source}} {{cause}}"),
                ),
                rows(
                    "Requests an hour, by endpoint",
                    "What the budget is spent on.",
                    f"{per_hour(REQUESTS, 'source, endpoint')} > 0",
                    columns=(("source", "Source"), ("endpoint", "Endpoint")),
                    decimals=0,
                    width=24,
                ),
            ),
        ),
        (
            "Webhooks",
            (
                graph(
                    "Events, by outcome",
                    "Webhooks received a second.",
                    (_sum("source, outcome", per_second(EVENTS)), "{{source}} {{outcome}}"),
                    unit="ops",
                    width=6,
                ),
                graph(
                    "Delay of events",
                    "Nine of ten were stored within this time after they happened.",
                    (quantile(0.9, EVENT_DELAY, "source"), "{{source}}"),
                    unit="s",
                    width=6,
                ),
                graph(
                    "Reliability",
                    "Share of recently finished runs that a webhook reported.",
                    (f"min by (source) ({select(RELIABILITY)})", "{{source}}"),
                    unit="percentunit",
                    width=6,
                ),
                graph(
                    "Polling slowed down",
                    "How many times longer than configured the poll interval is, because webhooks prove reliable.",
                    (f"max by (source) ({select(SLOWDOWN)})", "{{source}}"),
                    width=6,
                ),
            ),
        ),
        (
            "Store, scrapes, traces",
            (
                graph(
                    "Rows in the ledger",
                    "By table.",
                    (f"sum by (table) ({select(ROWS, of=EXPORTER)})", "{{table}}"),
                ),
                graph(
                    "Time of a transaction",
                    "99 of 100 took no longer, waiting for their turn included.",
                    (quantile(0.99, COMMIT, "operation", of=EXPORTER), "{{operation}}"),
                    unit="s",
                ),
                graph(
                    "Store errors",
                    "Operations a second that the store could not do.",
                    (f"sum({per_second(STORE_ERRORS, of=EXPORTER)}) or vector(0)", "errors"),
                    unit="ops",
                ),
                graph(
                    "Series",
                    "Lines of ledger metrics exposed, and how many may be.",
                    (f"sum by (instance) ({select(SERIES, of=EXPORTER)})", "{{instance}}"),
                    (f"min({select(SERIES_LIMIT, of=EXPORTER)})", "limit"),
                ),
                graph(
                    "Time of a scrape",
                    "99 of 100 were written within this time, by format.",
                    (quantile(0.99, RENDER, "format", of=EXPORTER), "{{format}}"),
                    unit="s",
                ),
                graph(
                    "Spans",
                    "Handed to the collector a second, by outcome.",
                    (_sum("outcome", per_second(SPANS, of=EXPORTER)), "{{outcome}}"),
                    unit="ops",
                ),
            ),
        ),
        (
            "Process",
            (
                graph(
                    "CPU",
                    "Cores used.",
                    (_sum("instance", per_second("process_cpu_seconds_total", of=EXPORTER)), "{{instance}}"),
                ),
                graph(
                    "Memory",
                    "Resident memory.",
                    (_sum("instance", select("process_resident_memory_bytes", of=EXPORTER)), "{{instance}}"),
                    unit="bytes",
                ),
                graph(
                    "Open files",
                    "Open file descriptors.",
                    (_sum("instance", select("process_open_fds", of=EXPORTER)), "{{instance}}"),
                ),
            ),
        ),
    ),
)
