"""The whole service on a PostgreSQL, from the first sweep to a copy of its ledger: what SQLite does it does there."""

import asyncio
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from exporter.simulator import SIMULATORS
from exporter.simulator.retries import RetryPlan
from tests.cli.test_commands import Process, command, get
from tests.cli.test_retries import make, say, swept, until
from tests.cli.test_store import Sender
from tests.e2e.deployment import deployment
from tests.e2e.test_retries import retrying
from tests.e2e.test_truth import ROOMY, assert_true
from tests.postgres import Postgres, look
from tests.servers import PATIENCE_SECONDS, eventually, real

__all__ = ["make"]
pytestmark = real("postgres")
PASSWORD = "s3cret of the store"


@pytest.mark.parametrize("platform", ["make", pytest.param("n8n", marks=pytest.mark.slow)])
async def test_a_quarter_of_an_hour_of_polls_and_webhooks_counts_every_run_exactly_once(
    platform: str, tmp_path: Path, server: Postgres
) -> None:
    changes = {"store": {"url": server.make()}}
    disturbed = {"webhook_lost": 0.3, "webhook_duplicated": 0.2, "webhook_shuffled": 1.0}
    async with deployment(
        tmp_path, platforms=[platform], options=ROOMY, faults=disturbed, workflows=8, changes=changes
    ) as made:
        await made.sweep()
        await made.live(450, step=15, deliver=True)
        await made.restart()
        await made.live(450, step=15, deliver=True)
        await assert_true(made)
        assert sum(made.truth(platform).values()) > 10


async def test_a_dead_letter_is_retried_and_a_restart_in_the_middle_repeats_nothing(
    tmp_path: Path, server: Postgres
) -> None:
    changes = {**retrying(), "store": {"url": server.make()}}
    async with deployment(
        tmp_path, platforms=["make"], workflows=0, options={"make": {"api_limit": 60_000}}, changes=changes
    ) as made:
        simulator: Any = made.fleet.simulators["make"]
        workflow = simulator.add_workflow(name="Order sync")
        await made.sweep()
        simulator.plan_retries(RetryPlan(outcome="success", fate="cut", delay=120.0))
        letter = simulator.add_dead_letter(workflow)
        await made.live(90, step=15, retry=True)
        await made.restart()
        await made.live(900, step=30, retry=True)
        [retry] = made.service.book.everything()
        assert retry.outcome == "succeeded", retry.detail
        assert (simulator.retry_calls[letter], simulator.retry_executions[letter]) == (1, 1)


def written(folder: Path, url: str, store: str, **retries: Any) -> Path:
    (folder / "password").write_text(PASSWORD)
    config = {
        "server": {"listen": "127.0.0.1:0"},
        "store": {"url": store, "password_file": str(folder / "password")},
        "sources": {
            "q": {
                **SIMULATORS["make"].section,
                "url": url,
                "poll": {"interval": "1s", "budget_share": 1.0},
                "webhook": {"scheme": "bearer", "token": "hook-token"},
            }
        },
        "retries": {
            "mode": "enforce",
            "policies": [
                {
                    "name": "transient",
                    "match": {"error.class": ["network", "timeout"]},
                    "action": "retry",
                    "approve": "each",
                    "retry": {"retries": 3, "backoff": {"first": "1s", "factor": 1}, "give_up_after": "30d"},
                }
            ],
        },
    }
    config["retries"] |= retries  # type: ignore[operator]
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


async def totals(service: Process) -> list[str]:
    port = await service.found(r"msg=running .*port=(\d+)")
    text = (await get(f"http://127.0.0.1:{port}/metrics"))[1]
    return sorted(
        line for line in text.splitlines() if re.match(r"automation_(runs|retries|dead_letters\w*)_total\{", line)
    )


