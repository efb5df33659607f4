"""The kinds of fields a config is made of.

What a user writes is checked at the border with pydantic; inside, plain frozen values are used. Sections are put
together from these in ``section``, ``webhook_section`` and ``exporter.config``.
"""

import re
from pathlib import Path
from typing import Annotated, Any, get_args
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from exporter.model.durations import parse_duration

#: Seconds, written as text with units. Finite: enough digits would make a float infinite.
Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    Field(allow_inf_nan=False),
    WithJsonSchema({"type": "string", "examples": ["30s", "5m", "2h", "14d"]}),
]
Secret = Annotated[SecretStr, Field(min_length=1)]


class FileSecret(SecretStr):
    """A secret that was read from a file, where another may stand later."""

    def __init__(self, value: str, path: Path) -> None:
        super().__init__(value)
        self.path = path


def read_secret(path: Path) -> str | None:
    """What a file holds, without the end of its last line; None if it cannot be read or holds nothing."""
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n") or None
    except (OSError, ValueError):
        return None


def secret_now(secret: SecretStr) -> SecretStr:
    """The secret as its file has it now; as it was, where the file cannot be read."""
    found = read_secret(secret.path) if isinstance(secret, FileSecret) else None
    return FileSecret(found, secret.path) if found is not None and isinstance(secret, FileSecret) else secret


Name = Annotated[str, StringConstraints(min_length=1, max_length=100, strip_whitespace=True)]


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


#: An id as text; YAML may have made a number of it.
Id = Annotated[str, BeforeValidator(_as_text), StringConstraints(min_length=1)]


_SUCH_AS = "must be a URL such as https://example.com"


def _a_url(value: object) -> object:
    """Without a trailing slash. What is wrong with it is said here, but it is not quoted: it may hold a password."""
    if not isinstance(value, str):
        raise ValueError(_SUCH_AS)
    text = value.strip().rstrip("/")
    if re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+(:\d+)?", text, re.I):
        raise ValueError(f"must be a URL: write https://{text}")
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018 (reading it is the check)
    except ValueError:
        raise ValueError(_SUCH_AS) from None
    if parts.scheme in ("http", "https") and "@" in parts.netloc:
        raise ValueError(f"{_SUCH_AS}, without a user name and a password")
    if parts.scheme in ("http", "https") and ("?" in text or "#" in text):
        raise ValueError(f"{_SUCH_AS}, without what follows a ? or a #")
    return text


Url = Annotated[
    str,
    BeforeValidator(_a_url, json_schema_input_type=str),
    StringConstraints(pattern=r"^https?://[^\s/@?#]+[^\s?#]*$"),
]


class Section(BaseModel):
    """A part of the config: unknown keys are errors, values never appear in error texts."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _plain_from_files(cls, data: Any) -> Any:
        """What comes from a file and is no secret, such as a login, is plain text."""
        if not isinstance(data, dict):
            return data
        plain = {
            name: value.get_secret_value()
            for name, value in data.items()
            if isinstance(value, FileSecret)
            and (field := cls.model_fields.get(name)) is not None
            and not _may_be_secret(field.annotation)
        }
        return data | plain if plain else data


def _may_be_secret(annotation: Any) -> bool:
    return annotation is SecretStr or any(_may_be_secret(part) for part in get_args(annotation))


def secrets_in(value: Any) -> list[str]:
    """Every secret inside a section, list or mapping."""
    if isinstance(value, SecretStr):
        return [value.get_secret_value()]
    if isinstance(value, BaseModel):
        return [s for name in type(value).model_fields for s in secrets_in(getattr(value, name))]
    if isinstance(value, dict):
        return [s for item in value.values() for s in secrets_in(item)]
    if isinstance(value, list | tuple):
        return [s for item in value for s in secrets_in(item)]
    return []
