"""The URL of a PostgreSQL: what is wrong with it is said without quoting it, and its passwords are known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.store.address import masked, mistake, place, secrets_in

PASSWORD = "Gre4t-s3cret"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://h/db",
        "postgres://h",
        "postgresql://u@h:5432/db",
        "postgresql://u:p%40%23%2F%3F@h:5432/db?sslmode=require",
        "postgresql://u@[::1]:5432/db",
        "postgresql://u@[fe80::1%25eth0]/db",
        "postgresql://u@h1:5432,h2:5433/db?target_session_attrs=read-write",
        "postgresql:///db?host=/run/postgresql",
        "postgresql://u@h/db?sslmode=verify-full&sslrootcert=/etc/ca.pem",
        "postgresql://u@h/db?sslmode=verify-full&sslrootcert=system",
        "postgresql://u@h/my%20db?options=-c%20search_path%3Dexporter",
    ],
)
def test_what_is_right_has_no_mistake(url: str) -> None:
    assert mistake(url) is None


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"postgresql://u:a#{PASSWORD}@h/db", "%23"),
        (f"postgresql://u:a@{PASSWORD}@h/db", "%40"),
        (f"postgresql://u:a/{PASSWORD}@h/db", "%2F"),
        (f"postgresql://u:a/{PASSWORD}:5432/db", "port"),
        (f"postgresql://u:a?{PASSWORD}@h/db", "%3F"),
        (f"postgresql://u:a {PASSWORD}@h/db", "%20"),
        (f"postgresql://u:{PASSWORD}", "port"),
        ("postgresql://u@h:99999/db", "port"),
        ("postgresql://u@h:0/db", "port"),
        ("postgresql://u@[::1/db", "bracket"),
        ("postgresql://u@h/db/more", "DATABASE"),
        ("postgresql://u@h/db?sslmode", "OPTION=VALUE"),
        ("postgresql://u@h/db?sslmode=", "OPTION=VALUE"),
        ("postgresql://u@h/db?sslmode=never", "verify-full"),
        ("postgresql://u@h/db?sslmode=verify-full", "sslrootcert"),
        ("postgresql://u@h/db?sslmode=verify-ca&sslrootcert=system", "verify-full only"),
        ("postgresql://u@h/db?sslrootcert=system", "verify-full only"),
    ],
)
def test_a_mistake_is_one_line_that_quotes_nothing(url: str, said: str) -> None:
    found = mistake(url)
    assert found is not None
    assert said in found
    assert "\n" not in found
    assert PASSWORD not in found


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1, max_size=12).map(PASSWORD.__add__))
def test_whatever_a_password_has_no_line_shows_it(password: str) -> None:
    url = f"postgresql://u:{password}@h/db"
    found = mistake(url)
    if found is None:
        assert secrets_in(url)
        found = place(url)
    assert PASSWORD not in found
    assert PASSWORD not in masked(url, lambda secret: "x")


def test_passwords_are_known_as_they_are_and_as_they_are_written() -> None:
    assert secrets_in("postgresql://u:a%40b@h/db?password=c%20d&sslpassword=e&sslmode=require") == [
        *("a@b", "a%40b", "c d", "c%20d", "e"),
    ]
    assert secrets_in("sqlite:///x:y@z") == secrets_in("postgresql://h:5432/db?sslmode=require") == []


def test_the_place_of_a_database_shows_no_password() -> None:
    assert place("postgresql://u:secret@h:5/db?sslmode=require") == "postgresql://u@h:5/db"
    assert place("postgresql:///db?host=/run") == "postgresql:///db"
