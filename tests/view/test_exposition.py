"""Our text beside prometheus-client's, of the same content and read by the same parsers; then how it is sent."""

import asyncio
import gzip
import itertools
import math
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import prometheus_client
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.exposition import generate_latest as text_of
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_of
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from exporter.model.catalogue import Metric
from exporter.view.exposition import (
    EOF,
    LINES_PER_CHUNK,
    Counter,
    Exemplar,
    Family,
    Gauge,
    Histogram,
    Labels,
    Registry,
)
from exporter.web.formats import OPENMETRICS, TEXT, respond, wants_openmetrics
from tests.servers import PATIENCE_SECONDS, promtool_check_metrics, real

NAMES = ("source", "workflow_id")
BUCKETS = (0.5, 1.0, 30.0, 3600.0, 1e6)
GAUGE = Metric(name="t_active", help="Active now.", type="gauge", labels=NAMES)
COUNTER = Metric(name="t_runs_total", help="Runs so far.", type="counter", labels=NAMES, exemplars=True)
HISTOGRAM = Metric(
    name="t_run_seconds", help="How long.", type="histogram", labels=NAMES, buckets=BUCKETS, exemplars=True
)

# Any text UTF-8 can carry; the others have a test of their own.
TEXTS = st.text(alphabet=st.characters(codec="utf-8"), max_size=12)
LABELS = st.tuples(TEXTS, TEXTS)
TOTALS = st.floats(min_value=0, allow_nan=False)
TRACE = {"trace_id": "0af7651916cd43dd8448eb211c80319c", "span_id": "b7ad6b7169203331"}

Sample = tuple[str, tuple[tuple[str, str], ...], str, str]
Content = dict[tuple[str, str, str], list[Sample]]


def render(*families: Family, openmetrics: bool = False) -> bytes:
    return b"".join(Registry(families).render(openmetrics=openmetrics))


def read(text: bytes, *, openmetrics: bool) -> Content:
    """What a parser makes of a text: samples in any order, values told apart to the last bit, NaN equal to itself."""
    parse = parse_openmetrics if openmetrics else parse_text
    content: Content = {}
    for family in parse(text.decode()):
        samples = [
            (s.name, tuple(sorted(s.labels.items())), repr(float(s.value)), exemplar_of(s))
            for s in family.samples
            if not s.name.endswith("_created")
        ]
        if samples:
            content[family.name, family.type, family.documentation] = sorted(samples)
    return content


def exemplar_of(sample: Any) -> str:
    return f"{sorted(sample.exemplar.labels.items())} {float(sample.exemplar.value)!r}" if sample.exemplar else ""


def check(ours: Family, theirs: prometheus_client.CollectorRegistry) -> None:
    """The same content in both formats."""
    assert read(render(ours), openmetrics=False) == read(text_of(theirs), openmetrics=False)
    text = render(ours, openmetrics=True) + EOF
    assert read(text, openmetrics=True) == read(openmetrics_of(theirs), openmetrics=True)  # type: ignore[no-untyped-call]


# --- The same content as prometheus-client -------------------------------------------------------------------------


@given(st.dictionaries(LABELS, st.floats(), max_size=8))
def test_gauges_with_any_label_and_any_float_read_like_the_official_clients(values: dict[Labels, float]) -> None:
    ours = Gauge(GAUGE)
    registry = prometheus_client.CollectorRegistry()
    theirs = prometheus_client.Gauge(GAUGE.name, GAUGE.help, NAMES, registry=registry)
    for labels, value in values.items():
        ours.set(labels, value)
        theirs.labels(*labels).set(value)
    check(ours, registry)


@given(st.lists(st.tuples(LABELS, TOTALS, st.booleans()), max_size=12))
def test_counters_read_like_the_official_clients(events: list[tuple[Labels, float, bool]]) -> None:
    ours = Counter(COUNTER)
    registry = prometheus_client.CollectorRegistry()
    theirs = prometheus_client.Counter(COUNTER.name, COUNTER.help, NAMES, registry=registry)
    for labels, value, traced in events:
        ours.add(labels, value)
        theirs.labels(*labels).inc(value, TRACE if traced else None)
        if traced:
            ours.exemplar(labels, Exemplar(labels=TRACE, value=value, timestamp=1.7e9))
    check(ours, registry)


