"""What a user writes, and reading it: YAML, ``${VAR}`` and ``*_file`` filled in, every problem one line that names its
place.
"""

import errno
import os
import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from exporter import listen
from exporter.config import wording
from exporter.config.mistakes import mistakes
from exporter.config.objectives import SloConfig
from exporter.config.retries import RetriesConfig, compile_rules
from exporter.config.store import StoreConfig
from exporter.config.twins import twins
from exporter.model.labels import NO_LABELS, alert_labels, exposed
from exporter.model.policy import Rules
from exporter.model.reach import Place
from exporter.platform.labels import LabelsConfig, labels_of
from exporter.platform.section import Name, Secret, Section, SourceConfig, Url, secrets_in
from exporter.platforms import PLATFORMS
from exporter.text import NESTED, ConfigError, Text, fill, stands_below

__all__ = ["Config", "ConfigError", "StoreConfig", "file_text", "load", "parse", "read", "validate"]


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


class ServerConfig(Section):
    listen: str = listen.DEFAULT
    webhooks_listen: str | None = None
    tls: TlsConfig | None = None
    basic_auth: BasicAuthConfig | None = None
    admin_token: Secret | None = None
    reload: bool = Field(default=False, description="whether POST /-/reload is answered")

    @field_validator("listen", "webhooks_listen", mode="before")
    @classmethod
    def _is_address(cls, value: Any) -> Any:
        return None if value is None else listen.address(value)

    @model_validator(mode="after")
    def _two_addresses(self) -> "ServerConfig":
        if self.webhooks_listen == self.listen and not self.listen.endswith(":0"):
            raise ValueError("webhooks_listen is the address of listen; leave it out, or give it another port")
        return self


class LimitsConfig(Section):
    series_max: int = Field(default=200_000, ge=1000)
    error_classes: Literal["all", "seen"] = Field(
        default="all", description="counters by error class that a workflow has: all from the start, or those it met"
    )
    body_bytes_max: int = Field(default=1_048_576, ge=1024)
    webhook_requests_max: int = Field(default=256, ge=1, description="webhooks handled at one time")


class TracesConfig(Section):
    enabled: bool = False
    endpoint: Url | None = Field(default=None, description="base URL of an OTLP receiver; default: the OTEL_ variables")
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


def of_no_source(slo: SloConfig, sources: Iterable[str]) -> list[str]:
    """Objectives of sources that there are not."""
    known = list(sources)
    missing = [f"slo.workflows.{place}" for place in slo.workflows if place.partition("/")[0] not in known]
    missing += [
        f"slo.overrides[{at}].source"
        for at, override in enumerate(slo.overrides)
        if override.source is not None and override.source not in known
    ]
    return [f"{place}: there is no such source; one of {', '.join(known)}" for place in missing]


def of_no_label(slo: SloConfig) -> list[str]:
    """Overrides by a label that nothing has: they would never be heeded."""
    return [
        f"slo.overrides[{at}].labels.{name}: no source or workflow has this label; give it in labels or workflow_labels"
        for at, override in enumerate(slo.overrides)
        for name in override.labels
        if exposed(name) not in slo.carried.names
    ]


def of_no_repair(sources: Mapping[str, SourceConfig]) -> list[str]:
    """Grants of repairs that the platform of their source cannot do."""
    problems = []
    for name, section in sources.items():
        platform = PLATFORMS[section.platform]
        can = () if platform.repairing is None else platform.repairing.actions
        words = f"it can {', '.join(can)}" if can else "there is nothing to grant here, remove it"
        problems += [
            f"sources.{name}.grant[{at}]: {platform.title} cannot {action}; {words}"
            for at, action in enumerate(section.grant)
            if action not in can
        ]
    return problems


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
        if value in (None, {}):
            raise wording.found(["sources: nothing is written there; name at least one source, with platform and url"])
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
                known, near = ", ".join(PLATFORMS), wording.did_you_mean(str(kind).lower(), PLATFORMS)
                hint = f"; did you mean {near}?" if near else ""
                problems.append(f"{place}.platform: {'missing' if kind is None else 'unknown'}; one of {known}{hint}")
            else:
                try:
                    made[str(name)] = PLATFORMS[kind].config.model_validate(section)
                except ValidationError as exc:
                    problems += wording.lines(exc, place, PLATFORMS[kind].config)
        if problems:
            raise wording.found(problems)
        return handler(made)

    @model_validator(mode="after")
    def _read_once(self) -> "Config":
        problems, _ = twins(self.sources)
        if problems:
            raise wording.found(problems)
        return self

    @model_validator(mode="after")
    def _objectives_fit(self) -> "Config":
        labels = {source: section.labelled for source, section in self.sources.items()}
        slo = self.slo.carrying(alert_labels(labels))
        problems = of_no_source(slo, self.sources) + of_no_label(slo)
        if problems:
            raise wording.found(problems)
        return self.model_copy(update={"slo": slo})

    @model_validator(mode="after")
    def _grants_fit(self) -> "Config":
        problems = of_no_repair(self.sources)
        if problems:
            raise wording.found(problems)
        return self

    def rules(self) -> Rules:
        """What is written about retrying, compiled."""
        return compile_rules(self.retries)

    def places(self) -> list[Place]:
        """The sources, as far as policies may ask of them."""
        return [
            Place(name=name, platform=section.platform, labels=section.labelled)
            for name, section in self.sources.items()
        ]

    def secrets(self) -> list[str]:
        """Every secret value, so that logs can be scrubbed of them."""
        return [*secrets_in(self), *self.store.secrets_in_url]


