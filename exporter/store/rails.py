"""What the engine keeps between retries so that a restart forgets nothing: gates, setbacks, budgets, refused looks.

All are rows of one table, by source, kind and key.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from exporter.model import catalogue
from exporter.model.ledger import Committed, Key
from exporter.model.rails import NEW_GATE, Gate, Purse, Setback
from exporter.model.retries import Reason
from exporter.model.subject import Refused
from exporter.model.tallies import SUM
from exporter.store import codec
from exporter.store.script import Row, Script, chunks, flat, insert, values

GATE, SETBACK, PURSE, REFUSED, TURN = "gate", "setback", "purse", "refused", "turn"
ESCALATED = "escalated"
_gate = msgspec.json.Decoder(Gate).decode
_setback = msgspec.json.Decoder(Setback).decode
_purse = msgspec.json.Decoder(Purse).decode
_refused = msgspec.json.Decoder(Refused).decode


@dataclass(slots=True, kw_only=True)
class KeptState:
    """All of it, as read at the start."""

    gates: dict[tuple[str, str, str], Gate] = field(default_factory=dict)
    setbacks: dict[Key, Setback] = field(default_factory=dict)
    purses: dict[str, Purse] = field(default_factory=dict)
    refused: dict[Key, Refused] = field(default_factory=dict)
    escalated: set[Key] = field(default_factory=set)  # by source, and root and reason
    turns: dict[str, float] = field(default_factory=dict)  # when each source's dead letters were last decided about


def load() -> Script[KeptState]:
    """Everything that is kept."""
    found = KeptState()
    for source, kind, key, data in (yield "SELECT source, kind, key, data FROM retry_state", ()):
        match kind:
            case "gate":
                policy, _, group = key.partition("\0")
                found.gates[source, policy, group] = _gate(data)
            case "setback":
                found.setbacks[source, key] = _setback(data)
            case "purse":
                found.purses[source] = _purse(data)
            case "refused":
                found.refused[source, key] = _refused(data)
            case "escalated":
                found.escalated.add((source, key))
            case "turn":
                found.turns[source] = float(data)
    return found


def last_turn(source: str) -> Script[float | None]:
    """When the dead letters of a source were last decided about."""
    rows = yield "SELECT data FROM retry_state WHERE source = $1 AND kind = $2 AND key = ''", (source, TURN)
    return float(rows[0][0]) if rows else None


def put(source: str, kind: str, states: Mapping[str, Any]) -> Script[None]:
    """Keep these, by key; None: no longer."""
    gone = [(source, kind, key) for key, state in states.items() if state is None]
    for part in chunks(gone):
        yield f"DELETE FROM retry_state WHERE (source, kind, key) IN (VALUES {values(len(part), 3)})", flat(part)
    rows = [(source, kind, key, codec.to_json(state)) for key, state in states.items() if state is not None]
    conflict = "(source, kind, key) DO UPDATE SET data = excluded.data"
    yield from insert("retry_state", "source, kind, key, data", rows, conflict=conflict)


def gates(source: str, keys: Iterable[tuple[str, str]]) -> Script[dict[tuple[str, str], Gate]]:
    """How these gates (policy and group) stand; a new one where nothing is kept."""
    found: dict[tuple[str, str], Gate] = {}
    for policy, group in keys:
        rows = yield (
            "SELECT data FROM retry_state WHERE source = $1 AND kind = $2 AND key = $3",
            (source, GATE, f"{policy}\0{group}"),
        )
        found[policy, group] = _gate(rows[0][0]) if rows else NEW_GATE
    return found


def put_gates(source: str, changed: Mapping[tuple[str, str], Gate], committed: Committed) -> Script[None]:
    yield from put(source, GATE, {f"{policy}\0{group}": gate for (policy, group), gate in changed.items()})
    committed.gates |= {(source, policy, group): gate for (policy, group), gate in changed.items()}


def redate(source: str, changed: Mapping[tuple[str, str], Gate], state: Purse | None) -> Script[Committed]:
    """Put right what was noted by a clock that was ahead."""
    committed = Committed()
    yield from put_gates(source, changed, committed)
    if state is not None:
        yield from put(source, PURSE, {"": state})
        committed.purses[source] = state
    return committed


def setbacks(source: str, keys: Iterable[str]) -> Script[dict[str, Setback]]:
    found: dict[str, Setback] = {}
    for key in keys:
        rows = yield _one(source, SETBACK, key)
        if rows:
            found[key] = _setback(rows[0][0])
    return found


def purse(source: str) -> Script[Purse | None]:
    rows = yield _one(source, PURSE, "")
    return _purse(rows[0][0]) if rows else None


def _one(source: str, kind: str, key: str) -> tuple[str, Row]:
    return "SELECT data FROM retry_state WHERE source = $1 AND kind = $2 AND key = $3", (source, kind, key)


def put_setbacks(source: str, states: Mapping[str, Setback]) -> Script[Committed]:
    """Leave a source ("") or its workflows alone for a while."""
    yield from put(source, SETBACK, states)
    return Committed(setbacks={(source, key): state for key, state in states.items()})


def put_purse(source: str, state: Purse) -> Script[Committed]:
    yield from put(source, PURSE, {"": state})
    return Committed(purses={source: state})


def beat(source: str, now: float) -> Script[None]:
    """Note that the dead letters of a source are being decided about."""
    yield from put(source, TURN, {"": now})


def slept(source: str, seconds: float, now: float) -> Script[None]:
    """Nobody decided for so long: what could have been tried otherwise could not, and did not age."""
    yield (
        "UPDATE decisions SET waited = waited + $2 WHERE source = $1 AND waits_since IS NULL",
        (source, seconds),
    )
    yield from beat(source, now)


def prune(source: str, gates: Iterable[tuple[str, str]]) -> Script[None]:
    """Forget these gates, and why looks at dead letters refused that are no longer open."""
    yield from put(source, GATE, {f"{policy}\0{group}": None for policy, group in gates})
    yield (
        """DELETE FROM retry_state WHERE source = $1 AND kind = $2 AND NOT EXISTS (SELECT 1 FROM dead_letters d
            WHERE d.source = retry_state.source AND d.dead_letter_id = retry_state.key AND d.resolved_at IS NULL)""",
        (source, REFUSED),
    )


def put_refused(source: str, states: Mapping[str, Refused | None]) -> Script[Committed]:
    """Remember why the last look at dead letters (by id) refused, and until when that holds; None: it does not."""
    yield from put(source, REFUSED, states)
    return Committed(refused={(source, letter_id): state for letter_id, state in states.items()})


def escalation(root: str, reason: Reason) -> str:
    """Under which key it is kept that a person was told of a root, and why."""
    return f"{root}\0{reason}"


def escalate(wanted: Mapping[Key, str], *, now: float, committed: Committed) -> Script[None]:
    """Tell a person of these (source, and root and reason; with their policy), of each once for good: it is counted."""
    for part in chunks((source, ESCALATED, key, codec.to_json(now)) for source, key in wanted):
        rows = yield (
            f"INSERT INTO retry_state (source, kind, key, data) VALUES {values(len(part), 4)} "
            "ON CONFLICT DO NOTHING RETURNING source, key",
            flat(part),
        )
        for source, key in rows:
            committed.escalated[source, key] = True
            labels = (wanted[source, key], key.rpartition("\0")[2])
            tally = (catalogue.RETRY_ESCALATIONS.name, source, "", labels, SUM)
            committed.tallies[tally] = committed.tallies.get(tally, 0.0) + 1.0


def forget_escalated(keys: Iterable[Key], committed: Committed) -> Script[None]:
    """Let a person be told of these anew."""
    for part in chunks((source, ESCALATED, key) for source, key in keys):
        yield f"DELETE FROM retry_state WHERE (source, kind, key) IN (VALUES {values(len(part), 3)})", flat(part)
        committed.escalated |= {(source, key): False for source, _, key in part}


def prune_escalated(*, before: float, keep: Collection[Key]) -> Script[Committed]:
    """Forget of whom a person was told before a moment, but for the roots (source, root) to keep."""
    committed = Committed()
    rows = yield "SELECT source, key, data FROM retry_state WHERE kind = $1", (ESCALATED,)
    old = [(source, key) for source, key, data in rows if float(data) < before]
    yield from forget_escalated([one for one in old if (one[0], one[1].rpartition("\0")[0]) not in keep], committed)
    return committed
