"""``automation-exporter``, and ``python -m exporter``. Signals are heeded first, and all else is imported then."""

import sys

from exporter import signals

__all__ = ["main"]


def main() -> int:
    """Run the command that was typed; returns the exit code."""
    signals.heed(sys.argv[1:])
    from exporter.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
