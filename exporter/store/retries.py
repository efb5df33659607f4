"""The ledger of retries: what becomes of them, what people said, what was decided.

Its one writer is the retrier. Every transaction here adds to the audit, whose rows are linked by their hashes.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from exporter.model import DeadLetter, catalogue
from exporter.model.ledger import Committed, Key
from exporter.model.operations import OperationState
from exporter.model.policy import GateRules
from exporter.model.rails import Gate, Purse, policy_gate
from exporter.model.repairs import Repair
from exporter.model.retries import (
    Decision,
    Outcome,
    Override,
    OverrideAction,
    Reason,
    Retry,
)
from exporter.model.tallies import SUM, Tallies
from exporter.store import codec, operations, rails, repairs
from exporter.store.audit import about_override, about_retry, add_records
from exporter.store.rows import add_tallies
from exporter.store.script import Row, Script, chunks, flat, insert, select_in, values

COLUMNS = "id, source, root, dead_letter_id, shadow, state, outcome, claimed_at, data"
# By the names of their fields: what a row lacks takes its default, what is not known here is left out.
_decode_retry = msgspec.json.Decoder(Retry).decode
_decode_override = msgspec.json.Decoder(Override).decode
#: Calls are looked for from so much (seconds) before a run began: their effects are late, and clocks get corrected.
CALLS_BEFORE = 2 * 86400.0
#: Closed retries read at the start for the status page.
RECENT_MAX = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """What was last decided of a dead letter: policy, decision, reason; and how long it could not have been tried."""

    label: tuple[str, str, str]
    waited: float = 0.0  # seconds, up to that decision
    waits_since: float | None = None  # since when it cannot be tried, if it cannot

    def idle(self, now: float) -> float:
        """Seconds in all, up to now."""
        return self.waited + (0.0 if self.waits_since is None else max(0.0, now - self.waits_since))


@dataclass(slots=True, kw_only=True)
class Remembered:
    """What the ledger knows of retrying, as read at the start."""

    retries: list[Retry] = field(default_factory=list)  # open ones, those of open dead letters' roots, recent ones
    lineage: dict[Key, str] = field(default_factory=dict)  # source, run -> root
    overrides: list[Override] = field(default_factory=list)  # not ended
    decided: dict[Key, Decided] = field(default_factory=dict)  # dead letters
    full_at: dict[str, float] = field(default_factory=dict)  # pace of each source
    of_groups: list[Retry] = field(default_factory=list)  # what closed lately, where that decides who is asked
    lowered_at: dict[str, float] = field(default_factory=dict)  # when each source was last lowered, ended or not
    kept: rails.KeptState = field(default_factory=rails.KeptState)
    operations: dict[str, OperationState] = field(default_factory=dict)
    repairs: list[Repair] = field(default_factory=list)  # open ones, and those whose effect outlasts them


def remember(
    now: float, roots: Callable[[Mapping[Key, str]], Iterable[Key]], *, groups_since: float | None = None
) -> Script[Remembered]:
    """Everything the picture of retrying in memory starts from.

    ``roots`` is given the lineage and says of which roots (source, root) dead letters are open; ``groups_since``, if
    approvals of groups matter, from when on the ends of retries count for them.
    """
    found = Remembered()
    rows = yield "SELECT source, run_id, root FROM lineage", ()
    found.lineage = {(source, run_id): root for source, run_id, root in rows}
    known: dict[str, Retry] = {}
    by_root: dict[str, list[str]] = {}
    for source, root in roots(found.lineage):
        by_root.setdefault(source, []).append(root)
    for source, keys in by_root.items():
        known |= {retry.id: retry for retry in (yield from _of_roots(source, keys))}
    sql = "SELECT data FROM retries WHERE outcome IS NULL AND shadow = 0"
    known |= {retry.id: retry for retry in map(_retry, (yield sql, ()))}
    known |= {retry.id: retry for retry in (yield from recent())}
    found.retries = sorted(known.values(), key=lambda retry: (retry.claimed_at, retry.id))
    found.overrides = yield from open_overrides(now)
    rows = yield """SELECT data FROM overrides WHERE data LIKE '%"action":"lower"%'""", ()
    for override in (override_of(data) for (data,) in rows):
        found.lowered_at[override.source] = max(override.created_at, found.lowered_at.get(override.source, 0.0))
    if groups_since is not None:
        sql = "SELECT data FROM retries WHERE shadow = 0 AND outcome IS NOT NULL AND claimed_at > $1"
        found.of_groups = [_retry(row) for row in (yield sql, (groups_since,))]
    rows = yield "SELECT source, dead_letter_id, policy, decision, reason, waited, waits_since FROM decisions", ()
    found.decided = _decided(rows)
    rows = yield "SELECT source, full_at FROM paces", ()
    found.full_at = dict(rows)
    found.kept = yield from rails.load()
    found.operations = yield from operations.load()
    found.repairs = yield from repairs.load()
    return found


def resume(source: str) -> Script[tuple[dict[Key, Decided], float | None]]:
    """What was last decided of the dead letters of one source, and when that was last done."""
    columns = "source, dead_letter_id, policy, decision, reason, waited, waits_since"
    rows = yield f"SELECT {columns} FROM decisions WHERE source = $1", (source,)
    return _decided(rows), (yield from rails.last_turn(source))


def _decided(rows: Iterable[Row]) -> dict[Key, Decided]:
    return {
        (source, letter_id): Decided(label=(policy, decision, reason), waited=waited, waits_since=since)
        for source, letter_id, policy, decision, reason, waited, since in rows
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the verdict of a retry is weighed by."""

    gate: GateRules = field(default_factory=GateRules)  # of its policy
    storm: bool = False
    well_at: float | None = None  # when a run of its workflow last succeeded by itself, on our clock
    failed_at: float = 0.0  # when the run that failed did, on our clock
    budget: float | None = None  # the most that the source's budget holds, if it has one


