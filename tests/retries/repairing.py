"""The engine of ``world`` with repairs: a platform that can be asked for anything, and loses answers when told to."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from msgspec import structs

from exporter.model import DeadLetter, Observation, ResolvedBy, Run, State
from exporter.model.operations import OperationAction, OperationState
from exporter.model.policy import Rules
from exporter.model.repairs import Proof, RepairAction
from exporter.model.retries import Traits
from exporter.platform.repairing import Answered, Case, Effect, Offer, Plan, Repairing, not_sent
from exporter.retries.operations import Selection
from exporter.retries.repair_operations import RepairOperations
from exporter.retries.repairer import Repairer
from exporter.wire.errors import ApiError, ErrorKind, kind_of
from tests.postgres import look
from tests.retries.made import EACH
from tests.retries.world import SOURCE, Engine, FakePlatform

#: What a call meets. ``hidden``: only the first is done, the answer does not tell. ``lost``: taken, nothing happens.
Fate = Literal[
    "ok", "hidden", "lost", "cut before", "cut after", "500 after", "broke after", "not sent", "stale", "late",
    "400", "401", "403", "404", "429",
]  # fmt: skip
LATE = 300.0
ACTIONS = tuple(RepairAction)
OFFERS = tuple(
    Offer(action=action, needs="it", bulk_max=3 if action is RepairAction.DISCARD else 1)
    if action is not RepairAction.RERUN
    else Offer(action=action, needs="it", repeatable=False)
    for action in ACTIONS
)


class FakeRepairs:
    """What the platform can be asked for, beside retries."""

    def __init__(self, platform: FakePlatform, url: str) -> None:
        self.platform = platform
        self.fates: list[Fate] = []  # of the coming calls; then all go well
        self.bad: set[str] = set()  # ids for which any call that names them is answered 400
        self.refusals: dict[str, str] = {}  # of plans
        self.unwell: ApiError | None = None  # what every read meets
        self.edits: Counter[str] = Counter()  # of things, since they are known
        self.done: dict[tuple[str, str], float] = {}  # what and to what, and when it shows
        self.calls: Counter[tuple[str, str]] = Counter()  # that may have had an effect: what and to what
        self.requests: list[tuple[str, list[str]]] = []
        self.reads = 0
        self.problems: list[str] = []
        self.rerun_failed = False
        self._url = url

    async def plan(self, case: Case) -> Plan:
        await self._read()
        refusal = self.refusals.get(case.id)
        if (case.action, case.id) in self.done:
            refusal = "it is so already"
        if refusal is not None:
            return Plan(at=self.platform.clock.now(), refusal=refusal)
        mark = {"edits": self.edits[case.id], "tuple": (1, 2)}
        does = f"{case.action} {case.id}"
        return Plan(at=self.platform.clock.now(), does=does, changes=["module 3: url"], mark=mark)

    async def repair(self, cases: Sequence[Case], *, send_by: float) -> Answered:
        action, ids = cases[0].action, [case.id for case in cases]
        fate = self.fates.pop(0) if self.fates else "ok"
        self.platform.trip.step()
        await asyncio.sleep(0)
        if self.platform.clock.now() > send_by:
            raise not_sent(action, "too late", kind=ErrorKind.TIMEOUT)
        if fate == "stale":
            raise not_sent(action, "it was edited since the plan was made", kind=ErrorKind.CONFLICT)
        if fate == "not sent":
            raise not_sent(action, "no connection", kind=ErrorKind.UNAVAILABLE)
        self._check(cases)
        self.requests.append((action.value, ids))
        if self.bad.intersection(ids):
            fate = "400"
        if fate.isdigit():
            raise ApiError(kind_of(int(fate)), endpoint="POST /it", detail="no", status=int(fate))
        self.calls.update((action.value, one) for one in ids)
        if fate == "cut before":
            raise ApiError(ErrorKind.UNAVAILABLE, endpoint="POST /it", detail="connection lost")
        shows = self.platform.clock.now() + (LATE if fate == "late" else 0.0)
        for one in ids[:1] if fate == "hidden" else [] if fate == "lost" else ids:
            self.done[action.value, one] = shows
            if action is RepairAction.DISCARD:
                self.platform.items[one].gone = True
            if action is RepairAction.FIX:
                self.platform.items[one].refusal = None
        self.platform.trip.step()
        if fate == "cut after":
            raise ApiError(ErrorKind.TIMEOUT, endpoint="POST /it", detail="no answer in 30 s")
        if fate == "500 after":
            raise ApiError(ErrorKind.UNAVAILABLE, endpoint="POST /it", detail="internal", status=500)
        if fate == "broke after":
            raise TypeError("'NoneType' object is not subscriptable")
        await asyncio.sleep(0)
        self.platform.trip.step()
        handle = "run-again" if action is RepairAction.RERUN else None
        return Answered(handles=dict.fromkeys(ids, handle))

    async def verify(self, case: Case) -> Effect:
        await self._read()
        now = self.platform.clock.now()
        if case.mark is None or case.sent_at is None:
            self.problems.append(f"{case.id} was looked at without its mark or its moment")
        if self.done.get((case.action.value, case.id), now + 1) > now:
            return Effect(at=now, proof=Proof.NOT_DONE, evidence="it is as it was")
        observations: list[Observation] = []
        if case.letter is not None and case.action is RepairAction.DISCARD:
            closed = structs.replace(case.letter, resolved_at=now, resolved_by=ResolvedBy.MANUAL)
            observations.append(closed)
        if case.action is RepairAction.RERUN:
            proof, how = (Proof.NOT_DONE, "failure") if self.rerun_failed else (Proof.DONE, "success")
            evidence = f"run run-again ended as {how}"
            return Effect(at=now, proof=proof, evidence=evidence, run_id="run-again", observations=observations)
        return Effect(at=now, proof=Proof.DONE, evidence="it is done", observations=observations)

    async def _read(self) -> None:
        self.platform.trip.step()
        await asyncio.sleep(0)
        self.platform.trip.step()
        self.reads += 1
        if self.unwell is not None:
            raise self.unwell

    def _check(self, cases: Sequence[Case]) -> None:
        """Every call must have a durable intent of its own, and its retry may not be under way."""
        for case in cases:
            sql = f"SELECT id FROM repairs WHERE subject_id = '{case.id}' AND outcome IS NULL AND state = 'sent'"
            if len(found := look(self._url, sql)) != 1:
                self.problems.append(f"{case.id} was called with {len(found)} durable intents")
            if look(self._url, f"SELECT id FROM retries WHERE root = '{case.id}' AND outcome IS NULL AND shadow = 0"):
                self.problems.append(f"{case.id} was called while a retry of it is open")


class RepairEngine(Engine):
    """An engine whose source grants repairs."""

    repairer: Repairer

    def __init__(self, folder: Path, rules: Rules, traits: Traits = EACH, url: str | None = None) -> None:
        super().__init__(folder, rules, traits, url)
        self.repairs = FakeRepairs(self.platform, self.url)
        self.grant: list[RepairAction] = list(ACTIONS)
        repairing = Repairing(offers=OFFERS, adapter=lambda config, api: self.repairs)
        self._declared = replace(self._declared, repairing=repairing)

    async def start(self) -> None:
        await super().start()
        source = self.retrier.source
        source._section = source.section.model_copy(update={"grant": self.grant})
        self.repairer = Repairer(source, self.ledger, self.clock, book=self.book, decider=self.retrier.decider)
        repairs = RepairOperations(
            self.operations,
            self.book,
            self.ledger,
            self.clock,
            sources={SOURCE: source},
            repairers={SOURCE: self.repairer},
        )
        self.operations.begin_repair, self.operations.repair_objection = repairs.begin, repairs.objection

    async def begin(self, action: str, *ids: str, **more: Any) -> dict[str, Any]:
        options: dict[str, Any] = {"who": "ann", "at_once": True} | more
        selection = options.pop("selection", None) or Selection(ids=[(SOURCE, one) for one in ids])
        return await self.operations.begin(OperationAction(action), selection, **options)

    async def round(self, seconds: float = 0.0, *, step: float = 30.0) -> None:
        """Let the repairer and the operations go round: now, or so long."""
        for _ in range(max(1, round(seconds / step))):
            if seconds:
                await self.clock.advance(step)
            self.platform.advance()
            await self.repairer.repair_once()
            await self.operations.settle_once()

    async def live_on(self, seconds: float, *, step: float = 30.0) -> None:
        """The same, with sweeps and retries in between."""
        for _ in range(round(seconds / step)):
            await self.clock.advance(step)
            self.platform.advance()
            await self.sweep()
            await self.repairer.repair_once()
            await self.turn()
            await self.operations.settle_once()

    def add_run(self, run_id: str, workflow_id: str = "w1") -> Run:
        now = self.clock.now()
        return Run(id=run_id, workflow_id=workflow_id, state=State.RUNNING, started_at=now - 3600.0)

    @property
    def newest(self) -> OperationState:
        return self.operations.newest()[0]

    def states(self) -> dict[str, tuple[str, str]]:
        """Each item's state and detail, in the newest operation about it."""
        operations = reversed(self.operations.newest())
        return {item.dead_letter_id: (item.state, item.detail) for state in operations for item in state.items}

    def letter(self, name: str) -> DeadLetter | None:
        return self.world.sources[SOURCE].dead_letters.get(name)
