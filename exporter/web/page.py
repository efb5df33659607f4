"""The status page: one HTML text made of plain values. Its verdict first, then what waits for a person.

It is loaded again by itself, unless something in it is unfolded or somebody has it stand still: both are part of its
address, so that they stay whenever the page is loaded. What a person fills in stands on pages of their own.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any
from urllib.parse import quote

from exporter.model import words
from exporter.web.group_pages import folded
from exporter.web.markup import Visitor, address, asks, button, document, linked, row, secret, short, table, ways
from exporter.web.questions import subject
from exporter.web.status import Trouble

#: Of each kind so many are shown on the page: a page of their own, or a dashboard, has more.
GROUPS_SHOWN_MAX, OPERATIONS_SHOWN_MAX, TROUBLE_SHOWN_MAX, RETRIES_SHOWN_MAX, URGENT_SHOWN_MAX = 30, 5, 20, 15, 10
#: Workflows of one stream shown as unread.
UNREAD_SHOWN_MAX = 5
#: Sources and groups named in one sentence.
NAMED_MAX = 4
#: The page is loaded again after so long (seconds).
REFRESH_SECONDS = 30
#: What stands among the groups that are unfolded while the page is to stand still.
STILL = "still"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the page is made of, in plain values as ``exporter.web.status`` says them."""

    status: Mapping[str, Any]
    store_error: str | None
    trouble: Sequence[Trouble]  # all of them, the worst first
    can_repair: Mapping[tuple[str, str], Sequence[str]]  # what a person can do to a workflow or its run: of those shown
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
        f'<p class="said" role="status">{escape(visitor.notice)}</p>' if visitor.notice else "",
        _verdict(seen),
        _retrying(seen, now, visitor),
        _waits(seen, now, visitor),
        _operations(seen.operations, now, visitor),
        _groups(seen, now, visitor, opened),
        _trouble(seen, now, visitor),
        f"<h2>Sources</h2>{_sources(seen, now)}",
        f"<h2>Recent retries</h2>{_retries(seen.retries['retries'], now)}",
    ]
    return document("".join(parts))


def sign_in_page(*, csrf: str, problem: str | None = None) -> str:
    """Where a person proves that they may act."""
    wrong = f'<p class="stop">{escape(problem)}</p>' if problem else ""
    return document(
        f'<h1>Sign in</h1>{wrong}<form method="post" action="sign-in">{secret(csrf)}'
        '<p><label>Admin token <input type="password" name="token" autocomplete="current-password" autofocus></label> '
        '<button>Sign in</button></p></form><p><a href="./">Back</a></p>',
        title="Sign in",
    )


def _header(facts: Mapping[str, Any], visitor: Visitor, opened: frozenset[str]) -> str:
    links = "".join(f'<a href="{path}">/{path}</a> ' for path in ("metrics", "-/ready", "api/v1/status"))
    account = ""
    if visitor.may_act:
        account = button("sign-out", "Sign out", visitor)
    elif visitor.control:
        account = '<a href="sign-in">Sign in</a>'
    same = address("./", open=",".join(sorted(opened))) if opened else "./"
    again = f"loads itself again every {REFRESH_SECONDS} seconds · "
    again += f'<a href="{address("./", open=STILL)}">let it stand still</a>'
    if opened:
        folded_all = "fold everything" if opened - {STILL} else "let it load itself again"
        again = f'stands still · <a href="./">{folded_all}</a>'
    return (
        f"<header><h1>automation-exporter <small>{escape(facts['version'])}</small></h1><div>{links}{account}</div>"
        f'</header><p><small>As of {_time(facts["now"])} · <a href="{same}">load it again</a> · {again}</small></p>'
    )


# The verdict


def _verdict(seen: Seen) -> str:
    """What a person has to know, in one sentence."""
    fine, troubled, css = 0, list[str](), "good"
    others = Counter(one.source for one in seen.trouble if not one.failing)
    for source in seen.status["sources"]:
        name = source["source"]
        problems, unwell = _problems(source, seen.groups_of.get(name, 0), others[name])
        if problems:
            troubled.append(f"<b>{escape(name)}</b>: {', '.join(problems)}")
            css = "bad" if unwell or css == "bad" else "wait"
        else:
            fine += 1
    waiting = _waiting(seen)
    named = troubled[:NAMED_MAX]
    if len(troubled) > NAMED_MAX:
        named.append(f"{words.count(len(troubled) - NAMED_MAX, 'more source')} in trouble")
    if seen.store_error is not None:
        css, where = "bad", ways("", alert="AutomationStoreDown")
        named.insert(0, f"<b>the database cannot be written</b>: {escape(short(seen.store_error))} ({where})")
    well = [f"{words.count(fine, 'source')} fine"] if fine else []
    said = " ".join(f'<span class="part">{part};</span>' for part in [*well, *named] or ["no source yet"])
    yours = f"{words.count(waiting, 'dead letter')} wait{'s' if waiting == 1 else ''} for you" if waiting else ""
    yours = f"<b>{yours}.</b>" if yours else "nothing waits for you."
    return f'<p class="verdict {css}">{said} <span class="part">{yours}</span></p>'


