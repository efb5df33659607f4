"""The engine against a platform in a nutshell: one story a test."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from exporter.model import ResolvedBy, Result
from exporter.model.policy import Pace, Rules, SourceRules
from exporter.model.retries import Action, Mode, Outcome, OverrideAction, RetryState, Traits, Verb
from exporter.store import audit
from exporter.store.script import Script, StoreError
from exporter.wire.errors import ApiError, ErrorKind
from tests.retries.made import TRAITS, policy, rules
from tests.retries.world import SOURCE, Engine

RESUME = Traits(effect="resume", handle="same_id", serial=False, bulk_max=5)
SERIAL = Traits(effect="resume", handle="same_id", serial=True)
RERUN = Traits(effect="rerun", handle="inferred", serial=True)
ROOMY = {SOURCE: SourceRules(pace=Pace(rate=1.0, burst=50, in_flight=50))}


@pytest.fixture
async def make(tmp_path: Path, url: str) -> AsyncIterator[Callable[..., Any]]:
    made: list[Engine] = []

    async def make(by: Rules | None = None, traits: Traits = RESUME) -> Engine:
        engine = Engine(tmp_path, by or rules(policy(), sources=ROOMY), traits, url)
        made.append(engine)
        await engine.start()
        await engine.sweep()
        return engine

    yield make
    for engine in made:
        await engine.stop()


async def test_a_dead_letter_is_retried_watched_and_found_mended(make: Callable[..., Any]) -> None:
    engine: Engine = await make()
    engine.platform.add()
    engine.platform.results = [Result.SUCCESS]
    await engine.live(870)
    assert engine.platform.calls == []
    await engine.live(120)
    (retry,) = engine.retries()
    assert (retry.outcome, retry.ordinal, retry.policy) == (Outcome.SUCCEEDED, 1, "p")
    assert len(engine.platform.calls) == 1
    assert engine.world.sources[SOURCE].dead_letters == {}
    assert engine.platform.problems == []


async def test_what_we_mended_is_resolved_by_retry_whoever_sees_it_first(make: Callable[..., Any]) -> None:
    engine: Engine = await make()
    item = engine.platform.add()
    engine.platform.results = [Result.SUCCESS]
    seen: list[ResolvedBy | None] = []
    follow = engine.ledger.on_commit

    def watch(committed: Any) -> None:
        seen.extend(e.dead_letter.resolved_by for e in committed.dead_letters.values() if not e.dead_letter.is_open)
        follow(committed)

    engine.ledger.on_commit = watch
    await engine.live(930)
    await engine.clock.advance(5)
    assert item.resolved_at is not None
    await engine.clock.advance(30)
    await engine.sweep()  # the sweep is first
    assert seen == [ResolvedBy.RETRY]


async def test_failures_are_retried_ever_later_until_no_retries_are_left(make: Callable[..., Any]) -> None:
    engine: Engine = await make()
    engine.platform.add()
    await engine.live(8 * 3600, step=60)
    first, second, third = engine.retries()
    assert [r.outcome for r in (first, second, third)] == [Outcome.FAILED] * 3
    assert second.claimed_at - (first.closed_at or 0) >= 2700
    assert third.claimed_at - (second.closed_at or 0) >= 8100
    assert len(engine.platform.calls) == 3
    decision = engine.book.decisions[SOURCE, "d1"]
    assert (decision.verb, decision.reason) == (Verb.QUARANTINE, "exhausted")
    await engine.restart(rules(policy(retries=4), sources=ROOMY))
    await engine.live(12 * 3600, step=120)
    assert len(engine.platform.calls) == 4  # the policies say more by now
    await engine.release((SOURCE, "d1"))
    await engine.live(48 * 3600, step=240)
    assert len(engine.platform.calls) == 8  # and a person says: all anew


async def test_retries_are_counted_per_root_where_each_makes_a_new_run(make: Callable[..., Any]) -> None:
    engine: Engine = await make(traits=RERUN)
    engine.platform.add()
    await engine.live(24 * 3600, step=60)
    assert len(engine.platform.calls) == 3
    assert {retry.root for retry in engine.retries()} == {"d1"}
    assert len({retry.dead_letter_id for retry in engine.retries()}) == 3


@pytest.mark.parametrize("mode", [Mode.OFF, Mode.SHADOW])
async def test_nothing_is_sent_below_approval(make: Callable[..., Any], mode: Mode) -> None:
    engine: Engine = await make(rules(policy(), mode=mode, sources=ROOMY))
    engine.platform.add()
    await engine.live(10 * 3600, step=60)
    assert engine.platform.calls == []
    assert [retry.shadow for retry in engine.retries()] == [True] * (3 if mode is Mode.SHADOW else 0)


async def test_shadow_plans_what_enforcement_does(make: Callable[..., Any], tmp_path: Path) -> None:
    plans = []
    for mode in (Mode.SHADOW, Mode.ENFORCE):
        folder = tmp_path / mode
        folder.mkdir()
        engine = Engine(folder, rules(policy(), mode=mode, sources=ROOMY), RESUME)
        await engine.start()
        await engine.sweep()
        for number in range(6):
            engine.platform.add(f"w{number % 3}")
        engine.platform.results = [Result.SUCCESS] * 9
        await engine.live(930)
        plans.append([(retry.root, retry.claimed_at, retry.ordinal) for retry in engine.retries()])
        await engine.stop()
    assert plans[0] == plans[1]
    assert len(plans[0]) == 6


async def test_an_approval_is_for_one_retry_of_what_was_there(make: Callable[..., Any]) -> None:
    engine: Engine = await make(rules(policy(), mode=Mode.APPROVE, sources=ROOMY))
    engine.platform.add()
    await engine.live(1800)
    assert engine.platform.calls == []
    assert engine.control.awaiting("p") == [(SOURCE, "d1")]
    await engine.approve([(SOURCE, "d1")])
    await engine.live(600)
    assert [retry.approved_by for retry in engine.retries()] == ["ann"]
    await engine.live(6 * 3600, step=60)
    assert len(engine.platform.calls) == 1  # the next asks again
    assert engine.control.awaiting("p") == [(SOURCE, "d1")]


async def test_the_kill_switch_is_read_in_the_claim_and_survives_a_restart(make: Callable[..., Any]) -> None:
    engine: Engine = await make()
    engine.platform.add()
    await engine.live(840)
    await engine.control.pause(None, seconds=7200.0, who="ann", why="maintenance")
    await engine.restart()
    await engine.live(3600)
    assert engine.platform.calls == []
    assert engine.book.decisions[SOURCE, "d1"].reason == "paused"
    engine.book.overrides.keep([])  # a picture in memory that lags behind: the claim reads the ledger
    await engine.live(600)
    assert engine.platform.calls == []
    await engine.restart()
    await engine.live(3600)
    assert len(engine.platform.calls) == 1  # the pause has an end


@pytest.mark.parametrize("fate", ["cut after", "cut before", "503 after", "unnamed"])
async def test_what_is_in_doubt_is_never_sent_again_by_itself(make: Callable[..., Any], fate: Any) -> None:
    engine: Engine = await make()
    engine.platform.add()
    engine.platform.fates = [fate]
    engine.platform.results = [Result.SUCCESS]
    await engine.live(3 * 3600)
    (retry,) = engine.retries()
    if fate == "cut before":
        assert (retry.state, retry.outcome) == (RetryState.HELD, None)
        assert engine.book.decisions[SOURCE, "d1"].verb is Verb.HOLD
        await engine.release((SOURCE, "d1"), sent=False)
        await engine.live(1800)
        assert [retry.outcome for retry in engine.retries()] == [Outcome.NOT_SENT, Outcome.SUCCEEDED]
    else:
        assert retry.outcome is Outcome.SUCCEEDED
    assert len(engine.platform.calls) == 1


async def test_a_persons_word_is_heeded_when_the_platform_was_read_once_more(make: Callable[..., Any]) -> None:
    """Released before anybody saw the new run that the call had made: that run descends from the root all the same."""
    engine: Engine = await make(traits=RERUN)
    engine.platform.add()
    engine.platform.fates = ["cut after"]
    while not engine.platform.calls:
        await engine.live(30)
    await engine.release((SOURCE, "d1"))
    await engine.live(24 * 3600, step=60)
    first = engine.retries()[0]
    assert (first.outcome, len(first.new_runs)) == (Outcome.FAILED, 1)
    assert {retry.root for retry in engine.retries()} == {"d1"}
    assert len(engine.platform.calls) == 3


@pytest.mark.parametrize(("fate", "outcome"), [("cut, late", Outcome.SUCCEEDED), ("cut before", Outcome.NOT_SENT)])
async def test_a_persons_word_waits_as_long_as_the_call_may_take_effect(
    make: Callable[..., Any], fate: Any, outcome: Outcome
) -> None:
    engine: Engine = await make()
    engine.platform.add()
    engine.platform.fates = [fate]
    engine.platform.results = [Result.SUCCESS]
    while not engine.book.open_of(SOURCE):
        await engine.live(30)
    asked_at = engine.clock.now()
    said = await engine.release((SOURCE, "d1"), sent=False)
    await engine.live(120)
    assert [retry.outcome for retry in engine.retries()] == [None]
    await engine.live(3600)
    first = engine.retries()[0]
    assert first.outcome is outcome
    if outcome is Outcome.NOT_SENT:
        assert first.detail == "released by ann"
        assert first.closed_at is not None
        assert asked_at + 600 < said["settles"] <= first.closed_at <= said["settles"] + 300


async def test_what_a_person_says_while_the_platform_is_being_read_is_not_lost(make: Callable[..., Any]) -> None:
    engine: Engine = await make()
    engine.platform.add()
    engine.platform.fates = ["cut before"]
    await engine.live(3 * 3600)
    engine.platform.answers = asyncio.Event()
    await engine.clock.advance(1800)
    turn = asyncio.create_task(engine.turn())
    await engine.platform.asked.wait()
    assert not turn.done()
    await engine.release((SOURCE, "d1"), sent=False)
    engine.platform.answers.set()
    await turn
    await engine.live(60)
    assert engine.retries()[0].outcome is Outcome.NOT_SENT


@pytest.mark.parametrize("traits", [TRAITS, SERIAL], ids=["by letter", "by workflow"])
async def test_a_doubt_keeps_still_only_what_its_effect_cannot_be_told_from(
    make: Callable[..., Any], traits: Traits
) -> None:
    engine: Engine = await make(rules(policy(group_by=("error.class",)), sources=ROOMY), traits=traits)
    engine.platform.results = [Result.SUCCESS] * 9
    engine.platform.add("w1")
    await engine.live(300)
    engine.platform.add("w1")
    engine.platform.add("w2")
    engine.platform.fates = ["cut before"]
    await engine.live(4 * 3600)
    others = {"d2", "d3"} if traits is TRAITS else {"d3"}
    assert {name for _, name, _ in engine.platform.calls} == others
    assert engine.retries()[0].state is RetryState.HELD


async def test_the_platforms_own_retry_and_a_resolved_item_are_left_alone(make: Callable[..., Any]) -> None:
    engine: Engine = await make()
    native, resolved = engine.platform.add(native=True), engine.platform.add("w2")
    await engine.live(870)
    resolved.resolved_at = engine.clock.now()
    engine.platform.items["d1"].native = True
    await engine.turn()  # no sweep has seen it: the preflight does
    await engine.live(3600)
    assert engine.platform.calls == []
    native.native = False
    engine.platform.results = [Result.SUCCESS]
    await engine.live(7200)
    assert len(engine.platform.calls) == 1
    assert engine.platform.problems == []


async def test_an_ordered_workflow_is_retried_head_first(make: Callable[..., Any]) -> None:
    engine: Engine = await make()
    engine.platform.add("ordered")
    await engine.live(60)
    engine.platform.add("ordered")
    engine.platform.results = [Result.FAILURE, Result.SUCCESS, Result.SUCCESS]
    await engine.live(4 * 3600)
    assert [name for _, name, _ in engine.platform.calls] == ["d1", "d1", "d2"]


async def test_the_pace_holds_also_after_a_restart(make: Callable[..., Any]) -> None:
    slow = {SOURCE: SourceRules(pace=Pace(rate=1 / 60, burst=2, in_flight=50))}
    engine: Engine = await make(rules(policy(), sources=slow))
    for number in range(12):
        engine.platform.add(f"w{number}")
    await engine.live(900)
    for _ in range(60):
        await engine.restart()
        await engine.live(10, step=10)
    times = [at for at, _, _ in engine.platform.calls]
    for index, start in enumerate(times):
        for window in (60.0, 120.0, 300.0):
            assert sum(1 for at in times[index:] if at < start + window) <= 2 + window / 60
    assert len(times) >= 9


async def test_dead_letters_of_one_workflow_share_a_call(make: Callable[..., Any]) -> None:
    engine: Engine = await make()
    for _ in range(4):
        engine.platform.add("w1")
    engine.platform.results = [Result.SUCCESS] * 4
    await engine.live(930)
    assert [retry.sent_at for retry in engine.retries()] == [engine.retries()[0].sent_at] * 4
    await engine.live(120)
    assert {retry.outcome for retry in engine.retries()} == {Outcome.SUCCEEDED}


async def test_a_refused_credential_lowers_the_source_and_a_missing_right_quarantines(make: Callable[..., Any]) -> None:
    engine: Engine = await make()
    engine.platform.add()
    refusals = [401, 403]

    async def refuse(letters: Any, *, send_by: float) -> Any:
        raise ApiError(ErrorKind.AUTH, endpoint="POST /retry", detail="no", status=refusals.pop(0))

    engine.platform.send = refuse  # type: ignore[method-assign]
    await engine.live(1200)
    assert [o.action for o in engine.book.overrides] == [OverrideAction.LOWER]
    await engine.live(7200)
    assert engine.book.decisions[SOURCE, "d1"].reason == "mode"
    await engine.control.resume(SOURCE, who="ann")
    await engine.live(7200)
    assert engine.book.decisions[SOURCE, "d1"].verb is Verb.QUARANTINE
    assert [retry.outcome for retry in engine.retries()] == [Outcome.REJECTED] * 2


async def test_without_a_ledger_nothing_is_sent(make: Callable[..., Any]) -> None:
    engine: Engine = await make()
    engine.platform.add()
    await engine.live(840)

    async def broken(operation: str, script: Any) -> Any:
        script.close()
        raise StoreError("the database refused: disk I/O error")

    working, engine.ledger.transact = engine.ledger.transact, broken  # type: ignore[method-assign]
    for _ in range(20):
        await engine.clock.advance(60)
        with pytest.raises(StoreError):
            await engine.turn()
    assert engine.platform.calls == []
    engine.ledger.transact = working  # type: ignore[method-assign]
    await engine.live(120)
    assert len(engine.platform.calls) == 1


async def test_a_success_that_does_not_last_is_noted(make: Callable[..., Any]) -> None:
    engine: Engine = await make()
    engine.platform.add()
    engine.platform.results = [Result.SUCCESS]
    await engine.live(1020)
    engine.platform.add()
    await engine.live(60)
    assert [(retry.outcome, retry.recurred) for retry in engine.retries()] == [(Outcome.SUCCEEDED, True)]


async def test_other_policies_do_not_touch_what_is_open(make: Callable[..., Any]) -> None:
    engine: Engine = await make()
    engine.platform.add()
    engine.platform.fates = ["late"]
    await engine.live(930)
    (before,) = engine.retries()
    await engine.restart(rules(policy(action=Action.IGNORE, name="other"), mode=Mode.OFF))
    await engine.live(1200)
    (after,) = engine.retries()
    assert (after.id, after.outcome, after.deadline) == (before.id, Outcome.FAILED, before.deadline)


async def test_the_audit_is_linked_and_tells_the_whole_story(make: Callable[..., Any]) -> None:
    engine: Engine = await make()
    engine.platform.add()
    engine.platform.results = [Result.SUCCESS]
    await engine.live(1200)
    assert (await engine.ledger.transact("audit", audit.check())).broken is None
    kinds = [record["kind"] for record in await engine.book.audit_of(engine.retries()[0].id)]
    assert kinds[:3] == ["intent", "sent", "called"]
    assert kinds[-1] == "succeeded"

    def tampered() -> Script[None]:
        yield "UPDATE audit SET data = data || ' ' WHERE seq = 2", ()

    await engine.ledger.transact("tamper", tampered())
    assert (await engine.ledger.transact("audit", audit.check())).broken == 2
