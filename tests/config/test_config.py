"""The config: what is accepted, and every mistake as one line that names its place."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from exporter.config import ConfigError, load, parse, validate
from exporter.config.schema import schema
from exporter.model.durations import parse_duration

EXAMPLE = """
server: {listen: "127.0.0.1:0", admin_token: "${ADMIN:-letmein-please}"}
store: {url: "sqlite:///x.db", retention: 14d}
sources:
  make-eu:
    platform: make
    url: https://eu1.make.com/
    token: ${MAKE_TOKEN}
    organization_id: 9
    poll: {interval: 90s, budget_share: 0.25}
    webhook: {scheme: header, header: X-Webhook-Token, secret: [one-secret, "two-$$-secret"]}
    exclude: ["test *"]
    backfill: 7d
  qlik:
    platform: qlik
    url: https://tenant.eu.qlikcloud.com
    oauth: {client_id: cid, client_secret: csecret}
    webhook: {scheme: qlik, secret: 0123456789abcdef0123456789abcdef}
  etl:
    platform: etlworks
    url: https://app.etlworks.com
    login: me
    password: pass-word
    flows: [1234, 1235]
    webhook: {scheme: basic, username: u, password: hook-pass}
  docs:
    platform: cognaize
    url: https://cognaize.example
    token: cog-token
    workflows: {wf-1: Invoices}
    webhook: {scheme: standard_webhooks, secret: whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=, tolerance: 10m}
