"""A whole service that loses what it holds and takes it again."""

from pathlib import Path

from exporter.store import leases
from tests.e2e.deployment import deployment
from tests.postgres import Postgres
from tests.servers import real

pytestmark = real("postgres")


async def test_who_takes_a_source_again_remembers_nothing_of_how_it_read_it_before(
    tmp_path: Path, server: Postgres
) -> None:
    """What a client remembers of the platform (counts, ends, what it has told) others have read past meanwhile."""
    async with deployment(tmp_path, platforms=["make"], changes={"store": {"url": server.make()}}) as made:
        await made.sweep()
        service = made.service
        source, replicas = service.sources["make"], service.replicas
        assert replicas is not None
        before = (source.client, source.adapter, service.pollers["make"], service.retriers["make"])
        decider, epoch = service.memory.deciders["make"], replicas.held["make"]
        await replicas._beats.run(leases.leave(replicas.me.id))  # as if it had been silent for too long
        await replicas._beats.run(leases.take("make", "another"))
        await replicas.beat_once()
        assert replicas.held["make"] == epoch + 2
        after = (source.client, source.adapter, service.pollers["make"], service.retriers["make"])
        assert all(new is not old for new, old in zip(after, before, strict=True))
        assert service.memory.deciders["make"] is not decider
        assert source.streams["runs"].success_at is None
        await made.sweep()
        assert source.streams["runs"].success_at is not None
