"""Make's incomplete executions as dead letters. Pure: decoded JSON in, observations out.

Source: Make API documentation ('Incomplete executions') and help centre. Make keeps a failed execution, where its
scenario is set so, until somebody or Make itself resolves it; a retry that fails leaves it in place, one that breaks at
a later module resolves it and stores another.

| Make | here |
| --- | --- |
| incomplete execution ("dlq") | dead letter, its executionId (dashes stripped): the run that failed |
| created; attempts | opened; tries |
| retry | whether the platform will retry it itself |
| reason; the error in its bundle | message; type, class and failing module |
| resolved, after an attempt of type auto; of another type; after none | resolved by the platform; manually; manually |
| deleted | resolved manually |
| no longer there: near the license's retention, or while allDlqCount - dlqCount rose; otherwise | expired; unknown |

Of a bundle only the error and the number of its module are read: the rest is customers' data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from msgspec import structs

from exporter.model import SUCCEEDED, Blocked, DeadLetter, Error, ResolvedBy, Result, times
from exporter.platform import BadItem
from exporter.platform.retrying import Effort, Mark, Standing
from exporter.platforms.make.mapping import (
    as_object,
    execution_id,
    milliseconds,
    number,
    plain_id,
    seconds,
    unwrapped,
    whole,
)
from exporter.platforms.make.mapping.errors import make_error
from exporter.platforms.make.mapping.runs import RESULTS, stamp
from exporter.platforms.make.mapping.workflows import Scenario

#: An attempt dated so much before a call of ours may still be its effect: headers, which tell the platform's clock,
#: have whole seconds, and answers take time.
SKEW_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A dead letter as listed: open or resolved, its cause not known yet."""

    letter: DeadLetter
    resolved: bool
    reason: str | None  # the raw message, only to be made an Error of


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """What the list does not say."""

    run_id: str | None
    resolved: bool
    deleted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """A dead letter as it says itself, asked by its id."""

    letter: DeadLetter
    resolved: bool
    deleted: bool
    native: bool  # Make is going to retry it by itself


def letter_id(row: object) -> str | None:
    """The id of a row, if it has a usable one."""
    return execution_id(row.get("id")) if isinstance(row, Mapping) else None


def listed(
    row: object, *, workflow_id: str, at: float, known: DeadLetter | None, latest: float = times.MOMENT_MAX
) -> Listed:
    """A row of GET /dlqs?scenarioId=. Raises ``BadItem`` without an id, or without a date if ``known`` has none. A date
    later than ``latest`` is none.
    """
    place = f"an incomplete execution of scenario {workflow_id}"
    fields = as_object(row, place)
    item_id = letter_id(fields)
    if item_id is None:
        raise BadItem(f"{place} has no usable id")
    opened_at = seconds(milliseconds(fields.get("created")))
    what = "date"
    if opened_at is not None and not times.is_plausible(opened_at, latest):
        opened_at, what = None, f"date that can be ({item_id})"
    if opened_at is None and known is not None:
        opened_at = known.opened_at
    if opened_at is None:
        raise BadItem(f"{place} has no {what}")
    resolved, reason = fields.get("resolved") is True, fields.get("reason")
    retried, said = fields.get("retry"), None if known is None else known.native_retry
    if isinstance(retried, bool) and (said is None or said[1] != (retried and not resolved)):
        said = (at, retried and not resolved)
    return Listed(
        letter=DeadLetter(
            id=item_id,
            workflow_id=workflow_id,
            opened_at=opened_at,
            tries=whole(fields.get("attempts")) or 0,
            native_retry=said,  # as long as it says the same, since it first did
        ),
        resolved=resolved,
        reason=reason if isinstance(reason, str) else None,
    )


def detail(data: object) -> Detail:
    """The answer of GET /dlqs/{id}: ``{"dlq": {…}}``. Raises ``BadItem``."""
    fields = as_object(as_object(data, "the answer").get("dlq"), "an incomplete execution")
    return Detail(
        run_id=execution_id(fields.get("executionId")),
        resolved=fields.get("resolved") is True,
        deleted=fields.get("deleted") is True,
    )


