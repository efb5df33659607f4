"""Processes that share a PostgreSQL hear each other's commits in their order, and write under a lease or not at all."""

import asyncio
import struct
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

import msgspec
import pytest

from exporter.model import Observation, Queue, Result, Run, State, Unit, Usage, Via
from exporter.model.leases import Replica
from exporter.model.ledger import Batch, Committed, FoldRules, Key
from exporter.store import leases
from exporter.store.journal import LeaseLost, read, under, written
from exporter.store.ledger import Ledger, open_beats, open_engine
from exporter.store.postgres import EVERYTHING, IDLE_SECONDS_MAX
from exporter.store.script import Script, StoreError, StoreUnavailable
from exporter.view.known import World
from tests.postgres import Postgres, postgres
from tests.servers import real

pytestmark = real("postgres")
RULES = {"a": FoldRules(), "b": FoldRules()}
NOW = 1_700_000_000.0
COUNTED = "automation_runs_total"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.fixture
async def url(server: Postgres) -> str:
    return server.make()


class Process:
    """What one process remembers of the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.world = World(list(RULES))
        self.totals: dict[str, float] = {}
        self.heard: list[str] = []

    def follow(self, committed: Committed) -> None:
        self.world.apply(committed)
        for key, value in committed.tallies.items():
            if key[0] == COUNTED:
                self.totals[key[1]] = self.totals.get(key[1], 0.0) + value
        self.heard += sorted(run_id for _, run_id in committed.runs)


@asynccontextmanager
async def process(url: str) -> AsyncIterator[Process]:
    ledger = Ledger(await open_engine(url), RULES)
    try:
        made = Process(ledger)
        loaded = await ledger.load()
        made.world.load(loaded)
        for key, value in loaded.tallies.items():
            if key[0] == COUNTED:
                made.totals[key[1]] = made.totals.get(key[1], 0.0) + value
        ledger.on_commit = made.follow
        yield made
    finally:
        await ledger.close()


@pytest.fixture
async def two(url: str) -> AsyncIterator[tuple[Process, Process]]:
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(process(url)), await stack.enter_async_context(process(url))


def batch(
    source: str,
    *runs: str,
    state: State = State.FINISHED,
    via: Via = Via.POLL,
    stream: str = "",
    cursors: dict[str, int] | None = None,
    more: tuple[Observation, ...] = (),
) -> Batch:
    is_over = state is State.FINISHED
    result, ended_at = (Result.SUCCESS, NOW + 1) if is_over else (None, None)
    observations = [
        Run(workflow_id="w", id=run, state=state, result=result, started_at=NOW, ended_at=ended_at) for run in runs
    ]
    return Batch(
        source=source,
        observations=[*observations, *more],
        via=via,
        now=NOW + 2,
        started_at=NOW - 60,
        stream=stream,
        cursors=cursors or {},
    )


async def test_what_one_commits_the_other_remembers_once_it_asks(two: tuple[Process, Process]) -> None:
    one, other = two
    await one.ledger.ingest(
        batch(
            "a",
            "r1",
            stream="runs",
            cursors={"": 7},
            more=(
                Queue(workflow_id="w", at=NOW, items=3, limit=9),
                Usage(kind="operations", unit=Unit.OPERATIONS, at=NOW, used=1.0),
            ),
        )
    )
    await one.ledger.ingest(batch("a", "open", state=State.RUNNING))
    assert other.totals == {}
    await other.ledger.follow()
    await other.ledger.follow()  # nothing twice
    assert one.totals == other.totals == {"a": 1.0}
    known = other.world.sources["a"]
    assert known.cursor("runs") == 7
    assert known.open_runs.keys() == {"open"}
    assert (known.queues["w"].items, known.usage["operations"].used) == (3, 1.0)
    assert known.first_sweep_at == one.world.sources["a"].first_sweep_at


async def test_whoever_commits_has_heard_everything_before_it(two: tuple[Process, Process]) -> None:
    """Or what is older would overwrite what is newer."""
    one, other = two
    await one.ledger.ingest(batch("a", "r", state=State.RUNNING))
    await other.ledger.ingest(batch("a", "r"))  # ends it, without having asked
    await one.ledger.follow()
    assert one.world.sources["a"].open_runs == other.world.sources["a"].open_runs == {}
    assert other.heard == one.heard == ["r", "r"]


async def test_many_at_once_agree_in_the_end(two: tuple[Process, Process]) -> None:
    async def write(process: Process, name: str) -> None:
        for number in range(40):
            await process.ledger.ingest(batch("ab"[number % 2], f"{name}-{number}", "both-" + str(number % 5)))
            if number % 7 == 0:
                await process.ledger.follow()

    one, other = two
    await asyncio.gather(write(one, "one"), write(other, "other"))
    for process in two:
        await process.ledger.follow()
    assert one.totals == other.totals == {"a": 45.0, "b": 45.0}
    assert one.world.sources["a"].entries == other.world.sources["a"].entries


async def test_a_commit_whose_caller_gave_up_is_heard_from_the_journal(two: tuple[Process, Process]) -> None:
    one, _ = two
    writing = asyncio.create_task(one.ledger.transact("t", _slow_commit()))
    await asyncio.sleep(0.05)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    await one.ledger.follow()
    assert one.totals == {"a": 5.0}


def _slow_commit() -> Script[Committed]:
    yield "SELECT pg_sleep(0.3)", ()
    return Committed(tallies={(COUNTED, "a", "w", ("success",), -1): 5.0})


async def test_who_lost_the_lease_writes_nothing(two: tuple[Process, Process], url: str) -> None:
    one, other = two
    beats = open_beats(url, lambda said: None)
    for name in ("one", "other"):
        await beats.run(leases.beat(Replica(id=name, name=name, sources=frozenset(RULES)), {}))
    first = await one.ledger.transact_about("a", "lease", leases.take("a", "one"))
    assert await other.ledger.transact_about("a", "lease", leases.take("a", "other")) is None
    assert first is not None
    with under("a", first):
        await one.ledger.ingest(batch("a", "r1"))
    await one.ledger.transact_about("a", "lease", leases.give("a", "one"))
    second = await other.ledger.transact_about("a", "lease", leases.take("a", "other"))
    assert second == first + 1
    with under("a", first), pytest.raises(LeaseLost, match="another replica holds a by now"):
        await one.ledger.ingest(batch("a", "r2"))
    with under("a", first), pytest.raises(LeaseLost):
        await one.ledger.transact("save_retry", _slow_commit())
    await one.ledger.ingest(batch("a", "r3", via=Via.WEBHOOK))  # anybody may
    with under("a", second):
        await other.ledger.ingest(batch("a", "r4"))
    await one.ledger.follow()
    assert one.totals == other.totals == {"a": 3.0}
    assert not one.ledger.is_down  # that is no trouble of the store
    await beats.close()


async def test_of_batches_that_share_a_commit_only_those_without_a_lease_fail(two: tuple[Process, Process]) -> None:
    one, _ = two

    async def fenced() -> None:
        with under("a", 99):
            await one.ledger.ingest(batch("a", "fenced"))

    first = asyncio.create_task(one.ledger.ingest(batch("b", "first")))
    rest = [asyncio.create_task(fenced()), asyncio.create_task(one.ledger.ingest(batch("a", "free", via=Via.WEBHOOK)))]
    await first
    lost, taken = await asyncio.gather(*rest, return_exceptions=True)
    assert isinstance(lost, LeaseLost)
    assert not isinstance(taken, BaseException)
    assert one.totals == {"a": 1.0, "b": 1.0}


async def test_what_is_written_about_a_source_by_somebody_else_is_told_at_once(
    two: tuple[Process, Process], url: str
) -> None:
    said: asyncio.Queue[str] = asyncio.Queue()
    beats = open_beats(url, said.put_nowait)
    await beats.run(leases.see())
    await two[0].ledger.ingest(batch("a", "r1", via=Via.WEBHOOK))
    assert await asyncio.wait_for(said.get(), 10) == ""
    await beats.run(leases.say("free"))
    assert await asyncio.wait_for(said.get(), 10) == "free"
    await beats.close()


async def test_a_database_that_goes_away_ends_nothing_that_is_remembered(server: Postgres) -> None:
    url = server.make()
    async with process(url) as one, process(url) as other:
        await one.ledger.ingest(batch("a", "r1"))
        server.stop("immediate")
        with pytest.raises(StoreUnavailable):
            await other.ledger.follow()
        server.start()
        for each in (one, other):
            await each.ledger.probe()
        await other.ledger.ingest(batch("a", "r2"))
        await one.ledger.follow()
        assert one.totals == other.totals == {"a": 2.0}


async def test_each_exports_the_traces_of_what_it_holds(url: str) -> None:
    ledger = Ledger(await open_engine(url), {source: FoldRules(traced=True) for source in RULES})
    await ledger.load()
    for source in RULES:
        await ledger.ingest(batch(source, "r1"))
    for held, expected in ((None, ["a", "b"]), (["a"], ["a"]), (["a", "b"], ["a", "b"]), ([], [])):
        ledger.exports = lambda held=held: held  # type: ignore[misc]
        pending = await ledger.pending_traces(limit=10, settled_before=float("inf"))
        assert sorted(one.source for one in pending) == expected
        assert await ledger.count_pending_traces() == len(expected)
    await ledger.close()


def test_a_commit_is_the_same_when_it_is_read_again_as_far_as_it_is_about_sources_of_ours() -> None:
    """Every field, with something in it for a source of ours and for one that only another's config names."""
    keys: list[Key] = [("a", "x"), ("z", "x")]
    committed = Committed(
        first_sweeps={"a": 1.0, "z": 1.0},
        read_until={"a": 1.0, "z": 2.0},
        tallies={("m", source, "w", ("l",), 0): 1.0 for source in "az"},
        lineage=dict.fromkeys(keys, "root"),
        ended_overrides=["one"],
        full_at={"a": 1.0, "z": 1.0},
        refused=dict.fromkeys(keys),
        escalated=dict.fromkeys(keys, True),
    )
    data = written(committed)
    assert data is not None
    again = read(data, ["", "a"])
    assert again == Committed(
        first_sweeps={"a": 1.0},
        read_until={"a": 1.0},
        tallies={("m", "a", "w", ("l",), 0): 1.0},
        lineage={("a", "x"): "root"},
        ended_overrides=["one"],
        full_at={"a": 1.0},
        refused={("a", "x"): None},
        escalated={("a", "x"): True},
    )
    assert written(Committed()) is None


