"""The words of repairs other than a retry: what may be done, to what, what then is seen of it, and its row. Pure.

A repair is asked for by a person, never by a policy, and only where the source's ``grant`` names it.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class RepairAction(StrEnum):
    """What a platform may be asked for beside a retry."""

    DISCARD = "discard"  # delete a dead letter, and with it what a retry needs
    REACTIVATE = "reactivate"  # switch on a workflow that the platform switched off
    STOP = "stop"  # end a run that hangs
    FIX = "fix-and-retry"  # have a dead letter run as its workflow is today; a retry of the usual kind follows
    RERUN = "rerun"  # run the workflow of a dead letter again, with parameters that are written in the config

    @property
    def subject(self) -> "RepairSubject":
        """What it is done to."""
        return _SUBJECTS.get(self, RepairSubject.DEAD_LETTER)


class RepairSubject(StrEnum):
    DEAD_LETTER = "dead letter"
    WORKFLOW = "workflow"
    RUN = "run"


_SUBJECTS = {RepairAction.REACTIVATE: RepairSubject.WORKFLOW, RepairAction.STOP: RepairSubject.RUN}


class Proof(StrEnum):
    """What reading the platform says of a repair."""

    DONE = "done"
    NOT_DONE = "not_done"  # at the moment of the look: what is still under way may yet be done
    UNKNOWN = "unknown"


class RepairState(StrEnum):
    """How far an open repair has come."""

    WAITING = "waiting"  # asked for, on a plan; until it is sent it can be taken back
    SENT = "sent"  # durable; the call is being made
    VERIFYING = "verifying"  # the call came to an end, whatever it said: the platform is being read


class RepairOutcome(StrEnum):
    """What became of a repair. Final."""

    DONE = "done"  # the platform shows it
    REFUSED = "refused"  # not sent, or the platform said no, and shows that nothing happened
    FAILED = "failed"  # sent, and the platform shows that it did not come about
    UNKNOWN = "unknown"  # sent, and nothing tells
    VOID = "void"  # nothing was left to do, or its time was up, before its turn came
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """One call of ours that repairs one thing: plan, intent, call, proof. A row of the ledger.

    Times are ours, unless a name says otherwise.
    """

    id: str
    source: str
    action: RepairAction
    operation: str  # by which a person asked for it
    who: str
    workflow_id: str
    subject_id: str  # of the dead letter, the workflow or the run
    run_id: str | None = None  # what is remembered of a dead letter that may be forgotten meanwhile
    attempt: int = 1
    opened_at: float = 0.0  # on the platform's clock
    root: str = ""  # of a dead letter
    mark: Any = None  # of the plan that was approved
    does: str = ""  # in words
    changes: tuple[str, ...] = ()  # names of settings
    state: RepairState = RepairState.WAITING
    outcome: RepairOutcome | None = None
    asked_at: float
    starts_at: float  # until then it can be cancelled as if it had never been said
    until: float  # by then it must have been sent
    alone: bool = False  # it is to be sent in a call of its own
    send_by: float = 0.0
    sent_at: float | None = None
    sent_at_theirs: float | None = None  # the same on the platform's clock
    handle: str | None = None
    refusal: str = ""  # what the platform said to a call by which nothing happened
    shared: bool = False  # that may have been meant for another that the call named as well
    look_at: float = 0.0  # when it is its turn next: to be planned anew, to be read
    new_runs: tuple[str, ...] = ()  # runs that it made
    closed_at: float | None = None
    detail: str = ""  # one redacted line

    @property
    def is_open(self) -> bool:
        return self.outcome is None

    @property
    def key(self) -> str:
        return f"{self.source}/{self.subject_id}"

    @property
    def item_state(self) -> str:
        """What its operation says of it. After a fix the retry is still to come."""
        if self.outcome is None:
            return "waiting" if self.state is RepairState.WAITING else "open"
        follows = self.action is RepairAction.FIX and self.outcome is RepairOutcome.DONE
        return "waiting" if follows else self.outcome.value
