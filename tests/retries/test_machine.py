"""The engine against a hostile platform, killed anywhere it waits: what must never happen, whatever the history.

The invariants have the numbers of the design notes: intent first (1), one open retry of a root (2), one call for one
retry (3), no more calls than the policy allows, across new runs and restarts (4), none below approval (8), none after a
pause commits (9), doubt is sticky (14), the platform's own retries and resolved items are left alone (15), no success
without evidence (16), outcomes are final and the audit is whole (17), ordered workflows head first (20), policies that
change touch nothing open (23).
"""

import asyncio
import contextlib
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import orjson
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from exporter.model import Result
from exporter.model.policy import Backoff, Pace, SourceRules
from exporter.model.retries import Answer, Mode, Outcome, Retry, RetryState, Traits
from exporter.platform.retrying import Accepted, Look
from exporter.retries import protocol
from exporter.retries.control import ControlError
from exporter.retries.override_book import OverrideBook
from exporter.store import audit, reserving
from exporter.wire.errors import ApiError
from tests.postgres import look
from tests.retries.made import policy, rules
from tests.retries.world import SOURCE, Engine, Fate

TRAITS = (
    Traits(effect="resume", handle="same_id", serial=False, bulk_max=3),
    Traits(effect="resume", handle="same_id", serial=False, absence=900.0),
    Traits(effect="rerun", handle="inferred", serial=True),
)
Meddling = Literal["person", "native", "delete", "gives up", "takes over"]
RETRIES_MAX = 3
#: Calls that are read as refused and run all the same, before the first of them shows.
UNSEEN_MAX = 5
FATES: tuple[Fate, ...] = (
    "ok",
    "late",
    "lost",
    "cut after",
    "cut before",
    "cut, late",
    "503 after",
    "refused",
    "unnamed",
    "done, refused",
    "late, refused",
)


def some_rules(mode: Mode, retries: int) -> Any:
    quick = Backoff(first=30.0, factor=2.0, cap=120.0, jitter=0.5)
    fast = {SOURCE: SourceRules(pace=Pace(rate=0.2, burst=3, in_flight=4))}
    made = policy(retries=retries, backoff=quick, give_up_after=10_000_000.0, deadline=1800.0)
    return rules(made, mode=mode, sources=fast)