async def test_what_cannot_be_read_is_never_taken_for_heard(two: tuple[Process, Process], url: str) -> None:
    """Or this process would remember less than the ledger knows, and say nothing."""
    one, _ = two
    engine = await open_engine(url)
    await engine.run(_told(msgspec.msgpack.encode({"tallies": "of another version"})))
    for _ in range(2):
        with pytest.raises(StoreError, match="another version"):
            await one.ledger.follow()
        with pytest.raises(StoreError, match="another version"):
            await one.ledger.ingest(batch("a", "r1"))
    assert one.totals == {}
    await engine.close()
    async with process(url) as later:  # which loads everything
        await later.ledger.ingest(batch("a", "r1"))
        assert later.totals == {"a": 1.0}


def _told(data: bytes) -> Script[None]:
    yield "INSERT INTO journal (source, data) VALUES ('a', $1)", (data,)


@pytest.mark.slow
async def test_who_only_reads_may_take_its_time_between_two_statements(url: str) -> None:
    """As a copy does while what it read before is written: it holds no lock."""

    def reads() -> Script[int]:
        yield "SELECT 1", ()
        assert goes_on.wait(60)
        count: int = (yield "SELECT count(*) FROM sources", ())[0][0]
        return count

    async def read_slowly() -> int:
        engine = await open_engine(url, to_read=True)
        try:
            return await engine.run(reads())
        finally:
            await engine.close()

    goes_on = threading.Event()
    async with process(url):  # its tables are there
        reading = asyncio.create_task(asyncio.to_thread(asyncio.run, read_slowly()))
        beats = open_beats(url, lambda said: None)
        for _ in range(2 * IDLE_SECONDS_MAX):
            await asyncio.sleep(1.0)
            await beats.run(leases.beat(Replica(id="me", name="me", sources=frozenset(RULES)), {}))
        goes_on.set()
        assert await reading == 0
        await beats.close()


