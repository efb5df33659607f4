"""The status page: one HTML text made of plain values. No script; readable on a phone, dark and light.

Everything a person or a platform wrote is escaped. The page reloads itself; what a person fills in stands on pages of
their own, which do not. Links and forms are relative: the page may live under a prefix that only a proxy knows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any
from urllib.parse import quote

_STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8881;--bad:#b71c1c;--good:#2e7d32;--wait:#8a5a00;--accent:#1565c0}
@media(prefers-color-scheme:dark){:root{--bad:#ff8a80;--good:#81c784;--wait:#ffcc80;--accent:#90caf9}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;max-width:78rem;margin:0 auto;padding:1rem;overflow-wrap:anywhere}
h1{font-size:1.4rem;margin:.2rem 0}h2{font-size:1.1rem;margin:2rem 0 .5rem}a{color:var(--accent)}
header{display:flex;flex-wrap:wrap;gap:.3rem 1rem;align-items:baseline;justify-content:space-between}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.35rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600;white-space:nowrap}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td[data-name=Source]{min-width:7rem}
.bad{color:var(--bad)}.good{color:var(--good)}.wait{color:var(--wait)}small,.soft{opacity:.75}
.tag{display:inline-block;border:1px solid currentColor;border-radius:.3rem;padding:0 .35rem;font-size:.85em}
.said,.stop{border-left:4px solid var(--good);background:var(--soft);padding:.5rem .8rem;margin:.8rem 0}
.stop{border-color:var(--bad)}
form{display:inline}button{font:inherit;padding:.15rem .55rem;border-radius:.3rem;border:1px solid var(--line);
background:var(--soft);color:inherit;cursor:pointer}input{font:inherit;padding:.2rem .4rem}
@media(max-width:48rem){body{padding:.6rem}thead{display:none}tr{display:block;padding:.5rem 0;
border-bottom:1px solid var(--line)}td,td.n{display:block;border:0;padding:.1rem 0;text-align:left;white-space:normal}
td[data-name]::before{content:attr(data-name) ": ";opacity:.7}td:empty{display:none}}
"""
#: Rows of a table shown on the page; the JSON has more.
SHOWN_MAX = 50
#: Workflows of one stream shown as unread.
UNREAD_SHOWN_MAX = 5
_REFRESH = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """Who looks: whether control is on at all, and the secret of the session once somebody has signed in."""

    control: bool = False
    csrf: str | None = None
    notice: str | None = None

    @property
    def may_act(self) -> bool:
        return self.csrf is not None


def page(
    facts: Mapping[str, Any],
    trouble: Sequence[Mapping[str, Any]],
    letters: Mapping[str, Any],
    retries: Mapping[str, Any],
    visitor: Visitor,
) -> str:
    """The page for what ``exporter.web.status`` says."""
    now = facts["now"]
    parts = [
        _header(facts, visitor),
        _notice(visitor),
        _retrying(retries, visitor),
        f"<h2>Sources</h2>{_sources(facts['sources'], now)}",
        f"<h2>Workflows in trouble</h2>{_trouble(trouble, now)}",
        f"<h2>Open dead letters ({letters['total']})</h2>{_approve_all(letters, visitor)}",
        _dead_letters(letters["dead_letters"], now, visitor),
        f"<h2>Retries</h2>{_retries(retries['retries'], now, visitor)}",
    ]
    return _document("".join(parts), refresh=True)


def sign_in_page(*, csrf: str, problem: str | None = None) -> str:
    """Where a person proves that they may act."""
    wrong = f'<p class="stop">{escape(problem)}</p>' if problem else ""
    return _document(
        f'<h1>Sign in</h1>{wrong}<form method="post" action="sign-in">{_hidden(csrf)}'
        '<p><label>Admin token <input type="password" name="token" autocomplete="current-password" autofocus></label> '
        '<button>Sign in</button></p></form><p><a href="./">Back</a></p>'
    )


