"""Logs: one line a record, as logfmt or JSON, with fields, without secrets.

``log = get_logger(__name__)`` and then ``log.info("source recovered", source="billing", stream="runs")``. Records of
other libraries, and of ``logging`` used directly (``extra={"fields": {…}}``), come out in the same form. In whatever is
written every occurrence of a configured secret is replaced; exceptions are written as their type and their redacted
message, at level debug with the traceback as a field.
"""

import io
import json
import logging
import math
import re
import traceback
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Literal, TextIO
from urllib.parse import quote, quote_plus

from exporter.model.redact import redact

#: Shorter values hide nothing: replacing every "on" or "1" would only make the logs unreadable.
SECRET_CHARS_MIN = 4
VALUE_CHARS_MAX = 2000
TRACEBACK_LINES_MAX = 60

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_NAMES = {value: name for name, value in _LEVELS.items()} | {logging.CRITICAL: "critical"}
_OWN = "exporter"

_secrets: frozenset[str] = frozenset()
_pattern: re.Pattern[str] | None = None


def register_secrets(secrets: Iterable[str]) -> None:
    """Never write these values, nor those registered before: a rotated secret may still be valid elsewhere."""
    global _secrets, _pattern
    known = set(_secrets)
    for secret in secrets:
        # As it is, as part of a URL, and as it looks in somebody's repr or JSON.
        forms = {secret, quote(secret, safe="", errors="replace"), quote_plus(secret, errors="replace")}
        forms |= {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
        forms.add(repr(secret.encode("utf-8", "replace"))[2:-1])
        known |= {form for form in forms if len(form) >= SECRET_CHARS_MIN}
    _secrets = frozenset(known)
    # The longest first: a secret may begin with another one.
    _pattern = re.compile("|".join(map(re.escape, sorted(known, key=len, reverse=True)))) if known else None


def scrub(text: str) -> str:
    """The text without any registered secret."""
    return text if _pattern is None else _pattern.sub("[secret]", text)


class Log:
    """A logger whose fields are keyword arguments. An exception as ``error`` becomes ``type: redacted message``."""

    __slots__ = ("_logger",)

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, message: str, **fields: object) -> None:
        self._log(logging.DEBUG, message, fields)

    def info(self, message: str, **fields: object) -> None:
        self._log(logging.INFO, message, fields)

    def warning(self, message: str, **fields: object) -> None:
        self._log(logging.WARNING, message, fields)

    def error(self, message: str, **fields: object) -> None:
        self._log(logging.ERROR, message, fields)

    def _log(self, level: int, message: str, fields: dict[str, object]) -> None:
        if self._logger.isEnabledFor(level):
            error = fields.get("error")
            if isinstance(error, BaseException):
                del fields["error"]
                self._logger.log(level, message, exc_info=error, extra={"fields": fields})
            else:
                self._logger.log(level, message, extra={"fields": fields})


def get_logger(name: str) -> Log:
    """The logger of a module: ``get_logger(__name__)``."""
    return Log(logging.getLogger(name))


def configure(level: str, format: Literal["logfmt", "json"], stream: TextIO) -> None:
    """Send everything to ``stream``, from now on. May be called again, when the config was reloaded."""
    number = _LEVELS[level]
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")  # a line that cannot be encoded is better than none
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter(format=format, tracebacks=number <= logging.DEBUG))
    root = logging.getLogger()
    for old in list(root.handlers):
        if isinstance(old.formatter, LineFormatter):
            root.removeHandler(old)
    root.addHandler(handler)
    # Debug is about us: other libraries would bury it, and some write whole requests.
    root.setLevel(max(number, logging.INFO))
    logging.getLogger(_OWN).setLevel(number)
    # One line for every scrape helps nobody; access logs are for whoever turns that logger up.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


class LineFormatter(logging.Formatter):
    """A record as one line: time, level, logger and message, then the fields, then the error."""

    def __init__(self, *, format: Literal["logfmt", "json"], tracebacks: bool) -> None:
        super().__init__()
        self._write = _logfmt if format == "logfmt" else _json
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": _NAMES.get(record.levelno, record.levelname.lower()),
            "logger": scrub(record.name),
            "msg": _plain(_message(record)),
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, Mapping):
            for key, value in fields.items():
                name = _key(key)
                line[name + "_" if name in line else name] = _plain(value)
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            line["error"] = _tell(error)
            if self._tracebacks:
                line["traceback"] = _traceback(error)
        return self._write(line)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # another library's arguments do not fit its own text: that must not cost the record
        return str(record.msg)


def _tell(error: BaseException) -> str:
    name = type(error).__name__
    if isinstance(error, BaseExceptionGroup):
        return redact(f"{name}: {'; '.join(_tell(one) for one in error.exceptions[:3])}")
    message = redact(scrub(str(error)))
    return f"{name}: {message}" if message else name


def _traceback(error: BaseException) -> str:
    lines = scrub("".join(traceback.format_exception(error))).splitlines()[-TRACEBACK_LINES_MAX:]
    return "\n".join(redact(line) for line in lines)


def _plain(value: object) -> Any:
    """What JSON can hold, scrubbed and capped."""
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        if scrub(str(value)) != str(value) or not math.isfinite(value):
            return scrub(str(value))
        return value
    if isinstance(value, Mapping):
        return {_key(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, BaseException):
        return _tell(value)
    text = scrub(str(value))
    return text if len(text) <= VALUE_CHARS_MAX else text[: VALUE_CHARS_MAX - 1] + "…"


def _key(key: object) -> str:
    """A field's name: no spaces, quotes or equals signs, so that logfmt stays readable."""
    return re.sub(r"[^\w.-]", "_", scrub(str(key)))[:100] or "_"


#: JSON leaves these as they are, but they end a line, turn text around, or cannot be encoded.
_ODD = re.compile(r"[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_BARE = re.compile(r"[!#-<>-\[\]-~]+")


def _json(line: Mapping[str, Any]) -> str:
    return _dump(line)


def _logfmt(line: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={_logfmt_value(value)}" for key, value in line.items())


def _logfmt_value(value: Any) -> str:
    text = value if isinstance(value, str) else _dump(value)
    return text if _BARE.fullmatch(text) else _dump(text)


def _dump(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _ODD.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
