"""The part of a source's section that every platform shares; platforms add their own keys to ``SourceConfig``."""

import re
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from exporter.model.durations import parse_duration
from exporter.model.labels import Labels
from exporter.model.repairs import RepairAction
from exporter.platform.fields import Duration, Id, Name, Secret, Section, Url, secrets_in
from exporter.platform.labels import LabelSet, WorkflowLabels, labels_of
from exporter.platform.webhook_section import WebhookConfig

# What a platform needs to write its section comes from here, the kinds of fields included.
__all__ = [
    "Duration",
    "HeaderSecret",
    "Id",
    "Name",
    "PollConfig",
    "Secret",
    "Section",
    "SourceConfig",
    "Url",
    "secrets_in",
]


def _fits_a_header(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-~]+", value.get_secret_value()):
        raise ValueError(
            "a token has no spaces and no characters beyond ASCII; without a word such as Bearer before it"
        )
    return value


#: A secret that is sent in a header as it is.
HeaderSecret = Annotated[Secret, AfterValidator(_fits_a_header)]


def _off_or_duration(value: object) -> object:
    if value == "off" or value is False:
        return "off"
    try:
        return parse_duration(value)
    except ValueError:
        raise ValueError("write off, or a duration with its unit, for example 7d") from None


_Backfill = Annotated[
    Literal["off"] | float,
    BeforeValidator(_off_or_duration),
    WithJsonSchema({"type": "string", "examples": ["off", "7d"]}),
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
    """What every source has, whatever its platform.

    ``api_path``, of a platform, is what the exporter adds to ``url``; with ``host_only`` nothing else may stand there.
    ``refused`` is what a person should know whose credential the platform refuses.
    """

    api_path: ClassVar[str] = "/api"
    host_only: ClassVar[bool] = False
    refused: ClassVar[str] = ""

    platform: str
    url: Url
    poll: PollConfig = PollConfig()
    webhook: WebhookConfig | None = None
    include: list[str] = Field(default=[], description="workflow ids or name patterns (* and ?); empty: all")
    exclude: list[str] = Field(default=[], description="workflow ids or name patterns (* and ?) to leave out")
    test_runs: Literal["ignore", "count"] = Field(
        default="ignore",
        description="runs that a person starts while building a workflow; no dead letters and no retries either way",
    )
    labels: LabelSet = Field(default={}, description="words of yours for retry policies, metrics and alerts")
    workflow_labels: list[WorkflowLabels] = Field(
        default=[], description="the same for some workflows; for each label the first entry that matches decides"
    )
    grant: list[RepairAction] = Field(
        default=[], description="repairs beside a retry that people may ask for; none by default, and never by a policy"
    )
    tls_ca_file: str | None = None
    proxy: Url | None = None
    timeout: Duration = Field(default="30s", validate_default=True)
    backfill: _Backfill = Field(default="off")

    @field_validator("url")
    @classmethod
    def _ends_with_the_host(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.path and (cls.host_only or f"{parts.path}/".startswith(f"{cls.api_path}/")):
            raise ValueError(
                f"leave out the path, which is added when it is read: write {parts.scheme}://{parts.netloc}"
            )
        return url

    @model_validator(mode="after")
    def _labels_differ(self) -> "SourceConfig":
        labels_of(self.labels, self.workflow_labels)
        return self

    @property
    def labelled(self) -> Labels:
        """What is written in ``labels`` and ``workflow_labels``."""
        return labels_of(self.labels, self.workflow_labels)

    @property
    def credential(self) -> tuple[str, ...]:
        """Where in the section the credential stands, and what it is."""
        return ()

    @property
    def watches(self) -> frozenset[tuple[str, str]] | None:
        """What of the platform is watched, as (kind, id); None: all that the credential sees."""
        return None

    @property
    def backfill_seconds(self) -> float:
        return 0.0 if isinstance(self.backfill, str) else self.backfill

    def secrets(self) -> list[str]:
        """Every secret value in this section, so that logs can be scrubbed of them."""
        return secrets_in(self)
