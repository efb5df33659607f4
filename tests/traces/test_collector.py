"""A collector's answer is believed for what it says: taken, rejected, too large, wrong, not now. Nothing that can still
arrive is dropped, and one trace keeps no other waiting.
"""

import asyncio
import logging
import shutil
import ssl
import subprocess
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from msgspec.structs import replace
from pydantic import SecretStr

from exporter.config import TracesConfig
from exporter.model import Error, ErrorClass, Result, Run, Step
from exporter.store.maintenance import PendingTrace
from exporter.traces.export import INTERVAL, ExportReport, wait_after
from exporter.traces.otlp import make_exporter
from exporter.traces.own import CLOSING_SECONDS, OwnTracer
from tests.otlp import grpc_receiver
from tests.traces.test_export import over_grpc
from tests.traces.world import Done, Skipping, T, World, a_run, holds


def warnings(caplog: pytest.LogCaptureFixture, part: str) -> list[dict[str, Any]]:
    return [r.__dict__["fields"] for r in caplog.records if part in r.message and r.levelno >= logging.WARNING]


async def until_settled(world: World, rounds: int, exporter: Any = None) -> None:
    for _ in range(rounds):
        await world.once(exporter)
        if not await world.pending():
            return


class Several:
    """An outbox with these runs in it, whatever becomes of them."""

    def __init__(self, *runs: Run) -> None:
        self.runs = runs

    async def pending_traces(self, *, limit: int, settled_before: float) -> list[PendingTrace]:
        return [PendingTrace(source="docs", of=run) for run in self.runs]

    async def mark_traced(self, keys: list[tuple[str, str, int]]) -> None:
        self.runs = tuple(run for run in self.runs if ("docs", run.id, run.attempt) not in keys)

    async def count_pending_traces(self) -> int:
        return len(self.runs)


# Rejected


