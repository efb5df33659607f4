"""The ledger on a real file: what is durable, what is counted, what a restart and a crash leave."""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from exporter.model import (
    TEST,
    DeadLetter,
    Error,
    ErrorClass,
    Listing,
    Observation,
    Result,
    Run,
    RunFinished,
    State,
    Step,
    Via,
    Workflow,
)
from exporter.model.ledger import Batch, Committed, Folded, FoldRules
from exporter.model.tallies import SUM
from exporter.store import schema
from exporter.store.ledger import PENDING_BATCHES_MAX, Ledger, open_engine
from exporter.store.maintenance import PRUNED_ROWS_MAX
from exporter.store.script import Script, StoreError
from exporter.store.sqlite import SqliteEngine
from tests.servers import PATIENCE_SECONDS

DAY = 86400.0
NOW = 100 * DAY
RULES = {
    "held": FoldRules(retention=30 * DAY),
    "derived": FoldRules(retention=30 * DAY, superseded_by_success=True, holds_dead_letters=False, traced=True),
}


@pytest.fixture
async def ledger(url: str) -> AsyncIterator[Ledger]:
    ledger = Ledger(await open_engine(url), RULES)
    yield ledger
    await ledger.close()


def batch(*observations: Observation, source: str = "held", via: Via = Via.POLL, now: float = NOW) -> Batch:
    return Batch(source=source, observations=observations, via=via, now=now, started_at=NOW - DAY)


def tried(claim: Run) -> Run:
    """The same run, started by somebody who builds the workflow."""
    return replace(claim, trigger=TEST)


async def test_a_test_run_touches_nothing_where_tests_are_ignored(ledger: Ledger) -> None:
    await ledger.ingest(batch(run("r1", Result.FAILURE, NOW - 90), source="derived"))
    before = await ledger.load()
    pending = await ledger.count_pending_traces()
    for via in Via:
        for claim in (run("t1", None, NOW - 50), run("t1", Result.FAILURE, NOW - 40), run("t2", Result.SUCCESS, NOW)):
            outcome = await ledger.ingest(batch(tried(claim), source="derived", via=via))
            assert (outcome.news, outcome.changes, outcome.found) == (0, [], [])
        other = replace(tried(run("t3", Result.FAILURE, NOW)), workflow_id="found by a test only")
        assert (await ledger.ingest(batch(other, source="derived", via=via))).found == []
    after = await ledger.load()
    assert (after.tallies, after.workflows, after.open_runs) == (before.tallies, before.workflows, before.open_runs)
    assert await ledger.count_pending_traces() == pending


async def test_a_run_that_began_to_count_counts_to_its_end_though_it_turns_out_to_be_a_test(ledger: Ledger) -> None:
    await ledger.ingest(batch(run("r1", None, NOW - 50)))
    assert (await ledger.ingest(batch(tried(run("r1", Result.FAILURE, NOW - 40))))).news == 1
    assert (await ledger.load()).open_runs == {}


async def test_tests_that_count_say_nothing_about_how_their_workflow_is_doing(url: str) -> None:
    rules = FoldRules(superseded_by_success=True, holds_dead_letters=False, counts_tests=True)
    ledger = Ledger(await open_engine(url), {"s": rules})
    failure = run("r1", Result.FAILURE, NOW - 90)
    letter = DeadLetter(id="r1", workflow_id="w", run_id="r1", opened_at=NOW - 90, error=Error())
    await ledger.ingest(batch(failure, letter, source="s"))
    before = (await ledger.load()).workflows
    tests = [tried(run("t1", Result.SUCCESS, NOW - 50)), tried(run("t2", Result.FAILURE, NOW - 95))]
    outcome = await ledger.ingest(batch(*tests, source="s"))
    assert sum(isinstance(change, RunFinished) for change in outcome.changes) == 2
    late = run("r0", Result.FAILURE, NOW - 100)  # before what is known: failures are counted anew
    await ledger.ingest(batch(late, source="s"))
    loaded = await ledger.load()
    assert list(loaded.open_dead_letters) == [("s", "r1")], "a test that went well has done none of the work"
    assert before["s", "w"].failures == 1
    assert loaded.workflows["s", "w"].failures == 2
    await ledger.close()


