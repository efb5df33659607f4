"""One letter, one workflow, one held call never stops its source: the named regressions of being alive."""

import logging
from collections import Counter
from dataclasses import replace

import pytest

from exporter.model import Error, ErrorClass, Result
from exporter.model.matchers import Matcher, read
from exporter.model.policy import Pace
from exporter.model.retries import Action, Reason, RetryState, Traits, Verb
from tests.retries.conftest import EngineOf
from tests.retries.made import DAY, EACH, HOUR, NOW, SERIAL, policy, quick
from tests.retries.world import SETBACK_MAX, SOURCE, Engine, Outage, answer, bound

X = sum(bound(quick(), 20).values())
FOR_A_PERSON = replace(EACH, absence=None)
ODD: list[Exception] = [
    TypeError("'NoneType' object is not subscriptable"),
    KeyError("status"),
    RecursionError("maximum recursion depth exceeded"),
]


def calls_of(engine: Engine) -> Counter[str]:
    return Counter(name for _, name, _ in engine.platform.met)


# Neighbours of a doubt


@pytest.mark.parametrize("group_by", [("source", "workflow.id", "error.class"), ("error.class",)])
async def test_where_effects_show_per_letter_a_doubt_holds_its_own_only(
    engine_of: EngineOf, group_by: tuple[str, ...]
) -> None:
    engine = await engine_of(quick(group_by=group_by), FOR_A_PERSON)
    engine.platform.well = Result.SUCCESS
    names = {engine.platform.add("w1" if n % 2 else "w2", age=HOUR).id for n in range(20)}
    engine.platform.fates_of["d1"] = ["cut before"]
    await engine.until(lambda: engine.recovered() == names - {"d1"}, within=X, step=60)
    await engine.live(HOUR, step=60)
    assert calls_of(engine)["d1"] == 1
    (held,) = engine.book.open_of(SOURCE)
    assert (held.dead_letter_id, held.state) == ("d1", RetryState.HELD)
    assert engine.book.decisions[SOURCE, "d1"].reason is Reason.HELD


@pytest.mark.parametrize("group_by", [("source", "workflow.id", "error.class"), ("error.class",)])
async def test_where_they_show_per_workflow_a_doubt_holds_its_workflow_only(
    engine_of: EngineOf, group_by: tuple[str, ...]
) -> None:
    engine = await engine_of(quick(group_by=group_by), SERIAL)
    engine.platform.well = Result.SUCCESS
    held = {engine.platform.add("w1", age=HOUR).id for _ in range(3)}
    others = {engine.platform.add(f"w{n}", age=HOUR).id for n in (2, 3, 3, 4)}
    engine.platform.fates_of["d1"] = ["cut before"]
    await engine.until(lambda: engine.recovered() == others, within=X, step=60)
    await engine.live(HOUR, step=60)
    assert {name for _, name, _ in engine.platform.met} & held == {"d1"}
    await engine.release((SOURCE, "d1"), sent=False)
    await engine.until(lambda: engine.recovered() == others | held, within=X, step=60)


async def test_a_doubt_in_an_ordered_workflow_holds_what_comes_after_it(engine_of: EngineOf) -> None:
    engine = await engine_of(quick(), FOR_A_PERSON)
    engine.platform.well = Result.SUCCESS
    for workflow in ("ordered", "ordered", "w2"):
        engine.platform.add(workflow, age=HOUR)
    engine.platform.fates_of["d1"] = ["cut before"]
    await engine.live(2 * HOUR, step=60)
    assert calls_of(engine) == {"d1": 1, "d3": 1}


