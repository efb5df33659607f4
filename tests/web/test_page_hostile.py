"""Whatever a platform or a person writes is text on every page: markup, ten thousand characters, other directions."""

import re
from pathlib import Path
from urllib.parse import quote

import pytest
from yarl import URL

from exporter.model import DeadLetter, Error, ErrorClass, Run, State, Workflow
from exporter.model.operations import OperationAction
from exporter.retries.operations import Selection
from exporter.web.markup import linked, plain, told
from tests.accessibility import axe
from tests.chromium import Page, chromium
from tests.e2e.deployment import Deployment
from tests.servers import real
from tests.web.night import sign_in
from tests.web.test_browser import TOKEN, made
from tests.web.test_page_groups import Person, ingest, signed_in

__all__ = ["made"]
HOUR = 3600.0
#: What stands in names, messages and ids; each is followed by something of ours.
NAMES = {
    "markup": '<script>document.title="owned"</script><img src=x onerror=alert(1)></title></style>',
    "attribute": '"><a href=\'javascript:alert(1)\'>x</a> onmouseover="alert(1)" autofocus onfocus=alert(1)',
    "entity": "&lt;b&gt; &amp;amp; &#0; &#x202e; <!-- ]]> {{7*7}} ${7*7}",
    "endless": "x" * 10_000,
    "words": "word " * 2_000,
    "right to left": "\u05d4\u05d6\u05de\u05e0\u05d5\u05ea 12 \u0645\u0632\u0627\u0645\u0646\u0629",
    "override": "\u202e\u2066evil\u200f \u202d",
    "controls": "a\x00b\x07c\x1b[31md\x7f\x85e\u2028f\ufeffg\tend\r\nline",
    "stacked": "Z" + "\u0301" * 400,
    "emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "blank": " \u3000 ",
}
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


@pytest.fixture
async def hostile(made: Deployment) -> Deployment:
    """A workflow, a stuck run and a dead letter of each name, a group that is held, and an operation."""
    await made.sweep()
    now = made.clock.now()
    claims: list[Workflow | Run | DeadLetter] = []
    for number, name in enumerate(NAMES.values()):
        identity = f"{name[:60]}{number}"
        claims.append(Workflow(id=identity, at=now + 1, name=name))
        claims.append(Run(workflow_id=identity, id=f"r{number}", state=State.RUNNING, started_at=now - 9 * HOUR))
        error = Error(error_class=ErrorClass.NETWORK, type=name[:200], message=name)
        letter = DeadLetter(id=identity, workflow_id=identity, opened_at=now - HOUR, run_id=f"{identity}r", error=error)
        claims.append(letter)
    await ingest(made, claims)
    await made.retry()
    why = NAMES["markup"] + NAMES["right to left"]
    held = Selection(ids=[("make", claims[2].id)])
    await made.service.operations.begin(OperationAction.HOLD, held, who="<b>ann</b>", why=why[:200])
    await made.retry()
    return made


def pages(made: Deployment) -> list[str]:
    groups = made.service.operations.groups()
    [operation] = made.service.operations.newest()
    return [
        "/",
        "/?open=" + ",".join(group.id for group in groups[:10]),
        "/groups",
        *(f"/groups/{group.id}" for group in groups),
        *(f"/retries/make/{quote(group.letters[0], safe='')}" for group in groups),
        *(f"/confirm?action=hold&group={group.id}" for group in groups),
        f"/operations/{operation.operation.id}",
        "/retries/" + quote(NAMES["markup"], safe=""),
        "/groups/" + quote(NAMES["attribute"], safe=""),
        "/sign-in?at=" + quote('groups/"><script>alert(1)</script>', safe=""),
    ]


async def test_no_page_has_anything_in_it_that_is_not_ours(hostile: Deployment) -> None:
    person = await signed_in(hostile)
    for path in pages(hostile):
        await person.go(hostile.url + path)
        assert person.status in (200, 404), path
        assert len(person.page.encode()) < 100_000, path
        assert UNSEEN.search(person.page) is None, (path, UNSEEN.search(person.page))
        tags = set(re.findall(r"<(\w+)", person.page))
        assert tags & {"script", "img", "iframe", "object", "svg"} == set(), path
        for tag in re.findall(r"<\w[^>]*>", person.page):
            assert re.search(r"\son\w+=", re.sub(r'"[^"]*"', '""', tag)) is None, (path, tag)
        assert "javascript:" not in "".join(re.findall(r'(?:href|action)="([^"]*)"', person.page)), path


