"""The rows by which replicas agree who holds which source. Times are the database's."""

from collections.abc import Mapping
from typing import Any

import msgspec

from exporter.model.leases import Lease, Replica, Seen
from exporter.store.journal import APPLICATION, CHANNEL
from exporter.store.script import Script

#: A replica that was not heard of for so long (seconds) holds nothing any more.
TTL = 12.0
#: Replicas that were not heard of for so long (seconds) are forgotten.
FORGOTTEN = 86400.0
#: A transaction whose client has said nothing for so long (seconds) is ended: somebody may wait for its locks. The
#: database does so itself only between two statements, not in the middle of one.
SILENT = 6
_SILENT = f"""SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE datname = current_database() AND usename = current_user AND application_name = '{APPLICATION}'
    AND xact_start IS NOT NULL AND wait_event = 'ClientRead'
    AND state_change < clock_timestamp() - interval '{SILENT} seconds'"""
_NOW = "extract(epoch FROM clock_timestamp())::double precision"


class _Said(msgspec.Struct, kw_only=True):
    """What a replica says of itself."""

    sources: list[str]
    told: dict[str, Any] = {}


def beat(me: Replica, told: Mapping[str, Any]) -> Script[Seen]:
    """Be alive for another while, say something of each source that is held, and see who else is alive."""
    said = _Said(sources=sorted(me.sources), told=dict(told))
    yield (
        f"""INSERT INTO replicas (id, name, until, data) VALUES ($1, $2, {_NOW} + {TTL}, $3)
            ON CONFLICT (id) DO UPDATE SET until = excluded.until, data = excluded.data""",
        (me.id, me.name, msgspec.msgpack.encode(said)),
    )
    yield _SILENT, ()
    return (yield from see())


def come(me: Replica) -> Script[None]:
    """Take the place of whoever was here before: at one address there is one process."""
    yield f"DELETE FROM replicas WHERE (name = $1 AND id <> $2) OR until < {_NOW} - {FORGOTTEN}", (me.name, me.id)


def see() -> Script[Seen]:
    """Everybody alive, and every lease."""
    replicas: dict[str, Replica] = {}
    told: dict[str, Any] = {}
    now = (yield f"SELECT {_NOW}", ())[0][0]
    for identity, name, data in (yield f"SELECT id, name, data FROM replicas WHERE until > {_NOW} ORDER BY id", ()):
        said = msgspec.msgpack.decode(data, type=_Said)
        replicas[identity] = Replica(id=identity, name=name, sources=frozenset(said.sources))
        told |= said.told
    rows = yield "SELECT source, holder, epoch FROM leases", ()
    leases = {source: Lease(source=source, holder=holder, epoch=epoch) for source, holder, epoch in rows}
    return Seen(now=now, replicas=replicas, leases=leases, told=told)


def take(source: str, me: str) -> Script[int | None]:
    """Take a source that nobody holds who is alive; returns the epoch, None if somebody was first.

    To be run within the lock of the source: whoever held it writes before this, or never.
    """
    sql = f"""INSERT INTO leases (source, holder, epoch) VALUES ($1, $2, 1)
        ON CONFLICT (source) DO UPDATE SET holder = excluded.holder, epoch = leases.epoch + 1
            WHERE leases.holder = '' OR leases.holder = excluded.holder
            OR NOT EXISTS (SELECT 1 FROM replicas WHERE replicas.id = leases.holder AND replicas.until > {_NOW})
        RETURNING epoch"""
    rows = yield sql, (source, me)
    return rows[0][0] if rows else None


def give(source: str, me: str) -> Script[None]:
    """Give up a source; the next one takes it under a new epoch."""
    yield "UPDATE leases SET holder = '' WHERE source = $1 AND holder = $2", (source, me)


def leave(me: str) -> Script[None]:
    """Be gone at once."""
    yield "UPDATE leases SET holder = '' WHERE holder = $1", (me,)
    yield "DELETE FROM replicas WHERE id = $1", (me,)


def say(what: str) -> Script[None]:
    """Say something to all replicas that can hear it."""
    yield "SELECT pg_notify($1, $2)", (CHANNEL, what)
