"""The addresses across reloads and stops, with real processes; both families; certificates that are renewed."""

import asyncio
import os
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from exporter.config import ConfigError, parse
from exporter.web import doors as doors_module
from exporter.web.certificate import Certificate
from exporter.web.doors import Doors
from tests.servers import eventually, free_port

SECRET = "correct-horse-battery-staple"
TOKEN = {"X-Token": SECRET}


def answering(text: str) -> web.Application:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=text + (await request.read()).decode())

    app = web.Application()
    app.router.add_route("*", "/", answer)
    return app


async def get(port: int, host: str = "127.0.0.1") -> str:
    async with aiohttp.ClientSession() as session, session.get(f"http://{host}:{port}/") as response:
        return await response.text()


@pytest.fixture
async def doors() -> AsyncIterator[Doors]:
    opened = Doors()
    yield opened
    await opened.close()


# One behind the other


async def test_who_comes_in_between_waits_for_the_next(doors: Doors) -> None:
    port = await doors.open("127.0.0.1:0", answering("one"))
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{port}/"
        async with session.get(url) as response:
            assert await response.text() == "one"
        await doors.leave()
        asking = [asyncio.create_task(get(port)), asyncio.create_task(session.get(url))]
        await asyncio.wait(asking, timeout=0.1)
        assert not any(task.done() for task in asking)
        assert await doors.open("127.0.0.1:0", answering("two")) == port
        doors.settle()
        assert await asking[0] == "two"
        assert await (await session.get(url)).text() == "two"  # on the connection it had
        assert session.connector is not None
        await asyncio.gather(*asking)


async def test_who_is_inside_has_a_moment_to_finish(doors: Doors) -> None:
    port = await doors.open("127.0.0.1:0", answering("got "))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\na")
    await inside(doors)
    leaving = asyncio.create_task(doors.leave())
    await asyncio.sleep(0)
    writer.write(b"b")
    assert b"got ab" in await reader.readuntil(b"got ab")
    await leaving
    writer.close()


async def inside(doors: Doors) -> None:
    async def somebody() -> bool:
        return any(door._inside for door in doors._doors.values())

    await eventually(somebody, every=0.005)


async def test_nobody_is_waited_for_longer(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors_module, "DRAIN_SECONDS_MAX", 0.1)
    port = await doors.open("127.0.0.1:0", answering(""))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\na")
    await inside(doors)
    async with asyncio.timeout(5):
        await doors.leave()
        with suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()


async def test_nobody_who_does_not_read_is_waited_for_longer(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors_module, "DRAIN_SECONDS_MAX", 0.1)
    stalled = asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            writing = asyncio.ensure_future(response.write(bytes(1_000_000)))
            if not (await asyncio.wait({writing}, timeout=0.2))[0]:
                stalled.set()
            await writing

    app = web.Application()
    app.router.add_get("/", endless)
    port = await doors.open("127.0.0.1:0", app)
    _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(10):
        await stalled.wait()
        await doors.leave()
    writer.close()


async def test_an_address_that_is_no_longer_wanted_is_given_back(doors: Doors) -> None:
    old, new = free_port(), free_port()
    await doors.open(f"127.0.0.1:{old}", answering("one"))
    await doors.leave()
    await doors.open(f"127.0.0.1:{new}", answering("two"))
    doors.settle()
    assert await get(new) == "two"
    with pytest.raises(aiohttp.ClientConnectorError):
        await get(old)


async def test_the_same_port_at_another_address(doors: Doors) -> None:
    port = free_port()
    await doors.open(f"127.0.0.1:{port}", answering("one"))
    await doors.leave()
    await doors.open(f"0.0.0.0:{port}", answering("two"))
    doors.settle()
    assert await get(port) == "two"


async def test_an_address_that_another_process_has_is_one_clear_line(doors: Doors) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"^server.listen: 127.0.0.1:{port}: address already in use: stop what"):
            await doors.open(f"127.0.0.1:{port}", answering(""))


async def test_who_comes_on_an_open_connection_while_stopping_is_asked_to_come_back(doors: Doors) -> None:
    port = await doors.open("127.0.0.1:0", answering("x"))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await doors.leave()
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.sleep(0.05)
    doors.shut()
    answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After" in answer
    writer.close()


# Both families


@pytest.mark.parametrize("address", ["[::]:0", ":0", ":::0"])
async def test_all_addresses_are_those_of_both_families(doors: Doors, address: str) -> None:
    port = await doors.open(address, answering("here"))
    assert await get(port) == "here"
    if socket.has_ipv6:
        with suppress(aiohttp.ClientConnectorError):  # a machine without ::1
            assert await get(port, "[::1]") == "here"


