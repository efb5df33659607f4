"""What a person is offered is never refused: the offers follow the very rules that the operations are begun by."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from exporter.model import DeadLetter, Error, ErrorClass, Result
from exporter.model.operations import OperationAction
from exporter.model.policy import Rules
from exporter.model.repairs import RepairAction
from exporter.model.retries import Action, Mode, Reason, Traits
from exporter.retries.control import ControlError, Found
from exporter.retries.facts import group_facts
from exporter.retries.operations import Selection
from tests.retries.made import EACH, HOUR, SERIAL, policy, quick
from tests.retries.repairing import RepairEngine
from tests.retries.test_repairs import observe
from tests.retries.world import SOURCE

Drawn = Callable[[random.Random], Awaitable[RepairEngine]]
WORDS = (OperationAction.APPROVE, OperationAction.RELEASE, OperationAction.RETRY, OperationAction.HOLD)
ERRORS = [Error(error_class=one, message=f"broken: {one}") for one in (ErrorClass.NETWORK, ErrorClass.TIMEOUT)]


@pytest.fixture
async def drawn(tmp_path: Path) -> AsyncIterator[Drawn]:
    made: list[RepairEngine] = []

    async def drawn(draw: random.Random) -> RepairEngine:
        """A source in some state: letters of several kinds, policies, words of people, retries under way or used up."""
        folder = tmp_path / str(len(made))
        folder.mkdir()
        engine = RepairEngine(folder, _rules(draw), draw.choice((EACH, SERIAL, Traits(effect="resume", absence=60.0))))
        engine.grant = [action for action in RepairAction if draw.random() < 0.5]
        made.append(engine)
        await engine.start()
        await engine.sweep()
        for _ in range(draw.randint(1, 6)):
            engine.platform.add(
                f"w{draw.randint(1, 2)}", age=HOUR, error=draw.choice(ERRORS), native=draw.random() < 0.1
            )
        await engine.sweep()
        again = [
            DeadLetter(
                id=f"again{n}", workflow_id="w3", opened_at=engine.clock.now() - HOUR, reruns=True, error=ERRORS[0]
            )
            for n in range(draw.randint(0, 2))
        ]
        await observe(engine, *again)
        engine.platform.results = [draw.choice((Result.SUCCESS, Result.FAILURE)) for _ in range(9)]
        for _ in range(draw.randint(0, 5)):
            await _something(engine, draw)
        await engine.turn()
        return engine

    yield drawn
    for engine in made:
        await engine.stop()


def _rules(draw: random.Random) -> Rules:
    owner = policy(
        {"error.class": ["network"]} if draw.random() < 0.5 else {},
        action=draw.choice((Action.RETRY, Action.RETRY, *Action)),
        approve=draw.choice(("none", "each", "first_of_group")),
        retries=draw.choice((0, 1, 3)),
        rerun=draw.random() < 0.3,
        exhausted=draw.choice((Action.QUARANTINE, Action.ESCALATE)),
        mode=draw.choice((Mode.ENFORCE, Mode.ENFORCE, *Mode)),
    )
    unknown = policy({"trigger": ["schedule"]}, action=Action.IGNORE, name="unknown")
    return quick(
        *([unknown] if draw.random() < 0.2 else []), owner, mode=draw.choice((Mode.ENFORCE, Mode.APPROVE, *Mode))
    )


async def _something(engine: RepairEngine, draw: random.Random) -> None:
    letters = list(engine.world.sources[SOURCE].dead_letters)
    if draw.random() < 0.2:
        await engine.control.pause(None, seconds=draw.choice((60.0, 10 * 86400.0)), who="ann")
    elif draw.random() < 0.3:
        await engine.live_on(draw.choice((60.0, 600.0)))
    elif letters:
        named = draw.sample(letters, draw.randint(1, len(letters)))
        action = draw.choice([*WORDS, OperationAction.QUARANTINE, *engine.grant])
        with suppress(ControlError):  # what is refused changes nothing
            await engine.begin(str(action), *named)
        await engine.turn()


async def accepted(engine: RepairEngine, action: OperationAction, *letters: str, group: str = "") -> None:
    """Not refused, unless by the platform, which is asked only once a person has."""
    grouped = Selection(group=group) if group and action in (*WORDS, OperationAction.DISCARD) else None
    try:
        await engine.begin(str(action), *letters, selection=grouped, dry_run=True)
    except ControlError as exc:
        assert action.is_repair  # of what is read here nothing else is refused
        assert str(exc).endswith(": it is so already"), exc  # noqa: PT017


@pytest.mark.parametrize("seed", range(60))
async def test_what_is_offered_is_accepted_and_what_is_not_offered_would_change_nothing(
    drawn: Drawn, seed: int
) -> None:
    engine = await drawn(random.Random(seed))
    operations = engine.operations
    for group in operations.groups():
        offered = operations.can(group)
        for action in offered:
            await accepted(engine, action, *group.letters, group=group.id)
        for action in set(WORDS) - {OperationAction.HOLD} - set(offered):
            with pytest.raises(ControlError):
                await engine.begin(str(action), selection=Selection(group=group.id), dry_run=True)
        commands = group_facts(group, offered)["can"]
        assert [command.split()[0] for command in commands] == offered
        named = f"{SOURCE}/{group.letters[0]}"
        assert all(command.endswith((f" --group {group.id}", f" {named}")) for command in commands)
    for found in operations.selected(Selection(between=(0.0, engine.clock.now()))) if operations.groups() else []:
        for action in operations.can_to([found]):
            await accepted(engine, action, found.subject.letter.id)


@pytest.mark.parametrize("seed", range(60, 100))
async def test_what_a_person_was_offered_comes_true(drawn: Drawn, seed: int) -> None:
    """After a retry at once no reason stands in the way that only another word of a person would end."""
    draw = random.Random(seed)
    engine = await drawn(draw)
    found: list[Found] = engine.operations.selected(Selection(between=(0.0, 2e9))) if engine.operations.groups() else []
    retried = [one for one in found if OperationAction.RETRY in engine.operations.can_to([one])]
    for one in draw.sample(retried, min(2, len(retried))):
        name = one.subject.letter.id
        await engine.begin("retry", name)
        ladder = engine.control.one(SOURCE, name).ladder
        refusing = {rung.reason for rung in ladder.rungs if rung.refuses}
        assert not refusing & {Reason.MODE, Reason.UNDETERMINED, Reason.NOT_ELIGIBLE, Reason.EXHAUSTED}, refusing
        assert ladder.manual


async def test_a_retry_that_starts_again_from_the_trigger_is_refused_where_no_policy_allows_it(drawn: Drawn) -> None:
    """Also where the policy wants no retry at all, or there is none: the ladder would refuse it later, unheard."""
    for action in (Action.ESCALATE, Action.HOLD):
        engine = await drawn(random.Random(1))
        await engine.restart(quick(policy(action=action), mode=Mode.ENFORCE))
        letter = DeadLetter(
            id="again", workflow_id="w9", opened_at=engine.clock.now() - HOUR, reruns=True, error=ERRORS[0]
        )
        await observe(engine, letter)
        await engine.turn()
        [group] = [group for group in engine.operations.groups() if group.letters == ["again"]]
        assert OperationAction.RETRY not in engine.operations.can(group)
        with pytest.raises(ControlError, match="from its trigger"):
            await engine.begin("retry", "again")
