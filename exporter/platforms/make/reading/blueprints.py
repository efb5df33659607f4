"""Blueprints of scenarios, read once for each edit, and only of scenarios that have dead letters."""

from exporter.platforms.make.mapping import workflows
from exporter.platforms.make.mapping.workflows import Blueprint
from exporter.platforms.make.reading.calls import get
from exporter.wire.api import Api
from exporter.wire.budget import Lane

KEPT_MAX = 2000


class Blueprints:
    """The blueprints of one source that were read lately."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._kept: dict[str, tuple[str | None, Blueprint]] = {}

    def kept(self, workflow_id: str, edited: str | None) -> Blueprint | None:
        """The blueprint of this edit, if it has been read."""
        of_edit, blueprint = self._kept.get(workflow_id, (None, None))
        return blueprint if of_edit == edited else None

    async def read(self, workflow_id: str, edited: str | None, *, lane: Lane) -> Blueprint:
        """The blueprint of this edit, read if need be. Raises ``ApiError``."""
        found = self.kept(workflow_id, edited)
        if found is None:
            answer = await get(self._api, "/scenarios/{id}/blueprint", lane=lane, ids={"id": workflow_id})
            found = workflows.blueprint(answer.data)
            self._kept[workflow_id] = (edited, found)
            while len(self._kept) > KEPT_MAX:
                del self._kept[next(iter(self._kept))]
        return found
