"""Conditions: every operator on every kind, three-valued, and every mistake as one line that names its place."""

from datetime import UTC, date, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.model.matchers import FIELDS, BadCondition, Matcher, all_hold, read

FACTS: dict[str, str | float | None] = {
    "platform": "make",
    "source": "make-eu",
    "workflow.name": "Order sync",
    "error.class": "network",
    "error.message": "connect ETIMEDOUT 10.0.0.1:443",
    "error.type": None,
    "error.status": 503.0,
    "opened_at": datetime(2026, 11, 28, 22, tzinfo=UTC).timestamp(),
    "age": 3600.0,
    "retries": 1.0,
    "labels.tier": "gold",
}


@pytest.mark.parametrize(
    ("written", "holds"),
    [
        ({"platform": "make"}, True),
        ({"platform": "qlik"}, False),
        ({"error.class": ["timeout", "network"]}, True),
        ({"error.class": {"not": ["timeout", "network"]}}, False),
        ({"error.class": {"not": "auth"}}, True),
        ({"error.message": {"contains": ["ECONNRESET", "ETIMEDOUT"]}}, True),
        ({"error.message": {"contains": "etimedout"}}, False),
        ({"error.message": {"icontains": "ETIMEDOUT"}}, True),
        ({"error.message": {"icontains": ["eTimedOut", "x"]}}, True),
        ({"error.message": {"icontains": "reset"}}, False),
        ({"error.type": {"icontains": "x"}}, None),
        ({"error.message": {"prefix": "connect"}}, True),
        ({"error.message": {"suffix": [":80", ":443"]}}, True),
        ({"workflow.name": {"glob": "*sync"}}, True),
        ({"workflow.name": {"glob": ["Inv*", "order*"]}}, False),
        ({"age": {"gte": "1h"}}, True),
        ({"age": {"gt": "1h"}}, False),
        ({"age": {"gte": "15m", "lt": "3d"}}, True),
        ({"age": {"lte": "59m"}}, False),
        ({"retries": 1}, True),
        ({"retries": {"lt": 3}}, True),
        ({"retries": [0, 2]}, False),
        ({"error.status": 503}, True),
        ({"error.status": [500, 502]}, False),
        ({"error.status": {"gte": 500, "lt": 600}}, True),
        ({"error.status": {"not": 503}}, False),
        ({"opened_at": {"gte": "2026-11-28"}}, True),
        ({"opened_at": {"gte": "2026-11-28T22:00"}}, True),
        ({"opened_at": {"gt": "2026-11-28T22:00Z"}}, False),
        ({"opened_at": {"lte": "2026-11-28T23:00+01:00"}}, True),
        ({"opened_at": {"lt": "2026-11-28"}}, False),
        ({"opened_at": {"lte": "2026-11-28"}}, True),  # all of that day
        ({"opened_at": {"gt": "2026-11-28"}}, False),
        ({"opened_at": {"gt": "2026-11-27", "lt": "2026-11-29"}}, True),
        ({"opened_at": {"gte": date(2026, 11, 28), "lte": date(2026, 11, 28)}}, True),  # as YAML reads it
        ({"opened_at": {"gte": datetime(2026, 11, 28, 22, 0, 1, tzinfo=UTC)}}, False),
        ({"labels.tier": {"not": "gold"}}, False),
        # What is not known is neither, and a false beside it decides.
        ({"error.type": "ConnectionError"}, None),
        ({"error.type": {"not": "ConnectionError"}}, None),
        ({"error.type": "X", "platform": "make"}, None),
        ({"error.type": "X", "platform": "qlik"}, False),
        ({"labels.owner": "me"}, None),
        ({}, True),
    ],
)
def test_what_a_condition_says_of_known_facts(written: dict[str, Any], holds: bool | None) -> None:
    assert all_hold(read(written, "match"), FACTS) is holds


