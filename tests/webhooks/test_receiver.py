"""The receiver behind a real server, on a real ledger: each outcome, what is durable, and what a sender cannot do."""

import asyncio
import contextlib
import gzip
import json
import logging
import zlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from multidict import CIMultiDict

from exporter.clock import ManualClock
from exporter.model.tallies import SUM
from exporter.platform import RunKey, WebhookEvents, WebhookRequest
from exporter.store.script import Engine, Script, StoreError, T
from exporter.store.sqlite import SqliteEngine
from exporter.web import doors
from exporter.webhooks import receiver as receiver_module
from exporter.wire import body as bodies
from exporter.wire import schemes
from tests.servers import HANG_SECONDS, PATIENCE_SECONDS, eventually
from tests.webhooks.service import BODY_BYTES_MAX, SCHEME, SECRET, SOURCE, Fronted, Receiving, receiving, sign

NOW = 1_772_440_000.0
PATH = f"/webhooks/{SOURCE}"
HEADER = schemes.Header(header="X-Token", secrets=(SECRET,))
TOKEN = {"X-Token": SECRET}
#: Well formed, so that it takes the body to see that it is wrong.
FORGED = {"X-Signature": "00" * 32}


def event(run_id: str = "r1", **more: object) -> dict[str, object]:
    finished: dict[str, object] = {
        "event": "run.finished",
        "workflow_id": "5012",
        "run_id": run_id,
        "result": "success",
        "started_at": NOW - 60.0,
        "ended_at": NOW - 20.0,
        "occurred_at": NOW - 20.0,
    }
    return finished | more


def signed(body: bytes) -> dict[str, str]:
    return {"Content-Type": "application/json", **sign(SCHEME, body, NOW)}


class Answer:
    """Status, headers and decoded body."""

    def __init__(self, response: aiohttp.ClientResponse, body: bytes) -> None:
        self.status = response.status
        self.headers = response.headers
        self.data: dict[str, str] = json.loads(body)


async def post(to: Receiving, payload: object, headers: Mapping[str, str] | None = None, **more: Any) -> Answer:
    """POST an object as signed JSON, or bytes as they are; ``headers`` come on top, or instead when there are bytes."""
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    sent = (headers or {}) if isinstance(payload, bytes) else {**signed(body), **(headers or {})}
    url = f"http://127.0.0.1:{to.port}{PATH}"
    async with aiohttp.ClientSession() as session, session.post(url, data=body, headers=sent, **more) as response:
        return Answer(response, await response.read())


