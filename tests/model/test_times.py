"""Which times can be believed, in payloads of every platform."""

from typing import Any

import pytest

from exporter.model import Result, Run, RunFinished, State, Via, Workflow, times
from exporter.model.fold import Baseline, RunEntry, believed, fold_run, fold_workflow
from exporter.platform import BadItem
from exporter.platforms.cognaize import mapping as cognaize
from exporter.platforms.etlworks import mapping as etlworks
from exporter.platforms.make.mapping import dead_letters as letters
from exporter.platforms.make.mapping import runs
from exporter.platforms.qlik import mapping as qlik

NOW = 1_768_471_200.0  # 2026-01-15T10:00:00Z
LATEST = times.latest(NOW)
BASELINE = Baseline(first_sweep_at=NOW - 3600)
ABSURD = ["9999-12-31T23:59:59Z", "2026-03-15T10:00:00Z", "0001-01-01T00:00:00Z", "1969-12-31T23:59:59Z"]


def test_a_day_ahead_is_believed_and_no_more() -> None:
    assert times.is_plausible(NOW + 86_400, LATEST)
    assert not times.is_plausible(NOW + 86_401, LATEST)
    assert not times.is_plausible(float("nan"), LATEST)
    assert not times.is_plausible(-1.0, LATEST)
    assert times.latest(None) == times.latest(1e300) == times.MOMENT_MAX


@pytest.mark.parametrize("moment", ABSURD)
@pytest.mark.parametrize("field", ["timestamp", "endedAt"])
def test_make_a_run_at_no_time_that_can_be_is_a_fault_that_names_it(field: str, moment: str) -> None:
    row = {"id": "3a1f" * 8, "status": 3, "timestamp": "2026-01-15T09:00:00.000Z", field: moment}
    with pytest.raises(BadItem, match=rf"{'3a1f' * 8}.*(start|end)"):
        runs.run(row, workflow_id="5012", latest=LATEST)
    with pytest.raises(BadItem):
        runs.feed_run({**row, "timestamp": moment, "scenarioId": 5012}, latest=LATEST)


@pytest.mark.parametrize("moment", ABSURD)
def test_make_a_dead_letter_at_no_time_that_can_be_keeps_the_date_it_had(moment: str) -> None:
    row = {"id": "3a1f" * 8, "created": moment}
    with pytest.raises(BadItem, match="3a1f"):
        letters.listed(row, workflow_id="5012", at=NOW, known=None, latest=LATEST)
    good = letters.listed({**row, "created": "2026-01-15T09:00:00Z"}, workflow_id="5012", at=NOW, known=None)
    again = letters.listed(row, workflow_id="5012", at=NOW, known=good.letter, latest=LATEST)
    assert again.letter.opened_at == good.letter.opened_at


@pytest.mark.parametrize("moment", ABSURD)
@pytest.mark.parametrize("field", ["startTime", "stopTime", "createdAt"])
def test_qlik_a_run_at_no_time_that_can_be_is_a_fault_that_names_it(field: str, moment: str) -> None:
    item = {"id": "r-1", "status": "failed", "stopTime": "2026-01-15T09:59:00Z", field: moment}
    with pytest.raises(BadItem, match=r"r-1.*(start|end|queueing)"):
        qlik.claims(item, workflow_id="a-1", latest=LATEST)


def test_qlik_a_run_may_be_planned_for_next_month() -> None:
    item = {"id": "r-1", "status": "not started", "scheduledStartTime": "2026-02-15T10:00:00Z"}
    assert qlik.claims(item, workflow_id="a-1", latest=LATEST)[0].state is State.PENDING


@pytest.mark.parametrize("field", ["started", "ended"])
@pytest.mark.parametrize("moment", [99_999_999_999_000, (NOW + 90_000) * 1000, 12, 1e11])
def test_etlworks_an_execution_at_no_time_that_can_be_is_a_fault_that_names_it(field: str, moment: float) -> None:
    record = {"auditId": 7, "status": "error", "started": NOW * 1000 - 9000, "ended": NOW * 1000, field: moment}
    with pytest.raises(BadItem, match=r"execution 7.*(start|end)"):
        etlworks.execution(record, flow_id="1", latest=LATEST)


