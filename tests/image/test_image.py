"""The image, built and run for real: ``make image-test``."""

import asyncio
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import ClientError, ClientSession

from exporter import __version__
from tests.image import container
from tests.image.container import UID, Container, Image, run, started
from tests.servers import eventually, free_port

pytestmark = pytest.mark.image

#: Bytes that the image adds to its base. It was 118 MB when nobody had looked; most of what is left is compiled.
ADDED_BYTES_MAX = 70 * 1024**2
CONFIG = "sources: {flows: {platform: n8n, url: 'http://127.0.0.1:9', token_file: /etc/automation-exporter/token}}\n"
IDS = (UID, UID)


@pytest.fixture(scope="session")
def image() -> Iterator[Image]:
    if (reason := container.missing()) is not None:
        pytest.skip(reason)
    with container.built() as made:
        yield made


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The folder at /etc/automation-exporter."""
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "token").write_text("token")
    os.chown(folder / "token", *IDS)
    (folder / "token").chmod(0o400)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The volume at /data, as a container's runtime makes it from the image: of the image's user."""
    folder = tmp_path / "data"
    folder.mkdir()
    os.chown(folder, *IDS)
    return folder


async def get(port: int, path: str, of: Container) -> str:
    async with ClientSession() as session:

        async def answer() -> str:
            assert of.process.returncode is None, await of.ended()
            try:
                async with session.get(f"http://127.0.0.1:{port}{path}") as response:
                    return await response.text() if response.status == 200 else ""
            except ClientError:
                return ""

        return await eventually(answer)


