"""What commands for the night need of a config: where the database is, and the names of the sources.

A kill switch must work while the file is half edited and without the service's secrets. So only what is needed is read:
no secret, no variable of another key; a mistake in another section is somebody else's.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from exporter.config import StoreConfig, file_text, of_no_label, of_no_source, wording
from exporter.config.mistakes import mistakes
from exporter.config.objectives import SloConfig
from exporter.config.retries import RetriesConfig, compile_rules
from exporter.log import register_secrets
from exporter.model.labels import Labels, alert_labels
from exporter.model.policy import Rules
from exporter.model.reach import Place
from exporter.platform.fields import Section, secrets_in
from exporter.platform.labels import LabelsConfig, labels_of
from exporter.platforms import PLATFORMS
from exporter.store import address
from exporter.text import ConfigError, Text, expand, fill, stands_below

S = TypeVar("S", bound=Section)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """What is needed is checked when it is asked for; each may raise ``ConfigError``."""

    store: StoreConfig  # of which the URL is known, and the password where there is one
    platforms: Mapping[str, str]  # by source, whatever is written there
    file: Path | None = None
    _text: Text | None = None
    _environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def store_url(self) -> str:
        return self.store.url

    def rules(self) -> Rules:
        """What is written about retrying, compiled."""
        problems: list[str] = []
        written = fill(self._written("retries"), "retries", self._environment, problems)
        labels = self.labels()
        places = [Place(name=name, platform=self.platforms[name], labels=labels[name]) for name in self.platforms]
        problems += [line for line in mistakes(written, places) if not stands_below(line, problems)]
        if problems:
            raise ConfigError(problems, file=self.file)
        return compile_rules(RetriesConfig.model_validate(written))

    def objectives(self) -> SloConfig:
        slo = self._section("slo", SloConfig)
        slo = slo.carrying(alert_labels(self.labels()))
        problems = of_no_source(slo, self.platforms) + of_no_label(slo)
        if problems:
            raise ConfigError(problems, file=self.file)
        return slo

    def labels(self) -> dict[str, Labels]:
        """What each source says of labels, its own and those of its workflows."""
        found: dict[str, Labels] = {}
        for source, section in _sources(self._text).items():
            written = {key: section[key] for key in LabelsConfig.model_fields if section.get(key) is not None}
            made = self._checked(written, LabelsConfig, f"sources.{source}")
            found[source] = labels_of(made.labels, made.workflow_labels)
        return found

    def _section(self, name: str, model: type[S]) -> S:
        return self._checked(self._written(name), model, name)

    def _written(self, name: str) -> Any:
        try:
            written = None if self._text is None else self._text.section(name)
        except ConfigError as exc:
            raise ConfigError(exc.problems, file=self.file) from None
        return {} if written is None else written

    def _checked(self, written: Any, model: type[S], place: str) -> S:
        problems: list[str] = []
        try:
            made = model.model_validate(fill(written, place, self._environment, problems))
        except ValidationError as exc:
            raise ConfigError(problems or wording.lines(exc, place, model), file=self.file) from None
        if problems:
            raise ConfigError(problems, file=self.file)
        return made


def outline(path: Path, environment: Mapping[str, str] = os.environ, *, store: bool = True) -> Outline:
    """Read what is needed of a config file; without ``store``, not where the database is (that may hold a password).

    Raises ``ConfigError``, also for an unset variable in ``store.url``.
    """
    text = file_text(path)
    try:
        written = Text(text)
        where = _store(written.section("store", lenient=True), environment) if store else StoreConfig()
        platforms = {
            name: expand(str(section.get("platform")), "", environment, [])
            for name, section in _sources(written).items()
        }
    except ConfigError as exc:
        raise ConfigError(exc.problems, file=path) from None
    return Outline(store=where, platforms=platforms, file=path, _text=written, _environment=environment)


def without_config(store_url: str) -> Outline:
    """Where only the database is known. Raises ``ConfigError``."""
    try:
        store = StoreConfig.model_validate({"url": store_url})
    except ValidationError as exc:
        raise ConfigError(["--" + line for line in wording.lines(exc, "store", StoreConfig)]) from None
    register_secrets(store.secrets_in_url)
    return Outline(store=store, platforms={})


def _store(section: Any, environment: Mapping[str, str]) -> StoreConfig:
    """Which database, and its password: a SQLite has none, whatever is written there. Raises ``ConfigError``."""
    if section is not None and not isinstance(section, dict):
        raise ConfigError(["store: must be a section of keys and values"])
    problems: list[str] = []
    wanted = {key: value for key, value in (section or {}).items() if key == "url"}
    filled = fill(wanted, "store", environment, problems)
    if not problems and address.is_postgres(str(filled.get("url"))):
        secret = {key: value for key, value in (section or {}).items() if key in ("password", "password_file")}
        filled |= fill(secret, "store", environment, problems)
    if problems:
        raise ConfigError(problems)
    try:
        store = StoreConfig.model_validate(filled)
    except ValidationError as exc:
        raise ConfigError(wording.lines(exc, "store", StoreConfig)) from None
    register_secrets([*secrets_in(store), *store.secrets_in_url])
    return store


def known(platforms: Mapping[str, str]) -> dict[str, Any]:
    """The sources whose platform there is."""
    return {source: PLATFORMS[name] for source, name in platforms.items() if name in PLATFORMS}


def _sources(text: Text | None) -> dict[str, dict[Any, Any]]:
    """The sources by name, as far as they are known."""
    written = None if text is None else text.section("sources", lenient=True)
    if not isinstance(written, dict):
        return {}
    return {str(name): section if isinstance(section, dict) else {} for name, section in written.items()}
