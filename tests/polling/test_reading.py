"""What is said of a source that is swept while parts of it are not read: their age, their reason, and how loudly."""

import asyncio
import logging
from typing import Any

import pytest

from exporter.model import Run, State, Workflow
from exporter.model.ledger import Committed
from exporter.platform import CHUNK, Fault, Page, in_turns
from exporter.view.known import Unread, World
from exporter.web import status
from exporter.web.markup import Visitor
from exporter.web.page import page as html
from exporter.web.verdict import Seen
from tests.polling.test_poller import Setup, setup  # noqa: F401 (a fixture)

UNREADABLE = Fault(
    kind="bad_payload", detail="GET /log: 200 bad_payload: not in order, token=hunter22", workflow_id="w1"
)


@pytest.fixture
async def known(setup: Setup) -> Setup:  # noqa: F811
    """Two workflows, swept once without a fault."""
    setup.client.scripts["workflows"] = [
        [Page(observations=[Workflow(id=i, at=1.0, name=f"Name {i}") for i in ("w1", "w2")])]
    ]
    await setup.poller.sweep_once("workflows")
    await setup.poller.sweep_once("quota")
    setup.client.scripts["runs"] = [[Page(cursors={"w1": 1, "w2": 1})]]
    await setup.poller.sweep_once("runs")
    return setup


async def sweep(made: Setup, *pages: Page | Exception, after: float = 60.0) -> None:
    await made.clock.advance(after)
    made.client.scripts["runs"] = [list(pages)]
    await made.poller.sweep_once("runs")
    await made.poller.sweep_once("workflows")
    await made.poller.sweep_once("quota")


def reasons(made: Setup) -> list[str]:
    found = status.not_ready({"s": made.source}, now=made.clock.now(), store_error=None)
    return [reason.detail for reason in found]


def facts(made: Setup) -> dict[str, Any]:
    wire: Any = made.source.api
    wire.budget = type("Budget", (), {"rate": 1.0, "limit": None, "remaining": 1.0})
    return status.status({"s": made.source}, now=made.clock.now(), version="1")


def lag(made: Setup) -> float:
    covered_until = made.source.covered_until("runs")
    assert covered_until is not None
    return made.source.api.platform_now() - covered_until


async def test_a_workflow_that_is_never_read_ages_though_every_sweep_goes_to_its_end(known: Setup) -> None:
    for _ in range(4):
        await sweep(known, Page(cursors={"w2": 1}), Page(faults=[UNREADABLE]))
    assert lag(known) == 240.0
    assert known.value("data_complete", stream="runs") == 0
    assert reasons(known) == []  # within the bound
    for _ in range(2):
        await sweep(known, Page(cursors={"w2": 1}), Page(faults=[UNREADABLE]))
    (reason,) = reasons(known)
    assert reason.startswith(
        "runs: workflow w1 not read for 360 s, more than the bound of 300 s: GET /log: 200 bad_payload"
    )
    (stream,) = (s for s in facts(known)["sources"][0]["streams"] if s["stream"] == "runs")
    assert not stream["fresh"]
    assert stream["last_fault"]["workflow"] == "Name w1"
    assert stream["unread"]["total"] == 1
    assert stream["unread"]["workflows"][0]["age_seconds"] == 360.0
    nothing: Any = {"store_error": None, "mode": "off", "policies": 0, "paused": {}, "retries": [], "rails": []}
    nothing |= {"trouble": [], "can_repair": {}, "groups": [], "groups_of": {}, "approvals": {}, "needy": {}}
    shown = html(Seen(status=facts(known), **nothing, unsettled=[], operations=[]), Visitor())
    assert "<bdi>Name w1</bdi> not read for 6 minutes" in shown
    assert "runs of 1 workflow cannot be read" in shown.split("</p>")[1]
    for text in (reason, str(stream), shown):
        assert "not in order" in text
        assert "hunter22" not in text
    await sweep(known, Page(cursors={"w1": 2, "w2": 2}))
    assert (lag(known), reasons(known)) == (0.0, [])


async def test_the_age_outlives_a_restart(known: Setup) -> None:
    await sweep(known, Page(faults=[UNREADABLE]), after=600.0)
    world = World(["s"])
    world.load(await known.ledger.load())
    (unread,) = world.sources["s"].unread("runs").items()
    assert unread[0] == "w1"
    assert isinstance(unread[1], Unread)
    assert known.source.api.platform_now() - unread[1].since == 600.0


