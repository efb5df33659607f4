"""A runbook for each alert, whose queries a person can paste at night; and the page about alerts says what is so."""

import os
import re
import subprocess
import sys
from pathlib import Path

import promql_parser
import pytest
import yaml

from exporter.alerting import rules
from exporter.alerting.alerts import ALERTS
from exporter.cli.parser import parser
from exporter.config.objectives import SloConfig
from tests.alerts.test_rules import NAMES, ROOT, every_rule, known_metrics, selectors
from tests.e2e.deployment import deployment
from tests.e2e.test_truth import ROOMY
from tests.servers import PATIENCE_SECONDS, eventually, prometheus, real
from tests.test_docs import DOCS, fences, rows

PAGES = sorted((DOCS / "runbooks").glob("*.md"))
#: prometheus-client's.
ELSEWHERE = {"process_start_time_seconds"}


def queries() -> list[tuple[str, str]]:
    return [(page.stem, query) for page in PAGES for query in fences(page, "promql")]


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    assert [page.stem for page in PAGES] == sorted(NAMES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_runbook_says_what_it_means_where_to_look_what_to_do_and_when_not_to(page: Path) -> None:
    text = page.read_text()
    assert text.startswith(f"# {page.stem}\n\n")
    assert re.findall(r"^## (.*)$", text, re.M) == ["Look", "Do", "Ignore it when"]
    assert re.search(r"^1\. ", text, re.M)
    assert fences(page, "promql")
    assert len(text) < 3000, "short enough for three in the morning"
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize(("page", "query"), queries())
def test_queries_of_runbooks_read_metrics_there_are(page: str, query: str) -> None:
    known = known_metrics()
    found = selectors(query)
    assert found
    for selector in found:
        name = selector.name or ""
        name = name if name in known else re.sub(r"_bucket$", "", name)
        assert name in known.keys() | ELSEWHERE
        if name not in ELSEWHERE:
            assert {matcher.name for matcher in selector.matchers.matchers} <= known[name] | {"job", "le"}


def test_commands_of_runbooks_exist() -> None:
    commands = [words for page in PAGES for words in re.findall(r"`automation-exporter ([^`]+)`", page.read_text())]
    assert len(commands) > 3
    for words in commands:
        parser().parse_args(words.split())


def test_the_grammar_notices_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"."):
        promql_parser.parse("sum by (job (up)")


@real("prometheus")
async def test_a_real_prometheus_runs_every_rule_and_every_query_of_a_runbook(tmp_path: Path) -> None:
    """Against everything the demo's world exposes: what matches two series where it must be one would show here."""
    slo = SloConfig(job="test")
    file = tmp_path / "rules.yaml"
    groups = rules.recording_rules(slo) + rules.alert_rules(slo)
    file.write_text(rules.as_yaml([group | {"interval": "1s"} for group in groups]))
    async with deployment(tmp_path, options=ROOMY) as made:
        await made.sweep()
        await made.live(120, step=30, deliver=True)
        async with prometheus(tmp_path, [made.url.removeprefix("http://")], rules=[file]) as server:
            assert await eventually(lambda: server.query("automation_workflow_info"))

            async def evaluated() -> bool:
                answer = await server._get("/api/v1/rules", {})
                health = {
                    rule["name"]: (rule["health"], rule.get("lastError"))
                    for g in answer["groups"]
                    for rule in g["rules"]
                }
                assert not [one for one in health.items() if one[1][0] == "err"]
                return len(health) == len(every_rule(slo)) and {state for state, _ in health.values()} == {"ok"}

            assert await eventually(evaluated)
            for page, query in queries():
                answer = await server._get("/api/v1/query", {"query": query})
                assert answer["resultType"] == "vector", (page, query)


# The page about alerts


def test_the_page_lists_every_alert_and_no_other() -> None:
    says = {row[0]: row[1:3] for row in rows(DOCS / "alerts.md", r"\[`?Automation\w+`?\]\(.*\)")}
    assert says == {f"[{a.name}](runbooks/{a.name}.md)": [a.severity, a.wait] for a in ALERTS}


@real("promtool")
def test_what_the_page_tells_to_type_checks_the_rules(tmp_path: Path) -> None:
    """The page's promtool and amtool commands, as they stand, in the repository."""
    [code] = [code for code in fences(DOCS / "alerts.md", "sh") if code.startswith("promtool")]
    for line in code.splitlines():
        command = line.partition("#")[0].strip()
        if command.startswith("amtool"):
            continue  # its own mark: tests/alerts/test_alertmanager.py
        done = subprocess.run(
            ["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@real("promtool")
def test_the_page_s_objectives_become_rules_by_the_page_s_command(tmp_path: Path) -> None:
    [config] = [code for code in fences(DOCS / "alerts.md", "yaml") if "slo:" in code]
    (tmp_path / "config.yaml").write_text(config)
    [command] = [code for code in fences(DOCS / "alerts.md", "sh") if code.startswith("automation-exporter")]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"PATH": path, "MAKE_TOKEN": "0123456789abcdef"}
    subprocess.run(["sh", "-ec", command], cwd=tmp_path, env=environment, timeout=PATIENCE_SECONDS, check=True)
    checked = ["promtool", "check", "rules", "--lint-fatal", "automation-exporter-rules.yaml"]
    done = subprocess.run(checked, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_of_a_prometheus_config_names_files_there_are() -> None:
    [config] = [yaml.safe_load(code) for code in fences(DOCS / "alerts.md", "yaml") if "rule_files" in code]
    for path in config["rule_files"]:
        assert (ROOT / "alerts" / Path(path).name).exists()
