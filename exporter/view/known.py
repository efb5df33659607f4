"""The picture of the ledger in memory: workflows, open runs, open dead letters, cursors. Never more than what is open.

It is loaded once and then follows the commits in their order, so it never says what is not durable. Clients read it to
decide what to ask for, metrics and the status page to show what is so now.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from msgspec import Struct

from exporter.model import DeadLetter, Queue, Run, State, Usage, Workflow
from exporter.model.fold import WorkflowEntry
from exporter.model.ledger import Committed, Key, Loaded

_NOTHING: Mapping[str, Any] = {}


def unread_stream(stream: str) -> str:
    """Under which name the ledger remembers what of a stream is unread."""
    return f"{stream}:unread"


class Unread(Struct, frozen=True, kw_only=True, gc=False):
    """A workflow that could not be read: since when (platform's clock), and why at first."""

    since: float
    kind: str
    detail: str

    @classmethod
    def load(cls, cursor: Any) -> "Unread":
        since, kind, detail = cursor
        return cls(since=since, kind=kind, detail=detail)

    def dump(self) -> list[Any]:
        return [self.since, self.kind, self.detail]


class SourceWorld:
    """What is known of one source; what its client sees of it is ``exporter.platform.Known``."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.first_sweep_at: float | None = None
        self.read_until = 0.0  # the newest end a poll has read
        self.entries: dict[str, WorkflowEntry] = {}
        self.workflows: dict[str, Workflow] = {}
        self.open_runs: dict[str, Run] = {}
        self.dead_letters: dict[str, DeadLetter] = {}
        self.queues: dict[str, Queue] = {}
        self.usage: dict[str, Usage] = {}
        self._cursors: dict[str, dict[str, Any]] = {}
        self._runs_of: dict[str, dict[str, Run]] = {}
        self._letters_of: dict[str, dict[str, DeadLetter]] = {}

    def cursor(self, stream: str, key: str = "") -> Any:
        return self._cursors.get(stream, _NOTHING).get(key)

    def cursors(self, stream: str) -> Mapping[str, Any]:
        return self._cursors.get(stream, _NOTHING)

    def unread(self, stream: str) -> dict[str, Unread]:
        """The workflows of which a stream could not be read, the longest unread first."""
        found = [(key, Unread.load(value)) for key, value in self.cursors(unread_stream(stream)).items()]
        return dict(sorted(found, key=lambda item: item[1].since))

    def runs_of(self, workflow_id: str) -> list[Run]:
        """The open runs of one workflow."""
        return list(self._runs_of.get(workflow_id, {}).values())

    def dead_letters_of(self, workflow_id: str) -> list[DeadLetter]:
        """The open dead letters of one workflow."""
        return list(self._letters_of.get(workflow_id, {}).values())

    def put_workflow(self, entry: WorkflowEntry) -> None:
        self.entries[entry.workflow.id] = entry
        if entry.gone_at is None:
            self.workflows[entry.workflow.id] = entry.workflow
        else:
            self.workflows.pop(entry.workflow.id, None)
            self.queues.pop(entry.workflow.id, None)

    def put_run(self, run: Run) -> set[str]:
        """Returns the workflows whose open runs changed: usually its own, but it may have been taken for another's."""
        return _put(self.open_runs, self._runs_of, run, is_open=run.state is not State.FINISHED)

    def put_dead_letter(self, letter: DeadLetter) -> set[str]:
        """Returns the workflows whose open dead letters changed."""
        return _put(self.dead_letters, self._letters_of, letter, is_open=letter.is_open)

    def put_cursors(self, stream: str, cursors: Mapping[str, Any]) -> None:
        known = self._cursors.setdefault(stream, {})
        for key, value in cursors.items():
            if value is None:
                known.pop(key, None)
            else:
                known[key] = value


Item = TypeVar("Item", Run, DeadLetter)


def _put(
    everything: dict[str, Item], by_workflow: dict[str, dict[str, Item]], item: Item, *, is_open: bool
) -> set[str]:
    workflows = {item.workflow_id}
    before = everything.pop(item.id, None)
    if before is not None:
        workflows.add(before.workflow_id)
        of_workflow = by_workflow[before.workflow_id]
        del of_workflow[item.id]
        if not of_workflow:
            del by_workflow[before.workflow_id]
    if is_open:
        everything[item.id] = item
        by_workflow.setdefault(item.workflow_id, {})[item.id] = item
    return workflows


class World:
    """All sources."""

    def __init__(self, sources: list[str]) -> None:
        self.sources = {source: SourceWorld(source) for source in sources}

    def load(self, loaded: Loaded) -> None:
        """Start from what the ledger remembers; sources no longer configured are left out."""
        for source, first in loaded.first_sweeps.items():
            if source in self.sources:
                self.sources[source].first_sweep_at = first
        for source, read in loaded.read_until.items():
            if source in self.sources:
                self.sources[source].read_until = read
        for (source, _), workflow in loaded.workflows.items():
            if source in self.sources:
                self.sources[source].put_workflow(workflow)
        for (source, _), run in loaded.open_runs.items():
            if source in self.sources:
                self.sources[source].put_run(run.run)
        for (source, _), letter in loaded.open_dead_letters.items():
            if source in self.sources:
                self.sources[source].put_dead_letter(letter.dead_letter)
        for (source, stream), cursors in loaded.cursors.items():
            if source in self.sources:
                self.sources[source].put_cursors(stream, cursors)

    def apply(self, committed: Committed) -> set[Key]:
        """Follow one commit; returns the workflows (source, id) whose picture may have changed."""
        touched: set[Key] = set()
        for source, first in committed.first_sweeps.items():
            self.sources[source].first_sweep_at = first
        for source, read in committed.read_until.items():
            self.sources[source].read_until = read
        for (source, workflow_id), workflow in committed.workflows.items():
            self.sources[source].put_workflow(workflow)
            touched.add((source, workflow_id))
        for (source, _), run in committed.runs.items():
            touched |= {(source, workflow_id) for workflow_id in self.sources[source].put_run(run.run)}
        for (source, _), letter in committed.dead_letters.items():
            changed = self.sources[source].put_dead_letter(letter.dead_letter)
            touched |= {(source, workflow_id) for workflow_id in changed}
        for outcome in committed.outcomes:
            batch = outcome.batch
            world = self.sources[batch.source]
            world.put_cursors(batch.stream, batch.cursors)
            for item in batch.observations:
                match item:
                    case Queue():
                        world.queues[item.workflow_id] = item
                        touched.add((batch.source, item.workflow_id))
                    case Usage():
                        world.usage[item.kind] = item
                    case _:
                        pass
        return touched
