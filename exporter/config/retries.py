"""What a user writes about retrying, and compiling it: everything wrong is a problem that names its place."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

import orjson
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from exporter.model import matchers
from exporter.model.durations import duration_text, parse_duration
from exporter.model.matchers import FIELDS, NAMED_ONLY, BadCondition, Condition, Conjunction, Matcher
from exporter.model.policy import MANUAL, Backoff, Budget, Cooling, GateRules, Pace, Policy, Rules, SourceRules, Storm
from exporter.model.retries import Action, Mode
from exporter.model.windows import BadWindow, Window, parse_window
from exporter.platform.fields import Duration, Name, Section

#: ``workflow`` is short for ``workflow.id`` where policies group.
_ALIASES = {"workflow": "workflow.id"}
_GROUPABLE = tuple(name for name in FIELDS if name not in ("age", "retries", "error.message"))


#: What people call the times of a rate, and what to write.
_PER = {"s": "1s", "sec": "1s", "second": "1s", "m": "1m", "min": "1m", "minute": "1m", "h": "1h", "hr": "1h"} | {
    "hour": "1h", "d": "1d", "day": "1d", "w": "1w", "week": "1w",
}  # fmt: skip
_RATE = "write a rate as COUNT/DURATION, for example 6/1m"


def _rate(value: object) -> object:
    """``6/1m`` to calls a second."""
    found = re.fullmatch(r"(\d+)\s*/\s*(.+)", value.strip()) if isinstance(value, str) else None
    if found is None:
        raise ValueError(_RATE)
    count, time = int(found[1]), found[2].strip()
    word = time.lower()
    meant = _PER.get(word) or _PER.get(word.removesuffix("s"))
    if meant is not None:
        raise ValueError(f"a rate needs the number of its time, too: write {count}/{meant}")
    try:
        seconds = parse_duration(time)
    except ValueError:
        raise ValueError(_RATE) from None
    if seconds <= 0:
        raise ValueError(_RATE)
    return count / seconds


def _some(rate: float) -> float:
    if rate <= 0:
        raise ValueError("must be above 0; to retry nothing write mode: off")
    return rate


def _some_time(seconds: float) -> float:
    if seconds <= 0:
        raise ValueError("must be longer than 0s")
    return seconds


_RATE_SCHEMA = WithJsonSchema({"type": "string", "examples": ["6/1m"]})
Rate = Annotated[float, BeforeValidator(_rate), AfterValidator(_some), Field(allow_inf_nan=False), _RATE_SCHEMA]
Time = Annotated[Duration, AfterValidator(_some_time)]


def _not_below_first(cap: float, info: ValidationInfo) -> float:
    first = info.data.get("first")  # missing where it is wrong itself
    if first is not None and cap < first:
        raise ValueError(
            f"{duration_text(cap)} is shorter than first, {duration_text(first)}: raise cap, or lower first"
        )
    return cap


Cap = Annotated[Duration, AfterValidator(_not_below_first)]


class PaceConfig(Section):
    rate: Rate = Field(default="6/1m", validate_default=True, description="retries in a time, on average")
    burst: int = Field(default=3, ge=1, le=100)
    in_flight: int = Field(default=25, ge=1, le=1000)


class BudgetConfig(Section):
    """How many retries that fail a source can afford."""

    cap: float = Field(default=20.0, ge=1.0, le=10_000.0, description="tokens it holds at most")
    earn: float = Field(default=0.1, ge=0.0, le=100.0, description="for each run of its own that succeeds")
    floor: Annotated[float, BeforeValidator(_rate), Field(allow_inf_nan=False), _RATE_SCHEMA] = Field(
        default="2/1h", validate_default=True, description="tokens in a time, whatever else happens; 0/1h: none"
    )

    @model_validator(mode="after")
    def _earned(self) -> "BudgetConfig":
        if self.earn == 0 and self.floor == 0:
            raise ValueError(
                "earn and floor are both 0, so nothing could ever be retried: raise one, or leave out budget"
            )
        return self


class StormConfig(Section):
    """When a source as a whole is unwell."""

    failing: float = Field(default=0.4, gt=0.0, le=1.0, description="share of runs that fail")
    of: int = Field(default=20, ge=1, le=100_000, description="at least so many runs")
    within: Time = Field(default="30m", validate_default=True)


class SourceRetriesConfig(Section):
    mode: Mode = Mode.ENFORCE
    pace: PaceConfig = PaceConfig()
    budget: BudgetConfig | None = Field(default=None, description="left out: no limit to what may fail")
    storm: StormConfig | None = Field(default=None, description="left out: no storm is ever seen")
    native: Literal["yield", "ignore"] = Field(default="yield", description="while the platform retries by itself")


class BackoffConfig(Section):
    first: Duration = Field(default="15m", validate_default=True)
    factor: float = Field(default=3.0, ge=1.0, le=100.0)
    cap: Cap = Field(default="6h", validate_default=True)
    jitter: float = Field(default=0.5, ge=0.0, le=1.0)


class RetryConfig(Section):
    retries: int = Field(default=3, ge=0, le=100, description="of ours, of one root; 0: none")
    backoff: BackoffConfig = BackoffConfig()
    give_up_after: Duration = Field(default="3d", validate_default=True)


class CoolConfig(Section):
    first: Time = Field(default="30m", validate_default=True)
    factor: float = Field(default=2.0, ge=1.0, le=100.0)
    cap: Cap = Field(default="4h", validate_default=True)


class GateConfig(Section):
    """How many retries of one group may be without a verdict at once."""

    ramp: list[Annotated[int, Field(ge=1, le=1000)]] = Field(default=[1, 2, 5, 10, 25], min_length=1, max_length=50)
    cool: CoolConfig = CoolConfig()

    @field_validator("ramp")
    @classmethod
    def _rises(cls, ramp: list[int]) -> list[int]:
        fall = next(((a, b) for a, b in pairwise(ramp) if b <= a), None)
        if fall is not None:
            raise ValueError(f"must rise, and {fall[1]} comes after {fall[0]}: write for example [1, 2, 5, 10, 25]")
        return ramp


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


class PolicyConfig(Section):
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
    gate: GateConfig = GateConfig()
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
            about_retries = ("approve", "exhausted", "gate", "retry", "verify", "when")
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
            budget=None if section.budget is None else Budget(**section.budget.model_dump()),
            storm=None if section.storm is None else Storm(**section.storm.model_dump()),
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
        gate=GateRules(ramp=tuple(written.gate.ramp), cool=Cooling(**written.gate.cool.model_dump())),
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
