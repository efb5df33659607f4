"""Operations: one thing done to many dead letters, on a frozen list, with a reason, progress and a way to stop it.

Whatever a person says can only be said of what is there now: an operation is a list of dead letters as they are, and
void for those that change. What lets dead letters pass takes effect a little later, so that it can be taken back as if
it had never been said.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from exporter.clock import Clock
from exporter.model.decision import snapshot_of
from exporter.model.groups import Group, experience_of, experiences, group_of, rank
from exporter.model.ledger import Key
from exporter.model.operations import Item, ItemState, Operation, OperationAction, OperationState, alike
from exporter.model.retries import Override, OverrideAction
from exporter.retries.book import RetryBook, new_id
from exporter.retries.control import LETS_PASS, Control, ControlError, Found
from exporter.retries.objections import all_refused, named, never_sent, objection
from exporter.store import operations as script
from exporter.store import repairs as repair_script
from exporter.store.ledger import Ledger

#: What lets dead letters pass takes effect so much later (seconds), unless it is to be at once.
UNDO_SECONDS = 10.0
#: Dead letters of an operation looked at before others get a chance to run.
AT_ONCE = 20
#: An approval ends by itself after so long (seconds).
APPROVAL_SECONDS = 86400.0
#: Things of one operation that takes another call than a retry.
REPAIRED_MAX = 50
#: The trend of groups is at most this old (seconds).
GROUPS_SECONDS = 60.0
#: What a person may be offered to do to dead letters, the likeliest first.
_OFFERED = (OperationAction.APPROVE, OperationAction.RELEASE, OperationAction.RETRY, OperationAction.HOLD)
#: And of one alone, what takes another call; the first of them also of a group.
_REPAIRS = (OperationAction.DISCARD, OperationAction.FIX_AND_RETRY, OperationAction.RERUN)
_ASIDE = (OverrideAction.HOLD, OverrideAction.QUARANTINE)
_OVERRIDES = {
    OperationAction.APPROVE: OverrideAction.APPROVE,
    OperationAction.RETRY: OverrideAction.RETRY_NOW,
    OperationAction.HOLD: OverrideAction.HOLD,
    OperationAction.QUARANTINE: OverrideAction.QUARANTINE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which dead letters are meant: these, or all that fit everything else that is given."""

    ids: Sequence[tuple[str, str]] = ()
    group: str | None = None
    policy: str | None = None
    workflow: tuple[str, str] | None = None  # source and id
    between: tuple[float, float] | None = None  # opened then, on the platform's clock

    @property
    def is_empty(self) -> bool:
        return not self.ids and not any((self.group, self.policy, self.workflow, self.between))

    def fits(self, found: Found) -> bool:
        subject, decision = found.subject, found.ladder.decision
        letter = subject.letter
        return (
            (self.group is None or found.group == self.group)
            and (self.policy is None or decision.policy == self.policy)
            and (self.workflow is None or (subject.source, letter.workflow_id) == self.workflow)
            and (self.between is None or self.between[0] <= letter.opened_at <= self.between[1])
        )

    def facts(self) -> dict[str, Any]:
        """As it was asked for, in plain values."""
        asked: dict[str, Any] = {
            "ids": [f"{source}/{letter_id}" for source, letter_id in self.ids],
            "group": self.group,
            "policy": self.policy,
            "workflow": None if self.workflow is None else "/".join(self.workflow),
            "between": None if self.between is None else list(self.between),
        }
        return {name: value for name, value in asked.items() if value}


