"""What each alert looks at, as PromQL for given objectives. Pure; a function for each, named by what is so then."""

import re

from exporter.alerting.promql import (
    API_QUOTA_REMAINING,
    CLOCK_OFFSET,
    CURSOR_LAG,
    SOURCE,
    WORKFLOW,
    by_objective,
    indented,
    named,
    own,
    quoted,
    seconds,
    select,
    shown,
)
from exporter.alerting.recording import (
    FAILURES,
    PAGE,
    PER_HOUR,
    RATIO,
    RUNS,
    TICKET,
    USUAL,
    Burn,
    enough,
    half_counted,
    over,
    total,
)
from exporter.config.objectives import SloConfig
from exporter.model import FAILED, Result, catalogue
from exporter.model.rails import GateState
from exporter.platform import StreamName

#: Retries whose end is known, below which a share of failures says nothing.
RETRIES_MIN = 5
#: Two clocks that differ by more than this (seconds): one of them is wrong.
CLOCK_OFFSET_MAX = 60.0
#: Webhooks that tell of fewer runs than this are not to be relied on.
WEBHOOK_RATIO = 0.9
#: Streams whose data are missed when they are not read.
WORK = ",".join(f'stream!="{name}"' for name in StreamName if not name.is_work)
#: Runs an hour up to which a workflow runs rarely: once an hour is among it, whatever the minute.
RARE = 1.2
#: Seconds after which a failure of what runs rarely is no news any more, though no run has succeeded since: a week, and
#: a day for the weekly run to end.
RARE_FOR = 8 * 86400

# Workflows


def budget_burns_fast(slo: SloConfig) -> str:
    return _burning(slo, PAGE)


def budget_burns_slowly(slo: SloConfig) -> str:
    return _burning(slo, TICKET)


def _burning(slo: SloConfig, burns: tuple[Burn, ...]) -> str:
    """Sources that burn in both windows of one pair. An override for a whole source is an objective of its own."""
    own_source = dict[str, tuple[float, int]]()
    for those, o in slo.exceptions():
        if (
            (source := those.whole_source) is not None
            and source not in own_source
            and (o.success_ratio or o.events_min)
        ):
            own_source[source] = o.success_ratio or slo.success_ratio, o.events_min or slo.events_min
    rest = f"source!~{quoted('|'.join(map(re.escape, own_source)))}" if own_source else None
    parts = [_burning_source(slo, burns, slo.success_ratio, slo.events_min, rest)]
    parts += [
        _burning_source(slo, burns, ratio, events, f"source={quoted(source)}")
        for source, (ratio, events) in own_source.items()
    ]
    return "\nor\n".join(parts)


def _burning_source(
    slo: SloConfig, burns: tuple[Burn, ...], success_ratio: float, events: int, matcher: str | None
) -> str:
    matchers = () if matcher is None else (matcher,)
    parts = []
    for burn in burns:
        limit = f"{burn.ratio(slo, success_ratio):.6g}"
        parts.append(
            f"{select(RATIO + burn.long, slo, *matchers)} > {limit}\n"
            f"and {select(RATIO + burn.short, slo, *matchers)} > {limit}\n"
            f"and {enough('source', slo, burn.long, events)}"
        )
    return "\nor\n".join(f"(\n{indented(part)}\n)" for part in parts)


def workflow_fails_in_a_row(slo: SloConfig) -> str:
    """So many failures in a row; fewer where the workflow runs rarely, as far as that is known."""
    gauge = shown(catalogue.WORKFLOW_FAILURES.name, slo)
    results = f"result=~{quoted('|'.join(r for r in Result if r in FAILED))}"
    failed = f"max without (instance, pod, result) ({select(catalogue.WORKFLOW_LAST_RUN.name, slo, results)})"
    row = by_objective(slo, "consecutive_failures", lambda limit: f"{gauge} >= {limit:g}")
    first = by_objective(slo, "rare_failures", lambda limit: f"{gauge} >= {limit:g}")
    rarely = (
        f"{_grouped(first)}\nand on ({WORKFLOW}) last_over_time({select(PER_HOUR, slo)}[6h]) <= {RARE:g}\n"
        f"unless on ({WORKFLOW}) time() - {failed} > {RARE_FOR}"
    )
    return named(f"(\n{indented(_grouped(row))}\n  or\n{indented(_grouped(rarely))}\n)\n{_not_off(slo)}", slo, of=gauge)


