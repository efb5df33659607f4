"""Tests of policies: a dead letter as somebody describes it, and what is to be decided of it.

A case speaks of a dead letter in the words of policies (``error.class``, ``workflow.name``, ``age``, …). What it does
not say is not known, but for the labels, which the config has, and what most cases do not care about.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from exporter.config import wording
from exporter.model import DeadLetter, Error, ErrorClass, Workflow
from exporter.model.decision import climb
from exporter.model.durations import parse_duration
from exporter.model.labels import NO_LABELS, Labels
from exporter.model.matchers import BadCondition, read
from exporter.model.policy import Rules
from exporter.model.retries import Decision, Outcome, Reason, Retry, RetryState, Verb
from exporter.model.subject import Subject
from exporter.platform.fields import Duration, Name, Section
from exporter.platforms import PLATFORMS
from exporter.text import ConfigError, Text

#: How old a dead letter is that does not say so: old enough for a first retry, as a rule.
AGE_USUAL = 3600.0
#: What nobody can make up: it follows from the rest.
_FOLLOWS = ("error.fingerprint", "platform")


def _moment(value: object) -> object:
    """A time, in UTC unless it says otherwise."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            value = None
    if not isinstance(value, datetime):
        raise ValueError("write a time such as 2026-11-28T22:00 (UTC) or 2026-11-28T22:00+01:00")
    return (value if value.tzinfo is not None else value.replace(tzinfo=UTC)).timestamp()


def _described(written: object) -> object:
    """Only what policies may ask, with values that it can have."""
    if not isinstance(written, Mapping):
        raise ValueError("must be a section of fields as policies name them, for example error.class: network")
    problems = []
    for name, value in written.items():
        if name in _FOLLOWS:
            problems.append(f".{name}: leave it out: it follows from the rest")
            continue
        try:
            if name in ("age", "opened_at"):
                read({name: {"gte": value}}, "")
            elif isinstance(value, list | Mapping):
                problems.append(f".{name}: must be one value")
            else:
                read({name: value}, "")
        except BadCondition as exc:
            problems += [line.replace(f".{name}.gte", f".{name}", 1) for line in exc.lines]
    if "source" not in written:
        problems.append(".source: missing")
    if "age" in written and "opened_at" in written:
        problems.append(".opened_at: give either age or opened_at, not both")
    if problems:
        raise wording.found_below(problems)
    return dict(written)


class Expected(Section):
    """What is to be decided; what is left out is not compared."""

    policy: Name | None = Field(default=None, description="the owner; none: no policy")
    decision: Verb | None = None
    reason: Reason | None = None

    @model_validator(mode="after")
    def _something(self) -> "Expected":
        if not self.model_fields_set:
            raise ValueError("expects nothing: name policy, decision or reason")
        return self


class Case(Section):
    """One dead letter and what is expected of it."""

    name: Name
    at: Annotated[float, BeforeValidator(_moment)] | None = Field(default=None, description="when; default: now")
    dead_letter: Annotated[dict[str, Any], BeforeValidator(_described)]
    last_retry: Duration | None = Field(default=None, description="how long ago the last of its retries failed")
    expect: Expected


