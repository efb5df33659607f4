"""Several replicas on one database: who is alive, and which of them works for which source.

Each replica beats: a row of its own that says it is alive, by the database's clock. A source is worked for by whoever
holds its lease, a row that changes hands under the lock of the source; whoever has not been alive for a while has lost
what it held, and whatever it still writes is refused (``exporter.store.journal``). Everybody decides for itself alone
what to take and what to give up (``exporter.model.leases``).

All of them remember the whole ledger, because each hears what the others commit: so who takes over goes on at once,
any of them can take a webhook or a command, and any of them can show everything.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from msgspec import DecodeError, Struct, json

from exporter.clock import SharedClock, steady, until_due
from exporter.log import get_logger
from exporter.model.leases import UPKEEP, Lease, Replica, Seen, to_give, to_take
from exporter.platform import RunKey, StreamName
from exporter.store import leases
from exporter.store.journal import KEPT_SECONDS, LeaseLost
from exporter.store.ledger import Ledger
from exporter.store.script import Engine, StoreError

log = get_logger(__name__)

#: Seconds between two beats, and between two looks for what others committed where nobody tells that there is any.
BEAT, LOOK = 3.0, 0.5
#: What is free for so long (seconds) is taken by whoever sees it.
OVERDUE = 3 * BEAT
#: What is said to others when a source is free to be taken.
FREE = "free"
#: So many runs are named in one wish: what is told may be 8,000 bytes. The sweeps find the others.
WISHED_MAX = 40
#: A clock that is so far (seconds) from the database's is worth a word.
CLOCK_OFF = 60.0


class Wish(Struct, frozen=True, kw_only=True):
    """What a webhook asks of whoever reads its source."""

    source: str
    keys: list[RunKey]  # runs to be completed
    streams: list[StreamName]  # to be swept


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a replica does with a source: ``begin`` it under an epoch, ``end`` it and wait until it is over.

    ``tell`` says something of each source that it works for; ``hear`` is given what everybody said; ``wake`` what a
    webhook that another replica took asks for.
    """

    begin: Callable[[str, int], None]
    end: Callable[[str], Awaitable[None]]
    tell: Callable[[], Mapping[str, Any]]
    hear: Callable[[Seen], None]
    wake: Callable[[Wish], None]


