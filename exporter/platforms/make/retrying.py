"""Retrying Make's dead letters.

A retry resumes the stored execution at the module that failed, with the blueprint frozen then. Make answers at once and
only puts it in a queue, so an answer proves nothing: what a retry did is read from the dead letter and its log, one row
an attempt with an execution id of its own. One that breaks at a later module resolves the dead letter and stores
another, whose run is that execution.

A run that was not stored can only be replayed, which is another call (``replaying``).

The API does not tell that a retry is queued or running: until its row shows, a dead letter looks as it did before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from msgspec import structs

from exporter.model import DeadLetter, Error, ResolvedBy
from exporter.model.retries import Traits
from exporter.platform import BadItem
from exporter.platform.retrying import Accepted, Look, Mark, Retrying, Standing, Target
from exporter.platforms.make.config import MakeConfig
from exporter.platforms.make.mapping import as_object, workflows
from exporter.platforms.make.mapping import dead_letters as letters
from exporter.platforms.make.mapping.dead_letters import named
from exporter.platforms.make.mapping.replays import is_replay
from exporter.platforms.make.reading.calls import ROOT, bad_payload, get, rows
from exporter.platforms.make.reading.scenarios import Blueprints, vanished
from exporter.platforms.make.replaying import MakeReplays
from exporter.wire.api import Answer, Api
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind

LANE = Lane.RETRIES
ITEM, SCENARIO = "/dlqs/{id}", "/scenarios/{id}"
#: Answers that leave a question open which is not worth failing for.
UNANSWERED = frozenset({ErrorKind.NOT_FOUND, ErrorKind.BAD_PAYLOAD, ErrorKind.REQUEST})

TRAITS = Traits(
    effect="resume",
    handle="same_id",
    # Nothing says that a dead letter whose retry is queued or running refuses another one.
    # Retries wait in a queue of unknown length, at most three of a scenario run at once and none beside the scenario
    # itself; and one user's accepted retry never ran. So however long nothing happens, nothing is proven.
    absence=None,
    serial=False,  # each retry shows in the log of its own dead letter
    bulk_max=25,
)


class MakeRetries:
    """One source's way to retry."""

    def __init__(self, config: MakeConfig, api: Api) -> None:
        self._api = api
        self._blueprints = Blueprints(api)
        self._replays = MakeReplays(config, api)
        self._user: str | None = None

    async def look(self, target: Target) -> Look:
        """Read the dead letter and its log; before a call also its scenario; and its cause where nobody knows it."""
        letter = target.letter
        if is_replay(letter):
            return await self._replays.look(target)
        try:
            answer = await get(self._api, ITEM, lane=LANE, ids={"id": letter.id})
        except ApiError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
            at = self._api.platform_now()
            closed = letters.resolve(letter, at=at, by=vanished(self._api, letter, at))
            return Look(at=at, standing=Standing.GONE, observations=[closed])
        try:
            found = letters.looked(answer.data, known=letter, at=answer.at)
        except BadItem as bad:
            raise bad_payload(ITEM, str(bad), answer.status) from None
        attempts = await self._attempts(letter.id)
        new = letters.efforts(
            attempts, before=target.mark, sent_at=target.sent_at, user=await self._user_of(attempts, target.mark)
        )
        look = Look(
            at=answer.at,
            standing=letters.standing(found, new, target.mark),
            native=found.native,
            mark=letters.mark(attempts, tries=found.letter.tries),
            efforts=() if target.mark is None else new,
        )
        if look.standing is Standing.GONE:
            return replace(look, observations=[letters.resolve(found.letter, at=answer.at, by=ResolvedBy.MANUAL)])
        seen, edited = found.letter, None
        if look.standing is Standing.DEAD and target.sent_at is None:
            fixed = target.fixed.get("edited") if isinstance(target.fixed, Mapping) else None
            edited, refusal = await self._scenario(letter, fixed)
            look = replace(look, refusal=refusal)
        if seen.error is None:
            seen = structs.replace(seen, error=await self._cause(seen, edited))
        if found.resolved:
            at, by = letters.resolution(attempts, latest=self._api.latest()) or (answer.at, ResolvedBy.MANUAL)
            seen = letters.resolve(seen, at=at, by=by)
        return replace(look, observations=[seen])

    async def send(self, letters: Sequence[DeadLetter], *, send_by: float) -> Accepted:
        """Have these put in the queue, each named by its id; a run that can only be replayed comes alone."""
        if any(is_replay(letter) for letter in letters):
            [letter] = letters
            return await self._replays.send(letter, send_by=send_by)
        ids = [letter.id for letter in letters]
        if len(ids) == 1:
            answer = await self._post("/dlqs/{id}/retry", {}, send_by=send_by, ids={"id": ids[0]})
        else:
            [workflow_id] = {letter.workflow_id for letter in letters}
            answer = await self._post("/dlqs/retry", {"ids": ids}, send_by=send_by, query=[("scenarioId", workflow_id)])
        taken = named(answer.data)
        return Accepted(handles={letter_id: letter_id for letter_id in ids if letter_id in taken})

    # Calls

    async def _post(
        self,
        endpoint: str,
        body: Mapping[str, object],
        *,
        send_by: float,
        ids: Mapping[str, str] | None = None,
        query: Sequence[tuple[str, str]] = (),
    ) -> Answer:
        return await self._api.post(ROOT + endpoint, lane=LANE, json=body, ids=ids, params=query, send_by=send_by)

    async def _attempts(self, letter_id: str) -> Sequence[object]:
        """The newest attempts to resolve it: as many as the platform lists by default, as the sweep reads them."""
        try:
            return (await rows(self._api, f"{ITEM}/logs", "dlqLogs", lane=LANE, ids={"id": letter_id})).rows
        except ApiError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
            return ()

    async def _user_of(self, attempts: Sequence[object], before: Mark) -> str | None:
        """Whose credential this is, asked once and only where attempts name their authors."""
        if self._user is None and before is not None and letters.authored(attempts):
            try:
                self._user = letters.user_id((await get(self._api, "/users/me", lane=LANE)).data)
            except ApiError as error:
                if error.kind not in UNANSWERED | {ErrorKind.AUTH}:
                    raise
        return self._user

    async def _scenario(self, letter: DeadLetter, fixed: str | None) -> tuple[str | None, str | None]:
        """When the scenario was last edited, and why that or something else about it forbids a retry."""
        try:
            answer = await get(self._api, SCENARIO, lane=LANE, ids={"id": letter.workflow_id})
        except ApiError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
            return None, "the scenario is gone"
        try:
            row = as_object(answer.data, "the answer").get("scenario")
            scenario = workflows.scenario(row, at=answer.at, teams={})
        except BadItem as bad:
            raise bad_payload(SCENARIO, str(bad), answer.status) from None
        return scenario.edited, letters.refusal(scenario, letter, fixed=fixed)

    async def _cause(self, letter: DeadLetter, edited: str | None) -> Error | None:
        """Why it failed, None where the platform does not say: the sweep, which knows its reason, may say more."""
        try:
            bundle = (await get(self._api, f"{ITEM}/bundle", lane=LANE, ids={"id": letter.id})).data
        except ApiError as error:
            if error.kind not in UNANSWERED:
                raise
            return None
        found = letters.error(bundle, reason=None, modules=await self._modules(letter, edited))
        return None if found == Error() else found

    async def _modules(self, letter: DeadLetter, edited: str | None) -> Mapping[str, str]:
        """The names of the modules it ran with; without them the step that failed stays unnamed."""
        try:
            return await self._blueprints.modules_of(letter, edited, lane=LANE)
        except ApiError as error:
            if error.kind not in UNANSWERED:
                raise
            return {}


RETRYING = Retrying(traits=TRAITS, connect=MakeRetries)