# A look that breaks


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: type(odd).__name__)
async def test_an_exception_in_a_look_costs_its_own_letters_turn(
    engine_of: EngineOf, odd: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    engine = await engine_of(quick())
    engine.platform.well = Result.SUCCESS
    names = [engine.platform.add(f"w{n}", age=HOUR).id for n in range(4)]
    engine.platform.odd["d2"] = odd
    await engine.sweep()
    caplog.set_level(logging.WARNING)
    await engine.turn()
    assert calls_of(engine) == {"d1": 1, "d3": 1, "d4": 1}, "in the very turn"
    await engine.live(6 * HOUR, step=60)
    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 1, "once, not at each turn"
    times = [at for at, name in engine.platform.looks if name == "d2"]
    assert 4 <= len(times) <= 60
    assert times[-1] - times[-2] > times[1] - times[0], "ever more rarely"
    await engine.rest()
    assert engine.book.decisions[SOURCE, "d2"].reason is Reason.PREFLIGHT
    del engine.platform.odd["d2"]
    await engine.until(lambda: engine.recovered() == set(names), within=X, step=60)


async def test_an_exception_while_a_retry_is_watched_stops_no_other(engine_of: EngineOf) -> None:
    engine = await engine_of(quick())
    engine.platform.well = Result.SUCCESS
    engine.platform.add("w1", age=HOUR)
    await engine.live(10, step=10)
    engine.platform.odd["d1"] = ODD[0]
    other = engine.platform.add("w2", age=HOUR).id
    await engine.live(HOUR, step=60)
    assert engine.recovered() == {"d1", other}
    assert [retry.outcome for retry in engine.retries()] == [None, "succeeded"]
    del engine.platform.odd["d1"]
    await engine.until(lambda: engine.retries()[0].outcome == "succeeded", within=2 * SETBACK_MAX, step=60)


async def test_an_exception_while_a_detail_is_fetched_stops_no_other(engine_of: EngineOf) -> None:
    engine = await engine_of(quick(matcher=Matcher(match=read({"error.message": {"contains": "ETIMEDOUT"}}, "match"))))
    engine.platform.well = Result.SUCCESS
    engine.platform.add("w1", age=HOUR, error=Error(error_class=ErrorClass.NETWORK))
    engine.platform.add("w2", age=HOUR)
    engine.platform.odd["d1"] = ODD[0]
    await engine.live(10, step=10)
    assert calls_of(engine) == {"d2": 1}
    assert engine.book.decisions[SOURCE, "d1"].reason is Reason.UNDETERMINED


async def test_a_detail_that_could_not_be_fetched_is_fetched_later(engine_of: EngineOf) -> None:
    """Or nobody would ever know which policy owns that dead letter."""
    engine = await engine_of(quick(matcher=Matcher(match=read({"error.message": {"contains": "ETIMEDOUT"}}, "match"))))
    engine.platform.well = Result.SUCCESS
    item = engine.platform.add("w1", age=HOUR)
    item.bare = Error(error_class=ErrorClass.NETWORK)
    engine.platform.odd["d1"] = ODD[0]
    await engine.live(60, step=10)
    assert engine.book.decisions[SOURCE, "d1"].reason is Reason.UNDETERMINED
    looks = len(engine.platform.looks)
    assert looks < 4, "not again and again"
    del engine.platform.odd["d1"]
    await engine.until(lambda: engine.recovered() == {"d1"}, within=HOUR, step=60)


# Turns


@pytest.mark.parametrize("restarted", [False, True])
async def test_every_group_gets_its_turn(engine_of: EngineOf, restarted: bool) -> None:
    engine = await engine_of(quick(pace=Pace(rate=6 / 300, burst=3, in_flight=25)))
    engine.platform.well = Result.SUCCESS
    for number in range(36):
        engine.platform.add(f"w{number % 6}", age=HOUR)
    while len(engine.platform.met) < 18:
        await engine.live(60, step=60)
        if restarted:
            await engine.restart()
    served = Counter(engine.platform.items[name].workflow_id for _, name, _ in engine.platform.met)
    assert len(served) == 6, served
    assert max(served.values()) - min(served.values()) <= 2, served


async def test_a_small_group_does_not_wait_for_a_large_one(engine_of: EngineOf) -> None:
    engine = await engine_of(quick(pace=Pace(rate=6 / 300, burst=3, in_flight=25)))
    engine.platform.well = Result.SUCCESS
    for _ in range(20):
        engine.platform.add("a-large", age=2 * HOUR)
    small = {engine.platform.add(f"small{n // 2}", age=HOUR).id for n in range(8)}
    await engine.until(lambda: len(engine.platform.met) >= 16, within=HOUR, step=60)
    assert small <= {name for _, name, _ in engine.platform.met}, "8 of 16 calls"


# Policies and traits side by side


async def test_what_is_stuck_under_one_policy_stops_no_other(engine_of: EngineOf) -> None:
    """Held, exhausted, escalated, waiting for a person, refused by the look: each its own."""
    named = {
        name: Matcher(match=read({"workflow.id": {"prefix": name}}, "match"))
        for name in ("asks", "holds", "escalates", "plain")
    }
    engine = await engine_of(
        quick(
            policy(name="asks", matcher=named["asks"], approve="each"),
            policy(name="holds", matcher=named["holds"], action=Action.HOLD),
            policy(name="escalates", matcher=named["escalates"], action=Action.ESCALATE),
            policy(name="plain", matcher=named["plain"], retries=2),
        ),
        FOR_A_PERSON,
    )
    engine.platform.well = Result.SUCCESS
    for workflow in ("asks", "holds", "escalates"):
        engine.platform.add(workflow, age=2 * HOUR)
    stuck = [engine.platform.add(f"plain-{n}", age=2 * HOUR) for n in range(4)]
    stuck[0].refusal = "the scenario was edited since"
    stuck[1].native = True
    engine.platform.fates_of |= {stuck[2].id: ["cut before"], stuck[3].id: ["400"] * 9}
    fine = {engine.platform.add(f"plain-fine-{n}", age=HOUR).id for n in range(5)}
    await engine.until(lambda: engine.recovered() == fine, within=HOUR, step=60)


# A clock that was ahead


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("trouble", ["429 in 300", "429", "409", "revoked", "odd", "look 500", "refusal", "busy"])
async def test_a_clock_put_right_delays_by_one_interval_at_most(
    engine_of: EngineOf, trouble: str, restarted: bool
) -> None:
    """It was a week ahead when something was set back; the platform is well by the time that it is right again."""
    engine = await engine_of(quick(give_up_after=90 * DAY))
    engine.platform.well = Result.SUCCESS
    item = engine.platform.add()
    await engine.sweep()
    await engine.clock.advance(7 * DAY)
    since = engine.clock.now()
    if trouble == "odd":
        engine.platform.odd[item.id] = ODD[0]
    elif trouble == "look 500":
        engine.platform.outages = [Outage(since=since, until=since + DAY, looks="500")]
    elif trouble == "refusal":
        item.refusal = "the scenario was edited since"
    elif trouble == "busy":
        engine.platform.results = [Result.FAILURE]
        engine.platform.execute(item.id, "native")
    else:
        engine.platform.fates = ["429"] * 8 if trouble == "429" else [trouble]  # type: ignore[list-item]
    await engine.turn()
    assert engine.recovered() == set()
    await engine.clock.advance(NOW + HOUR - engine.clock.now())
    engine.platform.odd, engine.platform.fates, engine.platform.revoked = {}, [], False
    engine.platform.outages, item.refusal, item.executions = [], None, []
    if restarted:
        await engine.restart()
    await engine.until(lambda: engine.recovered() == {item.id}, within=SETBACK_MAX + 300)


async def test_odd_looks_do_not_keep_a_turn_from_ending(engine_of: EngineOf) -> None:
    """An outage in which every look breaks: no turn breaks, and all are recovered after it."""
    engine = await engine_of(quick(), Traits(effect="resume", handle="same_id", serial=False, bulk_max=3, absence=900))
    engine.platform.well = Result.SUCCESS
    names = {engine.platform.add(f"w{n % 3}", age=HOUR).id for n in range(6)}
    since = engine.clock.now()
    for looks in (ODD[0], answer("html", "GET /dead-letter")):
        engine.platform.outages.append(Outage(since=since, until=since + 3 * HOUR, looks=looks))
    await engine.live(3 * HOUR, step=60)
    assert engine.platform.met == []
    assert {decision.verb for decision in engine.book.decisions.values()} == {Verb.WAIT}
    await engine.until(lambda: engine.recovered() == names, within=X, step=60)
