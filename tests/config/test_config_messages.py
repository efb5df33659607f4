"""What is said of a mistake in the config: the place, what is wrong, the way out; never a value that may be secret."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.config import ConfigError, load, parse
from exporter.config.cautions import cautions

SOURCE = "sources:\n  q:\n    platform: qlik\n    url: https://q.example\n    token: t-o-k-e-n\n"
ETLWORKS = "sources:\n  e:\n    platform: etlworks\n    url: https://e.example\n    token: t-o-k-e-n\n"
COGNAIZE = "sources:\n  c:\n    platform: cognaize\n    url: https://c.example\n    token: t-o-k-e-n\n"
MAKE = "sources:\n  m:\n    platform: make\n    url: https://eu1.make.com\n    token: t-o-k-e-n\n"


def problems(text: str, **environment: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, environment)
    return caught.value.problems


WHOLE = [
    ("sources: {}", "sources: nothing is written there; name at least one source, with platform and url"),
    ("sources:", "sources: nothing is written there; name at least one source, with platform and url"),
    (SOURCE + "    backfill: 7\n", "sources.q.backfill: write off, or a duration with its unit, for example 7d"),
    (SOURCE + "    backfill: soon\n", "sources.q.backfill: write off, or a duration with its unit, for example 7d"),
    (SOURCE + "    timeout: 5\n", "sources.q.timeout: write a duration with its unit, for example 30s, 5m, 2h or 14d"),
    (MAKE + "    team_ids: 77\n", "sources.m.team_ids: must be a list: write [77]"),
    (MAKE + "    team_ids: [a]\n", "sources.m.team_ids[0]: must be a whole number"),
    (SOURCE + "    exclude: x\n", "sources.q.exclude: must be a list: one entry a line, each after a dash"),
    (SOURCE + "    include: {a: 1}\n", "sources.q.include: must be a list: one entry a line, each after a dash"),
    (SOURCE + "    exclude: [{a: 1}]\n", "sources.q.exclude[0]: must be text; write a number in quotes"),
    (SOURCE + "    exclude:\n", "sources.q.exclude: nothing is written there"),
    (SOURCE + "    labels: [a]\n", "sources.q.labels: must be a section of keys and values"),
    (SOURCE + "    poll: 60s\n", "sources.q.poll: must be a section of keys and values"),
    (
        SOURCE + "    poll: {budget_share: 50}\n",
        "sources.q.poll.budget_share: must be at most 1: a share, for example 0.5 for 50 %",
    ),
    (SOURCE + "    pol: {}\n", "sources.q.pol: unknown key; did you mean poll?"),
    (SOURCE + "    interval: 60s\n", "sources.q.interval: unknown key; did you mean poll.interval?"),
    (SOURCE + "    tokens: x\n", "sources.q.tokens: unknown key; did you mean token?"),
    (
        SOURCE + "    webhook: {scheme: qlick, secret: s}\n",
        "sources.q.webhook.scheme: must be one of header, basic, "
        "bearer, hmac_sha256, qlik, standard_webhooks; did you mean qlik?",
    ),
    (
        SOURCE + "    webhook: {secret: s}\n",
        "sources.q.webhook.scheme: missing; one of header, basic, bearer, hmac_sha256, qlik, standard_webhooks",
    ),
    (
        SOURCE + "    webhook: {scheme: header, headr: X, secret: s}\n",
        "sources.q.webhook.headr: unknown key; did you mean header?",
    ),
    (
        SOURCE.replace("qlik", "qlick"),
        "sources.q.platform: unknown; one of make, qlik, etlworks, cognaize, n8n; did you mean qlik?",
    ),
    (SOURCE.replace("https://q.example", "q.example"), "sources.q.url: must be a URL: write https://q.example"),
    (
        SOURCE.replace("q.example", "q.example/api/v1/automations"),
        "sources.q.url: leave out the path, which is added when it is read: write https://q.example",
    ),
    (
        MAKE.replace("make.com", "make.com/9/team/dashboard"),
        "sources.m.url: leave out the path, which is added when it is read: write https://eu1.make.com",
    ),
    (
        SOURCE.replace("https://q", "https://me:s3cr3t@q"),
        "sources.q.url: must be a URL such as https://example.com, without a user name and a password",
    ),
    (
        SOURCE.replace("t-o-k-e-n", "Bearer abc"),
        "sources.q.token: a token has no spaces and no characters beyond ASCII; "
        "without a word such as Bearer before it",
    ),
    (SOURCE.replace("t-o-k-e-n", "12345"), "sources.q.token: must be text; write a number in quotes"),
    (SOURCE.replace("t-o-k-e-n", "''"), "sources.q.token: must not be empty"),
    (SOURCE.replace("t-o-k-e-n", "${EMPTY}"), "sources.q.token: must not be empty"),
    (
        SOURCE.replace("t-o-k-e-n", "${MY-TOKEN}"),
        "sources.q.token: a variable is written as ${NAME}, with letters, digits and _; a dollar sign as $$",
    ),
    (
        SOURCE.replace("t-o-k-e-n", "${TOKEN"),
        "sources.q.token: a variable is written as ${NAME}, with letters, digits and _; a dollar sign as $$",
    ),
    (
        SOURCE + "    grant: [stop, discard]\n",
        "sources.q.grant[1]: Qlik Automate cannot discard; it can stop",
    ),
    (
        MAKE + "    organization_id: 9\n    grant: [stop]\n",
        "sources.m.grant[0]: Make cannot stop; it can discard, reactivate, fix-and-retry",
    ),
    (
        COGNAIZE + "    grant: [discard]\n",
        "sources.c.grant[0]: Cognaize cannot discard; there is nothing to grant here, remove it",
    ),
    (
        SOURCE + "    grant: [stopp]\n",
        "sources.q.grant[0]: must be one of discard, reactivate, stop, fix-and-retry, rerun; did you mean stop?",
    ),
    (SOURCE + "    grant: stop\n", "sources.q.grant: must be a list: one entry a line, each after a dash"),
    (
        ETLWORKS + "    grant: [rerun]\n",
        "sources.e: grant has rerun, but rerun_parameters names no flow: write the parameters of each there",
    ),
    (
        ETLWORKS + "    rerun_parameters: {1234: [{name: day}]}\n",
        "sources.e.rerun_parameters.1234[0]: give either value or secret",
    ),
    (
        ETLWORKS + "    rerun_parameters: {1234: [{name: day, value: a}, {name: day, value: b}]}\n",
        "sources.e: a parameter of flow 1234 is named twice in rerun_parameters",
    ),
    (SOURCE + "server: {listen: 10870}\n", "server.listen: write an address as HOST:PORT, for example 127.0.0.1:10870"),
    (SOURCE + "server: {listen: [a]}\n", "server.listen: write an address as HOST:PORT, for example 127.0.0.1:10870"),
    (SOURCE + "server: {reload: maybe}\n", "server.reload: must be true or false"),
    (
        SOURCE + "server: {webhooks_listen: 127.0.0.1:10870}\n",
        "server: webhooks_listen is the address of listen; leave it out, or give it another port",
    ),
    (SOURCE + "listen: 1\n", "listen: unknown key; did you mean server.listen?"),
    (SOURCE + "slo: {success_ratio: 99}\n", "slo.success_ratio: must be below 1: a share, for example 0.99 for 99 %"),
    (SOURCE + "slo: {success_ratio: much}\n", "slo.success_ratio: must be a number"),
    (SOURCE + "slo: {events_min: 1.5}\n", "slo.events_min: must be a whole number"),
    (SOURCE + "store: {url: /var/lib/a.db}\n", "store.url: a path is no URL: write sqlite:////var/lib/a.db"),
    (SOURCE + "store: {url: a.db}\n", "store.url: a path is no URL: write sqlite:///a.db"),
    (
        SOURCE + "store: {url: sqlite://a.db}\n",
        "store.url: use sqlite:///FILE: three slashes, and a fourth where the path begins with one",
    ),
    (SOURCE + "store: a.db\n", "store: must be a section of keys and values"),
    (SOURCE + "log: {level: warn}\n", "log.level: must be one of debug, info, warning, error; did you mean warning?"),
    (SOURCE + "limits: {series_max: 5}\n", "limits.series_max: must be at least 1000"),
    (SOURCE + "traces: {endpoint: collector}\n", "traces.endpoint: must be a URL such as https://example.com"),
    ("sources:\n\tq: 1\n", "line 2: a tab: indent with spaces"),
    ("sources: {q: {token: ${X}, url: a}}\n", 'line 1: inside { } and [ ] write a variable in quotes: "${NAME}"'),
    ("a: *s3cr3t\n", "line 1: a value begins with an asterisk: write it in quotes"),
    ("a: !s3cr3t x\n", "line 1: a value begins with an exclamation mark: write it in quotes"),
    ("a: @s3cr3t\n", "line 1: a value begins with an at sign: write it in quotes"),
    ("a: b: s3cr3t\n", "line 1: a colon where none may be: write the value in quotes, or look at the indentation"),
    ("a: 1\n b: 2\n", "line 2: a colon where none may be: write the value in quotes, or look at the indentation"),
    ("sources: 1\n---\nb: 2\n", "line 2: a second document begins (---): a config is one"),
    ("a: !!int s3cr3t\n", "not valid YAML: invalid literal for int() with base 10 (line 1)"),
    (SOURCE + "    url: https://x.example\n", "line 6: 'url' is written twice"),
]


@pytest.mark.parametrize(("text", "line"), WHOLE, ids=[line[:40] for _, line in WHOLE])
def test_a_mistake_says_where_it_is_what_is_wrong_and_the_way_out(text: str, line: str) -> None:
    assert line in problems(text, EMPTY="")


def test_all_sections_are_told_at_once_and_what_could_not_be_read_once(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    text = SOURCE.replace("token: t-o-k-e-n", f"token_file: {tmp_path}/empty") + (
        f"    webhook: {{scheme: standard_webhooks, secret_file: {tmp_path}/none}}\n    nonsense: 1\n"
        "log: {level: loud}\nslo: {window: ${WINDOW}}\n".replace("${WINDOW}", '"${WINDOW}"')
    )
    assert problems(text) == [
        "sources.q.token_file: the file is empty; write the secret into it",
        "sources.q.webhook.secret_file: cannot read the file: No such file or directory",
        "slo.window: the environment variable WINDOW is not set",
        "sources.q.nonsense: unknown key",
        "log.level: must be one of debug, info, warning, error",
    ]


def test_the_name_of_the_file_stands_in_front(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("sources: {}\n")
    for wrong in (path, tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError) as caught:
            load(wrong)
        assert caught.value.lines()[0].startswith(f"{wrong}: ")
        assert str(wrong) not in caught.value.problems[0]


SECRET = "Zq9Kxw7Rt2"
PLACES = st.sampled_from(
    ["server.listen", "server.admin_token", "server.tls", "server.reload", "server.basic_auth", "store.url"]
    + ["store.retention", "limits.series_max", "traces.enabled", "traces.endpoint", "traces.headers", "traces.sample"]
    + ["traces.protocol", "traces.url_template", "retries.mode", "retries.policies", "retries.sources", "slo.window"]
    + ["slo.success_ratio", "slo.runbook_url", "log.level", "nonsense", "server.nonsense", "sources.q.nonsense"]
    + [
        f"sources.q.{key}"
        for key in ("platform", "url", "token", "oauth", "poll", "poll.interval", "webhook", "webhook.x")
    ]
    + [f"sources.q.{key}" for key in ("include", "labels", "proxy", "timeout", "backfill", "api_prefix", "token_file")]
    + [
        "sources.q.webhook.scheme",
        "sources.q.webhook.secret",
        "sources.q.webhook.header",
        "sources.q.oauth.client_secret",
    ]
)
TEXTS = [
    SECRET,
    f"{SECRET} {SECRET}",
    f"{SECRET}é",
    f"{SECRET}:{SECRET}",
    f"https://me:{SECRET}@x.example",
    f"http://x.example/?key={SECRET}",
    f"sqlite:{SECRET}@x",
    f"postgresql://u:{SECRET}@h",
    f"${{NOT_SET}}{SECRET}",
    f"/nowhere/{SECRET}",
]
SHAPES = st.one_of(
    st.sampled_from(TEXTS),
    st.recursive(
        st.sampled_from([*TEXTS, 5, None]),
        lambda inner: st.lists(inner, max_size=2) | st.fixed_dictionaries({"a": inner}),
    ),
    st.fixed_dictionaries(
        {"scheme": st.sampled_from(["header", "basic", "bearer", "hmac_sha256", "qlik", "standard_webhooks", SECRET])},
        optional={
            key: st.sampled_from([*TEXTS, [5, SECRET]]) for key in ("secret", "username", "password", "token", "header")
        },
    ),
)


@settings(max_examples=150, deadline=None)
@given(place=PLACES, value=SHAPES, more=st.lists(st.tuples(PLACES, SHAPES), max_size=2))
def test_no_message_shows_what_is_written(place: str, value: Any, more: list[tuple[str, Any]]) -> None:
    data = yaml.safe_load(SOURCE)
    for key, item in ((place, value), *more):
        *path, last = key.split(".")
        here = data
        for part in path:
            here = here.setdefault(part, {})
            if not isinstance(here, dict):
                break
        else:
            here[last] = item
    try:
        said = cautions(parse(yaml.safe_dump(data), {}), 0.0)
    except ConfigError as exc:
        said = exc.problems
    assert SECRET not in "\n".join(said)


@settings(max_examples=150, deadline=None)
@given(
    before=st.sampled_from(
        ["", "*", "&", "!", "!!int ", "!!binary ", "@", "`", "%", "'", '"', "{", "[", "|", "- ", "? ", ": "]
    ),
    after=st.sampled_from(
        ["", ": x", "'", '"', "}", "]", "\t", "\n\t", " : :", "\x07", " #", "\n---\n", ", *", '\\q"']
    ),
    deep=st.booleans(),
)
def test_no_mistake_of_yaml_shows_what_is_written(before: str, after: str, deep: bool) -> None:
    text = f"token: {before}{SECRET}{after}\n"
    if deep:
        text = "sources:\n  q:\n    " + text
    try:
        parse(text, {})
    except ConfigError as exc:
        # As a key, it is a key: "key: unknown key" names it. It is only never shown as a value.
        shown = [
            line for line in exc.problems if not re.match(rf"\S*{SECRET}\S*: ", line) and "written twice" not in line
        ]
        assert SECRET not in "\n".join(shown)


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("http://tenant.eu.qlikcloud.com", True),
        ("http://93.184.216.34", True),
        ("http://[2606:2800:220:1::1]:80", True),
        ("https://tenant.eu.qlikcloud.com", False),
        ("http://127.0.0.1:8080", False),
        ("http://[::1]:8080", False),
        ("http://localhost", False),
        ("http://10.1.2.3", False),
        ("http://192.168.1.9", False),
        ("http://qlik", False),
        ("http://qlik.tools.svc.cluster.local", False),
    ],
)
def test_a_credential_that_leaves_unencrypted_is_a_warning(url: str, warned: bool) -> None:
    said = cautions(parse(SOURCE.replace("https://q.example", url), {}), 0.0)
    assert said == ["sources.q.url: the credential is sent unencrypted: write https://"] * warned
