"""Names, labels and units of every metric there is."""

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from exporter.model.catalogue import CATALOGUE, Metric
from exporter.view.exposition import Counter, Gauge, Histogram, Registry

KINDS = {"gauge": Gauge, "counter": Counter, "histogram": Histogram}


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.name)
def test_what_is_of_a_source_says_the_platform_first(metric: Metric) -> None:
    assert metric.labels[:2] == ("platform", "source")


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.name)
def test_a_name_that_ends_in_a_unit_declares_it(metric: Metric) -> None:
    family = KINDS[metric.type](metric)
    series = tuple("x" for _ in metric.labels)
    if isinstance(family, Gauge):
        family.set(series, 1.0)
    else:
        family.touch(series)
    registry = Registry([family])
    text = b"".join(registry.render(openmetrics=True)).decode() + "# EOF\n"
    [read] = parse_openmetrics(text)  # type: ignore[no-untyped-call]
    word = metric.family.rpartition("_")[2]
    counts = {"seconds", "bytes", "ratio", "tokens", "items", "operations", "credits", "runs"}
    assert read.unit == (word if word in counts else "")
    assert b"# UNIT" not in b"".join(registry.render(openmetrics=False)), "the text format has none"
