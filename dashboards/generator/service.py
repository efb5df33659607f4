"""The exporter itself: does it read everything, at what cost, and how late does it see things."""

from dashboards.generator.panels import Board, graph, rows, stat
from dashboards.generator.queries import (
    BUILD,
    EXPORTER,
    STORE_UP,
    SWEPT,
    UP,
    of_exporter,
    per_hour,
    quantile,
    rate,
    select,
)
from exporter.alerting.promql import API_QUOTA_REMAINING, CLOCK_OFFSET, own
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
                    "Whether Prometheus reaches every replica of the exporter.",
                    f"min({UP})",
                    unit="bool_yes_no",
                    limits=(1, 0.5),
                    width=3,
                    do="Start it, or look at Prometheus' page of targets. Until then nothing is known anywhere.",
                ),
                stat(
                    "Version",
                    "Which version runs.",
                    select(BUILD, of=EXPORTER),
                    legend="{{version}}",
                    width=3,
                    do="During an upgrade several are shown; later only one should be.",
                ),
                stat(
                    "Config loaded",
                    "Whether the last load of the config worked. If not, the one before is in force.",
                    f"min({select(RELOADED, of=EXPORTER)})",
                    unit="bool_yes_no",
                    limits=(1, 0.5),
                    width=3,
                    do="Run `automation-exporter check` on the file: it names the line.",
                ),
                stat(
                    "Database takes writes",
                    "Whether the last write was stored, of every replica.",
                    f"min({select(STORE_UP, of=EXPORTER)})",
                    unit="bool_yes_no",
                    limits=(1, 0.5),
                    width=3,
                    do="Look at the disk and at the database; /-/ready says more. Nothing is counted meanwhile.",
                ),
                stat(
                    "Clocks differ",
                    "By how much the exporter's clock and that of a platform differ at most.",
                    f"max(abs({select(CLOCK_OFFSET)}))",
                    unit="s",
                    limits=(10, 60),
                    width=3,
                    do="Set the clock of this machine by NTP; if it is right, the platform's is wrong.",
                ),
                stat(
                    "Incomplete streams",
                    "Streams whose last poll cycle did not read everything.",
                    f"sum(1 - {select(COMPLETE)})",
                    limits=(1, 3),
                    width=3,
                    do="The status page says what could not be read and why.",
                ),
                stat(
                    "Room for series",
                    "Share of the lines allowed that are used. Beyond it, new workflows are shown as one.",
                    f"max({select(SERIES, of=EXPORTER)} / {select(SERIES_LIMIT, of=EXPORTER)})",
                    unit="percentunit",
                    decimals=1,
                    limits=(0.8, 1),
                    width=3,
                    do="Raise limits.series_max, or exclude workflows.",
                ),
                stat(
                    "Traces to come",
                    "Finished runs whose trace is still to be exported.",
                    f"sum({select(PENDING, of=EXPORTER)})",
                    limits=(1000, 10000),
                    width=3,
                    do="If it only grows, the collector does not answer: see Spans.",
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
                    width=6,
                    do="If poll is slow, shorten the poll interval or set up webhooks.",
                ),
                graph(
                    "Until a failure is noticed",
                    "95 of 100 runs were counted within this time after they ended, by source.",
                    (quantile(0.95, c.DETECTION_DELAY, "source"), "{{source}}"),
                    unit="s",
                    width=6,
                    do="If it is more than you can wait, set up webhooks or shorten the poll interval of the source.",
                ),
                graph(
                    "Who saw the end first",
                    "Finished runs a second.",
                    (_sum("via", rate(c.RUNS_OBSERVED)), "{{via}}"),
                    unit="ops",
                    stacked=True,
                    width=6,
                    do="If webhook falls to nothing, webhooks no longer arrive.",
                ),
                graph(
                    "Corrected afterwards",
                    "Finished runs a second that one way of looking had missed, misjudged or seen late.",
                    (_sum("source, kind", rate(c.RECONCILED)), "{{source}} {{kind}}"),
                    unit="ops",
                    width=6,
                    do="If missed_webhook rises, look at the platform's webhook settings.",
                ),
            ),
        ),
        (
            "Poll cycles",
            (
                graph(
                    "Age of the data",
                    "How long ago each stream was last read completely.",
                    (f"time() - max by (source, stream) ({select(SWEPT)})", "{{source}} {{stream}}"),
                    unit="s",
                    do="If a line rises without end, that stream is not read: see the faults.",
                ),
                graph(
                    "Time a poll cycle takes",
                    "Nine of ten poll cycles took no longer.",
                    (quantile(0.9, SWEEP_DURATION, "source, stream"), "{{source}} {{stream}}"),
                    unit="s",
                    do="If it comes near the poll interval, the platform is slow or the request budget too small.",
                ),
                graph(
                    "Faults of poll cycles",
                    "Poll cycles that failed, and parts of an answer that could not be used, a second.",
                    (_sum("source, stream, kind", rate(SWEEP_ERRORS)), "{{source}} {{stream}} {{kind}}"),
                    unit="ops",
                    do="auth: renew the credential. rate_limited: lower budget_share. store: look at the database.",
                ),
            ),
        ),
        (
            "API calls",
            (
                graph(
                    "Requests, by answer",
                    "Requests a second to each platform.",
                    (_sum("source, code", rate(REQUESTS)), "{{source}} {{code}}"),
                    unit="reqps",
                    do="401 and 403: the credential. 429: too many requests. 5xx: the platform.",
                ),
                graph(
                    "Left of the quota",
                    "Requests that could be sent at once now.",
                    (f"min by (source) ({select(API_QUOTA_REMAINING)})", "{{source}}"),
                    do="Near 0 everything waits: raise the budget or lengthen the poll interval.",
                ),
                graph(
                    "Waiting for a turn",
                    "Seconds that requests waited, a second, by what made them wait.",
                    (_sum("source, cause", rate(THROTTLED)), "{{source}} {{cause}}"),
                    do="If it is 1 or more all the time, data get old: give the source a larger budget.",
                ),
                rows(
                    "Requests an hour, by endpoint",
                    "What the budget is spent on.",
                    f"{per_hour(REQUESTS, 'source, endpoint')} > 0",
                    labels=(("source", "Source"), ("endpoint", "Endpoint")),
                    decimals=0,
                    width=24,
                    do="If one endpoint takes most of it, see its setting in the documentation of the platform.",
                ),
            ),
        ),
        (
            "Webhooks",
            (
                graph(
                    "Events, by outcome",
                    "Webhooks received a second.",
                    (_sum("source, outcome", rate(EVENTS)), "{{source}} {{outcome}}"),
                    unit="ops",
                    width=6,
                    do="unauthenticated: the secrets differ. unavailable: the database refuses to store.",
                ),
                graph(
                    "Delay of events",
                    "Nine of ten were stored within this time after they happened.",
                    (quantile(0.9, EVENT_DELAY, "source"), "{{source}}"),
                    unit="s",
                    width=6,
                    do="If it is minutes, the platform sends late, or the clocks differ.",
                ),
                graph(
                    "Reliability",
                    "Share of recently finished runs that a webhook reported.",
                    (f"min by (source) ({select(RELIABILITY)})", "{{source}}"),
                    unit="percentunit",
                    width=6,
                    do="Below 90 % webhooks are lost: look whether they are set up for every workflow.",
                ),
                graph(
                    "Polling slowed down",
                    "How many times longer than configured the poll interval is, because webhooks prove reliable.",
                    (f"max by (source) ({select(SLOWDOWN)})", "{{source}}"),
                    width=6,
                    do="This is wanted: it saves requests, and ends by itself when webhooks are lost.",
                ),
            ),
        ),
        (
            "Store, scrapes, traces",
            (
                graph(
                    "Rows in the ledger",
                    "Rows in the exporter's database, by table.",
                    (f"sum by (table) ({select(ROWS, of=EXPORTER)})", "{{table}}"),
                    do="If it only grows, shorten store.retention.",
                ),
                graph(
                    "Time of a transaction",
                    "99 of 100 took no longer, waiting for their turn included.",
                    (quantile(0.99, COMMIT, "operation", of=EXPORTER), "{{operation}}"),
                    unit="s",
                    do="If it is seconds, the disk or the database is slow.",
                ),
                graph(
                    "Store errors",
                    "Operations a second that the store could not do.",
                    (_sum("instance", rate(STORE_ERRORS, of=EXPORTER)), "{{instance}}"),
                    unit="ops",
                    do="Look at the log and at the disk: what cannot be stored is not counted.",
                ),
                graph(
                    "Series",
                    "Lines of ledger metrics exposed, and how many may be.",
                    (f"sum by (instance) ({select(SERIES, of=EXPORTER)})", "{{instance}}"),
                    (f"min({select(SERIES_LIMIT, of=EXPORTER)})", "limit"),
                    do="When the limit is reached, new workflows are shown as one: raise it.",
                ),
                graph(
                    "Time of a scrape",
                    "99 of 100 were written within this time, by format.",
                    (quantile(0.99, RENDER, "format", of=EXPORTER), "{{format}}"),
                    unit="s",
                    do="If it comes near the scrape timeout, exclude workflows or scrape less often.",
                ),
                graph(
                    "Spans",
                    "Handed to the collector a second, by outcome.",
                    (_sum("outcome", rate(SPANS, of=EXPORTER)), "{{outcome}}"),
                    unit="ops",
                    do="failed and rejected: look at the collector.",
                ),
            ),
        ),
        (
            "Process",
            (
                graph(
                    "CPU",
                    "Cores used.",
                    (_sum("instance", of_exporter(rate("process_cpu_seconds_total", of=EXPORTER))), "{{instance}}"),
                    do="If it stays at 1, the exporter is at its limit: poll less, or share sources among replicas.",
                ),
                graph(
                    "Memory",
                    "Resident memory.",
                    (
                        _sum("instance", of_exporter(select("process_resident_memory_bytes", of=EXPORTER))),
                        "{{instance}}",
                    ),
                    unit="bytes",
                    do="If it grows for days without more workflows, report it.",
                ),
                graph(
                    "Open files",
                    "Open file descriptors.",
                    (_sum("instance", of_exporter(select("process_open_fds", of=EXPORTER))), "{{instance}}"),
                    do="If it grows for days, report it.",
                ),
            ),
        ),
    ),
)
