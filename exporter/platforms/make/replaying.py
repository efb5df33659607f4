"""Replaying runs of Make that were not stored: the one retry there is for them.

A replay starts the scenario as it is today, from its trigger, with what triggered the run then. Make answers at once
(202, no body) and starts it some time later; one id a call is used, whatever is sent. The new run names the one it
repeats, so what became of a call is read from the scenario's log: the one repetition begun since, by us or by nobody
named, is ours. A repetition that failed leaves the dead letter where it was: its work is still that of the first run.

Of a log only so much is read (``PAGES_MAX`` from each end): what is older, the sweeps have read, and they close the
dead letter where somebody's repetition did the work. A run that is still going on is in no log yet.
"""

from collections.abc import Sequence

from msgspec import structs

from exporter.model import DeadLetter, Error, ResolvedBy
from exporter.platform import BadItem
from exporter.platform.retrying import Accepted, Look, Standing, Target
from exporter.platforms.make.config import MakeConfig
from exporter.platforms.make.mapping import as_object, replays, runs, workflows
from exporter.platforms.make.mapping import dead_letters as letters
from exporter.platforms.make.mapping.dead_letters import SKEW_SECONDS
from exporter.platforms.make.reading.calls import ROOT, bad_payload, get, rows
from exporter.platforms.make.reading.scenarios import vanished
from exporter.wire.api import Api
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind

LANE = Lane.RETRIES
REPLAY, SCENARIO = "/scenarios/{id}/replay", "/scenarios/{id}"
LOG, ROW = "/scenarios/{id}/logs", "/scenarios/{id}/logs/{executionId}"
CAUSE = "/scenarios/{id}/executions/{executionId}"
ROWS_PER_PAGE = 100
PAGES_MAX = 5
#: Repetitions that somebody started so long before a call (seconds) may end after it.
REACH_SECONDS = 3600.0


