"""How the simulated Etlworks shows what it has: flows, executions, schedules and the health of the node, as JSON
values.

Field names follow the Etlworks API documentation, "Get flow status API", and the support articles on flows, schedules
and health. Where those leave something open, the choice made here is the plainer one: fields "only available if flow
has been already executed" are left out before that, and the elements of ``metrics`` are never shown because their
shape is not published.
"""

from exporter.simulator.etlworks.world import Run, Workflow

#: Error class -> the first line of the exception, and the statement that failed, if it was one.
EXCEPTIONS: dict[str, tuple[str, str | None]] = {
    "network": ("java.net.ConnectException: Connection refused (Connection refused)", None),
    "timeout": ("java.net.SocketTimeoutException: Read timed out", None),
    "throttled": ("java.io.IOException: Server returned HTTP response code: 429, Too Many Requests", None),
    "platform": ("java.io.IOException: Server returned HTTP response code: 503, Service Unavailable", None),
    "conflict": (
        "java.sql.SQLTransactionRollbackException: Deadlock found when trying to get lock; try restarting transaction",
        "merge into orders o using staging s on (o.id = s.id)",
    ),
    "not_found": ("java.io.FileNotFoundException: /inbound/orders.csv (No such file or directory)", None),
    "validation": (
        "java.sql.SQLIntegrityConstraintViolationException: Column 'customer_id' cannot be null",
        "insert into orders (id, customer_id)\nvalues (?, ?)",
    ),
    "auth": ("java.sql.SQLInvalidAuthorizationSpecException: Access denied for user 'etl'@'10.0.0.5'", None),
    "permission": ("java.io.IOException: Server returned HTTP response code: 403, Forbidden", None),
    "quota": ("com.amazonaws.services.s3.model.AmazonS3Exception: Quota exceeded: storage limit reached", None),
    "killed": ("java.lang.OutOfMemoryError: Java heap space", None),
    "unknown": ("java.lang.IllegalStateException: unexpected state 7", None),
}
LARGE_TRACE_BYTES = 100_000
_FRAME = "\n\tat com.toolsverse.etl.core.engine.EtlProcessor.execute(EtlProcessor.java:{line})"
_TRIGGERS = {"schedule": "flow.execution.scheduler", "demand": "flow.execution.on.demand", "listener": None}

#: What ``missing_fields`` may leave out and ``null_numbers`` may null, per kind of record.
EXECUTION_OPTIONAL = (
    "parentAuditId", "retries", "flowName", "eventId", "eventName", "messageId", "tenantId", "triggerType", "startedBy",
    "duration", "code", "exception", "warnings", "metrics", "fileMetrics", "errorLocationInSql", "fileName", "records",
)  # fmt: skip
EXECUTION_NUMBERS = ("started", "ended", "records")
FLOW_OPTIONAL = (
    "description", "flowType", "properties", "transformations", "mappings", "connections", "nestedFlows", "tags",
)  # fmt: skip
SCHEDULE_OPTIONAL = (
    "tags", "description", "emailSuccess", "emailFailure", "emails", "retries", "delayBetweenRetries", "expectedTime",
    "debug", "logStep", "keepMessage", "keepEmptyAudit",
)  # fmt: skip
SCHEDULE_NUMBERS = ("retries", "delayBetweenRetries", "expectedTime")


def millis(moment: float) -> int:
    return round(moment * 1000)


def execution(run: Run, at: float, *, trace_bytes: int, with_tenant: bool) -> dict[str, object]:
    """The status document of one execution as it reads at the moment ``at``."""
    workflow = run.workflow
    scheduled = run.trigger == "schedule"
    status = run.status(at)
    document: dict[str, object] = {
        "auditId": run.id,
        "parentAuditId": run.parent_id,
        "retries": run.retries,
        "flowId": workflow.id,
        "flowName": workflow.name,
        "eventId": workflow.event_id if scheduled else None,
        "eventName": schedule_name(workflow) if scheduled else None,
        "messageId": run.message_id,
        "tenantId": workflow.tenant_id if with_tenant else None,
        "status": status,
        "triggerType": _TRIGGERS[run.trigger],
        "startedBy": run.started_by,
        "started": None if status == "queued" else millis(run.started_at),
        "fileName": None,
        "records": 1,
    }
    if status not in ("queued", "running"):
        ended_at = _ended_at(run, at)
        code = EXCEPTIONS[run.error_class][1] if run.error_class in EXCEPTIONS else None
        document |= {
            "ended": millis(ended_at),
            "duration": prose_duration(ended_at - run.started_at),
            "code": code,
            "exception": _exception(run, status, trace_bytes=trace_bytes),
            "warnings": "2 rows were rejected by the destination" if status == "warning" else None,
            "metrics": None,
            "fileMetrics": None,
            "errorLocationInSql": None if code is None else code.count("\n") + 1,
        }
    return document


