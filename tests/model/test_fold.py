"""The law of the fold, then histories that once hurt."""

import random
from functools import reduce

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from exporter.model import (
    Change,
    DeadLetter,
    DeadLetterOpened,
    DeadLetterResolved,
    Error,
    ErrorClass,
    Listing,
    ResolvedBy,
    Result,
    Run,
    RunCorrected,
    RunFailed,
    RunFinished,
    RunQueued,
    RunTimed,
    RunUsed,
    State,
    Step,
    StepFinished,
    Via,
    Workflow,
    fold,
    joins,
)
from exporter.model.fold import Baseline, RunEntry, WorkflowEntry

moments = st.sampled_from([100.0, 110.0, 120.0, 130.0, 200.0])
words = st.none() | st.sampled_from(["a", "b"])
errors = st.none() | st.builds(
    Error, error_class=st.sampled_from(list(ErrorClass)), type=words, message=words, step_type=words
)
steps = st.builds(
    Step,
    id=st.sampled_from(["s1", "s2"]),
    type=st.sampled_from(["MODEL", "GATE"]),
    started_at=st.none() | moments,
    ended_at=st.none() | moments,
    result=st.none() | st.sampled_from(list(Result)),
)
runs = st.builds(
    Run,
    workflow_id=st.just("w"),
    id=st.just("r"),
    attempt=st.sampled_from([1, 2, 1_700_000_000_000]),
    state=st.sampled_from(list(State)),
    result=st.none() | st.sampled_from(list(Result)),
    started_at=st.none() | moments,
    ended_at=st.none() | moments,
    error=errors,
    operations=st.none() | st.sampled_from([0.0, 3.0]),
    bytes_in=st.none() | st.sampled_from([1.0, 9.0]),
    queued_at=st.none() | moments,
    trigger=words,
    parent_id=words,
    steps=st.none()
    | st.lists(steps, max_size=2, unique_by=lambda s: s.id).map(lambda x: tuple(sorted(x, key=lambda s: s.id))),
)
letters = st.builds(
    DeadLetter,
    id=st.just("d"),
    workflow_id=st.just("w"),
    run_id=words,
    opened_at=moments,
    error=errors,
    resolved_at=st.none() | moments,
    resolved_by=st.none() | st.sampled_from(list(ResolvedBy)),
    tries=st.integers(0, 3),
    native_retry=st.none() | st.tuples(moments, st.booleans()),
    reruns=st.booleans(),
)
workflows = st.builds(Workflow, id=st.just("w"), at=moments, name=words, enabled=st.none() | st.booleans())
EVERYTHING = Baseline(first_sweep_at=0.0)


@pytest.mark.parametrize(
    ("join", "claims"),
    [(joins.join_run, runs), (joins.join_dead_letter, letters), (joins.join_workflow, workflows)],
    ids=["run", "dead_letter", "workflow"],
)
def test_a_join_is_commutative_associative_and_idempotent(join, claims):  # type: ignore[no-untyped-def]
    @given(claims, claims, claims)
    @settings(max_examples=400)
    def law(a, b, c):  # type: ignore[no-untyped-def]
        assert join(a, b) == join(b, a)
        assert join(join(a, b), c) == join(a, join(b, c))
        assert join(join(a, b), b) == join(a, b)
        assert join(a, a) == a

    law()


@given(st.lists(runs, min_size=1, max_size=6), st.randoms(use_true_random=False))
@settings(max_examples=300)
def test_any_shuffled_duplicated_history_gives_the_same_run(history: list[Run], rng: random.Random) -> None:
    expected = reduce(joins.join_run, history)
    told = history + rng.choices(history, k=rng.randrange(4))
    rng.shuffle(told)
    assert reduce(joins.join_run, told) == expected


def observe(
    claims: list[Run], *, baseline: Baseline = EVERYTHING, via: Via = Via.POLL
) -> tuple[RunEntry, list[Change]]:
    entry, changes = None, list[Change]()
    for claim in claims:
        entry, new = fold.fold_run(entry, claim, via=via, now=1000.0, baseline=baseline)
        changes += new
    assert entry is not None
    return entry, changes


