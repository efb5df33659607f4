"""Who is believed and who is not, for every scheme, and what the ``webhook:`` section accepts."""

import base64
import hashlib
import hmac
import time
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from exporter.platform.webhook_section import WebhookConfig
from exporter.wire import schemes
from exporter.wire.schemes import (
    Basic,
    Bearer,
    Header,
    HmacSha256,
    Qlik,
    Refusal,
    Scheme,
    StandardWebhooks,
)

NOW = 1_768_456_842.5
BODY = b'{"event": "run.finished"}'
WHSEC = "whsec_" + base64.b64encode(b"0123456789abcdefghijklmnopqrstuv").decode()

QLIK_SECRET = "0123456789abcdef0123456789abcdef"
QLIK_BODY = (
    b'{"id":"evt-0001","time":"2026-01-15T06:02:11.000Z","type":"com.qlik.v1.automation.run.ended",'
    b'"source":"com.qlik/automations","specversion":"1.0.2","tenantid":"tnt-demo",'
    b'"data":{"id":"00000000-0000-4000-8000-000000000001","status":"failed"}}'
)
QLIK_SIGNATURE = "bde28dcaf867a3e7ef29583024eb86c960ac892596853337e0c209b014991c79"

SCHEMES: tuple[Scheme, ...] = (
    Header(header="X-Webhook-Token", secrets=("hunter2-new", "hunter2-old")),
    Basic(username="etl", passwords=("hunter2-new", "hunter2-old")),
    Bearer(tokens=("hunter2-new", "hunter2-old")),
    HmacSha256(header="X-Hub-Signature-256", secrets=("hunter2-new", "hunter2-old"), prefix="sha256="),
    HmacSha256(header="X-Signature", secrets=("hunter2-new", "hunter2-old"), encoding="base64"),
    Qlik(secrets=("hunter2-new", "hunter2-old")),
    StandardWebhooks(secrets=("hunter2-new", "hunter2-old")),
)
IDS = [f"{scheme.name}-{number}" for number, scheme in enumerate(SCHEMES)]


def mac(secret: str, signed: bytes) -> bytes:
    """HMAC as RFC 2104 writes it down, so that the module under test is not its own witness."""
    key = secret.encode()
    key = (hashlib.sha256(key).digest() if len(key) > 64 else key).ljust(64, b"\0")
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in key) + signed).digest()
    return hashlib.sha256(bytes(b ^ 0x5C for b in key) + inner).digest()


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def signed_by(scheme: Scheme, secret: str, body: bytes = BODY, at: float = NOW) -> dict[str, str]:
    """The headers a sender who knows ``secret`` would add."""
    match scheme:
        case Header():
            return {scheme.header: secret}
        case Basic():
            return {"Authorization": "Basic " + b64(f"{scheme.username}:{secret}".encode())}
        case Bearer():
            return {"Authorization": "Bearer " + secret}
        case HmacSha256():
            digest = mac(secret, body)
            return {scheme.header: scheme.prefix + (digest.hex() if scheme.encoding == "hex" else b64(digest))}
        case Qlik():
            return {"Qlik-Signature": mac(secret, body).hex()}
        case StandardWebhooks():
            digest = mac(secret, b"msg_1." + str(int(at)).encode() + b"." + body)
            return {
                "webhook-id": "msg_1",
                "webhook-timestamp": str(int(at)),
                "webhook-signature": "v1," + b64(digest),
            }


def verify(scheme: Scheme, headers: dict[str, str], body: bytes, now: float | None) -> Refusal | None:
    """With the names of headers in lower case, as the receiver hands them on."""
    return schemes.verify(scheme, {name.lower(): value for name, value in headers.items()}, body, now)


# Every scheme alike


@pytest.mark.parametrize("scheme", SCHEMES, ids=IDS)
@pytest.mark.parametrize("secret", ["hunter2-new", "hunter2-old"])
def test_any_of_several_secrets_is_accepted(scheme: Scheme, secret: str) -> None:
    assert verify(scheme, signed_by(scheme, secret), BODY, NOW) is None


@pytest.mark.parametrize("scheme", SCHEMES, ids=IDS)
def test_another_secret_is_a_mismatch(scheme: Scheme) -> None:
    assert verify(scheme, signed_by(scheme, "hunter3"), BODY, NOW) is Refusal.MISMATCH


