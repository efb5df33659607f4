"""The one transaction everything observed goes through.

Load what the observations are about, fold them in, save what changed, add the changes to the tallies, put the cursors
forward: all of it durable together, or none of it. Several batches share one transaction; each learns what became of
its own.
"""

from collections.abc import Mapping, Sequence
from math import inf

from msgspec.structs import replace

from exporter.model import (
    SUCCEEDED,
    DeadLetter,
    Listing,
    Queue,
    ResolvedBy,
    Result,
    Run,
    RunCorrected,
    RunFinished,
    State,
    Usage,
    Via,
    Workflow,
    fold,
    times,
)
from exporter.model.fold import Baseline, DeadLetterEntry, RunEntry, WorkflowEntry
from exporter.model.ledger import Batch, Committed, Folded, FoldRules, Forgotten, Key
from exporter.model.tallies import Tallies, tally
from exporter.store import codec
from exporter.store.rows import add_tallies, find, put_cursors
from exporter.store.script import Row, Script, insert, select_in

#: Webhooks may come before anybody knows the platform's clock. The first poll that does sets the baseline, and reaches
#: back to what they reported, but not further than this (seconds).
FIRST_REACH_MAX = 86_400.0
#: A baseline that is so much (seconds) ahead of the platform's clock was set by a clock that was wrong.
AHEAD_MAX = 60.0
#: Platforms tell times in milliseconds: the next one.
_NEXT_MOMENT = 0.001

_FAILED = "('failure', 'timeout', 'quota')"
_SUCCEEDED = "('success', 'warning')"


def ingest(batches: Sequence[Batch], rules: Mapping[str, FoldRules]) -> Script[Committed]:
    """Fold these batches into the ledger."""
    return (yield from _Ingest(rules).run(batches))


