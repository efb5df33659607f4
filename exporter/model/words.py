"""What is so in the words that people use: decisions, gates, outcomes, modes, durations and moments. Pure; plain text.

The one table of these words: the commands, the JSON and the pages say the same.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from exporter.model.retries import Decision, Mode, Reason, Verb

#: What is decided of a dead letter, where nothing more is known of it, or of many alike.
_DECIDED = {
    (Verb.RETRY, Reason.DUE): "is retried next",
    (Verb.WAIT, Reason.MODE): "needs approval",
    (Verb.HOLD, Reason.MODE): "not retried in this mode",
    (Verb.WAIT, Reason.PAUSED): "paused",
    (Verb.WAIT, Reason.WINDOW): "waits for the hours of its policy",
    (Verb.WAIT, Reason.HELD): "waits for a retry to end",
    (Verb.HOLD, Reason.HELD): "held",
    (Verb.QUARANTINE, Reason.HELD): "in quarantine",
    (Verb.HOLD, Reason.UNDETERMINED): "cannot be decided yet",
    (Verb.HOLD, Reason.NOT_ELIGIBLE): "cannot be retried",
    (Verb.QUARANTINE, Reason.EXHAUSTED): "given up: its retries are used up",
    (Verb.ESCALATE, Reason.EXHAUSTED): "needs a person: its retries are used up",
    (Verb.WAIT, Reason.BACKOFF): "waits for its next retry",
    (Verb.WAIT, Reason.NATIVE_RETRY): "the platform retries it by itself",
    (Verb.WAIT, Reason.STORM): "waits: the whole source is failing",
    (Verb.WAIT, Reason.GATE): "waits until retries of its group have shown that they help",
    (Verb.WAIT, Reason.BUDGET): "waits: too many retries failed lately",
    (Verb.WAIT, Reason.PACE): "waits for its turn under the rate limit",
    (Verb.WAIT, Reason.PREFLIGHT): "waits: the last look at it said no",
    (Verb.HOLD, Reason.POLICY): "held: its policy says so",
    (Verb.IGNORE, Reason.POLICY): "left alone: its policy says so",
    (Verb.QUARANTINE, Reason.POLICY): "in quarantine: its policy says so",
    (Verb.ESCALATE, Reason.POLICY): "needs a person: its policy says so",
    (Verb.HOLD, Reason.NO_POLICY): "not retried: no policy covers it",
}
#: What has become of a retry, a repair, or one thing of an operation; or how far it is.
_BECAME = {
    "succeeded": "succeeded",
    "failed": "failed",
    "rejected": "refused by the platform",
    "superseded": "fixed by somebody else",
    "expired": "without an answer in time",
    "not_sent": "not sent",
    "intent": "about to be sent",
    "sent": "being sent",
    "accepted": "accepted, not finished",
    "verifying": "running, not finished",
    "in_doubt": "unknown outcome: the call may or may not have worked",
    "held": "unknown outcome: a person has to say",
    "shadow": "shadow: nothing was sent",
    "waiting": "waiting",
    "open": "under way",
    "done": "done",
    "refused": "left out",
    "unknown": "sent, unknown outcome",
    "void": "left out: changed meanwhile",
    "cancelled": "cancelled",
}
_MODES = {
    Mode.OFF: "off: nothing is sent",
    Mode.SHADOW: "shadow: everything is decided, nothing is sent",
    Mode.APPROVE: "on approval: nothing is sent that no person has approved",
    Mode.ENFORCE: "automatic: sent as the policies say",
}
_UNITS = (("day", 86400.0), ("hour", 3600.0), ("minute", 60.0))
#: Less than two of a unit are said in the next smaller one: so much of it are two.
_TWICE = 1.98


# Decisions


def in_words(decision: Decision) -> str:
    """What is decided, as people say it: "waits for approval", not ``wait: mode``."""
    if decision.awaits_approval:
        return "waits for approval"
    made = _IN_DETAIL.get(decision.reason)
    said = "" if made is None else made(decision)
    return said or in_short(decision)


def in_short(decision: Decision) -> str:
    """The same of many alike, without what differs between them."""
    if decision.awaits_approval:
        return "waits for approval"
    if decision.reason is Reason.MODE and decision.verb is Verb.WAIT and decision.detail.startswith("approved"):
        return "approved: begins soon"
    if decision.reason is Reason.MODE and decision.verb is Verb.HOLD:
        return "not retried: retrying is off" if decision.mode is Mode.OFF else f"not retried in mode {decision.mode}"
    if decision.reason is Reason.DUE and decision.mode is Mode.SHADOW:
        return "would be retried now; in shadow nothing is sent"
    if decision.reason is Reason.EXHAUSTED and decision.verb is Verb.QUARANTINE:
        return "given up: its retries are used up"
    return _DECIDED.get((decision.verb, decision.reason), f"{decision.verb}: {decision.reason}")


def was_decided(record: Mapping[str, Any]) -> str:
    """What a record of the audit says was decided, in words; "" if it says nothing of that."""
    try:
        verb, reason, mode = Verb(record["decision"]), Reason(record["reason"]), Mode(record["mode"])
    except (KeyError, ValueError):
        return ""
    decision = Decision(verb=verb, reason=reason, mode=mode, detail=str(record.get("detail", "")))
    said = in_words(decision)
    told = decision.detail in said or reason in _TOLD_IN_WORDS
    return said if told else f"{said} ({decision.detail})"


def until(facts: Mapping[str, Any] | None, now: float) -> str:
    """A decision (``retries.control.decision_facts``) in words, and until when it is so."""
    if facts is None:
        return "not decided yet"
    said, reason, next_at = str(facts["words"]), facts["reason"], facts["next_at"]
    if facts["awaits_approval"] or facts["decision"] != "wait" or next_at is None or next_at <= now or reason == "held":
        return said
    return f"{said}, {'from' if reason in ('window', 'mode', 'backoff') else 'until'} {at(next_at, now)} UTC"


def _mode(decision: Decision) -> str:
    return decision.detail if decision.verb is Verb.WAIT else ""


def _held(decision: Decision) -> str:
    detail = decision.detail
    if "retry" in detail.split(" is ")[0]:
        whose = "its retry" if detail.startswith("its") else "a retry of another dead letter of its workflow"
        asked = detail.endswith(("held", "in_doubt"))
        return f"waits: nobody knows yet what {whose} did" if asked else f"waits for {whose} to end"
    verb, _, rest = detail.partition(" by ")
    if not rest:
        return ""
    return f"{'in quarantine' if verb == Verb.QUARANTINE else 'held'} by {rest}"


def _exhausted(decision: Decision) -> str:
    return f"{in_short(decision).partition(':')[0]}: {decision.detail}" if decision.detail else ""


def _gate(decision: Decision) -> str:
    return decision.detail.partition(":")[0] if "cools off" in decision.detail else ""


def _pace(decision: Decision) -> str:
    return f"waits: {decision.detail}" if "busy" in decision.detail else ""


def _waits(decision: Decision) -> str:
    return f"waits: {decision.detail}" if decision.detail else ""


def _added(decision: Decision) -> str:
    return f"{in_short(decision)}: {decision.detail}" if decision.detail else ""


#: How a reason is said with its detail; "" where that says no more.
_IN_DETAIL: Mapping[Reason, Callable[[Decision], str]] = {
    Reason.MODE: _mode,
    Reason.PAUSED: lambda decision: decision.detail,
    Reason.HELD: _held,
    Reason.GATE: _gate,
    Reason.EXHAUSTED: _exhausted,
    Reason.PACE: _pace,
    Reason.STORM: _waits,
    Reason.UNDETERMINED: _added,
    Reason.NOT_ELIGIBLE: _added,
    Reason.PREFLIGHT: _added,
}
#: Those whose words say all that the detail does.
_TOLD_IN_WORDS = frozenset({Reason.DUE, Reason.HELD, Reason.MODE})


# What else is so


def mode(name: str) -> str:
    """How far retrying may go."""
    return _MODES[Mode(name)]


def became(state: str) -> str:
    """What has become of a retry or of one thing of an operation, or how far it is."""
    return _BECAME.get(state, state.replace("_", " "))


def gate(facts: Mapping[str, Any], now: float) -> str:
    """How the gate of a group stands."""
    state, width, under_way = facts["state"], facts["width"], facts["under_way"]
    if state == "cooling":
        return f"retrying it failed; it cools off until {at(facts['until'], now)} UTC"
    if state == "probing":
        return "one retry at a time, to see whether it works again"
    verified = f", {under_way} not verified yet" if under_way else ""
    step = "as wide as it gets" if state == "open" else f"step {facts['step']} of {facts['steps']}"
    return f"up to {width} at once ({step}){verified}"


# Numbers, durations, moments


def count(number: int, one: str, many: str | None = None) -> str:
    """``1 group``, ``3 groups``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def span(seconds: float) -> str:
    """A duration as people say it: "90 minutes", but "1 hour"."""
    for unit, size in _UNITS:
        units = seconds / size
        if units >= _TWICE or abs(units - 1) < 2 - _TWICE:
            return count(round(units), unit)
    return count(round(max(0.0, seconds)), "second")


def ago(then: float, now: float) -> str:
    """How long ago a moment was. One to come is what a platform said whose clock is ahead, or ours is behind."""
    if then - now >= 60:
        return f"{span(then - now)} ahead of our clock"
    return "just now" if now - then < 2 else f"{span(now - then)} ago"


def moment(at: float) -> str:
    """A moment in full. What no calendar holds is said as the number of seconds that it is."""
    found = _date(at)
    return f"{at:.0f} seconds after 1970" if found is None else f"{found:%Y-%m-%d %H:%M:%S} UTC"


def at(then: float, now: float) -> str:
    """A moment as the time of day in UTC, with the day if that is not today."""
    found, today = _date(then), _date(now)
    if found is None or today is None:
        return moment(then)
    if found.date() == today.date():
        return f"{found:%H:%M}" if then - now >= 120 else f"{found:%H:%M:%S}"
    return f"{found:%H:%M on} {found.day} {found:%B}"


def _date(at: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(at, UTC)
    except (ValueError, OverflowError, OSError):
        return None
