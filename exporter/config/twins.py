"""Two sources that read the same: everything would be counted twice and, worse, retried twice."""

import ipaddress
from collections.abc import Mapping
from contextlib import suppress
from itertools import combinations
from urllib.parse import urlsplit

from exporter.platform.section import SourceConfig

TWICE = "every run would be counted, and every dead letter retried, twice"


def twins(sources: Mapping[str, SourceConfig]) -> tuple[list[str], list[str]]:
    """What certainly is read twice: a problem. What probably is: a warning."""
    problems, warnings = list[str](), list[str]()
    for (first, one), (second, other) in combinations(sources.items(), 2):
        both = _watch_both(one, other)
        if one.platform != other.platform or both is False or _kept_apart(one, other):
            continue
        here = _address(one.url) == _address(other.url)
        known = one.credential == other.credential
        if here and known and both and _one_selects_all(one, other):
            problems.append(
                f"sources.{second}: reads the same as sources.{first}, with the same credential: {TWICE}; remove one"
            )
        elif here:
            warnings.append(
                f"sources.{second}: has the url of sources.{first}; if both see the same workflows, {TWICE}: "
                "keep them apart with include and exclude, or remove one"
            )
        elif known:
            warnings.append(
                f"sources.{second}: has the credential of sources.{first}; if the two urls lead to one place, {TWICE}"
            )
    return problems, warnings


def _watch_both(one: SourceConfig, other: SourceConfig) -> bool | None:
    """Whether there is something that both watch; None: not known."""
    if one.watches is None or other.watches is None or one.watches & other.watches:
        return True
    kinds = [{kind for kind, _ in source.watches or ()} for source in (one, other)]
    return None if kinds[0] != kinds[1] else False


def _one_selects_all(one: SourceConfig, other: SourceConfig) -> bool:
    selections = [(sorted(source.include), sorted(source.exclude)) for source in (one, other)]
    return selections[0] == selections[1] or ([], []) in selections


def _kept_apart(one: SourceConfig, other: SourceConfig) -> bool:
    """Whether ``include`` and ``exclude`` share the workflows out."""
    for this, that in ((one, other), (other, one)):
        if this.include and set(this.include) <= set(that.exclude):
            return True
    named = one.include and other.include and not any(c in p for p in one.include + other.include for c in "*?[")
    return bool(named) and not set(one.include) & set(other.include)


def _address(url: str) -> tuple[str, str, int, str]:
    """What two spellings of one URL share: no default port, no upper case, no slash at the end."""
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    try:
        host = str(ipaddress.ip_address(host))
    except ValueError:
        with suppress(UnicodeError):
            host = host.encode("idna").decode()
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.scheme, host, port, "/".join(filter(None, parts.path.split("/")))
