"""CloudEvents as they arrive over HTTP: structured, binary and batch (CloudEvents 1.0, 'HTTP Protocol Binding'), and
the older 0.1 envelope (``eventId``, ``eventType``, ``eventTime``, ``extensions {...}``), alone or mixed with the new.
Pure.

All of them become the same ``CloudEvent``. Attributes are looked up by their lower-case names, the new ones before the
old; what is not a known attribute is an extension (``tenantid``, ``toplevelresourceid``, ...). Whatever cannot be read
raises ``Malformed``, whose text never quotes what was received. In binary mode the attributes come from headers, given
with their names in lower case: a signature over the body alone does not cover them (see ``schemes``).
"""

import base64
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import unquote_to_bytes

from msgspec import Struct

from exporter.wire.decode import DAMAGED, Undecodable, decode

ID_CHARS_MAX = 256  # an id is a key of a table; a database refuses much longer ones
ATTRIBUTE_CHARS_MAX = 2048

_FORMATS = "application/cloudevents"
_STRUCTURED = "application/cloudevents+json"
_BATCH = "application/cloudevents-batch+json"
_BINARY_MARKS = {"ce-specversion", "ce-id", "ce-type", "ce-cloudeventsversion", "ce-eventid", "ce-eventtype"}
_NEW_NAMES = "specversion id source type time subject datacontenttype dataschema data data_base64"
_OLD_NAMES = "cloudeventsversion eventid eventtype eventtypeversion eventtime contenttype schemaurl extensions"
_NOT_EXTENSIONS = frozenset(f"{_NEW_NAMES} {_OLD_NAMES}".split())
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # not allowed in an attribute (CloudEvents 1.0, 'Type System')
_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII
)


class Malformed(Exception):
    """What arrived is not a CloudEvent we can read. One line, without any of the received text."""


class CloudEvent(Struct, frozen=True, kw_only=True, gc=False):
    """One event. ``data`` is decoded JSON, or bytes when the sender says that it is something else."""

    id: str
    source: str  # empty if the sender gave none
    type: str
    time: float | None  # seconds since the epoch; None when absent or not a time
    subject: str | None
    data: object
    extensions: dict[str, str]  # names in lower case


def is_cloudevent(headers: Mapping[str, str], body_object: object) -> bool:
    """Whether ``parse`` is the right reader for this request; ``body_object`` is its decoded JSON body or None."""
    return media_type(headers).startswith(_FORMATS) or has_attributes(headers) or _is_marked(body_object)


def parse(headers: Mapping[str, str], body: bytes, *, events_max: int = 1000) -> list[CloudEvent]:
    """The events of one request, in their order; a batch may be empty. Raises Malformed and nothing else."""
    media = media_type(headers)
    if media == _BATCH:
        return _parse_batch(_decode_json(body), events_max)
    if media == _STRUCTURED:
        return [_structured(_decode_json(body))]
    if media.startswith(_FORMATS):
        raise Malformed("an event format other than JSON")
    if has_attributes(headers):
        return [_binary(headers, media, body)]
    value = _decode_json(body)
    if not _is_marked(value):
        raise Malformed("not a CloudEvent: there is no specversion")
    return [_structured(value)]


