"""Which policies can never own a dead letter, as the file alone tells. Pure.

That is a search: for a dead letter, described no closer than the conditions ask, that a policy matches and none before
it takes. It splits on one comparison after the other: the class is among these or not, the name holds this text or not.
Where every branch ends at an earlier policy, nothing is left for the later one, however many it took together. What the
search cannot see through (the overlap of two patterns, a file too large for it) counts as possible: it only accuses
where it is sure.

What is not known stops the walk at the policy that asks for it, so a missing value reaches no later policy either.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import combinations

from exporter.model import ErrorClass
from exporter.model.labels import Labels
from exporter.model.matchers import NAMED_ONLY, Condition, Conjunction, Matcher, kind_of
from exporter.model.policy import Policy
from exporter.model.retries import Action

#: A search that takes longer than this ends without a verdict.
STEPS_MAX = 2000
_INFINITE = float("inf")
_CLASSES = tuple(error_class.value for error_class in ErrorClass)
#: Every value of the fields that have few.
_DOMAINS: Mapping[str, frozenset[str | float]] = {
    "error.class": frozenset(_CLASSES),
    "error.status": frozenset(range(100, 600)),
    "retries": frozenset(range(1001)),
}
#: A threshold: at least so much (0), or more than so much (1).
_Mark = tuple[float, int]


@dataclass(frozen=True, slots=True)
class _Atom:
    """One comparison with one value: of a text, of a number (``from``), or with all that a value may be (``in``)."""

    field: str
    op: str
    value: str | _Mark | frozenset[str | float]

    def holds(self, text: str) -> bool:
        """Of a text."""
        value = str(self.value)
        match self.op:
            case "is":
                return text == value
            case "contains":
                return value in text
            case "icontains":
                return value in text.casefold()
            case "prefix":
                return text.startswith(value)
            case "suffix":
                return text.endswith(value)
            case _:
                return fnmatchcase(text, value)

    def implies(self, other: "_Atom") -> bool:
        """Whether what fits this text surely fits the other as well."""
        if self == other:
            return True
        one, two = str(self.value), str(other.value)
        if self.op == "is":
            return other.op != "re" and other.holds(one)
        match other.op:
            case "contains":
                return self.op in ("contains", "prefix", "suffix") and two in one
            case "icontains":
                return self.op in ("contains", "icontains", "prefix", "suffix") and two in one.casefold()
            case "prefix" | "suffix":
                return self.op == other.op and other.holds(one)
        return False

    def excludes(self, other: "_Atom") -> bool:
        """Whether what fits this text surely does not fit the other."""
        if "re" in (self.op, other.op):
            return False
        if "is" in (self.op, other.op):
            one, two = (self, other) if self.op == "is" else (other, self)
            return not two.holds(str(one.value))
        if self.op == other.op and self.op in ("prefix", "suffix"):
            return not (self.holds(str(other.value)) or other.holds(str(self.value)))
        return False


@dataclass(frozen=True, slots=True)
class _Test:
    """One of these atoms, or none of them."""

    atoms: tuple[_Atom, ...]
    negated: bool = False


#: True, False, or the atom that has to be decided first; all of it is made of tests.
_Verdict = bool | _Atom


@dataclass(frozen=True, slots=True)
class _Rule:
    """A policy as it stands for one source: ``all`` of these, and one of each of ``any``, and none of ``none``."""

    name: str
    all: tuple[_Test, ...]
    any: tuple[tuple[_Test, ...], ...] | None
    none: tuple[tuple[_Test, ...], ...]

    @property
    def size(self) -> int:
        return len(self.all) + sum(len(way) for way in (*(self.any or ()), *self.none))

    def matches(self, state: "_State") -> _Verdict:
        verdict = _and(state.of(test) for test in self.all)
        if verdict is False:
            return False
        if self.any is not None:
            verdict = _and((verdict, _or(_and(map(state.of, way)) for way in self.any)))
        for exclusion in self.none:
            if verdict is False:
                return False
            verdict = _and((verdict, _not(_and(map(state.of, exclusion)))))
        return verdict


def _and(verdicts: Iterable[_Verdict]) -> _Verdict:
    open_: _Verdict = True
    for verdict in verdicts:
        if verdict is False:
            return False
        if open_ is True:
            open_ = verdict
    return open_


def _not(verdict: _Verdict) -> _Verdict:
    return not verdict if isinstance(verdict, bool) else verdict


def _or(verdicts: Iterable[_Verdict]) -> _Verdict:
    return _not(_and(_not(verdict) for verdict in verdicts))


@dataclass(frozen=True, slots=True)
class _State:
    """What has been assumed of a dead letter so far."""

    sets: Mapping[str, frozenset[str | float]]  # what values a field may still have
    marks: Mapping[str, tuple[_Mark, _Mark]] = field(default_factory=dict)  # at least, and below
    texts: Mapping[str, tuple[tuple[_Atom, bool], ...]] = field(default_factory=dict)

    def of(self, test: _Test) -> _Verdict:
        verdict = _or(self.atom(atom) for atom in test.atoms)
        return _not(verdict) if test.negated else verdict

    def atom(self, atom: _Atom) -> _Verdict:
        if isinstance(atom.value, frozenset):
            possible = self.sets.get(atom.field, frozenset())
            return True if possible <= atom.value else atom if possible & atom.value else False
        if isinstance(atom.value, tuple):
            low, high = self._between(atom.field)
            return True if atom.value <= low else False if atom.value >= high else atom
        for known, holds in self.texts.get(atom.field, ()):
            if known == atom:
                return holds
            if holds and known.implies(atom):
                return True
            if (holds and known.excludes(atom)) or (not holds and atom.implies(known)):
                return False
        return atom

    def _between(self, name: str) -> tuple[_Mark, _Mark]:
        return self.marks.get(name, ((0.0 if name == "age" else -_INFINITE, 0), (_INFINITE, 0)))

    def assuming(self, atom: _Atom, holds: bool) -> "_State":
        """The same, and this was decided so."""
        name, value = atom.field, atom.value
        if isinstance(value, frozenset):
            possible = self.sets.get(name, frozenset())
            return replace(self, sets={**self.sets, name: possible & value if holds else possible - value})
        if isinstance(value, tuple):
            low, high = self._between(name)
            return replace(self, marks={**self.marks, name: (value, high) if holds else (low, value)})
        return replace(self, texts={**self.texts, name: (*self.texts.get(name, ()), (atom, holds))})


@dataclass(slots=True)
class _Search:
    """For a dead letter that is left for ``later``."""

    later: _Rule
    steps: int = STEPS_MAX
    takers: set[str] = field(default_factory=set)  # earlier policies at which a branch ended

    def finds(self, state: _State, earlier: Sequence[_Rule], *, at: int | None = None) -> bool:
        """``at``: the earlier ones before it do not match; None: nobody knows, so all are asked."""
        self.steps -= 1
        if self.steps < 0:
            return True
        owned = self.later.matches(state)
        if owned is False:
            return False
        if at is None:
            verdicts = [(rule, rule.matches(state)) for rule in earlier]
            taken = next((rule for rule, verdict in verdicts if verdict is True), None)
            if taken is not None:
                self.takers.add(taken.name)
                return False
            # the plain ones first: they end most branches
            earlier, at = sorted((r for r, verdict in verdicts if verdict is not False), key=lambda r: r.size), 0
        if owned is not True:
            return any(self.finds(state.assuming(owned, holds), earlier) for holds in (True, False))
        for index in range(at, len(earlier)):
            verdict = earlier[index].matches(state)
            if verdict is True:
                self.takers.add(earlier[index].name)
                return False
            if verdict is not False:
                # what is decided of a text concerns few others: they are asked in their turn
                turn = index if isinstance(verdict.value, str) else None
                return any(self.finds(state.assuming(verdict, h), earlier, at=turn) for h in (False, True))
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A source, as far as policies may ask of it."""

    name: str
    platform: str
    labels: Labels


