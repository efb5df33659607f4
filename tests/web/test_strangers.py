"""What somebody without a secret may send to any address, and what it may cost the others: nothing but a refusal."""

import asyncio
import base64
import itertools
import logging
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import bcrypt
import pytest

from exporter.clock import ManualClock
from exporter.config import BasicAuthConfig
from exporter.web import doors, proof
from exporter.web.proof import Passwords, Verdict
from tests.e2e.deployment import Deployment, deployment
from tests.e2e.test_truth import ROOMY

TOKEN = "an-admin-token-nobody-guesses"
HASHES = {"ops": bcrypt.hashpw(b"open sesame", bcrypt.gensalt(4)).decode()}


def basic(credentials: bytes) -> bytes:
    return b"Basic " + base64.b64encode(credentials)


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Deployment]:
    changes = {"server": {"listen": "127.0.0.1:0", "webhooks_listen": "127.0.0.1:0", "admin_token": TOKEN}}
    async with deployment(tmp_path, platforms=["make"], options=ROOMY, changes=changes) as made:
        yield made


@pytest.fixture
async def guarded(made: Deployment) -> Deployment:
    """The same behind a password."""
    await guard(made)
    return made


async def guard(made: Deployment) -> None:
    auth = BasicAuthConfig(users=HASHES)
    server = made.config.server.model_copy(update={"basic_auth": auth})
    made.config = made.config.model_copy(update={"server": server})
    await made.restart()


# Bytes that are no text


PATHS = [
    b"/",
    b"/metrics",
    b"/-/healthy",
    b"/-/ready",
    b"/sign-in",
    b"/act/pause",
    b"/act/%ff",
    b"/approve?policy=%ff%00",
    b"/api/v1/status?a=%ff",
    b"/api/v1/retries/%ff",
    b"/api/v1/retries/pause",
    b"/api/v1/dead-letters/make/%ff/retry",
    b"/webhooks/make?%ff=%00",
    b"/webhooks/%ff",
    b"/%00",
    b"/\xff",
    b"/nope",
]
VALUES = {
    b"Authorization": [
        b"\xff",
        b"Bearer \xff",
        b"Bearer \xed\xa0\x80",
        b"Bearer \x85\xa0",
        b"Bearer",
        b"Basic",
        b"Basic \xff",
        b"Basic !",
        basic(b"nocolon"),
        basic(b"\xff:\xfe"),
        basic(b"ops:\0"),
        basic(b"ops:" + b"x" * 3000),
        basic(b":"),
        b"Digest \xff",
    ],
    b"Cookie": [
        b"automation_exporter_session=\xff",
        b"\xff=\xff",
        b'automation_exporter_session="\\777',
        b";;=;",
        b"a=b" * 900,
    ],
    b"Accept": [
        b"\xff",
        b"*/*;q=\xff",
        b"text/plain;q=nan",
        b";;;,,,",
        b"application/openmetrics-text;version=\xff;q=1e999",
    ],
    b"Accept-Encoding": [b"\xff", b"gzip;q=\xff", b"gzip;q=nan"],
    b"Content-Type": [
        b"\xff",
        b"multipart/form-data",
        b"multipart/form-data; boundary=\xff",
        b"text/plain; charset=\xff",
        b"application/x-www-form-urlencoded; charset=nonsense",
        b"application/json; charset=\xff",
        b";",
        b"/",
    ],
    b"Content-Encoding": [b"\xff", b"gzip", b"br", b"gzip,gzip"],
    b"Content-Length": [b"-1", b"\xff", b"1e3", b"99999999999999999999999999", b"+4"],
    b"Transfer-Encoding": [b"\xff", b"gzip, chunked"],
    b"Origin": [b"http://[", b"\xff", b"null"],
    b"X-Forwarded-Host": [b"\xff", b"[", b","],
    b"Sec-Fetch-Site": [b"\xff"],
    b"Expect": [b"\xff"],
    b"Range": [b"\xff", b"bytes=9-1"],
    b"If-Modified-Since": [b"\xff"],
    b"Upgrade": [b"\xff"],
    b"ce-id": [b"\xff", b"%ff"],
    b"X-Webhook-Token": [b"\xff", b"\xc3\xa9"],
}


async def answer_to(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        async with asyncio.timeout(20):
            return await reader.read(65_536)
    finally:
        writer.close()


@pytest.mark.parametrize("behind_a_password", [False, True])
async def test_no_header_path_or_cookie_is_an_error_of_ours(
    made: Deployment, behind_a_password: bool, caplog: pytest.LogCaptureFixture
) -> None:
    if behind_a_password:
        await guard(made)
    sent = 0
    for path, (name, values) in itertools.product(PATHS, VALUES.items()):
        for number, value in enumerate(values):
            method = b"POST" if (number + len(path)) % 2 else b"GET"
            body = b"" if name in (b"Content-Length", b"Transfer-Encoding") else b"Content-Length: 3\r\n"
            head = b"%b %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%b%b: %b\r\n\r\n" % (
                method,
                path,
                body,
                name,
                value,
            )
            port = made.service.webhooks_port if path.startswith(b"/webhooks") else made.service.port
            answer = await answer_to(port, head + b"a=\xff")
            status = re.match(rb"HTTP/1\.\d (\d{3}) ", answer)
            assert status is not None, (path, name, value, answer)
            allowed = (503,) if path == b"/-/ready" else ()
            assert int(status[1]) < 500 or int(status[1]) in allowed, (path, name, value, answer)
            sent += 1
    assert sent > 900
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.INFO] == []


