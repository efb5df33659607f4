"""Who takes and gives up what: drawn replicas that come, go, freeze and wake, on a database whose clock is the only
one.

Each replica acts on what it saw at its last beat, which may be long ago; the database settles who was first.
"""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.model.leases import UPKEEP, Lease, Replica, Seen, to_give, to_take

TTL, BEAT = 12.0, 3.0
SOURCES = ["etl", "make", "n8n", "qlik", "team"]


@dataclass(slots=True)
class Process:
    """One replica as it is: what it saw last, and what it works for under which epoch."""

    me: Replica
    works: dict[str, int] = field(default_factory=dict)
    frozen: bool = False


@dataclass(slots=True)
class Database:
    """The rows, and the statements of the store over them."""

    now: float = 0.0
    until: dict[str, float] = field(default_factory=dict)
    replicas: dict[str, Replica] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)

    def beat(self, me: Replica) -> Seen:
        self.until[me.id], self.replicas[me.id] = self.now + TTL, me
        alive = {name: one for name, one in self.replicas.items() if self.until[name] > self.now}
        return Seen(now=self.now, replicas=alive, leases=dict(self.leases))

    def take(self, source: str, me: str) -> int | None:
        lease = self.leases.get(source)
        if lease is not None and lease.holder not in ("", me) and self.until.get(lease.holder, 0.0) > self.now:
            return None
        epoch = 1 if lease is None else lease.epoch + 1
        self.leases[source] = Lease(source=source, holder=me, epoch=epoch)
        return epoch

    def give(self, source: str, me: str) -> None:
        lease = self.leases[source]
        if lease.holder == me:
            self.leases[source] = Lease(source=source, holder="", epoch=lease.epoch)

    def writes(self, source: str, epoch: int) -> bool:
        """Whether something written under an epoch is accepted."""
        return self.leases[source].epoch == epoch


def step(database: Database, process: Process) -> int:
    """One beat of a replica; returns how much changed hands."""
    seen, moves = database.beat(process.me), 0
    process.works = {s: e for s, e in process.works.items() if seen.epoch(s, process.me.id) == e}
    much = to_give(seen, process.me.id)
    if much is not None:
        process.works.pop(much, None)
        database.give(much, process.me.id)
        return 1
    while (free := to_take(seen, process.me.id, [UPKEEP, *sorted(process.me.sources)])) is not None:
        epoch = database.take(free, process.me.id)
        if epoch is None:
            break
        process.works[free], moves = epoch, moves + 1
        leases = {**seen.leases, free: Lease(source=free, holder=process.me.id, epoch=epoch)}
        seen = Seen(now=seen.now, replicas=seen.replicas, leases=leases)
    return moves


def replica(name: str, sources: list[str] = SOURCES) -> Process:
    return Process(me=Replica(id=name, name=name, sources=frozenset(sources)))


def settle(database: Database, processes: list[Process], rounds: int = 30) -> int:
    """Let everybody beat in turns until nothing moves; returns how often something moved at the end."""
    moves = 0
    for _ in range(rounds):
        moves = 0
        for process in processes:
            database.now += BEAT / len(processes)
            moves += step(database, process)
    return moves


def loads(database: Database, processes: list[Process]) -> list[int]:
    held = [lease.holder for source, lease in database.leases.items() if source != UPKEEP]
    return sorted(held.count(process.me.id) for process in processes)


@settings(max_examples=300, deadline=None)
@given(
    count=st.integers(1, 5),
    story=st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from(["beat", "freeze", "wake", "wait"]), st.floats(0.0, 40.0)),
        max_size=40,
    ),
)
def test_no_two_write_the_same_source_and_in_the_end_everything_is_held_evenly(
    count: int, story: list[tuple[int, str, float]]
) -> None:
    database, processes = Database(), [replica(f"r{n}") for n in range(count)]
    epochs: dict[str, int] = {}
    for which, what, seconds in story:
        process = processes[which % count]
        match what:
            case "wait":
                database.now += seconds
            case "freeze":
                process.frozen = True
            case "wake":
                process.frozen = False
            case _ if not process.frozen:
                step(database, process)
        for source, lease in database.leases.items():
            assert lease.epoch >= epochs.get(source, 0)
            epochs[source] = lease.epoch
            writers = [p for p in processes if source in p.works and database.writes(source, p.works[source])]
            assert len(writers) <= 1, source
    alive = [process for process in processes if not process.frozen]
    if not alive:
        return
    database.now += TTL
    assert settle(database, alive) == 0  # nothing wanders for ever
    held = loads(database, alive)
    assert sum(held) == len(SOURCES)
    assert database.leases[UPKEEP].holder in {process.me.id for process in alive}
    assert held[-1] - held[0] <= 1
    for process in alive:
        for source, epoch in process.works.items():
            assert database.leases[source] == Lease(source=source, holder=process.me.id, epoch=epoch)


def test_what_only_some_can_work_for_goes_to_them() -> None:
    """During an update replicas have different configs."""
    database = Database()
    old, new = replica("old", ["make"]), replica("new", ["make", "n8n", "qlik"])
    assert settle(database, [old, new]) == 0
    assert database.leases["n8n"].holder == database.leases["qlik"].holder == "new"
    assert {one.holder for one in database.leases.values()} == {"old", "new"}


def test_who_left_is_followed_within_the_lease_and_comes_back_to_an_even_share() -> None:
    database, processes = Database(), [replica("a"), replica("b"), replica("c")]
    settle(database, processes)
    died_at = database.now
    settle(database, processes[1:], rounds=5)
    assert database.now - died_at <= TTL + BEAT
    assert loads(database, processes[1:]) == [2, 3]
    settle(database, processes)
    assert loads(database, processes) == [1, 2, 2]


def test_a_stale_look_takes_nothing_that_is_held() -> None:
    database, slow, quick = Database(), replica("slow"), replica("quick")
    seen = database.beat(slow.me)
    step(database, quick)
    assert to_take(seen, "slow", SOURCES) is not None  # by what it saw it is free
    assert quick.works
    assert all(database.take(source, "slow") is None for source in quick.works)


def test_what_nobody_takes_whose_turn_it_is_is_taken_by_somebody_else() -> None:
    """The one with the least may be alive and unable: then others must not wait for it for ever."""
    database, unable, able = Database(), replica("unable"), replica("able")
    database.beat(unable.me)
    settle(database, [able], rounds=3)
    database.beat(unable.me)
    seen = database.beat(able.me)
    assert to_take(seen, "able", SOURCES) is None
    assert to_take(seen, "able", SOURCES, overdue=SOURCES) is not None
