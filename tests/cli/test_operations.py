"""The commands of groups and operations: on the ledger alone, beside a running service, and against a platform."""

import asyncio
import json
import re
import shlex
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from exporter import app
from exporter.cli import main
from exporter.cli.parser import OPERATION, OPERATIONS
from exporter.clock import SystemClock
from exporter.config import load
from exporter.model import DeadLetter, Error, ErrorClass, Observation, Via, Workflow
from exporter.model.ledger import Batch, FoldRules
from exporter.model.operations import OperationAction
from exporter.model.retries import Outcome, RetryState
from exporter.model.subject import error_fingerprint
from exporter.retries.control import Control
from exporter.simulator.retries import RetryPlan
from exporter.store import retries as script
from exporter.store.ledger import Ledger, open_engine
from exporter.store.script import insert
from tests.cli.test_commands import command
from tests.cli.test_retries import make, say, until, written
from tests.retries.made import retry

__all__ = ["make"]

CONFIG = """
server: {{listen: "127.0.0.1:0"}}
store: {{url: "sqlite:///{folder}/x.db"}}
sources:
  eu: {{platform: make, url: "http://127.0.0.1:9", token: t, organization_id: 9}}
  us: {{platform: make, url: "http://127.0.0.1:9", token: t, organization_id: 10}}
retries:
  mode: {mode}
  policies:
    - {{name: data, match: {{error.class: [validation]}}, action: escalate}}
    - {{name: transient, match: {{error.class: [network]}}, action: retry, retry: {{give_up_after: 30d}}}}
"""
Typed = Callable[..., tuple[int, list[str]]]
AGE = 7200.0
MOMENT = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"


async def add(
    folder: Path, source: str, workflow_id: str, error: Error, *ids: str, age: float = AGE, name: str | None = None
) -> None:
    now = SystemClock().now()
    ledger = Ledger(await open_engine(f"sqlite:///{folder}/x.db"), {source: FoldRules()})
    await ledger.load()
    letters = [
        DeadLetter(id=id, workflow_id=workflow_id, run_id=f"r{id}", opened_at=now - age + number, error=error)
        for number, id in enumerate(ids)
    ]
    seen: list[Observation] = [Workflow(id=workflow_id, at=now, name=name or f"Flow {workflow_id}"), *letters]
    await ledger.ingest(Batch(source=source, observations=seen, via=Via.POLL, now=now, started_at=now - 9000))
    await ledger.close()


def network(message: str) -> Error:
    return Error(error_class=ErrorClass.NETWORK, type="ConnectionError", message=message)


async def filled(folder: Path) -> None:
    await add(folder, "eu", "w1", network("connect ETIMEDOUT 10.0.0.1:443"), "1", "2", "3")
    await add(folder, "eu", "w1", network("connect ECONNRESET"), "4", age=600.0)
    await add(folder, "eu", "w2", Error(error_class=ErrorClass.VALIDATION, message="no such field"), "5", "6")
    await add(folder, "us", "w1", Error(error_class=ErrorClass.KILLED, type="Killed"), "7")


def written_config(folder: Path, mode: str = "approve") -> Path:
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(folder=folder, mode=mode))
    return path


