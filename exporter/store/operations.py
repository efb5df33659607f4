"""The ledger of operations: what a person has done to many dead letters at once, and what became of each."""

from collections.abc import Iterable, Sequence

import msgspec

from exporter.model.ledger import Committed
from exporter.model.operations import Item, ItemState, Operation, OperationState
from exporter.model.retries import Override, Retry
from exporter.store import codec
from exporter.store.audit import add_records
from exporter.store.script import Script, insert

_decode = msgspec.json.Decoder(Operation).decode
#: Operations kept in memory: those under way, and the newest.
RECENT_MAX = 100


def load(limit: int = RECENT_MAX) -> Script[dict[str, OperationState]]:
    """The newest operations with their dead letters, and all that are under way."""
    rows = yield (
        """SELECT id, data FROM operations WHERE ended_at IS NULL
            OR id IN (SELECT id FROM operations ORDER BY created_at DESC LIMIT $1)""",
        (limit,),
    )
    found: dict[str, OperationState] = {}
    for identity, data in rows:
        found[identity] = yield from _state(_decode(data))
    return found


def one(identity: str) -> Script[OperationState | None]:
    """An operation by its id, however old."""
    if "\0" in identity:  # not each database takes the question
        return None
    rows = yield "SELECT data FROM operations WHERE id = $1", (identity,)
    return (yield from _state(_decode(rows[0][0]))) if rows else None


def _state(operation: Operation) -> Script[OperationState]:
    rows = yield (
        """SELECT source, dead_letter_id, state, detail FROM operation_items
            WHERE operation_id = $1 ORDER BY source, dead_letter_id""",
        (operation.id,),
    )
    items = [Item(source=r[0], dead_letter_id=r[1], state=r[2], detail=r[3]) for r in rows]
    return OperationState(operation=operation, items=items)


def begin(state: OperationState, *, now: float) -> Script[Committed]:
    """Write down an operation and its frozen list."""
    operation = state.operation
    yield (
        "INSERT INTO operations (id, created_at, ended_at, data) VALUES ($1, $2, $3, $4)",
        (operation.id, operation.created_at, operation.ended_at, codec.to_json(operation)),
    )
    rows = [(operation.id, item.source, item.dead_letter_id, item.state, item.detail) for item in state.items]
    yield from insert(
        "operation_items",
        "operation_id, source, dead_letter_id, state, detail",
        rows,
        conflict="(operation_id, source, dead_letter_id) DO NOTHING",
    )
    yield from add_records(now, [_record("operation", operation, dead_letters=len(state.items))])
    return Committed(operations={operation.id: state})


def end(operation: Operation, *, now: float, cancelled: Sequence[Item] = ()) -> Script[Committed]:
    """Write down that an operation has come to its end, or that the rest of it was cancelled."""
    yield (
        "UPDATE operations SET ended_at = $2, data = $3 WHERE id = $1",
        (operation.id, operation.ended_at, codec.to_json(operation)),
    )
    for item in cancelled:
        yield from _set(operation.id, item.source, item.dead_letter_id, item.state, item.detail)
    kind = "operation cancelled" if operation.cancelled_by else "operation ended"
    yield from add_records(now, [_record(kind, operation, cancelled=len(cancelled))])
    state = yield from _state(operation)
    return Committed(operations={operation.id: state})


def advance(retry: Retry, state: str, committed: Committed) -> Script[None]:
    """Note how far the dead letter of a retry has come in its operation."""
    yield from _set(retry.operation, retry.source, retry.dead_letter_id, state, retry.detail)
    yield from _publish([retry.operation], committed)


def note(identity: str, items: Sequence[Item]) -> Script[Committed]:
    """Note how far these have come."""
    committed = Committed()
    for item in items:
        yield from _set(identity, item.source, item.dead_letter_id, item.state, item.detail)
    yield from _publish([identity], committed)
    return committed


def void(overrides: Iterable[Override], *, who: str, committed: Committed) -> Script[None]:
    """What these had let pass, and was not tried yet, is void."""
    touched: list[str] = []
    for override in overrides:
        letter_id = override.snapshot.get("id")
        if not override.operation or letter_id is None:
            continue
        yield (
            """UPDATE operation_items SET state = $4, detail = $5 WHERE operation_id = $1 AND source = $2
                AND dead_letter_id = $3 AND state = 'waiting'""",
            (override.operation, override.source, letter_id, ItemState.VOID.value, f"taken back by {who}"),
        )
        touched.append(override.operation)
    yield from _publish(touched, committed)


def _set(identity: str, source: str, letter_id: str, state: str, detail: str) -> Script[None]:
    yield (
        """UPDATE operation_items SET state = $4, detail = $5
            WHERE operation_id = $1 AND source = $2 AND dead_letter_id = $3""",
        (identity, source, letter_id, state, detail),
    )


def _publish(identities: Iterable[str], committed: Committed) -> Script[None]:
    for identity in dict.fromkeys(identities):
        state = yield from one(identity)
        if state is not None:
            committed.operations[identity] = state


def prune(before: float) -> Script[None]:
    """Forget operations that ended before a moment."""
    yield (
        """DELETE FROM operation_items WHERE operation_id IN (SELECT id FROM operations WHERE ended_at < $1)""",
        (before,),
    )
    yield "DELETE FROM operations WHERE ended_at < $1", (before,)


def _record(kind: str, operation: Operation, **more: object) -> dict[str, object]:
    return {
        "kind": kind,
        "who": operation.cancelled_by or operation.who,
        "operation": operation.id,
        "action": operation.action,
        "selected": operation.selected,
        "why": operation.why,
        **more,
    }
