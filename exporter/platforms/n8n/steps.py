"""The nodes that an execution ran, as steps. Pure."""

import math
import re
from collections.abc import Mapping

from exporter.model import Result, Run, Step

#: Below it, a time of a step is in seconds: how n8n writes those it makes up after a crash.
SECONDS_BELOW = 1e11
#: Steps kept of one run, and characters of a node's name.
STEPS_MAX = 100
STEP_CHARS_MAX = 80
_NODE_TYPE = re.compile(r"[@\w./-]{1,120}")


def read_steps(data: object, definition: object, run: Run) -> tuple[Step, ...]:
    """The nodes that this run executed; those it copied from the run it retries are older than it."""
    if not isinstance(data, Mapping):
        return ()
    # What n8n makes up after a crash is in whole seconds.
    since = 0.0 if run.started_at is None else math.floor(run.started_at)
    types = _node_types(definition)
    found: dict[str, Step] = {}
    for name, executions in data.items():
        for index, execution in enumerate(executions if isinstance(executions, list) else ()):
            began = _epoch(execution.get("startTime")) if isinstance(execution, Mapping) else None
            if began is None or began < since or len(found) >= STEPS_MAX:
                continue
            step_id = str(name)[:STEP_CHARS_MAX] + (f":{index}" if index else "")
            result = _step_result(execution.get("executionStatus"))
            seconds = (quantity(execution.get("executionTime")) or 0.0) / 1000.0
            ended = None if result is None else began + seconds
            found[step_id] = Step(
                id=step_id, type=types.get(name, "node"), started_at=began, ended_at=ended, result=result
            )
    return tuple(found[key] for key in sorted(found))


def _node_types(definition: object) -> dict[str, str]:
    """The type of each node, by its name."""
    nodes = definition.get("nodes") if isinstance(definition, Mapping) else None
    found = dict[str, str]()
    for node in nodes if isinstance(nodes, list) else ():
        name, kind = (node.get("name"), node.get("type")) if isinstance(node, Mapping) else (None, None)
        if isinstance(name, str) and isinstance(kind, str) and _NODE_TYPE.fullmatch(kind):
            found[name] = kind
    return found


def _step_result(status: object) -> Result | None:
    match status:
        case "success":
            return Result.SUCCESS
        case "error" | "crashed":
            return Result.FAILURE
        case "canceled":
            return Result.CANCELLED
    return None


def _epoch(value: object) -> float | None:
    number = quantity(value)
    if number is None:
        return None
    return number if number < SECONDS_BELOW else number / 1000.0


def quantity(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        return None
    return float(value)
