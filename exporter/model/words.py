"""Decisions in words, for people who know nothing of our codes. Pure."""

from exporter.model.retries import Decision, Mode, Reason, Verb

#: What a reason means, for many dead letters alike.
REASONS = {
    Reason.MODE: "nothing is sent in this mode",
    Reason.PAUSED: "paused",
    Reason.WINDOW: "outside the hours of its policy",
    Reason.HELD: "held",
    Reason.UNDETERMINED: "nobody can tell which policy owns it",
    Reason.NOT_ELIGIBLE: "cannot be retried as it is",
    Reason.EXHAUSTED: "given up: its retries are used up",
    Reason.BACKOFF: "waits before its next retry",
    Reason.NATIVE_RETRY: "the platform will retry it by itself",
    Reason.STORM: "waits until the source as a whole is well again",
    Reason.GATE: "waits until retries of its group succeed",
    Reason.BUDGET: "waits: no retry that may fail can be afforded now",
    Reason.PACE: "waits for its turn under the rate limit",
    Reason.PREFLIGHT: "could not be retried when it was last looked at",
    Reason.POLICY: "its policy decides",
    Reason.NO_POLICY: "no policy matches",
    Reason.DUE: "is retried now",
}
_ACTIONS = {
    Verb.HOLD: "its policy leaves it alone",
    Verb.IGNORE: "its policy ignores it",
    Verb.QUARANTINE: "in quarantine by its policy",
    Verb.ESCALATE: "a person has to see to it, its policy says",
}
#: Reasons whose detail says more, and how that begins.
_SAY = {
    Reason.NOT_ELIGIBLE: "cannot be retried as it is",
    Reason.UNDETERMINED: "nobody can tell which policy owns it",
    Reason.PREFLIGHT: "could not be retried when it was last looked at",
    Reason.EXHAUSTED: "given up",
}


def in_words(decision: Decision) -> str:
    """What is decided, as one says it: "waits for approval", not ``wait: mode``."""
    reason, detail = decision.reason, decision.detail
    if decision.awaits_approval:
        return "waits for approval"
    if reason is Reason.MODE:
        if decision.verb is Verb.WAIT:  # approved, and it may still be taken back
            return detail or REASONS[reason]
        return "retrying is off" if decision.mode is Mode.OFF else f"the mode is {decision.mode}: nothing is sent"
    if reason is Reason.HELD:
        return f"in quarantine: {detail}" if decision.verb is Verb.QUARANTINE else detail or REASONS[reason]
    if reason is Reason.POLICY:
        return _ACTIONS.get(decision.verb, REASONS[reason])
    if reason is Reason.DUE and decision.mode is Mode.SHADOW:
        return "would be retried now; in shadow nothing is sent"
    if reason is Reason.PAUSED:
        return detail or REASONS[reason]
    return f"{_SAY[reason]}: {detail}" if reason in _SAY and detail else REASONS[reason]


def in_short(decision: Decision) -> str:
    """The same of many alike, without what differs between them."""
    if decision.reason in (Reason.MODE, Reason.POLICY):
        return in_words(decision)
    return "in quarantine" if decision.verb is Verb.QUARANTINE else REASONS[decision.reason]
