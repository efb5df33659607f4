"""Takes what must not leave out of other people's texts, and says whether two such texts say the same thing.

Error messages of platforms end up in logs, traces, the status page and the ledger. They may quote whatever a customer's
workflow carried: a header, a URL with a token in it, somebody's address. ``redact`` is the one gate they pass; it would
rather hide a word too many than one too few. ``fingerprint`` groups messages that differ only in numbers, ids, names of
hosts, quoted parts and dates.

Every pattern runs in linear time: no quantifier is nested in another over the same characters, and what several
starting points might scan again is bounded.
"""

import hashlib
import re

#: No more than this of a text is looked at, so that a huge one costs no more than a long one.
TEXT_CHARS_MAX = 8192

HIDDEN = "[redacted]"

_BLANKS = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]+")
_RUN_CHARS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/_-=.%"

# Bytes of a header that are no UTF-8 arrive so; neither the store nor an answer can be written with them.
_HALVES = re.compile("[\ud800-\udfff]")
# Before lines are joined: a cookie header has no end but the end of its line.
_COOKIE = re.compile(r"""(\b(?:set-)?cookies?\\{0,4}["']?[ \t]{0,8}[:=][ \t]{0,8})(?!b?["'\\{\[])[^\r\n]+""", re.I)
_PEM = re.compile(r"-----BEGIN [A-Z0-9 ]{1,40}-----(?:.*?-----END [A-Z0-9 ]{1,40}-----|.*)", re.S)

# user:password@ may hold any character of a badly quoted password; a port looks like one, hence the look ahead.
_USERINFO = re.compile(
    r"""(?: (?<=://) | (?<=:\\/\\/) )
        (?: [^\s/?\#"'<>@:]{0,64} : (?!\d{1,5}[/?\#]) [^\s"'<>]{0,256} | [^\s/?\#"'<>]{0,256} ) @""",
    re.X,
)
_QUERY = re.compile(r"""\?(?=[^\s?!.,;:)\]"'<>])[^\s"'<>]*""")
_JWT = re.compile(r"eyJ[\w.=+/-]{8,}")

# The form exporter.wire.errors.ApiError has: "POST /oauth/token: 401 auth: …" is no token and its value.
_NOT_OUR_OWN = r"(?!(?:\d{3}[ ])?(?:auth|rate_limited|not_found|unavailable|bad_payload|timeout|conflict|request):[ ])"
# Unquoted, and of whatever scheme: hide two words.
_AUTHORIZATION = re.compile(
    r"""(authorization\\{0,4}["']?\s?[:=]\s?)""" + _NOT_OUR_OWN + r"""(?!b?["'\\{\[])[^\s"']+(?:\s[^\s"']+)?""", re.I
)
_PAIR = re.compile(
    r"""(
        (?: token | secret | passw(?:or)?d | passphrase | \bpwd | api[-_ ]?key | access[-_ ]?key | private[-_ ]?key
          | credential | authorization | x-auth | signature | cookie | session )
        [\w.-]{0,40} (?: \s (?: key | value ) )? \\{0,4} ["']? \s? (?: => | [:=>] ) \s?
    )"""
    + _NOT_OUR_OWN
    + r"""(?:
        b?" (?: [^"\\] | \\. )* "                   # in quotes
      | b?' (?: [^'\\] | \\. )* '
      | b?\\{0,4} ["'] [^"']*                        # in escaped quotes, or in quotes that never close
      | \[ [^\]]* \]? | \{ [^}]* \}?                 # a list or an object
      | (?: bearer | basic | token | digest | apikey ) \s [^\s"']+    # a header's scheme and what follows it
      | [^\s&"']+
    )""",
    re.I | re.X,
)
# What may follow the word without being the thing: "Bearer token missing", "Token has expired", "Basic plan".
_SCHEME = re.compile(
    r"""\b(?: (bearer)\s(?!(?:tokens?|auth|authentication|authorization|scheme|is|was|has|not|missing|required|invalid
          |expired|and|or)\b)
        | (token|basic)\s(?!(?-i:[A-Z]?[a-z]{1,15})(?:[\s.,;:!?)]|$)) )
        ["']? [^\s,;"'<>)}]+""",
    re.I | re.X,
)
_EMAIL = re.compile(r"[\w.+%'-]{1,64}@[\w-]{1,63}\.[\w.-]{0,190}\w")
_RUN = re.compile(r"[A-Za-z0-9+/_-]{24,}={0,2}")


