"""Three replicas on a real PostgreSQL, and everything that can go wrong with one of them: real processes, real signals.

Webhooks go to replicas at random, sweeps and retries run, a real Prometheus scrapes all three. In the end every
acknowledged event is counted once, no dead letter was retried twice, and ``increase()`` says how many there were.
"""

import asyncio
import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from exporter.clock import SystemClock
from exporter.simulator import SIMULATORS
from exporter.simulator.fleet import Fleet
from tests.cli.test_commands import Process, command
from tests.cli.test_retries import say
from tests.postgres import Postgres
from tests.servers import PrometheusServer, eventually, free_port, prometheus, real

pytestmark = [real("postgres"), real("prometheus"), pytest.mark.slow]
SOURCES = ("m1", "m2", "m3", "m4")
#: Who holds a source that is gone is followed within so long (seconds).
FAILOVER_MAX = 30.0
RULES = """
groups:
  - name: replicas
    interval: 1s
    rules:
      - record: replicas:automation_runs_total:max
        expr: max without (instance, pod) (automation_runs_total)
"""


class Line:
    """The way from one replica to the database, which can be cut: nothing gets through, and nobody is told."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._through = asyncio.Event()
        self._through.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    def cut(self) -> None:
        self._through.clear()

    def mend(self) -> None:
        self._through.set()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["Line"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._through.wait()
        try:
            theirs, ours = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            writer.close()
            return
        for one, other in ((reader, ours), (theirs, writer)):
            task = asyncio.create_task(self._pump(one, other))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._through.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


@dataclass(slots=True)
class Replica:
    """One process, always at the same address, and its way to the database."""

    port: int
    line: Line
    folder: Path
    config: Path
    process: Process | None = None
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self.process = await self.stack.enter_async_context(command(self.folder, "run", "--config", str(self.config)))
        await self.process.found(r"msg=running .*port=(\d+)")

    def send_signal(self, number: int) -> None:
        assert self.process is not None
        self.process.process.send_signal(number)

    async def kill(self) -> None:
        assert self.process is not None
        self.send_signal(signal.SIGKILL)
        await self.process.process.wait()


@dataclass(slots=True)
class World:
    """The replicas, who sends them events, and what is true."""

    replicas: list[Replica]
    fleets: dict[str, Fleet]
    server: Postgres
    store: str
    session: aiohttp.ClientSession
    draw: random.Random = field(default_factory=lambda: random.Random(1))
    usable: list[Replica] = field(default_factory=list)
    acknowledged: dict[str, set[str]] = field(default_factory=lambda: {source: set() for source in SOURCES})
    sent: int = 0
    refused: Counter[int] = field(default_factory=Counter)

    async def send(self) -> None:
        """One event to a replica at random; what is refused or lost is sent to others until one takes it."""
        self.sent += 1
        source, run_id, now = self.draw.choice(SOURCES), f"sent{self.sent}", time.time()
        event = {"event": "run.finished", "workflow_id": "w", "run_id": run_id, "result": "success"}
        event |= {"started_at": now - 2, "ended_at": now - 1, "occurred_at": now}  # type: ignore[dict-item]
        for _ in range(60):
            replica = self.draw.choice(self.replicas)
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                async with self.session.post(
                    f"{replica.url}/webhooks/{source}",
                    json=event,
                    headers={"Authorization": "Bearer hook-token"},
                    timeout=aiohttp.ClientTimeout(total=3),
                ) as response:
                    self.refused[response.status] += response.status != 202
                    if response.status == 202:
                        self.acknowledged[source].add(run_id)
                        return
            await asyncio.sleep(0.5)

    async def load(self, *, a_second: float) -> None:
        """Send until cancelled; what was begun is ended."""
        sending: set[asyncio.Task[None]] = set()
        try:
            while True:
                task = asyncio.create_task(self.send())
                sending.add(task)
                task.add_done_callback(sending.discard)
                await asyncio.sleep(1.0 / a_second)
        finally:
            await asyncio.gather(*sending)

    async def status(self, replica: Replica) -> dict[str, Any]:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            timeout = aiohttp.ClientTimeout(total=2)
            async with self.session.get(f"{replica.url}/api/v1/status", timeout=timeout) as response:
                return {one["source"]: one for one in (await response.json())["sources"]}
        return {}

    async def held(self, *replicas: Replica) -> dict[str, str]:
        """Which of these holds each source, as each of them says of itself."""
        found: dict[str, str] = {}
        for replica in replicas:
            for source in await self.leads(replica):
                found[source] = replica.url
        return found

    async def leads(self, replica: Replica) -> list[str]:
        return [s for s, v in await self.samples(replica, "automation_exporter_leader", "source") if v == 1.0]

    async def samples(self, replica: Replica, name: str, label: str) -> list[tuple[str, float]]:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            timeout = aiohttp.ClientTimeout(total=2)
            async with self.session.get(f"{replica.url}/metrics", timeout=timeout) as response:
                lines = [line for line in (await response.text()).splitlines() if line.startswith(name + "{")]
                return [(line.split(f'{label}="')[1].split('"')[0], float(line.rsplit(" ", 1)[1])) for line in lines]
        return []

    async def counted(self, *replicas: Replica) -> dict[str, float]:
        """Runs of the workflow that events are about, by source, over everything these replicas expose."""
        found: dict[str, float] = {}
        for replica in replicas:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                timeout = aiohttp.ClientTimeout(total=2)
                async with self.session.get(f"{replica.url}/metrics", timeout=timeout) as response:
                    for line in (await response.text()).splitlines():
                        if line.startswith("automation_runs_total{") and 'workflow_id="w"' in line:
                            source = line.split('source="')[1].split('"')[0]
                            found[source] = found.get(source, 0.0) + float(line.rsplit(" ", 1)[1])
        return found

    async def in_doubt(self) -> dict[str, float]:
        """Retries of which nobody knows yet whether they were sent, by source."""
        found: dict[str, float] = {}
        for replica in self.replicas:
            async with self.session.get(f"{replica.url}/metrics") as response:
                for line in (await response.text()).splitlines():
                    if line.startswith("automation_retries_open{") and 'state="in_doubt"' in line:
                        source = line.split('source="')[1].split('"')[0]
                        found[source] = found.get(source, 0.0) + float(line.rsplit(" ", 1)[1])
        return found

    def holder(self, held: dict[str, str], source: str = "m1") -> Replica:
        return next(replica for replica in self.replicas if replica.url == held[source])


def written(folder: Path, name: str, port: int, store: str, fleets: dict[str, Fleet]) -> Path:
    config = {
        "server": {"listen": f"127.0.0.1:{port}", "admin_token": "letmein-please"},
        "store": {"url": store},
        "sources": {
            source: {
                **SIMULATORS["make"].section,
                "url": fleet.urls["make"],
                "poll": {"interval": "2s", "budget_share": 1.0},
                "webhook": {"scheme": "bearer", "token": "hook-token"},
            }
            for source, fleet in fleets.items()
        },
        "retries": {
            "mode": "enforce",
            "sources": {source: {"pace": {"rate": "120/1m", "burst": 20}} for source in fleets},
            "policies": [
                {
                    "name": "transient",
                    "match": {"error.class": ["network", "timeout"]},
                    "action": "retry",
                    "gate": {"ramp": [100]},
                    "retry": {"retries": 3, "backoff": {"first": "1s", "factor": 1}, "give_up_after": "30d"},
                }
            ],
        },
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@asynccontextmanager
async def world(tmp_path: Path, server: Postgres, *, replicas: int = 3) -> AsyncIterator[World]:
    url = server.make()
    async with AsyncExitStack() as stack:
        fleets: dict[str, Fleet] = {}
        for source in SOURCES:
            options = {"make": {"api_limit": 60_000, "retry_delay": 0.1}}
            fleets[source] = await stack.enter_async_context(
                Fleet.open(clock=SystemClock(), platforms=["make"], workflows=2, options=options)
            )
        session = await stack.enter_async_context(aiohttp.ClientSession())
        made = World(replicas=[], fleets=fleets, server=server, store=url, session=session)
        for number in range(replicas):
            line = await stack.enter_async_context(Line(server.port).opened())
            port, folder = free_port(), tmp_path / f"r{number}"
            folder.mkdir()
            store = url.replace(f":{server.port}/", f":{line.port}/")
            replica = Replica(
                port=port, line=line, folder=folder, config=written(folder, "config", port, store, fleets)
            )
            await stack.enter_async_context(replica.stack)
            made.replicas.append(replica)
            await replica.start()
        yield made


async def until_held(made: World, *replicas: Replica, even: bool = False) -> float:
    """Wait until these hold everything, and nobody twice; returns after how long (seconds)."""
    began = time.monotonic()

    async def all_held() -> bool:
        leads = [await made.leads(replica) for replica in replicas]
        counts = sorted(map(len, leads))
        held = sorted(source for found in leads for source in found)
        return held == list(SOURCES) and (not even or counts[-1] - counts[0] <= 1)

    await eventually(all_held, every=0.3)
    return time.monotonic() - began


async def break_it(
    made: World, what: str, harm: Callable[[Replica], Awaitable[None]], heal: Callable[[Replica], Awaitable[None]]
) -> dict[str, object]:
    """Do harm to the replica that holds m1, see others follow, heal it, see it take its share again."""
    await until_held(made, *made.replicas, even=True)
    victim = made.holder(await made.held(*made.replicas))
    others = [replica for replica in made.replicas if replica is not victim]
    before = sum(map(len, made.acknowledged.values()))
    await harm(victim)
    failover = await until_held(made, *others)
    assert failover < FAILOVER_MAX, what
    await asyncio.sleep(5)
    await heal(victim)
    back = await until_held(made, *made.replicas, even=True)
    taken = sum(map(len, made.acknowledged.values())) - before
    return {"what": what, "failover s": f"{failover:.1f}", "even again s": f"{back:.1f}", "events meanwhile": taken}


async def test_whatever_happens_to_a_replica_the_totals_are_true_and_nothing_is_retried_twice(
    tmp_path: Path, server: Postgres, record_property: Callable[[str, object], None]
) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULES)
    async with world(tmp_path, server) as made:
        letters: dict[str, list[str]] = {source: [] for source in SOURCES}

        async def fail_now_and_then() -> None:
            while True:
                for source, fleet in made.fleets.items():
                    simulator: Any = fleet.simulators["make"]
                    if not letters[source]:
                        simulator.work = simulator.add_workflow(name="Order sync")
                    letters[source].append(
                        simulator.add_dead_letter(simulator.work, error="ConnectionError", outcomes=("success",))
                    )
                await asyncio.sleep(4)

        targets = [f"127.0.0.1:{replica.port}" for replica in made.replicas]
        async with prometheus(tmp_path, targets, rules=[rules]) as scraping:
            await until_held(made, *made.replicas, even=True)
            await _each_shows_everything(made)
            tasks = [asyncio.create_task(made.load(a_second=15)), asyncio.create_task(fail_now_and_then())]

            async def killed(replica: Replica) -> None:
                await replica.kill()

            async def stopped(replica: Replica) -> None:
                replica.send_signal(signal.SIGSTOP)

            async def goes_on(replica: Replica) -> None:
                replica.send_signal(signal.SIGCONT)

            async def cut(replica: Replica) -> None:
                replica.line.cut()

            async def mended(replica: Replica) -> None:
                replica.line.mend()

            async def restarted(replica: Replica) -> None:
                await replica.start()

            async def told_to_stop(replica: Replica) -> None:
                assert replica.process is not None
                assert await replica.process.stop() == 0

            rows = [
                await break_it(made, "kill -9", killed, restarted),
                await break_it(made, "SIGSTOP past the lease, SIGCONT", stopped, goes_on),
                await break_it(made, "cut from the database", cut, mended),
                await break_it(made, "SIGTERM", told_to_stop, restarted),
            ]
            await _restart_the_database(made, rows)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            truth = {source: float(len(taken)) for source, taken in made.acknowledged.items()}

            async def all_counted() -> bool:
                return await made.counted(*made.replicas) == truth

            await eventually(all_counted)
            doubted = await _retried_once(made, letters)
            mismatches = await _prometheus_agrees(scraping, truth)
            for row in rows:
                record_property("replicas", row)
            retried = sum(map(len, letters.values())) - doubted
            told: dict[str, object] = {"events": sum(map(len, made.acknowledged.values())), "counted twice or not": 0}
            told |= {"dead letters": sum(map(len, letters.values())), "retried once": retried, "twice": 0}
            record_property("replicas, in the end", told | {"in doubt": doubted, "increase() wrong": mismatches})
            assert sum(truth.values()) > 500
            assert not mismatches


async def _each_shows_everything(made: World) -> None:
    """The status of any replica has all sources, who holds each, and how the holder reads it."""
    held = await made.held(*made.replicas)

    async def shown() -> bool:
        for replica in made.replicas:
            status = await made.status(replica)
            holders = {source: f"http://127.0.0.1:{one['holder'].rpartition(':')[2]}" for source, one in status.items()}
            swept = [s["success_at"] is not None for one in status.values() for s in one["streams"]]
            if holders != held or not swept or not all(swept):
                return False
        return True

    await eventually(shown)


async def _restart_the_database(made: World, rows: list[dict[str, object]]) -> None:
    held = await made.held(*made.replicas)
    before = await made.counted(*made.replicas)
    made.server.stop("immediate")
    await asyncio.sleep(8)
    during = await made.counted(*made.replicas)
    assert all(during[source] >= count for source, count in before.items())  # scrapes go on
    for replica in made.replicas:
        assert [v for _, v in await made.samples(replica, "automation_exporter_leader", "source")]
        async with made.session.get(f"{replica.url}/metrics") as response:
            assert "automation_exporter_store_up 0.0" in await response.text()
        async with made.session.post(
            f"{replica.url}/webhooks/m1", json={}, headers={"Authorization": "Bearer hook-token"}
        ) as response:
            assert response.status in (400, 503)
    made.server.start()
    began = time.monotonic()
    taken = sum(map(len, made.acknowledged.values()))

    async def taken_again() -> bool:
        return sum(map(len, made.acknowledged.values())) > taken + 20

    await eventually(taken_again)
    back = time.monotonic() - began
    await until_held(made, *made.replicas)
    rows.append({"what": "PostgreSQL restarted", "failover s": f"{back:.1f}", "events meanwhile": len(held)})


async def _retried_once(made: World, letters: dict[str, list[str]]) -> int:
    """No dead letter was retried twice, and every one of them was, but for those in doubt; returns how many that are.

    A retry whose process was killed before it called is in doubt for a quarter of an hour: it might have.
    """

    async def settled() -> bool:
        doubted = await made.in_doubt()
        for source, fleet in made.fleets.items():
            simulator: Any = fleet.simulators["make"]
            if sum(not simulator.retry_executions[letter] for letter in letters[source]) > doubted.get(source, 0):
                return False
        return True

    try:
        await eventually(settled, seconds=240, every=0.5)
    except TimeoutError:
        _, explained = await say(made.replicas[0].config, "policies", "explain", "--all")
        missing = {
            source: [one for one in letters[source] if not fleet.simulators["make"].retry_executions[one]]  # type: ignore[attr-defined]
            for source, fleet in made.fleets.items()
        }
        raise AssertionError(f"not retried: {missing}; in doubt: {await made.in_doubt()}; {explained}") from None
    for source, fleet in made.fleets.items():
        simulator: Any = fleet.simulators["make"]
        executed = {letter: simulator.retry_executions[letter] for letter in letters[source]}
        assert max(executed.values()) == 1, source
    return int(sum((await made.in_doubt()).values()))


async def _prometheus_agrees(scraping: PrometheusServer, truth: dict[str, float]) -> int:
    """How many sources of which the recording's increase over everything is not the truth, within its extrapolation."""
    wrong = 0
    selector = 'replicas:automation_runs_total:max{workflow_id="w",result="success"}'
    for source, count in truth.items():
        one = selector.replace("{", f'{{source="{source}",')

        async def arrived(one: str = one, count: float = count) -> bool:
            return [value for _, value in await scraping.query(f"sum({one})")] == [count]

        await eventually(arrived)
        resets = [value for _, value in await scraping.query(f"sum(resets({one}[1h]))")]
        [(_, first)] = await scraping.query(f"sum(min_over_time({one}[1h]))")
        [(_, grown)] = await scraping.query(f"sum(increase({one}[1h]))")
        exact = count - first
        wrong += resets != [0.0] or not exact * 0.98 <= grown <= exact * 1.1 + 2
    return wrong