def confirm_page(keys: Sequence[str], *, csrf: str, policy: str) -> str:
    """The frozen list of what is about to be approved."""
    listed = "".join(f'<li>{escape(key)}<input type="hidden" name="id" value="{escape(key)}"></li>' for key in keys)
    return _document(
        f"<h1>Approve {len(keys)} retries</h1><p>Under the policy <b>{escape(policy)}</b>: these dead letters, "
        "as they are now, once each. What changes before its turn is left out.</p>"
        f'<form method="post" action="act/approve-all">{_hidden(csrf)}<ul>{listed}</ul>'
        '<p><button>Approve these</button></p></form><p><a href="./">Back</a></p>'
    )


def _document(body: str, *, refresh: bool = False) -> str:
    again = f'<meta http-equiv="refresh" content="{_REFRESH}">' if refresh else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{again}'
        f'<link rel="icon" href="data:,"><title>automation-exporter</title><style>{_STYLE}</style></head>'
        f"<body>{body}</body></html>\n"
    )


def _header(facts: Mapping[str, Any], visitor: Visitor) -> str:
    links = "".join(f'<a href="{path}">/{path}</a> ' for path in ("metrics", "-/ready", "api/v1/status"))
    account = ""
    if visitor.may_act:
        account = _button("sign-out", "Sign out", visitor)
    elif visitor.control:
        account = '<a href="sign-in">Sign in</a>'
    return (
        f"<header><h1>automation-exporter <small>{escape(facts['version'])}</small></h1>"
        f"<div>{links}<small>{_time(facts['now'])}</small> {account}</div></header>"
    )


def _notice(visitor: Visitor) -> str:
    return f'<p class="said" role="status">{escape(visitor.notice)}</p>' if visitor.notice else ""


def _retrying(retries: Mapping[str, Any], visitor: Visitor) -> str:
    paused = [source for source, is_paused in retries["paused"].items() if is_paused]
    parts = [f'Retries: <span class="tag">{escape(retries["mode"])}</span>']
    if paused:
        parts.append(f'<b class="bad">paused: {escape(", ".join(paused))}</b>')
    if visitor.may_act:
        parts.append(_button("act/pause", "Pause all", visitor))
        if paused:
            parts.append(_button("act/resume", "Resume", visitor))
    css = "stop" if paused else ""
    return f'<p class="{css}">{" ".join(parts)}</p>'


def _sources(sources: Sequence[Mapping[str, Any]], now: float) -> str:
    rows = []
    for source in sources:
        streams = "<br>".join(_stream(stream, now) for stream in source["streams"])
        budget = source["budget"]
        limit = "" if budget["limit"] is None else f" of {budget['limit']:.0f}"
        failing = source["failing_workflows"]
        rows.append(
            _row(
                ("Source", f"<b>{escape(source['source'])}</b><br><small>{escape(source['title'])}</small>"),
                ("Workflows", str(source["workflows"]), "n"),
                ("Active runs", str(source["active_runs"]), "n"),
                ("Failing", str(failing), "n bad" if failing else "n"),
                ("Dead letters", str(source["dead_letters"]), "n"),
                ("Requests/min", f"{budget['requests_per_minute']:.0f}{limit}", "n"),
                ("Freshness", streams),
            )
        )
    names = ("Source", "Workflows", "Active runs", "Failing", "Dead letters", "Requests/min", "Freshness")
    return _table(names, rows, right=5)


def _stream(stream: Mapping[str, Any], now: float) -> str:
    name = escape(stream["stream"])
    if stream["error"]:
        return f'{name}: <span class="bad">{escape(stream["error"])}</span>{"".join(_unread(stream["unread"]))}'
    if stream["success_at"] is None:
        return f"{name}: not swept yet"
    css = "good" if stream["fresh"] else "bad"
    age = f'{name}: <span class="{css}">{_age(now - stream["success_at"])} ago</span>'
    return age + _faults(stream) + "".join(_unread(stream["unread"]))


