"""What a user writes about retrying, and compiling it: everything wrong is a problem that names its place."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from exporter.model import matchers
from exporter.model.durations import parse_duration
from exporter.model.matchers import FIELDS, NAMED_ONLY, BadCondition, Condition, Conjunction, Matcher
from exporter.model.policy import MANUAL, Backoff, Pace, Policy, Rules, SourceRules
from exporter.model.retries import Action, Mode
from exporter.model.windows import BadWindow, Window, parse_window
from exporter.platform.fields import Duration, Name, Section

#: Keys of a later version.
LATER = "comes with a later version: remove it"
#: ``workflow`` is short for ``workflow.id`` where policies group.
_ALIASES = {"workflow": "workflow.id"}
_GROUPABLE = tuple(name for name in FIELDS if name not in ("age", "retries", "error.message"))


def _rate(value: object) -> object:
    """``6/1m`` to calls a second."""
    found = re.fullmatch(r"(\d+)/(.+)", value.strip()) if isinstance(value, str) else None
    if found is None or int(found[1]) == 0:
        raise ValueError("write a rate as COUNT/DURATION, for example 6/1m")
    seconds = parse_duration(found[2])
    if seconds <= 0:
        raise ValueError("write a rate as COUNT/DURATION, for example 6/1m")
    return int(found[1]) / seconds


Rate = Annotated[float, BeforeValidator(_rate), WithJsonSchema({"type": "string", "examples": ["6/1m"]})]


class _Later(Section):
    """Refuses, with a word about it, the keys that only a later version understands."""

    @model_validator(mode="before")
    @classmethod
    def _not_yet(cls, data: Any) -> Any:
        for key in ("gate", "budget", "storm"):
            if isinstance(data, dict) and key in data:
                raise ValueError(f"{key} {LATER}")
        return data


class PaceConfig(Section):
    rate: Rate = Field(default="6/1m", validate_default=True, description="retries in a time, on average")
    burst: int = Field(default=3, ge=1, le=100)
    in_flight: int = Field(default=25, ge=1, le=1000)


class SourceRetriesConfig(_Later):
    mode: Mode = Mode.ENFORCE
    pace: PaceConfig = PaceConfig()
    native: Literal["yield", "ignore"] = Field(default="yield", description="while the platform retries by itself")


class BackoffConfig(Section):
    first: Duration = Field(default="15m", validate_default=True)
    factor: float = Field(default=3.0, ge=1.0, le=100.0)
    cap: Duration = Field(default="6h", validate_default=True)
    jitter: float = Field(default=0.5, ge=0.0, le=1.0)


class RetryConfig(Section):
    retries: int = Field(default=3, ge=0, le=100, description="of ours, of one root; 0: none")
    backoff: BackoffConfig = BackoffConfig()
    give_up_after: Duration = Field(default="3d", validate_default=True)
    rerun: Literal["refuse", "allow"] = Field(
        default="refuse", description="also what a retry would run again from its trigger"
    )


class WhenConfig(Section):
    tz: str = "UTC"
    allow: list[str] = Field(default=[])
    deny: list[str] = Field(default=[])

    @model_validator(mode="after")
    def _readable(self) -> "WhenConfig":
        try:
            self.window()
        except BadWindow as exc:
            raise ValueError(str(exc)) from None
        return self

    def window(self) -> Window:
        return parse_window(self.tz, self.allow, self.deny)


class VerifyConfig(Section):
    deadline: Duration = Field(default="2h", validate_default=True)
    settle: Duration = Field(default="10m", validate_default=True)
    warnings: Literal["failure", "success"] = "failure"


def _group_field(value: str) -> str:
    name = _ALIASES.get(value, value)
    if name not in _GROUPABLE and not name.startswith("labels."):
        raise ValueError(f"cannot group by {value}; one of {', '.join(_GROUPABLE)}, labels.*")
    return name


class PolicyConfig(_Later):
    name: Name
    mode: Mode = Mode.ENFORCE
    match: dict[str, Any] = Field(default={})
    any: list[dict[str, Any]] = Field(default=[])
    none: list[dict[str, Any]] = Field(default=[])
    group_by: list[Annotated[str, AfterValidator(_group_field)]] = Field(
        default=["source", "workflow.id", "error.class", "error.fingerprint"]
    )
    action: Action
    retry: RetryConfig = RetryConfig()
    when: WhenConfig | None = None
    approve: Literal["none", "first_of_group", "each"] = "none"
    verify: VerifyConfig = VerifyConfig()
    exhausted: Literal["quarantine", "escalate"] = "quarantine"

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, name: str) -> str:
        if name == MANUAL:
            raise ValueError(f"the name {MANUAL} is taken by retries that a person asks for")
        return name

    @model_validator(mode="after")
    def _fitting(self) -> "PolicyConfig":
        if self.action is not Action.RETRY:
            about_retries = ("approve", "exhausted", "retry", "verify", "when")
            given = [n for n in about_retries if getattr(self, n) != type(self).model_fields[n].default]
            if given:
                raise ValueError(f"{given[0]} makes no sense beside action: {self.action}")
        return self


class RetriesConfig(Section):
    """Everything about retrying; out of the box it shows what it would do, and does nothing."""

    mode: Mode = Mode.SHADOW
    sources: dict[str, SourceRetriesConfig] = Field(default={})
    policies: list[PolicyConfig] = Field(default=[], max_length=100)


def compile_rules(config: RetriesConfig, platforms: Mapping[str, str]) -> tuple[Rules, list[str]]:
    """The rules, and every problem found; ``platforms`` by source, as configured."""
    problems = [
        f"retries.sources.{name}: there is no such source; one of {', '.join(platforms)}"
        for name in config.sources
        if name not in platforms
    ]
    policies: list[Policy] = []
    names: set[str] = set()
    for index, written in enumerate(config.policies):
        place = f"retries.policies[{index}]"
        if written.name in names:
            problems.append(f"{place}.name: {written.name} is used twice")
        names.add(written.name)
        try:
            policy = _compiled(written, place)
        except BadCondition as exc:
            problems.append(str(exc))
            continue
        why = _never(policy.matcher, platforms)
        beaten_by = next((earlier.name for earlier in policies if _covers(earlier, policy)), None)
        if why is not None:
            problems.append(f"{place}: {policy.name} can never match: {why}")
        elif beaten_by is not None:
            problems.append(f"{place}: {policy.name} can never be reached: {beaten_by}, before it, takes all of it")
        policies.append(policy)
    sources = {
        name: SourceRules(
            mode=section.mode,
            pace=Pace(rate=section.pace.rate, burst=section.pace.burst, in_flight=section.pace.in_flight),
            yields=section.native == "yield",
        )
        for name, section in config.sources.items()
    }
    digest = _hash([policy.hash for policy in policies])
    return Rules(mode=config.mode, sources=sources, policies=tuple(policies), hash=digest), problems


def _compiled(written: PolicyConfig, place: str) -> Policy:
    matcher = Matcher(
        match=matchers.read(written.match, f"{place}.match"),
        any=tuple(matchers.read(item, f"{place}.any[{i}]") for i, item in enumerate(written.any)),
        none=tuple(matchers.read(item, f"{place}.none[{i}]") for i, item in enumerate(written.none)),
    )
    backoff = written.retry.backoff
    return Policy(
        name=written.name,
        hash=_hash(written.model_dump(mode="json")),
        matcher=matcher,
        action=written.action,
        mode=written.mode,
        group_by=tuple(written.group_by),
        retries=written.retry.retries,
        backoff=Backoff(first=backoff.first, factor=backoff.factor, cap=backoff.cap, jitter=backoff.jitter),
        give_up_after=written.retry.give_up_after,
        rerun=written.retry.rerun == "allow",
        window=None if written.when is None else written.when.window(),
        approve=written.approve,
        deadline=written.verify.deadline,
        settle=written.verify.settle,
        warnings_fail=written.verify.warnings == "failure",
        exhausted=Action.QUARANTINE if written.exhausted == "quarantine" else Action.ESCALATE,
    )


def _hash(value: object) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def _never(matcher: Matcher, platforms: Mapping[str, str]) -> str | None:
    """Why nothing can match, as far as the file alone tells."""
    ways = [(*matcher.match, *alternative) for alternative in matcher.any] or [matcher.match]
    reasons = [_impossible(way, platforms) for way in ways]
    if all(reason is not None for reason in reasons):
        return reasons[0]
    for exclusion in matcher.none:
        if all(matchers.implies(matcher.match, condition) for condition in exclusion):
            return "none excludes everything that match lets in"
    return None


def _impossible(way: Sequence[Condition], platforms: Mapping[str, str]) -> str | None:
    possible = [
        source
        for source, platform in platforms.items()
        if all(
            condition.holds({"source": source, "platform": platform})
            for condition in way
            if condition.field in ("source", "platform")
        )
    ]
    if not possible:
        wanted = next(c for c in way if c.field in ("source", "platform"))
        return f"no configured source has this {wanted.field}"
    return matchers.contradiction(way)


def _covers(earlier: Policy, later: Policy) -> bool:
    """Whether the earlier policy surely takes everything the later one could (False also means: cannot tell)."""
    first, second = earlier.matcher, later.matcher
    if not all(matchers.implies(second.match, condition) for condition in first.match):
        return False
    if first.any and first.any != second.any and not _one_of(first.any, second.match):
        return False
    if not all(exclusion in second.none for exclusion in first.none):
        return False
    if earlier.action is not Action.RETRY:
        return True
    # A retry policy leaves what is unknown or was killed to others, unless it names it.
    left = [error_class for error_class in NAMED_ONLY if not first.names(error_class)]
    return not any(_may_be(later, error_class) for error_class in left)


def _one_of(alternatives: Sequence[Conjunction], given: Conjunction) -> bool:
    return any(all(matchers.implies(given, condition) for condition in one) for one in alternatives)


def _may_be(policy: Policy, error_class: str) -> bool:
    """Whether a policy could own an error of this class."""
    if policy.action is Action.RETRY:
        return policy.matcher.names(error_class)
    about_class = [c for c in policy.matcher.match if c.field == "error.class"]
    return all(condition.holds({"error.class": error_class}) for condition in about_class)
