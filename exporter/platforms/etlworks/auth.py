"""How an Etlworks source proves who it is: an API key as it is, or tokens issued for a login and a password.

Tokens are said to live ten minutes on some pages and a day on others, so the ``exp`` inside a token is believed if it
has one.
"""

from exporter.platform.credentials import Issued, Login, Token, issued
from exporter.platforms.etlworks.config import EtlworksConfig
from exporter.wire.api import Api, Auth
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind

#: A token that does not say until when it holds lasts this long (seconds).
TOKEN_SECONDS = 600.0
#: As the support articles and as the developer pages name it.
ISSUE_PATHS = ("/rest/v1/token-auth/issue", "/rest/v1/token-auth")


def make_auth(config: EtlworksConfig) -> Auth:
    if config.token is not None:
        return Token(config.token)
    if config.login is None or config.password is None:
        raise ValueError("neither a token, nor a login and a password")  # the config has checked it
    login = config.login

    async def issue(api: Api, password: str) -> Issued:
        path, other_path = ISSUE_PATHS
        try:
            return await _issue(api, path, login, password)
        except ApiError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
        return await _issue(api, other_path, login, password)

    return Login(config.password, issue, lasts=TOKEN_SECONDS)


async def _issue(api: Api, path: str, login: str, password: str) -> Issued:
    credential = {"login": login, "password": password}
    answer = await api.post(path, lane=Lane.RETRIES, json=credential, idempotent=True, anonymous=True)
    token = answer.data.get("token") if isinstance(answer.data, dict) else None
    return issued(token, at=answer.at, endpoint=f"POST {path}")