class Histories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.outcomes: dict[str, str] = {}
        self.sent_in: list[Mode] = []
        self.paused_calls: int | None = None
        self.pause_ends = 0.0

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    @initialize(
        traits=st.sampled_from(TRAITS),
        mode=st.sampled_from([Mode.ENFORCE] * 4 + [Mode.APPROVE]),
        fates=st.lists(st.sampled_from(FATES), min_size=2, max_size=6),
        crash=st.integers(0, 60),
    )
    def begin(self, traits: Traits, mode: Mode, fates: Sequence[Fate] = (), crash: int | None = None) -> None:
        self.engine = Engine(Path(self.folder.name), some_rules(mode, RETRIES_MAX), traits)
        self.run(self.engine.start())
        self.run(self.engine.sweep())
        self.platform = self.engine.platform
        for workflow in ("w1", "w2", "ordered"):
            self.platform.add(workflow)
        if fates:
            self.a_while(crashes=[None, crash, None, None], fates=list(fates))

    def survive(self, work: Any) -> None:
        self.run(self.engine.survive(work))

    # What happens in the world

    @rule(workflow=st.sampled_from(["w1", "w2", "ordered"]), native=st.sampled_from([False, False, False, True]))
    def fails(self, workflow: str, native: bool) -> None:
        self.platform.add(workflow, native=native)

    @rule(fates=st.lists(st.sampled_from(FATES), min_size=1, max_size=3))
    def next_calls_meet(self, fates: list[Fate]) -> None:
        self.platform.fates += fates

    @rule(results=st.lists(st.sampled_from([Result.SUCCESS, Result.FAILURE, Result.WARNING]), min_size=1, max_size=3))
    def next_executions_end(self, results: list[Result]) -> None:
        self.platform.results += results

    @rule(which=st.integers(0, 9), what=st.sampled_from(["person", "native", "delete", "gives up", "takes over"]))
    def somebody_meddles(self, which: int, what: Meddling) -> None:
        if not self.platform.items:
            return
        names = sorted(self.platform.items)
        item = self.platform.items[names[which % len(names)]]
        if what == "person" or what == "native":
            self.platform.execute(item.id, what)
        elif what == "delete":
            item.gone = True
        else:
            item.native = what == "takes over"

    @rule(seconds=st.sampled_from([5.0, 30.0, 120.0, 900.0, 3600.0]))
    def time_passes(self, seconds: float) -> None:
        self.run(self.engine.clock.advance(seconds))
        self.platform.advance()

    # What the engine does

    @rule()
    def sweep(self) -> None:
        self.survive(self.engine.sweep())

    @rule(crash=st.one_of(st.none(), st.integers(0, 40)))
    def turn(self, crash: int | None) -> None:
        self.platform.advance()
        before = len(self.platform.calls)
        self.engine.trip.left = crash
        self.survive(self.engine.turn())
        self.engine.trip.left = None
        self.sent_in += [self.engine.rules.mode] * (len(self.platform.calls) - before)

    @rule(
        crashes=st.lists(st.one_of(st.none(), st.integers(0, 25)), min_size=4, max_size=10),
        fates=st.lists(st.sampled_from(FATES), max_size=4),
    )
    def a_while(self, crashes: list[int | None], fates: list[Fate]) -> None:
        self.platform.fates += fates
        for crash in crashes:
            self.time_passes(60.0)
            self.sweep()
            self.turn(crash)

    @rule()
    def killed(self) -> None:
        self.run(self.engine.restart())

    @rule(
        mode=st.sampled_from([Mode.ENFORCE] * 5 + [Mode.APPROVE, Mode.SHADOW, Mode.OFF]),
        retries=st.integers(1, RETRIES_MAX),
    )
    def other_policies(self, mode: Mode, retries: int) -> None:
        self.run(self.engine.restart(some_rules(mode, retries)))

    # What people say

    @rule(sometimes=st.integers(0, 1))
    def nothing_holds_it(self, sometimes: int) -> None:
        self.somebody_resumes()
        if sometimes and self.engine.rules.mode is not Mode.ENFORCE:
            self.other_policies(Mode.ENFORCE, RETRIES_MAX)

    @rule()
    def somebody_approves(self) -> None:
        with contextlib.suppress(ControlError):
            self.run(self.engine.approve(self.engine.control.awaiting("p")))

    @rule(seconds=st.sampled_from([60.0, 300.0]))
    def somebody_pauses(self, seconds: float) -> None:
        self.run(self.engine.control.pause(None, seconds=seconds, who="ann"))
        self.paused_calls = len(self.platform.calls)
        self.pause_ends = max(self.pause_ends, self.engine.clock.now() + seconds)

    @rule()
    def somebody_resumes(self) -> None:
        self.run(self.engine.control.resume(None, who="ann"))
        self.pause_ends = 0.0

    @rule(which=st.integers(0, 9), sent=st.booleans())
    def somebody_releases(self, which: int, sent: bool) -> None:
        """A person may be wrong, or too early: what the platform shows counts for more."""
        opened = self.engine.book.open_of(SOURCE)
        held = sorted(retry.dead_letter_id for retry in opened if retry.state in ("held", "in_doubt"))
        if held:
            self.run(self.engine.release((SOURCE, held[which % len(held)]), sent=sent))

    # What must hold

    @invariant()
    def every_call_had_its_intent_and_its_right_moment(self) -> None:
        assert getattr(self, "platform", None) is None or self.platform.problems == []

    @invariant()
    def no_retry_is_called_twice(self) -> None:
        calls = Counter(identity for _, _, identity in self.calls())
        assert all(number == 1 for number in calls.values()), calls

    @invariant()
    def no_root_is_called_more_often_than_allowed(self) -> None:
        """What a person knows to have had no effect gives its number back; that it had none is checked below. What is
        spared (the platform was busy, the gate was shutting) uses up nothing.
        """
        rows = [(identity, outcome, orjson.loads(data)) for identity, _, outcome, data in self.rows()]
        void = {identity for identity, outcome, data in rows if outcome == Outcome.NOT_SENT or data["spared"]}
        roots = Counter(self.platform.items[name].root for _, name, retry in self.calls() if retry not in void)
        assert all(number <= RETRIES_MAX for number in roots.values()), roots

    @invariant()
    def no_root_is_executed_much_more_often(self) -> None:
        """Also where what ran is read as a refusal: that costs nothing until it shows, and then it counts."""
        done = Counter(
            item.root
            for item in getattr(getattr(self, "platform", None), "items", {}).values()
            for execution in item.executions
            if execution.by == "us"
        )
        assert all(number <= RETRIES_MAX + UNSEEN_MAX for number in done.values()), done

    @invariant()
    def nothing_is_sent_below_approval_or_in_a_pause(self) -> None:
        assert all(mode.rank >= Mode.APPROVE.rank for mode in self.sent_in)
        if (
            self.paused_calls is not None
            and getattr(self, "engine", None)
            and self.engine.clock.now() < self.pause_ends
        ):
            assert len(self.platform.calls) == self.paused_calls

    @invariant()
    def outcomes_are_final_and_true(self) -> None:
        # A call whose answer was a refusal and that did its work all the same: what shows of it is ours, and nobody can
        # say of which call of ours.
        misread = {identity for identity, _, outcome, _ in self.rows() if outcome == Outcome.REJECTED}
        for identity, state, outcome, data in self.rows():
            if identity in self.outcomes:
                assert outcome == self.outcomes[identity], (identity, state)
            if outcome is None:
                continue
            self.outcomes[identity] = outcome
            if outcome == Outcome.SUCCEEDED:
                mine = self.platform.items[orjson.loads(data)["dead_letter_id"]].executions
                assert any(e.result is Result.SUCCESS and e.retry in {identity, *misread} for e in mine)
            if outcome == Outcome.NOT_SENT:
                assert identity not in self.effects(), "what was said not to have been sent had an effect"

    @invariant()
    def one_retry_of_a_root_is_open(self) -> None:
        opened = Counter(orjson.loads(data)["root"] for _, _, outcome, data in self.rows() if outcome is None)
        assert all(number == 1 for number in opened.values())

    def effects(self) -> set[str | None]:
        """The retries whose call did something, or still will."""
        done = {execution.retry for item in self.platform.items.values() for execution in item.executions}
        return done | {retry for _, _, retry in self.platform.due}

    def calls(self) -> list[tuple[float, str, str]]:
        return [] if getattr(self, "platform", None) is None else self.platform.calls

    def rows(self) -> list[Any]:
        if getattr(self, "engine", None) is None:
            return []
        return look(self.engine.url, "SELECT id, state, outcome, data FROM retries WHERE shadow = 0")

    def teardown(self) -> None:
        if getattr(self, "engine", None) is not None:
            assert self.run(self.engine.ledger.transact("audit", audit.check())).broken is None
            for _ in range(12):  # whatever was left open comes to rest, or waits for a person
                self.time_passes(900.0)
                self.sweep()
                self.turn(None)
            states = {retry.state for retry in self.engine.book.open_of(SOURCE)}
            assert states <= {"held", "in_doubt", "accepted", "verifying"}, states
            self.run(self.engine.stop())
        self.loop.close()
        self.folder.cleanup()


