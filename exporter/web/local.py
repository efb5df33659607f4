"""How the commands reach the service that is running: a file beside its database, which only its own user can read.

It names the service's address and a secret made for this run, and is removed at the end. So a kill switch needs no
configuration to work.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from exporter.config import Config
from exporter.store.ledger import database
from exporter.store.script import StoreError

ANSWER_SECONDS_MAX = 30.0


def announce(config: Config, *, port: int, token: str) -> Callable[[], None]:
    """Write the file; returns what removes it."""
    path = _path(config.store.url)
    host = config.server.listen.rpartition(":")[0].strip("[]")
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    scheme = "https" if config.server.tls is not None else "http"
    path.unlink(missing_ok=True)  # a process that was killed could not
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.fchmod(handle, 0o600)  # whatever the umask says
    with os.fdopen(handle, "wb") as file:
        file.write(orjson.dumps({"url": f"{scheme}://{host}:{port}", "token": token}))

    def remove() -> None:
        with suppress(OSError):
            path.unlink(missing_ok=True)

    return remove


async def ask(store_url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Post to the running service. Raises ``StoreError`` with the way out when it cannot be reached or refuses."""
    try:
        service = orjson.loads(_path(store_url).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        raise StoreError(
            f"the service that uses {database(store_url)} cannot be reached: run this as its own user"
        ) from None
    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS_MAX)
    headers = {"Authorization": f"Bearer {service['token']}"}
    # ssl=False: the address comes from a file of our own, so whose name a certificate bears says nothing.
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(service["url"] + path, json=body, headers=headers, ssl=False) as response,
        ):
            answer: dict[str, Any] = orjson.loads(await response.read())
    except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError):
        raise StoreError(f"the running service does not answer at {service['url']}") from None
    if response.status != 200:
        raise StoreError(str(answer.get("error", f"the running service answered {response.status}")))
    return answer


def running_at(store_url: str) -> str | None:
    """Where the service answers that uses this database; None if none says so."""
    try:
        return str(orjson.loads(_path(store_url).read_bytes())["url"])
    except (OSError, orjson.JSONDecodeError, LookupError, TypeError):
        return None


def _path(store_url: str) -> Path:
    file = database(store_url)
    return file.with_name(f"{file.name}.control")
