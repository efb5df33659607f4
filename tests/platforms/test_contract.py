"""One set of expectations for every platform, so that knowing one is knowing them all."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.model import FAILED, DeadLetter, Queue, Result, Run, State, Usage
from exporter.platform import MalformedEvent, Page, StreamName, WebhookEvents, WebhookRequest
from exporter.platforms import PLATFORMS
from exporter.simulator import HOOK_SECRET
from exporter.wire.errors import ErrorKind
from tests.e2e.deployment import Deployment, deployment
from tests.e2e.test_truth import ROOMY

NAMES = list(PLATFORMS)
#: Whatever a credential or a person is called in the simulators must never reach an observation.
SECRETS = ("demo-token", "demo-secret", "demo-password", HOOK_SECRET, "executionToken", "@example")


async def pages(made: Deployment, platform: str, stream: str) -> list[Page]:
    """What one sweep yields, stored nowhere."""
    poller = made.service.pollers[platform]

    async def collect() -> list[Page]:
        world, now = made.service.world.sources[platform], poller.source.api.platform_now()
        return [page async for page in poller.source.client.sweep(StreamName(stream), world, now)]

    return await made.drive(collect())


@pytest.mark.parametrize("name", NAMES)
def test_a_declaration_is_complete_and_consistent(name: str) -> None:
    platform = PLATFORMS[name]
    streams = [stream.name for stream in platform.streams]
    assert platform.name == name
    assert platform.main in streams
    assert any(stream.opening for stream in platform.streams)
    assert Result.SUCCESS in platform.results
    assert set(platform.results) & FAILED
    assert platform.error_classes
    assert platform.resolved_by
    assert platform.measures <= {"operations", "transfer", "steps", "queue"}


@pytest.mark.parametrize("name", NAMES)
async def test_a_healthy_platform_is_read_without_a_fault_and_a_second_reading_teaches_nothing(
    name: str, tmp_path: Path
) -> None:
    async with deployment(tmp_path, platforms=[name], options=ROOMY) as made:
        await made.sweep()
        await made.live(300, step=30)
        await made.settle()
        poller = made.service.pollers[name]
        for stream in poller.source.platform.streams:
            report = await made.drive(poller.sweep_once(stream.name))
            assert (report.error, report.faults) == (None, [])
            told = [i for p in await pages(made, name, stream.name) for i in p.observations]
            assert report.news <= sum(isinstance(item, Queue | Usage) for item in told) + 2
        assert made.service.world.sources[name].workflows
        assert (await made.samples("automation_source_up"))[(name,)] == 1.0


@pytest.mark.parametrize("name", NAMES)
async def test_nothing_secret_or_personal_enters_an_observation(name: str, tmp_path: Path) -> None:
    async with deployment(tmp_path, platforms=[name], options=ROOMY) as made:
        await made.sweep()
        await made.live(600, step=60)
        poller = made.service.pollers[name]
        told = [str(page) for s in poller.source.platform.streams for page in await pages(made, name, s.name)]
        shown = await made.scrape() + await made.scrape("/") + await made.scrape("/api/v1/status")
        for secret in SECRETS:
            assert secret not in "".join(told)
            assert secret not in shown


@pytest.mark.parametrize("name", NAMES)
async def test_broken_items_cost_themselves_and_nothing_else(name: str, tmp_path: Path) -> None:
    broken = {"missing_fields": 0.2, "null_numbers": 0.2, "unknown_status": 0.1, "duplicates": 0.2}
    async with deployment(tmp_path, platforms=[name], options=ROOMY, faults=broken) as made:
        await made.sweep()
        await made.live(600, step=15)
        poller = made.service.pollers[name]
        for status in poller.source.streams.values():
            assert status.error is None, status
        counted, truth = await made.counted(name), made.truth(name)
        results = {workflow: sum(v for (w, _), v in truth.items() if w == workflow) for workflow, _ in truth}
        for workflow in {w for w, _ in counted}:
            assert sum(v for (w, _), v in counted.items() if w == workflow) <= results.get(workflow, 0) + 1
        assert sum(counted.values()) >= 0.5 * sum(truth.values())


@pytest.mark.parametrize("name", NAMES)
async def test_a_refused_credential_is_an_auth_failure_that_names_no_secret(name: str, tmp_path: Path) -> None:
    async with deployment(tmp_path, platforms=[name], options=ROOMY) as made:
        section = made.config.sources[name]
        fields: dict[str, Any] = {}
        for key in ("token", "password"):
            if getattr(section, key, None) is not None:
                fields[key] = type(getattr(section, key))("wrong-credential-value")
        oauth = getattr(section, "oauth", None)
        if oauth is not None:
            fields["oauth"] = oauth.model_copy(
                update={"client_secret": type(oauth.client_secret)("wrong-credential-value")}
            )
        made.config.sources[name] = section.model_copy(update=fields)
        await made.restart()
        await made.sweep("workflows", "runs")
        statuses = made.service.sources[name].streams
        assert {statuses[s].kind for s in ("runs",)} == {ErrorKind.AUTH}
        assert "wrong-credential-value" not in str(statuses)
        assert (await made.scrape("/-/ready")).count("auth") >= 1
        with pytest.raises(Exception, match="auth"):
            async for line in made.service.sources[name].client.check():
                if str(line).startswith("problem:"):
                    raise AssertionError(f"auth problem told: {line}")


@pytest.mark.parametrize("name", NAMES)
async def test_check_tells_what_works(name: str, tmp_path: Path) -> None:
    async with deployment(tmp_path, platforms=[name], options=ROOMY) as made:

        async def collect() -> list[str]:
            return [str(line) async for line in made.service.sources[name].client.check()]

        lines = await made.drive(collect())
        assert lines
        assert not [line for line in lines if line.startswith("problem:")]


@pytest.mark.parametrize("name", NAMES)
async def test_the_platforms_own_webhooks_are_understood(name: str, tmp_path: Path) -> None:
    async with deployment(tmp_path, platforms=[name], options=ROOMY, workflows=6) as made:
        await made.sweep()
        accepted = 0
        for _ in range(400):
            await made.clock.advance(30)
            accepted += await made.deliver()
            if accepted > 20:
                break
        outcomes = await made.samples("automation_exporter_webhook_events_total")
        assert accepted > 5
        assert {key[1] for key, value in outcomes.items() if value} <= {"accepted", "duplicate", "unknown_type"}
        seen = await made.samples("automation_exporter_runs_observed_total")
        woken = len(made.service.sources[name].wakes)
        assert seen[name, "webhook"] + woken > 0
        await made.sweep()
        assert all(run.state is not State.FINISHED for run in made.service.world.sources[name].open_runs.values())


@pytest.mark.parametrize("name", NAMES)
def test_garbage_from_a_sender_is_malformed_or_ignored_never_an_error(name: str) -> None:
    json = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
        max_leaves=12,
    )
    keys = st.sampled_from(
        [
            "event",
            "workflow_id",
            "run_id",
            "attempt",
            "result",
            "started_at",
            "ended_at",
            "error",
            "executionId",
            "statusUrl",
            "eventType",
            "entity",
            "entityId",
            "entityUrl",
            "specversion",
            "type",
            "id",
            "time",
            "data",
            "source",
            "status",
        ]
    )
    words = st.sampled_from(["run.finished", "run.started", "failure", "Flow.Executed", "1.0", "2026-01-01T00:00:00Z"])
    likely = st.dictionaries(keys, words | json, max_size=10)
    bodies = st.binary(max_size=200) | (json | likely | st.lists(likely, max_size=3)).map(_dumps)
    headers = st.dictionaries(
        st.sampled_from(
            [
                "content-type",
                "ce-id",
                "ce-type",
                "ce-source",
                "ce-specversion",
                "ce-time",
                "x-etl-webhook-event",
                "x-etl-webhook-event-id",
                "x-etl-webhook-id",
                "x-etl-webhook-entity-id",
                "x-etl-webhook-entity-url",
            ]
        ),
        st.sampled_from(
            [
                "application/json",
                "application/cloudevents+json",
                "application/cloudevents-batch+json",
                "Flow.Executed",
                "12",
                "com.qlik.v1.automation.run.ended",
                "",
            ]
        )
        | st.text(max_size=10),
    )

    @given(st.sampled_from(["POST", "GET"]), headers, bodies)
    @settings(max_examples=300, deadline=None)
    def receive(method: str, sent: dict[str, str], body: bytes) -> None:
        request = WebhookRequest(
            method=method, headers=sent, query={}, body=body, received_at=1.7e9, base_url="https://example.com"
        )
        try:
            events = PLATFORMS[name].receive(request)
        except MalformedEvent:
            return
        assert isinstance(events, WebhookEvents)
        assert all(isinstance(item, Run | DeadLetter) for item in events.observations)

    receive()


def _dumps(value: object) -> bytes:
    import json

    return json.dumps(value).encode("utf-8", "replace")