async def test_who_knows_the_token_may_send_nonsense_too(made: Deployment, caplog: pytest.LogCaptureFixture) -> None:
    pages = {b"/api/v1/retries/pause": 0, b"/api/v1/dead-letters/make/%ff/hold": 0, b"/api/v1/retries/approve": 0}
    bodies = [
        b"",
        b"\xff",
        b"{",
        b"[]",
        b'{"who": "\\ud800"}',
        b'{"for": "\xff"}',
        b'{"ids": ["\\ud800/\\udfff"]}',
        b'{"for": NaN}',
    ]
    for path, body in itertools.product(pages, bodies):
        for encoding in (b"", b"Content-Encoding: gzip\r\n", b"Content-Encoding: br\r\n"):
            head = b"POST %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer %b\r\n" % (
                path,
                TOKEN.encode(),
            )
            length = b"Content-Length: %d\r\n\r\n" % len(body)
            answer = await answer_to(made.service.port, head + encoding + length + body)
            assert re.match(rb"HTTP/1\.1 [24]\d\d ", answer), (path, body, encoding, answer)
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.INFO] == []


FORMS = [
    (b"multipart/form-data; boundary=x", b"--x\r\ngarbage"),
    (b"multipart/form-data", b""),
    (b"multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="csrf"\r\n\r\na\r\n--x--\r\n'),
    (b"text/plain", b"csrf=a&token=b"),
    (b"application/json", b'{"csrf": 1}'),
    (b"application/x-www-form-urlencoded", b""),
    (b"application/x-www-form-urlencoded", b"token=only"),
    (b"application/x-www-form-urlencoded", b"csrf=%ff&token=%ff"),
    (b"application/x-www-form-urlencoded", b"csrf=\xff\x00&token=\xff"),
    (b"application/x-www-form-urlencoded; charset=nonsense", b"csrf=a&token=b"),
    (b"application/x-www-form-urlencoded; charset=utf-16", b"csrf=a&token=b"),
    (b"application/x-www-form-urlencoded", b"&".join(b"a=1" for _ in range(5_001))),
    (b"application/x-www-form-urlencoded", b"csrf=" + b"a" * 200_000),
    (b"\xff", b"csrf=a"),
    (b"", b"csrf=a"),
]


async def test_forms_that_are_none_are_refused(made: Deployment, caplog: pytest.LogCaptureFixture) -> None:
    for (kind, body), path in itertools.product(FORMS, (b"/sign-in", b"/sign-out", b"/act/pause")):
        head = b"POST %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: %b\r\n" % (path, kind)
        answer = await answer_to(made.service.port, head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        expected = rb"HTTP/1\.1 (400|401|403|413|415) " if path == b"/sign-in" else rb"HTTP/1\.1 303 "
        assert re.match(expected, answer), (path, kind, body[:50], answer)
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.INFO] == []


# Guessing


async def test_wrong_tokens_lock_out_their_own_peer_and_nobody_else(made: Deployment) -> None:
    async with made.session.get(made.url + "/sign-in") as response:
        csrf = (await response.text()).split('name="csrf" value="')[1].split('"')[0]

    async def sign_in(token: str, source: str) -> bytes:
        body = f"csrf={csrf}&token={token}".encode()
        head = "POST /sign-in HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", made.service.port, local_addr=(source, 0))
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = await reader.read(12)
        writer.close()
        return answer[9:]

    assert [await sign_in("wrong", "127.0.0.2") for _ in range(6)] == [b"401"] * 5 + [b"429"]
    assert await sign_in(TOKEN, "127.0.0.2") == b"429"
    assert await sign_in(TOKEN, "127.0.0.3") == b"303"
    await made.clock.advance(61)
    assert await sign_in(TOKEN, "127.0.0.2") == b"303"


