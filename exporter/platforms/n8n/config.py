"""What a user writes for a source of this platform, beside what every source has."""

from typing import ClassVar, Literal

from pydantic import Field

from exporter.platform.section import Duration, HeaderSecret, SourceConfig


class N8nConfig(SourceConfig):
    """One instance, read with an API key. ``url`` is the editor's address, with the prefix of ``N8N_PATH`` if any."""

    api_path: ClassVar[str] = "/api"
    refused: ClassVar[str] = (
        "n8n answers the same to a wrong and to an expired API key: create one under Settings, n8n API, on this very "
        "instance, with the scopes workflow:list, workflow:read, execution:list and execution:read"
    )

    token: HeaderSecret = Field(description="an API key")
    save_successes: Literal["auto", "all", "none"] = Field(
        default="auto",
        description="the instance's EXECUTIONS_DATA_SAVE_ON_SUCCESS; the API does not tell it. auto: by what is listed",
    )
    save_errors: Literal["all", "none"] = Field(
        default="all", description="the instance's EXECUTIONS_DATA_SAVE_ON_ERROR"
    )
    details: Literal["failed", "all"] = Field(
        default="failed",
        description="runs that are read one by one, two calls each: for causes, steps, parents and times in the queue",
    )
    retry_timeout: Duration = Field(
        default="10s",
        validate_default=True,
        gt=0.0,
        description="how long to wait for the answer to a retry, which n8n gives when the retried run has ended; "
        "a longer run is known by its row",
    )

    @property
    def credential(self) -> tuple[str, ...]:
        return "token", self.token.get_secret_value()


def key_header(token: str) -> dict[str, str]:
    """How n8n wants an API key; as a bearer token it is refused."""
    return {"X-N8N-API-KEY": token}
