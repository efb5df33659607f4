"""Operations that take another call than a retry: discard, reactivate, stop, fix, rerun.

Whoever begins one has been told by name what would be done to each: that is the approval. Each is planned first, which
only reads; what is refused then never becomes a repair. A group may only be discarded, as the list it is now.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exporter.clock import Clock
from exporter.model import DeadLetter, Run, Workflow
from exporter.model.operations import Item, ItemState, Operation, OperationAction, OperationState
from exporter.model.repairs import Repair, RepairAction, RepairSubject
from exporter.platform.repairing import Plan, case_of
from exporter.retries import repair_protocol as protocol
from exporter.retries.book import RetryBook, new_id
from exporter.retries.control import ControlError
from exporter.retries.objections import objection
from exporter.retries.operations import REPAIRED_MAX, UNDO_SECONDS, Operations, Selection
from exporter.retries.repairer import Repairer, not_granted
from exporter.source import Source
from exporter.store import repairs as script
from exporter.store.ledger import Ledger
from exporter.wire.errors import ApiError

#: All plans of one operation have to be made in so long (seconds).
PLAN_SECONDS_MAX = 45.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Thing:
    """What is to be repaired."""

    source: str
    about: DeadLetter | Run | Workflow
    root: str = ""  # of a dead letter

    @property
    def key(self) -> str:
        return f"{self.source}/{self.about.id}"


class RepairOperations:
    """Begins them, where the sources are connected."""

    def __init__(
        self,
        operations: Operations,
        book: RetryBook,
        ledger: Ledger,
        clock: Clock,
        *,
        sources: Mapping[str, Source],
        repairers: Mapping[str, Repairer],
    ) -> None:
        self._operations = operations
        self._book = book
        self._ledger = ledger
        self._clock = clock
        self._sources = sources
        self._repairers = repairers

    async def begin(
        self,
        action: OperationAction,
        selection: Selection,
        *,
        who: str,
        why: str = "",
        at_once: bool = False,
        stop_after: int | None = None,
        dry_run: bool = False,
    ) -> dict[str, Any]:
        """Plan it, and have what is not refused done a little later. Raises ``ControlError``."""
        repair = RepairAction(action.value)
        things = self._meant(repair, selection)
        for source in dict.fromkeys(thing.source for thing in things):
            self._check_grant(repair, source)
        if len(things) > REPAIRED_MAX:
            detail = f"these are {len(things)}; {repair} takes {REPAIRED_MAX} at most: name fewer"
            raise ControlError(detail, status=400)
        refused = {thing.key: no for thing in things if (no := self._objection(repair, thing)) is not None}
        plans = await self._plans(repair, [thing for thing in things if thing.key not in refused])
        refused |= {key: plan.refusal for key, plan in plans.items() if plan.refusal is not None}
        if len(refused) == len(things):
            raise ControlError(f"{things[0].key}: {refused[things[0].key]}")
        now = self._clock.now()
        operation = Operation(
            id=new_id(),
            action=action,
            who=who,
            why=why,
            selected=selection.facts(),
            created_at=now,
            starts_at=now if at_once else now + UNDO_SECONDS,
            stop_after=stop_after,
        )
        covered = [thing for thing in things if thing.key not in refused]
        answer: dict[str, Any] = {
            "operation": None if dry_run else operation.id,
            "action": action.value,
            "count": len(covered),
            "dead_letters": [thing.key for thing in covered],
            "plans": [_words(thing, plans[thing.key]) for thing in covered],
            "refused": [f"{key}: {why_not}" for key, why_not in refused.items()],
        }
        if dry_run:
            return answer | {"dry_run": True}
        repairs = [self._repair(repair, thing, plans[thing.key], operation) for thing in covered]
        items = [_item(thing, refused.get(thing.key)) for thing in things]
        state = OperationState(operation=operation, items=items)
        await self._ledger.transact("operation", script.begin(state, repairs, now=now))
        for source in {thing.source for thing in covered}:
            self._repairers[source].due.set()
        return answer | {"starts_at": operation.starts_at, "until": repairs[0].until}

    def objection(self, action: OperationAction, source: str, identity: str) -> str | None:
        """Why it cannot be begun, as far as that is known without asking the platform; None if it can."""
        repair = RepairAction(action.value)
        try:
            if source in self._sources:  # it costs less to see that it is not granted
                self._check_grant(repair, source)
            thing = self._one(repair, source, identity)
        except ControlError as exc:
            return str(exc)
        return self._objection(repair, thing)

    # What is meant

    def _meant(self, action: RepairAction, selection: Selection) -> list[_Thing]:
        if action is RepairAction.DISCARD:
            return [
                _Thing(source=one.subject.source, about=one.subject.letter, root=one.subject.root)
                for one in self._operations.selected(selection)
            ]
        alone = selection.ids or (action.subject is RepairSubject.WORKFLOW and selection.workflow is not None)
        if not alone or selection.group or selection.policy or selection.between:
            kind = {RepairSubject.RUN: "RUN", RepairSubject.WORKFLOW: "WORKFLOW"}.get(action.subject, "ID")
            raise ControlError(f"{action} takes what it is done to by name: SOURCE/{kind}", status=400)
        keys = [*selection.ids, *([selection.workflow] if selection.workflow is not None else [])]
        found = {thing.key: thing for key in keys for thing in [self._one(action, *key)]}
        return list(found.values())

    def _one(self, action: RepairAction, source: str, identity: str) -> _Thing:
        if source not in self._sources:
            raise ControlError(f"there is no source {source}", status=404)
        known = self._sources[source].known
        if action.subject is RepairSubject.DEAD_LETTER:
            (found,) = self._operations.selected(Selection(ids=[(source, identity)]))
            return _Thing(source=source, about=found.subject.letter, root=found.subject.root)
        if action.subject is RepairSubject.RUN:
            run = known.open_runs.get(identity)
            if run is None:
                raise ControlError(f"{source} has no run {identity} that is under way", status=404)
            return _Thing(source=source, about=run)
        letter = known.dead_letters.get(identity)
        workflow = known.workflows.get(identity if letter is None else letter.workflow_id)
        if workflow is None:
            raise ControlError(f"{source} has no workflow {identity}", status=404)
        return _Thing(source=source, about=workflow)

    # What stands in the way

    def _check_grant(self, action: RepairAction, source: str) -> None:
        platform = self._sources[source].platform
        if platform.repairing is None or action not in platform.repairing.actions:
            raise ControlError(f"{platform.title} cannot {action}")
        if action not in self._repairers[source].granted:
            raise ControlError(not_granted(action, source), status=403)

    def _objection(self, action: RepairAction, thing: _Thing) -> str | None:
        """Why it cannot be begun, as far as that is known without asking."""
        kept = self._book.repairs
        open_one = kept.of(thing.source, action.subject, thing.about.id)
        if open_one is not None:
            return f"a {open_one.action} of it is open, operation {open_one.operation}"
        if not isinstance(thing.about, DeadLetter):
            return None
        retry = next((one for one in self._book.open_of(thing.source) if one.root == thing.root), None)
        if retry is not None:
            return f"its retry {retry.id} is {retry.state}"
        before = kept.rerun(thing.source, thing.about.id)
        if action is RepairAction.RERUN and before is not None:
            return f"it was run again already, operation {before.operation}: {before.detail}"
        if action is RepairAction.FIX:
            (found,) = self._operations.selected(Selection(ids=[(thing.source, thing.about.id)]))
            return objection(found, OperationAction.RETRY)
        return None

    async def _plans(self, action: RepairAction, things: Sequence[_Thing]) -> dict[str, Plan]:
        plans: dict[str, Plan] = {}
        try:
            async with asyncio.timeout(PLAN_SECONDS_MAX):
                for thing in things:
                    plans[thing.key] = await self._plan(action, thing)
        except TimeoutError:
            detail = (
                f"the platform was asked about {len(plans)} of {len(things)} in {PLAN_SECONDS_MAX:.0f} s: name fewer"
            )
            raise ControlError(detail, status=504) from None
        return plans

    async def _plan(self, action: RepairAction, thing: _Thing) -> Plan:
        try:
            return await self._repairers[thing.source].plan(case_of(action, thing.about))
        except ApiError as error:
            return Plan(at=0.0, refusal=f"the platform could not be asked: {error}")

    def _repair(self, action: RepairAction, thing: _Thing, plan: Plan, operation: Operation) -> Repair:
        about, letter = thing.about, thing.about if isinstance(thing.about, DeadLetter) else None
        return Repair(
            id=new_id(),
            source=thing.source,
            action=action,
            operation=operation.id,
            who=operation.who,
            workflow_id=about.id if isinstance(about, Workflow) else about.workflow_id,
            subject_id=about.id,
            run_id=None if letter is None else letter.run_id,
            attempt=1 if letter is None else letter.attempt,
            opened_at=0.0 if letter is None else letter.opened_at,
            root=thing.root,
            mark=plan.mark,
            does=plan.does,
            changes=tuple(plan.changes),
            asked_at=operation.created_at,
            starts_at=operation.starts_at,
            until=operation.created_at + protocol.WAITS_MOST,
        )


def _item(thing: _Thing, refusal: str | None) -> Item:
    if refusal is None:
        return Item(source=thing.source, dead_letter_id=thing.about.id)
    state = ItemState.REFUSED.value
    return Item(source=thing.source, dead_letter_id=thing.about.id, state=state, detail=refusal)


def _words(thing: _Thing, plan: Plan) -> dict[str, Any]:
    return {"of": thing.key, "does": plan.does, "changes": list(plan.changes)}