def media_type(headers: Mapping[str, str]) -> str:
    """The content type without its parameters, in lower case; empty if there is none."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def has_attributes(headers: Mapping[str, str]) -> bool:
    """Whether the headers carry the attributes of an event: binary mode."""
    return not _BINARY_MARKS.isdisjoint(headers)


def parse_time(value: object) -> float | None:
    """Seconds since the epoch of an RFC 3339 text, with any number of fraction digits; None for anything else."""
    match = _RFC3339.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    year, month, day, hour, minute, second = (int(group) for group in match.groups()[:6])
    fraction, sign, offset_hours, offset_minutes = match.groups()[6:]
    offset = 0
    if sign is not None:
        if int(offset_hours) > 23 or int(offset_minutes) > 59:
            return None
        offset = (int(offset_hours) * 3600 + int(offset_minutes) * 60) * (-1 if sign == "-" else 1)
    leap = 1 if second == 60 else 0  # RFC 3339 allows it, datetime does not
    try:
        whole = datetime(year, month, day, hour, minute, second - leap, tzinfo=UTC).timestamp()
    except ValueError:
        return None
    return whole + leap - offset + (float(f"0.{fraction[:9]}") if fraction else 0.0)


def _parse_batch(items: object, events_max: int) -> list[CloudEvent]:
    if not isinstance(items, list):
        raise Malformed("a batch is not a list")
    if len(items) > events_max:
        raise Malformed(f"more than {events_max} events in a batch")
    events = []
    for number, item in enumerate(items, start=1):
        try:
            events.append(_structured(item))
        except Malformed as problem:
            raise Malformed(f"event {number} of the batch: {problem}") from None
    return events


def _structured(value: object) -> CloudEvent:
    if not isinstance(value, dict):
        raise Malformed("an event is not an object")
    attributes: dict[str, object] = {name.lower(): item for name, item in value.items()}
    attributes.update((name, item) for name, item in value.items() if name == name.lower())
    if attributes.get("data") is not None:
        return _event(attributes, attributes["data"])
    encoded = attributes.get("data_base64")
    if encoded is None:
        return _event(attributes, None)
    media = _text(attributes, "datacontenttype") or _text(attributes, "contenttype") or ""
    return _event(attributes, _decode_data(_decode_base64(encoded), media.partition(";")[0].strip().lower()))


def _binary(headers: Mapping[str, str], media: str, body: bytes) -> CloudEvent:
    attributes: dict[str, object] = {}
    for name, value in headers.items():
        if name.startswith("ce-"):
            attributes[name.removeprefix("ce-")] = _percent_decoded(value)
    return _event(attributes, _decode_data(body, media))


def _event(attributes: Mapping[str, object], data: object) -> CloudEvent:
    identifier = _required(attributes, "id", "eventid")
    if len(identifier) > ID_CHARS_MAX:
        raise Malformed("id is too long")
    if DAMAGED in identifier:
        raise Malformed("id has characters that cannot be read")
    time = _text(attributes, "time")
    for version in ("specversion", "cloudeventsversion"):
        _text(attributes, version)
    return CloudEvent(
        id=identifier,
        source=_text(attributes, "source") or "",
        type=_required(attributes, "type", "eventtype"),
        time=parse_time(time if time is not None else _text(attributes, "eventtime")),
        subject=_text(attributes, "subject"),
        data=data,
        extensions=_extensions(attributes),
    )


def _extensions(attributes: Mapping[str, object]) -> dict[str, str]:
    found: dict[str, str] = {}
    older = attributes.get("extensions")
    if isinstance(older, dict):
        found.update(_scalars({name.lower(): item for name, item in older.items()}))
    found.update(_scalars({name: item for name, item in attributes.items() if name not in _NOT_EXTENSIONS}))
    return found


def _scalars(items: Mapping[str, object]) -> dict[str, str]:
    """Texts, whole numbers and booleans as text, under letters and digits; anything else is no attribute
    (CloudEvents 1.0, 'Naming Conventions' and 'Type System').
    """
    found: dict[str, str] = {}
    for name, item in items.items():
        if not (name.isascii() and name.isalnum()):
            continue
        if isinstance(item, bool):
            found[name] = "true" if item else "false"
        elif isinstance(item, int):
            found[name] = str(item)
        elif isinstance(item, str):
            found[name] = _checked(item, "an extension")
    return found


def _required(attributes: Mapping[str, object], name: str, older_name: str) -> str:
    value = _text(attributes, name)
    if value is None:
        value = _text(attributes, older_name)
    if not value:
        raise Malformed(f"{name} is missing")
    return value


def _text(attributes: Mapping[str, object], name: str) -> str | None:
    """An attribute that must be text where there is one; null means there is none."""
    value = attributes.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise Malformed(f"{name} is not text")
    return _checked(value, name)


def _checked(value: str, what: str) -> str:
    if len(value) > ATTRIBUTE_CHARS_MAX:
        raise Malformed(f"{what} is too long")
    if _CONTROL.search(value):
        raise Malformed(f"{what} has control characters")
    return value


def _is_marked(value: object) -> bool:
    return isinstance(value, dict) and ("specversion" in value or "cloudEventsVersion" in value)


# The decoders raise outside of their ``except`` blocks: what is caught there carries the body, and Malformed must not.


def _decode_data(raw: bytes, media: str) -> object:
    """Data by its media type: JSON if that says so, or says nothing."""
    if not raw:
        return None
    if media in ("", "application/json", "text/json") or media.endswith("+json"):
        return _decode_json(raw)
    return raw


def _decode_json(raw: bytes) -> object:
    try:
        value: object = decode(raw)
    except Undecodable:
        pass
    else:
        return value
    raise Malformed("not JSON, or nested too deeply")


def _decode_base64(encoded: object) -> bytes:
    if isinstance(encoded, str):
        try:
            return base64.b64decode(encoded, validate=True)
        except ValueError:
            pass
    raise Malformed("data_base64 is not base64")


def _percent_decoded(value: str) -> str:
    """A header value of binary mode: percent-encoded UTF-8. UTF-8 sent raw is accepted too."""
    try:
        return unquote_to_bytes(value).decode("utf-8")
    except UnicodeError:
        pass
    raise Malformed("a ce- header is not UTF-8")
