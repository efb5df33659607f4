"""What the ledger knows, in memory: the first half of a service, and all that a command needs."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from exporter.clock import Clock
from exporter.config import Config
from exporter.model.ledger import Committed, FoldRules
from exporter.model.policy import Rules
from exporter.platform import Platform
from exporter.platform.section import SourceConfig
from exporter.platforms import PLATFORMS
from exporter.retries.book import RetryBook
from exporter.retries.control import Control
from exporter.retries.deciding import Decider
from exporter.retries.operations import Operations
from exporter.retries.repair_operations import RepairOperations
from exporter.retries.repairer import Repairer
from exporter.source import Source
from exporter.store.ledger import Ledger
from exporter.traces.export import is_enabled
from exporter.view.known import SourceWorld, World
from exporter.view.projection import Projection


@dataclass(slots=True, kw_only=True)
class Memory:
    """What is known of the sources, what is retried, and how a person has a say in it."""

    ledger: Ledger
    world: World
    sources: dict[str, Source]
    book: RetryBook
    deciders: dict[str, Decider]
    control: Control
    operations: Operations

    def connect(self, repairers: Mapping[str, Repairer], clock: Clock) -> None:
        """Operations may take other calls than a retry from now on: the sources of these repairers are connected."""
        repairs = RepairOperations(
            self.operations, self.book, self.ledger, clock, sources=self.sources, repairers=repairers
        )
        self.operations.begin_repair, self.operations.repair_objection = repairs.begin, repairs.objection


async def remember(
    ledger: Ledger,
    clock: Clock,
    *,
    names: Iterable[str],
    source: Callable[[str, SourceWorld], Source | None],
    rules: Callable[[], Rules],
    projection: Projection | None = None,
    served: bool = False,
    decides: bool = True,
) -> Memory:
    """Load what the ledger knows, and have it follow the ledger's commits from now on. Raises ``StoreError``.

    ``names`` are the sources wanted; without any, those the ledger knows. ``source`` makes one of them, or None where
    nothing is known about its platform: then it can be named, and no more. Where it is ``served``, retriers decide and
    others see what they decided; ``decides``: those of this process, about all of them, from now on.
    """
    loaded = await ledger.load()
    world = World(list(names) or list(loaded.first_sweeps))
    world.load(loaded)
    made = {name: one for name, known in world.sources.items() if (one := source(name, known)) is not None}
    book = RetryBook(ledger, made, rules(), projection=projection)
    if projection is not None:
        projection.load(world, loaded.tallies)
    ledger.on_commit = _follow(world, book, projection)
    await book.load(clock.now(), decides=decides)
    deciders = {name: Decider(book, one) for name, one in made.items()}
    control = Control(book, made, clock, names=world.sources, deciders=deciders if served else None)
    return Memory(
        ledger=ledger,
        world=world,
        sources=made,
        book=book,
        deciders=deciders,
        control=control,
        operations=Operations(book, control, ledger, clock),
    )


def _follow(world: World, book: RetryBook, projection: Projection | None) -> Callable[[Committed], None]:
    """Who follows the ledger's commits, in this order: what is known, what is retried, what a scrape shows of both."""

    def follow(committed: Committed) -> None:
        touched = world.apply(committed)
        book.apply(committed)
        if projection is not None:
            projection.follow(committed, touched, world)

    return follow


def fold_rules(config: Config) -> dict[str, FoldRules]:
    """What folding needs to know about each source."""
    return {name: _fold_rules(config, section, PLATFORMS[section.platform]) for name, section in config.sources.items()}


def _fold_rules(config: Config, section: SourceConfig, platform: Platform) -> FoldRules:
    return FoldRules(
        backfill=section.backfill_seconds,
        superseded_by_success=platform.superseded_by_success,
        counts_tests=section.test_runs == "count",
        traced=is_enabled(config.traces),
        retention=config.store.retention,
        holds_dead_letters=platform.holds_dead_letters,
        steps_later=platform.steps_later(section),
    )
