"""``policies explain``: first how many are decided how, then those asked for, with everything that was looked at."""

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from exporter.cli import main
from exporter.clock import SystemClock
from exporter.model import DeadLetter, Error, ErrorClass, Observation, Via, Workflow
from exporter.model.ledger import Batch, FoldRules
from exporter.store.ledger import Ledger, open_engine

CONFIG = """
store: {{url: "sqlite:///{folder}/x.db"}}
sources:
  eu: {{platform: make, url: https://eu1.make.com, token: t, organization_id: 9}}
  us: {{platform: make, url: https://us1.make.com, token: t, organization_id: 9}}
retries:
  mode: approve
  policies:
    - {{name: data, match: {{error.class: [validation]}}, action: escalate}}
    - {{name: transient, match: {{error.class: [network]}}, action: retry, retry: {{give_up_after: 30d}}}}
"""
Say = Callable[..., tuple[int, list[str]]]


async def filled(folder: Path) -> None:
    now = SystemClock().now()
    ledger = Ledger(await open_engine(f"sqlite:///{folder}/x.db"), {"eu": FoldRules(), "us": FoldRules()})
    await ledger.load()

    def letters(workflow_id: str, error_class: ErrorClass | None, *ids: str) -> list[DeadLetter]:
        error = None if error_class is None else Error(error_class=error_class, type="Broken")
        return [
            DeadLetter(id=id, workflow_id=workflow_id, run_id=f"r{id}", opened_at=now - 7200 + number, error=error)
            for number, id in enumerate(ids)
        ]

    orders, unnamed = Workflow(id="w1", at=now, name="Order sync"), Workflow(id="w2", at=now)
    of_eu: list[Observation] = [
        orders,
        unnamed,
        *letters("w1", ErrorClass.NETWORK, "1", "2", "3"),
        *letters("w2", ErrorClass.NETWORK, "4"),
        *letters("w1", ErrorClass.VALIDATION, "5", "odd/ïd"),
    ]
    of_us: list[Observation] = [orders, *letters("w1", ErrorClass.KILLED, "1")]
    for source, observations in (("eu", of_eu), ("us", of_us)):
        await ledger.ingest(
            Batch(source=source, observations=observations, via=Via.POLL, now=now, started_at=now - 9000)
        )
    await ledger.close()


@pytest.fixture
def say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Say:
    (tmp_path / "config.yaml").write_text(CONFIG.format(folder=tmp_path))
    asyncio.run(filled(tmp_path))

    def said(*words: str) -> tuple[int, list[str]]:
        code = main(["policies", "explain", *words, "--config", str(tmp_path / "config.yaml")])
        captured = capsys.readouterr()
        return code, (captured.out + captured.err).splitlines()

    return said


def test_the_summary_comes_first_and_alone(say: Say) -> None:
    code, lines = say()
    of, when = r"group [0-9a-f]{10}", r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC  Broken"
    assert code == 0
    assert lines[0] == "7 open dead letters, 2 policies, mode approve"
    for line, pattern in zip(
        lines[1:5],
        (
            rf"     2  escalate: policy \(policy data\)  {of}  eu/w1  Order sync  validation  {when}",
            rf"     1  hold: no_policy \(no policy\)  {of}  us/w1  Order sync  killed  {when}",
            rf"     3  wait: mode \(policy transient, waits for approval\)  {of}  eu/w1  Order sync  network  {when}",
            rf"     1  wait: mode \(policy transient, waits for approval\)  {of}  eu/w2  w2  network  {when}",
        ),
        strict=True,
    ):
        assert re.fullmatch(pattern, line), line
    assert lines[5:] == ["", "every check of one: policies explain SOURCE/ID; of all: policies explain --all"]


def test_those_asked_for_are_told_with_their_whole_ladder(say: Say) -> None:
    summed = say()[1][:5]
    code, lines = say("eu/2", "eu/odd/ïd", "eu/2")
    assert (code, lines[:5]) == (0, summed)
    assert [re.sub("[0-9a-f]{10}$", "G", line) for line in lines if line.startswith(("eu/", "us/"))] == [
        "eu/2  Order sync  network Broken  group G",
        "eu/odd/ïd  Order sync  validation Broken  group G",
    ]
    assert "    policy transient: matches, retry" in lines
    assert "    refuses  mode: waits for approval" in lines
    code, lines = say("--all")
    assert (code, lines[:5]) == (0, summed)
    assert sum(line.startswith(("eu/", "us/")) for line in lines) == 7


def test_json_says_the_same(say: Say) -> None:
    code, lines = say("us/1", "--json")
    said = json.loads("\n".join(lines))
    assert (code, said["dead_letters"], said["mode"], said["paused"]) == (0, 7, "approve", [])
    assert [(one["dead_letters"], one["decision"], one["reason"]) for one in said["summary"]] == [
        (2, "escalate", "policy"),
        (1, "hold", "no_policy"),
        (3, "wait", "mode"),
        (1, "wait", "mode"),
    ]
    [one] = said["explained"]
    assert (one["source"], one["id"], one["decision"]["reason"]) == ("us", "1", "no_policy")
    assert [policy["matches"] for policy in one["policies"]] == ["does not match", "does not match"]
    assert len(json.loads("\n".join(say("--all", "--json")[1]))["explained"]) == 7


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["eu/none"], "eu has no open dead letter none"),
        (["eu/1", "eu/none"], "eu has no open dead letter none"),
        (["nowhere/1"], "there is no source nowhere"),
        (["1"], "1: write SOURCE/ID, as `policies explain` prints it"),
        (["eu/none", "--json"], "eu has no open dead letter none"),
    ],
    ids=str,
)
def test_what_is_not_there_is_one_line(say: Say, words: list[str], line: str) -> None:
    assert say(*words) == (1, [f"automation-exporter: {line}"])


def test_a_rerun_that_no_policy_allows_says_so_and_the_way_out(say: Say, tmp_path: Path) -> None:
    async def lost() -> None:
        now = SystemClock().now()
        ledger = Ledger(await open_engine(f"sqlite:///{tmp_path}/x.db"), {"eu": FoldRules(), "us": FoldRules()})
        await ledger.load()
        error = Error(error_class=ErrorClass.NETWORK, type="Broken")
        letter = DeadLetter(id="9", workflow_id="w1", run_id="9", opened_at=now - 7200, error=error, reruns=True)
        await ledger.ingest(Batch(source="eu", observations=[letter], via=Via.POLL, now=now, started_at=now - 9000))
        await ledger.close()

    asyncio.run(lost())
    code, lines = say("eu/9")
    assert code == 0
    told = [line for line in lines if "not_eligible" in line]
    assert any("a retry would run it again from its trigger" in line and "rerun: allow" in line for line in told)