async def test_what_the_collector_rejects_is_not_exported_and_gets_no_exemplar(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.receiver.rejects = lambda spans: (len(spans), "attribute too long")
    for number in range(5):
        await world.observe(a_run(f"r{number}"), a_run(f"s{number}"))
        report = await world.once()
        assert (report.exported, report.rejected, report.pending) == (0, 2, 0)
    assert (world.spans_total("exported"), world.spans_total("rejected")) == (0, 10)
    assert world.told == []
    assert len(world.receiver.batches) == 5, "a rejected span is not sent again"
    (line,) = warnings(caplog, "reject")
    assert line["reason"] == "attribute too long"


async def test_of_a_request_rejected_in_part_the_rest_is_exported_and_none_gets_an_exemplar(world: World) -> None:
    world.receiver.rejects = lambda spans: (2, "some")
    await world.observe(*(a_run(f"r{n}") for n in range(5)))
    report = await world.once()
    assert (report.exported, report.rejected, report.pending) == (3, 2, 0)
    assert (world.spans_total("exported"), world.spans_total("rejected")) == (3, 2)
    assert world.told == []


@pytest.mark.parametrize(("said", "rejected"), [(1_000_000, 2), (-5, 0), (0, 0)])
async def test_a_number_that_cannot_be_is_bounded_by_what_was_sent(world: World, said: int, rejected: int) -> None:
    world.receiver.rejects = lambda spans: (said, "odd")
    await world.observe(a_run("r1"), a_run("r2"))
    await world.once()
    assert world.spans_total("rejected") == rejected
    assert world.spans_total("exported") == 2 - rejected
    assert len(world.told) == 2 - rejected


async def test_a_message_without_rejections_is_a_warning_of_the_collector_and_no_rejection(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.receiver.rejects = lambda spans: (0, "this endpoint goes away in May")
    for number in range(4):
        await world.observe(a_run(f"r{number}"))
        assert (await world.once()).exported == 1
    assert world.spans_total("rejected") == 0
    assert [e.of.id for e in world.told] == ["r0", "r1", "r2", "r3"]
    (line,) = warnings(caplog, "")
    assert line["reason"] == "this endpoint goes away in May"


@pytest.mark.parametrize(
    ("content_type", "body", "exported", "rejected"),
    [
        ("application/json", b'{"partialSuccess": {"rejectedSpans": "2", "errorMessage": "no"}}', 0, 2),
        ("application/json; charset=utf-8", b'{"partialSuccess": {"rejectedSpans": 1}, "new": 1}', 1, 1),
        ("application/json", b"{}", 2, 0),
        ("text/plain", b"ok", 2, 0),
        ("application/x-protobuf", b"", 2, 0),
        ("application/x-protobuf", b"\xff\xff\xff", 2, 0),  # taken, for all that can be known
    ],
)
async def test_success_is_read_as_it_is_written(
    world: World, content_type: str, body: bytes, exported: int, rejected: int
) -> None:
    world.receiver.headers_out, world.receiver.answer_body = {"Content-Type": content_type}, body
    await world.observe(a_run("r1"), a_run("r2"))
    await world.once()
    assert (world.spans_total("exported"), world.spans_total("rejected")) == (exported, rejected)
    assert await world.pending() == []


async def test_a_web_page_is_no_success(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.receiver.headers_out, world.receiver.answer_body = {"Content-Type": "text/html"}, b"<html>Sign in</html>"
    await world.observe(a_run("r1"))
    assert await world.once() == ExportReport(failed=1, pending=1)
    assert "web page" in warnings(caplog, "cannot be exported")[0]["reason"]


async def test_over_grpc_what_is_rejected_is_not_exported_either(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with grpc_receiver() as receiver:
        exporter = over_grpc(world, receiver.url)
        receiver.rejects = lambda spans: (len(spans), "no")
        await world.observe(a_run("r1"), a_run("r2"))
        await world.once(exporter)
        receiver.rejects = lambda spans: (1, "no")
        await world.observe(a_run("r3"), a_run("r4"))
        await world.once(exporter)
        receiver.rejects = lambda spans: (0, "soon")
        await world.observe(a_run("r5"))
        await world.once(exporter)
    assert (world.spans_total("exported"), world.spans_total("rejected")) == (2, 3)
    assert [e.of.id for e in world.told] == ["r5"]
    assert [line["reason"] for line in warnings(caplog, "")] == ["no", "soon"]


# Too large


async def test_too_large_a_request_is_halved_at_once_and_the_size_is_remembered(world: World) -> None:
    world.receiver.bytes_max = 20_000
    await world.observe(*(a_run(f"r{n:04}") for n in range(500)))
    await until_settled(world, 2)
    assert len(set(world.receiver.run_ids)) == len(world.receiver.run_ids) == 500
    refused = sum(size > 20_000 for size in world.receiver.sizes)
    assert refused <= 8, world.receiver.sizes
    for round_ in range(10):
        await world.observe(*(a_run(f"s{round_}-{n:04}") for n in range(100)))
        await until_settled(world, 1)
    assert len(world.receiver.run_ids) == 1500
    assert sum(size > 20_000 for size in world.receiver.sizes) - refused <= 2
    assert world.spans_total("failed") == 0


async def test_the_size_grows_again_when_the_collector_takes_more(world: World) -> None:
    world.receiver.bytes_max = 3_000
    outbox = Several(*(a_run(f"r{n:02}") for n in range(25)))
    exporter = world.make(outbox=outbox)
    await world.once(exporter)
    assert max(size for size in world.receiver.sizes if size <= 3_000) > 1_000
    world.receiver.bytes_max = 1_000_000
    for _ in range(70):
        outbox.runs = tuple(a_run(f"s{n:02}") for n in range(25))
        await world.once(exporter)
    assert max(world.receiver.sizes[-5:]) > 3_500
    assert world.spans_total("failed") == 0


async def test_a_trace_that_is_too_large_by_itself_is_given_up_and_the_others_arrive(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    step = Step(id="", type="parse", started_at=T + 1, ended_at=T + 2, result=Result.SUCCESS)
    steps = tuple(replace(step, id=str(n)) for n in range(50))
    await world.observe(*(a_run(f"r{n}") for n in range(6)), a_run("fat", steps=steps))
    world.receiver.bytes_max = 4_000
    await until_settled(world, 3)
    assert set(world.receiver.run_ids) == {f"r{n}" for n in range(6)}
    assert (world.spans_total("exported"), world.spans_total("invalid")) == (6, 51)
    assert [line["run_id"] for line in warnings(caplog, "refuses")] == ["fat"]


async def test_over_grpc_a_message_that_is_too_large_is_halved_at_once(world: World) -> None:
    with grpc_receiver(bytes_max=20_000) as receiver:
        exporter = over_grpc(world, receiver.url)
        await world.observe(*(a_run(f"r{n:03}") for n in range(300)))
        await until_settled(world, 2, exporter)
        assert len(receiver.spans) == 300
    assert world.spans_total("failed") == 0


# Not now


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("said", "seconds"), [("17", 17), ("1e9", 5), ("999999", 300), ("0", 1), ("-3", 5), ("soon", 5)]
)
async def test_retry_after_is_honoured_within_bounds_and_the_status_is_named(
    world: World, status: int, said: str, seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    world.receiver.status, world.receiver.headers_out = status, {"Retry-After": said}
    await world.observe(*(a_run(f"r{n}") for n in range(4)))
    report = await world.once()
    assert (report.failed, report.pending) == (4, 4)
    assert world.receiver.requests == 1, "nothing is tried meanwhile"
    assert wait_after(report, failed_rounds=world.exporter.failed_rounds) == seconds
    assert str(status) in warnings(caplog, "cannot be exported")[0]["reason"]


async def test_retry_after_may_be_a_date_on_the_collectors_clock(world: World) -> None:
    theirs = time.time() + 86_400
    world.receiver.status = 503
    world.receiver.headers_out = {
        "Retry-After": formatdate(theirs + 40, usegmt=True),
        "Date": formatdate(theirs, usegmt=True),
    }
    await world.observe(a_run("r1"))
    report = await world.once()
    assert wait_after(report, failed_rounds=1) == 40


async def test_a_collector_that_throttles_now_and_then_loses_nothing(world: World) -> None:
    answers = iter([503, 200, 429, 200, 500, 200, 429, 200] * 50)
    take = world.receiver.answer

    async def now_and_then(request: web.Request) -> web.Response:
        world.receiver.status = next(answers)
        return await take(request)

    application = web.Application()
    application.router.add_post("/{path:.*}", now_and_then)
    async with TestServer(application) as server:
        config = TracesConfig(enabled=True, endpoint=str(server.make_url("")).rstrip("/"))
        exporter = world.make(through=make_exporter(config))
        for number in range(12):
            await world.observe(a_run(f"r{number}"), a_run(f"s{number}"))
            await world.once(exporter)
        await until_settled(world, 10, exporter)
    assert len(set(world.receiver.run_ids)) == 24
    assert world.spans_total("invalid") == 0


@pytest.mark.parametrize(
    ("status", "word"),
    [(401, "headers"), (403, "headers"), (404, "/v1/traces"), (405, "/v1/traces"), (415, "protobuf"), (407, "proxy")],
)
async def test_what_a_person_must_put_right_drops_nothing_and_says_what(
    world: World, status: int, word: str, caplog: pytest.LogCaptureFixture
) -> None:
    world.receiver.status = status
    await world.observe(*(a_run(f"r{n}") for n in range(8)))
    for _ in range(9):
        assert (await world.once()).failed == 8
    assert world.receiver.requests == 9, "there is no use in trying them one by one"
    (line,) = warnings(caplog, "")
    assert str(status) in line["reason"]
    assert word in line["reason"]
    world.receiver.status = 200
    assert (await world.once()).exported == 8


async def test_another_kind_of_failure_is_told_anew(world: World, caplog: pytest.LogCaptureFixture) -> None:
    await world.observe(a_run("r1"))
    for status in (503, 503, 401, 401, 503):
        world.receiver.status = status
        await world.once()
    reasons = [line["reason"][:3] for line in warnings(caplog, "cannot be exported")]
    assert reasons == ["503", "401", "503"]


def throttled(seconds: int) -> list[tuple[tuple[str, bytes], ...]]:
    info = RetryInfo(retry_delay=Duration(seconds=seconds))
    packed = AnyMessage()
    packed.Pack(info)
    status = Status(code=8, message="slow down", details=[packed])
    return [
        (("google.rpc.retryinfo-bin", info.SerializeToString()),),
        (("grpc-status-details-bin", status.SerializeToString()),),
    ]


@pytest.mark.parametrize("trailing", throttled(23))
@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "UNAVAILABLE"])
async def test_over_grpc_the_retry_delay_is_honoured(
    world: World, code: str, trailing: tuple[tuple[str, bytes], ...], caplog: pytest.LogCaptureFixture
) -> None:
    with grpc_receiver() as receiver:
        receiver.code, receiver.trailing = grpc.StatusCode[code], trailing
        exporter = over_grpc(world, receiver.url)
        await world.observe(*(a_run(f"r{n}") for n in range(4)))
        report = await world.once(exporter)
        assert (report.failed, report.pending, receiver.requests) == (4, 4, 1)
        assert wait_after(report, failed_rounds=1) == 23
        assert code in warnings(caplog, "cannot be exported")[0]["reason"]


@pytest.mark.parametrize("code", ["UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED"])
async def test_over_grpc_what_a_person_must_put_right_drops_nothing(world: World, code: str) -> None:
    with grpc_receiver() as receiver:
        receiver.code = grpc.StatusCode[code]
        exporter = over_grpc(world, receiver.url)
        await world.observe(*(a_run(f"r{n}") for n in range(8)))
        for _ in range(9):
            assert (await world.once(exporter)).failed == 8
        assert receiver.requests == 9
        receiver.code = None
        assert (await world.once(exporter)).exported == 8


# Poison


@pytest.mark.parametrize("status", [400, 422, 413, 500, 0])
@pytest.mark.parametrize("at", [0, 7, 99])
async def test_one_poison_trace_delays_no_other(world: World, status: int, at: int) -> None:
    """0: the collector closes the connection on it."""
    world.receiver.refused_status = status
    world.receiver.refuses = holds(f"r{at:02}")
    await world.observe(*(a_run(f"r{n:02}") for n in range(100)))
    report = await world.once()
    assert report.exported == 99
    assert set(world.receiver.run_ids) == {f"r{n:02}" for n in range(100)} - {f"r{at:02}"}


@pytest.mark.parametrize("at", [0, 7, 99])
async def test_what_is_refused_for_what_it_holds_is_given_up_in_the_same_round_and_told_once(
    world: World, at: int, caplog: pytest.LogCaptureFixture
) -> None:
    world.receiver.refuses = holds(f"r{at:02}")
    await world.observe(*(a_run(f"r{n:02}") for n in range(100)))
    assert await world.once() == ExportReport(exported=99, invalid=1)
    assert world.receiver.requests < 40
    await until_settled(world, 5)
    assert (world.spans_total("exported"), world.spans_total("invalid")) == (99, 1)
    assert [line["run_id"] for line in warnings(caplog, "")] == [f"r{at:02}"]
    assert f"r{at:02}" not in [e.of.id for e in world.told]


async def test_many_poison_traces_at_the_head_keep_nobody_waiting_for_long(world: World) -> None:
    world.receiver.refuses = lambda span: span.attributes.get("cicd.pipeline.run.id", "").startswith("bad")
    await world.observe(*(a_run(f"bad{n:03}", ended_at=T + 2) for n in range(100)))
    await world.observe(*(a_run(f"good{n:03}", ended_at=T + 3) for n in range(200)))
    report = await world.once()
    assert report.exported > 150
    assert report.backlog
    await until_settled(world, 20)
    assert len(set(world.receiver.run_ids)) == 200
    assert world.spans_total("invalid") == 100
    assert await world.pending() == []


async def test_a_trace_that_breaks_the_collector_is_given_up_late_and_never_for_one_bad_moment(world: World) -> None:
    world.receiver.refused_status, world.receiver.refuses = 500, holds("r3")
    await world.observe(*(a_run(f"r{n}") for n in range(8)))
    assert (await world.once()).exported == 7
    assert await world.pending() == ["r3"]
    for number in range(10, 40):
        await world.observe(a_run(f"r{number}"))
        assert (await world.once()).exported == 1
    assert world.spans_total("invalid") == 1
    assert await world.pending() == []


async def test_over_grpc_one_poison_trace_delays_no_other(world: World) -> None:
    with grpc_receiver() as receiver:
        receiver.refuses = holds("r07")
        exporter = over_grpc(world, receiver.url)
        await world.observe(*(a_run(f"r{n:02}") for n in range(50)))
        assert await world.once(exporter) == ExportReport(exported=49, invalid=1)
        assert len(receiver.spans) == 49


async def test_what_cannot_be_written_down_keeps_nobody_waiting(world: World) -> None:
    cut = Error(error_class=ErrorClass.NETWORK, type="cut \ud83d", message="cut \ud83d")
    outbox = Several(a_run("r1"), a_run("r2", Result.FAILURE, error=cut), a_run("r3"))
    report = await world.once(world.make(outbox=outbox))
    assert report.exported + report.invalid == 3
    assert {"r1", "r3"} <= set(world.receiver.run_ids)


# Credentials, proxies, certificates


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, str]:
    """A certificate of 127.0.0.1 that no system trusts, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("real component missing: openssl (apt-get install openssl)")
    made, key = str(tmp_path / "made.pem"), str(tmp_path / "key.pem")
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command = ["openssl", "req", "-x509", *kind, *names, "-keyout", key, "-out", made]
    subprocess.run(command, check=True, capture_output=True)
    return made, key


async def test_certificates_are_those_of_the_config_or_of_the_standard_variables(
    world: World, certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made, key = certificate
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=made)
    context.load_cert_chain(made, key)
    context.verify_mode = ssl.CERT_REQUIRED  # and the collector wants to see ours
    application = web.Application()
    application.router.add_post("/{path:.*}", world.receiver.answer)
    server = TestServer(application, scheme="https")
    await server.start_server(ssl=context)
    url = str(server.make_url("")).rstrip("/")
    await world.observe(a_run("r1"))
    exporter = world.make(through=make_exporter(TracesConfig(enabled=True, endpoint=url)))
    assert (await world.once(exporter)).failed == 1
    assert "certificate" in warnings(caplog, "cannot be exported")[0]["reason"].lower()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", made)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CLIENT_KEY", key)
    config = TracesConfig(enabled=True, endpoint=url, tls_ca_file=made)
    assert (await world.once(world.make(through=make_exporter(config)))).exported == 1
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", made)
    await world.observe(a_run("r2"))
    config = TracesConfig(enabled=True, endpoint=url)
    assert (await world.once(world.make(through=make_exporter(config)))).exported == 1
    await server.close()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    return tmp_path


async def test_a_netrc_replaces_no_credential_and_adds_none(world: World, home: Path) -> None:
    for headers in ({"Authorization": SecretStr("Bearer mine")}, {}):
        config = TracesConfig(enabled=True, endpoint=world.receiver.url, headers=headers)
        await world.observe(a_run(f"r{len(headers)}"))
        assert (await world.once(world.make(through=make_exporter(config)))).exported == 1
        assert world.receiver.headers.get("authorization") == ("Bearer mine" if headers else None)


async def test_only_a_configured_proxy_is_used(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    await world.observe(a_run("r1"))
    assert (await world.once(world.make())).exported == 1
    with grpc_receiver() as receiver:
        await world.observe(a_run("r2"))
        assert (await world.once(over_grpc(world, receiver.url))).exported == 1
    config = TracesConfig(enabled=True, endpoint="http://collector.example:4318", proxy=world.receiver.url)
    await world.observe(a_run("r3"))
    assert (await world.once(world.make(through=make_exporter(config)))).exported == 1
    assert world.receiver.headers["host"] == "collector.example:4318"


async def test_the_loop_comes_back_when_the_collector_said(world: World) -> None:
    world.receiver.status, world.receiver.headers_out = 503, {"Retry-After": "120"}
    await world.observe(a_run("r1"))

    async def meanwhile() -> None:
        if len(clock.slept) == 3:
            world.receiver.status = 200
        if not await world.pending():
            raise Done

    world.clock = clock = Skipping(meanwhile)
    with pytest.raises(Done):
        await world.make().run()
    assert clock.slept == [120, 120, 120, INTERVAL]


async def test_our_own_spans_end_soon_when_the_collector_hangs(world: World) -> None:
    world.receiver.hanging = True
    tracer = OwnTracer(make_exporter(TracesConfig(enabled=True, endpoint=world.receiver.url)))
    for number in range(2_000):  # several batches
        with tracer.span(f"sweep {number}"):
            pass
    async with asyncio.timeout(3 * CLOSING_SECONDS):
        await asyncio.to_thread(tracer.close)
