"""Listings that are not as asked: in another order, cut shorter, without their paging, or the same page for ever."""

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from tests.platforms.make.source import LOG, Source, source


def overriding(part: str, **query: str) -> Middleware:
    """A platform that hears something else than what is asked, where the path ends with ``part``."""

    @web.middleware
    async def hear(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.endswith(part):
            url = request.rel_url.update_query({name.replace("_", "[") + "]": value for name, value in query.items()})
            request = request.clone(rel_url=url)
        return await handler(request)

    return hear


def without_paging(rows_max: int) -> Middleware:
    """A platform that cuts pages at ``rows_max`` and does not say so."""

    @web.middleware
    async def cut(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.endswith("/logs"):
            limit = min(rows_max, int(request.query.get("pg[limit]", "50")))
            request = request.clone(rel_url=request.rel_url.update_query({"pg[limit]": str(limit)}))
        answer = await handler(request)
        if not isinstance(answer, web.Response) or not isinstance(answer.body, bytes) or answer.status != 200:
            return answer
        body = orjson.loads(answer.body)
        body.pop("pg", None)
        return web.Response(body=orjson.dumps(body), content_type="application/json", headers={})

    return cut


def refusing(limit_max: int, refused: Counter[str], status: int = 400) -> Middleware:
    """A platform that refuses to be asked for more than ``limit_max`` rows."""

    @web.middleware
    async def refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
        if int(request.query.get("pg[limit]", "0")) > limit_max:
            refused[request.path] += 1
            return web.json_response(
                {"detail": "Validation failed for 1 parameter(s).", "code": "SC400"}, status=status
            )
        return await handler(request)

    return refuse


async def busy(made: Source, runs: int) -> str:
    """A scenario with so many runs after the baseline, read by one more round."""
    workflow = made.sim.add_workflow()
    made.add_run(workflow, ended=-30)
    await made.sweep()
    for number in range(runs):
        made.add_run(workflow, ended=1 + number * 0.2, took=0.1)
    await made.rounds(1, every=runs * 0.2 + 5)
    return workflow


@pytest.mark.parametrize("feed", [True, False], ids=["feed", "logs"])
@pytest.mark.parametrize("direction", ["asc", "desc"])
async def test_every_run_is_read_whatever_the_order_of_the_answer(direction: str, feed: bool) -> None:
    before = overriding("/logs", pg_sortDir=direction)
    async with source(feed=feed, before=before) as made:
        workflow = await busy(made, 450)
        assert made.known.counts() == made.true_counts() == {(workflow, "success"): 450}
        assert await made.rounds(3) == []


async def test_a_scenario_met_for_the_first_time_is_read_whatever_the_order_of_the_answer() -> None:
    async with source(feed=False, before=overriding("/logs", pg_sortDir="asc")) as made:
        other = made.sim.add_workflow()
        made.add_run(other, ended=-1)
        await made.sweep()
        late = made.sim.add_workflow()
        for number in range(130):
            made.add_run(late, ended=number - 3000, took=0.5)  # older than anything counted
        for number in range(130):
            made.add_run(late, ended=number / 10 + 1, took=0.05)
        assert await made.rounds(2) == []
        assert made.known.counts()[late, "success"] == 130


async def test_a_platform_that_says_nothing_of_its_paging_is_read_to_the_end() -> None:
    async with source(feed=False, before=without_paging(50)) as made:
        workflow = await busy(made, 230)
        assert made.known.counts() == {(workflow, "success"): 230}


async def test_a_limit_that_is_refused_is_lowered_once_and_remembered() -> None:
    refused = Counter[str]()
    async with source(feed=True, workflows=3, before=refusing(50, refused)) as made:
        workflow = await busy(made, 120)
        assert await made.rounds(3) == []
        assert made.known.counts()[workflow, "success"] == 120
        assert len(made.known.workflows) == 4
        assert set(refused.values()) == {1}, refused


async def test_a_limit_refused_for_another_reason_is_an_error_in_the_platforms_words() -> None:
    async with source(feed=False, workflows=1, before=refusing(0, Counter())) as made:
        with pytest.raises(Exception, match="400 request: Validation failed"):
            await made.sweep("workflows")


async def test_a_log_that_gives_the_same_page_for_ever_is_a_fault_of_its_scenario_and_soon_left() -> None:
    @web.middleware
    async def deaf(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.endswith("/logs"):
            query = {"pg[limit]": request.query.get("pg[limit]", "50"), "pg[sortDir]": "asc", "from": "0"}
            request = request.clone(rel_url=request.rel_url.with_query(query))
        return await handler(request)

    async with source(feed=False, before=deaf) as made:
        workflow, other = made.sim.add_workflow(), made.sim.add_workflow()
        made.add_run(workflow, ended=-30)
        made.add_run(other, ended=-30)
        await made.sweep()
        for number in range(150):
            made.add_run(workflow, ended=1 + number * 0.2, took=0.1)
        made.add_run(other, ended=20)
        made.asked()
        faults = await made.rounds(1)
        assert [(f.kind, f.workflow_id, f.of_item) for f in faults] == [("bad_payload", workflow, False)]
        assert "the same page again" in faults[0].detail
        assert made.asked()[LOG] < 6
        assert made.known.counts()[other, "success"] == 1


async def test_a_log_most_of_which_cannot_be_used_is_not_taken_for_read() -> None:
    broken = True

    @web.middleware
    async def odd(request: web.Request, handler: Handler) -> web.StreamResponse:
        answer = await handler(request)
        if broken and request.path.endswith("/logs") and isinstance(answer, web.Response) and answer.status == 200:
            body = orjson.loads(answer.body)  # type: ignore[arg-type]
            for row in body["scenarioLogs"]:
                row["id"] = {"an": "object"}
            return web.Response(body=orjson.dumps(body), content_type="application/json")
        return answer

    async with source(feed=False, before=odd) as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        for ended in (1, 2, 3):
            made.add_run(workflow, ended=ended)
        faults = await made.rounds(2)
        assert ("bad_payload", workflow) in {(f.kind, f.workflow_id) for f in faults}
        broken = False
        await made.rounds(1)
        assert made.known.counts() == {(workflow, "success"): 3}  # nothing was lost meanwhile


async def test_a_feed_that_goes_from_the_newest_to_the_oldest_is_read_backwards() -> None:
    rows: list[dict[str, Any]] = []

    def moment(text: str) -> float:
        return datetime.fromisoformat(text).timestamp()

    @web.middleware
    async def feed(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not request.path.endswith("/scenarios/logs"):
            return await handler(request)
        since, until = moment(request.query["since"]), request.query.get("until")
        found = [r for r in rows if moment(r["timestamp"]) > since and (not until or r["timestamp"] <= until)]
        limit = int(request.query["pg[limit]"])
        return web.json_response({"scenarioLogs": found[::-1][:limit], "pg": {"limit": limit}})

    async with source(before=feed) as made:
        workflow = made.sim.add_workflow()
        await made.sweep()
        for number in range(450):
            at = datetime.fromtimestamp(made.clock.now() + 1 + number / 10, UTC).isoformat(timespec="milliseconds")
            row = {"id": f"{number:032x}", "scenarioId": int(workflow), "timestamp": at.replace("+00:00", "Z")}
            rows.append(row | {"eventType": "EXECUTION_END", "status": 1, "duration": 50, "operations": 1})
        assert await made.rounds(1) == []
        assert made.known.counts() == {(workflow, "success"): 450}
        made.asked()
        assert await made.rounds(4) == []
        assert made.known.counts() == {(workflow, "success"): 450}
