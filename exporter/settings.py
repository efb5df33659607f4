"""The part of a source's section that every platform shares; platforms add their own keys to ``SourceConfig``."""

from typing import Literal

from pydantic import Field, field_validator

from exporter.fields import Duration, Id, Name, Secret, Section, Url, parse_duration, secrets_in
from exporter.webhooks.config import WebhookConfig

# What a platform needs to write its section comes from here, the kinds of fields included.
__all__ = [
    "Duration",
    "Id",
    "Name",
    "PollConfig",
    "Secret",
    "Section",
    "SourceConfig",
    "Url",
    "parse_duration",
    "secrets_in",
]


class PollConfig(Section):
    """How often a source is read and how much of its limit that may take."""

    interval: Duration = Field(default="60s", validate_default=True)
    budget_share: float = Field(default=0.5, gt=0.0, le=1.0)
    requests_per_minute: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)

    @field_validator("interval")
    @classmethod
    def _not_too_often(cls, seconds: float) -> float:
        if seconds < 1:
            raise ValueError("the shortest poll interval is 1s")
        return seconds


class SourceConfig(Section):
    """What every source has, whatever its platform."""

    platform: str
    url: Url
    poll: PollConfig = PollConfig()
    webhook: WebhookConfig | None = None
    include: list[str] = Field(default=[], description="workflow ids or name patterns (* and ?); empty: all")
    exclude: list[str] = Field(default=[], description="workflow ids or name patterns (* and ?) to leave out")
    labels: dict[Name, str] = Field(default={}, description="words of yours that retry policies can match")
    tls_ca_file: str | None = None
    proxy: Url | None = None
    timeout: Duration = Field(default="30s", validate_default=True)
    backfill: Literal["off"] | Duration = Field(default="off")

    @property
    def backfill_seconds(self) -> float:
        return 0.0 if isinstance(self.backfill, str) else self.backfill

    def secrets(self) -> list[str]:
        """Every secret value in this section, so that logs can be scrubbed of them."""
        return secrets_in(self)
