"""deploy/kubernetes: built by kubectl, read by the schemas of Kubernetes, and held against the code."""

import base64
import json
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator

from exporter import cli
from exporter.cli.service import STOP_SECONDS_MAX
from exporter.config.objectives import SloConfig
from exporter.model import catalogue
from exporter.view.own import OwnMetrics
from tests.deploy import facts
from tests.deploy.facts import CONFIG, DEPLOY, PORT, ROOT
from tests.servers import PATIENCE_SECONDS, real

OVERLAYS = ("sqlite", "postgres")
FOLDER = DEPLOY / "kubernetes"
#: The oldest that knows all of it (preStop sleep), and one of today.
VERSIONS = ("1.30", "1.37")
#: What `kubectl apply` without --server-side may note of a resource (bytes).
NOTES_MAX = 262_144
#: What the operator puts on every sample of a target; beside job and instance.
OPERATOR_LABELS = {"namespace", "service", "pod", "container", "endpoint"}

pytestmark = [real("kubectl"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def closed(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


TEXT, DURATION = {"type": "string"}, {"type": "string", "pattern": r"^(\d+[smhdwy])+$"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
RELABELING = closed(
    sourceLabels={"type": "array", "items": TEXT},
    targetLabel=TEXT,
    replacement=TEXT,
    regex=TEXT,
    action={"enum": ["replace", "keep", "drop", "labeldrop", "labelkeep", "labelmap"]},
)
#: Of the operator's resources, as much as is used here.
OPERATOR_SPECS = {
    "ServiceMonitor": closed(
        ("selector", "endpoints"),
        selector=closed(matchLabels=TEXTS),
        endpoints={
            "type": "array",
            "items": closed(
                port=TEXT, path=TEXT, interval=DURATION, relabelings={"type": "array", "items": RELABELING}
            ),
        },
    ),
    "PrometheusRule": closed(
        ("groups",),
        groups={
            "type": "array",
            "items": closed(
                ("name", "rules"),
                name={"type": "string", "minLength": 1},
                interval=DURATION,
                rules={
                    "type": "array",
                    "items": closed(
                        ("expr",),
                        record=TEXT,
                        alert=TEXT,
                        expr=TEXT,
                        labels=TEXTS,
                        annotations=TEXTS,
                        **{"for": DURATION, "keep_firing_for": DURATION},
                    ),
                },
            ),
        },
    ),
}


@cache
def built(overlay: str) -> list[dict[str, Any]]:
    said = subprocess.run(["kubectl", "version", "--client", "-o", "json"], capture_output=True, text=True, check=True)
    kustomize = json.loads(said.stdout).get("kustomizeVersion", "v0")
    if int(re.sub(r"^v(\d+).*", r"\1", kustomize)) < 5:
        pytest.skip(f"this kubectl has kustomize {kustomize}, which does not know components and targets as v5 does")
    command = ["kubectl", "kustomize", str(FOLDER / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS)
    assert (done.returncode, done.stderr) == (0, "")
    return facts.documents(done.stdout)


def of_kind(overlay: str, kind: str) -> list[dict[str, Any]]:
    return [one for one in built(overlay) if one["kind"] == kind]


def only(overlay: str, kind: str) -> dict[str, Any]:
    [found] = of_kind(overlay, kind)
    return found


def workload(overlay: str) -> dict[str, Any]:
    return only(overlay, {"sqlite": "StatefulSet", "postgres": "Deployment"}[overlay])


def pod(overlay: str) -> dict[str, Any]:
    spec: dict[str, Any] = workload(overlay)["spec"]["template"]["spec"]
    return spec


def container(overlay: str) -> dict[str, Any]:
    [found] = pod(overlay)["containers"]
    return dict(found)


def check(resource: dict[str, Any], version: str) -> None:
    if resource["apiVersion"] == "monitoring.coreos.com/v1":
        Draft202012Validator(OPERATOR_SPECS[resource["kind"]]).validate(resource["spec"])
    else:
        kubernetes_validate.validate(resource, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_resource_is_one_that_kubernetes_knows(overlay: str, version: str) -> None:
    for resource in built(overlay):
        check(resource, version)


@pytest.mark.parametrize("kind", ["StatefulSet", "ServiceMonitor"])
def test_the_check_notices_a_mistake(kind: str) -> None:
    wrong = json.loads(json.dumps(only("sqlite", kind)))
    wrong["spec"]["selectr"] = {}
    with pytest.raises(Exception, match="selectr"):
        check(wrong, VERSIONS[-1])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_resource_is_too_large_for_a_plain_apply(overlay: str) -> None:
    sizes = {one["metadata"]["name"]: len(json.dumps(one).encode()) for one in built(overlay)}
    print({name: size for name, size in sizes.items() if size > 10_000})
    assert {name for name, size in sizes.items() if size >= NOTES_MAX} == set()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_pod_may_do_nothing_it_need_not(overlay: str) -> None:
    spec, one = pod(overlay), container(overlay)
    assert one["image"] == facts.IMAGE
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": facts.uid(),
        "runAsGroup": facts.uid(),
        "fsGroup": facts.uid(),
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert one["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    account = only(overlay, "ServiceAccount")
    assert spec["serviceAccountName"] == account["metadata"]["name"]
    assert spec["automountServiceAccountToken"] is account["automountServiceAccountToken"] is False
    assert set(one["resources"]["requests"]) == {"cpu", "memory"}
    assert "memory" in one["resources"]["limits"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_the_config_names_is_mounted(overlay: str) -> None:
    mounts = {mount["name"]: mount["mountPath"] for mount in container(overlay)["volumeMounts"]}
    data = facts.dockerfile(r"^VOLUME (\S+)$")
    folder = facts.CONFIGS[f"kubernetes/overlays/{overlay}"]
    assert mounts == {"config": str(CONFIG.parent), "secrets": folder, "data": data}
    volumes = {volume["name"]: volume for volume in pod(overlay).get("volumes", [])}
    config = only(overlay, "Secret")
    assert volumes["config"]["secret"]["secretName"] == config["metadata"]["name"]
    # A changed config has to be another pod: the name carries a hash.
    assert re.fullmatch(r"automation-exporter-config-\w{10}", config["metadata"]["name"])
    text = base64.b64decode(config["data"][CONFIG.name]).decode()
    assert text == facts.config_text(f"kubernetes/overlays/{overlay}")
    # Their own secrets are not among these files; the README says how they are made.
    secret = volumes["secrets"]["secret"]["secretName"]
    [made] = re.findall(rf"create secret generic {secret} (.*)", (DEPLOY / "README.md").read_text())
    named = {word.removeprefix("--from-file=") for word in made.split()}
    assert named == facts.secrets_of(f"kubernetes/overlays/{overlay}") - {"postgres_password"}


def test_sqlite_is_one_pod_with_a_volume_and_postgres_several_without() -> None:
    assert workload("sqlite")["spec"]["replicas"] == 1
    [claim] = workload("sqlite")["spec"]["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == "data"
    services = {one["metadata"]["name"] for one in of_kind("sqlite", "Service")}
    assert workload("sqlite")["spec"]["serviceName"] in services
    assert of_kind("sqlite", "PodDisruptionBudget") == []
    deployment = workload("postgres")["spec"]
    assert deployment["replicas"] > only("postgres", "PodDisruptionBudget")["spec"]["maxUnavailable"]
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert {volume["name"] for volume in pod("postgres")["volumes"] if "emptyDir" in volume} == {"data"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_probe_asks_whether_the_process_lives_and_none_whether_it_is_fresh(overlay: str) -> None:
    one = container(overlay)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert one[probe]["httpGet"] == {"path": "/-/healthy", "port": "http"}
    served = (ROOT / "exporter/web/server.py").read_text()
    assert 'add_get("/-/healthy"' in served
    waits = one["lifecycle"]["preStop"]["sleep"]["seconds"] + STOP_SECONDS_MAX
    assert waits < pod(overlay)["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ports_lead_from_the_ingress_to_the_listeners(overlay: str, tmp_path: Path) -> None:
    server = facts.config(f"kubernetes/overlays/{overlay}", tmp_path).server
    ports = {port["name"]: port["containerPort"] for port in container(overlay)["ports"]}
    assert ports == {"http": PORT, "webhooks": int(str(server.webhooks_listen).rpartition(":")[2])}
    labels = workload(overlay)["spec"]["template"]["metadata"]["labels"]
    services = {one["metadata"]["name"]: one["spec"] for one in of_kind(overlay, "Service")}
    for spec in services.values():
        assert spec["selector"].items() <= labels.items()
        assert {port["targetPort"] for port in spec["ports"]} <= set(ports)
    assert services["automation-exporter"]["ports"][0]["port"] == PORT
    [rule] = only(overlay, "Ingress")["spec"]["rules"]
    [path] = rule["http"]["paths"]
    assert f'"{path["path"]}{{source}}"' in (ROOT / "exporter/web/server.py").read_text()
    behind = path["backend"]["service"]
    [target] = [p["targetPort"] for p in services[behind["name"]]["ports"] if p["name"] == behind["port"]["name"]]
    assert target == "webhooks"
    policy = only(overlay, "NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} == set(ports)
    out = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    assert out == {53, 443} | ({5432} if overlay == "postgres" else set())


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_service_monitor_fixes_job_and_instance_and_hides_no_label_of_ours(overlay: str) -> None:
    spec = only(overlay, "ServiceMonitor")["spec"]
    [service] = [
        one
        for one in of_kind(overlay, "Service")
        if spec["selector"]["matchLabels"].items() <= one["metadata"]["labels"].items()
    ]
    [endpoint] = spec["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert f'add_get("{endpoint["path"]}"' in (ROOT / "exporter/web/server.py").read_text()
    relabelings = endpoint["relabelings"]
    fixed = {one["targetLabel"]: one for one in relabelings if "targetLabel" in one}
    assert fixed["job"]["replacement"] == SloConfig().job
    assert fixed["instance"]["sourceLabels"] == ["__meta_kubernetes_pod_name"]
    ours = {label for metric in catalogue.CATALOGUE for label in metric.labels}
    for collector in set(OwnMetrics().registry._collector_to_names):
        ours |= set(getattr(collector, "_labelnames", ())) | set(getattr(collector, "_labels", ()))
    dropped = {one["regex"] for one in relabelings if one.get("action") == "labeldrop"}
    assert (OPERATOR_LABELS & ours) == dropped == {"endpoint"}


def test_the_prometheus_rule_is_what_the_command_prints(
    request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(facts.runnable("kubernetes/overlays/sqlite", tmp_path))
    capsys.readouterr()
    assert cli.main(["rules", "--format", "prometheusrule", "--config", str(config)]) == 0
    file, text = FOLDER / "monitoring/prometheusrule.yaml", capsys.readouterr().out
    if request.config.getoption("--update"):
        file.write_text(text)
    assert file.read_text() == text, f"pytest {Path(__file__).name} --update"


@real("promtool")
def test_prometheus_reads_the_rules_that_come_out_of_the_overlay(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(only("sqlite", "PrometheusRule")["spec"]))
    done = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_dashboard_is_a_config_map_the_sidecar_finds(overlay: str) -> None:
    there = {file.name: json.loads(file.read_text()) for file in (ROOT / "dashboards").glob("*.json")}
    assert there
    found: dict[str, Any] = {}
    for one in of_kind(overlay, "ConfigMap"):
        assert one["metadata"]["labels"]["grafana_dashboard"] == "1"
        found |= {name: json.loads(text) for name, text in one["data"].items()}
    assert found == there


def test_the_image_is_named_in_one_place() -> None:
    naming = [
        file.relative_to(DEPLOY).as_posix()
        for file in [*DEPLOY.rglob("*.yaml"), DEPLOY / "compose/.env"]
        if "ghcr.io/" in file.read_text()
    ]
    assert sorted(naming) == ["compose/.env", "kubernetes/pod/kustomization.yaml"]
