"""The status page: one HTML text made of plain values. Its verdict first, then what waits for a person.

It is loaded again by itself, unless somebody has it stand still; that, and what is unfolded, are part of its address,
so that they stay whenever the page is loaded. What a person fills in stands on pages of their own.
"""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from exporter.model import words
from exporter.web.group_pages import folded
from exporter.web.markup import (
    MESSAGE_CHARS,
    Visitor,
    address,
    asks,
    button,
    document,
    linked,
    notice,
    row,
    secret,
    table,
    told,
    ways,
)
from exporter.web.questions import deed
from exporter.web.verdict import NAMED_MAX, Seen, verdict

#: Of each kind so many are shown on the page: a page of their own, or a dashboard, has more.
GROUPS_SHOWN_MAX, OPERATIONS_SHOWN_MAX, TROUBLE_SHOWN_MAX, RETRIES_SHOWN_MAX, UNSETTLED_SHOWN_MAX = 30, 5, 20, 15, 10
#: Workflows of one stream shown as unread.
UNREAD_SHOWN_MAX = 3
#: How much is told of why something of a source could not be read (characters).
CAUSE_CHARS = 200
#: The page is loaded again after so long (seconds).
REFRESH_SECONDS = 30
#: What stands among the groups that are unfolded where the page is to stand still.
STILL = "still"


def page(seen: Seen, visitor: Visitor, opened: frozenset[str] = frozenset()) -> str:
    """The page; ``opened`` are the groups that are unfolded."""
    now = seen.status["now"]
    parts = [
        _header(seen.status, visitor, opened),
        notice(visitor),
        verdict(seen),
        _retrying(seen, now, visitor),
        _waits(seen, now, visitor),
        _operations(seen.operations, now, visitor),
        _groups(seen, now, visitor, opened),
        _trouble(seen, now, visitor),
        f"<h2>Sources</h2>{_sources(seen, now)}",
        f"<h2>Recent retries</h2>{_retries(seen.retries, now, visitor)}",
    ]
    return document("".join(parts))


def sign_in_page(*, csrf: str, problem: str | None = None, at: str = "") -> str:
    """Where a person proves that they may act."""
    wrong = f'<p class="stop" role="alert">{escape(problem)}</p>' if problem else ""
    back = f'<input type="hidden" name="at" value="{escape(at)}">' if at else ""
    return document(
        f'<h1>Sign in</h1>{wrong}<form method="post" action="sign-in">{secret(csrf)}{back}'
        '<p><label>Admin token <input type="password" name="token" autocomplete="current-password" autofocus></label> '
        "<button>Sign in</button></p></form>"
        f'<p><a href="./{escape(at)}">Back</a></p>',
        title="Sign in",
    )


def _header(facts: Mapping[str, Any], visitor: Visitor, opened: frozenset[str]) -> str:
    links = "".join(f'<a href="{path}">/{path}</a> ' for path in ("metrics", "-/ready", "api/v1/status"))
    account = ""
    if visitor.may_act:
        account = button("sign-out", "Sign out", visitor)
    elif visitor.control:
        account = _sign_in(visitor, "Sign in")
    said = f"As of {words.moment(facts['now'])}"
    links_on = [f'<a href="{escape(unfolding(opened))}">load it again</a>']
    if STILL in opened:
        said += " · stands still"
        links_on.append(f'<a href="{escape(unfolding(opened - {STILL}))}">let it load itself again</a>')
    else:
        said += f" · loads itself again every {REFRESH_SECONDS} seconds"
        links_on.append(f'<a href="{escape(unfolding(opened | {STILL}))}">let it stand still</a>')
    if opened - {STILL}:
        links_on.append(f'<a href="{escape(unfolding(opened & {STILL}))}">fold everything</a>')
    return (
        f"<header><h1>automation-exporter <small>{escape(facts['version'])}</small></h1><div>{links}{account}</div>"
        f"</header><p><small>{' · '.join([said, *links_on])}</small></p>"
    )


def unfolding(opened: frozenset[str]) -> str:
    """The address of the page on which these groups are unfolded."""
    return f"./?open={','.join(sorted(opened))}" if opened else "./"


# What is so


def _sign_in(visitor: Visitor, text: str) -> str:
    return f'<a href="{address("sign-in", **({"at": visitor.at} if visitor.at else {}))}">{text}</a>'


