"""One story, told to a real n8n and to our simulator through the same API, and what both say of it.

Everything happens one after the other, so that even the ids of executions are the same on both. What is recorded are
whole rows, field by field, and what the reader takes from details; of times only whether they are there.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

Json = dict[str, Any]
TIMES = ("createdAt", "startedAt", "stoppedAt", "waitTill", "deletedAt")
#: What a row says, and the detail again.
ROW = ("id", "finished", "mode", "retryOf", "retrySuccessId", "status", "startedAt", "stoppedAt", "workflowId",
       "waitTill")  # fmt: skip
#: How long nothing may have happened before all is taken to be at rest (seconds): the error workflow starts late.
QUIET_SECONDS = 0.7
#: Longer than n8n keeps an execution in memory; it is put away, waiting.
LONG_WAIT, SHORT_WAIT, HELD = 66, 5, 15


class Stand(Protocol):
    """A server that the story is told to: n8n, or its stand-in."""

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]: ...

    async def call_without_key(self, method: str, path: str) -> tuple[int, Any]: ...

    async def passes(self, seconds: float) -> None:
        """Time goes by."""
        ...

    def url(self, service: str) -> str:
        """Of a service that nodes call: ``status/N`` answers N, ``mended`` answers 200 once somebody mended it."""
        ...

    @property
    def sink(self) -> str:
        """Where the error workflow posts to."""
        ...

    async def mend(self) -> None: ...

    async def wreck(self) -> None:
        """Nobody listens for ``mended`` any more."""
        ...

    def reports(self) -> list[Json]:
        """What the error workflow has posted since this was last asked."""
        ...

    async def set_up(self, **settings: Any) -> None:
        """Stop it, and start it with: ``concurrency``, ``save_success``, ``prune_max_count``."""
        ...

    async def kill(self) -> None: ...

    async def start(self) -> None:
        """After a kill, until it answers."""
        ...


# --------------------------------------------------------------------------------------------------------- workflows


def node(name: str, kind: str, version: float, parameters: Json | None = None, **more: Any) -> Json:
    return {"id": name, "name": name, "type": f"n8n-nodes-base.{kind}", "typeVersion": version, "position": [0, 0],
            "parameters": parameters or {}, **more}  # fmt: skip


def chain(name: str, *nodes: Json, **settings: Any) -> Json:
    links = {
        a["name"]: {"main": [[{"node": b["name"], "type": "main", "index": 0}]]} for a, b in itertools.pairwise(nodes)
    }
    return {"name": name, "nodes": list(nodes), "connections": links,
            "settings": {"executionOrder": "v1", **settings}}  # fmt: skip


def hook(path: str) -> Json:
    return node("Hook", "webhook", 2, {"httpMethod": "POST", "path": path, "responseMode": "onReceived"},
                webhookId=path)  # fmt: skip


def code(script: str) -> Json:
    return node("Code", "code", 2, {"jsCode": script})


def wait(seconds: int) -> Json:
    return node("Wait", "wait", 1.1, {"amount": seconds, "unit": "seconds"}, webhookId=f"wait-{seconds}")


NOTHING = node("Nothing", "noOp", 1)
FLAKY = code("if ($input.first().json.body?.fail) throw new Error('asked to fail'); return $input.all();")
CALL = node("Call", "httpRequest", 4.2, {"url": "={{ $json.body.url }}", "options": {"timeout": 3000}})


def error_handler(sink: str) -> Json:
    """Posts the event of the documents: it knows no start, and takes now for the end."""
    event = (
        "={{ JSON.stringify({event: 'run.finished', workflow_id: $json.workflow.id, run_id: $json.execution?.id,"
        " error: {type: $json.execution?.error?.name, message: ($json.execution?.error?.httpCode ?"
        " '[' + $json.execution.error.httpCode + '] ' : '') + $json.execution?.error?.message},"
        " ended_at: $now.toUTC().toISO(),"
        " result: ($json.execution?.error?.name ?? '').includes('Cancelled') ? 'cancelled' : 'failure'}) }}"
    )
    post = node("Report", "httpRequest", 4.2, {
        "method": "POST", "url": sink, "sendBody": True, "specifyBody": "json", "jsonBody": event,
        "options": {"timeout": 5000},
    })  # fmt: skip
    return chain("errors", node("Error Trigger", "errorTrigger", 1), post)


# ----------------------------------------------------------------------------------------------------------- record


class Story:
    """Tells it and writes down what is said."""

    def __init__(self, stand: Stand) -> None:
        self.stand = stand
        self.record: list[Json] = []
        self.ids: dict[str, str] = {}  # workflow name -> id
        self._names: dict[str, str] = {}
        self._rows: dict[str, Json] = {}

    async def build(self, workflow: Json, *, active: bool = True) -> str:
        status, made = await self.stand.call("POST", "/api/v1/workflows", workflow)
        assert status == 200, made
        self.ids[workflow["name"]], self._names[made["id"]] = made["id"], workflow["name"]
        if active:
            status, made = await self.stand.call("POST", f"/api/v1/workflows/{made['id']}/activate", {})
            assert status == 200, made
        return str(made["id"])

    async def fire(self, path: str, body: Json | None = None) -> None:
        """Call a workflow's webhook, which answers at once; it is registered a moment after its activation."""

        async def call() -> bool:
            status, answer = await self.stand.call("POST", f"/webhook/{path}", body or {})
            assert status in (200, 404), answer
            return status == 200

        await self.until(call)

    async def rows(self, **filters: str) -> list[Json]:
        query = "&".join(f"{name}={value}" for name, value in {"limit": "250", **filters}.items())
        status, answer = await self.stand.call("GET", f"/api/v1/executions?{query}")
        assert status == 200, answer
        found: list[Json] = answer["data"]
        return found

    async def until(self, probe: Callable[[], Awaitable[Any]]) -> Any:
        """What it answers first that is true; time goes by meanwhile."""
        while not (answer := await probe()):
            await self.stand.passes(0.1)
        return answer

    async def newest(self, workflow: str, **filters: str) -> str:
        """The id of its newest execution, once there is one that was not looked at before."""

        async def find() -> str | None:
            found = await self.rows(workflowId=self.ids[workflow], **filters)
            return next((row["id"] for row in found if row["id"] not in self._rows), None)

        return str(await self.until(find))

    async def quiet(self) -> None:
        """Until nothing runs or is queued, and nothing follows."""
        still = 0.0
        while still < QUIET_SECONDS:
            busy = await self.rows(status="running") + await self.rows(status="new")
            still = 0.0 if busy else still + QUIET_SECONDS / 2
            await self.stand.passes(QUIET_SECONDS / 2)

    async def look(self, step: str, *, details: bool = True, blur: Iterable[str] = (), settle: bool = True) -> None:
        """Record every row that is new, changed or gone since the last look, and what was reported."""
        if settle:
            await self.quiet()
        found = {row["id"]: row for row in (*await self.rows(), *await self.rows(status="running"))}
        entry: Json = {"step": step, "rows": []}
        for execution_id in sorted(found, key=int):
            row = found[execution_id]
            if self._rows.get(execution_id) != row:
                entry["rows"].append(self._row({**row, **dict.fromkeys(blur, "?")}))
                if details and row["status"] not in ("success", "new"):
                    entry.setdefault("details", []).append(await self._detail(execution_id))
        gone = sorted(set(self._rows) - set(found), key=int)
        if gone:
            entry["gone"] = gone
        self._rows = found
        reports = self.stand.reports()
        if reports:
            entry["reports"] = sorted((self._report(report) for report in reports), key=lambda r: int(r["run_id"]))
        self.record.append(entry)

    async def ask(self, step: str, method: str, path: str, body: Any = None) -> Any:
        """Record an answer."""
        status, answer = await self.stand.call(method, path, body)
        shown = answer
        if isinstance(answer, dict):
            shown = {key: self._plain(key, value) for key, value in answer.items()}
        self.record.append({"step": step, "asked": f"{method} {self._hide(path)}", "status": status, "answer": shown})
        return answer

    async def retry(self, step: str, execution_id: str) -> Any:
        return await self.ask(step, "POST", f"/api/v1/executions/{execution_id}/retry", {"loadWorkflow": False})

    def _row(self, row: Json) -> Json:
        return {key: self._plain(key, value) for key, value in row.items()}

    def _plain(self, key: str, value: Any) -> Any:
        """Times only as there or not, workflows by their names."""
        if key in TIMES and isinstance(value, str) and not value.startswith("1970"):
            return "time"
        if key == "workflowId":
            return self._names.get(value, value)
        return "there" if key in ("data", "workflowData", "jsonSizeBytes") and value else value

    def _hide(self, path: str) -> str:
        for workflow_id, name in self._names.items():
            path = path.replace(workflow_id, name)
        return path

    def _report(self, report: Json) -> Json:
        shown = {**report, "workflow_id": self._names[report["workflow_id"]]}
        return {key: "time" if key == "ended_at" else value for key, value in sorted(shown.items())}

    async def _detail(self, execution_id: str) -> Json:
        status, whole = await self.stand.call("GET", f"/api/v1/executions/{execution_id}?includeData=true")
        assert status == 200, whole
        data = whole.pop("data")
        result: Json = {}
        whole = {key: self._plain(key, value) for key, value in whole.items() if key == "id" or key not in ROW}
        whole["workflowVersionId"] = whole["workflowVersionId"] and "id"
        told = data["resultData"]
        error = told.get("error")
        if error is not None:
            result["error"] = {key: error[key] for key in ("name", "message", "description", "httpCode", "reason")
                               if error.get(key) is not None}  # fmt: skip
            if "errorResponse" in error:
                result["made of"] = {key: error["errorResponse"].get(key) for key in ("name", "message", "httpCode")}
            if "node" in error:
                result["node"] = [error["node"]["name"], error["node"]["type"]]
        result["last"] = told.get("lastNodeExecuted")
        result["ran"] = {name: self._visit(runs) for name, runs in told.get("runData", {}).items()}
        if "parentExecution" in data:
            parent = data["parentExecution"]
            result["parent"] = [parent["executionId"], self._names[parent["workflowId"]]]
        return {**whole, "told": result}

    def _visit(self, runs: list[Json]) -> Json:
        run = runs[-1]
        shown = {"times": len(runs), "status": run.get("executionStatus"), "error": run.get("error", {}).get("name")}
        shown["unit"] = "s" if run["startTime"] < 1e11 else "ms"
        sub = (run.get("metadata") or {}).get("subExecution")
        if sub is not None:
            shown["sub"] = [sub["executionId"], self._names[sub["workflowId"]]]
        return shown


