"""What a user writes for a Make source, and how it proves who it is."""

import re
from typing import ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from exporter.platform.section import HeaderSecret, SourceConfig

# API tokens look like this; anything else is taken for an access token of OAuth, as Make's own SDK does.
_API_TOKEN = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.I)


class MakeConfig(SourceConfig):
    """An API token of one zone, and whose scenarios are watched: an organization's, or those of some of its teams."""

    api_path: ClassVar[str] = "/api/v2"
    host_only: ClassVar[bool] = True
    refused: ClassVar[str] = (
        "Make answers the same to a wrong token, to one of another zone (compare url with the address that Make has in "
        "your browser) and to one without the scopes scenarios:read, dlqs:read, hooks:read and organizations:read"
    )

    token: HeaderSecret
    organization_id: PositiveInt | None = Field(default=None, description="watch all teams of this organization")
    team_ids: list[PositiveInt] = Field(default=[], description="or only these teams, of one organization")
    steps: Literal["off", "problems", "all"] = Field(
        default="problems",
        description="runs whose modules are read, a call each, where the zone tells them; problems: failed or warned",
    )

    replay: bool = Field(
        default=False, description="failed runs that were not stored, but can be replayed, are dead letters too"
    )

    @model_validator(mode="after")
    def _one_scope(self) -> "MakeConfig":
        if (self.organization_id is None) == (not self.team_ids):
            raise ValueError("give either organization_id or team_ids")
        if len(set(self.team_ids)) < len(self.team_ids):
            raise ValueError("a team is named twice in team_ids")
        return self

    @property
    def credential(self) -> tuple[str, ...]:
        return "token", self.token.get_secret_value()

    @property
    def watches(self) -> frozenset[tuple[str, str]]:
        return frozenset((kind, str(number)) for kind, number in self.scopes)

    @property
    def scopes(self) -> list[tuple[str, int]]:
        """The query parameters of the calls that together list everything watched."""
        if self.organization_id is not None:
            return [("organizationId", self.organization_id)]
        return [("teamId", team_id) for team_id in self.team_ids]


def token_header(token: str) -> dict[str, str]:
    """How Make wants a token: the word before it says which of the two kinds it is."""
    return {"Authorization": f"{'Token' if _API_TOKEN.fullmatch(token) else 'Bearer'} {token}"}