def impossible(policy: Policy, places: Sequence[Place]) -> str | None:
    """Why it can match no dead letter of these sources, whatever comes before it."""
    if any(_finds(policy, (), place) for place in places):
        return None
    matcher = policy.matcher
    ways = [(*matcher.match, *alternative) for alternative in matcher.any] or [matcher.match]
    return next((why for way in ways if (why := _why(way, places))), "none excludes everything that match lets in")


def takers(policy: Policy, earlier: Sequence[Policy], places: Sequence[Place]) -> list[str]:
    """The earlier policies that leave it nothing, in order; none where something is left for it."""
    found: set[str] = set()
    for place in _kinds(places, (*earlier, policy)):
        ended = _ended(policy, earlier, place)
        if ended is None:
            return []
        found |= ended
    alone = [one for one in earlier if one.name in found and all(_finds(policy, [one], p) is False for p in places)]
    return [alone[0].name] if alone else [one.name for one in earlier if one.name in found]


def _why(way: Conjunction, places: Sequence[Place]) -> str | None:
    """Why these conditions can never hold together, where that can be said of one or two of them."""
    for condition in way:
        if all(_holds_nowhere((condition,), place) for place in places):
            whose = "no configured source has this" if _of_source(condition) else "nothing can have such a value of"
            return f"{whose} {condition.field}"
    of_source = tuple(filter(_of_source, way))
    if all(_holds_nowhere(of_source, place) for place in places):
        return f"no configured source has all of {', '.join(condition.field for condition in of_source)}"
    for one, other in combinations(way, 2):
        if one.field == other.field and all(_holds_nowhere((one, other), place) for place in places):
            return f"{one.field} cannot be both"
    return None


