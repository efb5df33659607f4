"""What a platform may declare: any streams of work, and little else that it has nothing to say about."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from exporter.alerting.upkeep import WORK
from exporter.model import Result, Run, State
from exporter.platform import Client, Known, Page, Platform, RunKey, Stream, StreamName, WebhookRequest
from exporter.platform.section import SourceConfig
from exporter.wire.budget import Lane
from tests.platforms.known import MemoryKnown

ONLY_RUNS = (Stream(name=StreamName.RUNS, lane=Lane.SWEEPS),)


class SmallClient(Client):
    """All that a client must have."""

    async def sweep(self, stream: StreamName, known: Known, now: float) -> AsyncIterator[Page]:
        yield Page()

    async def check(self) -> AsyncIterator[str]:
        yield "ok"


SMALL = Platform(
    name="small",
    title="Small",
    config=SourceConfig,
    streams=ONLY_RUNS,
    connect=lambda config, api: SmallClient(),
    auth=lambda config: None,
    error_detail=lambda body: None,
    requests_per_minute=60,
    results=(Result.SUCCESS, Result.FAILURE),
    error_classes=(),
    resolved_by=(),
)


def streams(*names: StreamName) -> tuple[Stream, ...]:
    return tuple(Stream(name=name, lane=Lane.SWEEPS) for name in names)


@pytest.mark.parametrize(
    ("declared", "main", "dead_letters"),
    [
        ((StreamName.RUNS,), StreamName.RUNS, StreamName.RUNS),
        ((StreamName.WORKFLOWS,), StreamName.WORKFLOWS, StreamName.WORKFLOWS),
        ((StreamName.DEAD_LETTERS,), StreamName.DEAD_LETTERS, StreamName.DEAD_LETTERS),
        ((StreamName.QUOTA, StreamName.RUNS), StreamName.RUNS, StreamName.RUNS),
        ((StreamName.QUOTA, StreamName.DEAD_LETTERS), StreamName.DEAD_LETTERS, StreamName.DEAD_LETTERS),
        ((StreamName.RUNS, StreamName.WORKFLOWS), StreamName.WORKFLOWS, StreamName.RUNS),
        (tuple(StreamName), StreamName.WORKFLOWS, StreamName.DEAD_LETTERS),
    ],
)
def test_whatever_streams_there_are_one_says_whether_the_source_is_up_and_one_brings_dead_letters(
    declared: tuple[StreamName, ...], main: StreamName, dead_letters: StreamName
) -> None:
    platform = replace(SMALL, streams=streams(*declared))
    assert (platform.main, platform.reads(StreamName.DEAD_LETTERS)) == (main, dead_letters)
    assert all(platform.reads(name) in declared for name in StreamName)


@pytest.mark.parametrize(
    ("declared", "problem"),
    [
        ((), "no stream of workflows, runs or dead letters"),
        ((StreamName.QUOTA,), "no stream of workflows, runs or dead letters"),
        ((StreamName.RUNS, StreamName.RUNS), "declares a stream twice"),
    ],
)
def test_a_platform_that_could_not_be_watched_cannot_be_declared(
    declared: tuple[StreamName, ...], problem: str
) -> None:
    with pytest.raises(ValueError, match=f"small.*{problem}"):
        replace(SMALL, streams=streams(*declared))


def test_alerts_on_missing_data_leave_out_the_streams_that_are_not_about_work_and_no_other() -> None:
    assert WORK == 'stream!="quota"'


def test_the_documented_event_is_received_and_a_run_has_no_page_unless_the_platform_says_otherwise() -> None:
    body = b'{"event": "run.finished", "workflow_id": "w", "run_id": "r", "result": "failure"}'
    request = WebhookRequest(method="POST", headers={}, query={}, body=body, received_at=1.8e9, base_url="")
    [run] = SMALL.receive(request).observations
    assert isinstance(run, Run)
    assert (run.id, run.result, run.state) == ("r", Result.FAILURE, State.FINISHED)
    assert SMALL.run_url(None, run, None) is None


async def test_runs_that_webhooks_name_are_left_to_the_sweeps_by_a_client_that_cannot_read_one() -> None:
    known: Any = MemoryKnown()
    assert [page async for page in SmallClient().complete([RunKey(run_id="r")], known, 0.0)] == []
