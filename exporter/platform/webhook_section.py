"""What a user writes under ``webhook:`` of a source, and the scheme it builds.

Every secret may be one string or a list of strings, for rotation. Messages never quote a value; a model that embeds
``WebhookConfig`` must set ``hide_input_in_errors`` too (every ``Section`` does), because pydantic decides by the
outermost model whether to print the input.
"""

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from exporter.platform.fields import Duration, Section
from exporter.wire import schemes


def _one_or_many(check: Callable[[str], object]) -> BeforeValidator:
    """Accept a secret or a list of them, each passing ``check``, which raises ValueError."""

    def validate(value: object) -> tuple[SecretStr, ...]:
        items = value if isinstance(value, list | tuple) else [value]
        if not items:
            raise ValueError("at least one secret is needed")
        secrets = tuple(item if isinstance(item, SecretStr) else _secret(item) for item in items)
        for secret in secrets:
            check(secret.get_secret_value())
        return secrets

    return BeforeValidator(validate, json_schema_input_type=SecretStr | list[SecretStr])


def _secret(value: object) -> SecretStr:
    if isinstance(value, str):
        return SecretStr(value)
    raise ValueError("a secret must be text (a number needs quotes) or a list of texts")


def _username(value: str) -> str:
    schemes.check_username(value)
    return value


Secrets = Annotated[tuple[SecretStr, ...], _one_or_many(schemes.check_secret)]
HeaderSecrets = Annotated[tuple[SecretStr, ...], _one_or_many(schemes.check_header_secret)]
SigningSecrets = Annotated[tuple[SecretStr, ...], _one_or_many(schemes.signing_keys)]
HeaderName = Annotated[str, Field(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")]  # a token of RFC 9110, section 5.6.2


class HeaderConfig(Section):
    """A shared secret in a named header."""

    scheme: Literal["header"]
    header: HeaderName
    secret: HeaderSecrets

    def build(self) -> schemes.Header:
        return schemes.Header(header=self.header, secrets=_texts(self.secret))


class BasicConfig(Section):
    """HTTP basic authentication."""

    scheme: Literal["basic"]
    username: Annotated[str, AfterValidator(_username)]
    password: Secrets

    def build(self) -> schemes.Basic:
        return schemes.Basic(username=self.username, passwords=_texts(self.password))


class BearerConfig(Section):
    """A bearer token in ``Authorization``."""

    scheme: Literal["bearer"]
    token: HeaderSecrets

    def build(self) -> schemes.Bearer:
        return schemes.Bearer(tokens=_texts(self.token))


class HmacSha256Config(Section):
    """HMAC-SHA256 of the raw body in a named header."""

    scheme: Literal["hmac_sha256"]
    header: HeaderName
    secret: Secrets
    encoding: schemes.Encoding = "hex"
    prefix: str = ""

    def build(self) -> schemes.HmacSha256:
        return schemes.HmacSha256(
            header=self.header, secrets=_texts(self.secret), encoding=self.encoding, prefix=self.prefix
        )


class QlikConfig(Section):
    """Hex HMAC-SHA256 of the raw body in ``Qlik-Signature``."""

    scheme: Literal["qlik"]
    secret: Secrets

    def build(self) -> schemes.Qlik:
        return schemes.Qlik(secrets=_texts(self.secret))


class StandardWebhooksConfig(Section):
    """Standard Webhooks: an id, a time and the body, signed together."""

    scheme: Literal["standard_webhooks"]
    secret: SigningSecrets
    tolerance: Duration = Field(
        default="5m", gt=0.0, validate_default=True, description="into the past and into the future"
    )

    def build(self) -> schemes.StandardWebhooks:
        return schemes.StandardWebhooks(secrets=_texts(self.secret), tolerance_seconds=self.tolerance)


WebhookConfig = Annotated[
    HeaderConfig | BasicConfig | BearerConfig | HmacSha256Config | QlikConfig | StandardWebhooksConfig,
    Field(discriminator="scheme"),
]


def _texts(secrets: tuple[SecretStr, ...]) -> tuple[str, ...]:
    return tuple(secret.get_secret_value() for secret in secrets)
