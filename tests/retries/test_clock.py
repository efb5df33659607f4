"""Our clock was a week ahead for a while and is right again: what was to wait an hour does not wait a week."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from exporter.model import Result
from exporter.model.policy import Pace, Rules, SourceRules
from exporter.model.retries import Mode, Outcome, OverrideAction, RetryState, Scope, Traits
from tests.retries.made import DAY, HOUR, NOW, policy, rules
from tests.retries.world import SOURCE, Engine

RESUME = Traits(effect="resume", handle="same_id", serial=False, bulk_max=5)
PROVEN = Traits(effect="resume", handle="same_id", serial=False, absence=900.0)
ROOMY = {SOURCE: SourceRules(pace=Pace(rate=1.0, burst=50, in_flight=50))}
WEEK = 7 * DAY
LONG: dict[str, Any] = {"give_up_after": 90 * DAY, "deadline": 2 * HOUR}

pytestmark = pytest.mark.parametrize("restarted", [False, True])


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    made: list[Engine] = []

    async def make(by: Rules | None = None, traits: Traits = RESUME, letters: int = 1) -> Engine:
        """With dead letters from the time when the clock was right; now it is a week ahead."""
        engine = Engine(tmp_path, by or rules(policy(**LONG), sources=ROOMY), traits)
        made.append(engine)
        await engine.start()
        await engine.sweep()
        for number in range(letters):
            engine.platform.add(f"w{number}")
        await engine.sweep()
        await engine.clock.advance(WEEK)
        return engine

    yield make
    for engine in made:
        await engine.stop()


async def right_again(engine: Engine, restarted: bool) -> None:
    await engine.clock.advance(NOW + HOUR - engine.clock.now())
    for item in engine.platform.items.values():  # the platform's clock was right all the time
        for execution in item.executions:
            execution.began_at -= max(0.0, execution.began_at - engine.clock.now())
            execution.ended_at = execution.began_at + 20.0
    if restarted:
        await engine.restart()


async def test_the_pace(make: Callable[..., Any], restarted: bool) -> None:
    slow = {SOURCE: SourceRules(pace=Pace(rate=1 / 60, burst=3, in_flight=50))}
    engine: Engine = await make(rules(policy(**LONG), sources=slow), letters=12)
    await engine.live(30)
    assert len(engine.platform.calls) == 3
    await right_again(engine, restarted)
    since = engine.clock.now()
    while len(engine.platform.calls) < 12 and engine.clock.now() < since + HOUR:
        await engine.live(30)
        if restarted:
            await engine.restart()
    took = engine.clock.now() - since
    assert 9 * 60 <= took <= (9 + 3) * 60, "neither faster than the pace nor much later"


async def test_looks_and_deadlines(make: Callable[..., Any], restarted: bool) -> None:
    engine: Engine = await make()
    engine.platform.fates = ["lost"]
    await engine.live(60)
    assert engine.retries()[0].state is RetryState.ACCEPTED
    await right_again(engine, restarted)
    await engine.live(3 * HOUR)
    assert engine.retries()[0].outcome is Outcome.EXPIRED


@pytest.mark.parametrize("word", [False, True])
async def test_the_horizon_of_a_doubt(make: Callable[..., Any], word: bool, restarted: bool) -> None:
    """Neither a proof by absence nor a person's word waits longer, nor shorter, than an effect may take."""
    engine: Engine = await make(traits=RESUME if word else PROVEN)
    engine.platform.fates = ["cut before"]
    while not engine.book.open_of(SOURCE):
        await engine.live(30)
    await right_again(engine, restarted)
    if word:
        await engine.turn()
        said = await engine.release((SOURCE, "d1"), sent=False)
        assert said["settles"] <= engine.clock.now() + 1000
    since = engine.clock.now()
    while engine.retries()[0].outcome is None:
        await engine.live(30)
        assert engine.clock.now() < since + 2 * HOUR
    assert engine.retries()[0].outcome is Outcome.NOT_SENT
    assert engine.clock.now() >= since + 840


async def test_a_backoff(make: Callable[..., Any], restarted: bool) -> None:
    engine: Engine = await make()
    await engine.live(90)
    assert [retry.outcome for retry in engine.retries()] == [Outcome.FAILED]
    await right_again(engine, restarted)
    await engine.live(2 * HOUR)
    assert len(engine.platform.calls) == 2


async def test_a_preflight_that_refused(make: Callable[..., Any], restarted: bool) -> None:
    engine: Engine = await make()
    engine.platform.execute("d1", "person")
    await engine.turn()
    assert engine.platform.calls == []
    assert engine.book.decisions[SOURCE, "d1"].reason == "preflight"
    await right_again(engine, restarted)
    await engine.live(HOUR)
    assert len(engine.platform.calls) >= 1


@pytest.mark.parametrize("action", [OverrideAction.PAUSE, OverrideAction.HOLD, OverrideAction.LOWER])
async def test_what_was_said_for_an_hour(make: Callable[..., Any], action: OverrideAction, restarted: bool) -> None:
    engine: Engine = await make()
    if action is OverrideAction.PAUSE:
        await engine.control.pause(None, seconds=HOUR, who="ann")
    elif action is OverrideAction.HOLD:
        await engine.hold((SOURCE, "d1"), seconds=HOUR)
    else:
        until = engine.clock.now() + HOUR
        word = engine.control.word(action, scope=Scope.SOURCE, source=SOURCE, until=until, who="ann")
        await engine.book.put([word], now=engine.clock.now())
    await right_again(engine, restarted)
    await engine.live(HOUR - 60)
    assert engine.platform.calls == []
    await engine.live(120)
    assert len(engine.platform.calls) == 1
    assert engine.book.rules.mode_of(SOURCE, engine.book.overrides.holding(engine.clock.now())) is Mode.ENFORCE


async def test_what_an_approval_of_a_group_ends(make: Callable[..., Any], restarted: bool) -> None:
    """A failure of that week ends approvals from before it, not those that come after."""
    asks = rules(policy(approve="first_of_group", group_by=("error.class",), **LONG), sources=ROOMY)
    engine: Engine = await make(asks, letters=3)
    await engine.sweep()
    await engine.turn()
    await engine.approve([(SOURCE, "d1")])
    await engine.live(90)
    assert [retry.outcome for retry in engine.retries()] == [Outcome.FAILED]
    await right_again(engine, restarted)
    engine.platform.results = [Result.SUCCESS, Result.SUCCESS]
    await engine.turn()
    await engine.approve([(SOURCE, "d2")])
    await engine.live(300)
    assert {name for _, name, _ in engine.platform.calls} == {"d1", "d2", "d3"}
