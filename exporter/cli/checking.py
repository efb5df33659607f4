"""``automation-exporter check``: whether a config will do here, what it would cost, and with ``--online`` whether its
sources can be reached.

The verdict comes first, then problems, warnings, and what else is worth knowing.
"""

import asyncio
import math
import os
import shutil
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from urllib.parse import urlsplit

from exporter import log
from exporter.clock import SystemClock
from exporter.config import Config, ConfigError, StoreConfig, load
from exporter.config.cautions import cautions
from exporter.config.twins import TWICE
from exporter.model.policy import Rules
from exporter.model.retries import Mode
from exporter.platform import Platform, Watches
from exporter.platform.section import SourceConfig
from exporter.platforms import PLATFORMS
from exporter.source import make_api
from exporter.store.address import is_postgres, place
from exporter.store.ledger import database
from exporter.store.place import not_ours
from exporter.store.script import StoreError
from exporter.traces.export import is_enabled
from exporter.traces.otlp import ExporterUnavailable, destination
from exporter.view.costs import SeriesOf, counted, series_of, series_of_retries
from exporter.web import local
from exporter.web.doors import no_address
from exporter.wire.errors import ApiError, ErrorKind

#: Room on the disk below which a database is a worry, and below which it is a problem (bytes).
SPACE_SCARCE, SPACE_MIN = 512 * 1024**2, 32 * 1024**2
CONNECT_SECONDS_MAX = 5.0
#: Results that the runs of a workflow end with in the long run, for estimates.
RESULTS_USUAL = 2
_SQLITE = b"SQLite format 3\0"


@dataclass(slots=True, kw_only=True)
class Report:
    """What was found. ``notes`` are neither good nor bad."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


async def check(
    path: Path, *, online: bool, say: Callable[[str], None], environment: Mapping[str, str] = os.environ
) -> int:
    """Say the verdict, then what it rests on; 0 if nothing is a problem, else 1."""
    report, found = Report(), Report()
    try:
        config = load(path, environment)
    except ConfigError as exc:
        report.problems += exc.problems
    else:
        log.register_secrets(config.secrets())
        report.warnings += cautions(config, SystemClock().now())
        await _try_here(config, report, environment, online=online)
        found = await _sources(config, online=online)
    problems = [f"{path}: {line}" for line in report.problems] + found.problems
    warnings = [f"{path}: warning: {line}" for line in report.warnings] + found.warnings
    say(f"{path}: {_verdict(len(problems), len(warnings), online=online)}")
    for line in (*problems, *warnings, *report.notes, *found.notes):
        say(log.scrub(line))
    return 1 if problems else 0


def _verdict(problems: int, warnings: int, *, online: bool) -> str:
    verdict = f"{problems} problem{'s' * (problems != 1)}" if problems else "fine"
    if warnings:
        verdict += f", {warnings} warning{'s' * (warnings != 1)}"
    return f"{verdict}; everything works" if online and not problems else verdict


# Here, on this machine.


async def _try_here(config: Config, report: Report, environment: Mapping[str, str], *, online: bool) -> None:
    """The database's folder, the addresses, the certificates and where traces go."""
    if is_postgres(config.store.url):
        await _try_postgres(config.store, report, online=online)
    else:
        _try_store(config.store.url, report)
    for key in ("listen", "webhooks_listen"):
        address = getattr(config.server, key)
        if address is not None:
            await _try_address(f"server.{key}", address, config.store.url, report)
    if config.server.tls is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        with _certificates_of("server.tls", report):
            context.load_cert_chain(config.server.tls.cert_file, config.server.tls.key_file, password="")
    for source, section in config.sources.items():
        if section.tls_ca_file is not None:
            with _certificates_of(f"sources.{source}.tls_ca_file", report):
                ssl.create_default_context(cafile=section.tls_ca_file)
    if is_enabled(config.traces, environment):
        await _try_traces(config, report, environment, online=online)


