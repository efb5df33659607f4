"""What a user calls good enough: the section ``slo``. Pure. Alert rules come of it; the service never reads it."""

import re
from typing import Any

from pydantic import Field, field_validator

from exporter.platform.fields import Duration, Name, Section, Url

#: Where the pages of docs/runbooks/ are read, unless ``slo.runbook_url`` says otherwise.
RUNBOOK_URL = "https://github.com/automation-exporter/automation-exporter/blob/main/docs/runbooks"


class Override(Section):
    """What is different for some workflows; what is left out is as for all others."""

    success_ratio: float | None = Field(default=None, gt=0.0, lt=1.0)
    events_min: int | None = Field(default=None, ge=1)
    consecutive_failures: int | None = Field(default=None, ge=1)
    overdue_after: Duration | None = None
    stuck_after: Duration | None = None
    dead_letter_age: Duration | None = None
    dead_letter_growth: int | None = Field(default=None, ge=1)
    queue_share: float | None = Field(default=None, gt=0.0, le=1.0)


class SloConfig(Section):
    """Objectives. Each has a default, so that ``slo: {}`` is a complete section."""

    success_ratio: float = Field(default=0.99, gt=0.0, lt=1.0, description="share of runs that should not fail")
    window: Duration = Field(default="30d", validate_default=True, description="over which success_ratio is meant")
    events_min: int = Field(default=20, ge=1, description="fewer runs in a window say nothing about a ratio")
    consecutive_failures: int = Field(default=3, ge=1, description="failed runs in a row that are worth a look")
    overdue_after: Duration = Field(
        default="15m", validate_default=True, description="how late a planned run may start"
    )
    stuck_after: Duration = Field(default="2h", validate_default=True, description="how long a run may take, or wait")
    dead_letter_age: Duration = Field(default="1d", validate_default=True, description="how old a dead letter may get")
    dead_letter_growth: int = Field(default=5, ge=1, description="more open dead letters than six hours ago")
    dead_letters_max: int = Field(default=1000, ge=1, description="open dead letters a source has room for")
    queue_share: float = Field(default=0.8, gt=0.0, le=1.0, description="how full queues and dead letters may get")
    quota_share: float = Field(default=0.1, gt=0.0, lt=1.0, description="what should be left of plan and API limit")
    stale_after: Duration = Field(
        default="20m", validate_default=True, description="how long a stream may fail to be read"
    )
    job: Name = Field(default="automation-exporter", description="the job of the scrape config")
    runbook_url: Url = Field(default=RUNBOOK_URL, description="where the pages of docs/runbooks/ are")
    dashboard_url: Url | None = Field(default=None, description="shown on every alert")
    workflows: dict[str, Override] = Field(
        default={}, description="by source/workflow id or source/pattern of names (* and ?); the first that fits"
    )

    @field_validator("window")
    @classmethod
    def _in_weeks(cls, seconds: float) -> float:
        if not 7 * 86400 <= seconds <= 90 * 86400:
            raise ValueError("an objective is meant over 7d to 90d; burn rates say nothing for other windows")
        return seconds

    @field_validator("overdue_after", "stuck_after", "dead_letter_age", "stale_after")
    @classmethod
    def _whole(cls, seconds: float) -> float:
        if seconds < 60:
            raise ValueError("the shortest is 1m: rules are evaluated once a minute")
        return seconds

    @field_validator("workflows", mode="before")
    @classmethod
    def _of_a_source(cls, value: Any) -> Any:
        for key in value if isinstance(value, dict) else ():
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}/.+", str(key)):
                raise ValueError(f"{key!r}: write source/workflow id, source/pattern or source/* for a whole source")
        return value
