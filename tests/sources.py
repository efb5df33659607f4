"""Sources for tests of one loop alone: connected to whatever the test hands in, not to a platform."""

from typing import Any, cast

from exporter.clock import Clock
from exporter.platform import Platform
from exporter.platform.section import SourceConfig
from exporter.source import Source
from exporter.view.known import SourceWorld
from exporter.view.own import OwnMetrics, SourceMetrics
from exporter.wire.api import Api


class SameTime:
    """In the place of a wire: a platform whose clock shows what ours does."""

    answered = True

    def __init__(self, clock: Clock) -> None:
        self.platform_now = clock.now

    def clock_offset(self) -> float:
        return 0.0


def connected(
    name: str,
    platform: Platform,
    known: SourceWorld,
    clock: Clock,
    *,
    api: Any = None,
    client: Any = None,
    adapter: Any = None,
    own: OwnMetrics | None = None,
) -> Source:
    """A source that reads by ``client`` and retries by ``adapter``."""
    section = SourceConfig(platform=platform.name, url="https://platform.example")
    source = Source(name, platform, known, section=section)
    source.connect(
        api=cast(Api, api or SameTime(clock)),
        client=client,
        adapter=adapter,
        clock=clock,
        metrics=SourceMetrics(own or OwnMetrics(), platform.name, name),
    )
    return source
