"""The status page: one HTML text made of plain values. Its verdict first, then what waits for a person.

It reloads itself, unless something in it is unfolded: what is open is part of its address, so that it stays open
whenever the page is loaded again. What a person fills in stands on pages of their own.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any
from urllib.parse import quote

from exporter.model import words
from exporter.web.group_pages import folded
from exporter.web.markup import (
    Visitor,
    address,
    asks,
    button,
    document,
    linked,
    row,
    secret,
    short,
    table,
)

#: Of each kind so many are shown on the page: the JSON, or a page of their own, has more.
GROUPS_SHOWN_MAX, OPERATIONS_SHOWN_MAX, TROUBLE_SHOWN_MAX, RETRIES_SHOWN_MAX, URGENT_SHOWN_MAX = 30, 5, 20, 15, 10
#: Workflows of one stream shown as unread.
UNREAD_SHOWN_MAX = 5
#: Sources and groups named in one sentence.
NAMED_MAX = 4
_REFRESH = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the page is made of, in plain values as ``exporter.web.status`` says them."""

    status: Mapping[str, Any]
    trouble: Sequence[Mapping[str, Any]]
    groups: Sequence[Mapping[str, Any]]  # the largest
    groups_of: Mapping[str, int]  # how many there are, by source
    approvals: Mapping[str, int]  # dead letters that wait for approval, by policy
    needy: Mapping[str, Sequence[tuple[str, str, int]]]  # group, workflow, count: by why they need a person
    operations: Sequence[Mapping[str, Any]]
    retries: Mapping[str, Any]
    rails: Sequence[Mapping[str, Any]]


def page(seen: Seen, visitor: Visitor, opened: frozenset[str] = frozenset()) -> str:
    """The page; ``opened`` are the groups that are unfolded."""
    now = seen.status["now"]
    parts = [
        _header(seen.status, visitor, opened),
        _notice(visitor),
        _verdict(seen),
        _retrying(seen, now, visitor),
        _waits(seen, now, visitor),
        _operations(seen.operations, now, visitor),
        _groups(seen, now, visitor, opened),
        f"<h2>Workflows in trouble</h2>{_trouble(seen.trouble, now)}",
        f"<h2>Sources</h2>{_sources(seen.status['sources'], now)}",
        f"<h2>Recent retries</h2>{_retries(seen.retries['retries'], now)}",
    ]
    return document("".join(parts), refresh=None if opened else _REFRESH)


def sign_in_page(*, csrf: str, problem: str | None = None) -> str:
    """Where a person proves that they may act."""
    wrong = f'<p class="stop">{escape(problem)}</p>' if problem else ""
    return document(
        f'<h1>Sign in</h1>{wrong}<form method="post" action="sign-in">{secret(csrf)}'
        '<p><label>Admin token <input type="password" name="token" autocomplete="current-password" autofocus></label> '
        '<button>Sign in</button></p></form><p><a href="./">Back</a></p>'
    )


def _header(facts: Mapping[str, Any], visitor: Visitor, opened: frozenset[str]) -> str:
    links = "".join(f'<a href="{path}">/{path}</a> ' for path in ("metrics", "-/ready", "api/v1/status"))
    account = ""
    if visitor.may_act:
        account = button("sign-out", "Sign out", visitor)
    elif visitor.control:
        account = '<a href="sign-in">Sign in</a>'
    again = ""
    if opened:
        same = address("./", open=",".join(sorted(opened)))
        again = (
            f'<p><small>This page stands still while something is unfolded. <a href="{same}">Load it again</a> · '
            '<a href="./">fold everything</a></small></p>'
        )
    return (
        f"<header><h1>automation-exporter <small>{escape(facts['version'])}</small></h1>"
        f"<div>{links}<small>{_time(facts['now'])}</small> {account}</div></header>{again}"
    )


def _notice(visitor: Visitor) -> str:
    return f'<p class="said" role="status">{escape(visitor.notice)}</p>' if visitor.notice else ""


# The verdict


