"""What a user writes, and reading it: YAML, ``${VAR}`` and ``*_file`` filled in, every problem one line that names its
place.
"""

import os
import re
from collections.abc import Mapping
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator

from exporter.alerting.objectives import SloConfig
from exporter.fields import FileSecret
from exporter.platforms import PLATFORMS
from exporter.retries.config import RetriesConfig, compile_rules
from exporter.retries.policy import Rules
from exporter.settings import Duration, Name, Secret, Section, SourceConfig, Url, secrets_in

#: Keys that end in _file and mean a file, not a secret read from one.
_FILE_KEYS = frozenset({"cert_file", "key_file", "tls_ca_file"})
_VARIABLE = re.compile(r"\$(?:\$|\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\})")


class ConfigError(Exception):
    """The config cannot be used. ``problems`` has one line each, naming the place and the way out."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class TlsConfig(Section):
    cert_file: str
    key_file: str


class BasicAuthConfig(Section):
    users: dict[str, str] = Field(min_length=1, description="user name to bcrypt hash")

    @field_validator("users")
    @classmethod
    def _bcrypt(cls, users: dict[str, str]) -> dict[str, str]:
        for name, digest in users.items():
            if not re.fullmatch(r"\$2[aby]\$\d\d\$[./A-Za-z0-9]{53}", digest):
                raise ValueError(f"the password of {name!r} is not a bcrypt hash; make one with: htpasswd -nBC 10 ''")
        if find_spec("bcrypt") is None:
            raise ValueError("passwords need the extra auth: pip install 'automation-exporter[auth]'")
        return users


def _address(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError("write an address as HOST:PORT, for example 127.0.0.1:10870")
    return value


class ServerConfig(Section):
    listen: str = "127.0.0.1:10870"
    webhooks_listen: str | None = None
    tls: TlsConfig | None = None
    basic_auth: BasicAuthConfig | None = None
    admin_token: Secret | None = None
    reload: bool = Field(default=False, description="whether POST /-/reload is answered")

    @field_validator("listen", "webhooks_listen")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        return None if value is None else _address(value)


class StoreConfig(Section):
    url: str = "sqlite:///automation-exporter.db"
    retention: Duration = Field(default="30d", validate_default=True)

    @field_validator("url")
    @classmethod
    def _known_engine(cls, value: str) -> str:
        if not value.startswith("sqlite:///") or len(value) <= len("sqlite:///"):
            raise ValueError("use sqlite:///FILE (PostgreSQL is not supported by this version)")
        return value

    @field_validator("retention")
    @classmethod
    def _long_enough(cls, seconds: float) -> float:
        if seconds < 86400:
            raise ValueError("the shortest retention is 1d: runs are recognised by the ledger for that long")
        return seconds


class LimitsConfig(Section):
    series_max: int = Field(default=200_000, ge=1000)
    body_bytes_max: int = Field(default=1_048_576, ge=1024)
    webhook_requests_max: int = Field(default=256, ge=1, description="webhooks handled at one time")


class TracesConfig(Section):
    enabled: bool = False
    endpoint: str | None = Field(default=None, description="base URL of an OTLP receiver; default: the OTEL_ variables")
    headers: dict[Name, Secret] = Field(default={})
    protocol: Literal["http/protobuf", "grpc"] | None = None
    proxy: Url | None = Field(default=None, description="URL of an HTTP proxy; HTTP_PROXY and the like are not used")
    tls_ca_file: str | None = Field(default=None, description="certificates to trust, instead of the system's")
    url_template: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s]*\{trace_id\}[^\s]*$",
        description="page of a trace, with {trace_id}, for links on the status page",
    )
    sample: float = Field(default=1.0, ge=0.0, le=1.0, description="share of successful runs traced; others always are")
    own: bool = Field(default=False, description="also trace the exporter's sweeps, API calls and webhooks")


class LogConfig(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["logfmt", "json"] = "logfmt"


class Config(Section):
    """The whole config."""

    server: ServerConfig = ServerConfig()
    store: StoreConfig = StoreConfig()
    sources: dict[Name, SourceConfig] = Field(min_length=1)
    limits: LimitsConfig = LimitsConfig()
    traces: TracesConfig = TracesConfig()
    retries: RetriesConfig = RetriesConfig()
    slo: SloConfig = SloConfig()
    log: LogConfig = LogConfig()

    @field_validator("sources", mode="wrap")
    @classmethod
    def _by_platform(cls, value: Any, handler: Any) -> Any:
        """Each source is checked against the keys of its own platform."""
        if not isinstance(value, dict):
            return handler(value)
        made, problems = {}, []
        for name, section in value.items():
            place = f"sources.{name}"
            if isinstance(section, SourceConfig):
                made[name] = section
                continue
            kind = section.get("platform") if isinstance(section, dict) else None
            if not isinstance(section, dict):
                problems.append(f"{place}: must be a section with at least platform and url")
            elif not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", str(name)):
                problems.append(f"{place}: a source name has letters, digits, dot, dash and underscore only")
            elif not isinstance(kind, str) or kind not in PLATFORMS:
                known = ", ".join(PLATFORMS)
                problems.append(f"{place}.platform: {'missing' if kind is None else 'unknown'}; one of {known}")
            else:
                try:
                    made[str(name)] = PLATFORMS[kind].config.model_validate(section)
                except ValidationError as exc:
                    problems += _problems(exc, place)
        if problems:
            raise ConfigError(problems)
        return handler(made)

    @model_validator(mode="after")
    def _policies_fit(self) -> "Config":
        _, problems = compile_rules(self.retries, self._platforms())
        if problems:
            raise ConfigError(problems)
        return self

    @model_validator(mode="after")
    def _objectives_fit(self) -> "Config":
        missing = [place for place in self.slo.workflows if place.partition("/")[0] not in self.sources]
        if missing:
            known = ", ".join(self.sources)
            raise ConfigError([f"slo.workflows.{place}: there is no such source; one of {known}" for place in missing])
        return self

    def rules(self) -> Rules:
        """What is written about retrying, compiled."""
        return compile_rules(self.retries, self._platforms())[0]

    def _platforms(self) -> dict[str, str]:
        return {name: section.platform for name, section in self.sources.items()}

    def secrets(self) -> list[str]:
        """Every secret value, so that logs can be scrubbed of them."""
        return secrets_in(self)


def load(path: Path, environment: Mapping[str, str] = os.environ) -> Config:
    """Read a config file. Raises ``ConfigError``."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as exc:
        raise ConfigError([f"{path}: {exc.strerror}"]) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: not UTF-8 text"]) from None
    return parse(text, environment)


