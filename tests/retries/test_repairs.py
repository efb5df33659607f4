"""Repairs other than a retry: asked for on a plan, called once whatever breaks, read until it is proven."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from exporter.model import Result, Via, Workflow
from exporter.model.ledger import Batch
from exporter.model.repairs import RepairAction
from exporter.model.retries import Mode, Outcome, Reason
from exporter.retries import repair_protocol as protocol
from exporter.retries.control import ControlError
from exporter.retries.operations import UNDO_SECONDS, Selection
from exporter.store.script import StoreError
from exporter.wire.errors import ApiError, ErrorKind
from tests.postgres import look
from tests.retries.made import DAY, HOUR, SERIAL, quick, rules
from tests.retries.repairing import ACTIONS, RepairEngine
from tests.retries.world import SOURCE

MINUTE = 60.0
AS_LETTER = ("discard", "fix-and-retry", "rerun")
EngineOf = Callable[..., Awaitable[RepairEngine]]


@pytest.fixture
async def engine_of(tmp_path: Path, url: str) -> AsyncIterator[EngineOf]:
    made: list[RepairEngine] = []

    async def engine_of(letters: int = 1, **how: Any) -> RepairEngine:
        """With so many dead letters that wait for approval, and a run that hangs."""
        folder = tmp_path / str(len(made))
        folder.mkdir()
        grant = how.pop("grant", list(ACTIONS))
        engine = RepairEngine(folder, how.pop("rules", rules(mode=Mode.APPROVE)), url=None if made else url, **how)
        engine.grant = grant
        made.append(engine)
        await engine.start()
        await engine.sweep()
        for _ in range(letters):
            engine.platform.add("w1", age=HOUR)
        await engine.sweep()
        await observe(engine, engine.add_run("hangs"))
        await engine.turn()
        return engine

    yield engine_of
    for engine in made:
        await engine.stop()
        assert engine.platform.problems == engine.repairs.problems == []


async def observe(engine: RepairEngine, *observations: Any) -> None:
    now = engine.clock.now()
    batch = Batch(source=SOURCE, observations=observations, via=Via.POLL, now=now, started_at=now, stream="runs")
    await engine.ledger.ingest(batch)


def subject(action: str) -> str:
    return {"stop": "hangs", "reactivate": "w1"}.get(action, "d1")


# What can be asked for


@pytest.mark.parametrize("action", ACTIONS)
async def test_what_is_not_granted_is_an_error_that_names_the_key_and_makes_no_request(
    engine_of: EngineOf, action: str
) -> None:
    engine = await engine_of(grant=[other for other in ACTIONS if other != action])
    with pytest.raises(ControlError, match=f"^{action} is not granted: add it to sources.s.grant in the config$"):
        await engine.begin(action, subject(action))
    assert (engine.repairs.reads, engine.repairs.requests, engine.operations.newest()) == (0, [], [])


@pytest.mark.parametrize("action", ACTIONS)
async def test_it_is_planned_first_and_done_once_after_the_time_to_take_it_back(
    engine_of: EngineOf, action: str
) -> None:
    engine = await engine_of()
    tried = await engine.begin(action, subject(action), dry_run=True)
    plan = {"of": f"s/{subject(action)}", "does": f"{action} {subject(action)}", "changes": ["module 3: url"]}
    assert (tried["dry_run"], tried["operation"], tried["plans"]) == (True, None, [plan])
    assert engine.operations.newest() == []
    begun = await engine.begin(action, subject(action), at_once=False)
    assert begun["starts_at"] == engine.clock.now() + UNDO_SECONDS
    await engine.round()
    assert engine.repairs.requests == []
    assert engine.states() == {subject(action): ("waiting", "")}
    await engine.round(UNDO_SECONDS, step=UNDO_SECONDS)
    assert engine.repairs.requests == [(action, [subject(action)])]
    await engine.round(HOUR)
    assert len(engine.repairs.requests) == 1
    state, _ = engine.states()[subject(action)]
    assert state == ("waiting" if action == "fix-and-retry" else "done")


@pytest.mark.parametrize("action", ACTIONS)
async def test_what_is_cancelled_before_it_is_sent_is_not_sent(engine_of: EngineOf, action: str) -> None:
    engine = await engine_of()
    begun = await engine.begin(action, subject(action), at_once=False)
    assert await engine.operations.cancel(begun["operation"], who="bob") == {
        "operation": begun["operation"],
        "cancelled": 1,
    }
    await engine.restart()
    await engine.round(HOUR)
    assert engine.repairs.requests == []
    assert engine.states() == {subject(action): ("cancelled", "cancelled by bob")}
    assert engine.newest.operation.cancelled_by == "bob"
    await engine.begin(action, subject(action))  # nothing of it is left in the way
    await engine.round()
    assert len(engine.repairs.requests) == 1


@pytest.mark.parametrize("action", [a for a in ACTIONS if a != "discard"])
@pytest.mark.parametrize("by", ["policy", "group", "between"])
async def test_all_but_a_discard_takes_names_only(engine_of: EngineOf, action: str, by: str) -> None:
    engine = await engine_of()
    given: dict[str, Any] = {"policy": "p", "group": "g", "between": (0.0, engine.clock.now())}
    with pytest.raises(ControlError, match="by name: SOURCE/"):
        await engine.begin(action, selection=Selection(**{by: given[by]}))
    assert engine.repairs.reads == 0


async def test_a_group_is_discarded_as_the_list_it_was(engine_of: EngineOf) -> None:
    engine = await engine_of(4)
    (group,) = engine.operations.groups()
    begun = await engine.begin("discard", selection=Selection(group=group.id), at_once=False)
    assert begun["count"] == 4
    engine.platform.add("w1", age=MINUTE)
    await engine.sweep()
    assert engine.operations.new_since(engine.newest) == 0  # it opened before that; it is not in the list all the same
    await engine.round(UNDO_SECONDS, step=UNDO_SECONDS)
    await engine.sweep()
    assert engine.repairs.requests == [("discard", ["d1", "d2", "d3"]), ("discard", ["d4"])]
    assert {state for state, _ in engine.states().values()} == {"done"}
    assert engine.letter("d5") is not None
    assert all(engine.letter(name) is None for name in ("d1", "d2", "d3", "d4"))


async def test_fifty_at_most(engine_of: EngineOf) -> None:
    engine = await engine_of(51)
    with pytest.raises(ControlError, match="these are 51; discard takes 50 at most"):
        await engine.begin("discard", *(f"d{n}" for n in range(1, 52)))
    assert engine.repairs.reads == 0


async def test_what_a_plan_refuses_is_listed_and_left_alone(engine_of: EngineOf) -> None:
    engine = await engine_of(2)
    engine.repairs.refusals["d1"] = "it is resolved already"
    begun = await engine.begin("discard", "d1", "d2")
    assert (begun["dead_letters"], begun["refused"]) == (["s/d2"], ["s/d1: it is resolved already"])
    await engine.round()
    assert engine.repairs.requests == [("discard", ["d2"])]
    assert engine.states()["d1"] == ("refused", "it is resolved already")
    with pytest.raises(ControlError, match="s/d1: it is resolved already"):
        await engine.begin("discard", "d1")


@pytest.mark.parametrize("action", ACTIONS)
async def test_of_one_thing_one_repair_is_open_at_a_time(engine_of: EngineOf, action: str) -> None:
    engine = await engine_of()
    engine.repairs.fates = ["lost"]
    begun = await engine.begin(action, subject(action))
    others = AS_LETTER if action in AS_LETTER else (action,)
    for _ in range(2):
        for other in others:
            with pytest.raises(ControlError, match=f"a {action} of it is open, operation {begun['operation']}"):
                await engine.begin(other, subject(action))
        await engine.round()
        await engine.restart()


async def test_of_two_that_begin_at_once_one_is_refused(engine_of: EngineOf) -> None:
    engine = await engine_of()
    inner = engine.repairs.plan

    async def meanwhile(case: Any) -> Any:
        engine.repairs.plan = inner  # type: ignore[method-assign]
        await engine.begin("fix-and-retry", "d1")
        return await inner(case)

    engine.repairs.plan = meanwhile  # type: ignore[method-assign]
    await engine.begin("discard", "d1")
    stood = {state.operation.action.value: state.items[0].state for state in engine.operations.newest()}
    assert stood == {"fix-and-retry": "waiting", "discard": "refused"}
    await engine.round()
    assert [action for action, _ in engine.repairs.requests] == ["fix-and-retry"]


@pytest.mark.parametrize("action", AS_LETTER)
async def test_not_while_a_retry_is_open_and_no_retry_while_it_is(engine_of: EngineOf, action: str) -> None:
    engine = await engine_of(rules=quick())  # retries go by themselves
    engine.platform.fates = ["late"]
    await engine.sweep()
    await engine.turn()
    [retry] = engine.book.open_of(SOURCE)
    with pytest.raises(ControlError, match=f"its retry {retry.id} is "):
        await engine.begin(action, "d1")
    other = engine.platform.add("w1", age=30.0).id
    await engine.sweep()
    await engine.begin(action, other)  # not due for a retry yet
    engine.repairs.fates = ["lost"]
    await engine.live_on(10 * MINUTE)
    assert {one.dead_letter_id for one in engine.retries()} == {"d1"}
    decision = engine.book.decisions[SOURCE, other]
    assert (decision.reason, decision.detail.partition(",")[0]) == (
        Reason.HELD,
        f"hold by engine: a {action} of it is open",
    )
    with pytest.raises(ControlError, match="nothing holds it"):
        await engine.release((SOURCE, other))
    with pytest.raises(ControlError, match=f"a {action} of it is open"):
        await engine.retry_now((SOURCE, other))


async def test_what_runs_a_workflow_anew_is_alone_in_it(engine_of: EngineOf) -> None:
    engine = await engine_of(rules=quick(), traits=SERIAL)
    other = engine.platform.add("w1", age=30.0).id
    elsewhere = engine.platform.add("w2", age=30.0).id
    await engine.sweep()
    engine.platform.fates = ["late"]
    await engine.turn()
    [retry] = engine.book.open_of(SOURCE)
    assert retry.dead_letter_id == "d1"
    await engine.begin("rerun", other)
    await engine.begin("rerun", elsewhere)
    engine.repairs.fates = ["late"]
    await engine.repairer.repair_once()
    assert engine.repairs.requests == [("rerun", [elsewhere])]
    assert engine.states()[other] == ("waiting", f"another dead letter's retry {retry.id} is {retry.state}")
    engine.platform.add("w2", age=30.0)
    await engine.live_on(HOUR)
    assert ("rerun", [other]) in engine.repairs.requests
    first = next(at for at, letter, _ in engine.platform.calls if engine.platform.items[letter].workflow_id == "w2")
    assert first >= engine.repairs.done["rerun", elsewhere]


async def test_two_reruns_of_a_workflow_come_one_after_the_other(engine_of: EngineOf) -> None:
    engine = await engine_of(2, traits=SERIAL)
    engine.repairs.fates = ["late"]
    await engine.begin("rerun", "d1", "d2")
    await engine.round(2 * MINUTE)
    assert engine.repairs.requests == [("rerun", ["d1"])]
    assert engine.states()["d2"][1].startswith("another rerun of its workflow is open")
    await engine.round(15 * MINUTE)
    assert engine.repairs.requests == [("rerun", ["d1"]), ("rerun", ["d2"])]


async def test_while_paused_nothing_is_sent_and_what_is_not_sent_in_a_day_is_void(engine_of: EngineOf) -> None:
    engine = await engine_of(2)
    await engine.begin("discard", "d1")
    await engine.control.pause(SOURCE, seconds=HOUR, who="ann")
    await engine.round(HOUR - MINUTE)
    assert engine.repairs.requests == []
    await engine.round(2 * MINUTE)
    assert engine.repairs.requests == [("discard", ["d1"])]
    await engine.begin("discard", "d2")
    await engine.control.pause(None, seconds=3 * DAY, who="ann")
    await engine.round(DAY + HOUR, step=HOUR)
    assert engine.states()["d2"] == ("void", "its time was up before its turn came")
    assert not [o for o in engine.book.overrides.holding(engine.clock.now()) if o.snapshot.get("repair")]


# What may have changed between plan and call


@pytest.mark.parametrize("action", ACTIONS)
async def test_what_changed_since_the_plan_is_refused_without_a_call(engine_of: EngineOf, action: str) -> None:
    engine = await engine_of()
    await engine.begin(action, subject(action), at_once=False)
    engine.repairs.edits[subject(action)] += 1
    await engine.round(MINUTE)
    assert engine.repairs.requests == []
    assert engine.states()[subject(action)] == ("refused", "it changed since the plan was made: ask for it again")


@pytest.mark.parametrize("meanwhile", ["cancelled", "paused", "resolved", "retried"])
async def test_what_happens_between_the_last_look_and_the_call_is_heeded(engine_of: EngineOf, meanwhile: str) -> None:
    engine = await engine_of()
    begun = await engine.begin("discard", "d1")
    inner = engine.repairs.plan

    async def slow(case: Any) -> Any:
        found = await inner(case)
        engine.repairs.plan = inner  # type: ignore[method-assign]
        if meanwhile == "cancelled":
            await engine.operations.cancel(begun["operation"], who="bob")
        elif meanwhile == "paused":
            await engine.control.pause(SOURCE, seconds=HOUR, who="bob")
        elif meanwhile == "resolved":
            engine.platform.items["d1"].gone = True
            await engine.sweep()
        else:  # the hold ended somehow
            await engine.book.end(engine.book.overrides.holding(engine.clock.now()), who="bob", now=engine.clock.now())
            engine.platform.fates = ["late"]
            await engine.retry_now((SOURCE, "d1"))
            await engine.turn()
            assert engine.book.open_of(SOURCE)
        return found

    engine.repairs.plan = slow  # type: ignore[method-assign]
    await engine.repairer.repair_once()
    assert engine.repairs.requests == []
    assert engine.states()["d1"][0] == ("cancelled" if meanwhile == "cancelled" else "waiting")


async def test_what_is_resolved_meanwhile_is_void(engine_of: EngineOf) -> None:
    engine = await engine_of(2)
    await engine.begin("discard", "d1", "d2", at_once=False)
    engine.platform.items["d1"].gone = True
    await engine.sweep()
    await engine.round(MINUTE)
    assert engine.repairs.requests == [("discard", ["d2"])]
    assert engine.states()["d1"] == ("void", "it is resolved")


async def test_what_the_adapter_finds_stale_is_refused_and_what_did_not_leave_is_tried_again(
    engine_of: EngineOf,
) -> None:
    engine = await engine_of(2)
    engine.repairs.fates = ["stale"]
    await engine.begin("discard", "d1")
    await engine.round()
    assert engine.states()["d1"] == ("refused", "it was edited since the plan was made")
    engine.repairs.fates = ["not sent", "not sent"]
    await engine.begin("discard", "d2")
    await engine.round()
    state, detail = engine.states()["d2"]
    assert (state, "no connection" in detail) == ("waiting", True)
    await engine.restart()
    await engine.round(5 * MINUTE)
    assert engine.repairs.requests == [("discard", ["d2"])]
    assert engine.states()["d2"][0] == "done"


async def test_a_platform_that_cannot_be_read_costs_time_only(engine_of: EngineOf) -> None:
    engine = await engine_of()
    await engine.begin("discard", "d1", at_once=False)
    engine.repairs.unwell = ApiError(ErrorKind.AUTH, endpoint="GET /it", detail="no", status=401)
    await engine.round(5 * MINUTE)
    state, detail = engine.states()["d1"]
    assert (state, detail.partition(":")[0]) == ("waiting", "not seen")
    engine.repairs.unwell = None
    engine.repairs.fates = ["cut after"]
    await engine.round(2 * MINUTE)
    engine.repairs.unwell = ApiError(ErrorKind.UNAVAILABLE, endpoint="GET /it", detail="down", status=502)
    await engine.round(2 * HOUR)
    engine.repairs.unwell = None
    await engine.round(10 * MINUTE)
    assert engine.states()["d1"][0] == "done"
    assert len(engine.repairs.requests) == 1


async def test_a_grant_that_is_taken_back_stops_what_waits_and_not_what_is_read(engine_of: EngineOf) -> None:
    engine = await engine_of(2)
    engine.repairs.fates = ["late"]
    await engine.begin("discard", "d1")
    await engine.round()
    await engine.begin("discard", "d2", at_once=False)
    engine.grant = []
    await engine.restart()
    await engine.round(10 * MINUTE)
    stood = {item.key: item.state for state in engine.operations.newest() for item in state.items}
    assert stood == {"s/d1": "done", "s/d2": "refused"}
    assert "sources.s.grant" in engine.states()["d2"][1]


# What the call met


@pytest.mark.parametrize("fate", ["ok", "late", "cut after", "500 after", "broke after"])
@pytest.mark.parametrize("action", ACTIONS)
async def test_what_was_done_is_found_whatever_was_answered(engine_of: EngineOf, action: str, fate: Any) -> None:
    engine = await engine_of()
    engine.repairs.fates = [fate]
    await engine.begin(action, subject(action))
    await engine.round(20 * MINUTE)
    assert engine.states()[subject(action)][0] == ("waiting" if action == "fix-and-retry" else "done")
    assert engine.repairs.calls == {(action, subject(action)): 1}


@pytest.mark.parametrize("fate", ["lost", "cut before"])
@pytest.mark.parametrize("action", ACTIONS)
async def test_what_was_not_done_is_not_called_again_by_itself(engine_of: EngineOf, action: str, fate: Any) -> None:
    engine = await engine_of()
    engine.repairs.fates = [fate]
    await engine.begin(action, subject(action))
    await engine.round(protocol.HORIZON - MINUTE)
    assert engine.states()[subject(action)][0] == "open"  # so far it is not done: it may still be
    await engine.round(10 * MINUTE)
    assert len(engine.repairs.requests) == 1
    if action == "rerun":  # a second one would be another run
        assert engine.states()["d1"] == ("unknown", "it is as it was; it may have had an effect")
        with pytest.raises(ControlError, match="it was run again already"):
            await engine.begin(action, "d1")
        return
    assert engine.states()[subject(action)] == ("failed", "it is as it was")
    await engine.begin(action, subject(action))
    await engine.round()
    assert len(engine.repairs.requests) == 2


@pytest.mark.parametrize("status", ["400", "401", "403", "404", "429"])
@pytest.mark.parametrize("action", ACTIONS)
async def test_what_the_platform_refuses_is_refused_once_it_shows(
    engine_of: EngineOf, action: str, status: Any
) -> None:
    engine = await engine_of()
    engine.repairs.fates = [status]
    await engine.begin(action, subject(action))
    await engine.round(20 * MINUTE)
    state, detail = engine.states()[subject(action)]
    assert (state, status in detail) == ("refused", True)
    assert len(engine.repairs.requests) == 1


async def test_items_that_a_good_answer_hides_are_seen_not_to_be_gone(engine_of: EngineOf) -> None:
    engine = await engine_of(3)
    engine.repairs.fates = ["hidden"]
    await engine.begin("discard", "d1", "d2", "d3")
    await engine.round(20 * MINUTE)
    assert {name: state for name, (state, _) in engine.states().items()} == {
        "d1": "done",
        "d2": "failed",
        "d3": "failed",
    }
    assert engine.letter("d2") is not None
    assert engine.repairs.requests == [("discard", ["d1", "d2", "d3"])]


async def test_where_one_spoils_the_call_the_others_go_one_by_one(engine_of: EngineOf) -> None:
    engine = await engine_of(3)
    engine.repairs.bad = {"d2"}
    await engine.begin("discard", "d1", "d2", "d3")
    await engine.round(20 * MINUTE)
    assert {name: state for name, (state, _) in engine.states().items()} == {
        "d1": "done",
        "d2": "refused",
        "d3": "done",
    }
    assert [ids for _, ids in engine.repairs.requests] == [["d1", "d2", "d3"], ["d1"], ["d2"], ["d3"]]
    assert max(engine.repairs.calls.values()) == 1


async def test_an_operation_stops_itself_after_so_many_failures(engine_of: EngineOf) -> None:
    engine = await engine_of(20)  # seven calls, of which a round makes five
    engine.repairs.fates = ["lost"]
    await engine.begin("discard", *(f"d{n}" for n in range(1, 21)), stop_after=2)
    await engine.repairer.repair_once()
    await engine.control.pause(SOURCE, seconds=HOUR, who="ann")
    await engine.round(30 * MINUTE)
    assert engine.newest.counts == {"cancelled": 5, "done": 12, "failed": 3}
    await engine.control.resume(SOURCE, who="ann")
    await engine.round(30 * MINUTE)
    assert len(engine.repairs.requests) == 5


# Crashes


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("fate", ["ok", "cut after", "lost"])
async def test_a_crash_at_any_moment_neither_repeats_nor_forgets_it(
    engine_of: EngineOf, action: str, fate: Any
) -> None:
    ends: set[str] = set()
    names = ["d1", "d2"] if action == "discard" else [subject(action)]
    for chance in range(200):
        engine = await engine_of(2)
        engine.repairs.fates = [fate]

        async def story(engine: RepairEngine = engine) -> None:
            await engine.begin(action, *names)
            await engine.round()
            await engine.round(MINUTE)

        engine.trip.left = chance
        survived = await engine.survive(story())
        engine.trip.left = None
        await engine.round(20 * MINUTE, step=MINUTE)
        assert max(engine.repairs.calls.values(), default=0) <= 1, chance
        operations = engine.operations.newest()
        if not operations:
            assert engine.repairs.requests == []
        for item in (item for state in operations for item in state.items):
            done = (action, item.dead_letter_id) in engine.repairs.done
            expected = "done" if done else "unknown" if action == "rerun" else "failed"
            if done and action == "fix-and-retry":
                expected = "waiting"
            assert item.state == expected, (chance, item)
            ends.add(item.state)
        for state in operations:
            assert (state.operation.ended_at is not None) is not state.is_open
        holds = [o for o in engine.book.overrides.holding(engine.clock.now()) if o.snapshot.get("repair")]
        assert holds == [], chance
        await engine.stop()
        if survived:
            break
    else:
        raise AssertionError("it never came to its end")
    assert chance > 8
    assert ends


@pytest.mark.parametrize("fails_at", range(4))
@pytest.mark.parametrize("action", ACTIONS)
async def test_a_store_that_fails_for_a_moment_costs_no_second_call(
    engine_of: EngineOf, action: str, fails_at: int
) -> None:
    engine = await engine_of()
    await engine.begin(action, subject(action))
    transact, left = engine.ledger.transact, fails_at

    async def failing(operation: str, script: Any) -> Any:
        nonlocal left
        if operation == "repair":
            left -= 1
            if left == -1:
                raise StoreError("the disk is full")
        return await transact(operation, script)

    engine.ledger.transact = failing  # type: ignore[method-assign]
    for _ in range(3):
        with suppress(StoreError):
            await engine.repairer.repair_once()
    await engine.round(2 * MINUTE)
    assert engine.repairs.calls == {(action, subject(action)): 1}
    assert engine.states()[subject(action)][0] == ("waiting" if action == "fix-and-retry" else "done")


async def test_a_stop_waits_for_the_call_that_is_under_way(engine_of: EngineOf) -> None:
    engine = await engine_of()
    await engine.begin("discard", "d1")
    under_way, go_on, inner = asyncio.Event(), asyncio.Event(), engine.repairs.repair

    async def slow(cases: Any, *, send_by: float) -> Any:
        under_way.set()
        await go_on.wait()
        return await inner(cases, send_by=send_by)

    engine.repairs.repair = slow  # type: ignore[method-assign]
    task = asyncio.create_task(engine.repairer.repair_once())
    await under_way.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    engine.repairs.repair = inner  # type: ignore[method-assign]
    [repair] = engine.book.repairs.open_of(SOURCE)
    assert (repair.state, repair.detail) == ("verifying", "the platform took the call")
    await engine.restart()
    await engine.round()
    assert engine.states()["d1"][0] == "done"
    assert engine.repairs.calls == {("discard", "d1"): 1}


# What follows


async def test_a_fix_is_followed_by_a_retry_and_the_retry_tells_the_end(engine_of: EngineOf) -> None:
    engine = await engine_of(rules=rules(mode=Mode.APPROVE))
    engine.platform.items["d1"].refusal = "the scenario was edited since"
    engine.platform.well = Result.SUCCESS
    await engine.begin("fix-and-retry", "d1")
    await engine.live_on(10 * MINUTE)
    assert engine.recovered() == {"d1"}
    [retry] = engine.retries()
    assert (retry.outcome, retry.approved_by, retry.operation) == (
        Outcome.SUCCEEDED,
        "ann",
        engine.newest.operation.id,
    )
    assert engine.states()["d1"][0] == "succeeded"
    assert engine.newest.operation.ended_at is not None
    assert engine.repairs.calls == {("fix-and-retry", "d1"): 1}


async def test_the_retry_after_a_fix_can_still_be_cancelled(engine_of: EngineOf) -> None:
    engine = await engine_of()
    begun = await engine.begin("fix-and-retry", "d1")
    await engine.round()
    assert (await engine.operations.cancel(begun["operation"], who="bob"))["cancelled"] == 1
    await engine.live_on(HOUR)
    assert engine.retries() == []
    assert engine.states()["d1"][0] == "cancelled"


async def test_the_look_before_that_retry_is_told_what_was_fixed(engine_of: EngineOf) -> None:
    engine = await engine_of()
    fixed: list[Any] = []
    look = engine.platform.look

    async def told(target: Any) -> Any:
        fixed.append(target.fixed)
        return await look(target)

    engine.platform.look = told  # type: ignore[method-assign]
    await engine.begin("fix-and-retry", "d1")
    await engine.round()
    await engine.restart()
    await engine.turn()
    assert fixed[0] == {"edits": 0, "tuple": [1, 2]}


async def test_no_fix_where_its_retry_could_never_be_sent(engine_of: EngineOf) -> None:
    engine = await engine_of(rules=rules(mode=Mode.SHADOW))
    with pytest.raises(ControlError, match="the mode is shadow; nothing is sent in it"):
        await engine.begin("fix-and-retry", "d1")
    assert engine.repairs.reads == 0


@pytest.mark.parametrize("answered", [True, False])
async def test_what_a_rerun_makes_descends_from_its_dead_letter(engine_of: EngineOf, answered: bool) -> None:
    engine = await engine_of(traits=SERIAL)
    engine.repairs.rerun_failed = True
    engine.repairs.fates = ["ok" if answered else "cut after"]
    await engine.begin("rerun", "d1")
    await engine.round()
    made = engine.platform.add("w1")
    engine.platform.items["again"] = engine.platform.items.pop(made.id)
    made.id = "again"
    await engine.live_on(5 * MINUTE)
    assert engine.states()["d1"] == ("failed", "run run-again ended as failure")
    assert engine.letter("d1") is None  # the work lives on in the other
    again = engine.letter("again")
    assert again is not None
    assert again.run_id == "run-again"
    assert engine.book.root_of(SOURCE, again) == "d1"
    later = engine.clock.now() + DAY
    await engine.book.prune(now=later, before=later)
    await engine.restart()
    assert engine.book.root_of(SOURCE, again) == "d1"


async def test_a_rerun_whose_answer_was_lost_has_what_begins_then_descend_from_it(engine_of: EngineOf) -> None:
    """Before anything shows: what a call may have made is never one without a past."""
    engine = await engine_of(traits=SERIAL)
    engine.repairs.fates = ["late"]
    await engine.begin("rerun", "d1")
    await engine.round()
    made = engine.platform.add("w1")
    await engine.clock.advance(MINUTE)
    await engine.sweep()
    await engine.turn()
    letter = engine.letter(made.id)
    assert letter is not None
    assert engine.book.root_of(SOURCE, letter) == "d1"


async def test_a_workflow_is_named_by_itself_or_by_a_dead_letter_of_it(engine_of: EngineOf) -> None:
    engine = await engine_of()
    workflow = Workflow(id="off", at=engine.clock.now(), name="Off", enabled=False)
    other = Workflow(id="w2", at=engine.clock.now(), name="Off too", enabled=False)
    await observe(engine, workflow, other)
    await engine.begin("reactivate", "off", "d1")
    await engine.round()
    assert sorted(ids for _, ids in engine.repairs.requests) == [["off"], ["w1"]]
    due = engine.retrier.source.stream_due
    assert any(event.is_set() for event in due.values())
    await engine.begin("reactivate", selection=Selection(workflow=(SOURCE, "w2")), at_once=False)
    assert engine.states()["w2"] == ("waiting", "")


@pytest.mark.parametrize("name", ["gone", "d1"])
async def test_only_a_run_that_is_under_way_can_be_stopped(engine_of: EngineOf, name: str) -> None:
    engine = await engine_of()
    with pytest.raises(ControlError, match=f"s has no run {name} that is under way"):
        await engine.begin("stop", name)
    with pytest.raises(ControlError, match="there is no source nowhere"):
        await engine.begin("stop", selection=Selection(ids=[("nowhere", "hangs")]))


# What is remembered


async def test_the_audit_has_every_step_and_no_secret_of_a_payload(engine_of: EngineOf) -> None:
    engine = await engine_of()
    begun = await engine.begin("discard", "d1", why="a duplicate")
    await engine.round()
    records = await engine.book.audit_of("s/d1")
    said = [(record["kind"], record["who"]) for record in records if "repair" in record]
    assert said == [
        ("repair asked for", "ann"),
        ("repair intent", "ann"),
        ("repair called", "engine"),
        ("repair done", "engine"),
    ]
    assert {record["operation"] for record in records if "repair" in record} == {begun["operation"]}


async def test_what_came_of_it_is_counted(engine_of: EngineOf) -> None:
    engine = await engine_of(2)
    engine.repairs.fates = ["ok", "lost"]
    await engine.begin("discard", "d1")
    await engine.round()
    await engine.begin("discard", "d2")
    await engine.round(20 * MINUTE)
    sql = "SELECT labels FROM tallies WHERE metric = 'automation_repairs_total' AND value = 1.0 ORDER BY labels"
    assert look(engine.url, sql) == [('["discard","done"]',), ('["discard","failed"]',)]


async def test_old_ones_are_forgotten_but_not_those_of_open_dead_letters(engine_of: EngineOf) -> None:
    engine = await engine_of(2)
    await engine.begin("discard", "d1")
    await engine.begin("fix-and-retry", "d2")
    await engine.round()
    later = engine.clock.now() + DAY
    await engine.book.prune(now=later, before=later)
    assert look(engine.url, "SELECT subject_id FROM repairs") == [("d2",)]


async def test_a_clock_that_was_ahead_delays_nothing(engine_of: EngineOf) -> None:
    engine = await engine_of(2)
    await engine.clock.advance(7 * DAY)
    engine.repairs.fates = ["lost"]
    await engine.begin("discard", "d1")
    await engine.round()
    await engine.begin("discard", "d2", at_once=False)
    engine.clock.set_ahead(-7 * DAY)
    await engine.round(20 * MINUTE)
    stood = {item.key: item.state for state in engine.operations.newest() for item in state.items}
    assert stood == {"s/d1": "failed", "s/d2": "done"}


def test_the_actions_of_operations_are_those_of_repairs() -> None:
    from exporter.model.operations import OperationAction

    assert {action.value for action in OperationAction if action.is_repair} == {action.value for action in RepairAction}