def workflow_fails_often(slo: SloConfig) -> str:
    """The pairs of the page, for each workflow that runs often enough for a ratio to mean something."""
    parts = []
    for burn in PAGE:
        long, short = (_workflow_ratio(slo, window) for window in (burn.long, burn.short))

        def burning(ratio: float, burn: Burn = burn, long: str = long, short: str = short) -> str:
            limit = f"{burn.ratio(slo, ratio):.6g}"
            return f"{long} > {limit}\nand {short} > {limit}"

        def often(least: float, burn: Burn = burn) -> str:
            return enough("workflow", slo, burn.long, least)

        ratios, events = by_objective(slo, "success_ratio", burning), by_objective(slo, "events_min", often)
        parts.append(
            f"{ratios}\nand {events}" if not slo.exceptions() else f"{_grouped(ratios)}\nand {_grouped(events)}"
        )
    recently = f"last_over_time({select(f'workflow:{RUNS}', slo)}[{PAGE[-1].long}])"
    return named("\nor\n".join(f"(\n{indented(part)}\n)" for part in parts), slo, of=recently)


def _workflow_ratio(slo: SloConfig, window: str) -> str:
    return f"{over(f'workflow:{FAILURES}', slo, window)}\n  / {over(f'workflow:{RUNS}', slo, window)}"


def workflow_is_overdue(slo: SloConfig) -> str:
    planned = shown(catalogue.WORKFLOW_NEXT_RUN.name, slo)
    late = by_objective(slo, "overdue_after", lambda limit: f"time() - {planned} > {seconds(limit)}")
    return named(f"{_grouped(late)}\n{_could_run(slo)}", slo, of=planned)


def workflow_is_silent(slo: SloConfig) -> str:
    """No run for far longer than usual, where the times between two runs are known and alike.

    Not where the plan says that it takes longer now. A week end, a run that was skipped and a gap in scraping make the
    usual time longer, for some runs.
    """
    last = f"max without (instance, pod, result) ({select(catalogue.WORKFLOW_LAST_RUN.name, slo)})"
    planned = shown(catalogue.WORKFLOW_NEXT_RUN.name, slo)
    usual = f"last_over_time({select(USUAL, slo)}[1h])"

    def silent(factor: float) -> str:
        return f"time() - {last} > on ({WORKFLOW}) group_left () {factor:g} * {usual}"

    return named(
        f"{_grouped(by_objective(slo, 'silent_factor', silent))}\n"
        f"unless on ({WORKFLOW}) ({planned} - time() > on ({WORKFLOW}) group_left () {usual})\n"
        f"unless on ({WORKFLOW}) {half_counted(slo)}\n"
        f"{_could_run(slo)}",
        slo,
        of=last,
    )


def _could_run(slo: SloConfig) -> str:
    """It is on, free to run, and has no run that the next one may be waiting for; and we would know if it had run."""
    return (
        f"{_not_off(slo)}\n"
        f"unless on ({WORKFLOW}) {select(catalogue.WORKFLOW_BLOCKED.name, slo)} == 1\n"
        f"unless on ({WORKFLOW}) {select(catalogue.RUNS_ACTIVE.name, slo)} > 0\n"
        f"{_read(slo)}"
    )


def workflow_is_stuck(slo: SloConfig) -> str:
    oldest = shown(catalogue.RUN_OLDEST_ACTIVE.name, slo)
    long = by_objective(slo, "stuck_after", lambda limit: f"time() - {oldest} > {seconds(limit)}")
    return named(f"{_grouped(long)}\n{_read(slo)}", slo, of=oldest)


