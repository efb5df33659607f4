"""Groups of dead letters as HTML: folded in a list, one with its dead letters, and the question before a deed.

A group is a ``details`` whose summary is a link: what is unfolded is part of the page's address, which needs no script
and survives whatever loads the page again.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from exporter.model import words
from exporter.web.markup import Visitor, address, asks, document, facts, linked, row, secret, short, table

#: Groups, and dead letters of one group, on one page.
GROUPS_PER_PAGE, LETTERS_PER_PAGE = 30, 50
#: Dead letters named before something is done to them.
NAMED_BEFORE = 5
_CSS = {"retry": "good", "wait": "wait", "hold": "wait", "ignore": "soft", "quarantine": "bad", "escalate": "bad"}
#: Modes in which a person may have something sent.
_SENDING = ("approve", "enforce")


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
    others = opened - {identity} if is_open else opened | {identity}
    kept = {"open": ",".join(sorted(others))} if others else {}
    toggle = address(page, **query, **kept) + f"#g-{identity}"
    name = short(group["workflow"] or group["workflow_id"])
    fresh = f", {group['opened_last_hour']:,} in the last hour" if group["opened_last_hour"] else ""
    said = words.decision(group["decision"], now)
    head = (
        f"<b>{group['count']:,} × {escape(name)}</b> <small>{escape(group['source'])}</small>: {escape(group['error'])}"
        f'<br><span class="{_css(group["decision"])}">{escape(said)}</span> '
        f"<small>oldest {words.ago(group['oldest_at'], now)}{fresh}</small>"
    )
    letters = f'<a href="groups/{quote(identity, safe="")}">its {words.count(group["count"], "dead letter")}</a>'
    return (
        f'<details id="g-{identity}"{" open" if is_open else ""}><summary tabindex="-1">'
        f'<a href="{toggle}" aria-expanded="{"true" if is_open else "false"}">{head}</a></summary>'
        f"{_group_facts(group, now)}"
        f'<p class="acts">{_acts(group, visitor, "")} {letters}</p></details>'
    )


def _css(decision: Mapping[str, Any] | None) -> str:
    if decision is None:
        return ""
    return "bad" if decision["awaits_approval"] else _CSS.get(decision["decision"], "")


def _group_facts(group: Mapping[str, Any], now: float) -> str:
    decisions = group["decisions"]
    split = "; ".join(f"{n:,} {escape(words.label(label))}" for label, n in decisions.items())
    approvals = f"{group['awaits_approval']:,} wait for approval" if group["awaits_approval"] else ""
    policy = group["decision"]["policy"] if group["decision"] else ""
    failed = linked("the newest of them on its platform", group["url"]) if group["url"] else ""
    return facts(
        ("Decided", "; ".join(filter(None, (split if len(decisions) > 1 else "", approvals)))),
        ("Policy", escape(policy)),
        ("Error class", escape(group["error_class"] or "not known yet")),
        ("Oldest, newest", f"{words.ago(group['oldest_at'], now)}, {words.ago(group['newest_at'], now)}"),
        ("Gate", "" if group["gate"] is None else escape(words.gate(group["gate"], now))),
        ("Last retry", escape(words.became(group["last_outcome"])) if group["last_outcome"] else ""),
        ("Experience", escape(group["retries"]["words"])),
        ("Failed run", failed),
        ("For commands", f"<code>--group {escape(group['id'])}</code>"),
    )


def _acts(group: Mapping[str, Any], visitor: Visitor, base: str) -> str:
    """What may be done to the whole group."""
    if not visitor.may_act:
        return ""
    made, labels, group_id = list[str](), group["decisions"], group["id"]
    if group["awaits_approval"]:
        made.append(asks(f"Approve {group['awaits_approval']:,}", base, action="approve", group=group_id))
    if group["decision"]["mode"] in _SENDING:
        made.append(asks("Retry now", base, action="retry", group=group_id))
    kept = [
        label for label in labels if label == "hold: held" or label.startswith("quarantine") or "exhausted" in label
    ]
    if len(kept) < len(labels):
        made.append(asks("Hold", base, action="hold", group=group_id))
    if kept:
        made.append(asks("Release", base, action="release", group=group_id))
    return " ".join(made)


def groups_page(
    groups: Sequence[Mapping[str, Any]], total: int, first: int, now: float, visitor: Visitor, opened: frozenset[str]
) -> str:
    """Groups from the one of the number ``first`` on."""
    query = {"from": str(first)}
    made = "".join(folded(group, now, visitor, opened=opened, page="groups", **query) for group in groups)
    shown = f"{first + 1:,} to {first + len(groups):,} of {total:,}" if groups else f"none from {first + 1:,} on"
    return document(
        f'<p><a href="./">Status</a></p><h1>Groups of dead letters: {shown}</h1>{made}'
        f"<p>{_turning('groups', first, GROUPS_PER_PAGE, total)}</p>"
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
    said = words.decision(group["decision"], now)
    return document(
        f'<p><a href="../">Status</a></p><h1>{group["count"]:,} × {escape(name)} '
        f"<small>{escape(group['source'])}</small></h1><p>{escape(group['error'])}</p>"
        f'<p><span class="{_css(group["decision"])}">{escape(said)}</span></p>{_group_facts(group, now)}'
        f'<p class="acts">{_acts(group, visitor, "../")}</p>'
        f"{table(('Dead letter', 'Failed', 'What happens', ''), rows, none='None here.')}"
        f"<p>{_turning(quote(group['id'], safe=''), first, LETTERS_PER_PAGE, group['count'])}</p>"
    )


def no_group_page() -> str:
    """The group that was asked for has no open dead letter any longer."""
    return document(
        '<p><a href="../">Status</a></p><h1>This group is empty</h1>'
        "<p>None of its dead letters is open any longer, or there never was one.</p>"
    )


def _letter(letter: Mapping[str, Any], now: float, visitor: Visitor) -> str:
    decision, key = letter["decision"] or {}, f"{letter['source']}/{letter['id']}"
    acts = list[str]()
    if visitor.may_act:
        held = decision.get("reason") in ("held", "exhausted") and decision.get("decision") in ("hold", "quarantine")
        if decision.get("awaits_approval"):
            acts.append(asks("Approve", "../", action="approve", id=key))
        if held:
            acts.append(asks("Release", "../", action="release", id=key))
        else:
            sends = decision.get("mode") in _SENDING
            acts += [asks("Retry now", "../", action="retry", id=key)] if sends else []
            acts.append(asks("Hold", "../", action="hold", id=key))
    trace = f" {linked('trace', letter['trace_url'])}" if letter["trace_url"] else ""
    return row(
        ("Dead letter", linked(letter["id"], letter["url"]) + trace),
        ("Failed", words.ago(letter["opened_at"], now)),
        (
            "What happens",
            f'<span class="{_css(letter["decision"])}">{escape(words.decision(letter["decision"], now))}</span>',
        ),
        ("", " ".join(acts)),
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


#: What is asked, what it means, and what the button says, by action.
_ASKED = {
    "approve": (
        "Approve",
        "Each of them is retried once, as its policy and its gate allow. This begins ten seconds after you confirm, "
        "if it is more than one: until then, cancelling it is as if nothing had been said.",
    ),
    "retry": (
        "Retry",
        "Each of them is sent to its platform again, as soon as the rate limit allows: past its hours, its waiting "
        "time, the gate and the budget.",
    ),
    "hold": ("Hold", "None of them is retried until somebody releases it."),
    "release": (
        "Release",
        "What holds them is taken back, and the retries that are used up count no longer: the policy decides about "
        "them anew.",
    ),
}
ACTIONS = tuple(_ASKED)


def confirm_page(
    action: str,
    letters: Sequence[Mapping[str, Any]],
    total: int,
    refused: Sequence[str],
    *,
    what: str,
    asked: str,
    csrf: str,
    now: float,
) -> str:
    """What is about to be done, to how many, and to which; ``letters`` are the first of them."""
    verb, meaning = _ASKED[action]
    listed = "".join(
        f"<li>{escape(letter['key'])} <small>{escape(short(letter['workflow']))}, "
        f"{words.ago(letter['opened_at'], now)}</small></li>"
        for letter in letters
    )
    left = total - len(letters)
    more = f"<li>and {left:,} more</li>" if left else ""
    without = ""
    if refused:
        said = "".join(f"<li>{escape(reason)}</li>" for reason in refused[:NAMED_BEFORE])
        rest = len(refused) - NAMED_BEFORE
        without = f"<p>Left out: {len(refused):,}</p><ul>{said}{f'<li>and {rest:,} more</li>' if rest > 0 else ''}</ul>"
    return document(
        f"<h1>{verb} {words.count(total, 'dead letter')}?</h1><p>{escape(what)}: these, as they are now. What changes "
        f"before its turn is left out.</p><p>{meaning}</p><ul>{listed}{more}</ul>{without}"
        f'<form method="post" action="act/begin">{secret(csrf)}'
        f'<input type="hidden" name="asked" value="{escape(asked)}">'
        '<p><label>Why (optional) <input name="why" maxlength="200"></label></p>'
        f'<p><button>{verb} these</button></p></form><p><a href="./">Back</a></p>'
    )