async def test_only_what_says_so_makes_it_read_again(known: Setup) -> None:
    await sweep(known, Page(faults=[UNREADABLE]))
    truncated = Fault(kind="truncated", detail="the rest is left for the next sweep")
    await sweep(known, Page(faults=[truncated]))  # its turn has not come
    assert lag(known) == 120.0
    await sweep(known, Exception("a bug"))
    assert lag(known) == 180.0
    await sweep(known, Page(cursors={"w1": 3}, faults=[UNREADABLE]))  # remembered, and not read
    assert lag(known) == 240.0
    await sweep(known, Page(cursors={"w1": 3}, faults=[truncated]))
    assert lag(known) == 0.0


async def test_a_fault_of_one_item_costs_the_item_only(known: Setup) -> None:
    bad = Fault(kind="bad_item", detail="a run without id", workflow_id="w1")
    cause = Fault(kind="timeout", detail="its cause", workflow_id="w1", of_item=True)
    await sweep(known, Page(faults=[bad, cause]), after=60.0)
    await sweep(known, Page(faults=[bad, cause], items=100), after=600.0)
    assert lag(known) == 0.0
    assert reasons(known) == []
    assert known.value("data_complete", stream="runs") == 0


async def test_a_stream_most_of_which_is_refused_was_not_read(known: Setup) -> None:
    bad = [Fault(kind="bad_item", detail=f"row {i} has no time") for i in range(6)]
    run = Run(workflow_id="w1", id="r", state=State.RUNNING, started_at=1.0)
    for _ in range(6):
        await sweep(known, Page(observations=[run], faults=bad, items=10))
    (reason,) = reasons(known)
    assert "more than the bound of 300 s: 6 of 10 items cannot be used, such as: row 0 has no time" in reason
    assert lag(known) == 360.0
    assert "r" in known.world.sources["s"].open_runs  # what could be used is
    await sweep(known, Page(observations=[run], faults=bad[:4], items=10))
    assert reasons(known) == []


async def test_the_first_fault_of_a_kind_is_a_warning_and_its_end_one_line(
    known: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="exporter")
    bad = Fault(kind="bad_item", detail="a run without id", workflow_id="w2")
    await sweep(known, Page(faults=[UNREADABLE, UNREADABLE, bad]))
    await sweep(known, Page(faults=[UNREADABLE, bad]))
    await sweep(known, Page(faults=[UNREADABLE]))
    await sweep(known, Page(cursors={"w1": 1}))
    loud = [(r.levelname, r.message, vars(r)["fields"]) for r in caplog.records if r.levelno > logging.DEBUG]
    assert [(level, message, fields["kind"]) for level, message, fields in loud] == [
        ("WARNING", "not all could be read", "bad_payload"),
        ("WARNING", "not all could be read", "bad_item"),
        ("INFO", "read again", "bad_item"),
        ("INFO", "read again", "bad_payload"),
    ]
    assert "workflow w1: GET /log" in loud[0][2]["detail"]
    assert "hunter22" not in caplog.text + str(loud)


async def test_a_workflow_that_is_gone_is_not_unread(known: Setup) -> None:
    await sweep(known, Page(faults=[UNREADABLE]))
    known.world.sources["s"].workflows.pop("w1")
    await sweep(known, Page(faults=[Fault(kind="truncated", detail="more")]))
    assert known.source.unread("runs") == {}


async def test_a_huge_page_is_stored_in_parts_and_its_cursors_with_the_last(known: Setup) -> None:
    seen = list[tuple[int, bool]]()
    follow = known.ledger.on_commit

    def watch(committed: Committed) -> None:
        seen.extend((len(o.batch.observations), bool(o.batch.cursors)) for o in committed.outcomes)
        follow(committed)

    known.ledger.on_commit = watch
    runs = [Run(workflow_id="w1", id=f"r{i}", state=State.RUNNING, started_at=1.0) for i in range(5 * CHUNK // 2)]
    known.client.scripts["runs"] = [[Page(observations=runs, cursors={"w1": 9})]]
    report = await known.poller.sweep_once("runs")
    assert seen == [(CHUNK, False), (CHUNK, False), (CHUNK // 2, True)]
    assert (report.observations, report.news) == (len(runs), len(runs))


async def test_items_are_looked_at_in_turns() -> None:
    parts, turns = [part async for part in in_turns(range(2 * CHUNK + 1))], 0
    assert [len(part) for part in parts] == [CHUNK, CHUNK, 1]
    assert [len(part) async for part in in_turns(list[int]())] == [0]

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    async for _ in in_turns(range(10 * CHUNK)):
        pass
    task.cancel()
    assert turns >= 9