@contextmanager
def _certificates_of(key: str, report: Report) -> Iterator[None]:
    """Report it if a file of certificates cannot be used."""
    try:
        yield
    except OSError as exc:
        told = "is no PEM file, or its parts do not fit" if isinstance(exc, ssl.SSLError) else exc.strerror
        report.problems.append(f"{key}: cannot be used: {told}")


def _try_store(url: str, report: Report) -> None:
    file = database(url)
    folder = file.absolute().parent
    if not folder.is_dir():
        report.problems.append(f"store.url: there is no folder {folder}: create it, for the user of the service")
        return
    if file.is_dir():
        report.problems.append(f"store.url: {file} is a folder: add the name of a file")
    elif not os.access(folder, os.W_OK | os.X_OK):
        report.problems.append(f"store.url: the folder {not_ours(str(folder))}")
    elif file.exists():
        if not os.access(file, os.R_OK | os.W_OK):
            report.problems.append(f"store.url: {not_ours(str(file))}")
        elif file.stat().st_size and not _is_sqlite(file):
            report.problems.append(f"store.url: {file} is another kind of file: choose another name")
    words = space(shutil.disk_usage(folder).free)
    if words is not None:
        (report.problems if words[0] else report.warnings).append(f"store.url: {words[1]} on the disk of {folder}")


async def _try_postgres(store: StoreConfig, report: Report, *, online: bool) -> None:
    """Whether a PostgreSQL lets us in and gives what a ledger needs: another machine's affair, so online only."""
    if not online:
        report.notes.append(f"store.url: {place(store.url)} is tried with --online")
        return
    from exporter.store.trying import tried  # needs asyncpg

    try:
        found = await tried(store.url, store.password_now)
    except StoreError as exc:
        report.problems.append(str(exc) if str(exc).startswith("store.url") else f"store.url: {exc}")
        return
    report.problems += [f"store.url: {problem}" for problem in found.problems]
    report.notes.append(f"store.url: {place(store.url)}: {found.told}")


def _is_sqlite(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(_SQLITE)) == _SQLITE


def space(free: int) -> tuple[bool, str] | None:
    """Whether so little room is a problem, and what to say; None if there is enough."""
    if free >= SPACE_SCARCE:
        return None
    return free < SPACE_MIN, f"only {free // 1024**2} MB are free"


async def _try_address(key: str, address: str, store_url: str, report: Report) -> None:
    """Take the address for a moment, as the service would."""
    host, _, port = address.rpartition(":")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host.strip("[]") or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, protocol, _, where in found[:1]:
            with socket.socket(family, kind, protocol) as tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tried.bind(where)
                tried.listen(1)
    except OSError as exc:
        problem = no_address(key, address, exc)
        if "in use" in problem and local.running_at(store_url) is not None:
            report.notes.append(f"{key}: {address}: in use by the service that runs with this database")
        else:
            report.problems.append(problem)


async def _try_traces(config: Config, report: Report, environment: Mapping[str, str], *, online: bool) -> None:
    """Whether there is an endpoint, and whether somebody listens there: on this machine always, elsewhere online."""
    try:
        url = destination(config.traces, environment).url
        parts = urlsplit(url if "//" in url else f"//{url}")
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    except ExporterUnavailable as exc:
        report.problems.append(str(exc))
        return
    except ValueError:
        report.problems.append(f"{_traces_key(config)}: must be a URL such as http://127.0.0.1:4318")
        return
    if online or host in ("localhost", "::1") or host.startswith("127."):
        why = await _cannot_connect(host, port)
        if why is not None:
            report.problems.append(f"{_traces_key(config)}: {why}: start the OTLP receiver, or correct the address")


def _traces_key(config: Config) -> str:
    return "traces.endpoint" if config.traces.endpoint else "OTEL_EXPORTER_OTLP_ENDPOINT"


async def _cannot_connect(host: str, port: int) -> str | None:
    try:
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return f"no answer from {host}:{port}"
    except socket.gaierror:
        return f"the host name {host} is not known"
    except ConnectionRefusedError:
        return f"connection refused by {host}:{port}"
    except OSError:
        return f"nobody can be reached at {host}:{port}"
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return None


