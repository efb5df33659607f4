"""Replays: runs that repeat an earlier one from its trigger, and the dead letters that nothing else can save. Pure.

Source: Make API documentation ('Scenarios', replay), and live log rows.

| Make | here |
| --- | --- |
| a failed run whose row says isReplayable, and that was not stored | dead letter; its id is the run's, a retry reruns |
| a run that names another in replayOfExecutionId | a repetition; a repetition of one is about the same first run |
| a repetition that succeeded, or ended with a warning | resolves the dead letter of its family: manually |
| a repetition that failed | one try more of it; no dead letter of its own while there is one |
| the run is no longer in the log: near the license's retention; otherwise | expired; unknown |

A family is a first run and all that repeat it, or one of these: they are about one piece of work.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from exporter.model import SUCCEEDED, Blocked, DeadLetter, Error, Result, Run
from exporter.platform.retrying import Effort, Mark, Standing
from exporter.platforms.make.mapping import execution_id, milliseconds, number, plain_id, seconds, whole
from exporter.platforms.make.mapping.dead_letters import SKEW_SECONDS
from exporter.platforms.make.mapping.runs import RESULTS, stamp
from exporter.platforms.make.mapping.workflows import Scenario

#: What Make retries by itself where it stores it: such an item may have come and gone between two readings of a list.
RETRIED_BY_MAKE = frozenset({"RateLimitError", "ConnectionError", "ModuleTimeoutError"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeatable:
    """What a log row says of its run besides the run itself."""

    replayable: bool | None  # None: the row does not say
    repeats: str | None  # the run it repeats


def repeatable(row: object) -> tuple[str, Repeatable] | None:
    """The id of a run, and whether it can be repeated and what it repeats, by its log row; None for other rows."""
    fields = row if isinstance(row, Mapping) else {}
    run_id, first = execution_id(fields.get("id")), execution_id(fields.get("replayOfExecutionId"))
    if run_id is None:
        return None
    told = fields.get("isReplayable")
    said = Repeatable(replayable=told if isinstance(told, bool) else None, repeats=None if first == run_id else first)
    return run_id, said


def first_of(run_id: str, repeats: Mapping[str, str]) -> str:
    """The run that this one and those it repeats go back to; ``repeats`` is run -> the run that it repeats."""
    passed = {run_id}
    while (earlier := repeats.get(run_id)) is not None and earlier not in passed:
        passed.add(earlier)
        run_id = earlier
    return run_id


def is_replay(letter: DeadLetter) -> bool:
    """Whether it is a run that can only be replayed: known by its run, as no incomplete execution is."""
    return letter.reruns or letter.id == letter.run_id


def dead_letter(run: Run, error: Error) -> DeadLetter:
    """The dead letter of a failed run that was not stored."""
    opened_at = run.finished_at or 0.0
    return DeadLetter(
        id=run.id, workflow_id=run.workflow_id, run_id=run.id, opened_at=opened_at, error=error, reruns=True
    )


def refusal(scenario: Scenario) -> str | None:
    """Why nothing of this scenario must be replayed as things are. Make replays only where it is switched on."""
    if scenario.workflow.enabled is False:
        return "the scenario is switched off; Make replays only where it is on"
    if scenario.workflow.blocked is Blocked.PAUSED:
        return "the scenario is paused; a replay would run at some later time, or not at all"
    return None


# Before and after a call


def efforts(
    rows: Iterable[object],
    run_id: str,
    *,
    before: Mark = None,
    sent_at: float | None = None,
    user: str | None = None,
) -> tuple[Effort, ...]:
    """The repetitions of a run and of its repetitions, by rows of the scenario's log; oldest first.

    With ``before`` those that were not there then. Ours name the run itself, began since ``sent_at`` and have our
    author (``user``) or none. That is certain of the only one for which all this holds.
    """
    known = frozenset(before["runs"]) if isinstance(before, Mapping) else frozenset()
    told = _family(rows, run_id)
    found = [_effort(row, run_id, sent_at, user) for key, row in told.items() if key not in known]
    found.sort(key=lambda effort: (effort.began_at or 0.0, effort.id))
    possible = [effort for effort in found if effort.ours is not False]
    if sent_at is None or len(possible) != 1 or not _can_be_ours(told[possible[0].id], user):
        return tuple(found)
    return tuple(replace(effort, ours=True) if effort is possible[0] else effort for effort in found)


def _family(rows: Iterable[object], run_id: str) -> dict[str, Mapping[str, Any]]:
    """The rows of what goes back to the same first run, by id: but for the run itself, all repetitions."""
    told = dict[str, Mapping[str, Any]]()
    repeats = dict[str, str]()
    for row in rows:
        said = repeatable(row)
        if said is not None and said[1].repeats is not None and isinstance(row, Mapping):
            told[said[0]], repeats[said[0]] = row, said[1].repeats
    first = first_of(run_id, repeats)
    return {key: row for key, row in told.items() if key != run_id and first_of(key, repeats) == first}


def _effort(row: Mapping[str, Any], run_id: str, sent_at: float | None, user: str | None) -> Effort:
    began, took, status = stamp(row), number(row.get("duration")), whole(row.get("status"))
    ended = milliseconds(row.get("endedAt"))
    result = RESULTS.get(-1 if status is None else status)
    if result is None and status != 0 and (took is not None or ended is not None):
        result = Result.UNKNOWN
    if ended is None and began is not None:
        ended = began + round(took or 0.0)
    author = plain_id(row.get("authorId"))
    earlier = began is not None and sent_at is not None and began / 1000 < sent_at - SKEW_SECONDS
    another = author is not None and user is not None and author != user
    other = earlier or another or execution_id(row.get("replayOfExecutionId")) != run_id
    key = execution_id(row.get("id")) or ""
    return Effort(
        id=key,
        began_at=seconds(began),
        ended_at=None if result is None else seconds(ended),
        result=result,
        ours=False if other else None,
        run_id=key,
    )


def _can_be_ours(row: Mapping[str, Any], user: str | None) -> bool:
    author = row.get("authorId")
    return (author is None or (user is not None and plain_id(author) == user)) and stamp(row) is not None


def authored(rows: Iterable[object], run_id: str) -> bool:
    """Whether some repetition names who made it."""
    return any(row.get("authorId") is not None for row in _family(rows, run_id).values())


def mark(found: Sequence[Effort]) -> Mark:
    """What to know repetitions by that come later."""
    return {"runs": [effort.id for effort in found]}


def standing(found: Sequence[Effort]) -> Standing:
    """How the work of a run stands, by all its repetitions."""
    if any(effort.result in SUCCEEDED for effort in found):
        return Standing.RESOLVED
    return Standing.BUSY if any(effort.result is None for effort in found) else Standing.DEAD


def done_at(found: Sequence[Effort]) -> float | None:
    """When the work was done, if a repetition did it."""
    return min((e.ended_at for e in found if e.result in SUCCEEDED and e.ended_at is not None), default=None)
