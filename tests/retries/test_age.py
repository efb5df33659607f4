"""What a letter is allowed is used up by calls that ran, and by time in which it was allowed to be tried; by no other.

Exhausted is what that comes to now: computed, with a way back.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from exporter.model import Result
from exporter.model.policy import Backoff, Cooling, GateRules
from exporter.model.retries import Action, Decision, Mode, OverrideAction, Reason, Verb
from exporter.model.windows import parse_window
from exporter.retries.control import ControlError
from tests.retries.conftest import EngineOf
from tests.retries.made import DAY, EACH, HOUR, SERIAL, WIDE, quick
from tests.retries.world import SOURCE, Engine, Outage, bound

X = sum(bound(quick(), 3).values())
LONG_GATE = GateRules(cool=Cooling(first=4 * DAY, factor=1.0, cap=4 * DAY))
OFFICE_HOURS = parse_window("UTC", ["mon-fri 08:00-18:00"], ["2027-01-16..2027-01-19"])  # it is a Friday, 08:00


async def nothing(engine: Engine) -> None: ...


async def paused(engine: Engine) -> None:
    await engine.control.pause(None, seconds=4 * DAY, who="ann")


async def held(engine: Engine) -> None:
    await engine.hold((SOURCE, "d1"), seconds=4 * DAY)


async def revoked(engine: Engine) -> None:
    engine.platform.fates = ["revoked"]


async def calls_busy(engine: Engine) -> None:
    since = engine.clock.now()
    engine.platform.outages = [Outage(since=since, until=since + 4 * DAY, calls="429")]


async def looks_fail(engine: Engine) -> None:
    since = engine.clock.now()
    engine.platform.outages = [Outage(since=since, until=since + 4 * DAY, looks="500")]


async def native(engine: Engine) -> None:
    engine.platform.items["d1"].native = True


async def approved(engine: Engine) -> None:
    await engine.approve(engine.control.awaiting("p"))


async def well_again(engine: Engine) -> None:
    engine.platform.revoked = engine.platform.items["d1"].native = False


Deed = Callable[[Engine], Awaitable[None]]
#: What keeps it from being tried for more than three days: what happens first, what ends it, the policy.
NOT_ALLOWED: dict[str, tuple[Deed, Deed, dict[str, Any]]] = {
    "closed window": (nothing, nothing, {"window": OFFICE_HOURS}),
    "pause": (paused, nothing, {}),
    "hold": (held, nothing, {}),
    "approval pending": (nothing, approved, {"approve": "each"}),
    "credential refused": (revoked, well_again, {}),
    "platform busy": (calls_busy, nothing, {}),
    "looks fail": (looks_fail, nothing, {}),
    "platform's own retries": (native, well_again, {}),
}


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("name", NOT_ALLOWED)
async def test_time_that_was_not_allowed_does_not_age(engine_of: EngineOf, name: str, restarted: bool) -> None:
    first, last, changes = NOT_ALLOWED[name]
    engine = await engine_of(quick(give_up_after=3 * DAY, **changes))
    engine.platform.well = Result.SUCCESS
    await engine.clock.advance(11 * HOUR)  # Friday, 19:00
    engine.platform.add()
    await engine.sweep()
    await first(engine)
    for _ in range(4):
        await engine.live(DAY, step=HOUR)
        if restarted:
            await engine.restart()
            await engine.turn()
    assert engine.recovered() == set()
    assert engine.book.decisions[SOURCE, "d1"].reason is not Reason.EXHAUSTED
    await last(engine)
    await engine.until(lambda: engine.recovered() == {"d1"}, within=DAY, step=600)


async def test_time_behind_anothers_open_retry_does_not_age(engine_of: EngineOf) -> None:
    engine = await engine_of(quick(give_up_after=3 * DAY), SERIAL)
    engine.platform.well = Result.SUCCESS
    engine.platform.fates = ["cut before"]
    engine.platform.add(age=60)
    engine.platform.add()
    await engine.live(4 * DAY, step=HOUR)
    assert [name for _, name, _ in engine.platform.met] == ["d1"]
    await engine.release((SOURCE, "d1"), sent=True)
    await engine.until(lambda: "d2" in engine.recovered(), within=6 * HOUR, step=600)


async def test_time_in_which_nobody_decided_does_not_age(engine_of: EngineOf) -> None:
    """The service was down for four days, and what waited for its backoff is tried when it is back."""
    slow = Backoff(first=HOUR, factor=1.0, cap=HOUR, jitter=0.0)
    engine = await engine_of(quick(give_up_after=3 * DAY, backoff=slow))
    engine.platform.well = Result.SUCCESS
    engine.platform.add()
    await engine.sweep()
    await engine.turn()
    await engine.clock.advance(4 * DAY)
    await engine.restart()
    await engine.sweep()
    await engine.until(lambda: engine.recovered() == {"d1"}, within=6 * HOUR, step=600)


async def test_time_behind_a_gate_does_not_age(engine_of: EngineOf) -> None:
    engine = await engine_of(quick(give_up_after=3 * DAY, gate=LONG_GATE))
    engine.platform.results = [Result.FAILURE]
    engine.platform.well = Result.SUCCESS
    for _ in range(3):
        engine.platform.add()
    await engine.until(lambda: engine.recovered() == {"d1", "d2", "d3"}, within=5 * DAY, step=HOUR)


async def test_time_that_was_allowed_ages(engine_of: EngineOf) -> None:
    """So that the tests above can fail."""
    often = Backoff(first=6 * HOUR, factor=1.0, cap=6 * HOUR, jitter=0.0)
    engine = await engine_of(quick(give_up_after=DAY, retries=100, gate=WIDE, backoff=often))
    engine.platform.add()
    await engine.live(2 * DAY, step=600)
    decision = engine.book.decisions[SOURCE, "d1"]
    assert decision.reason is Reason.EXHAUSTED
    assert 3 <= len(engine.platform.met) <= 6


# Exhausted is computed


async def exhausted(engine: Engine, **changes: object) -> Decision:
    engine.platform.add(age=HOUR)
    await engine.until(
        lambda: (
            engine.book.decisions.get((SOURCE, "d1")) is not None
            and engine.book.decisions[SOURCE, "d1"].reason is Reason.EXHAUSTED
        ),
        within=X,
        step=60,
    )
    return engine.book.decisions[SOURCE, "d1"]


@pytest.mark.parametrize("then", [Action.QUARANTINE, Action.ESCALATE])
async def test_exhausted_is_the_same_after_a_restart_and_nowhere_written(engine_of: EngineOf, then: Action) -> None:
    engine = await engine_of(quick(retries=2, gate=WIDE, exhausted=then))
    before = await exhausted(engine)
    assert before.verb is Verb(then)
    assert OverrideAction.QUARANTINE not in {override.action for override in engine.book.overrides}
    await engine.restart()
    await engine.live(HOUR, step=60)
    assert engine.book.decisions[SOURCE, "d1"] == before
    assert len(engine.platform.met) == 2


@pytest.mark.parametrize("then", [Action.QUARANTINE, Action.ESCALATE])
async def test_more_retries_in_the_rules_bring_it_back(engine_of: EngineOf, then: Action) -> None:
    engine = await engine_of(quick(retries=2, gate=WIDE, exhausted=then))
    await exhausted(engine)
    await engine.live(DAY, step=600)
    assert len(engine.platform.met) == 2
    engine.platform.well = Result.SUCCESS
    await engine.restart(quick(retries=3, gate=WIDE, exhausted=then))
    await engine.until(lambda: engine.recovered() == {"d1"}, within=X, step=60)
    assert len(engine.platform.met) == 3


@pytest.mark.parametrize("then", [Action.QUARANTINE, Action.ESCALATE])
@pytest.mark.parametrize("restarted", [False, True])
async def test_a_release_brings_it_back_with_a_fresh_allowance(
    engine_of: EngineOf, restarted: bool, then: Action
) -> None:
    engine = await engine_of(quick(retries=2, gate=WIDE, exhausted=then))
    await exhausted(engine)
    for allowed in (4, 6):
        await engine.release((SOURCE, "d1"))
        if restarted:
            await engine.restart()
        await engine.live(6 * HOUR, step=60)
        assert len(engine.platform.met) == allowed
        assert engine.book.decisions[SOURCE, "d1"].reason is Reason.EXHAUSTED
        assert engine.book.decisions[SOURCE, "d1"].verb is Verb(then)


async def test_a_release_brings_back_what_is_too_old(engine_of: EngineOf) -> None:
    engine = await engine_of(quick(gate=WIDE, retries=50, give_up_after=2 * HOUR))
    engine.platform.add()
    await engine.live(DAY, step=300)
    before = len(engine.platform.met)
    assert engine.book.decisions[SOURCE, "d1"].reason is Reason.EXHAUSTED
    await engine.release((SOURCE, "d1"))
    engine.platform.well = Result.SUCCESS
    await engine.until(lambda: engine.recovered() == {"d1"}, within=2 * HOUR, step=60)
    assert len(engine.platform.met) == before + 1


async def test_a_policy_that_quarantines_is_written_down_and_a_release_lifts_it(engine_of: EngineOf) -> None:
    engine = await engine_of(quick(action=Action.QUARANTINE))
    engine.platform.well = Result.SUCCESS
    engine.platform.add(age=HOUR)
    await engine.live(60)
    assert [o.action for o in engine.book.overrides] == [OverrideAction.QUARANTINE]
    await engine.restart(quick())
    await engine.live(HOUR, step=60)
    assert engine.platform.met == []
    await engine.release((SOURCE, "d1"))
    await engine.until(lambda: engine.recovered() == {"d1"}, within=X, step=60)


async def test_an_approval_that_cannot_come_true_is_refused(engine_of: EngineOf) -> None:
    engine = await engine_of(quick(gate=WIDE, retries=1), EACH)
    await exhausted(engine)
    await engine.restart(quick(gate=WIDE, retries=1, approve="each"))
    await engine.turn()
    with pytest.raises(ControlError, match=r"(?i)used|exhausted"):
        await engine.approve([(SOURCE, "d1")])
    await engine.restart(quick(gate=WIDE, retries=1, mode=Mode.APPROVE))
    await engine.turn()
    with pytest.raises(ControlError, match=r"(?i)used|exhausted"):
        await engine.approve([(SOURCE, "d1")])
