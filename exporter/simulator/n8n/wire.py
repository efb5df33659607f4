"""How things look on the wire: rows of executions, their details and data, workflows, what the error workflow posts."""

from datetime import UTC, datetime, timedelta

from exporter.simulator.n8n.model import SECOND, WAIT_MIN, Execution, Failure, Json, Node, Visit, Workflow, visits

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Bytes that n8n's own bookkeeping takes of an execution's stored data, and each node of it.
DATA_BASE, DATA_NODE = 1200, 700
#: What runs were called with; none of it may ever be shown by whoever reads us.
PAYLOAD: Json = {"customer": "somebody@example.com", "token": "demo-token"}


def stamp(when: int | None) -> str | None:
    """Milliseconds -> ISO 8601 with three digits."""
    return (
        None if when is None else (EPOCH + timedelta(milliseconds=when)).isoformat(timespec="milliseconds")[:-6] + "Z"
    )


def _text(number: int | None) -> str | None:
    return None if number is None else str(number)


def row(execution: Execution) -> Json:
    return {
        "id": str(execution.id),
        "finished": execution.finished,
        "mode": execution.mode,
        "retryOf": _text(execution.retry_of),
        "retrySuccessId": _text(execution.retry_success),
        "status": execution.status,
        "startedAt": stamp(execution.started),
        "stoppedAt": stamp(execution.stopped),
        "workflowId": execution.workflow.id,
        "waitTill": stamp(execution.wait_till),
    }


def detail(execution: Execution) -> Json:
    """All of it but its data. There is no error text here."""
    shown, workflow = row(execution), execution.workflow
    key, context = None, {"traceparent": f"00-{execution.id:032x}-{execution.id:016x}-01"}
    if execution.planned_for is not None:
        key = f"{workflow.id}:{workflow.trigger.name}:{stamp(execution.planned_for)}"
    return {
        **{name: shown[name] for name in ("id", "finished", "mode", "retryOf", "retrySuccessId", "status")},
        "createdAt": stamp(execution.created),
        **{name: shown[name] for name in ("startedAt", "stoppedAt")},
        "deletedAt": None,
        **{name: shown[name] for name in ("workflowId", "waitTill")},
        "storedAt": "db",
        "tracingContext": context if execution.traced else None,
        "deduplicationKey": key,
        "jsonSizeBytes": size(execution),
        "binaryDataSizeBytes": 0,
        "workflowVersionId": None if execution.retry_of is not None else workflow.version_id,
        "usedPrivateCredentials": False,
    }


def size(execution: Execution) -> int:
    """Bytes of its stored data."""
    return DATA_BASE + DATA_NODE * len(execution.workflow.nodes) + execution.plan.payload


def with_data(execution: Execution, now: int, origin: Execution | None) -> Json:
    """``origin``: the execution this one retries; what it did before it failed is copied."""
    return {
        **detail(execution),
        "data": data(execution, now, origin),
        "customData": {},
        "workflowData": as_run(execution.workflow),
    }


def as_run(workflow: Workflow) -> Json:
    return {
        "id": workflow.id,
        "name": workflow.name,
        "nodes": [node(n) for n in workflow.nodes],
        "connections": connections(workflow),
        "settings": workflow.settings,
        "nodeGroups": [],
    }


def data(execution: Execution, now: int, origin: Execution | None) -> Json:
    result: Json = {"runData": {}}
    ran = visits(execution, execution.stopped if execution.over and execution.stopped is not None else now)
    if (execution.over or execution.status == "waiting") and not execution.forgotten:
        copied = visits(origin, origin.stopped or now) if origin is not None else []
        for visit in (*(v for v in copied if v.index < execution.resumes_at), *ran):
            name = execution.workflow.nodes[visit.index].name
            result["runData"][name] = [_node_run(execution, visit, is_last=visit is ran[-1])]
        if ran:
            result["lastNodeExecuted"] = execution.workflow.nodes[ran[-1].index].name
    if execution.failure is not None:
        result["error"] = error(execution.failure, execution)
    shown: Json = {
        "version": 1,
        "startData": {},
        "resultData": result,
        "executionData": {"contextData": {}, "nodeExecutionStack": [], "metadata": {}, "waitingExecution": {}},
    }
    if execution.parent is not None:
        shown["parentExecution"] = {
            "executionId": str(execution.parent.id),
            "workflowId": execution.parent.workflow.id,
        }
    return shown