def _of_source(condition: Condition) -> bool:
    return condition.field in ("source", "platform") or condition.field.startswith("labels.")


def _holds_nowhere(conditions: Conjunction, place: Place) -> bool:
    alone = Policy(name="", hash="", matcher=Matcher(match=conditions), action=Action.HOLD)
    return not _finds(alone, (), place)


def _finds(policy: Policy, earlier: Sequence[Policy], place: Place) -> bool:
    return _ended(policy, earlier, place) is None


def _ended(policy: Policy, earlier: Sequence[Policy], place: Place) -> set[str] | None:
    """Where every branch of the search ended; None if something is left."""
    later = _rule(policy, place, unknown=False)
    if later is None:
        return set()
    rules = [rule for one in earlier if (rule := _rule(one, place, unknown=True)) is not None]
    sets = {**_DOMAINS, **{f"labels.{name}": frozenset[str | float](v) for name, v in _values(place.labels).items()}}
    search = _Search(later)
    return None if search.finds(_State(sets), rules) else search.takers


def _kinds(places: Sequence[Place], policies: Sequence[Policy]) -> Iterator[Place]:
    """One source of each kind that these policies can tell apart."""
    conditions = [
        condition
        for policy in policies
        for way in (policy.matcher.match, *policy.matcher.any, *policy.matcher.none)
        for condition in way
    ]
    named = {str(value) for condition in conditions if condition.field == "source" for value in condition.values}
    asked = {condition.field.removeprefix("labels.") for condition in conditions}
    seen = set[object]()
    for place in places:
        labels = frozenset((name, values) for name, values in _values(place.labels).items() if name in asked)
        kind = (place.name if place.name in named else "", place.platform, labels)
        if kind not in seen:
            seen.add(kind)
            yield place


def _values(labels: Labels) -> dict[str, frozenset[str]]:
    """What values each label of a source may have."""
    found: dict[str, set[str]] = {}
    for written in (labels.source, *(entry.labels for entry in labels.workflows)):
        for name, value in written.items():
            found.setdefault(name, set()).add(value)
    return {name: frozenset(values) for name, values in found.items()}


def _rule(policy: Policy, place: Place, *, unknown: bool) -> _Rule | None:
    """A policy as it stands for one source; None if it is not about it.

    A label that the source never has makes a condition ``unknown``: as good as true for a policy at which the walk
    would stop, and as good as false for one that should own a dead letter.
    """
    matcher = policy.matcher
    required = _tests(matcher.match, place, unknown)
    ways = [way for one in matcher.any if (way := _tests(one, place, unknown)) is not None]
    none = [way for one in matcher.none if (way := _tests(one, place, not unknown)) is not None]
    if required is None or (matcher.any and not ways) or () in none:
        return None
    if policy.action is Action.RETRY:
        # it leaves what is unknown or was killed to others, unless it names it
        owned = frozenset[str | float](c for c in _CLASSES if c not in NAMED_ONLY or matcher.names(c))
        required = (*required, _Test((_Atom("error.class", "in", owned),)))
    return _Rule(name=policy.name, all=required, any=tuple(ways) if matcher.any else None, none=tuple(none))


def _tests(conditions: Conjunction, place: Place, unknown: bool) -> tuple[_Test, ...] | None:
    """The conditions for one source; None if they cannot hold there."""
    tests = []
    for condition in conditions:
        test = _test(condition, place, unknown)
        if test is False:
            return None
        if test is not True:
            tests.append(test)
    return tuple(tests)


def _test(condition: Condition, place: Place, unknown: bool) -> _Test | bool:
    name, op, values = condition.field, condition.op, condition.values
    if name in ("source", "platform"):
        return bool(condition.holds({"source": place.name, "platform": place.platform}))
    domain = _domain(name, place)
    if domain is not None:
        if not domain:
            return unknown
        held = frozenset(value for value in domain if condition.holds({name: value}))
        return _Test((_Atom(name, "in", held),)) if held else False
    if kind_of(name) == "text":
        if op in ("is", "not"):
            return _Test(tuple(_Atom(name, "is", value) for value in values), negated=op == "not")
        return _Test(tuple(_Atom(name, op, value) for value in values))
    return _Test((_Atom(name, "from", (values[0], 1 if op in ("gt", "lte") else 0)),), negated=op in ("lt", "lte"))


def _domain(name: str, place: Place) -> frozenset[str | float] | None:
    """Every value that a field can have; None where they are not to be counted."""
    if name.startswith("labels."):
        return frozenset(_values(place.labels).get(name.removeprefix("labels."), ()))
    return _DOMAINS.get(name)
