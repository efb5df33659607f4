"""``retries``: reading the ledger, and saying a word to the service."""

import argparse
import asyncio
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import quote

from exporter.app import Memory
from exporter.cli import UsageError
from exporter.cli import ledger as commands
from exporter.cli.ledger import dead_letter
from exporter.clock import SystemClock
from exporter.config import ConfigError
from exporter.config.outline import Outline, outline, without_config
from exporter.model.operations import OperationAction
from exporter.retries.operations import Selection


def list(options: argparse.Namespace) -> int:
    return asyncio.run(commands.list_retries(_outline(options), say=print, limit=options.limit, as_json=options.json))


def show(options: argparse.Namespace) -> int:
    return asyncio.run(commands.show(outline(options.config), options.id, say=print, as_json=options.json))


def audit(options: argparse.Namespace) -> int:
    from exporter.cli import audit

    since = float("-inf") if options.since is None else audit.since(options.since, SystemClock().now())
    does = audit.verify if options.verify else audit.audit
    return asyncio.run(does(_outline(options), since=since, say=print, as_json=options.json))


def pause(options: argparse.Namespace) -> int:
    source, seconds, why = options.source, options.seconds, options.why
    body = {"source": source, "for": None if seconds is None else f"{seconds}s", "why": why or None}
    return _tell(
        options,
        "/api/v1/retries/pause",
        body,
        lambda m, who: m.control.pause(source, seconds=seconds, who=who, why=why),
    )


def resume(options: argparse.Namespace) -> int:
    source = options.source
    return _tell(
        options, "/api/v1/retries/resume", {"source": source}, lambda m, who: m.control.resume(source, who=who)
    )


def approve(options: argparse.Namespace) -> int:
    if bool(options.ids) == bool(options.policy):
        raise UsageError("name what to approve: SOURCE/ID …, or --policy NAME")
    body = {"policy": options.policy} if options.policy else {"ids": options.ids}
    selection = Selection(ids=[dead_letter(text) for text in options.ids], policy=options.policy)

    async def here(memory: Memory, who: str) -> dict[str, Any]:
        return await memory.operations.begin(OperationAction.APPROVE, selection, who=who, at_once=True)

    return _tell(options, "/api/v1/retries/approve", body, here, by_rules=True)


def hold(options: argparse.Namespace) -> int:
    seconds = options.seconds
    body = {"for": None if seconds is None else f"{seconds}s"}
    return _one(options, OperationAction.HOLD, body, seconds=seconds)


def quarantine(options: argparse.Namespace) -> int:
    return _one(options, OperationAction.QUARANTINE, {})


def release(options: argparse.Namespace) -> int:
    return _one(options, OperationAction.RELEASE, {"sent": not options.not_sent}, sent=not options.not_sent)


def _one(options: argparse.Namespace, action: OperationAction, body: dict[str, Any], **more: Any) -> int:
    key = dead_letter(options.id)

    async def here(memory: Memory, who: str) -> dict[str, Any]:
        return await memory.operations.begin(action, Selection(ids=[key]), who=who, at_once=True, **more)

    return _tell(options, _path(key, action), body, here)


def _tell(
    options: argparse.Namespace,
    path: str,
    body: dict[str, Any],
    here: Callable[[Memory, str], Coroutine[Any, Any, dict[str, Any]]],
    *,
    by_rules: bool = False,
) -> int:
    return asyncio.run(commands.tell(_outline(options), path, body, here, say=print, by_rules=by_rules))


def _outline(options: argparse.Namespace) -> Outline:
    """What is read of the config, or ``--store`` in place of it."""
    given = getattr(options, "store", None)
    if given is not None:
        return without_config(given)
    try:
        return outline(options.config)
    except ConfigError as exc:
        if not hasattr(options, "store"):
            raise
        way_out = "this command does without the file: give --store URL, the database's own store.url"
        raise ConfigError([*exc.problems, way_out], file=exc.file) from None


def _path(key: tuple[str, str], action: str) -> str:
    return f"/api/v1/dead-letters/{quote(key[0], safe='')}/{quote(key[1], safe='')}/{action}"