def _verdict(seen: Seen) -> str:
    """What a person has to know, in one sentence."""
    fine, troubled, css = 0, list[str](), "good"
    for source in seen.status["sources"]:
        problems, unwell = _problems(source, seen.groups_of.get(source["source"], 0))
        if problems:
            troubled.append(f"<b>{escape(source['source'])}</b>: {escape(', '.join(problems))}")
            css = "bad" if unwell or css == "bad" else "wait"
        else:
            fine += 1
    waiting = _waiting(seen)
    named = troubled[:NAMED_MAX]
    if len(troubled) > NAMED_MAX:
        named.append(f"{words.count(len(troubled) - NAMED_MAX, 'more source')} in trouble")
    well = [f"{words.count(fine, 'source')} fine"] if fine else []
    said = "; ".join([*well, *named]) or "no source yet"
    yours = f"{words.count(waiting, 'dead letter')} wait{'s' if waiting == 1 else ''} for you" if waiting else ""
    return f'<p class="verdict {css}">{said}; {yours or "nothing waits for you"}.</p>'


def _problems(source: Mapping[str, Any], groups: int) -> tuple[list[str], bool]:
    """What is the matter with a source, and whether it is more than dead letters."""
    problems = list[str]()
    streams = source["streams"]
    broken = next((stream for stream in streams if stream["error"]), None)
    if broken is not None:
        problems.append(f"{broken['stream'].replace('_', ' ')} cannot be read ({short(broken['error'])})")
    elif any(stream["success_at"] is None for stream in streams):
        problems.append("not read completely yet")
    elif not all(stream["fresh"] for stream in streams):
        problems.append("some of it was not read for long")
    if source["failing_workflows"]:
        problems.append(f"{words.count(source['failing_workflows'], 'workflow')} failing")
    unwell = bool(problems)
    if source["dead_letters"]:
        letters = words.count(source["dead_letters"], "dead letter")
        problems.append(f"{letters} in {words.count(groups, 'group')}" if groups else letters)
    return problems, unwell


def _waiting(seen: Seen) -> int:
    letters = sum(seen.approvals.values()) + sum(n for found in seen.needy.values() for _, _, n in found)
    return letters + len(_urgent(seen))


def _urgent(seen: Seen) -> list[Mapping[str, Any]]:
    """Retries of which nobody knows what they did."""
    return [retry for retry in seen.retries["retries"] if retry["state"] in ("held", "in_doubt")]


# What is so


def _retrying(seen: Seen, now: float, visitor: Visitor) -> str:
    """How far retrying may go, and what holds it back."""
    paused = [source for source, is_paused in seen.retries["paused"].items() if is_paused]
    parts = [f"Retries: {escape(words.mode(seen.retries['mode']))}."]
    if paused:
        parts.append(f'<b class="bad">paused: {escape(", ".join(paused))}</b>')
    if visitor.may_act:
        parts.append(button("act/pause", "Pause all", visitor))
        if paused:
            parts.append(button("act/resume", "Resume", visitor))
    lines = [" ".join(parts)]
    for source in seen.rails:
        said = list[str]()
        if source["storm"]:
            said.append(f'<span class="bad">storm: {escape(source["storm"])}</span>')
        if source["set_back_until"] is not None:
            said.append(f'<span class="wait">the platform is busy; left alone until {_at(source, now)}</span>')
        if source["budget"] is not None:
            most = f"{source['budget_max']:.0f}"
            said.append(f"{source['budget']:.1f} of {most} failed retries can be afforded now (its budget)")
        if said:
            lines.append(f"<b>{escape(source['source'])}</b>: {'; '.join(said)}")
    return f'<div class="{"stop" if paused else ""}">{"<br>".join(lines)}</div>'


def _at(source: Mapping[str, Any], now: float) -> str:
    return f"{words.at(source['set_back_until'], now)} UTC"


#: Of one dead letter, and of more.
_NEEDS = {
    "escalate": ("needs somebody to see to it", "need somebody to see to them"),
    "quarantine": (
        "was given up or put in quarantine: released, it is tried again",
        "were given up or put in quarantine: released, they are tried again",
    ),
}


