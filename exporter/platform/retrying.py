"""What a platform folder offers for retrying: what its call does, how to make it, how to see what became of it.

A platform declares ``Traits``; the engine derives its caution from them, and what is not known takes the most cautious
value. Its ``Adapter`` has two methods. ``look`` only reads, and serves three moments alike: the check right before a
call, the watching after it, the settling of a call whose outcome is unknown. ``send`` makes the one call, once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from exporter.model import DeadLetter, Observation, Result
from exporter.model.retries import Answer, Traits
from exporter.wire.api import Api
from exporter.wire.errors import ApiError

#: What an adapter wants to remember of the moment before the call, to recognise later what is new: JSON.
Mark = Any


class Standing(StrEnum):
    """How a dead letter stands on its platform."""

    DEAD = "dead"  # given up on: a retry may be sent
    BUSY = "busy"  # queued or running, whoever started that
    RESOLVED = "resolved"  # nothing is left to do
    GONE = "gone"  # deleted, or no longer there


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """One execution of the dead letter's work that began after the mark was taken: an effect, ours or another's."""

    id: str  # on the platform: of the log row, the run, the execution, the step's update
    began_at: float | None = None
    ended_at: float | None = None
    result: Result | None = None  # None while it is not finished
    ours: bool | None = None  # True: certainly this retry's; False: certainly another's; None: nobody can tell
    run_id: str | None = None  # of the run it is, where that is another run than the one that failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What the platform says about one dead letter now."""

    at: float  # the platform's clock
    standing: Standing
    native: bool = False  # the platform is going to retry it by itself
    refusal: str | None = None  # why it must not be retried as it is, in words: "the scenario was edited since"
    asks: str | None = None  # why only a person may have it retried: "what came of it could not be told"
    mark: Mark = None  # of this moment
    efforts: Sequence[Effort] = ()  # since the given mark, oldest first; none without one
    observations: Sequence[Observation] = ()  # what was read by the way, for the fold

    def forbids(self, *, yields: bool, asked: bool) -> str | None:
        """Why no retry may be sent now; None if one may.

        ``yields``: to the platform's own retries; ``asked``: a person let it pass.
        """
        if self.standing is not Standing.DEAD:
            return f"it is {self.standing}"
        if self.native and yields:
            return "the platform will retry it"
        return self.refusal if self.asks is None or asked else f"{self.asks}; a person may approve it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One dead letter to look at, and what is known of our retry of it once there is one."""

    letter: DeadLetter
    mark: Mark = None  # taken right before the call
    sent_at: float | None = None  # when the call was made, on the platform's clock
    handle: str | None = None  # what the platform answered to recognise the effect by
    fixed: Mark = None  # of the fix that was verified before it, where there was one: what it mended forbids no retry


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The platform took the call: which dead letters it named, each with what to recognise the effect by, if anything.

    One that was asked for and is not among them is in doubt.
    """

    handles: Mapping[str, str | None]


class Adapter(Protocol):
    """One source's way to retry. Failures are raised as ``exporter.wire.errors.ApiError``."""

    async def look(self, target: Target) -> Look:
        """Read how a dead letter stands and what happened to it since ``target.mark``. Changes nothing."""
        ...

    async def send(self, letters: Sequence[DeadLetter], *, send_by: float) -> Accepted:
        """Have these (of one workflow, at most ``bulk_max``) retried: one request, never repeated by anybody below.

        ``send_by`` (our clock) goes to ``Api.post``, which refuses to write the request after it.
        """
        ...


@dataclass(frozen=True, slots=True)
class Meaning:
    """What an answer with a status means, if it also says one of some words (in lower case) where there are any."""

    status: int
    answer: Answer
    words: tuple[str, ...] = ()
    asks_to_wait: bool = False  # only with a Retry-After


#: What answers that are no acceptance mean; the first that fits. What none names is in doubt.
MEANINGS = (
    Meaning(400, Answer.REJECTED),
    Meaning(401, Answer.DENIED),
    Meaning(403, Answer.DENIED, words=("scope", "licen")),
    Meaning(403, Answer.REJECTED),
    Meaning(404, Answer.REJECTED),
    Meaning(405, Answer.REJECTED),
    Meaning(409, Answer.BUSY),
    Meaning(412, Answer.BUSY),
    Meaning(422, Answer.REJECTED),
    Meaning(423, Answer.BUSY),
    Meaning(429, Answer.BUSY),
    Meaning(503, Answer.BUSY, asks_to_wait=True),
)
#: Statuses by which the whole platform is busy, and not only the workflow.
ALL_BUSY = frozenset({429, 503})


def meaning(error: ApiError, meanings: Sequence[Meaning] = MEANINGS) -> Answer:
    """What an answer to a call means. It was sent: what never left means nothing."""
    said = error.detail.lower()
    for row in meanings:
        named = not row.words or any(word in said for word in row.words)
        if row.status == error.status and named and (not row.asks_to_wait or error.retry_after is not None):
            return row.answer
    return Answer.IN_DOUBT


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrying:
    """The part of a platform's declaration that is about retrying."""

    traits: Traits
    connect: Callable[[Any, Api], Adapter]  # the source's config and its wire
    #: What a dead letter descends from, as far as its own id tells; retries are counted per root.
    root: Callable[[DeadLetter], str] = field(default=lambda letter: letter.id)
    meanings: Sequence[Meaning] = MEANINGS  # its own rows come before the common ones