def _retrying(seen: Seen, now: float, visitor: Visitor) -> str:
    """How far retrying may go, and what holds it back."""
    parts = [f"Retries: {escape(words.mode(seen.mode))}."]
    if not seen.policies and seen.mode != "off":
        parts.append("There is no policy yet, so nothing is retried by itself.")
    for how in dict.fromkeys(seen.paused.values()):
        names = ", ".join(told(name) for name, said in seen.paused.items() if said == how)
        parts.append(f'<b class="bad">paused: {names}</b> {told(how, most=MESSAGE_CHARS)}.')
    lowered = any(source["lowered"] for source in seen.rails)
    if visitor.may_act and seen.mode not in ("off", "shadow"):
        parts.append(button("act/pause", "Pause all", visitor))
    if visitor.may_act and (seen.paused or lowered):
        parts.append(asks("Resume", "", visitor, action="resume"))
    lines = [" ".join(parts)]
    for source in seen.rails:
        if held_back := "; ".join(_held_back(source, seen.mode, now)):
            lines.append(f"<b>{told(source['source'])}</b>: {held_back}")
    return f'<div class="{"stop" if seen.paused or lowered else ""}">{"<br>".join(lines)}</div>'


def _held_back(source: Mapping[str, Any], mode: str, now: float) -> Iterator[str]:
    """What holds back the retries of one source."""
    if source["mode"] != mode:
        yield escape(words.mode(source["mode"]))
    if source["lowered"]:
        runbook = ways("", alert="AutomationRetriesLowered")
        yield f'<span class="bad">lowered by {told(source["lowered"], most=MESSAGE_CHARS)}</span> {runbook}'
    if source["storm"]:
        runbook = ways("", alert="AutomationRetryStorm")
        yield f'<span class="bad">storm: {told(source["storm"], most=MESSAGE_CHARS)}</span> {runbook}'
    if source["set_back_until"] is not None:
        until = words.at(source["set_back_until"], now)
        yield f'<span class="wait">the platform is busy; left alone until {until} UTC</span>'


#: Of one dead letter, and of more.
_NEEDS = {
    "escalate": ("needs somebody to see to it", "need somebody to see to them"),
    "quarantine": ("was given up: released, it is tried again", "were given up: released, they are tried again"),
}


def _waits(seen: Seen, now: float, visitor: Visitor) -> str:
    """What waits for a person."""
    lines = []
    for policy, number in seen.approvals.items():
        wait = "waits" if number == 1 else "wait"
        line = f"{words.count(number, 'dead letter')} of the policy <b>{told(policy)}</b> {wait} for approval"
        if visitor.may_act:
            line += " " + asks(f"Approve what waits: {policy}", "", visitor, action="approve", policy=policy)
        lines.append(line)
    for why, found in seen.needy.items():
        links = [
            f'<a href="{address("./", open=group)}#g-{group}">{number:,} of {told(workflow)}</a>'
            for group, workflow, number in found[:NAMED_MAX]
        ]
        more = [words.count(len(found) - NAMED_MAX, "more group")] if len(found) > NAMED_MAX else []
        total = sum(number for _, _, number in found)
        said = f"{words.count(total, 'dead letter')} {_NEEDS[why][total != 1]}"
        runbook = ways("", alert="AutomationDeadLettersEscalated")
        lines.append(f"{said}: {', '.join([*links, *more])} · {runbook}")
    for retry in seen.unsettled[:UNSETTLED_SHOWN_MAX]:
        key = f"{retry['source']}/{retry['dead_letter_id']}"
        line = f"the retry of {told(key)}, {words.ago(retry['claimed_at'], now)}: {words.became(retry['state'])}"
        line += f" · {_audit(retry['source'], retry['dead_letter_id'])} · {ways('', alert='AutomationRetryHeld')}"
        lines.append(line + _settling(key, visitor))
    if len(seen.unsettled) > UNSETTLED_SHOWN_MAX:
        lines.append(f"and {len(seen.unsettled) - UNSETTLED_SHOWN_MAX:,} more retries of unknown outcome")
    if not lines:
        return ""
    hint = "" if visitor.may_act else f"<p>{_sign_in(visitor, 'Sign in')} to act.</p>"
    if not visitor.control:
        hint = (
            "<p>To act here, set <code>server.admin_token</code>. Or type <code>automation-exporter retries</code>.</p>"
        )
    return f"<h2>Waits for you</h2><ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul>{hint}"


def _settling(key: str, visitor: Visitor) -> str:
    """How a person says what a retry of unknown outcome did."""
    if not visitor.may_act:
        return ""
    answers = (("It had an effect", "yes"), ("It had none", "no"))
    return "".join(" " + asks(text, "", visitor, action="release", id=key, sent=sent) for text, sent in answers)


