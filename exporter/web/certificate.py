"""The certificate of a listener, read anew when its files change, as they do when something renews them.

The files are compared at a handshake, now and then; a link that is turned to another folder is such a change too. A
pair that cannot be used changes nothing and is a warning, once.
"""

import asyncio
import os
import ssl

from exporter.log import get_logger

log = get_logger(__name__)

#: Seconds between two looks at the files.
LOOK_INTERVAL = 5.0


class Certificate:
    """A certificate and its key. ``context`` is for the listener; handshakes get the newest pair."""

    def __init__(self, cert_file: str, key_file: str, *, look_interval: float = LOOK_INTERVAL) -> None:
        """Raises ``OSError``, naming the key of the config, if the pair cannot be used."""
        self._files = (cert_file, key_file)
        self._look_interval = look_interval
        self._seen = self._state()
        self._looked_at = 0.0
        try:
            self.context = self._current = self._load()
        except OSError as exc:
            words = "no PEM files, or their parts do not fit" if isinstance(exc, ssl.SSLError) else exc.strerror
            raise OSError(f"server.tls: the certificate cannot be used: {words}") from None
        self.context.sni_callback = self._choose

    def _load(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        # Without a password of ours OpenSSL would ask for one at the terminal.
        context.load_cert_chain(*self._files, password=lambda: "")
        return context

    def _state(self) -> tuple[object, ...]:
        state: list[object] = []
        for file in self._files:
            try:
                found = os.stat(file)
            except OSError as exc:
                state.append(exc.errno)
            else:
                state.append((found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size))
        return tuple(state)

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Called in each handshake, whether or not the other side names a server."""
        now = asyncio.get_running_loop().time()
        if now - self._looked_at >= self._look_interval:
            self._looked_at = now
            self._look()
        connection.context = self._current

    def _look(self) -> None:
        state = self._state()
        if state == self._seen:
            return
        self._seen = state
        cert_file, key_file = self._files
        try:
            self._current = self._load()
        except (OSError, ValueError) as exc:
            log.warning(
                "the new TLS certificate cannot be used, the old one stays: put a matching pair in place",
                cert_file=cert_file,
                key_file=key_file,
                problem=str(exc),
            )
        else:
            log.info("TLS certificate read anew", cert_file=cert_file)
