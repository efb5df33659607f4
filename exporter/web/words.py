"""Decisions, gates, outcomes and times in the words that people use. Pure; plain text, escaped by who shows it."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

#: What is decided of dead letters, by decision and reason, where nothing more is known.
_PLAIN = {
    ("retry", "due"): "is retried next",
    ("wait", "mode"): "needs approval",
    ("hold", "mode"): "is not retried: retries are off",
    ("wait", "paused"): "waits: retries are paused",
    ("wait", "window"): "waits for the hours of its policy",
    ("wait", "held"): "has a retry under way",
    ("hold", "held"): "is held back",
    ("hold", "undetermined"): "cannot be decided yet",
    ("hold", "not_eligible"): "cannot be retried",
    ("quarantine", "exhausted"): "was given up: its retries are used up",
    ("escalate", "exhausted"): "needs somebody: its retries are used up",
    ("wait", "backoff"): "waits for its next retry",
    ("wait", "native_retry"): "the platform retries it by itself",
    ("wait", "storm"): "waits: the whole source is failing",
    ("wait", "gate"): "waits until retries of its group have shown that they help",
    ("wait", "budget"): "waits: too many retries failed lately",
    ("wait", "pace"): "waits for its turn",
    ("wait", "preflight"): "waits: the last look at it said no",
    ("hold", "policy"): "is held back: its policy says so",
    ("ignore", "policy"): "is left alone: its policy says so",
    ("quarantine", "policy"): "is never retried: its policy says so",
    ("escalate", "policy"): "needs somebody: its policy says so",
    ("hold", "no_policy"): "is not retried: no policy covers it",
}
#: What has become of a retry, or of a dead letter of an operation.
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
    "void": "left out: changed meanwhile",
    "cancelled": "cancelled",
}
_MODES = {
    "off": "off",
    "shadow": "shadow: everything is decided, nothing is sent",
    "approve": "on approval: nothing is sent that no person has approved",
    "enforce": "automatic: sent as the policies say",
}
_UNITS = (("day", 86400.0), ("hour", 3600.0), ("minute", 60.0))


def count(number: int, one: str, many: str | None = None) -> str:
    """``1 group``, ``3 groups``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def span(seconds: float) -> str:
    """A duration as people say it."""
    for unit, size in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}s"
    return count(round(max(0.0, seconds)), "second")


def ago(then: float, now: float) -> str:
    return "just now" if now - then < 2 else f"{span(now - then)} ago"


def at(then: float, now: float) -> str:
    """A moment to come: the time of day, with the day if that is not today."""
    moment, today = datetime.fromtimestamp(then, UTC), datetime.fromtimestamp(now, UTC)
    if moment.date() == today.date():
        return f"{moment:%H:%M}" if then - now >= 120 else f"{moment:%H:%M:%S}"
    return f"{moment:%H:%M on} {moment.day} {moment:%B}"


def mode(name: str) -> str:
    return _MODES.get(name, name)


def became(state: str) -> str:
    return _BECAME.get(state, state)


def decision(facts: Mapping[str, Any] | None, now: float) -> str:
    """What is decided of a dead letter, and until when."""
    if facts is None:
        return "is not decided yet"
    verb, reason, detail, next_at = facts["decision"], facts["reason"], facts["detail"], facts["next_at"]
    if facts["awaits_approval"]:
        return "waits for approval"
    if verb == "retry":
        return "would be retried now" if facts["mode"] == "shadow" else "is retried next"
    plain = _PLAIN.get((verb, reason), f"{verb}: {reason}")
    made = _IN_DETAIL.get(reason)
    said = plain if made is None or not detail else made(plain, detail)
    if next_at is None or next_at <= now or reason == "held":
        return said
    return f"{said}, {'from' if reason in ('window', 'mode', 'backoff') else 'until'} {at(next_at, now)}"


def label(text: str) -> str:
    """A decision and its reason, as groups count them: ``wait: gate``."""
    verb, _, reason = text.partition(": ")
    return _PLAIN.get((verb, reason), text)


def _added(plain: str, detail: str) -> str:
    return f"{plain}: {detail}"


def _mode(plain: str, detail: str) -> str:
    return f"is {detail}" if detail.startswith("approved") else plain


def _held(plain: str, detail: str) -> str:
    if "retry" in detail.split(" is ")[0]:
        whose = "its retry" if detail.startswith("its") else "a retry of another dead letter of its workflow"
        asked = detail.endswith(("held", "in_doubt"))
        return f"waits: nobody knows yet what {whose} did" if asked else f"waits for {whose} to end"
    verb, _, rest = detail.partition(" by ")
    return f"is {'in quarantine' if verb == 'quarantine' else 'held'}, by {rest}"


def _gate(plain: str, detail: str) -> str:
    return detail.partition(":")[0] if "cools off" in detail else plain


def _exhausted(plain: str, detail: str) -> str:
    return f"{plain.partition(':')[0]}: {detail}"


def _pace(plain: str, detail: str) -> str:
    return f"waits: {detail}" if "busy" in detail else plain


#: How a reason is said with its detail.
_IN_DETAIL: Mapping[str, Callable[[str, str], str]] = {
    "mode": _mode,
    "held": _held,
    "gate": _gate,
    "exhausted": _exhausted,
    "pace": _pace,
    "undetermined": _added,
    "not_eligible": _added,
    "preflight": _added,
    "storm": lambda plain, detail: f"waits: {detail}",
}


def gate(facts: Mapping[str, Any], now: float) -> str:
    """How the gate of a group stands."""
    state, width, under_way = facts["state"], facts["width"], facts["under_way"]
    if state == "cooling":
        return f"retrying it failed; it cools off until {at(facts['until'], now)}"
    if state == "probing":
        return "one retry at a time, to see whether it works again"
    verified = f", {under_way} not verified yet" if under_way else ""
    step = "as wide as it gets" if state == "open" else f"step {facts['step']} of {facts['steps']}"
    return f"up to {width} at once ({step}){verified}"