def _waits(seen: Seen, now: float, visitor: Visitor) -> str:
    """What waits for a person."""
    lines = []
    for policy, number in seen.approvals.items():
        wait = "waits" if number == 1 else "wait"
        line = f"{words.count(number, 'dead letter')} of the policy <b>{escape(policy)}</b> {wait} for approval"
        if visitor.may_act:
            line += " " + asks(f"Approve what waits: {policy}", "", action="approve", policy=policy)
        lines.append(line)
    for why, found in seen.needy.items():
        links = [
            f'<a href="{address("./", open=group)}#g-{group}">{number} of {escape(short(workflow))}</a>'
            for group, workflow, number in found[:NAMED_MAX]
        ]
        more = [words.count(len(found) - NAMED_MAX, "more group")] if len(found) > NAMED_MAX else []
        total = sum(number for _, _, number in found)
        said = f"{words.count(total, 'dead letter')} {_NEEDS[why][total != 1]}"
        lines.append(f"{said}: {', '.join([*links, *more])}")
    urgent = _urgent(seen)
    for retry in urgent[:URGENT_SHOWN_MAX]:
        letter = escape(f"{retry['source']}/{retry['dead_letter_id']}")
        line = f"the retry of {letter}, {words.ago(retry['claimed_at'], now)}: {words.became(retry['state'])}"
        if visitor.may_act:
            key = f"{retry['source']}/{retry['dead_letter_id']}"
            line += " " + button("act/release", "It had an effect", visitor, id=key)
            line += " " + button("act/release-not-sent", "It had none", visitor, id=key)
        lines.append(line)
    if len(urgent) > URGENT_SHOWN_MAX:
        lines.append(f"and {len(urgent) - URGENT_SHOWN_MAX} more retries of unknown outcome")
    if not lines:
        return ""
    hint = "" if visitor.may_act or not visitor.control else '<p><a href="sign-in">Sign in</a> to act.</p>'
    return f"<h2>Waits for you</h2><ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul>{hint}"


def _operations(operations: Sequence[Mapping[str, Any]], now: float, visitor: Visitor) -> str:
    """What people have asked for, and how far it has come."""
    made = []
    for operation in operations[:OPERATIONS_SHOWN_MAX]:
        what = f"{operation['action']} {words.count(operation['total'], 'dead letter')}"
        why = f": {escape(operation['why'])}" if operation["why"] else ""
        split = ", ".join(f"{n} {words.became(state)}" for state, n in operation["outcomes"].items())
        bar = (
            f'<progress aria-label="{escape(what)}" max="{operation["total"]}" value="{operation["done"]}"></progress> '
            f"{operation['done']} of {operation['total']}: {escape(split)}"
        )
        more = ""
        if operation["new_since"]:
            more += f'<br><span class="wait">{words.count(operation["new_since"], "new one")} failed meanwhile</span>'
        if operation["cancelled_by"]:
            more += f"<br>cancelled by {escape(operation['cancelled_by'])}"
        elif operation["ended_at"] is None:
            if operation["starts_at"] > now:
                more += f"<br>begins at {words.at(operation['starts_at'], now)} UTC"
            if visitor.may_act and operation["outcomes"].get("waiting"):
                more += " " + button("act/cancel", "Cancel the rest", visitor, operation=operation["id"])
        who = f"by {escape(operation['who'])}, {words.ago(operation['created_at'], now)}"
        audit = f'<a href="api/v1/operations/{quote(operation["id"], safe="")}">each of them</a>'
        made.append(f"<li><b>{escape(what)}</b> {who}{why} ({audit})<br>{bar}{more}</li>")
    return f"<h2>Operations</h2><ul>{''.join(made)}</ul>" if made else ""


def _groups(seen: Seen, now: float, visitor: Visitor, opened: frozenset[str]) -> str:
    letters = sum(source["dead_letters"] for source in seen.status["sources"])
    number = sum(seen.groups_of.values())
    title = f"Dead letters: {letters:,} in {words.count(number, 'group')}" if letters else "Dead letters: none"
    made = [folded(group, now, visitor, opened=opened) for group in seen.groups]
    if number > len(seen.groups):
        rest = words.count(number - len(seen.groups), "smaller group")
        made.append(f'<p><a href="{address("groups", **{"from": str(len(seen.groups))})}">{rest}</a></p>')
    return f'<h2 id="groups">{title}</h2>{"".join(made)}'