def error(data: object, *, reason: str | None, modules: Mapping[str, str]) -> Error:
    """Why it failed, by GET /dlqs/{id}/bundle: ``{"response": {"<module>": {"error": {"type", "message"}}}}``.

    By ``reason`` alone where the bundle does not tell (``data`` may be None). ``modules`` names modules by id.
    """
    for module_id, held in unwrapped(data).items():
        found = held.get("error") if isinstance(held, Mapping) else None
        if isinstance(found, Mapping):
            name, message = found.get("type") or found.get("name"), found.get("message")
            step_type = modules.get(module_id)
            return make_error(name, message or reason, step_type=step_type)
    return make_error(None, reason)


def resolution(rows: Sequence[object], *, latest: float = times.MOMENT_MAX) -> tuple[float, ResolvedBy] | None:
    """When an item that is resolved was, and by whom, by GET /dlqs/{id}/logs; None if there was no attempt.

    The last attempt that succeeded did it; where none did, the last one, having passed the module that had failed.
    """
    attempts = []
    for row in rows:
        fields = row if isinstance(row, Mapping) else {}
        started = milliseconds(fields.get("timestamp"))
        if started is not None:
            ended = started + round(number(fields.get("duration")) or 0.0)
            if times.is_plausible(ended / 1000, latest):
                attempts.append((whole(fields.get("status")) == 1, ended, fields.get("type")))
    if not attempts:
        return None
    _, ended, kind = max(attempts, key=lambda attempt: attempt[:2])
    return ended / 1000, ResolvedBy.PLATFORM if kind == "auto" else ResolvedBy.MANUAL


def resolve(letter: DeadLetter, *, at: float, by: ResolvedBy) -> DeadLetter:
    """The claim that a dead letter was closed."""
    return structs.replace(letter, resolved_at=max(at, letter.opened_at), resolved_by=by)


# Before and after a retry of ours


def looked(data: object, *, known: DeadLetter, at: float) -> Looked:
    """The answer of GET /dlqs/{id}, asked at ``at``, as a claim about the whole dead letter. Raises ``BadItem``."""
    fields, told = as_object(as_object(data, "the answer").get("dlq"), "an incomplete execution"), detail(data)
    if letter_id(fields) != known.id:
        raise BadItem("the answer is about another incomplete execution, or does not say which")
    item = listed(fields, workflow_id=known.workflow_id, at=at, known=known)
    return Looked(
        letter=structs.replace(item.letter, run_id=told.run_id or known.run_id, error=known.error),
        resolved=told.resolved,
        deleted=told.deleted,
        native=fields.get("retry") is True and not told.resolved,
    )


def refusal(scenario: Scenario, letter: DeadLetter, *, fixed: str | None = None) -> str | None:
    """Why a dead letter of this scenario must not be retried as things are; ``fixed``: it was brought to this edit.

    A retry resumes the blueprint frozen at the failure, so one edited since would not be what runs. Make documents no
    need for the scenario to be switched on; but one that somebody switched off is meant to do nothing. One that Make
    switched off because of an error says ``isinvalid``: there, retrying is the remedy. A paused organization would run
    the retry whenever it is paid for again.
    """
    edited = milliseconds(scenario.edited)
    if edited is None:
        return "the scenario does not say when it was last edited"
    if edited > round(letter.opened_at * 1000) and scenario.edited != fixed:
        return "the scenario was edited after the failure; a retry would run the old blueprint"
    if scenario.workflow.blocked is Blocked.PAUSED:
        return "the scenario is paused with its organization; a retry would run at some later time"
    if scenario.workflow.enabled is False and scenario.workflow.blocked is not Blocked.INVALID:
        return "the scenario was switched off by somebody"
    return None


def mark(rows: Sequence[object], *, tries: int) -> Mark:
    """What to know attempts by that come later: those there are, by GET /dlqs/{id}/logs, and their number.

    The log is read after ``tries``, and may already list one more.
    """
    keys = sorted({_row_key(row) for row in rows})
    return {"tries": max(tries, len(keys)), "rows": keys}


