"""What the doors answer: the page, the password, the separate address for senders, reload."""

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import bcrypt
import pytest
from aiohttp import ClientSession

from exporter import app, reloading
from exporter.config import Config, ConfigError
from exporter.model import Workflow
from exporter.model.ledger import Batch
from exporter.simulator import HOOK_SECRET
from exporter.simulator.fleet import demo_config
from tests.e2e.deployment import Deployment, deployment
from tests.e2e.test_truth import ROOMY
from tests.servers import eventually


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployment(tmp_path, platforms=["make"], options=ROOMY) as made:
        yield made


async def status(session: ClientSession, method: str, url: str, **more: object) -> int:
    async with session.request(method, url, **more) as response:  # type: ignore[arg-type]
        return response.status


async def test_hostile_names_are_escaped_on_the_page_and_in_the_exposition(made: Deployment) -> None:
    name = '<script>alert("x")</script>\n"}'
    await made.sweep()
    hostile = Workflow(id="h", at=made.clock.now() + 1, name=name)
    await made.service.ledger.ingest(
        Batch(source="make", observations=[hostile], now=made.clock.now(), started_at=made.clock.now())
    )
    page = await made.scrape("/")
    assert "<script>" not in page
    assert "make" in page
    info = await made.samples("automation_workflow_info")
    assert any(name in labels for labels in info)


async def test_a_scraper_that_hangs_up_is_no_error_of_ours(made: Deployment, caplog: pytest.LogCaptureFixture) -> None:
    await made.sweep()
    for _ in range(20):  # some of them hang up while the answer is being written
        _, writer = await asyncio.open_connection("127.0.0.1", made.service.port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: exporter\r\nAccept-Encoding: gzip\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0)
        writer.transport.abort()
    await made.scrape()
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_status_and_dead_letters_are_there_as_json(made: Deployment) -> None:
    await made.sweep()
    await made.live(600, step=60)
    async with made.session.get(made.url + "/api/v1/status") as response:
        (source,) = (await response.json())["sources"]
    assert (source["source"], source["platform"]) == ("make", "make")
    assert source["workflows"] == 4
    assert all(stream["fresh"] for stream in source["streams"])
    async with made.session.get(made.url + "/api/v1/dead-letters") as response:
        letters = await response.json()
    assert letters["total"] == len(made.service.world.sources["make"].dead_letters) > 0
    opened = [letter["opened_at"] for letter in letters["dead_letters"]]
    assert opened == sorted(opened)


async def test_a_password_guards_everything_but_probes_and_webhooks(made: Deployment) -> None:
    digest = bcrypt.hashpw(b"open sesame", bcrypt.gensalt(4)).decode()
    changes = {"server": {"listen": "127.0.0.1:0", "basic_auth": {"users": {"ops": digest}}}}
    made.config = demo_config(made.fleet, listen="", database=Path(made.config.store.url[10:]), changes=changes)
    await made.restart()
    for path in ("/", "/metrics", "/api/v1/status"):
        assert await status(made.session, "GET", made.url + path) == 401
        for given, answer in (("ops:open sesame", 200), ("ops:wrong", 401), ("eve:open sesame", 401), ("ops", 401)):
            header = {"Authorization": "Basic " + base64.b64encode(given.encode()).decode()}
            assert await status(made.session, "GET", made.url + path, headers=header) == answer
    assert await status(made.session, "GET", made.url + "/-/healthy") == 200
    assert await status(made.session, "GET", made.url + "/-/ready") == 503
    assert await status(made.session, "POST", made.url + "/webhooks/make") == 401
    secret = {"X-Webhook-Token": HOOK_SECRET}
    assert await status(made.session, "POST", made.url + "/webhooks/make", headers=secret, json={}) == 400


