"""Reading one n8n instance: which calls, in which order.

Workflows are listed rarely: a page carries every node of each, twice. What of them decides how executions are read
(whether they are saved, how long a run may take) is kept in a cursor each. Runs are read in every sweep (see ``runs``).
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

from msgspec.structs import replace

from exporter.model import Listing, Observation, Workflow
from exporter.platform import BadItem, Fault, Known, Page, RunKey, selected
from exporter.platforms.n8n import mapping
from exporter.platforms.n8n.calls import Calls
from exporter.platforms.n8n.check import Check
from exporter.platforms.n8n.config import N8nConfig
from exporter.platforms.n8n.mapping import Habits
from exporter.platforms.n8n.reading.habits import Customs
from exporter.platforms.n8n.reading.runs import RunReader
from exporter.wire.api import Api
from exporter.wire.budget import Lane


class N8nClient:
    """One instance's connection (``exporter.platform.Client``)."""

    def __init__(self, config: N8nConfig, api: Api) -> None:
        self._config = config
        self._api = api
        self._calls = Calls(api)
        self._customs = Customs(config, self._calls)
        self._runs = RunReader(config, self._calls, self._customs)

    def sweep(self, stream: str, known: Known, now: float) -> AsyncIterator[Page]:
        """Read ``workflows`` or ``runs`` once."""
        match stream:
            case "workflows":
                return self._sweep_workflows(known, now)
            case "runs":
                return self._runs.sweep(known, now)
        raise ValueError(f"no such stream: {stream}")

    def complete(self, keys: Sequence[RunKey], known: Known, now: float) -> AsyncIterator[Page]:
        """Read exactly these runs."""
        return self._runs.complete(keys, known, now)

    def check(self) -> AsyncGenerator[str, None]:
        """Try the key, each of its scopes, and what this version can do."""
        return Check(self._config, self._calls).lines()

    async def _sweep_workflows(self, known: Known, now: float) -> AsyncGenerator[Page, None]:
        """List the workflows. Cursors: what is to be known of each."""
        self._customs.recall(known)
        before = dict(known.cursors("workflows"))
        saving = self._customs.saving
        held: list[tuple[Workflow, Habits]] = []  # of those that leave to the instance what nobody knows of it
        listed: set[str] = set()
        began: float | None = None
        whole = True
        async with aclosing(self._calls.workflows(lane=Lane.SWEEPS)) as pages:
            async for page in pages:
                began = page.at if began is None else began
                told: list[Observation] = []
                faults: list[Fault] = []
                cursors = dict[str, object]()
                for item in page.items:
                    try:
                        workflow, habits = mapping.workflow(item, at=page.at, saving=saving)
                    except BadItem as bad:
                        faults.append(Fault(kind="bad_item", detail=str(bad)))
                        whole = False
                        continue
                    listed.add(workflow.id)
                    self._customs.learn(workflow.id, habits)
                    if habits.dump() != before.get(workflow.id):
                        cursors[workflow.id] = habits.dump()
                    if not selected(self._config, workflow.id, workflow.name):
                        continue
                    if saving.successes is None and habits.saves_successes is None:
                        held.append((workflow, habits))
                    else:
                        told.append(workflow)
                yield Page(observations=told, faults=faults, cursors=cursors, items=len(page.items))
        if held:
            saving = await self._customs.probed()
            yield Page(observations=[replace(w, uncounted=saving.uncounted(habits)) for w, habits in held])
        if began is None or not whole:  # a workflow that could not be read would look as if it were gone
            return
        watched = frozenset(key for key in listed if selected(self._config, key, self._customs.of(key).name))
        gone = [key for key in before if key and key not in listed]
        self._customs.forget(gone)
        evidence = self._customs.evidence
        yield Page(
            observations=[Listing(at=began, workflow_ids=watched)],
            cursors={**dict.fromkeys(gone), "": evidence},
        )
