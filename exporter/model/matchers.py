"""What a policy may say about a dead letter: typed conditions on a closed list of fields, three-valued. Pure.

A comparison with what is not known is neither true nor false but unknown, and unknown never becomes true on the way
up. So missing data can only reduce retries. A condition is data, not code: that is what makes a policy that can never
match, or that an earlier one always beats, findable when the file is loaded.
"""

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Literal

from exporter.model import ErrorClass
from exporter.model.durations import parse_duration

#: Field to value, None: not known. Texts, numbers, seconds of age, seconds since the epoch.
Facts = Mapping[str, str | float | None]
Kind = Literal["class", "word", "text", "number", "status", "age", "moment"]

#: The closed list. ``labels.*`` comes from the config of the source.
FIELDS: Mapping[str, Kind] = {
    "platform": "word",
    "source": "word",
    "workflow.id": "text",
    "workflow.name": "text",
    "workspace": "text",
    "error.class": "class",
    "error.type": "text",
    "error.status": "status",
    "error.message": "text",
    "error.fingerprint": "text",
    "step.type": "text",
    "opened_at": "moment",
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
    "text": ("not", "contains", "icontains", "prefix", "suffix", "glob", "re"),
    "number": ("not", *_COMPARISONS),
    "status": ("not", *_COMPARISONS),
    "age": _COMPARISONS,
    "moment": _COMPARISONS,
}
#: What nothing is known about, and what was stopped from outside: only a policy that names them matches them.
NAMED_ONLY = frozenset({ErrorClass.UNKNOWN.value, ErrorClass.KILLED.value})
PATTERN_CHARS_MAX = 256


class BadCondition(Exception):
    """Conditions that cannot be used: one line each, with the place inside the policy and what is wrong."""

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


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
            case "icontains":
                text = text.casefold()
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


def kind_of(field: str) -> Kind | None:
    """What the values of a field are; None if there is no such field."""
    return "text" if field.startswith("labels.") and len(field) > len("labels.") else FIELDS.get(field)


def read(written: Any, place: str) -> Conjunction:
    """``{field: value | [values] | {operator: …}}`` to conditions. Raises ``BadCondition`` with all that is wrong."""
    if not isinstance(written, Mapping):
        raise _bad(place, "must be a mapping of fields, for example {error.class: [network, timeout]}")
    conditions: list[Condition] = []
    problems: list[str] = []
    for name, wanted in written.items():
        try:
            conditions += _field(name, wanted, f"{place}.{name}")
        except BadCondition as exc:
            problems += exc.lines
    if problems:
        raise BadCondition(*problems)
    return tuple(conditions)


def _bad(place: str, problem: str) -> BadCondition:
    return BadCondition(f"{place}: {problem}")


def _field(name: Any, wanted: Any, at: str) -> list[Condition]:
    kind = kind_of(name) if isinstance(name, str) else None
    if kind is None:
        meant = " or ".join(_meant(str(name), wanted))
        hint = f"; did you mean {meant}?" if meant else ""
        raise _bad(at, f"unknown field; one of {', '.join(FIELDS)}, labels.*{hint}")
    if isinstance(wanted, Mapping):
        if not wanted:
            raise _bad(at, "has no operator")
        conditions, problems = [], list[str]()
        for op, value in wanted.items():
            try:
                conditions.append(_operation(name, kind, str(op), value, f"{at}.{op}"))
            except BadCondition as exc:
                problems += exc.lines
        if problems:
            raise BadCondition(*problems)
        return conditions
    if kind in _EXAMPLES:
        raise _bad(at, f"compare it with gte, gt, lte or lt, for example {_EXAMPLES[kind]}")
    return [Condition(field=name, op="is", values=_values(kind, wanted, at))]


_EXAMPLES: Mapping[Kind, str] = {"age": "{gte: 15m}", "moment": "{gte: 2026-11-28T22:00}"}


def _meant(name: str, wanted: Any) -> list[str]:
    """The fields that somebody may have meant who wrote another name."""
    said = name.lower().replace("_", ".")
    if said.partition(".")[0] in ("label", "labels"):
        return [f"labels.{said.partition('.')[2] or 'NAME'}"]
    if isinstance(wanted, Mapping) and (below := [f"{said}.{key}" for key in wanted if f"{said}.{key}" in FIELDS]):
        return below
    if said == "workflow":
        return ["workflow.name", "workflow.id"]
    if said in ("error.code", "code"):
        return ["error.status"]
    near = [field for field in FIELDS if field.rpartition(".")[2] == said or field.startswith(f"{said}.")]
    return near or get_close_matches(said, list(FIELDS), 1, 0.7)


