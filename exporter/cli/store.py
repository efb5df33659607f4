"""``automation-exporter store``: the database as a whole."""

import argparse
from pathlib import Path

from exporter.cli import UsageError
from exporter.config.outline import outline, without_config
from exporter.store.backup import backup as copied
from exporter.store.ledger import database
from exporter.web import words


def backup(options: argparse.Namespace) -> int:
    url = (outline(options.config) if options.store is None else without_config(options.store)).store_url
    if not url.startswith("sqlite:"):
        raise UsageError("store backup is for SQLite; back up PostgreSQL with its own pg_dump, see docs/deploy.md")
    to: Path = options.to
    written = copied(database(url), to)
    holds = ", ".join(
        (
            words.count(written.workflows, "workflow"),
            words.count(written.runs, "run"),
            words.count(written.dead_letters, "open dead letter"),
        )
    )
    print(f"{written.path}: {written.bytes / 1e6:.1f} MB, whole: {holds}")
    return 0
