"""Trying a retry without making it: what is decided of a dead letter, and what its platform says of it right now.

It reads as the check right before a call does, and remembers nothing: what is shown is what a retry would meet.
"""

from typing import Any

from exporter.log import get_logger
from exporter.model.retries import Mode, Verb
from exporter.platform.retrying import Look, Target
from exporter.retries.book import RetryBook
from exporter.retries.control import Control, ControlError, ladder_facts
from exporter.wire.errors import ApiError

log = get_logger(__name__)


async def try_once(control: Control, book: RetryBook, key: tuple[str, str]) -> dict[str, Any]:
    """Look at one dead letter, and say whether a retry would be sent. Makes no call and changes nothing.

    A look that fails is an answer, too. Raises ``ControlError`` for what cannot be looked at.
    """
    found, source, letter_id = control.one(*key), control.source(key[0]), key[1]
    if source.adapter is None:
        raise ControlError(f"{source.name}/{letter_id}: this platform knows no retry")
    decision = found.ladder.decision
    passes = decision.verb is Verb.RETRY and decision.mode.rank >= Mode.APPROVE.rank
    forbids: str | None = None
    look: Look | None = None
    try:
        with source.span("try retry"):
            look = await source.adapter.look(Target(letter=found.subject.letter))
        yields, asked = book.rules.source(source.name).yields, found.ladder.approval is not None
        forbids = look.forbids(yields=yields, asked=asked)
    except ApiError as error:
        forbids = f"it could not be read: {error}"
    except Exception as bug:  # an answer that nobody expected, say
        log.error("a look at a dead letter broke", source=source.name, dead_letter=letter_id, error=bug)
        forbids = f"it could not be read: {type(bug).__name__}"
    facts = ladder_facts(found, book.rules, control.now())
    return {
        **facts,
        "platform": source.platform.title,
        "look": None if look is None else look_facts(look),
        "look_forbids": forbids,
        "would_send": passes and forbids is None,
        "why_not": None if passes and forbids is None else forbids if passes else facts["words"],
    }


def look_facts(look: Look) -> dict[str, Any]:
    """What the platform said, as plain values."""
    return {"at": look.at, "standing": look.standing.value, "native": look.native, "refusal": look.refusal}
