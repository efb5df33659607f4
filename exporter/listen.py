"""Where the service listens, as text: HOST:PORT, with an IPv6 address in brackets."""

from typing import Any

#: Where it listens if the config does not say, and the variable of the environment that may say otherwise: an image
#: names an address there that is reached from outside.
DEFAULT, VARIABLE = "127.0.0.1:10870", "AUTOMATION_EXPORTER_LISTEN"


def address(value: Any) -> str:
    """An address that can be split. Raises ``ValueError``."""
    _, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not colon or not (port.isascii() and port.isdigit()) or not 0 <= int(port) <= 65535:
        raise ValueError(f"write an address as HOST:PORT, for example {DEFAULT}")
    return str(value)


def split(address: str) -> tuple[str, int]:
    """Host, without brackets, and port. An empty host stands for all addresses of the machine, as ``::`` does."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def is_local(address: str) -> bool:
    """Whether nobody but this machine, or container, can reach it."""
    host = split(address)[0]
    return host in ("localhost", "::1") or host.startswith("127.")
