"""The status page in a real browser: what it shows, what its buttons do, and what nobody else's may."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from exporter.model import Workflow
from exporter.model.ledger import Batch
from tests.chromium import chromium
from tests.e2e.deployment import Deployment, deployment
from tests.e2e.test_retries import POLICY
from tests.servers import real

TOKEN = "letmein-please"
HOSTILE = (
    '<script>document.title="owned"</script>',
    '"><img src=x onerror=alert(1)>',
    "\u202eevil\u202c ' onmouseover='x",
    "long" * 125,
)


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Deployment]:
    changes = {
        "server": {"listen": "127.0.0.1:0", "admin_token": TOKEN},
        "retries": {"mode": "approve", "policies": [POLICY]},
    }
    options = {"make": {"api_limit": 60_000}}
    async with deployment(tmp_path, platforms=["make"], workflows=0, options=options, changes=changes) as made:
        yield made


async def broken(made: Deployment, names: tuple[str, ...] = ("Order sync",)) -> list[str]:
    """A dead letter for each of these workflows, waiting for approval."""
    make: Any = made.fleet.simulators["make"]
    workflows = [make.add_workflow(name=name[:100]) for name in names]
    await made.sweep()
    letters = [make.add_dead_letter(workflow) for workflow in workflows]
    await made.live(120, step=15, retry=True)
    now = made.clock.now()
    claims = [Workflow(id=workflow, at=now + 1, name=name) for workflow, name in zip(workflows, names, strict=True)]
    await made.service.ledger.ingest(Batch(source="make", observations=claims, now=now, started_at=now))
    return letters


@real("chromium")
async def test_a_person_signs_in_approves_and_pauses(made: Deployment, tmp_path: Path) -> None:
    [letter] = await broken(made)
    async with chromium(tmp_path) as page:
        await page.open(made.url)
        assert "Order sync" in await page.text()
        assert "waits for approval" in await page.text()
        assert "Approve" not in await page.read("[...document.querySelectorAll('button')].map(b => b.innerText).join()")
        await page.open(made.url + "/sign-in")
        await page.submit("document.querySelector('[name=token]').value = 'wrong'; document.forms[0].submit()")
        assert "That is not the admin token." in await page.text()
        complaints, page.complaints = page.complaints, []
        assert all("401" in complaint for complaint in complaints)
        await page.submit(f"document.querySelector('[name=token]').value = {TOKEN!r}; document.forms[0].submit()")
        await page.submit("[...document.links].find(a => a.innerText.startsWith('Approve what waits')).click()")
        assert letter in await page.text()
        assert made.service.book.overrides.holding(made.clock.now()) == []  # looking approves nothing
        await page.press("Approve these")
        assert "Approved: 1." in await page.text()
        await page.press("Pause all")
        assert "paused: make" in await page.text()
        await made.live(60, step=15, retry=True)
        make: Any = made.fleet.simulators["make"]
        assert make.retry_calls[letter] == 0
        await page.submit("[...document.links].find(a => a.innerText === 'Resume').click()")
        assert "What is due by now is sent" in await page.text()
        await page.press("Resume retries")
        make.plan_retries("success")
        await made.live(120, step=15, retry=True)
        assert make.retry_calls[letter] == 1
        await page.open(made.url)
        assert "succeeded" in await page.text()
        assert "approved by status page" in await page.text()
        await page.press("Sign out")
        assert "Sign in" in await page.text()
        assert page.complaints == []


@real("chromium")
async def test_hostile_names_are_text_on_a_phone_and_on_a_screen_dark_and_light(
    made: Deployment, tmp_path: Path
) -> None:
    await broken(made, HOSTILE)
    for width, dark in ((390, True), (390, False), (1280, True)):
        async with chromium(tmp_path, width=width, dark=dark) as page:
            await page.open(made.url)
            text = await page.text()
            assert HOSTILE[0] in text
            assert HOSTILE[1] in text
            assert await page.read("document.title") == "automation-exporter"
            assert await page.read("document.querySelectorAll('script, img').length") == 0
            assert await page.read("document.documentElement.scrollWidth <= window.innerWidth"), f"{width} px"
            background = await page.read("getComputedStyle(document.documentElement).colorScheme")
            assert "dark" in background
            assert page.complaints == []


async def test_forms_of_other_sites_and_without_the_secret_are_refused(made: Deployment) -> None:
    [letter] = await broken(made)
    key = f"make/{letter}"
    session = made.session
    page = await (await session.get(made.url + "/sign-in")).text()
    csrf = page.split('name="csrf" value="')[1].split('"')[0]
    form = {"csrf": csrf, "token": TOKEN}
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}):
        async with session.post(made.url + "/sign-in", data=form, headers=headers) as response:
            assert response.status == 403
    async with session.post(made.url + "/sign-in", data=form, allow_redirects=False) as response:
        assert response.status == 303
        cookie = response.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    cookies = {"Cookie": cookie.split(";")[0]}
    await session.get(made.url, headers=cookies)
    asks = await (await session.get(f"{made.url}/confirm?action=approve&id={key}", headers=cookies)).text()
    mine, asked = (asks.split(f'name="{name}" value="')[1].split('"')[0] for name in ("csrf", "asked"))
    refused = [
        ({"csrf": csrf, "asked": asked}, {}),
        ({"asked": asked}, {}),
        ({"csrf": mine, "asked": asked}, {"Origin": "https://evil.example"}),
        ({"csrf": mine, "asked": asked}, {"Sec-Fetch-Site": "same-site"}),
    ]
    for form, headers in refused:
        async with session.post(made.url + "/act/begin", data=form, headers={**cookies, **headers}) as response:
            assert response.status == 403
    assert made.service.book.overrides.holding(made.clock.now()) == []
    for action in ("approve", "retry", "hold", "release"):  # nothing is done that nobody was asked about
        data = {"csrf": mine, "id": key}
        async with session.post(f"{made.url}/act/{action}", data=data, headers=cookies, allow_redirects=False):
            assert made.service.book.overrides.holding(made.clock.now()) == []
    data = {"csrf": mine, "asked": asked}
    async with session.post(made.url + "/act/begin", data=data, headers=cookies, allow_redirects=False) as response:
        assert response.status == 303
    assert [o.action for o in made.service.book.overrides.holding(made.clock.now())] == ["approve"]
    await made.clock.advance(43201)
    async with session.post(made.url + "/act/pause", data=data, headers=cookies, allow_redirects=False) as response:
        assert response.headers["Location"] == "../sign-in"


async def test_guessing_the_token_has_to_wait(made: Deployment) -> None:
    page = await (await made.session.get(made.url + "/sign-in")).text()
    csrf = page.split('name="csrf" value="')[1].split('"')[0]
    answers = []
    for token in [*["wrong"] * 5, TOKEN]:
        async with made.session.post(made.url + "/sign-in", data={"csrf": csrf, "token": token}) as response:
            answers.append(response.status)
    assert answers == [401] * 5 + [429]


async def test_without_a_token_there_is_nothing_to_press(made: Deployment) -> None:
    server = made.config.server.model_copy(update={"admin_token": None})
    made.config = made.config.model_copy(update={"server": server})
    await made.restart()
    text = await made.scrape("/")
    assert "<form" not in text
    assert "Waits for you" not in text
    await broken(made)
    text = await made.scrape("/")
    assert "<form" not in text
    assert "To act here, set <code>server.admin_token</code>." in text
    assert "Sign in" not in text
    async with made.session.get(made.url + "/sign-in") as response:
        assert response.status == 404