def _faults(stream: Mapping[str, Any]) -> str:
    """How many parts of the last sweep could not be used, and the last of them in words."""
    fault = stream["last_fault"]
    if not stream["faults"] or fault is None:
        return ""
    of = fault["workflow"] or fault["workflow_id"]
    place = f"{of}: " if of else ""
    said = escape(f"{fault['kind']}: {place}{fault['detail']}")
    return f', <span class="wait">{stream["faults"]} unusable</span> <small>{said}</small>'


def _unread(unread: Mapping[str, Any]) -> Iterator[str]:
    """The workflows that cannot be read, each with its age and the reason."""
    for one in unread["workflows"][:UNREAD_SHOWN_MAX]:
        name = escape(one["workflow"] or one["workflow_id"])
        yield f'<br><span class="bad">{name} not read for {_age(one["age_seconds"])}</span> '
        yield f"<small>{escape(one['detail'])}</small>"
    left = unread["total"] - UNREAD_SHOWN_MAX
    if left > 0:
        yield f'<br><span class="bad">and {left} more</span>'


def _trouble(workflows: Sequence[Mapping[str, Any]], now: float) -> str:
    rows = [
        _row(
            ("Workflow", _linked(workflow["workflow"] or workflow["workflow_id"], workflow["url"])),
            ("Source", escape(workflow["source"])),
            ("What", f'<span class="bad">{escape("; ".join(workflow["problems"]))}</span>'),
            ("Last success", "" if workflow["since"] is None else f"{_age(now - workflow['since'])} ago"),
        )
        for workflow in workflows[:SHOWN_MAX]
    ]
    return _table(("Workflow", "Source", "What", "Last success"), rows)


def _approve_all(letters: Mapping[str, Any], visitor: Visitor) -> str:
    """For each policy under which something waits for approval, the way to the list of it."""
    if not visitor.may_act:
        return ""
    decisions = [letter["decision"] for letter in letters["dead_letters"] if letter["decision"] is not None]
    waiting = sorted({decision["policy"] for decision in decisions if decision["awaits_approval"]})
    links = (f'<a href="approve?policy={quote(policy)}">Approve what waits: {escape(policy)}</a>' for policy in waiting)
    return f"<p>{' · '.join(links)}</p>" if waiting else ""


def _dead_letters(letters: Sequence[Mapping[str, Any]], now: float, visitor: Visitor) -> str:
    rows = []
    for letter in letters[:SHOWN_MAX]:
        trace = _linked("trace", letter["trace_url"]) if letter["trace_url"] else ""
        error = " ".join(filter(None, (letter["error_class"], letter["error_type"])))
        rows.append(
            _row(
                ("Workflow", _linked(letter["workflow"] or letter["workflow_id"], letter["url"])),
                ("Source", escape(letter["source"])),
                ("Age", _age(letter["age_seconds"]), "n"),
                ("Error", f"<b>{escape(error)}</b><br><small>{escape(letter['error_message'] or '')}</small> {trace}"),
                ("Decision", _decision(letter["decision"], now)),
                ("", _letter_buttons(letter, visitor)),
            )
        )
    return _table(("Workflow", "Source", "Age", "Error", "Decision", ""), rows)


_CSS = {"retry": "good", "wait": "wait", "hold": "wait", "ignore": "soft", "quarantine": "bad", "escalate": "bad"}


def _decision(decision: Mapping[str, Any] | None, now: float) -> str:
    if decision is None:
        return ""
    verb, policy = decision["decision"], decision["policy"]
    next_at = decision["next_at"]
    when = f", next in {_age(next_at - now)}" if next_at is not None and next_at > now else ""
    approval = " <b>waits for approval</b>" if decision["awaits_approval"] else ""
    detail = f"{policy + ': ' if policy else ''}{decision['detail']}{when}"
    return (
        f'<span class="tag {_CSS.get(verb, "")}">{escape(verb)}: {escape(decision["reason"])}</span>{approval}'
        f"<br><small>{escape(detail)}</small>"
    )


