"""Joining an observation into the model, and saying what that changed. Pure.

Claims about one thing are joined (``joins``), so that neither their order nor their repetition matters. ``fold_run``
and ``fold_dead_letter`` add the one thing a join cannot say: what of it is *new*, so that each finished
attempt is counted exactly once, whoever saw it first. What was counted is remembered beside the run in its ledger
entry.
"""

from msgspec import Struct
from msgspec.structs import replace

from exporter.model import (
    FAILED,
    SUCCEEDED,
    Change,
    DeadLetter,
    DeadLetterOpened,
    DeadLetterResolved,
    ErrorClass,
    Heard,
    Listing,
    ResolvedBy,
    Result,
    Run,
    RunCorrected,
    RunFailed,
    RunFinished,
    RunQueued,
    RunTimed,
    RunUsed,
    State,
    Step,
    StepFinished,
    Via,
    Workflow,
    is_version,
)
from exporter.model.joins import join_dead_letter, join_run, join_workflow

_RESULTS = tuple(Result)  # walking the enum itself costs several times as much


class Baseline(Struct, frozen=True, kw_only=True, gc=False):
    """From when on a source's finished runs count: its first sweep ever, or earlier where a backfill is configured.

    Never from before ``horizon``: the ledger has forgotten what it counted there.
    """

    first_sweep_at: float
    backfill: float = 0.0  # seconds before the first sweep that count as well
    horizon: float = 0.0  # what ended before it may have been counted and pruned

    def covers(self, moment: float | None) -> bool:
        return moment is None or moment >= max(self.first_sweep_at - self.backfill, self.horizon)


#: A sender's clock and the platform's may differ by this much (seconds) and still speak of the same end.
SAME_END = 60.0


class RunEntry(Struct, frozen=True, kw_only=True, gc=False, array_like=True):
    """A run in the ledger: the join of its claims, and what of it has been counted."""

    run: Run
    heard: Heard = Heard.NOTHING  # which ways reported it since it was counted, or found
    counted_attempt: int = 0  # the attempt the rest speaks of; 0: none is counted yet
    counted_as: Result | None = None
    counted_end: float = 0.0  # when that attempt ended, as known when it was counted
    counted_at: float = 0.0  # when it was counted, on the platform's clock
    timed: bool = False
    queue_timed: bool = False
    error_counted: bool = False


def fold_run(
    entry: RunEntry | None, claim: Run, *, via: Via, now: float, baseline: Baseline
) -> tuple[RunEntry, list[Change]]:
    """Join one claim into a run and say what became countable.

    A finished attempt is counted once, when it ended at or after the baseline. What becomes known of it later (its
    duration from a poll after a bare webhook, its error from a detail call) is counted then, and once. An entry that
    learns nothing is returned as it is, the same object.
    """
    heard = Heard.WEBHOOK if via is Via.WEBHOOK else Heard.POLL
    if entry is None:
        before, run, entry = None, claim, RunEntry(run=claim, heard=heard)
    else:
        before, run = entry.run, join_run(entry.run, claim)
        if run == before and heard in entry.heard:
            return entry, []
        entry = replace(entry, run=run, heard=entry.heard | heard)
    changes: list[Change] = [
        StepFinished(run=run, step=step) for step in _ended_steps(before, run) if baseline.covers(step.ended_at)
    ]
    if _is_ahead(entry, claim):
        run, before = claim, None
    if run.state is State.FINISHED and baseline.covers(run.finished_at):
        entry, counted = _count(entry, run, before, via=via, now=now, baseline=baseline)
        changes.extend(counted)
    return entry, changes


def _is_ahead(entry: RunEntry, claim: Run) -> bool:
    """Whether a sender announces, under its own number, the end of an attempt that polls have seen running so far."""
    numbered = claim.state is State.FINISHED and not is_version(claim.attempt)
    running = is_version(entry.run.attempt) and entry.run.state is not State.FINISHED
    if not numbered or not running:
        return False
    ended = claim.finished_at
    return entry.counted_attempt == 0 or (ended is not None and ended > entry.counted_end + SAME_END)


