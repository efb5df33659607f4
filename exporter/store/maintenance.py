"""Keeping the ledger bounded: what is past retention is expired or pruned. A tally never changes by it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import inf

from msgspec.structs import replace

from exporter.model import FAILED, Change, Heard, ResolvedBy, Run, catalogue
from exporter.model.fold import Baseline, DeadLetterEntry, fold_dead_letter, resolve
from exporter.model.ledger import Committed, Forgotten, Key
from exporter.model.retries import Retry
from exporter.model.tallies import SUM, Tallies, tally
from exporter.store import codec
from exporter.store.ingest import read_on
from exporter.store.retries import retry_of
from exporter.store.rows import add_tallies
from exporter.store.script import Script, chunks, flat, insert, select_in

#: Rows pruned in one transaction, so that webhooks never wait long for the store.
PRUNED_ROWS_MAX = 2000
#: How far (seconds) the judgement of webhooks may be ahead of the platform's clock: clocks differ a little.
JUDGED_AHEAD_MAX = 600.0
#: What the webhooks of a workflow have been seen to report, as the cursors keep it: all ends, or failures only.
_REPORTS_ALL, _REPORTS_FAILURES = '"all"', '"failures"'
_TABLES = ("sources", "workflows", "runs", "dead_letters", "traces", "tallies", "cursors", "retries", "audit")


class Pruned(Committed, kw_only=True):
    """What one step of pruning did; what expired is among the dead letters it altered."""

    pruned_runs: int
    pruned_dead_letters: int

    @property
    def is_full(self) -> bool:
        """Whether there may be more to prune."""
        return max(self.pruned_runs, self.pruned_dead_letters, len(self.dead_letters)) >= PRUNED_ROWS_MAX


class Judged(Committed, kw_only=True):
    """How many runs a webhook reported, how many none did, and of how many of these one was to be expected."""

    reported: int
    missed: int
    lost: int


@dataclass(slots=True, kw_only=True)
class Maintained:
    """What one round of maintenance did, and how many rows each table has now."""

    pruned_runs: int = 0
    pruned_dead_letters: int = 0
    expired: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    forgotten_until: float | None = None  # the latest of the sources' horizons; None: nothing was to be forgotten


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingTrace:
    """A counted run, or a closed retry, whose trace is still to be exported."""

    source: str
    of: Run | Retry
    dead_letter_id: str | None = None
    made_by: Retry | None = None  # the retry of ours that made the run

    @property
    def key(self) -> tuple[str, str, int]:
        """Its place in the outbox."""
        match self.of:
            case Run(id=run_id, attempt=attempt):
                return self.source, run_id, attempt
            case Retry(id=retry_id):
                return self.source, f"retry:{retry_id}", 0


def ping() -> Script[None]:
    yield "SELECT 1", ()


def reach(*, now: float, retention: float, clocks: Mapping[str, float | None]) -> Script[dict[str, float]]:
    """Up to when each source is to be forgotten. How far that is, is remembered: what ended before may have been
    counted, whatever the retention.

    It follows the platform's clock (``clocks`` by source; ours for others; None: nobody knows it, nothing is forgotten)
    and never runs ahead of what was read: a clock that is wrong for a minute must not cost what was kept for months.
    """
    horizons: dict[str, float] = {}
    for source, pruned, read in (yield "SELECT source, pruned_until, read_until FROM sources", ()):
        theirs = clocks.get(source, now)
        if theirs is None:
            continue
        known = Forgotten(pruned_until=pruned, read_until=read)
        known = yield from read_on(source, known, newest=0.0, now=theirs if source in clocks else inf)
        horizons[source] = horizon = known.horizon(retention, theirs)
        sql = "UPDATE sources SET pruned_until = $2 WHERE source = $1 AND pruned_until < $2"
        yield sql, (source, horizon)
    return horizons


def prune(horizons: Mapping[str, float], *, retention: float, expiring: Collection[str]) -> Script[Pruned]:
    """Expire what nobody resolved before its source's horizon, forget what finished before.

    In ``expiring`` sources everything expires; elsewhere only runs that would be run again, which no platform holds as
    dead letters.
    """
    runs = letters = 0
    expired: dict[Key, DeadLetterEntry] = {}
    tallies: Tallies = {}
    for source, horizon in horizons.items():
        room, everything = PRUNED_ROWS_MAX - len(expired), source in expiring
        expired |= yield from _expire(
            source, horizon, at=horizon + retention, everything=everything, limit=room, into=tallies
        )
        gone = yield (
            f"""DELETE FROM runs WHERE (source, run_id) IN (SELECT source, run_id FROM runs
                WHERE source = $1 AND state = 'finished' AND finished_at < $2 LIMIT {PRUNED_ROWS_MAX - runs})
                RETURNING 1""",
            (source, horizon),
        )
        runs += len(gone)
        gone = yield (
            f"""DELETE FROM dead_letters WHERE (source, dead_letter_id) IN (SELECT source, dead_letter_id
                FROM dead_letters WHERE source = $1 AND resolved_at < $2 LIMIT {PRUNED_ROWS_MAX - letters})
                RETURNING 1""",
            (source, horizon),
        )
        letters += len(gone)
        yield "DELETE FROM traces WHERE source = $1 AND counted_at < $2", (source, horizon)
    yield from add_tallies(tallies)
    return Pruned(pruned_runs=runs, pruned_dead_letters=letters, dead_letters=expired, tallies=tallies)


def _expire(
    source: str, horizon: float, *, at: float, everything: bool, limit: int, into: Tallies
) -> Script[dict[Key, DeadLetterEntry]]:
    """Close the dead letters that opened before the horizon, all or those that begin anew, and count that."""
    expired: dict[Key, DeadLetterEntry] = {}
    which = "" if everything else "AND reruns = 1"
    rows = yield (
        f"""SELECT {codec.DEAD_LETTER_COLUMNS} FROM dead_letters
            WHERE resolved_at IS NULL AND source = $1 AND opened_at < $2 {which} LIMIT {int(limit)}""",
        (source, horizon),
    )
    for row in rows:
        _, entry = codec.dead_letter_entry(row)
        claim = resolve(entry.dead_letter, by=ResolvedBy.EXPIRED, at=at)
        after, changes = fold_dead_letter(entry, claim, baseline=Baseline(first_sweep_at=horizon))
        resolved: list[Change] = list(changes)
        tally(resolved, source=source, into=into)
        expired[source, after.dead_letter.id] = after
    yield from insert(
        "dead_letters",
        codec.DEAD_LETTER_COLUMNS,
        [codec.dead_letter_row(source, entry) for (source, _), entry in expired.items()],
        conflict="(source, dead_letter_id) DO UPDATE SET resolved_at = excluded.resolved_at, data = excluded.data",
    )
    return expired


def count_rows() -> Script[dict[str, int]]:
    """How many rows each table has."""
    counts: dict[str, int] = {}
    for table in _TABLES:
        rows = yield f"SELECT count(*) FROM {table}", ()
        counts[table] = rows[0][0]
    return counts


def judge_webhooks(source: str, *, until: float) -> Script[Judged]:
    """Count which runs counted up to ``until`` and not judged before a webhook reported.

    A webhook was to be expected where one has ever reported such a run of the workflow: many send none, or none but
    those of failures.
    """
    key = (source, "webhook", "judged_until")
    rows = yield "SELECT value FROM cursors WHERE source = $1 AND stream = $2 AND key = $3", key
    since = float(rows[0][0]) if rows else until
    if since > until + JUDGED_AHEAD_MAX:  # written while a clock was wrong: nothing would be judged until that time
        since = until
    runs = yield (
        """SELECT workflow_id, result, heard, count(*) FROM runs
            WHERE source = $1 AND counted_at > $2 AND counted_at <= $3 AND state = 'finished'
            GROUP BY workflow_id, result, heard""",
        (source, since, until),
    )
    known = yield "SELECT key, value FROM cursors WHERE source = $1 AND stream = 'webhook_reports'", (source,)
    reports: dict[str, str] = dict(known)
    reported = missed = lost = 0
    for workflow, result, heard, number in runs:
        if Heard(heard) & Heard.WEBHOOK:
            reported += number
            if result not in FAILED:
                reports[workflow] = _REPORTS_ALL
            else:
                reports.setdefault(workflow, _REPORTS_FAILURES)
    for workflow, result, heard, number in runs:
        if not Heard(heard) & Heard.WEBHOOK:
            missed += number
            told = reports.get(workflow)
            lost += number if told == _REPORTS_ALL or (told is not None and result in FAILED) else 0
    tallies: Tallies = {}
    if missed:
        tallies[catalogue.RECONCILED.name, source, "", ("missed_webhook",), SUM] = float(missed)
    yield from add_tallies(tallies)
    news = [(source, "webhook_reports", *one) for one in sorted(reports.items() - dict(known).items())]
    yield from insert(
        "cursors",
        "source, stream, key, value",
        [(*key, repr(max(since, until))), *news],
        conflict="(source, stream, key) DO UPDATE SET value = excluded.value",
    )
    return Judged(reported=reported, missed=missed, lost=lost, tallies=tallies)


def pending_traces(
    *, limit: int, settled_before: float, ahead: Mapping[str, float], sources: Collection[str] | None = None
) -> Script[list[PendingTrace]]:
    """Counted attempts, and closed retries, whose trace is still to be exported, oldest first; of all ``sources``, or
    of these.

    A run of which more is expected, its error or its steps, is withheld until it was counted before ``settled_before``,
    on our clock; ``ahead`` says of which sources the clock is how much ahead of ours.
    """
    cases = " ".join(f"WHEN ${2 * n} THEN CAST(${2 * n + 1} AS DOUBLE PRECISION)" for n in range(1, len(ahead) + 1))
    shift = f"CASE source {cases} ELSE 0 END" if ahead else "0"
    known = (settled_before, *flat(ahead.items()))
    rows = yield (
        f"""SELECT source, attempt, data FROM traces WHERE (settled = 1 OR counted_at - ({shift}) < $1)
            AND {_among(sources, start=len(known) + 1)} ORDER BY counted_at, source, run_id LIMIT {int(limit)}""",
        (*known, *(sources or ())),
    )
    retries = [PendingTrace(source=source, of=retry_of(data)) for source, attempt, data in rows if attempt == 0]
    runs = [(source, codec.traced_run(data)) for source, attempt, data in rows if attempt != 0]
    keys = {(source, entry.run.id) for source, entry in runs}
    rows = yield from select_in("source, run_id, dead_letter_id", "dead_letters", "source, run_id", keys)
    letters = {(source, run_id): letter_id for source, run_id, letter_id in rows}
    rows = yield from select_in("source, run_id, retry_id", "lineage", "source, run_id", keys)
    made = {(source, run_id): retry_id for source, run_id, retry_id in rows}
    rows = yield from select_in("data", "retries", "id", {(retry_id,) for retry_id in made.values()})
    by_id = {retry.id: retry for retry in (retry_of(data) for (data,) in rows)}
    return retries + [
        PendingTrace(
            source=source,
            of=entry.run,
            dead_letter_id=letters.get((source, entry.run.id)),
            made_by=by_id.get(made.get((source, entry.run.id), "")),
        )
        for source, entry in runs
    ]


def mark_traced(keys: list[tuple[str, str, int]]) -> Script[None]:
    """Take these attempts (source, run id, attempt) out of the outbox: their traces were exported."""
    for part in chunks(keys):
        n = range(1, 3 * len(part), 3)
        keys_of = ", ".join(f"(${i}, ${i + 1}, CAST(${i + 2} AS BIGINT))" for i in n)
        yield f"DELETE FROM traces WHERE (source, run_id, attempt) IN (VALUES {keys_of})", flat(part)


def _among(sources: Collection[str] | None, *, start: int = 1) -> str:
    """Whether a row is about one of these sources, their names given as values from ``start`` on; None: about any."""
    if sources is None:
        return "TRUE"
    return f"source IN ({', '.join(f'${start + n}' for n in range(len(sources)))})" if sources else "FALSE"


def count_pending_traces(sources: Collection[str] | None = None) -> Script[int]:
    rows = yield f"SELECT count(*) FROM traces WHERE {_among(sources)}", tuple(sources or ())
    count: int = rows[0][0]
    return count


def mark_folded(keys: list[Key]) -> Script[None]:
    for key in keys:
        rows = yield f"SELECT {codec.WORKFLOW_COLUMNS} FROM workflows WHERE source = $1 AND workflow_id = $2", key
        for row in rows:
            source, entry = codec.workflow_entry(row)
            folded = codec.workflow_row(source, replace(entry, folded=True))
            yield "UPDATE workflows SET data = $3 WHERE source = $1 AND workflow_id = $2", (*key, folded[3])
