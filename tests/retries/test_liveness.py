"""Being alive, as laws: whatever happened before, once the platform is well all that may be saved is saved, and soon.

1. With the platform well from t0 and nobody holding anything, every dead letter that may be retried is recovered by
   t0 + X. X is the sum of what each cause may delay it (``bound``); it is printed when a letter is late.
2. What becomes of a letter depends on no other letter but through group, gate, budget and pace.
3. Each group gets its turn.
4. What people are shown is what the retrier decided.
"""

import asyncio
import itertools
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from exporter.model import Error, ErrorClass, Result
from exporter.model.matchers import Matcher, read
from exporter.model.policy import Pace, Rules
from exporter.model.retries import Traits
from tests.retries.made import EACH, ERROR, HOUR, SERIAL, policy, quick
from tests.retries.world import BUSY, DOUBTFUL, REJECTED, RUN_SECONDS, Engine, Fate, Outage, bound

TRAITS = (EACH, replace(EACH, bulk_max=3), SERIAL)
RETRIES = 3
#: The text and the class make the group; the second is another policy's.
ERRORS = (ERROR, Error(error_class=ErrorClass.TIMEOUT, type="TimeoutError", message="no answer within 30 s"))
ODD: tuple[Exception, ...] = (TypeError("'NoneType' object is not subscriptable"), KeyError("status"))
RAN: tuple[Fate, ...] = ("ok", "late", "cut after", "503 after", "unnamed")
STEP = 60.0
BRISK, SLOW = Pace(rate=1 / 10, burst=3, in_flight=10), Pace(rate=1 / 60, burst=2, in_flight=2)
#: A story is told in a second: making it simpler is for those who have minutes.
QUICKLY = (Phase.explicit, Phase.generate)


def some_rules(pace: Pace) -> Rules:
    first = Matcher(match=read({"error.class": "timeout"}, "match"))
    return quick(
        policy(name="timeouts", matcher=first, retries=RETRIES),
        policy(name="rest", retries=RETRIES, group_by=("error.class",)),
        pace=pace,
    )


@dataclass(frozen=True, kw_only=True)
class Letter:
    workflow: str
    error: Error = ERROR
    fates: tuple[Fate, ...] = ()  # its own, before all others


@dataclass(frozen=True, kw_only=True)
class Story:
    """What happens until the platform is well."""

    traits: Traits
    letters: tuple[Letter, ...]
    pace: Pace = BRISK
    seconds: float = HOUR
    outages: tuple[tuple[float, float, Fate | None, Fate | Exception | None, bool], ...] = ()  # parts of the time
    odd: tuple[int, ...] = ()  # whose looks break until then
    native: tuple[int, ...] = ()  # whom the platform is going to retry itself, until then
    revoked: bool = False  # the credential, by the first call
    restarts: frozenset[int] = frozenset()  # steps


def fates(traits: Traits) -> st.SearchStrategy[Fate]:
    """What settles by itself: where absence proves nothing a call without a trace waits for a person."""
    doubtful = DOUBTFUL if traits.absence is not None else ()
    return st.sampled_from([*RAN, *BUSY, *REJECTED, *doubtful])


@st.composite
def stories(draw: st.DrawFn) -> Story:
    traits = draw(st.sampled_from(TRAITS))
    letter = st.builds(
        Letter,
        workflow=st.sampled_from(["w1", "w2", "w3", "ordered"]),
        error=st.sampled_from(ERRORS),
        fates=st.lists(fates(traits), max_size=3).map(tuple),
    )
    letters = draw(st.lists(letter, min_size=2, max_size=8).map(tuple))
    calls = st.one_of(st.none(), fates(traits), st.just("401"))
    met: list[Fate | Exception | None] = [None, "500", "429", "401", "html", *ODD]
    looks = st.sampled_from(met)
    outage: st.SearchStrategy[Any] = st.tuples(st.floats(0, 0.8), st.floats(0.1, 1.0), calls, looks, st.booleans())
    some = st.lists(st.integers(0, len(letters) - 1), max_size=2).map(tuple)
    return Story(
        traits=traits,
        letters=letters,
        pace=draw(st.sampled_from([BRISK, SLOW])),
        seconds=draw(st.sampled_from([600.0, HOUR, 2 * HOUR])),
        outages=draw(st.lists(outage, max_size=2).map(tuple)),
        odd=draw(some),
        native=draw(some),
        revoked=draw(st.sampled_from([False, False, False, True])),
        restarts=draw(st.frozensets(st.integers(0, 60), max_size=3)),
    )


