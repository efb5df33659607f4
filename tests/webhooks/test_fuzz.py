"""Whatever is sent, to whatever scheme and platform: an answer below 500, no error logged, and no secret.

The senders here know the secret more often than not, so that what lies behind the door is tried as well. Logs are
written at debug, in the service's own form, but without its list of secrets: what it does not hand to the log needs
not be hidden there.
"""

import asyncio
import base64
import gzip
import io
import json
import logging
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter import log
from exporter.clock import SystemClock
from exporter.platforms import PLATFORMS
from exporter.wire import schemes
from tests.servers import PATIENCE_SECONDS
from tests.webhooks.service import (
    BODY_BYTES_MAX,
    SECRET,
    SOURCE,
    Receive,
    Receiving,
    receive_documented,
    receiving,
    sign,
)

SCHEMES: tuple[schemes.Scheme, ...] = (
    schemes.Header(header="X-Token", secrets=(SECRET,)),
    schemes.Basic(username="sender", passwords=("other", SECRET)),
    schemes.Bearer(tokens=(SECRET,)),
    schemes.HmacSha256(header="X-Signature", secrets=("other", SECRET)),
    schemes.HmacSha256(header="X-Signature", secrets=(SECRET,), encoding="base64", prefix="sha256="),
    schemes.Qlik(secrets=(SECRET,)),
    schemes.StandardWebhooks(secrets=(SECRET,)),
)
#: Each scheme with the documented event, and each platform's own reader behind a scheme that is easily satisfied.
DOORS: dict[str, tuple[schemes.Scheme, Receive]] = {
    **{f"{number} {scheme.name}": (scheme, receive_documented) for number, scheme in enumerate(SCHEMES)},
    **{platform.name: (SCHEMES[0], platform.receive) for platform in PLATFORMS.values()},
}


# What is sent

texts = st.text(max_size=12)
moments = st.sampled_from(["2026-03-02T08:16:10Z", "2026-03-02T08:16:10.123456789+01:00", 1_772_439_370, "", -1, 1e300])
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | texts | moments
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
events = st.fixed_dictionaries(
    {"event": st.sampled_from(["run.finished", "run.started", "dead_letter.opened", "other"]) | values},
    optional={
        "workflow_id": st.just("5012") | values,
        "run_id": st.just("3a1f") | values,
        "attempt": st.just(2) | values,
        "result": st.sampled_from(["success", "failure", "odd"]) | values,
        "started_at": moments | values,
        "ended_at": moments | values,
        "occurred_at": moments | values,
        "error": st.fixed_dictionaries({"type": values, "message": values}) | values,
    },
)
types = st.sampled_from(
    ["run.finished", "com.qlik.v1.automation.run.finished", "com.qlik.v1.automation.run.ended", "com.qlik/automations"]
)
cloudevents = st.fixed_dictionaries(
    {"specversion": st.just("1.0") | values, "id": st.just("a1") | values, "type": types | values},
    optional={
        "source": st.just("com.qlik/automations") | values,
        "time": moments | values,
        "data": events | values,
        "data_base64": st.just(base64.b64encode(b'{"event": "run.finished"}').decode()) | values,
        "extensions": values,
        "toplevelresourceid": st.just("5012") | values,
    },
)
older = st.fixed_dictionaries(
    {"cloudEventsVersion": st.just("0.1") | values, "eventType": types | values, "eventId": st.just("a1") | values},
    optional={"eventTime": moments | values, "data": values, "extensions": values, "source": values},
)
payloads = events | cloudevents | older | st.lists(events | cloudevents, max_size=3) | values
documents = payloads.map(lambda value: orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS))
bodies = st.one_of(
    documents,
    documents,
    st.binary(max_size=300),
    st.tuples(documents, st.integers(0, 40)).map(lambda cut: cut[0][: cut[1]]),
    st.sampled_from(
        [b"", b"[" * 50_000, b'{"a":' * 9_000, b"9" * 9_000, b"-", b"1e999", b'"\\ud800"', b"\xef\xbb\xbf{}", b"NaN"]
    ),
    st.just(b" " * (BODY_BYTES_MAX + 1)),
)
names = st.from_regex(re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,20}"), fullmatch=True)
contents = st.binary(max_size=30).map(lambda raw: raw.translate(None, b"\r\n\0"))
headers = st.one_of(
    st.tuples(names, contents),
    st.tuples(
        st.just(b"Content-Type"),
        st.sampled_from(
            [
                b"application/json",
                b"application/json; charset=utf-16",
                b"application/cloudevents+json",
                b"application/cloudevents-batch+json",
                b"application/cloudevents+avro",
                b"application/x-www-form-urlencoded",
                b"text/plain",
            ]
        )
        | contents,
    ),
    st.tuples(
        st.sampled_from([b"ce-id", b"ce-type", b"ce-specversion", b"ce-source", b"ce-time", b"ce-%ff"]),
        st.sampled_from([b"1.0", b"run.finished", b"%ff", b"2026-03-02T08:16:10Z"]) | contents,
    ),
    st.tuples(
        st.sampled_from(
            [b"Authorization", b"X-Token", b"X-Signature", b"Qlik-Signature", b"webhook-id", b"webhook-timestamp"]
        ),
        st.sampled_from([b"Bearer", b"Basic x", b"00" * 32, b"v1,AAAA", b"\xff\xfe", b"1" * 40]) | contents,
    ),
    st.tuples(st.just(b"Expect"), st.just(b"100-continue")),
)
queries = st.sampled_from([b"", b"?", b"?a=1&a=2", b"?%ff=%00&&=", b"?" + b"q" * 500])


