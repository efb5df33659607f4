"""Whether the ledger knows a name that somebody asks for, whatever is in it: on each kind of database."""

import pytest

from exporter.model import DeadLetter
from exporter.store import audit, operations
from exporter.store.ledger import Ledger
from tests.store.test_ledger import NOW, batch, ledger

__all__ = ["ledger"]


@pytest.mark.parametrize(
    ("source", "identity", "known"),
    [
        ("held", "d1", True),
        ("held", "d2", False),
        ("derived", "d1", False),
        ("", "d1", False),
        ("held", "d1\0", False),
        ("held", "d%", False),
        ("held", "' OR '1'='1", False),
        ("held", "x" * 10_000, False),
    ],
)
async def test_a_dead_letter_is_known_by_its_own_name_only(
    ledger: Ledger, source: str, identity: str, known: bool
) -> None:
    await ledger.ingest(batch(DeadLetter(id="d1", workflow_id="w", opened_at=NOW - 60)))
    assert await ledger.transact("audit", audit.is_known(source, identity)) is known
    assert await ledger.transact("operation", operations.one(identity)) is None
    assert await ledger.check() is None
