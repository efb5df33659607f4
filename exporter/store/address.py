"""Where a PostgreSQL is, as a URL says it, and what of the URL is a secret. Pure.

Nothing of a URL is quoted before it is known what stands where: a character that would have to be written otherwise
makes a port, a host or a database of a part of the password.
"""

import re
from collections.abc import Callable
from urllib.parse import parse_qs, unquote, urlsplit

#: How much TLS is asked for, from none to a certificate of the right name.
TLS_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
#: Options that name files.
FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
#: The value of sslrootcert for the certificates that the system trusts.
SYSTEM = "system"
_SECRETS = ("password", "sslpassword")
_HOST = re.compile(r"(?:\[[0-9a-fA-F:.]+(?:%25\w+)?\]|[^\s\[\]:]*)(?::([0-9]*))?")
_OTHERWISE = "in a password write {0} as {1}, or give it as store.password or store.password_file"


def is_postgres(url: str) -> bool:
    return url.startswith(("postgresql://", "postgres://"))


def mistake(url: str) -> str | None:
    """What is wrong with the URL of a PostgreSQL, in one line that quotes nothing of it; None if nothing is."""
    rest = url.partition("://")[2]
    if any(character.isspace() for character in url):
        return "a URL has no spaces: write one as %20"
    if "#" in rest:
        return f"it has a #: {_OTHERWISE.format('#', '%23')}"
    try:
        urlsplit(url)
    except ValueError:
        return f"it has a bracket that is not about an IPv6 address; {_OTHERWISE.format('[', '%5B, ] as %5D')}"
    netloc, _, path = rest.partition("?")[0].partition("/")
    if netloc.count("@") > 1 or "@" in path:
        return f"it has an @ too many: {_OTHERWISE.format('@', '%40, / as %2F')}"
    for host in netloc.rpartition("@")[2].split(","):
        found = _HOST.fullmatch(host)
        if found is None or (found[1] and not 0 < int(found[1]) < 65536):
            return f"a port is no number up to 65535; {_OTHERWISE.format('/', '%2F, ? as %3F')}"
    if "/" in path:
        return "write postgresql://USER@HOST/DATABASE, with nothing behind the database but ?OPTION=VALUE"
    return _mistaken_options(rest.partition("?")[2])


def _mistaken_options(query: str) -> str | None:
    if not query:
        return None
    if "@" in query or any(not all(part.partition("=")[::2]) for part in query.split("&")):
        return f"behind the ? stand options, OPTION=VALUE, with & in between; {_OTHERWISE.format('?', '%3F')}"
    found = options(f"postgresql://?{query}")
    mode = found.get("sslmode", "")
    if mode and mode not in TLS_MODES:
        return f"sslmode is one of {', '.join(TLS_MODES)}"
    if mode.startswith("verify-") and not found.get("sslrootcert"):
        return f"sslmode={mode} needs sslrootcert=FILE with the certificates to trust, or {SYSTEM} for the system's"
    if found.get("sslrootcert") == SYSTEM and mode != "verify-full":
        return f"sslrootcert={SYSTEM} goes with sslmode=verify-full only: anybody can have a certificate of these"
    return None


def options(url: str) -> dict[str, str]:
    """What stands behind the ? of a URL without a mistake; of an option given twice, the last."""
    return {name: values[-1] for name, values in parse_qs(urlsplit(url).query).items()}


def secrets_in(url: str) -> list[str]:
    """Every password in a URL: as it is, and as it is written."""
    if not is_postgres(url):
        return []
    return list(dict.fromkeys(form for written in written_secrets(url) for form in (unquote(written), written)))


def masked(url: str, mask: Callable[[str], str]) -> str:
    """The same URL with what ``mask`` makes of each password in its place."""
    for secret in written_secrets(url):
        shown = mask(secret)
        url = url.replace(f":{secret}@", f":{shown}@").replace(f"password={secret}", f"password={shown}")
    return url


def written_secrets(url: str) -> list[str]:
    """The passwords in a URL as they are written, also where it has mistakes."""
    rest = url.partition("://")[2]
    user = rest.partition("?")[0].rpartition("@")[0] or rest.rpartition("@")[0]
    parts = (part.partition("=") for part in url.partition("?")[2].split("&"))
    found = [user.partition(":")[2], *(value for name, _, value in parts if name in _SECRETS)]
    return [secret for secret in found if secret]


def place(url: str) -> str:
    """How a person finds the database of a URL without a mistake: no password, no options."""
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    return f"postgresql://{user.partition(':')[0]}{at}{hosts}{parts.path}"
