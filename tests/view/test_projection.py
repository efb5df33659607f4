"""The metrics follow the ledger: born at 0, gone with their workflow, the same after a restart, bounded in number."""

import dataclasses
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, Literal

import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from exporter.model import (
    Blocked,
    DeadLetter,
    Error,
    ErrorClass,
    Listing,
    Observation,
    Queue,
    ResolvedBy,
    Result,
    Run,
    State,
    Step,
    Unit,
    Usage,
    Via,
    Workflow,
)
from exporter.model.ledger import Batch, Committed, FoldRules, Key
from exporter.model.policy import Budget, SourceRules, Storm
from exporter.model.retries import Action, Mode, RetryState
from exporter.platform import Platform, Stream, StreamName
from exporter.platform.section import SourceConfig
from exporter.platforms import PLATFORMS
from exporter.store.ledger import Ledger, open_engine
from exporter.view.costs import counted, series_of, series_of_retries
from exporter.view.known import World
from exporter.view.projection import OTHER, Projection
from exporter.wire.budget import Lane
from tests.retries.made import policy, retry

NOW = 1_700_000_000.0
STAND_IN = Platform(
    name="stand-in",
    title="Stand-in",
    config=SourceConfig,
    streams=(Stream(name=StreamName.RUNS, lane=Lane.SWEEPS),),
    connect=lambda config, api: None,  # type: ignore[arg-type,return-value]
    auth=lambda config: None,
    error_detail=lambda body: None,
    requests_per_minute=60,
    results=(Result.SUCCESS, Result.FAILURE),
    error_classes=(ErrorClass.NETWORK, ErrorClass.UNKNOWN),
    resolved_by=(ResolvedBy.RETRY, ResolvedBy.MANUAL),
    measures=frozenset({"operations"}),
)

Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


class Service:
    """A ledger, its world and its projection, wired as the application does."""

    def __init__(self, path: Path, series_max: int = 10_000, platform: Platform = STAND_IN) -> None:
        self.path, self.series_max, self.platform = path, series_max, platform
        self.folded: list[Key] = []
        self.excluded: set[str] = set()

    async def open(self) -> None:
        self.ledger = Ledger(await open_engine(f"sqlite:///{self.path}"), {"s": FoldRules()}, on_commit=self.follow)
        self.world = World(["s"])
        self.projection = Projection(
            {"s": self.platform},
            series_max=self.series_max,
            on_folded=self.folded.append,
            selects=lambda source, known: known.id not in self.excluded,
        )
        loaded = await self.ledger.load()
        self.world.load(loaded)
        self.projection.load(self.world, loaded.tallies)

    def follow(self, committed: Committed) -> None:
        self.projection.follow(committed, self.world.apply(committed), self.world)

    async def tell(self, *observations: Observation, via: Via = Via.POLL, now: float = NOW) -> None:
        batch = Batch(source="s", observations=observations, via=via, now=now, started_at=NOW - 1000)
        await self.ledger.ingest(batch)

    def samples(self) -> Samples:
        text = b"".join(self.projection.registry.render(openmetrics=False)).decode()
        out: Samples = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = {k: v for k, v in sample.labels.items() if k not in ("platform", "source")}
                out.setdefault(sample.name, {})[tuple(sorted(labels.items()))] = sample.value
        return out

    def value(self, name: str, **labels: str) -> float | None:
        return self.samples().get(name, {}).get(tuple(sorted(labels.items())))


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    service = Service(tmp_path / "t.db")
    await service.open()
    yield service
    await service.ledger.close()


def workflow(workflow_id: str = "w", **more: object) -> Workflow:
    return Workflow(id=workflow_id, at=NOW, name="Orders", **more)  # type: ignore[arg-type]


def failed(run_id: str, at: float, workflow_id: str = "w") -> Run:
    error = Error(error_class=ErrorClass.NETWORK)
    return Run(
        workflow_id=workflow_id,
        id=run_id,
        state=State.FINISHED,
        result=Result.FAILURE,
        started_at=at - 20,
        ended_at=at,
        error=error,
        operations=2.0,
    )


