"""What each alert looks at, as PromQL for given objectives. Pure; a function for each, named by what is so then."""

import re

from exporter.alerting.promql import (
    SOURCE,
    WORKFLOW,
    braced,
    by_objective,
    indented,
    named,
    own,
    quoted,
    read,
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
    TOTAL,
    USUAL,
    Burn,
    enough,
    half_counted,
    over,
    total,
)
from exporter.config.objectives import SloConfig
from exporter.model import FAILED, SUCCEEDED, Result, catalogue
from exporter.model.rails import GateState
from exporter.platform import StreamName

#: Retries whose end is known, below which a share of failures says nothing.
RETRIES_MIN = 5
#: Runs an hour up to which a workflow runs rarely: once an hour is among it, whatever the minute.
RARE = 1.2
#: Runs of a day (or four) that all ended with a warning, below which that is chance.
WARNINGS_MIN = 3
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
            f"and {enough('source', slo, burn.long, events)}\n"
            f"and last_over_time({select(f'source:{RUNS}', slo)}[{burn.half}] offset {burn.half})"
            f"{_of_several(slo, burn) if burns is PAGE else ''}"
        )
    return "\nor\n".join(f"(\n{indented(part)}\n)" for part in parts)


def _of_several(slo: SloConfig, burn: Burn) -> str:
    """One bad workflow is no outage of its source, and has an alert of its own."""
    failing = f"{over(f'workflow:{FAILURES}', slo, burn.long)} > 0"
    return f"\nand on ({SOURCE}) count by ({SOURCE}) ({failing}) >= 2"


def workflow_fails_in_a_row(slo: SloConfig) -> str:
    """So many failures in a row; fewer where the workflow runs rarely, as far as that is known."""
    gauge = shown(catalogue.WORKFLOW_FAILURES.name, slo)
    results = f"result=~{quoted('|'.join(r for r in Result if r in FAILED))}"
    failed = f"max without (instance, pod, result) ({select(catalogue.WORKFLOW_LAST_RUN.name, slo, results)})"
    row = by_objective(slo, "consecutive_failures", lambda limit: f"{gauge} >= {limit:g}")
    first = by_objective(slo, "rare_failures", lambda limit: f"{gauge} >= {limit:g}")
    rarely = (
        f"{braced(first)}\nand on ({WORKFLOW}) last_over_time({select(PER_HOUR, slo)}[6h]) <= {RARE:g}\n"
        f"unless on ({WORKFLOW}) time() - {failed} > {RARE_FOR}"
    )
    return named(f"(\n{indented(braced(row))}\n  or\n{indented(braced(rarely))}\n)\n{_not_off(slo)}", slo, of=gauge)


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
        parts.append(f"{ratios}\nand {events}" if not slo.exceptions() else f"{braced(ratios)}\nand {braced(events)}")
    recently = f"last_over_time({select(f'workflow:{RUNS}', slo)}[{PAGE[-1].long}])"
    return named("\nor\n".join(f"(\n{indented(part)}\n)" for part in parts), slo, of=recently)


def _workflow_ratio(slo: SloConfig, window: str) -> str:
    return f"{over(f'workflow:{FAILURES}', slo, window)}\n  / {over(f'workflow:{RUNS}', slo, window)}"


def workflow_is_overdue(slo: SloConfig) -> str:
    planned = shown(catalogue.WORKFLOW_NEXT_RUN.name, slo)
    late = by_objective(slo, "overdue_after", lambda limit: f"time() - {planned} > {seconds(limit)}")
    return named(f"{braced(late)}\n{_could_run(slo)}", slo, of=planned)


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
        f"{braced(by_objective(slo, 'silent_factor', silent))}\n"
        f"unless on ({WORKFLOW}) ({planned} - time() > on ({WORKFLOW}) group_left () {usual})\n"
        f"unless on ({WORKFLOW}) {half_counted(slo)}\n"
        f"{_could_run(slo)}",
        slo,
        of=last,
    )


def workflow_does_not_succeed(slo: SloConfig) -> str:
    return _nothing_within(slo, "success_within", f"result=~{quoted('|'.join(r for r in Result if r in SUCCEEDED))}")


def workflow_does_not_run(slo: SloConfig) -> str:
    return _nothing_within(slo, "runs_within")


