"""The commands about retries, as a user types them: beside a running service, and without one."""

import asyncio
import contextlib
import json
import re
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from exporter.clock import SystemClock
from exporter.simulator import SIMULATORS
from exporter.simulator.fleet import Fleet
from exporter.simulator.retries import RetryPlan
from tests.cli.test_commands import Process, command, forked_command
from tests.servers import PATIENCE_SECONDS, eventually, real

POLICIES: list[dict[str, Any]] = [
    {
        "name": "transient",
        "match": {"error.class": ["network", "timeout"]},
        "action": "retry",
        "approve": "each",
        "retry": {"retries": 3, "backoff": {"first": "1s", "factor": 1}, "give_up_after": "30d"},
    },
    {"name": "rest", "action": "escalate"},
]


@pytest.fixture
async def make() -> AsyncIterator[tuple[Any, str]]:
    options = {"make": {"api_limit": 60_000, "retry_delay": 0.1}}
    async with Fleet.open(clock=SystemClock(), platforms=["make"], workflows=0, options=options) as fleet:
        yield fleet.simulators["make"], fleet.urls["make"]


def written(folder: Path, url: str, **retries: Any) -> Path:
    section = {**SIMULATORS["make"].section, "url": url, "poll": {"interval": "1s", "budget_share": 1.0}}
    config = {
        "server": {"listen": "127.0.0.1:0"},
        "store": {"url": f"sqlite:///{folder / 'cli.db'}"},
        "sources": {"make": section},
        "retries": {"mode": "approve", "policies": POLICIES, **retries},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


async def say(config: Path, *words: str) -> tuple[int, str]:
    """Run one command to its end; its exit code and all that it printed."""
    async with forked_command(config.parent, *words, "--config", str(config)) as process:
        return await asyncio.wait_for(process.process.wait(), PATIENCE_SECONDS), process.output


async def until(config: Path, words: tuple[str, ...], text: str) -> str:
    """Say it again until the answer holds a text."""

    async def asked() -> str | None:
        code, output = await say(config, *words)
        return output if code == 0 and text in output else None

    return await eventually(asked, every=0.2) or ""


async def swept(simulator: Any, times: int = 2) -> None:
    """Wait until the service has read what there is so many times more."""
    before = max(simulator.requests.values())

    async def often() -> bool:
        return bool(max(simulator.requests.values()) >= before + times)

    await eventually(often)


async def test_a_dead_letter_from_the_first_question_to_the_last(make: tuple[Any, str], tmp_path: Path) -> None:
    simulator, url = make
    config = written(tmp_path, url)
    workflow = simulator.add_workflow(name="Order sync")
    code, output = await say(config, "policies", "explain")
    missing = f"there is no database {tmp_path / 'cli.db'} yet: run the service once"
    assert (code, output) == (1, f"automation-exporter: {missing}\n")
    async with command(tmp_path, "run", "--config", str(config)) as service:
        await service.found("(msg=running)")
        await until(config, ("policies", "explain"), "0 open dead letters")
        letter = simulator.add_dead_letter(workflow)
        summed = await until(config, ("policies", "explain"), "waits for approval")
        [line] = [line for line in summed.splitlines() if "Order sync" in line]
        assert re.fullmatch(
            r"     1  wait: mode \(policy transient, waits for approval\)  group [0-9a-f]{10}"
            rf"  make/{workflow}  Order sync  network  since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC  .+",
            line,
        )
        assert "refuses" not in summed
        explained = await until(config, ("policies", "explain", f"make/{letter}"), "passes   backoff")
        assert explained == (await say(config, "policies", "explain", "--all"))[1]
        assert f"make/{letter}  Order sync  network ConnectionError" in explained
        assert "policy transient: matches, retry" in explained
        assert "policy rest: matches, escalate" in explained
        assert "refuses  mode: waits for approval" in explained
        assert "1 open dead letters, 2 policies, mode approve" in explained

        control = tmp_path / "cli.db.control"
        assert stat.S_IMODE(control.stat().st_mode) == 0o600
        code, output = await say(config, "retries", "pause", "--why", "maintenance")
        assert code == 0, output
        assert "paused: all sources" in output
        await until(config, ("policies", "explain"), "paused: make")
        code, output = await say(config, "retries", "approve", f"make/{letter}")
        assert code == 0, output
        await swept(simulator)
        assert simulator.retry_calls[letter] == 0
        simulator.plan_retries(RetryPlan(outcome="success", fate="cut"))
        assert (await say(config, "retries", "resume"))[0] == 0
        listed = await until(config, ("retries", "list"), "in_doubt")
        retry_id = listed.split()[3]
        shown = await until(config, ("retries", "show", retry_id), "intent")
        assert "approved_by" in shown
        named = listed.split()[5]
        assert named == f"make/{letter}"  # what `list` prints, `show` takes
        assert "approved_by" in await until(config, ("retries", "show", named), "intent")
        assert json.loads(control.read_text())["token"] not in shown
        assert simulator.retry_calls[letter] == 1
        code, output = await say(config, "retries", "release", f"make/{letter}")
        assert code == 0, output
        assert re.search(r"^settles: \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC$", output, re.M), output
        await until(config, ("retries", "list"), "succeeded")  # what the platform shows counts for more than a word
        for words in (("retries", "hold", "make/nobody"), ("retries", "pause", "--source", "nobody")):
            code, output = await say(config, *words)
            assert code == 1
            assert "nobody" in output
            assert output.count("\n") == 1
        assert await service.stop() == 0
    assert not control.exists()


async def test_a_pause_said_while_nothing_runs_holds_for_the_next_service(
    make: tuple[Any, str], tmp_path: Path
) -> None:
    simulator, url = make
    policies = [{**POLICIES[0], "approve": "none"}]
    config = written(tmp_path, url, mode="enforce", policies=policies)
    workflow = simulator.add_workflow(name="Order sync")

    async def started(service: Process) -> None:
        await service.found("(msg=running)")
        await until(config, ("policies", "explain"), "open dead letters")

    async with forked_command(tmp_path, "run", "--config", str(config)) as service:
        await started(service)
    assert (await say(config, "retries", "pause", "--for", "1h"))[0] == 0
    letter = simulator.add_dead_letter(workflow)
    async with forked_command(tmp_path, "run", "--config", str(config)) as service:
        await started(service)
        await until(config, ("policies", "explain"), "wait: paused")
        await swept(simulator)
        assert simulator.retry_calls[letter] == 0
        assert (await say(config, "retries", "resume"))[0] == 0

        async def called() -> bool:
            return bool(simulator.retry_calls[letter])

        assert await eventually(called)


async def test_what_is_not_meant_is_said_in_one_line(tmp_path: Path) -> None:
    config = written(tmp_path, "http://127.0.0.1:9")
    for words, line in (
        (
            ("retries", "approve"),
            "name what to approve: SOURCE/ID …, or --group G, --policy P, --workflow SOURCE/ID or --between FROM TO",
        ),
        (("retries", "hold", "nothing"), "nothing: write SOURCE/ID, as `policies explain` prints it"),
    ):
        assert await say(config, *words) == (1, f"automation-exporter: {line}\n")


@real("prometheus-alertmanager")
@real("prometheus")
async def test_the_demo_brings_its_prometheus_and_takes_it_away_again(tmp_path: Path) -> None:
    async with command(tmp_path, "demo", "--port", "0", "--with-prometheus") as demo:
        url = await demo.found(r"prometheus +(http://\S+)")
        await demo.found(r"alertmanager +(http://\S+)")

        async def rules() -> bool:
            with contextlib.suppress(aiohttp.ClientError):
                async with aiohttp.ClientSession() as session, session.get(f"{url}/api/v1/rules") as response:
                    return "AutomationWorkflowFailing" in await response.text()
            return False

        assert await eventually(rules)
        assert await demo.stop() == 0
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.get(f"{url}/-/ready")
