"""What a user writes for an Etlworks source."""

from typing import Annotated, ClassVar

from pydantic import Field, StringConstraints, model_validator

from exporter.platform.section import HeaderSecret, Id, Secret, SourceConfig

FlowId = Annotated[Id, StringConstraints(pattern=r"^\d{1,19}$")]


class EtlworksConfig(SourceConfig):
    """An API key, or the login and password of a user; a role that may see flows, schedules and executions."""

    api_path: ClassVar[str] = "/rest"
    refused: ClassVar[str] = (
        "an API key belongs to one user, may have expired, and is not the password; the user's role must be allowed to "
        "see flows, schedules and executions"
    )

    token: HeaderSecret | None = Field(default=None, description="API key of a user")
    login: str | None = Field(default=None, min_length=1)
    password: Secret | None = None
    flows: list[FlowId] = Field(default=[], description="ids of the flows to watch; empty: all that are listed")

    @model_validator(mode="after")
    def _one_credential(self) -> "EtlworksConfig":
        if self.token is not None and (self.login is not None or self.password is not None):
            raise ValueError("give either token, or login and password, not both")
        if self.token is None and (self.login is None or self.password is None):
            raise ValueError("give token, or login and password")
        return self

    @property
    def credential(self) -> tuple[str, ...]:
        if self.token is not None:
            return "token", self.token.get_secret_value()
        return "login", str(self.login)

    @property
    def watches(self) -> frozenset[tuple[str, str]] | None:
        return frozenset(("flow", flow) for flow in self.flows) or None