@pytest.mark.parametrize("scheme", SCHEMES, ids=IDS)
def test_a_request_without_the_headers_is_missing_them(scheme: Scheme) -> None:
    assert verify(scheme, {"content-type": "application/json"}, BODY, NOW) is Refusal.MISSING


@pytest.mark.parametrize("scheme", SCHEMES, ids=IDS)
def test_empty_headers_count_as_missing(scheme: Scheme) -> None:
    assert verify(scheme, dict.fromkeys(signed_by(scheme, "hunter2-new"), ""), BODY, NOW) is Refusal.MISSING


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if isinstance(s, HmacSha256 | Qlik | StandardWebhooks)])
def test_a_changed_body_is_a_mismatch(scheme: Scheme) -> None:
    assert verify(scheme, signed_by(scheme, "hunter2-new"), BODY + b" ", NOW) is Refusal.MISMATCH


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if isinstance(s, HmacSha256 | Qlik | StandardWebhooks)])
def test_a_body_that_is_not_utf8_can_be_authentic(scheme: Scheme) -> None:
    body = b"\xff\x00\xfe"
    assert verify(scheme, signed_by(scheme, "hunter2-old", body), body, NOW) is None


@pytest.mark.parametrize("scheme", SCHEMES, ids=IDS)
def test_no_secret_appears_in_repr(scheme: Scheme) -> None:
    assert type(scheme).__name__ in repr(scheme)
    assert "hunter2" not in repr(scheme) + str(scheme)


# Header values as aiohttp hands them over (raw bytes that are not UTF-8 become surrogate escapes), and worse ones.
SURROGATES: tuple[Literal["Cs"]] = ("Cs",)
CHARACTERS = st.characters() | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF, categories=SURROGATES)
VALUES = st.one_of(
    st.text(CHARACTERS),
    st.text(st.characters(categories=SURROGATES)),
    st.binary().map(b64),
    st.binary(max_size=40).map(bytes.hex),
    st.text(CHARACTERS).map("Basic ".__add__),
    st.binary().map(b64).map("bAsIc ".__add__),
    st.text(CHARACTERS).map("Bearer ".__add__),
    st.binary(min_size=32, max_size=32).map(bytes.hex).map("sha256=".__add__),
    st.lists(st.binary(max_size=40).map(b64).map("v1,".__add__)).map(" ".join),
    st.integers().map(str),
    st.just("9" * 6000),
    st.text("0123456789٣²", min_size=1),
)
NAMES = st.sampled_from([name for s in SCHEMES for name in signed_by(s, "k")]).map(str.lower) | st.text(CHARACTERS)


@given(headers=st.dictionaries(NAMES, VALUES), body=st.binary(), now=st.floats())
def test_whatever_arrives_is_refused_and_never_raises(headers: dict[str, str], body: bytes, now: float) -> None:
    for scheme in SCHEMES:
        assert isinstance(verify(scheme, headers, body, now), Refusal)


@given(signature=VALUES, identifier=VALUES, timestamp=VALUES, now=st.floats())
def test_three_headers_of_anything_are_refused_by_standard_webhooks(
    signature: str, identifier: str, timestamp: str, now: float
) -> None:
    headers = {"webhook-id": identifier, "webhook-timestamp": timestamp, "webhook-signature": signature}
    assert isinstance(verify(SCHEMES[-1], headers, BODY, now), Refusal)


@given(secret=st.text(min_size=1).filter(str.strip), body=st.binary())
def test_any_secret_and_any_body_verify_with_their_own_signature(secret: str, body: bytes) -> None:
    for scheme in (Qlik(secrets=(secret,)), HmacSha256(header="S", secrets=(secret,), encoding="base64")):
        assert verify(scheme, signed_by(scheme, secret, body), body, NOW) is None
    basic = Basic(username="jürgen", passwords=(secret,))
    assert verify(basic, signed_by(basic, secret), body, NOW) is None


# Header, basic, bearer


def test_a_secret_with_an_umlaut_is_compared_as_utf8_bytes() -> None:
    scheme = Header(header="X-Token", secrets=("schlüssel",))
    as_decoded_by_aiohttp = "schlüssel".encode().decode("utf-8", "surrogateescape")
    in_latin_1 = "schlüssel".encode("latin-1").decode("utf-8", "surrogateescape")
    assert verify(scheme, {"X-Token": as_decoded_by_aiohttp}, b"", NOW) is None
    assert verify(scheme, {"X-Token": in_latin_1}, b"", NOW) is Refusal.MISMATCH


