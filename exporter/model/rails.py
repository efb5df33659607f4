"""What holds retries back for the sake of many: a gate for each group, the pace, a budget, the eye for a storm. Pure.

The gate is canary and breaker in one. It lets one retry of a group through, then two, five and more as successes are
verified; when they fail it shuts, for longer each time, and opens for one retry at a time until one succeeds. What was
on its way when it shut, and what fails while the workflow's own runs fail as well, says something of the platform and
nothing of the dead letter: it uses up none of its retries.

Times are seconds since the epoch on our own clock.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache

from exporter.model.policy import Budget, GateRules, Pace, Policy, Storm
from exporter.model.retries import Reason, Retry

#: Failures in a row that shut a gate which has let successes through; one that has not is shut by the first.
FAILURES_IN_A_ROW = 6
#: A refused source or workflow is left alone for so long (seconds) at first, then twice as long each time, at most …
SETBACK_FIRST, SETBACK_MOST = 60.0, 900.0
#: … unless the platform says how long, which holds up to a day.
RETRY_AFTER_MOST = 86400.0
#: One refusal is forgotten after so long (seconds) without another.
SETBACK_FADES = 600.0
_STREAK_MOST = 6
#: What was noted so much (seconds) after now was noted by a clock that was ahead.
SKEW = 5.0
#: The pace is halved with each refusal, down to this part.
_SLOWEST = 0.125
#: How wide the gate of a whole policy is: it shuts when so many groups fail at first, whatever their own gates say.
POLICY_RAMP = (16, 50, 100)


class GateState(StrEnum):
    """How a gate stands, as the metric says it."""

    OPEN = "open"
    RAMPING = "ramping"
    PROBING = "probing"  # one retry at a time, to see whether it is well again
    COOLING = "cooling"  # none


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """How a gate stands. A row of the ledger; a gate without one is new."""

    level: int = 0  # of the ramp
    judged: int = 0  # verdicts on this level
    passed: int = 0  # of them successes
    failures: int = 0  # in a row
    trips: int = 0  # in a row, without a success between
    tripped_at: float | None = None
    cool_until: float = 0.0
    sick: bool = False  # the workflow's own runs were failing when it was shut: their next success is news
    served_at: float = 0.0  # when a retry last passed

    @property
    def is_shut(self) -> bool:
        """Whether it waits for a success of one retry at a time."""
        return self.tripped_at is not None

    def state(self, rules: GateRules, now: float, *, well_at: float | None = None) -> GateState:
        """``well_at`` is when a run of the workflow last succeeded by itself."""
        if self.is_shut:
            return GateState.COOLING if now < self.opens_at(rules, now, well_at=well_at) else GateState.PROBING
        return GateState.OPEN if self.level >= len(rules.ramp) - 1 else GateState.RAMPING

    def opens_at(self, rules: GateRules, now: float, *, well_at: float | None = None) -> float:
        """Until when nothing passes: at most one cool-off from now, whatever a wrong clock has noted."""
        if self.tripped_at is None or (self.sick and self.is_well(well_at)):
            return 0.0
        return min(self.cool_until, now + rules.cool.cap)

    def is_well(self, well_at: float | None) -> bool:
        """Whether the workflow's own runs have succeeded since it was shut."""
        return self.tripped_at is not None and well_at is not None and well_at > self.tripped_at

    def is_ill(self, ill_at: float | None, well_at: float | None) -> bool:
        """Whether the workflow's own runs have failed since it was shut, and none has succeeded."""
        return (
            self.tripped_at is not None
            and ill_at is not None
            and ill_at > self.tripped_at
            and not self.is_well(well_at)
        )

    def width(self, rules: GateRules, now: float, *, well_at: float | None = None) -> int:
        """How many retries may be unverified at once."""
        if self.is_shut:
            return 0 if now < self.opens_at(rules, now, well_at=well_at) else 1
        return rules.ramp[min(self.level, len(rules.ramp) - 1)]

    def changes_at(self, now: float) -> float:
        """When it stands otherwise though nothing happens but time; infinity if it does not."""
        return self.cool_until if self.is_shut and self.cool_until > now else float("inf")

    def served(self, now: float) -> "Gate":
        return replace(self, served_at=now)

    def redated(self, now: float) -> "Gate":
        """The same without times that lie ahead: a clock that was ahead has noted them."""
        served_at = min(self.served_at, now)
        if self.tripped_at is None or self.tripped_at <= now:
            return self if served_at == self.served_at else replace(self, served_at=served_at)
        back = self.tripped_at - now
        return replace(self, tripped_at=now, cool_until=self.cool_until - back, served_at=served_at)

    def judge(self, *, good: bool, claimed_at: float, sick: bool, rules: GateRules, now: float, draw: float) -> "Gate":
        """The gate after a verdict. ``sick`` says whether the workflow's own runs fail as well; ``draw`` is in [0, 1).

        What was on its way when the gate was shut says nothing new, if it failed.
        """
        if good:
            if self.is_shut:
                return Gate(level=min(1, len(rules.ramp) - 1), served_at=self.served_at)
            judged, passed, most = self.judged + 1, self.passed + 1, len(rules.ramp) - 1
            if self.level < most and judged >= rules.ramp[self.level] and 2 * passed >= judged:
                return replace(self, level=self.level + 1, judged=0, passed=0, failures=0)
            return replace(self, judged=judged, passed=passed, failures=0)
        if self.tripped_at is not None and claimed_at < self.tripped_at:
            return self
        failures = self.failures + 1
        allowed = FAILURES_IN_A_ROW if self.level > 0 else rules.ramp[0]
        if not self.is_shut and failures < allowed:
            return replace(self, judged=self.judged + 1, failures=failures)
        cool = rules.cool
        seconds = min(cool.cap, cool.first * cool.factor ** min(self.trips, 60)) * (1.0 - 0.2 * draw)
        return Gate(
            trips=self.trips + 1,
            tripped_at=now,
            cool_until=now + seconds,
            sick=sick,
            served_at=self.served_at,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Setback:
    """A source or a workflow that answered "not now": until when it is left alone, and how often that was so lately."""

    until: float
    at: float
    streak: int = 1

    def holds_until(self, now: float) -> float:
        """Until when; 0 if a clock that was ahead has noted it: what that meant, nobody knows."""
        return self.until if self.at <= now + SKEW else 0.0

    def strength(self, now: float) -> int:
        """How many refusals still weigh."""
        return max(0, self.streak - int(max(0.0, now - self.at) / SETBACK_FADES))

    def slows(self, now: float) -> float:
        """The part of the pace that is left."""
        return max(_SLOWEST, 0.5 ** self.strength(now))


def set_back(before: Setback | None, *, retry_after: float | None, now: float) -> Setback:
    """After one more refusal; ``retry_after`` is how long (seconds) the platform asked us to wait, if it did."""
    streak = 1 if before is None else min(_STREAK_MOST, before.strength(now) + 1)
    grown = min(SETBACK_MOST, SETBACK_FIRST * 2.0 ** (streak - 1))
    return Setback(until=now + max(grown, min(retry_after or 0.0, RETRY_AFTER_MOST)), at=now, streak=streak)


@dataclass(frozen=True, slots=True, kw_only=True)
class Purse:
    """What is left of a budget at a moment. A row of the ledger; it starts empty."""

    tokens: float = 0.0
    at: float

    def now(self, budget: Budget, now: float, *, earned: int = 0) -> float:
        """The tokens now; ``earned`` successful runs are not in it yet."""
        grown = self.tokens + budget.floor * max(0.0, now - self.at) + budget.earn * earned
        return min(budget.cap, grown)

    def next_at(self, budget: Budget, now: float, *, earned: int = 0) -> float | None:
        """When it next holds one; None if only successful runs can fill it."""
        missing = 1.0 - self.now(budget, now, earned=earned)
        if missing <= 0:
            return now
        return now + missing / budget.floor if budget.floor > 0 else None


def storm(ended: int, failed: int, rules: Storm) -> str:
    """Why a source as a whole is unwell, of so many runs that ended within its time; "" if it is not."""
    if ended < rules.of or failed < rules.failing * ended:
        return ""
    return f"{failed} of the source's last {ended} runs failed: it is not the dead letters"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rails:
    """How all that stands for one source now. Without anything, nothing is held back."""

    pace: Pace = field(default_factory=Pace)  # slowed, if the platform asked for it
    pace_at: float = 0.0  # when it next allows a call
    in_flight: int = 0  # open retries of the source
    setbacks: Mapping[str, Setback] = field(default_factory=dict)  # by workflow; "" is the source's own
    storm: str = ""
    tokens: float | None = None  # None: no budget
    token_at: float | None = None
    gates: Mapping[tuple[str, str], Gate] = field(default_factory=dict)  # by policy and group; "" is the whole policy
    unverified: Mapping[tuple[str, str], int] = field(default_factory=dict)  # open and not in doubt, by the same
    approved_groups: frozenset[tuple[str, str]] = frozenset()  # where an approval holds for the rest
    #: When runs of workflows last succeeded by themselves, as far as that matters to a gate that is shut; "" is any.
    well: Mapping[str, float] = field(default_factory=dict)
    ill: Mapping[str, float] = field(default_factory=dict)  # when they last failed

    def gate(self, policy: str, group: str) -> Gate:
        return self.gates.get((policy, group), NEW_GATE)

    def room(self, now: float) -> int:
        """How many calls the pace allows now."""
        full_at = self.pace_at + (self.pace.burst - 1) / self.pace.rate
        tokens = self.pace.burst - max(0.0, full_at - now) * self.pace.rate
        return max(0, min(int(tokens + 1e-6), self.pace.in_flight - self.in_flight))


NEW_GATE = Gate()
FREE = Rails()


def gates_of(owner: Policy, group: str) -> Iterator[tuple[tuple[str, str], GateRules, str]]:
    """The gates in the way of a group under its policy: that of the whole policy, wider from the start, and its own."""
    yield (owner.name, ""), policy_gate(owner.gate), "policy"
    yield (owner.name, group), owner.gate, "group"


@lru_cache(maxsize=256)
def policy_gate(rules: GateRules) -> GateRules:
    """The rules of the gate of a whole policy: never narrower than those of its groups begin."""
    return GateRules(ramp=tuple(max(width, rules.ramp[0]) for width in POLICY_RAMP), cool=rules.cool)


def gate_states(
    groups: Mapping[tuple[str, str], Collection[str]], owners: Mapping[str, Policy], rails: Rails, now: float
) -> Counter[tuple[str, GateState]]:
    """How many ``groups`` (policy and group, each with its workflows) stand how, by policy.

    A group stands as its own gate does, or as its policy's while that is shut and lets less through. Where its
    workflows differ, the one that is best off counts: something of the group may pass.
    """
    found = Counter[tuple[str, GateState]]()
    fresh = {name: NEW_GATE.state(owner.gate, now) for name, owner in owners.items()}
    shut = {name: gate for (name, group), gate in rails.gates.items() if not group and gate.is_shut and name in owners}
    least = {name: gate.state(owners[name].gate, now, well_at=rails.well.get("")) for name, gate in shut.items()}
    for key, workflows in groups.items():
        name, owner, own = key[0], owners.get(key[0]), rails.gates.get(key)
        if owner is None:
            continue
        if own is None:
            state = fresh[name]
        else:
            states = (own.state(owner.gate, now, well_at=rails.well.get(workflow)) for workflow in workflows)
            state = min(states, key=_NARROWNESS.__getitem__)
        if name in least:
            state = max(state, least[name], key=_NARROWNESS.__getitem__)
        found[name, state] += 1
    return found


_NARROWNESS = {state: number for number, state in enumerate(GateState)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Passenger:
    """One who wants to pass the rails."""

    owner: Policy
    group: str
    workflow_id: str
    at_once: bool = False  # a person wants it now: past storm, gate and budget, not past the pace
    unbudgeted: bool = False  # a person let it pass, or nothing is sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What one rail says."""

    reason: Reason
    refuses: bool
    detail: str = ""
    next_at: float | None = None
    whole: bool = False  # it says the same to all of a policy


def checks(
    rails: Rails, passenger: Passenger, now: float, *, taken: Mapping[tuple[str, str], int] | None = None
) -> Iterator[Check]:
    """What each rail says, in their order; ``taken`` are places at gates that were given away just now."""
    if not passenger.at_once:
        yield Check(reason=Reason.STORM, refuses=bool(rails.storm), detail=rails.storm)
        yield _gates(rails, passenger, now, taken or {})
        spent = rails.tokens is not None and rails.tokens < 1.0 - 1e-6 and not passenger.unbudgeted
        detail = "the budget of failed retries is used up" if spent else ""
        yield Check(reason=Reason.BUDGET, refuses=spent, detail=detail, next_at=rails.token_at if spent else None)
    yield _pace(rails, passenger, now)


def _gates(rails: Rails, passenger: Passenger, now: float, taken: Mapping[tuple[str, str], int]) -> Check:
    for key, rules, whose in gates_of(passenger.owner, passenger.group):
        gate = rails.gates.get(key, NEW_GATE)
        well_at = rails.well.get("" if whose == "policy" else passenger.workflow_id)
        opens_at = gate.opens_at(rules, now, well_at=well_at)
        if now < opens_at:
            times = "once" if gate.trips == 1 else f"{gate.trips} times in a row"
            detail = f"its {whose} cools off: retrying failed {times}"
            return Check(reason=Reason.GATE, refuses=True, detail=detail, next_at=opens_at, whole=whose == "policy")
        passing = rails.unverified.get(key, 0) + taken.get(key, 0)
        if passing >= gate.width(rules, now, well_at=well_at):
            detail = f"others of its {whose} are not verified yet"
            return Check(reason=Reason.GATE, refuses=True, detail=detail, whole=whose == "policy")
    return Check(reason=Reason.GATE, refuses=False)


def _pace(rails: Rails, passenger: Passenger, now: float) -> Check:
    for key, whose in (("", "platform"), (passenger.workflow_id, "workflow")):
        setback = rails.setbacks.get(key)
        until = 0.0 if setback is None else setback.holds_until(now)
        if now < until:
            return Check(reason=Reason.PACE, refuses=True, detail=f"the {whose} said it is busy", next_at=until)
    if rails.in_flight >= rails.pace.in_flight:
        return Check(reason=Reason.PACE, refuses=True, detail=f"{rails.in_flight} retries are in flight")
    return Check(reason=Reason.PACE, refuses=now < rails.pace_at, next_at=rails.pace_at)


def unverified(opened: Iterable[Retry]) -> dict[tuple[str, str], int]:
    """How many open retries have a place at each gate (policy and group; "" is the whole policy's)."""
    counts: dict[tuple[str, str], int] = {}
    for retry in opened:
        if retry.in_flight and not retry.shadow:
            for key in ((retry.policy, retry.group), (retry.policy, "")):
                counts[key] = counts.get(key, 0) + 1
    return counts


def slowed(pace: Pace, setback: Setback | None, now: float) -> Pace:
    """The pace that is left after the platform asked for less."""
    return pace if setback is None else pace.slowed(setback.slows(now))
