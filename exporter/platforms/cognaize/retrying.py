"""Retrying Cognaize's dead letters: restarting the step that failed.

The call is synchronous: the step is set from FAILED to STARTED, then its delegate is called, then comes the answer. So
it may be slow, or an error after the step was restarted. A process counts no attempts; the time of its last update is
all that tells a restart, and a step that fails again within two looks is seen by that alone.
"""

from collections.abc import Sequence
from typing import Any

from exporter.model import DeadLetter
from exporter.model.retries import Traits
from exporter.platform import BadItem
from exporter.platform.retrying import Accepted, Look, Retrying, Standing, Target
from exporter.platforms.cognaize import mapping
from exporter.platforms.cognaize.calls import GONE_STATUSES, PROCESS
from exporter.platforms.cognaize.config import CognaizeConfig
from exporter.wire.api import Api
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind

RESTART = "/api/v1/processes/restart-failed-step"

TRAITS = Traits(
    effect="resume",
    handle="same_id",
    # A step that is FAILED since the same moment has not been restarted, but a call that is in doubt may still be under
    # way, in a gateway or a queue nobody documents. The documents are too thin to set it a limit: until somebody has
    # probed one, a person decides. It costs a click where people approve retries anyway.
    absence=None,
    serial=False,  # each restart shows in its own process
    bulk_max=1,
)


class CognaizeRetries:
    """One source's way to retry."""

    def __init__(self, config: CognaizeConfig, api: Api) -> None:
        self._api = api

    async def look(self, target: Target) -> Look:
        """Read the process. One that is missing is told to be gone; its sweeps, that know for how long, close it."""
        letter = target.letter
        try:
            at, found = await self._read(letter, sent_at=target.sent_at, accepted=target.handle is not None)
        except ApiError as error:
            if error.status not in GONE_STATUSES:
                raise
            return Look(at=self._api.platform_now(), standing=Standing.GONE)
        effort = None if target.mark is None else found.effort
        return Look(
            at=at,
            standing=found.standing,
            mark=found.reading.run.attempt,
            efforts=() if effort is None else (effort,),
            observations=(found.reading.run, *found.reading.dead_letters),
        )

    async def send(self, letters: Sequence[DeadLetter], *, send_by: float) -> Accepted:
        """Restart the step, with the params it has: they are read right before, and kept nowhere.

        What fails before the call is written was never sent, a step that turns out not to be FAILED included.
        """
        [letter] = letters
        step_id = mapping.step_id(letter)
        body = {"processStepId": step_id, "params": await self._params(letter)}
        answer = await self._api.post(RESTART, lane=Lane.RETRIES, json=body, send_by=send_by)
        try:
            named = mapping.restarted(answer.data)
        except BadItem:
            named = None
        return Accepted(handles={letter.id: step_id} if named == step_id else {})

    async def _params(self, letter: DeadLetter) -> Any:
        try:
            _, found = await self._read(letter, sent_at=None, accepted=False)
        except ApiError as error:
            raise error.unsent() from None
        if found.standing is not Standing.DEAD:
            detail = "the step is no longer FAILED as it was"
            raise ApiError(ErrorKind.CONFLICT, endpoint=f"GET {PROCESS}", detail=detail, sent=False)
        return found.params if isinstance(found.params, dict) else {}

    async def _read(
        self, letter: DeadLetter, *, sent_at: float | None, accepted: bool
    ) -> tuple[float, mapping.Restart]:
        answer = await self._api.get(PROCESS, lane=Lane.RETRIES, ids={"id": letter.run_id or ""})
        try:
            process = mapping.unwrap(answer.data)
            return answer.at, mapping.restart(
                process, letter, sent_at=sent_at, accepted=accepted, latest=self._api.latest()
            )
        except BadItem as bad:
            endpoint = f"GET {PROCESS}"
            raise ApiError(ErrorKind.BAD_PAYLOAD, endpoint=endpoint, detail=str(bad), status=answer.status) from None


RETRYING = Retrying(traits=TRAITS, connect=CognaizeRetries, root=mapping.root)
