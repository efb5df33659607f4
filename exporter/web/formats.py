"""Sending an exposition: which format and encoding the scraper wants, and the text chunk by chunk.

The whole body never exists at once. Between two chunks the event loop gets its turn, so that a scrape of many series
does not delay the webhooks that arrive meanwhile.
"""

import asyncio
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence

from aiohttp import hdrs, web

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
GZIP_WINDOW_BITS = 31

#: Name, parameters, weight
Weighted = tuple[str, dict[str, str], float]
#: Between commas, and between semicolons, but for those in quotes
_ITEM = re.compile(r'(?:[^,"]|"[^"]*"?)+')
_PART = re.compile(r'(?:[^;"]|"[^"]*"?)+')
_WEIGHT = re.compile(r"0(\.\d*)?|1(\.0*)?")


def wants_openmetrics(request: web.Request) -> bool:
    """Whether the scraper wants OpenMetrics 1.0.0 rather than the text format 0.0.4, by the weights it gives them.

    Between equals, OpenMetrics wins if it is named, for its exemplars. Who says nothing of use, or refuses both, gets
    the text format, which every Prometheus reads.
    """
    ranges = list(_weighted(request.headers.getall(hdrs.ACCEPT, [])))
    openmetrics, named = _wish(ranges, "application", "openmetrics-text", "1.0.0")
    text, _ = _wish(ranges, "text", "plain", "0.0.4")
    return openmetrics > text or (named and openmetrics == text > 0)


def _wish(ranges: Sequence[Weighted], kind: str, subtype: str, version: str) -> tuple[float, bool]:
    """The weight of a format, and whether it is named: of the ranges that cover it, the most specific one counts."""
    names = (f"{kind}/{subtype}", f"{kind}/*", "*/*")
    covering = [
        (-names.index(name), "version" in parameters, weight)
        for name, parameters, weight in ranges
        if name in names and parameters.get("version", version) == version
    ]
    rank, _, weight = max(covering, default=(-len(names), False, 0.0))
    return weight, rank == 0


def wants_gzip(request: web.Request) -> bool:
    """Whether the scraper wants gzip rather than the plain text.

    Who refuses the plain text (``identity;q=0``) gets gzip unless that is refused, too; then an answer is better than
    none.
    """
    weights: dict[str, float] = {}
    for name, _, weight in _weighted(request.headers.getall(hdrs.ACCEPT_ENCODING, [])):
        name = name.removeprefix("x-")  # x-gzip is an old name of gzip
        weights[name] = max(weight, weights.get(name, 0.0))
    identity = weights.get("identity")
    gzip = weights.get("gzip", weights.get("*"))
    if gzip is None:
        return identity == 0
    return gzip > 0 and gzip >= (identity or 0)


async def respond(request: web.Request, chunks: Iterable[bytes], *, openmetrics: bool) -> web.StreamResponse:
    """Answer with this text, compressed if the scraper wants gzip. HEAD gets the same headers and renders nothing."""
    response = web.StreamResponse(headers={hdrs.VARY: "Accept, Accept-Encoding"})
    response.headers[hdrs.CONTENT_TYPE] = OPENMETRICS if openmetrics else TEXT
    if wants_gzip(request):
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


def _weighted(headers: Sequence[str]) -> Iterator[Weighted]:
    """What a list like Accept or Accept-Encoding names: each with its parameters and its weight, 1 if it has none.

    An item whose weight cannot be read says nothing.
    """
    for item in _ITEM.findall(",".join(headers).lower()):
        name, *rest = (part.strip() for part in _PART.findall(item))
        parameters = {key.strip(): value.strip(' "') for key, _, value in (part.partition("=") for part in rest)}
        weight = parameters.get("q", "1")
        if _WEIGHT.fullmatch(weight):
            yield name, parameters, float(weight)


def _compressed(chunks: Iterable[bytes]) -> Iterator[bytes]:
    # Level 1: six times smaller already, and a sixth of the work of level 9.
    compressor = zlib.compressobj(1, zlib.DEFLATED, GZIP_WINDOW_BITS)
    for chunk in chunks:
        yield compressor.compress(chunk)
    yield compressor.flush()