class Replicas:
    """This replica among those that share its database."""

    def __init__(
        self,
        me: Replica,
        sources: Iterable[str],
        *,
        beats: Engine,
        ledger: Ledger,
        clock: SharedClock,
        work: Work,
        anew: Callable[[], Awaitable[str | None]],
    ) -> None:
        """``beats`` is an engine that waits for no lock; ``anew`` begins the service anew when too much was
        missed; it returns why not.
        """
        self.me = me
        self.seen = Seen()
        self.held: dict[str, int] = {}  # by source: the epoch
        self.beat_due, self.news_due = asyncio.Event(), asyncio.Event()
        self._sources = [UPKEEP, *sources]
        self._beats = beats
        self._ledger = ledger
        self._clock = clock
        self._work = work
        self._anew = anew
        self._alive_until = 0.0  # on our steady clock
        self._followed_at = steady(clock)
        self._clock_is_off = False
        self._saying: set[asyncio.Task[None]] = set()
        self._free_since: dict[str, float] = {}  # on our steady clock

    def heard(self, said: str) -> None:
        """Somebody said something on the channel of the journal."""
        if said == FREE:
            self.beat_due.set()
        elif said:
            with suppress(DecodeError):  # of another version
                self._work.wake(json.decode(said, type=Wish))
        else:
            self.news_due.set()

    def pass_on(self, source: str, keys: list[RunKey], streams: list[StreamName]) -> None:
        """Tell whoever reads a source what a webhook asks for. Nobody may hear it: the sweeps come to it as well."""
        wish = json.encode(Wish(source=source, keys=keys[:WISHED_MAX], streams=streams)).decode()
        saying = asyncio.create_task(self._say(wish))
        self._saying.add(saying)
        saying.add_done_callback(self._saying.discard)

    async def _say(self, what: str) -> None:
        with suppress(StoreError):
            await self._beats.run(leases.say(what))

    async def come(self) -> None:
        """Be there from now on, and take what is free. Raises ``StoreError``."""
        await self._beats.run(leases.come(self.me))
        await self.beat_once()

    async def beat_once(self) -> None:
        """Be alive for another while; end what was lost, give up what is too much, take what is free.

        Raises ``StoreError`` where the database cannot be asked: then what is held is let go once others may hold it.
        """
        began = steady(self._clock)
        try:
            self.seen = await self._beats.run(leases.beat(self.me, self._work.tell()))
        except StoreError:
            if began >= self._alive_until:
                for source in list(self.held):
                    await self._end(source)
            raise
        self._alive_until = began + leases.TTL
        self._agree(self.seen.now)
        for source, epoch in list(self.held.items()):
            if self.seen.epoch(source, self.me.id) != epoch:
                await self._end(source)
        if (much := to_give(self.seen, self.me.id)) is not None:
            await self._end(much)
            await self._ledger.transact_about(much, "lease", leases.give(much, self.me.id))
            await self._beats.run(leases.say(FREE))
            self._work.hear(self.seen)
            return
        for source in self._left_behind():
            await self._take(source)
        overdue = self._overdue(began)
        while (free := to_take(self.seen, self.me.id, self._sources, overdue=overdue)) is not None:
            if not await self._take(free):
                break
        self._work.hear(self.seen)

    def _left_behind(self) -> list[str]:
        """What is ours by its row, and not worked for: we were not alive for a while, and nobody took it."""
        return [source for source in self._sources if source in self.seen.held_by(self.me.id) - self.held.keys()]

    def _overdue(self, now: float) -> set[str]:
        """What nobody has held for some beats."""
        free = {source for source in self._sources if self.seen.holder(source) is None}
        self._free_since = {source: self._free_since.get(source, now) for source in free}
        return {source for source, since in self._free_since.items() if now - since > OVERDUE}

    async def _take(self, source: str) -> bool:
        epoch = await self._ledger.transact_about(source, "lease", leases.take(source, self.me.id))
        if epoch is None:
            return False
        lease = Lease(source=source, holder=self.me.id, epoch=epoch)
        self.seen = Seen(
            now=self.seen.now,
            replicas=self.seen.replicas,
            leases={**self.seen.leases, source: lease},
            told=self.seen.told,
        )
        self.held[source] = epoch
        self._work.begin(source, epoch)
        return True

    async def _end(self, source: str) -> None:
        del self.held[source]
        await self._work.end(source)

    def _agree(self, theirs: float) -> None:
        self._clock.agree(theirs)
        is_off = abs(self._clock.ahead) > CLOCK_OFF / (2 if self._clock_is_off else 1)
        if is_off and not self._clock_is_off:
            log.warning(
                "our clock and the database's differ: the database's counts; set the wrong one right",
                ahead_seconds=round(self._clock.ahead),
            )
        self._clock_is_off = is_off

    async def follow_once(self) -> None:
        """Hear what others have committed. Raises ``StoreError``."""
        await self._ledger.follow()
        now = steady(self._clock)
        missed, self._followed_at = now - self._followed_at, now
        if missed > KEPT_SECONDS / 2:
            log.warning("was away for too long to hear what others did: beginning anew", seconds=round(missed))
            if (problem := await self._anew()) is not None:
                raise RuntimeError(f"cannot begin anew: {problem}")

    async def leave(self) -> None:
        """End everything, and let others take it at once."""
        await asyncio.gather(*map(self._end, list(self.held)))  # together: each may wait for a call that is under way
        with suppress(StoreError):
            await self._beats.run(leases.leave(self.me.id))
            await self._beats.run(leases.say(FREE))

    # The loops around it

    async def run_beats(self) -> None:
        """Beat until cancelled."""
        while True:
            try:
                await self.beat_once()
            except StoreError:  # said by the ledger
                pass
            except Exception as bug:  # a row of another version, say: costs this beat, never the service
                log.error("a beat broke", error=bug)
            await until_due(self.beat_due, self._clock, BEAT)

    async def run_news(self) -> None:
        """Follow until cancelled."""
        while True:
            with suppress(StoreError, LeaseLost):  # said by the ledger
                await self.follow_once()
            await until_due(self.news_due, self._clock, LOOK)
