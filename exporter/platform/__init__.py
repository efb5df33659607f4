"""What a platform folder offers the rest, and what it may ask of it.

A platform is one folder: its declaration (``PLATFORM`` in ``__init__.py``), its ``client`` (I/O: which calls, in which
order) and its ``mapping`` (pure: payloads to observations). It imports the model and the shared HTTP wrapper, never
another platform, never the store. The core knows platforms through the types of this package only: ``streams``,
``webhooks`` (a request and what it said), ``retrying``, ``repairing``; ``credentials``, ``errors``, ``events`` are for
platforms.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Protocol, TypeVar

from exporter.model import DeadLetter, ErrorClass, Observation, ResolvedBy, Result, Run, State, Workflow
from exporter.platform.events import receive_documented
from exporter.platform.repairing import Repairing
from exporter.platform.retrying import Retrying
from exporter.platform.section import SourceConfig
from exporter.platform.streams import Stream, StreamName
from exporter.platform.webhooks import MalformedEvent, RunKey, WebhookEvents, WebhookRequest
from exporter.wire.api import Api

# What a platform folder needs to declare itself comes from here.
__all__ = [
    "BAD_ITEM",
    "CHUNK",
    "BadItem",
    "Client",
    "Cursor",
    "Fault",
    "Known",
    "MalformedEvent",
    "Page",
    "Platform",
    "RunKey",
    "Stream",
    "StreamName",
    "WebhookEvents",
    "WebhookRequest",
    "in_turns",
    "selected",
]

T = TypeVar("T")
#: What a stream remembers under one key: anything JSON can hold.
Cursor = Any


#: The kind of a fault that costs one item.
BAD_ITEM = "bad_item"


class BadItem(Exception):
    """A payload, or an item of one, that cannot be used: one line that says why, quoting nothing of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """An item, or a part of a sweep, that could not be used: counted by kind, costs nothing else.

    One that names a workflow says that it could not be read, unless it is ``of_item``: of one run or dead letter, as
    every ``bad_item`` is. An unread workflow is named in every sweep until it has been read.
    """

    kind: str  # an ErrorKind value, "truncated", or "bad_item"
    detail: str  # one redacted line that names the place
    workflow_id: str | None = None
    of_item: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What a sweep has read so far and wants stored in one transaction.

    ``cursors`` are written with the observations they stand for; None forgets a key. A client puts a cursor only on the
    page that completes what the cursor claims. A cursor under the id of a workflow says that this was read.
    """

    observations: Sequence[Observation] = ()
    cursors: Mapping[str, Cursor | None] = field(default_factory=dict)
    faults: Sequence[Fault] = ()
    items: int = 0  # of the platform's, that this was made from; 0: as many as there are observations and bad items
    more: bool = False  # there was more to read than the budget gives at once: the stream wants its next sweep soon


#: Items of a listing that are looked at, and observations that are stored, before others have their turn.
CHUNK = 200


async def in_turns(items: Sequence[T]) -> AsyncIterator[Sequence[T]]:
    """The items in parts of ``CHUNK``, so that a huge page does not hold up everything else; one part if empty."""
    for start in range(0, max(1, len(items)), CHUNK):
        if start:
            await asyncio.sleep(0)
        yield items[start : start + CHUNK]


class Known(Protocol):
    """What the ledger knows of one source, read by its client to decide what to ask for. Never changed by it."""

    @property
    def workflows(self) -> Mapping[str, Workflow]: ...

    @property
    def open_runs(self) -> Mapping[str, Run]:
        """Runs not finished yet, by id."""
        ...

    @property
    def dead_letters(self) -> Mapping[str, DeadLetter]:
        """Open dead letters, by id."""
        ...

    def cursor(self, stream: str, key: str = "") -> Cursor | None: ...

    def cursors(self, stream: str) -> Mapping[str, Cursor]: ...

    @property
    def first_sweep_at(self) -> float | None:
        """The baseline on the platform's clock, None before the first sweep."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Watches:
    """What a source reads, as the platform calls it: parts from the whole to the part, so that two can be compared.

    Of two sources of one platform that name the same, or one a part of what the other names, all would be counted
    twice.
    """

    place: tuple[str, ...]

    def __str__(self) -> str:
        return "/".join(self.place)

    def overlaps(self, other: "Watches") -> bool:
        """Whether one holds the other."""
        both = min(len(self.place), len(other.place))
        return self.place[:both] == other.place[:both]


