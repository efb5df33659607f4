"""What a platform answers to a call, and what that may cost: the letter, its workflow, the source.

A refusal is no failure. *Busy* and *denied* use up nothing and set the workflow or the source back; only *rejected* is
about this letter and uses up one of its retries; what is *in doubt* counts once it is known to have been sent.
"""

import contextlib
import itertools
from collections import Counter

import pytest

from exporter.model import Result
from exporter.model.policy import Pace
from exporter.model.retries import Mode, Reason, Verb
from exporter.retries.control import ControlError
from tests.retries.conftest import EngineOf
from tests.retries.made import DAY, HOUR, WIDE, quick
from tests.retries.world import BUSY, DOUBTFUL, REJECTED, SETBACK_MAX, SOURCE, Engine, Fate, Outage, bound

X = sum(bound(quick(), 12).values())


def fail(engine: Engine, number: int, workflow: str = "w") -> list[str]:
    """So many letters, each of its own workflow, all due."""
    engine.platform.well = Result.SUCCESS
    return [engine.platform.add(f"{workflow}{n}", age=HOUR).id for n in range(number)]


def unwell(engine: Engine, seconds: float, calls: Fate) -> None:
    since = engine.clock.now()
    engine.platform.outages.append(Outage(since=since, until=since + seconds, calls=calls))


async def all_recovered(engine: Engine, names: list[str], within: float = X) -> None:
    await engine.until(lambda: set(names) <= engine.recovered(), within=within, step=60)
    assert engine.platform.problems == []


def calls_of(engine: Engine) -> Counter[str]:
    return Counter(name for _, name, _ in engine.platform.met)


# Busy


@pytest.mark.parametrize("fate", BUSY)
async def test_ten_minutes_of_a_busy_platform_use_up_nothing(engine_of: EngineOf, fate: Fate) -> None:
    engine = await engine_of(quick(retries=2))
    names = fail(engine, 4)
    unwell(engine, 600, fate)
    await engine.live(600)
    assert engine.platform.met
    verbs = {decision.verb for decision in engine.book.decisions.values()}
    assert verbs <= {Verb.WAIT, Verb.RETRY}, verbs
    assert Reason.EXHAUSTED not in {decision.reason for decision in engine.book.decisions.values()}
    await all_recovered(engine, names)


@pytest.mark.parametrize("fate", BUSY)
async def test_a_letter_that_met_a_busy_platform_often_has_all_its_retries(engine_of: EngineOf, fate: Fate) -> None:
    engine = await engine_of(quick(retries=2, gate=WIDE))
    (name,) = fail(engine, 1)
    engine.platform.well = Result.FAILURE
    engine.platform.fates_of[name] = [fate] * 5
    await engine.live(5 * HOUR, step=60)
    fates = [fate for _, _, fate in engine.platform.met]
    assert fates == [fate] * 5 + ["ok"] * 2
    assert engine.book.decisions[SOURCE, name].reason is Reason.EXHAUSTED


@pytest.mark.parametrize("fate", ["429 in 300", "503 in 300"])
async def test_the_whole_source_waits_as_long_as_the_platform_asks(engine_of: EngineOf, fate: Fate) -> None:
    engine = await engine_of(quick())
    names = fail(engine, 3)
    engine.platform.fates = [fate]
    await engine.live(290, step=10)
    assert len(engine.platform.met) == 1
    await engine.restart()
    await engine.turn()
    assert len(engine.platform.met) == 1
    await all_recovered(engine, names, within=HOUR)


async def test_a_source_that_stays_busy_is_asked_ever_more_rarely(engine_of: EngineOf) -> None:
    engine = await engine_of(quick())
    names = fail(engine, 10)
    unwell(engine, 2 * HOUR, "429")
    await engine.live(2 * HOUR)
    times = [at for at, _, _ in engine.platform.met]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert 3 <= len(times) <= 30, len(times)
    assert gaps[-1] > gaps[0]
    assert max(gaps) <= SETBACK_MAX + 60
    await all_recovered(engine, names)


async def test_the_pace_halves_after_a_429_and_recovers(engine_of: EngineOf) -> None:
    engine = await engine_of(quick(pace=Pace(rate=1 / 30, burst=1, in_flight=50)))
    engine.platform.fates = ["ok", "ok", "ok", "ok", "ok", "429"]
    fail(engine, 6)
    for number in range(240):  # there is always something due
        if number % 10 == 0:
            items, now = engine.platform.items, engine.clock.now()
            waiting = sum(item.resolved_at is None for item in items.values())
            fresh = {name: item for name, item in items.items() if now - (item.resolved_at or now) < 600}
            engine.platform.items = fresh
            fail(engine, 12 - waiting, f"later-{number}-")
        await engine.live(30)
    times = [at for at, _, fate in engine.platform.met]
    refused_at = next(at for at, _, fate in engine.platform.met if fate == "429")
    again = next(at for at in times if at > refused_at)
    assert sum(again <= at < again + 300 for at in times) <= 8, "10 at the full pace, 5 at half of it"
    end = engine.clock.now()
    assert sum(end - 1200 < at <= end for at in times) >= 34, "40 at the full pace"


@pytest.mark.parametrize("fate", ["409", "412", "423"])
async def test_what_is_busy_there_sets_back_its_workflow_only(engine_of: EngineOf, fate: Fate) -> None:
    engine = await engine_of(quick())
    (first,) = fail(engine, 1)
    (second,) = fail(engine, 1)
    (other,) = fail(engine, 1, "other")
    engine.platform.fates_of[first] = [fate]
    await engine.live(20, step=10)
    assert calls_of(engine) == {first: 1, other: 1}
    await all_recovered(engine, [first, second, other])


