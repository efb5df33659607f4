"""Each recipe of docs/recipes.md, tried on the real thing: by Prometheus' tools, or by the service on simulators."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import ClientSession

from exporter import app
from exporter.alerting import rules
from exporter.clock import ManualClock, SystemClock
from exporter.config import Config, parse
from exporter.config.objectives import SloConfig
from exporter.model.operations import OperationAction
from exporter.retries.operations import Selection
from exporter.simulator.fleet import Fleet
from exporter.traces.otlp import destination
from tests.alerts.test_alertmanager import amtool
from tests.alerts.test_rules import promtool, read_by
from tests.dashboards.reading import FOLDER, board, filled, panels
from tests.e2e.deployment import deployment
from tests.otlp import otlp_receiver
from tests.servers import eventually, free_port, real, running
from tests.test_docs import DOCS

PAGE = DOCS / "recipes.md"
JOB = 'job="automation-exporter", instance="host:10870", platform="make", source="make-eu"'
HOUR = 60
"""Minutes: the step of every history here."""


def fences(heading: str, kind: str) -> list[str]:
    """The fenced code of one recipe."""
    [recipe] = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S)
    return re.findall(rf"^```{kind}\n(.*?)^```$", recipe, re.M | re.S)


def config(text: str, folder: Path, **replaced: str) -> Config:
    """A recipe's config, with made-up variables, and secrets as files of a folder."""
    for name in re.findall(r"/run/secrets/([\w.-]+)", text):
        (folder / name).write_text("0123456789abcdef")
    text = text.replace("/run/secrets/", f"{folder}/")
    for old, new in replaced.items():
        text = text.replace(old, new)
    return parse(text, dict.fromkeys(re.findall(r"\$\{(\w+)", text), "0123456789abcdef"))


def objectives(heading: str, folder: Path) -> SloConfig:
    return config(fences(heading, "yaml")[0], folder).slo


# By promtool


def series(name: str, values: str, workflow_id: str = "1", **more: str) -> dict[str, str]:
    labels = ", ".join([JOB, f'workflow_id="{workflow_id}"', *(f'{key}="{value}"' for key, value in more.items())])
    return {"series": f"{name}{{{labels}}}", "values": values}


def of_source(name: str, values: str, **more: str) -> dict[str, str]:
    labels = ", ".join([JOB, *(f'{key}="{value}"' for key, value in more.items())])
    return {"series": f"{name}{{{labels}}}", "values": values}


def named(workflow_id: str, workflow: str, minutes: int) -> list[dict[str, str]]:
    return [
        series("automation_workflow_info", f"1x{minutes}", workflow_id, workflow=workflow),
        series("automation_workflow_enabled", f"1x{minutes}", workflow_id),
    ]


def up(minutes: int) -> list[dict[str, str]]:
    return [
        of_source("automation_source_up", f"1x{minutes}"),
        of_source("automation_exporter_data_complete", f"1x{minutes}", stream="runs"),
    ]