@given(st.lists(st.tuples(LABELS, st.sampled_from(BUCKETS) | TOTALS, st.booleans()), max_size=12))
def test_histograms_read_like_the_official_clients(events: list[tuple[Labels, float, bool]]) -> None:
    ours = Histogram(HISTOGRAM)
    registry = prometheus_client.CollectorRegistry()
    theirs = prometheus_client.Histogram(HISTOGRAM.name, HISTOGRAM.help, NAMES, buckets=BUCKETS, registry=registry)
    for labels, value, traced in events:
        ours.observe(labels, value)
        theirs.labels(*labels).observe(value, TRACE if traced else None)
        if traced:
            bucket = sum(bound < value for bound in BUCKETS)
            ours.exemplar(labels, bucket, Exemplar(labels=TRACE, value=value, timestamp=1.7e9))
    check(ours, registry)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9))))
def test_tallied_buckets_are_the_observations_they_stand_for(tallies: list[tuple[int, int]]) -> None:
    observed, added, loaded = Histogram(HISTOGRAM), Histogram(HISTOGRAM), Histogram(HISTOGRAM)
    labels = ("make-eu", "7")
    counts, total = [0.0] * 6, 0.0
    inside = (0.25, 1.0, 2.0, 300.0, 4000.0, 2e6)
    for bucket, count in tallies:
        for _ in range(count):
            observed.observe(labels, inside[bucket])
        added.add(labels, bucket, count, sum=count * inside[bucket])
        counts[bucket] += count
        total += count * inside[bucket]
    for histogram in (observed, added, loaded):
        histogram.touch(labels)
    loaded.load(labels, [1e9] * 6, 1e9)
    loaded.load(labels, counts, total)
    assert render(observed) == render(added) == render(loaded)


# --- Series that come and go ---------------------------------------------------------------------------------------

FEW = st.tuples(st.sampled_from("ab"), st.sampled_from("123"))
STEPS = st.lists(
    st.tuples(st.just("set"), FEW, st.integers(0, 9))
    | st.tuples(st.sampled_from(["touch", "remove", "workflow_id", "source", "clear"]), FEW, st.just(0)),
    max_size=40,
)


def follow(steps: list[tuple[str, Labels, int]], family: Counter | Histogram) -> dict[Labels, int | None]:
    """Do the steps to a family and to a plain dict, where None is a series that was only touched."""
    model: dict[Labels, int | None] = {}
    for step, labels, value in steps:
        match step:
            case "set":
                model[labels] = value
                exemplar = Exemplar(labels={"n": f"{value}"}, value=value, timestamp=1.0)
                if isinstance(family, Histogram):
                    family.load(labels, [value, 0, 0, 0, 0, 0], value)
                    family.exemplar(labels, 0, exemplar)
                else:
                    family.set(labels, value)
                    family.exemplar(labels, exemplar)
            case "touch":
                model.setdefault(labels, None)
                family.touch(labels)
            case "remove":
                model.pop(labels, None)
                family.remove(labels)
            case "clear":
                model.clear()
                family.clear()
            case name:
                at = NAMES.index(name)
                wanted = [known for known in model if known[at] == labels[at]]
                assert family.remove_matching(**{name: labels[at]}) == len(wanted)
                for known in wanted:
                    del model[known]
    return model


@given(STEPS)
def test_after_any_history_exactly_the_living_series_are_exposed(steps: list[tuple[str, Labels, int]]) -> None:
    for family, value_line, exemplar_line in (
        (Counter(COUNTER), "t_runs_total", "t_runs_total"),
        (Histogram(HISTOGRAM), "t_run_seconds_sum", "t_run_seconds_bucket 0.5"),
    ):
        model = follow(steps, family)
        content = read(render(family, openmetrics=True) + EOF, openmetrics=True)
        values, exemplars, lines = {}, {}, 0
        for name, pairs, value, exemplar in itertools.chain.from_iterable(content.values()):
            lines += 1
            pairs_by_name = dict(pairs)
            labels = pairs_by_name["source"], pairs_by_name["workflow_id"]
            if name == value_line:
                values[labels] = float(value)
            if exemplar:
                assert exemplar_line == " ".join([name, *filter(None, [pairs_by_name.get("le")])])
                exemplars[labels] = exemplar
        assert values == {labels: value or 0 for labels, value in model.items()}
        assert exemplars == {
            labels: f"{[('n', str(value))]} {float(value)!r}" for labels, value in model.items() if value is not None
        }
        assert len(family) == lines == len(model) * (1 if isinstance(family, Counter) else len(BUCKETS) + 3)
        assert {labels for labels in itertools.product("ab", "123") if labels in family} == model.keys()