def test_a_value_that_no_bytes_decode_to_is_malformed() -> None:
    assert verify(Header(header="X-Token", secrets=("a",)), {"X-Token": "\ud800"}, b"", NOW) is Refusal.MALFORMED


@pytest.mark.parametrize("value", ["hunter2", "hunter2-new ", "hunter2-newer", "HUNTER2-NEW"])
def test_a_header_secret_must_match_whole_and_in_its_case(value: str) -> None:
    assert verify(SCHEMES[0], {"X-Webhook-Token": value}, b"", NOW) is Refusal.MISMATCH


def test_the_name_of_the_authorization_kind_may_be_in_any_case() -> None:
    assert verify(Bearer(tokens=("t",)), {"authorization": "bEARER  t"}, b"", NOW) is None
    assert verify(Basic(username="u", passwords=("p:q",)), {"authorization": "basic dTpwOnE="}, b"", NOW) is None


@pytest.mark.parametrize("value", ["Basic", "Basic !!!", "Basic dXA=", "Basic dTp", "Basic ü", "Bearer dTpw", "dTpw"])
def test_basic_credentials_in_another_form_are_malformed(value: str) -> None:
    assert verify(Basic(username="u", passwords=("p",)), {"Authorization": value}, b"", NOW) is Refusal.MALFORMED


def test_the_right_password_of_another_user_is_a_mismatch() -> None:
    headers = {"Authorization": "Basic " + b64(b"other:hunter2-new")}
    assert verify(SCHEMES[1], headers, b"", NOW) is Refusal.MISMATCH


def test_another_kind_of_authorization_is_malformed_for_bearer() -> None:
    assert verify(Bearer(tokens=("t",)), {"Authorization": "Basic t"}, b"", NOW) is Refusal.MALFORMED
    assert verify(Bearer(tokens=("t",)), {"Authorization": "Bearer"}, b"", NOW) is Refusal.MISMATCH


# HMAC over the body


def test_the_documented_qlik_example_verifies() -> None:
    scheme = Qlik(secrets=("another", QLIK_SECRET))
    assert verify(scheme, {"Qlik-Signature": QLIK_SIGNATURE}, QLIK_BODY, NOW) is None
    assert verify(scheme, {"Qlik-Signature": QLIK_SIGNATURE.upper()}, QLIK_BODY, NOW) is None
    assert verify(scheme, {"Qlik-Signature": QLIK_SIGNATURE}, QLIK_BODY[:-1], NOW) is Refusal.MISMATCH


@pytest.mark.parametrize(
    "value", [QLIK_SIGNATURE[:-1], QLIK_SIGNATURE + "0", "sha256=" + QLIK_SIGNATURE, "g" * 64, "é" * 64, "00 " * 32]
)
def test_a_signature_that_is_not_64_hex_digits_is_malformed(value: str) -> None:
    assert verify(Qlik(secrets=(QLIK_SECRET,)), {"Qlik-Signature": value}, QLIK_BODY, NOW) is Refusal.MALFORMED


def test_the_github_example_verifies() -> None:
    """GitHub documentation, 'Validating webhook deliveries', 'Testing the webhook payload validation'."""
    scheme = HmacSha256(header="X-Hub-Signature-256", secrets=("It's a Secret to Everybody",), prefix="sha256=")
    signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    assert verify(scheme, {"x-hub-signature-256": signature}, b"Hello, World!", NOW) is None
    bare = signature.removeprefix("sha256=")
    assert verify(scheme, {"x-hub-signature-256": bare}, b"Hello, World!", NOW) is Refusal.MALFORMED


@pytest.mark.parametrize("value", ["AAAA", "=" * 44, "!" * 44, "ü", mac("hunter2-new", BODY).hex()])
def test_a_base64_signature_of_another_form_is_malformed(value: str) -> None:
    assert verify(SCHEMES[4], {"X-Signature": value}, BODY, NOW) is Refusal.MALFORMED


# Standard Webhooks


def standard_headers(
    key: bytes, *, identifier: str = "msg_1", at: int | str = int(NOW), body: bytes = BODY
) -> dict[str, str]:
    digest = hmac.new(key, f"{identifier}.{at}.".encode() + body, hashlib.sha256).digest()
    return {"webhook-id": identifier, "webhook-timestamp": str(at), "webhook-signature": "v1," + b64(digest)}


