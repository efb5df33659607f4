"""Cognaize's payloads to observations. Pure.

How the platform's words map onto ours ("restart failed step" and the pages on processes of the API documents):

==================  ================================================================================================
ours                theirs
==================  ================================================================================================
workflow            workflow: its id only; names come from the config, for no read endpoint tells them
run                 process
attempt             ``updatedTimestamp`` in whole milliseconds: a restart keeps the id and counts nothing
state, result       derived from the steps, for a process has no status: any FAILED: finished, failure; all COMPLETED:
                    finished, success; all PENDING: pending; anything else, unknown statuses included: running
started, ended      ``creationTimestamp``; ``updatedTimestamp`` of a finished one
step                process step; its type is the ``delegate``; it has no times, but see ``_steps``
error               none is told: class unknown, the delegate of the failed step
dead letter         a FAILED step: ``{process}.{step}.{updated ms}``; restarted in place, hence resolved by the next
                    attempt of its run
trigger             not told
==================  ================================================================================================

A step that runs into its ``timeOutInSeconds`` becomes FAILED like any other, so no result says timeout. ``params`` may
hold documents and addresses and are never read.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import ceil, floor
from typing import Any, Literal

from msgspec import structs

from exporter.model import DeadLetter, Error, ResolvedBy, Result, Run, State, Step, times
from exporter.model.fold import resolve
from exporter.platform import BadItem
from exporter.platform.cloudevents import parse_time
from exporter.platform.credentials import travels_in_a_header
from exporter.platform.retrying import Effort, Standing
from exporter.wire.decode import DAMAGED

PENDING, STARTED, COMPLETED, FAILED = "PENDING", "STARTED", "COMPLETED", "FAILED"

#: How a listing is sorted: nobody documents it, so it is learned.
Order = Literal["oldest_first", "newest_first", "unordered"]
#: Processes created at the same time may be listed in either order (seconds).
ORDER_SLACK_SECONDS = 5.0
#: A restart dated so much before our call may still be the call's: headers, which tell the platform's clock, have whole
#: seconds, and answers take time.
SKEW_SECONDS = 5.0
#: The step is started before its delegate is called, so a restart that can be so much later than our call
#: may be another's.
CALL_SECONDS = 60.0


_SECOND_60 = re.compile(r":60(?:\D|$)", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one answer says about one process."""

    run: Run
    dead_letters: tuple[DeadLetter, ...] = ()
    doubt: str | None = None  # what of it cannot be relied on, in a line


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """One page of the listing of processes.

    The place of a row is told by its *rank*, counted from the oldest process: new ones do not change it, whichever way
    the listing is sorted.
    """

    number: int
    size: int  # of a full page, as the platform cut it
    total: int
    items: tuple[Any, ...]
    moments: tuple[float, ...]  # creation times in the order of the listing, as far as they are told

    @property
    def pages(self) -> int:
        return max(1, ceil(self.total / self.size))

    def ranks(self, order: Order) -> tuple[int, int]:
        """The lowest rank on this page, and the first beyond it."""
        begin, end = self.number * self.size, min(self.total, (self.number + 1) * self.size)
        if order == "newest_first":
            begin, end = self.total - end, self.total - begin
        return max(0, begin), max(0, begin, end)


# The envelope.


def unwrap(answer: Any) -> Any:
    """``data`` of ``{message, timestamp, data, version}``, which every answer wears."""
    if not isinstance(answer, dict) or "data" not in answer:
        raise BadItem("the answer is not the platform's envelope")
    return answer["data"]


def error_detail(answer: Any) -> str | None:
    """The platform's words for what is wrong: the message, then the text or the names of what was not met."""
    if not isinstance(answer, dict) or not isinstance(answer.get("message"), str):
        return None
    message, data = answer["message"], answer.get("data")
    if isinstance(data, str) and data:
        return f"{message}: {data}"
    return f"{message}: {', '.join(map(str, data))}" if isinstance(data, dict) and data else message


def access_token(answer: Any) -> tuple[str, Any]:
    """The token in a login's answer, and for how many seconds it says it holds: in the envelope, or bare as an identity
    provider answers it.
    """
    data = answer.get("data", answer) if isinstance(answer, dict) else None
    token = data.get("access_token") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(token, str) or not travels_in_a_header(token):
        raise BadItem("the login answered without an access_token")
    return token, data.get("expires_in")


