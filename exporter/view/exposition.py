"""Many series in memory, and their text when Prometheus asks for it.

A scrape of 100,000 series must cost milliseconds on the event loop that also takes the webhooks, so nothing that never
changes is done twice. A series is a slot: its escaped ``name{labels} `` is built once, when it first appears, and its
value lives in a flat list. A scrape formats the values in bulk (orjson), interleaves them with those prefixes and
hands the text on in chunks of about 2,000 lines. Labels are tuples of values in the order the metric declares; a series
nobody set is absent, never 0.

``render`` shows one moment: it copies the lists of pointers when it is called, so whatever is set, added or removed
while a slow scraper still reads cannot tear a histogram or show a series twice. Nothing here is for other threads.

A removed series gives its slot to the last one of its family: removing never searches, and the same calls always give
the same order. To drop everything a workflow had, each family also keeps its series grouped by ``workflow_id``.

The formats are Prometheus' text format 0.0.4 and OpenMetrics 1.0, the latter without its end: the caller appends
``EOF`` once the text of every registry it serves is written.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf, isfinite, isnan
from typing import TypeVar

import orjson
from prometheus_client.utils import floatToGoString

from exporter.model.catalogue import Metric

T = TypeVar("T")
Labels = tuple[str, ...]

EOF = b"# EOF\n"
LINES_PER_CHUNK = 2_000
#: Smaller chunks are joined with their neighbours: sixty small families are one write to the socket, not sixty.
CHUNK_BYTES_MIN = 32_768
#: Of an exemplar's label names and values together, as OpenMetrics demands.
EXEMPLAR_CHARACTERS_MAX = 128
GROUPED_BY = "workflow_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exemplar:
    """The trace of one event a counter or a bucket counted. ValueError if OpenMetrics forbids it."""

    labels: Mapping[str, str]
    """``trace_id`` and ``span_id``"""
    value: float
    timestamp: float
    """Seconds since the epoch"""

    def __post_init__(self) -> None:
        characters = sum(len(name) + len(value) for name, value in self.labels.items())
        if characters > EXEMPLAR_CHARACTERS_MAX:
            raise ValueError(f"an exemplar's labels have {characters} characters, {EXEMPLAR_CHARACTERS_MAX} at most")
        if not isfinite(self.timestamp):
            raise ValueError("an exemplar's timestamp must be finite")

    def suffix(self) -> bytes:
        """What follows the value on its line."""
        value, timestamp = _numbers([float(self.value), float(self.timestamp)])
        return b" # {%b} %b %b" % (_pairs(self.labels.keys(), self.labels.values()), value, timestamp)


class _Family:
    """The slots all three kinds are made of: `lines` exposed and `stored` values kept for each tuple of labels."""

    def __init__(self, metric: Metric, *, lines: int = 1, stored: int = 1) -> None:
        self.metric = metric
        self._lines = lines
        self._stored = stored
        self._slots: dict[Labels, int] = {}
        self._labels: list[Labels] = []
        # Each prefix begins with the newline that ends the line before it: two pieces a line to join, not three.
        self._prefixes: list[bytes] = []
        self._values: list[float] = []
        # What follows the values in OpenMetrics; empty in a family without exemplars.
        self._suffixes: list[bytes] = []
        self._group_label = metric.labels.index(GROUPED_BY) if GROUPED_BY in metric.labels else None
        # Lists: few series each, and a dict for every workflow would be a third of a gauge's memory.
        self._groups: dict[str, list[Labels]] = {}

    def __len__(self) -> int:
        """How many lines it exposes."""
        return len(self._prefixes)

    def __contains__(self, labels: Labels) -> bool:
        return labels in self._slots

    @property
    def lines_per_series(self) -> int:
        return self._lines

    def remove(self, labels: Labels) -> bool:
        """Forget a series; False if it never was."""
        slot = self._slots.pop(labels, None)
        if slot is None:
            return False
        if self._group_label is not None:
            group = self._groups[labels[self._group_label]]
            group.remove(labels)
            if not group:
                del self._groups[labels[self._group_label]]
        _replace_by_last(self._labels, slot, 1)
        _replace_by_last(self._prefixes, slot, self._lines)
        _replace_by_last(self._values, slot, self._stored)
        if self._suffixes:
            _replace_by_last(self._suffixes, slot, self._lines)
        if slot < len(self._labels):
            self._slots[self._labels[slot]] = slot
        return True

    def remove_matching(self, **wanted: str) -> int:
        """Forget the series whose labels have all these values, and say how many.

        Naming `workflow_id` looks at that workflow's series only, anything else at all of them. A family that lacks one
        of the labels has nothing to forget.
        """
        names = self.metric.labels
        if not wanted.keys() <= set(names):
            return 0
        candidates = self._groups.get(wanted[GROUPED_BY], []) if GROUPED_BY in wanted else self._slots
        values = [(names.index(name), value) for name, value in wanted.items()]
        found = [labels for labels in candidates if all(labels[at] == value for at, value in values)]
        for labels in found:
            self.remove(labels)
        return len(found)

    def clear(self) -> None:
        """Forget every series."""
        for kept in (self._slots, self._labels, self._prefixes, self._values, self._suffixes, self._groups):
            kept.clear()

    def render(self, *, openmetrics: bool, hidden: Collection[str] = ()) -> Iterator[bytes]:
        """The text of this moment, in chunks of whole lines; nothing at all, not even HELP, without series.

        Series of the ``hidden`` sources are left out.
        """
        prefixes, values = self._prefixes.copy(), self._values.copy()
        suffixes = self._suffixes.copy() if openmetrics else []
        if hidden and "source" in self.metric.labels:
            at = self.metric.labels.index("source")
            shown = [slot for slot, labels in enumerate(self._labels) if labels[at] not in hidden]
            prefixes, suffixes = _slots(prefixes, shown, self._lines), _slots(suffixes, shown, self._lines)
            values = _slots(values, shown, self._stored)
        if not prefixes:
            return iter(())
        return self._chunks(self._header(openmetrics), prefixes, values, suffixes)

    def _slot(self, labels: Labels) -> int:
        """The slot of these labels, born at 0 if they are new."""
        slot = self._slots.get(labels)
        if slot is not None:
            return slot
        if len(labels) != len(self.metric.labels):
            raise ValueError(f"{self.metric.name} has the labels {self.metric.labels}, not {len(labels)} of them")
        names: Labels = self.metric.labels
        values = labels
        if self.metric.sparse:
            names = tuple(name for name, value in zip(names, labels, strict=True) if value)
            values = tuple(value for value in labels if value)
        self._prefixes += self._new_prefixes(_pairs(names, values))
        slot = self._slots[labels] = len(self._labels)
        self._labels.append(labels)
        self._values += [0.0] * self._stored
        if self.metric.exemplars:
            self._suffixes += [b""] * self._lines
        if self._group_label is not None:
            self._groups.setdefault(labels[self._group_label], []).append(labels)
        return slot

    def _new_prefixes(self, pairs: bytes) -> list[bytes]:
        return [_prefix(self.metric.name, pairs)]

    def _exposed(self, stored: list[float]) -> list[float]:
        """One number a line, from what is kept of the same series."""
        return stored

    def _set_suffix(self, labels: Labels, line: int, exemplar: Exemplar) -> None:
        if not self.metric.exemplars:
            raise ValueError(f"{self.metric.name} is declared without exemplars")
        self._suffixes[self._slots[labels] * self._lines + line] = exemplar.suffix()

    def _header(self, openmetrics: bool) -> bytes:
        text = self.metric.help.replace("\\", r"\\").replace("\n", r"\n")
        name = self.metric.name
        if openmetrics:
            text = text.replace('"', r"\"")
            name = self.metric.family
        unit = f"# UNIT {name} {self.metric.unit}\n" if openmetrics and self.metric.unit else ""
        return f"# HELP {name} {text}\n# TYPE {name} {self.metric.type}\n{unit}".encode()

    def _chunks(
        self, header: bytes, prefixes: list[bytes], values: list[float], suffixes: list[bytes]
    ) -> Iterator[bytes]:
        series = max(1, LINES_PER_CHUNK // self._lines)
        for first in range(0, len(prefixes) // self._lines, series):
            lines = slice(first * self._lines, (first + series) * self._lines)
            chunk_prefixes = prefixes[lines]
            numbers = _numbers(self._exposed(values[first * self._stored : (first + series) * self._stored]))
            pieces = 3 if suffixes else 2
            chunk = [b""] * (pieces * len(chunk_prefixes))
            chunk[0::pieces] = chunk_prefixes
            chunk[1::pieces] = numbers
            if suffixes:
                chunk[2::pieces] = suffixes[lines]
            chunk[0] = header + chunk[0][1:]
            chunk.append(b"\n")
            header = b""
            yield b"".join(chunk)


class Gauge(_Family):
    """Values that go up and down; any float will do."""

    def set(self, labels: Labels, value: float) -> None:
        self._values[self._slot(labels)] = float(value)

    def get(self, labels: Labels) -> float | None:
        slot = self._slots.get(labels)
        return None if slot is None else self._values[slot]


class Counter(_Family):
    """Totals that only rise; a negative number or NaN is a ValueError."""

    def set(self, labels: Labels, total: float) -> None:
        """What a durable tally says, whatever was there before."""
        self._values[self._slot(labels)] = _not_negative(total)

    def add(self, labels: Labels, delta: float) -> None:
        if not delta >= 0:
            raise _below_zero(delta)
        self._values[self._slot(labels)] += delta

    def touch(self, labels: Labels) -> None:
        """Exist, at 0 if new: so that the first event is an increase."""
        self._slot(labels)

    def get(self, labels: Labels) -> float | None:
        slot = self._slots.get(labels)
        return None if slot is None else self._values[slot]

    def exemplar(self, labels: Labels, exemplar: Exemplar) -> None:
        """Show this one from now on; KeyError without the series."""
        self._set_suffix(labels, 0, exemplar)


class Histogram(_Family):
    """Observations by bucket: index 0 is the lowest, the one after the last bound is +Inf.

    Counts are kept per bucket and cumulated when rendered, so that an observation touches two numbers only.
    """

    def __init__(self, metric: Metric) -> None:
        self._buckets = len(metric.buckets) + 1
        super().__init__(metric, lines=self._buckets + 2, stored=self._buckets + 1)

    def add(self, labels: Labels, bucket_index: int, count: float = 1, *, sum: float) -> None:
        """`count` observations of one bucket, `sum` in all; IndexError without that bucket, ValueError below 0."""
        self._check_bucket(bucket_index)
        count, sum = _not_negative(count), _not_negative(sum)
        at = self._slot(labels) * self._stored
        self._values[at + bucket_index] += count
        self._values[at + self._buckets] += sum

    def observe(self, labels: Labels, value: float) -> None:
        """One observation; ValueError below 0 and for NaN."""
        if not value >= 0:
            raise _below_zero(value)
        at = self._slot(labels) * self._stored
        self._values[at + bisect_left(self.metric.buckets, value)] += 1.0
        self._values[at + self._buckets] += value

    def load(self, labels: Labels, counts: Sequence[float], sum: float) -> None:
        """What durable tallies say, one not cumulated count a bucket, whatever was there before."""
        if len(counts) != self._buckets:
            raise ValueError(f"{self.metric.name} has {self._buckets} buckets, not {len(counts)}")
        loaded = [_not_negative(number) for number in (*counts, sum)]
        at = self._slot(labels) * self._stored
        self._values[at : at + self._stored] = loaded

    def touch(self, labels: Labels) -> None:
        """Exist, at 0 if new."""
        self._slot(labels)

    def exemplar(self, labels: Labels, bucket_index: int, exemplar: Exemplar) -> None:
        """Show this one at that bucket from now on; KeyError without the series."""
        self._check_bucket(bucket_index)
        self._set_suffix(labels, bucket_index, exemplar)

    def _check_bucket(self, bucket_index: int) -> None:
        if not 0 <= bucket_index < self._buckets:
            raise IndexError(f"{self.metric.name} has no bucket {bucket_index}")

    def _new_prefixes(self, pairs: bytes) -> list[bytes]:
        name = self.metric.name
        before_le = pairs + b"," if pairs else b""
        # Spelled by the official client: whoever compares or replaces one by the other finds the same series.
        bounds: list[str] = [floatToGoString(bound) for bound in (*self.metric.buckets, inf)]  # type: ignore[no-untyped-call]
        return [
            *(_prefix(f"{name}_bucket", b'%ble="%b"' % (before_le, bound.encode())) for bound in bounds),
            _prefix(f"{name}_count", pairs),
            _prefix(f"{name}_sum", pairs),
        ]

    def _exposed(self, stored: list[float]) -> list[float]:
        numbers: list[float] = []
        for at in range(0, len(stored), self._stored):
            numbers += accumulate(stored[at : at + self._buckets])
            numbers.append(numbers[-1])
            numbers.append(stored[at + self._buckets])
        return numbers


Family = Gauge | Counter | Histogram


class Registry:
    """Families in a fixed order. ValueError if two would take the same name in either format."""

    def __init__(self, families: Iterable[Family]) -> None:
        self.families = tuple(families)
        reserved: set[str] = set()
        for metric in (family.metric for family in self.families):
            if clash := reserved & metric.reserved:
                raise ValueError(f"{metric.name}: another metric takes the name {min(clash)}")
            reserved |= metric.reserved

    def series(self) -> int:
        """How many lines `render` gives with nothing hidden, comments aside."""
        return sum(map(len, self.families))

    def remove_matching(self, **wanted: str) -> int:
        """Forget the series whose labels have all these values, in every family that has them, and say how many."""
        return sum(family.remove_matching(**wanted) for family in self.families)

    def render(self, *, openmetrics: bool, hidden: Collection[str] = ()) -> Iterator[bytes]:
        """The text of this moment, in chunks to be sent one by one, without the series of the ``hidden`` sources.

        OpenMetrics still lacks its `EOF`.
        """
        return _join_small([family.render(openmetrics=openmetrics, hidden=hidden) for family in self.families])


def _join_small(texts: Iterable[Iterator[bytes]]) -> Iterator[bytes]:
    small: list[bytes] = []
    size = 0
    for text in texts:
        for chunk in text:
            small.append(chunk)
            size += len(chunk)
            if size >= CHUNK_BYTES_MIN:
                # Joining a single chunk gives that chunk itself, not a copy.
                yield b"".join(small)
                small.clear()
                size = 0
    if small:
        yield b"".join(small)


def _numbers(values: list[float]) -> list[bytes]:
    text = orjson.dumps(values)
    numbers = text[1:-1].split(b",")
    # JSON has no word for NaN and the infinities and says null: no other number has an n in it.
    if b"n" in text:
        for at, value in enumerate(values):
            if not isfinite(value):
                numbers[at] = b"NaN" if isnan(value) else b"+Inf" if value > 0 else b"-Inf"
    return numbers


def _prefix(name: str, pairs: bytes) -> bytes:
    labels = b"{%b}" % pairs if pairs else b""
    return b"\n%b%b " % (name.encode(), labels)


def _pairs(names: Iterable[str], values: Iterable[str]) -> bytes:
    return b",".join(b'%b="%b"' % (name.encode(), _escaped(value)) for name, value in zip(names, values, strict=True))


def _escaped(value: str) -> bytes:
    # Half a surrogate pair, which JSON can smuggle in, has no UTF-8: shown as its escape, it fails no scrape.
    text = value.encode(errors="backslashreplace")
    return text.replace(b"\\", rb"\\").replace(b"\n", rb"\n").replace(b'"', rb"\"")


def _not_negative(value: float) -> float:
    # Asked this way round, here and above, NaN fails too: OpenMetrics allows neither in a total.
    if not value >= 0:
        raise _below_zero(value)
    return float(value)


def _below_zero(value: float) -> ValueError:
    return ValueError(f"{value} is no part of a total")


def _slots(column: list[T], slots: Iterable[int], width: int) -> list[T]:
    """The items of some slots; of an empty column, nothing."""
    return [item for slot in slots for item in column[slot * width : (slot + 1) * width]]


def _replace_by_last(column: list[T], slot: int, width: int) -> None:
    """Give the place of one slot to the last; a slot takes `width` items."""
    last = column[-width:]
    del column[-width:]
    if slot * width < len(column):
        column[slot * width : (slot + 1) * width] = last
