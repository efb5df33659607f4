"""What a person has done to many dead letters at once: a frozen list of them, a reason, how far it has come. Pure."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from exporter.model.repairs import RepairAction


class OperationAction(StrEnum):
    """What is done to each dead letter of an operation."""

    APPROVE = "approve"
    RETRY = "retry"
    HOLD = "hold"
    RELEASE = "release"
    QUARANTINE = "quarantine"
    DISCARD = "discard"
    REACTIVATE = "reactivate"
    STOP = "stop"
    FIX_AND_RETRY = "fix-and-retry"
    RERUN = "rerun"

    @property
    def is_repair(self) -> bool:
        """Whether it is a call of another kind than a retry, which takes a grant: a ``RepairAction``."""
        return self.value in _REPAIRS


_REPAIRS = frozenset(RepairAction)


class ItemState(StrEnum):
    """How far one dead letter of an operation has come, beside the outcomes of its retry."""

    WAITING = "waiting"  # let pass; its turn is to come
    OPEN = "open"  # its retry is under way
    DONE = "done"  # what was asked is so
    REFUSED = "refused"  # it makes no sense for this one
    VOID = "void"  # it changed, or its time was up, before its turn came
    CANCELLED = "cancelled"


#: States that are not the end of it.
UNDER_WAY = frozenset({ItemState.WAITING.value, ItemState.OPEN.value})


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One dead letter of an operation."""

    source: str
    dead_letter_id: str
    state: str = ItemState.WAITING.value  # an ``ItemState`` or the ``Outcome`` of its retry
    detail: str = ""

    @property
    def key(self) -> str:
        return f"{self.source}/{self.dead_letter_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation. A row of the ledger; times are ours."""

    id: str
    action: OperationAction
    who: str
    why: str = ""
    selected: Mapping[str, Any] = field(default_factory=dict)  # as asked for: ids, group, policy, workflow, between
    created_at: float
    starts_at: float  # until then it can be cancelled as if it had never been said
    ended_at: float | None = None
    cancelled_by: str = ""
    stop_after: int | None = None  # it cancels itself after so many failures


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationState:
    """An operation with what has become of its dead letters."""

    operation: Operation
    items: Sequence[Item]

    @property
    def counts(self) -> dict[str, int]:
        """How many dead letters are in each state."""
        return dict(sorted(Counter(item.state for item in self.items).items()))

    @property
    def is_open(self) -> bool:
        return any(item.state in UNDER_WAY for item in self.items)

    def with_item(self, source: str, dead_letter_id: str, state: str, detail: str) -> "OperationState":
        items = [
            replace(item, state=state, detail=detail)
            if (item.source, item.dead_letter_id) == (source, dead_letter_id)
            else item
            for item in self.items
        ]
        return replace(self, items=items)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alike:
    """What is said of some dead letters alike."""

    why: str
    count: int
    example: str


#: The id of a retry: what differs in nothing else is alike.
_ID = re.compile(r"\b[0-9a-f]{16}\b ?")


def alike(said: Mapping[str, str]) -> list[Alike]:
    """What is said of dead letters (SOURCE/ID), each thing once, the most frequent first."""
    keys: dict[str, list[str]] = {}
    for key, why in said.items():
        keys.setdefault(_ID.sub("", why), []).append(key)
    ordered = sorted(keys.items(), key=lambda one: -len(one[1]))
    return [Alike(why=said[of[0]] if len(of) == 1 else why, count=len(of), example=of[0]) for why, of in ordered]