def judge(folder: Path, groups: list[dict[str, Any]], history: list[dict[str, str]], **asked: Any) -> None:
    (folder / "rules.yaml").write_text(rules.as_yaml(groups))
    test = {"interval": "1m", "input_series": history, **asked}
    (folder / "test.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": [test]}))
    done = promtool("test", "rules", folder / "test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def alerting(name: str, at: str, *workflows: str) -> dict[str, Any]:
    """That just these workflows have the alert then."""
    expr = f'count by (workflow) (ALERTS{{alertname="{name}", alertstate="firing"}})'
    shown = [{"labels": f'{{workflow="{workflow}"}}', "value": 1} for workflow in workflows]
    return {"expr": expr, "eval_time": at, "exp_samples": shown}


@real("promtool")
def test_failing_three_times(tmp_path: Path) -> None:
    recording, alerts = read_by("AutomationWorkflowFailing", objectives("Failing three times", tmp_path))
    failing = "automation_workflow_consecutive_failures"
    history = [
        *up(60),
        *named("1", "Orders", 60),
        *named("2", "Payment import", 60),
        series(failing, "0x9 1x9 2x9 3x30", "1"),
        series(failing, "0x9 1x50", "2"),
    ]
    name = "AutomationWorkflowFailing"
    asked = [
        alerting(name, "25m", "Payment import"),
        alerting(name, "40m", "Orders", "Payment import"),
        {"expr": fences("Failing three times", "promql")[0], "eval_time": "29m", "exp_samples": []},
    ]
    judge(tmp_path, [*recording, *alerts], history, promql_expr_test=asked)


@real("promtool")
def test_nightly(tmp_path: Path) -> None:
    own = yaml.safe_load(fences("Nightly", "yaml")[1])["groups"]
    recording, alerts = read_by("AutomationWorkflowOverdue", objectives("Nightly", tmp_path))
    minutes = 40 * HOUR
    last = "automation_workflow_last_run_timestamp_seconds"
    history = [*up(minutes)]
    for number, name in enumerate(("Nightly a", "Nightly b", "Nightly c", "Hourly", "Nightly off"), start=1):
        history += named(str(number), name, minutes)
    history[-1]["values"] = f"0x{minutes}"
    history += [
        series(last, f"0x{minutes}", "1", result="success"),  # a success at 0, none since
        series(last, f"0x{20 * HOUR} {20 * HOUR * 60}x{20 * HOUR}", "2", result="success"),  # and one at 20 h
        series(last, f"0x{minutes}", "3", result="failure"),  # never
        series(last, f"0x{minutes}", "4", result="success"),
        series(last, f"0x{minutes}", "5", result="success"),
        series("automation_workflow_next_run_timestamp_seconds", f"{24 * 3600}x{minutes}", "1"),
    ]
    asked = [
        alerting("NightlyWithoutSuccess", "25h", "Nightly c"),
        alerting("NightlyWithoutSuccess", "27h", "Nightly a", "Nightly c"),
        alerting("AutomationWorkflowOverdue", "25h"),
        alerting("AutomationWorkflowOverdue", "26h10m", "Nightly a"),
    ]
    judge(tmp_path, [*own, *recording, *alerts], history, promql_expr_test=asked)


@real("promtool")
def test_mttr(tmp_path: Path) -> None:
    works_again, done_after_all, nine_of_ten = fences("MTTR", "promql")
    resolved = "automation_dead_letter_resolution_seconds"
    history = [
        # An hour, and two hours; and one that never failed.
        series("automation_workflow_consecutive_failures", f"0x59 3x59 0x119 1x119 0x{10 * HOUR}", "1"),
        series("automation_workflow_consecutive_failures", f"0x{16 * HOUR}", "2"),
        # Four in half an hour each, four in two and a half; and what expired after days.
        of_source(f"{resolved}_sum", f"0x59 {4 * 1800}x59 {4 * 1800 + 4 * 9000}x{13 * HOUR}", by="retry"),
        of_source(f"{resolved}_count", f"0x59 4x59 8x{13 * HOUR}", by="retry"),
        of_source(f"{resolved}_sum", f"0x59 900000x{14 * HOUR}", by="expired"),
        of_source(f"{resolved}_count", f"0x59 1x{14 * HOUR}", by="expired"),
    ]
    history += [
        of_source(f"{resolved}_bucket", f"0x59 {first}x59 {second}x{13 * HOUR}", by="retry", le=le)
        for le, first, second in (("3600", 4, 4), ("10800", 4, 8), ("+Inf", 4, 8))
    ]
    source = '{source="make-eu"}'
    asked = [
        {"expr": works_again, "eval_time": "15h", "exp_samples": [{"labels": source, "value": 1.5}]},
        {"expr": done_after_all, "eval_time": "15h", "exp_samples": [{"labels": source, "value": 1.5}]},
        # Of eight, seven and a fifth: four within the first hour, 3.2 of the four up to the third.
        {
            "expr": f"round({nine_of_ten}, 1)",
            "eval_time": "15h",
            "exp_samples": [{"labels": source, "value": 3600 + 0.8 * 7200}],
        },
        {"expr": works_again, "eval_time": "30m", "exp_samples": []},
    ]
    judge(tmp_path, [], history, promql_expr_test=asked)


@real("promtool")
def test_mttr_as_a_panel(tmp_path: Path) -> None:
    """The same histories give the panel the same answer, also while the source moved to another replica."""
    overview = panels(board(FOLDER / "automation-overview.json"))
    [target] = next(panel for panel in overview if panel["title"] == "Until it works again")["targets"]
    expr = filled(target["expr"], __range="15h", __range_s="54000", job=".*", instance=".*", source=".*")
    minutes = 16 * HOUR
    failing = "automation_workflow_consecutive_failures"
    moved = series(failing, f"_x119 0x60 1x119 0x{10 * HOUR}", "1")
    history = [
        *up(minutes),
        series(failing, f"0x59 3x59 0x{HOUR} stale", "1"),
        {**moved, "series": moved["series"].replace("host:10870", "other:10870")},
        series(failing, f"0x{minutes}", "2"),
    ]
    answer = {"labels": '{source="make-eu"}', "value": 1.5 * 3600}
    judge(tmp_path, [], history, promql_expr_test=[{"expr": expr, "eval_time": "15h", "exp_samples": [answer]}])


@real("amtool")
@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        ({"label_team": "finance", "severity": "critical"}, "finance"),
        ({"label_team": "payments", "severity": "critical"}, "payments-pager"),
        ({"label_team": "payments", "severity": "warning"}, "payments"),
        ({"label_team": "platform", "severity": "critical"}, "platform"),
        ({"severity": "warning"}, "platform"),
    ],
)
def test_team_routing(labels: dict[str, str], receiver: str, tmp_path: Path) -> None:
    own, alertmanager = fences("Team routing", "yaml")
    made = rules.alert_rules(config(own, tmp_path).slo)
    assert all("label_team" in rule["expr"] for group in made for rule in group["rules"] if "source" in rule["expr"])
    file = tmp_path / "alertmanager.yaml"
    file.write_text(alertmanager)
    assert "SUCCESS" in amtool("check-config", str(file))
    given = [f"{name}={value}" for name, value in labels.items()]
    told = amtool("config", "routes", "test", f"--config.file={file}", "alertname=AutomationWorkflowFailing", *given)
    assert told.split() == [receiver]


