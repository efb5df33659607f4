"""What the nodes of a workflow do when nobody plans it: enough of n8n's own nodes to run the same scenario on both."""

import re
from collections.abc import Callable
from typing import Any

from exporter.simulator.n8n.model import CALLS, SECOND, Failure, Plan, Workflow

#: A URL -> what a call of it ends with, a key of ``CALLS``; None: it works.
Reach = Callable[[str], str | None]

UNITS = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86_400}
THROWS = re.compile(
    r"(?P<asks>if \(\$input\.first\(\)\.json\.body\?\.fail\) )?throw new (?P<type>\w+)\('(?P<text>[^']*)'\)"
)
#: How long a node takes (milliseconds); Code starts a process of its own.
TAKES = {"n8n-nodes-base.code": 60, "n8n-nodes-base.httpRequest": 40}


def interpret(workflow: Workflow, body: Any, *, reach: Reach, first: int = 0) -> Plan:
    """What an execution called with ``body`` is going to do from node ``first`` on."""
    works = pause = rest = 0
    called = False
    for index, node in enumerate(workflow.nodes):
        if index < first:
            continue
        kind, parameters = node.type.removeprefix("n8n-nodes-base."), node.parameters
        if kind == "wait":
            pause = round(float(parameters.get("amount", 1)) * UNITS[parameters.get("unit", "hours")] * SECOND)
        elif pause or called:
            rest += TAKES.get(node.type, 2)
        else:
            works += TAKES.get(node.type, 2)
        called = called or kind == "executeWorkflow"
        failure = _failure(kind, dict(parameters), body, reach)
        if failure is not None:
            return Plan(works=works, pause=pause, rest=rest, failure=failure, fails_at=index)
    return Plan(works=works, pause=pause, rest=rest)


def _failure(kind: str, parameters: dict[str, Any], body: Any, reach: Reach) -> Failure | None:
    given = body if isinstance(body, dict) else {}
    if kind == "stopAndError":
        return Failure(
            error_class="unknown",
            name="NodeOperationError",
            message=parameters.get("errorMessage", ""),
            node_type="n8n-nodes-base.stopAndError",
        )
    if kind == "code":
        throws = THROWS.search(parameters.get("jsCode", ""))
        if throws is not None and (not throws["asks"] or given.get("fail")):
            return Failure(
                error_class="unknown",
                name="WrappedExecutionError",
                message=f"{throws['text']} [line 1]",
                description=None if throws["type"] == "Error" else throws["type"],
                node_type="n8n-nodes-base.code",
            )
    if kind == "httpRequest":
        url = str(parameters.get("url", ""))
        if url == "={{ $json.body.url }}":
            url = str(given.get("url", ""))
        answer = reach(url)
        return None if answer is None else CALLS[answer]
    return None