def load(path: Path, environment: Mapping[str, str] = os.environ) -> Config:
    """Read a config file. Raises ``ConfigError``."""
    return read(path, environment)[0]


def read(path: Path, environment: Mapping[str, str] = os.environ) -> tuple[Config, Mapping[str, Any]]:
    """A config file, and what is written there before variables and files are filled in. Raises ``ConfigError``."""
    try:
        return _parsed(file_text(path), environment)
    except ConfigError as exc:
        raise ConfigError(exc.problems, file=path) from None


def file_text(path: Path) -> str:
    """The text of a config file. Raises ``ConfigError``."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as exc:
        way_out = "; name one with --config FILE or in AUTOMATION_EXPORTER_CONFIG" if exc.errno == errno.ENOENT else ""
        raise ConfigError([f"{exc.strerror or 'cannot be read'}{way_out}"], file=path) from None
    except UnicodeDecodeError:
        raise ConfigError(["not UTF-8 text: save it as UTF-8"], file=path) from None


def parse(text: str, environment: Mapping[str, str] = os.environ) -> Config:
    """Read a config from YAML text. Raises ``ConfigError``."""
    return _parsed(text, environment)[0]


def _parsed(text: str, environment: Mapping[str, str]) -> tuple[Config, Mapping[str, Any]]:
    raw = Text(text).everything()
    problems: list[str] = []
    try:
        filled = fill(raw, "", environment, problems)
    except RecursionError:
        raise ConfigError([NESTED]) from None
    if not isinstance(filled, dict):
        raise ConfigError(["the config must be a mapping with at least the key sources"])
    filled = _listening(filled, environment, problems)
    try:
        config = validate(filled)
    except ConfigError as exc:  # all at once, but nothing that was reported already
        raise ConfigError(problems + [line for line in exc.problems if not stands_below(line, problems)]) from None
    if problems:
        raise ConfigError(problems)
    return config, raw


def _listening(filled: dict[str, Any], environment: Mapping[str, str], problems: list[str]) -> dict[str, Any]:
    """Where the file does not say where to listen, the environment may: an image has another default."""
    server = filled.get("server") or {}
    if environment.get(listen.VARIABLE) and isinstance(server, dict) and "listen" not in server:
        try:
            return {**filled, "server": {**server, "listen": listen.address(environment[listen.VARIABLE])}}
        except ValueError as exc:
            problems.append(f"{listen.VARIABLE}: {exc}")
    return filled


def validate(data: Mapping[str, Any]) -> Config:
    """Check a config given as plain values. Raises ``ConfigError``."""
    try:
        config = Config.model_validate(data)
    except ValidationError as exc:
        problems = wording.lines(exc, "", Config)
        places, labels_known = _places(data)
        found = mistakes(data.get("retries"), places, labels_known=labels_known)
        raise ConfigError([*problems, *(line for line in found if line not in problems)]) from None
    if problems := mistakes(data.get("retries"), config.places()):
        raise ConfigError(problems)
    return config


def _places(data: Mapping[str, Any]) -> tuple[list[Place], bool]:
    """The sources of a config that cannot be used, as far as they can be read, and whether all their labels can."""
    sources = data.get("sources")
    found, known = [], True
    for name, section in sources.items() if isinstance(sources, dict) else ():
        written = section if isinstance(section, dict) else {}
        try:
            made = LabelsConfig.model_validate({k: written[k] for k in LabelsConfig.model_fields if k in written})
            labels = labels_of(made.labels, made.workflow_labels)
        except ValidationError:
            labels, known = NO_LABELS, False
        found.append(Place(name=str(name), platform=str(written.get("platform")), labels=labels))
    return found, known