def _sources(sources: Sequence[Mapping[str, Any]], now: float) -> str:
    rows = []
    for source in sources:
        streams = "<br>".join(_stream(stream, now) for stream in source["streams"])
        budget = source["budget"]
        limit = "" if budget["limit"] is None else f" of {budget['limit']:.0f}"
        failing = source["failing_workflows"]
        rows.append(
            row(
                ("Source", f"<b>{escape(source['source'])}</b><br><small>{escape(source['title'])}</small>"),
                ("Workflows", str(source["workflows"]), "n"),
                ("Active runs", str(source["active_runs"]), "n"),
                ("Failing", str(failing), "n bad" if failing else "n"),
                ("Dead letters", str(source["dead_letters"]), "n"),
                ("Requests/min", f"{budget['requests_per_minute']:.0f}{limit}", "n"),
                ("Last read", streams),
            )
        )
    names = ("Source", "Workflows", "Active runs", "Failing", "Dead letters", "Requests/min", "Last read")
    legend = (
        "<p><small>Requests/min: what this service may ask of the platform, of the limit that the platform gives its "
        "users. Last read: when each kind of data was last read completely; red is later than it should be.</small></p>"
    )
    return table(names, rows, right=5) + (legend if rows else "")


def _stream(stream: Mapping[str, Any], now: float) -> str:
    name = escape(stream["stream"].replace("_", " "))
    if stream["error"]:
        return f'{name}: <span class="bad">{escape(stream["error"])}</span>{"".join(_unread(stream["unread"]))}'
    if stream["success_at"] is None:
        return f"{name}: not read yet"
    css = "good" if stream["fresh"] else "bad"
    age = f'{name}: <span class="{css}">{words.ago(stream["success_at"], now)}</span>'
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
        yield f'<br><span class="bad">{name} not read for {words.span(one["age_seconds"])}</span> '
        yield f"<small>{escape(one['detail'])}</small>"
    left = unread["total"] - UNREAD_SHOWN_MAX
    if left > 0:
        yield f'<br><span class="bad">and {left} more</span>'


def _trouble(workflows: Sequence[Mapping[str, Any]], now: float) -> str:
    rows = [
        row(
            ("Workflow", linked(short(workflow["workflow"] or workflow["workflow_id"]), workflow["url"])),
            ("Source", escape(workflow["source"])),
            ("What", f'<span class="bad">{escape("; ".join(workflow["problems"]))}</span>'),
            ("Last success", "" if workflow["since"] is None else words.ago(workflow["since"], now)),
        )
        for workflow in workflows[:TROUBLE_SHOWN_MAX]
    ]
    left = len(workflows) - TROUBLE_SHOWN_MAX
    more = f"<p>and at least {left} more: the dashboards show all</p>" if left > 0 else ""
    return table(("Workflow", "Source", "What", "Last success"), rows) + more


def _retries(retries: Sequence[Mapping[str, Any]], now: float) -> str:
    """The newest retries; open ones first."""
    shown = sorted(retries, key=lambda retry: retry["state"] is None)[:RETRIES_SHOWN_MAX]
    rows = []
    for retry in shown:
        state = "shadow" if retry["shadow"] else retry["outcome"] or retry["state"]
        css = {"succeeded": "good", "failed": "bad", "rejected": "bad", "held": "bad", "in_doubt": "bad"}.get(state, "")
        letter = f"{escape(retry['source'])}<br><small>{escape(retry['dead_letter_id'])}</small>"
        audit = f'<a href="api/v1/retries/{quote(retry["id"], safe="")}">audit</a>'
        lineage = f"<br><small>root {escape(retry['root'])}</small>" if retry["root"] != retry["dead_letter_id"] else ""
        runs = "".join(f"<br><small>made run {escape(run)}</small>" for run in retry["new_runs"][:3])
        approved = f"<br><small>approved by {escape(retry['approved_by'])}</small>" if retry["approved_by"] else ""
        again = " and failed again" if retry["recurred"] else ""
        rows.append(
            row(
                ("When", words.ago(retry["claimed_at"], now), "n"),
                ("What became of it", f'<span class="{css}">{escape(words.became(state))}</span>{again}'),
                ("Dead letter", letter + lineage),
                ("Policy", f"{escape(retry['policy'])}<br><small>retry {retry['ordinal']}</small>{approved}"),
                ("Evidence", f"{escape(retry['detail'])}{runs} {audit}"),
            )
        )
    return table(("When", "What became of it", "Dead letter", "Policy", "Evidence"), rows)


def _time(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