def _audit(source: str, identity: str) -> str:
    return f'<a href="retries/{quote(source, safe="")}/{quote(identity, safe="")}">audit</a>'


def _operations(operations: Sequence[Mapping[str, Any]], now: float, visitor: Visitor) -> str:
    """What people have asked for, and how far it has come."""
    made = []
    for operation in operations[:OPERATIONS_SHOWN_MAX]:
        what = deed(operation["action"], operation["total"])
        why = f": {told(operation['why'], most=MESSAGE_CHARS)}" if operation["why"] else ""
        split = ", ".join(f"{n} {words.became(state)}" for state, n in operation["outcomes"].items())
        bar = (
            f'<progress aria-label="{escape(what)}" max="{operation["total"]}" value="{operation["done"]}"></progress> '
            f"{operation['done']} of {operation['total']}: {escape(split)}"
        )
        more = ""
        if operation["new_since"]:
            more += f'<br><span class="wait">{words.count(operation["new_since"], "new one")} failed meanwhile</span>'
        if operation["cancelled_by"]:
            more += f"<br>cancelled by {told(operation['cancelled_by'])}"
        elif operation["ended_at"] is None:
            if operation["starts_at"] > now:
                more += f"<br>begins at {words.at(operation['starts_at'], now)} UTC"
            if visitor.may_act and operation["outcomes"].get("waiting"):
                more += " " + button("act/cancel", "Cancel the rest", visitor, operation=operation["id"])
        who = f"by {told(operation['who'])}, {words.ago(operation['created_at'], now)}"
        each = f'<a href="operations/{quote(operation["id"], safe="")}">each of them</a>'
        made.append(f"<li><b>{escape(what)}</b> {who}{why} ({each})<br>{bar}{more}</li>")
    return f"<h2>Operations</h2><ul>{''.join(made)}</ul>" if made else ""


def _groups(seen: Seen, now: float, visitor: Visitor, opened: frozenset[str]) -> str:
    letters = sum(source["dead_letters"] for source in seen.sources)
    number = sum(seen.groups_of.values())
    none = "none" if seen.is_complete else "none known yet"
    title = f"Dead letters: {letters:,} in {words.count(number, 'group')}" if letters else f"Dead letters: {none}"
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
            acts += " " + asks(_REPAIRS[action], "", visitor, action=action, id=key)
        rows.append(
            row(
                ("Workflow", f"<b>{told(one.workflow or one.workflow_id)}</b><br><small>{where}{run}</small>"),
                ("Source", told(one.source)),
                ("What", f'<span class="bad">{escape("; ".join(each.said for each in one.problems))}</span>{acts}'),
                ("Last success", "not seen" if one.last_success_at is None else words.ago(one.last_success_at, now)),
            )
        )
    left = len(seen.trouble) - TROUBLE_SHOWN_MAX
    more = f"<p>and {left:,} more: the dashboards show all</p>" if left > 0 else ""
    none = "None." if seen.is_complete else "None known yet."
    names = ("Workflow", "Source", "What", "Last success")
    return f"<h2>Workflows in trouble</h2>{table(names, rows, none=none)}{more}"


_REPAIRS = {"reactivate": "Switch on", "stop": "Stop the run"}


def _sources(seen: Seen, now: float) -> str:
    rows, sources = [], seen.sources
    held = any(source["holder"] is not None for source in sources)
    rails = {one["source"]: one for one in seen.rails}
    budgeted = any(one["budget"] is not None for one in seen.rails)
    for source in sources:
        failing, budget, rail = source["failing_workflows"], source["budget"], rails.get(source["source"], {})
        is_known = source["first_sweep_at"] is not None
        rows.append(
            row(
                ("Source", f"<b>{told(source['source'])}</b><br><small>{escape(source['title'])}</small>"),
                *([("Held by", told(source["holder"] or "nobody"))] if held else []),
                ("Workflows", f"{source['workflows']:,}" if is_known else "", "n"),
                ("Active runs", f"{source['active_runs']:,}" if is_known else "", "n"),
                ("Failing", f"{failing:,}" if is_known else "", "n bad" if failing else "n"),
                ("Dead letters", f"{source['dead_letters']:,}" if is_known else "", "n"),
                ("Requests a minute", _of(budget["requests_per_minute"], budget["limit"]), "n"),
                *([("Retry budget", _of(rail.get("budget"), rail.get("budget_max")), "n")] if budgeted else []),
                ("Last read", "<br>".join(_streams(source["streams"], now))),
            )
        )
    numbers = ["Workflows", "Active runs", "Failing", "Dead letters", "Requests a minute"]
    numbers += ["Retry budget"] if budgeted else []
    names = ["Source", *(["Held by"] if held else []), *numbers, "Last read"]
    return table(names, rows, numbers=numbers) + (_legend(budgeted=budgeted) if rows else "")