async def test_webhooks_may_have_an_address_of_their_own_and_nothing_else_is_there(made: Deployment) -> None:
    changes = {"server": {"listen": "127.0.0.1:0", "webhooks_listen": "127.0.0.1:0"}}
    made.config = demo_config(made.fleet, listen="", database=Path(made.config.store.url[10:]), changes=changes)
    await made.restart()
    apart = f"http://127.0.0.1:{made.service.webhooks_port}"
    assert apart != made.url
    assert await status(made.session, "POST", made.url + "/webhooks/make") == 404
    assert await status(made.session, "POST", apart + "/webhooks/make") == 401
    assert await status(made.session, "GET", apart + "/metrics") == 404


async def test_unknown_sources_and_methods_are_refused(made: Deployment) -> None:
    assert await status(made.session, "POST", made.url + "/webhooks/nobody") == 404
    assert await status(made.session, "PUT", made.url + "/webhooks/make") == 405
    assert await status(made.session, "POST", made.url + "/-/reload") == 404


async def test_events_of_workflows_a_source_leaves_out_are_ignored(made: Deployment) -> None:
    made.config.sources["make"] = made.config.sources["make"].model_copy(update={"exclude": ["999"]})
    await made.restart()
    for workflow, runs in (("999", 0.0), ("998", 1.0)):
        event = {"event": "run.finished", "workflow_id": workflow, "run_id": f"r{workflow}", "result": "success"}
        headers = {"X-Webhook-Token": HOOK_SECRET}
        assert await status(made.session, "POST", made.url + "/webhooks/make", json=event, headers=headers) == 202
        shown = await made.samples("automation_runs_total")
        assert shown.get(("make", workflow, "success"), 0.0) == runs


async def test_a_reload_takes_a_good_config_whole_and_keeps_the_old_one_otherwise(made: Deployment) -> None:
    await made.stop()
    taken = [made.config]
    stop, reload = asyncio.Event(), asyncio.Event()
    started: asyncio.Queue[app.Service] = asyncio.Queue()

    def load() -> Config:
        if not taken:
            raise ConfigError(["sources.make.url: missing"])
        return taken[-1]

    running = asyncio.create_task(
        reloading.run(made.config, stop=stop, reload=reload, load=load, clock=made.clock, on_running=started.put_nowait)
    )
    first = await started.get()
    value = first.own.registry.get_sample_value
    taken.clear()
    reload.set()

    async def refused() -> bool:
        return value("automation_exporter_config_last_reload_successful") == 0.0

    await eventually(refused, every=0.01)
    assert started.empty()
    changed = made.config.limits.model_copy(update={"series_max": 5000})
    taken.append(made.config.model_copy(update={"limits": changed}))
    reload.set()
    second = await started.get()
    assert value("automation_exporter_config_last_reload_successful") == 1.0
    assert value("automation_exporter_series_limit") == 5000.0
    assert second is not first
    stop.set()
    await running
    await made.start()


@pytest.mark.parametrize("mistake", ["address taken", "not foreseen"])
async def test_a_config_that_cannot_be_started_leaves_the_old_one_running(made: Deployment, mistake: str) -> None:
    await made.stop()
    if mistake == "address taken":
        server = made.config.server.model_copy(update={"listen": urlsplit(made.fleet.urls["make"]).netloc})
        changed = made.config.model_copy(update={"server": server})
    else:
        source = made.config.sources["make"].model_copy(update={"url": "http://[no-address"})
        changed = made.config.model_copy(update={"sources": {"make": source}})
    stop, reload = asyncio.Event(), asyncio.Event()
    started: asyncio.Queue[app.Service] = asyncio.Queue()
    running = asyncio.create_task(
        reloading.run(
            made.config,
            stop=stop,
            reload=reload,
            load=lambda: changed,
            clock=made.clock,
            on_running=started.put_nowait,
        )
    )
    first = await started.get()
    reload.set()
    getting = asyncio.create_task(started.get())
    await asyncio.wait({running, getting}, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        getting.cancel()
        await running
    second = await getting
    assert second is not first
    assert second.own.registry.get_sample_value("automation_exporter_config_last_reload_successful") == 0.0
    stop.set()
    await running
    await made.start()