def kinds(changes: list[Change]) -> list[str]:
    return [type(change).__name__ for change in changes]


RUNNING = Run(workflow_id="w", id="r", state=State.RUNNING, started_at=100.0, queued_at=95.0)
FAILED = Run(
    workflow_id="w",
    id="r",
    state=State.FINISHED,
    result=Result.FAILURE,
    started_at=100.0,
    ended_at=130.0,
    operations=3.0,
    error=Error(error_class=ErrorClass.NETWORK, type="ConnectionError"),
)
BARE = Run(workflow_id="w", id="r", state=State.FINISHED, result=Result.FAILURE, ended_at=130.0)


@given(st.lists(st.sampled_from([RUNNING, FAILED, BARE]), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_every_fact_of_a_finished_attempt_is_counted_once_whatever_the_order(
    told: list[Run], rng: random.Random
) -> None:
    told = [*told, RUNNING, FAILED, BARE]
    rng.shuffle(told)
    entry, changes = observe(told)
    assert sorted(kinds(changes)) == ["RunFailed", "RunFinished", "RunQueued", "RunTimed", "RunUsed"]
    assert [c.seconds for c in changes if isinstance(c, RunTimed)] == [30.0]
    assert [c.seconds for c in changes if isinstance(c, RunQueued)] == [5.0]
    assert sum(c.operations for c in changes if isinstance(c, RunUsed)) == 3.0
    assert [c.error.error_class for c in changes if isinstance(c, RunFailed)] == [ErrorClass.NETWORK]
    assert entry.counted_as is Result.FAILURE


def test_a_claim_that_teaches_nothing_returns_the_same_entry() -> None:
    entry, _ = observe([RUNNING, FAILED])
    again, changes = fold.fold_run(entry, RUNNING, via=Via.POLL, now=2000.0, baseline=EVERYTHING)
    assert again is entry
    assert changes == []


def test_a_run_that_ended_before_the_baseline_is_known_but_not_counted() -> None:
    entry, changes = observe([FAILED], baseline=Baseline(first_sweep_at=130.5))
    assert changes == []
    assert entry.run.result is Result.FAILURE
    assert entry.counted_attempt == 0


def test_a_run_that_ended_at_the_baseline_counts_and_a_backfill_reaches_further_back() -> None:
    assert "RunFinished" in kinds(observe([FAILED], baseline=Baseline(first_sweep_at=130.0))[1])
    _, changes = observe([FAILED], baseline=Baseline(first_sweep_at=200.0, backfill=100.0))
    assert [c.via for c in changes if isinstance(c, RunFinished)] == [Via.BACKFILL]


def test_what_ended_before_the_horizon_is_never_counted_again() -> None:
    assert observe([FAILED], baseline=Baseline(first_sweep_at=0.0, horizon=131.0))[1] == []


def test_two_sources_that_disagree_converge_and_the_correction_is_told_not_counted_again() -> None:
    cancelled, error = replace(FAILED, result=Result.CANCELLED), FAILED
    for told in ([cancelled, error], [error, cancelled]):
        entry, changes = observe(told)
        assert entry.run.result is Result.CANCELLED
        assert kinds(changes).count("RunFinished") == 1
    assert [c.counted_as for c in observe([error, cancelled])[1] if isinstance(c, RunCorrected)] == [Result.FAILURE]
    assert "RunCorrected" not in kinds(observe([cancelled, error])[1])


def version(ms: int, state: State, result: Result | None = None, steps: tuple[Step, ...] = ()) -> Run:
    """A reading of a process that is restarted in place: its update time is its attempt."""
    ended = ms / 1000 if state is State.FINISHED else None
    return Run(
        workflow_id="w",
        id="p",
        attempt=ms,
        state=state,
        result=result,
        started_at=1_700_000_000.0,
        ended_at=ended,
        steps=steps,
    )


T0 = 1_700_000_000_000
FAIL_1 = version(T0 + 20_000, State.FINISHED, Result.FAILURE)
AGAIN = version(T0 + 90_000, State.RUNNING)
DONE_2 = version(T0 + 100_000, State.FINISHED, Result.SUCCESS)


def test_a_finished_state_never_holds_back_a_restart_in_place() -> None:
    entry, changes = observe([FAIL_1, AGAIN, FAIL_1, DONE_2, AGAIN, DONE_2])
    assert [c.result for c in changes if isinstance(c, RunFinished)] == [Result.FAILURE, Result.SUCCESS]
    assert entry.run.state is State.FINISHED
    assert entry.run.previous == (T0 + 20_000, (T0 + 20_000) / 1000)


def test_the_duration_of_a_restarted_attempt_starts_at_the_restart_or_is_unknown() -> None:
    entry, changes = observe([FAIL_1, DONE_2])
    assert [c.seconds for c in changes if isinstance(c, RunTimed)] == [20.0]
    assert entry.run.duration is None
    step = Step(id="s", type="MODEL", started_at=(T0 + 90_000) / 1000)
    entry, changes = observe([FAIL_1, replace(AGAIN, steps=(step,)), DONE_2])
    assert [c.seconds for c in changes if isinstance(c, RunTimed)] == [20.0, 10.0]


def test_a_finish_announced_under_its_ordinal_and_found_under_its_time_is_one_finish() -> None:
    announced = replace(FAIL_1, attempt=1, ended_at=(T0 + 20_000) / 1000 + 2.5)
    stale = version(T0 + 10_000, State.RUNNING)
    for told in ([announced, FAIL_1], [FAIL_1, announced], [announced, stale, FAIL_1], [stale, announced, FAIL_1]):
        _, changes = observe(told)
        assert kinds(changes).count("RunFinished") == 1, told
    second = replace(DONE_2, attempt=2)
    _, changes = observe([announced, second, DONE_2])
    assert [c.result for c in changes if isinstance(c, RunFinished)] == [Result.FAILURE, Result.SUCCESS]
    later = version(T0 + 500_000, State.FINISHED, Result.SUCCESS)
    assert kinds(observe([announced, later])[1]).count("RunFinished") == 2


def test_an_end_announced_by_number_is_counted_at_once_though_polls_have_seen_the_attempt_running() -> None:
    running = version(T0 + 10_000, State.RUNNING)
    announced = replace(FAIL_1, attempt=1, ended_at=(T0 + 20_000) / 1000 + 2.5)
    entry, _ = observe([running])
    entry, new = fold.fold_run(entry, announced, via=Via.WEBHOOK, now=1e10, baseline=EVERYTHING)
    assert [c.via for c in new if isinstance(c, RunFinished)] == [Via.WEBHOOK]
    for claim in (announced, FAIL_1, announced, AGAIN, announced):
        entry, new = fold.fold_run(entry, claim, via=Via.POLL, now=1e10, baseline=EVERYTHING)
        assert "RunFinished" not in kinds(new)
    entry, new = fold.fold_run(entry, DONE_2, via=Via.POLL, now=1e10, baseline=EVERYTHING)
    assert [c.result for c in new if isinstance(c, RunFinished)] == [Result.SUCCESS]


def test_a_step_that_is_restarted_counts_each_of_its_ends() -> None:
    def step(started: float | None, ended: float | None, result: Result | None) -> Run:
        made = Step(id="s", type="MODEL", started_at=started, ended_at=ended, result=result)
        return Run(workflow_id="w", id="r", state=State.RUNNING, steps=(made,))

    told = [step(100.0, None, None), step(None, 110.0, Result.FAILURE), step(120.0, None, None)]
    _, changes = observe([*told, step(None, 140.0, Result.SUCCESS), *told])
    ended = [(c.step.result, c.step.ended_at) for c in changes if isinstance(c, StepFinished)]
    assert ended == [(Result.FAILURE, 110.0), (Result.SUCCESS, 140.0)]


def test_a_dead_letter_is_opened_once_its_class_is_known_and_resolved_once() -> None:
    found = DeadLetter(id="d", workflow_id="w", opened_at=100.0)
    explained = replace(found, error=Error(error_class=ErrorClass.NETWORK))
    closed = fold.resolve(explained, by=ResolvedBy.MANUAL, at=150.0)
    entry, changes = None, list[Change]()
    for claim in [found, explained, found, closed, closed, explained]:
        entry, new = fold.fold_dead_letter(entry, claim, baseline=EVERYTHING)
        changes += new
    assert [c.error_class for c in changes if isinstance(c, DeadLetterOpened)] == [ErrorClass.NETWORK]
    assert [c.by for c in changes if isinstance(c, DeadLetterResolved)] == [ResolvedBy.MANUAL]


def test_a_dead_letter_whose_retry_begins_anew_stays_one_whoever_says_less_of_it() -> None:
    plain = DeadLetter(id="d", workflow_id="w", opened_at=100.0)
    anew = replace(plain, reruns=True)
    for a, b in ((plain, anew), (anew, plain)):
        assert joins.join_dead_letter(a, b) == anew


def test_a_dead_letter_resolved_before_it_was_explained_still_counts_as_opened() -> None:
    found = DeadLetter(id="d", workflow_id="w", opened_at=100.0)
    _, changes = fold.fold_dead_letter(None, fold.resolve(found, by=ResolvedBy.PLATFORM, at=90.0), baseline=EVERYTHING)
    assert kinds(changes) == ["DeadLetterOpened", "DeadLetterResolved"]


def test_a_workflow_is_gone_after_two_listings_without_it_and_a_grace_period() -> None:
    entry = WorkflowEntry(workflow=Workflow(id="w", at=100.0, name="n"), found_at=100.0)

    def listing(at: float) -> Listing:
        return Listing(at=at, workflow_ids=frozenset())

    once = fold.fold_listing(entry, listing(200.0))
    assert once.gone_at is None
    assert fold.fold_listing(once, listing(260.0)).gone_at is None
    gone = fold.fold_listing(once, listing(200.0 + fold.GONE_AFTER))
    assert gone.gone_at == 200.0 + fold.GONE_AFTER
    back = fold.fold_workflow(gone, Workflow(id="w", at=5000.0, name="n"), now=5000.0)
    assert (back.gone_at, back.missed) == (None, 0)
    assert fold.fold_listing(once, Listing(at=300.0, workflow_ids=frozenset({"w"}))) is once


def test_a_streak_counts_failures_since_the_last_success_and_asks_for_a_recount_when_one_arrives_late() -> None:
    entry = WorkflowEntry(workflow=Workflow(id="w", at=0.0), found_at=0.0)
    for at in (10.0, 30.0):
        entry, recount = fold.fold_end(entry, Result.FAILURE, at)
        assert recount is None
    assert entry.failures == 2
    late, recount = fold.fold_end(entry, Result.SUCCESS, 20.0)
    assert recount == 20.0
    older, recount = fold.fold_end(replace(late, failures=1), Result.FAILURE, 15.0)
    assert (older.failures, recount) == (1, None)
    assert dict(older.last_ended) == {Result.SUCCESS: 20.0, Result.FAILURE: 30.0}


def test_a_step_whose_result_becomes_known_after_its_end_is_counted_then_and_once() -> None:
    def step(result: Result | None) -> Run:
        made = Step(id="s", type="MODEL", started_at=100.0, ended_at=110.0, result=result)
        return Run(workflow_id="w", id="r", state=State.RUNNING, steps=(made,))

    told = [step(None), step(Result.SUCCESS), step(None), step(Result.SUCCESS)]
    assert [c.step.result for c in observe(told)[1] if isinstance(c, StepFinished)] == [Result.SUCCESS]
