"""What the alerts on sources and on the exporter itself look at, as PromQL for given objectives. Pure."""

from exporter.alerting.promql import (
    API_QUOTA_REMAINING,
    CLOCK_OFFSET,
    CURSOR_LAG,
    SOURCE,
    braced,
    indented,
    own,
    seconds,
    select,
    shown,
    stored,
)
from exporter.alerting.recording import total
from exporter.config.objectives import SloConfig
from exporter.model import Unit, catalogue
from exporter.platform import StreamName

#: Two clocks that differ by more than this (seconds): one of them is wrong.
CLOCK_OFFSET_MAX = 60.0
#: Seconds from the end of a run to its being counted, above which a failure is told too late.
DETECTION_MAX = 900.0
#: Runs whose trace waits, above which it is no short outage of a Collector.
TRACES_MAX = 1000
#: Starts within an hour that make a loop.
STARTS_MAX = 3
#: Webhooks that tell of fewer runs than this are not to be relied on.
WEBHOOK_RATIO = 0.9
#: A plan that is used up within so many seconds is worth a word.
USED_UP_WITHIN = 3 * 86400.0
#: Streams whose data are missed when they are not read.
WORK = ",".join(f'stream!="{name}"' for name in StreamName if not name.is_work)

# Sources


def data_are_incomplete(slo: SloConfig) -> str:
    """The last sweep failed, and none has worked for a while. One unusable item alone does not silence a source.

    Usage is read too rarely for that, and nothing but the alert on it depends on it. What cannot be stored is no fault
    of the source.
    """
    complete = shown(own(lambda o: o.data_complete), slo, WORK)
    success = shown(own(lambda o: o.sweep_success), slo)
    return f"{complete} == 0\nunless time() - {success} <= {seconds(slo.stale_after)}\n{stored(slo)}"


def data_are_faulty(slo: SloConfig) -> str:
    complete = f"{shown(own(lambda o: o.data_complete), slo)} == 0"
    return f"{complete}\n{stored(slo)}\nunless\n{braced(data_are_incomplete(slo))}"


def reading_is_incomplete(slo: SloConfig) -> str:
    """Sweeps go to their end, and yet something has not been read for a while: a workflow, or most of what there is."""
    lag, complete = (shown(name, slo, WORK) for name in (CURSOR_LAG, own(lambda o: o.data_complete)))
    return (
        f"{lag} > {seconds(slo.stale_after)}\nand on ({SOURCE}, stream) {complete} == 0\n"
        f"{stored(slo)}\nunless on ({SOURCE}, stream)\n{braced(data_are_incomplete(slo))}"
    )


def credential_is_refused(slo: SloConfig) -> str:
    """Refused within the hour (a refused credential is tried twice an hour at least) and not accepted since.

    One for a source, whatever is read with the credential. The counter of a kind of error is born with the first one,
    which increase() does not see: that is the ``unless``.
    """
    refused = select(own(lambda o: o.sweep_errors), slo, 'kind="auth"')
    complete = select(own(lambda o: o.data_complete), slo)
    return (
        f"group without (instance, pod, stream, kind) (\n  (\n    increase({refused}[1h]) > 0\n    or\n"
        f"    ({refused} unless {refused} offset 1h)\n  )\n"
        f"  and on ({SOURCE}, stream) {complete} == 0\n)"
    )


def source_is_down(slo: SloConfig) -> str:
    """Not reached for some minutes, or no answer but refusals and errors. A refused credential has its own alert.

    A source is said to be down when its main stream cannot be read; others are read more often, and a sweep that is
    refused on its way goes on asking and does not end. So it counts as well that no good answer came for five minutes,
    while bad ones do; or, as the next bad one may take a while, while the last sweep failed or every call waits for the
    end of a pause. What is swept every ten minutes has no answers for five whatever happens.
    """
    down = f"max without (instance, pod) (max_over_time({select(catalogue.SOURCE_UP.name, slo)}[2m])) == 0"
    waits = f"max without (instance, pod) (max_over_time({select(API_QUOTA_REMAINING, slo)}[3m])) < 1"
    swept = select(f"{own(lambda o: o.sweep_duration)}_count", slo)
    failed = (
        f"(group without (instance, pod, stream) ({select(own(lambda o: o.data_complete), slo)} == 0)\n"
        f"          and on ({SOURCE}) max by ({SOURCE}) (increase({swept}[10m])) > 1.5)"
    )
    requests = own(lambda o: o.api_requests)
    bad, good = (select(requests, slo, f'code{sign}"[123].."') for sign in ("!~", "=~"))
    by = "sum by (job, platform, source)"
    lately = f"{by} (increase({bad}[3m])) > 0"
    refused = f"{by} (increase({bad}[15m]) > 0 or ({bad} unless {bad} offset 15m))"
    return (
        f"(\n  {down}\n  or\n  (\n    (\n      {lately}\n      or\n      (\n        ({failed} or {waits})\n"
        f"        and {refused}\n      )\n    )\n    unless {by} (increase({good}[5m])) > 0\n  )\n)\n{stored(slo)}\n"
        f"unless on ({SOURCE}) (\n{indented(credential_is_refused(slo))}\n)"
    )


