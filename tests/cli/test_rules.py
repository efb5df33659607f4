"""``automation-exporter rules``: the two forms in which it prints them."""

from pathlib import Path

import pytest
import yaml

from exporter import cli

CONFIG = """\
sources: {make-eu: {platform: make, url: "http://localhost", token: abcd, organization_id: 9, labels: {team: payments}}}
slo: {consecutive_failures: 5, runbook_url: "https://wiki.example.com/runbooks"}
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "config.yaml").write_text(CONFIG)
    return str(tmp_path / "config.yaml")


def test_as_a_resource_they_are_the_same_rules(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for words in ([], ["--format", "prometheus"], ["--format", "prometheusrule"]):
        assert cli.main(["rules", "--config", config, *words]) == 0
        printed.append(capsys.readouterr().out)
    plain, named, resource = printed
    assert named == plain
    made = yaml.safe_load(resource)
    assert (made["apiVersion"], made["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert made["metadata"]["name"] == "automation-exporter"
    assert made["spec"] == yaml.safe_load(plain)
    assert len(made["spec"]["groups"]) > 3
    assert "https://wiki.example.com/runbooks/" in resource
    # Both say where they come from, and queries stay as they can be read: one line of theirs, one line of the file.
    first = plain.splitlines()[0]
    assert first.startswith("# Made by `automation-exporter rules`")
    assert resource.splitlines()[0] == first
    assert "expr: |" in resource


def test_another_form_is_refused_with_those_there_are(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        cli.main(["rules", "--config", config, "--format", "json"])
    assert exited.value.code == 2
    said = capsys.readouterr().err
    assert "prometheusrule" in said
    assert "Traceback" not in said