@pytest.mark.parametrize("told", [NOW * 1000, NOW])
def test_etlworks_tells_milliseconds_from_seconds(told: object) -> None:
    assert etlworks.moment(told) == NOW


# Cognaize names attempts by its times.


def process(updated: str, status: str = "COMPLETED") -> dict[str, Any]:
    step = {"id": "s1", "delegate": "ocr", "processStepStatus": status}
    return {
        "id": "p1",
        "workflowId": "w",
        "creationTimestamp": "2026-01-15T09:50:00Z",
        "updatedTimestamp": updated,
        "steps": [step],
    }


def counted(*readings: dict[str, Any]) -> int:
    """How often a process counts that is read so, one reading after the other."""
    entry: RunEntry | None = None
    finished = 0
    for reading in readings:
        try:
            run = cognaize.read(reading, latest=LATEST).run
        except BadItem:
            run = cognaize.unread(reading, latest=LATEST)
        entry, changes = fold_run(entry, run, via=Via.POLL, now=NOW, baseline=BASELINE)
        finished += sum(isinstance(change, RunFinished) for change in changes)
    return finished


GOOD = process("2026-01-15T09:55:12.250Z")


@pytest.mark.parametrize("status", ["COMPLETED", "FAILED"])
@pytest.mark.parametrize(
    "moment", [*ABSURD, "2026-01-15T09:55:60Z", "2026-01-15T09:55:60.123Z", "1768471200000", "soon"]
)
def test_cognaize_a_time_that_cannot_be_counts_no_process_twice(moment: str, status: str) -> None:
    good, bad = process("2026-01-15T09:55:12.250Z", status), process(moment, status)
    assert (
        counted(good, bad) == counted(bad, good) == counted(good, bad, good, bad) == counted(bad, bad, good, bad) == 1
    )


def test_cognaize_a_restart_after_a_time_that_could_not_be_counts() -> None:
    again = process("2026-01-15T09:58:00Z")
    assert counted(process("9999-12-31T23:59:59Z"), GOOD, again) == 2
    assert counted(process("2026-01-15T09:55:60Z"), GOOD, again) == 2


def test_cognaize_a_second_60_counts_as_the_next_and_is_said_to_be_wrong() -> None:
    reading = cognaize.read(process("2026-01-15T09:55:60Z", "FAILED"), latest=LATEST)
    assert (reading.run.ended_at, reading.run.attempt) == (NOW - 240, 1)
    assert reading.dead_letters == ()
    assert reading.doubt is not None
    assert "p1" in reading.doubt
    assert counted(process("2026-01-15T09:55:60Z"), process("2026-01-15T09:55:60Z")) == 1


def test_cognaize_a_creation_in_the_future_hides_no_processes_created_later() -> None:
    content = [{**GOOD, "creationTimestamp": "9999-12-31T23:59:59Z"}, GOOD]
    rows = cognaize.rows({"data": {"content": content, "totalElements": 2}}, number=0, size=100, latest=LATEST)
    assert rows.moments == (NOW - 600,)


# What was written while a clock was wrong.


def test_what_a_workflow_did_at_no_time_that_can_be_is_forgotten() -> None:
    entry = fold_workflow(None, Workflow(id="w", at=NOW + 60 * 86_400, name="then"), now=NOW)
    entry = believed(entry, LATEST)
    entry = fold_workflow(entry, Workflow(id="w", at=NOW, name="now"), now=NOW)
    assert entry.workflow.name == "now"
    assert believed(entry, LATEST) is entry


def test_an_end_that_cannot_be_hides_no_later_one() -> None:
    run = Run(workflow_id="w", id="r", state=State.FINISHED, result=Result.SUCCESS, ended_at=times.MOMENT_MAX)
    assert times.implausible(run, LATEST) == "end"
