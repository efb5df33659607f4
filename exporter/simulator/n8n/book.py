"""The truth of the simulated instance: every run that ended, and one dead letter for each piece of work left undone."""

from collections.abc import Iterable
from dataclasses import replace

from exporter.simulator.core import TrueDeadLetter, TrueRun, Truth
from exporter.simulator.n8n.model import NO_RUNS, SECOND, Execution

RESULTS = {"success": "success", "error": "failure", "crashed": "failure", "canceled": "cancelled"}
BROKEN = ("error", "crashed")


class Book:
    """What was, whatever the API still shows of it."""

    def __init__(self) -> None:
        self._runs: list[TrueRun] = []
        self._letters: dict[int, TrueDeadLetter] = {}  # by the root of the chain

    def truth(self) -> Truth:
        return Truth(
            runs=sorted(self._runs, key=lambda run: (run.ended_at, int(run.run_id))),
            dead_letters=sorted(self._letters.values(), key=lambda held: (held.opened_at, int(held.dead_letter_id))),
        )

    def healed(self, root: Execution) -> bool:
        """Whether there is nothing to retry, or no more."""
        held = self._letters.get(root.id)
        return held is None or held.resolved_at is not None

    def ended(self, execution: Execution, root: Execution, at: int, *, saved: bool) -> None:
        """``at``: when this is told, which after a crash is later than when it ended."""
        stopped = execution.stopped if execution.stopped is not None else at
        if execution.mode not in NO_RUNS:
            self._runs.append(_run(execution, stopped))
        held = self._letters.get(root.id)
        if execution.retry_of is not None and execution.status == "success":
            if held is not None and held.resolved_at is None:
                self._letters[root.id] = replace(held, resolved_at=at / SECOND)
        elif held is None and saved and _opens_a_letter(execution, root):
            self._letters[root.id] = TrueDeadLetter(
                workflow_id=execution.workflow.id,
                dead_letter_id=str(root.id),
                opened_at=stopped / SECOND,
                error_class=_error_class(execution),
            )

    def lost(self, execution: Execution, rows: Iterable[Execution], at: int) -> None:
        """Its row is gone, and with the root of a chain its dead letter; a failed retry that stays is the next root."""
        held = self._letters.get(execution.id)
        if held is None or held.resolved_at is not None:
            return
        self._letters[execution.id] = replace(held, resolved_at=at / SECOND)
        for left in rows:
            if left.retry_of == execution.id and left.status in BROKEN and left.stopped is not None:
                self._letters[left.id] = replace(
                    held, dead_letter_id=str(left.id), opened_at=left.stopped / SECOND, resolved_at=None
                )
                break


def _run(execution: Execution, stopped: int) -> TrueRun:
    result = "timeout" if execution.timed_out else RESULTS[execution.status]
    return TrueRun(
        workflow_id=execution.workflow.id,
        run_id=str(execution.id),
        attempt=1,
        result=result,
        started_at=(stopped if execution.started is None else execution.started) / SECOND,
        ended_at=stopped / SECOND,
        error_class=_error_class(execution) if result == "failure" else None,
    )


def _error_class(execution: Execution) -> str:
    return (execution.failure and execution.failure.error_class) or "unknown"


def _opens_a_letter(execution: Execution, root: Execution) -> bool:
    """A cancelled one is not tried again, nor is what a caller will do anew, or a person in the editor."""
    if execution.status not in BROKEN or root.status not in BROKEN or execution.finished:
        return False
    return root.mode not in NO_RUNS and root.mode != "integrated"