def test_a_whsec_secret_signs_with_its_decoded_key() -> None:
    scheme = StandardWebhooks(secrets=(WHSEC,))
    assert verify(scheme, standard_headers(b"0123456789abcdefghijklmnopqrstuv"), BODY, NOW) is None
    assert verify(scheme, standard_headers(WHSEC.encode()), BODY, NOW) is Refusal.MISMATCH


def test_a_whsec_secret_may_lack_its_padding() -> None:
    scheme = StandardWebhooks(secrets=(WHSEC.rstrip("="),))
    assert verify(scheme, standard_headers(b"0123456789abcdefghijklmnopqrstuv"), BODY, NOW) is None


def test_a_secret_without_whsec_signs_as_text_or_decoded() -> None:
    scheme = StandardWebhooks(secrets=(WHSEC.removeprefix("whsec_"),))
    assert verify(scheme, standard_headers(WHSEC.removeprefix("whsec_").encode()), BODY, NOW) is None
    assert verify(scheme, standard_headers(b"0123456789abcdefghijklmnopqrstuv"), BODY, NOW) is None


def test_a_short_secret_without_whsec_is_never_decoded_to_a_shorter_key() -> None:
    scheme = StandardWebhooks(secrets=("YWJj",))
    assert verify(scheme, standard_headers(b"YWJj"), BODY, NOW) is None
    assert verify(scheme, standard_headers(b"abc"), BODY, NOW) is Refusal.MISMATCH


def test_one_good_signature_among_several_is_enough() -> None:
    headers = standard_headers(b"hunter2-new")
    headers["webhook-signature"] = f"v1a,AAAA v1,AAAA  garbage {headers['webhook-signature']} v2,x"
    assert verify(SCHEMES[-1], headers, BODY, NOW) is None


@pytest.mark.parametrize("value", ["garbage", "v1", "AAAA", "v1;AAAA", "v1a,AAAA", "v1,!!", "v1,é", "V1,AAAA"])
def test_a_signature_header_without_any_readable_v1_signature_is_malformed(value: str) -> None:
    headers = standard_headers(b"hunter2-new") | {"webhook-signature": value}
    assert verify(SCHEMES[-1], headers, BODY, NOW) is Refusal.MALFORMED


@pytest.mark.parametrize("at", ["1768456842.0", "-1", "1e9", "now", "٣", "9" * 16, " 1768456842"])
def test_a_timestamp_that_is_not_unix_seconds_is_malformed(at: str) -> None:
    assert verify(SCHEMES[-1], standard_headers(b"hunter2-new", at=at), BODY, NOW) is Refusal.MALFORMED


@pytest.mark.parametrize("header", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_each_of_the_three_headers_is_needed(header: str) -> None:
    headers = standard_headers(b"hunter2-new")
    del headers[header]
    assert verify(SCHEMES[-1], headers, BODY, NOW) is Refusal.MISSING


@pytest.mark.parametrize(
    ("age", "refusal"),
    [(0, None), (300, None), (301, Refusal.STALE), (-300, None), (-301, Refusal.STALE), (10**9, Refusal.STALE)],
)
def test_messages_beyond_the_tolerance_are_stale_in_both_directions(age: int, refusal: Refusal | None) -> None:
    headers = standard_headers(b"hunter2-new", at=1_768_000_000)
    assert verify(SCHEMES[-1], headers, BODY, 1_768_000_000.0 + age) is refusal


def test_while_nobody_knows_the_time_no_message_is_stale_and_none_is_forged() -> None:
    assert verify(SCHEMES[-1], standard_headers(b"hunter2-new", at=1_768_000_000), BODY, None) is None
    assert verify(SCHEMES[-1], standard_headers(b"forged", at=1_768_000_000), BODY, None) is Refusal.MISMATCH


def test_the_tolerance_can_be_changed() -> None:
    headers = standard_headers(b"k", at=1_768_000_000)
    assert verify(StandardWebhooks(secrets=("k",), tolerance_seconds=3600), headers, BODY, 1_768_003_600.0) is None
    assert (
        verify(StandardWebhooks(secrets=("k",), tolerance_seconds=1), headers, BODY, 1_768_000_002.0) is Refusal.STALE
    )


def test_stale_is_said_only_of_an_authentic_message() -> None:
    assert verify(SCHEMES[-1], standard_headers(b"forged", at=5), BODY, NOW) is Refusal.MISMATCH


@pytest.mark.parametrize("changed", [{"webhook-id": "msg_2"}, {"webhook-timestamp": str(int(NOW) + 1)}])
def test_id_and_timestamp_are_signed(changed: dict[str, str]) -> None:
    assert verify(SCHEMES[-1], standard_headers(b"hunter2-new") | changed, BODY, NOW) is Refusal.MISMATCH


def test_an_id_with_a_full_stop_does_not_shift_into_the_timestamp() -> None:
    scheme = StandardWebhooks(secrets=("k",), tolerance_seconds=1e12)
    headers = standard_headers(b"k", identifier="a.b")
    assert verify(scheme, headers, BODY, NOW) is None
    shifted = headers | {"webhook-id": "a", "webhook-timestamp": "b"}
    assert verify(scheme, shifted, f"{int(NOW)}.".encode() + BODY, NOW) is Refusal.MALFORMED


def test_the_published_standard_webhooks_library_agrees() -> None:
    library = pytest.importorskip("standardwebhooks")
    from datetime import UTC, datetime

    sent = int(time.time())  # the library reads the clock itself
    signature = library.Webhook(WHSEC).sign("msg_1", datetime.fromtimestamp(sent, UTC), BODY.decode())
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(sent), "webhook-signature": signature}
    assert verify(StandardWebhooks(secrets=(WHSEC,)), headers, BODY, float(sent)) is None
    ours = standard_headers(b"0123456789abcdefghijklmnopqrstuv", at=sent)
    library.Webhook(WHSEC).verify(BODY.decode(), ours)


