"""The commands. Each is a few lines around what does the work; every problem is one clear line and exit code 1."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module

from exporter.cli.parser import parser

__all__ = ["UsageError", "main"]

#: What a shell reports of a program whose reader went away: 128 and the number of SIGPIPE.
READER_GONE = 141


class UsageError(Exception):
    """The command was not given what it needs: one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        try:
            options = parser().parse_args(arguments)
            code = _command(options.command)(options)
        except SystemExit:
            sys.stdout.flush()
            raise
        except KeyboardInterrupt:
            return 0
        except Exception as exc:
            sys.stdout.flush()  # what was found before it
            code = _say(exc)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        return _reader_gone()
    return code


def _command(name: str) -> Callable[[argparse.Namespace], int]:
    module, _, function = name.partition(":")
    command: Callable[[argparse.Namespace], int] = getattr(import_module(f"exporter.cli.{module}"), function)
    return command


def _say(exc: BaseException) -> int:
    """One line for each problem. What is no problem of the user's is raised again."""
    if isinstance(exc, UsageError):
        print(f"automation-exporter: {exc}", file=sys.stderr)
        return 1
    from exporter.config import ConfigError
    from exporter.retries.control import ControlError
    from exporter.store.script import StoreError
    from exporter.traces.otlp import ExporterUnavailable

    one_line = (StoreError, OSError, ExporterUnavailable, UsageError)
    broke = ""
    if isinstance(exc, BaseExceptionGroup):
        while isinstance(exc, BaseExceptionGroup):
            exc = exc.exceptions[0]
        broke = "" if isinstance(exc, one_line) else f"a loop broke: {type(exc).__name__}: "
    elif not isinstance(exc, (*one_line, ConfigError, ControlError)):
        raise exc
    if isinstance(exc, BrokenPipeError):
        raise exc
    if isinstance(exc, ConfigError):
        for line in exc.lines():
            print(line, file=sys.stderr)
    else:
        print(f"automation-exporter: {broke}{exc}", file=sys.stderr)
    return 1


def _reader_gone() -> int:
    """End as other tools do. Nothing may be written any more, not by the interpreter's own last flush either."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return READER_GONE
