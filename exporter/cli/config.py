"""``config`` and ``check``: what is asked of a config."""

import argparse
import asyncio
import os
import sys


def schema(options: argparse.Namespace) -> int:
    import orjson

    from exporter.config.schema import schema

    sys.stdout.write(orjson.dumps(schema(), option=orjson.OPT_INDENT_2).decode() + "\n")
    return 0


def show(options: argparse.Namespace) -> int:
    from exporter.config import read
    from exporter.config.shown import shown

    config, written = read(options.config)
    print(shown(config, written, os.environ), end="")
    return 0


def check(options: argparse.Namespace) -> int:
    from exporter import log
    from exporter.cli.checking import check

    log.configure("error", "logfmt", sys.stderr)
    return asyncio.run(check(options.config, online=options.online, say=print))
