"""What a user calls good enough: the section ``slo``. Pure. Alert rules come of it; the service never reads it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field, PrivateAttr, field_validator, model_validator

from exporter.model.labels import AlertLabels, exposed
from exporter.platform.fields import Duration, Id, Name, Section, Url
from exporter.platform.labels import LabelSet

#: Where the pages of docs/runbooks/ are read while nobody says where else.
RUNBOOK_URL = "https://github.com/automation-exporter/automation-exporter/blob/main/docs/runbooks"


class Override(Section):
    """What is different for some workflows; what is left out is as for all others."""

    success_ratio: float | None = Field(default=None, gt=0.0, lt=1.0)
    events_min: int | None = Field(default=None, ge=1)
    consecutive_failures: int | None = Field(default=None, ge=1)
    rare_failures: int | None = Field(
        default=None, ge=1, description="left out: consecutive_failures, where that stands here"
    )
    silent_factor: float | None = Field(default=None, ge=1.0, allow_inf_nan=False)
    success_within: Duration | None = None
    runs_within: Duration | None = None
    overdue_after: Duration | None = None
    stuck_after: Duration | None = None
    dead_letter_age: Duration | None = None
    dead_letter_growth: int | None = Field(default=None, ge=1)
    queue_share: float | None = Field(default=None, gt=0.0, le=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Those:
    """The workflows an override is about: those of a source, of an id or pattern of names, with these labels.

    What is None or empty is any.
    """

    source: str | None = None
    pattern: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def whole_source(self) -> str | None:
        """The source, if it is about everything of one."""
        return self.source if self.pattern in (None, "*") and not self.labels else None


class Matched(Override):
    """An override and whom it is for: ``match``, ``source`` and ``labels``, one at least; all that are there count."""

    match: Id | None = Field(default=None, description="a workflow id, or a pattern of names (* and ?)")
    source: Name | None = None
    labels: LabelSet = Field(default={}, description="labels as in sources.*.labels and workflow_labels")

    @model_validator(mode="after")
    def _somebody(self) -> "Matched":
        if self.match is None and self.source is None and not self.labels:
            raise ValueError("say which workflows: match (an id or a pattern of names), source or labels")
        return self

    @property
    def those(self) -> Those:
        labels = {exposed(name): value for name, value in self.labels.items()}
        return Those(source=self.source, pattern=self.match, labels=labels)


class SloConfig(Section):
    """Objectives. Each has a default, so that ``slo: {}`` is a complete section."""

    success_ratio: float = Field(default=0.99, gt=0.0, lt=1.0, description="share of runs that should not fail")
    window: Duration = Field(default="30d", validate_default=True, description="over which success_ratio is meant")
    events_min: int = Field(default=20, ge=1, description="fewer runs in a window say nothing about a ratio")
    consecutive_failures: int = Field(default=3, ge=1, description="failed runs in a row that are worth a look")
    rare_failures: int = Field(
        default=1, ge=1, description="the same for what runs about once an hour or less: the first one"
    )
    silent_factor: float = Field(
        default=2.2, ge=1.0, allow_inf_nan=False, description="of its usual time between two runs: no run for so long"
    )
    success_within: Duration | None = Field(
        default=None, description="at least one run succeeds in so long, for example 26h; left out: nothing is expected"
    )
    runs_within: Duration | None = Field(
        default=None, description="at least one run ends in so long, for what webhooks start; left out: likewise"
    )
    overdue_after: Duration = Field(
        default="10m", validate_default=True, description="how late a planned run may start"
    )
    stuck_after: Duration = Field(default="2h", validate_default=True, description="how long a run may take, or wait")
    dead_letter_age: Duration = Field(default="1d", validate_default=True, description="how old a dead letter may get")
    dead_letter_growth: int = Field(default=5, ge=1, description="more open dead letters than six hours ago")
    source_dead_letter_growth: int = Field(
        default=50, ge=1, description="the same of a whole source, over all its workflows"
    )
    dead_letters_max: int = Field(default=1000, ge=1, description="open dead letters a source has room for")
    queue_share: float = Field(default=0.8, gt=0.0, le=1.0, description="how full queues and dead letters may get")
    quota_share: float = Field(default=0.1, gt=0.0, lt=1.0, description="what should be left of plan and API limit")
    stale_after: Duration = Field(
        default="20m", validate_default=True, description="how long a stream may fail to be read"
    )
    job: Name = Field(default="automation-exporter", description="the job of the scrape config")
    runbook_url: Url | None = Field(
        default=None, description="where the pages of docs/runbooks/ are; left out: at status_url, else at GitHub"
    )
    dashboard_url: Url | None = Field(
        default=None, description="address of your Grafana, or of one dashboard: each alert leads to what it is about"
    )
    status_url: Url | None = Field(
        default=None, description="where people open the status page: alerts lead to its runbooks and groups"
    )
    labels: LabelSet = Field(
        default={}, description="labels of alerts that have none of this name otherwise, for example team: operations"
    )
    overrides: list[Matched] = Field(
        default=[], description="what is different for some workflows; the first that fits and has the key"
    )
    workflows: dict[str, Override] = Field(
        default={}, description="by source/workflow id or source/pattern of names (* and ?), after overrides"
    )
    _carried: AlertLabels = PrivateAttr(default=AlertLabels())

    @property
    def carried(self) -> AlertLabels:
        """The labels alerts carry that are not written here, but for sources and workflows."""
        return self._carried

    @property
    def otherwise(self) -> dict[str, str]:
        """The labels of alerts that have none of these names by what they are about."""
        written = {exposed(name): value for name, value in self.labels.items()}
        return {**self._carried.common, **written}

    def carrying(self, labels: AlertLabels) -> "SloConfig":
        made = self.model_copy()
        made._carried = labels
        return made

    def expects(self, key: str) -> bool:
        """Whether the objective ``key`` is given at all, for all workflows or for some."""
        return any(getattr(one, key) is not None for one in (self, *(override for _, override in self.exceptions())))

    def exceptions(self) -> list[tuple[Those, Override]]:
        """What is different for whom, in the order in which the first that fits decides."""
        places = [(key.partition("/"), override) for key, override in self.workflows.items()]
        return [
            *((override.those, override) for override in self.overrides),
            *((Those(source=source, pattern=pattern), override) for (source, _, pattern), override in places),
        ]

    @field_validator("window")
    @classmethod
    def _in_weeks(cls, seconds: float) -> float:
        if not 7 * 86400 <= seconds <= 90 * 86400:
            raise ValueError("an objective is meant over 7d to 90d; burn rates say nothing for other windows")
        return seconds

    @field_validator("success_within", "runs_within", "overdue_after", "stuck_after", "dead_letter_age", "stale_after")
    @classmethod
    def _whole(cls, seconds: float | None) -> float | None:
        if seconds is not None and seconds < 60:
            raise ValueError("the shortest is 1m: rules are evaluated once a minute")
        return seconds

    @field_validator("workflows", mode="before")
    @classmethod
    def _of_a_source(cls, value: Any) -> Any:
        for key in value if isinstance(value, dict) else ():
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}/.+", str(key)):
                raise ValueError(f"{key!r}: write source/workflow id, source/pattern or source/* for a whole source")
        return value