async def test_from_the_first_run_to_a_copy(make: tuple[Any, str], tmp_path: Path, server: Postgres) -> None:
    simulator, url = make
    store = server.secured(PASSWORD)
    config = written(tmp_path, url, store)
    workflow = simulator.add_workflow(name="Order sync")
    code, output = await say(config, "retries", "pause")
    assert code == 1
    assert "is empty: run the service once" in output  # nobody would ever hear it
    code, output = await say(config, "check", "--online")
    assert code == 0, output
    assert "no ledger in it yet" in output

    async with command(tmp_path, "run", "--config", str(config)) as service:
        sender = Sender(await service.found(r"msg=running .*port=(\d+)"))
        assert await eventually(sender.is_up)
        assert [await sender.send() for _ in range(5)] == [202] * 5
        code, output = await say(config, "check", "--online")
        assert code in (0, 1), output  # the port is the service's
        assert "with a ledger" in output

        letter = simulator.add_dead_letter(workflow)
        await until(config, ("policies", "explain"), "waits for approval")
        code, output = await say(config, "retries", "pause", "--why", "maintenance")
        assert (code, "paused: all sources" in output) == (0, True), output
        await until(config, ("policies", "explain"), "paused: q")

        async def shows_the_pause() -> bool:  # the service itself, and not the command
            shown = (await get(f"{sender.url}/metrics"))[1]
            return re.search(r'automation_retry_paused\{.*source="q".*\} 1', shown) is not None

        await eventually(shows_the_pause)
        code, output = await say(config, "retries", "approve", f"q/{letter}", "--now")
        assert code == 0, output
        operation = re.search(r"operation (\w{16})", output)
        assert operation is not None
        await swept(simulator)
        assert simulator.retry_calls[letter] == 0  # paused
        simulator.plan_retries(RetryPlan(outcome="success"))
        assert (await say(config, "retries", "resume"))[0] == 0
        await until(config, ("retries", "list"), "succeeded")
        await until(config, ("retries", "operations", operation[1]), "1 of 1 done (1 succeeded)")
        assert simulator.retry_calls[letter] == simulator.retry_executions[letter] == 1
        assert (await say(config, "retries", "audit", "--verify"))[0] == 0
        assert PASSWORD not in service.output
        before = await totals(service)
        service.process.send_signal(signal.SIGKILL)
        await service.process.wait()

    async with command(tmp_path, "run", "--config", str(config)) as service:

        async def goes_on() -> bool:  # once the one before, which could not say goodbye, counts as gone
            return bool(await totals(service))

        assert await eventually(goes_on)
        assert await totals(service) == before
        again = Sender(await service.found(r"msg=running .*port=(\d+)"))
        again.sent = 100
        assert await eventually(again.is_up)
        assert await again.send() == 202
        before = await totals(service)
        assert await service.stop() == 0
        assert "Traceback" not in service.output
    owner = re.sub(r"//\w+@", "//postgres@", store)
    found = {run for (run,) in look(owner, "SELECT run_id FROM runs WHERE run_id LIKE 'sent%'")}
    assert found == sender.taken | again.taken

    copy = f"sqlite:///{tmp_path}/copy.db"
    async with command(tmp_path, "store", "copy", "--from", store, "--to", copy, PGPASSWORD=PASSWORD) as copying:
        assert await asyncio.wait_for(copying.process.wait(), PATIENCE_SECONDS) == 0, copying.output
    changed = yaml.safe_load(config.read_text())
    changed["store"] = {"url": copy}
    config.write_text(yaml.safe_dump(changed))
    async with command(tmp_path, "run", "--config", str(config)) as service:
        assert await totals(service) == before
        assert await service.stop() == 0


@pytest.mark.parametrize(
    "through", ["straight", pytest.param("pgbouncer", marks=[real("pgbouncer"), pytest.mark.slow])]
)
async def test_a_word_about_a_retry_in_doubt_is_heard_by_the_service(
    through: str, make: tuple[Any, str], tmp_path: Path, server: Postgres, request: pytest.FixtureRequest
) -> None:
    """Also through a proxy, which keeps from it that there is news."""
    simulator, url = make
    store = server.secured(PASSWORD)
    if through == "pgbouncer":
        store = request.getfixturevalue("pooled")(server.make())
    config = written(tmp_path, url, store)
    workflow = simulator.add_workflow(name="Order sync")
    async with command(tmp_path, "run", "--config", str(config)) as service:
        await service.found("(msg=running)")
        await until(config, ("policies", "explain"), "0 open dead letters")
        simulator.plan_retries(RetryPlan(outcome="success", fate="cut"))
        letter = simulator.add_dead_letter(workflow)
        await until(config, ("policies", "explain"), "waits for approval")
        assert (await say(config, "retries", "approve", f"q/{letter}", "--now"))[0] == 0
        await until(config, ("retries", "list"), "in_doubt")
        code, output = await say(config, "retries", "release", f"q/{letter}")
        assert code == 0, output
        await until(config, ("retries", "list"), "succeeded")
        assert simulator.retry_calls[letter] == 1
        assert await service.stop() == 0


async def test_a_repair_is_planned_by_the_command_and_done_by_the_service(
    make: tuple[Any, str], tmp_path: Path, server: Postgres
) -> None:
    simulator, url = make
    config = written(tmp_path, url, server.secured(PASSWORD))
    granting = yaml.safe_load(config.read_text())
    granting["sources"]["q"]["grant"] = ["discard"]
    config.write_text(yaml.safe_dump(granting))
    workflow = simulator.add_workflow(name="Order sync")
    async with command(tmp_path, "run", "--config", str(config)) as service:
        await service.found("(msg=running)")
        await until(config, ("policies", "explain"), "0 open dead letters")
        letter = simulator.add_dead_letter(workflow)
        await until(config, ("policies", "explain"), "waits for approval")
        code, output = await say(config, "retries", "discard", f"q/{letter}", "--dry-run")
        assert code == 0, output
        code, output = await say(config, "retries", "discard", f"q/{letter}", "--now", "--why", "a duplicate")
        assert code == 0, output
        operation = re.search(r"operation (\w{16})", output)
        assert operation is not None, output
        await until(config, ("retries", "operations", operation[1]), "1 of 1 done")
        await until(config, ("policies", "explain"), "0 open dead letters")
        assert "Traceback" not in service.output
        assert await service.stop() == 0
