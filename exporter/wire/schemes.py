"""Was this webhook sent by somebody who knows the secret? One pure function, ``verify``, and the schemes it knows.

Pure. A scheme is a frozen value that holds its secrets; several at once make a rotation possible, and any one of them
is enough. ``verify`` returns why it refuses, or None when the request is authentic. It never raises, whatever bytes
arrive: whoever can reach the port can send anything. Comparisons take constant time and are made on bytes, because
header values may carry bytes that are not UTF-8 (aiohttp hands them over as surrogate escapes).

What a scheme does not prove: ``hmac_sha256`` and ``qlik`` sign the body only, so nothing taken from a header (the id of
a binary CloudEvent, for instance) is authentic under them, and a captured request can be sent again; only
``standard_webhooks`` signs an id and a time. Telling a repetition is the receiver's work, by the event's id.

A secret that could never match, or that everybody knows, is refused when the scheme is built: ``ValueError``, never
quoting it.
"""

import base64
import hmac
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar, Literal

Encoding = Literal["hex", "base64"]

_UNIX_SECONDS = re.compile(r"[0-9]{1,15}")
_SIGNING_PREFIX = "whsec_"
_SIGNING_KEY_BYTES_MIN = 24  # Standard Webhooks 1.0.0, 'Signature scheme': at least 24 bytes