# On simulators


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


async def test_night_retries_after_asking(tmp_path: Path) -> None:
    [recipe] = fences("Night retries after asking", "yaml")
    changes = {"retries": yaml.safe_load(recipe)["retries"]}
    async with deployment(
        tmp_path,
        platforms=["make"],
        workflows=0,
        options={"make": {"api_limit": 60_000}},
        changes=changes,
        start=at("2026-11-28T12:00"),
    ) as made:
        make: Any = made.fleet.simulators["make"]
        workflow, other = make.add_workflow(name="Order sync"), make.add_workflow(name="Invoices")
        await made.sweep()
        late = make.add_dead_letter(workflow, error="ModuleTimeoutError", outcomes=("success",))
        wrong = make.add_dead_letter(workflow, error="DataError", outcomes=("success",))
        elsewhere = make.add_dead_letter(other, error="ModuleTimeoutError", outcomes=("success",))
        await made.live(1800, step=300, retry=True)
        waits = [group for group in made.service.operations.groups() if group.awaits_approval]
        assert [(group.workflow, len(group.letters)) for group in waits] == [("Order sync", 1)]
        await made.clock.advance(at("2026-11-28T21:30") - made.clock.now())  # half past ten in Berlin
        await made.live(600, step=300, retry=True)
        assert make.retry_calls[late] == 0  # it is night, and nobody has said yes
        chosen = Selection(policy="order-sync-at-night")
        await made.service.operations.begin(OperationAction.APPROVE, chosen, who="ann", why="", at_once=True)
        await made.live(1200, step=60, retry=True)
        assert (make.retry_calls[late], make.retry_calls[wrong], make.retry_calls[elsewhere]) == (1, 0, 0)

        by_day = make.add_dead_letter(workflow, error="ModuleTimeoutError", outcomes=("success",))
        await made.clock.advance(at("2026-11-29T12:00") - made.clock.now())
        await made.live(1200, step=300, retry=True)
        assert make.retry_calls[by_day] == 0  # the group works again, so nobody is asked; but it is day
        await made.clock.advance(at("2026-11-29T21:00") - made.clock.now())
        await made.live(1200, step=60, retry=True)
        assert make.retry_calls[by_day] == 1