def _weigh(retry: Retry, evidence: Evidence, now: float, committed: Committed) -> Script[Retry]:
    """Have the gates follow a verdict, and see what it costs: nothing, if it was not the dead letter's fault."""
    source = retry.source
    returns = retry.outcome in (Outcome.SUCCEEDED, Outcome.NOT_SENT) or bool(retry.spared)
    if retry.outcome in (Outcome.SUCCEEDED, Outcome.FAILED) and not retry.manual:
        keys = {(retry.policy, retry.group): evidence.gate}
        keys[retry.policy, ""] = policy_gate(evidence.gate)
        stood = yield from rails.gates(source, keys)
        good = retry.outcome is Outcome.SUCCEEDED
        if not good and not retry.spared:
            why = _spared(retry, stood.values(), evidence)
            retry = replace(retry, spared=why)
        sick = evidence.well_at is None or evidence.well_at < evidence.failed_at
        after = {
            key: stood[key].judge(
                good=good, claimed_at=retry.claimed_at, sick=sick, rules=rules, now=now, draw=_draw(retry)
            )
            for key, rules in keys.items()
        }
        yield from rails.put_gates(source, {key: gate for key, gate in after.items() if gate != stood[key]}, committed)
    if returns and retry.budgeted and evidence.budget is not None:
        purse = (yield from rails.purse(source)) or Purse(at=now)
        purse = replace(purse, tokens=min(evidence.budget, purse.tokens + 1.0))
        yield from rails.put(source, rails.PURSE, {"": purse})
        committed.purses[source] = purse
    return retry


def _spared(retry: Retry, gates: Iterable[Gate], evidence: Evidence) -> str:
    """Why a failure uses up nothing: it says more of the platform than of the dead letter."""
    if evidence.storm:
        return "storm"
    shut = [gate for gate in gates if gate.is_shut and not gate.is_well(evidence.well_at)]
    on_its_way = any(gate.tripped_at is not None and retry.claimed_at < gate.tripped_at for gate in shut)
    return "cooling" if on_its_way or (retry.excused and shut) else ""