# ------------------------------------------------------------------------------------------------------------- story


async def tell(stand: Stand) -> list[Json]:
    """All of it; what was said."""
    story = Story(stand)
    await _build(story)
    await _runs(story)
    await _failures(story)
    await _sub_workflows(story)
    await _slow_and_waiting(story)
    await _cancelled(story)
    await _unsaved(story)
    await _healed(story)
    await _refused(story)
    await _raced(story)
    await _queued(story)
    await _crashed(story)
    await _pruned(story)
    return story.record


async def _build(story: Story) -> None:
    stand = story.stand
    errors = await story.build(error_handler(stand.sink))
    told = {"errorWorkflow": errors}
    await story.build(chain("ok", hook("ok"), NOTHING, **told))
    stop = node("Stop", "stopAndError", 1, {"errorMessage": "stopped on purpose"})
    await story.build(chain("stop", hook("stop"), stop, **told))
    await story.build(chain("throw", hook("throw"), code("throw new TypeError('thrown on purpose');"), **told))
    await story.build(chain("flaky", hook("flaky"), FLAKY, NOTHING, **told))
    await story.build(chain("call", hook("call"), CALL, NOTHING, **told))
    await story.build(chain("slow", hook("slow"), wait(SHORT_WAIT), NOTHING, **told))
    await story.build(chain("held", hook("held"), wait(HELD), NOTHING, **told))
    await story.build(chain("wait", hook("wait"), wait(LONG_WAIT), NOTHING, **told))
    await story.build(chain("timeout", hook("timeout"), wait(30), NOTHING, executionTimeout=3, **told))
    called = node("Called", "executeWorkflowTrigger", 1.1, {"inputSource": "passthrough"})
    for callers, does in {"parent": FLAKY, "parent-call": CALL, "parent-stop": stop}.items():
        sub = await story.build(chain(callers.replace("parent", "sub"), called, does, **told))
        run = node("Run sub", "executeWorkflow", 1.2,
                   {"workflowId": {"__rl": True, "mode": "id", "value": sub}, "options": {}})  # fmt: skip
        await story.build(chain(callers, hook(callers), run, NOTHING, **told))
    none = {"saveDataSuccessExecution": "none"}
    await story.build(chain("unsaved", hook("unsaved"), CALL, **none, **told))
    await story.build(
        chain("nothing-saved", hook("nothing-saved"), FLAKY, saveDataErrorExecution="none", **none, **told)
    )
    status, answer = await stand.call("GET", "/api/v1/workflows?limit=250&excludePinnedData=true")
    assert status == 200, answer
    listed = []
    for row in sorted(answer["data"], key=lambda row: str(row["name"])):
        published = row["activeVersion"]
        listed.append({
            "keys": sorted(row), "name": row["name"], "active": row["active"], "isArchived": row["isArchived"],
            "tags": row["tags"], "nodes": [n["type"] for n in row["nodes"]],
            "settings": {k: "id" if k == "errorWorkflow" else v for k, v in sorted(row["settings"].items())},
            "shared": sorted(row["shared"][0]), "published": sorted(published) if published else None,
            "version": row["versionId"] == row["activeVersionId"],
        })  # fmt: skip
    story.record.append({"step": "workflows", "rows": listed})


