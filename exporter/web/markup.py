"""The pieces that pages are made of: the document with its style, tables, links, forms. No script, nothing foreign.

What a person or a platform wrote goes through ``told``: it is cut and escaped, and neither controls nor directions in
it reach what stands beside it. Links and forms are relative: the page may live under a prefix that only a proxy knows;
``base`` is the way from a page to the first one.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import urlencode

_STYLE = """
:root{color-scheme:light dark;--page:#fff;--text:#111;--dim:#555;--line:#ccc;--soft:#f3f3f3;--bad:#b71c1c;
--good:#1b6e20;--wait:#7a4f00;--accent:#0d52a0}
@media(prefers-color-scheme:dark){:root{--page:#111;--text:#eee;--dim:#b4b4b4;--line:#444;--soft:#222;--bad:#ff8a80;
--good:#81c784;--wait:#ffcc80;--accent:#90caf9}}
*{box-sizing:border-box}
html{background:var(--page);color:var(--text)}
body{font:15px/1.5 system-ui,sans-serif;max-width:78rem;margin:0 auto;padding:1rem;overflow-wrap:anywhere}
h1{font-size:1.4rem;margin:.2rem 0}h2{font-size:1.1rem;margin:2rem 0 .5rem}a{color:var(--accent)}
header{display:flex;flex-wrap:wrap;gap:.3rem 1rem;align-items:baseline;justify-content:space-between}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.35rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600;white-space:nowrap}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td:is([data-name=Source],[data-name=Policy]){min-width:7rem}td[data-name=When]{min-width:12rem}
td[data-name=Who]{min-width:5rem}
.bad{color:var(--bad)}.good{color:var(--good)}.wait{color:var(--wait)}small,.soft{color:var(--dim)}
.tag{display:inline-block;border:1px solid currentColor;border-radius:.3rem;padding:0 .35rem;font-size:.85em}
.said,.stop,.verdict{border-left:4px solid var(--good);background:var(--soft);padding:.5rem .8rem;margin:.8rem 0}
.verdict{font-size:1.15rem}.verdict.wait{border-color:var(--wait);color:inherit}
.stop,.verdict.bad{border-color:var(--bad);color:inherit}
form{display:inline}button,a.do{font:inherit;padding:.15rem .55rem;border-radius:.3rem;border:1px solid var(--line);
background:var(--soft);color:inherit;cursor:pointer;text-decoration:none;display:inline-block;
margin:.1rem .2rem .1rem 0}
input{font:inherit;padding:.2rem .4rem}
.group{border-bottom:1px solid var(--line)}h3{font:inherit;margin:0}
h3 a{display:block;color:inherit;text-decoration:none;padding:.5rem 0}
h3 a::before{content:"\\25b8\\a0"}h3 a.open::before{content:"\\25be\\a0"}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem .8rem;margin:.2rem 0 .5rem 1rem}
dt{color:var(--dim)}dd{margin:0}
.acts{margin:.2rem 0 .8rem 1rem}progress{width:12rem;max-width:100%;vertical-align:middle}
@media(max-width:48rem){body{padding:.6rem}thead{display:none}tr{display:block;padding:.5rem 0;
border-bottom:1px solid var(--line)}td,td.n{display:block;border:0;padding:.1rem 0;text-align:left;white-space:normal}
td[data-name]::before{content:attr(data-name) ": ";color:var(--dim)}td:empty{display:none}
dl{grid-template-columns:1fr;margin-left:.5rem}dt{margin-top:.2rem}.acts{margin-left:.5rem}
a.do,button{padding:.4rem .8rem}.part{display:block}}
"""
#: Names are cut after so many characters, and messages, which stand for themselves.
NAME_CHARS, MESSAGE_CHARS = 80, 400
#: What moves, hides or ends what stands around it, or what no text of ours can hold.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """Who looks: whether control is on at all, and the secret of the session once somebody has signed in."""

    control: bool = False
    csrf: str | None = None
    notice: str | None = None
    at: str = ""  # the page that is looked at, from the first one: where to come back to

    @property
    def may_act(self) -> bool:
        return self.csrf is not None


#: Pages of ours, as they are named from the first one.
_PLACE = re.compile(r"(?:\?|groups|retries/|operations/)[\w%.~,=&?/-]{0,400}", re.A)


def place(text: str) -> str:
    """Where to come back to, if it is a page of ours; "", the first one, if not."""
    return text if _PLACE.fullmatch(text) and ".." not in text else ""


def document(body: str, *, title: str = "automation-exporter") -> str:
    """A whole page."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(plain(title))}</title><style>{_STYLE}</style></head>'
        f"<body><main>{body}</main></body></html>\n"
    )


