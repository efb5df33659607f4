"""A local Prometheus and Alertmanager beside the demo, where these are installed: rules loaded, all on loopback."""

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import yaml

from exporter.alerting import rules
from exporter.config.objectives import SloConfig

#: Names Debian and others give the programs.
PROMETHEUS = ("prometheus",)
ALERTMANAGER = ("prometheus-alertmanager", "alertmanager")
STOP_SECONDS_MAX = 10.0


@asynccontextmanager
async def companions(folder: Path, target: str) -> AsyncIterator[dict[str, str]]:
    """Start what is installed, scraping ``target`` (HOST:PORT); yields names and URLs, and stops it in the end."""
    urls: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        alertmanager, prometheus = _find(ALERTMANAGER), _find(PROMETHEUS)
        if alertmanager is not None:
            port = _free_port()
            config = folder / "alertmanager.yaml"
            config.write_text(
                yaml.safe_dump(
                    {
                        "route": {"receiver": "demo", "group_by": ["alertname", "source"], "group_wait": "5s"},
                        "receivers": [{"name": "demo"}],
                    }
                )
            )
            command = [
                alertmanager,
                f"--config.file={config}",
                f"--storage.path={folder / 'alertmanager'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--cluster.listen-address=",
            ]
            await stack.enter_async_context(_running(command, folder / "alertmanager.log"))
            urls["alertmanager"] = f"http://127.0.0.1:{port}"
        if prometheus is not None:
            port = _free_port()
            command = [
                prometheus,
                f"--config.file={_prometheus_config(folder, target, urls.get('alertmanager'))}",
                f"--storage.tsdb.path={folder / 'prometheus'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--enable-feature=exemplar-storage",
            ]
            await stack.enter_async_context(_running(command, folder / "prometheus.log"))
            urls["prometheus"] = f"http://127.0.0.1:{port}"
        yield urls


def _prometheus_config(folder: Path, target: str, alertmanager: str | None) -> Path:
    """A config with our rules, written beside it."""
    slo, file = SloConfig(status_url=f"http://{target}"), folder / "rules.yaml"
    file.write_text(rules.as_yaml([*rules.recording_rules(slo), *rules.alert_rules(slo)]))
    config: dict[str, object] = {
        "global": {"scrape_interval": "5s", "evaluation_interval": "15s"},
        "rule_files": [str(file)],
        "scrape_configs": [{"job_name": slo.job, "static_configs": [{"targets": [target]}]}],
    }
    if alertmanager is not None:
        where = {"static_configs": [{"targets": [alertmanager.removeprefix("http://")]}]}
        config["alerting"] = {"alertmanagers": [where]}
    path = folder / "prometheus.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def _find(names: tuple[str, ...]) -> str | None:
    return next((found for name in names if (found := shutil.which(name)) is not None), None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def _running(command: list[str], log: Path) -> AsyncIterator[None]:
    """A program until the block ends, its words in a file."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(*command, stdout=output, stderr=output, start_new_session=True)
    try:
        yield
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(STOP_SECONDS_MAX):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