@given(STEPS)
def test_the_same_calls_give_the_same_text(steps: list[tuple[str, Labels, int]]) -> None:
    one, other = Histogram(HISTOGRAM), Histogram(HISTOGRAM)
    follow(steps, one)
    follow(steps, other)
    assert render(one, openmetrics=True) == render(other, openmetrics=True)


def test_series_stand_in_the_order_they_appeared_in() -> None:
    gauge = Gauge(GAUGE)
    for workflow in ("9", "1", "5"):
        gauge.set(("make-eu", workflow), 1)
    gauge.set(("make-eu", "9"), 2)
    assert [line.split(b'"')[3] for line in render(gauge).splitlines()[2:]] == [b"9", b"1", b"5"]


def test_dropping_a_workflow_leaves_its_namesake_of_another_source_alone() -> None:
    gauge, counter = Gauge(GAUGE), Counter(COUNTER)
    without = Gauge(Metric(name="t_up", help="Up.", type="gauge", labels=("source",)))
    without.set(("make-eu",), 1)
    for source in ("make-eu", "make-us"):
        gauge.set((source, "7"), 1)
        counter.touch((source, "7"))
    registry = Registry([gauge, counter, without])
    assert registry.remove_matching(source="make-eu", workflow_id="7") == 2
    assert registry.series() == 3
    assert gauge.get(("make-us", "7")) == 1
    assert gauge.get(("make-eu", "7")) is None


def test_workflows_that_come_and_go_leave_no_memory_behind() -> None:
    gauge = Gauge(GAUGE)

    def come_and_go(first: int) -> None:
        for number in range(first, first + 5_000):
            gauge.set(("make-eu", f"{number}"), 1)
            gauge.remove(("make-eu", f"{number}"))

    come_and_go(0)
    tracemalloc.start()
    try:
        come_and_go(5_000)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 50_000


def test_a_counter_is_born_at_zero_and_touching_it_again_changes_nothing() -> None:
    counter = Counter(COUNTER)
    counter.touch(("make-eu", "7"))
    assert counter.get(("make-eu", "7")) == 0
    counter.add(("make-eu", "7"), 3)
    counter.touch(("make-eu", "7"))
    assert counter.get(("make-eu", "7")) == 3


@pytest.mark.parametrize("value", [-1, -0.001, math.nan, -math.inf])
def test_a_total_refuses_what_would_make_it_fall_and_no_series_appears(value: float) -> None:
    labels = ("make-eu", "7")
    counter, histogram = Counter(COUNTER), Histogram(HISTOGRAM)
    refused: list[Callable[[], None]] = [
        lambda: counter.add(labels, value),
        lambda: counter.set(labels, value),
        lambda: histogram.observe(labels, value),
        lambda: histogram.add(labels, 0, value, sum=1),
        lambda: histogram.add(labels, 0, 1, sum=value),
        lambda: histogram.load(labels, [0, 0, 0, 0, 0, value], 1),
    ]
    for call in refused:
        with pytest.raises(ValueError, match="no part of a total"):
            call()
    assert labels not in counter
    assert labels not in histogram


@pytest.mark.parametrize("bucket", [-1, len(BUCKETS) + 1])
def test_a_bucket_that_does_not_exist_is_an_error(bucket: int) -> None:
    histogram = Histogram(HISTOGRAM)
    with pytest.raises(IndexError):
        histogram.add(("make-eu", "7"), bucket, sum=1)
    assert len(histogram) == 0


def test_labels_of_the_wrong_number_are_an_error() -> None:
    with pytest.raises(ValueError, match="t_active has the labels"):
        Gauge(GAUGE).set(("make-eu",), 1)


# --- The text itself -----------------------------------------------------------------------------------------------


