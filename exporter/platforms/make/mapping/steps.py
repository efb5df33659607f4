"""The events of an execution's modules: when each began, when it ended, and how. Pure.

Source: what a zone itself describes, GET /scenarios/{id}/logs/{executionId}/p, and the API documentation does not:
``{"status", "blueprint": {"modules": […]}, "events": [{"kind", "moduleId", "at", "status"}]}``. Neither the kinds nor
the form of a module are told. So a kind is read by its words, and what says neither a start nor an end is not read; a
module is read as blueprints write it, ``{"id", "module": "http:MakeRequest"}``.

| Make | here |
| --- | --- |
| module of a run | step: its id; its type is app and module |
| events of a module that runs several times | one step, from the first start to the last end, with the worst result |
| status 1, 2, 3 | success, warning, failure |
| any other status | what the kind says, else unknown |
| of a failed run: begun, not ended | ended with the run; the one begun last is the one that failed |

Never read: names people gave to modules, their parameters, bundles.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec.structs import replace

from exporter.model import FAILED, Result, Run, Step, times
from exporter.platform import BadItem
from exporter.platforms.make.mapping import as_object, milliseconds, plain_id, seconds, whole
from exporter.platforms.make.mapping.runs import RESULTS

#: Steps kept of one run: those that did not succeed first, then the earliest.
STEPS_MAX = 200
MODULES_MAX = 2000
#: The type of a step whose module the answer does not describe.
UNKNOWN_TYPE = "module"

_STARTS = frozenset({"start", "started", "begin", "began"})
_ENDS = {
    **dict.fromkeys(("end", "ended", "finish", "finished", "done", "complete", "completed"), None),
    **dict.fromkeys(("success", "succeeded"), Result.SUCCESS),
    "warning": Result.WARNING,
    **dict.fromkeys(("error", "failed", "failure"), Result.FAILURE),
}
_WORST = (Result.UNKNOWN, Result.SUCCESS, Result.WARNING, Result.FAILURE)
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
#: As blueprints name modules; the apps people make themselves have a # in their name.
_MODULE = re.compile(r"[A-Za-z0-9_.#@-]{1,60}:[A-Za-z0-9_.-]{1,60}")


def steps(data: object, run: Run, *, latest: float = times.MOMENT_MAX) -> tuple[Step, ...] | None:
    """The steps of a run that has ended; None if it is not over there yet. Raises ``BadItem`` without a list of events.

    What a single event does not tell in a usable way is left out.
    """
    fields = as_object(data, "the events of an execution")
    events = fields.get("events")
    if not isinstance(events, list):
        raise BadItem("the events of an execution are no list")
    if whole(fields.get("status")) == 0 or fields.get("status") == "RUNNING":
        return None
    types, found = dict(_modules(fields.get("blueprint"))), dict[str, Step]()
    for event in events:
        step = _step(event, types, latest)
        if step is not None:
            found[step.id] = _together(found[step.id], step) if step.id in found else step
    told = list(_stopped(found, run).values() if run.result in FAILED else found.values())
    told.sort(key=lambda step: (step.result is Result.SUCCESS, step.started_at or step.ended_at or 0.0, step.id))
    return tuple(sorted(told[:STEPS_MAX], key=lambda step: step.id))


def _step(event: object, types: Mapping[str, str], latest: float) -> Step | None:
    """What one event says of its module."""
    if not isinstance(event, Mapping):
        return None
    module_id, at, kind = plain_id(event.get("moduleId")), _moment(event.get("at")), event.get("kind")
    if module_id is None or at is None or not times.is_plausible(at, latest) or not isinstance(kind, str):
        return None
    words = [word.lower() for word in _WORD.findall(kind)]
    made = Step(id=module_id, type=types.get(module_id, UNKNOWN_TYPE))
    if any(word in _STARTS for word in words):
        return replace(made, started_at=at)
    ends = [word for word in words if word in _ENDS]
    if not ends:
        return None
    status = whole(event.get("status"))
    result = RESULTS.get(-1 if status is None else status) or next((_ENDS[w] for w in ends if _ENDS[w]), None)
    return replace(made, ended_at=at, result=result or Result.UNKNOWN)


def _together(a: Step, b: Step) -> Step:
    """Two claims about one module: its first start, its last end, its worst result."""
    starts = [moment for moment in (a.started_at, b.started_at) if moment is not None]
    ends = [moment for moment in (a.ended_at, b.ended_at) if moment is not None]
    results = [result for result in (a.result, b.result) if result is not None]
    return replace(
        a,
        started_at=min(starts, default=None),
        ended_at=max(ends, default=None),
        result=max(results, key=_WORST.index, default=None),
    )


def _stopped(found: Mapping[str, Step], run: Run) -> dict[str, Step]:
    """The steps of a failed run: those that never ended stopped with it."""
    unended = [step for step in found.values() if step.ended_at is None and step.started_at is not None]
    last = max(unended, key=lambda step: (step.started_at or 0.0, step.id), default=None)
    failed = any(step.result is Result.FAILURE for step in found.values())
    stopped = {
        step.id: replace(step, ended_at=run.ended_at, result=run.result if step is last and not failed else None)
        for step in unended
    }
    return {**found, **stopped}


def _modules(blueprint: object) -> Iterator[tuple[str, str]]:
    """Id and type of each module, those on routes and error routes included."""
    fields = blueprint if isinstance(blueprint, Mapping) else {}
    waiting: list[Any] = [fields.get("modules"), fields.get("flow")]
    seen = 0
    while waiting and seen < MODULES_MAX:
        flow = waiting.pop()
        for module in flow if isinstance(flow, list) else []:
            if not isinstance(module, Mapping):
                continue
            seen += 1
            module_id, kind = plain_id(module.get("id")), module.get("module")
            if module_id is not None and isinstance(kind, str) and _MODULE.fullmatch(kind):
                yield module_id, kind
            waiting.append(module.get("onerror"))
            routes = module.get("routes")
            waiting += [r.get("flow") for r in routes if isinstance(r, Mapping)] if isinstance(routes, list) else []


def _moment(value: object) -> float | None:
    """ISO 8601, as everywhere in this API; or milliseconds since the epoch, as some of its parameters are."""
    found = milliseconds(value)
    if found is None and isinstance(value, int) and not isinstance(value, bool) and 10**12 <= value < 10**13:
        found = value
    return seconds(found)