"""
ENVIRONMENT = {"MAKE_TOKEN": "very-secret-token"}


def problems(change: Any) -> list[str]:
    """What is said about the example with one thing changed."""
    data = yaml.safe_load(EXAMPLE)
    change(data)
    with pytest.raises(ConfigError) as caught:
        parse(yaml.safe_dump(data), ENVIRONMENT)
    return caught.value.problems


def test_off_is_a_word_where_a_word_is_meant_and_a_truth_value_where_one_is() -> None:
    text = EXAMPLE.replace("backfill: 7d", "backfill: off\n    steps: off") + "retries: {mode: off}\n"
    config = parse(text.replace('listen: "127.0.0.1:0"', "reload: on"), ENVIRONMENT)
    make: Any = config.sources["make-eu"]
    assert (make.backfill, make.steps, config.retries.mode) == ("off", "off", "off")
    assert config.server.reload is True
    for truth, word in ((True, "true"), (False, "False"), (True, "yes"), (False, "off")):
        assert parse(EXAMPLE + f"traces: {{enabled: {word}}}\n", ENVIRONMENT).traces.enabled is truth


def test_what_runs_again_from_its_trigger_is_retried_only_where_a_policy_says_so() -> None:
    policies = [
        {"name": "careful", "match": {"workflow.id": "1"}, "action": "retry"},
        {"name": "anew", "action": "retry", "retry": {"rerun": "allow"}},
    ]
    config = parse(EXAMPLE + yaml.safe_dump({"retries": {"policies": policies}}), ENVIRONMENT)
    assert [policy.rerun for policy in config.rules().policies] == [False, True]


def test_the_example_is_read_with_its_variables_durations_and_defaults() -> None:
    config = parse(EXAMPLE, ENVIRONMENT)
    source: Any = config.sources["make-eu"]
    assert source.token.get_secret_value() == "very-secret-token"
    assert source.url == "https://eu1.make.com"
    assert (source.poll.interval, source.poll.budget_share, source.backfill_seconds) == (90.0, 0.25, 7 * 86400.0)
    assert config.store.retention == 14 * 86400.0
    assert config.limits.series_max == 200_000
    assert config.sources["docs"].backfill_seconds == 0.0
    assert config.server.admin_token is not None
    assert config.server.admin_token.get_secret_value() == "letmein-please"
    assert {"very-secret-token", "two-$-secret", "csecret", "pass-word", "hook-pass"} <= set(config.secrets())


MISTAKES = """
sources.qlik.plattform=x                  | sources.qlik.plattform: unknown key; did you mean platform?
sources.qlik.url=                         | sources.qlik.url: missing
sources.qlik.url=tenant                   | sources.qlik.url: must be a URL such as https://example.com
sources.qlik.url=tenant.eu.qlikcloud.com | sources.qlik.url: must be a URL: write https://tenant.eu.qlikcloud.com
sources.qlik.url=https://[tenant          | sources.qlik.url: must be a URL such as https://example.com
sources.qlik.url=https://tenant:99999     | sources.qlik.url: must be a URL such as https://example.com
sources.etl.poll.requests_per_minute=.inf | sources.etl.poll.requests_per_minute: Input should be a finite number
sources.qlik.platform=zapier              | sources.qlik.platform: unknown; one of make, qlik, etlworks, cognaize, n8n
sources.qlik.platform=                    | sources.qlik.platform: missing; one of make, qlik, etlworks, cognaize, n8n
sources.a b.platform=make                 | sources.a b: a source name has letters, digits, dot, dash and underscore only
sources.make-eu.poll.interval=60          | sources.make-eu.poll.interval: write a duration with its unit, for example 30s, 5m, 2h or 14d
sources.make-eu.poll.interval=5 parsecs   | sources.make-eu.poll.interval: not a duration; write for example 30s, 5m, 2h or 14d
sources.make-eu.token=${NOPE}             | sources.make-eu.token: the environment variable NOPE is not set
sources.make-eu.token_file=/nope          | sources.make-eu.token_file: give either token or token_file, not both
server.listen=10870                       | server.listen: write an address as HOST:PORT, for example 127.0.0.1:10870
store.url=mysql://x                       | store.url: use sqlite:///FILE or postgresql://USER@HOST/DATABASE
store.url=postgresql://u:a#b@h/db         | store.url: it has a #: in a password write # as %23, or give it as store.password or store.password_file
store.url=postgresql://h/db?sslmode=no    | store.url: sslmode is one of disable, allow, prefer, require, verify-ca, verify-full
store.password=hidden                     | store.password: a SQLite database has none; remove it
store.retention=1h                        | store.retention: the shortest retention is 1d: runs are recognised by the ledger for that long
retries.policies=[x]                      | retries.policies[0]: must be a section of keys and values
nonsense=1                                | nonsense: unknown key
sources=                                  | sources: missing
server.basic_auth.users.me=plain          | server.basic_auth.users: the password of 'me' is not a bcrypt hash; make one with: htpasswd -nBC 10 ''
"""  # noqa: E501 (a table)


def mistakes() -> list[tuple[str, Any, str]]:
    """Key, what is written there (None: nothing), what is said."""
    rows = [[part.strip() for part in row.split(" | ")] for row in MISTAKES.strip().splitlines()]
    return [(*_set(row[0]), row[1]) for row in rows]


def _set(written: str) -> tuple[str, Any]:
    key, _, value = written.partition("=")
    return key, None if value == "" else value if key.endswith("listen") else yaml.safe_load(value)


@pytest.mark.parametrize(("key", "value", "line"), mistakes())
def test_a_mistake_is_one_line_that_names_its_place_and_the_way_out(key: str, value: Any, line: str) -> None:
    def change(data: Any) -> None:
        *path, last = key.split(".")
        for part in path:
            data = data.setdefault(part, {})
        if value is None:
            del data[last]
        else:
            data[last] = value

    assert line in problems(change)


def test_all_mistakes_are_told_at_once_and_none_quotes_a_secret() -> None:
    def change(data: Any) -> None:
        data["sources"]["make-eu"]["webhook"]["scheme"] = "heather"
        data["sources"]["qlik"]["oauth"]["client_sekret"] = data["sources"]["qlik"]["oauth"].pop("client_secret")
        data["sources"]["etl"]["extra"] = "hook-pass"

    lines = problems(change)
    assert len(lines) >= 4
    text = "\n".join(lines)
    for secret in ("one-secret", "two-", "csecret", "hook-pass", "very-secret-token"):
        assert secret not in text


def test_yaml_mistakes_name_their_line() -> None:
    for text, line in (
        ("sources: [", "line "),
        ("a: 1\nb: 2\na: 3\n", "line 3: 'a' is written twice"),
        ("- 1", "the config must be"),
    ):
        with pytest.raises(ConfigError) as caught:
            parse(text, {})
        assert line in caught.value.problems[0]


SOURCE = '{platform: cognaize, url: "http://localhost", token: abcd}'
NUL = r'"a\0b"'


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("? [a, b]\n: 1\n", "line 1: found unhashable key"),
        ("slo: {a: 2026-13-45}\n", "not valid YAML: month must be in 1..12"),
        (f"limits: {{series_max: {'9' * 5000}}}\n", "not valid YAML: Exceeds the limit"),
        ("slo: &a {x: *a}\n", "the config is nested too deeply, or contains itself"),
        (f"slo: {'[' * 3000}{']' * 3000}\n", "the config is nested too deeply, or contains itself"),
        ("sources: {m: {platform: [make], url: 'http://localhost'}}", "sources.m.platform: unknown; one of make, "),
        (
            f"sources: {{m: {SOURCE.replace('token: abcd', 'token_file: ' + NUL)}}}",
            "sources.m.token_file: cannot read ",
        ),
    ],
    ids=["key", "date", "number", "recursive", "deep", "platform", "file name"],
)
def test_no_mistake_is_ever_a_traceback(text: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, {})
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(line)


def test_sections_may_share_keys_by_a_merge_and_change_some() -> None:
    text = f"sources:\n  a: &a {SOURCE}\n  b: {{<<: *a, url: 'http://other'}}\n"
    sources = parse(text, {}).sources
    assert (sources["a"].url, sources["b"].url) == ("http://localhost", "http://other")
    with pytest.raises(ConfigError, match="written twice"):
        parse(text.replace("<<: *a", "<<: *a, url: 'http://x'"), {})


def test_a_source_may_be_named_like_a_file() -> None:
    assert list(parse(f"sources: {{etl_file: {SOURCE}}}", {}).sources) == ["etl_file"]


def test_secrets_come_from_files_and_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-a-file\n")
    text = f"sources: {{m: {{platform: cognaize, url: 'http://localhost', token_file: {tmp_path}/token}}}}"
    source: Any = parse(text, {}).sources["m"]
    assert source.token.get_secret_value() == "from-a-file"
    with pytest.raises(ConfigError) as caught:
        parse(text.replace("/token}", "/nope}"), {})
    assert caught.value.problems == ["sources.m.token_file: cannot read the file: No such file or directory"]
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("5m", 300), ("1h30m", 5400), ("14d", 1209600), ("1.5h", 5400), ("250ms", 0.25)]
)
def test_durations_are_written_with_their_units(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "5 m", "m5", "1h-5m", "1e3s", 5, None, True])
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="write"):
        parse_duration(text)


def test_the_schema_for_editors_knows_every_platform_and_the_files_of_secrets() -> None:
    made = schema()
    variants = made["properties"]["sources"]["additionalProperties"]["oneOf"]
    names = {made["$defs"][v["$ref"].rsplit("/", 1)[1]]["properties"]["platform"]["const"] for v in variants}
    assert names == {"make", "qlik", "etlworks", "cognaize", "n8n"}
    assert "admin_token_file" in made["$defs"]["ServerConfig"]["properties"]


def test_a_config_without_sources_is_refused() -> None:
    with pytest.raises(ConfigError):
        validate({"sources": {}})