def test_a_counter_in_both_formats_to_the_letter() -> None:
    counter = Counter(Metric(name="c_total", help='a "b" \\ c\nd', type="counter", labels=("x", "a"), exemplars=True))
    counter.set(('q"\\\n', "ü"), 2)
    counter.exemplar(('q"\\\n', "ü"), Exemplar(labels=TRACE, value=1.5, timestamp=1700000000.25))
    line = b'c_total{x="q\\"\\\\\\n",a="\xc3\xbc"} 2.0'
    assert render(counter) == b'# HELP c_total a "b" \\\\ c\\nd\n# TYPE c_total counter\n' + line + b"\n"
    exemplar = b' # {trace_id="0af7651916cd43dd8448eb211c80319c",span_id="b7ad6b7169203331"} 1.5 1700000000.25\n'
    header = b'# HELP c a \\"b\\" \\\\ c\\nd\n# TYPE c counter\n'
    assert render(counter, openmetrics=True) == header + line + exemplar


def test_a_histogram_to_the_letter() -> None:
    histogram = Histogram(Metric(name="h", help="H.", type="histogram", labels=("a",), buckets=(0.5, 1, 1e6)))
    histogram.observe(("b",), 1)
    histogram.observe(("b",), 2e6)
    text = b"""# HELP h H.
# TYPE h histogram
h_bucket{a="b",le="0.5"} 0.0
h_bucket{a="b",le="1.0"} 1.0
h_bucket{a="b",le="1e+06"} 1.0
h_bucket{a="b",le="+Inf"} 2.0
h_count{a="b"} 2.0
h_sum{a="b"} 2000001.0
"""
    assert render(histogram) == render(histogram, openmetrics=True) == text


def test_metrics_without_labels_have_no_braces() -> None:
    gauge = Gauge(Metric(name="g", help="G.", type="gauge", labels=()))
    gauge.set((), math.nan)
    histogram = Histogram(Metric(name="h", help="H.", type="histogram", labels=(), buckets=(1,)))
    histogram.touch(())
    lines = [line for line in render(gauge, histogram).decode().splitlines() if not line.startswith("#")]
    assert lines == ["g NaN", 'h_bucket{le="1.0"} 0.0', 'h_bucket{le="+Inf"} 0.0', "h_count 0.0", "h_sum 0.0"]


def test_half_a_surrogate_pair_shows_as_its_escape() -> None:
    gauge = Gauge(GAUGE)
    gauge.set(("\ud83d", "7"), 1)
    assert b'{source="\\\\ud83d",' in render(gauge)


def test_a_family_without_series_says_nothing_not_even_help() -> None:
    gauge = Gauge(GAUGE)
    gauge.set(("make-eu", "7"), 1)
    gauge.remove(("make-eu", "7"))
    gauge.remove(("make-eu", "7"))
    assert render(gauge, Counter(COUNTER), Histogram(HISTOGRAM), openmetrics=True) == b""


def test_families_stand_in_the_registrys_order() -> None:
    gauge, counter, histogram = Gauge(GAUGE), Counter(COUNTER), Histogram(HISTOGRAM)
    gauge.set(("a", "1"), 1)
    counter.touch(("a", "1"))
    histogram.touch(("a", "1"))
    types = [
        line.split()[2] for line in render(histogram, gauge, counter).decode().splitlines() if line.startswith("# TYPE")
    ]
    assert types == ["t_run_seconds", "t_active", "t_runs_total"]