def parse(text: str, environment: Mapping[str, str] = os.environ) -> Config:
    """Read a config from YAML text. Raises ``ConfigError``."""
    problems: list[str] = []
    try:
        raw = yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
        filled = _fill(raw, "", environment, problems)
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        raise ConfigError([f"{where}{getattr(exc, 'problem', None) or 'not valid YAML'}"]) from None
    except ValueError as exc:  # a date or a number that looks like one and is none
        raise ConfigError([f"not valid YAML: {exc}"]) from None
    except RecursionError:
        raise ConfigError(["the config is nested too deeply, or contains itself"]) from None
    if not isinstance(filled, dict):
        raise ConfigError(["the config must be a mapping with at least the key sources"])
    if problems:
        raise ConfigError(problems)
    return validate(filled)


def validate(data: Mapping[str, Any]) -> Config:
    """Check a config given as plain values. Raises ``ConfigError``."""
    try:
        return Config.model_validate(data)
    except ValidationError as exc:
        raise ConfigError(_problems(exc, "")) from None


class _Loader(yaml.SafeLoader):
    """Like SafeLoader, but a key written twice is an error, and only true and false are truth values.

    YAML 1.1 took on, off, yes and no for such as well; ``backfill: off`` means the word. Fields that are truth values
    know these words anyway.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 (as the base class has it)
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} is written twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return node


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(?i:true|false)$"), list("tTfF"))


def _fill(value: Any, place: str, environment: Mapping[str, str], problems: list[str]) -> Any:
    """Fill in ``${VAR}``, ``${VAR:-default}``, ``$$`` and ``*_file`` everywhere."""
    if isinstance(value, str):
        return _expand(value, place, environment, problems)
    if isinstance(value, list):
        return [_fill(item, f"{place}[{i}]", environment, problems) for i, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    out: dict[str, Any] = {}
    for key, item in value.items():
        at = f"{place}.{key}" if place else str(key)
        filled = _fill(item, at, environment, problems)
        name = str(key)
        if not name.endswith("_file") or name in _FILE_KEYS or isinstance(item, dict):
            out[name] = filled
        elif name.removesuffix("_file") in value:
            problems.append(f"{at}: give either {name.removesuffix('_file')} or {name}, not both")
        else:
            out[name.removesuffix("_file")] = _read_secret(filled, at, problems)
    return out


def _expand(text: str, place: str, environment: Mapping[str, str], problems: list[str]) -> str:
    def one(match: re.Match[str]) -> str:
        name, default = match.group(1), match.group(2)
        if name is None:
            return "$"
        if name in environment and (environment[name] or default is None):
            return environment[name]
        if default is not None:
            return default
        problems.append(f"{place}: the environment variable {name} is not set")
        return ""

    return _VARIABLE.sub(one, text)


def _read_secret(value: Any, place: str, problems: list[str]) -> Any:
    if isinstance(value, list):
        return [_read_secret(item, f"{place}[{i}]", problems) for i, item in enumerate(value)]
    try:
        path = Path(str(value))
        return FileSecret(path.read_text(encoding="utf-8").rstrip("\r\n"), path)
    except UnicodeDecodeError:
        problems.append(f"{place}: cannot read the file: not UTF-8 text")
    except (OSError, ValueError) as exc:
        problems.append(f"{place}: cannot read the file: {getattr(exc, 'strerror', None) or exc}")
    return "unreadable"


def _problems(exc: ValidationError, prefix: str) -> list[str]:
    out: list[str] = []
    for error in exc.errors(include_input=False, include_url=False):
        place = prefix
        for part in error["loc"]:
            if isinstance(part, int):
                place += f"[{part}]"
            elif part not in ("http://", "https://"):
                place += f".{part}" if place else str(part)
        message = error["msg"].removeprefix("Value error, ")
        if error["type"] == "extra_forbidden":
            message = "unknown key"
        elif error["type"] == "missing":
            message = "missing"
        elif error["type"] in ("model_type", "dict_type"):
            message = "must be a section of keys and values"
        elif error["type"] == "string_pattern_mismatch" and "https?" in message:
            message = "must be a URL such as https://example.com"
            if "trace_id" in error["msg"]:
                message = "must be a URL with {trace_id} in it"
        out.append(f"{place}: {message}" if place else message)
    return out


def masked(config: Config) -> str:
    """The effective config as YAML, secrets as ``***``."""
    return yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True, width=120)


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return "***"
    if isinstance(value, BasicAuthConfig):
        return {"users": dict.fromkeys(value.users, "***")}
    if isinstance(value, Section):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if hasattr(value, "model_fields_set"):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, StrEnum) else value


def schema() -> dict[str, Any]:
    """JSON Schema of the config, for editors: every secret ``x`` also as ``x_file``, each source by its platform."""
    out = Config.model_json_schema()
    definitions: dict[str, Any] = out.setdefault("$defs", {})
    variants = []
    for platform in PLATFORMS.values():
        own = platform.config.model_json_schema(ref_template="#/$defs/{model}")
        definitions.update(own.pop("$defs", {}))
        own["properties"]["platform"] = {"const": platform.name}
        definitions[f"source_{platform.name}"] = own
        variants.append({"$ref": f"#/$defs/source_{platform.name}"})
    definitions.pop("SourceConfig", None)
    out["properties"]["sources"]["additionalProperties"] = {"oneOf": variants}
    out["properties"]["sources"].pop("patternProperties", None)
    for definition in (out, *definitions.values()):
        _offer_files(definition)
    return out


def _offer_files(definition: dict[str, Any]) -> None:
    """Offer ``x_file`` beside every secret ``x``, and a list of files where a list of secrets may stand."""
    properties = definition.get("properties", {})
    for name, shape in list(properties.items()):
        if "additionalProperties" in shape or not _holds_secret(shape):
            continue
        file: dict[str, Any] = {"type": "string", "description": f"file that holds {name}"}
        if _may_be_list(shape):
            file = {"anyOf": [file, {"type": "array", "items": {"type": "string"}}]}
        properties[f"{name}_file"] = file
        if name in definition.get("required", []):
            definition["required"] = [key for key in definition["required"] if key != name]


def _holds_secret(shape: Any) -> bool:
    if isinstance(shape, dict):
        return shape.get("writeOnly") is True or any(_holds_secret(part) for part in shape.values())
    return isinstance(shape, list) and any(_holds_secret(part) for part in shape)


def _may_be_list(shape: dict[str, Any]) -> bool:
    return shape.get("type") == "array" or any(part.get("type") == "array" for part in shape.get("anyOf", []))
