"""Retrying n8n's dead letters: a failed execution is run again from the node that failed, with the input it had.

`POST /executions/{id}/retry` guards nothing: it runs again what a retry has healed already, what is running, and what
waits. So the whole chain of the dead letter is read right before: nothing of it may be under way or have succeeded, and
nobody may have stopped its last retry. What is retried is the newest of the chain, for that went furthest.

The call is answered when the new run has ended, which may take hours; nothing else of the source would be retried
meanwhile. So it is not waited for: the run is there as soon as the call begins, as the one row that names the retried
execution. If there is none, or more, a lost answer is a doubt. Where successes are not saved no row would be left: a
person has to ask.

``retrySuccessId`` is set on the execution that was retried only, and by a further success anew; it proves that there
was one.
"""

from collections.abc import Sequence
from contextlib import suppress

from exporter.model import DeadLetter, ResolvedBy, Result
from exporter.model.fold import resolve
from exporter.model.retries import Traits
from exporter.platform import BadItem
from exporter.platform.retrying import Accepted, Effort, Look, Retrying, Standing, Target
from exporter.platforms.n8n import mapping
from exporter.platforms.n8n.calls import Calls
from exporter.platforms.n8n.config import N8nConfig
from exporter.platforms.n8n.mapping import Habits, Numbering, Row, Saving
from exporter.wire.api import Api
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind

TRAITS = Traits(
    effect="resume",
    handle="returned",
    absence=60.0,  # the row of a retry is there as soon as the call begins
    serial=False,
    bulk_max=1,
)
#: A run that began this long (seconds) before a call was read, or so long after it, is the call's: clocks differ.
SKEW_SECONDS = 5.0
PROMPT_SECONDS = 15.0
#: The database has another execution under this number if it ended at another time (seconds).
SAME_END_SECONDS = 2.0
#: Pages of a workflow's executions that are read before a call (whatever is older, the sweeps have read), and after one
#: whose answer was lost: all that were made since. So many are all that an instance keeps by default.
PAGES_BEFORE, PAGES_MAX = 4, 40
#: Executions that retries name and the pages do not show, read alone in one look; and how many of them are remembered.
PARENTS_MAX, PARENTS_KEPT = 20, 2000
#: How often (seconds) it is asked what the instance saves, and of how many workflows with successes at most.
DEFAULT_SECONDS = 600.0
WORKFLOWS_ASKED_MAX = 5
#: Calls that ended so may have had their effect; a proxy in between gives up before n8n does.
_UNANSWERED = (ErrorKind.TIMEOUT, ErrorKind.UNAVAILABLE, ErrorKind.BAD_PAYLOAD)
_UNSAVED = "its workflow does not save {}: whether a retry worked could not be told"