async def _runs(story: Story) -> None:
    await story.fire("ok")
    await story.look("a success")
    await story.fire("flaky", {"fail": True})
    await story.quiet()
    await story.fire("flaky", {"fail": False})
    await story.look("one that fails now and then")


async def _failures(story: Story) -> None:
    for path in ("stop", "throw"):
        await story.fire(path)
        await story.look(f"a failure: {path}")
    for service in ("mended", *(f"status/{n}" for n in (400, 401, 403, 404, 408, 409, 422, 429, 500, 502, 503, 504))):
        await story.fire("call", {"url": story.stand.url(service)})
        await story.look(f"a failure: {service}")


async def _sub_workflows(story: Story) -> None:
    await story.fire("parent", {})
    await story.look("a sub-workflow")
    await story.fire("parent", {"fail": True})
    await story.look("a sub-workflow that fails, and its caller")
    for service in ("status/500", "status/404", "mended"):
        await story.fire("parent-call", {"url": story.stand.url(service)})
        await story.look(f"a sub-workflow whose call fails, and its caller: {service}")
    await story.fire("parent-stop", {})
    await story.look("a sub-workflow that stops, and its caller")


async def _slow_and_waiting(story: Story) -> None:
    stand = story.stand
    await story.fire("wait")
    waiting = await story.newest("wait", status="waiting")
    await story.look("waiting")
    await story.fire("slow")
    running = await story.newest("slow", status="running")
    await story.look("running", settle=False)
    hidden = [row["id"] for row in await story.rows()]
    story.record.append({"step": "running, not among all", "hidden": running not in hidden})
    await story.ask("nobody deletes what runs", "DELETE", f"/api/v1/executions/{running}")
    await story.retry("what runs is retried", running)
    await story.look("both have run")
    await story.retry("what waits is retried", waiting)
    await story.look("it has run, and waits nevertheless")
    await story.fire("wait")
    second = await story.newest("wait", status="waiting")
    await story.ask("what waits is stopped", "POST", f"/api/v1/executions/{second}/stop", {})
    await story.look("stopped while waiting")

    async def resumed() -> bool:
        status, row = await stand.call("GET", f"/api/v1/executions/{waiting}")
        return status == 200 and row["status"] == "success"

    await story.until(resumed)
    await story.look("resumed under its id")


