"""What repairs of Make read: how two blueprints differ, and who switched a scenario off. Pure.

A blueprint may hold customers' data, user names and passwords. What is told of a difference is the place where it is,
made of numbers of modules and names of settings; what is remembered of a blueprint is a digest.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from exporter.model import times
from exporter.model.redact import redact
from exporter.platforms.make.mapping import milliseconds, seconds, unwrapped
from exporter.platforms.make.mapping.errors import NAME_CHARS_MAX
from exporter.platforms.make.mapping.workflows import MODULES_MAX

CHANGES_MAX = 40
#: Settings of a module lie no deeper than this; what differs below is told as one.
DEPTH_MAX = 6
_SETTING = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ -]{0,39}")
#: A setting whose name may be somebody's data.
NAMELESS = "…"
_ABSENT = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """One switching on or off of a scenario, by its timeline."""

    at: float
    on: bool
    by_hand: bool
    reason: str | None = None


def switched(rows: Sequence[object], *, latest: float = times.MOMENT_MAX) -> Switch | None:
    """The newest of them, by the rows of a scenario's log. What Make does has no author (see ``workflows.notice``)."""
    found = [switch for row in rows if (switch := _switch(row, latest)) is not None]
    return max(found, key=lambda switch: (switch.at, not switch.on), default=None)


def _switch(row: object, latest: float) -> Switch | None:
    fields = row if isinstance(row, Mapping) else {}
    kind, at = fields.get("type"), seconds(milliseconds(fields.get("timestamp")))
    if any(fields.get(key) is not None for key in ("status", "duration", "eventType")) or not isinstance(kind, str):
        return None
    off = "stop" in kind or "deactivat" in kind
    if at is None or not times.is_plausible(at, latest) or not (off or kind == "start"):
        return None
    found = fields.get("detail")
    detail: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    author = fields.get("authorId") is not None or fields.get("authorName") is not None or bool(detail.get("author"))
    reason = detail.get("reason")
    return Switch(at=at, on=not off, by_hand=author, reason=redact(reason) if isinstance(reason, str) else None)


# Blueprints


def blueprint(data: object) -> Mapping[str, Any] | None:
    """The blueprint in an answer, of a scenario or frozen in a dead letter; None where there is none to work with."""
    found = unwrapped(data).get("blueprint")
    if not isinstance(found, Mapping) or not isinstance(found.get("flow"), list):
        return None
    try:
        digest(found)
    except (TypeError, RecursionError):  # nested without end
        return None
    return found


