"""The words of repairs other than a retry: what may be done, to what, and what then is seen of it. Pure.

A repair is asked for by a person, never by a policy, and only where the source's ``grant`` names it.
"""

from enum import StrEnum


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
