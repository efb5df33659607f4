"""Groups and operations as plain values, for the web and the commands alike."""

from collections.abc import Sequence
from typing import Any

from exporter.model.groups import Group
from exporter.model.operations import UNDER_WAY, OperationAction, OperationState
from exporter.model.words import in_words
from exporter.retries.control import decision_facts


def operation_facts(state: OperationState, *, new_since: int = 0, items: bool = True) -> dict[str, Any]:
    """An operation as plain values."""
    operation = state.operation
    done = sum(1 for item in state.items if item.state not in UNDER_WAY)
    facts: dict[str, Any] = {
        "id": operation.id,
        "action": operation.action.value,
        "who": operation.who,
        "why": operation.why,
        "selected": dict(operation.selected),
        "created_at": operation.created_at,
        "starts_at": operation.starts_at,
        "ended_at": operation.ended_at,
        "cancelled_by": operation.cancelled_by or None,
        "stop_after": operation.stop_after,
        "total": len(state.items),
        "done": done,
        "outcomes": state.counts,
        "new_since": new_since,
    }
    if items:
        facts["items"] = [{"dead_letter": item.key, "state": item.state, "detail": item.detail} for item in state.items]
    return facts


def group_facts(group: Group, can: Sequence[OperationAction]) -> dict[str, Any]:
    """A group as plain values, with what a person ``can`` do to it."""
    return {
        "id": group.id,
        "source": group.source,
        "workflow_id": group.workflow_id,
        "workflow": group.workflow,
        "error_class": group.error_class,
        "error": group.error,
        "count": len(group.letters),
        "oldest_at": group.oldest_at,
        "newest_at": group.newest_at,
        "opened_last_hour": group.opened_lately,
        "decision": decision_facts(group.decision),
        "decisions": group.decisions,
        "words": in_words(group.decision),
        "said": group.said,
        "awaits_approval": group.awaits_approval,
        "can": [_command(action, group) for action in can],
        "last_outcome": group.last_outcome,
        "retries": {
            "tries": group.experience.tries,
            "successes": group.experience.successes,
            "median_seconds": group.experience.seconds,
            "words": group.experience.words(),
        },
        "example": f"{group.source}/{group.letters[0]}",
    }


def _command(action: OperationAction, group: Group) -> str:
    """How an action is typed. What takes its dead letter by name is offered for one alone."""
    by_name = action in (OperationAction.FIX_AND_RETRY, OperationAction.RERUN)
    return f"{action} {group.source}/{group.letters[0]}" if by_name else f"{action} --group {group.id}"
