"""The runbooks: for each alert a page that says what it means, where to look and what to do. `runbook_url` leads here.

They are the Markdown of docs/runbooks, which came along with the code; made into HTML here, as far as they use it.
Whatever is in them is escaped. The first password opens them, no token is asked for: they tell nothing of anybody.
"""

import re
from collections.abc import Iterator
from functools import cache
from html import escape

from aiohttp import web

from exporter.shipped import shipped
from exporter.web.forms import html
from exporter.web.markup import document

#: Where the other pages of the docs are, which the runbooks link to and which do not come along.
DOCS = "https://github.com/automation-exporter/automation-exporter/blob/main/docs"
_SPAN = re.compile(r"`([^`]+)`|\*\*(.+?)\*\*|\[([^\]]+)\]\(([^)\s]+)\)")
_ITEM = re.compile(r"(?:(\d+)\.|-) +")


class Runbooks:
    """Serves them. ``.md`` at the end of an address is heard as well: so the files are called elsewhere."""

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_get("/runbooks", self._all)
        router.add_get("/runbooks/{alert}", self._one)

    async def _all(self, request: web.Request) -> web.Response:
        items = "".join(f'<li><a href="runbooks/{escape(alert)}">{escape(alert)}</a></li>' for alert in runbooks())
        back = '<p><a href=".">Status page</a></p>'
        return html(document(f"<h1>Runbooks</h1>{back}<ul>{items}</ul>"))

    async def _one(self, request: web.Request) -> web.Response:
        alert = request.match_info["alert"].removesuffix(".md")
        text = runbooks().get(alert)
        if text is None:
            return web.Response(status=404, text="no alert of this name: /runbooks lists all there are\n")
        back = '<p><a href="../">Status page</a> · <a href="../runbooks">All runbooks</a></p>'
        return html(document(back + as_html(text)))


@cache
def runbooks() -> dict[str, str]:
    """The Markdown of each, by the name of its alert; none where the installation lacks them."""
    try:
        folder = shipped("runbooks")
    except FileNotFoundError:
        return {}
    pages = sorted((page for page in folder.iterdir() if page.name.endswith(".md")), key=lambda page: page.name)
    return {page.name.removesuffix(".md"): page.read_text(encoding="utf-8") for page in pages}


def as_html(markdown: str) -> str:
    """Headings, paragraphs, lists and fenced code, with code, strong words and links in them: what runbooks consist of.

    Pure.
    """
    return "\n".join(_blocks(markdown))


def _blocks(markdown: str) -> Iterator[str]:
    lines, at = markdown.splitlines(), 0
    while at < len(lines):
        line, begin = lines[at], at
        at += 1
        if line.startswith("```"):
            while at < len(lines) and not lines[at].startswith("```"):
                at += 1
            yield f'<pre style="white-space:pre-wrap"><code>{escape(chr(10).join(lines[begin + 1 : at]))}</code></pre>'
            at += 1
        elif heading := re.match(r"(#{1,6}) +(.*)", line):
            level = len(heading[1])
            yield f"<h{level}>{_inline(heading[2])}</h{level}>"
        elif item := _ITEM.match(line):
            while at < len(lines) and (_ITEM.match(lines[at]) or lines[at].startswith("  ")):
                at += 1
            yield _list(lines[begin:at], "ol" if item[1] else "ul")
        elif line.strip():
            while at < len(lines) and lines[at].strip() and not _ITEM.match(lines[at]) and lines[at][0] not in "#`":
                at += 1
            yield f"<p>{_inline(' '.join(lines[begin:at]))}</p>"


def _list(lines: list[str], kind: str) -> str:
    items: list[str] = []
    for line in lines:
        if found := _ITEM.match(line):
            items.append(line[found.end() :])
        else:
            items[-1] += " " + line.strip()
    return f"<{kind}>{''.join(f'<li>{_inline(item)}</li>' for item in items)}</{kind}>"


def _inline(text: str) -> str:
    made, done = "", 0
    for span in _SPAN.finditer(text):
        code, strong, name, target = span.groups()
        made += escape(text[done : span.start()], quote=False)
        if code:
            made += f"<code>{escape(code)}</code>"
        elif strong:
            made += f"<strong>{_inline(strong)}</strong>"
        else:
            made += f'<a href="{escape(_address(target))}">{_inline(name)}</a>'
        done = span.end()
    return made + escape(text[done:], quote=False)


def _address(target: str) -> str:
    """Another runbook is beside this one; the rest of the docs is where the project is."""
    if target.startswith(("https://", "http://")):
        return target
    if re.fullmatch(r"\w+\.md", target):
        return target.removesuffix(".md")
    return f"{DOCS}/{target.removeprefix('../')}"