class N8nRetries:
    """One source's way to retry."""

    def __init__(self, config: N8nConfig, api: Api, *, pages_max: int = PAGES_MAX) -> None:
        self._config = config
        self._api = api
        self._calls = Calls(api)
        self._pages_max = pages_max
        self._parents: dict[int, Row | None] = {}  # ended ones, and None for those that are gone
        self._saved: bool | None = None  # whether the instance saves successes, as far as is known
        self._asked_at = float("-inf")

    async def look(self, target: Target) -> Look:
        """Read the execution that failed, and all that descends from it; before a call also what its workflow saves."""
        letter = target.letter
        number = mapping.number_of(letter.id)
        try:
            root = None if number is None else await self._root(number, letter)
        except ApiError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
            root = None
        if root is None:
            return Look(at=self._api.platform_now(), standing=Standing.GONE)
        before = target.sent_at is None
        rows, whole = await self._chain(root, target)
        refusal = self._refusal(rows) if before else None
        asks = await self._unsaved(rows[0].workflow_id) if before and refusal is None else None
        unseen = target.sent_at is not None and target.mark is not None and not _new(rows, target.mark)
        standing = _standing(root, rows)
        if unseen and standing is Standing.DEAD and await self._unsaved(letter.workflow_id) is not None:
            standing = Standing.BUSY  # that there is no row proves nothing here
        if standing is Standing.DEAD and not whole:
            standing = Standing.BUSY  # nor does it among so many
        observations = list[DeadLetter]()
        if standing is Standing.RESOLVED:
            ends = (row.run.ended_at for row in rows if row.status == "success")
            ended_at = min((end for end in ends if end is not None), default=self._api.platform_now())
            observations.append(resolve(letter, by=ResolvedBy.MANUAL, at=ended_at))
        return Look(
            at=self._api.platform_now(),
            standing=standing,
            refusal=refusal,
            asks=asks,
            mark=sorted({*(target.mark or ()), *(row.number for row in rows)}),
            efforts=() if target.mark is None else _efforts(rows, target),
            observations=observations,
        )

    async def send(self, letters: Sequence[DeadLetter], *, send_by: float) -> Accepted:
        """Have the newest failure of the chain run again. What fails before the call is written was never sent."""
        [letter] = letters
        try:
            number = mapping.number_of(letter.id)
            root = None if number is None else await self._root(number, letter)
            rows, whole = ([], True) if root is None else await self._chain(root, Target(letter=letter))
        except ApiError as error:
            raise ApiError(
                error.kind,
                endpoint=error.endpoint,
                detail=error.detail,
                status=error.status,
                sent=False,
                retry_after=error.retry_after,
            ) from None
        if root is None or not whole or _standing(root, rows) is not Standing.DEAD or not rows[-1].failed:
            detail = "the execution, or a retry of it, is no longer as it was"
            raise ApiError(ErrorKind.CONFLICT, endpoint="GET /api/v1/executions/{id}", detail=detail, sent=False)
        sent_at = self._api.platform_now()
        try:
            answer = await self._calls.retry(rows[-1].number, send_by=send_by, timeout=self._config.retry_timeout)
        except ApiError as error:
            made = await self._made(root, rows, letter, sent_at) if error.sent and error.kind in _UNANSWERED else None
            if made is None:
                raise
        else:
            made = answer.data.get("id") if isinstance(answer.data, dict) else None
        handle = str(made) if isinstance(made, str | int) and mapping.number_of(str(made)) is not None else None
        return Accepted(handles={} if handle is None else {letter.id: handle})

    async def _made(self, root: Row, before: Sequence[Row], letter: DeadLetter, sent_at: float) -> int | None:
        """The run that a call has made whose answer nobody waited for: it may take hours."""
        mark = [row.number for row in before]
        try:
            rows, _ = await self._chain(root, Target(letter=letter, mark=mark, sent_at=sent_at))
        except ApiError:
            return None
        new = _new(rows, mark)
        ours = len(new) == 1 and new[0].retry_of == mark[-1] and _is_prompt(new[0], sent_at)
        return new[0].number if ours else None

    async def _root(self, number: int, letter: DeadLetter) -> Row | None:
        """The execution that failed first; None where the number is another's by now. Raises ``ApiError``."""
        answer = await self._calls.execution(number, lane=Lane.RETRIES)
        try:
            row = mapping.row(answer.data, numbering=Numbering(), latest=self._calls.latest())
        except BadItem as bad:
            endpoint = "GET /api/v1/executions/{id}"
            raise ApiError(ErrorKind.BAD_PAYLOAD, endpoint=endpoint, detail=str(bad), status=answer.status) from None
        ended_at = row.run.finished_at
        same = ended_at is not None and abs(ended_at - letter.opened_at) <= SAME_END_SECONDS
        return row if row.workflow_id == letter.workflow_id and same else None

    async def _chain(self, root: Row, target: Target) -> tuple[list[Row], bool]:
        """The root and its descendants, by number; after a call, only those that were made since need be among them.

        And whether nothing was left out. What runs is listed apart, and first: it may end meanwhile.
        """
        known, after = {root.number, *(target.mark or ())}, target.sent_at is not None
        floor, lost = max(known) if after else root.number, after and target.handle is None
        rows: dict[int, Row] = {}
        whole = True
        for status in ("running", None):
            cursor: str | None = None
            for _ in range(self._pages_max if lost else PAGES_BEFORE):
                page = await self._calls.executions(
                    lane=Lane.RETRIES, status=status, workflow_id=root.workflow_id, cursor=cursor
                )
                lowest = None
                for item in page.items:
                    with suppress(BadItem):
                        row = mapping.row(item, numbering=Numbering(), latest=self._calls.latest())
                        lowest = row.number
                        if row.workflow_id == root.workflow_id:
                            rows[row.number] = row
                cursor = page.next
                if cursor is None or lowest is None or lowest <= floor:
                    break
            else:
                whole = whole and not lost
        named = mapping.number_of(target.handle or "")
        if named is not None and named not in rows and (made := await self._read(named)) is not None:
            rows[named] = made
        whole = await self._join(rows, known) and whole
        return mapping.chain([*rows.values(), root], root.number, members=known), whole

    async def _join(self, rows: dict[int, Row], known: set[int]) -> bool:
        """Add what retries among the rows descend from, as far as it may be of a chain; whether that was all."""
        oldest, left = min(known), PARENTS_MAX
        waiting = [row.retry_of for row in rows.values() if row.retry_of is not None]
        while waiting:
            number = waiting.pop()
            if number <= oldest or number in rows or number in known:
                continue
            if number not in self._parents:
                if left == 0:
                    return False
                left -= 1
            parent = self._parents[number] if number in self._parents else await self._read(number)
            if parent is None or not parent.is_open:
                while len(self._parents) >= PARENTS_KEPT:
                    del self._parents[next(iter(self._parents))]
                self._parents[number] = parent
            if parent is not None:
                rows[number] = parent
                if parent.retry_of is not None:
                    waiting.append(parent.retry_of)
        return True

    async def _read(self, number: int) -> Row | None:
        """One execution; None if it is gone. Raises ``ApiError``."""
        try:
            answer = await self._calls.execution(number, lane=Lane.RETRIES)
            return mapping.row(answer.data, numbering=Numbering(), latest=self._calls.latest())
        except BadItem:
            return None
        except ApiError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
            return None

    def _refusal(self, rows: Sequence[Row]) -> str | None:
        """Why it must not be retried as it is."""
        root, last = rows[0], rows[-1]
        if root.mode == "manual":
            return "somebody was trying the workflow out, and sees the failure"
        if root.status == "canceled" or not root.failed:
            return f"the execution is {root.status}"
        if last.status == "canceled":
            return "its last retry was stopped"
        return None

    async def _unsaved(self, workflow_id: str) -> str | None:
        """Why a retry of this workflow could not be told from none, if so."""
        habits = await self._habits(workflow_id)
        if habits is None:
            return "its workflow is gone"
        default = self._config.save_successes
        successes = default == "all" if default != "auto" else None
        if habits.saves_successes is None and successes is None:
            successes = await self._saves_by_default()
        if successes is None and habits.saves_successes is None:
            return (
                "whether its workflow saves successes is not known, nor could be whether a retry worked: "
                "save_successes can say it"
            )
        saving = Saving(successes=successes, errors=self._config.save_errors == "all")
        saved, errors = saving.of(habits)
        return None if saved and errors else _UNSAVED.format("failures" if saved else "successes")

    async def _saves_by_default(self) -> bool | None:
        """Whether a success is to be seen of any workflow that leaves it to the instance; asked now and then."""
        now = self._api.platform_now()
        if 0 <= now - self._asked_at < DEFAULT_SECONDS:
            return self._saved
        page = await self._calls.executions(lane=Lane.RETRIES, status="success")
        ids = dict[str, None]()
        for item in page.items:
            with suppress(BadItem):
                row = mapping.row(item, numbering=Numbering())
                if row.status == "success" and row.mode != "manual":
                    ids[row.workflow_id] = None
        self._saved = None
        for workflow_id in list(ids)[:WORKFLOWS_ASKED_MAX]:
            habits = await self._habits(workflow_id)
            if habits is not None and habits.saves_successes is None:
                self._saved = True
                break
        self._asked_at = now
        return self._saved

    async def _habits(self, workflow_id: str) -> Habits | None:
        """How a workflow is set; None where there is none."""
        try:
            answer = await self._calls.workflow(workflow_id, lane=Lane.RETRIES)
        except ApiError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
            return None
        return mapping.habits(answer.data) if isinstance(answer.data, dict) else Habits()


