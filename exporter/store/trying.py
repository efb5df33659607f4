"""Whether a PostgreSQL lets us in, and whether a ledger can live there. Nothing is written."""

from dataclasses import dataclass, field

from exporter.store.postgres import PostgresEngine
from exporter.store.script import Password, Script

#: The oldest version that can say what became of a transaction whose answer was lost.
VERSION_MIN = 13


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What was found there."""

    told: str
    problems: list[str] = field(default_factory=list)


async def tried(url: str, password: Password | None) -> Tried:
    """Connect, and look. Raises ``StoreError`` where that is not to be had."""
    engine = PostgresEngine(url, password, to_read=True)
    try:
        return await engine.run(_look())
    finally:
        await engine.close()


def _look() -> Script[Tried]:
    [row] = yield (
        """SELECT current_setting('server_version_num')::int / 10000, current_user, pg_is_in_recovery(),
            current_schema(), has_schema_privilege(current_schema(), 'CREATE'),
            to_regclass('schema_version') IS NOT NULL,
            COALESCE((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false)""",
        (),
    )
    version, user, is_standby, schema, may_create, is_there, is_tls = row
    problems = []
    if version < VERSION_MIN:
        problems.append(f"PostgreSQL {version} is too old: use {VERSION_MIN} or newer")
    if is_standby:
        problems.append("it is a standby, which may only be read: name the primary")
    if schema is None:
        problems.append(f"user {user} has no schema to write to: look at its search_path")
    elif not may_create:
        problems.append(f"user {user} may not create tables in the schema {schema}: it must own it")
    ledger = "with a ledger" if is_there else "no ledger in it yet"
    return Tried(told=f"PostgreSQL {version}, {'TLS' if is_tls else 'without TLS'}, {ledger}", problems=problems)
