"""The service against a real n8n: totals, dead letters and retries are what n8n's own rows say, whoever is killed.

The figures of each scenario are printed in the end.
"""

import asyncio
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.n8n.processes import CUT, HOLD
from tests.n8n.world import CONFIG, World, world
from tests.otlp import otlp_receiver
from tests.servers import eventually

pytestmark = pytest.mark.n8n
Record = Callable[[str, object], None]


async def settle(made: World, scenario: str, record: Record) -> None:
    """Both say the same; and what there was goes into the table."""
    failed = True
    try:
        await made.agreed()
        failed = False
    finally:
        record("n8n and the exporter", made.figures(scenario, len(await made.mismatches()) if failed else 0))


async def test_totals_dead_letters_and_retries_are_those_of_n8n(tmp_path: Path, record_property: Record) -> None:
    async with world(tmp_path) as made:
        plan = made.partner.plan
        # What no policy retries, a person does.
        await made.fire("call", plan(403, 200))
        forbidden = (await made.row("call", "error")).number
        for _ in range(3):
            await made.fire("ok")
            await made.fire("reports-its-successes")
            made.unsaved["reports-its-successes", "success"] += 1
        for _ in range(2):
            await made.fire("stop")
            await made.fire("nothing-saved")
            made.unsaved["nothing-saved", "failure"] += 1
        for answers in ((401,), (200,), (500, 200), (503, 502, 200), (CUT, 200), (429, 500, 504, 200)):
            await made.fire("call", plan(*answers))
        await made.fire("parent", plan(500, 200))
        await made.fire("parent", plan(200))
        await made.fire("timeout")
        await stopped(made)
        await made.opened(forbidden)
        await made.retry(forbidden)
        await settle(made, "nobody is killed", record_property)


async def stopped(made: World) -> None:
    """A run that hangs, and one whose process is gone, which the exporter stops."""
    key = made.partner.plan(HOLD)
    await made.fire("call", key)
    await made.partner.holding(key)
    [running] = [row.number for row in made.rows() if row.status == "running" and row.workflow_id == made.ids["call"]]
    for number in (running, await made.stale("ok")):
        await made.seen_running(number)
        await made.exporter.command("retries", "stop", f"n8n/{number}", "--now")
        await made.is_now(number, "canceled")
    made.partner.release()


async def test_the_exporter_is_killed(tmp_path: Path, record_property: Record) -> None:
    rng = random.Random(16)
    async with world(tmp_path) as made:
        exporter, partner = made.exporter, made.partner
        # At any moment while runs come in, and meanwhile.
        for _ in range(4):
            for _ in range(4):
                await made.fire(rng.choice(["ok", "stop"]))
            await asyncio.sleep(rng.uniform(0.0, 1.0))
            await exporter.kill()
            for path in ("ok", "stop"):
                await made.fire(path)
            await exporter.start()
        # While a retry is under way, which ends before the exporter is back.
        root = await under_way(made, 500, HOLD)
        await exporter.kill()
        await made.fire("call", partner.plan(500, 503, 200))
        partner.release()
        await made.row("call", "success", retry_of=root)
        await exporter.start()
        # While one is under way, and goes on after the exporter has found it.
        root = await under_way(made, 502, HOLD)
        await exporter.kill()
        await exporter.start()
        await made.retry_is(root, "verifying")
        partner.release()
        # Between its end and the exporter's look at it.
        await made.fire("call", key := partner.plan(504, 200))
        await made.retried(key)
        await exporter.kill()
        await exporter.start()
        await settle(made, "kill -9 of the exporter", record_property)


async def under_way(made: World, *answers: int) -> int:
    """A piece of work that has failed and is being done again by a retry of the exporter; returns its root."""
    key = made.partner.plan(*answers)
    await made.fire("call", key)
    await made.partner.holding(key)
    [retry] = [row for row in made.rows() if row.status == "running" and row.retry_of is not None]
    assert retry.retry_of is not None
    return retry.retry_of


async def test_n8n_is_killed(tmp_path: Path, record_property: Record) -> None:
    async with world(tmp_path) as made:
        partner = made.partner
        await made.fire("wait")
        await made.row("wait", "waiting")
        # Where a retry is under way, a run, and one that waits.
        root = await under_way(made, 500, HOLD, 200)
        await made.fire("call", running := partner.plan(HOLD, 200))
        await partner.holding(running)
        await made.kill_n8n()
        partner.release()
        await made.start_n8n()
        assert [row.status for row in made.chains()[root]][:2] == ["error", "crashed"]
        # Both at once, twice; the second time the exporter is back first.
        await under_way(made, 503, HOLD, 200)
        await made.kill_n8n()
        await made.exporter.kill()
        partner.release()
        await made.start_n8n()
        await made.exporter.start()
        await under_way(made, 429, HOLD, 500, 200)
        await made.kill_n8n()
        await made.exporter.kill()
        partner.release()
        await asyncio.gather(made.exporter.start(), made.start_n8n())
        await settle(made, "kill -9 of n8n, and of both", record_property)


@pytest.mark.parametrize("by_n8n", [True, False])
async def test_a_run_has_one_trace_which_is_n8n_s_own_where_it_sends_one(tmp_path: Path, by_n8n: bool) -> None:
    async with otlp_receiver() as n8n_s, otlp_receiver() as ours:
        settings = {"N8N_OTEL_ENABLED": "true", "N8N_OTEL_EXPORTER_OTLP_ENDPOINT": n8n_s.url} if by_n8n else {}
        traces = f"traces: {{enabled: true, endpoint: '{ours.url}'}}\n"
        async with world(tmp_path, config=traces + CONFIG, settings=settings) as made:
            await made.fire("call", made.partner.plan(403))
            await made.fire("ok")
            await made.agreed()
            exporter = made.exporter

            async def none_waits() -> bool:
                spans = await exporter.samples("automation_exporter_spans_total", "outcome")
                waiting = await exporter.samples("automation_exporter_traces_pending")
                return not waiting and (by_n8n or spans.get(("exported",), 0.0) >= 2)

            await eventually(none_waits)
            async with exporter.session.get(
                f"http://127.0.0.1:{exporter.port}/metrics", headers={"Accept": "application/openmetrics-text"}
            ) as answer:
                text = await answer.text()
        failures = f'automation_runs_total{{[^}}]*workflow_id="{made.ids["call"]}"[^}}]*result="failure"[^}}]*}}'
        [shown] = re.findall(failures + r".*trace_id=\"(\w+)\"", text)
        runs = {span.name: span.trace_id for span in ours.spans if span.name.startswith("RUN ")}
        if by_n8n:
            assert runs == {}
            told = {span.trace_id for span in n8n_s.spans if span.attributes.get("n8n.workflow.id") == made.ids["call"]}
            assert told == {shown}
        else:
            assert set(runs) == {"RUN call", "RUN ok"}
            assert shown == runs["RUN call"]
