"""Listings that are in another order than asked, or have no end."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from exporter.platforms.qlik import PLATFORM
from exporter.platforms.qlik.config import QlikConfig
from exporter.platforms.qlik.reading import QlikClient
from exporter.wire.api import Api
from exporter.wire.budget import Budget
from exporter.wire.errors import ApiError
from tests.platforms.known import MemoryKnown
from tests.platforms.qlik.tenant import API, START, JumpingClock

Answer = dict[str, Any]


def automation(last: Answer | None = None) -> Answer:
    return {"id": "a1", "name": "One", "state": "available", "lastRun": last}


def run(number: int, at: str) -> Answer:
    stop = at.replace(":00Z", ":30Z")
    return {"id": f"r{number}", "status": "finished", "startTime": at, "stopTime": stop, "createdAt": at}


@asynccontextmanager
async def tenant(answers: dict[str, Any]) -> AsyncIterator[tuple[QlikClient, MemoryKnown, list[str]]]:
    """A tenant that answers by path and query; what it has no answer for is empty."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        key = request.path + (f"?page={request.query['page']}" if "page" in request.query else "")
        asked.append(key)
        found = answers.get(key, {"data": []})
        return web.json_response(found(request) if callable(found) else found)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server:
        url = str(server.make_url(""))
        config = QlikConfig.model_validate({"platform": "qlik", "url": url, "token": "demo-token"})
        clock = JumpingClock(START)
        api = Api(
            base_url=config.url,
            clock=clock,
            budget=Budget(clock, share=1.0, default_per_minute=1e6),
            auth=PLATFORM.auth(config),
            user_agent="test",
            jitter=lambda: 0.5,
        )
        try:
            yield QlikClient(config, api), MemoryKnown(), asked
        finally:
            await api.close()


def following(path: str, page: int, items: list[Answer]) -> Answer:
    return {"data": items, "links": {"next": {"href": f"{path}?page={page}"}}}


async def test_runs_that_come_oldest_first_are_all_read() -> None:
    runs = [run(number, f"2023-11-14T{10 + number:02}:00:00Z") for number in range(9)]
    path = f"{API}/a1/runs"
    newest = {"id": "r8", "status": "finished", "startTime": runs[8]["startTime"], "stopTime": runs[8]["stopTime"]}
    answers = {
        API: {"data": [automation(newest)]},
        path: following(path, 2, runs[:5]),  # the first of them is far older than anything wanted
        f"{path}?page=2": {"data": runs[5:]},
    }
    async with tenant(answers) as (client, known, asked):
        known.first_sweep_at = START - 8 * 3600
        await known.sweep(client, "workflows", START)
        assert await known.sweep(client, "runs", START) == []
        assert f"{path}?page=2" in asked
        assert set(known.runs) >= {"r5", "r6", "r7", "r8"}


@pytest.mark.parametrize(
    ("why", "pages"),
    [
        ("pages that lead back to one", {2: following(API, 3, [automation()]), 3: following(API, 2, [automation()])}),
        ("empty pages in a row", {n: following(API, n + 1, []) for n in range(2, 40)}),
        ("pages that lead back to one", {2: following(API, 2, [automation()])}),
    ],
)
async def test_a_listing_without_an_end_is_left_soon_and_says_why(why: str, pages: dict[int, Answer]) -> None:
    answers = {API: following(API, 2, [automation()])} | {f"{API}?page={n}": page for n, page in pages.items()}
    async with tenant(answers) as (client, known, asked):
        with pytest.raises(ApiError, match=why):
            await known.sweep(client, "workflows", START)
        assert len(asked) < 15


async def test_an_automation_whose_runs_may_not_be_listed_is_named_in_every_sweep() -> None:
    last = run(1, "2023-11-14T22:00:00Z")

    def refuse(request: web.Request) -> Answer:
        raise web.HTTPForbidden

    async with tenant({API: {"data": [automation(last)]}, f"{API}/a1/runs": refuse}) as (client, known, asked):
        known.first_sweep_at = START - 8 * 3600
        await known.sweep(client, "workflows", START)
        for _ in range(3):
            faults = await known.sweep(client, "runs", START)
            assert [(f.workflow_id, f.kind, f.of_item) for f in faults] == [("a1", "auth", False)]
        assert asked.count(f"{API}/a1/runs") == 1  # and asked for again when something happens to it
