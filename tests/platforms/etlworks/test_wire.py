"""What the simulated account cannot play: other token endpoints, other tokens, a total that counts too much."""

import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from exporter.platform.credentials import LIFE_USED, expiry
from exporter.platforms.etlworks.auth import TOKEN_SECONDS, make_auth
from exporter.platforms.etlworks.config import EtlworksConfig
from exporter.platforms.etlworks.listing import FLOWS, PAGE_ITEMS, Part, listing_parts
from exporter.wire.api import Api, Auth
from exporter.wire.budget import Budget, Lane
from exporter.wire.errors import ApiError, ErrorKind
from tests.platforms.etlworks.account import HastyClock

SECTION = {"platform": "etlworks", "url": "https://etl.example"}
KEY = make_auth(EtlworksConfig.model_validate({**SECTION, "token": "key"}))


def login() -> Auth:
    return make_auth(EtlworksConfig.model_validate({**SECTION, "login": "a", "password": "b"}))


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def wire(auth: Any, routes: dict[str, Handler]) -> AsyncIterator[tuple[Api, HastyClock]]:
    """An ``Api`` to a server with these routes, each named by method and path."""
    app = web.Application()
    for name, handler in routes.items():
        method, path = name.split()
        app.router.add_route(method, path, handler)
    clock = HastyClock()
    async with TestServer(app) as server:
        budget = Budget(clock, share=1.0, default_per_minute=1e6)
        api = Api(base_url=str(server.make_url("/")), clock=clock, budget=budget, auth=auth, user_agent="test")
        try:
            yield api, clock
        finally:
            await api.close()


def without_date(response: web.Response) -> web.Response:
    response.headers["Date"] = ""  # the real time would set the manual clock
    return response


async def no_flows(request: web.Request) -> web.Response:
    if not request.headers["Authorization"].startswith("Bearer "):
        raise web.HTTPUnauthorized
    return without_date(web.json_response([]))


FULL = [{"id": number} for number in range(1, PAGE_ITEMS + 1)]


def issuing(answers: list[Any], asked: list[Any]) -> Handler:
    """Answers the next of ``answers`` each time, and notes what was posted."""

    async def issue(request: web.Request) -> web.Response:
        asked.append(await request.json())
        return without_date(web.json_response(answers.pop(0)))

    return issue


async def test_where_the_older_endpoint_is_unknown_the_newer_one_issues_the_token() -> None:
    asked: list[Any] = []
    routes = {"POST /rest/v1/token-auth": issuing([{"token": "one"}], asked), f"GET {FLOWS}": no_flows}
    async with wire(login(), routes) as (api, _):
        await api.get(FLOWS, lane=Lane.SWEEPS)
        await api.get(FLOWS, lane=Lane.SWEEPS)
    assert asked == [{"login": "a", "password": "b"}]


async def test_a_token_that_does_not_say_until_when_it_holds_is_used_for_a_while() -> None:
    asked: list[Any] = []
    tokens = [{"token": f"token-{n}"} for n in range(2)]
    routes = {"POST /rest/v1/token-auth/issue": issuing(tokens, asked), f"GET {FLOWS}": no_flows}
    async with wire(login(), routes) as (api, clock):
        await api.get(FLOWS, lane=Lane.SWEEPS)
        await clock.advance(LIFE_USED * TOKEN_SECONDS - 5)
        await api.get(FLOWS, lane=Lane.SWEEPS)
        assert len(asked) == 1
        await clock.advance(10)
        await api.get(FLOWS, lane=Lane.SWEEPS)
        assert len(asked) == 2


@pytest.mark.parametrize("answer", [None, [], {}, {"token": None}, {"token": ""}, {"token": "a\nb"}, {"token": "ü"}])
async def test_an_answer_without_a_token_is_a_bad_payload(answer: Any) -> None:
    async with wire(login(), {"POST /rest/v1/token-auth/issue": issuing([answer], [])}) as (api, _):
        with pytest.raises(ApiError, match="no token") as caught:
            await api.get(FLOWS, lane=Lane.SWEEPS)
    assert caught.value.kind is ErrorKind.BAD_PAYLOAD


def jwt(claims: object) -> str:
    payload = base64.urlsafe_b64encode(orjson.dumps(claims)).decode().rstrip("=")
    return f"e30.{payload}.c2ln"


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (jwt({"exp": 1_700_000_600}), 1_700_000_600.0),
        (jwt({"exp": "soon"}), None),
        (jwt({"exp": True}), None),
        (jwt({}), None),
        (jwt([]), None),
        ("a.b.c", None),
        ("a.\u00e9.c", None),
        ("no token", None),
        ("", None),
    ],
)
def test_a_token_says_until_when_it_holds(token: str, expected: float | None) -> None:
    assert expiry(token) == expected


async def listed(pages: list[tuple[Any, str | None]]) -> list[Part]:
    """The parts of a listing whose pages, with their ``X-Total-Count``, come in this order."""

    async def page(request: web.Request) -> web.Response:
        items, total = pages.pop(0)
        headers = {} if total is None else {"X-Total-Count": total}
        return without_date(web.json_response(items, headers=headers))

    async with wire(KEY, {f"GET {FLOWS}": page}) as (api, _):
        return [part async for part in listing_parts(api, FLOWS)]


@pytest.mark.parametrize(
    ("why", "pages", "complete"),
    [
        ("no paging", [([{"id": 1}, {"id": 2}], None)], [True]),
        ("an empty account", [([], "0")], [True]),
        ("two pages", [([{"id": 1}], "2"), ([{"id": 2}], "2")], [False, True]),
        ("the total counts flows nobody may see", [([{"id": 1}], "3"), ([], "3")], [False, True]),
        ("a page brings nothing new", [([{"id": 1}], "3"), ([{"id": 1}], "3")], [False, False]),
        ("an item without an id", [([{"id": 1}, {}], "2"), ([{}], "2")], [False, False]),
        ("a total and nothing at all", [([], "3")], [False]),
        ("a full page without a total", [(FULL, None), ([{"id": 999}], None)], [False, True]),
        ("a full page without a total, for ever", [(FULL, None), (FULL, None)], [False, False]),
        ("more than was asked for, without a total", [([*FULL, {"id": 999}], None)], [False, True]),
        ("a total that is no number", [([{"id": 1}], "many")], [True]),
    ],
)
async def test_a_listing_knows_when_it_is_complete(why: str, pages: list[Any], complete: list[bool]) -> None:
    assert [part.complete for part in await listed(pages)] == complete, why


@pytest.mark.parametrize("pages", [[([], "3")], [(FULL, None), (FULL, None)], [([{"id": 1}], "3"), ([{"id": 1}], "3")]])
async def test_a_listing_that_does_not_reach_its_end_says_so(pages: list[Any]) -> None:
    faults = [fault for part in await listed(pages) for fault in part.faults]
    assert [fault.kind for fault in faults] == [ErrorKind.BAD_PAYLOAD]


async def test_a_listing_that_is_no_list_is_a_bad_payload() -> None:
    with pytest.raises(ApiError, match="not a list"):
        await listed([({"flows": []}, None)])
