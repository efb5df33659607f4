"""When a scheduled automation runs next: asked for seldom, shown while it lies ahead, and of no harm where it fails."""

from typing import Any

import pytest
from aiohttp import web

from exporter.platforms.qlik import mapping
from exporter.platforms.qlik.reading.schedules import AGAIN_SECONDS
from tests.platforms.qlik.tenant import API, START, Tenant, counting, tenant

ONE = f"GET {API}/{{id}}"


def planned(made: Tenant) -> dict[str, float | None]:
    """Scheduled automations -> their next start, as the simulator knows it."""
    found = made.simulator.world.workflows.values()
    return {w.id: w.next_start_at for w in found if w.run_mode == "scheduled"}


def shown(made: Tenant) -> dict[str, float]:
    return {w.id: w.next_run_at for w in made.known.workflows.values() if w.next_run_at is not None}


async def test_the_next_run_of_each_scheduled_automation_is_shown() -> None:
    async with tenant(workflows=12) as made:
        await made.sweep("workflows")
        assert shown(made) == {}, "a listing does not tell"
        await made.pass_time(1)
        await made.sweep("workflows")
        assert shown(made) == planned(made)
        with counting(made) as spent:
            await made.sweep("workflows")
        assert spent[ONE] == 0
        await made.pass_time(AGAIN_SECONDS)
        with counting(made) as spent:
            await made.sweep("workflows")
        assert spent[ONE] == len(planned(made))
        await made.pass_time(1)
        await made.sweep("workflows")
        assert shown(made) == planned(made)


async def test_a_next_run_that_has_passed_is_not_shown_as_overdue() -> None:
    async with tenant(workflows=12) as made:
        await made.sweep("workflows")
        await made.pass_time(1)
        await made.sweep("workflows")
        soon = min(at for at in shown(made).values())
        await made.pass_time(soon - made.clock.now() + 1)
        await made.sweep("workflows")
        assert all(at > made.clock.now() for at in shown(made).values())


async def test_many_schedules_are_read_a_few_in_a_sweep() -> None:
    async with tenant(workflows=80) as made:
        made.reconfigure(poll={"requests_per_minute": 400})
        for _ in range(len(planned(made)) // 10 + 2):
            with counting(made) as spent:
                await made.pass_time(1)
                await made.sweep("workflows")
            assert spent[ONE] <= 10, "a twentieth of what a minute allows"
        assert shown(made).items() <= planned(made).items()
        assert len(planned(made)) - len(shown(made)) <= 1, "one has just run"


async def test_a_disabled_automation_plans_nothing() -> None:
    async with tenant(workflows=3) as made:
        for _ in range(2):
            await made.sweep("workflows")
            await made.pass_time(1)
        assert shown(made) != {}
        for key in planned(made):
            made.simulator.set_enabled(key, False)
        await made.sweep("workflows")
        assert shown(made) == {}


@pytest.mark.parametrize("status", [403, 404, 429, 500])
async def test_that_a_schedule_cannot_be_read_costs_nothing_else(status: int) -> None:
    @web.middleware
    async def refuse(request: web.Request, handler: Any) -> web.StreamResponse:
        if request.path.startswith(f"{API}/") and request.path.count("/") == API.count("/") + 1:
            return web.json_response({"errors": []}, status=status, headers={"Retry-After": "1"})
        response: web.StreamResponse = await handler(request)
        return response

    async with tenant(workflows=4, middlewares=[refuse]) as made:
        for _ in range(3):
            await made.sweep()
        assert shown(made) == {}
        assert made.faults == []
        assert len(made.known.workflows) == 4
        asked = sum(count for (endpoint, _), count in made.endpoints.items() if endpoint == ONE)
        if status in (403, 404):
            assert asked == len(planned(made)), "a refusal stands for a day"


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"schedules": [{"nextRunAt": "2023-11-14T22:20:00.000000Z"}]}, START + 400),
        ({"schedules": [{"nextRunAt": "2023-11-14T22:30:00Z"}, {"nextRunAt": "2023-11-14T22:20:00Z"}]}, START + 400),
        ({"schedules": [{"nextRunAt": "2023-11-14T22:00:00Z"}]}, None),
        ({"schedules": [{"nextRunAt": "9999-12-31T23:59:59Z"}]}, None),
        ({"schedules": [{"nextRunAt": None}, {}, None, 7, {"nextRunAt": ["x"]}]}, None),
        ({"schedules": {}}, None),
        ({}, None),
        (None, None),
    ],
)
def test_the_first_planned_run_that_lies_ahead(item: object, expected: float | None) -> None:
    assert mapping.next_run_at(item, at=START) == expected