def play(examples: int) -> None:
    run_state_machine_as_test(
        Histories,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
            print_blob=False,
        ),
    )


@pytest.mark.parametrize("examples", [60, pytest.param(1500, marks=pytest.mark.slow)])
def test_no_history_does_harm(examples: int) -> None:
    play(examples)


def test_a_call_without_effect_gives_its_number_back_by_a_persons_word_only() -> None:
    """Taken by the platform and never heard of again, five times over: held each time, and each time released."""
    machine = begun(TRAITS[2])
    machine.platform.fates = ["lost"] * 5
    machine.platform.items["d2"].gone = machine.platform.items["d3"].gone = True
    for number in range(1, 6):
        machine.a_while(crashes=[None] * 45, fates=[])
        assert len(machine.platform.calls) == number
        (retry,) = machine.engine.book.open_of(SOURCE)
        assert (retry.state, retry.ordinal) == (RetryState.HELD, 1)
        machine.run(machine.engine.release((SOURCE, retry.dead_letter_id), sent=False))
    check([machine])


# Mistakes put back, and for each a history that shows it. So the invariants can fail.


def begun(traits: Traits) -> Histories:
    machine = Histories()
    machine.begin(traits=traits, mode=Mode.ENFORCE)
    return machine


def a_call_is_cut() -> list[Histories]:
    machine = begun(TRAITS[0])
    machine.a_while(crashes=[None] * 4, fates=["cut after"] * 3)
    return [machine]


def an_effect_is_late() -> list[Histories]:
    machine = begun(TRAITS[1])
    machine.a_while(crashes=[None] * 4, fates=["cut, late"] * 3)
    machine.a_while(crashes=[None] * 15, fates=[])
    return [machine]