async def test_every_dead_letter_is_reached_by_the_links_of_its_group(hostile: Deployment) -> None:
    person = await signed_in(hostile)
    for group in hostile.service.operations.groups():
        key = "make/" + quote(group.letters[0], safe="")
        assert await hostile.drive(_tried(hostile, key)) == 200, group.letters
        await person.go(f"{hostile.url}/groups/{group.id}")
        await person.follow("audit")
        assert person.status == 200, group.letters
        assert "What happens" in person.text
        if group.workflow != NAMES["markup"]:  # that is held
            await person.follow("Hold")
            assert "Hold 1 dead letter?" in person.text, group.letters


async def _tried(made: Deployment, key: str) -> int:
    """What the API says to a look at a dead letter."""
    url, headers = URL(f"{made.url}/api/v1/dead-letters/{key}/try", encoded=True), {"Authorization": f"Bearer {TOKEN}"}
    async with made.session.post(url, headers=headers) as response:
        return response.status


@real("chromium")
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)], ids=["phone", "desktop"])
async def test_in_a_browser_it_is_harmless_and_stays_where_it_is(
    hostile: Deployment, tmp_path: Path, width: int, dark: bool
) -> None:
    axe.script()
    async with chromium(tmp_path, width=width, height=844, dark=dark) as page:
        await sign_in(page, hostile.url)
        for path in pages(hostile):
            await page.open(hostile.url + path)
            page.complaints = [one for one in page.complaints if "404" not in one]
            assert page.complaints == [], path
            assert await page.read("document.scripts.length") == 0, path
            assert await page.read("document.title") != "owned", path
            assert await page.read("document.documentElement.scrollWidth <= window.innerWidth"), path
            assert await page.read(_STACKED) < 0.5, path
        await page.open(hostile.url)
        assert await axe.violations(page) == []
        assert NAMES["markup"][:60] in await page.text()
        await _in_order(page)


#: How far (in lines) what is written of one group reaches into the next.
_STACKED = """Math.max(0, ...[...document.querySelectorAll('.group')].map((g, i, all) => i + 1 < all.length ?
    (g.getBoundingClientRect().bottom - all[i + 1].getBoundingClientRect().top) / 20 : 0))"""


async def _in_order(page: Page) -> None:
    """The source stands to the right of the name, whichever way that is written, and is read the right way round."""
    found = await page.read("""[...document.querySelectorAll('h3 a')].map(a => {
        const name = a.querySelector('b').getClientRects(), source = a.querySelector('small').getClientRects()
        const last = name[name.length - 1]
        return [a.querySelector('b').innerText.slice(0, 30), last.top === undefined, last.right, source[0].left,
                last.bottom, source[0].top, getComputedStyle(a.querySelector('small')).direction]
    })""")
    assert len(found) == len(NAMES)
    for name, _, right, left, bottom, top, direction in found:
        assert direction == "ltr"
        assert left >= right - 1 or top >= bottom - 10, name


@pytest.mark.parametrize("name", NAMES)
def test_what_others_wrote_is_one_short_line(name: str) -> None:
    said = plain(NAMES[name])
    assert len(said) <= 80
    assert UNSEEN.search(said) is None
    assert "\n" not in said
    assert told(NAMES[name]).startswith("<bdi>")
    assert "<" not in told(NAMES[name])[5:-6]
    said.encode()


def test_half_a_character_is_shown_as_one_that_is_missing() -> None:
    assert plain("a\ud800b").encode() == "a\ufffdb".encode()
    assert plain("a\nb\tc") == "a b c"


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "data:text/html,x", "//evil.example", " https://x", "ftp://x", None]
)
def test_only_the_web_is_linked_to(url: str | None) -> None:
    assert linked("x", url) == "<bdi>x</bdi>"
    assert 'href="https://x.example/&quot;&gt;"' in linked("x", 'https://x.example/">')


async def test_what_a_person_types_is_text_too(made: Deployment) -> None:
    person = Person(made)
    await person.go("./?open=%22%3E%3Cscript%3E,a%0d%0ab")
    assert "<script" not in person.page
    await person.go("./confirm?action=%3Cscript%3E")
    assert "<script" not in person.page
    person = await signed_in(made)
    await person.go("./confirm?action=%3Cscript%3Ealert(1)%3C/script%3E&at=%22%3E")
    assert "there is no action &lt;script&gt;" in person.page
    await person.go("./confirm?action=hold&id=%3Cscript%3E")
    assert "<script" not in person.page
    assert person.status == 200
