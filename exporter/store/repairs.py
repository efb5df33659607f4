"""The ledger of repairs other than a retry: what a person asked for, the intent before the call, what became of it.

A repair is a row from the moment a person asks for it. Of one thing, one repair is open at a time: that is an index.
While a dead letter is being repaired it is held, by an override that ends with the repair, so that no retry is reserved
meanwhile; and no repair is claimed while a retry of its root is open. Its one writer is the repairer.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import msgspec

from exporter.model import catalogue
from exporter.model.ledger import Committed, Key
from exporter.model.operations import Item, ItemState, OperationState
from exporter.model.repairs import Repair, RepairAction, RepairOutcome
from exporter.model.retries import Override, OverrideAction, Retry, Scope
from exporter.model.tallies import SUM
from exporter.store import codec, operations
from exporter.store.audit import about_override, add_records
from exporter.store.rows import add_tallies
from exporter.store.script import Row, Script, chunks, flat, insert, values

#: A run that a call began may fail so long (seconds) after it.
CALL_SECONDS_MAX = 86400.0
ENGINE = "engine"
TAKEN = "another repair of it is open"
_COLUMNS = "id, source, subject, subject_id, action, root, operation_id, state, outcome, closed_at, data"
_decode = msgspec.json.Decoder(Repair).decode
#: Repairs that are kept in memory after their end: what they mended a retry has to know, or they must not come twice.
_KEPT = (RepairAction.FIX.value, RepairAction.RERUN.value)


def load() -> Script[list[Repair]]:
    """Those that are open, and those whose effect outlasts them."""
    rows = yield (
        "SELECT data FROM repairs WHERE outcome IS NULL OR action IN ($1, $2) ORDER BY closed_at, id",
        _KEPT,
    )
    return [_decode(data) for (data,) in rows]


def begin(state: OperationState, repairs: Sequence[Repair], *, now: float) -> Script[Committed]:
    """Write down an operation and its repairs. What somebody else began to repair meanwhile is refused."""
    begun: list[Repair] = []
    refused: set[Key] = set()
    for repair in repairs:
        sql = f"INSERT INTO repairs ({_COLUMNS}) VALUES {values(1, 11)} ON CONFLICT DO NOTHING RETURNING id"
        if (yield sql, _row(repair)):
            begun.append(repair)
        else:
            refused.add((repair.source, repair.subject_id))
    items = [
        replace(item, state=ItemState.REFUSED.value, detail=TAKEN)
        if (item.source, item.dead_letter_id) in refused
        else item
        for item in state.items
    ]
    committed = yield from operations.begin(replace(state, items=items), now=now)
    holds = [hold_of(repair, now) for repair in begun if repair.root]
    rows = [(o.id, o.until, o.ended_at, codec.to_json(o)) for o in holds]
    yield from insert("overrides", "id, until, ended_at, data", rows, conflict="(id) DO NOTHING")
    yield from add_records(now, [about_repair("repair asked for", repair, who=repair.who) for repair in begun])
    committed.repairs, committed.overrides = begun, holds
    return committed


def hold_of(repair: Repair, now: float) -> Override:
    """What keeps a dead letter from being retried while it is repaired; a rerun keeps all of its workflow."""
    alone = repair.action is RepairAction.RERUN
    return Override(
        id=f"{repair.id}-hold",
        scope=Scope.WORKFLOW if alone else Scope.ROOT,
        source=repair.source,
        key=repair.workflow_id if alone else repair.root,
        action=OverrideAction.HOLD,
        until=None,
        who=ENGINE,
        why=f"a {repair.action} of it is open, operation {repair.operation}",
        created_at=now,
        snapshot={"repair": repair.id},
    )


def claim(wanted: Sequence[Repair], *, now: float) -> Script[Committed]:
    """Make these an intent, each unless what the ledger says now forbids it. Those that are may be called."""
    committed = Committed()
    [source] = {repair.source for repair in wanted}
    if (yield from _is_paused(source, now)):
        return committed
    for repair in wanted:
        if repair.root and not (yield from _is_free(repair)):
            continue
        claimed = yield (
            """UPDATE repairs SET state = $2, data = $3 WHERE id = $1 AND state = 'waiting' AND outcome IS NULL
                RETURNING id""",
            (repair.id, repair.state.value, codec.to_json(repair)),
        )
        if claimed:
            committed.repairs.append(repair)
    yield from _follow(committed)
    yield from add_records(now, [about_repair("repair intent", repair, who=repair.who) for repair in committed.repairs])
    return committed


def save(
    repairs: Sequence[Repair], *, now: float, kind: str, who: str = ENGINE, words: Mapping[str, Override] | None = None
) -> Script[Committed]:
    """Write what became of open repairs; a closed one stays as it is. Without a ``kind`` the audit hears nothing of it.

    ``words`` let the retry pass that follows a fix, by the id of the repair: they begin to hold as it ends.
    """
    committed = Committed()
    for repair in repairs:
        written = yield (
            """UPDATE repairs SET state = $2, outcome = $3, closed_at = $4, data = $5 WHERE id = $1 AND outcome IS NULL
                RETURNING id""",
            (repair.id, repair.state.value, _outcome(repair), repair.closed_at, codec.to_json(repair)),
        )
        if not written:
            continue
        committed.repairs.append(repair)
        committed.lineage |= {(repair.source, run_id): repair.root for run_id in repair.new_runs if repair.root}
        if repair.outcome is not None:
            key = (catalogue.REPAIRS.name, repair.source, "", (repair.action.value, repair.outcome.value), SUM)
            committed.tallies[key] = committed.tallies.get(key, 0.0) + 1.0
            if repair.root:
                yield from _let_go(repair, now, committed)
            if words and repair.id in words:
                committed.overrides.append(words[repair.id])
    makers = {run_id: repair.id for repair in committed.repairs for run_id in repair.new_runs}
    rows: list[Row] = [(source, run_id, root, makers[run_id]) for (source, run_id), root in committed.lineage.items()]
    yield from insert("lineage", "source, run_id, root, retry_id", rows, conflict="(source, run_id) DO NOTHING")
    rows = [(o.id, o.until, o.ended_at, codec.to_json(o)) for o in committed.overrides]
    yield from insert("overrides", "id, until, ended_at, data", rows, conflict="(id) DO NOTHING")
    yield from _follow(committed)
    yield from add_tallies(committed.tallies)
    if kind:
        yield from add_records(now, [about_repair(kind, repair, who=who) for repair in committed.repairs])
        yield from add_records(now, [about_override("override", o, o.who) for o in committed.overrides])
    return committed


def cancel(operation: str, *, who: str, now: float) -> Script[Committed]:
    """Take back what of an operation has not been sent."""
    rows = yield (
        "SELECT data FROM repairs WHERE operation_id = $1 AND state = 'waiting' AND outcome IS NULL",
        (operation,),
    )
    cancelled = [
        replace(_decode(data), outcome=RepairOutcome.CANCELLED, closed_at=now, detail=f"cancelled by {who}")
        for (data,) in rows
    ]
    return (yield from save(cancelled, now=now, kind="repair cancelled", who=who))


def calls(source: str, since: float) -> Script[list[Retry]]:
    """Repairs that ran a workflow anew, as calls that dead letters may descend from, like retries."""
    rows = yield (
        "SELECT data FROM repairs WHERE source = $1 AND action = $2 AND state <> 'waiting'",
        (source, RepairAction.RERUN.value),
    )
    found = [_decode(data) for (data,) in rows]
    return [_as_call(repair) for repair in found if repair.sent_at is not None and repair.sent_at > since]


def prune(*, before: float, keep: Collection[Key]) -> Script[None]:
    """Forget what was closed before a moment; nothing of the roots (source, root) to keep."""
    rows = yield "SELECT id, source, root FROM repairs WHERE closed_at < $1", (before,)
    for part in chunks((identity,) for identity, source, root in rows if (source, root) not in keep):
        numbers = ", ".join(f"${number}" for number in range(1, len(part) + 1))
        yield f"DELETE FROM repairs WHERE id IN ({numbers})", flat(part)


def about_repair(kind: str, repair: Repair, *, who: str) -> dict[str, object]:
    return {
        "kind": kind,
        "who": who,
        "source": repair.source,
        "repair": repair.id,
        "operation": repair.operation,
        "action": repair.action,
        repair.action.subject.replace(" ", "_"): repair.subject_id,
        "workflow_id": repair.workflow_id,
        "does": repair.does,
        "changes": repair.changes,
        "state": repair.state,
        "outcome": repair.outcome,
        "new_runs": repair.new_runs,
        "detail": repair.detail,
    }


def _let_go(repair: Repair, now: float, committed: Committed) -> Script[None]:
    """Let the root of a dead letter be retried again."""
    hold = f"{repair.id}-hold"
    yield "UPDATE overrides SET ended_at = $2 WHERE id = $1 AND ended_at IS NULL", (hold, now)
    committed.ended_overrides.append(hold)


def _is_paused(source: str, now: float) -> Script[bool]:
    rows = yield "SELECT data FROM overrides WHERE ended_at IS NULL AND (until IS NULL OR until > $1)", (now,)
    said = [msgspec.json.decode(data, type=Override) for (data,) in rows]
    return any(
        o.action is OverrideAction.PAUSE and o.scope in (Scope.ENGINE, Scope.SOURCE) and o.source in ("", source)
        for o in said
    )


def _is_free(repair: Repair) -> Script[bool]:
    """Whether a dead letter is still open, and no retry of it is; where its workflow is run, none of that."""
    rows = yield (
        "SELECT 1 FROM dead_letters WHERE source = $1 AND dead_letter_id = $2 AND resolved_at IS NOT NULL",
        (repair.source, repair.subject_id),
    )
    if rows:
        return False
    rows = yield (
        "SELECT root, data FROM retries WHERE source = $1 AND outcome IS NULL AND shadow = 0",
        (repair.source,),
    )
    alone = repair.action is RepairAction.RERUN
    return not any(
        root == repair.root or (alone and msgspec.json.decode(data, type=Retry).workflow_id == repair.workflow_id)
        for root, data in rows
    )


def _follow(committed: Committed) -> Script[None]:
    """Have the operations say how far their repairs are."""
    by_operation: dict[str, list[Item]] = {}
    for repair in committed.repairs:
        item = Item(
            source=repair.source, dead_letter_id=repair.subject_id, state=repair.item_state, detail=repair.detail
        )
        by_operation.setdefault(repair.operation, []).append(item)
    for identity, items in by_operation.items():
        noted = yield from operations.note(identity, items)
        committed.operations |= noted.operations


def _as_call(repair: Repair) -> Retry:
    sent_at = repair.asked_at if repair.sent_at is None else repair.sent_at
    return Retry(
        id=repair.id,
        source=repair.source,
        workflow_id=repair.workflow_id,
        dead_letter_id=repair.subject_id,
        run_id=repair.run_id,
        attempt=repair.attempt,
        opened_at=repair.opened_at,
        root=repair.root,
        ordinal=0,
        policy="",
        policy_hash="",
        group="",
        failed_at=repair.opened_at,
        claimed_at=sent_at,
        send_by=repair.send_by,
        sent_at=sent_at,
        sent_at_theirs=repair.sent_at_theirs,
        doubt_at=sent_at,
        deadline=CALL_SECONDS_MAX,
        handle=repair.handle,
    )


def _row(repair: Repair) -> Row:
    return (
        repair.id, repair.source, repair.action.subject.value, repair.subject_id, repair.action.value, repair.root,
        repair.operation, repair.state.value, _outcome(repair), repair.closed_at, codec.to_json(repair),
    )  # fmt: skip


def _outcome(repair: Repair) -> str | None:
    return None if repair.outcome is None else repair.outcome.value