class MakeReplays:
    """One source's way to replay."""

    def __init__(self, config: MakeConfig, api: Api) -> None:
        self._on = config.replay
        self._api = api
        self._user: str | None = None

    async def look(self, target: Target) -> Look:
        """Read the run's own row, what repeated it, and before a call also its scenario."""
        letter = target.letter
        row = await self._row(letter)
        log = await self._repetitions(target)
        found = replays.efforts([*log, row], letter.id)
        new = found
        if target.mark is not None:
            user = await self._user_of(log, letter)
            new = replays.efforts([*log, row], letter.id, before=target.mark, sent_at=target.sent_at, user=user)
        at = self._api.platform_now()
        standing, refusal = replays.standing(found), None
        if standing is not Standing.RESOLVED and row is None:
            standing = Standing.GONE
        if standing is Standing.DEAD and target.sent_at is None:
            refusal = await self._refusal(letter, row)
        return Look(
            at=at,
            standing=standing,
            refusal=refusal,
            mark=replays.mark(found),
            efforts=() if target.mark is None else new,
            observations=[await self._seen(letter, row, standing, at=at, done_at=replays.done_at(found))],
        )

    async def send(self, letter: DeadLetter, *, send_by: float) -> Accepted:
        """Have one run replayed. Nothing in the answer names what will come of it."""
        ids = {"id": letter.workflow_id}
        await self._api.post(ROOT + REPLAY, lane=LANE, json={"executionIds": [letter.id]}, ids=ids, send_by=send_by)
        return Accepted(handles={letter.id: letter.id})

    # Reading

    async def _row(self, letter: DeadLetter) -> object:
        """The run as the log has it, None once it is no longer there."""
        ids = {"id": letter.workflow_id, "executionId": letter.id}
        try:
            answer = await get(self._api, ROW, lane=LANE, ids=ids)
        except ApiError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
            return None
        try:
            body = as_object(answer.data, "the answer")
            row = as_object(body.get("scenarioLog", body.get("scenarioLogs")), "a log row")
        except BadItem as bad:
            raise bad_payload(ROW, str(bad), answer.status) from None
        said = replays.repeatable(row)
        if said is None or said[0] != letter.id:
            raise bad_payload(ROW, "the answer is about another run, or does not say which", answer.status)
        return row

    async def _repetitions(self, target: Target) -> list[object]:
        """The rows that may repeat the run: since the call, or before one since the run failed.

        After a call from there on, since ours began soon; and in either case from the newest row back.
        """
        letter, found = target.letter, list[object]()
        since = letter.opened_at
        if target.sent_at is not None:
            since = max(since, target.sent_at - REACH_SECONDS)
            found, whole = await self._log(letter, max(since, target.sent_at - SKEW_SECONDS), newest=False)
            if whole and since >= target.sent_at - SKEW_SECONDS:
                return found
        newest, _ = await self._log(letter, since, newest=True)
        return found + newest

    async def _log(self, letter: DeadLetter, since: float, *, newest: bool) -> tuple[list[object], bool]:
        """The scenario's log since then, from one end, and whether that is all. A scenario that is gone has none."""
        found, ids = list[object](), {"id": letter.workflow_id}
        start, until = round(since * 1000), None
        for _ in range(PAGES_MAX):
            query: list[tuple[str, str | int]] = [("from", start), ("pg[sortDir]", "desc" if newest else "asc")]
            query += [] if until is None else [("to", until)]
            try:
                page = await rows(self._api, LOG, "scenarioLogs", lane=LANE, limit=ROWS_PER_PAGE, query=query, ids=ids)
            except ApiError as error:
                if error.kind is not ErrorKind.NOT_FOUND:
                    raise
                return found, True
            found += page.rows
            stamps = [at for row in page.rows if (at := runs.stamp(row)) is not None]
            if not page.full or not stamps:
                return found, True
            if newest:
                until = min(stamps) if until is None or min(stamps) < until else until - 1
            else:
                start = max(max(stamps), start + 1)
        return found, False

    async def _user_of(self, log: Sequence[object], letter: DeadLetter) -> str | None:
        """Whose credential this is, asked once and only where repetitions name their authors."""
        if self._user is None and replays.authored(log, letter.id):
            try:
                self._user = letters.user_id((await get(self._api, "/users/me", lane=LANE)).data)
            except ApiError as error:
                if error.kind not in (ErrorKind.NOT_FOUND, ErrorKind.BAD_PAYLOAD, ErrorKind.REQUEST, ErrorKind.AUTH):
                    raise
        return self._user

    async def _refusal(self, letter: DeadLetter, row: object) -> str | None:
        """Why it must not be replayed as things are."""
        if not self._on:
            return "replay is off for this source"
        said = replays.repeatable(row)
        if said is None or not said[1].replayable:
            return "Make no longer says that the run can be replayed"
        try:
            answer = await get(self._api, SCENARIO, lane=LANE, ids={"id": letter.workflow_id})
        except ApiError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
            return "the scenario is gone"
        try:
            found = as_object(answer.data, "the answer").get("scenario")
            scenario = workflows.scenario(found, at=answer.at, teams={})
        except BadItem as bad:
            raise bad_payload(SCENARIO, str(bad), answer.status) from None
        return replays.refusal(scenario)

    async def _seen(
        self, letter: DeadLetter, row: object, standing: Standing, *, at: float, done_at: float | None
    ) -> DeadLetter:
        """The dead letter as it is now."""
        seen = structs.replace(letter, reruns=True)
        if standing is Standing.RESOLVED:
            return letters.resolve(seen, at=at if done_at is None else done_at, by=ResolvedBy.MANUAL)
        if standing is Standing.GONE:
            return letters.resolve(seen, at=at, by=vanished(self._api, letter, at))
        return seen if seen.error is not None else structs.replace(seen, error=await self._cause(letter, row))

    async def _cause(self, letter: DeadLetter, row: object) -> Error | None:
        """Why the run failed, None where the platform does not say."""
        error = runs.row_error(row)
        if error is not None:
            return error
        try:
            ids = {"id": letter.workflow_id, "executionId": letter.id}
            return runs.cause((await get(self._api, CAUSE, lane=LANE, ids=ids)).data)
        except BadItem:
            return None
        except ApiError as failure:
            if failure.kind not in (ErrorKind.NOT_FOUND, ErrorKind.BAD_PAYLOAD, ErrorKind.REQUEST):
                raise
            return None