async def raw(to: Receiving, request: bytes, *, close: bool = False) -> bytes:
    """Send bytes as they are and read until the first answer is there, or the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", to.port)
    try:
        writer.write(request)
        if close:
            writer.write_eof()
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await reader.read(65_536)
    finally:
        writer.close()


def half_a_webhook() -> bytes:
    """The head of one that may be authentic."""
    signature = FORGED["X-Signature"]
    return f"POST {PATH} HTTP/1.1\r\nHost: x\r\nX-Signature: {signature}\r\nContent-Length: 100\r\n\r\n".encode()


async def in_progress(on: Receiving, requests: int) -> None:
    """Wait until so many webhooks are being handled."""

    async def reached() -> bool:
        return on.receiver._requests == requests

    await eventually(reached, every=0.005)


async def runs_counted(to: Receiving) -> float:
    tallies = (await to.ledger.load()).tallies
    return sum(value for key, value in tallies.items() if key[0] == "automation_runs_total" and key[4] == SUM)


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Receiving]:
    async with receiving(tmp_path / "t.db", clock=ManualClock(NOW)) as running:
        yield running


# What is taken


async def test_an_event_is_answered_202_when_it_is_durable_and_counted(service: Receiving) -> None:
    answer = await post(service, event())
    assert (answer.status, answer.data) == (202, {"status": "stored"})
    assert service.outcomes() == {"accepted": 1}
    assert await runs_counted(service) == 1
    shown = b"".join(service.projection.registry.render(openmetrics=False))
    assert b'automation_runs_total{platform="generic",source="hooks",workflow_id="5012",result="success"} 1' in shown


async def test_a_repeated_event_is_answered_202_and_changes_nothing(service: Receiving) -> None:
    await post(service, event())
    before = await service.ledger.load()
    answer = await post(service, event())
    assert (answer.status, answer.data) == (202, {"status": "stored"})
    assert service.outcomes() == {"accepted": 1, "duplicate": 1}
    assert await service.ledger.load() == before


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"message": "x', rb'"message": "cut \ud83d'),  # as JavaScript writes half an emoji
        (b'"message": "x', b'"message": "M\xfcller \xed\xa0\xbd'),  # Latin-1, and half an emoji as bytes
        (b"{", b"\xef\xbb\xbf{"),
    ],
)
async def test_an_event_with_a_text_that_is_none_is_counted_all_the_same(
    service: Receiving, before: bytes, after: bytes
) -> None:
    failed = event(result="failure", error={"type": "ConnectionError", "message": "x"})
    body = json.dumps(failed).encode().replace(before, after, 1)
    assert (await post(service, body, signed(body))).status == 202
    assert service.outcomes() == {"accepted": 1}
    assert await runs_counted(service) == 1


async def test_an_event_of_unknown_type_is_answered_202_and_stores_nothing(service: Receiving) -> None:
    answer = await post(service, {"event": "run.teleported", "workflow_id": "w", "run_id": "r"})
    assert (answer.status, answer.data) == (202, {"status": "ignored"})
    assert service.outcomes() == {"unknown_type": 1}
    assert (await service.ledger.load()).workflows == {}


async def test_a_batch_is_stored_whole_and_what_is_unknown_in_it_is_passed_over(service: Receiving) -> None:
    batch = [event("a"), {"event": "run.teleported"}, event("b", workflow_id="7"), event("a")]
    assert (await post(service, batch)).status == 202
    assert service.outcomes() == {"accepted": 1}
    assert await runs_counted(service) == 2


async def test_events_that_say_too_little_wake_the_poller_once(service: Receiving) -> None:
    assert (await post(service, event(result="failure"))).status == 202
    assert (await post(service, event(result="failure"))).status == 202
    assert (await post(service, event("r2", result=None))).status == 202
    assert (await post(service, {"event": "dead_letter.opened", "workflow_id": "5012"})).status == 202
    assert service.asked.runs == [RunKey(run_id=run_id, workflow_id="5012") for run_id in ("r1", "r2")]
    assert service.asked.streams == ["dead_letters"]
    assert service.outcomes() == {"accepted": 3, "duplicate": 1}


async def test_the_delay_is_measured_once_from_the_event_to_its_being_stored(service: Receiving) -> None:
    for _ in range(2):
        await post(service, event())
    samples = {s.name: s.value for family in service.own.webhook_delay.collect() for s in family.samples}
    assert samples["automation_exporter_webhook_delay_seconds_count"] == 1
    assert samples["automation_exporter_webhook_delay_seconds_sum"] == 20.0


async def test_a_first_webhook_sets_the_baseline_at_its_own_end_but_not_far_back(tmp_path: Path) -> None:
    for ended, baseline in ((NOW - 20.0, NOW - 20.0), (NOW - 86_400.0, NOW - 300.0), (NOW + 50.0, NOW)):
        async with receiving(tmp_path / f"{ended}.db", clock=ManualClock(NOW)) as service:
            await post(service, event(ended_at=ended))
            assert (await service.ledger.load()).first_sweeps == {SOURCE: baseline}


async def test_compressed_bodies_are_verified_and_read_as_what_they_hold(service: Receiving) -> None:
    body = json.dumps(event()).encode()
    headers = signed(body) | {"Content-Encoding": "gzip"}
    assert (await post(service, gzip.compress(body), headers)).status == 202
    assert service.outcomes() == {"accepted": 1}


async def test_cloudevents_senders_that_ask_first_may_send(service: Receiving) -> None:
    asking = {"WebHook-Request-Origin": "sender.example"}
    url = f"http://127.0.0.1:{service.port}{PATH}"
    async with aiohttp.ClientSession() as session, session.options(url, headers=asking) as response:
        assert response.status == 200
        assert response.headers["WebHook-Allowed-Origin"] == "sender.example"
        assert int(response.headers["WebHook-Allowed-Rate"]) > 0
    assert service.outcomes() == {}


# What is refused


@pytest.mark.parametrize(
    "headers",
    [{}, {"X-Signature": "00" * 32}, {"X-Signature": "no hex"}, {"X-Signature": ""}, {"Authorization": SECRET}],
)
async def test_what_is_not_signed_with_the_secret_is_answered_401(service: Receiving, headers: dict[str, str]) -> None:
    answer = await post(service, json.dumps(event()).encode(), headers)
    assert (answer.status, answer.data) == (401, {"error": "the webhook is not authenticated"})
    assert service.outcomes() == {"unauthenticated": 1}
    assert await runs_counted(service) == 0


@pytest.mark.parametrize("name", ["X-Signature", "x-signature", "X-SIGNATURE"])
async def test_headers_are_found_in_any_case_and_the_first_of_a_repeated_one_decides(
    service: Receiving, name: str
) -> None:
    body = json.dumps(event()).encode()
    true = sign(SCHEME, body, NOW)["X-Signature"]
    for first, second, status in ((true, "00" * 32, 202), ("00" * 32, true, 401)):
        headers = CIMultiDict([("Content-Type", "application/json"), (name, first), (name, second)])
        assert (await post(service, body, headers)).status == status


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe{}",
        b'{"event": "run.finished", "workflow_id": "\\ud800", "run_id": "r"}',
        b"[" * 60_000,
        b'{"event":' * 5_000 + b"1" + b"}" * 5_000,
        b"1e400",
        b"9" * 5_000,
        b'"text"',
        b"[1]",
        b"NaN",
        b'{"event": 7}',
        b'{"event": "run.finished"}',
    ],
)
async def test_a_signed_body_that_is_no_event_is_answered_400(service: Receiving, body: bytes) -> None:
    answer = await post(service, body, signed(body))
    assert answer.status == 400
    assert answer.data["error"]
    assert service.outcomes() == {"malformed": 1}


async def test_other_content_types_are_answered_415(service: Receiving) -> None:
    answer = await post(service, event(), {"Content-Type": "application/x-www-form-urlencoded"})
    assert (answer.status, answer.data) == (415, {"error": "send application/json"})
    assert service.outcomes() == {"malformed": 1}


async def test_a_mapping_that_breaks_costs_the_webhook_and_no_500(tmp_path: Path) -> None:
    def broken(request: WebhookRequest) -> WebhookEvents:
        raise KeyError("payload of a customer")

    async with receiving(tmp_path / "t.db", receive=broken) as service:
        answer = await post(service, event())
        assert (answer.status, answer.data) == (400, {"error": "the event cannot be read"})
        assert service.outcomes() == {"malformed": 1}


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_beyond_the_limit_is_answered_413(service: Receiving, chunked: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(BODY_BYTES_MAX // 1000 + 1):
            yield b"a" * 1000

    url = f"http://127.0.0.1:{service.port}{PATH}"
    body = pieces() if chunked else b"a" * (BODY_BYTES_MAX + 1)
    async with aiohttp.ClientSession() as session, session.post(url, data=body, headers=FORGED) as response:
        assert response.status == 413
    assert service.outcomes() == {"too_large": 1}


async def test_a_body_exactly_at_the_limit_is_read(service: Receiving) -> None:
    body = json.dumps(event()).encode().ljust(BODY_BYTES_MAX)
    assert (await post(service, body, signed(body))).status == 202


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_body_that_unpacks_beyond_the_limit_is_answered_413(service: Receiving, encoding: str) -> None:
    bomb = gzip.compress(bytes(50_000_000)) if encoding == "gzip" else zlib.compress(bytes(50_000_000))
    assert len(bomb) < BODY_BYTES_MAX
    answer = await post(service, bomb, FORGED | {"Content-Encoding": encoding})
    assert answer.status == 413
    assert service.outcomes() == {"too_large": 1}


@pytest.mark.parametrize("body", [b"not gzip at all", gzip.compress(b"{}", mtime=0)[:5] + b"\xff" * 20])
async def test_a_corrupt_gzip_body_is_answered_400(service: Receiving, body: bytes) -> None:
    answer = await post(service, body, FORGED | {"Content-Encoding": "gzip"})
    assert (answer.status, answer.data) == (400, {"error": "the body cannot be read"})
    assert service.outcomes() == {"malformed": 1}


async def test_a_body_that_does_not_arrive_in_time_is_answered_408(
    service: Receiving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver_module, "READ_SECONDS_MAX", 0.05)
    head = half_a_webhook()
    assert (await raw(service, head + b'{"event":')).startswith(b"HTTP/1.1 408 ")
    assert service.outcomes() == {"malformed": 1}


async def test_a_sender_that_goes_away_in_the_middle_is_counted_and_holds_nothing(service: Receiving) -> None:
    head = half_a_webhook()
    assert await raw(service, head + b'{"event":', close=True) == b""
    await in_progress(service, 0)
    assert service.outcomes() == {"malformed": 1}
    assert (await post(service, event())).status == 202


# Strangers pay first


def bomb() -> bytes:
    """Two kilobytes that unpack to two megabytes."""
    return gzip.compress(bytes(2_000_000))


@pytest.mark.parametrize(
    "scheme", [HEADER, schemes.Basic(username="u", passwords=(SECRET,)), schemes.Bearer(tokens=(SECRET,))]
)
async def test_a_proof_in_the_headers_is_checked_before_the_body(tmp_path: Path, scheme: schemes.Scheme) -> None:
    async with receiving(tmp_path / "t.db", scheme=scheme, requests_max=1) as service:
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n"
        for proof in ("", "X-Token: no\r\n", "Authorization: Bearer no\r\n", "Authorization: Basic bm86bm8=\r\n"):
            for encoding in ("", "Content-Encoding: gzip\r\n", "Content-Encoding: br\r\n"):
                answer = await raw(service, f"{head}{proof}{encoding}\r\n".encode())  # and no body at all
                assert answer.startswith(b"HTTP/1.1 401 "), (proof, encoding)
        assert service.outcomes() == {"unauthenticated": 12}


@pytest.mark.parametrize(
    "scheme", [SCHEME, schemes.Qlik(secrets=(SECRET,)), schemes.StandardWebhooks(secrets=(SECRET,))]
)
async def test_a_body_without_a_signature_is_not_read(tmp_path: Path, scheme: schemes.Scheme) -> None:
    async with receiving(tmp_path / "t.db", scheme=scheme) as service:
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n".encode()
        assert (await raw(service, head)).startswith(b"HTTP/1.1 401 ")
        assert service.outcomes() == {"unauthenticated": 1}


async def test_forged_bodies_that_do_not_arrive_are_in_nobodys_way(tmp_path: Path) -> None:
    async with receiving(tmp_path / "t.db", clock=ManualClock(NOW), requests_max=4) as service:
        waiting = [await asyncio.open_connection("127.0.0.1", service.port) for _ in range(8)]
        for _, writer in waiting:
            writer.write(half_a_webhook() + b"{")
            await writer.drain()
        assert (await post(service, event())).status == 202
        for _, writer in waiting:
            writer.close()


async def test_of_too_many_bodies_that_are_waited_for_the_oldest_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver_module, "WAITING_PER_PEER_MAX", 2)
    body = json.dumps(event()).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in signed(body).items()) + "\r\n"
    async with receiving(tmp_path / "t.db", clock=ManualClock(NOW)) as service:
        slow = [await asyncio.open_connection("127.0.0.1", service.port) for _ in range(3)]
        for _, writer in slow[:2]:
            writer.write(half_a_webhook())
            await asyncio.sleep(0.05)  # the server is to see them in this order
        slow[2][1].write(head.encode())
        async with asyncio.timeout(10):
            assert (await slow[0][0].read(100)).startswith(b"HTTP/1.1 408 ")
            slow[2][1].write(body)
            assert (await slow[2][0].read(100)).startswith(b"HTTP/1.1 202 ")
        for _, writer in slow:
            writer.close()
        assert service.outcomes() == {"malformed": 1, "accepted": 1}


async def test_what_is_not_proven_is_not_unpacked_far(service: Receiving) -> None:
    for _ in range(3):
        answer = await post(service, bomb(), FORGED | {"Content-Encoding": "gzip"})
        assert answer.status == 413  # the limit here is where unpacking ends for strangers, too
    small = gzip.compress(json.dumps(event()).encode())
    assert (await post(service, small, FORGED | {"Content-Encoding": "gzip"})).status == 401
    assert service.outcomes() == {"too_large": 3, "unauthenticated": 1}


async def test_nothing_is_unpacked_before_the_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked: list[int] = []
    unpack = bodies.unpack

    async def watched(body: bytes, coding: str, *, limit: int) -> bytes:
        unpacked.append(len(body))
        return await unpack(body, coding, limit=limit)

    monkeypatch.setattr(bodies, "unpack", watched)
    async with receiving(tmp_path / "t.db", scheme=HEADER, clock=ManualClock(NOW)) as service:
        gzipped = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
        for proof in ({}, {"X-Token": "no"}):
            assert (await post(service, bomb(), gzipped | proof)).status == 401
        assert unpacked == []
        assert (await post(service, bomb(), gzipped | TOKEN)).status == 413
        body = gzip.compress(json.dumps(event()).encode())
        assert (await post(service, body, gzipped | TOKEN)).status == 202
        assert len(unpacked) == 2


@pytest.mark.parametrize("signs_packed", [True, False])
@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("X-GZIP", gzip.compress),
        ("GZip, identity", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda body: zlib.compress(body)[2:-4]),  # raw, as some send it
        ("gzip", lambda body: gzip.compress(body[:9]) + gzip.compress(body[9:])),
    ],
)
async def test_senders_may_sign_before_or_after_they_compress(
    service: Receiving, encoding: str, pack: Callable[[bytes], bytes], signs_packed: bool
) -> None:
    body = json.dumps(event()).encode()
    sent = pack(body)
    headers = signed(sent if signs_packed else body) | {"Content-Encoding": encoding}
    assert (await post(service, sent, headers)).status == 202
    assert service.outcomes() == {"accepted": 1}


@pytest.mark.parametrize(
    "encoding", ["br", "zstd", "compress", "gzip, gzip", "gzip, br", "deflate,gzip", "aes128gcm", "*"]
)
async def test_other_encodings_are_answered_415_with_those_that_may_be_sent(service: Receiving, encoding: str) -> None:
    body = json.dumps(event()).encode()
    answer = await post(service, body, signed(body) | {"Content-Encoding": encoding})
    assert answer.status == 415
    assert answer.headers["Accept-Encoding"] == "gzip, deflate"
    assert service.outcomes() == {"malformed": 1}


# Attributes outside the signature

BINARY = {
    "ce-specversion": "1.0",
    "ce-id": "1",
    "ce-source": "/x",
    "ce-type": "run.finished",
    "Content-Type": "application/json",
}


@pytest.mark.parametrize(
    "scheme",
    [
        schemes.HmacSha256(header="X-Signature", secrets=(SECRET,)),
        schemes.Qlik(secrets=(SECRET,)),
        schemes.StandardWebhooks(secrets=(SECRET,)),
    ],
    ids=lambda scheme: scheme.name,
)
async def test_attributes_in_headers_are_refused_where_only_the_body_is_signed(
    tmp_path: Path, scheme: schemes.Scheme
) -> None:
    body = json.dumps(event()).encode()
    structured = {"Content-Type": "application/cloudevents+json"}
    wrapped = {"specversion": "1.0", "id": "1", "source": "/x", "type": "run.finished", "data": event()}
    whole = json.dumps(wrapped).encode()
    async with receiving(tmp_path / "t.db", scheme=scheme, clock=ManualClock(NOW)) as service:
        refused = await post(service, body, sign(scheme, body, NOW) | BINARY)
        assert refused.status == 400
        assert refused.data == {"error": "ce- headers are not signed: send the event in the body"}
        assert (await post(service, whole, sign(scheme, whole, NOW) | structured)).status == 202
        assert service.outcomes() == {"malformed": 1, "accepted": 1}


async def test_attributes_in_headers_are_read_where_a_secret_authenticates_the_whole_request(tmp_path: Path) -> None:
    body = json.dumps({key: value for key, value in event().items() if key != "event"}).encode()
    async with receiving(tmp_path / "t.db", scheme=HEADER, clock=ManualClock(NOW)) as service:
        assert (await post(service, body, TOKEN | BINARY)).status == 202
        assert await runs_counted(service) == 1


# The store


class Flaky(Fronted):
    """An engine that can be told to fail, or to hold everything back."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.broken = False
        self.open = asyncio.Event()
        self.open.set()
        self.transactions = 0

    async def run(self, script: Script[T], *, sources: Collection[str] | None = None) -> T:
        await self.open.wait()
        if self.broken:
            raise StoreError("the disk is full")
        self.transactions += 1
        return await self.engine.run(script, sources=sources)


