"""``config show``: the whole config, read again as the same, without a single secret."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.config import Config, parse, read
from exporter.config.cautions import cautions
from exporter.config.shown import shown
from tests.config.test_config import ENVIRONMENT, EXAMPLE

ROOT = Path(__file__).parent.parent.parent
MADE_UP = "0123456789abcdef0123456789abcdef"


def again(text: str, environment: dict[str, str], folder: Path) -> tuple[Config, str, Config]:
    """A config, what is shown of it, and what that is read as."""
    path = folder / "config.yaml"
    path.write_text(text)
    config, written = read(path, environment)
    printed = shown(config, written, environment)
    return config, printed, parse(printed, environment)


def without_secrets(config: Config) -> Any:
    """What pydantic shows of a config; hashes of passwords are no secrets to it."""
    return config.model_dump(mode="json", exclude={"server": {"basic_auth"}})


def test_what_is_shown_is_read_as_the_same_and_has_no_secret(tmp_path: Path) -> None:
    config, printed, once_more = again(EXAMPLE, ENVIRONMENT, tmp_path)
    assert without_secrets(once_more) == without_secrets(config)
    assert [secret for secret in config.secrets() if secret in printed] == []
    plain = yaml.safe_load(printed)
    assert plain["store"]["retention"] == "14d"
    assert "&id" not in printed
    assert plain["sources"]["make-eu"]["token"] == "${MAKE_TOKEN}"
    assert plain["sources"]["make-eu"]["poll"]["interval"] == "90s"
    assert plain["sources"]["qlik"]["poll"]["interval"] == "60s"
    assert re.fullmatch(
        r"\$\{SOURCES_QLIK_OAUTH_CLIENT_SECRET:-masked-\w+\}", plain["sources"]["qlik"]["oauth"]["client_secret"]
    )
    assert "very-secret-token" in once_more.sources["make-eu"].secrets()
    assert len([line for line in cautions(once_more, 0.0) if "config show" in line]) > 5
    assert not [line for line in cautions(config, 0.0) if "config show" in line]
    _, twice, _ = again(printed, ENVIRONMENT, tmp_path)
    assert twice == printed


def test_the_complete_example_is_shown_and_read_again(tmp_path: Path) -> None:
    text = (ROOT / "docs/example.yaml").read_text()
    for name in re.findall(r"/run/secrets/([\w.-]+)", text):
        (tmp_path / name).write_text(MADE_UP)
    text = text.replace("/run/secrets/", f"{tmp_path}/")
    environment = dict.fromkeys(re.findall(r"\$\{(\w+)", text), MADE_UP) | {"QLIK_CLIENT_ID": "no-secret"}
    config, printed, once_more = again(text, environment, tmp_path)
    assert without_secrets(once_more) == without_secrets(config)
    assert MADE_UP not in printed
    assert sorted(once_more.secrets()) == sorted(config.secrets())


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("token: ${MAKE_TOKEN}", "${MAKE_TOKEN}"),
        ("token: ${MAKE_TOKEN:-hidden-default}", "${MAKE_TOKEN}"),
        ("token: ${UNSET:-hidden-default}", r"\$\{UNSET:-masked-\w+\}"),
        ("token: part-${MAKE_TOKEN}", r"\$\{SOURCES_Q_TOKEN:-masked-\w+\}"),
        ("token: part-$$-rest", r"\$\{SOURCES_Q_TOKEN:-masked-\w+\}"),
    ],
)
def test_a_secret_is_shown_as_where_it_comes_from(written: str, expected: str, tmp_path: Path) -> None:
    text = f"sources:\n  q:\n    platform: qlik\n    url: https://q.example\n    {written}\n"
    config, printed, _ = again(text, ENVIRONMENT, tmp_path)
    told = yaml.safe_load(printed)["sources"]["q"]["token"]
    assert told == expected or re.fullmatch(expected, told)
    assert config.secrets()[0] not in printed
    assert "hidden-default" not in printed


def test_files_keep_their_paths_and_hashes_of_passwords_are_masked(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("file-secret-1")
    digest = "$2b$10$" + "a" * 53
    text = (
        f"server: {{basic_auth: {{users: {{me: '{digest}'}}}}, admin_token_file: {tmp_path}/t}}\n"
        f"sources: {{q: {{platform: qlik, url: 'https://q.example', token_file: {tmp_path}/t, "
        f"webhook: {{scheme: qlik, secret_file: [{tmp_path}/t, {tmp_path}/t]}}}}}}\n"
        f"traces: {{headers: {{X-Key: inline-secret, X-Other_file: {tmp_path}/t}}}}\n"
    )
    config, printed, once_more = again(text, {}, tmp_path)
    plain = yaml.safe_load(printed)
    assert plain["server"]["admin_token_file"] == f"{tmp_path}/t"
    assert plain["sources"]["q"]["webhook"]["secret_file"] == [f"{tmp_path}/t"] * 2
    assert set(plain["traces"]["headers"]) == {"X-Key", "X-Other_file"}
    assert "token" not in plain["sources"]["q"]
    for hidden in ("file-secret-1", digest, "inline-secret"):
        assert hidden not in printed
    assert once_more.sources == config.sources


words = st.text(st.characters(codec="utf-8", exclude_characters="\x00", exclude_categories=("Cs", "Cc")), max_size=20)


@settings(max_examples=25, deadline=None)
@given(label=words, pattern=words)
def test_any_text_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, label: str, pattern: str) -> None:
    source = {
        "platform": "qlik",
        "url": "https://q.example",
        "token": "${T}",
        "labels": {"a": label},
        "exclude": [pattern],
    }
    data = {"sources": {"q": source}}
    environment = {"T": "t-secret"}
    text = yaml.safe_dump(data).replace("$", "$$").replace("$${T}", "${T}")
    config, _, once_more = again(text, environment, tmp_path_factory.getbasetemp())
    assert config.sources["q"].labels == {"a": label}
    assert without_secrets(once_more) == without_secrets(config)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("postgresql://u@h/db", r"postgresql://u@h/db"),
        ("postgresql://u:${MAKE_TOKEN}@h/db", r"postgresql://u:\$\{MAKE_TOKEN\}@h/db"),
        ("postgresql://u:hidden-one@h/db", r"postgresql://u:\$\{STORE_URL_PASSWORD:-masked-\w+\}@h/db"),
        ("postgresql://u:${UNSET:-hidden-one}@h/db", r"postgresql://u:\$\{UNSET:-masked-\w+\}@h/db"),
        (
            "postgresql://u@h/db?password=hidden-one",
            r"postgresql://u@h/db\?password=\$\{STORE_URL_PASSWORD:-masked-\w+\}",
        ),
        ("postgresql://u:hidd$$one@h/db", r"postgresql://u:\$\{STORE_URL_PASSWORD:-masked-\w+\}@h/db"),
        ("${DATABASE_URL}", r"postgresql://u:\$\{STORE_URL_PASSWORD:-masked-\w+\}@h/db\?sslmode=require"),
        ("postgresql://${USER_AND_PASSWORD}@h/db", r"postgresql://u:\$\{STORE_URL_PASSWORD:-masked-\w+\}@h/db"),
    ],
)
def test_the_password_of_a_database_is_shown_as_where_it_comes_from(
    written: str, expected: str, tmp_path: Path
) -> None:
    environment = ENVIRONMENT | {"USER_AND_PASSWORD": "u:hidden-one"}
    environment |= {"DATABASE_URL": "postgresql://u:hidden-one@h/db?sslmode=require"}
    source = "m:\n    platform: qlik\n    url: https://q.example\n    token: ${MAKE_TOKEN}\n"
    text = f"store: {{url: '{written}'}}\nsources:\n  {source}"
    config, printed, once_more = again(text, environment, tmp_path)
    assert re.fullmatch(expected, yaml.safe_load(printed)["store"]["url"])
    assert "hidden-one" not in printed
    assert once_more.store.url.startswith("postgresql://u")
    if "masked" in expected:
        assert [line for line in cautions(once_more, 0.0) if line.startswith("store.url")]
        assert "hidden-one" in config.secrets() or "hidd$one" in config.secrets()
    _, twice, _ = again(printed, environment, tmp_path)
    assert twice == printed
