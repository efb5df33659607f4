"""Policies that nothing is left for: what is said to be impossible never happens, and the plain cases are found."""

from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.model.labels import NO_LABELS, Labelled, Labels
from exporter.model.matchers import Matcher, read
from exporter.model.policy import Policy
from exporter.model.reach import Place, impossible, takers
from exporter.model.retries import Action

EU = Place(
    name="eu",
    platform="make",
    labels=Labels(source={"tier": "gold"}, workflows=(Labelled(match="*pay*", labels={"safe": "no"}),)),
)
US = Place(name="us", platform="qlik", labels=NO_LABELS)


def policy(
    match: Any = None, *, name: str = "p", any: Any = (), none: Any = (), action: Action = Action.HOLD
) -> Policy:
    matcher = Matcher(
        match=read(match or {}, ""), any=tuple(read(a, "") for a in any), none=tuple(read(n, "") for n in none)
    )
    return Policy(name=name, hash=name, matcher=matcher, action=action)


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ({"match": {"platform": "etlworks"}}, "no configured source has this platform"),
        ({"match": {"source": "de"}}, "no configured source has this source"),
        ({"match": {"source": "us", "platform": "make"}}, "no configured source has all of source, platform"),
        ({"match": {"labels.tier": "silver"}}, "no configured source has this labels.tier"),
        ({"match": {"source": "us", "labels.tier": "gold"}}, "no configured source has all of source, labels.tier"),
        ({"match": {"age": {"gte": "3d", "lt": "1h"}}}, "age cannot be both"),
        ({"match": {"age": {"gt": "1h", "lte": "1h"}}}, "age cannot be both"),
        ({"match": {"age": {"lt": "0s"}}}, "nothing can have such a value of age"),
        ({"match": {"opened_at": {"gte": "2026-11-28", "lt": "2026-11-01"}}}, "opened_at cannot be both"),
        ({"match": {"retries": {"gt": 2, "lt": 3}}}, "retries cannot be both"),
        ({"match": {"error.status": {"gte": 500, "lt": 500}}}, "error.status cannot be both"),
        ({"match": {"workflow.name": {"prefix": "A", "suffix": "b", "not": "x"}}}, None),
        ({"match": {"workflow.name": {"prefix": ["A", "B"]}}, "any": [{"workflow.name": "C"}]},
            "workflow.name cannot be both"),
        ({"match": {"error.class": ["auth"]}, "any": [{"error.class": "network"}, {"error.class": "timeout"}]},
            "error.class cannot be both"),
        ({"match": {"error.class": "auth"}, "none": [{"error.class": ["auth", "quota"]}]},
            "none excludes everything that match lets in"),
        ({"none": [{"age": {"gte": "1h"}}, {"age": {"lt": "1h"}}]}, "none excludes everything that match lets in"),
        ({"none": [{"platform": "make"}, {"source": "us"}]}, "none excludes everything that match lets in"),
        ({"match": {"error.class": {"not": "auth"}, "age": {"gte": "1h"}}}, None),
        ({"match": {"age": {"gte": "1h", "lte": "1h"}}}, None),
        ({"match": {"labels.safe": "no"}}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_what_can_never_match_is_found_with_its_reason(written: dict[str, Any], why: str | None) -> None:
    assert impossible(policy(**written), [EU, US]) == why


TAKEN: list[tuple[list[dict[str, Any]], dict[str, Any], list[str]]] = [
    ([{"match": {"error.class": ["network", "timeout"]}}], {"match": {"error.class": "network"}}, ["a"]),
    ([{"match": {}}], {"match": {"platform": "make"}}, ["a"]),
    # several together
    ([{"match": {"error.class": "network"}}, {"match": {"error.class": "timeout"}}],
        {"match": {"error.class": ["network", "timeout"]}}, ["a", "b"]),
    ([{"match": {"age": {"lt": "1h"}}}, {"match": {"age": {"gte": "1h"}}}], {}, ["a", "b"]),
    ([{"match": {"age": {"lte": "1h"}}}, {"match": {"age": {"gt": "1h"}}}], {}, ["a", "b"]),
    ([{"match": {"age": {"lt": "1h"}}}, {"match": {"age": {"gt": "1h"}}}], {}, []),
    ([{"match": {"platform": "make"}}, {"match": {"source": "us"}}], {}, ["a", "b"]),
    ([{"match": {"workflow.name": {"glob": "*pay*"}}}, {"none": [{"workflow.name": {"glob": "*pay*"}}]}],
        {"match": {"error.class": "auth"}}, ["a", "b"]),
    ([{"match": {"workflow.name": "A"}}, {"match": {"workflow.name": {"not": "A"}}}], {}, ["a", "b"]),
    ([{"match": {"workflow.name": ["A", "B"]}}, {"match": {"workflow.name": "C"}}],
        {"match": {"workflow.name": ["A", "C"]}}, ["a", "b"]),
    ([{"match": {"retries": 0}}, {"match": {"retries": {"gte": 1}}}], {}, ["a", "b"]),
    ([{"match": {"error.status": {"gte": 500}}}, {"match": {"error.status": {"lte": 499}}}],
        {"match": {"error.status": 404}}, ["b"]),
    ([{"match": {"error.message": {"contains": "ETIMEDOUT"}}}],
        {"match": {"error.message": {"prefix": "connect ETIMEDOUT"}}}, ["a"]),
    ([{"match": {"error.message": {"icontains": "reset"}}}],
        {"match": {"error.message": {"contains": "ECONNRESET"}}}, ["a"]),
    ([{"any": [{"error.class": "network"}, {"age": {"lt": "1h"}}]}, {"match": {"age": {"gte": "1h"}}}],
        {"match": {"error.class": "auth"}}, ["a", "b"]),
    ([{"match": {"error.class": "network"}}, {"match": {"error.class": "timeout"}}, {"match": {"platform": "qlik"}}],
        {"match": {"error.class": ["network", "timeout"], "platform": "make"}}, ["a", "b"]),
    # a label that a source never has stops the walk
    ([{"match": {"labels.tier": "gold"}}], {}, ["a"]),
    ([{"match": {"labels.safe": "no", "error.class": "auth"}}], {}, []),
    # what is left
    ([{"match": {"error.class": "network"}}, {"match": {"error.class": "timeout"}}],
        {"match": {"error.class": ["network", "timeout", "auth"]}}, []),
    ([{"match": {"error.class": "network", "platform": "make"}}, {"match": {"error.class": "timeout"}}],
        {"match": {"error.class": ["network", "timeout"]}}, []),
    ([{"match": {"workflow.name": {"glob": "*pay*"}}}, {"match": {"workflow.name": {"glob": "*order*"}}}], {}, []),
    ([{"match": {"error.class": ["network"]}, "none": [{"workflow.name": {"contains": "pay"}}]}],
        {"match": {"error.class": ["network"]}}, []),
    # a retry leaves unknown errors and kills to others
    ([{"action": Action.RETRY}], {}, []),
    ([{"action": Action.RETRY}], {"action": Action.RETRY}, ["a"]),
    ([{"action": Action.RETRY}], {"match": {"error.class": {"not": "auth"}}}, ["a"]),
    ([{"action": Action.RETRY}, {"match": {"error.class": ["unknown", "killed"]}}], {}, ["a", "b"]),
]  # fmt: skip


@pytest.mark.parametrize(("earlier", "later", "by"), TAKEN)
def test_what_earlier_policies_take_is_found_alone_and_together(
    earlier: list[dict[str, Any]], later: dict[str, Any], by: list[str]
) -> None:
    before = [policy(name=name, **written) for name, written in zip("abc", earlier, strict=False)]
    assert takers(policy(name="z", **later), before, [EU, US]) == by


def test_many_policies_are_looked_through_in_no_time() -> None:
    before = [
        policy({"workflow.name": {"contains": f"w{n}"}, "error.message": {"contains": f"m{n}"}}, name=str(n))
        for n in range(99)
    ]
    assert takers(policy(), before, [EU, US]) == []


NAMES = st.sampled_from(["a", "ab", "abc", "B"])
CONDITIONS = st.one_of(
    st.builds(lambda v: {"workflow.name": v}, st.lists(NAMES, min_size=1, max_size=2)),
    st.builds(lambda op, v: {"workflow.name": {op: v}},
        st.sampled_from(["not", "contains", "icontains", "prefix", "suffix", "glob"]),
        st.lists(NAMES, min_size=1, max_size=2)),
    st.builds(lambda op, n: {"retries": {op: n}}, st.sampled_from(["gte", "gt", "lte", "lt", "not"]),
        st.integers(0, 3)),
    st.builds(lambda op, n: {"age": {op: f"{n}h"}}, st.sampled_from(["gte", "gt", "lte", "lt"]), st.integers(0, 2)),
    st.builds(lambda c: {"error.class": c}, st.sampled_from(["network", "unknown", {"not": "network"}])),
    st.builds(lambda p: {"platform": p}, st.sampled_from(["make", "qlik"])),
    st.builds(lambda v: {"labels.tier": v}, st.sampled_from(["gold", {"not": "gold"}])),
)  # fmt: skip
MATCHES = st.lists(CONDITIONS, max_size=2).map(lambda parts: {k: v for part in parts for k, v in part.items()})
POLICIES = st.builds(
    lambda match, any, none, action: policy(match, any=any, none=none, action=action),
    MATCHES,
    st.lists(CONDITIONS, max_size=2),
    st.lists(CONDITIONS, max_size=1),
    st.sampled_from([Action.HOLD, Action.RETRY]),
)
WORLD: list[dict[str, Any]] = [
    {"source": place.name, "platform": place.platform, "labels.tier": tier, "error.class": error_class,
        "workflow.name": name, "retries": float(retries), "age": age}
    for place, tier in ((EU, "gold"), (US, None))
    for error_class, name, retries, age in product(
        ("network", "auth", "unknown"), ("a", "ab", "abc", "B", "xbx", None), (0, 1, 3), (0.0, 3600.0, 5400.0)
    )
]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(POLICIES, min_size=1, max_size=4))
def test_what_is_said_to_be_left_nothing_owns_nothing(policies: list[Policy]) -> None:
    *earlier, last = policies
    if impossible(last, [EU, US]) is not None:
        assert not [facts for facts in WORLD if last.owns(facts)]
    elif takers(last, earlier, [EU, US]):
        assert not [f for f in WORLD if all(one.owns(f) is False for one in earlier) and last.owns(f)]