@pytest.fixture
def typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Types a command where no service runs; its exit code and its lines."""
    written_config(tmp_path)
    asyncio.run(filled(tmp_path))

    def said(*words: str) -> tuple[int, list[str]]:
        code = main(["retries", *words, "--config", str(tmp_path / "config.yaml")])
        captured = capsys.readouterr()
        return code, (captured.out + captured.err).splitlines()

    return said


def as_json(answer: tuple[int, list[str]]) -> Any:
    code, lines = answer
    assert code == 0, lines
    return json.loads("\n".join(lines))


def group_of(typed: Typed, example: str) -> str:
    [group] = [group["id"] for group in as_json(typed("groups", "--json")) if group["example"] == example]
    return str(group)


def operation_in(lines: list[str]) -> str:
    [found] = re.findall(r"^operation ([0-9a-f]{16}):", "\n".join(lines), re.M)
    return str(found)


# Groups


def test_groups_say_what_a_person_needs_at_three_in_the_morning(typed: Typed) -> None:
    code, lines = typed("groups")
    assert (code, lines[0]) == (0, "7 open dead letters, 4 groups, mode approve")
    group = group_of(typed, "eu/1")
    assert lines[2] == f"{group}  3 x network  eu/w1  Flow w1  connect ETIMEDOUT 10.0.0.1:443"
    assert re.fullmatch(rf"    oldest {MOMENT}, newest {MOMENT}; none opened in the last hour", lines[3])
    assert lines[4:9] == [
        "    waits for approval (policy transient)",
        "    not retried yet",
        f"    automation-exporter retries approve --group {group}",
        f"    automation-exporter retries retry --group {group}",
        f"    automation-exporter retries hold --group {group}",
    ]
    text = "\n".join(lines)
    assert re.search(rf"newest {MOMENT}; 1 opened in the last hour", text)
    assert "needs a person: its policy says so (policy data)" in text
    assert "not retried: no policy covers it (no policy)" in text
    assert "wait: " not in text


def test_groups_as_json_are_those_of_the_interface(typed: Typed) -> None:
    found = as_json(typed("groups", "--json"))
    assert [(one["count"], one["source"], one["workflow_id"], one["error_class"]) for one in found] == [
        (3, "eu", "w1", "network"),
        (2, "eu", "w2", "validation"),
        (1, "eu", "w1", "network"),
        (1, "us", "w1", "killed"),
    ]
    assert found[0]["awaits_approval"] == 3
    assert found[0]["words"] == "waits for approval"
    assert found[0]["retries"]["words"] == "not retried yet"


def test_a_group_of_which_some_are_decided_otherwise_says_so(typed: Typed) -> None:
    assert typed("hold", "eu/2")[0] == 0
    text = "\n".join(typed("groups")[1])
    assert "    waits for approval (policy transient); besides: 1 x held" in text


def test_what_a_group_can_do_can_be_typed(typed: Typed) -> None:
    lines = [line.strip() for line in typed("groups")[1]]
    commands = [shlex.split(line)[2:] for line in lines if line.startswith("automation-exporter retries ")]
    assert len(commands) == 10
    for words in commands:
        code, said = typed(*words, "--dry-run")
        assert (code, said[0].startswith("dry run, nothing is done: ")) == (0, True), said


# One operation


def test_a_group_is_approved_with_time_to_take_it_back(typed: Typed) -> None:
    group = group_of(typed, "eu/1")
    code, lines = typed("approve", "--group", group, "--why", "the ERP is back")
    identity = operation_in(lines)
    assert (code, lines[0]) == (0, f"operation {identity}: approve covers 3 dead letters: eu/1, eu/2, eu/3")
    assert re.fullmatch(rf"takes effect in (9|10) s, at {MOMENT}", lines[1])
    assert lines[2:4] == [
        f"to take it back, or stop the rest: automation-exporter retries cancel {identity}",
        f"progress: automation-exporter retries operations {identity}",
    ]
    assert re.fullmatch(rf"ends by itself at {MOMENT}", lines[4])
    code, lines = typed("operations", identity)
    assert lines[0].startswith(f"operation {identity}: approve of group {group}, by ")
    assert lines[0].endswith(": the ERP is back")
    assert lines[1] == "    0 of 3 done (3 waiting)"
    assert lines[-1] == "     3  waiting  (such as eu/1)"
    assert any("may still take it back" in line for line in typed("groups")[1])
    assert typed("cancel", identity) == (0, [f"operation: {identity}", "cancelled: 3"])
    assert "cancelled by" in "\n".join(typed("operations", identity)[1])
    code, lines = typed("cancel", identity)
    assert (code, lines) == (1, [f"automation-exporter: operation {identity} has nothing left to stop"])
    assert group_of(typed, "eu/1") == group
    assert "    waits for approval (policy transient)" in typed("groups")[1]


def test_now_means_now(typed: Typed) -> None:
    lines = typed("approve", "--policy", "transient", "--now", "--stop-after", "2")[1]
    assert lines[0] == f"operation {operation_in(lines)}: approve covers 4 dead letters"
    assert lines[1].startswith("takes effect at once, at ")
    assert "    stops by itself after 2 failures" in typed("operations", operation_in(lines))[1]


@pytest.mark.parametrize("now", [[], ["--now"]], ids=["later", "now"])
@pytest.mark.parametrize("action", ["approve", "retry", "hold", "quarantine"])
def test_a_dry_run_says_the_same_and_does_nothing(typed: Typed, action: str, now: list[str]) -> None:
    words = [action, "--workflow", "eu/w1", *(now if action in ("approve", "retry") else [])]
    code, lines = typed(*words, "--dry-run")
    assert (code, lines[0]) == (0, f"dry run, nothing is done: {action} would cover 4 dead letters")
    if action in ("approve", "retry"):
        assert lines[1] == f"would take effect {'at once' if now else '10 s after it is said'}"
    assert typed("operations") == (0, [])
    dry = as_json(typed(*words, "--dry-run", "--json"))
    done = as_json(typed(*words, "--json"))
    assert (dry["operation"], dry["dry_run"]) == (None, True)
    assert {name: value for name, value in dry.items() if name in ("count", "dead_letters", "refused")} == {
        name: value for name, value in done.items() if name in ("count", "dead_letters", "refused")
    }


def test_what_is_refused_is_told_by_reason(tmp_path: Path, typed: Typed) -> None:
    asyncio.run(add(tmp_path, "eu", "w1", network("connect ETIMEDOUT 10.0.0.1:443"), *(f"n{n}" for n in range(200))))
    group = group_of(typed, "eu/1")
    assert typed("hold", *(f"eu/n{n}" for n in range(190)), "--why", "audit")[0] == 0
    code, lines = typed("approve", "--workflow", "eu/w1", "eu/1")
    assert (code, lines) == (1, ["automation-exporter: name dead letters or what they have in common, not both"])
    code, lines = typed("retry", "--group", group)
    assert code == 0
    assert lines[0].endswith("retry covers 13 dead letters")
    assert lines[1] == "refused: 190"
    assert re.fullmatch(r"   190  hold by \S+: audit; release it first  \(such as eu/n0\)", lines[2])
    assert len(lines) < 10
    [operation] = as_json(typed("operations", "--json"))[:1]
    assert operation["outcomes"] == {"refused": 190, "waiting": 13}
    lines = typed("operations", operation["id"])[1]
    assert len(lines) < 10


def test_a_time_range_goes_by_when_it_failed(typed: Typed) -> None:
    code, lines = typed("hold", "--between", "30m", "0s")
    assert (code, lines[0].split(": ", 1)[1]) == (0, "hold covers 1 dead letter: eu/4")
    code, lines = typed("hold", "--between", "3h", "1h", "--workflow", "eu/w1", "--dry-run")
    assert (code, lines) == (0, ["dry run, nothing is done: hold would cover 3 dead letters: eu/1, eu/2, eu/3"])
    lines = typed("operations")[1]
    assert re.search(rf"hold  1 of 1 done \(1 done\)  between {MOMENT} and {MOMENT}  by ", lines[0])


def test_a_quarantine_is_lifted_in_bulk(typed: Typed) -> None:
    group = group_of(typed, "eu/1")
    assert typed("quarantine", "--group", group)[0] == 0
    text = "\n".join(typed("groups")[1])
    assert "in quarantine by " in text
    assert f"automation-exporter retries release --group {group}" in text
    dry = typed("release", "--group", group, "--dry-run")
    assert dry == (0, ["dry run, nothing is done: release would cover 3 dead letters: eu/1, eu/2, eu/3"])
    code, lines = typed("release", "--workflow", "eu/w1")
    assert code == 0
    assert lines[1:3] == ["refused: 1", "     1  nothing holds it  (eu/4)"]
    assert "released: 3" in lines
    assert "    waits for approval (policy transient)" in typed("groups")[1]


def test_new_ones_are_said(tmp_path: Path, typed: Typed) -> None:
    group = group_of(typed, "eu/1")
    identity = operation_in(typed("approve", "--group", group)[1])
    asyncio.run(add(tmp_path, "eu", "w1", network("connect ETIMEDOUT 10.0.0.1:443"), "8", "9", age=-1.0))
    asyncio.run(add(tmp_path, "eu", "w1", network("connect ECONNRESET"), "10", age=-1.0))
    said = "0 of 3 done (3 waiting); 2 new ones failed meanwhile, which it is not about"
    assert f"    {said}" in typed("operations", identity)[1]
    assert as_json(typed("operations", identity, "--json"))["new_since"] == 2
    assert said.partition("; ")[2] in typed("operations")[1][0]


# What cannot come true


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["approve", "eu/5"], r"eu/5: its policy data says escalate; ask for a retry of it instead"),
        (["approve", "us/7"], r"us/7: no policy owns it; ask for a retry of it instead"),
        (["approve", "eu/5", "eu/6"], r"it makes sense for none of 2 dead letters: 2 such as eu/5: its policy data .*"),
        (["approve", "eu/5", "us/7"], r"it .* none of 2 dead letters: 1 such as eu/5: .*; 1 for other reasons"),
        (["approve", "--workflow", "eu/w2"], r"nothing waits for approval of workflow eu/w2"),
        (["release", "eu/1"], r"eu/1: nothing holds it"),
        (["release", "eu/none"], r"eu/none: eu has no open dead letter none"),
        (["release", "eu/1", "eu/2"], r"it .* none of 2 dead letters: 2 such as eu/1: nothing holds it"),
        (["release", "--workflow", "eu/w1", "--dry-run"], r"it .* none of 4 dead letters: 4 .*: nothing holds it"),
        (["hold", "eu/none"], r"eu has no open dead letter none"),
        (["hold", "nowhere/1"], r"there is no source nowhere"),
        (["hold", "--group", "0123456789"], r"no open dead letter fits group 0123456789"),
        (["hold", "--policy", "typo"], r"there is no policy typo; one of data, transient"),
        (["hold", "--workflow", "nowhere/w1"], r"there is no source nowhere"),
        (["hold", "--workflow", "w1"], r"w1: write SOURCE/ID.*"),
        (["hold", "--workflow", "eu/w9"], r"no open dead letter fits workflow eu/w9"),
        (["hold", "--between", "3d", "2d"], r"no open dead letter fits between .*"),
        (["hold", "--between", "1d", "2d"], r"--between: the second time is before the first"),
        (["hold", "--between", "yesterday", "0s"], r"--between yesterday: write a time such as .*"),
        (["discard", "eu/1"], r"discard asks the platform: start the service, and say it again"),
        (["cancel", "0a1b2c3d4e5f6071"], r"there is no operation 0a1b2c3d4e5f6071"),
        (["operations", "0a1b2c3d4e5f6071"], r"there is no operation 0a1b2c3d4e5f6071"),
        (["try", "eu/1"], r"try only looks: add --dry-run; to have it retried: retries retry eu/1"),
        (["try", "eu/none", "--dry-run"], r"eu has no open dead letter none"),
        (["try", "nowhere/1", "--dry-run"], r"there is no source nowhere"),
    ],
    ids=" ".join,
)
def test_what_cannot_come_true_is_one_line(typed: Typed, words: list[str], line: str) -> None:
    code, lines = typed(*words)
    assert code == 1
    assert len(lines) == 1
    assert re.fullmatch(rf"automation-exporter: {line}", lines[0]), lines[0]
    assert typed("operations") == (0, [])


@pytest.mark.parametrize("mode", ["off", "shadow"])
@pytest.mark.parametrize("action", ["approve", "retry"])
def test_no_mode_that_sends_nothing_takes_an_approval(typed: Typed, tmp_path: Path, mode: str, action: str) -> None:
    written_config(tmp_path, mode)
    code, lines = typed(action, "eu/1")
    assert (code, lines) == (1, [f"automation-exporter: eu/1: the mode is {mode}; nothing is sent in it"])


def test_what_ends_before_it_could_come_true_is_refused(typed: Typed, tmp_path: Path) -> None:
    assert typed("pause", "--source", "eu", "--for", "3d")[0] == 0
    for action in ("approve", "retry"):
        code, lines = typed(action, "eu/1", "eu/2")
        assert (code, len(lines)) == (1, 1)
        assert re.search(r": 2 such as eu/1: paused by \S+ for longer than that would hold; resume first$", lines[0])
    assert typed("hold", "eu/1")[0] == 0
    assert typed("release", "eu/1")[0] == 0
    assert typed("resume", "--source", "eu")[0] == 0
    path = tmp_path / "config.yaml"
    day = f"{datetime.now(UTC) + timedelta(days=3):%a}".lower()
    path.write_text(
        path.read_text().replace("action: retry,", f'action: retry, when: {{allow: ["{day} 03:00-04:00"]}},')
    )
    code, lines = typed("approve", "--group", group_of(typed, "eu/1"))
    assert (code, "the hours of its policy never open, or after that would have ended" in lines[0]) == (1, True)
    code, lines = typed("retry", "eu/1")
    assert (code, lines[1].startswith("takes effect at once, at ")) == (0, True), lines


@pytest.mark.parametrize(
    "words",
    [["hold", "eu/1", "--for", "0s"], ["approve", "eu/1", "--stop-after", "0"], ["approve", "--between", "1h"]],
    ids=" ".join,
)
def test_what_means_nothing_is_not_taken(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["retries", *words])
    assert f"error: argument {words[-2] if words[-1] != '1h' else '--between'}" in capsys.readouterr().err


def test_what_can_be_typed_is_a_row_of_a_table() -> None:
    assert {one.name for one in OPERATIONS} <= {action.value for action in OperationAction}
    assert {one.name for one in OPERATIONS} == {action.value for action in OperationAction}


# Beside a service


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[tuple[app.Service, Callable[..., Any]]]:
    """A service of this process, and how to type a command beside it."""
    path = written_config(folder)
    await filled(folder)

    async def said(*words: str) -> tuple[int, str]:
        return await say(path, "retries", *words)

    async with app.service(load(path), loops=False) as running:
        for retrier in running.retriers.values():
            await retrier.decider.turn(SystemClock().now())
        yield running, said


async def test_the_running_service_is_told(tmp_path: Path) -> None:
    async with serving(tmp_path) as (running, said):
        [group, *_] = running.operations.groups()
        code, output = await said("approve", "--group", group.id, "--now", "--why", "night", "--stop-after", "3")
        assert code == 0, output
        [state] = running.operations.newest()
        assert (state.operation.selected, state.operation.why) == ({"group": group.id}, "night")
        assert (state.operation.stop_after, state.operation.starts_at) == (3, state.operation.created_at)
        assert state.operation.who not in ("command", "admin")
        assert output.startswith(f"operation {state.operation.id}: approve covers 3 dead letters: eu/1, eu/2, eu/3\n")
        code, output = await said("operations", state.operation.id)
        assert (code, "0 of 3 done (3 waiting)" in output) == (0, True), output
        code, output = await said("cancel", state.operation.id)
        assert (code, "cancelled: 3" in output) == (0, True), output
        for words, line in (
            (("approve", "eu/5"), "eu/5: its policy data says escalate; ask for a retry of it instead"),
            (("release", "--workflow", "eu/w1"), "it makes sense for none of 4 dead letters: 4 such as eu/1: nothing"),
            (("discard", "eu/1"), "discard is not granted: add it to sources.eu.grant in the config"),
            (("stop", "eu/run"), "eu has no run run that is under way"),
            (("cancel", state.operation.id), f"operation {state.operation.id} has nothing left to stop"),
        ):
            code, output = await said(*words)
            assert code == 1
            assert output.startswith(f"automation-exporter: {line}"), output
            assert output.count("\n") == 1
        assert len(running.operations.newest()) == 1
        code, output = await said("hold", "eu/1", "--for", "2h", "--dry-run")
        assert (code, len(running.operations.newest())) == (0, 1), output
        code, output = await said("hold", "--between", "30m", "0s", "--for", "2h")
        assert (code, "hold covers 1 dead letter: eu/4" in output) == (0, True), output


async def test_what_is_read_beside_it_is_what_it_says_itself(tmp_path: Path) -> None:
    async with serving(tmp_path) as (running, said):
        assert (await said("hold", "eu/2"))[0] == 0
        assert (await said("approve", "eu/1"))[0] == 0
        for retrier in running.retriers.values():
            await retrier.decider.turn(SystemClock().now())
        groups = running.operations.groups()
        _, output = await said("groups", "--json")
        found = json.loads(output)
        assert [(one["id"], one["count"], one["decisions"], one["awaits_approval"]) for one in found] == [
            (group.id, len(group.letters), group.decisions, group.awaits_approval) for group in groups
        ]
        _, output = await say(tmp_path / "config.yaml", "policies", "explain", "--all", "--json")
        said_here = {
            f"{one['source']}/{one['id']}": one["decision"]["detail"] for one in json.loads(output)["explained"]
        }
        control: Control = running.control
        assert said_here == {one.key: one.ladder.decision.detail for one in control.everything()}


# Against a platform


async def test_a_group_from_the_first_look_to_the_last_outcome(make: tuple[Any, str], tmp_path: Path) -> None:
    simulator, url = make
    config = written(tmp_path, url)
    workflow = simulator.add_workflow(name="Order sync")
    async with command(tmp_path, "run", "--config", str(config)) as service:
        await service.found("(msg=running)")
        await until(config, ("policies", "explain"), "0 open dead letters")
        letters = [simulator.add_dead_letter(workflow) for _ in range(3)]
        await until(config, ("retries", "groups"), "3 open dead letters, 1 group, mode approve")
        await until(config, ("retries", "groups"), "waits for approval")
        [group] = json.loads((await say(config, "retries", "groups", "--json"))[1])

        code, output = await say(config, "retries", "try", f"make/{letters[0]}", "--dry-run")
        assert code == 0, output
        assert "refuses  mode: waits for approval" in output
        assert re.search(rf"^Make, asked at {MOMENT}: dead; a retry may be sent$", output, re.M), output
        assert output.endswith("a retry would not be sent now: waits for approval; none was\n")
        assert sum(simulator.retry_calls.values()) == 0

        code, output = await say(config, "retries", "approve", "--group", group["id"], "--now", "--why", "night")
        assert code == 0, output
        identity = operation_in(output.splitlines())
        simulator.plan_retries(RetryPlan(outcome="success"))
        done = await until(config, ("retries", "operations", identity), "3 of 3 done (3 succeeded)")
        assert ": night" in done
        assert sum(simulator.retry_calls.values()) == 3
        assert (await say(config, "retries", "cancel", identity))[0] == 1
        assert await service.stop() == 0
    code, output = await say(config, "retries", "operations")
    assert re.search(rf"{identity}  approve  3 of 3 done \(3 succeeded\)", output), output


async def test_where_no_service_runs_the_source_is_opened(make: tuple[Any, str], tmp_path: Path) -> None:
    simulator, url = make
    config = written(tmp_path, url, mode="enforce", policies=[{"name": "all", "match": {"error.class": ["network"]},
                     "action": "retry", "retry": {"backoff": {"first": "1s", "factor": 1}}}])  # fmt: skip
    workflow = simulator.add_workflow(name="Order sync")
    async with command(tmp_path, "run", "--config", str(config)) as service:
        await service.found("(msg=running)")
        await until(config, ("policies", "explain"), "0 open dead letters")
        assert (await say(config, "retries", "pause"))[0] == 0
        letter = simulator.add_dead_letter(workflow)
        await until(config, ("retries", "groups"), "1 open dead letter, 1 group, mode enforce; paused: make")
        assert await service.stop() == 0
    code, output = await say(config, "retries", "try", f"make/{letter}", "--dry-run")
    assert code == 0, output
    assert re.search(r"a retry would not be sent now: paused by \S+; none was", output), output
    assert (await say(config, "retries", "resume"))[0] == 0
    await until(
        config, ("retries", "try", f"make/{letter}", "--dry-run"), "a retry would be sent now"
    )  # once it is due
    code, output = await say(config, "retries", "try", f"make/{letter}", "--dry-run", "--json")
    answer = json.loads(output)
    assert (code, answer["look"]["standing"], answer["would_send"], answer["why_not"]) == (0, "dead", True, None)
    broken = config.read_text().replace(url, "http://127.0.0.1:9")
    config.write_text(broken)
    code, output = await say(config, "retries", "try", f"make/{letter}", "--dry-run")
    assert code == 1
    assert "Make: it could not be read: " in output
    assert "Traceback" not in output
    assert sum(simulator.retry_calls.values()) == 0


# What the page shows

PAGE = (Path(__file__).parents[2] / "docs/retries.md").read_text()
SAYING = PAGE[PAGE.index("## What people can say") : PAGE.index("### How they are heard")]
LETTERS = ("0f3c9a1be27d4e5f8a6b7c8d9e0f1a2b", "5a11", "5a12")
VOLATILE = (
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME"),
    (r"\b(?=[0-9a-f]*\d)[0-9a-f]{16}\b", "OPERATION"),
    (r"by \S+:", "by WHO:"),
    (r"in (9|10) s", "in 10 s"),
)


def steady(text: str) -> list[str]:
    """Lines without what differs from one day, or one user, to the next."""
    for pattern, name in VOLATILE:
        text = re.sub(pattern, name, text)
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def shown(begins: str) -> list[str]:
    [found] = [code for code in re.findall(r"^```text\n(.*?)^```$", SAYING, re.M | re.S) if begins in code]
    return steady(found)


@pytest.fixture
def page(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Types a command of the page beside its own config, the mode raised, on the dead letters it shows."""
    before = PAGE[: PAGE.index("## Policies")]
    [config] = re.findall(r"^```yaml\n(sources:.*?)^```$", before, re.M | re.S)
    config = config.replace("mode: shadow", "mode: approve").replace("https://eu1.make.com", "http://127.0.0.1:9")
    config = config.replace("${MAKE_TOKEN}", "t") + f'store: {{url: "sqlite:///{tmp_path}/x.db"}}\n'
    (tmp_path / "config.yaml").write_text(config)
    monkeypatch.chdir(tmp_path)
    asyncio.run(page_filled(tmp_path))
    began, known = datetime.now(UTC) - timedelta(seconds=AGE), list[str]()

    def said(line: str) -> tuple[int, str]:
        line = line.replace("sqlite:////var/lib/automation-exporter/exporter.db", f"sqlite:///{tmp_path}/x.db")
        for hour, minutes in (("20:00", -1), ("20:30", 30)):
            line = line.replace(f"2026-11-28T{hour}", f"{began + timedelta(minutes=minutes):%Y-%m-%dT%H:%M}")
        code = main(shlex.split(line.replace(OPERATION, known[0] if known else OPERATION))[1:])
        captured = capsys.readouterr()
        known.extend(re.findall(r"^operation ([0-9a-f]{16}):", captured.out, re.M))
        return code, captured.out + captured.err

    return said


