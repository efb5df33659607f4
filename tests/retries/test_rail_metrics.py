"""What a scrape says of that which holds retries back, and of what a person has to see to: by the real engine."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from exporter.model import Result, Run, State, Via
from exporter.model.ledger import Batch
from exporter.model.policy import Budget, Cooling, GateRules, Pace, SourceRules, Storm
from exporter.model.rails import Gate, GateState, Rails, gate_states
from exporter.model.retries import Action, Mode, Reason, RetryState
from exporter.store.script import Row, Script, StoreError
from tests.retries.conftest import EngineOf
from tests.retries.made import DAY, EACH, HOUR, NOW, PLAIN, WIDE, policy, quick, rules
from tests.retries.world import SOURCE, Engine

ESCALATIONS = "automation_retry_escalations_total"
FAST = Pace(rate=1.0, burst=50, in_flight=50)
ROOMY = {SOURCE: SourceRules(pace=FAST)}
GATED = policy(gate=GateRules(ramp=(1, 2, 5), cool=Cooling(first=HOUR, factor=2.0, cap=4 * HOUR)))


def gates(engine: Engine, name: str = "p") -> dict[str, float]:
    """The states in which there are gates."""
    shown = engine.metric("automation_retry_gates")
    assert {state for policy_name, state in shown if policy_name == name} in (set(), set(GateState))
    return {state: count for (policy_name, state), count in shown.items() if policy_name == name and count}


async def ended(engine: Engine, result: Result, count: int, *, workflow_id: str = "w1") -> None:
    """So many runs of the source's own end now."""
    now = engine.clock.now()
    found = [
        Run(
            workflow_id=workflow_id, id=f"{result}-{now:.0f}-{n}", state=State.FINISHED, result=result,
            started_at=now - 30, ended_at=now - 1,
        )
        for n in range(count)
    ]  # fmt: skip
    batch = Batch(source=SOURCE, observations=found, via=Via.POLL, now=now, started_at=now, stream="runs")
    await engine.ledger.ingest(batch)


# Gates


async def test_a_gate_is_shown_ramping_cooling_probing_and_open(engine_of: EngineOf) -> None:
    engine = await engine_of(rules(GATED, sources=ROOMY))
    assert engine.metric("automation_retry_gates") == {}, "nothing was decided yet"
    for _ in range(30):
        engine.platform.add("w1", age=HOUR)
    await engine.sweep()
    await engine.turn()
    assert gates(engine) == {"ramping": 1}, "one group, not thirty dead letters"
    await engine.until(lambda: gates(engine) == {"cooling": 1}, within=HOUR)
    await engine.until(lambda: gates(engine) == {"probing": 1}, within=2 * HOUR)
    await engine.restart()
    await engine.turn()
    assert gates(engine) == {"probing": 1}
    engine.platform.well = Result.SUCCESS
    await engine.until(lambda: gates(engine) == {"ramping": 1}, within=5 * HOUR)
    await engine.until(lambda: gates(engine) == {"open": 1}, within=5 * HOUR)
    await engine.until(lambda: len(engine.recovered()) == 30, within=5 * HOUR)
    await engine.live(60)
    assert gates(engine) == {}, "nothing waits"


async def test_only_groups_in_which_something_may_be_retried_have_a_gate(engine_of: EngineOf) -> None:
    held = policy({"workflow.id": "held"}, name="held", action=Action.HOLD)
    engine = await engine_of(rules(held, GATED, sources=ROOMY))
    for name in ("w1", "w1", "w2", "held"):
        engine.platform.add(name, age=HOUR)
    old = engine.platform.add("w3", age=10 * DAY)
    await engine.sweep()
    await engine.turn()
    assert engine.book.decisions[SOURCE, old.id].reason is Reason.EXHAUSTED
    assert gates(engine) == {"ramping": 2}
    assert "held" not in {name for name, _ in engine.metric("automation_retry_gates")}


async def test_a_gate_costs_nothing_while_nothing_changes(engine_of: EngineOf) -> None:
    engine = await engine_of(rules(GATED, sources={SOURCE: SourceRules(pace=FAST, budget=Budget())}))
    for _ in range(5):
        engine.platform.add("w1", age=HOUR)
    await engine.until(lambda: gates(engine) == {"cooling": 1}, within=HOUR)
    decider, now = engine.retrier.decider, engine.clock.now()
    assert decider.gates(now + 1) is decider.gates(now + 600), "though the budget's tokens grow"
    assert decider.gates(now + 2 * HOUR) == {("p", GateState.PROBING): 1}, "time alone opens it"