async def read_up_to(ledger: Ledger, moment: float, *sources: str) -> None:
    """A run that ended then was read: what is forgotten never runs ahead of that."""
    for source in sources or ("held",):
        newest = replace(run(f"at {moment}", Result.SUCCESS, moment), workflow_id="other")
        await ledger.ingest(batch(newest, source=source, now=moment))


def run(run_id: str, result: Result | None, at: float, *, error: Error | None = None, workflow: str = "w") -> Run:
    return Run(
        workflow_id=workflow,
        id=run_id,
        state=State.RUNNING if result is None else State.FINISHED,
        result=result,
        started_at=at - 10.0,
        ended_at=None if result is None else at,
        error=error,
    )


async def totals(ledger: Ledger, metric: str) -> dict[tuple[str, ...], float]:
    loaded = await ledger.load()
    return {(k[1], k[2], *k[3]): v for k, v in loaded.tallies.items() if k[0] == metric and k[4] == SUM}


async def test_a_run_is_counted_once_however_often_it_is_told(ledger: Ledger) -> None:
    done = run("r1", Result.FAILURE, NOW - 50)
    first = await ledger.ingest(batch(run("r1", None, NOW - 50), done))
    assert (first.news, len(first.changes) > 0) == (2, True)
    again = await ledger.ingest(batch(done, done))
    assert (again.news, again.changes) == (0, [])
    assert await totals(ledger, "automation_runs_total") == {("held", "w", "failure"): 1.0}


async def test_concurrent_batches_share_transactions_and_each_learns_its_own_outcome(ledger: Ledger) -> None:
    commits: list[int] = []
    ledger.on_commit = lambda committed: commits.append(len(committed.outcomes))
    told = [batch(run(f"r{i % 40}", Result.SUCCESS, NOW - 50), via=Via.WEBHOOK) for i in range(80)]
    outcomes: Sequence[Folded] = await asyncio.gather(*(ledger.ingest(b) for b in told))
    assert [o.news for o in outcomes] == [1] * 40 + [0] * 40
    assert sum(commits) == 80
    assert len(commits) <= 3
    assert await totals(ledger, "automation_runs_total") == {("held", "w", "success"): 40.0}


async def test_the_same_history_in_any_split_gives_the_same_tallies(tmp_path: Path) -> None:
    history = [
        run(f"r{i}", result, NOW - 1000 + 10 * i, error=Error(error_class=ErrorClass.NETWORK))
        for i, result in enumerate([Result.FAILURE, Result.SUCCESS, Result.FAILURE, Result.WARNING, Result.FAILURE])
    ]
    seen = []
    for number, (told, size) in enumerate([(history, 1), (history[::-1], 5), ([*history, *history[::-1]], 3)]):
        ledger = Ledger(await open_engine(f"sqlite:///{tmp_path}/{number}.db"), RULES)
        for i in range(0, len(told), size):
            await ledger.ingest(batch(*told[i : i + size]))
        loaded = await ledger.load()
        entry = loaded.workflows["held", "w"]
        seen.append((loaded.tallies, entry.failures, entry.last_ended))
        await ledger.close()
    assert seen[0] == seen[1] == seen[2]
    assert seen[0][1] == 1


async def test_a_success_that_arrives_after_later_failures_leaves_only_those(ledger: Ledger) -> None:
    await ledger.ingest(batch(*(run(f"f{i}", Result.FAILURE, NOW - 100 + i) for i in range(4))))
    assert (await ledger.load()).workflows["held", "w"].failures == 4
    await ledger.ingest(batch(run("s", Result.SUCCESS, NOW - 98.5)))
    assert (await ledger.load()).workflows["held", "w"].failures == 2


async def test_everything_survives_a_restart(url: str) -> None:
    ledger = Ledger(await open_engine(url), RULES)
    letter = DeadLetter(id="d", workflow_id="w", opened_at=NOW - 60, error=Error(error_class=ErrorClass.QUOTA))
    told = Batch(
        source="held",
        observations=(
            run("open", None, NOW),
            run("done", Result.SUCCESS, NOW - 5),
            letter,
            Workflow(id="w", at=NOW, name="n"),
        ),
        now=NOW,
        started_at=NOW - DAY,
        stream="runs",
        cursors={"w": {"since": 5}, "gone": None},
    )
    await ledger.ingest(told)
    before = await ledger.load()
    await ledger.close()
    ledger = Ledger(await open_engine(url), RULES)
    assert await ledger.load() == before
    assert before.first_sweeps == {"held": NOW - DAY}
    assert list(before.open_runs) == [("held", "open")]
    assert before.open_dead_letters["held", "d"].dead_letter == letter
    assert before.cursors == {("held", "runs"): {"w": {"since": 5}}}
    await ledger.close()