async def test_counters_of_a_workflow_exist_at_zero_from_its_discovery(service: Service) -> None:
    await service.tell(workflow())
    for name, label, values in (
        ("automation_runs_total", "result", ("success", "failure")),
        ("automation_run_errors_total", "error_class", ("network", "unknown")),
        ("automation_dead_letters_opened_total", "error_class", ("network", "unknown")),
        ("automation_dead_letters_resolved_total", "by", ("retry", "manual")),
    ):
        assert {value: service.value(name, workflow_id="w", **{label: value}) for value in values} == dict.fromkeys(
            values, 0.0
        )
    assert service.value("automation_run_operations_total", workflow_id="w") == 0.0
    assert "automation_run_transfer_bytes_total" not in service.samples()


@pytest.mark.parametrize("platform", [STAND_IN, *PLATFORMS.values()], ids=lambda platform: platform.name)
async def test_what_a_workflow_is_said_to_cost_is_what_it_costs(platform: Platform, tmp_path: Path) -> None:
    service, says = Service(tmp_path / "t.db", platform=platform), series_of(platform)
    await service.open()

    def lines() -> int:
        return b"".join(service.projection.registry.render(openmetrics=False)).count(b'workflow_id="w"')

    await service.tell(workflow(enabled=True))
    assert lines() == says.workflow
    for number, result in enumerate(platform.results[:3], start=1):
        run = Run(
            workflow_id="w", id=result, state=State.FINISHED, result=result, started_at=NOW - 20, ended_at=NOW - number
        )
        await service.tell(run)
        assert lines() == says.with_results(number)
    await service.ledger.close()


@pytest.mark.parametrize(
    ("platform", "events", "error_classes", "born"),
    [
        ("make", True, "all", set(ErrorClass)),
        ("make", False, "all", set(ErrorClass)),  # its API tells them
        ("make", True, "seen", set()),
        ("cognaize", True, "all", set(ErrorClass)),
        ("cognaize", False, "all", {ErrorClass.UNKNOWN}),  # its API tells no cause
        ("cognaize", False, "seen", set()),
    ],
)
async def test_a_workflow_has_counters_of_the_error_classes_its_source_can_tell(
    tmp_path: Path, platform: str, events: bool, error_classes: Literal["all", "seen"], born: set[ErrorClass]
) -> None:
    narrowed = counted(PLATFORMS[platform], events=events, error_classes=error_classes)
    service = Service(tmp_path / "t.db", platform=narrowed)
    await service.open()
    await service.tell(workflow())
    for name in ("automation_run_errors_total", "automation_dead_letters_opened_total"):
        shown = {dict(labels)["error_class"] for labels in service.samples().get(name, {})}
        assert shown == born, name
    await service.tell(failed("r", NOW - 5))
    after = service.samples()["automation_run_errors_total"]
    assert {dict(labels)["error_class"] for labels in after} == born | {ErrorClass.NETWORK}
    assert sum(after.values()) == 1.0, "what did not exist from the beginning appears with its first error"
    await service.ledger.close()


async def test_what_is_unknown_is_absent_and_what_is_known_is_shown(service: Service) -> None:
    await service.tell(workflow())
    absent = ("enabled", "blocked", "next_run_timestamp_seconds", "last_run_timestamp_seconds")
    assert not {f"automation_workflow_{name}" for name in absent} & service.samples().keys()
    more = {"enabled": True, "blocked": Blocked.PAUSED, "next_run_at": NOW + 60}
    known = Workflow(id="w", at=NOW + 1, name="Orders", workspace="77", trigger="schedule", **more)  # type: ignore[arg-type]
    await service.tell(known, failed("r", NOW - 5), Queue(workflow_id="w", at=NOW, items=3, limit=10))
    assert service.value("automation_workflow_enabled", workflow_id="w") == 1.0
    assert service.value("automation_workflow_blocked", workflow_id="w", reason="paused") == 1.0
    assert service.value("automation_workflow_next_run_timestamp_seconds", workflow_id="w") == NOW + 60
    assert service.value("automation_workflow_last_run_timestamp_seconds", workflow_id="w", result="failure") == NOW - 5
    assert service.value("automation_workflow_consecutive_failures", workflow_id="w") == 1.0
    assert service.value("automation_input_queue_items", workflow_id="w") == 3.0
    assert service.value("automation_input_queue_limit_items", workflow_id="w") == 10.0
    info = {"workflow_id": "w", "workflow": "Orders", "workspace": "77", "trigger": "schedule"}
    assert service.value("automation_workflow_info", **info) == 1.0
    await service.tell(Workflow(id="w", at=NOW + 2, name="Orders 2", enabled=True))
    assert service.value("automation_workflow_info", **info) is None
    assert "automation_workflow_blocked" not in service.samples()


