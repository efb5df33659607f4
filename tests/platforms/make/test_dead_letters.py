"""Dead letters of a simulated organization, compared with what really happened to its incomplete executions."""

from collections import Counter

import orjson
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler

from exporter.model import Blocked, DeadLetter, DeadLetterOpened, DeadLetterResolved, ErrorClass, ResolvedBy
from exporter.platforms.make.reading import dead_letters
from exporter.simulator.make.model import Module
from tests.platforms.make.source import DAY, MINUTE, T0, Source, source

LIST, DETAIL, BUNDLE, ATTEMPTS = "GET /dlqs", "GET /dlqs/{id}", "GET /dlqs/{id}/bundle", "GET /dlqs/{id}/logs"


def letter(made: Source, letter_id: str) -> DeadLetter:
    return made.known.letters[letter_id].dead_letter


def closings(made: Source) -> list[tuple[str, ResolvedBy]]:
    return [(c.dead_letter.id, c.by) for c in made.known.changes if isinstance(c, DeadLetterResolved)]


async def retry(made: Source, letter_id: str) -> None:
    """Somebody presses the button."""
    await made.api.post("/api/v2/dlqs/{id}/retry", lane=dead_letters.LANE, ids={"id": letter_id})


# What is open


async def test_after_many_sweeps_what_is_open_is_what_is_really_open_with_its_cause_and_run() -> None:
    async with source(workflows=25) as made:
        assert await made.sweep() == []
        await made.rounds(15)
        made.restart()
        assert await made.rounds(15) == []
        really = made.sim.world.dead_letters
        assert made.known.open_dead_letters() == made.sim.truth().open_dead_letters()
        assert made.known.open_dead_letters().total() > 10
        for found in made.known.dead_letters.values():
            item = really[found.id]
            assert found.error is not None
            assert (found.error.type, found.error.error_class) == (item.error.name, item.error.error_class)
            assert found.error.step_type == f"{item.error.module.app}:{item.error.module.name}"
            assert (found.run_id, found.opened_at) == (item.execution_id, item.created_at)
            assert found.native_retry is not None


async def test_what_was_closed_says_when_and_by_whom() -> None:
    async with source(workflows=25) as made:
        await made.sweep()
        await made.rounds(100)
        closed = [entry.dead_letter for entry in made.known.letters.values() if not entry.dead_letter.is_open]
        assert len(closed) > 10
        for found in closed:
            item = made.sim.world.dead_letters[found.id]
            assert item.resolved_at is not None
            if item.state == "resolved":
                by = ResolvedBy.PLATFORM if item.logs[-1].kind == "auto" else ResolvedBy.MANUAL
                assert (found.resolved_at, found.resolved_by) == (item.resolved_at, by)
            else:
                assert found.resolved_by is ResolvedBy.MANUAL
                assert item.resolved_at <= (found.resolved_at or 0.0) <= item.resolved_at + 400
        assert {found.resolved_by for found in closed} == {ResolvedBy.PLATFORM, ResolvedBy.MANUAL}


async def test_each_is_counted_as_opened_once_and_not_if_it_opened_before_the_first_sweep() -> None:
    async with source() as made:
        workflow = made.sim.add_workflow()
        before = made.sim.add_dead_letter(workflow, error="DataError")
        await made.clock.advance(1)
        await made.sweep()
        assert letter(made, before).error is not None
        assert made.known.opened_dead_letters() == []
        after = made.sim.add_dead_letter(workflow, error="DataError")
        await made.rounds(3)
        assert made.known.opened_dead_letters() == [after]


async def test_more_items_than_a_page_are_all_read() -> None:
    async with source() as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        for _ in range(60):
            made.sim.add_dead_letter(workflow)
        made.sim.faults.shifting_pages = 1.0
        assert await made.rounds(1) == []
        assert made.asked()[LIST] == 2
        assert made.known.open_dead_letters() == {workflow: 60}
        assert len(made.known.opened_dead_letters()) == 60


async def test_more_items_than_may_be_asked_about_are_open_at_once_and_counted_when_their_cause_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dead_letters, "DETAILS_PER_SWEEP_MAX", 4)
    async with source() as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        for _ in range(10):
            made.sim.add_dead_letter(workflow)
        (fault,) = await made.rounds(1)
        assert fault.kind == "truncated"
        assert made.known.open_dead_letters() == {workflow: 10}
        assert len(made.known.opened_dead_letters()) == 4
        await made.rounds(1)
        assert await made.rounds(1) == []
        assert len(made.known.opened_dead_letters()) == 10
        assert made.asked()[BUNDLE] == 10


# What it costs


