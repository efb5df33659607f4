"""The wheel and the source distribution, built for real: what is in them, and what they can do by themselves.

The wheel is installed into a fresh virtual environment whose libraries are those the wheel asks for, linked from the
environment of the tests, and none besides: what it needs and does not declare is not there.
"""

import asyncio
import base64
import os
import re
import signal
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import bcrypt
import pytest
import yaml
from aiohttp import ClientError, ClientSession
from packaging.metadata import Metadata
from packaging.requirements import Requirement

from exporter import cli
from exporter.shipped import shipped
from tests.cli.test_commands import simulated
from tests.otlp import grpc_receiver
from tests.servers import PATIENCE_SECONDS, eventually, free_port, real, running

ROOT = Path(__file__).parent.parent


def build(project: Path, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", *arguments], cwd=project, check=True, capture_output=True
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of both archives."""
    folder = tmp_path_factory.mktemp("dist")
    build(ROOT, "-d", str(folder))
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    [file] = built.glob("*.whl")
    return file


def requirements(extra: str) -> Iterator[str]:
    """The distributions that the project and one of its extras ask for, and what those ask for in turn."""
    asked, seen = [("automation-exporter", extra)], set[tuple[str, str]]()
    while asked:
        name, extra = asked.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        yield name
        for line in metadata.requires(name) or ():
            one = Requirement(line)
            if one.marker is None or one.marker.evaluate({"extra": extra}):
                asked += [(one.name, below) for below in ("", *one.extras)]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The command of a fresh virtual environment with the wheel and one extra, or none."""

    @lru_cache
    def install(extra: str) -> Path:
        home = tmp_path_factory.mktemp("venv")
        venv.create(home, symlinks=True)
        [libraries] = home.glob("lib/python3*/site-packages")
        for name in set(requirements(extra)) - {"automation-exporter"}:
            for file in metadata.files(name) or ():
                there = libraries / file.parts[0]
                if file.parts[0] not in ("..", "__pycache__") and not there.exists():
                    there.symlink_to(str(metadata.distribution(name).locate_file(file.parts[0])))
        pip = [sys.executable, "-m", "pip", "--python", str(home / "bin/python")]
        subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
        return home / "bin" / "automation-exporter"

    return install


def said_by(program: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PATH": os.environ["PATH"]},
        check=False,
        timeout=PATIENCE_SECONDS,
    )


def below(folder: Path, *patterns: str) -> set[str]:
    return {path.relative_to(folder).as_posix() for pattern in patterns for path in folder.glob(pattern)}


def test_the_wheel_brings_dashboards_alerts_and_runbooks_and_nothing_of_the_workshop(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    brought = {name.removeprefix("exporter/_shipped/") for name in names if name.startswith("exporter/_shipped/")}
    assert brought == (
        {f"dashboards/{name}" for name in below(ROOT / "dashboards", "*.json", "provisioning/*.yaml")}
        | {f"alerts/{name}" for name in below(ROOT / "alerts", "*.yaml")}
        | {f"runbooks/{name}" for name in below(ROOT / "docs/runbooks", "*.md")}
    )
    assert len(brought) > 40
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"exporter"}
    assert not [name for name in names if name.endswith((".pyc", ".db")) or "__pycache__" in name]


def test_the_source_distribution_builds_the_same_wheel(built: Path, wheel: Path, tmp_path: Path) -> None:
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    [unpacked] = tmp_path.iterdir()
    build(unpacked, "-t", "wheel", "-d", str(tmp_path))
    assert zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist() == zipfile.ZipFile(wheel).namelist()


def test_the_dashboards_are_exported_also_over_older_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "grafana"
    for _ in range(2):
        assert cli.main(["dashboards", "export", str(folder)]) == 0
        written = capsys.readouterr().out.splitlines()
        assert {Path(line).relative_to(folder).as_posix() for line in written} == below(folder, "*.*", "*/*.*")
        assert below(folder, "*.*", "*/*.*") == below(ROOT / "dashboards", "*.json", "provisioning/*.yaml")
        (folder / "automation-overview.json").write_text("older")
    source = ROOT / "dashboards" / "automation-workflow.json"
    assert (folder / source.name).read_bytes() == source.read_bytes()


def test_a_folder_that_is_a_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        assert cli.main(["dashboards", "export", str(folder)]) == 1
        assert capsys.readouterr().err == f"automation-exporter: {folder}: is no folder\n"


def test_a_checkout_has_them_where_people_look_for_them() -> None:
    assert (shipped("runbooks") / "AutomationStoreDown.md").read_text().startswith("# AutomationStoreDown\n")
    assert (shipped("dashboards") / "automation-overview.json").is_file()
    assert (shipped("alerts") / "alert-rules.yaml").is_file()


def test_whoever_has_only_the_wheel_has_dashboards_rules_and_runbooks(
    installed: Callable[[str], Path], tmp_path: Path
) -> None:
    program = installed("")
    exported = said_by(program, "dashboards", "export", "grafana", folder=tmp_path)
    assert (exported.returncode, exported.stderr) == (0, "")
    assert below(tmp_path / "grafana", "*.json", "*/*") == below(ROOT / "dashboards", "*.json", "provisioning/*.yaml")
    (tmp_path / "config.yaml").write_text("sources: {}\n")
    rules = said_by(program, "rules", "--config", "config.yaml", folder=tmp_path)
    assert {group["name"] for group in yaml.safe_load(rules.stdout)["groups"]}
    code = "import exporter.shipped; print(*(p.name for p in exporter.shipped.shipped('runbooks').iterdir()))"
    python = said_by(program.with_name("python"), "-c", code, folder=tmp_path)
    assert set(python.stdout.split()) == below(ROOT / "docs/runbooks", "*.md")


MAKE = "sources: {m: {platform: make, url: 'http://127.0.0.1:9', token: t, organization_id: 9}}\n"
PASSWORD = b"open sesame"
#: By extra: a config that needs it.
CONFIGS = {
    "auth": "server: {listen: '127.0.0.1:0', basic_auth: {users: {ann: '%s'}}}\n",
    "grpc": "traces: {enabled: true, protocol: grpc, own: true, endpoint: '%s'}\n",
    "re2": "retries: {policies: [{name: p, match: {error.message: {re: 'ETIME.*UT'}}, action: hold}]}\n",
    "postgres": "store: {url: 'postgresql://ann:secret@%s/ledger'}\n",
}
#: But for those of the workshop.
PROVIDED = sorted(set(metadata.metadata("automation-exporter").get_all("Provides-Extra") or ()) - {"dev", "pictures"})


def written(folder: Path, extra: str, collector: str) -> None:
    """A config for the extra."""
    hashed = bcrypt.hashpw(PASSWORD, bcrypt.gensalt(4)).decode().replace("$", "$$")
    where = {"auth": hashed, "grpc": collector, "postgres": "127.0.0.1:9"}
    text = CONFIGS[extra]
    (folder / "config.yaml").write_text((text % where[extra] if extra in where else text) + MAKE)


def test_the_description_is_valid_and_its_links_work_elsewhere_too(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        told = Metadata.from_email(archive.read(name), validate=True)
    assert told.description_content_type == "text/markdown"
    assert told.project_urls
    assert "Homepage" in told.project_urls
    prose = re.sub(r"^```.*?^```$", "", told.description or "", flags=re.M | re.S)
    links = re.findall(r"\]\(([^)\s]+)\)", prose)
    assert len(links) > 20
    assert [link for link in links if not link.startswith(("https://", "#"))] == []


def test_each_extra_has_a_config_that_needs_it() -> None:
    assert set(PROVIDED) <= set(CONFIGS)


@pytest.mark.parametrize("extra", PROVIDED)
@pytest.mark.parametrize("command", ["check", "run"])
def test_without_an_extra_one_line_names_it(
    command: str, extra: str, installed: Callable[[str], Path], tmp_path: Path
) -> None:
    with grpc_receiver() as receiver:
        written(tmp_path, extra, receiver.url)
        done = said_by(installed(""), command, "--config", "config.yaml", folder=tmp_path)
    assert done.returncode == 1
    said = (done.stdout + done.stderr).splitlines()
    [line] = [line for line in said if "extra" in line]
    assert f"needs the extra {extra}" in line or f"need the extra {extra}" in line
    assert f"pip install 'automation-exporter[{extra}]'" in line
    assert "secret" not in line
    assert "Traceback" not in done.stderr


def test_with_re2_a_policy_matches_by_pattern(installed: Callable[[str], Path], tmp_path: Path) -> None:
    written(tmp_path, "re2", "")
    case = {"dead_letter": {"source": "m", "error.message": "connect ETIMEDOUT"}, "expect": {"policy": "p"}}
    (tmp_path / "cases.yaml").write_text(yaml.safe_dump({"cases": [{"name": "a time-out"} | case]}))
    done = said_by(installed("re2"), "policies", "test", "cases.yaml", "--config", "config.yaml", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@asynccontextmanager
async def served(program: Path, folder: Path, address: str) -> AsyncIterator[str]:
    """The service of a config with the default address, at another."""
    file = folder / "config.yaml"
    text = file.read_text().replace("127.0.0.1:0", address)
    file.write_text(f"{text}store: {{url: 'sqlite:///{folder}/x.db'}}\n")
    command = [str(program), "run", "--config", str(file)]
    async with running(command, log=folder / "log", ready_url=f"http://{address}/-/healthy"):
        yield f"http://{address}"


async def test_with_auth_whoever_has_no_password_sees_nothing(installed: Callable[[str], Path], tmp_path: Path) -> None:
    written(tmp_path, "auth", "")
    async with served(installed("auth"), tmp_path, f"127.0.0.1:{free_port()}") as url, ClientSession() as session:
        for password, status in ((b"wrong", 401), (PASSWORD, 200)):
            proof = base64.b64encode(b"ann:" + password).decode()
            async with session.get(f"{url}/metrics", headers={"Authorization": f"Basic {proof}"}) as answer:
                assert answer.status == status


async def test_with_grpc_a_collector_gets_spans(installed: Callable[[str], Path], tmp_path: Path) -> None:
    with grpc_receiver() as receiver:
        async with simulated(tmp_path, "make") as url:
            written(tmp_path, "grpc", receiver.url)
            file = tmp_path / "config.yaml"
            text = file.read_text().replace("http://127.0.0.1:9", url).replace("token: t", "token: demo-token")
            file.write_text(text + "server: {listen: '127.0.0.1:0'}\n")
            async with served(installed("grpc"), tmp_path, f"127.0.0.1:{free_port()}"):

                async def spans() -> bool:
                    return bool(receiver.spans)

                assert await eventually(spans)


@real("prometheus")
async def test_the_demo_of_the_wheel_has_a_prometheus_beside_it(
    installed: Callable[[str], Path], tmp_path: Path
) -> None:
    output = tmp_path / "output"
    with output.open("wb") as sink:
        command = [str(installed("")), "demo", "--port", "0", "--with-prometheus"]
        demo = await asyncio.create_subprocess_exec(*command, stdout=sink, stderr=sink, cwd=tmp_path)
    try:

        async def rules() -> list[str]:
            assert demo.returncode is None, output.read_text()
            found = re.search(r"^prometheus +(http://\S+)$", output.read_text(), re.M)
            if found is None:
                return []
            with suppress(ClientError):
                async with ClientSession() as session, session.get(f"{found[1]}/api/v1/rules") as answer:
                    groups = (await answer.json())["data"]["groups"]
                    return [rule["name"] for group in groups for rule in group["rules"]]
            return []

        assert "AutomationExporterDown" in await eventually(rules)
        demo.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(demo.wait(), PATIENCE_SECONDS) == 0
    finally:
        if demo.returncode is None:
            demo.kill()
            await demo.wait()
    assert "Traceback" not in output.read_text()
