"""What a scraper accepts is ranked by its weights, as RFC 9110 says; who says nothing useful gets the text format."""

import gzip

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from exporter.web.formats import respond, wants_openmetrics

OPENMETRICS, TEXT = "application/openmetrics-text", "text/plain"
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


async def answered(**headers: str | None) -> tuple[str, str | None, bytes]:
    """The type, the encoding and the raw bytes a real server answers a scraper with these headers."""

    async def metrics(request: web.Request) -> web.StreamResponse:
        openmetrics = wants_openmetrics(request)
        return await respond(request, [b"up 1\n"], openmetrics=openmetrics)

    application = web.Application()
    application.router.add_get("/metrics", metrics)
    sent = {name.replace("_", "-"): value for name, value in headers.items() if value is not None}
    async with TestServer(application) as server, ClientSession(auto_decompress=False) as session:
        skipped = ("Accept", "Accept-Encoding")
        async with session.get(server.make_url("/metrics"), headers=sent, skip_auto_headers=skipped) as response:
            return response.content_type, response.headers.get("Content-Encoding"), await response.read()


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, TEXT),
        ("", TEXT),
        ("*/*", TEXT),
        ("text/html, */*;q=0.8", TEXT),
        (PROMETHEUS_3, OPENMETRICS),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.9", TEXT),
        ("text/plain;version=0.0.4;q=0.9 , application/openmetrics-text;version=1.0.0;q=0.5", TEXT),
        ("application/openmetrics-text;version=1.0.0;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", OPENMETRICS),
        ("application/openmetrics-text, text/plain", OPENMETRICS),
        ("text/plain, application/openmetrics-text", OPENMETRICS),
        ("APPLICATION/OpenMetrics-Text; Version=1.0.0; Q=0.9, text/plain; q=0.8", OPENMETRICS),
        ('application/openmetrics-text;version="1.0.0", text/plain;q=0.8', OPENMETRICS),
        ('text/plain;note="a, application/openmetrics-text";q=0.9', TEXT),
        # A version that is not offered is another format.
        ("application/openmetrics-text;version=0.0.1", TEXT),
        ("application/openmetrics-text;version=2.0.0, text/plain;version=0.0.4;q=0.1", TEXT),
        ("text/plain;version=1.0.0;q=0.9, application/openmetrics-text;q=0.1", OPENMETRICS),
        # The most specific range is the one that counts, not the heaviest.
        ("*/*, application/openmetrics-text;q=0.1", TEXT),
        ("*/*;q=0.9, text/plain;q=0.1", OPENMETRICS),
        ("text/*;q=0.5, application/*", OPENMETRICS),
        ("text/*, application/*;q=0.5", TEXT),
        ("application/*", OPENMETRICS),
        ("application/openmetrics-text, application/openmetrics-text;version=1.0.0;q=0, */*;q=0.1", TEXT),
        ("text/plain;q=0.2, text/*;q=0.9, application/openmetrics-text;q=0.5", OPENMETRICS),
        # Refused
        ("application/openmetrics-text;q=0", TEXT),
        ("application/openmetrics-text;q=0.000, */*", TEXT),
        ("text/plain;q=0, */*", OPENMETRICS),
        ("text/plain;q=0, application/openmetrics-text;q=0.001", OPENMETRICS),
        ("*/*;q=0", TEXT),
        # A weight that cannot be read is no wish at all.
        ("application/openmetrics-text;q=high, text/plain;q=0.1", TEXT),
        ("application/openmetrics-text;q=nan, text/plain;q=0.1", TEXT),
        ("application/openmetrics-text;q=inf, text/plain;q=0.1", TEXT),
        ("application/openmetrics-text;q=1e9, text/plain;q=0.1", TEXT),
        ("application/openmetrics-text;q=2, text/plain;q=0.1", TEXT),
        ("application/openmetrics-text;q=-1, text/plain;q=0.1", TEXT),
        ("application/openmetrics-text;q=, text/plain;q=0.1", TEXT),
        ("application/openmetrics-text;q, text/plain;q=0.1", TEXT),
        (';,;q=1,/,=,"', TEXT),
    ],
)
async def test_accept_ranks_the_formats(accept: str | None, kind: str) -> None:
    assert (await answered(Accept=accept))[0] == kind


@pytest.mark.parametrize(
    ("accept", "encoding"),
    [
        (None, None),
        ("", None),
        ("gzip", "gzip"),
        ("x-gzip", "gzip"),
        ("GZIP;Q=0.1", "gzip"),
        ("br, deflate", None),
        ("br;q=1.0, gzip;q=0.5", "gzip"),
        ("gzip;q=0", None),
        ("gzip;q=0, *", None),
        ("gzip;q=0.0, deflate", None),
        ("*", "gzip"),
        ("*;q=0.5", "gzip"),
        ("*;q=0", None),
        ("gzip, *;q=0", "gzip"),
        ("identity", None),
        ("identity, gzip;q=0.5", None),
        ("identity;q=0.5, gzip", "gzip"),
        ("identity;q=0.5, *;q=0.1", None),
        ("identity;q=0, gzip;q=0.1", "gzip"),
        ("identity;q=0", "gzip"),
        ("identity;q=0, gzip;q=0", None),  # nothing is left: rather an answer than none
        ("gzip;q=loud", None),
        ("gzip;q=nan", None),
    ],
)
async def test_accept_encoding_ranks_the_encodings(accept: str | None, encoding: str | None) -> None:
    _, told, body = await answered(Accept_Encoding=accept)
    assert told == encoding
    assert (gzip.decompress(body) if encoding else body) == b"up 1\n"
