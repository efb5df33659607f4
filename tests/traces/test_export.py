"""The outbox of traces, emptied into a real OTLP receiver: completely, whatever receiver, store or a crash do."""

import asyncio
import logging
import sys
from typing import Any

import grpc
import pytest
from msgspec.structs import replace
from opentelemetry.trace import SpanKind
from pydantic import SecretStr

from exporter.config import TracesConfig
from exporter.model import DeadLetter, Result, Run, Step
from exporter.store.ledger import Ledger
from exporter.store.maintenance import PendingTrace
from exporter.store.script import StoreError
from exporter.traces.export import (
    INTERVAL,
    INTERVAL_BACKLOG,
    INTERVAL_FAILING_MAX,
    SETTLING,
    SPANS_PER_BATCH_MAX,
    TRACES_PER_BATCH_MAX,
    ExportReport,
    TraceExporter,
    is_enabled,
    source_resource,
    wait_after,
)
from exporter.traces.otlp import ExporterUnavailable, destination, make_exporter
from exporter.traces.own import OwnTracer
from exporter.traces.spans import STEPS_PER_TRACE_MAX, trace_ids
from tests.otlp import OtlpReceiver, Span, grpc_receiver
from tests.servers import PATIENCE_SECONDS
from tests.traces.world import Done, Skipping, T, World, a_run, holds

# What is sent


async def test_a_finished_run_is_sent_once_and_then_known_as_exported(world: World) -> None:
    step = Step(id="1", type="parse", started_at=T + 1, ended_at=T + 2, result=Result.SUCCESS)
    await world.observe(
        a_run("r1", Result.FAILURE, steps=(step,)),
        DeadLetter(id="dl-1", workflow_id="wf-1", run_id="r1", opened_at=T + 2),
    )
    assert await world.once() == ExportReport(exported=1)
    assert await world.once() == ExportReport()

    assert world.receiver.path == "/v1/traces"
    root, child = world.receiver.spans
    trace_id, span_id = trace_ids("example", "docs", "r1", 1)
    assert (root.name, root.kind, root.status, root.message) == ("RUN Invoices", "SERVER", "ERROR", "down")
    assert (root.trace_id, root.span_id, root.parent_id) == (f"{trace_id:032x}", f"{span_id:016x}", "")
    assert (root.start, root.end) == ((int(T) + 1) * 10**9, (int(T) + 2) * 10**9)
    assert root.attributes["cicd.pipeline.run.url.full"] == "https://docs.example/runs/r1"
    assert root.attributes["automation.dead_letter.id"] == "dl-1"
    assert root.scope == "automation-exporter"
    assert (child.name, child.trace_id, child.parent_id) == ("parse", root.trace_id, root.span_id)
    assert child.resource == root.resource
    assert root.resource.items() >= {"service.name": "docs", "automation.platform": "example"}.items()

    assert [(e.source, e.of.workflow_id, e.of.id, e.dead_letter, e.trace_id, e.span_id) for e in world.told] == [
        ("docs", "wf-1", "r1", True, root.trace_id, root.span_id)
    ]
    assert world.spans_total("exported") == 2
    assert world.own.registry.get_sample_value("automation_exporter_traces_pending") == 0


async def test_a_run_that_its_platform_traces_is_not_sent_a_second_time_and_exemplars_point_to_its_trace(
    world: World,
) -> None:
    theirs = f"{'a' * 32}-{'b' * 16}"
    await world.observe(a_run("r1", Result.FAILURE, trace=theirs), a_run("r2", trace=""), a_run("r3"))
    assert await world.once() == ExportReport(exported=1)
    assert [span.attributes["cicd.pipeline.run.id"] for span in world.receiver.spans] == ["r3"]
    assert {(e.of.id, e.trace_id) for e in world.told if e.of.id != "r3"} == {("r1", "a" * 32)}
    assert {e.span_id for e in world.told if e.of.id == "r1"} == {"b" * 16}
    assert await world.once() == ExportReport()
    assert world.spans_total("exported") == 1


async def test_without_anything_to_send_nothing_is_sent(world: World) -> None:
    assert await world.once() == ExportReport()
    assert world.receiver.requests == 0
    assert world.spans_total("failed") == 0  # there before the first failure


