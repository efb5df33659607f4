"""What can be read from a source: the streams there are, for every platform the same few. Pure.

The rest of the program knows streams by these names only, and asks a name what it stands for. A platform declares those
it has, one at least that is about work; what it has none for is read by another of its streams (``Platform.reads``).
"""

from dataclasses import dataclass
from enum import StrEnum

from exporter.wire.budget import Lane


class StreamName(StrEnum):
    """A kind of data. The values are labels of metrics and keys of cursors: they stay."""

    WORKFLOWS = "workflows"
    """What the customer has defined: ids, names, whether each is switched on and when it runs next."""
    RUNS = "runs"
    """What has run or is running, and how it ended."""
    DEAD_LETTERS = "dead_letters"
    """What the platform gave up on and keeps in a list of its own."""
    QUOTA = "quota"
    """What the account may use and has used: rarely read, and not about any workflow."""

    @property
    def is_work(self) -> bool:
        """Whether work goes unseen while this stream is not read: what alerts on missing data are about."""
        return self is not StreamName.QUOTA


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One stream of a platform, and how it is read."""

    name: StreamName
    lane: Lane
    every: float = 1.0  # sweeps start this many poll intervals apart
    opening: bool = False  # must have been swept once before the others may start