def _node_run(execution: Execution, visit: Visit, *, is_last: bool) -> Json:
    failed = is_last and execution.failure is not None and execution.failure.error_class is not None
    item: Json = {
        "json": {**PAYLOAD, "filler": "x" * (execution.plan.payload if is_last else 0)},
        "pairedItem": {"item": 0},
    }
    if execution.reconstructed:
        shown: Json = {
            "startTime": visit.began // SECOND,  # whole seconds, as n8n's recovery writes them
            "executionIndex": 0,
            "executionTime": 0,
            "source": [None],
            "executionStatus": "crashed" if failed else "success",
        }
        if failed:
            text = "Execution stopped at this node"
            cause = {"name": "Error", "message": "Node crashed, possible out-of-memory issue"}
            shown["error"] = {"message": text, "name": "NodeCrashedError", "context": {}, "cause": cause}
        else:
            shown["data"] = {"main": [[{"json": {"isArtificialRecoveredEventItem": True}}]]}
        return shown
    shown = {
        "startTime": visit.began,
        "executionIndex": visit.index,
        "source": [] if visit.index == 0 else [{"previousNode": execution.workflow.nodes[visit.index - 1].name}],
        "hints": [],
        "executionTime": visit.ended - visit.began,
        "executionStatus": _node_status(execution, visit, failed=failed),
    }
    if failed and execution.failure is not None:
        shown["error"] = error(execution.failure, execution)
    else:
        shown["data"] = {"main": [[item]]}
    if (
        not failed
        and execution.child is not None
        and execution.workflow.nodes[visit.index].type.endswith(".executeWorkflow")
    ):
        callee = execution.child
        shown["metadata"] = {"subExecution": {"executionId": str(callee.id), "workflowId": callee.workflow.id}}
    return shown


def _node_status(execution: Execution, visit: Visit, *, failed: bool) -> str:
    """A Wait node that was never left says so, also of an execution that was stopped meanwhile."""
    waits = execution.plan.pause >= WAIT_MIN and execution.resumed is None
    if waits and execution.workflow.nodes[visit.index].type.endswith(".wait"):
        return "waiting"
    return "error" if failed else "success"


def error(failure: Failure, execution: Execution) -> Json:
    """An error as n8n keeps it, with the request and the stack that nobody should pass on."""
    shown: Json = {"message": failure.message, "timestamp": execution.stopped, "context": {}}
    if failure.name is not None:
        shown["name"] = failure.name
    if failure.name == "WorkflowCrashedError":
        return shown
    shown |= {"level": "warning", "shouldReport": True, "tags": {}, "functionality": "regular"}
    if failure.description is not None:
        shown["description"] = failure.description
    if failure.names_node:
        shown["node"] = node(execution.workflow.nodes[execution.last])
        shown["messages"] = []
    if failure.made_of is not None and execution.child is not None:  # of a caller, but its node is not the caller's
        shown["errorResponse"] = error(failure.made_of, execution.child)
        shown["node"] = shown["errorResponse"]["node"]
    if failure.error_class is None:
        reason = "timeout" if failure.name == "TimeoutExecutionCancelledError" else "manual"
        shown |= {"reason": reason, "extra": {"executionId": str(execution.id)}}
    if failure.http_code is not None:
        shown["httpCode"] = failure.http_code
        shown["messages"] = [failure.description or failure.message]
        request = {"method": "GET", "uri": "https://api.example/orders?key=demo-token", "headers": {"accept": "*/*"}}
        shown["context"] = {"itemIndex": 0, "request": request}
    shown["stack"] = f"{failure.name}: {failure.message}\n    at /opt/n8n/packages/core/index.js:1:1"
    return shown


