"""The tables, and the numbered steps that lead to them.

A database newer than this program is refused, never guessed at.
"""

from collections.abc import Callable

from exporter.store import schema2
from exporter.store.script import Script, StoreError

#: One entry a version, statements or a script; an entry is never changed once released.
MIGRATIONS: tuple[tuple[str, ...] | Callable[[], Script[None]], ...] = (
    (
        """CREATE TABLE sources (
            source TEXT NOT NULL PRIMARY KEY,
            first_sweep_at DOUBLE PRECISION NOT NULL,
            pruned_until DOUBLE PRECISION NOT NULL DEFAULT 0
        )""",
        """CREATE TABLE workflows (
            source TEXT NOT NULL,
            workflow_id TEXT NOT NULL,
            gone_at DOUBLE PRECISION,
            data TEXT NOT NULL,
            PRIMARY KEY (source, workflow_id)
        )""",
        """CREATE TABLE runs (
            source TEXT NOT NULL,
            run_id TEXT NOT NULL,
            workflow_id TEXT NOT NULL,
            state TEXT NOT NULL,
            result TEXT,
            finished_at DOUBLE PRECISION,
            counted_at DOUBLE PRECISION NOT NULL,
            heard INTEGER NOT NULL,
            data TEXT NOT NULL,
            PRIMARY KEY (source, run_id)
        )""",
        "CREATE INDEX runs_by_workflow ON runs (source, workflow_id, finished_at)",
        "CREATE INDEX runs_open ON runs (source) WHERE state <> 'finished'",
        "CREATE INDEX runs_by_count ON runs (source, counted_at)",
        "CREATE INDEX runs_by_end ON runs (finished_at)",
        """CREATE TABLE dead_letters (
            source TEXT NOT NULL,
            dead_letter_id TEXT NOT NULL,
            workflow_id TEXT NOT NULL,
            run_id TEXT,
            opened_at DOUBLE PRECISION NOT NULL,
            resolved_at DOUBLE PRECISION,
            data TEXT NOT NULL,
            PRIMARY KEY (source, dead_letter_id)
        )""",
        "CREATE INDEX dead_letters_open ON dead_letters (source, workflow_id) WHERE resolved_at IS NULL",
        "CREATE INDEX dead_letters_by_run ON dead_letters (source, run_id)",
        "CREATE INDEX dead_letters_by_resolution ON dead_letters (resolved_at)",
        """CREATE TABLE traces (
            source TEXT NOT NULL,
            run_id TEXT NOT NULL,
            attempt BIGINT NOT NULL,
            counted_at DOUBLE PRECISION NOT NULL,
            settled INTEGER NOT NULL,
            data TEXT NOT NULL,
            PRIMARY KEY (source, run_id, attempt)
        )""",
        "CREATE INDEX traces_by_count ON traces (counted_at)",
        """CREATE TABLE tallies (
            metric TEXT NOT NULL,
            source TEXT NOT NULL,
            workflow_id TEXT NOT NULL,
            labels TEXT NOT NULL,
            part INTEGER NOT NULL,
            value DOUBLE PRECISION NOT NULL,
            PRIMARY KEY (metric, source, workflow_id, labels, part)
        )""",
        """CREATE TABLE cursors (
            source TEXT NOT NULL,
            stream TEXT NOT NULL,
            key TEXT NOT NULL,
            value TEXT NOT NULL,
            PRIMARY KEY (source, stream, key)
        )""",
    ),
    (
        # One row a retry: intent, call, verdict. ``data`` is the whole of it, the columns are what it is found by.
        """CREATE TABLE retries (
            id TEXT NOT NULL PRIMARY KEY,
            source TEXT NOT NULL,
            root TEXT NOT NULL,
            dead_letter_id TEXT NOT NULL,
            shadow INTEGER NOT NULL,
            state TEXT NOT NULL,
            outcome TEXT,
            claimed_at DOUBLE PRECISION NOT NULL,
            data TEXT NOT NULL
        )""",
        # The lock: of one root, one retry may be open at a time. Claims insert or find that they came too late.
        "CREATE UNIQUE INDEX retries_open ON retries (source, root) WHERE outcome IS NULL AND shadow = 0",
        "CREATE INDEX retries_by_root ON retries (source, root)",
        "CREATE INDEX retries_by_dead_letter ON retries (source, dead_letter_id)",
        "CREATE INDEX retries_by_claim ON retries (claimed_at)",
        # Runs that retries made, so that their dead letters count for the same root.
        """CREATE TABLE lineage (
            source TEXT NOT NULL,
            run_id TEXT NOT NULL,
            root TEXT NOT NULL,
            retry_id TEXT NOT NULL,
            PRIMARY KEY (source, run_id)
        )""",
        # The time before which the pace of a source allows no further call but for its burst.
        "CREATE TABLE paces (source TEXT NOT NULL PRIMARY KEY, full_at DOUBLE PRECISION NOT NULL)",
        """CREATE TABLE overrides (
            id TEXT NOT NULL PRIMARY KEY,
            until DOUBLE PRECISION,
            ended_at DOUBLE PRECISION,
            data TEXT NOT NULL
        )""",
        # What is decided of each open dead letter, so that a change is counted once.
        """CREATE TABLE decisions (
            source TEXT NOT NULL,
            dead_letter_id TEXT NOT NULL,
            policy TEXT NOT NULL,
            decision TEXT NOT NULL,
            reason TEXT NOT NULL,
            PRIMARY KEY (source, dead_letter_id)
        )""",
        # Only ever added to; each row carries the hash of the one before it.
        """CREATE TABLE audit (
            seq BIGINT NOT NULL PRIMARY KEY,
            at DOUBLE PRECISION NOT NULL,
            data TEXT NOT NULL,
            hash TEXT NOT NULL
        )""",
    ),
    schema2.rewrite,
    # The newest end that was read of a source: what is forgotten never runs ahead of it, whatever a clock shows.
    ("ALTER TABLE sources ADD COLUMN read_until DOUBLE PRECISION NOT NULL DEFAULT 0",),
    (
        # What the engine keeps of one thing between retries: the gate of a group, a setback, a budget, a refused look.
        """CREATE TABLE retry_state (
            source TEXT NOT NULL,
            kind TEXT NOT NULL,
            key TEXT NOT NULL,
            data TEXT NOT NULL,
            PRIMARY KEY (source, kind, key)
        )""",
        # How long a dead letter could not have been tried: up to its last decision, and since when it is so.
        "ALTER TABLE decisions ADD COLUMN waited DOUBLE PRECISION NOT NULL DEFAULT 0",
        "ALTER TABLE decisions ADD COLUMN waits_since DOUBLE PRECISION",
        """CREATE TABLE operations (
            id TEXT NOT NULL PRIMARY KEY,
            created_at DOUBLE PRECISION NOT NULL,
            ended_at DOUBLE PRECISION,
            data TEXT NOT NULL
        )""",
        """CREATE TABLE operation_items (
            operation_id TEXT NOT NULL,
            source TEXT NOT NULL,
            dead_letter_id TEXT NOT NULL,
            state TEXT NOT NULL,
            detail TEXT NOT NULL,
            PRIMARY KEY (operation_id, source, dead_letter_id)
        )""",
    ),
    (
        # One row a repair other than a retry. ``data`` is the whole of it, the columns are what it is found by.
        """CREATE TABLE repairs (
            id TEXT NOT NULL PRIMARY KEY,
            source TEXT NOT NULL,
            subject TEXT NOT NULL,
            subject_id TEXT NOT NULL,
            action TEXT NOT NULL,
            root TEXT NOT NULL,
            operation_id TEXT NOT NULL,
            state TEXT NOT NULL,
            outcome TEXT,
            closed_at DOUBLE PRECISION,
            data TEXT NOT NULL
        )""",
        # The lock: of one thing, one repair may be open at a time.
        "CREATE UNIQUE INDEX repairs_open ON repairs (source, subject, subject_id) WHERE outcome IS NULL",
        "CREATE INDEX repairs_by_operation ON repairs (operation_id)",
        "CREATE INDEX repairs_by_root ON repairs (source, root)",
    ),
    schema2.tell_reruns,
)


def migrate() -> Script[int]:
    """Bring the database to the newest version; returns the version it had before."""
    yield "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)", ()
    rows = yield "SELECT max(version) FROM schema_version", ()
    version: int = rows[0][0] or 0
    if version > len(MIGRATIONS):
        raise StoreError(
            f"the database has schema version {version}, this program knows up to {len(MIGRATIONS)}: "
            "run the newer version of automation-exporter that wrote it"
        )
    for number, migration in enumerate(MIGRATIONS[version:], start=version + 1):
        if callable(migration):
            yield from migration()
        else:
            for statement in migration:
                yield statement, ()
        yield "INSERT INTO schema_version (version) VALUES ($1)", (number,)
    return version


def check_version() -> Script[None]:
    """Raise ``StoreError`` unless the database has exactly the schema this program reads."""
    rows = yield "SELECT max(version) FROM schema_version", ()
    version: int = rows[0][0] or 0
    if version != len(MIGRATIONS):
        raise StoreError(
            f"the database has schema version {version}, this program reads {len(MIGRATIONS)}: "
            "use the version of automation-exporter that runs on it"
        )