def _nothing_within(slo: SloConfig, key: str, *results: str) -> str:
    """No end of a run (with these results) for so long; none at all, where the workflow has been known for so long.

    Only where successes are counted: of the others nobody knows whether they ran. What is off or blocked has an alert
    of its own.
    """
    info = select(catalogue.WORKFLOW_INFO.name, slo)
    last = f"max without (instance, pod, result) ({select(catalogue.WORKFLOW_LAST_RUN.name, slo, *results)})"
    known = f"group by (job, platform, source, workflow_id) ({info})"

    def nothing(limit: float) -> str:
        then = f"last_over_time({info}[15m] offset {seconds(limit)}s)"
        never = f"({seconds(limit)} * {known}\n  and on ({WORKFLOW}) {then}\n  unless on ({WORKFLOW}) {last})"
        return f"time() - {last} > {seconds(limit)}\nor\n{never}"

    success = f"result={quoted(Result.SUCCESS)}"
    return named(
        f"{braced(by_objective(slo, key, nothing))}\nand on ({WORKFLOW}) {select(catalogue.RUNS.name, slo, success)}\n"
        f"{_not_off(slo)}\nunless on ({WORKFLOW}) {select(catalogue.WORKFLOW_BLOCKED.name, slo)} == 1\n{read(slo)}",
        slo,
        of=known,
    )


def workflow_only_warns(slo: SloConfig) -> str:
    """Every run of a day ended with a warning, or of four days where it runs once a night; ``events_min`` is for ratios
    of busy ones, some runs are enough here.

    Four days are two looks at each counter, where increase() would read all between.
    """
    parts = []
    for counted in ("increase({}[1d])", "({0} - last_over_time({0}[6h] offset 4d))"):
        warned, all_of_them = (
            f"sum without (result) ({counted.format(total(catalogue.RUNS, slo, *these))})"
            for these in ((f"result={quoted(Result.WARNING)}",), ())
        )
        parts.append(f"({warned} >= {WARNINGS_MIN}\nand {warned} >= {all_of_them})")
    return named("\nor\n".join(parts), slo, of=select(TOTAL, slo))


def _could_run(slo: SloConfig) -> str:
    """It is on, free to run, and has no run that the next one may be waiting for; and we would know if it had run."""
    return (
        f"{_not_off(slo)}\n"
        f"unless on ({WORKFLOW}) {select(catalogue.WORKFLOW_BLOCKED.name, slo)} == 1\n"
        f"unless on ({WORKFLOW}) {select(catalogue.RUNS_ACTIVE.name, slo)} > 0\n"
        f"{read(slo)}"
    )


def workflow_is_stuck(slo: SloConfig) -> str:
    oldest = shown(catalogue.RUN_OLDEST_ACTIVE.name, slo)
    long = by_objective(slo, "stuck_after", lambda limit: f"time() - {oldest} > {seconds(limit)}")
    return named(f"{braced(long)}\n{read(slo)}", slo, of=oldest)


def workflow_was_disabled(slo: SloConfig) -> str:
    enabled = shown(catalogue.WORKFLOW_ENABLED.name, slo)
    blocked = f"unless on ({WORKFLOW}) {select(catalogue.WORKFLOW_BLOCKED.name, slo)} == 1"
    return named(f"{enabled} == 0\nand max_over_time(({enabled})[1d:15m]) == 1\n{blocked}", slo, of=enabled)


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
    growth = _growth(slo)
    return named(by_objective(slo, "dead_letter_growth", lambda limit: f"{growth} >= {limit:g}"), slo, of=gauge)


def dead_letters_of_a_source_grow(slo: SloConfig) -> str:
    """A few in each of many workflows. Those count that were known before: what is found at first did not grow."""
    return f"sum without (workflow_id) (\n{indented(_growth(slo))}\n) >= {slo.source_dead_letter_growth}"


def _growth(slo: SloConfig) -> str:
    then, later = (
        f"({_letters(slo, ago)} and on ({SOURCE}) {_read(slo, ago)})" for ago in (" offset 6h", " offset 1h")
    )
    return f"{_letters(slo)}\n- (\n  {then}\n  or {later}\n)"


def _read(slo: SloConfig, ago: str) -> str:
    """Sources whose dead letters had been read to the end then: until they are, a workflow seems to have none."""
    success = own(lambda o: o.sweep_success)
    letters, runs = (
        select(success, slo, f"stream={quoted(name)}") for name in (StreamName.DEAD_LETTERS, StreamName.RUNS)
    )
    return f"({letters}{ago} or ({runs}{ago} unless on ({SOURCE}) {letters}))"


def _letters(slo: SloConfig, ago: str = "") -> str:
    """How many are open of each workflow."""
    shown = f"max without (instance, pod) ({select(catalogue.DEAD_LETTERS.name, slo)}{ago})"
    return f"sum without (error_class) ({shown})"


def dead_letters_are_old(slo: SloConfig) -> str:
    oldest = shown(catalogue.DEAD_LETTER_OLDEST.name, slo)
    old = by_objective(slo, "dead_letter_age", lambda limit: f"time() - {oldest} > {seconds(limit)}")
    return named(f"{braced(old)}\n{read(slo)}", slo, of=oldest)


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


def _not_off(slo: SloConfig) -> str:
    """What is off neither starts nor fails. Where nobody tells, it is taken to be on."""
    return f"unless on ({WORKFLOW}) {select(catalogue.WORKFLOW_ENABLED.name, slo)} == 0"