class Client(Protocol):
    """One source's connection. ``now`` is the platform's clock. Failures are raised as ``ApiError``."""

    def sweep(self, stream: StreamName, known: Known, now: float) -> AsyncIterator[Page]:
        """Read one stream once.

        Ending without an exception means the sweep was complete but for the faults it reported.
        """
        ...

    async def complete(self, keys: Sequence[RunKey], known: Known, now: float) -> AsyncIterator[Page]:
        """Read exactly these runs: a webhook named them and said too little. Who inherits this leaves them to the
        sweeps.
        """
        for _ in ():
            yield Page()

    def check(self) -> AsyncIterator[str | Watches]:
        """Try the credential: yield one line per thing that works, raise ApiError or yield "problem: …" lines for what
        does not, and what is watched, where the platform says it.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """The declaration of one platform: everything the core needs to know about it."""

    name: str
    title: str
    config: type[SourceConfig]
    streams: tuple[Stream, ...]
    connect: Callable[[Any, Api], Client]  # the source's config (of type ``config``) and its wire
    auth: Callable[[Any], Any]  # the source's config -> exporter.wire.api.Auth
    error_detail: Callable[[Any], str | None]  # how the platform words an error body
    requests_per_minute: float  # until the platform says otherwise
    results: tuple[Result, ...]  # what runs here can end as; their counters are born at 0
    error_classes: tuple[ErrorClass, ...]  # which classes of errors the platform distinguishes
    error_classes_read: tuple[ErrorClass, ...] | None = None  # those its API tells, where only events tell the others
    resolved_by: tuple[ResolvedBy, ...]  # how dead letters here can close
    holds_dead_letters: bool = False  # the platform keeps dead letters itself; elsewhere a failed run or step is one
    superseded_by_success: bool = False  # a later success of the same workflow closes its dead letters
    measures: frozenset[str] = frozenset()  # of: operations, transfer, steps, queue; counters born at 0
    #: States of unfinished runs it can list. Of another state only a webhook may tell: then none known is not none.
    lists_active: frozenset[State] = frozenset({State.PENDING, State.RUNNING})
    receive: Callable[[WebhookRequest], WebhookEvents] = receive_documented  # pure; raises MalformedEvent
    #: config, run, its workflow as far as that is known -> the page of the run, for a person
    run_url: Callable[[Any, Run, Workflow | None], str | None] = lambda config, run, workflow: None
    workflow_url: Callable[[Any, Workflow], str | None] = lambda config, workflow: None  # the same of a workflow
    #: config -> the results of runs whose steps are asked for once they ended: their traces wait for that
    steps_later: Callable[[Any], frozenset[Result]] = lambda config: frozenset()
    retrying: Retrying | None = None  # how its dead letters are retried; None: they cannot be
    repairing: Repairing | None = None  # what else it can be asked for; None: nothing

    def __post_init__(self) -> None:
        names = [stream.name for stream in self.streams]
        if len(set(names)) < len(names):
            raise ValueError(f"{self.name} declares a stream twice")
        if not any(name.is_work for name in names):
            raise ValueError(f"{self.name} declares no stream of workflows, runs or dead letters")

    def reads(self, name: StreamName) -> StreamName:
        """The stream that brings what ``name`` stands for: itself, or else runs (elsewhere than in a list of its own a
        dead letter is a run that failed), or else the first that is about work.
        """
        names = [stream.name for stream in self.streams]
        return next((one for one in (name, StreamName.RUNS) if one in names), self.main)

    @property
    def main(self) -> StreamName:
        """The stream that says whether the source is up: workflows, or else the first that is about work."""
        names = [stream.name for stream in self.streams if stream.name.is_work]
        return StreamName.WORKFLOWS if StreamName.WORKFLOWS in names else names[0]


def selected(config: SourceConfig, workflow_id: str, name: str | None) -> bool:
    """Whether a source watches this workflow: included (by default all are) and not excluded, by id or name pattern."""

    def among(patterns: Sequence[str]) -> bool:
        return any(p == workflow_id or (name is not None and fnmatchcase(name, p)) for p in patterns)

    return (not config.include or among(config.include)) and not among(config.exclude)
