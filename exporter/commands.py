"""What the commands about retries do: read the ledger beside the service, or say a word to it.

Reading needs no service and disturbs none. What changes something goes to the service that is running; where none is,
the ledger is opened and changed here, and the next service finds it.
"""

import getpass
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from exporter.clock import Clock, SystemClock
from exporter.config import Config
from exporter.platforms import PLATFORMS
from exporter.retries.book import RetryBook
from exporter.retries.control import Control, Found, retry_facts
from exporter.retries.model import Retry
from exporter.retries.policy import Rules, Rung, facts_of
from exporter.store import retries as script
from exporter.store.ledger import Ledger, open_engine
from exporter.store.script import StoreError
from exporter.web import local
from exporter.world import World

Say = Callable[[str], object]


class Offline:
    """The ledger's picture of retrying, without a service."""

    def __init__(self, ledger: Ledger, book: RetryBook, control: Control) -> None:
        self.ledger = ledger
        self.book = book
        self.control = control


@asynccontextmanager
async def offline(config: Config, *, to_read: bool, clock: Clock | None = None) -> AsyncIterator[Offline]:
    """Open the ledger and load what retrying needs of it. Raises ``StoreError``."""
    clock = clock or SystemClock()
    platforms = {source: PLATFORMS[section.platform] for source, section in config.sources.items()}
    ledger = Ledger(await open_engine(config.store.url, to_read=to_read), {})
    try:
        world = World(list(config.sources))
        world.load(await ledger.load())
        book = RetryBook(ledger, world, platforms, config.rules())
        await book.load(clock.now())
        labels = {source: section.labels for source, section in config.sources.items()}
        yield Offline(ledger, book, Control(book, world, platforms, labels, clock))
    finally:
        await ledger.close()


async def explain(config: Config, *, say: Say, brief: bool = False) -> int:
    """Every open dead letter: what each policy says of it, every check, the decision and when it may change."""
    clock = SystemClock()
    async with offline(config, to_read=True, clock=clock) as opened:
        found, rules = opened.control.everything(), opened.book.rules
        for one in found:
            _explain(one, rules, clock.now(), say, brief=brief)
        paused = [source for source in config.sources if opened.book.is_paused(source, clock.now())]
        note = f"; paused: {', '.join(paused)}" if paused else ""
        say(f"{len(found)} open dead letters, {len(rules.policies)} policies, mode {rules.mode}{note}")
    return 0


def _explain(one: Found, rules: Rules, now: float, say: Say, *, brief: bool) -> None:
    letter, decision, workflow = one.subject.letter, one.ladder.decision, one.subject.workflow
    name = letter.workflow_id if workflow is None or workflow.name is None else workflow.name
    error = letter.error
    why = "error not known" if error is None else " ".join(filter(None, (error.error_class, error.type)))
    say(f"{one.key}  {name}  {why}")
    owner = f"policy {decision.policy}" if decision.policy else "no policy"
    when = f", next at {_moment(decision.next_at)}" if decision.next_at is not None else ""
    say(f"  {decision.verb}: {decision.reason} ({owner}, mode {decision.mode}{when})  {decision.detail}")
    if not brief:
        facts = facts_of(one.subject, now)
        for policy in rules.policies:
            matches = {True: "matches", False: "does not match", None: "cannot be told"}[policy.owns(facts)]
            say(f"    policy {policy.name}: {matches}, {policy.action}")
        for rung in one.ladder.rungs:
            say(f"    {_rung(rung)}")


def _rung(rung: Rung) -> str:
    when = f", until {_moment(rung.next_at)}" if rung.refuses and rung.next_at is not None else ""
    detail = f": {rung.detail}" if rung.detail else ""
    return f"{'refuses' if rung.refuses else 'passes '}  {rung.reason}{detail}{when}"


async def list_retries(config: Config, *, say: Say, limit: int) -> int:
    """The newest retries, one line each."""
    async with offline(config, to_read=True) as opened:
        for retry in await opened.ledger.transact("recent", script.recent(limit)):
            say(_line(retry))
    return 0


async def show(config: Config, identity: str, *, say: Say) -> int:
    """One retry, or every retry of one dead letter, with what the audit says of it."""
    async with offline(config, to_read=True) as opened:
        everything = await opened.ledger.transact("recent", script.recent(10_000))
        found = [retry for retry in everything if retry.is_named(identity)]
        for retry in found:
            for name, value in retry_facts(retry).items():
                say(f"{name}: {_moment(value) if name.endswith('_at') and value is not None else value}")
            say("")
        records = await opened.book.audit_of(identity)
        for record in records:
            facts = {k: v for k, v in record.items() if k not in ("at", "kind") and v not in (None, "", {})}
            say(f"{_moment(record['at'])}  {record['kind']}  " + " ".join(f"{k}={v}" for k, v in facts.items()))
        if not found and not records:
            raise StoreError(f"there is no retry or dead letter {identity} in the ledger")
    return 0


def _line(retry: Retry) -> str:
    state = "shadow" if retry.shadow else retry.outcome or retry.state
    letter = f"{retry.source}/{retry.dead_letter_id}"
    return "  ".join((_moment(retry.claimed_at), retry.id, state, letter, retry.policy, retry.detail))


async def tell(
    config: Config,
    path: str,
    body: dict[str, Any],
    here: Callable[[Control, str], Awaitable[dict[str, Any]]],
    *,
    say: Say,
) -> int:
    """Say something to the running service, or, where none runs, to the ledger: ``here`` does what ``path`` does."""
    who = _user()
    try:
        async with offline(config, to_read=False) as opened:
            answer = await here(opened.control, who)
    except StoreError as exc:
        if "another process is using" not in str(exc):
            raise
        answer = await local.ask(config, path, {**body, "who": who})
    for name, value in answer.items():
        if value not in (None, False, []):
            told = ", ".join(map(str, value)) if isinstance(value, list) else value
            say(f"{name}: {_moment(told) if name in ('until', 'settles') else told}")
    return 0


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user that has no name
        return f"uid {os.getuid()}"


def _moment(moment: Any) -> str:
    return datetime.fromtimestamp(float(moment), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