def test_a_group_stands_as_its_policy_does_where_that_lets_less_through() -> None:
    shut = Gate(tripped_at=NOW - 10, cool_until=NOW + HOUR, sick=True)
    wide, other = Gate(level=2), policy(name="other", gate=WIDE)
    owners = {"p": GATED, "other": other}
    groups = {("p", "a"): ["w1"], ("p", "b"): ["w1", "w2"], ("other", "a"): ["w1"], ("gone", "a"): ["w1"]}

    def states(**changes: object) -> Counter[tuple[str, GateState]]:
        return gate_states(groups, owners, replace(Rails(), **changes), NOW)  # type: ignore[arg-type]

    fresh = {("p", "ramping"): 2, ("other", "open"): 1}
    assert states() == fresh, "a gate of one width is open from the start; a policy that is gone has none"
    assert states(gates={("p", "a"): wide}) == {("p", "open"): 1, ("p", "ramping"): 1, ("other", "open"): 1}
    assert states(gates={("p", "a"): shut}) == {("p", "cooling"): 1, ("p", "ramping"): 1, ("other", "open"): 1}
    assert states(gates={("p", ""): shut, ("p", "a"): wide}) == {("p", "cooling"): 2, ("other", "open"): 1}
    assert states(gates={("p", ""): wide}) == fresh, "a policy's gate that is not shut says nothing of its groups"
    well = {"w2": NOW - 5}
    assert states(gates={("p", "b"): shut}, well=well) == {
        ("p", "probing"): 1, ("p", "ramping"): 1, ("other", "open"): 1,
    }, "something of a group may pass where one of its workflows is well again"  # fmt: skip
    assert states(gates={("p", "a"): shut}, well=well)["p", GateState.COOLING] == 1
    assert states(gates={("p", ""): shut}, well=well)["p", GateState.COOLING] == 2
    assert states(gates={("p", ""): shut}, well={"": NOW - 5})["p", GateState.PROBING] == 2, (
        "any success speaks for a policy"
    )


# Storm, budget, mode


async def test_storm_and_budget_are_shown_where_they_are_configured_and_nowhere_else(engine_of: EngineOf) -> None:
    bare = await engine_of(rules(GATED, sources=ROOMY))
    await bare.turn()
    assert bare.metric("automation_retry_storm") == bare.metric("automation_retry_budget_tokens") == {}

    guarded = SourceRules(pace=FAST, storm=Storm(), budget=Budget(cap=2.0, earn=0.1, floor=1 / HOUR))
    engine = await engine_of(rules(GATED, sources={SOURCE: guarded}))
    await engine.turn()
    assert engine.metric("automation_retry_storm") == {(): 0.0}
    assert engine.metric("automation_retry_budget_tokens") == {(): pytest.approx(0.0, abs=0.01)}
    await ended(engine, Result.FAILURE, 20)
    await engine.turn()
    assert engine.metric("automation_retry_storm") == {(): 1.0}
    await engine.live(HOUR, step=600)
    assert engine.metric("automation_retry_storm") == {(): 0.0}, "it is over"
    assert engine.metric("automation_retry_budget_tokens") == {(): pytest.approx(1.0, abs=0.01)}
    await ended(engine, Result.SUCCESS, 40)
    await engine.turn()
    assert engine.metric("automation_retry_budget_tokens") == {(): 2.0}


@pytest.mark.parametrize(("mode", "lowered"), [(Mode.ENFORCE, 1.0), (Mode.APPROVE, 0.0)])
async def test_that_the_exporter_lowered_a_source_is_told_apart_from_a_mode_that_a_person_chose(
    engine_of: EngineOf, mode: Mode, lowered: float
) -> None:
    engine = await engine_of(quick(mode=mode))
    engine.platform.add(age=HOUR)
    await engine.sweep()
    if mode is Mode.APPROVE:
        await engine.approve([(SOURCE, "d1")])
    engine.platform.fates = ["revoked"]
    await engine.until(lambda: engine.platform.revoked, within=HOUR)
    await engine.live(HOUR, step=60)  # and looks are refused as well
    assert engine.metric("automation_retry_lowered") == {(): lowered}
    assert engine.metric("automation_retry_mode") == {("approve",): 1.0}
    engine.platform.revoked, engine.platform.well = False, Result.SUCCESS
    await engine.live(HOUR)
    assert set(engine.metric("automation_retry_lowered").values()) == {0.0}


# Who is told to a person


async def test_what_a_policy_gives_to_a_person_is_told_once_whatever_restarts(engine_of: EngineOf) -> None:
    by = rules(
        policy({"workflow.id": "w1"}, name="e", action=Action.ESCALATE),
        policy({"workflow.id": "w2"}, name="q", action=Action.QUARANTINE),
        policy({"workflow.id": "w3"}, name="i", action=Action.IGNORE),
    )
    engine = await engine_of(by)
    assert engine.metric(ESCALATIONS) == {("e", "policy"): 0.0, ("q", "policy"): 0.0}
    for name in ("w1", "w1", "w2", "w3", "w4"):
        engine.platform.add(name)
    for _ in range(2):
        await engine.live(300)
        assert engine.metric(ESCALATIONS) == {("e", "policy"): 2.0, ("q", "policy"): 1.0}
        await engine.restart()
        assert engine.metric(ESCALATIONS) == {("e", "policy"): 2.0, ("q", "policy"): 1.0}