# The listing.


def rows(answer: Any, *, number: int, size: int, latest: float = times.MOMENT_MAX) -> Rows:
    """One answer of processes/find, a Spring page; ``number`` and ``size`` are what was asked for. Creation times later
    than ``latest`` are none.
    """
    data = unwrap(answer)
    content = data.get("content") if isinstance(data, dict) else None
    total = _whole(data.get("totalElements")) if isinstance(data, dict) else None
    if not isinstance(content, list) or total is None:
        raise BadItem("the listing has no content or no totalElements")
    moments = (created(item, latest=latest) for item in content)
    return Rows(
        number=number,
        size=_whole(data.get("size")) or size,
        total=total,
        items=tuple(content),
        moments=tuple(moment for moment in moments if moment is not None),
    )


def order_of(moments: Collection[float]) -> Order | None:
    """How a listing with these creation times is sorted, None if they are too close to tell."""
    rises = falls = True
    highest, lowest = float("-inf"), float("inf")
    for moment in moments:
        rises = rises and moment >= highest - ORDER_SLACK_SECONDS
        falls = falls and moment <= lowest + ORDER_SLACK_SECONDS
        highest, lowest = max(highest, moment), min(lowest, moment)
    if rises and falls:
        return None
    return "oldest_first" if rises else "newest_first" if falls else "unordered"


# One process.


def identity(process: Any) -> tuple[str, str] | None:
    """Id and workflow id of a process, None if it lacks one."""
    if not isinstance(process, dict):
        return None
    process_id, workflow_id = _id(process.get("id")), _id(process.get("workflowId"))
    return None if process_id is None or workflow_id is None else (process_id, workflow_id)


def created(process: Any, *, latest: float = times.MOMENT_MAX) -> float | None:
    moment = parse_time(process.get("creationTimestamp")) if isinstance(process, dict) else None
    return None if moment is None or not times.is_plausible(moment, latest) else moment


def attempt_of(updated: float) -> int:
    """Update time in seconds -> the attempt it names, in whole milliseconds."""
    # A float of today's date is exact to a quarter of a microsecond: the rest must not turn .123 into .122.
    return floor(updated * 1000 + 0.0005)


def read(
    process: Any,
    *,
    before: Run | None = None,
    dead_letters: Collection[DeadLetter] = (),
    latest: float = times.MOMENT_MAX,
) -> Reading:
    """``{id, workflowId, creationTimestamp, updatedTimestamp, steps: [{id, delegate, processStepStatus}]}``.

    ``before`` is the run as known so far if it is open, ``dead_letters`` are its open ones: a restarted step cannot be
    told from a first start by one answer alone. Raises ``BadItem`` where the answer names no attempt or has no steps: a
    time later than ``latest`` names none. Nor does one with a second 60, which somebody has rounded: its process has
    come that far, but nothing can be told from its next attempt by it (``doubt``).
    """
    names = identity(process)
    if names is None:
        raise BadItem("a process without id or workflowId")
    updated = parse_time(process.get("updatedTimestamp"))
    if updated is None:
        raise BadItem(f"process {names[0]} has no readable updatedTimestamp")
    if not times.is_plausible(updated, latest):
        raise BadItem(f"process {names[0]}: updatedTimestamp is at no time that can be")
    steps = process.get("steps")
    if not isinstance(steps, list) or not steps or not all(isinstance(step, dict) for step in steps):
        raise BadItem("a process without readable steps")
    statuses = [step.get("processStepStatus") for step in steps]
    state, result = _state(statuses)
    failed = [step for step, status in zip(steps, statuses, strict=True) if status == FAILED]
    error = Error(step_type=_text(failed[0].get("delegate"))) if failed else None
    if _SECOND_60.search(process["updatedTimestamp"]):
        run = Run(
            workflow_id=names[1],
            id=names[0],
            state=state,
            result=result,
            started_at=created(process, latest=latest),
            ended_at=updated if state is State.FINISHED else None,
            error=error,
        )
        return Reading(run=run, doubt=f"process {names[0]}: updatedTimestamp has a second 60, it names no attempt")
    run = Run(
        workflow_id=names[1],
        id=names[0],
        attempt=attempt_of(updated),
        state=state,
        result=result,
        started_at=created(process, latest=latest),
        ended_at=updated if state is State.FINISHED else None,
        error=error,
        steps=_steps(steps, statuses, updated, before, {letter.id for letter in dead_letters}, names[0]) or None,
    )
    letters = tuple(_dead_letter(run, step, updated) for step in failed if _id(step.get("id")) is not None)
    return Reading(run=run, dead_letters=letters)