def run_counters(service: Service) -> dict[str, float]:
    return {
        dict(labels)["result"]: value for labels, value in service.samples().get("automation_runs_total", {}).items()
    }


async def test_what_nobody_can_count_has_no_counter_and_no_streak_unless_somebody_counted_it(service: Service) -> None:
    await service.tell(workflow(uncounted=(Result.SUCCESS,)), failed("r", NOW - 5))
    assert run_counters(service) == {"failure": 1.0}
    assert "automation_workflow_consecutive_failures" not in service.samples()
    success = Run(workflow_id="w", id="s", state=State.FINISHED, result=Result.SUCCESS, ended_at=NOW - 3)
    await service.tell(success, via=Via.WEBHOOK)  # a last node reports it
    assert run_counters(service) == {"failure": 1.0, "success": 1.0}
    assert service.value("automation_workflow_consecutive_failures", workflow_id="w") == 0.0


@pytest.mark.parametrize("restart", [False, True])
async def test_counters_follow_what_can_be_counted(service: Service, restart: bool) -> None:
    both = (Result.SUCCESS, Result.FAILURE)
    lines: list[int] = []
    for at, uncounted, expected in (
        (1, (), {"success": 0.0, "failure": 0.0}),
        (2, (Result.SUCCESS,), {"failure": 0.0}),
        (3, both, {}),
        (4, (), {"success": 0.0, "failure": 0.0}),
        (5, both, {}),
    ):
        await service.tell(Workflow(id="w", at=NOW + at, name="Orders", uncounted=uncounted))
        if restart:
            await service.ledger.close()
            await service.open()
        assert run_counters(service) == expected
        assert ("automation_run_errors_total" in service.samples()) == (uncounted != both)
        lines.append(service.projection.registry.series())
    assert lines[0] == lines[3]
    assert lines[2] == lines[4]


async def test_runs_and_dead_letters_show_while_they_are_open(service: Service) -> None:
    running = Run(workflow_id="w", id="a", state=State.RUNNING, started_at=NOW - 30)
    waiting = Run(workflow_id="w", id="b", queued_at=NOW - 9)
    letter = DeadLetter(id="d", workflow_id="w", opened_at=NOW - 40, error=Error(error_class=ErrorClass.NETWORK))
    await service.tell(running, waiting, letter)
    assert service.value("automation_runs_active", workflow_id="w", state="running") == 1.0
    assert service.value("automation_runs_active", workflow_id="w", state="pending") == 1.0
    oldest = "automation_run_oldest_active_timestamp_seconds"
    assert service.value(oldest, workflow_id="w", state="running") == NOW - 30
    assert service.value(oldest, workflow_id="w", state="pending") == NOW - 9
    assert service.value("automation_dead_letters", workflow_id="w", error_class="network") == 1.0
    assert service.value("automation_dead_letter_oldest_timestamp_seconds", workflow_id="w") == NOW - 40
    closed = DeadLetter(id="d", workflow_id="w", opened_at=NOW - 40, resolved_at=NOW - 1, resolved_by=ResolvedBy.MANUAL)
    await service.tell(failed("a", NOW), failed("b", NOW), closed)
    assert service.value("automation_runs_active", workflow_id="w", state="running") == 0.0
    assert service.value(oldest, workflow_id="w", state="running") is None
    assert service.value("automation_dead_letters", workflow_id="w", error_class="network") is None
    assert service.value("automation_dead_letters", workflow_id="w", error_class="unknown") == 0.0
    assert service.value("automation_dead_letters_resolved_total", workflow_id="w", by="manual") == 1.0
    assert service.value("automation_dead_letter_resolution_seconds_sum", by="manual") == 39.0


