"""``automation-exporter store``: the database as a whole."""

import argparse
import asyncio
from pathlib import Path

from exporter.cli import UsageError
from exporter.config.outline import outline, without_config
from exporter.model import words
from exporter.store.backup import backup as copied
from exporter.store.copying import Copied, read, write
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
    if options.source == options.to:
        raise UsageError("--from and --to name the same database")
    copied = asyncio.run(_copy(options.source, options.to))
    holds = ", ".join(f"{table} {rows}" for table, rows in copied.rows.items() if rows)
    print(f"{'was there already' if copied.was_there else 'copied'}, rows: {holds or 'none'}")
    return 0


async def _copy(source: str, to: str) -> Copied:
    """Neither of the two may be in use: what a service counted meanwhile would be in the old one only."""
    if source.startswith("sqlite:") and not database(source).is_file():
        raise StoreError(f"there is no database {database(source)}")
    old = await open_engine(source)
    try:
        everything = await old.run(read())
        new = await open_engine(to)
        try:
            return await new.run(write(everything))
        finally:
            await new.close()
    finally:
        await old.close()
