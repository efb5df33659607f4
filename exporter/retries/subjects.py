"""From the pictures in memory to everything a decision depends on. Pure."""

from collections.abc import Iterator, Mapping

from exporter.model import DeadLetter
from exporter.model.policy import Subject
from exporter.model.retries import Override, Retry, RetryState, Scope
from exporter.retries.book import RetryBook
from exporter.source import Source

#: States in which nobody knows what a call has done: nothing near it is retried meanwhile.
_DOUBTFUL = (RetryState.IN_DOUBT, RetryState.HELD)


def subjects(
    book: RetryBook,
    source: Source,
    *,
    now: float,
    looked: Mapping[str, tuple[float, str]] | None = None,
) -> Iterator[Subject]:
    """Every open dead letter of a source with all that deciding about it depends on, oldest first.

    ``looked`` says of dead letters whose last preflight refused until when that holds, and why.
    """
    name, known, retrying = source.name, source.known, source.platform.retrying
    traits = None if retrying is None else retrying.traits
    open_retries = book.open_of(name)
    in_flight = sum(1 for retry in open_retries if retry.in_flight)
    doubtful = {(retry.policy, retry.group): retry for retry in open_retries if retry.state in _DOUBTFUL}
    pace_at, approved, holding = (
        book.pace_at(name, now),
        book.approved_groups(name, now),
        book.holding(now),
    )
    shared = [o for o in holding if o.scope is not Scope.ROOT and o.source in ("", name)]
    by_root: dict[str, list[Override]] = {}
    for override in holding:
        if override.scope is Scope.ROOT and override.source == name:
            by_root.setdefault(override.key, []).append(override)
    heads: dict[str, DeadLetter] = {}
    for letter in sorted(known.dead_letters.values(), key=lambda letter: (letter.opened_at, letter.id)):
        workflow = known.workflows.get(letter.workflow_id)
        ordered = workflow is not None and workflow.ordered
        head = heads.setdefault(letter.workflow_id, letter)
        root = book.root_of(name, letter)
        alone = ordered or traits is None or traits.serial
        yield Subject(
            source=name,
            platform=source.platform.name,
            letter=letter,
            root=root,
            traits=traits,
            workflow=workflow,
            labels=source.labels,
            history=book.history(name, root),
            overrides=[o for o in shared if _reaches(o, letter)] + by_root.get(root, []),
            ahead=head.id if ordered and head is not letter else None,
            neighbour=_neighbour(open_retries, letter, root, alone=alone),
            doubtful=doubtful,
            in_flight=in_flight,
            pace_at=pace_at,
            approved_groups=approved,
            looked=None if looked is None else looked.get(letter.id),
        )


def _reaches(override: Override, letter: DeadLetter) -> bool:
    """Whether it speaks of this dead letter, as far as that is known before its policy is."""
    return override.scope is not Scope.WORKFLOW or override.key == letter.workflow_id


def _neighbour(open_retries: list[Retry], letter: DeadLetter, root: str, *, alone: bool) -> Retry | None:
    """An open retry of the same workflow, of another root, that has to end first."""
    for retry in open_retries:
        if retry.workflow_id == letter.workflow_id and retry.root != root and (alone or retry.state in _DOUBTFUL):
            return retry
    return None