async def test_where_nothing_changed_only_the_numbers_are_read() -> None:
    async with source() as made:
        for _ in range(30):
            made.sim.add_dead_letter(made.sim.add_workflow(), native=False, error="DataError")
        await made.sweep()
        made.asked()
        await made.sweep("dead_letters")
        assert made.asked() == {"GET /scenarios": 1}
        workflow = made.sim.add_workflow()
        made.sim.add_dead_letter(workflow)
        await made.sweep("dead_letters")
        asked = made.asked()
        assert (asked[LIST], asked[DETAIL], asked[BUNDLE]) == (1, 1, 1)


async def test_a_long_list_that_grows_with_every_sweep_is_not_read_with_every_sweep() -> None:
    async with source() as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        for _ in range(1000):
            made.sim.add_dead_letter(workflow, native=False)
        await made.rounds(1)
        made.asked()
        for _ in range(20):
            made.sim.add_dead_letter(workflow, native=False)
            await made.rounds(1)
        assert made.asked()[LIST] <= 10 * 21
        assert len(made.known.dead_letters) >= 1017


async def test_lists_are_read_again_in_turn_even_if_their_number_stays_the_same() -> None:
    async with source() as made:
        workflow = made.sim.add_workflow()
        first = made.sim.add_dead_letter(workflow, native=False, outcomes=("success",))
        await made.sweep()
        second = made.sim.add_dead_letter(workflow, native=False)
        await retry(made, first)
        await made.rounds(4)
        assert set(made.known.dead_letters) == {first}  # one closed, one opened: nobody could see it
        await made.rounds(2)
        assert set(made.known.dead_letters) == {second}
        assert closings(made) == [(first, ResolvedBy.MANUAL)]


async def test_one_that_opened_and_closed_between_two_readings_is_counted_with_its_class() -> None:
    async with source() as made:
        workflow = made.sim.add_workflow()
        made.sim.add_dead_letter(workflow, native=False)
        await made.clock.advance(1)
        await made.sweep()
        short = made.sim.add_dead_letter(workflow, error="RateLimitError", native=False, outcomes=("success",))
        await retry(made, short)
        await made.rounds(7)
        opened = [c for c in made.known.changes if isinstance(c, DeadLetterOpened)]
        assert [(c.dead_letter.id, c.error_class) for c in opened] == [(short, ErrorClass.THROTTLED)]
        assert closings(made) == [(short, ResolvedBy.MANUAL)]
        made.asked()
        made.restart()
        made.sim.add_dead_letter(workflow, native=False)
        await made.rounds(1)
        assert made.asked()[ATTEMPTS] == 0  # what was told stays told


async def test_a_number_that_comes_late_is_followed_when_it_comes() -> None:
    async with source(dlq_count_lag=90.0) as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        found = made.sim.add_dead_letter(workflow)
        await made.rounds(1)
        assert not made.known.dead_letters
        await made.rounds(1)
        assert set(made.known.dead_letters) == {found}


# What is closed


@pytest.mark.parametrize("listed", [True, False], ids=["still listed", "no longer listed"])
@pytest.mark.parametrize("native", [True, False], ids=["by the platform", "by hand"])
async def test_a_resolved_item_is_closed_by_whoever_did_it(listed: bool, native: bool) -> None:
    async with source(resolved_listed=listed) as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        found = made.sim.add_dead_letter(workflow, native=native, outcomes=("success",))
        await made.rounds(1, every=30)
        assert letter(made, found).native_retry == (T0 + 30, native)
        if not native:
            await retry(made, found)
        await made.rounds(2)
        closed = letter(made, found)
        assert closed.resolved_at == made.sim.world.dead_letters[found].resolved_at
        assert closed.resolved_by is (ResolvedBy.PLATFORM if native else ResolvedBy.MANUAL)
        assert len(made.known.opened_dead_letters()) == 1


@pytest.mark.parametrize(("kept_for", "by"), [(DAY, ResolvedBy.MANUAL), (0.0, ResolvedBy.UNKNOWN)])
async def test_an_item_that_says_it_was_deleted_was_so_by_hand_and_of_one_that_is_gone_nobody_knows(
    kept_for: float, by: ResolvedBy
) -> None:
    async with source(kept_for=kept_for) as made:
        workflow = made.sim.add_workflow()
        deleted, kept = (made.sim.add_dead_letter(workflow, native=False) for _ in range(2))
        await made.sweep()
        item = made.sim.world.dead_letters[deleted]
        made.sim.world.close(item, made.clock.now(), "deleted")
        await made.rounds(1)
        assert closings(made) == [(deleted, by)]
        assert set(made.known.dead_letters) == {kept}


