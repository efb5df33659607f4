"""What a user writes for a Cognaize source."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from exporter.platform.section import HeaderSecret, Id, Secret, Section, SourceConfig, Url
from exporter.platform.webhook_section import HeaderName


class LoginConfig(Section):
    """What the login wants to be sent: nobody documents it."""

    encoding: Literal["json", "form"] = Field(default="json", description="form: as an identity provider wants it")
    login_field: str = Field(default="login", min_length=1)
    password_field: str = Field(default="password", min_length=1)
    fields: dict[str, Secret] = Field(default={}, description="what else it wants, such as grant_type and client_id")

    @model_validator(mode="after")
    def _each_once(self) -> "LoginConfig":
        if self.login_field == self.password_field:
            raise ValueError("login_field and password_field must differ")
        for name in (self.login_field, self.password_field):
            if name in self.fields:
                raise ValueError("login_field and password_field must not stand in fields as well")
        return self


class CognaizeConfig(SourceConfig):
    """A token, or where and with what to log in for one."""

    refused: ClassVar[str] = (
        "an access token lasts for hours only: give token_url, login and password instead, so that the exporter can "
        "fetch another"
    )

    token: HeaderSecret | None = Field(default=None, description="access token, sent as a bearer token")
    token_url: Url | None = Field(
        default=None, description="where POST {login, password} answers with an access token; any host"
    )
    login_request: LoginConfig = LoginConfig()
    token_header: HeaderName = Field(default="Authorization", description="header that carries the token")
    token_word: str = Field(
        default="Bearer", pattern=r"^[!-~]*$", description="word before the token; empty: the token alone"
    )
    login: str | None = Field(default=None, min_length=1)
    password: Secret | None = None
    workflows: dict[Id, str] = Field(default={}, description="names of workflows by id: the platform tells none")

    @model_validator(mode="after")
    def _one_way_in(self) -> "CognaizeConfig":
        given = [name for name in ("token_url", "login", "password") if getattr(self, name) is not None]
        if self.token is not None and given:
            raise ValueError(f"give either token or token_url, login and password, not token and {given[0]}")
        if self.token is None and len(given) < 3:
            raise ValueError("a credential is missing: give token, or all of token_url, login and password")
        return self

    @property
    def credential(self) -> tuple[str, ...]:
        if self.token is not None:
            return "token", self.token.get_secret_value()
        return "login", str(self.login), str(self.token_url)