async def _cancelled(story: Story) -> None:
    await story.fire("timeout")
    await story.look("timed out")
    await story.fire("slow")
    stopped = await story.newest("slow", status="running")
    await story.ask("what runs is stopped", "POST", f"/api/v1/executions/{stopped}/stop", {})
    await story.look("stopped")
    await story.ask("stopped again", "POST", f"/api/v1/executions/{stopped}/stop", {})
    answer = await story.retry("a cancelled one is retried", stopped)
    await story.look("finished, and an error")
    await story.retry("and no more", answer["id"])


async def _unsaved(story: Story) -> None:
    stand = story.stand
    await story.fire("unsaved", {"url": stand.url("status/200")})
    await story.look("a success that is not saved")
    await story.fire("unsaved", {"url": stand.url("mended")})
    failed = await story.newest("unsaved")
    await story.look("its failure is")
    await stand.mend()
    await story.retry("retried with success", failed)
    await story.look("which leaves no trace")
    await stand.wreck()
    await story.fire("nothing-saved", {"fail": True})
    await story.look("a failure that is not saved")
    await story.fire("ok")
    await story.look("gaps")


async def _healed(story: Story) -> None:
    stand = story.stand
    await story.fire("call", {"url": stand.url("mended")})
    root = await story.newest("call")
    await story.look("to be healed")
    first = await story.retry("retried in vain", root)
    await story.look("the retry failed")
    await stand.mend()
    await story.retry("the retry is retried", first["id"])
    await story.look("only that one is healed")
    await story.retry("the first one is retried", root)
    await story.look("now both are")
    again = await story.retry("and once more", root)
    await story.look("the last one counts")
    await story.retry("a success is not retried", again["id"])
    await stand.call("POST", f"/api/v1/workflows/{story.ids['call']}/deactivate", {})
    await story.retry("and retried all the same", root)
    await story.look("it ran")
    await stand.call("POST", f"/api/v1/workflows/{story.ids['call']}/activate", {})
    await stand.wreck()


