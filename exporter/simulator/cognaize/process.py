"""What the simulated Cognaize world is made of: workflows, their steps, and processes kept as plans.

A process is kept as a *plan*: when each step of the current attempt ends, and whether the last of them fails. What the
API shows follows from the plan and the moment, so that nothing has to happen at the end of a step, and a history of
many thousand processes costs little.

Times are whole microseconds since the epoch, already cut to what the API can show, so that the truth and the API agree
to the last digit.
"""

from collections import deque
from dataclasses import dataclass, field
from operator import attrgetter
from random import Random

Params = dict[str, object]

SECOND = 1_000_000  # in microseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a workflow's definition."""

    delegate: str
    timeout_seconds: int = 0  # 0: it never times out
    seconds: float | None = 10.0  # how long it typically takes; None: it waits for complete-step
    params: Params = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Plan:
    """What is going to happen in one attempt if nobody interferes."""

    ends: list[int]  # of its first step, the next one, ...; if fewer than the steps, the one after the last end waits
    error: str | None = None  # the error class with which the last of these steps fails
    restart_after: int | None = None  # microseconds from that failure until a person restarts it


class Shelf:
    """Processes in the order in which the platform lists them; put in order when read, for most arrive in order."""

    __slots__ = ("_newest_first", "_rows", "_untidy")

    def __init__(self, *, newest_first: bool) -> None:
        self._newest_first = newest_first
        self._rows: list[Process] = []
        self._untidy = False

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, process: "Process") -> None:
        self._untidy = self._untidy or bool(self._rows and process.rank < self._rows[-1].rank)
        self._rows.append(process)

    def drop_gone(self) -> None:
        self._rows = [process for process in self._rows if not process.gone]

    def page(self, offset: int, size: int) -> "list[Process]":
        if self._untidy:
            self._rows.sort(key=attrgetter("rank"))
            self._untidy = False
        if self._newest_first:
            end = max(0, len(self._rows) - offset)
            return self._rows[max(0, end - size) : end][::-1]
        return self._rows[offset : offset + size]


@dataclass(slots=True, kw_only=True, eq=False)
class Workflow:
    """A definition, and the habits of what runs it. One without an ``interval`` starts nothing by itself."""

    id: str
    name: str
    steps: tuple[Step, ...]
    shelf: Shelf
    rng: Random
    interval: float | None = None  # seconds between two starts
    failure_rate: float = 0.0  # per attempt
    stubborn: float = 0.0  # how often a lasting error comes back after a restart
    restart_rate: float = 0.0  # the share of failures that a person restarts
    spread: float = 0.0  # of durations around the typical one, as a share of it
    enabled: bool = True
    deleted: bool = False
    history: "deque[Process]" = field(default_factory=deque)  # in the order of their starts


@dataclass(slots=True, kw_only=True, eq=False)
class Process:
    """One run. A restarted one keeps its id: only the world counts ``attempt``, the platform has no such number."""

    workflow: Workflow
    id: str
    created: int
    began: int  # the current attempt
    plan: Plan
    rank: tuple[int, str]  # its place in listings
    attempt: int = 1
    first: int = 0  # the step with which the current attempt began: the first, or the one that was restarted
    version: int = 0  # of the plan; an event of an older plan is void
    dead_letter: str | None = None  # the open one
    given: dict[int, Params] | None = None  # step -> params it was last called with
    gone: bool = False

    def step_id(self, index: int) -> str:
        return f"{self.id}-s{index + 1}"

    @property
    def last(self) -> int:
        """The step with which the plan ends."""
        return self.first + len(self.plan.ends) - 1

    def ends(self) -> bool:
        """Does the plan lead to a finish, rather than to a step that waits?"""
        return self.plan.error is not None or self.last == len(self.workflow.steps) - 1

    def finished(self, now: int) -> bool:
        return self.ends() and self.plan.ends[-1] <= now

    def status(self, index: int, now: int) -> str:
        """PENDING, STARTED, COMPLETED or FAILED. A step starts at the moment at which the one before it completes."""
        place, ends = index - self.first, self.plan.ends
        if place < 0:
            return "COMPLETED"
        if self.plan.error is not None and index > self.last:
            return "PENDING"
        if place < len(ends) and ends[place] <= now:
            return "FAILED" if self.plan.error is not None and index == self.last else "COMPLETED"
        return "STARTED" if place == 0 or (place <= len(ends) and ends[place - 1] <= now) else "PENDING"

    def updated(self, now: int) -> int:
        """The moment of the latest step transition."""
        return next((end for end in reversed(self.plan.ends) if end <= now), self.began)