def zipped(body: bytes) -> bytes:
    return gzip.compress(body, compresslevel=1)


#: Content-Encoding, and what is done to the body first, rightly or not.
ENCODINGS: list[tuple[bytes, Callable[[bytes], bytes]]] = [
    (b"", bytes),
    (b"gzip", zipped),
    (b"deflate", zlib.compress),
    (b"gzip", bytes),
    (b"deflate", bytes),
    (b"gzip", lambda body: zipped(body)[:-6]),
    (b"gzip", lambda body: zipped(body) + b"tail"),
    (b"gzip", lambda body: zipped(body) + zipped(body)),
    (b"gzip", lambda body: zipped(bytes(3_000_000))),
    (b"br", bytes),
    (b"zstd", bytes),
    (b"gzip, gzip", zipped),
    (b"\xff", bytes),
]


@dataclass(frozen=True, slots=True)
class Sent:
    method: bytes
    query: bytes
    body: bytes
    headers: list[tuple[bytes, bytes]]
    encoding: bytes
    wire: bytes
    is_signed: bool
    is_chunked: bool

    def request(self, scheme: schemes.Scheme, now: float) -> bytes:
        """The request, with a length that is true."""
        lines = list(self.headers)
        if self.is_signed:
            lines += [(name.encode(), value.encode()) for name, value in sign(scheme, self.body, now).items()]
        if self.encoding:
            lines.append((b"Content-Encoding", self.encoding))
        if self.is_chunked:
            lines.append((b"Transfer-Encoding", b"chunked"))
            half = len(self.wire) // 2
            pieces = [piece for piece in (self.wire[:half], self.wire[half:]) if piece]
            content = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        else:
            lines.append((b"Content-Length", b"%d" % len(self.wire)))
            content = self.wire
        head = b"%b /webhooks/%b%b HTTP/1.1\r\nHost: x\r\n" % (self.method, SOURCE.encode(), self.query)
        return head + b"".join(b"%b: %b\r\n" % line for line in lines) + b"\r\n" + content


@st.composite
def requests(draw: st.DrawFn) -> Sent:
    body = draw(bodies)
    encoding, encode = draw(st.sampled_from(ENCODINGS)) if draw(st.booleans()) else ENCODINGS[0]
    return Sent(
        method=draw(st.sampled_from([b"POST", b"POST", b"POST", b"POST", b"GET", b"OPTIONS"])),
        query=draw(queries),
        body=body,
        headers=[h for h in draw(st.lists(headers, max_size=4)) if h[0].lower() not in _FRAMING],
        encoding=encoding,
        wire=encode(body),
        is_signed=draw(st.integers(0, 3)) > 0,
        is_chunked=draw(st.booleans()),
    )


_FRAMING = {b"content-length", b"transfer-encoding", b"content-encoding", b"connection", b"upgrade", b"host"}


