"""``automation-exporter completion``: scripts that let a shell complete the commands without asking us.

They are made by shtab from the parser (``make completions``) and shipped, so that nobody needs it to have them.
"""

import argparse
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "completions"


def completion(options: argparse.Namespace) -> int:
    sys.stdout.write((FOLDER / f"automation-exporter.{options.shell}").read_text(encoding="utf-8"))
    return 0
