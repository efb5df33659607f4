"""One source's repairs other than a retry: plan, make the call, read what became of it. The only writer of repairs.

``repair_once`` does it all and says what it did; the loop around it only waits. It sends nothing that no person asked
for, on a plan that the person saw, and plans again right before the call: what is no longer as it was is refused. The
intent is durable before the call, and what the call said proves nothing.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from exporter.clock import Clock, until_due
from exporter.log import get_logger
from exporter.model import DeadLetter, Observation, ResolvedBy, Via
from exporter.model.decision import snapshot_of
from exporter.model.fold import resolve
from exporter.model.ledger import Batch
from exporter.model.repairs import Repair, RepairAction, RepairOutcome, RepairState
from exporter.model.retries import Override, OverrideAction, Scope
from exporter.platform.repairing import Case, Offer, Plan
from exporter.platform.streams import StreamName
from exporter.retries import repair_protocol as protocol
from exporter.retries.book import RetryBook, new_id
from exporter.retries.deciding import Decider
from exporter.source import Source
from exporter.store import repairs as script
from exporter.store.ledger import Ledger
from exporter.store.script import StoreError
from exporter.wire.errors import ApiError

log = get_logger(__name__)

#: Seconds between two rounds.
INTERVAL = 5.0
#: Calls made, and repairs looked at, in one round at most.
CALLS_PER_ROUND_MAX, LOOKS_PER_ROUND_MAX = 5, 25
#: A stop waits so long (seconds) for a call that is under way.
STOP_SECONDS_MAX = 4.0
#: A retry that follows a fix is let pass for so long (seconds).
FIXED_SECONDS = 86400.0


@dataclass(slots=True, kw_only=True)
class RepairReport:
    """What one round did."""

    looked: int = 0
    sent: int = 0  # calls
    closed: int = 0


class Repairer:
    """Repairs what people ask for of one source."""

    def __init__(self, source: Source, ledger: Ledger, clock: Clock, *, book: RetryBook, decider: Decider) -> None:
        """Raises ``ValueError`` for a source whose platform knows no repairs."""
        if source.platform.repairing is None:
            raise ValueError(f"the platform of {source.name} knows no repairs")
        self.source = source
        self.due = asyncio.Event()  # set by whoever has asked for something
        self._repairing = source.platform.repairing
        self._repairs = source.platform.repairing.connect(source.section, source.api)
        self._known = source.known
        self._ledger = ledger
        self._clock = clock
        self._book = book
        self._decider = decider

    @property
    def granted(self) -> Mapping[RepairAction, Offer]:
        return self._repairs.granted

    async def plan(self, case: Case) -> Plan:
        """Read how one thing stands, and say what would be done. Raises ``ApiError``."""
        try:
            with self.source.span("plan repair"):
                plan = await self._repairs.plan(case)
        except ApiError:
            raise
        except Exception as bug:  # an answer that nobody expected, say
            log.error("planning a repair broke", source=self.source.name, id=case.id, error=bug)
            return Plan(at=self.source.api.platform_now(), refusal=f"looking at it broke: {type(bug).__name__}")
        await self._observe(plan.observations, plan.at)
        return replace(plan, mark=as_stored(plan.mark))

    # A round

    async def repair_once(self) -> RepairReport:
        """Look at what was sent, send what is due. Raises ``StoreError`` when nothing can be remembered: then nothing
        is sent.
        """
        report = RepairReport()
        await self._resume()
        looked = [r for r in self._open(RepairState.VERIFYING) if protocol.is_due(r, now=self._clock.now())]
        for repair in looked[:LOOKS_PER_ROUND_MAX]:
            report.looked += 1
            report.closed += await self._look_at(repair)
        await self._send_due(report)
        return report

    def _open(self, state: RepairState) -> list[Repair]:
        return [repair for repair in self._book.repairs.open_of(self.source.name) if repair.state is state]

    async def _resume(self) -> None:
        """What was under way when the last process ended, or could not write how its call went, is in doubt.

        A round makes its calls one after the other and waits for each: at its start none is under way.
        """
        now, before = self._clock.now(), self._book.repairs.open_of(self.source.name)
        after = [protocol.resumed(protocol.redated(repair, now=now), now=now) for repair in before]
        changed = [new for old, new in zip(before, after, strict=True) if new is not old]
        if changed:
            await self._save(changed, kind="repair resumed")

    # Looking

    async def _look_at(self, repair: Repair) -> bool:
        """Ask the platform what became of a repair; whether that closed it."""
        asked_at = self._clock.now()
        try:
            with self.source.span("verify repair"):
                effect = await self._repairs.verify(self._case(repair))
        except ApiError as error:
            await self._close([protocol.unseen(repair, now=self._clock.now(), detail=f"not seen: {error}")])
            return False
        except Exception as bug:  # an answer that nobody expected, say: it costs this one its look
            log.error("a look at a repair broke", source=self.source.name, repair=repair.id, error=bug)
            detail = f"not seen: looking at it broke: {type(bug).__name__}"
            await self._close([protocol.unseen(repair, now=self._clock.now(), detail=detail)])
            return False
        offer = self._repairing.offer(repair.action)
        repeatable = offer is not None and offer.repeatable
        after = protocol.seen(repair, effect, repeatable=repeatable, asked_at=asked_at, now=self._clock.now())
        await self._close([after])  # before what was read: who sees the dead letter resolved then, knows by whom
        await self._observe(effect.observations, effect.at)
        await self._heed(after, effect.at)
        return after.outcome is not None

    async def _heed(self, repair: Repair, at: float) -> None:
        """What else has to happen now that a repair came to its end."""
        done = repair.outcome is RepairOutcome.DONE
        if done and repair.action is RepairAction.REACTIVATE:
            self.source.wake([], [StreamName.WORKFLOWS])
        elif done and repair.action is RepairAction.FIX:  # what a look had refused is no longer so
            await self._book.refuse(self.source.name, repair.subject_id, None)
            self.source.retries_due.set()
        letter = self._known.dead_letters.get(repair.subject_id)
        if repair.action is RepairAction.RERUN and repair.outcome is RepairOutcome.FAILED and letter is not None:
            # The work lives on in the dead letter of the new run, under the same root.
            await self._observe([resolve(letter, by=ResolvedBy.SUPERSEDED, at=at)], at)

    # Sending

    async def _send_due(self, report: RepairReport) -> None:
        now, name = self._clock.now(), self.source.name
        waiting = self._open(RepairState.WAITING)
        late = [repair for repair in waiting if now >= repair.until]
        why = "its time was up before its turn came"
        await self._close([protocol.closed(r, RepairOutcome.VOID, now=now, detail=why) for r in late])
        if self._book.overrides.is_paused(name, now):
            return
        due = [repair for repair in waiting if repair not in late and protocol.is_due(repair, now=now)]
        for batch in self._calls(due)[:CALLS_PER_ROUND_MAX]:
            ready = [repair for one in batch if (repair := await self._planned(one)) is not None]
            now, theirs = self._clock.now(), self.source.api.platform_now()
            intended = [protocol.sending(repair, now=now, theirs=theirs) for repair in ready]
            claimed = await self._claim(intended)
            if claimed:
                report.sent += 1
                for repair in await self._send(claimed):
                    report.looked += 1
                    report.closed += await self._look_at(repair)

    def _calls(self, due: Iterable[Repair]) -> list[list[Repair]]:
        """What goes into one call each: one action, one workflow, no more than the platform takes."""
        calls: list[list[Repair]] = []
        filling: dict[tuple[RepairAction, str], list[Repair]] = {}
        for repair in due:
            key, offer = (repair.action, repair.workflow_id), self._repairing.offer(repair.action)
            most = 1 if offer is None or repair.alone else offer.bulk_max
            batch = filling.get(key)
            if most == 1 or batch is None or len(batch) >= most:
                batch = []
                calls.append(batch)
                if most > 1:
                    filling[key] = batch
            batch.append(repair)
        return calls

    async def _planned(self, repair: Repair) -> Repair | None:
        """The repair, if what was planned is still so; else why not is remembered."""
        now, name = self._clock.now(), self.source.name
        letter = self._known.dead_letters.get(repair.subject_id)
        why, outcome = None, RepairOutcome.REFUSED
        if repair.action not in self.granted:
            why = not_granted(repair.action, name)
        elif repair.root and letter is None:
            why, outcome = "it is resolved", RepairOutcome.VOID
        elif repair.root and letter is not None and self._book.root_of(name, letter) != repair.root:
            why = "it descends from another dead letter, as is known by now: ask for it again"
        elif (waits_for := self._under_way(repair)) is not None:
            await self._close([protocol.postponed(repair, now=now, detail=waits_for)])
            return None
        if why is None:
            try:
                plan = await self.plan(self._case(repair))
            except ApiError as error:
                await self._close([protocol.postponed(repair, now=self._clock.now(), detail=f"not seen: {error}")])
                return None
            why = plan.refusal
            if why is None and plan.mark != repair.mark:
                why = "it changed since the plan was made: ask for it again"
        if why is not None:
            await self._close([protocol.closed(repair, outcome, now=self._clock.now(), detail=why)])
            return None
        return repair

    def _under_way(self, repair: Repair) -> str | None:
        """What has to come to its end first: a retry of the same; for a rerun, whatever else runs its workflow."""
        alone = repair.action is RepairAction.RERUN
        for retry in self._book.open_of(self.source.name) if repair.root else ():
            if retry.root == repair.root or (alone and retry.workflow_id == repair.workflow_id):
                whose = "its" if retry.root == repair.root else "another dead letter's"
                return f"{whose} retry {retry.id} is {retry.state}"
        for other in self._book.repairs.open_of(self.source.name) if alone else ():
            same = other.action is repair.action and other.workflow_id == repair.workflow_id
            if same and other.state is not RepairState.WAITING:
                return f"another {other.action} of its workflow is open, operation {other.operation}"
        return None

    async def _claim(self, intended: Sequence[Repair]) -> list[Repair]:
        """Those of which the intent is durable now."""
        if not intended:
            return []
        claimed = await self._ledger.transact("repair", script.claim(intended, now=self._clock.now()))
        return claimed.repairs

    async def _send(self, claimed: Sequence[Repair]) -> list[Repair]:
        """Make one call for these, and say what they are after it. A stop of the service waits for it a while; else
        what it did is in doubt.
        """
        call = asyncio.create_task(self._call(claimed), name=f"repair-{self.source.name}")
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            done, _ = await asyncio.wait({call}, timeout=STOP_SECONDS_MAX)
            if not done:
                call.cancel()
                await asyncio.wait({call})
            raise

    async def _call(self, claimed: Sequence[Repair]) -> list[Repair]:
        cases, send_by = [self._case(repair) for repair in claimed], min(repair.send_by for repair in claimed)
        try:
            with self.source.span("repair"):
                answer = await self._repairs.repair(cases, send_by=send_by)
        except ApiError as error:
            others, now = len(claimed) > 1, self._clock.now()
            after = [protocol.failed(repair, error, others=others, now=now) for repair in claimed]
        except asyncio.CancelledError:
            why = "the exporter stopped in the middle of the call"
            after = [protocol.doubted(repair, now=self._clock.now(), detail=why) for repair in claimed]
        except Exception as bug:  # in an adapter, say: the call may have been made
            log.error("repairing broke", source=self.source.name, error=bug)
            why = f"the call broke: {type(bug).__name__}"
            after = [protocol.doubted(repair, now=self._clock.now(), detail=why) for repair in claimed]
        else:
            after = [protocol.answered(repair, answer, now=self._clock.now()) for repair in claimed]
        await self._save(after, kind="repair called")
        for repair in after:
            self._say(repair)
        return [repair for repair in after if repair.is_open and repair.state is RepairState.VERIFYING]

    # How

    def _case(self, repair: Repair) -> Case:
        letter = None
        if repair.root:
            letter = self._known.dead_letters.get(repair.subject_id) or DeadLetter(
                id=repair.subject_id,
                workflow_id=repair.workflow_id,
                run_id=repair.run_id,
                attempt=repair.attempt,
                opened_at=repair.opened_at,
            )
        return Case(
            action=repair.action,
            workflow_id=repair.workflow_id,
            id=repair.subject_id,
            letter=letter,
            mark=repair.mark,
            sent_at=repair.sent_at_theirs,
            handle=repair.handle,
        )

    async def _close(self, repairs: Sequence[Repair]) -> None:
        """Write these down: what came to its end, or what waits and why."""
        for repair in repairs:
            await self._save([repair], kind="" if repair.outcome is None else f"repair {repair.outcome}")
            self._say(repair)

    async def _save(self, repairs: Sequence[Repair], *, kind: str) -> None:
        words = {repair.id: word for repair in repairs if (word := self._retry_of(repair)) is not None}
        await self._ledger.transact("repair", script.save(repairs, now=self._clock.now(), kind=kind, words=words))

    def _say(self, repair: Repair) -> None:
        if repair.outcome is not None:
            log.info(
                "repair closed",
                source=self.source.name,
                repair=repair.id,
                action=repair.action,
                outcome=repair.outcome,
                detail=repair.detail,
            )

    def _retry_of(self, repair: Repair) -> Override | None:
        """What lets the retry pass that belongs to a fix: the person has asked for both."""
        letter = self._known.dead_letters.get(repair.subject_id)
        if repair.action is not RepairAction.FIX or repair.outcome is not RepairOutcome.DONE or letter is None:
            return None
        now = self._clock.now()
        subject, ladder = self._decider.ladder(letter, now)
        return Override(
            id=new_id(),
            scope=Scope.ROOT,
            source=self.source.name,
            key=repair.root,
            action=OverrideAction.RETRY_NOW,
            until=now + FIXED_SECONDS,
            who=repair.who,
            why=f"after {repair.action}",
            created_at=now,
            snapshot=snapshot_of(subject, ladder.owner, OverrideAction.RETRY_NOW),
            operation=repair.operation,
        )

    async def _observe(self, observations: Sequence[Observation], at: float) -> None:
        """What was read by the way, at this moment of the platform, is an observation like any other."""
        if observations:
            batch = Batch(
                source=self.source.name,
                observations=observations,
                via=Via.POLL,
                now=self.source.api.platform_now(),
                started_at=at,
                stream="repairs",
            )
            await self._ledger.ingest(batch)

    # The loop around it

    async def run(self) -> None:
        """Go round until cancelled."""
        failing = False
        while True:
            try:
                await self.repair_once()
                failing = False
            except StoreError as error:
                if not failing:
                    log.warning("nothing is repaired: nothing can be stored", source=self.source.name, error=error)
                failing = True
            except Exception as bug:  # costs this round, never the service
                log.error("repairing broke", source=self.source.name, error=bug)
            await until_due(self.due, self._clock, INTERVAL)


def as_stored(mark: Any) -> Any:
    """A mark as it is read back from the ledger."""
    return orjson.loads(orjson.dumps(mark))


def not_granted(action: RepairAction, source: str) -> str:
    return f"{action} is not granted: add it to sources.{source}.grant in the config"
