"""The exporter's own series follow the config: those of a source that is gone, or that changed, go with it."""

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from exporter.view.own import OwnMetrics

A, B = ("make", "a"), ("qlik", "b")


@pytest.fixture
def own() -> OwnMetrics:
    own = OwnMetrics()
    for source in (A, B):
        for metric in (own.sweep_success, own.data_complete):
            metric.labels(*source, "runs").set(1)
        own.sweep_duration.labels(*source, "runs").observe(1)
        own.sweep_errors.labels(*source, "runs", "auth").inc()
        own.api_requests.labels(*source, "GET /x", "200").inc(3)
        own.api_throttled.labels(*source, "budget").inc()
        own.webhook_events.labels(*source, "accepted").inc(5)
        own.webhook_delay.labels(*source).observe(1)
        own.webhook_reliability.labels(*source).set(1)
        own.poll_slowdown.labels(*source).set(1)
    return own


def sources(own: OwnMetrics, *, webhooks: bool | None = None) -> set[tuple[str | None, str]]:
    return {
        (sample.labels.get("platform"), sample.labels["source"])
        for family in own.registry.collect()
        for sample in family.samples
        if "source" in sample.labels and (webhooks is None or ("_webhook_" in sample.name) is webhooks)
    }


@pytest.mark.parametrize(
    ("kept", "left"),
    [
        ({A, B}, {A, B}),
        ({A}, {A}),  # one removed
        ({A, ("qlik", "renamed")}, {A}),
        ({A, ("etlworks", "b")}, {A}),  # another platform under the same name
        (set(), set()),
    ],
)
def test_only_sources_that_stay_as_they_are_keep_their_totals(
    own: OwnMetrics, kept: set[tuple[str, str]], left: set[tuple[str, str]]
) -> None:
    own.forget_sources(kept, receiving={"a", "b", "renamed"})
    assert sources(own) == left
    value = own.registry.get_sample_value
    total = value("automation_exporter_api_requests_total", {**labelled(A), "endpoint": "GET /x", "code": "200"})
    assert total == (3.0 if A in left else None)


def test_a_source_whose_webhook_was_turned_off_keeps_the_rest(own: OwnMetrics) -> None:
    own.forget_sources({A, B}, receiving={"a"})
    assert sources(own, webhooks=True) == {A}
    assert sources(own, webhooks=False) == {A, B}


def test_what_is_of_a_source_says_the_platform_first(own: OwnMetrics) -> None:
    labels = [getattr(collector, "_labelnames", ()) for collector in own.registry._collector_to_names]
    of_sources = [names for names in labels if "source" in names]
    assert len(of_sources) > 8
    assert {tuple(names[:2]) for names in of_sources} == {("platform", "source")}


def test_a_name_that_ends_in_a_unit_declares_it(own: OwnMetrics) -> None:
    text = own.render(openmetrics=True).decode() + "# EOF\n"
    units = {family.name: family.unit for family in parse_openmetrics(text)}  # type: ignore[no-untyped-call]
    assert units["automation_exporter_sweep_duration_seconds"] == "seconds"
    assert units["automation_exporter_api_throttled_seconds"] == "seconds", "a counter's unit is before its _total"
    assert units["automation_exporter_webhook_reliability_ratio"] == "ratio"
    assert units["process_resident_memory_bytes"] == "bytes", "what the libraries bring is no exception"
    assert units["automation_exporter_sweep_errors"] == ""
    endings = {name: name.rpartition("_")[2] for name in units}
    counted = {name: end for name, end in endings.items() if end in ("seconds", "bytes", "ratio")}
    assert counted == {name: units[name] for name in counted}
    assert b"# UNIT" not in own.render(openmetrics=False)


def labelled(source: tuple[str, str]) -> dict[str, str]:
    return {"platform": source[0], "source": source[1]}