async def _refused(story: Story) -> None:
    for path in (
        "executions/999999", "executions/abc", "executions?status=bogus", "executions?status=error&status=new",
        "executions?limit=-1", "executions?limit=x", "executions?includeData=1", "executions?cursor=abc",
        "executions?startedAfter=2026-01-01", "executions?startedAfter=1", "workflows?cursor=abc", "workflows/nope",
        "nothing", "projects", "tags",
    ):  # fmt: skip
        await story.ask(f"refused: {path}", "GET", f"/api/v1/{path}")
    await story.ask("refused: no JSON", "POST", "/api/v1/executions/999999/retry")
    await story.ask("refused", "POST", "/api/v1/executions/999999/retry", {})
    await story.ask("refused", "POST", "/api/v1/executions/999999/stop", {})
    await story.ask("refused", "POST", "/api/v1/executions/stop", {})
    await story.ask("refused", "PATCH", "/api/v1/executions")
    status, answer = await story.stand.call_without_key("GET", "/api/v1/executions")
    story.record.append({"step": "without a key", "status": status, "answer": answer})
    everything = [row["id"] for row in await story.rows()]
    ignored = [row["id"] for row in await story.rows(bogus="1")]
    story.record.append({"step": "an unknown filter", "everything": everything == ignored})
    pages: list[list[str]] = []
    cursor = ""
    while len(pages) < 3:
        status, page = await story.stand.call("GET", f"/api/v1/executions?limit=2{cursor}")
        pages.append([row["id"] for row in page["data"]])
        cursor = f"&cursor={page['nextCursor']}"
    _, wide = await story.stand.call("GET", f"/api/v1/executions?limit=9{cursor}")
    story.record.append({"step": "pages", "pages": pages, "the cursor's limit counts": len(wide["data"])})


