"""The config with its defaults, as YAML that can be read again: ``config show``.

Values stand as they are written, so that a duration stays ``30d``. A secret is shown as where it comes from: ``x_file``
keeps its path, ``${VAR}`` stays. What is written in the file itself becomes a variable named after its place, with a
made-up secret of the same form for a default: the output is valid, and nobody can know a webhook's secret from it.
"""

import base64
import re
import secrets
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import yaml
from pydantic import BaseModel, SecretStr

from exporter.config import BasicAuthConfig, Config, StoreConfig
from exporter.store.address import masked, written_secrets
from exporter.text import expand

#: What a made-up secret begins with.
MASK = "masked-"
_REFERENCES = re.compile(r"(?:\$\{[A-Za-z_][A-Za-z0-9_]*\})+")
_DEFAULTED = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*):-([^}]*)\}")
_WEBHOOK_KEY = "whsec_"
_PLATFORM_TOKEN = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.I)


def shown(config: Config, written: Mapping[str, Any], environment: Mapping[str, str]) -> str:
    """The effective config; ``written`` is the file before anything was filled in."""
    whole = _Shown(environment).section(config, written, "")
    return yaml.dump(whole, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def masked_places(config: Config) -> list[str]:
    """Where a secret is one that ``config show`` made up."""
    return [place for place, secret in _secrets(config, "") if _is_mask(secret)]


class _Dumper(yaml.SafeDumper):
    """Writes what stands twice out twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class _Shown:
    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def section(self, model: BaseModel, written: Any, place: str) -> dict[str, Any]:
        given = written if isinstance(written, Mapping) else {}
        out: dict[str, Any] = {}
        for name, info in type(model).model_fields.items():
            at, value = f"{place}.{name}" if place else name, getattr(model, name)
            if name not in given and f"{name}_file" in given and name not in model.model_fields_set:
                continue
            if f"{name}_file" in given and name in model.model_fields_set:
                out[f"{name}_file"] = given[f"{name}_file"]
            elif name not in model.model_fields_set:
                out[name] = self._default(value, info.get_default(call_default_factory=True), at)
            elif isinstance(model, BasicAuthConfig):
                out[name] = self._secrets_of(value, given[name], at)
            elif isinstance(model, StoreConfig) and name == "url":
                out[name] = self._database(given[name], at)
            else:
                out[name] = self._value(value, given.get(name), at)
        return out

    def _database(self, written: Any, place: str) -> str:
        """The URL of a database; a password within it is shown as any other secret, also where a variable has it."""
        text = str(written)
        found = written_secrets(text)
        if not found or not all(_REFERENCES.fullmatch(one) or _DEFAULTED.fullmatch(one) for one in found):
            text = expand(text, "", self._environment, []).replace("$", "$$")
        return masked(text, lambda secret: str(self._secret(secret, f"{place}.password")))

    def _default(self, value: Any, default: Any, place: str) -> Any:
        if isinstance(value, BaseModel):
            return self.section(value, {}, place)
        return str(default) if isinstance(default, StrEnum) else default

    def _value(self, value: Any, written: Any, place: str) -> Any:
        if isinstance(value, SecretStr) or (isinstance(value, tuple) and value and isinstance(value[0], SecretStr)):
            return self._secret(written, place)
        if isinstance(value, BaseModel):
            return self.section(value, written, place)
        if isinstance(value, dict) and isinstance(written, Mapping):
            return self._mapping(value, written, place)
        if isinstance(value, list | tuple) and isinstance(written, list):
            return [
                self._value(one, text, f"{place}[{i}]")
                for i, (one, text) in enumerate(zip(value, written, strict=True))
            ]
        return self._plain(written)

    def _mapping(self, value: Mapping[Any, Any], written: Mapping[Any, Any], place: str) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, text in written.items():
            name = str(key)
            if name not in value and name.removesuffix("_file") in value:
                out[name] = text
            else:
                out[name] = self._value(value.get(name), text, f"{place}.{name}")
        return out

    def _plain(self, written: Any) -> Any:
        if isinstance(written, str):
            return expand(written, "", self._environment, []).replace("$", "$$")
        if isinstance(written, list):
            return [self._plain(one) for one in written]
        if isinstance(written, Mapping):
            return {str(key): self._plain(one) for key, one in written.items()}
        return written

    def _secrets_of(self, value: Mapping[str, Any], written: Mapping[Any, Any], place: str) -> dict[str, Any]:
        return {
            str(key): text if str(key) not in value else self._secret(text, f"{place}.{key}")
            for key, text in written.items()
        }

    def _secret(self, written: Any, place: str) -> Any:
        if isinstance(written, list):
            return [self._secret(one, f"{place}[{i}]") for i, one in enumerate(written)]
        text = str(written)
        if _REFERENCES.fullmatch(text):
            return text
        variable = _variable(place)
        if found := _DEFAULTED.fullmatch(text):
            variable = found[1]
            if self._environment.get(variable):
                return f"${{{variable}}}"
            if _is_mask(found[2]):
                return text
            text = found[2]
        return f"${{{variable}:-{_made_up(expand(text, '', self._environment, []))}}}"


def _variable(place: str) -> str:
    return re.sub(r"\W+", "_", place).strip("_").upper()


def _made_up(secret: str) -> str:
    """A secret of the same form that nobody has."""
    random = MASK + secrets.token_hex(16)
    if secret.startswith(_WEBHOOK_KEY):
        return _WEBHOOK_KEY + base64.b64encode(random.encode()).decode()
    if re.match(r"\$2[aby]\$", secret):
        return "$2b$10$" + (random.replace("-", ".") + secrets.token_hex(32))[:53]
    return random


def _is_mask(secret: str) -> bool:
    if secret.startswith(_WEBHOOK_KEY):
        return secret.removeprefix(_WEBHOOK_KEY).startswith(base64.b64encode(MASK[:6].encode()).decode())
    return secret.startswith((MASK, "$2b$10$" + MASK.replace("-", ".")))


def _secrets(value: Any, place: str) -> list[tuple[str, str]]:
    if isinstance(value, SecretStr):
        return [(place, value.get_secret_value())]
    if isinstance(value, BasicAuthConfig):
        return [(f"{place}.users.{name}", digest) for name, digest in value.users.items()]
    if isinstance(value, StoreConfig):
        found = [(f"{place}.password", value.password.get_secret_value())] if value.password is not None else []
        return [*found, *((f"{place}.url", secret) for secret in value.secrets_in_url)]
    if isinstance(value, BaseModel):
        return [
            found
            for name in type(value).model_fields
            for found in _secrets(getattr(value, name), f"{place}.{name}" if place else name)
        ]
    if isinstance(value, dict):
        return [found for key, one in value.items() for found in _secrets(one, f"{place}.{key}")]
    if isinstance(value, list | tuple):
        return [found for i, one in enumerate(value) for found in _secrets(one, f"{place}[{i}]")]
    return []