@asynccontextmanager
async def flaky(tmp_path: Path, **more: Any) -> AsyncIterator[tuple[Receiving, Flaky]]:
    made: list[Flaky] = []

    def engine(inner: Engine) -> Engine:
        made.append(Flaky(inner))
        return made[0]

    async with receiving(tmp_path / "t.db", engine=engine, clock=ManualClock(NOW), **more) as service:
        yield service, made[0]


async def test_what_cannot_be_stored_is_answered_503_and_not_acknowledged(tmp_path: Path) -> None:
    async with flaky(tmp_path) as (service, store):
        store.broken = True
        answer = await post(service, event(result="failure"))
        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) > 0
        assert service.outcomes() == {"unavailable": 1}
        assert service.asked.runs == []
        store.broken = False
        assert await runs_counted(service) == 0
        assert (await post(service, event(result="failure"))).status == 202
        assert service.outcomes() == {"unavailable": 1, "accepted": 1}


async def test_a_full_disk_is_answered_503_and_room_made_later_is_used(tmp_path: Path) -> None:
    def leave_room(pages: int) -> Script[None]:
        rows = yield "PRAGMA page_count", ()
        yield f"PRAGMA max_page_count = {rows[0][0] + pages}", ()

    async with flaky(tmp_path) as (service, store):
        await store.engine.run(leave_room(40))
        answers = [await post(service, [event(f"r{i}-{j}") for j in range(50)]) for i in range(30)]
        taken = [answer for answer in answers if answer.status == 202]
        assert {answer.status for answer in answers} == {202, 503}
        assert isinstance(store.engine, SqliteEngine)
        connection = store.engine._connection
        [(counted,)] = connection.execute("SELECT count(*) FROM runs")
        assert counted == 50 * len(taken)
        with pytest.raises(StoreError, match="full"):
            await service.ledger.probe()
        connection.execute("PRAGMA max_page_count = 10000")
        await service.ledger.probe()
        assert [(await post(service, [event(f"r{i}-{j}") for j in range(50)])).status for i in range(30)] == [202] * 30
        assert await runs_counted(service) == 1500
        assert service.outcomes() == {"accepted": 30, "unavailable": 30 - len(taken), "duplicate": len(taken)}


