"""What else Make can be asked for about its dead letters and scenarios.

*Discard* deletes incomplete executions by their ids; Make answers 200 and names those it did not delete as well, so
each is read afterwards. *Reactivate* switches a scenario on that Make switched off. *Fix* gives a dead letter the
scenario's blueprint of today in place of the one frozen at the failure, and does not retry: a retry of the usual kind
follows, whose look is told the mark of the fix (``Target.fixed``).

Source: Make API documentation ('Incomplete executions', 'Scenarios').
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from exporter.model import Blocked, DeadLetter, ResolvedBy
from exporter.model.redact import redact
from exporter.model.repairs import Proof, RepairAction
from exporter.platform import BadItem
from exporter.platform.repairing import Answered, Case, Effect, Offer, Plan, Repairing, not_sent
from exporter.platforms.make.config import MakeConfig
from exporter.platforms.make.mapping import as_object, repairs, workflows
from exporter.platforms.make.mapping import dead_letters as letters
from exporter.platforms.make.mapping.dead_letters import SKEW_SECONDS, Looked, named
from exporter.platforms.make.mapping.workflows import Scenario
from exporter.platforms.make.reading.calls import ROOT, bad_payload, get, rows
from exporter.platforms.make.reading.scenarios import vanished
from exporter.wire.api import Api
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind

LANE = Lane.RETRIES
ITEM, FROZEN, BUNDLE = "/dlqs/{id}", "/dlqs/{id}/blueprint", "/dlqs/{id}/bundle"
SCENARIO, BLUEPRINT, LOG = "/scenarios/{id}", "/scenarios/{id}/blueprint", "/scenarios/{id}/logs"
#: Rows of a scenario's log that are looked through for who switched it off: while it is off, nothing adds any.
LOG_ROWS = 50

DISCARD, REACTIVATE, FIX = RepairAction.DISCARD, RepairAction.REACTIVATE, RepairAction.FIX


class MakeRepairs:
    """One source's way to repair."""

    def __init__(self, config: MakeConfig, api: Api) -> None:
        self._api = api

    async def plan(self, case: Case) -> Plan:
        if case.action is REACTIVATE:
            return await self._plan_start(case.workflow_id)
        letter = _letter(case)
        if letter.id == letter.run_id:
            return Plan(at=self._api.platform_now(), refusal="Make has not stored it: it can only be replayed")
        return await (self._plan_fix if case.action is FIX else self._plan_discard)(letter)

    async def repair(self, cases: Sequence[Case], *, send_by: float) -> Answered:
        case = cases[0]
        if case.action is DISCARD:
            return await self._discard(cases, send_by=send_by)
        return await (self._start if case.action is REACTIVATE else self._patch)(case, send_by=send_by)

    async def verify(self, case: Case) -> Effect:
        if case.action is REACTIVATE:
            return await self._started(case)
        return await (self._patched if case.action is FIX else self._discarded)(case, _letter(case))

    # Discard

    async def _plan_discard(self, letter: DeadLetter) -> Plan:
        at, found = await self._item(letter)
        if (over := _over(self._api, letter, at, found)) is not None:
            return over
        assert found is not None  # noqa: S101 (else it is over)
        does = "delete it on Make: what it stored is lost, and nothing can retry it any more"
        if found.native:
            does += "; Make would still retry it by itself"
        return Plan(at=at, does=does, mark={"tries": found.letter.tries}, observations=[found.letter])

    async def _discard(self, cases: Sequence[Case], *, send_by: float) -> Answered:
        query, ids = [("scenarioId", cases[0].workflow_id)], [case.id for case in cases]
        answer = await self._api.change(
            "DELETE", f"{ROOT}/dlqs", lane=LANE, params=query, json={"ids": ids}, send_by=send_by
        )
        error = answer.data.get("error") if isinstance(answer.data, Mapping) else None
        said = error.get("message") if isinstance(error, Mapping) else None
        return Answered(
            handles=dict.fromkeys(sorted(named(answer.data).intersection(ids))),
            said=redact(said) if isinstance(said, str) else None,
        )

    async def _discarded(self, case: Case, letter: DeadLetter) -> Effect:
        at, found = await self._item(letter)
        closed = letters.resolve(letter if found is None else found.letter, at=at, by=ResolvedBy.MANUAL)
        if found is None:
            return Effect(at=at, proof=Proof.DONE, evidence="it is no longer there", observations=[closed])
        if found.deleted:
            return Effect(at=at, proof=Proof.DONE, evidence="Make says that it is deleted", observations=[closed])
        if found.resolved:  # by whom, the sweep finds out
            return Effect(at=at, proof=Proof.NOT_DONE, evidence="it was resolved, not deleted")
        return Effect(at=at, proof=Proof.NOT_DONE, evidence="it is still there", observations=[found.letter])

    # Reactivate

    async def _plan_start(self, workflow_id: str) -> Plan:
        at, scenario, paused = await self._scenario(workflow_id)
        if scenario is None:
            return Plan(at=at, refusal="the scenario is gone")
        if scenario.workflow.enabled is not False:
            on = scenario.workflow.enabled
            return Plan(at=at, refusal="it is switched on" if on else "the scenario does not say whether it is on")
        if scenario.workflow.blocked is Blocked.PAUSED or paused:
            return Plan(at=at, refusal="it is paused with its organization")
        last = await self._switched(workflow_id)
        if last is not None and not last.on and last.by_hand:
            return Plan(at=at, refusal=f"somebody switched it off at {_moment(last.at)}")
        if last is not None and not last.on:
            who = f"Make switched it off at {_moment(last.at)}" + (f": {last.reason}" if last.reason else "")
        elif scenario.workflow.blocked is Blocked.INVALID:
            who = "Make switched it off after errors"
        else:
            who = "it is switched off, and nothing says by whom"
        at_once = "works off what its webhook has queued" if scenario.workflow.trigger == "webhook" else "runs at once"
        does = f"switch the scenario on; it {at_once}, with whatever made it fail. {who}"
        return Plan(at=at, does=does, mark={"edited": scenario.edited})

    async def _start(self, case: Case, *, send_by: float) -> Answered:
        try:
            plan = await self._plan_start(case.workflow_id)
        except ApiError as error:
            raise error.unsent() from None
        if plan.refusal is not None:
            raise not_sent(REACTIVATE, plan.refusal, kind=ErrorKind.CONFLICT)
        ids = {"id": case.workflow_id}
        answer = await self._api.post(f"{ROOT}{SCENARIO}/start", lane=LANE, json={}, ids=ids, send_by=send_by)
        row = answer.data.get("scenario") if isinstance(answer.data, Mapping) else None
        taken = isinstance(row, Mapping) and True in (row.get("isActive"), row.get("islinked"))
        return Answered(handles={case.id: None} if taken else {})

    async def _started(self, case: Case) -> Effect:
        at, scenario, _ = await self._scenario(case.workflow_id)
        if scenario is None:
            return Effect(at=at, proof=Proof.NOT_DONE, evidence="the scenario is gone")
        if scenario.workflow.enabled:
            return Effect(at=at, proof=Proof.DONE, evidence="it is switched on")
        if scenario.workflow.enabled is None:
            return Effect(at=at, proof=Proof.UNKNOWN, evidence="the scenario does not say whether it is on")
        last = await self._switched(case.workflow_id)
        since = at if case.sent_at is None else case.sent_at - SKEW_SECONDS
        if last is not None and not last.on and last.at >= since:
            who = "somebody" if last.by_hand else "Make"
            evidence = f"{who} switched it off again" + (f": {last.reason}" if last.reason else "")
            return Effect(at=at, proof=Proof.NOT_DONE, evidence=evidence)
        return Effect(at=at, proof=Proof.NOT_DONE, evidence="it is switched off")

    # Fix

    async def _plan_fix(self, letter: DeadLetter) -> Plan:
        at, found = await self._item(letter)
        if (over := _over(self._api, letter, at, found)) is not None:
            return over
        at, scenario, _ = await self._scenario(letter.workflow_id)
        if scenario is None:
            return Plan(at=at, refusal="the scenario is gone")
        if letters.refusal(scenario, letter) is None:
            return Plan(at=at, refusal="the scenario was not edited since it failed: there is nothing to fix, retry it")
        refusal = letters.refusal(scenario, letter, fixed=scenario.edited)
        if refusal is not None:
            return Plan(at=at, refusal=refusal)
        frozen, today = await self._blueprints(letter)
        bundle = (await get(self._api, BUNDLE, lane=LANE, ids={"id": letter.id})).data
        refusal = repairs.misfit(bundle, frozen, today)
        if refusal is not None:
            return Plan(at=at, refusal=refusal)
        return Plan(
            at=at,
            does="replace its frozen blueprint by the scenario's of today, and then retry it with the data it stored",
            changes=repairs.changes(frozen, today),
            mark={"edited": scenario.edited, "before": repairs.digest(frozen), "wanted": repairs.digest(today)},
        )

    async def _patch(self, case: Case, *, send_by: float) -> Answered:
        """Nothing of a blueprint is kept between plan and call, so both are read again and have to be the same."""
        try:
            frozen, today = await self._blueprints(_letter(case))
        except ApiError as error:
            raise error.unsent() from None
        if repairs.digest(today) != case.mark["wanted"]:
            raise not_sent(FIX, "the scenario was edited since the plan was made", kind=ErrorKind.CONFLICT)
        if repairs.digest(frozen) not in (case.mark["before"], case.mark["wanted"]):
            raise not_sent(FIX, "its blueprint was changed since the plan was made", kind=ErrorKind.CONFLICT)
        body = {"blueprint": orjson.dumps(today).decode()}
        answer = await self._api.change(
            "PATCH", f"{ROOT}{ITEM}", lane=LANE, json=body, ids={"id": case.id}, send_by=send_by
        )
        taken = isinstance(answer.data, Mapping) and isinstance(answer.data.get("dlq"), Mapping)
        return Answered(handles={case.id: None} if taken else {})

    async def _patched(self, case: Case, letter: DeadLetter) -> Effect:
        try:
            frozen = await self._frozen(letter)
        except ApiError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
            return Effect(at=self._api.platform_now(), proof=Proof.NOT_DONE, evidence="it is no longer there")
        at, found = self._api.platform_now(), repairs.digest(frozen)
        if found == case.mark["wanted"]:
            return Effect(at=at, proof=Proof.DONE, evidence="its frozen blueprint is the one that was planned")
        if found == case.mark["before"]:
            return Effect(at=at, proof=Proof.NOT_DONE, evidence="its frozen blueprint is the one it had")
        evidence = "its frozen blueprint is neither the one it had nor the one that was planned"
        return Effect(at=at, proof=Proof.UNKNOWN, evidence=evidence)

    # Reading

    async def _item(self, letter: DeadLetter) -> tuple[float, Looked | None]:
        """A dead letter as it says itself, and when; None where it is no more."""
        try:
            answer = await get(self._api, ITEM, lane=LANE, ids={"id": letter.id})
        except ApiError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
            return self._api.platform_now(), None
        try:
            return answer.at, letters.looked(answer.data, known=letter, at=answer.at)
        except BadItem as bad:
            raise bad_payload(ITEM, str(bad), answer.status) from None

    async def _scenario(self, workflow_id: str) -> tuple[float, Scenario | None, bool]:
        """A scenario, when it was read, and whether its organization is paused; None where it is no more."""
        try:
            answer = await get(self._api, SCENARIO, lane=LANE, ids={"id": workflow_id})
        except ApiError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
            return self._api.platform_now(), None, False
        try:
            row = as_object(as_object(answer.data, "the answer").get("scenario"), "a scenario")
            found = workflows.scenario(row, at=answer.at, teams={})
        except BadItem as bad:
            raise bad_payload(SCENARIO, str(bad), answer.status) from None
        if found.workflow.id != workflow_id:
            raise bad_payload(SCENARIO, "the answer is about another scenario", answer.status)
        return answer.at, found, row.get("isPaused") is True

    async def _switched(self, workflow_id: str) -> repairs.Switch | None:
        ids = {"id": workflow_id}
        found = await rows(self._api, LOG, "scenarioLogs", lane=LANE, limit=LOG_ROWS, ids=ids)
        return repairs.switched(found.rows, latest=self._api.latest())

    async def _blueprints(self, letter: DeadLetter) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """The one frozen in the dead letter, and the scenario's of today."""
        frozen = await self._frozen(letter)
        return frozen, await self._blueprint(BLUEPRINT, letter.workflow_id)

    async def _frozen(self, letter: DeadLetter) -> Mapping[str, Any]:
        return await self._blueprint(FROZEN, letter.id)

    async def _blueprint(self, endpoint: str, identity: str) -> Mapping[str, Any]:
        answer = await get(self._api, endpoint, lane=LANE, ids={"id": identity})
        found = repairs.blueprint(answer.data)
        if found is None:
            raise bad_payload(endpoint, "there is no blueprint in the answer", answer.status)
        return found


def _letter(case: Case) -> DeadLetter:
    if case.letter is None:
        raise ValueError(f"{case.action} is done to a dead letter")
    return case.letter


def _over(api: Api, letter: DeadLetter, at: float, found: Looked | None) -> Plan | None:
    """The refusal where there is nothing left to repair."""
    if found is None:
        closed = letters.resolve(letter, at=at, by=vanished(api, letter, at))
        return Plan(at=at, refusal="it is no longer there", observations=[closed])
    if found.deleted:
        closed = letters.resolve(found.letter, at=at, by=ResolvedBy.MANUAL)
        return Plan(at=at, refusal="it is deleted already", observations=[closed])
    return Plan(at=at, refusal="it is resolved already") if found.resolved else None


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


REPAIRING = Repairing(
    offers=(
        Offer(action=DISCARD, needs="dlqs:write", bulk_max=25),
        Offer(action=REACTIVATE, needs="scenarios:write"),
        Offer(action=FIX, needs="dlqs:write"),
    ),
    adapter=MakeRepairs,
)