def _problems(source: Mapping[str, Any], groups: int, others: int) -> tuple[list[str], bool]:
    """What is the matter with a source, and whether it is more than dead letters."""
    problems = list[str]()
    streams = source["streams"]
    broken = next((stream for stream in streams if stream["error"]), None)
    if broken is not None:
        alert = "AutomationCredentialFailing" if broken["error_kind"] == "auth" else "AutomationDataIncomplete"
        said = f"{broken['stream'].replace('_', ' ')} cannot be read ({short(broken['error'])})"
        problems.append(f"{escape(said)} {ways('', alert=alert)}")
    elif any(stream["success_at"] is None for stream in streams):
        problems.append("not read completely yet")
    elif not all(stream["fresh"] for stream in streams):
        problems.append("some of it was not read for long")
    if source["failing_workflows"]:
        problems.append(f"{words.count(source['failing_workflows'], 'workflow')} failing")
    if others:
        problems.append(f"{words.count(others, 'workflow')} late, stuck or stopped")
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
            parts.append(asks("Resume", "", action="resume"))
    lines = [" ".join(parts)]
    for source in seen.rails:
        said = list[str]()
        if source["storm"]:
            runbook = ways("", alert="AutomationRetryStorm")
            said.append(f'<span class="bad">storm: {escape(source["storm"])}</span> {runbook}')
        if source["set_back_until"] is not None:
            until = words.at(source["set_back_until"], now)
            said.append(f'<span class="wait">the platform is busy; left alone until {until} UTC</span>')
        if said:
            lines.append(f"<b>{escape(source['source'])}</b>: {'; '.join(said)}")
    return f'<div class="{"stop" if paused else ""}">{"<br>".join(lines)}</div>'


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
        runbook = ways("", alert="AutomationDeadLettersEscalated")
        lines.append(f"{said}: {', '.join([*links, *more])} · {runbook}")
    urgent = _urgent(seen)
    for retry in urgent[:URGENT_SHOWN_MAX]:
        key = f"{retry['source']}/{retry['dead_letter_id']}"
        line = f"the retry of {escape(key)}, {words.ago(retry['claimed_at'], now)}: {words.became(retry['state'])}"
        line += f" · {_audit(retry['source'], retry['dead_letter_id'])} · "
        line += ways("", alert="AutomationRetryHeld" if retry["state"] == "held" else "AutomationRetryInDoubt")
        if visitor.may_act:
            line += " " + asks("It had an effect", "", action="release", id=key, sent="yes")
            line += " " + asks("It had none", "", action="release", id=key, sent="no")
        lines.append(line)
    if len(urgent) > URGENT_SHOWN_MAX:
        lines.append(f"and {len(urgent) - URGENT_SHOWN_MAX} more retries of unknown outcome")
    if not lines:
        return ""
    hint = "" if visitor.may_act or not visitor.control else '<p><a href="sign-in">Sign in</a> to act.</p>'
    return f"<h2>Waits for you</h2><ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul>{hint}"


def _audit(source: str, identity: str) -> str:
    return f'<a href="retries/{quote(source, safe="")}/{quote(identity, safe="")}">audit</a>'


def _operations(operations: Sequence[Mapping[str, Any]], now: float, visitor: Visitor) -> str:
    """What people have asked for, and how far it has come."""
    made = []
    for operation in operations[:OPERATIONS_SHOWN_MAX]:
        what = f"{operation['action']} {words.count(operation['total'], subject(operation['action']))}"
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
        each = f'<a href="operations/{quote(operation["id"], safe="")}">each of them</a>'
        made.append(f"<li><b>{escape(what)}</b> {who}{why} ({each})<br>{bar}{more}</li>")
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


