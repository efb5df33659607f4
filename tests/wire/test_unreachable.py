"""Why a platform cannot be reached: real sockets, one short line each, no library's own text."""

import asyncio
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import unused_port

from exporter.clock import ManualClock
from exporter.wire.api import Api
from exporter.wire.budget import Budget, Lane
from exporter.wire.errors import ApiError, ErrorKind

RAW = ("Errno", "Error", "ssl:", "Cannot connect", "aiohttp", "object at", "b'")


class NoAuth:
    async def headers(self, api: Api) -> dict[str, str]:
        return {}

    async def renew(self, api: Api) -> bool:
        return False


async def detail(url: str, **options: Any) -> str:
    """What is said of a call to ``url`` that is made once."""
    clock = ManualClock()
    budget = Budget(clock, share=1.0, default_per_minute=60.0)
    api = Api(base_url=url, clock=clock, budget=budget, auth=NoAuth(), user_agent="test", timeout=20.0, **options)
    try:
        with pytest.raises(ApiError) as caught:
            await api.post("/x", lane=Lane.SWEEPS)
    finally:
        await api.close()
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    said = caught.value.detail
    assert not [word for word in RAW if word in said], said
    assert len(said) < 160
    return said


@asynccontextmanager
async def answering(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read(1)
            await answer(reader, writer)
        except OSError:
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls) as server:
        yield server.sockets[0].getsockname()[1]


async def plain_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    await writer.drain()


async def not_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.2 s3cr3t\r\n")
    await writer.drain()


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


async def hung_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def cut_short(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
    await writer.drain()


async def test_nobody_listens() -> None:
    port = unused_port()
    assert await detail(f"http://127.0.0.1:{port}") == f"connection refused by 127.0.0.1:{port}"
    proxy = f"http://127.0.0.1:{port}"
    assert await detail("http://make.example", proxy=proxy) == f"connection refused by the proxy 127.0.0.1:{port}"


async def test_a_name_that_is_not_known() -> None:
    assert await detail("https://make.invalid") == "the host name make.invalid is not known"


async def test_https_to_a_port_that_speaks_http() -> None:
    async with answering(plain_http) as port:
        said = await detail(f"https://127.0.0.1:{port}")
    assert said == f"127.0.0.1:{port} speaks plain HTTP, not TLS: write http:// in url, or the port that speaks TLS"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (not_http, "does not speak HTTP; if it speaks TLS, write https:// in url"),
        (hung_up, "closed the connection before it answered; if it speaks TLS, write https:// in url"),
        (reset, "broke the connection off"),
        (cut_short, "the answer of"),
    ],
)
async def test_what_else_may_answer(answer: Any, words: str) -> None:
    async with answering(answer) as port:
        said = await detail(f"http://127.0.0.1:{port}")
    assert words in said
    assert f"127.0.0.1:{port}" in said
    assert "s3cr3t" not in said


async def test_a_certificate_of_an_authority_of_ones_own_and_http_to_its_port(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("real component missing: openssl (apt-get install openssl)")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    async with answering(plain_http, tls=context) as port:
        said = await detail(f"https://127.0.0.1:{port}")
        assert said.startswith(f"the certificate of 127.0.0.1:{port} is not trusted (self-signed certificate): ")
        assert said.endswith("name that one's file in tls_ca_file")
        trusting = ssl.create_default_context(cafile=certificate)
        assert "is not trusted" in await detail(f"https://127.0.0.1:{port}", ssl=trusting)  # another name
        assert "if it speaks TLS, write https://" in await detail(f"http://127.0.0.1:{port}")