async def _raced(story: Story) -> None:
    stand = story.stand
    await story.fire("call", {"url": stand.url("mended")})
    root = await story.newest("call")
    await story.look("to be raced for")
    await stand.mend()
    path = f"/api/v1/executions/{root}/retry"
    answers = await asyncio.gather(*(stand.call("POST", path, {}) for _ in range(2)))
    story.record.append({"step": "two at once", "answers": sorted([s, a["status"]] for s, a in answers)})
    await story.look("both ran", blur=("retrySuccessId",))
    await stand.wreck()


async def _queued(story: Story) -> None:
    stand = story.stand
    await stand.set_up(concurrency=2)
    held = []
    for count in range(1, 5):
        held.append(asyncio.create_task(story.fire("held")))
        wanted = "running" if count < 3 else "new"
        await story.until(lambda s=wanted, n=count if count < 3 else count - 2: _have(story, s, n))  # type: ignore[misc]
    await story.look("two run, two are queued", settle=False)
    first, second = sorted((row["id"] for row in await story.rows(status="new")), key=int)
    await story.retry("a queued one is not retried", first)
    await story.ask("but stopped", "POST", f"/api/v1/executions/{second}/stop", {})
    await story.retry("and not retried then either", second)
    await story.look("the other one ran when there was a place")
    for task in held:
        task.cancel()
    await asyncio.gather(*held, return_exceptions=True)


async def _have(story: Story, status: str, number: int) -> bool:
    return len(await story.rows(status=status)) >= number


async def _crashed(story: Story) -> None:
    stand = story.stand
    await stand.set_up(save_success=False)
    await story.fire("ok")
    await story.look("an instance that saves no successes")
    await stand.set_up()
    await story.fire("wait")
    waiting = await story.newest("wait", status="waiting")
    await story.look("waiting when it dies")
    await story.fire("slow")
    crashed = await story.newest("slow", status="running")
    await story.look("running when it dies", settle=False)
    await stand.passes(1)
    await stand.kill()
    await stand.start()

    async def told() -> bool:
        status, row = await stand.call("GET", f"/api/v1/executions/{crashed}")
        return status == 200 and row["status"] == "crashed"

    await story.until(told)
    await story.look("crashed, and the other one still waits")
    await story.retry("a crashed one is retried", crashed)
    await story.look("it ran from its start")

    async def resumed() -> bool:
        status, row = await stand.call("GET", f"/api/v1/executions/{waiting}")
        return status == 200 and row["status"] == "success"

    await story.until(resumed)
    await story.look("and the other one went on")
    for step in ("started again", "and once more"):
        await stand.set_up()
        await stand.passes(3)
        await story.look(step)


async def _pruned(story: Story) -> None:
    stand = story.stand
    await stand.set_up(prune_max_count=10)

    async def pruned() -> bool:
        return len(await story.rows()) <= 10

    await story.until(pruned)
    await story.look("pruned by count", details=False)
    kept = [row["id"] for row in await story.rows(workflowId=story.ids["slow"])]
    await story.ask("one is deleted", "DELETE", f"/api/v1/executions/{kept[0]}")
    await story.look("it is gone", details=False)
    await stand.call("POST", f"/api/v1/workflows/{story.ids['slow']}/deactivate", {})
    await stand.call("POST", f"/api/v1/workflows/{story.ids['slow']}/archive", {})

    async def deleted() -> bool:
        status, _ = await stand.call("DELETE", f"/api/v1/workflows/{story.ids['slow']}")
        return status in (200, 404)

    await story.until(deleted)
    await story.look("a workflow is deleted, with its executions", details=False)
