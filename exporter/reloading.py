"""A service that goes on: it stops on a signal and, when asked to reload, takes a new config whole or keeps the old."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from exporter.app import Service, service
from exporter.clock import Clock, SystemClock, first
from exporter.config import Config, ConfigError
from exporter.config.cautions import cautions
from exporter.log import configure, get_logger
from exporter.view.own import OwnMetrics
from exporter.web.doors import Doors

log = get_logger(__name__)


async def run(
    config: Config,
    *,
    stop: asyncio.Event,
    reload: asyncio.Event,
    load: Callable[[], Config],
    clock: Clock | None = None,
    on_running: Callable[[Service], None] = lambda service: None,
) -> None:
    """Keep a service running until ``stop`` is set. When ``reload`` is set, take the config anew, all or nothing."""
    clock, own = clock or SystemClock(), OwnMetrics()
    own.reload_successful.set(1)
    own.reload_timestamp.set(clock.now())
    pending: list[Config] = []

    async def take() -> str | None:
        """Read and check the config; None when it will be used."""
        try:
            pending.append(load())
        except ConfigError as exc:
            own.reload_successful.set(0)
            for problem in exc.problems:
                log.error("config not taken", problem=problem)
            return exc.problems[0]
        reload.set()
        return None

    previous: Config | None = None
    doors = Doors()
    try:
        while not stop.is_set():
            configure(config.log.level, config.log.format, sys.stderr)
            try:
                for caution in cautions(config, clock.now()):
                    log.warning("config warning", problem=caution)
                async with (
                    _given_up_at(stop) as begun,
                    service(config, clock=clock, own=own, reload=take, doors=doors) as running,
                ):
                    begun()
                    if previous is not None:
                        own.reload_successful.set(1)
                        own.reload_timestamp.set(clock.now())
                    previous = None
                    on_running(running)
                    while not stop.is_set() and not pending:
                        await first(stop.wait(), reload.wait())
                        if reload.is_set() and not pending:
                            await take()
                        reload.clear()
                    if stop.is_set():
                        doors.shut()
            except Exception as exc:  # whatever keeps a new config from running, the old one did
                if previous is None:
                    raise
                own.reload_successful.set(0)
                log.error("config not taken", problem=str(exc))
                config, previous = previous, None
                continue
            if pending:
                previous, config = config, pending.pop()
                pending.clear()
    finally:
        await doors.close()


@asynccontextmanager
async def _given_up_at(stop: asyncio.Event) -> AsyncIterator[Callable[[], object]]:
    """What is begun in the block is given up when ``stop`` is set, wherever it waits, until it calls what it gets."""
    task, given_up = asyncio.current_task(), False

    async def watch() -> None:
        nonlocal given_up
        await stop.wait()
        if task is not None:
            given_up = True
            task.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield watching.cancel
    except asyncio.CancelledError:
        if not given_up or task is None or task.uncancel() > 0:
            raise
    finally:
        watching.cancel()
