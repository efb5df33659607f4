"""What people are shown is what the retrier decided: one answer, before and after a restart."""

from dataclasses import replace
from typing import Any

import pytest

from exporter.model import Result
from exporter.model.policy import Pace, SourceRules
from exporter.model.retries import Mode, Reason, Verb
from exporter.model.windows import parse_window
from tests.retries.conftest import EngineOf
from tests.retries.made import DAY, EACH, HOUR, quick
from tests.retries.world import SOURCE, Outage

CLOSED = parse_window("UTC", ["sun 03:00-04:00"], [])


@pytest.mark.parametrize("restarted", [False, True])
async def test_what_a_look_refused_is_shown_with_its_time_and_lasts(engine_of: EngineOf, restarted: bool) -> None:
    engine = await engine_of(quick())
    engine.platform.well = Result.SUCCESS
    engine.platform.add("w1", age=HOUR).refusal = "the scenario was edited since"
    await engine.sweep()
    await engine.rest()
    await engine.clock.advance(10)
    await engine.rest()
    before, looks = engine.book.decisions[SOURCE, "d1"], len(engine.platform.looks)
    assert before.reason is Reason.PREFLIGHT
    assert before.detail == "the scenario was edited since"
    assert before.next_at is not None
    if restarted:
        await engine.restart()
    (found,) = engine.control.everything(SOURCE)
    assert found.ladder.decision == before
    await engine.rest()
    assert engine.book.decisions[SOURCE, "d1"] == before
    assert len(engine.platform.looks) == looks, "it is not read again before its time"
    await engine.clock.advance(before.next_at - engine.clock.now() + 1)
    engine.platform.items["d1"].refusal = None
    await engine.until(lambda: engine.recovered() == {"d1"}, within=120)


TROUBLES = ["429 in 300", "429", "409", "revoked", "400", "403", "cut before", "odd", "look 500", "busy", "refusal",
            "pace", "in flight", "fails", "window", "approval", "paused", "held"]  # fmt: skip


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_explain_and_the_retrier_agree(engine_of: EngineOf, trouble: str) -> None:
    of: dict[str, dict[str, Any]] = {"window": {"window": CLOSED}, "approval": {"approve": "each"}}
    changes = of.get(trouble, {})
    rules = quick(retries=2, pace=Pace(rate=1 / 60, burst=2, in_flight=1 if trouble == "in flight" else 9), **changes)
    engine = await engine_of(rules)
    engine.platform.well = Result.FAILURE if trouble == "fails" else Result.SUCCESS
    for number in range(6):
        engine.platform.add(f"w{number // 2}", age=HOUR)
    await engine.sweep()
    since, first = engine.clock.now(), engine.platform.items["d1"]
    if trouble == "odd":
        engine.platform.odd["d1"] = TypeError("'NoneType' object is not subscriptable")
    elif trouble == "look 500":
        engine.platform.outages = [Outage(since=since, until=since + DAY, looks="500")]
    elif trouble == "busy":
        engine.platform.results = [Result.FAILURE]
        engine.platform.execute("d1", "native")
    elif trouble == "refusal":
        first.refusal = "the scenario was edited since"
    elif trouble == "paused":
        await engine.control.pause(SOURCE, seconds=HOUR, who="ann")
    elif trouble == "held":
        await engine.hold((SOURCE, "d1"), seconds=None)
    elif trouble not in ("pace", "in flight", "fails", "window", "approval"):
        engine.platform.fates = [trouble]  # type: ignore[list-item]
    for number in range(12):
        await engine.rest()
        assert engine.shown() == engine.decided(), f"after {engine.clock.now() - since:.0f} s"
        if number % 4 == 3:
            before = engine.shown()
            await engine.restart()
            assert engine.shown() == before, f"after a restart, {engine.clock.now() - since:.0f} s on"
        await engine.live(60, step=60)


@pytest.mark.parametrize("approve", ["none", "first_of_group", "each"])
@pytest.mark.parametrize("lowest", ["engine", "source", "policy", "credential", "nothing"])
async def test_whatever_waits_for_approval_says_so_and_can_be_approved(
    engine_of: EngineOf, lowest: str, approve: str
) -> None:
    rules = quick(approve=approve, mode=Mode.APPROVE if lowest == "engine" else Mode.ENFORCE)
    if lowest == "source":
        rules = replace(rules, sources={SOURCE: SourceRules(mode=Mode.APPROVE, pace=rules.source(SOURCE).pace)})
    if lowest == "policy":
        rules = replace(rules, policies=(replace(rules.policies[0], mode=Mode.APPROVE),))
    engine = await engine_of(rules, EACH)
    engine.platform.well = Result.SUCCESS
    if lowest == "credential":
        engine.platform.add("first", age=HOUR)
        engine.platform.fates = ["revoked"]
        await engine.sweep()
        await engine.turn()
        if approve != "none":
            await engine.approve([(SOURCE, "d1")])
        await engine.live(60)
        assert engine.platform.revoked
    waiting = [engine.platform.add(f"w{n}").id for n in range(3)]  # not due before a minute has passed
    await engine.live(30)
    if (lowest, approve) == ("nothing", "none"):
        assert not any(decision.awaits_approval for decision in engine.book.decisions.values())
        return
    for name in waiting:
        decision = engine.book.decisions[SOURCE, name]
        assert (decision.verb, decision.reason, decision.awaits_approval) == (Verb.WAIT, Reason.MODE, True)
    assert set(waiting) <= {letter_id for _, letter_id in engine.control.awaiting("p")}
    await engine.restart()
    assert set(waiting) <= {letter_id for _, letter_id in engine.control.awaiting("p")}
    await engine.approve([(SOURCE, name) for name in waiting])
    engine.platform.revoked = False
    await engine.until(lambda: set(waiting) <= engine.recovered(), within=3 * HOUR, step=60)