@dataclass(kw_only=True)
class Played:
    """What came of a story."""

    late: set[str] = field(default_factory=set)  # roots that were not recovered by t0 + X though they might have been
    took: float = 0.0
    allowed: dict[str, float] = field(default_factory=dict)
    decided: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    differ: list[str] = field(default_factory=list)  # where explain and the retrier did not agree
    calls_of: dict[str, list[float]] = field(default_factory=dict)  # by root: when, from the beginning


def played(story: Story) -> Played:
    loop = asyncio.new_event_loop()
    try:
        with tempfile.TemporaryDirectory() as folder:
            return loop.run_until_complete(_play(story, Path(folder)))
    finally:
        loop.close()


async def _play(story: Story, folder: Path) -> Played:
    engine = Engine(folder, some_rules(story.pace), story.traits)
    await engine.start()
    try:
        await engine.sweep()
        differ: list[str] = []
        names, began = _begin(engine, story), engine.clock.now()
        for step in range(round(story.seconds / STEP)):
            await engine.live(STEP, step=STEP)
            if step in story.restarts:
                await engine.rest()
                if engine.shown() != engine.decided():
                    differ.append(f"step {step}: shown {engine.shown()}, decided {engine.decided()}")
                await engine.restart()
        _well(engine, names)
        t0 = engine.clock.now()
        allowed = bound(engine.rules, len(names))
        spent = used(engine, names)
        may = {name for name in names if spent[name] < RETRIES}
        lost = {name for name in set(names) - may if engine.platform.items[name].workflow_id == "ordered"}
        if lost - engine.recovered():  # what comes after its head waits for a person, too
            may -= {name for name in names if engine.platform.items[name].workflow_id == "ordered"}
        while not may <= engine.recovered() and engine.clock.now() < t0 + sum(allowed.values()):
            await engine.live(STEP, step=STEP)
        calls: dict[str, list[float]] = {name: [] for name in names}
        for at, name, _ in engine.platform.met:
            calls[engine.platform.items[name].root].append(at - began)
        return Played(
            late=may - engine.recovered(),
            took=engine.clock.now() - t0,
            allowed=allowed,
            decided=[f"{key[1]}: {d.verb}/{d.reason} {d.detail}" for key, d in engine.book.decisions.items()],
            problems=engine.platform.problems,
            differ=differ,
            calls_of=calls,
        )
    finally:
        await engine.stop()


def _begin(engine: Engine, story: Story) -> list[str]:
    platform, now = engine.platform, engine.clock.now()
    names = []
    for letter in story.letters:
        item = platform.add(letter.workflow, error=letter.error)
        names.append(item.id)
        platform.fates_of[item.id] = list(letter.fates)
    for number in story.native:
        platform.items[names[number]].native = True
    platform.odd = {names[number]: ODD[0] for number in story.odd}
    for since, part, calls, looks, runs in story.outages:
        first = now + since * story.seconds
        until = min(now + story.seconds, first + part * story.seconds)
        platform.outages.append(Outage(since=first, until=until, calls=calls, looks=looks, runs=runs))
    platform.fates = ["revoked"] if story.revoked else []
    platform.well = Result.SUCCESS
    return names


def _well(engine: Engine, names: list[str]) -> None:
    platform = engine.platform
    platform.fates, platform.fates_of, platform.results, platform.odd, platform.outages = [], {}, [], {}, []
    platform.revoked = False
    for item in platform.items.values():
        item.native = False


def used(engine: Engine, names: list[str]) -> Counter[str]:
    """How many retries of each root may be used up by the most generous count: what ran and failed, what was rejected.

    So none that was busy, denied or never arrived; and one that a call may still make comes on top.
    """
    platform = engine.platform
    spent: Counter[str] = Counter()
    for item in platform.items.values():
        spent[item.root] += sum(one.by == "us" and one.result is not Result.SUCCESS for one in item.executions)
    for _, name, fate in platform.met:
        spent[platform.items[name].root] += fate in REJECTED
    for _, name, _ in platform.due:
        spent[platform.items[name].root] += 1
    return spent


def said(found: Played) -> str:
    parts = ", ".join(f"{cause} {seconds:.0f}" for cause, seconds in found.allowed.items())
    return "\n".join(
        [
            f"{sorted(found.late)} not recovered {found.took:.0f} s after the platform was well",
            f"X = {sum(found.allowed.values()):.0f} s: {parts}",
            *found.decided,
        ]
    )


#: Examples of the normal suite.
QUICK = 30


def examples(normal: int, slow: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("examples", [normal, pytest.param(slow, marks=pytest.mark.slow)])


def plays(count: int, story: st.SearchStrategy[Any], law: Callable[[Any], None]) -> None:
    law = given(story)(law)
    law = settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=QUICKLY if count <= QUICK else tuple(Phase),
    )(law)
    law()