@asynccontextmanager
async def three_zones() -> AsyncIterator[Iterator[str]]:
    async with AsyncExitStack() as stack:
        fleets = [
            await stack.enter_async_context(
                Fleet.open(clock=SystemClock(), seed=seed, platforms=["make"], workflows=seed)
            )
            for seed in (1, 2, 3)
        ]
        yield (fleet.urls["make"] for fleet in fleets)


async def test_three_organizations(tmp_path: Path) -> None:
    [recipe] = fences("Three organizations", "yaml")
    async with three_zones() as urls:
        text = re.sub(r"https://\w+\.make\.com", lambda found: next(urls), recipe)
        text = re.sub(r"organization_id: \d+", "organization_id: 9", text)
        for name in ("retail", "logistics", "finance"):
            (tmp_path / f"make-{name}").write_text("demo-token")
        text = text.replace("/run/secrets/", f"{tmp_path}/")
        made = parse(text + f"server: {{listen: '127.0.0.1:0'}}\nstore: {{url: 'sqlite:///{tmp_path}/x.db'}}\n", {})
        async with app.service(made, clock=SystemClock(), loops=False) as service, ClientSession() as session:
            for poller in service.pollers.values():
                await poller.sweep_once("workflows")
            async with session.get(f"http://127.0.0.1:{service.port}/metrics") as answer:
                scraped = await answer.text()
    for number, name in enumerate(("retail", "logistics", "finance"), start=1):
        assert len(re.findall(rf'^automation_workflow_info{{platform="make",source="{name}",', scraped, re.M)) >= number
        assert f'automation_source_up{{platform="make",source="{name}"}} 1.0' in scraped
        assert re.search(rf'^automation_workflow_labels{{.*source="{name}".*label_organization="{name}"', scraped, re.M)


async def test_excluding_tests(tmp_path: Path) -> None:
    [recipe] = fences("Excluding tests", "yaml")
    section = yaml.safe_load(recipe)["sources"]["make-eu"]
    async with Fleet.open(clock=ManualClock(1_700_000_000.0), platforms=["make"], workflows=0) as fleet:
        make: Any = fleet.simulators["make"]
        kept = make.add_workflow(name="Testing orders")
        for name in ("Test orders", "Orders (copy)"):
            make.add_workflow(name=name)
        source = section | {"url": fleet.urls["make"], "token": "demo-token"}
        text = yaml.safe_dump({"sources": {"make-eu": source}, "store": {"url": f"sqlite:///{tmp_path}/x.db"}})
        made = parse(text + "server: {listen: '127.0.0.1:0'}\n", {})
        async with app.service(made, clock=fleet.clock, loops=False) as service, ClientSession() as session:
            await service.pollers["make-eu"].sweep_once("workflows")
            async with session.get(f"http://127.0.0.1:{service.port}/metrics") as answer:
                scraped = await answer.text()
    assert set(re.findall(r'^automation_\w+{[^}]*workflow_id="([^"]+)"', scraped, re.M)) == {kept}