def _trouble(seen: Seen, now: float, visitor: Visitor) -> str:
    rows = []
    for one in seen.trouble[:TROUBLE_SHOWN_MAX]:
        where = ways("", title=one.title, url=one.url, dashboard=one.dashboard, alert=one.problems[0].alert)
        run = f" · {linked('the run', one.run_url)}" if one.run_url else ""
        acts = ""
        for action in seen.can_repair.get((one.source, one.workflow_id), ()) if visitor.may_act else ():
            key = f"{one.source}/{one.active_run_id if action == 'stop' else one.workflow_id}"
            acts += " " + asks(_REPAIRS[action], "", action=action, id=key)
        rows.append(
            row(
                ("Workflow", f"<b>{escape(short(one.workflow or one.workflow_id))}</b><br><small>{where}{run}</small>"),
                ("Source", escape(one.source)),
                ("What", f'<span class="bad">{escape("; ".join(each.said for each in one.problems))}</span>{acts}'),
                ("Last success", "not seen" if one.last_success_at is None else words.ago(one.last_success_at, now)),
            )
        )
    left = len(seen.trouble) - TROUBLE_SHOWN_MAX
    more = f"<p>and {left:,} more: the dashboards show all</p>" if left > 0 else ""
    return f"<h2>Workflows in trouble</h2>{table(('Workflow', 'Source', 'What', 'Last success'), rows)}{more}"


_REPAIRS = {"reactivate": "Switch on", "stop": "Stop the run"}


def _sources(seen: Seen, now: float) -> str:
    rows, sources = [], seen.status["sources"]
    held = any(source["holder"] is not None for source in sources)
    rails = {one["source"]: one for one in seen.rails}
    budgeted = any(one["budget"] is not None for one in seen.rails)
    for source in sources:
        streams = "<br>".join(_stream(stream, now) for stream in source["streams"])
        failing, left = source["failing_workflows"], rails.get(source["source"], {}).get("budget")
        rows.append(
            row(
                ("Source", f"<b>{escape(source['source'])}</b><br><small>{escape(source['title'])}</small>"),
                *([("Held by", escape(source["holder"] or "nobody"))] if held else []),
                ("Workflows", f"{source['workflows']:,}", "n"),
                ("Active runs", f"{source['active_runs']:,}", "n"),
                ("Failing", f"{failing:,}", "n bad" if failing else "n"),
                ("Dead letters", f"{source['dead_letters']:,}", "n"),
                ("Requests a minute", _of(source["budget"]["requests_per_minute"], source["budget"]["limit"]), "n"),
                *([("Retry budget", _of(left, rails[source["source"]]["budget_max"]), "n")] if budgeted else []),
                ("Last read", streams),
            )
        )
    numbers = ["Workflows", "Active runs", "Failing", "Dead letters", "Requests a minute"]
    numbers += ["Retry budget"] if budgeted else []
    names = ["Source", *(["Held by"] if held else []), *numbers, "Last read"]
    return table(names, rows, numbers=numbers) + (_legend(budgeted=budgeted) if rows else "")


def _legend(*, budgeted: bool) -> str:
    budget = (
        "<b>Retry budget</b>: how many more retries may fail before they slow down, of the most there can be; a "
        "success earns a part of one. "
    )
    return (
        "<p><small><b>Requests a minute</b>: what this service may ask of the platform, of the limit that the platform "
        f"gives its users. {budget if budgeted else ''}<b>Last read</b>: when each kind of data was last read "
        "completely; red is later than it should be.</small></p>"
    )


def _of(number: float | None, most: float | None) -> str:
    if number is None:
        return ""
    shown = f"{number:,.1f}".removesuffix(".0")
    return shown if most is None else f"{shown} of {most:,.0f}"


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
    said = escape(f"{fault['kind'].replace('_', ' ')}: {place}{fault['detail']}")
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


def _retries(retries: Sequence[Mapping[str, Any]], now: float) -> str:
    """The newest retries; open ones first."""
    shown = sorted(retries, key=lambda retry: retry["state"] is None)[:RETRIES_SHOWN_MAX]
    rows = []
    for retry in shown:
        state = "shadow" if retry["shadow"] else retry["outcome"] or retry["state"]
        css = {"succeeded": "good", "failed": "bad", "rejected": "bad", "held": "bad", "in_doubt": "bad"}.get(state, "")
        letter = f"{escape(retry['source'])}<br><small>{escape(retry['dead_letter_id'])}</small>"
        audit = f'<a href="retries/{quote(retry["id"], safe="")}">audit</a>'
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
