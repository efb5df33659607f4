"""A webhook on its way from the receiver to a platform's mapping, and what comes of it."""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from exporter.model import Observation, times
from exporter.platform.streams import StreamName


class RunKey(Struct, frozen=True, kw_only=True, gc=False):
    """Names a run that something said too little about."""

    run_id: str
    workflow_id: str | None = None


class WebhookRequest(Struct, frozen=True, kw_only=True, gc=False):
    """A verified webhook, as it was sent. Header names are lower-case; the body is decompressed."""

    method: str
    headers: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes
    received_at: float  # on the platform's clock, as far as that is known
    base_url: str  # of the source: other hosts named in an event are ignored
    clock_known: bool = True  # whether ``received_at`` can be relied on
    read_until: float = 0.0  # the newest end a poll has read: the platform's clock cannot be behind that

    @property
    def latest(self) -> float:
        """The latest time to be believed of an event."""
        return times.latest(max(self.received_at, self.read_until) if self.clock_known else None)


class MalformedEvent(Exception):
    """The event cannot be read: one line, never quoting it."""


class WebhookEvents(Struct, frozen=True, kw_only=True, gc=False):
    """What a webhook said: claims, runs to complete, event types nobody knows."""

    observations: Sequence[Observation] = ()
    wake: Sequence[RunKey] = ()
    wake_streams: Sequence[StreamName] = ()  # streams worth a sweep now
    unknown_types: Sequence[str] = ()
    occurred_at: float | None = None  # when the sender says it happened, for the delay