async def test_a_restart_shows_the_same_numbers(service: Service) -> None:
    await service.tell(workflow(enabled=True), failed("r", NOW - 5), Run(workflow_id="w", id="a", state=State.RUNNING))
    before = service.samples()
    await service.ledger.close()
    await service.open()
    assert service.samples() == before
    assert before["automation_run_duration_seconds_count"] == {(("result", "failure"), ("workflow_id", "w")): 1.0}
    assert service.value("automation_run_duration_seconds_bucket", workflow_id="w", result="failure", le="30.0") == 1.0
    assert service.value("automation_run_duration_seconds_bucket", workflow_id="w", result="failure", le="15.0") == 0.0


async def test_a_gone_workflow_takes_its_series_along_and_brings_its_totals_back(service: Service) -> None:
    await service.tell(workflow(), failed("r", NOW - 5))
    for at in (NOW + 60, NOW + 5000):
        await service.tell(Listing(at=at, workflow_ids=frozenset()))
    assert not any(("workflow_id", "w") in labels for series in service.samples().values() for labels in series)
    await service.tell(failed("late", NOW - 4))
    assert "automation_workflow_info" not in service.samples()
    await service.tell(Workflow(id="w", at=NOW + 6000, name="Orders"))
    assert service.value("automation_runs_total", workflow_id="w", result="failure") == 2.0


async def test_beyond_the_limit_new_workflows_are_shown_together_with_their_results(tmp_path: Path) -> None:
    service = Service(tmp_path / "t.db", series_max=60)
    await service.open()
    for number in range(30):
        name = f"w{number:02}"
        await service.tell(workflow(name), failed(f"r{number}", NOW - 5, name))
    samples = service.samples()["automation_runs_total"]
    shown = {dict(labels)["workflow_id"] for labels in samples}
    assert OTHER in shown
    assert 2 <= len(shown) < 10
    assert sum(v for labels, v in samples.items() if ("result", "failure") in labels) == 30.0
    assert len(service.folded) == 30 - (len(shown) - 1)
    lines = service.projection.registry.series()
    for number in range(30, 200):
        await service.tell(workflow(f"w{number:02}"), failed(f"r{number}", NOW - 5, f"w{number:02}"))
    assert service.projection.registry.series() <= lines
    await service.ledger.mark_folded(service.folded)
    before = service.samples()
    await service.ledger.close()
    await service.open()
    assert service.samples()["automation_runs_total"] == before["automation_runs_total"]
    await service.ledger.close()


async def test_usage_shows_what_the_platform_says_and_nothing_else(service: Service) -> None:
    said = Usage(kind="operations", unit=Unit.OPERATIONS, at=NOW, used=5.0, limit=100.0)
    await service.tell(said, Usage(kind="credits", unit=Unit.CREDITS, at=NOW, used=1.0))
    operations = (("kind", "operations"),)
    shown = service.samples()
    assert shown["automation_usage_operations"] == {operations: 5.0}
    assert shown["automation_usage_credits"] == {(("kind", "credits"),): 1.0}
    assert shown["automation_usage_limit_operations"] == {operations: 100.0}
    assert "automation_usage_limit_credits" not in shown
    await service.tell(Usage(kind="operations", unit=Unit.OPERATIONS, at=NOW + 1, used=6.0))
    assert service.samples()["automation_usage_operations"] == {operations: 6.0}
    assert "automation_usage_limit_operations" not in service.samples(), "a limit that is no longer said is gone"


