"""The pages for those who do not see them, or not well: axe-core finds nothing to object to in any of their states."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.accessibility import axe
from tests.chromium import Page, chromium
from tests.e2e.deployment import Deployment, deployment
from tests.servers import real
from tests.web.night import night, sign_in
from tests.web.test_browser import TOKEN

SIZES = {"phone": (390, 844), "desktop": (1280, 900)}


@pytest.fixture
async def bad(tmp_path: Path) -> AsyncIterator[Deployment]:
    async with night(tmp_path) as made:
        yield made


async def fine(page: Page, url: str | None = None) -> None:
    """Nothing to object to, and nothing wider than the screen."""
    if url is not None:
        await page.open(url)
    where = await page.read("location.pathname + location.search")
    assert await axe.violations(page) == [], where
    assert await page.read("document.documentElement.scrollWidth <= window.innerWidth"), where
    assert page.complaints == [], where


@real("chromium")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
async def test_every_page_of_a_bad_night(bad: Deployment, tmp_path: Path, size: str, dark: bool) -> None:
    axe.script()
    width, height = SIZES[size]
    group = bad.service.operations.groups()[0]
    operation = bad.service.operations.newest()[0].operation.id
    retry = bad.service.book.everything()[0]
    async with chromium(tmp_path, width=width, height=height, dark=dark) as page:
        await fine(page, bad.url)
        await fine(page, bad.url + "/sign-in")
        await page.submit("document.forms[0].submit()")  # without the token
        assert "That is not the admin token." in await page.text()
        page.complaints.clear()  # of the 401
        await fine(page)
        await sign_in(page, bad.url)
        await fine(page)
        await fine(page, f"{bad.url}/?open=" + ",".join(one.id for one in bad.service.operations.groups()))
        await fine(page, bad.url + "/groups")
        await fine(page, f"{bad.url}/groups/{group.id}")
        for gone in ("groups/none", "retries/none", "operations/none"):
            await page.open(f"{bad.url}/{gone}")
            page.complaints.clear()  # of the 404
            await fine(page)
        await fine(page, f"{bad.url}/retries/{retry.id}")
        await fine(page, f"{bad.url}/retries/{group.source}/{group.letters[0]}")
        assert "It was not retried yet." in await page.text()
        await fine(page, f"{bad.url}/retries/{retry.source}/{retry.dead_letter_id}")
        await fine(page, f"{bad.url}/operations/{operation}")
        for action in ("retry", "hold"):
            await fine(page, f"{bad.url}/confirm?action={action}&group={group.id}")
            assert "Why (optional)" in await page.text()
        await page.open(bad.url)
        await page.press("Pause all")
        await fine(page)
        await fine(page, bad.url + "/confirm?action=resume")
        assert "Resume retries?" in await page.text()


@real("chromium")
async def test_a_quiet_night_and_nothing_at_all(tmp_path: Path) -> None:
    axe.script()
    changes = {"server": {"listen": "127.0.0.1:0", "admin_token": TOKEN}, "retries": {"mode": "off"}}
    async with deployment(tmp_path, platforms=["make"], workflows=0, changes=changes) as made:
        async with chromium(tmp_path, width=390, height=844) as page:
            await fine(page, made.url)  # not read yet
            await made.sweep()
            await fine(page, made.url)
            assert "1 source fine; nothing waits for you." in " ".join((await page.text()).split())
