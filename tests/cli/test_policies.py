"""``policies test`` and ``policies backtest``, as the page about retries shows them: its own files, its own output."""

import asyncio
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import structs

from exporter.cli import main
from exporter.clock import SystemClock
from exporter.model import DeadLetter, Error, ErrorClass, Observation, ResolvedBy, Via, Workflow
from exporter.model.ledger import Batch, FoldRules
from exporter.model.retries import Outcome, Retry, RetryState
from exporter.store import retries as script
from exporter.store.history import ROWS_MAX, history
from exporter.store.ledger import Ledger, open_engine
from exporter.store.script import Script, insert
from tests.retries.made import retry

PAGE = (Path(__file__).parents[2] / "docs/retries.md").read_text()
TRYING = PAGE[PAGE.index("## Trying policies") : PAGE.index("## Why not")]
Say = Callable[..., tuple[int, str]]
DAY, HOUR = 86400.0, 3600.0


def fence(text: str, kind: str, begins: str) -> str:
    [found] = [code for code in re.findall(rf"^```{kind}\n(.*?)^```$", text, re.M | re.S) if code.startswith(begins)]
    return str(found)


@pytest.fixture
def say(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Say:
    """Types a command beside the page's own config and cases."""
    config = (
        fence(PAGE[: PAGE.index("## Policies")], "yaml", "sources:\n  make-eu")
        + f'store: {{url: "sqlite:///{tmp_path}/x.db"}}\n'
    )
    (tmp_path / "config.yaml").write_text(config)
    (tmp_path / "cases.yaml").write_text(fence(TRYING, "yaml", "cases:"))
    monkeypatch.chdir(tmp_path)

    def said(command: str) -> tuple[int, str]:
        code = main(shlex.split(command)[1:])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return said


def command(about: str) -> str:
    [found] = [line for line in fence(TRYING, "sh", "automation-exporter").splitlines() if f" {about} " in line]
    return found


def test_the_page_s_cases_are_decided_as_it_says(say: Say) -> None:
    assert say(command("test")) == (0, "cases.yaml: 3 cases, all as expected\n")


def test_a_case_that_is_decided_otherwise_is_told_as_the_page_shows(say: Say) -> None:
    config = Path("config.yaml")
    config.write_text(config.read_text().replace('none: [{workflow.name: {glob: "*payment*"}}]', "none: []"))
    assert say(command("test")) == (1, fence(TRYING, "text", "cases.yaml: cases[1]"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("cases: []", "cases.yaml: cases: must not be empty"),
        ("cases: [{}]", "cases.yaml: cases[0].name: missing"),
        ("cases:\n\t- x", "cases.yaml: line 2: a tab: indent with spaces"),
    ],
)
def test_a_file_of_no_use_is_one_line(say: Say, text: str, line: str) -> None:
    Path("cases.yaml").write_text(text)
    code, told = say(command("test"))
    assert (code, told.splitlines()[0]) == (1, line)


def test_a_file_that_is_not_there_is_one_line(say: Say) -> None:
    Path("cases.yaml").unlink()
    assert say(command("test")) == (1, "cases.yaml: No such file or directory\n")


def test_policies_that_no_case_expects_are_named(say: Say) -> None:
    cases = Path("cases.yaml")
    cases.write_text(cases.read_text().rpartition("  - name")[0])
    assert say(command("test")) == (
        0,
        "cases.yaml: 2 cases, all as expected\ncases.yaml: no case expects never-data-errors\n",
    )


async def recorded(folder: Path) -> None:
    now = SystemClock().now()
    ledger = Ledger(await open_engine(f"sqlite:///{folder}/x.db"), {"make-eu": FoldRules()})
    await ledger.load()
    opened_at = now - 5 * DAY

    def dead(id: str, by: ResolvedBy | None = None, after: float = DAY, *, validation: bool = False) -> DeadLetter:
        error = Error(error_class=ErrorClass.NETWORK, message="connect ETIMEDOUT 10.0.0.1:443")
        if validation:
            error = Error(error_class=ErrorClass.VALIDATION)
        return DeadLetter(
            id=id, workflow_id="w1", run_id=f"r{id}", opened_at=opened_at, error=error,
            resolved_by=by, resolved_at=None if by is None else opened_at + after,
        )  # fmt: skip

    letters = [
        *(dead(f"a{n}", ResolvedBy.RETRY) for n in range(6)),
        *(dead(f"b{n}", ResolvedBy.MANUAL) for n in range(2)),
        dead("c", ResolvedBy.PLATFORM, after=60.0),
        dead("d"),
        dead("e", validation=True),
        structs.replace(dead("f"), opened_at=opened_at + HOUR, run_id="made"),  # of the run that a retry made
        structs.replace(dead("old"), opened_at=now - 20 * DAY),
    ]
    of_eu: list[Observation] = [Workflow(id="w1", at=now, name="Order sync"), *letters]
    await ledger.ingest(Batch(source="make-eu", observations=of_eu, via=Via.POLL, now=now, started_at=now - 30 * DAY))

    def done(n: int, outcome: Outcome) -> Retry:
        return retry(
            id=f"t{n}", dead_letter_id=f"a{n}", root=f"a{n}", run_id=f"ra{n}", policy="transient-network",
            outcome=outcome, state=RetryState.VERIFYING, opened_at=opened_at, failed_at=opened_at,
            claimed_at=opened_at + 900, sent_at=opened_at + 900 + n, sent_at_theirs=opened_at + 900 + n * 60,
            closed_at=opened_at + 1000, error_class="network", fingerprint="885baef1c0ffee00",
            new_runs=("made",) if n == 7 else (),
        )  # fmt: skip

    def rows() -> Script[None]:
        made = [script.row_of(done(n, Outcome.SUCCEEDED if n < 6 else Outcome.FAILED)) for n in range(8)]
        yield from insert("retries", script.COLUMNS, made, conflict="DO NOTHING")
        yield "INSERT INTO lineage VALUES ('make-eu', 'made', 'a7', 't7')", ()

    await ledger.transact("rows", rows())
    await ledger.close()


def test_recorded_dead_letters_are_gone_through_as_the_page_shows(say: Say, tmp_path: Path) -> None:
    asyncio.run(recorded(tmp_path))
    code, told = say(command("backtest"))
    when = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
    assert code == 0
    assert re.sub(when, "WHEN", told) == re.sub(when, "WHEN", fence(TRYING, "text", "11 dead letters"))
    code, told = say(f"{command('backtest')} --json")
    said = json.loads(told)
    assert (code, said["dead_letters"], said["left_out"]) == (0, 11, 1)
    assert [(one["policy"], one["owned"], one["retried"]) for one in said["policies"]] == [
        ("never-data-errors", 1, 0), ("transient-network", 10, 9), ("", 0, 0)
    ]  # fmt: skip
    assert say(f"{command('backtest')}".replace("14d", "30d"))[1].startswith("12 dead letters since ")


def test_an_empty_history_is_told_as_such(say: Say, tmp_path: Path) -> None:
    async def empty() -> None:
        await (ledger := Ledger(await open_engine(f"sqlite:///{tmp_path}/x.db"), {})).load()
        await ledger.close()

    asyncio.run(empty())
    code, told = say(command("backtest"))
    assert (code, told.splitlines()[0].startswith("0 dead letters since ")) == (0, True)


@pytest.mark.parametrize("words", ["--since soon", "--config none.yaml"])
def test_what_cannot_be_done_is_one_line(say: Say, words: str) -> None:
    code, told = say(f"automation-exporter policies backtest --config config.yaml {words}")
    assert (code, len(told.splitlines())) == (1, 1)


async def test_history_is_read_page_by_page(tmp_path: Path) -> None:
    ledger = Ledger(await open_engine(f"sqlite:///{tmp_path}/x.db"), {"s": FoldRules()})
    await ledger.load()
    letters: list[Observation] = [
        DeadLetter(id=f"d{n}", workflow_id="w", opened_at=1e9 + n // 700) for n in range(2 * ROWS_MAX + 1)
    ]
    await ledger.ingest(Batch(source="s", observations=letters, via=Via.POLL, now=1e9 + 10, started_at=1e9 - 10))
    found = await ledger.transact("history", history(1e9))
    assert len({letter.id for _, letter in found.dead_letters}) == len(found.dead_letters) == 2 * ROWS_MAX + 1
    assert len((await ledger.transact("history", history(1e9 + 1))).dead_letters) == 2 * ROWS_MAX + 1 - 700
    await ledger.close()