async def test_a_failure_waits_for_its_error_but_not_for_ever(world: World) -> None:
    await world.observe(a_run("r1", Result.FAILURE, error=None), a_run("r2"))
    assert await world.once() == ExportReport(exported=1, pending=1)
    await world.clock.advance(SETTLING)
    assert (await world.once()).exported == 0
    await world.clock.advance(1)
    assert await world.once() == ExportReport(exported=1)
    assert world.receiver.run_ids == ["r2", "r1"]


async def test_a_run_waits_for_the_steps_that_are_to_come_but_not_for_ever(world: World) -> None:
    step = Step(id="1", type="http:Get", started_at=T + 1, ended_at=T + 2, result=Result.FAILURE)
    runs = [a_run("r1", Result.FAILURE), a_run("r2", Result.FAILURE), a_run("r3", Result.WARNING)]
    await world.observe(*runs, a_run("r4"), source="later")
    assert await world.once() == ExportReport(exported=1, pending=3)
    await world.observe(replace(runs[0], steps=(step,)), replace(runs[1], steps=()), source="later")
    assert await world.once() == ExportReport(exported=2, pending=1)
    assert [span.name for span in world.receiver.spans] == ["RUN Invoices", "RUN Invoices", "http:Get", "RUN Invoices"]
    await world.clock.advance(SETTLING + 1)
    assert await world.once() == ExportReport(exported=1)
    assert world.receiver.run_ids == ["r4", "r1", "r2", "r3"]
    await world.observe(replace(runs[2], steps=(step,)), source="later")
    assert await world.once() == ExportReport()


async def test_successes_are_sampled_and_failures_are_not(world: World) -> None:
    exporter = world.make(share=0.0)
    dead_letter = DeadLetter(id="dl-1", workflow_id="wf-1", run_id="r3", opened_at=T + 2)
    await world.observe(a_run("r1"), a_run("r2", Result.FAILURE), a_run("r3"), a_run("r4", Result.WARNING), dead_letter)
    assert await world.once(exporter) == ExportReport(exported=3, dropped_by_sampling=1)
    assert world.receiver.run_ids == ["r2", "r3", "r4"]
    assert [(e.of.id, e.dead_letter) for e in world.told] == [("r2", False), ("r3", True), ("r4", False)]
    assert await world.pending() == []
    assert (world.spans_total("exported"), world.spans_total("sampled_out")) == (3, 1)


async def test_what_is_sampled_out_does_not_wait_for_the_collector(world: World) -> None:
    world.receiver.status = 503
    await world.observe(a_run("r1"), a_run("r2", Result.FAILURE))
    assert await world.once(world.make(share=0.0)) == ExportReport(failed=1, dropped_by_sampling=1, pending=1)
    assert await world.pending() == ["r2"]