def _draw(retry: Retry) -> float:
    """A number in [0, 1) that is the same each time: drawn from the root and how often it was tried."""
    digest = hashlib.sha256(f"{retry.root}\0{retry.ordinal}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def save(
    retries: Sequence[Retry],
    *,
    now: float,
    kind: str,
    who: str = "engine",
    traced: Collection[str] = (),
    evidence: Mapping[str, Evidence] | None = None,
) -> Script[Committed]:
    """Write what became of open retries. A closed one stays as it is, whatever comes later.

    Those of ``traced`` sources go to the outbox of traces when they close. ``evidence`` is what verdicts are weighed
    by, by the id of the retry.
    """
    committed, written_as = Committed(), list[Retry]()
    for retry in retries:
        if retry.outcome is not None and not retry.shadow:
            still = yield "SELECT 1 FROM retries WHERE id = $1 AND outcome IS NULL", (retry.id,)
            if still:
                retry = yield from _weigh(retry, (evidence or {}).get(retry.id, Evidence()), now, committed)
        written = yield (
            "UPDATE retries SET state = $2, outcome = $3, data = $4 WHERE id = $1 AND outcome IS NULL RETURNING id",
            (retry.id, retry.state.value, _outcome(retry), codec.to_json(retry)),
        )
        if not written:
            continue
        written_as.append(retry)
        committed.retries.append(retry)
        if retry.outcome is not None:
            key = (catalogue.RETRIES.name, retry.source, "", (retry.policy, retry.outcome.value), SUM)
            committed.tallies[key] = committed.tallies.get(key, 0.0) + 1.0
        committed.lineage |= {(retry.source, run_id): retry.root for run_id in retry.new_runs}
        rows = [(retry.source, run_id, retry.root, retry.id) for run_id in retry.new_runs]
        yield from insert("lineage", "source, run_id, root, retry_id", rows, conflict="(source, run_id) DO NOTHING")
        if retry.operation and retry.outcome is not None:
            yield from operations.advance(retry, retry.outcome.value, committed)
        if retry.outcome is not None and retry.source in traced:
            yield from insert("traces", codec.TRACE_COLUMNS, [_trace_row(retry)], conflict="DO NOTHING")
    yield from add_tallies(committed.tallies)
    yield from add_records(now, [about_retry(kind, retry, who=who) for retry in written_as])
    return committed


def change(
    identity: str,
    change: Callable[[Retry], Retry],
    *,
    now: float,
    kind: str,
    who: str,
    traced: Collection[str],
    evidence: Evidence,
) -> Script[Committed]:
    """Change an open retry as it stands here: another process may have changed it since it was read. See ``save``.

    Without a ``kind`` the audit calls it what the retry became.
    """
    found = [_retry(row) for row in (yield "SELECT data FROM retries WHERE id = $1", (identity,))]
    if not found or not found[0].is_open:
        return Committed(retries=found)
    after = change(found[0])
    kind = kind or after.outcome or after.state
    return (yield from save([after], now=now, kind=kind, who=who, traced=traced, evidence={identity: evidence}))


def calls_near(
    source: str, letters: Sequence[DeadLetter], *, offset: float
) -> Script[tuple[dict[str, float | None], list[Retry]]]:
    """When the failed runs of dead letters began, and the calls that may have been made before that.

    ``offset`` is what our clock is ahead of the platform's.
    """
    wanted = [(source, letter.run_id) for letter in letters]
    rows = yield from select_in(codec.RUN_COLUMNS, "runs", "source, run_id", wanted)
    runs = [codec.run_entry(row)[1].run for row in rows]
    began = {run.id: run.queued_at if run.started_at is None else run.started_at for run in runs}
    first = min(moment for letter in letters for moment in (letter.opened_at, began.get(letter.run_id or "")) if moment)
    rows = yield (
        "SELECT data FROM retries WHERE source = $1 AND shadow = 0 AND claimed_at > $2",
        (source, first + offset - CALLS_BEFORE),
    )
    reruns = yield from repairs.calls(source, first + offset - CALLS_BEFORE)
    return began, [*(_retry(row) for row in rows), *reruns]


def descend(source: str, made_by: Mapping[str, Retry], *, now: float) -> Script[Committed]:
    """Note for good that runs (by id) descend from the roots of calls that may have made them.

    A call that was read as refused and ran all the same uses up a retry after all. The retries of these roots come
    along: closed ones may have been forgotten with their dead letter.
    """
    yield from charge([call for call in made_by.values() if call.answer is not None and call.spared])
    rows = [(source, run_id, call.root, call.id) for run_id, call in made_by.items()]
    yield from insert("lineage", "source, run_id, root, retry_id", rows, conflict="(source, run_id) DO NOTHING")
    yield from add_records(
        now,
        [
            {"kind": "descends", "who": "engine", "source": source, "run": run_id, "retry": call.id, "root": call.root}
            for run_id, call in made_by.items()
        ],
    )
    retries = yield from _of_roots(source, sorted({call.root for call in made_by.values()}))
    lineage = {(source, run_id): call.root for run_id, call in made_by.items()}
    return Committed(retries=retries, lineage=lineage)