# What a scheme refuses to be built with


BAD_SECRETS = [
    (Header, {"header": "X", "secrets": ("",)}, "empty"),
    (Header, {"header": "X", "secrets": ("good", " ")}, "empty"),
    (Header, {"header": "X", "secrets": ()}, "at least one"),
    (Header, {"header": "X", "secrets": ("hunter2 ",)}, "white space"),
    (Header, {"header": "X", "secrets": ("hunter2\x00x",)}, "control"),
    (Header, {"header": "X", "secrets": ("hunter2\x7fx",)}, "control"),
    (Basic, {"username": "a:b", "passwords": ("hunter2",)}, "colon"),
    (Basic, {"username": "", "passwords": ("hunter2",)}, "user name is empty"),
    (Basic, {"username": "a", "passwords": ("",)}, "empty"),
    (Bearer, {"tokens": ("hunter2\n",)}, "white space"),
    (HmacSha256, {"header": "X", "secrets": ("",)}, "empty"),
    (Qlik, {"secrets": ("hunter2\ud800",)}, "UTF-8"),
    (StandardWebhooks, {"secrets": ("whsec_",)}, "not base64"),
    (StandardWebhooks, {"secrets": ("whsec_hunter2!",)}, "not base64"),
    (StandardWebhooks, {"secrets": ("whsec_====",)}, "not base64"),
    (StandardWebhooks, {"secrets": ("whsec_hünter2",)}, "not base64"),
    (StandardWebhooks, {"secrets": ("",)}, "empty"),
]


