"""How a source proves who it is: a token somebody issued by hand, or tokens fetched for a login.

Secrets are replaced while the service runs. Whoever rotates one writes its file anew, or points a link elsewhere (as
Kubernetes does). Nothing watches the file: a refusal is the sign to look. What cannot be used (no file, an empty one)
changes nothing, and the next refusal looks again. Tokens that were fetched are replaced when most of their life is
over, and whenever the platform refuses one.
"""

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pydantic import SecretStr

from exporter.log import get_logger, register_secrets
from exporter.platform.fields import FileSecret, read_secret
from exporter.wire.api import Api
from exporter.wire.decode import Undecodable, decode
from exporter.wire.errors import ApiError, ErrorKind

log = get_logger(__name__)

#: The part of a token's life that is used.
LIFE_USED = 0.8


def travels_in_a_header(value: object) -> bool:
    return isinstance(value, str) and value.isascii() and value.isprintable() and " " not in value and value != ""


class Credential:
    """One secret of the config, as it is now."""

    def __init__(self, secret: SecretStr, *, usable: Callable[[str], bool] = lambda value: True) -> None:
        self.value = secret.get_secret_value()
        self._file = secret.path if isinstance(secret, FileSecret) else None
        self._usable = usable

    async def read_again(self) -> bool:
        """Whether the file holds another value by now, which is then ``value``."""
        if self._file is None:
            return False
        found = await asyncio.to_thread(read_secret, self._file)
        if found is None or found == self.value:
            return False
        register_secrets([found])
        if not self._usable(found):
            log.warning("secret not taken over: it cannot be sent in a header", file=str(self._file))
            return False
        self.value = found
        log.info("secret taken over from its file", file=str(self._file))
        return True


def bearer(token: str) -> dict[str, str]:
    """The header nearly every platform wants a token in."""
    return {"Authorization": f"Bearer {token}"}


class Token:
    """A token or an API key that somebody issued by hand, and may replace in its file."""

    def __init__(self, token: SecretStr, *, header: Callable[[str], dict[str, str]] = bearer) -> None:
        self._token = Credential(token, usable=travels_in_a_header)
        self._header = header

    async def headers(self, api: Api) -> dict[str, str]:
        return self._header(self._token.value)

    async def renew(self, api: Api) -> bool:
        return await self._token.read_again()


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A token as the platform issued it."""

    token: str
    at: float  # on the platform's clock
    lasts: float | None  # seconds; None: nothing says how long


class Login:
    """Tokens fetched for a secret, which may be replaced in its file.

    ``issue`` makes the call, with the secret as it is now, and raises ``ApiError``; ``lasts`` is how long a token is
    taken to last whose answer does not say (seconds).
    """

    def __init__(
        self,
        secret: SecretStr,
        issue: Callable[[Api, str], Awaitable[Issued]],
        *,
        lasts: float,
        header: Callable[[str], dict[str, str]] = bearer,
    ) -> None:
        self._secret = Credential(secret)
        self._issue = issue
        self._lasts = lasts
        self._header = header
        self._token: str | None = None
        self._renew_at = 0.0  # on the platform's clock

    async def headers(self, api: Api) -> dict[str, str]:
        if self._token is None or api.platform_now() >= self._renew_at:
            await self._fetch(api)
        return self._header(self._token or "")

    async def renew(self, api: Api) -> bool:
        await self._fetch(api)
        return True

    async def _fetch(self, api: Api) -> None:
        try:
            issued = await self._issue(api, self._secret.value)
        except ApiError as error:
            if error.kind is not ErrorKind.AUTH or not await self._secret.read_again():
                raise
            issued = await self._issue(api, self._secret.value)
        lasts = self._lasts if issued.lasts is None else issued.lasts
        self._token, self._renew_at = issued.token, issued.at + LIFE_USED * max(0.0, lasts)


def issued(token: object, *, at: float, lasts: object = None, endpoint: str) -> Issued:
    """What a login answered: the token, and for how many seconds it holds, by the answer or by the token itself.

    Raises ``ApiError`` of kind ``bad_payload`` where there is no token.
    """
    if not isinstance(token, str) or not travels_in_a_header(token):
        raise ApiError(ErrorKind.BAD_PAYLOAD, endpoint=endpoint, detail="the answer holds no token", status=200)
    told = float(lasts) if isinstance(lasts, int | float) and not isinstance(lasts, bool) and lasts > 0 else None
    expires_at = expiry(token)
    return Issued(token=token, at=at, lasts=told if told is not None or expires_at is None else expires_at - at)


def expiry(token: str) -> float | None:
    """When a JWT says it expires (seconds since the epoch), None if it does not say, or is no JWT."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = decode(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, Undecodable, ValueError):
        return None
    exp = claims.get("exp") if isinstance(claims, dict) else None
    return float(exp) if isinstance(exp, int | float) and not isinstance(exp, bool) else None
