"""How a tenant is told who asks: an API key as it is, or access tokens fetched for an OAuth client.

Both travel as a bearer token. Access tokens are fetched with the JSON body Qlik's own clients send, renewed before they
end and once more whenever one is refused early.
"""

from pydantic import SecretStr

from exporter.platform.credentials import Credential, travels_in_a_header
from exporter.platforms.qlik.config import OAuthConfig, QlikConfig
from exporter.wire.api import Answer, Api, ApiError, ErrorKind
from exporter.wire.budget import Lane

_TOKEN_ENDPOINT = "/oauth/token"  # noqa: S105 (a path)
#: Where the answer does not say how long a token lives. One that ends earlier is noticed by its 401.
TOKEN_SECONDS_DEFAULT = 3600.0
#: A token is replaced once this share of its life is over.
RENEW_SHARE = 0.9


class ApiKey:
    """A key that acts as its owner. It may be replaced in its file."""

    def __init__(self, key: SecretStr) -> None:
        self._key = Credential(key, usable=travels_in_a_header)

    async def headers(self, api: Api) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key.value}"}

    async def renew(self, api: Api) -> bool:
        return await self._key.read_again()


class ClientCredentials:
    """The access tokens of an OAuth client."""

    def __init__(self, config: OAuthConfig) -> None:
        self._config = config
        self._secret = Credential(config.client_secret)
        self._token: str | None = None
        self._renew_at = 0.0  # on the platform's clock

    async def headers(self, api: Api) -> dict[str, str]:
        if self._token is None or api.platform_now() >= self._renew_at:
            await self._fetch(api)
        return {"Authorization": f"Bearer {self._token}"}

    async def renew(self, api: Api) -> bool:
        await self._fetch(api)
        return True

    async def _fetch(self, api: Api) -> None:
        try:
            answer = await self._ask(api)
        except ApiError as error:
            if error.kind is not ErrorKind.AUTH or not await self._secret.read_again():
                raise
            answer = await self._ask(api)
        data = answer.data if isinstance(answer.data, dict) else {}
        token, seconds = data.get("access_token"), data.get("expires_in")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable() or not token:
            raise ApiError(
                ErrorKind.BAD_PAYLOAD, endpoint=f"POST {_TOKEN_ENDPOINT}", detail="no access token", status=200
            )
        if not isinstance(seconds, int | float) or isinstance(seconds, bool) or seconds <= 0:
            seconds = TOKEN_SECONDS_DEFAULT
        self._token = token
        self._renew_at = answer.at + RENEW_SHARE * seconds

    async def _ask(self, api: Api) -> Answer:
        body = {
            "client_id": self._config.client_id,
            "client_secret": self._secret.value,
            "grant_type": "client_credentials",
            "scope": self._config.scope,
        }
        try:
            # Everything else waits for it, so it goes first.
            return await api.post(_TOKEN_ENDPOINT, lane=Lane.RETRIES, json=body, idempotent=True, anonymous=True)
        except ApiError as error:
            if error.status == 400:  # how OAuth refuses a client, a scope or a grant (RFC 6749, section 5.2)
                raise ApiError(
                    ErrorKind.AUTH, endpoint=error.endpoint, detail=error.detail, status=error.status
                ) from None
            raise


def auth(config: QlikConfig) -> ApiKey | ClientCredentials:
    """The credential a source is configured with."""
    if config.oauth is not None:
        return ClientCredentials(config.oauth)
    assert config.token is not None  # noqa: S101 (the config has checked it)
    return ApiKey(config.token)
