"""How a tenant is told who asks: an API key as it is, or access tokens fetched for an OAuth client.

Both travel as a bearer token. Access tokens are fetched with the JSON body Qlik's own clients send, renewed before they
end and once more whenever one is refused early.
"""

from exporter.platform.credentials import Issued, Login, Token, issued
from exporter.platforms.qlik.config import OAuthConfig, QlikConfig
from exporter.wire.api import Api
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind

_TOKEN_ENDPOINT = "/oauth/token"  # noqa: S105 (a path)
#: Where the answer does not say how long a token lives. One that ends earlier is noticed by its 401.
TOKEN_SECONDS_DEFAULT = 3600.0


def auth(config: QlikConfig) -> Token | Login:
    """The credential a source is configured with."""
    if config.oauth is not None:
        return _client_credentials(config.oauth)
    assert config.token is not None  # noqa: S101 (the config has checked it)
    return Token(config.token)


def _client_credentials(config: OAuthConfig) -> Login:
    async def issue(api: Api, secret: str) -> Issued:
        body = {
            "client_id": config.client_id,
            "client_secret": secret,
            "grant_type": "client_credentials",
            "scope": config.scope,
        }
        try:
            # Everything else waits for it, so it goes first.
            answer = await api.post(_TOKEN_ENDPOINT, lane=Lane.RETRIES, json=body, idempotent=True, anonymous=True)
        except ApiError as error:
            if error.status == 400:  # how OAuth refuses a client, a scope or a grant (RFC 6749, section 5.2)
                raise ApiError(
                    ErrorKind.AUTH, endpoint=error.endpoint, detail=error.detail, status=error.status
                ) from None
            raise
        data = answer.data if isinstance(answer.data, dict) else {}
        lasts = data.get("expires_in")
        return issued(data.get("access_token"), at=answer.at, lasts=lasts, endpoint=f"POST {_TOKEN_ENDPOINT}")

    return Login(config.client_secret, issue, lasts=TOKEN_SECONDS_DEFAULT)
