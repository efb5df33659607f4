"""Retrying n8n's dead letters: what a look says before and after a call, against the simulator, over real HTTP."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from exporter.clock import SystemClock
from exporter.model import DeadLetter, ResolvedBy, Result
from exporter.platform.retrying import Look, Standing, Target
from exporter.platforms.n8n import PLATFORM
from exporter.platforms.n8n.retrying import N8nRetries
from exporter.simulator.n8n.model import Instance, Plan
from exporter.simulator.retries import RetryPlan
from exporter.wire.api import Api
from exporter.wire.budget import Budget
from exporter.wire.errors import ApiError, ErrorKind
from tests.platforms.n8n.instance import Source, instance

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture
async def made() -> AsyncIterator[Source]:
    async with instance(workflows=0) as made:
        yield made


async def failed(made: Source, *, error: str = "network", **settings: Any) -> tuple[DeadLetter, N8nRetries]:
    """A workflow with a success and a failed run that the sweeps have found, and the adapter."""
    one = made.simulator.add_workflow(settings=settings)
    at = made.clock.now()
    made.simulator.add_run(one, started_at=at - 9, ended_at=at - 5)
    await made.sweep()
    at = made.clock.now()
    made.simulator.add_run(one, started_at=at + 1, ended_at=at + 10, result="failure", error=error)
    await made.pass_time(60)
    await made.sweep()
    [letter] = made.known.dead_letters.values()
    return letter, N8nRetries(made.config, made.api)


async def sent(made: Source, adapter: N8nRetries, letter: DeadLetter) -> Target:
    """Look, then make the call while time passes; a lost answer leaves no handle."""
    before = await adapter.look(Target(letter=letter))
    assert (before.standing, before.refusal, list(before.efforts)) == (Standing.DEAD, None, [])
    sent_at, handle = made.api.platform_now(), None
    call = asyncio.ensure_future(adapter.send([letter], send_by=made.clock.now() + 1000))
    while not call.done():
        await asyncio.sleep(0.005)
        await made.pass_time(1.0)
    try:
        handle = call.result().handles[letter.id]
        assert handle is not None
    except ApiError as error:
        if not error.sent:
            raise
    return Target(letter=letter, mark=before.mark, sent_at=sent_at, handle=handle)


def told(look: Look) -> list[tuple[bool | None, Result | None]]:
    return [(effort.ours, effort.result) for effort in look.efforts]


@pytest.mark.parametrize(
    ("outcome", "result", "standing"),
    [("success", Result.SUCCESS, Standing.RESOLVED), ("failure", Result.FAILURE, Standing.DEAD)],
)
async def test_the_answer_names_the_new_run(made: Source, outcome: str, result: Result, standing: Standing) -> None:
    letter, adapter = await failed(made)
    made.simulator.plan_retries(outcome)
    target = await sent(made, adapter, letter)
    look = await adapter.look(target)
    assert told(look) == [(True, result)]
    assert look.standing is standing
    resolved = [o for o in look.observations if isinstance(o, DeadLetter)]
    assert [o.resolved_by for o in resolved] == ([ResolvedBy.MANUAL] if standing is Standing.RESOLVED else [])


async def test_what_is_retried_is_the_newest_failure_of_the_chain(made: Source) -> None:
    letter, adapter = await failed(made)
    newest = made.simulator.retry_by_person(letter.id, outcome="failure")
    await made.pass_time(60)
    made.simulator.plan_retries("failure")
    target = await sent(made, adapter, letter)
    made_run = made.simulator.world.rows[int(target.handle or 0)]
    assert made_run.retry_of == int(newest)
    assert told(await adapter.look(target)) == [(True, Result.FAILURE)]


class Cut:
    """What cuts the connection at the answer to a retry, and from then on to everything, until it is mended."""

    def __init__(self) -> None:
        self.broken = False

    @property
    def middleware(self) -> Any:
        @web.middleware
        async def cut(request: web.Request, handler: Handler) -> web.StreamResponse:
            answer = await handler(request)
            self.broken = self.broken or request.path.endswith("/retry")
            if self.broken and request.transport is not None:
                request.transport.close()
            return answer

        return cut


async def test_a_lost_answer_is_found_by_the_row_that_names_the_execution() -> None:
    cut = Cut()
    async with instance(workflows=0, middlewares=[cut.middleware]) as made:
        letter, adapter = await failed(made)
        made.simulator.plan_retries("success")
        target = await sent(made, adapter, letter)
        assert target.handle is None
        cut.broken = False
        assert told(await adapter.look(target)) == [(True, Result.SUCCESS)]


async def test_a_lost_answer_beside_somebody_elses_retry_is_nobodys_to_tell(made: Source) -> None:
    letter, adapter = await failed(made)
    before = await adapter.look(Target(letter=letter))
    at = made.api.platform_now()
    for _ in range(2):
        made.simulator.retry_by_person(letter.id, outcome="failure")
    await made.pass_time(60)
    look = await adapter.look(Target(letter=letter, mark=before.mark, sent_at=at))
    assert told(look) == [(None, Result.FAILURE), (None, Result.FAILURE)]


async def test_a_retry_of_somebody_else_long_after_the_call_is_not_ours(made: Source) -> None:
    letter, adapter = await failed(made)
    before = await adapter.look(Target(letter=letter))
    at = made.api.platform_now()
    await made.pass_time(120)
    made.simulator.retry_by_person(letter.id, outcome="failure")
    await made.pass_time(60)
    look = await adapter.look(Target(letter=letter, mark=before.mark, sent_at=at))
    assert told(look) == [(None, Result.FAILURE)]


async def test_a_call_that_never_arrived_leaves_no_effort_and_a_dead_letter(made: Source) -> None:
    letter, adapter = await failed(made)
    made.simulator.plan_retries(RetryPlan(fate="lost"))
    target = await sent(made, adapter, letter)
    await made.pass_time(120)
    look = await adapter.look(target)
    assert (look.standing, told(look)) == (Standing.DEAD, [])


async def test_while_any_of_the_chain_runs_or_waits_nothing_is_sent(made: Source) -> None:
    letter, adapter = await failed(made)
    origin = made.simulator.world.rows[int(letter.id)]
    retry = made.simulator.world.retry(origin, plan=Plan(works=None), by_api=False)
    assert (await adapter.look(Target(letter=letter))).standing is Standing.BUSY
    with pytest.raises(ApiError) as refused:
        await adapter.send([letter], send_by=made.clock.now() + 10)
    assert not refused.value.sent
    retry.status, retry.stopped = "waiting", made.simulator.world.now
    assert (await adapter.look(Target(letter=letter))).standing is Standing.BUSY
    assert made.simulator.retry_calls == {}


async def test_what_was_healed_is_never_sent_again_however_deep_in_the_chain(made: Source) -> None:
    letter, adapter = await failed(made)
    child = made.simulator.retry_by_person(letter.id, outcome="failure")
    await made.pass_time(30)
    made.simulator.retry_by_person(child, outcome="success")
    await made.pass_time(30)
    look = await adapter.look(Target(letter=letter))
    assert look.standing is Standing.RESOLVED
    with pytest.raises(ApiError) as refused:
        await adapter.send([letter], send_by=made.clock.now() + 10)
    assert not refused.value.sent
    assert made.simulator.retry_calls == {}


async def test_a_retry_that_somebody_stopped_is_not_repeated(made: Source) -> None:
    letter, adapter = await failed(made)
    retry = made.simulator.world.retry(made.simulator.world.rows[int(letter.id)], plan=Plan(works=None), by_api=False)
    made.simulator.world.stop(retry)
    look = await adapter.look(Target(letter=letter))
    assert look.refusal == "its last retry was stopped"


@pytest.mark.parametrize("setting", ["saveDataSuccessExecution", "saveDataErrorExecution"])
async def test_a_workflow_whose_runs_are_not_saved_is_not_retried(made: Source, setting: str) -> None:
    letter, adapter = await failed(made)
    made.simulator.world.workflows[letter.workflow_id].settings[setting] = "none"
    look = await adapter.look(Target(letter=letter))
    assert look.asks is not None
    assert "does not save" in look.asks
    # And where it was sent before that was changed, an absent row proves nothing.
    look = await adapter.look(Target(letter=letter, mark=look.mark, sent_at=made.clock.now()))
    assert look.standing is Standing.BUSY


async def test_where_the_instance_saves_no_successes_nothing_is_retried_until_the_config_says_it_does() -> None:
    async with instance(workflows=0, instance=Instance(save_success=False)) as made:
        letter, adapter = await failed(made)
        assert (await adapter.look(Target(letter=letter))).asks is not None
        made.config = made.config.model_copy(update={"save_successes": "all"})
        assert (await N8nRetries(made.config, made.api).look(Target(letter=letter))).asks is None
        assert adapter is not None


@pytest.mark.parametrize(("setting", "refused"), [(None, False), ("all", True)])
async def test_what_the_instance_saves_shows_in_any_workflow_that_leaves_it_to_it(
    made: Source, setting: str | None, refused: bool
) -> None:
    at = made.clock.now()
    other = made.simulator.add_workflow(settings={} if setting is None else {"saveDataSuccessExecution": setting})
    made.simulator.add_run(other, started_at=at - 9, ended_at=at - 5)
    never = made.simulator.add_workflow()
    await made.sweep()
    made.simulator.add_run(never, started_at=at + 1, ended_at=at + 2, result="failure", error="network")
    await made.pass_time(60)
    await made.sweep()
    [letter] = made.known.dead_letters.values()
    look = await N8nRetries(made.config, made.api).look(Target(letter=letter))
    assert (look.asks is not None) is refused


async def test_an_execution_that_is_gone_or_anothers_by_now_is_gone(made: Source) -> None:
    letter, adapter = await failed(made)
    other = DeadLetter(
        id=letter.id, workflow_id=letter.workflow_id, run_id=letter.id, opened_at=letter.opened_at - 86_400
    )
    assert (await adapter.look(Target(letter=other))).standing is Standing.GONE
    made.simulator.delete_run(letter.id)
    assert (await adapter.look(Target(letter=letter))).standing is Standing.GONE


async def test_a_refused_look_is_an_error_and_no_word(made: Source) -> None:
    letter, adapter = await failed(made)
    made.simulator.fail_next("unavailable", "unavailable", "unavailable")
    with pytest.raises(ApiError) as refused:
        await adapter.look(Target(letter=letter))
    assert refused.value.kind is ErrorKind.UNAVAILABLE


def real_time(made: Source) -> Api:
    """What asks the instance by a clock that nobody moves."""
    clock = SystemClock()
    api = Api(
        base_url=made.config.url,
        clock=clock,
        budget=Budget(clock, share=1.0, default_per_minute=1e6),
        auth=PLATFORM.auth(made.config),
        user_agent="test",
        error_detail=PLATFORM.error_detail,
        timeout=60.0,
    )
    made.apis.append(api)
    return api


async def test_the_call_has_a_timeout_of_its_own_and_a_broken_one_was_sent() -> None:
    """On a real clock: the answer comes when the run has ended, which here is never."""
    over = asyncio.Event()

    @web.middleware
    async def hold(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.endswith("/retry"):
            await over.wait()
        return await handler(request)

    async with instance(workflows=0, middlewares=[hold]) as made:
        letter, _ = await failed(made)
        made.config = made.config.model_copy(update={"retry_timeout": 0.2})
        with pytest.raises(ApiError) as lost:
            await N8nRetries(made.config, real_time(made)).send([letter], send_by=SystemClock().now() + 60)
        over.set()
        assert (lost.value.kind, lost.value.sent) == (ErrorKind.TIMEOUT, True)
        assert "0.2 s" in str(lost.value)


async def busy(made: Source, letter: DeadLetter, runs: int) -> None:
    """So many runs of its workflow, well and fast."""
    for _ in range(runs):
        at = made.clock.now()
        made.simulator.add_run(letter.workflow_id, started_at=at, ended_at=at + 0.05)
        await made.clock.advance(0.1)
    await made.pass_time(1.0)


async def test_in_a_busy_workflow_a_success_is_found_whose_parent_is_long_past(made: Source) -> None:
    letter, adapter = await failed(made)
    first = made.simulator.retry_by_person(letter.id, outcome="failure")
    await busy(made, letter, 1100)
    assert (await adapter.look(Target(letter=letter))).standing is Standing.DEAD
    made.simulator.retry_by_person(first, outcome="success")
    await made.pass_time(30)
    assert (await adapter.look(Target(letter=letter))).standing is Standing.RESOLVED
    with pytest.raises(ApiError) as refused:
        await adapter.send([letter], send_by=made.clock.now() + 10)
    assert not refused.value.sent


@pytest.mark.parametrize("lost", [False, True])
async def test_in_a_busy_workflow_the_run_of_a_call_is_found_however_many_came_after(lost: bool) -> None:
    cut = Cut()
    async with instance(workflows=0, middlewares=[cut.middleware] if lost else []) as made:
        letter, adapter = await failed(made)
        made.simulator.plan_retries("failure")
        target = await sent(made, adapter, letter)
        assert (target.handle is None) is lost
        cut.broken = False
        await busy(made, letter, 1100)
        assert told(await adapter.look(target)) == [(True, Result.FAILURE)]


async def test_where_too_many_came_after_a_call_its_absence_proves_nothing(made: Source) -> None:
    letter, adapter = await failed(made)
    made.simulator.plan_retries(RetryPlan(fate="lost"))
    target = await sent(made, adapter, letter)
    await busy(made, letter, 260)
    assert (await adapter.look(target)).standing is Standing.DEAD
    look = await N8nRetries(made.config, made.api, pages_max=1).look(target)
    assert (look.standing, told(look)) == (Standing.BUSY, [])


async def test_a_server_that_starts_has_lost_nothing(made: Source) -> None:
    """For some seconds it says of everything that it is not there, in a page that is not its API's."""
    letter, adapter = await failed(made)
    made.simulator.kill()
    made.simulator.restart(after=1000)
    await made.pass_time(999)
    with pytest.raises(ApiError) as not_yet:
        await adapter.look(Target(letter=letter))
    assert not_yet.value.kind is ErrorKind.UNAVAILABLE
    with pytest.raises(ApiError) as refused:
        await adapter.send([letter], send_by=made.clock.now() + 1000)
    assert not refused.value.sent
    await made.pass_time(1)
    assert (await adapter.look(Target(letter=letter))).standing is Standing.DEAD


