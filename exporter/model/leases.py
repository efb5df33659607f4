"""Which replica polls, retries and exposes which source. Pure.

Every replica that shares a database sees the same rows and decides for itself alone: what it takes because nobody has
it, and what it gives up because another has far less. The database settles who was first.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

#: What is nobody's source, and has to be done by one replica all the same: upkeep of the ledger, ends of operations.
UPKEEP = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One process that shares the database, and has been heard of lately."""

    id: str
    name: str  # for people: the machine and the address it answers at
    sources: frozenset[str]  # that its config names


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Who holds a source. ``epoch`` rises when it changes hands: what was begun under an older one is not written."""

    source: str
    holder: str  # a replica's id; "" once it was given up
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Everybody alive, and every lease, as the database had them at one moment."""

    now: float = 0.0  # the database's clock
    replicas: Mapping[str, Replica] = field(default_factory=dict)  # by id
    leases: Mapping[str, Lease] = field(default_factory=dict)  # by source
    told: Mapping[str, Any] = field(default_factory=dict)  # by source: what its holder says of it

    def holder(self, source: str) -> Replica | None:
        """The replica that holds a source; None while nobody does who is alive."""
        lease = self.leases.get(source)
        return None if lease is None else self.replicas.get(lease.holder)

    def epoch(self, source: str, replica: str) -> int | None:
        """Under which epoch a replica holds a source; None if it does not."""
        lease = self.leases.get(source)
        return lease.epoch if lease is not None and lease.holder == replica else None

    def held_by(self, replica: str) -> set[str]:
        return {lease.source for lease in self.leases.values() if lease.holder == replica}


def to_take(seen: Seen, me: str, sources: Collection[str], *, overdue: Collection[str] = ()) -> str | None:
    """The source this replica should take now: one that nobody holds, if none who could take it has less.

    What is ``overdue`` anybody takes: whose turn it was may be alive, and unable to.
    """
    loads = _loads(seen)
    for source in sorted(sources):
        if seen.holder(source) is None:
            least = min((loads[one] for one in _able(seen, source)), default=0)
            if source == UPKEEP or source in overdue or loads.get(me, 0) <= least:
                return source
    return None


def to_give(seen: Seen, me: str) -> str | None:
    """The source this replica should give up now: one that another could take who has at least two less."""
    loads, mine = _loads(seen), seen.held_by(me) - {UPKEEP}
    for source in sorted(mine, reverse=True):
        if len(mine) - min((loads[one] for one in _able(seen, source)), default=len(mine)) >= 2:
            return source
    return None


def _able(seen: Seen, source: str) -> list[str]:
    """The replicas whose config names a source."""
    return [one.id for one in seen.replicas.values() if source in one.sources]


def _loads(seen: Seen) -> dict[str, int]:
    """How many sources each replica holds that is alive. The upkeep costs next to nothing."""
    return {replica: len(seen.held_by(replica) - {UPKEEP}) for replica in seen.replicas}