# The sources.


async def _sources(config: Config, *, online: bool) -> Report:
    """What each source would cost and, online, what works."""
    whole, watched, rules = Report(), dict[str, list[Watches]](), config.rules()
    for source, section in config.sources.items():
        platform = PLATFORMS[section.platform]
        events, classes = section.webhook is not None, config.limits.error_classes
        costs = series_of(counted(platform, events=events, error_classes=classes), section.labelled)
        room = math.floor(config.limits.series_max / costs.with_results(RESULTS_USUAL))
        whole.notes.append(
            f"{source}: {costs.workflow} series for each workflow, {costs.result} more for each result it ends with; "
            f"limits.series_max has room for about {room} workflows"
        )
        of_retries = series_of_retries(rules.policies, rules.source(source))
        whole.notes.append(f"{source}: {of_retries} series for its retries")
        whole.notes.append(f"{source}: {_paced(rules, source)}")
        if online:
            watched[source] = await _try(source, section, platform, costs, whole)
    whole.problems += _same(watched, {source: section.platform for source, section in config.sources.items()})
    return whole


def _paced(rules: Rules, source: str) -> str:
    """How many retries a day there can be, whatever happens."""
    pace, mode = rules.source(source).pace, rules.mode_of(source)
    a_day = math.ceil(pace.rate * 86400 - 1e-6)
    limit = f"its rate limit (pace) allows at most {a_day} retries a day, {pace.burst} at once"
    return limit if mode.rank > Mode.SHADOW.rank else f"{limit}; none is sent while the mode is {mode}"


async def _try(
    source: str, section: SourceConfig, platform: Platform, costs: SeriesOf, report: Report
) -> list[Watches]:
    """Ask the platform; returns what it says is watched there."""
    try:
        api = make_api(section, platform, SystemClock())
    except OSError:  # certificates that cannot be read: told already
        return []
    workflows, watched = 0, list[Watches]()
    try:
        async for line in platform.connect(section, api).check():
            if isinstance(line, Watches):
                watched.append(line)
                continue
            word, _, rest = line.partition(": ")
            if word == "problem":
                report.problems.append(f"{source}: {line}")
            else:
                report.notes.append(f"{source}: {line}")
            if word == "workflows":
                workflows = int(rest)
        if workflows:
            lines = workflows * costs.with_results(RESULTS_USUAL)
            report.notes.append(f"{source}: about {lines} series for {workflows} workflows")
    except ApiError as exc:
        report.problems.append(f"{source}: problem: {_advised(source, section, exc)}")
    finally:
        await api.close()
    return watched


def _advised(source: str, section: SourceConfig, exc: ApiError) -> str:
    """What failed, with the key to look at."""
    if exc.kind is ErrorKind.AUTH:
        key = section.credential[0] if section.credential else "token"
        return f"sources.{source}.{key} is not accepted by {urlsplit(section.url).hostname} ({exc}); {section.refused}"
    if exc.status is None:
        return f"sources.{source}.url: {exc}"
    if exc.kind is ErrorKind.NOT_FOUND or exc.kind is ErrorKind.BAD_PAYLOAD:
        return f"sources.{source}.url: {exc}; is this the address of the platform's API?"
    return f"sources.{source}: {exc}"


def _same(watched: Mapping[str, Sequence[Watches]], platforms: Mapping[str, str]) -> list[str]:
    """Sources that the platforms say are one: what one watches is, or holds, what the other does."""
    return [
        f"{second}: problem: sources.{second} reads the same as sources.{first}, as the platform says "
        f"({platforms[second]} {mine}): {TWICE}; remove one"
        for (first, theirs), (second, ours) in combinations(watched.items(), 2)
        if platforms[first] == platforms[second]
        for mine in [one for one in ours if any(one.overlaps(other) for other in theirs)][:1]
    ]
