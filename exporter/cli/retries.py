"""``retries``: what may be typed, as what is asked of the ledger and said to the service."""

import argparse
import asyncio
from collections.abc import Callable, Coroutine, Iterable
from contextlib import nullcontext
from typing import Any
from urllib.parse import quote

from exporter.cli import UsageError
from exporter.cli import audit as audits
from exporter.cli import ledger as commands
from exporter.cli import operations as commands_of_many
from exporter.cli.audit import since
from exporter.cli.ledger import dead_letter
from exporter.clock import SystemClock
from exporter.config import Config, ConfigError, load
from exporter.config.outline import Outline, outline, without_config
from exporter.memory import Memory
from exporter.model.operations import OperationAction
from exporter.retries.operations import Selection
from exporter.store.address import is_postgres


def list(options: argparse.Namespace) -> int:
    return asyncio.run(commands.list_retries(_outline(options), say=print, limit=options.limit, as_json=options.json))


def show(options: argparse.Namespace) -> int:
    return asyncio.run(commands.show(outline(options.config), options.id, say=print, as_json=options.json))


def audit(options: argparse.Namespace) -> int:
    after = float("-inf") if options.since is None else since(options.since, SystemClock().now())
    does = audits.verify if options.verify else audits.audit
    return asyncio.run(does(_outline(options), since=after, say=print, as_json=options.json))


def groups(options: argparse.Namespace) -> int:
    return asyncio.run(commands_of_many.groups(outline(options.config), say=print, as_json=options.json))


def operations(options: argparse.Namespace) -> int:
    outline, by_rules = _outline(options), options.store is None
    does = commands_of_many.operations(outline, options.id, say=print, by_rules=by_rules, as_json=options.json)
    return asyncio.run(does)


def attempt(options: argparse.Namespace) -> int:
    if not options.dry_run:
        raise UsageError(f"try only looks: add --dry-run; to have it retried: retries retry {options.id}")
    key = dead_letter(options.id)
    does = commands_of_many.tried(outline(options.config), options.config, key, say=print, as_json=options.json)
    return asyncio.run(does)


def pause(options: argparse.Namespace) -> int:
    source, seconds, why = options.source, options.seconds, options.why
    body = {"source": source, "for": _for(seconds), "why": why or None}
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


def operate(options: argparse.Namespace) -> int:
    """One operation: what ``options.action`` says, done to all that are meant."""
    action, selection = OperationAction(options.action), _selection(options)
    more: dict[str, Any] = {
        "why": options.why,
        "at_once": getattr(options, "now", False),
        "stop_after": getattr(options, "stop_after", None),
        "seconds": getattr(options, "seconds", None),
        "sent": not getattr(options, "not_sent", False),
        "dry_run": options.dry_run,
    }
    body = {
        "action": action.value,
        **selection.facts(),
        "why": options.why or None,
        "now": more["at_once"],
        "stop_after": more["stop_after"],
        "for": _for(more["seconds"]),
        "sent": more["sent"],
        "dry_run": options.dry_run,
    }

    config = _config(options) if action.is_repair else None

    async def here(memory: Memory, who: str) -> dict[str, Any]:
        able = commands_of_many.able_to_repair(memory) if config else nullcontext()
        async with able:
            return await memory.operations.begin(action, selection, who=who, **more)

    keeps = action in (OperationAction.HOLD, OperationAction.QUARANTINE) and selection.policy is None
    shown = commands_of_many.begun
    return _tell(options, "/api/v1/operations", body, here, by_rules=not keeps, show=shown, config=config)


def cancel(options: argparse.Namespace) -> int:
    path = f"/api/v1/operations/{quote(options.id, safe='')}/cancel"
    return _tell(options, path, {}, lambda memory, who: memory.operations.cancel(options.id, who=who))


def _selection(options: argparse.Namespace) -> Selection:
    """Which dead letters are meant. Raises ``UsageError``."""
    between, workflow = None, None
    if options.between is not None:
        now = SystemClock().now()
        between = (since(options.between[0], now, "--between"), since(options.between[1], now, "--between"))
        if between[1] < between[0]:
            raise UsageError("--between: the second time is before the first")
    if options.workflow is not None:
        workflow = dead_letter(options.workflow)
    selection = Selection(
        ids=[dead_letter(text) for text in options.ids],
        group=options.group,
        policy=options.policy,
        workflow=workflow,
        between=between,
    )
    filters = "--group G, --policy P, --workflow SOURCE/ID or --between FROM TO"
    if selection.is_empty:
        raise UsageError(f"name what to {options.action}: SOURCE/ID …, or {filters}")
    if selection.ids and any((selection.group, selection.policy, workflow, between)):
        raise UsageError("name dead letters or what they have in common, not both")
    return selection


def _for(seconds: float | None) -> str | None:
    return None if seconds is None else f"{seconds:f}s"


def _tell(
    options: argparse.Namespace,
    path: str,
    body: dict[str, Any],
    here: Callable[[Memory, str], Coroutine[Any, Any, dict[str, Any]]],
    *,
    by_rules: bool = False,
    show: Callable[[dict[str, Any]], Iterable[str]] | None = None,
    config: Config | None = None,
) -> int:
    return asyncio.run(
        commands.tell(
            _outline(options),
            path,
            body,
            here,
            say=print,
            by_rules=by_rules,
            show=show,
            as_json=options.json,
            config=config,
        )
    )


def _config(options: argparse.Namespace) -> Config | None:
    """The config with its secrets, where no service takes what is said: then this process asks the platform."""
    return load(options.config) if is_postgres(_outline(options).store_url) else None


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