def _count(
    entry: RunEntry, run: Run, before: Run | None, *, via: Via, now: float, baseline: Baseline
) -> tuple[RunEntry, list[Change]]:
    """Count what is new of a finished attempt."""
    changes = list[Change]()
    result = run.result or Result.UNKNOWN
    ended = now if run.finished_at is None else run.finished_at
    if _is_counted(entry, run, ended):
        known, already = entry, before
        if before is not None and result is not entry.counted_as and result is not (before.result or Result.UNKNOWN):
            changes.append(RunCorrected(run=run, counted_as=entry.counted_as or Result.UNKNOWN))
    else:
        heard = Heard.WEBHOOK if via is Via.WEBHOOK else Heard.POLL
        known = RunEntry(run=entry.run, heard=heard, counted_as=result, counted_end=ended, counted_at=now)
        already = None
        via = Via.BACKFILL if ended < baseline.first_sweep_at else via
        changes.append(RunFinished(run=run, result=result, via=via, delay=max(0.0, now - ended)))
    counted_as = known.counted_as or Result.UNKNOWN
    seconds, waited = run.duration, run.queue_duration
    error = run.error if counted_as in FAILED else None
    if not known.timed and seconds is not None:
        changes.append(RunTimed(run=run, result=counted_as, seconds=seconds))
    if not known.queue_timed and waited is not None:
        changes.append(RunQueued(run=run, seconds=waited))
    if not known.error_counted and error is not None:
        changes.append(RunFailed(run=run, error=error))
    changes.extend(_used(already, run))
    entry = RunEntry(
        run=known.run,
        heard=known.heard,
        counted_attempt=run.attempt,
        counted_as=known.counted_as,
        counted_end=known.counted_end,
        counted_at=known.counted_at,
        timed=known.timed or seconds is not None,
        queue_timed=known.queue_timed or waited is not None,
        error_counted=known.error_counted or error is not None,
    )
    return entry, changes


def _is_counted(entry: RunEntry, run: Run, ended: float) -> bool:
    """Whether the run's present attempt is the one already counted.

    Senders of events number attempts 1, 2, …; a platform that restarts in place names them by update time. The finish a
    webhook announced under its number and a poll then finds under its time is one finish, distinct from a later one
    by when it ended.
    """
    if entry.counted_attempt == run.attempt:
        return True
    renamed = entry.counted_attempt > 0 and not is_version(entry.counted_attempt) and is_version(run.attempt)
    return renamed and ended <= entry.counted_end + SAME_END


def _ended_steps(before: Run | None, after: Run) -> list[Step]:
    if not after.steps:
        return []
    known = {} if before is None else {s.id: s.ended_at for s in before.steps or () if s.result is not None}
    return [
        step
        for step in after.steps
        if step.ended_at is not None and step.result is not None and step.ended_at != known.get(step.id)
    ]


def _used(before: Run | None, after: Run) -> list[Change]:
    operations = _more(before.operations if before else None, after.operations)
    bytes_in = _more(before.bytes_in if before else None, after.bytes_in)
    bytes_out = _more(before.bytes_out if before else None, after.bytes_out)
    if not (operations or bytes_in or bytes_out):
        return []
    return [RunUsed(run=after, operations=operations, bytes_in=bytes_in, bytes_out=bytes_out)]


def _more(before: float | None, after: float | None) -> float:
    return max(0.0, after - (before or 0.0)) if after else 0.0


class DeadLetterEntry(Struct, frozen=True, kw_only=True, gc=False, array_like=True):
    """A dead letter in the ledger, and whether its opening has been counted."""

    dead_letter: DeadLetter
    open_counted: bool = False


def fold_dead_letter(
    entry: DeadLetterEntry | None, claim: DeadLetter, *, baseline: Baseline
) -> tuple[DeadLetterEntry, list[Change]]:
    """Join one claim into a dead letter and say what became countable.

    Its opening counts once, when its error class is known or it is resolved before that; its resolution counts when it
    happened at or after the baseline.
    """
    before = None if entry is None else entry.dead_letter
    after = claim if before is None else join_dead_letter(before, claim)
    if entry is not None and after == before:
        return entry, []
    changes: list[Change] = []
    open_counted = entry is not None and entry.open_counted
    if not open_counted and baseline.covers(after.opened_at) and (after.error is not None or not after.is_open):
        open_counted = True
        error_class = after.error.error_class if after.error else ErrorClass.UNKNOWN
        changes.append(DeadLetterOpened(dead_letter=after, error_class=error_class))
    newly_resolved = after.resolved_at is not None and (before is None or before.is_open)
    if newly_resolved and baseline.covers(after.resolved_at):
        changes.append(DeadLetterResolved(dead_letter=after, by=after.resolved_by or ResolvedBy.UNKNOWN))
    return DeadLetterEntry(dead_letter=after, open_counted=open_counted), changes


def resolve(dead_letter: DeadLetter, *, by: ResolvedBy, at: float) -> DeadLetter:
    """The claim that a dead letter was closed."""
    return replace(dead_letter, resolved_at=max(at, dead_letter.opened_at), resolved_by=by)


