"""Groups of dead letters as HTML: folded in a list, and one with its dead letters.

A group is unfolded by a link: what is unfolded is part of the page's address, which needs no script and survives
whatever loads the page again. (A link in the summary of a ``details`` is two controls in one for a screen reader.)
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from exporter.model import words
from exporter.web.markup import (
    MESSAGE_CHARS,
    Visitor,
    address,
    asks,
    document,
    facts,
    linked,
    notice,
    plain,
    row,
    table,
    told,
    ways,
)

#: Groups, and dead letters of one group, on one page.
GROUPS_PER_PAGE, LETTERS_PER_PAGE = 30, 50
_CSS = {"retry": "good", "wait": "wait", "hold": "wait", "ignore": "soft", "quarantine": "bad", "escalate": "bad"}


def folded(
    group: Mapping[str, Any],
    now: float,
    visitor: Visitor,
    *,
    opened: frozenset[str] = frozenset(),
    page: str = "./",
    **query: str,
) -> str:
    """One group in a list on the ``page`` with this ``query``; it is unfolded if it is among ``opened``."""
    identity, is_open = group["id"], group["id"] in opened
    others = sorted(opened - {identity}, reverse=True)  # what is cut of too many was not asked for last
    others = others if is_open else [identity, *others]
    kept = {"open": ",".join(others)} if others else {}
    toggle = address(page, **query, **kept) + f"#g-{identity}"
    name, error = told(group["workflow"] or group["workflow_id"]), told(group["error"], most=MESSAGE_CHARS)
    fresh = f", {group['opened_last_hour']:,} in the last hour" if group["opened_last_hour"] else ""
    said = words.until(group["decision"], now)
    head = (
        f"<b>{group['count']:,} × {name}</b> <small>{told(group['source'])}</small>: {error}"
        f'<br><span class="{_css(group["decision"])}">{told(said, most=MESSAGE_CHARS)}</span> '
        f"<small>oldest {words.ago(group['oldest_at'], now)}{fresh}</small>"
    )
    toggled = (
        f'<h3><a href="{toggle}" aria-expanded="{"true" if is_open else "false"}" class="{"open" if is_open else ""}">'
        f"{head}</a></h3>"
    )
    return f'<div class="group" id="g-{identity}">{toggled}{_unfolded(group, now, visitor) if is_open else ""}</div>'


def _unfolded(group: Mapping[str, Any], now: float, visitor: Visitor) -> str:
    letters = f'<a href="groups/{quote(group["id"], safe="")}">its {words.count(group["count"], "dead letter")}</a>'
    return f'{_group_facts(group, now)}<p class="acts">{_acts(group, visitor, "")} {letters} · {_ways(group, "")}</p>'


def _css(decision: Mapping[str, Any] | None) -> str:
    if decision is None:
        return ""
    return "bad" if decision["awaits_approval"] else _CSS.get(decision["decision"], "")


def _group_facts(group: Mapping[str, Any], now: float) -> str:
    said, decision = group["said"], group["decision"] or {}
    each = [f"{number:,} × {told(one, most=MESSAGE_CHARS)}" for one, number in said.items()]
    failed = linked("the newest of them", group["url"]) if group["url"] else ""
    return facts(
        ("Decided", "; ".join(each) if len(each) > 1 else ""),
        ("Policy", told(decision["policy"]) if decision.get("policy") else ""),
        ("Kind of error", escape((group["error_class"] or "not known yet").replace("_", " "))),
        ("Oldest, newest", f"{words.ago(group['oldest_at'], now)}, {words.ago(group['newest_at'], now)}"),
        ("Gate", "" if group["gate"] is None else escape(words.gate(group["gate"], now))),
        ("Last retry", escape(words.became(group["last_outcome"])) if group["last_outcome"] else ""),
        ("Experience", escape(group["retries"]["words"])),
        ("Failed run", failed),
        ("For commands", f"<code>--group {escape(group['id'])}</code>"),
    )


#: The alert whose runbook says what to do, by why dead letters are not retried.
_ALERTS = {
    "storm": "AutomationRetryStorm",
    "budget": "AutomationRetryBudgetEmpty",
    "gate": "AutomationRetryGateShut",
    "exhausted": "AutomationDeadLettersEscalated",
}


def _ways(group: Mapping[str, Any], base: str) -> str:
    where, alert = group["workflow_url"], alert_of(group["decision"])
    return ways(base, title=group["title"], url=where, dashboard=group["dashboard"], alert=alert)


def alert_of(decision: Mapping[str, Any] | None) -> str:
    """The alert whose runbook says what to do about dead letters of which this is decided."""
    if decision is None:
        return "AutomationDeadLettersOld"
    needy = decision["decision"] in ("escalate", "quarantine")
    return "AutomationDeadLettersEscalated" if needy else _ALERTS.get(decision["reason"], "AutomationDeadLettersOld")


#: What the ways to the questions are called, by action.
_LABELS = {
    "approve": "Approve",
    "release": "Release",
    "retry": "Retry now",
    "hold": "Hold",
    "discard": "Discard",
    "fix-and-retry": "Fix and retry",
    "rerun": "Run again",
}


def _acts(group: Mapping[str, Any], visitor: Visitor, base: str) -> str:
    """What may be done to the whole group. What takes its dead letter by name stands beside that one."""
    if not visitor.may_act:
        return ""
    made, waiting = list[str](), group["awaits_approval"]
    for action in group["acts"]:
        number = f" {waiting:,}" if action == "approve" else ""
        if action not in _BY_NAME:
            made.append(asks(_LABELS[action] + number, base, visitor, action=action, group=group["id"]))
    return " ".join(made)


_BY_NAME = ("fix-and-retry", "rerun")


def groups_page(
    groups: Sequence[Mapping[str, Any]], total: int, first: int, now: float, visitor: Visitor, opened: frozenset[str]
) -> str:
    """Groups from the one of the number ``first`` on."""
    query = {"from": str(first)}
    made = "".join(folded(group, now, visitor, opened=opened, page="groups", **query) for group in groups)
    shown = f"{first + 1:,} to {first + len(groups):,} of {total:,}" if groups else f"none from {first + 1:,} on"
    return document(
        f'<p><a href="./">Status</a></p>{notice(visitor)}<h1>Groups of dead letters: {shown}</h1>{made}'
        f"<p>{_turning('groups', first, GROUPS_PER_PAGE, total)}</p>",
        title="Groups of dead letters",
    )


def group_page(
    group: Mapping[str, Any],
    letters: Sequence[Mapping[str, Any]],
    first: int,
    now: float,
    visitor: Visitor,
) -> str:
    """One group, with its dead letters from the number ``first`` on."""
    name = group["workflow"] or group["workflow_id"]
    rows = [_letter(letter, now, visitor) for letter in letters]
    said = words.until(group["decision"], now)
    return document(
        f'<p><a href="../">Status</a></p>{notice(visitor)}<h1>{group["count"]:,} × {told(name, most=MESSAGE_CHARS)} '
        f"<small>{told(group['source'])}</small></h1><p>{told(group['error'], most=MESSAGE_CHARS)}</p>"
        f'<p><span class="{_css(group["decision"])}">{told(said, most=MESSAGE_CHARS)}</span></p>'
        f"{_group_facts(group, now)}"
        f'<p class="acts">{_acts(group, visitor, "../")} {_ways(group, "../")}</p>'
        f"{table(('Dead letter', 'Failed', 'What happens', ''), rows, none='None here.')}"
        f"<p>{_turning(quote(group['id'], safe=''), first, LETTERS_PER_PAGE, group['count'])}</p>",
        title=f"{group['count']:,} × {plain(name)}",
    )


def no_group_page() -> str:
    """The group that was asked for has no open dead letter any longer."""
    return document(
        '<p><a href="../">Status</a></p><h1>This group is empty</h1>'
        "<p>None of its dead letters is open any longer, or there never was one.</p>"
    )


def what_happens(letter: Mapping[str, Any], now: float) -> str:
    """What is decided of a dead letter, in words."""
    said = told(words.until(letter["decision"], now), most=MESSAGE_CHARS)
    return f'<span class="{_css(letter["decision"])}">{said}</span>'


def letter_acts(letter: Mapping[str, Any], visitor: Visitor, base: str) -> str:
    """What may be done to one dead letter."""
    key = f"{letter['source']}/{letter['id']}"
    can = letter["can"] if visitor.may_act else ()
    return " ".join(asks(_LABELS[action], base, visitor, action=action, id=key) for action in can)


def _letter(letter: Mapping[str, Any], now: float, visitor: Visitor) -> str:
    trace = f" {linked('trace', letter['trace_url'])}" if letter["trace_url"] else ""
    audit = f' <a href="../retries/{quote(letter["source"], safe="")}/{quote(letter["id"], safe="")}">audit</a>'
    return row(
        ("Dead letter", linked(letter["id"], letter["url"]) + trace + audit),
        ("Failed", words.ago(letter["opened_at"], now)),
        ("What happens", what_happens(letter, now)),
        ("", letter_acts(letter, visitor, "../")),
    )


def _turning(path: str, first: int, size: int, total: int) -> str:
    """The ways to the pages before and after this one."""
    made = list[str]()
    if first > 0:
        made.append(f'<a href="{address(path, **{"from": str(max(0, first - size))})}">before</a>')
    if first + size < total:
        left = total - first - size
        made.append(f'<a href="{address(path, **{"from": str(first + size)})}">after ({left:,} more)</a>')
    return " · ".join(made)