async def test_a_run_nobody_can_map_does_not_keep_the_others_waiting(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await world.observe(a_run("r1", started_at=None, ended_at=None), a_run("r2"))
    await world.observe(a_run("r3"), source="gone")
    assert await world.once() == ExportReport(exported=1, invalid=2)
    assert await world.pending() == []
    assert world.spans_total("invalid") == 2
    lines = [record.__dict__["fields"] for record in caplog.records if record.message == "run cannot be traced"]
    assert sorted((line["source"], line["run_id"]) for line in lines) == [("docs", "r1"), ("gone", "r3")]


async def test_a_batch_is_bounded_in_traces_and_in_spans(world: World) -> None:
    steps = tuple(
        Step(id=f"{n:03}", type="a", started_at=T + 1, ended_at=T + 2, result=Result.SUCCESS)
        for n in range(STEPS_PER_TRACE_MAX)
    )
    await world.observe(*(a_run(f"r{n:02}", steps=steps) for n in range(12)))
    assert await world.once() == ExportReport(exported=10, pending=2, backlog=True)
    assert await world.once() == ExportReport(exported=2)
    assert [len(batch) for batch in world.receiver.batches] == [2010, 402]
    assert max(map(len, world.receiver.batches)) <= SPANS_PER_BATCH_MAX
    assert world.receiver.run_ids == [f"r{n:02}" for n in range(12)]


# When the collector fails


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
async def test_nothing_is_marked_unless_the_collector_took_it(world: World, status: int) -> None:
    world.receiver.status = status
    await world.observe(a_run("r1"), a_run("r2"))
    for _ in range(8):  # also once single traces are tried
        assert await world.once() == ExportReport(failed=2, pending=2)
    assert world.told == []
    assert world.own.registry.get_sample_value("automation_exporter_traces_pending") == 2
    world.receiver.status = 200
    assert await world.once() == ExportReport(exported=2)
    assert world.receiver.run_ids == ["r1", "r2"]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_no_success(world: World, status: int, caplog: pytest.LogCaptureFixture) -> None:
    world.receiver.status, world.receiver.headers_out = status, {"Location": "/elsewhere"}
    await world.observe(a_run("r1"))
    assert await world.once() == ExportReport(failed=1, pending=1)
    assert "the collector has moved" in caplog.records[-1].__dict__["fields"]["reason"]


async def test_a_collector_that_does_not_answer_costs_one_timeout(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    exporter = world.make()
    world.receiver.hanging = True
    await world.observe(a_run("r1"))
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert (await world.once(exporter)).failed == 1
    assert await world.pending() == ["r1"]


async def test_a_collector_that_is_not_there_is_a_failure_with_a_reason(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = world.make(through=make_exporter(TracesConfig(enabled=True, endpoint="http://127.0.0.1:9")))
    await world.observe(a_run("r1"))
    assert await world.once(exporter) == ExportReport(failed=1, pending=1)
    assert caplog.records[-1].__dict__["fields"]["reason"].strip()


class RootLog(logging.Handler):
    """What arrives at the root logger, ours and the SDK's. (pytest's own handlers also sit below it.)"""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith(("exporter", "opentelemetry", "urllib3", "requests")):
            self.records.append(record)


@pytest.mark.parametrize("status", [404, 503])
async def test_an_outage_is_told_when_it_starts_and_when_it_ends(
    world: World, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    caplog.set_level(logging.INFO)
    root = RootLog()
    logging.getLogger().addHandler(root)
    world.receiver.status = status
    await world.observe(a_run("r1"), a_run("r2"))
    await world.fail(8)
    world.receiver.status = 200
    await world.once()
    await world.once()
    logging.getLogger().removeHandler(root)
    assert [(record.name, record.levelname, record.message) for record in root.records] == [
        ("exporter.traces.export", "WARNING", "traces cannot be exported, they wait"),
        ("exporter.traces.export", "INFO", "traces are exported again"),
    ]
    assert root.records[0].__dict__["fields"]["reason"].startswith(str(status))


async def test_the_reason_of_an_outage_is_the_status_of_now(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.receiver.status, world.receiver.headers_out = 503, {"Retry-After": "0.01"}
    await world.observe(a_run("r1"))
    assert (await world.once()).failed == 1
    assert "Service Unavailable" in caplog.records[-1].__dict__["fields"]["reason"]
    world.receiver.status = 200
    assert (await world.once()).exported == 1
    world.receiver.status = 404
    await world.observe(a_run("r2"))
    assert (await world.once()).failed == 1
    assert "404" in caplog.records[-1].__dict__["fields"]["reason"]


async def test_an_hours_outage_loses_nothing_and_sends_nothing_twice(world: World) -> None:
    world.receiver.status = 503
    expected: list[str] = []

    async def meanwhile() -> None:
        if clock.now() < T + 3600:
            expected.append(f"r{len(expected):03}")
            await world.observe(a_run(expected[-1], ended_at=clock.now()))
        else:
            world.receiver.status = 200
            if not await world.pending():
                raise Done

    world.clock = clock = Skipping(meanwhile)
    with pytest.raises(Done):
        await world.make().run()
    assert len(expected) > 50
    assert world.receiver.run_ids == expected
    assert [exported.of.id for exported in world.told] == expected
    assert clock.slept[:7] == [5, 5, 10, 20, 40, 60, 60]  # the first round had nothing to send
    assert max(clock.slept) == INTERVAL_FAILING_MAX
    assert world.receiver.requests < 2.5 * len(clock.slept)


async def test_a_backlog_is_sent_without_long_pauses(world: World) -> None:
    total = 2 * TRACES_PER_BATCH_MAX + 1
    await world.observe(*(a_run(f"r{n:04}") for n in range(total)))

    async def meanwhile() -> None:
        if not await world.pending():
            raise Done

    world.clock = clock = Skipping(meanwhile)
    with pytest.raises(Done):
        await world.make().run()
    assert clock.slept == [INTERVAL_BACKLOG, INTERVAL_BACKLOG, INTERVAL]
    assert [len(batch) for batch in world.receiver.batches] == [TRACES_PER_BATCH_MAX, TRACES_PER_BATCH_MAX, 1]
    assert len(set(world.receiver.run_ids)) == total


@pytest.mark.parametrize(
    ("backlog", "failed_rounds", "seconds"),
    [
        (False, 0, 5.0),
        (True, 0, 0.1),
        (True, 1, 5.0),
        (False, 2, 10.0),
        (False, 4, 40.0),
        (False, 5, 60.0),
        (True, 100_000, 60.0),
    ],
)
def test_rounds_come_sooner_with_a_backlog_and_later_in_an_outage(
    backlog: bool, failed_rounds: int, seconds: float
) -> None:
    assert wait_after(ExportReport(backlog=backlog), failed_rounds=failed_rounds) == seconds


async def test_closing_ends_an_export_that_nobody_answers(world: World) -> None:
    world.receiver.hanging = True
    exporter = world.make()
    await world.observe(a_run("r1"))
    async with asyncio.timeout(PATIENCE_SECONDS):
        trying = asyncio.create_task(world.once(exporter))
        await world.receiver.asked.wait()
        await exporter.close()
        assert (await trying).failed == 1
    assert await world.pending() == ["r1"]


async def test_cancelling_ends_an_export_that_nobody_answers_at_once(world: World) -> None:
    world.receiver.hanging = True
    exporter = world.make()
    await world.observe(a_run("r1"))
    async with asyncio.timeout(PATIENCE_SECONDS):
        trying = asyncio.create_task(world.once(exporter))
        await world.receiver.asked.wait()
        trying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trying
    assert await world.pending() == ["r1"]


# When the store fails, or we do


class Failing:
    """An outbox whose marks fail: the process died, or the disk is full."""

    def __init__(self, ledger: Ledger, error: Exception) -> None:
        self.ledger = ledger
        self.error: Exception | None = error

    async def pending_traces(self, *, limit: int, settled_before: float) -> list[PendingTrace]:
        return await self.ledger.pending_traces(limit=limit, settled_before=settled_before)

    async def mark_traced(self, keys: list[tuple[str, str, int]]) -> None:
        if self.error is not None:
            raise self.error
        await self.ledger.mark_traced(keys)

    async def count_pending_traces(self) -> int:
        return await self.ledger.count_pending_traces()


async def test_a_crash_between_export_and_mark_sends_the_same_ids_again(world: World) -> None:
    step = Step(id="1", type="parse", started_at=T + 1, ended_at=T + 2, result=Result.SUCCESS)
    await world.observe(a_run("r1", steps=(step,), queued_at=T))
    with pytest.raises(Done):
        await world.once(world.make(outbox=Failing(world.ledger, Done())))
    assert world.told == []
    assert (await world.once(world.make())).exported == 1
    first, second = world.receiver.batches
    assert first == second
    assert len(first) == 3


async def test_a_store_that_fails_delays_the_mark_and_does_not_end_the_loop(world: World) -> None:
    await world.observe(a_run("r1"))
    outbox = Failing(world.ledger, StoreError("disk full"))

    async def meanwhile() -> None:
        if not await world.pending():
            raise Done
        if len(clock.slept) == 2:
            outbox.error = None

    world.clock = clock = Skipping(meanwhile)
    with pytest.raises(Done):
        await world.make(outbox=outbox).run()
    assert clock.slept == [INTERVAL] * 3
    assert world.receiver.run_ids == ["r1"] * 3
    assert len({span.trace_id for span in world.receiver.spans}) == 1


# When single traces are the trouble


async def test_a_trace_the_collector_refuses_for_what_it_holds_is_given_up_and_the_others_arrive(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.receiver.refuses = holds("r3")
    await world.observe(*(a_run(f"r{n}") for n in range(8)))
    assert await world.once() == ExportReport(exported=7, invalid=1)
    assert set(world.receiver.run_ids) == {f"r{n}" for n in range(8)} - {"r3"}
    assert len(world.receiver.run_ids) == 8  # one was sent again, to see whether the collector still took it
    assert await world.pending() == []
    assert (world.spans_total("exported"), world.spans_total("invalid")) == (7, 1)
    assert "r3" not in [exported.of.id for exported in world.told]
    assert [r.__dict__["fields"]["run_id"] for r in caplog.records if "refuses" in r.message] == ["r3"]
    assert world.exporter.failed_rounds == 0
    await world.observe(a_run("r9"))
    assert await world.once() == ExportReport(exported=1)


async def test_a_single_trace_gets_a_second_chance(world: World) -> None:
    refusals = iter(range(3))  # two requests with others in them, and once on its own

    world.receiver.refuses = lambda span: holds("r3")(span) and next(refusals, None) is not None
    await world.observe(*(a_run(f"r{n}") for n in range(6)))
    assert await world.once() == ExportReport(exported=6)
    assert set(world.receiver.run_ids) == {f"r{n}" for n in range(6)}


@pytest.mark.parametrize("poison", [{"r0", "r1"}, {"r4", "r5"}, {"r0", "r2", "r4"}, {"r1", "r2", "r3", "r4", "r5"}])
async def test_whichever_traces_are_refused_the_others_arrive_in_the_end(world: World, poison: set[str]) -> None:
    world.receiver.refuses = holds(*poison)
    await world.observe(*(a_run(f"r{n}") for n in range(6)))
    for _ in range(11):
        await world.once()
    assert await world.pending() == []
    assert set(world.receiver.run_ids) == {f"r{n}" for n in range(6)} - poison
    assert world.spans_total("invalid") == len(poison)


async def test_a_refused_trace_alone_is_kept_until_others_show_that_the_collector_lives(world: World) -> None:
    world.receiver.refuses = holds("r1")
    await world.observe(a_run("r1"))
    await world.fail(9)
    assert await world.pending() == ["r1"]
    assert world.receiver.requests == 9
    await world.observe(a_run("r2"), a_run("r3"))
    for _ in range(3):
        await world.once()
    assert await world.pending() == []
    assert (world.spans_total("exported"), world.spans_total("invalid")) == (2, 1)


async def test_a_collector_that_fails_again_in_between_gives_up_no_trace(world: World) -> None:
    def refuse_and_fall_over(span: Span) -> bool:
        if not holds("r3")(span):
            return False
        if world.receiver.batches:  # the other half was taken: next comes r3 on its own
            world.receiver.status = 503
        return True

    world.receiver.refuses = refuse_and_fall_over
    await world.observe(*(a_run(f"r{n}") for n in range(6)))
    report = await world.once()
    assert report.invalid == 0
    assert report.exported > 0
    left = await world.pending()
    assert "r3" in left
    assert set(world.receiver.run_ids) | set(left) == {f"r{n}" for n in range(6)}
    world.receiver.status, world.receiver.refuses = 200, holds()
    assert await world.once() == ExportReport(exported=len(left))
    assert sorted(world.receiver.run_ids) == [f"r{n}" for n in range(6)]


# How the exporter is made


@pytest.mark.parametrize("tail", ["", "/", "/v1/traces", "/v1/traces/"])
async def test_the_endpoint_is_a_base_url_or_the_whole_one(world: World, tail: str) -> None:
    config = TracesConfig(enabled=True, endpoint=world.receiver.url + tail, headers={"X-Key": SecretStr("hunter2")})
    await world.observe(a_run("r1"))
    assert (await world.once(world.make(through=make_exporter(config)))).exported == 1
    assert world.receiver.path == "/v1/traces"
    assert world.receiver.headers["x-key"] == "hunter2"


async def test_the_standard_variables_are_honoured(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"{world.receiver.url}/base")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=hunter2")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.name=other")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "another")
    await world.observe(a_run("r1"))
    assert (await world.once(world.make(through=make_exporter(TracesConfig(enabled=True))))).exported == 1
    assert world.receiver.path == "/base/v1/traces"
    assert world.receiver.headers["x-key"] == "hunter2"
    assert world.receiver.headers["content-encoding"] == "gzip"
    assert world.receiver.spans[0].resource["deployment.environment.name"] == "test"
    assert world.receiver.spans[0].resource["service.name"] == "docs"


def test_a_sources_resource_is_the_same_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "service.instance.id" not in source_resource("docs", "example").attributes
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=mine")
    assert source_resource("docs", "example").attributes["service.instance.id"] == "mine"


@pytest.mark.parametrize(
    ("config", "environ", "problem"),
    [
        ({"protocol": "grpc"}, {}, r"traces\.protocol: grpc needs the extra .*'automation-exporter\[grpc\]'"),
        ({}, {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "needs the extra grpc"),
        ({}, {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "extra"),
        ({}, {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, r"'http/json' is not supported; use http/protobuf or grpc"),
        ({"endpoint": None}, {}, r"traces\.endpoint: missing; name the collector, .* OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"endpoint": None}, {"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, r"traces\.endpoint: missing"),
        ({"endpoint": None}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4318"}, r"OTLP_ENDPOINT: must be a URL"),
        ({}, {"OTEL_EXPORTER_OTLP_COMPRESSION": "zstd"}, r"'zstd' is not supported; use gzip or none"),
        ({"endpoint": "https://x.example", "tls_ca_file": "/no/such.pem"}, {}, r"tls_ca_file.*No such file"),
    ],
)
def test_an_exporter_that_cannot_be_had_says_what_to_do(
    config: dict[str, Any], environ: dict[str, str], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a machine without the extra, wherever the test runs.
    monkeypatch.setitem(sys.modules, "grpc", None)
    config = {"endpoint": "http://127.0.0.1:4317"} | config
    with pytest.raises(ExporterUnavailable, match=problem):
        make_exporter(TracesConfig(enabled=True, **config), environ)


def test_the_config_decides_about_the_protocol_before_the_environment() -> None:
    config = TracesConfig(enabled=True, protocol="http/protobuf", endpoint="http://127.0.0.1:4318")
    assert destination(config, {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}).grpc is False


@pytest.mark.parametrize(
    ("enabled", "environ", "traced"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"OTEL_SDK_DISABLED": "true"}, False),
        (True, {"OTEL_SDK_DISABLED": " TRUE "}, False),
        (True, {"OTEL_SDK_DISABLED": "false"}, True),
        (True, {"OTEL_SDK_DISABLED": "1"}, True),  # the specification knows "true" only
        (False, {"OTEL_SDK_DISABLED": "false"}, False),
    ],
)
def test_runs_are_traced_if_the_config_says_so_and_the_sdk_is_not_disabled(
    enabled: bool, environ: dict[str, str], traced: bool
) -> None:
    assert is_enabled(TracesConfig(enabled=enabled), environ) is traced


# Over gRPC


def over_grpc(world: World, url: str, **config: Any) -> TraceExporter:
    made = make_exporter(TracesConfig(enabled=True, protocol="grpc", endpoint=url, **config))
    return world.make(through=made)


class OneTrace:
    """An outbox with one run in it, whatever becomes of that."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def pending_traces(self, *, limit: int, settled_before: float) -> list[PendingTrace]:
        return [PendingTrace(source="docs", of=self._run)]

    async def mark_traced(self, keys: list[tuple[str, str, int]]) -> None:
        pass

    async def count_pending_traces(self) -> int:
        return 0


async def test_over_grpc_the_same_spans_arrive_and_headers_are_metadata(world: World) -> None:
    steps = (
        Step(id="1", type="parse", started_at=T + 1, ended_at=T + 2, result=Result.SUCCESS),
        Step(id="2", type="send"),
    )
    run = a_run("r1", Result.FAILURE, attempt=2, steps=steps, parent_id="r0", queued_at=T)
    with grpc_receiver() as receiver:
        exporter = over_grpc(world, receiver.url, headers={"X-Key": SecretStr("hunter2")})
        await world.observe(run)
        assert await world.once(exporter) == ExportReport(exported=1)
        assert receiver.metadata["x-key"] == "hunter2"
        over_http = world.make(outbox=OneTrace(run))
        assert (await world.once(over_http)).exported == 1
        assert len(receiver.spans) == 3
        assert receiver.spans == world.receiver.spans, "as over HTTP"
        assert await world.pending() == []


@pytest.mark.parametrize(
    "code", ["UNAUTHENTICATED", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNKNOWN"]
)
async def test_over_grpc_nothing_is_marked_unless_the_collector_took_it(
    world: World, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    with grpc_receiver() as receiver:
        receiver.code = grpc.StatusCode[code]
        exporter = over_grpc(world, receiver.url)
        await world.observe(a_run("r1"), a_run("r2"))
        assert await world.once(exporter) == ExportReport(failed=2, pending=2)
        assert await world.pending() == ["r1", "r2"]
        (line,) = [r.__dict__["fields"] for r in caplog.records if r.message.startswith("traces cannot be exported")]
        assert code in line["reason"]
        receiver.code = None
        assert await world.once(exporter) == ExportReport(exported=2)
        assert [span.attributes["cicd.pipeline.run.id"] for span in receiver.spans] == ["r1", "r2"]


async def test_over_grpc_a_collector_that_is_not_there_yet_is_found_when_it_comes(world: World) -> None:
    with grpc_receiver() as gone:
        url = gone.url
    exporter = over_grpc(world, url)
    await world.observe(a_run("r1"))
    assert await world.once(exporter) == ExportReport(failed=1, pending=1)
    with grpc_receiver(url.rpartition(":")[2]) as receiver:
        assert await world.once(exporter) == ExportReport(exported=1)
        assert len(receiver.spans) == 1


async def test_over_grpc_a_header_it_cannot_send_is_no_secret_in_the_log(
    world: World, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with grpc_receiver() as receiver:
        exporter = over_grpc(world, receiver.url, headers={"x-key": SecretStr("hunter2\n")})
        await world.observe(a_run("r1"))
        assert await world.once(exporter) == ExportReport(failed=1, pending=1)
    (line,) = [r.__dict__["fields"] for r in caplog.records if r.message.startswith("traces cannot be exported")]
    assert "Invalid metadata" in line["reason"]
    assert "hunter2" not in repr(line) + "".join(capfd.readouterr())


# Our own work


async def own_spans(receiver: OtlpReceiver, tracer: OwnTracer) -> list[Span]:
    await asyncio.to_thread(tracer.close)
    return sorted(receiver.spans, key=lambda span: span.start)


async def test_our_own_work_is_another_service_and_nests(world: World) -> None:
    tracer = OwnTracer(make_exporter(TracesConfig(enabled=True, endpoint=world.receiver.url)))
    with tracer.span("sweep runs", source="docs", stream="runs"):
        with tracer.span("GET /api/runs/{id}?token=hunter2", kind=SpanKind.CLIENT, **{"url.full": "https://a/b?c=d"}):
            await asyncio.sleep(0)
    sweep, call = await own_spans(world.receiver, tracer)
    assert (sweep.name, sweep.kind, sweep.parent_id) == ("sweep runs", "INTERNAL", "")
    assert sweep.attributes == {"automation.source": "docs", "automation.stream": "runs"}
    assert sweep.resource["service.name"] == "automation-exporter"
    assert (call.name, call.kind, call.parent_id) == ("GET /api/runs/{id}", "CLIENT", sweep.span_id)
    assert call.attributes == {"url.full": "https://a/b"}
    assert call.trace_id == sweep.trace_id


async def test_an_exception_in_our_own_work_is_told_by_its_type_only(world: World) -> None:
    tracer = OwnTracer(make_exporter(TracesConfig(enabled=True, endpoint=world.receiver.url)))
    with pytest.raises(ValueError, match="hunter2"), tracer.span("webhook docs"):
        raise ValueError("password=hunter2")
    with pytest.raises(asyncio.CancelledError), tracer.span("sweep runs"):
        raise asyncio.CancelledError
    failed, stopped = await own_spans(world.receiver, tracer)
    assert (failed.status, failed.message, failed.events) == ("ERROR", "", [])
    assert failed.attributes == {"error.type": "ValueError"}
    assert (stopped.status, stopped.attributes) == ("UNSET", {})


def test_without_an_exporter_our_own_work_is_not_traced_and_still_done() -> None:
    tracer, done = OwnTracer(), []
    with tracer.span("sweep runs", source="docs"):
        done.append(1)
    with pytest.raises(ZeroDivisionError), tracer.span("sweep runs"):
        done.append(1 // 0)
    tracer.close()
    assert done == [1]
