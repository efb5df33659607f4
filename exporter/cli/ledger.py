"""What the commands about retries do: read the ledger beside the service, or say a word to it.

Reading needs no service and disturbs none. What changes something goes to the service that is running; where none is,
the ledger is opened and changed here, and the next service finds it.
"""

import asyncio
import getpass
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import orjson

from exporter.cli import UsageError
from exporter.clock import Clock, SystemClock
from exporter.config import Config
from exporter.config.outline import Outline, known
from exporter.config.retries import RetriesConfig, compile_rules
from exporter.memory import Memory, fold_rules, remember
from exporter.model.labels import NO_LABELS, Labels
from exporter.model.retries import Retry
from exporter.platform.section import SourceConfig
from exporter.retries.control import retry_facts
from exporter.source import Source
from exporter.store import retries as script
from exporter.store.address import is_postgres
from exporter.store.ledger import Ledger, database, open_engine
from exporter.store.script import StoreError, StoreInUse
from exporter.web import local

Say = Callable[[str], object]
Answer = dict[str, Any]
#: The service has this long (seconds) to say where it answers, while it starts.
START_SECONDS_MAX = 10.0
#: Where nobody asks what is decided.
NO_RULES = compile_rules(RetriesConfig())


@asynccontextmanager
async def offline(
    outline: Outline,
    *,
    to_read: bool,
    by_rules: bool = False,
    clock: Clock | None = None,
    config: Config | None = None,
) -> AsyncIterator[Memory]:
    """Open the ledger and load what retrying needs of it. Raises ``StoreError``.

    Only ``by_rules`` are the policies and labels of the config read, after the ledger is open: whoever does not ask
    what is decided can do without them. Where the config names no sources, the ledger does. Whoever is going to open
    a source, or have what a platform says stored, gives the whole ``config``.
    """
    sections: Mapping[str, SourceConfig] = {} if config is None else config.sources
    platforms = known(outline.platforms)
    ledger = Ledger(
        await open_engine(outline.store_url, password=outline.store.password_now, to_read=to_read),
        {} if config is None else fold_rules(config),
    )
    try:
        labels = outline.labels() if by_rules else dict[str, Labels]()
        yield await remember(
            ledger,
            clock or SystemClock(),
            names=outline.platforms,
            source=lambda name, world: (
                Source(name, platforms[name], world, section=sections.get(name), labels=labels.get(name, NO_LABELS))
                if name in platforms
                else None
            ),
            rules=outline.rules if by_rules else lambda: NO_RULES,
        )
    finally:
        await ledger.close()


async def list_retries(outline: Outline, *, say: Say, limit: int, as_json: bool = False) -> int:
    """The newest retries, one line each, or as a list of objects."""
    async with offline(outline, to_read=True) as opened:
        found = await opened.ledger.transact("recent", script.recent(limit))
        if as_json:
            say(as_text([retry_facts(retry) for retry in found]))
            return 0
        for retry in found:
            say(_line(retry))
    return 0


async def show(outline: Outline, identity: str, *, say: Say, as_json: bool = False) -> int:
    """One retry, or every retry of one dead letter, with what the audit says of it."""
    async with offline(outline, to_read=True) as opened:
        everything = await opened.ledger.transact("recent", script.recent(10_000))
        found = [retry_facts(retry) for retry in everything if retry.is_named(identity)]
        records = await opened.book.audit_of(identity)
    if not found and not records:
        raise StoreError(f"there is no retry or dead letter {identity} in the ledger")
    if as_json:
        say(as_text({"retries": found, "audit": records}))
        return 0
    for retry in found:
        for name, value in retry.items():
            say(f"{name}: {moment(value) if name.endswith('_at') and value is not None else value}")
        say("")
    for record in records:
        facts = {k: v for k, v in record.items() if k not in ("at", "kind") and v not in (None, "", {})}
        say(f"{moment(record['at'])}  {record['kind']}  " + " ".join(f"{k}={v}" for k, v in facts.items()))
    return 0


def _line(retry: Retry) -> str:
    state = "shadow" if retry.shadow else retry.outcome or retry.state
    letter = f"{retry.source}/{retry.dead_letter_id}"
    return "  ".join((moment(retry.claimed_at), retry.id, state, letter, retry.policy, retry.detail))


async def tell(
    outline: Outline,
    path: str,
    body: Answer,
    here: Callable[[Memory, str], Awaitable[Answer]],
    *,
    say: Say,
    by_rules: bool = False,
    show: Callable[[Answer], Iterable[str]] | None = None,
    as_json: bool = False,
    config: Config | None = None,
) -> int:
    """Say something to the running service, or, where none runs, to the ledger: ``here`` does what ``path`` does.

    A PostgreSQL takes it beside the service, which hears it there.
    ``show`` puts the answer into lines; else each value of it is one.
    """
    who = _user()
    await _find(outline)
    loop = asyncio.get_running_loop()
    patience = loop.time() + START_SECONDS_MAX
    while True:
        try:
            async with offline(outline, to_read=False, by_rules=by_rules, config=config) as opened:
                answer = await here(opened, who)
                break
        except StoreInUse:
            try:
                answer = await local.ask(outline.store_url, path, {**body, "who": who})
                break
            except local.NotThere:  # it is starting or being reloaded, or is another command that ends soon
                if loop.time() > patience:
                    raise
        await asyncio.sleep(0.2)
    for line in [as_text(answer)] if as_json else (show or plain)(answer):
        say(line)
    return 0


async def _find(outline: Outline) -> None:
    """Raises ``StoreError`` if there is no database yet: a new one would heed it, and no service would ever see it."""
    if is_postgres(outline.store_url):
        await (await open_engine(outline.store_url, password=outline.store.password_now, to_read=True)).close()
        return
    file = database(outline.store_url)
    if not file.exists():
        here_or_there = "" if file.is_absolute() else "; store.url is relative to the folder the service was started in"
        raise StoreError(f"there is no database {file}: the service has never run with it{here_or_there}")


def plain(answer: Answer) -> Iterable[str]:
    """Each value of an answer, with its name."""
    for name, value in answer.items():
        if value not in (None, False, []):
            text = ", ".join(map(str, value)) if isinstance(value, list) else value
            yield f"{name}: {moment(text) if name in ('until', 'settles') else text}"


def dead_letter(text: str) -> tuple[str, str]:
    """What SOURCE/ID names. Raises ``UsageError``."""
    source, slash, letter_id = text.partition("/")
    if not slash or not source or not letter_id:
        raise UsageError(f"{text}: write SOURCE/ID, as `policies explain` prints it")
    return source, letter_id


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user that has no name
        return f"uid {os.getuid()}"


def as_text(value: Any) -> str:
    """JSON that a person can read, too."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def moment(moment: Any) -> str:
    return datetime.fromtimestamp(float(moment), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