async def test_a_batch_that_cannot_be_stored_costs_only_itself(ledger: Ledger) -> None:
    bad = batch(Workflow(id="x", at=NOW, name="\ud800"))  # no UTF-8 for it
    good = [batch(run(f"r{i}", Result.SUCCESS, NOW - 50)) for i in range(3)]
    results = await asyncio.gather(
        *(ledger.ingest(b) for b in [good[0], bad, good[1], good[2]]), return_exceptions=True
    )
    assert [isinstance(r, StoreError) for r in results] == [False, True, False, False]
    assert await totals(ledger, "automation_runs_total") == {("held", "w", "success"): 3.0}


async def test_senders_are_refused_when_too_many_batches_wait(tmp_path: Path) -> None:
    class Stuck:
        is_shared = False

        async def run(self, script: Script[Committed], *, sources: Collection[str] | None = None) -> Committed:
            await asyncio.Event().wait()
            raise AssertionError

        async def close(self) -> None: ...

    ledger = Ledger(Stuck(), RULES)  # type: ignore[arg-type]
    waiting = [asyncio.create_task(ledger.ingest(batch())) for _ in range(PENDING_BATCHES_MAX + 1)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert not ledger.is_full or sum(task.done() for task in waiting) == 0
    more = [asyncio.create_task(ledger.ingest(batch())) for _ in range(PENDING_BATCHES_MAX + 1)]
    done, _ = await asyncio.wait(more, timeout=PATIENCE_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
    assert any(isinstance(task.exception(), StoreError) for task in done)
    for task in (*waiting, *more):
        task.cancel()
    await asyncio.gather(*waiting, *more, return_exceptions=True)
    assert ledger._writer is not None
    ledger._writer.cancel()


async def test_a_later_success_closes_the_dead_letters_of_its_workflow_whatever_the_order(ledger: Ledger) -> None:
    failed = run("f", Result.FAILURE, NOW - 100, error=Error(error_class=ErrorClass.NETWORK))
    letter = DeadLetter(id="f", workflow_id="w", run_id="f", opened_at=NOW - 100, error=failed.error)
    success = run("s", Result.SUCCESS, NOW - 50)
    await ledger.ingest(batch(failed, letter, source="derived"))
    assert len((await ledger.load()).open_dead_letters) == 1
    await ledger.ingest(batch(success, source="derived"))
    assert (await ledger.load()).open_dead_letters == {}
    other: list[Observation] = [
        run("f2", Result.FAILURE, NOW - 90),
        DeadLetter(id="f2", workflow_id="w", run_id="f2", opened_at=NOW - 90),
    ]
    await ledger.ingest(batch(*other, source="derived"))
    assert (await ledger.load()).open_dead_letters == {}
    assert await totals(ledger, "automation_dead_letters_resolved_total") == {("derived", "w", "superseded"): 2.0}
    kept = DeadLetter(id="k", workflow_id="w", opened_at=NOW - 100, error=Error())
    await ledger.ingest(batch(kept, success, source="held"))
    assert list((await ledger.load()).open_dead_letters) == [("held", "k")]


async def test_a_restart_in_place_closes_the_dead_letter_of_the_failed_attempt(ledger: Ledger) -> None:
    ms = int(NOW * 1000)
    first = Run(
        workflow_id="w", id="p", attempt=ms - 90_000, state=State.FINISHED, result=Result.FAILURE, ended_at=NOW - 90
    )
    letter = DeadLetter(id="p.s.1", workflow_id="w", run_id="p", attempt=ms - 90_000, opened_at=NOW - 90, error=Error())
    await ledger.ingest(batch(first, letter))
    await ledger.ingest(batch(Run(workflow_id="w", id="p", attempt=ms - 30_000, state=State.RUNNING)))
    assert (await ledger.load()).open_dead_letters == {}
    assert await totals(ledger, "automation_dead_letters_resolved_total") == {("held", "w", "manual"): 1.0}


async def test_pruning_never_changes_a_tally_and_what_was_pruned_is_never_counted_again(ledger: Ledger) -> None:
    old = run("old", Result.FAILURE, NOW - 50, error=Error())
    letter = DeadLetter(id="old", workflow_id="w", run_id="old", opened_at=NOW - 50, error=Error())
    await ledger.ingest(batch(old, letter, source="derived"))
    key = ("derived", "old", 1)
    await ledger.mark_traced([key])
    before = (await ledger.load()).tallies
    later = NOW + 31 * DAY
    await read_up_to(ledger, later, "derived")
    done = await ledger.maintain(now=later, retention=30 * DAY)
    assert (done.pruned_runs, done.expired, done.rows["runs"]) == (1, 1, 1)
    await read_up_to(ledger, later + 31 * DAY, "derived")
    done = await ledger.maintain(now=later + 31 * DAY, retention=30 * DAY)
    assert done.pruned_dead_letters == 1
    after = (await ledger.load()).tallies
    of_w = {key for key in after.keys() - before.keys() if key[2] == "w"}
    assert {key: after[key] for key in before if key[2] == "w"} == {k: v for k, v in before.items() if k[2] == "w"}
    assert of_w
    assert all("resol" in key[0] for key in of_w)
    await ledger.ingest(batch(old, letter, source="derived", now=later + 31 * DAY))
    assert (await ledger.load()).tallies == after
    assert (await ledger.load()).open_dead_letters == {}
    assert (await ledger.load()).workflows["derived", "w"].failures == 1


async def test_dead_letters_a_platform_keeps_itself_do_not_expire(ledger: Ledger) -> None:
    await ledger.ingest(batch(DeadLetter(id="d", workflow_id="w", opened_at=NOW - 50, error=Error())))
    done = await ledger.maintain(now=NOW + 90 * DAY, retention=30 * DAY)
    assert done.expired == 0
    assert list((await ledger.load()).open_dead_letters) == [("held", "d")]


async def test_webhooks_are_judged_once_for_each_counted_run(ledger: Ledger) -> None:
    await ledger.ingest(batch(now=NOW))
    assert await ledger.judge_webhooks("held", until=NOW) == (0, 0, 0)
    told, missed = run("t", Result.SUCCESS, NOW + 1), run("m", Result.SUCCESS, NOW + 2)
    await ledger.ingest(batch(told, missed, now=NOW + 5))
    await ledger.ingest(batch(told, via=Via.WEBHOOK, now=NOW + 6))
    assert await ledger.judge_webhooks("held", until=NOW + 4) == (0, 0, 0)
    assert await ledger.judge_webhooks("held", until=NOW + 10) == (1, 1, 1)
    assert await ledger.judge_webhooks("held", until=NOW + 20) == (0, 0, 0)
    assert await totals(ledger, "automation_exporter_reconciled_total") == {("held", "", "missed_webhook"): 1.0}


async def test_a_workflow_missing_from_complete_listings_is_gone_and_comes_back(ledger: Ledger) -> None:
    await ledger.ingest(batch(Workflow(id="w", at=NOW, name="n"), Listing(at=NOW, workflow_ids=frozenset({"w"}))))
    for at in (NOW + 60, NOW + 1000):
        await ledger.ingest(batch(Listing(at=at, workflow_ids=frozenset())))
    assert (await ledger.load()).workflows["held", "w"].gone_at == NOW + 1000
    await ledger.ingest(batch(Workflow(id="w", at=NOW + 2000, name="n")))
    assert (await ledger.load()).workflows["held", "w"].gone_at is None


async def test_a_trace_is_pending_until_its_own_attempt_was_exported(ledger: Ledger) -> None:
    ok, failed = run("ok", Result.SUCCESS, NOW - 9), run("failed", Result.FAILURE, NOW - 8)
    await ledger.ingest(batch(ok, failed, source="derived"))
    await ledger.ingest(batch(run("untraced", Result.SUCCESS, NOW - 9), source="held"))
    pending = await ledger.pending_traces(limit=10, settled_before=NOW - 60)
    assert [p.of.id for p in pending] == ["ok"]
    pending = await ledger.pending_traces(limit=10, settled_before=NOW + 1)
    assert {p.of.id for p in pending} == {"ok", "failed"}
    await ledger.mark_traced([("derived", "ok", 1), ("derived", "failed", 2)])
    assert [p.of.id for p in await ledger.pending_traces(limit=10, settled_before=NOW + 1)] == ["failed"]
    assert await ledger.count_pending_traces() == 1


@pytest.mark.parametrize("steps", [None, (), (Step(id="1", type="t", ended_at=NOW - 50, result=Result.SUCCESS),)])
async def test_steps_not_told_told_to_be_none_and_told_stay_three_things(
    ledger: Ledger, steps: tuple[Step, ...] | None
) -> None:
    told = replace(run("r1", Result.SUCCESS, NOW - 50), steps=steps)
    await ledger.ingest(batch(told, source="derived"))
    assert (await ledger.ingest(batch(told, source="derived"))).news == 0
    (pending,) = await ledger.pending_traces(limit=10, settled_before=0.0)
    assert isinstance(pending.of, Run)
    assert pending.of.steps == steps
    assert (await ledger.ingest(batch(replace(told, steps=None), source="derived"))).news == 0
    assert (await ledger.ingest(batch(replace(told, steps=()), source="derived"))).news == (steps is None)


async def test_an_attempt_waiting_for_its_trace_is_not_lost_to_the_next_and_follows_what_becomes_known(
    ledger: Ledger,
) -> None:
    ms = int(NOW * 1000)
    first = Run(workflow_id="w", id="p", attempt=ms, state=State.FINISHED, result=Result.FAILURE, ended_at=NOW)
    again = Run(
        workflow_id="w", id="p", attempt=ms + 9000, state=State.FINISHED, result=Result.SUCCESS, ended_at=NOW + 9
    )
    await ledger.ingest(batch(first, source="derived"))
    explained = replace(first, error=Error(error_class=ErrorClass.NETWORK))
    await ledger.ingest(batch(explained, source="derived"))
    await ledger.ingest(batch(again, source="derived"))
    pending = await ledger.pending_traces(limit=10, settled_before=0.0)
    assert [(p.of.attempt, p.of.error) for p in pending if isinstance(p.of, Run)] == [
        (ms, explained.error),
        (ms + 9000, None),
    ]
    await ledger.mark_traced([("derived", "p", ms), ("derived", "p", ms + 9000)])
    assert await ledger.count_pending_traces() == 0
    await ledger.ingest(batch(first, again, source="derived"))
    assert await ledger.count_pending_traces() == 0


async def test_a_second_process_is_kept_out_and_a_newer_schema_is_refused(tmp_path: Path) -> None:
    engine = await SqliteEngine.open(tmp_path / "t.db")
    with pytest.raises(StoreError, match="another process is using"):
        await SqliteEngine.open(tmp_path / "t.db")

    def from_the_future() -> Script[None]:
        yield "INSERT INTO schema_version (version) VALUES ($1)", (len(schema.MIGRATIONS) + 1,)

    await engine.run(from_the_future())
    await engine.close()
    with pytest.raises(StoreError, match="run the newer version"):
        await SqliteEngine.open(tmp_path / "t.db")


async def test_every_commit_is_on_disk_and_a_failed_script_leaves_nothing(tmp_path: Path) -> None:
    engine = await SqliteEngine.open(tmp_path / "t.db")

    def pragmas() -> Script[tuple[object, ...]]:
        mode = yield "PRAGMA journal_mode", ()
        sync = yield "PRAGMA synchronous", ()
        return (mode[0][0], sync[0][0])

    assert await engine.run(pragmas()) == ("wal", 2)

    def broken() -> Script[None]:
        yield "INSERT INTO sources (source, first_sweep_at) VALUES ($1, $2)", ("a", 1.0)
        yield "SELECT no_such_column FROM sources", ()

    with pytest.raises(StoreError, match="no such column"):
        await engine.run(broken())

    def count() -> Script[int]:
        rows = yield "SELECT count(*) FROM sources", ()
        found: int = rows[0][0]
        return found

    assert await engine.run(count()) == 0
    await engine.close()


async def test_a_run_told_of_under_two_workflows_costs_neither_what_is_known_of_it(ledger: Ledger) -> None:
    known = Workflow(id="w", at=NOW, name="Orders", enabled=True)
    await ledger.ingest(batch(known, run("f", Result.FAILURE, NOW - 5), run("r", None, NOW)))
    await ledger.ingest(batch(replace(run("r", Result.FAILURE, NOW), workflow_id="a")))
    entry = (await ledger.load()).workflows["held", "w"]
    assert (entry.workflow, entry.failures) == (known, 2)


async def test_old_dead_letters_of_one_source_do_not_keep_those_of_another_from_expiring(ledger: Ledger) -> None:
    kept = [DeadLetter(id=f"k{i}", workflow_id="w", opened_at=NOW - 500, error=Error()) for i in range(PRUNED_ROWS_MAX)]
    await ledger.ingest(batch(*kept))
    lost = DeadLetter(id="d", workflow_id="w", opened_at=NOW - 50, error=Error())
    await ledger.ingest(batch(lost, source="derived"))
    await read_up_to(ledger, NOW + 31 * DAY, "held", "derived")
    done = await ledger.maintain(now=NOW + 31 * DAY, retention=30 * DAY)
    assert done.expired == 1


async def test_what_only_a_rerun_can_save_expires_also_where_the_platform_holds_dead_letters(ledger: Ledger) -> None:
    opened = DeadLetter(id="k", workflow_id="w", opened_at=NOW - 50, error=Error())
    held = [replace(opened, id=f"k{i}") for i in range(PRUNED_ROWS_MAX)]
    anew = replace(opened, id="r", run_id="r", reruns=True)
    await ledger.ingest(batch(*held, anew))
    await read_up_to(ledger, NOW + 31 * DAY)
    assert (await ledger.maintain(now=NOW + 29 * DAY, retention=30 * DAY)).expired == 0
    assert (await ledger.maintain(now=NOW + 31 * DAY, retention=30 * DAY)).expired == 1
    resolved = await totals(ledger, "automation_dead_letters_resolved_total")
    assert resolved == {("held", "w", "expired"): 1.0}
    await read_up_to(ledger, NOW + 62 * DAY)
    assert (await ledger.maintain(now=NOW + 62 * DAY, retention=30 * DAY)).pruned_dead_letters == 1
    assert (await ledger.ingest(batch(anew, now=NOW + 62 * DAY))).news == 0, "read once more, it does not open again"


async def test_however_much_is_past_the_retention_one_round_prunes_it_all(ledger: Ledger) -> None:
    runs = PRUNED_ROWS_MAX + 1
    await ledger.ingest(batch(*(run(f"r{i}", Result.SUCCESS, NOW - 50) for i in range(runs))))
    await read_up_to(ledger, NOW + 31 * DAY)
    done = await ledger.maintain(now=NOW + 31 * DAY, retention=30 * DAY)
    assert (done.pruned_runs, done.rows["runs"]) == (runs, 1)


async def test_a_finished_run_whose_end_is_not_known_is_forgotten_as_well(ledger: Ledger) -> None:
    endless = replace(run("r", Result.UNKNOWN, NOW), ended_at=None)
    await ledger.ingest(batch(endless))
    assert (await ledger.ingest(batch(endless))).news == 0
    await read_up_to(ledger, NOW + 31 * DAY)
    assert (await ledger.maintain(now=NOW + 29 * DAY, retention=30 * DAY)).pruned_runs == 0
    assert (await ledger.maintain(now=NOW + 31 * DAY, retention=30 * DAY)).pruned_runs == 1
    await ledger.ingest(batch(endless, now=NOW + 31 * DAY))
    assert (await totals(ledger, "automation_runs_total"))["held", "w", "unknown"] == 1.0


async def test_what_was_pruned_is_not_counted_again_when_the_retention_grows_or_the_clock_goes_back(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path}/t.db"
    ledger = Ledger(await open_engine(url), {"held": FoldRules(retention=10 * DAY)})
    old = run("old", Result.FAILURE, NOW - 50)
    await ledger.ingest(batch(old))
    await read_up_to(ledger, NOW + 11 * DAY)
    assert (await ledger.maintain(now=NOW + 11 * DAY, retention=10 * DAY)).pruned_runs == 1
    await ledger.ingest(batch(old, now=NOW + 9 * DAY))
    await ledger.close()
    ledger = Ledger(await open_engine(url), {"held": FoldRules(retention=90 * DAY)})
    await ledger.ingest(batch(old, now=NOW + 12 * DAY))
    assert (await totals(ledger, "automation_runs_total"))["held", "w", "failure"] == 1.0
    await ledger.close()


async def test_a_run_that_turns_out_to_have_failed_joins_the_streak_of_failures(ledger: Ledger) -> None:
    await ledger.ingest(batch(run("f", Result.FAILURE, NOW - 30), run("r", Result.SUCCESS, NOW - 20)))
    assert (await ledger.load()).workflows["held", "w"].failures == 0
    await ledger.ingest(batch(run("r", Result.FAILURE, NOW - 20)))
    entry = (await ledger.load()).workflows["held", "w"]
    assert entry.failures == 2


# A clock that is wrong.


async def sql(ledger: Ledger, statement: str, *values: object) -> list[Any]:
    def script() -> Script[list[Any]]:
        rows = yield statement, values
        return list(rows)

    return await ledger.transact("test", script())


def known(
    *seen: Observation, now: float = NOW, via: Via = Via.POLL, source: str = "derived", began: float = NOW - DAY
) -> Batch:
    """A batch read while the platform's clock was known."""
    return Batch(source=source, observations=seen, via=via, now=now, started_at=began, clock_known=True)


async def test_housekeeping_by_a_clock_two_months_ahead_forgets_nothing(ledger: Ledger) -> None:
    letter = DeadLetter(id="d", workflow_id="w", opened_at=NOW - 50, error=Error())
    await ledger.ingest(batch(run("r", Result.FAILURE, NOW - 50), letter, source="derived"))
    for clocks in ({}, {"derived": None}, {"derived": NOW}, {"derived": NOW + 60 * DAY}):
        done = await ledger.maintain(now=NOW + 60 * DAY, retention=30 * DAY, clocks=clocks)
        assert (done.pruned_runs, done.expired) == (0, 0)
    assert list((await ledger.load()).open_dead_letters) == [("derived", "d")]
    [[pruned]] = await sql(ledger, "SELECT pruned_until FROM sources")
    assert pruned <= NOW
    assert await ledger.count_pending_traces() == 1
    await ledger.ingest(batch(run("later", Result.SUCCESS, NOW + 10), source="derived", now=NOW + 20))
    assert (await totals(ledger, "automation_runs_total"))["derived", "w", "success"] == 1.0


async def test_what_a_sender_says_moves_nothing_that_is_forgotten(ledger: Ledger) -> None:
    await ledger.ingest(known(run("r", Result.FAILURE, NOW - 50)))
    await ledger.ingest(known(run("far", Result.SUCCESS, NOW + 20 * DAY), via=Via.WEBHOOK))
    await ledger.ingest(known(run("off", Result.SUCCESS, NOW + 20 * DAY)))
    assert (await ledger.load()).read_until == {"derived": NOW - 50}


@pytest.mark.parametrize("pruned", [True, False])
async def test_a_mark_that_a_wrong_clock_left_in_the_future_is_set_right(ledger: Ledger, pruned: bool) -> None:
    old = run("old", Result.FAILURE, NOW - 50)
    await ledger.ingest(known(old))
    await sql(ledger, "UPDATE sources SET pruned_until = $1, read_until = 0", NOW + 30 * DAY)
    if pruned:
        await sql(ledger, "DELETE FROM runs")
    await ledger.ingest(known(old, run("new", Result.FAILURE, NOW + 5), now=NOW + 10))
    assert await totals(ledger, "automation_runs_total") == {("derived", "w", "failure"): 2.0}


async def test_a_mark_in_the_future_is_set_right_by_housekeeping_and_by_a_webhook_alone(ledger: Ledger) -> None:
    await ledger.ingest(known(run("old", Result.FAILURE, NOW - 50)))
    await sql(ledger, "UPDATE sources SET pruned_until = $1, read_until = 0", NOW + 30 * DAY)
    await ledger.maintain(now=NOW, retention=30 * DAY, clocks={"derived": NOW})
    [[mark]] = await sql(ledger, "SELECT pruned_until FROM sources")
    assert mark <= NOW
    await sql(ledger, "UPDATE sources SET pruned_until = $1, read_until = 0", NOW + 30 * DAY)
    told = Batch(
        source="derived", observations=[run("n", Result.SUCCESS, NOW)], via=Via.WEBHOOK, now=NOW, started_at=None
    )
    await ledger.ingest(told)
    assert (await totals(ledger, "automation_runs_total"))["derived", "w", "success"] == 1.0


async def test_a_mark_is_not_taken_back_by_a_clock_that_is_behind(ledger: Ledger) -> None:
    old = run("old", Result.FAILURE, NOW - 50)
    await ledger.ingest(known(old))
    await read_up_to(ledger, NOW + 40 * DAY, "derived")
    assert (await ledger.maintain(now=NOW + 40 * DAY, retention=30 * DAY)).pruned_runs == 1
    await ledger.maintain(now=NOW - 60 * DAY, retention=30 * DAY)
    await ledger.ingest(batch(old, source="derived", now=NOW - 60 * DAY))
    assert (await totals(ledger, "automation_runs_total"))["derived", "w", "failure"] == 1.0


async def test_a_baseline_in_the_future_is_set_right(ledger: Ledger) -> None:
    wrong = Batch(source="held", observations=(), now=NOW + 60 * DAY, started_at=NOW + 60 * DAY)
    await ledger.ingest(wrong)
    await ledger.ingest(known(run("r", Result.SUCCESS, NOW + 1), source="held", began=NOW))
    assert (await ledger.load()).first_sweeps == {"held": NOW}
    assert await totals(ledger, "automation_runs_total") == {("held", "w", "success"): 1.0}


async def test_a_webhook_is_lost_only_where_one_ever_reported_such_a_run(ledger: Ledger) -> None:
    """`all` has reported everything, `errors` is an error route, `none` has no webhook; a restart forgets nothing."""
    await ledger.ingest(batch(now=NOW))
    await ledger.judge_webhooks("held", until=NOW)
    said = [
        run("a", Result.SUCCESS, NOW + 1, workflow="all"),
        run("e", Result.FAILURE, NOW + 2, workflow="errors"),
    ]
    await ledger.ingest(batch(*said, via=Via.WEBHOOK, now=NOW + 5))
    unsaid = [
        run(f"{workflow}-{result}", result, NOW + 3, workflow=workflow)
        for workflow in ("all", "errors", "none")
        for result in (Result.SUCCESS, Result.FAILURE)
    ]
    await ledger.ingest(batch(*unsaid, now=NOW + 5))
    assert await ledger.judge_webhooks("held", until=NOW + 10) == (2, 6, 3), "both of all, the failure of errors"
    await ledger.ingest(batch(run("late", Result.SUCCESS, NOW + 11, workflow="all"), now=NOW + 12))
    await ledger.ingest(batch(run("quiet", Result.SUCCESS, NOW + 11, workflow="errors"), now=NOW + 12))
    assert await ledger.judge_webhooks("held", until=NOW + 20) == (0, 2, 1), "what was reported an hour ago is known"


async def test_what_webhooks_tell_before_the_clock_is_known_counts_and_sets_no_baseline(ledger: Ledger) -> None:
    for ours in (NOW + 60 * DAY, NOW - 60 * DAY):
        told = run(f"at {ours}", Result.FAILURE, NOW - 100)
        await ledger.ingest(Batch(source="held", observations=[told], via=Via.WEBHOOK, now=ours, started_at=None))
    assert await totals(ledger, "automation_runs_total") == {("held", "w", "failure"): 2.0}
    assert (await ledger.load()).first_sweeps == {}
    await ledger.ingest(known(run("between", Result.SUCCESS, NOW - 50), source="held", began=NOW))
    assert (await ledger.load()).first_sweeps == {"held": NOW - 100}
    assert (await totals(ledger, "automation_runs_total"))["held", "w", "success"] == 1.0


async def test_webhooks_are_judged_again_after_a_clock_was_ahead(ledger: Ledger) -> None:
    await ledger.ingest(known(source="held"))
    await ledger.judge_webhooks("held", until=NOW + 60 * DAY)
    await ledger.judge_webhooks("held", until=NOW)
    await ledger.ingest(known(run("m", Result.SUCCESS, NOW + 5), source="held", now=NOW + 6))
    assert await ledger.judge_webhooks("held", until=NOW + 10) == (0, 1, 0)


async def test_the_trace_of_a_failure_waits_by_the_platforms_clock(ledger: Ledger) -> None:
    await ledger.ingest(known(run("f", Result.FAILURE, NOW - 5), now=NOW))
    ours = NOW - 60 * DAY
    assert await ledger.pending_traces(limit=10, settled_before=ours + 1) == []
    ledger.ahead = lambda: {"derived": 60 * DAY}
    assert len(await ledger.pending_traces(limit=10, settled_before=ours + 1)) == 1
    assert await ledger.pending_traces(limit=10, settled_before=ours - 1) == []
