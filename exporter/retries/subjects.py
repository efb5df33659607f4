"""From the pictures in memory to everything a decision depends on. Pure."""

from collections.abc import Iterator, Mapping

from exporter.model import DeadLetter
from exporter.model.decision import Subject, beside, reaches
from exporter.model.retries import Override, Scope
from exporter.retries.book import RetryBook
from exporter.source import Source


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
    pace_at, approved, holding = book.pace_at(name, now), book.approved_groups(name, now), book.holding(now)
    shared = [o for o in holding if o.scope is not Scope.ROOT and o.source in ("", name)]
    by_root: dict[str, list[Override]] = {}
    for override in holding:
        if override.scope is Scope.ROOT and override.source == name:
            by_root.setdefault(override.key, []).append(override)
    heads: dict[str, DeadLetter] = {}
    for letter in sorted(known.dead_letters.values(), key=lambda letter: (letter.opened_at, letter.id)):
        workflow = known.workflows.get(letter.workflow_id)
        ordered = workflow is not None and workflow.ordered
        # what only a rerun can save stops nothing, and nothing waits for it
        head = letter if letter.reruns else heads.setdefault(letter.workflow_id, letter)
        root = book.root_of(name, letter)
        subject = Subject(
            source=name,
            platform=source.platform.name,
            letter=letter,
            root=root,
            traits=traits,
            workflow=workflow,
            labels=source.labels.of(letter.workflow_id, None if workflow is None else workflow.name),
            history=book.history(name, root),
            overrides=[o for o in shared if reaches(o, source=name, workflow=letter.workflow_id, root=root)]
            + by_root.get(root, []),
            ahead=head.id if ordered and head is not letter else None,
            pace_at=pace_at,
            approved_groups=approved,
            looked=None if looked is None else looked.get(letter.id),
        )
        yield beside(subject, open_retries)
