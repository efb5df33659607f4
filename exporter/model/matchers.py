"""What a policy may say about a dead letter: typed conditions on a closed list of fields, three-valued. Pure.

A comparison with what is not known is neither true nor false but unknown, and unknown never becomes true on the way
up. So missing data can only reduce retries. A condition is data, not code: that is what makes a policy that can never
match, or that an earlier one always beats, findable when the file is loaded.
"""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from exporter.model import ErrorClass
from exporter.model.durations import parse_duration

#: Field to value, None: not known. Texts, numbers of retries, seconds of age.
Facts = Mapping[str, str | float | None]
Kind = Literal["class", "word", "text", "number", "age"]

#: The closed list. ``labels.*`` comes from the config of the source.
FIELDS: Mapping[str, Kind] = {
    "platform": "word",
    "source": "word",
    "workflow.id": "text",
    "workflow.name": "text",
    "workspace": "text",
    "error.class": "class",
    "error.type": "text",
    "error.message": "text",
    "error.fingerprint": "text",
    "step.type": "text",
    "age": "age",
    "retries": "number",
    "trigger": "text",
}
_compare: Mapping[str, Callable[[float, float], bool]] = {
    "gte": operator.ge,
    "gt": operator.gt,
    "lte": operator.le,
    "lt": operator.lt,
}
_COMPARISONS = tuple(_compare)
_OPERATORS: Mapping[Kind, tuple[str, ...]] = {
    "class": ("not",),
    "word": ("not",),
    "text": ("not", "contains", "prefix", "suffix", "glob", "re"),
    "number": ("not", *_COMPARISONS),
    "age": _COMPARISONS,
}
#: What nothing is known about, and what was stopped from outside: only a policy that names them matches them.
NAMED_ONLY = frozenset({ErrorClass.UNKNOWN.value, ErrorClass.KILLED.value})
PATTERN_CHARS_MAX = 256


class BadCondition(Exception):
    """A condition that cannot be used: the place inside the policy, and what is wrong."""

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"{place}: {problem}")
        self.place = place
        self.problem = problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One comparison: any of ``values`` will do; for ``not``, none of them may be."""

    field: str
    op: str
    values: tuple[Any, ...]
    tests: tuple[Callable[[str], bool], ...] = ()  # compiled, of regular expressions

    def holds(self, facts: Facts) -> bool | None:
        value = facts.get(self.field)
        if value is None:
            return None
        match self.op:
            case "is":
                return value in self.values
            case "not":
                if self.field == "error.class" and value in NAMED_ONLY:
                    return False
                return value not in self.values
        if self.op in _COMPARISONS:
            return _compare[self.op](float(value), self.values[0])
        text = str(value)
        match self.op:
            case "contains":
                return any(part in text for part in self.values)
            case "prefix":
                return text.startswith(self.values)
            case "suffix":
                return text.endswith(self.values)
            case "glob":
                return any(fnmatchcase(text, pattern) for pattern in self.values)
            case _:
                return any(test(text) for test in self.tests)


#: Conditions that must all hold.
Conjunction = tuple[Condition, ...]


def all_hold(conditions: Iterable[Condition], facts: Facts) -> bool | None:
    """Kleene's and: false as soon as one is false, else unknown if one is unknown."""
    return _and(condition.holds(facts) for condition in conditions)


def _and(values: Iterable[bool | None]) -> bool | None:
    result: bool | None = True
    for value in values:
        if value is False:
            return False
        if value is None:
            result = None
    return result


def _or(values: Iterable[bool | None]) -> bool | None:
    result: bool | None = False
    for value in values:
        if value is True:
            return True
        if value is None:
            result = None
    return result


def _not(value: bool | None) -> bool | None:
    return None if value is None else not value


@dataclass(frozen=True, slots=True, kw_only=True)
class Matcher:
    """All of ``match``, one of ``any`` (if there are any), and none of ``none``."""

    match: Conjunction = ()
    any: tuple[Conjunction, ...] = ()
    none: tuple[Conjunction, ...] = ()

    def matches(self, facts: Facts) -> bool | None:
        parts = [all_hold(self.match, facts)]
        if self.any:
            parts.append(_or(all_hold(alternative, facts) for alternative in self.any))
        parts += [_not(all_hold(exclusion, facts)) for exclusion in self.none]
        return _and(parts)

    def fields(self) -> frozenset[str]:
        """Every field it looks at."""
        groups = (self.match, *self.any, *self.none)
        return frozenset(condition.field for group in groups for condition in group)

    def ages(self) -> frozenset[float]:
        """The ages (seconds) at which a comparison changes its mind."""
        groups = (self.match, *self.any, *self.none)
        return frozenset(float(c.values[0]) for group in groups for c in group if c.field == "age")

    def names(self, error_class: str) -> bool:
        """Whether a class of errors is asked for by its name, wherever a match is possible."""

        def named(conditions: Conjunction) -> bool:
            return any(c.field == "error.class" and c.op == "is" and error_class in c.values for c in conditions)

        return named(self.match) or (bool(self.any) and any(named(alternative) for alternative in self.any))


# Reading what a user wrote.


