"""``automation-exporter healthcheck``: whether the service answers, for whoever watches over a container.

It runs every few seconds beside the service, so it imports little and reads no more of the config than where the
service listens: a secret that is missing here, or a mistake elsewhere in the file, is no reason to restart a service.
"""

import argparse
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from exporter import listen
from exporter.cli import UsageError
from exporter.text import ConfigError, Text, expand

PATH = "/-/healthy"
#: An answer has this long (seconds) to arrive, and is no longer than this (bytes).
SECONDS_MAX, ANSWER_BYTES_MAX = 4.0, 65536


def healthcheck(options: argparse.Namespace) -> int:
    """0 if the service says that it is well. Raises ``UsageError``, in one line, if not."""
    address, is_tls = listening(options.config, os.environ)
    url = f"{'https' if is_tls else 'http'}://{address}{PATH}"
    signal.signal(signal.SIGALRM, _too_late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS_MAX)
    try:
        status, text = _ask(address, is_tls=is_tls)
    except TimeoutError:
        raise UsageError(f"not healthy: {url} does not answer within {SECONDS_MAX:g} s") from None
    except ConnectionRefusedError:
        raise UsageError(f"not healthy: {url}: nothing listens there; does the service run with this config?") from None
    except OSError as exc:
        raise UsageError(f"not healthy: {url}: {exc.strerror or exc}") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if (status, text) != ("200", "healthy"):
        raise UsageError(f"not healthy: {url}: " + (f"status {status}" if status else "what answers is no web server"))
    print(f"healthy: {url}")
    return 0


def listening(file: Path, environment: Mapping[str, str]) -> tuple[str, bool]:
    """Where the service with this config listens, and whether it speaks TLS there. Raises ``UsageError``."""
    try:
        server = Text(file.read_text(encoding="utf-8")).section("server", lenient=True) or {}
    except OSError as exc:
        raise UsageError(f"{file}: {exc.strerror or 'cannot be read'}; name the service's with --config FILE") from None
    except UnicodeDecodeError:
        raise UsageError(f"{file}: not UTF-8 text: save it as UTF-8") from None
    except ConfigError as exc:
        raise UsageError(f"{file}: {exc.problems[0]}") from None
    if not isinstance(server, dict):
        raise UsageError(f"{file}: server: must be a section of keys and values")
    problems: list[str] = []
    written: Any = server.get("listen", environment.get(listen.VARIABLE) or listen.DEFAULT)
    if isinstance(written, str) and "listen" in server:
        written = expand(written, "server.listen", environment, problems)
    try:
        address = listen.address(written)
    except ValueError as exc:
        problems.append(f"{'server.listen' if 'listen' in server else listen.VARIABLE}: {exc}")
    if problems:
        raise UsageError(f"{file}: {problems[0]}")
    if listen.split(address)[1] == 0:
        raise UsageError(f"{file}: server.listen: port 0 is any free one, and cannot be known here; name one")
    return address, server.get("tls") is not None


def _ask(address: str, *, is_tls: bool) -> tuple[str, str]:
    """Status and text of the answer; no status for what is no HTTP. Raises ``OSError``."""
    with _connected(address) as plain:
        connection = _wrapped(plain) if is_tls else plain
        connection.sendall(f"GET {PATH} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while len(answer) < ANSWER_BYTES_MAX and (part := connection.recv(ANSWER_BYTES_MAX)):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.partition(b"\r\n")[0].decode("latin-1").split(" ", 2)
    status = words[1] if len(words) > 1 and words[0].startswith("HTTP/1.") and words[1].isdigit() else ""
    return status, body.decode("latin-1").strip()


def _connected(address: str) -> socket.socket:
    failed: OSError = ConnectionRefusedError()
    for family, kind, protocol, _, where in _places(*listen.split(address)):
        made = socket.socket(family, kind, protocol)
        try:
            made.connect(where)
            return made
        except OSError as exc:
            made.close()
            if isinstance(exc, TimeoutError):
                raise
            failed = exc
    raise failed


def _places(host: str, port: int) -> Iterator[Any]:
    """Where to look for what listens at ``host``: on all addresses means on the loopback ones, too."""
    here = {"": ("127.0.0.1", "::1"), "::": ("127.0.0.1", "::1"), "0.0.0.0": ("127.0.0.1",)}  # noqa: S104 (compared)
    for one in here.get(host, (host,)):
        yield from socket.getaddrinfo(one, port, type=socket.SOCK_STREAM)


def _wrapped(plain: socket.socket) -> socket.socket:
    """TLS, whoever the certificate is for: the question goes to ourselves, by an address that it does not name."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(plain)


def _too_late(number: int, frame: FrameType | None) -> None:
    raise TimeoutError
