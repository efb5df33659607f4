"""Runs as traces, end to end: every counted attempt once, an outage loses nothing, and the metrics point to them."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from exporter.traces.export import SETTLING
from tests.e2e.deployment import Deployment, deployment
from tests.e2e.test_truth import ROOMY
from tests.otlp import otlp_receiver
from tests.servers import eventually, prometheus, real


async def export(made: Deployment, *, rounds: int = 20) -> None:
    """Empty the outbox, as far as the collector takes it."""
    assert made.service.traces is not None
    for _ in range(rounds):
        report = await made.service.traces.export_once(made.clock.now())
        if not report.exported:
            return


async def test_after_an_hours_outage_of_the_collector_every_trace_arrives_exactly_once(tmp_path: Path) -> None:
    async with otlp_receiver() as receiver:
        traces = {"traces": {"enabled": True, "endpoint": receiver.url}}
        async with deployment(tmp_path, options=ROOMY, changes=traces, workflows=3) as made:
            await made.sweep()
            receiver.status = 400
            for _ in range(60):
                await made.live(60, step=20, deliver=True)
                await export(made, rounds=1)
            assert receiver.spans == []
            await made.restart()
            receiver.status = 200
            await made.settle()
            await made.clock.advance(SETTLING + 1)
            await export(made)
            counted = {source: await made.counted(source) for source in made.fleet.simulators}
            roots = [span for span in receiver.spans if not span.parent_id]
            told = Counter(span.resource["service.name"] for span in roots)
            assert told == {source: sum(runs.values()) for source, runs in counted.items()}
            assert len({span.trace_id for span in roots}) == len(roots)
            assert made.service.own.registry.get_sample_value("automation_exporter_traces_pending") == 0.0
            failed = [s for s in roots if s.attributes["automation.run.result"] == "failure"]
            assert failed
            assert all(s.attributes["cicd.pipeline.result"] == "failure" and s.attributes["error.type"] for s in failed)
            steps = [span for span in receiver.spans if span.parent_id]
            assert {"cognaize", "make"} <= {span.resource["service.name"] for span in steps}
            make = [span for span in roots if span.resource["service.name"] == "make"]
            problems = {s.trace_id for s in make if s.attributes["automation.run.result"] in ("failure", "warning")}
            assert {s.trace_id for s in steps if s.resource["service.name"] == "make"} == problems
            qlik = [span for span in roots if span.resource["service.name"] == "qlik"]
            assert all(len(span.attributes["automation.steps.untimed_seconds"]) == 3 for span in qlik)


async def test_a_failed_make_run_arrives_with_its_modules_as_spans_even_if_a_webhook_told_of_it_first(
    tmp_path: Path,
) -> None:
    async with otlp_receiver() as receiver:
        traces = {"traces": {"enabled": True, "endpoint": receiver.url}}
        async with deployment(tmp_path, platforms=["make"], workflows=0, options=ROOMY, changes=traces) as made:
            simulator: Any = made.fleet.simulators["make"]
            workflow = simulator.add_workflow(name="Orders", reports="all")
            await made.sweep()
            now = made.clock.now()
            bad = simulator.add_run(workflow, started_at=now + 2, ended_at=now + 12, result="failure")
            good = simulator.add_run(workflow, started_at=now + 2, ended_at=now + 12, result="success")
            await made.clock.advance(13)
            assert await made.deliver() == 2
            await export(made)
            assert receiver.run_ids == [good]
            await made.clock.advance(60)
            await made.sweep("runs")
            await export(made)
            assert receiver.run_ids == [good, bad]
            root, first, second = receiver.batches[-1]
            assert (root.name, root.status, root.attributes["cicd.pipeline.run.id"]) == ("RUN Orders", "ERROR", bad)
            start = round(now) * 10**9
            told = [(s.name, s.kind, s.parent_id, s.status, s.start - start, s.end - start) for s in (first, second)]
            assert told == [
                ("google-sheets:watchRows", "INTERNAL", root.span_id, "UNSET", 2 * 10**9, 7 * 10**9),
                ("http:MakeRequest", "INTERNAL", root.span_id, "ERROR", 7 * 10**9, 12 * 10**9),
            ]
            assert first.attributes == {
                "cicd.pipeline.task.name": "google-sheets:watchRows",
                "cicd.pipeline.task.run.id": "1",
                "cicd.pipeline.task.run.result": "success",
                "automation.step.result": "success",
            }
            await made.restart()
            for _ in range(3):
                await made.clock.advance(60)
                await made.sweep()
                await export(made)
            assert await made.samples("automation_steps_total") == {
                ("make", workflow, "google-sheets:watchRows", "success"): 1.0,
                ("make", workflow, "http:MakeRequest", "failure"): 1.0,
            }
            assert receiver.run_ids == [good, bad]


@pytest.mark.parametrize("status", [403, 404])
async def test_where_a_zone_has_no_module_events_traces_of_failures_go_without_and_soon_at_once(
    status: int, tmp_path: Path
) -> None:
    async with otlp_receiver() as receiver:
        traces = {"traces": {"enabled": True, "endpoint": receiver.url}}
        options = {"make": {**ROOMY["make"], "module_events": status, "detail_delay": 0.0}}
        async with deployment(tmp_path, platforms=["make"], workflows=0, options=options, changes=traces) as made:
            simulator: Any = made.fleet.simulators["make"]
            workflow = simulator.add_workflow()
            await made.sweep()
            runs = list[str]()
            for _ in range(4):
                now = made.clock.now()
                runs.append(simulator.add_run(workflow, started_at=now + 2, ended_at=now + 12, result="failure"))
                await made.clock.advance(60)
                await made.sweep()
                await export(made)
            assert sorted(receiver.run_ids) == sorted(runs), "the last one as soon as it was counted"
            assert [span.parent_id for span in receiver.spans] == [""] * 4
            assert await made.samples("automation_steps_total") == {}
            assert made.service.own.registry.get_sample_value("automation_exporter_traces_pending") == 0.0
            complete = await made.samples("automation_exporter_data_complete")
            assert complete["make", "runs"] == 1.0


@real("prometheus")
async def test_a_real_prometheus_returns_exemplars_that_name_exported_traces(tmp_path: Path) -> None:
    async with otlp_receiver() as receiver:
        traces = {"traces": {"enabled": True, "endpoint": receiver.url}}
        now = time.time() - 1000  # Prometheus keeps no exemplars from long ago
        async with deployment(
            tmp_path, platforms=["qlik", "etlworks"], options=ROOMY, changes=traces, start=now
        ) as made:
            await made.sweep()
            await made.live(900, step=15, deliver=True)
            await made.clock.advance(SETTLING + 1)
            await export(made)
            known = {span.trace_id for span in receiver.spans}
            assert known
            assert " # {" not in await made.scrape()
            openmetrics = await made.scrape(Accept="application/openmetrics-text;version=1.0.0")
            assert openmetrics.count(' # {trace_id="') >= 2
            async with prometheus(tmp_path, [made.url.removeprefix("http://")]) as server:

                async def found() -> set[str]:
                    now = time.time()
                    names = '{__name__=~"automation_runs_total|automation_run_duration_seconds_bucket"}'
                    exemplars = await server.query_exemplars(names, now - 3600, now + 3600)
                    return {exemplar.labels["trace_id"] for exemplar in exemplars}

                assert await eventually(found) <= known


async def test_the_exporters_own_work_is_traced_if_wanted_as_a_service_of_its_own(tmp_path: Path) -> None:
    async with otlp_receiver() as receiver:
        traces = {"traces": {"enabled": True, "own": True, "endpoint": receiver.url}}
        async with deployment(tmp_path, platforms=["qlik"], options=ROOMY, changes=traces) as made:
            await made.sweep()
            await made.live(300, step=30, deliver=True)
        own = [span for span in receiver.spans if span.resource["service.name"] == "automation-exporter"]
        names = {span.name for span in own}
        assert {"sweep workflows", "sweep runs", "webhook qlik", "GET /api/workflows/automations"} <= names
        sweeps = {span.span_id for span in own if span.name.startswith("sweep")}
        assert any(span.parent_id in sweeps for span in own if span.name.startswith("GET"))
        assert not any("?" in span.name or "cursor=" in str(span.attributes) for span in own)
