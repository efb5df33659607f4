"""Secrets that are replaced while the service runs: what a file holds now, read again when the old value is refused.

Whoever rotates a secret writes the file anew, or points a link elsewhere (as Kubernetes does). Nothing watches the
file: a refusal is the sign to look. What cannot be used (no file, an empty one) changes nothing, and the next refusal
looks again.
"""

import asyncio
from collections.abc import Callable

from pydantic import SecretStr

from exporter.log import get_logger, register_secrets
from exporter.platform.fields import FileSecret, read_secret

log = get_logger(__name__)


def travels_in_a_header(value: str) -> bool:
    return value.isascii() and value.isprintable() and " " not in value


class Credential:
    """One secret of the config, as it is now."""

    def __init__(self, secret: SecretStr, *, usable: Callable[[str], bool] = lambda value: True) -> None:
        self.value = secret.get_secret_value()
        self._file = secret.path if isinstance(secret, FileSecret) else None
        self._usable = usable

    async def read_again(self) -> bool:
        """Whether the file holds another value by now, which is then ``value``."""
        if self._file is None:
            return False
        found = await asyncio.to_thread(read_secret, self._file)
        if found is None or found == self.value:
            return False
        register_secrets([found])
        if not self._usable(found):
            log.warning("secret not taken over: it cannot be sent in a header", file=str(self._file))
            return False
        self.value = found
        log.info("secret taken over from its file", file=str(self._file))
        return True
