"""What was done and why, as pages: one retry or dead letter with its audit, one operation with each of its items."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any
from urllib.parse import quote

from exporter.model import words
from exporter.model.operations import Alike, alike
from exporter.web.markup import document, facts, row, table
from exporter.web.questions import subject

#: Items of one operation on its page.
ITEMS_SHOWN_MAX = 200
_KINDS = {
    "decision": "decided",
    "intent": "about to be sent",
    "called": "the platform answered",
    "operation": "asked for by a person",
    "override": "said by a person",
    "override ended": "taken back",
    "override redated": "dated anew: the clock was set back",
    "resumed": "taken up again after a restart",
    "descends": "made a new run",
}
#: What every record has, and what says nothing to a person.
_SELF_EVIDENT = frozenset({"at", "kind", "who", "source", "retry", "dead_letter", "hash", "seq", "policy_hash"})


def retry_page(
    identity: str, retries: Sequence[Mapping[str, Any]], audit: Sequence[Mapping[str, Any]], now: float, *, base: str
) -> str:
    """A retry, or all of one dead letter, with what the audit says of it."""
    made = "".join(f"<h2>Retry {escape(retry['id'])}</h2>{_retry(retry, now)}" for retry in retries)
    rows = [
        row(
            ("When", f"{_time(record['at'])}<br><small>{words.ago(record['at'], now)}</small>", "n"),
            ("Who", escape(str(record.get("who", "")))),
            ("What", escape(_kind(str(record.get("kind", ""))))),
            ("Details", _details(record)),
        )
        for record in audit
    ]
    return document(
        f'<p><a href="{base}">Status</a></p><h1>{escape(identity)}</h1>{made or "<p>It was not retried yet.</p>"}'
        f"<h2>Audit</h2>{table(('When', 'Who', 'What', 'Details'), rows, none='Nothing was said or done about it.')}",
        title=identity,
    )


def _retry(retry: Mapping[str, Any], now: float) -> str:
    state = "shadow" if retry["shadow"] else retry["outcome"] or retry["state"]
    again = " and failed again" if retry["recurred"] else ""
    return facts(
        ("What became of it", escape(words.became(state)) + again),
        ("Evidence", escape(retry["detail"])),
        ("Dead letter", escape(f"{retry['source']}/{retry['dead_letter_id']}")),
        ("Descends from", escape(retry["root"]) if retry["root"] != retry["dead_letter_id"] else ""),
        ("Policy", f"{escape(retry['policy'])}, retry {retry['ordinal']}"),
        ("Approved by", escape(retry["approved_by"] or "")),
        ("Decided", _moment(retry["claimed_at"], now)),
        ("Sent", _moment(retry["sent_at"], now)),
        ("Ended", _moment(retry["closed_at"], now)),
        ("Runs it made", escape(", ".join(retry["new_runs"]))),
    )


def _kind(kind: str) -> str:
    return _KINDS.get(kind) or words.became(kind)


def _details(record: Mapping[str, Any]) -> str:
    """What else a record says, without what is empty."""
    said = []
    for name, value in record.items():
        if name in _SELF_EVIDENT or value in (None, "", [], {}, False):
            continue
        text = words.became(value) if name in ("state", "outcome") else _plain(name, value)
        said.append(f"<small>{escape(name.replace('_', ' '))}:</small> {escape(text)}")
    return "<br>".join(said)


def _plain(name: str, value: object) -> str:
    if isinstance(value, int | float) and (name.endswith("_at") or name in ("until", "send_by")):
        return _time(value)
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
            ("Why", escape(item["detail"])),
        )
        for item in items[:ITEMS_SHOWN_MAX]
    ]
    said = {
        item["dead_letter"]: ": ".join(filter(None, (words.became(item["state"]), item["detail"]))) for item in items
    }
    left = len(items) - len(rows)
    more = f"<p>and {left:,} more</p>" if left else ""
    what = f"{operation['action']} {words.count(operation['total'], subject(operation['action']))}"
    selected = ", ".join(f"{name} {value}" for name, value in operation["selected"].items() if name != "ids")
    return document(
        f'<p><a href="{base}">Status</a></p><h1>{escape(what)}</h1>'
        + facts(
            ("Asked for by", escape(operation["who"])),
            ("Why", escape(operation["why"])),
            ("Meant", escape(selected)),
            ("Asked for", _moment(operation["created_at"], now)),
            ("Begins", _moment(operation["starts_at"], now) if operation["starts_at"] > now else ""),
            ("Ended", _moment(operation["ended_at"], now)),
            ("Cancelled by", escape(operation["cancelled_by"] or "")),
            ("Done", f"{operation['done']:,} of {operation['total']:,}"),
            ("In short", "<br>".join(_alike(one) for one in alike(said)[:5])),
        )
        + table(("Which", "What became of it", "Why"), rows)
        + more,
        title=what,
    )


def _which(operation: Mapping[str, Any], key: str, base: str) -> str:
    if subject(operation["action"]) != "dead letter":
        return escape(key)
    source, _, identity = key.partition("/")
    return f'<a href="{base}retries/{quote(source, safe="")}/{quote(identity, safe="")}">{escape(key)}</a>'


def _alike(one: Alike) -> str:
    return f"{one.count:,} {escape(one.why)}"


def _moment(at: float | None, now: float) -> str:
    if at is None:
        return ""
    return f"{_time(at)} ({words.ago(at, now)})" if at <= now else _time(at)


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def not_there_page(identity: str, *, base: str) -> str:
    """Nothing is known under this name."""
    return document(
        f'<p><a href="{base}">Status</a></p><h1>Nothing is known of {escape(identity)}</h1>'
        "<p>There is no retry, dead letter or operation of this name, or it was forgotten with age.</p>"
    )
