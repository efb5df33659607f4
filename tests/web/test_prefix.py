"""The page behind a proxy that gives it a path of its own: everything stays below it, and the token first of all."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
from aiohttp import ClientSession, CookieJar, web

from tests.chromium import chromium
from tests.e2e.deployment import Deployment
from tests.servers import real
from tests.web.test_browser import TOKEN, broken, made

__all__ = ["made"]
PREFIX = "/automation/"


class Proxy:
    """A reverse proxy with something else at ``/``."""

    def __init__(self, upstream: str, *, keeps_host: bool) -> None:
        self.upstream = upstream
        self.keeps_host = keeps_host
        self.elsewhere: list[str] = []
        self.url = ""

    async def pass_on(self, request: web.Request) -> web.Response:
        headers = {name: value for name, value in request.headers.items() if name not in ("Connection", "Host")}
        if self.keeps_host:
            headers["Host"] = request.host
        url = f"{self.upstream}/{request.raw_path.removeprefix(PREFIX)}"
        body = await request.read()
        async with ClientSession(auto_decompress=False) as session:
            answer = await session.request(request.method, url, headers=headers, data=body, allow_redirects=False)
            kept = [
                (n, v) for n, v in answer.headers.items() if n not in ("Transfer-Encoding", "Content-Length", "Date")
            ]
            return web.Response(status=answer.status, headers=kept, body=await answer.read())

    async def somebody_else(self, request: web.Request) -> web.Response:
        self.elsewhere.append(f"{request.method} {request.path} {await request.text()} {request.headers.get('Cookie')}")
        return web.Response(text="another application")


@asynccontextmanager
async def proxy(upstream: str, *, keeps_host: bool = True) -> AsyncIterator[Proxy]:
    made = Proxy(upstream, keeps_host=keeps_host)
    app = web.Application()
    app.router.add_route("*", PREFIX + "{tail:.*}", made.pass_on)
    app.router.add_route("*", "/{tail:.*}", made.somebody_else)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}{PREFIX}"
    try:
        yield made
    finally:
        await runner.cleanup()


@real("chromium")
@pytest.mark.parametrize("keeps_host", [True, False])
async def test_a_person_does_everything_under_a_prefix(made: Deployment, tmp_path: Path, keeps_host: bool) -> None:
    [letter] = await broken(made)
    async with proxy(made.url, keeps_host=keeps_host) as front, chromium(tmp_path) as page:
        await page.open(front.url)
        await page.submit("[...document.links].find(a => a.innerText === 'Sign in').click()")
        await page.submit("document.querySelector('[name=token]').value = 'wrong'; document.forms[0].submit()")
        assert "That is not the admin token." in await page.text()
        page.complaints.clear()
        await page.submit(f"document.querySelector('[name=token]').value = {TOKEN!r}; document.forms[0].submit()")
        assert await page.read("location.pathname") == PREFIX
        await page.submit("[...document.links].find(a => a.innerText.startsWith('Approve what waits')).click()")
        assert letter in await page.text()
        await page.press("Approve these")
        assert "Approved: 1." in await page.text()
        await page.press("Pause all")
        assert "paused: make" in await page.text()
        await page.submit("[...document.links].find(a => a.innerText === 'Resume').click()")
        await page.press("Resume retries")
        make: Any = made.fleet.simulators["make"]
        make.plan_retries("success")
        await made.live(120, step=15, retry=True)
        await page.open(front.url)
        links = await page.read("[...document.links].map(a => a.href).join('\\n')")
        ours = [link for link in links.split("\n") if link.startswith(front.url.removesuffix(PREFIX))]
        assert len(ours) >= 4  # the audit of the retry among them
        assert all(link.startswith(front.url) for link in ours)
        async with ClientSession() as session:
            for link in ours:
                async with session.get(link) as response:
                    assert response.status in (200, 503), link
        await page.press("Sign out")
        assert "Sign in" in await page.text()
        assert page.complaints == []
        assert front.elsewhere == []


async def test_the_cookie_stays_below_the_prefix(made: Deployment) -> None:
    async with proxy(made.url) as front, ClientSession(cookie_jar=CookieJar(unsafe=True)) as session:
        async with session.get(urljoin(front.url, "sign-in")) as response:
            csrf = (await response.text()).split('name="csrf" value="')[1].split('"')[0]
        origin = {"Origin": front.url.removesuffix(PREFIX)}
        form = {"csrf": csrf, "token": TOKEN}
        async with session.post(urljoin(front.url, "sign-in"), data=form, headers=origin) as response:
            assert str(response.url) == front.url
            assert "Sign out" in await response.text()
        async with session.get(urljoin(front.url, "/")) as response:
            assert await response.text() == "another application"
        [line] = front.elsewhere
        assert line.endswith(" None")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://ops.example", "X-Forwarded-Host": "ops.example"}, 303),
        ({"Origin": "https://ops.example", "X-Forwarded-Host": "ops.example, inner"}, 303),
        ({"Origin": "https://ops.example", "Sec-Fetch-Site": "same-origin"}, 303),
        ({"Origin": "https://ops.example"}, 403),
        ({"Origin": "null", "X-Forwarded-Host": "null"}, 403),
        ({"Origin": "https://evil.example", "X-Forwarded-Host": "ops.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "X-Forwarded-Host": "ops.example"}, 403),
    ],
)
async def test_a_form_comes_from_a_page_of_ours_also_where_a_proxy_rewrites_the_host(
    made: Deployment, headers: dict[str, str], status: int
) -> None:
    async with made.session.get(made.url + "/sign-in") as response:
        csrf = (await response.text()).split('name="csrf" value="')[1].split('"')[0]
    form = {"csrf": csrf, "token": TOKEN}
    async with made.session.post(made.url + "/sign-in", data=form, headers=headers, allow_redirects=False) as response:
        assert response.status == status
