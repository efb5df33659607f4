"""What rows do not say, and one execution read alone does: causes, steps, parents, times in the queue, n8n's own trace.

Which executions are asked for is noted in the cursor of the stream with the page that tells of them, so neither a
restart nor an outage forgets a question. Every sweep asks for some, failed ones first. A failed run is stored at once
and without its cause; a canceled one only when it is known whether it was canceled or took too long, since what was
counted stays so. Two calls each: the first tells how large the data are, and too large ones are not asked for. A
version from before the summer of 2026 does not tell: there the answer is cut off at what any answer may be.
"""

from collections.abc import AsyncGenerator

from msgspec.structs import replace

from exporter.model import FAILED, Error, ErrorClass, Observation, Result, Run, State
from exporter.platform import BadItem, Fault, Known, Page
from exporter.platforms.n8n import mapping
from exporter.platforms.n8n.calls import Calls, stops_sweep
from exporter.platforms.n8n.config import N8nConfig
from exporter.platforms.n8n.mapping import Detail, Row
from exporter.platforms.n8n.reading.habits import Customs
from exporter.platforms.n8n.reading.letters import Letters
from exporter.platforms.n8n.reading.position import Position
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind

#: Executions read alone in one sweep.
ASKED_MAX = 10
#: Larger data are not asked for: the server has to put them together, beside its own work.
DATA_BYTES_MAX = 2 * 1024 * 1024
#: For so long (seconds) an execution is asked for while the instance is in trouble.
PATIENCE_SECONDS = 3600.0
#: Answers kept in memory, because rows are met again within the overlap of sweeps.
KEPT_MAX = 5000
#: How often (seconds) it is found out whether n8n sends traces of its own.
PROBE_SECONDS = 3600.0


class Details:
    """Reads executions alone."""

    def __init__(self, config: N8nConfig, calls: Calls, customs: Customs, letters: Letters) -> None:
        self._config = config
        self._calls = calls
        self._customs = customs
        self._letters = letters
        self._read: dict[str, Run] = {}  # what was found out, by id
        self._heard: dict[int, object] = {}  # what executions said lately that were read for another reason

    def restarted(self) -> None:
        self._read.clear()
        self._heard.clear()

    def heard(self, row: Row, data: object) -> None:
        """An execution that was just read without its data need not be read so again."""
        if not row.is_open:
            self._heard[row.number] = data

    def run(self, row: Row, position: Position) -> Run:
        """The run of a row, with whatever is known of it."""
        run = self._read.get(row.run.id)
        if run is None or run.state is not State.FINISHED:
            run = mapping.decided(row.run, self._customs.of(row.workflow_id))
        if run.trace is None and position.traced:
            run = replace(run, trace="")
        return run

    def knows(self, row: Row, known: Known) -> bool:
        """Whether there is nothing left to ask about a row."""
        if row.run.id in self._read:
            return True
        letter = known.dead_letters.get(row.run.id)
        return letter is not None and letter.error is not None and self._config.details != "all"

    async def ask(self, known: Known, position: Position, *, now: float, since: float) -> AsyncGenerator[Page, None]:
        """Read some of the executions that are noted."""
        noted = sorted(position.wanted.values(), key=lambda each: (_rank(each.row), -each.row.number))
        for wanted in noted[:ASKED_MAX]:
            row = wanted.row
            try:
                run = self._read.get(row.run.id) or await self._find(row, position)
            except ApiError as error:
                if stops_sweep(error):
                    raise
                if now - wanted.since < PATIENCE_SECONDS and error.kind is not ErrorKind.NOT_FOUND:
                    fault = Fault(kind=error.kind, detail=str(error), workflow_id=row.workflow_id, of_item=True)
                    yield Page(faults=[fault])
                    continue
                run = _final(row.run, row)
            position.wanted.pop(row.number, None)
            yield Page(observations=await self._told(row, run, known, position, since))
        self._heard.clear()

    async def probe(self, row: Row, position: Position, *, now: float) -> None:
        """Find out by one execution whether n8n sends traces of its own; now and then."""
        if 0 <= now - position.traced_at < PROBE_SECONDS:
            return
        try:
            found = await self._plain(row, position)
        except (ApiError, BadItem) as error:
            if isinstance(error, ApiError) and stops_sweep(error):
                raise
            return
        position.traced, position.traced_at = found.traced, now

    async def _told(self, row: Row, run: Run, known: Known, position: Position, since: float) -> list[Observation]:
        if run.state is not State.FINISHED:
            return [run]
        while len(self._read) >= KEPT_MAX:
            del self._read[next(iter(self._read))]
        self._read[run.id] = run
        letters = await self._letters.of(row, known, position.numbering, since=since, error=run.error)
        return [run, *letters]

    async def _find(self, row: Row, position: Position) -> Run:
        """The run with all that is to be known of it. Raises ``ApiError``."""
        try:
            found = await self._plain(row, position)
            if found.row.is_open:
                return found.run
            if found.bytes is None or found.bytes <= DATA_BYTES_MAX:
                found = await self._with_data(row, found, position)
        except BadItem:
            return _final(row.run, row)
        if found.run.id != row.run.id or found.row.workflow_id != row.workflow_id:
            return _final(row.run, row)
        if found.traced is not None:
            position.traced, position.traced_at = found.traced, self._calls.now()
        run = mapping.decided(found.run, self._customs.of(row.workflow_id), timed_out=found.timed_out)
        return _final(run, row)

    async def _plain(self, row: Row, position: Position) -> Detail:
        data = self._heard.pop(row.number, None)
        return self._mapped(await self._answer(row) if data is None else data, position)

    async def _with_data(self, row: Row, plain: Detail, position: Position) -> Detail:
        """The execution with its data. A version that does not tell how large they are is asked once."""
        try:
            return self._mapped(await self._answer(row, data=True), position)
        except ApiError as error:
            if plain.bytes is None and error.kind is ErrorKind.BAD_PAYLOAD:
                return plain
            raise

    async def _answer(self, row: Row, *, data: bool = False) -> object:
        answer = await self._calls.execution(row.number, lane=Lane.DEAD_LETTERS, data=data)
        return answer.data

    def _mapped(self, data: object, position: Position) -> Detail:
        return mapping.detail(data, numbering=position.numbering, latest=self._calls.latest())


def _final(run: Run, row: Row) -> Run:
    """What was not found out by now will not be."""
    if run.result in FAILED and run.error is None:
        crashed = row.status == "crashed"
        run = replace(run, error=Error(error_class=ErrorClass.KILLED if crashed else ErrorClass.UNKNOWN))
    return replace(run, steps=run.steps or ())


def _rank(row: Row) -> int:
    """What is asked first: what a dead letter waits for, what is not counted yet, the rest."""
    if row.failed:
        return 0
    return 1 if row.run.result is Result.CANCELLED or row.is_open else 2