class Operations:
    """Begins operations, says how far they are, stops them."""

    def __init__(self, book: RetryBook, control: Control, ledger: Ledger, clock: Clock) -> None:
        self._book = book
        self._control = control
        self._ledger = ledger
        self._clock = clock
        self._groups: list[Group] = []
        self._made: dict[str, tuple[Sequence[Found], Group]] = {}
        self._groups_of: Sequence[Found] | None = None
        self._groups_at = float("-inf")
        #: Begins what takes another call than a retry: there only where the sources are connected.
        self.begin_repair: Callable[..., Awaitable[dict[str, Any]]] | None = None
        #: Why such a call cannot be begun (action, source, id), as far as that is known without asking; None if it can.
        self.repair_objection: Callable[[OperationAction, str, str], str | None] = lambda *_: "nothing is connected"

    # What is so

    def groups(self) -> list[Group]:
        """The groups of all open dead letters, the largest first. Made anew once something has changed."""
        found, now = self._control.everything(), self._clock.now()
        is_old = abs(now - self._groups_at) >= GROUPS_SECONDS
        if found is self._groups_of and not is_old:
            return self._groups
        members: dict[str, list[Found]] = {}
        for one in found:
            members.setdefault(one.group, []).append(one)
        known, before = experiences(self._book.everything()), {} if is_old else self._made
        self._made = {}
        for identity, ones in members.items():
            first, (had, group) = ones[0].subject, before.get(identity, ((), None))
            if group is None or had != ones or group.experience != experience_of(known, first.source, first.letter):
                group = group_of(identity, [(one.subject, one.ladder) for one in ones], known, now)
            self._made[identity] = ones, group
        self._groups = sorted((group for _, group in self._made.values()), key=rank)
        self._groups_of, self._groups_at = found, now if is_old else self._groups_at
        return self._groups

    def group(self, identity: str) -> Group:
        """A group by its id. Raises ``ControlError``."""
        for group in self.groups():
            if group.id == identity:
                return group
        raise ControlError(f"there is no group {identity}: none of its dead letters is open", status=404)

    def selected(self, selection: Selection) -> list[Found]:
        """The open dead letters that are meant. Raises ``ControlError`` if there are none, or one of them is not."""
        if selection.is_empty:
            raise ControlError("name what is meant: ids, a group, a policy, a workflow or a time", status=400)
        policies = [policy.name for policy in self._book.rules.policies]
        if selection.policy is not None and selection.policy not in policies:
            known = f"one of {', '.join(policies)}" if policies else "none is configured"
            raise ControlError(f"there is no policy {selection.policy}; {known}", status=404)
        if selection.ids:
            found = [self._control.one(*key) for key in dict.fromkeys(selection.ids)]
        else:
            source = None if selection.workflow is None else self._control.source(selection.workflow[0]).name
            found = self._control.everything(source)
        found = [one for one in found if selection.fits(one)]
        if not found:
            raise ControlError(f"no open dead letter fits {_words(selection)}", status=404)
        return found

    async def one(self, identity: str) -> OperationState:
        """An operation by its id. Raises ``ControlError``."""
        state = self._book.operations.get(identity) or await self._ledger.transact("operation", script.one(identity))
        if state is None:
            raise ControlError(f"there is no operation {identity}", status=404)
        return state

    def newest(self, limit: int = 100) -> list[OperationState]:
        """Operations, the newest first."""
        states = self._book.operations.values()
        return sorted(states, key=lambda state: state.operation.created_at, reverse=True)[:limit]

    def new_since(self, state: OperationState) -> int:
        """How many dead letters have opened since that the operation would have been about as well."""
        action, began = state.operation.action, state.operation.created_at
        selection = _selection(state.operation.selected)
        named = action.is_repair and action is not OperationAction.DISCARD
        if selection.ids or selection.is_empty or named:
            return 0
        known = {item.key for item in state.items}
        return sum(
            1
            for one in self._control.everything()
            if one.subject.letter.opened_at >= began and one.key not in known and selection.fits(one)
        )

    # What may be done

    def can(self, group: Group) -> list[OperationAction]:
        """What a person may do to a group as it is, the likeliest first: what would not be refused by all of it."""
        return self.can_to(self._made[group.id][0])

    def can_to(self, found: Sequence[Found]) -> list[OperationAction]:
        """The same of some dead letters that are open."""
        actions = [action for action in _OFFERED if any(self._offers(action, one) for one in found)]
        for action in _REPAIRS if len(found) == 1 else _REPAIRS[:1]:
            if len(found) <= REPAIRED_MAX and any(
                self.repair_objection(action, one.subject.source, one.subject.letter.id) is None for one in found
            ):
                actions.append(action)
        return actions

    def _offers(self, action: OperationAction, found: Found) -> bool:
        """Whether an action would change something about a dead letter."""
        decision = found.ladder.decision
        if action is OperationAction.APPROVE and not decision.awaits_approval:
            return False
        if action is OperationAction.HOLD and any(o.action in _ASIDE for o in found.subject.overrides):
            return False
        return self.objection(action, (found.subject.source, found.subject.letter.id), found) is None

    def objection(self, action: OperationAction, key: tuple[str, str], found: Found | None) -> str | None:
        """Why an action makes no sense for a dead letter as it was found; None if it does."""
        if action is OperationAction.RELEASE:
            return self._control.not_held(key, found)
        now = self._clock.now()
        why = objection(found, action, until=now + APPROVAL_SECONDS)
        if why is not None or found is None or action is not OperationAction.RETRY:
            return why
        return never_sent(found.subject, found.ladder, self._book.rules, now)

    # What is done

    async def begin(
        self,
        action: OperationAction,
        selection: Selection,
        *,
        who: str,
        why: str = "",
        at_once: bool = False,
        seconds: float | None = None,
        sent: bool = True,
        stop_after: int | None = None,
        dry_run: bool = False,
        only: Collection[tuple[str, str]] | None = None,
    ) -> dict[str, Any]:
        """Do one thing to all that are meant, as they are now. ``seconds`` is how long a hold lasts.

        ``only`` are those that a person has seen: nothing is done to others that are meant by now.

        Dead letters for which it makes no sense are listed as ``refused``, each with its reason; if it makes sense for
        none, that is a ``ControlError``.
        """
        if action.is_repair:
            if self.begin_repair is None:
                raise ControlError(f"{action} asks the platform: start the service, and say it again")
            options = {"who": who, "why": why, "at_once": at_once, "stop_after": stop_after, "dry_run": dry_run}
            return await self.begin_repair(action, selection, **options)
        meant = await self._meant(action, selection, only)
        objections = {key: self.objection(action, key, one) for key, one in meant.items()}
        refused = {key: why_not for key, why_not in objections.items() if why_not is not None}
        if len(refused) == len(meant):
            raise ControlError(all_refused(alike(named(refused))))
        now = self._clock.now()
        lets_pass = action in (OperationAction.APPROVE, OperationAction.RETRY)
        alone = action is OperationAction.RETRY and len(meant) == 1
        operation = Operation(
            id=new_id(),
            action=action,
            who=who,
            why=why,
            selected=selection.facts(),
            created_at=now,
            starts_at=now if at_once or alone or not lets_pass else now + UNDO_SECONDS,
            stop_after=stop_after,
        )
        covered = [key for key in meant if key not in refused]
        until = now + APPROVAL_SECONDS if lets_pass else None if seconds is None else now + seconds
        answer: dict[str, Any] = {
            "operation": None if dry_run else operation.id,
            "action": action.value,
            "count": len(covered),
            "dead_letters": [f"{source}/{letter_id}" for source, letter_id in covered],
            "refused": [f"{key}: {reason}" for key, reason in named(refused).items()],
            "starts_at": operation.starts_at if lets_pass else None,
            "until": until,
        }
        if dry_run:
            return answer | {"dry_run": True}
        state = OperationState(operation=operation, items=[_item(key, refused.get(key)) for key in meant])
        await self._ledger.transact("operation", script.begin(state, now=now))
        if action is OperationAction.RELEASE:
            return answer | await self._release(operation, covered, sent=sent)
        found = [one for key, one in meant.items() if one is not None and key not in refused]
        await self._say(operation, found, until=until)
        if not lets_pass:
            await self._done(operation, covered)
        return answer

    async def cancel(self, identity: str, *, who: str) -> dict[str, Any]:
        """Stop the rest of an operation: what it let pass and was not tried yet. Raises ``ControlError``."""
        state = await self.one(identity)
        if not any(item.state == ItemState.WAITING for item in state.items):
            raise ControlError(f"operation {identity} has nothing left to stop")
        return await self._stop(state, who=who)

    async def settle_once(self) -> None:
        """Note what is void by now, stop operations that fail too often, end those that are done."""
        now = self._clock.now()
        for state in list(self._book.operations.values()):
            operation = state.operation
            if operation.ended_at is not None:
                continue
            failed = sum(count for name, count in state.counts.items() if name in ("failed", "rejected"))
            waiting = [item for item in state.items if item.state == ItemState.WAITING]
            if operation.stop_after is not None and failed >= operation.stop_after and waiting:
                await self._stop(state, who=f"itself, after {failed} failures")
                continue
            void = self._void(operation, waiting, now)
            if void:
                await self._ledger.transact("operation", script.note(operation.id, void))
                state = self._book.operations[operation.id]
            if not state.is_open:
                await self._ledger.transact("operation", script.end(replace(operation, ended_at=now), now=now))

    # How

    async def _meant(
        self, action: OperationAction, selection: Selection, only: Collection[tuple[str, str]] | None
    ) -> dict[Key, Found | None]:
        """What it is done to, by its keys: of a group approved, say, what waits for approval."""
        if selection.ids:
            found = await self._named(action, selection)
        else:
            found = {(one.subject.source, one.subject.letter.id): one for one in self.selected(selection)}
        if only is not None:
            seen = frozenset(only)
            found = {key: one for key, one in found.items() if key in seen}
            if not found:
                raise ControlError("none of them is there any longer as it was")
        if action is OperationAction.APPROVE and not selection.ids:
            found = {key: one for key, one in found.items() if one is not None and one.ladder.decision.awaits_approval}
            if not found:
                raise ControlError(f"nothing waits for approval of {_words(selection)}", status=404)
        return found

    async def _named(self, action: OperationAction, selection: Selection) -> dict[Key, Found | None]:
        """What is named, one by one. A release may name retries as well, and what is no longer open."""
        found: dict[Key, Found | None] = {}
        for number, key in enumerate(selection.ids, start=1):
            one = self._maybe(key) if action is OperationAction.RELEASE else self._control.one(*key)
            if one is not None and not selection.fits(one):
                raise ControlError(f"{one.key} does not fit {_words(selection)}", status=404)
            found[key] = one
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
        return found

    def _void(self, operation: Operation, waiting: Sequence[Item], now: float) -> list[Item]:
        """Those that changed before their turn came, or whose time is up."""
        holding = {
            (override.source, override.snapshot.get("id")): override
            for override in self._book.overrides
            if override.operation == operation.id and override.holds(now)
        }
        void: list[Item] = []
        for item in waiting:
            if self._book.repairs.is_under_way(operation.id, item.source, item.dead_letter_id):
                continue
            override = holding.get((item.source, item.dead_letter_id))
            found = self._maybe((item.source, item.dead_letter_id))
            why = None
            if found is None:
                why = "it is resolved"
            elif override is None:
                why = "its time was up before its turn came"
            elif override.snapshot != snapshot_of(found.subject, found.ladder.owner, override.action):
                why = "it changed before its turn came"
            if why is not None:
                void.append(replace(item, state=ItemState.VOID.value, detail=why))
        return void

    async def _stop(self, state: OperationState, *, who: str) -> dict[str, Any]:
        now, operation = self._clock.now(), state.operation
        words = [o for o in self._book.overrides if o.operation == operation.id and o.action in LETS_PASS]
        await self._book.end(words, who=who, now=now)
        if operation.action.is_repair:
            await self._ledger.transact("operation", repair_script.cancel(operation.id, who=who, now=now))
        state = await self.one(operation.id)
        cancelled = [
            replace(item, state=ItemState.CANCELLED.value, detail=f"cancelled by {who}")
            for item in state.items
            if item.state in (ItemState.WAITING, ItemState.VOID, ItemState.CANCELLED)
            and item.detail in ("", f"taken back by {who}", f"cancelled by {who}")
        ]
        ended = replace(operation, ended_at=now, cancelled_by=who)
        await self._ledger.transact("operation", script.end(ended, now=now, cancelled=cancelled))
        return {"operation": operation.id, "cancelled": len(cancelled)}

    async def _release(self, operation: Operation, keys: Sequence[tuple[str, str]], *, sent: bool) -> dict[str, Any]:
        answers = await self._control.release(
            keys, sent=sent, who=operation.who, why=operation.why, operation=operation.id
        )
        items = [
            Item(
                source=key[0],
                dead_letter_id=key[1],
                state=(ItemState.REFUSED if "refused" in said else ItemState.DONE).value,
                detail=str(said.get("refused", "")),
            )
            for key, said in answers.items()
        ]
        await self._ledger.transact("operation", script.note(operation.id, items))
        if len(keys) == 1:
            [said] = answers.values()
            if "refused" in said:
                raise ControlError(said["refused"])
            return said
        return {"released": sum(1 for said in answers.values() if "refused" not in said)}

    async def _say(self, operation: Operation, found: Sequence[Found], *, until: float | None) -> None:
        action, now = _OVERRIDES[operation.action], self._clock.now()
        lets_pass, words = action in LETS_PASS, list[Override]()
        for number, one in enumerate(found, start=1):
            words.append(
                self._control.word(
                    action,
                    source=one.subject.source,
                    key=one.subject.root,
                    until=until,
                    who=operation.who,
                    why=operation.why,
                    starts_at=operation.starts_at if lets_pass else 0.0,
                    snapshot=snapshot_of(one.subject, one.ladder.owner, action) if lets_pass else None,
                    operation=operation.id,
                )
            )
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
        if lets_pass:
            for one in found:  # what a look refused may be what a person overrides: it is looked at anew
                await self._book.refuse(one.subject.source, one.subject.letter.id, None)
            # said twice, it still is one retry
            before: list[Override] = []
            for word in words:
                said = self._book.overrides.of_root(word.source, word.key)
                before += [override for override in said if override.action in LETS_PASS and override.holds(now)]
            await self._book.end(before, who=operation.who, now=now)
        await self._book.put(words, now=now)
        self._control.said(*{word.source for word in words})

    async def _done(self, operation: Operation, keys: Sequence[tuple[str, str]]) -> None:
        items = [Item(source=key[0], dead_letter_id=key[1], state=ItemState.DONE.value) for key in keys]
        await self._ledger.transact("operation", script.note(operation.id, items))

    def _maybe(self, key: tuple[str, str]) -> Found | None:
        try:
            return self._control.one(*key)
        except ControlError:
            return None


def _item(key: Key, refused: str | None) -> Item:
    source, identity = key
    if refused is None:
        return Item(source=source, dead_letter_id=identity)
    return Item(source=source, dead_letter_id=identity, state=ItemState.REFUSED.value, detail=refused)


def _selection(facts: Mapping[str, Any]) -> Selection:
    workflow = facts.get("workflow")
    between = facts.get("between")
    return Selection(
        ids=[_split(key) for key in facts.get("ids", ())],
        group=facts.get("group"),
        policy=facts.get("policy"),
        workflow=None if workflow is None else _split(workflow),
        between=None if between is None else (between[0], between[1]),
    )


def _split(key: str) -> tuple[str, str]:
    source, _, identity = key.partition("/")
    return source, identity


def _words(selection: Selection) -> str:
    return ", ".join(f"{name} {value}" for name, value in selection.facts().items())