@pytest.mark.parametrize("told", [True, False], ids=["with-all", "without"])
async def test_an_item_that_goes_with_the_accounts_retention_has_expired(told: bool) -> None:
    """Data is lost, which nobody repaired: by its age, whether or not the scenario counts such items."""

    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        found = await handler(request)
        if told or not request.path.endswith("/scenarios"):
            return found
        body = orjson.loads(str(getattr(found, "text", "")))
        for row in body["scenarios"]:
            row.pop("allDlqCount", None)
        return web.json_response(body)

    async with source(dead_letters_kept=30 * DAY, before=web.middleware(answer)) as made:
        workflow = made.sim.add_workflow()
        old = made.sim.add_dead_letter(workflow, native=False)
        await made.sweep()
        await made.clock.advance(29.9 * DAY)
        young = made.sim.add_dead_letter(workflow, native=False)
        await made.sweep()
        await made.clock.advance(0.2 * DAY)
        await made.sweep()
        assert closings(made) == [(old, ResolvedBy.EXPIRED)]
        assert set(made.known.dead_letters) == {young}


async def test_an_item_that_only_the_number_of_all_remembers_has_expired_whatever_its_age() -> None:
    """The license says nothing of a retention that ends early, but dlqCount falls and allDlqCount does not."""
    async with source(dead_letters_kept=2 * DAY, kept_for=0.0) as made:
        workflow = made.sim.add_workflow()
        lost = made.sim.add_dead_letter(workflow, native=False)
        await made.sweep()
        made.restart()
        await made.clock.advance(DAY)
        deleted = made.sim.add_dead_letter(workflow, native=False)
        await made.sweep()
        await made.clock.advance(DAY + 1)
        made.sim.delete_dead_letter(deleted)
        await made.sweep()
        assert closings(made) == [(lost, ResolvedBy.EXPIRED), (deleted, ResolvedBy.UNKNOWN)]
        later = made.sim.add_dead_letter(workflow, native=False)
        await made.rounds(1)
        made.sim.delete_dead_letter(later)
        await made.rounds(1)
        assert closings(made)[2:] == [(later, ResolvedBy.UNKNOWN)]


async def test_the_module_that_failed_is_named_from_the_blueprint_frozen_in_the_dead_letter() -> None:
    async with source() as made:
        workflow = made.sim.add_workflow()
        scenario = made.sim.world.scenarios[int(workflow)]
        before = scenario.modules
        await made.sweep()
        first = made.sim.add_dead_letter(workflow, native=False)
        await made.clock.advance(1)
        await made.sweep()
        second = made.sim.add_dead_letter(workflow, native=False)
        await made.clock.advance(1)
        made.sim.edit_workflow(workflow, modules=tuple(Module(m.id, "other", f"Other{m.id}") for m in before))
        await made.clock.advance(1)
        third = made.sim.add_dead_letter(workflow, native=False)
        made.asked()
        await made.rounds(1)
        old = f"{before[1].app}:{before[1].name}"
        named = [getattr(letter(made, found).error, "step_type", None) for found in (first, second, third)]
        assert named == [old, old, "other:Other2"]
        assert made.asked()["GET /dlqs/{id}/blueprint"] == 1


async def test_the_items_of_a_deleted_scenario_are_closed_one_by_one() -> None:
    async with source() as made:
        workflow = made.sim.add_workflow()
        found = [made.sim.add_dead_letter(workflow, native=False) for _ in range(3)]
        await made.sweep()
        made.sim.delete_workflow(workflow)
        assert await made.rounds(1) == []
        assert sorted(closings(made)) == sorted((i, ResolvedBy.UNKNOWN) for i in found)
        made.asked()
        await made.rounds(1)
        assert made.asked()[LIST] == 0


async def test_an_item_its_list_lacks_is_open_until_it_says_otherwise_itself() -> None:
    async with source() as made:
        workflow = made.sim.add_workflow()
        found = made.sim.add_dead_letter(workflow, native=False)
        await made.sweep()
        scenario = made.sim.world.scenarios[int(workflow)]
        hidden, scenario.dead_letters = scenario.dead_letters, []
        scenario.open_items = 0
        made.asked()
        assert await made.rounds(1) == []
        assert made.asked()[DETAIL] == 1
        assert set(made.known.dead_letters) == {found}
        scenario.dead_letters, scenario.open_items = hidden, 1
        await made.rounds(1)
        assert closings(made) == []


