"""What the config says about retrying, compiled: policies, paces, the rules of each source. Pure."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from exporter.model.matchers import NAMED_ONLY, Facts, Matcher
from exporter.model.retries import (
    Action,
    Mode,
    Override,
    OverrideAction,
    lowest,
)
from exporter.model.windows import Window

#: The policy named by retries that a person asked for and no policy owns.
MANUAL = "manual"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Seconds to wait before the k-th retry: ``first`` times ``factor`` to the k-1, at most ``cap``.

    The part ``jitter`` of it is drawn, from the root and k: shadow, plan and enforcement agree, and a restart does not
    roll again.
    """

    first: float = 900.0
    factor: float = 3.0
    cap: float = 21600.0
    jitter: float = 0.5

    def delay(self, root: str, ordinal: int) -> float:
        longest = min(self.cap, self.first * self.factor ** min(ordinal - 1, 60))
        digest = hashlib.sha256(f"{root}\0{ordinal}".encode()).digest()
        drawn = int.from_bytes(digest[:8]) / 2**64
        return longest * (1.0 - self.jitter * drawn)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cooling:
    """Seconds a gate stays shut after it was tripped for the k-th time in a row: ``first`` times ``factor`` to the k-1."""

    first: float = 1800.0
    factor: float = 2.0
    cap: float = 14400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRules:
    """How many retries of one group may be unverified at once: it rises along ``ramp`` as successes are verified."""

    ramp: tuple[int, ...] = (1, 2, 5, 10, 25)
    cool: Cooling = Cooling()


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How many failed retries a source can afford: ``earn`` tokens for each successful run of its own, ``floor`` a second.

    A retry takes one and gives it back if it succeeds. It starts empty and holds at most ``cap``.
    """

    cap: float = 20.0
    earn: float = 0.1
    floor: float = 2 / 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Storm:
    """When a source as a whole is unwell: the part ``failing`` of at least ``of`` runs that ended ``within`` seconds."""

    failing: float = 0.4
    of: int = 20
    within: float = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One rule, as compiled from the config."""

    name: str
    hash: str
    matcher: Matcher
    action: Action
    mode: Mode = Mode.ENFORCE  # it can only lower
    group_by: tuple[str, ...] = ("source", "workflow.id", "error.class", "error.fingerprint")
    retries: int = 3
    backoff: Backoff = Backoff()
    give_up_after: float = 259200.0
    window: Window | None = None
    approve: Literal["none", "first_of_group", "each"] = "none"
    deadline: float = 7200.0
    settle: float = 600.0
    warnings_fail: bool = True
    exhausted: Literal[Action.QUARANTINE, Action.ESCALATE] = Action.QUARANTINE
    gate: GateRules = GateRules()

    def owns(self, facts: Facts) -> bool | None:
        """Whether it matches; an error that is unknown or was a kill only where a retry policy names its class.

        So while the class of an error is not known yet, a policy that does not name both cannot tell.
        """
        matches = self.matcher.matches(facts)
        if matches is not True or self.action is not Action.RETRY:
            return matches
        error_class = facts.get("error.class")
        if error_class is None:
            return True if all(map(self.matcher.names, NAMED_ONLY)) else None
        return self.matcher.names(str(error_class)) if error_class in NAMED_ONLY else True

    def missing(self, facts: Facts) -> tuple[str, ...]:
        """The fields it depends on whose values nobody knows."""
        fields = self.matcher.fields() | ({"error.class"} if self.action is Action.RETRY else set())
        return tuple(sorted(field for field in fields if facts.get(field) is None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast retries of one source may be sent: ``rate`` a second on average, ``burst`` at once, so many open."""

    rate: float = 0.1
    burst: int = 3
    in_flight: int = 25

    def full(self, full_at: float, now: float) -> float:
        """When the bucket is full again: at most what filling it takes from now, whatever was noted."""
        return min(full_at, now + self.burst / self.rate)

    def next_at(self, full_at: float) -> float:
        """When it allows a call."""
        return full_at - (self.burst - 1) / self.rate


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRules:
    """What the config says about retrying one source."""

    mode: Mode = Mode.ENFORCE
    pace: Pace = Pace()
    yields: bool = True  # to the platform's own retries
    budget: Budget | None = None  # None: no limit
    storm: Storm | None = None  # None: never


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Everything the config says about retrying."""

    mode: Mode = Mode.SHADOW
    sources: Mapping[str, SourceRules] = field(default_factory=dict)
    policies: tuple[Policy, ...] = ()
    hash: str = ""

    def source(self, source: str) -> SourceRules:
        return self.sources.get(source, SourceRules())

    def mode_of(self, source: str, overrides: Sequence[Override] = ()) -> Mode:
        """The effective mode of a source, whatever the policy."""
        lowered = [Mode.APPROVE for o in overrides if o.action is OverrideAction.LOWER]
        return lowest(self.mode, self.source(source).mode, *lowered)