@pytest.mark.parametrize("openmetrics", [False, True])
def test_chunks_are_whole_lines_and_no_histogram_straddles_two(openmetrics: bool) -> None:
    histogram = Histogram(HISTOGRAM)
    width = len(BUCKETS) + 3
    for number in range(3 * LINES_PER_CHUNK // width):
        histogram.observe(("make-eu", f"{number}"), number)
    chunks = list(Registry([histogram]).render(openmetrics=openmetrics))
    assert len(chunks) > 2
    assert b"".join(chunks).count(b"#") == (3 if openmetrics else 2), "HELP, TYPE and UNIT"
    for chunk in chunks:
        lines = [line for line in chunk.decode().splitlines(keepends=True) if not line.startswith("#")]
        assert len(lines) <= LINES_PER_CHUNK
        assert len(lines) % width == 0
        assert 'le="0.5"' in lines[0]
        assert lines[-1].startswith("t_run_seconds_sum{")
        assert lines[-1].endswith("\n")


def test_small_families_are_sent_together_also_after_a_large_one() -> None:
    families = [Gauge(Metric(name=f"g{n}", help="G.", type="gauge", labels=("n",))) for n in range(61)]
    for number in range(LINES_PER_CHUNK):
        families[0].set((f"{number}",), 1)
    for gauge in families[1:]:
        gauge.set(("1",), 1)
    assert len(list(Registry(families).render(openmetrics=False))) == 2


@pytest.mark.parametrize("openmetrics", [False, True])
def test_a_scrape_shows_the_moment_it_began_whatever_happens_meanwhile(openmetrics: bool) -> None:
    counter, histogram = Counter(COUNTER), Histogram(HISTOGRAM)
    for number in range(2 * LINES_PER_CHUNK):
        counter.set(("make-eu", f"{number}"), 1)
        histogram.observe(("make-eu", f"{number}"), 1)
    registry = Registry([counter, histogram])
    before = b"".join(registry.render(openmetrics=openmetrics))
    scrape = registry.render(openmetrics=openmetrics)
    chunks = [next(scrape)]
    counter.remove(("make-eu", "0"))
    counter.add(("make-eu", "3999"), 1)
    counter.exemplar(("make-eu", "3999"), Exemplar(labels=TRACE, value=1, timestamp=1.0))
    counter.touch(("make-eu", "new"))
    histogram.observe(("make-eu", "3999"), 1)
    histogram.remove_matching(source="make-eu", workflow_id="3998")
    chunks += scrape
    assert b"".join(chunks) == before
    assert b"".join(registry.render(openmetrics=openmetrics)) != before


@real("promtool")
def test_promtool_reads_the_text_without_complaint() -> None:
    gauge = Gauge(GAUGE)
    gauge.set(("make-eu", 'ü"\\\n'), -math.inf)
    counter, histogram = Counter(COUNTER), Histogram(HISTOGRAM)
    counter.add(("make-eu", "7"), 1e300)
    histogram.observe(("make-eu", "7"), 1e-9)
    assert promtool_check_metrics(render(gauge, counter, histogram)) == []


# --- What cannot be exposed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"name": "runs", "type": "counter"}, "_total"),
        ({"name": "runs_total"}, "_total"),
        ({"help": ""}, "help"),
        ({"buckets": (1.0,)}, "buckets"),
        ({"type": "histogram"}, "buckets"),
        ({"type": "histogram", "buckets": (2.0, 1.0)}, "rise"),
        ({"type": "histogram", "buckets": (1.0, math.inf)}, "rise"),
        ({"type": "histogram", "buckets": (1.0,), "labels": ("le",)}, "le"),
        ({"labels": ("a", "a")}, "differ"),
        ({"exemplars": True}, "exemplars"),
    ],
)
def test_a_row_that_could_not_be_exposed_is_refused(row: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Metric(**{"name": "g", "help": "G.", "type": "gauge", "labels": ()} | row)


@pytest.mark.parametrize("other", ["t_runs", "t_runs_total", "t_run_seconds_sum"])
def test_two_metrics_never_share_a_name_in_either_format(other: str) -> None:
    kind = "counter" if other.endswith("_total") else "gauge"
    clash = Metric(name=other, help="O.", type=kind, labels=())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="another metric"):
        Registry([Counter(COUNTER), Histogram(HISTOGRAM), Counter(clash) if kind == "counter" else Gauge(clash)])


def test_exemplars_that_openmetrics_forbids_are_refused() -> None:
    with pytest.raises(ValueError, match="129 characters"):
        Exemplar(labels={"a": "b" * 128}, value=1, timestamp=1.0)
    with pytest.raises(ValueError, match="timestamp"):
        Exemplar(labels={}, value=1, timestamp=math.nan)


def test_exemplars_need_a_series_and_a_metric_that_declares_them() -> None:
    exemplar = Exemplar(labels=TRACE, value=1, timestamp=1.0)
    with pytest.raises(KeyError):
        Counter(COUNTER).exemplar(("make-eu", "7"), exemplar)
    plain = Counter(Metric(name="c_total", help="C.", type="counter", labels=()))
    plain.touch(())
    with pytest.raises(ValueError, match="without exemplars"):
        plain.exemplar((), exemplar)


# --- Over HTTP -----------------------------------------------------------------------------------------------------

Connect = Callable[[Callable[[], Iterator[bytes]]], Awaitable[TestClient[web.Request, web.Application]]]
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)


