"""Repairs as they stand, in memory. Follows the commits, and is never ahead of them."""

from collections.abc import Iterable

from exporter.model.repairs import Repair, RepairAction, RepairOutcome, RepairSubject
from exporter.platform.retrying import Mark


class RepairBook:
    """Open repairs, and those whose effect outlasts them."""

    def __init__(self) -> None:
        self._open: dict[str, Repair] = {}
        self._fixed: dict[tuple[str, str], Mark] = {}  # dead letters
        self._rerun: dict[tuple[str, str], Repair] = {}  # dead letters

    def apply(self, repairs: Iterable[Repair]) -> None:
        """Follow what was written of these, in the order in which it was."""
        for repair in repairs:
            if repair.is_open:
                self._open[repair.id] = repair
            else:
                self._open.pop(repair.id, None)
            key = repair.source, repair.subject_id
            if repair.action is RepairAction.FIX and repair.outcome is RepairOutcome.DONE:
                self._fixed[key] = repair.mark
            if repair.action is RepairAction.RERUN and repair.sent_at is not None:
                self._rerun[key] = repair

    def open_of(self, source: str) -> list[Repair]:
        """The open repairs of a source, oldest first."""
        found = [repair for repair in self._open.values() if repair.source == source]
        return sorted(found, key=lambda repair: (repair.asked_at, repair.workflow_id, repair.subject_id))

    def of(self, source: str, subject: RepairSubject, identity: str) -> Repair | None:
        """The open repair of one thing."""
        return next(
            (
                repair
                for repair in self._open.values()
                if (repair.source, repair.action.subject, repair.subject_id) == (source, subject, identity)
            ),
            None,
        )

    def is_under_way(self, operation: str, source: str, identity: str) -> bool:
        """Whether a repair of an operation is open."""
        return any(
            (repair.operation, repair.source, repair.subject_id) == (operation, source, identity)
            for repair in self._open.values()
        )

    def fixed(self, source: str, letter_id: str) -> Mark:
        """The mark of the fix of a dead letter: what it mended forbids no retry."""
        return self._fixed.get((source, letter_id))

    def rerun(self, source: str, letter_id: str) -> Repair | None:
        """The rerun of a dead letter that was sent, whatever came of it."""
        return self._rerun.get((source, letter_id))