# Who takes it

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Site:
    """The receivers behind all doors, on one loop that runs while something is sent; and what they logged."""

    def __init__(self, runner: asyncio.Runner, running: dict[str, Receiving], written: io.StringIO) -> None:
        self._runner = runner
        self.running = running
        self._written = written

    def send(self, door: str, request: bytes) -> bytes:
        """What is answered: the head and a body, or nothing."""
        return self._runner.run(self._send(self.running[door].port, request))

    def send_broken(self, door: str, request: bytes) -> bytes:
        """What is answered within a moment: the receiver may well wait for more than will ever come."""
        return self._runner.run(self._send(self.running[door].port, request, patience=0.02))

    async def _send(self, port: int, request: bytes, *, patience: float = PATIENCE_SECONDS) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answer = b""
        try:
            writer.write(request)
            async with asyncio.timeout(patience):
                while answer in (b"", CONTINUE):
                    received = await reader.read(65_536)
                    if not received:
                        break
                    answer += received
        except (TimeoutError, ConnectionError):
            pass
        finally:
            writer.close()
        return answer.removeprefix(CONTINUE)

    def logged(self) -> list[dict[str, object]]:
        """The lines written since the last call."""
        lines = [json.loads(line) for line in self._written.getvalue().splitlines()]
        self._written.seek(0)
        self._written.truncate()
        return lines


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    written = io.StringIO()
    root, own = logging.getLogger(), logging.getLogger("exporter")
    before = (list(root.handlers), root.level, own.level)
    log.configure("debug", "json", written)
    home = tmp_path_factory.mktemp("fuzz")
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        running = {}
        for number, (door, (scheme, receive)) in enumerate(DOORS.items()):
            service = receiving(home / f"{number}.db", scheme=scheme, receive=receive)
            running[door] = runner.run(stack.enter_async_context(service))
        yield Site(runner, running, written)
        runner.run(stack.aclose())
    root.handlers[:], level, own_level = before
    root.setLevel(level)
    own.setLevel(own_level)


def check(answer: bytes, lines: list[dict[str, object]]) -> None:
    """Neither an error of ours, told or logged, nor a secret in either."""
    if answer:
        status = re.match(rb"HTTP/\d\.\d (\d{3}) ", answer)
        assert status is not None, answer[:100]
        assert 200 <= int(status[1]) < 500, answer
    for line in lines:
        assert line["level"] == "debug", line
        assert "traceback" not in line
    everything = answer.decode("latin-1") + json.dumps(lines)
    assert SECRET not in everything
    assert base64.b64encode(f"sender:{SECRET}".encode()).decode() not in everything


@pytest.mark.parametrize("door", DOORS)
@settings(max_examples=60)
@given(sent=requests())
def test_every_request_is_answered_and_never_with_an_error_of_ours(site: Site, door: str, sent: Sent) -> None:
    answer = site.send(door, sent.request(DOORS[door][0], SystemClock().now()))
    assert answer
    check(answer, site.logged())


@settings(max_examples=150)
@given(
    door=st.sampled_from(list(DOORS)),
    sent=requests(),
    junk=st.binary(max_size=20),
    place=st.floats(0, 1),
    kind=st.sampled_from(["insert", "replace", "cut"]),
)
def test_what_is_hardly_http_is_answered_with_400_or_not_at_all(
    site: Site, door: str, sent: Sent, junk: bytes, place: float, kind: str
) -> None:
    whole = sent.request(DOORS[door][0], SystemClock().now())[:5_000]
    at = int(place * len(whole))
    after = {"insert": whole[at:], "replace": whole[at + len(junk) :], "cut": b""}[kind]
    check(site.send_broken(door, whole[:at] + junk + after), site.logged())


def test_the_doors_still_open_after_all_that(site: Site) -> None:
    body = b'{"event": "run.finished", "workflow_id": "w", "run_id": "last", "result": "success"}'
    for door, (scheme, _) in DOORS.items():
        sent = Sent(b"POST", b"", body, [(b"Content-Type", b"application/json")], b"", body, True, False)
        answer = site.send(door, sent.request(scheme, SystemClock().now()))
        assert re.match(rb"HTTP/1\.1 (202|400) ", answer), (door, answer)
        assert site.running[door].receiver._requests == 0
    check(b"", site.logged())