async def test_a_retry_that_breaks_elsewhere_closes_one_and_opens_another() -> None:
    async with source() as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        first = made.sim.add_dead_letter(workflow, native=False, outcomes=("other_module",))
        await made.rounds(1)
        await retry(made, first)
        await made.rounds(7)
        (second,) = made.known.dead_letters
        assert closings(made) == [(first, ResolvedBy.MANUAL)]
        assert made.known.opened_dead_letters() == [first, second]
        assert letter(made, first).resolved_at == made.sim.world.dead_letters[first].resolved_at


async def test_tries_that_failed_are_seen() -> None:
    async with source() as made:
        workflow = made.sim.add_workflow()
        found = made.sim.add_dead_letter(workflow, native=False, outcomes=("failure",))
        await made.sweep()
        await retry(made, found)
        await made.rounds(6)
        assert letter(made, found).tries == 1
        assert letter(made, found).is_open


# What fails


async def test_a_bundle_that_cannot_be_read_is_asked_for_again_and_in_the_end_the_reason_has_to_do() -> None:
    async with source() as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        found = made.sim.add_dead_letter(workflow, error="ModuleTimeoutError", native=False)
        await made.clock.advance(MINUTE)
        for number in range(dead_letters.TRIES_MAX):
            assert letter_error(made, found) is None
            made.sim.fail_next(*["duplicates"] * 3, "ok_html")  # the numbers, the list, the detail, and then the bundle
            faults = await made.sweep("dead_letters")
            assert [f.kind for f in faults] == (["bad_payload"] if number < dead_letters.TRIES_MAX - 1 else [])
        assert letter_error(made, found) == (None, ErrorClass.TIMEOUT)
        assert made.known.opened_dead_letters() == [found]


def letter_error(made: Source, letter_id: str) -> tuple[str | None, ErrorClass] | None:
    found = made.known.dead_letters.get(letter_id)
    return None if found is None or found.error is None else (found.error.type, found.error.error_class)


async def test_with_everything_going_wrong_now_and_then_nothing_is_closed_that_is_open() -> None:
    async with source(workflows=25) as made:
        await made.sweep()
        for fault, probability in {"ok_html": 0.05, "missing_fields": 0.1, "null_numbers": 0.1}.items():
            setattr(made.sim.faults, fault, probability)
        for _ in range(20):
            await made.clock.advance(MINUTE)
            made.sim.fail_next("duplicates")  # the numbers can be read
            await made.sweep("dead_letters")
            really = {i for i, d in made.sim.world.dead_letters.items() if d.resolved_at is not None}
            assert {found for found, _ in closings(made)} <= really
        for fault in ("ok_html", "missing_fields", "null_numbers"):
            setattr(made.sim.faults, fault, 0.0)
        assert await made.rounds(8) == []
        assert made.known.open_dead_letters() == made.sim.truth().open_dead_letters()


async def test_one_list_that_cannot_be_read_costs_its_scenario_only() -> None:
    async with source() as made:
        workflows = [made.sim.add_workflow() for _ in range(3)]
        await made.sweep()
        for workflow in workflows:
            made.sim.add_dead_letter(workflow)
        made.sim.fail_next("duplicates", "truncated")
        (fault,) = await made.sweep("dead_letters")
        assert (fault.kind, fault.workflow_id) == ("bad_payload", workflows[0])
        assert made.known.open_dead_letters() == Counter(workflows[1:])
        assert await made.sweep("dead_letters") == []
        assert made.known.open_dead_letters() == Counter(workflows)


async def test_scenarios_left_out_have_no_dead_letters() -> None:
    async with source(config={"include": ["Orders*"]}) as made:
        for name in ("Orders", "Others"):
            made.sim.add_dead_letter(made.sim.add_workflow(name=name))
        await made.sweep()
        assert made.asked()[LIST] == 1
        assert len(made.known.dead_letters) == 1


# What they stop


async def test_a_sequential_scenario_with_a_dead_letter_is_blocked_until_it_is_closed() -> None:
    async with source() as made:
        ordered, other = made.sim.add_workflow(sequential=True), made.sim.add_workflow()
        found = made.sim.add_dead_letter(ordered, native=False, outcomes=("success",))
        made.sim.add_dead_letter(other, native=False)
        await made.sweep()
        assert made.asked()["GET /scenarios/{id}/blueprint"] == 2
        standing = made.known.workflows
        assert (standing[ordered].ordered, standing[ordered].blocked) == (True, Blocked.DEAD_LETTERS)
        assert (standing[other].ordered, standing[other].blocked) == (False, None)
        await made.rounds(2)
        assert made.asked()["GET /scenarios/{id}/blueprint"] == 0
        await retry(made, found)
        await made.rounds(2)
        assert (made.known.workflows[ordered].ordered, made.known.workflows[ordered].blocked) == (True, None)
