"""The service as people run it, against a real n8n: a process each, a store on a file, webhooks on, retries enforced.

What is true, n8n's own database says: its rows, and for what it does not save what this world has asked it to do. The
workflows call a partner who does as the test says for each piece of work, and counts how often it was done.
"""

import contextlib
import json
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from string import Template
from types import MappingProxyType
from typing import Any

from tests.n8n.processes import Exporter, Partner, exporting, partner, query
from tests.n8n.scenario import Json, chain, hook, node, wait
from tests.n8n.testbed import N8n, n8n
from tests.servers import eventually, free_port

DOCS = Path(__file__).parents[2] / "docs" / "n8n"
#: The made-up secret in the workflows of the docs.
SECRET = "0123456789abcdef0123456789abcdef"
SOURCE = "n8n"
RESULTS = {"success": "success", "error": "failure", "crashed": "failure", "canceled": "cancelled"}
#: Longer than n8n keeps an execution in memory.
LONG_WAIT = 66
CONFIG = """
server: {listen: "127.0.0.1:$port"}
store: {url: "sqlite:///$folder/exporter.db"}
sources:
  n8n:
    platform: n8n
    url: $url
    token: $key
    poll: {interval: 2s, budget_share: 1.0, requests_per_minute: 1200}
    webhook: {scheme: header, header: X-Webhook-Token, secret: $secret}
    grant: [stop]
retries:
  mode: enforce
  sources: {n8n: {pace: {rate: 100/1s, burst: 100, in_flight: 100}}}
  policies:
    - name: transient
      match: {error.class: [network, timeout, throttled, platform, killed]}
      action: retry
      retry: {retries: 5, backoff: {first: 1s, factor: 1, cap: 2s, jitter: 0.0}, give_up_after: 1d}
      verify: {deadline: 10m}
      gate: {ramp: [100], cool: {first: 1s, factor: 1, cap: 1s}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """A row of n8n's own table."""

    number: int
    workflow_id: str
    status: str
    mode: str
    retry_of: int | None