@pytest.mark.parametrize(("scheme", "arguments", "message"), BAD_SECRETS)
def test_a_secret_that_cannot_work_is_refused_without_quoting_it(
    scheme: type[Any], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        scheme(**arguments)
    assert "hunter" not in str(caught.value)
    assert "hünter" not in str(caught.value)
    assert caught.value.__context__ is None  # nothing that a log could unroll


# The section of a config


class Section(BaseModel):
    """As a source's section embeds it."""

    model_config = ConfigDict(hide_input_in_errors=True)
    webhook: WebhookConfig


def built(**section: object) -> Scheme:
    return Section.model_validate({"webhook": section}).webhook.build()


@pytest.mark.parametrize(
    ("section", "scheme"),
    [
        ({"scheme": "header", "header": "X-T", "secret": "a"}, Header(header="X-T", secrets=("a",))),
        ({"scheme": "header", "header": "X-T", "secret": ["a", "b"]}, Header(header="X-T", secrets=("a", "b"))),
        ({"scheme": "basic", "username": "u", "password": ["p"]}, Basic(username="u", passwords=("p",))),
        ({"scheme": "bearer", "token": "t"}, Bearer(tokens=("t",))),
        ({"scheme": "hmac_sha256", "header": "S", "secret": "k"}, HmacSha256(header="S", secrets=("k",))),
        (
            {"scheme": "hmac_sha256", "header": "S", "secret": "k", "encoding": "base64", "prefix": "v="},
            HmacSha256(header="S", secrets=("k",), encoding="base64", prefix="v="),
        ),
        ({"scheme": "qlik", "secret": ["k", "l"]}, Qlik(secrets=("k", "l"))),
        ({"scheme": "standard_webhooks", "secret": WHSEC}, StandardWebhooks(secrets=(WHSEC,), tolerance_seconds=300.0)),
        (
            {"scheme": "standard_webhooks", "secret": "k", "tolerance": "1m"},
            StandardWebhooks(secrets=("k",), tolerance_seconds=60.0),
        ),
    ],
)
def test_a_section_builds_its_scheme(section: dict[str, object], scheme: Scheme) -> None:
    assert built(**section) == scheme
    assert scheme.name == section["scheme"]


@pytest.mark.parametrize(
    ("section", "path", "message"),
    [
        ({"scheme": "hunter2"}, "webhook", "scheme"),
        ({"secret": "hunter2"}, "webhook", "scheme"),
        ({"scheme": "qlik"}, "webhook.qlik.secret", "required"),
        ({"scheme": "qlik", "secret": ""}, "webhook.qlik.secret", "a secret is empty"),
        ({"scheme": "qlik", "secret": ["hunter2", ""]}, "webhook.qlik.secret", "a secret is empty"),
        ({"scheme": "qlik", "secret": []}, "webhook.qlik.secret", "at least one secret"),
        ({"scheme": "qlik", "secret": None}, "webhook.qlik.secret", "must be text"),
        ({"scheme": "qlik", "secret": 4711}, "webhook.qlik.secret", "a number needs quotes"),
        ({"scheme": "qlik", "secret": ["hunter2", 4711]}, "webhook.qlik.secret", "a number needs quotes"),
        ({"scheme": "qlik", "secret": {"hunter2": 1}}, "webhook.qlik.secret", "must be text"),
        ({"scheme": "qlik", "secret": "k", "header": "hunter2"}, "webhook.qlik.header", "not permitted"),
        ({"scheme": "header", "header": "X T", "secret": "hunter2"}, "webhook.header.header", "pattern"),
        ({"scheme": "header", "header": "X\n", "secret": "hunter2"}, "webhook.header.header", "pattern"),
        ({"scheme": "header", "header": "X", "secret": "hunter2 "}, "webhook.header.secret", "white space"),
        ({"scheme": "basic", "username": "u:v", "password": "hunter2"}, "webhook.basic.username", "colon"),
        ({"scheme": "bearer", "token": " hunter2"}, "webhook.bearer.token", "white space"),
        (
            {"scheme": "hmac_sha256", "header": "X", "secret": "hunter2", "encoding": "rot13"},
            "webhook.hmac_sha256.encoding",
            "'hex' or 'base64'",
        ),
        (
            {"scheme": "standard_webhooks", "secret": "whsec_hunter2!"},
            "webhook.standard_webhooks.secret",
            "not base64 after whsec_",
        ),
        (
            {"scheme": "standard_webhooks", "secret": "hunter2", "tolerance": "0s"},
            "webhook.standard_webhooks.tolerance",
            "greater than 0",
        ),
    ],
)
def test_a_wrong_section_names_the_field_and_no_value(section: dict[str, object], path: str, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        built(**section)
    (error,) = caught.value.errors(include_input=False, include_url=False)
    assert ".".join(map(str, error["loc"])) == path
    assert message in error["msg"]
    if section.get("scheme") != "hunter2":  # a wrong scheme is quoted: it is no secret
        assert "hunter2" not in str(caught.value)
        assert "4711" not in str(caught.value)


def test_secrets_are_masked_wherever_a_section_is_printed() -> None:
    webhook = Section.model_validate({"webhook": {"scheme": "bearer", "token": ["hunter2", "hunter3"]}}).webhook
    printed = repr(webhook) + str(webhook) + webhook.model_dump_json() + repr(webhook.model_dump())
    assert "hunter" not in printed
    assert webhook.model_dump(mode="json") == {"scheme": "bearer", "token": ["**********", "**********"]}


def test_editors_learn_that_a_secret_is_one_text_or_a_list() -> None:
    schema = TypeAdapter(WebhookConfig).json_schema()
    assert set(schema["discriminator"]["mapping"]) == {scheme.name for scheme in SCHEMES}
    kinds = schema["$defs"]["BearerConfig"]["properties"]["token"]["anyOf"]
    assert [kind["type"] for kind in kinds] == ["string", "array"]
