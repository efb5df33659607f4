"""Reading what was recorded of dead letters and of their retries, for whoever wants to learn from it."""

from dataclasses import dataclass, field

from exporter.model import DeadLetter
from exporter.model.ledger import Key
from exporter.model.retries import Retry
from exporter.store import codec
from exporter.store.retries import retry_of
from exporter.store.script import Script

#: Rows read at a time.
ROWS_MAX = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What happened from a moment on."""

    dead_letters: list[tuple[str, DeadLetter]] = field(default_factory=list)  # with their source, oldest first
    retries: list[Retry] = field(default_factory=list)  # real ones that came to an end, oldest first
    made: dict[Key, str] = field(default_factory=dict)  # runs (source, id) that retries made -> root


def history(since: float) -> Script[History]:
    """The dead letters opened from a moment on, by the platform's clock, and the retries claimed from then on."""
    found = History()
    after = (since, "", "")
    while True:
        rows = yield (
            f"""SELECT {codec.DEAD_LETTER_COLUMNS} FROM dead_letters
                WHERE (opened_at, source, dead_letter_id) > ($1, $2, $3)
                ORDER BY opened_at, source, dead_letter_id LIMIT {ROWS_MAX}""",
            after,
        )
        found.dead_letters.extend((source, entry.dead_letter) for source, entry in map(codec.dead_letter_entry, rows))
        if len(rows) < ROWS_MAX:
            break
        source, last = found.dead_letters[-1]
        after = (last.opened_at, source, last.id)
    rows = yield (
        """SELECT data FROM retries WHERE claimed_at >= $1 AND shadow = 0 AND outcome IS NOT NULL
            ORDER BY claimed_at, id""",
        (since,),
    )
    found.retries.extend(retry_of(data) for (data,) in rows)
    rows = yield "SELECT source, run_id, root FROM lineage", ()
    found.made.update({(source, run_id): root for source, run_id, root in rows})
    return found