@pytest.mark.parametrize("error_class", ["unknown", "killed"])
def test_what_nothing_is_known_about_matches_only_by_its_name(error_class: str) -> None:
    facts = {"error.class": error_class}
    assert all_hold(read({"error.class": {"not": "auth"}}, ""), facts) is False
    assert all_hold(read({"error.class": [error_class]}, ""), facts) is True
    by_name = Matcher(match=read({"error.class": [error_class, "network"]}, ""))
    by_alternative = Matcher(any=(read({"error.class": error_class}, ""), read({"error.class": "network"}, "")))
    assert by_name.names(error_class)
    assert by_alternative.names(error_class)
    assert not Matcher(match=read({"platform": "make"}, "")).names(error_class)


@pytest.mark.parametrize(
    ("parts", "matches"),
    [
        ({"any": [{"platform": "qlik"}, {"error.class": "network"}]}, True),
        ({"any": [{"platform": "qlik"}, {"error.type": "X"}]}, None),
        ({"any": [{"platform": "qlik"}]}, False),
        ({"none": [{"workflow.name": {"glob": "*payment*"}}]}, True),
        ({"none": [{"workflow.name": {"glob": "*sync"}}]}, False),
        ({"none": [{"error.type": "X"}]}, None),
        ({"none": [{"error.type": "X", "platform": "qlik"}]}, True),
    ],
)
def test_alternatives_and_exclusions(parts: dict[str, Any], matches: bool | None) -> None:
    made: Any = {name: tuple(read(item, name) for item in items) for name, items in parts.items()}
    assert Matcher(**made).matches(FACTS) is matches


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ({"error.klass": "network"}, "match.error.klass: unknown field; one of platform"),
        ({"labels.": "x"}, "match.labels.: unknown field"),
        ({"error.class": "netwrok"}, "match.error.class: unknown error class; one of network"),
        ({"error.class": {"contains": "net"}}, "match.error.class.contains: no operator for error.class; it takes not"),
        ({"age": {"glob": "*"}}, "match.age.glob: no operator for age; it takes gte, gt, lte, lt"),
        ({"age": "15m"}, "match.age: compare it with gte"),
        ({"age": {"gte": 15}}, "match.age.gte: write a duration with its unit"),
        ({"age": {"gte": ["1h", "2h"]}}, "match.age.gte: takes one value"),
        ({"opened_at": "2026-11-28"}, "match.opened_at: compare it with gte"),
        ({"opened_at": {"gte": "yesterday"}}, "match.opened_at.gte: write a time such as 2026-11-28"),
        ({"opened_at": {"gte": 5}}, "match.opened_at.gte: write a time such as 2026-11-28"),
        ({"opened_at": {"gte": ["2026-11-28"]}}, "match.opened_at.gte: takes one value"),
        ({"error.status": "5xx"}, "match.error.status: must be an HTTP status such as 503; for all of 5xx write {gte:"),
        ({"error.status": {"gte": 5}}, "match.error.status.gte: must be an HTTP status"),
        ({"error.status": {"contains": 5}}, "match.error.status.contains: no operator for error.status; it takes not"),
        ({"error.message": {"icontains": ""}}, "match.error.message.icontains: patterns have 1 to 256"),
        ({"retries": -1}, "match.retries: must be a whole number"),
        ({"retries": True}, "match.retries: must be a whole number"),
        ({"error.message": {"glob": "a[b"}}, "match.error.message.glob: bad pattern 'a[b'"),
        ({"error.message": {"contains": ""}}, "match.error.message.contains: patterns have 1 to 256"),
        ({"error.message": {"contains": "x" * 257}}, "match.error.message.contains: patterns have 1 to 256"),
        ({"error.message": {}}, "match.error.message: has no operator"),
        ({"workflow.name": []}, "match.workflow.name: an empty list"),
        ({"workflow.name": 1.5}, "match.workflow.name: must be text"),
        (["platform"], "match: must be a mapping"),
    ],
)
def test_a_mistake_is_one_line_that_names_its_place(written: Any, problem: str) -> None:
    with pytest.raises(BadCondition) as caught:
        read(written, "match")
    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({"workflow": "Order sync"}, "workflow.name or workflow.id"),
        ({"name": "Order sync"}, "workflow.name"),
        ({"class": "network"}, "error.class"),
        ({"error": {"class": "network"}}, "error.class"),
        ({"error_class": "network"}, "error.class"),
        ({"status": 502}, "error.status"),
        ({"error.code": 502}, "error.status"),
        ({"error.mesage": "x"}, "error.message"),
        ({"opened": {"gte": "2026-11-28"}}, "opened_at"),
        ({"label.tier": "gold"}, "labels.tier"),
        ({"labels": {"tier": "gold"}}, "labels.NAME"),
        ({"step": "http"}, "step.type"),
        ({"nonsense": 1}, None),
        ({7: 1}, None),
    ],
)
def test_an_unknown_field_is_answered_with_the_one_that_was_meant(written: Any, meant: str | None) -> None:
    with pytest.raises(BadCondition) as caught:
        read(written, "match")
    assert str(caught.value).partition("; did you mean ")[2] == ("" if meant is None else f"{meant}?")


