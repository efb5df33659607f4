"""``retries audit``: what was decided, said and done about retries, and whether anybody changed it afterwards.

Only the rows are read, so it works beside a running service, and whatever else the database holds.
"""

from datetime import UTC, datetime

import orjson

from exporter.cli import UsageError
from exporter.cli.ledger import Say, as_text, moment
from exporter.config.outline import Outline
from exporter.model.durations import parse_duration
from exporter.store import audit as script
from exporter.store.ledger import Ledger, open_engine
from exporter.store.script import Script, StoreError


def since(text: str, now: float, option: str = "--since") -> float:
    """A moment as people write one: a time, in UTC unless it says otherwise, or how long ago. Raises ``UsageError``."""
    try:
        return now - parse_duration(text)
    except ValueError:
        pass
    try:
        written = datetime.fromisoformat(text.strip().removesuffix("UTC").strip())
        return (written if written.tzinfo is not None else written.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise UsageError(
            f"{option} {text}: write a time such as 2026-11-28 or 2026-11-28T22:00, or how long ago, such as 14d"
        ) from None


async def audit(outline: Outline, *, since: float, say: Say, as_json: bool = False) -> int:
    """The rows from a moment on, one JSON object a line, or all as one list."""
    ledger = Ledger(await open_engine(outline.store_url, password=outline.store.password_now, to_read=True), {})
    try:
        after, all_rows = 0, []
        while found := await ledger.transact("audit", script.records(since=since, after=after)):
            after = found[-1]["seq"]
            if as_json:
                all_rows += found
                continue
            for row in found:
                say(orjson.dumps(row).decode())
        if as_json:
            say(as_text(all_rows))
    finally:
        await ledger.close()
    return 0


async def verify(outline: Outline, *, since: float, say: Say, as_json: bool = False) -> int:
    """Whether each row since a moment follows from the one before it. Raises ``StoreError`` that names the first that
    does not; as JSON it is said, and 1 returned.
    """
    ledger = Ledger(await open_engine(outline.store_url, password=outline.store.password_now, to_read=True), {})
    try:
        found = await ledger.transact("audit", script.check(since=since))
        broken = None if found.broken is None else await ledger.transact("audit", _row(found.broken))
    finally:
        await ledger.close()
    if as_json:
        say(as_text({"rows": found.rows, "first": found.first, "last": found.last, "broken": found.broken}))
        return 0 if found.broken is None else 1
    if found.broken is not None:
        at = "" if broken is None else f" (of {broken})"
        raise StoreError(
            f"audit: row {found.broken}{at} does not follow from the one before it: a row was changed, added or taken "
            "out afterwards; a backup of the database says what it was"
        )
    if not found.rows:
        say("audit: no rows")
        return 0
    say(f"audit: fine: {found.rows} rows, {found.first} to {found.last}, each follows from the one before it")
    return 0


def _row(seq: int) -> Script[str | None]:
    """When a row says it was written, if it says so."""
    found = yield from script.records(after=seq - 1, limit=1)
    try:
        return moment(found[0]["at"])
    except (IndexError, TypeError, ValueError, OverflowError, OSError):
        return None