def _legend(*, budgeted: bool) -> str:
    budget = (
        "<b>Retry budget</b>: how many more retries may fail before the next one has to wait, of the most that are "
        "saved up; time, and each run that succeeds, earn a part of one. "
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


def _streams(streams: Sequence[Mapping[str, Any]], now: float) -> Iterator[str]:
    """How each kind of data of a source is read; those of which the same is to be said, at once."""
    alike: dict[str, list[str]] = {}
    for stream in streams:
        alike.setdefault(_stream(stream, now), []).append(escape(stream["stream"].replace("_", " ")))
    for said, names in alike.items():
        yield f"{', '.join(names)}: {said}"


def _stream(stream: Mapping[str, Any], now: float) -> str:
    if stream["error"]:
        failed = f'<span class="bad">{told(stream["error"], most=CAUSE_CHARS)}</span>'
        last = f", last read {words.ago(stream['success_at'], now)}" if stream["success_at"] is not None else ""
        return f"{failed}{last}{''.join(_unread(stream['unread']))}"
    if stream["success_at"] is None:
        return "not read yet"
    css = "good" if stream["fresh"] else "bad"
    age = f'<span class="{css}">{words.ago(stream["success_at"], now)}</span>'
    return age + _faults(stream) + "".join(_unread(stream["unread"]))


def _faults(stream: Mapping[str, Any]) -> str:
    """How many parts of the last sweep could not be used, and the last of them in words."""
    fault = stream["last_fault"]
    if not stream["faults"] or fault is None:
        return ""
    of = fault["workflow"] or fault["workflow_id"]
    place = f"{told(of)}: " if of else ""
    said = f"{escape(fault['kind'].replace('_', ' '))}: {place}{told(fault['detail'], most=CAUSE_CHARS)}"
    return f', <span class="wait">{stream["faults"]:,} unusable</span> <small>{said}</small>'


def _unread(unread: Mapping[str, Any]) -> Iterator[str]:
    """The workflows that cannot be read, each with its age and the reason."""
    for one in unread["workflows"][:UNREAD_SHOWN_MAX]:
        name = told(one["workflow"] or one["workflow_id"])
        yield f'<br><span class="bad">{name} not read for {words.span(one["age_seconds"])}</span> '
        yield f"<small>{told(one['detail'], most=CAUSE_CHARS)}</small>"
    left = unread["total"] - UNREAD_SHOWN_MAX
    if left > 0:
        yield f'<br><span class="bad">and {left:,} more</span>'


def _retries(retries: Sequence[Mapping[str, Any]], now: float, visitor: Visitor) -> str:
    rows = []
    for retry in retries:
        state = "shadow" if retry["shadow"] else retry["outcome"] or retry["state"]
        css = {"succeeded": "good", "failed": "bad", "rejected": "bad", "held": "bad", "in_doubt": "bad"}.get(state, "")
        letter = f"{told(retry['source'])}<br><small>{told(retry['dead_letter_id'])}</small>"
        audit = f'<a href="retries/{quote(retry["id"], safe="")}">audit</a>'
        lineage = f"<br><small>root {told(retry['root'])}</small>" if retry["root"] != retry["dead_letter_id"] else ""
        runs = "".join(f"<br><small>made run {told(run)}</small>" for run in retry["new_runs"][:3])
        approved = f"<br><small>approved by {told(retry['approved_by'])}</small>" if retry["approved_by"] else ""
        again = " and failed again" if retry["recurred"] else ""
        key = f"{retry['source']}/{retry['dead_letter_id']}"
        settling = _settling(key, visitor) if state == "in_doubt" else ""
        rows.append(
            row(
                ("When", words.ago(retry["claimed_at"], now), "n"),
                ("What became of it", f'<span class="{css}">{escape(words.became(state))}</span>{again}'),
                ("Dead letter", letter + lineage),
                ("Policy", f"{told(retry['policy'])}<br><small>retry {retry['ordinal']}</small>{approved}"),
                ("Evidence", f"{told(retry['detail'], most=MESSAGE_CHARS)}{runs} {audit}{settling}"),
            )
        )
    return table(("When", "What became of it", "Dead letter", "Policy", "Evidence"), rows)