async def page_filled(folder: Path) -> None:
    """The page's dead letters, of whose error two were retried before."""
    error, now = network("connect ETIMEDOUT 10.0.0.1:443"), SystemClock().now()
    await add(folder, "make-eu", "4711", error, *LETTERS, name="Order sync")
    await add(folder, "make-eu", "4712", network("connect ECONNRESET"), "6")
    await add(folder, "make-eu", "4715", Error(error_class=ErrorClass.VALIDATION, message="no such field"), "7")
    fingerprint = error_fingerprint(DeadLetter(id="1", workflow_id="4711", opened_at=now, error=error))
    rows = [
        script.row_of(
            retry(
                id=f"t{at}", source="make-eu", workflow_id="4711", dead_letter_id=root, root=root, outcome=outcome,
                state=RetryState.VERIFYING, opened_at=now - AGE, failed_at=now - AGE, claimed_at=now - AGE + at,
                sent_at=now - AGE + at, closed_at=now - AGE + at + 95, error_class="network", fingerprint=fingerprint,
            )
        )
        for at, root, outcome in ((0, "before", Outcome.SUCCEEDED), (300, LETTERS[0], Outcome.FAILED))
    ]  # fmt: skip
    ledger = Ledger(await open_engine(f"sqlite:///{folder}/x.db"), {"make-eu": FoldRules()})
    await ledger.transact("rows", insert("retries", script.COLUMNS, rows, conflict="DO NOTHING"))
    await ledger.close()


def page_commands() -> list[str]:
    shown = "".join(re.findall(r"^```sh\n(.*?)^```$", SAYING, re.M | re.S))
    return [line for line in shown.splitlines() if not line.startswith("#")]


def test_every_command_of_the_page_does_what_it_says(page: Callable[[str], tuple[int, str]]) -> None:
    for line in page_commands():
        code, text = page(line)
        looks = " try " in line  # nobody answers at the address of this test
        assert code == (1 if looks else 0), f"{line}: {text}"
        assert "could not be read" in text or not looks


def test_groups_and_operations_look_as_the_page_shows(page: Callable[[str], tuple[int, str]], tmp_path: Path) -> None:
    groups = shown("open dead letters")
    assert steady(page("automation-exporter retries groups --config config.yaml")[1])[: len(groups)] == groups
    [approve] = [line for line in page_commands() if "--stop-after" in line]
    assert steady(page(approve)[1]) == shown("approve covers")
    asyncio.run(add(tmp_path, "make-eu", "4711", network("connect ETIMEDOUT 10.0.0.1:443"), "5a13", age=-1.0))
    assert steady(page(f"automation-exporter retries operations {OPERATION} --config config.yaml")[1]) == shown(
        "approve of"
    )