def digest(found: Mapping[str, Any]) -> str:
    """What two blueprints that run alike have in common. Where modules are drawn and what they are called is no part
    of it.
    """
    essence = {"flow": _bare_flow(found.get("flow")), "settings": _settings(found)}
    return hashlib.sha256(orjson.dumps(essence, option=orjson.OPT_SORT_KEYS)).hexdigest()


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Where the second differs from the first, one line a place."""
    old, new = _modules(before.get("flow")), _modules(after.get("flow"))
    lines: dict[str, None] = {}
    for module_id in dict.fromkeys((*old, *new)):
        if module_id not in new:
            lines[f"{_called(old[module_id])}: removed"] = None
        elif module_id not in old:
            lines[f"{_called(new[module_id])}: added"] = None
        elif old[module_id].get("module") != new[module_id].get("module"):
            lines[f"{_called(new[module_id])}: was {_name(old[module_id])}"] = None
        else:
            for place in _places(_bare(old[module_id]), _bare(new[module_id]), ""):
                lines[f"{_called(new[module_id])}: {place}"] = None
    both = old.keys() & new.keys()
    if _order(_bare_flow(before.get("flow")), both) != _order(_bare_flow(after.get("flow")), both):
        lines["order or routes of the modules"] = None
    for place in _places(_settings(before), _settings(after), ""):
        lines[f"scenario: {place}"] = None
    told = list(lines)
    if len(told) > CHANGES_MAX:
        return [*told[:CHANGES_MAX], f"and {len(told) - CHANGES_MAX} more"]
    return told


def misfit(bundle: object, before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """Why an execution that stopped in the first blueprint cannot go on in the second; None if it can.

    ``bundle`` is what it has kept: the outputs of the modules it passed, and the error of the one where it stopped. Of
    these the numbers of the modules are read.
    """
    held = unwrapped(bundle)
    stopped = [key for key, value in held.items() if isinstance(value, Mapping) and "error" in value]
    old, new = _modules(before.get("flow")), _modules(after.get("flow"))
    if len(stopped) != 1:
        return "Make does not say at which module it stopped"
    for module_id in (*stopped, *(key for key in held if key not in stopped)):
        if module_id not in old:
            continue
        called = _called(old[module_id])
        what = f"{called}, where it stopped," if module_id in stopped else f"{called}, whose output it uses,"
        if module_id not in new:
            return f"{what} is no longer in the scenario"
        if old[module_id].get("module") != new[module_id].get("module"):
            return f"{what} is another module today"
    return None if stopped[0] in old else "the module at which it stopped is not in its blueprint"


def _settings(found: Mapping[str, Any]) -> Mapping[str, Any]:
    metadata = found.get("metadata")
    settings = metadata.get("scenario") if isinstance(metadata, Mapping) else None
    return settings if isinstance(settings, Mapping) else {}


def _bare(module: Mapping[str, Any]) -> dict[str, Any]:
    """The module without other modules, and without how it is drawn."""
    return {key: value for key, value in module.items() if key not in ("id", "routes", "onerror", "metadata")}


def _bare_flow(flow: object) -> list[Any]:
    """A flow without how it is drawn."""
    found = []
    for module in flow if isinstance(flow, list) else []:
        if isinstance(module, Mapping):
            routes = module.get("routes")
            ways = [r.get("flow") for r in routes if isinstance(r, Mapping)] if isinstance(routes, list) else []
            found.append(
                [module.get("id"), _bare(module), [_bare_flow(way) for way in ways], _bare_flow(module.get("onerror"))]
            )
    return found


def _modules(flow: object) -> dict[str, Mapping[str, Any]]:
    """The modules of a flow, of its routes and of its error handlers, by id, in their order."""
    found: dict[str, Mapping[str, Any]] = {}
    waiting = [flow]
    while waiting and len(found) < MODULES_MAX:
        part, below = waiting.pop(0), list[object]()
        for module in part if isinstance(part, list) else []:
            if not isinstance(module, Mapping) or not isinstance(module.get("id"), int):
                continue
            found[str(module["id"])] = module
            routes = module.get("routes")
            below += [r.get("flow") for r in routes if isinstance(r, Mapping)] if isinstance(routes, list) else []
            below.append(module.get("onerror"))
        waiting += below
    return found


def _order(tree: Sequence[Any], ids: set[str]) -> list[str]:
    """In which order and on which routes these modules are, of a flow that ``_bare_flow`` made."""
    found: list[str] = []
    for module_id, _, ways, handlers in tree:
        found += [str(module_id)] if str(module_id) in ids else []
        for mark, part in (*(("route", way) for way in ways), ("handler", handlers)):
            inner = _order(part, ids)
            found += [mark, *inner, "end"] if inner else []
    return found


def _places(before: Any, after: Any, place: str, depth: int = 0) -> Iterator[str]:
    """The names of the settings that differ."""
    if before == after:
        return
    deeper = depth < DEPTH_MAX
    if deeper and isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in dict.fromkeys((*before, *after)):
            name = key if _SETTING.fullmatch(key) and redact(key) == key else NAMELESS
            below = f"{place}.{name}" if place else name
            yield from _places(before.get(key, _ABSENT), after.get(key, _ABSENT), below, depth + 1)
    elif deeper and isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for one, other in zip(before, after, strict=True):
            yield from _places(one, other, f"{place}[]", depth + 1)
    else:
        yield place


def _called(module: Mapping[str, Any]) -> str:
    return f"module {module['id']} {_name(module)}"


def _name(module: Mapping[str, Any]) -> str:
    name = module.get("module")
    return redact(name, limit=NAME_CHARS_MAX) if isinstance(name, str) else "of no name"
