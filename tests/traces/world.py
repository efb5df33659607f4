"""An outbox, a collector and the exporter between them, for the tests of traces."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from exporter.clock import ManualClock
from exporter.config import TracesConfig
from exporter.model import DeadLetter, Error, ErrorClass, Result, Run, State, Workflow
from exporter.model.fold import WorkflowEntry
from exporter.model.ledger import Batch
from exporter.platforms import PLATFORMS
from exporter.source import Source
from exporter.store.ledger import Ledger
from exporter.traces.export import Exported, ExportReport, Outbox, TraceExporter
from exporter.traces.otlp import Sender, make_exporter
from exporter.view.known import SourceWorld
from exporter.view.own import OwnMetrics
from tests.otlp import OtlpReceiver, Span
from tests.sources import connected

T = 1_768_456_800.0


def a_source(name: str, clock: ManualClock) -> Source:
    platform = replace(
        PLATFORMS["make"], name="example", run_url=lambda section, run, workflow: f"https://docs.example/runs/{run.id}"
    )
    known = SourceWorld(name)
    known.put_workflow(WorkflowEntry(workflow=Workflow(id="wf-1", at=T, name="Invoices"), found_at=T))
    return connected(name, platform, known, clock)


LOADED = Batch(source="docs", now=T, started_at=T)


def a_run(run_id: str, result: Result = Result.SUCCESS, **other: Any) -> Run:
    error = Error(error_class=ErrorClass.NETWORK, message="down") if result is Result.FAILURE else None
    known: dict[str, Any] = {"started_at": T + 1, "ended_at": T + 2, "error": error} | other
    return Run(workflow_id="wf-1", id=run_id, state=State.FINISHED, result=result, **known)


class World:
    """A ledger, a receiver, a clock, and the exporter between them. More exporters can be made: after a crash, say."""

    def __init__(self, ledger: Ledger, receiver: OtlpReceiver) -> None:
        self.ledger = ledger
        self.receiver = receiver
        self.clock = ManualClock(T + 10)
        self.own = OwnMetrics()
        self.told: list[Exported] = []
        self.made: list[TraceExporter] = []
        self.exporter = self.make()

    def make(self, *, outbox: Outbox | None = None, share: float = 1.0, through: Sender | None = None) -> TraceExporter:
        exporter = TraceExporter(
            outbox=outbox or self.ledger,
            exporter=through or make_exporter(TracesConfig(enabled=True, endpoint=self.receiver.url)),
            sources={name: a_source(name, self.clock) for name in ("docs", "later")},
            clock=self.clock,
            own=self.own,
            share=share,
            on_exported=self.told.extend,
        )
        self.made.append(exporter)
        return exporter

    async def observe(self, *seen: Run | DeadLetter, source: str = "docs") -> None:
        now = self.clock.now()
        await self.ledger.ingest(Batch(source=source, observations=seen, now=now, started_at=T))

    async def once(self, exporter: TraceExporter | None = None) -> ExportReport:
        return await (exporter or self.exporter).export_once(self.clock.now())

    async def fail(self, rounds: int) -> None:
        for _ in range(rounds):
            assert (await self.once()).exported == 0

    async def pending(self) -> list[str]:
        taken = await self.ledger.pending_traces(limit=10_000, settled_before=float("inf"))
        return [trace.of.id for trace in taken]

    def spans_total(self, outcome: str) -> float | None:
        return self.own.registry.get_sample_value("automation_exporter_spans_total", {"outcome": outcome})


class Done(Exception):
    """The test has seen enough."""


class Skipping(ManualClock):
    """Whoever sleeps has slept: time jumps. ``meanwhile`` is what happens to the world while it does."""

    def __init__(self, meanwhile: Callable[[], Awaitable[None]]) -> None:
        super().__init__(T + 10)
        self.meanwhile = meanwhile
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await self.advance(seconds)
        await self.meanwhile()


def holds(*run_ids: str) -> Callable[[Span], bool]:
    return lambda span: span.attributes.get("cicd.pipeline.run.id") in run_ids