async def test_without_ipv6_all_addresses_are_those_there_are(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    listening = doors_module._listening

    def without_ipv6(family: int, place: object) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return listening(family, place)

    monkeypatch.setattr(doors_module, "_listening", without_ipv6)
    for address in (":0", "[::]:0", "localhost:0"):
        assert await get(await doors.open(address, answering("here"))) == "here"


async def test_a_name_is_all_of_its_addresses(doors: Doors) -> None:
    port = await doors.open("localhost:0", answering("here"))
    assert await get(port, "localhost") == "here"


@pytest.mark.parametrize("listen", [":10870", "'[::]:10870'", "0.0.0.0:0", "localhost:10870"])
def test_addresses_that_may_be_written(listen: str) -> None:
    source = "sources: {docs: {platform: cognaize, url: 'https://x.example', token: abcdefgh}}"
    assert parse(f"server:\n  listen: {listen}\n{source}").server.listen == listen.strip("'")


@pytest.mark.parametrize("listen", ["':'", "':x'", "'[::]'", "':٣'", "':65536'", "'[::]:-1'"])
def test_addresses_that_may_not(listen: str) -> None:
    source = "sources: {docs: {platform: cognaize, url: 'https://x.example', token: abcdefgh}}"
    with pytest.raises(ConfigError, match=r"server.listen: write an address as HOST:PORT"):
        parse(f"server:\n  listen: {listen}\n{source}")


# Certificates


def make_pair(folder: Path, name: str) -> tuple[Path, Path]:
    folder.mkdir(exist_ok=True)
    cert, key = folder / "tls.crt", folder / "tls.key"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    subprocess.run([*command, "-subj", f"/CN={name}", "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key


async def shown(port: int) -> bytes:
    """The certificate that a handshake shows."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return shown


def der(cert: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(cert.read_text())


async def test_a_renewed_certificate_is_shown_without_a_restart(
    doors: Doors, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third = (make_pair(tmp_path / name, name) for name in ("1", "2", "3"))
    live = tmp_path / "live"
    live.symlink_to("1")
    certificate = Certificate(str(live / "tls.crt"), str(live / "tls.key"), look_interval=0.0)
    port = await doors.open("127.0.0.1:0", answering(""), certificate)
    assert await shown(port) == der(first[0])
    turned = tmp_path / "turned"
    turned.symlink_to("2")
    turned.replace(live)  # as Kubernetes does it
    before = der(second[0])
    assert await shown(port) == before
    for broken in (
        lambda: second[1].write_bytes(third[1].read_bytes()),
        second[0].unlink,
        lambda: second[0].write_text(""),
    ):
        broken()
        caplog.clear()
        assert [await shown(port) for _ in range(3)] == [before] * 3
        warnings = [record for record in caplog.records if record.levelname == "WARNING"]
        assert len(warnings) == 1
    second[0].write_bytes(third[0].read_bytes())
    assert await shown(port) == der(third[0])


async def test_the_files_are_looked_at_now_and_then_only(doors: Doors, tmp_path: Path) -> None:
    first, second = make_pair(tmp_path / "1", "1"), make_pair(tmp_path / "2", "2")
    before = der(first[0])
    certificate = Certificate(str(first[0]), str(first[1]), look_interval=3600.0)
    port = await doors.open("127.0.0.1:0", answering(""), certificate)
    assert await shown(port) == before
    for new, old in zip(second, first, strict=True):
        new.replace(old)
    assert await shown(port) == before


async def test_tls_may_come_and_go_with_a_reload(doors: Doors, tmp_path: Path) -> None:
    cert, key = make_pair(tmp_path / "1", "1")
    address = f"127.0.0.1:{free_port()}"
    port = await doors.open(address, answering("plain"))
    assert await get(port) == "plain"
    await doors.leave()
    await doors.open(address, answering("tls"), Certificate(str(cert), str(key)))
    assert await shown(port) == der(cert)
    await doors.leave()
    await doors.open(address, answering("plain"))
    assert await get(port) == "plain"


# Real processes


class Process:
    """``automation-exporter run`` with a source whose platform answers nothing."""

    def __init__(self, folder: Path, port: int, platform: str, more: str = "") -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.database = folder / "t.db"
        self.log = folder / "log"
        self.config = folder / "config.yaml"
        self.config.write_text(f"""
server: {{listen: "127.0.0.1:{port}"}}
store: {{url: "sqlite:///{self.database}"}}
sources:
  docs:
    platform: cognaize
    url: {platform}
    token: abcdefgh
    webhook: {{scheme: header, header: X-Token, secret: {SECRET}}}
  signed:
    platform: cognaize
    url: {platform}/signed
    token: abcdefghi
    webhook: {{scheme: hmac_sha256, header: X-Signature, secret: {SECRET}}}
{more}
""")

    async def start(self) -> None:
        command = [sys.executable, "-m", "exporter", "run", "--config", str(self.config)]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(*command, stderr=log, env=environment)
        await self.lines("msg=running", 1)

    async def lines(self, text: str, count: int) -> None:
        async def logged() -> bool:
            assert self.process.returncode is None, self.log.read_text()
            return self.log.read_text().count(text) >= count

        await eventually(logged, seconds=60, every=0.02)

    async def stop(self) -> float:
        """SIGTERM; the seconds it took."""
        began = time.perf_counter()
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            assert await self.process.wait() == 0
        return time.perf_counter() - began


@asynccontextmanager
async def silent() -> AsyncIterator[str]:
    """A server that takes requests and never answers."""
    taken: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: taken.append(writer), "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in taken:
            writer.transport.abort()


@asynccontextmanager
async def running(folder: Path, more: Callable[[str], str] = lambda silent: "") -> AsyncIterator[Process]:
    async with AsyncExitStack() as stack:
        nobody = await stack.enter_async_context(silent())
        made = Process(folder, free_port(), nobody, more(nobody))
        await made.start()
        try:
            yield made
        finally:
            if made.process.returncode is None:
                made.process.kill()
                await made.process.wait()


def stall(port: int, number: int) -> socket.socket:
    """A peer that reads nothing, or sends half a webhook."""
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    peer.connect(("127.0.0.1", port))
    if number % 2:
        signature = b"00" * 32
        peer.sendall(b"POST /webhooks/signed HTTP/1.1\r\nHost: x\r\nX-Signature: %b\r\n" % signature)
        peer.sendall(b"Content-Length: 9\r\n\r\nx")
    else:
        peer.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 30)
    return peer


async def test_a_reload_refuses_and_loses_nobody_whatever_others_do(tmp_path: Path) -> None:
    async with running(tmp_path) as made:
        failed: list[object] = []
        answered = {"new": 0, "kept": 0, "webhook": 0}
        over = asyncio.Event()

        async def ask(kind: str, kept: aiohttp.ClientSession) -> None:
            while not over.is_set():
                try:
                    async with AsyncExitStack() as stack:
                        asking = kept if kind != "new" else await stack.enter_async_context(aiohttp.ClientSession())
                        if kind == "webhook":
                            event = {"event": "run.finished", "workflow_id": "w", "run_id": f"r{answered[kind]}"}
                            url, wanted = made.url + "/webhooks/docs", 202
                            response = await asking.post(url, json=event | {"result": "success"}, headers=TOKEN)
                        else:
                            wanted = 200
                            response = await asking.get(made.url + "/-/healthy")
                        await response.read()
                        answered[kind] += 1
                        if response.status != wanted:
                            failed.append((kind, response.status))
                except (aiohttp.ClientError, OSError) as exc:
                    failed.append((kind, repr(exc)))
                await asyncio.sleep(0.002)

        peers = [stall(made.port, number) for number in range(50)]
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(ask("new", session))
                group.create_task(ask("kept", session))
                group.create_task(ask("webhook", session))
            began = time.perf_counter()
            for reloads in (1, 2):
                made.process.send_signal(signal.SIGHUP)
                await made.lines("msg=running", 1 + reloads)
            took = time.perf_counter() - began
            before = dict(answered)

            async def all_went_on() -> bool:
                return all(answered[kind] > before[kind] + 5 for kind in answered)

            await eventually(all_went_on, seconds=30, every=0.02)
            over.set()
        for peer in peers:
            peer.close()
        assert failed == []
        assert took < 30
        assert await made.stop() < 15


async def test_a_stop_waits_for_nobody_who_stalls(tmp_path: Path) -> None:
    async with running(tmp_path) as made:
        peers = [stall(made.port, number) for number in range(50)]
        async with aiohttp.ClientSession() as session, session.get(made.url + "/-/healthy") as response:
            assert response.status == 200
        assert await made.stop() < 12  # 15 and more, were they waited for
        for peer in peers:
            peer.close()


async def test_a_stop_waits_for_no_platform_collector_or_lock(tmp_path: Path) -> None:
    def traces(nobody: str) -> str:
        return f"traces: {{enabled: true, own: true, endpoint: '{nobody}'}}"

    async with running(tmp_path, traces) as made:
        with sqlite3.connect(made.database, isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            async with aiohttp.ClientSession() as session:
                event = {"event": "run.finished", "workflow_id": "w", "run_id": "r", "result": "success"}
                sending = [
                    asyncio.create_task(session.post(made.url + "/webhooks/docs", json=event, headers=TOKEN))
                    for _ in range(3)
                ]
                await asyncio.sleep(0.3)  # they are to wait for the lock
                assert await made.stop() < 12
                await asyncio.gather(*sending, return_exceptions=True)
        other.close()
