"""Which scenarios a source watches, when all that is at hand is an id. Names decide too, so they are remembered."""

from exporter.platform import Known, selected
from exporter.platforms.make.config import MakeConfig
from exporter.platforms.make.mapping import BadItem
from exporter.platforms.make.mapping.workflows import scenario
from exporter.platforms.make.reading.calls import get
from exporter.wire.api import Api, ApiError, ErrorKind
from exporter.wire.budget import Lane


class Watch:
    """The scenarios of one source that its config includes and does not exclude."""

    def __init__(self, config: MakeConfig, api: Api) -> None:
        self._config = config
        self._api = api
        #: Of everything listed last, watched or not.
        self.names: dict[str, str | None] = {}

    def counted_from(self, known: Known, now: float) -> float:
        """Runs that ended before it do not count: the first sweep ever, or earlier where a backfill is configured."""
        first = now if known.first_sweep_at is None else known.first_sweep_at
        return first - self._config.backfill_seconds

    def watches(self, workflow_id: str, known: Known) -> bool | None:
        """Whether it is watched; None if that depends on a name nobody has read yet."""
        if not self._config.include and not self._config.exclude:
            return True
        workflow = known.workflows.get(workflow_id)
        if workflow_id in self.names:
            name = self.names[workflow_id]
        elif workflow is not None and workflow.at > 0:
            name = workflow.name
        else:
            return None
        return selected(self._config, workflow_id, name)

    async def find_out(self, workflow_id: str, known: Known) -> bool:
        """The same, reading the name where nobody has. A scenario that is gone has none. Raises ``ApiError``."""
        watched = self.watches(workflow_id, known)
        if watched is not None:
            return watched
        name = None
        try:
            answer = await get(self._api, "/scenarios/{id}", lane=Lane.SWEEPS, ids={"id": workflow_id})
            row = answer.data.get("scenario") if isinstance(answer.data, dict) else None
            name = scenario(row, at=answer.at, teams={}).workflow.name
        except BadItem:
            pass
        except ApiError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
        self.names[workflow_id] = name
        return selected(self._config, workflow_id, name)