@dataclass(slots=True, kw_only=True)
class World:
    """Make one with ``world``."""

    server: N8n
    partner: Partner
    exporter: Exporter = field(init=False)
    ids: dict[str, str] = field(default_factory=dict)  # workflow name -> id
    unsaved: Counter[tuple[str, str]] = field(default_factory=Counter)  # (workflow name, result) -> runs asked for
    by_hand: set[int] = field(default_factory=set)  # retries that a person started
    n8n_kills: int = 0

    # What is done

    def configured(self, config: str) -> str:
        """A config for this n8n."""
        return Template(config).safe_substitute(url=self.server.url, key=self.server.key, secret=SECRET)

    async def build(self, workflow: Json) -> str:
        status, made = await self.server.call("POST", "/api/v1/workflows", workflow)
        assert status == 200, made
        status, answer = await self.server.call("POST", f"/api/v1/workflows/{made['id']}/activate", {})
        assert status == 200, answer
        self.ids[workflow["name"]] = made["id"]
        return str(made["id"])

    async def fire(self, path: str, key: str = "") -> None:
        """Have a workflow run, which does this piece of work if any."""

        async def fired() -> bool:
            body = {"url": f"{self.partner.url}/{key}"} if key else {}
            status, _ = await self.server.call("POST", f"/webhook/{path}", body, key=False)
            return status == 200

        await eventually(fired)

    async def retry(self, number: int) -> None:
        """As a person does it in n8n."""
        status, answer = await self.server.call("POST", f"/api/v1/executions/{number}/retry", {})
        assert status == 200, answer
        self.by_hand.add(int(answer["id"]))

    async def stale(self, workflow: str) -> int:
        """A row that says ``running`` and whose process is gone, as a recovery may leave it; its number."""
        origin = (await self.row(workflow, "success")).number
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.000")
        with contextlib.closing(sqlite3.connect(self._database, timeout=60.0)) as connection:
            run = connection.execute
            run("CREATE TEMP TABLE one AS SELECT * FROM execution_entity WHERE id = ?", (origin,))
            run("UPDATE one SET id = NULL, status = 'running', finished = 0, startedAt = ?, stoppedAt = NULL", (now,))
            number = run("INSERT INTO execution_entity SELECT * FROM one").lastrowid
            run("CREATE TEMP TABLE told AS SELECT * FROM execution_data WHERE executionId = ?", (origin,))
            run("UPDATE told SET executionId = ?", (number,))
            run("INSERT INTO execution_data SELECT * FROM told")
            connection.commit()
        assert number is not None
        return number

    async def kill_n8n(self) -> None:
        await self.server.kill()
        self.n8n_kills += 1

    async def start_n8n(self) -> None:
        await self.server.start(**self.server.settings)

    # What is true

    @property
    def _database(self) -> Path:
        return self.server.home / ".n8n" / "database.sqlite"

    async def is_now(self, number: int, status: str) -> None:
        """Wait until n8n says this of an execution."""

        async def so() -> bool:
            return any((row.number, row.status) == (number, status) for row in self.rows())

        await eventually(so)

    def rows(self) -> list[Execution]:
        """Every execution that n8n has, but for its error workflow at work."""
        sql = "SELECT id, workflowId, status, mode, retryOf FROM execution_entity WHERE deletedAt IS NULL ORDER BY id"
        found = query(self._database, sql)
        return [
            Execution(
                number=number,
                workflow_id=workflow_id,
                status=status,
                mode=mode,
                retry_of=None if retry_of is None else int(retry_of),
            )
            for number, workflow_id, status, mode, retry_of in found
            if mode != "error"
        ]

    async def row(self, workflow: str, status: str, *, retry_of: int | None = None) -> Execution:
        """Its newest execution in this status, of all or of those that retry another, once there is one."""

        async def there() -> Execution | None:
            found = [row for row in self.rows() if row.workflow_id == self.ids[workflow] and row.status == status]
            return next((row for row in reversed(found) if retry_of is None or row.retry_of == retry_of), None)

        found = await eventually(there)
        assert found is not None
        return found

    async def seen_running(self, number: int) -> None:
        """Wait until the exporter knows that an execution is under way."""

        async def so() -> bool:
            return (str(number),) in self.exporter.query("SELECT run_id FROM runs WHERE state = 'running'")

        await eventually(so)

    async def opened(self, number: int) -> None:
        """Wait until the exporter has this dead letter."""

        async def there() -> bool:
            return number in self._open_letters()

        await eventually(there)

    async def retry_is(self, root: int, state: str) -> None:
        """Wait until the exporter says this of a retry of a root."""

        async def so() -> bool:
            return any((each["root"], each["state"]) == (str(root), state) for each in self.exporter.retries())

        await eventually(so)

    async def retried(self, key: str) -> None:
        """Wait until a piece of work was done once more, and well."""

        async def done() -> bool:
            return self.partner.calls[key] == len(self.partner.plans[key]) and self.rows()[-1].status == "success"

        await eventually(done, every=0.02)

    def chains(self) -> dict[int, list[Execution]]:
        """Every execution that retries none, and what descends from it."""
        chains: dict[int, list[Execution]] = {}
        roots: dict[int, int] = {}
        for row in self.rows():
            root = row.number if row.retry_of is None else roots[row.retry_of]
            roots[row.number] = root
            chains.setdefault(root, []).append(row)
        return chains

    # Whether the exporter says so

    async def mismatches(self) -> list[str]:
        """What the exporter says otherwise than n8n's own rows; empty if nothing."""
        rows = self.rows()
        under_way = [f"{row.number} is {row.status}" for row in rows if row.status not in RESULTS]
        retries = self.exporter.retries()
        under_way += [f"retry {each['id']} is {each['state']}" for each in retries if each["outcome"] is None]
        if under_way:
            return under_way
        planned = {key: len(plan) for key, plan in self.partner.plans.items()}
        return [
            *_differences("runs", self._true_runs(rows), await self._counted_runs()),
            *_differences("open dead letters", self._true_letters(), self._open_letters()),
            *_differences("resolved", self._true_resolutions(), await self._resolved()),
            *_differences("retries by root", self._retries_of_n8n(), self._decided(retries)),
            *_differences("work done", planned, self.partner.calls),
        ]

    def _true_runs(self, rows: Iterable[Execution]) -> Mapping[Any, int]:
        timeout = self.ids.get("timeout")
        told = Counter(
            (row.workflow_id, "timeout" if row.workflow_id == timeout else RESULTS[row.status]) for row in rows
        )
        return told + Counter({(self.ids[name], result): runs for (name, result), runs in self.unsaved.items()})

    async def _counted_runs(self) -> Mapping[Any, float]:
        return await self.exporter.samples("automation_runs_total", "workflow_id", "result")

    def _true_letters(self) -> Mapping[Any, int]:
        """One for each piece of work that failed and was not done since."""
        return {
            root: 1
            for root, rows in self.chains().items()
            if _opens(rows[0]) and not any(row.status == "success" for row in rows)
        }

    def _open_letters(self) -> Mapping[Any, int]:
        rows = self.exporter.query("SELECT dead_letter_id FROM dead_letters WHERE resolved_at IS NULL")
        return {int(letter): 1 for (letter,) in rows}

    def _true_resolutions(self) -> Mapping[Any, int]:
        told = Counter[tuple[str, ...]]()
        for rows in self.chains().values():
            healed = next((row for row in rows if row.status == "success"), None)
            if _opens(rows[0]) and healed is not None:
                told["manual" if healed.number in self.by_hand else "retry",] += 1
        return told

    async def _resolved(self) -> Mapping[Any, float]:
        found = await self.exporter.samples("automation_dead_letters_resolved_total", "workflow_id", "by")
        told = Counter[tuple[str, ...]]()
        for (_, by), number in found.items():
            told[by,] += int(number)
        return told

    def _retries_of_n8n(self) -> Mapping[Any, int]:
        """How often each root was run again, but for what a person did."""
        told = {
            root: sum(1 for row in rows[1:] if row.number not in self.by_hand) for root, rows in self.chains().items()
        }
        return {root: number for root, number in told.items() if number}

    def _decided(self, retries: Iterable[Json]) -> Mapping[Any, int]:
        """How often the exporter says that it had each root run again."""
        return Counter(int(each["root"]) for each in retries if each["outcome"] not in ("not_sent", "rejected"))

    async def agreed(self) -> None:
        """Wait until the exporter says what n8n's rows say, and then whether it still does a few sweeps later."""
        found: list[str] = ["never compared"]

        async def same() -> bool:
            found[:] = await self.mismatches()
            return not found

        try:
            await eventually(same, seconds=300.0, every=0.5)
        except TimeoutError:
            raise AssertionError("\n".join(found)) from None
        sweeps = await self._sweeps()

        async def swept() -> bool:
            return await self._sweeps() >= sweeps + 3

        await eventually(swept)
        assert await self.mismatches() == []

    async def _sweeps(self) -> float:
        found = await self.exporter.samples("automation_exporter_sweep_duration_seconds_count", "stream")
        return found.get(("runs",), 0.0)

    def figures(self, scenario: str, mismatches: int) -> dict[str, Any]:
        """A row of the table in the end."""
        rows, retries = self.rows(), self.exporter.retries()
        return {
            "scenario": scenario,
            "runs": len(rows) + sum(self.unsaved.values()),
            "dead letters": sum(1 for chain_ in self.chains().values() if _opens(chain_[0])),
            "retries": sum(self._decided(retries).values()),
            "healed": sum(self._true_resolutions().values()),
            "kills of the exporter": self.exporter.kills,
            "kills of n8n": self.n8n_kills,
            "mismatches": mismatches,
        }