@examples(25, 600)
def test_all_that_may_be_saved_is_saved_soon_after_the_platform_is_well(examples: int) -> None:
    def law(story: Story) -> None:
        found = played(story)
        assert not found.late, said(found)
        assert found.problems == []
        assert found.differ == []

    plays(examples, stories(), law)


#: A letter that fails twice, and nobody else.
ALONE = Story(
    traits=EACH,
    letters=(Letter(workflow="w1", fates=("ok", "ok")),),
    pace=Pace(rate=1.0, burst=50, in_flight=50),
    outages=((0.0, 0.2, None, None, True),),
)


@st.composite
def beside(draw: st.DrawFn) -> Story:
    """The letter that fails twice beside others of other groups, to which everything may happen that is theirs alone.

    In its own workflow: what leaves a doubt. In others: also what is busy there, and one that is rejected.
    """
    doubt, busy = st.sampled_from(DOUBTFUL), st.sampled_from(["409", "412", "423"])
    same = st.builds(Letter, workflow=st.just("w1"), error=st.just(ERRORS[1]), fates=st.lists(doubt).map(tuple))
    other = st.builds(
        Letter,
        workflow=st.sampled_from(["w2", "w3"]),
        error=st.just(ERRORS[1]),
        fates=st.lists(st.one_of(doubt, busy), max_size=2).map(tuple),
    )
    letters = draw(st.lists(st.one_of(same, other), min_size=1, max_size=4))
    rejected: list[tuple[Fate, ...]] = [(), ("400",), ("403",), ("404",)]
    letters.append(Letter(workflow="w4", error=ERRORS[1], fates=draw(st.sampled_from(rejected))))
    some = st.lists(st.integers(1, len(letters) - 1), max_size=2).map(tuple)
    return replace(
        ALONE,
        letters=(*ALONE.letters, *letters),
        odd=draw(some),
        native=draw(some),
        restarts=draw(st.frozensets(st.integers(0, 60), max_size=2)),
    )


@examples(6, 200)
def test_what_becomes_of_a_letter_depends_on_no_other(examples: int) -> None:
    alone = played(ALONE).calls_of["d1"]
    assert len(alone) > 1

    def law(story: Story) -> None:
        assert played(story).calls_of["d1"] == pytest.approx(alone, abs=2 * STEP)

    plays(examples, beside(), law)


async def _turns_of(groups: list[int], room: int, folder: Path) -> list[str]:
    """The groups in the order in which they were served, until each letter was."""
    pace = Pace(rate=room / STEP, burst=room, in_flight=25)
    engine = Engine(folder, quick(pace=pace), EACH)
    await engine.start()
    try:
        await engine.sweep()
        engine.platform.well = Result.SUCCESS
        for number, size in enumerate(groups):
            for _ in range(size):
                engine.platform.add(f"w{number}", age=HOUR)
        await engine.until(lambda: len(engine.platform.met) >= sum(groups), within=6 * HOUR, step=STEP)
        return [engine.platform.items[name].workflow_id for _, name, _ in engine.platform.met]
    finally:
        await engine.stop()


@examples(8, 150)
def test_each_group_gets_its_turn(examples: int) -> None:
    """Between two calls for a group that has more to send, no other is called more than twice: its gate has room.

    A call needs its verdict before a new group is sent the next: so long it may be passed over once more.
    """

    def law(drawn: tuple[list[int], int]) -> None:
        groups, room = drawn
        with tempfile.TemporaryDirectory() as folder:
            loop = asyncio.new_event_loop()
            served = loop.run_until_complete(_turns_of(groups, room, Path(folder)))
            loop.close()
        for number, size in enumerate(groups):
            places = [-1, *(place for place, group in enumerate(served) if group == f"w{number}")]
            assert len(places) == size + 1
            for before, after in itertools.pairwise(places):
                between = Counter(served[before + 1 : after])
                assert max(between.values(), default=0) <= 2 + RUN_SECONDS * room / STEP + 1, (groups, served)

    plays(examples, st.tuples(st.lists(st.integers(1, 6), min_size=2, max_size=6), st.integers(1, 3)), law)


# A law that cannot fail says nothing.


def test_an_engine_that_stands_still_breaks_the_first_law(monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story(traits=EACH, letters=(Letter(workflow="w1"),), seconds=600.0)
    assert played(story).late == set()

    async def turn(engine: Engine) -> None: ...

    monkeypatch.setattr(Engine, "turn", turn)
    found = played(story)
    assert found.late == {"d1"}
    assert "X = " in said(found)
