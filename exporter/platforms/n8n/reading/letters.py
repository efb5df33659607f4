"""Dead letters: one for each piece of work that failed and was not done since.

A retry is another execution that names the one it retries, so a piece of work is a chain: the execution that failed
first (the root), and what descends from it. Its dead letter bears the root's id however often a retry fails, opens when
the root failed, and is resolved when a descendant succeeds. Where the root is gone (pruned, deleted), the oldest failed
descendant takes its place.

What the lists show resolves most of them. Once in ten minutes some of the open ones are read alone, in turn: they may
be gone.
"""

from collections.abc import Mapping, Sequence

from exporter.model import DeadLetter, Error, ErrorClass, Observation, ResolvedBy
from exporter.model.fold import resolve
from exporter.platform import BadItem, Fault, Known, Page
from exporter.platforms.n8n import mapping
from exporter.platforms.n8n.calls import Calls, stops_sweep
from exporter.platforms.n8n.mapping import Numbering, Row
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind

#: Retries of retries that are followed back.
CHAIN_MAX = 50
#: Dead letters looked at in one turn, and seconds between two.
LOOKED_AT_MAX = 20
LOOK_SECONDS = 600.0
#: Rows kept in memory, to follow chains by.
KEPT_MAX = 5000


class Letters:
    """What is known of the chains of one instance."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._rows: dict[int, Row | None] = {}  # failed ones and retries; None: gone
        self._retries: dict[int, dict[int, Row]] = {}  # by what they retry

    def restarted(self) -> None:
        self._rows.clear()
        self._retries.clear()

    def keep(self, row: Row) -> None:
        """Remember a row that a chain may lead over."""
        if not (row.failed or row.retry_of is not None):
            return
        while len(self._rows) >= KEPT_MAX:
            oldest = next(iter(self._rows))
            del self._rows[oldest]
            self._retries.pop(oldest, None)
        self._rows[row.number] = row
        if row.retry_of is not None:
            self._retries.setdefault(row.retry_of, {})[row.number] = row

    async def of(
        self, row: Row, known: Known, numbering: Numbering, *, since: float, error: Error | None = None
    ) -> list[Observation]:
        """What an ended execution says about dead letters: it opens one, resolves one, or neither.

        Failures before ``since`` open none.
        """
        ended_at = row.run.finished_at
        if ended_at is None or not (row.failed or (row.status == "success" and row.retry_of is not None)):
            return []
        root = await self._root(row, numbering)
        if root is None or not root.may_be_letter or root.run.finished_at is None:
            return []
        is_open = root.run.id in known.dead_letters
        failed_at = root.run.finished_at if row.status == "success" else ended_at
        if not is_open and failed_at < since:
            return []
        # Nobody asks again what a root died of that is not listed any more.
        told = error if root.number == row.number or not is_open else None
        letter = mapping.letter(root.run, error=told)
        healed_at = ended_at if row.status == "success" else self._healed_at(root)
        return [letter if healed_at is None else resolve(letter, by=ResolvedBy.MANUAL, at=healed_at)]

    def _healed_at(self, root: Row) -> float | None:
        """When a descendant that was listed succeeded."""
        waiting, seen = [root.number], set[int]()
        while waiting:
            number = waiting.pop()
            seen.add(number)
            for child in self._retries.get(number, {}).values():
                if child.status == "success":
                    return child.run.finished_at
                if child.number not in seen:
                    waiting.append(child.number)
        return None if root.success is None else self._calls.now()

    async def _root(self, row: Row, numbering: Numbering) -> Row | None:
        """The oldest of its chain that is still there."""
        for _ in range(CHAIN_MAX):
            if row.retry_of is None:
                return row
            parent = await self._read(row.retry_of, numbering)
            if parent is None or parent.workflow_id != row.workflow_id:
                return row
            row = parent
        return None

    async def _read(self, number: int, numbering: Numbering) -> Row | None:
        if number in self._rows:
            return self._rows[number]
        try:
            answer = await self._calls.execution(number, lane=Lane.DEAD_LETTERS)
            found: Row | None = mapping.row(answer.data, numbering=numbering, latest=self._calls.latest())
        except BadItem:
            found = None
        except ApiError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
            found = None
        self._rows[number] = found
        return found

    # Those that nothing was heard of

    async def look(self, known: Known, numbering: Numbering, *, after: str) -> tuple[Page, str]:
        """Read some open dead letters alone, those behind ``after`` in the order of their ids; and which was last."""
        ids = sorted(known.dead_letters)
        ordered = [key for key in ids if key > after] + [key for key in ids if key <= after]
        told: list[Observation] = []
        faults: list[Fault] = []
        for letter_id in ordered[:LOOKED_AT_MAX]:
            letter = known.dead_letters.get(letter_id)
            if letter is None:
                continue
            try:
                told += await self._look_at(letter, known.dead_letters, numbering)
            except ApiError as error:
                if stops_sweep(error):
                    raise
                faults.append(Fault(kind=error.kind, detail=str(error), workflow_id=letter.workflow_id, of_item=True))
            after = letter_id
        return Page(observations=told, faults=faults), after

    async def _look_at(
        self, letter: DeadLetter, others: Mapping[str, DeadLetter], numbering: Numbering
    ) -> Sequence[Observation]:
        number = mapping.number_of(letter.id)
        if number is None:
            return []
        self._rows.pop(number, None)
        root = await self._read(number, numbering)
        if root is not None and root.run.id == letter.id and root.workflow_id == letter.workflow_id:
            if root.success is None:
                return []
            return [resolve(letter, by=ResolvedBy.MANUAL, at=self._calls.now())]
        gone = resolve(letter, by=ResolvedBy.EXPIRED, at=self._calls.now())
        if root is not None:  # the number is another execution's by now
            return [gone]
        page = await self._calls.executions(lane=Lane.DEAD_LETTERS, workflow_id=letter.workflow_id)
        rows = list[Row]()
        for item in page.items:
            try:
                rows.append(mapping.row(item, numbering=numbering, latest=self._calls.latest()))
            except BadItem:
                continue
        left = mapping.chain([row for row in rows if row.workflow_id == letter.workflow_id], number)
        success = next((row for row in left if row.status == "success"), None)
        if success is not None:
            return [resolve(letter, by=ResolvedBy.MANUAL, at=success.run.finished_at or self._calls.now())]
        heir = next((row for row in left if row.failed), None)
        if heir is None or heir.run.id in others:
            return [gone]
        return [gone, mapping.letter(heir.run, error=letter.error or Error(error_class=ErrorClass.UNKNOWN))]
