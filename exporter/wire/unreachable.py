"""Why a platform could not be reached, in one short line a person can act on: no library's own text."""

import errno
import re
import ssl

import aiohttp
from yarl import URL

_ERRNO = {
    errno.ECONNREFUSED: "connection refused by {there}",
    errno.EHOSTUNREACH: "there is no way to {there}",
    errno.ENETUNREACH: "there is no way to {there}",
    errno.EADDRNOTAVAIL: "there is no way to {there}",
    errno.ECONNRESET: "{there} broke the connection off",
    errno.EPIPE: "{there} broke the connection off",
    errno.ETIMEDOUT: "no answer from {there}",
}
#: OpenSSL's words for an answer that is no TLS at all.
_NO_TLS = re.compile(
    r"WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|PACKET_LENGTH_TOO_LONG|UNKNOWN_PROTOCOL|HTTP_REQUEST", re.I
)


def why(error: BaseException, url: URL, proxy: str | None = None) -> str:
    """What to say of a failed request to ``url``, sent through ``proxy`` if there is one."""
    there = _place(url)
    if isinstance(error, aiohttp.ClientProxyConnectionError) and proxy is not None:
        there = f"the proxy {_place(URL(proxy))}"
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"the proxy answered {error.status}"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return f"the host name {error.host} is not known"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return _certificate(error.certificate_error, url)
    if (tls := _tls_error(error)) is not None:
        if isinstance(tls, ssl.SSLCertVerificationError):
            return _certificate(tls, url)
        if _NO_TLS.search(str(tls)):
            return f"{there} speaks plain HTTP, not TLS: write http:// in url, or the port that speaks TLS"
        reason = (tls.reason or "no reason given").replace("_", " ").lower()
        return f"no TLS connection to {there} could be made ({reason})"
    if isinstance(error, aiohttp.InvalidURL):
        return "the url cannot be used"
    number = getattr(error, "errno", None)
    if number in _ERRNO:
        return _ERRNO[number].format(there=there)
    if isinstance(error, aiohttp.ClientResponseError):
        return f"{there} does not speak HTTP{_perhaps_tls(url)}"
    if isinstance(error, aiohttp.ClientPayloadError):
        return f"the answer of {there} ended early"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"no connection to {there} could be made"
    return f"{there} closed the connection before it answered{_perhaps_tls(url)}"


def _place(url: URL) -> str:
    host = f"[{url.host}]" if url.host and ":" in url.host else url.host
    return f"{host}:{url.port}"


def _perhaps_tls(url: URL) -> str:
    return "; if it speaks TLS, write https:// in url" if url.scheme == "http" else ""


def _tls_error(error: BaseException) -> ssl.SSLError | None:
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, ssl.SSLError):
            return found
        if isinstance(inner := getattr(found, "os_error", None), ssl.SSLError):
            return inner
        found = found.__cause__
    return None


def _certificate(error: Exception, url: URL) -> str:
    reason = getattr(error, "verify_message", "") or "it does not hold"
    text = f"the certificate of {_place(url)} is not trusted ({reason})"
    if "expired" in reason or "match" in reason or "not valid for" in reason:
        return text
    return f"{text}: if it is of an authority of your own, name that one's file in tls_ca_file"
