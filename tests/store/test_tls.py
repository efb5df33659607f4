"""TLS between the exporter and its PostgreSQL: a real one, with a certificate of the name ``localhost``."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.store.ledger import open_engine
from exporter.store.script import StoreError
from exporter.store.trying import tried
from tests.postgres import Postgres, postgres
from tests.servers import real

pytestmark = [
    real("postgres"),
    pytest.mark.skipif(
        shutil.which("openssl") is None, reason="real component missing: openssl (apt-get install openssl)"
    ),
]


def certificate(folder: Path, name: str, *, subject: str) -> tuple[Path, Path]:
    """A certificate that is its own authority, and its key."""
    made, key = folder / f"{name}.pem", folder / f"{name}.key"
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", f"/CN={subject}", "-addext", f"subjectAltName=DNS:{subject}"]
    command = ["openssl", "req", "-x509", *kind, *names, "-keyout", str(key), "-out", str(made)]
    subprocess.run(command, check=True, capture_output=True)
    return made, key


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    for name, subject in (("right", "localhost"), ("wrong", "localhost"), ("client", "client"), ("other", "nobody")):
        certificate(folder, name, subject=subject)
    (folder / "text.pem").write_text("no certificate")
    return folder


@pytest.fixture(scope="module")
def speaking(files: Path) -> Iterator[Postgres]:
    with postgres() as server:
        server.speak_tls(files / "right.pem", files / "right.key", files / "client.pem")
        server.sql(server.url(), "CREATE ROLE client LOGIN IN ROLE certified")
        yield server


def url_of(server: Postgres, options: str, files: Path, host: str = "localhost") -> str:
    return server.secured("x", "encrypted").replace("127.0.0.1", host) + "?" + options.format(files=files)


@pytest.mark.parametrize(
    ("options", "host"),
    [
        ("sslmode=verify-full&sslrootcert={files}/right.pem", "localhost"),
        ("sslmode=verify-ca&sslrootcert={files}/right.pem", "127.0.0.1"),
        ("sslmode=require", "127.0.0.1"),
        ("sslmode=prefer", "127.0.0.1"),
        ("sslmode=verify-full&sslrootcert={files}/right.pem&ssl_min_protocol_version=TLSv1.3", "localhost"),
    ],
)
async def test_what_is_asked_for_is_had(speaking: Postgres, files: Path, options: str, host: str) -> None:
    url = url_of(speaking, options, files, host)
    await (await open_engine(url)).close()
    assert ", TLS, with a ledger" in (await tried(url, None)).told


@pytest.mark.parametrize(
    ("options", "host", "said"),
    [
        ("sslmode=verify-full&sslrootcert={files}/right.pem", "127.0.0.1", "certificate is not valid for '127.0.0.1'"),
        ("sslmode=verify-full&sslrootcert={files}/wrong.pem", "localhost", "certificate of the database is refused"),
        ("sslmode=verify-ca&sslrootcert={files}/wrong.pem", "127.0.0.1", "certificate of the database is refused"),
        ("sslmode=require&sslrootcert={files}/wrong.pem", "127.0.0.1", "certificate of the database is refused"),
        ("sslmode=verify-full&sslrootcert=system", "localhost", "certificate of the database is refused"),
        ("sslmode=verify-full&sslrootcert={files}/none.pem", "localhost", "cannot read its sslrootcert, .*none.pem"),
        ("sslmode=verify-full&sslrootcert={files}/text.pem", "localhost", "no TLS with the database"),
        ("sslmode=require&sslcert={files}/none.pem", "localhost", "cannot read its sslcert, .*none.pem"),
        ("sslmode=require&sslcert={files}/right.pem&sslkey={files}/wrong.key", "localhost", "no TLS with the database"),
        ("sslmode=disable", "localhost", "does not let us in: .*sslmode .*no encryption|does not let us in: .*sslmode"),
    ],
)
async def test_what_is_not_had_is_one_line(speaking: Postgres, files: Path, options: str, host: str, said: str) -> None:
    url = url_of(speaking, options, files, host)
    for to_read in (False, True):
        with pytest.raises(StoreError, match=said) as caught:
            await open_engine(url, to_read=to_read)
        assert "\n" not in str(caught.value)
        assert "store.url" in str(caught.value)


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
async def test_a_server_without_it_is_refused_where_it_is_required(server: Postgres, files: Path, mode: str) -> None:
    url = f"{server.make()}?sslmode={mode}&sslrootcert={files}/right.pem"
    with pytest.raises(StoreError, match=r"has no TLS; look at sslmode"):
        await open_engine(url)


async def test_the_systems_certificates_are_those_of_the_system(
    speaking: Postgres, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(files / "right.pem"))
    url = url_of(speaking, "sslmode=verify-full&sslrootcert=system", files)
    await (await open_engine(url)).close()
    with pytest.raises(StoreError, match=r"not valid for '127\.0\.0\.1'"):
        await open_engine(url.replace("localhost", "127.0.0.1"))


async def test_a_server_that_asks_for_a_certificate_gets_ours(speaking: Postgres, files: Path) -> None:
    speaking.sql(speaking.url(), "DROP DATABASE IF EXISTS certified")
    speaking.sql(speaking.url(), "CREATE DATABASE certified OWNER client")
    url = f"postgresql://client@localhost:{speaking.port}/certified?sslmode=verify-full&sslrootcert={files}/right.pem"
    await (await open_engine(f"{url}&sslcert={files}/client.pem&sslkey={files}/client.key")).close()
    for options in ("", f"&sslcert={files}/other.pem&sslkey={files}/other.key"):
        with pytest.raises(StoreError) as caught:
            await open_engine(url + options)
        assert "\n" not in str(caught.value)