@pytest.mark.parametrize("exhausted", [Action.QUARANTINE, Action.ESCALATE])
async def test_what_is_used_up_is_told_once_and_again_after_a_release(engine_of: EngineOf, exhausted: Action) -> None:
    one = policy(retries=1, exhausted=exhausted, backoff=replace(PLAIN, first=60.0))
    engine = await engine_of(rules(one, sources=ROOMY))
    engine.platform.add()
    told = [0.0]

    def follow() -> bool:
        told.append(engine.metric(ESCALATIONS)["p", "exhausted"])
        return told[-1] != told[0]

    await engine.until(follow, within=DAY)
    assert len(engine.platform.calls) == 1
    open_at_that = engine.book.open_of(SOURCE)
    assert open_at_that == [], "the last retry on its way has not failed yet"
    await engine.restart()
    await engine.live(HOUR)
    assert engine.metric(ESCALATIONS) == {("p", "exhausted"): 1.0, ("p", "held"): 0.0}
    await engine.release((SOURCE, "d1"))
    await engine.live(HOUR)
    assert len(engine.platform.calls) == 2
    assert engine.metric(ESCALATIONS) == {("p", "exhausted"): 2.0, ("p", "held"): 0.0}


@pytest.mark.parametrize("mode", Mode)
async def test_a_retry_that_nobody_can_judge_is_told_in_any_mode(engine_of: EngineOf, mode: Mode) -> None:
    engine = await engine_of(quick(), replace(EACH, absence=None))
    for _ in range(2):
        engine.platform.add("w1", age=HOUR)
    engine.platform.fates_of["d1"] = ["cut before"]
    engine.platform.well = Result.SUCCESS
    await engine.until(lambda: bool(engine.platform.calls or engine.platform.met), within=HOUR)
    await engine.restart(quick(mode=mode))
    await engine.until(lambda: [r.state for r in engine.book.open_of(SOURCE)] == [RetryState.HELD], within=DAY)
    await engine.live(HOUR)
    assert engine.metric(ESCALATIONS) == {("p", "exhausted"): 0.0, ("p", "held"): 1.0}
    await engine.hold((SOURCE, "d1"))
    await engine.live(120)
    assert engine.metric(ESCALATIONS) == {("p", "exhausted"): 0.0, ("p", "held"): 1.0}


async def test_what_the_platform_forbids_is_told_and_what_a_person_puts_aside_is_not(engine_of: EngineOf) -> None:
    engine = await engine_of(quick())
    forbidden, aside = engine.platform.add("w1", age=HOUR), engine.platform.add("w2", age=20 * DAY)
    engine.platform.fates_of[forbidden.id] = ["403"]
    await engine.sweep()
    await engine.hold((SOURCE, aside.id))
    await engine.live(HOUR)
    assert engine.metric(ESCALATIONS) == {("p", "exhausted"): 0.0, ("p", "held"): 1.0}


async def test_what_could_not_be_stored_is_told_once_the_store_works_again(engine_of: EngineOf) -> None:
    engine = await engine_of(rules(policy(name="e", action=Action.ESCALATE)))
    for _ in range(3):
        engine.platform.add()
    await engine.sweep()
    working = engine.ledger.transact

    async def broken(operation: str, script: Any) -> Any:
        if operation != "decide":
            return await working(operation, script)
        script.close()
        raise StoreError("the database refused: disk I/O error")

    engine.ledger.transact = broken  # type: ignore[method-assign]
    for _ in range(3):
        with pytest.raises(StoreError):
            await engine.turn()
    assert engine.metric(ESCALATIONS) == {("e", "policy"): 0.0}
    engine.ledger.transact = working  # type: ignore[method-assign]
    await engine.live(60)
    assert engine.metric(ESCALATIONS) == {("e", "policy"): 3.0}
    assert engine.metric("automation_retry_decisions_total") == {("e", "escalate", "policy"): 3.0}


@pytest.mark.parametrize("mode", [Mode.OFF, Mode.SHADOW])
async def test_where_nothing_is_sent_nobody_is_told(engine_of: EngineOf, mode: Mode) -> None:
    by = rules(policy({"workflow.id": "w1"}, name="e", action=Action.ESCALATE), policy(), mode=mode)
    engine = await engine_of(by)
    engine.platform.add("w1")
    engine.platform.add("w2", age=20 * DAY)
    await engine.live(300)
    assert set(engine.metric(ESCALATIONS).values()) == {0.0}


async def test_whom_a_person_was_told_of_is_forgotten_with_the_root(engine_of: EngineOf) -> None:
    engine = await engine_of(rules(policy(name="e", action=Action.ESCALATE)))
    gone, stays = engine.platform.add("w1"), engine.platform.add("w1")
    await engine.live(60)

    async def rows() -> set[str]:
        def script() -> Script[list[Row]]:
            return (yield "SELECT key FROM retry_state WHERE kind = 'escalated'", ())

        return {key.partition("\0")[0] for (key,) in await engine.ledger.transact("test", script())}

    assert await rows() == {gone.id, stays.id}
    gone.gone = True
    await engine.live(60)
    await engine.book.prune(now=engine.clock.now(), before=engine.clock.now())
    assert await rows() == {stays.id}
    assert engine.metric(ESCALATIONS) == {("e", "policy"): 2.0}
