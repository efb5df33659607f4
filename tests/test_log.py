"""A log line is one line, can be read back, and never tells a secret."""

import io
import json
import logging
import shlex
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, Literal
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter import log as log_module
from exporter.log import LineFormatter, configure, get_logger, register_secrets, scrub

log = get_logger("exporter.test")


class Colour(StrEnum):
    RED = "red"


@pytest.fixture(autouse=True)
def logging_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in (None, "exporter", "aiohttp.access")]
    before = [(logger.level, list(logger.handlers)) for logger in loggers]
    monkeypatch.setattr(log_module, "_secrets", frozenset())
    monkeypatch.setattr(log_module, "_pattern", None)
    yield
    for logger, (level, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers[:] = handlers


def written(level: str = "info", format: Literal["logfmt", "json"] = "json") -> io.StringIO:
    stream = io.StringIO()
    configure(level, format, stream)
    return stream


def read(stream: io.StringIO) -> dict[str, Any]:
    """The one line written, as JSON."""
    line: dict[str, Any] = json.loads(stream.getvalue())
    return line


def render(format: Literal["logfmt", "json"] = "json", **record: Any) -> str:
    """A record of fixed time through the formatter alone."""
    attributes = {"name": "exporter.x", "levelno": logging.INFO, "levelname": "INFO", "created": 1_700_000_000.1234}
    return LineFormatter(format=format, tracebacks=False).format(logging.makeLogRecord(attributes | record))


# --- The form -----------------------------------------------------------------------------------------------------


def test_a_logfmt_line_has_time_level_logger_message_and_fields() -> None:
    fields = {"source": "make-eu", "n": 3, "ratio": 0.5, "ok": True, "gone": None, "name": "a b", "kind": Colour.RED}
    assert render("logfmt", msg="source recovered", fields=fields) == (
        'ts=2023-11-14T22:13:20.123Z level=info logger=exporter.x msg="source recovered"'
        ' source=make-eu n=3 ratio=0.5 ok=true gone=null name="a b" kind=red'
    )


def test_a_json_line_has_the_same_with_types() -> None:
    fields = {
        "source": "make-eu",
        "n": 3,
        "ratio": 0.5,
        "ok": True,
        "gone": None,
        "many": ("a", 1),
        "x": float("nan"),
    }
    assert json.loads(render(msg="source recovered", fields=fields)) == {
        "ts": "2023-11-14T22:13:20.123Z",
        "level": "info",
        "logger": "exporter.x",
        "msg": "source recovered",
        "source": "make-eu",
        "n": 3,
        "ratio": 0.5,
        "ok": True,
        "gone": None,
        "many": ["a", 1],
        "x": "nan",
    }


def test_fields_come_from_keywords_and_from_plain_logging_alike() -> None:
    stream = written()
    log.warning("turned", source="a")
    logging.getLogger("exporter.test").warning("turned", extra={"fields": {"source": "a"}})
    one, other = (json.loads(line) | {"ts": ""} for line in stream.getvalue().splitlines())
    assert one == other
    assert one["source"] == "a"


def test_a_field_never_replaces_what_every_line_has() -> None:
    line = json.loads(render(msg="turned", fields={"level": "high", "msg": 1, "odd name=": 2}))
    assert (line["level"], line["level_"], line["msg"], line["msg_"], line["odd_name_"]) == (
        "info",
        "high",
        "turned",
        1,
        2,
    )


@pytest.mark.parametrize("format", ["logfmt", "json"])
@given(text=st.text(alphabet=st.characters(exclude_categories=())))
def test_any_text_stays_on_one_line_that_can_be_read_back(format: Literal["logfmt", "json"], text: str) -> None:
    line = render(format, msg=text, fields={"field": text})
    assert line.splitlines() == [line]
    line.encode()
    if format == "json":
        assert json.loads(line)["field"] == text
    else:
        value = line.split(" field=", 1)[1] if " field=" not in text else None
        assert value is None or (json.loads(value) if value.startswith('"') else value) == text


def test_logfmt_can_be_split_like_a_shell_would() -> None:
    line = render("logfmt", msg="a=b", fields={"x": 'say "hi"', "empty": "", "path": "a\\b", "list": [1, 2]})
    assert shlex.split(line)[3:] == ["msg=a=b", 'x=say "hi"', "empty=", "path=a\\b", "list=[1,2]"]


def test_a_long_value_is_capped() -> None:
    assert json.loads(render(msg="x", fields={"field": "y" * 10_000}))["field"] == "y" * 1999 + "…"


def test_a_message_whose_arguments_do_not_fit_is_still_written() -> None:
    assert json.loads(render(msg="%d of %d", args=("one",)))["msg"] == "%d of %d"


def test_a_stream_that_cannot_encode_a_character_gets_the_line_all_the_same() -> None:
    raw = io.BytesIO()
    configure("info", "logfmt", stream := io.TextIOWrapper(raw, encoding="ascii"))
    log.info("Grüße")
    stream.flush()
    assert b'msg="Gr\\xfc\\xdfe"' in raw.getvalue()


# --- Levels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "count"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_a_level_lets_through_itself_and_what_is_worse(level: str, count: int) -> None:
    stream = written(level)
    for write in (log.debug, log.info, log.warning, log.error):
        write("told")
    assert len(stream.getvalue().splitlines()) == count


def test_debug_is_about_us_and_not_about_other_libraries() -> None:
    stream = written("debug")
    logging.getLogger("urllib3.connectionpool").debug("POST /?token=hunter2")
    assert stream.getvalue() == ""
    logging.getLogger("urllib3.connectionpool").info("told")
    assert read(stream)["logger"] == "urllib3.connectionpool"


def test_access_logs_are_off() -> None:
    stream = written("debug")
    logging.getLogger("aiohttp.access").info("GET /metrics")
    assert stream.getvalue() == ""


def test_configuring_again_replaces_stream_and_form_without_doubling_lines() -> None:
    first = written("debug")
    second = written("info", "logfmt")
    log.debug("no")
    log.info("yes")
    assert first.getvalue() == ""
    assert second.getvalue().count("\n") == 1


# --- Errors -------------------------------------------------------------------------------------------------------


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_an_exception_is_its_type_and_its_redacted_message_without_traceback() -> None:
    stream = written()
    log.error("sweep failed", error=raised(ValueError("bad\nurl https://bob:hunter2@h.example/?a=hunter2")), source="a")
    line = read(stream)
    assert line["error"] == "ValueError: bad url https://[redacted]@h.example/?[redacted]"
    assert "traceback" not in line
    assert line["source"] == "a"


def test_an_exception_without_words_is_its_type() -> None:
    stream = written()
    log.error("sweep failed", error=TimeoutError())
    assert read(stream)["error"] == "TimeoutError"


def test_a_group_of_exceptions_tells_what_is_inside() -> None:
    stream = written()
    log.error("failed", error=ExceptionGroup("two", [ValueError("one"), KeyError("other")]))
    assert read(stream)["error"] == "ExceptionGroup: ValueError: one; KeyError: 'other'"


def test_an_error_that_is_text_is_a_field_like_any_other() -> None:
    stream = written()
    log.warning("sweep failing", error="GET /x: 401 auth: no", kind="auth")
    assert read(stream)["error"] == "GET /x: 401 auth: no"


def test_a_traceback_is_a_field_on_the_same_line_at_debug_only() -> None:
    stream = written("debug", "logfmt")
    log.error("sweep failed", error=raised(ValueError("token=hunter2")))
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert 'traceback="Traceback (most recent call last):\\n' in text
    assert "in raised" in text
    assert "hunter2" not in text


def test_exceptions_of_other_libraries_are_told_the_same_way() -> None:
    stream = written()
    try:
        raise ValueError("password=hunter2")
    except ValueError:
        logging.getLogger("aiohttp.server").exception("Error handling request")
    assert read(stream)["error"] == "ValueError: password=[redacted]"


# --- Secrets ------------------------------------------------------------------------------------------------------

SECRETS = [
    "hunter2!",
    'quo"te\\slash',
    "line\nbreak",
    "Schlüssel/ä",
    "12345678",
    "hunter2!longer",
    "a+b c&d",
    'it\'s "it"',
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("format", ["logfmt", "json"])
def test_a_registered_secret_appears_nowhere(secret: str, format: Literal["logfmt", "json"]) -> None:
    register_secrets(SECRETS)
    stream = written("debug", format)
    error = raised(ValueError(f"bad {secret}", secret))
    log.error(
        f"with {secret} inside",
        error=error,
        text=secret,
        deep=[{"k": (secret,)}],
        **{f"key {secret}": 1, "again": error},
    )
    log.info("bytes", body=secret.encode())
    log.info("url", url=f"/x?{quote(secret, safe='')}")
    logging.getLogger(f"other.{secret}").warning("args %s %r", secret, {"x": secret})
    if secret.isdigit():
        log.info("number", value=int(secret), real=float(secret))
    text = stream.getvalue()
    for form in (json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], repr(secret)[1:-1]):
        assert form not in text
        assert form.replace("\\", "\\\\") not in text  # quoted once more by the line's own form
    assert quote(secret, safe="") not in text
    assert "[secret]" in text
    for line in text.splitlines():
        if format == "json":
            json.loads(line)


def test_a_secret_is_hidden_before_a_message_is_cut() -> None:
    register_secrets(["hunter-" * 10])
    stream = written()
    log.error("failed", error=ValueError("x " * 145 + "hunter-" * 10), long="x" * 1990 + "hunter-" * 10)
    assert "hunter" not in stream.getvalue()


def test_a_secret_that_begins_with_another_is_hidden_whole() -> None:
    register_secrets(["hunter2!", "hunter2!longer"])
    assert scrub("a hunter2!longer b hunter2!") == "a [secret] b [secret]"


@pytest.mark.parametrize("secret", ['it\'s "it"', "Schlüssel"])
def test_a_secret_is_known_in_the_repr_of_text_and_of_bytes(secret: str) -> None:
    register_secrets([secret])
    assert scrub(repr([secret, secret.encode()])) in ("['[secret]', b'[secret]']", '["[secret]", b"[secret]"]')


def test_secrets_add_up_and_empty_or_tiny_ones_are_ignored() -> None:
    register_secrets(["first-secret"])
    register_secrets(["second-secret", "", "on"])
    assert scrub("on: first-secret, second-secret") == "on: [secret], [secret]"


def test_nothing_is_replaced_before_anything_is_registered() -> None:
    assert scrub("as it is") == "as it is"


def test_a_log_line_costs_nothing_when_its_level_is_off() -> None:
    class Costly:
        def __str__(self) -> str:
            raise AssertionError("was asked for its text")

    stream = written("info")
    log.debug("no", value=Costly())
    assert stream.getvalue() == ""
