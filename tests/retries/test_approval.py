"""What a person has not approved is not sent: in the mode `approve`, whoever set it and whatever the policy asks."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from exporter.model import Result
from exporter.model.policy import Pace, Rules, SourceRules
from exporter.model.retries import Mode, OverrideAction, Scope, Traits
from exporter.wire.errors import ApiError, ErrorKind
from tests.retries.made import DAY, policy, rules
from tests.retries.world import SOURCE, Engine

RESUME = Traits(effect="resume", handle="same_id", serial=False, bulk_max=5)
PACE = Pace(rate=1.0, burst=50, in_flight=50)
ROOMY = {SOURCE: SourceRules(pace=PACE)}
BY = ("error.class",)


def lowered(cause: str, approve: str) -> Rules:
    match cause:
        case "engine":
            return rules(policy(approve=approve, group_by=BY), mode=Mode.APPROVE, sources=ROOMY)
        case "source":
            low = {SOURCE: SourceRules(mode=Mode.APPROVE, pace=PACE)}
            return rules(policy(approve=approve, group_by=BY), sources=low)
        case "policy":
            return rules(policy(approve=approve, group_by=BY, mode=Mode.APPROVE), sources=ROOMY)
        case _:
            return rules(policy(approve=approve, group_by=BY), sources=ROOMY)


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    made: list[Engine] = []

    async def make(by: Rules, traits: Traits = RESUME) -> Engine:
        engine = Engine(tmp_path, by, traits)
        made.append(engine)
        await engine.start()
        await engine.sweep()
        return engine

    yield make
    for engine in made:
        await engine.stop()


async def refused_credential(engine: Engine) -> None:
    """A call that the platform answers with 401: the source is lowered."""
    send = engine.platform.send

    async def refuse(letters: Any, *, send_by: float) -> Any:
        raise ApiError(ErrorKind.AUTH, endpoint="POST /retry", detail="no", status=401)

    engine.platform.send = refuse  # type: ignore[method-assign]
    other = engine.platform.add("other")

    def said() -> set[OverrideAction]:
        return {override.action for override in engine.book.overrides}

    while OverrideAction.LOWER not in said():
        await engine.live(30)
        if OverrideAction.APPROVE not in said() and engine.control.everything()[0].ladder.decision.awaits_approval:
            await engine.approve([(SOURCE, other.id)])
    other.gone = True
    engine.platform.send = send  # type: ignore[method-assign]
    await engine.live(30)


def agree(engine: Engine) -> None:
    """The engine, and whoever asks beside it, say the same."""
    for one in engine.control.everything():
        assert engine.book.decisions[SOURCE, one.subject.letter.id].label == one.ladder.decision.label


@pytest.mark.parametrize("approve", ["none", "first_of_group", "each"])
@pytest.mark.parametrize("cause", ["engine", "source", "policy", "credential"])
async def test_in_approve_nothing_is_sent_that_nobody_approved(
    make: Callable[..., Any], cause: str, approve: str
) -> None:
    engine: Engine = await make(lowered(cause, approve))
    if cause == "credential":
        await refused_credential(engine)
    first, second = engine.platform.add("w1"), engine.platform.add("w2")
    engine.platform.results = [Result.SUCCESS]
    await engine.live(1800)
    assert engine.platform.calls == []
    assert engine.control.awaiting("p") == [(SOURCE, first.id), (SOURCE, second.id)]
    agree(engine)
    await engine.approve([(SOURCE, first.id)])
    await engine.restart()
    await engine.live(600)
    if cause == "credential" and approve != "each":  # accepted: the credential is good again
        assert {name for _, name, _ in engine.platform.calls} == {first.id, second.id}
        return
    assert [name for _, name, _ in engine.platform.calls] == [first.id]
    later = engine.platform.add("w1")
    await engine.live(1800)
    await engine.restart()
    await engine.live(6 * 3600, step=120)
    assert [name for _, name, _ in engine.platform.calls] == [first.id]
    agree(engine)
    assert engine.control.awaiting("p") == [(SOURCE, second.id), (SOURCE, later.id)]
    await engine.approve(engine.control.awaiting("p"))
    await engine.live(6 * 3600, step=120)
    assert sorted(name for _, name, _ in engine.platform.calls) == sorted([first.id, second.id, later.id])
    assert all(retry.approved_by == "ann" for retry in engine.retries() if retry.workflow_id != "other")


@pytest.mark.parametrize("times", [1, 3])
async def test_what_fails_again_asks_again_however_often_it_was_approved(make: Callable[..., Any], times: int) -> None:
    engine: Engine = await make(lowered("engine", "none"))
    engine.platform.add("w1")
    await engine.live(1800)
    for _ in range(times):
        await engine.approve([(SOURCE, "d1")])
    await engine.live(6 * 3600, step=60)
    assert len(engine.platform.calls) == 1
    assert engine.control.awaiting("p") == [(SOURCE, "d1")]


async def test_what_the_policy_asks_about_in_enforce_says_so_and_is_approved_by_policy(
    make: Callable[..., Any],
) -> None:
    engine: Engine = await make(lowered("none", "each"))
    engine.platform.add("w1")
    await engine.live(60)  # still within its backoff
    assert engine.control.awaiting("p") == [(SOURCE, "d1")]
    await engine.approve(engine.control.awaiting("p"))
    await engine.live(600)
    assert engine.platform.calls == []
    await engine.live(600)
    assert len(engine.platform.calls) == 1


async def worked(engine: Engine) -> None:
    """The first of a group was approved, and has worked."""
    engine.platform.add("w1")
    await engine.live(1800)
    assert engine.platform.calls == []
    engine.platform.results = [Result.SUCCESS]
    await engine.approve([(SOURCE, "d1")])
    await engine.live(1200)
    assert len(engine.platform.calls) == 1


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("end", ["", "failure", "lowered", "late", "recurred"])
async def test_an_approval_of_a_group_holds_until_something_ends_it(
    make: Callable[..., Any], end: str, restarted: bool
) -> None:
    engine: Engine = await make(lowered("none", "first_of_group"))
    await worked(engine)
    calls = 1
    if end == "failure":
        engine.platform.add("w2")
        await engine.live(1200)
        calls = 2
        engine.platform.items.pop("d2", None)
    elif end == "recurred":
        engine.platform.add("w2")
        engine.platform.results = [Result.SUCCESS]
        while len(engine.platform.calls) < 2:
            await engine.live(30)
        await engine.live(60)
        engine.platform.add("w2")  # the same, within the settling time
        await engine.live(30)
        calls = 2
    elif end == "lowered":
        now = engine.clock.now()
        word = engine.control.word(OverrideAction.LOWER, scope=Scope.SOURCE, source=SOURCE, until=now + DAY, who="ann")
        await engine.book.put([word], now=now)
        assert engine.clock.now() == now
        await engine.control.resume(SOURCE, who="ann")
    elif end == "late":
        await engine.live(7 * DAY, step=DAY / 2)
    if restarted:
        await engine.restart()
    engine.platform.add("w9")
    engine.platform.results = [Result.SUCCESS]
    await engine.live(1800)
    agree(engine)
    assert len(engine.platform.calls) == calls + (end == "")
    assert bool(end) == any(f.ladder.decision.awaits_approval for f in engine.control.everything())


async def test_what_nobody_could_tell_a_person_has_to_ask_for(make: Callable[..., Any]) -> None:
    """In enforce as well: a platform says that what came of a retry could not be told."""
    engine: Engine = await make(rules(policy()))
    item = engine.platform.add("w1")
    item.asks = "its workflow does not save successes"
    engine.platform.results = [Result.SUCCESS]
    await engine.live(3 * 3600)
    assert engine.platform.calls == []
    assert "a person may approve it" in engine.book.decisions[SOURCE, item.id].detail
    await engine.approve([(SOURCE, item.id)])
    await engine.live(60)
    assert [name for _, name, _ in engine.platform.calls] == [item.id]