@pytest.mark.parametrize(
    ("kind", "unit", "before"),
    [
        ("operations", Unit.OPERATIONS, "operations"),
        ("credits", Unit.CREDITS, "credits"),
        ("transfer", Unit.BYTES, "transfer_bytes"),
        ("runs", Unit.RUNS, "runs"),
        ("duration", Unit.SECONDS, "duration_seconds"),
        ("bandwidth_in", Unit.BYTES, "bandwidth_in_bytes"),
        ("bandwidth_out", Unit.BYTES, "bandwidth_out_bytes"),
        ("concurrent_runs_per_automation", Unit.RUNS, "concurrent_runs_per_automation"),
    ],
)
async def test_a_family_of_usage_has_one_unit_and_the_mixed_one_still_says_what_it_said(
    service: Service, kind: str, unit: Unit, before: str
) -> None:
    await service.tell(Usage(kind=kind, unit=unit, at=NOW, used=5.0, limit=7.0))
    shown = {name: samples for name, samples in service.samples().items() if name.startswith("automation_usage")}
    assert shown == {
        f"automation_usage_{unit}": {(("kind", kind),): 5.0},
        f"automation_usage_limit_{unit}": {(("kind", kind),): 7.0},
        "automation_usage": {(("kind", before),): 5.0},
        "automation_usage_limit": {(("kind", before),): 7.0},
    }


async def test_an_open_run_told_of_under_two_workflows_is_shown_under_one_and_then_under_none(
    service: Service,
) -> None:
    active = "automation_runs_active"
    await service.tell(workflow("a"), workflow("b"), Run(workflow_id="a", id="r", state=State.RUNNING))
    assert service.value(active, workflow_id="a", state="running") == 1.0
    await service.tell(Run(workflow_id="b", id="r", state=State.RUNNING))
    assert [service.value(active, workflow_id=w, state="running") for w in "ab"] == [0.0, 1.0]
    await service.tell(failed("r", NOW, "a"))
    assert [service.value(active, workflow_id=w, state="running") for w in "ab"] == [0.0, 0.0]


def test_a_state_that_retries_have_left_is_shown_as_0() -> None:
    projection = Projection({"s": STAND_IN}, series_max=10_000)

    def shown(name: str) -> dict[tuple[str, ...], float]:
        text = b"".join(projection.registry.render(openmetrics=False)).decode()
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return {tuple(sample.labels.values()): sample.value for sample in samples if sample.name == name}

    doubtful = retry(source="s", state=RetryState.IN_DOUBT)
    for retries in ([doubtful], [], [doubtful, doubtful], []):
        projection.show_retry_mode("s", mode=Mode.APPROVE, paused=bool(retries), lowered=bool(retries))
        projection.show_open_retries("s", retries)
        assert shown("automation_retries_open") == {("stand-in", "s", "p", "in_doubt"): len(retries)}
        assert shown("automation_retry_mode") == {("stand-in", "s", "approve"): 1.0}
        assert shown("automation_retry_paused") == {("stand-in", "s"): float(bool(retries))}
        assert shown("automation_retry_lowered") == {("stand-in", "s"): float(bool(retries))}


@pytest.mark.parametrize("rails", [{}, {"budget": Budget()}, {"budget": Budget(), "storm": Storm()}])
async def test_what_retrying_is_said_to_cost_is_what_it_costs(service: Service, rails: dict[str, Any]) -> None:
    others = [policy(name=action, action=action) for action in Action if action is not Action.RETRY]
    policies, rules = [policy(), policy(name="q"), *others], SourceRules(**rails)
    await service.tell()  # the first sweep
    assert service.value("automation_dead_letter_groups") == 0.0
    before = service.projection.registry.series() - 1
    service.projection.open_retries("s", policies)
    service.projection.show_retry_mode("s", mode=Mode.APPROVE, paused=False, lowered=False)
    tokens = None if rules.budget is None else 1.0
    service.projection.show_rails("s", storm=None if rules.storm is None else False, tokens=tokens, gates={})
    assert service.projection.registry.series() - before == series_of_retries(policies, rules)
    for name, configured in (("budget_tokens", rules.budget), ("storm", rules.storm)):
        assert (service.value(f"automation_retry_{name}") is None) == (configured is None)
    born = service.samples()["automation_retry_escalations_total"]
    assert {tuple(dict(labels).values()) for labels in born} == {
        ("p", "exhausted"), ("p", "held"), ("q", "exhausted"), ("q", "held"),
        ("quarantine", "policy"), ("escalate", "policy"),
    }  # fmt: skip
    assert set(born.values()) == {0.0}