def workflow_was_disabled(slo: SloConfig) -> str:
    enabled = shown(catalogue.WORKFLOW_ENABLED.name, slo)
    return named(f"{enabled} == 0\nand max_over_time(({enabled})[1d:15m]) == 1", slo, of=enabled)


def workflow_is_blocked(slo: SloConfig) -> str:
    blocked = shown(catalogue.WORKFLOW_BLOCKED.name, slo)
    return named(f"{blocked} == 1", slo, of=blocked)


def queue_is_nearly_full(slo: SloConfig) -> str:
    items, limit = (shown(metric.name, slo) for metric in (catalogue.QUEUE_ITEMS, catalogue.QUEUE_LIMIT))
    return named(by_objective(slo, "queue_share", lambda share: f"{items} / {limit} > {share:g}"), slo, of=items)


# Dead letters


def dead_letters_grow(slo: SloConfig) -> str:
    """More than six hours ago; than an hour ago where nothing is known of then: it is new, or nobody looked.

    Two looks at few gauges, where increase() would read hours of a counter for every error class.
    """
    gauge = select(catalogue.DEAD_LETTERS.name, slo)
    now, then, later = (_letters(slo, ago) for ago in ("", " offset 6h", " offset 1h"))
    growth = f"{now}\n- ({then} or {later})"
    return named(by_objective(slo, "dead_letter_growth", lambda limit: f"{growth} >= {limit:g}"), slo, of=gauge)


def _letters(slo: SloConfig, ago: str = "") -> str:
    """How many are open of each workflow."""
    shown = f"max without (instance, pod) ({select(catalogue.DEAD_LETTERS.name, slo)}{ago})"
    return f"sum without (error_class) ({shown})"


def dead_letters_are_old(slo: SloConfig) -> str:
    oldest = shown(catalogue.DEAD_LETTER_OLDEST.name, slo)
    old = by_objective(slo, "dead_letter_age", lambda limit: f"time() - {oldest} > {seconds(limit)}")
    return named(f"{_grouped(old)}\n{_read(slo)}", slo, of=oldest)


def dead_letters_expire(slo: SloConfig) -> str:
    expired = total(catalogue.DEAD_LETTERS_RESOLVED, slo, 'by="expired"')
    return named(f"sum without (by) (increase({expired}[1h])) > 0", slo, of=expired)


def dead_letters_are_nearly_full(slo: SloConfig) -> str:
    """No platform tells how much of its storage is used, so it is their number against what the user expects to fit."""
    letters = f"sum without (workflow_id) ({_letters(slo)})"
    return f"{letters} > {slo.queue_share * slo.dead_letters_max:g}"


def dead_letters_are_escalated(slo: SloConfig) -> str:
    """A counter that nobody saw before its first dead letters were counted is news as a whole."""
    told = total(catalogue.RETRY_ESCALATIONS, slo)
    return f"round(increase({told}[1h])) > 0\nor\n({told} > 0 unless last_over_time({told}[1d] offset 1h))"


# Retries


def retry_gates_are_shut(slo: SloConfig) -> str:
    """One that lets a single retry through now and then is still shut."""
    states = f"state=~{quoted('|'.join((GateState.COOLING, GateState.PROBING)))}"
    return f"sum without (state) ({shown(catalogue.RETRY_GATES.name, slo, states)}) > 0"


def retries_wait_for_the_source(slo: SloConfig) -> str:
    return f"{shown(catalogue.RETRY_STORM.name, slo)} == 1"


def retry_budget_is_empty(slo: SloConfig) -> str:
    """Only while something could be retried: a budget that nobody needs may be empty."""
    waiting = f"sum by ({SOURCE}) ({select(catalogue.RETRY_GATES.name, slo)}) > 0"
    return f"{shown(catalogue.RETRY_BUDGET.name, slo)} < 1\nand on ({SOURCE}) {waiting}"


def retries_are_lowered(slo: SloConfig) -> str:
    return f"{shown(catalogue.RETRY_LOWERED.name, slo)} == 1"