async def test_it_serves_as_its_user_on_read_only_files_and_keeps_its_data_in_the_volume(
    image: Image, config: Path, data: Path
) -> None:
    port = free_port()
    where = f"0.0.0.0:{port}"
    async with started(image, config=config, data=data, listen=where) as one:
        assert await get(port, "/-/healthy", one) == "healthy\n"
        assert f'version="{__version__}"' in (await get(port, "/metrics", one))
        async with started(image, "healthcheck", config=config, listen=where) as asking:
            assert await asking.ended() == (0, f"healthy: http://0.0.0.0:{port}/-/healthy\n")

        found = one.status()
        assert found["Uid"].split() == found["Gid"].split() == [str(UID)] * 4
        assert (found["NSpid"].split()[-1], found["NoNewPrivs"]) == ("1", "1")
        assert {int(found[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
        assert found["Groups"] == ""
        root = next(
            fields
            for line in Path(f"/proc/{one.pid}/mountinfo").read_text().splitlines()
            if (fields := line.split())[4] == "/"
        )
        assert root[5].split(",")[0] == "ro"
        files = {file.name: file.stat() for file in data.iterdir()}
        assert {"automation-exporter.db", "automation-exporter.db.lock"} <= set(files)
        for one_file in files.values():
            assert (one_file.st_uid, one_file.st_gid, stat.S_IMODE(one_file.st_mode) & 0o077) == (*IDS, 0)

        os.kill(one.pid, signal.SIGTERM)
        code, said = await one.ended()
    assert (code, "msg=stopping" in said) == (0, True), said
    async with started(image, "healthcheck", config=config, listen=where) as asking:
        code, said = await asking.ended()
    assert (code, said.count("\n"), "nothing listens there" in said) == (1, 1, True), said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
async def test_a_signal_in_the_first_second_stops_it_with_0(
    number: signal.Signals, image: Image, config: Path, data: Path
) -> None:
    where = f"127.0.0.1:{free_port()}"
    for after in (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.4, 0.8):
        async with started(image, config=config, data=data, listen=where) as one:
            await one.begun()
            await asyncio.sleep(after)  # not for anything, but up to some moment of its start
            os.kill(one.pid, number)
            code, said = await one.ended()
        assert (code, "Traceback" in said) == (0, False), (after, said)


async def test_a_volume_that_is_not_ours_is_one_line_with_the_way_out(
    image: Image, config: Path, tmp_path: Path
) -> None:
    data = tmp_path / "theirs"
    data.mkdir(mode=0o755)
    code, said = await run(image, config=config, data=data)
    assert (code, said) == (
        1,
        "automation-exporter: cannot open or create /data/automation-exporter.db.lock of the database "
        f"/data/automation-exporter.db: /data belongs to uid {os.getuid()}, gid {os.getgid()} (mode 755) and cannot be "
        "written to by this process, uid 65532, gid 65532: `chown -R 65532:65532` it (Kubernetes: fsGroup: 65532), or "
        "run as its owner\n",
    )
    code, said = await run(image, "check", config=config, data=data)
    assert (code, "store.url: the folder /data belongs to uid 0" in said) == (1, True), said


async def test_without_a_volume_on_read_only_files_is_one_line(image: Image, config: Path) -> None:
    code, said = await run(image, config=config)
    assert (code, said) == (
        1,
        "automation-exporter: cannot open or create /data/automation-exporter.db.lock of the database "
        "/data/automation-exporter.db: Read-only file system: mount a volume at /data, or give store.url "
        "another folder\n",
    )


async def test_without_a_config_it_says_where_it_looked(image: Image, data: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    code, said = await run(image, config=tmp_path / "none", data=data)
    assert (code, said.count("\n")) == (1, 1)
    assert said.startswith("/etc/automation-exporter/config.yaml: No such file or directory")


async def test_it_has_what_the_docs_say_and_no_pip(image: Image) -> None:
    python = image.files / "opt/automation-exporter/bin/python3"
    assert python.is_symlink()
    code = "import asyncpg, bcrypt, re2, zoneinfo, exporter.app; zoneinfo.ZoneInfo('Europe/Berlin'); print('fine')"
    inside = ["chroot", str(image.files), "/opt/automation-exporter/bin/python3", "-B", "-c"]
    assert subprocess.run([*inside, code], capture_output=True, text=True).stdout == "fine\n"
    for absent in ("pip", "ensurepip", "setuptools", "hatchling", "grpc", "pytest"):
        done = subprocess.run([*inside, f"import {absent}"], capture_output=True, text=True)
        assert (done.returncode, "ModuleNotFoundError" in done.stderr) == (1, True), absent
    named = [path for folder in ("usr", "opt") for path in (image.files / folder).rglob("pip*")]
    assert [path for path in named if path.name.startswith(("pip-", "pip3")) or path.name == "pip"] == []


def test_what_it_says_about_itself(image: Image) -> None:
    config, labels = image.config, image.config["Labels"]
    assert config["User"] == f"{UID}:{UID}"
    assert (set(config["Volumes"]), set(config["ExposedPorts"])) == ({"/data"}, {"10870/tcp"})
    assert (config["WorkingDir"], config["StopSignal"], config["Cmd"]) == ("/data", "SIGTERM", ["run"])
    assert config["Healthcheck"]["Test"] == ["CMD", "automation-exporter", "healthcheck"]
    assert "AUTOMATION_EXPORTER_LISTEN=0.0.0.0:10870" in config["Env"]
    wanted = ("title", "description", "licenses", "vendor", "version", "revision")
    assert {name: labels[f"org.opencontainers.image.{name}"] != "" for name in wanted} == dict.fromkeys(wanted, True)
    assert labels["org.opencontainers.image.version"] == __version__
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=container.ROOT, capture_output=True, text=True)
    if head.returncode == 0:
        assert labels["org.opencontainers.image.revision"] == head.stdout.strip()


def test_its_size_has_a_bound(image: Image, capsys: pytest.CaptureFixture[str]) -> None:
    own, whole, base = (size(path) for path in (image.files / "opt/automation-exporter", image.files, image.base))
    with capsys.disabled():
        print(f"\nimage: {whole / 1e6:.0f} MB on a base of {base / 1e6:.0f} MB; of its own {own / 1e6:.0f} MB")
    assert own < ADDED_BYTES_MAX


def size(folder: Path) -> int:
    done = subprocess.run(["du", "--bytes", "--summarize", "--one-file-system", folder], capture_output=True, text=True)
    return int(done.stdout.split()[0])