def _opens(root: Execution) -> bool:
    return root.status in ("error", "crashed") and root.mode not in ("manual", "integrated")


def _differences(what: str, true: Mapping[Any, float], told: Mapping[Any, float]) -> list[str]:
    return [
        f"{what}: {key}: {true.get(key, 0):g} by n8n, {told.get(key, 0):g} by the exporter"
        for key in sorted({*true, *told}, key=str)
        if true.get(key, 0) != told.get(key, 0)
    ]


# --------------------------------------------------------------------------------------------------------------- build


def imported(name: str, url: str) -> Json:
    """A workflow of the docs, whose address is changed as a person would."""
    text = (DOCS / f"{name}.json").read_text()
    definition: Json = json.loads(text.replace("https://exporter.example.com/webhooks/n8n", url))
    return definition


async def build(world: World, webhook: str) -> None:
    """The workflows: each is started by a call to its name."""
    errors = await world.build({**imported("error-workflow", webhook), "name": "errors"})
    told = {"errorWorkflow": errors}
    await world.build(chain("ok", hook("ok"), node("Nothing", "noOp", 1), **told))
    stop = node("Stop", "stopAndError", 1, {"errorMessage": "stopped on purpose"})
    await world.build(chain("stop", hook("stop"), stop, **told))
    call = node("Call", "httpRequest", 4.2, {"url": "={{ $json.body.url }}", "options": {"timeout": 600_000}})
    await world.build(chain("call", hook("call"), call, **told))
    called = node("Called", "executeWorkflowTrigger", 1.1, {"inputSource": "passthrough"})
    sub = await world.build(chain("sub", called, call, **told))
    parameters = {"workflowId": {"__rl": True, "mode": "id", "value": sub}, "options": {}}
    await world.build(chain("parent", hook("parent"), node("Run sub", "executeWorkflow", 1.2, parameters), **told))
    await world.build(chain("timeout", hook("timeout"), wait(30), executionTimeout=3, **told))
    await world.build(chain("wait", hook("wait"), wait(LONG_WAIT), **told))
    none = {"saveDataSuccessExecution": "none", "saveDataErrorExecution": "none"}
    await world.build(chain("nothing-saved", hook("nothing-saved"), stop, **none, **told))
    await world.build({**imported("report-success", webhook), "name": "reports-its-successes"})


@contextlib.asynccontextmanager
async def world(
    folder: Path, *, config: str = CONFIG, webhook: str = "", settings: Mapping[str, str] = MappingProxyType({})
) -> AsyncIterator[World]:
    """n8n with its workflows, and the exporter once it has swept; both end with the block.

    ``webhook``: where workflows report to, if not to the exporter. ``settings`` are n8n's own.
    """
    port = free_port()
    async with n8n(folder / "n8n", **settings) as server, partner() as called:
        made = World(server=server, partner=called)
        await build(made, webhook or f"http://127.0.0.1:{port}/webhooks/{SOURCE}")
        async with exporting(folder, made.configured(config), port=port) as made.exporter:
            yield made