def failures_are_seen_late(slo: SloConfig) -> str:
    buckets = select(f"{catalogue.DETECTION_DELAY.name}_bucket", slo)
    by = "job, platform, source, le"
    return f"histogram_quantile(0.95, sum by ({by}) (rate({buckets}[1h]))) > {DETECTION_MAX:g}"


def webhooks_are_lost(slo: SloConfig) -> str:
    """While runs end: the ratio stays what it was when none do."""
    ended = f"increase({total(catalogue.RUNS_OBSERVED, slo)}[1h]) > 0"
    return f"{shown(own(lambda o: o.webhook_reliability), slo)} < {WEBHOOK_RATIO}\nand on ({SOURCE}) {ended}"


def _plans(slo: SloConfig) -> list[tuple[str, str]]:
    """What is used of plans, and what they allow, as selectors: a pair for each unit."""
    return [(select(catalogue.USED[unit].name, slo), select(catalogue.ALLOWED[unit].name, slo)) for unit in Unit]


def plan_is_nearly_used(slo: SloConfig) -> str:
    shares = (f"1 - {_whoever(used)} / {_whoever(limit)} < {slo.quota_share:g}" for used, limit in _plans(slo))
    return "\nor\n".join(shares)


def plan_is_used_up_soon(slo: SloConfig) -> str:
    """In so many seconds at the pace of the last day. There is none on the first day of a period or of a Prometheus."""
    parts = []
    for used, limit in _plans(slo):
        a_day = f"({_whoever(used)} - {_whoever(f'last_over_time({used}[1h] offset 1d)')} > 0)"
        left = f"clamp_min({_whoever(limit)} - {_whoever(used)}, 0)"
        parts.append(f"86400 * {left}\n/ {a_day} < {seconds(USED_UP_WITHIN)}")
    return "\nor\n".join(parts)


def _whoever(series: str) -> str:
    return f"max without (instance, pod) ({series})"


def api_budget_is_short(slo: SloConfig) -> str:
    """What could be sent at once, against the most there was within a day: the configured share, whatever it is."""
    remaining = select(API_QUOTA_REMAINING, slo)
    now, most = (
        f"max without (instance, pod) ({f}_over_time({remaining}[{window}]))"
        for f, window in (("avg", "15m"), ("max", "1d"))
    )
    return f"{now}\n/ {most} < {slo.quota_share:g}"


# The exporter


def clocks_differ(slo: SloConfig) -> str:
    return f"max without (instance, pod) (abs({select(CLOCK_OFFSET, slo)})) > {seconds(CLOCK_OFFSET_MAX)}"


def series_are_folded(slo: SloConfig) -> str:
    return f"round(sum without (instance, pod) (increase({select(own(lambda o: o.series_folded), slo)}[1d]))) > 0"


def store_refuses_some(slo: SloConfig) -> str:
    errors = select(own(lambda o: o.store_errors), slo)
    return f"round(sum without (operation) (increase({errors}[15m]))) > 0\n{stored(slo)}"


def config_was_refused(slo: SloConfig) -> str:
    loaded = select(own(lambda o: o.reload_timestamp), slo)  # one without a config before it does not run
    return f"{select(own(lambda o: o.reload_successful), slo)} == 0\nand {loaded} > 0"


def traces_pile_up(slo: SloConfig) -> str:
    """Never fewer for half an hour, and more than before."""
    pending = select(own(lambda o: o.traces_pending), slo)
    return f"min_over_time({pending}[30m]) > {TRACES_MAX}\nand delta({pending}[30m]) >= 0"


def exporter_restarts(slo: SloConfig) -> str:
    return f"changes({select('process_start_time_seconds', slo)}[1h]) >= {STARTS_MAX}"


def exporter_is_down(slo: SloConfig) -> str:
    """No replica is left: while one is, it takes over what the others held."""
    up = select("up", slo)
    return f"max without (instance, pod) ({up}) == 0 or absent({up})"