def _letter_buttons(letter: Mapping[str, Any], visitor: Visitor) -> str:
    if not visitor.may_act:
        return ""
    decision = letter["decision"] or {}
    actions = ["approve"] if decision.get("awaits_approval") else []
    held = decision.get("reason") in ("held", "exhausted") and decision.get("decision") in ("hold", "quarantine")
    actions += ["release"] if held else ["retry", "hold"]
    words = {"approve": "Approve", "release": "Release", "retry": "Retry now", "hold": "Hold"}
    key = f"{letter['source']}/{letter['id']}"
    return " ".join(_button(f"act/{action}", words[action], visitor, id=key) for action in actions)


def _retries(retries: Sequence[Mapping[str, Any]], now: float, visitor: Visitor) -> str:
    urgent = ("held", "in_doubt")
    shown = sorted(retries, key=lambda retry: (retry["state"] not in urgent, retry["state"] is None))[:SHOWN_MAX]
    rows = []
    for retry in shown:
        state = "shadow" if retry["shadow"] else retry["outcome"] or retry["state"]
        css = {"succeeded": "good", "failed": "bad", "rejected": "bad", "held": "bad", "in_doubt": "bad"}.get(state, "")
        letter = f"{escape(retry['source'])}<br><small>{escape(retry['dead_letter_id'])}</small>"
        audit = f'<a href="api/v1/retries/{quote(retry["id"])}">audit</a>'
        lineage = f"<br><small>root {escape(retry['root'])}</small>" if retry["root"] != retry["dead_letter_id"] else ""
        runs = "".join(f"<br><small>made run {escape(run)}</small>" for run in retry["new_runs"][:3])
        approved = f"<br><small>approved by {escape(retry['approved_by'])}</small>" if retry["approved_by"] else ""
        settle = ""
        if visitor.may_act and state in urgent:
            key = f"{retry['source']}/{retry['dead_letter_id']}"
            settle = " ".join(
                (
                    _button("act/release", "It had an effect", visitor, id=key),
                    _button("act/release-not-sent", "It had none", visitor, id=key),
                )
            )
        rows.append(
            _row(
                ("When", f"{_age(now - retry['claimed_at'])} ago", "n"),
                ("State", f'<span class="tag {css}">{escape(state)}</span>{" recurred" if retry["recurred"] else ""}'),
                ("Dead letter", letter + lineage),
                ("Policy", f"{escape(retry['policy'])}<br><small>retry {retry['ordinal']}</small>{approved}"),
                ("Evidence", f"{escape(retry['detail'])}{runs} {audit}"),
                ("", settle),
            )
        )
    return _table(("When", "State", "Dead letter", "Policy", "Evidence", ""), rows)


# Pieces


def _table(names: Sequence[str], rows: Sequence[str], *, right: int = 0) -> str:
    if not rows:
        return "<p>None.</p>"
    head = "".join(f"<th{' class=n' if 0 < i <= right else ''}>{name}</th>" for i, name in enumerate(names))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _row(*cells: tuple[str, str] | tuple[str, str, str]) -> str:
    """Cells of (name for narrow screens, HTML, classes)."""
    made = []
    for name, text, *classes in cells:
        named = f' data-name="{name}"' if name else ""
        styled = f' class="{classes[0]}"' if classes else ""
        made.append(f"<td{named}{styled}>{text}</td>")
    return f"<tr>{''.join(made)}</tr>"


def _linked(text: str, url: str | None) -> str:
    if url is None or not url.startswith(("https://", "http://")):
        return escape(text)
    return f'<a href="{escape(url)}" rel="noreferrer noopener" target="_blank">{escape(text)}</a>'


def _button(action: str, text: str, visitor: Visitor, **fields: str) -> str:
    hidden = "".join(f'<input type="hidden" name="{name}" value="{escape(value)}">' for name, value in fields.items())
    return f'<form method="post" action="{action}">{_hidden(visitor.csrf or "")}{hidden}<button>{text}</button></form>'


def _hidden(csrf: str) -> str:
    return f'<input type="hidden" name="csrf" value="{escape(csrf)}">'


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _time(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
