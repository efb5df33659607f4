"""Why what a person asks for makes no sense for a dead letter as it is, said before anything is done.

What is offered to people and what is begun follow these same rules.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from exporter.model.decision import Ladder, climb, snapshot_of
from exporter.model.operations import Alike, OperationAction
from exporter.model.policy import Rules
from exporter.model.retries import Action, Mode, Override, OverrideAction, Reason, Scope
from exporter.model.subject import Subject
from exporter.retries.control import Found

#: Refusals of the ladder that no time and no approval ends.
_FOR_GOOD = frozenset({Reason.UNDETERMINED, Reason.NOT_ELIGIBLE, Reason.EXHAUSTED})


def objection(found: Found | None, action: OperationAction, *, until: float = float("inf")) -> str | None:
    """Why an action can never come true for a dead letter as it is, up to when it ends by itself; None if it can."""
    if found is None or action not in (OperationAction.APPROVE, OperationAction.RETRY):
        return None
    ladder, decision = found.ladder, found.ladder.decision
    repaired = next((o for o in found.subject.overrides if o.snapshot.get("repair")), None)
    if repaired is not None:
        return repaired.why
    if found.subject.traits is None:
        return "this platform knows no retry"
    if decision.mode.rank < Mode.APPROVE.rank:
        return f"the mode is {decision.mode}; nothing is sent in it"
    refusing = [rung for rung in ladder.rungs if rung.refuses]
    held = next((rung for rung in refusing if rung.reason is Reason.HELD or rung.verb.value == "quarantine"), None)
    if held is not None and held.reason is not Reason.EXHAUSTED:
        return f"{held.detail}; release it first"
    if action is OperationAction.APPROVE:
        if ladder.owner is None and not any(rung.reason is Reason.UNDETERMINED for rung in refusing):
            return "no policy owns it; ask for a retry of it instead"
        if ladder.owner is not None and ladder.owner.action is not Action.RETRY:
            return f"its policy {ladder.owner.name} says {ladder.owner.action}; ask for a retry of it instead"
    for rung in refusing:
        at_once = action is OperationAction.RETRY and rung.reason in (Reason.EXHAUSTED, Reason.UNDETERMINED)
        if rung.reason in _FOR_GOOD and not at_once:
            way_out = "; release it first, or ask for a retry of it" if rung.reason is Reason.EXHAUSTED else ""
            return f"{rung.detail}{way_out}"
        ends = float("inf") if rung.next_at is None else rung.next_at
        if rung.reason is Reason.PAUSED and ends >= until:
            return f"{rung.detail} for longer than that would hold; resume first"
        if rung.reason is Reason.WINDOW and ends >= until and action is OperationAction.APPROVE:
            return "the hours of its policy never open, or after that would have ended; ask for a retry of it instead"
    return None


def named(refused: Mapping[tuple[str, str], str]) -> dict[str, str]:
    return {f"{source}/{letter_id}": why for (source, letter_id), why in refused.items()}


def all_refused(reasons: Sequence[Alike]) -> str:
    """One line that says why an operation makes no sense at all."""
    first, count = reasons[0], sum(one.count for one in reasons)
    if count == 1:
        return f"{first.example}: {first.why}"
    more = "" if len(reasons) == 1 else f"; {count - first.count} for other reasons"
    return f"it makes sense for none of {count} dead letters: {first.count} such as {first.example}: {first.why}{more}"


def never_sent(subject: Subject, ladder: Ladder, rules: Rules, now: float) -> str | None:
    """Why a retry at once would not be sent though a person says so: what the ladder will say then; None if it may."""
    word = Override(
        id="",
        scope=Scope.ROOT,
        source=subject.source,
        key=subject.root,
        action=OverrideAction.RETRY_NOW,
        until=None,
        who="",
        created_at=now,
        snapshot=snapshot_of(subject, ladder.owner, OverrideAction.RETRY_NOW),
    )
    climbed = climb(replace(subject, overrides=[*subject.overrides, word]), rules, now)
    refusing = (rung for rung in climbed.rungs if rung.refuses and rung.reason is Reason.NOT_ELIGIBLE)
    return next((rung.detail for rung in refusing), None)
