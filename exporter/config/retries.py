"""What a user writes about retrying, and compiling it: everything wrong is a problem that names its place."""

import hashlib
import re
from collections.abc import Sequence
from datetime import date, datetime
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

from exporter.config import wording
from exporter.model import matchers
from exporter.model.durations import duration_text, parse_duration
from exporter.model.matchers import FIELDS, BadCondition, Matcher
from exporter.model.policy import MANUAL, Backoff, Budget, Cooling, GateRules, Pace, Policy, Rules, SourceRules, Storm
from exporter.model.retries import Action, Mode
from exporter.model.windows import BadWindow, Window, parse_window
from exporter.platform.fields import Duration, Name, Section

#: ``workflow`` is short for ``workflow.id`` where policies group.
_ALIASES = {"workflow": "workflow.id"}
_GROUPABLE = tuple(name for name in FIELDS if name not in ("age", "opened_at", "retries", "error.message"))


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
    rerun: Literal["refuse", "allow"] = Field(
        default="refuse", description="also what a retry would run again from its trigger"
    )


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


def _date_as_text(value: object) -> object:
    """YAML makes a date of what looks like one."""
    return value.isoformat() if isinstance(value, date) and not isinstance(value, datetime) else value


def _zone(name: str) -> str:
    return _hours(name)


def _allowed(text: str) -> str:
    _hours("UTC", allow=[text])
    return text


def _denied(text: str) -> str:
    _hours("UTC", deny=[text])
    return text


def _hours(tz: str, *, allow: Sequence[str] = (), deny: Sequence[str] = ()) -> str:
    try:
        parse_window(tz, allow, deny)
    except BadWindow as exc:
        raise ValueError(str(exc)) from None
    return tz


_Denied = Annotated[str, BeforeValidator(_date_as_text, json_schema_input_type=str), AfterValidator(_denied)]


class WhenConfig(Section):
    tz: Annotated[str, AfterValidator(_zone)] = "UTC"
    allow: list[Annotated[str, AfterValidator(_allowed)]] = Field(default=[])
    deny: list[_Denied] = Field(default=[])

    @model_validator(mode="after")
    def _opens(self) -> "WhenConfig":
        if not self.window().opens_in_a_week():
            raise ValueError("never opens: deny takes all that allow lets in; leave some hours, or write mode: off")
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


def _conditions(written: Any) -> Any:
    """What can be read as conditions; all that cannot is said, each with its place below this one."""
    try:
        matchers.read(written, "")
    except BadCondition as exc:
        raise wording.found_below(list(exc.lines)) from None
    return {str(name): value for name, value in written.items()}


Conditions = Annotated[dict[str, Any], BeforeValidator(_conditions, json_schema_input_type=dict[str, Any])]


class PolicyConfig(Section):
    name: Name
    mode: Mode = Mode.ENFORCE
    match: Conditions = Field(default={})
    any: list[Conditions] = Field(default=[])
    none: list[Conditions] = Field(default=[])
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


class RetriesConfig(Section):
    """Everything about retrying; out of the box it shows what it would do, and does nothing."""

    mode: Mode = Mode.SHADOW
    sources: dict[str, SourceRetriesConfig] = Field(default={})
    policies: list[PolicyConfig] = Field(default=[], max_length=100)


def compile_rules(config: RetriesConfig) -> Rules:
    """The rules; whether they make sense together ``exporter.config.mistakes`` says."""
    policies = tuple(compiled(written) for written in config.policies)
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
    return Rules(mode=config.mode, sources=sources, policies=policies, hash=digest)


def compiled(written: PolicyConfig) -> Policy:
    """One policy."""
    matcher = Matcher(
        match=matchers.read(written.match, ""),
        any=tuple(matchers.read(item, "") for item in written.any),
        none=tuple(matchers.read(item, "") for item in written.none),
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
