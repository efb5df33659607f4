"""The service itself, and what is asked of its config."""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import orjson

from exporter import app, log
from exporter import check as checking
from exporter.alerting import rules as generating
from exporter.config import load, read
from exporter.config.outline import outline
from exporter.config.schema import schema as made
from exporter.config.shown import shown


def run(options: argparse.Namespace) -> int:
    config = load(options.config)
    return until_stopped(
        lambda stop, reload: app.run(config, stop=stop, reload=reload, load=lambda: load(options.config))
    )


def until_stopped(serve: Callable[[asyncio.Event, asyncio.Event], Coroutine[Any, Any, None]]) -> int:
    """Run until SIGTERM or SIGINT; SIGHUP asks for a reload."""

    async def main() -> None:
        stop, reload = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, reload.set)
        await serve(stop, reload)

    asyncio.run(main())
    return 0


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
