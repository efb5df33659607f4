"""``automation-exporter check``: what a config would do, and with ``--online`` whether its sources can be reached."""

import math
from collections.abc import Callable

from exporter.clock import SystemClock
from exporter.config import Config
from exporter.http import ApiError
from exporter.metrics import catalogue
from exporter.platform import Platform
from exporter.platforms import PLATFORMS
from exporter.polling.wire import make_api
from exporter.settings import SourceConfig


def series_per_workflow(platform: Platform) -> int:
    """Lines one workflow is exposed as from its discovery: its counters at 0 and the gauges it always has."""
    born = len(platform.results) + 2 * len(platform.error_classes) + len(platform.resolved_by)
    born += {"operations", "transfer"}.issubset(platform.measures) * 3
    gauges = 3 + len(platform.lists_active) + 1  # info, enabled, streak of failures; active runs by state; dead letters
    return born + gauges


def histogram_lines() -> int:
    """Lines one result of a workflow adds once it has a duration."""
    return len(catalogue.RUN_DURATION.buckets) + 3


async def check(config: Config, *, online: bool, say: Callable[[str], None]) -> int:
    """Say what each source would cost and, online, what works; 0 if nothing is a problem, else 1."""
    problems = 0
    for source, section in config.sources.items():
        platform = PLATFORMS[section.platform]
        each = series_per_workflow(platform)
        room = math.floor(config.limits.series_max / (each + 2 * histogram_lines()))
        say(
            f"{source}: {each} series for each workflow, {histogram_lines()} more for each result it ends with; "
            f"limits.series_max has room for about {room} workflows"
        )
        if online:
            problems += await _try(source, section, platform, say)
    if problems:
        say(f"{problems} problem{'s' if problems > 1 else ''}")
    elif online:
        say("everything works")
    return 1 if problems else 0


async def _try(source: str, section: SourceConfig, platform: Platform, say: Callable[[str], None]) -> int:
    api = make_api(section, platform, SystemClock())
    problems = workflows = 0
    try:
        async for line in platform.connect(section, api).check():
            say(f"{source}: {line}")
            problems += line.startswith("problem:")
            if line.startswith("workflows: "):
                workflows = int(line.removeprefix("workflows: "))
        if workflows:
            lines = workflows * (series_per_workflow(platform) + 2 * histogram_lines())
            say(f"{source}: about {lines} series for {workflows} workflows")
    except ApiError as exc:
        say(f"{source}: problem: {exc}")
        problems += 1
    finally:
        await api.close()
    return problems
