"""What one sweep read and what it could not, as its pages come in; and which workflows are unread, since when. Pure.

A fault of a workflow means that nothing says it was read: it stays unread, with its own age, until a later sweep reads
it. A fault of one item costs that item, as long as most of what was looked at could be used.
"""

from collections.abc import Collection, Mapping

from exporter.model.redact import redact
from exporter.platform import BAD_ITEM, Fault, Page
from exporter.view.known import Unread

#: Faults kept of one sweep; beyond it they are only counted.
FAULTS_KEPT_MAX = 1000
TRUNCATED = "truncated"


class Reading:
    """One sweep's account."""

    def __init__(self) -> None:
        self.kept: list[Fault] = []
        self.count = 0
        self.kinds: dict[str, Fault] = {}  # the first fault of each kind
        self.last: Fault | None = None
        self.more = False  # the budget did not reach for all there was to read
        self._items = self._bad_items = 0
        self._refused: dict[str, Fault] = {}
        self._touched: set[str] = set()
        self._truncated = False

    def take(self, page: Page) -> set[str]:
        """Note a page; returns the kinds of its faults that are new in this sweep."""
        self.more |= page.more
        new = {fault.kind for fault in page.faults} - self.kinds.keys()
        for fault in page.faults:
            self.kinds.setdefault(fault.kind, fault)
            self.count += 1
            self.last = fault
            if len(self.kept) < FAULTS_KEPT_MAX:
                self.kept.append(fault)
            self._truncated |= fault.kind == TRUNCATED
            if fault.kind == BAD_ITEM:
                self._bad_items += 1
            elif fault.workflow_id is not None and not fault.of_item:
                self._refused.setdefault(fault.workflow_id, fault)
        bad_items = sum(fault.kind == BAD_ITEM for fault in page.faults)
        self._items += page.items or len(page.observations) + bad_items
        self._touched |= {key for key, value in page.cursors.items() if value is not None}
        return new

    @property
    def refusal(self) -> str | None:
        """What is wrong if most of what was looked at could not be used; one item alone is not most."""
        if self._bad_items < 2 or 2 * self._bad_items <= self._items:
            return None
        first = self.kinds[BAD_ITEM]
        return f"{self._bad_items} of {self._items} items cannot be used, such as: {described(first)}"

    def changes(
        self, before: Mapping[str, Unread], *, since: float, whole: bool, workflows: Collection[str]
    ) -> dict[str, Unread | None]:
        """Workflows that are unread now and were not ``before``, and those that no longer are (None).

        ``since`` is up to when everything had been read; ``whole`` says that the sweep went to its end; ``workflows``
        are those there are.
        """
        found: dict[str, Unread | None] = {
            key: Unread(since=since, kind=fault.kind, detail=redact(fault.detail))
            for key, fault in self._refused.items()
            if key not in before
        }
        for key in before.keys() - self._refused.keys():
            if key in self._touched or key not in workflows or (whole and not self._truncated):
                found[key] = None
        return found


def described(fault: Fault) -> str:
    """A fault in one redacted line that names its workflow."""
    detail = redact(fault.detail)
    return detail if fault.workflow_id is None else f"workflow {redact(fault.workflow_id, limit=80)}: {detail}"