def read(written: Any, place: str) -> Conjunction:
    """``{field: value | [values] | {operator: …}}`` to conditions. Raises ``BadCondition``."""
    if not isinstance(written, Mapping):
        raise BadCondition(place, "must be a mapping of fields, for example {error.class: [network, timeout]}")
    conditions: list[Condition] = []
    for name, wanted in written.items():
        at = f"{place}.{name}"
        kind = _kind(name, at)
        if isinstance(wanted, Mapping):
            if not wanted:
                raise BadCondition(at, "has no operator")
            conditions += [_operation(str(name), kind, str(op), value, f"{at}.{op}") for op, value in wanted.items()]
        elif kind == "age":
            raise BadCondition(at, "compare an age with gte, gt, lte or lt, for example {gte: 15m}")
        else:
            conditions.append(Condition(field=str(name), op="is", values=_values(kind, wanted, at)))
    return tuple(conditions)


def _kind(name: Any, place: str) -> Kind:
    if isinstance(name, str) and name.startswith("labels.") and len(name) > len("labels."):
        return "text"
    if name not in FIELDS:
        raise BadCondition(place, f"unknown field; one of {', '.join(FIELDS)}, labels.*")
    return FIELDS[name]


def _operation(name: str, kind: Kind, op: str, value: Any, place: str) -> Condition:
    if op not in _OPERATORS[kind]:
        allowed = ", ".join(_OPERATORS[kind])
        raise BadCondition(place, f"no operator for {name}; it takes {allowed}")
    if op in _COMPARISONS:
        if isinstance(value, list):
            raise BadCondition(place, "takes one value")
        return Condition(field=name, op=op, values=(_value(kind, value, place),))
    values = _values(kind, value, place)
    if op in ("contains", "prefix", "suffix", "glob", "re"):
        for text in values:
            if not text or len(text) > PATTERN_CHARS_MAX:
                raise BadCondition(place, f"patterns have 1 to {PATTERN_CHARS_MAX} characters")
    if op == "glob":
        for pattern in values:
            if pattern.count("[") != pattern.count("]"):
                raise BadCondition(place, f"bad pattern {pattern!r}: a [ without its ]")
    tests = tuple(_compiled(pattern, place) for pattern in values) if op == "re" else ()
    return Condition(field=name, op=op, values=values, tests=tests)


def _compiled(pattern: str, place: str) -> Callable[[str], bool]:
    try:
        import re2
    except ImportError:
        raise BadCondition(place, "needs the extra re2: pip install 'automation-exporter[re2]'") from None
    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as exc:
        detail = exc.args[0].decode() if exc.args and isinstance(exc.args[0], bytes) else exc
        raise BadCondition(place, f"bad regular expression {pattern!r}: {detail}") from None
    return lambda text: compiled.search(text) is not None


def _values(kind: Kind, wanted: Any, place: str) -> tuple[Any, ...]:
    items = wanted if isinstance(wanted, list) else [wanted]
    if not items:
        raise BadCondition(place, "an empty list matches nothing")
    return tuple(_value(kind, item, place) for item in items)


def _value(kind: Kind, value: Any, place: str) -> Any:
    match kind:
        case "number":
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise BadCondition(place, "must be a whole number from 0 up")
            return value
        case "age":
            try:
                return parse_duration(value)
            except ValueError as exc:
                raise BadCondition(place, str(exc)) from None
        case "class":
            known = [error_class.value for error_class in ErrorClass]
            if value not in known:
                raise BadCondition(place, f"unknown error class; one of {', '.join(known)}")
            return value
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadCondition(place, "must be text; put it in quotes")
    return str(value)


# What can be known of conditions without any dead letter.


def contradiction(conditions: Sequence[Condition]) -> str | None:
    """Why these can never hold together; None if nothing says so."""
    for index, one in enumerate(conditions):
        for other in conditions[index + 1 :]:
            if one.field == other.field and _disjoint(one, other):
                return f"{one.field} cannot be both"
    return None


def _disjoint(one: Condition, other: Condition) -> bool:
    if one.op in _COMPARISONS and other.op in _COMPARISONS:
        low, high = (one, other) if one.op in ("gte", "gt") else (other, one)
        if low.op not in ("gte", "gt") or high.op not in ("lte", "lt"):
            return False
        floor, ceiling = low.values[0], high.values[0]
        return bool(floor > ceiling or (floor == ceiling and (low.op, high.op) != ("gte", "lte")))
    if one.op == "is":
        return not any(other.holds({one.field: value}) for value in one.values)
    if other.op == "is":
        return not any(one.holds({other.field: value}) for value in other.values)
    return False


def implies(given: Sequence[Condition], wanted: Condition) -> bool:
    """Whether conditions that hold together make sure that ``wanted`` holds too (False also means: cannot tell)."""
    return any(condition.field == wanted.field and _implies(condition, wanted) for condition in given)


def _implies(one: Condition, wanted: Condition) -> bool:
    if one.op == "is":
        return all(wanted.holds({one.field: value}) for value in one.values)
    if one.op in _COMPARISONS and wanted.op in _COMPARISONS:
        ends = (one.op, wanted.op)
        if ends[0][0] != ends[1][0]:  # one bounds from below, the other from above
            return False
        a, b = one.values[0], wanted.values[0]
        tighter = a > b if wanted.op in ("gte", "gt") else a < b
        return bool(tighter or (a == b and (one.op == wanted.op or one.op in ("gt", "lt"))))
    if one.op == wanted.op == "not":
        return set(wanted.values) <= set(one.values)
    return one.op == wanted.op and set(one.values) <= set(wanted.values)
