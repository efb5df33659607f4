"""The example configs of deploy/: accepted by `check`, reachable from outside, and the same but for their places."""

import re
import stat
from pathlib import Path

import pytest
import yaml

from exporter import cli
from tests.deploy import facts
from tests.deploy.facts import CONFIGS, DEPLOY, PORT


@pytest.mark.parametrize("name", CONFIGS)
def test_check_accepts_it(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(facts.runnable(name, tmp_path))
    assert cli.main(["check", "--config", str(file)]) == 0, capsys.readouterr().err


def test_these_are_all_there_are() -> None:
    assert {file.parent.relative_to(DEPLOY).as_posix() for file in DEPLOY.rglob("config.yaml")} == set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_listens_where_it_is_reached(name: str, tmp_path: Path) -> None:
    server = facts.config(name, tmp_path).server
    host = "127.0.0.1" if name == "systemd" else "0.0.0.0"  # noqa: S104
    assert (server.listen, server.webhooks_listen) == (f"{host}:{PORT}", f"{host}:{PORT + 1}")


def test_the_sources_are_the_same_everywhere() -> None:
    seen = set()
    for name, folder in CONFIGS.items():
        written = yaml.safe_load(facts.config_text(name).replace(folder + "/", "/"))
        seen.add(yaml.safe_dump(written["sources"]))
    assert len(seen) == 1


def test_the_database_is_in_the_volume() -> None:
    data = facts.dockerfile(r"^VOLUME (\S+)$")
    assert facts.dockerfile(r"^WORKDIR (/data)$") == data
    for name in ("compose/exporter/sqlite", "kubernetes/overlays/sqlite"):
        assert yaml.safe_load(facts.config_text(name))["store"]["url"].startswith(f"sqlite:///{data}/")
    for name in ("compose/exporter/postgres", "kubernetes/overlays/postgres"):
        store = yaml.safe_load(facts.config_text(name))["store"]
        assert re.fullmatch(r"postgresql://exporter@[\w.]+/exporter", store["url"])
        assert "password_file" in store


def test_no_secret_is_kept_with_the_files() -> None:
    folder = DEPLOY / "compose/secrets"
    assert (folder / ".gitignore").read_text() == "*\n!.gitignore\n"
    assert not [file for file in DEPLOY.rglob("*") if file.is_file() and file.stat().st_mode & stat.S_IXUSR]


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", (DEPLOY / "README.md").read_text())
    assert len(links) >= 3
    assert [link for link in links if not (DEPLOY / link).exists() and link != "../docs/deploy.md"] == []
