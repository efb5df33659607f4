"""What is allowed and probably not meant: warnings of a config, one line each."""

import ipaddress
import os
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from exporter import listen
from exporter.config import Config
from exporter.config.mistakes import doubts
from exporter.config.shown import masked_places
from exporter.config.twins import twins
from exporter.model.matchers import braces
from exporter.platform.section import SourceConfig

#: Names that lead to no public place: those of one machine, of a cluster, of a house.
_PRIVATE_NAMES = (".localhost", ".local", ".internal", ".lan", ".home.arpa", ".svc", ".test", ".example", ".invalid")


def cautions(config: Config, now: float, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Every warning."""
    found = (
        _unreachable(config, environment) + twins(config.sources)[1] + doubts(config.retries, config.places(), now=now)
    )
    for source, section in config.sources.items():
        for key, url in (("url", section.url), ("token_url", getattr(section, "token_url", None))):
            if url is not None and _is_public_and_plain(url):
                found.append(f"sources.{source}.{key}: the credential is sent unencrypted: write https://")
        found += [
            f"{place}: braces are no alternatives in a pattern: write one entry for each: {spread}"
            for place, pattern in _patterns(f"sources.{source}", section)
            if (spread := braces(pattern))
        ]
    endpoint = config.traces.endpoint
    if config.traces.headers and endpoint is not None and _is_public_and_plain(endpoint):
        found.append("traces.endpoint: the headers are sent unencrypted: write https://")
    for place in masked_places(config):
        found.append(f"{place}: a secret that `config show` made up: put the true one in its place")
    return found


def _unreachable(config: Config, environment: Mapping[str, str]) -> list[str]:
    """An example of a config that was copied into a container."""
    by_default = environment.get(listen.VARIABLE, "")
    if not by_default or listen.is_local(by_default):
        return []
    return [
        f"server.{key}: {address}: only this container itself can reach it: write {by_default.rpartition(':')[0]} "
        f"for its host, or leave listen out"
        for key in ("listen", "webhooks_listen")
        if (address := getattr(config.server, key)) is not None and listen.is_local(address)
    ]


def _patterns(place: str, section: SourceConfig) -> Iterator[tuple[str, str]]:
    for key in ("include", "exclude"):
        for index, pattern in enumerate(getattr(section, key)):
            yield f"{place}.{key}[{index}]", pattern
    for index, entry in enumerate(section.workflow_labels):
        yield f"{place}.workflow_labels[{index}].match", entry.match


def _is_public_and_plain(url: str) -> bool:
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    if parts.scheme != "http":
        return False
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." in host and not f".{host}".endswith((*_PRIVATE_NAMES, ".cluster.local"))
    return address.is_global