def retries_are_held(slo: SloConfig) -> str:
    return shown(catalogue.RETRIES_OPEN.name, slo, 'state="held"') + " > 0"


def retries_are_in_doubt(slo: SloConfig) -> str:
    return shown(catalogue.RETRIES_OPEN.name, slo, 'state="in_doubt"') + " > 0"


def retries_do_not_help(slo: SloConfig) -> str:
    failed, known = (
        f"sum without (outcome) (increase({total(catalogue.RETRIES, slo, outcomes)}[6h]))"
        for outcomes in ('outcome=~"failed|rejected"', 'outcome=~"succeeded|failed|rejected"')
    )
    return f"{failed}\n/ {known} > 0.5\nand round({known}) >= {RETRIES_MIN}"


# Sources


def data_are_incomplete(slo: SloConfig) -> str:
    """The last sweep failed, and none has worked for a while. One unusable item alone does not silence a source.

    Usage is read too rarely for that, and nothing but the alert on it depends on it. What cannot be stored is no fault
    of the source.
    """
    complete = shown(own(lambda o: o.data_complete), slo, WORK)
    success = shown(own(lambda o: o.sweep_success), slo)
    return f"{complete} == 0\nunless time() - {success} <= {seconds(slo.stale_after)}\n{_stored(slo)}"


def data_are_faulty(slo: SloConfig) -> str:
    complete = f"{shown(own(lambda o: o.data_complete), slo)} == 0"
    return f"{complete}\n{_stored(slo)}\nunless\n{_grouped(data_are_incomplete(slo))}"


def reading_is_incomplete(slo: SloConfig) -> str:
    """Sweeps go to their end, and yet something has not been read for a while: a workflow, or most of what there is."""
    lag, complete = (shown(name, slo, WORK) for name in (CURSOR_LAG, own(lambda o: o.data_complete)))
    return (
        f"{lag} > {seconds(slo.stale_after)}\nand on ({SOURCE}, stream) {complete} == 0\n"
        f"unless on ({SOURCE}, stream)\n{_grouped(data_are_incomplete(slo))}"
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


def webhooks_are_lost(slo: SloConfig) -> str:
    """While runs end: the ratio stays what it was when none do."""
    ended = f"increase({total(catalogue.RUNS_OBSERVED, slo)}[1h]) > 0"
    return f"{shown(own(lambda o: o.webhook_reliability), slo)} < {WEBHOOK_RATIO}\nand on ({SOURCE}) {ended}"


def plan_is_nearly_used(slo: SloConfig) -> str:
    used, limit = (shown(metric.name, slo) for metric in (catalogue.USAGE, catalogue.USAGE_LIMIT))
    return f"1 - {used} / {limit} < {slo.quota_share:g}"


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


def store_is_down(slo: SloConfig) -> str:
    return f"{select(own(lambda o: o.store_up), slo)} == 0"


def store_refuses_some(slo: SloConfig) -> str:
    errors = select(own(lambda o: o.store_errors), slo)
    return f"round(sum without (operation) (increase({errors}[15m]))) > 0\n{_stored(slo)}"


def exporter_is_down(slo: SloConfig) -> str:
    up = select("up", slo)
    return f"{up} == 0 or absent({up})"


def _read(slo: SloConfig) -> str:
    """Only while the source can be read, and that be stored: what is old grows older by itself."""
    return f"and on ({SOURCE}) {select(catalogue.SOURCE_UP.name, slo)} == 1\n{_stored(slo)}"


def _stored(slo: SloConfig) -> str:
    """Only while every store works. Where nobody tells, it is taken to."""
    return f"unless on (job) {store_is_down(slo)}"


def _not_off(slo: SloConfig) -> str:
    """What is off neither starts nor fails. Where nobody tells, it is taken to be on."""
    return f"unless on ({WORKFLOW}) {select(catalogue.WORKFLOW_ENABLED.name, slo)} == 0"


def _grouped(expr: str) -> str:
    return f"(\n{indented(expr)}\n)" if "\n" in expr else f"({expr})"
