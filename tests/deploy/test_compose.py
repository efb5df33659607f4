"""deploy/compose: read by an implementation of the Compose specification, and held against the code."""

import re
import subprocess
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from exporter.cli.parser import parser
from exporter.config.objectives import SloConfig
from tests.deploy import facts
from tests.deploy.facts import CONFIG, DEPLOY, PORT
from tests.servers import real

FOLDER = DEPLOY / "compose"
ENVIRONMENT = dict(re.findall(r"^(\w+)=(.*)$", (FOLDER / ".env").read_text(), re.M))


def written() -> str:
    text = (FOLDER / "compose.yaml").read_text()
    return re.sub(r"\$\{(\w+)\}", lambda variable: ENVIRONMENT[variable[1]], text)


COMPOSE: dict[str, Any] = yaml.safe_load(written())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
EXPORTERS = {"sqlite": "exporter", "postgres": "exporter-replica"}


def merged() -> str:
    """Without anchors and merge keys, which are YAML's and not Compose's."""
    return yaml.safe_dump({key: value for key, value in COMPOSE.items() if not key.startswith("x-")})


def test_it_is_what_the_specification_knows() -> None:
    PyCompose.from_yaml(merged()).validate()


@pytest.mark.parametrize(("right", "wrong"), [("read_only:", "readonly:"), ("retries: 3", "retries: many")])
def test_the_check_notices_a_mistake(right: str, wrong: str) -> None:
    assert right in merged()
    with pytest.raises(ValueError):
        PyCompose.from_yaml(merged().replace(right, wrong)).validate()


def test_each_profile_starts_one_kind_of_exporter() -> None:
    assert ENVIRONMENT["COMPOSE_PROFILES"] in EXPORTERS
    for profile, name in EXPORTERS.items():
        started = {name for name, one in SERVICES.items() if profile in one.get("profiles", [profile])}
        assert started & set(EXPORTERS.values()) == {name}
        assert {"prometheus", "alertmanager", "grafana"} < started
        assert ("postgres" in started) == (profile == "postgres")
    assert SERVICES["exporter"].get("deploy") is None  # SQLite knows one process
    assert SERVICES["exporter-replica"]["deploy"]["replicas"] > 1


@pytest.mark.parametrize(("profile", "name"), EXPORTERS.items())
def test_an_exporter_runs_as_little_as_it_needs(profile: str, name: str) -> None:
    service = SERVICES[name]
    assert service["image"] == facts.IMAGE
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert f"./exporter/{profile}:{CONFIG.parent}:ro" in service["volumes"]
    assert set(service["secrets"]) == facts.secrets_of(f"compose/exporter/{profile}")
    data = facts.dockerfile(r"^VOLUME (\S+)$")
    if profile == "sqlite":
        assert f"exporter-data:{data}" in service["volumes"]
    else:
        assert service["tmpfs"] == [f"{data}:uid={facts.uid()},gid={facts.uid()},mode=0700"]


def test_every_port_is_that_of_a_listener_and_of_this_machine_only() -> None:
    for name, service in SERVICES.items():
        for port in service.get("ports", []):
            host = port["host_ip"] if isinstance(port, dict) else port.split(":")[0]
            target = port["target"] if isinstance(port, dict) else int(port.split(":")[2])
            assert host == "127.0.0.1"
            if name in EXPORTERS.values():
                assert target in (PORT, PORT + 1)
    assert "ports" not in SERVICES["postgres"]


def test_every_secret_is_a_file_and_has_a_definition() -> None:
    used = {secret for service in SERVICES.values() for secret in service.get("secrets", [])}
    assert COMPOSE["secrets"] == {name: {"file": f"./secrets/{name}"} for name in used}
    for service in SERVICES.values():
        for key, value in service.get("environment", {}).items():
            assert "PASSWORD" not in key or value.startswith("/run/secrets/"), key


def test_every_file_it_mounts_is_there() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (FOLDER / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], volume


def test_the_health_check_is_a_command_there_is() -> None:
    [_, program, *words] = SERVICES["exporter"]["healthcheck"]["test"]
    assert (program, words) == ("automation-exporter", ["healthcheck"])
    known = next(action.choices for action in parser()._actions if action.choices)
    if "healthcheck" not in known:
        pytest.skip("this version has no command healthcheck")
    parser().parse_args(words)


def test_a_stop_is_shorter_than_docker_waits() -> None:
    from exporter.cli.service import STOP_SECONDS_MAX

    assert STOP_SECONDS_MAX < 10.0
    assert "stop_grace_period" not in SERVICES["exporter"]


PROMETHEUS = yaml.safe_load((FOLDER / "prometheus/prometheus.yaml").read_text())


def test_prometheus_scrapes_what_is_started_under_the_job_of_the_rules() -> None:
    [scrape] = PROMETHEUS["scrape_configs"]
    assert scrape["job_name"] == SloConfig().job
    assert scrape.get("metrics_path", "/metrics") == "/metrics"
    [discovered] = scrape["dns_sd_configs"]
    assert (set(discovered["names"]), discovered["port"]) == (set(EXPORTERS.values()), PORT)


def test_prometheus_loads_every_rule_there_is() -> None:
    [mount] = [volume for volume in SERVICES["prometheus"]["volumes"] if "/alerts:" in volume]
    source, target, _ = mount.split(":")
    loaded = {file.removeprefix(f"{target}/") for file in PROMETHEUS["rule_files"]}
    there = {file.name for file in (FOLDER / source).glob("*.yaml")}
    assert loaded == there - {"alertmanager.example.yaml"}


@real("promtool")
def test_prometheus_reads_its_config() -> None:
    file = FOLDER / "prometheus/prometheus.yaml"
    command = ["promtool", "check", "config", "--syntax-only", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@real("amtool")
def test_alertmanager_reads_its_config() -> None:
    file = FOLDER / ENVIRONMENT["ALERTMANAGER_CONFIG"]
    done = subprocess.run(["amtool", "check-config", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_grafana_finds_prometheus_and_the_dashboards_where_they_are_said_to_be() -> None:
    provisioning = FOLDER / "../../dashboards/provisioning"
    sources = yaml.safe_load((provisioning / "datasources.yaml").read_text())["datasources"]
    assert "http://prometheus:9090" in {source["url"] for source in sources}
    [provider] = yaml.safe_load((provisioning / "dashboards.yaml").read_text())["providers"]
    assert f"../../dashboards:{provider['options']['path']}:ro" in SERVICES["grafana"]["volumes"]