# Denied


@pytest.mark.parametrize("approve", ["none", "first_of_group", "each"])
async def test_a_refused_credential_lowers_the_source_for_every_policy(engine_of: EngineOf, approve: str) -> None:
    """Approvals given before included; until a call of ours succeeds, if only a look."""
    engine = await engine_of(quick(approve=approve, retries=1, group_by=("error.class",)))
    (first,) = fail(engine, 1, "first")
    await engine.live(60)
    if approve != "none":
        await engine.approve([(SOURCE, first)])
    await all_recovered(engine, [first])
    names = fail(engine, 3)
    if approve == "each":
        await engine.sweep()
        await engine.approve([(SOURCE, name) for name in names])
    engine.platform.fates = ["revoked"]
    before = len(engine.platform.met)
    await engine.live(HOUR)
    await engine.restart()
    await engine.live(HOUR)
    assert [fate for _, _, fate in engine.platform.met[before:]] == ["401"]
    for name in names:
        decision = engine.book.decisions[SOURCE, name]
        assert (decision.verb, decision.reason, decision.mode) == (Verb.WAIT, Reason.MODE, Mode.APPROVE), name
        assert decision.awaits_approval
    engine.platform.revoked = False
    await engine.live(SETBACK_MAX)
    if approve != "none":
        with contextlib.suppress(ControlError):
            await engine.approve(engine.control.awaiting("p"))
    await all_recovered(engine, names)


async def test_a_person_resumes_a_source_whose_credential_was_refused(engine_of: EngineOf) -> None:
    engine = await engine_of(quick(retries=1))
    names = fail(engine, 2)
    engine.platform.fates = ["revoked"]
    await engine.live(600)
    assert engine.book.rules.mode_of(SOURCE, engine.book.overrides.holding(engine.clock.now())) is Mode.APPROVE
    engine.platform.revoked = False
    await engine.control.resume(SOURCE, who="ann")
    await engine.turn()
    assert len(engine.platform.met) > 1
    await all_recovered(engine, names)


async def test_a_credential_that_may_read_and_not_call_is_not_tried_over_and_over(engine_of: EngineOf) -> None:
    """A look that succeeds lifts what a refused call lowered; the next call is refused again."""
    engine = await engine_of(quick(retries=1))
    names = fail(engine, 6)
    unwell(engine, DAY, "401")
    await engine.live(DAY, step=300)
    assert 1 <= len(engine.platform.met) <= 48
    assert Reason.EXHAUSTED not in {decision.reason for decision in engine.book.decisions.values()}
    await engine.control.resume(SOURCE, who="ann")
    await all_recovered(engine, names)


# Rejected


@pytest.mark.parametrize("fate", REJECTED)
async def test_a_rejection_uses_up_one_retry_of_its_own_letter(engine_of: EngineOf, fate: Fate) -> None:
    engine = await engine_of(quick(retries=2))
    (bad, same), (other,) = (*fail(engine, 1), *fail(engine, 1)), fail(engine, 1, "other")
    engine.platform.fates_of[bad] = [fate] * 9
    await all_recovered(engine, [same, other])
    await engine.live(3 * HOUR, step=60)
    assert calls_of(engine)[bad] == 2
    assert engine.book.decisions[SOURCE, bad].reason is Reason.EXHAUSTED


async def test_a_missing_right_quarantines_its_own_letter_only(engine_of: EngineOf) -> None:
    engine = await engine_of(quick())
    (bad, same), (other,) = (*fail(engine, 1), *fail(engine, 1)), fail(engine, 1, "other")
    engine.platform.fates_of[bad] = ["403"]
    await all_recovered(engine, [same, other])
    await engine.restart()
    await engine.live(HOUR, step=60)
    assert calls_of(engine)[bad] == 1
    decision = engine.book.decisions[SOURCE, bad]
    assert (decision.verb, decision.reason) == (Verb.QUARANTINE, Reason.HELD)
    await engine.release((SOURCE, bad))
    await all_recovered(engine, [bad])


async def test_what_a_call_does_not_find_is_read_and_resolved_if_it_is_gone(engine_of: EngineOf) -> None:
    engine = await engine_of(quick())
    (name,) = fail(engine, 1)
    engine.platform.fates = ["404 gone"]
    await engine.live(10, step=10)
    assert calls_of(engine) == {name: 1}
    await engine.clock.advance(10)
    await engine.turn()  # no sweep has seen it
    assert engine.world.sources[SOURCE].dead_letters == {}


async def test_refusals_of_many_letters_in_a_row_are_about_the_source(engine_of: EngineOf) -> None:
    """Whoever may not retry any of them lacks a right: not all of them are quarantined for it."""
    engine = await engine_of(quick())
    fail(engine, 12)
    unwell(engine, DAY, "403")
    await engine.live(HOUR)
    verbs = Counter(decision.verb for decision in engine.book.decisions.values())
    assert verbs[Verb.QUARANTINE] <= 6, verbs
    assert len(engine.platform.met) <= 12


# In doubt


@pytest.mark.parametrize("fate", DOUBTFUL)
async def test_a_call_that_is_found_not_to_have_been_sent_uses_up_nothing(engine_of: EngineOf, fate: Fate) -> None:
    engine = await engine_of(quick(retries=1))
    names = fail(engine, 1)
    engine.platform.fates = [fate] * 2
    await engine.live(840)
    assert len(engine.platform.met) == 1
    await all_recovered(engine, names, within=2 * HOUR)
    assert len(engine.platform.met) == 3
