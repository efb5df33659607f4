"""Two sources that read the same: refused where it is certain, told where it is likely, silent where it is neither."""

from typing import Any

import pytest

from exporter.config import ConfigError, parse, validate
from exporter.config.cautions import cautions

MAKE = {"platform": "make", "url": "https://eu1.make.com", "token": "t-one", "organization_id": 9}
TEAMS = {key: value for key, value in MAKE.items() if key != "organization_id"}
QLIK = {"platform": "qlik", "url": "https://t.eu.qlikcloud.com", "token": "t-one"}
ETL = {"platform": "etlworks", "url": "https://app.etlworks.com", "token": "t-one"}
DOCS = {"platform": "cognaize", "url": "https://c.example", "token": "t-one"}
CLIENT = {"platform": "qlik", "url": QLIK["url"], "oauth": {"client_id": "c", "client_secret": "one"}}

CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("refused", MAKE, MAKE),
    ("refused", MAKE, MAKE | {"url": "https://EU1.make.com:443/"}),
    ("refused", MAKE, MAKE | {"url": "https://eu1.make.com.", "exclude": ["x"]}),
    ("refused", TEAMS | {"team_ids": [77, 78]}, TEAMS | {"team_ids": [78]}),
    ("refused", QLIK, QLIK | {"api_prefix": "/api/v1/automations"}),
    ("refused", CLIENT, CLIENT | {"oauth": {"client_id": "c", "client_secret": "two"}}),
    ("refused", ETL, ETL | {"flows": [1]}),
    ("refused", ETL | {"flows": [1, 2]}, ETL | {"flows": ["2"]}),
    ("refused", DOCS, DOCS | {"labels": {"a": "b"}}),
    ("warned", MAKE, MAKE | {"token": "t-two"}),
    ("warned", MAKE, TEAMS | {"team_ids": [77]}),
    ("warned", MAKE, MAKE | {"url": "https://make.example"}),
    ("warned", QLIK, CLIENT),
    ("warned", QLIK, QLIK | {"url": "http://t.eu.qlikcloud.com"}),
    ("warned", QLIK | {"include": ["a*"]}, QLIK | {"include": ["*b"]}),
    ("silent", MAKE, MAKE | {"organization_id": 10}),
    ("silent", TEAMS | {"team_ids": [77]}, TEAMS | {"team_ids": [78]}),
    ("silent", MAKE, MAKE | {"url": "https://us1.make.com", "token": "t-two"}),
    ("silent", ETL | {"flows": [1]}, ETL | {"flows": [2]}),
    ("silent", QLIK | {"include": ["a*"]}, QLIK | {"exclude": ["a*"]}),
    ("silent", QLIK | {"include": ["a", "b"]}, QLIK | {"include": ["c"]}),
    ("silent", QLIK, ETL),
]


@pytest.mark.parametrize(("verdict", "one", "other"), CASES)
def test_two_sources_that_read_the_same(verdict: str, one: dict[str, Any], other: dict[str, Any]) -> None:
    for sources in ({"a": one, "b": other}, {"a": other, "b": one}):
        try:
            said = [line for line in cautions(validate({"sources": sources}), 0.0) if "unencrypted" not in line]
            seen = "warned" if said else "silent"
        except ConfigError as exc:
            seen, said = "refused", exc.problems
        assert seen == verdict, said
        assert all(line.startswith("sources.b: ") and "sources.a" in line for line in said if seen != "silent")
        assert "t-one" not in "".join(said)


def test_a_token_from_a_file_is_compared_as_what_it_is(tmp_path: Any) -> None:
    (tmp_path / "t").write_text("t-one\n")
    text = f"""
sources:
  a: {{platform: qlik, url: 'https://q.example', token: t-one}}
  b: {{platform: qlik, url: 'https://Q.example/', token_file: {tmp_path}/t}}
"""
    with pytest.raises(ConfigError, match=r"sources\.b: reads the same as sources\.a"):
        parse(text, {})