async def test_dead_letters_are_grouped_by_workflow_and_error_from_the_first_sweep_on(service: Service) -> None:
    name = "automation_dead_letter_groups"
    assert service.value(name) is None, "nothing was read yet"

    def letter(letter_id: str, workflow_id: str, message: str | None, *, resolved: bool = False) -> DeadLetter:
        error = None if message is None else Error(error_class=ErrorClass.NETWORK, message=message)
        made = DeadLetter(id=letter_id, workflow_id=workflow_id, opened_at=NOW - 40, error=error)
        return replace(made, resolved_at=NOW, resolved_by=ResolvedBy.MANUAL) if resolved else made

    await service.tell(workflow())
    assert service.value(name) == 0.0
    await service.tell(letter("1", "w", "order 17 failed"), letter("2", "w", "order 18 failed"))
    assert service.value(name) == 1.0
    await service.tell(letter("3", "x", "order 17 failed"), letter("4", "w", None))
    assert service.value(name) == 3.0
    await service.tell(letter("4", "w", "order 99 failed"))  # now its error is known
    assert service.value(name) == 2.0
    await service.ledger.close()
    await service.open()
    assert service.value(name) == 2.0
    await service.tell(letter("3", "x", "order 17 failed", resolved=True))
    assert service.value(name) == 1.0
    await service.tell(*(letter(each, "w", "order 1 failed", resolved=True) for each in "124"))
    assert service.value(name) == 0.0


async def test_where_the_platform_cannot_list_what_runs_nothing_known_is_not_zero(tmp_path: Path) -> None:
    service = Service(tmp_path / "t.db")
    await service.open()
    service.projection = Projection({"s": dataclasses.replace(STAND_IN, lists_active=frozenset())}, series_max=10_000)
    service.projection.load(service.world, {})
    await service.tell(workflow())
    active, oldest = "automation_runs_active", "automation_run_oldest_active_timestamp_seconds"
    assert active not in service.samples()
    running = Run(workflow_id="w", id="r", state=State.RUNNING, started_at=NOW - 60)
    await service.tell(running, via=Via.WEBHOOK)  # one that a webhook reported is known
    assert service.samples()[active] == {(("state", "running"), ("workflow_id", "w")): 1.0}
    assert service.value(oldest, workflow_id="w", state="running") == NOW - 60
    over = Run(workflow_id="w", id="r", state=State.FINISHED, result=Result.SUCCESS, started_at=NOW - 60, ended_at=NOW)
    await service.tell(over)
    assert active not in service.samples()
    assert oldest not in service.samples()
    await service.ledger.close()


def test_only_make_cannot_list_what_runs() -> None:
    assert {p.name for p in PLATFORMS.values() if not p.lists_active} == {"make"}


def lines(service: Service) -> int:
    text = b"".join(service.projection.registry.render(openmetrics=False)).decode()
    return sum(not line.startswith("#") for line in text.splitlines())


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[Service]:
    service = Service(tmp_path / "t.db", series_max=1000)
    await service.open()
    yield service
    await service.ledger.close()


def with_steps(run_id: str, workflow_id: str, types: Iterable[str]) -> Run:
    steps = [
        Step(id=str(n), type=name, started_at=NOW - 9, ended_at=NOW - 8 + n, result=Result.SUCCESS)
        for n, name in enumerate(types)
    ]
    run = failed(run_id, NOW - 5, workflow_id)
    return replace(run, steps=tuple(steps))


