"""``automation-exporter store``: the database as a whole."""

import argparse
from pathlib import Path

from exporter.cli import UsageError
from exporter.config.outline import outline, without_config
from exporter.model import words
from exporter.store import copying
from exporter.store.backup import backup as copied
from exporter.store.ledger import database, open_engine
from exporter.store.script import StoreError


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


def copy(options: argparse.Namespace) -> int:
    """Neither of the two may be in use: what a service counted meanwhile would be in the old one only."""
    if options.source == options.to:
        raise UsageError("--from and --to name the same database")
    if options.source.startswith("sqlite:") and not database(options.source).is_file():
        raise StoreError(f"there is no database {database(options.source)}")
    copied = copying.copy(lambda: open_engine(options.source), lambda: open_engine(options.to))
    holds = ", ".join(f"{table} {rows}" for table, rows in copied.rows.items() if rows)
    print(f"{'was there already' if copied.was_there else 'copied'}, rows: {holds or 'none'}")
    return 0
