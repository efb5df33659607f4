"""Whose turn it is, of the dead letters that nothing of their own holds back. Pure.

Groups take turns, the one served longest ago first, so that a noisy one starves nobody; in a group the dead letter that
was tried least comes first, and of those the oldest. What is not its turn is told which rail it waits for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from exporter.model.rails import Check, Passenger, Rails, checks, gates_of
from exporter.model.retries import Decision, Mode, Reason, Verb

#: A policy and a group under it.
GroupKey = tuple[str, str]
#: Of a group so many are asked whether they may pass: what one waits for, the others mostly wait for too.
ASKED_MAX = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A dead letter that may be retried as far as it is concerned itself."""

    id: str
    passenger: Passenger
    mode: Mode
    calls: int  # that were made for its root
    opened_at: float

    @property
    def key(self) -> GroupKey:
        return self.passenger.owner.name, self.passenger.group


@dataclass(slots=True, kw_only=True)
class _Given:
    """The turns given out so far, and what is left of the rails."""

    rails: Rails
    room: int
    now: float
    ids: list[str] = field(default_factory=list)
    taken: dict[GroupKey, int] = field(default_factory=dict)

    def refusal(self, candidate: Candidate) -> Check | None:
        said = checks(self.rails, candidate.passenger, self.now, taken=self.taken)
        return next((check for check in said if check.refuses), None)

    def is_policy_shut(self, candidate: Candidate) -> bool:
        """Whether what keeps it back keeps back all of its policy."""
        why = self.refusal(candidate)
        return why is not None and (why.reason is Reason.STORM or why.whole)

    def give(self, candidate: Candidate) -> None:
        passenger = candidate.passenger
        self.ids.append(candidate.id)
        self.room -= 1
        for key, _, _ in gates_of(passenger.owner, passenger.group):
            self.taken[key] = self.taken.get(key, 0) + 1
        if self.rails.tokens is not None and not (passenger.at_once or passenger.unbudgeted):
            self.rails = replace(self.rails, tokens=self.rails.tokens - 1.0)

    def next_of(self, queue: Sequence[Candidate], begun: set[str]) -> Candidate | None:
        """The first of a group that may pass."""
        asked = 0
        for candidate in queue:
            if candidate.id in begun:
                continue
            if self.refusal(candidate) is None:
                return candidate
            asked += 1
            if asked >= ASKED_MAX:
                break
        return None


def take_turns(
    queues: Mapping[GroupKey, Sequence[Candidate]], rails: Rails, *, now: float
) -> tuple[list[str], dict[GroupKey, Decision]]:
    """The ids of those whose turn it is, in order, and what is decided of the others of each policy and group.

    Each of the ``queues`` is in the order of ``precedence``.
    """
    given = _Given(rails=rails, room=rails.room(now), now=now)
    begun: set[str] = set()
    order = sorted(queues, key=lambda key: (not queues[key][0].passenger.at_once, rails.gate(*key).served_at, key))
    waiting = bool(order)
    while waiting and given.room > 0:
        waiting = False
        shut: set[str] = set()  # policies that let nothing more pass
        for key in order:
            if given.room <= 0:
                break
            if key[0] in shut:
                continue
            candidate = given.next_of(queues[key], begun)
            if candidate is not None:
                given.give(candidate)
                begun.add(candidate.id)
                waiting = True
            elif given.is_policy_shut(queues[key][0]):
                shut.add(key[0])
    return given.ids, {key: _decision(queue, given) for key, queue in queues.items() if queue}


def in_turn(queues: Mapping[GroupKey, Sequence[Candidate]]) -> list[str]:
    """The ids of all, in the order in which they would have their turns if nothing held any back."""
    numbered = [(number, key, candidate.id) for key, queue in queues.items() for number, candidate in enumerate(queue)]
    return [identity for _, _, identity in sorted(numbered)]


def precedence(candidate: Candidate) -> tuple[bool, int, float, str]:
    """What a person wants now, then what was tried least, then the oldest."""
    return not candidate.passenger.at_once, candidate.calls, candidate.opened_at, candidate.id


def _decision(queue: Sequence[Candidate], given: _Given) -> Decision:
    """What is decided of those of a group whose turn it is not."""
    first, why = queue[0], given.refusal(queue[0])
    if why is None:
        why = Check(reason=Reason.PACE, refuses=True, detail="others are before it")
    return Decision(
        verb=Verb.WAIT,
        reason=why.reason,
        policy=first.passenger.owner.name,
        mode=first.mode,
        detail=why.detail,
        next_at=None if why.reason is Reason.PACE else why.next_at,
    )
