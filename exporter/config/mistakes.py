"""Policies that say what cannot be meant: what is surely wrong is an error, what hardly anybody means is a warning.

Everything is found in one go, whatever else is wrong in the file: a policy of which one key cannot be read is still
looked at for the rest of it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from exporter.config import wording
from exporter.config.retries import PolicyConfig, RetriesConfig, compiled
from exporter.model import reach
from exporter.model.durations import duration_text
from exporter.model.matchers import Condition, Conjunction
from exporter.model.policy import Policy
from exporter.model.reach import Place
from exporter.model.retries import Action, Mode
from exporter.model.windows import LOOK_AHEAD_DAYS, Dates

#: What makes no sense without a retry.
_ABOUT_RETRIES = ("approve", "exhausted", "gate", "retry", "verify", "when")
_MATCHING = frozenset({"match", "any", "none"})
#: Fields that tell nothing of an error or the workflow it is in.
_SAY_LITTLE = frozenset({"platform", "source", "age", "retries"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """A policy as it was written, as far as it could be read."""

    place: str
    config: PolicyConfig
    policy: Policy
    unread: frozenset[str]  # keys that are wrong, and were left out


def mistakes(written: Any, places: Sequence[Place], *, labels_known: bool = True) -> list[str]:
    """Everything that is surely wrong with what stands under ``retries``, each with its place.

    ``places`` are the sources, as far as they can be read.
    """
    problems: list[str] = []
    try:
        RetriesConfig.model_validate({} if written is None else written)
    except ValidationError as exc:
        problems += wording.lines(exc, "retries", RetriesConfig)
    section = written if isinstance(written, Mapping) else {}
    sources, items = section.get("sources"), section.get("policies")
    known = [place.name for place in places]
    for name in sources if isinstance(sources, Mapping) else ():
        if str(name) not in known:
            problems.append(f"retries.sources.{name}: there is no such source; one of {', '.join(known)}")
    read = list(_read(items)) if isinstance(items, list) else []
    names: set[str] = set()
    earlier: list[Policy] = []
    for one in read:
        if one.config.name in names:
            problems.append(f"{one.place}.name: {one.config.name} is used twice")
        names.add(one.config.name)
        problems += [line for needs, check in _CHECKS if not needs & one.unread for line in check(one)]
        if one.unread & (_MATCHING | {"action"}) or not (labels_known or _asks_no_label(one)):
            continue
        unknown = list(_unknown_labels(one, places))
        problems += unknown
        if unknown:
            continue
        problems += _never(one, earlier, places)
        earlier.append(one.policy)
    return problems


def _read(items: Sequence[Any]) -> Iterator[_Written]:
    for index, item in enumerate(items):
        unread: frozenset[str] = frozenset()
        try:
            config = PolicyConfig.model_validate(item)
        except ValidationError as exc:
            unread = frozenset(str(error["loc"][0]) for error in exc.errors() if error["loc"])
            try:
                config = PolicyConfig.model_validate({key: item[key] for key in item if str(key) not in unread})
            except (ValidationError, TypeError):  # without a name or an action it is nothing
                continue
        yield _Written(place=f"retries.policies[{index}]", config=config, policy=compiled(config), unread=unread)


# What is surely wrong.


def _beside(one: _Written) -> Iterator[str]:
    if one.config.action is Action.RETRY:
        return
    for name in _ABOUT_RETRIES:
        if name not in one.unread and getattr(one.config, name) != PolicyConfig.model_fields[name].default:
            yield f"{one.place}: {name} makes no sense beside action: {one.config.action}"


def _no_retries(one: _Written) -> Iterator[str]:
    if one.config.action is Action.RETRY and one.config.retry.retries == 0:
        yield f"{one.place}.retry.retries: 0 retries beside action: retry: write at least 1, or action: hold"


def _too_late(one: _Written) -> Iterator[str]:
    """The first back-off, against the time after which a policy gives up."""
    policy = one.policy
    if policy.action is Action.RETRY and policy.backoff.first >= policy.give_up_after:
        first, end = duration_text(policy.backoff.first), duration_text(policy.give_up_after)
        yield f"{one.place}.retry.give_up_after: {end} is over before the first retry, after {first}: raise it"


def _too_young(one: _Written) -> Iterator[str]:
    """The first back-off, against the age up to which a policy matches."""
    policy, below = one.policy, _below("age", one.policy)
    if policy.action is Action.RETRY and below <= _earliest(policy):
        yield (
            f"{one.place}: age below {duration_text(below)} is over before the first retry, after "
            f"{duration_text(policy.backoff.first)} less jitter: raise the age, or lower retry.backoff.first"
        )


def _used_up(one: _Written) -> Iterator[str]:
    """How often it retries, against the retries from which on it matches."""
    policy = one.policy
    low = max((_from(c) for c in policy.matcher.match if c.field == "retries"), default=0.0)
    if policy.action is Action.RETRY and 0 < policy.retries <= low:
        yield (
            f"{one.place}.retry.retries: it matches from {low:.0f} retries on and allows {policy.retries} in all: "
            f"write at least {low + 1:.0f}"
        )


def _never(one: _Written, earlier: Sequence[Policy], places: Sequence[Place]) -> Iterator[str]:
    name = one.policy.name
    why = reach.impossible(one.policy, places)
    if why is not None:
        half = next(_half_labelled([one], places), "") if why.startswith("none ") else ""
        yield f"{one.place}: {name} can never match: {why}" + (half and f"; {half.partition(': ')[2]}")
        return
    takers = reach.takers(one.policy, earlier, places)
    if len(takers) == 1:
        yield f"{one.place}: {name} can never be reached: {takers[0]}, before it, takes all of it"
    elif takers:
        names = f"{', '.join(takers[:-1])} and {takers[-1]}"
        yield f"{one.place}: {name} can never be reached: {names}, before it, take all of it together"


def _unknown_labels(one: _Written, places: Sequence[Place]) -> Iterator[str]:
    has = {name for place in places for name in place.labels.names()}
    fields = [(place, condition.field) for place, conditions in _parts(one) for condition in conditions]
    fields += [(f"{one.place}.group_by", name) for name in one.policy.group_by if "group_by" not in one.unread]
    for place, name in dict.fromkeys(fields):
        if name.startswith("labels.") and name.removeprefix("labels.") not in has:
            known = f"; there are {', '.join(sorted(has))}" if has else ""
            yield (
                f"{place}.{name}: no source or workflow has this label: give it in labels or workflow_labels of a "
                f"source{known}"
            )


def _asks_no_label(one: _Written) -> bool:
    return not any(name.startswith("labels.") for name in (*one.policy.matcher.fields(), *one.policy.group_by))


#: Each check with the keys it looks at.
_CHECKS: tuple[tuple[frozenset[str], Callable[[_Written], Iterator[str]]], ...] = (
    (frozenset({"action"}), _beside),
    (frozenset({"action", "retry"}), _no_retries),
    (frozenset({"action", "retry"}), _too_late),
    (_MATCHING | {"action", "retry"}, _too_young),
    (_MATCHING | {"action", "retry"}, _used_up),
)


# What hardly anybody means.


def doubts(config: RetriesConfig, places: Sequence[Place], *, now: float) -> list[str]:
    """What of correct policies is probably not meant, each with its place and the way out."""
    items = [
        _Written(place=f"retries.policies[{index}]", config=policy, policy=compiled(policy), unread=frozenset())
        for index, policy in enumerate(config.policies)
    ]
    found = [line for one in items for line in _without_class(one)]
    for one in items:
        found += [*_does_not_fit(one), *_hours(one, now), *_wildcards(one)]
    return [*found, *_half_labelled(items, places)]


def _without_class(one: _Written) -> Iterator[str]:
    """A retry leaves errors that are unknown or were killed to policies that name them."""
    policy, matcher = one.policy, one.policy.matcher
    if policy.action is not Action.RETRY or policy.mode is Mode.OFF:
        return
    ways = [(*matcher.match, *way) for way in matcher.any] or [matcher.match]
    if any(all(condition.field in _SAY_LITTLE for condition in way) for way in ways):
        yield (
            f"{one.place}.match: nothing is asked of the error or its workflow, so every error is retried, also those "
            "that no retry can save: write for example {error.class: [network, timeout, throttled]}"
        )
    for place, conditions in _parts(one):
        if ".none[" in place or any(c.field == "error.class" for c in (*matcher.match, *conditions)):
            continue
        told = next((c.field for c in conditions if c.field.startswith("error.")), None)
        if told is not None:
            yield (
                f"{place}: {told} without error.class never matches an error whose class is unknown: "
                "add error.class with every class it may have, for example [unknown, network]"
            )


def _does_not_fit(one: _Written) -> Iterator[str]:
    policy = one.policy
    if policy.action is not Action.RETRY:
        return
    below, oldest = _below("age", policy), max((_from(c) for c in policy.matcher.match if c.field == "age"), default=0)
    if _earliest(policy) < below <= policy.backoff.first:
        yield (
            f"{one.place}: age below {duration_text(below)} is over for many before the first retry, after "
            f"{duration_text(policy.backoff.first)} less jitter: raise the age, or lower retry.backoff.first"
        )
    if oldest >= policy.give_up_after:
        yield (
            f"{one.place}.retry.give_up_after: {duration_text(policy.give_up_after)} is over before it matches, from "
            f"an age of {duration_text(oldest)} on: raise it"
        )
    spent, fits = 0.0, 0
    for ordinal in range(policy.retries):
        backoff = policy.backoff
        spent += min(backoff.cap, backoff.first * backoff.factor**ordinal) * (1.0 - backoff.jitter)
        fits += spent < policy.give_up_after
    if 0 < fits < policy.retries:
        yield (
            f"{one.place}.retry.retries: {fits} of {policy.retries} retries fit into give_up_after, "
            f"{duration_text(policy.give_up_after)}: raise it, or lower retries"
        )


def _hours(one: _Written, now: float) -> Iterator[str]:
    window = one.policy.window
    if window is None:
        return
    dates = [dates for dates in window.deny if isinstance(dates, Dates)]
    if dates and all(one.is_past(now, window.zone) for one in dates):
        yield f"{one.place}.when.deny: all its dates are past: write the next ones, or leave them out"
    if window.next_open(now) is None:
        yield f"{one.place}.when: it does not open in the next {LOOK_AHEAD_DAYS} days: look at the dates in deny"


def _wildcards(one: _Written) -> Iterator[str]:
    for place, conditions in _parts(one):
        for condition in conditions:
            texts = [value for value in condition.values if isinstance(value, str) and "*" in value]
            if texts and condition.op not in ("glob", "re"):
                way_out = "write {glob: …}" if condition.op == "is" else "that takes glob"
                yield f"{place}.{condition.field}: a * stands for itself here: {way_out}"


def _half_labelled(items: Sequence[_Written], places: Sequence[Place]) -> Iterator[str]:
    """Where a source has no value of a label for some workflows, their dead letters are undetermined."""
    told: set[str] = set()
    for one in items:
        for at, conditions in _parts(one):
            for condition in conditions:
                name = condition.field.removeprefix("labels.")
                if name == condition.field or name in told:
                    continue
                asked = (*one.policy.matcher.match, *conditions)
                without = [p.name for p in places if _may_be_of(p, asked) and not _labels_all(p, name)]
                if without:
                    told.add(name)
                    yield (
                        f"{at}.{condition.field}: not every workflow of {', '.join(without)} has the label {name}, and "
                        f"what is not known is held as undetermined: give a default in sources.{without[0]}.labels"
                    )


def _may_be_of(place: Place, conditions: Conjunction) -> bool:
    facts = {"source": place.name, "platform": place.platform}
    return all(condition.holds(facts) is not False for condition in conditions)


def _labels_all(place: Place, name: str) -> bool:
    entries = place.labels.workflows
    return name in place.labels.source or any(entry.match == "*" and name in entry.labels for entry in entries)


# What conditions say of a number.


def _parts(one: _Written) -> Iterator[tuple[str, Conjunction]]:
    """Every conjunction of a policy with its place."""
    matcher = one.policy.matcher
    yield f"{one.place}.match", matcher.match
    for key, groups in (("any", matcher.any), ("none", matcher.none)):
        for index, conditions in enumerate(groups):
            yield f"{one.place}.{key}[{index}]", conditions


def _earliest(policy: Policy) -> float:
    """Seconds after a failure at which the first retry can be due."""
    return policy.backoff.first * (1.0 - policy.backoff.jitter)


def _from(condition: Condition) -> float:
    """From where on a number fits."""
    if condition.op == "is":
        return float(min(condition.values))
    return float(condition.values[0]) if condition.op in ("gte", "gt") else 0.0


def _below(field: str, policy: Policy) -> float:
    """Up to where a number of this field can be, for the policy to match."""

    def limit(conditions: Conjunction, ops: tuple[str, ...]) -> float:
        return min((c.values[0] for c in conditions if c.field == field and c.op in ops), default=float("inf"))

    matcher = policy.matcher
    limits = [limit(matcher.match, ("lt", "lte"))]
    limits += [limit(exclusion, ("gte", "gt")) for exclusion in matcher.none if len(exclusion) == 1]
    limits.append(max((limit(way, ("lt", "lte")) for way in matcher.any), default=float("inf")))
    return min(limits)
