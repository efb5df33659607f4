"""``automation-exporter run``: the service itself."""

import argparse
import asyncio
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from exporter import log, reloading, signals
from exporter.config import Config, ConfigError, load
from exporter.traces.export import is_enabled
from exporter.traces.otlp import ExporterUnavailable, destination

#: A stop takes at most this long (seconds), whatever is under way.
STOP_SECONDS_MAX = 6.5


def run(options: argparse.Namespace) -> int:
    signals.take_reload()  # what came before the config is read asks for nothing
    config = _load(options.config)
    return until_stopped(
        lambda stop, reload: reloading.run(config, stop=stop, reload=reload, load=lambda: _load(options.config)),
        seconds_max=STOP_SECONDS_MAX,
    )


def _load(path: Path) -> Config:
    """The config, if traces would go somewhere: at a reload that is known before anything is stopped.

    Raises ``ConfigError``.
    """
    config = load(path)
    if is_enabled(config.traces):
        try:
            destination(config.traces)
        except ExporterUnavailable as exc:
            raise ConfigError([str(exc)], file=path) from None
    return config


def until_stopped(
    serve: Callable[[asyncio.Event, asyncio.Event], Coroutine[Any, Any, None]], *, seconds_max: float | None = None
) -> int:
    """Run until SIGTERM or SIGINT; SIGHUP asks for a reload. Stopping takes no longer than ``seconds_max``.

    A thread that waits for a collector, or for another process's lock on the database, cannot be interrupted.
    """
    deadline = threading.Timer(seconds_max or 0.0, _end)
    deadline.daemon = True  # and alive to the very end: signals are not for it

    async def main() -> None:
        stop, reload = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def stopping() -> None:
            if seconds_max is not None and not stop.is_set():
                with signals.blocked():
                    deadline.start()
            stop.set()

        loop.set_default_executor(ThreadPoolExecutor(initializer=signals.keep_out))
        for number in signals.STOPPING:
            loop.add_signal_handler(number, stopping)
        loop.add_signal_handler(signal.SIGHUP, reload.set)
        if signals.take_reload():
            reload.set()
        try:
            await serve(stop, reload)
        finally:
            if stop.is_set():
                signals.let_end()

    try:
        asyncio.run(main())
    finally:
        deadline.cancel()
    return 0


def _end() -> None:
    """Whatever was acknowledged is on the disk; the rest is what a kill would cost, too, and the next start settles."""
    log.get_logger(__name__).warning("stopped without waiting any longer for what is under way")
    os._exit(0)