class Refusal(StrEnum):
    """Why a webhook is not believed. The values appear in logs and tests; do not rename them."""

    MISSING = "missing"  # a header the scheme needs is absent or empty
    MALFORMED = "malformed"  # there is one, but not in the form the scheme prescribes
    MISMATCH = "mismatch"  # well formed, and made with none of our secrets
    STALE = "stale"  # authentic, but sent too long ago, or too far in the future


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A shared secret, as it stands, in a named header."""

    signs_body: ClassVar[bool] = False

    name: ClassVar[str] = "header"
    header: str
    secrets: tuple[str, ...] = field(repr=False)

    def __post_init__(self) -> None:
        _check_each(self.secrets, check_header_secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class Basic:
    """HTTP basic authentication with one user name and any of several passwords."""

    signs_body: ClassVar[bool] = False

    name: ClassVar[str] = "basic"
    username: str
    passwords: tuple[str, ...] = field(repr=False)

    def __post_init__(self) -> None:
        check_username(self.username)
        _check_each(self.passwords, check_secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bearer:
    """A bearer token in ``Authorization``."""

    signs_body: ClassVar[bool] = False

    name: ClassVar[str] = "bearer"
    tokens: tuple[str, ...] = field(repr=False)

    def __post_init__(self) -> None:
        _check_each(self.tokens, check_header_secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class HmacSha256:
    """HMAC-SHA256 of the raw body in a named header, after ``prefix`` (such as ``sha256=``), in hex or base64."""

    signs_body: ClassVar[bool] = True

    name: ClassVar[str] = "hmac_sha256"
    header: str
    secrets: tuple[str, ...] = field(repr=False)
    encoding: Encoding = "hex"
    prefix: str = ""

    def __post_init__(self) -> None:
        _check_each(self.secrets, check_secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class Qlik:
    """Hex HMAC-SHA256 of the raw body in ``Qlik-Signature``, in any case (Qlik Cloud documentation, 'Webhooks')."""

    signs_body: ClassVar[bool] = True

    name: ClassVar[str] = "qlik"
    secrets: tuple[str, ...] = field(repr=False)

    def __post_init__(self) -> None:
        _check_each(self.secrets, check_secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class StandardWebhooks:
    """Standard Webhooks 1.0.0 with symmetric (``v1``) signatures; signatures of other versions are passed over."""

    signs_body: ClassVar[bool] = True

    name: ClassVar[str] = "standard_webhooks"
    secrets: tuple[str, ...] = field(repr=False)
    tolerance_seconds: float = 300.0

    def __post_init__(self) -> None:
        _check_each(self.secrets, signing_keys)


Scheme = Header | Basic | Bearer | HmacSha256 | Qlik | StandardWebhooks


def verify(scheme: Scheme, headers: Mapping[str, str], body: bytes, now: float | None) -> Refusal | None:
    """None if the request is authentic, else why not. Never raises.

    ``headers`` have their names in lower case; ``now`` is in seconds since the epoch. None: nobody knows how right our
    clock is, so nothing is refused for its time (a repetition changes nothing: see ``fold``).
    """
    match scheme:
        case Header():
            presented = _find(headers, scheme.header)
            return Refusal.MISSING if presented is None else _compare(presented, scheme.secrets)
        case Basic():
            return _verify_basic(scheme, headers)
        case Bearer():
            token = _authorization(headers, "bearer")
            return token if isinstance(token, Refusal) else _compare(token, scheme.tokens)
        case HmacSha256():
            return _verify_body(headers, body, scheme.header, scheme.secrets, scheme.encoding, scheme.prefix)
        case Qlik():
            return _verify_body(headers, body, "Qlik-Signature", scheme.secrets, "hex", "")
        case StandardWebhooks():
            return _verify_standard_webhooks(scheme, headers, body, now)


def verify_head(scheme: Scheme, headers: Mapping[str, str]) -> Refusal | None:
    """What can be said before the body is there. Never raises.

    Of a scheme whose proof lies in the headers, that is everything. Of one that signs the body, it is whether there is
    a signature at all that the body could be compared with.
    """
    match scheme:
        case Header() | Basic() | Bearer():
            return verify(scheme, headers, b"", 0.0)
        case HmacSha256():
            signature = _signature(headers, scheme.header, scheme.encoding, scheme.prefix)
        case Qlik():
            signature = _signature(headers, "Qlik-Signature", "hex", "")
        case StandardWebhooks():
            signed = _signed_parts(headers)
            return signed if isinstance(signed, Refusal) else None
    return signature if isinstance(signature, Refusal) else None


# What a secret must be like. ``config`` uses the same checks to name the field at fault.


def check_secret(secret: str) -> None:
    """Raise ValueError for a secret that everybody knows (an empty one) or that no sender can have."""
    if not secret.strip():
        raise ValueError("a secret is empty")
    if _has_surrogates(secret):
        raise ValueError("a secret has characters that cannot be encoded as UTF-8")


def check_header_secret(secret: str) -> None:
    """As ``check_secret``, for a secret that travels in a header as it stands."""
    check_secret(secret)
    if secret != secret.strip():
        raise ValueError("a secret begins or ends with white space, which HTTP strips: it could never match")
    if any(ord(character) < 32 or ord(character) == 127 for character in secret):
        raise ValueError("a secret has control characters, which headers cannot carry: it could never match")


def check_username(username: str) -> None:
    """Raise ValueError for a user name that basic authentication cannot carry (RFC 7617, section 2)."""
    if not username or _has_surrogates(username):
        raise ValueError("a user name is empty or cannot be encoded as UTF-8")
    if ":" in username:
        raise ValueError("a user name has a colon, which basic authentication does not allow")


def signing_keys(secret: str) -> tuple[bytes, ...]:
    """The keys a Standard Webhooks secret may stand for; ValueError if it stands for none.

    After ``whsec_`` it is base64. Without that prefix senders differ: some sign with the text as it stands, the
    reference libraries decode it as base64. Both are tried, the second only if it yields a key as long as the
    specification asks for.
    """
    check_secret(secret)
    if secret.startswith(_SIGNING_PREFIX):
        key = _from_base64(_padded(secret.removeprefix(_SIGNING_PREFIX)))
        if not key:
            raise ValueError("a secret is not base64 after whsec_")
        return (key,)
    decoded = _from_base64(_padded(secret))
    if decoded is not None and len(decoded) >= _SIGNING_KEY_BYTES_MIN:
        return (secret.encode(), decoded)
    return (secret.encode(),)


def _check_each(secrets: tuple[str, ...], check: Callable[[str], object]) -> None:
    if not secrets:
        raise ValueError("at least one secret is needed")
    for secret in secrets:
        check(secret)


def _verify_basic(scheme: Basic, headers: Mapping[str, str]) -> Refusal | None:
    encoded = _authorization(headers, "basic")
    if isinstance(encoded, Refusal):
        return encoded
    presented = _from_base64(encoded)
    if presented is None or b":" not in presented:
        return Refusal.MALFORMED
    return _among(presented, (f"{scheme.username}:{password}".encode() for password in scheme.passwords))


def _verify_body(
    headers: Mapping[str, str], body: bytes, header: str, secrets: tuple[str, ...], encoding: Encoding, prefix: str
) -> Refusal | None:
    presented = _signature(headers, header, encoding, prefix)
    if isinstance(presented, Refusal):
        return presented
    for secret in secrets:
        if hmac.compare_digest(presented, hmac.digest(secret.encode(), body, "sha256")):
            return None
    return Refusal.MISMATCH


def _signature(headers: Mapping[str, str], header: str, encoding: Encoding, prefix: str) -> bytes | Refusal:
    value = _find(headers, header)
    if value is None:
        return Refusal.MISSING
    if not value.startswith(prefix):
        return Refusal.MALFORMED
    digits = value.removeprefix(prefix)
    presented = _from_hex(digits) if encoding == "hex" else _from_base64(digits)
    return Refusal.MALFORMED if presented is None or len(presented) != 32 else presented


def _verify_standard_webhooks(
    scheme: StandardWebhooks, headers: Mapping[str, str], body: bytes, now: float | None
) -> Refusal | None:
    parts = _signed_parts(headers)
    if isinstance(parts, Refusal):
        return parts
    raw_identifier, timestamp, wellformed = parts
    signed = b".".join((raw_identifier, timestamp.encode(), body))
    expected = [hmac.digest(key, signed, "sha256") for secret in scheme.secrets for key in signing_keys(secret)]
    if all(_among(signature, expected) is Refusal.MISMATCH for signature in wellformed):
        return Refusal.MISMATCH
    # After the signature, so that "stale" in a log means a true sender whose clock, or whose queue, is off.
    return None if now is None or abs(now - int(timestamp)) <= scheme.tolerance_seconds else Refusal.STALE


def _signed_parts(headers: Mapping[str, str]) -> tuple[bytes, str, list[bytes]] | Refusal:
    """The id, the time and the signatures of a Standard Webhook."""
    identifier, timestamp = _find(headers, "webhook-id"), _find(headers, "webhook-timestamp")
    signatures = _find(headers, "webhook-signature")
    if identifier is None or timestamp is None or signatures is None:
        return Refusal.MISSING
    raw_identifier = _bytes(identifier)
    # Digits only, which also keeps the three parts of the signed text apart should an id contain a full stop.
    if raw_identifier is None or not _UNIX_SECONDS.fullmatch(timestamp):
        return Refusal.MALFORMED
    presented = [_from_base64(entry.removeprefix("v1,")) for entry in signatures.split(" ") if entry.startswith("v1,")]
    wellformed = [signature for signature in presented if signature is not None]
    return (raw_identifier, timestamp, wellformed) if wellformed else Refusal.MALFORMED


def _find(headers: Mapping[str, str], name: str) -> str | None:
    """The value of a header; None if there is none or it is empty."""
    return headers.get(name.lower()) or None


def _authorization(headers: Mapping[str, str], kind: str) -> str | Refusal:
    """What follows ``kind`` in ``Authorization``."""
    value = _find(headers, "Authorization")
    if value is None:
        return Refusal.MISSING
    presented_kind, _, credentials = value.partition(" ")
    return credentials.strip(" ") if presented_kind.lower() == kind else Refusal.MALFORMED


def _compare(presented: str, secrets: tuple[str, ...]) -> Refusal | None:
    raw = _bytes(presented)
    return Refusal.MALFORMED if raw is None else _among(raw, (secret.encode() for secret in secrets))


def _among(presented: bytes, expected: Iterable[bytes]) -> Refusal | None:
    return None if any(hmac.compare_digest(presented, candidate) for candidate in expected) else Refusal.MISMATCH


def _has_surrogates(text: str) -> bool:
    """Whether ``text`` cannot be encoded. Asked, not tried: a UnicodeEncodeError would carry the text, a secret."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _bytes(text: str) -> bytes | None:
    """The bytes a header value was decoded from; None for text that no bytes decode to."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return None


def _from_hex(text: str) -> bytes | None:
    """The bytes of hex digits in any case, without the white space Python would allow between them."""
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        return None
    return raw if len(text) == 2 * len(raw) else None


def _from_base64(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return None


def _padded(text: str) -> str:
    """Base64 with the padding that some senders leave out."""
    return text + "=" * (-len(text) % 4)
