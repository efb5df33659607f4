"""What is written about retrying: read into rules, and every contradiction one line that names its place."""

from typing import Any

import pytest
import yaml

from exporter.config import ConfigError, parse
from exporter.model.durations import duration_text, parse_duration
from exporter.model.policy import Budget, Cooling, GateRules, Rules, Storm

SOURCES = {"eu": {"platform": "make", "url": "https://eu1.make.com", "token": "t-o-k-e-n", "organization_id": 9}}
RETRY = {"name": "p", "match": {"error.class": ["network"]}, "action": "retry"}


def rules(policy: Any = None, source: Any = None) -> Rules:
    retries: dict[str, Any] = {"policies": [{**RETRY, **(policy or {})}], "sources": {"eu": source or {}}}
    return parse(yaml.safe_dump({"sources": SOURCES, "retries": retries}), {}).rules()


def problems(policy: Any = None, source: Any = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        rules(policy, source)
    return caught.value.problems


def test_rails_have_defaults_and_are_off_where_they_are_not_written() -> None:
    made = rules()
    assert made.policies[0].gate == GateRules(ramp=(1, 2, 5, 10, 25), cool=Cooling(first=1800, factor=2, cap=14400))
    assert (made.source("eu").budget, made.source("eu").storm) == (None, None)
    empty = rules(source={"budget": {}, "storm": {}}).source("eu")
    assert (empty.budget, empty.storm) == (Budget(cap=20, earn=0.1, floor=2 / 3600), Storm(failing=0.4, of=20))


def test_rails_are_read_as_written() -> None:
    made = rules(
        {"gate": {"ramp": [2, 4], "cool": {"first": "10m", "factor": 3, "cap": "1h"}}},
        {"budget": {"cap": 5, "earn": 0.5, "floor": "0/1h"}, "storm": {"failing": 1, "of": 3, "within": "5m"}},
    )
    assert made.policies[0].gate == GateRules(ramp=(2, 4), cool=Cooling(first=600, factor=3, cap=3600))
    assert made.source("eu").budget == Budget(cap=5, earn=0.5, floor=0)
    assert made.source("eu").storm == Storm(failing=1, of=3, within=300)


GATE = "retries.policies[0].gate"
SOURCE = "retries.sources.eu"
CONTRADICTIONS: list[tuple[Any, Any, str]] = [
    ({"gate": {"ramp": [1, 2, 2]}}, {}, f"{GATE}.ramp: must rise, and 2 comes after 2: "),
    ({"gate": {"ramp": [5, 1]}}, {}, f"{GATE}.ramp: must rise, and 1 comes after 5: "),
    ({"gate": {"ramp": [0, 1]}}, {}, f"{GATE}.ramp[0]: must be at least 1"),
    ({"gate": {"ramp": []}}, {}, f"{GATE}.ramp: must not be empty"),
    ({"gate": {"ramp": 1}}, {}, f"{GATE}.ramp: must be a list: write [1]"),
    ({"gate": {"ramp": [1.5]}}, {}, f"{GATE}.ramp[0]: must be a whole number"),
    ({"gate": {"rampe": [1]}}, {}, f"{GATE}.rampe: unknown key; did you mean ramp?"),
    ({"gate": {"cool": {"first": "5h"}}}, {}, f"{GATE}.cool.cap: 4h is shorter than first, 5h: "),
    ({"gate": {"cool": {"cap": "10m"}}}, {}, f"{GATE}.cool.cap: 10m is shorter than first, 30m: "),
    ({"gate": {"cool": {"first": "0s"}}}, {}, f"{GATE}.cool.first: must be longer than 0s"),
    ({"gate": {"cool": {"factor": 0.5}}}, {}, f"{GATE}.cool.factor: must be at least 1"),
    ({"gate": {"cool": {"first": 30}}}, {}, f"{GATE}.cool.first: write a duration with its unit"),
    ({"retry": {"backoff": {"first": "12h"}}}, {}, "retries.policies[0].retry.backoff.cap: 6h is shorter than first"),
    ({"action": "hold", "gate": {"ramp": [1]}}, {}, "retries.policies[0]: gate makes no sense beside action: hold"),
    ({}, {"storm": {"failing": 0}}, f"{SOURCE}.storm.failing: must be above 0"),
    ({}, {"storm": {"failing": 40}}, f"{SOURCE}.storm.failing: must be at most 1: a share, for example 0.4 for 40 %"),
    ({}, {"storm": {"of": 0}}, f"{SOURCE}.storm.of: must be at least 1"),
    ({}, {"storm": {"within": "0s"}}, f"{SOURCE}.storm.within: must be longer than 0s"),
    ({}, {"budget": {"cap": 0}}, f"{SOURCE}.budget.cap: must be at least 1"),
    ({}, {"budget": {"earn": -1}}, f"{SOURCE}.budget.earn: must be at least 0"),
    ({}, {"budget": {"earn": 0, "floor": "0/1h"}}, f"{SOURCE}.budget: earn and floor are both 0"),
    ({}, {"budget": {"floor": "2/hour"}}, f"{SOURCE}.budget.floor: a rate needs the number of its time, too"),
    ({}, {"budget": {"floor": 2}}, f"{SOURCE}.budget.floor: write a rate as COUNT/DURATION, for example 6/1m"),
    ({}, {"pace": {"rate": "6/min"}}, f"{SOURCE}.pace.rate: a rate needs the number of its time, too: write 6/1m"),
    ({}, {"pace": {"rate": "6 / Mins"}}, f"{SOURCE}.pace.rate: a rate needs the number of its time, too: write 6/1m"),
    ({}, {"pace": {"rate": "10/h"}}, f"{SOURCE}.pace.rate: a rate needs the number of its time, too: write 10/1h"),
    ({}, {"pace": {"rate": "9/day"}}, f"{SOURCE}.pace.rate: a rate needs the number of its time, too: write 9/1d"),
    ({}, {"pace": {"rate": "0/1m"}}, f"{SOURCE}.pace.rate: must be above 0; to retry nothing write mode: off"),
    ({}, {"pace": {"rate": "6/0s"}}, f"{SOURCE}.pace.rate: write a rate as COUNT/DURATION"),
    ({}, {"pace": {"rate": "6/soon"}}, f"{SOURCE}.pace.rate: write a rate as COUNT/DURATION"),
]  # fmt: skip


@pytest.mark.parametrize(("policy", "source", "line"), CONTRADICTIONS, ids=[line[8:60] for *_, line in CONTRADICTIONS])
def test_a_contradiction_is_one_line_that_names_its_place(policy: Any, source: Any, line: str) -> None:
    [said] = problems(policy, source)
    assert said.startswith(line)


@pytest.mark.parametrize("text", ["0s", "15m", "3d", "1h30m", "1d1s", "250ms", "1s500ms"])
def test_a_duration_is_said_as_it_is_written(text: str) -> None:
    assert duration_text(parse_duration(text)) == text