async def test_a_database_that_is_gone_is_answered_503(tmp_path: Path) -> None:
    async with flaky(tmp_path) as (service, store):
        assert isinstance(store.engine, SqliteEngine)
        store.engine._connection.close()
        assert (await post(service, event())).status == 503
        assert service.outcomes() == {"unavailable": 1}


async def test_nothing_is_answered_before_the_commit_and_waiting_webhooks_share_one(tmp_path: Path) -> None:
    async with flaky(tmp_path) as (service, store):
        store.open.clear()
        before = store.transactions
        sent = [asyncio.create_task(post(service, event(f"r{i % 30}"))) for i in range(40)]
        await in_progress(service, 40)
        assert not any(task.done() for task in sent)
        assert service.outcomes() == {}
        store.open.set()
        assert {answer.status for answer in await asyncio.gather(*sent)} == {202}
        assert store.transactions - before <= 2
        assert service.outcomes() == {"accepted": 30, "duplicate": 10}
        assert await runs_counted(service) == 30


class Spy(Fronted):
    """An engine that remembers the statements it ran, and how many values each had."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.statements: dict[str, int] = {}

    async def run(self, script: Script[T], *, sources: Collection[str] | None = None) -> T:
        return await self.engine.run(self._remembering(script), sources=sources)

    def _remembering(self, script: Script[T]) -> Script[T]:
        sql, values = next(script)
        while True:
            self.statements[sql] = len(values)
            rows = yield sql, values
            try:
                sql, values = script.send(rows)
            except StopIteration as stop:
                result: T = stop.value
                return result


async def test_no_lookup_of_a_webhook_reads_a_whole_table(tmp_path: Path) -> None:
    def plan(sql: str, values: int) -> Script[list[str]]:
        rows = yield f"EXPLAIN QUERY PLAN {sql}", ["x"] * values
        return [row[3] for row in rows]

    spies: list[Spy] = []

    def spying(engine: Engine) -> Engine:
        spies.append(Spy(engine))
        return spies[0]

    async with receiving(tmp_path / "t.db", engine=spying, clock=ManualClock(NOW)) as service:
        spies[0].statements.clear()
        batch = [event(f"r{i}", workflow_id=f"w{i}", result="failure", ended_at=NOW - 50 + i) for i in range(3)]
        for told in (batch, [one | {"run_id": "s", "result": "success", "ended_at": NOW} for one in batch]):
            assert (await post(service, told)).status == 202
        looked_up = {sql: values for sql, values in spies[0].statements.items() if sql.lstrip().startswith("SELECT")}
        assert len(looked_up) >= 3
        for sql, values in looked_up.items():
            steps = await spies[0].engine.run(plan(sql, values))
            assert [step for step in steps if step.startswith("SCAN") and "CONSTANT" not in step] == [], sql


async def test_webhooks_beyond_the_limit_are_answered_503_while_the_others_wait(tmp_path: Path) -> None:
    async with flaky(tmp_path, requests_max=5) as (service, store):
        store.open.clear()
        sent = [asyncio.create_task(post(service, event(f"r{i}"))) for i in range(5)]
        await in_progress(service, 5)
        refused = await post(service, event("r6"))
        assert (refused.status, refused.data) == (503, {"error": "too many webhooks at once"})
        assert "Retry-After" in refused.headers
        store.open.set()
        assert [answer.status for answer in await asyncio.gather(*sent)] == [202] * 5
        assert (await post(service, event("r6"))).status == 202


async def test_a_sender_that_stops_waiting_loses_nothing_and_frees_its_place(tmp_path: Path) -> None:
    async with flaky(tmp_path, requests_max=1) as (service, store):
        store.open.clear()
        impatient = asyncio.create_task(post(service, event()))
        await in_progress(service, 1)
        impatient.cancel()
        await asyncio.gather(impatient, return_exceptions=True)
        store.open.set()
        await in_progress(service, 0)
        assert service.outcomes() == {"accepted": 1}
        assert (await post(service, event())).data == {"status": "stored"}
        assert service.outcomes() == {"accepted": 1, "duplicate": 1}


# The connection


@asynccontextmanager
async def listening(monkeypatch: pytest.MonkeyPatch, *, head_seconds_max: float) -> AsyncIterator[int]:
    """The service's own listener in front of a handler that echoes; the port."""

    async def echo(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    monkeypatch.setattr(doors, "HEAD_SECONDS_MAX", head_seconds_max)
    app = web.Application()
    app.router.add_post("/", echo)
    opened = doors.Doors()
    port = await opened.open("127.0.0.1:0", app)
    try:
        yield port
    finally:
        await opened.close()


HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"


@pytest.mark.parametrize("sent", [b"", b"P", HEAD[:-2], HEAD[:20]])
async def test_a_connection_that_does_not_complete_its_first_head_is_closed(
    monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    async with listening(monkeypatch, head_seconds_max=0.1) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await reader.read() == b""
        writer.close()


async def test_a_head_that_trickles_in_wins_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = 0

    async def trickle(writer: asyncio.StreamWriter) -> None:
        nonlocal lines
        while True:
            writer.write(b"X-A: b\r\n")
            lines += 1
            await asyncio.sleep(0.02)

    async with listening(monkeypatch, head_seconds_max=0.2) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\n")
        trickling = asyncio.create_task(trickle(writer))
        with contextlib.suppress(ConnectionResetError):  # whatever was on its way when the connection was closed
            assert await reader.read() == b""
        assert lines < 75, "fewer than the 128 that are refused as too many"
        trickling.cancel()
        writer.close()


async def test_idle_connections_and_slow_bodies_outlast_the_time_for_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(monkeypatch, head_seconds_max=HANG_SECONDS / 2) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for piece in (b"{}", b"[]"):
            writer.write(HEAD + piece[:1])
            await asyncio.sleep(0.6 * HANG_SECONDS)
            writer.write(piece[1:])
            async with asyncio.timeout(PATIENCE_SECONDS):
                assert (await reader.readuntil(piece)).startswith(b"HTTP/1.1 200 ")
            await asyncio.sleep(0.6 * HANG_SECONDS)
        writer.write(HEAD[:10])
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"POST / HTTP/9\r\n\r\n",
        b"POST / HTTP/1.1\r\nA\0: b\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_answered_400_and_logged_at_debug_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, request_bytes: bytes
) -> None:
    async with listening(monkeypatch, head_seconds_max=5.0) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_bytes)
        assert (await reader.read()).startswith(b"HTTP/1.0 400 ")
        writer.close()
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


async def test_an_expectation_that_is_no_text_is_answered_400(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(monkeypatch, head_seconds_max=5.0) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nExpect: 100-continu\x80e\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.0 400 ")
        writer.close()


async def test_what_cannot_be_read_is_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(monkeypatch, head_seconds_max=5.0) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nX-Token: %b\0\r\n\r\n" % SECRET.encode())
        answer = await reader.read()
        writer.close()
    assert answer.endswith(b"this is not HTTP")
    assert SECRET.encode() not in answer
