"""What a user writes for a source of this platform, beside what every source has."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from exporter.platform.section import HeaderSecret, Name, Secret, Section, SourceConfig


class OAuthConfig(Section):
    """A machine-to-machine OAuth client; a trusted one may see everybody's automations."""

    client_id: Name
    client_secret: Secret
    scope: Name = Field(
        default="user_default", description='space-separated, for example "admin.automations admin.automation-runs"'
    )


class QlikConfig(SourceConfig):
    """One tenant, read with an API key or with an OAuth client."""

    host_only: ClassVar[bool] = True
    refused: ClassVar[str] = (
        "an API key or an OAuth client works in its own tenant only, and for as long as its owner may use it: compare "
        "url, look whether the key has expired; a client needs the scopes admin.automations and admin.automation-runs"
    )

    token: HeaderSecret | None = Field(default=None, description="an API key")
    oauth: OAuthConfig | None = None
    api_prefix: Literal["/api/workflows/automations", "/api/v1/automations"] = Field(
        default="/api/workflows/automations", description="the second is the older name of the same resources"
    )

    @model_validator(mode="after")
    def _one_credential(self) -> "QlikConfig":
        if (self.token is None) == (self.oauth is None):
            raise ValueError("give exactly one credential: token or oauth")
        return self

    @property
    def credential(self) -> tuple[str, ...]:
        if self.oauth is not None:
            return "oauth", self.oauth.client_id
        return ("token", self.token.get_secret_value()) if self.token is not None else ()