def table(names: Sequence[str], rows: Sequence[str], *, numbers: Collection[str] = (), none: str = "None.") -> str:
    """Rows under names, of which some are those of ``numbers``."""
    if not rows:
        return f"<p>{none}</p>"
    head = "".join(f'<th scope="col"{" class=n" if name in numbers else ""}>{name}</th>' for name in names)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def row(*cells: tuple[str, str] | tuple[str, str, str]) -> str:
    """Cells of (name for narrow screens, HTML, classes)."""
    made = []
    for name, text, *classes in cells:
        named = f' data-name="{name}"' if name else ""
        styled = f' class="{classes[0]}"' if classes else ""
        made.append(f"<td{named}{styled}>{text}</td>")
    return f"<tr>{''.join(made)}</tr>"


def facts(*pairs: tuple[str, str]) -> str:
    """Names with HTML; those without any are left out."""
    return f"<dl>{''.join(f'<dt>{name}</dt><dd>{text}</dd>' for name, text in pairs if text)}</dl>"


def plain(text: object, *, most: int = NAME_CHARS) -> str:
    """What somebody wrote as one line of at most so many characters, which shows whatever is in it. Not escaped."""
    said = str(text)
    cut = said if len(said) <= most else said[: most - 1] + "…"
    return _UNSEEN.sub(lambda found: " " if found[0] in "\t\n\r" else "\ufffd", cut)


def told(text: object, *, most: int = NAME_CHARS) -> str:
    """The same as HTML, on its own: whichever way it is written, what stands around it is not."""
    return f"<bdi>{escape(plain(text, most=most))}</bdi>"


def notice(visitor: Visitor) -> str:
    """What became of what a person did last."""
    said = told(visitor.notice, most=MESSAGE_CHARS) if visitor.notice else ""
    return f'<p class="said" role="status">{said}</p>' if said else ""


def linked(text: object, url: str | None) -> str:
    """A link out of here, if it is one."""
    if url is None or not url.startswith(("https://", "http://")):
        return told(text)
    return f'<a href="{escape(url)}" rel="noreferrer noopener" target="_blank">{told(text)}</a>'


def ways(base: str, *, title: str = "", url: str | None = None, dashboard: str | None = None, alert: str = "") -> str:
    """Where to read on: the page on the platform of this ``title``, the dashboard, the runbook of an alert."""
    links = [linked(f"on {title}", url) if url else "", linked("dashboard", dashboard) if dashboard else ""]
    links += [f'<a href="{base}runbooks/{alert}">runbook</a>'] if alert else []
    return " · ".join(filter(None, links))


def address(path: str, **query: str) -> str:
    """A relative address, ready for an attribute."""
    return escape(f"{path}?{urlencode(query)}" if query else path)


def asks(text: str, base: str, visitor: Visitor, **query: str) -> str:
    """The way to the page on which a person confirms something, and back."""
    back = {"at": visitor.at} if visitor.at else {}
    return f'<a class="do" href="{address(f"{base}confirm", **query, **back)}">{escape(plain(text))}</a>'


def button(action: str, text: str, visitor: Visitor, **fields: str) -> str:
    if visitor.at:
        fields = {**fields, "at": visitor.at}
    hidden = "".join(f'<input type="hidden" name="{name}" value="{escape(value)}">' for name, value in fields.items())
    return f'<form method="post" action="{action}">{secret(visitor.csrf or "")}{hidden}<button>{text}</button></form>'


def secret(csrf: str) -> str:
    """What proves that a form comes from a page of this session."""
    return f'<input type="hidden" name="csrf" value="{escape(csrf)}">'
