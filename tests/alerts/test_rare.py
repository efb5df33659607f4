"""What runs rarely, and what did not run: each incident is told in time, and what only looks like one is not.

Weeks of a workflow, as the exporter shows them, go through the shipped rules in promtool. A history is a list of runs;
the series are what the exporter makes of it. Minutes are those since the workflow was found, or since the first scrape.
"""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from exporter.alerting import rules
from exporter.config.objectives import SloConfig
from tests.alerts.test_rules import promtool, read_by
from tests.alerts.world import INFO, NEXT, STORE_UP, UP, metric, runs
from tests.servers import real

HOUR, DAY, WEEK = 60, 1440, 7 * 1440
NIGHTLY = 2 * HOUR  # the minute of a day
FAILING, SILENT, OVERDUE = (f"AutomationWorkflow{word}" for word in ("Failing", "Silent", "Overdue"))
BURNING = "AutomationWorkflowFailingOften"


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Runs that ended (minute, result) and what else there is to know, for ``until`` minutes."""

    ended: list[tuple[int, str]]
    until: int
    found: int = 0
    """Before it there is no series of the workflow"""
    unseen: tuple[int, int] = (0, 0)
    """The exporter is not scraped, from and until"""
    lost: int = 0
    """The database is lost and a new one begun, which counts from 0"""
    enabled: Callable[[int], int] | None = None
    planned: Callable[[int], float] | None = None
    before: int = 0
    """Runs the exporter had counted before all this"""

    def series(self) -> dict[str, str]:
        """Each as promtool reads it: ``1x3`` is four times 1, and ``_x3`` three times nothing."""
        counted, streak, latest = {"success": self.before, "failure": 0}, 0, dict[str, int]()
        rows: dict[str, list[str]] = {}
        moments = self._moments()
        for minute, until in pairwise([*moments, self.until + 1]):
            if self.lost and minute == self.lost:
                counted, streak, latest = {"success": 0, "failure": 0}, 0, {}
            for result in moments[minute]:
                counted[result] += 1
                streak = 0 if result == "success" else streak + 1
                latest[result] = minute * 60
            now: dict[str, float] = {runs(result): count for result, count in counted.items()}
            now[metric("automation_workflow_consecutive_failures")] = streak
            now[INFO] = 1
            for result, moment in latest.items():
                now[metric("automation_workflow_last_run_timestamp_seconds", result=result)] = moment
            if self.enabled is not None:
                now[metric("automation_workflow_enabled")] = self.enabled(minute)
            if self.planned is not None:
                now[NEXT] = self.planned(minute) * 60
            now = {name: value for name, value in now.items() if minute >= self.found} | {UP: 1}
            if self.unseen[0] <= minute < self.unseen[1]:
                now = {}
            for name in now.keys() | rows.keys():
                row = rows.setdefault(name, [f"_x{minute}"] if minute else [])
                length = until - minute
                row.append(f"{now[name]:.10g}x{length - 1}" if name in now else f"_x{length}")
        return {name: " ".join(row) for name, row in sorted(rows.items())}

    def _moments(self) -> dict[int, list[str]]:
        """The minutes in which something changes, and the results of the runs that end then."""
        whenever = range(self.until) if self.planned or self.enabled else ()
        found = {at: list[str]() for at in sorted({0, self.found, *self.unseen, self.lost, *whenever})}
        for minute, result in self.ended:
            found.setdefault(minute, []).append(result)
        return {at: found[at] for at in sorted(found) if at <= self.until}


def every(gap: int, *, at: int = 0, until: int, result: str = "success") -> list[tuple[int, str]]:
    return [(minute, result) for minute in range(at, until, gap)]


def nights(count: int, *, result: str = "success", first: int = 0) -> list[tuple[int, str]]:
    return [(night * DAY + NIGHTLY, result) for night in range(first, first + count)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """What happens to a workflow, and at which minutes an alert is on (after: nothing before) or off."""

    name: str
    history: History
    alert: str = FAILING
    on: list[int] = field(default_factory=list)
    off: list[int] = field(default_factory=list)
    each: str = "15m"


TENTH = 10 * DAY + NIGHTLY  # when the run of the tenth night ends
STOPPED = 9 * DAY + NIGHTLY  # the last run, where the tenth does not come

FIRST_FAILURES = [
    Incident(
        name="nightly-fails-for-the-first-time",
        history=History(ended=[*nights(10), (TENTH, "failure")], until=11 * DAY),
        off=[TENTH - 15],
        on=[TENTH + 15, TENTH + 12 * HOUR],
    ),
    Incident(
        name="nightly-fails-every-time",
        history=History(ended=[*nights(10), *nights(4, first=10, result="failure")], until=14 * DAY),
        off=[TENTH - 15],
        on=[TENTH + 15, TENTH + DAY + 15, TENTH + 3 * DAY + 15],
    ),
    Incident(
        name="nightly-recovers",
        history=History(ended=[*nights(10), (TENTH, "failure"), *nights(2, first=11)], until=13 * DAY),
        on=[TENTH + 15, TENTH + DAY - 15],
        off=[TENTH + DAY + 15, TENTH + 2 * DAY],
    ),
    Incident(
        name="nightly-always-well",
        history=History(ended=nights(12), until=12 * DAY),
        off=[TENTH, TENTH + 15, TENTH + DAY],
    ),
    Incident(
        name="weekly-fails-for-the-first-time",
        history=History(
            ended=[*every(WEEK, at=NIGHTLY, until=4 * WEEK), (4 * WEEK + NIGHTLY, "failure")], until=5 * WEEK + DAY
        ),
        off=[4 * WEEK + NIGHTLY - 15],
        on=[4 * WEEK + NIGHTLY + 15, 5 * WEEK + NIGHTLY - 15],
        each="15m",
    ),
    Incident(
        name="hourly-fails-for-the-first-time",
        history=History(ended=[*every(HOUR, until=8 * DAY), (8 * DAY, "failure")], until=8 * DAY + HOUR),
        off=[8 * DAY - 15],
        on=[8 * DAY + 15],
    ),
    Incident(
        name="twice-an-hour-is-too-often",
        history=History(ended=[*every(30, until=8 * DAY), (8 * DAY, "failure")], until=8 * DAY + HOUR),
        off=[8 * DAY + 15, 8 * DAY + 30],
    ),
    Incident(
        name="busy-fails-once",
        history=History(ended=[*every(1, until=2 * DAY), (2 * DAY, "failure")], until=2 * DAY + 20),
        off=[2 * DAY, 2 * DAY + 15],
    ),
    Incident(
        name="busy-from-monday-to-friday-fails-on-monday-morning",
        history=History(
            ended=[
                *[
                    (day * DAY + minute, "success")
                    for day in range(12)
                    if day % 7 < 5
                    for minute in range(8 * 60, 18 * 60)
                ],
                (14 * DAY + 8 * HOUR, "failure"),
            ],
            until=14 * DAY + 9 * HOUR,
        ),
        off=[14 * DAY + 8 * HOUR + 15, 14 * DAY + 8 * HOUR + 45],
    ),
    Incident(
        name="busy-fails-every-other-time",
        alert=BURNING,
        history=History(
            ended=[
                *every(1, until=DAY),
                *((m, "failure" if m % 2 else "success") for m in range(DAY, DAY + 2 * HOUR)),
            ],
            until=DAY + 2 * HOUR,
        ),
        off=[DAY],
        on=[DAY + 25],
        each="1m",
    ),
    Incident(
        name="new-install-and-busy",
        history=History(ended=[*every(1, until=10), (10, "failure"), *every(1, at=30, until=3 * HOUR)], until=3 * HOUR),
        off=[15, 25, 60, 2 * HOUR],
        each="1m",
    ),
    Incident(
        name="new-install-and-rare-is-told-once-an-hour-is-known",
        history=History(ended=[(10, "failure")], until=4 * HOUR),
        off=[30, 55],
        on=[75, 4 * HOUR],
        each="1m",
    ),
    Incident(
        name="new-prometheus-old-exporter-and-busy",
        history=History(ended=[*every(1, until=70), (70, "failure")], until=2 * HOUR, before=50_000),
        off=[75, 90],
        each="1m",
    ),
    Incident(
        name="found-in-the-evening-and-fails-at-night",
        history=History(ended=[(DAY + NIGHTLY, "failure")], found=20 * HOUR, until=DAY + 4 * HOUR),
        off=[DAY + NIGHTLY - 1, DAY + NIGHTLY + 1],
        on=[DAY + NIGHTLY + 3],
        each="1m",
    ),
    Incident(
        name="the-exporter-restarts-while-it-fails",
        history=History(
            ended=[*nights(10), (TENTH, "failure")], until=TENTH + 2 * HOUR, unseen=(TENTH - 3, TENTH + 20)
        ),
        on=[TENTH + 60],
    ),
    Incident(
        name="it-fails-in-a-gap-of-scraping",
        history=History(
            ended=[*nights(10), (TENTH, "failure")],
            until=TENTH + 8 * HOUR,
            unseen=(TENTH - 2 * HOUR, TENTH + 3 * HOUR),
        ),
        on=[TENTH + 3 * HOUR + 15],
    ),
    Incident(
        name="busy-and-nobody-scraped-a-week-ago",
        history=History(
            ended=[*every(2, until=8 * DAY), (8 * DAY, "failure")],
            until=8 * DAY + 20,
            unseen=(DAY - 2 * HOUR, DAY + 2 * HOUR),
        ),
        off=[8 * DAY, 8 * DAY + 15],
    ),
    Incident(
        name="busy-and-the-database-is-lost",
        history=History(
            ended=[
                *every(1, until=2 * DAY),
                (2 * DAY + 10, "failure"),
                *every(1, at=2 * DAY + 60, until=2 * DAY + 200),
            ],
            until=2 * DAY + 180,
            lost=2 * DAY,
        ),
        off=[2 * DAY + 15, 2 * DAY + 45, 2 * DAY + 165],
    ),
    Incident(
        name="nightly-and-the-database-is-lost",
        history=History(ended=[*nights(10), (TENTH, "failure")], until=11 * DAY, lost=9 * DAY + 12 * HOUR),
        on=[TENTH + 15],
    ),
    Incident(
        name="switched-off-after-it-failed",
        history=History(
            ended=[*nights(10), (TENTH, "failure")], until=11 * DAY, enabled=lambda minute: minute < TENTH + HOUR
        ),
        on=[TENTH + 15],
        off=[TENTH + HOUR + 15],
    ),
    Incident(
        name="run-by-hand-once-and-failed",
        history=History(ended=[(2 * DAY, "failure")], until=11 * DAY),
        on=[2 * DAY + 15, 9 * DAY],
        off=[10 * DAY + 45],
    ),
]

TWO_DAYS_AND_A_FIFTH = 2 * DAY + DAY // 5
WORKDAYS = [(day * DAY + NIGHTLY, "success") for day in range(26) if day % 7 < 5]

NOT_RUNNING = [
    Incident(
        name="nightly-does-not-run-any-more",
        history=History(ended=nights(10), until=13 * DAY),
        off=[STOPPED + DAY + HOUR, STOPPED + 2 * DAY, STOPPED + TWO_DAYS_AND_A_FIFTH + 12],
        on=[STOPPED + TWO_DAYS_AND_A_FIFTH + 30],
    ),
    Incident(
        name="nightly-runs-again",
        history=History(ended=[*nights(10), *nights(2, first=13)], until=15 * DAY),
        on=[STOPPED + TWO_DAYS_AND_A_FIFTH + 30, 13 * DAY + NIGHTLY - 15],
        off=[13 * DAY + NIGHTLY + 15],
    ),
    Incident(
        name="nightly-skips-one-night",
        history=History(ended=[*nights(10), *nights(3, first=11)], until=14 * DAY),
        off=[11 * DAY + NIGHTLY, 12 * DAY, 14 * DAY],
        each="1h",
    ),
    Incident(
        name="weekly-does-not-run-any-more",
        history=History(ended=every(WEEK, at=NIGHTLY, until=4 * WEEK), until=3 * WEEK + 17 * DAY),
        off=[3 * WEEK + NIGHTLY + 15 * DAY],
        on=[3 * WEEK + NIGHTLY + 15 * DAY + 12 * HOUR],
        each="1h",
    ),
    Incident(
        name="from-monday-to-friday",
        history=History(ended=WORKDAYS, until=29 * DAY),
        off=[at for week in (0, 7, 14, 21) for at in ((week + 6) * DAY + 8 * HOUR, (week + 7) * DAY + HOUR)],
        each="1h",
    ),
    Incident(
        name="from-monday-to-friday-seen-first-on-a-thursday",
        history=History(ended=[(m - 3 * DAY, r) for m, r in WORKDAYS if m >= 3 * DAY], until=24 * DAY),
        off=[at for week in (0, 7, 14) for at in ((week + 3) * DAY + 8 * HOUR, (week + 4) * DAY + HOUR)],
        each="1h",
    ),
    Incident(
        name="whenever-a-customer-orders",
        history=History(
            ended=[(hour * HOUR, "success") for hour in (1, 20, 22, 60, 95, 97, 150, 210, 220)], until=20 * DAY
        ),
        off=[13 * DAY, 16 * DAY, 20 * DAY],
        each="1h",
    ),
    Incident(
        name="known-for-four-nights-waits-for-a-week-of-history",
        history=History(ended=nights(4), until=9 * DAY),
        off=[6 * DAY, 7 * DAY],
        on=[7 * DAY + 15 * HOUR],
    ),
    Incident(
        name="never-ran-and-has-no-plan",
        history=History(ended=[], until=12 * DAY),
        off=[5 * DAY, 12 * DAY],
        each="1h",
    ),
    Incident(
        name="nobody-scraped-for-three-days",
        history=History(ended=nights(16), until=16 * DAY, unseen=(10 * DAY, 13 * DAY)),
        off=[13 * DAY + HOUR, 13 * DAY + 2 * HOUR, 14 * DAY, 16 * DAY],
        each="1h",
    ),
    Incident(
        name="the-database-is-lost",
        history=History(ended=nights(10), until=13 * DAY, lost=10 * DAY),
        off=[STOPPED + 56 * HOUR, 13 * DAY],
        each="1h",
    ),
    Incident(
        name="the-plan-says-next-week",
        history=History(ended=nights(10), until=14 * DAY, planned=lambda minute: max(minute, 16 * DAY)),
        off=[STOPPED + 56 * HOUR, 14 * DAY],
        each="1h",
    ),
    Incident(
        name="a-plan-that-moves-on-without-a-run",
        history=History(ended=nights(10), until=13 * DAY, planned=lambda minute: (minute // DAY + 1) * DAY + NIGHTLY),
        on=[STOPPED + TWO_DAYS_AND_A_FIFTH + 30],
    ),
    Incident(
        name="switched-off",
        history=History(ended=nights(10), until=13 * DAY, enabled=lambda minute: minute < 10 * DAY),
        off=[STOPPED + 56 * HOUR, 13 * DAY],
        each="1h",
    ),
]

PLANS = [
    Incident(
        name="planned-and-never-ran",
        alert=OVERDUE,
        history=History(ended=[], until=6 * HOUR, planned=lambda minute: NIGHTLY),
        off=[NIGHTLY + 9],
        on=[NIGHTLY + 15],
        each="1m",
    ),
    Incident(
        name="planned-and-ran-a-little-late",
        alert=OVERDUE,
        history=History(
            ended=[(NIGHTLY + 9, "success")],
            until=6 * HOUR,
            planned=lambda minute: NIGHTLY if minute < NIGHTLY + 9 else DAY + NIGHTLY,
        ),
        off=[NIGHTLY + 9, NIGHTLY + 15],
        each="1m",
    ),
]

INCIDENTS = [
    *FIRST_FAILURES,
    *(
        Incident(name=one.name, history=one.history, alert=SILENT, on=one.on, off=one.off, each=one.each)
        for one in NOT_RUNNING
    ),
    *PLANS,
]


def asked(incident: Incident, at: int, *, on: bool) -> dict[str, object]:
    """Whether the alert is on; the source is named in what promtool says of a mistake."""
    assert at % {"1m": 1, "5m": 5, "15m": 15, "1h": 60}[incident.each] < 5, "nothing is known then, whatever is so"
    matchers = f'alertname="{incident.alert}", alertstate="firing", source="{incident.name}"'
    samples = [{"labels": "{}", "value": 1}] if on else []
    return {"expr": f"count(ALERTS{{{matchers}}})", "eval_time": f"{at}m", "exp_samples": samples}


def of_incident(incident: Incident) -> list[dict[str, str]]:
    """Each has a source of its own: they are looked at all at once, which promtool does in a fraction of the time."""
    found = incident.history.series().items()
    return [{"series": n.replace('"make-eu"', f'"{incident.name}"'), "values": v} for n, v in found]


def told(incidents: list[Incident], folder: Path, slo: SloConfig | None = None) -> subprocess.CompletedProcess[str]:
    recording, alerts = read_by(incidents[0].alert, slo)
    (folder / "rules.yaml").write_text(rules.as_yaml([*recording, *alerts]))
    test = {
        "interval": "1m",
        "input_series": [
            {"series": STORE_UP, "values": f"1x{max(one.history.until for one in incidents)}"},
            *(series for incident in incidents for series in of_incident(incident)),
        ],
        "promql_expr_test": [
            asked(incident, at, on=on)
            for incident in incidents
            for on, moments in ((True, incident.on), (False, incident.off))
            for at in moments
        ],
    }
    each = incidents[0].each
    # What is recorded comes before what reads it, as it mostly does in a Prometheus; promtool would draw the order.
    order = [group["name"] for group in (*recording, *alerts)]
    given = {"rule_files": ["rules.yaml"], "evaluation_interval": each, "group_eval_order": order, "tests": [test]}
    text = yaml.safe_dump(given)
    (folder / "test.yaml").write_text(text)
    return promtool("test", "rules", folder / "test.yaml")


TOGETHER = sorted({(one.alert, one.each) for one in INCIDENTS})


@real("promtool")
@pytest.mark.parametrize(("alert", "each"), TOGETHER)
def test_each_incident_is_told_in_time_and_nothing_else(alert: str, each: str, tmp_path: Path) -> None:
    done = told([one for one in INCIDENTS if (one.alert, one.each) == (alert, each)], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
