"""How a Cognaize source proves who it is: a fixed token, or one fetched with login and password.

The documents show the answer of the login (the envelope around a Keycloak token answer) but neither its path nor its
body, so the user names the URL, which may be on another host. The refresh token lives 30 minutes, the access token ten
hours: after a 401 the simplest thing that works is to log in again.
"""

import ssl

from pydantic import SecretStr

from exporter.clock import SystemClock
from exporter.platform import BadItem
from exporter.platform.credentials import Credential, travels_in_a_header
from exporter.platforms.cognaize import mapping
from exporter.platforms.cognaize.config import CognaizeConfig
from exporter.wire.api import Api, ApiError, Auth, ErrorKind
from exporter.wire.budget import Lane


class Token:
    """A token that somebody else renews."""

    def __init__(self, token: SecretStr) -> None:
        self._token = Credential(token, usable=travels_in_a_header)

    async def headers(self, api: Api) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token.value}"}

    async def renew(self, api: Api) -> bool:
        return await self._token.read_again()


class Login:
    """A token fetched when it is first needed, and again when it is refused."""

    def __init__(self, config: CognaizeConfig) -> None:
        self._config = config
        self._password = Credential(config.password) if config.password else None
        self._token: str | None = None

    async def headers(self, api: Api) -> dict[str, str]:
        if self._token is None:
            self._token = await self._fetch(api)
        return {"Authorization": f"Bearer {self._token}"}

    async def renew(self, api: Api) -> bool:
        self._token = await self._fetch(api)
        return True

    async def _fetch(self, api: Api) -> str:
        try:
            return await self._log_in(api)
        except ApiError as error:
            if error.kind is not ErrorKind.AUTH or self._password is None or not await self._password.read_again():
                raise
        return await self._log_in(api)

    async def _log_in(self, api: Api) -> str:
        config = self._config
        url, password = config.token_url or "", self._password.value if self._password else ""
        body = {"login": config.login, "password": password}
        if url.startswith(f"{config.url}/"):
            path = url.removeprefix(config.url)
            answer = await api.post(path, lane=Lane.RETRIES, json=body, idempotent=True, anonymous=True)
        else:
            scheme, _, rest = url.partition("://")
            host, slash, path = rest.partition("/")
            path = slash + path
            elsewhere = self._elsewhere(f"{scheme}://{host}", api)
            try:
                answer = await elsewhere.post(path, lane=Lane.RETRIES, json=body, idempotent=True, anonymous=True)
            finally:
                await elsewhere.close()
        try:
            return mapping.access_token(answer.data)
        except BadItem as bad:
            endpoint = f"POST {path}"
            raise ApiError(ErrorKind.BAD_PAYLOAD, endpoint=endpoint, detail=str(bad), status=answer.status) from None

    def _elsewhere(self, base_url: str, api: Api) -> Api:
        """The wire to a host that only issues tokens, under the same budget."""
        ca_file = self._config.tls_ca_file
        return Api(
            base_url=base_url,
            clock=SystemClock(),
            budget=api.budget,
            auth=self,
            user_agent="automation-exporter",
            timeout=self._config.timeout,
            proxy=self._config.proxy,
            ssl=None if ca_file is None else ssl.create_default_context(cafile=ca_file),
            error_detail=mapping.error_detail,
        )


def make_auth(config: CognaizeConfig) -> Auth:
    return Token(config.token) if config.token is not None else Login(config)
