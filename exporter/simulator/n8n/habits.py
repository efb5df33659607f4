"""The generated world: workflows that somebody might have built, and the dice that say how their executions go."""

from collections.abc import Callable, Iterator
from random import Random

from exporter.simulator.n8n.model import ERRORS, SECOND, WAIT_MIN, Failure, Node, Plan, Workflow

NAMES = ("Order sync", "Invoice intake", "Lead routing", "Stock levels", "Support triage", "Nightly export")
#: Error class -> how often, of the errors of nodes.
WEIGHTS = {
    "network": 4,
    "timeout": 2,
    "throttled": 2,
    "platform": 3,
    "not_found": 1,
    "validation": 2,
    "auth": 1,
    "unknown": 2,
}
#: These come back when nothing is changed.
LASTING = ("not_found", "validation", "auth", "permission", "unknown")


def draw(workflow: Workflow, rng: Random, *, after: Failure | None = None) -> Plan:
    """What one execution does; ``after``: the failure that it is retried for."""
    seconds = workflow.seconds * (1 + workflow.spread * (2 * rng.random() - 1))
    works, pause = max(1, round(seconds * SECOND)), round(workflow.pause * SECOND)
    again = after is not None and after.error_class in LASTING and rng.random() < workflow.stubborn
    if not again and rng.random() >= workflow.failure_rate:
        return Plan(works=works, pause=pause, rest=works // 4 if pause else 5)
    kind = rng.choices(tuple(WEIGHTS), tuple(WEIGHTS.values()))[0]
    failure = after if after is not None and after.error_class in ERRORS else ERRORS[kind]
    fails_at = next((i for i, n in enumerate(workflow.nodes) if n.type == failure.node_type), len(workflow.nodes) - 1)
    middle = workflow.find("wait")
    paused = middle is not None and middle < fails_at
    return Plan(
        works=works,
        pause=pause if paused else 0,
        rest=works // 4 if paused else 0,
        failure=failure,
        fails_at=fails_at,
    )


class Generator:
    """Makes the workflows of a new world."""

    def __init__(self, *, stream: Callable[..., Random], now: int, project_id: str, troubles: float) -> None:
        self._stream = stream
        self._now = now
        self._project_id = project_id
        self._troubles = troubles

    def workflows(self, number: int, unsaved: int) -> Iterator[Workflow]:
        """The error handler comes on top, if there is anything to handle; every sixth calls a sub-workflow."""
        if not number:
            return
        handler = self._make("error-handler", "Report failures", (ERROR_TRIGGER, REPORT))
        yield handler
        for index in range(number):
            rng = self._stream("workflow", index)
            schedule = index % 2 == 0
            nodes: tuple[Node, ...] = (every(60) if schedule else hook(f"hook-{index}"), CODE, CALL)
            workflow = self._make(index, f"{NAMES[index % len(NAMES)]} {index + 1}", nodes)
            workflow.interval = rng.uniform(30, 600)
            workflow.seconds = rng.uniform(0.5, 40)
            workflow.failure_rate = self._troubles * rng.choice((0.01, 0.03, 0.08, 0.2))
            workflow.stubborn, workflow.retry_rate, workflow.spread = 0.9, 0.4, 0.5
            workflow.cancel_rate = self._troubles * rng.choice((0.0, 0.0, 0.02))
            workflow.settings["errorWorkflow"] = handler.id
            if index < unsaved:
                workflow.settings["saveDataSuccessExecution"] = "none"
            if index % 6 == 3:
                workflow.pause = rng.uniform(WAIT_MIN / SECOND, 300)
                workflow.nodes = (nodes[0], CODE, wait(workflow.pause), CALL)
            elif index % 6 == 4:
                workflow.settings["executionTimeout"] = 20
                workflow.seconds = 12.0 + 2.0 * self._troubles  # half as long again is too long
            elif index % 6 == 5:
                callee = self._make(f"{index}-sub", f"{workflow.name}: lines", (CALLED, CODE, CALL))
                callee.seconds, callee.failure_rate, callee.spread = 3.0, workflow.failure_rate, 0.5
                workflow.child, workflow.failure_rate = callee.id, 0.0
                workflow.nodes = (nodes[0], CODE, call_workflow(callee.id))
                yield callee
            yield workflow

    def _make(self, key: object, name: str, nodes: tuple[Node, ...]) -> Workflow:
        rng = self._stream("workflow", key, "ids")
        letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
        return Workflow(
            id="".join(rng.choices(letters, k=16)),
            name=name,
            nodes=nodes,
            settings={"executionOrder": "v1"},
            created=self._now,
            updated=self._now,
            rng=self._stream("workflow", key, "runs"),
            project_id=self._project_id,
            version_id=version_id(rng),
        )


def version_id(rng: Random) -> str:
    text = f"{rng.getrandbits(128):032x}"
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-{text[20:]}"


def hook(path: str) -> Node:
    return Node(
        name="Hook",
        type="n8n-nodes-base.webhook",
        version=2,
        parameters={"httpMethod": "POST", "path": path, "responseMode": "onReceived"},
        more={"webhookId": path},
    )


def every(seconds: int) -> Node:
    return Node(
        name="Every",
        type="n8n-nodes-base.scheduleTrigger",
        version=1.2,
        parameters={"rule": {"interval": [{"field": "seconds", "secondsInterval": seconds}]}},
    )


def wait(seconds: float) -> Node:
    return Node(
        name="Wait",
        type="n8n-nodes-base.wait",
        version=1.1,
        parameters={"amount": round(seconds), "unit": "seconds"},
        more={"webhookId": "wait"},
    )


def call_workflow(workflow_id: str) -> Node:
    return Node(
        name="Run sub",
        type="n8n-nodes-base.executeWorkflow",
        version=1.2,
        parameters={"workflowId": {"__rl": True, "mode": "id", "value": workflow_id}, "options": {}},
    )


CODE = Node(name="Prepare", type="n8n-nodes-base.code", version=2, parameters={"jsCode": "return $input.all();"})
CALL = Node(
    name="Call",
    type="n8n-nodes-base.httpRequest",
    version=4.2,
    parameters={"url": "https://api.example/orders?key=demo-token", "options": {"timeout": 3000}},
)
CALLED = Node(
    name="Called",
    type="n8n-nodes-base.executeWorkflowTrigger",
    version=1.1,
    parameters={"inputSource": "passthrough"},
)
ERROR_TRIGGER = Node(name="Error Trigger", type="n8n-nodes-base.errorTrigger")
REPORT = Node(
    name="Report",
    type="n8n-nodes-base.httpRequest",
    version=4.2,
    parameters={"method": "POST", "url": "https://exporter.example/webhooks/n8n"},
)
