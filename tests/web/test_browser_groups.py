"""A thousand dead letters in a real browser on a phone: folded, unfolded, approved, taken back."""

from pathlib import Path

from tests.chromium import chromium
from tests.e2e.deployment import Deployment
from tests.servers import real
from tests.web.test_browser import TOKEN, made
from tests.web.test_page_groups import put

__all__ = ["made"]


@real("chromium")
async def test_a_thousand_letters_on_a_phone(made: Deployment, tmp_path: Path) -> None:
    await put(made, 1000, groups=3)
    async with chromium(tmp_path, width=390, height=844, dark=True) as page:
        await page.open(made.url + "/sign-in")
        await page.submit(f"document.querySelector('[name=token]').value = {TOKEN!r}; document.forms[0].submit()")
        fits = "document.documentElement.scrollWidth <= window.innerWidth"
        opened = "document.querySelectorAll('[aria-expanded=true]').length"
        assert await page.read(fits)
        assert "1,000 dead letters wait for you" in await page.text()
        assert "For commands" not in await page.text()  # folded
        await page.submit("document.querySelector('h3 a').click()")
        assert await page.read(opened) == 1
        assert "For commands" in await page.text()
        assert await page.read(
            "document.querySelector('[aria-expanded=true]').getBoundingClientRect().top < innerHeight"
        )
        await page.submit("location.reload()")
        assert await page.read(opened) == 1
        assert await page.read(fits)
        await page.submit("[...document.links].find(a => a.innerText === 'its 334 dead letters').click()")
        assert await page.read(fits)
        assert await page.read("document.querySelectorAll('tbody tr').length") == 50
        await page.submit("[...document.links].find(a => a.innerText.startsWith('after')).click()")
        assert await page.read("document.querySelectorAll('tbody tr').length") == 50
        await page.submit("[...document.links].find(a => a.innerText === 'Approve 334').click()")
        assert "and 329 more" in await page.text()
        assert await page.read(fits)
        await page.press("Approve these")
        assert "Approved: 334." in await page.text()
        assert await page.read("document.querySelector('progress').max") == 334
        assert await page.read(fits)
        await page.press("Cancel the rest")
        assert "Cancelled: 334." in await page.text()
        assert page.complaints == []