@pytest.mark.parametrize("somebody_else", [False, True])
async def test_a_run_that_takes_longer_than_anybody_waits_is_known_by_its_row(somebody_else: bool) -> None:
    """On a real clock: the answer comes when the run has ended, which here is never."""
    over = asyncio.Event()

    @web.middleware
    async def run(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.endswith("/retry"):
            world = source.simulator.world
            for _ in range(1 + somebody_else):
                world.retry(world.rows[int(request.path.split("/")[-2])], plan=Plan(works=None), by_api=True)
            await over.wait()
        return await handler(request)

    async with instance(workflows=0, middlewares=[run]) as source:
        letter, _ = await failed(source)
        source.config = source.config.model_copy(update={"retry_timeout": 0.2})
        adapter = N8nRetries(source.config, real_time(source))
        before = await adapter.look(Target(letter=letter))
        sending = adapter.send([letter], send_by=SystemClock().now() + 60)
        if somebody_else:
            with pytest.raises(ApiError) as lost:
                await sending
            assert (lost.value.kind, lost.value.sent) == (ErrorKind.TIMEOUT, True)
        else:
            handle = (await sending).handles[letter.id]
            look = await adapter.look(Target(letter=letter, mark=before.mark, sent_at=0.0, handle=handle))
            assert (look.standing, told(look)) == (Standing.BUSY, [(True, None)])
        over.set()


async def test_what_was_known_of_a_chain_stays_known_however_far_back_it_is(made: Source) -> None:
    """A call that n8n refused is looked at once more before the next, by what was known then."""
    letter, adapter = await failed(made)
    first = made.simulator.retry_by_person(letter.id, outcome="failure")
    await made.pass_time(30)
    before = await adapter.look(Target(letter=letter))
    await busy(made, letter, 1100)
    again = await adapter.look(Target(letter=letter, mark=before.mark))
    assert again.mark == before.mark == [int(letter.id), int(first)]
    assert told(again) == []
