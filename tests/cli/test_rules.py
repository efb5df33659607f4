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


def test_no_secret_is_needed_wherever_it_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of a source, nor of the service, nor the password in the address of the database."""
    monkeypatch.delenv("UNSET_HERE", raising=False)
    file = tmp_path / "config.yaml"
    plain = """\
sources:
  make-eu: {platform: make, url: "http://localhost", organization_id: 9, token: abcd, labels: {team: payments}}
slo: {success_within: 26h}
"""
    printed = []
    for text in (
        plain,
        plain.replace("token: abcd", 'token: "${UNSET_HERE}"'),
        plain.replace("token: abcd", "token_file: /run/secrets/nowhere"),
        plain.replace("http://localhost", "${UNSET_HERE}"),
        plain + 'store: {url: "postgresql://exporter:${UNSET_HERE}@db/exporter"}\n',
        plain + 'server: {admin_token: "${UNSET_HERE}", basic_auth: {users: {ops: "${UNSET_HERE}"}}}\n',
        plain + 'traces: {enabled: true, headers: {Authorization: "${UNSET_HERE}"}}\n',
    ):
        file.write_text(text)
        assert cli.main(["rules", "--config", str(file)]) == 0, capsys.readouterr().err
        printed.append(capsys.readouterr().out)
    assert set(printed) == {printed[0]}
    assert "AutomationWorkflowNoSuccess" in printed[0]


def test_a_variable_that_rules_are_made_of_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text('sources: {}\nslo: {status_url: "${UNSET_HERE}"}\n')
    assert cli.main(["rules", "--config", str(tmp_path / "config.yaml")]) == 1
    said = capsys.readouterr()
    assert "slo.status_url: the environment variable UNSET_HERE is not set" in said.err
    assert said.out == ""
