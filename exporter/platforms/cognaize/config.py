"""What a user writes for a Cognaize source."""

from pydantic import Field, model_validator

from exporter.settings import Id, Secret, SourceConfig, Url


class CognaizeConfig(SourceConfig):
    """A token, or where and with what to log in for one."""

    token: Secret | None = Field(default=None, description="access token, sent as a bearer token")
    token_url: Url | None = Field(
        default=None, description="where POST {login, password} answers with an access token; any host"
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
