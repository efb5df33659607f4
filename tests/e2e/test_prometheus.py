"""A real Prometheus scrapes the running service, and its answers are the truth."""

from pathlib import Path

import aiohttp
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from tests.e2e.deployment import deployment
from tests.e2e.test_truth import ROOMY
from tests.servers import eventually, prometheus, promtool_check_metrics, real


@real("prometheus")
async def test_promql_answers_match_what_the_simulators_know(tmp_path: Path) -> None:
    async with deployment(tmp_path, options=ROOMY) as made:
        await made.sweep()
        async with prometheus(tmp_path, [made.url.removeprefix("http://")]) as server:
            await made.live(600, step=20, deliver=True)
            await made.settle()
            for source in made.fleet.simulators:
                truth = made.truth(source)
                wanted = {(w, r): float(n) for (w, r), n in truth.items()}

                async def answered(source: str = source, wanted: dict[tuple[str, str], float] = wanted) -> bool:
                    rows = await server.query(
                        f'sum by (workflow_id, result) (automation_runs_total{{source="{source}"}}) > 0'
                    )
                    return {(labels["workflow_id"], labels["result"]): value for labels, value in rows} == wanted

                assert await eventually(answered), source
            rows = await server.query("sum(automation_runs_total) - sum(automation_exporter_runs_observed_total)")
            assert [value for _, value in rows] == [0.0]
            info = "on (workflow_id, source) group_left (workflow) automation_workflow_info"
            names = await server.query(f"count by (workflow) (automation_runs_total * {info})")
            assert len(names) > 4


@real("promtool")
async def test_promtool_finds_nothing_wrong_in_a_scrape(tmp_path: Path) -> None:
    async with deployment(tmp_path, options=ROOMY) as made:
        await made.sweep()
        await made.live(300, step=30, deliver=True)
        assert promtool_check_metrics((await made.scrape()).encode()) == []


@real("prometheus")
async def test_prometheus_learns_the_unit_of_every_name_that_ends_in_one(tmp_path: Path) -> None:
    async with deployment(tmp_path, options=ROOMY) as made:
        await made.sweep()
        await made.live(300, step=30, deliver=True)
        openmetrics = {"Accept": "application/openmetrics-text;version=1.0.0"}
        async with made.session.get(made.url + "/metrics", headers=openmetrics) as response:
            families = list(parse_openmetrics(await response.text()))  # type: ignore[no-untyped-call]
        exposed = {family.name: family.unit for family in families if family.samples}
        for word in ("seconds", "bytes", "ratio"):
            ending = {name: unit for name, unit in exposed.items() if name.endswith(f"_{word}")}
            assert ending == dict.fromkeys(ending, word)
        assert exposed["process_resident_memory_bytes"] == "bytes", "what the libraries bring is no exception"
        async with prometheus(tmp_path, [made.url.removeprefix("http://")]) as server:

            async def told() -> bool:
                units = await server.units()
                return len(units) > 50 and all(unit == exposed[name] for name, unit in units.items() if name in exposed)

            assert await eventually(told)
            units = await server.units()
            assert units["automation_usage_operations"] == "operations"
            assert units["automation_run_duration_seconds"] == "seconds"


async def test_a_scrape_touches_neither_a_platform_nor_the_database(tmp_path: Path) -> None:
    async with deployment(tmp_path, options=ROOMY) as made:
        await made.sweep()
        asked = {name: sum(s.requests.values()) for name, s in made.fleet.simulators.items()}
        await made.service.ledger.close()
        for accept in ("text/plain", "application/openmetrics-text;version=1.0.0"):
            async with made.session.get(made.url + "/metrics", headers={"Accept": accept}) as response:
                text = await response.text()
                assert response.status == 200
                assert "automation_runs_total" in text
                assert text.endswith("# EOF\n") == ("openmetrics" in accept)
        assert {name: sum(s.requests.values()) for name, s in made.fleet.simulators.items()} == asked


async def test_health_and_readiness_say_what_is_wrong(tmp_path: Path) -> None:
    async with deployment(tmp_path, platforms=["make", "qlik"], options=ROOMY) as made:
        async with made.session.get(made.url + "/-/ready") as response:
            assert response.status == 503
            reasons = (await response.json())["reasons"]
            assert {r["source"] for r in reasons} == {"make", "qlik"}
        await made.sweep()
        async with made.session.get(made.url + "/-/ready") as response:
            assert (response.status, await response.json()) == (200, {"ready": True, "reasons": []})
        made.fleet.simulators["qlik"].faults.unavailable = 1.0
        await made.clock.advance(3600)
        await made.sweep()
        async with made.session.get(made.url + "/-/ready") as response:
            assert response.status == 503
            reasons = (await response.json())["reasons"]
            assert {r["source"] for r in reasons} == {"qlik"}
            assert "unavailable" in reasons[0]["detail"]
        up = await made.samples("automation_source_up")
        assert up == {("make",): 1.0, ("qlik",): 0.0}
        assert sum((await made.samples("automation_runs_total")).values()) >= 0
        async with aiohttp.ClientSession() as session, session.get(made.url + "/-/healthy") as response:
            assert response.status == 200