@pytest.mark.parametrize(
    ("pattern", "spread"),
    [
        ("*{a,b}*", '["*a*", "*b*"]'),
        ("{Order, Invoice} sync", '["Order sync", "Invoice sync"]'),
        ("{a}", None),
        ("a,b", None),
        ("[{]a,b}", None),
    ],
)
def test_braces_in_a_pattern_are_answered_with_a_list(pattern: str, spread: str | None) -> None:
    written = {"workflow.name": {"glob": [pattern]}}
    if spread is None:
        read(written, "match")
        return
    with pytest.raises(BadCondition) as caught:
        read(written, "match")
    assert str(caught.value).endswith(f"braces are no alternatives here: write a list: {spread}")


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(BadCondition) as caught:
        read({"workflow": "x", "age": {"gte": 5, "near": "1h"}, "error.class": ["netwrok", "auth"]}, "match")
    assert [line.partition(": ")[0] for line in caught.value.lines] == [
        "match.workflow", "match.age.gte", "match.age.near", "match.error.class"
    ]  # fmt: skip
    assert caught.value.lines[-1].endswith("; did you mean network?")


def test_regular_expressions_are_linear_or_refused() -> None:
    nested = read({"error.message": {"re": "(a+)+$"}}, "match")
    assert all_hold(nested, {"error.message": "a" * 4000 + "!"}) is False
    assert all_hold(read({"error.message": {"re": r"ETIMEDOUT \d+"}}, ""), FACTS) is True
    with pytest.raises(BadCondition, match=r"match.error.message.re: bad regular expression '\(': missing"):
        read({"error.message": {"re": "("}}, "match")
    with pytest.raises(BadCondition, match="bad regular expression"):
        read({"error.message": {"re": r"(a)\1"}}, "match")  # what a linear engine does not have


TEXTS = st.sampled_from(["a", "ab", "abc", "network", "sync", "Order sync"])
CONDITIONS = st.one_of(
    st.builds(lambda v: {"workflow.name": v}, st.lists(TEXTS, min_size=1, max_size=3)),
    st.builds(lambda op, v: {"workflow.name": {op: v}}, st.sampled_from(["not", "contains", "prefix", "suffix"]),
        st.lists(TEXTS, min_size=1, max_size=2)),
    st.builds(lambda op, n: {"retries": {op: n}}, st.sampled_from(["gte", "gt", "lte", "lt", "not"]),
        st.integers(0, 4)),
    st.builds(lambda n: {"retries": n}, st.lists(st.integers(0, 4), min_size=1, max_size=3)),
)  # fmt: skip
KNOWN = st.fixed_dictionaries({"workflow.name": TEXTS, "retries": st.integers(0, 5).map(float)})


MATCHERS = st.builds(
    lambda match, any_, none: Matcher(
        match=read(match, ""), any=tuple(read(a, "") for a in any_), none=tuple(read(n, "") for n in none)
    ),
    CONDITIONS,
    st.lists(CONDITIONS, max_size=2),
    st.lists(CONDITIONS, max_size=2),
)


@given(MATCHERS, KNOWN, st.sets(st.sampled_from(sorted(FIELDS))))
def test_missing_data_never_makes_a_match_and_never_unmakes_a_mismatch(matcher: Matcher, facts: Any, lost: Any) -> None:
    before, after = matcher.matches(facts), matcher.matches({k: None if k in lost else v for k, v in facts.items()})
    assert after in (before, None)
