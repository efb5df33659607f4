"""The service itself, and what is asked of its config."""

import argparse
import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import orjson

from exporter import app, log
from exporter.alerting import rules as generating
from exporter.cli import checking as checking
from exporter.config import load, read
from exporter.config.outline import outline
from exporter.config.schema import schema as made
from exporter.config.shown import shown

#: A stop takes at most this long (seconds), whatever is under way.
STOP_SECONDS_MAX = 6.5


def run(options: argparse.Namespace) -> int:
    config = load(options.config)
    return until_stopped(
        lambda stop, reload: app.run(config, stop=stop, reload=reload, load=lambda: load(options.config)),
        seconds_max=STOP_SECONDS_MAX,
    )


def until_stopped(
    serve: Callable[[asyncio.Event, asyncio.Event], Coroutine[Any, Any, None]], *, seconds_max: float | None = None
) -> int:
    """Run until SIGTERM or SIGINT; SIGHUP asks for a reload. Stopping takes no longer than ``seconds_max``.

    A thread that waits for a collector, or for another process's lock on the database, cannot be interrupted.
    """
    deadline = threading.Timer(seconds_max or 0.0, _end)
    deadline.daemon = True

    async def main() -> None:
        stop, reload = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def stopping() -> None:
            if seconds_max is not None and not stop.is_set():
                deadline.start()
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping)
        loop.add_signal_handler(signal.SIGHUP, reload.set)
        await serve(stop, reload)

    try:
        asyncio.run(main())
    finally:
        deadline.cancel()
    return 0


def _end() -> None:
    """Whatever was acknowledged is on the disk; the rest is what a kill would cost, too, and the next start settles."""
    log.get_logger(__name__).warning("stopped without waiting any longer for what is under way")
    os._exit(0)


def check(options: argparse.Namespace) -> int:
    log.configure("error", "logfmt", sys.stderr)
    return asyncio.run(checking.check(options.config, online=options.online, say=print))


def rules(options: argparse.Namespace) -> int:
    slo = outline(options.config).objectives()
    print(generating.as_yaml(generating.recording_rules(slo) + generating.alert_rules(slo)), end="")
    return 0


def show(options: argparse.Namespace) -> int:
    config, written = read(options.config)
    print(shown(config, written, os.environ), end="")
    return 0


def schema(options: argparse.Namespace) -> int:
    sys.stdout.write(orjson.dumps(made(), option=orjson.OPT_INDENT_2).decode() + "\n")
    return 0