async def test_who_falls_silent_in_the_middle_of_a_statement_keeps_nobody_waiting(server: Postgres, url: str) -> None:
    """As a process that is stopped there does: the database waits for the rest of what it says, holding its locks."""

    def message(kind: bytes, body: bytes) -> bytes:
        return kind + struct.pack("!i", len(body) + 4) + body

    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    name = urlsplit(url).path.removeprefix("/")
    settings = f"user\0postgres\0database\0{name}\0application_name\0automation-exporter\0\0".encode()
    writer.write(struct.pack("!ii", len(settings) + 8, 196608) + settings)
    async with process(url) as one:  # its tables are there by now
        writer.write(message(b"Q", f"BEGIN; SELECT pg_advisory_xact_lock({EVERYTHING})\0".encode()))
        writer.write(message(b"P", b"\0SELECT 1\0\0\0") + message(b"H", b""))  # parse it, and wait for the rest
        await writer.drain()
        await asyncio.wait_for(reader.readuntil(b"1\0\0\0\4"), 20)  # parsed: the locks are held
        waiting = asyncio.create_task(one.ledger.ingest(batch("a", "r1")))
        beats = open_beats(url, lambda said: None)
        while not waiting.done():
            await beats.run(leases.beat(Replica(id="me", name="me", sources=frozenset(RULES)), {}))
            await asyncio.sleep(0.5)
        assert (await waiting).news == 1
        await beats.close()
    writer.close()