def redact(text: str, *, limit: int = 300) -> str:
    """One line of at most ``limit`` characters without secrets, tokens, URL queries and e-mail addresses."""
    longer = len(text) > TEXT_CHARS_MAX
    if longer:
        text = text[:TEXT_CHARS_MAX]
        # What was cut in two may no longer look like what it is.
        text = text[:-64] + text[-64:].rstrip(_RUN_CHARS)
    text = _HALVES.sub("\ufffd", text)
    text = _COOKIE.sub(rf"\1{HIDDEN}", text)
    text = _BLANKS.sub(" ", text).strip()
    text = _PEM.sub(HIDDEN, text)
    text = _USERINFO.sub(f"{HIDDEN}@", text)
    text = _QUERY.sub(f"?{HIDDEN}", text)
    text = _JWT.sub(HIDDEN, text)
    text = _AUTHORIZATION.sub(rf"\1{HIDDEN}", text)
    text = _PAIR.sub(rf"\1{HIDDEN}", text)
    text = _SCHEME.sub(lambda match: f"{match[1] or match[2]} {HIDDEN}", text)
    text = _EMAIL.sub("[email]", text)
    text = _RUN.sub(_hide_run, text)
    if longer or len(text) > limit:
        text = text[: max(0, limit - 1)].rstrip() + "…"
    return text


def _hide_run(match: re.Match[str]) -> str:
    """A long run of letters and digits, unless it is a path, a long word or a name_with_underscores."""
    pieces = match[0].split("/")
    if any(_looks_random(piece) for piece in pieces):
        return HIDDEN  # as a whole: the slash is one of base64's characters
    return "/".join(HIDDEN if len(piece) >= 24 and any(map(str.isdigit, piece)) else piece for piece in pieces)


def _looks_random(piece: str) -> bool:
    upper = sum(map(str.isupper, piece))
    lower = sum(map(str.islower, piece))
    digits = sum(map(str.isdigit, piece))
    # Random letters change their case every other time, CamelCase does not.
    return len(piece) >= 12 and (min(upper, lower, digits) > 0 or min(upper, lower) >= len(piece) / 4)


_QUOTED = re.compile(r""""[^"]*"|“[^”]{0,500}”|`[^`]*`|(?<!\w)'[^']{0,200}(?:'\w[^']{0,200}){0,4}'(?!\w)""")
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]{0,6}"
_DATE = re.compile(
    rf"""(?: \d{{4}}-\d\d-\d\d
          | (?:\b(?:mon|tue|wed|thu|fri|sat|sun)[a-z]{{0,6}},?\ )? \b\d{{1,2}}[ -]{_MONTH},?[ -]\d{{4}}
          | (?:\b(?:mon|tue|wed|thu|fri|sat|sun)[a-z]{{0,6}},?\ )? \b{_MONTH}\ \d{{1,2}},?\ \d{{4}}
          | \b\d{{1,2}}[/.]\d{{1,2}}[/.]\d{{4}} )
        (?: (?:t|,?\ ) \d{{1,2}}:\d\d (?: :\d\d (?:[.,]\d{{1,9}})? )? (?:\ ?[ap]m\b)?
            (?: z | \ ?(?:utc|gmt) | \ ?[+-]\d\d:?\d\d )? )?""",
    re.X,
)
_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")
_HEX = re.compile(r"(?<!\w)(?:0x)?[0-9a-f]{8,}(?!\w)")
_URL_HOST = re.compile(r"""(?<=://)[^\s/?#"']+""")
_HOST = re.compile(r"(?<![\w.-])[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.[a-z]{2,}(?![\w-])|\[[0-9a-f:.]{3,45}\]")
_NUMBERED = re.compile(r"(?<!\w)\w*\d\w*")
_NUMBERS = re.compile(r"[+-]?#(?:[.,:_-]#)*")


def fingerprint(text: str) -> str:
    """Twelve hex digits that are the same for two messages of one kind."""
    text = _BLANKS.sub(" ", text[:TEXT_CHARS_MAX]).strip().lower()
    text = _QUOTED.sub("<quoted>", text)
    text = _EMAIL.sub("<email>", text)
    text = _DATE.sub("<date>", text)
    text = _UUID.sub("#", text)
    text = _HEX.sub("#", text)
    text = _URL_HOST.sub("<host>", text)
    text = _HOST.sub("<host>", text)
    text = _NUMBERED.sub("#", text)
    text = _NUMBERS.sub("#", text)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12]