class _Ingest:
    """The working memory of one transaction: entries as loaded, and which of them changed."""

    def __init__(self, rules: Mapping[str, FoldRules]) -> None:
        self.rules = rules
        self.first_sweeps: dict[str, float] = {}
        self.forgotten: dict[str, Forgotten] = {}
        self.runs: dict[Key, RunEntry] = {}
        self.traces: dict[tuple[str, str, int], RunEntry] = {}  # counted attempts, for the outbox
        self.letters: dict[Key, DeadLetterEntry] = {}
        self.workflows: dict[Key, WorkflowEntry] = {}
        self.changed_runs: set[Key] = set()
        self.changed_letters: set[Key] = set()
        self.changed_workflows: set[Key] = set()
        self.recounts: dict[Key, float] = {}
        self.succeeded: set[Key] = set()  # workflows that had a success
        self.restarted: set[Key] = set()  # runs that have a later attempt now
        self.retried: set[Key] = set()  # dead letters that a retry of ours is under way of, or has fixed
        self.tallies: Tallies = {}

    def run(self, batches: Sequence[Batch]) -> Script[Committed]:
        yield from self._load_baselines(batches)
        yield from self._load(batches)
        self._believe(batches)
        outcomes = [self._fold(batch) for batch in batches]
        yield from self._settle_dead_letters(outcomes)
        yield from self._save(batches)
        return Committed(
            outcomes=outcomes,
            first_sweeps=self.first_sweeps,
            read_until={source: known.read_until for source, known in self.forgotten.items()},
            runs={k: self.runs[k] for k in self.changed_runs},
            dead_letters={k: self.letters[k] for k in self.changed_letters},
            workflows={k: self.workflows[k] for k in self.changed_workflows},
            tallies=self.tallies,
        )

    def _load_baselines(self, batches: Sequence[Batch]) -> Script[None]:
        sources = {batch.source for batch in batches}
        columns = "source, first_sweep_at, pruned_until, read_until"
        for source, first, pruned, read in (
            yield from select_in(columns, "sources", "source", [(s,) for s in sources])
        ):
            self.first_sweeps[source] = first
            self.forgotten[source] = Forgotten(pruned_until=pruned, read_until=read)
        for batch in batches:
            yield from self._set_baseline(batch)
            if batch.source in self.forgotten:
                before = self.forgotten[batch.source]
                now = batch.now if batch.clock_known else inf
                after = yield from read_on(batch.source, before, newest=_newest_end(batch), now=now)
                self.forgotten[batch.source] = after

    def _set_baseline(self, batch: Batch) -> Script[None]:
        """The first sweep ever is the baseline. One ahead of the platform's clock was none: nothing would count."""
        source, first = batch.source, self.first_sweeps.get(batch.source)
        wrong = first is not None and batch.clock_known and batch.via is Via.POLL and first > batch.now + AHEAD_MAX
        if batch.started_at is None or (first is not None and not wrong):
            return
        first = batch.started_at
        if batch.via is Via.POLL:
            rows = yield "SELECT min(finished_at) FROM runs WHERE source = $1 AND counted_at > 0", (source,)
            if rows[0][0] is not None:
                first = min(first, max(rows[0][0], first - FIRST_REACH_MAX))
        self.first_sweeps[source] = first
        self.forgotten.setdefault(source, Forgotten())
        yield from insert(
            "sources",
            "source, first_sweep_at",
            [(source, first)],
            conflict="(source) DO UPDATE SET first_sweep_at = excluded.first_sweep_at",
        )

    def _load(self, batches: Sequence[Batch]) -> Script[None]:
        runs: set[Key] = set()
        letters: set[Key] = set()
        workflows: set[Key] = set()
        listed: set[str] = set()
        for batch in batches:
            for item in batch.observations:
                match item:
                    case Run():
                        runs.add((batch.source, item.id))
                        workflows.add((batch.source, item.workflow_id))
                    case DeadLetter():
                        letters.add((batch.source, item.id))
                        workflows.add((batch.source, item.workflow_id))
                    case Workflow():
                        workflows.add((batch.source, item.id))
                    case Listing():
                        listed.add(batch.source)
        for row in (yield from find(codec.RUN_COLUMNS, "runs", "run_id", runs)):
            source, run = codec.run_entry(row)
            self.runs[source, run.run.id] = run
        self._keep_letters((yield from find(codec.DEAD_LETTER_COLUMNS, "dead_letters", "dead_letter_id", letters)))
        yield from self._load_retried()
        # What was reported under another workflow before may stay there.
        workflows |= {(key[0], entry.run.workflow_id) for key, entry in self.runs.items()}
        workflows |= {(key[0], entry.dead_letter.workflow_id) for key, entry in self.letters.items()}
        self._keep_workflows((yield from find(codec.WORKFLOW_COLUMNS, "workflows", "workflow_id", workflows)))
        rows = yield from select_in(codec.WORKFLOW_COLUMNS, "workflows", "source", [(s,) for s in listed])
        self._keep_workflows(rows)

    def _load_retried(self) -> Script[None]:
        """Which of the open dead letters a retry of ours is under way of, or has fixed."""
        loaded = {key for key, entry in self.letters.items() if entry.dead_letter.is_open} - self.retried
        sent = "AND shadow = 0 AND ((outcome IS NULL AND state <> 'intent') OR outcome = 'succeeded')"
        self.retried |= set((yield from find("source, dead_letter_id", "retries", "dead_letter_id", loaded, more=sent)))

    def _keep_workflows(self, rows: Sequence[Row]) -> None:
        for row in rows:
            source, entry = codec.workflow_entry(row)
            self.workflows.setdefault((source, entry.workflow.id), entry)

    def _keep_letters(self, rows: Sequence[Row]) -> None:
        for row in rows:
            source, entry = codec.dead_letter_entry(row)
            self.letters.setdefault((source, entry.dead_letter.id), entry)

    def _believe(self, batches: Sequence[Batch]) -> None:
        """Drop what workflows are said to have done at times that cannot be, where the platform's clock is known."""
        known = {batch.source: times.latest(batch.now) for batch in batches if batch.clock_known}
        for key, entry in self.workflows.items() if known else ():
            if key[0] in known and (after := fold.believed(entry, known[key[0]])) is not entry:
                self.workflows[key] = after
                self.changed_workflows.add(key)

    def _baseline(self, batch: Batch) -> Baseline:
        rules, first = self.rules[batch.source], self.first_sweeps.get(batch.source)
        if first is None:  # what a webhook reports before the first sweep counts
            ends = (run.finished_at for run in batch.observations if isinstance(run, Run))
            first = min((end for end in ends if end is not None), default=batch.now)
        horizon = rules.horizon(self.forgotten.get(batch.source, Forgotten()), batch.now)
        return Baseline(first_sweep_at=first, backfill=rules.backfill, horizon=horizon)

    def _fold(self, batch: Batch) -> Folded:
        outcome = Folded(batch=batch)
        rule, baseline = self.rules[batch.source], self._baseline(batch)
        for item in batch.observations:
            match item:
                case Run():
                    self._fold_run(outcome, item, baseline, rule)
                case DeadLetter():
                    held = rule.holds_dead_letters and not item.reruns
                    if held or item.opened_at >= baseline.horizon:
                        self._fold_dead_letter(outcome, item, baseline)
                case Workflow():
                    self._fold_workflow(outcome, item)
                case Listing():
                    self._fold_listing(batch.source, item)
                case Queue() | Usage():
                    outcome.news += 1  # not kept in the ledger: they are as old as the last sweep
        tally(outcome.changes, source=batch.source, into=self.tallies)
        return outcome

    def _fold_run(self, outcome: Folded, claim: Run, baseline: Baseline, rule: FoldRules) -> None:
        batch, key = outcome.batch, (outcome.batch.source, claim.id)
        before = self.runs.get(key)
        if before is None and claim.is_test and not rule.counts_tests:
            return  # one that began to count, before the config said otherwise, does so to its end
        after, changes = fold.fold_run(before, claim, via=batch.via, now=batch.now, baseline=baseline)
        if after is before:
            return
        outcome.news += 1
        outcome.changes += changes
        self.runs[key] = after
        self.changed_runs.add(key)
        self._workflow(outcome, after.run.workflow_id)
        if before is not None and after.run.attempt > before.run.attempt:
            self.restarted.add(key)
        for change in changes:
            if isinstance(change, RunFinished):
                self._end(key, change.run, baseline)
                if rule.traced:
                    self.traces[*key, change.run.attempt] = replace(after, run=change.run)
            elif isinstance(change, RunCorrected):
                self._end(key, change.run, baseline, corrected=True)
        was, run = None if before is None else before.run, after.run
        uncounted = run.state is State.FINISHED and after.counted_attempt == 0
        if uncounted and (was is None or (was.state, was.attempt) != (run.state, run.attempt)):
            self._end(key, run, baseline)

    def _end(self, key: Key, run: Run, baseline: Baseline, *, corrected: bool = False) -> None:
        """Add an ended attempt to what its workflow's runs add up to."""
        result, ended_at = run.result or Result.UNKNOWN, run.finished_at
        if ended_at is None or run.is_test:
            return  # a test says nothing about how its workflow is doing
        workflow = (key[0], run.workflow_id)
        entry, recount = fold.fold_end(self.workflows[workflow], result, ended_at, horizon=baseline.horizon)
        if corrected:
            recount = 0.0
        if recount is not None:
            self.recounts[workflow] = max(recount, self.recounts.get(workflow, 0.0))
        if result in SUCCEEDED:
            self.succeeded.add(workflow)
        if entry != self.workflows[workflow]:
            self.workflows[workflow] = entry
            self.changed_workflows.add(workflow)

    def _fold_dead_letter(self, outcome: Folded, claim: DeadLetter, baseline: Baseline) -> None:
        key = (outcome.batch.source, claim.id)
        before = self.letters.get(key)
        if key in self.retried and claim.resolved_by in (
            ResolvedBy.MANUAL,
            ResolvedBy.SUPERSEDED,
            ResolvedBy.UNKNOWN,
        ):
            claim = replace(claim, resolved_by=ResolvedBy.RETRY)  # the somebody was us
        after, changes = fold.fold_dead_letter(before, claim, baseline=baseline)
        if after is before:
            return
        outcome.news += 1
        outcome.changes += changes
        self.letters[key] = after
        self.changed_letters.add(key)
        self._workflow(outcome, after.dead_letter.workflow_id)

    def _fold_workflow(self, outcome: Folded, claim: Workflow) -> None:
        key = (outcome.batch.source, claim.id)
        before = self.workflows.get(key)
        after = fold.fold_workflow(before, claim, now=outcome.batch.now)
        if before is None:
            outcome.found.append(claim.id)
        if after is not before:
            outcome.news += 1
            self.workflows[key] = after
            self.changed_workflows.add(key)

    def _fold_listing(self, source: str, listing: Listing) -> None:
        for key, entry in self.workflows.items():
            if key[0] == source and entry.workflow.at > 0:
                after = fold.fold_listing(entry, listing)
                if after is not entry:
                    self.workflows[key] = after
                    self.changed_workflows.add(key)

    def _workflow(self, outcome: Folded, workflow_id: str) -> Key:
        """The key of a workflow, made known if only its runs were heard of so far."""
        key = (outcome.batch.source, workflow_id)
        if key not in self.workflows:
            unread = Workflow(id=workflow_id, at=0.0)
            self.workflows[key] = WorkflowEntry(workflow=unread, found_at=outcome.batch.now)
            self.changed_workflows.add(key)
            outcome.found.append(workflow_id)
        return key

    def _settle_dead_letters(self, outcomes: Sequence[Folded]) -> Script[None]:
        """Close the dead letters that a restart or a later success has settled."""
        columns = codec.DEAD_LETTER_COLUMNS
        if self.restarted:
            self._keep_letters((yield from find(columns, "dead_letters", "run_id", self.restarted)))
        superseding = {key for key in self.succeeded if self.rules[key[0]].superseded_by_success}
        still_open = "AND resolved_at IS NULL"
        self._keep_letters((yield from find(columns, "dead_letters", "workflow_id", superseding, more=still_open)))
        yield from self._load_retried()
        workflows = {(key[0], entry.dead_letter.workflow_id) for key, entry in self.letters.items()}
        unread = workflows - self.workflows.keys()
        self._keep_workflows((yield from find(codec.WORKFLOW_COLUMNS, "workflows", "workflow_id", unread)))
        last_outcome = {outcome.batch.source: outcome for outcome in outcomes}
        for (source, _), entry in list(self.letters.items()):
            letter = entry.dead_letter
            if not letter.is_open or source not in last_outcome:
                continue
            outcome, rule = last_outcome[source], self.rules[source]
            claim = self._settlement(source, letter, rule, outcome.batch)
            if claim is not None:
                seen = len(outcome.changes)
                self._fold_dead_letter(outcome, claim, self._baseline(outcome.batch))
                tally(outcome.changes[seen:], source=source, into=self.tallies)

    def _settlement(self, source: str, letter: DeadLetter, rule: FoldRules, batch: Batch) -> DeadLetter | None:
        run = None if letter.run_id is None else self.runs.get((source, letter.run_id))
        by = None if run is None else fold.settled_by_run(letter, run.run)
        if run is not None and by is not None:
            moment = run.run.attempt / 1000.0  # the update that showed the later attempt
            return fold.resolve(letter, by=by, at=moment)
        workflow = self.workflows.get((source, letter.workflow_id))
        success = None if workflow is None else workflow.last(SUCCEEDED)
        if rule.superseded_by_success and success is not None and success > letter.opened_at:
            return fold.resolve(letter, by=ResolvedBy.SUPERSEDED, at=success)
        return None

    def _save(self, batches: Sequence[Batch]) -> Script[None]:
        yield from insert(
            "runs",
            codec.RUN_COLUMNS,
            [codec.run_row(k[0], self.runs[k]) for k in sorted(self.changed_runs)],
            conflict="""(source, run_id) DO UPDATE SET workflow_id = excluded.workflow_id, state = excluded.state,
                result = excluded.result, finished_at = excluded.finished_at, counted_at = excluded.counted_at,
                heard = excluded.heard, data = excluded.data""",
        )
        yield from self._save_traces()
        yield from self._recount()
        yield from insert(
            "dead_letters",
            codec.DEAD_LETTER_COLUMNS,
            [codec.dead_letter_row(k[0], self.letters[k]) for k in sorted(self.changed_letters)],
            conflict="""(source, dead_letter_id) DO UPDATE SET workflow_id = excluded.workflow_id,
                run_id = excluded.run_id, opened_at = excluded.opened_at, resolved_at = excluded.resolved_at,
                reruns = excluded.reruns, data = excluded.data""",
        )
        yield from insert(
            "workflows",
            codec.WORKFLOW_COLUMNS,
            [codec.workflow_row(k[0], self.workflows[k]) for k in sorted(self.changed_workflows)],
            conflict="(source, workflow_id) DO UPDATE SET gone_at = excluded.gone_at, data = excluded.data",
        )
        yield from add_tallies(self.tallies)
        yield from put_cursors(batches)

    def _save_traces(self) -> Script[None]:
        """Put newly counted attempts into the outbox; those still in it follow what becomes known of them."""
        for source, run_id in self.changed_runs:
            entry = self.runs[source, run_id]
            if self.rules[source].traced and entry.counted_attempt == entry.run.attempt:
                row = codec.trace_row(source, entry, settled=self.rules[source].settled(entry.run))
                if (source, run_id, entry.run.attempt) in self.traces:
                    self.traces[source, run_id, entry.run.attempt] = entry
                else:
                    sql = "UPDATE traces SET settled = $4, data = $5 WHERE source = $1 AND run_id = $2 AND attempt = $3"
                    yield sql, (*row[:3], *row[4:])
        rows = [
            codec.trace_row(key[0], entry, settled=self.rules[key[0]].settled(entry.run))
            for key, entry in sorted(self.traces.items(), key=lambda item: item[0])
        ]
        yield from insert("traces", codec.TRACE_COLUMNS, rows, conflict="(source, run_id, attempt) DO NOTHING")

    def _recount(self) -> Script[None]:
        """Count the failures since the last success anew, where one arrived after failures that came later, or is
        corrected.
        """
        for key, since in self.recounts.items():
            sql = f"""SELECT count(*) FROM runs
                WHERE source = $1 AND workflow_id = $2 AND finished_at > $3 AND result IN {_FAILED}
                AND finished_at > coalesce((SELECT finished_at FROM runs WHERE source = $1 AND workflow_id = $2
                    AND result IN {_SUCCEEDED} ORDER BY finished_at DESC LIMIT 1), 0)"""
            rows = yield sql, (*key, since)
            self.workflows[key] = replace(self.workflows[key], failures=rows[0][0])
            self.changed_workflows.add(key)


