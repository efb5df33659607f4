"""Storms of dead letters, ours beside what people do without; and what thousands of open ones cost. Printed."""

import time

import pytest

from exporter.model.policy import Rules
from tests.retries.cost import FIVE, Cost, explained, idle, many, measured
from tests.retries.storms import RULES, STORMS, Storm, Told, by_backoff, by_cron, by_engine

pytestmark = pytest.mark.bench

HEADS = ("", "calls", "wasted", "recovered", "last (h)", "given up")


def line(who: str, told: Told) -> str:
    last = "-" if told.last_hours is None else f"{told.last_hours:.1f}"
    shares = f"{told.recovered}/{told.recoverable}"
    return f"  {who:8} {told.calls:6} {told.wasted:6} {shares:>10} {last:>9} {told.exhausted:9}"


@pytest.mark.parametrize("storm", STORMS, ids=lambda storm: storm.name)
async def test_two_days_of_a_storm(storm: Storm) -> None:
    await show(storm, RULES)


async def show(storm: Storm, rules: Rules) -> None:
    print(f"\n{storm.name}: {storm.title}, {storm.letters} dead letters")
    print("  {:8} {:>6} {:>6} {:>10} {:>9} {:>9}".format(*HEADS))
    print(line("cron", by_cron(storm)))
    print(line("backoff", by_backoff(storm)))
    began = time.perf_counter()
    told = await by_engine(storm, rules=rules)
    seconds = time.perf_counter() - began
    waits = ", ".join(f"{number} {why}" for why, number in told.waits.most_common())
    print(f"{line('ours', told)}   {told.turns} turns, {told.cpu_seconds:.0f} s CPU, {seconds:.0f} s   {waits}")


LETTERS = 10_000


async def test_what_ten_thousand_open_ones_cost() -> None:
    print(f"\n{LETTERS} open dead letters, {len(FIVE.policies)} policies")

    def show_cost(what: str, cost: Cost) -> None:
        print(f"  {what:42} {cost}")

    async with many(LETTERS) as made:
        show_cost("the first turn", await measured(made.retrier.turn_once()))
        await idle(made, 1)
        turns = [await measured(idle(made, 1)) for _ in range(3)]
        show_cost("a turn in which nothing changed", max(turns, key=lambda cost: cost.cpu))
        show_cost("explaining one", await measured(explained(made, "d7")))
        keys = made.control.awaiting("owner")[:1000]
        show_cost("approving 1,000", await measured(made.approve(keys)))
        show_cost("the turn after that", await measured(idle(made, 1)))
    async with many(100) as made:
        await idle(made, 2)
        show_cost("of 100: a turn in which nothing changed", await measured(idle(made, 1)))
        show_cost("of 100: explaining one", await measured(explained(made, "d7")))
