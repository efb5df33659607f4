"""Sending an exposition: which format and encoding the scraper wants, and the text chunk by chunk.

The whole body never exists at once. Between two chunks the event loop gets its turn, so that a scrape of many series
does not delay the webhooks that arrive meanwhile.
"""

import asyncio
import zlib
from collections.abc import Iterable, Iterator, Sequence

from aiohttp import hdrs, web

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
GZIP_WINDOW_BITS = 31


def wants_openmetrics(request: web.Request) -> bool:
    """Whether the scraper takes OpenMetrics 1.0.0; everyone else gets the text format, which every Prometheus reads."""
    return any(
        kind == "application/openmetrics-text" and parameters.get("version", "1.0.0") == "1.0.0"
        for kind, parameters in _accepted(request.headers.getall(hdrs.ACCEPT, []))
    )


async def respond(request: web.Request, chunks: Iterable[bytes], *, openmetrics: bool) -> web.StreamResponse:
    """Answer with this text, compressed if the scraper takes gzip. HEAD gets the same headers and renders nothing."""
    encodings = {encoding for encoding, _ in _accepted(request.headers.getall(hdrs.ACCEPT_ENCODING, []))}
    response = web.StreamResponse(headers={hdrs.VARY: "Accept, Accept-Encoding"})
    response.headers[hdrs.CONTENT_TYPE] = OPENMETRICS if openmetrics else TEXT
    if "gzip" in encodings:
        response.headers[hdrs.CONTENT_ENCODING] = "gzip"
        chunks = _compressed(chunks)
    await response.prepare(request)
    if request.method != hdrs.METH_HEAD:
        for chunk in chunks:
            await response.write(chunk)
            # A write waits only if the socket is full; the loop is to get its turn in any case.
            await asyncio.sleep(0)
    await response.write_eof()
    return response


def _accepted(headers: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """What a list like Accept or Accept-Encoding names, with its parameters, without what it refuses (q=0)."""
    for item in ",".join(headers).lower().split(","):
        name, *rest = (part.strip() for part in item.split(";"))
        parameters = {key.strip(): value.strip(' "') for key, _, value in (part.partition("=") for part in rest)}
        try:
            weight = float(parameters.get("q", "1"))
        except ValueError:
            continue
        if weight > 0:
            yield name, parameters


def _compressed(chunks: Iterable[bytes]) -> Iterator[bytes]:
    # Level 1: six times smaller already, and a sixth of the work of level 9.
    compressor = zlib.compressobj(1, zlib.DEFLATED, GZIP_WINDOW_BITS)
    for chunk in chunks:
        yield compressor.compress(chunk)
    yield compressor.flush()
