"""``healthcheck`` as a container's watcher runs it: a process of its own, beside a service that really listens."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from exporter import app
from exporter.config import ConfigError, parse
from exporter.config.cautions import cautions
from tests.cli.test_cost import HEAVY, imported
from tests.servers import free_port

SOURCES = "sources: {q: {platform: qlik, url: 'http://127.0.0.1:9', token: t}}"
VARIABLE = "AUTOMATION_EXPORTER_LISTEN"


async def asked(folder: Path, text: str | bytes, **variables: str) -> tuple[int, str]:
    """Exit code of `healthcheck` with this config, and what it said."""
    file = folder / "config.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "exporter", "healthcheck", "--config", str(file)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), **variables},
    )
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode().replace(str(file), "FILE")


@contextlib.asynccontextmanager
async def serving(folder: Path, server: str, **variables: str) -> AsyncIterator[None]:
    text = f"server: {server}\nstore: {{url: sqlite:///{folder}/x.db}}\n{SOURCES}\n"
    async with app.service(parse(text, variables), loops=False):
        yield


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "[::]", "localhost", "", "[::1]"])  # noqa: S104
async def test_a_service_that_answers_is_healthy_wherever_it_listens(host: str, tmp_path: Path) -> None:
    server = f"{{listen: '{host}:{free_port()}'}}"
    async with serving(tmp_path, server):
        code, said = await asked(tmp_path, f"server: {server}\n{SOURCES}\n")
        assert (code, said.count("\n"), said.startswith("healthy: http://")) == (0, 1, True), said


async def test_tls_is_spoken_whoever_the_certificate_is_for(tmp_path: Path) -> None:
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=elsewhere.example",
    ]
    subprocess.run([*command, "-keyout", key, "-out", cert], check=True, capture_output=True)
    port = free_port()
    server = f"{{listen: '0.0.0.0:{port}', tls: {{cert_file: {cert}, key_file: {key}}}}}"
    async with serving(tmp_path, server):
        # The files are the service's: who asks needs none of them.
        text = f"server: {{listen: '0.0.0.0:{port}', tls: {{cert_file: /not/there, key_file: /not/there}}}}"
        assert (await asked(tmp_path, text))[0] == 0
        code, said = await asked(tmp_path, f"server: {{listen: '127.0.0.1:{port}'}}")
        assert (code, said.count("\n"), "Traceback" in said) == (1, 1, False), said


async def test_no_secret_and_nothing_else_of_the_config_is_needed(tmp_path: Path) -> None:
    port = free_port()
    async with serving(tmp_path, f"{{listen: '127.0.0.1:{port}'}}"):
        text = f"""
            server:
              listen: 127.0.0.1:${{PORT:-{port}}}
              admin_token: ${{NOT_SET}}
              basic_auth: {{users: {{me: nonsense}}}}
            sources: {{x: {{platform: nothing, token_file: /not/there, url: '${{NOT_SET_EITHER}}'}}}}
            nonsense: [1, 2]
        """
        assert (await asked(tmp_path, text))[0] == 0
        assert (await asked(tmp_path, text, PORT="1"))[0] == 1


async def test_the_environment_says_where_a_config_that_does_not_listens(tmp_path: Path) -> None:
    port = free_port()
    variables = {VARIABLE: f"0.0.0.0:{port}"}
    async with serving(tmp_path, "{}", **variables):
        for server in ("", "server:", "server: {reload: true}"):
            assert (await asked(tmp_path, f"{server}\n{SOURCES}", **variables))[0] == 0
        assert (await asked(tmp_path, "server: {listen: '127.0.0.1:1'}", **variables))[0] == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("server: {listen: nonsense}", "FILE: server.listen: write an address as HOST:PORT"),
        ("server: {listen: 10870}", "FILE: server.listen: write an address as HOST:PORT"),
        ("server: {listen: }", "FILE: server.listen: write an address as HOST:PORT"),
        ("server: {listen: '127.0.0.1:0'}", "FILE: server.listen: port 0 is any free one"),
        ("server: {listen: '${NOT_SET}'}", "FILE: server.listen: the environment variable NOT_SET is not set"),
        ("server: [1]", "FILE: server: must be a section"),
        ("- 1", "FILE: the config must be a mapping"),
        ("server: {", "FILE: line 1: "),
        (b"server: \xff", "FILE: not UTF-8 text"),
        ("server: {listen: '127.0.0.1:1'}", "not healthy: http://127.0.0.1:1/-/healthy: nothing listens there"),
        ("server: {listen: 'no-such-host.invalid:1'}", "not healthy: http://no-such-host.invalid:1/-/healthy: "),
        ("server: {listen: '127.0.0.1:99999'}", "FILE: server.listen: write an address as HOST:PORT"),
    ],
)
async def test_what_is_wrong_is_one_line(text: str | bytes, said: str, tmp_path: Path) -> None:
    code, line = await asked(tmp_path, text)
    assert (code, line.count("\n")) == (1, 1), line
    assert line.startswith(f"automation-exporter: {said}")


async def test_a_config_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    code, _, said = imported("healthcheck", "--config", "/not/there", folder=tmp_path)
    assert (code, said) == (
        1,
        "automation-exporter: /not/there: No such file or directory; name the service's with --config FILE",
    )


ANSWERS = [
    (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "status 503"),
    (b"HTTP/1.1 200 OK\r\n\r\nwelcome to something else", "status 200"),
    (b"SSH-2.0-OpenSSH_9.2\r\n", "what answers is no web server"),
    (b"", "what answers is no web server"),
    (b"HTTP/1.1 200 OK", "status 200"),
]


@pytest.mark.parametrize(("answer", "said"), ANSWERS)
async def test_another_answer_is_not_healthy(answer: bytes, said: str, tmp_path: Path) -> None:
    async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(answering, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        code, line = await asked(tmp_path, f"server: {{listen: '127.0.0.1:{port}'}}")
    assert (code, line.count("\n"), line.endswith(f": {said}\n")) == (1, 1, True), line


@pytest.mark.parametrize("drips", [False, True])
async def test_a_service_that_hangs_is_waited_for_a_few_seconds_only(drips: bool, tmp_path: Path) -> None:
    async def hanging(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while drips or await reader.read(1000):
                writer.write(b"H" * drips)
                await writer.drain()
                await asyncio.sleep(0.2 * drips)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(hanging, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        code, line = await asked(tmp_path, f"server: {{listen: '127.0.0.1:{port}'}}")
    assert (code, line.endswith("does not answer within 4 s\n")) == (1, True), line


def test_it_imports_little(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"server: {{listen: '127.0.0.1:1'}}\n{SOURCES}")
    code, modules, said = imported("healthcheck", folder=tmp_path)
    assert (code, "nothing listens there" in said) == (1, True)
    assert not modules & (HEAVY - {"yaml"})
    assert not [name for name in modules if name.startswith(("exporter.config", "exporter.platform", "http."))]


def test_the_environment_s_address_is_checked_and_gives_way_to_the_config_s() -> None:
    assert parse(SOURCES, {}).server.listen == "127.0.0.1:10870"
    assert parse(SOURCES, {VARIABLE: ""}).server.listen == "127.0.0.1:10870"
    assert parse(SOURCES, {VARIABLE: "0.0.0.0:80"}).server.listen == "0.0.0.0:80"
    assert (
        parse(f"server: {{listen: '127.0.0.1:1'}}\n{SOURCES}", {VARIABLE: "0.0.0.0:80"}).server.listen == "127.0.0.1:1"
    )
    with pytest.raises(ConfigError, match=f"^{VARIABLE}: write an address as HOST:PORT, for example 127.0.0.1:10870$"):
        parse(SOURCES, {VARIABLE: "everywhere"})


def test_an_address_that_only_the_container_reaches_is_warned_of() -> None:
    config = parse(f"server: {{listen: '127.0.0.1:10870'}}\n{SOURCES}", {})
    said = (
        "server.listen: 127.0.0.1:10870: only this container itself can reach it: write 0.0.0.0 for its host, "
        "or leave listen out"
    )
    assert said in cautions(config, 0.0, {VARIABLE: "0.0.0.0:10870"})
    assert said not in cautions(config, 0.0, {})
    assert said not in cautions(parse(SOURCES, {VARIABLE: "0.0.0.0:1"}), 0.0, {VARIABLE: "0.0.0.0:1"})
