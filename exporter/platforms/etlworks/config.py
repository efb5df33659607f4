"""What a user writes for an Etlworks source."""

from typing import Annotated, ClassVar

from pydantic import Field, StringConstraints, model_validator

from exporter.model.repairs import RepairAction
from exporter.platform.section import HeaderSecret, Id, Name, Secret, Section, SourceConfig

FlowId = Annotated[Id, StringConstraints(pattern=r"^\d{1,19}$")]


class Parameter(Section):
    """One parameter of a flow: its value in the open, or a secret."""

    name: Name
    value: str | None = None
    secret: Secret | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "Parameter":
        if (self.value is None) == (self.secret is None):
            raise ValueError("give either value or secret")
        return self

    @property
    def text(self) -> str:
        return self.value if self.value is not None else self.secret.get_secret_value() if self.secret else ""


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

    rerun_parameters: dict[FlowId, list[Parameter]] = Field(
        default={}, description="by flow, the parameters that a granted rerun starts it with"
    )

    @model_validator(mode="after")
    def _rerun_with_parameters(self) -> "EtlworksConfig":
        if RepairAction.RERUN in self.grant and not self.rerun_parameters:
            raise ValueError("grant has rerun, but rerun_parameters names no flow: write the parameters of each there")
        for flow, parameters in self.rerun_parameters.items():
            if len({parameter.name for parameter in parameters}) < len(parameters):
                raise ValueError(f"a parameter of flow {flow} is named twice in rerun_parameters")
        return self

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
