"""What was done and why, as pages: a retry, a dead letter with its retries, an operation with each of its items."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from exporter.model import words
from exporter.model.operations import Alike, alike
from exporter.web.group_pages import letter_acts, what_happens
from exporter.web.markup import (
    MESSAGE_CHARS,
    Visitor,
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
from exporter.web.questions import deed, subject

#: Items of one operation, and records of the audit, on a page.
ITEMS_SHOWN_MAX, RECORDS_SHOWN_MAX = 200, 200
_KINDS = {
    "decision": "decided",
    "intent": "about to be sent",
    "called": "the platform answered",
    "operation": "asked for by a person",
    "override": "said",
    "override ended": "taken back",
    "override redated": "dated anew: the clock was set back",
    "resumed": "taken up again after a restart",
    "descends": "made a new run",
}
#: What somebody said, in words.
_SAID = {
    "approve": "approved",
    "retry_now": "to be retried now",
    "hold": "held",
    "quarantine": "put in quarantine",
    "pause": "paused",
    "lower": "nothing without approval",
}
_LABELS = {"ordinal": "retry", "dead_letters": "of", "selected": "meant"}
#: What every record has, and what says nothing to a person, or is said in words beside it.
_SELF_EVIDENT = frozenset(
    {"at", "kind", "who", "source", "retry", "dead_letter", "hash", "seq", "policy_hash", "policies", "mode"}
    | {"decision", "reason", "state", "outcome", "override", "snapshot", "scope", "key", "repair", "root"}
)


def retry_page(
    identity: str,
    letter: Mapping[str, Any] | None,
    retries: Sequence[Mapping[str, Any]],
    audit: Sequence[Mapping[str, Any]],
    now: float,
    visitor: Visitor,
    *,
    base: str,
    unread: str | None = None,
) -> str:
    """A retry; or a dead letter, of which ``letter`` says how it is while it is open, with all its retries.

    With what the audit says of it, the newest last; ``unread`` is why that could not be read.
    """
    shown = audit[-RECORDS_SHOWN_MAX:]
    rows = [
        row(
            ("When", f"{words.moment(record['at'])}<br><small>{words.ago(record['at'], now)}</small>"),
            ("Who", told(record["who"]) if record.get("who") else ""),
            ("What", told(_what(record), most=MESSAGE_CHARS)),
            ("Details", _details(record, now)),
        )
        for record in shown
    ]
    if unread is not None:
        said = f'<p class="stop">The audit cannot be read: {told(unread, most=MESSAGE_CHARS)}</p>'
    else:
        said = table(("When", "Who", "What", "Details"), rows, none="Nothing was said or done about it.")
    left = len(audit) - len(shown)
    older = f"<p>{words.count(left, 'older record')}: <code>automation-exporter retries show</code></p>" if left else ""
    made = "".join(f"<h2>Retry {told(retry['id'])}</h2>{_retry(retry, now)}" for retry in retries)
    return document(
        f'<p><a href="{base}">Status</a></p>{notice(visitor)}<h1>{told(identity, most=MESSAGE_CHARS)}</h1>'
        f"{'' if letter is None else _letter(letter, now, visitor, base)}"
        f"{made or '<p>It was not retried yet.</p>'}<h2>Audit</h2>{older}{said}",
        title=plain(identity),
    )


def _letter(letter: Mapping[str, Any], now: float, visitor: Visitor, base: str) -> str:
    """An open dead letter."""
    error = letter["error_message"] or letter["error_type"] or "not known yet"
    group = f'<a href="{base}groups/{quote(letter["group"], safe="")}">those like it</a>'
    where = ways(
        base, title=letter["title"], url=letter["workflow_url"], dashboard=letter["dashboard"], alert=letter["alert"]
    )
    return (
        facts(
            ("Workflow", f"{told(letter['workflow'] or letter['workflow_id'])} <small>{where}</small>"),
            ("Failed", _moment(letter["opened_at"], now)),
            ("Error", told(error, most=MESSAGE_CHARS)),
            ("Kind of error", escape((letter["error_class"] or "not known yet").replace("_", " "))),
            ("What happens", what_happens(letter, now)),
            ("Failed run", linked(letter["run_id"], letter["url"]) if letter["run_id"] else ""),
            ("Trace", linked("trace", letter["trace_url"]) if letter["trace_url"] else ""),
            ("Group", group),
        )
        + f'<p class="acts">{letter_acts(letter, visitor, base)}</p>'
    )


def _retry(retry: Mapping[str, Any], now: float) -> str:
    state = "shadow" if retry["shadow"] else retry["outcome"] or retry["state"]
    again = " and failed again" if retry["recurred"] else ""
    return facts(
        ("What became of it", escape(words.became(state)) + again),
        ("Evidence", told(retry["detail"], most=MESSAGE_CHARS) if retry["detail"] else ""),
        ("Dead letter", told(f"{retry['source']}/{retry['dead_letter_id']}")),
        ("Descends from", told(retry["root"]) if retry["root"] != retry["dead_letter_id"] else ""),
        ("Policy", f"{told(retry['policy'] or 'none')}, retry {retry['ordinal']}"),
        ("Approved by", told(retry["approved_by"]) if retry["approved_by"] else ""),
        ("Decided", _moment(retry["claimed_at"], now)),
        ("Sent", _moment(retry["sent_at"], now)),
        ("Ended", _moment(retry["closed_at"], now)),
        ("Runs it made", told(", ".join(retry["new_runs"]), most=MESSAGE_CHARS) if retry["new_runs"] else ""),
    )


def _what(record: Mapping[str, Any]) -> str:
    """What a record is about, in words."""
    kind = str(record.get("kind", ""))
    if kind == "decision":
        return words.was_decided(record) or "decided"
    said = _KINDS.get(kind) or words.became(kind)
    if kind.startswith("override"):
        what = _SAID.get(str(record.get("action")), str(record.get("action", "")).replace("_", " "))
        return what if kind == "override" else f"{what}: {said}"
    outcome = record.get("outcome") or record.get("state")
    became = words.became(str(outcome)) if outcome else said
    return said if became == said or not kind.startswith("repair") else f"{said}: {became}"


def _details(record: Mapping[str, Any], now: float) -> str:
    """What else a record says, without what is empty."""
    said = []
    is_decision, is_said = record.get("kind") == "decision", str(record.get("kind", "")).startswith("override")
    for name, value in record.items():
        if name in _SELF_EVIDENT or value in (None, "", [], {}, False):
            continue
        if (is_decision and name == "detail") or (is_said and name == "action"):
            continue
        text = told(_plain(name, value, now), most=MESSAGE_CHARS)
        label = _LABELS.get(name) or plain(name).replace("_", " ")
        named = "" if name in ("detail", "why") else f"<small>{escape(label)}:</small> "
        said.append(f"{named}{text}")
    return "<br>".join(said)


def _plain(name: str, value: object, now: float) -> str:
    if isinstance(value, int | float) and (name.endswith("_at") or name in ("until", "send_by")):
        return words.moment(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {one}" for key, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def operation_page(operation: Mapping[str, Any], now: float, *, base: str) -> str:
    """An operation: what was asked for, and what became of each."""
    items = operation["items"]
    rows = [
        row(
            ("Which", _which(operation, item["dead_letter"], base)),
            ("What became of it", escape(words.became(item["state"]))),
            ("Why", told(item["detail"], most=MESSAGE_CHARS) if item["detail"] else ""),
        )
        for item in items[:ITEMS_SHOWN_MAX]
    ]
    said = {
        item["dead_letter"]: ": ".join(filter(None, (words.became(item["state"]), item["detail"]))) for item in items
    }
    left = len(items) - len(rows)
    more = f"<p>and {left:,} more</p>" if left else ""
    what = deed(operation["action"], operation["total"])
    selected = ", ".join(f"{name} {value}" for name, value in operation["selected"].items() if name != "ids")
    return document(
        f'<p><a href="{base}">Status</a></p><h1>{escape(what)}</h1>'
        + facts(
            ("Asked for by", told(operation["who"])),
            ("Why", told(operation["why"], most=MESSAGE_CHARS) if operation["why"] else ""),
            ("Meant", told(selected, most=MESSAGE_CHARS) if selected else ""),
            ("Asked for", _moment(operation["created_at"], now)),
            ("Begins", _moment(operation["starts_at"], now) if operation["starts_at"] > now else ""),
            ("Ended", _moment(operation["ended_at"], now)),
            ("Cancelled by", told(operation["cancelled_by"]) if operation["cancelled_by"] else ""),
            ("Done", f"{operation['done']:,} of {operation['total']:,}"),
            ("In short", "<br>".join(_alike(one) for one in alike(said)[:5])),
        )
        + table(("Which", "What became of it", "Why"), rows)
        + more,
        title=what,
    )


def _which(operation: Mapping[str, Any], key: str, base: str) -> str:
    if subject(operation["action"]) != "dead letter":
        return told(key)
    source, _, identity = key.partition("/")
    return f'<a href="{base}retries/{quote(source, safe="")}/{quote(identity, safe="")}">{told(key)}</a>'


def _alike(one: Alike) -> str:
    return f"{one.count:,} × {told(one.why, most=MESSAGE_CHARS)}"


def _moment(at: float | None, now: float) -> str:
    if at is None:
        return ""
    return f"{words.moment(at)} ({words.ago(at, now)})" if at <= now else words.moment(at)


def not_there_page(identity: str, *, base: str) -> str:
    """Nothing is known under this name."""
    return document(
        f'<p><a href="{base}">Status</a></p><h1>Nothing is known of {told(identity)}</h1>'
        "<p>There is no retry, dead letter or operation of this name, or it was forgotten with age.</p>",
        title="Nothing is known",
    )


def unread_page(problem: str, *, base: str) -> str:
    """The database does not answer."""
    return document(
        f'<p><a href="{base}">Status</a></p><h1>The database cannot be read</h1>'
        f"<p>{told(problem, most=MESSAGE_CHARS)}</p><p>{ways(base, alert='AutomationStoreDown')}</p>",
        title="The database cannot be read",
    )