def _standing(root: Row, rows: Sequence[Row]) -> Standing:
    if root.success is not None or any(row.status == "success" for row in rows):
        return Standing.RESOLVED
    return Standing.BUSY if any(row.is_open for row in rows) else Standing.DEAD


def _new(rows: Sequence[Row], mark: Sequence[int]) -> list[Row]:
    known = set(mark)
    return [row for row in rows if row.number not in known]


def _efforts(rows: Sequence[Row], target: Target) -> list[Effort]:
    """The retries that are new since the mark, oldest first.

    Ours is the one whose id the answer named; without an answer, the only one of what we retried, if it began then.
    """
    new = _new(rows, target.mark)
    found = []
    for row in new:
        ours: bool | None
        if target.handle is not None:
            ours = target.handle == str(row.number)
        else:
            ours = True if len(new) == 1 and _is_prompt(row, target.sent_at) else None
        result = row.run.result
        found.append(
            Effort(
                id=str(row.number),
                began_at=row.run.started_at,
                ended_at=row.run.ended_at,
                result=None if row.is_open else result or Result.UNKNOWN,
                ours=ours,
                run_id=row.run.id,
            )
        )
    return found


def _is_prompt(row: Row, sent_at: float | None) -> bool:
    began = row.run.started_at
    return sent_at is not None and began is not None and -SKEW_SECONDS <= began - sent_at <= PROMPT_SECONDS


RETRYING = Retrying(traits=TRAITS, connect=N8nRetries)
