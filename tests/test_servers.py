"""The test servers themselves: if these tests pass, what the others read from a real Prometheus can be believed."""

from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.servers import (
    Exemplar,
    eventually,
    missing_component,
    prometheus,
    promtool_check_metrics,
    real,
    running,
)

EXPOSITION = """\
# HELP demo_requests Requests answered.
# TYPE demo_requests counter
demo_requests_total{code="200"} 17 # {trace_id="4bf92f3577b34da6a3ce929d0e0e4736"} 0.5 1700000000.25
# EOF
"""


async def exposition(request: web.Request) -> web.Response:
    content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8"
    return web.Response(body=EXPOSITION.encode(), headers={"Content-Type": content_type})


async def start_exporter() -> TestServer:
    app = web.Application()
    app.router.add_get("/metrics", exposition)
    server = TestServer(app)
    await server.start_server()
    return server


@real("prometheus")
async def test_a_real_prometheus_gives_back_the_samples_and_exemplars_it_scraped(tmp_path: Path) -> None:
    exporter = await start_exporter()
    rules = tmp_path / "rules.json"
    rules.write_text('{"groups": [{"name": "g", "rules": [{"record": "doubled", "expr": "2 * demo_requests_total"}]}]}')
    target = f"127.0.0.1:{exporter.port}"
    async with exporter, prometheus(tmp_path, [target], rules=[rules]) as server:
        series = {"instance": target, "job": "test", "code": "200"}
        samples = await eventually(lambda: server.query("demo_requests_total"))
        assert samples == [(series | {"__name__": "demo_requests_total"}, 17.0)]
        assert await eventually(lambda: server.query("doubled")) == [(series | {"__name__": "doubled"}, 34.0)]
        assert await server.query("demo_requests_total", time=1_600_000_000) == []
        assert await server.query("scalar(vector(3))") == [({}, 3.0)]

        assert await server.query_exemplars("demo_requests_total", 1_699_999_999, 1_700_000_001) == [
            Exemplar(
                series=series | {"__name__": "demo_requests_total"},
                labels={"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"},
                value=0.5,
                timestamp=1_700_000_000.25,
            )
        ]
        assert [(t.url, t.health, t.error) for t in await server.targets()] == [(f"http://{target}/metrics", "up", "")]

        with pytest.raises(ValueError, match="parse error"):
            await server.query("demo_requests_total{")


@real("prometheus")
async def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text("groups: [{name: broken, rules: [{record: x, expr: 'sum('}]}]")
    with pytest.raises(RuntimeError, match=r"prometheus ended with \d+ before it was ready") as caught:
        async with prometheus(tmp_path, [], rules=[rules]):
            pytest.fail("a Prometheus with broken rules must not become ready")
    assert any("prometheus logged last" in note and "parse error" in note for note in caught.value.__notes__)


async def test_a_server_ends_with_its_block_and_a_failure_inside_carries_its_log(tmp_path: Path) -> None:
    exporter = await start_exporter()
    script = tmp_path / "server.sh"
    script.write_text("echo started as $$; trap 'echo stopped; exit 0' TERM; while true; do sleep 0.05; done")
    log = tmp_path / "log"
    ready_url = str(exporter.make_url("/metrics"))
    async with exporter:
        with pytest.raises(ZeroDivisionError) as caught:
            async with running(["sh", str(script)], log=log, ready_url=ready_url):
                await eventually(lambda: read(log))
                raise ZeroDivisionError
    assert any("started as" in note for note in caught.value.__notes__)
    assert log.read_text().splitlines()[-1] == "stopped"


async def read(path: Path) -> str:
    return path.read_text()


async def test_eventually_gives_up_and_says_what_it_last_saw() -> None:
    async def probe() -> list[int]:
        return []

    with pytest.raises(TimeoutError, match=r"still \[\] after 0\.05 s"):
        await eventually(probe, seconds=0.05, every=0.01)


@real("promtool")
def test_promtool_finds_nothing_in_a_clean_exposition() -> None:
    assert promtool_check_metrics(b"# HELP a_total A.\n# TYPE a_total counter\na_total 1\n") == []


@real("promtool")
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"# HELP b B.\n# TYPE b counter\nb 2\n", "_total"),
        (b"# TYPE a_total counter\na_total 1\n", "help"),
        (b"a_total{ 1\n", "parsing error"),
    ],
)
def test_promtool_says_what_is_wrong_with_an_exposition(text: bytes, problem: str) -> None:
    (found,) = (line for line in promtool_check_metrics(text) if problem in line)
    assert found


def test_a_missing_component_is_named_with_the_package_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert missing_component("promtool") == "real component missing: promtool (apt-get install prometheus)"


def test_an_unknown_component_is_refused_when_the_mark_is_made() -> None:
    with pytest.raises(ValueError, match="unknown component 'promethoys'"):
        real("promethoys")