def charge(retries: Iterable[Retry]) -> Script[list[Retry]]:
    """Have refused calls that ran all the same use up their retries."""
    charged = [replace(retry, spared="", detail=f"{retry.detail}; it ran all the same") for retry in retries]
    for retry in charged:
        yield "UPDATE retries SET data = $2 WHERE id = $1", (retry.id, codec.to_json(retry))
    return charged


def ran_after_all(retries: Sequence[Retry], *, now: float) -> Script[Committed]:
    """Note that refused calls ran all the same."""
    charged = yield from charge(retries)
    yield from add_records(now, [about_retry("ran after all", retry, who="engine") for retry in charged])
    return Committed(retries=charged)


def ends_of_runs(source: str, since: float) -> Script[list[tuple[float, str]]]:
    """When the runs of a source ended since a moment, and how, in order; without those that retries made."""
    rows = yield (
        """SELECT finished_at, result FROM runs WHERE source = $1 AND finished_at > $2 AND NOT EXISTS
            (SELECT 1 FROM lineage l WHERE l.source = runs.source AND l.run_id = runs.run_id) ORDER BY finished_at""",
        (source, since),
    )
    return [(at, result) for at, result in rows if result is not None]


def _of_roots(source: str, roots: Sequence[str]) -> Script[list[Retry]]:
    found: list[Row] = []
    for part in chunks((root,) for root in roots):
        numbers = ", ".join(f"${number}" for number in range(2, len(part) + 2))
        found += yield f"SELECT data FROM retries WHERE source = $1 AND root IN ({numbers})", (source, *flat(part))
    return [_retry(row) for row in found]


def recur(retry: Retry, *, now: float) -> Script[Committed]:
    """Note that what a retry had fixed failed again soon. Its outcome stays."""
    again = replace(retry, recurred=True)
    yield "UPDATE retries SET data = $2 WHERE id = $1", (retry.id, codec.to_json(again))
    yield from add_records(now, [about_retry("recurred", again, who="engine")])
    return Committed(retries=[again])


def decide(
    changed: Mapping[Key, tuple[Decision, Decided]],
    gone: Collection[Key],
    *,
    now: float,
    policies_hash: str,
    escalated: Mapping[Key, str],
) -> Script[Committed]:
    """Remember what is decided of dead letters now, and count the changes.

    Of what is ``escalated`` (source, and root and reason; with its policy) a person is told.
    """
    tallies: Tallies = {}
    committed = Committed(tallies=tallies)
    for (source, _), (decision, _) in changed.items():
        key = (catalogue.RETRY_DECISIONS.name, source, "", decision.label, SUM)
        tallies[key] = tallies.get(key, 0.0) + 1.0
    yield from insert(
        "decisions",
        "source, dead_letter_id, policy, decision, reason, waited, waits_since",
        [(*key, *decided.label, decided.waited, decided.waits_since) for key, (_, decided) in changed.items()],
        conflict="""(source, dead_letter_id)
            DO UPDATE SET policy = excluded.policy, decision = excluded.decision, reason = excluded.reason,
                waited = excluded.waited, waits_since = excluded.waits_since""",
    )
    for part in chunks(gone):
        where = f"(source, dead_letter_id) IN (VALUES {values(len(part), 2)})"
        yield f"DELETE FROM decisions WHERE {where}", flat(part)
    yield from rails.escalate(escalated, now=now, committed=committed)
    yield from add_tallies(tallies)
    yield from add_records(
        now,
        [
            {
                "kind": "decision",
                "source": source,
                "dead_letter": letter_id,
                "policy": decision.policy,
                "policies": policies_hash,
                "mode": decision.mode,
                "decision": decision.verb,
                "reason": decision.reason,
                "detail": decision.detail,
            }
            for (source, letter_id), (decision, _) in changed.items()
        ],
    )
    return committed