def _operation(name: str, kind: Kind, op: str, value: Any, place: str) -> Condition:
    if op not in _OPERATORS[kind]:
        allowed = ", ".join(_OPERATORS[kind])
        raise _bad(place, f"no operator for {name}; it takes {allowed}")
    if op in _COMPARISONS:
        if isinstance(value, list):
            raise _bad(place, "takes one value")
        if kind == "moment":
            return _moment(name, op, value, place)
        return Condition(field=name, op=op, values=(_value(kind, value, place),))
    values = _values(kind, value, place)
    if op == "not":
        return Condition(field=name, op=op, values=values)
    for text in values:
        if not text or len(text) > PATTERN_CHARS_MAX:
            raise _bad(place, f"patterns have 1 to {PATTERN_CHARS_MAX} characters")
    if op == "icontains":
        values = tuple(text.casefold() for text in values)
    if op == "glob":
        _check_globs(values, place)
    tests = tuple(_compiled(pattern, place) for pattern in values) if op == "re" else ()
    return Condition(field=name, op=op, values=values, tests=tests)


def _check_globs(patterns: Iterable[str], place: str) -> None:
    for pattern in patterns:
        if pattern.count("[") != pattern.count("]"):
            raise _bad(place, f"bad pattern {pattern!r}: a [ without its ]")
        if spread := braces(pattern):
            raise _bad(place, f"bad pattern {pattern!r}: braces are no alternatives here: write a list: {spread}")


def braces(pattern: str) -> str | None:
    """The list that somebody meant who wrote ``*{a,b}*``; None without such braces."""
    found = re.search(r"(?<!\[)\{([^{}]*,[^{}]*)\}", pattern)
    if found is None:
        return None
    before, after = pattern[: found.start()], pattern[found.end() :]
    return "[" + ", ".join(f'"{before}{part.strip()}{after}"' for part in found[1].split(",")) + "]"


def _compiled(pattern: str, place: str) -> Callable[[str], bool]:
    try:
        import re2
    except ImportError:
        raise _bad(place, "needs the extra re2: pip install 'automation-exporter[re2]'") from None
    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as exc:
        detail = exc.args[0].decode() if exc.args and isinstance(exc.args[0], bytes) else exc
        raise _bad(place, f"bad regular expression {pattern!r}: {detail}") from None
    return lambda text: compiled.search(text) is not None


def _values(kind: Kind, wanted: Any, place: str) -> tuple[Any, ...]:
    items = wanted if isinstance(wanted, list) else [wanted]
    if not items:
        raise _bad(place, "an empty list matches nothing")
    return tuple(_value(kind, item, place) for item in items)


def _value(kind: Kind, value: Any, place: str) -> Any:
    match kind:
        case "number" | "status":
            number = value if isinstance(value, int) and not isinstance(value, bool) else -1
            if kind == "status" and not 100 <= number <= 600:
                raise _bad(place, "must be an HTTP status such as 503; for all of 5xx write {gte: 500}")
            if number < 0:
                raise _bad(place, "must be a whole number from 0 up")
            return number
        case "age":
            try:
                return parse_duration(value)
            except ValueError as exc:
                raise _bad(place, str(exc)) from None
        case "class":
            known = [error_class.value for error_class in ErrorClass]
            if value not in known:
                near = get_close_matches(str(value).lower(), known, 1, 0.7)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise _bad(place, f"unknown error class; one of {', '.join(known)}{hint}")
            return value
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _bad(place, "must be text; put it in quotes")
    return str(value)


def _moment(name: str, op: str, value: Any, place: str) -> Condition:
    """A comparison with a time, in UTC unless it says otherwise. A date alone means the whole day."""
    text = value.isoformat() if isinstance(value, date) else value  # YAML makes times of what looks like one
    try:
        written = datetime.fromisoformat(text.strip())
        if written.tzinfo is None:
            written = written.replace(tzinfo=UTC)
        if op in ("gt", "lte") and re.fullmatch(r"[\dW-]+", text.strip()):
            op, written = {"gt": "gte", "lte": "lt"}[op], written + timedelta(days=1)
        return Condition(field=name, op=op, values=(written.timestamp(),))
    except (AttributeError, ValueError, OverflowError):
        raise _bad(place, "write a time such as 2026-11-28 or 2026-11-28T22:00+01:00 (UTC without a zone)") from None
