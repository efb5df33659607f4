"""The status page: one HTML text made of plain values, no script, readable on a phone, dark and light."""

from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from typing import Any

_STYLE = """
:root{color-scheme:light dark;--line:#8884}
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:0 auto;padding:1rem}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.3rem .7rem;border-bottom:1px solid var(--line);vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums}
.bad{color:#c62828}.good{color:#2e7d32}small{opacity:.7}
@media(prefers-color-scheme:dark){.bad{color:#ff8a80}.good{color:#81c784}}
"""
#: Dead letters shown on the page.
_SHOWN_MAX = 50


def page(facts: Mapping[str, Any], letters: Mapping[str, Any]) -> str:
    """The page for what ``status.status`` and ``status.dead_letters`` say."""
    now = facts["now"]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="10"><title>automation-exporter</title><style>{_STYLE}</style></head><body>
<h1>automation-exporter <small>{escape(facts["version"])}</small></h1>
<p><a href="/metrics">/metrics</a> · <a href="/-/ready">/-/ready</a> · <a href="/api/v1/status">/api/v1/status</a>
· <a href="/api/v1/dead-letters">/api/v1/dead-letters</a> <small>{_time(now)}</small></p>
<h2>Sources</h2>{_sources(facts["sources"], now)}
<h2>Open dead letters ({letters["total"]})</h2>{_dead_letters(letters["dead_letters"])}
</body></html>
"""


def _sources(sources: list[dict[str, Any]], now: float) -> str:
    rows = []
    for source in sources:
        streams = "<br>".join(_stream(stream, now) for stream in source["streams"])
        budget = source["budget"]
        limit = "" if budget["limit"] is None else f" of {budget['limit']:.0f}"
        failing = source["failing_workflows"]
        rows.append(
            f"<tr><td><b>{escape(source['source'])}</b><br><small>{escape(source['title'])}</small></td>"
            f'<td class="n">{source["workflows"]}</td><td class="n">{source["active_runs"]}</td>'
            f'<td class="n{" bad" if failing else ""}">{failing}</td><td class="n">{source["dead_letters"]}</td>'
            f'<td class="n">{budget["requests_per_minute"]:.0f}{limit}</td><td>{streams}</td></tr>'
        )
    head = "<th>Source<th>Workflows<th>Active runs<th>Failing<th>Dead letters<th>Requests/min<th>Freshness"
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _stream(stream: dict[str, Any], now: float) -> str:
    name = escape(stream["stream"])
    if stream["error"]:
        return f'{name}: <span class="bad">{escape(stream["error"])}</span>'
    if stream["success_at"] is None:
        return f"{name}: not swept yet"
    css = "good" if stream["fresh"] else "bad"
    faults = f", {stream['faults']} unusable" if stream["faults"] else ""
    return f'{name}: <span class="{css}">{_age(now - stream["success_at"])} ago</span>{faults}'


def _dead_letters(letters: list[dict[str, Any]]) -> str:
    if not letters:
        return "<p>None.</p>"
    rows = "".join(
        f"<tr><td>{escape(letter['source'])}</td><td>{escape(letter['workflow'] or letter['workflow_id'])}</td>"
        f"<td>{_age(letter['age_seconds'])}</td><td>{escape(letter['error_class'])}</td>"
        f"<td>{escape(letter['error_message'] or letter['error_type'] or '')}</td></tr>"
        for letter in letters[:_SHOWN_MAX]
    )
    head = "<th>Source<th>Workflow<th>Age<th>Error class<th>Message"
    return f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _time(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
