"""The kinds of fields a config is made of.

What a user writes is checked at the border with pydantic; inside, plain frozen values are used. Sections are put
together from these in ``config``, ``settings`` and ``webhooks.config``.
"""

import re
from pathlib import Path
from typing import Annotated, Any, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def parse_duration(value: object) -> object:
    """``30s``, ``5m``, ``1h30m``, ``14d`` to seconds. Bare numbers are refused: nobody can tell their unit."""
    if not isinstance(value, str):
        raise ValueError("write a duration with its unit, for example 30s, 5m, 2h or 14d")
    text = value.strip()
    found = _DURATION.findall(text)
    if not found or "".join(number + unit for number, unit in found) != text:
        raise ValueError("not a duration; write for example 30s, 5m, 2h or 14d")
    return sum(float(number) * _SECONDS[unit] for number, unit in found)


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


Name = Annotated[str, StringConstraints(min_length=1, max_length=100, strip_whitespace=True)]


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


#: An id as text; YAML may have made a number of it.
Id = Annotated[str, BeforeValidator(_as_text), StringConstraints(min_length=1)]


def _no_trailing_slash(value: object) -> object:
    return value.rstrip("/") if isinstance(value, str) else value


def _has_an_address(value: str) -> str:
    try:
        urlsplit(value).port  # noqa: B018 (reading it is the check)
    except ValueError:
        raise ValueError("must be a URL such as https://example.com") from None
    return value


Url = Annotated[
    str,
    BeforeValidator(_no_trailing_slash),
    StringConstraints(pattern=r"^https?://[^\s/@?#]+[^\s?#]*$"),
    AfterValidator(_has_an_address),
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