class Hashing:
    """bcrypt, counted, and as slow as a test wants it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.costs: list[str] = []
        self.now, self.most = 0, 0
        really = bcrypt.checkpw

        def checkpw(password: bytes, digest: bytes) -> bool:
            self.now += 1
            self.most = max(self.most, self.now)
            self.costs.append(digest[:29].decode())
            result = really(password, digest)
            self.now -= 1
            return result

        monkeypatch.setattr(bcrypt, "checkpw", checkpw)


async def test_a_password_that_was_right_is_known_again_whatever_others_send(monkeypatch: pytest.MonkeyPatch) -> None:
    hashing = Hashing(monkeypatch)
    passwords = Passwords(HASHES, ManualClock())
    right = basic(b"ops:open sesame").decode()
    assert await passwords.check(right, "a") is Verdict.KNOWN
    hashed = len(hashing.costs)
    guesses = [basic(b"ops:%d" % number).decode() for number in range(100)]
    flood = [asyncio.create_task(passwords.check(guess, "b")) for guess in guesses]
    await asyncio.sleep(0)
    assert await passwords.check(right, "b") is Verdict.KNOWN  # at once, even from there
    assert not all(task.done() for task in flood)
    verdicts = [await task for task in flood]
    assert verdicts.count(Verdict.UNKNOWN) == proof.WAITING_PER_PEER_MAX
    assert verdicts.count(Verdict.BUSY) == 100 - proof.WAITING_PER_PEER_MAX
    assert hashing.most == 1
    assert len(hashing.costs) == hashed + proof.WAITING_PER_PEER_MAX


async def test_names_that_do_not_exist_cost_what_those_cost_that_do(monkeypatch: pytest.MonkeyPatch) -> None:
    hashing = Hashing(monkeypatch)
    passwords = Passwords(HASHES, ManualClock())
    for name in (b"ops", b"eve", b"", b"\xff", b"o\0ps"):
        assert await passwords.check(basic(name + b":wrong").decode(), "a") is Verdict.UNKNOWN
    assert hashing.costs == [HASHES["ops"][:29]] * 5
    assert await passwords.check(basic(b"eve:wrong").decode(), "a") is Verdict.UNKNOWN  # and is known as such
    assert len(hashing.costs) == 5


async def test_who_guesses_on_has_to_wait_and_others_have_not() -> None:
    clock = ManualClock()
    passwords = Passwords(HASHES, clock)
    for number in range(proof.WRONG_MAX):
        assert await passwords.check(basic(b"ops:%d" % number).decode(), "a") is Verdict.UNKNOWN
    right = basic(b"ops:open sesame").decode()
    assert await passwords.check(right, "a") is Verdict.BUSY
    assert await passwords.check(right, "b") is Verdict.KNOWN
    await clock.advance(proof.WRONG_WAIT + 1)
    assert await passwords.check(right, "a") is Verdict.KNOWN


@pytest.mark.parametrize("password", [b"", b"\0", b"open sesame\0", b"x" * 73, b"x" * 4000, b"\xff" * 72, b"a:b:c"])
async def test_passwords_that_bcrypt_does_not_take_are_wrong(password: bytes) -> None:
    assert await Passwords(HASHES, ManualClock()).check(basic(b"ops:" + password).decode(), "a") is Verdict.UNKNOWN


async def test_passwords_longer_than_bcrypt_looks_at_are_known_by_what_it_looks_at() -> None:
    users = {"ops": bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(4)).decode()}
    assert await Passwords(users, ManualClock()).check(basic(b"ops:" + b"x" * 90).decode(), "a") is Verdict.KNOWN


async def test_too_many_passwords_at_once_are_answered_429(guarded: Deployment) -> None:
    async def scrape(number: int) -> tuple[int, str | None]:
        header = {"Authorization": basic(b"ops:%d" % number).decode()}
        async with guarded.session.get(guarded.url + "/metrics", headers=header) as response:
            return response.status, response.headers.get("Retry-After")

    answers = await asyncio.gather(*(scrape(number) for number in range(60)))
    assert {status for status, _ in answers} == {401, 429}
    assert all(again for status, again in answers if status == 429)


# Connections


async def test_the_longest_idle_connection_of_whoever_has_most_makes_room(
    made: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors, "_connections_max", lambda: 8)
    await made.restart()

    async def connect(source: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", made.service.port, local_addr=(source, 0))

    idle = [await connect("127.0.0.2") for _ in range(6)]
    async with asyncio.timeout(10):
        for cut, _ in idle[:2]:  # of six, one peer may have four
            assert await read_to_the_end(cut) == b""
    reader, writer = await connect("127.0.0.3")
    writer.write(b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await reader.read(15)).startswith(b"HTTP/1.1 200 ")
    idle[5][1].write(b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await idle[5][0].read(15)).startswith(b"HTTP/1.1 200 ")
    for _, one in [*idle, (reader, writer)]:
        one.close()


async def read_to_the_end(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionError:
        return b""


async def test_a_reader_that_reads_nothing_is_cut(made: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "WRITE_SECONDS_MAX", 0.3)
    _, writer = await asyncio.open_connection("127.0.0.1", made.service.port, limit=1024)
    began = time.perf_counter()
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 20_000)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    with pytest.raises(ConnectionError):
        async with asyncio.timeout(30):
            while True:
                await writer.drain()
                writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
                await asyncio.sleep(0.01)
    assert time.perf_counter() - began < 30