def unread(process: Any, *, latest: float = times.MOMENT_MAX) -> Run:
    """The least that can be said of a process with an identity that cannot be read: it is there.

    So it is open, and read again until it can be. As attempt 1 it never stands against a real reading.
    """
    names = identity(process)
    if names is None:
        raise BadItem("a process without id or workflowId")
    return Run(workflow_id=names[1], id=names[0], state=State.RUNNING, started_at=created(process, latest=latest))


def gone(run: Run) -> Run:
    """What becomes of an open run that the platform no longer has: nobody will ever know how it ended, or when."""
    return Run(
        workflow_id=run.workflow_id,
        id=run.id,
        attempt=run.attempt,
        state=State.FINISHED,
        result=Result.UNKNOWN,
        started_at=run.started_at,
    )


def expired(letter: DeadLetter, *, at: float) -> DeadLetter:
    """What becomes of a dead letter whose process the platform no longer has."""
    return resolve(letter, by=ResolvedBy.EXPIRED, at=at)


# Restarts.


def root(letter: DeadLetter) -> str:
    """The step that failed, however often it does: ``{process}.{step}``."""
    return letter.id.rpartition(".")[0]


def step_id(letter: DeadLetter) -> str:
    return root(letter).removeprefix(f"{letter.run_id}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """How a failed step stands, and what is known of a restart since it failed."""

    standing: Standing
    reading: Reading
    effort: Effort | None
    params: Any = field(default=None, repr=False)  # to be sent back as they are; neither shown nor kept


def restart(
    process: Any, letter: DeadLetter, *, sent_at: float | None, accepted: bool, latest: float = times.MOMENT_MAX
) -> Restart:
    """What an answer says of this dead letter, and of our call at ``sent_at``, which the platform took or may have.

    The update time it has failed at is the mark: a later one tells of a restart. A step that has failed again is a dead
    letter of its own, and nothing is left to do for this one. Raises ``BadItem``.
    """
    reading = read(process, dead_letters=(letter,), latest=latest)
    if reading.doubt is not None:
        raise BadItem(reading.doubt)
    # Without what was known of the run before, times of its steps cannot be told: that is left to the sweeps.
    reading = replace(reading, run=structs.replace(reading.run, steps=None))
    step = next((s for s in process["steps"] if _id(s.get("id")) == step_id(letter)), None)
    if step is None or reading.run.id != letter.run_id:
        raise BadItem("the process lacks the step that failed, or is another one")
    if reading.run.attempt < letter.attempt:
        raise BadItem("the process is older than its failure")
    status, later = step.get("processStepStatus"), reading.run.attempt > letter.attempt
    standing = Standing.BUSY
    if status == COMPLETED or (status == FAILED and later):
        standing = Standing.RESOLVED
    elif status == FAILED:
        standing = Standing.DEAD
    effort = _restarted(reading.run, letter, status, sent_at=sent_at, accepted=accepted) if later else None
    return Restart(standing=standing, reading=reading, effort=effort, params=step.get("params"))


def _restarted(run: Run, letter: DeadLetter, status: object, *, sent_at: float | None, accepted: bool) -> Effort:
    """The restart that an update after the failure tells of.

    Of a step that is STARTED the update is the start; of one that has ended the start is past telling, but not later.
    So what shows within moments of our call is the call's: the dead letter had been looked at right before. Later, only
    what the platform took is certainly ours, once it has ended: a step that is not FAILED takes no second restart.
    """
    at = run.attempt / 1000
    began_at = at if status == STARTED else None
    result = {COMPLETED: Result.SUCCESS, FAILED: Result.FAILURE}.get(status) if isinstance(status, str) else None
    ours: bool | None = None
    if sent_at is not None and at < sent_at - SKEW_SECONDS:
        ours = False
    elif sent_at is not None and (at <= sent_at + CALL_SECONDS or (accepted and result is not None)):
        ours = True
    ended_at = None if result is None else at
    return Effort(id=f"{root(letter)}.{run.attempt}", began_at=began_at, ended_at=ended_at, result=result, ours=ours)


def restarted(answer: Any) -> str | None:
    """The step an answer to a restart names."""
    data = unwrap(answer)
    return _id(data.get("processStepId")) if isinstance(data, dict) else None


def _state(statuses: list[Any]) -> tuple[State, Result | None]:
    if FAILED in statuses:
        return State.FINISHED, Result.FAILURE
    if all(status == COMPLETED for status in statuses):
        return State.FINISHED, Result.SUCCESS
    if all(status == PENDING for status in statuses):
        return State.PENDING, None
    return State.RUNNING, None


def _dead_letter(run: Run, step: dict[str, Any], updated: float) -> DeadLetter:
    return DeadLetter(
        id=f"{run.id}.{step['id']}.{run.attempt}",
        workflow_id=run.workflow_id,
        run_id=run.id,
        attempt=run.attempt,
        opened_at=updated,
        error=Error(step_type=_text(step.get("delegate"))),
    )


def _steps(
    steps: list[dict[str, Any]],
    statuses: list[Any],
    updated: float,
    before: Run | None,
    letter_ids: Collection[str],
    process_id: str,
) -> tuple[Step, ...]:
    """What the latest transition, at ``updated``, says about the times of steps.

    They run strictly one after the other. So where step k is STARTED it started then, and the step before it ended then
    with success; a FAILED step ended then; where all are COMPLETED the last one ended then. The rest stays unknown.
    Where step k was *re*started, the step before it had ended long ago: nothing is said of that.
    """
    known = {step.id: step for step in before.steps or ()} if before is not None else {}

    def claim(index: int, *, started_at: float | None = None, result: Result | None = None) -> list[Step]:
        step_id, delegate = _id(steps[index].get("id")), _text(steps[index].get("delegate"))
        if step_id is None or delegate is None:
            return []
        ended_at = None if result is None else updated
        return [Step(id=step_id, type=delegate, started_at=started_at, ended_at=ended_at, result=result)]

    if not _sequential(statuses):
        return ()
    if FAILED in statuses:
        return tuple(claim(statuses.index(FAILED), result=Result.FAILURE))
    if statuses[-1] == COMPLETED:
        return tuple(claim(len(steps) - 1, result=Result.SUCCESS))
    if STARTED not in statuses:
        return ()
    index = statuses.index(STARTED)
    claims = claim(index, started_at=updated)
    step_id = _id(steps[index].get("id"))
    restarted = step_id is not None and (
        any(letter_id.startswith(f"{process_id}.{step_id}.") for letter_id in letter_ids)
        or (step_id in known and known[step_id].ended_at is not None)
    )
    if index > 0 and not restarted:
        previous = known.get(_id(steps[index - 1].get("id")) or "")
        # A completed step never runs again: the end it is known to have is its only one.
        if previous is None or previous.result is not Result.SUCCESS:
            claims = claim(index - 1, result=Result.SUCCESS) + claims
    return tuple(sorted(claims, key=lambda step: step.id))


_NEXT = {COMPLETED: (COMPLETED, STARTED, FAILED), STARTED: (PENDING,), FAILED: (PENDING,), PENDING: (PENDING,)}


def _sequential(statuses: list[Any]) -> bool:
    """COMPLETED steps, then one STARTED or FAILED, then PENDING ones."""
    if not all(isinstance(status, str) and status in _NEXT for status in statuses):
        return False
    return statuses[0] != PENDING and all(after in _NEXT[one] for one, after in pairwise(statuses))


# Fields.


def _id(value: object) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and 0 < len(value) <= 200 and DAMAGED not in value else None


def _text(value: object) -> str | None:
    return value[:100] if isinstance(value, str) and value else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