def settled_by_run(dead_letter: DeadLetter, run: Run) -> ResolvedBy | None:
    """Whether what is known of the failed run itself closes its dead letter: a later attempt of it means somebody
    restarted it.
    """
    if dead_letter.run_id == run.id and run.attempt > dead_letter.attempt and is_version(run.attempt):
        return ResolvedBy.MANUAL
    return None


#: A workflow is gone once this many complete listings in a row lacked it …
LISTINGS_WITHOUT = 2
#: … and this many seconds have passed since the first of them.
GONE_AFTER = 900.0


class WorkflowEntry(Struct, frozen=True, kw_only=True, gc=False, array_like=True):
    """A workflow in the ledger: its newest reading and what its ended runs add up to."""

    workflow: Workflow
    found_at: float
    last_ended: tuple[tuple[Result, float], ...] = ()  # the latest end per result, in the order of Result
    failures: int = 0  # failed runs since the last success
    missed: int = 0  # complete listings in a row that lacked it
    missed_at: float | None = None  # the first of those
    gone_at: float | None = None
    folded: bool = False  # shown as "__other__": there were too many series when it was found

    def last(self, results: frozenset[Result]) -> float | None:
        """The latest end among these results."""
        return max((at for result, at in self.last_ended if result in results), default=None)


def believed(entry: WorkflowEntry, latest: float) -> WorkflowEntry:
    """The entry without what lies beyond ``latest``, the latest time to be believed.

    The newest reading and the latest end hold; written while a clock was wrong, they would hold until that time came.
    """
    unread = entry.workflow.at > latest
    missing = entry.missed_at is not None and entry.missed_at > latest
    gone = entry.gone_at is not None and entry.gone_at > latest
    if not (unread or missing or gone or any(at > latest for _, at in entry.last_ended)):
        return entry
    return replace(
        entry,
        workflow=replace(entry.workflow, at=0.0) if unread else entry.workflow,
        last_ended=tuple((result, at) for result, at in entry.last_ended if at <= latest),
        missed=0 if missing or gone else entry.missed,
        missed_at=None if missing or gone else entry.missed_at,
        gone_at=None if gone else entry.gone_at,
    )


def fold_workflow(entry: WorkflowEntry | None, claim: Workflow, *, now: float) -> WorkflowEntry:
    """Join a reading of a workflow. One that is read again is not gone (any more)."""
    if entry is None:
        return WorkflowEntry(workflow=claim, found_at=now)
    workflow = join_workflow(entry.workflow, claim)
    if replace(workflow, at=0.0) == replace(entry.workflow, at=0.0) and entry.missed == 0 and entry.gone_at is None:
        return entry
    if claim.at < (entry.missed_at or 0.0):
        return replace(entry, workflow=workflow)
    return replace(entry, workflow=workflow, missed=0, missed_at=None, gone_at=None)


def fold_listing(entry: WorkflowEntry, listing: Listing) -> WorkflowEntry:
    """What a complete listing says about a workflow: it is there, it was missed, or it is gone by now."""
    if entry.workflow.id in listing.workflow_ids or entry.gone_at is not None or listing.at <= entry.workflow.at:
        return entry
    missed_at = listing.at if entry.missed_at is None else entry.missed_at
    missed = entry.missed + 1
    gone = missed >= LISTINGS_WITHOUT and listing.at - missed_at >= GONE_AFTER
    return replace(entry, missed=missed, missed_at=missed_at, gone_at=listing.at if gone else None)


def fold_end(
    entry: WorkflowEntry, result: Result, ended_at: float, *, horizon: float = 0.0
) -> tuple[WorkflowEntry, float | None]:
    """Add one ended attempt to its workflow; what ended before ``horizon`` may be met again and again, and is no longer
    counted.

    Returns the entry and, when a success ends a streak, the moment after which failed runs have to be counted again:
    failures that ended after that success may have become known before it.
    """
    last_success = entry.last(SUCCEEDED)
    ends = dict(entry.last_ended)
    ends[result] = max(ended_at, ends.get(result, ended_at))
    last_ended = tuple((r, ends[r]) for r in _RESULTS if r in ends)
    failures, recount = entry.failures, None
    if result in FAILED and (last_success is None or ended_at > last_success):
        failures = failures + 1 if ended_at >= horizon else max(failures, 1)
    elif result in SUCCEEDED and failures and (last_success is None or ended_at > last_success):
        recount = ended_at
    return replace(entry, last_ended=last_ended, failures=failures), recount