def authored(rows: Sequence[object]) -> bool:
    """Whether some attempt names who made it."""
    return any(isinstance(row, Mapping) and row.get("authorId") is not None for row in rows)


def user_id(data: object) -> str | None:
    """Whose credential it is, by GET /users/me: ``{"authUser": {"id"}}``."""
    user = data.get("authUser") if isinstance(data, Mapping) else None
    return plain_id(user.get("id")) if isinstance(user, Mapping) else None


def efforts(
    rows: Sequence[object], *, before: Mark = None, sent_at: float | None = None, user: str | None = None
) -> tuple[Effort, ...]:
    """The attempts that were not there ``before``, by GET /dlqs/{id}/logs; oldest first.

    One is certainly ours if it is the only one that can be: of type manual, begun since ``sent_at``, its author ours
    (``user``) or not named. Its id is that of the execution, which a dead letter it leaves behind names as its run.
    """
    known = set() if before is None else set(before["rows"])
    found = {key: row for row in rows if (key := _row_key(row)) not in known}
    attempts = sorted((_effort(key, row, sent_at) for key, row in found.items()), key=lambda e: e.began_at or 0.0)
    possible = [attempt for attempt in attempts if attempt.ours is not False]
    if sent_at is None or len(possible) != 1 or not _can_be_ours(found[possible[0].id], user):
        return tuple(attempts)
    return tuple(replace(a, ours=True) if a is possible[0] else a for a in attempts)


def _can_be_ours(row: object, user: str | None) -> bool:
    """Whether a row says all that one of ours would: made by hand, at some time, by us or by nobody named."""
    fields = row if isinstance(row, Mapping) else {}
    author = fields.get("authorId")
    mine = author is None or (user is not None and plain_id(author) == user)
    return mine and fields.get("type") == "manual" and stamp(fields) is not None


def standing(found: Looked, efforts: Sequence[Effort], before: Mark = None) -> Standing:
    """How it stands, by what it says itself and by the attempts: those since ``before``, or without it all of them."""
    if found.deleted:
        return Standing.GONE
    if found.resolved:
        return Standing.RESOLVED
    under_way = any(effort.result is None for effort in efforts)
    if before is not None:
        # An attempt is counted but not listed yet, or it has succeeded and the dead letter does not know it yet.
        under_way = under_way or found.letter.tries > before["tries"] + len(efforts)
        under_way = under_way or any(effort.result in SUCCEEDED for effort in efforts)
    return Standing.BUSY if under_way else Standing.DEAD


def _row_key(row: object) -> str:
    """What a row of a dead letter's log is known by; one without an id is known by its time."""
    fields = row if isinstance(row, Mapping) else {}
    return execution_id(fields.get("id")) or str(stamp(fields))


def _effort(key: str, row: object, sent_at: float | None) -> Effort:
    """One attempt; ``ours`` is False where it cannot be, else None."""
    fields = row if isinstance(row, Mapping) else {}
    began, took, status = stamp(fields), number(fields.get("duration")), whole(fields.get("status"))
    result = RESULTS.get(-1 if status is None else status)
    if result is None and took is not None and status != 0:
        result = Result.UNKNOWN
    ended = None if result is None or began is None else began + round(took or 0.0)
    earlier = began is not None and sent_at is not None and began / 1000 < sent_at - SKEW_SECONDS
    return Effort(
        id=key,
        began_at=seconds(began),
        ended_at=seconds(ended),
        result=result,
        ours=False if earlier or fields.get("type") == "auto" else None,
        run_id=execution_id(fields.get("id")),
    )


def named(data: object) -> frozenset[str]:
    """The dead letters an answer to a retry names: ``{"dlq": id}``, of many ``{"dlqs": [id]}``."""
    fields = data if isinstance(data, Mapping) else {}
    many = fields.get("dlqs")
    ids = [fields.get("dlq"), *(many if isinstance(many, list) else ())]
    return frozenset(found for value in ids if (found := execution_id(value)) is not None)
