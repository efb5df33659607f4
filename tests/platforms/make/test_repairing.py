"""Discarding, fixing and reactivating on Make: plan, call and proof, against the simulator, over real HTTP."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import orjson
import pytest

from exporter.model import DeadLetter, ResolvedBy
from exporter.model.repairs import Proof, RepairAction
from exporter.platform.repairing import Answered, Case, Effect, Plan, Repairs, case_of
from exporter.platform.retrying import Target
from exporter.platforms.make import PLATFORM
from exporter.platforms.make.mapping import repairs as mapped
from exporter.platforms.make.retrying import MakeRetries
from exporter.simulator.make import modules_of
from exporter.simulator.make.model import Module
from exporter.simulator.repairs import RepairPlan
from exporter.wire.errors import ApiError, ErrorKind
from tests.platforms.make.source import HOUR, Source, source

DISCARD, REACTIVATE, FIX = RepairAction.DISCARD, RepairAction.REACTIVATE, RepairAction.FIX
ALL = ["discard", "reactivate", "fix-and-retry"]
DELETE, PATCH, START = "DELETE /dlqs", "PATCH /dlqs/{id}", r"POST /scenarios/{id}/start"
LATER = (Module(1, "google-sheets", "watchRows"), Module(2, "http", "MakeRequest"), Module(3, "slack", "CreateMessage"))


@dataclass(kw_only=True)
class Bench:
    """A source with one scenario and its repairs."""

    made: Source
    repairs: Repairs
    workflow_id: str

    async def dead_letter(self, **how: Any) -> DeadLetter:
        letter_id = self.made.sim.add_dead_letter(self.workflow_id, **how)
        await self.made.sweep()
        return self.made.known.dead_letters[letter_id]

    async def planned(self, case: Case) -> Case:
        """The case with the mark of a plan that was not refused."""
        plan = await self.repairs.plan(case)
        assert plan.refusal is None, plan
        assert plan.does
        return replace(case, mark=orjson.loads(orjson.dumps(plan.mark)))

    async def send(self, *cases: Case) -> Answered:
        return await self.repairs.repair(cases, send_by=self.made.clock.now() + 10)

    async def failed(self, *cases: Case) -> ApiError:
        with pytest.raises(ApiError) as error:
            await self.send(*cases)
        return error.value

    async def effect(self, case: Case) -> Effect:
        return await self.repairs.verify(replace(case, sent_at=self.made.api.platform_now()))

    def switched_off_by_make(self, reason: str = "Too many consecutive errors") -> Case:
        self.made.sim.stop_workflow(self.workflow_id, reason)
        return Case(action=REACTIVATE, workflow_id=self.workflow_id, id=self.workflow_id)

    def calls(self) -> Counter[str]:
        """Requests that change something, since this was last called."""
        asked = self.made.asked()
        return Counter({key: count for key, count in asked.items() if not key.startswith("GET ")})


@asynccontextmanager
async def bench(
    *, grant: list[str] | None = None, settings: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[Bench]:
    config = {"grant": ALL if grant is None else grant}
    async with source(config=config, **options) as made:
        workflow_id = made.sim.add_workflow(**(settings or {}))
        await made.clock.advance(HOUR)
        await made.sweep()
        assert PLATFORM.repairing is not None
        yield Bench(made=made, repairs=PLATFORM.repairing.connect(made.config, made.api), workflow_id=workflow_id)


def resolved(effect: Effect | Plan) -> ResolvedBy | None:
    [letter] = effect.observations
    assert isinstance(letter, DeadLetter)
    return letter.resolved_by


# Grants


@pytest.mark.parametrize("granted", ALL)
async def test_what_is_not_granted_makes_no_request_at_all(granted: str) -> None:
    async with bench(grant=[granted]) as it:
        letter = await it.dead_letter()
        assert set(it.repairs.granted) == {granted}
        it.made.asked()
        for action in set(RepairAction) - {granted}:
            case = Case(action=action, workflow_id=it.workflow_id, id=letter.id, letter=letter, mark={})
            plan = await it.repairs.plan(case)
            assert plan.refusal == f"it is not granted: add {action} to grant of this source in the config"
            error = await it.failed(case)
            assert (error.sent, error.status) == (False, None)
        assert it.made.asked() == Counter()


async def test_by_default_nothing_is_granted() -> None:
    async with bench(grant=[]) as it:
        assert dict(it.repairs.granted) == {}


async def test_one_call_is_about_one_action_and_one_workflow_and_about_what_was_planned() -> None:
    async with bench() as it:
        one, other = await it.dead_letter(), await it.dead_letter()
        first, second = await it.planned(case_of(DISCARD, one)), await it.planned(case_of(DISCARD, other))
        for wrong in (
            [],
            [first, first],
            [first, replace(second, workflow_id="1")],
            [first, replace(second, action=FIX)],
            [case_of(DISCARD, one)],
            [replace(first, id=str(number)) for number in range(26)],
        ):
            with pytest.raises(ValueError, match=r"one call|was planned"):
                await it.send(*wrong)
        assert it.calls() == Counter()


async def test_an_action_is_done_to_what_it_is_about() -> None:
    async with bench() as it:
        letter = await it.dead_letter()
        workflow = it.made.known.workflows[it.workflow_id]
        assert case_of(REACTIVATE, letter) == case_of(REACTIVATE, workflow)
        for action, about in ((RepairAction.STOP, letter), (DISCARD, workflow), (FIX, workflow)):
            with pytest.raises(ValueError, match="is done to a"):
                case_of(action, about)


# Discard


async def test_dead_letters_are_discarded_by_their_ids_and_each_is_read_afterwards() -> None:
    async with bench() as it:
        spared = await it.dead_letter()
        cases = [await it.planned(case_of(DISCARD, await it.dead_letter())) for _ in range(3)]
        it.made.asked()
        answered = await it.send(*cases)
        assert (dict(answered.handles), answered.said) == ({case.id: None for case in cases}, None)
        assert it.calls() == Counter({DELETE: 1})
        for case in cases:
            effect = await it.effect(case)
            assert (effect.proof, effect.evidence) == (Proof.DONE, "Make says that it is deleted")
            assert resolved(effect) is ResolvedBy.MANUAL
            assert it.made.sim.world.dead_letters[case.id].state == "deleted"
        assert it.made.sim.world.dead_letters[spared.id].state == "stored"


async def test_one_that_is_forgotten_since_was_discarded_too() -> None:
    async with bench() as it:
        case = await it.planned(case_of(DISCARD, await it.dead_letter()))
        await it.send(case)
        await it.made.clock.advance(30 * HOUR)
        effect = await it.effect(case)
        assert (effect.proof, resolved(effect)) == (Proof.DONE, ResolvedBy.MANUAL)


async def test_a_plan_says_that_data_is_lost_and_that_make_would_still_retry() -> None:
    async with bench() as it:
        plan = await it.repairs.plan(case_of(DISCARD, await it.dead_letter(native=True)))
        assert "lost" in plan.does
        assert "Make would still retry it by itself" in plan.does


async def test_a_good_answer_may_hide_what_was_not_deleted() -> None:
    async with bench() as it:
        running, idle = await it.dead_letter(), await it.dead_letter()
        cases = [await it.planned(case_of(DISCARD, letter)) for letter in (running, idle)]
        scenario = it.made.sim.world.scenarios[int(it.workflow_id)]
        scenario.duration = 10_000.0
        it.made.sim.retry_by_person(running.id, outcome="failure")
        await it.made.clock.advance(10)
        answered = await it.send(*cases)
        assert set(answered.handles) == {running.id, idle.id}
        assert answered.said is not None
        assert "could not be deleted" in answered.said
        proofs = [(await it.effect(case)).proof for case in cases]
        assert proofs == [Proof.NOT_DONE, Proof.DONE]


@pytest.mark.parametrize(("fate", "done"), [("some", 1), ("lost", 0)])
async def test_what_was_not_deleted_shows_though_the_answer_does_not_say_so(fate: Any, done: int) -> None:
    async with bench() as it:
        cases = [await it.planned(case_of(DISCARD, await it.dead_letter())) for _ in range(3)]
        it.made.sim.plan_repairs(RepairPlan(fate=fate))
        answered = await it.send(*cases)
        assert len(answered.handles) == 3
        effects = [await it.effect(case) for case in cases]
        assert [effect.proof for effect in effects] == [Proof.DONE] * done + [Proof.NOT_DONE] * (3 - done)
        assert effects[-1].evidence == "it is still there"
        assert resolved(effects[-1]) is None


@pytest.mark.parametrize("vanished", [False, True])
async def test_what_is_gone_already_is_not_discarded(vanished: bool) -> None:
    async with bench() as it:
        letter = await it.dead_letter()
        it.made.sim.delete_dead_letter(letter.id)
        if vanished:
            await it.made.clock.advance(30 * HOUR)
        plan = await it.repairs.plan(case_of(DISCARD, letter))
        assert plan.refusal == ("it is no longer there" if vanished else "it is deleted already")
        assert resolved(plan) is (ResolvedBy.UNKNOWN if vanished else ResolvedBy.MANUAL)


async def test_what_was_resolved_is_no_discard() -> None:
    async with bench() as it:
        letter = await it.dead_letter()
        case = await it.planned(case_of(DISCARD, letter))
        it.made.sim.retry_by_person(letter.id)
        await it.made.clock.advance(60)
        assert (await it.repairs.plan(case)).refusal == "it is resolved already"
        effect = await it.effect(case)
        assert (effect.proof, effect.evidence, list(effect.observations)) == (
            Proof.NOT_DONE,
            "it was resolved, not deleted",
            [],
        )


async def test_a_run_that_was_not_stored_can_be_neither_discarded_nor_fixed() -> None:
    async with bench() as it:
        letter = DeadLetter(id="f" * 32, workflow_id=it.workflow_id, run_id="f" * 32, opened_at=it.made.clock.now())
        for action in (DISCARD, FIX):
            plan = await it.repairs.plan(case_of(action, letter))
            assert plan.refusal == "Make has not stored it: it can only be replayed"
            assert list(plan.observations) == []


# What goes wrong with a call, of each kind


async def prepared(it: Bench, action: RepairAction) -> Case:
    if action is REACTIVATE:
        return await it.planned(it.switched_off_by_make())
    letter = await it.dead_letter()
    if action is FIX:
        await it.made.clock.advance(5)
        it.made.sim.edit_workflow(it.workflow_id, modules=LATER)
    return await it.planned(case_of(action, letter))


@pytest.mark.parametrize("action", [DISCARD, REACTIVATE, FIX])
@pytest.mark.parametrize(
    ("status", "kind"),
    [(403, ErrorKind.AUTH), (400, ErrorKind.REQUEST), (404, ErrorKind.NOT_FOUND), (503, ErrorKind.UNAVAILABLE)],
)
async def test_a_refusal_is_told_and_nothing_happened(action: RepairAction, status: int, kind: ErrorKind) -> None:
    async with bench() as it:
        case = await prepared(it, action)
        it.made.asked()
        it.made.sim.plan_repairs(RepairPlan(fate="refused", status=status))
        error = await it.failed(case)
        assert (error.kind, error.status, error.sent) == (kind, status, True)
        assert sum(it.calls().values()) == 1
        assert (await it.effect(case)).proof is Proof.NOT_DONE


@pytest.mark.parametrize("action", [DISCARD, REACTIVATE, FIX])
@pytest.mark.parametrize(("fate", "happened"), [("unheard", False), ("cut", True), ("error", True)])
async def test_a_call_without_an_answer_is_made_once_and_reading_shows_its_effect(
    action: RepairAction, fate: Any, happened: bool
) -> None:
    async with bench() as it:
        case = await prepared(it, action)
        it.made.asked()
        it.made.sim.plan_repairs(RepairPlan(fate=fate))
        error = await it.failed(case)
        assert error.sent
        assert sum(it.calls().values()) == 1
        assert (await it.effect(case)).proof is (Proof.DONE if happened else Proof.NOT_DONE)
        if not happened:  # each of these may be made again
            await it.send(case)
            assert (await it.effect(case)).proof is Proof.DONE


@pytest.mark.parametrize("action", [DISCARD, REACTIVATE, FIX])
async def test_nothing_is_sent_after_its_time(action: RepairAction) -> None:
    async with bench() as it:
        case = await prepared(it, action)
        it.made.asked()
        with pytest.raises(ApiError) as error:
            await it.repairs.repair([case], send_by=it.made.clock.now() - 1)
        assert not error.value.sent
        assert it.calls() == Counter()


@pytest.mark.parametrize("action", [REACTIVATE, FIX])
async def test_a_read_that_fails_right_before_sends_nothing(action: RepairAction) -> None:
    async with bench() as it:
        case = await prepared(it, action)
        it.made.asked()
        it.made.sim.fail_next("ok_html")
        error = await it.failed(case)
        assert (error.kind, error.sent) == (ErrorKind.BAD_PAYLOAD, False)
        assert it.calls() == Counter()


# Reactivate


async def test_a_scenario_that_make_switched_off_is_switched_on() -> None:
    async with bench() as it:
        case = it.switched_off_by_make(reason="[401] refused: Authorization: Bearer sk-demo-0123456789abcdef")
        plan = await it.repairs.plan(case)
        assert "Make switched it off at " in plan.does
        assert "sk-demo" not in plan.does
        case = await it.planned(case)
        assert dict((await it.send(case)).handles) == {it.workflow_id: None}
        effect = await it.effect(case)
        assert (effect.proof, effect.evidence) == (Proof.DONE, "it is switched on")
        assert it.made.sim.world.scenarios[int(it.workflow_id)].active


async def test_one_that_somebody_switched_off_stays_off() -> None:
    async with bench() as it:
        it.made.sim.set_enabled(it.workflow_id, False)
        case = Case(action=REACTIVATE, workflow_id=it.workflow_id, id=it.workflow_id)
        assert str((await it.repairs.plan(case)).refusal).startswith("somebody switched it off at ")


@pytest.mark.parametrize("change", ["switched on", "switched off by hand", "paused", "deleted"])
async def test_a_plan_to_reactivate_does_not_outlive_what_it_was_made_of(change: str) -> None:
    async with bench() as it:
        case = await it.planned(it.switched_off_by_make())
        await it.made.clock.advance(5)
        if change == "paused":
            it.made.sim.set_paused(True)
        elif change == "deleted":
            it.made.sim.delete_workflow(it.workflow_id)
        else:
            it.made.sim.set_enabled(it.workflow_id, True)
            if change == "switched off by hand":
                await it.made.clock.advance(5)
                it.made.sim.set_enabled(it.workflow_id, False)
        it.made.asked()
        error = await it.failed(case)
        assert (error.kind, error.sent) == (ErrorKind.CONFLICT, False)
        assert it.calls() == Counter()


async def test_one_that_is_off_and_nothing_says_why_is_for_a_person_to_decide() -> None:
    async with bench(settings={"active": False}) as it:
        plan = await it.repairs.plan(Case(action=REACTIVATE, workflow_id=it.workflow_id, id=it.workflow_id))
        assert "nothing says by whom" in plan.does


async def test_one_that_make_switches_off_again_is_not_reactivated() -> None:
    async with bench() as it:
        case = await it.planned(it.switched_off_by_make())
        await it.send(case)
        await it.made.clock.advance(60)
        it.made.sim.stop_workflow(it.workflow_id, "It fails still")
        effect = await it.repairs.verify(replace(case, sent_at=it.made.clock.now() - 60))
        assert (effect.proof, effect.evidence) == (Proof.NOT_DONE, "Make switched it off again: It fails still")


# Fix, and retry


async def test_a_fixed_dead_letter_is_retried_with_the_scenario_of_today() -> None:
    async with bench() as it:
        letter = await it.dead_letter()
        await it.made.clock.advance(5)
        it.made.sim.edit_workflow(it.workflow_id, modules=LATER)
        retries = MakeRetries(it.made.config, it.made.api)
        assert (await retries.look(Target(letter=letter))).refusal is not None
        plan = await it.repairs.plan(case_of(FIX, letter))
        assert list(plan.changes) == [
            "module 3 slack:CreateMessage: was json:ParseJSON",
            "module 4 google-sheets:addRow: removed",
        ]
        case = await it.planned(case_of(FIX, letter))
        assert dict((await it.send(case)).handles) == {letter.id: None}
        assert (await it.effect(case)).proof is Proof.DONE
        frozen = it.made.sim.world.dead_letters[letter.id].frozen
        assert frozen is not None
        assert len(frozen["flow"]) == 3
        look = await retries.look(Target(letter=letter, fixed=case.mark))
        assert look.refusal is None
        it.made.sim.plan_retries("success")
        await retries.send([letter], send_by=it.made.clock.now() + 10)
        await it.made.clock.advance(60)
        it.made.sim.advance(it.made.clock.now())
        assert it.made.sim.world.dead_letters[letter.id].state == "resolved"


async def test_an_edit_after_the_fix_forbids_the_retry_again() -> None:
    async with bench() as it:
        case = await prepared(it, FIX)
        await it.send(case)
        await it.made.clock.advance(5)
        it.made.sim.edit_workflow(it.workflow_id)
        look = await MakeRetries(it.made.config, it.made.api).look(Target(letter=letter_of(case), fixed=case.mark))
        assert look.refusal == "the scenario was edited after the failure; a retry would run the old blueprint"


def letter_of(case: Case) -> DeadLetter:
    assert case.letter is not None
    return case.letter


async def test_without_an_edit_there_is_nothing_to_fix() -> None:
    async with bench() as it:
        plan = await it.repairs.plan(case_of(FIX, await it.dead_letter()))
        assert plan.refusal == "the scenario was not edited since it failed: there is nothing to fix, retry it"


async def test_what_a_retry_would_be_refused_for_anyway_is_said_before() -> None:
    async with bench() as it:
        case = await prepared(it, FIX)
        it.made.sim.set_enabled(it.workflow_id, False)
        assert (await it.repairs.plan(case)).refusal == "the scenario was switched off by somebody"


@pytest.mark.parametrize(
    ("modules", "refusal"),
    [
        (modules_of(False, 1)[:1], "module 2 http:MakeRequest, where it stopped, is no longer in the scenario"),
        (
            (Module(1, "google-sheets", "watchRows"), Module(2, "slack", "CreateMessage")),
            "module 2 http:MakeRequest, where it stopped, is another module today",
        ),
        (
            (Module(1, "gateway", "CustomWebHook"), Module(2, "http", "MakeRequest")),
            "module 1 google-sheets:watchRows, whose output it uses, is another module today",
        ),
    ],
)
async def test_a_blueprint_that_the_stored_run_cannot_go_on_in_is_refused(
    modules: tuple[Module, ...], refusal: str
) -> None:
    async with bench() as it:
        letter = await it.dead_letter()
        await it.made.clock.advance(5)
        it.made.sim.edit_workflow(it.workflow_id, modules=modules)
        assert (await it.repairs.plan(case_of(FIX, letter))).refusal == refusal


@pytest.mark.parametrize("whose", ["scenario", "dead letter"])
async def test_a_plan_to_fix_does_not_outlive_another_edit(whose: str) -> None:
    async with bench() as it:
        case = await prepared(it, FIX)
        await it.made.clock.advance(5)
        if whose == "scenario":
            it.made.sim.edit_workflow(it.workflow_id, modules=(*LATER, Module(4, "mysql", "insert")))
        else:
            item = it.made.sim.world.dead_letters[case.id]
            assert item.frozen is not None
            item.frozen = {**item.frozen, "flow": item.frozen["flow"][:2]}
        it.made.asked()
        error = await it.failed(case)
        assert (error.kind, error.sent) == (ErrorKind.CONFLICT, False)
        assert it.calls() == Counter()


async def test_a_fix_that_came_to_nothing_or_to_something_else_shows() -> None:
    async with bench() as it:
        case = await prepared(it, FIX)
        it.made.sim.plan_repairs(RepairPlan(fate="lost"))
        assert dict((await it.send(case)).handles) == {case.id: None}
        assert (await it.effect(case)).proof is Proof.NOT_DONE
        item = it.made.sim.world.dead_letters[case.id]
        assert item.frozen is not None
        item.frozen = {**item.frozen, "flow": item.frozen["flow"][:2]}
        assert (await it.effect(case)).proof is Proof.UNKNOWN
        it.made.sim.delete_dead_letter(case.id)
        await it.made.clock.advance(30 * HOUR)
        effect = await it.effect(case)
        assert (effect.proof, effect.evidence) == (Proof.NOT_DONE, "it is no longer there")


# Blueprints


def a_blueprint(*modules: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {"name": "Orders", "flow": list(modules), "metadata": {"scenario": settings}}


def http(module_id: int = 1, **mapper: Any) -> dict[str, Any]:
    designer = {"designer": {"x": module_id, "name": "Ask Jane"}}
    return {"id": module_id, "module": "http:MakeRequest", "version": 1, "mapper": mapper, "metadata": designer}


ROUTER = {"id": 5, "module": "builtin:BasicRouter", "routes": [{"flow": [http(6)]}, {"flow": [http(7, url="a")]}]}


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (a_blueprint(http()), a_blueprint(http()), []),
        (
            a_blueprint(http(url="https://jane:secret@example.test/?key=1")),
            a_blueprint(http(url="https://x")),
            ["module 1 http:MakeRequest: mapper.url"],
        ),
        (
            a_blueprint(http(headers=[{"name": "X-Key", "value": "abc"}])),
            a_blueprint(http(headers=[{"name": "X-Key", "value": "def"}])),
            ["module 1 http:MakeRequest: mapper.headers[].value"],
        ),
        (
            a_blueprint(http(**{"jane.doe@example.test": 1, "eyJhbGciOiJIUzI1NiJ9aaaa": 1})),
            a_blueprint(http()),
            ["module 1 http:MakeRequest: mapper.…"],
        ),
        (
            a_blueprint(http(), http(2)),
            a_blueprint(http(2), http(), http(3)),
            ["module 3 http:MakeRequest: added", "order or routes of the modules"],
        ),
        (a_blueprint(http(), ROUTER), a_blueprint(http()), [
            "module 5 builtin:BasicRouter: removed",
            "module 6 http:MakeRequest: removed",
            "module 7 http:MakeRequest: removed",
        ]),
        (
            a_blueprint(ROUTER),
            a_blueprint({**ROUTER, "routes": [{"flow": [http(6)]}, {"flow": [http(7, url="b")]}]}),
            ["module 7 http:MakeRequest: mapper.url"],
        ),
        (
            a_blueprint({**http(), "onerror": [{"id": 9, "module": "builtin:Break", "mapper": {"count": "3"}}]}),
            a_blueprint({**http(), "onerror": [{"id": 9, "module": "builtin:Break", "mapper": {"count": "5"}}]}),
            ["module 9 builtin:Break: mapper.count"],
        ),
        (a_blueprint(http(), sequential=False), a_blueprint(http(), sequential=True), ["scenario: sequential"]),
        (
            a_blueprint({**http(), "parameters": {"password": "old"}}),
            a_blueprint({**http(), "parameters": {"password": "new"}}),
            ["module 1 http:MakeRequest: parameters.password"],
        ),
    ],
)  # fmt: skip
def test_a_difference_is_told_by_the_names_of_settings_and_by_no_value(
    before: dict[str, Any], after: dict[str, Any], told: list[str]
) -> None:
    assert mapped.changes(before, after) == told
    assert (mapped.digest(before) == mapped.digest(after)) == (not told)


def test_how_a_scenario_is_drawn_is_no_difference() -> None:
    moved = a_blueprint({**http(url="a"), "metadata": {"designer": {"x": 500, "name": "Ask John"}}})
    renamed = {**a_blueprint(http(url="a")), "name": "Orders of John"}
    for other in (moved, renamed):
        assert mapped.changes(a_blueprint(http(url="a")), other) == []
        assert mapped.digest(a_blueprint(http(url="a"))) == mapped.digest(other)


def test_a_long_list_of_differences_is_cut() -> None:
    told = mapped.changes(a_blueprint(), a_blueprint(*(http(number) for number in range(1, 100))))
    assert (len(told), told[-1]) == (41, "and 59 more")


@pytest.mark.parametrize("answer", [None, [], {}, {"response": None}, {"blueprint": {}}, {"blueprint": {"flow": 3}}])
def test_an_answer_without_a_blueprint_is_none(answer: object) -> None:
    assert mapped.blueprint(answer) is None


def test_a_blueprint_nested_without_end_is_none() -> None:
    nested: Any = []
    for _ in range(3000):
        nested = [{"id": 1, "onerror": nested}]
    assert mapped.blueprint({"blueprint": {"flow": nested}}) is None


# Rights


@pytest.mark.parametrize(
    ("scopes", "lines"),
    [
        (
            ("dlqs:write", "scenarios:write"),
            ["ok: discard may be done (dlqs:write)", "ok: reactivate may be done (scenarios:write)"],
        ),
        (
            ("dlqs:write",),
            [
                "ok: discard may be done (dlqs:write)",
                "problem: right scenarios:write is missing; reactivate is granted and cannot be done",
            ],
        ),
    ],
)  # fmt: skip
async def test_the_check_names_the_right_of_each_grant(scopes: tuple[str, ...], lines: list[str]) -> None:
    read = ("organizations:read", "teams:read", "user:read", "scenarios:read", "hooks:read", "dlqs:read")
    async with bench(grant=["discard", "reactivate"], scopes=(*read, *scopes)) as it:
        told = [str(line) async for line in it.made.client.check()]
        assert [line for line in told if "discard" in line or "reactivate" in line] == lines


def test_the_newest_row_says_who_switched_a_scenario_off() -> None:
    row = {"type": "stop", "timestamp": "2026-11-27T10:00:00.000Z", "detail": {"reason": "Too many errors"}}
    by_hand = {**row, "timestamp": "2026-11-27T09:00:00.000Z", "authorId": 5}
    found = mapped.switched([by_hand, row, {"type": "modify", "timestamp": "2026-11-27T11:00:00.000Z"}, None, 3])
    assert found is not None
    assert (found.on, found.by_hand, found.reason) == (False, False, "Too many errors")
