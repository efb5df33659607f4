"""What lists leave open: causes, runs read alone, runs that vanish, events that say too little, rights that lack."""

from collections.abc import Awaitable, Callable

import orjson
import pytest
from aiohttp import web

from exporter.model import Error, ErrorClass, Result, Via
from exporter.platform import RunKey
from exporter.simulator.core import Faults
from exporter.wire.errors import ApiError, ErrorKind
from tests.platforms.known import MemoryKnown
from tests.platforms.qlik.tenant import API, LIST, RUN, RUNS, START, Tenant, counting, tenant

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
HOUR = 3600.0


@web.middleware
async def wordless_lists(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A platform whose lists say nothing of why a run failed."""
    response = await handler(request)
    if not isinstance(response, web.Response) or not request.path.endswith(("/automations", "/runs")):
        return response
    assert isinstance(response.body, bytes)
    body = orjson.loads(response.body)
    for item in body.get("data", []):
        run = item if "status" in item else item.get("lastRun") or {}
        run["error"] = None
    response.body = orjson.dumps(body)
    return response


def fail(made: Tenant, workflow_id: str, *, after: float, error: str = "network") -> str:
    at = made.clock.now() + after
    return made.simulator.add_run(workflow_id, started_at=at, ended_at=at + 5, result="failure", error=error)


# Causes


async def test_a_cause_the_list_does_not_tell_is_asked_for_once() -> None:
    async with tenant(workflows=0, middlewares=[wordless_lists]) as made:
        one = made.simulator.add_workflow()
        await made.sweep()
        failed = fail(made, one, after=1)
        made.simulator.add_run(one, started_at=START + 2, ended_at=START + 9)
        await made.pass_time(60)
        with counting(made) as spent:
            await made.sweep()
        assert spent == {LIST: 1, RUNS: 1, RUN: 1}
        assert made.known.errors() == {(one, "network"): 1}
        letter = made.known.dead_letters[failed]
        assert letter.error == made.known.runs[failed].run.error
        assert letter.error is not None
        assert letter.error.error_class is ErrorClass.NETWORK
        made.simulator.add_run(one, started_at=START + 70, ended_at=START + 75)
        await made.pass_time(60)
        made.restart()
        with counting(made) as spent:
            await made.sweep()
        assert spent == {LIST: 1, RUNS: 1}  # the failed run is listed again, its cause is known
        assert not made.new_faults()


async def test_a_cause_of_a_superseded_failure_is_not_asked_for_again() -> None:
    async with tenant(workflows=0, middlewares=[wordless_lists]) as made:
        made.known = MemoryKnown(superseded_by_success=True)
        one = made.simulator.add_workflow()
        await made.sweep()
        fail(made, one, after=1)
        for start in (START + 10, START + 70):
            made.simulator.add_run(one, started_at=start, ended_at=start + 5)
        await made.pass_time(60)
        await made.sweep()
        assert not made.known.dead_letters
        await made.pass_time(60)
        with counting(made) as spent:
            await made.sweep()
        assert spent == {LIST: 1, RUNS: 1}
        assert made.known.errors() == {(one, "network"): 1}


async def test_only_failed_runs_are_read_alone() -> None:
    async with tenant(workflows=6, middlewares=[wordless_lists]) as made:
        await made.sweep()
        with counting(made) as spent:
            for _ in range(30):
                await made.pass_time(60)
                await made.sweep()
        failures = sum(made.real_causes().values())
        quota = sum(count for (_, cause), count in made.real_causes().items() if cause == "quota")
        assert spent[RUN] == failures - quota  # an exceeded limit says what it is
        assert made.known.errors() == made.real_causes()
        assert made.known.counts() == made.really()


async def test_runs_are_told_before_their_causes_and_a_cause_that_fails_is_asked_for_again() -> None:
    async with tenant(workflows=0, middlewares=[wordless_lists]) as made:
        one = made.simulator.add_workflow()
        await made.sweep()
        fail(made, one, after=1)
        made.simulator.add_run(one, started_at=START + 2, ended_at=START + 9)
        await made.pass_time(60)
        await made.sweep("workflows")
        before = made.known.cursors("runs").get(one)
        made.simulator.faults = Faults(slow_seconds=0)
        made.simulator.fail_next(
            "slow", "unavailable", "unavailable", "unavailable"
        )  # the list works, the run does not
        await made.sweep("runs")
        assert made.known.counts() == made.really()
        assert not made.known.errors()
        assert [(fault.kind, fault.workflow_id) for fault in made.new_faults()] == [(ErrorKind.UNAVAILABLE, one)]
        assert made.known.cursors("runs").get(one) == before
        await made.sweep("runs")
        assert made.known.errors() == {(one, "network"): 1}
        assert made.known.cursors("runs").get(one) != before


async def test_a_cause_the_platform_cannot_tell_for_an_hour_is_unknown() -> None:
    async with tenant(workflows=0, middlewares=[wordless_lists]) as made:
        one = made.simulator.add_workflow()
        await made.sweep()
        fail(made, one, after=1)
        made.simulator.add_run(one, started_at=START + 2, ended_at=START + 9)
        await made.pass_time(HOUR + 60)
        await made.sweep("workflows")
        made.simulator.faults = Faults(slow_seconds=0)
        made.simulator.fail_next("slow", "unavailable", "unavailable", "unavailable")
        await made.sweep("runs")
        assert made.known.errors() == {(one, "unknown"): 1}
        assert not made.new_faults()


@pytest.mark.parametrize("kind", ["truncated", "ok_html"])
async def test_a_cause_that_cannot_be_had_is_unknown_and_counted(kind: str) -> None:
    async with tenant(workflows=0, middlewares=[wordless_lists]) as made:
        one = made.simulator.add_workflow()
        await made.sweep()
        failed = fail(made, one, after=1)
        made.simulator.add_run(one, started_at=START + 2, ended_at=START + 9)
        await made.pass_time(60)
        await made.sweep("workflows")
        made.simulator.faults = Faults(slow_seconds=0)
        made.simulator.fail_next("slow", kind)
        await made.sweep("runs")
        assert made.known.errors() == {(one, "unknown"): 1}
        assert made.known.dead_letters[failed].error == Error()


async def test_an_admin_who_may_list_but_not_read_runs_of_others_counts_them_without_a_cause() -> None:
    async with tenant(workflows=0, middlewares=[wordless_lists]) as made:
        private = made.simulator.add_workflow(owner_id="somebody-else")
        await made.sweep()
        fail(made, private, after=1, error="auth")
        await made.pass_time(60)
        with counting(made) as spent:
            await made.sweep()
            await made.sweep()
        assert spent[RUN] == 1
        assert made.known.counts() == made.really()
        assert made.known.errors() == {(private, "unknown"): 1}
        assert not made.new_faults()


async def test_more_causes_than_a_sweep_may_ask_for_are_asked_for_in_the_next() -> None:
    async with tenant(workflows=0, middlewares=[wordless_lists]) as made:
        one, two = made.simulator.add_workflow(), made.simulator.add_workflow()
        await made.sweep()
        for number in range(6):
            fail(made, one, after=1 + number)
            fail(made, two, after=1 + number, error="conflict")
        await made.pass_time(60)
        made.restart(details_max=5)
        for _ in range(3):
            with counting(made) as spent:
                await made.sweep()
            assert spent[RUN] <= 5
        assert made.known.counts() == made.really()
        assert made.known.errors() == {(one, "network"): 6, (two, "conflict"): 6}
        assert "truncated" in {fault.kind for fault in made.new_faults()}
        await made.sweep()
        assert not made.new_faults()


# Open runs


async def test_open_runs_of_an_automation_that_is_gone_are_over() -> None:
    async with tenant(workflows=0) as made:
        one, two, idle = (made.simulator.add_workflow() for _ in range(3))
        run = made.simulator.add_run(one, started_at=START - 10, ended_at=START + HOUR)
        made.simulator.add_run(idle, started_at=START - 10, ended_at=START - 5)
        other = made.simulator.add_run(two, started_at=START - 10, ended_at=START + 90)
        await made.sweep()
        assert set(made.known.open_runs) == {run, other}
        made.simulator.delete_workflow(one)
        made.simulator.delete_workflow(idle)
        await made.pass_time(120)
        await made.sweep()
        assert not made.known.open_runs
        assert made.known.runs[run].run.result is Result.UNKNOWN
        assert made.known.runs[other].run.result is Result.SUCCESS
        for _ in range(20):
            await made.pass_time(120)
            with counting(made) as spent:
                await made.sweep()
            assert spent == {LIST: 1}
        assert set(made.known.workflows) == {two}
        assert set(made.known.cursors("workflows")) == {two, ""}
        assert set(made.known.cursors("runs")) == {two}
        assert not made.new_faults()


async def test_an_open_run_the_list_does_not_have_is_read_alone_before_it_is_called_over() -> None:
    async with tenant(workflows=0) as made:
        one = made.simulator.add_workflow()
        old = made.simulator.add_run(one, started_at=START - 9 * HOUR, ended_at=START + 3 * HOUR, result="warning")
        lost = made.simulator.add_run(one, started_at=START - 5, ended_at=START + HOUR)
        for number in range(200):  # further back than anybody reads
            at = START - 6 * HOUR + number
            made.simulator.add_run(one, started_at=at, ended_at=at + 1)
        await made.sweep("workflows")  # tells of the last one only
        await made.complete([RunKey(run_id=old, workflow_id=one)])
        assert set(made.known.open_runs) == {old, lost}
        del made.simulator.world.workflows[one].runs[lost]
        for number in range(120):
            at = START + 1 + number
            made.simulator.add_run(one, started_at=at, ended_at=at + 1)
        await made.pass_time(300)
        with counting(made) as spent:
            await made.sweep()
        assert spent[RUN] == 2
        assert set(made.known.open_runs) == {old}
        assert made.known.runs[lost].run.result is Result.UNKNOWN
        await made.pass_time(3 * HOUR)
        await made.sweep()
        assert made.known.runs[old].run.result is Result.WARNING


# Events


@pytest.mark.parametrize("envelope", ["cloudevents", "legacy", "hybrid"])
async def test_events_and_polls_together_count_every_run_once(envelope: str) -> None:
    faults = Faults(webhook_lost=0.2, webhook_duplicated=0.2, webhook_shuffled=0.3)
    async with tenant(workflows=6, envelope=envelope, secret="s" * 32, faults=faults) as made:
        await made.sweep()
        for minute in range(60):
            await made.pass_time(60)
            await made.complete(await made.deliver())
            if minute % 5 == 0:
                await made.sweep()
        await made.sweep()
        assert made.known.counts() == made.really()
        assert made.known.errors() == made.real_causes()
        ways = {change.via for change in made.known.changes if hasattr(change, "via")}
        assert ways == {Via.WEBHOOK, Via.POLL}
        assert not made.new_faults()


async def test_an_event_of_a_failure_is_completed_with_its_cause() -> None:
    async with tenant(workflows=0) as made:
        one = made.simulator.add_workflow()
        await made.sweep()
        failed = fail(made, one, after=1, error="not_found")
        await made.pass_time(10)
        keys = await made.deliver()
        assert keys == [RunKey(run_id=failed, workflow_id=one)]
        assert made.known.counts() == {(one, "failure"): 1}
        assert not made.known.errors()
        with counting(made) as spent:
            await made.complete(keys)
        assert spent == {RUN: 1}
        assert made.known.errors() == {(one, "not_found"): 1}
        assert made.known.runs[failed].run.bytes_in is not None


async def test_where_a_run_may_not_be_read_alone_an_event_is_completed_from_the_list() -> None:
    async with tenant(workflows=0) as made:
        private = made.simulator.add_workflow(owner_id="somebody-else")
        await made.sweep()
        fail(made, private, after=1, error="not_found")
        await made.pass_time(10)
        with counting(made) as spent:
            await made.complete(await made.deliver())
        assert spent == {RUN: 1, RUNS: 1}
        assert made.known.errors() == {(private, "not_found"): 1}


async def test_a_run_an_event_names_that_does_not_exist_is_a_fault() -> None:
    async with tenant(workflows=1) as made:
        await made.sweep()
        (workflow_id,) = made.known.workflows
        await made.complete([RunKey(run_id="nowhere", workflow_id=workflow_id), RunKey(run_id="nobody")])
        assert [(fault.kind, fault.workflow_id) for fault in made.new_faults()] == [(ErrorKind.NOT_FOUND, workflow_id)]


# Listings


@pytest.mark.parametrize("null_links", [True, False])
async def test_every_page_of_the_listing_is_read_and_only_then_it_is_complete(null_links: bool) -> None:
    async with tenant(workflows=0, null_links=null_links) as made:
        workflows = {made.simulator.add_workflow(f"automation-{number:04}") for number in range(450)}
        with counting(made) as spent:
            await made.sweep("workflows")
        assert spent == {LIST: 3}
        assert set(made.known.workflows) == workflows
        made.simulator.delete_workflow("automation-0007")
        for _ in range(2):
            await made.pass_time(HOUR)
            made.simulator.faults = Faults(slow_seconds=0)
            made.simulator.fail_next("slow", "slow", "ok_html")
            with pytest.raises(ApiError):
                await made.sweep("workflows")
        assert set(made.known.workflows) == workflows  # half a listing makes nobody gone
        for _ in range(2):
            await made.pass_time(HOUR)
            await made.sweep("workflows")
        assert set(made.known.workflows) == workflows - {"automation-0007"}


async def test_names_and_states_are_as_listed_last() -> None:
    async with tenant(workflows=0) as made:
        one = made.simulator.add_workflow(name="Before", run_mode="scheduled", space_id="space-1")
        await made.sweep()
        first = made.known.workflows[one]
        assert (first.name, first.workspace, first.trigger, first.enabled) == ("Before", "space-1", "schedule", True)
        made.simulator.rename_workflow(one, "After")
        made.simulator.set_enabled(one, False)
        await made.pass_time(60)
        await made.sweep()
        assert (made.known.workflows[one].name, made.known.workflows[one].enabled) == ("After", False)


async def test_automations_left_out_are_neither_read_nor_told_of() -> None:
    async with tenant(workflows=0) as made:
        made.reconfigure(include=["Night*", "by-id"], exclude=["*copy*"])
        for workflow_id, name in [("a", "Nightly"), ("b", "Nightly copy"), ("c", "Daily"), ("by-id", "x")]:
            made.simulator.add_workflow(workflow_id, name)
            made.simulator.add_run(workflow_id, started_at=START - 9, ended_at=START + 9)
        await made.sweep()
        await made.pass_time(60)
        with counting(made) as spent:
            await made.sweep()
        assert spent == {LIST: 1, RUNS: 2}
        assert set(made.known.entries) == {"a", "by-id"}
        assert made.known.counts() == {("a", "success"): 1, ("by-id", "success"): 1}
        with counting(made) as spent:
            await made.complete([RunKey(run_id="any", workflow_id="c")])
        assert set(spent) <= {RUN}  # unknown here, so its name is unknown: it may be asked for, and is not found


async def test_the_older_prefix_works_the_same() -> None:
    async with tenant(workflows=4) as made:
        made.reconfigure(api_prefix="/api/v1/automations")
        await made.sweep()
        await made.pass_time(600)
        with counting(made) as spent:
            await made.sweep()
        assert all(endpoint.startswith("GET /api/v1/automations") for endpoint in spent)
        assert made.known.counts() == made.really()


async def test_every_request_is_counted_under_its_template() -> None:
    async with tenant(workflows=3, middlewares=[wordless_lists]) as made:
        await made.sweep()
        await made.pass_time(HOUR)
        await made.sweep("workflows", "runs", "quota")
        templates = {endpoint for endpoint, _ in made.endpoints}
        assert templates == {LIST, RUNS, RUN, f"GET {API}/{{id}}", f"GET {API}/settings", f"GET {API}/usage"}
