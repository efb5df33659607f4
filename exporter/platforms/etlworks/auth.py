"""How an Etlworks source proves who it is: an API key as it is, or tokens bought with a login and a password.

Tokens are said to live ten minutes on some pages and a day on others, so the ``exp`` inside a token is believed if it
has one. A token is replaced when most of its life is over, and whenever the platform refuses it.
"""

import base64
import binascii
from typing import Any

from pydantic import SecretStr

from exporter.platform.credentials import Credential, travels_in_a_header
from exporter.platforms.etlworks.config import EtlworksConfig
from exporter.wire.api import Api, ApiError, Auth, ErrorKind
from exporter.wire.budget import Lane
from exporter.wire.decode import decode

#: A token that does not say until when it holds is used this long (seconds).
TOKEN_SECONDS = 480.0
#: The part of a token's life that is used.
LIFE_USED = 0.8
#: As the support articles and as the developer pages name it.
ISSUE_PATHS = ("/rest/v1/token-auth/issue", "/rest/v1/token-auth")


class ApiKey:
    """A key made in the settings of a user."""

    def __init__(self, key: SecretStr) -> None:
        self._key = Credential(key, usable=travels_in_a_header)

    async def headers(self, api: Api) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key.value}"}

    async def renew(self, api: Api) -> bool:
        return await self._key.read_again()


class Login:
    """A user's login and password, exchanged for tokens."""

    def __init__(self, login: str, password: SecretStr) -> None:
        self._login = login
        self._password = Credential(password)
        self._token: str | None = None
        self._renew_at = 0.0  # on the platform's clock

    async def headers(self, api: Api) -> dict[str, str]:
        if self._token is None or api.platform_now() >= self._renew_at:
            await self._issue(api)
        return {"Authorization": f"Bearer {self._token}"}

    async def renew(self, api: Api) -> bool:
        await self._issue(api)
        return True

    async def _issue(self, api: Api) -> None:
        path, other_path = ISSUE_PATHS
        try:
            answer = await self._buy(api, path)
        except ApiError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
            path = other_path
            answer = await self._buy(api, path)
        token = answer.data.get("token") if isinstance(answer.data, dict) else None
        if not isinstance(token, str) or not token.isascii() or not token.isprintable() or not token:
            raise ApiError(ErrorKind.BAD_PAYLOAD, endpoint=f"POST {path}", detail="the answer holds no token")
        self._token = token
        expires_at = expiry(token)
        lasts = TOKEN_SECONDS if expires_at is None else max(0.0, expires_at - answer.at) * LIFE_USED
        self._renew_at = answer.at + lasts

    async def _buy(self, api: Api, path: str) -> Any:
        try:
            return await self._post(api, path)
        except ApiError as error:
            if error.kind is not ErrorKind.AUTH or not await self._password.read_again():
                raise
        return await self._post(api, path)

    async def _post(self, api: Api, path: str) -> Any:
        credential = {"login": self._login, "password": self._password.value}
        return await api.post(path, lane=Lane.RETRIES, json=credential, idempotent=True, anonymous=True)


def expiry(token: str) -> float | None:
    """When a JWT says it expires (seconds since the epoch), None if it does not say, or is no JWT."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = decode(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError):
        return None
    exp = claims.get("exp") if isinstance(claims, dict) else None
    return float(exp) if isinstance(exp, int | float) and not isinstance(exp, bool) else None


def make_auth(config: EtlworksConfig) -> Auth:
    if config.token is not None:
        return ApiKey(config.token)
    if config.login is None or config.password is None:
        raise ValueError("neither a token, nor a login and a password")  # the config has checked it
    return Login(config.login, config.password)