def report(execution: Execution, now: int) -> Json:
    """The event that the error workflow of this project's documents posts; it knows no start and no end."""
    failure = execution.failure
    cancelled = failure is not None and "Cancelled" in (failure.name or "")
    error = {} if failure is None else {"message": _with_code(failure)}
    if failure is not None and failure.name is not None:
        error["type"] = failure.name
    return {
        "event": "run.finished",
        "workflow_id": execution.workflow.id,
        "run_id": str(execution.id),
        "result": "cancelled" if cancelled else "failure",
        "ended_at": stamp(now),
        "error": error,
    }


def _with_code(failure: Failure) -> str:
    return failure.message if failure.http_code is None else f"[{failure.http_code}] {failure.message}"


def node(shown: Node) -> Json:
    return {
        "id": shown.name,
        "name": shown.name,
        "type": shown.type,
        "typeVersion": shown.version,
        "position": [0, 0],
        "parameters": dict(shown.parameters),
        **shown.more,
    }


def connections(workflow: Workflow) -> Json:
    return {
        a.name: {"main": [[{"node": b.name, "type": "main", "index": 0}]]}
        for a, b in zip(workflow.nodes, workflow.nodes[1:], strict=False)
    }


def workflow(shown: Workflow, *, pinned: bool = True) -> Json:
    """A workflow as it is listed: its nodes twice, since the published version repeats them."""
    nodes, links = [node(n) for n in shown.nodes], connections(shown)
    created, updated = stamp(shown.created), stamp(shown.updated)
    published = {
        "versionId": shown.version_id,
        "workflowId": shown.id,
        "nodes": nodes,
        "connections": links,
        "nodeGroups": [],
        "authors": "Demo Owner",
        "name": None,
        "description": None,
        "autosaved": False,
        "createdAt": created,
        "updatedAt": updated,
    }
    share = {"role": "workflow:owner", "workflowId": shown.id, "projectId": shown.project_id}
    return {
        "id": shown.id,
        "name": shown.name,
        "active": shown.active,
        "activeVersionId": shown.version_id if shown.active else None,
        "createdAt": created,
        "updatedAt": updated,
        "isArchived": shown.archived,
        "versionId": shown.version_id,
        "triggerCount": 1 if shown.active and shown.mode in ("webhook", "trigger") else 0,
        "nodes": nodes,
        "connections": links,
        "nodeGroups": [],
        "settings": shown.settings,
        "staticData": None,
        **({"pinData": None} if pinned else {}),
        "meta": None,
        "tags": [{"id": tag, "name": tag, "createdAt": created, "updatedAt": created} for tag in shown.tags],
        "shared": [{**share, "createdAt": created, "updatedAt": updated}],
        "activeVersion": published if shown.active else None,
    }


def summary(execution: Execution) -> Json:
    """What the answer to a stop says; of one that never began, the start is the epoch."""
    return {
        "mode": execution.mode,
        "startedAt": stamp(execution.started or 0),
        "stoppedAt": stamp(execution.stopped),
        "finished": execution.finished,
        "status": execution.status,
    }


def retried(execution: Execution, now: int, origin: Execution | None) -> Json:
    """The answer to a retry, with all its data. Its start is a few milliseconds late."""
    shown: Json = {
        "id": str(execution.id),
        "mode": execution.mode,
        "startedAt": stamp((execution.started or now) + 7),
        "workflowId": execution.workflow.id,
        "finished": execution.finished,
        "retryOf": _text(execution.retry_of),
        "status": execution.status,
        "data": data(execution, now, origin),
        "workflowData": as_run(execution.workflow),
        "customData": {},
        "storedAt": "db",
    }
    if execution.wait_till is not None:
        shown["waitTill"] = stamp(execution.wait_till)
    return shown