def a_process_is_killed() -> list[Histories]:
    """At each of the points of a turn that sends."""
    machines = []
    for point in range(40):
        machine = begun(TRAITS[0])
        machine.a_while(crashes=[point], fates=[])
        machine.a_while(crashes=[None] * 3, fates=[])
        machines.append(machine)
    return machines


def retries_make_new_runs() -> list[Histories]:
    machine = begun(TRAITS[2])
    machine.a_while(crashes=[None] * 40, fates=[])
    return [machine]


def refusals_are_misread() -> list[Histories]:
    """What the platform took is read as a refusal: its effect is a new run all the same, at once or late."""
    machines = []
    for fate in ("done, refused", "late, refused"):
        machine = begun(TRAITS[2])
        machine.a_while(crashes=[None] * 240, fates=[fate] * 240)
        machines.append(machine)
    return machines


def a_person_pauses() -> list[Histories]:
    machine = begun(TRAITS[0])
    machine.somebody_pauses(seconds=3600.0)
    machine.a_while(crashes=[None] * 4, fates=[])
    return [machine]


def a_timeout_is_a_failure(patch: pytest.MonkeyPatch) -> None:
    def refused(retry: Retry, error: ApiError, answer: Answer, *, now: float) -> Retry:
        return protocol.closed(retry, Outcome.NOT_SENT, now=now, detail="")

    patch.setattr(protocol, "refused", refused)


def absence_proves_at_once(patch: pytest.MonkeyPatch) -> None:
    def unseen(retry: Retry, look: Look, traits: Traits, *, asked_at: float, now: float) -> Retry:
        return protocol.closed(retry, Outcome.NOT_SENT, now=now, detail="")

    patch.setattr(protocol, "_unseen", unseen)


def a_crash_forgets_what_was_sent(patch: pytest.MonkeyPatch) -> None:
    def resumed(retry: Retry, *, now: float) -> Retry:
        if retry.state in (RetryState.INTENT, RetryState.SENT):
            return protocol.closed(retry, Outcome.NOT_SENT, now=now, detail="")
        return retry

    patch.setattr(protocol, "resumed", resumed)


def new_runs_have_no_past(patch: pytest.MonkeyPatch) -> None:
    """Neither what a look attributes nor when they began tells."""
    a_refusal_has_no_effect(patch)
    seen = protocol.seen
    patch.setattr(protocol, "seen", lambda *of, **more: replace(seen(*of, **more), new_runs=()))


def a_refusal_has_no_effect(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(protocol, "maker", lambda letter, began_at, calls: None)


def an_answer_is_a_success(patch: pytest.MonkeyPatch) -> None:
    def answered(retry: Retry, accepted: Accepted, *, now: float) -> Retry:
        return protocol.closed(retry, Outcome.SUCCEEDED, now=now, detail="")

    patch.setattr(protocol, "answered", answered)


def pauses_are_not_read(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(OverrideBook, "shared", lambda book, source: ())
    patch.setattr(reserving, "reaches", lambda override, **of: False)


MISTAKES: list[tuple[Callable[[pytest.MonkeyPatch], None], Callable[[], list[Histories]]]] = [
    (a_timeout_is_a_failure, a_call_is_cut),
    (absence_proves_at_once, an_effect_is_late),
    (a_crash_forgets_what_was_sent, a_process_is_killed),
    (new_runs_have_no_past, retries_make_new_runs),
    (a_refusal_has_no_effect, refusals_are_misread),
    (an_answer_is_a_success, retries_make_new_runs),
    (pauses_are_not_read, a_person_pauses),
]


def check(machines: list[Histories]) -> None:
    try:
        for machine in machines:
            machine.every_call_had_its_intent_and_its_right_moment()
            machine.no_retry_is_called_twice()
            machine.no_root_is_called_more_often_than_allowed()
            machine.no_root_is_executed_much_more_often()
            machine.nothing_is_sent_below_approval_or_in_a_pause()
            machine.outcomes_are_final_and_true()
            machine.one_retry_of_a_root_is_open()
    finally:
        for machine in machines:
            machine.teardown()


@pytest.mark.parametrize(("mistake", "history"), MISTAKES, ids=[mistake.__name__ for mistake, _ in MISTAKES])
def test_a_mistake_that_is_put_back_is_found(
    mistake: Callable[[pytest.MonkeyPatch], None],
    history: Callable[[], list[Histories]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check(history())
    mistake(monkeypatch)
    with pytest.raises(AssertionError):
        check(history())