async def test_secret_rotation(tmp_path: Path) -> None:
    """A token that is written anew is taken over, and of a webhook's two secrets either is good."""
    [recipe] = fences("Secret rotation", "yaml")
    for name, secret in (
        ("make", "the-old-token"),
        ("make-hook", "hook-secret-old"),
        ("make-hook-new", "hook-secret-new"),
    ):
        (tmp_path / name).write_text(secret)
    async with Fleet.open(clock=SystemClock(), platforms=["make"], workflows=1) as fleet:
        text = recipe.replace("/run/secrets/", f"{tmp_path}/").replace("https://eu1.make.com", fleet.urls["make"])
        made = parse(text + f"server: {{listen: '127.0.0.1:0'}}\nstore: {{url: 'sqlite:///{tmp_path}/x.db'}}\n", {})
        async with app.service(made, clock=SystemClock(), loops=False) as service, ClientSession() as session:
            poller, source = service.pollers["make-eu"], service.sources["make-eu"]
            await poller.sweep_once("workflows")
            assert not source.known.workflows
            (tmp_path / "make").write_text("demo-token\n")
            await poller.sweep_once("workflows")
            assert source.known.workflows

            async def posted(secret: str) -> int:
                event = {"event": "run.started", "workflow_id": "1", "run_id": secret}
                headers = {"X-Webhook-Token": secret}
                url = f"http://127.0.0.1:{service.port}/webhooks/make-eu"
                async with session.post(url, json=event, headers=headers) as answer:
                    return answer.status

            assert [await posted(secret) for secret in ("hook-secret-old", "hook-secret-new")] == [202, 202]
            assert await posted("hook-secret-other") == 401


# Over OTLP


@pytest.mark.parametrize("recipe", fences("OTLP backends", "yaml"))
async def test_otlp_backends(recipe: str, tmp_path: Path) -> None:
    """What is sent to each address: with its header, to the path that OTLP has for traces."""
    to = destination(config(recipe, tmp_path).traces, {})
    assert to.url.startswith(yaml.safe_load(recipe)["traces"]["endpoint"])
    assert to.url.endswith("/v1/traces")
    assert not to.grpc
    async with otlp_receiver() as receiver:
        traces = {**yaml.safe_load(recipe)["traces"], "endpoint": receiver.url}
        variables = dict.fromkeys(re.findall(r"\$\{(\w+)", recipe), "0123456789abcdef")
        written = re.sub(r"\$\{\w+\}", "0123456789abcdef", yaml.safe_dump(traces))
        assert variables or "${" not in recipe
        async with deployment(
            tmp_path, platforms=["cognaize"], workflows=2, changes={"traces": yaml.safe_load(written)}
        ) as made:
            await made.live(3600, step=300)
            assert made.service.traces is not None
            await made.service.traces.export_once(made.clock.now())
        assert receiver.spans
        for name, value in to.headers.items():
            assert receiver.headers[name] == value


@real("prometheus")
async def test_metrics_over_otlp(tmp_path: Path) -> None:
    """What a Collector would scrape, by the Prometheus whose code it has; and that its pipeline names what there is."""
    [recipe] = fences("Metrics over OTLP", "yaml")
    collector = yaml.safe_load(recipe)
    assert len(recipe.splitlines()) <= 15
    for pipeline in collector["service"]["pipelines"].values():
        assert set(pipeline["receivers"]) <= set(collector["receivers"])
        assert set(pipeline["exporters"]) <= set(collector["exporters"])

    async with deployment(tmp_path, platforms=["make"], workflows=2) as made:
        await made.sweep()
        scraping = yaml.safe_dump(collector["receivers"]["prometheus"]["config"])
        scraping = scraping.replace("127.0.0.1:10870", made.url.removeprefix("http://")).replace("30s", "1s")
        (tmp_path / "prometheus.yaml").write_text(scraping)
        url = f"http://127.0.0.1:{free_port()}"
        command = ["prometheus", f"--config.file={tmp_path}/prometheus.yaml", f"--storage.tsdb.path={tmp_path}/data"]
        command += [f"--web.listen-address={url.removeprefix('http://')}"]
        async with running(command, log=tmp_path / "log", ready_url=f"{url}/-/ready"), ClientSession() as session:

            async def jobs() -> list[str]:
                query = {"query": "automation_source_up == 1"}
                async with session.get(f"{url}/api/v1/query", params=query) as answer:
                    return [one["metric"]["job"] for one in (await answer.json())["data"]["result"]]

            assert await eventually(jobs) == ["automation-exporter"]