def _ended_at(run: Run, at: float) -> float:
    """The stop while a run is only called canceled, the real end once it is down."""
    ended_at = at if run.ended_at is None else run.ended_at
    return run.down_at if run.down_at is not None and run.down_at <= at else ended_at


def _exception(run: Run, status: str, *, trace_bytes: int) -> str | None:
    """A stack trace, but also what the flow logged: a text here does not mean that the run failed."""
    if run.exception is not None:
        return run.exception
    if status == "error":
        interrupted = run.result == "cancelled"
        head = "java.lang.InterruptedException" if interrupted else EXCEPTIONS[run.error_class or "unknown"][0]
        return trace(head, size=LARGE_TRACE_BYTES if run.id % 20 == 0 else trace_bytes)
    if run.id % 7 == 0:
        return "INFO: loaded 120 rows\nWARN: retrying after java.net.SocketTimeoutException\nINFO: done"
    return None


def trace(head: str, *, size: int) -> str:
    """A stack trace of at least ``size`` characters that begins with ``head``."""
    frames = max(3, -(-(size - len(head)) // len(_FRAME.format(line=1000))))
    return head + "".join(_FRAME.format(line=1000 + i % 9000) for i in range(frames))


def prose_duration(seconds: float) -> str:
    """For people only: "42 seconds", "1 hour 5 minutes 3 seconds"."""
    whole = round(max(0.0, seconds))
    parts = ((whole // 3600, "hour"), (whole // 60 % 60, "minute"), (whole % 60, "second"))
    return " ".join(f"{n} {unit}" + ("" if n == 1 else "s") for n, unit in parts if n) or "0 seconds"


def flow(workflow: Workflow, *, definition: str) -> dict[str, object]:
    """A flow with its definition, which is what makes the listing heavy."""
    return {
        "id": workflow.id,
        "name": workflow.name,
        "description": "",
        "flowType": "stream" if workflow.streaming else "etl",
        "properties": {"definition": definition},
        "transformations": [],
        "mappings": [],
        "connections": [],
        "nestedFlows": [],
        "tags": list(workflow.tags),
    }


def schedule_name(workflow: Workflow) -> str:
    return f"{workflow.name} schedule"


def schedule(workflow: Workflow) -> dict[str, object]:
    return {
        "id": workflow.event_id,
        "name": schedule_name(workflow),
        "tags": "",
        "description": "",
        "flowId": workflow.id,
        "enabled": workflow.enabled,
        "schedule": _timing(workflow),
        "emailSuccess": False,
        "emailFailure": True,
        "emails": "ops@example.com etl@example.com",
        "retries": workflow.retries,
        "delayBetweenRetries": workflow.retry_minutes,
        "expectedTime": workflow.expected_minutes,
        "debug": False,
        "logStep": 0,
        "keepMessage": False,
        "keepEmptyAudit": True,
    }


def _timing(workflow: Workflow) -> str:
    """A cron line with seconds where one can say it, else an interval as text."""
    every, phase = workflow.every, workflow.phase
    if every is None:
        return "0 0 0 * * ?"
    if every % 60 or 1800 % every:
        return f"every {every} seconds"
    return f"{phase % 60} {phase // 60}/{every // 60} * * * ?"


def health(*, running: int) -> dict[str, object]:
    """The node's own document: numbers in bytes beside the same for people, and dots within keys."""
    gib = 1 << 30
    disk = {"status": "UP", "free": 42 * gib, "free.human": "42.0 GB", "total": 100 * gib, "total.human": "100.0 GB"}
    return {
        "status": "UP",
        "db": {"status": "UP", "version": "8.0.36", "schema.version": 84, "running.flows": running},
        "disk": disk,
        "dataDisk": dict(disk),
        "ram": {
            "status": "UP",
            "mem": 16 * gib,
            "mem.human": "16.0 GB",
            "mem.free": 6 * gib,
            "mem.free.human": "6.0 GB",
            "heap": 8 * gib,
            "heap.human": "8.0 GB",
            "heap.used": 3 * gib,
            "heap.used.human": "3.0 GB",
        },
        "cpu": {
            "status": "UP",
            "processors": 4,
            "systemload.average": 0.7,
            "threads": 120 + running,
            "threads.peak": 220,
            "threads.daemon": 90,
        },
        "redis": {
            "status": "UP",
            "version": "7.2.4",
            "db.size": 1200,
            "mem.used": gib // 64,
            "mem.used.rss": gib // 32,
        },
    }
