"""How the commands reach the service that is running: a file beside its database, which only its own user can read.

It names the service's address and a secret made for this run, and is removed at the end. So a kill switch needs no
configuration to work.

A PostgreSQL has nothing beside it, and takes what commands say itself: whoever runs with it hears it there.
"""

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from exporter.config import Config
from exporter.store.address import is_postgres
from exporter.store.ledger import database
from exporter.store.script import StoreError

#: Approving some hundred dead letters takes a busy service a while (seconds).
ANSWER_SECONDS_MAX, CONNECT_SECONDS_MAX = 60.0, 5.0
Answer = dict[str, Any]


def announce(config: Config, *, port: int, token: str) -> Callable[[], None]:
    """Write the file; returns what removes it."""
    if is_postgres(config.store.url):
        return lambda: None
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


class NotThere(StoreError):
    """Nobody could be asked, and nothing was done: no service has said where it answers, or it answers no more."""


async def ask(store_url: str, path: str, body: dict[str, Any], *, seconds_max: float = ANSWER_SECONDS_MAX) -> Answer:
    """Post to the running service. Raises ``NotThere``, or ``StoreError`` with the way out when it refuses."""
    if is_postgres(store_url):
        raise NotThere("who runs with a PostgreSQL hears what is said in the database")
    url, token = _where(store_url)
    timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS_MAX)
    headers = {"Authorization": f"Bearer {token}"}
    answer: Any = None
    # ssl=False: the address comes from a file of our own, so whose name a certificate bears says nothing.
    try:
        async with (
            asyncio.timeout(seconds_max),
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(url + path, json=body, headers=headers, ssl=False) as response,
        ):
            with suppress(orjson.JSONDecodeError):
                answer = orjson.loads(await response.read())
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
        raise NotThere(f"the running service does not answer at {url}") from None
    except TimeoutError:
        raise StoreError(
            f"the running service at {url} has not answered for {seconds_max:g} s: what was asked for may still be "
            "done; see `policies explain` and `retries list`"
        ) from None
    except aiohttp.ClientError:
        raise StoreError(
            f"the running service at {url} broke off before it answered: what was asked for may be done; see "
            "`policies explain` and `retries list`"
        ) from None
    if response.status == 401:  # the file is that of the service before
        raise NotThere(f"the service at {url} takes no commands from here: run this as its own user")
    if not isinstance(answer, dict) or response.status != 200:
        said = answer.get("error") if isinstance(answer, dict) else None
        raise StoreError(str(said or f"the running service answered {response.status}"))
    return answer


def _where(store_url: str) -> tuple[str, str]:
    """The address and the secret of the service that uses a database. Raises ``StoreError``."""
    file = _path(store_url)
    try:
        where = orjson.loads(file.read_bytes())
        return str(where["url"]), str(where["token"])
    except PermissionError:
        raise StoreError(
            f"the service that uses {database(store_url)} cannot be reached: run this as its own user"
        ) from None
    except (OSError, orjson.JSONDecodeError, LookupError, TypeError):
        raise NotThere(
            f"another process is using {database(store_url)}, and {file.name} beside it does not say where it answers: "
            "try again when it has started, or run this as its own user"
        ) from None


def running_at(store_url: str) -> str | None:
    """Where the service answers that uses this database; None if none says so."""
    if is_postgres(store_url):
        return None
    try:
        return str(orjson.loads(_path(store_url).read_bytes())["url"])
    except (OSError, orjson.JSONDecodeError, LookupError, TypeError):
        return None


def _path(store_url: str) -> Path:
    file = database(store_url)
    return file.with_name(f"{file.name}.control")
