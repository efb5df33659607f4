"""What platforms and senders write that is not quite JSON: one bad text costs itself, never what stands beside it."""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from exporter.model import Workflow
from exporter.model.ledger import Batch, FoldRules
from exporter.platforms import PLATFORMS
from exporter.store.ledger import Ledger, open_engine
from exporter.view.known import World
from exporter.view.projection import Projection
from exporter.wire.decode import Undecodable, decode

FFFD = "\ufffd"

REPAIRED: list[tuple[str, bytes, Any]] = [
    ("high half alone", rb'{"name": "cut \ud83d"}', {"name": f"cut {FFFD}"}),
    ("low half alone", rb'{"name": "\ude00 cut"}', {"name": f"{FFFD} cut"}),
    ("in a key", rb'{"\ud83d": 1}', {FFFD: 1}),
    ("upper-case digits", rb'["\uD83D"]', [FFFD]),
    ("mixed digits", rb'["\uDbFf", "\uDc00"]', [FFFD, FFFD]),
    ("a pair stays, in any case", rb'["\ud83d", "\uD83D\ude00"]', [FFFD, "\U0001f600"]),
    ("high, high, low", rb'["\ud83d\ud83d\ude00"]', [f"{FFFD}\U0001f600"]),
    ("low, high", rb'["\ude00\ud83d"]', [FFFD * 2]),
    ("high, low, low", rb'["\ud83d\ude00\ude00"]', [f"\U0001f600{FFFD}"]),
    ("high, then another escape", rb'["\ud83d\n\u0041"]', [f"{FFFD}\nA"]),
    ("an escaped backslash is no escape", rb'["\\ud83d", "\ud83d"]', ["\\ud83d", FFFD]),
    ("three backslashes are one", rb'["\\\ud83d"]', [f"\\{FFFD}"]),
    ("high before an escaped backslash", rb'["\ud83d\\ude00"]', [f"{FFFD}\\ude00"]),
    ("escaped high before a low", rb'["\\ud83d\ude00"]', [f"\\ud83d{FFFD}"]),
    ("a quote after it", rb'["\ud83d\"x"]', [f'{FFFD}"x']),
    ("a byte order mark", b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
    ("a byte order mark before half a pair", b'\xef\xbb\xbf["\\ud83d"]', [FFFD]),
    ("half a pair as bytes", b'["a\xed\xa0\xbdb"]', [f"a{FFFD}b"]),
    ("a pair as bytes (CESU-8)", b'["\xed\xa0\xbd\xed\xb8\x80"]', ["\U0001f600"]),
    ("Latin-1", b'["M\xfcller"]', [f"M{FFFD}ller"]),
    ("a character cut in its bytes", b'["\xf0\x9f\x98"]', [FFFD]),
    ("UTF-16 with its mark", '["ü"]'.encode("utf-16"), ["ü"]),
    ("UTF-16 without", '["ü"]'.encode("utf-16-le"), ["ü"]),
    ("UTF-16, the other way round", '["ü"]'.encode("utf-16-be"), ["ü"]),
    ("UTF-16 with half a pair", '["a\ud83d"]'.encode("utf-16-le", "surrogatepass"), [f"a{FFFD}"]),
    ("UTF-32", '["ü"]'.encode("utf-32"), ["ü"]),
    ("the last of a key that stands twice", b'{"a": 1, "a": 2}', {"a": 2}),
    ("a number beyond 64 bits", b"[123456789012345678901234567890]", [1.2345678901234568e29]),
]


@pytest.mark.parametrize(("raw", "value"), [row[1:] for row in REPAIRED], ids=[row[0] for row in REPAIRED])
def test_one_text_that_is_none_costs_only_itself(raw: bytes, value: Any) -> None:
    read = decode(raw)
    assert read == value
    orjson.dumps(read)  # nothing of it keeps the store or an answer from being written


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"", "line 1 column 1 (char 0)"),
        (b"\xef\xbb\xbf", "line 1 column 1 (char 0)"),
        (b"<html>", "line 1 column 1 (char 0)"),
        (b'{"a": NaN}', "line 1 column 7 (char 6)"),
        (b"[Infinity]", "line 1 column 2 (char 1)"),
        (b"[1,]", "trailing comma is not allowed: line 1 column 3 (char 2)"),
        (b'{"a": "\\ud83d"', "line 1"),
        (rb'["\ud8"]', "line 1"),
        (b'["\\ud83d"] x', "line 1"),
        (b"[" * 1100 + b"]" * 1100, "depth limit exceeded"),
    ],
)
def test_anything_else_is_refused_in_the_words_of_the_parser(raw: bytes, problem: str) -> None:
    with pytest.raises(Undecodable, match=re.escape(problem)) as refused:
        decode(raw)
    assert refused.value.__context__ is None  # it would hold the document


@given(
    st.recursive(
        st.none() | st.booleans() | st.text(st.characters()),
        lambda x: st.lists(x) | st.dictionaries(st.text(st.characters()), x),
        max_leaves=8,
    )
)
def test_what_python_writes_of_any_text_is_read_and_can_be_written(value: Any) -> None:
    """``json.dumps`` escapes halves of pairs, as JavaScript does; what was whole stays as it was."""
    text = json.dumps(value)
    read = decode(text.encode())
    orjson.dumps(read)
    whole = json.loads(text)  # joins pairs, keeps halves
    if not any("\ud800" <= character <= "\udfff" for character in json.dumps(whole, ensure_ascii=False)):
        assert read == whole


@given(st.binary(max_size=60))
def test_whatever_bytes_come_it_is_a_value_or_one_fault(raw: bytes) -> None:
    with contextlib.suppress(Undecodable):
        orjson.dumps(decode(b'{"a": "' + raw + b'"}'))


def test_a_repair_takes_time_by_the_size_of_the_text_and_no_more() -> None:
    """A long row of backslashes, or of halves, is looked at once."""
    backslashes = b'["' + b"\\\\" * 400_000 + rb'\ud83d"]'
    assert decode(backslashes) == ["\\" * 400_000 + FFFD]
    assert decode(b'["' + rb"\ud83d" * 100_000 + b'"]') == [FFFD * 100_000]


async def test_any_text_can_be_stored_shown_and_read_again(tmp_path: Path) -> None:
    """The labels, the ledger and the page survive what a platform calls its things."""
    names = ["cut \ufffd", "nul \x00", 'quote " back \\ line\n', "\u2028", "‮right to left", "\U0001f600" * 300, " "]
    ledger, world = Ledger(await open_engine(f"sqlite:///{tmp_path}/t.db"), {"s": FoldRules()}), World(["s"])
    projection = Projection({"s": PLATFORMS["make"]}, series_max=10_000)
    projection.load(world, {})
    ledger.on_commit = lambda committed: projection.apply(world.apply(committed), committed.tallies, world)
    found = [Workflow(id=str(i), at=1.0, name=name) for i, name in enumerate(names)]
    await ledger.ingest(Batch(source="s", observations=found, now=2.0, started_at=1.0))
    loaded = await ledger.load()
    await ledger.close()
    assert [loaded.workflows["s", str(i)].workflow.name for i in range(len(names))] == names
    text = b"".join(projection.registry.render(openmetrics=False)).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {s.labels["workflow"] for s in families["automation_workflow_info"].samples} == set(names)
