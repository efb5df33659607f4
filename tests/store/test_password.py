"""The password of a PostgreSQL: beside the URL, from a file that may be replaced, and never shown. A real one."""

import os
import sys
from importlib import import_module
from pathlib import Path

import pytest

from exporter import cli, log
from exporter.config import StoreConfig
from exporter.platform.fields import FileSecret
from exporter.store.ledger import Ledger, open_engine
from exporter.store.script import Script, StoreError
from tests.postgres import Postgres
from tests.servers import PATIENCE_SECONDS, eventually, forked, real

pytestmark = real("postgres")
PASSWORD, NEXT = "Gre4t s3cret #1", "0ther@s3cret/2"


def names() -> Script[list[str]]:
    rows = yield "SELECT source FROM sources ORDER BY source", ()
    return [name for (name,) in rows]


def from_file(url: str, file: Path) -> StoreConfig:
    return StoreConfig.model_validate({"url": url, "password": FileSecret(file.read_text().rstrip(), file)})


async def test_it_stands_beside_the_url_or_in_it(server: Postgres) -> None:
    url = server.secured(PASSWORD)
    await (await open_engine(url, password=lambda: PASSWORD)).close()
    await (await open_engine(url, password=lambda: PASSWORD, to_read=True)).close()
    await (await open_engine(url.replace("@", ":Gre4t%20s3cret%20%231@"))).close()


@pytest.mark.parametrize("given", [None, "Wr0ng-s3cret"])
async def test_a_wrong_one_is_one_line_that_names_the_key(server: Postgres, given: str | None) -> None:
    url = server.secured(PASSWORD)
    with pytest.raises(StoreError, match=r"look at .*store\.password") as caught:
        await open_engine(url, password=None if given is None else lambda: given)
    assert "\n" not in str(caught.value)
    assert given is None or given not in str(caught.value)


async def test_one_that_was_replaced_in_its_file_is_taken_without_a_restart(server: Postgres, tmp_path: Path) -> None:
    url, file = server.secured(PASSWORD), tmp_path / "password"
    file.write_text(f"{PASSWORD}\n")
    store = from_file(url, file)
    ledger = Ledger(await open_engine(url, password=store.password_now), {})
    owner = url.partition("//")[2].partition("@")[0]
    server.sql(server.url(), f"ALTER ROLE {owner} PASSWORD '{NEXT}'")
    server.sql(server.url(), f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{owner}'")

    async def works() -> bool:
        try:
            await ledger.probe()
        except StoreError:
            return False
        return True

    async def refused() -> bool:  # it is in the database already, and not in the file yet
        return not await works() and "store.password" in str(ledger.error)

    await eventually(refused)
    file.write_text(NEXT)
    await eventually(works)
    assert await ledger.transact("names", names()) == []
    assert log.scrub(f"with {NEXT}") == "with [secret]"
    file.unlink()  # as long as there is a connection, nobody asks
    assert await ledger.transact("names", names()) == []
    await ledger.close()


def test_commands_find_it_where_the_service_does(
    server: Postgres, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, config, file = server.secured(PASSWORD), tmp_path / "config.yaml", tmp_path / "password"
    file.write_text(PASSWORD)
    store = f"store: {{url: {url}, password_file: {file}}}\n"
    config.write_text(store + 'sources: {m: {platform: make, token: "${NOT_SET}"}}')
    assert cli.main(["retries", "list", "--config", str(config)]) == 1
    said = capsys.readouterr().err
    assert "is empty: run the service once" in said
    file.unlink()
    assert cli.main(["retries", "list", "--config", str(config)]) == 1
    assert "store.password_file: cannot read the file" in capsys.readouterr().err


def as_a_user_without_a_name(output: Path, arguments: tuple[str, ...]) -> None:
    """As in a container: its user is a number."""
    with output.open("wb") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "PGUSER"):
        os.environ.pop(name, None)
    for module in ("exporter.cli.retries", "exporter.store.postgres"):
        import_module(module)  # before the interpreter's files cannot be read any more
    os.setuid(65532)
    sys.exit(cli.main(list(arguments)))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_url_without_a_user_needs_one_with_a_name(tmp_path: Path, server: Postgres) -> None:
    output, url = tmp_path / "output.txt", server.url().replace("postgres@", "")
    with forked(as_a_user_without_a_name, output, ("retries", "list", "--store", url)) as process:
        process.join(PATIENCE_SECONDS)
    assert process.exitcode == 1
    assert output.read_text().splitlines() == [
        "automation-exporter: store.url names no user, and this process runs as one without a name: "
        "write postgresql://USER@HOST/DATABASE"
    ]