@pytest.fixture
def connect(aiohttp_client: Any) -> Connect:
    """A client, without decompression of its own, of a server that answers with these chunks."""

    async def start(chunks: Callable[[], Iterator[bytes]]) -> TestClient[web.Request, web.Application]:
        async def metrics(request: web.Request) -> web.StreamResponse:
            return await respond(request, chunks(), openmetrics=wants_openmetrics(request))

        app = web.Application()
        app.router.add_get("/metrics", metrics)
        client: TestClient[web.Request, web.Application] = await aiohttp_client(app, auto_decompress=False)
        return client

    return start


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (PROMETHEUS, OPENMETRICS),
        ("application/openmetrics-text", OPENMETRICS),
        ('text/plain;q=0.05, Application/OpenMetrics-Text; Version="1.0.0"; q=0.1', OPENMETRICS),
        ("application/openmetrics-text;version=1.0.0;q=0", TEXT),
        ("application/openmetrics-text;version=0.0.1", TEXT),
        ("application/openmetrics-text;q=often", TEXT),
        ("text/plain;version=0.0.4", TEXT),
        ("*/*", TEXT),
        ("", TEXT),
    ],
)
async def test_the_format_is_the_one_asked_for(accept: str, expected: str, connect: Connect) -> None:
    client = await connect(lambda: iter([b"x 1\n"]))
    async with client.get("/metrics", headers={"Accept": accept, "Accept-Encoding": "identity"}) as response:
        assert response.headers["Content-Type"] == expected
        assert await response.read() == b"x 1\n"


async def test_several_accept_headers_are_one_list(connect: Connect) -> None:
    client = await connect(lambda: iter([b"x 1\n"]))
    headers = [("Accept", "text/plain"), ("Accept", "application/openmetrics-text")]
    async with client.get("/metrics", headers=headers) as response:
        assert response.headers["Content-Type"] == OPENMETRICS


@pytest.mark.parametrize(
    ("accepted", "compressed"),
    [("gzip", True), ("deflate, GZIP;q=0.5", True), ("gzip;q=0", False), ("br", False), ("identity", False)],
)
async def test_gzip_is_used_if_accepted_and_gives_back_the_same_text(
    accepted: str, compressed: bool, connect: Connect
) -> None:
    gauge = Gauge(GAUGE)
    for number in range(2 * LINES_PER_CHUNK):
        gauge.set(("make-eu", f"{number}"), number)
    client = await connect(lambda: Registry([gauge]).render(openmetrics=False))
    async with client.get("/metrics", headers={"Accept-Encoding": accepted}) as response:
        body = await response.read()
        assert response.headers.get("Content-Encoding") == ("gzip" if compressed else None)
        assert response.headers["Vary"] == "Accept, Accept-Encoding"
    assert (gzip.decompress(body) if compressed else body) == render(gauge)
    assert (len(body) < len(render(gauge)) / 4) == compressed


@pytest.mark.parametrize("accepted", ["gzip", "identity"])
async def test_head_gets_the_headers_of_get_and_renders_nothing(accepted: str, connect: Connect) -> None:
    rendered = 0

    def chunks() -> Iterator[bytes]:
        nonlocal rendered
        rendered += 1
        yield b"x 1\n"

    client = await connect(chunks)
    headers = {"Accept": PROMETHEUS, "Accept-Encoding": accepted}
    async with client.head("/metrics", headers=headers) as head, client.get("/metrics", headers=headers) as get:
        assert await head.read() == b""
        assert rendered == 1
        assert head.status == get.status == 200
        for name in ("Content-Type", "Content-Encoding", "Vary"):
            assert head.headers.get(name) == get.headers.get(name)


async def test_others_get_their_turn_between_two_chunks(connect: Connect) -> None:
    turns = 0
    seen = []

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            seen.append(turns)
            yield b"x 1\n"

    client = await connect(chunks)
    task = asyncio.create_task(others())
    async with client.get("/metrics") as response:
        await response.read()
    task.cancel()
    assert len(seen) == 20
    assert all(earlier < later for earlier, later in itertools.pairwise(seen))


async def test_a_scraper_that_leaves_ends_the_rendering(connect: Connect) -> None:
    ended = asyncio.Event()

    def chunks() -> Iterator[bytes]:
        try:
            yield from itertools.repeat(b"x 1\n" * 10_000)
        finally:
            ended.set()

    client = await connect(chunks)
    response = await client.get("/metrics", headers={"Accept-Encoding": "identity"})
    await response.content.readexactly(1_000)
    response.close()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await ended.wait()
