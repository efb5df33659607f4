"""Secrets of webhooks that are replaced in their files: taken over at the first webhook they prove, without a restart.

A failed proof is the sign to look, and a stranger can cause one at will: so the files are looked at rarely, and read
only if they are others than before.
"""

import asyncio
import os
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from exporter.log import get_logger, register_secrets
from exporter.platform.fields import FileSecret, secret_now
from exporter.platform.webhook_section import WebhookConfig
from exporter.wire import schemes

log = get_logger(__name__)

#: However many proofs fail, the files are looked at once in so many seconds at most.
LOOK_SECONDS = 1.0

_Stamp = tuple[int, int, int, int] | None


class Rotation:
    """The secrets of one source's webhooks, and the files they came from."""

    def __init__(self, config: WebhookConfig) -> None:
        self._config = config
        paths = [secret.path for field in _secrets(config).values() for secret in _of_files(field)]
        self._files = dict[Path, _Stamp].fromkeys(paths)  # not looked at yet
        self._look_at = float("-inf")

    async def refreshed(self, now: float) -> schemes.Scheme | None:
        """The scheme with what the files hold now, if that is something else; ``now`` is on our clock."""
        if not self._files or abs(now - self._look_at) < LOOK_SECONDS:
            return None
        self._look_at = now
        return await asyncio.to_thread(self._read)

    def _read(self) -> schemes.Scheme | None:
        stamps = {path: _stamp(path) for path in self._files}
        if stamps == self._files:
            return None
        self._files = stamps
        fields = {name: tuple(map(secret_now, field)) for name, field in _secrets(self._config).items()}
        if fields == _secrets(self._config):
            return None
        register_secrets(s.get_secret_value() for field in fields.values() for s in field)
        config = self._config.model_copy(update=fields)
        try:
            scheme = config.build()
        except ValueError as problem:
            log.warning("webhook secret not taken over", problem=str(problem), files=", ".join(map(str, self._files)))
            return None
        self._config = config
        log.info("webhook secret taken over from its file")
        return scheme


def _secrets(config: WebhookConfig) -> dict[str, tuple[SecretStr, ...]]:
    fields: dict[str, Any] = {name: getattr(config, name) for name in type(config).model_fields}
    return {name: value for name, value in fields.items() if isinstance(value, tuple)}


def _of_files(field: tuple[SecretStr, ...]) -> list[FileSecret]:
    return [secret for secret in field if isinstance(secret, FileSecret)]


def _stamp(path: Path) -> _Stamp:
    """What is other if somebody wrote the file, or a link to it leads elsewhere."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
