"""Making a retry an intent: whatever may forbid the call is read again and decided anew, in one transaction.

The row that it leaves is durable before the call is made. It inserts if there is nothing, and never overwrites: of two
that race one comes too late.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from exporter.model import catalogue
from exporter.model.decision import Ladder, climb
from exporter.model.ledger import Committed
from exporter.model.operations import ItemState
from exporter.model.policy import Rules
from exporter.model.rails import Purse, Rails, slowed, unverified
from exporter.model.retries import (
    Outcome,
    Override,
    Reason,
    Retry,
    Verb,
)
from exporter.model.subject import Subject, neighbours, reaches
from exporter.model.tallies import SUM
from exporter.store import operations, rails
from exporter.store.audit import about_retry, add_records
from exporter.store.retries import COLUMNS, open_overrides, retry_of, row_of
from exporter.store.rows import add_tallies
from exporter.store.script import Script, insert, values


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """A retry that is to be made, and what was known when that was decided."""

    retry: Retry
    subject: Subject
    rules: Rules
    approval: Override | None = None  # what lets it pass: used up
    earned: int = 0  # successful runs of the source that its budget does not hold yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a reservation came to nothing."""

    reason: Reason
    detail: str


def reserve(wanted: Reservation, *, now: float) -> Script[Committed | Refusal]:
    """Make a retry an intent, unless what the ledger says now forbids it: the same decision, on fresh values."""
    retry, source = wanted.retry, wanted.retry.source
    fresh = yield from _fresh(wanted, now)
    if isinstance(fresh, Refusal):
        return fresh
    subject, full_at, purse = fresh
    ladder = climb(subject, wanted.rules, now)
    if ladder.refusal is not None:
        return Refusal(reason=ladder.refusal.reason, detail=ladder.refusal.detail)
    if ladder.decision.verb is not Verb.RETRY or ordinal(subject.history, shadow=retry.shadow) != retry.ordinal:
        return Refusal(reason=Reason.EXHAUSTED, detail="another retry of it was made meanwhile")
    retry = replace(retry, excused=ladder.excused and not retry.shadow)
    budget = wanted.rules.source(source).budget
    budgeted = budget is not None and wanted.approval is None and not retry.shadow
    retry = replace(retry, budgeted=budgeted)
    sql = f"INSERT INTO retries ({COLUMNS}) VALUES {values(1, 9)} ON CONFLICT DO NOTHING RETURNING id"
    reserved = yield sql, row_of(retry)
    if not reserved:
        return Refusal(reason=Reason.HELD, detail="another retry of it is open")
    committed = Committed(retries=[retry])
    if wanted.approval is not None:
        yield "UPDATE overrides SET ended_at = $1 WHERE id = $2", (now, wanted.approval.id)
        committed.ended_overrides.append(wanted.approval.id)
    if retry.operation:
        yield from operations.advance(retry, ItemState.OPEN.value, committed)
    if retry.shadow:
        committed.tallies[catalogue.RETRIES_SHADOW.name, source, "", (retry.policy,), SUM] = 1.0
        yield from add_tallies(committed.tallies)
    else:
        yield from _take(retry, subject.rails, ladder, full_at, now, committed)
        if budget is not None and purse is not None:
            tokens = purse.now(budget, now, earned=wanted.earned) - float(budgeted)
            yield from rails.put(source, rails.PURSE, {"": Purse(tokens=tokens, at=now)})
            committed.purses[source] = Purse(tokens=tokens, at=now)
    kind = "shadow" if retry.shadow else "intent"
    yield from add_records(now, [about_retry(kind, retry, who=retry.approved_by or "engine")])
    return committed


def ordinal(history: Sequence[Retry], *, shadow: bool) -> int:
    """The number of the next retry of a root: calls that are known to have had no effect give theirs back."""
    return 1 + sum(1 for o in history if o.outcome is not Outcome.NOT_SENT and (shadow or not o.shadow))


def _take(retry: Retry, found: Rails, ladder: Ladder, full_at: float, now: float, committed: Committed) -> Script[None]:
    """Take a place at its gates, and what the pace allows."""
    source = retry.source
    if ladder.owner is not None:
        keys = ((ladder.owner.name, ladder.group), (ladder.owner.name, ""))
        served = {key: found.gate(*key).served(now) for key in keys}
        yield from rails.put_gates(source, served, committed)
    committed.full_at[source] = max(now, full_at) + 1.0 / found.pace.rate
    conflict = "(source) DO UPDATE SET full_at = excluded.full_at"
    yield from insert("paces", "source, full_at", [(source, committed.full_at[source])], conflict=conflict)


def _fresh(wanted: Reservation, now: float) -> Script[tuple[Subject, float, Purse | None] | Refusal]:
    """What the ledger says now of all that may have changed since, when the pace is full, and what the budget holds."""
    retry, subject, source = wanted.retry, wanted.subject, wanted.retry.source
    rows = yield (
        "SELECT resolved_at FROM dead_letters WHERE source = $1 AND dead_letter_id = $2",
        (source, retry.dead_letter_id),
    )
    if not rows or rows[0][0] is not None:
        return Refusal(reason=Reason.NOT_ELIGIBLE, detail="it is resolved")
    rows = yield "SELECT root FROM lineage WHERE source = $1 AND run_id = $2", (source, retry.run_id)
    if rows and rows[0][0] != retry.root:
        return Refusal(reason=Reason.HELD, detail="it descends from another dead letter")
    overrides = yield from open_overrides(now)
    if wanted.approval is not None and all(override.id != wanted.approval.id for override in overrides):
        return Refusal(reason=Reason.MODE, detail="its approval was used or taken back")
    rows = yield (
        """SELECT data FROM retries WHERE source = $1 AND (root = $2 OR (outcome IS NULL AND shadow = 0))
            ORDER BY claimed_at""",
        (source, retry.root),
    )
    found = [retry_of(row[0]) for row in rows]
    opened = [other for other in found if other.is_open]
    ordered = [retry.workflow_id] if subject.workflow is not None and subject.workflow.ordered else []
    serial = subject.traits is None or subject.traits.serial
    rows = yield "SELECT full_at FROM paces WHERE source = $1", (source,)
    setbacks = yield from rails.setbacks(source, ["", retry.workflow_id])
    pace = slowed(wanted.rules.source(source).pace, setbacks.get(""), now)
    full_at = pace.full(rows[0][0], now) if rows else now
    budget = wanted.rules.source(source).budget
    purse = None if budget is None else ((yield from rails.purse(source)) or Purse(at=now))
    tokens = None if budget is None or purse is None else purse.now(budget, now, earned=wanted.earned)
    subject = replace(
        subject,
        history=[other for other in found if other.root == retry.root],
        overrides=[o for o in overrides if reaches(o, source=source, workflow=retry.workflow_id, root=retry.root)],
        neighbour=_other(neighbours(opened, serial=serial, ordered=ordered).get(retry.workflow_id), retry.root),
        refused=None,
        rails=replace(
            subject.rails,
            pace=pace,
            pace_at=pace.next_at(full_at) - 1e-6,
            in_flight=sum(1 for other in opened if other.in_flight),
            setbacks=setbacks,
            tokens=tokens,
            gates=(yield from rails.gates(source, [(retry.policy, retry.group), (retry.policy, "")])),
            unverified=unverified(opened),
        ),
    )
    return subject, full_at, purse


def _other(retry: Retry | None, root: str) -> Retry | None:
    return None if retry is None or retry.root == root else retry
