"""Cases of policies: read as they are written, judged by the decision itself, every mistake one line."""

from datetime import UTC, datetime
from typing import Any

import pytest
import yaml

from exporter.config import ConfigError, parse
from exporter.config.cases import judge, parse_cases

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC).timestamp()  # a Monday
CONFIG = """
sources:
  eu:
    platform: make
    url: https://eu1.make.com
    token: t-o-k-e-n
    organization_id: 9
    labels: {safe: "yes"}
    workflow_labels: [{match: "*payment*", labels: {safe: "no"}}]
  us: {platform: qlik, url: https://us.example, token: t-o-k-e-n, labels: {safe: "yes"}}
retries:
  mode: enforce
  policies:
    - {name: data, match: {error.class: [validation, auth]}, action: escalate}
    - {name: unsafe, match: {labels.safe: "no"}, action: hold}
    - {name: gateway, match: {error.class: platform, error.status: [502, 503]}, action: retry, approve: each}
    - name: transient
      match: {error.class: [network, timeout], age: {lt: 2d}}
      action: retry
      retry: {retries: 2, backoff: {jitter: 0}}
      when: {allow: ["mon-fri 07:00-19:00"]}
    - {name: night, match: {error.class: unknown, error.message: {icontains: "night"}, opened_at: {gte: 2026-11-28}},
       action: ignore}
"""
EU = {"source": "eu", "workflow.name": "Order sync"}


def decided(dead_letter: dict[str, Any], expect: dict[str, Any], **case: Any) -> list[str]:
    config = parse(CONFIG, {})
    text = yaml.safe_dump({"cases": [{"name": "one", "dead_letter": dead_letter, "expect": expect, **case}]})
    labels = {name: section.labelled for name, section in config.sources.items()}
    platforms = {name: section.platform for name, section in config.sources.items()}
    [verdict] = judge(parse_cases(text), config.rules(), platforms=platforms, labels=labels, now=NOW)
    return list(verdict.differences)


def expected(policy: str, decision: str, reason: str) -> dict[str, Any]:
    return {"policy": policy, "decision": decision, "reason": reason}


DECIDED: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({"error.class": "network"}, {}, expected("transient", "retry", "due")),
    ({"error.class": "network", "age": "10m"}, {}, expected("transient", "wait", "backoff")),
    ({"error.class": "network", "age": "3d"}, {}, expected("none", "hold", "no_policy")),
    ({"error.class": "network"}, {"at": "2026-11-29T12:00"}, expected("transient", "wait", "window")),
    ({"error.class": "network"}, {"at": "2026-11-30T19:30+01:00"}, expected("transient", "retry", "due")),
    ({"error.class": "network", "retries": 2}, {}, expected("transient", "quarantine", "exhausted")),
    ({"error.class": "network", "retries": 1, "age": "1d"}, {}, expected("transient", "retry", "due")),
    ({"error.class": "network", "retries": 1, "age": "1d"}, {"last_retry": "44m"},
        expected("transient", "wait", "backoff")),
    ({"error.class": "network", "workflow.name": "A payment"}, {}, expected("unsafe", "hold", "policy")),
    ({"error.class": "network", "workflow.name": "A payment", "labels.safe": "yes"}, {},
        expected("transient", "retry", "due")),
    ({"error.class": "validation"}, {}, expected("data", "escalate", "policy")),
    ({"error.class": "platform", "error.status": 503}, {}, expected("gateway", "wait", "mode")),
    ({"error.class": "platform", "error.status": 500}, {}, expected("none", "hold", "no_policy")),
    ({"error.class": "platform"}, {}, expected("none", "hold", "undetermined")),
    ({"error.message": "Over NIGHT"}, {}, expected("night", "ignore", "policy")),
    ({"error.message": "Over night", "opened_at": "2026-11-27T23:59"}, {}, expected("none", "hold", "no_policy")),
    ({}, {}, expected("none", "hold", "undetermined")),  # nobody has read its error yet
]  # fmt: skip


@pytest.mark.parametrize(("letter", "case", "expect"), DECIDED)
def test_a_case_is_decided_as_the_engine_would(letter: Any, case: Any, expect: dict[str, Any]) -> None:
    assert decided({**EU, **letter}, expect, **case) == []


def test_labels_by_a_pattern_of_names_are_not_known_while_the_name_is_not() -> None:
    nameless = {"source": "eu", "workflow.id": "77", "error.class": "network"}
    assert decided(nameless, expected("none", "hold", "undetermined")) == []
    assert decided({**nameless, "source": "us"}, expected("transient", "retry", "due")) == []


def test_what_differs_is_told_and_what_nobody_expects_is_not_compared() -> None:
    letter = {**EU, "error.class": "network"}
    assert decided(letter, expected("data", "escalate", "policy")) == [
        "policy: expected data, got transient",
        "decision: expected escalate, got retry",
        "reason: expected policy, got due",
    ]
    assert decided(letter, {"decision": "retry"}) == []


C = "cases[0]"
MISTAKES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"source": "de"}, {}, f"{C}.dead_letter.source: there is no such source; one of eu, us"),
    ({"source": "eu", "workflow": "x"}, {}, f"{C}.dead_letter.workflow: unknown field; one of "),
    ({"error.class": "network"}, {}, f"{C}.dead_letter.source: missing"),
    ({**EU, "error.class": "netwrok"}, {}, f"{C}.dead_letter.error.class: unknown error class; one of "),
    ({**EU, "error.class": ["network"]}, {}, f"{C}.dead_letter.error.class: must be one value"),
    ({**EU, "age": 5}, {}, f"{C}.dead_letter.age: write a duration with its unit"),
    ({**EU, "age": "1h", "opened_at": "2026-11-28"}, {}, f"{C}.dead_letter.opened_at: give either age or opened_at"),
    ({**EU, "platform": "make"}, {}, f"{C}.dead_letter.platform: leave it out: it follows from the rest"),
    (EU, {"expect": {"policy": "transiant"}}, f"{C}.expect.policy: there is no such policy; one of data, unsafe, "),
    (EU, {"expect": {"decision": "retries"}}, f"{C}.expect.decision: must be one of "),
    (EU, {"expect": {"reasons": "due"}}, f"{C}.expect.reasons: unknown key; did you mean reason?"),
    (EU, {"expect": {}}, f"{C}.expect: expects nothing: name policy, decision or reason"),
    (EU, {"at": "noon"}, f"{C}.at: write a time such as 2026-11-28T22:00"),
    (EU, {"name": ""}, f"{C}.name: must not be empty"),
]


@pytest.mark.parametrize(("letter", "case", "line"), MISTAKES)
def test_a_mistake_in_a_case_is_one_line(letter: Any, case: Any, line: str) -> None:
    expect = case.pop("expect", {"decision": "retry"})
    with pytest.raises(ConfigError) as caught:
        decided(letter, expect, **case)
    assert [said[: len(line)] for said in caught.value.problems] == [line]


@pytest.mark.parametrize("text", ["", "[]", "cases: []", "cases: 1", "cases: [1]", "tests: []"])
def test_what_is_no_file_of_cases_is_said_to_be_none(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_cases(text)
    assert all(caught.value.problems)