def _newest_end(batch: Batch) -> float:
    """The newest end a poll has read. A sender's time proves nothing, and no end is later than the platform's now."""
    if batch.via is Via.WEBHOOK:
        return 0.0
    ends = (run.finished_at for run in batch.observations if isinstance(run, Run) and run.state is State.FINISHED)
    return max((end for end in ends if end is not None and end <= batch.now), default=0.0)


def read_on(source: str, before: Forgotten, *, newest: float, now: float) -> Script[Forgotten]:
    """Remember how far a source has been read.

    And set right how far it was forgotten, where a wrong clock had that run ahead of what was read: nothing that ends
    before would be counted. ``now`` is the platform's clock, infinite while it is not known.
    """
    read_until, pruned_until = before.read_until, before.pruned_until
    if read_until == 0.0 and pruned_until > 0.0:  # written by a version that did not remember it
        read_until = yield from _newest_known(source, now)
    if pruned_until > min(now, read_until):
        # Pruning goes by the end. So if the ledger has a counted run that ended earlier, nothing since then is pruned.
        rows = yield (
            "SELECT min(finished_at) FROM runs WHERE source = $1 AND counted_at > 0 AND finished_at < $2",
            (source, pruned_until),
        )
        oldest: float | None = rows[0][0]
        pruned_until = min(now, read_until) + _NEXT_MOMENT if oldest is None else oldest
    read_until = max(read_until, newest)
    after = Forgotten(pruned_until=pruned_until, read_until=read_until)
    if after != before:
        sql = "UPDATE sources SET pruned_until = $2, read_until = $3 WHERE source = $1"
        yield sql, (source, pruned_until, read_until)
    return after


def _newest_known(source: str, now: float) -> Script[float]:
    """The newest end up to ``now`` among the runs of a source, and what its workflows remember of those pruned."""
    rows = yield "SELECT max(finished_at) FROM runs WHERE source = $1 AND finished_at <= $2", (source, now)
    ends = [0.0 if rows[0][0] is None else rows[0][0]]
    for row in (yield f"SELECT {codec.WORKFLOW_COLUMNS} FROM workflows WHERE source = $1", (source,)):
        _, entry = codec.workflow_entry(row)
        ends += [at for _, at in entry.last_ended if at <= now]
    return max(ends)
