"""What a platform folder offers for repairs other than a retry: discard, reactivate, stop, fix, rerun.

A platform declares what it can do (``Repairing``) and a ``RepairAdapter``. ``plan`` and ``verify`` only read,
``repair`` makes the one call, once: its answer proves nothing, ``verify`` does. The core reaches an adapter through
``Repairs`` alone, which lets nothing pass that the source's config does not grant. Nothing of a platform's payload is
kept: a plan names settings, never their values, and remembers digests.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from exporter.model import DeadLetter, Observation, Run, Workflow
from exporter.model.repairs import Proof, RepairAction, RepairSubject
from exporter.platform.retrying import Mark
from exporter.wire.api import Api
from exporter.wire.errors import ApiError, ErrorKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One thing to repair, and what is known of our repair of it once there is one."""

    action: RepairAction
    workflow_id: str
    id: str  # of the dead letter, the workflow or the run, as ``action.subject`` says
    letter: DeadLetter | None = None  # where the subject is one
    mark: Mark = None  # of the plan that somebody approved
    sent_at: float | None = None  # when the call was made, on the platform's clock
    handle: str | None = None  # what the platform answered to recognise the effect by


def case_of(action: RepairAction, about: DeadLetter | Run | Workflow) -> Case:
    """The case of doing this to what ``about`` is or belongs to. Raises ``ValueError`` where that makes no sense.

    A dead letter stands for its workflow where that is the subject. A run that hangs is no dead letter.
    """
    if action.subject is RepairSubject.WORKFLOW:
        workflow_id = about.id if isinstance(about, Workflow) else about.workflow_id
        return Case(action=action, workflow_id=workflow_id, id=workflow_id)
    if action.subject is RepairSubject.RUN and isinstance(about, Run):
        return Case(action=action, workflow_id=about.workflow_id, id=about.id)
    if action.subject is RepairSubject.DEAD_LETTER and isinstance(about, DeadLetter):
        return Case(action=action, workflow_id=about.workflow_id, id=about.id, letter=about)
    raise ValueError(f"{action} is done to a {action.subject}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What would be done to one case, for a person to approve; or why it must not be."""

    at: float  # the platform's clock
    does: str = ""  # in words, with what is at stake; "" where it is refused
    changes: Sequence[str] = ()  # names of the settings that would be others, never their values
    refusal: str | None = None
    mark: Mark = None  # of this moment: belongs into the case that is repaired
    observations: Sequence[Observation] = ()  # what was read by the way, for the fold


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The platform took the call: which cases it named, each with what to recognise the effect by, if anything.

    It proves nothing. Every case that was sent is to be verified, named or not.
    """

    handles: Mapping[str, str | None]
    said: str | None = None  # what it had to object in a good answer, redacted


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What reading the platform says of one case after the call, also after one whose answer was lost."""

    at: float  # the platform's clock
    proof: Proof
    evidence: str  # one line
    run_id: str | None = None  # of the run that it made: what becomes of that descends from this case
    observations: Sequence[Observation] = ()


class RepairAdapter(Protocol):
    """One source's way to repair. Failures are raised as ``exporter.wire.errors.ApiError``."""

    async def plan(self, case: Case) -> Plan:
        """Read how it stands, and say what would be done. Changes nothing."""
        ...

    async def repair(self, cases: Sequence[Case], *, send_by: float) -> Answered:
        """Do it, to cases of one action and one workflow: one request, never repeated by anybody below.

        Each case has the mark of its plan. What may have changed since is read again: a plan that no longer holds, or
        a read that fails, is an error whose ``sent`` is False. ``send_by`` is on our clock: the request is not written
        after it.
        """
        ...

    async def verify(self, case: Case) -> Effect:
        """Read what became of a case that was sent. Changes nothing."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One repair that a platform can do."""

    action: RepairAction
    needs: str  # the right it takes beyond reading, in the platform's own words
    bulk_max: int = 1  # cases of one workflow in one call
    #: Whether a second call does no more than one: then one that is seen not to have worked may be made again.
    repeatable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Repairing:
    """The part of a platform's declaration that is about repairs other than a retry."""

    offers: tuple[Offer, ...]
    adapter: Callable[[Any, Api], RepairAdapter]  # the source's config and its wire; reached through ``connect`` only

    @property
    def actions(self) -> tuple[RepairAction, ...]:
        return tuple(offer.action for offer in self.offers)

    def offer(self, action: RepairAction) -> Offer | None:
        return next((offer for offer in self.offers if offer.action is action), None)

    def untold(self, grant: Sequence[RepairAction]) -> list[str]:
        """What a check says of the rights that granted repairs take, where nothing tells what a credential may."""
        return [
            f"note: {offer.action} is granted and takes {offer.needs}; nothing tells whether the credential has that"
            for offer in self.offers
            if offer.action in grant
        ]

    def connect(self, config: Any, api: Api) -> "Repairs":
        """One source's repairs, as far as its config grants them."""
        granted = {offer.action: offer for offer in self.offers if offer.action in config.grant}
        return Repairs(granted, self.adapter(config, api))


class Repairs:
    """The repairs of one source that its config grants. Of others not even a request is made.

    A case that was sent is verified though its grant is gone since.
    """

    def __init__(self, granted: Mapping[RepairAction, Offer], adapter: RepairAdapter) -> None:
        self._granted = granted
        self._adapter = adapter

    @property
    def granted(self) -> Mapping[RepairAction, Offer]:
        return self._granted

    async def plan(self, case: Case) -> Plan:
        """As ``RepairAdapter.plan``; what is not granted is refused."""
        if case.action not in self._granted:
            return Plan(at=0.0, refusal=self._not_granted(case.action))
        return await self._adapter.plan(replace(case, mark=None, sent_at=None, handle=None))

    async def repair(self, cases: Sequence[Case], *, send_by: float) -> Answered:
        """As ``RepairAdapter.repair``; an ``ApiError`` that says it was not sent where it is not granted."""
        actions, workflows = {case.action for case in cases}, {case.workflow_id for case in cases}
        for action in actions:
            if action not in self._granted:
                raise not_sent(action, self._not_granted(action))
        if len(actions) != 1 or len(workflows) != 1 or len({case.id for case in cases}) != len(cases):
            raise ValueError("one call is about one action and one workflow, and about each case once")
        [action] = actions
        if len(cases) > self._granted[action].bulk_max:
            raise ValueError(f"one call of {action} takes at most {self._granted[action].bulk_max}")
        if any(case.mark is None for case in cases):
            raise ValueError("only what was planned can be repaired")
        return await self._adapter.repair(cases, send_by=send_by)

    async def verify(self, case: Case) -> Effect:
        return await self._adapter.verify(case)

    def _not_granted(self, action: RepairAction) -> str:
        return f"it is not granted: add {action} to grant of this source in the config"


def not_sent(action: RepairAction, detail: str, *, kind: ErrorKind = ErrorKind.REQUEST) -> ApiError:
    """A repair that was given up before its request."""
    return ApiError(kind, endpoint=str(action), detail=detail, sent=False)