class Cases(Section):
    """A file of cases."""

    cases: list[Case] = Field(min_length=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of one case: nothing in ``differences`` means as expected."""

    place: str
    name: str
    decision: Decision
    differences: tuple[str, ...]


def parse_cases(text: str) -> Cases:
    """A file of cases. Raises ``ConfigError`` with all that is wrong."""
    written = Text(text).everything()
    if not isinstance(written, dict):
        raise ConfigError(["must be a mapping with the key cases"])
    try:
        return Cases.model_validate(written)
    except ValidationError as exc:
        raise ConfigError(wording.lines(exc, "", Cases)) from None


def judge(
    cases: Cases, rules: Rules, *, platforms: Mapping[str, str], labels: Mapping[str, Labels], now: float
) -> list[Verdict]:
    """Each case against the rules. Raises ``ConfigError`` where cases name sources that there are not."""
    known = [name for name, platform in platforms.items() if platform in PLATFORMS]
    missing = [
        f"cases[{index}].dead_letter.source: there is no such source; one of {', '.join(known)}"
        for index, case in enumerate(cases.cases)
        if str(case.dead_letter["source"]) not in known
    ]
    policies = [policy.name for policy in rules.policies]
    missing += [
        f"cases[{index}].expect.policy: there is no such policy; one of {', '.join(policies)}, none"
        for index, case in enumerate(cases.cases)
        if case.expect.policy not in (None, "none", *policies)
    ]
    if missing:
        raise ConfigError(missing)
    found = []
    for index, case in enumerate(cases.cases):
        source = str(case.dead_letter["source"])
        at = now if case.at is None else case.at
        subject = subject_of(case, platforms[source], labels.get(source, NO_LABELS), at)
        decision = climb(subject, rules, at).decision
        found.append(
            Verdict(
                place=f"cases[{index}]",
                name=case.name,
                decision=decision,
                differences=tuple(_differences(case.expect, decision)),
            )
        )
    return found


def _differences(expect: Expected, decision: Decision) -> list[str]:
    got = {"policy": decision.policy or "none", "decision": decision.verb.value, "reason": decision.reason.value}
    return [
        f"{key}: expected {wanted}, got {got[key]}"
        for key, wanted in expect.model_dump(mode="json", exclude_none=True).items()
        if wanted != got[key]
    ]


def subject_of(case: Case, platform: str, labels: Labels, now: float) -> Subject:
    """The dead letter of a case, ``now``."""
    said = case.dead_letter
    opened_at = now - (parse_duration(said["age"]) if "age" in said else AGE_USUAL)
    if "opened_at" in said:
        [condition] = read({"opened_at": {"gte": said["opened_at"]}}, "")
        opened_at = condition.values[0]
    source, workflow_id = str(said["source"]), _text(said, "workflow.id") or "case"
    name = _text(said, "workflow.name")
    letter = DeadLetter(id="case", workflow_id=workflow_id, run_id="case", opened_at=opened_at, error=_error(said))
    given = {key.removeprefix("labels."): str(value) for key, value in said.items() if key.startswith("labels.")}
    retrying = PLATFORMS[platform].retrying
    ended_at = opened_at if case.last_retry is None else now - case.last_retry
    return Subject(
        source=source,
        platform=platform,
        letter=letter,
        root=letter.id,
        traits=None if retrying is None else retrying.traits,
        workflow=Workflow(
            id=workflow_id, at=now, name=name, workspace=_text(said, "workspace"), trigger=_text(said, "trigger")
        ),
        labels={**labels.of(workflow_id, name), **given},
        history=[_failed(letter, source, ordinal, ended_at) for ordinal in range(1, int(said.get("retries", 0)) + 1)],
    )


def _error(said: Mapping[str, Any]) -> Error | None:
    """None: nobody has read it yet."""
    if not any(key.startswith("error.") or key == "step.type" for key in said):
        return None
    return Error(
        error_class=ErrorClass(said.get("error.class", ErrorClass.UNKNOWN)),
        type=_text(said, "error.type"),
        message=_text(said, "error.message"),
        step_type=_text(said, "step.type"),
        status=said.get("error.status"),
    )


def _text(said: Mapping[str, Any], key: str) -> str | None:
    return None if said.get(key) is None else str(said[key])


def _failed(letter: DeadLetter, source: str, ordinal: int, ended_at: float) -> Retry:
    """A retry that was made and failed."""
    return Retry(
        id=f"case-{ordinal}",
        source=source,
        workflow_id=letter.workflow_id,
        dead_letter_id=letter.id,
        run_id=letter.run_id,
        attempt=letter.attempt,
        opened_at=letter.opened_at,
        root=letter.id,
        ordinal=ordinal,
        policy="case",
        policy_hash="",
        group="",
        state=RetryState.VERIFYING,
        outcome=Outcome.FAILED,
        failed_at=letter.opened_at,
        claimed_at=ended_at,
        send_by=ended_at,
        deadline=0.0,
        sent_at=ended_at,
        closed_at=ended_at,
    )
