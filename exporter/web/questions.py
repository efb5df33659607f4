"""The question before a deed: what is about to be done, to how many, to which, and what that means."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from exporter.model import words
from exporter.model.operations import OperationAction
from exporter.model.repairs import RepairAction, RepairSubject
from exporter.web.markup import MESSAGE_CHARS, document, plain, secret, told

#: Things named before something is done to them.
NAMED_BEFORE = 5
#: What is asked, and what it means, by action.
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
    "discard": ("Discard", "They are deleted on their platform, for good: no retry can save them afterwards."),
    "fix-and-retry": ("Fix and retry", "It is made to run as its workflow is today, and is then retried once."),
    "rerun": ("Run again", "Its workflow is run again, with the parameters that the config gives for that."),
    "reactivate": (
        "Switch on",
        "The workflow is switched on again on its platform, and what waits there may run at once.",
    ),
    "stop": ("Stop", "The run is ended on its platform. What it has done stays done."),
}
#: What an effect that is not known is settled as.
_SETTLED = {
    True: "The retry did have an effect: it counts, and what became of it is read from the platform.",
    False: "The retry had no effect: unless the platform shows otherwise it does not count, and the policy may send "
    "another one.",
}
ACTIONS = tuple(_ASKED)


def confirm_page(
    action: str,
    named: Sequence[str],
    total: int,
    refused: Sequence[str],
    *,
    what: str,
    asked: str,
    csrf: str,
    sent: bool | None = None,
    at: str = "",
) -> str:
    """What is about to be done, to how many, and to which; ``named`` are the first of them, in words.

    ``at``: the page from which it was asked, to come back to.
    """
    verb, meaning = _ASKED[action]
    listed = "".join(f"<li>{told(one, most=MESSAGE_CHARS)}</li>" for one in named)
    left = total - len(named)
    more = f"<li>and {left:,} more</li>" if left else ""
    without = ""
    if refused:
        said = "".join(f"<li>{told(reason, most=MESSAGE_CHARS)}</li>" for reason in refused[:NAMED_BEFORE])
        rest = len(refused) - NAMED_BEFORE
        without = f"<p>Left out: {len(refused):,}</p><ul>{said}{f'<li>and {rest:,} more</li>' if rest > 0 else ''}</ul>"
    return document(
        f"<h1>{deed(action, total)}?</h1><p>{told(what, most=MESSAGE_CHARS)}: these, as they "
        f"are now. What changes before its turn is left out.</p><p>{meaning if sent is None else _SETTLED[sent]}</p>"
        f"<ul>{listed}{more}</ul>{without}"
        f'<form method="post" action="act/begin">{secret(csrf)}'
        f'<input type="hidden" name="asked" value="{escape(asked)}">{_comes_back(at)}'
        '<p><label>Why (optional) <input name="why" maxlength="200"></label></p>'
        f'<p><button>{verb} these</button></p></form><p><a href="./{escape(at)}">Back</a></p>',
        title=f"{verb}?",
    )


def resume_page(paused: Sequence[str], lowered: Sequence[str], *, csrf: str, at: str = "") -> str:
    """Before retries go on: of the sources where they are paused, or where only what is approved is sent."""
    said = f"Retries of {', '.join(map(told, paused))} are paused. " if paused else ""
    if lowered:
        said += f"Of {', '.join(map(told, lowered))} only what a person approves is sent; that ends as well. "
    return document(
        f"<h1>Resume retries?</h1><p>{said}What is due by now is sent as the policies, the gates and the rate limits "
        f'allow.</p><form method="post" action="act/resume">{secret(csrf)}{_comes_back(at)}'
        f'<p><button>Resume retries</button></p></form><p><a href="./{escape(at)}">Back</a></p>',
        title="Resume?",
    )


def _comes_back(at: str) -> str:
    return f'<input type="hidden" name="at" value="{escape(at)}">' if at else ""


def deed(action: str, number: int) -> str:
    """What an operation does, in words: "Switch on 1 workflow"."""
    verb = _ASKED[action][0] if action in _ASKED else action.replace("-", " ").capitalize()
    return f"{verb} {words.count(number, subject(action))}"


def subject(action: str) -> str:
    """What an action is done to."""
    return RepairAction(action).subject if OperationAction(action).is_repair else RepairSubject.DEAD_LETTER


def named_letter(letter: Mapping[str, Any], now: float) -> str:
    return f"{plain(letter['key'])}: {plain(letter['workflow'])}, {words.ago(letter['opened_at'], now)}"


def named_plan(plan: Mapping[str, Any]) -> str:
    """What would be done to one thing, as its platform stands now."""
    return f"{plan['of']}: {'; '.join([plan['does'], *plan['changes']])}"
