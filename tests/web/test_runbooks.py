"""The runbooks as the service shows them: all of them, readable, behind the page's password and without the token."""

import base64
import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin

import bcrypt
import pytest

from exporter.alerting.alerts import ALERTS
from exporter.simulator.fleet import demo_config
from exporter.web.runbooks import DOCS, as_html, runbooks
from tests.e2e.deployment import Deployment, deployment
from tests.e2e.test_truth import ROOMY
from tests.test_docs import DOCS as FOLDER
from tests.test_docs import fences


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployment(tmp_path, platforms=["make"], options=ROOMY) as made:
        yield made


class Page(HTMLParser):
    """What a person sees of a page: its text, its code, where its links lead; every element closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text, self.code, self.links = "", list[str](), list[str]()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)
        if tag == "code":
            self.code.append("")
        self.links += [value for name, value in attrs if tag == "a" and name == "href" and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.text += "\n" if tag in ("h1", "h2", "li", "p", "pre") else ""

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if "code" in self.open:
            self.code[-1] += data


async def fetch(made: Deployment, path: str, **headers: str) -> tuple[int, str, str]:
    async with made.session.get(made.url + path, headers=headers) as response:
        return response.status, response.content_type, await response.text()


async def test_every_alert_s_runbook_is_there_with_what_its_file_says(made: Deployment) -> None:
    for alert in ALERTS:
        status, kind, text = await fetch(made, f"/runbooks/{alert.name}")
        assert (status, kind) == (200, "text/html"), alert.name
        page = Page(text)
        assert alert.name in page.text
        file = FOLDER / "runbooks" / f"{alert.name}.md"
        for query in fences(file, "promql", "sh"):
            assert query.rstrip("\n") in page.code, "to be copied as it is"
        outside = re.sub(r"^```.*?^```$", "", file.read_text(), flags=re.M | re.S)
        words = re.findall(r"\w+", re.sub(r"\]\([^)]*\)", "", outside))
        shown = re.findall(r"\w+", page.text)
        assert [word for word in words if word not in shown and not re.fullmatch(r"\d", word)] == []
        assert not re.search(
            r"\]\(|\*\*|^#|```|^\d\. ", re.sub("|".join(map(re.escape, page.code)), "", page.text), re.M
        )


async def test_links_lead_to_pages_there_are(made: Deployment) -> None:
    for name, markdown in runbooks().items():
        here = f"{made.url}/runbooks/{name}"
        for link in Page(as_html(markdown)).links:
            assert (FOLDER / link.removeprefix(f"{DOCS}/")).exists() or urljoin(here, link).removeprefix(
                f"{made.url}/runbooks/"
            ) in runbooks(), link
    listed = Page((await fetch(made, "/runbooks"))[2]).links
    assert {urljoin(f"{made.url}/runbooks", link) for link in listed} == {
        f"{made.url}/",
        *(f"{made.url}/runbooks/{alert.name}" for alert in ALERTS),
    }
    one = Page((await fetch(made, "/runbooks/AutomationStoreDown"))[2]).links
    assert {urljoin(f"{made.url}/runbooks/x", link) for link in one if "://" not in link} >= {
        f"{made.url}/",
        f"{made.url}/runbooks",
    }


@pytest.mark.parametrize(
    "name",
    [
        "Nothing",
        "..%2Falerts",
        "%2e%2e%2f%2e%2e%2fREADME",
        "AutomationStoreDown%00",
        "automationstoredown",
        "%3Cscript%3E",
    ],
)
async def test_what_is_no_alert_is_refused_in_one_line(made: Deployment, name: str) -> None:
    status, kind, text = await fetch(made, f"/runbooks/{name}")
    assert (status, kind) == (404, "text/plain")
    assert text == "no alert of this name: /runbooks lists all there are\n"


async def test_the_name_of_the_file_does_as_well(made: Deployment) -> None:
    """``runbook_url: https://exporter.example/runbooks`` makes such links."""
    assert await fetch(made, "/runbooks/AutomationStoreDown.md") == await fetch(made, "/runbooks/AutomationStoreDown")


async def test_the_page_s_password_guards_them_and_no_token_is_asked_for(made: Deployment) -> None:
    digest = bcrypt.hashpw(b"open sesame", bcrypt.gensalt(4)).decode()
    server = {"listen": "127.0.0.1:0", "admin_token": "t" * 32, "basic_auth": {"users": {"ops": digest}}}
    database = Path(made.config.store.url[10:])
    made.config = demo_config(made.fleet, listen="", database=database, changes={"server": server})
    await made.restart()
    header = "Basic " + base64.b64encode(b"ops:open sesame").decode()
    for path, answer in (("/runbooks", 200), ("/runbooks/AutomationStoreDown", 200), ("/runbooks/Nothing", 404)):
        assert (await fetch(made, path))[0] == 401
        assert (await fetch(made, path, Authorization=header))[0] == answer


async def test_senders_of_webhooks_find_none_at_their_own_address(made: Deployment) -> None:
    server = {"listen": "127.0.0.1:0", "webhooks_listen": "127.0.0.1:0"}
    database = Path(made.config.store.url[10:])
    made.config = demo_config(made.fleet, listen="", database=database, changes={"server": server})
    await made.restart()
    async with made.session.get(f"http://127.0.0.1:{made.service.webhooks_port}/runbooks/AutomationStoreDown") as got:
        assert got.status == 404


@pytest.mark.parametrize(
    ("markdown", "shown"),
    [
        ("# A <b> & `c<d>`", "<h1>A &lt;b&gt; &amp; <code>c&lt;d&gt;</code></h1>"),
        ("one\ntwo\n\nthree", "<p>one two</p>\n<p>three</p>"),
        ("1. a\n   b\n2. **c**: d", "<ol><li>a b</li><li><strong>c</strong>: d</li></ol>"),
        ("x:\n- a\n- b", "<p>x:</p>\n<ul><li>a</li><li>b</li></ul>"),
        (
            "```promql\na < b\n\n# no heading\n```",
            '<pre style="white-space:pre-wrap"><code>a &lt; b\n\n# no heading</code></pre>',
        ),
        ("[A](AutomationQuotaLow.md)", '<p><a href="AutomationQuotaLow">A</a></p>'),
        ("[A](../retries.md#gates)", f'<p><a href="{DOCS}/retries.md#gates">A</a></p>'),
        ("[A](javascript:alert)", f'<p><a href="{DOCS}/javascript:alert">A</a></p>'),
        ('[A](https://x/?a="&b)', '<p><a href="https://x/?a=&quot;&amp;b">A</a></p>'),
        ("`[A](b)` and `**c**`", "<p><code>[A](b)</code> and <code>**c**</code></p>"),
    ],
)
def test_markdown_becomes_html_that_is_safe(markdown: str, shown: str) -> None:
    assert as_html(markdown) == shown
