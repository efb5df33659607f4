"""What is known of the instance's customs: how each workflow is set, and whether successes are saved at all.

What is not saved is deleted when it ends. A workflow says in its settings whether its executions are saved; where it
does not, the instance's own default holds, which the API does not tell. It shows: in successes of such workflows that
are listed, and in runs of theirs that were seen running and are not there any more. Whichever has the higher number
says how it is now. Until either was seen nobody knows, and what nobody knows is not counted as 0.
"""

from collections.abc import Iterable
from contextlib import suppress

from exporter.platform import BadItem, Known
from exporter.platforms.n8n import mapping
from exporter.platforms.n8n.calls import Calls, stops_sweep
from exporter.platforms.n8n.config import N8nConfig
from exporter.platforms.n8n.mapping import NO_HABITS, Habits, Numbering, Row, Saving
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError


class Customs:
    """The settings of an instance's workflows, and what they leave open."""

    def __init__(self, config: N8nConfig, calls: Calls) -> None:
        self._config = config
        self._calls = calls
        self._habits: dict[str, Habits] = {}
        self._saved = -1  # the highest number of a success that the instance's default saved
        self._vanished = -1  # and of a run that left nothing
        self._recalled = False

    def recall(self, known: Known) -> None:
        """Take up what the ledger remembers; once."""
        if self._recalled:
            return
        self._recalled = True
        for key, value in known.cursors("workflows").items():
            if key:
                self._habits.setdefault(key, Habits.load(value))
        for cursor in (known.cursor("workflows"), (known.cursor("runs") or {}).get("evidence")):
            if cursor is not None:
                self._saved, self._vanished = max(self._saved, cursor[0]), max(self._vanished, cursor[1])

    @property
    def evidence(self) -> list[int]:
        """To be remembered."""
        return [self._saved, self._vanished]

    @property
    def saving(self) -> Saving:
        """What the instance saves where a workflow does not say."""
        successes: bool | None = None if self._saved == self._vanished else self._saved > self._vanished
        if self._config.save_successes != "auto":
            successes = self._config.save_successes == "all"
        return Saving(successes=successes, errors=self._config.save_errors == "all")

    def of(self, workflow_id: str) -> Habits:
        return self._habits.get(workflow_id, NO_HABITS)

    def knows(self, workflow_id: str) -> bool:
        return workflow_id in self._habits

    def learn(self, workflow_id: str, habits: Habits) -> None:
        self._habits[workflow_id] = habits

    def forget(self, workflow_ids: Iterable[str]) -> None:
        for workflow_id in workflow_ids:
            self._habits.pop(workflow_id, None)

    def saves_successes(self, workflow_id: str) -> bool | None:
        """Whether a run of this workflow that succeeds can be read afterwards; None: nobody knows."""
        return self.saving.of(self.of(workflow_id))[0]

    def met(self, row: Row) -> None:
        """A listed execution: a success of a workflow that leaves it to the instance was saved by it."""
        if row.status == "success" and row.mode != "manual" and self._undecided(row.workflow_id):
            self._saved = max(self._saved, row.number)

    def missed(self, workflow_id: str, number: int) -> None:
        """A run that was seen running is not there any more. A failure that is not saved leaves as little."""
        if self._undecided(workflow_id) and self.of(workflow_id).saves_errors is not False:
            self._vanished = max(self._vanished, number)

    async def probed(self) -> Saving:
        """What the instance saves, after a look at its newest successes: nothing has shown it so far."""
        try:
            page = await self._calls.executions(lane=Lane.SWEEPS, status="success")
        except ApiError as error:
            if stops_sweep(error):
                raise
            return self.saving
        for item in page.items:
            with suppress(BadItem):
                self.met(mapping.row(item, numbering=Numbering()))
        return self.saving

    def restarted(self) -> None:
        """The database is another: what was seen of the old one says nothing."""
        self._saved = self._vanished = -1

    def _undecided(self, workflow_id: str) -> bool:
        return self.knows(workflow_id) and self.of(workflow_id).saves_successes is None
