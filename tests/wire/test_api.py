"""What the wrapper does between a client and a real server on loopback, on a clock that the test moves."""

import asyncio
import gzip
import re
import shutil
import ssl
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any, Literal

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from exporter.clock import ManualClock
from exporter.model import times
from exporter.model.redact import redact
from exporter.wire.api import Answer, Api, Params
from exporter.wire.budget import Budget, Lane
from exporter.wire.errors import ApiError, ErrorKind, kind_of
from tests.servers import HANG_SECONDS

SECRET = "hunter2-is-the-secret"


class WatchedClock(ManualClock):
    """Tells the test when, and for how long, somebody sleeps."""

    def __init__(self) -> None:
        super().__init__()
        self.sleeps: asyncio.Queue[float] = asyncio.Queue()

    async def sleep(self, seconds: float) -> None:
        self.sleeps.put_nowait(seconds)
        await super().sleep(seconds)

    async def let_sleep(self) -> float:
        """Wait until somebody sleeps, let that time pass, and say how long it was."""
        seconds = await self.sleeps.get()
        await self.advance(seconds)
        return seconds


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as the server got it."""

    method: str
    path: str  # raw, with the query
    headers: dict[str, str]
    body: bytes


Answerer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Platform:
    """A server that answers what the test has queued, and ``{}`` after that."""

    seen: list[Seen] = field(default_factory=list)
    answers: deque[Answerer] = field(default_factory=deque)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    base_url: str = ""

    def then(
        self, status: int = 200, body: object = None, *, headers: dict[str, str] | None = None, text: str = ""
    ) -> None:
        """Queue an answer: ``text`` as it is, otherwise ``body`` as JSON."""
        content = text.encode() if text else orjson.dumps({} if body is None else body)

        async def answer(request: web.Request) -> web.StreamResponse:
            return web.Response(status=status, body=content, headers=headers)

        self.answers.append(answer)

    def then_empty(self, status: int) -> None:
        async def answer(request: web.Request) -> web.StreamResponse:
            return web.Response(status=status)

        self.answers.append(answer)

    def then_hang_up(self, *, after: bytes = b"") -> None:
        """Queue an end of the connection: at once, or in the middle of a body."""

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Length": "1000"})
            if after:
                await response.prepare(request)
                await response.write(after)
            assert request.transport is not None
            request.transport.abort() if not after else request.transport.close()
            return response

        self.answers.append(answer)

    def then_hang(self, *, after: bytes = b"", status: int = 200) -> None:
        """Queue an answer that does not come, or stops in the middle of its body."""

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(status=status)
            if after:
                await response.prepare(request)
                await response.write(after)
            await self.release.wait()
            return response

        self.answers.append(answer)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(Seen(request.method, request.raw_path, dict(request.headers), await request.read()))
        if self.answers:
            return await self.answers.popleft()(request)
        return web.json_response({})


class Token:
    """A credential that can be renewed ``renewals`` times."""

    def __init__(self, *, renewals: int = 1) -> None:
        self.left = renewals
        self.renewed = 0

    async def headers(self, api: Api) -> dict[str, str]:
        return {"Authorization": f"Token {SECRET}-{self.renewed}"}

    async def renew(self, api: Api) -> bool:
        self.renewed += 1
        await asyncio.sleep(0)
        self.left -= 1
        return self.left >= 0


@pytest.fixture
async def platform() -> AsyncIterator[Platform]:
    platform = Platform()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", platform.handle)
    server = TestServer(app, host="127.0.0.1")
    await server.start_server(shutdown_timeout=1)
    platform.base_url = str(server.make_url("/"))
    yield platform
    platform.release.set()
    await server.close()


@pytest.fixture
def clock() -> WatchedClock:
    return WatchedClock()


@pytest.fixture(autouse=True)
async def nothing_hangs() -> AsyncIterator[None]:
    """Who sleeps on a clock that nobody moves would do so for ever: end the test instead."""

    def end() -> None:
        for task in asyncio.all_tasks():
            task.cancel()

    timer = asyncio.get_running_loop().call_later(10, end)
    yield
    timer.cancel()


@pytest.fixture
def counted() -> list[tuple[str, str]]:
    return []


@pytest.fixture
async def make_api(
    platform: Platform, clock: WatchedClock, counted: list[tuple[str, str]]
) -> AsyncIterator[Callable[..., Api]]:
    apis: list[Api] = []

    def make(*, per_minute: float = 6000.0, **options: Any) -> Api:
        budget = Budget(clock, share=1.0, default_per_minute=per_minute)
        defaults: dict[str, Any] = {
            "base_url": platform.base_url,
            "clock": clock,
            "budget": budget,
            "auth": Token(),
            "user_agent": "automation-exporter/test",
            "timeout": 5.0,
            "on_request": lambda endpoint, code: counted.append((endpoint, code)),
            "jitter": lambda: 0.5,
        }
        apis.append(Api(**(defaults | options)))
        return apis[-1]

    yield make
    for api in apis:
        await api.close()


@pytest.fixture
async def api(make_api: Callable[..., Api]) -> Api:
    return make_api()


async def failing(call: Awaitable[Any]) -> ApiError:
    with pytest.raises(ApiError) as raised:
        await call
    return raised.value


# --- Kinds --------------------------------------------------------------------------------------------------------

KINDS = {
    **dict.fromkeys(range(100, 300), ErrorKind.BAD_PAYLOAD),
    **dict.fromkeys(range(300, 400), ErrorKind.UNAVAILABLE),
    **dict.fromkeys(range(400, 500), ErrorKind.REQUEST),
    **dict.fromkeys(range(500, 600), ErrorKind.UNAVAILABLE),
    **dict.fromkeys((401, 403), ErrorKind.AUTH),
    **dict.fromkeys((404, 410), ErrorKind.NOT_FOUND),
    **dict.fromkeys((409, 412, 423), ErrorKind.CONFLICT),
    408: ErrorKind.TIMEOUT,
    429: ErrorKind.RATE_LIMITED,
}


def test_every_status_has_its_kind() -> None:
    assert {status: kind_of(status) for status in range(100, 600)} == KINDS


@pytest.mark.parametrize("kind", ErrorKind)
@pytest.mark.parametrize("status", [None, 401])
def test_an_error_reads_as_one_line_that_redacting_again_does_not_change(kind: ErrorKind, status: int | None) -> None:
    error = ApiError(kind, endpoint="POST /oauth/token", detail="no\nuse", status=status)
    assert str(error) == f"POST /oauth/token: {'401 ' if status else ''}{kind}: no use" == redact(str(error))


# --- Asking -------------------------------------------------------------------------------------------------------


async def test_a_get_is_decoded_and_carries_the_credential(platform: Platform, api: Api) -> None:
    platform.then(200, {"a": [1, None]}, headers={"X-Total-Count": "7"})
    answer = await api.get("/flows", lane=Lane.SWEEPS)
    assert (answer.status, answer.data, answer.headers["x-total-count"]) == (200, {"a": [1, None]}, "7")
    (seen,) = platform.seen
    assert (seen.method, seen.path) == ("GET", "/flows")
    assert seen.headers["Authorization"] == f"Token {SECRET}-0"
    assert seen.headers["Accept"] == "application/json"
    assert seen.headers["User-Agent"] == "automation-exporter/test"


async def test_placeholders_are_filled_and_quoted_below_the_path_of_the_base_url(
    platform: Platform, make_api: Callable[..., Api]
) -> None:
    api = make_api(base_url=platform.base_url + "api/v2/")
    await api.get("/flows/{id}/runs/{run}", lane=Lane.SWEEPS, ids={"id": "a/b?c#d%2F é", "run": 5})
    assert platform.seen[0].path == "/api/v2/flows/a%2Fb%3Fc%23d%252F%20%C3%A9/runs/5"


@pytest.mark.parametrize("value", ["", ".", ".."])
async def test_an_id_that_would_name_another_endpoint_is_refused(platform: Platform, api: Api, value: str) -> None:
    error = await failing(api.get("/flows/{id}/runs", lane=Lane.SWEEPS, ids={"id": value}))
    assert (error.kind, error.endpoint, error.sent) == (ErrorKind.BAD_PAYLOAD, "GET /flows/{id}/runs", False)
    assert platform.seen == []


@pytest.mark.parametrize(
    ("params", "query"),
    [
        ({"pg[limit]": 50, "q": "a b&c=d+e"}, "?pg%5Blimit%5D=50&q=a+b%26c%3Dd%2Be"),
        ([("cols[]", "id"), ("cols[]", "name")], "?cols%5B%5D=id&cols%5B%5D=name"),
        ({}, ""),
    ],
)
async def test_parameters_are_encoded_brackets_included(
    platform: Platform, api: Api, params: Params, query: str
) -> None:
    await api.get("/flows", lane=Lane.SWEEPS, params=params)
    assert platform.seen[0].path == "/flows" + query


async def test_a_post_sends_json_or_nothing(platform: Platform, api: Api) -> None:
    await api.post("/flows/{id}/run", lane=Lane.RETRIES, ids={"id": 1}, json={"a": 1}, params={"x": 1})
    await api.post("/flows/{id}/stop", lane=Lane.RETRIES, ids={"id": 1})
    first, second = platform.seen
    assert (first.method, first.path, first.body) == ("POST", "/flows/1/run?x=1", b'{"a":1}')
    assert first.headers["Content-Type"] == "application/json"
    assert (second.method, second.path, second.body) == ("POST", "/flows/1/stop", b"")


async def test_cookies_are_not_kept(platform: Platform, make_api: Callable[..., Api]) -> None:
    api = make_api(base_url=platform.base_url.replace("127.0.0.1", "localhost"))  # nobody keeps cookies of mere numbers
    platform.then(200, headers={"Set-Cookie": "session=1; Path=/"})
    for _ in range(2):
        await api.get("/flows", lane=Lane.SWEEPS)
    assert "Cookie" not in platform.seen[1].headers


async def test_a_proxy_is_used(platform: Platform, make_api: Callable[..., Api]) -> None:
    api = make_api(base_url="http://platform.invalid", proxy=platform.base_url)
    await api.get("/flows", lane=Lane.SWEEPS)
    assert platform.seen[0].headers["Host"] == "platform.invalid"


async def test_a_private_certificate_authority_is_trusted_only_where_it_is_given(
    make_api: Callable[..., Api], clock: WatchedClock, tmp_path: Path
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("real component missing: openssl (apt-get install openssl)")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    app = web.Application()
    app.router.add_get("/flows", Platform().handle)
    server = TestServer(app, host="127.0.0.1", scheme="https")
    await server.start_server(ssl=context)
    url = str(server.make_url("/"))
    trusting = make_api(base_url=url, ssl=ssl.create_default_context(cafile=str(certificate)))
    assert (await trusting.get("/flows", lane=Lane.SWEEPS)).status == 200
    call = asyncio.create_task(failing(make_api(base_url=url).post("/flows", lane=Lane.SWEEPS)))
    error = await call
    assert (error.kind, error.sent) == (ErrorKind.UNAVAILABLE, False)
    assert "is not trusted" in error.detail
    await server.close()


async def test_at_most_four_calls_are_under_way_and_the_others_do_not_time_out_meanwhile(
    platform: Platform, make_api: Callable[..., Api], clock: WatchedClock
) -> None:
    api = make_api(timeout=3 * HANG_SECONDS)
    under_way = most = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.wait([asyncio.create_task(platform.release.wait())], timeout=0.7 * HANG_SECONDS)
        under_way -= 1
        return web.json_response({})

    calls = 20  # five rounds, which together take longer than one call may
    platform.answers.extend([answer] * calls)
    api.budget.learn_limit(60_000)
    waiting = [asyncio.create_task(api.get("/flows", lane=Lane.SWEEPS)) for _ in range(calls)]
    while not all(task.done() for task in waiting):
        await clock.advance(1)
        await asyncio.wait(waiting, timeout=0.01)
    assert [task.result().status for task in waiting] == [200] * calls
    assert most == 4


# --- The budget ---------------------------------------------------------------------------------------------------


async def test_every_attempt_takes_a_token_and_is_counted_under_its_template(
    platform: Platform, api: Api, clock: WatchedClock, counted: list[tuple[str, str]]
) -> None:
    platform.then(503)
    call = asyncio.create_task(api.get("/flows/{id}", lane=Lane.SWEEPS, ids={"id": "secret-id"}, params={"a": SECRET}))
    await clock.let_sleep()
    await call
    assert counted == [("GET /flows/{id}", "503"), ("GET /flows/{id}", "200")]
    assert api.budget.remaining == pytest.approx(10 - 1 + 100 - 1)  # a start, an attempt, a second of 6000/min, another


async def test_every_attempt_has_its_span_which_ends_before_the_next_begins(
    platform: Platform, make_api: Callable[..., Api], clock: WatchedClock
) -> None:
    told: list[str] = []

    @contextmanager
    def span(endpoint: str) -> Iterator[None]:
        told.append(f"begin {endpoint}")
        try:
            yield
        finally:
            told.append("end")

    platform.then(503)
    call = asyncio.create_task(make_api(span=span).get("/flows/{id}", lane=Lane.SWEEPS, ids={"id": 1}))
    await clock.let_sleep()
    await call
    assert told == ["begin GET /flows/{id}", "end"] * 2


async def test_a_call_waits_for_its_turn_in_its_lane(
    platform: Platform, make_api: Callable[..., Api], clock: WatchedClock
) -> None:
    api = make_api(per_minute=1)
    await api.get("/first", lane=Lane.SWEEPS)
    sweep = asyncio.create_task(api.get("/sweep", lane=Lane.SWEEPS))
    retry = asyncio.create_task(api.post("/retry", lane=Lane.RETRIES))
    assert await clock.let_sleep() == 60
    await retry
    assert [seen.path for seen in platform.seen] == ["/first", "/retry"]
    await clock.let_sleep()
    await sweep


async def test_an_uncounted_call_does_not_wait_for_the_budget(platform: Platform, make_api: Callable[..., Api]) -> None:
    api = make_api(per_minute=1)
    await api.get("/counted", lane=Lane.SWEEPS)
    assert api.budget.remaining == 0
    await api.get("/free", lane=Lane.SWEEPS, counted=False)
    await api.post("/free", lane=Lane.SWEEPS, counted=False)
    assert len(platform.seen) == 3


# --- 401 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["get", "post"])
async def test_a_refused_credential_is_renewed_and_the_call_made_again(
    platform: Platform, api: Api, method: str
) -> None:
    platform.then(401)
    assert (await getattr(api, method)("/flows", lane=Lane.SWEEPS)).status == 200
    assert [seen.headers["Authorization"][-2:] for seen in platform.seen] == ["-0", "-1"]


async def test_a_credential_that_cannot_be_renewed_is_an_auth_error_at_once(
    platform: Platform, make_api: Callable[..., Api]
) -> None:
    platform.then(401, {"message": "Access denied."})
    error = await failing(
        make_api(auth=Token(renewals=0), error_detail=lambda body: body["message"]).get("/flows", lane=Lane.SWEEPS)
    )
    assert str(error) == "GET /flows: 401 auth: Access denied."
    assert (error.kind, error.status) == (ErrorKind.AUTH, 401)
    assert len(platform.seen) == 1


async def test_a_credential_is_renewed_only_once_per_call(platform: Platform, make_api: Callable[..., Api]) -> None:
    auth = Token(renewals=9)
    for _ in range(3):
        platform.then(401)
    assert (await failing(make_api(auth=auth).get("/flows", lane=Lane.SWEEPS))).kind is ErrorKind.AUTH
    assert (len(platform.seen), auth.renewed) == (2, 1)


async def test_calls_refused_at_the_same_time_share_one_renewal(
    platform: Platform, make_api: Callable[..., Api]
) -> None:
    auth = Token(renewals=9)
    api = make_api(auth=auth)
    everybody_is_here = asyncio.Event()

    async def refuse(request: web.Request) -> web.StreamResponse:
        if len(platform.seen) == 3:
            everybody_is_here.set()
        await everybody_is_here.wait()
        return web.Response(status=401)

    platform.answers.extend([refuse] * 3)
    await asyncio.gather(*(api.get("/flows", lane=Lane.SWEEPS) for _ in range(3)))
    assert auth.renewed == 1
    assert len(platform.seen) == 6


class Login:
    """A credential that is fetched from the platform itself."""

    token: str | None = None

    async def headers(self, api: Api) -> dict[str, str]:
        if self.token is None:
            answer = await api.post("/login", lane=Lane.RETRIES, json={"password": SECRET}, anonymous=True)
            self.token = answer.data["token"]
        return {"Authorization": f"Bearer {self.token}"}

    async def renew(self, api: Api) -> bool:
        self.token = None
        await self.headers(api)
        return True


async def test_a_login_goes_through_the_same_wire_once_and_without_a_credential(
    platform: Platform, make_api: Callable[..., Api]
) -> None:
    api = make_api(auth=Login())
    platform.then(200, {"token": "t1"})
    await asyncio.gather(*(api.get("/flows", lane=Lane.SWEEPS) for _ in range(3)))
    platform.then(401)
    platform.then(200, {"token": "t2"})
    await api.get("/flows", lane=Lane.SWEEPS)
    assert [(seen.path, seen.headers.get("Authorization")) for seen in platform.seen] == [
        ("/login", None),
        *[("/flows", "Bearer t1")] * 4,
        ("/login", None),
        ("/flows", "Bearer t2"),
    ]


async def test_a_login_that_is_refused_is_told_as_such_and_tried_once(
    platform: Platform, make_api: Callable[..., Api]
) -> None:
    platform.then(401, text="wrong password")
    error = await failing(make_api(auth=Login()).get("/flows", lane=Lane.SWEEPS))
    assert str(error) == "POST /login: 401 auth: wrong password"
    assert [seen.path for seen in platform.seen] == ["/login"]


# --- 429 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "13"}, 13),
        ({"Retry-After": "0"}, 1),
        ({"Retry-After": "86400"}, 300),
        ({"Retry-After": formatdate(1_800_000_040, usegmt=True), "Date": formatdate(1_800_000_000, usegmt=True)}, 40),
        ({}, 60),
        ({"Retry-After": "soon"}, 60),
        ({"Retry-After": "-5"}, 60),
    ],
)
async def test_a_rate_limited_read_pauses_the_whole_budget_for_as_long_as_it_is_told(
    platform: Platform, api: Api, clock: WatchedClock, headers: dict[str, str], seconds: float
) -> None:
    platform.then(429, text="Requests limit exceeded", headers=headers)
    call = asyncio.create_task(api.get("/flows", lane=Lane.SWEEPS))
    slept = await clock.sleeps.get()
    assert slept == pytest.approx(seconds, abs=0.001)
    assert api.budget.remaining == 0
    assert len(platform.seen) == 1
    await clock.advance(slept)
    assert (await call).status == 200


async def test_how_long_to_pause_without_being_told_can_be_set(
    platform: Platform, make_api: Callable[..., Api], clock: WatchedClock
) -> None:
    api = make_api(retry_after_default=7.0)
    platform.then(429)
    call = asyncio.create_task(api.get("/flows", lane=Lane.SWEEPS))
    assert await clock.let_sleep() == 7
    await call


async def test_the_third_429_in_a_row_is_an_error_that_says_how_long_to_wait(
    platform: Platform, api: Api, clock: WatchedClock
) -> None:
    for _ in range(3):
        platform.then(429, text="slow down", headers={"Retry-After": "9"})
    call = asyncio.create_task(failing(api.get("/flows", lane=Lane.SWEEPS)))
    for _ in range(2):
        await clock.let_sleep()
    error = await call
    assert str(error) == "GET /flows: 429 rate_limited: slow down"
    assert error.retry_after == 9
    assert len(platform.seen) == 3
    assert api.budget.remaining == 0


async def test_a_rate_limited_post_pauses_the_budget_and_is_not_repeated(platform: Platform, api: Api) -> None:
    platform.then(429, headers={"Retry-After": "9"})
    error = await failing(api.post("/retry", lane=Lane.RETRIES))
    assert (error.kind, error.retry_after) == (ErrorKind.RATE_LIMITED, 9)
    assert (len(platform.seen), api.budget.remaining) == (1, 0)


async def test_an_uncounted_call_that_is_rate_limited_after_all_waits_for_the_pause(
    platform: Platform, api: Api, clock: WatchedClock
) -> None:
    platform.then(429, headers={"Retry-After": "9"})
    call = asyncio.create_task(api.get("/flows", lane=Lane.SWEEPS, counted=False))
    assert await clock.let_sleep() == 9
    await call


# --- Failures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_an_unavailable_platform_is_asked_three_times_with_growing_pauses(
    platform: Platform, api: Api, clock: WatchedClock, status: int
) -> None:
    for _ in range(3):
        platform.then(status)
    call = asyncio.create_task(failing(api.get("/flows", lane=Lane.SWEEPS)))
    assert [await clock.let_sleep(), await clock.let_sleep()] == [1, 2]
    assert (await call).kind is ErrorKind.UNAVAILABLE
    assert len(platform.seen) == 3


async def test_pauses_are_jittered_by_half(
    platform: Platform, make_api: Callable[..., Api], clock: WatchedClock
) -> None:
    platform.then(503)
    platform.then(503)
    jitter = iter([0.0, 1.0])
    call = asyncio.create_task(make_api(jitter=lambda: next(jitter)).get("/flows", lane=Lane.SWEEPS))
    assert [await clock.let_sleep(), await clock.let_sleep()] == [0.5, 3]
    await call


@pytest.mark.parametrize("status", [400, 403, 404, 409, 422, 500, 501])
async def test_other_failures_are_errors_at_once(platform: Platform, api: Api, status: int) -> None:
    platform.then(status)
    error = await failing(api.get("/flows", lane=Lane.SWEEPS))
    assert (error.kind, error.status, error.retry_after) == (KINDS[status], status, None)
    assert len(platform.seen) == 1


@pytest.mark.parametrize("after", [b"", b'{"a":'], ids=["before the answer", "in the middle of it"])
async def test_a_broken_connection_is_tried_again(
    platform: Platform, api: Api, clock: WatchedClock, counted: list[tuple[str, str]], after: bytes
) -> None:
    platform.then_hang_up(after=after)
    call = asyncio.create_task(api.get("/flows", lane=Lane.SWEEPS))
    assert await clock.let_sleep() == 1
    assert (await call).status == 200
    assert counted == [("GET /flows", "error"), ("GET /flows", "200")]
    assert len(platform.seen) == 2


@pytest.mark.parametrize("after", [b"", b'{"a":'], ids=["before the answer", "in the middle of it"])
async def test_a_slow_answer_is_a_timeout_and_tried_again(
    platform: Platform, make_api: Callable[..., Api], clock: WatchedClock, counted: list[tuple[str, str]], after: bytes
) -> None:
    api = make_api(timeout=HANG_SECONDS)
    for _ in range(3):
        platform.then_hang(after=after)
    call = asyncio.create_task(failing(api.get("/flows", lane=Lane.SWEEPS)))
    assert [await clock.let_sleep(), await clock.let_sleep()] == [1, 2]
    error = await call
    assert str(error) == f"GET /flows: timeout: no answer within {HANG_SECONDS:g} s"
    assert (error.kind, error.status, error.sent) == (ErrorKind.TIMEOUT, None, True)
    assert counted == [("GET /flows", "timeout")] * 3


async def test_a_platform_that_cannot_be_reached_was_certainly_not_asked(
    make_api: Callable[..., Api], clock: WatchedClock
) -> None:
    api = make_api(base_url=f"http://127.0.0.1:{unused_port()}")
    error = await failing(api.post("/retry", lane=Lane.RETRIES))
    assert (error.kind, error.status, error.sent) == (ErrorKind.UNAVAILABLE, None, False)
    assert error.detail.startswith("connection refused by 127.0.0.1:")


async def test_a_post_is_not_repeated_when_nobody_knows_what_became_of_it(
    platform: Platform, make_api: Callable[..., Api]
) -> None:
    api = make_api(timeout=HANG_SECONDS)
    platform.then(503)
    platform.then_hang_up()
    platform.then_hang()
    errors = [await failing(api.post("/retry", lane=Lane.RETRIES)) for _ in range(3)]
    assert [(error.kind, error.sent) for error in errors] == [
        (ErrorKind.UNAVAILABLE, True),
        (ErrorKind.UNAVAILABLE, True),
        (ErrorKind.TIMEOUT, True),
    ]
    assert len(platform.seen) == 3


async def test_a_post_with_a_time_to_be_sent_by_is_sent_once_whatever_comes_of_it(
    platform: Platform, api: Api, clock: WatchedClock
) -> None:
    for status in (401, 429, 503):
        platform.then(status)
        error = await failing(api.post("/retry", lane=Lane.RETRIES, send_by=clock.now() + 10))
        assert (error.status, error.sent) == (status, True)
        api.budget.learn_limit(6000)
        await clock.advance(60)
    assert len(platform.seen) == 3


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
async def test_a_change_is_sent_once_with_its_body_whatever_comes_of_it(
    method: Literal["PATCH", "DELETE"], platform: Platform, api: Api, clock: WatchedClock
) -> None:
    def change(send_by: float) -> Awaitable[Answer]:
        query = {"scenarioId": 1}
        return api.change(method, "/dlqs", lane=Lane.RETRIES, params=query, json={"ids": ["a"]}, send_by=send_by)

    platform.then_empty(200)
    assert (await change(clock.now() + 10)).data is None
    [seen] = platform.seen
    assert (seen.method, seen.path, seen.body) == (method, "/dlqs?scenarioId=1", b'{"ids":["a"]}')
    for status in (401, 503):
        platform.then(status)
        error = await failing(change(clock.now() + 10))
        assert (error.status, error.sent, error.endpoint) == (status, True, f"{method} /dlqs")
    platform.then_hang_up()
    assert (await failing(change(clock.now() + 10))).sent
    assert not (await failing(change(clock.now() - 1))).sent
    assert len(platform.seen) == 4


async def test_a_post_whose_time_passed_while_it_waited_for_the_budget_is_never_written(
    platform: Platform, make_api: Callable[..., Api], clock: WatchedClock
) -> None:
    api = make_api()
    api.budget.pause(60.0)
    call = asyncio.create_task(failing(api.post("/retry", lane=Lane.RETRIES, send_by=clock.now() + 10)))
    assert await clock.let_sleep() == 60
    error = await call
    assert (error.kind, error.status, error.sent) == (ErrorKind.TIMEOUT, None, False)
    assert platform.seen == []


async def test_a_post_that_only_reads_is_repeated_like_a_get(platform: Platform, api: Api, clock: WatchedClock) -> None:
    platform.then(503)
    platform.then(429, headers={"Retry-After": "9"})
    call = asyncio.create_task(api.post("/find", lane=Lane.SWEEPS, json={}, idempotent=True))
    assert [await clock.let_sleep(), await clock.let_sleep()] == [1, 9]
    assert (await call).status == 200


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(platform: Platform, api: Api, status: int) -> None:
    platform.then(status, headers={"Location": "/elsewhere"})
    error = await failing(api.get("/flows", lane=Lane.SWEEPS))
    assert str(error) == f"GET /flows: {status} unavailable: redirected to another place"
    assert [seen.path for seen in platform.seen] == ["/flows"]


# --- Bodies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [f"<html>{SECRET}</html>", '{"a": [1, 2', '{"a": NaN}', "[" * 5000])
async def test_what_is_not_json_is_a_bad_payload_and_not_asked_for_again(
    platform: Platform, api: Api, counted: list[tuple[str, str]], text: str
) -> None:
    platform.then(200, text=text, headers={"Content-Type": "text/html"})
    error = await failing(api.get("/flows", lane=Lane.SWEEPS))
    expected = f"GET /flows: 200 bad_payload: not JSON but {len(text)} bytes said to be text/html: "
    assert str(error).startswith(expected)
    assert re.search(
        r": line 1 column \d+ \(char \d+\)$", str(error)
    )  # the parser's own words, and nothing of the text
    assert SECRET not in str(error)
    assert counted == [("GET /flows", "200")]


async def test_a_text_that_was_cut_in_two_costs_itself_and_not_the_answer(platform: Platform, api: Api) -> None:
    platform.then(200, text=r'{"rows": [{"name": "cut \ud83d"}, {"name": "whole"}]}')
    answer = await api.get("/flows", lane=Lane.SWEEPS)
    assert answer.data == {"rows": [{"name": "cut \ufffd"}, {"name": "whole"}]}
    platform.then(422, text=r'{"message": "cut \ud83d"}')
    assert (await failing(api.get("/flows", lane=Lane.SWEEPS))).detail == '{"message": "cut \\ud83d"}'


async def test_a_reason_phrase_of_any_bytes_can_be_logged_and_stored(api: Api, make_api: Callable[..., Api]) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 no\xffthing\xed\xa0\xbd\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        error = await failing(make_api(base_url=f"http://127.0.0.1:{port}").get("/flows", lane=Lane.SWEEPS))
    assert error.kind is ErrorKind.NOT_FOUND
    orjson.dumps([str(error), error.detail])


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_a_body_larger_than_the_limit_is_a_bad_payload(
    platform: Platform, make_api: Callable[..., Api], encoding: str
) -> None:
    body = orjson.dumps(["x" * 1_000_000])

    async def answer(request: web.Request) -> web.StreamResponse:
        content = gzip.compress(body) if encoding == "gzip" else body
        return web.Response(body=content, headers={"Content-Encoding": encoding})

    platform.answers.extend([answer, answer])
    error = await failing(make_api(body_bytes_max=len(body) - 1).get("/flows", lane=Lane.SWEEPS))
    assert str(error) == f"GET /flows: 200 bad_payload: more than {len(body) - 1} bytes"
    assert (await make_api(body_bytes_max=len(body)).get("/flows", lane=Lane.SWEEPS)).data == ["x" * 1_000_000]


@pytest.mark.parametrize(
    ("status", "size", "kind"), [(200, 300_000, ErrorKind.BAD_PAYLOAD), (500, 100_000, ErrorKind.UNAVAILABLE)]
)
async def test_an_endless_body_is_read_no_further_than_is_of_use(
    platform: Platform, make_api: Callable[..., Api], status: int, size: int, kind: ErrorKind
) -> None:
    platform.then_hang(status=status, after=b"x" * size)
    error = await failing(make_api(body_bytes_max=200_000).get("/flows", lane=Lane.SWEEPS))
    assert (error.status, error.kind) == (status, kind)


async def test_an_empty_body_is_an_answer_where_none_is_due_and_a_bad_payload_elsewhere(
    platform: Platform, api: Api
) -> None:
    for status in (204, 200, 200):
        platform.then_empty(status)
    assert (await api.get("/flows", lane=Lane.SWEEPS)).data is None
    assert (await api.post("/retry", lane=Lane.RETRIES)).data is None
    assert (await failing(api.get("/flows", lane=Lane.SWEEPS))).kind is ErrorKind.BAD_PAYLOAD


# --- What errors say ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ('{"message": "Access denied."}', "Access denied."),
        ('{"other": "shape"}', '{"other": "shape"}'),
        ("[]", "[]"),
        ("Requests limit exceeded", "Requests limit exceeded"),
        ("<html><body>nginx</body></html>", "Unprocessable Entity"),
        (f'{{"message": "token={SECRET} at https://h.example/?a={SECRET}\\nis bad"}}', None),
        ("x" * 100_000, "x" * 299 + "…"),
    ],
)
async def test_an_error_has_the_platforms_words_redacted(
    platform: Platform, make_api: Callable[..., Api], text: str, detail: str | None
) -> None:
    platform.then(422, text=text)
    error = await failing(make_api(error_detail=lambda body: body["message"]).get("/flows", lane=Lane.SWEEPS))
    assert error.detail == (detail or "token=[redacted] at https://h.example/?[redacted] is bad")


async def test_without_a_way_to_find_the_words_the_body_is_told(platform: Platform, api: Api) -> None:
    platform.then(404, {"message": "gone"})
    assert str(await failing(api.get("/flows", lane=Lane.SWEEPS))) == 'GET /flows: 404 not_found: {"message":"gone"}'


async def test_no_error_tells_a_secret(platform: Platform, make_api: Callable[..., Api], clock: WatchedClock) -> None:
    api = make_api(auth=Token(renewals=0), timeout=HANG_SECONDS)
    for status in (400, 401, 403, 404, 409, 429, 500):
        platform.then(status)
    platform.then_hang_up()
    platform.then_hang()
    platform.then(307, headers={"Location": f"/?token={SECRET}"})
    calls = [
        api.post("/x/{id}", lane=Lane.RETRIES, ids={"id": SECRET}, params={"token": SECRET}, json={"password": SECRET})
        for _ in range(10)
    ]
    for call in calls:
        error_task = asyncio.create_task(failing(call))
        while not error_task.done():
            await clock.advance(1)  # past the pause after the 429
            await asyncio.wait([error_task], timeout=0.01)
        error = error_task.result()
        assert SECRET not in f"{error} {error!r} {error.detail} {error.args} {error.__dict__} {error.__cause__!r}"
    assert len(platform.seen) == 10


# --- The platform's clock -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ahead", "offset"), [(600, 600), (-600, -600), (2, 0), (-2, 0), (3, 3)])
async def test_answers_carry_the_platforms_time_unless_it_hardly_differs_from_ours(
    platform: Platform, api: Api, clock: WatchedClock, ahead: int, offset: float
) -> None:
    platform.then(200, headers={"Date": formatdate(clock.now() + ahead, usegmt=True)})
    assert (await api.get("/flows", lane=Lane.SWEEPS)).at == clock.now() + offset
    await clock.advance(5)
    assert api.platform_now() == clock.now() + offset


async def test_what_was_learned_of_the_platforms_clock_stays_until_an_answer_tells_better(
    platform: Platform, api: Api, clock: WatchedClock
) -> None:
    def at(seconds: float) -> dict[str, str]:
        return {"Date": formatdate(clock.now() + seconds, usegmt=True)}

    assert api.platform_now() == clock.now()
    platform.then(200, headers=at(600))
    await api.get("/flows", lane=Lane.SWEEPS)
    platform.then(200, headers={"Date": "yesterday"})
    await api.get("/flows", lane=Lane.SWEEPS)
    platform.then(500, headers=at(-600))  # may be a gateway's clock
    await failing(api.get("/flows", lane=Lane.SWEEPS))
    assert api.platform_now() == clock.now() + 600
    platform.then(200, headers=at(1))
    await api.get("/flows", lane=Lane.SWEEPS)
    assert api.platform_now() == clock.now()


async def test_an_answer_from_a_cache_does_not_set_the_clock(platform: Platform, api: Api, clock: WatchedClock) -> None:
    def at(seconds: float, **more: str) -> dict[str, str]:
        return {"Date": formatdate(clock.now() + seconds, usegmt=True), **more}

    for headers in (at(90), at(90), at(90), at(-1800), at(90), at(-1900), at(-1810, Age="1900")):
        platform.then(200, headers=headers)
        await api.get("/flows", lane=Lane.SWEEPS)
        assert api.clock_offset() == -90


async def test_a_step_of_our_clock_moves_nothing_but_the_offset(
    platform: Platform, api: Api, clock: WatchedClock
) -> None:
    assert (api.answered, api.clock_offset(), api.latest()) == (False, None, times.MOMENT_MAX)
    platform.then(200, headers={"Date": formatdate(clock.now(), usegmt=True)})
    await api.get("/flows", lane=Lane.SWEEPS)
    there = clock.now()
    for step in (60 * 86_400.0, -60 * 86_400.0, 0.0):
        clock.set_ahead(step)
        assert (api.platform_now(), api.clock_offset()) == (there, step)
        assert api.latest() == there + times.FUTURE_SECONDS_MAX


async def test_without_a_date_our_clock_is_taken_and_nothing_is_shown(
    platform: Platform, api: Api, clock: WatchedClock
) -> None:
    platform.then(200, headers={"Date": ""})
    await api.get("/flows", lane=Lane.SWEEPS)
    assert (api.answered, api.platform_now(), api.clock_offset()) == (True, clock.now(), None)


# --- Next links ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("absolute", [True, False])
async def test_a_next_link_is_followed_as_it_is(
    platform: Platform, api: Api, counted: list[tuple[str, str]], absolute: bool
) -> None:
    path = "/api/flows?cursor=eyJ%2Bx%3D%3D&pg[limit]=5&q=a+b%20c"
    await api.get_url(platform.base_url.rstrip("/") + path if absolute else path, endpoint="/flows", lane=Lane.SWEEPS)
    assert platform.seen[0].path == path
    assert counted == [("GET /flows", "200")]
    assert "Authorization" in platform.seen[0].headers


@pytest.mark.parametrize(
    "link",
    [
        "http://127.0.0.2:{port}/flows",
        "http://127.0.0.1:1/flows",
        "https://127.0.0.1:{port}/flows",
        "//127.0.0.2:{port}/flows",
        "http://user:password@127.0.0.1:{port}/flows",
        "http://127.0.0.1:{port}@127.0.0.2/flows",
        "http://127.0.0.1:{port}/flows HTTP/1.1\r\nX-Injected: 1",
        "/flows\r\nX-Injected: 1",
        "http://127.0.0.1:99999/flows",
        "http://[::1/",
        "ftp://127.0.0.1:{port}/flows",
        "?cursor=1",
        "flows",
        "",
    ],
)
async def test_a_next_link_to_another_place_is_refused(platform: Platform, api: Api, link: str) -> None:
    port = platform.base_url.rsplit(":", 1)[1].rstrip("/")
    error = await failing(api.get_url(link.replace("{port}", port), endpoint="/flows", lane=Lane.SWEEPS))
    assert str(error) == "GET /flows: bad_payload: the next link leads to another place"
    assert not error.sent
    assert platform.seen == []
