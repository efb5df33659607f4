"""What the files of deploy/ have to agree on with the code: nothing here is a number of its own."""

import re
from pathlib import Path
from typing import Any

import yaml

from exporter import __version__
from exporter.cli.parser import CONFIG_FILE
from exporter.config import Config, ServerConfig, parse

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
PORT = int(ServerConfig.model_fields["listen"].default.rpartition(":")[2])
CONFIG = Path(CONFIG_FILE)
#: The example configs, and where their secrets are.
CONFIGS = {
    "compose/exporter/sqlite": "/run/secrets",
    "compose/exporter/postgres": "/run/secrets",
    "kubernetes/overlays/sqlite": "/run/secrets/automation-exporter",
    "kubernetes/overlays/postgres": "/run/secrets/automation-exporter",
    "systemd": "${CREDENTIALS_DIRECTORY}",
}
IMAGE = f"ghcr.io/automation-exporter/automation-exporter:{__version__}"


def dockerfile(pattern: str) -> str:
    [found] = re.findall(pattern, (ROOT / "Dockerfile").read_text(), re.M)
    return str(found)


def uid() -> int:
    return int(dockerfile(r"^USER (\d+):\d+$"))


def config_text(name: str) -> str:
    return (DEPLOY / name / "config.yaml").read_text()


def secrets_of(name: str) -> set[str]:
    """The files of secrets a config names; each is below the folder for them."""
    paths = re.findall(r'_file: "?([^\s"}]+(?:\}[^\s"}]+)?)', config_text(name))
    assert paths
    folders, names = zip(*(path.rsplit("/", 1) for path in paths), strict=True)
    assert set(folders) == {CONFIGS[name]}
    return set(names)


def runnable(name: str, folder: Path) -> str:
    """The text of a config with its secrets in a folder of the test."""
    for secret in secrets_of(name):
        (folder / secret).write_text("0123456789abcdef0123456789abcdef")
    text = config_text(name).replace(CONFIGS[name] + "/", f"{folder}/")
    return re.sub(r"sqlite:////\S*/", f"sqlite:///{folder}/", text)


def config(name: str, folder: Path) -> Config:
    return parse(runnable(name, folder), {})


def documents(text: str) -> list[Any]:
    return list(yaml.safe_load_all(text))
