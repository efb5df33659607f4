"""Makes the completion scripts anew from the parser: ``make completions``."""

import argparse

import shtab

from exporter.cli.completion import FOLDER
from exporter.cli.parser import SHELLS, parser


def made() -> dict[str, str]:
    """The scripts by the names of their files."""
    return {f"automation-exporter.{shell}": shtab.complete(_with_files(parser()), shell) for shell in SHELLS}


def _with_files(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """What takes a FILE completes as one."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                _with_files(below)
        elif action.metavar == "FILE":
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return parser


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in made().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