async def test_whatever_a_hostile_platform_sends_there_are_never_more_lines_than_allowed(small: Service) -> None:
    async def check() -> None:
        assert small.projection.registry.series() == lines(small) <= 1000

    names = [f"w{n:03}" for n in range(200)]
    for number in range(0, 200, 10):  # ten times as many workflows as there is room for
        await small.tell(*(workflow(name) for name in names[number : number + 10]))
        await check()
    for number, name in enumerate(names[:60]):  # each with step types nobody has seen
        await small.tell(with_steps(f"r{number}", name, [f"type-{number}-{n}" for n in range(20)]))
        await check()
    for number, result in enumerate(Result):
        for name in names[:20]:
            await small.tell(replace(failed(f"q{number}-{name}", NOW - 4, name), result=result, queued_at=NOW - 90))
        await check()
    for number, error_class in enumerate(ErrorClass):
        error = Error(error_class=error_class)
        letters = [
            DeadLetter(id=f"{number}-{name}", workflow_id=name, opened_at=NOW - 40, error=error) for name in names[::9]
        ]
        await small.tell(*letters)
        await check()
    for number in range(40):
        await small.tell(
            *(Usage(kind=f"k{number}-{n}", unit=Unit.RUNS, at=NOW, used=1.0, limit=2.0) for n in range(20))
        )
        await check()
    for name in names:  # and everything else that can be known of a workflow
        more = {"enabled": True, "blocked": Blocked.PAUSED, "next_run_at": NOW + 60, "workspace": name, "trigger": "t"}
        known = Workflow(id=name, at=NOW + 1, name=f"{name} again", **more)  # type: ignore[arg-type]
        await small.tell(known, Queue(workflow_id=name, at=NOW, items=3, limit=10))
    await check()
    projection = small.projection
    projection.set_up("s", True)
    projection.open_retries("s", [policy(name=f"p{n}") for n in range(100)])
    projection.show_retry_mode("s", mode=Mode.ENFORCE, paused=False, lowered=False)
    projection.show_rails("s", storm=True, tokens=1.0, gates={})
    projection.show_open_retries("s", [])
    await check()

    samples = small.samples()
    declared = {str(result) for result in STAND_IN.results}
    runs = {k: v for k, v in samples["automation_runs_total"].items() if dict(k)["result"] in declared}
    assert sum(runs.values()) == 60 + len(declared) * 20, "none is missing"
    assert sum(samples["automation_dead_letters"].values()) == len(ErrorClass) * len(names[::9])
    assert samples["automation_source_up"] == {(): 1.0}
    assert len({dict(labels)["workflow_id"] for labels in samples["automation_runs_total"]}) > 10
    await small.ledger.close()
    await small.open()
    await check()


async def test_room_that_becomes_free_is_used_and_a_late_series_shows_its_whole_total(small: Service) -> None:
    await small.tell(*(workflow(f"w{n}") for n in range(12)))
    await small.tell(with_steps("r1", "w0", [f"type-{n}" for n in range(2000)]))
    assert small.projection.registry.series() == lines(small) <= 1000
    await small.tell(with_steps("r1b", "w1", [f"type-{n}" for n in range(40)]))  # more than is kept for it
    await small.tell(with_steps("r2", "w1", ["late"]))
    assert small.value("automation_steps_total", workflow_id="w1", step_type="late", result="success") is None
    for at in (NOW + 60, NOW + 5000):
        await small.tell(Listing(at=at, workflow_ids=frozenset({"w1"})))
    assert small.projection.registry.series() == lines(small)
    await small.tell(with_steps("r3", "w1", ["late"]))
    assert small.value("automation_steps_total", workflow_id="w1", step_type="late", result="success") == 2.0


async def test_a_workflow_called_as_the_others_are_is_one_of_them(small: Service) -> None:
    await small.tell(workflow(OTHER), failed("r", NOW - 5, OTHER))
    for at in (NOW + 60, NOW + 5000):
        await small.tell(Listing(at=at, workflow_ids=frozenset()))
    assert small.value("automation_runs_total", workflow_id=OTHER, result="failure") == 1.0
    assert small.projection.registry.series() == lines(small)


async def test_a_workflow_the_config_excludes_is_not_shown_and_comes_back_with_its_totals(service: Service) -> None:
    await service.tell(workflow("a"), workflow("b"), failed("r", NOW - 5, "a"))
    for excluded in ({"a"}, {"a", "b"}, set[str]()):
        await service.ledger.close()
        service.excluded = excluded
        await service.open()
        await service.tell(failed(f"r{len(excluded)}", NOW - 4, "a"), Queue(workflow_id="a", at=NOW, items=1))
        shown = {dict(labels).get("workflow_id") for series in service.samples().values() for labels in series}
        assert shown - {None} == {"a", "b"} - excluded
    assert service.value("automation_runs_total", workflow_id="a", result="failure") == 4.0
