"""Flows and their runs as plain numbers, read by the planner: how long after its end a run shows. No network.

The same world is read by round robin with the same requests, so that the two can be compared.
"""

import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from exporter.model import Result, Run, State
from exporter.platforms.etlworks.mapping import Execution
from exporter.platforms.etlworks.planning import Flow, Plan, plan, room
from exporter.platforms.etlworks.reading import FlowReading, FlowState
from exporter.platforms.etlworks.schedule import Schedule, parse_timing

START = 1_700_000_100.0
HOUR = 3600.0
EVERY = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """One flow: its schedule if it has one, and when its runs started and ended."""

    id: str
    schedules: tuple[Schedule, ...]
    runs: tuple[tuple[float, float], ...]
    first_id: int

    def newest(self, at: float) -> Execution | None:
        index = bisect_right(self.runs, (at, float("inf"))) - 1
        if index < 0:
            return None
        started_at, ended_at = self.runs[index]
        over = ended_at <= at
        run = Run(
            workflow_id=self.id,
            id=str(self.first_id + index),
            state=State.FINISHED if over else State.RUNNING,
            result=Result.SUCCESS if over else None,
            started_at=started_at,
            ended_at=ended_at if over else None,
        )
        return Execution(run=run, scheduled=bool(self.schedules), schedule_id="7" if self.schedules else None)


def lives(kind: str, *, flows: int, seed: int, hours: float) -> list[Life]:
    """``scheduled``: by cron lines, every hour to every six; ``even``: as regular, but nothing says so; ``chance``: on
    average as often, at no certain time; ``few``: by chance, a tenth of the flows has nine tenths of the runs.
    """
    rng = random.Random(seed)
    made = []
    for number in range(flows):
        hours_apart, minute, typical = rng.choice((1, 1, 2, 4, 6)), rng.randrange(60), rng.uniform(10, 60)
        schedules: tuple[Schedule, ...] = ()
        starts: list[float] = []
        at = START - 24 * HOUR
        at += -at % HOUR + 60 * minute + HOUR * rng.randrange(hours_apart)
        mean = HOUR * hours_apart
        if kind == "few":
            mean = 1200.0 if number % 10 == 0 else 97_200.0
        while at < START + hours * HOUR:
            starts.append(at)
            at += mean if kind in ("scheduled", "even") else rng.expovariate(1 / mean)
        if kind == "scheduled":
            timing = parse_timing(f"0 {minute} {'*' if hours_apart == 1 else f'0/{hours_apart}'} * * ?")
            assert timing is not None
            schedules = (
                Schedule(id="7", period=timing.period, offset=timing.offset, exact=timing.exact, place=timing.place),
            )
        runs: list[tuple[float, float]] = []
        for start in starts:
            begin = max(start, runs[-1][1]) if runs else start
            runs.append((begin, begin + typical * rng.uniform(0.7, 1.4)))
        made.append(Life(id=str(number + 1), schedules=schedules, runs=tuple(runs), first_id=1 + 10_000 * number))
    return made


@dataclass(slots=True, kw_only=True)
class Seen:
    """What reading the world came to: seconds from the end of each run to the answer that showed it."""

    delays: list[tuple[float, float]] = field(default_factory=list)  # (end, delay)
    missed: int = 0
    requests: int = 0

    def percentile(self, share: float, *, since: float, until: float = float("inf")) -> float:
        found = sorted(delay for ended_at, delay in self.delays if since <= ended_at < until)
        return found[min(len(found) - 1, int(share * len(found)))]


def by_turns(flows: Sequence[Flow], *, room: int) -> Plan:
    """Round robin: open runs are followed, and all else is read in its turn."""
    due = [flow.id for flow in flows if flow.open]
    rest = sorted((flow for flow in flows if not flow.open), key=lambda flow: (flow.state.tried, flow.id))
    return Plan(due=tuple(due), idle=tuple(flow.id for flow in rest[: max(5, room - len(due))]))


def read(world: Sequence[Life], *, hours: float, per_minute: float, turns: bool) -> Seen:
    """Sweep the world for so long, never above the budget."""
    seen, by_id = Seen(), {life.id: life for life in world}
    states = {life.id: FlowState() for life in world}
    open_runs: dict[str, Run] = {}
    ended: dict[str, int] = {}
    now, tokens = START, per_minute / 6
    while now < START + hours * HOUR:
        swept_at = now
        flows = [
            Flow(id=life.id, state=states[life.id], schedules=life.schedules, open=life.id in open_runs)
            for life in world
        ]
        spend = room(per_minute, every=EVERY)
        chosen = by_turns(flows, room=spend) if turns else plan(flows, read_at=START, now=now, every=EVERY, room=spend)
        for flow_id in (*chosen.due, *chosen.idle):
            if tokens < 1:
                now += 60 / per_minute
                tokens += 1
            tokens -= 1
            seen.requests += 1
            life, state = by_id[flow_id], states[flow_id]
            state.tried = now
            reading = FlowReading(state=state, open_runs=(), schedules=life.schedules, schedules_read_at=START, now=now)
            found = life.newest(now)
            if found is None:
                reading.take_nothing()
                continue
            reading.take_newest(found)
            reading.cursor()
            _note(seen, life, found, open_runs, ended, now)
        now = max(now, swept_at) + EVERY
        tokens = min(per_minute, tokens + EVERY * per_minute / 60)
    return seen


def _note(
    seen: Seen, life: Life, found: Execution, open_runs: dict[str, Run], ended: dict[str, int], now: float
) -> None:
    index = found.number - life.first_id
    done = index if found.run.state is State.FINISHED else index - 1
    if found.run.state is State.FINISHED:
        open_runs.pop(life.id, None)
    else:
        open_runs[life.id] = found.run
    last = ended.get(life.id)
    if last is None:  # what ended before the first reading of all is history
        last = bisect_right([end for _, end in life.runs[: done + 1]], START) - 1
    for number in range(last + 1, done + 1):
        ended_at = life.runs[number][1]
        seen.missed += number < done  # an open one is followed by its id; of others only the newest shows
        seen.delays.append((ended_at, now - ended_at))
    ended[life.id] = max(last, done)
