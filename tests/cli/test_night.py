"""Commands for the night: they work while the config is half edited, and without the service's secrets."""

from pathlib import Path
from typing import Any

import pytest

from exporter import app
from exporter.cli import ledger as commands
from exporter.cli import main
from exporter.clock import SystemClock
from exporter.config import validate
from exporter.config.outline import outline
from exporter.memory import Memory
from exporter.store.sqlite import SqliteEngine

WHOLE = """
server: {{admin_token: "${{NOT_SET}}", listen: 10870}}
store: {{url: "sqlite:///{db}"}}
sources:
  make:
    platform: make
    url: https://eu1.make.com
    token_file: /nowhere/token
    organization_id: 9
    webhook: {{scheme: header, header: X, secret: "${{NOT_SET_EITHER}}"}}
  other: {{platform: tomorrow, url: nonsense}}
traces: {{nonsense: 1, when: 2026-13-45}}
retries:
  mode: approve
  policies: [{{name: all, action: escalate}}]
slo: {{success_ratio: 0.9}}
"""


@pytest.fixture
async def database(tmp_path: Path) -> Path:
    """The database of a service that ran once."""
    path = tmp_path / "night.db"
    await (await SqliteEngine.open(path)).close()
    return path


@pytest.fixture
def config(database: Path, tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(WHOLE.format(db=database))
    return path


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(words)
    captured = capsys.readouterr()
    return code, captured.out + captured.err


ALL = [
    (["retries", "pause", "--why", "night"], "paused: all sources"),
    (["retries", "pause", "--source", "make"], "paused: make"),
    (["retries", "pause", "--source", "other"], "paused: other"),
    (["retries", "resume"], "resumed: all sources"),
    (["retries", "list"], ""),
    (["retries", "list", "--json"], "[]"),
    (["retries", "audit"], ""),
    (["retries", "audit", "--verify"], "audit: no rows"),
    (["policies", "explain"], "0 open dead letters, 1 policies, mode approve"),
    (["policies", "explain", "--all"], "0 open dead letters, 1 policies, mode approve"),
    (["policies", "explain", "--json"], '"summary": []'),
    (["rules"], "AutomationWorkflowFailing"),
]


@pytest.mark.parametrize(("words", "line"), ALL, ids=[" ".join(words) for words, _ in ALL])
def test_what_is_wrong_elsewhere_keeps_nobody_from_acting(
    config: Path, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    code, text = said(capsys, *words, "--config", str(config))
    assert (code, line in text) == (0, True), text


DEAD_LETTER_WORDS = [
    ["retries", "hold", "make/1"],
    ["retries", "quarantine", "make/1"],
    ["retries", "release", "make/1"],
    ["retries", "approve", "make/1"],
    ["retries", "show", "1"],
    ["retries", "show", "1", "--json"],
    ["policies", "explain", "make/1"],
]


@pytest.mark.parametrize("words", DEAD_LETTER_WORDS, ids=" ".join)
def test_what_is_said_of_a_dead_letter_needs_no_secret_either(
    config: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    code, text = said(capsys, *words, "--config", str(config))
    assert code == 1
    assert "1" in text
    assert "NOT_SET" not in text
    assert "dead letter" in text


def test_what_is_needed_is_named(config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    whole = config.read_text()
    for change, words, line in (
        (("sqlite:///", "${DB}"), "retries pause", "store.url: the environment variable DB is not set"),
        (("sqlite:///", "mysql://"), "retries list", "store.url: use sqlite:///FILE"),
        (
            ("mode: approve", "mode: ${MODE}"),
            "policies explain",
            "retries.mode: the environment variable MODE is",
        ),
        (("mode: approve", "mode: aprove"), "policies explain", "retries.mode: must be one of"),
        (("mode: approve", "mod: approve"), "retries approve make/1", "retries.mod: unknown key; did you mean mode?"),
        (("0.9", "90"), "rules", "slo.success_ratio: must be below 1"),
        (("sources:", "\tsources:"), "retries pause", "line 4: a tab: indent with spaces"),
    ):
        config.write_text(whole.replace(*change))
        code, text = said(capsys, *words.split(), "--config", str(config))
        assert code == 1
        assert text.startswith(f"{config}: {line}"), text


def test_a_pause_does_without_a_file_that_cannot_be_read(
    config: Path, database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text("sources: [\n")
    code, text = said(capsys, "retries", "pause", "--config", str(config))
    assert code == 1
    assert text.splitlines()[-1] == (
        f"{config}: this command does without the file: give --store URL, the database's own store.url"
    )
    code, text = said(capsys, "retries", "pause", "--store", f"sqlite:///{database}")
    assert (code, "paused: all sources" in text) == (0, True)
    code, text = said(capsys, "retries", "list", "--store", "night.db")
    assert (code, text) == (1, "config: --store.url: a path is no URL: write sqlite:///night.db\n")


async def test_a_pause_reaches_the_service_that_runs_while_its_file_is_broken(config: Path, database: Path) -> None:
    """It took the file as it was before; its policies are nobody's business here."""
    running = validate(
        {
            "server": {"listen": "127.0.0.1:0"},
            "store": {"url": f"sqlite:///{database}"},
            "sources": {"make": {"platform": "qlik", "url": "http://127.0.0.1:9", "token": "t"}},
        }
    )
    config.write_text(config.read_text().replace("mode: approve", "mode: aprove"))
    said = list[str]()

    async def here(memory: Memory, who: str) -> dict[str, Any]:
        raise AssertionError("the service holds the database")

    async with app.service(running, loops=False) as service:
        for by_rules in (False, True):
            path, body = "/api/v1/retries/pause", {"source": None, "for": "1h", "why": "night"}
            code = await commands.tell(outline(config, {}), path, body, here, say=said.append, by_rules=by_rules)
            assert code == 0
        assert service.book.overrides.is_paused("make", SystemClock().now())
    assert said[0] == "paused: all sources"


def test_a_pause_of_a_database_that_nobody_uses_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, text = said(capsys, "retries", "pause", "--store", "sqlite:///elsewhere.db")
    assert code == 1
    assert "there is no database elsewhere.db" in text
    assert "relative to the folder" in text
    assert not (tmp_path / "elsewhere.db").exists()


def test_the_last_of_two_keys_is_taken_where_it_does_not_matter(config: Path) -> None:
    config.write_text(config.read_text().replace("organization_id: 9", "organization_id: 9\n    organization_id: 10"))
    assert dict(outline(config, {}).platforms) == {"make": "make", "other": "tomorrow"}
