"""Policies that cannot be meant: all of them told in one go, each with its place and the way out."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from exporter.config import ConfigError, parse
from exporter.config.cautions import cautions
from exporter.config.outline import outline

NOW = datetime(2026, 11, 29, tzinfo=UTC).timestamp()
SOURCES = """
sources:
  eu:
    platform: make
    url: https://eu1.make.com
    token: t-o-k-e-n
    organization_id: 9
    labels: {tier: gold}
    workflow_labels: [{match: "*payment*", labels: {idempotent: "no"}}]
  us: {platform: qlik, url: https://us.example, token: t-o-k-e-n}
"""
CONTRACT = """
retries:
  mode: enforce
  sources:
    make-eu: {mode: enforce, pace: {rate: 6/1m, burst: 3, in_flight: 25},
              budget: {cap: 20, earn: 0.1, floor: 2/1h}, storm: {failing: 0.4, of: 20, within: 30m}, native: yield}
  policies:                        # ordered; the first that matches owns the dead letter
    - name: never-data-errors
      match: {error.class: [validation, auth, permission, quota]}
      action: escalate             # retry | hold | ignore | quarantine | escalate
    - name: transient-network
      mode: approve                # can only lower the ceiling
      match:
        platform: make
        error.class: [network, timeout, throttled]
        error.message: {contains: [ETIMEDOUT, ECONNRESET]}
        age: {gte: 15m, lt: 3d}
      none: [{workflow.name: {glob: "*payment*"}}]
      group_by: [source, workflow, error.class, error.fingerprint]
      action: retry
      retry: {retries: 3, backoff: {first: 15m, factor: 3, cap: 6h, jitter: 0.5}, give_up_after: 3d, rerun: refuse}
      gate: {ramp: [1, 2, 5, 10, 25], cool: {first: 30m, factor: 2, cap: 4h}}
      when: {tz: Europe/Berlin, allow: ["mon-fri 07:00-19:00"], deny: ["2026-12-24..2026-12-27"]}
      approve: first_of_group      # none | first_of_group | each
      verify: {deadline: 2h, settle: 10m, warnings: failure}
      exhausted: quarantine        # or escalate
"""


def text(*policies: Any) -> str:
    made = [
        {"name": f"p{n}", "action": "retry", "match": {"error.class": ["network"]}} | policy
        for n, policy in enumerate(policies)
    ]
    return SOURCES + yaml.safe_dump({"retries": {"policies": made}})


def problems(*policies: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text(*policies), {})
    return caught.value.problems


def warnings(*policies: Any, now: float = NOW) -> list[str]:
    return cautions(parse(text(*policies), {}), now)


def test_the_contract_s_own_example_loads_without_a_word() -> None:
    config = parse(SOURCES.replace("  eu:", "  make-eu:") + CONTRACT, {})
    assert cautions(config, NOW) == []
    assert len(config.rules().policies) == 2


P = "retries.policies[0]"
NAMES = "no source or workflow has this label: give it in labels or workflow_labels of a source; there are "
ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"match": {"workflow": "Order sync"}}, f"{P}.match.workflow: unknown field; one of platform, source, workflow.id, "
        "workflow.name, workspace, error.class, error.type, error.status, error.message, error.fingerprint, step.type, "
        "opened_at, age, retries, trigger, labels.*; did you mean workflow.name or workflow.id?"),
    ({"match": ["network"]}, f"{P}.match: must be a mapping of fields, for example "
        "{error.class: [network, timeout]}"),
    ({"none": [{"workflow.name": {"glob": "*{pay,bill}*"}}]}, f"{P}.none[0].workflow.name.glob: bad pattern "
        "'*{pay,bill}*': braces are no alternatives here: write a list: [\"*pay*\", \"*bill*\"]"),
    ({"match": {"labels.team": "x"}}, f"{P}.match.labels.team: {NAMES}idempotent, tier"),
    ({"any": [{"error.class": "auth"}, {"labels.team": "x"}]}, f"{P}.any[1].labels.team: {NAMES}idempotent, tier"),
    ({"none": [{"labels.Tier": "gold"}]}, f"{P}.none[0].labels.Tier: {NAMES}idempotent, tier"),
    ({"group_by": ["labels.team"]}, f"{P}.group_by.labels.team: {NAMES}idempotent, tier"),
    ({"group_by": ["opened_at"]}, f"{P}.group_by[0]: cannot group by opened_at; one of platform, source, workflow.id, "
        "workflow.name, workspace, error.class, error.type, error.status, error.fingerprint, step.type, trigger, "
        "labels.*"),
    ({"match": {"labels.tier": "silver"}}, f"{P}: p0 can never match: no configured source has this labels.tier"),
    ({"none": [{"labels.idempotent": "no"}]}, f"{P}: p0 can never match: none excludes everything that match lets in; "
        "not every workflow of eu, us has the label idempotent, and what is not known is held as undetermined: give a "
        "default in sources.eu.labels"),
    ({"retry": {"retries": 0}}, f"{P}.retry.retries: 0 retries beside action: retry: write at least 1, or action: "
        "hold"),
    ({"retry": {"give_up_after": "10m"}}, f"{P}.retry.give_up_after: 10m is over before the first retry, after 15m: "
        "raise it"),
    ({"retry": {"backoff": {"first": "2h", "cap": "1h"}}}, f"{P}.retry.backoff.cap: 1h is shorter than first, 2h: "
        "raise cap, or lower first"),
    ({"match": {"error.class": "network", "age": {"lt": "5m"}}}, f"{P}: age below 5m is over before the first retry, "
        "after 15m less jitter: raise the age, or lower retry.backoff.first"),
    ({"none": [{"age": {"gte": "5m"}}]}, f"{P}: age below 5m is over before the first retry, after 15m less jitter: "
        "raise the age, or lower retry.backoff.first"),
    ({"match": {"error.class": "network", "retries": {"gte": 3}}}, f"{P}.retry.retries: it matches from 3 retries on "
        "and allows 3 in all: write at least 4"),
    ({"when": {"allow": ["mon 08:00-09:00"], "deny": ["mon-wed"]}}, f"{P}.when: never opens: deny takes all that allow "
        "lets in; leave some hours, or write mode: off"),
    ({"when": {"deny": ["00:00-12:00", "12:00-24:00"]}}, f"{P}.when: never opens: deny takes all that allow lets in; "
        "leave some hours, or write mode: off"),
    ({"when": {"deny": ["22:00-06:00", "sat,sun", "mon-fri 06:00-22:00"]}}, f"{P}.when: never opens: deny takes all "
        "that allow lets in; leave some hours, or write mode: off"),
    ({"when": {"tz": "Mars/X"}}, f"{P}.when.tz: unknown time zone 'Mars/X'; write for example Europe/Berlin or UTC"),
    ({"when": {"allow": ["mon 8-9"]}}, f"{P}.when.allow[0]: cannot read 'mon 8-9'; write for example 'mon-fri "
        "07:00-19:00', 'sat,sun' or '22:00-06:00'"),
    ({"when": {"deny": ["2026-12-27..2026-12-24"]}}, f"{P}.when.deny[0]: '2026-12-27..2026-12-24' ends before it "
        "begins"),
    ({"action": "escalate", "retry": {"retries": 2}}, f"{P}: retry makes no sense beside action: escalate"),
]  # fmt: skip


@pytest.mark.parametrize(("policy", "line"), ERRORS, ids=[line[19:70] for _, line in ERRORS])
def test_what_is_surely_wrong_is_one_line(policy: dict[str, Any], line: str, tmp_path: Path) -> None:
    assert problems(policy) == [line]
    file = tmp_path / "c.yaml"
    file.write_text(text(policy))
    with pytest.raises(ConfigError) as caught:  # what commands that need no secret say
        outline(file, {}).rules()
    assert caught.value.problems == [line]


def test_policies_that_several_earlier_ones_leave_nothing_name_them() -> None:
    network, timeout = {"match": {"error.class": "network"}}, {"match": {"error.class": "timeout"}}
    both = {"match": {"error.class": ["network", "timeout"]}}
    assert problems(network, timeout, both, both) == [
        "retries.policies[2]: p2 can never be reached: p0 and p1, before it, take all of it together",
        "retries.policies[3]: p3 can never be reached: p2, before it, takes all of it",
    ]


def test_all_mistakes_are_told_in_one_go_whatever_else_is_wrong() -> None:
    written = text(
        {"match": {"workflow": "x"}, "retry": {"retries": 0}},
        {"when": {"allow": ["soon"]}, "match": {"labels.team": "x"}},
        {"match": {"error.class": "auth"}, "gate": {"ramp": [2, 1]}, "retry": {"give_up_after": "1m"}},
        {"match": {"error.class": "auth"}, "name": "p2"},
        {"action": "escalte"},
    ).replace("platform: qlik", "platform: qlick")
    written = written.replace(
        "retries:\n  policies", "log: {level: loud}\nretries:\n  sources: {de: {}}\n  policies", 1
    )
    with pytest.raises(ConfigError) as caught:
        parse(written, {})
    assert [line.partition(": ")[0] for line in caught.value.problems] == [
        "sources.us.platform",
        "retries.policies[0].match.workflow",
        "retries.policies[1].when.allow[0]",
        "retries.policies[2].gate.ramp",
        "retries.policies[4].action",
        "log.level",
        "retries.sources.de",
        "retries.policies[0].retry.retries",
        "retries.policies[1].match.labels.team",
        "retries.policies[2].retry.give_up_after",
        "retries.policies[3].name",
        "retries.policies[3]",
    ]


CLASSES = "error.class with every class it may have, for example [unknown, network]"
LITTLE = (
    "nothing is asked of the error or its workflow, so every error is retried, also those that no retry can save: "
    "write for example {error.class: [network, timeout, throttled]}"
)
WARNINGS: list[tuple[dict[str, Any], str | None]] = [
    ({"match": {}}, f"{P}.match: {LITTLE}"),
    ({"match": {"platform": "make", "age": {"gte": "20m"}}}, f"{P}.match: {LITTLE}"),
    ({"match": {}, "any": [{"error.class": "network"}, {"source": "us"}]}, f"{P}.match: {LITTLE}"),
    ({"match": {"labels.tier": "gold", "source": "eu"}}, None),
    ({"match": {"opened_at": {"gte": "2026-11-28"}}}, None),
    ({"match": {}, "action": "hold"}, None),
    ({"match": {}, "any": [{"error.class": "network"}]}, None),
    ({"match": {"error.type": "X"}}, f"{P}.match: error.type without error.class never matches an error whose class is "
        f"unknown: add {CLASSES}"),
    ({"match": {"error.message": {"contains": "X"}}}, f"{P}.match: error.message without error.class never matches an "
        f"error whose class is unknown: add {CLASSES}"),
    ({"match": {"source": "eu"}, "any": [{"error.class": "network"}, {"error.status": 503}]}, f"{P}.any[1]: "
        f"error.status without error.class never matches an error whose class is unknown: add {CLASSES}"),
    ({"match": {"error.type": "X"}, "action": "escalate"}, None),
    ({"match": {"error.type": "X", "error.class": {"not": "auth"}}}, None),
    ({"match": {"error.class": "network", "age": {"lt": "10m"}}}, f"{P}: age below 10m is over for many before the "
        "first retry, after 15m less jitter: raise the age, or lower retry.backoff.first"),
    ({"match": {"error.class": "network", "age": {"gte": "4d"}}}, f"{P}.retry.give_up_after: 3d is over before it "
        "matches, from an age of 4d on: raise it"),
    ({"retry": {"retries": 40, "give_up_after": "1d"}}, f"{P}.retry.retries: 10 of 40 retries fit into give_up_after, "
        "1d: raise it, or lower retries"),
    ({"when": {"deny": ["2025-12-24..2025-12-27", "2026-01-01"]}}, f"{P}.when.deny: all its dates are past: write the "
        "next ones, or leave them out"),
    ({"when": {"deny": ["2025-12-24..2025-12-27", "2026-11-29"]}}, None),
    ({"when": {"deny": ["sat"]}}, None),
    ({"when": {"deny": ["2026-11-01..2027-11-01"]}}, f"{P}.when: it does not open in the next 60 days: look at the "
        "dates in deny"),
    ({"match": {"error.class": "network", "workflow.name": "*pay*"}}, f"{P}.match.workflow.name: a * stands for itself "
        "here: write {glob: …}"),
    ({"match": {"error.class": "network", "workflow.name": {"contains": "*pay*"}}}, f"{P}.match.workflow.name: a * "
        "stands for itself here: that takes glob"),
    ({"match": {"error.class": "network", "labels.idempotent": "no"}}, f"{P}.match.labels.idempotent: not every "
        "workflow of eu, us has the label idempotent, and what is not known is held as undetermined: give a default in "
        "sources.eu.labels"),
    ({"match": {"error.class": "network"}}, None),
]  # fmt: skip


@pytest.mark.parametrize(("policy", "line"), WARNINGS)
def test_what_hardly_anybody_means_is_a_warning(policy: dict[str, Any], line: str | None) -> None:
    assert warnings(policy) == ([] if line is None else [line])


def test_dates_that_yaml_reads_as_such_are_dates() -> None:
    written = SOURCES + (
        "retries:\n  policies:\n    - {name: p, action: retry, when: {deny: [2026-12-24]},\n"
        "       match: {error.class: network, opened_at: {gte: 2026-11-28, lt: 2026-11-28T22:00:00+01:00}}}\n"
    )
    [policy] = parse(written, {}).rules().policies
    assert [condition.values[0] for condition in policy.matcher.match[1:]] == [NOW - 86400, NOW - 3 * 3600]


def test_braces_in_other_patterns_are_warnings() -> None:
    written = SOURCES.replace('match: "*payment*"', 'match: "*{pay,bill}*"')
    written = written.replace("token: t-o-k-e-n}", "token: t-o-k-e-n, exclude: ['{a,b}']}")
    assert cautions(parse(written, {}), NOW) == [
        "sources.eu.workflow_labels[0].match: braces are no alternatives in a pattern: write one entry for each: "
        '["*pay*", "*bill*"]',
        'sources.us.exclude[0]: braces are no alternatives in a pattern: write one entry for each: ["a", "b"]',
    ]
