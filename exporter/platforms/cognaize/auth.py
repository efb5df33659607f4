"""How a Cognaize source proves who it is: a fixed token, or one fetched with login and password.

The documents show the answer of a login (Keycloak's, in the platform's envelope) but neither its path nor its body, and
the vendor's own client sends its token in another header. So the user names the URL, which may be on another host, the
names of the fields, and the header. The refresh token lives 30 minutes, the access token ten hours: the simplest thing
that works is to log in again before it ends, or when it is refused.
"""

import ssl

from exporter.clock import SystemClock
from exporter.platform import BadItem
from exporter.platform.credentials import Issued, Login, Token, issued
from exporter.platforms.cognaize import mapping
from exporter.platforms.cognaize.config import CognaizeConfig
from exporter.wire.api import Answer, Api, Auth
from exporter.wire.budget import Lane
from exporter.wire.errors import ApiError, ErrorKind

#: A token whose answer does not say how long it holds lasts this long (seconds), as the documents' sample does.
TOKEN_SECONDS = 36_000.0


def make_auth(config: CognaizeConfig) -> Auth:
    def header(token: str) -> dict[str, str]:
        return {config.token_header: f"{config.token_word} {token}" if config.token_word else token}

    if config.token is not None:
        return Token(config.token, header=header)
    if config.password is None:
        raise ValueError("neither a token, nor a login and a password")  # the config has checked it

    async def issue(api: Api, password: str) -> Issued:
        return await _log_in(config, api, password)

    return Login(config.password, issue, lasts=TOKEN_SECONDS, header=header)


async def _log_in(config: CognaizeConfig, api: Api, password: str) -> Issued:
    wanted = config.login_request
    body = {name: value.get_secret_value() for name, value in wanted.fields.items()}
    body |= {wanted.login_field: config.login or "", wanted.password_field: password}
    url = config.token_url or ""
    if url.startswith(f"{config.url}/"):
        path = url.removeprefix(config.url)
        answer = await _post(api, path, body, form=wanted.encoding == "form")
    else:
        scheme, _, rest = url.partition("://")
        host, slash, path = rest.partition("/")
        path = slash + path
        elsewhere = _elsewhere(config, f"{scheme}://{host}", api)
        try:
            answer = await _post(elsewhere, path, body, form=wanted.encoding == "form")
        finally:
            await elsewhere.close()
    endpoint = f"POST {path}"
    try:
        token, lasts = mapping.access_token(answer.data)
    except BadItem as bad:
        raise ApiError(ErrorKind.BAD_PAYLOAD, endpoint=endpoint, detail=str(bad), status=answer.status) from None
    return issued(token, at=api.platform_now(), lasts=lasts, endpoint=endpoint)


async def _post(api: Api, path: str, body: dict[str, str], *, form: bool) -> Answer:
    if form:
        return await api.post(path, lane=Lane.RETRIES, form=body, idempotent=True, anonymous=True)
    return await api.post(path, lane=Lane.RETRIES, json=body, idempotent=True, anonymous=True)


class _Nobody:
    """The wire to a host that only issues tokens carries none."""

    async def headers(self, api: Api) -> dict[str, str]:
        return {}

    async def renew(self, api: Api) -> bool:
        return False


def _elsewhere(config: CognaizeConfig, base_url: str, api: Api) -> Api:
    """The wire to a host that only issues tokens, under the same budget."""
    ca_file = config.tls_ca_file
    return Api(
        base_url=base_url,
        clock=SystemClock(),
        budget=api.budget,
        auth=_Nobody(),
        user_agent="automation-exporter",
        timeout=config.timeout,
        proxy=config.proxy,
        ssl=None if ca_file is None else ssl.create_default_context(cafile=ca_file),
        error_detail=mapping.error_detail,
    )