def put_overrides(overrides: Sequence[Override], *, now: float) -> Script[Committed]:
    """Let these hold from now on. Of what begins anew, a person is told anew when it comes to its end again."""
    committed = Committed(overrides=list(overrides))
    anew = [
        (o.source, rails.escalation(o.key, reason))
        for o in overrides
        if o.action is OverrideAction.RELEASE
        for reason in (Reason.EXHAUSTED, Reason.HELD)
    ]
    yield from rails.forget_escalated(anew, committed)
    rows = [(o.id, o.until, o.ended_at, codec.to_json(o)) for o in overrides]
    yield from insert("overrides", "id, until, ended_at, data", rows, conflict="(id) DO NOTHING")
    yield from add_records(now, [about_override("override", o, o.who) for o in overrides])
    return committed


def end_overrides(overrides: Sequence[Override], *, who: str, now: float) -> Script[Committed]:
    """Let these hold no longer; what an operation let pass that way is void."""
    committed = Committed(ended_overrides=[override.id for override in overrides])
    for override in overrides:
        yield "UPDATE overrides SET ended_at = $2 WHERE id = $1 AND ended_at IS NULL", (override.id, now)
    yield from operations.void(overrides, who=who, committed=committed)
    yield from add_records(now, [about_override("override ended", o, who) for o in overrides])
    return committed


def redate_overrides(overrides: Sequence[Override], *, now: float) -> Script[Committed]:
    """Let these, which were said by a clock that was ahead, end when they were meant to."""
    for o in overrides:
        yield "UPDATE overrides SET until = $2, data = $3 WHERE id = $1", (o.id, o.until, codec.to_json(o))
    yield from add_records(now, [about_override("override redated", o, "engine") for o in overrides])
    return Committed(overrides=list(overrides))


def set_pace(source: str, full_at: float) -> Script[Committed]:
    """Let the pace of a source be full at this time."""
    yield "UPDATE paces SET full_at = $2 WHERE source = $1", (source, full_at)
    return Committed(full_at={source: full_at})


def prune(*, before: float, keep: Collection[Key]) -> Script[Committed]:
    """Forget what was closed before a moment, and what ended before it; nothing of the roots (source, root) to keep."""
    rows = yield (
        "SELECT id, source, root FROM retries WHERE claimed_at < $1 AND (outcome IS NOT NULL OR shadow = 1)",
        (before,),
    )
    for part in chunks((identity,) for identity, source, root in rows if (source, root) not in keep):
        numbers = ", ".join(f"${number}" for number in range(1, len(part) + 1))
        yield f"DELETE FROM retries WHERE id IN ({numbers})", flat(part)
    yield from repairs.prune(before=before, keep=keep)
    yield (
        """DELETE FROM lineage WHERE NOT EXISTS
            (SELECT 1 FROM retries r WHERE r.source = lineage.source AND r.root = lineage.root) AND NOT EXISTS
            (SELECT 1 FROM repairs r WHERE r.source = lineage.source AND r.root = lineage.root)""",
        (),
    )
    yield "DELETE FROM overrides WHERE ended_at < $1 OR until < $1", (before,)
    yield "DELETE FROM audit WHERE at < $1", (before,)
    yield from operations.prune(before)
    return (yield from rails.prune_escalated(before=before, keep=keep))


def recent(limit: int = RECENT_MAX) -> Script[list[Retry]]:
    """The newest retries, newest first."""
    rows = yield "SELECT data FROM retries ORDER BY claimed_at DESC, id LIMIT $1", (limit,)
    return [_retry(row) for row in rows]


def open_overrides(now: float) -> Script[list[Override]]:
    rows = yield "SELECT data FROM overrides WHERE ended_at IS NULL AND (until IS NULL OR until > $1)", (now,)
    return [override_of(data) for (data,) in rows]


def row_of(retry: Retry) -> Row:
    return (
        retry.id, retry.source, retry.root, retry.dead_letter_id, int(retry.shadow), retry.state.value,
        _outcome(retry), retry.claimed_at, codec.to_json(retry),
    )  # fmt: skip


def _trace_row(retry: Retry) -> Row:
    """In the outbox a retry stands beside the runs: under its own id, as attempt 0, which no run has."""
    return (retry.source, f"retry:{retry.id}", 0, retry.closed_at, 1, codec.to_json(retry))


def retry_of(data: str) -> Retry:
    """A retry from what its row holds."""
    return _decode_retry(data)


def _outcome(retry: Retry) -> str | None:
    return None if retry.outcome is None else retry.outcome.value


def override_of(data: str) -> Override:
    """An override from what its row holds."""
    return _decode_override(data)


def _retry(row: Row) -> Retry:
    return retry_of(row[0])
